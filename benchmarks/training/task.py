"""What every peer trains: shapes, hyper-parameters, and what a peer has to offer.

Shapes: `B` examples of a batch, `F` features.
"""

import json
from dataclasses import asdict, dataclass
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

NUM_DENSE = 13
NUM_FEATURES = 26
EMBEDDING_DIM = 16
DEEPFM_UNITS = (400, 400, 400)
DLRM_BOTTOM_UNITS = (512, 256, 64)
DLRM_TOP_UNITS = (512, 256)

# Learning rates are those of recemb's default configuration, the same for every peer: Adam for
# what has a dense gradient, Adagrad for rows that are updated sparsely.
ADAM_LEARNING_RATE = 1e-3
ADAGRAD_LEARNING_RATE = 0.02
ADAGRAD_EPS = 1e-8

ModelName = Literal["deepfm", "dlrm"]
MODELS: tuple[ModelName, ...] = ("deepfm", "dlrm")

FEATURES = tuple(f"c{i}" for i in range(NUM_FEATURES))
DENSE = tuple(f"d{i}" for i in range(NUM_DENSE))


@dataclass(frozen=True, kw_only=True)
class Task:
    """A model over tables of one size.

    Attributes:
        model: which.
        num_embeddings: rows of each feature's table.
        batch_size: B.
        seed: of the peer's initial weights.
        num_threads: torch's.
        data: folder of the rows, see `click_data`.
    """

    model: ModelName
    num_embeddings: int
    batch_size: int
    seed: int
    num_threads: int
    data: str

    def to_json(self) -> str:
        """Return the task as one line."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, line: str) -> Self:
        """Return the task that `to_json` wrote."""
        return cls(**json.loads(line))


@dataclass(frozen=True, kw_only=True)
class Rows:
    """Some examples, as numpy arrays.

    Attributes:
        ids: (B, F) int32.
        dense: (B, NUM_DENSE) float32.
        labels: (B,) float32.
    """

    ids: npt.NDArray[np.int32]
    dense: npt.NDArray[np.float32]
    labels: npt.NDArray[np.float32]


class Peer(Protocol):
    """A library's model, its optimizers and its training step."""

    def batch(self, rows: Rows) -> Any:
        """Return the rows in the form that `step` takes; not timed."""

    def step(self, batch: Any) -> None:
        """Train on the batch; timed. Reads the loss, as every training loop does."""

    def probabilities(self, batch: Any) -> npt.NDArray[np.float64]:
        """Return the predicted probabilities (B,), in evaluation mode."""


def sigmoid(logits: npt.ArrayLike) -> npt.NDArray[np.float64]:
    """Return the probabilities of logits, in float64."""
    return np.exp(-np.logaddexp(0.0, -np.asarray(logits, np.float64)))
