"""The planted click model of the synthetic data: it knows the true click probability of every row.

    logit = bias + sum_f main_f(id_f) + sum_j weight_j * z_j + sum_(f,g) <u_f(id_f), u_g(id_g)>

over features f, standardised dense values z_j and some pairs (f, g). Every effect is drawn by
hashing (seed, feature, id), so there is no table however many ids there are. Effects of the id with
frequency rank r shrink as 1 / sqrt(1 + r / HEAD_IDS): what is rare matters little, so a model that
has seen a few million rows can come close to the best reachable AUC.

Shapes: `n` rows, `F` features, `J` dense columns.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from recemb.ids.hashing import hash_seed, mix64

Floats = NDArray[np.float64]
Ids = NDArray[np.int64]

HEAD_IDS = 20
_LATENT_WIDTH = 4


@dataclass(frozen=True, kw_only=True)
class SignalShares:
    """How much of the logit's variance each part of the planted model has; they add up to 1."""

    main: float = 0.57
    dense: float = 0.4
    pairs: float = 0.03


class PlantedModel:
    """The true click probability of rows.

    Args:
        num_features: F.
        num_dense: J.
        pairs: the pairs of features that interact.
        seed: of all effects.
        logit_std: standard deviation of the logit; the larger, the higher the best reachable AUC.
        positive_rate: mean click probability, in (0, 1).
        pilot: ids (n, F) and standardised dense values (n, J) of some rows, by which the parts are
            scaled.
        shares: of the logit's variance.
    """

    def __init__(
        self,
        *,
        num_features: int,
        num_dense: int,
        pairs: tuple[tuple[int, int], ...],
        seed: int,
        logit_std: float,
        positive_rate: float,
        pilot: tuple[Ids, Floats],
        shares: SignalShares | None = None,
    ) -> None:
        self._num_features = num_features
        self._pairs = pairs
        self._seed = seed
        rng = np.random.default_rng([seed, 1])
        self._weights: Floats = rng.standard_normal(num_dense)
        self._strengths: Floats = rng.uniform(0.5, 1.5, num_features)
        shares = shares or SignalShares()
        parts = self._parts(*pilot)
        wanted = [shares.main, shares.dense, shares.pairs]
        self._scales = [
            logit_std * np.sqrt(share) / part.std() if part.std() > 0 else 0.0
            for part, share in zip(parts, wanted, strict=True)
        ]
        self._bias = _solve_bias(self._unbiased(parts), positive_rate)

    def probabilities(self, ids: Ids, dense: Floats) -> Floats:
        """Return the click probability of each row, (n,).

        Args:
            ids: (n, F) frequency ranks from 0.
            dense: (n, J) standardised.
        """
        return _sigmoid(self._unbiased(self._parts(ids, dense)) + self._bias)

    @cached_property
    def _salts(self) -> NDArray[np.uint64]:
        seeds = [hash_seed(self._seed, f"feature {f}") for f in range(self._num_features)]
        return np.array(seeds, np.uint64) << np.uint64(32)

    def _unbiased(self, parts: tuple[Floats, Floats, Floats]) -> Floats:
        total = np.zeros_like(parts[0])
        for part, scale in zip(parts, self._scales, strict=True):
            total += part * scale
        return total

    def _parts(self, ids: Ids, dense: Floats) -> tuple[Floats, Floats, Floats]:
        """Return main effects, dense terms and interactions before scaling, each (n,)."""
        main = np.zeros(len(ids))
        latents: dict[int, Floats] = {}
        interacting = {f for pair in self._pairs for f in pair}
        for f in range(self._num_features):
            rank = np.ascontiguousarray(ids[:, f])
            draw = mix64(rank.view(np.uint64) ^ self._salts[f])
            damping = 1.0 / np.sqrt(1.0 + rank / HEAD_IDS)
            main += self._strengths[f] * damping * _uniform(draw >> np.uint64(11), 53)
            if f in interacting:
                latents[f] = self._latent(draw, damping)
        pairs = np.zeros(len(ids))
        for f, g in self._pairs:
            pairs += np.einsum("ni,ni->n", latents[f], latents[g])
        return main, dense @ self._weights, pairs

    def _latent(self, draw: NDArray[np.uint64], damping: Floats) -> Floats:
        """Return (n, 4) vectors, 16 bits of one further draw for each entry."""
        bits = mix64(draw + np.uint64(1)).view("<u2").reshape(-1, _LATENT_WIDTH)
        return _uniform(bits, 16) * damping[:, None]


def _uniform(bits: NDArray[np.generic], num_bits: int) -> Floats:
    """Return numbers in [-1, 1) from integers of `num_bits` bits."""
    numbers: Floats = bits.astype(np.float64)
    numbers *= 2.0 / 2**num_bits
    numbers -= 1.0
    return numbers


def _sigmoid(x: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-x))


def _solve_bias(logits: Floats, positive_rate: float) -> float:
    """Return the bias at which the mean probability is `positive_rate`, by bisection."""
    low, high = -50.0, 50.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (
            (middle, high) if _sigmoid(logits + middle).mean() < positive_rate else (low, middle)
        )
    return (low + high) / 2
