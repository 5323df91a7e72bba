"""Activations that a step keeps for its backward pass, counted by what autograd saves; also on the meta device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

Storages = dict[int, Tensor]  # a tensor of each storage, which keeps its number from being given away


class Kept(NamedTuple):
    """Bytes at the beginning of a backward pass.

    Attributes:
        outside: of what is kept outside the blocks that are computed twice.
        inputs: of the inputs of these blocks that nothing else keeps.
        block: the most that one of them keeps while it is computed again.
    """

    outside: int
    inputs: int
    block: int


class _Pass(NamedTuple):
    """A forward pass of a block that is computed twice."""

    inputs: Storages
    own: Storages


def activations(forward: Callable[[], object], model: nn.Module, twice: Sequence[nn.Module] = ()) -> Kept:
    """Count what `forward`, a forward pass of `model`, keeps if its blocks `twice` were computed twice.

    They are not here: in the first computation nothing could be seen of what the second keeps.
    """
    outside: Storages = {}
    passes: list[_Pass] = []
    into = [outside]

    def keep(tensor: Tensor) -> Tensor:
        into[-1][tensor.untyped_storage()._cdata] = tensor
        return tensor

    def enter(block: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any]) -> None:
        tensors = [leaf for leaf in tree_leaves((inputs, named)) if isinstance(leaf, Tensor)]
        passes.append(_Pass({tensor.untyped_storage()._cdata: tensor for tensor in tensors}, {}))
        into.append(passes[-1].own)

    def leave(block: nn.Module, inputs: tuple[Any, ...], output: object) -> None:
        into.pop()

    with ExitStack() as stack:
        for block in twice:
            stack.callback(block.register_forward_pre_hook(enter, with_kwargs=True).remove)
            stack.callback(block.register_forward_hook(leave).remove)
        stack.enter_context(torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor))
        forward()
    return _counted(outside, passes, {p.untyped_storage()._cdata for p in model.parameters()})


def _counted(outside: Storages, passes: list[_Pass], weights: set[int]) -> Kept:
    """Bytes, each storage once; blocks that kept nothing (under a teacher's `no_grad`) keep no inputs either."""
    inputs = {key: tensor for one in passes if one.own for key, tensor in one.inputs.items()}
    known = weights | outside.keys()
    most = max((_size(one.own, known | inputs.keys()) for one in passes), default=0)
    return Kept(_size(outside, weights), _size(inputs, known), most)


def _size(storages: Storages, known: set[int]) -> int:
    return sum(t.untyped_storage().nbytes() for key, t in storages.items() if key not in known)
