"""Any other network of timm: its last feature map, or its sequence of tokens, as timm's own code gives it.

ResNet, ConvNeXt, EfficientNet, MobileNet, MaxViT, XCiT and about eighty more modules. Positions of the map are the
patches; a network without a map, such as CoaT, has one patch, its pooled vector.
"""

from __future__ import annotations

import functools
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import (
    TIMM_POOLS,
    Encoder,
    Fill,
    Hidden,
    Hiding,
    InTimm,
    Pool,
    Tensors,
    Tokens,
    fit_channels,
    outline_of,
)
from unlabeled.errors import first_line
from unlabeled.nn.batchnorm import synchronise_
from unlabeled.nn.modes import without_values
from unlabeled.nn.positions import Grid, Interpolation

PROBE_SIDE = 256
FIELDS = ("model", "stride", "patch_size", "channels", "drop_path", "zero_init")  # of recipes
CHANNELS_LAST = ("cuda",)  # devices whose convolutions are fastest where the channels of a pixel lie side by side


class Outline(NamedTuple):
    """The output of a network for images of one size, found on the meta device."""

    layout: Literal["channels_first", "channels_last", "sequence", "vector"]
    grid: Grid  # (rows, columns) of the map
    prefix: int  # tokens before those of the map
    class_token: bool
    pool: Literal["cls", "mean", "own"]  # timm's pooling: a class token, a plain mean, or anything else


