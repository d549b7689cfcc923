"""SIM's search by category."""

import torch

from recemb.models.sequence.sim import SIM
from recemb.report.sequence_health import attention_of

LENGTHS = [9, 3, 0, 6]
K = 2


def same_category(batch, example: int) -> list[int]:
    """Return the places of an example's behaviours of the target's category."""
    history = batch.features["category_history"].to_dense()[example].tolist()
    target = int(batch.features["category"].values()[example])
    return [place for place, category in enumerate(history) if category == target]


def test_hard_search_finds_the_most_recent_of_the_category_and_no_others(make, draw) -> None:
    model, tables = make(SIM, search="hard", top_k=K)
    seen = set()
    for seed in range(20):
        batch = draw(LENGTHS, seed=seed)
        found = attention_of(model.eval(), batch, tables)
        for example in range(len(LENGTHS)):
            expected = same_category(batch, example)[-K:]
            assert found[example].nonzero().flatten().tolist() == expected
            total = torch.tensor(1.0 if expected else 0.0)
            torch.testing.assert_close(found[example].sum(), total)
            seen.add(len(expected))
    assert seen == {0, 1, 2}
