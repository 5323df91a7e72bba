"""A data set of the user's own: a map-style torch `Dataset`, or anything with a length and items by number."""

from __future__ import annotations

import importlib
import logging
import sys
from collections.abc import Mapping
from multiprocessing.reduction import ForkingPickler
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor
from torch.utils.data import IterableDataset

from unlabeled.data.archive.listing import IndexFolder, Split, digest, sample_numbers
from unlabeled.data.decoding.bands import Target
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.data.decoding.values import pixels_of
from unlabeled.data.label.attached import attached, called
from unlabeled.data.source import EncodedConfig, Source
from unlabeled.errors import BadSample, Stopped, UserError, first_line
from unlabeled.progress import track

OBJECT = "object:"  # how the path of a data set begins that Python code gave
READ_TWICE = 8  # images that are read twice, to see whether they stay the same
Arguments = dict[str, bool | int | float | str | None]
log = logging.getLogger(__name__)

_given: dict[tuple[str, Split], Any] = {}  # objects of this process


class Config(EncodedConfig):
    """A data set of your own, PACKAGE.MODULE:NAME, found where Python looks for packages: a class or a function that
    gives it. Items are an image, (image, label), or a mapping with `image` and `label`; images are Pillow's, arrays
    [H, W, C], tensors [C, H, W] (uint8, uint16, floats in 0..1) or paths."""

    what_val_is: ClassVar[str] = "the arguments of the data set to evaluate on, such as {train: false}"

    name: Literal["dataset"] = "dataset"
    path: str = Field(
        pattern=r"^(object:.+|[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*)$",
        description="PACKAGE.MODULE:NAME of a class or function that gives the data set",
    )
    train: Arguments = Field({}, description="its arguments for the images to train on, such as {split: train}")
    val: Arguments | None = Field(None, description="its arguments for those to evaluate on; null = none")
    labels: bool = Field(
        False,
        description="whether labels are read from the items, each once at the start; not needed where the data set has "
        "all of them in an attribute `targets` or `labels`",
    )

    def source(self, split: Split, index: IndexFolder) -> DatasetSource:
        arguments = self.train if split == "train" else self.val
        assert arguments is not None, "asked for only where there are some"
        return DatasetSource(
            _found(self.path, split, arguments), f"{self.path}/{split}", self.target, self.numbering, self.labels
        )


