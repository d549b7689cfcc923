"""OptEmbed's claims: on Criteo-shaped data with noise fields, and on Frappe.

    python benchmarks/accuracy/optembed.py --data FOLDER [--study synthetic,frappe,mechanism]

FOLDER holds `frappe/` as the publisher ships it; the synthetic data are made here: 60,000 rows of
12 Zipf-distributed fields of 34,688 ids in all, nine of which decide the label, mostly in pairs.
Every id's vector in a pair's product is as long as any other's, so that no seed hinges on the draw
of a few frequent ids. Every fourth field is noise: a small, a middle and the largest, with 41 % of all ids. DeepFM with an
MLP of 128 and 64 units, vectors of 16 values, dense Adam at 0.001, at most 8 epochs, two without a
better validation AUC end a fit, the best epoch counts, the test split is scored once. All variants
begin with OptEmbed's initial weights. "Random widths" trains under widths drawn uniformly instead
of searched ones, with the rows of the same supernet. Runs that the results have are not made again.
Writes benchmarks/results/optembed.{csv,md}.
"""

import argparse
import csv
import dataclasses
import itertools
import json
import shutil
import statistics
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import torch

from recemb.checkpoint.store import CheckpointStore
from recemb.data.prepared import Prepared
from recemb.data.table import Table
from recemb.methods.optembed import OptEmbed, Supernet
from recemb.models.deepfm import DeepFM
from recemb.tables.method import Context, Method
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.train.experiment import Experiment, run_experiment
from recemb.train.log import NoTracker, RunLog
from recemb.train.settings import TrainerSettings

RESULTS = Path(__file__).parent.parent / "results"
WIDTH = 16
NUM_ROWS = 60_000
SIZES = (10, 20, 40, 90, 200, 450, 1000, 2000, 3600, 6000, 9000, 12278)
NOISE_FIELDS = (3, 7, 11)
"""Places of the fields that the label does not depend on: a small, a middle and the largest."""
RANK = 3
FIRST_ORDER, SECOND_ORDER = 0.5, 0.5
"""Weights of ids alone, and of products of pairs: pairs must matter, see the notes of the page."""
ZIPF_EXPONENT = 1.05
FRAPPE_FIELDS = (
    *("user", "item", "daytime", "weekday", "isweekend", "homework", "cost", "weather"),
    *("country", "city"),
)
THRESHOLDS = {"learning_rate": 1e-2, "alpha": 1e-2}
EVOLUTION = {"generations": 8}
DECAYS = (0.0, 1e-4, 1e-3)
RATES = ((1e-4, 1e-4), (1e-2, 1e-4), (1e-2, 1e-2))
"""Learning rate and alpha of thresholds."""
MAX_EPOCHS = 8
FULL = "full: rows and widths"
COLUMNS = (
    *("study", "variant", "seed", "val_auc", "test_auc", "test_logloss", "sparsity", "rows_kept"),
    *("unseen_pruned", "rare_pruned", "frequent_pruned", "ratio", "widths"),
    *("first_generation", "last_generation", "seconds"),
    *("commit", "torch"),
)
Row = dict[str, str]


class GivenWidths(OptEmbed):
    """Tables of widths that are given, trained once, from OptEmbed's initial weights."""

    stages = ("retrain",)

    def __init__(self, widths_of: Callable[[int, int], list[int]]) -> None:
        super().__init__(prune_rows=False)
        self.widths_of = widths_of

    def run(self, ctx: Context) -> PlannedTables:
        """Return trained tables."""
        named: dict[str, Any] = {"optimizer": ctx.optimizer, "seed": ctx.seed, "device": ctx.device}
        supernet = self.build(ctx.specs, ctx.id_counts, None, **named)
        widths = self.widths_of(len(supernet.fields), ctx.seed)
        supernet.set_widths(dict(zip(supernet.fields, widths, strict=True)))
        tables = supernet.compacted().tables(ctx.specs, **named)
        ctx.fit(tables, stage="retrain")
        return tables


