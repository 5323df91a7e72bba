"""Hiera (Ryali et al., ICML 2023): attention within mask units of 32 px, which can be left out whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

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
from unlabeled.backbone.transformer import EXPORTED, STAGES
from unlabeled.nn.init import xavier_, xavier_patches_
from unlabeled.nn.positions import Grid, Interpolation, resample

# fields of recipes that are arguments of timm, by timm's names
FIELDS = {
    "width": "embed_dim",
    "depth": "stages",
    "heads": "num_heads",
    "mlp_ratio": "mlp_ratio",
    "norm_eps": "norm_eps",
}
OTHERS = ("model", "patch_size", "channels", "positions", "drop_path")


class Hiera(Encoder):
    """Wraps a timm `Hiera`. A patch is a mask unit: 8x8 tokens of 4 px at first, one token in the last stage.

    Hidden units are left out behind the patch embedding, which sees their pixels as zeros (official `hiera_mae.py`).
    The norm, which timm has behind the mean, is applied to every token too, as before the official decoder. It encodes
    images of its native size only.
    """

    hides: ClassVar[frozenset[Hiding]] = frozenset({"drop"})
    names: ClassVar[str] = "hiera_*"
    exported: ClassVar[Mapping[str, Any]] = {
        **{name: EXPORTED[name] for name in ("embed_dim", "num_heads", "mlp_ratio")},
        "stages": STAGES,
    }
    blocks_in_python: ClassVar[str] = "blocks = [(model.head.norm(model.forward_features(images)), None)]"
    pools = ("own",)
    pools_itself = True
    has_class_token = False
    readable = 1

    def __init__(
        self, vit: nn.Module, model: str, arguments: Mapping[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        super().__init__(vit, model, arguments, interpolation)
        self.patch_size, self.num_prefix = unit_of(vit), 0
        rows, columns = self.vit.mask_spatial_shape
        self.native_grid = rows, columns

    # ---------------------------------------------------------------- by name

    @classmethod
    def claims(cls, model: str) -> int:
        return 4 if module_of(model) == "hiera" else 0

    @classmethod
    def patch_size_of(cls, model: str) -> int:
        """See `Encoder`: the side of a mask unit."""
        return unit_of(outline_of(model))

    @classmethod
    def takes_any_size(cls, model: str) -> bool:
        return False

    @classmethod
    def default_positions(cls, model: str) -> str:
        return "learned"

    @classmethod
    def check_field(cls, name: str, value: Any, changed: bool, others: Mapping[str, Any]) -> None:
        if changed and name not in (*FIELDS, *OTHERS):
            raise ValueError(f"'{others['model']}' has no {name}: leave it out, found {value}")
        if name == "patch_size" and value != (unit := cls.patch_size_of(others["model"])):
            raise ValueError(
                f"the patches of '{others['model']}' are its mask units, {unit}: leave it out, found {value}"
            )
        if name == "positions" and value != "learned":
            raise ValueError(f"'{others['model']}' has no {value} positions: expected learned")
        if name == "depth" and value is not None:
            stages = len(outline_of(others["model"]).stage_ends)
            if isinstance(value, int) or len(value) != stages:
                raise ValueError(f"'{others['model']}' has {stages} stages: expected a number for each, found {value}")
        if name == "heads" and value is not None:
            width = others.get("width") or outline_of(others["model"]).blocks[0].dim
            if not isinstance(value, int) or width % value:
                raise ValueError(f"expected heads of the first stage, which divide its width of {width}; found {value}")

    @classmethod
    def can_read(cls, model: str, pool: Pool, blocks: int) -> bool:
        return not pool.startswith("cls") and blocks == 1

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        told = {timm: fields[name] for name, timm in FIELDS.items() if fields[name] is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in told.items()}

    @classmethod
    def create(cls, model: str, arguments: Mapping[str, Any], drop_path: float = 0.0, classes: int = 0) -> Any:
        import timm

        told = for_timm(arguments)
        hiera = timm.create_model(model, num_classes=classes, drop_path_rate=drop_path, **told)
        if (eps := arguments.get("norm_eps")) is not None:
            set_eps_(hiera, eps)
        return hiera

    # ---------------------------------------------------------------- timm models of this family

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        unit, told = cls.patch_size_of(model), for_timm(arguments)
        return InTimm("avg", told, [side // unit for side in arguments["img_size"]])

    @classmethod
    def arguments_from(cls, vit: Any) -> dict[str, Any]:
        return {"img_size": [side * unit_of(vit) for side in vit.mask_spatial_shape]}

    @classmethod
    def fitted(cls, weights: Tensors, old: Grid, model: Any) -> Tensors:
        """See `Encoder`; a table of positions is resampled bicubically, unless timm itself does so in every pass."""
        fitted, unit = super().fitted(weights, old, model), model.mask_unit_size
        if fitted["pos_embed"].ndim == 3:
            tokens = old[0] * unit[0], old[1] * unit[1]
            fitted["pos_embed"] = resample(fitted["pos_embed"], tokens, tuple(model.tokens_spatial_shape))
        return fitted

    @classmethod
    def unfuse_(cls, model: Any) -> None:
        """See `Encoder`; ONNX has no fused attention with an axis for mask units."""
        for block in model.blocks:
            block.attn.fused_attn = False

    @classmethod
    def last_blocks(cls, model: Any, images: Tensor, blocks: int) -> list[Tokens]:
        return [_tokens(model, model.forward_features(images), tuple(model.mask_spatial_shape))]

    # ---------------------------------------------------------------- one encoder

    @property
    def image_size(self) -> Grid:
        return self.native_grid[0] * self.patch_size, self.native_grid[1] * self.patch_size

    @property
    def depth(self) -> int:
        return len(self.vit.blocks)

    def fields(self) -> dict[str, Any]:
        told = {name: self.arguments.get(timm) for name, timm in FIELDS.items()}
        return {**super().fields(), **told, "positions": "learned"}

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        if replace is not None:
            raise ValueError(f"'{self.model}' cannot replace patches. Use a vit_*, beit_* or swin_* model.")
        self.check_native(images)
        # the patch embedding overlaps: it must not see what is hidden
        if drop is not None:
            hidden = drop.refined(self.image_size).hidden.unflatten(1, self.image_size)
            images = images.masked_fill(hidden.unsqueeze(1), 0)
        x = self.vit.unroll(self.vit._pos_embed(self.vit.patch_embed(images)))

        # tokens are numbered within units first, then by unit [B, 64 N, D]
        if drop is not None:
            keep, _ = drop.indices()
            x = x.unflatten(1, (self.vit.mu_size, -1))
            x = x.gather(2, keep[:, None, :, None].expand(-1, x.shape[1], -1, x.shape[3])).flatten(1, 2)
        for block in self.vit.blocks:
            x = block(x)
        return _tokens(self.vit, x, self.native_grid)

    def attention(self, images: Tensor) -> Tensor:
        raise ValueError(
            f"the attention of '{self.model}' cannot be shown: its blocks pool queries. Use a vit_* or beit_* model."
        )

    def layer_of(self, name: str) -> int:
        if name.startswith(("patch_embed.", "pos_embed")):
            return 0
        return int(name.split(".")[1]) + 1 if name.startswith("blocks.") else self.depth + 1

    def initialise_(self, scheme: Scheme, **settings: Any) -> None:
        """See `Encoder`; MAE's is that of its ViT, with positions as timm begins them (official `hiera_mae.py`)."""
        if scheme == "mae":
            xavier_(self.vit)
            xavier_patches_(self.vit.patch_embed.proj)

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        return self.resized(self.model, self.arguments, size)


def unit_of(vit: Any) -> int:
    """The side of a mask unit of a timm model, pixels."""
    return int(vit.mask_unit_size[0] * vit.patch_stride[0])


def _tokens(vit: Any, x: Tensor, grid: Grid) -> Tokens:
    """The output of the last block [B, K, D] as tokens of an image of `grid` units."""
    patches = vit.head.norm(x)
    return Tokens(patches[:, :0], patches, grid, x)
