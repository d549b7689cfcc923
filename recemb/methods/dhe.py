"""DHE, deep hash embeddings: k hashes of an id are the input of a network that makes its row.

    h_j(x) = ((a_j x + b_j) mod p_j) mod m,   j = 1..k
    row(x) = W_out f(BN(W_L .. f(BN(W_1 e(x)))) ..),   e(x)_j = 2 h_j(x) / (m - 1) - 1,   f = Mish

Source: Kang et al., "Learning to Embed Categorical Features without Embedding Tables for
Recommendation", KDD 2021, sections 3 and 4: k = 1024, m = 10^6, five hidden layers, batch
normalisation, Mish. The width of the hidden layers follows from the budget as in the VLDB 2024
study of Zhang et al., whose count of words is kept for that: it has batch normalisation's scale
and shift, which serving folds into the layers, so what serving needs is a little less.

Departures. Hashes are exact in int64 (the study's code overflows int32: half of its inputs leave
[-1, 1]). a_j, b_j follow from one stored seed for each table; p_j is the j-th prime from 64 m on.
Each distinct id of a batch counts once, for the network and for the statistics of batch
normalisation; a batch of a single distinct id takes the running statistics. The network begins with
the statistics of a sample of ids, and an output layer scaled and shifted so that rows have mean 0
and the standard deviation that is asked for; published code draws a network whose rows have no
relation to those of a table.

Shapes: `U` distinct ids, `D` embedding_dim, `k` hashes, `h` hidden width.
"""

import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, ClassVar, Literal, Self

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from recemb.ids.hashing import hash_seed as seed_of
from recemb.ids.universal_hashing import fits_floats, hash_constants, universal_hash
from recemb.methods.computed import ComputedMethod, Design, largest_size
from recemb.tables.method import Budget
from recemb.tables.row_source import HASH_SEED, RowSource
from recemb.tables.spec import TableSpec

Encoding = Literal["uniform", "normal"]
Activation = Literal["mish", "relu"]

_SAMPLE = 1024
"""Ids whose statistics an untrained network begins with, at most."""
_MOMENTUM, _EPS = 0.1, 1e-5
_LEAST_UNIFORM = 1e-12
_SEED_BYTES = 8


