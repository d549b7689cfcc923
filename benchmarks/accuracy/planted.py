"""Does attention find where the target came from? DARE beside TWIN on data that know it.

    python benchmarks/accuracy/planted.py [--seeds 1,2,3,4,5]

`data=synthetic_sequences` copies categories from earlier behaviours, so the true relevance of each
behaviour is known. Every cell is a `recemb train` of its own with the settings of
`experiment=ml100k_dare`; attention is then ranked against the truth on the test split. Gradients of
both roles are those of TWIN's first updates. Cells that were finished are not run again. Writes
benchmarks/results/planted.{csv,md}.
"""

import argparse
import statistics
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from sequence_runs import (
    MEASURED,
    Cell,
    Row,
    arguments,
    mean_and_sd,
    measured,
    read_rows,
    table,
    trained,
    write_results,
)

from recemb.cli.finished import FinishedRun, finished_run
from recemb.data.prepared import Prepared
from recemb.data.synthetic_sequences import PlantedAttention
from recemb.models.sequence.sequence_model import SequenceModel
from recemb.models.sequence.twin import TWIN
from recemb.report.relevance import retrieval_ndcg
from recemb.report.role_gradients import role_gradients
from recemb.report.sequence_health import attention_of, category_batch
from recemb.tables.full import full_tables
from recemb.tables.optimizer import TableOptimizer

SHARED = (
    *("experiment=ml100k_dare", "data=synthetic_sequences"),
    *("trainer.max_epochs=3", "trainer.patience=3"),
)
VARIANTS: dict[str, tuple[str, ...]] = {
    "DARE": (),
    "TWIN": ("model=twin",),
    "TWIN, width 16": ("model=twin", "embedding_dim=16"),
    "TWIN-4E": ("model=twin_4e",),
    "TWIN, projections": ("model=twin_projection",),
    "DARE, attention width 4": ("model.attention_dim=4",),
}
RANKS = (1, 10, 20)
FIRST_UPDATES, EVERY = 100, 10
PARTS = ("item", "category", "position")
KEYS = ("variant", "seed")
GRADIENTS = (
    *(f"gradient_ratio_{part}" for part in PARTS),
    *(f"conflicting_rows_{part}" for part in PARTS),
    *(f"conflicting_batches_{part}" for part in PARTS),
)
COLUMNS = (
    *KEYS,
    *(f"ndcg_{k}" for k in RANKS),
    *(f"recent_ndcg_{k}" for k in RANKS),
    *GRADIENTS,
    *MEASURED,
)


def ndcg(run: FinishedRun) -> dict[str, float]:
    """Return how well attention, and recency alone, rank the test split's behaviours."""
    model, planted = run.model.eval(), PlantedAttention(run.prepared)
    assert isinstance(model, SequenceModel)
    category = next(p for p in model.parts if p.target == "category")
    found: dict[str, list[torch.Tensor]] = {}
    for batch in run.prepared.batches("test", batch_size=512):
        its = category_batch(batch, category)
        truth = planted.relevance(its.history.numpy(), its.lengths.numpy(), its.target.numpy())
        places = torch.arange(its.history.shape[1])
        is_positive = batch.labels == 1
        scores = {
            "ndcg": attention_of(model, batch, run.tables),
            "recent_ndcg": places.float().expand_as(its.history),
        }
        for name, values in scores.items():
            for k in RANKS:
                found.setdefault(f"{name}_{k}", []).append(
                    retrieval_ndcg(
                        values,
                        torch.from_numpy(truth),
                        places < its.lengths.unsqueeze(1),
                        k,
                    )[is_positive]
                )
    # NaN where no behaviour of the history can have made the target.
    return {name: float(torch.cat(values).nanmean()) for name, values in found.items()}


