"""Hiera: timm's features, mask units left out as timm leaves them out, and as one image alone would be seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import fitted, load_encoder
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.methods import mae, simmim

LEARNED, WINDOWED = "hiera_tiny_224", "hiera_small_abswin_256"
SIZE = (64, 96)
FIELDS: dict[str, Any] = {"width": 8, "depth": [1, 1, 2, 1], "heads": 2}


def make(model: str = LEARNED, **changed: Any) -> Encoder:
    """With weights at which every part shows, in double precision."""
    torch.manual_seed(0)
    encoder = EncoderConfig.model_validate({"model": model, **FIELDS, **changed}).build(SIZE).double()
    for parameter in encoder.parameters():
        nn.init.normal_(parameter, std=0.2)
    return encoder.eval()


def images_of(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, *SIZE, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def some_hidden(rows: int, units: int = 6) -> PatchMask:
    order = torch.rand(rows, units, generator=torch.Generator().manual_seed(2)).argsort(dim=1)
    keep, drop = order[:, : units // 2], order[:, units // 2 :]
    return PatchMask(torch.zeros(rows, units, dtype=torch.bool).scatter(1, drop, True), keep, drop)


@pytest.mark.parametrize("model", [LEARNED, WINDOWED])
def test_features_are_timms(model: str) -> None:
    encoder, images = make(model), images_of()
    raw = encoder.vit.forward_features(images)
    tokens = encoder(images)
    torch.testing.assert_close(tokens.raw, raw)
    torch.testing.assert_close(encoder.own(tokens), encoder.vit.forward_head(raw, pre_logits=True))
    torch.testing.assert_close(encoder.feature(images), encoder.vit(images))
    torch.testing.assert_close(tokens.patches, encoder.vit.head.norm(raw))
    assert (tokens.grid, encoder.patch_size, encoder.default_pool, encoder.feature_width) == ((2, 3), 32, "own", 64)
    assert [list(m.shape[1:]) for m in encoder.stages(images)] == [[8, 16, 24], [16, 8, 12], [32, 4, 6], [64, 2, 3]]


@pytest.mark.parametrize("model", [LEARNED, WINDOWED])
def test_units_are_left_out_as_by_timm(model: str) -> None:
    """timm keeps them in their order, we in the mask's."""
    encoder, images, mask = make(model), images_of(), some_hidden(3)
    expected = encoder.vit.forward_features(images, mask=~mask.hidden)
    keep, _ = mask.indices()
    found, order = encoder(images, drop=mask).raw, keep.argsort(dim=1)
    torch.testing.assert_close(found.gather(1, order.unsqueeze(-1).expand_as(found)), expected)


@pytest.mark.parametrize("model", [LEARNED, WINDOWED])
def test_hidden_units_are_not_seen_and_images_do_not_meet(model: str) -> None:
    encoder, images, mask = make(model), images_of(), some_hidden(3)
    tokens = encoder(images, drop=mask)
    pixels = mask.refined(SIZE).hidden.unflatten(1, SIZE).unsqueeze(1)
    assert torch.equal(encoder(torch.where(pixels, 9.0, images), drop=mask).patches, tokens.patches)
    for row in range(3):
        alone = encoder(images[row : row + 1], drop=mask.map(lambda t, row=row: t[row : row + 1]))  # type: ignore[misc]
        torch.testing.assert_close(alone.patches[0], tokens.patches[row])


def test_the_order_of_units_changes_nothing_else() -> None:
    encoder, images, mask = make(), images_of(), some_hidden(3)
    keep, drop = mask.indices()
    turned = encoder(images, drop=PatchMask(mask.hidden, keep.flip(1), drop))
    torch.testing.assert_close(turned.patches.flip(1), encoder(images, drop=mask).patches)


def test_layers_are_numbered_from_the_embedding_to_the_norm() -> None:
    encoder = make(WINDOWED)
    numbers = {name: encoder.layer_of(name) for name, _ in encoder.vit.named_parameters()}
    assert {numbers[name] for name in ("pos_embed", "pos_embed_win", "patch_embed.proj.weight")} == {0}
    assert [numbers[f"blocks.{i}.norm1.weight"] for i in range(5)] == [1, 2, 3, 4, 5]
    assert numbers["head.norm.weight"] == 6 and len(set(numbers.values())) == 7