class RandomWidths(OptEmbed):
    """OptEmbed whose widths are drawn instead of searched."""

    def search(self, supernet: Supernet, ctx: Context) -> dict[str, int]:
        """Return uniform widths."""
        widths = uniform_widths(len(supernet.fields), ctx.seed)
        return dict(zip(supernet.fields, widths, strict=True))


class SupernetOnly(OptEmbed):
    """OptEmbed's first stage to its last epoch, with the optimizer as it is given, compacted."""

    stages = ("supernet",)

    def run(self, ctx: Context) -> PlannedTables:
        """Return the supernet's tables, compacted."""
        supernet = self.build(
            ctx.specs, {}, None, optimizer=ctx.optimizer, seed=ctx.seed, device=ctx.device
        )
        recipe = dataclasses.replace(self._recipe(supernet), take="last", patience=MAX_EPOCHS)
        ctx.fit(supernet, stage="supernet", recipe=recipe)
        return supernet.freeze()


def full_widths(num_fields: int, seed: int) -> list[int]:
    """Return the full width of every field."""
    return [WIDTH] * num_fields


def uniform_widths(num_fields: int, seed: int) -> list[int]:
    """Return widths drawn uniformly."""
    generator = torch.Generator().manual_seed(1000 + seed)
    drawn: list[int] = torch.randint(1, WIDTH + 1, (num_fields,), generator=generator).tolist()
    return drawn


@dataclass(frozen=True)
class Variant:
    """What is trained.

    Attributes:
        method: makes the method.
        weight_decay: L2 of all rows.
        rows: which rows an update visits.
        supernet_of: the variant whose supernet this one takes over; none where it is empty.
    """

    method: Callable[[], Method]
    weight_decay: float
    rows: Literal["all", "touched"] = "all"
    supernet_of: str = ""


def variants(weight_decay: float) -> dict[str, Variant]:
    """Return the comparison that the claims are about."""
    made: dict[str, Callable[[], Method]] = {
        "base": lambda: GivenWidths(full_widths),
        "E: rows": lambda: OptEmbed(search_widths=False, thresholds=THRESHOLDS),
        "D: widths": lambda: OptEmbed(prune_rows=False, evolution=EVOLUTION),
        "D, random widths": lambda: GivenWidths(uniform_widths),
        FULL: lambda: OptEmbed(thresholds=THRESHOLDS, evolution=EVOLUTION),
        "full, random widths": lambda: RandomWidths(thresholds=THRESHOLDS),
    }
    shared = {"full, random widths": FULL}
    return {
        name: Variant(method, weight_decay, supernet_of=shared.get(name, ""))
        for name, method in made.items()
    }


def mechanism() -> dict[str, Variant]:
    """Return the settings of which the question is what they prune."""
    made = {}
    words: tuple[Literal["all", "touched"], ...] = ("all", "touched")
    for rows, decay, (rate, alpha) in itertools.product(words, DECAYS, RATES):
        name = f"{rows} rows, decay {decay:g}, rate {rate:g}, alpha {alpha:g}"
        thresholds = {"learning_rate": rate, "alpha": alpha}
        method = partial(SupernetOnly, search_widths=False, thresholds=thresholds)
        made[name] = Variant(method, decay, rows)
    return made


