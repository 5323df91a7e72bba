"""What of an engine goes into a checkpoint, and back out of it."""

from __future__ import annotations

from typing import Any, Protocol

import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from pydantic import BaseModel, Field, ValidationError

from unlabeled.manifest import Damaged
from unlabeled.pretrain.method import Method
from unlabeled.train import state
from unlabeled.train.bar import Bar, Scores
from unlabeled.train.checkpoint import Checkpoint, Checkpoints
from unlabeled.train.job import Job
from unlabeled.train.watch import EarlyStopping, Noted


class State(BaseModel, strict=True):
    """What `state.json` must say."""

    step: int = Field(ge=0)
    skipped: int = Field(ge=0)
    skipped_in_a_row: int = Field(ge=0)
    evaluated: dict[str, float]
    watch: Noted | None = None
    bar: Scores | None = None
    scaler: dict[str, float] | None
    processes: int = Field(ge=1)
    facts: dict[str, Any]
    samples: int | None = None
    lengths: list[float] = []
    recipe: dict[str, Any]


class Running(Protocol):
    """The state of an engine, see `unlabeled.train.engine`."""

    job: Job
    accelerator: Accelerator
    device: torch.device
    method: Method
    optimizer: AcceleratedOptimizer
    watch: EarlyStopping | None
    bar: Bar | None
    checkpoints: Checkpoints
    step: int
    first_step: int
    skipped: int
    skipped_in_a_row: int
    evaluated: dict[str, float]
    lengths: list[float]


def tensors_of(engine: Running) -> dict[str, state.Tensors]:
    """Weights, optimizer and every process's random state by file (all processes must ask)."""
    return {
        "model": state.model_tensors(engine.method),
        "optimizer": state.optimizer_tensors(engine.method, engine.optimizer.optimizer),
        **state.all_rng_tensors(engine.device),
    }


def state_of(engine: Running) -> dict[str, Any]:
    """Counters and what the run belongs to, as JSON."""
    scaler = engine.accelerator.scaler
    return {
        "step": engine.step,
        "skipped": engine.skipped,
        "skipped_in_a_row": engine.skipped_in_a_row,
        "evaluated": engine.evaluated,
        "watch": None if engine.watch is None else engine.watch.state(),
        **({} if engine.bar is None else {"bar": engine.bar.state()}),
        "scaler": None if scaler is None else scaler.state_dict(),
        "processes": engine.accelerator.num_processes,
        "facts": engine.job.facts,
        "samples": len(engine.job.dataset.source),
        "lengths": engine.lengths,
        "recipe": engine.job.recipe.model_dump(mode="json"),
    }


def check(checkpoint: Checkpoint) -> None:
    """Raise Damaged where `restore_` would not find what it needs."""
    try:
        saved = State.model_validate(checkpoint.state)
    except ValidationError as error:
        wrong = error.errors()[0]
        raise Damaged(f"state.json: {'.'.join(map(str, wrong['loc']))}: {wrong['msg']}") from error
    random = {name: part.get("cpu") for name, part in checkpoint.tensors.items() if name.startswith("rng-")}
    if set(random) != {f"rng-{rank}" for rank in range(len(random))} or len(random) != saved.processes:
        raise Damaged(f"random states {sorted(random)} of {saved.processes} processes")
    if missing := {"model", "optimizer"} - checkpoint.tensors.keys():
        raise Damaged(f"no {' and '.join(sorted(missing))}.safetensors")
    own = torch.get_rng_state()
    for name, found in random.items():
        if found is None or (found.dtype, found.shape) != (own.dtype, own.shape):
            raise Damaged(f"{name}.safetensors holds no random state")


def restore_(engine: Running, checkpoint: Checkpoint) -> None:
    """Put an engine where a checkpoint was taken, with any number of processes."""
    saved, scaler = checkpoint.state, engine.accelerator.scaler
    state.load_model(engine.method, checkpoint.tensors["model"])
    state.load_optimizer(engine.method, engine.optimizer.optimizer, checkpoint.tensors["optimizer"])
    rank = engine.accelerator.process_index % saved["processes"]
    state.load_rng(checkpoint.tensors[f"rng-{rank}"], engine.device)
    if scaler is not None and saved["scaler"] is not None:
        scaler.load_state_dict(saved["scaler"])
    engine.step = engine.first_step = saved["step"]
    engine.evaluated, engine.lengths = saved["evaluated"], saved.get("lengths", [])
    engine.skipped, engine.skipped_in_a_row = saved["skipped"], saved["skipped_in_a_row"]
    if engine.watch is not None and saved.get("watch") is not None:
        engine.watch.restore(saved["watch"])
        engine.checkpoints.best = engine.watch.kept_step
    if engine.bar is not None and saved.get("bar") is not None:
        engine.bar.restore(saved["bar"])
        engine.checkpoints.best = engine.bar.kept_step
