"""Whole runs of segmentation: killed ones come to the same bits, two processes learn what one does."""

from __future__ import annotations

import json
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from masked import write
from PIL import Image
from support import assert_close_weights, checkpoint_bytes, launch, metrics, weights

import unlabeled
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.page.finetuned import parts
from unlabeled.report.document import Figure, Table

RECIPE = """
name: tiny
encoder: UNSET
data: {name: files, path: HOME, train: train, val: val}
task:
  name: segment
  view: {size: 32, scale: [0.7, 1.5], jitter: [0.2, 0.2, 0.2, 0.1]}
  decoder: {channels: 8, width: 8}
  ema: 0.8
  strategy: {name: differential, layer_decay: 0.5}
optim: {name: adamw, base_lr: 0.003, lr_rule: none, warmup_epochs: 1, clip: 1.0}
train: {epochs: 2, batch_size: 4}
run: {device: cpu, workers: 0, log_every: 1, checkpoint_every: 2, keep_last: 100, page: false}
"""


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("segment")
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 8, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((32, 32))
    export_encoder(home / "export", encoder, IMAGENET, "# card\n", {})
    write(home, "train", 17, height=24, width=40)
    write(home, "val", 6, first=100, height=24, width=40)
    text = RECIPE.replace("UNSET", str(home / "export")).replace("HOME", str(home))
    (home / "segment.yaml").write_text(text, encoding="utf-8")
    return home


def command(home: Path, output: Path, *more: str) -> list[str]:
    return [str(home / "segment.yaml"), f"run.output={output}", *more]


def result_of(output: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "result.json").read_text(encoding="utf-8"))
    return found


def test_killed_runs_and_two_processes(home: Path, tmp_path: Path) -> None:
    whole, killed, two = (tmp_path / name for name in ("whole", "killed", "two"))
    assert launch("finetune", command(home, whole)) == [0]
    assert launch("finetune", command(home, killed), kill={"step": 5}) == [-signal.SIGKILL]
    assert launch("finetune", command(home, killed, "run.workers=1")) == [0]
    assert checkpoint_bytes(killed, 8) == checkpoint_bytes(whole, 8)

    assert launch("finetune", command(home, two), world=2) == [0, 0]
    lines = [[line for line in metrics(output) if "loss" in line] for output in (whole, two)]
    for key in ("loss", "train_accuracy"):
        assert [line[key] for line in lines[1]] == pytest.approx([line[key] for line in lines[0]], rel=1e-3), key
    assert_close_weights(whole, two, 8)
    one, again, both = (result_of(output) for output in (whole, killed, two))
    assert one["miou"] == again["miou"] == pytest.approx(both["miou"], abs=0.2)
    assert one["labelled_pixels"] == both["labelled_pixels"] == 6 * 23 * 40
    assert one["protocol"]["fingerprint"] == both["protocol"]["fingerprint"]


