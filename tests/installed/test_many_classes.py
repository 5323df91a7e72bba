"""20,000 classes are learnt and scored in under 2 GB, and what was learnt is saved before it is scored."""

from __future__ import annotations

import json
import resource
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from injected import at
from support import TINY_FINETUNE, TINY_PRETRAIN, launch

CLASSES, PICTURES, SIDE = 20_000, 20_400, 16
ROOM = 1500 << 20  # bytes; a dense matrix alone has 3.2 GB


def leave_room() -> None:
    """From now on this process gets so much more memory, and then errors."""
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + ROOM, resource.RLIM_INFINITY))


@pytest.fixture
def arguments(tmp_path: Path) -> list[str]:
    """A run of eight steps on as many classes, of noise, and no export to begin with."""
    rng = np.random.default_rng(0)
    np.save(tmp_path / "x.npy", rng.integers(0, 255, (PICTURES, SIDE, SIDE, 3), np.uint8))
    np.save(tmp_path / "y.npy", np.arange(PICTURES) % CLASSES)
    np.save(tmp_path / "vx.npy", rng.integers(0, 255, (600, SIDE, SIDE, 3), np.uint8))
    np.save(tmp_path / "vy.npy", np.arange(600) * 33)
    (tmp_path / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (tmp_path / "finetune.yaml").write_text(
        TINY_FINETUNE.replace("UNSET", str(tmp_path / "encoder" / "export")), encoding="utf-8"
    )
    few = ["train.epochs=1", "optim.warmup_epochs=0"]
    assert launch("pretrain", [str(tmp_path / "pretrain.yaml"), f"run.output={tmp_path}/encoder", *few]) == [0]
    data = ", ".join(f"{name}: {tmp_path}/{file}.npy" for name, file in PARTS.items())
    return [
        *(str(tmp_path / "finetune.yaml"), f"data={{name: arrays, {data}}}", f"run.output={tmp_path}/run"),
        *("train.batch_size=256", "train.epochs=0.1", "optim.warmup_epochs=0"),
    ]


PARTS = {"train": "x", "train_labels": "y", "val": "vx", "val_labels": "vy"}


def test_twenty_thousand_classes(tmp_path: Path, arguments: list[str]) -> None:
    limited = partial(at, "unlabeled.train.engine:Engine.__init__", leave_room)
    assert launch("finetune", arguments, hook=limited, diagrams=True) == [0]
    result: dict[str, Any] = json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))
    assert result["pictures"] == 600 and "confusion" not in result and len(result["confused"]) == 20
    assert all(sum(row.values()) == 1 for row in result["confused"].values())
    assert "## Hardest classes" in (tmp_path / "run" / "result.md").read_text(encoding="utf-8")
    assert (tmp_path / "run" / "confusion.png").stat().st_size > 0
    assert (tmp_path / "run" / "export" / "model.safetensors").exists()
