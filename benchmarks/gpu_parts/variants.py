"""Choices that only a GPU can decide: kernels of attention, ways to pick rows, layouts, graphs."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from gpu_parts.cases import Steps
from gpu_parts.place import Figures, Part, Place

# pictures, tokens, heads, head width: MAE's encoder and decoder, DINO's large and small crops
SHAPES = {
    "50x64": (256, 50, 6, 64),
    "197x32": (256, 197, 16, 32),
    "197x64": (512, 197, 6, 64),
    "37x64": (2560, 37, 6, 64),
}
BACKENDS = {
    "flash": SDPBackend.FLASH_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "math": SDPBackend.MATH,
}


def measure(place: Place) -> Figures:
    """Milliseconds, forward and backward."""
    for name, shape in SHAPES.items():
        yield f"attention_{name}", attention(place, *shape)
    yield "rows", rows(place)
    yield "layout_resnet50", layouts(place)
    if place.cuda:
        yield "graph_mae_s", graphed(place)


def backward(work: Callable[[Tensor], Tensor], x: Tensor) -> Callable[[], None]:
    """Forward and backward of a function of one tensor."""
    gradient = torch.randn_like(work(x))

    def both() -> None:
        x.grad = None
        work(x).backward(gradient)

    return both


def attention(place: Place, pictures: int, tokens: int, heads: int, width: int) -> dict[str, float]:
    """Attention by every kernel that takes these sizes."""
    batch = place.size(pictures, 2)
    dtype = torch.bfloat16 if place.cuda else torch.float32
    qkv = place.random(3, batch, heads, tokens, width, dtype=dtype).requires_grad_()
    found = {}
    for name, backend in BACKENDS.items():
        with suppress(RuntimeError), sdpa_kernel(backend):
            found[name] = place.milliseconds(backward(attend, qkv))
    return found


def attend(qkv: Tensor) -> Tensor:
    """Attention of [3, B, H, N, D]."""
    q, k, v = qkv.unbind()
    return F.scaled_dot_product_attention(q, k, v)


def rows(place: Place) -> dict[str, float]:
    """Hidden patches out of all, by indexing, `index_select` and `gather`."""
    pictures, tokens, width = place.size(512, 4), 196, 384
    x = place.random(pictures * tokens, width, dtype=torch.bfloat16).requires_grad_()
    index = torch.randperm(len(x), device=place.device)[: len(x) // 3]
    wide = index.unsqueeze(1).expand(-1, width)
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        "index": lambda value: value[index],
        "index_select": lambda value: value.index_select(0, index),
        "gather": lambda value: value.gather(0, wide),
    }
    return {name: place.milliseconds(backward(way, x)) for name, way in ways.items()}


def layouts(place: Place) -> dict[str, float]:
    """A ResNet-50 in both memory layouts."""
    import timm

    network = timm.create_model("test_resnet" if place.dry else "resnet50", num_classes=0).to(place.device).train()
    images, found = place.random(place.size(256, 2), 3, place.size(224, 64), place.size(224, 64)), {}
    for name, layout in (("nchw", torch.contiguous_format), ("channels_last", torch.channels_last)):
        one, x = network.to(memory_format=layout), images.to(memory_format=layout).requires_grad_()

        def forward(value: Tensor, one: torch.nn.Module = one) -> Tensor:
            with place.autocast():
                features: Tensor = one(value)
            return features

        found[name] = place.milliseconds(backward(forward, x))
    return found


def graphed(place: Place) -> dict[str, float]:
    """Forward and backward of MAE-S, launched one by one and as one CUDA graph."""
    steps = Steps(place, "mae-S-256")
    engine = steps.engine
    batch, progress = engine._on_device(steps.pending[0]), engine.progress()

    def both() -> None:
        with place.autocast():
            loss = engine.method(batch, progress).loss
        loss.backward()

    eager = place.milliseconds(both)
    graph, side = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            both()
    torch.cuda.current_stream().wait_stream(side)
    with torch.cuda.graph(graph):
        both()
    return {"eager": eager, "graph": place.milliseconds(graph.replay)}


PART = Part(60, measure)
