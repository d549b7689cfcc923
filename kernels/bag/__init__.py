"""The pooled lookup: ids, hashed or not, to sums or means of rows, all tables in one launch.

    out[b, s] = scale * sum over ids p of bag b of slot s's feature: weights[p] * weight[row(p, s)]

Four ops: `bag_forward` (no gradients), `bag_dense` (the gradient is a dense tensor), `bag` (the
backward pass updates the touched rows in place) and `bag_rows` (the list of lookups).

Shapes: `S` slots, `F` features, `B` bags per feature, `N` ids, `M` lookups, `R` rows, `D` width.
"""

from recemb.kernels.bag.lookup import bag_forward, bag_rows
from recemb.kernels.bag.slots import POLICIES, count_lookups, pack_slots
from recemb.kernels.bag.training import bag, bag_dense

__all__ = [
    "POLICIES",
    "bag",
    "bag_dense",
    "bag_forward",
    "bag_rows",
    "count_lookups",
    "pack_slots",
]
