"""Features on disk in shards of a few thousand images, in either of two common formats.

features-00000.safetensors   index, label, features, tokens; the keys as a JSON list in the header ("keys")
features-00000.parquet       index, key, label, features, tokens: a row per image
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from unlabeled.errors import UserError, first_line
from unlabeled.files import replacing

Format = Literal["safetensors", "parquet"]


class Shard(NamedTuple):
    """Features of some images.

    Attributes:
        index: [m] int64, their numbers in the source.
        keys: their names: paths, or archives and members in them.
        label: [m] int64, -1 where unknown.
        features: [m, D].
        tokens: [m, N, D], of the patches; None = not asked for.
    """

    index: Tensor  # type: ignore[assignment]  # as every data set calls it, though tuples have a method of that name
    keys: list[str]
    label: Tensor
    features: Tensor
    tokens: Tensor | None

    def write(self, file: Path) -> None:
        """Write a file, whole or not at all, in the format of its ending.

        Raises:
            UserError: parquet, and pyarrow is not installed.
            OSError: it cannot be written.
        """
        with replacing(file) as temporary:
            if file.suffix == ".parquet":
                _pyarrow("parquet").write_table(self._table(), temporary)
            else:
                tensors = {name: value for name, value in self._asdict().items() if isinstance(value, Tensor)}
                temporary.write_bytes(save(tensors, metadata={"keys": json.dumps(self.keys)}))

    def _table(self) -> Any:
        pa = _pyarrow("lib")
        named = {
            "index": self.index.numpy(),
            "key": [os.fsencode(key).decode(errors="replace") for key in self.keys],
            "label": self.label.numpy(),
            "features": _lists(self.features),
        }
        return pa.table(named if self.tokens is None else {**named, "tokens": _lists(self.tokens)})


class Stored:
    """A file of features that was written; the features are read when they are asked for.

    Attributes: see `Shard`.

    Raises:
        UserError: it cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        with _told(file):
            if file.suffix == ".parquet":
                table = _pyarrow("parquet").read_table(file, columns=["index", "key", "label"])
                self.keys: list[str] = table["key"].to_pylist()
                self.index, self.label = (
                    torch.from_numpy(table[name].to_numpy().copy()) for name in ("index", "label")
                )
                return
            with safe_open(file, "pt") as opened:
                self.keys = json.loads(opened.metadata()["keys"])
                self.index, self.label = opened.get_tensor("index"), opened.get_tensor("label")

    @property
    def features(self) -> Tensor:
        """[m, D], read now."""
        with _told(self.file):
            if self.file.suffix == ".parquet":
                column = _pyarrow("parquet").read_table(self.file, columns=["features"])["features"].combine_chunks()
                return torch.from_numpy(column.flatten().to_numpy().reshape(len(self.keys), -1).copy())
            with safe_open(self.file, "pt") as opened:
                found: Tensor = opened.get_tensor("features")
                return found


@contextmanager
def _told(file: Path) -> Iterator[None]:
    """Errors of a file that cannot be read, in words."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # of any kind, where a file is damaged
        raise UserError(
            f"{file} cannot be read: {first_line(error)}. Run the same `unlabeled embed` command again."
        ) from error


def check_format(name: Format) -> None:
    """Raise UserError when the package of a format is not installed."""
    if name == "parquet":
        _pyarrow("parquet")


def _pyarrow(module: str) -> Any:
    import importlib

    try:
        return importlib.import_module(f"pyarrow.{module}")
    except ImportError as error:
        raise UserError(
            "parquet needs pyarrow, which is not installed. Run `pip install pyarrow`, or use --format safetensors."
        ) from error


def _lists(values: Tensor) -> Any:
    """Rows [m, ...] as lists of one length."""
    pa, flat = _pyarrow("lib"), values.flatten(1)
    return pa.FixedSizeListArray.from_arrays(pa.array(flat.numpy().reshape(-1)), flat.shape[1])
