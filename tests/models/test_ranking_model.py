"""What holds for every flat model: the tests run over those of conf/model."""

import inspect
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hydra.utils import get_class, instantiate
from omegaconf import OmegaConf
from torch import Tensor
from torchrec.sparse.jagged_tensor import KeyedTensor

from recemb.models.ranking_model import RankingModel

CONFIGS = [
    path
    for path in sorted((Path(__file__).parents[2] / "conf" / "model").glob("*.yaml"))
    if issubclass(get_class(OmegaConf.load(path)["_target_"]), RankingModel)
]
RUNTIME_ARGUMENTS = {"num_dense", "embedding_dims"}
MULTIPLYING = {"fm", "deepfm", "ipnn", "dlrm", "xdeepfm", "autoint"}
NEEDS_TWO_COLUMNS = {"fm", "autoint", "dlrm"}
# Widths and depths that keep the tests quick; a model that is not named here runs as its YAML says.
SMALL: dict[str, dict[str, Any]] = {
    "finalmlp": {
        "stream_units": [[8, 6], [4]],
        "num_heads": 2,
        "gate_features": [[0], []],
        "gate_units": [5],
    },
    "dlrm": {"bottom_units": [6], "top_units": [8, 6]},
    "xdeepfm": {"cin_units": [5, 4], "hidden_units": [8, 6]},
    "autoint": {"num_layers": 2, "attention_dim": 6, "hidden_units": [8]},
    "masknet": {"block_units": [6, 5], "hidden_units": [8]},
    **{
        name: {"hidden_units": [8, 6]}
        for name in ("dnn", "wide_deep", "deepfm", "fnn", "ipnn", "dcn", "dcnv2")
    },
}
Inputs = Callable[[RankingModel, int], tuple[Tensor, Tensor]]
Randomised = Callable[[RankingModel], RankingModel]

every_model = pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
every_num_dense = pytest.mark.parametrize("num_dense", [0, 2])


def build(
    path: Path, num_dense: int = 2, embedding_dims: tuple[int, ...] = (4, 4, 4)
) -> RankingModel:
    torch.manual_seed(3)
    config = OmegaConf.merge(OmegaConf.load(path), SMALL.get(path.stem, {}))
    keys = cast("dict[str, Any]", OmegaConf.to_container(config))
    model = get_class(keys.pop("_target_"))
    return cast("RankingModel", model(num_dense=num_dense, embedding_dims=embedding_dims, **keys))


def arguments(path: Path) -> dict[str, inspect.Parameter]:
    target = get_class(str(OmegaConf.load(path)["_target_"]))
    parameters = inspect.signature(target).parameters
    return {name: p for name, p in parameters.items() if name not in RUNTIME_ARGUMENTS}


def plain(value: Any) -> Any:
    return [plain(item) for item in value] if isinstance(value, tuple | list) else value


@every_model
def test_yaml_keys_are_the_constructors_arguments_in_order(path: Path) -> None:
    keys = [key for key in cast("dict[str, Any]", OmegaConf.load(path)) if key != "_target_"]
    assert keys == list(arguments(path))


@every_model
def test_yaml_values_are_the_constructors_defaults(path: Path) -> None:
    config = cast("dict[str, Any]", OmegaConf.to_container(OmegaConf.load(path)))
    for name, parameter in arguments(path).items():
        assert config[name] == plain(parameter.default), name


@every_model
def test_first_comment_is_the_command_line(path: Path) -> None:
    assert path.read_text().startswith(f"# recemb train model={path.stem}\n")


@every_model
def test_yaml_as_it_stands_builds_the_model(path: Path) -> None:
    model = instantiate(OmegaConf.load(path), num_dense=13, embedding_dims=[16] * 5)
    assert isinstance(model, RankingModel)


@every_model
@every_num_dense
@pytest.mark.parametrize("batch", [1, 3])
def test_one_float32_logit_per_example(
    path: Path, num_dense: int, batch: int, draw_inputs: Inputs
) -> None:
    model = build(path, num_dense).eval()
    logits = model.from_values(*draw_inputs(model, batch))
    assert logits.shape == (batch,)
    assert logits.dtype == torch.float32


@every_model
@every_num_dense
@pytest.mark.parametrize("is_training", [True, False])
def test_no_examples_have_no_logits_and_move_nothing(
    path: Path, num_dense: int, is_training: bool, draw_inputs: Inputs
) -> None:
    model = build(path, num_dense).train(is_training)
    for norm in model.modules():
        if isinstance(norm, torch.nn.BatchNorm1d):
            # A rank without examples has norms over all ranks.
            norm.eval()
    logits = model.from_values(*draw_inputs(model, 0))
    assert logits.shape == (0,)
    logits.sum().backward()
    assert all(p.grad is None or not bool(p.grad.any()) for p in model.parameters())


