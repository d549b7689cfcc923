"""Each fused kernel beside the torch operations that it replaces, forward.

A pair is made on fresh data; both sides compute the same, which is checked before they are timed.

Shapes: `T` features, `B` batch, `L` ids per bag, `D` width, `P` probes, `R` rows.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from gpu_case import Case, Data
from torch import Tensor

SEARCH_LENGTH, SEARCH_K, SEARCH_WIDTH = 200, 20, 16
NUM_PROBES = 4


@dataclass(frozen=True, kw_only=True)
class Pair:
    """One kernel and its unfused form.

    Attributes:
        name: of what is computed.
        fused: makes the result of a batch.
        unfused: makes the same.
        note: what the unfused form is.
    """

    name: str
    fused: Callable[[int], Tensor]
    unfused: Callable[[int], Tensor]
    note: str


def multi_probe(data: Data) -> Pair:
    """Return the P-slot lookup beside hashing in torch and an ordinary lookup by recemb itself.

    The ordinary lookup is ours, not torch's, so that the difference is where the hash runs.
    """
    from recemb.kernels.bag import bag_forward, pack_slots
    from recemb.kernels.hashing import hash_rows

    case, device = data.case, data.weight.device
    weight = data.weight.view(-1, case.width // NUM_PROBES)
    num_slots, num_rows = case.num_tables * NUM_PROBES, len(weight)
    seeds = [(s + 0x85EBCA6B * p) & 0xFFFFFFFF for s in case.seeds for p in range(NUM_PROBES)]
    features = [s // NUM_PROBES for s in range(num_slots)]
    starts, sizes, off = [0] * num_slots, [num_rows] * num_slots, [False] * num_slots
    hashed = pack_slots(features, starts, sizes, seeds, [True] * num_slots, off, device)
    plain = pack_slots(range(num_slots), starts, sizes, seeds, off, off, device)
    seed_column = torch.tensor(seeds, device=device).view(case.num_tables, NUM_PROBES, 1)
    num_ids = case.num_ids * NUM_PROBES
    offsets = torch.arange(0, num_ids + 1, case.length, device=device)

    def fused(batch: int) -> Tensor:
        return bag_forward(weight, data.values[batch], data.offsets, None, hashed,
                           batch_size=case.batch_size, out_dtype=case.torch_dtype)  # fmt: skip

    def unfused(batch: int) -> Tensor:
        values = data.values[batch].view(case.num_tables, 1, -1)
        rows = hash_rows(values, seed_column, num_rows).view(-1)
        return bag_forward(weight, rows, offsets, None, plain, batch_size=case.batch_size,
                           out_dtype=case.torch_dtype)  # fmt: skip

    return Pair(name="multi-probe", fused=fused, unfused=unfused,
                note=f"{NUM_PROBES} probes; unfused: hash in torch, recemb's lookup")  # fmt: skip


def masked(data: Data) -> Pair:
    """Return OptEmbed's masks of rows and columns, in the kernel and after F.embedding."""
    from recemb.kernels.masked_bag import masked_bag

    case, device = data.case, data.weight.device
    thresholds = torch.full((case.num_tables,), 0.8 * case.width, device=device)
    widths = torch.arange(case.num_ids, device=device) % case.width + 1
    column = torch.arange(case.width, device=device)

    def fused(batch: int) -> Tensor:
        return masked_bag(data.weight, data.buffer_rows(batch).view(-1), data.offsets,
                          num_features=case.num_tables, thresholds=thresholds,
                          lookup_widths=widths)  # fmt: skip

    def unfused(batch: int) -> Tensor:
        found = torch.nn.functional.embedding(data.buffer_rows(batch), data.weight)
        norms = found.abs().sum(2, dtype=torch.float32)
        kept = (norms > thresholds[:, None]).unsqueeze(2) & (column < widths.view(*norms.shape, 1))
        return _pool(found * kept, case)

    return Pair(name="masked", fused=fused, unfused=unfused,
                note="thresholds and prefixes; unfused: embedding, norm, masks, sum")  # fmt: skip


def composed(data: Data) -> Pair:
    """Return quotient and remainder, multiplied in the kernel and by torch."""
    from recemb.kernels.composed_bag import composed_bag

    case, device = data.case, data.weight.device
    parts = [round(rows**0.5) + 1 for rows in case.table_rows]
    starts = torch.tensor([[0, p] for p in parts], device=device)
    starts[:, :] += torch.tensor(case.first_rows, device=device)[:, None]
    sizes = torch.tensor([[p, p] for p in parts], device=device)
    divisors = torch.tensor([[p, 1] for p in parts], device=device)

    def fused(batch: int) -> Tensor:
        return composed_bag(data.weight, data.values[batch], data.offsets, first_rows=starts,
                            num_rows=sizes, divisors=divisors)  # fmt: skip

    def unfused(batch: int) -> Tensor:
        ids = data.values[batch].view(case.num_tables, -1)
        factors = [
            torch.nn.functional.embedding(
                starts[:, j, None] + ids // divisors[:, j, None] % sizes[:, j, None], data.weight
            )
            for j in range(2)
        ]
        return _pool(factors[0] * factors[1], case)

    return Pair(name="composed", fused=fused, unfused=unfused,
                note="quotient, remainder; unfused: two embeddings, product, sum")  # fmt: skip


