"""Vision transformers with position tables (Dosovitskiy et al. 2021): they can drop patches or replace them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Fill, Hidden, Hiding, InTimm, Pool, Scheme, Tokens, for_timm, module_of
from unlabeled.backbone.transformer import EXPORTED, Transformer, fill_in, normed_after, outline
from unlabeled.nn.init import mae_
from unlabeled.nn.patches import gather, patchify
from unlabeled.nn.positions import Grid, resample, sincos_2d, with_prefix

MODULES = ("vision_transformer", "deit")  # of timm
SWITCHES = ("dynamic_img_size", "pool_include_prefix")
# tokens before the patches, in timm's order
PREFIX = ("cls_token", "dist_token", "reg_token")


class Vit(Transformer):
    """Wraps a timm `VisionTransformer` or `VisionTransformerDistilled`: plain ones and those of DINOv2, CLIP, SigLIP,
    AIMv2 and DeiT, with registers, or with a norm after the mean. It encodes images of any size that the patch size
    divides.
    """

    hides: ClassVar[frozenset[Hiding]] = frozenset({"drop", "replace"})
    layered: ClassVar[bool] = True
    names: ClassVar[str] = "vit_*"
    bare: ClassVar[Mapping[str, Any]] = {}
    positions: ClassVar[tuple[str, ...]] = ("sincos", "sincos_rows")
    patch_pools: ClassVar[tuple[str, ...]] = ("mean", "mean_max")
    norm_after_pool: ClassVar[str] = "fc_norm"
    exported: ClassVar[Mapping[str, Any]] = {**EXPORTED, **dict.fromkeys(SWITCHES, (bool | None, None))}

    @classmethod
    def claims(cls, model: str) -> int:
        return 4 if module_of(model) in MODULES else 0

    @staticmethod
    def require(vit: nn.Module, model: str) -> None:
        if not _runs(vit):
            raise ValueError(f"expected a timm VisionTransformer with patches and positions, found '{model}'")

    # ---------------------------------------------------------------- by name

    @classmethod
    def arguments_of(cls, fields: Mapping[str, Any], pooled: bool = True) -> dict[str, Any]:
        told = super().arguments_of(fields, pooled)
        return told if pooled else {**told, **_unpooled(fields["model"])}

    @classmethod
    def in_timm(cls, model: str, arguments: Mapping[str, Any], pool: Pool | None) -> InTimm:
        usual = outline(model)
        if not _pools_itself(usual) or "fc_norm" in arguments:
            return super().in_timm(model, arguments, pool)
        # weights of a pooling of its own have names and values that another pooling does not
        told = for_timm(arguments)
        return InTimm(told.get("global_pool", usual.global_pool), told)

    @classmethod
    def without_head(cls, model: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
        left_out = _unpooled(model) if arguments.get("fc_norm") is False else {}
        return {**super().without_head(model, arguments), **left_out}

    # ---------------------------------------------------------------- one encoder

    @property
    def pools_itself(self) -> bool:
        return _pools_itself(self.vit)

    @property
    def pools(self) -> tuple[str, ...]:
        if self.vit.num_prefix_tokens > 1 and hasattr(self.vit, "dist_token"):
            return ("own",)  # timm's heads read both tokens
        own = ("own",) if self.pools_itself else ()
        return (*(["cls"] if self.has_class_token else []), *self.patch_pools, "attention", *own)

    def classifier_arguments(self, pool: str, size: Grid, frozen: bool) -> dict[str, Any]:
        """See `Transformer`; a norm after pooling that the encoder has is kept after any pooling."""
        if pool == "own" or (pool == "attention" and self.vit.attn_pool is not None):
            return {**self.arguments, "img_size": list(size)}
        told = {**super().classifier_arguments(pool, size, frozen), **_without_prefix(self.model)}
        return {**told, "fc_norm": True} if normed_after(self.vit) else told

    def initialise_(self, scheme: Scheme, **settings: Any) -> None:
        """See `Encoder`; `scratch` is MAE's, with sine-cosine positions that learn."""
        super().initialise_(scheme, **settings)
        if scheme == "scratch":
            self.fix_positions()
            mae_(self.vit)
            self.vit.pos_embed.requires_grad_(True)

    def configure_(self, fields: Mapping[str, Any]) -> None:
        super().configure_(fields)
        if fields["positions"].startswith("sincos"):
            self.fix_positions(rows_first=fields["positions"] == "sincos_rows")

    def fields(self) -> dict[str, Any]:
        """See `Encoder`; positions are fixed where they are those of a table, in this package's precision or a
        NumPy program's, and learned where not."""
        tables = {} if self.width % 4 else {"sincos": self._table(), "sincos_rows": self._table(rows_first=True)}
        fixed = [name for name, table in tables.items() if torch.allclose(self.vit.pos_embed, table, atol=1e-5)]
        return {**super().fields(), "positions": (*fixed, "learned")[0]}

    def fix_positions(self, rows_first: bool = False) -> None:
        """Replace the positions by the fixed sine-cosine table and freeze them."""
        with torch.no_grad():
            self.vit.pos_embed.copy_(self._table(rows_first))
        self.vit.pos_embed.requires_grad_(False)

    def _table(self, rows_first: bool = False) -> Tensor:
        prefix = 0 if self.vit.no_embed_class else self.num_prefix
        return with_prefix(sincos_2d(self.width, self.native_grid, rows_first), prefix)

    def forward(self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None) -> Tokens:
        x, grid = self.begin(images, drop, replace, fill)
        return self.finish(self.vit.blocks(x), grid)

    def begin(
        self, images: Tensor, drop: Hidden = None, replace: Hidden = None, fill: Fill = None
    ) -> tuple[Tensor, Grid]:
        grid = self.grid(images)
        prefix_table, patch_table = self._positions(grid)

        # embed the patches, only the visible ones when the rest is dropped
        patches, table = patchify(images, self.patch_size), patch_table.expand(len(images), -1, -1)
        if drop is not None:
            keep, _ = drop.indices()
            patches, table = gather(patches, keep), gather(table, keep)
        x = self.embed(patches)
        if replace is not None:
            x = fill_in(x, replace, fill)
        x = x + table

        tokens = [token for name in PREFIX if (token := getattr(self.vit, name, None)) is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else self.vit.pos_embed.new_zeros(1, 0, self.width)
        prefix = (prefix + prefix_table).expand(len(x), -1, -1)
        return self.vit.norm_pre(torch.cat([prefix, x], dim=1)), grid

    def layers(self, images: Tensor, drop: Hidden = None) -> Tokens:
        x, grid = self.begin(images, drop)
        found = (x, *self.outputs(x, grid))
        return self.finish(found[-1], grid)._replace(layers=found)

    def outputs(self, x: Tensor, grid: Grid) -> Iterator[Tensor]:
        for block in self.vit.blocks:
            x = block(x)
            yield x

    def _positions(self, grid: Grid) -> tuple[Tensor | float, Tensor]:
        table = self.vit.pos_embed
        if self.vit.no_embed_class:
            return 0.0, resample(table, self.native_grid, grid, self.interpolation)
        prefix, patches = table[:, : self.num_prefix], table[:, self.num_prefix :]
        return prefix, resample(patches, self.native_grid, grid, self.interpolation)


def _runs(vit: Any) -> bool:
    """Whether `Vit` runs all its parts: no convolutional stem, no positions inside the blocks."""
    from timm.layers import PatchEmbed
    from timm.models.deit import VisionTransformerDistilled
    from timm.models.vision_transformer import VisionTransformer

    # other subclasses have tokens and steps of their own
    known = type(vit) in (VisionTransformer, VisionTransformerDistilled)
    return known and isinstance(vit.patch_embed, PatchEmbed) and vit.pos_embed is not None


def _without_prefix(model: str) -> dict[str, bool]:
    """The argument of timm by which pooling leaves class token and registers out, where a network's own does not."""
    return {"pool_include_prefix": False} if outline(model).pool_include_prefix else {}


def _unpooled(model: str) -> dict[str, Any]:
    """Arguments of timm that leave a network's own pooling out, and the norm after it, where it has any."""
    usual = {"global_pool": "avg", "fc_norm": False, **_without_prefix(model)}
    return usual if _learns_to_pool(outline(model)) else {}


def _learns_to_pool(vit: Any) -> bool:
    """Whether a timm model has parameters in its pooling or after it."""
    return vit.attn_pool is not None or normed_after(vit)


def _pools_itself(vit: Any) -> bool:
    """Whether timm pools a model's tokens neither by the class token nor by the plain mean; DeiT's distilled networks
    take the mean of two tokens."""
    return _learns_to_pool(vit) or hasattr(vit, "dist_token")
