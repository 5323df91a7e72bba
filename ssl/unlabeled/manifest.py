"""Folders of files with a manifest of their SHA-256, checked before use.

MANIFEST.json   {name: {"bytes": size, "sha256": hex digits}} of every other file, written last
"""

from __future__ import annotations

import hashlib
import json
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
from torch import Tensor

from unlabeled.errors import first_line
from unlabeled.files import sync

MANIFEST = "MANIFEST.json"
MAX_BYTES = 16 << 20  # of a manifest, which lists a handful of files
CHANGED = "is not what was written (size or SHA-256 differ)"
Tensors = dict[str, Tensor]
Buffer = bytes | memoryview  # of single bytes


class Damaged(Exception):
    """The data read is damaged; the message says why."""


def write_folder(folder: Path, files: Mapping[str, bytes]) -> None:
    """Write files, then the manifest, each flushed to disk."""
    write_manifest(folder, {name: write_file(folder, name, [data]) for name, data in files.items()})


def write_file(folder: Path, name: str, parts: Sequence[Buffer]) -> dict[str, Any]:
    """Write the parts of a file one after the other, flushed to disk; returns its entry in the manifest."""
    entry = describe(parts)
    # nothing stays in a buffer of this process: one that is forked meanwhile would write it again
    with open(folder / name, "wb", buffering=0) as file:
        for part in parts:
            left = memoryview(part)
            while left:
                left = left[file.write(left) :]
        os.fsync(file.fileno())
    return entry


def write_manifest(folder: Path, entries: Mapping[str, Any]) -> None:
    """Write the manifest of a folder whose files are written, and flush both to disk."""
    with open(folder / MANIFEST, "wb") as file:
        file.write(json.dumps(entries, indent=1).encode())
        file.flush()
        os.fsync(file.fileno())
    sync(folder)


def describe(data: bytes | Iterable[Buffer]) -> dict[str, Any]:
    """The entry of a file in a manifest, from its bytes or their parts."""
    size, hashed = 0, hashlib.sha256()
    for part in [data] if isinstance(data, bytes) else data:
        size += len(part)
        hashed.update(part)
    return {"bytes": size, "sha256": hashed.hexdigest()}


def sha256_of(file: Path) -> str:
    """The SHA-256 of a file, as hex digits."""
    found: str = describe(_parts(file))["sha256"]
    return found


def _parts(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while part := opened.read(1 << 20):
            yield part


def read_listed(folder: Path) -> dict[str, Any]:
    """Read the manifest of a folder. Raises Damaged, also where it does not list exactly the files that are there."""
    manifest = read_manifest(folder)
    try:
        found, listed = set(os.listdir(folder)) - {MANIFEST}, set(manifest)
    except OSError as error:
        raise Damaged(f"it cannot be listed ({error.strerror})") from error
    if found != listed:
        raise Damaged(f"missing files {sorted(listed - found)}, unexpected files {sorted(found - listed)}")
    return manifest


def read_manifest(folder: Path) -> dict[str, Any]:
    """Read the manifest: the entry of every file by its name. Raises Damaged."""
    file = folder / MANIFEST
    try:
        if os.path.lexists(file) and os.stat(file).st_size > MAX_BYTES:
            raise Damaged(f"it has more than {MAX_BYTES:,} bytes")
        manifest = parse_json(read_plain(file))
    except (Damaged, OSError) as error:
        raise Damaged(f"no readable {MANIFEST} ({error})") from error
    if not isinstance(manifest, dict):
        raise Damaged(f"no readable {MANIFEST} (it holds no names of files)")
    return manifest


def read_file(folder: Path, name: str, manifest: dict[str, Any]) -> bytes:
    """Read a file and check it against the manifest. Raises Damaged."""
    _check_size(folder, name, manifest)
    if describe(data := read_plain(folder / name)) != manifest[name]:
        raise Damaged(f"{name} {CHANGED}")
    return data


def verify_file(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Check a file against the manifest, a part of it in memory at a time. Raises Damaged."""
    _check_size(folder, name, manifest)
    try:
        if describe(_parts(folder / name)) != manifest[name]:
            raise Damaged(f"{name} {CHANGED}")
    except OSError as error:
        raise Damaged(f"{name} cannot be read: {error.strerror}") from error


def _check_size(folder: Path, name: str, manifest: dict[str, Any]) -> None:
    """Raise Damaged where a file is none, or has another size: it may be huge, and is not read."""
    try:
        size = os.stat(folder / name).st_size
    except OSError as error:
        raise Damaged(f"{name} cannot be read ({error.strerror})") from error
    said = manifest.get(name)
    if not isinstance(said, dict) or said.get("bytes") != size or not (folder / name).is_file():
        raise Damaged(f"{name} {CHANGED}")


def parse_json(data: bytes) -> Any:
    """Parse JSON in UTF-8 without repeated keys. Raises Damaged."""
    try:
        return json.loads(data.decode(), object_pairs_hook=_once_each)
    except (ValueError, RecursionError) as error:
        raise Damaged(f"not JSON: {first_line(error)}") from error


def parse_tensors(data: bytes) -> Tensors:
    """Parse the tensors of a safetensors file, by name.

    Raises Damaged where the header is truncated, names a tensor twice (the library would silently take the last), or
    does not describe the rest of the file without overlap and holes.
    """
    size = int.from_bytes(data[:8], "little")
    if size > len(data) - 8:
        raise Damaged(f"no safetensors: a header of {size:,} bytes in a file of {len(data):,}")
    parse_json(data[8 : 8 + size])
    try:
        return safetensors.torch.load(data)
    except Exception as error:  # of any kind, where a well-formed header is wrong
        raise Damaged(f"no safetensors: {first_line(error)}") from error


def read_plain(file: Path) -> bytes:
    """Read a regular file; a pipe or device of that name might never end."""
    try:
        if not file.is_file():
            raise Damaged(f"{file.name} is no file" if os.path.lexists(file) else "No such file or directory")
        return file.read_bytes()
    except OSError as error:
        raise Damaged(f"{file.name} cannot be read: {error.strerror}") from error


def _once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        [(name, count)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {name!r} stands there {count} times")
    return found
