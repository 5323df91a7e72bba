"""Maps of where a classifier looks, weighted by gradients: Selvaraju et al. 2017, "Grad-CAM"."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.nn.modes import evaluating
from unlabeled.nn.positions import Grid
from unlabeled.transfer.task import Task

BATCH = 8  # images whose maps are made at once
DIMMED, OPAQUE = 0.7, 0.65  # the brightness of a picture below its map, and the most that a map covers


def gradient_weighted(activations: Tensor, gradients: Tensor) -> Tensor:
    """Maps [B, N] of activations [B, N, D] at N positions, and of the gradients of a class's score.

    A channel's weight is the mean of its gradients (equation 1); a map is the positive part of the weighted sum of the
    channels (equation 2).
    """
    weights = gradients.mean(1, keepdim=True)
    return (weights * activations).sum(-1).relu()


def maps(task: Task, images: Tensor, classes: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor of classes [B], the maps of their scores [B, rows, columns] for images [B, C, H, W].

    Activations are the last ones that the scores depend on: of the network's output, as of a CNN or where patches are
    pooled, else of the patches that the last block reads, as where the class token alone is pooled. Raises ValueError
    where scores depend on no position of either.
    """
    found = [
        _maps(task, *batch)
        for batch in zip(images.split(BATCH), zip(*(each.split(BATCH) for each in classes), strict=True), strict=True)
    ]
    return [torch.cat(each) for each in zip(*found, strict=True)]


def _maps(task: Task, images: Tensor, classes: Sequence[Tensor]) -> list[Tensor]:
    with torch.enable_grad(), evaluating(task):
        with _noted(_norm_of_the_last_block(task.network)) as noted:
            traced = task.traced(images.detach().requires_grad_())
        layers = [layer for layer in (traced.last, *noted) if positions(layer, traced.grid) is not None]
        chosen = [traced.scores.gather(1, each.unsqueeze(1)).sum() for each in classes]
        for layer in layers:
            grads = [torch.autograd.grad(score, layer, retain_graph=True, allow_unused=True)[0] for score in chosen]
            at = [None if grad is None else positions(grad, traced.grid) for grad in grads]
            read = positions(layer.detach(), traced.grid)
            if read is not None and all(grad is not None and grad.any() for grad in at):
                return [gradient_weighted(read, grad).unflatten(1, traced.grid) for grad in at if grad is not None]
    raise ValueError("its scores depend on no position of its last map")


def positions(layer: Tensor, grid: Grid) -> Tensor | None:
    """The vectors of the N positions of a grid (rows, columns), in order [B, N, D]: of a map [B, D, rows, columns] or
    [B, rows, columns, D], or of tokens with N patches at the end [B, P + N, D]. None where it has none."""
    if layer.ndim == 4 and layer.shape[-2:] == grid:
        return layer.flatten(2).mT
    if layer.ndim == 4 and layer.shape[1:3] == grid:
        return layer.flatten(1, 2)
    count = grid[0] * grid[1]
    return layer[:, -count:] if layer.ndim == 3 and layer.shape[1] >= count > 1 else None


def _norm_of_the_last_block(network: Any) -> nn.Module | None:
    """The norm in front of the attention of a transformer's last block; None where there is no such."""
    blocks = getattr(network, "blocks", None)
    return getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None


@contextmanager
def _noted(module: nn.Module | None) -> Iterator[list[Tensor]]:
    """The outputs of a module, in a list that is filled as it runs."""
    found: list[Tensor] = []
    handle = None if module is None else module.register_forward_hook(lambda _, __, output: found.append(output))
    try:
        yield found
    finally:
        if handle is not None:
            handle.remove()


def overlay(image: Tensor, heat: Tensor) -> Tensor:
    """A uint8 image [C, H, W] in grey below a map [rows, columns] in colours, its highest value the brightest:
    [3, H, W]."""
    from matplotlib import colormaps

    heat = F.interpolate(heat[None, None].float(), image.shape[-2:], mode="bilinear", align_corners=False)[0, 0]
    heat = heat / heat.max().clamp(min=torch.finfo(torch.float32).tiny)
    colours = torch.from_numpy(colormaps["inferno"](heat.numpy())[..., :3]).permute(2, 0, 1) * 255
    grey = DIMMED * image[: 3 if len(image) >= 3 else 1].float().mean(0, keepdim=True)
    cover = OPAQUE * heat
    return (grey * (1 - cover) + colours * cover).round().to(torch.uint8)
