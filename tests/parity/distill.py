"""What the parity tests of the distilling methods share: heads from official settings and weights."""

from __future__ import annotations

from typing import Any

from parity.conftest import assert_close
from torch import Tensor

from unlabeled.nn.heads import DistillHead

FORWARD, BACKWARD = 1e-5, 2e-5

Tensors = dict[str, Tensor]


def build_head(config: dict[str, Any], weights: Tensors) -> DistillHead:
    """Our head of one official variant, with its weights."""
    separate = config.get("shared_head") is False
    head = DistillHead(
        config["in_dim"],
        config["out_dim"],
        hidden=config["hidden_dim"],
        bottleneck=config["bottleneck_dim"],
        layers=config["nlayers"],
        freeze_gain=config.get("norm_last_layer", True),
        patch_prototypes=config["patch_out_dim"] if separate else None,
        norm=config.get("use_bn", False),
    )
    head.load_state_dict(head_weights(config, weights))
    return head.train()


def head_weights(config: dict[str, Any], weights: Tensors) -> Tensors:
    """Official parameters, buffers or gradients of a head under our names."""
    return {mine: tensor for name, tensor in weights.items() if (mine := head_name(config, name)) is not None}


def head_name(config: dict[str, Any], name: str) -> str | None:
    """Our name of an official one; None for a second name of a shared layer."""
    shared = config.get("shared_head", True)
    last = f"mlp.{2 * (config['nlayers'] - 1)}."
    if config["nlayers"] == 1:  # officially a bare linear layer
        name = name.replace("mlp.", "mlp.0.")
    if name.startswith(("last_layer2.", "mlp2.")):
        return None if shared else f"patch_layer.{name.split('.', 1)[1]}"
    if not config["bottleneck_dim"] and name.startswith(last):
        return name.replace(last, "last_layer.")
    return name


def assert_gradients(module: Any, official: Tensors, zero: tuple[str, ...] = ()) -> None:
    """Every trained parameter has the official gradient, and no other one exists; `zero` are rounding noise."""
    gradients = {name: p.grad for name, p in module.named_parameters() if p.requires_grad}
    assert gradients.keys() == official.keys()
    for name, gradient in official.items():
        mine = gradients[name]
        assert mine is not None, name
        if name in zero:
            assert mine.abs().max() < 1e-6
        else:
            assert_close(mine, gradient, BACKWARD, name)
