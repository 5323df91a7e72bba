"""DINO's parts against numbers of the official code (facebookresearch/dino)."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import torch
from parity.distill import before_norms, build_head, head_name, head_shape, head_weights, teacher_temperature
from parity.golden import Golden, assert_begins, assert_close, assert_gradient_at, peek
from parity.vit import BACKWARD, FORWARD, assert_gradients

from unlabeled.backbone.config import EncoderConfig
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, hits_of
from unlabeled.evaluate.protocols.knn import knn_predict
from unlabeled.nn.curves import cosine
from unlabeled.nn.loss.prototypes import cross_view, sharpen
from unlabeled.nn.teacher import Centre
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp
from unlabeled.train.schedules.table import Config as Table


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per head, table, number of neighbours and schedule of whatever set is given, as its names tell."""
    patterns = {
        "head": ("head", r"out/(\w+)/y$"),
        "table": ("pos_interp", r"out/(\w+)$"),
        "k": ("knn", r"out/k(\d+)/"),
        "schedule": ("schedules", r"out/(\w+)$"),
    }
    for name, (file, pattern) in patterns.items():
        if name in metafunc.fixturenames:
            golden = peek(metafunc.config, "dino", f"{file}.safetensors")
            metafunc.parametrize(name, (golden and golden.found(pattern)) or ["absent"])


def test_head(folder: Path, head: str) -> None:
    golden = Golden(folder / "head.safetensors")
    weights = dict(golden.under(f"sd_{head}"))
    shape, ours = head_shape(weights), build_head(weights, golden.config.get(head, {}))
    x = golden["in/x"].requires_grad_()
    y = ours(x)
    (y * golden["in/cotangent"]).sum().backward()
    assert_close(y, golden[f"out/{head}/y"], FORWARD, "logits")
    assert_gradient_at(x.grad, golden, f"out/{head}/grad_x", BACKWARD)
    official = golden.some(f"grad_{head}")
    assert_gradients(ours, official, lambda name: head_name(shape, name), before_norms(weights))
    if shape.norm:
        for name, buffer in head_weights(shape, golden.some(f"after_{head}")).items():
            assert_close(ours.state_dict()[name].float(), buffer.float(), FORWARD, name)


def test_losses_centres_and_temperatures(folder: Path) -> None:
    golden = Golden(folder / "loss.safetensors")
    c, epochs = golden.config, len(golden["out/loss"])
    pictures = golden.shape("in/teacher")[1] // 2
    centre = Centre(golden.shape("in/teacher")[2], c.get("center_momentum", 0.9))
    warmup = teacher_temperature(c, "warmup_teacher_temp", "teacher_temp", epochs=0)
    gradients = []
    for epoch in range(epochs):
        temperature = warmup.at(epoch, 1.0)
        assert temperature == pytest.approx(golden["out/teacher_temp"][epoch].item(), rel=1e-12)
        student = golden["in/student"][epoch].requires_grad_()
        teacher = golden["in/teacher"][epoch]
        targets = sharpen(teacher, centre.value, temperature).unflatten(0, (2, pictures))
        loss = cross_view(student.unflatten(0, (-1, pictures)), targets, c.get("student_temp", 0.1))
        loss.backward()
        centre.note(teacher, step=epoch)
        centre.update_()
        assert student.grad is not None
        assert_close(loss, golden["out/loss"][epoch], FORWARD, f"loss of epoch {epoch}")
        assert_close(centre.value, golden["out/center_after"][epoch], FORWARD, f"centre after epoch {epoch}")
        gradients.append(student.grad)
    if "out/dloss_dstudent" in golden:  # of the first epochs, or of all
        for epoch, official in enumerate(golden["out/dloss_dstudent"]):
            assert_close(gradients[epoch], official, BACKWARD, f"gradient of epoch {epoch}")


def test_position_interpolation(folder: Path, table: str) -> None:
    golden = Golden(folder / "pos_interp.safetensors")
    parts = re.fullmatch(r"(\w+)_h(\d+)_w(\d+)", table)
    assert parts, f"unknown key {table}"
    stored = golden[f"in/pos_embed_{parts[1]}"]
    height, width = int(parts[2]), int(parts[3])
    patch = patch_of(golden, parts[1], stored.shape[1])
    side = round((stored.shape[1] - 1) ** 0.5) * patch
    config = EncoderConfig(
        patch_size=patch, width=stored.shape[2], depth=1, heads=1, positions="learned", interpolation="scale"
    )
    encoder = config.build((side, side))
    with torch.no_grad():
        encoder.vit.pos_embed.copy_(stored)
    prefix, patches = encoder._positions((height // patch, width // patch))
    assert_close(torch.cat([prefix, patches], dim=1), golden[f"out/{table}"], FORWARD, table)  # type: ignore[list-item]


def patch_of(golden: Golden, table: str, tokens: int) -> int:
    """The patch size: the last number of a setting such as "img 224 patch 16", else what all shapes allow."""
    said = golden.config.get(table)
    numbers = [int(word) for word in re.findall(r"\d+", json.dumps(said))]
    if len(numbers) > 1:
        return numbers[-1]
    sizes = [
        (*map(int, name.split("_h")[1].split("_w")), golden.shape(f"out/{name}")[1])
        for name in golden.found(rf"out/({table}_h\d+_w\d+)$")
    ]
    fits = [p for p in range(1, 65) if all((h // p) * (w // p) + 1 == n for h, w, n in sizes)]
    assert fits, f"no patch size fits the shapes of {table}"
    return next((p for p in fits if numbers and numbers[0] // p == round((tokens - 1) ** 0.5)), fits[-1])


def test_nearest_neighbours(folder: Path, k: str) -> None:
    golden = Golden(folder / "knn.safetensors")
    official, temperature = golden.under(f"out/k{k}"), golden.config.get("T", 0.07)
    train = Features(golden["in/train_features"], golden["in/train_labels"])
    test, labels = golden["in/test_features"], golden["in/test_labels"]
    votes = knn_predict(train, test, int(k), temperature, official["scores"].shape[1])
    assert_close(votes, official["scores"], FORWARD, "votes")
    assert torch.equal(votes.argmax(1), official["prediction"])
    for top, share in zip((1, min(5, int(k))), official["top1_top5"].tolist(), strict=True):
        assert accuracy(hits_of(votes, labels, top)) == pytest.approx(share)
    if "neighbour_index" in official:
        # where every training picture is a class of its own, votes are of neighbours
        alone = Features(train.x, torch.arange(len(train.x)))
        votes, index = knn_predict(alone, test, int(k), temperature, len(train.x)).sort(1, descending=True)
        nearest = official["neighbour_index"]
        assert torch.equal(index[: len(nearest), : int(k)], nearest)
        similarity = votes[:, : int(k)].log() * temperature
        assert_begins(similarity, official["neighbour_similarity"], FORWARD, "similarity")


def test_schedules(folder: Path, schedule: str) -> None:
    """With a warm-up as our learning rates go, without one as weight decay and momentum do."""
    golden = Golden(folder / "schedules.safetensors")
    c, official = golden.config[schedule], golden[f"out/{schedule}"].double()
    total, base, final = len(official), c["base_value"], c["final_value"]
    if warmup := c.get("warmup_epochs", 0):
        epochs = c["epochs"]
        ramp = Ramp(c.get("start_warmup_value", 0.0), base, final, warmup)
        mine = [Table().at(Progress(step, total, step / total * epochs, epochs), ramp) for step in range(total)]
    else:
        mine = [cosine(base, final, step / total) for step in range(total)]
    assert_close(torch.tensor(mine, dtype=torch.float64), official, 1e-12, schedule)
