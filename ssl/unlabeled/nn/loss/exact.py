"""Losses in float32, also under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor


def exact(x: Tensor) -> AbstractContextManager[None]:
    """Switch autocast off: products in float32."""
    # the meta device, on which plans are made, has no autocast
    return nullcontext() if x.is_meta else torch.autocast(x.device.type, enabled=False)


def wide(x: Tensor) -> Tensor:
    """Convert to float32, or keep float64."""
    return x if x.dtype == torch.float64 else x.float()
