"""Official files of every family, as they are laid out, become exports that timm alone loads, with its features.

The backbones are timm's own with random weights under official names; what a name means is thereby fixed.
"""

from __future__ import annotations

import argparse
import re
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import timm
import torch
from begun import load_method
from torch import Tensor, nn

from unlabeled.__main__ import main
from unlabeled.backbone.importers import spark as spark_importer
from unlabeled.backbone.importing import checked, importers, known_model, read
from unlabeled.backbone.weights import import_official
from unlabeled.errors import UserError
from unlabeled.pretrain.method import METHODS
from unlabeled.pretrain.methods import mocov3 as mocov3_method
from unlabeled.pretrain.methods import simmim as simmim_method
from unlabeled.pretrain.methods import spark as spark_method
from unlabeled.pretrain.methods import swav as swav_method

Tensors = dict[str, Tensor]
SIZE: dict[str, Any] = {"img_size": 16, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3}
GAP: dict[str, Any] = {"class_token": False, "global_pool": "avg", "fc_norm": False}
HEAD = {"mlp.0.weight": (8, 48), "mlp.0.bias": (8,), "last_layer.weight_g": (5, 1), "last_layer.weight_v": (5, 4)}


def random(model: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def vit(seed: int = 0, **more: Any) -> nn.Module:
    return random(timm.create_model("vit_base_patch16_224", num_classes=0, **{**SIZE, **more}), seed)


def tensors(shapes: dict[str, tuple[int, ...]]) -> Tensors:
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def under(prefix: str, weights: Tensors) -> Tensors:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def features_of(folder: Path, images: Tensor) -> Tensor:
    return timm.create_model(f"local-dir:{folder}", pretrained=True).eval().forward_features(images)


# ---------------------------------------------------------------- official files


def mae(model: nn.Module) -> dict[str, Any]:
    return {"model": {**model.state_dict(), "mask_token": torch.zeros(1, 1, 8)}, "args": argparse.Namespace(lr=1)}


def crossmae(model: nn.Module) -> dict[str, Any]:
    """Without a last norm."""
    weights = {name: tensor for name, tensor in model.state_dict().items() if not name.startswith("norm.")}
    return {"model": {**weights, "mask_token": torch.zeros(1, 1, 8)}}


def mocov3(model: nn.Module) -> dict[str, Any]:
    weights = {
        **under("module.base_encoder.", model.state_dict()),
        **under("module.momentum_encoder.", vit(seed=1).state_dict()),
        "module.base_encoder.head.0.weight": torch.randn(4, 48),
        "module.momentum_encoder.head.0.weight": torch.randn(4, 48),
        "module.predictor.3.weight": torch.randn(4, 4),
    }
    return {"epoch": 3, "arch": "vit_small", "state_dict": weights}


def dino(model: nn.Module) -> dict[str, Any]:
    student = {**under("module.backbone.", vit(seed=1).state_dict()), **under("module.head.", tensors(HEAD))}
    teacher = {**under("backbone.", model.state_dict()), **under("head.", tensors(HEAD))}
    return {"student": student, "teacher": teacher, "dino_loss": {"center": torch.randn(1, 5)}}


def ibot(model: nn.Module) -> dict[str, Any]:
    checkpoint = dino(model)
    for key, prefix in (("student", "module."), ("teacher", "")):
        head = {n: t for n, t in checkpoint[key].items() if n.startswith(f"{prefix}head.last_layer.")}
        checkpoint[key] |= {n.replace("last_layer", "last_layer2"): t.clone() for n, t in head.items()}
    checkpoint["student"]["module.backbone.masked_embed"] = torch.randn(1, 48)
    loss = {"center": torch.randn(1, 5), "center2": torch.randn(1, 1, 5)}
    return {"student": checkpoint["student"], "teacher": checkpoint["teacher"], "ibot_loss": loss}


def dinov2(model: nn.Module) -> dict[str, Any]:
    """In chunks of one block."""
    names = {n: re.sub(r"^blocks\.(\d+)\.", r"blocks.\1.\1.", n) for n in model.state_dict()}
    return {**{names[n]: t for n, t in model.state_dict().items()}, "mask_token": torch.zeros(1, 48)}


def simmim(model: nn.Module) -> dict[str, Any]:
    tables = [f"encoder.{name}" for name in model.state_dict() if name.endswith("_bias_table")]
    weights = {
        **under("encoder.", model.state_dict()),
        **{n.replace("bias_table", "index"): torch.zeros(5, 5, dtype=torch.int64) for n in tables},
        "encoder.mask_token": torch.randn(1, 1, 48),
        "decoder.0.weight": torch.randn(192, 48, 1, 1),
        "decoder.0.bias": torch.randn(192),
    }
    return {"model": weights}


def ijepa(model: nn.Module) -> dict[str, Any]:
    student = vit(seed=1, **GAP)
    return {
        "target_encoder": under("module.", model.state_dict()),
        "encoder": under("module.", student.state_dict()),
        "predictor": under("module.", tensors({"mask_token": (1, 1, 8), "predictor_embed.weight": (8, 48)}))
        | under("module.predictor_blocks.0.", tensors({"mlp.fc1.weight": (32, 8)})),
        "opt": {"state": {}},
        "world_size": 16,
    }


def msn(model: nn.Module) -> dict[str, Any]:
    head = tensors({"fc1.weight": (8, 48), "bn1.running_mean": (8,)})
    networks = {"target_encoder": model, "encoder": vit(seed=1)}
    weights = {name: {**network.state_dict(), **under("fc.", head)} for name, network in networks.items()}
    return {name: under("module.", found) for name, found in weights.items()} | {"prototypes": torch.randn(5, 4)}


def models(**more: Any) -> dict[str, tuple[Callable[[nn.Module], dict[str, Any]], nn.Module]]:
    shared = {"use_rel_pos_bias": False, "use_shared_rel_pos_bias": True, **more}
    beit = timm.create_model("beit_base_patch16_224", num_classes=0, global_pool="token", **SIZE, **shared)
    more = {name: value for name, value in more.items() if name in ("mlp_ratio", "qkv_bias")}
    return {
        "mae": (mae, vit(**more)),
        "crossmae": (crossmae, vit(**more)),
        "mocov3": (mocov3, vit(**more)),
        "dino": (dino, vit(**more)),
        "ibot": (ibot, vit(**more)),
        "dinov2": (dinov2, vit(init_values=1e-5, **more)),
        "ijepa": (ijepa, vit(**GAP, **more)),
        "msn": (msn, vit(**more)),
        "simmim": (simmim, random(beit)),
    }


HEADS = {
    "mae": {"decoder.mask_token"},
    "mocov3": {
        "projector.0.weight",
        "predictor.3.weight",
        "teacher.projector.0.weight",
        "teacher.encoder.vit.cls_token",
    },
    "dino": {"encoder.vit.cls_token", "centre.value", *under("head.", HEAD), *under("teacher_head.", HEAD)},
    "ibot": {"encoder.vit.cls_token", "centre.value", "patch_centre.value", "mask_token", *under("head.", HEAD)},
    "dinov2": set(),
    "ijepa": {"encoder.vit.pos_embed", "predictor.mask_token", "predictor.embed.weight"},
    "msn": set(),
    "simmim": {"mask_token", "decoder.head.weight", "decoder.head.bias"},
}


# where the encoder's weights lie
PLACE = {
    "mae": ("model", ""),
    "crossmae": ("model", ""),
    "mocov3": ("state_dict", "module.base_encoder."),
    "dino": ("teacher", "backbone."),
    "ibot": ("teacher", "backbone."),
    "dinov2": ("", ""),
    "ijepa": ("target_encoder", "module."),
    "msn": ("target_encoder", "module."),
    "simmim": ("model", "encoder."),
}


@pytest.mark.parametrize("name", sorted(HEADS))
def test_timm_gives_the_official_features(name: str, tmp_path: Path) -> None:
    official, model = models()[name]
    torch.save(official(model), tmp_path / "official.pth")
    assert main(["import", name, str(tmp_path / "official.pth"), str(tmp_path / "out"), "--heads", "3"]) == 0
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(features_of(tmp_path / "out", images), model.forward_features(images))  # type: ignore[operator]
    resumed = tmp_path / "out" / "heads.safetensors"
    names = set(safetensors.torch.load_file(resumed)) if resumed.exists() else set()
    assert HEADS[name] <= names if HEADS[name] else not names
    assert not any("last_layer2" in n or "patch_layer" in n for n in names), "shared layers are kept once"


@pytest.mark.parametrize("settings", [{"mlp_ratio": 3.0}, {"mlp_ratio": 2.3, "qkv_bias": False}])
@pytest.mark.parametrize("name", sorted(HEADS))
def test_shapes_say_the_mlp_and_absent_biases(name: str, settings: dict[str, Any], tmp_path: Path) -> None:
    official, model = models(**settings)[name]
    torch.save(official(model), tmp_path / "official.pth")
    import_official(name, tmp_path / "official.pth", tmp_path / "out", heads=3)
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(features_of(tmp_path / "out", images), model.forward_features(images))  # type: ignore[operator]


def test_dinov2_without_layer_scale(tmp_path: Path) -> None:
    model, images = vit(), torch.randn(2, 3, 16, 16)
    torch.save(dinov2(model), tmp_path / "official.pth")
    import_official("dinov2", tmp_path / "official.pth", tmp_path / "out", heads=3)
    torch.testing.assert_close(features_of(tmp_path / "out", images), model.forward_features(images))  # type: ignore[operator]


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize(("own", "shared", "tables"), [(0, 1, "shared"), (1, 0, "blocks"), (1, 1, "both"), (0, 0, "")])
def test_positions_of_simmim(absolute: bool, own: bool, shared: bool, tables: str, tmp_path: Path) -> None:
    """`USE_APE`, `USE_RPB` and `USE_SHARED_RPB`, and no layer scale: features, and the state that resumes."""
    switches = {"use_abs_pos_emb": absolute, "use_rel_pos_bias": bool(own), "use_shared_rel_pos_bias": bool(shared)}
    model = random(models(**switches, init_values=0.0)["simmim"][1])
    torch.save(simmim(model), tmp_path / "official.pth")
    if not (absolute or tables):
        with pytest.raises(UserError, match=r"missing rel_pos_bias\.relative_position_bias_table or pos_embed"):
            import_official("simmim", tmp_path / "official.pth", tmp_path / "out", heads=3)
        return
    import_official("simmim", tmp_path / "official.pth", tmp_path / "out", heads=3)
    images = torch.randn(2, 3, 16, 16)
    expected = model.forward_features(images)  # type: ignore[operator]
    torch.testing.assert_close(features_of(tmp_path / "out", images), expected)

    positions = ("relative_learned" if absolute else "relative") if tables else "learned"
    sizes: dict[str, Any] = {"patch_size": 8, "width": 48, "depth": 2, "heads": 3, "init_values": 0}
    encoder = {"model": "beit_base_patch16_224", **sizes, "positions": positions, "relative_tables": tables or "shared"}
    view = {"size": 16, "mask": {"name": "random", "unit": 8}}
    method = simmim_method.Config.model_validate({"view": view, "encoder": encoder}).build().eval()
    load_method(method, tmp_path / "out")
    torch.testing.assert_close(method.encoder(images).patches, expected[:, 1:])


@pytest.mark.parametrize("name", sorted(HEADS))
def test_an_unexpected_key_is_refused(name: str, tmp_path: Path) -> None:
    official, model = models()[name]
    checkpoint = official(model)
    key, prefix = PLACE[name]
    (checkpoint[key] if key else checkpoint)[f"{prefix}stranger"] = torch.zeros(1)
    torch.save(checkpoint, tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"unexpected \['.*stranger'\]"):
        read(name, tmp_path / "official.pth", heads=3)


@pytest.mark.parametrize("name", sorted(HEADS))
def test_a_missing_key_is_refused(name: str, tmp_path: Path) -> None:
    official, model = models()[name]
    state = {n: t for n, t in model.state_dict().items() if n != "norm.weight"}
    model.state_dict = lambda: state  # type: ignore[assignment, method-assign]
    torch.save(official(model), tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"missing \['norm.weight'\]"):
        read(name, tmp_path / "official.pth", heads=3)


def test_prefixes_are_anchored(tmp_path: Path) -> None:
    """A name that only contains `backbone.` keeps it, and is refused."""
    checkpoint = dino(vit())
    checkpoint["teacher"]["other.backbone.norm.weight"] = torch.zeros(48)
    torch.save(checkpoint, tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"unexpected \['other.backbone.norm.weight'\]"):
        read("dino", tmp_path / "official.pth", heads=3)


@pytest.mark.parametrize("name", ["mocov3", "dino", "ibot", "msn"])
def test_the_other_network_by_key(name: str, tmp_path: Path) -> None:
    official, model = models()[name]
    torch.save(official(model), tmp_path / "official.pth")
    other = "teacher" if name == "mocov3" else "student"
    imported = read(name, tmp_path / "official.pth", heads=3, key=other)  # type: ignore[arg-type]
    expected = vit(seed=1).state_dict()
    assert all(torch.equal(imported.encoder[n], t) for n, t in expected.items())
    assert imported.encoder.keys() == expected.keys() and not imported.heads


@pytest.mark.parametrize("name", ["dino", "ibot"])
def test_backbone_files(name: str, tmp_path: Path) -> None:
    weights = vit().state_dict()
    torch.save(weights if name == "dino" else {"state_dict": weights}, tmp_path / "backbone.pth")
    imported = read(name, tmp_path / "backbone.pth", heads=3)
    assert imported.encoder.keys() == weights.keys() and not imported.heads


def test_newer_names_of_weight_norm(tmp_path: Path) -> None:
    checkpoint = dino(vit())
    for key, prefix in (("student", "module."), ("teacher", "")):
        for old, new in (("weight_g", "original0"), ("weight_v", "original1")):
            gain = checkpoint[key].pop(f"{prefix}head.last_layer.{old}")
            checkpoint[key][f"{prefix}head.last_layer.parametrizations.weight.{new}"] = gain
    torch.save(checkpoint, tmp_path / "official.pth")
    heads = read("dino", tmp_path / "official.pth", heads=3).heads
    assert heads["head.last_layer.weight_g"].shape == (5, 1) and heads["teacher_head.last_layer.weight_v"].shape == (
        5,
        4,
    )


def test_separate_patch_layers_are_kept(tmp_path: Path) -> None:
    checkpoint = ibot(vit())
    checkpoint["student"]["module.head.last_layer2.weight_g"] += 1
    torch.save(checkpoint, tmp_path / "official.pth")
    heads = read("ibot", tmp_path / "official.pth", heads=3).heads
    assert heads["head.patch_layer.weight_g"].equal(heads["head.last_layer.weight_g"] + 1)
    # unless flags are set the teacher alone shares its last layer
    assert not [name for name in heads if name.startswith("teacher_head.patch_layer")]
    checkpoint["teacher"]["head.last_layer2.weight_g"] += 2
    torch.save(checkpoint, tmp_path / "official.pth")
    heads = read("ibot", tmp_path / "official.pth", heads=3).heads
    assert heads["teacher_head.patch_layer.weight_g"].equal(heads["teacher_head.last_layer.weight_g"] + 2)


def test_registers_of_dinov2(tmp_path: Path) -> None:
    """Officially registers are put in after positions were added to class token and patches."""
    model, registers, images = vit(init_values=1e-5), torch.randn(1, 2, 48), torch.randn(2, 3, 16, 16)
    torch.save({**dinov2(model), "register_tokens": registers}, tmp_path / "official.pth")
    import_official("dinov2", tmp_path / "official.pth", tmp_path / "out", heads=3)
    patches: Any = model.patch_embed(images)  # type: ignore[operator]
    x = torch.cat([model.cls_token.expand(2, -1, -1), patches], dim=1) + model.pos_embed  # type: ignore[operator]
    x = torch.cat([x[:, :1], registers.expand(2, -1, -1), x[:, 1:]], dim=1)
    expected = model.norm(model.blocks(x))  # type: ignore[operator]
    torch.testing.assert_close(features_of(tmp_path / "out", images), expected)


def test_swiglu_of_the_giant(tmp_path: Path) -> None:
    arguments: dict[str, Any] = {**SIZE, "img_size": 28, "patch_size": 14}
    model = random(timm.create_model("vit_giant_patch14_dinov2", num_classes=0, **arguments))
    family = importers()["dinov2"].FAMILY._replace(known={768: ("vit_giant_patch14_dinov2", 24)})
    named = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in model.state_dict().items()}
    from unlabeled.backbone.importers.dinov2 import _timm_name

    encoder = {_timm_name(name): tensor for name, tensor in named.items()}
    arguments |= {"img_size": [28, 28], "in_chans": 3}
    assert (
        checked(family, "vit_giant_patch14_dinov2", arguments, encoder, {}).encoder.keys() == model.state_dict().keys()
    )


