"""ALPT: tables that are held, and trained, as integers, with a learned step for each row.

    row(i) = q_i * step_i

An update has two passes over its batch. The first is the ordinary one; what the optimizer makes of
the rows that it touched, w', is rounded stochastically. The second reads w' rounded to nearest, and
moves nothing but the steps of those rows, by LSQ's gradient, see `FakeQuantise`, times
1 / sqrt(B D (2^(b-1) - 1)) for B examples. Then

    q_i <- clip(floor(w'_i / step_i + u)),   u uniform in [0, 1)

with the new steps. There is no float32 copy of a table.

Source: Li et al., "Adaptive Low-Precision Training for Embeddings in Click-Through Rate
Prediction", AAAI 2023, arXiv 2212.05735, and Hetu's implementation: steps of 0.01 at first, learned
by Adam at 2e-5. Departures: rows of width 1, whose step would be larger than they, stay float32;
steps keep their learning rate whatever the trainer's schedule; random bits are a hash of step and
element.
"""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from recemb.data.batch import Batch
from recemb.methods.quantised import QuantisedMethod, QuantisedTables
from recemb.methods.quantised_rows import QuantisedForm, QuantisedRows
from recemb.methods.row_steps import RowSteps
from recemb.tables.full import full_plan
from recemb.tables.gather import write_rows
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.method import Context, built_for
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.spec import TableSpec


