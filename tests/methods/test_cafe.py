"""CAFE: its sketch, hot rows that are one id's, what moves with them, serving, interruptions."""

import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.methods.cafe import Cafe, CafePlus
from recemb.methods.hot_sketch import HotSketch, SketchRules
from recemb.tables.listed import MARKED
from recemb.tables.method import Budget
from recemb.tables.named_tensors import NamedTensors
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

CPU = torch.device("cpu")
NUM_IDS, WIDTH = 2000, 8
SPECS = [
    TableSpec(name="a", num_embeddings=NUM_IDS, embedding_dim=WIDTH, feature_names=("f0",)),
    TableSpec(name="b", num_embeddings=500, embedding_dim=WIDTH, feature_names=("f1",)),
    TableSpec(name="a1", num_embeddings=NUM_IDS, embedding_dim=1, feature_names=("f0",)),
    TableSpec(name="b1", num_embeddings=500, embedding_dim=1, feature_names=("f1",)),
]


def sketch_of(num_rows=50, *, num_marks=0, dtype=torch.int32, **rules):
    made = SketchRules(**{"threshold": 5.0, **rules})
    tensors = HotSketch.empty("s", num_rows=num_rows, key_dtype=dtype, rules=made)
    buffers = NamedTensors(tensors, CPU)
    return HotSketch(buffers, "s", num_rows=num_rows, num_marks=num_marks, seed=7, rules=made)


def settle(sketch):
    sketch.age()
    slots, keys, rows = sketch.candidates()
    sketch.give(slots, rows)
    sketch.mark()
    return keys


def zipf(num, *, seed):
    chances = 1 / torch.arange(1, NUM_IDS + 1, dtype=torch.float64) ** 1.2
    generator = torch.Generator().manual_seed(seed)
    return torch.multinomial(chances, num, replacement=True, generator=generator)


def test_a_zipf_stream_promotes_the_most_frequent_ids():
    num_rows, sketch = 50, sketch_of(50, adapts=True, threshold=1.0)
    counts = torch.zeros(NUM_IDS)
    for seed in range(200):
        keys, values = torch.unique(zipf(256, seed=seed), return_counts=True)
        counts[keys] += values
        sketch.insert(keys, values.double())
        settle(sketch)
    top = set(counts.topk(num_rows).indices.tolist())
    found = sketch.listed()[0].tolist()
    assert len(found) > 0.8 * num_rows
    # SpaceSaving overestimates rare ids of a crowded bucket, so that some at the edge are others.
    assert len(top & set(found)) / num_rows > 0.75
    assert set(counts.topk(25).indices.tolist()) <= set(found)


def test_scores_of_keys_that_stay_are_the_sums_of_their_values():
    sketch = sketch_of(64)
    for value in (1.0, 2.5, 4.0):
        sketch.insert(torch.tensor([3, 11, 40]), torch.tensor([value, 2 * value, 0.5]).double())
    scores = dict(zip(sketch.keys.view(-1).tolist(), sketch.scores.view(-1).tolist(), strict=True))
    assert (scores[3], scores[11], scores[40]) == (7.5, 15.0, 1.5)


def test_a_new_key_takes_the_lowest_slot_without_a_row_and_its_score():
    sketch = sketch_of(1, threshold=5.0)
    sketch.insert(torch.arange(4), torch.tensor([9.0, 3.0, 2.0, 4.0]).double())
    settle(sketch)
    assert sketch.listed()[0].tolist() == [0]
    sketch.insert(torch.tensor([10, 11]), torch.tensor([1.0, 0.5]).double())
    # Key 10, of the larger value, takes the place of 2 (score 2), and 11 that of 1 (score 3).
    left = dict(zip(sketch.keys.view(-1).tolist(), sketch.scores.view(-1).tolist(), strict=True))
    assert left == {0: 9.0, 3: 4.0, 10: 3.0, 11: 3.5}


def test_new_keys_beyond_the_open_slots_are_forgotten():
    sketch = sketch_of(1)
    sketch.insert(torch.arange(9), torch.arange(9).double() + 1)
    assert sorted(sketch.keys.view(-1).tolist()) == [5, 6, 7, 8]


def test_no_row_is_given_twice_and_decay_gives_rows_back():
    sketch = sketch_of(8, threshold=1.0, decay=0.5)
    for seed in range(30):
        keys = torch.unique(zipf(64, seed=seed))
        sketch.insert(keys, torch.ones(keys.numel()).double())
        settle(sketch)
        rows = sketch.listed()[1]
        assert rows.unique().numel() == rows.numel() <= 8
    held = sketch.listed()[0].numel()
    assert held > 0
    sketch.scores.fill_(100.0)
    sketch.scores.view(-1)[::2] = 0.9
    sketch.age()
    assert sketch.listed()[0].numel() < held


