"""Official weights under our names: the contract of `importers/NAME.py`, and the parts that they share.

NAME.py has a `FAMILY`, and `convert(checkpoint, heads, key) -> Imported`: which names of a checkpoint belong to the
encoder, which to heads that resume pretraining, which are dropped; and the recipe fields that resume it. A `.pth` is
read with `weights_only=True`: a pickle in it never runs.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.encoder import Tensors
from unlabeled.backbone.pth import read_pth
from unlabeled.backbone.resuming import mlp_ratio
from unlabeled.errors import UserError, first_line
from unlabeled.nn.modes import without_values
from unlabeled.recipe.faults import show

Key = Literal["student", "teacher"]

PACKAGE = "unlabeled.backbone.importers"
MOST_BLOCKS, MOST_NAMES = 256, 8
MOST_EPS = 0.1
BASE = 768  # the width whose timm model stands in for unofficial widths

# ResNets by (blocks of each stage, whether they have three convolutions)
LAYOUTS: dict[tuple[tuple[int, ...], bool], str] = {
    ((2, 2, 2, 2), False): "resnet18",
    ((3, 4, 6, 3), False): "resnet34",
    ((3, 4, 6, 3), True): "resnet50",
    ((3, 4, 23, 3), True): "resnet101",
    ((3, 8, 36, 3), True): "resnet152",
}
SIDE = 224
OTHER = "Name the method that the file is of (`unlabeled import --help`), or download the file again."


class Family(NamedTuple):
    """One official repository."""

    title: str  # of its models, with an article, for messages
    repository: str  # owner/name on GitHub
    known: dict[int, tuple[str, int]]  # width -> (timm model, attention heads) of its models
    keys: tuple[Key, ...] = ()  # the networks that a full checkpoint holds; empty = one only
    default_key: Key = "student"  # the one that the paper evaluates
    interpolation: str = "bicubic"  # of resizing in its evaluation
    pool: Literal["cls", "mean"] = "cls"  # of a ViT's tokens in its evaluation; a ResNet's are averaged


class Rule(NamedTuple):
    """The place of official names that begin with `official`: in the encoder, in the heads, or nowhere. `ours` replaces
    the beginning."""

    official: str
    to: Literal["encoder", "heads", "dropped"]
    ours: str = ""


class Imported(NamedTuple):
    """Official weights under our names."""

    architecture: str  # a timm model
    arguments: dict[str, Any]  # of `timm.create_model`
    width: int  # of its features
    encoder: Tensors  # weights of the timm model
    heads: Tensors  # the rest of the method's state, to resume pretraining; empty for backbone files
    pool: Literal["cls", "mean", "own"]  # of its features in the official evaluation
    method: dict[str, Any] = {}  # noqa: RUF012 - fields of a recipe's `method:` that goes on from the heads


def importer_names() -> list[str]:
    """The names of the files in `importers/`, without importing them."""
    return sorted(module.name for module in pkgutil.iter_modules(importlib.import_module(PACKAGE).__path__))


@cache
def importers() -> dict[str, Any]:
    """The modules of `importers/` by name."""
    return {name: importlib.import_module(f"{PACKAGE}.{name}") for name in importer_names()}


def read(
    name: str, file: Path, heads: int | None = None, key: Key | None = None, norm_eps: float | None = None
) -> Imported:
    """Read an official `.pth`, backbone or full, by the file `name` in `importers/`.

    `heads` are the encoder's attention heads, None = the official number for its width; `key` is one of two networks,
    None = the one that its paper evaluates; `norm_eps` is that of the layer norms, None = the official one. Raises
    UserError when the file cannot be read safely, or holds something else than the family's models.
    """
    module = importers()[name]
    if key is not None and key not in module.FAMILY.keys:
        raise UserError(f"{module.FAMILY.title} checkpoint holds no {key} of its own. Leave out --key.")
    if heads is not None and heads < 1:
        raise UserError(f"--heads {heads}: expected at least 1")
    checkpoint = read_pth(file)
    try:
        imported = module.convert(checkpoint, heads, key or module.FAMILY.default_key)
        return imported if norm_eps is None else with_eps(imported, norm_eps)
    except (AttributeError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        if isinstance(error, UserError):
            raise
        # an official file has all that `convert` takes for granted
        raise UserError(
            f"{file} is not {module.FAMILY.title}: {type(error).__name__}: {first_line(error)}. {OTHER}"
        ) from error


def with_eps(imported: Imported, eps: float) -> Imported:
    """The same with another eps in its layer norms, those of a decoder with them: official code has one for both.

    Raises UserError when it is out of bounds, or the network has no such norms.
    """
    if not 0 < eps <= MOST_EPS:
        raise UserError(f"--norm-eps {eps:g}: expected above 0, at most {MOST_EPS}")
    if "embed_dim" not in imported.arguments:
        raise UserError(f"{imported.architecture} has no layer norms. Leave out --norm-eps.")
    method = {
        name: {**section, "norm_eps": eps} if name in ("encoder", "decoder", "predictor") else section
        for name, section in imported.method.items()
    }
    return imported._replace(arguments={**imported.arguments, "norm_eps": eps}, method=method)


def named(family: Family, weights: Any) -> Tensors:
    """The same, if it is weights by name. Raises UserError when it is something else."""
    if not isinstance(weights, dict):
        raise UserError(f"not {family.title}: found a {type(weights).__name__} where weights by name are expected")
    for name, tensor in weights.items():
        if not isinstance(name, str) or not isinstance(tensor, Tensor):
            raise UserError(
                f"not {family.title}: {show(name)} is a {type(tensor).__name__}, expected tensors with names"
            )
    return weights


def unwrap(family: Family, weights: Any, prefix: str = "module.") -> Tensors:
    """Weights without the prefix that a wrapper gave to all names. Raises UserError when they are something else."""
    weights = named(family, weights)
    whole = bool(weights) and all(name.startswith(prefix) for name in weights)
    return {name.removeprefix(prefix) if whole else name: tensor for name, tensor in weights.items()}


def sort(family: Family, weights: Any, rules: Sequence[Rule]) -> tuple[Tensors, Tensors]:
    """(encoder, heads) of official weights, each name by the first rule that it begins with.

    Raises UserError when they are no weights by name, or a name follows no rule.
    """
    sorted_: dict[str, Tensors] = {"encoder": {}, "heads": {}, "dropped": {}}
    stray = []
    for name, tensor in named(family, weights).items():
        rule = next((rule for rule in rules if name.startswith(rule.official)), None)
        if rule is None:
            stray.append(name)
        else:
            sorted_[rule.to][rule.ours + name.removeprefix(rule.official)] = tensor
    if stray:
        raise UserError(f"not {family.title}: unexpected {some(stray)}. {OTHER}")
    return sorted_["encoder"], sorted_["heads"]


def any_arguments(family: Family, encoder: Tensors, heads: int | None) -> tuple[str, dict[str, Any]]:
    """(timm model, arguments) of the weights of a ViT or a ResNet.

    Raises UserError as `vit_arguments` does, or when a ResNet is none of timm's, or is given attention heads.
    """
    if "layer1.0.conv1.weight" not in encoder:
        return vit_arguments(family, encoder, heads)
    return resnet_arguments(family, encoder, heads)


def resnet_arguments(family: Family, encoder: Tensors, heads: int | None) -> tuple[str, dict[str, Any]]:
    """(timm model, arguments) of the weights of a ResNet.

    Raises UserError when it is none of timm's, or is given attention heads.
    """
    if heads is not None:
        raise UserError("a ResNet has no attention heads. Leave out --heads.")
    blocks = tuple(len({n.split(".")[1] for n in encoder if n.startswith(f"layer{i}.")}) for i in range(1, 5))
    model = LAYOUTS.get((blocks, "layer1.0.conv3.weight" in encoder))
    if model is None or "conv1.weight" not in encoder:
        known = ", ".join(LAYOUTS.values())
        raise UserError(f"not {family.title}: a ResNet with stages of {blocks} blocks is none of {known}. {OTHER}")
    return model, {"img_size": [SIDE, SIDE], "in_chans": shape_of(family, encoder, "conv1.weight", 4)[1]}


def vit_arguments(family: Family, encoder: Tensors, heads: int | None) -> tuple[str, dict[str, Any]]:
    """(timm model, arguments) of a transformer's weights.

    Raises UserError when they are no transformer's, or the number of attention heads is not known.
    """
    width, channels, patch = patch_shape(family, encoder)
    side = round(max(0, shape_of(family, encoder, "pos_embed", 3)[1] - 1) ** 0.5) * patch
    model, number = known_model(family, width, heads)
    arguments = {"img_size": [side, side], "patch_size": patch, "in_chans": channels}
    arguments |= {"embed_dim": width, "depth": depth_of(family, encoder), "num_heads": number}
    no_output_bias = {} if "blocks.0.attn.proj.bias" in encoder else {"proj_bias": False}
    return model, {**arguments, **block_arguments(encoder, width), **no_output_bias}


def block_arguments(encoder: Tensors, width: int) -> dict[str, Any]:
    """Arguments for the MLP and the biases of the first block, where they are not those of most models."""
    weight = encoder.get("blocks.0.mlp.fc1.weight")
    hidden = 4 * width if weight is None or weight.ndim != 2 else len(weight)
    has_bias = {"blocks.0.attn.qkv.bias", "blocks.0.attn.q_bias"} & encoder.keys()
    ratio = mlp_ratio(hidden, width)
    return {**({} if ratio == 4 else {"mlp_ratio": ratio}), **({} if has_bias else {"qkv_bias": False})}


def patch_shape(family: Family, encoder: Tensors) -> tuple[int, int, int]:
    """(width, channels, patch size) of an encoder's weights."""
    if "patch_embed.proj.weight" not in encoder or not depth_of(family, encoder):
        raise UserError(
            f"not {family.title}: missing patch_embed.proj.weight or blocks.*, found {some(encoder)}. {OTHER}"
        )
    width, channels, patch, _ = shape_of(family, encoder, "patch_embed.proj.weight", 4)
    return width, channels, patch


