"""What OptEmbed's claims compare: its variants, and tables of full and of random widths."""

import dataclasses
import itertools
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch

from recemb.methods.optembed import OptEmbed, Supernet
from recemb.tables.method import Context, Method
from recemb.tables.planned import PlannedTables

WIDTH = 16
THRESHOLDS = {"learning_rate": 1e-2, "alpha": 1e-2}
EVOLUTION = {"generations": 8}
DECAYS = (0.0, 1e-4, 1e-3)
RATES = ((1e-4, 1e-4), (1e-2, 1e-4), (1e-2, 1e-2))
"""Learning rate and alpha of thresholds."""
MAX_EPOCHS = 8
FULL = "full: rows and widths"


class GivenWidths(OptEmbed):
    """Tables of widths that are given, trained once, from OptEmbed's initial weights."""

    stages = ("retrain",)

    def __init__(self, widths_of: Callable[[int, int], list[int]]) -> None:
        super().__init__(prune_rows=False)
        self.widths_of = widths_of

    def run(self, ctx: Context) -> PlannedTables:
        """Return trained tables."""
        named: dict[str, Any] = {"optimizer": ctx.optimizer, "seed": ctx.seed, "device": ctx.device}
        supernet = self.build(ctx.specs, ctx.id_counts, None, **named)
        widths = self.widths_of(len(supernet.fields), ctx.seed)
        supernet.set_widths(dict(zip(supernet.fields, widths, strict=True)))
        tables = supernet.compacted().tables(ctx.specs, **named)
        ctx.fit(tables, stage="retrain")
        return tables


class RandomWidths(OptEmbed):
    """OptEmbed whose widths are drawn instead of searched."""

    def search(self, supernet: Supernet, ctx: Context) -> dict[str, int]:
        """Return uniform widths."""
        widths = uniform_widths(len(supernet.fields), ctx.seed)
        return dict(zip(supernet.fields, widths, strict=True))


class SupernetOnly(OptEmbed):
    """OptEmbed's first stage to its last epoch, with the optimizer as it is given, compacted."""

    stages = ("supernet",)

    def run(self, ctx: Context) -> PlannedTables:
        """Return the supernet's tables, compacted."""
        supernet = self.build(
            ctx.specs, {}, None, optimizer=ctx.optimizer, seed=ctx.seed, device=ctx.device
        )
        recipe = dataclasses.replace(self._recipe(supernet), take="last", patience=MAX_EPOCHS)
        ctx.fit(supernet, stage="supernet", recipe=recipe)
        return supernet.freeze()


def full_widths(num_fields: int, seed: int) -> list[int]:
    """Return the full width of every field."""
    return [WIDTH] * num_fields


def uniform_widths(num_fields: int, seed: int) -> list[int]:
    """Return widths drawn uniformly."""
    generator = torch.Generator().manual_seed(1000 + seed)
    drawn: list[int] = torch.randint(1, WIDTH + 1, (num_fields,), generator=generator).tolist()
    return drawn


@dataclass(frozen=True)
class Variant:
    """What is trained.

    Attributes:
        method: makes the method.
        weight_decay: L2 of all rows.
        rows: which rows an update visits.
    """

    method: Callable[[], Method]
    weight_decay: float
    rows: Literal["all", "touched"] = "all"


def variants(weight_decay: float) -> dict[str, Variant]:
    """Return the comparison that the claims are about."""
    made: dict[str, Callable[[], Method]] = {
        "base": lambda: GivenWidths(full_widths),
        "E: rows": lambda: OptEmbed(search_widths=False, thresholds=THRESHOLDS),
        "D: widths": lambda: OptEmbed(prune_rows=False, evolution=EVOLUTION),
        "D, random widths": lambda: GivenWidths(uniform_widths),
        FULL: lambda: OptEmbed(thresholds=THRESHOLDS, evolution=EVOLUTION),
        "full, random widths": lambda: RandomWidths(thresholds=THRESHOLDS),
    }
    return {name: Variant(method, weight_decay) for name, method in made.items()}


def mechanism() -> dict[str, Variant]:
    """Return the settings of which the question is what they prune."""
    made = {}
    words: tuple[Literal["all", "touched"], ...] = ("all", "touched")
    for rows, decay, (rate, alpha) in itertools.product(words, DECAYS, RATES):
        name = f"{rows} rows, decay {decay:g}, rate {rate:g}, alpha {alpha:g}"
        thresholds = {"learning_rate": rate, "alpha": alpha}
        method = partial(SupernetOnly, search_widths=False, thresholds=thresholds)
        made[name] = Variant(method, decay, rows)
    return made
