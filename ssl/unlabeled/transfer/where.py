"""Maps of where a classifier looks, weighted by gradients: Selvaraju et al. 2017, "Grad-CAM"."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from unlabeled.look.attention import FEWEST
from unlabeled.nn.modes import evaluating
from unlabeled.nn.positions import Grid
from unlabeled.transfer.task import ImageTask

BATCH = 8  # images whose maps are made at once
DIMMED, OPAQUE = 0.7, 0.65  # the brightness of a picture below its map, and the most that a map covers


def gradient_weighted(activations: Tensor, gradients: Tensor) -> Tensor:
    """Maps [B, N] of activations [B, N, D] at N positions, and of the gradients of a class's score.

    A channel's weight is the mean of its gradients (equation 1); a map is the positive part of the weighted sum of the
    channels (equation 2).
    """
    weights = gradients.mean(1, keepdim=True)
    return (weights * activations).sum(-1).relu()


def maps(task: ImageTask, images: Tensor, classes: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor of classes [B], the maps of their scores [B, rows, columns] for images [B, C, H, W].

    Activations are the last ones that the scores depend on: of the network's output, as of a CNN or where patches are
    pooled; else of the patches that the last block reads, as where the class token alone is pooled. Where they have
    less than `FEWEST` positions, as in small images, those of the deepest stage that has so many are taken. Raises
    ValueError where scores depend on no position.
    """
    batches = zip(images.split(BATCH), zip(*(each.split(BATCH) for each in classes), strict=True), strict=True)
    found = [_maps(task, *batch) for batch in batches]
    return [torch.cat(each) for each in zip(*found, strict=True)]


def _maps(task: ImageTask, images: Tensor, classes: Sequence[Tensor]) -> list[Tensor]:
    with torch.enable_grad(), evaluating(task):
        with _noted(_watched(task.network, (images.shape[-2], images.shape[-1]))) as noted:
            traced = task.traced(images.detach().requires_grad_())
        layers = [(traced.last, traced.grid), *((layer, grid or traced.grid) for layer, grid in noted)]
        counts = [grid[0] * grid[1] for layer, grid in layers if positions(layer, grid) is not None]
        fewest = min(FEWEST, max(counts, default=0))
        scores = [traced.scores.gather(1, each.unsqueeze(1)).sum() for each in classes]
        for layer, grid in layers:
            read = positions(layer.detach(), grid)
            if read is None or read.shape[1] < max(2, fewest):
                continue
            grads = [torch.autograd.grad(score, layer, retain_graph=True, allow_unused=True)[0] for score in scores]
            at = [positions(grad, grid) for grad in grads if grad is not None and grad.any()]
            if len(at) == len(scores) and all(grad is not None and grad.any() for grad in at):
                return [gradient_weighted(read, grad).unflatten(1, grid) for grad in at if grad is not None]
    raise ValueError("its scores depend on no position of its maps")


def positions(layer: Tensor, grid: Grid) -> Tensor | None:
    """The vectors of the N positions of a grid (rows, columns), in order [B, N, D]: of a map [B, D, rows, columns] or
    [B, rows, columns, D], or of tokens with N patches at the end [B, P + N, D]. None where it has none."""
    if layer.ndim == 4 and layer.shape[-2:] == grid:
        return layer.flatten(2).mT
    if layer.ndim == 4 and layer.shape[1:3] == grid:
        return layer.flatten(1, 2)
    count = grid[0] * grid[1]
    return layer[:, -count:] if layer.ndim == 3 and layer.shape[1] >= count > 1 else None


def _watched(network: Any, size: Grid) -> Iterator[tuple[nn.Module, Grid | None]]:
    """Parts of a timm model whose outputs may have a map, with its (rows, columns), None = those of the last map: the
    norm in front of the last block's attention, then the stages, the deepest first."""
    blocks = getattr(network, "blocks", None)
    norm = getattr(blocks[-1], "norm1", None) if isinstance(blocks, nn.Sequential | nn.ModuleList) else None
    if norm is not None:
        yield norm, None
    stages = getattr(network, "feature_info", None)
    for stage in reversed(stages if isinstance(stages, list) else []):
        rows, columns = (-(-side // stage["reduction"]) for side in size)
        yield network.get_submodule(stage["module"]), (rows, columns)


@contextmanager
def _noted(watched: Iterable[tuple[nn.Module, Grid | None]]) -> Iterator[list[tuple[Tensor, Grid | None]]]:
    """The outputs of modules with their grids, in this order, in a list that is complete at the end."""
    parts, found = list(watched), list[tuple[Tensor, Grid | None]]()
    kept = [list[Tensor]() for _ in parts]
    handles = [
        module.register_forward_hook(partial(_keep, outputs)) for (module, _), outputs in zip(parts, kept, strict=True)
    ]
    try:
        yield found
    finally:
        for handle in handles:
            handle.remove()
        found += [(outputs[0], grid) for outputs, (_, grid) in zip(kept, parts, strict=True) if outputs]


def _keep(outputs: list[Tensor], _module: nn.Module, _inputs: Any, output: Any) -> None:
    if isinstance(output, Tensor):
        outputs.append(output)


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
