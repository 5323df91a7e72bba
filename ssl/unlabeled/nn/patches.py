"""Patches of an image and masks over them. Patches are numbered row-major; prefix tokens never count."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from unlabeled.nn.regions import region

PADDED_TO = 64  # hidden patches, in multiples


class PatchMask(NamedTuple):
    """Hidden patches, as a map and, when every row hides the same number, as indices; and the sets to predict.

    Attributes:
        hidden: [..., N] bool, True where the patch is hidden.
        keep: [..., K] int64, the visible patches in the order drawn; None when counts differ between rows.
        drop: [..., M] int64, the hidden patches in the order drawn: its first m are a random m of them.
        targets: [..., T, M] int64, T sets of patches to predict, each on its own; None = all hidden ones are one set.
    """

    hidden: Tensor
    keep: Tensor | None
    drop: Tensor | None
    targets: Tensor | None = None

    def indices(self) -> tuple[Tensor, Tensor]:
        """(keep, drop); every row must hide the same number."""
        assert self.keep is not None and self.drop is not None, "this mask hides unequal numbers of patches"
        return self.keep, self.drop

    def sets(self) -> Tensor:
        """The sets of patches to predict [..., T, M]; every row must hide the same number."""
        return self.indices()[1].unsqueeze(-2) if self.targets is None else self.targets

    def map(self, function: Callable[[Tensor], Tensor]) -> PatchMask:
        """Apply `function` to each tensor of the mask."""
        indices = (None if index is None else function(index) for index in self[1:])
        return PatchMask(function(self.hidden), *indices)

    def flat(self) -> PatchMask:
        """Merge the leading axes: [count, B, ...] becomes [count * B, ...], view-major."""
        last = self.hidden.ndim - 2
        return self.map(lambda tensor: tensor.flatten(0, last))

    def side(self, images: Tensor) -> int:
        """The side of its patches in images [..., H, W], pixels."""
        return math.isqrt(images.shape[-2] * images.shape[-1] // self.hidden.shape[-1])

    def refined(self, grid: tuple[int, int]) -> PatchMask:
        """The map over a finer grid of (rows, columns), whose patches are hidden as the larger ones around them."""
        factor = math.isqrt(grid[0] * grid[1] // self.hidden.shape[-1])
        hidden = self.hidden.unflatten(-1, (grid[0] // factor, grid[1] // factor))
        return PatchMask(hidden.repeat_interleave(factor, -2).repeat_interleave(factor, -1).flatten(-2), None, None)

    @staticmethod
    def stack(masks: Sequence[PatchMask]) -> PatchMask:
        """Stack masks of the same kind along a new leading axis."""
        hidden, *indices = zip(*masks, strict=True)
        return PatchMask(torch.stack(hidden), *(None if None in column else torch.stack(column) for column in indices))


def patchify(images: Tensor, patch: int) -> Tensor:
    """Cut images [B, C, H, W] into patches [B, N, patch * patch * C], pixels row-major, channel fastest (MAE)."""
    return rearrange(images, "b c (h p) (w q) -> b (h w) (p q c)", p=patch, q=patch)


def unpatchify(patches: Tensor, patch: int, grid: tuple[int, int]) -> Tensor:
    """The inverse of `patchify`: [B, N, patch * patch * C] to [B, C, H, W] for a grid of (rows, columns)."""
    return rearrange(patches, "b (h w) (p q c) -> b c (h p) (w q)", p=patch, q=patch, h=grid[0], w=grid[1])


def resize_patches(
    patches: Tensor, grid: tuple[int, int], target: tuple[int, int], mode: Literal["bilinear", "bicubic"]
) -> Tensor:
    """Features of patches [B, N, D] of a grid (rows, columns) resampled to another; corners are not aligned, nothing is
    antialiased."""
    if grid == target:
        return patches
    maps = F.interpolate(patches.mT.unflatten(2, grid), target, mode=mode, align_corners=False)
    return maps.flatten(2).mT


def triptych(images: Tensor, prediction: Tensor, mask: PatchMask, patch: int) -> Tensor:
    """Originals, masked inputs and reconstructions of normalised images [B, C, H, W]: [B, 3, C, H, W].

    Hidden patches become 0 in the masked input, the mean colour; of the prediction [B, N, patch * patch * C] only these
    are shown.
    """
    hidden, patches = mask.hidden.unsqueeze(-1), patchify(images, patch)
    rows = [patches, torch.where(hidden, 0.0, patches), torch.where(hidden, prediction, patches)]
    grid = (images.shape[-2] // patch, images.shape[-1] // patch)
    return torch.stack([unpatchify(row, patch, grid) for row in rows], dim=1)


def gather(tokens: Tensor, index: Tensor) -> Tensor:
    """Pick rows of tokens [B, N, D] by index [B, K]: [B, K, D]."""
    return tokens.gather(1, index.unsqueeze(-1).expand(-1, -1, tokens.shape[-1]))


def padded_count(counts: Sequence[int | None], most: int) -> int:
    """Length of the list of hidden patches: their number in all views, rounded up so that few lengths occur.

    A count None is unknown, up to `most`: the number of all patches.
    """
    known = sum(most if count is None else count for count in counts)
    return min(most, max(1, math.ceil(known / PADDED_TO)) * PADDED_TO)


def hidden_rows(hidden: Tensor, rows: int) -> tuple[Tensor, Tensor]:
    """List the hidden patches of all crops, padded to a length that does not depend on values.

    From a map [R, N] bool, with at most `rows` hidden patches: their indices [rows] in the flattened R * N patches,
    ascending; and weights [rows], 1 over the number of hidden patches of the same crop, 0 for padding.
    """
    index = hidden.flatten().byte().argsort(descending=True, stable=True)[:rows]
    weight = hidden / hidden.sum(1, keepdim=True).clamp_min(1)
    return index, weight.flatten()[index]


@region
def normalize_patches(patches: Tensor, eps: float = 1e-6) -> Tensor:
    """Normalise each patch to zero mean and unit variance (MAE section 4.2; unbiased, eps inside the root)."""
    variance, mean = torch.var_mean(patches, dim=-1, keepdim=True)
    return (patches - mean) / (variance + eps).sqrt()
