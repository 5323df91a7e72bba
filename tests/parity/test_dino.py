"""DINO against numbers of the official code (facebookresearch/dino)."""

from __future__ import annotations

import re
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

from unlabeled.evaluate.features import Features
from unlabeled.evaluate.knn import accuracy, hits_of, knn_predict
from unlabeled.method import Batch, Progress, ViewBatch
from unlabeled.methods.dino import DINO, GLOBAL_1, GLOBAL_2, LOCAL, Config
from unlabeled.nn.encoder import EncoderConfig
from unlabeled.nn.heads import HeadConfig
from unlabeled.nn.losses import cross_view, sharpen
from unlabeled.nn.schedules import cosine
from unlabeled.nn.teacher import Centre
from unlabeled.train.clip import clip_gradients
from unlabeled.train.optim import param_groups

START = Progress(0, 10, 0.0, 10.0)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per head, and per number of neighbours, of whatever set is given."""
    if "head" in metafunc.fixturenames:
        metafunc.parametrize("head", each(metafunc.config, "dino", "head"))
    if "neighbours" in metafunc.fixturenames:
        metafunc.parametrize("neighbours", each(metafunc.config, "dino", "knn", "k"))


def test_head(folder: Path, head: str) -> None:
    golden = Golden(folder / "head.safetensors")
    config = golden.config[head]
    ours = build_head(config, golden.under(f"sd_{head}"))
    x = golden["in/x"].clone().requires_grad_()
    y = ours(x)
    (y * golden["in/cotangent"]).sum().backward()
    assert x.grad is not None
    assert_close(y, golden[f"out/{head}/y"], FORWARD, "logits")
    assert_close(x.grad, golden[f"out/{head}/grad_x"], BACKWARD, "gradient at the input")
    # a bias in front of a norm moves nothing
    before_norm = ("mlp.0.bias",) if config["use_bn"] else ()
    assert_gradients(ours, head_weights(config, golden.under(f"grad_{head}")), before_norm)
    if config["use_bn"]:
        for name, buffer in golden.under(f"after_{head}").items():
            assert_close(ours.state_dict()[name].float(), buffer.float(), FORWARD, name)


def test_loss_centre_and_temperature_of_ten_epochs(folder: Path) -> None:
    golden = Golden(folder / "loss.safetensors")
    c = golden.config
    centre = Centre(c["out_dim"], c["center_momentum"])
    for epoch in range(c["nepochs"]):
        temperature = teacher_temperature(c).at(epoch, 1.0)
        assert temperature == pytest.approx(golden["out/teacher_temp"][epoch].item(), rel=1e-12)
        student = golden["in/student"][epoch].clone().requires_grad_()
        teacher = golden["in/teacher"][epoch]
        targets = sharpen(teacher, centre.value, temperature).unflatten(0, (2, -1))
        loss = cross_view(student.unflatten(0, (c["ncrops"], -1)), targets, c["student_temp"])
        loss.backward()
        centre.note(teacher, step=epoch)
        centre.update_()
        assert student.grad is not None
        assert_close(loss, golden["out/loss"][epoch], FORWARD, f"loss of epoch {epoch}")
        assert_close(student.grad, golden["out/dloss_dstudent"][epoch], BACKWARD, f"gradient of epoch {epoch}")
        assert_close(centre.value, golden["out/center_after"][epoch], FORWARD, f"centre after epoch {epoch}")


def test_position_interpolation(folder: Path) -> None:
    golden = Golden(folder / "pos_interp.safetensors")
    for key, sizes in golden.config["sizes"].items():
        table = golden[f"in/pos_embed_{key}"]
        image, patch = (int(word) for word in re.findall(r"\d+", golden.config[key]))
        config = EncoderConfig(
            patch_size=patch, width=table.shape[-1], depth=1, heads=1, positions="learned", interpolation="scale"
        )
        encoder = config.build((image, image))
        with torch.no_grad():
            encoder.vit.pos_embed.copy_(table)
        for height, width in sizes:
            prefix, patches = encoder._positions((height // patch, width // patch))
            ours = torch.cat([prefix, patches], dim=1)  # type: ignore[list-item]
            assert_close(ours, golden[f"out/{key}_h{height}_w{width}"], FORWARD, f"{key} {height}x{width}")


def test_nearest_neighbours(folder: Path, neighbours: int) -> None:
    golden = Golden(folder / "knn.safetensors")
    k, classes = neighbours, golden.config["num_classes"]
    train = Features(golden["in/train_features"], golden["in/train_labels"])
    labels = golden["in/test_labels"]
    votes = knn_predict(train, golden["in/test_features"], k, golden.config["T"], classes)
    assert_close(votes, golden[f"out/k{k}/scores"], FORWARD, "votes")
    assert torch.equal(votes.argmax(1), golden[f"out/k{k}/prediction"])
    for top, official in zip((1, min(5, k)), golden[f"out/k{k}/top1_top5"].tolist(), strict=True):
        assert accuracy(hits_of(votes, labels, top)) == pytest.approx(official)


# ---------------------------------------------------------------- the method


@pytest.fixture
def golden(folder: Path) -> Golden:
    return Golden(folder / "multicrop.safetensors")


def build(golden: Golden) -> DINO:
    c = golden.config
    head, step = c["head"], c["step"]
    assert head["norm_last_layer"] and not head["use_bn"]
    large, small = golden["in/crop0"].shape[-1], golden["in/crop2"].shape[-1]
    model = Config(
        global_1=GLOBAL_1.model_copy(update={"size": large}),
        global_2=GLOBAL_2.model_copy(update={"size": large}),
        local=LOCAL.model_copy(update={"size": small, "count": step["ncrops"] - 2}),
        encoder=encoder_config(c),
        head=HeadConfig(
            prototypes=head["out_dim"],
            hidden=head["hidden_dim"],
            bottleneck=head["bottleneck_dim"],
            layers=head["nlayers"],
        ),
        teacher_temperature=step["teacher_temp"],
        teacher_temperature_start=step["warmup_teacher_temp"],
        teacher_temperature_epochs=step["warmup_teacher_temp_epochs"],
        momentum=step["momentum_teacher"],
        frozen_epochs=step["freeze_last_layer"],
    ).build()
    load_both(model, golden)
    return model


def batch_of(golden: Golden) -> Batch:
    crops = [golden[f"in/crop{i}"] for i in range(golden.config["step"]["ncrops"])]
    views = [crops[0].unsqueeze(0), crops[1].unsqueeze(0), torch.stack(crops[2:])]
    return Batch([ViewBatch(view, None) for view in views], torch.zeros(0), torch.zeros(0))


def test_features_and_logits(golden: Golden) -> None:
    model = build(golden)
    caught: dict[str, list[Any]] = {"encoder": [], "head": [], "teacher_head": []}
    for name, outputs in caught.items():
        getattr(model, name).register_forward_hook(lambda _m, _i, out, outputs=outputs: outputs.append(out))
    model(batch_of(golden), START)
    large, small = (tokens.prefix[:, 0] for tokens in caught["encoder"])
    assert_close(large, golden["out/student_backbone_global"], FORWARD, "features of global crops")
    assert_close(small, golden["out/student_backbone_local"], FORWARD, "features of local crops")
    assert_close(caught["head"][0], golden["out/student_logits"], FORWARD, "the student's logits")
    assert_close(caught["teacher_head"][0], golden["out/teacher_logits"], FORWARD, "the teacher's logits")


@torch.no_grad()
def test_intermediate_layers(golden: Golden) -> None:
    encoder = build(golden).encoder.eval()
    official = [golden["out/intermediate_n2_first"], golden["out/intermediate_n2_last"]]
    for ours, theirs in zip(encoder.intermediate(golden["in/crop0"], [-2, -1]), official, strict=True):
        assert_close(torch.cat([ours.prefix, ours.patches], dim=1), theirs, FORWARD, "tokens")


def test_loss_gradients_and_centre(golden: Golden) -> None:
    model = build(golden)
    output = model(batch_of(golden), START)
    output.loss.backward()
    assert_close(output.loss, golden["out/loss_epoch0"], FORWARD, "loss")
    official = {method_name(golden.config, name): grad for name, grad in golden.under("grad").items()}
    assert_gradients(model, official)  # type: ignore[arg-type]
    model.after_step(START)
    assert_close(model.centre.value, golden["out/center_after"].flatten(), FORWARD, "centre")


def test_clipping(golden: Golden) -> None:
    model = build(golden)
    model(batch_of(golden), START).loss.backward()
    clip_gradients(model, golden.config["step"]["clip_grad"], "tensor")
    gradients = {name: p.grad for name, p in model.named_parameters()}
    for name, official in golden.under("clipped_grad").items():
        mine = gradients[method_name(golden.config, name) or ""]
        assert mine is not None
        assert_close(mine, official, BACKWARD, f"clipped {name}")


def test_one_training_step(golden: Golden) -> None:
    model = build(golden)
    output = one_step(model, batch_of(golden), golden.config["step"], epoch=0)
    assert_close(output.loss, golden["out/epoch0_train_loss"], FORWARD, "loss")
    assert_after(model, golden)


def test_one_training_step_with_the_last_layer_free(golden: Golden) -> None:
    model = build(golden)
    output = one_step(model, batch_of(golden), golden.config["step"], epoch=4)
    assert_close(output.loss, golden["out/epoch4_train_loss"], FORWARD, "loss")
    assert_after(model, golden, "after_epoch4")


def test_parameter_groups(golden: Golden, folder: Path) -> None:
    official = read_json(folder / "param_groups.json")
    model = build(golden)
    names = {id(p): name for name, p in model.named_parameters()}
    decayed = {g["weight_decay"] > 0: {names[id(p)] for p in g["params"]} for g in param_groups(model, 0.04)}
    assert decayed[True] == {method_name(golden.config, name) for name in official["regularized"]}
    assert decayed[False] == {method_name(golden.config, name) for name in official["not_regularized"]}


def test_momentum(folder: Path) -> None:
    golden = Golden(folder / "schedules.safetensors")
    c, official = golden.config["momentum"], golden["out/momentum"]
    momenta = [cosine(c["base_value"], c["final_value"], step / len(official)) for step in range(len(official))]
    assert_close(torch.tensor(momenta, dtype=torch.float64), official.double(), 1e-12, "momentum")