def shape_of(family: Family, encoder: Tensors, name: str, rank: int) -> tuple[int, ...]:
    """The shape of a weight. Raises UserError when it is missing, empty, or has another number of axes."""
    tensor = encoder.get(name)
    if tensor is None or tensor.ndim != rank or not tensor.numel():
        found = "nothing" if tensor is None else str(list(tensor.shape))
        raise UserError(f"not {family.title}: expected {name} with {rank} axes, found {found}")
    return tuple(tensor.shape)


def depth_of(family: Family, encoder: Tensors) -> int:
    """The number of blocks. Raises UserError unless they are numbered from 0 without a gap."""
    numbers = {name.split(".")[1] for name in encoder if name.startswith("blocks.")}
    if len(numbers) > MOST_BLOCKS or numbers != {str(number) for number in range(len(numbers))}:
        raise UserError(
            f"not {family.title}: found blocks {some(numbers)}; expected 0, 1, 2 and so on, at most {MOST_BLOCKS}"
        )
    return len(numbers)


def known_model(family: Family, width: int, heads: int | None) -> tuple[str, int]:
    """(timm model, attention heads) of an official width, or with `heads`: weights do not show their number."""
    model, official = family.known.get(width, (family.known[BASE][0], None))
    number = heads or official
    if number is None:
        widths = ", ".join(map(str, family.known))
        raise UserError(
            f"no official model of {family.title} is {width} wide (only {widths}), so its number of heads is unknown. "
            "Pass --heads to `unlabeled import`, and name the folder that it writes."
        )
    if width % number:
        raise UserError(f"{number} heads do not divide a width of {width}. Give --heads another number.")
    return model, number


