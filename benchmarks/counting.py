"""Count what a step of the engine asks of a GPU, without one: on fake tensors, which have shapes and no values.

Counted are launches of kernels (operators that are no views; lists of tensors by the chunks that CUDA's kernels take),
bytes read and written, floating-point operations, the most memory held, and every wait of the host for the device. The
fake tensors are a CPU's, as a backward pass on a GPU's asks for a driver: what the code does on a GPU only is put in by
hand, see `as_on_a_gpu`.
"""

from __future__ import annotations

import collections
import math
import sys
import tempfile
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.overrides import TorchFunctionMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils import _foreach_utils, flop_counter
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from unlabeled.accelerator import apart, make_accelerator
from unlabeled.data.batch import loader
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import RawBatch, collate
from unlabeled.data.opened import Opened
from unlabeled.data.view.photometric import Photometric
from unlabeled.launch.plan import on_meta
from unlabeled.train import engine as engines
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job

DRAWN = 8  # samples that a batch repeats

# of PyTorch's MultiTensorApply.cuh: values of a chunk, chunks of a launch, and its tensors by the number of lists
CHUNK, CHUNKS, TENSORS = 65536, 320, (110, 64, 48, 36, 30)

# an H200: FLOP/s of products in 16 and in 32 bits, as libraries reach them, and of attention; bytes/s; the shortest
# kernel, s
HALF, SINGLE, ATTENTION, MEMORY, SHORTEST = 790e12 * 0.85, 67e12 * 0.85, 790e12 * 0.5, 4.3e12, 2e-6

# no kernels, beside views
FREE = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "_unsafe_view", "lift_fresh"}
OVERWRITTEN = {"copy_", "fill_", "zero_", "_foreach_copy_", "_foreach_zero_"}  # do not read what they write
PICKING = {"index", "index_select", "gather", "embedding"}  # read no more than they return
# wait for the device, with what is read here: zeros. Beside them `lift_fresh`, a constant that the host copies there
READ: dict[str, Callable[[Tensor], Any]] = {
    "_local_scalar_dense": lambda x: 0.0 if x.is_floating_point() else 0,
    "nonzero": lambda x: torch.empty(0, x.ndim, dtype=torch.int64),
    "masked_select": lambda x: torch.empty(0, dtype=x.dtype),
    "equal": lambda x: False,
}


@dataclass
class Count:
    """What a step asks of the device.

    Attributes:
        operators: of any kind, views included.
        launches: of kernels.
        flop: of products and attention.
        bytes: read and written.
        seconds: of the device: of each kernel the longest of its arithmetic, its bytes and a launch.
        multiplying: seconds of products and attention alone.
        peak: the most bytes held, weights and optimizer included.
        copied: bytes from the host.
        collectives: exchanges between processes.
        views: seconds of making views on the device.
        waits: where the host waits for the device, `file.py:function`.
        kernels: launches by operator.
    """

    operators: int = 0
    launches: int = 0
    flop: float = 0.0
    bytes: int = 0
    seconds: float = 0.0
    multiplying: float = 0.0
    peak: int = 0
    copied: int = 0
    collectives: int = 0
    views: float = 0.0
    waits: list[str] = field(default_factory=list)
    kernels: collections.Counter[str] = field(default_factory=collections.Counter)


