"""The tables of CCE while they train: codes that move when their rows are clustered.

Shapes: `N` ids, `n` rows of a table, `D` its width, `c` chunks of them, `Z` = D / c; `r` centroids
of a chunk, and as many hashed rows.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.ids.hashing import hash_seed as seed_of
from recemb.kernels.hashing import reference
from recemb.methods.cce_plan import (
    CENTROIDS,
    HASHED,
    initial_rules,
    inner_specs,
    part,
    sum_plan,
    terms_of,
)
from recemb.methods.clustering import k_means, means, nearest
from recemb.methods.code_sums import CodeSums, SumForm
from recemb.tables.blueprint import Blueprint
from recemb.tables.computed import ComputedTables
from recemb.tables.full import full_plan
from recemb.tables.initial import Initial
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.planned import PlannedTables
from recemb.tables.row_source import merge_bytes
from recemb.tables.spec import TableSpec, output_keys
from recemb.tables.storage import Storage
from recemb.tables.tables import Tables
from recemb.tables.wrapped import hand_on, name_as_own

_ROUND = "clusterings"
_MOST_CHUNKS = 1 << 10


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """How rows are clustered.

    Attributes:
        samples_per_centroid: ids whose chunks k-means sees, for each centroid, at most.
        iterations: of k-means, at most.
    """

    samples_per_centroid: int = 200
    iterations: int = 100


class CCETables(Tables):
    """Chunks that are the sum of a row that a code names and of a hashed row.

    The two terms are outputs of their own of planned tables, which train row by row as all do, and
    are added after pooling. A clustering makes new planned tables, for hashes change, so that the
    optimizer's state begins anew.

    Attributes:
        forms: of the tables that are coded, by name; the others are plain.
        planned: the rows.

    Args:
        specs: the tables.
        forms: see above.
        init_std: of the vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.
        optimizer: how rows are updated.
        seed: of the initial weights.
        device: where the tables live.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        forms: Mapping[str, SumForm],
        init_std: float | None,
        hash_seed: int,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> None:
        super().__init__(specs)
        self.forms = dict(forms)
        self.optimizer = optimizer
        self._hash_seed, self._seed, self._device = hash_seed, seed, device
        self._round = 0
        self._learning_rate: float | None = None
        self._inner_specs = inner_specs(specs, forms)
        keys = {(s.name, f): key for key, (s, f) in output_keys(self._inner_specs).items()}
        self._terms = {
            key: [keys[name, feature] for name in terms_of(spec, forms)]
            for key, (spec, feature) in self.outputs.items()
        }
        codes = {name: self._first_codes(name) for name in forms}
        self.planned = self._planned(codes, initial_rules(specs, forms, init_std))
        name_as_own(self)

    @property
    def num_clusterings(self) -> int:
        """Return how often rows were clustered."""
        return self._round

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example, contiguous (B, sum of D).

        Raises:
            ValueError: if a feature is missing, or an id is out of range.
        """
        found = self.planned(features).to_dict()
        values = [_added([found[term] for term in self._terms[key]]) for key in self.keys]
        return KeyedTensor(
            keys=list(self.keys),
            length_per_key=list(self.embedding_dims.values()),
            values=torch.cat(values, dim=1) if values else torch.empty(features.stride(), 0),
        )

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return, for each of `sequence_keys`, the vectors (N, D) of all its ids, not pooled.

        Raises:
            ValueError: as `forward`.
        """
        terms = self.planned.sequences(features)
        found = {}
        for key in self.sequence_keys:
            its = [terms[term] for term in self._terms[key]]
            found[key] = JaggedTensor(
                values=_added([term.values() for term in its]),
                lengths=its[0].lengths(),
                weights=its[0].weights_or_none(),
            )
        return found

    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,), each in [0, num_embeddings).

        Raises:
            ValueError: on an unknown key or an id out of range.
        """
        if key not in self._terms:
            raise ValueError(f"tables: there is no key '{key}'; the keys are {list(self.outputs)}")
        return _added([self.planned.rows(term, ids) for term in self._terms[key]])

    @torch.no_grad()
    def cluster(self, clustering: Clustering) -> None:
        """Make centroids of the present chunks, and the mean of what is left of each new bucket."""
        number = self._round + 1
        codes: dict[str, Tensor] = {}
        weights: dict[str, Tensor] = {
            spec.name: self.planned.table(spec.name).detach()
            for spec in self.specs
            if spec.name not in self.forms
        }
        for name in self.forms:
            codes[name], rows = self._clustered(name, number, clustering)
            weights |= rows
        self._replace(number, codes, weights)

    def storage(self) -> Storage:
        """Return the bytes of packed codes and rows in serving, and all that training holds."""
        inner = self.planned.storage()
        return Storage(
            full_bytes=sum(spec.full_bytes for spec in self.specs),
            serve=serving_parts(self.specs, self.forms),
            train={**inner.train, "counters": 8},
        )

    def freeze(self) -> ComputedTables:
        """Return packed codes and rows, which give bit-equal vectors."""
        plain = [spec for spec in self.specs if spec.name not in self.forms]
        planned = None
        if plain:
            weights = {spec.name: self.planned.table(spec.name).detach() for spec in plain}
            made = Blueprint(plan=full_plan(plain), initial=weights)
            tables = made.tables(plain, optimizer=None, seed=0, device=self._device)
            planned = tables.without_training()
        return ComputedTables(
            self.specs,
            sources={name: self._sums(name) for name in self.forms},
            source_of={name: name for name in self.forms},
            planned=planned,
        ).eval()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next update on.

        Raises:
            ValueError: if it is negative, or the tables have no optimizer of their own.
        """
        self.planned.set_learning_rate(learning_rate)
        self._learning_rate = learning_rate

    def defer_updates(self, flag: bool) -> None:
        """Collect gradients instead of updating, while `flag` is True; see `Tables`."""
        self.planned.defer_updates(flag)

    def _clustered(
        self, name: str, number: int, clustering: Clustering
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the codes (n, c) int32 of a table after clustering `number`, and its rows."""
        num_entries = self.forms[name].num_entries
        generator = torch.Generator().manual_seed(seed_of(self._seed, name, number))
        codes, centroids, hashed = [], [], []
        for j, seed in enumerate(self._hash_seeds(name, number)):
            chunk = self._chunk(name, j)
            count = min(chunk.shape[0], clustering.samples_per_centroid * num_entries)
            drawn = torch.randperm(chunk.shape[0], generator=generator)[:count]
            points = chunk[drawn.to(chunk.device)]
            iterations = clustering.iterations
            found = k_means(points, num_entries, iterations=iterations, generator=generator)
            which = nearest(chunk, found)
            ids = torch.arange(chunk.shape[0], device=chunk.device)
            bucket = reference.hash_rows(ids, seed, num_entries)
            codes.append(which.int())
            centroids.append(found)
            hashed.append(means(chunk - found[which], bucket, torch.zeros_like(found)))
        rows = {
            part(name, CENTROIDS): torch.cat(centroids),
            part(name, HASHED): torch.cat(hashed),
        }
        return torch.stack(codes, dim=1), rows

    def _replace(
        self, number: int, codes: Mapping[str, Tensor], initial: Mapping[str, Initial | Tensor]
    ) -> None:
        self._round = number
        self.planned = self._planned(codes, initial).train(self.training)
        if self._learning_rate is not None:
            self.planned.set_learning_rate(self._learning_rate)

    def _planned(
        self, codes: Mapping[str, Tensor], initial: Mapping[str, Initial | Tensor]
    ) -> PlannedTables:
        seeds = {name: self._hash_seeds(name, self._round) for name in self.forms}
        plan = sum_plan(self.specs, self.forms, seeds)
        return PlannedTables(
            self._inner_specs,
            plan,
            optimizer=self.optimizer,
            buffers={part(name, "codes"): its for name, its in codes.items()},
            initial=initial,
            seed=self._seed,
            device=self._device,
        )

    def _hash_seeds(self, name: str, number: int) -> list[int]:
        """Return the seeds of the chunks' hash functions after so many clusterings."""
        first = 2 * number * _MOST_CHUNKS
        return [
            seed_of(self._hash_seed, name, first + j) for j in range(self.forms[name].num_chunks)
        ]

    def _first_codes(self, name: str) -> Tensor:
        """Return the codes (n, c) int32 before any clustering: hashes, too."""
        form = self.forms[name]
        if self._device.type == "meta":
            shape = (form.num_rows, form.num_chunks)
            return torch.empty(shape, dtype=torch.int32, device="meta")
        ids = torch.arange(form.num_rows)
        seeds = [seed_of(self._hash_seed, name, _MOST_CHUNKS + j) for j in range(form.num_chunks)]
        hashes = [reference.hash_rows(ids, seed, form.num_entries) for seed in seeds]
        return torch.stack(hashes, dim=1).int()

    def _chunk(self, name: str, j: int) -> Tensor:
        """Return chunk j (n, Z) of all rows of a table."""
        form, r = self.forms[name], self.forms[name].num_entries
        codes = self.planned.plan_buffers[part(name, "codes")][:, j].long()
        ids = torch.arange(form.num_rows, device=codes.device)
        hashes = reference.hash_rows(ids, self._hash_seeds(name, self._round)[j], r)
        centroids = self.planned.table(part(name, CENTROIDS)).detach()
        hashed = self.planned.table(part(name, HASHED)).detach()
        return centroids[codes + j * r] + hashed[hashes + j * r]

    def _sums(self, name: str) -> CodeSums:
        return CodeSums.of(
            self.forms[name],
            codes=self.planned.plan_buffers[part(name, "codes")],
            centroids=self.planned.table(part(name, CENTROIDS)),
            hashed=self.planned.table(part(name, HASHED)),
            hash_seeds=self._hash_seeds(name, self._round),
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + _ROUND] = torch.tensor(self._round)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        number = state_dict.pop(prefix + _ROUND, None)
        if number is None:
            missing_keys.append(prefix + _ROUND)
        elif int(number) != self._round:
            # Other hashes; torch loads codes and rows next.
            codes = {name: self._first_codes(name) for name in self.forms}
            self._replace(int(number), codes, {})
        hand_on(state_dict, prefix, [key for key in state_dict if key.startswith(prefix)])


def serving_parts(specs: Sequence[TableSpec], forms: Mapping[str, SumForm]) -> dict[str, int]:
    """Return the bytes of all tables in serving, part by part."""
    plain = sum(spec.full_bytes for spec in specs if spec.name not in forms)
    parts = [form.parts() for form in forms.values()]
    return merge_bytes([*parts, {"weights": plain} if plain else {}])


def _added(terms: Sequence[Tensor]) -> Tensor:
    return terms[0] if len(terms) == 1 else terms[0] + terms[1]
