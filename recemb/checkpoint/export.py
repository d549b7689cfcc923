"""The serving file: tables, model and encoder of a trained model, in one file.

The file is an uncompressed zip (see `recemb.checkpoint.archive`) of

    tables.safetensors    the tensors of the frozen tables, and nothing else: without its header it
                          has as many bytes as `Storage.serve_bytes` says
    model.safetensors     the model's
    encoder/I.npy         the keys of the I-th categorical feature's vocabulary, by id, int64; a
                          history has that of the column it is of
    recemb.json           what they are: the tables' form and plan, the model's name and settings,
                          schema, encoder, figures of the run; sizes and checksums of the others

Nothing in it can execute: there is no pickle, models and forms are found by name in this package,
and settings are plain JSON.

Example:
    model = load(Path("model.recemb"))
    probabilities = model.predict(batch)
"""

import io
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from recemb.checkpoint.archive import Archive, ArchiveWriter
from recemb.checkpoint.atomic import whole_file
from recemb.checkpoint.forms import describe_tables, make_tables
from recemb.checkpoint.model_name import make_model, model_name, plain_settings
from recemb.checkpoint.scoring import ScoringModel
from recemb.checkpoint.tensor_file import map_tensors, tensor_bytes
from recemb.data.column import Columns
from recemb.data.encoder import RowEncoder
from recemb.data.prepared import Prepared
from recemb.data.raw_histories import (
    RawHistories,
    history_encoder,
    shared_vocabularies,
    stored,
)
from recemb.data.raw_rows import plain_encoder
from recemb.data.schema import Schema
from recemb.ids.vocabulary import Vocabulary
from recemb.models.click_model import ClickModel
from recemb.tables.bounds import Bounds
from recemb.tables.tables import Tables

TABLES, MODEL = "tables.safetensors", "model.safetensors"


@dataclass(frozen=True, kw_only=True)
class Servable:
    """A trained model and what serving it needs.

    Attributes:
        tables: trained; their `freeze()` is what is served.
        model: trained.
        model_settings: the arguments that it was made with, besides what the tables give.
        schema: the features.
        encoder: turns raw values into ids and numbers.
        source: how the raw data were read, the settings of their `Source`.
        facts: figures of the run for the reader (metrics, method, versions, ...), plain JSON types.
        max_history: of long histories, the most recent behaviours that count; None where there are
            no histories.
    """

    tables: Tables
    model: ClickModel
    model_settings: Mapping[str, Any]
    schema: Schema
    encoder: RowEncoder
    source: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    max_history: int | None = None


def export(servable: Servable, out: Path) -> dict[str, int]:
    """Write the serving file; return the bytes of each of its members.

    What is at `out` is replaced once the new file is whole.

    Raises:
        ValueError: if tables or model have no serving form.
        OSError: if it cannot be written; what was there before is untouched.
    """
    frozen = servable.tables.freeze()
    storage = frozen.storage()
    name = model_name(type(servable.model))
    description = {
        "tables": describe_tables(frozen),
        "model": {
            "name": name,
            "settings": plain_settings(f"model {name}", servable.model_settings),
            "num_dense": len(servable.schema.dense),
        },
        "schema": servable.schema.to_dict(),
        "max_history": servable.max_history,
        "encoder": {
            "columns": servable.encoder.columns.to_dict(),
            "moments": {k: list(pair) for k, pair in servable.encoder.moments.items()},
            "seed": servable.encoder.seed,
        },
        "source": dict(servable.source),
        "bytes": {"full": storage.full_bytes, "serve": dict(storage.serve)},
        "facts": _finite(servable.facts),
    }
    with whole_file(out) as unfinished, ArchiveWriter(unfinished) as archive:
        archive.add(TABLES, tensor_bytes(frozen.state_dict()))
        archive.add(MODEL, tensor_bytes(servable.model.state_dict()))
        shared = {history.name for history in stored(servable.schema)}
        for index, column in enumerate(servable.encoder.columns.categorical):
            if column.name in servable.encoder.vocabularies and column.name not in shared:
                keys = servable.encoder.vocabularies[column.name].keys
                archive.add(_keys_member(index), [_npy(keys)])
        archive.describe(description)
        return archive.sizes()


