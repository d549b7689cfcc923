"""DPQ: ids have codes into small codebooks, learned from end to end.

    e(i) = [C_1[k_1(i)], .., C_P[k_P(i)]]

A query for each id, which is as large as a full table, is trained and chooses the codes; serving
keeps codes of ceil(log2 K) bits and the codebooks. How queries choose is in
`recemb.methods.quantizer`.

Source: Chen, Li, Sun, "Differentiable Product Quantization for End-to-End Embedding Compression",
ICML 2020, arXiv 1908.09756.
"""

from recemb.methods.coded import CodingMethod
from recemb.methods.codes import CodeForm
from recemb.methods.quantizer import Quantization, Variant
from recemb.tables.spec import TableSpec


class DPQ(CodingMethod):
    """Differentiable product quantisation; sizes and budgets are those of `CodingMethod`.

    Training holds the full queries: this saves memory in serving alone.

    Args:
        variant: "sx", softmax with values beside keys, or "vq", nearest centroids.
        num_parts: see `CodingMethod`.
        num_centroids: K, where there is no budget.
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
        num_parts: int = 8,
        num_centroids: int = 32,
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

    def form(self, spec: TableSpec, num_parts: int, num_centroids: int) -> CodeForm:
        """Return the form of a table of that many parts and centroids."""
        return CodeForm(
            num_rows=spec.num_embeddings,
            width=spec.embedding_dim,
            num_parts=num_parts,
            num_centroids=num_centroids,
        )