def synthetic(folder: Path, seed: int) -> Prepared:
    """Return the planted data: labels by weights of ids and by products of pairs of them."""
    rng = np.random.default_rng(seed)
    ids, logit = [], np.full(NUM_ROWS, -0.6)
    informative = [f for f in range(len(SIZES)) if f not in NOISE_FIELDS]
    factors = []
    for size in SIZES:
        chance = np.arange(1, size + 1, dtype=np.float64) ** -ZIPF_EXPONENT
        ids.append(rng.choice(size, NUM_ROWS, p=chance / chance.sum()))
        directions = rng.normal(size=(size, RANK))
        length = np.linalg.norm(directions, axis=1, keepdims=True)
        factors.append(RANK**0.5 * directions / length)
    for f in informative:
        logit += FIRST_ORDER * rng.normal(size=SIZES[f])[ids[f]]
    total = sum(factors[f][ids[f]] for f in informative)
    squares = sum(factors[f][ids[f]] ** 2 for f in informative)
    logit += SECOND_ORDER * ((total**2 - squares) / 2).sum(axis=1)
    label = (rng.random(NUM_ROWS) < 1 / (1 + np.exp(-logit))).astype(np.int64)
    folder.mkdir(parents=True, exist_ok=True)
    columns = {f"f{f:02d}": pa.array(values) for f, values in enumerate(ids)}
    pq.write_table(pa.table({"label": pa.array(label), **columns}), folder / "rows.parquet")
    data = Table(
        files=["rows.parquet"],
        label="label",
        categorical={
            f"f{f:02d}": {"encoding": "ids", "num_embeddings": size} for f, size in enumerate(SIZES)
        },
    )
    return data.prepare(folder, folder / "prepared")


def frappe(raw: Path, folder: Path) -> Prepared:
    """Return Frappe's validation and test files as one set, 8:1:1, ids of all of it."""
    tables = [pa.csv.read_csv(raw / f"{name}.csv.gz") for name in ("valid", "test")]
    whole = pa.concat_tables(tables)
    columns, sizes = {"label": whole.column("label")}, {}
    for field in FRAPPE_FIELDS:
        encoded = whole.column(field).combine_chunks().dictionary_encode()
        columns[field] = encoded.indices.cast(pa.int64())
        sizes[field] = len(encoded.dictionary)
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), folder / "rows.parquet")
    data = Table(
        files=["rows.parquet"],
        label="label",
        categorical={f: {"encoding": "ids", "num_embeddings": size} for f, size in sizes.items()},
    )
    return data.prepare(folder, folder / "prepared")


def run(study: str, name: str, variant: Variant, prepared: Prepared, seed: int, work: Path) -> Row:
    """Train one variant and return its row."""
    folder = folder_of(work, study, name, seed)
    if variant.supernet_of and not folder.exists():
        take_over(folder_of(work, study, variant.supernet_of, seed), folder)
    folder.mkdir(parents=True, exist_ok=True)
    optimizer = TableOptimizer(
        kind="adam",
        learning_rate=1e-3,
        weight_decay=variant.weight_decay,
        rows=variant.rows,
    )
    trained = run_experiment(
        Experiment(
            prepared=prepared,
            method=variant.method(),
            model=DeepFM,
            model_options={"hidden_units": [128, 64]},
            table_optimizer=optimizer,
            dense_optimizer=lambda parameters: torch.optim.Adam(
                parameters, lr=1e-3, weight_decay=variant.weight_decay
            ),
            settings=TrainerSettings(batch_size=512, max_epochs=MAX_EPOCHS, patience=2),
            embedding_dim=WIDTH,
            seed=seed,
        ),
        folder=folder,
        log=RunLog(folder / "metrics.jsonl", tracker=NoTracker(), show_progress=False),
    )
    tables, metrics = trained.tables, trained.summary["metrics"]
    assert isinstance(tables, PlannedTables)
    shares = pruned_shares(tables, prepared)
    plan = {t.name: t for t in tables.plan.tables if not t.name.endswith(".first_order")}
    values = sum(t.num_rows * t.width for t in plan.values())
    full = sum(s.num_embeddings * WIDTH for s in tables.specs if s.embedding_dim == WIDTH)
    values_of = {
        "study": study,
        "variant": name,
        "seed": seed,
        "val_auc": f"{metrics['val/auc']:.5f}",
        "test_auc": f"{metrics['test/auc']:.5f}",
        "test_logloss": f"{metrics['test/logloss']:.5f}",
        "sparsity": f"{1 - values / full:.4f}",
        **{key: f"{share:.4f}" for key, share in shares.items()},
        "ratio": f"{trained.summary['ratio']:.4f}",
        "widths": json.dumps([t.width for t in plan.values()]),
        **generations(folder / "checkpoints"),
        "seconds": f"{trained.summary['seconds']:.1f}",
        "commit": _commit(),
        "torch": torch.__version__,
    }
    return {column: str(values_of[column]) for column in COLUMNS}


