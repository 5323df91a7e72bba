"""The colour half on a CPU: crop after crop, in place, while it lies in the cache.

Equal to the batched one to rounding. A crop does only what was drawn for it, so one that is not blurred costs no blur.
Values are levels, 0..255: nothing here depends on their unit but the bounds. Comparisons, `where` and remainders cost
several times what minima, products and absolute values do, and are written with these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from unlabeled.data.view.photometric import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    LUMA,
    UNCHANGED,
    Photometric,
    blur_matrix,
    blur_reach,
    luma,
)
from unlabeled.data.view.recolour import compose

WHITE = 255
BLOCK = 16  # rows of a blur at a time


def recolour_and_normalize(pixels: Tensor, drawn: Photometric, scale: Tensor, shift: Tensor) -> Tensor:
    """Apply what was drawn, as `recolour.recolour` does, and normalise to float32 [N, C, H, W].

    Args:
        pixels: [N, C, H, W] uint8, on the host. Where they are not RGB, no saturation, hue or grey may be drawn.
        drawn: with leading axis N.
        scale, shift: [C, 1, 1]: values in 0..255 become values * scale + shift.
    """
    result = torch.empty(pixels.shape)
    tint, blurs = (Fused if drawn.fused else Exact)(drawn, pixels), Blurs(drawn, pixels.shape[1:])
    for i, solarized in enumerate(_listed(drawn.solarize, len(pixels))):
        crop = result[i].copy_(pixels[i])
        coloured = blurs.apply(tint.apply(crop, i), i)
        if solarized:
            coloured.sub_(WHITE / 2).abs_().neg_().add_(WHITE / 2)  # 255 - x from 127.5 on
        torch.mul(coloured, scale, out=crop).add_(shift)
    return result


def _listed(values: Tensor | None, count: int) -> Sequence[Any]:
    return [None] * count if values is None else values.tolist()


class Exact:
    """Jitter and grey as torchvision has them, on crops that may be changed."""

    def __init__(self, drawn: Photometric, pixels: Tensor) -> None:
        columns = (_listed(values, len(pixels)) for values in (drawn.jitter, drawn.order, drawn.grayscale))
        self.drawn = list(zip(*columns, strict=True))

    def apply(self, crop: Tensor, i: int) -> Tensor:
        """Crop i [C, H, W] in its colours; [1, H, W] where it is grey."""
        factors, order, grey = self.drawn[i]
        if factors is not None:
            jitter_(crop, factors, order)
        return luminance(crop).unsqueeze(0) if grey else crop


class Fused:
    """Jitter and grey as one affine map."""

    def __init__(self, drawn: Photometric, pixels: Tensor) -> None:
        means = pixels.sum((-2, -1), dtype=torch.int64) / (WHITE * pixels[0, 0].numel())
        self.matrix, offset = compose(means, drawn)
        self.offset = WHITE * offset.unsqueeze(-1)

    def apply(self, crop: Tensor, i: int) -> Tensor:
        """Crop i [C, H, W] in its colours."""
        return torch.addmm(self.offset[i], self.matrix[i], crop.flatten(1)).clamp_(0, WHITE).view_as(crop)


def luminance(crop: Tensor) -> Tensor:
    """[C, H, W] to [H, W]: by ITU-R 601, the mean of channels that are not three."""
    if len(crop) != 3:
        return crop.mean(0)
    red, green, blue = crop
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def mean_luminance(crop: Tensor) -> Tensor:
    """[C, H, W] to a scalar."""
    means = crop.mean((1, 2)).tolist()
    return torch.tensor(sum(weight * mean for weight, mean in zip(luma(len(means)), means, strict=True)))


def jitter_(crop: Tensor, factors: list[float], order: list[int]) -> None:
    """torchvision's ColorJitter on a crop [C, H, W]; what would change nothing is left out."""
    for what in order:
        factor = factors[what]
        if factor == UNCHANGED[what]:
            continue
        if what == HUE:
            turn_hue_(crop, factor)
            continue
        if what == BRIGHTNESS:
            crop.mul_(factor)
        else:
            crop.lerp_(mean_luminance(crop) if what == CONTRAST else luminance(crop), 1 - factor)
        if factor > 1:  # else it is a mean of what is within the bounds
            crop.clamp_(0, WHITE)


