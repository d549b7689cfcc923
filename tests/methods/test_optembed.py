"""OptEmbed from supernet to smaller tables, what prunes rows, and what an interruption changes."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.data.prepared import Prepared
from recemb.data.table import Table
from recemb.methods.compaction import compact, compact_bytes, sparsity
from recemb.methods.optembed import NothingPrunedWarning, OptEmbed
from recemb.models.deepfm import DeepFM
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.train.context import TrainingContext
from recemb.train.experiment import table_specs
from recemb.train.log import NoTracker, RunLog
from recemb.train.settings import TrainerSettings

NUM_IDS, NUM_SEEN = 60, 30
WIDTH = 4
SPECS = [
    TableSpec(name="a", num_embeddings=40, embedding_dim=WIDTH, feature_names=("f0",)),
    TableSpec(
        name="b", num_embeddings=9, embedding_dim=WIDTH, feature_names=("f1",), pooling="mean"
    ),
    TableSpec(name="w", num_embeddings=40, embedding_dim=1, feature_names=("f0",)),
]
EVOLUTION = {"generations": 3, "num_mutation": 3, "num_crossover": 3, "top_k": 3}


def build(**settings):
    method = OptEmbed(**settings)
    device = torch.device("cpu")
    return method.build(SPECS, {}, None, optimizer=None, seed=1, device=device)


def features_of():
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 4, (2, 7), generator=generator).int()
    sizes = lengths.sum(1).tolist()
    values = [
        torch.randint(0, n, (s,), generator=generator) for n, s in zip((40, 9), sizes, strict=True)
    ]
    return KeyedJaggedTensor(keys=["f0", "f1"], values=torch.cat(values), lengths=lengths.view(-1))


def test_compacted_tables_give_the_same_bits():
    supernet = build()
    with torch.no_grad():
        supernet.masks[0].thresholds.copy_(torch.tensor([0.2, 0.4]))
        supernet.table("a").mul_(torch.rand(40, 1))
    supernet.set_widths({"a": 3, "b": 1})
    kept = supernet.kept()
    assert 0 < int(kept["a"].sum()) < 40
    supernet.eval()
    frozen = supernet.freeze()
    assert torch.equal(frozen(features_of()).values(), supernet(features_of()).values())
    assert frozen.table("a").shape == (int(kept["a"].sum()), 3)
    assert frozen.storage().serve == supernet.storage().serve


def test_a_field_without_any_row_left_gives_zeros():
    supernet = build()
    with torch.no_grad():
        supernet.masks[0].thresholds[1] = 1e9
    frozen = supernet.eval().freeze()
    assert not frozen(features_of())["f1"].any()
    assert frozen.table("b").shape[0] == 1


def test_sparsity_is_the_paper_s():
    kept = {"a": torch.arange(40) < 10, "b": torch.ones(9, dtype=torch.bool)}
    # 10 rows of 2 and 9 rows of 4 of 49 rows of 4.
    assert sparsity(kept, {"a": 2, "b": 4}, SPECS[:2]) == pytest.approx(1 - 56 / 196)


def test_compaction_charges_for_indices():
    made = compact(SPECS, kept={"a": torch.arange(40) < 10}, widths={"a": 2, "b": 4})
    # A word of 64 bits and its rank, 12 bytes, say which of 40 rows are left.
    assert made.serve_bytes == 4 * (10 * 2 + 9 * 4 + 40) + 12
    assert compact_bytes(SPECS[0], num_kept=10, width=2) == 4 * 10 * 2 + 12


@pytest.mark.parametrize(("num_lost", "num_rows"), [(1, 40), (3, 40), (4, 36)])
def test_rows_stay_as_zeros_where_an_index_is_larger_than_they_are(num_lost, num_rows):
    """A row of one value has 4 bytes, the index of 40 ids 12."""
    kept = torch.arange(40) >= num_lost
    weights = {spec.name: torch.ones(spec.num_embeddings, spec.embedding_dim) for spec in SPECS}
    made = compact(SPECS, kept={"a": kept}, widths={"a": 1}, weights=weights)
    assert made.initial["a"].shape == (num_rows, 1)
    assert int(made.initial["a"].sum()) == 40 - num_lost
    ids = KeyedJaggedTensor(
        keys=["f0", "f1"], values=torch.arange(40), lengths=torch.tensor([1] * 40 + [0] * 40)
    )
    tables = made.tables(SPECS, optimizer=None, seed=0, device=torch.device("cpu")).eval()
    assert torch.equal(tables(ids)["f0@a"][:, 0], kept.float())
    assert made.serve_bytes == sum(
        (compact_bytes(SPECS[0], num_kept=40 - num_lost, width=1), 4 * 9 * WIDTH, 4 * 40)
    )


@pytest.mark.parametrize("num_kept", [0, 1, 37, 39])
def test_a_table_that_loses_rows_is_never_larger(num_kept):
    """So that a candidate that `plan` found small enough is, whatever training prunes."""
    for width in range(1, WIDTH + 1):
        assert compact_bytes(SPECS[0], num_kept=num_kept, width=width) <= 4 * 40 * width


def test_fields_of_different_widths_are_searched_within_their_own():
    specs = [*SPECS, TableSpec(name="c", num_embeddings=9, embedding_dim=2, feature_names=("f1",))]
    limits = []

    class Asked:
        budget, seed, once = None, 1, staticmethod(lambda _, compute: compute())

        def evaluate(self, supernet):
            limits.append(supernet.widths())
            return {"val/auc": 0.5}

    asked = Asked()
    asked.specs = specs
    method = OptEmbed(evolution=EVOLUTION)
    supernet = method.build(specs, {}, None, optimizer=None, seed=1, device=torch.device("cpu"))
    method.search(supernet, asked)
    assert {its["c"] for its in limits} == {1, 2}
    assert {its["a"] for its in limits} == {1, 2, 3, 4}


def test_pruning_without_decay_is_warned_of(prepared, tmp_path):
    context = context_of(prepared, tmp_path, epochs=1)
    with pytest.warns(NothingPrunedWarning, match="set weight_decay"):
        OptEmbed(search_widths=False, weight_decay=0.0).run(context)


def test_what_the_supernet_learnt_is_retrained_with_its_network(prepared, tmp_path):
    """After no update at all the network that is left is the supernet's, or a fresh one."""
    left = {}
    for source in ("init", "supernet"):
        context = context_of(prepared, tmp_path / source, epochs=1)
        fit, models = context.fit, []

        def fit_and_note(tables, fit=fit, models=models, context=context, **named):
            before = context.fitted.model if models else None
            fit(tables, **named)
            models.append((before, context.fitted.model))

        context.fit = fit_and_note
        OptEmbed(search_widths=False, retrain_from=source).run(context)
        before, after = models[1]
        left[source] = before is after
    assert left == {"init": False, "supernet": True}


