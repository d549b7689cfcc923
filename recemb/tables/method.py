"""A method: one way to store tables, and how tables stored that way are trained."""

import abc
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ClassVar, Literal, Protocol, TypeVar

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.tables import Tables

TablesT = TypeVar("TablesT", bound=Tables)

IdCounts = Mapping[str, Tensor]
"""How often the training split has each id of a feature: (num_embeddings,) int64 by feature."""


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How much memory tables may take: a ratio of the uncompressed float32 bytes, or bytes.

    Attributes:
        ratio: of the full bytes, above 0; or None.
        num_bytes: bytes; or None.
        of: whose memory is counted: what serving needs, or what training holds.

    Raises:
        ValueError: unless exactly one of `ratio` and `num_bytes` is given and positive.
    """

    ratio: float | None = None
    num_bytes: int | None = None
    of: Literal["serve", "train"] = "serve"

    def __post_init__(self) -> None:
        if (self.ratio is None) == (self.num_bytes is None):
            raise ValueError(
                f"Budget: give exactly one of ratio and num_bytes, got ratio={self.ratio} and "
                f"num_bytes={self.num_bytes}"
            )
        value = self.num_bytes if self.ratio is None else self.ratio
        if value is not None and not value > 0:
            raise ValueError(f"Budget: ratio or num_bytes must be positive, got {value}")
        if self.of not in ("serve", "train"):
            raise ValueError(f"Budget: of must be serve or train, got '{self.of}'")

    def allowed_bytes(self, specs: Sequence[TableSpec]) -> int:
        """Return the bytes that tables for `specs` may take.

        Raises:
            ValueError: if this is a ratio, and a table without a bound on its ids has no full size.
        """
        if self.num_bytes is not None:
            return self.num_bytes
        assert self.ratio is not None
        if unbounded := [spec.name for spec in specs if spec.num_ids is None]:
            raise ValueError(
                f"Budget: tables {unbounded} take any id, so there is no full size to take a ratio "
                "of; give num_bytes"
            )
        return int(self.ratio * sum(spec.full_bytes for spec in specs))

    def used_bytes(self, storage: Storage) -> int:
        """Return the bytes of `storage` that count against this budget."""
        return storage.serve_bytes if self.of == "serve" else storage.train_bytes

    def require(self, num_bytes: int, specs: Sequence[TableSpec], *, owner: str) -> None:
        """Check that the budget allows `num_bytes`, the least that `owner` can do with.

        Raises:
            ValueError: if it does not.
        """
        allowed = self.allowed_bytes(specs)
        if num_bytes > allowed:
            full = sum(spec.full_bytes for spec in specs)
            ratio = f" (ratio {num_bytes / full:.5f})" if full else ""
            raise ValueError(
                f"{owner}: the budget allows {allowed:,} bytes, but the least is "
                f"{num_bytes:,}{ratio}; raise the budget"
            )


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a method would build within a budget, before anything is allocated.

    Attributes:
        storage: the exact bytes of what `build` would make; of the smallest that the method can
            make, if the plan is infeasible.
        budget: what was asked for; None for no limit.
        is_feasible: whether `storage` keeps the budget.
        parameters: the hyper-parameters that were chosen, plain JSON types.
    """

    storage: Storage
    budget: Budget | None
    is_feasible: bool
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        storage: Storage,
        specs: Sequence[TableSpec],
        budget: Budget | None,
        parameters: Mapping[str, Any] | None = None,
    ) -> "Plan":
        """Return the plan of tables for `specs`, feasible if `storage` keeps the budget."""
        fits = budget is None or budget.used_bytes(storage) <= budget.allowed_bytes(specs)
        return cls(storage=storage, budget=budget, is_feasible=fits, parameters=parameters or {})

    @property
    def ratio(self) -> float:
        """Return the realised bytes, as the budget counts them, over the full bytes.

        NaN where no table has a full size.
        """
        used = (Budget(ratio=1) if self.budget is None else self.budget).used_bytes(self.storage)
        return used / self.storage.full_bytes if self.storage.full_bytes else math.nan

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON types."""
        return {
            "is_feasible": self.is_feasible,
            "ratio": self.ratio,
            "bytes": self.storage.to_dict(),
            "parameters": dict(self.parameters),
        }


class BuildOn(Protocol):
    """Makes tables on a device."""

    def __call__(self, *, device: torch.device) -> Tables:
        """Return them."""
        ...


class Context(Protocol):
    """All that a method's recipe may ask of the trainer."""

    @property
    def specs(self) -> Sequence[TableSpec]:
        """Return the tables that the model needs."""
        ...

    @property
    def id_counts(self) -> IdCounts:
        """Return how often the training split has each id."""
        ...

    @property
    def budget(self) -> Budget | None:
        """Return what the tables may take; None for no limit."""
        ...

    @property
    def optimizer(self) -> TableOptimizer:
        """Return how rows are to be updated."""
        ...

    @property
    def seed(self) -> int:
        """Return the seed of everything random."""
        ...

    @property
    def device(self) -> torch.device:
        """Return the device to train on."""
        ...

    def shared(self, build: BuildOn) -> Tables:
        """Return untrained tables, of which each of several processes holds its part.

        For the tables of a method's `shared_stages`.

        Args:
            build: makes them on a device: on the meta device first, where there are several.
        """
        ...

    def fit(
        self, tables: Tables, *, stage: str, recipe: Recipe | None = None
    ) -> Mapping[str, float]:
        """Train `tables` and a ranking model; return the validation metrics.

        Afterwards `tables` hold the state of the best evaluation.

        Args:
            tables: what to train.
            stage: names the stage in logs and checkpoints; a stage that was completed before an
                interruption is loaded, not trained again.
            recipe: how the stage differs from an ordinary fit.
        """
        ...

    def once(self, name: str, compute: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """Return what `compute` returns, computed once in a run, whatever interrupts it.

        Args:
            name: names it in the checkpoints, unique within the method.
            compute: returns tensors and plain values.
        """
        ...

    def evaluate(self, tables: Tables) -> Mapping[str, float]:
        """Return the validation metrics of `tables` with the current ranking model."""
        ...

    def validation_batch(self, position: int) -> Batch:
        """Return the batch at `position`, from 0, of an endless, shuffled pass over validation."""
        ...

    def loss(self, tables: Tables, batch: Batch) -> float:
        """Return the mean log loss of a batch with the current model, in evaluation mode."""
        ...


class Method(abc.ABC):
    """One way to store tables; a subclass's constructor is its YAML.

    A subclass is one file: what its tables compute, and, where a single fit is not enough, how they
    are trained.

    What the class says of itself, for those that hold it to its promises:

    Attributes:
        stages: names of the fits that `run` makes, in order.
        has_gradients: whether an update is that of the dense gradient; not where values are
            integers.
        trains_as_served: whether vectors in training are those that serving gives; not where they
            depend on the batch's other ids, or where parts of them are drawn.
        starts_as_full: whether initial vectors have the standard deviation of a full table's.
        why_unshared: why several processes cannot share the training, where `run` is not the usual
            one and there are no `shared_stages`.
    """

    stages: Sequence[str] = ("train",)
    has_gradients: ClassVar[bool] = True
    trains_as_served: ClassVar[bool] = True
    starts_as_full: ClassVar[bool] = True
    why_unshared: ClassVar[str] = "its training looks at whole tables, which no process has"

    @abc.abstractmethod
    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating nothing.

        Args:
            specs: the tables.
            stats: how often the training split has each id; may be empty if the method does not
                need it.
            budget: what they may take; None for no limit.
        """

    @abc.abstractmethod
    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> Tables:
        """Return untrained tables.

        Args:
            specs: the tables.
            stats: as for `plan`.
            budget: as for `plan`.
            optimizer: how rows are updated in the backward pass; None leaves it to torch.optim.
            seed: of the initial weights.
            device: where the tables live.
        """

    def run(self, ctx: Context) -> Tables:
        """Return trained tables: build them, then fit once.

        A method of several stages overrides this with ordinary code.
        """
        tables = ctx.shared(partial(built_for, ctx, self.build))
        ctx.fit(tables, stage="train")
        return tables

    def shared_stages(self) -> Sequence[str]:
        """Return the stages that several processes can share, in order.

        All of the usual `run`. A method with another one names those, at its end, whose tables
        `ctx.shared` makes; the stages before them are finished by one process.
        """
        return self.stages if type(self).run is Method.run else ()

    def feasible_plan(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Plan:
        """Return what `plan` does.

        Raises:
            ValueError: if it does not keep the budget.
        """
        plan = self.plan(specs, stats, budget)
        if budget is not None:
            budget.require(budget.used_bytes(plan.storage), specs, owner=type(self).__name__)
        return plan


def built_for(
    ctx: Context, build: Callable[..., TablesT], *, device: torch.device | None = None
) -> TablesT:
    """Return what a method's `build` makes of that which a recipe is asked for.

    Args:
        ctx: what is asked for.
        build: the method's.
        device: where to; None for that of `ctx`.
    """
    return build(
        ctx.specs,
        ctx.id_counts,
        ctx.budget,
        optimizer=ctx.optimizer,
        seed=ctx.seed,
        device=ctx.device if device is None else device,
    )