def checked(
    family: Family,
    architecture: str,
    arguments: dict[str, Any],
    encoder: Tensors,
    heads: Tensors,
    method: dict[str, Any] | None = None,
) -> Imported:
    """Official weights that fit the timm model exactly, by name and shape. Raises UserError when they do not."""
    try:
        with without_values():
            model = build_encoder(architecture, arguments)
    except Exception as error:  # timm's networks raise what they like
        raise UserError(
            f"not {family.title}: {architecture} cannot be built with {arguments}: {error}. {OTHER}"
        ) from error
    expected = model.vit.state_dict()
    if expected.keys() != encoder.keys():
        missing, unexpected = expected.keys() - encoder.keys(), encoder.keys() - expected.keys()
        raise UserError(f"not {family.title}: missing {some(missing)}, unexpected {some(unexpected)}. {OTHER}")
    if wrong := [f"{name} {list(t.shape)}" for name, t in encoder.items() if t.shape != expected[name].shape]:
        raise UserError(f"not {family.title}: shapes {some(wrong)} do not fit {architecture} with {arguments}. {OTHER}")
    if broken := [n for n, t in encoder.items() if t.is_floating_point() != expected[n].is_floating_point()]:
        raise UserError(f"not {family.title}: {some(broken)} are {encoder[broken[0]].dtype}, expected fractions")
    if broken := [name for name, tensor in encoder.items() if not tensor.isfinite().all()]:
        raise UserError(f"{some(broken)} hold NaN or infinite values. Download the file again.")
    pool = family.pool if family.pool in model.pools else model.default_pool
    return Imported(architecture, arguments, model.width, encoder, heads, pool, method if heads and method else {})


def some(names: Iterable[str]) -> str:
    """The first names in a message, and how many more there are."""
    found = sorted(names)
    shown = f"[{', '.join(map(show, found[:MOST_NAMES]))}]"
    return shown if len(found) <= MOST_NAMES else f"{shown} and {len(found) - MOST_NAMES} more"
