from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.errors import UserError
from unlabeled.evaluate.command import add_arguments, run
from unlabeled.export import Preprocessing, export_encoder
from unlabeled.nn.encoder import EncoderConfig


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes, told apart by brightness: 20 pictures of each to train on, 5 to test on."""
    random = np.random.Generator(np.random.PCG64(0))
    for split, count in (("train", 20), ("val", 5)):
        for label, low in (("dark", 0), ("light", 100)):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(low, low + 150, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def export(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    prepared = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    export_encoder(folder, config.build((8, 8)), prepared, "card", {})
    return str(folder)


def evaluate(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([*arguments, "--device", "cpu", "--workers", "0"]))


def test_table_and_json(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports = [export(tmp_path / name, seed) for seed, name in enumerate("ab")]
    file = tmp_path / "results" / "few.json"
    options = ("--fractions", "1", "0.1", "--seeds", "2", "--pool", "mean", "--crop-pct", "1", "--baselines")
    assert evaluate(*exports, "--data", str(pictures), *options, "--json", str(file)) == 0

    report: dict[str, Any] = json.loads(file.read_text())
    rows = {row["name"]: row for row in report["rows"]}
    # two exports of one architecture share their baselines
    names = [row["name"] for row in report["rows"]]
    assert names == [*exports, "raw pixels 8x8", "untrained vit_tiny_patch16_224 (1 x 16)"]
    assert rows["raw pixels 8x8"]["dimensions"] == 192
    for row in rows.values():
        assert (row["train_size"], row["test_size"]) == (40, 10)
        assert 1 <= row["effective_rank"] <= min(row["dimensions"], row["test_size"])
        assert [(name, len(s["values"])) for name, s in row["scores"].items()] == [
            ("knn", 1),
            ("linear", 1),
            ("knn_10%", 2),
            ("linear_10%", 2),
        ]
    assert rows["raw pixels 8x8"]["scores"]["linear"]["mean"] == 100
    assert report["protocol"]["evaluation"]["knn"] == {
        "k": 20,
        "temperature": 0.07,
        "top5": False,
        "pool": None,
        "blocks": 1,
    }
    assert report["protocol"]["evaluation"]["crop_pct"] == 1
    assert "raw pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fractions", "10"), "--fractions: .*less than or equal to 1, found 10.0"),
        (("--crop-pct", "0"), "--crop-pct: .*greater than 0, found 0.0"),
        (("--seeds", "0"), "--seeds 0"),
    ],
)
def test_wrong_options_are_the_users_error(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate("nowhere", "--data", "nowhere", *options)
