"""The eps of layer norms, which no weight shows."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def _norms(model: nn.Module) -> Iterator[Any]:
    from timm.layers import RmsNorm, RmsNormFp32

    kinds = nn.LayerNorm, RmsNorm, RmsNormFp32
    return (module for module in model.modules() if isinstance(module, kinds))


def set_eps_(model: nn.Module, eps: float) -> None:
    """Give all layer norms of a network, and norms by the root mean square, one eps."""
    for norm in _norms(model):
        norm.eps = eps


def eps_of(model: nn.Module) -> set[float]:
    """The values of eps of such norms."""
    return {norm.eps for norm in _norms(model)}
