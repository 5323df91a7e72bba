"""The colour half of a view: drawn per crop in the worker, applied to the whole batch on the device.

Jitter, then grey, then blur, then solarise, as in DINO; MoCo v3 flips last, DINO first, which is the same thing since
a flip commutes with all four. Everything is float32 in [0, 1]. On the same parameters:

- jitter, grey and solarise equal torchvision's float functions to rounding (1e-5). The official pipelines round to
  8 bits after every operation, and Pillow turns hues in steps of 1/256; here nothing is rounded.
- blur by radius is Pillow's own rule (three box blurs each way, edges repeated) without the rounding to 8 bits after
  each pass: on noise within 3/255 of `ImageFilter.GaussianBlur`, 0.3/255 to 1/255 on average (least for wide blurs).
  With `blur_kernel` it equals torchvision's `gaussian_blur` to 1e-5.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

BRIGHTNESS, CONTRAST, SATURATION, HUE = range(4)
UNCHANGED = np.array([1, 1, 1, 0])
NONE = (0.0, 0.0, 0.0, 0.0)
LUMA = (0.2989, 0.587, 0.114)
DRAWS = 13
BOX_PASSES = 3


class Photometric(NamedTuple):
    """Random colour parameters of crops; None where their view never uses one."""

    # [..., 4] float32, factors of brightness, contrast and saturation, and the turn of the hue in [-.5, .5]
    jitter: Tensor | None
    order: Tensor | None  # [..., 4] int64, in which order: a permutation of 0 (brightness) to 3 (hue)
    grayscale: Tensor | None  # [...] bool
    blur: Tensor | None  # [...] float32, standard deviation in pixels, 0 = not blurred
    solarize: Tensor | None  # [...] bool
    blur_kernel: int | None = None  # taps of the blur; None = Pillow's blur
    fused: bool = False  # whether jitter and grey are one affine map, see `fused`

    def map(self, function: Callable[[Tensor], Tensor]) -> Photometric:
        """The same with `function` applied to each tensor."""
        values: list[Any] = [function(value) if isinstance(value, Tensor) else value for value in self]
        return Photometric(*values)

    def blurred(self) -> Tensor | None:
        """The crops to blur of a batch with leading axes [B, count]: [K] int64, counted as on the device, where they
        are [count, B]; None = the view never blurs."""
        return None if self.blur is None else self.blur.T.flatten().nonzero().flatten()

    @staticmethod
    def stack(drawn: Sequence[Photometric]) -> Photometric:
        """Several crops of one view with a new leading axis."""
        columns = zip(*drawn, strict=True)
        values: list[Any] = [torch.stack(list(c)) if isinstance(c[0], Tensor) else c[0] for c in columns]
        return Photometric(*values)


def factors(strength: tuple[float, float, float, float], uniform: np.ndarray) -> np.ndarray:
    """torchvision's ranges: [max(0, 1 - s), 1 + s] for the first three, [-s, s] for the hue."""
    spread = np.array(strength)
    low, high = UNCHANGED - spread, UNCHANGED + spread
    low[:HUE] = low[:HUE].clip(min=0)
    return low + uniform * (high - low)


def per_crop(values: Tensor) -> Tensor:
    """Values [...] that broadcast over crops [..., C, H, W]."""
    return values[..., None, None, None]


def luma(channels: int) -> Sequence[float]:
    """Weights of the luminance: ITU-R 601, the same for each of channels that are not three."""
    return LUMA if channels == len(LUMA) else [1 / channels] * channels


def luminance(pixels: Tensor) -> Tensor:
    """[..., C, H, W] to [..., 1, H, W]: by ITU-R 601, the mean of channels that are not three."""
    if pixels.shape[-3] != 3:
        return pixels.mean(-3, keepdim=True)
    red, green, blue = (weight * channel for weight, channel in zip(LUMA, pixels.unbind(-3), strict=True))
    return (red + green + blue).unsqueeze(-3)


def solarize(pixels: Tensor) -> Tensor:
    """Invert values of 128/255 and more; between two levels, those that would round to 128 or more."""
    return torch.where(pixels >= 0.5, 1 - pixels, pixels)


def jitter(pixels: Tensor, factors: Tensor, order: Tensor) -> Tensor:
    """torchvision's ColorJitter with its random order, a different one for every crop [..., C, H, W] in [0, 1];
    `factors` [..., 4] and `order` [..., 4] are those of `Photometric`."""
    # the hue costs most and is turned once: what a crop does before it comes in the first three rounds, the rest after
    turns = torch.arange(4, device=order.device)
    hue_at = (order == HUE).int().argmax(-1, keepdim=True)
    ordered = factors.gather(-1, order)
    before, after = torch.where(turns < hue_at, ordered, 1.0), torch.where(turns > hue_at, ordered, 1.0)
    for turn in (0, 1, 2):
        pixels = blend(pixels, order[..., turn], before[..., turn])
    if pixels.shape[-3] == 3:  # nothing else has hues
        pixels = turn_hue(pixels, factors[..., HUE])
    for turn in (1, 2, 3):
        pixels = blend(pixels, order[..., turn], after[..., turn])
    return pixels


