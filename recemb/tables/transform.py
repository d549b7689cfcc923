"""A function, with parameters of its own, between the rows that are read and their combination.

Methods that learn a mask, a gate, a scale or a width are this: rows train as always, sparse and
fused, and gradients reach both the rows and the function's parameters.

Shapes: `N` rows that were read, `R` rows of a group's buffer, `D` its width, `T` its tables.
"""

import abc
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch import distributed as dist

from recemb.tables.engine import Read
from recemb.tables.initial import Initial
from recemb.tables.layout import Group, Unit


class RowTransform(nn.Module, abc.ABC):
    """What happens to the rows of a group of tables between memory and combination.

    Attributes:
        group: the tables.
        process_group: the ranks that share the tables; None for one process.

    Args:
        group: the tables.
    """

    def __init__(self, group: Group) -> None:
        super().__init__()
        self.group = group
        self.process_group: dist.ProcessGroup | None = None

    @abc.abstractmethod
    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D) after the transform.

        Args:
            vectors: (N, D) float32, as read; zero for a row that is absent.
            rows: (N,) rows of the group's buffer; -1 for absent.
            tables: (N,) int64, the table of each row, as its place in the group.
        """

    def draw(
        self,
        seed: int,
        initial: Mapping[str, Initial | Tensor],
        weights: Callable[[str], Tensor],
    ) -> None:
        """Draw the parameters that are drawn, once the rows are there; by default none.

        Args:
            seed: of the draws.
            initial: how the rows of each table were drawn, or what they are.
            weights: returns the rows (n, D) of a table of the group; no rank of several has them.
        """

    def why_not_sharded(self) -> str | None:
        """Return why ranks cannot share rows that pass through this, or None if they can.

        They can if a row's result depends on nothing but the row and parameters that the trainer's
        dense optimizer updates, and if `penalty` says on each of W ranks W times its part.
        """
        return "their rows pass through functions with parameters of their own"

    def penalty(self) -> Tensor:
        """Return the term, a scalar, that this adds to the loss."""
        return torch.zeros(())

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return the parameters that the trainer's dense optimizer updates.

        A method that updates some in a step of its own leaves them out.
        """
        return [p for p in self.parameters() if p.requires_grad]

    def table_of_row(self) -> Tensor:
        """Return the table of every row of the buffer, (R,), as its place in the group."""
        counts = torch.tensor([table.num_rows for table in self.group.tables])
        return torch.arange(len(self.group.tables)).repeat_interleave(counts)


TransformFactory = Callable[[Group], RowTransform | None]
"""Makes the transform of a group; None where rows are read as they are."""


class Transforms(nn.Module):
    """The transforms of all groups of some tables.

    Args:
        groups: the groups.
        factory: makes the transform of each; None for none at all.
    """

    def __init__(self, groups: Sequence[Group], factory: TransformFactory | None) -> None:
        super().__init__()
        made = [(group, factory(group)) for group in groups] if factory is not None else []
        self.by_group = nn.ModuleDict({g.name: t for g, t in made if t is not None})
        self._groups = list(groups)

    @property
    def composed(self) -> frozenset[int]:
        """Return the indices of the groups that have one: their rows are read one by one."""
        names = [group.name for group in self._groups]
        return frozenset(names.index(name) for name in self.by_group)

    def all(self) -> list[RowTransform]:
        """Return the transforms, group by group."""
        return [t for t in self.by_group.values() if isinstance(t, RowTransform)]

    def of(self, group: Group) -> RowTransform | None:
        """Return the transform of a group, None if it has none."""
        if group.name not in self.by_group:
            return None
        found = self.by_group[group.name]
        assert isinstance(found, RowTransform)
        return found

    def apply_to(self, read: Read, units: Sequence[Unit]) -> Read:
        """Return what a pass read, transformed."""
        if not self.by_group:
            return read
        blocks = []
        for unit, lookups, its in zip(units, read.lookups, read.blocks, strict=True):
            done = []
            for g, slots, block in zip(unit.groups, unit.slots, its, strict=True):
                transform = self.of(self._groups[g])
                if transform is not None:
                    assert lookups.sizes is not None
                    places = [t.name for t in self._groups[g].tables]
                    which = torch.tensor(
                        [places.index(slot.lookup.table) for slot in slots], device=block.device
                    )
                    sizes = torch.tensor(lookups.sizes, device=block.device)
                    tables = which.repeat_interleave(sizes, output_size=block.shape[0])
                    block = transform(block, lookups.rows, tables)
                done.append(block)
            blocks.append(done)
        return Read(read.bags, read.lookups, blocks)

    def apply_to_rows(self, table: str, vectors: Tensor, rows: Tensor) -> Tensor:
        """Return vectors (N, D) of one physical table, given their rows in it, transformed."""
        for group in self._groups:
            names = [t.name for t in group.tables]
            transform = self.of(group)
            if table in names and transform is not None:
                place = names.index(table)
                in_buffer = torch.where(rows < 0, rows, rows + group.first_rows[place])
                found: Tensor = transform(vectors, in_buffer, torch.full_like(rows, place))
                return found
        return vectors