def folder_of(work: Path, study: str, name: str, seed: int) -> Path:
    """Return the folder of a run."""
    return work / study / f"{name}-{seed}".replace(" ", "_").replace(",", "").replace(":", "")


def take_over(source: Path, folder: Path) -> None:
    """Give a run the finished supernet of another one, and the log that goes with it."""
    shutil.copytree(source / "checkpoints" / "supernet", folder / "checkpoints" / "supernet")
    shutil.copy(source / "metrics.jsonl", folder / "metrics.jsonl")


def generations(checkpoints: Path) -> dict[str, str]:
    """Return the best fitness of a search's first generation, and of all, empty without search."""
    best = []
    for generation in sorted(checkpoints.glob("search-*")):
        found = CheckpointStore(generation).load_newest("result")
        assert found is not None
        best.append(max(found[1]["values"], default=0.0))
    if not best:
        return {"first_generation": "", "last_generation": ""}
    return {"first_generation": f"{best[0]:.5f}", "last_generation": f"{max(best):.5f}"}


def pruned_shares(tables: PlannedTables, prepared: Prepared) -> dict[str, float]:
    """Return the share of rows kept, and of those pruned among unseen, rare and frequent ids."""
    kept, counts = [], []
    for spec in tables.specs:
        if spec.embedding_dim == 1:
            continue
        feature = spec.feature_names[0]
        counts.append(prepared.id_counts(feature))
        rows = dict(tables.plan_buffers.items()).get(f"{spec.name}.rows")
        kept.append(torch.ones(spec.num_embeddings).bool() if rows is None else rows >= 0)
    on, seen = torch.cat(kept), torch.cat(counts)
    groups = {
        "unseen_pruned": seen == 0,
        "rare_pruned": (seen > 0) & (seen <= 5),
        "frequent_pruned": seen > 50,
    }
    found = {name: 1 - float(on[group].float().mean()) for name, group in groups.items()}
    return {"rows_kept": float(on.float().mean()), **found}


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty=+changes", "--exclude=*"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return done.stdout.strip()


def read_rows() -> dict[tuple[str, str, int], Row]:
    """Return the rows of earlier runs."""
    path = RESULTS / "optembed.csv"
    if not path.exists():
        return {}
    with path.open(newline="") as file:
        return {(r["study"], r["variant"], int(r["seed"])): r for r in csv.DictReader(file)}


