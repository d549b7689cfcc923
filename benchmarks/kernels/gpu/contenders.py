"""Who takes part in the plain lookup: recemb, torch's embedding_bag, Inductor and FBGEMM.

Each makes the same (B, T * D) result from the same ids, in the rows' type, and those that train do
one exact step of row-wise Adagrad. A contender owns a copy of the rows.
"""

import importlib.util
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from gpu_case import EPS, LR, Case, Data
from torch import Tensor


class Contender(Protocol):
    """What takes part.

    Attributes:
        name: in the table.
        note: what its rows are to say.
        trains: whether it has a backward pass that updates rows.
        captures_step: whether a whole step can be captured in a CUDA graph.
    """

    name: str
    note: str
    trains: bool
    captures_step: bool

    def __init__(self, data: Data) -> None: ...

    def forward(self, batch: int) -> Any:
        """Return the vectors, with what their backward pass needs."""
        ...

    def backward(self, batch: int, out: Any) -> None:
        """Run the backward pass and update the rows."""
        ...

    def rows(self) -> Tensor:
        """Return the rows (R, D) of all tables."""
        ...


class Recemb:
    """recemb's `bag`: one launch forward, a sort and a fused update backward."""

    name = "recemb"
    note = ""
    trains = True
    captures_step = True

    def __init__(self, data: Data) -> None:
        self.data, self.slots = data, data.slots()
        self.weight = data.weight.clone()
        device = self.weight.device
        self.state = torch.zeros(len(self.weight), device=device)
        hyper = [LR, EPS, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0]
        self.hyper = torch.tensor(hyper, device=device)
        self.anchor = torch.zeros((), device=device, requires_grad=True)

    def forward(self, batch: int) -> Tensor:
        """Return the vectors, with what their backward pass needs."""
        from recemb.kernels.bag import bag

        case = self.data.case
        return bag(
            self.weight, [self.state], self.data.values[batch], self.data.offsets, None, self.slots,
            self.hyper, self.anchor, batch_size=case.batch_size, optimizer="rowwise_adagrad",
            num_lookups=case.num_ids, scaled=False, out_dtype=case.torch_dtype,
        )  # fmt: skip

    def backward(self, batch: int, out: Tensor) -> None:
        """Run the backward pass and update the rows."""
        out.backward(self.data.grad)

    def rows(self) -> Tensor:
        """Return the rows (R, D) of all tables."""
        return self.weight


class Torch:
    """F.embedding_bag on one concatenated table; the update on its coalesced sparse gradient."""

    name = "torch embedding_bag"
    note = "ids are shifted, hashed and the result transposed by torch"
    trains = True
    # Coalescing waits for the host, and a capture that fails may disturb what runs after it.
    captures_step = False

    def __init__(self, data: Data) -> None:
        self.data = data
        self.weight = data.weight.clone().requires_grad_()
        self.state = torch.zeros(len(self.weight), device=self.weight.device)

    def forward(self, batch: int) -> Tensor:
        """Return the vectors, with what their backward pass needs."""
        case, rows = self.data.case, self.data.buffer_rows(batch).view(-1)
        bags = F.embedding_bag(
            rows, self.weight, self.data.offsets, mode="sum", sparse=True, include_last_offset=True
        )
        shaped = bags.view(case.num_tables, case.batch_size, case.width).transpose(0, 1)
        return shaped.reshape(case.batch_size, -1)

    def backward(self, batch: int, out: Tensor) -> None:
        """Run the backward pass and update the rows."""
        out.backward(self.data.grad)
        assert self.weight.grad is not None
        grad = self.weight.grad.coalesce()
        rows, sums = grad.indices()[0], grad.values().float()
        self.weight.grad = None
        with torch.no_grad():
            state = self.state[rows] + sums.square().mean(1)
            self.state[rows] = state
            step = LR * sums / (state.sqrt() + EPS)[:, None]
            self.weight.index_add_(0, rows, -step.to(self.weight.dtype))

    def rows(self) -> Tensor:
        """Return the rows (R, D) of all tables."""
        return self.weight.detach()