class DatasetSource(Source):
    """A source over a data set, which opens images itself. Classes are numbered by `order`; None = those of its
    `classes`, else natural. `labels` reads them from the items where no attribute has them.

    An image that is not the same when it is read again, because of a random transform, is said once: the fingerprint is
    then of labels and length alone, and a run that is resumed sees other images.

    Raises UserError where it cannot be a source.
    """

    def __init__(
        self, dataset: Any, name: str, target: Target, order: tuple[str, ...] | None = None, labels: bool = False
    ) -> None:
        check(dataset, name)
        self._dataset, self._name, self._target = dataset, name, target
        self.classes: tuple[str, ...] = ()
        self.labels: NDArray[np.int64] = np.full(len(dataset), -1, np.int64)
        found = attached(dataset, order)
        if found is None and labels:
            numbers = track(range(len(dataset)), "labels of the data set", len(dataset))
            found = called([self._label(i) for i in numbers], getattr(dataset, "classes", ()), order)
        if found is not None:
            self.classes, self.labels = found
        self.steady = self._is_steady()
        if not self.steady:
            log.warning(
                "%s gives other pixels when an image is read again (a random transform?): runs are not exact, and a "
                "resumed one goes on with other images. Leave the transform to the recipe's views",
                name,
            )

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, i: int) -> str:
        return f"{self._name}[{i}]"

    def image(self, i: int) -> Tensor:
        return pixels_of(_parts(self._item(i))[0], self._target, self.key(i))

    def fingerprint(self) -> str:
        some = [self._pixels(int(i)) for i in sample_numbers(len(self))] if self.steady else []
        return digest([f"{len(self)} {self.classes}".encode(), self.labels.astype("<i8").tobytes(), *some])

    def _item(self, i: int) -> Any:
        try:
            return self._dataset[int(i)]
        except (Stopped, UserError):
            raise
        except Exception as error:  # whatever its code does
            raise_if_out_of_memory(error, self.key(i))
            raise BadSample(self.key(i), f"cannot be read: {type(error).__name__}: {first_line(error)}") from error

    def _label(self, i: int) -> Any:
        try:
            label = _parts(self._item(i))[1]
        except BadSample:  # named where it is used
            return -1
        return label.item() if hasattr(label, "item") else -1 if label is None else label

    def _pixels(self, i: int) -> bytes:
        try:
            return self.image(i).numpy().tobytes()
        except BadSample:
            return b""

    def _is_steady(self) -> bool:
        numbers = sample_numbers(len(self))
        some = numbers[:: max(1, len(numbers) // READ_TWICE)]
        return all(self._pixels(int(i)) == self._pixels(int(i)) for i in some)


def give(train: Any, val: Any = None) -> dict[str, Any]:
    """Keep data sets in this process; returns the fields of a recipe's `data:` that name them. Raises UserError where
    one cannot be a source."""
    path = f"{OBJECT}{type(train).__module__}.{type(train).__qualname__}"
    for split, dataset in (("train", train), ("val", val)):
        if dataset is not None:
            check(dataset, f"the data set of {split}")
    _given[path, "train"], _given[path, "val"] = train, val
    return {"name": "dataset", "path": path, "train": {}, "val": None if val is None else {}}


def is_dataset(given: object) -> bool:
    """Whether something can only be meant as a data set."""
    kinds = (str, bytes, Mapping)
    counted = hasattr(given, "__getitem__") and hasattr(given, "__len__") and not isinstance(given, kinds)
    return counted or isinstance(given, IterableDataset)


def check(dataset: Any, name: str) -> None:
    """Raise UserError where a data set cannot be a source."""
    found = f"{name}, a {type(dataset).__name__},"
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
        raise UserError(
            f"{found} gives items in an order of its own; expected items by number (__getitem__), so that a run draws "
            "them in its own order and goes on exactly. Make it a map-style Dataset."
        )
    if not hasattr(dataset, "__len__") or not len(dataset):
        raise UserError(f"{found} has no length, or is empty; expected a __len__ of at least 1")
    if sys.platform != "linux":  # workers are forked there, and see the object
        try:
            ForkingPickler.dumps(dataset)
        except Exception as error:  # pickle raises anything
            raise UserError(
                f"{found} cannot be sent to loader workers: {first_line(error)}. Set run.workers=0, or give it as "
                "PACKAGE.MODULE:NAME"
            ) from error


def _parts(item: Any) -> tuple[Any, Any]:
    """Image and label of an item; None = it has no label."""
    if isinstance(item, Mapping):
        return item.get("image"), item.get("label")
    if isinstance(item, tuple | list):
        return (item[0] if item else None), (item[1] if len(item) > 1 else None)
    return item, None


def _found(path: str, split: Split, arguments: Arguments) -> Any:
    """The data set of a path. Raises UserError where there is none."""
    if path.startswith(OBJECT):
        if _given.get((path, split)) is None:
            raise UserError(
                f"data.path={path} was given from Python, and is not in this process. Call unlabeled.pretrain or "
                "finetune with data=DATASET again, or name what gives it: data.path=PACKAGE.MODULE:NAME"
            )
        return _given[path, split]
    module, _, name = path.partition(":")
    try:
        found: Any = importlib.import_module(module)
        for part in name.split("."):
            found = getattr(found, part)
        return found(**arguments)
    except Exception as error:  # the code of a user may raise anything
        raise UserError(
            f"the data set {path} with {arguments} cannot be had: {type(error).__name__}: {first_line(error)}. "
            "Expected a class or function in a module on Python's path (PYTHONPATH, or installed)"
        ) from error
