"""A method for each role: one for attention tables, one for representation tables, one for others.

Sequence models that keep the two apart (DARE, TWIN-4E) search by attention vectors and sum
representation vectors. The search reads every behaviour and ranks; the sum reads few and is learned
from. So the two may be stored in different ways, with a budget for each.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch

from recemb.ids.hashing import hash_seed
from recemb.methods.full import Full
from recemb.tables.joined import JoinedTables, joined_storage
from recemb.tables.method import Budget, IdCounts, Method, Plan
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec
from recemb.tables.tables import Tables

Part = Literal["attention", "representation", "others"]

_ROLES: tuple[Part, ...] = ("attention", "representation")


class PerRole(Method):
    """Tables of different methods for different roles.

    A table's role is the end of its name: sequence models call theirs COLUMN.attention and
    COLUMN.representation. All other tables are "others".

    Args:
        attention: stores attention tables; None for full ones.
        representation: stores representation tables; likewise.
        others: stores all other tables; likewise.
        attention_budget: bytes of the attention tables over those of full ones; None leaves them a
            share of the overall budget.
        representation_budget: likewise, of representation tables.
        init_std: of full tables, as in `Full`.

    The overall budget is for all tables. What tables with a budget of their own take, and what full
    ones do, is taken off; the others share the rest, each as much of its full size.

    Raises:
        ValueError: if a method trains in stages of its own, for there is one fit for all.
    """

    def __init__(
        self,
        *,
        attention: Method | None = None,
        representation: Method | None = None,
        others: Method | None = None,
        attention_budget: float | None = None,
        representation_budget: float | None = None,
        init_std: float | None = None,
    ) -> None:
        self.init_std = init_std
        self.given: dict[Part, Method | None] = {
            "attention": attention,
            "representation": representation,
            "others": others,
        }
        self.budgets: dict[Part, Budget | None] = {
            "attention": None if attention_budget is None else Budget(ratio=attention_budget),
            "representation": (
                None if representation_budget is None else Budget(ratio=representation_budget)
            ),
            "others": None,
        }
        for part, method in self.given.items():
            if method is not None and type(method).run is not Method.run:
                raise ValueError(
                    f"PerRole: {type(method).__name__}, for {part}, has a training of its own, but "
                    "all parts are trained in one fit; choose a method without one, such as int8, "
                    "unified, compo_emb, tt_rec, or full"
                )

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return the parts' plans as one; feasible if each part keeps what is left to it.

        Raises:
            ValueError: if there is a method for a role that no table has.
        """
        plans = self._plans(specs, stats, budget)
        whole = Plan.of(
            joined_storage([plan.storage for plan in plans.values()]),
            specs,
            budget,
            {part: dict(plan.parameters) for part, plan in plans.items()},
        )
        if whole.is_feasible and not all(plan.is_feasible for plan in plans.values()):
            return Plan(
                storage=whole.storage,
                budget=budget,
                is_feasible=False,
                parameters=whole.parameters,
            )
        return whole

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
        """Return untrained tables; those of the one method alone where all tables are one part.

        Raises:
            ValueError: if the budget is below the least that the methods need, or there is a method
                for a role that no table has.
        """
        self.feasible_plan(specs, stats, budget)
        plans = self._plans(specs, stats, budget)
        parts: dict[str, Tables] = {
            part: self._method(part).build(
                its,
                stats,
                plans[part].budget,
                optimizer=optimizer,
                # With one seed both roles of an item would begin with the same vector.
                seed=hash_seed(seed, part),
                device=device,
            )
            for part, its in _by_part(specs).items()
        }
        return next(iter(parts.values())) if len(parts) == 1 else JoinedTables(specs, parts)

    def _method(self, part: Part) -> Method:
        given = self.given[part]
        return Full(init_std=self.init_std) if given is None else given

    def _plans(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> dict[Part, Plan]:
        """Return the plan of each part, which says its budget."""
        groups = _by_part(specs)
        for part, method in self.given.items():
            if method is not None and part not in groups:
                raise ValueError(
                    f"PerRole: there is a method for {part}, but among the tables "
                    f"{[spec.name for spec in specs]} is none of them; choose a model that has "
                    "some (dare, twin_4e), or leave the method out"
                )
        plans: dict[Part, Plan] = {}
        sharing = {
            part: its
            for part, its in groups.items()
            if self.budgets[part] is None and self.given[part] is not None and budget is not None
        }
        for part, its in groups.items():
            if part not in sharing:
                plans[part] = self._method(part).plan(its, stats, self.budgets[part])
        for part, share in _shares(sharing, plans, specs, budget).items():
            plans[part] = self._method(part).plan(sharing[part], stats, share)
        return {part: plans[part] for part in groups}


def _by_part(specs: Sequence[TableSpec]) -> dict[Part, list[TableSpec]]:
    """Return the tables of each part that has some."""
    parts: tuple[Part, ...] = (*_ROLES, "others")
    found = {part: [spec for spec in specs if _part_of(spec) == part] for part in parts}
    return {part: its for part, its in found.items() if its}


def _part_of(spec: TableSpec) -> Part:
    for role in _ROLES:
        if spec.name.endswith(f".{role}"):
            return role
    return "others"


def _shares(
    sharing: Mapping[Part, Sequence[TableSpec]],
    plans: Mapping[Part, Plan],
    specs: Sequence[TableSpec],
    budget: Budget | None,
) -> dict[Part, Budget]:
    """Return what is left of the budget to each part that has none of its own."""
    if budget is None or not sharing:
        return {}
    taken = sum(budget.used_bytes(plan.storage) for plan in plans.values())
    left = budget.allowed_bytes(specs) - taken
    full = {part: sum(spec.full_bytes for spec in its) for part, its in sharing.items()}
    whole = sum(full.values())
    return {
        part: Budget(num_bytes=max(1, left * full[part] // whole), of=budget.of) for part in sharing
    }
