"""Images in folders and in tars, read where they lie."""

from __future__ import annotations

import errno
import os
from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from unlabeled.data.archive.http import Identity
from unlabeled.data.archive.index import Index, readable
from unlabeled.data.archive.listing import Listing, Stamp
from unlabeled.data.archive.remote import CONNECTIONS, Ahead, Piece, is_remote, read_range
from unlabeled.data.archive.tar import local_identity
from unlabeled.data.decoding.bands import Target
from unlabeled.data.decoding.decode import decode
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.data.source import Source
from unlabeled.errors import BadSample

# the machine's trouble, not the image's: skipping would make the images seen a matter of luck
_SHORTAGES = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class Pictures(Source):
    """A source over files in a folder or members of tars, decoded to `target`. Pickles without open files."""

    encoded = True

    def __init__(self, place: Folder | Tars, listing: Listing, target: Target) -> None:
        self.classes, self.labels = listing.classes, listing.labels
        self._place, self._index, self._target = place, listing.pictures, target
        self._fingerprint = listing.fingerprint

    def __len__(self) -> int:
        return len(self._index)

    @property
    def shards(self) -> NDArray[np.int64]:
        return np.concatenate([[0], np.flatnonzero(np.diff(self._index.shards)) + 1, [len(self)]])

    @property
    def marks(self) -> NDArray[np.int64]:
        """The sizes of the files [n], bytes."""
        return self._index.sizes

    @property
    def skipped(self) -> Counter[str]:
        return self._index.skipped

    def name(self, i: int) -> bytes:
        return self._index.name(i)

    def key(self, i: int) -> str:
        return readable(self._place.path(self._index, i))

    def file(self, i: int) -> bytes | None:
        return self._place.path(self._index, i) if isinstance(self._place, Folder) else None

    def ahead(self, numbers: Sequence[int]) -> Source:
        other = copy(self)
        other._place = self._place.ahead(self._index, numbers)
        return other

    def pieces(self, numbers: Sequence[int]) -> list[Piece]:
        """Where images that lie elsewhere lie there."""
        return self._place.pieces(self._index, numbers)

    def taking(self, ahead: Ahead | None) -> Pictures:
        """The same images, taken from what is on its way; None = from where they lie."""
        if ahead is None:
            return self
        other = copy(self)
        other._place = self._place.taking(ahead)
        return other

    def image(self, i: int) -> Tensor:
        return decode(self.read(i), key=self.key(i), **self._target._asdict())

    def read(self, i: int) -> bytes:
        """The file's bytes. Raises BadSample when it is gone, may not be read or has another size than when it was
        indexed."""
        try:
            data = self._place.read(self._index, i)
        except OSError as error:
            if error.errno in _SHORTAGES:
                raise
            raise_if_out_of_memory(error, self.key(i))
            raise BadSample(self.key(i), f"cannot be read: {error.strerror}") from error
        if data is None or len(data) != self._index.sizes[i]:
            raise BadSample(self.key(i), "has changed since it was indexed")
        return data

    def fingerprint(self) -> str:
        """16 hex digits over names below the split, sizes and labels; a folder and a tar of it agree."""
        return self._fingerprint


class Folder:
    """Reads files below a folder, or below several."""

    def __init__(self, *roots: bytes) -> None:
        self.roots = roots

    def path(self, index: Index, i: int) -> bytes:
        return os.path.join(self.roots[index.place(i)], index.name(i))

    def ahead(self, _index: Index, _numbers: Sequence[int]) -> Folder:
        """Itself: the system reads files ahead."""
        return self

    def pieces(self, _index: Index, _numbers: Sequence[int]) -> list[Piece]:
        return []

    def taking(self, _ahead: Ahead) -> Folder:
        return self

    def read(self, index: Index, i: int) -> bytes:
        """The bytes of image i, and no more than one beyond its indexed size."""
        with open(self.path(index, i), "rb") as file:
            return file.read(int(index.sizes[i]) + 1)


class Tars:
    """Reads members of tars where they lie, here or elsewhere, through what each process opens for itself; elsewhere
    through so many `connections` where it is known which come next."""

    def __init__(self, shards: Sequence[Stamp], prefix: bytes, connections: int = CONNECTIONS) -> None:
        self.shards, below = tuple(shards), b"/" + prefix if prefix else b""
        self.roots = [os.fsencode(shard.path) + below for shard in shards]
        self._connections, self._remote = connections, any(is_remote(shard.path) for shard in shards)
        self._ahead: Ahead | None = None

    def path(self, index: Index, i: int) -> bytes:
        """The archive's path and the member's name."""
        return b"%b/%b" % (self.roots[index.shards[i]], index.name(i))

    def ahead(self, index: Index, numbers: Sequence[int]) -> Tars:
        """The same tars, those of the images that lie elsewhere already on their way."""
        if not self._remote:
            return self
        return self.taking(Ahead(self.pieces(index, numbers), self._connections))

    def pieces(self, index: Index, numbers: Sequence[int]) -> list[Piece]:
        """Where the images that lie elsewhere lie there."""
        shards = ((self.shards[index.shards[i]], i) for i in numbers)
        return [_piece(shard, index, i) for shard, i in shards if is_remote(shard.path) and index.sizes[i]]

    def taking(self, ahead: Ahead) -> Tars:
        """The same tars, whose images are taken from what is on its way."""
        other = copy(self)
        other._ahead = ahead
        return other

    def read(self, index: Index, i: int) -> bytes | None:
        """The bytes of image i, None where the archive is not the one that was indexed. Raises UserError when a remote
        archive is not, or (Interrupted) cannot be had."""
        shard = self.shards[index.shards[i]]
        if is_remote(shard.path):
            piece = _piece(shard, index, i)
            return read_range(*piece) if self._ahead is None else self._ahead.take(piece)
        descriptor = _descriptor(os.getpid(), shard).number
        if local_identity(descriptor) != (shard.size, shard.tag):
            return None
        start, size = int(index.starts[i]), int(index.sizes[i])
        data = os.pread(descriptor, size, start)
        # some file systems answer in parts
        while len(data) < size and (more := os.pread(descriptor, size - len(data), start + len(data))):
            data += more
        return data


def _piece(shard: Stamp, index: Index, i: int) -> Piece:
    return Piece(shard.path, int(index.starts[i]), int(index.sizes[i]), Identity(shard.size, shard.tag))


class _Descriptor:
    """An open file, closed with the last reference to it."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


@lru_cache(maxsize=128)  # fewer than a process may open: data sets come in thousands of shards
def _descriptor(pid: int, shard: Stamp) -> _Descriptor:
    return _Descriptor(shard.path)
