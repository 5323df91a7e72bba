"""What `run.checkpoint_activations` saves and costs: memory and time of a step on this CPU, and what fits a GPU.

    python benchmarks/checkpoint_activations.py [--json] [--rounds N] [--threads N] [--cases NAME,NAME]

A step is a forward and a backward pass in float32. All ways of a case take turns in one process, on one network and
one batch; times are seconds of CPU, by which a busy machine counts least. Memory is the growth of resident memory in a
step, gradients of weights aside; the plan counts activations alone. It is measured before freed memory is kept, as the
engine does, times afterwards.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
import torch
from common import finish, forget_peak_memory, machine, peak_memory_mb, picked, table
from torch import nn

from unlabeled.accelerator import keep_freed_memory
from unlabeled.backbone.config import EncoderConfig
from unlabeled.data.mask import Place
from unlabeled.data.opened import Opened
from unlabeled.launch.activations import activations
from unlabeled.launch.plan import empty_batch, memory, on_meta
from unlabeled.nn.recompute import Every, recompute_, recomputed
from unlabeled.pretrain.method import METHODS, Progress
from unlabeled.pretrain.methods import dino
from unlabeled.recipe import load
from unlabeled.stages.pretrain import Pretrain, PretrainRecipe

START = Progress(0, 10, 0.0, 1.0)
WAYS: dict[str, Every | None] = {"all kept": None, "every block": "blocks", "every 2nd": 2}
RECIPES = Path(__file__).parents[1] / "recipes" / "pretrain"
GPU, SPARE = 24e9, 2e9  # bytes of a GPU, and those for the context of CUDA and for what libraries want
SHAPES = ["data={name: shapes, train_size: 64, val_size: 8, size: 224}", "evaluate=null", "train.precision=bf16"]


class Case(NamedTuple):
    """A method, its network, the pictures of a step, and fields of the method that are not its defaults."""

    method: str
    model: str
    pictures: int
    fields: dict[str, Any]


def _local(count: int) -> dict[str, Any]:
    return {"local": dino.LOCAL.model_copy(update={"count": count})}


CASES = {
    "mae_vits": Case("mae", "vit_small_patch16_224", 4, {}),
    "dino_vits": Case("dino", "vit_small_patch16_224", 2, _local(4)),
    "simclr_resnet50": Case("simclr", "resnet50", 2, {}),
    "mae_vitl": Case("mae", "vit_large_patch16_224", 2, {}),
    "dino_vitl": Case("dino", "vit_large_patch16_224", 1, _local(2)),
}

# recipes whose network becomes a ViT-L/16: the networks of the methods
LARGE = {
    "mae_vitl16_in1k": "vit_large_patch16_224",
    "simmim_vitb_in1k": "beit_large_patch16_224",
    "simclr_vits16_1gpu": "vit_large_patch16_224",
    "mocov3_vitb16_in1k": "vit_large_patch16_224",
    "dino_vitb16_in1k": "vit_large_patch16_224",
    "ibot_vitb16_in1k": "vit_large_patch16_224",
    "dinov2_vitl16_in1k": "vit_large_patch16_224",
}


# ---------------------------------------------------------------- measured


def measure(case: Case, ways: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Memory of each way, what the plan counts for it, and its seconds per step."""
    kind: Any = METHODS.kind(case.method)
    config = kind(encoder=EncoderConfig(model=case.model), **case.fields)
    torch.manual_seed(0)
    method = config.build().train()
    patch, count = config.backbone.patch_size, case.pictures
    shapes = empty_batch(config.views, patch, count, 3)
    batch = shapes._replace(
        views=[
            view._replace(
                pixels=torch.randn(view.pixels.shape),
                mask=None if given.mask is None else drawn(given, patch, view.pixels.shape[:2]),
            )
            for view, given in zip(shapes.views, config.views, strict=True)
        ],
        labels=torch.zeros(count, dtype=torch.int64),
        index=torch.arange(count),
    )

    def step() -> None:
        method(batch, START).loss.backward()
        method.zero_grad(set_to_none=False)

    step()
    found: list[dict[str, Any]] = [{"way": way, "saved_mb": saved(method, WAYS[way], step)} for way in ways]
    for one in found:
        one["plan_mb"] = planned(config, shapes, WAYS[one["way"]])
    keep_freed_memory()
    times: dict[str, list[float]] = {way: [] for way in ways}
    for turn in range(rounds):
        for way in ways if turn % 2 == 0 else reversed(ways):
            times[way].append(timed(method, WAYS[way], step))
    for one in found:
        one["seconds"] = median(times[one["way"]])
    return found


