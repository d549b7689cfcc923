"""Criteo-shaped data with a planted click model, so that the best reachable AUC is known.

13 dense and 26 categorical columns with the cardinalities of the Criteo Kaggle set (scaled), ids by
a truncated power law, dense values as log(1 + count) with log-normal counts, and labels drawn from
`recemb.data.planted`. Row i of a split is a pure function of (seed, split, i), so a smaller set is
the beginning of a larger one. Rows are made `_BLOCK_ROWS` at a time: memory is about 100 MB however
many rows there are, plus 9 bytes per validation and test row.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from recemb.data.dataset import Dataset
from recemb.data.encoded import EncodedRows
from recemb.data.planted import HEAD_IDS, Floats, Ids, PlantedModel, SignalShares
from recemb.data.preparation import prepare_once
from recemb.data.prepared import Prepared
from recemb.data.schema import Categorical, Schema
from recemb.data.score import auc, log_loss
from recemb.data.writer import Writer

CRITEO_CARDINALITIES = (
    *(1460, 583, 10131227, 2202608, 305, 24, 12517, 633, 3, 93145, 5683, 8351593, 3194),
    *(27, 14992, 5461306, 10, 5652, 2173, 4, 7046547, 18, 15, 286181, 105, 142572),
)
"""Distinct values of C1 to C26 in the Criteo Kaggle training file."""

NUM_DENSE = 13
_SMALL_TABLE = 1000
_BLOCK_ROWS = 1 << 14
_NUM_PAIRS = 2
_GENERATOR_VERSION = 1  # raise it with any change of the rows that the settings do not show
_SPLIT_KEYS = {"train": 0, "val": 1, "test": 2, "pilot": 3}


class Synthetic(Dataset):
    """Criteo-shaped rows from a planted click model.

    Args:
        num_train: rows of the training split.
        num_val: rows of the validation split.
        num_test: rows of the test split.
        scale: factor on the published cardinalities; a table keeps at least the smaller of its
            published size and 1,000 ids.
        zipf_exponent: an id of frequency rank k has probability about k ** -zipf_exponent.
        positive_rate: share of clicks, in (0, 1).
        logit_std: strength of the signal; 0 makes labels noise.
        seed: of everything.

    Raises:
        ValueError: if an argument is out of range.
    """

    name = "synthetic"

    def __init__(
        self,
        *,
        num_train: int = 2_000_000,
        num_val: int = 100_000,
        num_test: int = 100_000,
        scale: float = 0.01,
        zipf_exponent: float = 1.3,
        positive_rate: float = 0.25,
        logit_std: float = 1.5,
        seed: int = 0,
    ) -> None:
        if min(num_train, num_val, num_test) < 1:
            raise ValueError(
                "data 'synthetic': num_train, num_val and num_test must be at least 1, "
                f"got {num_train}, {num_val}, {num_test}"
            )
        for name, value, is_right, rule in (
            ("scale", scale, scale > 0, "above 0"),
            ("zipf_exponent", zipf_exponent, zipf_exponent >= 0, "at least 0"),
            ("positive_rate", positive_rate, 0 < positive_rate < 1, "in (0, 1)"),
            ("logit_std", logit_std, logit_std >= 0, "at least 0"),
            ("seed", seed, seed >= 0, "at least 0"),
        ):
            if not is_right:
                raise ValueError(f"data 'synthetic': {name} must be {rule}, got {value}")
        self.num_rows = {"train": num_train, "val": num_val, "test": num_test}
        self.scale = scale
        self.zipf_exponent = zipf_exponent
        self.positive_rate = positive_rate
        self.logit_std = logit_std
        self.seed = seed
        self.cardinalities = tuple(
            max(min(n, _SMALL_TABLE), round(n * scale)) for n in CRITEO_CARDINALITIES
        )

    @property
    def schema(self) -> Schema:
        """Return the columns."""
        return Schema(
            dense=tuple(f"I{j + 1}" for j in range(NUM_DENSE)),
            categorical=tuple(
                Categorical(name=f"C{f + 1}", num_embeddings=n)
                for f, n in enumerate(self.cardinalities)
            ),
            label="label",
        )

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the generated set in `out`, generating it if needed; `raw` is not used."""
        settings = {
            "num_rows": self.num_rows,
            "scale": self.scale,
            "zipf_exponent": self.zipf_exponent,
            "positive_rate": self.positive_rate,
            "logit_std": self.logit_std,
            "seed": self.seed,
            # Not arguments, but a change must not pass for the same data.
            "signal": {**asdict(SignalShares()), "head_ids": HEAD_IDS, "num_pairs": _NUM_PAIRS},
            "generator": _GENERATOR_VERSION,
        }
        return prepare_once(
            out,
            name=self.name,
            settings=settings,
            sources=(),
            write=self._write,
            overwrite=overwrite,
        )

    def _write(self, folder: Path, facts: Mapping[str, Any]) -> None:
        model = self._planted_model()
        reference: dict[str, float] = {}
        total = sum(self.num_rows.values())
        with (
            Writer(folder, self.schema) as writer,
            tqdm(
                total=total,
                desc="synthetic: generating",
                unit="row",
                unit_scale=True,
                mininterval=0.5,
            ) as bar,
        ):
            for split, num_rows in self.num_rows.items():
                scores, labels = [], []
                for block in range(-(-num_rows // _BLOCK_ROWS)):
                    rows, probabilities = self._block(model, split, block)
                    writer.append(split, rows)
                    bar.update(len(rows))
                    if split != "train":
                        scores.append(probabilities)
                        labels.append(rows.labels)
                if split != "train":
                    reference[f"{split}/auc"] = auc(np.concatenate(scores), np.concatenate(labels))
                    reference[f"{split}/logloss"] = log_loss(
                        np.concatenate(scores), np.concatenate(labels)
                    )
            writer.finish({**facts, "reference": reference})

    def _block(self, model: PlantedModel, split: str, block: int) -> tuple[EncodedRows, Floats]:
        """Return the rows of one block and their true click probabilities."""
        size = min(_BLOCK_ROWS, self.num_rows[split] - block * _BLOCK_ROWS)
        rng = np.random.default_rng([self.seed, 0, _SPLIT_KEYS[split], block])
        ids, dense = self._draw(rng)
        chance = rng.random(_BLOCK_ROWS)[:size]
        ids, dense = ids[:size], dense[:size]
        probabilities = model.probabilities(ids, _standardised(dense))
        rows = EncodedRows(
            labels=(chance < probabilities).astype(np.uint8),
            dense=dense,
            ids=ids.astype(np.int32),
        )
        return rows, probabilities

    def _draw(self, rng: np.random.Generator) -> tuple[Ids, NDArray[np.float32]]:
        """Return ids (_BLOCK_ROWS, 26) and dense values (_BLOCK_ROWS, 13) of a whole block."""
        ids = np.empty((_BLOCK_ROWS, len(self.cardinalities)), np.int64)
        for f, n in enumerate(self.cardinalities):
            ids[:, f] = _power_law(rng.random(_BLOCK_ROWS), n, self.zipf_exponent)
        counts = np.floor(np.exp(rng.standard_normal((_BLOCK_ROWS, NUM_DENSE)) * 1.5 + 1.0))
        return ids, np.log1p(counts).astype(np.float32)

    def _planted_model(self) -> PlantedModel:
        rng = np.random.default_rng([self.seed, 0, _SPLIT_KEYS["pilot"]])
        ids, dense = self._draw(rng)
        num_features = len(self.cardinalities)
        # The smaller tables interact: their pairs of ids occur often enough to be learned.
        small = np.argsort(self.cardinalities, kind="stable")[: 2 * _NUM_PAIRS]
        chosen = np.random.default_rng([self.seed, 2]).permutation(small)
        pairs = chosen.reshape(_NUM_PAIRS, 2).tolist()
        return PlantedModel(
            num_features=num_features,
            num_dense=NUM_DENSE,
            pairs=tuple((int(f), int(g)) for f, g in pairs),
            seed=self.seed,
            logit_std=self.logit_std,
            positive_rate=self.positive_rate,
            pilot=(ids, _standardised(dense)),
        )


def _standardised(dense: NDArray[np.float32]) -> Floats:
    """Return dense values shifted and scaled to about mean 0 and deviation 1."""
    return (dense.astype(np.float64) - 1.4) / 1.0


def _power_law(uniform: Floats, num_ids: int, exponent: float) -> Ids:
    """Return ranks in [0, num_ids) with density x ** -exponent on [1, num_ids + 1)."""
    limit = num_ids + 1.0
    if abs(exponent - 1.0) < 1e-9:
        x = limit**uniform
    else:
        power = 1.0 - exponent
        x = (1.0 + uniform * (limit**power - 1.0)) ** (1.0 / power)
    return np.clip(np.floor(x).astype(np.int64) - 1, 0, num_ids - 1)
