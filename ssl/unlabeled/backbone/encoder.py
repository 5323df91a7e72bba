"""A vision transformer that can drop patches or replace them. The wrapped timm model stays untouched."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.nn.attention import attention_map
from unlabeled.nn.patches import PatchMask, gather, patchify
from unlabeled.nn.positions import Grid, Interpolation, resample, sincos_2d, with_prefix

# how tokens become a picture's one vector: class token, mean of the patches, both, or mean and maximum of the patches
Pool = Literal["cls", "mean", "cls_mean", "mean_max"]


class Tokens(NamedTuple):
    """What an encoder returns, after the final norm.

    Attributes:
        prefix: [B, P, D], the class token and registers, in this order.
        patches: [B, N, D], or [B, K, D] of the visible patches in the order of `PatchMask.keep`.
        grid: (rows, columns) of the whole image's patches, hidden ones included.
    """

    prefix: Tensor
    patches: Tensor
    grid: Grid

    def pool(self, how: Literal["cls", "mean"]) -> Tensor:
        """One vector per image [B, D]: the class token, or the mean of the patches."""
        return self.prefix[:, 0] if how == "cls" else self.patches.mean(1)


class Encoder(nn.Module):
    """Wraps a timm `VisionTransformer` without a head.

    `encoder(images)` encodes everything; `encoder(images, drop=mask)` only the visible patches (MAE);
    `encoder(images, replace=mask, fill=token)` everything, hidden patches replaced by `token` (SimMIM, iBOT).

    Args:
        vit: the timm model, built with `num_classes=0`.
        model: its timm name.
        arguments: what `build_encoder` needs, beside the name, to build it again.
        interpolation: how positions reach other image sizes, see `resample`.
    """

    vit: Any  # a timm model: its attributes are timm's
    has_batch_norm = False

    def __init__(
        self, vit: nn.Module, model: str, arguments: dict[str, Any], interpolation: Interpolation = "size"
    ) -> None:
        super().__init__()
        self.require(vit, model)
        self.vit = vit
        self.model = model
        self.arguments = dict(arguments)
        self.interpolation: Interpolation = interpolation
        self.width: int = self.vit.num_features
        self.channels: int = self.vit.in_chans
        self.patch_size, self.native_grid, self.num_prefix = self.measure()

    @staticmethod
    def require(vit: nn.Module, model: str) -> None:
        """Raise ValueError when this wrapper would encode the timm model wrongly."""
        if not _is_plain(vit):
            raise ValueError(f"expected a plain timm VisionTransformer with positions, found '{model}'")

    def measure(self) -> tuple[int, Grid, int]:
        """Side of a patch in pixels, grid of patches that it was made for, number of prefix tokens."""
        patches = self.vit.patch_embed
        return patches.patch_size[0], patches.grid_size, self.vit.num_prefix_tokens

    @property
    def has_class_token(self) -> bool:
        """Whether the first prefix token is a class token."""
        return self.vit.cls_token is not None

    def feature(self, images: Tensor) -> Tensor:
        """What stands for a whole image [B, C, H, W] in contrastive and distillation methods: [B, D].

        The class token if there is one, else the mean of the patches, which of a CNN is its global average pooling.
        """
        return self(images).pool(self.default_pool)

    @property
    def default_pool(self) -> Literal["cls", "mean"]:
        """How its tokens become one vector where nobody says otherwise: the class token if there is one, else the mean
        of the patches."""
        return "cls" if self.has_class_token else "mean"

    @property
    def depth(self) -> int:
        """Number of blocks."""
        return len(self.vit.blocks)

    @property
    def image_size(self) -> Grid:
        """(height, width) in pixels that the position table was made for."""
        rows, columns = self.native_grid
        return rows * self.patch_size, columns * self.patch_size

    def grid(self, images: Tensor) -> Grid:
        """(rows, columns) of patches in `images` [B, C, H, W].

        Raises:
            ValueError: the patch size does not divide the images.
        """
        height, width = images.shape[-2:]
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(f"patch size {self.patch_size} does not divide images of {height}x{width} pixels")
        return height // self.patch_size, width // self.patch_size

    def forward(
        self,
        images: Tensor,
        drop: PatchMask | None = None,
        replace: PatchMask | None = None,
        fill: Tensor | None = None,
    ) -> Tokens:
        """Encode images [B, C, H, W]; any size that the patch size divides."""
        x, grid = self.begin(images, drop, replace, fill)
        return self.finish(self.vit.blocks(x), grid)

    def intermediate(self, images: Tensor, blocks: Sequence[int]) -> list[Tokens]:
        """Tokens after some blocks, each through the final norm (DINO's and DINOv2's `get_intermediate_layers`).

        Args:
            images: [B, C, H, W].
            blocks: which, from 0, or from the end where negative; after the last, tokens are those of `forward`.

        Raises:
            ValueError: there is no such block.
        """
        numbers = range(self.depth)
        if wrong := [block for block in blocks if block not in range(-self.depth, self.depth)]:
            raise ValueError(f"'{self.model}' has blocks 0 to {self.depth - 1}, found {wrong[0]}")
        wanted = [numbers[block] for block in blocks]
        x, grid = self.begin(images)
        found = {number: self.finish(x, grid) for number, x in enumerate(self.outputs(x)) if number in wanted}
        return [found[number] for number in wanted]

    def attention(self, images: Tensor) -> Tensor:
        """Attention maps of the last block for images [B, C, H, W]: [B, heads, P + N, P + N], rows sum to 1.

        Row 0 is where the class token looks; columns are prefix tokens, then patches row-major (DINO's and iBOT's
        `get_last_selfattention`, whose pictures people know).

        Raises:
            ValueError: its blocks are none whose maps are known, as of a CNN.
        """
        block = self.vit.blocks[-1]
        if not _is_plain_block(block):
            raise ValueError(f"the attention of '{self.model}' cannot be shown: its blocks are {type(block).__name__}")
        x, _ = self.begin(images)
        for output in islice(self.outputs(x), self.depth - 1):
            x = output
        return attention_map(block.attn, block.norm1(x), self.shared_bias())

    def shared_bias(self) -> Tensor | None:
        """What all blocks add to their products of queries and keys [heads, N, N]; None = nothing."""
        return None

    def begin(
        self,
        images: Tensor,
        drop: PatchMask | None = None,
        replace: PatchMask | None = None,
        fill: Tensor | None = None,
    ) -> tuple[Tensor, Grid]:
        """What goes into the first block [B, P + N, D], and the grid of patches; the arguments are `forward`'s."""
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

        prefix = (self._prefix_tokens() + prefix_table).expand(len(x), -1, -1)
        return self.vit.norm_pre(torch.cat([prefix, x], dim=1)), grid

    def outputs(self, x: Tensor) -> Iterator[Tensor]:
        """What comes out of every block [B, P + N, D], from what goes into the first."""
        for block in self.vit.blocks:
            x = block(x)
            yield x

    def finish(self, x: Tensor, grid: Grid) -> Tokens:
        """A block's output through the final norm."""
        x = self.vit.norm(x)
        return Tokens(x[:, : self.num_prefix], x[:, self.num_prefix :], grid)

    def fix_positions(self, rows_first: bool = False) -> None:
        """Replace the positions by the fixed sine-cosine table and freeze them."""
        prefix = 0 if self.vit.no_embed_class else self.num_prefix
        with torch.no_grad():
            self.vit.pos_embed.copy_(with_prefix(sincos_2d(self.width, self.native_grid, rows_first), prefix))
        self.vit.pos_embed.requires_grad_(False)

    def embed(self, patches: Tensor) -> Tensor:
        """Tokens [B, K, D] of patches [B, K, p * p * C], without positions.

        The patch convolution as a matrix product, so that hidden patches cost nothing.
        """
        projection = self.vit.patch_embed.proj
        weight = projection.weight.permute(0, 2, 3, 1).flatten(1)
        return self.vit.patch_embed.norm(F.linear(patches, weight, projection.bias))

    def _prefix_tokens(self) -> Tensor:
        tokens = [token for token in (self.vit.cls_token, self.vit.reg_token) if token is not None]
        return torch.cat(tokens, dim=1) if tokens else self.vit.pos_embed.new_zeros(1, 0, self.width)

    def _positions(self, grid: Grid) -> tuple[Tensor | float, Tensor]:
        table = self.vit.pos_embed
        if self.vit.no_embed_class:
            return 0.0, resample(table, self.native_grid, grid, self.interpolation)
        prefix, patches = table[:, : self.num_prefix], table[:, self.num_prefix :]
        return prefix, resample(patches, self.native_grid, grid, self.interpolation)


