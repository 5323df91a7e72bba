"""iBOT's whole method and one step of training against numbers of the official code."""

from __future__ import annotations

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
    imported_backbone,
    load_both,
    networks,
    one_step,
    teacher_temperature,
)
from parity.golden import Golden, assert_begins, assert_close, read_json
from parity.vit import FORWARD, assert_gradients, names_by_decay, use_eps
from torch import Tensor

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.view.views import View
from unlabeled.nn.patches import PatchMask
from unlabeled.pretrain.methods.ibot import IBOT, Config


@pytest.fixture
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


@pytest.fixture
def official(golden: Golden) -> Networks:
    return networks(golden)


def global_crops(official: Networks) -> list[int]:
    """Numbers of the crops that have a mask."""
    return sorted(int(number) for number in official.golden.found(r"in/mask(\d+)$"))


def local_crops(official: Networks) -> list[int]:
    return [number for number in official.crops() if number not in global_crops(official)]


def config_of(official: Networks) -> Config:
    step, head, small = official.step, official.head, local_crops(official)
    view = View(size=official.side, mask=BlockMask())
    warmup = teacher_temperature(step, "warmup_teacher_temp", "teacher_temp", epochs=30)
    patches = teacher_temperature(step, "warmup_teacher_patch_temp", "teacher_patch_temp", epochs=30, final=0.07)
    return Config(
        global_1=view,
        global_2=view,
        local=View(size=official.side, count=len(small)) if small else None,
        encoder=official.encoder(),
        head=official.head_config(),
        patch_prototypes=head.patch_prototypes,
        teacher_shares=head.patch_prototypes is not None and official.teacher_head.patch_prototypes is None,
        student_temperature=step.get("student_temp", 0.1),
        teacher_temperature=warmup.end,
        teacher_temperature_start=warmup.start,
        patch_temperature=patches.end,
        patch_temperature_start=patches.start,
        teacher_temperature_epochs=warmup.epochs,
        centre_momentum=step.get("center_momentum", 0.9),
        momentum=step.get("momentum_teacher", 0.996),
        frozen_epochs=step.get("freeze_last_layer", 1),
        class_weight=step.get("lambda1", 1.0),
        patch_weight=step.get("lambda2", 1.0),
    )


@pytest.fixture
def model(official: Networks) -> IBOT:
    model = config_of(official).build()
    load_both(model, official)
    use_eps(model, official.settings)
    return model


def batch_of(official: Networks, counted: bool = True) -> Batch:
    golden, views = official.golden, []
    for i in global_crops(official):
        hidden = golden[f"in/mask{i}"].bool().flatten(1).unsqueeze(0)
        count = int(hidden.sum()) if counted else None
        views.append(ViewBatch(golden[f"in/crop{i}"].unsqueeze(0), PatchMask(hidden, None, None), count))
    local = [golden[f"in/crop{i}"] for i in local_crops(official)]
    if local:
        views.append(ViewBatch(torch.stack(local), None))
    return Batch(views, torch.zeros(0), torch.zeros(0))


def hidden_of(official: Networks) -> Tensor:
    return torch.cat([official.golden[f"in/mask{i}"] for i in global_crops(official)]).bool().flatten(1)


def test_tokens(official: Networks, model: IBOT) -> None:
    golden = official.golden
    images = torch.cat([golden[f"in/crop{i}"] for i in global_crops(official)])
    encoder, crop = model.encoder, golden["in/crop0"]

    def encoded(pixels: Tensor, hidden: Tensor | None) -> Tensor:
        mask = None if hidden is None else PatchMask(hidden, None, None)
        tokens = encoder(pixels, replace=mask, fill=model.mask_token)
        return torch.cat([tokens.prefix, tokens.patches], dim=1)

    hidden = hidden_of(official)
    assert_begins(encoded(images, hidden), golden["out/student_tokens_masked"], FORWARD, "masked")
    assert_begins(encoded(crop, None), golden["out/student_tokens_unmasked_crop0"], FORWARD, "unmasked")
    nothing = torch.zeros_like(hidden[: len(crop)])
    assert_begins(encoded(crop, nothing), golden["out/student_tokens_zero_mask"], FORWARD, "nothing masked")
    assert_close(encoded(crop, None)[:, 0], golden["out/student_cls_only_crop0"], FORWARD, "class token")


