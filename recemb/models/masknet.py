"""MaskNet: blocks that multiply their input by a mask computed from the example itself.

Shapes: `B` examples, `W` width of the input e = [dense, v_1, ..., v_F].
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from recemb.models.dropout import Dropout
from recemb.models.mlp import MLP, xavier_linear
from recemb.models.ranking_model import RankingModel


class MaskBlock(nn.Module):
    """ReLU(LayerNorm(W (mask(e) * h))), mask(e) = W_2 ReLU(W_1 e + b_1) + b_2, then dropout.

    Args:
        mask_features: W, the width of e.
        in_features: width of h and of the mask.
        out_features: width of the output, at least 2, since one value has no norm.
        reduction_ratio: width of the mask's hidden layer over `in_features`.
        dropout: of the output.

    Raises:
        ValueError: if `out_features` is below 2 or the mask's hidden layer would be empty.

    Source: Wang et al., MaskNet, DLP-KDD 2021, instance-guided mask and MaskBlock.

    Example:
        >>> block = MaskBlock(mask_features=6, in_features=4, out_features=3)
        >>> block(torch.zeros(2, 6), torch.zeros(2, 4)).shape
        torch.Size([2, 3])
    """

    def __init__(
        self,
        *,
        mask_features: int,
        in_features: int,
        out_features: int,
        reduction_ratio: float = 2.0,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if out_features < 2:
            raise ValueError(
                f"MaskNet: block_units must be at least 2, got {out_features}; "
                "layer norm makes one value constant"
            )
        aggregated = int(reduction_ratio * in_features)
        if aggregated < 1:
            raise ValueError(
                f"MaskNet: reduction_ratio {reduction_ratio} leaves no hidden unit for a mask of "
                f"{in_features}; raise it"
            )
        self.mask = MLP(mask_features, (aggregated,), out_features=in_features)
        self.hidden = xavier_linear(in_features, out_features, bias=False)
        self.norm = nn.LayerNorm(out_features)
        self.dropout = Dropout(dropout)

    def forward(self, embeddings: Tensor, inputs: Tensor) -> Tensor:
        """Return (B, out_features) for e (B, W) and h (B, in_features)."""
        hidden = self.norm(self.hidden(self.mask(embeddings) * inputs))
        outputs: Tensor = self.dropout(functional.relu(hidden))
        return outputs


class MaskNet(RankingModel):
    """logit = MLP([all blocks' outputs]) in parallel, or MLP(last block's output) in series.

    The first block (in parallel: every block) masks e with each v_i layer-normalised; later blocks
    of a series mask the block before. All masks are computed from e as it is. Vectors may differ in
    width; hidden layers are ReLU.

    Args:
        num_dense: number of dense columns; they enter e as they are, without layer norm.
        embedding_dims: width of each feature's vector.
        structure: "parallel" or "serial".
        block_units: width of each block's output.
        reduction_ratio: of every mask, see MaskBlock.
        hidden_units: hidden widths of the MLP; the paper's series has none.
        dropout: after each block and hidden layer.
        embedding_norm: whether vectors are layer-normalised, each by itself, before masking.

    Raises:
        ValueError: on an unknown structure, no block, or `embedding_norm` on a vector of width 1.

    Source: Wang et al., MaskNet, DLP-KDD 2021, serial and parallel MaskNet.

    Example:
        >>> model = MaskNet(num_dense=2, embedding_dims=(4, 8), block_units=(6, 6))
        >>> model.from_values(torch.zeros(3, 2), torch.zeros(3, 12)).shape
        torch.Size([3])
    """

    def __init__(
        self,
        *,
        num_dense: int,
        embedding_dims: Sequence[int],
        structure: Literal["parallel", "serial"] = "parallel",
        block_units: Sequence[int] = (64, 64, 64),
        reduction_ratio: float = 2.0,
        hidden_units: Sequence[int] = (400, 400),
        dropout: float = 0.0,
        embedding_norm: bool = True,
    ) -> None:
        super().__init__(num_dense=num_dense, embedding_dims=embedding_dims)
        if structure not in ("parallel", "serial"):
            raise ValueError(f"MaskNet: structure must be parallel or serial, got '{structure}'")
        if len(block_units) == 0:
            raise ValueError("MaskNet: block_units is empty; without blocks it is model=dnn")
        if embedding_norm and 1 in self.embedding_dims:
            raise ValueError(
                "MaskNet: layer norm makes a vector of width 1 constant; widen the tables or set "
                "embedding_norm=false"
            )
        width = num_dense + self.vectors_width
        self.is_serial = structure == "serial"
        self.norms = (
            nn.ModuleList([nn.LayerNorm(dim) for dim in self.embedding_dims])
            if embedding_norm
            else None
        )
        inputs = [width] * len(block_units)
        if self.is_serial:
            inputs[1:] = block_units[:-1]
        self.blocks = nn.ModuleList(
            [
                MaskBlock(
                    mask_features=width,
                    in_features=in_features,
                    out_features=units,
                    reduction_ratio=reduction_ratio,
                    dropout=dropout,
                )
                for in_features, units in zip(inputs, block_units, strict=True)
            ]
        )
        top_width = block_units[-1] if self.is_serial else sum(block_units)
        self.mlp = MLP(top_width, hidden_units, dropout=dropout, out_features=1)

    def logits(self, dense: Tensor, vectors: Tensor, weights: Tensor) -> Tensor:
        """Return the logits (B,); `weights` is empty."""
        embeddings = torch.cat([dense, vectors], dim=1)
        hidden = embeddings
        if self.norms is not None:
            parts = torch.split(vectors, list(self.embedding_dims), dim=1)
            normed = [norm(part) for norm, part in zip(self.norms, parts, strict=True)]
            hidden = torch.cat([dense, *normed], dim=1)
        if self.is_serial:
            for block in self.blocks:
                hidden = block(embeddings, hidden)
        else:
            hidden = torch.cat([block(embeddings, hidden) for block in self.blocks], dim=1)
        logits: Tensor = self.mlp(hidden)
        return logits.squeeze(1).float()
