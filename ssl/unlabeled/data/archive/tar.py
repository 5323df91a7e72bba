"""Index of an uncompressed tar, from its headers alone: nothing is ever extracted.

Headers are parsed by `tarfile`, but walked here: `TarFile` keeps an object per member, which is gigabytes
for a million, and takes a damaged header in the middle for the end.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any, BinaryIO, NamedTuple

import numpy as np

from unlabeled.data.archive import webdataset
from unlabeled.data.archive.contents import BEGINNING, Contents, by_manifest
from unlabeled.data.archive.http import Identity
from unlabeled.data.archive.index import Index, IndexBuilder, readable
from unlabeled.data.archive.listing import Stamp
from unlabeled.data.archive.remote import beginning, is_remote, open_remote, side_by_side
from unlabeled.data.archive.webdataset import LABEL_BYTES, Beside, Found, Member, one_of_each, stem
from unlabeled.errors import UserError

_BLOCK = 512
LENGTH_DIGITS = 20  # of a size in a PAX record
EXTENSION_BYTES = 1 << 20  # of what is said about a member beyond its header
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"\x28\xb5\x2f\xfd": "zstd"}
_LONG_NAME, _LONG_LINK = tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK
_PLAIN_FILES = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_PAX = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE)
_EXTENSIONS = (_LONG_NAME, _LONG_LINK, tarfile.XGLTYPE, *_PAX)


class Scan(NamedTuple):
    """The images below one prefix of some tars."""

    pictures: Index  # sorted by (shard, name)
    labels: list[Any]  # of each, what the file beside it says; None throughout unless asked for


def scan_tars(
    paths: Sequence[str],
    prefixes: Sequence[str],
    beside: Beside | None = None,
    part: str | None = None,
    labelled: bool = False,
) -> tuple[list[Stamp], list[Scan]]:
    """One pass over the headers of `paths`, of remote tars over several at once, or over their manifests; what there is
    below each of `prefixes` ("" for everything).

    Args:
        beside: reads labels from files beside the images; None = nothing is read but headers.
        part: which image of a WebDataset sample is used, see `Files.part`.
        labelled: whether labels are read from the manifests of the tars.

    Raises:
        UserError: compressed, truncated or corrupt archives, two members of one name, and members that are
            unsafe (absolute names, `..`, links, devices). Nothing is ever extracted.
    """
    builders = [IndexBuilder(os.fsencode(prefix)) for prefix in prefixes]
    labels: list[list[Any]] = [[] for _ in prefixes]
    others: list[list[Any]] = [[] for _ in prefixes]
    shards, samples = [], webdataset.Samples()
    ending = None if beside is None else b"." + beside.ending
    contents = partial(contents_of, ending=ending, labelled=labelled)
    each = side_by_side(contents, paths) if any(map(is_remote, paths)) else map(contents, paths)
    for number, (shard, members, texts, classes) in enumerate(each):
        shards.append(shard)
        samples.note(members)
        found = Found({}, {}) if beside is None else beside.read(texts, shard.path, members)
        for name, start, size in members:
            for i, builder in enumerate(builders):
                if builder.add_member(name, number, start, size):
                    labels[i].append(classes.get(name) if labelled else found.labels.get(stem(name)[0]))
                    others[i].append(found.others.get(stem(name, whole=True)[0]))
                    if beside is not None:
                        beside.used = beside.used or found.names(name)
    scans = [Scan(builder.build(), own) for builder, own in zip(builders, labels, strict=True)]
    if beside is not None:
        beside.check(paths[0])
        for builder in builders:
            builder.skipped.pop(f".{beside.ending.decode()}", None)  # read as labels
        if beside.others and not beside.labels:
            return shards, [Scan(scan.pictures, own) for scan, own in zip(scans, others, strict=True)]
    if not webdataset.reads_samples(paths[0], samples, part, beside is not None):
        return shards, scans
    sampled = ((*one_of_each(scan.pictures, part), scan.labels) for scan in scans)
    return shards, [Scan(index, [own[i] for i in np.flatnonzero(chosen)]) for index, chosen, own in sampled]


def contents_of(path: str, ending: bytes | None, labelled: bool) -> Contents:
    """The contents of one tar: by its manifest where labels are read from it, or the tar is remote and has one; else by
    its headers, with the texts of files of an `ending` that say labels. Raises as `scan_tars`."""
    remote = None
    if is_remote(path) or labelled:
        stamp, first = _begun(path)
        if (found := by_manifest(stamp, first, needed=labelled)) is not None:
            return found
        remote = Identity(stamp.size, stamp.tag) if is_remote(path) else None
    texts: dict[int, bytes] = {}
    with _open_tar(path, remote) as opened:
        stamp = Stamp(path, *(remote or local_identity(opened.fileno())))
        members = []
        for name, start, size in _members(opened, path, stamp.size):
            members.append((name, start, size))
            if ending is not None and size <= LABEL_BYTES and name.lower().endswith(ending):
                opened.seek(start)
                texts[start] = opened.read(size)
    return Contents(stamp, list(_unique(path, sorted(members))), texts, {})


def _begun(path: str) -> tuple[Stamp, bytes]:
    """A tar as it is now, and its first bytes."""
    if is_remote(path):
        first, file = beginning(path, BEGINNING)
        return Stamp(path, *file), first
    with _open_local(path) as opened:
        return Stamp(path, *local_identity(opened.fileno())), opened.read(BEGINNING)


def local_identity(file: int | str) -> tuple[int, str]:
    """Size and time of the last change of a plain file, open or by its path. OSError where it is none."""
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise OSError(errno.EINVAL, "no plain file: it might have no end")
    return status.st_size, str(status.st_mtime_ns)


def _open_tar(path: str, remote: Identity | None) -> BinaryIO:
    file = open_remote(path, remote) if remote is not None else _open_local(path)
    magic = file.read(6)
    for start, compression in _COMPRESSED.items():
        if magic.startswith(start):
            file.close()
            raise UserError(
                f"{path!r} is compressed with {compression}, so single pictures cannot be read from it; "
                f"expected a plain tar. Pictures are compressed already: unpack it to a .tar"
            )
    return file


def _open_local(path: str) -> BinaryIO:
    try:
        local_identity(path)
        # a small buffer: of large members only the headers are read
        return open(path, "rb", buffering=1 << 14)
    except OSError as error:
        raise UserError(f"the archive {path!r} cannot be read: {error.strerror}. Make it readable.") from error


def _members(file: BinaryIO, path: str, total: int) -> Iterator[Member]:
    """(name, start, size) of every file in a tar, in its order."""
    position = 0
    override: dict[bytes, bytes] = {}
    while (header := _header(file, path, position)) is not None:
        start = position + _BLOCK
        extends = header.type in _EXTENSIONS
        size = 0 if header.isdir() else header.size if extends else int(override.get(b"size", header.size))
        if not 0 <= size <= total - start:
            raise UserError(
                f"{path!r} is truncated or corrupt: the member {header.name!r} at byte {position} claims "
                f"{size:,} bytes, {total - start:,} are left. Copy the archive again"
            )
        if extends and size > EXTENSION_BYTES:
            raise UserError(
                f"{path!r} is corrupt: at byte {position} a name or its like claims {size:,} bytes. Copy it again."
            )
        if extends:
            override |= _override(header, file, path, size)
        else:
            name = override.get(b"path") or header.name.encode("utf-8", "surrogateescape")
            override = {}
            _refuse_unsafe(header, name, path, position)
            if not header.isdir():
                yield _plain(name), start, size
        position = start + -(-size // _BLOCK) * _BLOCK


def _header(file: BinaryIO, path: str, position: int) -> tarfile.TarInfo | None:
    """The header at `position`, None at the archive's end mark."""
    file.seek(position)
    block = file.read(_BLOCK)
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined]
        _refuse_appended(file, path, position)
        return None
    except tarfile.HeaderError as error:
        if position == 0:
            raise UserError(
                f"{path!r} is no tar archive ({error}); expected a folder, a .tar or a glob of tars"
            ) from error
        problem = "truncated" if len(block) < _BLOCK else "corrupt"
        raise UserError(
            f"{path!r} is {problem}: expected a header or the end mark at byte {position} ({error}). "
            f"Copy the archive again"
        ) from error


