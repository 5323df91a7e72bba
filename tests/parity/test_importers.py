"""What importers make of official weights, against outputs of the official code (MAE and SimMIM: in their files)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from parity.conftest import Golden, assert_close, golden_folder

from unlabeled.data.masks import BlockMask
from unlabeled.data.views import View
from unlabeled.export import load_method
from unlabeled.importers import import_official
from unlabeled.methods import mocov3
from unlabeled.nn.encoder import EncoderConfig

FORWARD = 1e-5


def golden(request: pytest.FixtureRequest, method: str, file: str) -> Golden:
    return Golden(golden_folder(request.config, method) / f"{file}.safetensors")


def imported(numbers: Golden, name: str, checkpoint: dict[str, Any], home: Path, **options: Any) -> Any:
    """The backbone as timm alone loads it, from `home/out`."""
    torch.save(checkpoint, home / "official.pth")
    import_official(
        name, home / "official.pth", home / "out", options.pop("heads", numbers.config["num_heads"]), **options
    )
    return timm.create_model(f"local-dir:{home / 'out'}", pretrained=True).eval()


def encoder_of(numbers: Golden, heads: int | None = None, positions: Any = "learned") -> EncoderConfig:
    c = numbers.config
    return EncoderConfig(
        model="vit_small_patch16_224",
        patch_size=c["patch_size"],
        width=c["embed_dim"],
        depth=c["depth"],
        heads=heads or c["num_heads"],
        positions=positions,
    )


def head_of(numbers: Golden) -> dict[str, Any]:
    c = numbers.config["head"]
    return {
        "prototypes": c["out_dim"],
        "hidden": c["hidden_dim"],
        "bottleneck": c["bottleneck_dim"],
        "layers": c["nlayers"],
        "freeze_gain": c["norm_last_layer"],
    }


@pytest.mark.parametrize("right", [True, False])
def test_mocov3(request: pytest.FixtureRequest, tmp_path: Path, right: bool) -> None:
    """Projections, in training mode as there; another number of heads has the same shapes and other features."""
    numbers = golden(request, "mocov3", "model")
    weights = {f"module.{name}": tensor for name, tensor in numbers.under("sd").items()}
    count = numbers.config["num_heads"] if right else 2 * numbers.config["num_heads"]
    backbone = imported(numbers, "mocov3", {"state_dict": weights}, tmp_path, heads=count)
    c, view = numbers.config, View(size=numbers.config["img_size"])
    encoder = encoder_of(numbers, heads=count, positions="sincos_rows")
    sizes: Any = {"hidden": c["moco_mlp_dim"], "dim": c["moco_dim"]}
    method = mocov3.Config(first=view, second=view, encoder=encoder, **sizes).build().train()
    load_method(method, tmp_path / "out")
    with torch.no_grad():
        projected = method.projector(backbone.forward_features(numbers["in/x1"])[:, 0])
    if right:
        assert_close(projected, numbers["out/z1"], FORWARD, "z1")
    else:
        assert (projected - numbers["out/z1"]).abs().max() > 0.01 * numbers["out/z1"].abs().max()


def test_dino(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    """The teacher by timm alone, and the whole state by our method."""
    numbers, dino = golden(request, "dino", "multicrop"), pytest.importorskip("unlabeled.methods.dino")
    student = {f"module.{name}": tensor for name, tensor in numbers.under("sd_student").items()}
    checkpoint = {"student": student, "teacher": numbers.under("sd_teacher")}
    backbone = imported(numbers, "dino", {**checkpoint, "dino_loss": {"center": numbers["in/center"]}}, tmp_path)
    view = View(size=numbers.config["img_size"][0])
    method = dino.Config(
        global_1=view, global_2=view, local=None, encoder=encoder_of(numbers), head=head_of(numbers)
    ).build()
    load_method(method, tmp_path / "out")
    crops = torch.cat([numbers["in/crop0"], numbers["in/crop1"]])
    with torch.no_grad():
        logits = method.teacher_head(backbone.forward_features(crops)[:, 0])
    assert_close(logits, numbers["out/teacher_logits"], FORWARD, "teacher's logits")
    assert torch.equal(method.centre.value, numbers["in/center"][0])


def test_dino_student(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    numbers = golden(request, "dino", "multicrop")
    backbone = imported(numbers, "dino", {"student": numbers.under("sd_student")}, tmp_path, key="student")
    crops = torch.cat([numbers["in/crop0"], numbers["in/crop1"]])
    with torch.no_grad():
        features = backbone.forward_features(crops)[:, 0]
    assert_close(features, numbers["out/student_backbone_global"], FORWARD, "student's features")


def test_ibot(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    numbers, ibot = golden(request, "ibot", "model"), pytest.importorskip("unlabeled.methods.ibot")
    student = {f"module.{name}": tensor for name, tensor in numbers.under("sd_student").items()}
    centres = {"center": numbers["in/center"], "center2": numbers["in/center2"]}
    checkpoint = {"student": student, "teacher": numbers.under("sd_teacher"), "ibot_loss": centres}
    backbone = imported(numbers, "ibot", checkpoint, tmp_path)
    view = View(size=numbers.config["img_size"][0], mask=BlockMask())
    c = numbers.config["head"]
    method = ibot.Config(
        global_1=view,
        global_2=view,
        local=None,
        encoder=encoder_of(numbers),
        head=head_of(numbers),
        patch_prototypes=None if c["shared_head"] else c["patch_out_dim"],
    ).build()
    load_method(method, tmp_path / "out")
    crops, head = torch.cat([numbers["in/crop0"], numbers["in/crop1"]]), method.teacher_head
    with torch.no_grad():
        tokens = backbone.forward_features(crops)
        assert_close(head(tokens[:, 0]), numbers["out/teacher_cls_logits"], FORWARD, "teacher's logits of classes")
        assert_close(head.patches(tokens[:, 1:]), numbers["out/teacher_patch_logits"], FORWARD, "of patches")
    assert torch.equal(method.patch_centre.value, numbers["in/center2"].flatten())
    assert torch.equal(method.mask_token, student["module.backbone.masked_embed"])


def test_ibot_student(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    numbers = golden(request, "ibot", "model")
    backbone = imported(numbers, "ibot", {"student": numbers.under("sd_student")}, tmp_path, key="student")
    with torch.no_grad():
        tokens = backbone.forward_features(numbers["in/crop0"])
    assert_close(tokens, numbers["out/student_tokens_unmasked_crop0"], FORWARD, "student's tokens")
