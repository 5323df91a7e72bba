"""What a recipe trains, and on what: for the programs, and for who looks before they start."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from unlabeled.backbone.families.cnn import ConvEncoder
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Order, steps_per_epoch, total_steps
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.rescale import Rescaled, Setting, check_epochs, rescale
from unlabeled.transfer.labels import Labelled, labelled

if TYPE_CHECKING:
    from unlabeled.backbone.encoder import Encoder
    from unlabeled.transfer.build import Trained


class Training(NamedTuple):
    """A network and its pictures.

    Attributes:
        build: makes the method, randomly initialised or with the weights to start from.
        dataset: training samples.
        rescaled: what the length of the run changed in the method's settings.
        pictures: with labels, of fine-tuning: those that are learnt from, watched and scored.
        weights: digest of those that fine-tuning starts from; None where they are random.
    """

    build: Callable[[], Method]
    dataset: ViewDataset
    rescaled: list[Rescaled]
    pictures: Labelled | None = None
    weights: str | None = None


def pretraining(recipe: Any) -> Training:
    """The method and the pictures of a recipe for pretrain.py.

    Raises:
        UserError: they cannot be had, or do not fit together.
    """
    from unlabeled.train.heads import load_method

    source, train = recipe.data.open("train"), recipe.train
    steps = total_steps(train.epochs, steps_per_epoch(len(source), train.batch_size))
    check_epochs(recipe.method, train.epochs)
    config, rescaled = rescale(recipe.method, Setting(train.batch_size, train.epochs, steps))

    def build() -> Method:
        method = config.build()
        if recipe.init:
            load_method(method, recipe.init)
        return method

    return Training(build, ViewDataset(source, config.views, config.encoder.patch_size, recipe.seed), rescaled)


def finetuning(recipe: Any) -> Training:
    """The classifier and the labelled pictures of a recipe for finetune.py.

    Raises:
        UserError: they cannot be had, or do not fit together.
    """
    from unlabeled.transfer.classify import Classifier
    from unlabeled.transfer.score import check_preprocessing
    from unlabeled.transfer.start import load_start
    from unlabeled.transfer.sweep import LinearSweep

    check_preprocessing(recipe)
    task, pictures = recipe.task, labelled(recipe)
    encoder, trained = load_start(recipe)
    # the network takes crops of any size where it has no patches
    _check_crop(task.view, 1 if isinstance(encoder, ConvEncoder) else encoder.patch_size)
    counts = np.bincount(pictures.train.labels, minlength=len(pictures.train.classes)).tolist()
    dataset = ViewDataset(
        pictures.train,
        [task.view],
        encoder.patch_size,
        recipe.seed,
        mixing=task.mixing,
        order=Order(pictures.train.labels, task.balance, task.balance_from, task.repeats),
    )

    def build() -> Method:
        if task.mode == "sweep":
            return LinearSweep(encoder, task, counts)
        return Classifier(encoder, task, counts, trained)

    return Training(build, dataset, [], pictures, _digest(recipe, encoder, trained))


def _digest(recipe: Any, encoder: Encoder, trained: Trained | None) -> str | None:
    from unlabeled.backbone.weights import weights_digest

    if recipe.encoder.startswith("scratch:"):
        return None
    return weights_digest(encoder.state_dict() if trained is None else trained.weights)


def _check_crop(view: View, patch: int) -> None:
    try:
        view.check(patch)
    except ValueError as error:
        raise UserError(f"task.view: {error}") from error
