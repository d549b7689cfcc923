"""Tables that serve as integers of a few bits, and the methods that make them."""

import abc
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from recemb.methods.quantised_rows import QuantisedForm, QuantisedRows
from recemb.tables.blueprint import Blueprint
from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.method import Budget, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.row_source import merge_bytes
from recemb.tables.spec import TableSpec, refuse_any_id
from recemb.tables.storage import Storage
from recemb.tables.transform import RowTransform

MOST_BITS, LEAST_BITS = 8, 2


class QuantisedTables(PlannedTables):
    """Tables that serve as integers, whatever they are in training.

    Args:
        specs: the tables.
        plan: one row for each id.
        forms: the serving form of tables, by name; those without one stay as they are.
        optimizer: how rows are updated.
        initial: how they are drawn.
        transform: makes what happens to the rows of a group.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        plan: LookupPlan,
        *,
        forms: Mapping[str, QuantisedForm],
        optimizer: TableOptimizer | None,
        initial: Mapping[str, Initial | Tensor],
        transform: Callable[[Group], RowTransform | None],
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(
            specs,
            plan,
            optimizer=optimizer,
            initial=initial,
            transform=transform,
            seed=seed,
            device=device,
        )
        self.forms = dict(forms)

    @abc.abstractmethod
    def quantised(self, name: str) -> QuantisedRows:
        """Return the serving form of a table."""

    def storage(self) -> Storage:
        """Return the bytes of integers and scales in serving, and of what training holds."""
        train = super().storage()
        plain = sum(spec.full_bytes for spec in self.specs if spec.name not in self.forms)
        parts = [{"weights": plain}, *(form.parts() for form in self.forms.values())]
        return Storage(full_bytes=train.full_bytes, serve=merge_bytes(parts), train=train.train)

    def freeze(self) -> ComputedTables:
        """Return the integers, which give bit-equal vectors, packed."""
        plain = [spec for spec in self.specs if spec.name not in self.forms]
        planned = None
        if plain:
            weights = {spec.name: self.table(spec.name).detach() for spec in plain}
            made = Blueprint(plan=full_plan(plain), initial=weights)
            device = weights[plain[0].name].device
            bounds = self._bounds.policy
            tables = made.tables(plain, optimizer=None, seed=0, device=device, bounds=bounds)
            planned = tables.without_training()
        return ComputedTables(
            self.specs,
            sources={name: self.quantised(name) for name in self.forms},
            source_of={name: name for name in self.forms},
            planned=planned,
            bounds=self._bounds.policy,
        ).eval()


class QuantisedMethod(Method, abc.ABC):
    """A method whose tables serve in a number of bits.

    Args:
        bits: of a value, from 2 to 8; None for the most of them that a budget holds.
        init_std: draw the initial weights from N(0, init_std); None draws them uniformly from
            +-1/sqrt(num_embeddings).

    Raises:
        ValueError: on other `bits`.
    """

    def __init__(self, *, bits: int | None, init_std: float | None) -> None:
        if bits is not None and not LEAST_BITS <= bits <= MOST_BITS:
            raise ValueError(
                f"{type(self).__name__}: bits must be from {LEAST_BITS} to {MOST_BITS} or null, "
                f"got {bits}"
            )
        self.bits = bits
        self.init_std = init_std

    @abc.abstractmethod
    def tables(
        self,
        specs: Sequence[TableSpec],
        bits: int,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> QuantisedTables:
        """Return untrained tables."""

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        refuse_any_id(specs, type(self).__name__)
        sizes = [self.bits] if self.bits is not None else range(MOST_BITS, LEAST_BITS - 1, -1)
        for bits in sizes:
            device = torch.device("meta")
            storage = self.tables(specs, bits, optimizer=None, seed=0, device=device).storage()
            plan = Plan.of(storage, specs, budget, {"bits": bits})
            if plan.is_feasible:
                break
        return plan

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> QuantisedTables:
        """Return untrained tables of the bits that `plan` says.

        Raises:
            ValueError: if the budget is below that size.
        """
        plan = self.feasible_plan(specs, stats, budget)
        bits = plan.parameters["bits"]
        return self.tables(specs, bits, optimizer=optimizer, seed=seed, device=device)

    def initial(self, specs: Sequence[TableSpec]) -> dict[str, Initial]:
        """Return how the weights are drawn."""
        if self.init_std is None:
            return {spec.name: Initial.dlrm(spec.num_embeddings) for spec in specs}
        rule = Initial(distribution="normal", spread=self.init_std)
        return {spec.name: rule for spec in specs}
