"""Rows in memory: name, shape and type of the tables that a plan's lookups read."""

from dataclasses import dataclass
from typing import Literal, get_args

from recemb.tables.spec import ANY_ID

DType = Literal["float32", "float16", "bfloat16", "int16", "int8", "uint8"]


@dataclass(frozen=True, kw_only=True)
class PhysicalTable:
    """Rows in memory.

    Attributes:
        name: unique; names its tensors in a checkpoint.
        num_rows: number of rows.
        width: values in a row.
        dtype: of a value. Integers without a step are not trained, and need a row program that
            dequantises.
        step: what an int8 or int16 is multiplied by; such tables are trained as they are, by
            stochastic rounding.

    Raises:
        ValueError: on a size below 1, an unknown dtype or a wrong step.
    """

    name: str
    num_rows: int
    width: int
    dtype: DType = "float32"
    step: float | None = None

    def __post_init__(self) -> None:
        if self.num_rows < 1 or self.width < 1:
            raise ValueError(
                f"physical table '{self.name}': num_rows and width must be at least 1, got "
                f"{self.num_rows} and {self.width}"
            )
        if self.num_rows >= ANY_ID:
            raise ValueError(
                f"physical table '{self.name}': its ids have no bound, so none can have a row of "
                "its own; choose a method that hashes, such as unified or hash"
            )
        if self.dtype not in get_args(DType):
            raise ValueError(
                f"physical table '{self.name}': dtype must be one of "
                f"{', '.join(get_args(DType))}, got '{self.dtype}'"
            )
        if self.step is not None and (self.dtype not in ("int8", "int16") or not self.step > 0):
            raise ValueError(
                f"physical table '{self.name}': a step is positive, and for int8 or int16, got "
                f"{self.step} and {self.dtype}"
            )

    @property
    def is_trained(self) -> bool:
        """Return whether its values are floating-point numbers, or multiples of a step."""
        return "int" not in self.dtype or self.step is not None
