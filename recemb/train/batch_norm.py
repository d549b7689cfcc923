"""Batch normalisation over the batches of all ranks.

torch.nn.SyncBatchNorm does the same on GPUs only.

Shapes: `B` examples of this rank, `D` features.
"""

from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.nn.functional import all_reduce

from recemb.models.batch_norm import BatchNorm
from recemb.train.ranks import Ranks

ModelT = TypeVar("ModelT", bound=nn.Module)

# torch gives it no types.
_sum_over_ranks: Callable[[Tensor], Tensor] = all_reduce


class RankBatchNorm(BatchNorm):
    """Normalises (B, D) by mean and variance of the examples of all ranks; collective in training.

    Its state_dict is that of torch.nn.BatchNorm1d.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return the normalised values (B, D); B may be 0.

        Raises:
            ValueError: in training on one example of all ranks before any larger batch.
        """
        if not self.training:
            return nn.BatchNorm1d.forward(self, values)
        ones = values.new_ones(values.shape[0], 1)
        sums = _sum_over_ranks(torch.cat([values, ones], dim=1).sum(dim=0))
        count = sums[-1]
        if int(count) == 1:
            return self.of_one(values)
        mean = sums[:-1] / count
        variance = _sum_over_ranks((values - mean).square().sum(dim=0)) / count
        self._follow(mean.detach(), variance.detach(), int(count))
        normal = (values - mean) * torch.rsqrt(variance + self.eps)
        return normal * self.weight + self.bias if self.affine else normal

    def _follow(self, mean: Tensor, variance: Tensor, count: int) -> None:
        """Move the running statistics as torch does: with the unbiased variance."""
        if self.running_mean is None or self.running_var is None:
            return
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        share = self.momentum
        if share is None:
            share = 1 / float(self.num_batches_tracked)
        unbiased = variance * (count / max(1, count - 1))
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(unbiased, share)


def synchronise(model: ModelT) -> ModelT:
    """Return the model, its batch normalisations replaced by those over all ranks; in place."""
    if Ranks.current().world_size == 1:
        return model
    for parent in model.modules():
        for name, child in parent.named_children():
            if isinstance(child, nn.BatchNorm1d):
                made = RankBatchNorm(
                    child.num_features,
                    eps=child.eps,
                    momentum=child.momentum,
                    affine=child.affine,
                    track_running_stats=child.track_running_stats,
                    device=next((t.device for t in child.state_dict().values()), None),
                )
                made.load_state_dict(child.state_dict())
                parent.add_module(name, made)
    return model
