"""Options of commands, checked like recipes."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any, TypeVar

import torch
from pydantic import BaseModel, ValidationError

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.recipe.explain import complaint, follow, telling

M = TypeVar("M", bound=BaseModel)


def check_least(options: argparse.Namespace, **least: int) -> None:
    """Raise UserError when a number that was given is smaller than the least that makes sense."""
    for name, bound in least.items():
        if (found := getattr(options, name)) is not None and found < bound:
            raise UserError(f"--{name.replace('_', '-')} {found}: expected at least {bound}")


def check_side(encoder: Encoder, option: str, side: int | None) -> None:
    """Raise UserError when an encoder does not see squares of `side` pixels, which `option` asked for."""
    if side is None or encoder.image_size == (side, side):
        return
    patch = encoder.patch_size
    near = max(patch, side // patch * patch)
    found = f"{option} {side}: {encoder.model} has patches of {patch} pixels, which do not divide it"
    raise UserError(f"{found}. Use {near} or {near + patch}.")


def device_of(name: str, option: str = "--device ") -> torch.device:
    """The device of `option`. Raises UserError when it is not there."""
    if name == "auto":
        found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return found or torch.device("cpu")
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise UserError(f"{option}{name} cannot be used: {reason}. Use {option}auto.") from error


def checked(model: type[M], **fields: Any) -> M:
    """Make a model of options. Raises UserError with what the model complains about, by the options' names."""
    try:
        return model(**fields)
    except ValidationError as error:
        raise UserError("; ".join(_complaints(model, error, fields))) from error


def _complaints(model: type[BaseModel], error: ValidationError, fields: dict[str, Any]) -> Iterator[str]:
    for one in telling(error.errors()):
        if (spot := follow(model, one["loc"], fields)) is None:
            continue
        option = "-".join(map(str, spot.place[:1])).replace("_", "-")
        found = fields.get(str(spot.place[0])) if spot.whole else one["input"]
        said = complaint(one, spot.kind, found, spot.owner)
        yield f"--{option}: {said}" if option else said
