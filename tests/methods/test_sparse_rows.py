"""The sparse serving form: the same vectors as the dense table, exact bytes, the smallest form."""

from dataclasses import asdict

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.checkpoint.forms import describe_tables, make_tables
from recemb.methods.sparse_rows import SparseForm, SparseRows, form_of, smallest_form
from recemb.tables.computed import ComputedTables
from recemb.tables.spec import TableSpec

# n, D, share of values: each form of rows and of values is the smallest somewhere.
TABLES = [
    (50, 16, 0.0),
    (2000, 16, 0.0002),
    (5000, 16, 0.01),
    (5000, 16, 0.06),
    (3000, 16, 0.3),
    (3000, 16, 0.97),
    (4001, 10, 0.4),
    (9000, 1, 0.1),
    (2500, 300, 0.01),
    (1, 3, 0.5),
]


def table_of(num_rows, width, share, *, empty=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(num_rows, width, generator=generator)
    weight[torch.rand(num_rows, width, generator=generator) >= share] = 0
    weight[torch.rand(num_rows, generator=generator) < empty] = 0
    return weight


@pytest.mark.parametrize("empty", [0.0, 0.7, 0.99])
@pytest.mark.parametrize(("num_rows", "width", "share"), TABLES)
def test_rows_are_those_of_the_dense_table(num_rows, width, share, empty):
    weight = table_of(num_rows, width, share, empty=empty)
    ids = torch.randint(0, num_rows, (500,), generator=torch.Generator().manual_seed(1))
    assert torch.equal(SparseRows.of(weight)("t", ids), weight[ids])


@pytest.mark.parametrize("values", ["dense", "csr", "bitmap"])
@pytest.mark.parametrize("rows", ["all", "bitmap", "list"])
@pytest.mark.parametrize(
    ("num_rows", "width", "share"), [(3000, 16, 0.1), (17, 9, 0.5), (2, 1, 1.0)]
)
def test_every_form_gives_the_same_rows(monkeypatch, rows, values, num_rows, width, share):
    weight = table_of(num_rows, width, share, empty=0.4)
    is_value = weight != 0
    kept = num_rows if rows == "all" else int(is_value.any(dim=1).sum())
    form = SparseForm(
        num_rows=num_rows,
        width=width,
        num_kept=kept,
        num_values=kept * width if values == "dense" else int(is_value.sum()),
        rows=rows,
        values=values,
    )
    monkeypatch.setattr("recemb.methods.sparse_rows.form_of", lambda _: form)
    made = SparseRows.of(weight)
    ids = torch.arange(num_rows)
    assert made.stored == form
    assert torch.equal(made("t", ids), weight)
    assert torch.equal(made("t", ids.flip(0)), weight.flip(0))
    assert made("t", ids[:0]).shape == (0, width)


@pytest.mark.parametrize("empty", [0.0, 0.9])
@pytest.mark.parametrize(("num_rows", "width", "share"), TABLES)
def test_the_state_is_exactly_what_is_counted(num_rows, width, share, empty):
    made = SparseRows.of(table_of(num_rows, width, share, empty=empty))
    assert sum(t.nbytes for _, t in made.parts()) == sum(made.serve_bytes().values())
    assert made.stored.num_bytes <= 4 * num_rows * width


def test_the_bytes_of_each_form_are_the_formula_s():
    sizes = {"num_rows": 5000, "width": 16}

    def num_bytes(rows, values, num_kept, num_values):
        kept = {"num_kept": num_kept, "num_values": num_values}
        return SparseForm(rows=rows, values=values, **kept, **sizes).num_bytes

    # 5000 rows take 625 bytes of bits in 5 blocks; 1000 rows of 2 bytes take 16 blocks.
    assert num_bytes("all", "dense", 5000, 80_000) == 320_000
    assert num_bytes("all", "csr", 5000, 7_000) == 5 * 7_000 + 4 * 5_001
    assert num_bytes("bitmap", "csr", 1000, 7_000) == 625 + 20 + 5 * 7_000 + 4 * 1_001
    assert num_bytes("list", "dense", 1000, 16_000) == 4 * 1_000 + 4 * 16_000
    assert num_bytes("bitmap", "bitmap", 1000, 7_000) == 625 + 20 + 4 * 7_000 + 2_000 + 4 * 16


@pytest.mark.parametrize(("width", "itemsize"), [(256, 1), (257, 2), (40_000, 4)])
def test_columns_are_as_wide_as_they_must_be(width, itemsize):
    form = SparseForm(num_rows=3, width=width, num_kept=3, num_values=4, rows="all", values="csr")
    assert form.tensors()["columns"][1].itemsize == itemsize


# Keep fractions of the published table: bitmap wins at half of the bytes, CSR below.
@pytest.mark.parametrize(
    ("width", "share", "values"), [(16, 0.468, "bitmap"), (64, 0.028, "csr"), (16, 1.0, "dense")]
)
def test_the_values_form_is_the_smallest(width, share, values):
    n = 100_000
    form = smallest_form(num_rows=n, width=width, num_kept=n, num_values=round(share * n * width))
    assert (form.rows, form.values) == ("all", values)


def test_a_bitmap_keeps_the_published_share_at_half_the_bytes():
    n = 1_000_000
    form = smallest_form(num_rows=n, width=16, num_kept=n, num_values=round(0.468 * n * 16))
    assert form.num_bytes / (4 * n * 16) == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(("num_kept", "rows"), [(20, "list"), (3_000, "bitmap"), (10_000, "all")])
def test_empty_rows_are_dropped_where_that_is_smaller(num_kept, rows):
    form = smallest_form(num_rows=10_000, width=16, num_kept=num_kept, num_values=4 * num_kept)
    assert form.rows == rows


def test_a_larger_table_never_takes_fewer_bytes():
    sizes = [
        smallest_form(num_rows=1000, width=8, num_kept=min(1000, z), num_values=z).num_bytes
        for z in range(0, 8001, 7)
    ]
    assert sizes == sorted(sizes)


SPECS = [
    TableSpec(name="a", num_embeddings=400, embedding_dim=6, feature_names=("f",), pooling="mean"),
    TableSpec(name="a.first_order", num_embeddings=400, embedding_dim=1, feature_names=("f",)),
]


def tables_of(weights):
    return ComputedTables(
        SPECS,
        sources={name: SparseRows.of(weight) for name, weight in weights.items()},
        source_of={name: name for name in weights},
        planned=None,
    ).eval()


@pytest.mark.parametrize("share", [0.0, 0.02, 0.5])
def test_tables_are_made_anew_from_their_description(share):
    weights = {s.name: table_of(400, s.embedding_dim, share) for s in SPECS}
    tables = tables_of(weights)
    again = make_tables(describe_tables(tables), tables.state_dict(), "error")
    features = KeyedJaggedTensor(
        keys=["f"], values=torch.arange(40) * 7, lengths=torch.tensor([10, 0, 30])
    )
    assert torch.equal(again(features).values(), tables(features).values())
    for spec in SPECS:
        ids = torch.arange(400)
        assert torch.equal(again.rows(f"f@{spec.name}", ids), weights[spec.name])
    stored = sum(t.nbytes for t in again.state_dict().values())
    assert stored == again.storage().serve_bytes


def test_settings_make_the_same_shapes():
    made = SparseRows.of(table_of(300, 16, 0.1))
    assert asdict(form_of(table_of(300, 16, 0.1))) == made.settings()
    again = SparseRows(**made.settings(), device=torch.device("meta"))
    assert {n: t.shape for n, t in again.parts()} == {n: t.shape for n, t in made.parts()}
