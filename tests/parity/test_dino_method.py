"""DINO's whole method, multi-crop and one step of training, against numbers of the official code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import torch
from begun import load_method
from parity.distill import (
    START,
    Networks,
    any_gradients,
    assert_after,
    assert_norms,
    before_norms,
    imported_backbone,
    load_both,
    networks,
    one_step,
    teacher_temperature,
)
from parity.golden import Golden, assert_begins, assert_close, peek, read_json
from parity.vit import BACKWARD, FORWARD, assert_gradient, assert_gradients, names_by_decay, use_eps

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods.dino import DINO, Config
from unlabeled.train.optim import clip_gradients


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per epoch of whatever set is given, as its names tell."""
    patterns = {"trained_epoch": r"out/epoch(\d+)_train_loss$", "lost_epoch": r"out/loss_epoch(\d+)$"}
    for name, pattern in patterns.items():
        if name in metafunc.fixturenames:
            golden = peek(metafunc.config, "dino", "multicrop.safetensors")
            metafunc.parametrize(name, (golden and golden.found(pattern)) or ["absent"])


@pytest.fixture
def golden(folder: Path) -> Golden:
    return Golden(folder / "multicrop.safetensors")


def config_of(official: Networks) -> Config:
    step, crops, view = official.step, official.crops(), View(size=official.side)
    warmup = teacher_temperature(step, "warmup_teacher_temp", "teacher_temp", epochs=0)
    return Config(
        global_1=view,
        global_2=view,
        local=View(size=official.side, count=len(crops) - 2) if len(crops) > 2 else None,
        encoder=official.encoder(),
        head=official.head_config(),
        head_norm=official.head.norm,
        student_temperature=step.get("student_temp", 0.1),
        teacher_temperature=warmup.end,
        teacher_temperature_start=warmup.start,
        teacher_temperature_epochs=warmup.epochs,
        centre_momentum=step.get("center_momentum", 0.9),
        momentum=step.get("momentum_teacher", 0.996),
        frozen_epochs=step.get("freeze_last_layer", 1),
    )


@pytest.fixture
def official(golden: Golden) -> Networks:
    return networks(golden)


@pytest.fixture
def model(official: Networks) -> DINO:
    model = config_of(official).build()
    load_both(model, official)
    use_eps(model, official.settings)
    return model


@pytest.fixture
def batch(official: Networks) -> Batch:
    crops = [official.golden[f"in/crop{i}"] for i in official.crops()]
    views = [crops[0].unsqueeze(0), crops[1].unsqueeze(0), *([torch.stack(crops[2:])] if crops[2:] else [])]
    return Batch([ViewBatch(view, None) for view in views], torch.zeros(0), torch.zeros(0))


def at(official: Networks, epoch: str | int) -> Progress:
    """The first step of an epoch."""
    epochs = official.step.get("epochs", 100)
    return Progress(int(epoch), epochs, float(epoch), float(epochs))


def test_features_and_logits(golden: Golden, model: DINO, batch: Batch) -> None:
    caught: dict[str, list[Any]] = {"encoder": [], "head": [], "teacher_head": []}
    for name, outputs in caught.items():
        getattr(model, name).register_forward_hook(lambda _m, _i, out, outputs=outputs: outputs.append(out))
    model(batch, START)
    large, *small = (tokens.prefix[:, 0] for tokens in caught["encoder"])
    assert_close(large, golden["out/student_backbone_global"], FORWARD, "features of global crops")
    for features in small:
        assert_close(features, golden["out/student_backbone_local"], FORWARD, "features of local crops")
    assert_close(caught["head"][0], golden["out/student_logits"], FORWARD, "the student's logits")
    assert_close(caught["teacher_head"][0], golden["out/teacher_logits"], FORWARD, "the teacher's logits")


@torch.no_grad()
def test_one_tensor_instead_of_crops(golden: Golden, model: DINO) -> None:
    logits = model.head(model.encoder.feature(golden["in/crop0"]))
    assert_close(logits, golden["out/single_tensor_input"], FORWARD, "logits")


@torch.no_grad()
def test_intermediate_layers(golden: Golden, model: DINO) -> None:
    """The first and the last of the last n blocks."""
    found = golden.found(r"out/(intermediate_n\d+_(?:first|last))$")
    assert found, f"{golden.file} has no out/intermediate_n*"
    for name in found:
        number = re.findall(r"\d+", name)[0]
        block = -int(number) if name.endswith("first") else -1
        (tokens,) = model.encoder.eval().intermediate(golden["in/crop0"], [block])
        assert_begins(torch.cat([tokens.prefix, tokens.patches], dim=1), golden[f"out/{name}"], FORWARD, name)


