"""The work of a run, as a stage hands it to the engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.nn.recompute import recompute_, recomputed
from unlabeled.pretrain.method import Method
from unlabeled.train.bar import Bar
from unlabeled.train.recipe import Recipe
from unlabeled.train.watch import EarlyStopping

Evaluate = Callable[[Method], Iterator[tuple[str, float]]]


@dataclass(frozen=True)
class Job:
    """A network and its images, and what is to be measured of it.

    Attributes:
        build: makes the method, randomly initialised or with the weights to start from.
        dataset: training samples of the images, `data`.
        evaluate: yields (name, value) of a whole method; None = no evaluation.
        facts: fingerprints that a checkpoint must agree on: of the `pictures`, and of weights by the recipe's field.
        picture: called with (step, method, batch), draws them and returns the PNG; None = nothing is drawn.
        watch: early stopping and the best weights; None = the last weights count.
        bar: what a pretraining that begins with an encoder is compared with; None = it begins with none.
    """

    recipe: Recipe
    build: Callable[[], Method]
    data: Opened
    dataset: ViewDataset
    evaluate: Evaluate | None = None
    facts: Mapping[str, Any] = field(default_factory=dict)
    picture: Callable[[int, Method, Batch], Path] | None = None
    watch: EarlyStopping | None = None
    bar: Bar | None = None

    def trained(self) -> Method:
        """The method as it is trained: made by `build`, its activations kept as `run` says."""
        method = self.build()
        if self.twice(method) and (every := self.recipe.run.checkpoint_activations) is not None:
            recompute_(method, every)
        return method

    def twice(self, method: Method) -> list[nn.Module]:
        """The blocks of a method that are computed twice. Raises UserError when `run` asks for some and it has none."""
        if (every := self.recipe.run.checkpoint_activations) is None:
            return []
        if not (found := recomputed(method, every)):
            raise UserError(
                "run.checkpoint_activations: this network has no blocks that could be computed twice. Set it to null; "
                "run.accumulate saves memory too, where the method allows it."
            )
        return found
