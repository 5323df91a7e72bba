"""Checks of the `config.json` of an export. The file may come from anybody: it may name no paths and no addresses."""

from __future__ import annotations

import json
import logging
import re
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, FailFast, Field, ValidationError, create_model, field_validator, model_validator

from unlabeled.backbone.build import families, family_of
from unlabeled.backbone.encoder import Pool
from unlabeled.backbone.outside import PATH, is_path
from unlabeled.data.source import MAX_CHANNELS, Finite, Positive, ValueRange
from unlabeled.data.view.views import Interpolation
from unlabeled.errors import UserError, first_line
from unlabeled.manifest import Damaged, describe, read_manifest
from unlabeled.recipe.faults import dotted, look_up, show

AGAIN = "Copy the whole export folder again, or name another (runs/NAME/export)."
MAX_BYTES = 16 << 20  # of a config.json: the names of 20,000 classes take one
MAX_CLASSES = 1_000_000
MAX_SIDE, MAX_RESIZED = 16384, 65536  # pixels of a network, and of a picture before its crop
SHOWN = 3  # faults in a message
ALWAYS = {"in_chans", "global_pool"}

# fields that an encoder needs, of a `config.json` and of the `pretrained_cfg` in it
FIELDS = ("architecture", "num_classes", "model_args", "pretrained_cfg")
PREPARED_FIELDS = ("input_size", "mean", "std", "crop_pct", "interpolation")

log = logging.getLogger(__name__)

Side = Annotated[int, Field(ge=1, le=MAX_SIDE)]
Channels = Annotated[int, Field(ge=1, le=MAX_CHANNELS)]
Names = Annotated[list[str], Field(max_length=MAX_CLASSES), FailFast()]


class _AnyArgs(BaseModel, strict=True):
    img_size: Annotated[list[Side], Field(min_length=2, max_length=2)] | None = None
    in_chans: Channels
    global_pool: Literal["", "token", "avg", "max", "avgmax", "map"] | None = None

    @model_validator(mode="before")
    @classmethod
    def _shape_only(cls, arguments: Any) -> Any:
        if isinstance(arguments, dict) and (others := [name for name in arguments if name not in cls.model_fields]):
            raise ValueError(f"{show(others)} do not shape a network")
        return arguments


# arguments of `timm.create_model` that shape a network; all others are refused: some load files, or ask a hub
ModelArgs: Any = create_model(
    "ModelArgs",
    __base__=_AnyArgs,
    **{name: kind for family in families().values() for name, kind in family.exported.items()},
)


class PretrainedCfg(BaseModel, strict=True):
    """The preprocessing. Other fields that timm writes here (addresses of weights) are never read."""

    input_size: Annotated[list[Side], Field(min_length=3, max_length=3)]
    mean: Annotated[list[Finite], Field(min_length=1, max_length=MAX_CHANNELS)]
    std: Annotated[list[Positive], Field(min_length=1, max_length=MAX_CHANNELS)]
    crop_pct: float = Field(gt=0, le=1)
    interpolation: Interpolation

    @model_validator(mode="after")
    def _one_of_each(self) -> PretrainedCfg:
        if len(self.mean) != len(self.std):
            raise ValueError(f"expected as many values in mean as in std, found {len(self.mean)} and {len(self.std)}")
        return self


class LinearHead(BaseModel, strict=True):
    """The features that a linear head beside a backbone reads."""

    pool: Pool
    blocks: int = Field(ge=1, le=256)
    label_names: Names = []


