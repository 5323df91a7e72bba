"""Exports of networks on a backbone: the folder of an encoder, a section of `config.json` that says how the rest is
put together, and that rest in `heads.safetensors`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import BaseModel, Field, ValidationError
from torch import nn

from unlabeled.backbone.encoder import Encoder, Tensors
from unlabeled.backbone.folder import Preprocessing, read_weights, timm_config, write_export
from unlabeled.backbone.folder_config import AGAIN, Names, Side
from unlabeled.errors import UserError
from unlabeled.report.card import Made


class Section(BaseModel, strict=True, frozen=True):
    """A section of a `config.json`; each kind of network adds its settings.

    Attributes:
        label_names: of the classes.
        size: height and width that images are fitted into, pixels.
    """

    label_names: Names
    size: Annotated[list[Side], Field(min_length=2, max_length=2)]


S = TypeVar("S", bound=Section)


def write_section(
    folder: Path,
    encoder: Encoder,
    weights: tuple[Tensors, Tensors],
    section: tuple[str, BaseModel],
    prefix: str,
    prepared: Preprocessing,
    made: Made,
    card: str,
) -> None:
    """Write an export, see the module.

    Args:
        folder: for it.
        encoder: the backbone.
        weights: of the plain timm model, and of the whole network.
        section: its name, and the settings of the network.
        prefix: of the encoder's parameters in the network.
        prepared: how images are normalised and resized.
        made: what it was made of.
        card: of the export.

    Raises:
        UserError: it cannot be written.
    """
    backbone, whole = weights
    content = timm_config(encoder.model, encoder.arguments, encoder.width, prepared)
    name, settings = section
    content[name] = {
        "settings": settings.model_dump(mode="json"),
        "label_names": list(made.classes),
        "size": list(encoder.image_size),
    }
    heads = {name: tensor for name, tensor in whole.items() if not name.startswith(prefix)}
    write_export(folder, backbone, content, card, heads)


def section_of(folder: Path, config: dict[str, Any], name: str, kind: type[S]) -> S:
    """A section of the `config.json` of an export. Raises UserError when it is not of the kind."""
    try:
        return kind.model_validate_json(json.dumps(config[name]))
    except ValidationError as error:
        fault = error.errors(include_url=False)[0]
        where = ".".join(map(str, (name, *fault["loc"])))
        raise UserError(f"{folder}/config.json is refused: {where}: {fault['msg']}. {AGAIN}") from error


def fill_(network: nn.Module, folder: Path, what: str, prefix: str) -> None:
    """Load `heads.safetensors` into a network, which the error calls `what`; the encoder's parameters, which begin with
    a prefix, stay. Raises UserError when it does not fit."""
    heads, own = read_weights(folder / "heads.safetensors"), network.state_dict()
    fits = all(own[name].shape == tensor.shape for name, tensor in heads.items() if name in own)
    missing, unknown = network.load_state_dict(heads, strict=False) if fits else (["shapes"], [])
    if (lost := [name for name in missing if not name.startswith(prefix)]) or unknown:
        raise UserError(
            f"{folder}: heads.safetensors does not fit the {what} in config.json, such as {[*lost, *unknown][0]}. "
            f"{AGAIN}"
        )