def load(path: Path, *, bounds: Bounds = "error") -> ScoringModel:
    """Return the model in a serving file, on the CPU, in eval mode.

    Every member is checked against its checksum.

    Args:
        path: the file.
        bounds: what happens to an id outside [0, num_embeddings), see `BoundsCheck`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is none that `export` wrote, has a newer format, or is damaged.
    """
    archive = Archive(path)
    described = archive.description
    try:
        tensors = map_tensors(archive.map(TABLES), f"export {path}: {TABLES}")
        tables = make_tables(described["tables"], tensors, bounds)
        histories = _histories(described)
        encoder = _encoder(archive, histories)
        schema = encoder.schema if histories is None else histories.schema
        _check_fit(path, tables, schema, described["model"]["num_dense"])
        return ScoringModel(
            tables=tables,
            model=_model(archive, schema, tables),
            encoder=encoder,
            source=described["source"],
            facts=described["facts"],
            histories=histories,
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"export {path}: its description is not complete ({error!r}); write it again with "
            "recemb export"
        ) from error


def servable_from(
    prepared: Prepared,
    *,
    tables: Tables,
    model: ClickModel,
    model_settings: Mapping[str, Any],
    facts: Mapping[str, Any] | None = None,
) -> Servable:
    """Return what is to be exported of a model that was trained on prepared data."""
    manifest = prepared.manifest
    source, max_history = manifest["settings"].get("source", {}), None
    if prepared.schema.histories:
        # Rows of a log have no histories, so those to score are not read as they were.
        source, max_history = {}, manifest["protocol"]["max_history"]
        encoder = history_encoder(prepared)
    elif "encoder" in manifest:
        encoder = RowEncoder.load(prepared.folder / "encoders", manifest["encoder"])
    else:
        encoder = plain_encoder(prepared.schema)
    return Servable(
        tables=tables,
        model=model,
        model_settings=model_settings,
        schema=prepared.schema,
        encoder=encoder,
        source=source,
        facts=facts or {},
        max_history=max_history,
    )


def _model(archive: Archive, schema: Schema, tables: Tables) -> ClickModel:
    entry = archive.description["model"]
    model = make_model(entry["name"], entry["settings"], schema=schema, tables=tables)
    tensors = map_tensors(archive.map(MODEL), f"export {archive.path}: {MODEL}")
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise ValueError(
            f"export {archive.path}: the weights are not those of the model {entry['name']}: "
            f"{error}"
        ) from error
    return model.requires_grad_(False).eval()


def _histories(described: Mapping[str, Any]) -> RawHistories | None:
    schema = Schema.from_dict(described["schema"])
    if not schema.histories:
        return None
    return RawHistories(schema=schema, max_history=int(described["max_history"]))


def _encoder(archive: Archive, histories: RawHistories | None) -> RowEncoder:
    entry = archive.description["encoder"]
    columns = Columns.from_dict(entry["columns"])
    shared = () if histories is None else {h.name for h in stored(histories.schema)}
    vocabularies = {
        column.name: Vocabulary(_keys(archive, _keys_member(index)))
        for index, column in enumerate(columns.categorical)
        if column.encoding == "vocabulary" and column.name not in shared
    }
    if histories is not None:
        vocabularies = shared_vocabularies(histories.schema, vocabularies)
    moments = {str(k): (float(m), float(s)) for k, (m, s) in entry["moments"].items()}
    return RowEncoder(columns, vocabularies=vocabularies, moments=moments, seed=int(entry["seed"]))


def _check_fit(path: Path, tables: Tables, schema: Schema, num_dense: int) -> None:
    """Check that the parts are those of one model.

    Raises:
        ValueError: if they are not.
    """
    read = {feature for spec in tables.specs for feature in spec.feature_names}
    if lacking := sorted(read - set(schema.feature_names)):
        raise ValueError(f"export {path}: tables read features {lacking}, which nothing encodes")
    if num_dense != len(schema.dense):
        raise ValueError(
            f"export {path}: the model reads {num_dense} dense columns, but the encoder "
            f"makes {len(schema.dense)}"
        )


def _keys_member(index: int) -> str:
    return f"encoder/{index}.npy"


def _npy(keys: NDArray[np.int64]) -> bytes:
    file = io.BytesIO()
    np.save(file, keys.astype("<i8"), allow_pickle=False)
    return file.getvalue()


def _keys(archive: Archive, name: str) -> NDArray[np.int64]:
    keys: NDArray[Any] = np.load(io.BytesIO(archive.map(name).tobytes()), allow_pickle=False)
    if keys.dtype != np.dtype("<i8") or keys.ndim != 1:
        raise ValueError(f"export {archive.path}: {name} holds no keys")
    return keys.astype(np.int64)


def _finite(value: Any) -> Any:
    """Return plain JSON values, null instead of what is not a number."""
    if isinstance(value, Mapping):
        return {str(k): _finite(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
