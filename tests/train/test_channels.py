"""Tiles of four 16-bit bands all the way: pretrained, evaluated and fine-tuned on the same range of values."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from ruamel.yaml import YAML
from support import TINY_FINETUNE, TINY_PRETRAIN, launch
from torch import Tensor

from unlabeled.commands.evaluate import add_arguments, run
from unlabeled.data.decoding.decode import decode

BANDS, SIDE = 4, 16


@pytest.fixture
def tiles(tmp_path: Path) -> Path:
    """Two classes of uint16 `.npy` tiles, told apart by the fourth band alone."""
    random = np.random.default_rng(0)
    for split, count in (("train", 16), ("val", 6)):
        for label, infrared in (("water", 0), ("wood", 5000)):
            folder = tmp_path / "tiles" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                tile = random.integers(0, 5000, (SIDE, SIDE, BANDS), dtype=np.uint16)
                tile[..., 3] += infrared
                np.save(folder / f"{number}.npy", tile)
    return tmp_path / "tiles"


def recipe(file: Path, text: str, tiles: Path) -> str:
    content = YAML(typ="safe").load(text)
    content["data"] = {"name": "files", "path": str(tiles), "train": "train", "val": "val", "value_range": [0, 10_000]}
    content["data"] |= {"mean": [0.3] * BANDS, "std": [0.2] * BANDS}
    YAML().dump(content, file)
    return str(file)


def test_four_bands_all_the_way(
    tiles: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    file = recipe(tmp_path / "pretrain.yaml", TINY_PRETRAIN, tiles)
    output = tmp_path / "pretrained"
    channels = f"method.encoder.channels={BANDS}"
    evaluate = ["evaluate.pool=mean", "evaluate.crop_pct=1.0"]
    assert launch("pretrain", [file, channels, *evaluate, f"run.output={output}"]) == [0]
    assert (output / "metrics.jsonl").read_text(encoding="utf-8").count("linear") >= 1
    assert list((output / "pictures").glob("*.png"))

    export = output / "export"
    config = json.loads((export / "config.json").read_text(encoding="utf-8"))
    assert config["value_range"] == [0, 10_000]
    assert config["pretrained_cfg"]["input_size"] == [BANDS, SIDE, SIDE]
    assert config["pretrained_cfg"]["mean"] == [0.3] * BANDS
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    options = ["--pool", "mean", "--crop-pct", "1", "--baselines", "--device", "cpu", "--workers", "0"]
    arguments = [str(export), "--data", str(tiles), *options, "--json", str(tmp_path / "scores.json")]
    ranges = set()

    def noted(*given: Any, **how: Any) -> Tensor:
        ranges.add(how["value_range"])
        return decode(*given, **how)

    with monkeypatch.context() as patched:
        patched.setattr("unlabeled.data.archive.pictures.decode", noted)
        assert run(parser.parse_args(arguments)) == 0
    assert ranges == {(0, 10_000)}
    rows = {row["name"]: row for row in json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))["rows"]}
    assert rows["raw pixels 16x16"]["dimensions"] == BANDS * SIDE * SIDE
    assert rows[str(export)]["scores"]["linear"]["mean"] > 90

    file = recipe(tmp_path / "finetune.yaml", TINY_FINETUNE, tiles)
    output = tmp_path / "finetuned"
    tuned = [file, f"encoder={export}", "task.strategy.name=frozen", "task.pool=mean", f"run.output={output}"]
    assert launch("finetune", [*tuned, "data.value_range=null"]) != [0]
    assert "pretrained with a value_range of [0" in capfd.readouterr().err
    assert launch("finetune", tuned) == [0]
    classifier = timm.create_model(f"local-dir:{output / 'export'}", pretrained=True).eval()
    assert classifier(torch.zeros(2, BANDS, SIDE, SIDE)).shape == (2, 2)
    assert json.loads((output / "export" / "config.json").read_text(encoding="utf-8"))["value_range"] == [0, 10_000]
