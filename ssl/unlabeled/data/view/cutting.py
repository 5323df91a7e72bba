"""Crops cut on the device, a whole batch at once: `run.views: device`.

A worker ships each image once, decoded, all images of a batch as one flat buffer, with the boxes and flips that it
drew. A crop is two small matrix products, along rows and then along columns: antialiased interpolation is linear.
Weights are those of torch's `F.interpolate(antialias=True)` on uint8 (`aten/src/ATen/native/cpu/UpSampleKernel.cpp`),
16 bits each, and values are rounded to levels after each pass as there. Both forms give the same crops, but for a level
where a float32 sum comes to lie on the other side of a half.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

ROW = 8  # numbers that say where a crop comes from, see `row`
AT_ONCE = 1 << 26  # values of images that are worked on at once: 256 MB, their places twice that
SHARPNESS = -0.5  # of the cubic, as Pillow's
BOUND = 2**15 - 0.5  # of weights in whole numbers
REACH = {"bicubic": 2, "bilinear": 1}


class Cut(NamedTuple):
    """How the crops of a view are cut: (height, width), pixels, and how they are resized."""

    shape: tuple[int, int]
    interpolation: str


def row(shape: Sequence[int], box: Sequence[int], flip: bool) -> Tensor:
    """Where a crop comes from [ROW] int64: the first byte, height and width of its image [C, height, width] in a buffer
    that begins with it, then top, left, height and width of the box, and 1 for a flip."""
    return torch.tensor([0, *shape[-2:], *box, int(flip)])


def pack(images: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """One flat buffer of uint8 images [C, H, W] of any sizes, and where each begins [B] int64. In a loader worker it
    lies in shared memory at once."""
    sizes = torch.tensor([image.numel() for image in images])
    total = int(sizes.sum())
    buffer = torch.empty(total, dtype=torch.uint8)
    if get_worker_info() is not None:
        buffer = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(total), 0, (total,), (1,))
    starts = sizes.cumsum(0) - sizes
    for image, start in zip(images, starts.tolist(), strict=True):
        buffer[start : start + image.numel()].view(image.shape).copy_(image)
    return buffer, starts


def cut(buffer: Tensor, rows: Tensor, sizes: Tensor, how: Cut, channels: int) -> Tensor:
    """Crops uint8 [..., C, h, w] on the device of `buffer`.

    Args:
        buffer: uint8, the images one after the other, on the device.
        rows: [..., ROW] int64, see `row`, on the device.
        sizes: [..., 2], heights and widths of the boxes, on the host: nothing is waited for.
    """
    flat, order = rows.flatten(0, -2), _order(rows[..., 5:7])
    crops = torch.empty(len(flat), channels, *how.shape, dtype=torch.uint8, device=buffer.device)
    begin = 0
    with _exactly():
        for end, box in _several(sizes.flatten(0, -2)[_order(sizes)], channels):
            chosen = order[begin:end]
            crops.index_copy_(0, chosen, _cut(buffer, flat[chosen], box, how, channels))
            begin = end
    return crops.view(*rows.shape[:-1], *crops.shape[1:])


def _order(sizes: Tensor) -> Tensor:
    """Numbers of boxes by area, the same on host and device: those of similar boxes are cut together."""
    return sizes.flatten(0, -2).prod(1).argsort(stable=True)


def _several(sizes: Tensor, channels: int) -> Iterator[tuple[int, tuple[int, int]]]:
    """Where each part of boxes [N, 2] that are cut at once ends, and the (height, width) that holds all its boxes."""
    begin = 0
    while begin < len(sizes):
        tall, wide = sizes[begin:].cummax(0).values.unbind(1)
        values = tall * wide * channels * torch.arange(1, len(tall) + 1)
        count = max(1, int((values <= AT_ONCE).sum()))
        yield begin + count, (int(tall[count - 1]), int(wide[count - 1]))
        begin += count


def _cut(buffer: Tensor, rows: Tensor, box: tuple[int, int], how: Cut, channels: int) -> Tensor:
    """Crops of boxes of at most `box` pixels, uint8 [n, C, h, w]."""
    tall, wide = box
    start, height, width, top, left, own_tall, own_wide, flip = rows.unbind(1)
    count, device = len(rows), buffer.device
    y = (top[:, None] + torch.arange(tall, device=device)).minimum(height[:, None] - 1)[:, :, None, None]
    x = (left[:, None] + torch.arange(wide, device=device)).minimum(width[:, None] - 1)[:, None, None, :]
    channel = torch.arange(channels, device=device)[:, None]
    start, height, width = (column[:, None, None, None] for column in (start, height, width))
    pixels = buffer[start + (channel * height + y) * width + x].float()  # [n, tall, C, wide]
    across = weights(own_wide, wide, how.shape[1], how.interpolation)
    across = torch.where(flip[:, None, None] > 0, across.flip(1), across)
    pixels = _levels(torch.bmm(pixels.flatten(1, 2), across.mT))
    down = weights(own_tall, tall, how.shape[0], how.interpolation)
    pixels = _levels(torch.bmm(down, pixels.view(count, tall, channels * how.shape[1])))
    return pixels.view(count, how.shape[0], channels, how.shape[1]).transpose(1, 2).to(torch.uint8)


def weights(sizes: Tensor, longest: int, side: int, interpolation: str) -> Tensor:
    """Matrices [n, side, longest] float32 that resize lines of `sizes` [n] pixels, at most `longest`, to `side`."""
    scale = sizes[:, None].to(torch.float32 if sizes.device.type == "mps" else torch.float64) / side
    stretch = scale.clamp(min=1)
    reach, taps = REACH[interpolation] * stretch, 2 * math.ceil(REACH[interpolation] * max(1, longest / side)) + 1
    centre = scale * (torch.arange(side, device=sizes.device) + 0.5)
    first, end = (centre - reach + 0.5).floor_().clamp_(min=0), (centre + reach + 0.5).floor_().minimum(sizes[:, None])
    place = first.unsqueeze(-1) + torch.arange(taps, device=sizes.device)
    weight = _kernel(((place - centre.unsqueeze(-1) + 0.5) / stretch.unsqueeze(-1)).abs_(), interpolation)
    weight *= place < end.unsqueeze(-1)
    weight /= weight.sum(-1, keepdim=True)
    # as whole numbers of 16 bits over a power of two, the largest that the largest weight allows
    power = (BOUND / weight.amax((1, 2), keepdim=True)).log2_().floor_().clamp_(max=22).exp2_()
    weight = (weight * power).round_().div_(power).float()
    return weight.new_zeros(*centre.shape, longest + taps).scatter_(2, place.long(), weight)[..., :longest]


def _kernel(away: Tensor, interpolation: str) -> Tensor:
    """The triangle, or Keys's cubic, at distances of at least 0."""
    if interpolation == "bilinear":
        return (1 - away).clamp_(min=0)
    near = ((SHARPNESS + 2) * away - (SHARPNESS + 3)) * away * away + 1
    far = (((away - 5) * away + 8) * away - 4) * SHARPNESS
    return torch.where(away < 1, near, far * (away < 2))


def _levels(values: Tensor) -> Tensor:
    return values.add_(0.5).floor_().clamp_(0, 255)


@contextmanager
def _exactly() -> Iterator[None]:
    """Products in float32, whatever precision training has."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
