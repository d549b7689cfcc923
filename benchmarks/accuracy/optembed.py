"""OptEmbed's claims: on Criteo-shaped data with noise fields, and on Frappe.

    python benchmarks/accuracy/optembed.py --data FOLDER [--study synthetic,frappe,mechanism]

FOLDER holds `frappe/` as the publisher ships it; the planted data are made, see `synthetic`. DeepFM
with an MLP of 128 and 64 units, vectors of 16 values, dense Adam at 0.001, at most 8 epochs, two
without a better validation AUC end a fit, the best epoch counts, the test split is scored once. In
the study of the mechanism the supernet of the eighth epoch is what counts. All variants begin with
OptEmbed's initial weights. "Random widths" trains under widths drawn uniformly instead of searched
ones, with the rows of the same supernet. Runs that the results have are not made again. Writes
benchmarks/results/optembed.{csv,md}.
"""

import argparse
import csv
import json
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import torch

sys.path.append(str(Path(__file__).resolve().parent))

from optembed_data import NOISE_FIELDS, frappe, synthetic
from optembed_variants import FULL, MAX_EPOCHS, WIDTH, Variant, mechanism, variants

from recemb.checkpoint.store import CheckpointStore
from recemb.data.prepared import Prepared
from recemb.models.deepfm import DeepFM
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.train.experiment import Experiment, run_experiment
from recemb.train.log import NoTracker, RunLog
from recemb.train.settings import TrainerSettings

RESULTS = Path(__file__).parent.parent / "results"
COLUMNS = (
    *("study", "variant", "seed", "val_auc", "test_auc", "test_logloss", "sparsity", "rows_kept"),
    *("unseen_pruned", "rare_pruned", "frequent_pruned", "ratio", "widths"),
    *("first_generation", "last_generation", "seconds"),
    *("commit", "torch"),
)
Row = dict[str, str]


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
