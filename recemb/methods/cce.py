"""CCE, clustered compositional embeddings: hashing that learns which ids to put together.

    e(i) = [T_1[k_1(i)] + H_1[h_1(i)], .., T_c[k_c(i)] + H_c[h_c(i)]]

Codes k and hashes h are random at first. Now and then, in training, the chunks of all ids are
clustered: T becomes the centroids and k what is nearest, h is drawn anew, and H becomes the mean of
what is left of the ids of each bucket.

Source: Tsang and Ahle, "Clustering the Sketch: Dynamic Compression for Embedding Tables", NeurIPS
2023, arXiv 2210.05974, and the authors' code for the settings. Departures: codes count, at
ceil(log2 r) bits, and so cost bytes for each id; a bucket without ids has the row 0, where the
authors' code divides 0 by 0; one new hash for all ids, where their code draws one for each batch of
ids; clusterings are spread over the first part of training by updates, not by epochs.
"""

from collections.abc import Sequence

import torch

from recemb.data.batch import Batch
from recemb.methods.cce_tables import CCETables, Clustering, serving_parts
from recemb.methods.code_sums import SumForm
from recemb.tables.method import Budget, Context, IdCounts, Method, Plan, built_for
from recemb.tables.optimizer import TableOptimizer
from recemb.tables.recipe import Recipe, Step, Updates
from recemb.tables.spec import TableSpec, refuse_any_id

_LEAST_ENTRIES = 2


class CCE(Method):
    """As many rows of each table as the budget holds beside the codes, the same number of all.

    A table that codes and rows make no smaller stays as it is. Training holds the codes as int32, 4
    bytes for each chunk of each id. A clustering costs k-means of at most `samples_per_centroid` r
    points and r centroids, which grows with the square of r.

    Args:
        num_chunks: c, or the next smaller number that divides a table's width.
        num_clusterings: how many.
        until: the part of training after which there are no more.
        samples_per_centroid: points that k-means sees, for each centroid, at most.
        iterations: of k-means, at most.
        num_entries: r, rows of T and of H of a chunk, where there is no budget.
        init_std: of the vectors; None for the uniform distribution of DLRM.
        hash_seed: of the hash functions.

    Raises:
        ValueError: on a number outside its range.
    """

    why_unshared = "rows of whole tables are clustered between updates"

    def __init__(
        self,
        *,
        num_chunks: int = 4,
        num_clusterings: int = 7,
        until: float = 0.75,
        samples_per_centroid: int = 200,
        iterations: int = 100,
        num_entries: int = 1024,
        init_std: float | None = None,
        hash_seed: int = 0,
    ) -> None:
        if min(num_chunks, samples_per_centroid, iterations) < 1 or num_clusterings < 0:
            raise ValueError(
                "CCE: num_chunks, samples_per_centroid and iterations must be at least 1 and "
                f"num_clusterings not negative, got {num_chunks}, {samples_per_centroid}, "
                f"{iterations} and {num_clusterings}"
            )
        if not 0 < until <= 1 or num_entries < _LEAST_ENTRIES:
            raise ValueError(
                f"CCE: until must be in (0, 1] and num_entries at least {_LEAST_ENTRIES}, got "
                f"{until} and {num_entries}"
            )
        self.num_chunks = num_chunks
        self.num_clusterings = num_clusterings
        self.until = until
        self.clustering = Clustering(
            samples_per_centroid=samples_per_centroid, iterations=iterations
        )
        self.num_entries = num_entries
        self.init_std = init_std
        self.hash_seed = hash_seed

    def plan(self, specs: Sequence[TableSpec], stats: IdCounts, budget: Budget | None) -> Plan:
        """Return what `build` would make, allocating no table; see `Method`."""
        refuse_any_id(specs, type(self).__name__)
        forms = self.forms(specs, budget)
        storage = self._tables(specs, forms, None, 0, torch.device("meta")).storage()
        rows = next((form.num_entries for form in forms.values()), None)
        parameters = {"num_entries": rows, "coded_tables": len(forms)}
        return Plan.of(storage, specs, budget, parameters)

    def build(
        self,
        specs: Sequence[TableSpec],
        stats: IdCounts,
        budget: Budget | None,
        *,
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> CCETables:
        """Return untrained tables within `budget`; see `Method`.

        Raises:
            ValueError: if the budget is below the smallest size that the method has.
        """
        refuse_any_id(specs, type(self).__name__)
        forms = self.forms(specs, budget)
        least = sum(serving_parts(specs, forms).values())
        if budget is not None:
            budget.require(least, specs, owner=type(self).__name__)
        return self._tables(specs, forms, optimizer, seed, device)

    def run(self, ctx: Context) -> CCETables:
        """Return trained tables."""
        tables = built_for(ctx, self.build)
        ctx.fit(tables, stage="train", recipe=Recipe(step=self._step(tables)))
        return tables

    def due(self, total_steps: int) -> set[int]:
        """Return after which numbers of updates rows are clustered."""
        last = self.until * total_steps
        return {
            round(last * (k + 1) / self.num_clusterings) for k in range(self.num_clusterings)
        } - {0, total_steps}

    def forms(self, specs: Sequence[TableSpec], budget: Budget | None) -> dict[str, SumForm]:
        """Return the forms of the tables that are coded: the largest within the budget."""
        if budget is None:
            return self._forms(specs, self.num_entries)
        allowed = budget.allowed_bytes(specs)
        low, high = _LEAST_ENTRIES, max(_LEAST_ENTRIES, *(s.num_embeddings for s in specs))
        while low < high:
            middle = (low + high + 1) // 2
            if sum(serving_parts(specs, self._forms(specs, middle)).values()) <= allowed:
                low = middle
            else:
                high = middle - 1
        return self._forms(specs, low)

    def _forms(self, specs: Sequence[TableSpec], num_entries: int) -> dict[str, SumForm]:
        found = {}
        for spec in specs:
            width = spec.embedding_dim
            chunks = max(k for k in range(1, width + 1) if width % k == 0 and k <= self.num_chunks)
            form = SumForm(
                num_rows=spec.num_embeddings,
                width=width,
                num_chunks=chunks,
                num_entries=num_entries,
            )
            if form.num_bytes < spec.full_bytes:
                found[spec.name] = form
        return found

    def _step(self, tables: CCETables) -> Step:
        def step(updates: Updates, batches: Sequence[Batch]) -> float:
            if updates.step in self.due(updates.total_steps):
                tables.cluster(self.clustering)
            return updates.update(batches)

        return step

    def _tables(
        self,
        specs: Sequence[TableSpec],
        forms: dict[str, SumForm],
        optimizer: TableOptimizer | None,
        seed: int,
        device: torch.device,
    ) -> CCETables:
        return CCETables(
            specs,
            forms=forms,
            init_std=self.init_std,
            hash_seed=self.hash_seed,
            optimizer=optimizer,
            seed=seed,
            device=device,
        )
