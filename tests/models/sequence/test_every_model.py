"""What holds for every model of sequences: the tests run over their files of conf/model."""

import inspect
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hydra.utils import get_class
from omegaconf import OmegaConf
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.data.schema import Categorical
from recemb.models.click_model import ClickModel
from recemb.models.ranking_model import RankingModel
from recemb.models.sequence.sequence_model import SequenceModel
from recemb.tables.full import full_tables

CONFIGS = {
    path.stem: cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))
    for path in sorted((Path(__file__).parents[3] / "conf" / "model").glob("*.yaml"))
}
KINDS: dict[str, type[ClickModel]] = {
    name: kind
    for name, config in CONFIGS.items()
    if not issubclass(kind := get_class(config["_target_"]), RankingModel)
}
RUNTIME_ARGUMENTS = {"self", "parts", "context_width"}
LENGTHS = [9, 3, 0, 6, 1, 4]
# Sums of a few float32 products in another order.
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}

every_model = pytest.mark.parametrize("name", KINDS)


@pytest.fixture
def build(schema) -> Callable[..., Any]:
    """Return a maker of a model as its YAML says, with small vectors and tables."""

    def built(name: str, **changes: Any):
        options = {k: v for k, v in CONFIGS[name].items() if k != "_target_"}
        options |= {"hidden_units": [8], **changes}
        if "init_std" in options:
            options["init_std"] = None
        kind = KINDS[name]
        specs = kind.table_specs(schema, embedding_dim=4, options=options)
        tables = full_tables(specs, seed=1, init_std=1.0)
        torch.manual_seed(2)
        return kind.for_tables(schema, tables, options), tables

    return built


def test_there_are_the_models_of_the_field() -> None:
    names = "dare twin twin_4e twin_projection twin_hard twin_v2 din dien bst sim eta sdim"
    assert set(names.split()) <= set(KINDS)


@every_model
def test_keys_of_the_file_are_the_arguments_of_the_constructor(name: str) -> None:
    parameters = inspect.signature(KINDS[name].__init__).parameters
    assert list(CONFIGS[name])[1:] == [p for p in parameters if p not in RUNTIME_ARGUMENTS]


@every_model
def test_an_example_scores_alone_as_it_does_among_longer_ones(name, build, draw) -> None:
    model, tables = build(name)
    batch = draw(LENGTHS)
    together = model.eval().score(batch, tables)
    for e, length in enumerate(LENGTHS):
        alone = draw([length])
        for feature in batch.features.keys():  # noqa: SIM118
            alone.features[feature].values().copy_(batch.features[feature].to_dense()[e])
        torch.testing.assert_close(model.score(alone, tables)[0], together[e], **ROUNDING)


@every_model
def test_every_parameter_gets_a_finite_gradient(name, build, draw) -> None:
    model, tables = build(name)
    # A PReLU whose inputs are all positive has none, so there are many examples.
    batch = draw(LENGTHS * 4)
    model.loss_sum(model.inputs(batch, tables), batch.labels).backward()
    for parameter_name, p in (*model.named_parameters(), *tables.named_parameters()):
        assert p.grad is not None, parameter_name
        assert bool(p.grad.isfinite().all()), parameter_name
        assert bool((p.grad != 0).any()), parameter_name


@every_model
def test_no_examples_are_scored(name, build, draw) -> None:
    model, tables = build(name)
    model.eval()
    assert model.score(draw([]), tables).shape == (0,)
    with torch.no_grad():
        assert model.score(draw([]), tables).shape == (0,)


@every_model
def test_no_examples_have_no_loss_and_move_nothing(name, build, draw) -> None:
    """As on a rank whose share of a batch is empty; norms are over all ranks there."""
    model, tables = build(name)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            norm.eval()
    batch = draw([])
    loss = model.loss_sum(model.inputs(batch, tables), batch.labels)
    loss.backward()
    assert float(loss.detach()) == 0
    for parameter_name, p in (*model.named_parameters(), *tables.named_parameters()):
        assert p.grad is None or not bool(p.grad.any()), parameter_name


@every_model
def test_what_is_found_is_the_same_in_mixed_precision(name, build, draw) -> None:
    if not issubclass(KINDS[name], SequenceModel):
        return
    model, tables = build(name, **({"top_k": 4} if "top_k" in CONFIGS[name] else {}))
    # So many that some scores differ by less than bfloat16 can tell.
    inputs = model.inputs(draw([9] * 2000), tables)
    with torch.no_grad():
        expected = model.weights(inputs).retrieved
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = model.weights(inputs).retrieved
    assert torch.equal(found != 0, expected != 0)


@every_model
def test_the_loss_falls_within_some_steps(name, build, draw) -> None:
    model, tables = build(name)
    batch = draw(LENGTHS * 4)
    optimizer = torch.optim.Adam([*model.parameters(), *tables.parameters()], lr=0.02)
    losses = []
    for _ in range(25):
        loss = model.loss_sum(model.inputs(batch, tables), batch.labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.5 * losses[0]


@every_model
def test_the_order_of_examples_does_not_matter(name, build, draw) -> None:
    model, tables = build(name)
    first = model.eval().score(draw([5, 5, 5]), tables)
    assert first.unique().numel() == 3
    assert torch.equal(first, model.score(draw([5, 5, 5]), tables))


@every_model
def test_features_without_a_history_and_dense_columns_reach_the_head(name, schema, draw) -> None:
    options = {k: v for k, v in CONFIGS[name].items() if k != "_target_"}
    user = Categorical(name="user", num_embeddings=9)
    wider = replace(schema, dense=("age",), categorical=(user, *schema.categorical))
    specs = KINDS[name].table_specs(wider, embedding_dim=4, options=options)
    tables = full_tables(specs, seed=1, init_std=1.0)
    model = KINDS[name].for_tables(wider, tables, options)
    plain = draw(LENGTHS)
    features = KeyedJaggedTensor(
        keys=["user", *plain.features.keys()],
        values=torch.cat([torch.arange(6), plain.features.values()]),
        lengths=torch.cat([torch.ones(6, dtype=torch.int64), plain.features.lengths()]),
    )
    batch = replace(plain, features=features, dense=torch.randn(6, 1))
    torch.testing.assert_close(
        model.inputs(batch, tables).context[:, :1], batch.dense, rtol=0, atol=0
    )
    assert model.eval().score(batch, tables).shape == (6,)
