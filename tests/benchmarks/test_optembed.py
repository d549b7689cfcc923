"""The benchmark of OptEmbed's claims: the data it plants, and how it judges."""

import json

import pytest
import torch

from recemb.tables import TableSpec, full_tables

FOLDERS = ("accuracy",)


def test_the_planted_data_have_the_sizes_they_are_said_to_have(load, tmp_path):
    data = load("optembed_data")
    assert sum(data.SIZES) == 34_688
    noise = sum(data.SIZES[place] for place in data.NOISE_FIELDS)
    assert noise / 34_688 == pytest.approx(0.79, abs=0.005)
    prepared = data.synthetic(tmp_path)
    assert sum(prepared.num_rows(split) for split in prepared.splits) == 60_000
    counts = torch.cat([prepared.id_counts(f"f{f:02d}") for f in range(len(data.SIZES))])
    assert float((counts == 0).float().mean()) == pytest.approx(0.3, abs=0.02)


def row(variant: str, seed: int, **named: object) -> tuple[tuple[str, str, int], dict[str, str]]:
    values = {"test_auc": 0.75, "sparsity": 0.0, "rows_kept": 1.0, "unseen_pruned": 0.0}
    blank = {"frequent_pruned": 0.0, "first_generation": "", "last_generation": ""}
    widths = {"widths": json.dumps([16] * 12)}
    row = {key: str(value) for key, value in {**values, **blank, **widths, **named}.items()}
    return ("synthetic", variant, seed), row


def test_a_claim_that_is_missed_is_said_to_be(load):
    benchmark, variants = load("optembed"), load("optembed_variants")
    noise = load("optembed_data").NOISE_FIELDS
    searched = json.dumps([2 if place in noise else 12 for place in range(12)])
    found = {"first_generation": 0.70, "last_generation": 0.71, "widths": searched}
    rows = dict(
        [
            row("base", 1),
            row("E: rows", 1, test_auc=0.748, rows_kept=0.7, unseen_pruned=1.0),
            row("D: widths", 1, test_auc=0.76, **found),
            row("D, random widths", 1, test_auc=0.75),
            row(variants.FULL, 1, test_auc=0.75, sparsity=0.65, **found),
            row("full, random widths", 1, test_auc=0.7),
        ]
    )
    lines = benchmark.claims("synthetic", rows)
    missed = [line for line in lines if line.endswith("NO |")]
    assert len(missed) == 1
    assert "searched over random widths | +0.0100 | 0.015" in missed[0]
    assert any("noise fields' | +6.0000" in line for line in lines)
    assert any("first generation's | +0.0100" in line for line in lines)
    assert any("every search, least | +0.0100" in line for line in lines)


def test_claims_wait_for_all_variants(load):
    assert load("optembed").claims("synthetic", dict([row("base", 1)])) == []


def test_rows_of_zeros_are_the_pruned_ones(load):
    class Counted:
        def id_counts(self, feature: str) -> torch.Tensor:
            return torch.tensor([0, 0, 3, 3, 99, 99])

    size = {"num_embeddings": 6, "feature_names": ("f",)}
    tables = full_tables(
        [
            TableSpec(name="f", embedding_dim=4, **size),
            TableSpec(name="f.first_order", embedding_dim=1, **size),
        ]
    )
    with torch.no_grad():
        tables.table("f")[[0, 1, 2]] = 0
        tables.table("f.first_order")[:] = 0
    assert load("optembed").pruned_shares(tables, Counted()) == {
        "rows_kept": 0.5,
        "unseen_pruned": 1.0,
        "rare_pruned": 0.5,
        "frequent_pruned": 0.0,
    }
