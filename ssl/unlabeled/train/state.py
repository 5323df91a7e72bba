"""The state of a run as whole tensors by name, the same for every launcher; and the heads of an export."""

from __future__ import annotations

from collections.abc import Callable
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
from unlabeled.processes import gather_objects

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor

AGAIN = "Start over with --fresh --force, or take the version of this program that wrote it."


def model_tensors(model: nn.Module) -> Tensors:
    """Parameters and buffers by name, unsharded. Call it on all processes."""
    return {name: full(tensor) for name, tensor in model.state_dict().items()}


def load_model(model: nn.Module, tensors: Tensors) -> None:
    """Load whole tensors into a model, sharded or not. Raises UserError where names or shapes differ."""
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
    with torch.no_grad():
        for name, tensor in own.items():
            tensor.copy_(sharded_like(tensors[name], tensor))


class Statistics:
    """Running statistics and centres as before a step; the forward pass changes them, also of one that is skipped."""

    def __init__(self, model: nn.Module) -> None:
        # changed in place, never replaced; integer buffers are tables of positions, counters of batches aside
        self._own = [buffer for buffer in model.buffers() if buffer.is_floating_point() or not buffer.dim()]
        self._kept = [buffer.clone() for buffer in self._own]

    def keep(self) -> None:
        if self._own:
            torch._foreach_copy_(self._kept, self._own)

    def restore_(self) -> None:
        if self._own:
            torch._foreach_copy_(self._own, self._kept)


def whole(model: nn.Module, build: Callable[[], nn.Module]) -> nn.Module:
    """The model itself, or an unsharded copy from `build` where it is sharded. Call it on all processes."""
    if not any(map(_is_shard, model.state_dict().values())):
        return model
    with torch.random.fork_rng():
        twin = build().to(next(model.parameters()).device)
    load_model(twin, model_tensors(model))
    return twin


def optimizer_tensors(model: nn.Module, optimizer: Optimizer) -> Tensors:
    """Optimizer state keyed `parameter name/state name`."""
    return {
        f"{name}/{key}": full(value if isinstance(value, Tensor) else torch.tensor(value))
        for name, parameter in model.named_parameters()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
    }


def load_optimizer(model: nn.Module, optimizer: Optimizer, tensors: Tensors) -> None:
    """Load optimizer state; a parameter that had none (not yet trained) gets none."""
    parameters = dict(model.named_parameters())
    on_device = any(group.get("fused") or group.get("capturable") for group in optimizer.param_groups)
    state: dict[Tensor, dict[str, Any]] = {}
    for full_key, value in tensors.items():
        name, _, key = full_key.rpartition("/")
        if name not in parameters:
            raise UserError(f"the checkpoint's optimizer knows '{name}', the model does not. {AGAIN}")
        parameter = parameters[name]
        # moments are sharded like their parameter, counters are not
        if value.shape == parameter.shape:
            value = sharded_like(value, parameter)
        elif on_device:
            value = value.to(parameter.device)
        state.setdefault(parameter, {})[key] = value
    optimizer.state.clear()
    optimizer.state.update(state)


def all_rng_tensors(device: torch.device) -> dict[str, Tensors]:
    """The random states of all processes, of the CPU and of a CUDA device, as `rng-RANK`."""
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return {f"rng-{rank}": tensors for rank, tensors in enumerate(gather_objects(state))}


def load_rng(tensors: Tensors, device: torch.device) -> None:
    """Restore this process's random state."""
    torch.set_rng_state(tensors["cpu"])
    if device.type == "cuda" and "cuda" in tensors:
        torch.cuda.set_rng_state(tensors["cuda"], device)


def full(tensor: Tensor) -> Tensor:
    """Unshard a tensor; any other is returned as it is. Call it on all processes."""
    return cast("DTensor", tensor).full_tensor() if _is_shard(tensor) else tensor


def sharded_like(tensor: Tensor, like: Tensor) -> Tensor:
    """Shard a whole tensor as `like`."""
    tensor = tensor.to(like.device)
    if not _is_shard(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    shard = cast("DTensor", like)
    return distribute_tensor(tensor, shard.device_mesh, shard.placements)


def _is_shard(tensor: Tensor) -> bool:
    # torch.distributed.tensor takes half a second to import, and is needed by sharded runs alone
    if not (dist.is_available() and dist.is_initialized()):
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(tensor, DTensor)


def split_heads(method: PretrainMethod) -> tuple[Encoder, Tensors]:
    """The first encoder that a method exports, and the rest of its state by name; low-rank additions are merged into
    the method."""
    merge_(method)
    encoder = method.evaluated()
    prefix = prefix_of(method, encoder)
    return encoder, {name: t for name, t in method.state_dict().items() if not name.startswith(prefix)}


def prefix_of(method: Method, encoder: Encoder) -> str:
    """How the names of an encoder's weights begin in the state of its method."""
    return next(f"{name}.vit." for name, module in method.named_modules() if module is encoder)
