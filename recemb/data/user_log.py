"""Users' behaviours as samples of the next one: DARE's protocol.

Of every user with enough behaviours some are positives; each comes with negatives that are drawn by
popularity among the items that the user has never touched, and with the behaviours before it as its
history. The last behaviour is for the test, the one before for validation, and of those before that
every fifth for training.

    position from the end    1 test    2 validation    3, 8, 13, ..., 93 training

Source: Feng et al., "Long-Sequence Recommendation Models Need Decoupled Embeddings", ICLR 2025, and
the preprocessing of its released code. There every item has an id and negatives are drawn by counts
over everything; here both come from the behaviours before the last two, so that neither validation
nor test leaks into training.

Shapes: `U` users, `n` behaviours, `R` positives, `P` items of the pool and 0.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from recemb.data.encoded import EncodedRows
from recemb.data.schema import Categorical, History, Schema
from recemb.data.writer import Writer
from recemb.ids.statistics import KeyCounts
from recemb.ids.vocabulary import Vocabulary

Group = Literal["user", "category"]
Ints = NDArray[np.int64]
KeyKind = Literal["int", "string"]

NUM_HELD_OUT = 2
NUMBERS: Mapping[str, KeyKind] = {"item": "int", "category": "int"}
_MAX_REDRAWS = 1000


@dataclass(frozen=True, kw_only=True)
class UserLog:
    """What some users did, user after user, each in order of time.

    Attributes:
        users: (U,) their numbers.
        offsets: (U + 1,) where each one's behaviours begin.
        items: (n,) what they touched, any numbers.
        categories: (n,) of what kind it is, any numbers.
    """

    users: Ints
    offsets: Ints
    items: Ints
    categories: Ints

    @classmethod
    def sorted_from(cls, users: Ints, times: Ints, items: Ints, categories: Ints) -> "UserLog":
        """Return the log of behaviours (n,) in any order; those of one time keep theirs."""
        order = np.lexsort((times, users))
        numbers, counts = np.unique(users, return_counts=True)
        return cls(
            users=numbers,
            offsets=np.concatenate([[0], np.cumsum(counts)]),
            items=items[order],
            categories=categories[order],
        )

    def of_at_least(self, num: int) -> "UserLog":
        """Return the log of the users with at least `num` behaviours."""
        sizes = np.diff(self.offsets)
        is_kept = sizes >= num
        behaviours = np.repeat(is_kept, sizes)
        return UserLog(
            users=self.users[is_kept],
            offsets=np.concatenate([[0], np.cumsum(sizes[is_kept])]),
            items=self.items[behaviours],
            categories=self.categories[behaviours],
        )


@dataclass(frozen=True, kw_only=True)
class Protocol:
    """How samples are made.

    Attributes:
        max_history: behaviours of a history at most, the most recent ones.
        min_behaviours: users with fewer are left out.
        num_positives: training positives of a user, at most.
        stride: behaviours from one of them to the next.
        num_negatives: negatives of each positive.
        min_history: a positive with fewer behaviours before it is left out.
        min_count: an item gets an id from this many behaviours on.
        group: what GAUC groups by: "user", or the "category" of the target.
        seed: of the negatives.

    Raises:
        ValueError: on a number out of range or an unknown group.
    """

    max_history: int = 200
    min_behaviours: int = 210
    num_positives: int = 19
    stride: int = 5
    num_negatives: int = 2
    min_history: int = 1
    min_count: int = 1
    group: Group = "user"
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("max_history", "num_positives", "stride", "num_negatives", "min_count"):
            if getattr(self, name) < 1:
                raise ValueError(f"protocol: {name} must be at least 1, got {getattr(self, name)}")
        if self.min_history < 0:
            raise ValueError(f"protocol: min_history must be at least 0, got {self.min_history}")
        least = self.min_history + NUM_HELD_OUT + 1
        if self.min_behaviours < least:
            raise ValueError(
                f"protocol: min_behaviours must be at least min_history + {NUM_HELD_OUT + 1} = "
                f"{least}, so that there is one sample for each split, got {self.min_behaviours}"
            )
        if self.group not in get_args(Group):
            raise ValueError(f"protocol: group must be user or category, got '{self.group}'")

    def settings(self) -> dict[str, Any]:
        """Return what samples depend on, as plain JSON types, for `prepare_once`."""
        found = asdict(self)
        if self.min_count > 1:
            # Sets prepared when rare items were never drawn are other sets.
            found["draws_rare_items"] = True
        return found

    def positives(self, offsets: Ints) -> dict[str, tuple[Ints, Ints]]:
        """Return, for each split, whose positives there are (R,) and where in the log (R,)."""
        back = {
            "train": NUM_HELD_OUT + 1 + self.stride * np.arange(self.num_positives)[::-1],
            "val": np.array([2]),
            "test": np.array([1]),
        }
        found = {}
        for split, distances in back.items():
            places = offsets[1:, None] - distances
            owners, which = np.nonzero(places >= offsets[:-1, None] + self.min_history)
            found[split] = (owners, places[owners, which])
        return found


def write_samples(
    parts: Callable[[], Iterable[UserLog]],
    protocol: Protocol,
    folder: Path,
    facts: Mapping[str, Any],
    *,
    name: str,
    kinds: Mapping[str, KeyKind] = NUMBERS,
) -> None:
    """Write the samples of all users into an empty folder.

    Memory: one part of the log at a time, and what is known of every item.

    Args:
        parts: yields the log, twice, each user in one part.
        protocol: how samples are made.
        folder: of the prepared set.
        facts: further entries of the manifest.
        name: the data set's name, for messages.
        kinds: what the log's numbers of items and categories are: "int", themselves; or "string",
            the keys of strings (`recemb.data.encoder.keyed`).

    Raises:
        ValueError: if no user has enough behaviours, or there is nothing left to draw negatives of.
    """
    catalogue = Catalogue.of(parts(), protocol)
    if not len(catalogue.items.keys):
        raise ValueError(
            f"data '{name}': no user has {protocol.min_behaviours} behaviours; lower min_behaviours"
        )
    (folder / "encoders").mkdir()
    catalogue.items.save(keys_file(folder, "item"))
    catalogue.categories.save(keys_file(folder, "category"))
    with Writer(folder, catalogue.schema(protocol)) as writer:
        for number, log in enumerate(parts()):
            rng = np.random.default_rng([protocol.seed, number])
            for split, rows in _samples(log, catalogue, protocol, writer, rng):
                writer.append(split, rows)
        writer.finish({**facts, "protocol": asdict(protocol), "kinds": dict(kinds)})


def keys_file(folder: Path, feature: str) -> Path:
    """Return where a set prepared in `folder` has the vocabulary of a feature."""
    return folder / "encoders" / f"{feature}.keys.i64"


@dataclass(frozen=True, kw_only=True)
class Catalogue:
    """The items that have an id, and those that negatives are drawn of.

    Attributes:
        items: the vocabulary of the former; id 0 stands for all others.
        pool: that of the latter: all that have behaviours which are not held out, rare ones too, so
            that an item without an id may be a negative as it may be a positive.
        categories: that of the categories.
        counts: (P,) behaviours of each of the pool, those that are held out not counted; 0 for 0.
        category_of: (P,) the category's id of each of the pool.
    """

    items: Vocabulary
    pool: Vocabulary
    categories: Vocabulary
    counts: Ints
    category_of: NDArray[np.int32]

    @classmethod
    def of(cls, parts: Iterable[UserLog], protocol: Protocol) -> "Catalogue":
        """Return the catalogue of the behaviours that are not held out."""
        items, categories, pairs = KeyCounts(), KeyCounts(), []
        for part in parts:
            log = part.of_at_least(protocol.min_behaviours)
            is_seen = np.ones(len(log.items), bool)
            for back in range(1, NUM_HELD_OUT + 1):
                is_seen[log.offsets[1:] - back] = False
            for counter, values in ((items, log.items), (categories, log.categories)):
                counter.add(*np.unique(values[is_seen], return_counts=True))
            distinct, firsts = np.unique(log.items, return_index=True)
            pairs.append((distinct, log.categories[firsts]))
        keys, numbers = items.result()
        pool = Vocabulary.from_counts(keys, numbers)
        kinds = Vocabulary.from_counts(*categories.result())
        category_of = np.zeros(pool.num_embeddings, np.int32)
        for distinct, its in pairs:
            category_of[pool.encode(distinct)] = kinds.encode(its)
        category_of[0] = 0
        counts = np.zeros(pool.num_embeddings, np.int64)
        counts[pool.encode(keys)] = numbers
        return cls(
            items=Vocabulary.from_counts(keys, numbers, min_count=protocol.min_count),
            pool=pool,
            categories=kinds,
            counts=counts,
            category_of=category_of,
        )

    def item_ids(self, numbers: Ints) -> NDArray[np.int32]:
        """Return the ids (R,) of items given by their numbers (R,) in the pool; 0 where rare.

        Both count from the most frequent item, so that the pool begins with those that have an id.
        """
        return np.where(numbers < self.items.num_embeddings, numbers, 0).astype(np.int32)

    def schema(self, protocol: Protocol) -> Schema:
        """Return the columns of the samples."""
        sizes = {
            "item": self.items.num_embeddings,
            "category": self.categories.num_embeddings,
            "position": protocol.max_history + 1,
        }
        return Schema(
            dense=(),
            categorical=tuple(Categorical(name=n, num_embeddings=s) for n, s in sizes.items()),
            label="label",
            group=protocol.group,
            histories=tuple(
                History(name=f"{name}_history", of=name, is_position=name == "position")
                for name in sizes
            ),
        )

    def draw_others(self, owners: Ints, own: Ints, rng: np.random.Generator) -> Ints:
        """Return an item (R,) of the pool by popularity for each of `owners`, none that is theirs.

        Args:
            owners: (R,) users.
            own: the pairs user * P + item of the pool of what they touched, ascending.
            rng: draws.

        Raises:
            ValueError: if a user seems to have touched all there is.
        """
        ends = np.cumsum(self.counts)
        size = len(self.counts)
        found = np.empty(len(owners), np.int64)
        open_ = np.arange(len(owners))
        for _ in range(_MAX_REDRAWS):
            drawn = np.searchsorted(ends, rng.integers(0, ends[-1], len(open_)), side="right")
            found[open_] = drawn
            pairs = owners[open_] * size + drawn
            places = np.minimum(np.searchsorted(own, pairs), len(own) - 1)
            open_ = open_[own[places] == pairs]
            if not len(open_):
                return found
        raise ValueError(
            f"negatives: a user has touched so many of the {size - 1} items that none was drawn "
            f"in {_MAX_REDRAWS} attempts that it has not; lower min_behaviours, for more users"
        )


def _samples(
    part: UserLog,
    catalogue: Catalogue,
    protocol: Protocol,
    writer: Writer,
    rng: np.random.Generator,
) -> Iterator[tuple[str, EncodedRows]]:
    """Write the behaviours of a part and yield its samples, split by split."""
    log = part.of_at_least(protocol.min_behaviours)
    if not len(log.users):
        return
    items = catalogue.items.encode(log.items)
    categories = catalogue.categories.encode(log.categories)
    first = writer.append_behaviours([items, categories])
    size = len(catalogue.counts)
    users = np.repeat(np.arange(len(log.users)), np.diff(log.offsets))
    own = np.unique(users * size + catalogue.pool.encode(log.items))
    num = 1 + protocol.num_negatives
    for split, (owners, places) in protocol.positives(log.offsets).items():
        if not len(owners):
            continue
        ids = np.zeros((len(owners), num, 3), np.int32)
        others = catalogue.draw_others(np.repeat(owners, num - 1), own, rng)
        ids[:, 0, 0], ids[:, 0, 1] = items[places], categories[places]
        ids[:, 1:, 0] = catalogue.item_ids(others).reshape(len(owners), num - 1)
        ids[:, 1:, 1] = catalogue.category_of[others].reshape(len(owners), num - 1)
        starts = np.maximum(log.offsets[owners], places - protocol.max_history)
        spans = np.stack([starts, places], axis=1) + first
        labels = np.zeros((len(owners), num), np.uint8)
        labels[:, 0] = 1
        rows = ids.reshape(-1, 3)
        is_by_user = protocol.group == "user"
        groups = np.repeat(log.users[owners], num) if is_by_user else rows[:, 1].astype("<i8")
        yield (
            split,
            EncodedRows(
                labels=labels.reshape(-1),
                dense=np.empty((len(labels) * num, 0), np.float32),
                ids=rows,
                groups=groups,
                spans=np.repeat(spans, num, axis=0),
            ),
        )
