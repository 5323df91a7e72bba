"""Hugging Face data sets: a repository, a folder written by `save_to_disk`, or a folder of Parquet or images."""

from __future__ import annotations

import os
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor

from unlabeled.data.archive.dialect import some_of
from unlabeled.data.archive.listing import IndexFolder, Split, digest, sample_numbers
from unlabeled.data.decoding.bands import Target
from unlabeled.data.decoding.decode import decode
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.data.label.labels import numbered, renumbered
from unlabeled.data.source import EncodedConfig, Source
from unlabeled.errors import BadSample, UserError, first_line
from unlabeled.paths import UserPath
from unlabeled.recipe.faults import show
from unlabeled.recipe.free import FREE

ALONE = "train"  # the split of a data set that was saved by itself and has no name
SAVED = ("dataset_dict.json", "state.json")


class Config(EncodedConfig):
    """A data set of the Hugging Face library, read from its memory-mapped tables as images are needed."""

    what_val_is: ClassVar[str] = "the labelled split, such as data.val=test"

    name: Literal["huggingface"] = "huggingface"
    path: Annotated[UserPath, FREE] = Field(description="a repository such as uoft-cs/cifar10, or a folder")
    config: str | None = Field(None, description="the data set's configuration; null = its only one")
    revision: str | None = Field(None, description="branch, tag or commit of the repository; null = the newest")
    train: str = Field("train", description="the split to train on")
    val: str | None = Field(None, description="the labelled split to evaluate on; null = none")
    image: str = Field("image", description="column of the images")
    label: str | None = Field(None, description="column of the labels; null = unlabelled")

    def source(self, split: Split, index: IndexFolder) -> HuggingFaceSource:
        name = self.train if split == "train" else self.val
        assert name is not None, "asked for only where there is one"
        table = _loaded(self.path, self.config, self.revision, name)
        missing = [name for name in (self.image, self.label) if name is not None and name not in table.column_names]
        if missing:
            raise UserError(
                f"{self.path!r} has no column {', '.join(map(show, missing))}; it has "
                f"{some_of(table.column_names, missing[0])}. Set data.image and data.label."
            )
        return HuggingFaceSource(table, f"{self.path}/{name}", self.image, self.label, self.target, self.numbering)


class HuggingFaceSource(Source):
    """A source over one split, a `datasets.Dataset`. Pickles as a reference to its memory-mapped files.

    Classes are numbered by `order`; None = that of a `ClassLabel`, else natural.
    """

    encoded = True

    def __init__(
        self, table: Any, name: str, image: str, label: str | None, target: Target, order: tuple[str, ...] | None = None
    ) -> None:
        from datasets import ClassLabel, Image

        self.classes: tuple[str, ...]
        self.labels: NDArray[np.int64]
        self._name, self._column, self._target = name, image, target
        # bytes and paths as they lie in the table: images are decoded here, under our rules and caps
        self._table = table.select_columns([image]).cast_column(image, Image(decode=False))
        values = [None] * len(table) if label is None else table[label]
        feature = None if label is None else table.features[label]
        if isinstance(feature, ClassLabel):
            numbers = np.array([-1 if value is None else value for value in values], np.int64)
            self.classes, self.labels = renumbered(feature.names, numbers, order)
        else:
            self.classes, self.labels = numbered(values, order)

    def __len__(self) -> int:
        return len(self._table)

    @property
    def marks(self) -> NDArray[np.int64] | None:
        """Sizes [n] of the images that the table holds, bytes, -1 of others; None where rows were chosen."""
        import pyarrow.compute

        if self._table._indices is not None:
            return None
        cells = pyarrow.compute.struct_field(self._table.data.column(self._column), "bytes")
        sizes = pyarrow.compute.fill_null(pyarrow.compute.binary_length(cells), -1)
        return np.asarray(sizes, dtype=np.int64)

    def key(self, i: int) -> str:
        return f"{self._name}[{i}]"

    def name(self, i: int) -> bytes:
        return b"%d" % i

    def image(self, i: int) -> Tensor:
        return decode(self.read(i), key=self.key(i), **self._target._asdict())

    def read(self, i: int) -> bytes:
        cell = self._table[int(i)][self._column] or {}
        if cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        if not cell.get("path"):
            raise BadSample(self.key(i), "the table holds no picture here")
        try:
            with open(cell["path"], "rb") as file:
                return file.read()
        except OSError as error:
            raise_if_out_of_memory(error, self.key(i))
            raise BadSample(self.key(i), f"cannot be read: {error.strerror}") from error

    def fingerprint(self) -> str:
        some = [self._table[int(i)][self._column] or {} for i in sample_numbers(len(self))]
        parts = [bytes(cell.get("bytes") or os.path.basename(cell.get("path") or "").encode()) for cell in some]
        return digest([f"{len(self)} {self.classes}".encode(), self.labels.astype("<i8").tobytes(), *parts])


def _loaded(path: str, config: str | None, revision: str | None, split: str) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise UserError("Hugging Face data sets need the library: pip install datasets") from error
    saved = any(os.path.isfile(os.path.join(path, name)) for name in SAVED)
    try:
        found = (
            datasets.load_from_disk(path)
            if saved
            else datasets.load_dataset(path, config, revision=revision, split=split)
        )
    except Exception as error:  # the library raises whatever its loaders, the network and the hub raise
        raise UserError(
            f"the data set {path!r}, split {split!r}, cannot be had: {first_line(error)}. Mend its name."
        ) from error
    splits = found if isinstance(found, datasets.DatasetDict) else {str(found.split or ALONE): found}
    # what was loaded by name is what was asked for: `train[:10%]` is a part of a split
    if saved and split not in splits:
        raise UserError(
            f"{path!r} has no split {split!r}; it has {sorted(splits)}. Set data.train and data.val to some of "
            "them, or data.val=null."
        )
    return splits[split] if saved else found
