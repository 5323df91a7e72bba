"""What all importers share: reading a `.pth` safely, sorting its names, checking that they fit exactly."""

from __future__ import annotations

import argparse
import math
import pickle
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.nn.families import build_encoder

Tensors = dict[str, Tensor]
Key = Literal["student", "teacher"]

# the width whose timm model stands in for one of an unofficial width
BASE = 768


class Family(NamedTuple):
    """One official repository.

    Attributes:
        name: as on the command line.
        title: for a person.
        repository: owner/name on GitHub.
        known: width -> (timm model, attention heads) of its models.
        keys: the networks that a full checkpoint holds; empty = one only.
        default_key: the one that the paper evaluates.
        interpolation: how pictures are resized in its evaluation.
        pool: how tokens of its ViTs become a picture's one vector there; a ResNet's are averaged.
    """

    name: str
    title: str
    repository: str
    known: dict[int, tuple[str, int]]
    keys: tuple[Key, ...] = ()
    default_key: Key = "student"
    interpolation: str = "bicubic"
    pool: Literal["cls", "mean"] = "cls"


class Rule(NamedTuple):
    """Where official names that begin with `official` belong: to the encoder, to the heads, or nowhere. `ours` replaces
    the beginning."""

    official: str
    to: Literal["encoder", "heads", "dropped"]
    ours: str = ""


class Imported(NamedTuple):
    """Official weights under our names.

    Attributes:
        architecture: a timm model.
        arguments: what `timm.create_model` needs beside it.
        width: of its features.
        encoder: weights of the timm model.
        heads: everything else of the method's state, to resume pretraining; empty for backbone files.
    """

    architecture: str
    arguments: dict[str, Any]
    width: int
    encoder: Tensors
    heads: Tensors


def read_pth(file: Path) -> dict[str, Any]:
    """What a `.pth` holds: tensors, plain values and settings.

    Raises:
        UserError: it is missing, or holds anything that would have to be run.
    """
    if not file.is_file():
        raise UserError(f"no file {file}")
    try:
        # training checkpoints hold their settings: argparse's, or yacs's, which become ordered dicts
        with torch.serialization.safe_globals([argparse.Namespace, (OrderedDict, "yacs.config.CfgNode")]):
            loaded = torch.load(file, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise UserError(f"{file} is refused: it cannot be read as plain weights ({first})") from error
    if not isinstance(loaded, dict):
        raise UserError(f"{file} holds a {type(loaded).__name__}, expected a dict of weights")
    return loaded


def unwrap(weights: Mapping[str, Tensor], prefix: str = "module.") -> Tensors:
    """Names without the prefix that a wrapper gave to all of them."""
    whole = bool(weights) and all(name.startswith(prefix) for name in weights)
    return {name.removeprefix(prefix) if whole else name: tensor for name, tensor in weights.items()}


def sort(family: Family, weights: Mapping[str, Tensor], rules: Sequence[Rule]) -> tuple[Tensors, Tensors]:
    """Encoder and heads of official weights; the first rule that a name begins with decides.

    Raises:
        UserError: a name follows no rule.
    """
    sorted_: dict[str, Tensors] = {"encoder": {}, "heads": {}, "dropped": {}}
    stray = []
    for name, tensor in weights.items():
        rule = next((rule for rule in rules if name.startswith(rule.official)), None)
        if rule is None:
            stray.append(name)
        else:
            sorted_[rule.to][rule.ours + name.removeprefix(rule.official)] = tensor
    if stray:
        raise UserError(f"not {family.title}: unexpected {_some(stray)}")
    return sorted_["encoder"], sorted_["heads"]


def vit_arguments(family: Family, encoder: Tensors, heads: int | None) -> tuple[str, dict[str, Any]]:
    """The timm model of an encoder's weights, and its arguments.

    Raises:
        UserError: the weights are no transformer's, or nobody says how many heads it has.
    """
    width, channels, patch = patch_shape(family, encoder)
    table = encoder["pos_embed"].shape[1] if "pos_embed" in encoder else 0
    side = round((table - 1) ** 0.5) * patch if table else 0
    model, number = known_model(family, width, heads)
    arguments = {"img_size": [side, side], "patch_size": patch, "in_chans": channels}
    arguments |= {"embed_dim": width, "depth": depth_of(encoder), "num_heads": number}
    no_output_bias = {} if "blocks.0.attn.proj.bias" in encoder else {"proj_bias": False}
    return model, {**arguments, **block_arguments(encoder, width), **no_output_bias}


def block_arguments(encoder: Tensors, width: int) -> dict[str, Any]:
    """What the first block says of its MLP and of its queries' biases; empty where both are as in most models."""
    weight = encoder.get("blocks.0.mlp.fc1.weight")
    hidden = 4 * width if weight is None or weight.ndim != 2 else len(weight)
    has_bias = {"blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias"} & encoder.keys()
    return {
        **({} if hidden == 4 * width else {"mlp_ratio": _ratio(hidden, width)}),
        **({} if has_bias else {"qkv_bias": False}),
    }


def _ratio(hidden: int, width: int) -> float:
    """Their quotient, so that timm's `int(width * ratio)` is `hidden` again."""
    ratio = hidden / width
    return ratio if int(width * ratio) == hidden else math.nextafter(ratio, math.inf)


def patch_shape(family: Family, encoder: Tensors) -> tuple[int, int, int]:
    """(width, channels, patch size) of an encoder's weights."""
    convolution = encoder.get("patch_embed.proj.weight")
    if convolution is None or convolution.ndim != 4 or not depth_of(encoder):
        raise UserError(f"not {family.title}: missing patch_embed.proj.weight or blocks.*, found {_some(encoder)}")
    width, channels, patch, _ = convolution.shape
    return width, channels, patch


def depth_of(encoder: Tensors) -> int:
    """Number of blocks."""
    numbers = (name.split(".")[1] for name in encoder if name.startswith("blocks."))
    return 1 + max((int(number) for number in numbers if number.isdigit()), default=-1)


def known_model(family: Family, width: int, heads: int | None) -> tuple[str, int]:
    """(timm model, attention heads) of an official width, or of `heads`: their number cannot be seen in weights."""
    model, official = family.known.get(width, (family.known[BASE][0], None))
    number = heads or official
    if number is None:
        widths = ", ".join(map(str, family.known))
        raise UserError(
            f"no official model of {family.title} is {width} wide (only {widths}), so its number of heads is unknown. "
            "Pass --heads."
        )
    if width % number:
        raise UserError(f"{number} heads do not divide a width of {width}")
    return model, number


def checked(family: Family, architecture: str, arguments: dict[str, Any], encoder: Tensors, heads: Tensors) -> Imported:
    """Official weights that fit the timm model exactly, by name and shape.

    Raises:
        UserError: they do not.
    """
    with torch.device("meta"):
        model = build_encoder(architecture, arguments)
    expected = model.vit.state_dict()
    missing, unexpected = expected.keys() - encoder.keys(), encoder.keys() - expected.keys()
    if missing or unexpected:
        raise UserError(f"not {family.title}: missing {_some(missing)}, unexpected {_some(unexpected)}")
    wrong = {name: list(t.shape) for name, t in encoder.items() if t.shape != expected[name].shape}
    if wrong:
        raise UserError(f"not {family.title}: shapes {wrong} do not fit {architecture} with {arguments}")
    return Imported(architecture, arguments, model.width, encoder, heads)


def _some(names: Any) -> str:
    found = sorted(names)
    return str(found) if len(found) <= 8 else f"{found[:8]} and {len(found) - 8} more"
