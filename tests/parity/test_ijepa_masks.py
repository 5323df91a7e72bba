"""I-JEPA's masks against the official collator: the same sizes and blocks, the same distributions of the rest."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from parity.golden import Golden, Settings, peek
from parity.statistics import LIMIT
from torch import Tensor

from unlabeled.data.masks.multi_block import SQUARE, block_size
from unlabeled.data.masks.multi_block import Config as MultiBlockMask

REPEATS = 4  # of every official batch, with its sizes


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per setting of whatever set is given, as its names tell."""
    if "setting" in metafunc.fixturenames:
        golden = peek(metafunc.config, "ijepa", "masks.safetensors")
        metafunc.parametrize("setting", (golden and golden.found(r"out/(\w+)/enc_frequency$")) or ["absent"])


@pytest.fixture
def golden(folder: Path) -> Golden:
    return Golden(folder / "masks.safetensors")


class Official(NamedTuple):
    """A setting of the official collator."""

    mask: MultiBlockMask
    grid: tuple[int, int]
    contexts: int  # in every picture
    batch: int
    sizes: list[tuple[tuple[int, int], tuple[int, int]]]  # of targets and context, by step


def official_of(golden: Golden, setting: str) -> Official:
    c: Settings = golden.config["settings"][setting]
    mask = MultiBlockMask(
        targets=c["npred"],
        target_scale=tuple(c["pred_mask_scale"]),
        target_aspect=tuple(c["aspect_ratio"]),
        context_scale=tuple(c["enc_mask_scale"]),
        min_keep=c["min_keep"],
        overlap=c.get("allow_overlap", False),
    )
    grid = tuple(golden.shape(f"out/{setting}/enc_frequency"))
    sizes = [sizes_of(mask, step, grid) for step in range(golden.config["batches"])]
    return Official(mask, grid, c["nenc"], golden.config["batch"], sizes)


