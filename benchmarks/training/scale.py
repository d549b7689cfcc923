"""The cost model of docs/scale.md: bytes a rank holds and moves, for 10^9 to 10^12 parameters.

    python benchmarks/training/scale.py [--width 64] [--batch-size 65536] [--features 100]

Arithmetic, no measurement: what it assumes stands in the table's heading and can be changed by the
options. benchmarks/training/sharded.py compares the same model with what processes really move.
Prints a table in Markdown.
"""

import argparse
import math
from dataclasses import dataclass

PARAMETERS = (10**9, 10**10, 10**11, 10**12)
RATIOS = (1.0, 0.1)
VALUE_BYTES, STATE_BYTES, ID_BYTES = 4, 4, 8
"""Of a value and of its gradient in float32; of a row's state in row-wise Adagrad; of an id."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """Row-wise sharded tables of one width.

    Attributes:
        parameters: values of the full tables.
        ratio: of the tables that are trained to the full ones.
        width: values of a vector.
        batch_size: examples of a step, over all ranks.
        features: ids of an example.
        rank_bytes: what a rank has for rows and their state.
    """

    parameters: int
    ratio: float
    width: int
    batch_size: int
    features: int
    rank_bytes: float

    @property
    def table_bytes(self) -> float:
        """Return the bytes of rows and state over all ranks."""
        rows = self.ratio * self.parameters / self.width
        return rows * (VALUE_BYTES * self.width + STATE_BYTES)

    @property
    def world_size(self) -> int:
        """Return the fewest ranks that hold the tables."""
        return max(1, math.ceil(self.table_bytes / self.rank_bytes))

    @property
    def asked(self) -> float:
        """Return how many rows a rank asks for in a step, all distinct."""
        return self.batch_size / self.world_size * self.features

    @property
    def moved_bytes(self) -> float:
        """Return what a rank hands to collectives in a step: ids, vectors, gradients."""
        return self.asked * (ID_BYTES + 2 * VALUE_BYTES * self.width)

    @property
    def memory_bytes(self) -> float:
        """Return what a rank's rows cost its memory: read, and in the update read and written."""
        return self.asked * 3 * (VALUE_BYTES * self.width + STATE_BYTES)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--batch-size", type=int, default=65_536)
    parser.add_argument("--features", type=int, default=100)
    parser.add_argument("--rank-bytes", type=float, default=56e9, help="70 %% of 80 GB")
    parser.add_argument("--network", type=float, default=25e9, help="bytes a second and rank")
    parser.add_argument("--memory", type=float, default=2e12, help="bytes a second and rank")
    chosen = parser.parse_args()
    print(
        f"Assumed: width {chosen.width}, float32, row-wise Adagrad, {chosen.batch_size:,} examples "
        f"of {chosen.features} ids a step, all distinct, {chosen.rank_bytes / 1e9:g} GB of tables "
        f"a rank, {chosen.network / 1e9:g} GB/s of network and {chosen.memory / 1e9:,g} GB/s of "
        "memory a rank."
    )
    print()
    print(
        "| parameters | ratio | rows and state | fewest ranks | a rank asks for | it moves | "
        "network | memory |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for parameters in PARAMETERS:
        for ratio in RATIOS:
            scale = Scale(
                parameters=parameters,
                ratio=ratio,
                width=chosen.width,
                batch_size=chosen.batch_size,
                features=chosen.features,
                rank_bytes=chosen.rank_bytes,
            )
            is_alone = scale.world_size == 1
            moved = 0.0 if is_alone else scale.moved_bytes
            print(
                f"| 10^{round(math.log10(parameters))} | {ratio:g} | "
                f"{scale.table_bytes / 1e9:,.1f} GB | {scale.world_size} | "
                f"{scale.asked:,.0f} rows | {moved / 1e6:,.0f} MB | "
                f"{1e3 * moved / chosen.network:,.1f} ms | "
                f"{1e3 * scale.memory_bytes / chosen.memory:,.1f} ms |"
            )


if __name__ == "__main__":
    main()
