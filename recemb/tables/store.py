"""The memory of a group of tables: weights and optimizer state in one buffer each.

Shapes: `R` rows of the buffer, `D` its width.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from recemb.ids.hashing import hash_seed
from recemb.tables.formula import STATE_PARTS, counts_steps
from recemb.tables.layout import Group
from recemb.tables.memory import allocate
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.rounding import Grid, Rounding, RowRounding


class GroupStore(nn.Module):
    """Weights (R, D) of a group's tables, and their optimizer state.

    The tensors are no part of this module's own state_dict: `tensors` names them by table, so that
    a checkpoint does not know which tables shared a buffer.

    Attributes:
        group: the tables.
        optimizer: how rows are updated; None if autograd is to compute dense gradients, or if the
            values are integers, which nothing trains.
        step: number of updates so far.
        weight: (R, D) of the group's dtype; a parameter without an optimizer, else a buffer.
        make_rounding: makes, of a step's seed, a method's own way to round; None for the usual one.

    Args:
        group: the tables.
        optimizer: see above.
        device: where the tensors live; "meta" allocates nothing.
    """

    weight: Tensor

    def __init__(
        self, group: Group, *, optimizer: TableOptimizer | None, device: torch.device
    ) -> None:
        super().__init__()
        is_trained = group.is_trained
        self.group = group
        self.optimizer = optimizer if is_trained else None
        self.step = 0
        self.make_rounding: Callable[[int], RowRounding] | None = None
        self.dtype: torch.dtype = getattr(torch, group.dtype)
        shape = (group.num_rows, group.width)
        weight = allocate(shape, device, self.dtype)
        if optimizer is None:
            self.weight = nn.Parameter(weight, requires_grad=weight.is_floating_point())
            return
        self.register_buffer("weight", weight, persistent=False)
        if not is_trained:
            return
        for name, is_rowwise in STATE_PARTS[optimizer.kind]:
            part = allocate(shape[:1] if is_rowwise else shape, device)
            self.register_buffer(name, part, persistent=False)
        self.reset_optimizer()

    def reset_optimizer(self) -> None:
        """Set the optimizer's state to that before the first update."""
        self.step = 0
        for part in self.state.values():
            part.fill_(self._initial_state)

    def reset_rows(self, name: str, rows: Tensor) -> None:
        """Set the optimizer's state of some rows of a table to that before the first update."""
        for part in self.state.values():
            self._view(part, name)[rows] = self._initial_state

    def copy_rows(self, name: str, source: Tensor, target: Tensor) -> None:
        """Copy rows of a table, weights and optimizer's state, over others of it.

        Args:
            name: the table.
            source: (N,) rows to read.
            target: (N,) rows to overwrite, each once; all are read before one is written.
        """
        for tensor in (self.weight.detach(), *self.state.values()):
            view = self._view(tensor, name)
            view[target] = view[source].clone()

    @property
    def _initial_state(self) -> float:
        optimizer = self.optimizer
        if optimizer is None or "adagrad" not in optimizer.kind:
            return 0.0
        return optimizer.initial_accumulator

    @property
    def state(self) -> dict[str, Tensor]:
        """Return the optimizer's tensors, (R, D) or (R,), by name."""
        if self.optimizer is None:
            return {}
        return {name: self.get_buffer(name) for name, _ in STATE_PARTS[self.optimizer.kind]}

    @property
    def rounding(self) -> RowRounding | None:
        """Return how this step's values become the table's type; None if that is float32."""
        if self.dtype == torch.float32:
            return None
        seed = hash_seed(self.step, self.group.name)
        if self.make_rounding is not None:
            return self.make_rounding(seed)
        if self.group.step is not None:
            return Grid(dtype=self.dtype, step=self.group.step, seed=seed)
        return Rounding(dtype=self.dtype, seed=seed)

    def table(self, name: str) -> Tensor:
        """Return the weights (num_rows, D) of a table, a view."""
        return self._view(self.weight, name)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the name, for a state_dict, and the view of every tensor; no step counts."""
        for spec in self.group.tables:
            yield f"embedding_bags.{spec.name}.weight", self.table(spec.name)
            for part, tensor in self.state.items():
                yield f"optimizer.{spec.name}.{part}", self._view(tensor, spec.name)

    def step_names(self) -> list[str]:
        """Return the names, for a state_dict, of the tables' step counts, if there are any."""
        if self.optimizer is None:
            return []
        # The random bits of stochastic rounding are those of the step.
        if not counts_steps(self.optimizer.kind) and self.dtype == torch.float32:
            return []
        return [f"optimizer.{spec.name}.step" for spec in self.group.tables]

    def load(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        missing_keys: list[str],
        error_msgs: list[str],
    ) -> set[str]:
        """Copy this group's tensors out of a state_dict; return the names that belong to it.

        Args:
            state_dict: what `tensors` and `step_names` named, behind `prefix`.
            prefix: of the owner's names.
            missing_keys: extended by the names that are not there.
            error_msgs: extended by what does not fit.
        """
        names = set()
        for name, target in self.tensors():
            names.add(prefix + name)
            if prefix + name not in state_dict:
                missing_keys.append(prefix + name)
                continue
            source = state_dict[prefix + name]
            if source.shape != target.shape:
                error_msgs.append(
                    f"{prefix + name}: the table needs {tuple(target.shape)}, but the state has "
                    f"{tuple(source.shape)}"
                )
                continue
            target.detach().copy_(source)
        steps = {prefix + name for name in self.step_names()}
        missing_keys.extend(sorted(steps - state_dict.keys()))
        counts = {int(state_dict[name]) for name in steps & state_dict.keys()}
        if len(counts) > 1:
            error_msgs.append(
                f"tables {[s.name for s in self.group.tables]} are updated together, but the state "
                f"has different step counts {sorted(counts)}"
            )
        elif counts:
            self.step = counts.pop()
        return names | steps

    def _view(self, tensor: Tensor, name: str) -> Tensor:
        for spec, first in zip(self.group.tables, self.group.first_rows, strict=True):
            if spec.name == name:
                return tensor[first : first + spec.num_rows]
        raise AssertionError(f"no table '{name}' in this group")

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        """Save nothing: the owner names the tensors."""

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load nothing: the owner names the tensors."""