def sizes_of(mask: MultiBlockMask, step: int, grid: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """Sizes of targets and context from the draws of torch's generator, which the official code seeds by the step."""
    generator = torch.Generator().manual_seed(step)
    first, second = (torch.rand(1, generator=generator).item() for _ in range(2))
    target = block_size(first, mask.target_scale, mask.target_aspect, grid)
    return target, block_size(second, mask.context_scale, SQUARE, grid)


class Corner:
    """A generator that always draws the same place of a block."""

    def __init__(self, row: int, column: int, room: tuple[int, int]) -> None:
        self.drawn = np.array([(row + 0.5) / room[0], (column + 0.5) / room[1]])

    def random(self, shape: Any) -> np.ndarray:
        return np.broadcast_to(self.drawn, shape)


def test_sizes_of_blocks_follow_from_the_step(golden: Golden, setting: str) -> None:
    official = official_of(golden, setting)
    expected = golden[f"out/{setting}/block_sizes_by_step"].tolist()
    generated = [[*target, *context] for target, context in official.sizes[: len(expected)]]
    assert generated == expected[: len(generated)]
    kept = [math.prod(target) for target, _ in official.sizes]
    assert kept == golden[f"out/{setting}/pred_kept_per_batch"].tolist()


def test_the_first_masks_are_masks_of_ours(golden: Golden, setting: str) -> None:
    """Official targets and contexts, each from some place of its block."""
    official, numbers = official_of(golden, setting), golden.found(rf"out/{setting}/first_pred(\d+)$")
    for number in numbers:
        targets = golden[f"out/{setting}/first_pred{number}"].long().transpose(0, 1)
        contexts = golden[f"out/{setting}/first_enc{number}"].long()
        size, context_size = official.sizes[int(number)]
        places = [blocks[0] for blocks in everywhere(official, size)]
        for picture in targets.tolist():
            assert all(target in places for target in picture)
        for context in contexts:
            assert_contexts(official, context, targets.numpy(), context_size)
    assert numbers


def everywhere(official: Official, size: tuple[int, int]) -> list[list[list[int]]]:
    """Blocks [1, M] at every place that the official code reaches."""
    room = (official.grid[0] - size[0], official.grid[1] - size[1])
    corners = [Corner(*place, room) for place in product(range(room[0]), range(room[1]))]
    return [official.mask.placed(corner, (1,), size, official.grid).tolist() for corner in corners]  # type: ignore[arg-type]


def assert_contexts(official: Official, contexts: Tensor, targets: np.ndarray, size: tuple[int, int]) -> None:
    """Each is the beginning of a block without its picture's targets; all are as long as the shortest."""
    room, count = (official.grid[0] - size[0], official.grid[1] - size[1]), contexts.shape[1]
    corners = [Corner(*place, room) for place in product(range(room[0]), range(room[1]))]
    made = [official.mask.contexts(corner, targets, size, official.grid) for corner in corners]  # type: ignore[arg-type]
    for row, context in enumerate(contexts.tolist()):
        assert context in [np.flatnonzero(maps[row])[:count].tolist() for maps in made]


def test_numbers_and_places_are_distributed_alike(golden: Golden, setting: str) -> None:
    official = official_of(golden, setting)
    mask, grid, patches = official.mask, official.grid, math.prod(official.grid)
    rng, batches = np.random.default_rng(0), len(official.sizes)
    kept, seen, wanted = [], [], np.zeros(patches)
    for target, context in official.sizes * REPEATS:
        targets = mask.placed(rng, (official.batch, mask.targets), target, grid)
        maps = [mask.contexts(rng, targets, context, grid) for _ in range(official.contexts)]
        short = mask.shortened(rng, np.concatenate(maps))
        kept.append(short.shape[1])
        seen.append(np.bincount(short.reshape(-1), minlength=patches) / len(short))
        wanted += np.bincount(targets.reshape(-1), minlength=patches)

    # both have the same sizes in every step: what differs is chance within a step
    by_step = torch.tensor(kept, dtype=torch.float64).view(REPEATS, batches)
    assert_alike(golden[f"out/{setting}/enc_kept_per_batch"].double(), by_step, "patches of the context")
    frequency = torch.tensor(np.stack(seen)).view(REPEATS, batches, -1)
    assert_alike(golden[f"out/{setting}/enc_frequency"].double().view(1, -1), frequency, "context", batches)
    n = batches * official.batch * mask.targets
    mine, theirs = torch.tensor(wanted) / (n * REPEATS), golden[f"out/{setting}/pred_frequency"].double().flatten()
    error = (mine * (1 - mine) / n * (1 + 1 / REPEATS)).sqrt()
    assert ((mine - theirs).abs() <= LIMIT * error + 1e-6).all(), "targets lie elsewhere"


def assert_alike(theirs: Tensor, mine: Tensor, what: str, steps: int | None = None) -> None:
    """The mean over steps of official values [steps, ...], or their mean alone, and of ours [REPEATS, steps, ...]."""
    within = mine.var(0).mean(0) / (steps or len(theirs))
    allowed = LIMIT * (within * (1 + 1 / REPEATS)).sqrt() + 1e-6
    assert ((mine.mean((0, 1)) - theirs.mean(0)).abs() <= allowed).all(), f"{what}: distributed otherwise"


def test_the_last_row_and_column_are_out_of_reach_but_for_an_option(golden: Golden, setting: str) -> None:
    official = official_of(golden, setting)
    for key in ("enc_frequency", "pred_frequency"):
        table = golden[f"out/{setting}/{key}"]
        assert not table[-1].any() and not table[:, -1].any()
    everywhere = official.mask.model_copy(update={"reach": "full"})
    drawn = everywhere.placed(np.random.default_rng(0), (500, 4), official.sizes[0][0], official.grid)
    assert drawn.max() == math.prod(official.grid) - 1
