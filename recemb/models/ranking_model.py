"""The interface of a ranking model: dense columns and embeddings to one logit per example.

Shapes: `B` examples, `F` features, `D` embedding_dim, `W` the sum of all features' widths.
"""

import abc
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedTensor

from recemb.data.batch import Batch
from recemb.data.schema import Schema
from recemb.models.click_model import ClickModel
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables


class RankingModel(ClickModel):
    """Vectors to logits; a subclass's constructor is its YAML plus `num_dense, embedding_dims`.

    Histories are features like others: the mean of their ids' vectors, from the table of the column
    that they are of.

    Class attributes:
        reads_vectors: whether the model reads a vector per feature.
        reads_first_order: whether it reads a first-order weight per feature, from tables of width 1
            that the caller makes beside the others.

    Args:
        num_dense: number of dense columns.
        embedding_dims: width of each feature's vector, in the order of the embeddings.
    """

    given: ClassVar[tuple[str, ...]] = ("num_dense", "embedding_dims")
    reads_vectors: ClassVar[bool] = True
    reads_first_order: ClassVar[bool] = False

    def __init__(self, *, num_dense: int, embedding_dims: Sequence[int]) -> None:
        super().__init__()
        self.num_dense = num_dense
        self.embedding_dims = tuple(embedding_dims)

    @classmethod
    def table_specs(
        cls, schema: Schema, *, embedding_dim: int, options: Mapping[str, Any]
    ) -> tuple[TableSpec, ...]:
        """Return one table per feature, then the first-order ones of width 1."""
        widths = []
        if cls.reads_vectors:
            widths.append(("", embedding_dim))
        if cls.reads_first_order:
            widths.append((".first_order", 1))
        histories = {
            c.name: tuple(h.name for h in schema.histories if h.of == c.name)
            for c in schema.categorical
        }
        return tuple(
            TableSpec(
                name=f"{feature.name}{suffix}",
                num_embeddings=feature.num_embeddings,
                embedding_dim=width,
                feature_names=(feature.name, *histories[feature.name]),
                pooling="mean" if histories[feature.name] else "sum",
            )
            for suffix, width in widths
            for feature in schema.categorical
        )

    @classmethod
    def for_tables(cls, schema: Schema, tables: Tables, options: Mapping[str, Any]) -> Self:
        """Return an untrained model as wide as the tables' vectors."""
        widths = list(tables.embedding_dims.values())[: len(schema.feature_names)]
        return cls(num_dense=len(schema.dense), embedding_dims=widths, **options)

    def inputs(self, batch: Batch, tables: Tables) -> tuple[Tensor, Tensor]:
        """Return the dense columns and the embeddings' values."""
        return batch.dense, tables(batch.features).values()

    def logits_of(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """Return the logits (B,)."""
        return self.from_values(*inputs)

    @property
    def num_features(self) -> int:
        """Return F."""
        return len(self.embedding_dims)

    @property
    def vectors_width(self) -> int:
        """Return W, the columns of `vectors`."""
        return sum(self.embedding_dims) if self.reads_vectors else 0

    def forward(self, dense: Tensor, embeddings: KeyedTensor) -> Tensor:
        """Return the logits (B,).

        Args:
            dense: (B, num_dense) float32.
            embeddings: first the vectors of all features, if `reads_vectors`, then their
                first-order weights, if `reads_first_order`; each block in the features' order.

        Raises:
            ValueError: if the embeddings' width is not what the model was built for.
        """
        return self.from_values(dense, embeddings.values())

    def from_values(self, dense: Tensor, values: Tensor) -> Tensor:
        """Return the logits (B,) from the embeddings' values (B, W [+ F]).

        Tensors in, tensor out, for torch.compile and torch.export.
        """
        width = self.vectors_width
        expected = width + (self.num_features if self.reads_first_order else 0)
        if values.shape[1] != expected:
            raise ValueError(
                f"{type(self).__name__}: embeddings are {values.shape[1]} wide, but the model was "
                f"built for {expected}; build it with the widths of these tables"
            )
        # One split, not two slices: the backward pass of each slice would write a full gradient.
        vectors, weights = torch.split(values, [width, expected - width], dim=1)
        return self.logits(dense, vectors, weights)

    @abc.abstractmethod
    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,).

        Args:
            dense: (B, num_dense).
            vectors: (B, W), the features' vectors side by side; (B, 0) unless `reads_vectors`.
            weights: (B, F), first-order weights; (B, 0) unless `reads_first_order`.
        """

    def equal_width(self) -> int:
        """Return D, the one width that all features share.

        Raises:
            ValueError: if they differ.
        """
        widths = set(self.embedding_dims)
        if not widths:
            raise ValueError(
                f"{type(self).__name__} multiplies vectors of features, but there is no "
                "categorical feature; add one or choose a model that reads dense columns alone "
                "(lr, dnn)"
            )
        if len(widths) != 1:
            raise ValueError(
                f"{type(self).__name__} multiplies vectors of different features, so all need one "
                f"width, but got {sorted(widths)}; choose tables of equal width or a model that "
                "only concatenates (dnn, dcn, dcnv2)"
            )
        return widths.pop()
