"""The hashing family: who shares rows with whom."""

import pyarrow as pa
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.ids.hashing import hash_strings
from recemb.methods.adapt_emb import AdaptEmb
from recemb.methods.compo_emb import CompoEmb
from recemb.methods.full import Full
from recemb.methods.hash import Hashing
from recemb.methods.hash_embeddings import HashEmbeddings
from recemb.methods.tt_rec import TTRec
from recemb.methods.unified import Unified
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.program import run_program
from recemb.tables.spec import ANY_ID, TableSpec

SPECS = [
    TableSpec(name="a", num_embeddings=2000, embedding_dim=8, feature_names=("f", "g")),
    TableSpec(name="b", num_embeddings=3000, embedding_dim=8, feature_names=("h",)),
    TableSpec(name="tiny", num_embeddings=5, embedding_dim=8, feature_names=("i",)),
]


def blueprint(method, ratio, specs=SPECS):
    return method.blueprint(specs, {}, Budget(ratio=ratio))


def rows_of(made, key, num_ids):
    output = next(o for o in made.plan.outputs if o.key == key)
    return torch.stack([run_program(v.program, torch.arange(num_ids), {}) for v in output.lookups])


def test_unified_is_one_table_that_uses_the_budget_to_a_row():
    made = blueprint(Unified(), 0.1)
    (table,) = made.plan.tables
    allowed = Budget(ratio=0.1).allowed_bytes(SPECS)
    assert 0 <= allowed - made.serve_bytes < 4 * table.width


def test_features_of_one_table_share_their_rows_and_others_do_not():
    made = blueprint(Unified(), 0.1)
    assert torch.equal(rows_of(made, "f", 2000), rows_of(made, "g", 2000))
    assert (rows_of(made, "f", 2000) != rows_of(made, "h", 2000)).float().mean() > 0.9


def test_an_id_s_lookups_are_independent():
    rows = rows_of(blueprint(Unified(lookups=4), 0.2), "h", 3000)
    num_rows = int(rows.max()) + 1
    for j in range(1, 4):
        # Two independent draws agree once in num_rows; five standard errors of 3000 draws above.
        share = float((rows[0] == rows[j]).float().mean())
        assert share < 1 / num_rows + 5 * (1 / num_rows / 3000) ** 0.5


def test_tiny_tables_keep_rows_that_nobody_else_touches():
    made = blueprint(Unified(), 0.1)
    tiny = rows_of(made, "i", 5)
    assert len(torch.unique(tiny)) == tiny.numel()
    others = torch.cat([rows_of(made, "f", 2000).view(-1), rows_of(made, "h", 3000).view(-1)])
    assert not torch.isin(tiny, others).any()


def test_several_tables_take_the_lookups_in_turn():
    made = blueprint(Unified(num_tables=2, exact_below=0), 0.1)
    first, second = made.plan.tables
    assert first.num_rows == second.num_rows
    for output in made.plan.outputs:
        assert [v.table for v in output.lookups] == [first.name, second.name]
    one = blueprint(Unified(exact_below=0), 0.1)
    assert 0 <= one.serve_bytes - made.serve_bytes <= 4 * first.width


def test_several_tables_hold_the_exact_rows_too():
    made = blueprint(Unified(num_tables=2), 0.1)
    output = next(o for o in made.plan.outputs if o.key == "i")
    assert len({v.table for v in output.lookups}) == 2
    assert all(torch.equal(row, torch.arange(5)) for row in rows_of(made, "i", 5))


@pytest.mark.parametrize("wrong", [{"num_tables": 0}, {"num_tables": 2, "multiplex": False}])
def test_several_tables_without_sharing_are_refused(wrong):
    with pytest.raises(ValueError, match="num_tables must be at least 1"):
        Unified(**wrong)


def test_automatic_lookups_follow_the_number_of_ids():
    made = blueprint(Unified(lookups="auto"), 0.1)
    assert made.parameters["lookups"] == {"a": 3, "b": 3, "tiny": 1}
    assert [o.embedding_dim for o in made.plan.outputs] == [12, 12, 12, 4]


def test_without_multiplexing_every_table_has_its_share_of_the_same_bytes():
    apart, together = blueprint(Unified(multiplex=False), 0.1), blueprint(Unified(), 0.1)
    sizes = {t.name: t.num_rows for t in apart.plan.tables}
    assert sizes["b"] / sizes["a"] == pytest.approx(1.5, rel=0.01)
    assert apart.serve_bytes == pytest.approx(together.serve_bytes, rel=0.01)


def test_a_budget_of_one_is_the_full_table():
    made = blueprint(Hashing(), 1.0)
    assert [t.num_rows for t in made.plan.tables] == [2000, 3000, 5]
    assert all(o.lookups[0].program == () for o in made.plan.outputs)


