"""DINOv3's losses, positions, masks and schedules against numbers of the official code (facebookresearch/dinov3)."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from parity.golden import Golden, Settings, assert_close, assert_gradient_at, peek
from parity.statistics import DRAWS, assert_same_frequency, assert_same_mean
from parity.vit import BACKWARD, FORWARD
from timm.layers import RotaryEmbeddingDinoV3

from unlabeled.backbone.encoder import Tokens
from unlabeled.backbone.families.rope import sines_and_cosines
from unlabeled.data.masking import hide_blocks, topped_up
from unlabeled.data.masks.stratified_block import DINOV2_SMALLEST
from unlabeled.data.masks.stratified_block import Config as StratifiedBlockMask
from unlabeled.nn.loss.prototypes import cross_view, soft_cross_entropy
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.nn.loss.spread import koleo
from unlabeled.nn.patches import resize_patches
from unlabeled.pretrain.gram import gram
from unlabeled.pretrain.method import Progress
from unlabeled.train.schedule import Ramp, Schedule
from unlabeled.train.schedules.linear_cosine import Config as LinearCosine
from unlabeled.train.schedules.table import Config as Table

PATTERNS = {
    "pairs": ("losses", r"out/(gram_(?:batch|image)\w*)$"),
    "classes": ("losses", r"out/(dino_(?:global|local)\w*)$"),
    "neighbours": ("losses", r"out/koleo_top(\d+)$"),
    "angles": ("rope", r"out/(\w+)/cos$"),
    "mask": ("masks", r"out/(\w+)/count$"),
    "schedule": ("schedules", r"out/(\w+)$"),
}


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per loss, table, mask and schedule of whatever set is given, as its names tell."""
    for name, (file, pattern) in PATTERNS.items():
        if name in metafunc.fixturenames:
            golden = peek(metafunc.config, "dinov3", f"{file}.safetensors")
            metafunc.parametrize(name, (golden and golden.found(pattern)) or ["absent"])


@pytest.fixture(scope="module")
def losses(folder: Path) -> Golden:
    return Golden(folder / "losses.safetensors")


NEGATIVES = {"no_negatives": "drop", "no_teacher_negatives": "drop_teacher"}


def test_gram(losses: Golden, pairs: str) -> None:
    parts = re.fullmatch(r"gram_(image|batch)_?(no_negatives|no_teacher_negatives)?_?(unnormalised)?", pairs)
    assert parts, f"unknown key {pairs}"
    student, teacher = losses["in/student_patches"].requires_grad_(), losses["in/teacher_patches"].requires_grad_()
    within, negatives = "picture" if parts[1] == "image" else "batch", NEGATIVES.get(parts[2], "keep")
    loss = gram(student, teacher, within, negatives, normalise=parts[3] is None)  # type: ignore[arg-type]
    loss.backward()
    assert teacher.grad is None
    assert_close(loss, losses[f"out/{pairs}"], FORWARD, "loss")
    assert_gradient_at(student.grad, losses, f"grad/{pairs}", BACKWARD)


def test_map_of_the_gram_teacher(losses: Golden) -> None:
    maps, official = losses["in/gram_map"], losses["out/gram_teacher_downsampled"]
    (rows, columns), grid = maps.shape[2:], official.shape[2:]
    tokens = Tokens(maps.flatten(2).mT[:, :0], maps.flatten(2).mT, (rows, columns))
    ours = resize_patches(tokens.patches, tokens.grid, (grid[0], grid[1]), "bicubic")
    assert_close(ours.mT.unflatten(2, grid), official, FORWARD, "map")


def test_koleo(losses: Golden, neighbours: str) -> None:
    x = losses["in/features"].requires_grad_()
    loss = koleo(x, neighbours=int(neighbours))
    loss.backward()
    assert_close(loss, losses[f"out/koleo_top{neighbours}"], FORWARD, "loss")
    assert_gradient_at(x.grad, losses, f"grad/koleo_top{neighbours}", BACKWARD)


def test_sinkhorn(losses: Golden) -> None:
    ours = sinkhorn(losses["in/teacher_logits"], losses.config["teacher_temp"], losses.config.get("iterations", 3))
    assert_close(ours, losses["out/sinkhorn"], FORWARD, "teacher")


