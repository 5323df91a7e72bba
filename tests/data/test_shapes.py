"""Drawn pictures: the same everywhere, one object each, and no class that raw pixels give away."""

from __future__ import annotations

import math
import pickle
from typing import Any, Literal

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pydantic import ValidationError
from torch import Tensor

from unlabeled.data.opened import Opened
from unlabeled.data.sources import shapes
from unlabeled.data.sources.shapes import OUTLINES, PATTERNS, RADIUS, ShapesSource
from unlabeled.data.sources.shapes import Config as Shapes

# of the outlines in a disc of radius one, by schoolbook geometry
AREAS = {
    "circle": math.pi * 0.9**2,
    "square": 1.4**2,
    "triangle": 3 * math.sqrt(3) * 0.5**2,
    "star": 5 * 0.31**2 * math.tan(0.2 * math.pi) / math.cos(0.4 * math.pi),
    "cross": 2 * 0.54 * 1.86 - 0.54**2,
    "ring": math.pi * (0.92**2 - 0.52**2),
    "heart": 1.08**2 + math.pi * 0.54**2,
    "arrow": 0.9**2 + 0.48 * 0.92,
    "hourglass": 2 * 0.66 * (0.66 + 2 * 0.08 * math.sqrt(2)),
}

# shares of the plane that patterns cover, likewise; three sets of lines leave triangles of inradius 1/3 - 0.1
SHARES = {
    "stripes": 0.5,
    "checks": 0.5,
    "dots": math.pi * 0.3**2,
    "rings": math.pi * (0.4**2 - 0.2**2),
    "grid": 1 - 0.76**2,
    "bricks": 1 - 0.8 * 0.9,
    "zigzag": 0.5,
    "targets": 0.5,
    "crosses": (2 * 0.54 * 1.86 - 0.54**2) / 2.4**2,
    "mesh": 1 - 0.7**2,
}


def pictures(source: ShapesSource, count: int) -> Tensor:
    return torch.stack([source.image(i) for i in range(count)])


def test_the_contract() -> None:
    source = Opened(Shapes(train_size=105, val_size=20, size=24)).train
    assert len(source) == len(source.labels) == 105 and len(Opened(Shapes(val_size=20)).val) == 20
    assert source.image(3).shape == (3, 24, 24) and source.image(3).dtype == torch.uint8
    assert source.mask(3).shape == (24, 24) and source.mask(3).dtype == torch.bool
    assert source.key(3) == "shapes/train/000003"
    counts = np.bincount(source.labels, minlength=10)
    assert source.labels.dtype == np.int64 and len(source.classes) == 10 and counts.max() - counts.min() <= 1


def test_a_picture_depends_on_seed_split_and_index_alone() -> None:
    source = Opened(Shapes()).train
    first = pictures(source, 30)
    backwards = torch.stack([source.image(i) for i in reversed(range(30))]).flip(0)
    assert torch.equal(first, backwards)
    assert torch.equal(first, pictures(pickle.loads(pickle.dumps(source)), 30))
    assert torch.equal(first, pictures(Opened(Shapes(train_size=30, val_size=1)).train, 30))

    every = torch.cat([first, pictures(Opened(Shapes(seed=1)).train, 30), pictures(Opened(Shapes()).val, 30)])
    assert len(torch.unique(every, dim=0)) == 90


def test_what_is_drawn_is_pinned() -> None:
    # a change here changes everybody's numbers: raise VERSION with it
    source = Opened(Shapes()).train
    means = [source.image(i).float().mean().item() for i in (0, 1, 2, 9_999)]
    assert means == pytest.approx([141.50, 117.46, 57.65, 103.39], abs=0.01)
    patterned = Opened(Shapes(kinds="patterns")).train
    means = [patterned.image(i).float().mean().item() for i in (0, 1, 2, 9_999)]
    assert means == pytest.approx([124.05, 103.94, 85.51, 125.55], abs=0.01)


def test_splits_share_no_picture() -> None:
    train, val = (pictures(Opened(Shapes()).split(split), 1000) for split in ("train", "val"))
    assert len(torch.unique(torch.cat([train, val]), dim=0)) == 2000


def test_fingerprint_tells_apart_what_differs() -> None:
    recipes = [Shapes(), Shapes(kinds="patterns"), Shapes(seed=1), Shapes(size=64), Shapes(train_size=10, val_size=10)]
    prints = [Opened(recipe).split(split).fingerprint() for recipe in recipes for split in ("train", "val")]
    assert len(set(prints)) == len(prints)
    assert Opened(Shapes()).train.fingerprint() == prints[0]