@pytest.mark.parametrize("ratio", [0.9, 0.6, 0.4])
def test_a_budget_is_kept_by_narrower_vectors(ratio):
    budget = Budget(ratio=ratio)
    plan = OptEmbed().plan(SPECS, {}, budget)
    assert plan.is_feasible
    assert plan.storage.serve_bytes <= budget.allowed_bytes(SPECS)


def test_a_budget_below_one_column_is_infeasible():
    plan = OptEmbed().plan(SPECS, {}, Budget(ratio=0.2))
    assert not plan.is_feasible
    assert plan.storage.serve_bytes == 4 * (40 + 9 + 40)


def test_learning_nothing_is_refused():
    with pytest.raises(ValueError, match="nothing is learned"):
        OptEmbed(prune_rows=False, search_widths=False)


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """Return clicks that depend on the first of three columns, half of whose ids never occur."""
    folder = tmp_path_factory.mktemp("clicks")
    rng = np.random.default_rng(0)
    ids = rng.integers(0, NUM_SEEN, (1500, 3))
    chance = 1 / (1 + np.exp(-3 * np.sin(ids[:, 0])))
    columns = {f"f{i}": pa.array(ids[:, i]) for i in range(3)}
    label = pa.array((rng.random(1500) < chance).astype(np.int64))
    pq.write_table(pa.table({"label": label, **columns}), folder / "clicks.parquet")
    data = Table(
        files=["clicks.parquet"],
        label="label",
        categorical={name: {"encoding": "ids", "num_embeddings": NUM_IDS} for name in columns},
        dense={},
    )
    return data.prepare(folder, folder / "prepared")


