"""FinalMLP: two gated MLPs whose outputs are fused by a multi-head bilinear form.

Shapes: `B` examples, `W` width of the input e = [dense, v_1, ..., v_F].
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from recemb.models.mlp import MLP, xavier_linear
from recemb.models.ranking_model import RankingModel


class FeatureGate(nn.Module):
    """2 * sigmoid(MLP(c)): a factor for each of `width` inputs, from a context c.

    Args:
        columns: which columns of `vectors` are the context; if none, c is a learned vector as wide
            as `learned_width`.
        learned_width: see `columns`.
        width: W, the number of factors.
        hidden_units: hidden widths of the MLP, ReLU.

    Source: Mao et al., FinalMLP, AAAI 2023, stream-specific feature selection.
    """

    columns: Tensor

    def __init__(
        self,
        *,
        columns: Sequence[int],
        learned_width: int,
        width: int,
        hidden_units: Sequence[int],
    ) -> None:
        super().__init__()
        self.register_buffer("columns", torch.tensor(columns, dtype=torch.int64), persistent=False)
        self.learned = None if columns else nn.Parameter(torch.empty(1, learned_width))
        if self.learned is not None:
            # Not zero: a hidden ReLU layer would then stay at its kink and never learn.
            nn.init.normal_(self.learned, std=learned_width**-0.5)
        self.mlp = MLP(
            len(columns) or learned_width,
            hidden_units,
            out_features=width,
            output_activation="sigmoid",
        )

    def forward(self, vectors: Tensor) -> Tensor:
        """Return factors in (0, 2), (B, W) or (1, W), for `vectors` (B, sum of widths)."""
        context = vectors.index_select(1, self.columns) if self.learned is None else self.learned
        factors: Tensor = 2 * self.mlp(context)
        return factors


class BilinearFusion(nn.Module):
    """b + w_1 . o_1 + w_2 . o_2 + sum over heads h of o_1h^T W_h o_2h.

    Args:
        in_features: widths of o_1 and o_2.
        num_heads: equal chunks into which both are cut; 1 is the full bilinear form.

    Raises:
        ValueError: if `num_heads` does not divide both widths.

    Source: Mao et al., FinalMLP, AAAI 2023, stream-level interaction aggregation.

    Example:
        >>> BilinearFusion(in_features=(4, 6), num_heads=2)(torch.zeros(3, 4), torch.zeros(3, 6))
        tensor([0., 0., 0.], grad_fn=<AddBackward0>)
    """

    def __init__(self, *, in_features: tuple[int, int], num_heads: int) -> None:
        super().__init__()
        if num_heads < 1 or any(width % num_heads for width in in_features):
            raise ValueError(
                f"FinalMLP: num_heads must divide the last width of both streams, got {num_heads} "
                f"and {list(in_features)}; choose widths that are multiples of num_heads"
            )
        first, second = (width // num_heads for width in in_features)
        self.num_heads = num_heads
        self.linear = xavier_linear(sum(in_features), 1)
        self.bilinear = nn.Parameter(torch.empty(num_heads, first, second))
        # The published code's scale: one matrix of all heads' entries by one output.
        nn.init.xavier_normal_(self.bilinear.view(-1, 1))

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return (B,) float32 for `first` and `second`, (B, in_features) each."""
        linear: Tensor = self.linear(torch.cat([first, second], dim=1))
        heads = torch.unflatten(first, 1, (self.num_heads, -1)).transpose(0, 1)
        products = torch.bmm(heads, self.bilinear).transpose(0, 1).flatten(1)  # (B, width of o_2)
        return linear.squeeze(1).float() + (products.float() * second.float()).sum(dim=1)


class FinalMLP(RankingModel):
    """logit = fusion(MLP_1(g_1 * e), MLP_2(g_2 * e)) with e = [dense, v_1, ..., v_F].

    Vectors may differ in width; hidden layers are ReLU.

    Args:
        num_dense: number of dense columns; they enter e as they are.
        embedding_dims: width of each feature's vector.
        stream_units: hidden widths of the first and of the second MLP.
        stream_dropout: dropout after each hidden layer, of the first and of the second MLP.
        batch_norm: in each hidden layer of both.
        num_heads: heads of the fusion; divides the last width of both.
        gate_features: for each stream, the positions of the features whose vectors feed its gate,
            possibly none, which means a learned context; None leaves both gates out (g = 1).
        gate_units: hidden widths of the gates.

    Raises:
        ValueError: if there are not exactly two streams, a stream has no layer, or a position is
            not that of a feature.

    Source: Mao et al., FinalMLP, AAAI 2023. The published code gives the gates tables of
    their own; here they read the vectors of the tables that all else reads.

    Example:
        >>> model = FinalMLP(
        ...     num_dense=2,
        ...     embedding_dims=(4, 8),
        ...     stream_units=((16,), (8,)),
        ...     gate_features=((0,), ()),
        ... )
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 12)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        stream_units: Sequence[Sequence[int]] = ((400, 400, 400), (400, 400, 400)),
        stream_dropout: Sequence[float] = (0.0, 0.0),
        batch_norm: bool = False,
        num_heads: int = 1,
        gate_features: Sequence[Sequence[int]] | None = None,
        gate_units: Sequence[int] = (64,),
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        self._check_pairs(stream_units, stream_dropout, gate_features)
        width = num_dense + self.vectors_width
        self.streams = nn.ModuleList(
            [
                MLP(width, units, dropout=dropout, batch_norm=batch_norm)
                for units, dropout in zip(stream_units, stream_dropout, strict=True)
            ]
        )
        self.gates = (
            None
            if gate_features is None
            else nn.ModuleList(
                [
                    FeatureGate(
                        columns=self._columns(positions),
                        learned_width=max(self.embedding_dims, default=1),
                        width=width,
                        hidden_units=gate_units,
                    )
                    for positions in gate_features
                ]
            )
        )
        self.fusion = BilinearFusion(
            in_features=(stream_units[0][-1], stream_units[1][-1]), num_heads=num_heads
        )

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        inputs = torch.cat([dense, vectors], dim=1)
        gated = [inputs, inputs]
        if self.gates is not None:
            gated = [inputs * gate(vectors) for gate in self.gates]
        first, second = (stream(values) for stream, values in zip(self.streams, gated, strict=True))
        logits: Tensor = self.fusion(first, second)
        return logits

    def _columns(self, positions: Sequence[int]) -> list[int]:
        """Return the columns of `vectors` that hold the features at `positions`."""
        columns: list[int] = []
        for position in positions:
            if not 0 <= position < self.num_features:
                raise ValueError(
                    f"FinalMLP: gate_features names feature {position}, but there are "
                    f"{self.num_features}, counted from 0"
                )
            start = sum(self.embedding_dims[:position])
            columns.extend(range(start, start + self.embedding_dims[position]))
        return columns

    @staticmethod
    def _check_pairs(
        stream_units: Sequence[Sequence[int]],
        stream_dropout: Sequence[float],
        gate_features: Sequence[Sequence[int]] | None,
    ) -> None:
        pairs = {"stream_units": stream_units, "stream_dropout": stream_dropout}
        if gate_features is not None:
            pairs["gate_features"] = gate_features
        for name, pair in pairs.items():
            if len(pair) != 2:
                raise ValueError(
                    f"FinalMLP: {name} needs one entry for each of the two streams, got {len(pair)}"
                )
        if any(len(units) == 0 for units in stream_units):
            raise ValueError("FinalMLP: stream_units must give each stream at least one layer")