@every_model
@every_num_dense
def test_gradient_reaches_every_parameter_and_input(
    path: Path, num_dense: int, draw_inputs: Inputs, randomised: Randomised
) -> None:
    model = randomised(build(path, num_dense))
    dense, values = (tensor.requires_grad_() for tensor in draw_inputs(model, 64))
    model.from_values(dense, values).square().sum().backward()
    untouched = [
        name for name, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0
    ]
    assert untouched == []
    for inputs in (dense, values) if num_dense else (values,):
        assert inputs.grad is not None
        assert (inputs.grad.abs().sum(dim=0) > 0).all()


@every_model
@every_num_dense
def test_gradient_reaches_every_parameter_from_the_initial_weights(
    path: Path, num_dense: int, draw_inputs: Inputs
) -> None:
    model = build(path, num_dense)
    model.from_values(*draw_inputs(model, 64)).square().sum().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


@every_model
def test_an_example_is_scored_alone_as_in_a_batch(
    path: Path, draw_inputs: Inputs, randomised: Randomised
) -> None:
    model = randomised(build(path))
    dense, values = draw_inputs(model, 5)
    together = model.from_values(dense, values)
    alone = torch.cat([model.from_values(dense[i : i + 1], values[i : i + 1]) for i in range(5)])
    torch.testing.assert_close(together, alone)


@every_model
def test_forward_reads_the_keyed_tensor_in_order(path: Path, draw_inputs: Inputs) -> None:
    model = build(path).eval()
    dense, values = draw_inputs(model, 3)
    embeddings = KeyedTensor(keys=["all"], length_per_key=[values.shape[1]], values=values)
    torch.testing.assert_close(model(dense, embeddings), model.from_values(dense, values))


@every_model
@every_num_dense
@pytest.mark.slow
def test_trains_compiled_as_one_graph_like_eager(
    path: Path, num_dense: int, draw_inputs: Inputs
) -> None:
    torch._dynamo.reset()
    model = build(path, num_dense)
    dense, values = draw_inputs(model, 4)
    gradients = []
    compiled = torch.compile(model.from_values, backend="aot_eager", fullgraph=True)
    for from_values in (model.from_values, compiled):
        model.zero_grad()
        from_values(dense, values).sum().backward()
        gradients.append([p.grad for p in model.parameters()])
    torch.testing.assert_close(gradients[0], gradients[1])


@every_model
def test_exports_with_a_free_batch_size(path: Path, draw_inputs: Inputs) -> None:
    class Scorer(torch.nn.Module):
        def __init__(self, model: RankingModel) -> None:
            super().__init__()
            self.model = model

        def forward(self, dense: Tensor, values: Tensor) -> Tensor:
            return self.model.from_values(dense, values)

    model = build(path).eval()
    batch = {0: torch.export.Dim("batch", min=2, max=4096)}
    program = torch.export.export(
        Scorer(model), draw_inputs(model, 4), dynamic_shapes=(batch, batch)
    )
    inputs = draw_inputs(model, 7)
    torch.testing.assert_close(program.module()(*inputs), model.from_values(*inputs))


@every_model
def test_bfloat16_autocast_gives_finite_float32_logits(path: Path, draw_inputs: Inputs) -> None:
    model = build(path)
    dense, values = draw_inputs(model, 8)
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.from_values(dense, values.requires_grad_())
    logits.sum().backward()
    assert logits.dtype == torch.float32
    assert logits.isfinite().all()
    assert values.grad is not None
    assert values.grad.isfinite().all()


@every_model
def test_embeddings_of_another_width_are_refused(path: Path, draw_inputs: Inputs) -> None:
    model = build(path)
    dense, values = draw_inputs(model, 2)
    with pytest.raises(ValueError, match=r"embeddings are \d+ wide, but the model was built for"):
        model.from_values(dense, values[:, 1:])


@every_model
def test_unequal_widths_work_or_are_refused_with_the_way_out(
    path: Path, draw_inputs: Inputs
) -> None:
    make = partial(build, path, embedding_dims=(2, 3, 4))
    if path.stem in MULTIPLYING:
        with pytest.raises(ValueError, match=r"all need one width, but got \[2, 3, 4\]"):
            make()
    else:
        model = make().eval()
        assert model.from_values(*draw_inputs(model, 2)).shape == (2,)


@every_model
def test_one_column_works_or_is_refused_with_the_way_out(path: Path, draw_inputs: Inputs) -> None:
    make = partial(build, path, num_dense=0, embedding_dims=(4,))
    if path.stem in NEEDS_TWO_COLUMNS:
        with pytest.raises(ValueError, match=r"column|feature"):
            make()
    else:
        model = make().eval()
        assert model.from_values(*draw_inputs(model, 2)).shape == (2,)


@every_model
def test_a_model_that_multiplies_refuses_to_have_no_feature(path: Path) -> None:
    if path.stem in MULTIPLYING:
        with pytest.raises(ValueError, match="there is no categorical feature"):
            build(path, num_dense=2, embedding_dims=())


def test_there_are_fourteen_models_of_issue_a() -> None:
    names = "lr fm dnn wide_deep deepfm fnn ipnn dcn dcnv2 dlrm xdeepfm autoint finalmlp masknet"
    assert set(names.split()) <= {path.stem for path in CONFIGS}
