"""DINOv3's ViT and ConvNeXt as their official code computes them, plainly, in double precision; the ViT one picture and
one patch at a time.

Written from the description of the network: patch centres mapped to [-1, 1], angles 2 pi x / period, periods
base^(i / n), row angles before column angles, halves of a head's channels turned against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

Tensors = dict[str, Tensor]


def weights(
    width: int = 32,
    depth: int = 2,
    heads: int = 2,
    hidden: int = 128,
    registers: int = 4,
    gated: bool = False,
    patch: int = 8,
    channels: int = 3,
    base: float = 100.0,
    seed: int = 0,
) -> Tensors:
    """Random weights under official names, with everything that released files hold besides."""
    shapes: dict[str, tuple[int, ...]] = {
        "cls_token": (1, 1, width),
        "mask_token": (1, width),
        "patch_embed.proj.weight": (width, channels, patch, patch),
        "patch_embed.proj.bias": (width,),
        "norm.weight": (width,),
        "norm.bias": (width,),
        "local_cls_norm.weight": (width,),
        "local_cls_norm.bias": (width,),
    }
    if registers:
        shapes["storage_tokens"] = (1, registers, width)
    mlp = {"w1": (hidden, width), "w2": (hidden, width), "w3": (width, hidden)}
    for block in (f"blocks.{i}." for i in range(depth)):
        linears = {"attn.qkv": (3 * width, width), "attn.proj": (width, width)}
        plain = {"fc1": (hidden, width), "fc2": (width, hidden)}
        linears |= {f"mlp.{name}": shape for name, shape in (mlp if gated else plain).items()}
        for name, (rows, columns) in linears.items():
            shapes |= {f"{block}{name}.weight": (rows, columns), f"{block}{name}.bias": (rows,)}
        norms = [f"{block}{norm}.{part}" for norm in ("norm1", "norm2") for part in ("weight", "bias")]
        shapes |= dict.fromkeys([*norms, f"{block}ls1.gamma", f"{block}ls2.gamma"], (width,))
    generator = torch.Generator().manual_seed(seed)
    made = {name: 0.3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    for i in range(depth):
        made[f"blocks.{i}.attn.qkv.bias_mask"] = torch.cat([torch.ones(width), torch.zeros(width), torch.ones(width)])
    n = width // heads // 4
    made["rope_embed.periods"] = base ** (torch.arange(n) / n)
    return made


def encode(
    official: Tensors,
    image: Tensor,
    heads: int,
    keep: Sequence[int] | None = None,
    hidden: Sequence[int] = (),
    token: Tensor | None = None,
    eps: float = 1e-5,
    base: float = 100.0,
) -> Tensor:
    """Tokens [1 + R + K, D] of a picture [C, H, W] after the final norm.

    Args:
        official: weights by official name.
        keep: the patches that are encoded, by number, row-major; None = all.
        hidden: patches that are replaced by `token` [D].
    """
    w = {name: tensor.double() for name, tensor in official.items()}
    width, _, patch, _ = w["patch_embed.proj.weight"].shape
    rows, columns = image.shape[1] // patch, image.shape[2] // patch
    tokens, places = [*w["cls_token"][0], *w.get("storage_tokens", torch.zeros(1, 0, width))[0]], []
    prefix = len(tokens)
    for number in range(rows * columns) if keep is None else keep:
        y, x = divmod(int(number), columns)
        pixels = image[:, y * patch : (y + 1) * patch, x * patch : (x + 1) * patch].double()
        seen = (w["patch_embed.proj.weight"] * pixels).sum((1, 2, 3)) + w["patch_embed.proj.bias"]
        tokens.append(token.double() if token is not None and number in hidden else seen)
        places.append((2 * (y + 0.5) / rows - 1, 2 * (x + 0.5) / columns - 1))
    state = torch.stack(tokens)
    for i in range(1 + max(int(name.split(".")[1]) for name in w if name.startswith("blocks."))):
        block = {name.removeprefix(f"blocks.{i}."): t for name, t in w.items() if name.startswith(f"blocks.{i}.")}
        normed = F.layer_norm(state, (width,), block["norm1.weight"], block["norm1.bias"], eps)
        state = state + block.get("ls1.gamma", 1.0) * attend(block, normed, heads, prefix, places, base)
        normed = F.layer_norm(state, (width,), block["norm2.weight"], block["norm2.bias"], eps)
        state = state + block.get("ls2.gamma", 1.0) * mlp(block, normed)
    return F.layer_norm(state, (width,), w["norm.weight"], w["norm.bias"], eps)


def linear(block: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, block[f"{name}.weight"], block.get(f"{name}.bias"))


def mlp(block: Tensors, x: Tensor) -> Tensor:
    if "mlp.w1.weight" in block:
        return linear(block, "mlp.w3", F.silu(linear(block, "mlp.w1", x)) * linear(block, "mlp.w2", x))
    return linear(block, "mlp.fc2", F.gelu(linear(block, "mlp.fc1", x)))


def attend(
    block: Tensors, x: Tensor, heads: int, prefix: int, places: list[tuple[float, float]], base: float
) -> Tensor:
    both = x @ block["attn.qkv.weight"].T
    if "attn.qkv.bias" in block:
        both = both + block["attn.qkv.bias"] * block.get("attn.qkv.bias_mask", 1.0)
    query, key, value = both.chunk(3, dim=1)
    d, outputs = x.shape[1] // heads, []
    for head in range(heads):
        q, k, v = (tensor[:, head * d : (head + 1) * d].clone() for tensor in (query, key, value))
        for number, place in enumerate(places, start=prefix):
            q[number], k[number] = turned(q[number], place, base), turned(k[number], place, base)
        outputs.append((q @ k.T / math.sqrt(d)).softmax(dim=1) @ v)
    return linear(block, "attn.proj", torch.cat(outputs, dim=1))


def turned(x: Tensor, place: tuple[float, float], base: float) -> Tensor:
    """A query or key [d] of a patch with its centre at `place`, (row, column) in [-1, 1]."""
    d = len(x)
    angles = [2 * math.pi * at / base ** (i / (d // 4)) for at in place for i in range(d // 4)]
    result = x.clone()
    for j, angle in enumerate(angles):
        a, b = x[j], x[j + d // 2]
        result[j] = a * math.cos(angle) - b * math.sin(angle)
        result[j + d // 2] = b * math.cos(angle) + a * math.sin(angle)
    return result


def convnext_weights(width: int, blocks: tuple[int, ...], widths: tuple[int, ...], channels: int = 3) -> Tensors:
    """Random weights of a ConvNeXt under official names, its last norm under both."""
    generator, made = torch.Generator().manual_seed(0), {}

    def layer(name: str, *shape: int) -> None:
        scale = 0.3 if len(shape) == 1 else 1 / math.sqrt(math.prod(shape[1:]))
        made[f"{name}.weight"] = scale * torch.randn(shape, generator=generator)
        made[f"{name}.bias"] = 0.3 * torch.randn(shape[0], generator=generator)

    layer("downsample_layers.0.0", width, channels, 4, 4)
    layer("downsample_layers.0.1", width)
    for i, (count, own) in enumerate(zip(blocks, widths, strict=True)):
        if i:
            layer(f"downsample_layers.{i}.0", widths[i - 1])
            layer(f"downsample_layers.{i}.1", own, widths[i - 1], 2, 2)
        for j in range(count):
            layer(f"stages.{i}.{j}.dwconv", own, 1, 7, 7)
            layer(f"stages.{i}.{j}.norm", own)
            layer(f"stages.{i}.{j}.pwconv1", 4 * own, own)
            layer(f"stages.{i}.{j}.pwconv2", own, 4 * own)
            made[f"stages.{i}.{j}.gamma"] = 0.3 * torch.randn(own, generator=generator)
    layer("norm", widths[-1])
    return {**made, **{name.replace("norm.", "norms.3."): made[name] for name in ("norm.weight", "norm.bias")}}


def encode_convnext(official: Tensors, images: Tensor, blocks: tuple[int, ...]) -> Tensor:
    """The pooled feature [B, D] of pictures [B, C, H, W] after the final norm."""
    w, x = {name: tensor.double() for name, tensor in official.items()}, images.double()

    def normed(name: str, x: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def convolved(name: str, x: Tensor, **more: int) -> Tensor:
        return F.conv2d(x, w[f"{name}.weight"], w[f"{name}.bias"], **more)

    for i, count in enumerate(blocks):
        if i == 0:
            x = normed("downsample_layers.0.1", convolved("downsample_layers.0.0", x, stride=4).movedim(1, -1))
        else:
            x = normed(f"downsample_layers.{i}.0", x)
            x = convolved(f"downsample_layers.{i}.1", x.movedim(-1, 1), stride=2).movedim(1, -1)
        for block in (f"stages.{i}.{j}" for j in range(count)):
            inner = convolved(f"{block}.dwconv", x.movedim(-1, 1), padding=3, groups=x.shape[-1]).movedim(1, -1)
            hidden = F.gelu(linear(w, f"{block}.pwconv1", normed(f"{block}.norm", inner)))
            x = x + w[f"{block}.gamma"] * linear(w, f"{block}.pwconv2", hidden)
    return normed("norm", x.mean((1, 2)))
