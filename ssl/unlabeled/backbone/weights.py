"""Encoders by address: an export folder, `hf-hub:OWNER/NAME`, `METHOD:FILE.pth`, `timm:NAME`,
`PACKAGE.MODULE:NAME:FOLDER`, or one of these with random weights."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from unlabeled.backbone.build import build_encoder, family_of, untrained
from unlabeled.backbone.encoder import Encoder, Pool
from unlabeled.backbone.folder import (
    IMAGENET,
    OUR_POOLS,
    Preprocessing,
    Tensors,
    check_fits,
    not_built,
    opened,
    outline,
    read_weights,
    steady,
    timm_config,
    write_export,
)
from unlabeled.backbone.importing import Family, Imported, Key, importers, read
from unlabeled.backbone.outside import PATH, usual_size
from unlabeled.errors import UserError
from unlabeled.nn.modes import without_values
from unlabeled.nn.positions import Grid
from unlabeled.paths import expand
from unlabeled.recipe.writer import as_yaml
from unlabeled.text import code

Size: TypeAlias = int | Grid | None  # side, or (height, width), pixels; None = as it is
OFFICIAL = (".pth", ".pt", ".pth.tar")  # endings of official files


@steady
def load_encoder(path: str | Path, image_size: Size = None, channels: int | None = None) -> Encoder:
    """An encoder from an export folder, from the hub `hf-hub:OWNER/NAME`, an official `METHOD:FILE.pth` (MAE's also
    without its name), `timm:NAME`, or with random weights `scratch:FOLDER` or `scratch:timm:NAME`. Of a network outside
    timm the address names the code: `PACKAGE.MODULE:NAME:FOLDER`, or with random weights `scratch:PACKAGE.MODULE:NAME`.

    Positions are resampled to `image_size`; the first convolution is summed or repeated (timm's rule) for `channels`.
    None = as exported. Raises UserError when nothing loadable is there, or weights and architecture do not match.
    """
    where, scratch = expand(str(path)).removeprefix("scratch:"), str(path).startswith("scratch:")
    if where.startswith("timm:"):
        return _from_timm(where.removeprefix("timm:"), image_size, channels, pretrained=not scratch)
    if where.endswith(OFFICIAL):
        imported, _ = read_official(expand(str(path)))
        return _build(imported.architecture, imported.arguments, imported.encoder, image_size, channels)
    if scratch and PATH.fullmatch(where):
        size = image_size or usual_size(where, channels or 3)
        return _build(where, {"img_size": _sides(size), "in_chans": channels or 3}, None, size, channels)
    folder, config = opened(where)
    weights = None if scratch else read_weights(folder / "model.safetensors")
    outline(folder, config)
    if weights and config["num_classes"]:
        raise UserError(
            f"{folder} holds a classifier, not a backbone. Name the backbone it was fine-tuned from, or give it "
            "another head with task.strategy.name=retrain."
        )
    return _build(config["architecture"], bare_arguments(config), weights, image_size, channels)


def load_weights(architecture: str, arguments: dict[str, Any], weights: Tensors | None = None) -> Encoder:
    """An encoder with such weights of its timm model, random ones without. Raises UserError when they do not fit."""
    return _build(architecture, arguments, weights, None, None)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors and their names, the first 16 hex digits."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]


@steady
def load_classifier(path: str | Path) -> tuple[Encoder, dict[str, Any], Tensors]:
    """Of an exported classifier: its architecture as an encoder with random weights, timm's arguments, all weights.

    Raises UserError when there is none.
    """
    folder, config = opened(path)
    if not config["num_classes"]:
        raise UserError(
            f"{folder} holds a backbone, not a classifier: it has no head to replace. Use another task.strategy.name."
        )
    arguments = _arguments(config)
    weights = read_weights(folder / "model.safetensors")
    check_fits(outline(folder, config), weights)
    return _network(config["architecture"], bare_arguments(config)), arguments, weights


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments of an export."""
    # timm's CNNs are not told a size, but were trained at one
    arguments = {"img_size": config["pretrained_cfg"]["input_size"][1:], **config["model_args"]}
    return arguments if config.get("norm_eps") is None else {**arguments, "norm_eps": config["norm_eps"]}


def bare_arguments(config: dict[str, Any]) -> dict[str, Any]:
    """timm's arguments of the encoder of an export."""
    architecture = config["architecture"]
    return family_of(architecture).without_head(architecture, _arguments(config))


def read_official(where: str) -> tuple[Imported, Family]:
    """The weights of `METHOD:FILE.pth` and their family. Raises UserError when there are none."""
    name, _, file = where.rpartition(":")
    if name and name not in importers():
        raise UserError(f"{where}: no official weights of '{name}'. Expected one of {', '.join(importers())}.")
    return read(name or "mae", Path(file)), importers()[name or "mae"].FAMILY


@steady
def preprocessing_of(path: str | Path) -> Preprocessing:
    """The preprocessing of whatever `load_encoder` and `load_classifier` take; an official file has ImageNet's.

    Raises UserError when there is no such thing, or it is damaged.
    """
    where, scratch = expand(str(path)).removeprefix("scratch:"), str(path).startswith("scratch:")
    if where.startswith("timm:"):
        return _as_timm_says(where.removeprefix("timm:"), scratch)
    if where.endswith(OFFICIAL):
        imported, family = read_official(where)
        size = tuple(imported.arguments["img_size"])
        return IMAGENET._replace(interpolation=family.interpolation, pool=imported.pool, size=size)
    if str(path).startswith("scratch:") and PATH.fullmatch(where):
        return IMAGENET
    _, config = opened(where)
    trained = config["pretrained_cfg"]
    pool = config.get("pool") or OUR_POOLS.get(config["model_args"].get("global_pool", config.get("global_pool")))
    how = trained["mean"], trained["std"], trained["crop_pct"], trained["interpolation"]
    return Preprocessing(*how, config.get("value_range"), pool, tuple(trained["input_size"][1:]))


def _as_timm_says(name: str, scratch: bool) -> Preprocessing:
    """Of timm; but the mean of the patches for MAE's weights, which timm pools by class token."""
    import timm

    architecture = _timms_architecture(name)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of a name after the dot
        raise UserError(f"timm has no such weights of '{name}': {error}. Name others.") from error
    if config is None:
        return IMAGENET
    of_mae = name.removeprefix(architecture).startswith(".mae")
    pool: Pool | None = "mean" if of_mae else _timms_pool(architecture, scratch)
    return Preprocessing(
        config.mean, config.std, config.crop_pct, config.interpolation, pool=pool, size=config.input_size[1:]
    )


def _timms_pool(architecture: str, scratch: bool) -> Pool | None:
    """timm's pooling of a network; that of random weights may differ (`Encoder.bare`)."""
    import timm

    family = family_of(architecture)
    with without_values():
        usual = timm.create_model(architecture, num_classes=0)
        arguments = {**family.arguments_from(usual), "in_chans": usual.in_chans}
        if build_encoder(architecture, arguments).pools_itself and not (scratch and family.bare):
            return "own"
    if not family.can_read(architecture, "cls", 1):
        return "mean"
    return OUR_POOLS.get(getattr(usual, "global_pool", ""))


def _timms_architecture(name: str) -> str:
    """Of `MODEL` or `MODEL.WEIGHTS`. Raises UserError when timm has none."""
    import timm

    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"timm has no model '{name}'. Take a name of timm.list_models().")
    return architecture