def test_swiglu_of_any_width(tmp_path: Path) -> None:
    """Official `ffn_layer: swiglufused`; timm has it at one width."""
    arguments: dict[str, Any] = {**SIZE, "img_size": 28, "patch_size": 14, "mlp_ratio": 3.3}
    model = random(timm.create_model("vit_giant_patch14_dinov2", num_classes=0, **arguments))
    named = {n.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t for n, t in model.state_dict().items()}
    torch.save(named, tmp_path / "official.pth")
    import_official("dinov2", tmp_path / "official.pth", tmp_path / "out", heads=3)
    images = torch.randn(2, 3, 28, 28)
    torch.testing.assert_close(features_of(tmp_path / "out", images), model.forward_features(images))  # type: ignore[operator]


def resnet(seed: int = 0) -> nn.Module:
    """timm's names are torchvision's, as the official code takes them."""
    return random(timm.create_model("resnet18", num_classes=0), seed)


def test_mocov3_of_a_resnet_resumes(tmp_path: Path) -> None:
    config = mocov3_method.Config(encoder={"model": "resnet18"}, hidden=8, dim=4)  # type: ignore[arg-type]
    whole = config.build().state_dict()
    places = {"encoder.vit.": "base_encoder.", "teacher.encoder.vit.": "momentum_encoder.", "predictor.": "predictor."}
    places |= {"projector.": "base_encoder.fc.", "teacher.projector.": "momentum_encoder.fc."}
    weights = {
        f"module.{theirs}{name.removeprefix(ours)}": tensor
        for name, tensor in whole.items()
        for ours, theirs in places.items()
        if name.startswith(ours)
    }
    torch.save({"state_dict": weights}, tmp_path / "official.pth")
    imported = read("mocov3", tmp_path / "official.pth")
    assert imported.architecture == "resnet18"
    found = {**under("encoder.vit.", imported.encoder), **imported.heads}
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    teacher = read("mocov3", tmp_path / "official.pth", key="teacher")
    assert teacher.encoder.keys() == imported.encoder.keys() and not teacher.heads


