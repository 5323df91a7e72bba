"""Maps of the stages of a network, as distillation by pooled outputs reads them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn

from unlabeled.nn.positions import Grid

STAGES = 4
Shape = Callable[[Tensor], Tensor]


@contextmanager
def stage_maps(model: Any, wanted: bool) -> Iterator[list[Tensor]]:
    """The maps [B, C, h, w] of four stages of a timm model, in a list that is complete at the end; empty unless wanted.

    Of a CNN, what its last blocks add up to before their last ReLU (Douillard et al. 2020, section 3.1). Of a
    transformer, the patches that four evenly spaced blocks leave, on their grid, the last of them after the norm.
    """
    maps: list[Tensor] = []
    found: dict[int, Tensor] = {}
    handles = []
    for place, (module, shape) in enumerate(_watched(model) if wanted else ()):
        if isinstance(module, nn.ReLU):
            handles.append(module.register_forward_pre_hook(partial(_before, found, place)))
        else:
            handles.append(module.register_forward_hook(partial(_after, found, place, shape)))
    try:
        yield maps
    finally:
        for handle in handles:
            handle.remove()
        maps += [found[place] for place in sorted(found)]


def _watched(model: Any) -> Iterator[tuple[nn.Module, Shape]]:
    """The modules whose input (a ReLU) or output is a map, and how it becomes one [B, C, h, w]."""
    blocks, grid = getattr(model, "blocks", None), getattr(getattr(model, "patch_embed", None), "grid_size", None)
    if isinstance(blocks, nn.Sequential | nn.ModuleList) and grid is not None:
        shape: Shape = partial(_on_grid, grid=grid, prefix=model.num_prefix_tokens)
        ends = [round(len(blocks) * stage / STAGES) - 1 for stage in range(1, STAGES)]
        last = blocks[-1] if isinstance(model.norm, nn.Identity) else model.norm
        yield from ((part, shape) for part in (*(blocks[end] for end in ends), last))
        return
    shape = _channels_first if getattr(model, "output_fmt", "") == "NHWC" else _as_it_is
    for stage in model.feature_info[-STAGES:]:
        module = model.get_submodule(stage["module"])
        relus = [part for part in module.modules() if isinstance(part, nn.ReLU)]
        yield (relus[-1] if relus else module), shape


def _on_grid(tokens: Tensor, grid: Grid, prefix: int) -> Tensor:
    """The patches of tokens [B, prefix + N, D] as a map [B, D, rows, columns]."""
    return tokens[:, prefix:].mT.unflatten(2, grid)


def _channels_first(layer: Tensor) -> Tensor:
    return layer.permute(0, 3, 1, 2)


def _as_it_is(layer: Tensor) -> Tensor:
    return layer


def _before(found: dict[int, Tensor], place: int, _module: nn.Module, inputs: Any) -> None:
    found[place] = inputs[0].clone()  # the ReLU may write into it


def _after(found: dict[int, Tensor], place: int, shape: Shape, _module: nn.Module, _inputs: Any, output: Any) -> None:
    found[place] = shape(output)
