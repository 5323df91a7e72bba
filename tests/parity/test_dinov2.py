"""DINOv2's parts against numbers of the official code (facebookresearch/dinov2)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from parity.conftest import Golden, assert_close
from parity.distill import BACKWARD, FORWARD, build_head
from torch import Tensor

from unlabeled.nn.losses import cross_view, koleo, masked_patches, sharpen, sinkhorn
from unlabeled.nn.teacher import Centre


@pytest.fixture(scope="module")
def losses(folder: Path) -> Golden:
    return Golden(folder / "losses.safetensors")


def test_head(folder: Path) -> None:
    golden = Golden(folder / "head.safetensors")
    head = build_head(golden.config | {"norm_last_layer": False}, golden.under("sd"))
    assert_close(head(golden["in/x"]), golden["out/y"], FORWARD, "logits")


def test_koleo(folder: Path) -> None:
    golden = Golden(folder / "koleo.safetensors")
    for key in (key.removeprefix("in/") for key in golden.tensors if key.startswith("in/")):
        features = golden[f"in/{key}"].clone().requires_grad_()
        loss = koleo(features, golden.config["eps"])
        loss.backward()
        assert_close(loss, golden[f"out/{key}/loss"], FORWARD, f"loss of {key}")
        assert features.grad is not None
        nearest = golden[f"out/{key}/nearest"]
        assert_close(distinct(features.grad, golden[f"in/{key}"], nearest), golden[f"out/{key}/grad"], BACKWARD, key)


def distinct(gradient: Tensor, features: Tensor, nearest: Tensor) -> Tensor:
    """Rows that do not equal their neighbour: the others' gradient is ill-conditioned and left out of the set."""
    return gradient[(features != features[nearest]).any(1)]


def test_sinkhorn(folder: Path) -> None:
    golden = Golden(folder / "sinkhorn.safetensors")
    for key, official in golden.under("out").items():
        if key.endswith("one_row"):
            assert_close(sinkhorn(golden["in/one_row"], 0.04), official, FORWARD, key)
            continue
        parts = re.fullmatch(r"(dino|ibot)_T([\d.]+)_it(\d+)(_B_overstated)?", key)
        assert parts, f"unknown key {key}"
        logits = golden["in/teacher_cls" if parts[1] == "dino" else "in/teacher_patch"]
        plan = sinkhorn(logits, float(parts[2]), int(parts[3]))
        assert_close(plan, official, FORWARD, key)
        # rows that pad (twice as many as there are patches) change nothing
        padded = torch.cat([logits, logits.new_zeros(logits.shape)])
        valid = torch.arange(len(padded)) < len(logits)
        assert_close(sinkhorn(padded, float(parts[2]), int(parts[3]), valid)[: len(logits)], official, FORWARD, key)


def test_cross_view(losses: Golden) -> None:
    """Officially two sums over the teacher's swapped crops; together they are DINO's mean over pairs."""
    c = losses.config
    views = [losses["in/student_global"], losses["in/student_local"]]
    student = [view.clone().requires_grad_() for view in views]
    swapped = losses["out/teacher_cls_softmax"][-1].unflatten(0, (2, c["B"]))
    loss = cross_view(torch.cat(student).unflatten(0, (-1, c["B"])), swapped.flip(0), c["student_temp"])
    loss.backward()
    official = losses["out/dino_global_crops_loss"] + losses["out/dino_local_crops_loss"]
    assert_close(loss, official, FORWARD, "loss")
    for view, name in zip(student, ("global", "local"), strict=True):
        assert view.grad is not None
        assert_close(view.grad, losses[f"out/ddino_d{name}"], BACKWARD, name)


def test_class_centre(losses: Golden) -> None:
    centre = Centre(losses.config["K"], losses.config["center_momentum"])
    seen = losses["out/dino_center_seen"]
    for batch, teacher in enumerate(losses["in/teacher_cls"]):
        assert_close(centre.value, seen[batch], FORWARD, f"centre of batch {batch}")
        ours = sharpen(teacher, centre.value, losses.config["teacher_temp"])
        assert_close(ours, losses["out/teacher_cls_softmax"][batch], FORWARD, f"teacher of batch {batch}")
        centre.note(teacher, step=batch)
        centre.update_()
    assert_close(centre.value, seen[-1], FORWARD, "centre at the end")


def test_patch_centre_is_of_hidden_patches(losses: Golden) -> None:
    centre = Centre(losses.config["K_patch"], losses.config["center_momentum"])
    hidden, seen = losses["in/masks"].flatten(), losses["out/ibot_center_seen"]
    for batch, teacher in enumerate(losses["in/teacher_patch"].flatten(1, 2)):
        assert_close(centre.value, seen[batch], FORWARD, f"centre of batch {batch}")
        ours = sharpen(teacher, centre.value, losses.config["teacher_temp"])[hidden]
        assert_close(ours, losses["out/teacher_patch_softmax_masked"][batch], FORWARD, f"teacher of batch {batch}")
        centre.note(teacher, step=batch, valid=hidden)
        centre.update_()
    assert_close(centre.value, seen[-1], FORWARD, "centre at the end")


@pytest.mark.parametrize("key", ["ibot_forward_masked", "ibot_forward_masked_no_weight"])
def test_masked_patches(losses: Golden, key: str) -> None:
    masks = losses["in/masks"]
    student = losses["in/student_patch"].clone().requires_grad_()
    weight = (masks / masks.sum(1, keepdim=True).clamp_min(1))[masks]
    assert_close(weight, losses["out/masks_weight"], FORWARD, "weight")
    teacher = losses["out/teacher_patch_softmax_masked"][-1]
    loss = masked_patches(student[masks], teacher, weight, len(masks), losses.config["student_temp"])
    loss.backward()
    assert student.grad is not None
    assert_close(loss, losses[f"out/{key}"], FORWARD, "loss")
    assert_close(student.grad, losses["out/dibot_dpatch"], BACKWARD, "gradient")


def test_koleo_of_both_crops(losses: Golden) -> None:
    loss = sum(koleo(crop) for crop in losses["in/cls_tokens"].chunk(2))
    assert isinstance(loss, Tensor)
    assert_close(loss, losses["out/koleo_sum_over_two_crops"], FORWARD, "loss")
