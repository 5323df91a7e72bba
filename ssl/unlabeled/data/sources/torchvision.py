"""The data sets of torchvision, by the name of their class."""

from __future__ import annotations

import inspect
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator
from torch import Tensor

from unlabeled.data.archive.listing import IndexFolder, Split, digest, sample_numbers
from unlabeled.data.decoding.bands import Target
from unlabeled.data.decoding.decode import from_pillow
from unlabeled.data.decoding.memory import raise_if_out_of_memory
from unlabeled.data.label.attached import attached
from unlabeled.data.source import EncodedConfig, Source
from unlabeled.errors import BadSample, UserError, first_line
from unlabeled.paths import UserPath
from unlabeled.recipe.free import FREE

Arguments = dict[str, bool | int | float | str]


class Config(EncodedConfig):
    """A class of `torchvision.datasets` that has images by number. Nothing is downloaded unless `train` says so."""

    what_val_is: ClassVar[str] = "the arguments of what to evaluate on, such as {train: false}"

    name: Literal["torchvision"] = "torchvision"
    dataset: str = Field(description="the class, such as CIFAR10, STL10 or Flowers102")
    root: Annotated[UserPath, FREE] = Field(description="folder that it keeps its files in")
    train: Arguments = Field(
        {}, description="its arguments for the images to train on, such as {train: true, download: true}"
    )
    val: Arguments | None = Field(None, description="its arguments for those to evaluate on; null = none")

    @field_validator("dataset")
    @classmethod
    def _known(cls, name: str) -> str:
        import difflib

        import torchvision

        kinds = inspect.getmembers(torchvision.datasets, inspect.isclass)
        known = [name for name, kind in kinds if "root" in inspect.signature(kind).parameters]
        if name not in known:
            spelt = {one.lower(): one for one in known}
            near = difflib.get_close_matches(name.lower(), spelt, n=1, cutoff=0.4)
            hint = f" Did you mean '{spelt[near[0]]}'?" if near else ""
            raise ValueError(f"torchvision has no data set '{name}'.{hint}")
        return name

    def source(self, split: Split, index: IndexFolder) -> TorchVisionSource:
        import torchvision

        arguments = self.train if split == "train" else self.val
        assert arguments is not None, "asked for only where there are some"
        try:
            dataset = getattr(torchvision.datasets, self.dataset)(self.root, **arguments)
        except Exception as error:  # each class raises its own
            problem = f"{self.dataset} in {self.root!r} with {arguments} cannot be had"
            raise UserError(f"{problem}: {first_line(error)}. Mend data.root, or put the files there.") from error
        return TorchVisionSource(dataset, f"{self.dataset}/{split}", self.target, self.numbering)


class TorchVisionSource(Source):
    """A source over one of torchvision's data sets, which gives (image, ...) by number and opens images itself.

    Classes are numbered by `order`; None = that of the data set, else natural.
    """

    def __init__(self, dataset: Any, name: str, target: Target, order: tuple[str, ...] | None = None) -> None:
        self.classes: tuple[str, ...] = ()
        self.labels: NDArray[np.int64] = np.full(len(dataset), -1, np.int64)
        self._dataset, self._name, self._target = dataset, name, target
        if (found := attached(dataset, order)) is not None:
            self.classes, self.labels = found

    def __len__(self) -> int:
        return len(self._dataset)

    def key(self, i: int) -> str:
        return f"{self._name}[{i}]"

    def name(self, i: int) -> bytes:
        return b"%d" % i

    def image(self, i: int) -> Tensor:
        try:
            picture = self._dataset[i][0]
        except Exception as error:  # whatever its files do to it
            raise_if_out_of_memory(error, self.key(i))
            raise BadSample(self.key(i), f"cannot be read: {error}") from error
        return from_pillow(picture, key=self.key(i), **self._target._asdict())

    def fingerprint(self) -> str:
        some = [self._pixels(int(i)) for i in sample_numbers(len(self))]
        return digest([f"{len(self)} {self.classes}".encode(), self.labels.astype("<i8").tobytes(), *some])

    def _pixels(self, i: int) -> bytes:
        try:
            return self.image(i).numpy().tobytes()
        except BadSample:  # named where it is used
            return b""
