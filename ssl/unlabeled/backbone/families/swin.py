"""Swin transformers, both versions (Liu et al. 2021, 2022): windows of attention, and stages that merge 2x2 tokens."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from math import isqrt
from typing import Annotated, Any, ClassVar

from pydantic import Field
from torch import Tensor, nn

from unlabeled.backbone.encoder import (
    Encoder,
    Fill,
    Hidden,
    Hiding,
    InTimm,
    Pool,
    Scheme,
    Tensors,
    Tokens,
    for_timm,
    module_of,
    outline_of,
)
from unlabeled.backbone.norms import set_eps_
from unlabeled.backbone.transformer import EXPORTED, STAGES, fill_in
from unlabeled.nn.positions import Grid, Interpolation

MODULES = ("swin_transformer", "swin_transformer_v2")
TABLE = ".relative_position_bias_table"

# fields of recipes that are arguments of timm, by timm's names
FIELDS = {
    "width": "embed_dim",
    "depth": "depths",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "window": "window_size",
    "norm_eps": "norm_eps",
}
OTHERS = ("model", "patch_size", "qkv_bias", "channels", "positions", "drop_path")
Window = Annotated[int, Field(ge=1, le=128)]
Windows = Annotated[list[Annotated[list[Window], Field(min_length=2, max_length=2)]], Field(min_length=1, max_length=8)]


class Swin(Encoder):
    """Wraps a timm `SwinTransformer` or `SwinTransformerV2`. Its patches are the positions of its last map.

    Hidden patches are replaced behind the patch embedding, where tokens are finer than the last map's (SimMIM, official
    `SwinTransformerForSimMIM`). Windows belong to an image size: it encodes images of its native size only.
    """

    hides: ClassVar[frozenset[Hiding]] = frozenset({"replace"})
    names: ClassVar[str] = "swin_*"
    undecayed: ClassVar[tuple[str, ...]] = ("mask_token",)
    exported: ClassVar[Mapping[str, Any]] = {
        **{name: EXPORTED[name] for name in ("patch_size", "embed_dim", "num_heads", "mlp_ratio", "qkv_bias")},
        "depths": STAGES,
        "window_size": (Window | Windows | None, None),
    }
    blocks_in_python: ClassVar[str] = "blocks = [(model.forward_features(images).flatten(1, 2), None)]"
    pools = ("mean", "own")
    has_class_token = False
    readable = 1

    def __init__(
        self, vit: nn.Module, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        super().__init__(vit, model, arguments, interpolation)
        self.patch_size, self.num_prefix = self.vit.patch_embed.patch_size[0] * 2 ** (len(self.vit.layers) - 1), 0
        rows, columns = self.image_size
        self.native_grid = rows // self.patch_size, columns // self.patch_size

    # ---------------------------------------------------------------- by name

    @classmethod
    def claims(cls, model: str) -> int:
        return 4 if module_of(model) in MODULES else 0

    @classmethod
    def patch_size_of(cls, model: str) -> int:
        """See `Encoder`: the total stride."""
        outline = outline_of(model)
        return int(outline.patch_embed.patch_size[0]) * 2 ** (len(outline.layers) - 1)

    @classmethod
    def embedding_patch_of(cls, fields: Mapping[str, Any]) -> int:
        return int(fields["patch_size"]) >> (len(depths_of(fields["model"], fields["depth"])) - 1)

    @classmethod
    def takes_any_size(cls, model: str) -> bool:
        return False

    @classmethod
    def default_positions(cls, model: str) -> str:
        return "relative"

    @classmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        model = others["model"] if name != "model" else value
        if name not in (*FIELDS, *OTHERS) and changed:
            raise ValueError(f"'{model}' has no {name}: leave it out, found {value}")
        if name == "positions" and value != "relative":
            raise ValueError(f"'{model}' has no {value} positions: expected relative")
        if name in ("depth", "heads") and isinstance(value, int):
            told = outline_of(model)
            such = depths_of(model) if name == "depth" else [stage.blocks[0].attn.num_heads for stage in told.layers]
            raise ValueError(f"'{model}' has stages: expected a number for each, such as {such}; found {value}")
        if name == "depth" and others.get("patch_size", 0) % (factor := 2 ** (len(depths_of(model, value)) - 1)):
            raise ValueError(
                f"patch_size {others['patch_size']} is the total stride, which doubles with every stage but the first: "
                f"expected a multiple of {factor}"
            )
        if name == "heads" and value is not None and "depth" in others:
            check_heads(value, others)

    @classmethod
    def can_read(cls, model: str, pool: Pool, blocks: int) -> bool:
        return not pool.startswith("cls") and blocks == 1

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        told = {"patch_size": cls.embedding_patch_of(fields)}
        told |= {timm: fields[name] for name, timm in FIELDS.items() if fields[name] is not None}
        told |= {} if fields["qkv_bias"] else {"qkv_bias": False}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}

    @classmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        import timm

        told = for_timm(arguments)
        try:
            swin = timm.create_model(model, num_classes=classes, drop_path_rate=drop_path, **told)
        except (AssertionError, IndexError) as error:
            raise ValueError(f"timm cannot build '{model}' with {told}: {error}") from error
        if (eps := arguments.get("norm_eps")) is not None:
            set_eps_(swin, eps)
        return swin

    # ---------------------------------------------------------------- timm models of this family

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        patch = arguments.get("patch_size") or outline_of(model).patch_embed.patch_size[0]
        stride = patch << (len(depths_of(model, arguments.get("depths"))) - 1)
        told = for_timm(arguments)
        return InTimm("avg", told, [side // stride for side in arguments["img_size"]])

    @classmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        return {"img_size": list(vit.patch_embed.img_size)}

    @classmethod
    def resized(
        cls, model: str, arguments: Mapping[str, Any], size: Grid, like: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """See `Encoder`; windows grow and shrink with the side that grows less, as in timm's `set_input_size`."""
        told = {**arguments, "img_size": list(size)}
        if like is not None:
            told.pop("window_size", None)
            return told | {name: value for name, value in like.items() if name == "window_size"}
        if list(size) == list(arguments["img_size"]):
            return told
        new, old = min(zip(size, arguments["img_size"], strict=True), key=lambda sides: sides[0] / sides[1])
        windows = arguments.get("window_size") or outline_of(model)._ref_window_sizes
        pairs = [(windows, windows)] if isinstance(windows, int) else windows
        scaled = [[max(1, side * new // old) for side in pair] for pair in pairs]
        sides = {side for pair in scaled for side in pair}
        return {**told, "window_size": sides.pop() if len(sides) == 1 else scaled}

    @classmethod
    def fitted(cls, weights: Tensors, old: Grid, model: Any) -> Tensors:
        """See `Encoder`; tables of relative positions are resampled to the windows of the timm model by timm's rule."""
        from timm.layers import resize_rel_pos_bias_table

        fitted = super().fitted(weights, old, model)
        for name in [name for name in fitted if name.endswith(TABLE)]:
            owner, stage = (
                model.get_submodule(name.removesuffix(TABLE)),
                len(model.layers) - 1 - int(name.split(".")[1]),
            )
            window = window_of(len(fitted[name]), (old[0] << stage, old[1] << stage))
            if window != tuple(owner.window_size):
                shape = owner.relative_position_bias_table.shape
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # of timm's use of torch
                    fitted[name] = resize_rel_pos_bias_table(fitted[name], owner.window_size, shape, window)
        return fitted

    @classmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        return [_tokens(model.forward_features(images))]

    # ---------------------------------------------------------------- one encoder

    @property
    def image_size(self) -> Grid:
        height, width = self.vit.patch_embed.img_size
        return height, width

    @property
    def embedding_width(self) -> int:
        return int(self.vit.embed_dim)

    @property
    def depth(self) -> int:
        return sum(len(stage.blocks) for stage in self.vit.layers)

    def fields(self) -> dict[str, Any]:
        told = {name: self.arguments.get(timm) for name, timm in FIELDS.items()}
        told["window"] = told["window"] if isinstance(told["window"], int) else None
        bias = self.arguments.get("qkv_bias") is not False
        return {**super().fields(), **told, "patch_size": self.patch_size, "qkv_bias": bias, "positions": "relative"}

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        if drop is not None:
            raise ValueError(f"'{self.model}' cannot drop patches. Use a vit_* or hiera_* model.")
        self.check_native(images)
        x = self.vit.patch_embed(images)
        if replace is not None:
            tokens = fill_in(x.flatten(1, 2), replace.refined((x.shape[1], x.shape[2])), fill)
            x = tokens.unflatten(1, x.shape[1:3])
        return _tokens(self.vit.norm(self.vit.layers(x)))

    def attention(self, images: Tensor) -> Tensor:
        raise ValueError(
            f"'{self.model}' attends within windows: no position sees the whole image. Use a vit_* or beit_* model."
        )

    def layer_of(self, name: str) -> int:
        """As SimMIM's `get_swin_layer`: blocks are counted through all stages, a merging of tokens belongs to the last
        block before it."""
        if name.startswith("patch_embed."):
            return 0
        if not name.startswith("layers."):
            return self.depth + 1
        _, stage, part, *rest = name.split(".")
        before = sum(len(stage.blocks) for stage in self.vit.layers[: int(stage)])
        return before if part == "downsample" else before + int(rest[0]) + 1

    def initialise_(self, scheme: Scheme, **settings: Any) -> None:
        """See `Encoder`; SimMIM's Swin begins as timm's, its mask token too (official `_init_weights`)."""
        if scheme == "simmim":
            nn.init.trunc_normal_(settings["mask_token"], std=0.02)

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        return self.resized(self.model, self.arguments, size)


def depths_of(model: str, depths: Sequence[int] | None = None) -> Sequence[int]:
    """The number of blocks of each stage, by default those of the timm model."""
    return depths or [len(stage.blocks) for stage in outline_of(model).layers]


def check_heads(heads: Sequence[int], others: Mapping[str, Any]) -> None:
    """Raise ValueError unless there is a number of heads for every stage, and it divides the stage's width."""
    stages = len(depths_of(others["model"], others["depth"]))
    width = others.get("width") or outline_of(others["model"]).embed_dim
    if len(heads) != stages:
        raise ValueError(f"expected heads for each of {stages} stages, found {list(heads)}")
    for stage, number in enumerate(heads):
        if (width << stage) % number:
            raise ValueError(
                f"{number} heads do not divide a width of {width << stage}, that of stage {stage + 1}: change it"
            )


def window_of(offsets: int, grid: Grid) -> Grid:
    """The (rows, columns) of the window of a table with as many `offsets`: a square, which a smaller `grid` cuts."""

    def other(side: int) -> int:
        return (offsets // (2 * side - 1) + 1) // 2

    square, (rows, columns) = (isqrt(offsets) + 1) // 2, grid
    found = ((square, square), (rows, other(rows)), (other(columns), columns))
    return next(window for window in found if (2 * window[0] - 1) * (2 * window[1] - 1) == offsets)


def _tokens(maps: Tensor) -> Tokens:
    """The last map [B, rows, columns, D] as tokens."""
    patches = maps.flatten(1, 2)
    return Tokens(patches[:, :0], patches, (maps.shape[1], maps.shape[2]), maps)
