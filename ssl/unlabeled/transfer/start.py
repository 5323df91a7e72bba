"""What fine-tuning starts from: a backbone, or a classifier that is to get another head; fitted only where asked."""

from __future__ import annotations

import json
from typing import Any

import torch
from pydantic import BaseModel

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import Preprocessing
from unlabeled.backbone.weights import load_classifier, load_encoder, preprocessing_of
from unlabeled.errors import UserError
from unlabeled.recipe import dump, parse
from unlabeled.transfer.build import Trained


def complete(recipe: Any) -> tuple[Any, list[str]]:
    """A recipe whose encoder decides what it does not say of pictures: size, crop, pooling, interpolation and
    normalisation. Also those fields, as `a.b=value`.

    Raises:
        UserError: there is no such encoder, or what it says does not fit the rest.
    """
    wanted = _of_the_encoder(recipe, preprocessing_of(recipe.encoder))
    taken = [f"{path}={json.dumps(value)}" for path, value in wanted.items() if not is_said(recipe, path)]
    if not taken:
        return recipe, []
    return parse(type(recipe), dump(recipe), taken, where=f"as {recipe.encoder} was trained"), taken


def _of_the_encoder(recipe: Any, how: Preprocessing) -> dict[str, Any]:
    """Fields of a recipe, by path, as the encoder has them; none where the recipe is about to change them."""
    task = recipe.task
    wanted: dict[str, Any] = {"task.crop_pct": how.crop_pct}
    if how.size is not None:
        wanted["task.view.size"] = list(how.size)
    if not is_said(recipe, "task.view.interpolation"):
        wanted["task.interpolation"] = how.interpolation
    # an attentive head pools by itself, a classifier as it was trained, and no classifier reads both kinds of tokens
    if how.pool not in (None, "cls_mean") and task.mode not in ("attentive", "retrain"):
        wanted["task.pool"] = how.pool
    alike = len(how.mean) == recipe.data.channels or "channels" not in recipe.adapt
    if alike and not is_said(recipe, "data.mean") and not is_said(recipe, "data.std"):
        wanted |= {"data.mean": list(how.mean), "data.std": list(how.std)}
    if "value_range" in type(recipe.data).model_fields and how.value_range is not None:
        wanted["data.value_range"] = list(how.value_range)
    return wanted


def is_said(recipe: BaseModel, path: str) -> bool:
    """Whether a recipe has a field of its own accord, and not by default."""
    section: Any = recipe
    for name in path.split("."):
        if name not in section.model_fields_set:
            return False
        section = getattr(section, name)
    return True


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
    same = not encoder.sized or encoder.image_size == shape
    if not same and "size" not in recipe.adapt:
        height, width = encoder.image_size
        raise UserError(
            f"the encoder was trained at {height}x{width} pixels, task.view.size is {shape[0]}x{shape[1]}. Set "
            f"task.view.size=[{height},{width}], or adapt=[size] to resample its positions."
        )
