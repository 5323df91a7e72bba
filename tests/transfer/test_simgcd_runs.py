"""Whole runs of category discovery: killed ones come to the same bits, two processes learn what one does, results are
kept."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from support import assert_close_weights, checkpoint_bytes, launch, metrics, weights

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.page.finetuned import parts
from unlabeled.report.document import Table, Text

RECIPE = """
name: tiny
encoder: UNSET
data: {name: shapes, train_size: 60, val_size: 20, size: 16}
task:
  name: simgcd
  known: 6
  fraction: 0.5
  view: {size: 16, scale: [0.5, 1.0]}
  crop_pct: 1.0
  hidden: 16
  bottleneck: 8
  teacher_temperature_epochs: 2
optim: {name: sgd, base_lr: 0.1, lr_rule: none, warmup_epochs: 0}
train: {epochs: 1.5, batch_size: 8}
run: {device: cpu, workers: 0, log_every: 1, checkpoint_every: 3, keep_last: 100, page: false}
look: null
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("simgcd")
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(home / "export", encoder, IMAGENET, "# card\n", {})
    (home / "simgcd.yaml").write_text(RECIPE.replace("UNSET", str(home / "export")), encoding="utf-8")
    return home


def command(home: Path, output: Path, *more: str) -> list[str]:
    return [str(home / "simgcd.yaml"), f"run.output={output}", *more]


WAYS: dict[str, tuple[str, ...]] = {"plain": (), "mixed": ("task.mix_unlabelled={mixup: 0.8}", "task.ratio=3")}


@pytest.mark.parametrize("way", WAYS)
def test_killed_runs_and_two_processes(home: Path, tmp_path: Path, way: str) -> None:
    whole, killed, two = (tmp_path / name for name in ("whole", "killed", "two"))
    assert launch("finetune", command(home, whole, *WAYS[way])) == [0]
    last = max(int(path.name.removeprefix("step-")) for path in (whole / "checkpoints").iterdir())
    assert launch("finetune", command(home, killed, *WAYS[way]), kill={"step": 5}) == [-signal.SIGKILL]
    assert launch("finetune", command(home, killed, *WAYS[way], "run.workers=1")) == [0]
    assert checkpoint_bytes(killed, last) == checkpoint_bytes(whole, last)

    assert launch("finetune", command(home, two, *WAYS[way]), world=2) == [0, 0]
    for name in ("loss", "memax", "supervised_contrast", "cluster_largest", "cluster_entropy"):
        one, other = ([line[name] for line in metrics(output) if name in line] for output in (whole, two))
        assert len(one) >= last and other == pytest.approx(one, rel=1e-3, abs=1e-6)
    assert_close_weights(whole, two, last)

    first = weights(whole, 3)
    moved = {name for name, tensor in weights(whole, last).items() if not tensor.equal(first[name])}
    assert any(".blocks.1." in name for name in moved) and not any(".blocks.0." in name for name in moved)
    check_result(whole)


def check_result(output: Path) -> None:
    """Scores are on what was not labelled: 60 pictures in turn of the classes, half of those of six with labels."""
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    protocol, groups = result["protocol"], result["groups"]
    assert protocol["labelled_pictures"] + result["pictures"] == 60
    assert protocol["unlabelled_pictures"] == result["pictures"] == groups["all"] == groups["old"] + groups["new"]
    assert protocol["labelled_pictures"] == groups["old"] > 0 and groups["new"] > 0
    assert 0 <= result["all"] <= 100 and len(result["clusters"]) == len(result["classes"])
    rows = (output / "clusters.csv").read_text(encoding="utf-8").splitlines()
    assert rows[0] == "picture,cluster,class" and len(rows) == 1 + result["pictures"]
    assert "accuracy of pictures of new classes" in (output / "result.md").read_text(encoding="utf-8")
    found = parts(output)
    assert sum(isinstance(part, Table) for part in found) == 3
    assert not any(isinstance(part, Text) and "cannot be shown" in part.text for part in found)
    config = json.loads((output / "export" / "config.json").read_text(encoding="utf-8"))
    assert [name for name in config["label_names"] if name.startswith("new ")] == [
        f"new {number}" for number in range(1, len(result["classes"]) - 6 + 1)
    ]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (("task.ratio=2",), "pictures 1 : 2, so each process needs a multiple of 3 at a time, found 8"),
        (("run.accumulate=2",), "so run.accumulate=2 would change its loss"),
        (("task.known=null",), "there is nothing to discover"),
        (("task.unlabelled=/nowhere", "task.classes=12", "task.known=null"), "/nowhere"),
    ],
)
def test_mistakes_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], changes: tuple[str, ...], says: str
) -> None:
    assert launch("finetune", command(home, tmp_path, *changes)) == [2]
    error = capfd.readouterr().err
    assert says in error and "Traceback" not in error
