"""Pictures in numpy files: memory-mapped, so that any number of them costs no memory and every process shares them."""

from __future__ import annotations

import os
from functools import cached_property
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from unlabeled.data.bands import from_16_bit
from unlabeled.data.source import SourceConfig, Split, classes_of, digest, sample_numbers
from unlabeled.errors import UserError

Layout = Literal["NHWC", "NCHW"]


class Arrays(SourceConfig):
    """`.npy` files of uint8 or uint16 pictures, all of one size, with labels in files of their own.

    Grey pictures, [N, H, W] or of one channel, are repeated to RGB; uint16 is scaled by 1/257.
    """

    what_val_is: ClassVar[str] = "the .npy of the pictures to evaluate on"

    name: Literal["arrays"] = "arrays"
    train: str = Field(min_length=1, description="the .npy of the pictures to train on")
    train_labels: str | None = Field(None, description="the .npy of their labels [N]; null = unlabelled")
    val: str | None = Field(None, description="the .npy of the pictures to evaluate on; null = none")
    val_labels: str | None = Field(None, description="the .npy of their labels")
    layout: Layout = Field("NHWC", description="order of the axes")

    def source(self, split: Split) -> ArraySource:
        """The files of one split."""
        pictures, labels = (self.train, self.train_labels) if split == "train" else (self.val, self.val_labels)
        assert pictures is not None, "asked for only where there is one"
        return ArraySource(pictures, labels, self.layout)


class ArraySource:
    """A `Source` over one memory-mapped file. Pickles without its pixels.

    Args:
        path: of the pictures.
        labels: path of the labels, or None.
        layout: order of the axes.
    """

    def __init__(self, path: str, labels: str | None, layout: Layout) -> None:
        self.path, self.layout = os.path.expanduser(path), layout
        shape, dtype = self._pictures.shape, self._pictures.dtype
        if len(shape) not in (3, 4) or dtype not in (np.uint8, np.uint16) or not all(shape):
            raise UserError(
                f"{path!r} holds {dtype} {list(shape)}; expected uint8 or uint16 [N, H, W] or {list(layout)}, not empty"
            )
        channels = 1 if len(shape) == 3 else shape[layout.index("C")]
        if channels not in (1, 3):
            raise UserError(f"{path!r} has {channels} channels in the layout {layout}; expected 1 or 3")
        named = [] if labels is None else _loaded(os.path.expanduser(labels)).tolist()
        if labels is not None and len(named) != len(self):
            raise UserError(f"{labels!r} has {len(named)} labels for {len(self)} pictures in {path!r}")
        self.classes, self.labels = classes_of(named) if named else ((), np.full(len(self), -1, np.int64))

    @cached_property
    def _pictures(self) -> NDArray[Any]:
        return _loaded(self.path)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "_pictures"}

    def __len__(self) -> int:
        return len(self._pictures)

    def key(self, i: int) -> str:
        """The file and the number in it."""
        return f"{self.path}[{i}]"

    def image(self, i: int) -> Tensor:
        """uint8 [3, H, W]."""
        pixels = np.asarray(self._pictures[i])
        pixels = from_16_bit(pixels) if pixels.dtype == np.uint16 else pixels
        if pixels.ndim == 2:
            pixels = pixels[None]
        elif self.layout == "NHWC":
            pixels = pixels.transpose(2, 0, 1)
        return torch.from_numpy(np.array(np.broadcast_to(pixels, (3, *pixels.shape[1:]))))

    def fingerprint(self) -> str:
        """16 hex digits over shape, labels and some of the pictures."""
        some = [self._pictures[i].tobytes() for i in sample_numbers(len(self))]
        head = f"{self._pictures.dtype} {self._pictures.shape} {self.layout} {self.classes}".encode()
        return digest([head, self.labels.astype("<i8").tobytes(), *some])


def _loaded(path: str) -> NDArray[Any]:
    try:
        loaded: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(f"{path!r} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise UserError(f"{path!r} is no plain .npy file: {error}") from error
    return loaded