def test_a_run_leaves_scores_pictures_and_an_export(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ("train.epochs=1", "run.page=true", "run.pictures_every=4", "evaluate.every=4")
    assert launch("finetune", command(home, tmp_path, *more)) == [0]
    said = capfd.readouterr().err
    assert "17 from files, 3 classes" in said and "decoder of 8 channels, strategy differential" in said
    assert "masks of train:" in said and "(unlabelled)" in said
    assert f"unlabeled.load_segmenter('{tmp_path}/export')" in said
    result = result_of(tmp_path)
    assert result["protocol"]["name"] == "segment" and result["pictures"] == 6 and result["unlabelled"] == 255
    assert set(result["per_class"]) == {"0", "1", "2"} and len(result["interval"]) == 2
    logged = [line for line in metrics(tmp_path) if "miou" in line]
    assert [line["step"] for line in logged] == [4] and logged[0]["miou"] == pytest.approx(result["miou"])
    for file in ("segments.jpg", "pictures/step-00000004.png"):
        assert (tmp_path / file).stat().st_size > 500
    assert Image.open(tmp_path / "segments.jpg").size == (3 * 256, 6 * 256)
    text = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "mean intersection over union" in text and re.search(r"which do not count *\| *255 \|", text)
    shown = parts(tmp_path)
    assert any(isinstance(part, Figure) and part.file == "segments.jpg" for part in shown)
    assert any(isinstance(part, Table) and "IoU, %" in part.head for part in shown)
    assert (tmp_path / "index.html").is_file()
    assert launch("report", [str(tmp_path)]) == [0] and "mIoU" in capfd.readouterr().err

    # the score is that of the loaded export, pixel by pixel, at the full size of masks
    loaded, both, either = unlabeled.load_segmenter(tmp_path / "export"), np.zeros(3), np.zeros(3)
    for number in range(6):
        image, mask = (np.array(Image.open(home / f"{f}/a/{number:03}.png")) for f in ("val", "val_masks"))
        found = loaded([torch.from_numpy(image).permute(2, 0, 1)])[0].numpy()[mask != 255]
        mask = mask[mask != 255]
        both += [((found == c) & (mask == c)).sum() for c in range(3)]
        either += [((found == c) | (mask == c)).sum() for c in range(3)]
    assert result["miou"] == pytest.approx(100 * (both / either).mean(), abs=0.1)


def test_a_watched_run_keeps_the_best_weights(home: Path, tmp_path: Path) -> None:
    more = ("watch={every: 2, hold_out: 0.2, metric: miou}", "task.fraction=0.9", "optim.base_lr=0.01")
    assert launch("finetune", command(home, tmp_path, *more)) == [0]
    looks = {line["step"]: line["watched_miou"] for line in metrics(tmp_path) if "watched_miou" in line}
    result = result_of(tmp_path)
    assert list(looks) == [2, 4, 6] and looks[result["protocol"]["weights_of_step"]] == max(looks.values())
    assert result["protocol"]["labelled_pictures"] == 12


def test_cnns_and_frozen_backbones_and_a_share_held_out(home: Path, tmp_path: Path) -> None:
    more = (
        f"data={{name: files, path: {home}, train: train, split: 0.3, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}",
        "encoder=scratch:timm:test_resnet",
        "adapt=[size]",
        "task.strategy={name: frozen}",
        "task.classes=4",
        "task.view.size=64",
        "train.epochs=1",
    )
    assert launch("finetune", command(home, tmp_path / "run", *more)) == [0]
    result = result_of(tmp_path / "run")
    assert result["pictures"] == 5 and result["per_class"]["3"]["pictures"] == 0
    found = weights(tmp_path / "run", 3)
    assert any(name.startswith("segmenter.backbone.pyramid.inner_blocks") for name in found)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("run.views=device", "run.views=device cannot cut pictures with masks"),
        ("data.val=null", "segmentation is scored on data.val, which is not named"),
        ("task.classes=2", "Say what these are: task.classes for classes (at most 1024), task.ignore=2 for unlabelled"),
        ("data={name: shapes, train_size: 8, val_size: 4, size: 32}", "segmentation needs masks beside pictures"),
        ("watch={every: 2}", "segment has no accuracy to watch: set watch.metric=miou"),
        ("task.view.size=30", "patch_size 8 does not divide"),
        ("task.view.erase=0.5", "erase is not for views with masks"),
    ],
)
def test_mistakes_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str, says: str
) -> None:
    adapt = ["adapt=[size]"] if "size=30" in setting else []
    assert launch("finetune", command(home, tmp_path, setting, *adapt)) == [2]
    assert says in capfd.readouterr().err


def test_masks_that_are_missing_or_of_another_size_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for folder in ("train", "train_masks", "val", "val_masks"):
        shutil.copytree(home / folder, tmp_path / folder)
    mask = tmp_path / "train_masks" / "a" / "003.png"
    mask.unlink()
    here = (f"data.path={tmp_path}", "train.epochs=1")
    assert launch("finetune", command(home, tmp_path / "run", *here)) == [2]
    assert "1 of 17 pictures have no mask, the first is" in capfd.readouterr().err
    Image.fromarray(np.ones((8, 8), np.uint8)).save(mask)
    assert launch("finetune", command(home, tmp_path / "run", *here)) == [2]
    assert "003.png has 8 rows of 8 pixels, but" in capfd.readouterr().err


def test_the_plan_counts_memory_and_time(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch("finetune", command(home, tmp_path, "--dry-run")) == [0]
    said = capfd.readouterr().err
    assert "resized by 0.7 to 1.5" in said and "activations" in said and "images/s" in said


def test_the_doctor_takes_steps_with_masks(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Pictures that lie right below their split have no class, and need none."""
    write(tmp_path, "train", 9, below="")
    write(tmp_path, "val", 4, first=100, below="")
    settings = (f"data.path={tmp_path}", "train.batch_size=8")
    code = launch("doctor", [*command(home, tmp_path / "run", *settings), "--json", "--seconds", "0.5"])
    said = capfd.readouterr().err  # both streams are in it
    assert "{" in said, (code, said[-1500:])
    facts = json.loads(said[said.index("{") :])
    assert code in ([0], [1]) and facts["speed"] and facts["refused"] == []
    assert facts["splits"]["train"]["classes"] is None and facts["splits"]["val"]["pictures"] == 4