def test_positions_of_another_size_are_resampled() -> None:
    encoder = make()
    larger = fitted(encoder.float(), (96, 128), 3)
    image = encoder.vit.pos_embed.reshape(1, 16, 24, 8).permute(0, 3, 1, 2)
    expected = nn.functional.interpolate(image, size=(24, 32), mode="bicubic", align_corners=False)
    torch.testing.assert_close(larger.vit.pos_embed, expected.flatten(2).mT)
    windowed = make(WINDOWED).float()
    assert torch.equal(fitted(windowed, (96, 128), 3).vit.pos_embed, windowed.vit.pos_embed)


@pytest.mark.parametrize("model", [LEARNED, WINDOWED])
def test_timm_alone_loads_the_export(model: str, tmp_path: Path) -> None:
    encoder, images = make(model).float(), images_of().float()
    export_encoder(tmp_path / "export", encoder, IMAGENET, "", {})
    alone = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    torch.testing.assert_close(alone(images), encoder.feature(images), rtol=0, atol=1e-5)
    torch.testing.assert_close(load_encoder(tmp_path / "export").eval().feature(images), encoder.feature(images))


def test_for_graph_formats_attention_is_plain_and_says_the_same() -> None:
    encoder, images = make(), images_of()
    before = encoder.vit(images)
    assert all(block.attn.fused_attn for block in encoder.vit.blocks)
    encoder.unfuse_(encoder.vit)
    assert not any(block.attn.fused_attn for block in encoder.vit.blocks)
    torch.testing.assert_close(encoder.vit(images), before)


def test_mae_begins_as_officially() -> None:
    torch.manual_seed(0)
    view = View(size=SIZE, mask=RandomMask(ratio=0.5))
    vit = (
        mae.Config.model_validate({"view": view, "encoder": {"model": LEARNED, **FIELDS, "width": 96}})
        .build()
        .encoder.vit
    )
    qkv, patches = vit.blocks[0].attn.qkv.weight, vit.patch_embed.proj.weight.flatten(1)
    for weight in (qkv, patches):  # uniform within Xavier's bound, the embedding as a linear map
        bound = (6 / sum(weight.shape)) ** 0.5
        assert 0.98 * bound < weight.abs().max() <= bound
    assert vit.pos_embed.std().item() == pytest.approx(0.02, rel=0.1) and vit.pos_embed.requires_grad


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"patch_size": 16}, "the patches of 'hiera_tiny_224' are its mask units, 32: leave it out, found 16"),
    ({"depth": [1, 2]}, r"'hiera_tiny_224' has 4 stages: expected a number for each, found \(1, 2\)"),
    ({"depth": 12}, "'hiera_tiny_224' has 4 stages: expected a number for each, found 12"),
    ({"heads": 5}, "expected heads of the first stage, which divide its width of 96; found 5"),
    ({"positions": "sincos"}, "has no sincos positions: expected learned"),
    ({"window": 7}, "has no window: leave it out, found 7"),
]


@pytest.mark.parametrize(("fields", "message"), REFUSED)
def test_fields_that_do_not_fit_are_refused(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EncoderConfig.model_validate({"model": LEARNED, **fields})


def test_what_it_cannot_do_is_refused() -> None:
    encoder, images = make(), images_of(1)
    with pytest.raises(ValueError, match=r"cannot replace patches\. Use a vit_\*, beit_\* or swin_\* model"):
        encoder(images, replace=some_hidden(1), fill=torch.zeros(1, 1, 8))
    with pytest.raises(ValueError, match=r"built for images of \(64, 96\) pixels, found \(64, 64\)"):
        encoder(images[..., :64])
    with pytest.raises(ValueError, match="its blocks pool queries"):
        encoder.attention(images)
    with pytest.raises(ValueError, match="there is the last stage's map only"):
        encoder.intermediate(images, [0])
    view, small = View(size=SIZE, mask=RandomMask(unit=16)), {"model": LEARNED, **FIELDS}
    with pytest.raises(
        ValueError, match=r"a mask unit of 16 pixels is not a multiple of the patch size 32\. Set unit=32"
    ):
        mae.Config.model_validate({"view": view, "encoder": small})
    with pytest.raises(ValueError, match="SimMIM replaces patches, which 'hiera_tiny_224' cannot"):
        simmim.Config.model_validate({"view": View(size=SIZE, mask=RandomMask(unit=32)), "encoder": small})