def robe(data: Data) -> Pair:
    """Return aligned ROBE chunks, fetched by the kernel and by indexing in torch."""
    from recemb.kernels.hashing import hash_rows
    from recemb.kernels.robe import robe_bag

    case, device = data.case, data.weight.device
    length = min(16, case.width)
    num_chunks = case.width // length
    params = data.weight.view(-1)[: min(10_000_000, data.weight.numel()) // length * length]
    seeds = data.seeds[:, None] ^ torch.arange(num_chunks, device=device)

    def fused(batch: int) -> Tensor:
        return robe_bag(params, data.values[batch], data.offsets, width=case.width,
                        chunk_size=length, seeds=seeds, aligned=True)  # fmt: skip

    def unfused(batch: int) -> Tensor:
        values = data.values[batch].view(case.num_tables, -1, 1)
        rows = hash_rows(values, seeds[:, None, :], len(params) // length)
        found = params.view(-1, length)[rows].reshape(*values.shape[:2], case.width)
        return _pool(found, case)

    return Pair(name="robe", fused=fused, unfused=unfused,
                note=f"aligned chunks of {length}; unfused: torch's hash, gather, sum")  # fmt: skip


def quantized(data: Data) -> Pair:
    """Return int8 rows, widened in the kernel and after a gather in torch."""
    from recemb.kernels.quantized_bag import dequantize_rows, quantize_rows, quantized_bag

    case = data.case
    packed = quantize_rows(data.weight, 8)

    def fused(batch: int) -> Tensor:
        return quantized_bag(packed, data.buffer_rows(batch).view(-1), data.offsets,
                             width=case.width, bits=8, num_features=case.num_tables,
                             out_dtype=case.torch_dtype)  # fmt: skip

    def unfused(batch: int) -> Tensor:
        rows = packed[data.buffer_rows(batch).view(-1)]
        found = dequantize_rows(rows, case.width, 8, case.torch_dtype)
        return _pool(found.view(case.num_tables, -1, case.width), case)

    return Pair(name="quantized", fused=fused, unfused=unfused,
                note="int8 rows; unfused: gather, dequantise, sum")  # fmt: skip


def search(data: Data) -> Pair:
    """Return DARE's search over long histories, and its unfused form.

    The case's first three tables are the attention tables of item, category and time; others of
    the same shape hold the representations. Ids are drawn anew, as a history has its own length.
    """
    from recemb.kernels.search_attention import SearchPart, search_attention

    case, device = data.case, data.weight.device
    size = min(SEARCH_LENGTH, 8 * case.batch_size)
    k = min(SEARCH_K, size // 2)
    generator = torch.Generator(device).manual_seed(1)
    tables = data.weight.split(case.table_rows)[:3]
    others = [t.flip(0) for t in tables]
    targets = [torch.randn(case.batch_size, case.width, device=device, generator=generator)
               / case.width**0.5 for _ in tables]  # fmt: skip
    lengths = torch.full((case.batch_size,), size, device=device)
    histories = [
        [torch.randint(len(t), (case.batch_size, size), device=device, generator=generator)
         for t in tables]
        for _ in data.values
    ]  # fmt: skip

    def fused(batch: int) -> Tensor:
        parts = [
            SearchPart(*p) for p in zip(tables, others, histories[batch], targets, strict=True)
        ]
        return search_attention(parts, lengths, k).sums

    def unfused(batch: int) -> Tensor:
        ids = histories[batch]
        keys = torch.cat([t[i] for t, i in zip(tables, ids, strict=True)], dim=2)
        values = torch.cat([t[i] for t, i in zip(others, ids, strict=True)], dim=2)
        scores = (keys.float() @ torch.cat(targets, dim=1).unsqueeze(2)).squeeze(2)
        best, places = scores.topk(k, dim=1)
        chosen = values.gather(1, places.unsqueeze(2).expand(-1, -1, values.shape[2])).float()
        sums = (best.softmax(1).unsqueeze(1) @ chosen).squeeze(1)
        return sums.to(values.dtype)

    return Pair(name="search", fused=fused, unfused=unfused,
                note=f"L {size}, K {k}, 3 parts; unfused: the steps in torch")  # fmt: skip


PAIRS: dict[str, Callable[[Data], Pair]] = {
    "multi-probe": multi_probe,
    "masked": masked,
    "composed": composed,
    "robe": robe,
    "quantized": quantized,
    "search": search,
}


def pair_cases(name: str, *, quick: bool, dry: bool) -> list[Case]:
    """Return the cases of a pair: bags of one id, and of twenty; the search has its own."""
    if dry:
        return [Case(batch_size=4, length=2, width=8, num_tables=3, fewest_rows=20, most_rows=50)]
    if name == "search":
        return [Case(batch_size=2048, length=1, width=SEARCH_WIDTH, num_tables=3,
                     fewest_rows=100_000, most_rows=4_000_000)]  # fmt: skip
    sizes = (4096,) if quick else (4096, 65536)
    return [Case(batch_size=size, length=length, width=64, is_zipf=zipf)
            for size in sizes for length in (1, 20) for zipf in (False, True)]  # fmt: skip


def why_different(pair: Pair, dtype: torch.dtype) -> str:
    """Return how the two sides of a pair differ on the first batch; empty if they agree.

    A row whose norm lies within rounding of its threshold may go either way, and a behaviour whose
    score ties with the K-th to within rounding changes all sums of its example: one element in ten
    thousand, or the sums of four examples in two thousand, are let pass.
    """
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 4e-3, "atol": 1e-2}
    ours, theirs = pair.fused(0).float(), pair.unfused(0).float()
    theirs = theirs.reshape(ours.shape)
    allowed = {"masked": 1e-4, "search": 2e-3}.get(pair.name, 0.0)
    share = (~torch.isclose(ours, theirs, **close)).float().mean().item()
    return f"wrong: {share:.2%} of the elements differ" if share > allowed else ""


def _pool(found: Tensor, case: Case) -> Tensor:
    shape = (case.num_tables, case.batch_size, case.length, case.width)
    return found.view(shape).sum(2).transpose(0, 1).contiguous()