class Counting(TorchDispatchMode):
    """Within, operators on fake tensors are counted; those on real ones are the host's own, and done.

    A value that the host reads is zero.
    """

    def __init__(self) -> None:
        super().__init__()
        self.count, self.held = Count(), 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        self._reading: tuple[int, int] | None = None

    def begin(self) -> None:
        """Count from zero; what is held stays."""
        self.count = Count(peak=self.held)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, name = kwargs or {}, func._schema.name.split("::")[1]
        if func.namespace == "prim":
            return func(*args, **kwargs)
        given = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if given and name != "lift_fresh" and not any(isinstance(one, FakeTensor) for one in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        if name in READ or name == "lift_fresh":
            self._wait()
        if name in READ:
            return READ[name](args[0])
        out = func(*args, **kwargs)
        self._note(func, name, args, kwargs, given, out)
        return out

    def _note(self, func: Any, name: str, args: Any, kwargs: Any, given: list[Tensor], out: Any) -> None:
        count, made = self.count, [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        count.operators += 1
        for one in made:
            self.hold(one)
        if func.namespace == "c10d":
            count.collectives += 1
            return
        if name in FREE or func.is_view:
            return
        launches = launches_of(func, args, kwargs, made)
        moved = bytes_of(name, given, made)
        flop = flop_of(func, args, kwargs, out)
        attends = "scaled_dot_product" in name
        rate = ATTENTION if attends else SINGLE if given and given[0].dtype == torch.float32 else HALF
        seconds = max(flop / rate, moved / MEMORY, launches * SHORTEST)
        count.launches += launches
        count.kernels[name] += launches
        count.flop += flop
        count.bytes += moved
        count.seconds += seconds
        count.multiplying += seconds if flop else 0.0

    def hold(self, tensor: Tensor) -> None:
        """Count memory until it is freed."""
        storage = tensor.untyped_storage()
        if storage not in self._known:
            self._known.add(storage)
            self.held += (size := storage.nbytes())
            self.count.peak = max(self.count.peak, self.held)
            weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.held -= size

    def _wait(self) -> None:
        frame = sys._getframe(2)
        while frame.f_back is not None and ("site-packages" in (file := frame.f_code.co_filename) or file == __file__):
            frame = frame.f_back
        place = id(frame), frame.f_lasti
        if place != self._reading:  # several values of a list are read at once
            self.count.waits.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_code.co_name}")
        self._reading = place


class Copies(TorchFunctionMode):
    """Within, real tensors that are moved to a device become fake ones."""

    def __init__(self, counting: Counting) -> None:
        super().__init__()
        self.counting = counting

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        to_device = func is Tensor.to and any(isinstance(one, torch.device) for one in (*args[1:], *kwargs.values()))
        if not to_device or isinstance(args[0], FakeTensor):
            return func(*args, **kwargs)
        self.counting.count.copied += args[0].numel() * args[0].itemsize
        return torch.empty_strided(args[0].shape, args[0].stride(), dtype=args[0].dtype)


# ---------------------------------------------------------------- one operator


def launches_of(func: Any, args: Sequence[Any], kwargs: Any, made: list[Tensor]) -> int:
    """Kernels of an operator: one, or for lists of tensors as many as their chunks take."""
    lists = [one for one in args if isinstance(one, list | tuple) and one and isinstance(one[0], Tensor)]
    if not func._schema.name.startswith(("aten::_foreach", "aten::_fused", "aten::_amp_foreach")) or not lists:
        return 1
    fused = "_fused_" in func._schema.name
    returns = bool(func._schema.returns) and not func._schema.is_mutable
    depth = min(len(TENSORS), len(lists) - fused + returns)  # a fused optimizer's counters come along
    return chunked([one.numel() for one in lists[0]], TENSORS[depth - 1])


def chunked(sizes: Sequence[int], most: int) -> int:
    """Launches for tensors of these sizes, `most` of them in one."""
    launches = tensors = chunks = 0
    for size in sizes:
        tensors += 1
        for left in reversed(range(math.ceil(size / CHUNK))):
            chunks += 1
            if chunks == CHUNKS or (tensors == most and not left):
                launches, chunks, tensors = launches + 1, 0, int(left > 0)
    return launches + (chunks > 0)


def bytes_of(name: str, given: list[Tensor], made: list[Tensor]) -> int:
    """Bytes that an operator reads and writes."""
    written = sum(map(extent, made))
    if name in PICKING:
        return 2 * written + sum(map(extent, given[1:]))
    if name in OVERWRITTEN:
        given = given[len(given) // 2 :]
    return written + sum(map(extent, given))


def extent(tensor: Tensor) -> int:
    """Bytes behind a tensor: an expanded one has fewer than values."""
    return min(tensor.numel() * tensor.itemsize, tensor.untyped_storage().nbytes())


def flop_of(func: Any, args: Any, kwargs: Any, out: Any) -> float:
    """Floating-point operations of products and attention, 0 of all else."""
    name = func._schema.name
    if "scaled_dot_product" in name:
        shapes = [one.shape for one in args if isinstance(one, Tensor)]
        if "backward" in name:
            return float(flop_counter.sdpa_backward_flop_count(*shapes[:4]))
        return float(flop_counter.sdpa_flop_count(*shapes[:3]))
    formula = flop_counter.flop_registry.get(func._overloadpacket)
    return float(formula(*args, **kwargs, out_val=out)) if formula else 0.0


# ---------------------------------------------------------------- one step


def count_step(
    recipe: Any,
    pictures: int,
    processes: int = 1,
    warm: bool = True,
    within: Callable[[Counting], AbstractContextManager[object]] = nullcontext,
) -> Count:
    """Count the second step of a recipe, on so many pictures in one of so many processes; the first, in which the
    optimizer makes its moments, where not `warm`. It runs `within` what is given: see `fused.compiled`."""
    data = Opened(recipe.data)
    raw = batch_of(recipe, data, pictures)
    counting, method = Counting(), on_meta(recipe.method.build)
    with ExitStack() as stack:
        stack.enter_context(apart())
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        accelerator = make_accelerator("cpu", recipe.train.precision, 600)
        stack.enter_context(as_several(processes))
        stack.enter_context(as_on_a_gpu(counting))
        stack.enter_context(within(counting))
        stack.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        stack.enter_context(Copies(counting))
        stack.enter_context(counting)
        job = Job(recipe, lambda: without_values_(method), data, dataset_of(recipe, data))
        engine = Engine(job, accelerator, Path(folder))
        engine.model.train()
        if warm:
            engine.rehearse([raw])
        counting.begin()
        engine.rehearse([raw])
    return counting.count


def without_values_(method: Any) -> Any:
    """Take a method from the meta device; weights are fake where tensors are."""
    for part in method.modules():
        for name, one in part._parameters.items():
            if one is not None:
                part._parameters[name] = nn.Parameter(torch.empty(one.shape, dtype=one.dtype), one.requires_grad)
        for name, one in part._buffers.items():
            if one is not None:
                part._buffers[name] = torch.empty(one.shape, dtype=one.dtype)
    method.to = lambda *_: method  # fake weights cannot be moved, and need not be
    return method


@contextmanager
def as_on_a_gpu(counting: Counting) -> Iterator[None]:
    """Within, fake tensors of a CPU are treated as those of a GPU."""
    ready = engines.to_device

    def timed(*given: Any) -> Any:
        before = counting.count.seconds
        batch = ready(*given)
        counting.count.views += counting.count.seconds - before
        return batch

    with (
        mock.patch.object(engines, "to_device", timed),
        mock.patch.object(engines, "at_hand", return_value=False),
        mock.patch.object(loader, "_recoloured", all_at_once),
        mock.patch.object(_foreach_utils, "_get_foreach_kernels_supported_devices", return_value=["cpu"]),
        mock.patch.object(_foreach_utils, "_foreach_supported_types", [Tensor, nn.Parameter, FakeTensor]),
    ):
        yield


def all_at_once(pixels: Tensor, drawn: Photometric, *rest: Any) -> Tensor:
    """Colours as on a GPU."""
    return loader.recoloured_at_once(pixels, drawn.map(lambda tensor: tensor.transpose(0, 1)), *rest)


@contextmanager
def as_several(processes: int) -> Iterator[None]:
    """Within, this is the first of several processes, whose exchanges do nothing."""
    if processes == 1:
        yield
        return
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=processes)
    try:
        yield
    finally:
        dist.destroy_process_group()


def dataset_of(recipe: Any, data: Opened) -> ViewDataset:
    """The training samples of a recipe."""
    return ViewDataset(data.train, recipe.method.views, recipe.method.mask_patch, recipe.seed, recipe.method.mixing)


def batch_of(recipe: Any, data: Opened, pictures: int) -> RawBatch:
    """A batch of so many pictures; a few that are drawn are repeated, and pixels are of no value."""
    dataset, few = dataset_of(recipe, data), min(DRAWN, pictures)
    drawn = collate([dataset[position] for position in next(iter(EpochSampler(few, few, 1, seed=recipe.seed)))])
    rows = torch.arange(pictures) % few

    def repeated(tensor: Tensor) -> Tensor:
        return tensor[rows]

    crops = []
    for crop in drawn.crops:
        colours = None if crop.colours is None else crop.colours.map(repeated)
        crops.append(
            crop._replace(
                pixels=torch.empty(pictures, *crop.pixels.shape[1:], dtype=torch.uint8),
                mask=None if crop.mask is None else crop.mask.map(repeated),
                colours=colours,
                blurred=None if colours is None else colours.blurred(),
            )
        )
    return RawBatch(crops, repeated(drawn.labels), repeated(drawn.index), [])
