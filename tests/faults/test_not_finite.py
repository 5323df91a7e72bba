"""A loss or a gradient that is not finite, on any process, costs that step and nothing else: no weight, no moment of
the optimizer, no teacher, no centre, no running statistic is touched."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY_PRETRAIN, checkpoint_bytes, launch, metrics, weights

ENCODER = "{model: vit_tiny_patch16_224, patch_size: 4, width: 16, depth: 1, heads: 2}"
METHODS = {
    "dino": (
        "method={name: dino, global_1: {size: 16}, global_2: {size: 16}, local: {size: 8, count: 1}, frozen_epochs: 0, "
        f"encoder: {ENCODER}, head: {{prototypes: 32, hidden: 16, bottleneck: 8}}}}"
    ),
    "mocov3": (
        f"method={{name: mocov3, first: {{size: 16}}, second: {{size: 16}}, hidden: 16, dim: 8, encoder: {ENCODER}}}"
    ),
}
WATCHED = {"dino": ("teacher.", "centre.value"), "mocov3": ("running_mean", "running_var", "num_batches_tracked")}


KINDS = (math.nan, math.inf, -math.inf)


def losses(rank: int) -> None:
    """In one process, the losses of steps 1, 2 and 3 are NaN and infinite."""
    from unlabeled.train.engine import Engine

    make = Engine.__init__

    def armed(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        forward = self.method.forward

        def poisoned(batch: Any, progress: Any) -> Any:
            output, kind = forward(batch, progress), progress.step - 1
            broken = 0 <= kind < 3 and os.environ.get("RANK", "0") == str(rank)
            return output._replace(loss=output.loss * 0 + KINDS[kind]) if broken else output

        self.method.forward = poisoned

    Engine.__init__ = armed  # type: ignore[method-assign]


def gradients(rank: int) -> None:
    """In one process, one number of one gradient of those steps is; their losses are finite."""
    from unlabeled.train.engine import Engine

    make = Engine.__init__

    def armed(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        parameter = next(p for p in self.method.parameters() if p.requires_grad)

        def poisoned(grad: torch.Tensor) -> torch.Tensor:
            grad = grad.clone()
            if 1 <= self.step < 4 and os.environ.get("RANK", "0") == str(rank):
                grad.view(-1)[0] = KINDS[self.step - 1]
            return grad

        parameter.register_hook(poisoned)

    Engine.__init__ = armed  # type: ignore[method-assign]


def pictures(_rank: int) -> None:
    """Activations, and with them statistics of a batch, are NaN in steps 1, 2 and 3."""
    from unlabeled.train import engine

    moved, calls = engine.to_device, [0]

    def poisoned(*arguments: Any) -> Any:
        calls[0] += 1
        batch = moved(*arguments)
        if 2 <= calls[0] < 5:
            batch.views[0].pixels[0, 0] = math.nan
        return batch

    engine.to_device = poisoned  # type: ignore[assignment]


CASES: list[tuple[str, int, Callable[[int], None]]] = [
    ("dino", 1, losses),
    ("dino", 1, gradients),
    ("dino", 2, losses),
    ("dino", 2, gradients),
    ("mocov3", 1, pictures),
]


@pytest.mark.parametrize(("method", "world", "fault"), CASES)
def test_nothing_is_touched(method: str, world: int, fault: Callable[[int], None], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [
        *(str(tmp_path / "tiny.yaml"), METHODS[method], f"run.output={tmp_path}/run", "run.checkpoint_every=1"),
        *("train.epochs=1", "optim.warmup_epochs=0"),
    ]
    assert launch("pretrain", arguments, world=world, hook=partial(fault, world - 1)) == [0] * world
    saved = [checkpoint_bytes(tmp_path / "run", step) for step in range(1, 6)]
    for file in ("model.safetensors", "optimizer.safetensors"):
        before, *broken, after = (one[file] for one in saved)
        assert broken == [before] * 3 and after != before
    found = weights(tmp_path / "run", 5)
    assert all(any(part in name for name in found) for part in WATCHED[method])
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert [line["skipped"] for line in metrics(tmp_path / "run")] == [0, 1, 2, 3, 3]