def first_gradients(prepared: Prepared, seed: int) -> dict[str, float]:
    """Return gradient ratios and conflicts of TWIN's first updates, part by part."""
    options = {"top_k": 10, "hidden_units": [64], "auxiliary_units": [64]}
    specs = TWIN.table_specs(prepared.schema, embedding_dim=8, options=options)
    optimizer = TableOptimizer(kind="adam", learning_rate=0.01, rows="all")
    tables = full_tables(specs, optimizer=optimizer, init_std=0.01, seed=seed)
    torch.manual_seed(seed)
    model = TWIN.for_tables(prepared.schema, tables, options)
    dense = torch.optim.Adam(model.parameters(), lr=0.01)
    norms: dict[str, list[tuple[float, float]]] = {part: [] for part in PARTS}
    cosines: dict[str, list[torch.Tensor]] = {part: [] for part in PARTS}
    batches = prepared.batches("train", batch_size=512, seed=seed, epoch=0, shuffle=True)
    for number, batch in zip(range(FIRST_UPDATES), batches, strict=False):
        if number % EVERY == 0:
            for part in PARTS:
                its = role_gradients(model, batch, tables, column=part)
                norms[part].append(its.norms)
                cosines[part].append(its.cosines)
        dense.zero_grad()
        (model.loss_sum(model.inputs(batch, tables), batch.labels) / len(batch)).backward()
        dense.step()
    found = {}
    for part in PARTS:
        attention, representation = (statistics.mean(n) for n in zip(*norms[part], strict=True))
        found[f"gradient_ratio_{part}"] = representation / attention
        found[f"conflicting_rows_{part}"] = float((torch.cat(cosines[part]) < 0).float().mean())
        # As RoleReport.conflicting_batches, and as the paper counts iterations.
        means = [float(its.mean()) for its in cosines[part] if len(its)]
        found[f"conflicting_batches_{part}"] = sum(mean < 0 for mean in means) / len(means)
    return found


def row_of(cell: Cell, options: argparse.Namespace) -> Row | None:
    """Train and measure a cell; None if it failed."""
    variant, seed = cell
    folder = trained(cell, (*SHARED, *VARIANTS[variant], f"seed={seed}"), options)
    if folder is None:
        return None
    run = finished_run(folder, cache=None, trusted=False)
    with torch.no_grad():
        values: dict[str, object] = {"variant": variant, "seed": seed, **ndcg(run)}
    values |= dict.fromkeys(GRADIENTS, "")
    if variant == "TWIN":
        values |= first_gradients(run.prepared, int(seed))
    row = {**values, **measured(folder)}
    print(*cell, row["ndcg_10"], row["test_auc"], flush=True)
    return {column: str(row[column]) for column in COLUMNS}


def lines_of(rows: dict[Cell, Row]) -> list[str]:
    """Return the page."""

    def its(variant: str, column: str) -> list[float]:
        its_rows = [row for cell, row in sorted(rows.items()) if cell[0] == variant]
        # Older rows lack the columns that came later.
        return [float(row[column]) for row in its_rows if row[column]]

    done = [variant for variant in VARIANTS if its(variant, "test_auc")]
    lines = [
        "# Attention against the planted truth",
        "",
        "Made by `python benchmarks/accuracy/planted.py`; a row per run, with its commit and "
        "machine, is in `planted.csv`. 3,000 users, 2,400 items in 60 categories, histories of "
        "100; the category of a behaviour is copied from an earlier one with probability 0.7, "
        "some 15 behaviours ago, and drifts to one of two related ones in 3 of 10 copies. "
        "Settings of `experiment=ml100k_dare`: width 8 for item, category and position, the 10 "
        "best, dense Adam, the best of 3 epochs. NDCG ranks a history by what the model attends "
        "to, gains are the planted chances, over the test's positives. The last line ranks by "
        "recency, which knows nothing of categories.",
        "",
        *table(
            (
                *("model", "seeds", *(f"NDCG@{k}" for k in RANKS), "test AUC", "GAUC"),
                *("table bytes", "samples/s"),
            ),
            [
                (
                    *(variant, len(its(variant, "seed"))),
                    *(mean_and_sd(its(variant, f"ndcg_{k}"), 3) for k in RANKS),
                    *(mean_and_sd(its(variant, column)) for column in ("test_auc", "test_gauc")),
                    f"{its(variant, 'table_bytes')[0]:,.0f}",
                    f"{statistics.median(its(variant, 'samples_per_second')):,.0f}",
                )
                for variant in done
            ]
            + [
                (
                    *("recency alone", "-"),
                    *(f"{its(done[0], f'recent_ndcg_{k}')[0]:.3f}" for k in RANKS),
                    *("-", "-", "-", "-"),
                )
            ],
        ),
    ]
    if "TWIN" in done:
        lines += [
            "",
            f"Gradients of both roles in TWIN's shared tables, every {EVERY}th of the first "
            f"{FIRST_UPDATES} updates: the mean norm of those through what is summed over that of "
            "those through the scores, the share of rows in which the two point apart, and the "
            "share of updates whose rows do so in the mean. Published, on Taobao: a ratio of about "
            "5, and 64 % of updates for the category.",
            "",
            *table(
                ("part", "ratio of norms", "rows in conflict", "updates in conflict"),
                [
                    (
                        part,
                        mean_and_sd(its("TWIN", f"gradient_ratio_{part}"), 1),
                        mean_and_sd(its("TWIN", f"conflicting_rows_{part}"), 3),
                        _or_dash(its("TWIN", f"conflicting_batches_{part}"), 2),
                    )
                    for part in PARTS
                ],
            ),
        ]
    return [*lines, "", *_claims(rows, its)]


