"""Importances of parameters: the diagonal of the empirical Fisher information (Kirkpatrick et al. 2017).

The mean over images of the squared gradient of -log p(label), one image at a time. The square of the gradient of a
batch's mean is no such thing: it shrinks with the batch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.attention import SDPBackend, sdpa_kernel

from unlabeled.nn.loss.exact import exact, wide
from unlabeled.nn.modes import evaluating

CHUNK = 256  # images whose sum is made at once, by their numbers: N processes add the same sums
GRADIENTS = 1 << 28  # numbers that the gradients of several images may have


def chunk_importances(network: nn.Module, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Sums over at most `CHUNK` images of squared gradients, of every parameter that learns, by name, float64.

    Evaluation mode, without autocast.

    Args:
        network: images [n, ...] to logits [n, classes]; without randomness and statistics of the batch in evaluation.
        images: [n, ...], those of one chunk, in the order of their numbers.
        labels: [n] int64.
    """
    learning = {name: p.detach() for name, p in network.named_parameters() if p.requires_grad}
    at_once = max(1, min(CHUNK, GRADIENTS // max(1, sum(p.numel() for p in learning.values()))))

    def surprise(parameters: dict[str, Tensor], image: Tensor, label: Tensor) -> Any:
        logits = functional_call(network, parameters, (image[None],))
        return F.cross_entropy(wide(logits), label[None])

    each = vmap(grad(surprise), in_dims=(None, 0, 0))
    total = {name: torch.zeros_like(p, dtype=torch.float64) for name, p in learning.items()}
    # attention as plain products: fused kernels take images one after the other here
    with evaluating(network), exact(images), sdpa_kernel(SDPBackend.MATH):
        for some, their in zip(images.split(at_once), labels.split(at_once), strict=True):
            for name, gradients in each(learning, some, their).items():
                total[name] += gradients.double().square().sum(0)
    return total


def importances(chunks: Iterable[Mapping[str, Tensor]], images: int) -> dict[str, Tensor]:
    """The mean over all images, of the sums of chunks in the order of their numbers."""
    total: dict[str, Tensor] = {}
    for sums in chunks:
        total = {name: total[name] + one if total else one for name, one in sums.items()}
    return {name: one / images for name, one in total.items()}


def merged(before: Tensor, now: Tensor, share: float) -> Tensor:
    """share x before + (1 - share) x now on the rows that both have; rows that are new stay as they are.

    Args:
        before, now: of one parameter; it may have more rows than before, and only rows differ.
        share: that of the classes known before among all.
    """
    if before.shape == now.shape:
        return share * before + (1 - share) * now
    both = len(before)
    return torch.cat([share * before + (1 - share) * now[:both], now[both:]])
