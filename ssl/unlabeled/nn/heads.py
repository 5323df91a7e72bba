"""Projectors, predictors and distillation heads."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from unlabeled.nn.batchnorm import BatchNorm
from unlabeled.nn.init import truncated_normal_
from unlabeled.nn.regions import region, varying


class Mlp(nn.Sequential):
    """MLP whose BatchNorm layers use separate statistics for each view."""

    @region
    def forward(self, x: Tensor, views: int = 1) -> Tensor:
        """Map x [views * B, D], view-major; linear layers take all views at once."""
        for layer in self:
            apart = views > 1 and isinstance(layer, BatchNorm)
            x = torch.cat([layer(view) for view in x.chunk(views)]) if apart else layer(x)
        return x


def mlp(
    widths: Sequence[int],
    last_affine: bool = False,
    last_norm: bool = True,
    hidden_bias: bool = False,
    last_bias: bool = False,
) -> Mlp:
    """MLP of linear layers, BatchNorm and ReLU: by default MoCo v3's projector and predictor, numbered as there.

    The widths are of the input, the hidden layers and the output: (D, 4096, 4096, 256). The norm after the last layer
    learns a weight and a bias with `last_affine`; without `last_norm` there is none. Hidden layers have biases with
    `hidden_bias`, the last one with `last_bias`.
    """
    layers: list[nn.Module] = []
    for source, target in pairwise(widths[:-1]):
        layers += [nn.Linear(source, target, bias=hidden_bias), BatchNorm(target), nn.ReLU(inplace=True)]
    layers.append(nn.Linear(widths[-2], widths[-1], bias=last_bias))
    return Mlp(*layers, *([BatchNorm(widths[-1], affine=last_affine)] if last_norm else []))


class Prototypes(nn.Module):
    """A weight-normalised linear layer without bias: K gains times the directions of K vectors.

    Parameters are named and shaped as by torch's old `weight_norm`, `weight_g` [K, 1] and `weight_v` [K, D]: official
    weights load, and an average of parameters covers the gains. With `freeze_gain` these stay at 1: logits of unit
    vectors are cosines.
    """

    def __init__(self, width: int, count: int, freeze_gain: bool) -> None:
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(count, 1), requires_grad=not freeze_gain)
        self.weight_v = nn.Parameter(torch.empty(count, width))
        nn.init.uniform_(self.weight_v, -1 / math.sqrt(width), 1 / math.sqrt(width))  # as torch draws a linear layer

    @varying
    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., K] of x [..., D]."""
        # torch's fused kernel: one pass over K D numbers forward, one backward
        return F.linear(x, torch._weight_norm(self.weight_v, self.weight_g, 0))


class HeadConfig(BaseModel, frozen=True, extra="forbid"):
    """Settings of DINO's head in a recipe."""

    prototypes: int = Field(65536, ge=2, description="size of the last layer, K")
    hidden: int = Field(2048, ge=1, description="width of the MLP")
    bottleneck: int = Field(
        256, ge=0, description="width of the prototypes' input; 0 = none, a plain last layer (iBOT)"
    )
    layers: int = Field(3, ge=1, description="linear layers of the MLP")
    freeze_gain: bool = Field(True, description="keep the prototypes' gains at 1: steadier, official norm_last_layer")
    bias: bool = Field(True, description="biases in the MLP (official mlp_bias of DINOv2)")

    def build(
        self, width: int, patch_prototypes: int | None = None, norm: bool = False, embeds: bool = False
    ) -> DistillHead:
        """Build a randomly initialised head for tokens of `width`, see `DistillHead`; one that `embeds` has no
        prototypes."""
        settings = {**self.model_dump(), **({"prototypes": None} if embeds else {})}
        return DistillHead(width, patch_prototypes=patch_prototypes, norm=norm, **settings)


class DistillHead(nn.Module):
    """DINO's head: an MLP with GELU to a bottleneck, L2 norm, prototypes (official `DINOHead` and `iBOTHead`).

    `head(x)` gives logits of class tokens, `head.patches(x)` of patches. The MLP is numbered as in the official code.

    Args beside the fields of `HeadConfig`:
        width: of the tokens.
        prototypes: None = no last layer, the output is that of `embed`.
        bottleneck: 0 = none, a plain linear last layer (iBOT's option).
        patch_prototypes: prototypes of the patches' own last layer; None = patches share the class tokens'.
        norm: batch normalisation inside the MLP (official `use_bn`, for convolutional networks).
    """

    def __init__(
        self,
        width: int,
        prototypes: int | None,
        hidden: int = 2048,
        bottleneck: int = 256,
        layers: int = 3,
        freeze_gain: bool = True,
        patch_prototypes: int | None = None,
        norm: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.normalize = bottleneck > 0
        widths, parts = [width, *[hidden] * (layers - 1)], list[nn.Module]()
        for source, target in pairwise(widths):
            parts += [nn.Linear(source, target, bias), *([BatchNorm(target)] if norm else []), nn.GELU()]
        self.mlp = nn.Sequential(*parts, *([nn.Linear(widths[-1], bottleneck, bias)] if bottleneck else []))
        truncated_normal_(self.mlp)

        def last(count: int | None) -> nn.Module:
            if count is None:
                return nn.Identity()
            if bottleneck:
                return Prototypes(bottleneck, count, freeze_gain)
            layer = nn.Linear(widths[-1], count)
            truncated_normal_(layer)
            return layer

        self.last_layer = last(prototypes)
        self.patch_layer = None if patch_prototypes is None else last(patch_prototypes)

    def forward(self, x: Tensor) -> Tensor:
        """Logits [..., K] of class tokens x [..., width], or without prototypes their unit vectors."""
        return self.last_layer(self.embed(x))

    def patches(self, x: Tensor) -> Tensor:
        """Logits [..., patch_prototypes or K] of patches x [..., width]."""
        return self.patch_logits(self.embed(x))

    def both(self, classes: Tensor, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of class tokens and of patches, both [M, width], in one pass through the layers that they share."""
        sizes, embedded = (len(classes), len(patches)), self.embed(torch.cat([classes, patches]))
        if self.patch_layer is None:
            classes, patches = self.last_layer(embedded).split(sizes)
            return classes, patches
        classes, patches = embedded.split(sizes)
        return self.last_layer(classes), self.patch_layer(patches)

    def prototypes(self) -> list[nn.Parameter]:
        """The parameters of the last layers."""
        layers = [self.last_layer] if self.patch_layer is None else [self.last_layer, self.patch_layer]
        return [parameter for layer in layers for parameter in layer.parameters()]

    @varying
    def embed(self, x: Tensor) -> Tensor:
        """Map x [..., width] to unit vectors [..., bottleneck], the input of the prototypes."""
        x = self.mlp(x)
        return F.normalize(x, dim=-1) if self.normalize else x

    def patch_logits(self, embedded: Tensor) -> Tensor:
        """Logits of patches from the output of `embed`."""
        return (self.last_layer if self.patch_layer is None else self.patch_layer)(embedded)
