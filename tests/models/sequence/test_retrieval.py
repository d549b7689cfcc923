"""Retrieval: in one stage or two, by the op or by PyTorch, from any tables: one result."""

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from recemb.models.sequence.dare import DARE
from recemb.models.sequence.retrieval import retrieve, retrieved_sums, vectors_of
from recemb.models.sequence.twin import TWIN
from recemb.models.sequence.twin_4e import TWIN4E

KINDS = [TWIN, DARE, TWIN4E]
every_kind = pytest.mark.parametrize("kind", KINDS)
LENGTHS = [9, 3, 0, 2, 5]
K = 3
# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-5, "atol": 1e-6}


class Memory(TorchDispatchMode):
    """Counts the bytes of tensors that are made and still alive."""

    def __init__(self) -> None:
        super().__init__()
        self.peak_bytes = 0
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self._alive[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self._alive = {k: v for k, v in self._alive.items() if not v[0].expired()}
        self.peak_bytes = max(self.peak_bytes, sum(size for _, size in self._alive.values()))
        return made


def without_stored_vectors(tables):
    """Return the tables as if their vectors were made by a method."""
    tables.stored_vectors = lambda key: None
    return tables


@every_kind
def test_scores_in_two_stages_are_those_in_one(make, draw, kind) -> None:
    model, tables = make(kind, top_k=K)
    one = model.eval().score(draw(LENGTHS), tables)
    with torch.no_grad():
        two = model.score(draw(LENGTHS), tables)
    torch.testing.assert_close(two, one, **ROUNDING)


@every_kind
@pytest.mark.parametrize("k", [1, K, 20])
@pytest.mark.parametrize("are_stored", [True, False])
def test_the_op_retrieves_what_torch_does(make, draw, kind, k, are_stored) -> None:
    model, tables = make(kind)
    if not are_stored:
        without_stored_vectors(tables)
    torch_, kernel = (
        retrieve(draw(LENGTHS), tables, model.parts, k, engine=e) for e in ("torch", "kernel")
    )
    for one, other in zip(torch_, kernel, strict=True):
        torch.testing.assert_close(one, other, **ROUNDING)


def test_the_op_retrieves_from_wide_and_narrow_tables(make, draw) -> None:
    model, tables = make(DARE, attention_dim={"item": 2, "position": 6}, representation_dim=8)
    torch_, kernel = (
        retrieve(draw(LENGTHS), tables, model.parts, K, engine=e) for e in ("torch", "kernel")
    )
    torch.testing.assert_close(torch_.sums, kernel.sums, **ROUNDING)


@every_kind
def test_the_op_trains_as_torch_does(make, draw, kind) -> None:
    found = []
    for engine in ("torch", "kernel"):
        model, tables = make(kind)
        inputs = model.inputs(draw(LENGTHS), tables)
        sums = retrieved_sums(inputs, model.parts, K, engine=engine)
        sums.backward(torch.linspace(-1, 1, sums.numel()).view_as(sums))
        found.append([sums.detach(), *(weight.grad for weight in tables.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, **ROUNDING)


def test_stored_vectors_are_the_rows(make) -> None:
    _, tables = make(DARE)
    for key, dim in tables.sequence_dims.items():
        ids = torch.tensor([[3, 0, 5]])
        assert torch.equal(tables.stored_vectors(key)[ids[0]], tables.rows(key, ids[0]))
        assert torch.equal(vectors_of(tables, key, ids), tables.rows(key, ids[0]).view(1, 3, dim))


def test_the_second_stage_reads_representations_of_what_was_found_alone(make, draw) -> None:
    model, tables = make(DARE, top_k=K)
    without_stored_vectors(tables)
    read, rows = [], tables.rows
    tables.rows = lambda key, ids: (read.append((key, ids.numel())), rows(key, ids))[1]
    with torch.no_grad():
        model.eval().score(draw([9, 7]), tables)
    sizes = dict(read)
    assert sizes["item_history@item.attention"] == 2 * 9
    assert sizes["item_history@item.representation"] == 2 * K


def test_an_id_out_of_range_is_left_to_the_tables(make, draw) -> None:
    model, tables = make(DARE)
    batch = draw([4])
    batch.features["item_history"].values()[1] = 10_000
    with torch.no_grad(), pytest.raises(ValueError, match="has id 10000"):
        model.eval().score(batch, tables)


def test_ten_thousand_behaviours_are_scored_in_the_memory_of_their_ids(make, draw) -> None:
    size, num, dim = 10_000, 8, 64
    model, tables = make(DARE, dim=dim, top_k=20)
    batch = draw([size] * num)
    # Positions beyond the table of this schema.
    batch.features["position_history"].values().remainder_(9)
    with torch.no_grad(), Memory() as memory:
        model.eval().score(batch, tables)
    num_ids = 3 * num * size
    block = 4 * dim * size
    assert memory.peak_bytes < 8 * num_ids + 40 * num * size + 2 * block
    # What the first stage reads: were it kept, nothing else would fit.
    assert memory.peak_bytes < 3 * num * size * dim * 4 / 2
