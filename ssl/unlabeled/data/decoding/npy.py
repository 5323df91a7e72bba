"""Images in `.npy` files of one array each: plain numbers, never pickles."""

from __future__ import annotations

import io
import math
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from unlabeled.data.decoding.bands import Values

MAGIC = b"\x93NUMPY"
# version of the format: bytes of the header's length, what reads the header
_VERSIONS: dict[bytes, tuple[int, Any]] = {
    b"\1\0": (2, np.lib.format.read_array_header_1_0),
    b"\2\0": (4, np.lib.format.read_array_header_2_0),
}


class Header(NamedTuple):
    """The header of a file: shape and type of its array."""

    shape: tuple[int, ...]
    column_major: bool
    dtype: np.dtype[Any]


@lru_cache(maxsize=4096)  # parsing costs more than the pixels of a small image, and sizes repeat
def _parsed(head: bytes) -> Header:
    _, read = _VERSIONS[head[6:8]]
    header = Header(*read(io.BytesIO(head[8:])))
    if header.dtype.kind not in "buif":
        raise ValueError(f"an array of {header.dtype}, expected integers or floats")
    if not header.shape or min(header.shape) < 1:
        raise ValueError(f"an array of shape {list(header.shape)}, expected no side to be 0")
    return header


def values_of(data: bytes) -> Values:
    """The array of a file, read-only, on its bytes. Raises ValueError when its header is none, or says that there are
    more or fewer bytes."""
    version = data[6:8]
    if version not in _VERSIONS:
        raise ValueError(f"a .npy file of version {list(version)}, expected 1.0 or 2.0")
    width, _ = _VERSIONS[version]
    end = 8 + width + int.from_bytes(data[8 : 8 + width], "little")
    header = _parsed(data[:end])
    expected = end + header.dtype.itemsize * math.prod(header.shape)
    if len(data) != expected:
        raise ValueError(f"{len(data):,} bytes, its header says {expected:,}")
    flat = np.frombuffer(data, header.dtype, offset=end)
    return flat.reshape(header.shape[::-1]).T if header.column_major else flat.reshape(header.shape)
