"""Linear layers that stay as they are and learn a product of two thin matrices beside them (LoRA, Hu et al. 2022)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ADDED = ("lora_down", "lora_up")
V = TypeVar("V")


class LowRankLinear(nn.Linear):
    """x W^T + b + scale x (up down)^T: W and b do not learn, down [rank, in] and up [out, rank] do (equation 3).

    `up` begins at 0, so that nothing changes before the first step. The names of W and b stay `weight` and `bias`.

    Args:
        linear: the layer that it takes the place of; its parameters are shared, not copied.
        rank: of the thin matrices.
        scale: factor on their product.
    """

    def __init__(self, linear: nn.Linear, rank: int, scale: float) -> None:
        nn.Module.__init__(self)
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight, self.bias = linear.weight, linear.bias
        self.scale = scale
        self.lora_down = nn.Parameter(torch.empty(rank, self.in_features, device=linear.weight.device))
        self.lora_up = nn.Parameter(torch.zeros(self.out_features, rank, device=linear.weight.device))
        nn.init.kaiming_uniform_(self.lora_down, a=5**0.5)

    def forward(self, x: Tensor) -> Tensor:
        # the scale is on the thin matrix: fewer numbers than the output has
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.lora_down), self.scale * self.lora_up)

    def merged_weight(self) -> Tensor:
        """W + scale up down [out, in]: one plain layer with the same output."""
        return self.weight + self.scale * self.lora_up @ self.lora_down


def merged_parameters(network: nn.Module) -> dict[str, Tensor]:
    """The parameters by name of the plain network that computes the same: low-rank products are added to weights."""
    return {name: read() for name, read in merged_readers(network).items()}


def readers(network: nn.Module) -> dict[str, Callable[[], Any]]:
    """Functions that return each parameter of a network, by name. They stay right when a parameter is replaced by
    another (moved, sharded), not when a module is."""
    places = (name.rpartition(".") for name, _ in network.named_parameters())
    return {
        f"{owner}{dot}{own}": partial(network.get_submodule(owner)._parameters.__getitem__, own)
        for owner, dot, own in places
    }


def merged_readers(network: nn.Module) -> dict[str, Callable[[], Any]]:
    """As `readers`, for the plain network that computes the same."""
    return _merged(network, readers(network), lambda layer: layer.merged_weight)


@torch.no_grad()
def merged_state(network: nn.Module) -> dict[str, Tensor]:
    """The state dict of the plain network that computes the same."""
    return _merged(network, network.state_dict(), LowRankLinear.merged_weight)


def _merged(network: nn.Module, values: Mapping[str, V], weight: Callable[[LowRankLinear], V]) -> dict[str, V]:
    plain = {name: value for name, value in values.items() if not name.endswith(ADDED)}
    for name, layer in network.named_modules():
        if isinstance(layer, LowRankLinear):
            plain[f"{name}.weight" if name else "weight"] = weight(layer)
    return plain


@torch.no_grad()
def merge_(network: nn.Module) -> None:
    """Put plain layers with the same output in the place of low-rank ones inside a network."""
    for owner in list(network.modules()):
        for name, layer in owner.named_children():
            if isinstance(layer, LowRankLinear):
                with torch.device("meta"):
                    plain = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None)
                plain.weight, plain.bias = nn.Parameter(layer.merged_weight()), layer.bias
                setattr(owner, name, plain)
