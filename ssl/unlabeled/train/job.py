"""What a stage hands to the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.opened import Opened
from unlabeled.pretrain.method import Batch, Method
from unlabeled.pretrain.rescale import Rescaled
from unlabeled.train.recipe import Recipe
from unlabeled.train.watch import EarlyStopping

Evaluate = Callable[[Method], Iterator[tuple[str, float]]]


class Job(NamedTuple):
    """What to run.

    Attributes:
        recipe: as resolved; `seed`, `train`, `optim`, `run`, `data` are read here.
        build: makes the method, randomly initialised or with the weights to start from.
        data: the images of the recipe.
        dataset: training samples.
        evaluate: yields (name, value) of a whole method; None = nothing.
        facts: what a checkpoint must agree on beside the recipe (the data's fingerprint).
        picture: called with (step, method, batch), draws them and returns the PNG; None = nothing is drawn.
        watch: reads one of the evaluated values: the best weights, plateaus, early stopping; None = nobody does.
        every: steps between evaluations; None = only at the end.
    """

    recipe: Recipe
    build: Callable[[], Method]
    data: Opened
    dataset: ViewDataset
    evaluate: Evaluate | None
    facts: dict[str, Any]
    picture: Callable[[int, Method, Batch], Path] | None = None
    watch: EarlyStopping | None = None
    every: int | None = None


class Training(NamedTuple):
    """A network and its pictures.

    Attributes:
        build: makes the method, randomly initialised or with the weights to start from.
        data: the images of the recipe.
        dataset: training samples.
        rescaled: what the length of the run changed in the method's settings.
        pictures: with labels, of fine-tuning: those that are learnt from, watched and scored.
        weights: digest of those that fine-tuning starts from; None where they are random.
    """

    build: Callable[[], Method]
    data: Opened
    dataset: ViewDataset
    rescaled: list[Rescaled]
    pictures: Any = None
    weights: str | None = None