def _refuse_appended(file: BinaryIO, path: str, position: int) -> None:
    # tools that read to the end mark would silently lose the second half of `cat a.tar b.tar`
    while chunk := file.read(1 << 20):
        if chunk.count(0) != len(chunk):
            raise UserError(
                f"{path!r} goes on after its end mark at byte {position}: two archives in one file? "
                f"Join archives with `tar --concatenate`, or give them as shards"
            )


def _override(header: tarfile.TarInfo, file: BinaryIO, path: str, size: int) -> dict[bytes, bytes]:
    """Fields of an extension header for the next member: its long name (GNU), its path and size (PAX)."""
    if header.type == _LONG_NAME:
        return {b"path": file.read(size).split(b"\0", 1)[0]}
    if header.type not in _PAX:
        return {}
    start = file.tell()
    try:
        return dict(_pax_records(file.read(size)))
    except ValueError as error:
        raise UserError(f"{path!r} is corrupt: no PAX records at byte {start}. Copy it again") from error


def _pax_records(data: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Records "LENGTH KEY=VALUE\\n", LENGTH counting the whole record."""
    at = 0
    while at < len(data):
        blank = data.find(b" ", at, at + LENGTH_DIGITS)
        length = int(data[at:blank]) if blank > at else 0
        record = data[blank + 1 : at + max(0, length)]
        key, equals, value = record.partition(b"=")
        whole = at + length <= len(data) and equals and value.endswith(b"\n")
        if not whole or (key == b"size" and not (value[:-1].isdigit() and len(value) <= LENGTH_DIGITS)):
            raise ValueError(record)
        at += length
        yield key, value[:-1]


def _refuse_unsafe(header: tarfile.TarInfo, name: bytes, path: str, position: int) -> None:
    problem = None
    if name.startswith(b"/"):
        problem = "has an absolute name"
    elif b".." in name.split(b"/"):
        problem = "climbs out of the archive with '..'"
    elif header.issym() or header.islnk():
        problem = f"is a link to {header.linkname!r}"
    elif not header.isdir() and header.type not in _PLAIN_FILES:
        problem = "is neither a plain file nor a folder"
    if problem:
        raise UserError(
            f"{path!r}: the member {readable(name)!r} at byte {position} {problem}; expected plain files "
            f"under relative names. Pack it again, with `tar --dereference --hard-dereference` for links"
        )


def _plain(name: bytes) -> bytes:
    """Without `./` and doubled slashes."""
    if name.startswith(b".") or b"/." in name or b"//" in name:
        return b"/".join(part for part in name.split(b"/") if part not in (b"", b"."))
    return name


def _unique(path: str, members: list[Member]) -> Iterator[Member]:
    last = None
    for name, start, size in members:
        if name == last:
            raise UserError(
                f"{path!r}: a second member {readable(name)!r} at byte {start - _BLOCK}; expected every name "
                f"once. Pack it again, without appending"
            )
        last = name
        yield name, start, size
