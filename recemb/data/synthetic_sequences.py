"""Behaviours with a planted attention: where each one came from is known.

With probability `copy_probability` the category of a behaviour is copied from the one `lag` places
before, the lag drawn from a geometric distribution; a share `drift_probability` of the copies moves
to another category of the same triple. Otherwise, and where there is no behaviour so far back, the
category is drawn from a background of power-law popularity. The item is drawn within its category.
So the chance that behaviour j made the target c is, up to a factor,

    r_j = P(lag = j) (  1 - drift   where c_j = c
                      | drift / 2   where c_j is another of c's triple
                      | 0           elsewhere )

which is what attention should find. Samples follow DARE's protocol, `recemb.data.user_log`.

Shapes: `U` users, `B` examples, `L` places in a history.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recemb.data.dataset import Dataset
from recemb.data.preparation import prepare_once
from recemb.data.prepared import Prepared
from recemb.data.user_log import Ints, Protocol, UserLog, write_samples

_TRIPLE = 3
_USERS_PER_PART = 4096
_EXPONENT = 1.0
_GENERATOR_VERSION = 1  # raise it with any change of the behaviours that the settings do not show


@dataclass(frozen=True, kw_only=True)
class CopyProcess:
    """Where categories come from.

    Attributes:
        num_items: in all, equally many in each category.
        num_categories: a multiple of 3: categories 3k, 3k + 1 and 3k + 2 are related.
        copy_probability: of a copy.
        mean_lag: of the geometric distribution of lags 1, 2, ...
        drift_probability: of moving inside the triple, given a copy.

    Raises:
        ValueError: on a number out of range.
    """

    num_items: int = 2400
    num_categories: int = 60
    copy_probability: float = 0.7
    mean_lag: float = 15.0
    drift_probability: float = 0.3

    def __post_init__(self) -> None:
        if self.num_categories < _TRIPLE or self.num_categories % _TRIPLE:
            raise ValueError(
                f"num_categories must be a multiple of {_TRIPLE}, got {self.num_categories}"
            )
        if self.num_items < 1 or self.num_items % self.num_categories:
            raise ValueError(
                f"num_items must be a multiple of num_categories = {self.num_categories}, "
                f"got {self.num_items}"
            )
        for name in ("copy_probability", "drift_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}")
        if self.mean_lag < 1:
            raise ValueError(f"mean_lag must be at least 1, got {self.mean_lag}")

    @property
    def items_per_category(self) -> int:
        """Return how many items a category has."""
        return self.num_items // self.num_categories

    @property
    def background(self) -> NDArray[np.float64]:
        """Return the share of each category where nothing is copied, (num_categories,)."""
        return _power_law(self.num_categories)

    def lag_chances(self, longest: int) -> NDArray[np.float64]:
        """Return the chances of the lags 1 to `longest`, (longest,)."""
        stop = 1 / self.mean_lag
        return np.asarray(stop * (1 - stop) ** np.arange(longest), np.float64)

    def draw(self, num_users: int, length: int, rng: np.random.Generator) -> tuple[Ints, Ints]:
        """Return the items and categories (U, length) of some users."""
        shape = (num_users, length)
        lags = rng.geometric(1 / self.mean_lag, shape)
        is_copy = (rng.random(shape) < self.copy_probability) & (lags <= np.arange(length))
        is_drift = rng.random(shape) < self.drift_probability
        steps = rng.integers(1, _TRIPLE, shape)
        categories = rng.choice(self.num_categories, shape, p=self.background)
        users = np.arange(num_users)
        for place in range(1, length):
            source = categories[users, place - np.minimum(lags[:, place], place)]
            related = source - source % _TRIPLE + (source + steps[:, place]) % _TRIPLE
            copied = np.where(is_drift[:, place], related, source)
            categories[:, place] = np.where(is_copy[:, place], copied, categories[:, place])
        within = rng.choice(self.items_per_category, shape, p=_power_law(self.items_per_category))
        return categories * self.items_per_category + within, categories


class PlantedAttention:
    """The chance of each behaviour to be where the target came from.

    Args:
        prepared: what `SyntheticSequences` prepared.
    """

    def __init__(self, prepared: Prepared) -> None:
        self.process = CopyProcess(**prepared.manifest["settings"]["process"])
        keys = np.fromfile(prepared.folder / "encoders" / "category.keys.i64", "<i8")
        # Id 0 is a category that training has not seen, related to none.
        self._numbers = np.concatenate([[-_TRIPLE], keys])
        self._longest = int(prepared.manifest["protocol"]["max_history"])

    def relevance(self, history: Ints, lengths: Ints, target: Ints) -> NDArray[np.float64]:
        """Return r (B, L), 0 in padding.

        Args:
            history: (B, L) ids of categories, the oldest behaviour first, padded behind.
            lengths: (B,) behaviours of each history.
            target: (B,) ids of the targets' categories.
        """
        process = self.process
        own, wanted = self._numbers[history], self._numbers[target][:, None]
        kind = np.where(own == wanted, 1 - process.drift_probability, 0.0)
        is_related = (own // _TRIPLE == wanted // _TRIPLE) & (own != wanted)
        kind += np.where(is_related, process.drift_probability / (_TRIPLE - 1), 0.0)
        lags = lengths[:, None] - np.arange(history.shape[1])
        chances = np.concatenate([[0.0], process.lag_chances(max(self._longest, history.shape[1]))])
        found: NDArray[np.float64] = kind * chances[np.maximum(lags, 0)]
        return found


class SyntheticSequences(Dataset):
    """Behaviours of a copy process, in DARE's protocol.

    Args:
        num_users: users.
        length: behaviours of each.
        num_items: items in all.
        num_categories: a multiple of 3.
        copy_probability: of a category that is copied from an earlier behaviour.
        mean_lag: behaviours between the two, in the mean.
        drift_probability: of moving to a related category, given a copy.
        max_history: behaviours of a history at most.
        num_positives: training positives of a user.
        seed: of everything.

    Raises:
        ValueError: on a number out of range.
    """

    name = "synthetic_sequences"

    def __init__(
        self,
        *,
        num_users: int = 3000,
        length: int = 150,
        num_items: int = 2400,
        num_categories: int = 60,
        copy_probability: float = 0.7,
        mean_lag: float = 15.0,
        drift_probability: float = 0.3,
        max_history: int = 100,
        num_positives: int = 8,
        seed: int = 0,
    ) -> None:
        self.num_users = num_users
        self.length = length
        self.process = CopyProcess(
            num_items=num_items,
            num_categories=num_categories,
            copy_probability=copy_probability,
            mean_lag=mean_lag,
            drift_probability=drift_probability,
        )
        self.protocol = Protocol(
            max_history=max_history,
            min_behaviours=length,
            num_positives=num_positives,
            seed=seed,
        )

    def prepare(self, raw: Path, out: Path, *, overwrite: bool = False) -> Prepared:
        """Return the generated set in `out`, generating it if needed; `raw` is not used."""

        def write(folder: Path, facts: Mapping[str, Any]) -> None:
            write_samples(self.parts, self.protocol, folder, facts, name=self.name)

        return prepare_once(
            out,
            name=self.name,
            settings={
                "num_users": self.num_users,
                "length": self.length,
                "process": asdict(self.process),
                "protocol": self.protocol.settings(),
                "generator": _GENERATOR_VERSION,
            },
            sources=(),
            write=write,
            overwrite=overwrite,
        )

    def parts(self) -> Iterator[UserLog]:
        """Yield the behaviours of all users, some thousands of users at a time."""
        for first in range(0, self.num_users, _USERS_PER_PART):
            num = min(_USERS_PER_PART, self.num_users - first)
            rng = np.random.default_rng([self.protocol.seed, 1, first])
            items, categories = self.process.draw(num, self.length, rng)
            yield UserLog(
                users=first + np.arange(num),
                offsets=np.arange(num + 1) * self.length,
                items=items.reshape(-1),
                categories=categories.reshape(-1),
            )


def _power_law(size: int) -> NDArray[np.float64]:
    weights = np.arange(1.0, size + 1) ** -_EXPONENT
    shares: NDArray[np.float64] = weights / weights.sum()
    return shares