def complete(rows: dict[Cell, Row]) -> dict[Cell, Row]:
    """Return rows with all columns; those that earlier runs did not measure are empty."""
    return {cell: {c: row.get(c, "") for c in COLUMNS} for cell, row in rows.items()}


def _or_dash(values: Sequence[float], digits: int) -> str:
    return mean_and_sd(values, digits) if values else "-"


def _claims(rows: dict[Cell, Row], its: Callable[[str, str], list[float]]) -> list[str]:
    """Return a line on each claim for which there are runs."""

    def gains(column: str, better: str, worse: str) -> list[float]:
        seeds = [seed for variant, seed in rows if variant == better and (worse, seed) in rows]
        return [
            float(rows[better, seed][column]) - float(rows[worse, seed][column]) for seed in seeds
        ]

    found = []
    for claim, column, better, worse, is_claimed in (
        *(
            ("DARE's attention is nearer the truth than TWIN's", f"ndcg_{k}", "DARE", "TWIN", True)
            for k in RANKS
        ),
        *(
            ("nearer than TWIN's of as many bytes", f"ndcg_{k}", "DARE", "TWIN, width 16", False)
            for k in RANKS
        ),
        ("DARE predicts better than TWIN", "test_auc", "DARE", "TWIN", True),
        ("better than TWIN of as many bytes", "test_auc", "DARE", "TWIN, width 16", False),
    ):
        values = gains(column, better, worse)
        if values:
            verdict = "yes" if statistics.mean(values) > 0 else "NO"
            found.append(
                (
                    claim + ("" if is_claimed else " (not claimed)"),
                    column,
                    mean_and_sd(values),
                    f"{sum(value > 0 for value in values)} of {len(values)}",
                    verdict,
                )
            )
    ratios = [min(its("TWIN", f"gradient_ratio_{part}")) for part in PARTS if its("TWIN", "seed")]
    if ratios:
        holds = "yes" if min(ratios) > 2 else "NO"
        found.append(
            (
                "gradient ratio above 2, every part and seed",
                "least",
                f"{min(ratios):.1f}",
                "-",
                holds,
            )
        )
    columns = ("claim", "measure", "difference", "seeds above 0", "holds")
    return table(columns, found)


def main(given: Sequence[str] | None = None) -> None:
    """Run the cells that are missing and write the page."""
    parser = arguments(__doc__, seeds="1,2,3,4,5", work="planted")
    parser.add_argument("--variants", default=";".join(VARIANTS), help="separated by ;")
    options = parser.parse_args(given)
    torch.set_num_threads(options.threads)
    rows = complete(read_rows("planted", KEYS))
    for seed in options.seeds.split(","):
        for variant in options.variants.split(";"):
            cell = (variant, seed)
            if cell in rows and not options.again:
                continue
            row = row_of(cell, options)
            if row is not None:
                rows[cell] = row
                write_results("planted", rows, lines_of(rows))
    print(Path("benchmarks/results/planted.md"), *lines_of(rows), sep="\n")


if __name__ == "__main__":
    main()