def drop_alike_(vit: Any, rate: float) -> None:
    """Give both branches of every block of a timm transformer one drop-path rate."""
    from timm.layers import DropPath

    for block in vit.blocks:
        block.drop_path1, block.drop_path2 = DropPath(rate), DropPath(rate)


def fill_in(tokens: Tensor, mask: PatchMask, fill: Tensor | None) -> Tensor:
    """Tokens [B, N, D] with the hidden ones replaced by `fill`, broadcast."""
    assert fill is not None, "replace= needs the token to fill in"
    return torch.where(mask.hidden.unsqueeze(-1), fill.to(tokens.dtype), tokens)


def _is_plain_block(block: nn.Module) -> bool:
    """Whether it is timm's standard block, of a ViT or a BEiT, with timm's standard attention."""
    from timm.models import beit, vision_transformer

    pair = type(block), type(getattr(block, "attn", None))
    return pair in [(family.Block, family.Attention) for family in (vision_transformer, beit)]


def _is_plain(vit: nn.Module) -> bool:
    """Whether `Encoder` runs all its parts: no distillation token, convolutional stem, attention pool, or norm that
    comes after pooling."""
    from timm.layers import PatchEmbed
    from timm.models.vision_transformer import VisionTransformer

    # subclasses have tokens and steps of their own
    if type(vit) is not VisionTransformer or vit.attn_pool is not None or vit.pos_embed is None:
        return False
    return isinstance(vit.patch_embed, PatchEmbed) and isinstance(vit.fc_norm, nn.Identity)