def test_swav_of_a_resnet_resumes(tmp_path: Path) -> None:
    """From weights after a step, whose prototypes official code normalises before the next."""
    fields = {"encoder": {"model": "resnet18"}, "hidden": 8, "dim": 4, "prototypes": 5}
    whole = swav_method.Config.model_validate(fields).build().state_dict()
    places = {"encoder.vit.": "", "projector.": "projection_head.", "prototypes.": "prototypes."}
    weights = {
        f"module.{theirs}{name.removeprefix(ours)}": tensor * (3 if "prototypes" in name else 1)
        for name, tensor in whole.items()
        for ours, theirs in places.items()
        if name.startswith(ours)
    }
    torch.save(weights, tmp_path / "official.pth")
    imported = read("swav", tmp_path / "official.pth")
    assert (imported.architecture, imported.method) == ("resnet18", {"name": "swav", **fields})
    found = {**under("encoder.vit.", imported.encoder), **imported.heads}
    assert found.keys() == whole.keys()
    torch.testing.assert_close(found, dict(whole))


def official_spark(whole: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of our method under the names of the official code."""
    places = (
        (r"^encoder\.vit\.", "sparse_encoder.sp_cnn."),
        (r"^decoder\.blocks\.(\d+)\.up\.", r"dense_decoder.dec.\1.up_sample."),
        (r"^decoder\.blocks\.(\d+)\.convolutions\.", r"dense_decoder.dec.\1.conv."),
        (r"^decoder\.head\.", "dense_decoder.proj."),
        (r"^decoder\.densify\.(\d+)\.norm\.", r"densify_norms.\1."),
        (r"^decoder\.densify\.(\d+)\.project\.", r"densify_projs.\1."),
        (r"^decoder\.densify\.(\d+)\.token$", r"mask_tokens.\1"),
    )
    found = {"imn_m": torch.zeros(1, 3, 1, 1), "imn_s": torch.ones(1, 3, 1, 1)}
    for name, tensor in whole.items():
        official = next(re.sub(ours, theirs, name) for ours, theirs in places if re.match(ours, name))
        found[official] = tensor.view(1, -1, 1, 1) if name.endswith("token") else tensor
    return found


def test_spark_of_a_resnet_resumes(tmp_path: Path) -> None:
    config = spark_method.Config(encoder={"model": "resnet18"}, decoder={"name": "unet", "width": 32})  # type: ignore[arg-type]
    whole = config.build().state_dict()
    torch.save({"module": official_spark(whole), "arch": "resnet18"}, tmp_path / "official.pth")
    imported = read("spark", tmp_path / "official.pth")
    found = {**under("encoder.vit.", imported.encoder), **imported.heads}
    assert found.keys() == whole.keys() and all(torch.equal(found[name], whole[name]) for name in whole)
    assert imported.method["decoder"] == {"name": "unet", "width": 32} and imported.architecture == "resnet18"
    torch.save(imported.encoder, tmp_path / "timm_style.pth")
    assert read("spark", tmp_path / "timm_style.pth").heads == {}
    with pytest.raises(UserError, match="a ResNet has no attention heads"):
        read("spark", tmp_path / "official.pth", heads=3)


def test_spark_of_a_convnext_under_the_official_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(spark_importer.CONVNEXTS, (40, (2, 2, 6, 2)), "convnext_atto")
    network = random(timm.create_model("convnext_atto", num_classes=0))
    names = (
        (r"^stem\.", "downsample_layers.0."),
        (r"\.blocks\.", "."),
        (r"^stages\.(\d)\.downsample\.", r"downsample_layers.\1."),
        ("conv_dw", "dwconv"),
        (r"mlp\.fc", "pwconv"),
    )
    official = {}
    for name, tensor in network.state_dict().items():
        for ours, theirs in names:
            name = re.sub(ours, theirs, name)
        official[name] = tensor.flatten(1) if "pwconv" in name and tensor.ndim == 4 else tensor
    official = {name: tensor for name, tensor in official.items() if not name.startswith("head.")}
    torch.save(official, tmp_path / "official.pth")
    imported = read("spark", tmp_path / "official.pth")
    assert imported.architecture == "convnext_atto" and imported.encoder["head.norm.weight"].eq(1).all()
    for name, tensor in network.state_dict().items():
        assert name.startswith("head.") or torch.equal(imported.encoder[name], tensor), name
    del official["downsample_layers.2.0.bias"], official["stages.2.5.gamma"]
    torch.save(official, tmp_path / "official.pth")
    with pytest.raises(UserError, match=r"stages of \(2, 2, 5, 2\) blocks, 40 wide at first, are none of resnet18"):
        read("spark", tmp_path / "official.pth")


def test_dino_of_a_resnet(tmp_path: Path) -> None:
    model, images = resnet(), torch.randn(2, 3, 64, 64)
    torch.save(model.state_dict(), tmp_path / "backbone.pth")
    import_official("dino", tmp_path / "backbone.pth", tmp_path / "out")
    torch.testing.assert_close(features_of(tmp_path / "out", images), model.forward_features(images))  # type: ignore[operator]


def test_resnets_that_are_none_are_refused(tmp_path: Path) -> None:
    weights = resnet().state_dict()
    torch.save(weights, tmp_path / "whole.pth")
    torch.save({n: t for n, t in weights.items() if not n.startswith("layer4.1.")}, tmp_path / "short.pth")
    torch.save({n: t for n, t in weights.items() if n != "bn1.weight"}, tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"stages of \(2, 2, 2, 1\) blocks is none of resnet18, "):
        read("dino", tmp_path / "short.pth")
    with pytest.raises(UserError, match=r"missing \['bn1.weight'\]"):
        read("dino", tmp_path / "bare.pth")
    with pytest.raises(UserError, match=r"no attention heads\. Leave out --heads"):
        read("dino", tmp_path / "whole.pth", heads=3)


def test_official_numbers_of_heads() -> None:
    """No weight shows them. MoCo v3's small differs from timm's."""
    expected = {"mae": {768: 12, 1024: 16, 1280: 16}, "mocov3": {384: 12, 768: 12}, "dino": {192: 3, 384: 6, 768: 12}}
    for name, numbers in expected.items():
        for width, number in numbers.items():
            assert known_model(importers()[name].FAMILY, width, None)[1] == number
    with pytest.raises(UserError, match=r"no official model of a MoCo v3 is 48 wide .* Pass --heads"):
        known_model(importers()["mocov3"].FAMILY, 48, None)
    with pytest.raises(UserError, match="5 heads do not divide a width of 48"):
        known_model(importers()["dino"].FAMILY, 48, 5)


def test_settings_of_yacs_are_read_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    module = types.ModuleType("yacs.config")
    module.CfgNode = type("CfgNode", (dict,), {"__module__": "yacs.config"})  # type: ignore[attr-defined]
    checkpoint = simmim(models()["simmim"][1])
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "yacs", types.ModuleType("yacs"))
        patch.setitem(sys.modules, "yacs.config", module)
        node = module.CfgNode(DATA=module.CfgNode(BATCH_SIZE=8))  # type: ignore[attr-defined]
        node.__dict__["__immutable__"] = True
        torch.save({**checkpoint, "config": node}, tmp_path / "official.pth")
    assert read("simmim", tmp_path / "official.pth").arguments["num_heads"] == 3


def test_the_pixels_of_simmims_head_keep_their_place(tmp_path: Path) -> None:
    checkpoint = simmim(models()["simmim"][1])
    torch.save(checkpoint, tmp_path / "official.pth")
    bias = read("simmim", tmp_path / "official.pth").heads["decoder.head.bias"]
    shuffled = nn.functional.pixel_shuffle(checkpoint["model"]["decoder.0.bias"].view(1, 192, 1, 1), 8)
    assert torch.equal(bias.view(8, 8, 3).permute(2, 0, 1), shuffled[0])


@pytest.mark.parametrize("name", ["mae", "dinov2", "simmim"])
def test_a_key_where_there_is_one_network_is_refused(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no student of its own"):
        read(name, tmp_path / "absent.pth", key="student")


def test_swin_is_refused(tmp_path: Path) -> None:
    torch.save({"model": {"encoder.layers.0.blocks.0.norm1.weight": torch.zeros(3)}}, tmp_path / "official.pth")
    with pytest.raises(UserError, match="not a SimMIM ViT"):
        read("simmim", tmp_path / "official.pth")


@pytest.mark.parametrize("data", [b"name: it\n", b"\x80\x02cposix\nsystem\nX\x04\x00\x00\x00true\x85R.", b""])
def test_nobody_is_advised_to_switch_the_safeguard_off(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(UserError, match="cannot be read as plain weights") as caught:
        read("mae", tmp_path / "x.pth")
    assert "weights_only" not in str(caught.value) and "Expected the .pth that" in str(caught.value)


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("simsiam", {"predictor_hidden": 3, "projector_layers": 2}),
        ("barlowtwins", {}),
        ("vicreg", {"expander_layers": 2}),
    ],
)
def test_resnets_of_two_views_resume(name: str, fields: dict[str, Any], tmp_path: Path) -> None:
    """Full checkpoints with their heads, and the fields of a recipe that goes on from them."""
    config = METHODS.kind(name)
    whole = config.model_validate({"encoder": {"model": "resnet18"}, "hidden": 6, "dim": 4, **fields}).build()
    state = random(whole).state_dict()
    encoder, head = ("encoder", "encoder.fc") if name == "simsiam" else ("backbone", "projector")
    places = {"encoder.vit.": encoder, "projector.": head, "predictor.": "predictor", "norm.": "bn"}
    weights = {
        f"module.{theirs}.{key.removeprefix(ours)}": tensor
        for key, tensor in state.items()
        for ours, theirs in places.items()
        if key.startswith(ours)
    }
    torch.save({"state_dict" if name == "simsiam" else "model": weights}, tmp_path / "official.pth")
    imported = read(name, tmp_path / "official.pth")
    found = {**under("encoder.vit.", imported.encoder), **imported.heads}
    assert found.keys() == state.keys() and all(torch.equal(found[key], state[key]) for key in state)
    shapes = {key: tensor.shape for key, tensor in config.model_validate(imported.method).build().state_dict().items()}
    assert shapes == {key: tensor.shape for key, tensor in state.items()}


@pytest.mark.parametrize("name", ["barlowtwins", "vicreg"])
def test_backbone_files_of_two_views(name: str, tmp_path: Path) -> None:
    model, images = resnet(), torch.randn(2, 3, 64, 64)
    torch.save(model.state_dict(), tmp_path / "backbone.pth")
    import_official(name, tmp_path / "backbone.pth", tmp_path / "out")
    torch.testing.assert_close(features_of(tmp_path / "out", images), model.forward_features(images))  # type: ignore[operator]
    torch.save({**model.state_dict(), "stranger": torch.zeros(1)}, tmp_path / "strange.pth")
    with pytest.raises(UserError, match=r"unexpected \['stranger'\]"):
        read(name, tmp_path / "strange.pth")
    torch.save({"blocks.0.x": torch.zeros(2)}, tmp_path / "vit.pth")
    with pytest.raises(UserError, match=r"a ResNet with stages of \(0, 0, 0, 0\) blocks is none of"):
        read(name, tmp_path / "vit.pth")


def test_crossmae_gives_the_features_of_its_encoder_and_resumes(tmp_path: Path) -> None:
    """Official files have no last norm, and a row of positions for a class token that no query is."""
    model = vit()
    nn.init.ones_(model.norm.weight)  # type: ignore[union-attr, arg-type]
    nn.init.zeros_(model.norm.bias)  # type: ignore[union-attr, arg-type]
    decoder = {"wfm.linear.weight": (1, 3), "decoder_pos_embed": (1, 5, 8), "mask_token": (1, 1, 8)}
    shapes = {"norm1": 8, "norm2": 8, "cross_attn.q": (8, 8), "cross_attn.kv": (16, 48), "cross_attn.proj": (8, 8)}
    shapes |= {"mlp.fc1": (32, 8), "mlp.fc2": (8, 32)}
    layers = {f"decoder_blocks.0.{name}": shape for name, shape in shapes.items()}
    layers |= {"dec_norms.0": 48, "decoder_norm": 8, "decoder_pred": (192, 8)}
    for name, shape in layers.items():
        rows = shape if isinstance(shape, tuple) else (shape,)
        decoder |= {f"{name}.weight": rows, f"{name}.bias": rows[:1]}
    rest = tensors(decoder)
    torch.save({"model": {**crossmae(model)["model"], **rest}}, tmp_path / "official.pth")
    assert main(["import", "crossmae", str(tmp_path / "official.pth"), str(tmp_path / "out"), "--heads", "3"]) == 0
    images = torch.randn(2, 3, 16, 16)
    torch.testing.assert_close(features_of(tmp_path / "out", images), model.forward_features(images))  # type: ignore[operator]
    imported = read("crossmae", tmp_path / "official.pth", heads=3)
    section = {"name": "cross", "width": 8, "depth": 1, "heads": 1, "mlp_ratio": 4.0, "use_input": True}
    assert imported.method["decoder"] == section
    assert torch.equal(imported.heads["decoder.positions"], rest["decoder_pos_embed"][:, 1:])
    method = METHODS.kind("mae").model_validate({"view": {"size": 16, "mask": {"name": "random"}}, **imported.method})
    load_method(method.build(), tmp_path / "out")  # type: ignore[attr-defined]
