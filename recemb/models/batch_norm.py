"""Batch normalisation that can train on a batch of one.

Shapes: `B` examples, `D` features.
"""

from torch import Tensor, nn
from torch.nn import functional as F


class BatchNorm(nn.BatchNorm1d):
    """torch.nn.BatchNorm1d, but one example in training is normalised as in evaluation.

    One example has no variance. The last batch of an epoch may hold a single one; the running
    statistics normalise it then, and stay as they are.

    Its state_dict is that of torch.nn.BatchNorm1d.
    """

    def forward(self, values: Tensor) -> Tensor:
        """Return the normalised values (B, D).

        Raises:
            ValueError: in training on one example before any larger batch.
        """
        if not self.training or values.shape[0] != 1:
            return super().forward(values)
        return self.of_one(values)

    def of_one(self, values: Tensor) -> Tensor:
        """Return (B, D) normalised by the running statistics, which stay as they are.

        Raises:
            ValueError: if there are none yet.
        """
        if not self.num_batches_tracked:
            raise ValueError(
                "batch norm: the first training batch has one example, which has no variance; set "
                "trainer.batch_size to 2 or more, or choose a model without batch norm"
            )
        return F.batch_norm(
            values, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps
        )