def test_logits(official: Networks, model: IBOT) -> None:
    """Class tokens of all crops; of patches, the hidden ones, in order."""
    golden, hidden = official.golden, hidden_of(official)
    seen: dict[str, Any] = {}

    def watch(name: str, method: str) -> None:
        original = getattr(getattr(model, name), method)

        def watched(*x: Tensor) -> Any:
            logits = original(*x)
            seen.setdefault(f"{name}.{method}", logits)  # the teacher's head answers for the centre afterwards
            return logits

        setattr(getattr(model, name), method, watched)

    watch("head", "both")
    watch("teacher_head", "forward")
    watch("teacher_head", "patch_logits")
    model(batch_of(official), START)
    classes, student_patches = seen["head.both"]
    student, local = classes.split([len(hidden), len(classes) - len(hidden)])
    assert_close(student, golden["out/student_cls_logits"], FORWARD, "the student's class logits")
    if len(local):
        assert_close(local, golden["out/student_local_cls_logits"], FORWARD, "the student's local class logits")
    assert_close(seen["teacher_head.forward"], golden["out/teacher_cls_logits"], FORWARD, "the teacher's class logits")
    for logits, side in ((student_patches, "student"), (seen["teacher_head.patch_logits"], "teacher")):
        expected = golden[f"out/{side}_patch_logits"]
        expected = expected[hidden[: len(expected)]]
        assert_close(logits[: len(expected)], expected, FORWARD, f"the {side}'s patch logits")


def test_logits_of_visible_patches(official: Networks, model: IBOT) -> None:
    """No loss asks for them; the official head answers for all patches."""
    golden = official.golden
    images = torch.cat([golden[f"in/crop{i}"] for i in global_crops(official)])
    with torch.no_grad():
        tokens = model.encoder(images, replace=PatchMask(hidden_of(official), None, None), fill=model.mask_token)
        student, teacher = model.head.patches(tokens.patches), model.teacher_head.patches(model.teacher(images).patches)
    assert_begins(student, golden["out/student_patch_logits"], FORWARD, "the student's")
    assert_begins(teacher, golden["out/teacher_patch_logits"], FORWARD, "the teacher's")


@pytest.mark.parametrize("counted", [True, False])
def test_losses_gradients_and_centres(official: Networks, model: IBOT, counted: bool) -> None:
    golden, step = official.golden, official.step
    output = model(batch_of(official, counted), START)
    output.loss.backward()
    for name, weight in (("class", step.get("lambda1", 1.0)), ("patch", step.get("lambda2", 1.0))):
        part = golden["out/loss_cls" if name == "class" else "out/loss_patch"]
        assert_close(output.metrics[f"{name}_loss"] * weight, part, FORWARD, name)
    assert_close(output.loss, golden["out/loss_loss"], FORWARD, "loss")
    assert_gradients(model, golden.some("grad"), official.ours)
    assert_norms(any_gradients(model), golden, "out/grad_norms")
    model.after_step(START)
    assert_close(model.centre.value, golden["out/center_after"].flatten(), FORWARD, "centre")
    assert_close(model.patch_centre.value, golden["out/center2_after"].flatten(), FORWARD, "patch centre")


def test_one_training_step(official: Networks, model: IBOT) -> None:
    golden, step = official.golden, official.step
    output = one_step(model, batch_of(official), step, epoch=0)
    classes, patches = output.metrics["class_loss"], output.metrics["patch_loss"]
    losses = torch.stack([classes * step.get("lambda1", 1.0), patches * step.get("lambda2", 1.0), output.loss])
    assert_close(losses, golden["out/train_step_loss_cls_patch_total"], FORWARD, "losses")
    assert_after(model, official, "after")


