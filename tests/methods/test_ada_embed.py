"""AdaEmbed: importance, who deserves a row, what moves, serving, interruptions."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.ada_embed import AdaEmbed
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.program import ABSENT
from recemb.tables.spec import TableSpec

CPU = torch.device("cpu")
SPECS = [
    TableSpec(name="a", num_embeddings=400, embedding_dim=8, feature_names=("f0",)),
    TableSpec(name="b", num_embeddings=200, embedding_dim=8, feature_names=("f1",)),
    TableSpec(name="a1", num_embeddings=400, embedding_dim=1, feature_names=("f0",)),
    TableSpec(name="b1", num_embeddings=200, embedding_dim=1, feature_names=("f1",)),
    TableSpec(name="c", num_embeddings=5, embedding_dim=8, feature_names=("f2",)),
]
SIZES = {"f0": 400, "f1": 200, "f2": 5}


def build(*, ratio=0.2, kind="adagrad", **settings):
    method = AdaEmbed(check_every_steps=5, **settings)
    optimizer = TableOptimizer(kind=kind, learning_rate=0.1)
    return method.build(SPECS, {}, Budget(ratio=ratio), optimizer=optimizer, seed=1, device=CPU)


def features_of(**ids):
    return KeyedJaggedTensor(
        keys=list(ids),
        values=torch.cat([torch.tensor(its) for its in ids.values()]),
        lengths=torch.ones(sum(len(its) for its in ids.values()), dtype=torch.int32),
    )


def skewed(seed, num=64):
    generator = torch.Generator().manual_seed(seed)
    ids = {f: (torch.rand(num, generator=generator) ** 3 * n).long() for f, n in SIZES.items()}
    return features_of(**{f: its.tolist() for f, its in ids.items()})


def train(tables, steps):
    for seed in range(steps):
        values = tables(skewed(seed)).values()
        generator = torch.Generator().manual_seed(seed)
        values.backward(torch.randn(values.shape, generator=generator))
        tables.adapt()


def test_importance_sums_the_norms_of_an_id_s_gradients():
    tables = build()
    features = features_of(f0=[7, 9, 7], f1=[3, 3, 3], f2=[0, 1, 2])
    grad = torch.zeros(3, sum(tables.embedding_dims.values()))
    # Columns: a (8), b (8), a1, b1, c (8): id 7 has norms 5 and 2, id 9 has 1.
    grad[0, 0], grad[0, 16], grad[1, 3], grad[2, 16] = 3.0, 4.0, 1.0, 2.0
    tables(features).values().backward(grad)
    importance = tables.plan_buffers["pool0.importance"]
    # For a sum over the three examples instead of their mean.
    assert importance.nonzero().view(-1).tolist() == [7, 9]
    assert importance[[7, 9]].tolist() == [21.0, 3.0]


def test_fields_are_compared_by_their_95th_percentiles():
    tables = build(ratio=0.1)
    (pool,) = tables.pools
    importance = tables.plan_buffers["pool0.importance"]
    importance[:400] = torch.arange(1.0, 401.0)
    importance[400:] = torch.arange(1.0, 201.0) * 1000
    chosen = tables.deserving(pool)
    scores = torch.cat([torch.arange(1.0, 401.0) / 380, torch.arange(1.0, 201.0) / 190])
    assert int(chosen.sum()) == pool.num_rows
    assert float(scores[chosen].min()) >= float(scores[~chosen].max()) - 1e-6


def test_of_equals_those_with_rows_keep_them():
    tables = build()
    (pool,) = tables.pools
    had = tables.plan_buffers["pool0.rows"] != ABSENT
    assert torch.equal(tables.deserving(pool), had)


def test_rows_go_to_important_ids_begin_at_zero_and_belong_to_one_id():
    tables = build()
    (pool,) = tables.pools
    rows = tables.plan_buffers["pool0.rows"]
    before = rows.clone()
    train(tables, 4)
    assert torch.equal(rows, before)
    importance = tables.plan_buffers["pool0.importance"].clone()
    assert torch.count_nonzero(importance[before == ABSENT])
    state = tables.engine.store_of(pool.table(0)).state
    tables.adapt()
    held = rows[rows != ABSENT]
    assert held.unique().numel() == held.numel() == pool.num_rows
    new = ((rows != ABSENT) & (before == ABSENT)).nonzero().view(-1)
    assert new.numel() > 5
    ids = new[new < 400]
    assert not tables.rows("f0@a", ids).any()
    for part in state.values():
        assert not part[rows[new].long()].any()


def test_few_changes_are_not_worth_a_move():
    tables = build(change_share=0.9)
    before = tables.plan_buffers["pool0.rows"].clone()
    train(tables, 5)
    assert torch.equal(tables.plan_buffers["pool0.rows"], before)


def test_importance_decays_at_every_fourth_check():
    tables = build(decay=0.5)
    tables.plan_buffers["pool0.importance"].fill_(1.0)
    for _ in range(19):
        tables.adapt()
    assert float(tables.plan_buffers["pool0.importance"].max()) == 1.0
    tables.adapt()
    assert float(tables.plan_buffers["pool0.importance"].max()) == 0.5


def test_ids_without_rows_are_zero_and_count_in_a_mean():
    spec = TableSpec(
        name="m", num_embeddings=300, embedding_dim=4, feature_names=("f",), pooling="mean"
    )
    tables = AdaEmbed().build([spec], {}, Budget(ratio=0.2), optimizer=None, seed=0, device=CPU)
    rows = tables.plan_buffers["pool0.rows"]
    here, gone = int((rows != ABSENT).nonzero()[0]), int((rows == ABSENT).nonzero()[0])
    features = KeyedJaggedTensor(
        keys=["f"], values=torch.tensor([here, gone]), lengths=torch.tensor([2])
    )
    expected = tables.rows("f", torch.tensor([here])) / 2
    torch.testing.assert_close(tables(features).values(), expected)


def test_served_tables_give_the_same_bits_in_the_bytes_they_say():
    tables = build()
    train(tables, 20)
    frozen = tables.eval().freeze()
    assert torch.equal(frozen(skewed(99)).values(), tables(skewed(99)).values())
    for key, (spec, _) in tables.outputs.items():
        ids = torch.arange(spec.num_embeddings)
        assert torch.equal(frozen.rows(key, ids), tables.rows(key, ids))
    stored = sum(t.nbytes for t in frozen.state_dict().values())
    assert stored == tables.storage().serve_bytes <= Budget(ratio=0.2).allowed_bytes(SPECS)


def test_a_training_budget_has_the_authors_floor():
    # 8 bytes for each id of width 16: 2/16.
    spec = TableSpec(name="t", num_embeddings=10_000, embedding_dim=16, feature_names=("f",))
    assert not AdaEmbed().plan([spec], {}, Budget(ratio=0.124, of="train")).is_feasible
    assert AdaEmbed().plan([spec], {}, Budget(ratio=0.126, of="train")).is_feasible


@pytest.mark.parametrize(
    "wrong", [{"check_every_steps": 0}, {"change_share": 1.0}, {"decay": 0.0}], ids=str
)
def test_numbers_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="AdaEmbed: "):
        AdaEmbed(**wrong)


def test_a_killed_run_ends_as_if_undisturbed(resumes):
    method = AdaEmbed(check_every_steps=2, exact_below=0)
    resumes(method, 9, budget=Budget(ratio=0.4), epochs=1)


def test_skewed_ids_are_told_apart_better_than_by_hashing(staged, hashed_auc):
    method, budget = AdaEmbed(check_every_steps=2, exact_below=0), Budget(ratio=0.3)
    context = staged(method.stages, budget=budget, epochs=6)
    found = context.evaluate(method.run(context))["val/auc"]
    assert found > hashed_auc(budget, epochs=6) + 0.02
