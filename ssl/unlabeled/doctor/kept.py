"""Measurements of images in parts, and a folder that keeps them, so that a survey that was interrupted goes on.

FOLDER/train-00000.safetensors   a column per tensor, a row per readable image; the rest as JSON in the header
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from unlabeled.data.archive.listing import digest
from unlabeled.errors import UserError
from unlabeled.files import replacing

COLUMNS = {
    "number": np.int64,
    "height": np.int64,
    "width": np.int64,
    "mean": np.float64,
    "square": np.float64,
    "digest": np.uint64,
    "spectrum": np.float16,
    "wrong": np.str_,
}


class Bad(NamedTuple):
    """An image that cannot be used."""

    key: str
    reason: str


class Part(NamedTuple):
    """Some images: columns as in `Survey`, and the bad ones."""

    columns: list[NDArray[Any]]
    bad: list[Bad]

    @classmethod
    def of(cls, rows: Iterable[Sequence[Any]], bad: list[Bad]) -> Part:
        """From a row for each readable image."""
        values: Any = list(zip(*rows, strict=True)) or [()] * len(COLUMNS)
        return cls([np.array(one, dtype) for one, dtype in zip(values, COLUMNS.values(), strict=True)], bad)

    @classmethod
    def joined(cls, parts: Sequence[Part]) -> Part:
        """Parts behind each other."""
        some = [part for part in parts if len(part.columns[0])] or [cls.of([], [])]
        columns = [np.concatenate(column) for column in zip(*(part.columns for part in some), strict=True)]
        return cls(columns, [bad for part in parts for bad in part.bad])

    @property
    def opened(self) -> int:
        """Number of images, bad ones included."""
        return len(self.columns[0]) + len(self.bad)


class Kept(NamedTuple):
    """The parts of one split in a folder; None = nothing is kept. `asked` says of which images, read in which way."""

    folder: Path | None = None
    split: str = ""
    asked: str = ""

    def of(self, source: str, numbers: NDArray[np.int64]) -> Kept:
        """The same for some images, by their source's fingerprint."""
        return self._replace(asked=digest([f"{self.asked} {source}".encode(), numbers.tobytes()]))

    def read(self, count: int) -> dict[int, Part]:
        """Those of `count` parts that are there as they were written. Raises UserError when one is of others."""
        found = {number: self._read(number) for number in range(count)} if self.folder else {}
        return {number: part for number, part in found.items() if part is not None}

    def write(self, number: int, part: Part) -> None:
        """Write a part, whole or not at all."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        *numeric, wrong = part.columns
        tensors = dict(zip(COLUMNS, numeric, strict=False))
        rest = {
            "asked": self.asked,
            "digest": digest([*map(_bytes, numeric)]),
            "wrong": wrong.tolist(),
            "bad": part.bad,
        }
        with replacing(self._file(number)) as temporary:
            temporary.write_bytes(save(tensors, {"survey": json.dumps(rest)}))

    def _read(self, number: int) -> Part | None:
        file = self._file(number)
        try:
            with safe_open(file, "numpy") as opened:
                rest = json.loads(opened.metadata()["survey"])
                numeric = [opened.get_tensor(name) for name in list(COLUMNS)[:-1]]
        except (OSError, SafetensorError, ValueError, KeyError, TypeError):
            return None
        if rest["asked"] != self.asked:
            raise UserError(
                f"{file} tells of other pictures, or of pictures read in another way. Choose another folder, or "
                f"remove {self.folder}."
            )
        if rest["digest"] != digest([*map(_bytes, numeric)]):
            return None
        return Part([*numeric, np.array(rest["wrong"], np.str_)], [Bad(*bad) for bad in rest["bad"]])

    def _file(self, number: int) -> Path:
        assert self.folder is not None
        return self.folder / f"{self.split}-{number:05d}.safetensors"


NOWHERE = Kept()


def _bytes(column: NDArray[Any]) -> bytes:
    return np.ascontiguousarray(column).tobytes()
