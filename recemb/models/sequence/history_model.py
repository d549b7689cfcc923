"""What models of a target and the behaviours before it share: which tables they read, and how."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from recemb.data.batch import Batch
from recemb.data.schema import Schema
from recemb.models.click_model import ClickModel
from recemb.models.sequence.inputs import SequenceInputs, look_up
from recemb.models.sequence.part import Part, Sharing, parts_of, sequence_specs, without_time
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables


class HistoryModel(ClickModel):
    """A model that reads a target's vectors and those of the behaviours before it.

    Class attributes:
        sharing: which roles and sides share a table, see `recemb.models.sequence.part`.
        reads_time: whether parts that say when are read.

    Args:
        parts: what behaviours consist of, and where their vectors are.
        context_width: width of dense columns and features without a history.
    """

    given: ClassVar[tuple[str, ...]] = ("parts", "context_width")
    sharing: ClassVar[Sharing]
    reads_time: ClassVar[bool] = True

    def __init__(self, *, parts: Sequence[Part], context_width: int) -> None:
        super().__init__()
        self.parts = tuple(parts)
        self.context_width = context_width

    @classmethod
    def table_specs(
        cls, schema: Schema, *, embedding_dim: int, options: Mapping[str, Any]
    ) -> tuple[TableSpec, ...]:
        """Return the tables of behaviours and targets, and those of the other features."""
        return sequence_specs(
            schema if cls.reads_time else without_time(schema),
            sharing=cls.sharing,
            embedding_dim=embedding_dim,
            attention_dim=options.get("attention_dim"),
            representation_dim=options.get("representation_dim"),
        )

    @classmethod
    def for_tables(cls, schema: Schema, tables: Tables, options: Mapping[str, Any]) -> Self:
        """Return an untrained model for these tables."""
        width = len(schema.dense) + sum(tables.embedding_dims.values())
        read = schema if cls.reads_time else without_time(schema)
        return cls(parts=parts_of(read, tables), context_width=width, **options)

    def inputs(self, batch: Batch, tables: Tables) -> SequenceInputs:
        """Return the vectors of a batch."""
        return look_up(batch, tables, self.parts)
