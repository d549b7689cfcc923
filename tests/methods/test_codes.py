"""Codes: bytes of every form, and the vectors that come back."""

import pytest
import torch

from recemb.kernels.code_bag import code_bag
from recemb.methods.codes import CodeForm, CodeRows, bits_of, read_codebooks


def form(**changes):
    named = {"num_rows": 3000, "width": 12, "num_parts": 4, "num_centroids": 200}
    return CodeForm(**{**named, **changes})


def drawn(stored, *, seed=0):
    """Return codes (n, P), codebooks (P, K, Z) and head rows (n,) that fit a form."""
    generator = torch.Generator().manual_seed(seed)
    is_head = torch.zeros(stored.num_rows, dtype=torch.bool)
    num_head = stored.num_rows if stored.num_head is None else stored.num_head
    is_head[torch.randperm(stored.num_rows, generator=generator)[:num_head]] = True
    shape = (stored.num_rows, stored.num_parts)
    codes = torch.randint(0, stored.num_centroids, shape, generator=generator)
    if stored.tail_centroids is not None:
        codes[~is_head] %= stored.tail_centroids
    shape = (stored.num_parts, stored.num_centroids, stored.width // stored.num_parts)
    return codes, torch.randn(shape, generator=generator), is_head


SPLIT = {"num_centroids": 256, "num_head": 300, "tail_centroids": 64}


@pytest.mark.parametrize(
    ("num_codes", "bits"), [(1, 1), (2, 1), (3, 2), (32, 5), (33, 6), (256, 8)]
)
def test_a_code_has_the_bits_that_its_values_need(num_codes, bits):
    assert bits_of(num_codes) == bits


@pytest.mark.parametrize(
    "changes",
    [{}, {"num_parts": 1}, {"num_parts": 12, "num_centroids": 3}, {"num_rows": 1}, SPLIT],
    ids=str,
)
def test_rows_are_the_centroids_that_the_codes_name(changes):
    stored = form(**changes)
    codes, codebooks, is_head = drawn(stored)
    made = CodeRows.of(stored, codes, codebooks, is_head)
    for i in (0, stored.num_rows // 2, stored.num_rows - 1):
        expected = torch.cat([codebooks[p, codes[i, p]] for p in range(stored.num_parts)])
        assert torch.equal(made("t", torch.tensor([i]))[0], expected)
    ids = torch.arange(stored.num_rows)
    assert torch.equal(made.codes_of(ids).long(), codes)
    assert torch.equal(made("t", ids), read_codebooks(codebooks, codes))


@pytest.mark.parametrize(
    "changes", [{}, SPLIT, {"num_rows": 1025, **SPLIT}, {"num_rows": 9}], ids=str
)
def test_the_bytes_are_those_of_the_tensors(changes):
    stored = form(**changes)
    made = CodeRows.of(stored, *drawn(stored))
    assert sum(tensor.nbytes for _, tensor in made.parts()) == stored.num_bytes
    assert made.serve_bytes() == stored.parts()


def test_codes_take_whole_bytes_for_each_row():
    # 4 codes of 5 bits are 20 bits, so 3 bytes; 4 x 20 x 3 values of 4 bytes.
    stored = form(num_centroids=20)
    assert stored.parts() == {"codes": 3000 * 3, "codebooks": 4 * 20 * 3 * 4}


def test_a_tail_of_fewer_bits_lies_in_a_table_of_its_own_behind_a_bitmap():
    # A bit for each of 3000 ids, and 4 bytes for each 1024 of them.
    parts = form(**SPLIT).parts()
    assert parts["codes"] == 300 * 4 + 2700 * 3
    assert parts["indices"] == 375 + 3 * 4


def test_a_tail_whose_codes_take_as_many_bytes_stays_with_the_head():
    # One code of 6 bits takes a byte, as one of 8 bits does.
    stored = form(num_parts=1, **SPLIT)
    assert not stored.is_split
    assert stored.parts() == {"codes": 3000, "codebooks": 256 * 12 * 4}


def test_the_kernel_reads_the_same_rows():
    stored = form()
    made = CodeRows.of(stored, *drawn(stored))
    ids = torch.randint(0, stored.num_rows, (50,), generator=torch.Generator().manual_seed(1))
    found = code_bag(made.get_buffer("codes"), made.get_buffer("codebooks"), ids, bits=stored.bits)
    assert torch.equal(found.squeeze(1), made("t", ids))
