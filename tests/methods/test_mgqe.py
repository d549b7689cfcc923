"""MGQE: head and tail, the published sizes, training on planted clicks."""

import dataclasses

import pytest
import torch

from recemb.methods.mgqe import MGQE
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

SPEC = TableSpec(name="t", num_embeddings=4000, embedding_dim=16, feature_names=("f0", "f1"))


def build(stats, **changes):
    named = {"optimizer": None, "seed": 1, "device": torch.device("cpu")}
    return MGQE(**changes).build([SPEC], stats, None, **named)


def test_the_head_is_the_most_frequent_tenth_by_the_counts_of_all_features():
    counts = torch.randint(0, 50, (2, 4000), generator=torch.Generator().manual_seed(0))
    tables = build({"f0": counts[0], "f1": counts[1]})
    is_head = tables.quantizer_of("t").is_head("t")
    total = counts.sum(dim=0)
    assert int(is_head.sum()) == 400
    assert int(total[is_head].min()) >= int(total[~is_head].max())


def test_a_share_of_the_head_is_exact_whatever_ties_there_are():
    tables = build({"f0": torch.ones(4000, dtype=torch.long)}, head_share=0.3)
    assert int(tables.quantizer_of("t").is_head("t").sum()) == 1200


def test_codes_of_the_tail_are_those_of_the_first_centroids():
    tables = build({})
    quantizer = tables.quantizer_of("t")
    codes = quantizer.codes("t", tables.table("t").detach())
    is_head = quantizer.is_head("t")
    assert int(codes[~is_head].max()) < 64 <= int(codes[is_head].max())


# The VLDB 2024 study's sizes with a bit for each id's group, of Criteo at D = 16. Ours has 4 bytes
# for each 1024 ids besides, and whole bytes for each row of codes, which these are.
@pytest.mark.parametrize(("parts", "ratio"), [(4, 0.05053), (8, 0.09897), (16, 0.19584)])
def test_the_bytes_are_the_published_ones_and_the_counts_of_the_bitmap(
    published_specs, parts, ratio
):
    specs = published_specs("criteo")
    plan = MGQE(num_parts=parts).plan(specs, {}, None)
    assert plan.ratio == pytest.approx(ratio + 4 / 1024 / 64, abs=2e-5)


def test_a_budget_keeps_the_tail_s_share_of_the_centroids():
    plan = MGQE().plan([SPEC], {}, Budget(ratio=0.04))
    centroids = plan.parameters["num_centroids"]
    assert centroids < 256
    form = MGQE().form(SPEC, 1, centroids)
    assert form.tail_centroids == centroids // 4


def test_a_small_budget_leaves_ids_of_the_tail_apart():
    spec = dataclasses.replace(SPEC, num_embeddings=5000, embedding_dim=16)
    method, budget = MGQE(), Budget(ratio=0.05)
    form = method.form(spec, *method.level([spec], budget))
    assert form.tail_centroids is not None
    assert form.tail_centroids**form.num_parts >= 2**8


@pytest.mark.parametrize(
    "wrong", [{"tail_centroids": 0}, {"tail_centroids": 300}, {"head_share": 1.0}], ids=str
)
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match="MGQE: "):
        MGQE(**wrong)


def test_what_is_scored_in_training_is_what_is_served(staged):
    budget = Budget(ratio=0.6)
    context = staged(MGQE.stages, budget=budget, epochs=2)
    tables = MGQE(num_centroids=16, tail_centroids=4).run(context)
    assert tables.forms
    assert context.evaluate(tables.freeze()) == context.evaluate(tables)
    assert tables.storage().serve_bytes <= budget.allowed_bytes(context.specs)


def test_at_half_of_the_bytes_it_is_above_hashing(staged, hashed_auc):
    budget = Budget(ratio=0.5)
    context = staged(MGQE.stages, budget=budget, epochs=4)
    auc = context.evaluate(MGQE(num_centroids=32, tail_centroids=8).run(context))["val/auc"]
    assert auc > hashed_auc(budget, epochs=4) + 0.01