def test_a_vector_that_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match="8 values cannot be cut into 3 rows"):
        blueprint(Unified(lookups=3), 0.1)


def test_adapt_emb_gives_the_most_frequent_ids_rows_of_their_own():
    spec = TableSpec(name="a", num_embeddings=2000, embedding_dim=16, feature_names=("f",))
    counts = torch.randint(0, 10**6, (2000,), generator=torch.Generator().manual_seed(1))
    method = AdaptEmb(head_share=0.5)
    tables = method.build(
        [spec],
        {"f": counts},
        Budget(ratio=0.25),
        optimizer=TableOptimizer(),
        seed=1,
        device=torch.device("cpu"),
    )
    num_rows = tables.plan.tables[0].num_rows
    head = torch.sort(counts, descending=True, stable=True).indices[: num_rows // 2]
    own = tables.rows("f", head)
    tail = torch.tensor(sorted(set(range(2000)) - set(head.tolist())))
    assert len(torch.unique(own, dim=0)) == num_rows // 2
    both = torch.unique(torch.cat([own, tables.rows("f", tail)]), dim=0)
    assert len(both) <= num_rows
    assert len(both) == num_rows // 2 + len(torch.unique(tables.rows("f", tail), dim=0))


def test_modulo_is_the_remainder_of_the_id():
    made = blueprint(Hashing(hashing="modulo", exact_below=0), 0.1)
    num_rows = {t.name: t.num_rows for t in made.plan.tables}["b"]
    assert torch.equal(rows_of(made, "h", 3000)[0], torch.arange(3000) % num_rows)


def test_an_unknown_hashing_is_refused():
    with pytest.raises(ValueError, match="hashing must be mixed or modulo, got 'crc'"):
        Hashing(hashing="crc")


def test_the_study_s_adapt_emb_deals_the_tail_s_ids_out_in_their_order():
    spec = TableSpec(name="a", num_embeddings=2000, embedding_dim=16, feature_names=("f",))
    counts = torch.randint(0, 10**6, (2000,), generator=torch.Generator().manual_seed(1))
    made = AdaptEmb(hashing="modulo").blueprint([spec], {"f": counts}, Budget(ratio=0.25))
    num_rows = made.plan.tables[0].num_rows
    head = num_rows // 2
    by_count = sorted(range(2000), key=lambda i: (-int(counts[i]), i))
    expected = {i: row for row, i in enumerate(by_count[:head])}
    for turn, i in enumerate(sorted(by_count[head:])):
        expected[i] = head + turn % (num_rows - head)
    program = made.plan.outputs[0].lookups[0].program
    found = run_program(program, torch.arange(2000), made.buffers)
    assert found.tolist() == [expected[i] for i in range(2000)]
    assert made.serve_bytes <= Budget(ratio=0.25).allowed_bytes([spec])


ANY = [
    TableSpec(name="query", num_embeddings=ANY_ID, embedding_dim=8, feature_names=("q",)),
    TableSpec(name="city", num_embeddings=40, embedding_dim=8, feature_names=("c",)),
    TableSpec(name="bias", num_embeddings=ANY_ID, embedding_dim=1, feature_names=("q",)),
]


@pytest.mark.parametrize("method", [Unified(), Unified(multiplex=False), Hashing()], ids=repr)
def test_any_id_is_taken_within_a_budget_in_bytes(method):
    budget = Budget(num_bytes=40_000)
    tables = method.build(ANY, {}, budget, optimizer=None, seed=1, device=torch.device("cpu"))
    assert 0.9 * 40_000 < tables.storage().serve_bytes <= 40_000
    words = hash_strings(pa.array(["shoes", "red shoes", "shoes", ""]))
    features = KeyedJaggedTensor(
        keys=["q", "c"],
        values=torch.cat([torch.from_numpy(words.copy()), torch.tensor([3, 4, 5, 39])]),
        lengths=torch.ones(8, dtype=torch.int32),
    )
    vectors = tables(features).to_dict()["q@query"]
    assert torch.equal(vectors[0], vectors[2])
    assert len(torch.unique(vectors, dim=0)) == 3


def test_a_ratio_of_no_size_is_refused():
    with pytest.raises(ValueError, match=r"tables \['query', 'bias'\] take any id.*num_bytes"):
        Unified().plan(ANY, {}, Budget(ratio=0.1))


@pytest.mark.parametrize("method", [CompoEmb(), AdaptEmb(), TTRec(), HashEmbeddings()], ids=repr)
def test_methods_with_something_for_every_id_refuse_any_id(method):
    with pytest.raises(ValueError, match=r"\['query', 'bias'\] take any id, but this method holds"):
        method.plan(ANY, {}, Budget(num_bytes=40_000))


def test_a_row_for_any_id_is_refused():
    with pytest.raises(ValueError, match="its ids have no bound"):
        Full().plan(ANY, {}, None)
