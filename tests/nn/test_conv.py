"""CNNs as encoders: timm's own feature maps, whatever else timm does left alone."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.backbone.build import build_encoder, untrained
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.families import maps
from unlabeled.backbone.families.maps import Maps, stages, stride_of, takes_channels_last
from unlabeled.nn.batchnorm import BatchNorm2d, normalises, synchronise_
from unlabeled.nn.patches import PatchMask

# stem, stages and norms of resnet50 and of efficientnet_b0, in miniature
RESNET, EFFICIENTNET = "test_resnet", "test_efficientnet"
MODELS = [RESNET, EFFICIENTNET]


def make(model: str, size: tuple[int, int] = (64, 64)) -> tuple[Encoder, Any]:
    """An encoder and the timm model it wraps, untouched, with the same weights; nothing at zero or one."""
    torch.manual_seed(0)
    alone = timm.create_model(model, num_classes=0)
    for name, tensor in alone.state_dict().items():
        if name.endswith("running_var"):
            nn.init.uniform_(tensor, 0.5, 2.0)
        elif tensor.is_floating_point():
            nn.init.normal_(tensor, std=0.2)
    encoder = EncoderConfig(model=model).build(size)
    encoder.vit.load_state_dict(alone.state_dict())
    return encoder, alone


def pictures(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("model", MODELS)
def test_tokens_are_timms_feature_map_and_their_mean_timms_feature(model: str, training: bool) -> None:
    encoder, alone = make(model)
    images = pictures(3, 3, 64, 96)
    encoder.train(training)
    tokens = encoder(images)
    expected = alone.train(training).forward_features(images)
    assert tokens.prefix.shape == (3, 0, encoder.width) and tokens.grid == (2, 3)
    for row in range(2):
        for column in range(3):
            torch.testing.assert_close(tokens.patches[:, 3 * row + column], expected[:, :, row, column])
    torch.testing.assert_close(encoder.feature(images), alone(images))
    assert encoder.state_dict().keys() == {f"vit.{name}" for name in alone.state_dict()}
    for name, tensor in alone.state_dict().items():
        torch.testing.assert_close(encoder.vit.state_dict()[name], tensor, msg=name)


@pytest.mark.parametrize(("model", "width"), [("resnet50", 2048), ("efficientnet_b0", 1280)])
def test_a_recipe_names_no_more_than_the_model(model: str, width: int) -> None:
    config = EncoderConfig(model=model, channels=4, drop_path=0.1)
    assert config.patch_size == 32
    with torch.device("meta"):
        encoder = config.build((224, 160))
    assert isinstance(encoder, Maps) and normalises(encoder) and not encoder.has_class_token
    assert (encoder.width, encoder.patch_size, encoder.channels, encoder.num_prefix) == (width, 32, 4, 0)
    assert encoder.native_grid == (7, 5) and encoder.image_size == (224, 160)
    # what was resolved reads as what was meant
    assert EncoderConfig(**config.model_dump()) == config


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"width": 64}, "the network 'resnet50' has no width: leave it out, found 64"),
        ({"positions": "learned"}, "has no positions: leave it out, found learned"),
        ({"registers": 4}, "has no registers"),
        ({"patch_size": 16}, "the patches of the network 'resnet50' are its stride, 32: leave it out, found 16"),
        (
            {"model": "densenet121", "zero_init": True},
            "timm has no choice of how the norms of the network 'densenet121'",
        ),
        ({"model": "vit_tiny_patch16_224", "zero_init": False}, "has no norms that may begin at zero: leave it out"),
        ({"model": "densenet121", "stride": 8}, "timm cannot change the stride of the network 'densenet121': leave it"),
        ({"model": "vit_tiny_patch16_224", "stride": 8}, "has no stages to dilate: leave it out, found 8"),
        ({"stride": 8, "patch_size": 16}, "the patches of the network 'resnet50' are its stride, 8: leave it out"),
        ({"model": "resnet5"}, "timm has no model 'resnet5'. Did you mean 'resnet"),
    ],
)
def test_impossible_cnns_are_refused(fields: dict[str, Any], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        EncoderConfig(**{"model": "resnet50", **fields})


@pytest.mark.parametrize(("zero_init", "begins"), [(None, 0.0), (True, 0.0), (False, 1.0)])
def test_the_last_norms_of_blocks_begin_as_the_recipe_says(zero_init: bool | None, begins: float) -> None:
    def weights(of: Maps) -> set[float]:
        return {value for block in of.vit.layer1 for value in block.bn2.weight.tolist()}

    torch.manual_seed(0)
    encoder = EncoderConfig(model=RESNET, zero_init=zero_init).build((64, 64))
    torch.manual_seed(0)
    usual = EncoderConfig(model=RESNET).build((64, 64))
    twin = untrained(encoder.model, encoder.arguments)
    assert isinstance(encoder, Maps) and isinstance(twin, Maps) and isinstance(usual, Maps)
    assert weights(encoder) == weights(twin) == {begins}
    assert torch.equal(encoder.vit.conv1[0].weight, usual.vit.conv1[0].weight), "nothing else is drawn"


def test_a_stride_for_small_pictures_keeps_maps_of_the_later_stages_large() -> None:
    config = EncoderConfig(model=RESNET, stride=8)
    encoder = config.build((32, 64))
    assert (config.patch_size, encoder.patch_size, encoder.native_grid) == (8, 8, (4, 8))
    assert encoder(torch.zeros(1, 3, 16, 24)).grid == (2, 3)
    plain = EncoderConfig(model=RESNET).build((32, 64))
    encoder.load_state_dict(plain.state_dict())  # the same weights
    assert EncoderConfig(**config.model_dump()) == config


# a mean, a norm after it, layers after it, a class token, no map at all
LAYOUTS = {
    "test_resnet": ("channels_first", "mean"),
    "test_convnext": ("channels_first", "own"),
    "mobilenetv3_small_050": ("channels_first", "own"),
    "test_mambaout": ("channels_last", "own"),
    "cait_xxs24_224": ("sequence", "cls"),
    "coat_tiny": ("vector", "own"),
}


@pytest.mark.parametrize(("model", "expected"), LAYOUTS.items())
def test_the_feature_is_timms_whatever_comes_after_the_map(model: str, expected: tuple[str, str]) -> None:
    torch.manual_seed(0)
    size = (224, 224) if model in ("cait_xxs24_224", "coat_tiny") else (64, 96)
    encoder = EncoderConfig(model=model).build(size).eval()
    assert isinstance(encoder, Maps) and (encoder.outline.layout, encoder.default_pool) == expected
    images = pictures(2, 3, *size)
    with torch.no_grad():
        raw = encoder.vit.forward_features(images)
        pooled, tokens = encoder.vit.forward_head(raw, pre_logits=True), encoder(images)
        torch.testing.assert_close(encoder.feature(images), pooled, rtol=0, atol=1e-5 * pooled.abs().max().item())
        torch.testing.assert_close(encoder.own(tokens), pooled)
    assert pooled.shape == (2, encoder.feature_width)
    assert tokens.patches.shape == (2, tokens.grid[0] * tokens.grid[1], encoder.width)
    layers = {name: encoder.layer_of(name) for name, _ in encoder.vit.named_parameters()}
    assert set(layers.values()) == set(range(encoder.depth + 1))
    for part in {name.partition(".")[0] for name in layers}:
        inside = [layer for name, layer in layers.items() if name.startswith(f"{part}.")]
        assert inside == sorted(inside), part
    assert encoder.stages(images)[0].shape[0] == 2


def test_what_a_cnn_cannot_do_is_refused() -> None:
    mask = PatchMask(torch.zeros(2, 4, dtype=torch.bool), None, None)
    encoder, _ = make(RESNET)
    for how in ({"drop": mask}, {"replace": mask}):
        with pytest.raises(ValueError, match="the network 'test_resnet' cannot drop or replace patches"):
            encoder(pictures(2, 3, 64, 64), **how)
    with pytest.raises(ValueError, match="Set drop_path=0"):
        build_encoder("densenet121", {"img_size": [64, 64], "in_chans": 3}, drop_path=0.1)


@pytest.mark.parametrize("size", [(16, 16), (48, 64), (33, 100)])
def test_a_cnn_takes_any_size(size: tuple[int, int]) -> None:
    encoder = EncoderConfig(model=RESNET).build(size).eval()
    tokens = encoder(pictures(2, 3, *size))
    assert tokens.grid == encoder.native_grid and encoder.image_size == size
    assert torch.allclose(encoder.feature(pictures(2, 3, *size)), encoder.vit(pictures(2, 3, *size)), atol=1e-6)


def test_a_probe_changes_nothing_that_is_drawn() -> None:
    stride_of.cache_clear()
    torch.manual_seed(0)
    before = torch.get_rng_state()
    assert stride_of("resnet18") == 32
    assert torch.equal(torch.get_rng_state(), before)


def test_stages_are_timms() -> None:
    encoder, _ = make(RESNET)
    found = stages(encoder.vit)
    assert found.keys() == dict(encoder.vit.named_parameters()).keys() and encoder.depth == 4
    assert found["conv1.0.weight"] == 0 and found["layer1.0.conv1.weight"] == 1 and found["layer4.0.bn2.bias"] == 4


def test_every_batch_normalisation_is_replaced() -> None:
    encoder, _ = make(EFFICIENTNET)
    left = [part for part in encoder.modules() if isinstance(part, nn.BatchNorm2d)]
    assert not left and any(isinstance(part, BatchNorm2d) for part in encoder.modules())
    norm = nn.Sequential(nn.BatchNorm2d(3, eps=0.1, momentum=0.3))
    synchronise_(norm)
    assert isinstance(norm[0], BatchNorm2d) and (norm[0].eps, norm[0].momentum) == (0.1, 0.3)


@pytest.mark.parametrize("model", MODELS)
def test_channels_last_are_the_same_maps_for_a_gpu_alone(model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, _ = make(model)
    images, found, layouts = pictures(2, 3, 64, 64), [], []
    convolution = next(part for part in encoder.modules() if isinstance(part, nn.Conv2d))
    hook = convolution.register_forward_hook(
        lambda _module, _given, out: layouts.append(out.is_contiguous(memory_format=torch.channels_last))
    )
    for devices in (("cuda",), ("cpu",)):
        monkeypatch.setattr(maps, "CHANNELS_LAST", devices)
        tokens = encoder.train()(images).patches
        found.append([tokens, *torch.autograd.grad(tokens.square().mean(), list(encoder.parameters()))])
    hook.remove()
    assert layouts == [False, True]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-5)


def test_a_network_that_reads_its_memory_as_it_usually_is_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    assert takes_channels_last(RESNET)
    takes_channels_last.cache_clear()
    whole = type(timm.create_model(RESNET, num_classes=0)).forward_features
    monkeypatch.setattr(
        type(timm.create_model(RESNET, num_classes=0)),
        "forward_features",
        lambda self, x: whole(self, x.view(-1).view(x.shape)),
    )
    assert not takes_channels_last(RESNET)
    takes_channels_last.cache_clear()
