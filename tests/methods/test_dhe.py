"""DHE: the published budgets, exact hashes, the network written out, its statistics."""

import numpy as np
import pytest
import torch
from torchrec.sparse.jagged_tensor import KeyedJaggedTensor

from recemb.ids.universal_hashing import hash_constants
from recemb.methods.dhe import DHE, HashMLP, encode
from recemb.tables.method import Budget
from recemb.tables.spec import TableSpec

# Hidden width, realised ratio in the study's words, and the number of compressed fields.
BUDGETS = [
    ("criteo", 0.5, 3626, 0.49987, 4),
    ("criteo", 0.25, 2380, 0.24984, 5),
    ("criteo", 0.2, 2096, 0.20000, 5),
    ("criteo", 0.1, 1372, 0.09996, 5),
    ("criteo", 0.05, 844, 0.04993, 6),
    ("criteo", 0.01, 271, 0.00999, 8),
    ("criteo", 0.005, 147, 0.00498, 8),
    ("criteo", 0.002, 60, 0.00198, 12),
    ("criteo", 0.001, 29, 0.00098, 14),
    ("criteo", 0.0001, 2, 0.00008, 18),
    ("avazu", 0.5, 2933, 0.49971, 2),
    ("avazu", 0.25, 2030, 0.24996, 2),
    ("avazu", 0.2, 1799, 0.19993, 2),
    ("avazu", 0.1, 1224, 0.09992, 2),
    ("avazu", 0.05, 814, 0.04998, 2),
    ("avazu", 0.01, 241, 0.00999, 2),
    ("avazu", 0.005, 87, 0.00499, 5),
    ("avazu", 0.002, 33, 0.00199, 7),
    ("avazu", 0.001, 15, 0.00095, 7),
]
# Sums of some hundred float32 products, through a few layers.
LAYERS = {"rtol": 1e-4, "atol": 1e-5}


def network(*, seed=5, n=3000, width=12, layers=2, num_hashes=64, dim=4, **changes):
    named = {
        "num_embeddings": n,
        "widths": [num_hashes, *[width] * layers, dim],
        "num_buckets": 1000,
        "encoding": "uniform",
        "activation": "mish",
        "hash_seed": seed,
        "std": 0.1,
        **changes,
    }
    source = HashMLP(**named)
    source.initialise(torch.Generator().manual_seed(0))
    return source


@pytest.mark.parametrize(("name", "ratio", "width", "realised", "num_tables"), BUDGETS)
def test_the_plan_is_that_of_the_published_budget(
    published_specs, name, ratio, width, realised, num_tables
):
    plan = DHE().plan(published_specs(name), {}, Budget(ratio=ratio))
    assert plan.is_feasible
    assert plan.parameters["hidden_width"] == width
    assert plan.parameters["computed_tables"] == num_tables
    assert plan.parameters["published_ratio"] == pytest.approx(realised, abs=1e-5)


def test_serving_needs_folded_layers_and_a_seed_for_each_table(published_specs):
    specs = published_specs("criteo")
    plan = DHE().plan(specs, {}, Budget(ratio=0.01))
    h = plan.parameters["hidden_width"]
    layers = 4 * (h * 1025 + 4 * h * (h + 1) + 16 * (h + 1))
    largest = sorted((s.num_embeddings for s in specs), reverse=True)
    stored = sum(4 * 16 * n for n in largest[8:])
    assert plan.storage.serve == {"weights": 8 * layers + stored, "hash_constants": 8 * 8}
    # Training has scale, shift, mean and variance of five layers besides.
    assert plan.storage.train_bytes - plan.storage.serve_bytes == 8 * 4 * 20 * h


def test_below_width_one_the_plan_is_infeasible(published_specs):
    plan = DHE().plan(published_specs("avazu"), {}, Budget(ratio=0.0001))
    assert not plan.is_feasible
    assert plan.parameters["hidden_width"] == 1


