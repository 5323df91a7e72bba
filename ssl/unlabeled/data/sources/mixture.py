"""Several sources as one, each with its share of an epoch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from copy import copy
from functools import cached_property
from typing import Annotated, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, field_validator, model_validator
from pydantic_core.core_schema import ValidationInfo
from torch import Tensor

from unlabeled.data.archive.listing import IndexFolder, Split, digest
from unlabeled.data.label.labels import natural
from unlabeled.data.opened import Opened
from unlabeled.data.source import SOURCES, Positive, Source, SourceConfig
from unlabeled.registry import ByFile

Single = Annotated[SourceConfig, ByFile(SOURCES.package, SourceConfig, without=("mixture",))]
OWN = ("cache", "split", "split_seed")
SHARED = frozenset(SourceConfig.model_fields) - {"name", *OWN}


class MixtureSource(Source):
    """A source of several. An epoch passes over every image at least once; what weighs more repeats.

    Images of a source take turns, so a repeated one is cropped anew: randomness goes by the place in the mixture.
    Weights are shares of the sources, in proportion; None = their sizes, so that every image comes once.
    """

    def __init__(
        self, sources: Sequence[Source], weights: Sequence[float] | None = None, order: tuple[str, ...] | None = None
    ) -> None:
        self.sources, sizes = tuple(sources), np.array([len(source) for source in sources])
        share = sizes if weights is None else np.array(weights)
        counts = sizes if weights is None else np.rint(share * (sizes / share).max()).astype(np.int64)
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(np.maximum(counts, sizes))])
        names = {name for source in sources for name in source.classes}
        self.classes: tuple[str, ...] = order if order and names else tuple(sorted(names, key=natural))

    @cached_property
    def labels(self) -> NDArray[np.int64]:  # type: ignore[override]  # put together when all are asked for
        return np.concatenate([self._labels(part, source) for part, source in enumerate(self.sources)])

    def label(self, i: int) -> int:
        if "labels" in self.__dict__:
            return int(self.labels[i])
        source, number = self.place(i)
        label = source.label(number)
        return label if label < 0 else self.classes.index(source.classes[label])

    def truth(self, i: int) -> int | None:
        source, number = self.place(i)
        return source.truth(number)

    def stand_in(self, i: int) -> int:
        """The next of the same part, so that shares stay as they are."""
        start, end = self.starts[(part := np.searchsorted(self.starts, i, side="right")) - 1], self.starts[part]
        return int(start + (i + 1 - start) % (end - start))

    def _labels(self, part: int, source: Source) -> NDArray[np.int64]:
        """Labels of one part's images in the epoch, numbered as the mixture's."""
        rank = {name: number for number, name in enumerate(self.classes)}
        ids = np.array([rank[name] for name in source.classes] + [-1])  # -1 stays the last
        return ids[source.labels[np.arange(self.starts[part + 1] - self.starts[part]) % len(source)]]

    def __len__(self) -> int:
        return int(self.starts[-1])

    @property
    def parts(self) -> Sequence[Source]:
        return self.sources

    @property
    def shards(self) -> NDArray[np.int64]:
        found = []
        for source, start, end in zip(self.sources, self.starts[:-1], self.starts[1:], strict=True):
            # a part that repeats goes through its shards again
            begins = np.arange(start, end, len(source))[:, None] + source.shards[:-1]
            found.append(begins[begins < end])
        return np.concatenate([*found, self.starts[-1:]])

    @property
    def skipped(self) -> Counter[str]:
        return sum((part.skipped for part in self.sources), Counter())

    def origin(self, i: int) -> tuple[Source, int]:
        source, number = self.place(i)
        return source.origin(number)

    def place(self, i: int) -> tuple[Source, int]:
        """The part that image i belongs to, and its number there."""
        part = int(np.searchsorted(self.starts, i, side="right")) - 1
        source = self.sources[part]
        return source, int(i - self.starts[part]) % len(source)

    def ahead(self, numbers: Sequence[int]) -> Source:
        asked: dict[Source, list[int]] = {source: [] for source in self.sources}
        for source, number in map(self.place, numbers):
            asked[source].append(number)
        other = copy(self)
        other.sources = tuple(source.ahead(asked[source]) for source in self.sources)
        return other

    def key(self, i: int) -> str:
        source, number = self.place(i)
        return source.key(number)

    def image(self, i: int) -> Tensor:
        source, number = self.place(i)
        return source.image(number)

    def fingerprint(self) -> str:
        return digest([self.starts.astype("<i8").tobytes(), *(s.fingerprint().encode() for s in self.sources)])


class Config(SourceConfig):
    """Several sources, with weights. Evaluation is on those that have a `val`."""

    what_val_is: ClassVar[str] = "a source of the mixture that has one"

    name: Literal["mixture"] = "mixture"
    sources: tuple[Single, ...] = Field(min_length=1, description="`data:` sections; what all share is set here")
    weights: tuple[Positive, ...] | None = Field(
        None, description="how often each is drawn from, in proportion; null = every image once"
    )

    @field_validator("sources")
    @classmethod
    def _nothing_shared(cls, sources: tuple[SourceConfig, ...]) -> tuple[SourceConfig, ...]:
        for number, source in enumerate(sources):
            fields = type(source).model_fields
            # by value: a recipe that was written out names all of its fields
            if shared := sorted(name for name in SHARED if getattr(source, name) != fields[name].default):
                raise ValueError(f"source {number} sets {', '.join(shared)}, which belongs to the mixture: move it up")
        return sources

    @model_validator(mode="after")
    def _one_each(self) -> Config:
        if self.weights is not None and len(self.weights) != len(self.sources):
            raise ValueError(f"expected a weight per source, found {len(self.weights)} for {len(self.sources)}")
        return self

    @field_validator("cache", "split")
    @classmethod
    def _not_its_own(cls, value: str | float | None, info: ValidationInfo) -> str | float | None:
        if value is not None:
            name = info.field_name
            raise ValueError(f"a mixture has no {name} of its own, found {value!r}: give one to each of its sources")
        return value

    @model_validator(mode="after")
    def _all_have_its_channels(self) -> Config:
        for source in self.sources:
            source.check_channels(self.channels)
        return self

    @property
    def names_val(self) -> bool:
        return any(source.has_val for source in self.sources)

    @cached_property
    def parts(self) -> Sequence[SourceConfig]:
        """The sources with the shared fields, which decide how each decodes."""
        shared = {name: getattr(self, name) for name in SHARED}
        return [source.model_copy(update=shared) for source in self.sources]

    def read_as_one(self, source: Source) -> list[str]:
        pairs = zip(self.sources, source.parts, strict=True)
        return [folder for config, part in pairs for folder in config.read_as_one(part)]

    def source(self, split: Split, index: IndexFolder) -> MixtureSource:
        """All parts that have the split; weights are for training."""
        parts = [
            Opened(part, index.part(number)).split(split)
            for number, part in enumerate(self.parts)
            if split == "train" or part.has_val
        ]
        return MixtureSource(parts, self.weights if split == "train" else None, self.numbering)
