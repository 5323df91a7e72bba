"""Is it right: every method on the GPU against the CPU, bf16 against float32, colours and batch norm against their
forms on a CPU."""

from __future__ import annotations

from contextlib import nullcontext
from typing import NamedTuple

import numpy as np
import torch
from contenders import METHODS, comparison
from contenders.parts import PROGRESS
from torch import Tensor, nn

from gpu_parts.place import Figures, Part, Place
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view import photometric
from unlabeled.data.view.percrop import recolour_and_normalize
from unlabeled.data.view.recolour import recolour
from unlabeled.nn.batchnorm import BatchNorm2d
from unlabeled.pretrain.method import Method
from unlabeled.pretrain.methods import dino

DEPTH, PICTURES = 2, 4
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Found(NamedTuple):
    """A loss and all gradients in one row, on the CPU in float64."""

    loss: Tensor
    gradients: Tensor


def measure(place: Place) -> Figures:
    """Relative differences; expected is 1e-4 at most in float32, and 1e-2 of the loss and a cosine of 0.99 in bf16."""
    for name in METHODS if place.cuda else METHODS[:1]:
        method = comparison(name)
        torch.manual_seed(0)
        ours = method.ours.build(place.size(DEPTH, 1))
        batch = method.make_batch(place.size(PICTURES, 2), 1)
        right = found(ours, batch, torch.device("cpu"), None)
        yield f"{name}_float32", against(right, found(ours, batch, place.device, None))
        yield f"{name}_bf16", against(right, found(ours, batch, place.device, place.autocast()))
    yield "recolour_levels", colours(place)
    yield "batchnorm", batchnorm(place)


def found(method: Method, batch: Batch, device: torch.device, casting: torch.autocast | None) -> Found:
    """Forward and backward of a method without the random choices of drop path."""
    method = method.to(device).train()
    for part in method.modules():
        if type(part).__name__ == "DropPath":
            part.eval()
    method.zero_grad()
    before = {name: buffer.clone() for name, buffer in method.named_buffers()}
    with casting or nullcontext():
        loss = method(moved(batch, device), PROGRESS).loss
    loss.backward()
    rows = [p.grad.flatten().double().cpu() for p in method.parameters() if p.grad is not None]
    for name, buffer in method.named_buffers():
        buffer.copy_(before[name])
    return Found(loss.detach().double().cpu(), torch.cat(rows))


def moved(batch: Batch, device: torch.device) -> Batch:
    """A batch on the device."""
    views = []
    for pixels, mask, hidden in batch.views:
        views.append(ViewBatch(pixels.to(device), None if mask is None else mask.map(lambda t: t.to(device)), hidden))
    return Batch(views, batch.labels.to(device), batch.index.to(device))


def against(right: Found, other: Found) -> dict[str, float]:
    """How far another loss and its gradients are from the right ones."""
    a, b = right.gradients, other.gradients
    return {
        "loss": ((other.loss - right.loss) / right.loss).abs().item(),
        "gradients": ((a - b).norm() / a.norm()).item(),
        "cosine": torch.cosine_similarity(a, b, dim=0).item(),
    }


def colours(place: Place) -> float:
    """The largest difference, in levels of 255, of colours on the device from those of a CPU."""
    rng, count = np.random.default_rng(0), place.size(64, 4)
    pixels = torch.from_numpy(rng.integers(0, 256, (count, 3, 64, 64), dtype=np.uint8))
    view = dino.GLOBAL_2.model_copy(update={"count": count, "blur": 0.5})
    drawn = view.colours(rng.random((count, photometric.DRAWS)))
    one, none = torch.ones(3, 1, 1), torch.zeros(3, 1, 1)
    expected = recolour_and_normalize(pixels, drawn, one, none)
    moved = drawn.map(lambda tensor: tensor.to(place.device))
    return (255 * recolour(pixels.to(place.device).float() / 255, moved).cpu() - expected).abs().max().item()


def batchnorm(place: Place) -> dict[str, float]:
    """Batch norm over processes, here of one, against torch's: relative difference of output and gradient."""
    x = place.random(8, 16, 12, 12)
    torch.manual_seed(0)
    theirs = nn.BatchNorm2d(16).to(place.device)
    ours = BatchNorm2d(nn.BatchNorm2d(16).to(place.device))
    results = []
    for forward in (theirs, ours._over_processes):
        value = x.clone().requires_grad_()
        y = forward(value)
        (gradient,) = torch.autograd.grad((y * y.detach().sin()).sum(), value)
        results.append((y.detach(), gradient))
    names = ("output", "gradient")
    pairs = zip(names, *results, strict=True)
    return {name: ((a - b).abs().max() / a.abs().max()).item() for name, a, b in pairs}


PART = Part(60, measure)
