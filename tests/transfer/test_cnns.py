"""CNNs on disk and fine-tuned: timm alone reads them and says what we say."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from begun import load_method
from support import classifying
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, export_encoder, timm_config, write_export
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods import mocov3
from unlabeled.train.optim import param_groups
from unlabeled.train.state import split_heads
from unlabeled.transfer.tasks.classify import Classifier

CLASSES, SIDE = 5, 64
START = Progress(0, 1, 0.0, 1.0)
MODELS = ["resnet50", "efficientnet_b0"]
SMALL = ["test_resnet", "test_efficientnet"]


def stirred(encoder: Encoder) -> Encoder:
    """Running statistics that are not those of a new network."""
    for name, buffer in encoder.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, *((0.5, 2.0) if name.endswith("var") else (-0.3, 0.3)))
    return encoder


def make(model: str, channels: int = 3) -> Encoder:
    torch.manual_seed(0)
    return stirred(EncoderConfig(model=model, channels=channels).build((SIDE, SIDE)))


def classifier(model: str, strategy: str = "full", **settings: Any) -> Classifier:
    return Classifier(
        make(model),
        classifying(**{"strategy": strategy, "pool": "mean", "view": View(size=SIDE), **settings}),
        [4] * CLASSES,
    )


def pictures(rows: int = 3, channels: int = 3) -> Tensor:
    return torch.randn(rows, channels, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def batch(rows: int = 4) -> Batch:
    return Batch([ViewBatch(pictures(rows).unsqueeze(0), None)], torch.arange(rows) % CLASSES, torch.arange(rows))


def timm_alone(folder: Path, images: Tensor) -> Tensor:
    alone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    out: Tensor = alone(images)
    return out


@pytest.mark.parametrize("model", MODELS)
def test_timm_alone_gives_our_features(model: str, tmp_path: Path) -> None:
    encoder = make(model).eval()
    export_encoder(tmp_path / "export", encoder, IMAGENET, "# card\n", {})
    with torch.no_grad():
        ours = encoder.feature(pictures())
        torch.testing.assert_close(timm_alone(tmp_path / "export", pictures()), ours, rtol=0, atol=1e-5)
        torch.testing.assert_close(load_encoder(tmp_path / "export").eval().feature(pictures()), ours)


@pytest.mark.parametrize("strategy", ["linear", "full"])
@pytest.mark.parametrize("model", MODELS)
def test_timm_alone_gives_our_logits(model: str, strategy: str, tmp_path: Path) -> None:
    method = classifier(model, strategy).train()
    with torch.no_grad():
        method(batch(), START)
        method.eval()
        assert (method.probe_norm is not None) == (strategy == "linear")
        config = timm_config(method.architecture, method.arguments, method.model.num_features, IMAGENET, CLASSES)
        write_export(tmp_path / "export", method.exported(), config, "# card\n")
        ours = method.logits(pictures())
    assert ours.shape == (3, CLASSES) and ours.abs().max() > 1e-3
    torch.testing.assert_close(timm_alone(tmp_path / "export", pictures()), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("model", "first", "last"), [("resnet50", "conv1", "fc"), ("efficientnet_b0", "conv_stem", "classifier")]
)
def test_config_json_is_timms(model: str, first: str, last: str, tmp_path: Path) -> None:
    with torch.device("meta"):
        encoder = EncoderConfig(model=model).build((96, SIDE))
    config = timm_config(model, encoder.arguments, encoder.width, IMAGENET)
    told = config["pretrained_cfg"]
    assert (told["first_conv"], told["classifier"], told["pool_size"]) == (first, last, [3, 2])
    assert told["input_size"] == [3, 96, SIDE] and config["global_pool"] == "avg"
    assert config["model_args"] == {"in_chans": 3}
    json.dumps(config)


@pytest.mark.parametrize("model", SMALL)
def test_other_sizes_channels_and_random_weights(model: str, tmp_path: Path) -> None:
    encoder = make(model).eval()
    export_encoder(tmp_path, encoder, IMAGENET, "# card\n", {})
    assert load_encoder(tmp_path).image_size == (SIDE, SIDE)
    larger, grey = load_encoder(tmp_path, image_size=96), load_encoder(tmp_path, channels=1).eval()
    assert larger.image_size == (96, 96)
    images = pictures(channels=1)
    with torch.no_grad():
        expected = encoder.feature(images.expand(-1, 3, -1, -1))
        torch.testing.assert_close(grey.feature(images), expected, rtol=1e-4, atol=1e-5)
    scratch = load_encoder(f"scratch:{tmp_path}")
    assert scratch.vit.state_dict().keys() == encoder.vit.state_dict().keys()
    assert not scratch.vit.bn1.running_mean.any() and encoder.vit.bn1.running_mean.any()


def test_pretraining_goes_on_from_an_export(tmp_path: Path) -> None:
    view = View(size=SIDE)
    config = mocov3.Config(first=view, second=view, encoder=EncoderConfig(model="test_resnet"), hidden=16, dim=8)
    method, other = config.build(), config.build()
    stirred(method.encoder)
    encoder, heads = split_heads(method)
    export_encoder(tmp_path / "export", encoder, IMAGENET, "# card\n", heads)
    load_method(other, tmp_path / "export")
    for name, tensor in method.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


@pytest.mark.parametrize("strategy", ["frozen", "linear", "full", "differential"])
@pytest.mark.parametrize("model", SMALL)
def test_only_the_parts_that_should_learn_do(model: str, strategy: str) -> None:
    method = classifier(model, strategy).train()
    assert bool(method.batch_statistics()) == (strategy != "frozen")
    assert not any(isinstance(part, nn.BatchNorm2d) for part in method.modules()), "a norm of each process alone"
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    optimizer = torch.optim.SGD(param_groups(method, 0.0), lr=1.0)
    method(batch(), START).loss.backward()
    optimizer.step()
    changed = {name for name, tensor in method.state_dict().items() if not torch.equal(tensor, before[name])}
    head = {"test_resnet": "model.fc.", "test_efficientnet": "model.classifier."}[model]
    backbone = {name for name in changed if name.startswith("model.") and not name.startswith(head)}
    assert {f"{head}weight", f"{head}bias"} <= changed
    # running statistics too: a frozen backbone's stay
    assert bool(backbone) == (strategy in ("full", "differential"))


@pytest.mark.parametrize(
    ("model", "expected"),
    [
        ("resnet50", {"fc.weight": 0, "layer4.2.bn3.bias": 1, "layer1.0.conv1.weight": 4, "conv1.weight": 5}),
        (
            "efficientnet_b0",
            {"classifier.weight": 0, "conv_head.weight": 1, "blocks.0.0.conv_dw.weight": 7, "conv_stem.weight": 8},
        ),
    ],
)
def test_rates_fall_by_stage(model: str, expected: dict[str, int]) -> None:
    method = classifier(model, "differential", backbone_lr=0.5, layer_decay=0.1)
    for name, above in expected.items():
        assert method.lr_scale(f"model.{name}") == pytest.approx(0.5 * 0.1**above if above else 1.0), name


def test_a_class_token_is_asked_of_a_cnn() -> None:
    with pytest.raises(UserError, match=r"'test_resnet' has no class token\. Set task\.pool=mean"):
        classifier("test_resnet", pool="cls")


def test_attention_is_asked_of_a_cnn() -> None:
    with pytest.raises(UserError, match=r"task\.strategy\.name=attentive always has it.*task\.strategy\.name=linear"):
        classifier("test_resnet", strategy="attentive", pool="attention")


def test_a_cnn_is_fine_tuned_on_crops_of_any_size(tmp_path: Path) -> None:
    from unlabeled.recipe import parse
    from unlabeled.stages.finetune import STAGE, FinetuneRecipe

    export_encoder(tmp_path, make("test_resnet"), IMAGENET, "card", {})
    text = (
        f"name: any\nencoder: {tmp_path}\ndata: {{name: shapes, train_size: 20, val_size: 10}}\n"
        "task: {pool: mean, view: {size: 45}}\n"
    )
    recipe = parse(FinetuneRecipe, text)
    assert STAGE.job(recipe, Opened(recipe.data)).dataset.views[0].shape == (45, 45)


def test_timms_own_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model
    monkeypatch.setattr(timm, "create_model", lambda name, pretrained=False, **rest: create(name, **rest))
    encoder = load_encoder("timm:test_resnet.r160_in1k", image_size=SIDE)
    assert encoder.model == "test_resnet" and encoder.image_size == (SIDE, SIDE)
    assert load_encoder("timm:test_resnet").image_size == (160, 160)


def test_drop_path_reaches_the_blocks() -> None:
    method = classifier("resnet50", drop_path=0.2)
    rates = {part.drop_prob for part in method.modules() if type(part).__name__ == "DropPath"}
    assert max(rates) == pytest.approx(0.2)
