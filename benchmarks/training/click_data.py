"""Rows of a planted click model, generated once and read by every peer.

The id of a feature has Zipf-distributed popularity, P(rank r) ~ (r + 1)^-s, and ranks are scattered
over the table. Dense columns are uniform in [0, 1], as after scaling by minimum and maximum: every
peer's initial weights cope with that. The click's logit is a sum of dense terms, of one normal
weight per id, and of products of hidden values of some pairs of features, so that a ranking model
has all of it to learn.
"""

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from task import NUM_DENSE, NUM_FEATURES, Rows, sigmoid

_ZIPF_EXPONENTS = (1.05, 1.25)
_DENSE_SCALE = 0.5
_WEIGHT_SCALE = 0.22
_PAIR_SCALE = 0.5
_BIAS = -1.3
_PAIRS = tuple((2 * i, 2 * i + 1) for i in range(4))
_CHUNK = 1 << 16
_VERSION = 3
"""Raise it when the rows change, so that old ones are not read."""


@dataclass(frozen=True, kw_only=True)
class ClickData:
    """What to generate.

    Attributes:
        num_embeddings: ids per feature.
        num_train: rows to train on.
        num_test: rows held out.
        seed: of everything.
    """

    num_embeddings: int
    num_train: int
    num_test: int
    seed: int

    def folder(self, cache: Path) -> Path:
        """Return where these rows lie under `cache`."""
        digest = hashlib.sha256(json.dumps([_VERSION, asdict(self)]).encode()).hexdigest()[:12]
        return cache / "data" / f"{self.num_embeddings}-{digest}"


class Table:
    """The generated rows, memory-mapped: `num_train` to train on, then the held-out ones."""

    def __init__(self, folder: Path) -> None:
        self.facts: dict[str, Any] = json.loads((folder / "facts.json").read_text())
        self._ids = np.load(folder / "ids.npy", mmap_mode="r")
        self._dense = np.load(folder / "dense.npy", mmap_mode="r")
        self._labels = np.load(folder / "labels.npy", mmap_mode="r")

    def rows(self, start: int, stop: int) -> Rows:
        """Return copies of the rows from `start` to `stop`."""
        return Rows(
            ids=np.array(self._ids[start:stop]),
            dense=np.array(self._dense[start:stop]),
            labels=np.array(self._labels[start:stop], np.float32),
        )


def generate(data: ClickData, cache: Path) -> Path:
    """Return the folder of the rows, writing them if they are not there."""
    folder = data.folder(cache)
    if (folder / "facts.json").is_file():
        return folder
    folder.mkdir(parents=True, exist_ok=True)
    planted = _Planted(data)
    num_rows = data.num_train + data.num_test
    ids = _create(folder / "ids.npy", np.int32, (num_rows, NUM_FEATURES))
    dense = _create(folder / "dense.npy", np.float32, (num_rows, NUM_DENSE))
    labels = _create(folder / "labels.npy", np.uint8, (num_rows,))
    entropies = []
    for start in range(0, num_rows, _CHUNK):
        stop = min(start + _CHUNK, num_rows)
        part = planted.draw(stop - start)
        ids[start:stop], dense[start:stop], labels[start:stop], p = part
        entropies.append(-(p * np.log(p) + (1 - p) * np.log1p(-p)))
    test = np.concatenate(entropies)[data.num_train :]
    rate = float(labels[data.num_train :].mean())
    facts = asdict(data) | {
        "test_click_rate": rate,
        "test_logloss_of_constant": -(rate * math.log(rate) + (1 - rate) * math.log1p(-rate)),
        "test_best_logloss": float(test.mean()),
    }
    (folder / "facts.json").write_text(json.dumps(facts, indent=1))
    return folder


class _Planted:
    def __init__(self, data: ClickData) -> None:
        self._rng = np.random.default_rng([data.seed, data.num_embeddings])
        size = data.num_embeddings
        self._size = size
        self._exponents = self._rng.uniform(*_ZIPF_EXPONENTS, NUM_FEATURES)
        self._beta = self._rng.normal(0, _DENSE_SCALE, NUM_DENSE)
        self._weights = self._rng.normal(0, _WEIGHT_SCALE, (NUM_FEATURES, size)).astype("f4")
        paired = {f for pair in _PAIRS for f in pair}
        self._hidden = {f: self._rng.normal(0, 1, size).astype("f4") for f in sorted(paired)}
        self._strides = [_coprime(self._rng, size) for _ in range(NUM_FEATURES)]

    def draw(
        self, n: int
    ) -> tuple[
        npt.NDArray[np.int32],
        npt.NDArray[np.float32],
        npt.NDArray[np.uint8],
        npt.NDArray[np.float64],
    ]:
        """Return ids, dense columns, labels and click probabilities of `n` new rows."""
        dense = self._rng.random((n, NUM_DENSE), np.float32)
        ids = np.empty((n, NUM_FEATURES), np.int32)
        logit = _BIAS + (dense - 0.5) @ self._beta
        for f in range(NUM_FEATURES):
            ranks = self._ranks(f, n)
            ids[:, f] = ranks * self._strides[f] % self._size
            logit += self._weights[f, ids[:, f]]
        for f, g in _PAIRS:
            logit += _PAIR_SCALE * self._hidden[f][ids[:, f]] * self._hidden[g][ids[:, g]]
        p = sigmoid(logit)
        labels = (self._rng.random(n) < p).astype(np.uint8)
        return ids, dense, labels, p

    def _ranks(self, feature: int, n: int) -> npt.NDArray[np.int64]:
        """Return ranks by inverting the distribution function of the continuous Zipf law."""
        tail = 1 - self._exponents[feature]
        u = self._rng.random(n)
        x = (1 + u * ((self._size + 1.0) ** tail - 1)) ** (1 / tail)
        ranks: npt.NDArray[np.int64] = np.minimum(x.astype(np.int64) - 1, self._size - 1)
        return ranks


def _coprime(rng: np.random.Generator, size: int) -> int:
    while True:
        stride = int(rng.integers(size // 3 + 1, size + 1))
        if math.gcd(stride, size) == 1:
            return stride


def _create(path: Path, dtype: Any, shape: tuple[int, ...]) -> npt.NDArray[Any]:
    return np.lib.format.open_memmap(path, mode="w+", dtype=dtype, shape=shape)
