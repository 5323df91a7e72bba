"""The plan of a run, in a dozen lines, before it costs anything."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.batch.sampler import per_process, steps_per_epoch, total_steps
from unlabeled.data.mask import Place
from unlabeled.data.view.views import View, shape_of
from unlabeled.errors import UserError
from unlabeled.launch.activations import activations
from unlabeled.nn.modes import without_values
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.method import Method, Progress
from unlabeled.report import terminal
from unlabeled.report.document import Document, Table
from unlabeled.train.job import Job
from unlabeled.train.optim import param_groups
from unlabeled.train.recipe import Recipe

HALF_PRECISION_SHARE = 0.6
DRAWS = 64  # masks, to estimate how many patches they hide
Line = tuple[str, str]


def plan(job: Job, own: Iterable[Line], processes: int, device: str) -> Iterator[Line]:
    """Lines (topic, text), first the stage's own. Raises UserError when batch, processes and method do not fit."""
    recipe, dataset = job.recipe, job.dataset
    epochs, batch, accumulate = recipe.train.epochs, recipe.train.batch_size, recipe.run.micro_batches
    micro, per_epoch = per_process(batch, processes, accumulate), steps_per_epoch(len(dataset.source), batch)
    method = on_meta(job.build)
    check_accumulation(method, batch, accumulate)
    yield from own
    yield from (("view", describe_view(view, dataset.patch)) for view in dataset.views)
    # parts without parameters, such as losses, get no line
    for name, part in method.named_children():
        if any(True for _ in part.parameters()):
            trained = (p for p in part.parameters() if p.requires_grad)
            yield name, f"{millions(part.parameters())} parameters, {millions(trained)} of them trained"
    word = "process" if processes == 1 else "processes"
    yield "steps", f"{total_steps(epochs, per_epoch):,} = {epochs:g} epochs of {per_epoch:,} steps"
    if (order := dataset.base.describe(dataset.source.shards)) is not None:
        yield "order", order
    yield "batch", f"{batch} = {micro} per process x {processes} {word} x {accumulate} accumulation"
    yield "lr", _rate(recipe)
    yield "optimizer", _optimizer(recipe, method)
    weights, kept = memory(method, job, micro)
    parts = f"{gigabytes(weights)} weights and optimizer, {gigabytes(kept)} activations{_twice(recipe)}"
    yield "memory", f"about {gigabytes(weights + kept)} per process: {parts}"
    yield "device", _device(recipe, device)
    page = " (its page is index.html)" if recipe.run.page else ""
    yield "output", f"{recipe.output}{page}, a checkpoint every {recipe.run.checkpoint_every:,} steps"


def check_accumulation(method: Method, batch_size: int, micro_batches: int) -> None:
    """Raise UserError when the loss of an image depends on others of its batch, and accumulation would split that."""
    if not (found := method.batch_statistics()):
        return
    reason = f"the pictures of a step depend on each other in this method ({', '.join(found)})"
    if batch_size < 2:
        raise UserError(f"{reason}, found train.batch_size={batch_size}. Raise it: at least 2 run, hundreds learn.")
    if micro_batches > 1:
        raise UserError(
            f"{reason}, so run.accumulate={micro_batches} would change its loss. Set run.accumulate=1; to save memory "
            "run.checkpoint_activations=blocks changes nothing, or use more processes, or lower train.batch_size."
        )


def _twice(recipe: Recipe) -> str:
    """Which blocks are computed twice, in words for the plan."""
    every = recipe.run.checkpoint_activations
    return "" if every is None else f", every {'' if every == 'blocks' else f'{every}. '}block computed twice"


def _rate(recipe: Recipe) -> str:
    optim, batch = recipe.optim, recipe.train.batch_size
    ratio = f"{batch}/{optim.reference_batch}"
    scaled = {"linear": f" x {ratio}", "sqrt": f" x sqrt({ratio})", "none": ""}[optim.lr_rule]
    end = f" to {optim.ends(optim.peak(batch))[1]:g}" if optim.schedule.falls and optim.stretch == 1 else ""
    return (
        f"peak {optim.peak(batch):.3g} = {optim.base_lr:g}{scaled}, "
        f"warm-up {optim.warmup_epochs:g} epochs{_of_the_run(recipe)}, {optim.schedule.name}{end}"
    )


def _of_the_run(recipe: Recipe) -> str:
    """A caution about a warm-up that takes most of a run, as one that was shortened has."""
    share = recipe.optim.warmup_epochs / recipe.train.epochs
    return f" ({100 * share:.0f} % of the run: lower optim.warmup_epochs to learn more)" if share > 0.5 else ""


def _optimizer(recipe: Recipe, method: Method) -> str:
    optim = recipe.optim
    scales = sorted({group["lr_scale"] for group in param_groups(method, optim.weight_decay)})
    scaled = "" if scales == [1.0] else f", rates x {scales[0]:.3g} to {scales[-1]:.3g}"
    steady = dict.fromkeys(name.partition(".")[0] for name, _ in method.named_parameters() if method.keeps_rate(name))
    scaled += f", {' and '.join(steady)} at the peak to the end" if steady else ""
    end = "" if optim.weight_decay_end is None else f" to {optim.weight_decay_end:g}"
    clip = "none" if optim.clip is None else f"{optim.clip:g} ({optim.clip_by})"
    return f"{optim.name}, weight decay {optim.weight_decay:g}{end}, clip {clip}{scaled}"


