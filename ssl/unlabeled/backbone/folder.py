"""Writing and reading exports: plain timm model folders (`local-dir:`), which timm reads without this package.

export/
  model.safetensors   timm's own parameter names
  config.json         timm's local-dir format
  heads.safetensors   the rest of the method (decoder, projector): to continue pretraining
  README.md           model card
  MANIFEST.json       size and SHA-256 of every other file
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple, ParamSpec, TypeVar

import safetensors.torch
from torch import Tensor, nn

from unlabeled.backbone.build import family_of
from unlabeled.backbone.encoder import Encoder, Pool, Tensors
from unlabeled.backbone.folder_config import AGAIN, read_config
from unlabeled.backbone.hub import PREFIX, downloaded
from unlabeled.backbone.norms import eps_of, set_eps_
from unlabeled.backbone.outside import PATH, split_address
from unlabeled.errors import UserError, first_line
from unlabeled.files import readable, replacing_folder
from unlabeled.manifest import MANIFEST, Damaged, parse_tensors, read_file, read_manifest, read_plain, write_folder
from unlabeled.nn.modes import without_values
from unlabeled.nn.positions import Grid
from unlabeled.paths import expand

P = ParamSpec("P")
T = TypeVar("T")


def steady(read: Callable[P, T]) -> Callable[P, T]:
    """A reader of an export that starts again when another export takes its place meanwhile."""

    @wraps(read)
    def whole(*arguments: P.args, **more: P.kwargs) -> T:
        _, folder = split_address(str(next(iter((*arguments, *more.values())))).removeprefix("scratch:"))
        while True:
            before = _identity(folder)
            try:
                found = read(*arguments, **more)
            except UserError:
                if _identity(folder) == before:
                    raise
                continue
            if _identity(folder) == before:
                return found

    return whole


def _identity(folder: str) -> int | None:
    with suppress(OSError):
        return os.stat(folder).st_ino
    return None


# poolings of features by timm's names for them
OUR_POOLS: dict[str, Pool] = {"token": "cls", "avg": "mean", "avgmax": "mean_max"}


class Preprocessing(NamedTuple):
    """How images become features: normalisation per channel, evaluation crop, range of 16-bit values, pooling of the
    tokens (None = the network's default), and size of the crop (None = the network's)."""

    mean: Sequence[float]
    std: Sequence[float]
    crop_pct: float = 0.875
    interpolation: str = "bicubic"
    value_range: Sequence[float] | None = None
    pool: Pool | None = None
    size: Grid | None = None

    @classmethod
    def of(cls, data: Any, crop_pct: float, interpolation: str = "bicubic", pool: Pool | None = None) -> Preprocessing:
        """The preprocessing of a recipe's `data:` section; parts of a mixture have ranges of their own."""
        return cls(data.mean, data.std, crop_pct, interpolation, getattr(data, "value_range", None), pool)


