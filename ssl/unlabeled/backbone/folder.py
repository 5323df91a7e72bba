"""Backbones on disk as plain timm model folders (`local-dir:`), and back. Nobody needs this package to read them.

export/
  model.safetensors   timm's own parameter names
  config.json         timm's local-dir format
  heads.safetensors   what else was trained (decoder, projector): to continue pretraining
  README.md           model card
  MANIFEST.json       size and SHA-256 of every other file
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, ParamSpec, TypeVar

import safetensors.torch
import torch
from torch import Tensor, nn

from unlabeled.backbone.build import build_encoder, for_timm, is_beit, is_cnn, stride_of
from unlabeled.backbone.encoder import Encoder, Pool
from unlabeled.backbone.families.beit import fit_tables, is_relative
from unlabeled.backbone.folder_config import AGAIN, read_config
from unlabeled.errors import UserError, first_line
from unlabeled.files import readable, replacing_folder
from unlabeled.manifest import MANIFEST, Damaged, parse_tensors, read_file, read_manifest, read_plain, write_folder
from unlabeled.nn.positions import Grid, resample
from unlabeled.paths import expand
from unlabeled.pretrain.method import Method

if TYPE_CHECKING:
    from unlabeled.backbone.importers import Imported

Tensors = dict[str, Tensor]
P = ParamSpec("P")
T = TypeVar("T")


def steady(read: Callable[P, T]) -> Callable[P, T]:
    """A reader of an export that begins again where another export took its place meanwhile."""

    @wraps(read)
    def whole(*arguments: P.args, **more: P.kwargs) -> T:
        folder = str(next(iter((*arguments, *more.values())))).removeprefix("scratch:")
        while True:
            before = _identity(folder)
            try:
                found = read(*arguments, **more)
            except UserError:
                if _identity(folder) == before:
                    raise
            else:
                if _identity(folder) == before:
                    return found

    return whole


def _identity(folder: str) -> int | None:
    with suppress(OSError):
        return os.stat(folder).st_ino
    return None


# poolings by timm's names for them
TIMM_POOLS = {"cls": "token", "mean": "avg", "mean_max": "avgmax", "attention": "map"}
OUR_POOLS: dict[str, Pool] = {"token": "cls", "avg": "mean", "avgmax": "mean_max"}


class Preprocessing(NamedTuple):
    """How pictures become features: normalisation per channel, the evaluation crop, what becomes of 16-bit values, how
    tokens become one vector (None = as the network's own default), and the size of the crop (None = the network's)."""

    mean: Sequence[float]
    std: Sequence[float]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    value_range: Sequence[float] | None = None
    pool: Pool | None = None
    size: Grid | None = None

    @classmethod
    def of(cls, data: Any, crop_pct: float, interpolation: str = "bicubic", pool: Pool | None = None) -> Preprocessing:
        """That of a recipe's `data:` section; parts of a mixture have ranges of their own."""
        return cls(data.mean, data.std, crop_pct, interpolation, getattr(data, "value_range", None), pool)


# how the names of official files end
OFFICIAL = (".pth", ".pt", ".pth.tar")

# values that a network may have beyond its weights: tables that follow from its size
SPARE = 1 << 24

# what timm is told of a classifier and an encoder has no use for
OF_THE_HEAD = ("global_pool", "fc_norm", "use_fc_norm")

IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def timm_config(
    architecture: str,
    arguments: dict[str, Any],
    num_features: int,
    prepared: Preprocessing,
    num_classes: int = 0,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """timm's `config.json`. `global_pool` of a ViT goes into `model_args`, where timm reads it; a CNN's is the mean.

    A backbone pools as `prepared` says, in timm by the same rule as here: after the final norm, prefix tokens left out.
    """
    import timm

    cnn, own = is_cnn(architecture), timm.get_pretrained_cfg(architecture)
    if not num_classes:
        arguments = {**arguments, **_pooled(architecture, prepared.pool)}
    pool = arguments.get("global_pool", "avg" if cnn else "token")
    size = arguments["img_size"]
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": num_features,
        "global_pool": pool,
        "model_args": for_timm(architecture, arguments if cnn else {**arguments, "global_pool": pool}),
        "pretrained_cfg": {
            "input_size": [arguments["in_chans"], *size],
            "fixed_input_size": not cnn,
            "interpolation": prepared.interpolation,
            "crop_pct": prepared.crop_pct,
            "crop_mode": "center",
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "num_classes": num_classes,
            "pool_size": [side // stride_of(architecture) for side in size] if cnn else None,
            # older timm takes all weights for RGB's, and would begin this layer anew
            "first_conv": own.first_conv if arguments["in_chans"] == 3 else None,
            "classifier": own.classifier,
        },
    }
    if not num_classes and prepared.pool is not None:
        config["pool"] = prepared.pool
    if classes:
        config["label_names"] = list(classes)
    if prepared.value_range is not None:
        config["value_range"] = list(prepared.value_range)
    return config


def _pooled(architecture: str, pool: Pool | None) -> dict[str, Any]:
    """timm's arguments for a backbone that pools so; none where timm cannot, and its first token stands in."""
    beit = is_beit(architecture)
    if is_cnn(architecture) or pool not in ("mean", "mean_max") or (beit and pool == "mean_max"):
        return {}
    return {"global_pool": TIMM_POOLS[pool], "use_fc_norm" if beit else "fc_norm": False}


def write_export(folder: Path, model: Tensors, config: dict[str, Any], card: str, heads: Tensors | None = None) -> None:
    """Write an export beside its place, then swap it in, so that a reader never sees half of one.

    Raises:
        UserError: it cannot be written; an earlier export stays as it was.
    """
    place = Path(os.path.realpath(folder))  # it may be a link to another disk
    parts = {"model": model, "heads": heads or {}}
    files = {f"{stem}.safetensors": _packed(part) for stem, part in parts.items() if part}
    files["config.json"] = (json.dumps(config, indent=2) + "\n").encode()
    files["README.md"] = card.encode()
    try:
        with replacing_folder(place) as temporary:
            write_folder(temporary, files)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}. What was there is there still. Make room, then run the same "
            "command again."
        ) from error


def export_encoder(folder: Path, encoder: Encoder, prepared: Preprocessing, card: str, heads: Tensors) -> None:
    """Export a pretrained encoder; `heads` is everything else that was trained."""
    prepared = prepared._replace(pool=prepared.pool or encoder.default_pool)
    config = timm_config(encoder.model, encoder.arguments, encoder.width, prepared)
    write_export(folder, dict(encoder.vit.state_dict()), config, card, heads)


def split_heads(method: Method) -> tuple[Encoder, Tensors]:
    """The first encoder that a method exports, and the rest of its state by name."""
    encoder = next(iter(method.exports().values()))
    prefix = _prefix_of(method, encoder)
    return encoder, {name: t for name, t in method.state_dict().items() if not name.startswith(prefix)}


def load_method(method: Method, folder: str | Path) -> None:
    """Start a method from an export: the encoder's weights, and its heads. Strict.

    Raises:
        UserError: there is no such export, or it does not fit the method.
    """
    from unlabeled.train.state import load_model

    weights, heads = _with_heads(folder)
    prefix = _prefix_of(method, next(iter(method.exports().values())))
    try:
        load_model(method, {**{f"{prefix}{name}": tensor for name, tensor in weights.items()}, **heads})
    except UserError as error:
        raise UserError(
            f"init={folder} was left by another method or network than this recipe's: {error}. Name an export of this "
            "one, or set init=null."
        ) from error


@steady
def _with_heads(path: str | Path) -> tuple[Tensors, Tensors]:
    folder = _existing(path)
    if not (folder / "heads.safetensors").exists():
        raise UserError(f"{folder} has no heads.safetensors, so pretraining cannot be continued from it")
    return read_weights(folder / "model.safetensors"), read_weights(folder / "heads.safetensors")


