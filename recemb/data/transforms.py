"""Numbers to dense values, and numbers to buckets.

Shapes: `n` values; missing values are NaN on the way in.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def signed_log(values: Floats) -> Floats:
    """Return sign(x) * log(1 + |x|): log(1 + x) for counts, its mirror image for negatives."""
    return np.copysign(np.log1p(np.abs(values)), values)


def squared_log_buckets(values: Floats) -> NDArray[np.int64]:
    """Return floor(log(x)^2) for x > 2, and floor(x) - 3 up to 2, so that these stay apart.

    Missing values (NaN) give an arbitrary bucket; mask them. x is cut to +-2^53.

    Source: the winners of the Criteo Kaggle contest (Y. Juan, Y. Zhuang, W.-S. Chin, 2014), who
    turned each integer column into a category so; they kept values up to 2 as themselves.
    """
    x = np.clip(np.nan_to_num(values), -(2.0**53), 2.0**53)
    logs = np.floor(np.square(np.log(np.maximum(x, 1.0))))
    return np.where(x > 2, logs, np.floor(x) - 3).astype(np.int64)


def standardised(values: Floats, mean: float, std: float) -> Floats:
    """Return (x - mean) / std; x - mean where `std` is 0."""
    return (values - mean) / (std if std > 0 else 1.0)