def _device(recipe: Recipe, device: str) -> str:
    precision: str = recipe.train.precision
    if precision == "no":
        precision = "float32"
        if recipe.train.tf32:
            precision += ", products in TF32"
        elif device.startswith("cuda"):
            precision += " without TF32 (train.tf32=true is several times faster, and rounds)"
    if recipe.train.gradient_exchange != "float32":
        precision += f", gradients averaged in {recipe.train.gradient_exchange}"
    threads = f", {recipe.run.threads or torch.get_num_threads()} threads" if device.startswith("cpu") else ""
    cut = ", crops cut on the device" if recipe.run.views == "device" else ""
    return f"{device}{threads}, precision {precision}, loader workers per process: {recipe.run.workers}{cut}"


def memory(method: Method, job: Job, micro: int) -> tuple[float, float]:
    """Bytes of (weights, gradients and optimizer state, activations kept for backward) of one process.

    `method` is on the meta device, as `job.build` makes it: its activations are counted by a forward pass there, and
    `run.checkpoint_activations` by what is left of them.
    """
    recipe, dataset = job.recipe, job.dataset
    trained = sum(p.numel() for p in method.parameters() if p.requires_grad)
    weights = 4 * (sum(p.numel() for p in method.parameters()) + trained * (1 + recipe.optim.copies))
    batch = empty_batch(dataset.views, dataset.patch, micro, recipe.data.channels)
    moments = activations(lambda: method(batch, Progress(0, 1, 0.0, 1.0)), method, job.twice(method))
    share = 1 if recipe.train.precision == "no" else HALF_PRECISION_SHARE
    return weights, max(share * (kept.outside + kept.block) + kept.inputs for kept in moments)


def describe_view(view: View, patch: int) -> str:
    """Describe a view in a line."""
    shapes = dict.fromkeys([view.shape, *(shape_of(size) for _, size in view.sizes)])
    sides = " or ".join(f"{height}x{width}" for height, width in shapes)
    crops = "1 crop" if view.count == 1 else f"{view.count} crops"
    text = f"{crops} of {sides}, {view.extent()}, {view.interpolation}, flip {view.flip:g}"
    augment = "" if view.rand_augment is None else f", RandAugment {view.rand_augment}"
    jitter = "" if view.jitter is None else f", jitter {'/'.join(f'{x:g}' for x in view.jitter)} p {view.jitter_p:g}"
    rest = {"grey": view.grayscale, "blur": view.blur, "solarise": view.solarize}
    fused = ", fused" if view.fused and view.recolours else ""
    erased = f", erase {view.erase:g}" if view.erase else ""
    hidden = "" if view.mask is None else f"; {view.mask.describe(view.shape, patch)}"
    chances = "".join(f", {name} {p:g}" for name, p in rest.items() if p)
    return text + augment + jitter + chances + fused + erased + hidden


def millions(parameters: Iterable[Tensor]) -> str:
    """The number of values, in millions from 0.1 M on."""
    count = sum(p.numel() for p in parameters)
    return f"{count / 1e6:.1f} M" if count >= 1e5 or not count else f"{count:,}"


def number(count: int, what: str) -> str:
    """A count with its noun in the singular or the plural."""
    return f"{count:,} {what}" if count == 1 else f"{count:,} {what}s"


def gigabytes(count: float) -> str:
    """Bytes in GB, or in MB below one."""
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def format_plan(title: str, lines: Iterable[Line]) -> str:
    """Aligned lines below a title."""
    return terminal.write(Document(title, [Table.facts(lines)])).rstrip("\n")


def on_meta(build: Callable[[], Method]) -> Method:
    """Build a method on the meta device. Raises UserError when it cannot be built."""
    with without_values(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # loading weights does nothing there, as intended
        try:
            method: nn.Module = build()
        except UserError:
            raise
        except ValueError as error:  # timm has networks that only its own code can run
            raise UserError(f"this network cannot be built: {error}. Change method.encoder.") from error
    return method  # type: ignore[return-value]


def empty_batch(views: Sequence[View], patch: int, micro: int, channels: int) -> Batch:
    """A micro-batch on the meta device."""
    made = []
    for view in views:
        pixels = torch.empty(view.count, micro, channels, *view.shape, device="meta")
        made.append(ViewBatch(pixels, *_empty_mask(view, patch, micro)))
    numbers = torch.empty(micro, dtype=torch.int64, device="meta")
    return Batch(made, numbers, numbers)


def _empty_mask(view: View, patch: int, micro: int) -> tuple[PatchMask | None, int | None]:
    """A mask on the meta device, and the expected number of masked patches."""
    if view.mask is None:
        return None, None
    grid = (view.shape[0] // patch, view.shape[1] // patch)
    rng, lead = np.random.default_rng(0), (view.count, micro)
    masks = [view.mask.draw(rng, grid, patch, Place(row=row, batch=DRAWS)) for row in range(DRAWS)]
    share = sum(int(mask.hidden.sum()) for mask in masks) / DRAWS
    mask = masks[0].map(lambda tensor: tensor.to("meta").expand(*lead, *tensor.shape))
    return mask, math.ceil(share * view.count * micro)
