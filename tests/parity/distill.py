"""What the parity tests of the distilling methods share: heads from official settings and weights."""

from __future__ import annotations

from typing import Any

import torch
from parity.conftest import Golden, assert_close
from torch import Tensor

from unlabeled.method import Batch, Method, Output, Progress
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.nn.heads import DistillHead
from unlabeled.nn.schedules import Temperature
from unlabeled.train.clip import clip_gradients
from unlabeled.train.optim import param_groups

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


def teacher_temperature(config: dict[str, Any], which: str = "") -> Temperature:
    start, end = config[f"warmup_teacher_temp{which}"], config[f"teacher_temp{which}"]
    return Temperature(start, end, config["warmup_teacher_temp_epochs"])


# ---------------------------------------------------------------- a whole method


def encoder_config(config: dict[str, Any]) -> EncoderConfig:
    assert (config["mlp_ratio"], config["ln_eps"], config["qkv_bias"]) == (4, 1e-6, True)
    return EncoderConfig(
        model="vit_base_patch16_224",
        patch_size=config["patch_size"],
        width=config["embed_dim"],
        depth=config["depth"],
        heads=config["num_heads"],
        positions="learned",
        interpolation="scale",
    )


def method_name(config: dict[str, Any], name: str, encoder: str = "encoder", head: str = "head") -> str | None:
    """Our name of an official parameter of a student or teacher."""
    part, rest = name.split(".", 1)
    if part == "backbone":
        return "mask_token" if rest == "masked_embed" else f"{encoder}.vit.{rest}"
    mine = head_name(config["head"], rest)
    return None if mine is None else f"{head}.{mine}"


def load_both(method: Method, golden: Golden) -> None:
    """Official student and teacher, and centres."""
    state = dict(method.state_dict())
    for which, parts in (("student", ("encoder", "head")), ("teacher", ("teacher", "teacher_head"))):
        for name, tensor in golden.under(f"sd_{which}").items():
            mine = method_name(golden.config, name, *parts)
            if mine is not None:
                assert state.pop(mine).shape == tensor.shape, name
                method.state_dict()[mine].copy_(tensor)
    for name in [name for name in state if "centre" in name]:
        official = "in/center2" if name.startswith("patch_") else "in/center"
        state.pop(name).copy_(golden[official].flatten())
    assert not state, f"the official set has no {sorted(state)}"


def one_step(method: Method, batch: Batch, step: dict[str, Any], epoch: int) -> Output:
    """Forward, backward, clip, AdamW and what follows it, as the engine runs them at the first step of `epoch`.

    The set gives a momentum, not a schedule: at step 0 it is the schedule's start.
    """
    progress = Progress(0, step["epochs"], float(epoch), float(step["epochs"]))
    optimizer = torch.optim.AdamW(param_groups(method, step["weight_decay"]), lr=step["lr"])
    output = method(batch, progress)
    output.loss.backward()
    clip_gradients(method, step["clip_grad"], "tensor")
    for parameter in method.held(progress):
        parameter.grad = None
    optimizer.step()
    method.after_step(progress)
    return output


def assert_after(method: Method, golden: Golden, prefix: str = "after") -> None:
    """Student and teacher after a step, the key third of qkv biases aside: its gradient is rounding noise."""
    state = method.state_dict()
    for which, parts, allowed in (
        ("student", ("encoder", "head"), 2e-4),
        ("teacher", ("teacher", "teacher_head"), 2e-5),
    ):
        for name, official in golden.under(f"{prefix}/{which}").items():
            mine = method_name(golden.config, name, *parts)
            if mine is None:
                continue
            ours = state[mine]
            if name.endswith("qkv.bias"):
                ours, official = (torch.cat([t.chunk(3)[0], t.chunk(3)[2]]) for t in (ours, official))
            error = (ours - official).abs().max().item()
            assert error <= allowed, f"{which} {name} after the step: off by {error:.1e}, allowed {allowed:.0e}"
