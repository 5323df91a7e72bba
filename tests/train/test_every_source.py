"""A run from every kind of source, killed and resumed: the recipe as a user writes it, the result as if undisturbed."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from ruamel.yaml import YAML
from support import ROOT, UNSHOWN, assert_close_weights, checkpoint_bytes, launch, served

COUNT, SIDE, LAST = 12, 20, 6
QUIET = {"device": "cpu", "workers": 1, "log_every": 1, "checkpoint_every": 2, "threads": 1}

Data = dict[str, Any]


def pixels(number: int) -> np.ndarray:
    return np.random.default_rng(number).integers(256, size=(SIDE, SIDE + number, 3), dtype=np.uint8)


def png(number: int) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels(number)).save(buffer, "PNG")
    return buffer.getvalue()


def fill(folder: Path, count: int = COUNT) -> Path:
    folder.mkdir(parents=True)
    for number in range(count):
        (folder / f"{number:02d}.png").write_bytes(png(number))
    return folder


def folder(home: Path) -> Data:
    return {"name": "files", "path": str(fill(home / "pictures"))}


def tar(home: Path) -> Data:
    with tarfile.open(home / "x.tar", "w") as packed:
        packed.add(fill(home / "pictures"), "train")
    return {"name": "files", "path": str(home / "x.tar"), "train": "train"}


def table(home: Path) -> Data:
    fill(home / "pictures")
    rows = [f"pictures/{number:02d}.png" for number in range(COUNT)]
    (home / "t.csv").write_text("\n".join(["path", *rows]), encoding="utf-8")
    return {"name": "table", "path": str(home / "t.csv")}


def arrays(home: Path) -> Data:
    np.save(home / "x.npy", np.stack([pixels(number)[:, :SIDE] for number in range(COUNT)]))
    return {"name": "arrays", "train": str(home / "x.npy")}


def hugging_face(home: Path) -> Data:
    datasets = pytest.importorskip("datasets")
    features = datasets.Features({"image": datasets.Image()})
    cells = [{"bytes": png(number), "path": None} for number in range(COUNT)]
    datasets.Dataset.from_dict({"image": cells}, features=features).save_to_disk(home / "saved")
    return {"name": "huggingface", "path": str(home / "saved")}


def mixture(home: Path) -> Data:
    np.save(home / "x.npy", np.stack([pixels(number)[:, :SIDE] for number in range(3)]))
    parts = [
        {"name": "files", "path": str(fill(home / "pictures", 9))},
        {"name": "arrays", "train": str(home / "x.npy")},
    ]
    return {"name": "mixture", "sources": parts, "weights": [3, 1]}


def bands(number: int, count: int) -> np.ndarray:
    """uint16 [count, H, W] of reflectances: 0..10000 and some beyond."""
    return np.random.default_rng(number).integers(11_000, size=(count, SIDE, SIDE + number), dtype=np.uint16)


def with_bands(home: Path, count: int, **how: Any) -> Data:
    tifffile = pytest.importorskip("tifffile")
    (home / "tiles").mkdir()
    for number in range(COUNT):
        with tifffile.TiffWriter(home / "tiles" / f"{number:02d}.tif") as file:
            for page in [bands(number, count)] if "planarconfig" in how else bands(number, count):
                file.write(page, photometric="minisblack", metadata=None, **how)
    normal = {"mean": [0.5] * count, "std": [0.25] * count}
    return {"name": "files", "path": str(home / "tiles"), "value_range": [0, 10_000], **normal}


def four_bands(home: Path) -> Data:
    return with_bands(home, 4, planarconfig="separate", compression="zlib")


def five_pages(home: Path) -> Data:
    return with_bands(home, 5)


def mixture_of_four(home: Path) -> Data:
    shared = ("mean", "std")
    tiles = four_bands(home)
    np.save(home / "x.npy", np.stack([bands(number, 4)[:, :, :SIDE] for number in range(3)]))
    arrays = {"name": "arrays", "train": str(home / "x.npy"), "layout": "NCHW", "value_range": [0, 10_000]}
    parts = [{name: value for name, value in tiles.items() if name not in shared}, arrays]
    return {"name": "mixture", "sources": parts, **{name: tiles[name] for name in shared}}


def recipe_file(home: Path, data: Data) -> Path:
    """The demo's MAE on other pictures, as small as can be: two epochs of three steps."""
    recipe = YAML(typ="safe").load(ROOT / "recipes" / "demo" / "mae_shapes.yaml")
    recipe["method"]["view"] = {"size": 16, "mask": {"name": "random", "ratio": 0.5}}
    channels = len(data.get("mean", "RGB"))
    recipe["method"]["encoder"] |= {"width": 32, "depth": 1, "heads": 2, "channels": channels}
    recipe["method"]["decoder"] |= {"width": 16, "depth": 1, "heads": 2}
    recipe |= {"data": data, "train": {"epochs": 2, "batch_size": 4}, "evaluate": None, "run": QUIET}
    YAML().dump(recipe, home / "recipe.yaml")
    return home / "recipe.yaml"


def test_a_run_from_a_remote_tar_is_the_local_one(tmp_path: Path) -> None:
    pytest.importorskip("aiohttp")
    file = str(recipe_file(tmp_path, tar(tmp_path)))
    assert launch("pretrain", [file, f"run.output={tmp_path}/local"]) == [0]
    with served(tmp_path) as address:
        there = [file, f"data.path={address}/x.tar", *UNSHOWN]
        for output, world in (("remote", 1), ("shared", 2)):
            arguments = [*there, f"run.output={tmp_path}/{output}"]
            assert launch("pretrain", arguments, kill={"step": 3}) == [-9]
            assert launch("pretrain", arguments, world=world) == [0] * world
    assert checkpoint_bytes(tmp_path / "remote", LAST) == checkpoint_bytes(tmp_path / "local", LAST)
    assert_close_weights(tmp_path / "shared", tmp_path / "local", LAST)


KINDS = [folder, tar, table, arrays, hugging_face, mixture, four_bands, five_pages, mixture_of_four]


@pytest.mark.parametrize("make", KINDS)
def test_a_run_from_it_resumes_exactly(make: Callable[[Path], Data], tmp_path: Path) -> None:
    file = str(recipe_file(tmp_path, make(tmp_path)))
    assert launch("pretrain", [file, f"run.output={tmp_path}/whole"]) == [0]
    cut = [file, f"run.output={tmp_path}/cut", *UNSHOWN]
    assert launch("pretrain", cut, kill={"step": 3}) == [-9]
    assert launch("pretrain", [*cut, "run.workers=0"]) == [0]
    assert checkpoint_bytes(tmp_path / "cut", LAST) == checkpoint_bytes(tmp_path / "whole", LAST)
