"""Files as facebookresearch/dinov3 writes them become timm's networks with the official features."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from naive_dinov3 import Tensors, convnext_weights, encode, encode_convnext, weights
from torch import Tensor

from unlabeled.backbone.importers import dinov3
from unlabeled.backbone.importing import importers, read
from unlabeled.backbone.weights import import_official, load_encoder, preprocessing_of
from unlabeled.errors import UserError

IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(1))


def saved(official: Any, folder: Path) -> Path:
    torch.save(official, folder / "official.pth")
    return folder / "official.pth"


def features(folder: Path, images: Tensor) -> Tensor:
    """Of timm alone."""
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    with torch.no_grad():
        return model.forward_features(images)


def assert_official(official: Tensors, folder: Path, heads: int = 2, **more: Any) -> None:
    import_official("dinov3", saved(official, folder), folder / "out")
    expected = torch.stack([encode(official, image, heads, **more) for image in IMAGES]).float()
    torch.testing.assert_close(features(folder / "out", IMAGES), expected, rtol=1e-5, atol=1e-5)
    tokens = load_encoder(folder / "out").eval()(IMAGES)
    torch.testing.assert_close(torch.cat([tokens.prefix, tokens.patches], 1), expected, rtol=1e-5, atol=1e-5)


VARIANTS: dict[str, dict[str, Any]] = {
    "small": {},
    "no registers": {"registers": 0},
    "gated": {"gated": True, "hidden": 88},
    "other widths": {"width": 48, "heads": 3, "depth": 3, "hidden": 110, "registers": 1},
    "one head": {"width": 16, "heads": 1, "depth": 1, "hidden": 16},
    "gated and narrow": {"width": 24, "heads": 6, "gated": True, "hidden": 37, "registers": 2},
    "another base": {"base": 250.0},
}


@pytest.mark.parametrize("name", VARIANTS)
def test_timm_gives_the_official_features(name: str, tmp_path: Path) -> None:
    settings = {"heads": 2, **VARIANTS[name]}
    assert_official(weights(**settings), tmp_path, settings["heads"], base=settings.get("base", 100.0))


@pytest.mark.parametrize("mask", ["official", "not initialised", "none, keys at 0"])
def test_keys_have_no_bias(mask: str, tmp_path: Path) -> None:
    """Whatever the masked part of the bias holds."""
    official = weights()
    for name in [n for n in official if n.endswith("bias_mask")]:
        if mask == "none, keys at 0":
            official[name.removesuffix("_mask")] *= official.pop(name)
    stored = dict(official)
    if mask == "not initialised":
        stored |= {name: torch.full_like(t, torch.nan) for name, t in official.items() if name.endswith("bias_mask")}
    import_official("dinov3", saved(stored, tmp_path), tmp_path / "out")
    expected = torch.stack([encode(official, image, 2) for image in IMAGES]).float()
    torch.testing.assert_close(features(tmp_path / "out", IMAGES), expected, rtol=1e-5, atol=1e-5)


def test_a_bias_of_keys_without_a_mask_counts(tmp_path: Path) -> None:
    official = {name: tensor for name, tensor in weights().items() if not name.endswith("bias_mask")}
    assert_official(official, tmp_path)


@pytest.mark.parametrize("absent", ["attn.qkv.bias", "ls", "mlp.fc1.bias", "attn.proj.bias"])
def test_parts_that_settings_leave_out(absent: str, tmp_path: Path) -> None:
    kept = {n: t for n, t in weights().items() if f".{absent}" not in n}
    assert len(kept) < len(weights())
    assert_official(kept, tmp_path)


def test_teacher_checkpoints(tmp_path: Path) -> None:
    official = weights()
    teacher = {f"backbone.{name}": tensor for name, tensor in official.items()}
    teacher |= {"dino_head.mlp.0.weight": torch.zeros(2, 2), "ibot_head.last_layer.weight": torch.zeros(2, 2)}
    imported = read("dinov3", saved({"teacher": teacher}, tmp_path))
    (tmp_path / "flat").mkdir()
    flat = read("dinov3", saved(official, tmp_path / "flat"))
    assert imported.arguments == flat.arguments and imported.encoder.keys() == flat.encoder.keys()


def test_the_export_is_read_as_officially(tmp_path: Path) -> None:
    import_official("dinov3", saved(weights(channels=1), tmp_path), tmp_path / "out")
    assert preprocessing_of(tmp_path / "out").pool == "cls"
    assert not any("mask_token" in name or "local" in name for name in load_encoder(tmp_path / "out").state_dict())
    model = timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()
    images = IMAGES[:, :1]
    torch.testing.assert_close(model(images), model.forward_features(images)[:, 0])


@pytest.mark.parametrize(
    ("name", "gated"), [("vit_small_patch16_dinov3_qkvb", False), ("vit_small_plus_patch16_dinov3_qkvb", True)]
)
def test_released_widths_are_timms_networks(name: str, gated: bool) -> None:
    """Names and shapes of all weights."""
    with torch.device("meta"):
        model = timm.create_model(name, num_classes=0, depth=1)
    sizes = {"width": model.embed_dim, "heads": 6, "hidden": model.blocks[0].mlp.fc2.in_features}
    imported = importers()["dinov3"].convert(weights(**sizes, depth=1, gated=gated, patch=16), None, "teacher")
    assert imported.architecture == name and imported.arguments["num_heads"] == 6
    assert {n: t.shape for n, t in model.state_dict().items()} == {n: t.shape for n, t in imported.encoder.items()}


def test_a_convnext_has_the_official_features() -> None:
    """Pooled by timm, its norm after it."""
    blocks = (3, 3, 9, 3)
    official = convnext_weights(96, blocks, (96, 192, 384, 768))
    stored = {"teacher": {f"backbone.{name}": tensor for name, tensor in official.items()}}
    imported = importers()["dinov3"].convert(stored, None, "teacher")
    model = timm.create_model(imported.architecture, num_classes=0).eval()
    model.load_state_dict(imported.encoder)
    images = torch.randn(1, 3, 32, 64, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected = encode_convnext(official, images, blocks).float()
        torch.testing.assert_close(model(images), expected, rtol=1e-4, atol=1e-5)
    assert imported.pool == "own"


@pytest.mark.parametrize("size", ["base", "large"])
def test_released_convnexts_are_timms_networks(size: str) -> None:
    """Names and shapes of all weights."""
    with torch.device("meta"):
        model = timm.create_model(f"convnext_{size}", num_classes=0)
        stages = [stage.blocks for stage in model.stages]
        widths = tuple(stage[0].gamma.shape[0] for stage in stages)
    small = tuple(1 for _ in stages)
    one = convnext_weights(4, small, (4, 4, 4, 4))
    names = [
        re.sub(r"^stages\.(\d)\.0\.", rf"stages.\1.{j}.", name)
        for name in one
        for j in range(len(stages[int(name[7])]) if name.startswith("stages.") else 1)
    ]
    found = {(tuple(map(len, stages)), widths[0]): f"convnext_{size}"}
    assert found.items() <= dinov3.CONVNEXTS.items() and len(set(names)) == len(model.state_dict()) + 2


def test_periods_in_half_precision_are_those_of_100(tmp_path: Path) -> None:
    official = weights(width=128, heads=2)
    half = {**official, "rope_embed.periods": official["rope_embed.periods"].bfloat16()}
    assert "rope_temperature" not in read("dinov3", saved(half, tmp_path)).arguments


def test_files_that_cannot_be_imported(tmp_path: Path) -> None:
    official = weights()
    for changed, text in (
        ({"rope_embed.periods": torch.tensor([1.0, 2.0, 3.0, 50.0])}, "periods run from 1 to 50, expected 100"),
        ({"rope_embed.periods": torch.ones(3)}, "of heads of 12 channels, the width is 32"),
        ({"cls_norm.weight": torch.ones(32)}, r"unexpected \['cls_norm.weight'\]"),
        ({"norm.weight": torch.full((32,), torch.nan)}, "hold NaN"),
        ({"blocks.0.mlp.fc1.weight": torch.ones(128, 31)}, "do not fit"),
    ):
        with pytest.raises(UserError, match=text):
            read("dinov3", saved({**official, **changed}, tmp_path))
    with pytest.raises(UserError, match=r"missing patch_embed.proj.weight"):
        read("dinov3", saved({"layers.0.0.weight": torch.ones(3)}, tmp_path))
    with pytest.raises(UserError, match=r"expected downsample_layers.0.0.weight with 4 axes, found \[3\]"):
        read("dinov3", saved({"downsample_layers.0.0.weight": torch.ones(3)}, tmp_path))
    convnext = convnext_weights(8, (1, 1, 1, 1), (8, 8, 8, 8))
    with pytest.raises(UserError, match=r"ConvNeXt of 8 channels with \(1, 1, 1, 1\) blocks is none of convnext_tiny"):
        read("dinov3", saved(convnext, tmp_path))
    with pytest.raises(UserError, match=r"a ConvNeXt has no attention heads\. Leave out --heads"):
        read("dinov3", saved(convnext, tmp_path), heads=2)
    with pytest.raises(UserError, match=r"of 2 heads, found --heads 4\. Leave it out"):
        read("dinov3", saved(official, tmp_path), heads=4)
    without = {name: tensor for name, tensor in official.items() if name != "rope_embed.periods"}
    with pytest.raises(UserError, match=r"is 32 wide .* Pass --heads"):
        read("dinov3", saved(without, tmp_path))
    assert read("dinov3", saved(without, tmp_path), heads=2).arguments["num_heads"] == 2
