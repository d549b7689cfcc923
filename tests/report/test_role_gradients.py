"""The two gradients of a vector that has two roles."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.data.synthetic_sequences import SyntheticSequences
from recemb.models.sequence.dare import DARE
from recemb.models.sequence.twin import TWIN
from recemb.models.sequence.twin_4e import TWIN4E
from recemb.report.role_gradients import RoleGradients, role_gradients
from recemb.report.sequence_health import role_report
from recemb.tables.full import full_tables

OPTIONS = {"top_k": 3, "hidden_units": [6], "auxiliary_units": [6]}
# One sum of hundreds of products in two parts.
ROUNDING = {"rtol": 1e-4, "atol": 3e-6}


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory):
    data = SyntheticSequences(num_users=30, length=40, num_items=600, max_history=12)
    return data.prepare(Path(), tmp_path_factory.mktemp("data") / "set")


@pytest.fixture
def batch(prepared) -> Batch:
    return next(prepared.batches("train", batch_size=50, shuffle=True))


def made(kind, prepared):
    specs = kind.table_specs(prepared.schema, embedding_dim=4, options=OPTIONS)
    tables = full_tables(specs, seed=1, init_std=0.5)
    return kind.for_tables(prepared.schema, tables, OPTIONS), tables


def table_gradients(model, tables, batch) -> dict[str, Tensor]:
    (model.loss_sum(model.inputs(batch, tables), batch.labels) / len(batch)).backward()
    for weight in tables.parameters():
        weight.data = weight.grad
    return {spec.name: tables.table(spec.name).detach() for spec in tables.specs}


@pytest.mark.parametrize("column", ["item", "category", "position"])
def test_both_roles_add_up_to_the_gradient_of_a_shared_table(prepared, batch, column) -> None:
    model, tables = made(TWIN, prepared)
    found = role_gradients(model, batch, tables, column=column)
    expected = table_gradients(model, tables, batch)[column]
    total = torch.zeros_like(expected)
    total[found.ids] = found.attention + found.representation
    torch.testing.assert_close(total, expected, **ROUNDING)


def test_the_roles_of_apart_tables_are_their_gradients(prepared, batch) -> None:
    model, tables = made(DARE, prepared)
    found = role_gradients(model, batch, tables, column="item")
    expected = table_gradients(model, tables, batch)
    for role in ("attention", "representation"):
        torch.testing.assert_close(getattr(found, role), expected[f"item.{role}"][found.ids])


def test_rows_of_history_and_target_are_told_apart_where_they_have_tables(prepared, batch) -> None:
    model, tables = made(TWIN4E, prepared)
    found = role_gradients(model, batch, tables, column="item")
    expected = table_gradients(model, tables, batch)
    history = len(batch.features["item_history"].values().unique())
    for role in ("attention", "representation"):
        its = getattr(found, role)
        first, second = (expected[f"{side}.{role}"] for side in ("item", "item_history"))
        torch.testing.assert_close(its[:history], second[found.ids[:history]], **ROUNDING)
        torch.testing.assert_close(its[history:], first[found.ids[history:]], **ROUNDING)


@pytest.mark.parametrize(("kind", "is_shared"), [(TWIN, True), (DARE, False), (TWIN4E, False)])
def test_roles_conflict_only_over_rows_that_they_share(prepared, batch, kind, is_shared) -> None:
    model, tables = made(kind, prepared)
    report = role_report(model, tables, [batch], column="item")
    assert (report.conflicting_rows is not None) == is_shared
    assert (report.conflicting_batches is not None) == is_shared


def test_nothing_is_changed(prepared, batch) -> None:
    model, tables = made(TWIN, prepared)
    before = {k: v.clone() for k, v in (*model.state_dict().items(), *tables.state_dict().items())}
    parts = model.parts
    role_gradients(model, batch, tables, column="item")
    after = {**model.state_dict(), **tables.state_dict()}
    assert all(torch.equal(before[k], after[k]) for k in before)
    assert model.parts is parts
    assert all(p.grad is None for p in (*model.parameters(), *tables.parameters()))


def test_norms_and_cosines_are_those_of_rows_that_are_not_zero() -> None:
    found = RoleGradients(
        ids=torch.arange(3),
        attention=torch.tensor([[3.0, 4.0], [0.0, 0.0], [1.0, 0.0]]),
        representation=torch.tensor([[-3.0, -4.0], [2.0, 0.0], [0.0, 0.0]]),
    )
    assert found.norms == (3.0, 3.5)
    torch.testing.assert_close(found.cosines, torch.tensor([-1.0]))


def test_roles_of_different_widths_have_no_cosine() -> None:
    found = RoleGradients(
        ids=torch.arange(1), attention=torch.ones(1, 2), representation=torch.ones(1, 3)
    )
    with pytest.raises(ValueError, match="one width only"):
        _ = found.cosines


def test_an_unknown_column_is_refused(prepared, batch) -> None:
    model, tables = made(TWIN, prepared)
    with pytest.raises(ValueError, match="no column 'shop'"):
        role_gradients(model, batch, tables, column="shop")
