"""Matryoshka: which prefix is trained, which is served, and what truncation leaves."""

from collections import Counter

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.matryoshka import Matryoshka
from recemb.tables.initial import Initial
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.spec import TableSpec

SPECS = [
    TableSpec(name="a", num_embeddings=500, embedding_dim=16, feature_names=("f",)),
    TableSpec(name="b", num_embeddings=300, embedding_dim=4, feature_names=("g",), pooling="mean"),
    TableSpec(name="a_weight", num_embeddings=500, embedding_dim=1, feature_names=("f",)),
]
SGD = TableOptimizer(kind="sgd", learning_rate=0.5)


def build(ratio=0.5, optimizer=SGD, specs=SPECS, seed=1, **settings):
    budget = None if ratio is None else Budget(ratio=ratio)
    device = torch.device("cpu")
    return Matryoshka(**settings).build(
        specs, {}, budget, optimizer=optimizer, seed=seed, device=device
    )


def draw(seed=0):
    generator = torch.Generator().manual_seed(seed)
    values = torch.cat([torch.randint(0, n, (6,), generator=generator) for n in (500, 300)])
    return KeyedJaggedTensor(
        keys=["f", "g"], values=values, lengths=torch.ones(12, dtype=torch.int64)
    )


def shown(values):
    """Return how many values of the widest vector are shown."""
    return int(values[:, :16].any(dim=0).sum())


def test_the_served_prefix_is_the_longest_within_the_budget():
    # A prefix of w takes 2000 w + 1200 min(w, 4) + 2000 bytes, 38,800 in full.
    for allowed, width in ((7600, 1), (8400, 2), (20800, 7), (22800, 8), (38800, 16)):
        plan = Matryoshka().plan(SPECS, {}, Budget(num_bytes=allowed))
        expected = 2000 * width + 1200 * min(width, 4) + 2000
        assert plan.parameters["width"] == width
        assert plan.storage.serve_bytes == expected <= allowed


def test_one_value_of_each_vector_is_the_floor():
    plan = Matryoshka().plan(SPECS, {}, Budget(num_bytes=5199))
    assert not plan.is_feasible
    assert plan.storage.serve_bytes == 2000 + 1200 + 2000
    with pytest.raises(ValueError, match="the least is 5,200"):
        build(ratio=5199 / 38800)


def test_halves_are_trained_and_the_served_prefix_too():
    assert build(ratio=22800 / 38800).widths == (2, 4, 8, 16)
    assert build(ratio=20800 / 38800).widths == (2, 4, 7, 8, 16)
    assert build(ratio=None, levels=2).widths == (8, 16)


def test_every_prefix_is_drawn_equally_often():
    tables = build(ratio=22800 / 38800)
    features = draw()
    with torch.no_grad():
        counts = Counter(shown(tables(features).values()) for _ in range(400))
    assert set(counts) == {2, 4, 8, 16}
    # Chi-square with three degrees of freedom is below 16.3 in 99.9 % of draws.
    assert sum((n - 100) ** 2 / 100 for n in counts.values()) < 16.3


def test_a_step_moves_the_drawn_prefix_alone():
    tables = build()
    for _ in range(8):
        before = tables.planned.table("a").clone()
        values = tables(draw()).values()
        width = shown(values)
        values.backward(torch.ones_like(values))
        moved = (tables.planned.table("a") != before).any(dim=0)
        assert moved.tolist() == [column < width for column in range(16)]


def test_narrow_tables_are_always_whole():
    tables = build()
    for _ in range(8):
        values = tables(draw()).values()
        assert (values[:, 20] == tables.planned.table("a_weight")[draw().values()[:6], 0]).all()


def test_in_evaluation_the_served_prefix_is_shown():
    tables = build(ratio=20800 / 38800).eval()
    assert [shown(tables(draw()).values()) for _ in range(5)] == [7] * 5


def test_evaluation_draws_nothing():
    one, other = build(), build()
    one.eval()(draw())
    one.train()
    for _ in range(8):
        assert torch.equal(one(draw()).values(), other(draw()).values())


def test_draws_go_on_where_a_saved_state_left_off():
    one, two = build(), build(seed=1)
    for _ in range(5):
        one(draw())
    two.load_state_dict(one.state_dict())
    widths = [[shown(tables(draw()).values()) for _ in range(20)] for tables in (one, two)]
    assert widths[0] == widths[1]
    assert len(set(widths[0])) > 1


