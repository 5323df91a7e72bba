"""The device, precision and processes of a run, by Accelerate; threads and memory on a CPU."""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer

from unlabeled import environment
from unlabeled.errors import UserError
from unlabeled.processes import WAY
from unlabeled.signals import stop

if TYPE_CHECKING:
    from accelerate import Accelerator
    from accelerate.optimizer import AcceleratedOptimizer


def make_accelerator(device: str, precision: str, timeout: float, *, planning: bool = False) -> Accelerator:
    """Make the Accelerator for a device: `auto` takes an accelerator if there is one, else the CPU.

    Precision, accumulation and compilation in the environment are dropped, see `unlabeled.environment`. With
    `planning` nothing will be trained, and this machine need not be able to.

    Raises:
        UserError: the device is missing, or lacks the precision; the environment asks for an unsupported way to train.
    """
    from accelerate import Accelerator, DistributedDataParallelKwargs, DistributedType, InitProcessGroupKwargs

    if not planning and (reason := cannot_run(device, precision)):
        raise UserError(reason)
    cpu = _takes_cpu(device)
    environment.drop()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no" if planning else precision,
            kwargs_handlers=[
                # another process may be waiting for a worker for `timeout` itself
                InitProcessGroupKwargs(init_method=f"{WAY}://", timeout=timedelta(seconds=2 * timeout)),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
    except (ValueError, ImportError, NotImplementedError) as error:  # by the environment, or the device
        raise UserError(
            f"Accelerate cannot start: {error}. Unset what is wrong, or run `accelerate config` again."
        ) from error
    stop.several = accelerator.num_processes > 1
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("FSDP version 1 loses the names of parameters. Launch with --fsdp_version 2.")
    return accelerator


def spread(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, exchange: str, buffers_differ: bool
) -> tuple[nn.Module, AcceleratedOptimizer]:
    """Prepare a model and its optimizer for the processes of a run: replicas by DistributedDataParallel, or shards by
    FSDP version 2 where the launcher asks for it. Both give the same numbers, rounding aside.

    Nothing is set for DistributedDataParallel's `static_graph`: where every parameter is used in every step it saves
    nothing, and where some are not (blocks left out by drop path, a branch that a batch has no use for) it fails.

    Args:
        accelerator, model, optimizer: of the run.
        exchange: float32 or bf16, the type in which processes average gradients.
        buffers_differ: whether those of the first process are sent to all before every step.
    """
    from accelerate.utils import DDPCommunicationHookType
    from torch.nn.parallel import DistributedDataParallel

    if accelerator.is_fsdp2:
        _shard(accelerator, model, exchange)
    elif exchange == "bf16":
        accelerator.ddp_handler.comm_hook = DDPCommunicationHookType.BF16
    spread_model, prepared = accelerator.prepare(model, optimizer)
    if isinstance(spread_model, DistributedDataParallel):
        spread_model.broadcast_buffers = buffers_differ
    return spread_model, prepared


def _shard(accelerator: Accelerator, model: nn.Module, exchange: str) -> None:
    """Compute in mixed precision as without shards: weights are gathered in float32, and autocast alone decides what is
    computed with fewer bits. Accelerate's own policy casts images, weights, losses and gradients."""
    from accelerate.utils.operations import convert_outputs_to_fp32
    from torch.distributed.fsdp import MixedPrecisionPolicy

    reduced = torch.bfloat16 if exchange == "bf16" else torch.float32
    policy = MixedPrecisionPolicy(reduce_dtype=reduced, cast_forward_inputs=False)
    accelerator.state.fsdp_plugin.mixed_precision_policy = policy
    forward = model.forward

    def autocast(*batch: Any) -> Any:
        with accelerator.autocast():
            return forward(*batch)

    model.forward = convert_outputs_to_fp32(autocast)


@contextmanager
def apart() -> Iterator[None]:
    """Let Accelerators be made within as in a new process, and put back after it what they and the engine change for
    the whole process: Accelerate's state, torch's number of threads and how it multiplies float32 matrices."""
    from accelerate.state import AcceleratorState, GradientState, PartialState

    states = [kind._shared_state for kind in (PartialState, AcceleratorState, GradientState)]
    before = [dict(one) for one in states]
    threads, products = torch.get_num_threads(), torch.get_float32_matmul_precision()
    for one in states:
        one.clear()
    try:
        yield
    finally:
        torch.set_num_threads(threads)
        torch.set_float32_matmul_precision(products)
        for one, values in zip(states, before, strict=True):
            one.clear()
            one.update(values)


def cannot_run(device: str, precision: str) -> str | None:
    """The reason why this machine cannot run a recipe, with the fix; None = it can."""
    if device not in ("auto", "cpu") and not torch.accelerator.is_available():
        return f"run.device is {device}, but this machine has no accelerator. Set run.device=cpu or auto."
    if device not in ("auto", "cpu") and environment.wants_cpu():
        return f"run.device is {device}, but {environment.ON_CPU} asks for a CPU. Unset it, or set run.device=auto."
    if precision == "fp16" and _takes_cpu(device):
        return "train.precision fp16 needs an accelerator. Set train.precision=bf16 or no to run on a CPU."
    return None


def _takes_cpu(device: str) -> bool:
    return device == "cpu" or environment.wants_cpu() or not torch.accelerator.is_available()


def settle(threads: int | None) -> None:
    """Keep freed memory on a CPU, and set torch's number of threads; None = its own choice."""
    keep_freed_memory()
    if threads is not None:
        torch.set_num_threads(threads)


def multiply(device: torch.device, tf32: bool) -> None:
    """Let a GPU multiply float32 matrices as TensorFloat-32, or exactly. Nothing is set for a CPU."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if tf32 else "highest")


def precision_for(device: str) -> str:
    """The precision of inference on a device: bf16 on a GPU that computes in bfloat16, no (float32) elsewhere."""
    here = not _takes_cpu(device) and torch.cuda.is_available() and torch.cuda.is_bf16_supported()
    return "bf16" if here else "no"


def keep_freed_memory() -> bool:
    """Keep freed memory in the process instead of returning it to the kernel; returns whether the C library can.

    On a CPU every training step frees and allocates all activations. glibc returns large buffers to the kernel, which
    clears each page before its next use: 3 to 6 % of a step. The process keeps its peak memory until it ends. Does
    nothing without glibc (macOS, Windows, musl).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is None:
        return False
    trim_threshold, mmap_max = -1, -4  # the numbers of glibc's malloc.h
    # no buffer outside the heap, and a heap that never shrinks
    return bool(mallopt(mmap_max, 0)) and bool(mallopt(trim_threshold, -1))
