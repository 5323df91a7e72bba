"""The losses of distillation against numbers of the official code (lightly-ai/lightly-train)."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from parity.golden import Golden, assert_close, assert_gradient_at
from parity.vit import BACKWARD, FORWARD
from safetensors.torch import save_file
from torch import Tensor

from unlabeled.nn.patches import resize_patches
from unlabeled.pretrain.methods.distill import dense_loss, global_loss, local_loss

Array = NDArray[np.float64]


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "loss.safetensors")


def ours(golden: Golden, student: dict[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """Our losses by official name, and the input of the student whose gradient there is."""
    whole, local, teacher = student["global"], student["local"], golden.under("in/teacher", "_")
    wide, narrow = golden.config.get("tg", 0.07), golden.config.get("tl", 0.07)
    between = global_loss(whole, teacher["global"], golden["in/queue"], wide)
    within = local_loss(local, teacher["local"], narrow)
    return {
        "v1": ("global", between),
        "v2": ("local", dense_loss(local, teacher["local"])),
        "v3_global": ("global", between),
        "v3_local": ("local", within),
    }


def compare(golden: Golden) -> None:
    """Losses and gradients of a set."""
    official = golden.under("in/student", "_")
    student = {name: official[name].requires_grad_() for name in ("global", "local")}
    for name, (part, loss) in ours(golden, student).items():
        assert_close(loss, golden[f"out/{name}"], FORWARD, name)
        (gradient,) = torch.autograd.grad(loss, student[part], retain_graph=True)
        assert_gradient_at(gradient, golden, f"grad/{name}", BACKWARD)


def test_losses_and_gradients(golden: Golden) -> None:
    compare(golden)


def test_the_map_is_resized(golden: Golden) -> None:
    """The set does not say the grid of the student's patches: it is one of those with as many."""
    patches, resized = golden["in/student_local"], golden["out/resized"]
    count, target = patches.shape[1], (resized.shape[2], resized.shape[3])
    grids = [(rows, count // rows) for rows in range(1, count + 1) if count % rows == 0]
    found = [resize_patches(patches, grid, target, "bilinear").mT.unflatten(2, target) for grid in grids]
    nearest = min(found, key=lambda one: float((one - resized).abs().max()))
    assert_close(nearest, resized, FORWARD, "resized")


# ---------------------------------------------------------------- a set of other sizes, by loops in float64


def softmax(row: Array) -> Array:
    risen = np.exp(row - row.max())
    return risen / risen.sum()


def divergence(student: Array, teacher: Array, others: Array, own: Array, temperature: float) -> float:
    """KL of one row: the teacher's similarities to `others`, the student's to `own`."""
    p = softmax(np.array([teacher @ other for other in others]) / temperature)
    q = softmax(np.array([student @ other for other in own]) / temperature)
    return float(sum(a * np.log(a / b) for a, b in zip(p, q, strict=True)))


def naive(name: str, x: Array, inputs: dict[str, Array], wide: float, narrow: float) -> float:
    queue, aims, patches = inputs["queue"], inputs["teacher_global"], inputs["teacher_local"]
    if name in ("v1", "v3_global"):
        return float(np.mean([divergence(s, t, queue, queue, wide) for s, t in zip(x, aims, strict=True)]))
    if name == "v2":
        return float(np.mean([(a - b) ** 2 for a, b in zip(x.ravel(), patches.ravel(), strict=True)]))
    rows = [(s, t, b) for b in range(len(x)) for s, t in zip(x[b], patches[b], strict=True)]
    return float(np.mean([divergence(s, t, patches[b], x[b], narrow) for s, t, b in rows]))


def slope(function: Callable[[Array], float], x: Array, step: float = 1e-5) -> Array:
    """The gradient by central differences."""
    found = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        moved = np.zeros_like(x)
        moved[place] = step
        found[place] = (function(x + moved) - function(x - moved)) / (2 * step)
    return found


@pytest.mark.parametrize("sizes", [(3, 5, 7, 9, 0.2, 0.1), (5, 4, 3, 2, 0.05, 0.5)])
def test_another_set_by_loops(sizes: tuple[int, int, int, int, float, float], tmp_path: Path) -> None:
    count, patches, width, length, wide, narrow = sizes
    rng = np.random.default_rng(0)
    shapes = {"queue": (length,), "student_global": (count,), "teacher_global": (count,)}
    shapes |= {"student_local": (count, patches), "teacher_local": (count, patches)}
    inputs = {name: rng.standard_normal((*shape, width)) for name, shape in shapes.items()}
    inputs = {name: x / np.linalg.norm(x, axis=-1, keepdims=True) for name, x in inputs.items()}
    made = {f"in/{name}": x for name, x in inputs.items()}
    for name in ("v1", "v2", "v3_global", "v3_local"):
        x = inputs["student_global" if name in ("v1", "v3_global") else "student_local"]

        def loss(moved: Array, name: str = name) -> float:
            return naive(name, moved, inputs, wide, narrow)

        made |= {f"out/{name}": np.array(loss(x)), f"grad/{name}": slope(loss, x)}
    metadata = {"config": json.dumps({"tg": wide, "tl": narrow})}
    save_file({name: torch.from_numpy(x) for name, x in made.items()}, tmp_path / "loss.safetensors", metadata)
    compare(Golden(tmp_path / "loss.safetensors"))
