"""Whole runs with unlabelled images: killed ones come to the same bits, two processes learn what one does, and without
weight they are those of the labelled images alone."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support import TINY_FINETUNE, assert_close_weights, checkpoint_bytes, launch, metrics, weights

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder

MIXED = ", mixing: {mixup: 0.5, cutmix: 0.5}"
REMEMBERED = ("tau", "mean", "histogram")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(home / "export", encoder, IMAGENET, "# card\n", {})
    text = TINY_FINETUNE.replace("UNSET", str(home / "export")).replace("drop_path: 0.3", "drop_path: 0.0")
    (home / "finetune.yaml").write_text(text.replace(MIXED, ""), encoding="utf-8")
    return home


def command(home: Path, output: Path, *more: str) -> list[str]:
    """20 labelled images, two of each class, of the 42 that all are unlabelled ones too."""
    settings = ("task.shots=2", "train.epochs=1.5", "optim.warmup_epochs=0.25", "optim.base_lr=0.01")
    return [str(home / "finetune.yaml"), f"run.output={output}", *settings, *more]


WAYS = {
    "adaptive": ("task.unlabelled={ratio: 3, threshold: {momentum: 0.9}}", "task.ema=0.9"),
    "sharp": ("task.unlabelled={ratio: 1, threshold: {name: fixed, cutoff: 0.12}, targets: {name: sharp}}",),
}


@pytest.mark.parametrize("way", WAYS)
def test_killed_runs_and_two_processes(home: Path, tmp_path: Path, way: str) -> None:
    whole, killed, two = (tmp_path / name for name in ("whole", "killed", "two"))
    assert launch("finetune", command(home, whole, *WAYS[way])) == [0]
    last = max(int(path.name.removeprefix("step-")) for path in (whole / "checkpoints").iterdir())
    assert launch("finetune", command(home, killed, *WAYS[way]), kill={"step": 5}) == [-signal.SIGKILL]
    assert launch("finetune", command(home, killed, *WAYS[way], "run.workers=1")) == [0]
    assert checkpoint_bytes(killed, last) == checkpoint_bytes(whole, last)

    assert launch("finetune", command(home, two, *WAYS[way]), world=2) == [0, 0]
    for name in ("loss", "passed", "pseudo_largest", "pseudo_accuracy"):
        one, other = ([line[name] for line in metrics(output) if name in line] for output in (whole, two))
        assert len(one) == last and other == pytest.approx(one, rel=1e-3, abs=1e-6)
    assert_close_weights(whole, two, last)
    if way == "adaptive":
        kept = {name: weights(whole, last)[f"consistency.gate.{name}"] for name in REMEMBERED}
        assert kept["tau"] > 0.1 and len(set(kept["histogram"].tolist())) > 1
        protocol = json.loads((whole / "result.json").read_text(encoding="utf-8"))["protocol"]
        assert (protocol["labelled_pictures"], protocol["unlabelled_pictures"]) == (20, 42)


def test_without_weight_a_run_is_that_of_the_labelled_images(home: Path, tmp_path: Path) -> None:
    """20 labelled images, 4 at a time, which divides: passes over them are the epochs of the run without others."""
    both, alone = tmp_path / "both", tmp_path / "alone"
    steps = 10
    # an epoch of both is 62 // 8 = 7 steps, one of the labelled images 20 // 4 = 5
    lengths = {both: (8, steps / 7), alone: (4, steps / 5)}
    for output, (batch, epochs) in lengths.items():
        more = ["task.unlabelled={weight: 0.0}"] if output == both else []
        length = [f"train.batch_size={batch}", f"train.epochs={epochs}", f"optim.warmup_epochs={0.2 * epochs}"]
        more += [*length, "optim.lr_rule=none", "optim.base_lr=0.001"]
        assert launch("finetune", command(home, output, *more)) == [0]
    ours, theirs = weights(both, steps), weights(alone, steps)
    found = {name for name, tensor in theirs.items() if not ours[name].equal(tensor)}
    assert not found, "to the bit"
    assert set(ours) - set(theirs) == {f"consistency.gate.{name}" for name in REMEMBERED}
    losses = [
        [line[name] for line in metrics(out) if name in line] for out, name in ((both, "supervised"), (alone, "loss"))
    ]
    assert losses[0] == losses[1] and len(losses[0]) == steps
    assert (both / "export" / "model.safetensors").read_bytes() == (alone / "export" / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("task.unlabelled={ratio: 2}",), "pictures 1 : 2, so each process needs a multiple of 3 at a time, found 8"),
        (
            ("task.unlabelled={}", "run.accumulate=2"),
            "adaptive thresholds), so run.accumulate=2 would change its loss",
        ),
        (("task.unlabelled={data: /nowhere}",), "/nowhere"),
    ],
)
def test_mistakes_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: tuple[str, ...], says: str
) -> None:
    assert launch("finetune", command(home, tmp_path, *changes)) == [2]
    error = capfd.readouterr().err
    assert says in error and "Traceback" not in error


def test_a_batch_that_processes_would_part_is_refused(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert launch("finetune", command(home, tmp_path, "task.unlabelled={ratio: 7}"), world=2) == [2, 2]
    error = capfd.readouterr().err
    assert "multiple of 8 at a time, found 4" in error and "Traceback" not in error