# for a card
EPS = """
## eps of the norms

The layer norms of this network have eps {eps:g}. timm has no argument for it and builds them with another, which
changes the features; set it after loading:

```python
for module in model.modules():
    if hasattr(module, "eps"):
        module.eps = {eps!r}
```
"""
SPARE = 1 << 24  # values that a network may have beyond its weights: tables that follow from its size
IMAGENET = Preprocessing((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


def timm_config(
    architecture: str,
    arguments: dict[str, Any],
    num_features: int,
    prepared: Preprocessing,
    num_classes: int = 0,
    classes: Sequence[str] = (),
) -> dict[str, Any]:
    """timm's `config.json` for a classifier or, without classes, a backbone.

    A backbone pools as `prepared` says, in timm by the same rule as here: after the final norm, prefix tokens left out.
    """
    family, size = family_of(architecture), arguments["img_size"]
    first, classifier = family.layers_in_timm(architecture)
    told = family.in_timm(architecture, arguments, None if num_classes else prepared.pool)
    config: dict[str, Any] = {
        "architecture": architecture,
        "num_classes": num_classes,
        "num_features": num_features,
        "global_pool": told.pool,
        "model_args": told.arguments,
        "pretrained_cfg": {
            "input_size": [arguments["in_chans"], *size],
            "fixed_input_size": family.sized(architecture),
            "interpolation": prepared.interpolation,
            "crop_pct": prepared.crop_pct,
            "crop_mode": "center",
            "mean": list(prepared.mean),
            "std": list(prepared.std),
            "num_classes": num_classes,
            "pool_size": told.grid,
            # older timm takes all weights for RGB's, and would begin this layer anew
            "first_conv": first if arguments["in_chans"] == 3 else None,
            "classifier": classifier,
        },
    }
    if not num_classes and prepared.pool is not None:
        config["pool"] = prepared.pool
    eps = arguments.get("norm_eps")
    if eps is not None and eps_of(_on_meta(config)) != {eps}:
        config["norm_eps"] = eps
    if classes:
        config["label_names"] = list(classes)
    if prepared.value_range is not None:
        config["value_range"] = list(prepared.value_range)
    return config


def packed(tensors: Tensors) -> bytes:
    """Tensors as a file of safetensors: on the CPU, and none in the memory of another."""
    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    return safetensors.torch.save(plain, metadata={"format": "pt"})


def write_export(folder: Path, model: Tensors, config: dict[str, Any], card: str, heads: Tensors | None = None) -> None:
    """Write an export as a whole: a reader never sees half of one.

    Raises UserError when it cannot be written; an earlier export stays as it was.
    """
    place = Path(os.path.realpath(folder))  # it may be a link to another disk
    files: dict[str, bytes] = {}
    for stem, tensors in (("model", model), ("heads", heads)):
        if tensors:
            files[f"{stem}.safetensors"] = packed(tensors)
    if "norm_eps" in config:
        card += EPS.format(eps=config["norm_eps"])
    files |= {"config.json": (json.dumps(config, indent=2) + "\n").encode(), "README.md": card.encode()}
    try:
        with replacing_folder(place) as temporary:
            write_folder(temporary, files)
    except OSError as error:
        raise UserError(
            f"cannot write {folder}: {error.strerror}. What was there is there still. Make room, then run the same "
            "command again."
        ) from error


def export_encoder(folder: Path, encoder: Encoder, prepared: Preprocessing, card: str, heads: Tensors) -> None:
    """Write a pretrained encoder as an export; `heads` are the rest of its method."""
    prepared = prepared._replace(pool=prepared.pool or encoder.default_pool)
    config = timm_config(encoder.model, encoder.arguments, encoder.width, prepared)
    write_export(folder, dict(encoder.vit.state_dict()), config, card, heads)


def outline(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The timm model of an export, head included, on the meta device.

    Raises UserError when it cannot be built, or would be larger than its weights.
    """
    model = _on_meta(config)
    values = sum(tensor.numel() for tensor in (*model.parameters(), *model.buffers()))
    size = (folder / "model.safetensors").stat().st_size
    if values > size + SPARE:  # a byte each is the least
        raise UserError(
            f"{folder} asks for a network of {values:,} weights, and its model.safetensors has {size:,} bytes: they "
            f"are not of one export. {AGAIN}"
        )
    return model


def load_timm(folder: Path, config: dict[str, Any]) -> nn.Module:
    """The timm model of an export, head included, with its weights, as `local-dir:` gives it.

    Raises UserError as `outline` does, and when weights and architecture do not match.
    """
    model = outline(folder, config)
    weights = family_of(config["architecture"]).named_for(read_weights(folder / "model.safetensors"), model)
    check_fits(model, weights)
    model = _of_timm(config)
    model.load_state_dict(weights)
    return model


def _on_meta(config: dict[str, Any]) -> nn.Module:
    with without_values():
        return _of_timm(config)


def _of_timm(config: dict[str, Any]) -> nn.Module:
    try:
        model = family_of(config["architecture"]).from_export(config)
    except UserError:
        raise
    except Exception as error:  # timm's networks raise what they like: whatever it was, the person must hear it
        raise not_built(config["architecture"], error) from error
    if config.get("norm_eps") is not None:
        set_eps_(model, config["norm_eps"])
    return model


def not_built(architecture: str, error: Exception) -> UserError:
    """An error that names the network."""
    return UserError(f"the network '{architecture}' cannot be built: {first_line(error)}")


def check_fits(model: nn.Module, weights: Tensors) -> None:
    """Raise UserError when weights are not those of a timm model: by name, by shape, or whole numbers for fractions."""

    def kind(tensor: Tensor) -> tuple[bool, bool]:
        return tensor.is_floating_point(), tensor.is_complex()

    own = model.state_dict()
    wrong = {
        "missing": [name for name in own if name not in weights],
        "unknown": [name for name in weights if name not in own],
        "of another shape": [n for n, tensor in own.items() if n in weights and weights[n].shape != tensor.shape],
        "of another kind": [n for n, tensor in own.items() if n in weights and kind(weights[n]) != kind(tensor)],
    }
    if any(wrong.values()):
        found = "; ".join(f"{len(names)} {what}, such as {names[0]}" for what, names in wrong.items() if names)
        raise UserError(f"weights and architecture do not match: {found}. They are not of one export. {AGAIN}")


def opened(address: str | Path) -> tuple[Path, dict[str, Any]]:
    """The folder of an export and the content of its `config.json`, for an address: FOLDER, hf-hub:OWNER/NAME, or of a
    network outside timm PACKAGE.MODULE:NAME: and one of these.

    Only the address decides what code is imported. Raises UserError when there is no export, or it is of a network
    outside timm and the address does not name its code.
    """
    code, where = split_address(expand(str(address)))
    folder = existing(where)
    return folder, read_config(folder, code)


def existing(path: str | Path) -> Path:
    """The folder of an export. Raises UserError when it is none."""
    if PATH.fullmatch(str(path)) and not Path(path).exists():
        raise UserError(
            f"{path} names the code of a network and no weights. Name an export too, {path}:runs/NAME/export, or "
            f"scratch:{path} for random weights."
        )
    folder = downloaded(str(path)) if str(path).startswith(PREFIX) else readable(Path(expand(str(path))))
    if missing := [name for name in ("config.json", "model.safetensors") if not (folder / name).is_file()]:
        mend = "Pretrain first, or name the folder that `unlabeled pretrain` printed (runs/NAME/export)."
        if (folder / "export/config.json").is_file():
            mend = f"It is a run's folder: name {folder / 'export'}."
        raise UserError(f"{folder} is not an export: {' and '.join(missing)} not found. {mend}")
    return folder


def read_weights(file: Path) -> Tensors:
    """The tensors of a file of an export, as its manifest says they are; exports of older versions have none.

    Raises UserError when they cannot be read, or are not what was written.
    """
    try:
        if not os.path.lexists(file.with_name(MANIFEST)):
            return parse_tensors(read_plain(file))
        return parse_tensors(read_file(file.parent, file.name, read_manifest(file.parent)))
    except (Damaged, OSError) as error:
        raise UserError(f"{file} cannot be read: {error}. {AGAIN}") from error
