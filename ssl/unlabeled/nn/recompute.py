"""Activation checkpointing: blocks of a network that keep their input alone, and are computed a second time in the
backward pass (Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost").

The result is the same to the bit: a second computation begins with the inputs, the random state, the precision, the
running statistics and the `Held` values of the first, and leaves statistics and random state as it found them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from types import MethodType
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

Every = Literal["blocks"] | int  # every block of a network, or every n-th

LISTS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


class Held:
    """A value that parts of a network read beside their inputs, as their attribute `held`; None but in `holding`."""

    def __init__(self) -> None:
        self.value: Any = None

    @contextmanager
    def holding(self, value: Any) -> Iterator[None]:
        """Within, the parts read `value`."""
        before, self.value = self.value, value
        try:
            yield
        finally:
            self.value = before


def recompute_(model: nn.Module, every: Every) -> None:
    """Let blocks of a model's networks be computed twice wherever gradients are wanted; names stay as they are."""
    for block in recomputed(model, every):
        block.forward = MethodType(_forward, block)


def recomputed(model: nn.Module, every: Every) -> list[nn.Module]:
    """The blocks of all networks of a model (its children), or every n-th of each network, the first among them."""
    step = 1 if every == "blocks" else every
    found = [block for network in model.children() for block in blocks_of(network)[::step]]
    return list(dict.fromkeys(found))


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The blocks of a network in order, of any architecture: none of them lies within another.

    They are the elements of its innermost `Sequential`, `ModuleList` or `ModuleDict` that have two or more weight
    matrices, and hold most of the weights of what they lie in (else the outer element is the block: a squeeze inside a
    block of a MobileNet is none). Where such elements have less than half of the weights, modules beside each other of
    one class are taken as well (RegNet).
    """
    found = _blocks(network, listed=False, siblings=False)
    if 2 * _weights(found) >= _weights([network]):
        return found
    return _blocks(network, listed=False, siblings=True)


def _blocks(module: nn.Module, listed: bool, siblings: bool) -> list[nn.Module]:
    """The blocks of a module; `listed` tells whether it is an element itself."""
    inner, kinds = list[nn.Module](), [type(child) for child in module.children()]
    for child in module.children():
        alike = siblings and kinds.count(type(child)) > 1 and not isinstance(child, LISTS)
        inner += _blocks(child, isinstance(module, LISTS) or alike, siblings)
    if not listed or isinstance(module, nn.ModuleList | nn.ModuleDict):  # which cannot be called
        return inner
    matrices = sum(parameter.ndim > 1 for parameter in module.parameters())
    return [module] if matrices > 1 and 2 * _weights(inner) < _weights([module]) else inner


def _weights(modules: Sequence[nn.Module]) -> int:
    """The number of values in weight matrices."""
    return sum(p.numel() for module in modules for p in module.parameters() if p.ndim > 1)


def _forward(block: nn.Module, *inputs: Any, **named: Any) -> Any:
    """In the place of a block's `forward`: a method, so that a copy of the block has its own."""
    forward = partial(type(block).forward, block)
    if not torch.is_grad_enabled():
        return forward(*inputs, **named)
    if torch.compiler.is_compiling():  # statistics change once: the compiler's graph has no side effects
        return checkpoint(forward, *inputs, use_reentrant=False, **named)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=_contexts(block), **named)


def _contexts(block: nn.Module) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """Contexts of the first and the second computation."""
    buffers = _statistics(block)
    before = [buffer.clone() for buffer in buffers]
    found = {getattr(part, "held", None) for part in block.modules()}
    held = [(one, one.value) for one in found if isinstance(one, Held)]
    return lambda: (nullcontext(), _as_before(buffers, before, held) if buffers or held else nullcontext())


def _statistics(block: nn.Module) -> list[Tensor]:
    """What training may change besides parameters: floating-point buffers of its state, and counters of batches."""
    return [
        buffer
        for part in block.modules()
        for name, buffer in part._buffers.items()
        if buffer is not None and name not in part._non_persistent_buffers_set
        if buffer.is_floating_point() or not buffer.dim()
    ]


@contextmanager
def _as_before(buffers: list[Tensor], before: list[Tensor], held: list[tuple[Held, Any]]) -> Iterator[None]:
    """Within, buffers have the values `before`, and held values are those; afterwards all are what they are now."""
    now = [buffer.clone() for buffer in buffers]
    with ExitStack() as stack:
        for one, value in held:
            stack.enter_context(one.holding(value))
        _fill_(buffers, before)
        stack.callback(_fill_, buffers, now)
        yield


@torch.no_grad()
def _fill_(buffers: list[Tensor], values: list[Tensor]) -> None:
    if buffers:
        torch._foreach_copy_(buffers, values)