@steady
def load_encoder(path: str | Path, image_size: int | Grid | None = None, channels: int | None = None) -> Encoder:
    """An encoder from an export folder, an official `METHOD:FILE.pth` (MAE's also without its name), `timm:NAME`, or
    with random weights `scratch:FOLDER` or `scratch:timm:NAME`.

    Args:
        path: where from.
        image_size: side, or (height, width), pixels; positions are resampled. None = as exported.
        channels: input channels; the patch convolution is summed or repeated (timm's rule). None = as exported.

    Raises:
        UserError: nothing loadable is there, or weights and architecture do not match exactly.
    """
    where, scratch = expand(str(path)).removeprefix("scratch:"), str(path).startswith("scratch:")
    if where.startswith("timm:"):
        return _from_timm(where.removeprefix("timm:"), image_size, channels, pretrained=not scratch)
    if where.endswith(OFFICIAL):
        return _from_official(expand(str(path)), image_size, channels)
    folder = _existing(where)
    config = read_config(folder)
    arguments = {k: v for k, v in _arguments(config).items() if k not in OF_THE_HEAD}
    weights = None if scratch else read_weights(folder / "model.safetensors")
    outline(folder, config)
    if weights and config["num_classes"]:
        raise UserError(
            f"{folder} holds a classifier, not a backbone. Name the backbone it was fine-tuned from, or give it "
            "another head with task.mode=retrain."
        )
    return _build(config["architecture"], arguments, weights, image_size, channels)


def weights_digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 over tensors and their names, the first 16 hex digits."""
    hashed = hashlib.sha256()
    for name, tensor in sorted(weights.items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        hashed.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data)
    return hashed.hexdigest()[:16]


@steady
def load_classifier(path: str | Path) -> tuple[Encoder, dict[str, Any], Tensors]:
    """A classifier's architecture as an encoder with random weights, timm's arguments, and its weights, head included.

    Raises:
        UserError: there is none.
    """
    folder = _existing(path)
    config = read_config(folder)
    if not config["num_classes"]:
        raise UserError(
            f"{folder} holds a backbone, not a classifier: it has no head to replace. Use another task.mode."
        )
    arguments = _arguments(config)
    weights = read_weights(folder / "model.safetensors")
    check_fits(outline(folder, config), weights)
    bare = {k: v for k, v in arguments.items() if k not in OF_THE_HEAD}
    return _network(config["architecture"], bare), arguments, weights


def outline(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The timm model of an export, head included, as tensors without memory.

    Raises:
        UserError: it cannot be built, or would be larger than its weights.
    """
    with torch.device("meta"):
        model = _of_timm(config)
    values = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    size = (folder / "model.safetensors").stat().st_size
    if values > size + SPARE:  # a byte each is the least
        raise UserError(
            f"{folder} asks for a network of {values:,} weights, and its model.safetensors has {size:,} bytes: they "
            f"are not of one export. {AGAIN}"
        )
    return model


