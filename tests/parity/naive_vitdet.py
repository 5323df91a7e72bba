"""A second set of official numbers for ViTDet's pyramid, of other sizes and levels: one place after the other."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import torch
from parity.naive import Numbers, Set, Tensors, save
from torch import Tensor


def at(x: Tensor, b: int, row: int, column: int) -> Tensor:
    """The channels of a place; zeros beyond the edge."""
    inside = 0 <= row < x.shape[2] and 0 <= column < x.shape[3]
    return x[b, :, row, column] if inside else torch.zeros_like(x[b, :, 0, 0])


def mapped(x: Tensor, rows: int, columns: int, place: object) -> Tensor:
    """A map [B, C, rows, columns] whose vector at (b, row, column) is `place` of them."""
    cells = [place(b, r, c) for b in range(len(x)) for r in range(rows) for c in range(columns)]  # type: ignore[operator]
    return torch.stack(cells).unflatten(0, (len(x), rows, columns)).permute(0, 3, 1, 2)


def conv(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    half = weight.shape[-1] // 2
    steps = [(i, j) for i in range(-half, half + 1) for j in range(-half, half + 1)]

    def place(b: int, r: int, c: int) -> Tensor:
        total = sum(weight[:, :, i + half, j + half] @ at(x, b, r + i, c + j) for i, j in steps)
        return total if bias is None else total + bias  # type: ignore[return-value, operator]

    return mapped(x, x.shape[2], x.shape[3], place)


def doubled(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """A transposed convolution of 2x2 places with stride 2."""
    return mapped(
        x,
        2 * x.shape[2],
        2 * x.shape[3],
        lambda b, r, c: at(x, b, r // 2, c // 2) @ weight[:, :, r % 2, c % 2] + bias,
    )


def halved(x: Tensor) -> Tensor:
    def place(b: int, r: int, c: int) -> Tensor:
        four = [at(x, b, 2 * r + i, 2 * c + j) for i in (0, 1) for j in (0, 1)]
        return torch.stack(four).max(0).values

    return mapped(x, x.shape[2] // 2, x.shape[3] // 2, place)


def normal(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    def place(b: int, r: int, c: int) -> Tensor:
        v = at(x, b, r, c)
        return (v - v.mean()) / ((v - v.mean()).square().mean() + 1e-6).sqrt() * weight + bias

    return mapped(x, x.shape[2], x.shape[3], place)


def gelu(x: Tensor) -> Tensor:
    return x * (1 + torch.erf(x / math.sqrt(2))) / 2


def write_set(root: Path, width: int, out: int, grid: Sequence[int], factors: Sequence[float], stride: int) -> None:
    """With norms, and with a last level where the coarsest one is half of the map."""
    numbers, sd, levels = Numbers(5), dict[str, Tensor](), dict[str, Tensor]()
    strides = {f"p{int(math.log2(stride / factor))}": int(stride / factor) for factor in factors}
    x = numbers(2, width, *grid).requires_grad_()

    def new(name: str, *shape: int) -> Tensor:
        return sd.setdefault(name, numbers(*shape, scale=0.3))

    for factor, level in zip(factors, strides, strict=True):
        block, made, inside, first = f"simfp_{level[1:]}", x, width, 0
        if factor == 4:
            made = doubled(made, new(f"{block}.0.weight", width, width // 2, 2, 2), new(f"{block}.0.bias", width // 2))
            made = gelu(
                normal(made, new(f"{block}.1.weight", width // 2), new(f"{block}.1.bias", width // 2)),
            )
            names = f"{block}.3.weight", f"{block}.3.bias"
            made = doubled(made, new(names[0], width // 2, width // 4, 2, 2), new(names[1], width // 4))
            inside, first = width // 4, 4
        elif factor == 2:
            made = doubled(made, new(f"{block}.0.weight", width, width // 2, 2, 2), new(f"{block}.0.bias", width // 2))
            inside, first = width // 2, 1
        elif factor == 0.5:
            made, first = halved(made), 1
        for number, channels, kernel in ((first, inside, 1), (first + 1, out, 3)):
            name = f"{block}.{number}"
            made = conv(made, new(f"{name}.weight", out, channels, kernel, kernel), None)
            made = normal(made, new(f"{name}.norm.weight", out), new(f"{name}.norm.bias", out))
        levels[level] = made
    if factors[-1] == 0.5:
        last = list(levels)[-1]
        top = f"p{int(last[1:]) + 1}"
        levels[top], strides[top] = levels[last][:, :, ::2, ::2], 2 * strides[last]
    loss = torch.stack([made.square().mean() for made in levels.values()]).sum()
    (grad,) = torch.autograd.grad(loss, x)
    tensors: Tensors = {f"sd/{name}": tensor for name, tensor in sd.items()}
    tensors |= {"in/map": x, "grad/map": grad} | {f"out/{name}": made for name, made in levels.items()}
    settings = {"dim": width, "out": out, "scale_factors": factors, "norm": "LN", "strides": strides}
    save(root, "vitdet", Set("pyramid.safetensors", tensors, settings))
