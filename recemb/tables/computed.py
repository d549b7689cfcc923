"""Tables whose rows are computed (tensor trains, networks, one flat array), not looked up.

Shapes: `B` examples, `N` ids, `D` embedding_dim.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.ids.hashing import hash_seed
from recemb.tables.bags import Bags, is_one_hot, select_bags
from recemb.tables.bounds import Bounds, BoundsCheck, id_limits
from recemb.tables.lookup_plan import Output
from recemb.tables.named_tensors import load_named
from recemb.tables.optimizer import TableOptimizer, check_learning_rate
from recemb.tables.planned import PlannedTables
from recemb.tables.row_source import RowSource, merge_bytes
from recemb.tables.spec import TableSpec, output_keys
from recemb.tables.storage import Storage
from recemb.tables.tables import Share, Tables
from recemb.tables.wrapped import hand_on, name_as_own


class ComputedTables(Tables):
    """Tables whose rows modules compute, beside others that are stored as they are.

    HOW THEY TRAIN: the parameters of sources are few and shared by all ids, so a step touches most
    of them. They are ordinary parameters, among `dense_parameters`, which the trainer's dense
    optimizer updates with the model's, and whose optimizer state is that optimizer's: `storage`
    does not count it. The stored tables (`planned`) keep their row-sparse fused updates.

    In a state_dict, a source's tensors are `embedding_bags.<source>.<part>`; those of the stored
    tables are named as `PlannedTables` names them.

    Args:
        specs: all tables, in configured order.
        sources: what computes rows, by name.
        source_of: the name of the source of each computed table, by the table's name.
        planned: tables for the other specs, in the same order; None if there are no others.
        optimizer: that of `planned`; None if autograd is to train the stored tables, too.
        bounds: what happens to an id outside [0, num_embeddings), see `BoundsCheck`.

    Raises:
        ValueError: if a table has neither or both.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        *,
        sources: Mapping[str, RowSource],
        source_of: Mapping[str, str],
        planned: PlannedTables | None,
        optimizer: TableOptimizer | None = None,
        bounds: Bounds = "error",
    ) -> None:
        super().__init__(specs)
        self.optimizer = optimizer
        self._seed: int | None = None
        self.source_of = dict(source_of)
        self.source_names = tuple(sources)
        # A list, for names of tables may hold characters that names of modules may not.
        self._sources = nn.ModuleList(sources.values())
        self.planned = planned
        self._check(sources, planned)
        self._bounds = BoundsCheck(bounds)
        stored = output_keys(() if planned is None else planned.specs)
        self._stored_key = {(spec.name, feature): key for key, (spec, feature) in stored.items()}
        self._computed: dict[str, tuple[Output, ...]] = {
            name: tuple(self._output(key) for key in self.outputs if self._source_name(key) == name)
            for name in sources
        }
        for index, outputs in enumerate(self._computed.values()):
            for is_pooled in (True, False):
                limits = id_limits(_passed(outputs, is_pooled=is_pooled))
                self.register_buffer(_limits_name(index, is_pooled), limits, persistent=False)
        name_as_own(self)

    @property
    def sources(self) -> dict[str, RowSource]:
        """Return what computes rows, by name."""
        found = {}
        for name, source in zip(self.source_names, self._sources, strict=True):
            assert isinstance(source, RowSource)
            found[name] = source
        return found

    def initialise(self, seed: int) -> None:
        """Draw the parameters of all sources; each has a stream of its own.

        On the meta device there is nothing to draw; the seed is kept for `sharded`.
        """
        self._seed = seed
        if any(p.is_meta for p in self._sources.parameters()):
            return
        for name, source in self.sources.items():
            source.initialise(torch.Generator().manual_seed(hash_seed(seed, name)))

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example, contiguous (B, sum of D).

        Raises:
            ValueError: if a feature is missing, or an id is out of range and `bounds` is "error".
        """
        vectors: dict[str, Tensor] = {}
        for source, outputs, bags in self._passes(features, is_pooled=True):
            pooled = source.pooled(outputs, bags)
            vectors |= {o.key: v for o, v in zip(outputs, pooled, strict=True)}
        if self.planned is not None and self.planned.keys:
            stored = self.planned(features).to_dict()
            vectors |= {key: stored[its] for key, its in self._stored_keys() if its in stored}
        values = [vectors[key] for key in self.keys]
        return KeyedTensor(
            keys=list(self.keys),
            length_per_key=list(self.embedding_dims.values()),
            values=torch.cat(values, dim=1) if values else torch.empty(features.stride(), 0),
        )

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return, for each of `sequence_keys`, the vectors (N, D) of all its ids, not pooled.

        Weights of ids are handed on, not multiplied in.

        Raises:
            ValueError: as `forward`.
        """
        found: dict[str, JaggedTensor] = {}
        for source, outputs, bags in self._passes(features, is_pooled=False):
            lengths = bags.bag_lengths().view(len(outputs), -1)
            weights = None if bags.weights is None else torch.split(bags.weights, bags.sizes)
            for f, vectors in enumerate(source.unpooled(outputs, bags)):
                found[outputs[f].key] = JaggedTensor(
                    values=vectors,
                    lengths=lengths[f],
                    weights=None if weights is None else weights[f],
                )
        if self.planned is not None:
            stored = self.planned.sequences(features)
            found |= {key: stored[its] for key, its in self._stored_keys() if its in stored}
        return {key: found[key] for key in self.sequence_keys}

    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,), each in [0, num_embeddings).

        They are those of serving: where rows depend on the batch in training mode (DHE), `forward`
        equals pooling these in eval mode.

        Raises:
            ValueError: on an unknown key or an id out of range.
        """
        if key not in self.outputs:
            raise ValueError(f"tables: there is no key '{key}'; the keys are {list(self.outputs)}")
        spec, feature = self.outputs[key]
        if spec.name not in self.source_of:
            assert self.planned is not None
            return self.planned.rows(self._stored_key[spec.name, feature], ids)
        outside = ids[(ids < 0) | (ids >= spec.num_embeddings)]
        if outside.numel():
            raise ValueError(
                f"table '{spec.name}': id {int(outside[0])} is not in [0, {spec.num_embeddings})"
            )
        return self.sources[self.source_of[spec.name]].truth(spec.name, ids.long())

    def stored_vectors(self, key: str) -> Tensor | None:
        """Return the table whose row `i` is the vector of id `i`; None for computed vectors."""
        spec, feature = self.outputs[key]
        if self.planned is None or spec.name in self.source_of:
            return None
        return self.planned.stored_vectors(self._stored_key[spec.name, feature])

    def storage(self) -> Storage:
        """Return the exact bytes; the dense optimizer's state is not among them."""
        sources = list(self.sources.values())
        stored = None if self.planned is None else self.planned.storage()
        serve = [source.serve_bytes() for source in sources]
        train = [source.train_bytes() for source in sources]
        return Storage(
            full_bytes=sum(spec.full_bytes for spec in self.specs),
            serve=merge_bytes([*serve, {} if stored is None else stored.serve]),
            train=merge_bytes([*train, {} if stored is None else stored.train]),
        )

    def freeze(self) -> "ComputedTables":
        """Return the serving form of every part, without optimizer state or gradients."""
        return ComputedTables(
            self.specs,
            sources={name: source.frozen() for name, source in self.sources.items()},
            source_of=self.source_of,
            planned=None if self.planned is None else self.planned.without_training(),
            bounds=self._bounds.policy,
        ).eval()

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next update of the stored tables on.

        Raises:
            ValueError: if it is negative, or the tables have no optimizer of their own.
        """
        check_learning_rate(self.optimizer, learning_rate)
        if self.planned is not None:
            self.planned.set_learning_rate(learning_rate)

    def defer_updates(self, flag: bool) -> None:
        """Collect gradients instead of updating, while `flag` is True; see `Tables`.

        Gradients of computed rows accumulate by themselves.
        """
        if self.planned is not None:
            self.planned.defer_updates(flag)

    def why_not_sharded(self) -> str | None:
        """Return why several processes cannot share these tables, or None if they can."""
        if type(self) is not ComputedTables:
            return super().why_not_sharded()
        if self._seed is None or not all(p.is_meta for p in self._sources.parameters()):
            return "they exist already; build them on the meta device"
        return None if self.planned is None else self.planned.why_not_sharded()

    def sharded(self, share: Share) -> Tables:
        """Return these tables made anew for one of several ranks; see `Tables`.

        Stored tables are shared; every rank computes the others' rows, by the same parameters.
        """
        planned = None
        if self.planned is not None:
            found = self.planned.sharded(share)
            assert isinstance(found, PlannedTables)
            planned = found
        made = ComputedTables(
            self.specs,
            sources={
                name: type(source)(**source.settings(), device=share.device)
                for name, source in self.sources.items()
            },
            source_of=self.source_of,
            planned=planned,
            optimizer=self.optimizer,
            bounds=self._bounds.policy,
        )
        assert self._seed is not None
        made.initialise(self._seed)
        for source in made.sources.values():
            source.process_group = share.process_group
        return made

    def out_of_range_counts(self) -> dict[str, int]:
        """Return how many ids of each key were out of range, and replaced, so far."""
        counts = {} if self.planned is None else self.planned.out_of_range_counts()
        stored = {key: counts[its] for key, its in self._stored_keys()}
        return {key: stored.get(key, self._bounds.counts[key]) for key in self.outputs}

    def description(self) -> dict[str, Any]:
        """Return, as plain JSON types, all that is needed to make these tables anew.

        `sources` has the form and the settings of each source, `source_of` says which table reads
        which, and `plan` is the JSON of the stored tables' plan, or None.
        """
        return {
            "sources": {
                name: {"form": source.form, "settings": source.settings()}
                for name, source in self.sources.items()
            },
            "source_of": dict(self.source_of),
            "plan": None if self.planned is None else self.planned.plan.to_json(),
        }

    def identity(self) -> dict[str, Any]:
        """Return what a state_dict belongs to: the sources, beside the stored tables' plan."""
        described = self.description()
        return {
            **super().identity(),
            "sources": described["sources"],
            "source_of": described["source_of"],
        }

    def _passes(
        self, features: KeyedJaggedTensor, *, is_pooled: bool
    ) -> Iterator[tuple[RowSource, tuple[Output, ...], Bags]]:
        """Yield each source, its outputs of a pass, and their bags, all ids in range."""
        one_hot = is_one_hot(features)
        for index, (name, source) in enumerate(self.sources.items()):
            outputs = _passed(self._computed[name], is_pooled=is_pooled)
            if not outputs:
                continue
            bags = select_bags(features, [o.feature for o in outputs], one_hot=one_hot)
            limits = self.get_buffer(_limits_name(index, is_pooled))
            ids = self._bounds.apply(bags, outputs, limits)
            yield source, outputs, dataclasses.replace(bags, values=ids)

    def _stored_keys(self) -> Iterator[tuple[str, str]]:
        """Yield the key of each output that is stored, and its key in `planned`."""
        for key, (spec, feature) in self.outputs.items():
            if spec.name not in self.source_of:
                yield key, self._stored_key[spec.name, feature]

    def _source_name(self, key: str) -> str | None:
        return self.source_of.get(self.outputs[key][0].name)

    def _output(self, key: str) -> Output:
        spec, feature = self.outputs[key]
        return Output(
            key=key,
            feature=feature,
            owner=spec.name,
            num_ids=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            pooling=spec.pooling,
            lookups=(),
        )

    def _check(self, sources: Mapping[str, RowSource], planned: PlannedTables | None) -> None:
        """Check that every table is either computed or stored.

        Raises:
            ValueError: if one is not.
        """
        if unknown := sorted(set(self.source_of.values()) - sources.keys()):
            raise ValueError(f"ComputedTables: tables read sources {unknown}; pass them")
        rest = tuple(spec for spec in self.specs if spec.name not in self.source_of)
        stored = () if planned is None else planned.specs
        if rest != stored:
            raise ValueError(
                f"ComputedTables: tables {[s.name for s in rest]} have no source, but planned has "
                f"{[s.name for s in stored]}; give it exactly those, in the same order"
            )

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names, for a state_dict, and the tensors of all sources."""
        for name, source in self.sources.items():
            for part, tensor in source.parts():
                yield f"embedding_bags.{name}.{part}", tensor

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        for name, tensor in self._named_tensors():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

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
        named = self._named_tensors()
        expected = load_named(named, state_dict, prefix, missing_keys, error_msgs)
        for source in self.sources.values():
            source.refresh()
        rest = [key for key in state_dict if key.startswith(prefix) and key not in expected]
        if self.planned is None:
            unexpected_keys.extend(rest if strict else ())
            return
        hand_on(state_dict, prefix, rest)  # what no source owns


def _passed(outputs: Sequence[Output], *, is_pooled: bool) -> tuple[Output, ...]:
    return tuple(o for o in outputs if (o.pooling != "none") == is_pooled)


def _limits_name(index: int, is_pooled: bool) -> str:
    return f"_limits_{index}_{'pooled' if is_pooled else 'sequences'}"
