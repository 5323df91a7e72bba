"""iBOT's heads and losses against numbers of the official code (bytedance/ibot)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.distill import build_head, head_name, head_shape, teacher_temperature
from parity.golden import Golden, Settings, assert_close, assert_gradient_at, peek
from parity.vit import BACKWARD, FORWARD, assert_gradients
from torch import Tensor

from unlabeled.nn.loss.prototypes import cross_view, masked_patches, sharpen
from unlabeled.nn.teacher import Centre


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per head, pair of heads and loss of whatever set is given, as its names tell."""
    patterns = {
        "head": ("head", r"out/(\w+)/vectors_2d$"),
        "flags": ("head", r"out/(\w+)/teacher_cls$"),
        "setting": ("loss", r"out/(\w+)/cls_patch_total$"),
    }
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            golden = peek(metafunc.config, "ibot", f"{file}.safetensors")
            metafunc.parametrize(name, (golden and golden.found(pattern)) or ["absent"])


@pytest.fixture
def golden(folder: Path) -> Golden:
    return Golden(folder / "head.safetensors")


def settings_of(golden: Golden, variant: str) -> Settings:
    """What all heads have, and what a variant changes."""
    c = golden.config
    return Settings({**c.get("base", {}), **c.get("variants", c).get(variant, {})})


def test_head(golden: Golden, head: str) -> None:
    weights = dict(golden.under(f"sd_{head}"))
    shape, ours = head_shape(weights), build_head(weights, settings_of(golden, head))
    tokens = golden["in/tokens"].requires_grad_()
    cls, patches = ours(tokens[:, 0]), ours.patches(tokens[:, 1:])
    # named by the width that it has in full
    (cotangent,) = golden.found(r"in/(cot_patch\d*)$")
    (
        (cls * golden["in/cot_cls"]).sum() + (patches * golden[f"in/{cotangent}"][..., : patches.shape[-1]]).sum()
    ).backward()
    assert_close(cls, golden[f"out/{head}/cls"], FORWARD, "class logits")
    assert_close(patches, golden[f"out/{head}/patch"], FORWARD, "patch logits")
    assert_close(ours(golden["in/vectors"]), golden[f"out/{head}/vectors_2d"], FORWARD, "logits of vectors")
    assert_gradient_at(tokens.grad, golden, f"out/{head}/grad_tokens", BACKWARD)
    assert_gradients(ours, golden.some(f"grad_{head}"), lambda name: head_name(shape, name))


def test_a_shared_teacher_of_a_separate_student(golden: Golden, flags: str) -> None:
    """Loading a separate student head into a shared teacher head leaves it with the patches' last layer for both."""
    weights = dict(golden.under(f"sd_{flags.removesuffix('_flags')}_student"))
    for part in ("weight_g", "weight_v"):
        weights[f"last_layer.{part}"] = weights[f"last_layer2.{part}"]
    teacher, tokens = build_head(weights, settings_of(golden, flags)), golden["in/tokens"]
    assert torch.equal(teacher.last_layer.weight_v, golden[f"out/{flags}/teacher_last_layer_weight_v"])
    assert_close(teacher(tokens[:, 0]), golden[f"out/{flags}/teacher_cls"], FORWARD, "class logits")
    assert_close(teacher.patches(tokens[:, 1:]), golden[f"out/{flags}/teacher_patch"], FORWARD, "patch logits")


def test_losses_centres_and_temperatures(folder: Path, setting: str) -> None:
    golden = Golden(folder / "loss.safetensors")
    c, out, inputs = golden.config.get(setting, {}), golden.under(f"out/{setting}"), golden.under("in")
    epochs, views, pictures = golden.shape("in/mask")[:3]
    centre = Centre(golden.shape("in/teacher_cls")[-1], c.get("center_momentum", 0.9))
    patch_centre = Centre(golden.shape("in/teacher_patch")[-1], c.get("center_momentum2", 0.9))
    class_warmup = teacher_temperature(c, "warmup_teacher_temp", "teacher_temp", epochs=30)
    patch_warmup = teacher_temperature(c, "warmup_teacher_patch_temp", "teacher_patch_temp", epochs=30, final=0.07)
    locals_ = c.get("nlcrops", golden.shape("in/student_local_cls")[1] // pictures)
    gradients: dict[str, list[Any]] = {}
    for epoch in range(epochs):
        keys = ["student_cls", "student_patch", *(["student_local_cls"] if locals_ else [])]
        students = {key: inputs[key][epoch].requires_grad_() for key in keys}
        teacher, teacher_patch = inputs["teacher_cls"][epoch], inputs["teacher_patch"][epoch]
        sharp = c.get("student_temp", 0.1)

        # class tokens: the teacher at one global view, the student at every other view
        temp = class_warmup.at(epoch, 1.0)
        assert temp == pytest.approx(out["teacher_temp"][epoch].item(), rel=1e-12)
        targets = sharpen(teacher, centre.value, temp).unflatten(0, (views, pictures))
        student = torch.cat([students[key] for key in keys if key.endswith("cls")]).unflatten(0, (-1, pictures))
        cls = cross_view(student, targets, sharp) * c.get("lambda1", 1)

        # patches: hidden ones, in the same view
        temp = patch_warmup.at(epoch - c.get("mim_start_epoch", 0), 1.0)
        assert temp == pytest.approx(out["teacher_temp2"][epoch].item(), rel=1e-12)
        hidden = inputs["mask"][epoch].bool().flatten(2).flatten(0, 1)
        weight = (hidden / hidden.sum(1, keepdim=True).clamp_min(1))[hidden]
        targets = sharpen(teacher_patch[hidden], patch_centre.value, temp)
        patch = masked_patches(students["student_patch"][hidden], targets, weight, len(hidden), sharp)
        patch = patch * c.get("lambda2", 1)

        losses = torch.stack([cls, patch, cls + patch])
        losses[2].backward()
        centre.note(teacher, step=epoch)
        patch_centre.note(teacher_patch.flatten(0, 1), step=epoch)
        centre.update_()
        patch_centre.update_()
        assert_close(losses, out["cls_patch_total"][epoch], FORWARD, f"losses of epoch {epoch}")
        assert_close(centre.value, out["center_after"][epoch], FORWARD, f"centre after epoch {epoch}")
        assert_close(patch_centre.value, out["center2_after"][epoch], FORWARD, f"patch centre after epoch {epoch}")
        for key, student in students.items():
            gradients.setdefault(key, []).append(student.grad)
    for key in [key for key in gradients if f"dloss_d{key}" in out]:
        assert_same_epochs(gradients[key], out[f"dloss_d{key}"], key)


def assert_same_epochs(mine: list[Any], official: Tensor, what: str) -> None:
    """Official gradients of all epochs, or of some, in order; the set does not say which."""
    assert len(official), f"no gradient of {what}"
    rest = iter(mine)
    for row, gradient in enumerate(official):
        allowed = BACKWARD * gradient.abs().max()
        assert any((ours - gradient).abs().max() <= allowed for ours in rest), f"gradient of {what}, row {row}"
