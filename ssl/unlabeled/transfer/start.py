"""What fine-tuning starts from: a backbone, or a classifier that is to get another head; fitted only where asked."""

from __future__ import annotations

from typing import Any

import torch

from unlabeled.errors import UserError
from unlabeled.export import load_classifier, load_encoder
from unlabeled.nn.conv import ConvEncoder
from unlabeled.nn.encoder import Encoder
from unlabeled.transfer.build import Trained


def load_start(recipe: Any) -> tuple[Encoder, Trained | None]:
    """The encoder of a recipe at the size of its view; for `retrain` also the classifier that it came with.

    Raises:
        UserError: there is none, it is of the wrong kind, or of another size or number of channels than the pictures
            and the recipe does not say to adapt it.
    """
    with torch.random.fork_rng(devices=()):  # weights that are random follow from the seed
        torch.manual_seed(recipe.seed)
        return _load(recipe)


def _load(recipe: Any) -> tuple[Encoder, Trained | None]:
    shape, channels = recipe.task.view.shape, recipe.data.channels
    if recipe.task.mode == "retrain":
        encoder, arguments, weights = load_classifier(recipe.encoder)
        check_fits(encoder, recipe)
        arguments |= {"img_size": list(shape), "in_chans": channels}
        return encoder, Trained(arguments, weights)
    encoder = load_encoder(recipe.encoder)
    if encoder.image_size == shape and encoder.channels == channels:
        return encoder, None
    if not recipe.encoder.startswith("scratch:"):
        check_fits(encoder, recipe)
    return load_encoder(recipe.encoder, shape, channels), None


def check_fits(encoder: Encoder, recipe: Any) -> None:
    """Raise UserError when the encoder must be fitted to the pictures in a way that `adapt` does not name."""
    shape, channels = recipe.task.view.shape, recipe.data.channels
    if encoder.channels != channels and "channels" not in recipe.adapt:
        raise UserError(
            f"the encoder sees {encoder.channels} channels, the pictures have {channels} (the values of data.mean and "
            "data.std). Give both as many values as it has channels, or set adapt=[channels] to sum or repeat its "
            "first layer."
        )
    same = isinstance(encoder, ConvEncoder) or encoder.image_size == shape
    if not same and "size" not in recipe.adapt:
        height, width = encoder.image_size
        raise UserError(
            f"the encoder was trained at {height}x{width} pixels, task.view.size is {shape[0]}x{shape[1]}. Set "
            f"task.view.size=[{height},{width}], or adapt=[size] to resample its positions."
        )
