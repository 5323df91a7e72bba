"""Whole runs of fine-tuning in every way: killed ones come to the same bits, two processes learn what one does."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from support import TINY_FINETUNE, assert_close_weights, checkpoint_bytes, launch, metrics, weights

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import center_crop
from unlabeled.recipe import load
from unlabeled.stages.finetune import FinetuneRecipe

# rounding stays small: rates are low, nothing is drawn in the network (tests/train/test_resume.py resumes drop path)
PLAIN = ("task.strategy.drop_path=0.0", "optim.base_lr=0.003")
WAYS: dict[str, tuple[str, ...]] = {
    "frozen": ("task.shots=4",),
    "linear": ("optim={name: lars, base_lr: 3.0, weight_decay: 0.0}",),
    "sweep": (
        "optim={name: sgd, base_lr: 3.0, weight_decay: 0.0}",
        "task.rates=[0.1, 1.0]",
        "task.pools=[cls, cls_mean]",
        "task.blocks=[1, 2]",
        "watch={every: 4, hold_out: 0.3}",
    ),
    "attentive": ("optim.clip_value=0.001",),
    "lora": ("task.ema=0.8",),
    "full": ("task.flood=2.2", "task.ema=0.9", "task.repeats=2"),
    "differential": (
        "task.strategy.layer_decay=0.5",
        "task.balance=balanced",
        "task.balance_from=1",
        "task.long_tail=2",
    ),
    "gradual": ("task.strategy.unfreeze_every=1", "task.mixing.off_epoch=2"),
    "retrain": ("task.effective_number=0.9", "task.logit_adjustment=1.0"),
}

SPLITS = {"train": "x", "train_labels": "y", "val": "x", "val_labels": "y"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An encoder, and a classifier that was fine-tuned from it."""
    home = tmp_path_factory.mktemp("runs")
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(home / "export", encoder, IMAGENET, "# card\n", {})
    (home / "finetune.yaml").write_text(TINY_FINETUNE.replace("UNSET", str(home / "export")), encoding="utf-8")
    assert launch("finetune", command(home, home / "classifier", "full")) == [0]
    return home


def command(home: Path, output: Path, way: str, *more: str) -> list[str]:
    encoder = home / "classifier" / "export" if way == "retrain" else home / "export"
    few = () if way != "frozen" else ("train.epochs=3", "data.train_size=60")
    name = "task.name=sweep" if way == "sweep" else f"task.strategy.name={way}"
    settings = [f"run.output={output}", f"encoder={encoder}", name, *few]
    return [str(home / "finetune.yaml"), *settings, *more]


def last_step(output: Path) -> int:
    return max(int(path.name.removeprefix("step-")) for path in (output / "checkpoints").iterdir())


@pytest.mark.parametrize("way", WAYS)
def test_killed_runs_and_two_processes(home: Path, tmp_path: Path, way: str) -> None:
    drop_path, rate = PLAIN
    plain = [drop_path] if way in ("full", "differential", "gradual") else []
    settings = (*WAYS[way], *plain, *([] if way in ("linear", "sweep") else [rate]))
    whole, killed, two = (tmp_path / name for name in ("whole", "killed", "two"))
    assert launch("finetune", command(home, whole, way, *settings)) == [0]
    assert launch("finetune", command(home, killed, way, *settings), kill={"step": 8}) == [-signal.SIGKILL]
    assert launch("finetune", command(home, killed, way, *settings, "run.workers=2")) == [0]
    last = last_step(whole)
    assert checkpoint_bytes(killed, last) == checkpoint_bytes(whole, last)

    assert launch("finetune", command(home, two, way, *settings), world=2) == [0, 0]
    losses = [[line["loss"] for line in metrics(output) if "loss" in line] for output in (whole, two)]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert_close_weights(whole, two, last)


@pytest.mark.parametrize("kill", [5, 8])
def test_a_watched_run_stops_early_with_its_best_weights_and_resumes(home: Path, tmp_path: Path, kill: int) -> None:
    # at such a rate the score soon falls
    settings = (
        "watch={every: 2, hold_out: 0.3, patience: 3, metric: nll}",
        "optim.schedule={name: plateau, factor: 0.5, patience: 2}",
        "optim.base_lr=3.0",
        "optim.warmup_epochs=0",
        "train.epochs=12",
        "run.keep_last=1",
    )
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert launch("finetune", command(home, whole, "full", *settings)) == [0]
    looks = {line["step"]: line["watched_nll"] for line in metrics(whole) if "watched_nll" in line}
    best, last = min(looks, key=looks.__getitem__), max(looks)
    rates = {line["step"]: line["lr"] for line in metrics(whole) if "lr" in line}

    # it ended three looks after the best, having lowered its rate after two of them
    assert last == best + 6 < 12 * 3
    assert rates[last] == pytest.approx(rates[best] / 2)
    assert sorted(path.name for path in (whole / "checkpoints").iterdir()) == [f"step-{best:08d}", f"step-{last:08d}"]
    result = json.loads((whole / "result.json").read_text(encoding="utf-8"))
    assert result["protocol"]["weights_of_step"] == best
    assert result["confusion"] == confusion_of(whole).tolist()
    exported = weights(whole, best)["model.head.weight"]
    assert torch.equal(exported_head(whole), exported)
    assert not torch.equal(exported, weights(whole, last)["model.head.weight"])

    assert launch("finetune", command(home, killed, "full", *settings), kill={"step": kill}) == [-signal.SIGKILL]
    assert launch("finetune", command(home, killed, "full", *settings)) == [0]
    for step in (best, last):
        assert checkpoint_bytes(killed, step) == checkpoint_bytes(whole, step)
    assert torch.equal(exported_head(killed), exported)