def test_hashes_are_exact_for_large_ids():
    # The products reach 2^60.
    ids = [0, 1, 999_999, 2**31 + 7, 2**40 - 1]
    source = network(n=2**40, num_buckets=1_000_000, std=1.0)
    a, b, p = hash_constants(5, 64, 1_000_000).tolist()
    expected = [
        [(a[j] * x + b[j]) % p[j] % 1_000_000 / 999_999 * 2 - 1 for j in range(64)] for x in ids
    ]
    # float32 has 24 bits.
    found = source.encode(torch.tensor(ids)).numpy()
    np.testing.assert_allclose(found, np.array(expected), rtol=0, atol=2e-7)


def test_ids_whose_products_leave_int64_are_refused():
    with pytest.raises(ValueError, match=r"must be below 2\^63"):
        network(n=2**50, num_buckets=1_000_000)


def test_different_seeds_have_different_hashes():
    one, two = (network(seed=s).encode(torch.arange(1, 500)) for s in (1, 2))
    # Two independent hashes into 1000 buckets agree once in 1000.
    assert float((one == two).float().mean()) < 0.005


@pytest.mark.parametrize("encoding", ["uniform", "normal"])
def test_inputs_have_the_moments_of_their_distribution(encoding):
    x = network(encoding=encoding, num_buckets=1_000_000).encode(torch.arange(3000))
    target = {"uniform": 1 / 3, "normal": 1.0}[encoding]
    if encoding == "uniform":
        assert float(x.abs().max()) <= 1
    # 192,000 values; 64 sequences of multiples, which are more even than draws.
    assert float(x.mean()) == pytest.approx(0, abs=0.02)
    assert float(x.var()) == pytest.approx(target, rel=0.03)


def test_the_normal_encoding_is_finite_at_bucket_zero():
    x = encode(torch.tensor([[0, 0]]), 10, "normal", torch.float32)
    # sqrt(-2 ln 1e-12) on the first axis.
    torch.testing.assert_close(x, torch.tensor([[7.433844, 0.0]]))


@pytest.mark.parametrize("activation", ["mish", "relu"])
def test_training_rows_are_the_network_written_out(activation):
    source = network(activation=activation)
    ids = torch.unique(torch.arange(0, 3000, 37))
    x = source.encode(ids).numpy().astype(np.float64)
    for layer in range(2):
        values = {
            part: getattr(source, f"{part}_{layer}").detach().numpy().astype(np.float64)
            for part in ("weight", "bias", "gamma", "beta")
        }
        z = x @ values["weight"].T + values["bias"]
        z = (z - z.mean(0)) / np.sqrt(z.var(0) + 1e-5) * values["gamma"] + values["beta"]
        x = z * np.tanh(np.log1p(np.exp(z))) if activation == "mish" else np.maximum(z, 0)
    expected = x @ source.weight_2.detach().numpy().T + source.bias_2.detach().numpy()
    found = source("t", ids).detach()
    np.testing.assert_allclose(found, expected, **LAYERS)


def test_eval_rows_do_not_depend_on_the_other_ids():
    source = network().eval()
    ids = torch.arange(0, 3000, 37)
    alone = torch.cat([source("t", ids[i : i + 1]) for i in range(len(ids))])
    torch.testing.assert_close(source("t", ids), alone, **LAYERS)


def test_running_statistics_are_those_of_torch():
    source = network(layers=1)
    ids = torch.arange(0, 3000, 11)
    twin = torch.nn.BatchNorm1d(12)
    twin.running_mean.copy_(source.mean_0)
    twin.running_var.copy_(source.variance_0)
    with torch.no_grad():
        twin(source.encode(ids) @ source.weight_0.T + source.bias_0)
        source("t", ids)
    torch.testing.assert_close(source.mean_0, twin.running_mean)
    torch.testing.assert_close(source.variance_0, twin.running_var)