def test_the_threshold_rises_to_the_score_of_the_last_row():
    sketch = sketch_of(10, adapts=True, threshold=1.0)
    sketch.scores.view(-1)[:] = torch.arange(40.0)
    sketch.age()
    assert sketch.threshold == 30.0


def test_growth_weighs_what_is_recent_more_and_is_scaled_back():
    sketch = sketch_of(4, growth=2.0, adapts=True, threshold=1.0)
    for _ in range(14):
        sketch.insert(torch.tensor([1]), torch.ones(1).double())
        sketch.age()
    # 1 + 2 + .. + 2^13, over the weight 2^14, which is beyond 10,000.
    assert float(sketch.scores.max()) == pytest.approx((2**14 - 1) / 2**14)
    assert float(sketch.clock[1]) == 1.0


def test_marks_go_to_the_highest_scores_below_the_threshold():
    sketch = sketch_of(16, num_marks=2, threshold=8.0, mark_share=0.5)
    sketch.insert(torch.arange(5), torch.tensor([9.0, 7.0, 6.0, 5.0, 3.0]).double())
    settle(sketch)
    assert sketch.listed()[0].tolist() == [0]
    assert sketch.marked().tolist() == [1, 2]
    assert int((sketch.rows == MARKED).sum()) == 2


@pytest.mark.parametrize(
    "wrong", [{"threshold": 0.0}, {"decay": 1.0}, {"mark_share": 0.0}], ids=str
)
def test_rules_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="CAFE: "):
        SketchRules(**{"threshold": 1.0, **wrong})


@pytest.mark.parametrize("wrong", [{"hash_rate": 1.0}, {"importance": "size"}], ids=str)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="CAFE: "):
        Cafe(**wrong)


def features_of(ids0, ids1):
    num = ids0.numel()
    return KeyedJaggedTensor(
        keys=["f0", "f1"],
        values=torch.cat([ids0, ids1]),
        lengths=torch.ones(2 * num, dtype=torch.int32),
    )


def batch(seed):
    generator = torch.Generator().manual_seed(seed)
    return features_of(zipf(64, seed=seed), torch.randint(0, 500, (64,), generator=generator))


def trained(method, *, steps=40, kind="adagrad", ratio=0.1, adapts=True):
    optimizer = TableOptimizer(kind=kind, learning_rate=0.1)
    tables = method.build(SPECS, {}, Budget(ratio=ratio), optimizer=optimizer, seed=1, device=CPU)
    for seed in range(steps):
        values = tables(batch(seed)).values()
        generator = torch.Generator().manual_seed(seed)
        values.backward(torch.randn(values.shape, generator=generator))
        if adapts:
            tables.adapt()
    return tables


METHODS = [Cafe(threshold=20.0), CafePlus()]


@pytest.mark.parametrize("method", METHODS, ids=["cafe", "plus"])
def test_a_row_that_becomes_hot_begins_as_what_its_id_read(method):
    tables, num_new = trained(method, steps=1, adapts=False), 0
    (sketch,) = tables.sketches.values()
    for seed in range(1, 20):
        before = {key: tables.rows(key, torch.arange(500)).clone() for key in tables.outputs}
        held = set(sketch.listed()[0].tolist())
        tables.adapt()
        new = [key for key in sketch.listed()[0].tolist() if key not in held]
        num_new += len(new)
        for key, (spec, _) in tables.outputs.items():
            first = 0 if spec.num_embeddings == NUM_IDS else NUM_IDS
            ids = torch.tensor([k - first for k in new if first <= k < first + 500]).long()
            assert torch.equal(tables.rows(key, ids), before[key][ids])
        values = tables(batch(seed)).values()
        values.backward(torch.randn(values.shape))
    assert num_new > 3


@pytest.mark.parametrize("method", METHODS, ids=["cafe", "plus"])
def test_hot_ids_train_alone(method):
    tables = trained(method)
    (pool,) = tables.layout.pools
    hot = tables.sketches[pool.name].listed()[0]
    mine = hot[hot < NUM_IDS][:1].long()
    others = torch.arange(NUM_IDS)
    others = others[others != mine]
    before = tables.rows("f0@a", others).clone(), tables.rows("f0@a", mine).clone()
    found = tables(features_of(mine, torch.zeros(1, dtype=torch.long))).to_dict()
    found["f0@a"].sum().backward()
    assert torch.equal(tables.rows("f0@a", others), before[0])
    assert not torch.equal(tables.rows("f0@a", mine), before[1])


