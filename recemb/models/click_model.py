"""What the trainer asks of a model, whatever the model reads.

Shapes: `B` examples.
"""

import abc
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from torch import Tensor, nn

from recemb.data.batch import Batch
from recemb.data.schema import Schema
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables


class ClickModel(nn.Module, abc.ABC):
    """Batches and tables to one logit per example; a subclass's constructor is its YAML.

    A prediction has two steps: `inputs` looks vectors up, `logits_of` computes with them. The first
    belongs to the tables and runs in full precision; the second may be compiled and run in mixed
    precision.

    Class attributes:
        given: arguments of the constructor that `for_tables` gives; all others are the model's
            options.
    """

    given: ClassVar[tuple[str, ...]]

    @classmethod
    @abc.abstractmethod
    def table_specs(
        cls, schema: Schema, *, embedding_dim: int, options: Mapping[str, Any]
    ) -> tuple[TableSpec, ...]:
        """Return the tables that the model reads.

        Args:
            schema: the features.
            embedding_dim: width of vectors where the options say nothing else.
            options: the model's hyper-parameters.
        """

    @classmethod
    @abc.abstractmethod
    def for_tables(cls, schema: Schema, tables: Tables, options: Mapping[str, Any]) -> Self:
        """Return an untrained model for the vectors of these tables.

        Args:
            schema: the features.
            tables: made for `table_specs`; their vectors may have other widths.
            options: the model's hyper-parameters.
        """

    @abc.abstractmethod
    def inputs(self, batch: Batch, tables: Tables) -> Any:
        """Return what `logits_of` computes with: tensors, in tuples or dictionaries if need be.

        Raises:
            ValueError: if a feature is missing, or an id is out of range and the tables' policy is
                to raise.
        """

    @abc.abstractmethod
    def logits_of(self, inputs: Any) -> Tensor:
        """Return the logits (B,)."""

    def score(self, batch: Batch, tables: Tables) -> Tensor:
        """Return the logits (B,) of a batch; for evaluation and serving."""
        return self.logits_of(self.inputs(batch, tables))

    def loss_sum(self, inputs: Any, labels: Tensor) -> Tensor:
        """Return what training minimises, a scalar: the sum of the examples' log loss.

        Args:
            inputs: as for `logits_of`.
            labels: (B,) float32, 0 or 1.
        """
        return log_loss_sum(self.logits_of(inputs), labels)


def log_loss_sum(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the summed binary cross-entropy, in fp32 whatever the model computes in."""
    return nn.functional.binary_cross_entropy_with_logits(logits.float(), labels, reduction="sum")