class Compiled(Torch):
    """torch.compile of gather and sum, hash included; forward only."""

    name = "torch.compile"
    note = "forward only: its gradient is a dense table"
    trains = False

    def __init__(self, data: Data) -> None:
        super().__init__(data)
        self.weight.requires_grad_(False)
        case = data.case

        def lookup(weight: Tensor, values: Tensor) -> Tensor:
            rows = data.rows(values) + data.first_rows[:, None]
            shape = (case.num_tables, case.batch_size, case.length)
            sums = weight[rows.view(shape)].sum(2, dtype=torch.float32)
            return sums.to(weight.dtype).transpose(0, 1).reshape(case.batch_size, -1)

        # All cases share this function's code, and too many of them would end in eager mode.
        torch.compiler.reset()
        # A dry run must not wait for a C++ compiler.
        backend = "inductor" if self.weight.is_cuda else "aot_eager"
        self.lookup = torch.compile(lookup, backend=backend, fullgraph=True, dynamic=False)

    def forward(self, batch: int) -> Tensor:
        """Return the vectors."""
        found: Tensor = self.lookup(self.weight, self.data.values[batch])
        return found


class Fbgemm:
    """FBGEMM's table-batched embeddings, exact row-wise Adagrad; ids hashed by torch."""

    name = "fbgemm"
    note = "ids are hashed by torch"
    trains = True
    # Not known to be safe, and a capture that fails may disturb what runs after it.
    captures_step = False

    def __init__(self, data: Data) -> None:
        from fbgemm_gpu.split_embedding_configs import SparseType
        from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation
        from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
            ComputeDevice,
            OptimType,
            SplitTableBatchedEmbeddingBagsCodegen,
        )

        self.data, case = data, data.case
        is_cuda = data.weight.is_cuda
        place = (
            (EmbeddingLocation.DEVICE, ComputeDevice.CUDA)
            if is_cuda
            else (EmbeddingLocation.HOST, ComputeDevice.CPU)
        )
        precision = SparseType.from_dtype(case.torch_dtype)
        self.tables = SplitTableBatchedEmbeddingBagsCodegen(
            [(rows, case.width, *place) for rows in case.table_rows],
            device=data.weight.device if is_cuda else None,
            optimizer=OptimType.EXACT_ROWWISE_ADAGRAD,
            learning_rate=LR,
            eps=EPS,
            stochastic_rounding=False,
            weights_precision=precision,
            output_dtype=precision,
        )
        parts = data.weight.split(case.table_rows)
        with torch.no_grad():
            for table, part in zip(self.tables.split_embedding_weights(), parts, strict=True):
                table.copy_(part)

    def forward(self, batch: int) -> Tensor:
        """Return the vectors, with what their backward pass needs."""
        found: Tensor = self.tables(
            self.data.rows(self.data.values[batch]).view(-1), self.data.offsets
        )
        return found

    def backward(self, batch: int, out: Tensor) -> None:
        """Run the backward pass and update the rows."""
        out.backward(self.data.grad)

    def rows(self) -> Tensor:
        """Return the rows (R, D) of all tables."""
        return torch.cat([t.detach() for t in self.tables.split_embedding_weights()])


def contenders() -> list[type[Contender]]:
    """Return those that can run here; recemb first."""
    found: list[type[Contender]] = [Recemb, Torch, Compiled]
    return [*found, Fbgemm] if importlib.util.find_spec("fbgemm_gpu") is not None else found


def why_wrong(data: Data, contender: Any, seed: int) -> str:
    """Return where `contender` differs from the truth in float64; empty if nowhere.

    Bags and rows are drawn, for the truth of all takes too long; the rows that were read are drawn
    by how often, so hot ones are among them, and others at random.
    """
    case: Case = data.case
    device = data.weight.device
    generator = torch.Generator(device).manual_seed(seed)
    exact = case.dtype == "float32"
    # Sums of L numbers of order one in float32; or rounded once to 11 bits.
    close: dict[str, float] = (
        {"rtol": 1e-4, "atol": 1e-4} if exact else {"rtol": 4e-3, "atol": 1e-2}
    )
    num_bags = case.num_tables * case.batch_size
    bags = torch.randint(num_bags, (min(512, num_bags),), generator=generator, device=device)
    touched = data.buffer_rows(0).view(-1)
    picks = torch.randint(len(touched), (24,), generator=generator, device=device)
    others = torch.randint(len(data.weight), (8,), generator=generator, device=device)
    rows = torch.cat([touched[picks], others])
    try:
        out = contender.forward(0)
        found = out.detach().view(case.batch_size, case.num_tables, case.width)
        sampled = found[bags % case.batch_size, bags // case.batch_size].double()
        torch.testing.assert_close(sampled, data.sampled_vectors(0, bags), **close)
        if contender.trains:
            contender.backward(0, out)
            updated = contender.rows()[rows].double()
            torch.testing.assert_close(updated, data.sampled_update(0, rows), **close)
    except AssertionError as error:
        return "wrong: " + " ".join(str(error).split())[:160]
    return ""
