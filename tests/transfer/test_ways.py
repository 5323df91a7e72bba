"""Every way to use a backbone beyond the plain ones: what learns, what stays still, what timm makes of the export."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from support import classifying
from torch import Tensor, nn

from unlabeled.backbone.build import family_of
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.nn.lowrank import ADDED, LowRankLinear
from unlabeled.pretrain.method import Progress
from unlabeled.train.optim import param_groups
from unlabeled.transfer.network import Trained
from unlabeled.transfer.tasks.classify import Classifier

CLASSES, DEPTH = 5, 3
START = Progress(0, 1, 0.0, 1.0)


def encoder(model: str = "vit_tiny_patch16_224") -> Encoder:
    torch.manual_seed(0)
    if model == "test_resnet":
        return EncoderConfig(model=model).build((16, 16))
    positions: Any = "relative" if model.startswith("beit") else "learned"
    shape: Any = {"patch_size": 4, "width": 16, "depth": DEPTH, "heads": 2, "positions": positions}
    return EncoderConfig(model=model, **shape).build((16, 16))


def classifier(model: str = "vit_tiny_patch16_224", trained: Trained | None = None, **settings: Any) -> Classifier:
    config = classifying(**{"view": View(size=16), **settings})
    return Classifier(encoder(model), config, [4] * CLASSES, trained)


def images(n: int = 6) -> Tensor:
    return torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1))


def batch(n: int = 6) -> Batch:
    return Batch([ViewBatch(images(n).unsqueeze(0), None)], torch.arange(n) % CLASSES, torch.arange(n))


def stepped(model: Classifier, steps: int = 2, epoch: float = 0.0) -> set[str]:
    """Take steps as the engine does; returns the names in the state that have changed."""
    before = {name: tensor.clone() for name, tensor in model.train().state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(model, 0.1), lr=1.0)
    progress = Progress(0, 1, epoch, 10.0)
    for _ in range(steps):
        model(batch(), progress).loss.backward()
        for parameter in model.inactive(progress):
            parameter.grad = None
        optimizer.step()
        optimizer.zero_grad()
        model.after_step(progress)
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


def alone(model: Classifier) -> Any:
    """What timm makes of the exported weights."""
    arguments = family_of(model.architecture).in_timm(model.architecture, model.arguments, None).arguments
    twin = timm.create_model(model.architecture, num_classes=CLASSES, **arguments).eval()
    twin.load_state_dict(model.exported(), strict=True)
    return twin


def agrees_with_timm(model: Classifier) -> None:
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(alone(model)(images()), model.predict(images()), rtol=1e-5, atol=1e-5)


def test_attentive_probe_learns_its_pooling_and_head_alone() -> None:
    model = classifier(strategy="attentive")
    assert model.config.pool == "attention"
    changed = stepped(model)
    assert changed and all(name.startswith(("model.attn_pool.", "model.head.")) for name in changed)
    assert {"model.attn_pool.latent", "model.attn_pool.kv.weight", "model.head.weight"} <= changed
    agrees_with_timm(model)


@pytest.mark.parametrize("strategy", ["frozen", "full"])
def test_mean_and_max(strategy: str) -> None:
    model = classifier(strategy=strategy, pool="mean_max").eval()
    tokens = model.model.forward_features(images())[:, 1:]
    pooled = (tokens.mean(1) + tokens.max(1).values) / 2
    torch.testing.assert_close(model.logits(images()), model.head(model.model.fc_norm(pooled)))
    agrees_with_timm(model)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
def test_lora_begins_as_the_backbone_and_merges_into_it(model: str) -> None:
    lora = classifier(model, strategy="lora", pool="mean")
    frozen = classifier(model, strategy="frozen", pool="mean")
    frozen.head.load_state_dict(lora.head.state_dict())
    torch.testing.assert_close(lora.eval().logits(images()), frozen.eval().logits(images()), rtol=0, atol=0)

    changed = stepped(lora)
    assert all(name.startswith("model.head.") or name.endswith(ADDED) for name in changed)
    adapted = {name for name, layer in lora.named_modules() if isinstance(layer, LowRankLinear)}
    layers = ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2")
    assert adapted == {f"model.blocks.{i}.{layer}" for i in range(DEPTH) for layer in layers}
    assert {f"{name}.lora_up" for name in adapted} <= changed
    assert not torch.allclose(lora.eval().logits(images()), frozen.logits(images()), atol=1e-3)
    agrees_with_timm(lora)


def test_lora_targets_rank_and_scale() -> None:
    model = classifier(strategy="lora", rank=2, alpha=6.0, targets=("qkv",))
    layers = [layer for layer in model.modules() if isinstance(layer, LowRankLinear)]
    assert len(layers) == DEPTH and layers[0].lora_down.shape == (2, 16)
    nn.init.normal_(layers[0].lora_up)
    x = torch.randn(4, 16)
    plain = x @ layers[0].weight.T + layers[0].bias
    expected = plain + 3.0 * (layers[0].lora_up @ (layers[0].lora_down @ x.T)).T
    torch.testing.assert_close(layers[0](x), expected)


def test_a_rank_beyond_a_full_matrix_is_refused() -> None:
    with pytest.raises(UserError, match=r"task\.strategy\.rank is 17, but qkv maps 16 to 48 .* at most 16"):
        classifier(strategy="lora", rank=17)
    classifier(strategy="lora", rank=16)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategy": "lora", "pool": "mean"}, "the network 'test_resnet' has no qkv, proj"),
        ({"strategy": "attentive"}, "attention"),
        ({"strategy": "full", "pool": "cls"}, "no class token"),
    ],
)
def test_what_a_cnn_does_not_have_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        classifier("test_resnet", **settings)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"strategy": "attentive", "pool": "mean"}, "attentive pools by attention: leave pool out, found mean"),
        ({"shots": 2, "fraction": 0.5}, r"expected shots or a fraction, found both \(2, 0.5\)"),
    ],
)
def test_what_contradicts_itself_is_refused(settings: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        classifying(**settings)


def test_gradual_unfreezes_one_block_after_another() -> None:
    settings: dict[str, Any] = {"strategy": "gradual", "pool": "mean", "unfreeze_every": 2.0}
    for epoch, blocks, embeddings in (
        (0.0, 0, False),
        (1.9, 0, False),
        (2.0, 1, False),
        (6.0, 3, False),
        (8.0, 3, True),
    ):
        changed = stepped(classifier(**settings), 1, epoch)
        learning = {int(name.split(".")[2]) for name in changed if name.startswith("model.blocks.")}
        assert learning == set(range(DEPTH - blocks, DEPTH)), epoch
        assert {"model.head.weight", "model.fc_norm.weight"} <= changed
        assert ("model.patch_embed.proj.weight" in changed) == embeddings


def test_running_statistics_of_frozen_layers_stay() -> None:
    model = classifier("test_resnet", strategy="gradual", pool="mean")
    top = max(model.layers.values())
    statistics = {name for name, _ in model.named_buffers() if name.endswith("running_mean")}
    for epoch in (0.0, 1.0, float(top)):
        changed = stepped(classifier("test_resnet", strategy="gradual", pool="mean"), 1, epoch)
        learning = {name for name in statistics if top - depth_of(model, name) <= epoch}
        assert statistics & changed == learning, epoch
    assert learning == statistics


def depth_of(model: Classifier, buffer: str) -> int:
    return model.layers[buffer.removeprefix("model.").replace("running_mean", "weight")]


def test_frozen_running_statistics_stay() -> None:
    changed = stepped(classifier("test_resnet", strategy="frozen", pool="mean"))
    assert changed and all(name.startswith("model.fc.") for name in changed)


@pytest.mark.parametrize("strategy", ["full", "linear", "lora"])
def test_averaged_weights_are_scored_and_exported(strategy: str) -> None:
    model = classifier(strategy=strategy, ema=0.9)
    assert model.average is not None
    expected = {name: p.clone() for name, p in model.model.named_parameters()}
    for _ in range(3):
        stepped(model, 1)
        for name, parameter in model.model.named_parameters():
            expected[name] = 0.9 * expected[name] + 0.1 * parameter.detach()
    for name, parameter in model.average.named_parameters():
        torch.testing.assert_close(parameter, expected[name], msg=name)
    assert not any(p.requires_grad for p in model.average.parameters()) and not model.average.training
    model.eval()
    assert not torch.allclose(model.predict(images()), model.logits(images()), atol=1e-4)
    agrees_with_timm(model)


def test_averaged_weights_take_running_statistics() -> None:
    model = classifier("test_resnet", strategy="full", pool="mean", ema=0.9)
    stepped(model, 1)
    assert model.average is not None
    for own, source in zip(model.average.buffers(), model.model.buffers(), strict=True):
        assert torch.equal(own, source)


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "test_resnet", "beit_base_patch16_224"])
def test_retraining_replaces_the_head_and_nothing_else(model: str) -> None:
    first = classifier(model, strategy="full", pool="mean")
    stepped(first)
    trained = Trained(first.arguments, first.exported())
    second = classifier(model, trained, strategy="retrain")
    assert Classifier(encoder(model), second.config, [4] * 7, trained).head.out_features == 7
    assert isinstance(second.model.get_classifier(), nn.Linear)
    changed = stepped(second)
    prefix = "model.fc." if model == "test_resnet" else "model.head."
    assert changed == {f"{prefix}weight", f"{prefix}bias"}
    rest = {name: t for name, t in first.exported().items() if not f"model.{name}".startswith(prefix)}
    for name, tensor in rest.items():
        assert torch.equal(second.state_dict()[f"model.{name}"], tensor), name
    agrees_with_timm(second)


def test_head_scale_comes_after_the_draw() -> None:
    # a normal of deviation 2 that is cut at 2 has one of 1.08
    whole, small = classifier(head_std=2.0), classifier(head_std=2.0, head_scale=0.001)
    torch.testing.assert_close(small.head.weight, whole.head.weight * 0.001)
    assert whole.head.weight.std().item() == pytest.approx(1.08, abs=0.2) and not whole.head.bias.any()
