"""The lookups of CCE: two terms of each chunk, a row that a code names and a hashed one."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from recemb.methods.code_sums import SumForm
from recemb.tables.initial import Initial
from recemb.tables.lookup_plan import LookupPlan, Output, PhysicalTable, VirtualLookup
from recemb.tables.program import Hash, Offset, Remap
from recemb.tables.spec import TableSpec, output_keys

CENTROIDS, HASHED = "centroids", "hashed"
"""The terms; the rows of a coded table are two physical tables, named after it and them."""


def sum_plan(
    specs: Sequence[TableSpec],
    forms: Mapping[str, SumForm],
    seeds: Mapping[str, Sequence[int]],
) -> LookupPlan:
    """Return the plan of both terms, outputs of their own.

    Args:
        specs: the tables.
        forms: of the tables that are coded.
        seeds: of each chunk's hash function, by the table's name.
    """
    tables, limits = [], {}
    lookups: dict[str, tuple[VirtualLookup, ...]] = {}
    for spec in specs:
        form = forms.get(spec.name)
        if form is None:
            rows, width = spec.num_embeddings, spec.embedding_dim
            tables.append(PhysicalTable(name=spec.name, num_rows=rows, width=width))
            lookups[spec.name] = (VirtualLookup(table=spec.name),)
            continue
        limits[part(spec.name, "codes")] = form.num_entries
        for name in terms_of(spec, forms):
            rows = form.num_chunks * form.num_entries
            tables.append(PhysicalTable(name=name, num_rows=rows, width=form.chunk_width))
        lookups |= _lookups(spec.name, form.num_entries, seeds[spec.name])
    owner_of = {n: s.name for s in specs for n in terms_of(s, forms)}
    outputs = tuple(
        Output(
            key=key,
            feature=feature,
            owner=owner_of[spec.name],
            num_ids=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            pooling=spec.pooling,
            lookups=lookups[spec.name],
        )
        for key, (spec, feature) in output_keys(inner_specs(specs, forms)).items()
    )
    return LookupPlan(tables=tuple(tables), outputs=outputs, buffers=limits)


def _lookups(
    table: str, num_entries: int, seeds: Sequence[int]
) -> dict[str, tuple[VirtualLookup, ...]]:
    """Return the lookups of each term of a coded table, one for each chunk."""
    buffer, names = part(table, "codes"), [part(table, term) for term in (CENTROIDS, HASHED)]
    found: dict[str, tuple[VirtualLookup, ...]] = dict.fromkeys(names, ())
    for j, seed in enumerate(seeds):
        first = Offset(first=j * num_entries)
        read = Remap(buffer=buffer, column=j, is_total=True)
        hashed = Hash(seed=seed, num_rows=num_entries)
        found[names[0]] += (VirtualLookup(table=names[0], program=(read, first)),)
        found[names[1]] += (VirtualLookup(table=names[1], program=(hashed, first)),)
    return found


def part(table: str, part: str) -> str:
    """Return the name of a part of a table, among physical tables or buffers."""
    return f"{table}.{part}"


def terms_of(spec: TableSpec, forms: Mapping[str, SumForm]) -> list[str]:
    """Return the physical tables of a table."""
    if spec.name not in forms:
        return [spec.name]
    return [part(spec.name, term) for term in (CENTROIDS, HASHED)]


def inner_specs(specs: Sequence[TableSpec], forms: Mapping[str, SumForm]) -> list[TableSpec]:
    """Return the tables with each term as one of its own."""
    return [
        TableSpec(
            name=name,
            num_embeddings=spec.num_embeddings,
            embedding_dim=spec.embedding_dim,
            feature_names=spec.feature_names,
            pooling=spec.pooling,
        )
        for spec in specs
        for name in terms_of(spec, forms)
    ]


def initial_rules(
    specs: Sequence[TableSpec], forms: Mapping[str, SumForm], init_std: float | None
) -> dict[str, Initial | Tensor]:
    """Return how rows are drawn: the sum of two terms has the deviation of a full row."""
    found: dict[str, Initial | Tensor] = {}
    for spec in specs:
        std = Initial.dlrm(spec.num_embeddings).std if init_std is None else init_std
        names = terms_of(spec, forms)
        for name in names:
            spread = std * 3**0.5 / len(names) ** 0.5
            found[name] = Initial(distribution="uniform", spread=spread)
    return found