def test_rows_leave_the_running_statistics_alone():
    source = network()
    before = source.mean_0.clone()
    source.truth("t", torch.arange(100))
    assert torch.equal(source.mean_0, before)


@pytest.mark.parametrize("num_ids", [0, 1])
def test_a_batch_without_statistics_takes_the_running_ones(num_ids):
    source = network()
    ids = torch.arange(num_ids)
    assert torch.equal(source("t", ids), source.eval()("t", ids))


@pytest.mark.parametrize("width", [2, 29, 271])
@pytest.mark.parametrize("is_training", [True, False])
def test_initial_rows_have_the_deviation_that_was_asked_for(width, is_training):
    source = network(n=100_000, width=width, layers=5, num_hashes=1024, dim=16, std=1.8e-4)
    rows = source.train(is_training)("t", torch.arange(0, 100_000, 31)).detach()
    assert float(rows.std()) == pytest.approx(1.8e-4, rel=0.05)
    # A tenth of the deviation: that of the means of the sample's 1024 ids, thrice.
    assert float(rows.mean(dim=0).abs().max()) < 1.8e-5


def test_gradients_are_those_of_finite_differences():
    source = network(num_hashes=8, width=3, layers=1).double()
    names = ["weight_0", "gamma_0", "beta_0", "weight_1", "bias_1"]

    def rows(*values):
        state = dict(zip(names, values, strict=True))
        statistics = {f"{n}_0": getattr(source, f"{n}_0").clone() for n in ("mean", "variance")}
        return torch.func.functional_call(
            source, {**state, **statistics}, ("t", torch.tensor([0, 3, 29, 17, 4]))
        )

    inputs = [source.get_parameter(n).detach().clone().requires_grad_() for n in names]
    assert torch.autograd.gradcheck(rows, inputs)


def test_repeated_ids_count_once_in_the_statistics():
    spec = TableSpec(name="t", num_embeddings=5000, embedding_dim=16, feature_names=("f", "g"))
    method = DHE(num_hashes=64)
    found = []
    for values in ([1, 2, 3, 1, 2, 3], [1, 1, 1, 2, 3, 3]):
        tables = method.build(
            [spec], {}, Budget(ratio=0.1), optimizer=None, seed=0, device=torch.device("cpu")
        )
        tables(
            KeyedJaggedTensor(
                keys=["f", "g"],
                values=torch.tensor(values),
                lengths=torch.ones(6, dtype=torch.int32),
            )
        )
        found.append(tables.sources["t"].mean_0)
    assert torch.equal(*found)


def test_a_loaded_state_brings_its_hash_functions():
    (spec,) = [TableSpec(name="t", num_embeddings=5000, embedding_dim=16, feature_names=("f",))]
    one, two = (
        DHE(num_hashes=64, hash_seed=s).build(
            [spec], {}, Budget(ratio=0.1), optimizer=None, seed=0, device=torch.device("cpu")
        )
        for s in (1, 2)
    )
    two.load_state_dict(one.state_dict())
    ids = torch.arange(50)
    assert torch.equal(two.rows("f", ids), one.rows("f", ids))


def test_the_serving_form_of_the_serving_form_is_itself():
    source = network().frozen()
    ids = torch.arange(50)
    assert torch.equal(source.frozen()("t", ids), source("t", ids))
    assert source.frozen().serve_bytes() == source.serve_bytes() == source.train_bytes()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"encoding": "binary"}, "encoding must be uniform or normal"),
        ({"activation": "gelu"}, "activation must be mish or relu"),
        ({"num_hashes": 7, "encoding": "normal"}, "even for encoding normal"),
        ({"hidden_layers": 0}, "hidden_layers at least 1"),
    ],
    ids=str,
)
def test_settings_out_of_range_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DHE(**changes)


def test_hashing_is_exact_under_autocast():
    source = network(n=2**29, num_buckets=1_000_000)
    ids = torch.tensor([0, 12_345_678, 2**29 - 1])
    expected = source.encode(ids)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(source.encode(ids), expected)
