"""DARE beside TWIN and its other relatives on MovieLens 100K, with the claims that they carry.

    python benchmarks/accuracy/dare.py --data FOLDER [--seeds 1,2,3,4,5] [--epochs 3,10]

FOLDER holds `ml-100k/`. Each cell is `recemb train experiment=ml100k_MODEL seed=S` with the
overrides of its variant; the best epoch is chosen on validation, the test split scored once. Cells
that benchmarks/results/dare.csv has, or that were finished in --work, are not run again. Writes
benchmarks/results/dare.{csv,md}.

Three epochs is the protocol in which DARE was checked at this size: models that
learn slowly do badly in it. With ten, and the best of them, each model has its time.
"""

import statistics
from collections.abc import Sequence

from sequence_runs import (
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

VARIANTS: dict[str, tuple[str, ...]] = {
    "TWIN": ("experiment=ml100k_twin",),
    "DARE": ("experiment=ml100k_dare",),
    "TWIN-4E": ("experiment=ml100k_twin_4e",),
    "TWIN, width 16": ("experiment=ml100k_twin", "embedding_dim=16"),
    "TWIN, width 4": ("experiment=ml100k_twin", "embedding_dim=4"),
    "DARE, attention width 4": ("experiment=ml100k_dare", "model.attention_dim=4"),
    "DARE, attention width 2": ("experiment=ml100k_dare", "model.attention_dim=2"),
    "TWIN w/o TR": ("experiment=ml100k_twin", "model.target_aware=false"),
    "DARE w/o TR": ("experiment=ml100k_dare", "model.target_aware=false"),
}
# Table 1 of the paper, AUC at width 16: Taobao, Tmall.
PUBLISHED = {
    "TWIN": (0.91688, 0.95812),
    "DARE": (0.92568, 0.96800),
    "TWIN-4E": (0.90414, 0.96124),
    "TWIN w/o TR": (0.90732, 0.96170),
}
KEYS = ("variant", "epochs", "seed")


def lines_of(rows: dict[Cell, Row]) -> list[str]:
    """Return the page."""
    lines = [
        "# DARE on MovieLens 100K",
        "",
        "Made by `python benchmarks/accuracy/dare.py`; a row per run, with its commit and machine, "
        "is in `dare.csv`. DARE's protocol at the size of this set: 497 users with up to "
        "19 training positives each, 8,903 in all, two negatives by popularity, histories of up to "
        "100, vectors of 8 for item, category and position. The test has "
        "1,491 rows, so one run's AUC has a standard error of about 0.014. Selected on "
        "validation, reported on test. Published: Taobao and Tmall at width 16, other data.",
    ]
    for epochs in sorted({epochs for _, epochs, _ in rows}, key=int):
        lines += ["", f"## The best of {epochs} epochs", "", *_table(rows, epochs)]
        lines += ["", *_claims(rows, epochs)]
    return lines


def _table(rows: dict[Cell, Row], epochs: str) -> list[str]:
    found = []
    for variant in VARIANTS:
        its = [rows[cell] for cell in sorted(rows) if cell[:2] == (variant, epochs)]
        if its:
            published = PUBLISHED.get(variant)
            found.append(
                (
                    *(variant, len(its)),
                    *(
                        mean_and_sd([float(row[key]) for row in its])
                        for key in ("test_auc", "test_gauc", "test_logloss")
                    ),
                    its[0]["table_bytes"],
                    *((f"{value:.4f}" for value in published) if published else ("-", "-")),
                )
            )
    columns = (
        *("model", "seeds", "test AUC, mean ± sd", "GAUC", "log loss", "table bytes"),
        *("published Taobao", "published Tmall"),
    )
    return table(columns, found)


def _claims(rows: dict[Cell, Row], epochs: str) -> list[str]:
    """Return a line on each claim for which there are runs."""

    def gains(better: str, worse: str) -> list[float]:
        """Return differences seed by seed."""
        return [
            float(row["test_auc"]) - float(rows[worse, epochs, cell[2]]["test_auc"])
            for cell, row in sorted(rows.items())
            if cell[:2] == (better, epochs) and (worse, epochs, cell[2]) in rows
        ]

    cost = gains("DARE", "DARE, attention width 4")
    half = statistics.mean(cost) if cost else None
    lines = []
    for claim, better, worse, least, most in (
        ("DARE over TWIN, at least 0.015", "DARE", "TWIN", 0.015, 1.0),
        ("DARE over TWIN-4E", "DARE", "TWIN-4E", 0.0, 1.0),
        ("the product helps DARE", "DARE", "DARE w/o TR", 0.0, 1.0),
        ("the product helps TWIN", "TWIN", "TWIN w/o TR", 0.0, 1.0),
        (
            *("half the attention width costs less than 0.006", "DARE"),
            *("DARE, attention width 4", -1.0, 0.006),
        ),
        ("half of TWIN's width costs more than that", "TWIN", "TWIN, width 4", half, 1.0),
        ("DARE over TWIN of as many bytes (not claimed)", "DARE", "TWIN, width 16", None, 1.0),
    ):
        values = gains(better, worse)
        if values:
            value = statistics.mean(values)
            holds = "-" if least is None else "yes" if least < value < most else "NO"
            lines.append((claim, len(values), mean_and_sd(values), holds))
    return table(("claim", "seeds", "difference in AUC", "holds"), lines)


def main(given: Sequence[str] | None = None) -> None:
    """Run the cells that are missing and write the page."""
    parser = arguments(__doc__, seeds="1,2,3,4,5", work="dare")
    parser.add_argument("--data", required=True)
    parser.add_argument("--variants", default=";".join(VARIANTS), help="separated by ;")
    parser.add_argument("--epochs", default="3,10")
    options = parser.parse_args(given)
    rows = read_rows("dare", KEYS)
    for epochs in options.epochs.split(","):
        for seed in options.seeds.split(","):
            for variant in options.variants.split(";"):
                cell = (variant, epochs, seed)
                if cell in rows and not options.again:
                    continue
                overrides = (
                    *(*VARIANTS[variant], f"seed={seed}", f"trainer.max_epochs={epochs}"),
                    *(f"trainer.patience={max(3, int(epochs) // 2)}", f"paths.data={options.data}"),
                )
                folder = trained(cell, overrides, options)
                if folder is not None:
                    rows[cell] = {**dict(zip(KEYS, cell, strict=True)), **measured(folder)}
                    print(*cell, rows[cell]["test_auc"], flush=True)
                    write_results("dare", rows, lines_of(rows))
    print(*lines_of(rows), sep="\n")


if __name__ == "__main__":
    main()
