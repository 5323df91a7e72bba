"""The colours of a batch changed on the device, exactly or fused; `percrop` does the same on a CPU.

Fused means that all that is linear in a crop's colours, jitter and grey, is composed to one affine map, applied in one
pass. It is faster than the exact colours of `photometric`, and not the same:

- nothing is clamped between operations, only in the end;
- the hue is turned about the grey axis of RGB, which is linear, instead of along HSV's hexagon. Both keep greys, and a
  third of a circle takes red to green in both; one keeps the mean of the channels, the other the largest and smallest.

Parameters, order, blur and solarise are those of the exact path. `benchmarks/colours.py` measures the difference.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unlabeled.data.view import photometric
from unlabeled.data.view.photometric import BRIGHTNESS, CONTRAST, HUE, LUMA, SATURATION, Photometric, luma, per_crop
from unlabeled.nn.regions import region


def recolour(pixels: Tensor, drawn: Photometric, blurred: Tensor | None = None) -> Tensor:
    """Apply what was drawn, to the whole batch at once; `percrop` does the same on a CPU.

    Args:
        pixels: [..., C, H, W] float32 in [0, 1]. Where they are not RGB, no saturation, hue or grey may be drawn.
        drawn: with the same leading axes.
        blurred: [K] int64, the crops to blur, counted over all leading axes; None = those with a blur, which asks the
            device.
    """
    return _solarized(_blurred(tint(pixels, drawn), drawn, blurred), drawn.solarize)


def recolour_and_normalize(
    pixels: Tensor, drawn: Photometric, blurred: Tensor | None, scale: Tensor, shift: Tensor
) -> Tensor:
    """`recolour` of uint8 pixels, then times 255 and `scale`, plus `shift`: float32."""
    return _ended(_blurred(_begun(pixels, drawn), drawn, blurred), drawn.solarize, scale, shift)


@region
def _begun(pixels: Tensor, drawn: Photometric) -> Tensor:
    return tint(pixels.float() / 255, drawn)


@region
def _ended(pixels: Tensor, solarize: Tensor | None, scale: Tensor, shift: Tensor) -> Tensor:
    return (_solarized(pixels, solarize) * 255).mul_(scale).add_(shift)


def _blurred(pixels: Tensor, drawn: Photometric, blurred: Tensor | None) -> Tensor:
    if drawn.blur is None:
        return pixels
    flat, sigma = pixels.flatten(0, -4), drawn.blur.flatten()
    which = sigma.nonzero().flatten() if blurred is None else blurred
    if not len(which):
        return pixels
    changed = photometric.blur(flat[which], sigma[which], drawn.blur_kernel)
    return flat.index_copy(0, which, changed).view_as(pixels)


def _solarized(pixels: Tensor, solarize: Tensor | None) -> Tensor:
    return pixels if solarize is None else torch.where(per_crop(solarize), photometric.solarize(pixels), pixels)


def tint(pixels: Tensor, drawn: Photometric) -> Tensor:
    """Jitter and grey, exact or fused."""
    if drawn.fused:
        return tint_fused(pixels, drawn)
    if drawn.jitter is not None and drawn.order is not None:
        pixels = photometric.jitter(pixels, drawn.jitter, drawn.order)
    if drawn.grayscale is not None:
        pixels = torch.where(per_crop(drawn.grayscale), photometric.luminance(pixels), pixels)
    return pixels


def tint_fused(pixels: Tensor, drawn: Photometric) -> Tensor:
    """Jitter and grey of a batch [..., C, H, W] float32 in [0, 1] in one product, arguments as in `recolour`."""
    matrix, offset = compose(pixels.mean((-2, -1)), drawn)
    mixed = matrix @ pixels.flatten(-2) + offset.unsqueeze(-1)
    return mixed.clamp_(0, 1).view_as(pixels)


def compose(means: Tensor, drawn: Photometric) -> tuple[Tensor, Tensor]:
    """The map x -> matrix @ x + offset of each crop: matrix [..., C, C], offset [..., C].

    Args:
        means: [..., C], of each channel, in [0, 1]: contrast goes by the mean luminance of what it is given.
        drawn: with the same leading axes.
    """
    channels = means.shape[-1]
    weights = torch.stack([means.new_full((), weight) for weight in luma(channels)])  # nothing is copied to the device
    same = torch.eye(channels, device=means.device)
    matrix = same.expand(*means.shape[:-1], channels, channels)
    offset = torch.zeros_like(means)
    if drawn.jitter is not None and drawn.order is not None:
        maps = _maps(drawn.jitter, weights)
        for what in drawn.order.unbind(-1):
            mean = (_apply(matrix, means) + offset) @ weights
            chosen = maps.gather(-3, what[..., None, None, None].expand(*what.shape, 1, channels, channels)).squeeze(-3)
            lifted = torch.where(what == CONTRAST, (1 - drawn.jitter[..., CONTRAST]) * mean, 0.0)
            matrix, offset = chosen @ matrix, _apply(chosen, offset) + lifted.unsqueeze(-1)
    if drawn.grayscale is not None:
        grey = torch.where(drawn.grayscale[..., None, None], weights.expand_as(same), same)
        matrix, offset = grey @ matrix, _apply(grey, offset)
    return matrix, offset


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector.unsqueeze(-1)).squeeze(-1)


def _maps(factors: Tensor, weights: Tensor) -> Tensor:
    """Linear maps of brightness, contrast, saturation and hue, [..., 4, C, C], but for contrast's offset."""
    channels = len(weights)
    same = torch.eye(channels, device=weights.device)
    brightness, contrast, saturation, turn = factors[..., None, None].unbind(-3)
    grey = weights.expand(channels, channels)
    hue = _hue(turn) if channels == len(LUMA) else same.expand_as(brightness * same)
    found = {
        BRIGHTNESS: brightness * same,
        CONTRAST: contrast * same,
        SATURATION: saturation * same + (1 - saturation) * grey,
        HUE: hue,
    }
    return torch.stack([found[what] for what in range(4)], -3)


def _hue(turn: Tensor) -> Tensor:
    """Turns [..., 1, 1] of a circle about the grey axis, as matrices [..., 3, 3] of RGB: a third takes red to green."""
    angle, same = 2 * math.pi * turn, torch.eye(3, device=turn.device)
    cross = (same.roll(1, 0) - same.roll(-1, 0)) / math.sqrt(3)
    return angle.cos() * same + (1 - angle.cos()) / 3 + angle.sin() * cross
