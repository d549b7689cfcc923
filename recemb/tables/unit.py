"""The ids of one unit: chosen from a batch, checked, and turned into rows.

Shapes: `N` ids.
"""

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.tables.address import Addresses
from recemb.tables.bags import Bags, select_bags
from recemb.tables.bounds import BoundsCheck, id_limits
from recemb.tables.layout import Unit
from recemb.tables.lookup import Lookups
from recemb.tables.program import Buffers
from recemb.tables.triton import KernelLookups

AnyLookups = Lookups | KernelLookups


class UnitLookup(nn.Module):
    """Prepares the ids of a batch for the unit's groups.

    Attributes:
        unit: the lookups.
        addresses: runs their address programs.

    Args:
        unit: the lookups.
        buffers: what programs read.
        bounds: what happens to ids out of range.
        dtype: of rows.
        in_kernel: whether Triton's kernels are to compute the rows where they can.
        device: where ids come from.
    """

    limits: Tensor
    slots: Tensor | None

    def __init__(
        self,
        unit: Unit,
        *,
        buffers: Buffers,
        bounds: BoundsCheck,
        dtype: torch.dtype,
        in_kernel: bool,
        device: torch.device,
    ) -> None:
        super().__init__()
        self.unit = unit
        self.addresses = Addresses(unit, buffers=buffers, dtype=dtype, device=device)
        self._bounds = bounds
        self._outputs = unit.outputs
        self._features = tuple(output.feature for output in self._outputs)
        self.register_buffer("limits", id_limits(self._outputs).to(device), persistent=False)
        slots = self.addresses.slots() if in_kernel and unit.is_pooled else None
        slots = None if slots is None else slots.to(device)
        self.register_buffer("slots", slots, persistent=False)

    def forward(self, features: KeyedJaggedTensor, *, one_hot: bool) -> tuple[Bags, AnyLookups]:
        """Return the bags of the unit's features, and the rows that their ids address.

        Args:
            features: the batch.
            one_hot: `bags.is_one_hot(features)`.
        """
        bags = select_bags(features, self._features, one_hot=one_hot)
        ids = self._bounds.apply(bags, self._outputs, self.limits)
        if self.slots is None:
            return bags, self.addresses(bags, ids)
        lookups = KernelLookups(
            bags,
            ids,
            self.slots,
            sources=self.unit.sources,
            has_mean=self.addresses.is_mean is not None,
        )
        return bags, lookups
