"""Speed of the loader and of training on this machine, in one process of a run."""

from __future__ import annotations

import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.backbone.pooling import Encode
from unlabeled.data.batch.loader import Feed, ViewDataset, to_device
from unlabeled.data.batch.sampler import EpochSampler, per_process, steps_per_epoch, total_steps
from unlabeled.data.batch.samples import RawBatch
from unlabeled.launch.forecast import count_work
from unlabeled.launch.plan import check_accumulation, memory, on_meta
from unlabeled.nn.modes import evaluating
from unlabeled.pretrain.method import Method
from unlabeled.processes import raise_together
from unlabeled.progress import task
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.recipe import Recipe

# images in a batch of the loader, few so that it comes soon; images in the first step on a CPU
DRAWN, FIRST = 32, 8
WARM_UP = 2
FOREVER = 1 << 40


class Expected(NamedTuple):
    """Figures by arithmetic.

    Attributes:
        steps: optimizer steps of the run.
        micro_batch: images in a forward pass of one process.
        bytes: weights, optimizer and activations of one process.
        flops: floating point operations of the passes over an image, forward and backward.
    """

    steps: int
    micro_batch: int
    bytes: float
    flops: float


class Speed(NamedTuple):
    """Images per second.

    Attributes:
        loader: by the workers alone.
        model: by whole optimizer steps on images in memory.
        together: by both at once, which is less than either where they share cores.
        encode: by the forward pass of evaluation; None = there is no evaluation.
        batch: images in a measured forward pass.
        peak: most bytes held, of the GPU, or of this process on a CPU.
    """

    loader: float
    model: float
    together: float
    encode: float | None
    batch: int
    peak: int

    @property
    def real(self) -> float:
        """Of a run: the slowest of all, as images made ahead flatter a short measurement of both."""
        return min(self.loader, self.model, self.together)


def expect(job: Job) -> Expected:
    """Figures of one process, without running it. Raises UserError where batch, data and method do not fit together."""
    train, accumulate, method = job.recipe.train, job.recipe.run.micro_batches, on_meta(job.build)
    micro = per_process(train.batch_size, 1, accumulate)
    steps = total_steps(train.epochs, steps_per_epoch(len(job.dataset.source), train.batch_size))
    check_accumulation(method, train.batch_size, accumulate)
    dataset = job.dataset
    if dataset.groups is not None:
        dataset.groups.check(micro)
    channels = job.recipe.data.channels
    work = count_work(on_meta(job.trained), dataset.views, dataset.patch, micro, channels, dataset.unit)
    return Expected(steps, micro, sum(memory(method, job, micro)), work.flops)


def measure(job: Job, accelerator: Accelerator, seconds: float, encoder: Callable[[Method], Encode] | None) -> Speed:
    """Measure everything, each for about so many seconds, or a single step. Leaves no files.

    `encoder` makes what evaluation does with the method; None = it does nothing.
    """
    recipe, device = job.recipe, accelerator.device
    if device.type == "cpu":  # compiling takes minutes there
        recipe = recipe.model_copy(update={"run": recipe.run.model_copy(update={"compile": False})})
    with tempfile.TemporaryDirectory() as folder:
        engine = Engine(Job(recipe, job.build, job.data, job.dataset), accelerator, Path(folder))
    engine.model.train()
    with closing(_feed(recipe, job.dataset, device)) as feed:
        for _ in range(max(1, recipe.run.workers)):  # until all workers work
            raw = _draw(feed)
        loader = _rate("speed of the loader, s", lambda: len(_draw(feed).labels), seconds)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    pending = _steps_that_fit(engine, raw, seconds)
    model = _rate("speed of the model, s", lambda: _step(engine, pending), seconds)
    together = _together(engine, pending, seconds)
    batch, peak = len(pending[0].labels), _peak(device)
    encode = None if encoder is None else _encode(engine, pending[0], encoder, seconds / 2)
    return Speed(loader, model, together, encode, batch, peak)


