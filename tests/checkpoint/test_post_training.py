"""Trained tables in fewer bits: their bytes, their error, and what stays as it is."""

from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.forms import describe_tables, make_tables
from recemb.checkpoint.post_training import quantise_tables
from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_tables
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.method import Budget
from recemb.tables.planned import PlannedTables
from recemb.tables.row_codes import decode_rows, encode_rows
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables

FOLDER = Path(__file__).resolve().parents[2] / "conf" / "embedding"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
SPECS = [
    TableSpec(name="large", num_embeddings=2000, embedding_dim=16, feature_names=("f0", "f1")),
    TableSpec(
        name="a.b", num_embeddings=90, embedding_dim=16, feature_names=("f2",), pooling="mean"
    ),
    TableSpec(name="large_weight", num_embeddings=2000, embedding_dim=1, feature_names=("f0",)),
]
COUNTS = {f: torch.arange(s.num_embeddings).flip(0) for s in SPECS for f in s.feature_names}
CPU = torch.device("cpu")


def built(name: str) -> Tables:
    method = instantiate(OmegaConf.load(FOLDER / f"{name}.yaml"))
    budgets = [Budget(ratio=ratio) for ratio in (0.1, 0.25, 0.5)]
    fitting = [b for b in budgets if method.plan(SPECS, COUNTS, b).is_feasible]
    budget = fitting[0] if fitting else None
    tables = method.build(SPECS, COUNTS, budget, optimizer=None, seed=1, device=CPU)
    assert isinstance(tables, Tables)
    return tables.eval()


def features() -> KeyedJaggedTensor:
    lengths = torch.tensor([1, 1, 1, 2, 0, 1, 0, 3, 1])
    values = torch.tensor([0, 1999, 7, 5, 5, 1, 2, 2, 89, 0])
    return KeyedJaggedTensor(keys=["f0", "f1", "f2"], values=values, lengths=lengths)


def num_bytes(tables: Tables) -> int:
    return sum(tensor.nbytes for tensor in tables.state_dict().values())


def reloaded(tables: Tables) -> Tables:
    return make_tables(describe_tables(tables), tables.state_dict(), "error")


def is_refused(tables: Tables) -> bool:
    """Return whether some rows are neither looked up, nor integers, nor computed."""
    frozen = tables.freeze()
    sources = frozen.sources.values() if isinstance(frozen, ComputedTables) else ()
    return any(s.packable is None and s.form != "quantised" for s in sources)


@pytest.mark.parametrize("post", ["fp16", "int8", "int4", "int2"])
@pytest.mark.parametrize("name", NAMES)
def test_bytes_are_exact_and_fewer_and_the_file_gives_the_same_bits(name: str, post: Any) -> None:
    tables = built(name)
    if is_refused(tables):
        with pytest.raises(ValueError, match="quantised after training; set post=none"):
            quantise_tables(tables, post)
        return
    small = quantise_tables(tables, post)
    assert num_bytes(small) == small.storage().serve_bytes <= tables.storage().serve_bytes
    assert small.storage().full_bytes == tables.storage().full_bytes
    with torch.no_grad():
        found = small(features()).values()
        assert torch.equal(reloaded(small)(features()).values(), found)
    assert found.shape == tables(features()).values().shape


@pytest.mark.parametrize(
    "name", ["unified", "compo_emb", "mem_com", "dpq", "tt_rec", "robe", "dhe"]
)
def test_eight_bits_are_close_to_the_trained_vectors(name: str) -> None:
    tables = built(name)
    with torch.no_grad():
        expected = tables.freeze()(features()).values()
        found = quantise_tables(tables, "int8")(features()).values()
    # A few steps of 1 / 255 of a row's range, which a product of several factors multiplies.
    assert float((found - expected).abs().max()) <= 0.02 * float(expected.abs().max())


def full(**changes: Any) -> PlannedTables:
    return full_tables(SPECS, seed=3, **changes)


@pytest.mark.parametrize(("post", "bits"), [("int8", 8), ("int4", 4), ("int2", 2)])
def test_full_tables_are_their_decoded_rows(post: Any, bits: Any) -> None:
    tables = full()
    small = quantise_tables(tables, post)
    for key, spec in (("f0@large", SPECS[0]), ("f2", SPECS[1])):
        weight = tables.table(spec.name).detach()
        ids = torch.arange(spec.num_embeddings)
        expected = decode_rows(encode_rows(weight, bits), 16, bits)
        assert torch.equal(small.rows(key, ids), expected)


@pytest.mark.parametrize(
    ("post", "row_bytes"), [("fp16", 32), ("int8", 16 + 8), ("int4", 8 + 4), ("int2", 4 + 4)]
)
def test_a_row_has_its_codes_scale_and_bias(post: Any, row_bytes: int) -> None:
    weight_bytes = 2 if post == "fp16" else 4
    expected = 2090 * row_bytes + 2000 * weight_bytes
    assert quantise_tables(full(), post).storage().serve_bytes == expected


@pytest.mark.parametrize("post", ["int8", "int4", "int2"])
def test_rows_of_one_value_stay_as_they_are(post: Any) -> None:
    tables = full()
    small = quantise_tables(tables, post)
    assert isinstance(small, PlannedTables)
    assert torch.equal(small.table("large_weight"), tables.table("large_weight"))


@pytest.mark.parametrize(("width", "post"), [(1, "fp16"), (3, "int4"), (5, "int2"), (9, "int4")])
def test_rows_of_odd_width_are_served(width: int, post: Any) -> None:
    spec = TableSpec(name="t", num_embeddings=50, embedding_dim=width, feature_names=("f",))
    tables = full_tables([spec], seed=0)
    small = quantise_tables(tables, post)
    ids = torch.arange(50)
    ranges = tables.rows("f", ids).aminmax(dim=1)
    span = (ranges.max - ranges.min).unsqueeze(1)
    error = (small.rows("f", ids) - tables.rows("f", ids)).abs()
    assert bool(
        (error <= 0.5 * span / (2 ** {"int4": 4, "int2": 2}.get(post, 11) - 1) + 1e-3).all()
    )


def test_none_is_the_frozen_form() -> None:
    tables = full()
    frozen = quantise_tables(tables, "none")
    assert torch.equal(frozen(features()).values(), tables(features()).values())


def test_a_plan_with_codes_comes_back_from_its_json() -> None:
    small = quantise_tables(full(), "int4")
    assert isinstance(small, PlannedTables)
    assert LookupPlan.from_json(small.plan.to_json()) == small.plan
    assert "in 4 bits * large.scale + large.bias" in str(small.plan)


def test_sparse_values_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="rows 'large': the form 'sparse'"):
        quantise_tables(built("deep_light"), "int8")


def test_an_unknown_word_is_refused() -> None:
    with pytest.raises(ValueError, match="post must be one of none, fp16, int8"):
        quantise_tables(full(), "int3")


@pytest.mark.parametrize(("post", "value"), [("fp16", 1e5), ("int4", 1e6), ("int8", float("inf"))])
def test_a_value_that_is_too_large_is_refused_with_its_table(post: Any, value: float) -> None:
    tables = full()
    tables.table("a.b").detach()[3, 0] = value
    with pytest.raises(ValueError, match=rf"table 'a.b' cannot be {post}"):
        quantise_tables(tables, post)