class ALPTTables(QuantisedTables):
    """Tables of int8 with a step for each row; those whose steps would not pay stay float32.

    Args:
        specs: the tables.
        bits: of a value.
        step: of every row at first.
        step_optimizer: of the steps.
        optimizer: how rows are updated.
        initial: how vectors are drawn.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        bits: int,
        step: float,
        step_optimizer: TableOptimizer,
        optimizer: TableOptimizer | None,
        initial: Mapping[str, Initial],
        seed: int,
        device: torch.device,
    ) -> None:
        forms = {
            spec.name: QuantisedForm(
                num_rows=spec.num_embeddings,
                width=spec.embedding_dim,
                bits=bits,
                num_steps=spec.num_embeddings,
            )
            for spec in specs
        }
        forms = {s.name: forms[s.name] for s in specs if forms[s.name].num_bytes < s.full_bytes}
        plan = full_plan(specs)
        tables = [
            # A step of 1: the rows' own steps are the transform's.
            dataclasses.replace(t, dtype="int8", step=1.0) if t.name in forms else t
            for t in plan.tables
        ]

        def steps_of(group: Group) -> RowSteps | None:
            if group.step is None:
                return None
            return RowSteps(group, bits=bits, step=step, optimizer=step_optimizer)

        super().__init__(
            specs,
            dataclasses.replace(plan, tables=tuple(tables)),
            forms=forms,
            optimizer=optimizer,
            # Integers are drawn, in units of a step.
            initial={n: _scaled(i, 1 / step) if n in forms else i for n, i in initial.items()},
            transform=steps_of,
            seed=seed,
            device=device,
        )
        for steps in self.row_steps:
            store = self.engine.store_of(steps.group.tables[0].name)
            store.make_rounding = steps.rounding
            if device.type != "meta":
                # Drawn for all of int8.
                store.weight.detach().clamp_(steps.integers.low, steps.integers.high)

    @property
    def row_steps(self) -> list[RowSteps]:
        """Return the steps, group by group."""
        return [t for t in self.transforms.all() if isinstance(t, RowSteps)]

    @torch.no_grad()
    def quantised(self, name: str) -> QuantisedRows:
        """Return the serving form of a table."""
        integers = self.table(name).detach()
        (steps,) = (t for t in self.row_steps if name in [table.name for table in t.group.tables])
        place = [table.name for table in steps.group.tables].index(name)
        begin = steps.group.first_rows[place]
        return QuantisedRows.of(
            lambda first, last: integers[first:last],
            self.forms[name],
            steps=steps.steps[begin : begin + integers.shape[0]],
        )


class ALPT(QuantisedMethod):
    """Tables trained as integers with learned steps, in one fit.

    Serving takes ceil(D b / 8) + 4 bytes for a row, training D + 16, and the optimizer's state: the
    steps and Adam's moments of them are float32. An update takes two passes through the model.

    With accumulated gradients the second passes are over all batches of the update, and the steps
    are updated once.

    Args:
        bits: see `QuantisedMethod`.
        step: of every row at first.
        step_learning_rate: of the steps' Adam.
        init_std: see `QuantisedMethod`.

    Raises:
        ValueError: on a number out of its range.
    """

    has_gradients = False
    starts_as_full = False  # the step is as large as the vectors
    why_unshared = "a second pass over each batch moves a step that every row has of its own"

    def __init__(
        self,
        *,
        bits: int | None = 8,
        step: float = 0.01,
        step_learning_rate: float = 2e-5,
        init_std: float | None = None,
    ) -> None:
        super().__init__(bits=bits, init_std=init_std)
        if not step > 0 or not step_learning_rate >= 0:
            raise ValueError(
                "ALPT: step must be positive and step_learning_rate not negative, got "
                f"{step} and {step_learning_rate}"
            )
        self.step = step
        self.step_optimizer = TableOptimizer(kind="adam", learning_rate=step_learning_rate)

    def tables(
        self,
        specs: Sequence[TableSpec],
        bits: int,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> ALPTTables:
        """Return untrained tables."""
        return ALPTTables(
            specs,
            bits=bits,
            step=self.step,
            step_optimizer=self.step_optimizer,
            optimizer=optimizer,
            initial=self.initial(specs),
            seed=seed,
            device=device,
        )

    def run(self, ctx: Context) -> ALPTTables:
        """Return trained tables."""
        tables = built_for(ctx, self.build)
        assert isinstance(tables, ALPTTables)
        ctx.fit(tables, stage="train", recipe=Recipe(step=self._step(tables, ctx.device)))
        return tables

    def _step(self, tables: ALPTTables, device: torch.device) -> Step:
        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            random = _random_state(device)
            for steps in tables.row_steps:
                steps.keep()
            loss = updates.update(batches)
            with _randomly(random, device), updates.hold_model(), tables.hold_rows():
                update_steps(tables, updates, batches)
            return loss

        return step


def update_steps(tables: ALPTTables, updates: Updates, batches: Sequence[Batch]) -> None:
    """Make the second pass over the batches of an update, and round the rows anew."""
    num_examples = sum(len(batch) for batch in batches)
    found = [(steps, steps.begin_second(num_examples)) for steps in tables.row_steps]
    seconds = [(steps, second) for steps, second in found if second is not None]
    if not seconds:
        return
    leaves = [second.steps for _, second in seconds]
    totals = [torch.zeros_like(leaf, requires_grad=False) for leaf in leaves]
    for batch in batches:
        loss = updates.loss(batch) * (len(batch) / num_examples)
        grads = torch.autograd.grad(loss, leaves, materialize_grads=True)
        for total, grad in zip(totals, grads, strict=True):
            total += grad
    for (steps, second), total in zip(seconds, totals, strict=True):
        integers = steps.finish(second, total)
        weight = tables.engine.store_of(steps.group.tables[0].name).weight
        write_rows(weight, second.rows, integers)


def _scaled(rule: Initial, factor: float) -> Initial:
    return dataclasses.replace(rule, spread=rule.spread * factor, mean=rule.mean * factor)


def _random_state(device: torch.device) -> list[Tensor]:
    """Return the states of the generators that dropout draws from."""
    states = [torch.get_rng_state()]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


def _set_random_state(states: Sequence[Tensor], device: torch.device) -> None:
    torch.set_rng_state(states[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(states[1], device)


@contextlib.contextmanager
def _randomly(states: Sequence[Tensor], device: torch.device) -> Iterator[None]:
    """Within this context draw what was drawn after `states`; then go on as if nothing was."""
    now = _random_state(device)
    _set_random_state(states, device)
    try:
        yield
    finally:
        _set_random_state(now, device)
