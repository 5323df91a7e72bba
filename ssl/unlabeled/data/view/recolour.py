"""The colours of a batch changed on the device, exactly or fused; `percrop` does the same on a CPU."""

from __future__ import annotations

import torch
from torch import Tensor

from unlabeled.data.view.fused import tint_fused
from unlabeled.data.view.photometric import Photometric, blur, jitter, luminance, per_crop, solarize


def recolour(pixels: Tensor, drawn: Photometric, blurred: Tensor | None = None) -> Tensor:
    """Apply what was drawn, to the whole batch at once; `percrop` does the same on a CPU.

    Args:
        pixels: [..., C, H, W] float32 in [0, 1]. Where they are not RGB, no saturation, hue or grey may be drawn.
        drawn: with the same leading axes.
        blurred: [K] int64, the crops to blur, counted over all leading axes; None = those with a blur, which asks the
            device.
    """
    pixels = tint(pixels, drawn)
    if drawn.blur is not None:
        pixels = _blur_some(pixels, drawn.blur, drawn.blur_kernel, blurred)
    if drawn.solarize is not None:
        pixels = torch.where(per_crop(drawn.solarize), solarize(pixels), pixels)
    return pixels


def tint(pixels: Tensor, drawn: Photometric) -> Tensor:
    """Jitter and grey, exact or fused."""
    if drawn.fused:
        return tint_fused(pixels, drawn)
    if drawn.jitter is not None and drawn.order is not None:
        pixels = jitter(pixels, drawn.jitter, drawn.order)
    if drawn.grayscale is not None:
        pixels = torch.where(per_crop(drawn.grayscale), luminance(pixels), pixels)
    return pixels


def _blur_some(pixels: Tensor, sigma: Tensor, kernel: int | None, which: Tensor | None) -> Tensor:
    flat, sigma = pixels.flatten(0, -4), sigma.flatten()
    which = sigma.nonzero().flatten() if which is None else which
    if not len(which):
        return pixels
    return flat.index_copy(0, which, blur(flat[which], sigma[which], kernel)).view_as(pixels)
