"""Fine-tuning a ViT-S/16 at 224 px, 8 pictures a step: our engine's loop, and timm's own model in a bare loop.

    python benchmarks/finetune.py [--json] [--rounds N] [--threads N] [--device cuda --precision bf16 --batch-size N]

Both learn everything from the same weights: cross-entropy with smoothed labels, AdamW fused, no clipping, in float32
unless asked otherwise. The bare loop has its batch on the device and does forward, loss, backward, update and nothing
else. The engine collates, copies, normalises, groups parameters, sets rates, checks that loss and gradients are finite
and logs (every 10 steps, five times as often as recipes do). They take turns step by step in one process, so that
timm's loop too has the memory settings that our engine makes on a CPU. Views, saving and evaluating are left out.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from common import THREADS, finish, machine, table
from engine import Prepared, Turns, run_engine
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import Normalize, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.pretrain.method import Progress
from unlabeled.recipe import load
from unlabeled.stages.finetune import STAGE, FinetuneRecipe
from unlabeled.train.job import Job
from unlabeled.transfer.tasks.classify import Classifier

RECIPE = Path(__file__).parents[1] / "recipes" / "demo" / "finetune_shapes.yaml"
MODEL, SIDE, SMOOTHING, DECAY, BETAS = "vit_small_patch16_224", 224, 0.1, 0.05, (0.9, 0.999)
OVERRIDES = [
    f"task={{strategy: {{name: full}}, pool: cls, view: {{size: {SIDE}}}, label_smoothing: {SMOOTHING}}}",
    f"optim={{name: adamw, base_lr: 1e-4, betas: {list(BETAS)}, weight_decay: {DECAY}, clip: null}}",
    "evaluate.every=null",
]
START = Progress(0, 1, 0.0, 1.0)


class Setting(NamedTuple):
    """Where both run, how precisely, and how many pictures a step takes."""

    device: str = "cpu"
    precision: str = "no"
    batch: int = 8

    def wait(self) -> None:
        """Until the device has done what it was asked."""
        if self.device != "cpu":
            torch.accelerator.synchronize()

    def casting(self) -> torch.autocast:
        """What timm's scripts run the model under."""
        return torch.autocast(self.device, dtype=torch.bfloat16, enabled=self.precision == "bf16")


def main(arguments: Sequence[str] | None = None) -> None:
    """Both loops in turn, the ratio of their medians."""
    parser = argparse.ArgumentParser(description="Fine-tuning ViT-S/16: our engine and timm in a bare loop.")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=30, help="steps of each (default 30)")
    parser.add_argument("--threads", type=int, default=THREADS, help=f"threads (default {THREADS})")
    parser.add_argument("--device", default="cpu", choices=("cpu", "cuda"), help="where both run (default cpu)")
    parser.add_argument("--precision", default="no", choices=("no", "bf16"), help="of both (default no: float32)")
    parser.add_argument("--batch-size", type=int, default=8, help="pictures a step (default 8)")
    chosen = parser.parse_args(arguments)
    setting = Setting(chosen.device, chosen.precision, chosen.batch_size)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), chosen.rounds, setting)
        batch = batch_of(job, setting)
        model = timms_model(job, setting)
        apart = disagreement(job, model, batch, setting)
        turns = Turns(bare_step(model, batch, setting), setting.wait)
        run_engine(job, Path(folder), turns)
    ours, timms = median(turns.ours_s), median(turns.bare_s)
    where = torch.cuda.get_device_name() if chosen.device == "cuda" else machine()
    print(f"{where}; {MODEL}, {setting.batch} pictures of {SIDE} px, {len(turns.ours_s)} steps each")
    print(f"at the same weights the losses differ by {apart:.1e}, relative")
    rows = [
        (name, f"{1000 * time:.1f}", f"{setting.batch / time:.2f}")
        for name, time in (("engine", ours), ("timm", timms))
    ]
    print(table(("medians", "ms/step", "images/s"), rows))
    result = {"vs_timm": round(timms / ours, 4), "ms": round(1000 * ours, 2), "timm_ms": round(1000 * timms, 2)}
    finish(chosen, result)


def make_job(folder: Path, rounds: int, setting: Setting, **smaller: Any) -> Job:
    """A fine-tuning of so many steps, two an epoch, and one that warms up; its samples are made once."""
    torch.manual_seed(0)
    encoder = EncoderConfig(model=MODEL, **smaller).build((SIDE, SIDE))
    export_encoder(folder / "export", encoder, IMAGENET, "", {})
    more = [
        f"data={{name: shapes, size: {SIDE}, train_size: {2 * setting.batch}, val_size: {setting.batch}}}",
        f"encoder={folder / 'export'}",
        f"run={{device: {setting.device}, workers: 0, log_every: 10, checkpoint_every: 1000000, output: {folder}}}",
        f"train={{epochs: {(rounds + 1) / 2}, batch_size: {setting.batch}, precision: {setting.precision!r}}}",
    ]
    recipe = load(FinetuneRecipe, RECIPE, [*OVERRIDES, *more])
    made = STAGE.job(recipe, Opened(recipe.data))
    dataset = Prepared(made.dataset.source, made.dataset.views, made.dataset.patch, recipe.seed)
    dataset.prepare()
    return Job(recipe, made.build, made.data, dataset)


def batch_of(job: Job, setting: Setting) -> Batch:
    """The engine's only batch, on the device and normalised."""
    raw, device = collate([job.dataset[Position(0, i)] for i in range(setting.batch)]), torch.device(setting.device)
    return to_device(raw, device, Normalize(job.recipe.data.mean, job.recipe.data.std, device))


def timms_model(job: Job, setting: Setting) -> nn.Module:
    """timm's, with the weights that our classifier begins with."""
    ours = job.build()
    assert isinstance(ours, Classifier)
    model = timm.create_model(ours.architecture, num_classes=ours.num_classes, **ours.arguments).train()
    model.load_state_dict(ours.model.state_dict())
    return model.to(setting.device)


def disagreement(job: Job, model: nn.Module, batch: Batch, setting: Setting) -> float:
    """Relative difference of the losses at the same weights."""
    ours = job.build().train().to(setting.device)
    assert isinstance(ours, Classifier)
    ours.model.load_state_dict(model.state_dict())
    with torch.no_grad(), setting.casting():
        return abs(ours(batch, START).loss.item() / loss(model, batch).item() - 1)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """What timm's scripts compute."""
    return F.cross_entropy(model(batch.views[0].pixels[0]), batch.labels, label_smoothing=SMOOTHING)


def bare_step(model: nn.Module, batch: Batch, setting: Setting) -> Callable[[], None]:
    """Forward, cross-entropy, backward, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=BETAS, weight_decay=DECAY, fused=True)

    def step() -> None:
        with setting.casting():
            error = loss(model, batch)
        error.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