class Maps(Encoder):
    """Wraps a timm model as it is. A patch is its total stride, though a position sees more.

    Patches can be neither dropped nor replaced, but zero in the maps of a CNN. Batch normalisation sees the global
    batch; names and values of the state dict are timm's.
    """

    hides: ClassVar[frozenset[Hiding]] = frozenset({"zero"})
    names: ClassVar[str] = "resnet*, convnext* or other CNN"
    resnet_heads: ClassVar[bool] = True
    noun: ClassVar[str] = "the network "
    exported: ClassVar[Mapping[str, Any]] = {
        "zero_init_last": (bool | None, None),
        "output_stride": (Literal[8, 16, 32], 32),
    }
    readable = 1

    def __init__(
        self, vit: nn.Module, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        super().__init__(vit, model, arguments, interpolation)
        stride = arguments.get("output_stride")
        self.outline = outline(model, self.image_size, stride)
        self.patch_size, self.num_prefix = stride or stride_of(model), self.outline.prefix
        self.native_grid = self.outline.grid
        if self.outline.layout == "vector":
            self.width = int(self.vit.head_hidden_size)

    @classmethod
    def claims(cls, model: str) -> int:
        return 1

    @classmethod
    def patch_size_of(cls, model: str) -> int:
        return stride_of(model)

    @classmethod
    def takes_any_size(cls, model: str) -> bool:
        return not cls.sized(model)

    @classmethod
    def sized(cls, model: str) -> bool:
        import timm

        config = timm.get_pretrained_cfg(model)
        return config is not None and bool(config.fixed_input_size)

    @classmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        words = cls.in_words(others["model"])
        if name == "stride" and changed and not _takes_stride(others["model"], value):
            raise ValueError(f"timm cannot change the stride of {words}: leave it out, found {value}")
        if name == "patch_size" and value != (stride := others.get("stride") or stride_of(others["model"])):
            raise ValueError(f"the patches of {words} are its stride, {stride}: leave it out, found {value}")
        if name not in FIELDS and changed:
            raise ValueError(f"{words} has no {name}: leave it out, found {value}")
        if name == "zero_init" and changed and not _takes_zero_init(others["model"]):
            raise ValueError(f"timm has no choice of how the norms of {words} begin: leave it out, found {value}")

    @classmethod
    def can_read(cls, model: str, pool: Pool, blocks: int) -> bool:
        return blocks == 1 and (not pool.startswith("cls") or outline(model).class_token)

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        told = {"zero_init_last": fields["zero_init"], "output_stride": fields["stride"]}
        return {name: value for name, value in told.items() if value is not None}

    @classmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        return {"img_size": list(vit.pretrained_cfg["input_size"][1:])}

    @classmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        import timm

        paths = {"drop_path_rate": drop_path} if drop_path else {}
        try:
            network = timm.create_model(model, num_classes=classes, **paths, **_of_timm(model, arguments))
        except TypeError as error:
            raise ValueError(
                f"timm cannot build '{model}' with drop_path {drop_path}: {error}. Set drop_path=0."
            ) from error
        synchronise_(network)
        return network

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        size: Grid = tuple(arguments["img_size"])
        grid = list(outline(model, size, arguments.get("output_stride")).grid)
        return InTimm(arguments.get("global_pool", _pool_name(outline_of(model))), _of_timm(model, arguments), grid)

    @classmethod
    def fitted(cls, weights: Tensors, old: Grid, model: Any) -> Tensors:
        """See `Encoder`; tables of positions are resampled by timm's rule for this network."""
        weights, own = fit_channels(weights, model), model.state_dict()
        if not _misfits(weights, own):
            return weights
        resample = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
        weights = dict(resample(weights, model)) if resample else weights
        # buffers that follow from the size, such as indices of relative positions
        return {**weights, **{name: own[name] for name in _misfits(weights, own) & dict(model.named_buffers()).keys()}}

    @classmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        size = (images.shape[-2], images.shape[-1])
        return [_tokens(model, outline(model.pretrained_cfg["architecture"], size), model.forward_features(images))]

    @property
    def blocks_in_python(self) -> str:  # type: ignore[override]
        """See `Encoder`."""
        prefix = self.num_prefix
        return {
            "channels_first": "blocks = [(model.forward_features(images).flatten(2).mT, None)]",
            "channels_last": "blocks = [(model.forward_features(images).flatten(1, 2), None)]",
            "sequence": f"x = model.forward_features(images)\nblocks = [(x[:, {prefix}:], x[:, :{prefix}])]",
            "vector": "blocks = [(model(images).unsqueeze(1), None)]",
        }[self.outline.layout]

    @property
    def image_size(self) -> Grid:
        height, width = self.arguments["img_size"]
        return height, width

    @functools.cached_property
    def _stages(self) -> dict[str, int]:
        return stages(self.vit)

    @property
    def depth(self) -> int:
        return max(self._stages.values())

    @property
    def has_class_token(self) -> bool:
        return self.outline.class_token

    @property
    def pools_itself(self) -> bool:
        return self.outline.pool == "own"

    @property
    def pools(self) -> tuple[str, ...]:
        if self.outline.pool == "own":
            return ("own",)
        return self.outline.pool, *(["mean_max"] if self.outline.layout == "channels_first" else []), "own"

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        if drop is not None or replace is not None:
            raise ValueError(f"{self.in_words(self.model)} cannot drop or replace patches. Use a vit_* model.")
        size = (images.shape[-2], images.shape[-1])
        known = size == self.image_size
        about = self.outline if known else outline(self.model, size, self.arguments.get("output_stride"))
        if about.layout == "channels_first":
            images = self._laid_out(images)
        return _tokens(self.vit, about, self.vit.forward_features(images))

    def stages(self, images: Tensor) -> list[Tensor]:
        return super().stages(self._laid_out(images) if self.outline.layout == "channels_first" else images)

    def _laid_out(self, images: Tensor) -> Tensor:
        """Images in the memory layout that is fastest where they are; all maps follow."""
        if images.device.type in CHANNELS_LAST and takes_channels_last(self.model):
            return images.contiguous(memory_format=torch.channels_last)
        return images

    def layer_of(self, name: str) -> int:
        return self._stages.get(name, self.depth + 1)

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        # timm's default is not spelt out, so that the arguments stay those of the encoder
        told = {"global_pool": TIMM_POOLS[pool]} if pool == "mean_max" else {}
        return {**self.arguments, **told, "img_size": list(size)}


def _tokens(network: Any, about: Outline, raw: Any) -> Tokens:
    """The output of `forward_features` as tokens."""
    if about.layout == "channels_first":
        patches, grid = raw.flatten(2).transpose(1, 2), (raw.shape[-2], raw.shape[-1])
    elif about.layout == "channels_last":
        patches, grid = raw.flatten(1, 2), (raw.shape[1], raw.shape[2])
    elif about.layout == "sequence":
        patches, grid = raw[:, about.prefix :], about.grid
        return Tokens(raw[:, : about.prefix], patches, grid, raw)
    else:
        patches, grid = network.forward_head(raw, pre_logits=True).unsqueeze(1), (1, 1)
    return Tokens(patches[:, :0], patches, grid, raw)


def _misfits(weights: Tensors, own: Tensors) -> set[str]:
    """Names of weights that a network does not have, or has in another shape."""
    return {name for name in own.keys() | weights.keys() if name not in weights or name not in own} | {
        name for name in own.keys() & weights.keys() if own[name].shape != weights[name].shape
    }


def _of_timm(model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments without the image size where timm's network does not take it."""
    return {key: value for key, value in arguments.items() if key != "img_size" or _takes_size_argument(model)}


@functools.cache
def _takes_size_argument(model: str) -> bool:
    import timm

    if not Maps.sized(model):
        return False
    try:
        with without_values():
            timm.create_model(model, num_classes=0, img_size=timm.get_pretrained_cfg(model).input_size[1:])
    except TypeError:
        return False
    return True


@functools.cache
def _takes_zero_init(model: str) -> bool:
    import timm

    try:
        with without_values():
            timm.create_model(model, num_classes=0, zero_init_last=False)
    except TypeError:
        return False
    return True


def stages(network: Any) -> dict[str, int]:
    """The stage of every parameter by name: 0 for the stem, 1 and up for stages, as timm groups them; where timm does
    not, the parts of the network in order."""
    from timm.models import group_parameters

    with suppress(AssertionError, AttributeError):  # a few networks have no groups, or fine ones alone
        groups: dict[str, int] = group_parameters(network, network.group_matcher(coarse=True), reverse=True)
        return groups
    parts: dict[str, int] = {}
    for name, _ in network.named_parameters():
        top, second, *_ = f"{name}.".split(".")
        part = f"{top}.{second}" if isinstance(getattr(network, top), nn.Sequential | nn.ModuleList) else top
        parts[name] = parts.setdefault(f"part {part}", len({key for key in parts if key.startswith("part ")}))
    return {name: number for name, number in parts.items() if not name.startswith("part ")}


def _on_meta(model: str, size: Grid, stride: int | None = None) -> Any:
    import timm

    told = _of_timm(model, {"img_size": list(size), **({"output_stride": stride} if stride else {})})
    with without_values():
        return timm.create_model(model, num_classes=0, **told).eval()


@functools.cache
def takes_channels_last(model: str) -> bool:
    """Whether a timm model can compute with maps in this memory layout; a few look at their memory as it usually is."""
    import timm

    size: Grid = tuple(timm.get_pretrained_cfg(model).input_size[1:])
    network = _on_meta(model, size)
    try:
        network.forward_features(torch.empty(2, 3, *size, device="meta").contiguous(memory_format=torch.channels_last))
    except RuntimeError:
        return False
    return True


@functools.cache
def outline(model: str, size: Grid | None = None, stride: int | None = None) -> Outline:
    """The output of a timm model for images of (height, width) pixels, by default its own size, at its own total stride
    or another. Raises ValueError when it cannot encode them."""
    import timm

    own: Grid = tuple(timm.get_pretrained_cfg(model).input_size[1:])
    size = size or own
    try:
        network = _on_meta(model, size, stride)
        with torch.device("meta"):
            images = torch.empty(1, 3, *size)
            raw = network.forward_features(images)
            pooled = network.forward_head(_detached(raw), pre_logits=True)
    except Exception as error:  # timm's networks raise what they like
        raise ValueError(
            f"{Maps.in_words(model)} cannot encode images of {size[0]}x{size[1]} pixels: {first_line(error)}. It was "
            f"made for {own[0]}x{own[1]}"
        ) from error
    if pooled.ndim != 2:
        raise ValueError(f"the output of {Maps.in_words(model)} cannot be read: its features are {list(pooled.shape)}")
    return _read(network, images, raw, pooled)


def _read(network: Any, images: Tensor, raw: Any, pooled: Tensor) -> Outline:
    """See `outline`."""
    width, token = network.num_features, isinstance(getattr(network, "cls_token", None), Tensor)
    if isinstance(raw, Tensor) and raw.ndim == 4 and width in (raw.shape[1], raw.shape[3]):
        first = raw.shape[1] == width
        sides = (raw.shape[2], raw.shape[3]) if first else (raw.shape[1], raw.shape[2])
        plain = first and not pooled.requires_grad and pooled.shape[1] == width and _pool_name(network) == "avg"
        return Outline("channels_first" if first else "channels_last", sides, 0, False, "mean" if plain else "own")
    if isinstance(raw, Tensor) and raw.ndim == 3 and raw.shape[2] == width and (grid := _grid(network, images, raw)):
        prefix = raw.shape[1] - grid[0] * grid[1]
        has_class_token = token and prefix > 0
        plain = has_class_token and not pooled.requires_grad and _pool_name(network) == "token"
        return Outline("sequence", grid, prefix, has_class_token, "cls" if plain else "own")
    return Outline("vector", (1, 1), 0, False, "own")


def _grid(network: Any, images: Tensor, raw: Tensor) -> Grid | None:
    """(rows, columns) of a sequence of tokens [1, N, D]; None = it is no map."""
    try:
        last = network.forward_intermediates(images, indices=1, intermediates_only=True)[-1]
        rows, columns = last.shape[-2:]
    except Exception:  # timm's networks raise what they like; without a map the number of tokens decides
        height, width = images.shape[-2:]
        count = raw.shape[1] - getattr(network, "num_prefix_tokens", 0)
        rows = round((count * height / width) ** 0.5)
        columns = count // max(1, rows)
        if rows * columns != count:
            return None
    return (rows, columns) if 0 <= raw.shape[1] - rows * columns < raw.shape[1] else None


def _detached(raw: Any) -> Any:
    return raw.detach() if isinstance(raw, Tensor) else type(raw)(_detached(one) for one in raw)


def _pool_name(network: Any) -> str:
    """timm's name of a network's pooling; empty = not said."""
    for owner in (network, getattr(network, "head", None)):
        pool = getattr(owner, "global_pool", None)
        name = pool if isinstance(pool, str) else getattr(pool, "pool_type", None)
        if isinstance(name, str):
            return name
    return ""


@functools.cache
def _takes_stride(model: str, stride: int) -> bool:
    """Whether timm can build a model with another total stride."""
    try:
        return outline(model, (PROBE_SIDE, PROBE_SIDE), stride).grid[0] * stride == PROBE_SIDE
    except ValueError:
        return False


@functools.cache
def stride_of(model: str) -> int:
    """Pixels per position of a timm model's map. Raises ValueError when its output cannot be read."""
    import timm

    native: Grid = tuple(timm.get_pretrained_cfg(model).input_size[1:])
    size = native if Maps.sized(model) else (PROBE_SIDE, PROBE_SIDE)
    try:
        about = outline(model, size)
    except ValueError:
        size, about = native, outline(model, native)
    return max(1, round(size[0] / about.grid[0]))
