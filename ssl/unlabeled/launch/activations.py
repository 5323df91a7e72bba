"""Activations that a step keeps for its backward pass, counted by what autograd saves; also on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cache
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

Storages = dict[int, Tensor]  # a tensor of each storage, which keeps its number from being given away


class Kept(NamedTuple):
    """Bytes that are held at a moment of the backward pass.

    Attributes:
        outside: of what was kept outside the blocks that are computed twice.
        inputs: of the inputs of these blocks that nothing else keeps.
        block: of one of these blocks, which is being computed again.
    """

    outside: int
    inputs: int
    block: int


class _Pass(NamedTuple):
    """A forward pass of a block that is computed twice."""

    before: int  # storages that were kept outside by then
    inputs: Storages
    own: Storages


class _FusedAttention(torch.autograd.Function):
    """Attention that keeps what fused kernels do: queries, keys, values, output and a number per query."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        *batch, heads, rows, _ = query.shape
        output = query.new_empty(*batch, rows, heads, value.shape[-1]).transpose(-3, -2)  # as kernels lay it out
        ctx.save_for_backward(query, key, value, output, query.new_empty(query.shape[:-1]))
        return output


class _Fused(TorchFunctionMode):
    """Within, attention on the meta device is fused as on others; torch would keep its [N, N] matrices there."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is not F.scaled_dot_product_attention or not args[0].is_meta:
            return func(*args, **kwargs)
        mask = kwargs.get("attn_mask")  # one that learns is not fused everywhere
        return func(*args, **kwargs) if mask is not None and mask.requires_grad else _FusedAttention.apply(*args[:3])


class AskedOnce(TorchDispatchMode):
    """Within, an operation on the meta device finds the shapes of its result once: torch does it in Python each time.

    Operations that return views, write in place or read tensors elsewhere are left as they are.
    """

    def __init__(self) -> None:
        super().__init__()
        self.results: dict[object, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if _shares_memory(func):
            return func(*args, **kwargs)
        tensors: list[Tensor] = []
        key = (func, _described(args, tensors), *((name, _described(value, tensors)) for name, value in kwargs.items()))
        if not tensors or not all(tensor.is_meta for tensor in tensors):
            return func(*args, **kwargs)
        if key not in self.results:
            self.results[key] = func(*args, **kwargs)
        return tree_map_only(Tensor, _fresh, self.results[key])


@cache
def _shares_memory(func: Any) -> bool:
    """Whether an operation returns views or writes in place."""
    return any(one.alias_info for one in (*func._schema.arguments, *func._schema.returns))


def _described(argument: Any, tensors: list[Tensor]) -> Any:
    """All of an argument on which the shape of a result can depend; the tensors in it are added to `tensors`."""
    if isinstance(argument, Tensor):
        tensors.append(argument)
        return argument.shape, argument.stride(), argument.dtype
    if isinstance(argument, list | tuple):
        return tuple([_described(one, tensors) for one in argument])
    return type(argument), argument


def _fresh(tensor: Tensor) -> Tensor:
    return torch.empty_strided(tensor.shape, tensor.stride(), dtype=tensor.dtype, device="meta")


def activations(forward: Callable[[], object], model: nn.Module, twice: Sequence[nn.Module] = ()) -> list[Kept]:
    """Count what is held after `forward`, a forward pass of `model`, if its blocks `twice` were computed twice.

    First at the beginning of the backward pass, then whenever one of these blocks is computed again. They are not here:
    in the first computation nothing could be seen of what the second keeps.
    """
    outside: Storages = {}
    passes: list[_Pass] = []
    into = [outside]

    def keep(tensor: Tensor) -> Tensor:
        into[-1].setdefault(tensor.untyped_storage()._cdata, tensor)
        return tensor

    def enter(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [leaf for leaf in tree_leaves((inputs, named)) if isinstance(leaf, Tensor)]
        passes.append(_Pass(len(outside), {tensor.untyped_storage()._cdata: tensor for tensor in tensors}, {}))
        into.append(passes[-1].own)

    def leave(block: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        into.pop()

    with ExitStack() as stack:
        for block in twice:
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        stack.enter_context(AskedOnce())
        stack.enter_context(_Fused())
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        forward()
    return _moments(outside, passes, {p.untyped_storage()._cdata for p in model.parameters()})


def _moments(outside: Storages, passes: list[_Pass], weights: set[int]) -> list[Kept]:
    """Each storage counts once. What is kept later than a block is gone when it is computed again; a block that kept
    nothing, under a teacher's `no_grad`, keeps no inputs either."""
    sizes = [0 if key in weights else tensor.untyped_storage().nbytes() for key, tensor in outside.items()]
    known, inputs, again = weights | outside.keys(), 0, list[Kept]()
    for before, given, own in (one for one in passes if one.own):
        inputs += _size(given, known)
        known |= given.keys()
        again.append(Kept(sum(sizes[:before]), inputs, _size(own, known)))
    return [Kept(sum(sizes), inputs, 0), *again]


def _size(storages: Storages, known: set[int]) -> int:
    return sum(t.untyped_storage().nbytes() for key, t in storages.items() if key not in known)
