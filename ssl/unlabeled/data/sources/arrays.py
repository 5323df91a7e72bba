"""Images in numpy files: memory-mapped, so that any number of them costs no memory and every process shares them."""

from __future__ import annotations

import sys
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from unlabeled.data.archive.listing import IndexFolder, Split, digest, sample_numbers
from unlabeled.data.archive.tar import local_identity
from unlabeled.data.decoding.bands import Target
from unlabeled.data.label.labels import numbered
from unlabeled.data.source import VALUE_RANGE, Source, SourceConfig, ValueRange
from unlabeled.errors import BadSample, UserError, first_line
from unlabeled.paths import UserPath

MARKED = 1 << 17
Layout = Literal["NHWC", "NCHW"]


class Config(SourceConfig):
    """`.npy` files of uint8, uint16 or float images, all of one size, with labels in files of their own. Grey images,
    [N, H, W] or of one channel, are repeated to RGB where that is asked for."""

    what_val_is: ClassVar[str] = "the .npy of the pictures to evaluate on"

    name: Literal["arrays"] = "arrays"
    train: UserPath = Field(description="the .npy of the images to train on")
    train_labels: UserPath | None = Field(None, description="the .npy of their labels [N]; null = unlabelled")
    val: UserPath | None = Field(None, description="the .npy of the images to evaluate on; null = none")
    val_labels: UserPath | None = Field(None, description="the .npy of their labels")
    layout: Layout = Field("NHWC", description="order of the axes")
    value_range: ValueRange | None = VALUE_RANGE

    def source(self, split: Split, index: IndexFolder) -> ArraySource:
        pictures, labels = (self.train, self.train_labels) if split == "train" else (self.val, self.val_labels)
        assert pictures is not None, "asked for only where there is one"
        target = Target(sys.maxsize, self.channels, self.value_range)
        return ArraySource(pictures, labels, self.layout, target, self.numbering)


class ArraySource(Source):
    """A source over one memory-mapped file, with labels in another or none. Pickles without its pixels."""

    def __init__(
        self, path: str, labels: str | None, layout: Layout, target: Target, order: tuple[str, ...] | None = None
    ) -> None:
        self.path, self.layout, self._target = path, layout, target
        shape, dtype = self._pictures.shape, self._pictures.dtype
        is_number = dtype in (np.uint8, np.uint16) or dtype.kind == "f"
        if len(shape) not in (3, 4) or not is_number or not all(shape):
            raise UserError(
                f"{path!r} holds {dtype} {list(shape)}; expected uint8, uint16 or floats, [N, H, W] or {list(layout)}, "
                "not empty"
            )
        try:
            target.check_bands(1 if len(shape) == 3 else shape[layout.index("C")])
        except ValueError as error:
            raise UserError(
                f"{path!r} in the layout {layout} has {error}: give data.mean and data.std as many values"
            ) from error
        self.classes, self.labels = numbered([None] * len(self) if labels is None else self._named(labels), order)

    @cached_property
    def _pictures(self) -> NDArray[Any]:
        return _loaded(self.path)

    def _named(self, file: str) -> list[Any]:
        found = _loaded(file)
        if found.shape not in ((len(self),), (len(self), 1)):
            raise UserError(
                f"{file!r} has labels {list(found.shape)} for {len(self)} pictures in {self.path!r}; expected "
                f"[{len(self)}]"
            )
        if found.dtype.kind in "cV":
            raise UserError(f"{file!r} has labels of {found.dtype}; expected numbers or text")
        # of floats of any width, whole ones are integers
        return list((found.astype(np.float64) if found.dtype.kind == "f" else found).reshape(-1).tolist())

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pictures"}

    def __len__(self) -> int:
        return len(self._pictures)

    @property
    def marks(self) -> NDArray[np.int64] | None:
        """A few bytes [n] from the middle of each, None of so many that reading them takes long."""
        pictures = self._pictures
        if len(pictures) > MARKED:
            return None
        middle = (slice(None), *(side // 2 for side in pictures.shape[1:-1]))
        return np.array([hash(row.tobytes()) for row in pictures[middle]], np.int64)

    def key(self, i: int) -> str:
        return f"{self.path}[{i}]"

    def name(self, i: int) -> bytes:
        return b"%d" % i

    def image(self, i: int) -> Tensor:
        values = np.asarray(self._pictures[i])
        if values.ndim == 2:
            values = values[:, :, None]
        elif self.layout == "NCHW":
            values = values.transpose(1, 2, 0)
        try:
            pixels = self._target.of(values)
        except ValueError as error:
            raise BadSample(self.key(i), str(error)) from error
        return torch.from_numpy(np.array(pixels.transpose(2, 0, 1), order="C"))

    def fingerprint(self) -> str:
        some = [self._pictures[i].tobytes() for i in sample_numbers(len(self))]
        head = f"{self._pictures.dtype} {self._pictures.shape} {self.layout} {self.classes}".encode()
        return digest([head, self.labels.astype("<i8").tobytes(), *some])


def _loaded(path: str) -> NDArray[Any]:
    try:
        local_identity(path)
        return np.lib.format.open_memmap(path, mode="r")
    except OSError as error:
        raise UserError(f"{path!r} cannot be read: {error.strerror or error}. Name a file that can be.") from error
    except Exception as error:  # numpy raises of any kind where a header says what cannot be
        raise UserError(f"{path!r} is no plain .npy file: {first_line(error)}. Write it by numpy.save.") from error
