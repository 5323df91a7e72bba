"""Fine-tuning: which parts learn and how fast, what is exported, and the loss."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from support import classifying

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, timm_config, write_export
from unlabeled.backbone.weights import load_classifier
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.nn.mixing import Mix
from unlabeled.pretrain.method import Progress
from unlabeled.train.optim import param_groups
from unlabeled.train.optimizers.lars import LARS
from unlabeled.transfer.losses import effective_weights, smooth
from unlabeled.transfer.network import Trained, retrained
from unlabeled.transfer.tasks.classify import Classifier

CLASSES = 5
START = Progress(0, 1, 0.0, 1.0)


def classifier(counts: Sequence[int] = (4,) * CLASSES, **settings: Any) -> Classifier:
    torch.manual_seed(0)
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=3, heads=2).build((16, 16))
    return Classifier(encoder, classifying(view=View(size=16, scale=(0.5, 1)), **settings), counts)


def batch(n: int = 6) -> Batch:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(1, n, 3, 16, 16, generator=generator)
    return Batch([ViewBatch(images, None)], torch.arange(n) % CLASSES, torch.arange(n))


def plain(model: Classifier) -> Any:
    """What timm makes of the exported weights."""
    twin = timm.create_model(model.architecture, num_classes=CLASSES, **model.arguments).eval()
    twin.load_state_dict(model.exported(), strict=True)
    return twin


@pytest.mark.parametrize("strategy", ["frozen", "linear", "full", "differential"])
@pytest.mark.parametrize("pool", ["cls", "mean"])
def test_only_the_parts_that_should_learn_do(strategy: str, pool: str) -> None:
    model = classifier(strategy=strategy, pool=pool).train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(model, 0.0), lr=1.0)
    model(batch(), START).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}
    backbone = {name for name in changed if name.startswith("model.") and not name.startswith("model.head.")}
    assert {"model.head.weight", "model.head.bias"} <= changed
    assert bool(backbone) == (strategy in ("full", "differential"))


@pytest.mark.parametrize("strategy", ["differential", "gradual"])
def test_rates_fall_with_depth(strategy: str) -> None:
    settings = {"backbone_lr": 0.5, "layer_decay": 0.1}
    model = classifier(strategy=strategy, **settings)
    scale = {name.removeprefix("model."): model.lr_scale(name) for name, _ in model.named_parameters()}
    assert scale["head.weight"] == 1.0
    assert scale["norm.weight"] == pytest.approx(0.5)
    assert scale["blocks.2.attn.qkv.weight"] == pytest.approx(0.05)
    assert scale["blocks.0.attn.qkv.weight"] == pytest.approx(0.0005)
    for name in ("cls_token", "pos_embed", "patch_embed.proj.weight"):
        assert scale[name] == pytest.approx(0.00005), name
    assert classifier(strategy=strategy, pool="mean", **settings).lr_scale("model.fc_norm.weight") == 1.0
    full = classifier(strategy="full")
    assert {full.lr_scale(f"model.{name}") for name in scale} == {1.0}


def test_norms_biases_tokens_and_positions_do_not_decay() -> None:
    model = classifier(strategy="attentive")
    still = {name for name, parameter in model.named_parameters() if not model.decays(name, parameter)}
    tokens = {"model.cls_token", "model.pos_embed", "model.attn_pool.latent"}
    assert still == tokens | {name for name, parameter in model.named_parameters() if parameter.ndim == 1}


def test_drop_path_rises_to_its_rate_in_the_last_block() -> None:
    parts = [part for part in classifier(drop_path=0.2).modules() if type(part).__name__ == "DropPath"]
    assert [part.drop_prob for part in parts] == pytest.approx([0.1, 0.1, 0.2, 0.2])


def test_flooding_is_of_a_whole_steps_loss() -> None:
    assert classifier(flood=0.5).batch_statistics() == ("flooding",) and not classifier().batch_statistics()


def test_loss_is_smoothed_cross_entropy() -> None:
    model = classifier(strategy="full", label_smoothing=0.1).eval()
    logits = model.logits(batch().views[0].pixels[0])
    expected = F.cross_entropy(logits, batch().labels, label_smoothing=0.1)
    found = model(batch(), START)
    torch.testing.assert_close(found.loss, expected)
    right = [int(row.argmax()) == label for row, label in zip(logits, batch().labels.tolist(), strict=True)]
    assert found.metrics["train_accuracy"].item() == pytest.approx(100 * sum(right) / 6) and 0 < sum(right) < 6


def test_a_mixed_pair_is_learnt_as_so_much_of_one_and_the_rest_of_the_other() -> None:
    model, unmixed = classifier(label_smoothing=0.1).eval(), batch(4)
    share = torch.tensor([0.7, 0.7, 0.2, 0.2])
    own, other = unmixed.views[0].pixels[0], unmixed.views[0].pixels[0][[1, 0, 3, 2]]
    logits = model.logits(torch.stack([s * a + (1 - s) * b for s, a, b in zip(share, own, other, strict=True)]))
    of_own, of_other = (
        F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="none")
        for labels in (unmixed.labels, unmixed.labels[[1, 0, 3, 2]])
    )
    mixed = unmixed._replace(mix=Mix(share, torch.zeros(4, 4, dtype=torch.int64)))
    torch.testing.assert_close(model(mixed, START).loss, (share * of_own + (1 - share) * of_other).mean())


def test_priors_and_weights_of_classes_are_of_the_loss_alone() -> None:
    counts = (50, 20, 5, 3, 1)
    model = classifier(counts, logit_adjustment=1.5, effective_number=0.9, ema=0.5).eval()
    images, labels = batch().views[0].pixels[0], batch().labels
    logits = model.logits(images)
    torch.testing.assert_close(logits, plain(model)(images))
    torch.testing.assert_close(model.predict(images), logits)
    priors, weights = torch.tensor(counts) / sum(counts), effective_weights(torch.tensor(counts), 0.9)
    each = F.cross_entropy(logits + 1.5 * priors.log(), labels, reduction="none")
    torch.testing.assert_close(model(batch(), START).loss, (weights[labels] * each).mean())


def test_probe_is_batchnorm_without_affine_then_linear_and_folds_into_timm() -> None:
    model = classifier(strategy="linear", pool="cls").train()
    for _ in range(3):
        model(batch(), START)
    features = model.model.forward_head(model.model.forward_features(batch().views[0].pixels[0]), pre_logits=True)
    expected = model.model.head(F.batch_norm(features, None, None, training=True, eps=1e-6))
    torch.testing.assert_close(model.logits(batch().views[0].pixels[0]), expected, rtol=1e-4, atol=1e-4)
    model.eval()
    images = batch().views[0].pixels[0]
    torch.testing.assert_close(plain(model)(images), model.logits(images), rtol=1e-4, atol=1e-5)


def test_mean_pooling_gets_a_fresh_norm_only_when_the_backbone_learns() -> None:
    full, frozen = classifier(strategy="full", pool="mean"), classifier(strategy="frozen", pool="mean")
    assert isinstance(full.model.norm, torch.nn.Identity) and torch.equal(full.model.fc_norm.weight, torch.ones(16))
    assert isinstance(frozen.model.fc_norm, torch.nn.Identity) and not isinstance(frozen.model.norm, torch.nn.Identity)


def test_smooth_against_a_loop() -> None:
    targets = smooth(torch.tensor([2, 0]), 4, 0.2)
    for row, label in zip(targets, (2, 0), strict=True):
        for i, value in enumerate(row):
            assert value.item() == pytest.approx(0.05 + (0.8 if i == label else 0.0))


def test_lars_against_a_loop() -> None:
    weight, bias = torch.nn.Parameter(torch.randn(3, 4)), torch.nn.Parameter(torch.randn(3))
    optimizer = LARS([{"params": [weight, bias], "weight_decay": 0.1}], lr=0.5, momentum=0.8, trust=0.01)
    expected = {"w": weight.detach().clone(), "b": bias.detach().clone()}
    velocity = {"w": torch.zeros(3, 4), "b": torch.zeros(3)}
    for step in range(3):
        weight.grad, bias.grad = torch.full((3, 4), step + 1.0), torch.full((3,), step + 2.0)
        decayed = weight.grad + 0.1 * expected["w"]
        scaled = decayed * (0.01 * expected["w"].norm() / decayed.norm())
        for name, gradient in (("w", scaled), ("b", bias.grad)):
            velocity[name] = 0.8 * velocity[name] + gradient
            expected[name] = expected[name] - 0.5 * velocity[name]
        optimizer.step()
    torch.testing.assert_close(weight.detach(), expected["w"])
    torch.testing.assert_close(bias.detach(), expected["b"])


def test_classifier_builds_as_timm_does() -> None:
    model = classifier(strategy="full", pool="mean")
    twin = timm.create_model(model.architecture, num_classes=CLASSES, **model.arguments)
    assert twin.state_dict().keys() == model.model.state_dict().keys()


@pytest.mark.parametrize("strategy", ["frozen", "full"])
@pytest.mark.parametrize("positions", ["relative", "relative_learned", "learned"])
def test_relative_positions_get_a_table_in_every_block(strategy: str, positions: Any, tmp_path: Path) -> None:
    config = EncoderConfig(model="beit_base_patch16_224", patch_size=4, width=16, depth=3, heads=2, positions=positions)
    encoder = config.build((16, 16)).eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    settings: Any = {"strategy": strategy, "pool": "mean", "view": View(size=16)}
    model = Classifier(encoder, classifying(**settings), [4] * CLASSES).eval()
    tables = [name for name, _ in model.named_parameters() if "relative_position_bias_table" in name]
    expected = [f"model.blocks.{i}.attn.relative_position_bias_table" for i in range(3)]
    assert tables == ([] if positions == "learned" else expected)
    assert all(model.decays(name, model.get_parameter(name)) for name in tables)

    # the same features: normed before the mean when frozen, after it when the backbone learns
    images = batch().views[0].pixels[0]
    pooled = model.model.forward_head(model.model.forward_features(images), pre_logits=True)
    assert isinstance(model.model.fc_norm, torch.nn.Identity) == (strategy == "frozen")
    if strategy == "full":
        encoder.vit.norm = torch.nn.Identity()
        torch.testing.assert_close(pooled, model.model.fc_norm(encoder(images).pool("mean")))
    else:
        torch.testing.assert_close(pooled, encoder(images).pool("mean"))

    # a classifier's export is loaded again, to be given another head
    prepared = timm_config(model.architecture, model.arguments, 16, IMAGENET, CLASSES)
    write_export(tmp_path / "out", model.exported(), prepared, "")
    again, arguments, weights = load_classifier(tmp_path / "out")
    other = retrained(again, Trained(arguments, weights), 2)
    torch.testing.assert_close(other.forward_features(images), model.model.forward_features(images))


def test_relative_positions_at_another_size() -> None:
    config = EncoderConfig(
        model="beit_base_patch16_224", patch_size=4, width=16, depth=1, heads=2, positions="relative"
    )
    encoder = config.build((16, 16))
    torch.nn.init.normal_(encoder.vit.rel_pos_bias.relative_position_bias_table)
    model = Classifier(encoder, classifying(view=View(size=24)), [4] * CLASSES)
    before, after = encoder.vit.rel_pos_bias.relative_position_bias_table, model.model.blocks[0].attn
    assert after.relative_position_bias_table.shape == (11 * 11 + 3, 2)
    assert torch.equal(after.relative_position_bias_table[-3:], before[-3:])
    assert model.logits(torch.randn(2, 3, 24, 24)).shape == (2, CLASSES)
