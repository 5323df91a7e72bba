"""What a recipe trains, and on what: for the programs, and for who looks before they start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from unlabeled.data.loader import ViewDataset
from unlabeled.data.part import Part
from unlabeled.data.sampler import steps_per_epoch, total_steps
from unlabeled.data.subset import stratified
from unlabeled.errors import UserError
from unlabeled.method import Method
from unlabeled.rescale import Rescaled, Setting, check_epochs, rescale


class Training(NamedTuple):
    """A network and its pictures.

    Attributes:
        build: makes the method, randomly initialised or with the weights to start from.
        dataset: training samples.
        rescaled: what the length of the run changed in the method's settings.
    """

    build: Callable[[], Method]
    dataset: ViewDataset
    rescaled: list[Rescaled]


def pretraining(recipe: Any) -> Training:
    """The method and the pictures of a recipe for pretrain.py.

    Raises:
        UserError: they cannot be had, or do not fit together.
    """
    from unlabeled.export import load_method

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
    from unlabeled.export import load_encoder
    from unlabeled.transfer.classify import Classifier
    from unlabeled.transfer.score import check_preprocessing

    check_preprocessing(recipe)
    task, source = recipe.task, recipe.data.open("train")
    if not source.classes:
        raise UserError("fine-tuning needs labels: put the pictures of data.train into one folder per class")
    part = Part(source, stratified(source.labels, task.fraction, task.fraction_seed))
    encoder = load_encoder(recipe.encoder, task.view.shape, recipe.data.channels)
    task.view.check(encoder.patch_size)
    dataset = ViewDataset(part, [task.view], encoder.patch_size, recipe.seed)
    return Training(lambda: Classifier(encoder, task, len(source.classes)), dataset, [])