@torch.no_grad()
def test_attention_of_the_last_block(golden: Golden, model: DINO) -> None:
    key = "out/last_selfattention_crop0"
    assert_begins(model.encoder.attention(golden["in/crop0"]), golden[key], FORWARD, key)


def test_loss_and_centre(official: Networks, model: DINO, batch: Batch, lost_epoch: str) -> None:
    golden, progress = official.golden, at(official, lost_epoch)
    output = model(batch, progress)
    assert_close(output.loss, golden[f"out/loss_epoch{lost_epoch}"], FORWARD, "loss")
    model.after_step(progress)
    assert_close(model.centre.value, golden["out/center_after"].flatten(), FORWARD, "centre")


def test_gradients_before_and_after_clipping(official: Networks, model: DINO, batch: Batch) -> None:
    golden = official.golden
    epoch = min(golden.found(r"out/loss_epoch(\d+)$"), key=int)
    model(batch, at(official, epoch)).loss.backward()
    zero = [f"head.{name}" for name in before_norms(golden.under("sd_student/head", "."))]
    assert_gradients(model, golden.some("grad"), official.ours, zero)
    assert_norms(any_gradients(model), golden, "out/grad_norms")

    clip_gradients(model, official.step.get("clip_grad", 3.0), "tensor")
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, clipped in golden.some("clipped_grad").items():
        mine = gradients[official.ours(name)]
        assert mine is not None
        assert_gradient(mine, clipped, f"clipped {name}")
    assert_norms(any_gradients(model), golden, "out/clipped_grad_norms")


def test_the_order_of_the_norms(official: Networks, model: DINO, batch: Batch, folder: Path) -> None:
    """Norms by name, where the set says in which order they are."""
    golden, order = official.golden, read_json(folder / "param_groups.json").get("grad_norms_order")
    if order is not None:
        epoch = min(golden.found(r"out/loss_epoch(\d+)$"), key=int)
        model(batch, at(official, epoch)).loss.backward()
        gradients: Any = {name: p.grad for name, p in model.named_parameters()}
        norms = torch.stack([gradients[official.ours(name)].norm() for name in order])
        assert_close(norms, golden["out/grad_norms"].float(), BACKWARD, "norms in order")


def test_one_training_step(official: Networks, model: DINO, batch: Batch, trained_epoch: str) -> None:
    """What is left after it is under `after_epochE`, or `after` for the one epoch that has no such name."""
    golden = official.golden
    output = one_step(model, batch, official.step, epoch=int(trained_epoch))
    assert_close(output.loss, golden[f"out/epoch{trained_epoch}_train_loss"], FORWARD, "loss")
    named = f"after_epoch{trained_epoch}"
    assert_after(model, official, named if golden.found(rf"({named})/") else "after")


def test_parameter_groups(official: Networks, model: DINO, folder: Path) -> None:
    groups = read_json(folder / "param_groups.json")
    decayed = names_by_decay(model)
    assert decayed[True] == {official.ours(name) for name in groups["regularized"]}
    assert decayed[False] == {official.ours(name) for name in groups["not_regularized"]}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad and not n.startswith("teacher")}
    assert frozen == {official.ours(name) for name in groups["frozen"]}
    known = {"group_order", "regularized", "not_regularized", "frozen", "grad_norms_order", "note"}
    assert groups.keys() <= known, f"compared by nobody: {sorted(groups.keys() - known)}"


# ---------------------------------------------------------------- what the importer makes of the weights


def test_the_imported_teacher(official: Networks, tmp_path: Path) -> None:
    """The teacher by timm alone, and the whole state by our method."""
    golden = official.golden
    student = {f"module.{name}": tensor for name, tensor in golden.under("sd_student").items()}
    checkpoint = {"student": student, "teacher": dict(golden.under("sd_teacher"))}
    backbone = imported_backbone(
        "dino", official, {**checkpoint, "dino_loss": {"center": golden["in/center"]}}, tmp_path
    )
    method = config_of(official).build()
    load_method(method, tmp_path / "out")
    crops = torch.cat([golden["in/crop0"], golden["in/crop1"]])
    with torch.no_grad():
        logits = method.teacher_head(backbone.forward_features(crops)[:, 0])
    assert_close(logits, golden["out/teacher_logits"], FORWARD, "teacher's logits")
    assert torch.equal(method.centre.value, golden["in/center"].flatten())


def test_the_imported_student(official: Networks, tmp_path: Path) -> None:
    golden = official.golden
    backbone = imported_backbone(
        "dino", official, {"student": dict(golden.under("sd_student"))}, tmp_path, key="student"
    )
    crops = torch.cat([golden["in/crop0"], golden["in/crop1"]])
    with torch.no_grad():
        features = backbone.forward_features(crops)[:, 0]
    assert_close(features, golden["out/student_backbone_global"], FORWARD, "student's features")
