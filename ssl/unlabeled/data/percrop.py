"""The colour half on a CPU: crop after crop, in place, while it lies in the cache.

Equal to the batched one to rounding. A crop does only what was drawn for it, so one that is not blurred costs no blur.
Comparisons, `where` and remainders cost several times what minima, products and floors do, and are written with these.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from unlabeled.data.photometric import (
    BRIGHTNESS,
    CONTRAST,
    HUE,
    LUMA,
    UNCHANGED,
    Photometric,
    blur_matrix,
    blur_reach,
)

BLOCK = 32  # rows of a blur at a time
WHOLE = 128  # sides up to here are blurred by one product
TINY = 1e-12
HUGE = 1e30


def recolour_and_normalize(pixels: Tensor, drawn: Photometric, scale: Tensor, shift: Tensor) -> Tensor:
    """Apply what was drawn, as `photometric.recolour` does, and normalise.

    Args:
        pixels: [N, C, H, W] uint8, on the host. Where they are not RGB, no saturation, hue or grey may be drawn.
        drawn: with leading axis N.
        scale, shift: [C, 1, 1]: values in 0..255 become values * scale + shift.

    Returns:
        [N, C, H, W] float32.
    """
    result, by = torch.empty(pixels.shape), 255 * scale
    blurs = Blurs(drawn, pixels.shape[-2], pixels.shape[-1])
    for i, crop in enumerate(result):
        crop.copy_(pixels[i]).mul_(1 / 255)
        if drawn.jitter is not None and drawn.order is not None:
            jitter_(crop, drawn.jitter[i].tolist(), drawn.order[i].tolist())
        if drawn.grayscale is not None and drawn.grayscale[i]:
            crop.copy_(luminance(crop))
        blurs.apply_(crop, i)
        if drawn.solarize is not None and drawn.solarize[i]:
            crop.sub_(0.5).abs_().neg_().add_(0.5)  # 1 - x from 0.5 on
        crop.mul_(by).add_(shift)
    return result


def luminance(crop: Tensor) -> Tensor:
    """[C, H, W] to [H, W]: by ITU-R 601, the mean of channels that are not three."""
    if len(crop) != 3:
        return crop.mean(0)
    red, green, blue = crop
    return (red * LUMA[0]).add_(green, alpha=LUMA[1]).add_(blue, alpha=LUMA[2])


def jitter_(crop: Tensor, factors: list[float], order: list[int]) -> None:
    """torchvision's ColorJitter on a crop [C, H, W]; what would change nothing is left out."""
    for what in order:
        factor = factors[what]
        if factor == UNCHANGED[what]:
            continue
        if what == HUE:
            turn_hue_(crop, factor)
        elif what == BRIGHTNESS:
            crop.mul_(factor).clamp_(0, 1)
        else:
            towards = luminance(crop if what != CONTRAST else crop.mean((1, 2), keepdim=True))
            crop.mul_(factor).add_(towards, alpha=1 - factor).clamp_(0, 1)


def turn_hue_(crop: Tensor, turn: float) -> None:
    """Turn the hue of a crop [3, H, W] by `turn` of a circle, value and saturation of HSV kept."""
    red, green, blue = crop
    low, high = torch.minimum(red, green), torch.maximum(red, green)
    torch.minimum(low, blue, out=low)
    torch.maximum(high, blue, out=high)
    chroma = high - low

    # the hue in sixths of a circle from red, turned: by which channel is the largest
    scale, at_red = chroma.clamp_min(TINY).reciprocal_(), 6 * turn
    hue = (red - green).mul_(scale).add_(at_red + 4)
    hue.lerp_((blue - red).mul_(scale).add_(at_red + 2), _where_equal(high, green))
    hue.lerp_((green - blue).mul_(scale).add_(at_red), _where_equal(high, red))
    hue.sub_((hue / 6).floor_(), alpha=6)

    # each channel is a trapezoid of the hue
    torch.addcmul(low, chroma, (hue - 3).abs_().sub_(1).clamp_(0, 1), out=red)
    torch.addcmul(high, chroma, (hue - 2).abs_().sub_(1).clamp_(0, 1), value=-1, out=green)
    torch.addcmul(high, chroma, (hue - 4).abs_().sub_(1).clamp_(0, 1), value=-1, out=blue)


def _where_equal(high: Tensor, channel: Tensor) -> Tensor:
    """1 where a channel is the highest, 0 elsewhere."""
    return (channel - high).mul_(HUGE).add_(1).clamp_min_(0)


class Band(NamedTuple):
    """A block of blurs' matrices: some rows, the columns that they see, what is between them [K, rows, columns]."""

    rows: slice
    columns: slice
    matrices: Tensor


class Blurs:
    """The blurs of a batch of crops, those that were drawn.

    Args:
        drawn: for all of them.
        height, width: of a crop.
    """

    def __init__(self, drawn: Photometric, height: int, width: int) -> None:
        chosen = [] if drawn.blur is None else drawn.blur.nonzero().flatten().tolist()
        self.places = {i: k for k, i in enumerate(chosen)}
        if drawn.blur is not None and chosen:
            self.down = bands(height, drawn.blur[chosen], drawn.blur_kernel)
            self.across = self.down if height == width else bands(width, drawn.blur[chosen], drawn.blur_kernel)

    def apply_(self, crop: Tensor, i: int) -> None:
        """Blur crop i [C, H, W], first down, then across, if it is to be blurred."""
        if (k := self.places.get(i)) is None:
            return
        halfway = torch.empty_like(crop)
        for rows, columns, matrices in self.down:
            halfway[:, rows] = matrices[k] @ crop[:, columns]
        flat, result = halfway.flatten(0, 1), crop.flatten(0, 1)
        for rows, columns, matrices in self.across:
            result[:, rows] = flat[:, columns] @ matrices[k].T


def bands(side: int, sigma: Tensor, kernel: int | None) -> list[Band]:
    """The matrices of blurs of standard deviations `sigma` [K], which are bands, in blocks that cover the side."""
    reach = blur_reach(sigma, kernel)
    block = max(BLOCK, reach)
    # all rows but those next to an edge are alike, so a smaller matrix has all that there is to know
    small = 2 * (block + reach)
    if side <= max(small, WHOLE):
        return [Band(slice(side), slice(side), blur_matrix(side, sigma, kernel))]
    matrix = blur_matrix(small, sigma, kernel)
    inner = matrix[:, reach : reach + block, : block + 2 * reach]
    found = [Band(slice(block), slice(block + reach), matrix[:, :block, : block + reach])]
    for start in range(block, side - block, block):
        start = min(start, side - block - reach)
        found.append(Band(slice(start, start + block), slice(start - reach, start + block + reach), inner))
    last = matrix[:, -block:, -block - reach :]
    return [*found, Band(slice(side - block, side), slice(side - block - reach, side), last)]
