"""Tables some of whose columns are one value for all ids.

Shapes: `n` rows of a table, `D` its width, `d` the columns that are kept, `N` ids.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from recemb.methods.sparse_rows import pack_bits, unpack_bits
from recemb.methods.stored_source import StoredSource
from recemb.tables.blueprint import Blueprint
from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.row_source import RowSource, merge_bytes
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.transform import RowTransform


@dataclass(frozen=True, kw_only=True)
class ShavedForm:
    """How many columns of a table are left.

    Attributes:
        num_rows: n.
        width: D.
        num_columns: d.
    """

    num_rows: int
    width: int
    num_columns: int

    def parts(self) -> dict[str, int]:
        """Return the bytes of the values and the defaults, and of the columns' bitmap."""
        if self.num_columns == self.width:
            return {"weights": 4 * self.num_rows * self.width}
        return {
            "weights": 4 * self.num_rows * self.num_columns,
            "defaults": 4 * (self.width - self.num_columns),
            "indices": -(-self.width // 8),
        }


class ShavedRows(StoredSource[ShavedForm]):
    """One table without its shaved columns; it serves and is not trained.

    Args:
        num_rows: n.
        width: D.
        num_columns: d.
        device: where the tensors live.
    """

    form: ClassVar[str] = "shaved"

    def __init__(
        self,
        *,
        num_rows: int,
        width: int,
        num_columns: int,
        device: torch.device | None = None,
    ) -> None:
        super().__init__(ShavedForm(num_rows=num_rows, width=width, num_columns=num_columns))
        sizes = {"values": (num_rows, num_columns), "defaults": (width - num_columns,)}
        for name, shape in sizes.items():
            self.register_buffer(name, torch.empty(shape, device=device))
        bits = torch.empty(-(-width // 8), dtype=torch.uint8, device=device)
        self.register_buffer("column_bits", bits)

    @staticmethod
    def of(weight: Tensor, kept: Tensor, defaults: Tensor) -> "ShavedRows":
        """Return a table (n, D) of which the columns `kept` (D,) stay, others being defaults."""
        made = ShavedRows(
            num_rows=weight.shape[0],
            width=weight.shape[1],
            num_columns=int(kept.sum()),
            device=weight.device,
        )
        return made.filled(
            values=weight.detach()[:, kept],
            defaults=defaults[~kept],
            column_bits=pack_bits(kept.unsqueeze(0)),
        )

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,)."""
        kept = unpack_bits(self.get_buffer("column_bits").unsqueeze(0), self.stored.width)[0]
        values, defaults = self.get_buffer("values"), self.get_buffer("defaults")
        vectors = values.new_empty(ids.numel(), self.stored.width)
        vectors[:, ~kept] = defaults
        vectors[:, kept] = values.index_select(0, ids)
        return vectors


class Shave(RowTransform):
    """Puts one value in the place of each shaved column.

    Attributes:
        kept: (T, D) bool, the columns of each table that stay; all at first.
        defaults: (T, D), what the others hold; 0 at first.
    """

    kept: Tensor
    defaults: Tensor

    def __init__(self, group: Group) -> None:
        super().__init__(group)
        shape = (len(group.tables), group.width)
        self.register_buffer("kept", torch.ones(shape, dtype=torch.bool))
        self.register_buffer("defaults", torch.zeros(shape))

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), shaved."""
        return torch.where(self.kept[tables], vectors, self.defaults[tables])


class ShavedTables(PlannedTables):
    """Full tables in training, without their shaved columns in serving.

    Args:
        specs: the tables.
        kept: the columns (D,) that stay, of each table; also what `storage` counts where there is
            no memory.
        initial: how tables are drawn.
        optimizer: how rows are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        kept: Mapping[str, Tensor],
        initial: Mapping[str, Initial],
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            specs,
            full_plan(specs),
            optimizer=optimizer,
            transform=Shave,
            initial=initial,
            seed=seed,
            device=device,
        )
        self._first_columns = {name: int(its.sum()) for name, its in kept.items()}
        self._is_planned_only = device.type == "meta"
        if not self._is_planned_only:
            self.keep(kept)

    def keep(self, kept: Mapping[str, Tensor]) -> None:
        """Keep these columns (D,) of the tables named."""
        for name, its in kept.items():
            shave, place = self._shave_of(name)
            shave.kept[place] = its.to(shave.kept.device)

    def set_defaults(self, defaults: Mapping[str, Tensor]) -> None:
        """Put these values (D,) in the place of the shaved columns of the tables named."""
        for name, its in defaults.items():
            shave, place = self._shave_of(name)
            shave.defaults[place] = its

    def kept(self, name: str) -> Tensor:
        """Return which columns (D,) of a table stay."""
        shave, place = self._shave_of(name)
        return shave.kept[place]

    def storage(self) -> Storage:
        """Return the bytes of the columns that stay, and of full tables in training."""
        full = super().storage()
        parts = []
        for spec in self.specs:
            if self._is_planned_only:
                num_columns = self._first_columns[spec.name]
            else:
                num_columns = int(self.kept(spec.name).sum())
            form = ShavedForm(
                num_rows=spec.num_embeddings, width=spec.embedding_dim, num_columns=num_columns
            )
            parts.append(form.parts())
        serve = {part: size for part, size in merge_bytes(parts).items() if size}
        return Storage(full_bytes=full.full_bytes, serve=serve, train=full.train)

    def freeze(self) -> ComputedTables:
        """Return the tables without their shaved columns, which give bit-equal vectors."""
        whole = [spec for spec in self.specs if bool(self.kept(spec.name).all())]
        sources: dict[str, RowSource] = {}
        for spec in self.specs:
            if spec not in whole:
                shave, place = self._shave_of(spec.name)
                sources[spec.name] = ShavedRows.of(
                    self.table(spec.name), shave.kept[place], shave.defaults[place]
                )
        planned = None
        if whole:
            initial = {spec.name: self.table(spec.name).detach() for spec in whole}
            planned = (
                Blueprint(plan=full_plan(whole), initial=initial)
                .tables(
                    whole, optimizer=None, seed=0, device=self._device, bounds=self._bounds.policy
                )
                .without_training()
            )
        return ComputedTables(
            self.specs,
            sources=sources,
            source_of={name: name for name in sources},
            planned=planned,
            bounds=self._bounds.policy,
        ).eval()

    def _shave_of(self, name: str) -> tuple[Shave, int]:
        """Return the transform of a table's group, and the table's place in it."""
        for shave in self.transforms.all():
            for place, table in enumerate(shave.group.tables):
                if table.name == name:
                    assert isinstance(shave, Shave)
                    return shave, place
        raise AssertionError(f"no table '{name}'")
