"""Vision transformers with position tables (Dosovitskiy et al. 2021): they can drop patches or replace them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from unlabeled.backbone.encoder import Fill, Hidden, Hiding, Scheme, Tokens
from unlabeled.backbone.transformer import EXPORTED, Transformer, fill_in
from unlabeled.nn.init import mae_
from unlabeled.nn.patches import gather, patchify
from unlabeled.nn.positions import Grid, resample, sincos_2d, with_prefix


class Vit(Transformer):
    """Wraps a plain timm `VisionTransformer`. It encodes images of any size that the patch size divides."""

    hides: ClassVar[frozenset[Hiding]] = frozenset({"drop", "replace"})
    positions: ClassVar[tuple[str, ...]] = ("sincos", "sincos_rows")
    patch_pools: ClassVar[tuple[str, ...]] = ("mean", "mean_max")
    norm_after_pool: ClassVar[str] = "fc_norm"
    exported: ClassVar[Mapping[str, Any]] = EXPORTED

    @classmethod
    def claims(cls, model: str) -> int:
        return 4 if model.startswith(("vit_", "deit")) else 0

    @staticmethod
    def require(vit: nn.Module, model: str) -> None:
        if not _is_plain(vit):
            raise ValueError(f"expected a plain timm VisionTransformer with positions, found '{model}'")

    @property
    def pools(self) -> tuple[str, ...]:
        return (*(["cls"] if self.has_class_token else []), *self.patch_pools, "attention")

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

        tokens = [token for token in (self.vit.cls_token, self.vit.reg_token) if token is not None]
        prefix = torch.cat(tokens, dim=1) if tokens else self.vit.pos_embed.new_zeros(1, 0, self.width)
        prefix = (prefix + prefix_table).expand(len(x), -1, -1)
        return self.vit.norm_pre(torch.cat([prefix, x], dim=1)), grid

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        for block in self.vit.blocks:
            x = block(x)
            yield x

    def _positions(self, grid: Grid) -> tuple[Tensor | float, Tensor]:
        table = self.vit.pos_embed
        if self.vit.no_embed_class:
            return 0.0, resample(table, self.native_grid, grid, self.interpolation)
        prefix, patches = table[:, : self.num_prefix], table[:, self.num_prefix :]
        return prefix, resample(patches, self.native_grid, grid, self.interpolation)


def _is_plain(vit: nn.Module) -> bool:
    """Whether `Vit` runs all its parts: no distillation token, convolutional stem, attention pool, or norm that comes
    after pooling."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    # subclasses have tokens and steps of their own
    if type(vit) is not VisionTransformer or vit.attn_pool is not None or vit.pos_embed is None:
        return False
    return isinstance(vit.patch_embed, PatchEmbed) and isinstance(vit.fc_norm, nn.Identity)
