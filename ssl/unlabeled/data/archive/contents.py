"""The contents of a tar, and its manifest: a small file beside it, NAME.tar.manifest, that says the same in one request
where the headers of a remote tar take one for every few members. `unlabeled prepare` writes it.

A manifest is a listing (`unlabeled.data.archive.listing`) of all members, with their classes where they are known. It
belongs to the tar of its size that begins with the same bytes.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.archive import listing
from unlabeled.data.archive.index import IndexBuilder
from unlabeled.data.archive.listing import Listing, Stamp, digest
from unlabeled.data.archive.remote import is_remote, whole_file
from unlabeled.data.archive.webdataset import Member
from unlabeled.errors import UserError

ENDING = ".manifest"
ASKED = "manifest"
BEGINNING = 1 << 14  # bytes that tell a tar from another one of the same size
log = logging.getLogger(__name__)


class Contents(NamedTuple):
    """What one tar holds."""

    stamp: Stamp
    members: Sequence[Member]  # by name, each once
    texts: dict[int, bytes]  # the contents of files that say a label, by where they start
    classes: dict[bytes, str]  # of members, by name, as a manifest says


def write_manifest(tar: Path, members: Sequence[Member], classes: tuple[str, ...], labels: NDArray[np.int64]) -> None:
    """Write the manifest of a tar whole or not at all, labels being numbers of the classes, -1 for none."""
    builder = IndexBuilder()
    for name, start, size in members:
        builder.add_stored(name, 0, start, size)
    with tar.open("rb") as file:
        stamp = Stamp(tar.name, tar.stat().st_size, digest([file.read(BEGINNING)]))
    listing.save(Path(f"{tar}{ENDING}"), Listing.of(builder.build(), classes, labels, (stamp,)), ASKED)


def by_manifest(stamp: Stamp, beginning: bytes, *, needed: bool) -> Contents | None:
    """The contents of a tar that begins so, as its manifest says; None where there is none, or one of another tar,
    which is logged. Raises UserError instead where it is `needed`."""
    path = f"{stamp.path}{ENDING}"
    data = _bytes(path)
    found = None if data is None else listing.parsed(data, ASKED)
    if found is not None and found.files[0][1:] == (stamp.size, digest([beginning])):
        return _contents(stamp, found)
    if found is not None:
        problem = f"is of another tar of {found.files[0].size:,} bytes, {stamp.path!r} has {stamp.size:,}"
    else:
        problem = "does not exist" if data is None else "is damaged, or was written by another version"
    if needed:
        raise UserError(
            f"{path!r} {problem}; data.labels=manifest expects what `unlabeled prepare` wrote beside every tar. Copy "
            "it with its tar, or set data.labels=folders."
        )
    if data is not None:
        log.warning("%s %s: headers are read instead. Copy it again with its tar, or remove it", path, problem)
    return None


def _contents(stamp: Stamp, found: Listing) -> Contents:
    pictures = found.pictures
    names = [pictures.name(i) for i in range(len(pictures))]
    members = zip(names, pictures.starts.tolist(), pictures.sizes.tolist(), strict=True)
    labels = zip(names, found.labels.tolist(), strict=True)
    return Contents(stamp, sorted(members), {}, {name: found.classes[i] for name, i in labels if i >= 0})


def _bytes(path: str) -> bytes | None:
    """The bytes of a file, None where there is none."""
    if is_remote(path):
        return whole_file(path)
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
