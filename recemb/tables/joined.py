"""Tables of several methods, side by side.

Shapes: `B` examples, `N` ids, `D` embedding_dim.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.tables.row_source import merge_bytes
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.tables import Share, Tables


class JoinedTables(Tables):
    """Tables, each of which belongs to one of several parts.

    A part prepares the ids that it reads by itself. In a state_dict its tensors are
    `parts.<part>.<name in the part>`.

    Args:
        specs: all tables, in configured order.
        parts: tables by name; each of `specs` is in one of them.

    Raises:
        ValueError: if a table is in no part or in several, or a part has others.
    """

    def __init__(self, specs: Sequence[TableSpec], parts: Mapping[str, Tables]) -> None:
        super().__init__(specs)
        self.parts = nn.ModuleDict(parts)
        held = [spec for part in parts.values() for spec in part.specs]
        if sorted(s.name for s in held) != sorted(s.name for s in specs):
            raise ValueError(
                f"JoinedTables: the parts hold {[s.name for s in held]}, but the tables are "
                f"{[s.name for s in specs]}; each must be in one part"
            )
        places = {
            (spec.name, feature): (name, key)
            for name, part in parts.items()
            for key, (spec, feature) in part.outputs.items()
        }
        self._place = {key: places[spec.name, f] for key, (spec, f) in self.outputs.items()}
        self.embedding_dims = {key: self._width(key) for key in self.keys}
        self.sequence_dims = {key: self._width(key) for key in self.sequence_keys}

    def part(self, name: str) -> Tables:
        """Return a part."""
        found = self.parts[name]
        assert isinstance(found, Tables)
        return found

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example, contiguous (B, sum of D).

        Raises:
            ValueError: if a feature is missing, or an id is out of range and its part's policy is
                to raise.
        """
        read = {self._place[key][0] for key in self.keys}
        found = {name: self.part(name)(features).to_dict() for name in self.parts if name in read}
        values = [found[name][key] for name, key in map(self._place.__getitem__, self.keys)]
        return KeyedTensor(
            keys=list(self.keys),
            length_per_key=list(self.embedding_dims.values()),
            values=torch.cat(values, dim=1) if values else torch.empty(features.stride(), 0),
        )

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return, for each of `sequence_keys`, the vectors (N, D) of all its ids, not pooled.

        Raises:
            ValueError: as `forward`.
        """
        found = {name: self.part(name).sequences(features) for name in self.parts}
        places = ((key, *self._place[key]) for key in self.sequence_keys)
        return {key: found[name][its] for key, name, its in places}

    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,), each in [0, num_embeddings).

        Raises:
            ValueError: on an unknown key or an id out of range.
        """
        if key not in self._place:
            raise ValueError(f"tables: there is no key '{key}'; the keys are {list(self.outputs)}")
        name, its = self._place[key]
        return self.part(name).rows(its, ids)

    def stored_vectors(self, key: str) -> Tensor | None:
        """Return the table whose row `i` is the vector of id `i`, or None; see `Tables`."""
        name, its = self._place[key]
        return self.part(name).stored_vectors(its)

    def storage(self) -> Storage:
        """Return the exact bytes of all parts together."""
        return joined_storage([self.part(name).storage() for name in self.parts])

    def identity(self) -> dict[str, Any]:
        """Return what a state_dict belongs to: each part's own, by its name."""
        parts = {name: self.part(name).identity() for name in self.parts}
        return {**super().identity(), "joined": parts}

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the trainer's dense optimizer must update."""
        return [p for name in self.parts for p in self.part(name).dense_parameters()]

    def penalty(self) -> Tensor:
        """Return the sum of the parts' terms of the loss, a scalar."""
        return torch.stack([self.part(name).penalty() for name in self.parts]).sum()

    def why_not_sharded(self) -> str | None:
        """Return why several processes cannot share these tables, or None if they can."""
        reasons = ((name, self.part(name).why_not_sharded()) for name in self.parts)
        return next((f"of the part '{name}', {why}" for name, why in reasons if why), None)

    def sharded(self, share: Share) -> Tables:
        """Return these tables made anew for one of several ranks; see `Tables`."""
        return JoinedTables(
            self.specs, {name: self.part(name).sharded(share) for name in self.parts}
        )

    def freeze(self) -> "JoinedTables":
        """Return the serving form of every part."""
        return JoinedTables(
            self.specs, {name: self.part(name).freeze() for name in self.parts}
        ).eval()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next update on.

        Raises:
            ValueError: if it is negative, or a part has no optimizer of its own.
        """
        for name in self.parts:
            self.part(name).set_learning_rate(learning_rate)

    def defer_updates(self, flag: bool) -> None:
        """Collect gradients instead of updating, while `flag` is True; see `Tables`."""
        for name in self.parts:
            self.part(name).defer_updates(flag)

    def _width(self, key: str) -> int:
        name, its = self._place[key]
        part = self.part(name)
        return {**part.embedding_dims, **part.sequence_dims}[its]


def joined_storage(parts: Sequence[Storage]) -> Storage:
    """Return the bytes of several tables together."""
    return Storage(
        full_bytes=sum(part.full_bytes for part in parts),
        serve=merge_bytes([part.serve for part in parts]),
        train=merge_bytes([part.train for part in parts]),
    )