def test_a_state_without_the_draws_is_refused():
    state = build().state_dict()
    del state["matryoshka.step"]
    with pytest.raises(RuntimeError, match=r"Missing key.*matryoshka\.step"):
        build().load_state_dict(state)


def test_the_state_names_rows_as_all_tables_do():
    assert "embedding_bags.a.weight" in build().state_dict()


@pytest.mark.parametrize("width", [1, 3, 8, 16, 40])
def test_any_prefix_can_be_served(width):
    tables = build()
    served = tables.truncated(width)
    assert isinstance(served, PlannedTables)
    found, full = served(draw()).values(), tables.planned(draw()).values()
    is_kept = torch.cat([torch.arange(d) < width for d in (16, 4, 1)])
    assert tables.keys == ("f@a", "g", "f@a_weight")
    assert torch.equal(found, torch.where(is_kept, full, 0.0))
    stored = sum(t.nbytes for t in served.state_dict().values())
    assert stored == 2000 * min(width, 16) + 1200 * min(width, 4) + 2000


def test_no_prefix_is_refused():
    with pytest.raises(ValueError, match="width must be at least 1, got 0"):
        build().truncated(0)
    with pytest.raises(ValueError, match="levels must be at least 1, got 0"):
        Matryoshka(levels=0)


def test_initial_values_have_the_full_table_s_deviation():
    spec = TableSpec(name="a", num_embeddings=4000, embedding_dim=16, feature_names=("f",))
    tables = build(specs=[spec])
    vectors = tables.rows("f", torch.arange(4000)).detach()
    assert tables.width == 8
    assert not vectors[:, 8:].any()
    # 32,000 uniform values: known to 0.3 %.
    assert float(vectors[:, :8].std()) == pytest.approx(Initial.dlrm(4000).std, rel=0.05)


def test_the_mean_gradient_over_the_prefixes_is_that_of_the_mean_of_their_losses():
    # The loss of a prefix is the squared distance of the shown vector from a target.
    tables = build(ratio=22800 / 38800, optimizer=None)
    target = torch.randn(6, 21, generator=torch.Generator().manual_seed(5))
    gradients = {}
    while len(gradients) < 4:
        values = tables(draw()).values()
        width = shown(values)
        tables.zero_grad()
        (values - target).square().sum().backward()
        weight = next(p for p in tables.parameters() if p.shape[1] == 16)
        gradients[width] = weight.grad.clone()
    mean = sum(gradients.values()) / 4
    rows = tables.planned.table("a").detach()[draw().values()[:6]]
    shares = torch.tensor([sum(column < w for w in (2, 4, 8, 16)) / 4 for column in range(16)])
    expected = torch.zeros(500, 16)
    expected.index_add_(0, draw().values()[:6], 2 * (rows - target[:, :16]) * shares)
    # Sums of a few float32 products in another order.
    torch.testing.assert_close(mean, expected, rtol=1e-5, atol=1e-6)


def test_training_a_prefix_puts_what_matters_first():
    # A score of every id is to be the sum of its vector's values over 4, of which two are served.
    spec = TableSpec(name="a", num_embeddings=64, embedding_dim=16, feature_names=("f",))
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(64, 1, generator=generator)
    ids = torch.arange(64)
    features = KeyedJaggedTensor(keys=["f"], values=ids, lengths=torch.ones(64, dtype=torch.int64))

    def served_error(levels):
        tables = build(specs=[spec], ratio=0.125 if levels > 1 else None, levels=levels)
        reader = torch.nn.Linear(16, 1)
        torch.nn.init.constant_(reader.weight, 0.25)
        torch.nn.init.zeros_(reader.bias)
        for parameter in reader.parameters():
            parameter.requires_grad_(False)
        for _ in range(150):
            loss = (reader(tables(features).values()) - scores).square().sum()
            (0.5 * loss).backward()
        vectors = tables.truncated(2)(features).values()
        return float((reader(vectors) - scores).square().mean())

    # Trained in full, two of sixteen values carry an eighth of the score, and (7/8)^2 is left.
    assert served_error(1) == pytest.approx(float(scores.square().mean()) * (7 / 8) ** 2, rel=0.1)
    assert served_error(4) < 0.5 * served_error(1)
