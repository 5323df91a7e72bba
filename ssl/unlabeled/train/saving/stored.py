"""Tensors in safetensors files: written from where they are in memory, read in parts.

A large tensor may lie in pieces in several files. A piece has the name of the whole, and its place is in the metadata
of its file: `{name: [[first index of each dimension], [shape of the whole]]}` as JSON. A tensor that is not named there
is whole. The format is that of https://huggingface.co/docs/safetensors, and its library reads every file.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import safetensors
import torch
from torch import Tensor

from unlabeled.errors import first_line
from unlabeled.manifest import Buffer, Damaged, Tensors, parse_json

TYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in TYPES.items()}
METADATA = "__metadata__"
Region = tuple[slice, ...]  # from start to stop in each dimension
Place = tuple[tuple[int, ...], tuple[int, ...]]  # of a piece: first indices, shape of the whole


class Found(NamedTuple):
    """An entry of a header: a tensor, or a piece of one."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int  # of its bytes in the file
    first: tuple[int, ...]  # its first index in the whole, by dimension
    of: tuple[int, ...]  # shape of the whole


Header = dict[str, Found]


class Piece(NamedTuple):
    """A part of a tensor, contiguous in a file."""

    file: Path
    start: int  # of its bytes
    first: tuple[int, ...]  # its first index in the whole, by dimension
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Stored:
    """A whole tensor in files. Indexing with a region reads these values of it alone."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: list[Piece] = field(default_factory=list)

    def __getitem__(self, region: Region) -> Tensor:
        out = torch.empty([there.stop - there.start for there in region], dtype=self.dtype)
        for piece in self.pieces:
            if (common := _overlap(piece, region)) is not None:
                self._read(piece, _moved(common, piece.first), out[_moved(common, [there.start for there in region])])
        return out

    def _read(self, piece: Piece, region: Region, target: Tensor) -> None:
        """Read a region of a piece: rows of its first dimension, straight to the target where they are all of it."""
        rows, *others = region or (slice(0, 1),)
        count, width = rows.stop - rows.start, piece.shape[1:]
        straight = target.is_contiguous() and math.prod(target.shape) == count * math.prod(width)
        data = target if straight else torch.empty((count, *width), dtype=self.dtype)
        left = data.view(-1).view(torch.uint8).numpy().data
        with open(piece.file, "rb", buffering=0) as file:
            file.seek(piece.start + rows.start * math.prod(width) * self.dtype.itemsize)
            while left:
                if not (read := file.readinto(left)):
                    raise OSError(None, "it has become shorter", str(piece.file))
                left = left[read:]
        if not straight:
            within = (slice(None), *others)
            target.copy_(data[within])


def everything(tensor: Tensor | Stored) -> Region:
    """The region that is all of a tensor."""
    return tuple(slice(0, size) for size in tensor.shape)


def _overlap(piece: Piece, region: Region) -> Region | None:
    """The part of a region that a piece has; None = nothing."""
    bounds = zip(region, piece.first, piece.shape, strict=True)
    common = tuple(slice(max(r.start, first), min(r.stop, first + size)) for r, first, size in bounds)
    return common if all(part.start < part.stop for part in common) else None


def _moved(region: Region, by: Sequence[int]) -> Region:
    return tuple(slice(there.start - first, there.stop - first) for there, first in zip(region, by, strict=True))


def packed(tensors: Tensors, places: Mapping[str, Place] = MappingProxyType({})) -> list[Buffer]:
    """The parts of a safetensors file of contiguous tensors in host memory, which are not copied.

    Large values come first, then by name, as the library has it, so that all are aligned.
    """
    names = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))
    told = {name: json.dumps(places[name]) for name in names if name in places}
    header, end = dict[str, Any]({METADATA: told} if told else {}), 0
    for name in names:
        start, end = end, end + tensors[name].nbytes
        shape, dtype = list(tensors[name].shape), NAMES[tensors[name].dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    parts: list[Buffer] = [len(text).to_bytes(8, "little") + text]
    return parts + [tensors[name].reshape(-1).view(torch.uint8).numpy().data for name in names]


def read_header(file: Path) -> Header:
    """Read what a safetensors file holds, by name; the tensors themselves are not read.

    Raises Damaged where the header names a tensor twice (the library would silently take the last), or does not
    describe the rest of the file without overlap and holes.
    """
    try:
        with open(file, "rb") as opened:
            size = int.from_bytes(opened.read(8), "little")
            if size > file.stat().st_size - 8:
                raise Damaged(f"a header of {size:,} bytes in a smaller file")
            header = parse_json(opened.read(size))
        with safetensors.safe_open(file, framework="pt") as checked:
            names = checked.keys()
        places = header.get(METADATA, {})
        return {name: _found(header[name], 8 + size, places.get(name)) for name in names}
    except Exception as error:  # of any kind, where a well-formed header is wrong
        raise Damaged(f"{file.name} is no safetensors file of a checkpoint: {first_line(error)}") from error


def _found(entry: dict[str, Any], data: int, place: str | None) -> Found:
    """An entry of a header, whose file has its data from there on."""
    shape = tuple(entry["shape"])
    first, of = (0,) * len(shape), shape
    if place is not None:
        first, of = map(tuple, parse_json(place.encode()))
        if not all(0 <= at <= at + size <= end for at, size, end in zip(first, shape, of, strict=True)):
            raise Damaged(f"a piece {list(shape)} at {list(first)} of {list(of)}")
    return Found(TYPES[entry["dtype"]], shape, data + entry["data_offsets"][0], first, of)


def assembled(folder: Path, headers: Mapping[str, Header]) -> dict[str, dict[str, Stored]]:
    """The whole tensors of the files of a folder, by stem and name: `model-0-of-2` and `model-1-of-2` are of `model`.

    Raises Damaged where pieces of one do not make a whole.
    """
    tensors: dict[str, dict[str, Stored]] = {}
    for name, header in headers.items():
        stem = Path(name).stem
        part = tensors.setdefault(re.sub(r"-[0-9]+-of-[0-9]+$", "", stem), {})
        for tensor, found in header.items():
            stored = part.setdefault(tensor, Stored(found.dtype, found.of))
            if (stored.dtype, stored.shape) != (found.dtype, found.of):
                raise Damaged(f"{tensor} has another type or shape in {name} than elsewhere")
            stored.pieces.append(Piece(folder / name, found.start, found.first, found.shape))
    for part in tensors.values():
        for tensor, stored in part.items():
            if sum(math.prod(piece.shape) for piece in stored.pieces) != math.prod(stored.shape):
                raise Damaged(f"the pieces of {tensor} do not make a whole of {list(stored.shape)}")
    return tensors
