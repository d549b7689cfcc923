"""DARE as its paper and its authors' settings have it, in plain torch: the way without recemb.

Six `nn.Embedding` with dense gradients; vectors of item, category and time side by side; attention
over the whole history, and once more under the mask of the 20 best; two heads with a softmax over
two outputs; Adam over every row of every table in every step.

Shapes: `B` examples, `L` places in a history, `D` width of a table.
"""

import math

import torch
from torch import Tensor, nn

from recemb.data.batch import Batch
from recemb.data.schema import Schema

_MASKED = -(2.0**32) + 1
_ROLES = ("attention", "representation")


class PublishedDARE(nn.Module):
    """Decoupled tables, search, attention and both heads.

    Args:
        schema: item, category and position, each with a history.
        dim: D, of every table.
        top_k: behaviours that are found.
    """

    def __init__(self, schema: Schema, *, dim: int, top_k: int = 20) -> None:
        super().__init__()
        self.columns = [column.name for column in schema.categorical]
        self.tables = nn.ModuleDict(
            {
                f"{column.name}_{role}": nn.Embedding(column.num_embeddings, dim)
                for role in _ROLES
                for column in schema.categorical
            }
        )
        self.dim, self.top_k = dim, top_k
        width = 3 * 3 * dim
        self.main = _head(width, [200, 80])
        self.auxiliary = _head(width, [200])
        for name, parameter in self.named_parameters():
            if "bias" not in name:
                nn.init.normal_(parameter, 0.0, 0.01)

    def loss(self, batch: Batch) -> Tensor:
        """Return the mean loss of a batch whose histories are full."""
        num = len(batch)
        history, target = (
            {
                column: batch.features[f"{column}{suffix}"].values().view(num, -1)
                for column in self.columns
            }
            for suffix in ("_history", "")
        )
        valid = torch.ones_like(history["item"], dtype=torch.bool)
        keys, query = self._vectors("attention", history), self._vectors("attention", target)
        values, own = (self._vectors("representation", ids) for ids in (history, target))
        full = self._attention(keys, query, valid)
        found = torch.zeros_like(valid).scatter(1, full.topk(self.top_k, dim=1).indices, True)
        chosen = self._attention(keys, query, found)
        loss = self._loss(self.main, chosen, values, own, batch.labels)
        loss = loss + self._loss(self.auxiliary, full, values, own, batch.labels)
        squares = [
            parameter.square().sum()
            for name, parameter in self.named_parameters()
            if "bias" not in name and not name.startswith("tables")
        ]
        return loss + 1e-6 * torch.stack(squares).sum()

    def _vectors(self, role: str, ids: dict[str, Tensor]) -> Tensor:
        return torch.cat([self.tables[f"{c}_{role}"](ids[c]) for c in self.columns], dim=2)

    def _attention(self, keys: Tensor, query: Tensor, mask: Tensor) -> Tensor:
        what = 2 * self.dim
        scores = (keys[:, :, :what] * query[:, :, :what]).sum(2) / math.sqrt(what)
        scores = scores + (keys[:, :, what:] * query[:, :, what:]).sum(2) / math.sqrt(self.dim)
        return torch.where(mask, scores, _MASKED).softmax(1)

    def _loss(
        self, head: nn.Module, weights: Tensor, values: Tensor, own: Tensor, labels: Tensor
    ) -> Tensor:
        summed = (weights.unsqueeze(2) * values).sum(1)
        own = own.squeeze(1)
        chance = head(torch.cat([own, summed, own * summed], dim=1)).softmax(1) + 1e-8
        return -torch.where(labels == 1, chance[:, 0], chance[:, 1]).log().mean()


def _head(width: int, hidden: list[int]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.BatchNorm1d(width)]
    for units in hidden:
        layers += [nn.Linear(width, units), nn.PReLU(init=0.1)]
        width = units
    return nn.Sequential(*layers, nn.Linear(width, 2))
