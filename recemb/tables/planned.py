"""Tables that a LookupPlan describes.

Shapes: `B` examples, `N` ids, `D` embedding_dim.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchrec.sparse.jagged_tensor import JaggedTensor, KeyedJaggedTensor, KeyedTensor

from recemb.tables.backend import Backend, check_backend
from recemb.tables.bounds import Bounds, BoundsCheck
from recemb.tables.compose import Composer, RowPrograms, combine, project
from recemb.tables.engine import Engine, RowEngine, RowPass
from recemb.tables.gather import gather_rows
from recemb.tables.ingredients import Ingredients, check_outputs, plan_buffers
from recemb.tables.initial import Initial, draw_weights
from recemb.tables.layout import Layout, Unit, group_tables, lay_out
from recemb.tables.lookup_plan import LookupPlan
from recemb.tables.named_tensors import NamedTensors, load_named
from recemb.tables.optimizer import TableOptimizer, check_learning_rate
from recemb.tables.program import run_program
from recemb.tables.spec import TableSpec
from recemb.tables.storage import Storage
from recemb.tables.tables import Share, Tables
from recemb.tables.transform import TransformFactory, Transforms
from recemb.tables.updater import UNFINISHED


class PlannedTables(Tables):
    """Tables whose vectors a plan makes out of the rows of physical tables.

    All physical tables of one width and type lie in one buffer. A backward pass through `forward`
    updates each of them once, whichever outputs read it; `sequences`, and every further call, are
    passes of their own, which update in turn.

    Weights of ids may require grad: their gradient is computed from the rows before the update.

    Args:
        specs: the tables that the model knows; there must be one output for each of their keys.
        plan: which rows make which vectors.
        optimizer: how rows are updated, inside the backward pass: exactly, touched rows only. None
            makes the weights ordinary parameters with dense gradients, for any torch.optim.
        backend: what updates the rows. "torch" is exact for every optimizer and type, on any
            device. "fbgemm" calls FBGEMM's CPU kernels: SGD, Adagrad and row-wise Adagrad without
            weight decay, float32, widths that are multiples of 4. "auto" takes FBGEMM, buffer by
            buffer, where it can serve; else torch. Both read and write the same memory, so a state
            saved with one loads with the other.
        bounds: what happens to an id that its output does not have, see `BoundsCheck`.
        buffers: what address and row programs read, by name.
        initial: how each physical table's weights are drawn, or what they are, by its name; and
            what a projection is, by `NAME.projection`. Other projections are drawn so that vectors
            keep the rows' standard deviation; integers start at 0.
        transform: makes what happens to a group's rows between memory and combination; None for
            nothing.
        seed: of the initial weights.
        device: where the tables live; "meta" allocates nothing.

    Attributes:
        ingredients: what is needed to make these tables elsewhere; on the meta device alone.

    Raises:
        ValueError: on an unknown word, or if plan, specs and buffers do not fit each other.
    """

    def __init__(
        self,
        specs: Sequence[TableSpec],
        plan: LookupPlan,
        *,
        optimizer: TableOptimizer | None = None,
        backend: Backend = "auto",
        bounds: Bounds = "error",
        buffers: Mapping[str, Tensor] | None = None,
        initial: Mapping[str, Initial | Tensor] | None = None,
        transform: TransformFactory | None = None,
        seed: int = 0,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(specs)
        check_backend(backend, "PlannedTables")
        self.plan = plan
        self.optimizer = optimizer
        self.backend: Backend = backend
        self._output_of = {output.key: output for output in plan.outputs}
        # A plan may give a feature another width than its spec, as Unified Embedding does.
        self.embedding_dims = {o.key: o.embedding_dim for o in plan.outputs if o.key in self.keys}
        self.sequence_dims = {
            o.key: o.embedding_dim for o in plan.outputs if o.key in self.sequence_keys
        }
        check_outputs(plan, self.outputs)
        self._bounds = BoundsCheck(bounds)
        self._device = torch.device("cpu" if device is None else device)
        self.plan_buffers = plan_buffers(plan, buffers or {}, self._device)
        self.transforms = Transforms(group_tables(plan), transform).to(self._device)
        layout = lay_out(plan, composed=self.transforms.composed)
        self.engine = self._make_engine(layout)
        self.projections = NamedTensors(
            {
                p.name: torch.empty(p.in_width, p.out_width, device=self._device)
                for p in plan.projections
            },
            self._device,
            is_trained=True,
        )
        widths = [group.width for group in layout.groups]
        self._composers = [
            Composer(
                plan,
                units,
                widths=[[widths[g] for g in unit.groups] for unit in units],
                buffers=self.plan_buffers,
            )
            for units in (layout.pooled, layout.sequences)
        ]
        self.ingredients: Ingredients | None = None
        if self._device.type != "meta":
            self._draw(initial or {}, seed)
            for its in self.transforms.all():
                its.draw(seed, initial or {}, self.table)
        else:
            self.ingredients = Ingredients(
                backend=backend,
                bounds=bounds,
                buffers=buffers or {},
                initial=initial or {},
                transform=transform,
                seed=seed,
            )

    def forward(self, features: KeyedJaggedTensor) -> KeyedTensor:
        """Return one pooled vector per key and example, contiguous (B, sum of D).

        Raises:
            ValueError: if a feature is missing, or an id is out of range and `bounds` is "error".
        """
        if not self.keys:
            values = torch.empty(features.stride(), 0)
        else:
            read = self.engine.pooled(features)
            read = self.transforms.apply_to(read, self._units_of(self.engine.pooled))
            values = self._composers[0].pooled(read, self.projections)
        return KeyedTensor(
            keys=list(self.keys),
            length_per_key=list(self.embedding_dims.values()),
            values=values,
        )

    def sequences(self, features: KeyedJaggedTensor) -> dict[str, JaggedTensor]:
        """Return, for each of `sequence_keys`, the vectors (N, D) of all its ids, not pooled.

        Weights of ids are handed on, not multiplied in.

        Raises:
            ValueError: as `forward`.
        """
        if not self.sequence_keys:
            return {}
        read = self.engine.sequences(features)
        read = self.transforms.apply_to(read, self._units_of(self.engine.sequences))
        vectors = self._composers[1].unpooled(read, self.projections)
        found = {}
        for unit, bags in zip(self.engine.sequences.units, read.bags, strict=True):
            lengths = torch.split(bags.bag_lengths(), [bags.batch_size] * len(bags.sizes))
            weights = None if bags.weights is None else torch.split(bags.weights, bags.sizes)
            for slot, f in zip(unit.unit.slots[0], unit.unit.sources, strict=True):
                found[slot.output.feature, slot.output.num_ids] = (
                    lengths[f],
                    None if weights is None else weights[f],
                )
        return {
            key: JaggedTensor(
                values=vectors[key],
                lengths=found[self._output_of[key].feature, self._output_of[key].num_ids][0],
                weights=found[self._output_of[key].feature, self._output_of[key].num_ids][1],
            )
            for key in self.sequence_keys
        }

    def rows(self, key: str, ids: Tensor) -> Tensor:
        """Return the vectors (N, D) of `ids` (N,), each in [0, num_embeddings).

        Raises:
            ValueError: on an unknown key or an id out of range.
        """
        if key not in self._output_of:
            raise ValueError(f"tables: there is no key '{key}'; the keys are {list(self.outputs)}")
        output = self._output_of[key]
        if output.num_ids is not None:
            outside = ids[(ids < 0) | (ids >= output.num_ids)]
            if outside.numel():
                raise ValueError(
                    f"table '{output.owner}': id {int(outside[0])} is not in [0, {output.num_ids})"
                )
        programs = RowPrograms(self.plan_buffers)
        vectors = []
        for lookup in output.all_lookups:
            rows = run_program(lookup.program, ids.long(), self.plan_buffers)
            vector = self._rows_of(lookup.table, rows.clamp(min=0))
            vector = vector.masked_fill((rows < 0).unsqueeze(1), 0)
            vector = self.transforms.apply_to_rows(lookup.table, vector, rows)
            vectors.append(programs.apply(lookup.row, vector, rows))
        return project(output, combine(output, vectors), self.projections)

    def stored_vectors(self, key: str) -> Tensor | None:
        """Return the table (num_embeddings, D) whose row `i` is the vector of id `i`, or None."""
        output = self._output_of[key]
        if self.transforms.by_group or not output.is_stored:
            return None
        table = self.plan.table(output.lookups[0].table)
        is_whole = table.num_rows == output.num_ids and table.step is None
        return self.table(table.name).detach() if is_whole and "float" in table.dtype else None

    def storage(self) -> Storage:
        """Return the exact bytes: what serving needs, part by part, and what training adds."""
        stores = self.engine.stores
        serve = {"weights": sum(store.weight.nbytes for store in stores)}
        for part, tensors in (
            ("buffers", (t for _, t in self.plan_buffers.items())),
            ("projections", (t for _, t in self.projections.items())),
        ):
            if num_bytes := sum(t.nbytes for t in tensors):
                serve[part] = num_bytes
        if self.transforms.by_group:
            serve["transforms"] = sum(t.nbytes for t in self.transforms.state_dict().values())
        state = sum(t.nbytes for store in stores for t in store.state.values())
        counts = sum(8 * len(store.step_names()) for store in stores)
        return Storage(
            full_bytes=sum(spec.full_bytes for spec in self.specs),
            serve=serve,
            train={**serve, "optimizer_state": state + counts},
        )

    def freeze(self) -> Tables:
        """Return the form that serving needs: `without_training`, where a method has no other.

        Raises:
            NotImplementedError: as `without_training`.
        """
        return self.without_training()

    def without_training(self) -> "PlannedTables":
        """Return the same weights, shared, without optimizer state or gradients, in eval mode.

        Raises:
            NotImplementedError: if rows are transformed: what becomes of that in serving is for the
                method to say.
        """
        if self.transforms.by_group:
            raise NotImplementedError(
                f"{type(self).__name__}: rows are transformed, so freeze() must be the method's own"
            )
        frozen = PlannedTables(
            self.specs,
            self.plan,
            bounds=self._bounds.policy,
            buffers=dict(self.plan_buffers.items()),
            device="meta",
        )
        mine, its = self.engine, frozen.engine
        for source, target in zip(mine.stores, its.stores, strict=True):
            target.weight = nn.Parameter(source.weight.detach(), requires_grad=False)
        its.units.to_empty(device=mine.stores[0].weight.device)
        for buffer, copy in zip(mine.units.buffers(), its.units.buffers(), strict=True):
            copy.copy_(buffer)
        frozen.plan_buffers.share(self.plan_buffers)
        frozen.projections.share(self.projections)
        return frozen.eval()

    def penalty(self) -> Tensor:
        """Return the sum of what the transforms add to the loss."""
        return sum((t.penalty() for t in self.transforms.all()), start=torch.zeros(()))

    def dense_parameters(self) -> list[nn.Parameter]:
        """Return the parameters for the dense optimizer: without those of a method's own steps."""
        own = {id(p) for p in self.transforms.parameters()}
        found = [p for p in super().dense_parameters() if id(p) not in own]
        return found + [p for t in self.transforms.all() for p in t.dense_parameters()]

    def identity(self) -> dict[str, Any]:
        """Return what a state_dict belongs to: the plan, and the kind of its optimizer's state."""
        kind = None if self.optimizer is None else self.optimizer.kind
        plan = json.loads(self.plan.to_json())
        return {**super().identity(), "plan": plan, "optimizer": kind}

    def why_not_sharded(self) -> str | None:
        """Return why several processes cannot share these tables, or None if they can."""
        # A subclass says for itself whether what it adds needs all rows.
        return self.why_rows_stay() if type(self) is PlannedTables else super().why_not_sharded()

    def why_rows_stay(self) -> str | None:
        """Return why ranks cannot hold parts of these rows, whatever a subclass does with them."""
        if self.ingredients is None:
            return "they exist already; build them on the meta device"
        if self.optimizer is None:
            return "they have no optimizer of their own; pass optimizer=TableOptimizer(...)"
        reasons = (transform.why_not_sharded() for transform in self.transforms.all())
        return next((reason for reason in reasons if reason), None)

    def sharded(self, share: Share) -> Tables:
        """Return these tables made anew for one of several ranks; see `Tables`."""
        return share.rows(self)

    def set_learning_rate(self, learning_rate: float) -> None:
        """Use `learning_rate` from the next update on.

        Raises:
            ValueError: if it is negative, or the tables have no optimizer of their own.
        """
        check_learning_rate(self.optimizer, learning_rate)
        for updater in self.engine.updaters:
            updater.learning_rate = learning_rate

    def defer_updates(self, flag: bool) -> None:
        """Collect gradients instead of updating, while `flag` is True; see `Tables`.

        Without an optimizer this does nothing: autograd accumulates by itself.
        """
        for updater in self.engine.updaters:
            updater.is_deferring = flag

    def out_of_range_counts(self) -> dict[str, int]:
        """Return how many ids of each key were out of range, and replaced, so far."""
        return {key: self._bounds.counts[key] for key in self.outputs}

    def table(self, name: str) -> Tensor:
        """Return the weights (num_rows, width) of a physical table, a view."""
        return self.engine.store_of(name).table(name)

    def _make_engine(self, layout: Layout) -> RowEngine:
        """Return the memory of the tables and what reads it."""
        return Engine(
            layout,
            optimizer=self.optimizer,
            backend=self.backend,
            bounds=self._bounds,
            buffers=self.plan_buffers,
            device=self._device,
        )

    def _draw(self, initial: Mapping[str, Initial | Tensor], seed: int) -> None:
        """Draw all weights."""
        draw_weights(self.plan, self.table, self.projections, initial, seed)

    def _rows_of(self, table: str, rows: Tensor) -> Tensor:
        """Return rows (N,) of a physical table, (N, D), in float32, integers times their step."""
        return gather_rows(self.table(table), rows) * (self.plan.table(table).step or 1.0)

    def _units_of(self, reading: RowPass) -> list[Unit]:
        return [unit.unit for unit in reading.units]

    def _named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """Yield the names, for a state_dict, and the tensors that are not rows."""
        for part, tensors in (("buffers", self.plan_buffers), ("projections", self.projections)):
            for name, tensor in tensors.items():
                yield f"{part}.{name}", tensor

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        if any(updater.has_collected for updater in self.engine.updaters):
            raise RuntimeError(UNFINISHED)
        for store in self.engine.stores:
            for name, tensor in store.tensors():
                destination[prefix + name] = tensor if keep_vars else tensor.detach()
            for name in store.step_names():
                destination[prefix + name] = torch.tensor(store.step)
        for name, tensor in self._named_tensors():
            destination[prefix + name] = tensor if keep_vars else tensor.detach()

    def _load_from_state_dict(
        self,
        state_dict: Mapping[str, Any],
        prefix: str,
        local_metadata: Mapping[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        expected = set()
        for store in self.engine.stores:
            expected |= store.load(state_dict, prefix, missing_keys, error_msgs)
        named = self._named_tensors()
        expected |= load_named(named, state_dict, prefix, missing_keys, error_msgs)
        if strict:
            unexpected_keys.extend(
                key
                for key in state_dict
                if key.startswith(prefix)
                and not key.startswith(f"{prefix}transforms.")
                and key not in expected
            )
