"""What a trained model attends to, and what its features are worth."""

from pathlib import Path

import pytest
import torch

from recemb.data.synthetic_sequences import SyntheticSequences
from recemb.models.sequence.sdim import SDIM
from recemb.models.sequence.twin import TWIN
from recemb.report.relevance import CategoryBatch, MutualInformation
from recemb.report.role_gradients import role_gradients
from recemb.report.sequence_health import (
    attention_of,
    attention_report,
    category_batch,
    feature_report,
    features_of,
    role_report,
)
from recemb.tables.full import full_tables

# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    data = SyntheticSequences(
        num_users=30, length=40, num_items=60, num_categories=6, max_history=12
    )
    return data.prepare(Path(), tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def batch(prepared):
    return next(prepared.batches("train", batch_size=60, shuffle=True))


def made(kind, prepared):
    options = {"hidden_units": [6]}
    specs = kind.table_specs(prepared.schema, embedding_dim=4, options=options)
    tables = full_tables(specs, seed=1, init_std=0.5)
    return kind.for_tables(prepared.schema, tables, options).eval(), tables


@pytest.mark.parametrize("kind", [TWIN, SDIM])
def test_the_head_makes_the_model_s_logits_of_the_features(prepared, batch, kind) -> None:
    model, tables = made(kind, prepared)
    found = model.head(features_of(model, batch, tables))
    torch.testing.assert_close(found, model.score(batch, tables), **ROUNDING)
    assert attention_of(model, batch, tables).shape == (60, 12)


def test_the_report_is_the_mean_over_batches(prepared) -> None:
    model, tables = made(TWIN, prepared)
    batches = list(prepared.batches("train", batch_size=40))[:3]
    found = role_report(model, tables, batches, column="category")
    assert not model.training
    model.train()
    each = [role_gradients(model, b, tables, column="category") for b in batches]
    assert found.attention_norm == pytest.approx(sum(r.norms[0] for r in each) / 3)
    assert found.representation_norm == pytest.approx(sum(r.norms[1] for r in each) / 3)
    cosines = torch.cat([r.cosines for r in each])
    assert found.conflicting_rows == pytest.approx(float((cosines < 0).double().mean()))
    assert found.domination == pytest.approx(found.representation_norm / found.attention_norm)


class Known(MutualInformation):
    """A relevance that is the model's own attention."""

    def __init__(self, attention: torch.Tensor) -> None:
        self.targets = torch.arange(7)
        self.num_categories = 9
        self.attention = attention

    def relevance(self, batch: CategoryBatch) -> torch.Tensor:
        return self.attention

    def is_reliable(
        self, batch: CategoryBatch, *, min_joint: int = 50, max_rare: int = 20
    ) -> torch.Tensor:
        return batch.lengths > 0


def test_attention_that_is_the_truth_has_an_ndcg_of_one(prepared, batch) -> None:
    model, tables = made(TWIN, prepared)
    category = next(part for part in model.parts if part.target == "category")
    truth = Known(attention_of(model, batch, tables))
    found = attention_report(model, tables, [batch], truth, category, ranks=(12,))
    assert (found.num_examples, found.num_targets, found.num_categories) == (60, 7, 9)
    assert found.ndcg[12] == pytest.approx(1)
    assert found.most_recent[12] < 1


def test_categories_are_those_of_the_batch(prepared, batch) -> None:
    model, _ = made(TWIN, prepared)
    category = next(part for part in model.parts if part.target == "category")
    found = category_batch(batch, category)
    lists = batch.features["category_history"].to_dense()
    for row, ids in enumerate(lists):
        assert found.history[row, : len(ids)].tolist() == ids.tolist()
    assert torch.equal(found.label, batch.labels)


def test_features_that_are_the_label_are_told_apart_wholly(prepared, batch) -> None:
    model, tables = made(TWIN, prepared)
    model.features = lambda sums, target, context: batch.labels.unsqueeze(1).expand(-1, 3)
    found = feature_report(model, tables, [batch], clusters=(2, 1000))
    assert found.discriminability == {2: pytest.approx(1)}
    assert found.rank == pytest.approx(1, rel=1e-4)
