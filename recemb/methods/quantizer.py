"""Vectors replaced by centroids while they are trained: differentiable product quantisation.

A query q, which an id has of its own, is cut into P parts; each part takes the centroid of the
highest score:

    VQ:  k_p = argmin_k ||q_p - C_pk||,    out = C_pk,   d out / d q_p = 1
    SX:  k_p = argmax_k BN(<q_p, K_pk>),   out = V_pk,   d out / d q_p that of softmax's mean

where BN is batch normalisation of the scores of each centroid, without scale and shift.

SX has values of its own beside the keys; in VQ keys are values, and follow the queries by a term of
the loss, the mean of ||C - sg(q)||^2 over the values of a batch.

Shapes: `N` rows that were read, `P` parts, `K` centroids of a part, `Z` width of a part, `D` = P Z,
`n` rows of a table.

Source: Chen, Li, Sun, "Differentiable Product Quantization for End-to-End Embedding Compression",
ICML 2020, arXiv 1908.09756, section 3, and the authors' code for batch normalisation and the weight
of the term. Departures: distances of VQ are not normalised unless told so, for a centroid that is
the nearest by its own deviation from its own mean distance is not the nearest, and queries and
centroids drift apart. Statistics are those of a centroid of a part, where the authors' code takes
the k-th centroids of all parts together, which have nothing in common; they begin with those of a
sample of rows; eps is far below the scores of small vectors.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recemb.ids.hashing import hash_seed
from recemb.methods.codes import CodeForm, read_codebooks
from recemb.tables.initial import Initial
from recemb.tables.layout import Group
from recemb.tables.transform import RowTransform

Variant = Literal["sx", "vq"]

_MOMENTUM, _EPS = 0.1, 1e-20
_SAMPLE = 1024
_CHUNK = 1 << 22
"""Scores that are held at once while rows are encoded."""


@dataclass(frozen=True, kw_only=True)
class Quantization:
    """How queries become centroids.

    Attributes:
        variant: "sx" or "vq".
        temperature: what the scores of SX are divided by before the softmax.
        batch_norm: whether scores are normalised, centroid by centroid; None for those of SX alone.
        codebook_weight: of VQ's term of the loss.

    Raises:
        ValueError: on an unknown word or a number outside its range.
    """

    variant: Variant = "vq"
    temperature: float = 1.0
    batch_norm: bool | None = None
    codebook_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.variant not in ("sx", "vq"):
            raise ValueError(f"quantization: variant must be sx or vq, got '{self.variant}'")
        if not self.temperature > 0 or self.codebook_weight < 0:
            raise ValueError(
                "quantization: temperature must be positive and codebook_weight not negative, got "
                f"{self.temperature} and {self.codebook_weight}"
            )

    @property
    def is_normalised(self) -> bool:
        """Return whether scores are normalised."""
        return self.variant == "sx" if self.batch_norm is None else self.batch_norm


@dataclass
class _Assigned:
    """What a table's queries and their centroids were since the last penalty.

    Attributes:
        counts: (P, K) how often each centroid was taken.
        sums: (P, K, Z) of the queries that took it.
        squares: the sum of all queries' squares.
        num_values: N D.
    """

    counts: Tensor
    sums: Tensor
    squares: Tensor
    num_values: int


class Quantizer(RowTransform):
    """Codebooks of a group of tables.

    In evaluation a row's code depends on nothing but its query and the codebooks, bit by bit: its
    scores are summed in a fixed order, which a matrix product chooses by the number of rows.

    Args:
        group: the tables.
        forms: of the tables that are coded, by name; other rows pass as they are.
        quantization: how.
        heads: which rows (n,) of a table may use all centroids; the others take the first ones.
    """

    def __init__(
        self,
        group: Group,
        *,
        forms: Mapping[str, CodeForm],
        quantization: Quantization,
        heads: Mapping[str, Tensor],
    ) -> None:
        super().__init__(group)
        self.quantization = quantization
        self._places = {t.name: place for place, t in enumerate(group.tables) if t.name in forms}
        self._forms = {place: forms[name] for name, place in self._places.items()}
        self._assigned: dict[int, _Assigned] = {}
        for name, place in self._places.items():
            form = forms[name]
            shape = (form.num_parts, form.num_centroids, form.width // form.num_parts)
            self.register_parameter(f"keys_{place}", nn.Parameter(torch.empty(shape)))
            if quantization.variant == "sx":
                self.register_parameter(f"values_{place}", nn.Parameter(torch.empty(shape)))
            if quantization.is_normalised:
                self.register_buffer(f"mean_{place}", torch.zeros(shape[:2]))
                self.register_buffer(f"variance_{place}", torch.ones(shape[:2]))
            if name in heads:
                self.register_buffer(f"is_head_{place}", heads[name])

    def forward(self, vectors: Tensor, rows: Tensor, tables: Tensor) -> Tensor:
        """Return the vectors (N, D), quantised."""
        places, sizes = torch.unique_consecutive(tables, return_counts=True)
        found, counts = [], sizes.tolist()
        parts = (torch.split(vectors, counts), torch.split(rows, counts))
        for place, queries, its in zip(places.tolist(), *parts, strict=True):
            if place in self._forms:
                queries = self._quantise(place, queries, its)
            found.append(queries)
        return torch.cat(found) if found else vectors

    def codes(self, table: str, queries: Tensor) -> Tensor:
        """Return the codes (n, P) int64 of all rows (n, D) of a table, as serving has them."""
        place = self._places[table]
        rows = torch.arange(queries.shape[0], device=queries.device)
        return self._encode(place, queries, rows + self.group.first_rows[place])

    def codebooks(self, table: str) -> Tensor:
        """Return the vectors (P, K, Z) that a table's codes mean."""
        return self._of("keys" if self.quantization.variant == "vq" else "values", table)

    def is_head(self, table: str) -> Tensor | None:
        """Return which rows (n,) of a table may use all centroids; None for all."""
        name = f"is_head_{self._places[table]}"
        return self.get_buffer(name) if name in self._buffers else None

    def penalty(self) -> Tensor:
        """Return VQ's term for all that was quantised in training since the last call."""
        total = torch.zeros(())
        for place, seen in self._assigned.items():
            books = self._parameter("keys", place)
            square = (seen.counts.unsqueeze(2) * books.square()).sum() + seen.squares
            distance = square - 2 * (books * seen.sums).sum()
            total = total + self.quantization.codebook_weight * distance / seen.num_values
        self._assigned = {}
        return total

    @torch.no_grad()
    def initialise(self, seed: int, table: str, queries: Tensor, rule: Initial) -> None:
        """Draw a table's codebooks as its queries were drawn; take statistics of a sample of them.

        Args:
            seed: of the draws.
            table: its name.
            queries: (n, D), all of them.
            rule: how they were drawn.
        """
        place = self._places[table]
        generator = torch.Generator().manual_seed(hash_seed(seed, table, 1))
        rule.fill(self._parameter("keys", place), generator)
        if self.quantization.variant == "sx":
            rule.fill(self._parameter("values", place), generator)
        if self.quantization.is_normalised:
            count = min(_SAMPLE, queries.shape[0])
            at = torch.arange(count, device=queries.device) * queries.shape[0] // count
            keys = self._parameter("keys", place)
            scores = self._exact_scores(self._split(place, queries[at]), keys)
            if count > 1:
                self.get_buffer(f"variance_{place}").copy_(scores.var(dim=0))
            self.get_buffer(f"mean_{place}").copy_(scores.mean(dim=0))

    def _quantise(self, place: int, queries: Tensor, rows: Tensor) -> Tensor:
        """Return the centroids (N, D) of queries (N, D), with the gradients of the variant."""
        books = self._parameter("values" if self.quantization.variant == "sx" else "keys", place)
        if self.training and self.quantization.variant == "sx":
            vectors = self._soft(place, self._split(place, queries), books, rows)
        elif self.training:
            vectors = self._hard(place, self._split(place, queries), books, rows)
        else:
            vectors = read_codebooks(books, self._once(self._encode, place, queries, rows))
        return vectors.masked_fill((rows < 0).unsqueeze(1), 0)

    def _once(
        self,
        encode: Callable[[int, Tensor, Tensor], Tensor],
        place: int,
        queries: Tensor,
        rows: Tensor,
    ) -> Tensor:
        """Return the codes (N, P) of queries (N, D), computed once for each distinct row."""
        distinct, places = torch.unique(rows, return_inverse=True)
        order = torch.arange(rows.numel(), device=rows.device)
        any_of = order.new_empty(distinct.shape).scatter_(0, places, order)
        return encode(place, queries[any_of], distinct)[places]

    def _soft(self, place: int, x: Tensor, values: Tensor, rows: Tensor) -> Tensor:
        """Return the values (N, D) of the highest score, differentiated as the softmax's mean."""
        scores = torch.bmm(x.transpose(0, 1), self._parameter("keys", place).transpose(1, 2))
        scores = self._allowed(place, self._normal(place, scores.transpose(0, 1)), rows)
        chances = torch.softmax(scores / self.quantization.temperature, dim=2)
        chosen = F.one_hot(scores.argmax(dim=2), scores.shape[2]).to(chances.dtype)
        # The difference is 0, to the bit; it carries the gradient.
        weights = chosen + (chances - chances.detach())
        return torch.bmm(weights.transpose(0, 1), values).transpose(0, 1).flatten(1)

    def _hard(self, place: int, x: Tensor, books: Tensor, rows: Tensor) -> Tensor:
        """Return the nearest centroids (N, D), differentiated as if they were the queries."""
        with torch.no_grad():
            if self.quantization.is_normalised:
                # Each row counts as often as it was read.
                distances = _distances(x, books) + x.square().sum(2, keepdim=True)
                scores = self._normal(place, -distances)
                codes = self._allowed(place, scores, rows).argmax(dim=2)
            else:
                codes = self._once(self._nearest, place, x.flatten(1), rows)
            self._note(place, x.detach(), codes)
            vectors = read_codebooks(books, codes)
        queries = x.flatten(1)
        return vectors + (queries - queries.detach())

    def _note(self, place: int, x: Tensor, codes: Tensor) -> None:
        num_parts, num_centroids = self._forms[place].num_parts, self._forms[place].num_centroids
        parts = torch.arange(num_parts, device=codes.device) * num_centroids
        flat = (codes + parts).view(-1)
        counts = torch.bincount(flat, minlength=num_parts * num_centroids)
        sums = x.new_zeros(counts.numel(), x.shape[2]).index_add_(0, flat, x.flatten(0, 1))
        seen = _Assigned(
            counts=counts.to(x.dtype).view(num_parts, num_centroids),
            sums=sums.view(num_parts, num_centroids, -1),
            squares=x.square().sum(),
            num_values=x.numel(),
        )
        if before := self._assigned.get(place):
            seen.counts += before.counts
            seen.sums += before.sums
            seen.squares = seen.squares + before.squares
            seen.num_values += before.num_values
        if seen.num_values:
            self._assigned[place] = seen

    def _normal(self, place: int, scores: Tensor) -> Tensor:
        """Return scores (N, P, K) after batch normalisation in training."""
        if not self.quantization.is_normalised:
            return scores
        if scores.shape[0] < 2:
            return self._normal_of_serving(place, scores)
        mean, variance = (self.get_buffer(f"{name}_{place}") for name in ("mean", "variance"))
        flat = F.batch_norm(
            scores.flatten(1),
            mean.view(-1),
            variance.view(-1),
            training=True,
            momentum=_MOMENTUM,
            eps=_EPS,
        )
        return flat.view(scores.shape)

    def _normal_of_serving(self, place: int, scores: Tensor) -> Tensor:
        """Return scores of all or the first centroids, normalised by the running statistics."""
        if not self.quantization.is_normalised:
            return scores
        reach = scores.shape[2]
        deviation = (self.get_buffer(f"variance_{place}")[:, :reach] + _EPS).sqrt()
        return (scores - self.get_buffer(f"mean_{place}")[:, :reach]) / deviation

    def _allowed(self, place: int, scores: Tensor, rows: Tensor) -> Tensor:
        """Return the scores (N, P, K), -inf for the centroids that a row may not use."""
        if f"is_head_{place}" not in self._buffers:
            return scores
        tail = self._forms[place].tail_centroids
        assert tail is not None
        is_tail = ~self._is_head(place, rows)
        is_beyond = torch.arange(scores.shape[2], device=scores.device) >= tail
        return scores.masked_fill(is_tail.view(-1, 1, 1) & is_beyond, -torch.inf)

    def _nearest(self, place: int, queries: Tensor, rows: Tensor) -> Tensor:
        """Return the codes (N, P) int64 of the centroids that are nearest to queries (N, D)."""
        keys = self._parameter("keys", place)
        codes = rows.new_empty(rows.shape[0], keys.shape[0], dtype=torch.int64)
        for at, reach in self._within_reach(place, rows):
            codes[at] = _distances(self._split(place, queries[at]), keys[:, :reach]).argmin(dim=2)
        return codes

    @torch.no_grad()
    def _encode(self, place: int, queries: Tensor, rows: Tensor) -> Tensor:
        """Return the codes (N, P) int64 of queries (N, D) as serving has them."""
        keys = self._parameter("keys", place)
        codes = rows.new_empty(rows.shape[0], keys.shape[0], dtype=torch.int64)
        for at, reach in self._within_reach(place, rows):
            scores = self._exact_scores(self._split(place, queries[at]), keys[:, :reach])
            codes[at] = self._normal_of_serving(place, scores).argmax(dim=2)
        return codes

    def _within_reach(self, place: int, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
        """Yield where some rows of (N,) are, a few at a time, and how many centroids they have."""
        form = self._forms[place]
        is_head = self._is_head(place, rows)
        groups = [(is_head, form.num_centroids)]
        if form.tail_centroids is not None:
            groups.append((~is_head, form.tail_centroids))
        for chosen, reach in groups:
            size = max(1, _CHUNK // (form.num_parts * reach))
            for at in torch.split(chosen.nonzero().flatten(), size):
                if at.numel():
                    yield at, reach

    def _is_head(self, place: int, rows: Tensor) -> Tensor:
        """Return which rows (N,) of the buffer may use all centroids."""
        if f"is_head_{place}" not in self._buffers:
            return torch.ones_like(rows, dtype=torch.bool)
        at = (rows - self.group.first_rows[place]).clamp(min=0).long()
        return self.get_buffer(f"is_head_{place}")[at]

    def _exact_scores(self, x: Tensor, keys: Tensor) -> Tensor:
        """Return the scores (N, P, K) of x (N, P, Z), each summed in the order of its values."""
        total = x.new_zeros(x.shape[0], *keys.shape[:2])
        for z in range(keys.shape[2]):
            value, key = x[:, :, z].unsqueeze(2), keys[:, :, z]
            if self.quantization.variant == "sx":
                total += value * key
            else:
                total -= (value - key).square()
        return total

    def _split(self, place: int, queries: Tensor) -> Tensor:
        return queries.view(queries.shape[0], self._forms[place].num_parts, -1)

    def _of(self, name: str, table: str) -> Tensor:
        return self._parameter(name, self._places[table])

    def _parameter(self, name: str, place: int) -> Tensor:
        return self.get_parameter(f"{name}_{place}")


def _distances(x: Tensor, books: Tensor) -> Tensor:
    """Return squared distances (N, P, K) less what all of a query's have, the query's square."""
    squares = books.square().sum(2).unsqueeze(1)
    found = torch.baddbmm(squares, x.transpose(0, 1), books.transpose(1, 2), alpha=-2)
    return found.transpose(0, 1)
