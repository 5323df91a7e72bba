"""Everything that processes tell each other, beside gradients. One process pays nothing for it."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from unlabeled.errors import Interrupted, Stopped, UserError
from unlabeled.launch import environment
from unlabeled.train.signals import stop

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch.distributed.tensor import DTensor

T = TypeVar("T")


def make_accelerator(
    device: str, precision: str, timeout: float, trackers: list[str], folder: str, *, planning: bool = False
) -> Accelerator:
    """Accelerate on the recipe's device: `auto` takes an accelerator if there is one, else the CPU.

    What the environment says of precision, accumulation or compilation is dropped, see `unlabeled.launch.environment`.

    Args:
        device, precision, timeout, trackers: of the recipe.
        folder: the run's.
        planning: nothing will be trained, so this machine need not be able to.

    Raises:
        UserError: the device is not there, or cannot do the precision; the environment asks for what there is not.
    """
    from accelerate import Accelerator
    from accelerate.utils import (
        DistributedDataParallelKwargs,
        DistributedType,
        InitProcessGroupKwargs,
        ProjectConfiguration,
    )

    if not planning and (reason := cannot_run(device, precision)):
        raise UserError(reason)
    cpu = _takes_cpu(device)
    environment.drop()
    try:
        accelerator = Accelerator(
            cpu=cpu,
            mixed_precision="no" if planning else precision,
            log_with=trackers or None,
            project_config=ProjectConfiguration(folder, logging_dir=f"{folder}/logs"),
            kwargs_handlers=[
                # another process may itself be waiting for a worker for so long
                InitProcessGroupKwargs(timeout=timedelta(seconds=2 * timeout)),
                DistributedDataParallelKwargs(gradient_as_bucket_view=True),
            ],
        )
    except (ValueError, ImportError, NotImplementedError) as error:  # of its environment, or the device
        raise UserError(f"Accelerate cannot start: {error}") from error
    stop.several = accelerator.num_processes > 1
    if accelerator.distributed_type == DistributedType.FSDP and not accelerator.is_fsdp2:
        raise UserError("FSDP version 1 loses the names of parameters. Launch with --fsdp_version 2.")
    return accelerator


def cannot_run(device: str, precision: str) -> str | None:
    """Why this machine cannot run a recipe, and what would mend it; None = it can."""
    if device not in ("auto", "cpu") and not torch.accelerator.is_available():
        return f"run.device is {device}, but this machine has no accelerator. Set run.device=cpu or auto."
    if device not in ("auto", "cpu") and environment.wants_cpu():
        return f"run.device is {device}, but {environment.ON_CPU} asks for a CPU. Unset it, or set run.device=auto."
    if precision == "fp16" and _takes_cpu(device):
        return "train.precision fp16 needs an accelerator. Set train.precision=bf16 or no to run on a CPU."
    return None


def _takes_cpu(device: str) -> bool:
    return device == "cpu" or environment.wants_cpu() or not torch.accelerator.is_available()


def total(accelerator: Accelerator, values: Tensor) -> Tensor:
    """Sum a small tensor over all processes, so that all of them read the same."""
    return accelerator.reduce(values, "sum") if accelerator.num_processes > 1 else values


def gather_objects(value: Any) -> list[Any]:
    """The value of every process, in order of rank."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def raise_together(error: BaseException | None) -> None:
    """Raise on every process what any of them caught, so that none waits for the others.

    Raises:
        Stopped: a signal asks one of them to end, and the work in hand may be left.
        UserError: the first process's error, by rank; Interrupted where it is one.
    """
    mine = None if error is None else (str(error), isinstance(error, Interrupted))
    found = gather_objects((mine, stop.received if stop.asks else None))
    for received in filter(None, (asked for _, asked in found)):
        raise Stopped(f"stopped by {received}{stop.where}")
    for rank, (caught, _) in enumerate(found):
        if caught is not None:
            if error is not None and caught == mine:
                raise error
            text, interrupted = caught
            raise (Interrupted if interrupted else UserError)(f"process {rank}: {text}")


def on_main(accelerator: Accelerator, action: Callable[[], T], *, whole: bool = True) -> T | None:
    """Run something on the main process only; its error is every process's. None on the others.

    Args:
        accelerator: says which process this is.
        action: what to run.
        whole: a signal waits until it is done, as for what is written.
    """
    result: T | None = None
    error: BaseException | None = None
    if accelerator.is_main_process:
        try:
            with stop.later() if whole else stop.alone():
                result = action()
        except (UserError, OSError, Stopped) as caught:
            error = caught
    raise_together(error)
    return result


def is_sharded(model: nn.Module) -> bool:
    """Whether a model's weights are spread over processes."""
    return any(map(_is_shard, model.state_dict().values()))


def full(tensor: Tensor) -> Tensor:
    """A sharded tensor made whole (all processes must ask), any other as it is."""
    return cast("DTensor", tensor).full_tensor() if _is_shard(tensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor sharded as `like` is."""
    tensor = tensor.to(like.device)
    if not _is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shard = cast("DTensor", like)
    return distribute_tensor(tensor, shard.device_mesh, shard.placements)


def _is_shard(tensor: Tensor) -> bool:
    # torch.distributed.tensor takes half a second to import, and only processes that shard have it in use
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)
