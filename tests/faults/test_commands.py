"""`unlabeled`: a signal or a lost worker ends a command with 75, and the same command does the rest."""

from __future__ import annotations

import functools
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY_PRETRAIN

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.data.archive.prepare import Preparation
from unlabeled.evaluate import features
from unlabeled.serve.embed import Embedding

STOPPED = 75


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Pictures of two classes, an export, and a recipe."""
    random = np.random.default_rng(0)
    for split, count in (("train", 12), ("val", 6)):
        for number in range(count):
            file = tmp_path / "pictures" / split / "ab"[number % 2] / f"{split}-{number}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(random.integers(256, size=(20, 20, 3), dtype=np.uint8)).save(file)
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    export_encoder(tmp_path / "export", config.build((16, 16)), IMAGENET, "card", {})
    shapes = "{name: shapes, train_size: 42, val_size: 20, size: 16}"
    files = f"{{name: files, path: {tmp_path}/pictures}}"
    (tmp_path / "recipe.yaml").write_text(TINY_PRETRAIN.replace(shapes, files), encoding="utf-8")
    return tmp_path


def commands(home: Path) -> dict[str, list[str]]:
    export, pictures, recipe = str(home / "export"), str(home / "pictures"), str(home / "recipe.yaml")
    one = ["--fractions", "1", "--seeds", "1"]
    small = ["--workers", "0", "--device", "cpu"]
    return {
        "evaluate": ["evaluate", export, "--data", pictures, "--protocol", "knn", *small],
        "embed": ["embed", export, f"{pictures}/train", str(home / "out"), "--shard", "5", *small],
        "ladder": ["ladder", export, pictures, "--out", str(home / "out"), "--rungs", "knn", *one, *small],
        "prepare": ["prepare", recipe, f"data.cache={home}/cache", "--shard", "4", "--workers", "1"],
        "doctor": ["doctor", recipe, "--seconds", "0.1"],
    }


PLACES: dict[str, tuple[Any, str]] = {
    "evaluate": (features, "stack_centred"),
    "embed": (Embedding, "_write"),
    "ladder": (features, "stack_centred"),
    "prepare": (Preparation, "pack"),
    "doctor": (torch.optim.AdamW, "step"),
}


def strike(owner: Any, name: str, what: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    original = getattr(owner, name)

    @functools.wraps(original)
    def armed(*arguments: Any, **named: Any) -> Any:
        what()
        return original(*arguments, **named)

    monkeypatch.setattr(owner, name, armed)


@pytest.mark.parametrize(
    ("name", "number"), [*((name, signal.SIGTERM) for name in PLACES), ("evaluate", signal.SIGINT)]
)
def test_a_signal(
    name: str, number: int, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with monkeypatch.context() as patch:
        strike(*PLACES[name], lambda: os.kill(os.getpid(), number), patch)
        assert main(commands(home)[name]) == STOPPED
    said = capsys.readouterr().err
    assert f"stopped by {signal.Signals(number).name}" in said and "same command" in said and "Traceback" not in said
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == before
    if name in ("embed", "prepare"):  # which go on where they were
        assert main(commands(home)[name]) == 0


@pytest.mark.parametrize("name", ["evaluate", "embed"])
def test_a_lost_worker(
    name: str, home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    parent, arguments = os.getpid(), commands(home)[name]
    arguments[arguments.index("--workers") + 1] = "1"

    def die() -> None:
        if os.getpid() != parent:
            os.kill(os.getpid(), signal.SIGKILL)

    strike(features.CentreCrops, "__getitem__", die, monkeypatch)
    assert main(arguments) == STOPPED
    assert "loader worker 0 (process" in capsys.readouterr().err


def test_a_lost_packer(home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [*commands(home)["prepare"][:-1], "2"]
    with monkeypatch.context() as patch:
        strike(Preparation, "pack", lambda: os.kill(os.getpid(), signal.SIGKILL), patch)
        assert main(arguments) == STOPPED
    assert "a worker was killed" in capsys.readouterr().err
    assert main(arguments) == 0
