"""iBOT against numbers of the official code (bytedance/ibot)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from parity.conftest import Golden, assert_close, each, read_json
from parity.distill import (
    BACKWARD,
    FORWARD,
    assert_after,
    assert_gradients,
    build_head,
    encoder_config,
    head_weights,
    load_both,
    method_name,
    one_step,
    teacher_temperature,
)
from torch import Tensor

from unlabeled.data.masks import BlockMask
from unlabeled.method import Batch, Progress, ViewBatch
from unlabeled.methods.ibot import GLOBAL_1, GLOBAL_2, IBOT, LOCAL, Config
from unlabeled.nn.heads import HeadConfig
from unlabeled.nn.losses import cross_view, masked_patches, sharpen
from unlabeled.nn.patches import PatchMask
from unlabeled.nn.teacher import Centre
from unlabeled.train.optim import param_groups

START = Progress(0, 10, 0.0, 10.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per head and per loss of whatever set is given."""
    if "head" in metafunc.fixturenames:
        metafunc.parametrize("head", each(metafunc.config, "ibot", "head", "variants"))
    if "setting" in metafunc.fixturenames:
        metafunc.parametrize("setting", each(metafunc.config, "ibot", "loss"))


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
        temp = teacher_temperature(c).at(epoch, 1.0)
        assert temp == pytest.approx(out["teacher_temp"][epoch].item(), rel=1e-12)
        targets = sharpen(inputs["teacher_cls"], centre.value, temp).unflatten(0, (c["ngcrops"], -1))
        views = torch.cat([students[key] for key in keys if key.endswith("cls")])
        cls = cross_view(views.unflatten(0, (c["ngcrops"] + c["nlcrops"], -1)), targets, 0.1) * c.get("lambda1", 1)

        # patches: hidden ones, in the same view
        temp = teacher_temperature(c, "2").at(max(0, epoch - c["mim_start_epoch"]), 1.0)
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


# ---------------------------------------------------------------- the method


@pytest.fixture
def golden(folder: Path) -> Golden:
    return Golden(folder / "model.safetensors")


def build(golden: Golden) -> IBOT:
    c = golden.config
    head, step = c["head"], c["step"]
    assert head["norm"] is None and head["act"] == "gelu"
    large = golden["in/crop0"].shape[-1]
    local = LOCAL.model_copy(update={"size": 24, "count": max(1, step["local_crops_number"])})
    model = Config(
        global_1=GLOBAL_1.model_copy(update={"size": large, "mask": BlockMask()}),
        global_2=GLOBAL_2.model_copy(update={"size": large}),
        local=local if step["local_crops_number"] else None,
        encoder=encoder_config(c),
        head=HeadConfig(
            prototypes=head["out_dim"],
            hidden=head["hidden_dim"],
            bottleneck=head["bottleneck_dim"],
            layers=head["nlayers"],
            freeze_gain=head["norm_last_layer"],
        ),
        patch_prototypes=None if head["shared_head"] else head["patch_out_dim"],
        teacher_temperature=step["teacher_temp"],
        teacher_temperature_start=step["warmup_teacher_temp"],
        patch_temperature=step["teacher_patch_temp"],
        patch_temperature_start=step["warmup_teacher_patch_temp"],
        teacher_temperature_epochs=step["warmup_teacher_temp_epochs"],
        momentum=step["momentum_teacher"],
        frozen_epochs=step["freeze_last_layer"],
        class_weight=step["lambda1"],
        patch_weight=step["lambda2"],
    ).build()
    load_both(model, golden)
    return model


def batch_of(golden: Golden, counted: bool = True) -> Batch:
    step = golden.config["step"]
    views = []
    for i in range(step["global_crops_number"]):
        hidden = golden[f"in/mask{i}"].bool().flatten(1).unsqueeze(0)
        count = int(hidden.sum()) if counted else None
        views.append(ViewBatch(golden[f"in/crop{i}"].unsqueeze(0), PatchMask(hidden, None, None), count))
    first = step["global_crops_number"]
    local = [golden[f"in/crop{first + i}"] for i in range(step["local_crops_number"])]
    if local:
        views.append(ViewBatch(torch.stack(local), None))
    return Batch(views, torch.zeros(0), torch.zeros(0))