@pytest.mark.parametrize("name", OUTLINES)
def test_outlines_fit_the_unit_disc_and_have_their_area(name: str) -> None:
    axis = np.linspace(-1.5, 1.5, 600, dtype=np.float32)
    x, y = np.meshgrid(axis, axis)
    inside = OUTLINES[name](x, y) <= 0
    assert 0.85 < np.hypot(x, y)[inside].max() < 1.03
    if name in AREAS:
        assert inside.mean() * 9 == pytest.approx(AREAS[name], rel=0.01)


@pytest.mark.parametrize("name", PATTERNS)
def test_patterns_cover_their_share_of_the_plane(name: str) -> None:
    x, y = np.meshgrid(*[np.linspace(-12, 12, 800, dtype=np.float32)] * 2)
    u, v = x * math.cos(0.3) + y * math.sin(0.3), y * math.cos(0.3) - x * math.sin(0.3)
    assert (PATTERNS[name](u, v) <= 0).mean() == pytest.approx(SHARES[name], abs=0.01)


def test_classes_may_be_patterns() -> None:
    """They take turns, fill the image, and cover their share of it in the mean over images."""
    source = Opened(Shapes(kinds="patterns", train_size=400)).train
    assert source.classes == tuple(PATTERNS) and np.bincount(source.labels).tolist() == [40] * 10
    for label, name in enumerate(PATTERNS):
        masks = torch.stack([source.mask(i) for i in range(label, 400, 10)]).float()
        assert masks.mean() == pytest.approx(SHARES[name], abs=0.05)
        assert masks.flatten(1).mean(0).max() < 0.9  # no pixel belongs to the pattern always


def test_the_mask_is_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same scene with another shape differs where just one of the two is, and nowhere around them."""
    source = Opened(Shapes(size=64)).train
    scenes = [(source.image(i), source.mask(i)) for i in range(40)]
    outlines = list(OUTLINES.values())
    monkeypatch.setattr(shapes, "OUTLINES", dict(zip(OUTLINES, outlines[3:] + outlines[:3], strict=True)))
    for i, (image, mask) in enumerate(scenes):
        changed, swapped = (image != source.image(i)).any(0), source.mask(i)
        near = F.max_pool2d((mask | swapped).float()[None], 7, 1, 3)[0] > 0
        assert not (changed & ~near).any()
        assert (mask ^ swapped).any() and changed[mask ^ swapped].all()


def test_the_object_is_dominant_and_inside_the_picture() -> None:
    source = Opened(Shapes(size=64)).train
    for i in range(100):
        rows, columns = torch.where(source.mask(i))
        extent = max(rows.max() - rows.min(), columns.max() - columns.min()).item() + 1
        assert RADIUS[0] * 64 * 0.7 < extent < RADIUS[1] * 64 * 1.03
        share = source.mask(i).float().mean().item()
        name = source.classes[source.labels[i]]
        if name in AREAS:
            low, high = (AREAS[name] * r**2 / 4 for r in RADIUS)
            assert low * 0.9 < share < high * 1.1


def test_size_is_only_resolution() -> None:
    small, large = Opened(Shapes(size=32)).val, Opened(Shapes(size=128)).val
    for i in range(10):
        shrunk = F.avg_pool2d(large.image(i).float(), 4)
        assert (shrunk - small.image(i).float()).abs().mean() < 6


@pytest.mark.parametrize(("kinds", "most"), [("outlines", 0.25), ("patterns", 0.25)])
def test_raw_pixels_do_not_tell_the_class(kinds: Literal["outlines", "patterns"], most: float) -> None:
    """Weighted kNN (k = 20, temperature 0.07) on normalised pixels stays near chance, which is 10 %."""
    recipe = Shapes(kinds=kinds)
    train, val = Opened(recipe).train, Opened(recipe).val
    mean, std = (torch.tensor(values).view(3, 1, 1) * 255 for values in (recipe.mean, recipe.std))
    bank, queries = (
        F.normalize(((pictures(source, count) - mean) / std).flatten(1))
        for source, count in ((train, 2000), (val, 500))
    )
    similarity, nearest = (queries @ bank.T).topk(20)
    votes = F.one_hot(torch.from_numpy(train.labels)[nearest], 10) * (similarity / 0.07).exp().unsqueeze(-1)
    accuracy = (votes.sum(1).argmax(1) == torch.from_numpy(val.labels[:500])).float().mean()
    assert accuracy < most


@pytest.mark.parametrize(
    "wrong",
    [
        {"size": 7},
        {"size": 513},
        {"train_size": 0},
        {"seed": -1},
        {"kinds": "stripes"},
        {"max_bad_fraction": math.nan},
        {"std": (1, 0, 1)},
    ],
)
def test_refuses_what_cannot_be_drawn(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Shapes(**wrong)