def load_timm(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The timm model of an export, head included, with its weights: what `local-dir:` gives, from `folder` alone.

    Raises:
        UserError: see `outline`; weights and architecture do not match.
    """
    weights = read_weights(folder / "model.safetensors")
    check_fits(outline(folder, config), weights)
    model = _of_timm(config)
    model.load_state_dict(weights)
    return model


def _of_timm(config: dict[str, Any]) -> nn.Module:
    import timm

    try:
        return timm.create_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
    except Exception as error:  # timm's networks raise what they like: whatever it was, the person must hear it
        raise _not_built(config["architecture"], error) from error


def _arguments(config: dict[str, Any]) -> dict[str, Any]:
    # timm's CNNs are not told a size, but were trained at one
    return {"img_size": config["pretrained_cfg"]["input_size"][1:], **config["model_args"]}


def _from_official(where: str, image_size: int | Grid | None, channels: int | None) -> Encoder:
    imported = _official(where)
    return _build(imported.architecture, imported.arguments, imported.encoder, image_size, channels)


def _official(where: str) -> Imported:
    from unlabeled.backbone.importers import FAMILIES, read

    family, _, file = where.rpartition(":")
    if family and family not in FAMILIES:
        raise UserError(f"{where}: no official weights of '{family}'. Expected one of {', '.join(FAMILIES)}.")
    return read(family or "mae", Path(file))


@steady
def preprocessing_of(path: str | Path) -> Preprocessing:
    """How pictures become features for whatever `load_encoder` and `load_classifier` take, also with `scratch:`.

    Raises:
        UserError: there is no such thing, or it is damaged.
    """
    where = expand(str(path)).removeprefix("scratch:")
    if where.startswith("timm:"):
        return _as_timm_says(where.removeprefix("timm:"))
    if where.endswith(OFFICIAL):
        return _as_published(where)
    config = read_config(_existing(where))
    trained = config["pretrained_cfg"]
    pool = config.get("pool") or OUR_POOLS.get(config["model_args"].get("global_pool", config.get("global_pool")))
    how = trained["mean"], trained["std"], trained["crop_pct"], trained["interpolation"]
    return Preprocessing(*how, config.get("value_range"), pool, tuple(trained["input_size"][1:]))


def _as_timm_says(name: str) -> Preprocessing:
    """timm's own, its pooling too; but the mean of the patches for MAE's weights, which timm pools by class token."""
    import timm

    architecture = _timms_architecture(name)
    try:
        config = timm.get_pretrained_cfg(name)
    except RuntimeError as error:  # of a name after the dot
        raise UserError(f"timm has no such weights of '{name}': {error}") from error
    if config is None:
        return IMAGENET
    if is_cnn(architecture) or name.removeprefix(architecture).startswith(".mae"):
        pool: Pool | None = "mean"
    else:
        with torch.device("meta"):
            pool = OUR_POOLS.get(getattr(timm.create_model(architecture, num_classes=0), "global_pool", ""))
    return Preprocessing(
        config.mean, config.std, config.crop_pct, config.interpolation, pool=pool, size=config.input_size[1:]
    )


def _as_published(where: str) -> Preprocessing:
    """ImageNet's normalisation, and the pooling that the family's own code evaluates."""
    from unlabeled.backbone.importers import FAMILIES, pool_of

    imported, name = _official(where), where.rpartition(":")[0] or "mae"
    size, interpolation = tuple(imported.arguments["img_size"]), FAMILIES[name].FAMILY.interpolation
    return IMAGENET._replace(interpolation=interpolation, pool=pool_of(name, imported), size=size)


def _timms_architecture(name: str) -> str:
    """Of a timm model, which the name of its weights may follow. Raises UserError when there is none."""
    import timm

    architecture = name.split(".")[0]
    if not timm.is_model(architecture):
        raise UserError(f"timm has no model '{name}'")
    return architecture


def adapt(weights: Tensors, old: Grid, model: Any) -> Tensors:
    """Weights of a timm model fitted to another image size or number of channels.

    Positions are resampled bicubically to the target grid, relative ones by BEiT's rule; the first convolution is
    summed or repeated over channels.

    Args:
        weights: of the timm model.
        old: (rows, columns) of their positions.
        model: the timm model they are for.

    Raises:
        UserError: other channels than RGB's are to be fitted.
    """
    from timm.models._manipulate import adapt_input_conv

    weights = dict(weights)
    first = f"{model.pretrained_cfg['first_conv']}.weight"
    channels = model.get_parameter(first).shape[1]
    found = weights[first].shape[1]
    if found != channels:
        if found != 3:
            raise UserError(f"the encoder sees {found} channels, pictures have {channels}. Only RGB's can be fitted.")
        weights[first] = adapt_input_conv(channels, weights[first])
    if is_relative(weights):
        weights = fit_tables(weights, old, model)
    if "pos_embed" not in weights:
        return weights
    table = weights["pos_embed"]
    prefix = 0 if getattr(model, "no_embed_class", False) else model.num_prefix_tokens
    patches = resample(table[:, prefix:], old, model.patch_embed.grid_size)
    weights["pos_embed"] = torch.cat([table[:, :prefix], patches], dim=1)
    return weights


def untrained(architecture: str, arguments: dict[str, Any]) -> Encoder:
    """An encoder with MAE's random initialisation and sine-cosine positions that may learn; a BEiT or a CNN with timm's
    own."""
    from unlabeled.pretrain.methods.mae import initialize_

    encoder = build_encoder(architecture, arguments)
    if is_cnn(architecture) or is_beit(architecture):
        return encoder
    encoder.fix_positions()
    initialize_(encoder)
    encoder.vit.pos_embed.requires_grad_(True)
    return encoder


def _build(
    architecture: str,
    arguments: dict[str, Any],
    weights: Tensors | None,
    image_size: int | Grid | None,
    channels: int | None,
) -> Encoder:
    old: Grid = tuple(arguments["img_size"])
    size = old if image_size is None else (image_size, image_size) if isinstance(image_size, int) else image_size
    arguments = {**arguments, "img_size": list(size), "in_chans": channels or arguments["in_chans"]}
    if weights is None:
        return untrained(architecture, arguments)
    encoder = _network(architecture, arguments)
    old_grid = (old[0] // encoder.patch_size, old[1] // encoder.patch_size)
    _load_strictly(encoder.vit, adapt(weights, old_grid, encoder.vit))
    return encoder


def _from_timm(name: str, image_size: int | Grid | None, channels: int | None, pretrained: bool) -> Encoder:
    import timm

    architecture = _timms_architecture(name)
    pool = {} if is_cnn(architecture) else {"global_pool": "token"}
    try:
        vit = timm.create_model(name, pretrained=pretrained, num_classes=0, **pool)
    except Exception as error:  # a hub, a network or a file: whatever it was, the person must hear it
        raise UserError(f"timm cannot load the weights of '{name}': {error}") from error
    if is_cnn(architecture):
        arguments = {"img_size": list(vit.pretrained_cfg["input_size"][1:])}
    else:
        patches = vit.patch_embed
        arguments = {"img_size": list(patches.img_size), "patch_size": patches.patch_size[0]}
    return _build(architecture, {**arguments, "in_chans": vit.in_chans}, dict(vit.state_dict()), image_size, channels)


def _network(architecture: str, arguments: dict[str, Any]) -> Encoder:
    try:
        return build_encoder(architecture, arguments)
    except Exception as error:  # timm's networks raise what they like: whatever it was, the person must hear it
        raise _not_built(architecture, error) from error


def _not_built(architecture: str, error: Exception) -> UserError:
    return UserError(f"the network '{architecture}' cannot be built: {first_line(error)}")


def _load_strictly(vit: nn.Module, weights: Tensors) -> None:
    check_fits(vit, weights)
    vit.load_state_dict(weights)


def check_fits(model: nn.Module, weights: Tensors) -> None:
    """Raise UserError when weights are not those of a timm model: by name, by shape, or whole numbers for fractions."""
    own = model.state_dict()
    wrong = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
        "of another shape": [n for n, tensor in own.items() if n in weights and weights[n].shape != tensor.shape],
        "of another kind": [n for n, t in own.items() if n in weights and _kind(t) != _kind(weights[n])],
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(names)} {what}, such as {names[0]}" for what, names in wrong.items() if names)
        raise UserError(f"weights and architecture do not match: {found}. They are not of one export. {AGAIN}")


def _kind(tensor: Tensor) -> tuple[bool, bool]:
    return tensor.is_floating_point(), tensor.is_complex()


def _existing(path: str | Path) -> Path:
    folder = readable(Path(expand(str(path))))
    missing = [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]
    if missing:
        inside = folder / "export"
        mend = "Pretrain first, or name the folder that pretrain.py printed (runs/NAME/export)."
        if (inside / "config.json").is_file():
            mend = f"It is a run's folder: name {inside}."
        raise UserError(f"{folder} is not an export: {' and '.join(missing)} not found. {mend}")
    return folder


def read_weights(file: Path) -> Tensors:
    """The tensors of a file of an export, as its manifest says they are; exports of older versions have none.

    Raises:
        UserError: they cannot be read, or are not what was written.
    """
    try:
        return parse_tensors(_checked(file))
    except (Damaged, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}. {AGAIN}") from error


def _checked(file: Path) -> bytes:
    if not os.path.lexists(file.with_name(MANIFEST)):
        return read_plain(file)
    return read_file(file.parent, file.name, read_manifest(file.parent))


def _packed(tensors: Tensors) -> bytes:
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def _prefix_of(method: Method, encoder: Encoder) -> str:
    return next(f"{name}.vit." for name, module in method.named_modules() if module is encoder)
