"""What every source of pictures is, and what every `data:` section of a recipe has."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from hashlib import blake2b
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, Field, PrivateAttr, model_validator
from torch import Tensor

from unlabeled.data.decoding.bands import Target
from unlabeled.data.label.labels import read_classes
from unlabeled.errors import UserError
from unlabeled.paths import UserPath
from unlabeled.recipe.faults import show

Split = Literal["train", "val"]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
MAX_CHANNELS = 16
MAX_PIXELS = 89_478_485  # where Pillow starts to warn: 256 MiB of RGB
SAMPLED = 64


def _ascending(bounds: tuple[float, float]) -> tuple[float, float]:
    if bounds[0] >= bounds[1]:
        raise ValueError(f"expected [low, high], found {list(bounds)}")
    return bounds


ValueRange = Annotated[tuple[Finite, Finite], AfterValidator(_ascending)]
VALUE_RANGE: Any = Field(
    None,
    description="values of 16-bit and float pictures that become 0 and 255, clipped beyond; null = 16-bit: 0 to 65535, "
    "float: the picture's own minimum and maximum",
)


class Source(Protocol):
    """Numbered pictures. The same number is the same picture for as long as the fingerprint is the same.

    Attributes:
        labels: [n] int64, -1 where unknown.
        classes: the names that labels number; () when unlabelled.
    """

    labels: NDArray[np.int64]
    classes: tuple[str, ...]

    def __len__(self) -> int: ...

    def image(self, i: int) -> Tensor:
        """uint8 [C, H, W], C the channels of its config. A bad picture raises BadSample and nothing else."""
        ...

    def key(self, i: int) -> str:
        """What people call the picture: a path, or an archive and a member in it."""
        ...

    def fingerprint(self) -> str:
        """A short hex string, the same for the same pictures with the same labels wherever they lie."""
        ...


@runtime_checkable
class Encoded(Protocol):
    """What a `Source` has as well whose pictures are files."""

    def read(self, i: int) -> bytes:
        """The bytes of picture i. Raises BadSample where they cannot be had."""
        ...


class SourceConfig(BaseModel, ABC, frozen=True, extra="forbid"):
    """The fields that all kinds of sources share."""

    what_val_is: ClassVar[str] = "labelled pictures to evaluate on"

    name: str
    cache: UserPath | None = Field(
        None,
        description="folder of small copies to read instead, filled by `python -m unlabeled prepare RECIPE "
        "data.cache=FOLDER`; null = none",
    )
    max_bad_fraction: float = Field(
        0.01,
        ge=0,
        le=1,
        allow_inf_nan=False,
        description="share of the pictures that may be bad before a run stops",
    )
    mean: tuple[Finite, ...] = Field(
        (0.485, 0.456, 0.406),
        min_length=1,
        max_length=MAX_CHANNELS,
        description="per channel, subtracted from pixels in 0..1; as many as the pictures have channels. Unless set, "
        "fine-tuning takes the encoder's, pretraining ImageNet's. `python -m unlabeled doctor RECIPE` measures it",
    )
    std: tuple[Positive, ...] = Field(
        (0.229, 0.224, 0.225),
        min_length=1,
        max_length=MAX_CHANNELS,
        description="per channel, divides after that; unless set, as `mean`",
    )

    allow_overlap: bool = Field(
        False,
        description="whether pictures that are scored may be among those that are learnt from: if not, more than "
        "a tenth of them are refused",
    )
    classes: UserPath | None = Field(
        None,
        description="text file with the names of all classes, one on a line, in the order of their numbers; null = the "
        "natural order of those that occur (2 before 10)",
    )

    @model_validator(mode="after")
    def _one_of_each(self) -> SourceConfig:
        if len(self.mean) != len(self.std):
            raise ValueError(
                f"mean has {len(self.mean)} values and std {len(self.std)}; expected one of each per channel of the "
                "pictures"
            )
        return self

    @property
    def channels(self) -> int:
        """How many channels pictures are decoded to."""
        return len(self.mean)

    @cached_property
    def order(self) -> tuple[str, ...] | None:
        """The names of all classes by number, where a file pins them.

        Raises:
            UserError: the file cannot be used.
        """
        return None if self.classes is None else read_classes(self.classes)

    _index_folder: Path | None = PrivateAttr(None)
    _index_written: bool = PrivateAttr(True)

    def keep_index(self, folder: Path, write: bool = True) -> None:
        """Look in a folder for what an earlier scan found, and `write` there what a new one finds."""
        self._index_folder, self._index_written = folder, write

    def check_apart(self, train: Source, val: Source) -> None:
        """Raise UserError when pictures of `val` are in `train` too, unless that is allowed. A sample is looked at."""
        from unlabeled.data.label.overlap import refuse_shared

        if not self.allow_overlap:
            refuse_shared(train, val)

    @abstractmethod
    def source(self, split: Split) -> Source:
        """The pictures of a split, their labels numbered on their own. `val` is asked for only where there is one."""

    @property
    def has_val(self) -> bool:
        """Whether there are pictures to evaluate on."""
        return getattr(self, "val", None) is not None

    @property
    def location(self) -> str:
        """Where pictures come from, for people."""
        if self.cache is None:
            return self.name
        from unlabeled.data.archive.prepared import summary

        return f"{self.name}, small copies in {summary(Path(self.cache))}"

    def open(self, split: Split) -> Source:
        """The pictures of a split, found once. Labels of `val` are numbered as in `train`, where that is labelled.

        Raises:
            UserError: they cannot be had.
        """
        return self._train if split == "train" else self._val

    @cached_property
    def _train(self) -> Source:
        return self.pictures("train")

    @cached_property
    def _val(self) -> Source:
        if not self.has_val:
            raise UserError(f"data.val is null; expected {self.what_val_is}")
        val = getattr(self, "val", None)
        what = "data.val" if val is None else f"data.val={val!r}"
        return numbered_as(self.pictures("val"), self._train.classes, what)

    def pictures(self, split: Split) -> Source:
        """As `source`, from the cache where there is one."""
        if self.cache is None:
            return self.source(split)
        from unlabeled.data.archive.prepared import open_prepared

        return open_prepared(self, Path(self.cache), split)


class EncodedConfig(SourceConfig):
    """Of sources whose pictures are decoded here."""

    max_pixels: int = Field(
        MAX_PIXELS,
        gt=0,
        le=2 * MAX_PIXELS,
        description="larger pictures are skipped before they are decoded. One takes a worker, while it is read, about "
        "8 bytes per pixel as JPEG, 10 to 20 as other pictures of 8 bits or of one band, 25 to 40 with three wide "
        "bands: 0.7, 1.8, 3.6 GB at the default, where Pillow starts to warn; the upper bound is where it refuses",
    )
    value_range: ValueRange | None = VALUE_RANGE

    @property
    def target(self) -> Target:
        """What pictures are decoded to."""
        return Target(self.max_pixels, self.channels, self.value_range)


def numbered_as(val: Source, classes: tuple[str, ...], what: str) -> Source:
    """The source to evaluate on, its labels renumbered as those of the pictures to train on.

    Args:
        val: labelled pictures; changed in place.
        classes: of the pictures to train on; () = they are unlabelled, and nothing changes.
        what: the field of the recipe that names `val`.

    Raises:
        UserError: `val` has no labels, or classes that `classes` lacks.
    """
    if not val.classes:
        raise UserError(f"{what} has no labels; expected every picture to have a class")
    if not classes:
        return val
    rank = {name: i for i, name in enumerate(classes)}
    if extra := [name for name in val.classes if name not in rank]:
        raise UserError(
            f"{what} has classes that data.train lacks: {', '.join(map(show, extra[:10]))}; "
            f"train has {len(classes)}, such as {classes[0]!r}"
        )
    ids = np.array([rank[name] for name in val.classes], dtype=np.int64)
    val.labels, val.classes = np.where(val.labels < 0, -1, ids[val.labels]), classes
    return val


def sample_numbers(n: int) -> NDArray[np.int64]:
    """Up to SAMPLED numbers below n, evenly spaced: enough to tell two data sets apart without reading all."""
    return np.unique(np.linspace(0, n - 1, min(n, SAMPLED)).astype(np.int64))


def digest(parts: Sequence[bytes]) -> str:
    """16 hex digits over parts of known length each."""
    hashed = blake2b(digest_size=8)
    for part in parts:
        hashed.update(len(part).to_bytes(8, "little") + part)
    return hashed.hexdigest()