class Config(BaseModel, strict=True):
    """A `config.json`."""

    architecture: str
    num_classes: int = Field(ge=0, le=MAX_CLASSES)
    model_args: ModelArgs
    pool: Pool | None = None
    norm_eps: float | None = Field(None, gt=0, le=0.1)
    pretrained_cfg: PretrainedCfg
    label_names: Names = []
    linear_head: LinearHead | None = None
    value_range: Annotated[ValueRange, Field(strict=False)] | None = None

    @field_validator("architecture")
    @classmethod
    def _of_timm(cls, name: str) -> str:
        import timm

        if PATH.fullmatch(name):  # it is not imported: the address names the code
            return name
        # the name of its weights may follow: model.tag
        if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII) or not timm.is_model(name):
            raise ValueError("expected the name of a model that timm has, and no address or folder")
        return name

    @model_validator(mode="after")
    def _agrees(self) -> Config:
        self._suits_the_family()
        size = self.model_args.img_size or self.pretrained_cfg.input_size[1:]
        if (side := max(size) / self.pretrained_cfg.crop_pct) > MAX_RESIZED:
            raise ValueError(f"pictures would be resized to {side:.0f} pixels, expected at most {MAX_RESIZED:,}")
        if (channels := self.model_args.in_chans) != (seen := self.pretrained_cfg.input_size[0]):
            raise ValueError(f"model_args.in_chans is {channels}, pretrained_cfg.input_size begins with {seen}")
        if self.label_names and len(self.label_names) != self.num_classes:
            raise ValueError(f"{len(self.label_names)} label_names for {self.num_classes} classes")
        return self

    def _suits_the_family(self) -> None:
        family, arguments, told = family_of(self.architecture), self.model_args, self.model_args.model_fields_set
        if (
            others := told
            - family.exported.keys()
            - (ALWAYS | {"img_size"} if family.sized(self.architecture) else ALWAYS)
        ):
            raise ValueError(f"model_args: {show(sorted(others))} do not shape {family.in_words(self.architecture)}")
        if "img_size" not in told:
            return
        if (size := arguments.img_size) is None:
            raise ValueError("model_args.img_size=null: expected [height, width]")
        patch, most = getattr(arguments, "patch_size", None), family.most_patches(arguments.model_dump())
        if max(size) // (patch or 16) > most:
            raise ValueError(f"model_args: expected at most {most} patches in a row, found {size} pixels")
        if min(size) < (patch or 1):
            raise ValueError(f"model_args: expected pictures of at least one patch, found {size} pixels")


def read_config(folder: Path, code: str | None = None) -> dict[str, Any]:
    """The content of the `config.json` of an export; `code` is the import path of a network outside timm.

    The file may come from anybody, so that a path in it is not imported.

    Raises UserError when it is damaged, has too few fields to build and to feed the network, or others; or when it is
    of a network outside timm and there is no `code`, or the other way round.
    """
    file = folder / "config.json"
    try:
        with file.open("rb") as opened:
            data = opened.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise ValueError(f"more than {MAX_BYTES:,} bytes")
        config: Any = json.loads(data.decode("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}. {AGAIN}") from error
    if missing := _missing(config, FIELDS) or _missing(config["pretrained_cfg"], PREPARED_FIELDS):
        raise UserError(
            f"{file} is not what `unlabeled pretrain` and `unlabeled finetune` write: {', '.join(missing)} not found "
            f"in it. {AGAIN}"
        )
    _check(file, config)
    _check_code(folder, config["architecture"], code)
    with suppress(Damaged):
        if describe(data) != read_manifest(folder).get(file.name):  # people may edit it
            _say(f"{file} is not as it was written: what it says now is taken")
    return config if code is None else {**config, "architecture": code}


def _check_code(folder: Path, architecture: str, code: str | None) -> None:
    if is_path(architecture) and code is None:
        raise UserError(
            f"{folder} has the weights of '{architecture}', a network outside timm: its code is not run unless you "
            f"name it. If you trust it, use the address {architecture}:{folder}."
        )
    if code is not None and not is_path(architecture):
        raise UserError(
            f"{folder} has the weights of timm's '{architecture}': use the address {folder} without {code}."
        )


@cache
def _say(text: str) -> None:
    log.warning(text)


def _check(file: Path, config: dict[str, Any]) -> None:
    try:
        Config.model_validate(config)
    except ValidationError as error:
        faults = [_in_words(fault, config) for fault in error.errors(include_url=False)]
        more = f"; and {len(faults) - SHOWN} more" if len(faults) > SHOWN else ""
        raise UserError(f"{file} is refused: {'; '.join(faults[:SHOWN])}{more}. {AGAIN}") from error


def _in_words(fault: Any, config: dict[str, Any]) -> str:
    """One fault: its place, the value found where it is a single one, and what was expected."""
    place, message = fault["loc"], fault["msg"].removeprefix("Value error, ")
    value = look_up(config, place)
    found = "" if isinstance(value, dict | list) else f"={show(value)}"
    return f"{dotted(place)}{found}: {message}" if place else message


def _missing(section: Any, names: tuple[str, ...]) -> list[str]:
    return [name for name in names if not isinstance(section, dict) or name not in section]
