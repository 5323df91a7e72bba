"""The map: its plane, clusters and thumbnails, against plain computations; the same by its seed."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from unlabeled.errors import UserError
from unlabeled.look import plane as planes
from unlabeled.look import thumbnails
from unlabeled.look.clusters import kmeans
from unlabeled.look.mapped import Mapped
from unlabeled.look.mapping import Described, mapped
from unlabeled.look.plane import plane
from unlabeled.look.thumbnails import GREY, Thumbs, columns_for, side_for, thumbnail, tiled, write_sheet


def blobs(n: int, width: int = 8) -> Tensor:
    """Three heaps of vectors, the first half of them, then a third, then the rest."""
    generator = torch.Generator().manual_seed(0)
    heap = torch.tensor([0] * (n // 2) + [1] * (n // 3) + [2] * (n - n // 2 - n // 3))
    return 10 * torch.eye(width)[heap] + torch.randn(n, width, generator=generator)


def described(n: int = 60, **changes: Any) -> Described:
    classes = ["a"] * (n // 2) + ["b"] * (n // 3) + [""] * (n - n // 2 - n // 3)
    fields: dict[str, Any] = {
        "features": blobs(n),
        "names": [f"{i}.png" for i in range(n)],
        "classes": classes,
        "splits": ["train"] * n,
        "side": 96,
        "left_out": 1,
    }
    return Described(**{**fields, **changes})


def test_components_are_the_plane_of_the_svd() -> None:
    x = blobs(30)
    centred = (x.double() - x.double().mean(0)).numpy()
    left, values, _ = np.linalg.svd(centred, full_matrices=False)
    found = plane(x, "pca", 0)
    np.testing.assert_allclose(np.abs(found.points), np.abs(left[:, :2] * values[:2]), rtol=1e-8, atol=1e-8)
    assert "principal components" in found.words


def test_the_fallback_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    assert "at least 50 pictures, there are 30" in plane(blobs(30), "umap", 0).words
    monkeypatch.setattr(planes, "find_spec", lambda name: None)
    assert "umap-learn is not installed" in plane(blobs(60), "auto", 0).words
    with pytest.raises(UserError, match=r"umap-learn is not installed. Run pip install umap-learn"):
        plane(blobs(60), "umap", 0)

    def fails(x: Tensor, seed: int) -> None:
        raise RuntimeError("no compiler")

    monkeypatch.setattr(planes, "find_spec", lambda name: object())
    monkeypatch.setattr(planes, "_umap", fails)
    assert "UMAP failed with no compiler" in plane(blobs(60), "auto", 0).words
    with pytest.raises(UserError, match="no compiler"):
        plane(blobs(60), "umap", 0)


def test_umap_gets_the_features_and_the_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys
    from types import SimpleNamespace

    told: dict[str, Any] = {}

    class Fake:
        def __init__(self, **settings: Any) -> None:
            told.update(settings)

        def fit_transform(self, x: np.ndarray) -> np.ndarray:
            return x[:, :2]

    monkeypatch.setattr(planes, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Fake))
    x = blobs(60)
    found = plane(x, "auto", 7)
    np.testing.assert_array_equal(found.points, x[:, :2].double().numpy())
    assert (told["random_state"], told["metric"], told["n_jobs"]) == (7, "cosine", 1)
    assert "seed 7" in found.words


@pytest.mark.skipif(find_spec("umap") is None, reason="umap-learn is not installed")
@pytest.mark.skipif(not os.environ.get("TEST_UMAP"), reason="UMAP compiles for half a minute: TEST_UMAP=1 asks for it")
def test_umap_keeps_heaps_apart_and_repeats_itself() -> None:
    first, second = (plane(blobs(60), "umap", 0).points for _ in range(2))
    np.testing.assert_array_equal(first, second)
    middles = np.stack([part.mean(0) for part in (first[:30], first[30:50], first[50:])])
    closest = np.linalg.norm(first[:, None] - middles, axis=2).argmin(1)
    assert closest.tolist() == [0] * 30 + [1] * 20 + [2] * 10


def test_clusters_are_the_heaps_by_size() -> None:
    found = kmeans(blobs(60), 3, np.random.default_rng(0))
    assert found.tolist() == [0] * 30 + [1] * 20 + [2] * 10


def test_clusters_are_the_nearest_means() -> None:
    """Where k-means ends, every vector is nearest to the mean of its own cluster."""
    x = torch.randn(80, 3, generator=torch.Generator().manual_seed(1))
    found = kmeans(x, 6, np.random.default_rng(3))
    means = [x[found == cluster].double().mean(0) for cluster in range(6)]
    for vector, cluster in zip(x.double(), found.tolist(), strict=True):
        lengths = [float(((vector - mean) ** 2).sum()) for mean in means]
        assert lengths.index(min(lengths)) == cluster


def test_fewer_vectors_than_clusters() -> None:
    assert kmeans(torch.ones(4, 2), 10, np.random.default_rng(0)).tolist() == [0] * 4
    assert sorted(kmeans(torch.eye(3), 10, np.random.default_rng(0)).tolist()) == [0, 1, 2]


@pytest.mark.parametrize(("height", "width"), [(40, 20), (20, 40), (16, 16), (3, 400)])
def test_thumbnails_keep_the_aspect(height: int, width: int) -> None:
    found = thumbnail(torch.full((3, height, width), 255, dtype=torch.uint8), 32)
    white = (found == 255).all(0)
    rows, columns = white.any(1).sum().item(), white.any(0).sum().item()
    assert (rows, columns) == (
        max(1, round(32 * height / max(height, width))),
        max(1, round(32 * width / max(height, width))),
    )
    assert set(found.unique().tolist()) <= {GREY, 255}
    above = white.any(1).nonzero()[0].item()
    assert above == (32 - rows) // 2


def test_channels_of_thumbnails() -> None:
    image = torch.arange(5, dtype=torch.uint8).view(5, 1, 1).expand(5, 8, 8)
    assert thumbnail(image, 32)[:, 0, 0].tolist() == [0, 1, 2]
    assert thumbnail(image[1:2], 32)[:, 0, 0].tolist() == [1, 1, 1]


def test_the_sheet_has_every_thumbnail_in_its_place(tmp_path: Path) -> None:
    images = torch.randint(0, 256, (7, 3, 4, 4), dtype=torch.uint8)
    drawn = tiled(Thumbs(images, 3))
    assert drawn.shape == (3, 12, 12)
    for place in range(9):
        row, column = divmod(place, 3)
        found = drawn[:, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        assert torch.equal(found, images[place] if place < 7 else torch.full_like(found, GREY))
    plain = torch.tensor([0, 80, 160, 255]).view(4, 1, 1, 1).expand(4, 3, 32, 32).to(torch.uint8)
    write_sheet(tmp_path / "a.jpg", Thumbs(plain, 2))
    with Image.open(tmp_path / "a.jpg") as image:
        assert (image.format, image.size) == ("JPEG", (64, 64))
        assert [image.getpixel((x, y))[0] for y in (16, 48) for x in (16, 48)] == pytest.approx(
            [0, 80, 160, 255], abs=2
        )


def test_a_large_sheet_is_kept_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [side_for(n) for n in (1, 1139, 1140, 2563, 2564, 10_000)] == [96, 96, 64, 64, 48, 32]
    assert columns_for(10_000) == 100
    noise = Thumbs(torch.randint(0, 256, (16, 3, 32, 32), dtype=torch.uint8), 4)
    write_sheet(tmp_path / "best.jpg", noise)
    monkeypatch.setattr(thumbnails, "MOST_BYTES", 0.6 * (best := (tmp_path / "best.jpg").stat().st_size))
    write_sheet(tmp_path / "small.jpg", noise)
    assert (tmp_path / "small.jpg").stat().st_size <= 0.6 * best
    assert not list(tmp_path.glob("*.writing"))


def test_a_map_is_the_same_by_its_seed() -> None:
    one, same, other = (mapped(described(), "pca", seed, 4, "pictures", 5) for seed in (0, 0, 1))
    assert one == same
    assert [query.place for query in one.queries] != [query.place for query in other.queries]
    assert Mapped.model_validate_json(one.model_dump_json(exclude_defaults=True)) == one
    assert json.loads(one.model_dump_json())["step"] == 5


def test_a_map_says_what_is_known() -> None:
    found = mapped(described(), "pca", 0, 4, "60 pictures")
    assert found.words["class"] == ["a"] * 30 + ["b"] * 20 + ["no class"] * 10
    assert set(found.words) == {"class", "split", "cluster"}
    assert found.words["cluster"][0] == "cluster 1"
    assert found.numbers["uncertainty"] == [0.0] * 60, "every heap has one class"
    assert (found.left_out, len(found.queries), len(found.queries[0].neighbours)) == (1, 4, 8)
    bare = mapped(described(classes=[""] * 60, splits=()), "pca", 0, 4, "60 pictures")
    assert (set(bare.words), bare.numbers) == ({"cluster"}, {})


def test_what_cannot_be_mapped() -> None:
    with pytest.raises(UserError, match="1 pictures can be used; expected at least 2"):
        mapped(described(1, features=blobs(1), splits=()), "pca", 0, 4, "")
    with pytest.raises(UserError, match="not finite"):
        mapped(described(features=blobs(60).fill_(float("nan"))), "pca", 0, 4, "")
    two = mapped(described(2, features=blobs(2)), "auto", 0, 4, "")
    assert len(two.points) == 2


def test_a_collapsed_encoder_is_mapped() -> None:
    found = mapped(described(features=torch.ones(60, 8)), "pca", 0, 4, "")
    assert found.points == [(0.0, 0.0)] * 60
