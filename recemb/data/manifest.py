"""The manifest of a prepared set: what its files are, and from what they were made.

A prepared set is a folder:

    manifest.json            format, schema, rows, files with sizes and checksums, sources, settings
    SPLIT/labels.u8          (N,) uint8
    SPLIT/dense.f32          (N, num_dense) float32, row-major
    SPLIT/ids.i32            (N, number of one-hot features) int32, row-major: one row is one or two
                             cache lines, so gathering random rows costs little
    SPLIT/groups.i64         (N,) int64, where the schema has a group
    SPLIT/bag_J.values.i32   ids of the J-th multi-hot feature, row after row
    SPLIT/bag_J.offsets.i64  (N + 1,) where each row's ids begin
    SPLIT/bag_J.weights.f32  weights beside the values, where the feature has them
    SPLIT/spans.i64          (N, 2) where each row's history begins and ends among the behaviours
    behaviours/J.i32         ids of the J-th stored history: all users' behaviours in order of time,
                             user after user
    counts/J.i64             (num_embeddings,) how often the training split has each id of the J-th
                             categorical feature, then of the histories
    encoders/...             what is needed to encode further rows in the same way

All numbers are little-endian. The manifest is written last and the folder gets its name by one
rename, so a folder that has a manifest is whole.
"""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

FORMAT_VERSION = 1
MANIFEST_NAME = "manifest.json"
SPLITS = ("train", "val", "test")
_HASH_BLOCK_BYTES = 1 << 22


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest in `folder`.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it is not a manifest that this version reads.
    """
    path = folder / MANIFEST_NAME
    if not path.is_file():
        raise FileNotFoundError(
            f"prepared data: {folder} holds no complete prepared set ({MANIFEST_NAME} is missing); "
            "prepare the data first"
        )
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(
            f"prepared data: {path} is not readable JSON ({error}); "
            "delete the folder and prepare again"
        ) from error
    version = manifest.get("format") if isinstance(manifest, dict) else None
    if version != FORMAT_VERSION:
        raise ValueError(
            f"prepared data: {folder} has format {version}, this version reads {FORMAT_VERSION}; "
            "delete the folder and prepare again"
        )
    return dict(manifest)


def write_json(path: Path, state: Mapping[str, Any]) -> None:
    """Write `state` to `path` and onto the disk."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(state, file, indent=1, sort_keys=True)
        file.write("\n")
        file.flush()
        os.fsync(file.fileno())


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_HASH_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Make the names inside `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
