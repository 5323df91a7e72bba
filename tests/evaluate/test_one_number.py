"""One encoder has one kNN, whoever asks: the run that trained it, `evaluate`, `ladder`, and the features of `embed`."""

from __future__ import annotations

import csv
import io
import json
import re
import shlex
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from support import TINY_PRETRAIN, launch, metrics

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.importing import importers
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, hits_of
from unlabeled.evaluate.protocols.knn import knn_predict
from unlabeled.pretrain.methods import dino, distill, ibot, mae, mocov3, simclr, simmim

COUNTS = {"train": 40, "val": 20}
CHANGES = (
    "evaluate={crop_pct: 0.7, interpolation: bilinear, linear: null, knn: {k: 5}}",
    "data.mean=[0.3, 0.4, 0.5]",
    "data.std=[0.2, 0.3, 0.4]",
    "train.epochs=2",
)


def draw(folder: Path) -> None:
    """Noise of two classes, one a little brighter: features tell them apart now and then."""
    random = np.random.default_rng(0)
    for split, count in COUNTS.items():
        for label, low in (("dark", 0), ("light", 2)):
            (folder / split / label).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(low, low + 120, (24, 28, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / label / f"{i}.png")


def list_in_table(folder: Path) -> Path:
    with (folder / "pictures.csv").open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(["path", "label", "split"])
        for path in sorted(folder.glob("*/*/*.png")):
            rows.writerow([path.relative_to(folder), path.parent.name, path.parent.parent.name])
    return folder / "pictures.csv"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures in folders, a table of them, MAE pretrained on that: `table/export`; what it printed: `table.txt`."""
    home = tmp_path_factory.mktemp("one_number")
    draw(home / "pictures")
    (home / "recipe.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    table = list_in_table(home / "pictures")
    data = f"data={{name: table, path: {table}, label: label, split: split, val: val}}"
    with redirect_stderr(io.StringIO()) as said:
        assert launch("pretrain", [str(home / "recipe.yaml"), data, *CHANGES, f"run.output={home / 'table'}"]) == [0]
    (home / "table.txt").write_text(said.getvalue(), encoding="utf-8")
    return home


def trained(run: Path) -> float:
    """The kNN that pretraining ended with."""
    return [line for line in metrics(run) if "knn" in line][-1]["knn"]


def evaluated(*arguments: str, file: Path) -> float:
    options = ["--protocol", "knn", "--set", "knn.k=5", "--no-baselines", "--json", str(file)]
    assert main(["evaluate", *arguments, *options]) == 0
    scores: Any = json.loads(file.read_text(encoding="utf-8"))["rows"][0]["scores"]
    return scores["knn"]["mean"]


def climbed(*arguments: str, out: Path) -> float:
    options = ["--rungs", "knn", "--fractions", "1", "--set", "knn.k=5", "--no-baselines", "--out", str(out)]
    assert main(["ladder", *arguments, *options]) == 0
    [step] = [s for s in json.loads((out / "ladder.json").read_text(encoding="utf-8"))["steps"] if s["rung"] == "knn"]
    return step["mean"]


def test_pretraining_evaluate_ladder_and_embed_agree(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, pictures = str(home / "table" / "export"), str(home / "pictures")
    expected = trained(home / "table")
    assert evaluated(export, "--data", pictures, file=tmp_path / "a.json") == expected
    said = "size 16, crop 0.7, bilinear, mean pooling, mean 0.3/0.4/0.5, std 0.2/0.3/0.4: from the export"
    assert said in capsys.readouterr().err
    assert climbed(export, pictures, out=tmp_path / "ladder") == expected
    assert said in capsys.readouterr().err
    features = []
    for split in COUNTS:
        out = tmp_path / split
        assert main(["embed", export, pictures, str(out), "--prefix", split, "--device", "cpu", "--workers", "0"]) == 0
        assert said in capsys.readouterr().err
        found = safetensors.torch.load_file(out / "features-00000.safetensors")
        features.append(Features(found["features"], found["label"]))
    votes = knn_predict(features[0], features[1].x, k=5, temperature=0.07, num_classes=2)
    assert accuracy(hits_of(votes, features[1].y)) == expected


@pytest.mark.parametrize("given", ["run", "recipe", "table"])
def test_a_run_a_recipe_and_a_table_are_data_everywhere(home: Path, tmp_path: Path, given: str) -> None:
    """After a run on a table, its folder, its recipe and the table itself lead to the run's own number."""
    run, export = home / "table", str(home / "table" / "export")
    data = {"run": run, "recipe": run / "recipe.yaml", "table": home / "pictures" / "pictures.csv"}[given]
    expected = trained(run)
    assert evaluated(export, "--data", str(data), file=tmp_path / "a.json") == expected
    assert climbed(export, str(data), out=tmp_path / "ladder") == expected
    assert main(["embed", export, str(data), str(tmp_path / "e"), "--device", "cpu", "--workers", "0"]) == 0
    manifest = json.loads((tmp_path / "e" / "manifest.json").read_text(encoding="utf-8"))
    # a table alone does not say which column tells splits apart
    assert manifest["written"] == 2 * (COUNTS["train"] + (COUNTS["val"] if given == "table" else 0))


def test_the_next_step_works_as_printed(home: Path, tmp_path: Path) -> None:
    said = (home / "table.txt").read_text(encoding="utf-8")
    [printed] = re.findall(r"^next: unlabeled (ladder .*?)   \(", said, re.M)
    options = ["--rungs", "knn", "--fractions", "1", "--no-baselines", "--out", str(tmp_path / "ladder")]
    assert main([*shlex.split(printed), *options]) == 0


def test_a_table_with_other_columns(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = (home / "pictures" / "pictures.csv").read_text(encoding="utf-8")
    table, export = tmp_path / "other.csv", str(home / "table" / "export")
    table.write_text(text.replace("path,label,split", "file,species,fold").replace(",val", ",test"), encoding="utf-8")
    asked = [export, "--data", str(table), "--val", "test", "--protocol", "knn", "--set", "knn.k=5"]
    assert main(["evaluate", *asked]) == 2
    assert "species" in capsys.readouterr().err
    columns = ["data.image=file", "data.label=species", "data.split=fold", f"data.root={home / 'pictures'}"]
    assert main(["evaluate", *asked, *columns, "--json", str(tmp_path / "a.json")]) == 0
    scores = json.loads((tmp_path / "a.json").read_text(encoding="utf-8"))["rows"][0]["scores"]
    assert scores["knn"]["mean"] == trained(home / "table")


def test_a_recipe_says_the_encoders_normalisation_or_none(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    export, recipe = str(home / "table" / "export"), tmp_path / "recipe.yaml"
    data = f"data: {{name: files, path: {home}/pictures, train: train, val: val, MEAN}}"
    text = f"name: it\nencoder: nowhere\n{data}\ntask: {{view: {{size: 16}}}}\n"
    recipe.write_text(text.replace(", MEAN", ""), encoding="utf-8")
    assert evaluated(export, "--data", str(recipe), file=tmp_path / "a.json") == trained(home / "table")
    recipe.write_text(text.replace("MEAN", "mean: [0.5, 0.5, 0.5]"), encoding="utf-8")
    for command in (["evaluate", export, "--data", str(recipe)], ["ladder", export, str(recipe)]):
        assert main(command) == 2
        assert "trained with mean [0.3, 0.4, 0.5]" in capsys.readouterr().err


def test_without_a_split_to_test_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = home / "table"
    arguments = [str(run / "export"), "--data", str(run / "recipe.yaml"), "--set", "data.val=null"]
    for protocol in ("knn", "labelfree"):
        assert main(["evaluate", *arguments, "--protocol", protocol]) == 2
        assert "data.val is null" in capsys.readouterr().err


def test_the_plan_looks_for_the_split_that_nothing_evaluates(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = f"data={{name: files, path: {home}/pictures, train: train, val: vel}}"
    assert launch("pretrain", [str(home / "recipe.yaml"), data, "--dry-run"]) == [2]
    assert "no pictures" in (said := capsys.readouterr().err) and "'vel'" in said and "'val'" in said


def test_what_is_told_otherwise_is_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export, pictures = str(home / "table" / "export"), str(home / "pictures")
    told = ["--pool", "cls", "--crop-pct", "1", "--image-size", "24"]
    evaluated(export, "--data", pictures, *told, file=tmp_path / "a.json")
    said = capsys.readouterr().err
    assert "bilinear, mean 0.3/0.4/0.5, std 0.2/0.3/0.4: from the export; size 24, crop 1, cls pooling: as told" in said


@pytest.mark.parametrize(
    ("module", "pool"),
    [(mae, "mean"), (simmim, "mean"), (simclr, "cls"), (mocov3, "cls"), (dino, "cls"), (ibot, "cls"), (distill, "cls")],
)
def test_every_method_says_how_its_encoder_is_evaluated(module: Any, pool: str) -> None:
    with torch.device("meta"):
        method = module.Config().build()
    assert method.pooling() == pool


def test_weights_of_others_are_pooled_by_a_rule() -> None:
    """As the official code evaluates them; timm's as timm does, but MAE's by the mean."""
    assert {name: module.FAMILY.pool for name, module in importers().items()} == {
        **dict.fromkeys(("mae", "crossmae", "ijepa", "simmim", "spark"), "mean"),
        **dict.fromkeys(("mocov3", "dino", "ibot", "dinov2", "dinov3", "msn"), "cls"),
        **dict.fromkeys(("barlowtwins", "simsiam", "swav", "vicreg"), "cls"),
    }
    names = {"vit_base_patch16_224.mae": "mean", "vit_small_patch16_224.dino": "cls", "resnet50": "mean"}
    assert {name: preprocessing_of(f"timm:{name}").pool for name in names} == names


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "beit_base_patch16_224"])
@pytest.mark.parametrize("pool", ["cls", "mean", "mean_max", "cls_mean"])
def test_timm_alone_pools_an_export_as_we_do(model: str, pool: Any, tmp_path: Path) -> None:
    torch.manual_seed(0)
    positions: Any = {"positions": "relative"} if model.startswith("beit") else {}
    config = EncoderConfig(model=model, patch_size=4, width=16, depth=2, heads=2, **positions)
    export_encoder(tmp_path, config.build((16, 16)), IMAGENET._replace(pool=pool), "card", {})
    assert preprocessing_of(tmp_path).pool == pool and preprocessing_of(tmp_path).size == (16, 16)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        tokens = load_encoder(tmp_path).eval()(images)
        alone = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()(images)
    cls, mean = tokens.pool("cls"), tokens.pool("mean")
    both = cls if model.startswith("beit") else (mean + tokens.patches.amax(1)) / 2
    # timm has no pooling of both kinds of tokens, its first token stands in
    expected = {"cls": cls, "mean": mean, "mean_max": both, "cls_mean": cls}[pool]
    torch.testing.assert_close(alone, expected, rtol=0, atol=1e-6)
