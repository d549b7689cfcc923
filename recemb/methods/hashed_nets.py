"""HashedNets: every element of every row is hashed on its own, with a sign.

    row(x)[d] = g_d(x) M[h_d(x)]

Source: Chen et al., "Compressing Neural Networks with the Hashing Trick", ICML 2015, section 4.1,
for the weights of an embedding table: ROBE with chunks of one value, and an array for each table
where the paper has one for each layer.
"""

from collections.abc import Sequence

from recemb.methods.computed import ComputedMethod, Design
from recemb.methods.robe import ROBE, Scope
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec


class HashedNets(ComputedMethod):
    """As many values as the budget allows.

    Args:
        is_signed: whether elements have hashed signs, as in the paper.
        scope: "per_feature", an array for each table in proportion to its size, or "multiplexed",
            one for all.
        init_std: standard deviation of the initial values; None for the uniform distribution of
            DLRM, that of the largest table for an array that tables share.
        hash_seed: of the hash functions.

    Raises:
        ValueError: if `scope` is unknown.
    """

    def __init__(
        self,
        *,
        is_signed: bool = True,
        scope: Scope = "per_feature",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        super().__init__(init_std=init_std)
        if scope not in ("multiplexed", "per_feature"):
            raise ValueError(f"HashedNets: scope must be multiplexed or per_feature, got '{scope}'")
        self._arrays = ROBE(
            chunk_size=1,
            is_signed=is_signed,
            scope=scope,
            init_std=init_std,
            hash_seed=hash_seed,
        )

    def design(self, specs: Sequence[TableSpec], budget: Budget | None) -> Design:
        """Return the design of the longest arrays within `budget`, or of the shortest.

        Raises:
            ValueError: if an array would be longer than hashes reach.
        """
        return self._arrays.design(specs, budget)
