"""The weights that fine-tuning starts from: an encoder's, or a classifier's that is to get another head."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from pydantic import BaseModel

from unlabeled.backbone.address import Adapt, check_adapt
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.weights import fitted, load_classifier, load_encoder, preprocessing_of, weights_digest
from unlabeled.data.source import SourceConfig
from unlabeled.errors import UserError
from unlabeled.transfer.network import Trained
from unlabeled.transfer.task import TaskConfig


class Start(NamedTuple):
    """The start of a fine-tuning."""

    encoder: Encoder  # at the size of its images; of a classifier with random weights
    trained: Trained | None  # the classifier, where it starts from one
    digest: str | None  # of the weights; None where they are random


def of_the_encoder(address: str, data: SourceConfig, task: TaskConfig, adapt: Adapt) -> dict[str, Any]:
    """Fields that a recipe may leave to its encoder, by path: size, crop, pooling, interpolation and normalisation.

    Raises UserError when there is no such encoder.
    """
    how = preprocessing_of(address)
    wanted = task.left_to_the_encoder(how)
    alike = len(how.mean) == data.channels or "channels" not in adapt
    if alike and not data.model_fields_set & {"mean", "std"}:
        wanted |= {"data.mean": list(how.mean), "data.std": list(how.std)}
    if "value_range" in type(data).model_fields and how.value_range is not None:
        wanted["data.value_range"] = list(how.value_range)
    return wanted


def is_said(section: BaseModel, path: str) -> bool:
    """Whether a section sets a field, by its path within, itself and not by default."""
    value: Any = section
    for name in path.split("."):
        if name not in value.model_fields_set:
            return False
        value = getattr(value, name)
    return True


def load_start(
    address: str, shape: tuple[int, int], channels: int, adapt: Adapt, seed: int, classifier: bool = False
) -> Start:
    """Load an encoder and fit it to the images; or a classifier, whose weights stay as they are.

    Args:
        shape: (height, width) of the images, pixels.
        adapt: what may be fitted.
        seed: of weights that are random.
        classifier: whether the address is that of a classifier.

    Raises:
        UserError: there is none, it is of the wrong kind, or it must be fitted in a way that `adapt` does not name.
    """
    random = address.startswith("scratch:")
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(seed)
        if classifier:
            encoder, arguments, weights = load_classifier(address)
            check_adapt(encoder, shape, channels, adapt, ["task.view.size"])
            arguments = encoder.resized(encoder.model, arguments, shape)
            trained = Trained({**arguments, "in_chans": channels}, weights)
            return Start(encoder, trained, None if random else weights_digest(weights))
        encoder = load_encoder(address)
        if encoder.image_size != shape or encoder.channels != channels:
            if random:
                encoder = load_encoder(address, shape, channels)
            else:
                check_adapt(encoder, shape, channels, adapt, ["task.view.size"])
                encoder = fitted(encoder, shape, channels)
    return Start(encoder, None, None if random else weights_digest(encoder.state_dict()))


def check_preprocessing(address: str, data: SourceConfig) -> None:
    """Raise UserError when the backbone was pretrained on pixels that were scaled or normalised otherwise."""
    prepared = preprocessing_of(address)
    theirs, ours = (tuple(prepared.mean), tuple(prepared.std)), (data.mean, data.std)
    # a mean of other channels cannot be the same: whether they may be fitted is another question, see `check_adapt`
    if theirs != ours and len(prepared.mean) == data.channels:
        raise UserError(
            f"the encoder was pretrained with mean {theirs[0]} and std {theirs[1]}, the recipe says {ours[0]} and "
            f"{ours[1]}. Set data.mean and data.std to the encoder's."
        )
    scaled = Preprocessing.of(data, 1.0).value_range
    if prepared.value_range != (None if scaled is None else list(scaled)):
        raise UserError(
            f"the encoder was pretrained with a value_range of {prepared.value_range}, the recipe says {scaled}. Set "
            "data.value_range to the encoder's."
        )
