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

BROKEN = 4  # the step
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


def here(rank: int | None) -> bool:
    return rank is None or os.environ.get("RANK", "0") == str(rank)


def loss(value: float, rank: int | None = None) -> None:
    """The loss of a step becomes NaN or infinite."""
    from unlabeled.engine import Engine

    micro = Engine.__init__

    def armed(self: Any, *arguments: Any) -> None:
        micro(self, *arguments)
        forward = self.method.forward

        def poisoned(batch: Any, progress: Any) -> Any:
            output = forward(batch, progress)
            broken = progress.step == BROKEN and here(rank)
            return output._replace(loss=output.loss * 0 + value) if broken else output

        self.method.forward = poisoned

    Engine.__init__ = armed  # type: ignore[method-assign]


def gradient(value: float, rank: int | None = None) -> None:
    """One number of one gradient becomes NaN or infinite; the loss stays finite."""
    from unlabeled.engine import Engine

    make = Engine.__init__

    def armed(self: Any, *arguments: Any) -> None:
        make(self, *arguments)
        parameter = next(p for p in self.method.parameters() if p.requires_grad)

        def poisoned(grad: torch.Tensor) -> torch.Tensor:
            grad = grad.clone()
            if self.step == BROKEN and here(rank):
                grad.view(-1)[0] = value
            return grad

        parameter.register_hook(poisoned)

    Engine.__init__ = armed  # type: ignore[method-assign]


def picture() -> None:
    """Activations, and with them statistics of a batch, become NaN."""
    from unlabeled import engine

    moved = engine.to_device
    calls = [0]

    def poisoned(*arguments: Any) -> Any:
        calls[0] += 1
        batch = moved(*arguments)
        if calls[0] == BROKEN + 1:
            batch.views[0].pixels[0, 0] = math.nan
        return batch

    engine.to_device = poisoned  # type: ignore[assignment]


CASES: list[tuple[str, int, Callable[[], None]]] = [
    ("dino", 1, partial(loss, math.nan)),
    ("dino", 1, partial(loss, math.inf)),
    ("dino", 1, partial(gradient, math.nan)),
    ("dino", 1, partial(gradient, -math.inf)),
    ("dino", 2, partial(loss, math.inf, 1)),
    ("dino", 2, partial(gradient, math.nan, 1)),
    ("mocov3", 1, picture),
]


@pytest.mark.parametrize(("method", "world", "fault"), CASES)
def test_nothing_is_touched(method: str, world: int, fault: Callable[[], None], tmp_path: Path) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [
        *(str(tmp_path / "tiny.yaml"), METHODS[method], f"run.output={tmp_path}/run", "run.checkpoint_every=1"),
        *("train.epochs=1.4", "optim.warmup_epochs=0"),
    ]
    assert launch("pretrain", arguments, world=world, hook=fault) == [0] * world
    before, broken, after = (checkpoint_bytes(tmp_path / "run", step) for step in (BROKEN, BROKEN + 1, BROKEN + 2))
    for file in ("model.safetensors", "optimizer.safetensors"):
        assert before[file] == broken[file] != after[file]
    found = weights(tmp_path / "run", BROKEN + 2)
    assert all(any(part in name for name in found) for part in WATCHED[method])
    assert all(bool(tensor.isfinite().all()) for tensor in found.values())
    assert [line["skipped"] for line in metrics(tmp_path / "run")] == [0] * BROKEN + [1] * 3
