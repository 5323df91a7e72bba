"""What the parity tests of all methods share about transformers: their sizes come from the official weights."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from parity.golden import Golden, Settings, assert_close
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.pretrain.method import Method, Progress
from unlabeled.train.optim import param_groups

FORWARD, BACKWARD = 1e-5, 2e-5
START = Progress(0, 1, 0.0, 1.0)

Shapes = Mapping[str, tuple[int, ...]]


def shapes_under(golden: Golden, prefix: str) -> Shapes:
    """Shapes of the tensors below `prefix`, by what follows; comparing nothing, they count as unread."""
    return {key.removeprefix(prefix): golden.shape(key) for key in golden.names() if key.startswith(prefix)}


def depth_of(names: Iterable[str], blocks: str = "blocks.") -> int:
    """How many blocks names speak of."""
    return 1 + max(int(name.removeprefix(blocks).split(".")[0]) for name in names if name.startswith(blocks))


def heads_in(settings: Settings, width: int, name: str = "num_heads") -> int:
    """Attention heads, which no shape tells. Where the settings are silent: 16 wide, as in the tiny networks shown."""
    return settings.get(name, max(1, width // 16))


def mlp_ratio(hidden: int, width: int) -> float:
    """A ratio whose product with the width, rounded down, is the MLP's width."""
    return hidden / width if int(width * (hidden / width)) == hidden else (hidden + 0.5) / width


def encoder_config(
    shapes: Shapes, settings: Settings, model: str = "vit_base_patch16_224", **more: Any
) -> EncoderConfig:
    """Our encoder of an official one's shapes, by official names of its weights."""
    width, channels, patch, _ = shapes["patch_embed.proj.weight"]
    return EncoderConfig(
        model=model,
        patch_size=patch,
        width=width,
        depth=depth_of(shapes),
        heads=heads_in(settings, width),
        mlp_ratio=mlp_ratio(shapes["blocks.0.mlp.fc1.weight"][0], width),
        qkv_bias="blocks.0.attn.qkv.bias" in shapes or "blocks.0.attn.q_bias" in shapes,
        channels=channels,
        **more,
    )


def use_eps(model: nn.Module, settings: Settings) -> None:
    """Give all layer norms the set's eps, 1e-6 where it names none."""
    for module in model.modules():
        if isinstance(module, nn.LayerNorm):
            module.eps = settings.get("ln_eps", 1e-6)


def assert_gradients(
    model: nn.Module,
    official: Mapping[str, Tensor],
    ours: Callable[[str], str],
    zero: Iterable[str] = (),
    as_ours: Callable[[str, Tensor], Tensor] = lambda name, tensor: tensor,
    tolerance: float = BACKWARD,
) -> None:
    """The official gradients, all or those that a set stores, at our parameters.

    Args:
        model: after backward.
        official: by official name.
        ours: our name of an official one.
        zero: official names whose gradients are rounding noise.
        as_ours: an official gradient in our layout.
        tolerance: as in `assert_close`.
    """
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    for name, tensor in official.items():
        mine = ours(name)
        assert mine in gradients, f"{name}: officially trained, here there is no trained {mine}"
        gradient = gradients[mine]
        assert gradient is not None, f"{name}: no gradient here"
        if name in zero:
            assert max(gradient.abs().max(), tensor.abs().max()) < 1e-5, f"{name}: expected nothing but noise"
        else:
            assert_gradient(gradient, as_ours(name, tensor), name, tolerance)


def assert_gradient(ours: Tensor, official: Tensor, name: str, tolerance: float = BACKWARD) -> None:
    """One gradient. The key third of a qkv bias is rounding noise, as keys shift all logits of a query alike."""
    if name.endswith("attn.qkv.bias"):
        assert ours.chunk(3)[1].abs().max() <= 1e-3 * ours.abs().max(), f"{name}: keys have a gradient"
        ours, official = without_keys(ours), without_keys(official)
    assert_close(ours, official, tolerance, f"gradient of {name}")


def without_keys(bias: Tensor) -> Tensor:
    """The query and value thirds of a qkv bias."""
    query, _, value = bias.chunk(3)
    return torch.cat([query, value])


def names_by_decay(method: Method) -> dict[bool, set[str]]:
    """Our names of parameters that decay, and of those that do not."""
    names = {id(p): name for name, p in method.named_parameters()}
    groups: dict[bool, set[str]] = {True: set(), False: set()}
    for group in param_groups(method, weight_decay=0.05):
        groups[group["weight_decay"] > 0] |= {names[id(p)] for p in group["params"]}
    return groups
