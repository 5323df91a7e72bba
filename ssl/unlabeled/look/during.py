"""The views of a pretraining while it runs: files in `look/` of its folder. Trouble is one line, and ends nothing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import cast

from unlabeled.backbone.pooling import Pool, encoder_features
from unlabeled.data.batch.batch import Batch
from unlabeled.data.source import Source
from unlabeled.errors import first_line
from unlabeled.look.collect import Prepared, choose, describe, examples
from unlabeled.look.mapping import mapped
from unlabeled.look.plane import How
from unlabeled.look.recipe import Look
from unlabeled.look.writing import Examples, write_attention, write_components, write_map
from unlabeled.pretrain.method import Method, PretrainMethod
from unlabeled.progress import current
from unlabeled.text import say
from unlabeled.train.pictures import PictureWriter


@dataclass
class Looking:
    """Draws the encoder of a run; the main process alone asks for it.

    Attributes:
        look: the recipe's section.
        folder: `look/` of the run.
        sources: opens the images, those to show first by the name of their split; called when they are first needed.
        how: their preparation.
        pool: of tokens; None = as the method is evaluated.
        seed: of the recipe.
        most: images of the map.
        workers, timeout: of the loader of the map.
    """

    look: Look
    folder: Path
    sources: Callable[[], Mapping[str, Source]]
    how: Prepared
    pool: Pool | None
    seed: int
    most: int
    workers: int
    timeout: float
    _said: set[str] = field(default_factory=set)

    def during(self, step: int, method: PretrainMethod) -> None:
        """Draw attention and components, and make the map where it is its turn."""
        encoder = method.evaluated()
        if self.look.examples:
            self._try("attention", lambda: write_attention(self.folder, step, encoder, self._examples))
            self._try("components", lambda: write_components(self.folder, step, encoder, self._examples))
        if self.look.every is not None and step % self.look.every == 0:
            self.map(step, method, 0.0)

    def map(self, step: int, method: PretrainMethod, seconds: float) -> None:
        """Make the map of a run that has taken so many seconds."""
        if self.look.pictures:
            self._try("map", lambda: self._map(step, method, self.look.way(seconds)))

    def _map(self, step: int, method: PretrainMethod, how: How) -> None:
        chosen = choose(self._sources, self.most, self.seed)
        encode = encoder_features(method.evaluated(), self.pool or method.pooling())
        images, thumbs = describe(encode, self._sources, chosen, self.how, self.workers, self.timeout)
        about = f"{len(images.names):,} pictures of {' and '.join(self._sources)}"
        write_map(self.folder, mapped(images, how, self.seed, self.look.queries, about, step), thumbs)

    @cached_property
    def _sources(self) -> Mapping[str, Source]:
        return self.sources()

    @cached_property
    def _examples(self) -> Examples:
        return examples(next(iter(self._sources.values())), self.look.examples, self.how, self.seed)

    def _try(self, what: str, action: Callable[[], object]) -> None:
        try:
            action()
        except Exception as error:
            text = f"look: no {what}: {first_line(error)}. The run goes on; look=null leaves this out."
            if text not in self._said:
                self._said.add(text)
                bars = current()
                (say if bars is None else bars.say)(text)


@dataclass(frozen=True)
class Pictures:
    """Draws what a method learns from, then what its encoder has learnt."""

    writer: PictureWriter
    looking: Looking | None

    def __call__(self, step: int, method: Method, batch: Batch) -> Path:
        file = self.writer(step, method, batch)
        if self.looking is not None:
            self.looking.during(step, cast("PretrainMethod", method))
        return file
