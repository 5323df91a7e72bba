"""Regions of a model that `run.compile` compiles, each by itself and for the shapes that it meets.

Regions are the blocks of all networks, teachers included, and the functions and methods marked by `region`: heads,
losses, colours. Compiled one by one, equal blocks share a graph, gradients of a block can be reduced over processes
while those below it are still computed, and no shape is a variable. Outside `compiling` nothing is compiled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache, partial, wraps
from types import MethodType
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from unlabeled.nn.recompute import blocks_of

P = ParamSpec("P")
R = TypeVar("R")

# graphs of one function: shapes of crops, times kinds of blocks, times with and without gradient
GRAPHS = 64

_on = False


@contextmanager
def compiling(on: bool) -> Iterator[None]:
    """Within, if `on`, regions run compiled."""
    global _on
    before, _on = _on, on
    try:
        yield
    finally:
        _on = before


def region(function: Callable[P, R]) -> Callable[P, R]:
    """Mark a function, or a method of a module, as a region: tensors in, tensors out, no value of them read.

    Arguments that are floats may change from step to step; every other change makes a graph more.
    """

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if not _on or torch.compiler.is_compiling():
            return function(*args, **kwargs)
        found: R = compiled(function)(*_steady(args), **kwargs)
        return found

    return call


def varying(function: Callable[P, R], axis: int = 0) -> Callable[P, R]:
    """As `region`, of rows [M, ...] whose number changes from step to step, such as hidden patches; or of tensors whose
    `axis` 1 does, such as sequences."""
    marked = region(function)

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if _on:
            tensors = [one for one in args if isinstance(one, Tensor)]
            for rows in tensors:
                if rows.ndim > axis and rows.shape[:1] == tensors[0].shape[:1]:
                    torch._dynamo.maybe_mark_dynamic(rows, axis)
        return marked(*args, **kwargs)

    return call


def compile_blocks_(model: nn.Module, steady: bool = True) -> None:
    """Make every block of a model's networks a region; names stay as they are. Unless it is `steady`, the length of
    sequences changes from step to step."""
    marked = region if steady else partial(varying, axis=1)
    torch._dynamo.config.recompile_limit = max(GRAPHS, torch._dynamo.config.recompile_limit)
    for network in model.children():
        for block in blocks_of(network):
            forward: Any = block.forward
            block.forward = MethodType(marked(forward.__func__), block)
            _share_rates_(block)


def _share_rates_(block: nn.Module) -> None:
    """Let blocks that differ in their rate of drop path alone have one graph: rates become tensors."""
    from timm.layers import DropPath

    for part in block.modules():
        if isinstance(part, DropPath) and part.drop_prob:
            part.register_buffer("kept", torch.tensor(1 - part.drop_prob), persistent=False)
            part.forward = MethodType(_drop_paths, part)


def _drop_paths(part: Any, x: Tensor) -> Tensor:
    """In the place of a `DropPath`'s `forward`."""
    if not part.training:
        return x
    drawn = torch.rand(len(x), *[1] * (x.ndim - 1), device=x.device) < part.kept
    return x * (drawn / (part.kept if part.scale_by_keep else 1)).to(x.dtype)


@cache
def compiled(function: Callable[..., Any]) -> Any:
    """Compile a function for the shapes that it meets."""
    return torch.compile(function, dynamic=False)


def _steady(args: tuple[Any, ...]) -> Iterator[Any]:
    """Arguments whose floats are tensors, on the device of the others: of another number no new graph is made."""
    device = next((one.device for one in args if isinstance(one, Tensor)), None)
    return (torch.full((), one, device=device) if isinstance(one, float) else one for one in args)