def test_classes_across_views(losses: Golden, classes: str) -> None:
    """Officially two means, of large crops with and without their own pairs, and of small ones: shares of ours."""
    which = "global" if "global" in classes else "local"
    student = losses[f"in/student_{which}_logits"].requires_grad_()
    temperature = losses.config.get("student_temp", 0.1)
    large = losses["in/student_global_logits"]
    teacher = losses["out/sinkhorn"].unflatten(0, (len(large), -1))
    if which == "local":
        pairs = len(teacher) * (len(large) + len(student) - 1)
        everything = cross_view(torch.cat([large, student]), teacher, temperature) * pairs
        own = cross_view(large, teacher, temperature) * len(teacher) * (len(large) - 1)
        loss = (everything - own) / (len(teacher) * len(student))
    elif "ignore_diagonal" in classes:
        loss = cross_view(student, teacher, temperature)
    else:
        loss = soft_cross_entropy(student, teacher.mean(0, keepdim=True), temperature).mean()
    loss.backward()
    assert_close(loss, losses[f"out/{classes}"], FORWARD, "loss")
    assert_gradient_at(student.grad, losses, f"grad/{classes}", BACKWARD)


# ---------------------------------------------------------------- positions


def test_angles(folder: Path, angles: str) -> None:
    golden = Golden(folder / "rope.safetensors")
    c = golden.config[angles]
    periods = {"min_period": c.get("min_period"), "max_period": c.get("max_period")}
    rope = RotaryEmbeddingDinoV3(
        c["embed_dim"] // c["num_heads"],
        temperature=c.get("base", 100.0),
        normalize_coords=c.get("normalize_coords", "separate"),
        **periods,
    )
    assert_close(rope.periods, golden[f"out/{angles}/periods"], FORWARD, "periods")
    sines, cosines = sines_and_cosines(rope, tuple(c["grid"])).chunk(2, dim=-1)
    assert_close(sines, golden[f"out/{angles}/sin"], FORWARD, "sines")
    assert_close(cosines, golden[f"out/{angles}/cos"], FORWARD, "cosines")


# ---------------------------------------------------------------- masks


def settings_of(golden: Golden, mask: str) -> tuple[Settings, int]:
    """The settings of a grid, and the number of patches to hide: the digits at the end of a name such as g14_58."""
    name, _, target = mask.rpartition("_")
    return Settings({**golden.config, **golden.config.get("settings", {}).get(name, {})}), int(target)


def test_masks(folder: Path, mask: str) -> None:
    golden = Golden(folder / "masks.safetensors")
    (settings, target), official = settings_of(golden, mask), golden.under(f"out/{mask}")
    rows, columns = golden.shape(f"out/{mask}/frequency")
    smallest = settings.get("min_num_patches", DINOV2_SMALLEST)
    largest = settings.get("max_num_patches", rows * columns / 2)
    aspect, rng = StratifiedBlockMask().aspect, np.random.default_rng(0)
    drawn = [hide_blocks(rng, (rows, columns), target, smallest, largest, aspect) for _ in range(DRAWS)]
    hidden = torch.from_numpy(np.stack([topped_up(rng, one, target) for one in drawn])).double()

    counts = official["count"]
    assert counts.eq(target).all() and hidden.sum((1, 2)).eq(target).all()
    assert_same_frequency(hidden.mean(0), official["frequency"], len(counts))
    pairs = (hidden[:, 1:] * hidden[:, :-1]).mean((1, 2))
    assert_same_mean(
        pairs, official["vertical_pair_frequency"].item(), pairs.std().item() / math.sqrt(len(counts)), "pairs"
    )
    first = next(name for name in official if name.startswith("first"))
    assert official[first].double().sum((1, 2)).eq(target).all()


def test_our_mask_draws_by_this_generator() -> None:
    """Each crop that is masked hides what the upper end of its part says."""
    mask, grid = StratifiedBlockMask(share=1.0, ratio=(0.1, 0.3), exact=True), (14, 14)
    mine = mask.draw(np.random.default_rng(0), grid, 16).hidden.view(grid)
    rng = np.random.default_rng(0)
    rng.random()
    target = int(0.3 * 196)
    blocks = hide_blocks(rng, grid, target, DINOV2_SMALLEST, 98, mask.aspect)
    assert mine.equal(torch.from_numpy(topped_up(rng, blocks, target))) and mine.sum() == target


# ---------------------------------------------------------------- schedules


def scheduled(name: str, c: Settings) -> Schedule:
    """Ours, by the name of an official table."""
    if name.startswith("linear_cosine"):
        return LinearCosine(length=c["cosine"] if name.endswith("constant") else None)
    still = c.get("freeze_iters", 0) if name.startswith("frozen") else 0
    return Table(still=still, cut=c.get("trunc_extra", 0.0) if name.startswith("truncated") else 0.0)


def test_schedules(folder: Path, schedule: str) -> None:
    golden = Golden(folder / "schedules.safetensors")
    c, official = golden.config, golden[f"out/{schedule}"].double()
    total, ours = len(official), scheduled(schedule, c)
    ramp = Ramp(c.get("start", 0.0), c["peak"], c["end"], c["warmup"])
    mine = [ours.at(Progress(step, total, float(step), float(total)), ramp) for step in range(total)]
    assert_close(torch.tensor(mine, dtype=torch.float64), official, 1e-12, schedule)
