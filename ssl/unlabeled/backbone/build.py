"""From a timm name to its family in `families/`, and to an encoder."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from functools import cache
from typing import Any

from unlabeled.backbone.encoder import Encoder
from unlabeled.nn.positions import Interpolation

PACKAGE = "unlabeled.backbone.families"


@cache
def families() -> dict[str, type[Encoder]]:
    """The final class of every file in `families/`, by file name."""
    found: dict[str, type[Encoder]] = {}
    for _, name, _ in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__):
        module = importlib.import_module(f"{PACKAGE}.{name}")
        own = [one for one in vars(module).values() if getattr(one, "__module__", None) == module.__name__]
        [found[name]] = (one for one in own if isinstance(one, type) and issubclass(one, Encoder))
    return found


@cache
def family_of(model: str) -> type[Encoder]:
    """The family of a timm model, by name: the one that claims it most closely."""
    return max(families().values(), key=lambda family: family.claims(model))


def build_encoder(
    model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size", drop_path: float = 0.0
) -> Encoder:
    """An encoder with random weights: see `Encoder.build`."""
    return family_of(model).build(model, arguments, interpolation, drop_path)


def copy_encoder(encoder: Encoder) -> Encoder:
    """The same encoder once more, built anew and with its weights; also on the meta device."""
    twin = type(encoder).build(encoder.model, encoder.arguments, encoder.interpolation)
    twin.load_state_dict(encoder.state_dict())
    return twin


def untrained(model: str, arguments: Mapping[str, Any]) -> Encoder:
    """An encoder with the random weights from which its family is trained without pretraining."""
    encoder = build_encoder(model, arguments)
    encoder.initialise_("scratch")
    return encoder
