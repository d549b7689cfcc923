"""The serving form of CCE: bytes, rows, pooling."""

import pytest
import torch

from recemb.ids.hashing import hash_rows
from recemb.methods.code_sums import CodeSums, SumForm

SEEDS = [7, 11, 13]


def made(*, num_entries=20):
    """Return 100 rows of three chunks of two values, with codes (100, 3) and rows (3, r, 2)."""
    generator = torch.Generator().manual_seed(0)
    stored = SumForm(num_rows=100, width=6, num_chunks=3, num_entries=num_entries)
    codes = torch.randint(0, num_entries, (100, 3), generator=generator)
    centroids, hashed = torch.randn(2, 3, num_entries, 2, generator=generator)
    source = CodeSums.of(
        stored,
        codes=codes,
        centroids=centroids.flatten(0, 1),
        hashed=hashed.flatten(0, 1),
        hash_seeds=SEEDS,
    )
    return source, codes, centroids, hashed


def test_a_chunk_is_the_sum_of_its_code_s_row_and_a_hashed_one():
    source, codes, centroids, hashed = made()
    ids = torch.tensor([0, 99, 42, 42])
    expected = []
    for j, seed in enumerate(SEEDS):
        bucket = torch.from_numpy(hash_rows(ids.numpy(), seed, 20))
        expected.append(centroids[j, codes[ids, j]] + hashed[j, bucket])
    assert torch.equal(source("t", ids), torch.cat(expected, dim=1))


@pytest.mark.parametrize(("num_entries", "bytes_of_a_row"), [(2, 1), (4, 1), (20, 2), (257, 4)])
def test_the_bytes_are_those_of_the_tensors(num_entries, bytes_of_a_row):
    source, *_ = made(num_entries=num_entries)
    assert sum(tensor.nbytes for _, tensor in source.parts()) == source.stored.num_bytes
    assert source.serve_bytes() == {
        "codes": 100 * bytes_of_a_row,
        "weights": 2 * num_entries * 6 * 4,
        "hash_constants": 3 * 8,
    }


def test_settings_make_a_source_of_the_same_shapes():
    source, *_ = made()
    again = CodeSums(**source.settings())
    shapes = {name: tensor.shape for name, tensor in source.parts()}
    assert {name: tensor.shape for name, tensor in again.parts()} == shapes
