"""What the parity tests of class-incremental strategies share: tiny networks of official weights, and tasks."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close
from torch import Tensor, nn

from unlabeled.incremental.strategy import After, Coming, Kept, Seen

TOLERANCE = 1e-9  # in float64, of the largest value of a tensor
NOTHING = Kept({}, torch.empty(0, dtype=torch.int64))


class Tiny(nn.Module):
    """tanh(x W + b), then a linear head, of weights under official names; the head's bias may be missing."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "/"): nn.Parameter(w) for name, w in weights.items()})

    def features(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weights["convnet/l/weight"], self.weights["convnet/l/bias"]).tanh()

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(self.features(x), self.weights["fc/weight"], self.weights["fc/bias"])

    def seen(self, x: Tensor) -> Seen:
        return Seen(self.features(x), self(x))

    def named(self) -> dict[str, Tensor]:
        """Parameters by their official names."""
        return {name.replace("/", "."): p for name, p in self.weights.items()}


def coming(old: int, new: int, remembered: bool = False, number: int | None = None) -> Coming:
    """A task with one image of each class, of old ones where they are remembered."""
    counts = torch.ones(old + new, dtype=torch.int64)
    counts[:old] *= int(remembered)
    return Coming(int(old > 0) if number is None else number, 2, old, new, counts, seed=0)


def after(features: Tensor, labels: Tensor, logits: Tensor | None = None, mirrored: Tensor | None = None) -> After:
    """Features of images that are numbered in their order."""
    return After(
        features,
        labels,
        features if logits is None else logits,
        torch.arange(len(labels)),
        {},
        lambda: features if mirrored is None else mirrored,
        dict,
    )


def assert_grads(parameters: Mapping[str, Tensor], golden: Golden, prefix: str = "grad/") -> None:
    """Gradients by name below `prefix`, of which a set may store some."""
    for name, parameter in parameters.items():
        if prefix + name in golden:
            assert parameter.grad is not None, name
            assert_close(parameter.grad, golden[prefix + name], TOLERANCE, prefix + name)
