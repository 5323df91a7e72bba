"""Exports: timm alone reads them, we read them back strictly, at other sizes and channels."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from begun import load_method

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, Preprocessing, export_encoder
from unlabeled.backbone.importing import read
from unlabeled.backbone.weights import load_classifier, load_encoder, preprocessing_of
from unlabeled.data.masks.random import Config as RandomMask
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.pretrain.decoders.self import Config as SelfDecoder
from unlabeled.pretrain.methods.mae import MAE, Config
from unlabeled.train.state import split_heads

PREPARED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.2, 0.2))
TIMM_ALONE = """
import sys, timm, torch
sys.modules["unlabeled"] = None
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).double().eval()
torch.save(model.forward_features(torch.load(sys.argv[2])), sys.argv[3])
"""


def tiny(seed: int = 0) -> MAE:
    torch.manual_seed(seed)
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2)
    decoder = SelfDecoder(width=8, depth=1, heads=2)
    return Config(view=View(size=16, mask=RandomMask()), encoder=encoder, decoder=decoder).build()


@pytest.fixture
def export(tmp_path: Path) -> Path:
    encoder, heads = split_heads(tiny())
    export_encoder(tmp_path / "export", encoder, PREPARED, "# card\n", heads)
    return tmp_path / "export"


def test_an_export_says_how_the_norms_of_its_network_begin_and_its_stride(tmp_path: Path) -> None:
    encoder = EncoderConfig(model="test_resnet", zero_init=False, stride=8).build((32, 32)).eval()
    export_encoder(tmp_path / "export", encoder, PREPARED, "# card\n", {})
    again = load_encoder(tmp_path / "export")
    assert again.arguments["zero_init_last"] is False and again.patch_size == 8
    alone = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(alone.forward_features(images).flatten(2).mT, encoder(images).patches)  # type: ignore[operator]


def test_timm_alone_gives_our_features(export: Path, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 16, 16, dtype=torch.float64)  # float32 sums depend on the CPU
    torch.save(images, tmp_path / "in.pt")
    script = [sys.executable, "-c", TIMM_ALONE, str(export), str(tmp_path / "in.pt"), str(tmp_path / "out.pt")]
    subprocess.run(script, check=True, capture_output=True)
    tokens = load_encoder(export).double().eval()(images)
    ours = torch.cat([tokens.prefix, tokens.patches], dim=1)
    torch.testing.assert_close(torch.load(tmp_path / "out.pt"), ours, rtol=0, atol=1e-12)


def test_timm_reads_how_pictures_were_prepared(export: Path) -> None:
    config = timm.create_model(f"local-dir:{export}", pretrained=True).pretrained_cfg
    assert tuple(config["mean"]) == PREPARED.mean and tuple(config["std"]) == PREPARED.std
    assert tuple(config["input_size"]) == (3, 16, 16)
    names = safetensors.torch.load_file(export / "model.safetensors").keys()
    assert "mask_token" not in names and not any(name.startswith("decoder") for name in names)


def test_pretraining_goes_on_from_an_export(export: Path) -> None:
    other = tiny(seed=1)
    load_method(other, export)
    for name, tensor in tiny(seed=0).state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name


def test_another_image_size_resamples_positions(export: Path) -> None:
    small, large = load_encoder(export), load_encoder(export, image_size=(24, 32))
    table = small.vit.pos_embed[:, 1:].unflatten(1, (4, 4)).permute(0, 3, 1, 2)
    expected = F.interpolate(table, size=(6, 8), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).flatten(1, 2)
    torch.testing.assert_close(large.vit.pos_embed[:, 1:], expected)
    images = torch.randn(2, 3, 24, 32)
    torch.testing.assert_close(large.eval()(images).patches, small.eval()(images).patches, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 5])
def test_other_channels(export: Path, channels: int) -> None:
    encoder = load_encoder(export, channels=channels)
    assert encoder(torch.randn(2, channels, 16, 16)).patches.shape == (2, 16, 16)
    if channels == 1:
        three = load_encoder(export).vit.patch_embed.proj.weight
        torch.testing.assert_close(encoder.vit.patch_embed.proj.weight, three.sum(1, keepdim=True))


def test_scratch_has_the_architecture_but_not_the_weights(export: Path) -> None:
    trained, scratch = load_encoder(export), load_encoder(f"scratch:{export}")
    assert trained.vit.state_dict().keys() == scratch.vit.state_dict().keys()
    assert not torch.equal(trained.vit.blocks[0].attn.qkv.weight, scratch.vit.blocks[0].attn.qkv.weight)


def test_scratch_of_timm_has_the_architecture_and_its_preprocessing() -> None:
    encoder = load_encoder("scratch:timm:vit_tiny_patch16_224", image_size=32, channels=1)
    assert encoder.model == "vit_tiny_patch16_224" and encoder(torch.zeros(1, 1, 32, 32)).patches.shape == (1, 4, 192)
    half = (0.5, 0.5, 0.5)
    for name in ("timm:vit_base_patch16_224", "scratch:timm:vit_base_patch16_224.augreg_in21k"):
        assert preprocessing_of(name) == Preprocessing(half, half, 0.9, "bicubic", pool="cls", size=(224, 224))
    dino = preprocessing_of("timm:vit_small_patch16_224.dino")
    assert dino is not None and (dino.mean, dino.std) == (IMAGENET.mean, IMAGENET.std)
    with pytest.raises(UserError, match=r"no such weights of 'resnet50.nonsense'"):
        preprocessing_of("timm:resnet50.nonsense")


def test_what_is_no_export_is_said_so(tmp_path: Path, export: Path) -> None:
    with pytest.raises(UserError, match=r"is not an export: config\.json and model.safetensors not found"):
        load_encoder(tmp_path / "nothing")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "export").symlink_to(export.resolve())
    with pytest.raises(UserError, match=r"It is a run's folder: name .*run/export\."):
        load_encoder(tmp_path / "run")
    with pytest.raises(UserError, match="timm has no model 'vit_huger'"):
        load_encoder("timm:vit_huger")
    weights = safetensors.torch.load_file(export / "model.safetensors")
    del weights["norm.weight"]
    safetensors.torch.save_file(weights, export / "model.safetensors")
    (export / "MANIFEST.json").unlink()
    with pytest.raises(UserError, match=r"(?s)do not match.*norm\.weight"):
        load_encoder(export)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda config: config["pretrained_cfg"].pop("mean"), "mean not found in it"),
        (lambda config: config.pop("model_args"), "model_args not found in it"),
        (lambda config: config.update(pretrained_cfg=None), "input_size, mean, std, crop_pct, interpolation not found"),
        (lambda config: config.update(architecture="vit_nonsense"), "architecture='vit_nonsense': expected"),
        (lambda config: config["model_args"].update(heads=3), r"model_args: \['heads'\] do not shape a network"),
        (lambda config: config["model_args"].update(num_heads=3), "the network .* cannot be built"),
        (lambda config: config["model_args"].update(depth=3), r"12 missing, such as blocks\.2\..*not of one export"),
        (lambda config: config["model_args"].update(mlp_ratio=2), "of another shape, such as blocks"),
    ],
)
def test_a_config_that_does_not_suit_is_named(export: Path, change: Callable[[Any], Any], said: str) -> None:
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    change(config)
    (export / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=said):
        load_encoder(export)


@pytest.mark.parametrize("text", ["", '{"architecture": "vit', "[]"])
def test_half_a_config_is_refused(export: Path, text: str) -> None:
    (export / "config.json").write_text(text, encoding="utf-8")
    for read_it in (preprocessing_of, load_encoder, load_classifier):
        with pytest.raises(UserError, match=r"config\.json .*Copy the whole export folder again"):
            read_it(export)


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("/tmp/unlabeled-payload-ran"),))  # type: ignore[return-value]


def test_a_pickle_in_a_pth_is_refused_and_does_not_run(tmp_path: Path) -> None:
    marker = Path("/tmp/unlabeled-payload-ran")
    marker.unlink(missing_ok=True)
    for write in (lambda f: torch.save({"model": Payload()}, f), lambda f: f.write_bytes(pickle.dumps(Payload()))):
        write(tmp_path / "evil.pth")
        with pytest.raises(UserError, match="is refused"):
            read("mae", tmp_path / "evil.pth")
    assert not marker.exists()


def test_other_weights_are_no_mae(tmp_path: Path) -> None:
    torch.save({"model": {"layer1.weight": torch.zeros(3)}}, tmp_path / "resnet.pth")
    with pytest.raises(UserError, match="not an MAE"):
        read("mae", tmp_path / "resnet.pth")


def test_training_checkpoints_with_their_arguments_are_read(tmp_path: Path) -> None:
    import argparse

    weights = tiny().encoder.vit.state_dict()
    torch.save({"model": weights, "args": argparse.Namespace(lr=1), "epoch": 3}, tmp_path / "checkpoint-3.pth")
    imported = read("mae", tmp_path / "checkpoint-3.pth", heads=2)
    assert imported.encoder.keys() == weights.keys() and imported.arguments["num_heads"] == 2
    with pytest.raises(UserError, match="Pass --heads"):
        read("mae", tmp_path / "checkpoint-3.pth")


def test_config_json_is_timms(export: Path) -> None:
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    assert config["model_args"]["global_pool"] == config["global_pool"] == "token"
    assert config["pretrained_cfg"]["first_conv"] == "patch_embed.proj"
