"""MGQE: product quantisation in which rare ids may use the first centroids of a codebook only.

    e(i) = [C_1[k_1(i)], .., C_P[k_P(i)]],   k_p(i) < K for frequent ids, < K_tail for the others

Source: Kang et al., "Learning Multi-granular Quantized Embeddings for Large-Vocab Categorical
Features in Recommender Systems", WWW 2020 companion, arXiv 2002.08530, section 3: the variant with
shared codebooks and fewer centroids, over DPQ-VQ; two groups, the most frequent tenth of the ids
and the rest. Departures: ids of equal frequency are ordered by id, so that the head has exactly its
share; serving counts what says which group an id is in, where codes of fewer bits are worth it.
"""

import math
from collections.abc import Mapping, Sequence

from torch import Tensor

from recemb.methods.adapt_emb import frequency_ranks
from recemb.methods.coded import CodingMethod, Level
from recemb.methods.codes import CodeForm
from recemb.methods.quantizer import Quantization, Variant
from recemb.tables.method import IdCounts
from recemb.tables.spec import TableSpec


class MGQE(CodingMethod):
    """Multi-granular quantised embeddings; sizes and budgets are those of `CodingMethod`.

    Training holds the full queries: this saves memory in serving alone.

    Args:
        variant: "vq" or "sx", see `DPQ`.
        num_parts: see `CodingMethod`.
        num_centroids: K, of frequent ids, where there is no budget.
        tail_centroids: of the others, at most K; with a budget they are the same share of K.
        head_share: share of a table's ids that are frequent.
        temperature: of the softmax.
        batch_norm: whether the scores of a centroid are normalised over the batch; None for those
            of SX alone.
        codebook_weight: of VQ's term of the loss.
        init_std: see `CodingMethod`.

    Raises:
        ValueError: on an unknown word or a number outside its range.
    """

    def __init__(
        self,
        *,
        variant: Variant = "vq",
        num_parts: int = 4,
        num_centroids: int = 256,
        tail_centroids: int = 64,
        head_share: float = 0.1,
        temperature: float = 1.0,
        batch_norm: bool | None = None,
        codebook_weight: float = 1.0,
        init_std: float | None = None,
    ) -> None:
        super().__init__(
            num_parts=num_parts,
            num_centroids=num_centroids,
            quantization=Quantization(
                variant=variant,
                temperature=temperature,
                batch_norm=batch_norm,
                codebook_weight=codebook_weight,
            ),
            init_std=init_std,
        )
        if not 1 <= tail_centroids <= num_centroids or not 0 < head_share < 1:
            raise ValueError(
                "MGQE: tail_centroids must be in [1, num_centroids] and head_share in (0, 1), got "
                f"{tail_centroids} of {num_centroids} and {head_share}"
            )
        self.tail_centroids = tail_centroids
        self.head_share = head_share

    def form(self, spec: TableSpec, num_parts: int, num_centroids: int) -> CodeForm:
        """Return the form of a table of that many parts, and centroids of the head."""
        return CodeForm(
            num_rows=spec.num_embeddings,
            width=spec.embedding_dim,
            num_parts=num_parts,
            num_centroids=num_centroids,
            num_head=math.ceil(self.head_share * spec.num_embeddings),
            tail_centroids=self._tail_of(num_centroids),
        )

    def bits(self, level: Level) -> float:
        """Return the bits of code that an id has at a level, in the mean over both groups."""
        head, tail = map(math.log2, (level.num_centroids, self._tail_of(level.num_centroids)))
        return level.num_parts * (self.head_share * head + (1 - self.head_share) * tail)

    def _tail_of(self, num_centroids: int) -> int:
        return max(1, num_centroids * self.tail_centroids // self.num_centroids)

    def heads(
        self, specs: Sequence[TableSpec], forms: Mapping[str, CodeForm], stats: IdCounts
    ) -> dict[str, Tensor]:
        """Return the most frequent rows (n,) bool of each coded table; the first without counts."""
        found = {}
        for spec in specs:
            if spec.name in forms:
                num_head = forms[spec.name].num_head
                assert num_head is not None
                found[spec.name] = frequency_ranks(spec, stats) < num_head
        return found