def write(rows: Mapping[tuple[str, str, int], Row]) -> str:
    """Write all rows, and a table of their means; return the latter."""
    with (RESULTS / "optembed.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows.values())
    lines = [
        "# OptEmbed",
        "",
        "Written by `python benchmarks/accuracy/optembed.py`, whose docstring has the protocol; do "
        "not edit. Mean ± standard deviation over seeds (their number); a row per run is in "
        "`optembed.csv`. *Sparsity* is the paper's: of the values of vectors, indices not counted; "
        "*ratio* is of all bytes, indices and first-order weights included.",
    ]
    for study in dict.fromkeys(study for study, _, _ in rows):
        lines += [
            "",
            f"## {study}",
            "",
            "| | test AUC | log loss | sparsity | ratio | rows kept | pruned: unseen | "
            "rare (1-5) | frequent (>50) |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for name in dict.fromkeys(v for s, v, _ in rows if s == study):
            mine = [r for (s, v, _), r in rows.items() if (s, v) == (study, name)]
            cells = [
                _spread([float(r[c]) for r in mine])
                for c in (
                    *("test_auc", "test_logloss", "sparsity", "ratio", "rows_kept"),
                    *("unseen_pruned", "rare_pruned", "frequent_pruned"),
                )
            ]
            lines.append(f"| {name} | " + " | ".join(cells) + " |")
        lines += claims(study, rows)
    text = "\n".join(lines) + "\n"
    (RESULTS / "optembed.md").write_text(text)
    return text


def claims(study: str, rows: Mapping[tuple[str, str, int], Row]) -> list[str]:
    """Return the table of what the study is held to."""
    means: dict[tuple[str, str], float] = {}
    for name in dict.fromkeys(v for s, v, _ in rows if s == study):
        mine = [r for (s, v, _), r in rows.items() if (s, v) == (study, name)]
        for column in ("test_auc", "sparsity", "unseen_pruned", "frequent_pruned", "rows_kept"):
            means[name, column] = statistics.mean(float(r[column]) for r in mine)
    auc = {name: value for (name, column), value in means.items() if column == "test_auc"}
    found: list[tuple[str, float, float]] = []
    if study == "synthetic" and len(auc) == 6:
        rows_pruned = 1 - means["E: rows", "rows_kept"]
        found = [
            ("C1: rows pruned without loss, AUC over base", auc["E: rows"] - auc["base"], -0.003),
            ("C1: share of rows pruned", rows_pruned, 0.25),
            ("C1: share of unseen rows pruned", means["E: rows", "unseen_pruned"], 1.0),
            ("C2: searched over random widths", auc["D: widths"] - auc["D, random widths"], 0.015),
            ("C2: noise fields narrower, median ratio", noise_ratio(rows), 2.0),
            ("C4: best fitness over the first generation's, least", evolution_gain(rows), 0.001),
            ("C3: sparsity of rows and widths", means[FULL, "sparsity"], 0.6),
            ("C3: AUC over base", auc[FULL] - auc["base"], -0.005),
        ]
    elif study == "frappe" and len(auc) == 6:
        found = [("AUC over base", auc[FULL] - auc["base"], -0.002)]
    if not found:
        return []
    lines = ["", "| claim | measured | at least | holds |", "|---|---|---|---|"]
    return lines + [
        f"| {what} | {value:+.4f} | {bound} | {'yes' if value >= bound else 'NO'} |"
        for what, value, bound in found
    ]


def evolution_gain(rows: Mapping[tuple[str, str, int], Row]) -> float:
    """Return the least that a search gained over its first, random, generation."""
    return min(
        float(r["last_generation"]) - float(r["first_generation"])
        for (study, _, _), r in rows.items()
        if study == "synthetic" and r["first_generation"]
    )


def noise_ratio(rows: Mapping[tuple[str, str, int], Row]) -> float:
    """Return the informative fields' median width over the noise fields', over all searches."""
    noise, others = [], []
    for (study, variant, _), row in rows.items():
        if study == "synthetic" and variant in ("D: widths", FULL):
            for place, width in enumerate(json.loads(row["widths"])):
                (noise if place in NOISE_FIELDS else others).append(width)
    return statistics.median(others) / statistics.median(noise)


def _spread(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.4f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.4f}{spread} ({len(values)})"


def main() -> None:
    """Run the studies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("outputs/optembed"))
    parser.add_argument("--study", default="synthetic,frappe,mechanism")
    parser.add_argument("--seeds", default="1,2,3")
    parser.add_argument("--threads", type=int, default=None)
    options = parser.parse_args()
    if options.threads is not None:
        torch.set_num_threads(options.threads)
    rows = read_rows()
    studies = {
        "synthetic": variants(1e-5),
        "frappe": variants(1e-4),
        "mechanism": mechanism(),
    }
    for study in options.study.split(","):
        for seed in map(int, options.seeds.split(",")):
            folder = options.work / "data"
            if study == "synthetic":
                prepared = synthetic(folder / f"synthetic-{seed}", seed)
            else:
                prepared = frappe(options.data / "frappe", folder / "frappe")
            for name, variant in studies[study].items():
                if (study, name, seed) in rows:
                    continue
                row = run(study, name, variant, prepared, seed, options.work)
                rows[study, name, seed] = row
                print(study, name, seed, row["test_auc"], row["sparsity"], flush=True)
                write(rows)
    print(write(rows))


if __name__ == "__main__":
    main()