def test_parameter_groups(official: Networks, model: IBOT, folder: Path) -> None:
    groups = read_json(folder / "param_groups.json")
    decayed = names_by_decay(model)
    assert decayed[True] == {official.ours(name) for name in groups["regularized"]}
    assert decayed[False] == {official.ours(name) for name in groups["not_regularized"]}
    frozen = {n for n, p in model.named_parameters() if not p.requires_grad and not n.startswith("teacher")}
    assert frozen == {official.ours(name) for name in groups["frozen"]}


def test_what_by_the_default_flags_only_the_student_has(official: Networks, folder: Path) -> None:
    """The mask token and the patches' own last layer: the average that the teacher follows leaves them out."""
    groups = read_json(folder / "param_groups.json")
    head = official.head._replace(patch_prototypes=official.head.prototypes)
    separate = official._replace(head=head, teacher_head=head._replace(patch_prototypes=None))
    model = config_of(separate).build()
    teachers = {name.replace("teacher_head.", "head.").replace("teacher.", "encoder.") for name, _ in teacher_of(model)}
    alone = {name for name, _ in model.named_parameters() if not name.startswith("teacher")} - teachers
    assert alone == {separate.ours(name) for name in groups["default_flags_student_only_params_not_in_EMA"]}


def test_a_shared_last_layer_is_saved_under_two_names(official: Networks, folder: Path) -> None:
    groups = read_json(folder / "param_groups.json")
    head = official.head._replace(patch_prototypes=None)
    shared = official._replace(head=head, teacher_head=head)
    names = {name for name in config_of(shared).build().state_dict() if name.startswith(("head.last", "head.patch"))}
    assert {shared.ours(name) for name in groups["shared_student_state_dict_head_keys"]} == names


def test_what_else_the_groups_have_is_known(folder: Path) -> None:
    groups = read_json(folder / "param_groups.json")
    compared = {"regularized", "not_regularized", "frozen", "shared_student_state_dict_head_keys"}
    known = {*compared, "default_flags_student_only_params_not_in_EMA", "group_order", "note"}
    assert groups.keys() <= known, f"compared by nobody: {sorted(groups.keys() - known)}"


def teacher_of(model: IBOT) -> list[tuple[str, Tensor]]:
    return [(name, p) for name, p in model.named_parameters() if name.startswith("teacher")]


# ---------------------------------------------------------------- what the importer makes of the weights


def test_the_imported_teacher(official: Networks, tmp_path: Path) -> None:
    """The teacher by timm alone, and the whole state by our method."""
    golden = official.golden
    student = {f"module.{name}": tensor for name, tensor in golden.under("sd_student").items()}
    centres = {"center": golden["in/center"], "center2": golden["in/center2"]}
    checkpoint = {"student": student, "teacher": dict(golden.under("sd_teacher")), "ibot_loss": centres}
    backbone = imported_backbone("ibot", official, checkpoint, tmp_path)
    method = config_of(official).build()
    load_method(method, tmp_path / "out")
    crops, head = torch.cat([golden["in/crop0"], golden["in/crop1"]]), method.teacher_head
    with torch.no_grad():
        tokens = backbone.forward_features(crops)
        assert_close(head(tokens[:, 0]), golden["out/teacher_cls_logits"], FORWARD, "teacher's logits of classes")
        assert_begins(head.patches(tokens[:, 1:]), golden["out/teacher_patch_logits"], FORWARD, "of patches")
    assert torch.equal(method.patch_centre.value, golden["in/center2"].flatten())
    assert torch.equal(method.mask_token, student["module.backbone.masked_embed"])


def test_the_imported_student(official: Networks, tmp_path: Path) -> None:
    golden = official.golden
    backbone = imported_backbone(
        "ibot", official, {"student": dict(golden.under("sd_student"))}, tmp_path, key="student"
    )
    with torch.no_grad():
        tokens = backbone.forward_features(golden["in/crop0"])
    assert_begins(tokens, golden["out/student_tokens_unmasked_crop0"], FORWARD, "student's tokens")