def blend(pixels: Tensor, what: Tensor, factor: Tensor) -> Tensor:
    """Brightness, contrast or saturation of [..., C, H, W] in [0, 1], as `what` [...] says: away from (or towards)
    black, the mean luminance, or the luminance, by `factor` [...], 1 = unchanged."""
    what, factor = per_crop(what), per_crop(factor)
    grey = luminance(pixels)
    flat = torch.where(what == CONTRAST, grey.mean((-2, -1), keepdim=True), 0.0)
    towards = torch.where(what == SATURATION, grey, flat)
    return (factor * pixels + (1 - factor) * towards).clamp(0, 1)


def turn_hue(pixels: Tensor, turn: Tensor) -> Tensor:
    """Turn the hue of [..., 3, H, W] by `turn` [...] of a circle, value and saturation of HSV kept."""
    red, green, blue = pixels.unbind(-3)
    value = pixels.amax(-3)
    chroma = value - pixels.amin(-3)
    divisor = torch.where(chroma > 0, chroma, 1.0)
    # in sixths of a circle, from red
    from_blue = torch.where(value == green, 2 + (blue - red) / divisor, 4 + (red - green) / divisor)
    hue = torch.where(value == red, (green - blue) / divisor, from_blue) + 6 * turn[..., None, None]
    # red, green and blue are trapezoids of the hue, a third of a circle apart
    starts = (5 - 2 * torch.arange(3, device=pixels.device)).view(3, 1, 1)
    along = (hue.unsqueeze(-3) + starts) % 6
    turned = value.unsqueeze(-3) - chroma.unsqueeze(-3) * torch.minimum(along, 4 - along).clamp(0, 1)
    return torch.where(per_crop(turn != 0), turned, pixels)


def blur(pixels: Tensor, sigma: Tensor, kernel: int | None = None) -> Tensor:
    """Gaussian blur, as a product with one matrix per crop and axis.

    Args:
        pixels: [..., C, H, W].
        sigma: [...], standard deviation in pixels, 0 = unchanged.
        kernel: taps, odd: torchvision's `gaussian_blur`, edges mirrored. None: Pillow's `GaussianBlur(radius=sigma)`.
    """
    height, width = pixels.shape[-2:]
    rows, columns = (blur_matrix(side, sigma, kernel) for side in (height, width))
    return torch.einsum("...hi,...ciw->...chw", rows, torch.einsum("...wj,...chj->...chw", columns, pixels))


def blur_matrix(side: int, sigma: Tensor, kernel: int | None) -> Tensor:
    """The matrices [..., side, side] of a blur: rows that sum to 1, zero beyond `blur_reach` of the diagonal."""
    if kernel is not None:
        return _mirrored_gaussian(side, sigma[..., None, None], kernel)
    box = _repeated_box(side, box_radius(sigma)[..., None, None])
    return torch.linalg.matrix_power(box, BOX_PASSES)


def blur_reach(sigma: Tensor, kernel: int | None) -> int:
    """Radius of a blur in pixels."""
    return BOX_PASSES * int(box_radius(sigma).max().ceil()) if kernel is None else kernel // 2


def box_radius(sigma: Tensor) -> Tensor:
    """Radius of the box that, applied three times, has standard deviation `sigma`. Extended box filters (Gwosdek et
    al., SSVM 2011, equations 8 and 14), as in Pillow's `BoxBlur.c`."""
    variance = sigma.square() / BOX_PASSES
    whole = torch.floor(((12 * variance + 1).sqrt() - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1).square()))
    return whole + part


def _repeated_box(side: int, radius: Tensor) -> Tensor:
    """One pass of a box whose outermost taps count in part; pixels beyond an edge are those at the edge."""
    at = torch.arange(side, device=radius.device)
    weights = (radius + 1 - (at[:, None] - at).abs()).clamp(0, 1) / (2 * radius + 1)
    # what falls off on the left of row i is half of what lies farther than i on both sides
    first = weights[..., :1, :]
    beyond = (1 + first[..., :1] - 2 * first.cumsum(-1)).transpose(-2, -1) / 2
    return weights + beyond * (at == 0) + beyond.flip(-2) * (at == side - 1)


def _mirrored_gaussian(side: int, sigma: Tensor, kernel: int) -> Tensor:
    """A normalised Gaussian of `kernel` taps, mirrored at the edges without repeating them."""
    at = torch.arange(side, device=sigma.device)
    reach = torch.arange(-(kernel // 2), kernel // 2 + 1, device=sigma.device)
    narrow = sigma.clamp_min(1e-3)

    def weight(distance: Tensor) -> Tensor:
        return torch.exp(-0.5 * (distance / narrow).square()) * (distance.abs() <= kernel // 2)

    row, column, last = at[:, None], at, side - 1
    folded = weight(row + column) * (column > 0) + weight(2 * last - row - column) * (column < last)
    return (weight(row - column) + folded) / weight(reach).sum(-1, keepdim=True)