def drawn(view: Any, patch: int, lead: Sequence[int]) -> Any:
    """A mask of every crop, all alike."""
    grid = (view.shape[0] // patch, view.shape[1] // patch)
    mask = view.mask.draw(np.random.default_rng(0), grid, patch, Place(row=0, batch=1))
    return mask.map(lambda tensor: tensor.expand(*lead, -1))


def as_it_is(method: nn.Module, every: Every | None) -> None:
    """Let blocks be computed twice, or no longer."""
    for part in method.modules():
        vars(part).pop("forward", None)
    if every is not None:
        recompute_(method, every)


def saved(method: nn.Module, every: Every | None, step: Callable[[], None]) -> float:
    """MB by which resident memory grows in a step."""
    as_it_is(method, every)
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)  # what earlier steps freed would be taken again unseen
    forget_peak_memory()
    before = peak_memory_mb()
    step()
    return peak_memory_mb() - before


def timed(method: nn.Module, every: Every | None, step: Callable[[], None]) -> float:
    as_it_is(method, every)
    started = time.process_time()
    step()
    return time.process_time() - started


def planned(config: Any, shapes: Any, every: Every | None) -> float:
    """MB of activations, as the plan counts them."""
    method = on_meta(config.build)
    twice = [] if every is None else recomputed(method, every)
    return max(map(sum, activations(lambda: method(shapes, START), method, twice))) / 1e6


# ---------------------------------------------------------------- planned


def large(name: str) -> list[tuple[float, float]]:
    """(bytes of weights and optimizer, bytes of activations per picture) of a recipe with a ViT-L/16: all kept, then
    every block twice; by two sizes of the batch."""
    rows = []
    for value in ("null", "blocks"):
        told = [f"method.encoder.model={LARGE[name]}", "method.encoder.heads=16", f"run.checkpoint_activations={value}"]
        kept = []
        for pictures in (4, 8):
            more = [*SHAPES, *told, f"train.batch_size={pictures}", "train.epochs=100", "run.accumulate=1"]
            job = Pretrain().job(recipe := load(PretrainRecipe, RECIPES / f"{name}.yaml", more), Opened(recipe.data))
            kept.append(memory(on_meta(job.build), job, pictures))
        (weights, few), (_, many) = kept
        rows.append((weights + max(0.0, 2 * few - many), (many - few) / 4))
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    """Both tables."""
    parser = argparse.ArgumentParser(description="Memory and time of activation checkpointing.")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each way (default 5)")
    parser.add_argument("--threads", type=int, default=1, help="threads (default 1)")
    parser.add_argument("--cases", default=",".join(CASES), help=f"which, by name (default {','.join(CASES)})")
    chosen = parser.parse_args(arguments)
    torch.set_num_threads(chosen.threads)
    print(machine())
    result: dict[str, Any] = {}
    for name in picked(parser, chosen.cases, list(CASES)):
        ways = list(WAYS)
        result[name] = measure(CASES[name], ways, chosen.rounds)
        print(f"\n{name}: {CASES[name].pictures} pictures\n{measured_table(result[name])}", flush=True)
    result["large"] = {name: large(name) for name in LARGE}
    print(f"\nViT-L/16 at 224 px, bfloat16, by the plan\n{large_table(result['large'])}")
    finish(chosen, result)


def measured_table(found: list[dict[str, Any]]) -> str:
    first = found[0]
    rows = [
        (
            one["way"],
            f"{one['saved_mb']:.0f}",
            f"{one['plan_mb']:.0f}",
            f"{one['saved_mb'] / first['saved_mb']:.2f}",
            f"{one['seconds']:.2f}",
            f"{one['seconds'] / first['seconds']:.2f}",
        )
        for one in found
    ]
    return table(("computed twice", "MB of a step", "MB by the plan", "share", "CPU s", "x time"), rows)


def large_table(found: dict[str, list[tuple[float, float]]]) -> str:
    rows = []
    for name, ways in found.items():
        fits = [max(0, int((GPU - SPARE - weights) // each)) for weights, each in ways]
        (weights, kept), (_, twice) = ways
        figures = f"{weights / 1e9:.1f}", f"{kept / 1e6:.0f}", f"{twice / 1e6:.0f}", str(fits[0]), str(fits[1])
        rows.append((name, *figures))
    return table(("recipe", "GB of weights", "MB a picture", "twice", "pictures in 24 GB", "twice"), rows)


if __name__ == "__main__":
    main()