def hidden_of(golden: Golden) -> Tensor:
    return torch.cat([golden["in/mask0"], golden["in/mask1"]]).bool().flatten(1)


def test_tokens(golden: Golden) -> None:
    model, images = build(golden), torch.cat([golden["in/crop0"], golden["in/crop1"]])
    encoder, crop = model.encoder, golden["in/crop0"]

    def encoded(pixels: Tensor, hidden: Tensor | None) -> Tensor:
        mask = None if hidden is None else PatchMask(hidden, None, None)
        tokens = encoder(pixels, replace=mask, fill=model.mask_token)
        return torch.cat([tokens.prefix, tokens.patches], dim=1)

    hidden = hidden_of(golden)
    assert_close(encoded(images, hidden), golden["out/student_tokens_masked"], FORWARD, "masked")
    assert_close(encoded(crop, None), golden["out/student_tokens_unmasked_crop0"], FORWARD, "unmasked")
    nothing = torch.zeros_like(hidden[: len(crop)])
    assert_close(encoded(crop, nothing), golden["out/student_tokens_zero_mask"], FORWARD, "nothing masked")
    assert_close(encoded(crop, None)[:, 0], golden["out/student_cls_only_crop0"], FORWARD, "class token")


def test_logits(golden: Golden) -> None:
    """Class tokens of all crops; of patches, the hidden ones, in order."""
    model, hidden = build(golden), hidden_of(golden)
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
    model(batch_of(golden), START)
    count = int(hidden.sum())
    classes, student_patches = seen["head.both"]
    student, local = classes.split([len(hidden), len(classes) - len(hidden)])
    assert_close(student, golden["out/student_cls_logits"], FORWARD, "the student's class logits")
    assert_close(local, golden["out/student_local_cls_logits"], FORWARD, "the student's local class logits")
    assert_close(seen["teacher_head.forward"], golden["out/teacher_cls_logits"], FORWARD, "the teacher's class logits")
    for logits, official in ((student_patches, "student"), (seen["teacher_head.patch_logits"], "teacher")):
        expected = golden[f"out/{official}_patch_logits"][hidden]
        assert_close(logits[:count], expected, FORWARD, f"the {official}'s patch logits")


@pytest.mark.parametrize("counted", [True, False])
def test_losses_gradients_and_centres(golden: Golden, counted: bool) -> None:
    model = build(golden)
    output = model(batch_of(golden, counted), START)
    output.loss.backward()
    step = golden.config["step"]
    for name, weight in (("class_loss", step["lambda1"]), ("patch_loss", step["lambda2"])):
        official = golden["out/loss_cls" if name == "class_loss" else "out/loss_patch"]
        assert_close(output.metrics[name] * weight, official, FORWARD, name)
    assert_close(output.loss, golden["out/loss_loss"], FORWARD, "loss")
    official = {method_name(golden.config, name): grad for name, grad in golden.under("grad").items()}
    official.pop(None, None)
    assert_gradients(model, official)  # type: ignore[arg-type]
    model.after_step(START)
    assert_close(model.centre.value, golden["out/center_after"].flatten(), FORWARD, "centre")
    assert_close(model.patch_centre.value, golden["out/center2_after"].flatten(), FORWARD, "patch centre")


def test_one_training_step(golden: Golden) -> None:
    model = build(golden)
    output = one_step(model, batch_of(golden), golden.config["step"], epoch=0)
    step = golden.config["step"]
    classes, patches = output.metrics["class_loss"], output.metrics["patch_loss"]
    losses = torch.stack([classes * step["lambda1"], patches * step["lambda2"], output.loss])
    assert_close(losses, golden["out/train_step_loss_cls_patch_total"], FORWARD, "losses")
    assert_after(model, golden)


def test_parameter_groups(golden: Golden, folder: Path) -> None:
    official = read_json(folder / "param_groups.json")
    model = build(golden)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {g["weight_decay"] > 0: {names[id(p)] for p in g["params"]} for g in param_groups(model, 0.04)}
    for key, decay in (("regularized", True), ("not_regularized", False)):
        assert decayed[decay] == {method_name(golden.config, name) for name in official[key]} - {None}
