"""Every sequence model on MovieLens 1M: does it train, how well, how fast.

    python benchmarks/accuracy/sequences_movielens.py --data FOLDER [--seeds 1,2,3]

FOLDER holds `ml-1m/`. The models are all of conf/model that are sequence models, each with its own
YAML, but for what `SHARED` says; so a new model takes part. Each cell is a `recemb train` of its
own, the best epoch chosen on validation, the test split scored once. Cells that the results have,
or that were finished in --work, are not run again. Writes
benchmarks/results/sequences_movielens.{csv,md}.
"""

import re
import statistics
from collections.abc import Sequence
from importlib import resources

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

NAME = "sequences_movielens"
SHARED = (
    *("data=movielens_1m_sequences", "data.num_positives=3", "optimizer=adam"),
    *("optimizer.tables.learning_rate=0.003", "optimizer.dense.lr=0.003", "embedding_dim=16"),
    *("trainer.batch_size=512", "trainer.max_epochs=2", "trainer.patience=2"),
)
KEYS = ("model", "seed")
_SEQUENCE_MODEL = re.compile(r"^_target_: recemb\.models\.sequence\.", re.MULTILINE)


def models() -> list[str]:
    """Return the names of the sequence models in conf/model."""
    folder = resources.files("recemb.conf") / "model"
    return sorted(
        file.name.removesuffix(".yaml")
        for file in folder.iterdir()
        if file.name.endswith(".yaml") and _SEQUENCE_MODEL.search(file.read_text())
    )


def lines_of(rows: dict[Cell, Row]) -> list[str]:
    """Return the page."""

    def its(model: str, column: str) -> list[float]:
        return [float(row[column]) for cell, row in sorted(rows.items()) if cell[0] == model]

    done = sorted(
        {model for model, _ in rows}, key=lambda model: -statistics.mean(its(model, "test_auc"))
    )
    return [
        "# Sequence models on MovieLens 1M",
        "",
        "Made by `python benchmarks/accuracy/sequences_movielens.py`; a row per run, with its "
        f"commit and machine, is in `{NAME}.csv`. DARE's protocol: users from 60 behaviours on, "
        "three training positives each, two negatives by popularity for each positive, histories "
        "of up to 200 films with their genres and positions; one validation and one test positive "
        "for each user. Every model has the settings of its YAML, vectors of 16, batches of 512, "
        "row-sparse Adam at 0.003, and the best of two epochs: nothing was tuned for any model, "
        "so the order says little. GAUC is by user, over one positive and two negatives. Samples "
        "a second are those of training, on one thread, beside whatever else the machine did.",
        "",
        *table(
            ("model", "seeds", "test AUC", "GAUC", "log loss", "table bytes", "samples/s"),
            [
                (
                    *(model, len(its(model, "seed"))),
                    *(
                        mean_and_sd(its(model, column))
                        for column in ("test_auc", "test_gauc", "test_logloss")
                    ),
                    f"{its(model, 'table_bytes')[0]:,.0f}",
                    f"{statistics.median(its(model, 'samples_per_second')):,.0f}",
                )
                for model in done
            ],
        ),
    ]


def main(given: Sequence[str] | None = None) -> None:
    """Run the cells that are missing and write the page."""
    parser = arguments(__doc__, seeds="1,2,3", work=NAME)
    parser.add_argument("--data", required=True)
    parser.add_argument("--models", default=",".join(models()))
    options = parser.parse_args(given)
    rows = read_rows(NAME, KEYS)
    for seed in options.seeds.split(","):
        for model in options.models.split(","):
            cell = (model, seed)
            if cell in rows and not options.again:
                continue
            overrides = (*SHARED, f"model={model}", f"seed={seed}", f"paths.data={options.data}")
            folder = trained(cell, overrides, options)
            if folder is not None:
                rows[cell] = {**dict(zip(KEYS, cell, strict=True)), **measured(folder)}
                print(*cell, rows[cell]["test_auc"], flush=True)
                write_results(NAME, rows, lines_of(rows))
    print(*lines_of(rows), sep="\n")


if __name__ == "__main__":
    main()