def _build(
    architecture: str,
    arguments: dict[str, Any],
    weights: Tensors | None,
    image_size: Size,
    channels: int | None,
    like: Mapping[str, Any] | None = None,
) -> Encoder:
    old: Grid = tuple(arguments["img_size"])
    size = _sides(old if image_size is None else image_size)
    arguments = {
        **family_of(architecture).resized(architecture, arguments, size, like),
        "in_chans": channels or arguments["in_chans"],
    }
    if weights is None:
        return untrained(architecture, arguments)
    encoder = _network(architecture, arguments)
    old_grid = (old[0] // encoder.patch_size, old[1] // encoder.patch_size)
    weights = encoder.fitted(weights, old_grid, encoder.vit)
    check_fits(encoder.vit, weights)
    encoder.vit.load_state_dict(weights)
    return encoder


def _sides(size: int | Grid) -> Grid:
    return (size, size) if isinstance(size, int) else size


def fitted(encoder: Encoder, shape: Grid, channels: int, like: Mapping[str, Any] | None = None) -> Encoder:
    """An encoder built for images of another size (height, width), pixels, or number of channels; see
    `Encoder.resized` for `like`.

    Raises UserError when other channels than RGB's are to be fitted.
    """
    return _build(encoder.model, encoder.arguments, dict(encoder.vit.state_dict()), shape, channels, like)


def _from_timm(name: str, image_size: Size, channels: int | None, pretrained: bool) -> Encoder:
    import timm

    family = family_of(architecture := _timms_architecture(name))
    try:
        vit = timm.create_model(name, pretrained=pretrained, num_classes=0, **({} if pretrained else family.bare))
    except Exception as error:  # a hub, a network or a file: whatever it was, the person must hear it
        raise UserError(
            f"timm cannot load the weights of '{name}': {error}. Mend the network, or name others."
        ) from error
    arguments = {**family.arguments_from(vit), "in_chans": vit.in_chans}
    return _build(architecture, arguments, dict(vit.state_dict()), image_size, channels)


def _network(architecture: str, arguments: dict[str, Any]) -> Encoder:
    try:
        return build_encoder(architecture, arguments)
    except UserError:
        raise
    except Exception as error:  # timm's networks raise what they like: whatever it was, the person must hear it
        raise not_built(architecture, error) from error


def import_official(
    name: str,
    file: Path,
    out: Path,
    heads: int | None = None,
    key: Key | None = None,
    norm_eps: float | None = None,
) -> str:
    """Write an official checkpoint as an export folder, with the heads that resume pretraining where it has them.
    Returns the recipe fields that go on from them, as YAML; without heads nothing."""
    family, imported = importers()[name].FAMILY, read(name, file, heads, key, norm_eps)
    prepared = IMAGENET._replace(interpolation=family.interpolation, pool=imported.pool)
    config = timm_config(imported.architecture, imported.arguments, imported.width, prepared)
    card = (
        f"# {family.title}\n\nImported from the official checkpoint {code(file.name)} ({family.repository}). "
        "License: see there.\n"
    )
    height, width = imported.arguments["img_size"]
    fields = as_yaml({"method": imported.method}) if imported.method else ""
    if fields:
        words = f"Pretraining goes on from it with these fields, and views of {height}x{width} pixels"
        card += f"\n{words}:\n\n```yaml\n{fields}```\n"
    write_export(out, imported.encoder, config, card, imported.heads)
    return fields


class Prepared(NamedTuple):
    """An encoder and its preprocessing, as its export says unless a command is told otherwise."""

    encoder: Encoder  # at the size that `how` says
    how: Preprocessing  # nothing in it is None but `value_range`
    words: str  # every value and where it comes from, for people


def prepare(path: str, size: int | None = None, **told: Any) -> Prepared:
    """Load an encoder as `load_encoder` does for square images of `size` pixels, and its preprocessing with the values
    of `crop_pct` and `pool` that are told; None = as exported.

    Raises UserError when there is no such encoder, or it sees other channels than its export normalises.
    """
    encoder, exported = load_encoder(path, size), preprocessing_of(path)
    if encoder.channels != len(exported.mean):
        raise UserError(
            f"{path} sees {encoder.channels} channels, but pictures would be normalised in {len(exported.mean)}. Write "
            f"{encoder.channels} values each of mean and std into the pretrained_cfg of its config.json."
        )
    exported = exported._replace(pool=exported.pool or encoder.default_pool, size=encoder.image_size)
    how = exported._replace(**(changed := {name: value for name, value in told.items() if value is not None}))
    return Prepared(encoder, how, _in_words(how, [*changed, *(["size"] if size else [])]))


def _in_words(how: Preprocessing, told: list[str]) -> str:
    """A line such as `size 224, bicubic, mean pooling: from the export; crop 0.9: as told`."""
    height, width = how.size or (0, 0)
    mean, std = ("/".join(f"{value:.3g}" for value in values) for values in (how.mean, how.std))
    words = {
        "size": f"size {height}" if height == width else f"size {height}x{width}",
        "crop_pct": f"crop {how.crop_pct:g}",
        "interpolation": how.interpolation,
        "pool": f"{(how.pool or '').replace('_', ' and ')} pooling",
        "mean": f"mean {mean}",
        "std": f"std {std}",
    }
    exported = ", ".join(text for name, text in words.items() if name not in told)
    otherwise = ", ".join(text for name, text in words.items() if name in told)
    return f"{exported}: from the export" + (f"; {otherwise}: as told" if otherwise else "")
