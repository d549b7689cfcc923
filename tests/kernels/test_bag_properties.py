"""The pooled lookup on any batch: kernels, list of lookups and weights' gradient agree."""

import pytest
import torch
from torch import Tensor

from recemb.kernels.bag import count_lookups, launch, pack_slots, reference
from recemb.kernels.bag_weight_gradient import kernel as gradient_kernel
from recemb.kernels.bag_weight_gradient import reference as gradient_reference

hypothesis = pytest.importorskip("hypothesis")
st = hypothesis.strategies

# Sums of at most a few dozen float32 numbers of order one.
FLOAT32 = {"atol": 1e-4, "rtol": 1e-5}
FLOAT64 = {"atol": 1e-10, "rtol": 1e-10}
IDS = st.one_of(st.integers(-3, 12), st.sampled_from([2**31, -(2**31), 2**63 - 1, -(2**63)]))


class Batch:
    """A drawn batch: up to 3 features of up to 4 bags, read by up to 4 slots of 12 rows."""

    def __init__(self, draw: st.DataObject) -> None:
        self.num_features = draw.draw(st.integers(1, 3))
        self.batch_size = draw.draw(st.integers(1, 4))
        num_bags = self.num_features * self.batch_size
        self.lengths = draw.draw(st.lists(st.integers(0, 3), min_size=num_bags, max_size=num_bags))
        slots = st.tuples(
            st.integers(0, self.num_features - 1),
            st.integers(0, 4),
            st.integers(1, 8),
            st.integers(0, 2**32 - 1),
            st.booleans(),
            st.booleans(),
        )
        self.columns = list(zip(*draw.draw(st.lists(slots, min_size=1, max_size=4)), strict=True))
        self.width = draw.draw(st.sampled_from([1, 3, 4]))
        self.policy = draw.draw(st.sampled_from(["ignore", "clamp"]))
        num_ids = sum(self.lengths)
        self.values = torch.tensor(
            draw.draw(st.lists(IDS, min_size=num_ids, max_size=num_ids)), dtype=torch.int64
        )
        generator = torch.Generator().manual_seed(draw.draw(st.integers(0, 99)))
        self.weights = torch.rand(num_ids, generator=generator)
        self.weight = torch.randn(12, self.width, generator=generator)
        out = (self.batch_size, len(self.columns[0]) * self.width)
        self.grad = torch.randn(out, generator=generator)
        self.offsets = torch.nn.functional.pad(torch.tensor(self.lengths).cumsum(0), (1, 0))
        self.slots = pack_slots(*self.columns)
        self.how = {"batch_size": self.batch_size, "policy": self.policy}

    def lookups(self) -> tuple[Tensor, Tensor, Tensor | None]:
        sizes = [
            sum(self.lengths[f * self.batch_size : (f + 1) * self.batch_size])
            for f in range(self.num_features)
        ]
        return reference.bag_rows(
            self.values,
            self.offsets,
            self.weights.double(),
            self.slots,
            sentinel=12,
            num_lookups=count_lookups(sizes, self.columns[0]),
            scale_dtype=torch.float64,
            **self.how,
        )

    def forward(self) -> Tensor:
        return reference.bag_forward(
            self.weight.double(),
            self.values,
            self.offsets,
            self.weights.double(),
            self.slots,
            out_dtype=torch.float64,
            **self.how,
        )


@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_lookup_is_the_sum_over_the_list_of_lookups(draw: st.DataObject) -> None:
    batch = Batch(draw)
    rows, sources, scales = batch.lookups()
    assert scales is not None
    table = torch.cat([batch.weight.double(), torch.zeros(1, batch.width)])
    expected = torch.zeros(batch.grad.numel() // batch.width, batch.width, dtype=torch.float64)
    expected.index_add_(0, sources.long(), table[rows.long()] * scales.unsqueeze(1))
    torch.testing.assert_close(batch.forward(), expected.view_as(batch.grad), **FLOAT64)


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_weight_gradient_is_the_adjoint_of_the_lookup(draw: st.DataObject) -> None:
    # The lookup is linear in the weights: <grad, lookup(weights)> = <gradient, weights>.
    batch = Batch(draw)
    gradient = gradient_reference.bag_weight_gradient(
        batch.weight.double(), batch.values, batch.offsets, batch.slots, batch.grad, **batch.how
    )
    left = (batch.forward() * batch.grad).sum()
    torch.testing.assert_close(left, (gradient * batch.weights).sum(), **FLOAT64)


@pytest.mark.slow
@hypothesis.settings(max_examples=60, deadline=None, derandomize=True)
@hypothesis.given(st.data())
def test_kernels_are_the_references(draw: st.DataObject) -> None:
    batch = Batch(draw)
    lookup = (batch.values, batch.offsets, batch.weights, batch.slots)
    found = launch.bag_forward(batch.weight, *lookup, **batch.how)
    torch.testing.assert_close(found.double(), batch.forward(), **FLOAT32)
    rows, sources, scales = batch.lookups()
    ours = launch.bag_rows(*lookup, sentinel=12, num_lookups=len(rows), **batch.how)
    assert torch.equal(ours[0], rows)
    assert torch.equal(ours[1], sources)
    torch.testing.assert_close(ours[2], scales, check_dtype=False, **FLOAT32)
    table = (batch.values, batch.offsets, batch.slots, batch.grad)
    gradient = gradient_kernel.bag_weight_gradient(batch.weight, *table, **batch.how)
    expected = gradient_reference.bag_weight_gradient(batch.weight.double(), *table, **batch.how)
    torch.testing.assert_close(gradient.double(), expected, **FLOAT32)
