"""Comparison of encoders and their baselines by the same protocols on the same images."""

from __future__ import annotations

import json
from collections.abc import Hashable, Iterator, Mapping, Sequence
from typing import Annotated, Any, NamedTuple

import torch
from pydantic import create_model

from unlabeled.backbone.build import untrained
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.pooling import FeatureSpec, Pixels
from unlabeled.data.label.subset import stratified
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import required, runs
from unlabeled.evaluate.protocol import ACCURACY, PROTOCOLS, Protocol, Score
from unlabeled.evaluate.results import Column, EncoderScores, Result, with_recalls
from unlabeled.evaluate.splits import Preparation, Splits, most_frequent
from unlabeled.nn.measures import spectral_rank
from unlabeled.progress import Clock
from unlabeled.recipe import parse

PIXELS_SIDE = 32  # largest side of raw pixels: more of them are no better


class Subject(NamedTuple):
    """One row of the table: an encoder of images of `shape` pixels, or `Pixels`, and its images."""

    name: str
    encoder: Any
    shape: tuple[int, int]
    data: Opened
    preparation: Preparation


def opened_once(data: Opened, subjects: Sequence[Subject]) -> Opened:
    """The images of an earlier subject where they are the same: those are looked for once."""
    return next((other.data for other in subjects if other.data.config == data.config), data)


class Comparison(NamedTuple):
    """Everything that encoders are compared with: protocols by the names of their scores, shares of the labels, draws.

    Attributes:
        seeds: draws of each share below 1.
        workers: processes that load images.
    """

    protocols: Mapping[str, Protocol]
    fractions: Sequence[float]
    seeds: int
    device: torch.device
    workers: int

    def row(self, subject: Subject) -> EncoderScores:
        """The scores of one encoder, and their cost. Raises UserError when images or encoder do not suffice."""
        labels = any(protocol.labels for protocol in self.protocols.values())
        splits = Splits(subject.preparation, subject.data, self.device, self.workers, labels=labels)
        bench = Bench(subject.encoder, splits, subject.shape)
        seen = not isinstance(subject.encoder, Pixels)  # pixels have nothing but features
        protocols = {name: protocol for name, protocol in self.protocols.items() if seen or protocol.pixels}
        clock = Clock()
        bench.prepare([FeatureSpec(bench.pool), *required(protocols, bench.pool, bench.encoder.readable)])
        encoding = clock.seconds
        scores = self._scores(bench, protocols)
        cost = {"seconds": clock.seconds, "cpu_seconds": clock.cpu_seconds}
        train, test = bench.features()
        return EncoderScores(
            subject.name,
            subject.shape,
            train.x.shape[1],
            len(train.y),
            len(test.y),
            spectral_rank(test.x),
            {name: source.fingerprint() for name, source in zip(("train", "val"), splits.sources, strict=True)},
            scores,
            {**cost, "pictures_per_second": (len(train.y) + len(test.y)) / max(encoding, 1e-9)},
        )

    def _scores(self, bench: Bench, protocols: Mapping[str, Protocol]) -> dict[Column, Result]:
        (train, test), names = bench.features(), bench.splits.sources[0].classes
        known, asked = train.y.cpu().numpy(), test.y.cpu().numpy()
        scores: dict[Column, Result] = {}
        for score, protocol, fraction, seed in runs(protocols, self.fractions, bench, self.seeds):
            if protocol.unit == ACCURACY and score.each is not None:
                score = with_recalls(score, asked, names)
            column = Column(score.name, fraction if protocol.few_labels else None)
            if column not in scores:
                size = len(stratified(known, fraction, seed, names=names)) if protocol.few_labels else None
                scores[column] = Result(size, unit=protocol.unit)
            scores[column].found.append(score)
        return scores

    def most_frequent_class(self, subject: Subject, like: EncoderScores) -> EncoderScores | None:
        """The row of always predicting the most frequent class of training; None where no score is an accuracy."""
        if not any(protocol.unit == ACCURACY for protocol in self.protocols.values()):
            return None
        sources = Splits(subject.preparation, subject.data, self.device, self.workers).sources
        train, test, each = most_frequent(*sources)
        score = with_recalls(Score("majority", float(each.mean()), each), test, sources[0].classes)
        scores = {
            column: Result(result.labels, [score._replace(name=column.name)], result.unit)
            for column, result in like.scores.items()
            if result.unit == ACCURACY and not column.name.endswith("top5")
        }
        cost = dict.fromkeys(like.cost, 0.0)
        sizes = 0, len(train), len(test)
        return EncoderScores("most frequent class", like.shape, *sizes, 0.0, like.fingerprints, scores, cost)


def rivals(subjects: Sequence[Subject], protocols: Mapping[str, Protocol], device: torch.device) -> Iterator[Subject]:
    """Raw pixels, then untrained twins of the encoders, each once."""
    pixels: dict[Hashable, Subject] = {}
    twins: dict[Hashable, Subject] = {}
    for _, encoder, shape, data, preparation in subjects:
        small = (min(shape[0], PIXELS_SIDE), min(shape[1], PIXELS_SIDE))
        if any(protocol.pixels for protocol in protocols.values()):
            rival = Subject(f"raw pixels {small[0]}x{small[1]}", Pixels(), small, data, preparation)
            pixels.setdefault((small, data, preparation), rival)
        name, key = f"untrained {encoder.model} ({encoder.depth} x {encoder.width})", str(encoder.arguments)
        twin = Subject(name, untrained_twin(encoder).to(device), shape, data, preparation)
        twins.setdefault((encoder.model, key, data, preparation), twin)
    yield from pixels.values()
    yield from twins.values()


def untrained_twin(encoder: Encoder) -> Encoder:
    """The same architecture with random weights, always the same."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return untrained(encoder.model, encoder.arguments)


def prepared_as(how: Preprocessing) -> Preparation:
    """The preparation of features as in an export."""
    return Preparation(pool=how.pool, crop_pct=how.crop_pct, interpolation=how.interpolation)


def protocols_of(names: Sequence[str], changes: Sequence[str]) -> dict[str, Protocol]:
    """Protocols with settings changed by `NAME.FIELD=VALUE`, by the names of their scores.

    Args:
        names: of files, import paths of modules, or other names with `NAME.name=` in `changes`. The last part of its
            path names the scores of a module.
        changes: of settings.

    Raises:
        UserError: there is no such protocol or field, or a value does not fit.
    """
    called = {name.rpartition(".")[2]: name for name in names}
    if len(called) < len(set(names)):
        raise UserError(f"--protocol {' '.join(names)}: the last parts of the names must differ")
    for change in changes:
        if (name := change.partition(".")[0]) in PROTOCOLS.names() and name not in called:
            raise UserError(f"--set {change}: {name} is not run. Add it to --protocol, or leave this out.")
    fields: Any = dict.fromkeys(called, (Annotated[Protocol, PROTOCOLS], ...))
    schema = create_model("Settings", **fields)
    start = json.dumps({label: {"name": name} for label, name in called.items()})
    return dict(parse(schema, start, changes, where="--protocol"))