class HashMLP(RowSource):
    """The network of one table.

    In training mode rows depend on all ids of the call, through batch normalisation.

    Args:
        num_embeddings: n.
        widths: of the input, the hidden layers and the output: k, h, .., h, D.
        num_buckets: m.
        encoding: "uniform" in [-1, 1], or "normal" by Box and Muller's transform of pairs.
        activation: f.
        hash_seed: of the hash functions, 32-bit.
        std: of the initial rows.
        is_folded: whether batch normalisation is part of the layers: the serving form.
        device: where the network lives.

    Raises:
        ValueError: if products of ids and hash constants leave int64.
    """

    form: ClassVar[str] = "hash_mlp"
    packable: ClassVar[str | None] = r"weight_\d+"
    reads_batch: ClassVar[bool] = True

    def __init__(
        self,
        *,
        num_embeddings: int,
        widths: Sequence[int],
        num_buckets: int,
        encoding: Encoding,
        activation: Activation,
        hash_seed: int,
        std: float,
        is_folded: bool = False,
        device: torch.device | None = None,
    ) -> None:
        super().__init__()
        if (num_embeddings + 1) * num_buckets >= 2**63:
            raise ValueError(
                f"HashMLP: (num_embeddings + 1) * num_buckets must be below 2^63, got "
                f"({num_embeddings} + 1) * {num_buckets}; lower num_buckets"
            )
        self.num_embeddings = num_embeddings
        self.widths = tuple(widths)
        self.num_hashes, self.hidden_layers = self.widths[0], len(self.widths) - 2
        self.num_buckets = num_buckets
        self.encoding: Encoding = encoding
        self.activation: Activation = activation
        self.std = std
        self.is_folded = is_folded
        self._given_seed = hash_seed
        self._in_floats = fits_floats(num_embeddings, num_buckets)
        for layer, (fan_in, fan_out) in enumerate(self._sizes()):
            self._add(f"weight_{layer}", fan_out, fan_in, device=device)
            self._add(f"bias_{layer}", fan_out, device=device)
            if layer < self.hidden_layers and not is_folded:
                self._add(f"gamma_{layer}", fan_out, device=device)
                self._add(f"beta_{layer}", fan_out, device=device)
                for name in ("mean", "variance"):
                    self.register_buffer(f"{name}_{layer}", torch.empty(fan_out, device=device))
        self.register_buffer(HASH_SEED, torch.tensor([hash_seed], device=device))
        constants = torch.empty(3, self.num_hashes, dtype=torch.int64, device=device)
        self.register_buffer("constants", constants, persistent=False)
        if not constants.is_meta:
            self.refresh()

    def settings(self) -> dict[str, Any]:
        """Return the constructor's arguments but `device`."""
        return {
            "num_embeddings": self.num_embeddings,
            "widths": list(self.widths),
            "num_buckets": self.num_buckets,
            "encoding": self.encoding,
            "activation": self.activation,
            "hash_seed": self._given_seed,
            "std": self.std,
            "is_folded": self.is_folded,
        }

    def forward(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (U, D) of the distinct `ids` (U,)."""
        if not self.training or self.is_folded or ids.numel() < 2:
            return self.truth(table, ids)
        x = self.encode(ids)
        for layer in range(self.hidden_layers):
            x = F.linear(x, self._of("weight", layer), self._of("bias", layer))
            x = F.batch_norm(
                x,
                self._of("mean", layer),
                self._of("variance", layer),
                self._of("gamma", layer),
                self._of("beta", layer),
                training=True,
                momentum=_MOMENTUM,
                eps=_EPS,
            )
            x = self._activate(x)
        return self._output(x)

    def truth(self, table: str, ids: Tensor) -> Tensor:
        """Return the rows (N, D) of `ids` (N,) by the running statistics."""
        x = self.encode(ids)
        for layer in range(self.hidden_layers):
            x = self._activate(F.linear(x, *self._folded(layer)))
        return self._output(x)

    def encode(self, ids: Tensor) -> Tensor:
        """Return the network's input (N, k) for `ids` (N,), in the type of its weights."""
        hashed = self._hash(ids, self.get_buffer("constants"))
        return encode(hashed, self.num_buckets, self.encoding, self._of("bias", 0).dtype)

    def initialise(self, generator: torch.Generator) -> None:
        """Draw the layers as PyTorch does, then fit statistics and output to a sample of ids."""
        count = min(_SAMPLE, self.num_embeddings)
        ids = torch.arange(count) * self.num_embeddings // count
        constants = hash_constants(self._given_seed, self.num_hashes, self.num_buckets)
        hashed = self._hash(ids, constants)
        x = encode(hashed, self.num_buckets, self.encoding, torch.float32)
        for layer, (fan_in, fan_out) in enumerate(self._sizes()):
            weight = torch.empty(fan_out, fan_in)
            weight.uniform_(-(fan_in**-0.5), fan_in**-0.5, generator=generator)
            x = x @ weight.T
            mean, deviation = x.mean(dim=0), torch.zeros(1)
            if layer < self.hidden_layers:
                # A single id has no deviation: its pre-activation becomes 0.
                variance = x.var(dim=0) if count > 1 else torch.ones(fan_out)
                values = {"bias": torch.zeros(fan_out), "mean": mean, "variance": variance}
                values |= {"gamma": torch.ones(fan_out), "beta": torch.zeros(fan_out)}
                x = self._activate((x - mean) * (variance + _EPS).rsqrt())
            else:
                deviation = (x - mean).std() if x.numel() > 1 else deviation
                scale = self.std / float(deviation) if float(deviation) > 0 else self.std
                weight *= scale
                values = {"bias": -scale * mean}
            for name, value in (("weight", weight), *values.items()):
                self._of(name, layer).detach().copy_(value)

    def refresh(self) -> None:
        """Derive the hash constants from the stored seed."""
        self._given_seed = int(self.get_buffer(HASH_SEED)[0])
        constants = hash_constants(self._given_seed, self.num_hashes, self.num_buckets)
        self.get_buffer("constants").copy_(constants)

    def serve_bytes(self) -> dict[str, int]:
        """Return the bytes with batch normalisation folded into the layers."""
        weights = sum(fan_out * (fan_in + 1) for fan_in, fan_out in self._sizes())
        return {"weights": 4 * weights, "hash_constants": _SEED_BYTES}

    def frozen(self) -> Self:
        """Return the network with batch normalisation folded into its layers."""
        if self.is_folded:
            return self._shared()
        settings = {**self.settings(), "is_folded": True}
        copy = type(self)(**settings, device=torch.device("meta"))
        last = self.hidden_layers
        for layer in range(last + 1):
            folded = self._folded(layer) if layer < last else self._output_layer()
            for name, tensor in zip(("weight", "bias"), folded, strict=True):
                parameter = nn.Parameter(tensor.detach(), requires_grad=False)
                copy.register_parameter(f"{name}_{layer}", parameter)
        copy.register_buffer(HASH_SEED, self.get_buffer(HASH_SEED))
        copy.register_buffer("constants", self.get_buffer("constants"), persistent=False)
        return copy.eval()

    def _hash(self, ids: Tensor, constants: Tensor) -> Tensor:
        return universal_hash(ids, constants, self.num_buckets, in_floats=self._in_floats)

    def _sizes(self) -> list[tuple[int, int]]:
        """Return the inputs and outputs of each layer."""
        return list(itertools.pairwise(self.widths))

    def _folded(self, layer: int) -> tuple[Tensor, Tensor]:
        """Return a hidden layer's weight and bias with batch normalisation folded in."""
        weight, bias = self._of("weight", layer), self._of("bias", layer)
        if self.is_folded:
            return weight, bias
        scale = self._of("gamma", layer) * (self._of("variance", layer) + _EPS).rsqrt()
        shifted = (bias - self._of("mean", layer)) * scale + self._of("beta", layer)
        return weight * scale.unsqueeze(1), shifted

    def _output_layer(self) -> tuple[Tensor, Tensor]:
        return self._of("weight", self.hidden_layers), self._of("bias", self.hidden_layers)

    def _output(self, x: Tensor) -> Tensor:
        return F.linear(x, *self._output_layer())

    def _activate(self, x: Tensor) -> Tensor:
        return F.mish(x) if self.activation == "mish" else F.relu(x)

    def _of(self, name: str, layer: int) -> Tensor:
        tensor: Tensor = getattr(self, f"{name}_{layer}")
        return tensor

    def _add(self, name: str, *shape: int, device: torch.device | None) -> None:
        self.register_parameter(name, nn.Parameter(torch.empty(shape, device=device)))


def encode(hashed: Tensor, num_buckets: int, encoding: Encoding, dtype: torch.dtype) -> Tensor:
    """Return the network's input (N, k) for hashes (N, k) in [0, m)."""
    x = hashed.to(dtype) / (num_buckets - 1)
    if encoding == "uniform":
        return 2 * x - 1
    radius = (-2 * x[:, ::2].clamp(min=_LEAST_UNIFORM).log()).sqrt()
    angle = 2 * math.pi * x[:, 1::2]
    return torch.stack([radius * angle.cos(), radius * angle.sin()], dim=2).flatten(1)


class DHE(ComputedMethod):
    """Networks of one hidden width for all tables: the widest that the budget allows.

    A wide network costs h^2 multiplications a layer and id: at a budget of a tenth and a table of
    millions of ids it is slower than any table by orders of magnitude.

    Args:
        num_hashes: k.
        num_buckets: m.
        encoding: "uniform" or "normal", see `HashMLP`.
        hidden_layers: L.
        activation: "mish", or "relu", which some found better.
        init_std: standard deviation of the initial vectors; None for the uniform distribution of
            DLRM.
        hash_seed: of the hash functions, which are salted with the table's name.

    Raises:
        ValueError: on an unknown word or a number outside its range.
    """

    trains_as_served = False  # batch normalisation

    def __init__(
        self,
        *,
        num_hashes: int = 1024,
        num_buckets: int = 1_000_000,
        encoding: Encoding = "uniform",
        hidden_layers: int = 5,
        activation: Activation = "mish",
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        super().__init__(init_std=init_std)
        if encoding not in ("uniform", "normal"):
            raise ValueError(f"DHE: encoding must be uniform or normal, got '{encoding}'")
        if activation not in ("mish", "relu"):
            raise ValueError(f"DHE: activation must be mish or relu, got '{activation}'")
        if num_hashes < 1 or (encoding == "normal" and num_hashes % 2):
            raise ValueError(
                f"DHE: num_hashes must be at least 1, and even for encoding normal, got "
                f"{num_hashes}"
            )
        if num_buckets < 2 or hidden_layers < 1:
            raise ValueError(
                f"DHE: num_buckets must be at least 2 and hidden_layers at least 1, got "
                f"{num_buckets} and {hidden_layers}"
            )
        self.num_hashes, self.num_buckets = num_hashes, num_buckets
        self.encoding: Encoding = encoding
        self.hidden_layers = hidden_layers
        self.activation: Activation = activation
        self.hash_seed = hash_seed

    def design(self, specs: Sequence[TableSpec], budget: Budget | None) -> Design:
        """Return the design of the greatest width within `budget`, or that of width 1."""
        width = largest_size(
            lambda h: sum(min(spec.full_bytes, self._num_bytes(spec, h)) for spec in specs),
            budget,
            specs,
            most=max(1, math.isqrt(sum(s.full_bytes // 4 for s in specs))),
        )
        computed = [s for s in specs if self._num_bytes(s, width) < s.full_bytes]
        make: dict[str, Callable[[torch.device], RowSource]] = {
            spec.name: partial(self._make, spec, width) for spec in computed
        }
        words = sum(min(spec.full_bytes // 4, self.num_words(spec, width)) for spec in specs)
        return Design(
            make=make,
            source_of={spec.name: spec.name for spec in computed},
            parameters={
                "hidden_width": width,
                "computed_tables": len(computed),
                "published_words": words,
                "published_ratio": 4 * words / sum(spec.full_bytes for spec in specs),
            },
        )

    def num_words(self, spec: TableSpec, width: int) -> int:
        """Return the study's count of a network's words, unfolded and without hash constants.

        (k + 1) h + (L - 1) h (h + 1) + (D + 1) h + 2 L h; its output layer has a bias for each
        hidden unit, where it should be for each of the D outputs.
        """
        k, layers = self.num_hashes, self.hidden_layers
        network = k + 1 + (layers - 1) * (width + 1) + spec.embedding_dim + 1
        return width * (network + 2 * layers)

    def _num_bytes(self, spec: TableSpec, width: int) -> int:
        """Return the larger of the published bytes and ours."""
        k, layers, dim = self.num_hashes, self.hidden_layers, spec.embedding_dim
        values = width * (k + 1) + (layers - 1) * width * (width + 1) + dim * (width + 1)
        return 4 * max(self.num_words(spec, width), values + _SEED_BYTES // 4)

    def _make(self, spec: TableSpec, width: int, device: torch.device) -> HashMLP:
        return HashMLP(
            num_embeddings=spec.num_embeddings,
            widths=(self.num_hashes, *[width] * self.hidden_layers, spec.embedding_dim),
            num_buckets=self.num_buckets,
            encoding=self.encoding,
            activation=self.activation,
            hash_seed=seed_of(self.hash_seed, spec.name),
            std=self.std(spec),
            device=device,
        )
