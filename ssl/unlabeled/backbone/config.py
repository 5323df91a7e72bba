"""The recipe's `encoder:` section: a timm model by name, and what may be changed about it."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field, field_validator

from unlabeled.backbone.build import build_encoder, is_beit, is_cnn, patch_size_of
from unlabeled.backbone.encoder import Encoder, drop_alike_
from unlabeled.nn.positions import Grid, Interpolation


class EncoderConfig(BaseModel, frozen=True, extra="forbid"):
    """A timm vision transformer or CNN, by name, with what a recipe may change about it.

    A CNN has `channels` and `drop_path`; what else there is belongs to transformers and must be left out.
    """

    model: str = Field("vit_base_patch16_224", description="a timm model: vit_*, beit_* or a CNN such as resnet50")
    patch_size: int = Field(
        default_factory=lambda fields: patch_size_of(fields.get("model", "")),
        ge=1,
        le=1024,
        description="side of a patch, pixels: 16 unless set; a CNN's is its total stride",
    )
    width: int | None = Field(None, ge=4, le=16384, description="token width; null = the timm model's")
    depth: int | None = Field(None, ge=1, le=128, description="number of blocks; null = the timm model's")
    heads: int | None = Field(None, ge=1, le=256, description="attention heads; null = the timm model's")
    mlp_ratio: float | None = Field(
        None,
        ge=0.25,
        le=64,
        description="width of a block's MLP over the token width; null = the timm model's, mostly 4",
    )
    qkv_bias: bool = Field(True, description="biases on queries, keys and values; a beit_* has none on keys")
    channels: int = Field(3, ge=1, le=16, description="input channels, as many as data.mean has values")
    positions: Literal["sincos", "sincos_rows", "learned", "relative", "relative_learned"] = Field(
        "sincos",
        validate_default=True,
        description="fixed 2-D sine-cosine positions (MAE's, or MoCo v3's: rows first), learned ones, or a beit_*'s "
        "relative ones, alone or with learned ones",
    )
    relative_tables: Literal["shared", "blocks", "both"] = Field(
        "shared", description="of relative positions: one table that all blocks share, one in every block, or both"
    )
    interpolation: Interpolation = Field(
        "size", description="how positions reach other crop sizes: by target size, or by scale (DINO, iBOT, DINOv2)"
    )
    init_values: float | None = Field(
        None, ge=0, description="layer scale begins here; 0 = none, null = the timm model's"
    )
    registers: int | None = Field(
        None,
        ge=1,
        le=256,
        description="register tokens; prefix tokens then have no positions; null = the timm model's",
    )
    drop_path: float = Field(0.0, ge=0, lt=1, description="drop-path rate of the last block, growing from 0")
    drop_path_uniform: bool = Field(False, description="drop-path rate of all blocks alike (DINOv2), not growing")

    @field_validator("model")
    @classmethod
    def _known(cls, name: str) -> str:
        import difflib

        import timm

        if not timm.is_model(name):
            near = difflib.get_close_matches(name, timm.list_models(), n=1, cutoff=0.4)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise ValueError(f"timm has no model '{name}'.{hint}")
        patch_size_of(name)
        return name

    @field_validator("patch_size")
    @classmethod
    def _stride(cls, patch: int, info: Any) -> int:
        model = info.data.get("model", "")
        if is_cnn(model) and patch != patch_size_of(model):
            raise ValueError(
                f"the patches of the CNN '{model}' are its stride, {patch_size_of(model)}: leave it out, found {patch}"
            )
        return patch

    @field_validator(
        "width",
        "depth",
        "heads",
        "mlp_ratio",
        "qkv_bias",
        "positions",
        "interpolation",
        "init_values",
        "registers",
        "drop_path_uniform",
    )
    @classmethod
    def _of_transformers(cls, value: Any, info: Any) -> Any:
        model = info.data.get("model", "")
        if is_cnn(model) and value != cls.model_fields[info.field_name].default:
            raise ValueError(f"the CNN '{model}' has no {info.field_name}: leave it out, found {value}")
        return value

    @field_validator("heads")
    @classmethod
    def _heads_divide_width(cls, heads: int | None, info: Any) -> int | None:
        width = info.data.get("width")
        if heads and width and width % heads:
            raise ValueError(f"{heads} heads do not divide a width of {width}")
        return heads

    @field_validator("positions")
    @classmethod
    def _positions_fit(cls, positions: str, info: Any) -> str:
        model = info.data.get("model", "")
        allowed = ["relative", "relative_learned"] if is_beit(model) else ["sincos", "sincos_rows"]
        if model and positions not in (*allowed, "learned"):
            instead = f"{', '.join(allowed)} or learned"
            raise ValueError(f"'{model}' has no {positions} positions: expected {instead}")
        return positions

    @field_validator("relative_tables")
    @classmethod
    def _tables_fit(cls, tables: str, info: Any) -> str:
        positions = info.data.get("positions", "relative")
        if tables != "shared" and not positions.startswith("relative"):
            raise ValueError(f"positions are {positions}, which have no tables: leave it out, found {tables}")
        return tables

    @property
    def crop_unit(self) -> int:
        """What the sides of a crop must be multiples of, pixels. A CNN takes any size."""
        return 1 if is_cnn(self.model) else self.patch_size

    def must_hide_patches(self, method: str) -> None:
        """Raise ValueError when `method` hides patches and this is a CNN."""
        if is_cnn(self.model):
            advice = "Use a vit_* model, or a method that sees whole pictures such as mocov3."
            raise ValueError(f"{method} hides patches, which the CNN '{self.model}' cannot. {advice}")

    def must_take_any_size(self, method: str) -> None:
        """Raise ValueError when `method` needs crops of several sizes and the positions are made for one."""
        if is_beit(self.model):
            raise ValueError(f"{method} needs positions for crops of any size, '{self.model}' has none. Use a vit_*.")

    def timm_arguments(self, image_size: Grid) -> dict[str, Any]:
        """The keyword arguments of `build_encoder`, defaults left out."""
        named = {
            "patch_size": None if is_cnn(self.model) else self.patch_size,
            "embed_dim": self.width,
            "depth": self.depth,
            "num_heads": self.heads,
            "mlp_ratio": self.mlp_ratio,
            "qkv_bias": None if self.qkv_bias else False,
            "init_values": self.init_values,
            "reg_tokens": self.registers,
            "no_embed_class": True if self.registers else None,
            **(self._beit_arguments() if is_beit(self.model) else {}),
        }
        return {
            "img_size": list(image_size),
            "in_chans": self.channels,
            **{key: value for key, value in named.items() if value is not None},
        }

    def _beit_arguments(self) -> dict[str, bool]:
        """Which positions a timm `Beit` has."""
        relative = self.positions.startswith("relative")
        absolute = {} if self.positions == "relative" else {"use_abs_pos_emb": True}
        return {
            **absolute,
            "use_rel_pos_bias": relative and self.relative_tables != "shared",
            "use_shared_rel_pos_bias": relative and self.relative_tables != "blocks",
        }

    def build(self, image_size: Grid) -> Encoder:
        """A randomly initialised encoder for pictures of `image_size` (height, width) pixels.

        Raises:
            ValueError: the patch size does not divide the image size, or the model is not one that can be wrapped.
        """
        if any(side % self.crop_unit for side in image_size):
            raise ValueError(f"patch_size {self.patch_size} does not divide an image of {image_size} pixels")
        encoder = build_encoder(self.model, self.timm_arguments(image_size), self.interpolation, self.drop_path)
        if self.drop_path_uniform:
            drop_alike_(encoder.vit, self.drop_path)
        if self.positions.startswith("sincos") and not is_cnn(self.model):
            encoder.fix_positions(rows_first=self.positions == "sincos_rows")
        return encoder
