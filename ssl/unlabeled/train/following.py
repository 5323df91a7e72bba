"""Fields of a recipe that follow from the weights that it begins with, unless it says them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from unlabeled.backbone.address import Found, find
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.source import SOURCES
from unlabeled.evaluate.evaluation import Evaluation
from unlabeled.pretrain.method import METHODS


def following(said: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Changes `a.b=value` for what a recipe leaves open, and those that keep what it would have said without them.

    The network, its channels and normalisation follow from the weights at `init`. A section `method.encoder` that is
    not there at all keeps the settings of its method that are no part of the network, such as drop path.

    Args:
        said: by the recipe, not validated.

    Raises:
        UserError: there is nothing loadable at `init`.
    """
    address, method = said.get("init"), said.get("method")
    if not isinstance(address, str) or not isinstance(method, dict):
        return [], []
    found = find(address)
    data, section = said.get("data"), method.get("encoder", {})
    taken = dict([*_of_data(found, data, section), *_of_evaluation(found, said.get("evaluate"))])
    kept: dict[str, Any] = {}
    if isinstance(section, dict):
        network = _network(found, data, section)
        usual = {name: field.default for name, field in EncoderConfig.model_fields.items()}
        open_ = {name: value for name, value in network.items() if name not in section and value != usual[name]}
        taken |= {f"method.encoder.{name}": value for name, value in open_.items()}
        if "encoder" not in method:
            kept = {f"method.encoder.{name}": value for name, value in _of_method(method.get("name"), network)}
    changes, keeping = ([f"{path}={json.dumps(value)}" for path, value in some.items()] for some in (taken, kept))
    return changes, keeping


def _network(found: Found, data: Any, section: Mapping[str, Any]) -> dict[str, Any]:
    """Fields of the encoder, with the channels of the pictures; none where the recipe names another network."""
    fields = found.encoder.fields()
    if section.get("model", fields["model"]) != fields["model"]:
        return {}
    mean = data.get("mean") if isinstance(data, dict) else None
    if isinstance(mean, list):
        fields["channels"] = len(mean)
    return {name: value for name, value in fields.items() if value is not None}


def _of_method(name: Any, network: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """What the encoder of a method is set to, as far as a network has it and it does not decide the network."""
    with suppress(ValueError):  # of a method that there is not: validation says so
        default = METHODS.kind(str(name)).model_fields["encoder"].get_default(call_default_factory=True)
        for field in ("interpolation", "drop_path", "drop_path_uniform"):
            with suppress(ValidationError):
                EncoderConfig.model_validate({**network, field: getattr(default, field)})
                yield field, getattr(default, field)


def _of_data(found: Found, data: Any, section: Any) -> Iterator[tuple[str, Any]]:
    """Normalisation, and the range of values where a source has one."""
    if not isinstance(data, dict):
        return
    with suppress(ValueError):  # of a source that there is not: validation says so
        fields, how = SOURCES.kind(str(data.get("name"))).model_fields, found.how
        channels = section.get("channels") if isinstance(section, dict) else None
        theirs, usual = (tuple(how.mean), tuple(how.std)), (fields["mean"].default, fields["std"].default)
        if not {"mean", "std"} & data.keys() and channels in (None, len(how.mean)) and theirs != usual:
            yield from (("data.mean", list(how.mean)), ("data.std", list(how.std)))
        if "value_range" in fields.keys() - data.keys() and how.value_range is not None:
            yield "data.value_range", list(how.value_range)


def _of_evaluation(found: Found, evaluate: Any) -> Iterator[tuple[str, Any]]:
    with suppress(ValidationError):  # timm has interpolations that are none here
        Evaluation.model_validate({"interpolation": found.how.interpolation})
        if isinstance(evaluate, dict) and "interpolation" not in evaluate:
            yield "evaluate.interpolation", found.how.interpolation