def context_of(prepared: Prepared, folder: Path, *, rows="all", epochs=2, budget=None):
    return TrainingContext(
        prepared=prepared,
        specs=table_specs(DeepFM, prepared.schema, embedding_dim=WIDTH),
        model_class=DeepFM,
        model_options={"hidden_units": [8]},
        optimizer=TableOptimizer(kind="adam", learning_rate=0.01, rows=rows, weight_decay=1e-4),
        dense_optimizer=lambda parameters: torch.optim.Adam(parameters, lr=0.01),
        settings=TrainerSettings(
            batch_size=100, max_epochs=epochs, patience=100, checkpoint_every_steps=3
        ),
        seed=1,
        budget=budget,
        checkpoints=folder / "checkpoints",
        log=RunLog(folder / "metrics.jsonl", tracker=NoTracker(), show_progress=False),
        resume_command="again",
        stages=OptEmbed.stages,
    )


def test_three_stages_leave_smaller_tables_that_were_trained(prepared, tmp_path):
    context = context_of(prepared, tmp_path, budget=Budget(ratio=0.6))
    tables = OptEmbed(evolution=EVOLUTION).run(context)
    storage = tables.storage()
    assert storage.serve_bytes <= 0.6 * storage.full_bytes
    assert {table.width for table in tables.plan.tables} <= set(range(1, WIDTH + 1))
    assert context.fitted.progress.step == 2 * 12
    assert context.evaluate(tables)["val/auc"] > 0.6


def unseen_rows_kept(prepared: Prepared, folder: Path, rows: str) -> tuple[float, float]:
    """Return which share of unseen, and of seen, rows a supernet keeps."""
    method = OptEmbed(search_widths=False, thresholds={"learning_rate": 1e-2, "alpha": 1e-2})
    context = context_of(prepared, folder, rows=rows, epochs=10)
    device = torch.device("cpu")
    supernet = method.build(
        context.specs, {}, None, optimizer=context.optimizer, seed=1, device=device
    )
    context.fit(supernet, stage="supernet", recipe=method._recipe(supernet))
    kept = torch.stack(list(supernet.kept().values()))
    unseen = torch.stack([prepared.id_counts(f"f{i}") == 0 for i in range(3)])
    return float(kept[unseen].float().mean()), float(kept[~unseen].float().mean())


def test_decay_of_all_rows_prunes_what_was_never_seen(prepared, tmp_path):
    unseen, seen = unseen_rows_kept(prepared, tmp_path, "all")
    assert unseen == 0.0
    assert seen > 0.9


def test_decay_of_touched_rows_prunes_nothing_that_was_never_seen(prepared, tmp_path):
    unseen, _ = unseen_rows_kept(prepared, tmp_path, "touched")
    assert unseen == 1.0


class StoppedError(Exception):
    """Stands for a process that was killed."""


def outcome(prepared, folder, monkeypatch, stop_at=None):
    """Run OptEmbed, killed after `stop_at` updates or evaluations; return what it leaves."""
    context, calls = context_of(prepared, folder), [0]
    with monkeypatch.context() as patch:
        for name in ("fit", "evaluate"):
            patch.setattr(context, name, counted(getattr(context, name), calls, stop_at))
        patch.setattr(torch.optim.Adam, "step", counted(torch.optim.Adam.step, calls, stop_at))
        tables = OptEmbed(evolution=EVOLUTION).run(context)
    return tables.plan, [store.weight.clone() for store in tables.engine.stores]


def counted(function, calls, stop_at):
    def call(*arguments, **named):
        calls[0] += 1
        if calls[0] == stop_at:
            raise StoppedError
        return function(*arguments, **named)

    return call


# In the supernet's fit, in the search, in the retraining: 24 updates, 18 to 6 evaluations, 24.
@pytest.mark.parametrize("stop_at", [8, 33, 55])
def test_a_run_killed_in_any_stage_ends_as_if_undisturbed(prepared, tmp_path, monkeypatch, stop_at):
    for folder in ("killed", "whole"):
        (tmp_path / folder).mkdir()
    with pytest.raises(StoppedError):
        outcome(prepared, tmp_path / "killed", monkeypatch, stop_at)
    plan, weights = outcome(prepared, tmp_path / "killed", monkeypatch)
    expected_plan, expected = outcome(prepared, tmp_path / "whole", monkeypatch)
    assert plan == expected_plan
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))


def test_planned_tables_say_their_bytes_without_memory():
    method, budget = OptEmbed(), Budget(ratio=0.6)
    named = {"optimizer": TableOptimizer(), "seed": 1}
    real = method.build(SPECS, {}, budget, device=torch.device("cpu"), **named)
    planned = method.build(SPECS, {}, budget, device=torch.device("meta"), **named)
    assert planned.storage() == real.storage()
