"""Forecast of how long a run takes on this machine, from counted work and a measured speed.

The work of a step is counted on the meta device. The speed is measured within seconds on one block of the network (the
whole of it, if it has none) and on a few images. The forecast is right within a factor of about two; `python -m
unlabeled doctor` takes real steps instead.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import Position, per_process, steps_per_epoch, total_steps
from unlabeled.data.batch.samples import Sample, collate
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch.activations import AskedOnce
from unlabeled.launch.plan import empty_batch
from unlabeled.pretrain.method import Method, Progress
from unlabeled.processes import cores
from unlabeled.progress import duration
from unlabeled.train.job import Job

SECONDS = 0.3  # of each measurement
MOST_PICTURES = 32  # images that the work is counted on; it is in proportion to them, but for comparisons of images
# floating point operations of a measurement: long enough that launching them does not count
MOMENT, MOMENT_OF_A_GPU = {"cpu": 2e9}, 5e11
MOST_REPEATS = 64
DISTANCE = 7919  # step between the images that are loaded: neighbours are alike
CALL = 1e-5  # seconds to launch an operation
AUTOCAST = {"bf16": torch.bfloat16, "fp16": torch.float16}


class Work(NamedTuple):
    """The work of a forward and a backward pass."""

    flops: float  # floating point operations per image
    calls: int  # operations launched per micro-batch


class Forecast(NamedTuple):
    """The expected speed, in images per second, and duration."""

    model: float  # of all processes, if they never wait for the loader
    loader: float  # of their workers, if nothing else runs
    together: float  # of a run
    seconds: float  # of all steps, without evaluation


def count_work(method: Method, views: Sequence[View], patch: int, micro: int, channels: int, unit: int = 1) -> Work:
    """Count the work of a method on the meta device, see `unlabeled.launch.plan.on_meta`, on micro-batches of `micro`
    images with patches of `patch` pixels, which come in multiples of `unit`."""
    few = max(unit, min(micro, MOST_PICTURES) // unit * unit)
    with AskedOnce(), _Counter() as counter:
        output = method(empty_batch(views, patch, few, channels), Progress(0, 1, 0.0, 1.0))
        output.loss.backward()
    method.zero_grad()
    return Work(counter.flops / few, counter.calls)


class _Counter(TorchDispatchMode):
    """Counts operations and their floating point operations."""

    def __init__(self) -> None:
        super().__init__()
        self.flops, self.calls = 0.0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        self.calls += 1
        if (formula := flop_registry.get(func._overloadpacket)) is not None:
            self.flops += formula(*args, **kwargs, out_val=out)
        return out


def forecast(job: Job, method: Method, processes: int, device: torch.device) -> Forecast:
    """Forecast the speed and the duration of a run on this machine, from its method on the meta device.

    Raises:
        UserError: no image can be read, or the method has no network that can be measured.
        RuntimeError: the device is out of memory, or lacks an operation.
    """
    recipe, dataset = job.recipe, job.dataset
    train, workers = recipe.train, recipe.run.workers
    micro = per_process(train.batch_size, processes, recipe.run.micro_batches)
    work = count_work(method, dataset.views, dataset.patch, micro, recipe.data.channels, dataset.unit)
    threads = min(cores(), recipe.run.threads or torch.get_num_threads()) if device.type == "cpu" else 1
    with _threads(threads):
        flops = measured_flops(method, dataset, device, train.precision)
        making, finishing = _seconds_per_picture(job, device)
    learning = per_picture(work, micro, flops, device) + finishing
    model, loader = processes / learning, processes * max(1, workers) / making
    together = min(model, loader) if workers else processes / (learning + making)
    if device.type == "cpu":  # workers and network share the cores
        together = min(together, cores() / (making + threads * learning))
    steps = total_steps(train.epochs, steps_per_epoch(len(dataset.source), train.batch_size))
    return Forecast(model, loader, together, steps * train.batch_size / together)


def in_words(found: Forecast) -> str:
    """Describe a forecast for the plan."""
    bound = "loader" if found.loader < found.model else "model"
    pace = f"{found.together:,.0f}" if found.together >= 100 else f"{found.together:.3g}"
    return (
        f"about {duration(found.seconds)} without evaluation: {pace} images/s, bound by the {bound}. An "
        "estimate from seconds of measuring here, half or twice as long is possible; `doctor` takes real steps"
    )


def per_picture(work: Work, micro: int, flops: float, device: torch.device) -> float:
    """Seconds per image on a device of `flops` floating point operations per second."""
    arithmetic, calls = work.flops / flops, CALL * work.calls / micro
    # a GPU computes while the next operations are launched
    return arithmetic + calls if device.type == "cpu" else max(arithmetic, calls)


def measured_flops(method: Method, dataset: ViewDataset, device: torch.device, precision: str) -> float:
    """Measure floating point operations per second in forward and backward passes of a part of the network."""
    part, shape = _part(method, dataset)
    part = copy.deepcopy(part).eval().requires_grad_(True).to_empty(device=device)
    with torch.no_grad():
        for tensor in (*part.parameters(), *part.buffers()):
            tensor.fill_(0.01 if tensor.is_floating_point() else 0)
    dtype = AUTOCAST.get(precision)

    def work(pictures: int) -> None:
        with torch.autocast(device.type, dtype or torch.bfloat16, enabled=dtype is not None):
            part(torch.full((pictures, *shape), 0.5, device=device)).float().sum().backward()
        if device.type != "cpu":
            torch.accelerator.synchronize()

    with _Counter() as counter:
        work(1)
    pictures = max(1, int(MOMENT.get(device.type, MOMENT_OF_A_GPU) / counter.flops))
    work(pictures)
    return pictures * counter.flops / _seconds(lambda: work(pictures))


def _part(method: Method, dataset: ViewDataset) -> tuple[nn.Module, tuple[int, ...]]:
    """The part of the network to measure and the shape of its input: a block and its tokens, or a network of maps."""
    height, width = dataset.views[0].shape
    network: Any = next((part for part in method.modules() if hasattr(part, "forward_features")), None)
    if network is None:
        raise UserError("the method has no network of timm's to measure. Look at its first steps instead")
    if hasattr(network, "patch_embed") and hasattr(network, "blocks"):
        return network.blocks[0], (height // dataset.patch * (width // dataset.patch), network.embed_dim)
    return network, (next(p for p in network.parameters() if p.ndim == 4).shape[1], height, width)


def _seconds_per_picture(job: Job, device: torch.device) -> tuple[float, float]:
    """Seconds to load an image in one process, and to finish it on the device (0 on a GPU)."""
    recipe, dataset = job.recipe, job.dataset
    batch, count = recipe.train.batch_size, len(dataset.source)
    samples: list[Sample] = []

    def make() -> None:
        row = len(samples)
        samples.append(dataset[Position(0, (row * DISTANCE) % count, 0, row % batch, batch, 0)])

    make()
    making = _seconds(make)
    if device.type != "cpu":
        return making, 0.0
    raw, normalize = collate(samples), Normalize(recipe.data.mean, recipe.data.std, device)
    return making, _seconds(lambda: to_device(raw, device, normalize)) / len(samples)


def _seconds(work: Callable[[], object]) -> float:
    """The median duration of `work`."""
    taken: list[float] = []
    while sum(taken) < SECONDS and len(taken) < MOST_REPEATS:
        started = time.perf_counter()
        work()
        taken.append(time.perf_counter() - started)
    return statistics.median(taken)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
