"""Rows of a file that bring their histories along, for models that read some.

A row names a target, and what its user did before, the oldest first, in one list for each column:

    item    category    item_history    category_history
    17      4           3;8;9           4;1;1

Lists are cut at `;` in text and list columns in Parquet. Those of one row have one length; of long
ones the most recent behaviours count. Positions are counted, as in training.

Shapes: `n` rows, `M` behaviours of all of them.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from recemb.data.assembly import batch_of
from recemb.data.batch import Batch
from recemb.data.behaviours import Behaviours
from recemb.data.column import CategoricalColumn, Columns, LabelColumn
from recemb.data.encoded import EncodedRows
from recemb.data.encoder import RowEncoder
from recemb.data.prepared import Prepared
from recemb.data.schema import History, Schema
from recemb.data.source import Chunk, OnBadLine, bad_line
from recemb.data.user_log import KeyKind, keys_file
from recemb.ids.vocabulary import Vocabulary

SEPARATOR = ";"


@dataclass(frozen=True, kw_only=True)
class RawHistories:
    """How rows with lists of earlier behaviours become examples.

    Attributes:
        schema: the model's; its encoder makes one-hot features of the columns that are not
            positions, and bags of the lists.
        max_history: the most recent behaviours that count.
    """

    schema: Schema
    max_history: int

    def whole(self, chunk: Chunk, on_bad_line: OnBadLine) -> Chunk:
        """Return the rows whose lists have one length.

        Raises:
            ValueError: at the first other row, unless such rows are to be skipped.
        """
        names = [h.name for h in stored(self.schema)]
        lengths = np.stack([_lengths(chunk.table, name) for name in names])
        is_bad = (lengths != lengths[0]).any(axis=0)
        if not is_bad.any():
            return chunk
        if on_bad_line == "raise":
            row = int(np.flatnonzero(is_bad)[0])
            found = ", ".join(
                f"{n} values in '{name}'" for n, name in zip(lengths[:, row], names, strict=True)
            )
            raise bad_line(
                chunk.file,
                int(chunk.lines[row]),
                f"the histories have {found}; give as many in each",
            )
        return chunk.keep(~is_bad)

    def batch(self, rows: EncodedRows) -> Batch:
        """Return rows, as the flat encoder makes them, as a batch."""
        one_hot = [c.name for c in self.schema.categorical if not c.is_multi_hot]
        counted = {h.of for h in self.schema.histories if h.is_position}
        ids = np.zeros((len(rows), len(one_hot)), np.int32)
        # The target's position is 0.
        ids[:, [j for j, name in enumerate(one_hot) if name not in counted]] = rows.ids
        histories = stored(self.schema)
        bags = rows.bags[len(rows.bags) - len(histories) :]
        lengths = bags[0].lengths
        ends = np.cumsum(lengths)
        spans = np.stack([ends - np.minimum(lengths, self.max_history), ends], axis=1)
        columns = {h.name: bag.values for h, bag in zip(histories, bags, strict=True)}
        whole = replace(rows, ids=ids, bags=rows.bags[: -len(histories)], spans=spans)
        return batch_of(whole, self.schema, Behaviours(columns, self.schema))


def stored(schema: Schema) -> list[History]:
    """Return the histories that are not counted."""
    return [h for h in schema.histories if not h.is_position]


def shared_vocabularies(
    schema: Schema, vocabularies: Mapping[str, Vocabulary]
) -> dict[str, Vocabulary]:
    """Return the vocabularies of features, and for each history that of the column it is of."""
    shared = {h.name: vocabularies[h.of] for h in stored(schema) if h.of in vocabularies}
    return {**vocabularies, **shared}


def history_encoder(prepared: Prepared) -> RowEncoder:
    """Return the encoder of the columns and lists of a prepared set with histories.

    Raises:
        ValueError: if it was prepared before such sets said how.
    """
    if "kinds" not in prepared.manifest:
        raise ValueError(
            f"prepared data: {prepared.folder} does not say how its values were encoded; prepare "
            "it again with overwrite=true, and train again"
        )
    kinds: Mapping[str, KeyKind] = prepared.manifest["kinds"]
    schema = prepared.schema
    found = {name: Vocabulary.load(keys_file(prepared.folder, name)) for name in kinds}
    one_hot = [
        CategoricalColumn(name=c.name, kind=kinds[c.name], missing="value")
        for c in schema.categorical
        if c.name in kinds
    ]
    lists = [
        CategoricalColumn(
            name=h.name,
            kind=kinds[h.of],
            missing="value",
            is_multi_hot=True,
            separator=SEPARATOR,
        )
        for h in stored(schema)
    ]
    columns = Columns(label=LabelColumn(name=schema.label), categorical=(*one_hot, *lists))
    vocabularies = shared_vocabularies(schema, found)
    return RowEncoder(columns, vocabularies=vocabularies, moments={}, seed=0)


def _lengths(table: pa.Table, name: str) -> NDArray[np.int64]:
    lengths = pc.list_value_length(table.column(name).combine_chunks())
    found: NDArray[np.int64] = lengths.to_numpy(zero_copy_only=False).astype(np.int64)
    return found
