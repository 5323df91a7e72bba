"""Reading a `.pth` of unknown origin: tensors, plain values and settings, and nothing that would have to be run."""

from __future__ import annotations

import argparse
import pickle
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlabeled.errors import UserError, first_line
from unlabeled.recipe.faults import show

MOST_PARTS = 20_000  # tensors in a file, those of an optimizer with them
DEEPEST = 8  # dicts and lists in each other that are looked through for tensors
SHARED = 4  # times that weights may be stored under several names


def read_pth(file: Path) -> dict[str, Any]:
    """The content of a `.pth`. Raises UserError when it is missing, or holds anything that would have to be run."""
    if not file.is_file():
        raise UserError(f"no file {file}. Name a .pth that is there.")
    try:
        _refuse_packed(file)
        # training checkpoints hold their settings: argparse's, or yacs's, which become ordered dicts
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever it was, the file is no checkpoint
        # torch's own words advise to read it with its safeguard switched off
        reason = "" if isinstance(error, pickle.UnpicklingError) else f" ({show(first_line(error), 200)[1:-1]})"
        raise UserError(
            f"{file} is refused: it cannot be read as plain weights{reason}. It is not a checkpoint of PyTorch, is "
            "damaged, or holds code besides tensors. Expected the .pth that the method's authors publish"
        ) from error
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a {type(loaded).__name__}, expected a dict of weights")
    sizes = sum(_size(name, tensor) for name, tensor in _tensors("", loaded))
    if sizes > SHARED * file.stat().st_size:
        raise UserError(
            f"{file} is refused: its tensors are {sizes:,} bytes, the file has {file.stat().st_size:,}. Take another."
        )
    return loaded


def _refuse_packed(file: Path) -> None:
    """Raise ValueError for an archive of too many parts, or one that is compressed: torch compresses nothing."""
    if zipfile.is_zipfile(file):
        with zipfile.ZipFile(file) as archive:
            parts = archive.infolist()
        whole = sum(part.file_size for part in parts)
        if len(parts) > MOST_PARTS:
            raise ValueError(f"{len(parts):,} parts, expected at most {MOST_PARTS:,}")
        if whole > file.stat().st_size:
            raise ValueError(f"{whole:,} bytes packed into {file.stat().st_size:,}")


def _tensors(place: str, value: Any, depth: int = 0) -> Iterator[tuple[str, Tensor]]:
    """(place, tensor) for every tensor in dicts and lists."""
    if isinstance(value, Tensor):
        yield place, value
    elif depth < DEEPEST and isinstance(value, dict | list | tuple):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from _tensors(f"{place}.{name}" if place else str(name), inner, depth + 1)


def _size(name: str, tensor: Tensor) -> int:
    """Bytes of a tensor's values. Raises UserError when it has not one stored number for each: sparse, quantised, meta
    or expanded ones."""
    plain = not (tensor.is_quantized or tensor.is_nested or tensor.is_complex()) and tensor.device.type == "cpu"
    if (
        not plain
        or tensor.layout is not torch.strided
        or tensor.numel() * tensor.itemsize > tensor.untyped_storage().nbytes()
    ):
        raise UserError(f"the tensor {show(name)} is refused: expected plain numbers, each stored")
    return tensor.numel() * tensor.itemsize
