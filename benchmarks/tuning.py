"""Fine-tuning a ViT-S/16 at 224 px, 8 pictures a step: our engine's loop, and timm's own model in a bare loop.

    python benchmarks/finetune.py [--json] [--rounds N] [--threads N]

Both learn everything from the same weights, float32, cross-entropy with smoothed labels, AdamW fused, no clipping. The
bare loop has its batch in memory and does forward, loss, backward, update and nothing else. The engine collates,
normalises, groups parameters, sets rates, checks that loss and gradients are finite and logs (every 10 steps, five
times as often as recipes do). They take turns step by step in one process, so timm's loop too has the memory settings
that our engine makes on a CPU. Making views, saving and evaluating are left out.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import timm
import torch
import torch.nn.functional as F
from common import finish, machine, options, table
from engine import Prepared, Turns, run_engine
from torch import Tensor, nn

from unlabeled.data.loader import Normalize, collate, to_device
from unlabeled.data.sampler import Position
from unlabeled.export import IMAGENET, export_encoder
from unlabeled.job import Job
from unlabeled.method import Batch, Progress
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.recipe import load
from unlabeled.schema import FinetuneRecipe
from unlabeled.training import finetuning
from unlabeled.transfer.classify import Classifier

RECIPE = Path(__file__).parents[1] / "recipes" / "demo" / "finetune_shapes.yaml"
MODEL, SIDE, BATCH, SMOOTHING, DECAY, BETAS = "vit_small_patch16_224", 224, 8, 0.1, 0.05, (0.9, 0.999)
OVERRIDES = [
    f"data={{name: shapes, size: {SIDE}, train_size: {2 * BATCH}, val_size: {BATCH}}}",
    f"task={{mode: full, pool: cls, view: {{size: {SIDE}}}, label_smoothing: {SMOOTHING}}}",
    f"optim={{name: adamw, base_lr: 1e-4, betas: {list(BETAS)}, weight_decay: {DECAY}, clip: null}}",
    "evaluate.every=null",
    "run={device: cpu, workers: 0, log_every: 10, checkpoint_every: 1000000}",
]
START = Progress(0, 1, 0.0, 1.0)


def main(arguments: Sequence[str] | None = None) -> None:
    """Both loops in turn, the ratio of their medians."""
    chosen = options("Fine-tuning ViT-S/16: our engine and timm in a bare loop.", 30, arguments)
    torch.set_num_threads(chosen.threads)
    with tempfile.TemporaryDirectory() as folder:
        job = make_job(Path(folder), chosen.rounds)
        batch = batch_of(job)
        model = timms_model(job)
        apart = disagreement(job, model, batch)
        turns = Turns(bare_step(model, batch))
        run_engine(job, Path(folder), turns)
    ours, timms = median(turns.ours_s), median(turns.bare_s)
    print(f"{machine()}; {MODEL}, {BATCH} pictures of {SIDE} px, {len(turns.ours_s)} steps each")
    print(f"at the same weights the losses differ by {apart:.1e}, relative")
    rows = [(name, f"{1000 * time:.1f}", f"{BATCH / time:.2f}") for name, time in (("engine", ours), ("timm", timms))]
    print(table(("medians", "ms/step", "images/s"), rows))
    result = {"vs_timm": round(timms / ours, 4), "ms": round(1000 * ours, 2), "timm_ms": round(1000 * timms, 2)}
    finish(chosen, result)


def make_job(folder: Path, rounds: int, **smaller: Any) -> Job:
    """A fine-tuning of so many steps, two an epoch, and one that warms up; its samples are made once."""
    torch.manual_seed(0)
    encoder = EncoderConfig(model=MODEL, **smaller).build((SIDE, SIDE))
    export_encoder(folder / "export", encoder, IMAGENET, "", {})
    more = [f"encoder={folder / 'export'}", f"run.output={folder}", f"train.epochs={(rounds + 1) / 2}"]
    recipe = load(FinetuneRecipe, RECIPE, [*OVERRIDES, *more, f"train.batch_size={BATCH}"])
    made = finetuning(recipe)
    dataset = Prepared(made.dataset.source, made.dataset.views, made.dataset.patch, recipe.seed)
    dataset.prepare()
    return Job(recipe, made.build, dataset, None, {})


def batch_of(job: Job) -> Batch:
    """The engine's only batch, on the CPU and normalised."""
    raw, cpu = collate([job.dataset[Position(0, i)] for i in range(BATCH)]), torch.device("cpu")
    return to_device(raw, cpu, Normalize(job.recipe.data.mean, job.recipe.data.std, cpu))


def timms_model(job: Job) -> nn.Module:
    """timm's, with the weights that our classifier begins with."""
    ours = job.build()
    assert isinstance(ours, Classifier)
    model = timm.create_model(ours.architecture, num_classes=ours.num_classes, **ours.arguments).train()
    model.load_state_dict(ours.model.state_dict())
    return model


def disagreement(job: Job, model: nn.Module, batch: Batch) -> float:
    """Relative difference of the losses at the same weights."""
    ours = job.build().train()
    assert isinstance(ours, Classifier)
    ours.model.load_state_dict(model.state_dict())
    with torch.no_grad():
        return abs(ours(batch, START).loss.item() / loss(model, batch).item() - 1)


def loss(model: nn.Module, batch: Batch) -> Tensor:
    """What timm's scripts compute."""
    return F.cross_entropy(model(batch.views[0].pixels[0]), batch.labels, label_smoothing=SMOOTHING)


def bare_step(model: nn.Module, batch: Batch) -> Callable[[], None]:
    """Forward, cross-entropy, backward, update."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-6, betas=BETAS, weight_decay=DECAY, fused=True)

    def step() -> None:
        loss(model, batch).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step
