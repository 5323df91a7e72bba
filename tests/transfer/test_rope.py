"""Networks with rotary positions, fine-tuned: what learns, and that timm alone says the same."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support import classifying
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, timm_config, write_export
from unlabeled.backbone.weights import load_classifier
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.pretrain.method import Progress
from unlabeled.train.optim import param_groups
from unlabeled.transfer.strategies.lora import ADDED
from unlabeled.transfer.tasks.classify import Classifier

CLASSES, START = 5, Progress(0, 1, 0.0, 1.0)
DINOV3, EVA, PE = "vit_small_plus_patch16_dinov3_qkvb", "eva02_base_patch14_224", "vit_pe_core_tiny_patch16_384"


def make(model: str) -> Encoder:
    torch.manual_seed(0)
    encoder = EncoderConfig(model=model, patch_size=8, width=16, heads=2, depth=2).build((32, 24))
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder


def classifier(model: str, **settings: Any) -> Classifier:
    return Classifier(make(model), classifying(**{"view": View(size=(32, 24)), **settings}), [4] * CLASSES)


def pictures(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, 32, 24, generator=torch.Generator().manual_seed(1))


def stepped(model: Classifier) -> set[str]:
    """Take two steps; returns the names of the parameters that changed."""
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(model, 0.0), lr=0.5)
    batch = Batch([ViewBatch(pictures(5).unsqueeze(0), None)], torch.arange(5), torch.arange(5))
    for _ in range(2):
        model(batch, START).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def assert_timm_agrees(model: Classifier, folder: Path) -> None:
    config = timm_config(model.architecture, model.arguments, model.model.num_features, IMAGENET, CLASSES)
    write_export(folder, model.exported(), config, "")
    alone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        ours = model.eval().predict(pictures())
        torch.testing.assert_close(alone(pictures()), ours, rtol=1e-5, atol=1e-5)
    _, _, weights = load_classifier(folder)
    assert weights.keys() == alone.state_dict().keys()


OTHERS = [(DINOV3, "full", "mean"), (EVA, "full", "mean"), (DINOV3, "frozen", "cls"), (EVA, "lora", "cls")]


@pytest.mark.parametrize(
    ("model", "strategy", "pool"),
    [*((model, how, "own") for model in (DINOV3, EVA, PE) for how in ("full", "frozen", "lora")), *OTHERS],
)
def test_two_steps_of_fine_tuning(model: str, strategy: str, pool: str, tmp_path: Path) -> None:
    method = classifier(model, strategy=strategy, pool=pool)
    before = make(model).vit
    changed = {name.removeprefix("model.") for name in stepped(method)}
    assert {"head.weight", "head.bias"} <= changed
    backbone = {name for name in changed if not name.startswith("head.")}
    if strategy == "frozen":
        assert not backbone
    if strategy == "lora":
        attention = {"attn.q_proj", "attn.k_proj", "attn.v_proj"} if model == EVA else {"attn.qkv"}
        layers = {"attn.proj", "mlp.fc2"} | attention | ({"mlp.fc1"} if model == PE else {"mlp.fc1_g", "mlp.fc1_x"})
        assert {f"blocks.{i}.{layer}.lora_up" for i in (0, 1) for layer in layers} <= backbone
        assert all(name.endswith(ADDED) for name in backbone)
    if strategy == "full":
        still = {name for name, _ in method.model.named_parameters()} - changed
        assert not still or pool == "cls", still
    assert not any(name.endswith("mask_token") for name, _ in before.named_parameters())
    assert_timm_agrees(method, tmp_path)


@pytest.mark.parametrize("model", [DINOV3, EVA])
def test_a_new_norm_stands_after_the_mean_where_none_did(model: str) -> None:
    """MAE's fine-tuning: of a network that has its norm before; the norm of the other is trained already."""
    full, frozen = (classifier(model, strategy=strategy, pool="mean").model for strategy in ("full", "frozen"))
    weight = torch.equal(full.fc_norm.weight, torch.ones(16))
    assert weight == (model == DINOV3) and isinstance(full.norm, nn.Identity)
    assert isinstance(frozen.norm, nn.Identity) == (model == EVA)


def test_an_attention_pool_on_top(tmp_path: Path) -> None:
    method = classifier(EVA, strategy="attentive")
    changed = stepped(method)
    assert changed and all(name.startswith(("model.attn_pool.", "model.head.")) for name in changed)
    assert_timm_agrees(method, tmp_path)
