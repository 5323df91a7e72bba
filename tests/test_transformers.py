"""transformers loads an export as it is: model, image processor and pipelines, with the numbers of this package."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from unlabeled.backbone.folder import IMAGENET, export_encoder, timm_config, write_export
from unlabeled.backbone.weights import load_weights
from unlabeled.interface.model import Model, load

transformers = pytest.importorskip("transformers", minversion="5", exc_type=ImportError)
VIT: dict[str, Any] = {
    "img_size": (32, 32),
    "in_chans": 3,
    "patch_size": 4,
    "embed_dim": 16,
    "depth": 2,
    "num_heads": 2,
}
RESNET: dict[str, Any] = {"img_size": (32, 32), "in_chans": 3}


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)


def exported(folder: Path, model: str, arguments: dict[str, Any], pool: Any, crop_pct: float = 0.875) -> Model:
    torch.manual_seed(0)
    channels = arguments["in_chans"]
    how = IMAGENET._replace(pool=pool, mean=(0.4,) * channels, std=(0.2,) * channels, crop_pct=crop_pct)
    export_encoder(folder, load_weights(model, dict(arguments)).eval(), how, "# card\n", {})
    return load(folder)


def picture() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 60, 3), np.uint8))


@pytest.mark.parametrize(
    ("model", "arguments", "pool"),
    [
        ("vit_tiny_patch16_224", VIT, "mean"),
        ("vit_tiny_patch16_224", VIT, "cls"),
        ("vit_tiny_patch16_224", VIT | {"in_chans": 1}, "mean"),
        ("vit_tiny_patch16_224", VIT | {"in_chans": 6}, "mean"),
        ("resnet10t", RESNET, "mean"),
    ],
)
def test_the_model_gives_our_features(tmp_path: Path, model: str, arguments: dict[str, Any], pool: str) -> None:
    ours = exported(tmp_path / "export", model, arguments, pool)
    pixels = torch.randn(2, arguments["in_chans"], 32, 32)
    theirs = transformers.AutoModel.from_pretrained(str(tmp_path / "export")).eval()
    expected = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    with torch.no_grad():
        found = theirs(pixel_values=pixels).pooler_output
        assert torch.allclose(found, expected(pixels), atol=1e-6)
        tokens = ours.encoder(pixels)
    own = tokens.prefix[:, 0] if pool == "cls" else tokens.patches.mean(1)
    assert torch.allclose(found, own, atol=1e-5)


def test_processor_and_pipeline_prepare_as_we_do(tmp_path: Path) -> None:
    """Up to a value of 1 of 255, which Pillow and torch round differently when they resize."""
    ours = exported(tmp_path / "export", "vit_tiny_patch16_224", VIT, "mean", crop_pct=0.9)
    processor = transformers.AutoImageProcessor.from_pretrained(str(tmp_path / "export"))
    pixels = processor(picture(), return_tensors="pt")["pixel_values"]
    assert pixels.shape == (1, 3, 32, 32)
    assert (pixels - ours.preprocess(picture())).abs().max() <= 1.01 / 255 / 0.2
    wrong = ours.preprocess(picture().transpose(Image.Transpose.FLIP_LEFT_RIGHT))
    assert (pixels - wrong).abs().max() > 10 / 255 / 0.2
    pipe = transformers.pipeline("image-feature-extraction", model=str(tmp_path / "export"))
    found = torch.tensor(pipe(picture(), pool=True))
    assert torch.allclose(found, ours.embed(picture()).features, atol=5e-3)
    with torch.no_grad():
        tokens = ours.encoder(pixels)
        assert torch.allclose(found, tokens.patches.mean(1), atol=1e-5)


def test_a_classifier_is_one_there_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    made = timm.create_model("vit_tiny_patch16_224", num_classes=3, global_pool="avg", **VIT).eval()
    names = ("ant", "bee", "cat")
    config = timm_config("vit_tiny_patch16_224", VIT | {"global_pool": "avg"}, 16, IMAGENET, 3, names)
    write_export(tmp_path / "export", dict(made.state_dict()), config, "# card\n")
    pixels = torch.randn(2, 3, 32, 32)
    theirs = transformers.AutoModelForImageClassification.from_pretrained(str(tmp_path / "export")).eval()
    with torch.no_grad():
        assert torch.allclose(theirs(pixel_values=pixels).logits, made(pixels), atol=1e-5)
    assert theirs.config.id2label == dict(enumerate(names))
    pipe = transformers.pipeline("image-classification", model=str(tmp_path / "export"))
    found = {one["label"]: one["score"] for one in pipe(picture())}
    expected = load(tmp_path / "export").predict(picture()).probabilities[0]
    assert [found[name] for name in names] == pytest.approx(expected.tolist(), abs=5e-3)


def test_what_it_cannot_do(tmp_path: Path) -> None:
    """As docs/hub.md says: two poolings at once are not timm's, so pooled features are those of one alone."""
    ours = exported(tmp_path / "export", "vit_tiny_patch16_224", VIT, "cls_mean")
    theirs = transformers.AutoModel.from_pretrained(str(tmp_path / "export")).eval()
    pixels = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        found, tokens = theirs(pixel_values=pixels), ours.encoder(pixels)
    assert found.pooler_output.shape == (1, 16) and ours.embed(picture()).shape == (1, 32)
    everything = torch.cat([tokens.prefix, tokens.patches], dim=1)
    assert torch.allclose(found.last_hidden_state, everything, atol=1e-5)
