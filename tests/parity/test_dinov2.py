"""DINOv2's parts against numbers of the official code (facebookresearch/dinov2)."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from parity.distill import build_head
from parity.golden import Golden, Settings, assert_close, assert_gradient_at, peek
from parity.vit import BACKWARD, FORWARD
from torch import Tensor

from unlabeled.nn.loss.prototypes import cross_view, masked_patches, sharpen
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.nn.loss.spread import koleo
from unlabeled.nn.teacher import Centre


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per features and per plan of whatever set is given, as its names tell."""
    patterns = {"features": ("koleo", r"in/(\w+)$"), "plan": ("sinkhorn", r"out/(.+)$")}
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            golden = peek(metafunc.config, "dinov2", f"{file}.safetensors")
            metafunc.parametrize(name, (golden and golden.found(pattern)) or ["absent"])


@pytest.fixture(scope="module")
def losses(folder: Path) -> Golden:
    return Golden(folder / "losses.safetensors")


def test_head(folder: Path) -> None:
    golden = Golden(folder / "head.safetensors")
    head = build_head(dict(golden.under("sd")), Settings(norm_last_layer=False))
    assert_close(head(golden["in/x"]), golden["out/y"], FORWARD, "logits")


def test_koleo(folder: Path, features: str) -> None:
    golden = Golden(folder / "koleo.safetensors")
    x = golden[f"in/{features}"].requires_grad_()
    loss = koleo(x, golden.config.get("eps", 1e-8))
    loss.backward()
    assert x.grad is not None
    assert_close(loss, golden[f"out/{features}/loss"], FORWARD, "loss")
    nearest = golden[f"out/{features}/nearest"]
    similarity = torch.nn.functional.normalize(x.detach()) @ torch.nn.functional.normalize(x.detach()).T
    assert torch.equal(similarity.fill_diagonal_(-1).argmax(1), nearest), "neighbours"
    key = f"out/{features}/grad"
    whole = key not in golden or golden.shape(key)[0] == len(x)
    mine = x.grad if whole else distinct(x.grad, golden[f"in/{features}"], nearest)
    assert_gradient_at(mine, golden, key, BACKWARD)


def distinct(gradient: Tensor, features: Tensor, nearest: Tensor) -> Tensor:
    """Rows that do not equal their neighbour: the others' gradient is ill-conditioned and left out of the set."""
    return gradient[(features != features[nearest]).any(1)]


def test_sinkhorn(folder: Path, plan: str) -> None:
    """Names are HEAD_Ttemperature_ititerations, and more words where an input is said to be longer than it is."""
    golden = Golden(folder / "sinkhorn.safetensors")
    official = golden[f"out/{plan}"]
    if plan.endswith("one_row"):
        assert_close(sinkhorn(golden["in/one_row"], 0.04), official, FORWARD, plan)
        return
    parts = re.fullmatch(r"(dino|ibot)_T([\d.]+)(?:_it(\d+))?(_\w+)?", plan)
    assert parts, f"unknown key {plan}"
    logits = golden["in/teacher_cls" if parts[1] == "dino" else "in/teacher_patch"]
    temperature, iterations = float(parts[2]), int(parts[3] or golden.config.get("default_iterations", 3))
    assert_close(sinkhorn(logits, temperature, iterations), official, FORWARD, plan)
    # rows that pad (twice as many as there are patches) change nothing
    padded = torch.cat([logits, logits.new_zeros(logits.shape)])
    valid = torch.arange(len(padded)) < len(logits)
    assert_close(sinkhorn(padded, temperature, iterations, valid)[: len(logits)], official, FORWARD, plan)


def student_temperature(losses: Golden) -> float:
    return losses.config.get("student_temp", 0.1)


def test_cross_view(losses: Golden) -> None:
    """Officially two sums over the teacher's swapped crops; together they are DINO's mean over pairs."""
    pictures = losses.shape("in/student_global")[0] // 2
    student = [losses["in/student_global"].requires_grad_(), losses["in/student_local"].requires_grad_()]
    views, temperature = torch.cat(student).unflatten(0, (-1, pictures)), student_temperature(losses)
    swapped = losses["out/teacher_cls_softmax"][-1].unflatten(0, (2, pictures))
    loss = cross_view(views, swapped.flip(0), temperature)
    loss.backward()
    official = losses["out/dino_global_crops_loss"] + losses["out/dino_local_crops_loss"]
    assert_close(loss, official, FORWARD, "loss")
    for view, name in zip(student, ("global", "local"), strict=True):
        assert_gradient_at(view.grad, losses, f"out/ddino_d{name}", BACKWARD)


