"""A method for each role of decoupled tables."""

import pytest
import torch
from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.utils import instantiate

from recemb.methods.low_precision import LowPrecision
from recemb.methods.optembed import OptEmbed
from recemb.methods.per_role import PerRole
from recemb.methods.unified import Unified
from recemb.tables.joined import JoinedTables
from recemb.tables.method import Budget
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.spec import TableSpec

SPECS = [
    *(
        TableSpec(
            name=f"{column}.{role}",
            num_embeddings=num,
            embedding_dim=8,
            feature_names=(column, f"{column}_history"),
            pooling="none",
        )
        for role in ("attention", "representation")
        for column, num in (("item", 3000), ("category", 200))
    ),
    TableSpec(name="user", num_embeddings=500, embedding_dim=8, feature_names=("user",)),
]
ROLE_BYTES = 4 * 8 * 3200


def build(method: PerRole, budget: Budget | None = None):
    return method.build(
        SPECS,
        {},
        budget,
        optimizer=TableOptimizer(),
        seed=1,
        device=torch.device("cpu"),
    )


def serve_bytes(tables: JoinedTables) -> dict[str, int]:
    return {name: tables.part(name).storage().serve_bytes for name in tables.parts}


def test_attention_in_integers_takes_a_quarter() -> None:
    found = serve_bytes(build(PerRole(attention=LowPrecision(bits=8))))
    assert found["attention"] == ROLE_BYTES / 4
    assert found["representation"] == ROLE_BYTES
    assert found["others"] == 4 * 8 * 500


def test_without_methods_all_tables_are_full() -> None:
    tables = build(PerRole(init_std=0.01))
    assert tables.storage().serve_bytes == tables.storage().full_bytes
    vectors = tables.rows("item@item.attention", torch.arange(3000))
    assert float(vectors.std()) == pytest.approx(0.01, rel=0.05)


def test_the_roles_of_an_item_begin_with_vectors_of_their_own() -> None:
    tables, ids = build(PerRole()), torch.arange(3000)
    roles = [tables.rows(f"item@item.{role}", ids) for role in ("attention", "representation")]
    assert float(torch.cosine_similarity(*roles).abs().mean()) < 0.5


def test_a_role_keeps_its_own_budget() -> None:
    method = PerRole(attention=Unified(), attention_budget=0.25)
    found = serve_bytes(build(method))
    assert 0.2 * ROLE_BYTES < found["attention"] <= 0.25 * ROLE_BYTES
    assert found["representation"] == ROLE_BYTES


def test_methods_share_what_full_tables_leave_of_the_budget() -> None:
    budget = Budget(ratio=0.7)
    tables = build(PerRole(attention=Unified()), budget)
    assert tables.storage().serve_bytes <= budget.allowed_bytes(SPECS)
    assert serve_bytes(tables)["representation"] == ROLE_BYTES
    both = build(PerRole(attention=Unified(), representation=Unified()), budget)
    found = serve_bytes(both)
    assert found["attention"] == pytest.approx(found["representation"], rel=0.02)
    assert 0.65 < both.storage().serve_bytes / both.storage().full_bytes <= 0.7


def test_a_budget_below_what_is_full_is_infeasible() -> None:
    method, budget = PerRole(attention=Unified()), Budget(ratio=0.4)
    plan = method.plan(SPECS, {}, budget)
    assert not plan.is_feasible
    with pytest.raises(ValueError, match="the least is"):
        build(method, budget)


def test_the_plan_s_bytes_are_those_of_the_tables() -> None:
    method = PerRole(attention=Unified(), representation=LowPrecision(bits=8))
    plan = method.plan(SPECS, {}, Budget(ratio=0.5))
    tables = build(method, Budget(ratio=0.5))
    assert plan.is_feasible
    assert tables.storage().serve == plan.storage.serve
    stored = sum(t.nbytes for t in tables.freeze().state_dict().values())
    assert stored == plan.storage.serve_bytes


def test_a_method_with_stages_of_its_own_is_refused() -> None:
    with pytest.raises(ValueError, match="OptEmbed, for attention, has a training of its own"):
        PerRole(attention=OptEmbed())


def test_a_method_for_a_role_that_no_table_has_is_refused() -> None:
    method = PerRole(attention=Unified())
    with pytest.raises(ValueError, match=r"choose a model that has some \(dare, twin_4e\)"):
        method.plan(SPECS[-1:], {}, None)


def test_the_command_line_chooses_a_method_for_a_role() -> None:
    overrides = [
        *("embedding=per_role", "+embedding@embedding.attention=unified", "name=test"),
        "embedding.attention.lookups=3",
    ]
    GlobalHydra.instance().clear()
    with initialize_config_module("recemb.conf", version_base="1.3"):
        method = instantiate(compose("train", overrides=overrides).embedding)
    assert isinstance(method, PerRole)
    attention = method.given["attention"]
    assert isinstance(attention, Unified)
    assert attention.lookups == 3