def test_the_optimizer_s_state_moves_with_the_row():
    tables = trained(Cafe(threshold=1e9), steps=10)
    (pool,) = tables.layout.pools
    sketch, store = tables.sketches[pool.name], tables.engine.store_of(pool.table(0))
    shared = {name: part.clone() for name, part in store.state.items()}
    sketch.clock[0] = float(sketch.scores.max())
    tables.adapt()
    keys, rows = sketch.listed()
    assert keys.numel() == 1
    field = pool.fields[0] if int(keys) < NUM_IDS else pool.fields[1]
    step = pool.program(field, is_served=False)[1]
    # As an id without a row the key would have this number before it is hashed.
    source = step.apply(keys.long() - field.first_key + pool.num_hot, {})
    for name, part in store.state.items():
        assert torch.equal(part[rows], shared[name][source])
        assert part[rows].any()


@pytest.mark.parametrize("method", METHODS, ids=["cafe", "plus"])
def test_served_tables_give_the_same_bits_in_the_bytes_they_say(method):
    tables = trained(method).eval()
    assert sum(s.listed()[0].numel() for s in tables.sketches.values()) > 5
    frozen = tables.freeze()
    features = batch(99)
    assert torch.equal(frozen(features).values(), tables(features).values())
    for key, (spec, _) in tables.outputs.items():
        ids = torch.arange(spec.num_embeddings)
        assert torch.equal(frozen.rows(key, ids), tables.rows(key, ids))
    stored = sum(t.nbytes for t in frozen.state_dict().values())
    assert stored == tables.storage().serve_bytes <= Budget(ratio=0.1).allowed_bytes(SPECS)


def test_importance_is_the_gradient_s_norm_over_all_tables_of_an_id():
    tables = trained(Cafe(threshold=1e9), steps=0)
    (sketch,) = tables.sketches.values()
    features = features_of(torch.tensor([5, 6, 5]), torch.tensor([7, 7, 7]))
    grad = torch.zeros(3, sum(tables.embedding_dims.values()))
    # Columns: a (8), b (8), a1 (1), b1 (1); norms 5 and 1 for id 5, 2 for id 6, nothing for f1.
    grad[0, 0], grad[0, 16], grad[1, 3], grad[2, 16] = 3.0, 4.0, 2.0, 1.0
    tables(features).values().backward(grad)
    keys = sketch.keys.view(-1).tolist()
    scores = dict(zip(keys, sketch.scores.view(-1).tolist(), strict=True))
    # Scaled so that the three examples add 3 in all.
    assert scores[5] == pytest.approx(6 * 3 / 8)
    assert scores[6] == pytest.approx(2 * 3 / 8)


def test_a_training_budget_counts_the_sketch():
    budget = Budget(ratio=0.1, of="train")
    plan = Cafe().plan(SPECS, {}, budget)
    allowed = budget.allowed_bytes(SPECS)
    assert 0.97 * allowed < plan.storage.train_bytes <= allowed
    # 4 slots of a key, a score and a row for each hot row.
    assert plan.storage.train["sketch"] == 48 * plan.parameters["hot_rows"]["pool0"] + 16


def test_the_published_size_at_a_thousandth_is_reached():
    # One field of Criteo's size, D = 16: 15,434 hot rows with 48 bytes for the sketch. The authors
    # round the shared rows up, field by field, and so exceed the budget by a thousandth.
    spec = TableSpec(name="t", num_embeddings=33_762_577, embedding_dim=16, feature_names=("f",))
    plan = Cafe(hash_rate=0.2).plan([spec], {}, Budget(ratio=0.001, of="train"))
    assert plan.parameters["hot_rows"]["pool0"] == pytest.approx(15434, rel=1e-3)
    assert plan.parameters["shared_rows"]["t"] == pytest.approx(6753, rel=1e-3)


def test_the_threshold_is_a_fortieth_of_an_even_share_of_an_epoch():
    stats = {"f0": torch.full((NUM_IDS,), 50), "f1": torch.full((500,), 200)}
    plan = Cafe().plan(SPECS, stats, Budget(ratio=0.1))
    hot = plan.parameters["hot_rows"]["pool0"]
    assert plan.parameters["threshold"]["pool0"] == pytest.approx(100_000 / (40 * hot))


@pytest.mark.parametrize("kind", [Cafe, CafePlus])
def test_a_killed_run_ends_as_if_undisturbed(kind, resumes):
    resumes(kind(exact_below=0), 9, budget=Budget(ratio=0.4), epochs=1)


def test_skewed_ids_are_told_apart_better_than_by_hashing(staged, hashed_auc):
    method, budget = Cafe(exact_below=0), Budget(ratio=0.3)
    context = staged(method.stages, budget=budget, epochs=6)
    found = context.evaluate(method.run(context))["val/auc"]
    assert found > hashed_auc(budget, epochs=6) + 0.02
