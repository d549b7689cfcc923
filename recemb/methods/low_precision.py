"""INT8 and INT16: tables that are held, and trained, as integers times one step.

    row(i) = q_i * step,   q_i <- clip(floor(w / step + u)),   u uniform in [0, 1)

where w is what the optimizer makes of a row that a batch touched. There is no float32 copy:
rounding is stochastic, so that updates smaller than a step are not lost on average.

Source: low-precision training as in the VLDB 2024 study of Zhang et al. (its method 8), after Xu et
al., "Agile and Accurate CTR Prediction Model Training for Massive-Scale Online Advertising
Systems", SIGMOD 2021. Departure: random bits are a hash of step and element.
"""

from collections.abc import Sequence
from typing import Literal

from recemb.tables.blueprint import Blueprint, PlannedMethod
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.method import Budget, IdCounts
from recemb.tables.spec import TableSpec


class LowPrecision(PlannedMethod):
    """Full tables of 8- or 16-bit integers: a quarter or half of the bytes, whatever the budget.

    The optimizer's state stays float32; a row-wise one keeps it small.

    Args:
        bits: 8 or 16.
        step: what an integer is worth; the same for all tables. It bounds the weights to +-128
            steps with 8 bits. A step that is large beside the updates makes training noisy.
        init_std: of the initial vectors; None for the uniform distribution of DLRM.

    Raises:
        ValueError: on other `bits`, or a `step` that is not positive.
    """

    has_gradients = False
    starts_as_full = False  # the step is as large as the vectors

    def __init__(
        self, *, bits: Literal[8, 16] = 16, step: float = 0.01, init_std: float | None = None
    ) -> None:
        if bits not in (8, 16) or not step > 0:
            raise ValueError(
                f"LowPrecision: bits must be 8 or 16 and step positive, got {bits} and {step}"
            )
        self.bits = bits
        self.step = step
        self.init_std = init_std

    def blueprint(
        self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None
    ) -> Blueprint:
        """Return the only size there is."""
        initial = {}
        if self.init_std is not None:
            rule = Initial(distribution="uniform", spread=self.init_std * 3**0.5)
            initial = {spec.name: rule for spec in specs}
        dtype: Literal["int8", "int16"] = "int8" if self.bits == 8 else "int16"
        return Blueprint(
            plan=full_plan(specs, dtype=dtype, step=self.step),
            initial=initial,
            parameters={"bits": self.bits, "step": self.step},
        )