def turn_hue_(crop: Tensor, turn: float) -> None:
    """Turn the hue of a crop [3, H, W] by `turn` of a circle, value and saturation of HSV kept."""
    red, green, blue = crop
    low, high = torch.minimum(red, green), torch.maximum(red, green)
    torch.minimum(low, blue, out=low)
    torch.maximum(high, blue, out=high)
    chroma = high - low
    dark = low - chroma

    # the hue, in sixths of a circle times chroma: how far from red, negative on blue's side
    hue = torch.copysign((green + blue).sub_(red).sub_(dark), green - blue)

    # each channel is a trapezoid of the turned hue, around its own: a wave of period 6, cut off at low and high
    for channel, own in zip(crop, (0, 2, 4), strict=True):
        wave = torch.add(hue, chroma, alpha=(6 * turn - own + 3) % 6 - 3).abs_()
        torch.clamp(wave.sub_(chroma, alpha=3).abs_().add_(dark), low, high, out=channel)


class Blurs:
    """The blurs of a batch of crops of `shape` (C, H, W), those that were drawn."""

    def __init__(self, drawn: Photometric, shape: Sequence[int]) -> None:
        channels, height, width = shape
        chosen: list[int] = [] if drawn.blur is None else drawn.blur.nonzero().flatten().tolist()
        self.places = {i: k for k, i in enumerate(chosen)}
        if drawn.blur is None or not chosen:
            return
        self.down = Bands(height, drawn.blur[chosen], drawn.blur_kernel)
        self.across = self.down if height == width else Bands(width, drawn.blur[chosen], drawn.blur_kernel)
        reach = self.down.reach
        self.padded = torch.zeros(self.down.rows + 2 * reach, channels, self.across.rows + 2 * reach)
        self.inside = slice(reach, reach + height), slice(None), slice(reach, reach + width)

    def apply(self, crop: Tensor, i: int) -> Tensor:
        """Crop i [C, H, W] blurred first down, then across, if it is to be blurred."""
        if (k := self.places.get(i)) is None:
            return crop
        # the channels of a row side by side, so that one product blurs them all
        padded = self.padded[:, : len(crop)]
        padded[self.inside] = crop.transpose(0, 1)
        halfway = torch.bmm(self.down.blocks(k), self.down.windows(padded.flatten(1))).view(-1, padded.shape[-1])
        blurred = torch.empty(len(halfway), self.across.count, self.across.block)
        torch.bmm(self.across.blocks(k), self.across.windows(halfway.T), out=blurred.permute(1, 2, 0))
        blurred = blurred.view(-1, len(crop), self.across.rows)
        return blurred[: crop.shape[1], :, : crop.shape[2]].transpose(0, 1)


class Bands:
    """Matrices of blurs [K, side, side], which are zero but for a band, in blocks of rows; see `photometric.blur`."""

    def __init__(self, side: int, sigma: Tensor, kernel: int | None) -> None:
        self.reach = reach = blur_reach(sigma, kernel)
        self.block = block = max(BLOCK, reach)
        self.seen = block + 2 * reach
        # all blocks but those next to an edge are alike, so a smaller matrix has all that there is to know
        small = min(side, 3 * block + side % block)
        beyond = -small % block
        matrix = F.pad(blur_matrix(small, sigma, kernel), (reach, beyond + reach, 0, beyond))
        different = matrix.unfold(1, block, block).unfold(2, self.seen, block).diagonal(dim1=1, dim2=2)
        self.different = different.movedim(-1, 1).contiguous()
        alike = [1] * ((side - small) // block)
        self.which = torch.tensor(sorted([*range(self.different.shape[1]), *alike]))
        self.count, self.rows = len(self.which), len(self.which) * block

    def blocks(self, k: int) -> Tensor:
        """The blocks of matrix k: [blocks, rows, seen], zeros beyond its edges."""
        return self.different[k].index_select(0, self.which)

    def windows(self, values: Tensor) -> Tensor:
        """The window of each block in values [reach + rows + reach, M]: [blocks, seen, M]."""
        return values.unfold(0, self.seen, self.block).mT