def memory_of(device: torch.device) -> int:
    """Bytes of the GPU, or of the machine."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _feed(recipe: Recipe, dataset: ViewDataset, device: torch.device) -> Feed:
    """The images of the run in small batches."""
    count, size = len(dataset.source), _whole(min(DRAWN, recipe.train.batch_size), dataset.unit)
    how: Any = {name: getattr(dataset, name) for name in ("seed", "order", "base", "groups")}
    sampler = EpochSampler(count, size, FOREVER, shards=dataset.source.shards, **how)
    return Feed(dataset, sampler, workers=recipe.run.workers, timeout=recipe.run.timeout, device=device)


def _whole(size: int, unit: int) -> int:
    """The nearest size that batches can have: a multiple of `unit`, at least one."""
    return max(unit, size // unit * unit)


def _draw(feed: Feed) -> RawBatch:
    fetched, error = feed.next()
    raise_together(error)
    return fetched[0]


def _steps_that_fit(engine: Engine, raw: RawBatch, seconds: float) -> list[RawBatch]:
    """Warm up; returns micro-batches of the run's size, on a CPU smaller ones where steps would take long."""
    run, train = engine.job.recipe.run, engine.job.recipe.train
    full = per_process(train.batch_size, 1, run.micro_batches)
    unit = engine.job.dataset.unit
    size = _whole(min(full, FIRST), unit) if engine.device.type == "cpu" else full
    while True:
        pending = [_repeated(raw, size, engine.device)] * run.micro_batches
        for _ in range(WARM_UP):
            started = time.perf_counter()
            _step(engine, pending)
        if size == full or 8 * (time.perf_counter() - started) > seconds:
            return pending
        size = min(2 * size, full)


def _repeated(raw: RawBatch, size: int, device: torch.device) -> RawBatch:
    """A batch of `size` images, repeated from `raw`."""
    rows = torch.arange(size) % len(raw.labels)

    def take(tensor: Tensor) -> Tensor:
        return tensor[rows].pin_memory() if device.type == "cuda" else tensor[rows]

    crops = []
    for crop in raw.crops:
        extra = {name: getattr(crop, name) for name in ("mask", "colours", "erased")}
        extra = {name: None if part is None else part.map(take) for name, part in extra.items()}
        blurred = None if extra["colours"] is None else extra["colours"].blurred()
        if blurred is not None and device.type == "cuda":
            blurred = blurred.pin_memory()
        crops.append(crop._replace(pixels=take(crop.pixels), blurred=blurred, **extra))
    boxes = None if raw.boxes is None else raw.boxes.repeated(size)
    classes = None if raw.pixel_labels is None else take(raw.pixel_labels)
    moves = None if raw.moves is None else take(raw.moves)
    labels, index = take(raw.labels), take(raw.index)
    return RawBatch(crops, labels, index, [], None, raw.images, None, boxes, classes, moves)


def _step(engine: Engine, pending: list[RawBatch]) -> int:
    """Take one optimizer step, always the first of the run; returns its number of images."""
    engine.step = 0
    engine.rehearse(pending)
    return sum(len(raw.labels) for raw in pending)


def _together(engine: Engine, pending: list[RawBatch], seconds: float) -> float:
    """Steps that wait for as many images as they take."""
    with closing(_feed(engine.job.recipe, engine.job.dataset, engine.device)) as feed:
        drawn = len(_draw(feed).labels)

        def work() -> int:
            nonlocal drawn
            taken = _step(engine, pending)
            while drawn < taken:
                drawn += len(_draw(feed).labels)
            drawn -= taken
            return taken

        return _rate("speed of both, s", work, seconds)


def _encode(engine: Engine, raw: RawBatch, encoder: Callable[[Method], Encode], seconds: float) -> float:
    images, _ = to_device(raw, engine.device, engine.normalize).views[0].flat()
    encode = encoder(engine.method)

    def work() -> int:
        encode(images).sum().item()
        return len(images)

    with torch.no_grad(), evaluating(engine.method):
        work()
        return _rate("speed of evaluation, s", work, seconds)


def _rate(what: str, work: Callable[[], int], seconds: float) -> float:
    """Images per second of `work`, which returns their number, repeated for `seconds`, at least once."""
    started, done = time.perf_counter(), 0
    shown = task(what, round(seconds))
    while True:
        done += work()
        elapsed = time.perf_counter() - started
        shown.advance(min(round(elapsed), shown.total) - shown.done)
        if elapsed >= seconds:
            shown.close()
            return done / elapsed


def _peak(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
