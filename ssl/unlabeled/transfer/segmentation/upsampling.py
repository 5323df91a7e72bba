"""Bilinear enlargement of maps whose gradients are the same in every run, on a GPU as well."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from unlabeled.nn.loss.exact import exact, wide


def enlarged(x: Tensor, shape: tuple[int, int]) -> Tensor:
    """Maps [..., h, w] enlarged to `shape` in float32 (float64 stays), as torch's bilinear interpolation with
    `align_corners=False`.

    Rows and columns are two products of matrices: torch's own sums the gradients on a GPU in an order that changes.
    """
    x = wide(x)
    if tuple(x.shape[-2:]) == tuple(shape):
        return x
    with exact(x):
        rows, columns = (_weights(old, new, x) for old, new in zip(x.shape[-2:], shape, strict=True))
        return rows @ x @ columns.mT


def _weights(old: int, new: int, like: Tensor) -> Tensor:
    """The share of each of `old` places in `new` ones [new, old], on the device of a tensor."""
    places = torch.eye(old, device=like.device, dtype=like.dtype)
    return F.interpolate(places.unsqueeze(0), new, mode="linear", align_corners=False)[0].mT
