"""Hashed rows times scalars."""

import torch

from recemb.methods.mem_com import MEmCom
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

LARGE = TableSpec(name="large", num_embeddings=1000, embedding_dim=8, feature_names=("a",))
SMALL = TableSpec(name="small", num_embeddings=100, embedding_dim=8, feature_names=("b",))


def build(method, *specs, ratio):
    budget = Budget(ratio=ratio)
    named = {"optimizer": None, "seed": 1, "device": torch.device("cpu")}
    return method.build(list(specs), {}, budget, **named)


def test_vectors_of_ids_that_share_a_row_are_parallel_in_the_ratio_of_their_scalars():
    tables = build(MEmCom(), LARGE, ratio=0.25)
    with torch.no_grad():
        scales = tables.table("large_scale")
        scales.copy_(torch.arange(1.0, 1001.0).unsqueeze(1))
        rows = tables.rows("a", torch.arange(1000)) / scales
    # 1000 ids have 0.25 * 1000 - 1000 / 8 = 125 rows to share.
    assert len(torch.unique(rows.round(decimals=5), dim=0)) <= 125


def test_small_tables_stay():
    tables = build(MEmCom(), LARGE, SMALL, ratio=0.5)
    assert tables.table("small").shape == (100, 8)
    assert torch.equal(tables.rows("b", torch.arange(100)), tables.table("small"))


def test_the_paper_compresses_small_tables_too():
    tables = build(MEmCom(exact_below=0), LARGE, SMALL, ratio=0.5)
    assert tables.table("small").shape[0] < 100