def confusion_of(output: Path) -> np.ndarray:
    """By timm alone, of the export."""
    recipe = load(FinetuneRecipe, output / "recipe.yaml", [])
    val, normalize = Opened(recipe.data).val, Normalize(recipe.data.mean, recipe.data.std, torch.device("cpu"))
    images = torch.stack([normalize(center_crop(val.image(i), (16, 16), 1.0, "bicubic")) for i in range(len(val))])
    with torch.no_grad():
        logits = timm.create_model(f"local-dir:{output / 'export'}", pretrained=True).eval()(images)
    counts = np.zeros((len(val.classes),) * 2, int)
    np.add.at(counts, (val.labels, logits.argmax(1).numpy()), 1)
    return counts


def exported_head(output: Path) -> torch.Tensor:
    import safetensors.torch

    return safetensors.torch.load_file(output / "export" / "model.safetensors")["head.weight"]


def test_what_must_be_adapted_is_said(home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert launch("finetune", command(home, tmp_path, "full", "task.view.size=24")) == [2]
    error = capfd.readouterr().err
    assert "at 16x16 pixels, task.view.size is 24x24. Set task.view.size=[16,16], or adapt=[size]" in error
    assert launch("finetune", command(home, tmp_path, "full", "task.view.size=[17,24]", "adapt=[size]")) == [2]
    error = capfd.readouterr().err
    assert (
        "task.view: patch_size 4 does not divide a crop of 17x24 pixels. The nearest size that it does: [16, 24"
        in error
    )
    short = ("train.epochs=0.4", "optim.warmup_epochs=0", "run.pictures_every=1")
    assert launch("finetune", command(home, tmp_path, "full", "task.view.size=24", "adapt=[size]", *short)) == [0]
    assert "model.pos_embed" in weights(tmp_path, 2) and weights(tmp_path, 2)["model.pos_embed"].shape == (1, 37, 16)
    drawn = sorted(file.name for file in (tmp_path / "pictures").iterdir())
    assert drawn == ["step-00000001.png", "step-00000002.png"]


def test_grey_pictures_through_an_encoder_of_colours(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pictures, labels = np.random.default_rng(0).integers(256, size=(40, 16, 16), dtype=np.uint8), np.arange(40) % 4
    np.save(tmp_path / "x.npy", pictures)
    np.save(tmp_path / "y.npy", labels)
    files = ", ".join(f"{name}: {tmp_path}/{file}.npy" for name, file in SPLITS.items())
    grey = (
        f"data={{name: arrays, {files}, mean: [0.5], std: [0.5], allow_overlap: true}}",
        "train.epochs=0.4",
        "optim.warmup_epochs=0",
    )
    command_line = [str(home / "finetune.yaml"), f"run.output={tmp_path}/run", *grey]
    assert launch("finetune", command_line) == [2]
    assert "the encoder sees 3 channels, the pictures have 1" in capfd.readouterr().err
    assert launch("finetune", [*command_line, "adapt=[channels]"]) == [0]
    assert weights(tmp_path / "run", 2)["model.patch_embed.proj.weight"].shape == (16, 1, 4, 4)
    # a normalisation that can be the encoder's must be
    assert launch("finetune", command(home, tmp_path / "run", "full", "data.mean=[0.5,0.5,0.5]")) == [2]
    assert "pretrained with mean (0.485, 0.456, 0.406)" in capfd.readouterr().err


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("task.shots=99", "99 shots were asked for, but class number"),
        ("task.fraction=0.01", "a label fraction of 0.01 leaves"),
        ("task.strategy.name=retrain", "holds a backbone, not a classifier"),
        ("optim.schedule={name: plateau}", "needs a score to watch"),
        ("train.batch_size=7", "even number of pictures at a time, found 7"),
        ("data.val_size=0", "val"),
    ],
)
def test_mistakes_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], setting: str, says: str
) -> None:
    arguments = [str(home / "finetune.yaml"), f"run.output={tmp_path}", setting]
    assert launch("finetune", arguments) == [2]
    error = capfd.readouterr().err
    assert says in error and "Traceback" not in error
