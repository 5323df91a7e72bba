"""iBOT against numbers of the official code (bytedance/ibot)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.conftest import Golden, assert_close, golden_folder
from parity.distill import BACKWARD, FORWARD, assert_gradients, build_head, head_weights
from torch import Tensor

from unlabeled.nn.losses import cross_view, masked_patches, sharpen
from unlabeled.nn.schedules import warmup
from unlabeled.nn.teacher import Centre


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per head and per loss of whatever set is given."""
    folder = golden_folder(metafunc.config, "ibot")
    if "head" in metafunc.fixturenames:
        file = folder / "head.safetensors"
        metafunc.parametrize("head", sorted(Golden(file).config["variants"]) if file.is_file() else ["absent"])
    if "setting" in metafunc.fixturenames:
        file = folder / "loss.safetensors"
        metafunc.parametrize("setting", sorted(Golden(file).config) if file.is_file() else ["absent"])


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest) -> Path:
    return golden_folder(request.config, "ibot")


def variant(golden: Golden, name: str) -> dict[str, Any]:
    return golden.config["base"] | golden.config["variants"][name]


def test_head(folder: Path, head: str) -> None:
    golden = Golden(folder / "head.safetensors")
    config = variant(golden, head)
    ours = build_head(config, golden.under(f"sd_{head}"))
    tokens = golden["in/tokens"].clone().requires_grad_()
    cls, patches = ours(tokens[:, 0]), ours.patches(tokens[:, 1:])
    cotangent = golden["in/cot_patch40"][..., : patches.shape[-1]]
    ((cls * golden["in/cot_cls"]).sum() + (patches * cotangent).sum()).backward()
    assert tokens.grad is not None
    assert_close(cls, golden[f"out/{head}/cls"], FORWARD, "class logits")
    assert_close(patches, golden[f"out/{head}/patch"], FORWARD, "patch logits")
    assert_close(ours(golden["in/vectors"]), golden[f"out/{head}/vectors_2d"], FORWARD, "logits of vectors")
    assert_close(tokens.grad, golden[f"out/{head}/grad_tokens"], BACKWARD, "gradient at the tokens")
    assert_gradients(ours, head_weights(config, golden.under(f"grad_{head}")))


def test_head_of_the_default_flags(folder: Path) -> None:
    """Loading a separate student head into a shared teacher head leaves it with the patches' last layer for both."""
    golden = Golden(folder / "head.safetensors")
    weights = golden.under("sd_default_student")
    for part in ("weight_g", "weight_v"):
        weights[f"last_layer.{part}"] = weights[f"last_layer2.{part}"]
    teacher = build_head(variant(golden, "shared"), weights)
    tokens = golden["in/tokens"]
    assert torch.equal(teacher.last_layer.weight_v, golden["out/default_flags/teacher_last_layer_weight_v"])
    assert_close(teacher(tokens[:, 0]), golden["out/default_flags/teacher_cls"], FORWARD, "class logits")
    assert_close(teacher.patches(tokens[:, 1:]), golden["out/default_flags/teacher_patch"], FORWARD, "patch logits")


def temperature(config: dict[str, Any], epoch: int, which: str = "", start: int = 0) -> float:
    done = (epoch - start) / (config["warmup_teacher_temp_epochs"] - 1)
    return warmup(config[f"warmup_teacher_temp{which}"], config[f"teacher_temp{which}"], done)


def test_losses_centres_and_temperatures(folder: Path, setting: str) -> None:
    golden = Golden(folder / "loss.safetensors")
    c, out = golden.config[setting], golden.under(f"out/{setting}")
    centre = Centre(c["out_dim"], c.get("center_momentum", 0.9))
    patch_centre = Centre(c["patch_out_dim"], c.get("center_momentum2", 0.9))
    gradients: dict[str, list[Any]] = {}
    for epoch in range(c["nepochs"]):
        inputs = {key: tensor[epoch].clone() for key, tensor in golden.under("in").items()}
        keys = ["student_cls", "student_patch", *(["student_local_cls"] if c["nlcrops"] else [])]
        students = {key: inputs[key].requires_grad_() for key in keys}

        # class tokens: the teacher at one global view, the student at every other view
        temp = temperature(c, epoch)
        assert temp == pytest.approx(out["teacher_temp"][epoch].item(), rel=1e-12)
        targets = sharpen(inputs["teacher_cls"], centre.value, temp).unflatten(0, (c["ngcrops"], -1))
        views = torch.cat([students[key] for key in keys if key.endswith("cls")])
        cls = cross_view(views.unflatten(0, (c["ngcrops"] + c["nlcrops"], -1)), targets, 0.1) * c.get("lambda1", 1)

        # patches: hidden ones, in the same view
        temp = temperature(c, epoch, "2", c["mim_start_epoch"])
        assert temp == pytest.approx(out["teacher_temp2"][epoch].item(), rel=1e-12)
        hidden = inputs["mask"].bool().flatten(2).flatten(0, 1)
        weight = (hidden / hidden.sum(1, keepdim=True).clamp_min(1))[hidden]
        targets = sharpen(inputs["teacher_patch"][hidden], patch_centre.value, temp)
        patch = masked_patches(students["student_patch"][hidden], targets, weight, len(hidden), 0.1)
        patch = patch * c.get("lambda2", 1)

        losses = torch.stack([cls, patch, cls + patch])
        losses[2].backward()
        centre.note(inputs["teacher_cls"], step=epoch)
        patch_centre.note(inputs["teacher_patch"].flatten(0, 1), step=epoch)
        centre.update_()
        patch_centre.update_()
        assert_close(losses, out["cls_patch_total"][epoch], FORWARD, f"losses of epoch {epoch}")
        assert_close(centre.value, out["center_after"][epoch], FORWARD, f"centre after epoch {epoch}")
        assert_close(patch_centre.value, out["center2_after"][epoch], FORWARD, f"patch centre after epoch {epoch}")
        for key, student in students.items():
            gradients.setdefault(key, []).append(student.grad)
    for key, mine in gradients.items():
        assert_same_epochs(mine, out.get(f"dloss_d{key}", torch.empty(0)), key)


def assert_same_epochs(mine: list[Any], official: Tensor, what: str) -> None:
    """Official gradients of all epochs, or of some, in order; the set does not say which."""
    rest = iter(mine)
    for row, gradient in enumerate(official):
        allowed = BACKWARD * gradient.abs().max()
        assert any((ours - gradient).abs().max() <= allowed for ours in rest), f"gradient of {what}, row {row}"
