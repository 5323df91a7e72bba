"""The state of a run as whole tensors by name, the same for every launcher; and the heads of an export."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from unlabeled.backbone.encoder import Encoder
from unlabeled.errors import UserError
from unlabeled.manifest import Tensors
from unlabeled.nn.lowrank import merge_
from unlabeled.pretrain.method import Method, PretrainMethod
from unlabeled.processes import gather_objects, placed
from unlabeled.train.saving.stored import Place, Region, Stored, everything

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

Whole = Mapping[str, Tensor] | Mapping[str, Stored]
AGAIN = "Start over with --fresh --force, or take the version of this program that wrote it."


def model_tensors(model: nn.Module) -> Tensors:
    """Parameters and buffers by name, sharded as they are."""
    return {name: tensor.detach() for name, tensor in model.state_dict().items()}


def load_model(model: nn.Module, tensors: Whole) -> None:
    """Load whole tensors into a model, sharded or not, one at a time. Call it on all processes.

    Raises UserError where names or shapes differ.
    """
    own = model.state_dict()
    missing, unexpected = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
    if missing or unexpected:
        raise UserError(
            f"the model and the file do not match: missing {missing[:5]}, unexpected {unexpected[:5]}. {AGAIN}"
        )
    for name, tensor in own.items():
        if tensor.shape != tensors[name].shape:
            raise UserError(
                f"the model has {name} of shape {list(tensor.shape)}, the file {list(tensors[name].shape)}. {AGAIN}"
            )
    for name, tensor in own.items():
        fill_(tensor, tensors[name], tensor.device)


class Statistics:
    """Running statistics and centres as before a step, which changes them also where it is skipped.

    They are kept in one piece for each type of number: networks have hundreds of them.
    """

    def __init__(self, model: nn.Module) -> None:
        # changed in place, never replaced; integer buffers are tables of positions, counters of batches aside
        changed = [buffer for buffer in model.buffers() if buffer.is_floating_point() or not buffer.dim()]
        types = dict.fromkeys(buffer.dtype for buffer in changed)
        self._own = [[buffer for buffer in changed if buffer.dtype == one] for one in types]
        self.keep()

    def keep(self) -> None:
        self._kept = [_in_one_piece(own) for own in self._own]

    def restore_(self, broken: Tensor) -> None:
        """Put back what was kept where `broken` [] bool, on the device, is true."""
        for own, kept in zip(self._own, self._kept, strict=True):
            right = torch.where(broken, kept, _in_one_piece(own)).split([buffer.numel() for buffer in own])
            torch._foreach_copy_(own, [part.view_as(buffer) for part, buffer in zip(right, own, strict=True)])


def _in_one_piece(tensors: list[Tensor]) -> Tensor:
    return torch.cat([tensor.flatten() for tensor in tensors])


def whole(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """The model itself, or an unsharded copy from `build` where it is sharded. Call it on all processes."""
    if not any(map(is_shard, model.state_dict().values())):
        return model
    with torch.random.fork_rng():
        twin = build().to(next(model.parameters()).device)
    shards = model.state_dict()
    with torch.no_grad():
        for name, tensor in twin.state_dict().items():
            tensor.copy_(full(shards[name]))
    return twin


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """Optimizer state keyed `parameter name/state name`, sharded as it is."""
    return {
        f"{name}/{key}": value if isinstance(value, Tensor) else torch.tensor(value)
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
    }


def load_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Whole) -> None:
    """Load optimizer state; a parameter that had none (not yet trained) gets none. Call it on all processes."""
    parameters = dict(model.named_parameters())
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    state: dict[Tensor, dict[str, Any]] = {}
    for full_key, value in tensors.items():
        name, _, key = full_key.rpartition("/")
        if name not in parameters:
            raise UserError(f"the checkpoint's optimizer knows '{name}', the model does not. {AGAIN}")
        parameter = parameters[name].detach()
        # moments are sharded like their parameter, counters are not
        if value.shape == parameter.shape:
            own = torch.empty_like(parameter, dtype=value.dtype)
        else:
            own = torch.empty(value.shape, dtype=value.dtype, device=parameter.device if on_device else "cpu")
        fill_(own, value, parameter.device)
        state.setdefault(parameters[name], {})[key] = own
    optimizer.state.clear()
    optimizer.state.update(state)


def all_rng_tensors(device: torch.device) -> dict[str, Tensors]:
    """The random states of all processes, of the CPU and of a CUDA device, as `rng-RANK`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return {f"rng-{rank}": tensors for rank, tensors in enumerate(gather_objects(state))}


def load_rng(tensors: Whole, device: torch.device) -> None:
    """Restore this process's random state."""
    torch.set_rng_state(tensors["cpu"][everything(tensors["cpu"])])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"][everything(tensors["cuda"])], device)


def full(tensor: Tensor) -> Tensor:
    """Unshard a tensor; any other is returned as it is. Call it on all processes."""
    return cast("DTensor", tensor).full_tensor() if is_shard(tensor) else tensor


@torch.no_grad()
def fill_(own: Tensor, value: Tensor | Stored, device: torch.device) -> None:
    """Copy a whole tensor into its place. Where that is sharded, every process reads its part; otherwise the main one
    reads it, and the others receive it on the device. Call it on all processes."""
    if is_shard(own):
        cast("DTensor", own).to_local().copy_(value[_region(cast("DTensor", own))])
        return
    (rank, world), shape = placed(), value.shape
    if rank == 0:
        found = value[everything(value)].to(device).contiguous()
    else:
        found = torch.empty(shape, dtype=value.dtype, device=device)
    if world > 1 and found.numel():
        dist.broadcast(found.view(-1).view(torch.uint8), src=0)  # bytes, as not every type can be sent
    own.copy_(found)


def share(tensor: Tensor) -> tuple[Tensor, Place | None] | None:
    """The part of a tensor that this process has to write, and its place where that is a piece; None = others do."""
    rank, _ = placed()
    if not is_shard(tensor):
        return (tensor, None) if rank == 0 else None
    shard = cast("DTensor", tensor)
    copies = zip(shard.placements, shard.device_mesh.get_coordinate() or (), strict=True)
    local = shard.to_local()
    if any(placement.is_replicate() and at > 0 for placement, at in copies) or (rank > 0 and not local.numel()):
        return None
    return local, (tuple(part.start for part in _region(shard)), tuple(shard.shape))


def _region(shard: DTensor) -> Region:
    """The part of a sharded tensor that this process has."""
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sizes, first = compute_local_shape_and_global_offset(shard.shape, shard.device_mesh, shard.placements)
    return tuple(slice(start, start + size) for start, size in zip(first, sizes, strict=True))


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor is spread over processes."""
    # torch.distributed.tensor takes half a second to import, and is needed by sharded runs alone
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def split_heads(method: PretrainMethod) -> tuple[Encoder, Tensors]:
    """The first encoder that a method exports, and the rest of its state by name without parts of a run; low-rank
    additions are merged into the method."""
    merge_(method)
    encoder = method.evaluated()
    apart = (prefix_of(method, encoder), *(f"{part}." for part in method.of_a_run))
    return encoder, {name: t for name, t in method.state_dict().items() if not name.startswith(apart)}


def prefix_of(method: Method, encoder: Encoder) -> str:
    """How the names of an encoder's weights begin in the state of its method."""
    return next(f"{name}.vit." for name, module in method.named_modules() if module is encoder)
