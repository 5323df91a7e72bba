"""Count a compiled step on fake tensors: the kernels that Inductor would make of each region, and what it would keep
for the backward pass. Graphs are traced, divided, lowered and fused as for a GPU; no code is written or run.

What is not known here: on a GPU a long sum may take two kernels, and products may be made by templates that take what
follows them along.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from typing import Any
from unittest import mock

import torch
from counting import MEMORY, SHORTEST, Counting
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._guards import detect_fake_mode
from torch._inductor import config, ir
from torch._inductor.compile_fx import _recursive_joint_graph_passes, _recursive_post_grad_passes
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.memory import prepare_planning_info
from torch._inductor.scheduler import NopKernelSchedulerNode
from torch._inductor.virtualized import V
from torch.overrides import _pop_mode_temporarily as without_function_mode
from torch.utils._ordered_set import OrderedSet
from torch.utils._python_dispatch import _get_current_dispatch_mode
from torch.utils._python_dispatch import _pop_mode_temporarily as without_mode
from torch.utils._pytree import tree_leaves

from unlabeled.nn import regions


@dataclass
class Fused:
    """What a graph asks of the device.

    Attributes:
        launches: of kernels.
        bytes: read and written.
        seconds: of the device, products and attention aside.
        held: the most bytes that it holds, beside what it is given.
    """

    launches: int
    bytes: int
    seconds: float
    held: int


def aside(counting: Counting) -> AbstractContextManager[object]:
    """Within, nothing is counted; backward passes begin where it is."""
    return without_mode() if _get_current_dispatch_mode() is counting else nullcontext()


@contextmanager
def compiled(counting: Counting) -> Iterator[None]:
    """Within, regions are counted by `counting` as a compiler would fuse them."""

    def compile_(function: Callable[..., Any]) -> Callable[..., Any]:
        inner = torch.compile(function, dynamic=False, backend=partial(backend, counting))

        def call(*args: Any, **kwargs: Any) -> Any:
            with aside(counting), without_function_mode():
                return inner(*args, **kwargs)

        return call

    torch._dynamo.reset()
    with (
        mock.patch.object(regions, "compiled", cache(compile_)),
        mock.patch.object(torch._dynamo, "maybe_mark_dynamic"),  # shapes of fake tensors are numbers
        config.patch(cpu_backend="triton", force_disable_caches=True),
    ):
        yield
    torch._dynamo.reset()


def backend(counting: Counting, graph: Any, inputs: Sequence[Any]) -> Any:
    """Inductor's way through a graph, as far as it needs no device."""

    def compiler(is_inference: bool, part: Any, given: Sequence[Any]) -> Callable[..., Any]:
        with aside(counting):
            return counted(counting, part, given, is_inference)

    divided = aot_autograd(
        fw_compiler=partial(compiler, False),
        bw_compiler=partial(compiler, False),
        inference_compiler=partial(compiler, True),
        partition_fn=partition,
        decompositions=select_decomp_table(),
    )
    with V.set_fake_mode(detect_fake_mode(inputs)):
        return divided(graph, inputs)


def partition(joint: Any, inputs: Sequence[Any], **named: Any) -> Any:
    """Divide a graph into a forward and a backward pass; what is cheap is computed twice rather than kept."""
    _recursive_joint_graph_passes(joint)
    return min_cut_rematerialization_partition(joint, inputs, **named, compiler="inductor")


def counted(counting: Counting, graph: Any, inputs: Sequence[Any], is_inference: bool) -> Callable[..., Any]:
    """A function that gives the fake results of a graph, and counts it as fused."""
    fused, products = lowered(graph, inputs, is_inference), list[Counting]()

    def run(given: list[Any]) -> Any:
        with aside(counting), nullcontext() if products else Counting() as within:
            found = graph(*given)
        if within is not None:
            products.append(within)
        note(counting, fused, products[0], [one for one in tree_leaves(found) if isinstance(one, Tensor)])
        return found

    run._boxed_call = True  # type: ignore[attr-defined]
    return run


def note(counting: Counting, fused: Fused, products: Counting, made: list[Tensor]) -> None:
    """Add a graph that ran to the count."""
    count = counting.count
    count.operators += fused.launches
    count.launches += fused.launches
    count.kernels["compiled"] += fused.launches
    count.bytes += fused.bytes
    count.flop += products.count.flop
    count.multiplying += products.count.multiplying
    count.seconds += products.count.multiplying + fused.seconds
    count.peak = max(count.peak, counting.held + fused.held)
    for one in made:
        counting.hold(one)


def lowered(graph: Any, inputs: Sequence[Any], is_inference: bool) -> Fused:
    """Fuse a graph as for a GPU."""
    graph = copy.deepcopy(graph)
    with V.set_fake_mode(detect_fake_mode(inputs)), V.set_debug_handler(DebugContext()):
        _recursive_post_grad_passes(graph, is_inference)
        return scheduled(GraphLowering(graph, example_inputs=inputs, is_inference=is_inference), inputs)


def scheduled(lowering: GraphLowering, inputs: Sequence[Any]) -> Fused:
    """What the kernels of a graph ask of the device."""
    with V.set_graph_handler(lowering):
        lowering.run(*inputs)
        lowering._update_scheduler()
        scheduler = lowering.scheduler
        kernels = [
            one
            for one in scheduler.nodes
            if not isinstance(one, NopKernelSchedulerNode) and not isinstance(one.node, ir.MultiOutput)
        ]
        held, inputs_freed = prepare_planning_info(
            scheduler.nodes,
            scheduler.name_to_buf,
            scheduler.name_to_fused_node,
            OrderedSet(lowering.graph_inputs),
            OrderedSet(lowering.get_output_names()),
        )
        moved = [one.get_read_write_buffers_sizes() for one in kernels]
        ours = [not one.is_extern() for one in kernels]
    rest = sum(max(size / MEMORY, SHORTEST) for size, own in zip(moved, ours, strict=True) if own)
    held -= sum(one.mpi_buffer.size_free for one in inputs_freed.values())
    return Fused(len(kernels), sum(moved), rest, max(0, held))
