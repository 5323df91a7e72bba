"""Whole runs of detection: killed ones come to the same bits, two processes learn what one does, results are kept."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from boxed import write_coco, write_yolo
from support import assert_close_weights, checkpoint_bytes, launch, metrics, weights

import unlabeled
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.page.finetuned import parts
from unlabeled.report.document import Figure, Table

RECIPE = """
name: tiny
encoder: UNSET
data: {name: coco, path: HOME, train: train, train_boxes: train.json, val: val, val_boxes: val.json}
task:
  name: detect
  view: {size: 32, scale: [0.7, 1.5], mosaic: 0.5, jitter: [0.2, 0.2, 0.2, 0.1]}
  detector: {name: retinanet, channels: 8, finest: 4, anchor: 2.0, score: 0.0}
optim: {name: adamw, base_lr: 0.003, lr_rule: none, warmup_epochs: 1, clip: 1.0}
train: {epochs: 2, batch_size: 4}
run: {device: cpu, workers: 0, log_every: 1, checkpoint_every: 2, keep_last: 100, page: false}
"""
WAYS: dict[str, tuple[str, ...]] = {
    "retinanet": ("task.ema=0.8", "task.detector.box_loss=giou"),
    "faster_rcnn": (
        "task.detector={name: faster_rcnn, channels: 8, finest: 4, anchor: 2.0, width: 16, anchors: 16, proposals: 16, "
        "kept: 30}",
        "task.strategy={name: differential, layer_decay: 0.5}",
    ),
    "unlabelled": (
        "task.detector={name: faster_rcnn, channels: 8, finest: 4, anchor: 2.0, width: 16, anchors: 16, proposals: 16, "
        "kept: 30, score: 0.0}",
        "task.unlabelled={ratio: 1, begin: 0.25, found: 0.2, sure: 0.3, steady: 0.3}",
        "train.epochs=1",
        "optim.warmup_epochs=0.25",
    ),
}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("detect")
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((32, 32))
    export_encoder(home / "export", encoder, IMAGENET, "# card\n", {})
    write_coco(home, "train", 17)
    write_coco(home, "val", 6, first=100)
    text = RECIPE.replace("UNSET", str(home / "export")).replace("HOME", str(home))
    (home / "detect.yaml").write_text(text, encoding="utf-8")
    return home


def command(home: Path, output: Path, *more: str) -> list[str]:
    return [str(home / "detect.yaml"), f"run.output={output}", *more]


@pytest.mark.parametrize("name", WAYS)
def test_killed_runs_and_two_processes(home: Path, tmp_path: Path, name: str) -> None:
    whole, killed, two = (tmp_path / name for name in ("whole", "killed", "two"))
    assert launch("finetune", command(home, whole, *WAYS[name])) == [0]
    assert launch("finetune", command(home, killed, *WAYS[name]), kill={"step": 5}) == [-signal.SIGKILL]
    assert launch("finetune", command(home, killed, *WAYS[name], "run.workers=1")) == [0]
    assert checkpoint_bytes(killed, 8) == checkpoint_bytes(whole, 8)

    assert launch("finetune", command(home, two, *WAYS[name]), world=2) == [0, 0]
    lines = [[line for line in metrics(output) if "loss" in line] for output in (whole, two)]
    for key in (key for key in lines[0][0] if key.startswith("loss")):
        assert [line[key] for line in lines[1]] == pytest.approx([line[key] for line in lines[0]], rel=1e-3), key
    assert_close_weights(whole, two, 8)
    if name == "unlabelled":
        assert any(line.get("boxes_sure", 0) > 0 for line in lines[0]) and "boxes_sure" not in lines[0][0]
        for key in (key for key in lines[0][-1] if key.startswith(("pseudo", "boxes"))):
            assert lines[1][-1][key] == pytest.approx(lines[0][-1][key], rel=1e-3), key
    results = [json.loads((output / "result.json").read_text(encoding="utf-8")) for output in (whole, killed, two)]
    assert results[0]["map"] == results[1]["map"] == pytest.approx(results[2]["map"], abs=0.5)
    assert results[0]["protocol"]["fingerprint"] == results[2]["protocol"]["fingerprint"]


def test_a_run_leaves_scores_boxes_pictures_and_an_export(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    more = ("train.epochs=1", "task.view.mosaic=0.0", "run.page=true", "run.pictures_every=4", "evaluate.every=4")
    assert launch("finetune", command(home, tmp_path, *more)) == [0]
    said = capfd.readouterr().err
    assert "17 from coco, 2 classes" in said and "retinanet, strategy full" in said
    assert f"unlabeled.load_detector('{tmp_path}/export')" in said
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert result["protocol"]["name"] == "detect" and result["pictures"] == 6
    assert set(result["per_class"]) == {"red", "green"} and result["seeds"] == {"run": 0, "labels": 0}
    logged = [line for line in metrics(tmp_path) if "map" in line]
    assert [line["step"] for line in logged] == [4] and logged[0]["map"] == pytest.approx(result["map"])
    boxes = json.loads((tmp_path / "detections.json").read_text(encoding="utf-8"))
    assert len(boxes) == result["found"] > 0 and set(boxes[0]) == {"file", "category", "bbox", "score"}
    for file in ("detections.jpg", "pictures/step-00000004.png"):
        assert (tmp_path / file).stat().st_size > 500
    text = (tmp_path / "result.md").read_text(encoding="utf-8")
    assert "mean average precision over overlaps" in text and "| green |" in text
    shown = parts(tmp_path)
    assert any(isinstance(part, Figure) and part.file == "detections.jpg" for part in shown)
    assert any(isinstance(part, Table) and "mAP, %" in part.head for part in shown)
    assert (tmp_path / "index.html").is_file()
    assert unlabeled.load_detector(tmp_path / "export").classes == ("red", "green")
    assert launch("report", [str(tmp_path)]) == [0] and "mAP" in capfd.readouterr().err


def test_without_weight_a_run_is_that_of_the_images_with_boxes(home: Path, tmp_path: Path) -> None:
    both, alone = tmp_path / "both", tmp_path / "alone"
    detector, *_ = WAYS["unlabelled"]
    common = (detector, "task.view.mosaic=0.0", "train.epochs=1", "optim.warmup_epochs=0.25")
    more = ("train.batch_size=4", "task.unlabelled={ratio: 1, begin: 0.0, weight: 0.0, found: 0.2, momentum: 0.8}")
    assert launch("finetune", command(home, both, *common, *more)) == [0]
    assert launch("finetune", command(home, alone, *common, "train.batch_size=2")) == [0]
    ours, theirs = weights(both, 8), weights(alone, 8)
    assert not {name for name, tensor in theirs.items() if not ours[name].equal(tensor)}, "to the bit"
    assert {name.split(".")[0] for name in set(ours) - set(theirs)} == {"average"}
    supervised, losses = (
        [line[name] for line in metrics(output) if name in line]
        for output, name in ((both, "supervised"), (alone, "loss"))
    )
    assert supervised == losses and len(losses) == 8


def test_pictures_without_boxes_may_lie_elsewhere(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_coco(home, "others", 10, first=200)
    detector, *_ = WAYS["unlabelled"]
    both = f"task.unlabelled={{data: {home}/others, ratio: 3, begin: 0.5, sure: 0.3, found: 0.2}}"
    watched = "watch={every: 2, hold_out: 0.2, metric: map}"
    common = (detector, both, watched, "train.epochs=1", "optim.warmup_epochs=0.25", "run.page=true")
    assert launch("finetune", command(home, tmp_path, *common)) == [0]
    said = capfd.readouterr().err
    assert "10 from files" in said and "1 : 3 with unlabelled pictures from 50 % of the run" in said
    assert any("boxes_sure" in line for line in metrics(tmp_path)) and (tmp_path / "index.html").is_file()
    for change, says in (
        ("train.batch_size=6", "pictures 1 : 3, so each process needs a multiple of 4 at a time, found 6"),
        (
            f"task.unlabelled={{data: {home}/val, ratio: 3}}",
            "6 of 6 pictures of val that were looked at are in train",
        ),
        ("run.views=device", "run.views=device cannot cut pictures with boxes"),
    ):
        assert launch("finetune", command(home, tmp_path / "wrong", *common, change)) == [2]
        error = capfd.readouterr().err
        assert says in error and "Traceback" not in error


def test_a_watched_run_keeps_the_best_weights(home: Path, tmp_path: Path) -> None:
    more = ("watch={every: 2, hold_out: 0.2, metric: map}", "task.fraction=0.9", "optim.base_lr=0.01")
    assert launch("finetune", command(home, tmp_path, *more)) == [0]
    looks = {line["step"]: line["watched_map"] for line in metrics(tmp_path) if "watched_map" in line}
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    assert list(looks) == [2, 4, 6] and looks[result["protocol"]["weights_of_step"]] == max(looks.values())
    assert result["protocol"]["labelled_pictures"] == 12


def test_text_files_cnns_and_frozen_backbones(home: Path, tmp_path: Path) -> None:
    write_yolo(tmp_path, "train", 9)
    more = (
        f"data={{name: yolo, path: {tmp_path}, split: 0.3, mean: [0.5, 0.5, 0.5], std: [0.5, 0.5, 0.5]}}",
        "encoder=scratch:timm:test_resnet",
        "adapt=[size]",
        "task.strategy={name: frozen}",
        "train.epochs=1",
    )
    assert launch("finetune", command(home, tmp_path / "run", *more)) == [0]
    assert json.loads((tmp_path / "run" / "result.json").read_text(encoding="utf-8"))["pictures"] == 3
    found = weights(tmp_path / "run", 1)
    assert any(name.startswith("detector.net.backbone.pyramid.inner_blocks") for name in found)


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("run.views=device", "run.views=device cannot cut pictures with boxes"),
        ("data.val_boxes=null data.val=null", "detection is scored on data.val, which is not named"),
        ("data.train_boxes=none.json", "none.json' cannot be read: No such file"),
        ("data={name: shapes, train_size: 8, val_size: 4, size: 32}", "data.train is of the kind shapes, which has no"),
        ("watch={every: 2}", "detect has no accuracy to watch: set watch.metric=map"),
        ("task.drop_block=0.1", "drops blocks of a CNN's stages"),
        ("task.view.size=30", "patch_size 4 does not divide"),
        ("task.view.erase=0.5", "erase is not for views with boxes"),
        ("task.mixing={mixup: 0.5}", "mixing"),
    ],
)
def test_mistakes_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str, says: str
) -> None:
    settings = [setting] if setting.startswith(("data={", "watch", "task.mixing")) else setting.split(" ")
    adapt = ["adapt=[size]"] if "size=30" in setting else []
    assert launch("finetune", command(home, tmp_path, *settings, *adapt)) == [2]
    assert says in capfd.readouterr().err


def test_the_plan_counts_memory_and_time(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch("finetune", command(home, tmp_path, "--dry-run", *WAYS["faster_rcnn"])) == [0]
    said = capfd.readouterr().err
    assert "resized by 0.7 to 1.5, mosaic 0.5" in said and "activations" in said and "images/s" in said


def test_the_doctor_takes_steps_with_boxes(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    code = launch("doctor", [*command(home, tmp_path, "train.batch_size=8"), "--json", "--seconds", "0.5"])
    said = capfd.readouterr().err  # both streams are in it
    assert "{" in said, (code, said[-1500:])
    facts = json.loads(said[said.index("{") :])
    assert code in ([0], [1])
    assert facts["speed"] and facts["splits"]["train"]["suspicious"]["boxes_empty"]["count"] == 0
