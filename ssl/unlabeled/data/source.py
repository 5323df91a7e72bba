"""The contracts of a source of images and of a recipe's `data:` section. Kinds are the files of `sources/`."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, model_validator
from torch import Tensor
from typing_extensions import Self

from unlabeled.data.archive.listing import IndexFolder, Split
from unlabeled.data.decoding.bands import Target
from unlabeled.data.label.boxes import Boxes
from unlabeled.data.label.labels import read_classes
from unlabeled.data.order import AnyOrder, Rows
from unlabeled.data.orders import shuffle
from unlabeled.paths import UserPath
from unlabeled.recipe.free import FREE, Mark
from unlabeled.registry import ByFile

Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_CHANNELS = 16
MAX_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MiB of RGB


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError(f"expected [low, high], found {list(bounds)}")
    return bounds


ValueRange = Annotated[tuple[Finite, Finite], AfterValidator(_ascending)]
VALUE_RANGE: Any = Field(
    None,
    description="values of 16-bit and float images that become 0 and 255, clipped beyond; null = 16-bit: 0 to 65535, "
    "float: the image's own minimum and maximum",
)


NORMALISED = ("mean", "std", "value_range")  # the fields that decide what an encoder sees of an image
Share = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False, strict=True)]
HOLDS_OUT = (
    "share of every class that is held out of the images to train on, to evaluate on, such as 0.2, where no split is "
    "made yet; at least one image on each side where a class has two; equal files stay together"
)
AFTERWARDS = Mark("says how images are used, not which they are: small copies do not depend on it")


class Source(ABC):
    """Numbered images. A number names the same image for as long as the fingerprint is the same."""

    labels: NDArray[np.int64]  # [n] int64, -1 where unknown
    classes: tuple[str, ...]  # class names by number; () when unlabelled
    encoded: bool = False  # whether `read` gives the encoded bytes of an image
    boxed: bool = False  # whether images have boxes of the classes
    masked: bool = False  # whether the classes are those of pixels, and an image has none

    @abstractmethod
    def __len__(self) -> int:
        """Number of images."""

    @abstractmethod
    def image(self, i: int) -> Tensor:
        """Image i: uint8 [C, H, W], C the channels of its config. Raises BadSample and nothing else."""

    def ahead(self, numbers: Sequence[int]) -> Source:
        """The same images, where they lie far away those of these numbers already on their way: they will be asked for
        next, in this order."""
        return self

    @abstractmethod
    def key(self, i: int) -> str:
        """The name of image i for people: a path, or an archive and a member in it."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A short hex string, the same for the same images with the same labels wherever they lie."""

    def read(self, i: int) -> bytes:
        """The encoded bytes of image i, b"" where there are none. Raises BadSample."""
        return b""

    def label(self, i: int) -> int:
        """The label of image i, -1 where unknown."""
        return int(self.labels[i])

    def truth(self, i: int) -> int | None:
        """The label of image i that is kept from what learns, for measures alone, -1 where it has none; None where the
        source keeps none back."""
        return None

    def stand_in(self, i: int) -> int:
        """The number of the image that takes the place of a bad one: the next."""
        return (i + 1) % len(self)

    def boxes(self, i: int, height: int, width: int) -> Boxes:
        """The boxes of image i, which has so many pixels. Only where `boxed`."""
        raise NotImplementedError

    def pixel_labels(self, i: int, height: int, width: int) -> Tensor:
        """The class of every pixel of image i, which has so many: int16 [H, W], -1 where unknown. Only of a source with
        masks. Raises UserError when the mask cannot be used, or has another size."""
        raise NotImplementedError

    def name(self, i: int) -> bytes:
        """The name of image i in its split, wherever that lies: a path below it, or a number."""
        return self.key(i).encode()

    def file(self, i: int) -> bytes | None:
        """The path of image i as a file of its own; None where it is none."""
        return None

    def origin(self, i: int) -> tuple[Source, int]:
        """The innermost source of image i, and its number there."""
        return self, i

    @property
    def whole(self) -> Source:
        """The source that this one is a subset of; itself unless it is one."""
        return self

    @property
    def unlabelled(self) -> int:
        """Number of images of the whole that a subset lacks for want of a label."""
        return 0

    @property
    def parts(self) -> Sequence[Source]:
        """The sources that this one joins; itself alone unless it is a mixture."""
        return (self,)

    @property
    def shards(self) -> Rows:
        """The numbers at which shards of images begin, and the number of all [S + 1]; one shard unless images lie in
        tars."""
        return np.array([0, len(self)])

    @property
    def marks(self) -> NDArray[np.int64] | None:
        """A number for every image [n], equal where images are; None = unknown."""
        return None

    @property
    def skipped(self) -> Counter[str]:
        """Number of files beside the images that are not read, by ending; see `unlabeled.data.archive.skipped`."""
        return Counter()

    def relabelled(self, labels: NDArray[np.int64], classes: tuple[str, ...]) -> Self:
        """A copy with other labels [n] and class names."""
        other = copy(self)
        other.labels, other.classes = labels, classes
        return other


class SourceConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The fields that all kinds of sources share; `name` is the name of its file."""

    what_val_is: ClassVar[str] = "labelled images to evaluate on"

    name: str
    cache: Annotated[UserPath | None, FREE, AFTERWARDS] = Field(
        None,
        description="folder of small copies to read instead, filled by `unlabeled prepare RECIPE "
        "data.cache=FOLDER`; null = none",
    )
    max_bad_fraction: Annotated[float, FREE, AFTERWARDS] = Field(
        0.01, ge=0, le=1, allow_inf_nan=False, description="share of the images that may be bad before a run stops"
    )
    mean: Annotated[tuple[Finite, ...], AFTERWARDS] = Field(
        (0.485, 0.456, 0.406),
        min_length=1,
        max_length=MAX_CHANNELS,
        description="per channel, subtracted from pixels in 0..1; as many as the images have channels. Unless set, "
        "fine-tuning takes the encoder's, pretraining ImageNet's. `unlabeled doctor RECIPE` measures it",
    )
    std: Annotated[tuple[Positive, ...], AFTERWARDS] = Field(
        (0.229, 0.224, 0.225),
        min_length=1,
        max_length=MAX_CHANNELS,
        description="per channel, divides after that; unless set, as `mean`",
    )

    allow_overlap: Annotated[bool, FREE, AFTERWARDS] = Field(
        False,
        description="whether scored images may be among the training images: if not, more than a tenth of them are "
        "refused",
    )
    # the classes and their order are part of the images' fingerprint
    classes: Annotated[UserPath | None, FREE, AFTERWARDS] = Field(
        None,
        description="text file with the names of all classes, one on a line, in the order of their numbers; null = the "
        "natural order of those that occur (2 before 10)",
    )

    order: Annotated[AnyOrder, AFTERWARDS] = Field(
        shuffle.Config(), description="which image to train on comes when; another order is another run"
    )
    split: Share | None = Field(None, description=f"{HOLDS_OUT}; null = none")
    split_seed: int = Field(
        0, ge=0, lt=2**32, description="which images `split` holds out: runs of other seeds share them"
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> SourceConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; expected one of each per channel of the "
                "pictures"
            )
        return self

    @model_validator(mode="after")
    def _one_val(self) -> SourceConfig:
        if self.share is not None and self.names_val:
            said = {name: getattr(self, name, None) for name in ("val", "val_path")}
            named = " ".join(f"data.{name}=null" for name, value in said.items() if value is not None)
            raise ValueError(
                f"split={self.share:g} holds a share of train out to evaluate on, and other fields name pictures for "
                f"that. Leave split out, or these: {named or 'this kind of data always has them'}"
            )
        return self

    @abstractmethod
    def source(self, split: Split, index: IndexFolder) -> Source:
        """The images of a split, their labels numbered on their own; `index` keeps what a scan finds. `val` is asked
        for only where `names_val`. Raises UserError when they cannot be had."""

    def as_flat(self) -> dict[str, str]:
        """Fields that read a folder of classes as it lies, where these ones expect splits in it; empty elsewhere."""
        return {}

    @property
    def channels(self) -> int:
        """Number of channels that images are decoded to."""
        return len(self.mean)

    @cached_property
    def numbering(self) -> tuple[str, ...] | None:
        """The names of all classes by number, where a file pins them. Raises UserError when the file cannot be used."""
        return None if self.classes is None else read_classes(self.classes)

    @property
    def share(self) -> float | None:
        """Share of every class that is held out of `train` as `val`; None = none is."""
        return self.split

    @property
    def names_val(self) -> bool:
        """Whether a field says which images to evaluate on."""
        return getattr(self, "val", None) is not None

    @property
    def has_val(self) -> bool:
        """Whether there are images to evaluate on."""
        return self.share is not None or self.names_val

    @property
    def parts(self) -> Sequence[SourceConfig]:
        """The sources that this one joins; itself alone unless it is a mixture."""
        return (self,)

    def normalised_as(self, other: SourceConfig, field: str, written: bool = False) -> Self:
        """The same images with the normalisation and the values of another section.

        Args:
            other: the section.
            field: what the recipe calls this one.
            written: whether it may have been written out with all fields, so that a default says nothing.

        Raises:
            ValueError: this one says otherwise, or has no such channels.
        """
        shared = [name for name in NORMALISED if name in type(self).model_fields and name in type(other).model_fields]
        for name in shared:
            found, expected = getattr(self, name), getattr(other, name)
            bare = written and found == type(self).model_fields[name].default
            if name in self.model_fields_set and found != expected and not bare:
                raise ValueError(
                    f"{field}.{name} is {_list(found)}, and data.{name} is {_list(expected)}: an encoder sees pictures "
                    f"of both in the same way. Leave {field}.{name} out"
                )
        self.check_channels(other.channels)
        return self.model_copy(update={name: getattr(other, name) for name in shared})

    def check_channels(self, channels: int) -> None:
        """Raise ValueError when images of this kind cannot have so many channels."""

    def read_as_one(self, source: Source) -> list[str]:
        """Folders of training images that are named like splits (`train`, `val`) and are all read as one."""
        return []

    def masks(self) -> SourceConfig | None:
        """Masks of class numbers that lie beside the images, as a source of their own; None = not of this kind."""
        return None


def _list(values: tuple[float, ...] | None) -> list[float] | None:
    return None if values is None else list(values)


class EncodedConfig(SourceConfig):
    """The fields of sources whose images are decoded here."""

    max_pixels: int = Field(
        MAX_PIXELS,
        gt=0,
        le=2 * MAX_PIXELS,
        description="larger images are skipped before they are decoded. One takes a worker, while it is read, about "
        "8 bytes per pixel as JPEG, 10 to 20 as other images of 8 bits or of one band, 25 to 40 with three wide "
        "bands: 0.7, 1.8, 3.6 GB at the default, where Pillow starts to warn; the upper bound is where it refuses",
    )
    value_range: ValueRange | None = VALUE_RANGE

    @property
    def target(self) -> Target:
        return Target(self.max_pixels, self.channels, self.value_range)


SOURCES = ByFile("unlabeled.data.sources", SourceConfig)
AnyData = Annotated[SourceConfig, SOURCES]