def test_both_terms_of_cross_view(losses: Golden) -> None:
    """The raw sums of their terms, and their shares of the loss: a pair of different views counts once."""
    pictures = losses.shape("in/student_global")[0] // 2
    teacher = losses["out/teacher_cls_softmax"][-1].unflatten(0, (2, pictures)).flip(0)
    views = [losses[f"in/student_{name}"].unflatten(0, (-1, pictures)) for name in ("global", "local")]
    large = cross_view(views[0], teacher, student_temperature(losses))  # a mean over two pairs
    pairs = 2 + 2 * len(views[1])
    everything = cross_view(torch.cat(views), teacher, student_temperature(losses)) * pairs
    assert_close(large, losses["out/dino_global_raw"], FORWARD, "mean over both crops at once")
    assert_close(everything - 2 * large, losses["out/dino_local_raw"], FORWARD, "sum over local pairs")
    assert_close(2 * large / pairs, losses["out/dino_global_crops_loss"], FORWARD, "global share")
    assert_close((everything - 2 * large) / pairs, losses["out/dino_local_crops_loss"], FORWARD, "local share")


def test_class_centre(losses: Golden) -> None:
    centre = Centre(losses.shape("in/teacher_cls")[-1], losses.config.get("center_momentum", 0.9))
    seen = losses["out/dino_center_seen"]
    for batch, teacher in enumerate(losses["in/teacher_cls"]):
        assert_close(centre.value, seen[batch], FORWARD, f"centre of batch {batch}")
        ours = sharpen(teacher, centre.value, losses.config["teacher_temp"])
        assert_close(ours, losses["out/teacher_cls_softmax"][batch], FORWARD, f"teacher of batch {batch}")
        centre.note(teacher, step=batch)
        centre.update_()
    assert_close(centre.value, seen[-1], FORWARD, "centre at the end")


def test_patch_centre_is_of_hidden_patches(losses: Golden) -> None:
    centre = Centre(losses.shape("in/teacher_patch")[-1], losses.config.get("center_momentum", 0.9))
    hidden, seen = losses["in/masks"].flatten(), losses["out/ibot_center_seen"]
    for batch, teacher in enumerate(losses["in/teacher_patch"].flatten(1, 2)):
        assert_close(centre.value, seen[batch], FORWARD, f"centre of batch {batch}")
        ours = sharpen(teacher, centre.value, losses.config["teacher_temp"])[hidden]
        assert_close(ours, losses["out/teacher_patch_softmax_masked"][batch], FORWARD, f"teacher of batch {batch}")
        centre.note(teacher, step=batch, valid=hidden)
        centre.update_()
    assert_close(centre.value, seen[-1], FORWARD, "centre at the end")


def weight_of(masks: Tensor) -> Tensor:
    """1 over the number of hidden patches of the same crop, at hidden patches in order."""
    return (masks / masks.sum(1, keepdim=True).clamp_min(1))[masks]


@pytest.mark.parametrize("key", ["ibot_forward_masked", "ibot_forward_masked_no_weight"])
def test_masked_patches(losses: Golden, key: str) -> None:
    masks = losses["in/masks"]
    student = losses["in/student_patch"].requires_grad_()
    assert_close(weight_of(masks), losses["out/masks_weight"], FORWARD, "weight")
    teacher = losses["out/teacher_patch_softmax_masked"][-1]
    temperature = student_temperature(losses)
    loss = masked_patches(student[masks], teacher, weight_of(masks), len(masks), temperature)
    loss.backward()
    assert_close(loss, losses[f"out/{key}"], FORWARD, "loss")
    assert_gradient_at(student.grad, losses, "out/dibot_dpatch", BACKWARD)


@pytest.mark.parametrize("key", ["ibot_forward_masked_final_center", "ibot_forward_dense"])
def test_masked_patches_with_the_centre_at_the_end(losses: Golden, key: str) -> None:
    """Of hidden patches alone, and officially also from logits of all patches: the same number."""
    masks, centre = losses["in/masks"], losses["out/ibot_center_seen"][-1]
    teacher = sharpen(losses["in/teacher_patch"][-1][masks], centre, losses.config["teacher_temp"])
    student, temperature = losses["in/student_patch"][masks], student_temperature(losses)
    loss = masked_patches(student, teacher, weight_of(masks), len(masks), temperature)
    assert_close(loss, losses[f"out/{key}"], FORWARD, key)


def test_koleo_of_both_crops(losses: Golden) -> None:
    loss = sum(koleo(crop) for crop in losses["in/cls_tokens"].chunk(2))
    assert isinstance(loss, Tensor)
    assert_close(loss, losses["out/koleo_sum_over_two_crops"], FORWARD, "loss")
