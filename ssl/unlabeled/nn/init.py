"""Initialisations that papers prescribe."""

from __future__ import annotations

from torch import nn


def xavier_(module: nn.Module) -> None:
    """Linears Xavier uniform with zero bias, norms 1 and 0. A fused qkv counts as one [3D, D] matrix (MAE's code)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.xavier_uniform_(part.weight)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)


def xavier_patches_(convolution: nn.Conv2d) -> None:
    """A patch convolution as the linear map it is: Xavier uniform over [D, p * p * C]; bias as torch draws it."""
    convolution.reset_parameters()
    nn.init.xavier_uniform_(convolution.weight.view(convolution.weight.shape[0], -1))


def truncated_normal_(module: nn.Module, std: float = 0.02) -> None:
    """Linears normal with standard deviation `std`, cut at +-2, and zero bias; norms 1 and 0 (DINO, iBOT)."""
    for part in module.modules():
        if isinstance(part, nn.Linear):
            nn.init.trunc_normal_(part.weight, std=std)
            if part.bias is not None:
                nn.init.zeros_(part.bias)
        elif isinstance(part, nn.LayerNorm) and part.elementwise_affine:
            nn.init.ones_(part.weight)
            nn.init.zeros_(part.bias)
