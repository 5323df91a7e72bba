"""DINOv3's network in evaluation and in training against numbers of the official code."""

from __future__ import annotations

from copy import deepcopy
from pathlib import Path

import pytest
import torch
from parity.golden import Golden, assert_begins, assert_close
from parity.vit import BACKWARD, FORWARD
from torch import Tensor, nn

from unlabeled.backbone.build import build_encoder
from unlabeled.backbone.encoder import Encoder, Tokens
from unlabeled.backbone.importers.dinov3 import _timm_name
from unlabeled.backbone.importing import importers
from unlabeled.nn.patches import PatchMask


class Official(nn.Module):
    """The official weights in our encoder, with what a method adds to it."""

    def __init__(self, golden: Golden) -> None:
        super().__init__()
        weights = dict(golden.under("sd"))
        heads = golden.config.get("num_heads")
        imported = importers()["dinov3"].convert(weights, heads, "teacher")
        eps = golden.config.get("ln_eps", 1e-6)
        self.encoder = build_encoder(imported.architecture, {**imported.arguments, "norm_eps": eps})
        self.encoder.vit.load_state_dict(imported.encoder)
        self.mask_token = nn.Parameter(weights["mask_token"])
        self.local_norm = deepcopy(self.encoder.vit.norm)
        if "local_cls_norm.weight" in weights:
            self.local_norm.load_state_dict({n: weights[f"local_cls_norm.{n}"] for n in ("weight", "bias")})
        else:
            self.local_norm = self.encoder.vit.norm

    def gradient(self, name: str) -> Tensor | None:
        """Of a parameter by its official name; a bias of keys that is masked has none here, and 0 there."""
        own = {"storage_tokens": "reg_token"}.get(name, _timm_name(name))
        if own == "mask_token":
            return self.mask_token.grad
        if own.startswith("local_cls_norm."):
            return self.local_norm.get_parameter(own.removeprefix("local_cls_norm.")).grad
        parameters = dict(self.encoder.vit.named_parameters())
        if own not in parameters and own.endswith("qkv.bias"):
            query, value = (parameters[own.replace("qkv.bias", f"{part}_bias")].grad for part in ("q", "v"))
            assert query is not None and value is not None
            return torch.cat([query, torch.zeros_like(query), value])
        return parameters[own].grad


@pytest.fixture(scope="module")
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


@pytest.fixture(scope="module")
def official(golden: Golden) -> Official:
    return Official(golden).eval()


def assert_tokens(tokens: Tokens, encoder: Encoder, golden: Golden, kind: str) -> None:
    """Class token, registers and patches, as far as the set has them."""
    found = {"cls": tokens.prefix[:, 0], "registers": tokens.prefix[:, 1:], "patches": tokens.patches}
    compared = [name for name in found if f"out/{kind}_{name}" in golden]
    assert {"cls", "patches"} <= set(compared), f"the set lacks tokens of {kind}"
    for name in compared:
        assert_close(found[name], golden[f"out/{kind}_{name}"], FORWARD, f"{kind} {name}")


@torch.no_grad()
def test_evaluation(official: Official, golden: Golden) -> None:
    encoder = official.encoder
    periods = golden["sd/rope_embed.periods"]
    assert_close(encoder.vit.rope.periods, periods, FORWARD, "periods")
    assert_tokens(encoder(golden["in/global"]), encoder, golden, "eval")
    assert_tokens(encoder(golden["in/rectangle"]), encoder, golden, "rectangle")


def test_training(official: Official, golden: Golden) -> None:
    """Large crops with patches hidden, class tokens of small ones through their own norm, and all gradients."""
    encoder = official.train().encoder
    mask = PatchMask(golden["in/mask"], None, None)
    large = encoder(golden["in/global"], replace=mask, fill=official.mask_token)
    small = encoder.prefix(golden["in/local"], official.local_norm)
    assert_tokens(large, encoder, golden, "train_global")
    assert_close(small[:, 0], golden["out/train_local_cls"], FORWARD, "train_local cls")
    probe = (golden["in/weights_patch"] * large.patches).sum()
    for classes in (large.prefix[:, 0], small[:, 0]):
        probe = probe + (golden["in/weights_cls"][: len(classes)] * classes).sum()
    probe.backward()
    assert_close(probe, golden["out/probe_loss"], FORWARD, "loss")
    for name, gradient in golden.some("grad").items():
        mine = official.gradient(name)
        assert mine is not None, f"{name}: no gradient here"
        assert_begins(mine, gradient, BACKWARD, f"gradient of {name}")
