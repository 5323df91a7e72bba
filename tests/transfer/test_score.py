"""What a fine-tuning leaves behind: numbers that a loop gives too, for people and for programs."""

from __future__ import annotations

import copy
import json
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
from PIL import Image
from support import TINY_FINETUNE, TINY_PRETRAIN, classifying, launch

from unlabeled.backbone.weights import load_encoder, weights_digest
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.data.view.views import View, center_crop
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Features
from unlabeled.recipe import load, parse
from unlabeled.report import markdown
from unlabeled.report.page import page
from unlabeled.stages.finetune import STAGE, FinetuneRecipe, predicting
from unlabeled.transfer import predict as module
from unlabeled.transfer.result import Scorer

FILES = ("result.json", "result.md", "confusion.png", "reliability.png")


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("score")
    (home / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (home / "finetune.yaml").write_text(
        TINY_FINETUNE.replace("UNSET", str(home / "pretrain" / "export")), encoding="utf-8"
    )
    for stage in ("pretrain", "finetune"):
        assert launch(stage, [str(home / f"{stage}.yaml"), f"run.output={home / stage}"], diagrams=True) == [0]
    return home / "finetune"


@pytest.fixture(scope="module")
def result(output: Path) -> dict[str, Any]:
    return json.loads((output / "result.json").read_text(encoding="utf-8"))


def test_timm_alone_finds_the_same_confusions(output: Path, result: dict[str, Any]) -> None:
    recipe = load(FinetuneRecipe, output / "recipe.yaml", [])
    val, model = Opened(recipe.data).val, timm.create_model(f"local-dir:{output}/export", pretrained=True).eval()
    normalize = Normalize(recipe.data.mean, recipe.data.std, torch.device("cpu"))
    counts = np.zeros((len(val.classes),) * 2, int)
    for i in range(len(val)):
        with torch.no_grad():
            logits = model(normalize(center_crop(val.image(i), (16, 16), 1.0, "bicubic"))[None])
        counts[val.labels[i], logits.argmax()] += 1
    assert result["confusion"] == counts.tolist()
    assert result["accuracy"] == pytest.approx(100 * counts.trace() / len(val))
    recalls = [100 * row[i] / row.sum() for i, row in enumerate(counts) if row.sum()]
    assert result["balanced_accuracy"] == result["mean_class_accuracy"] == pytest.approx(np.mean(recalls))
    assert list(result["per_class"].values()) == pytest.approx(recalls, abs=1e-3)
    config = json.loads((output / "export" / "config.json").read_text(encoding="utf-8"))
    assert config["pretrained_cfg"]["crop_pct"] == 1.0 and config["label_names"] == list(val.classes)
    assert "natural order of their names" in (output / "export" / "README.md").read_text(encoding="utf-8")


def test_protocol_seeds_and_cost(output: Path, result: dict[str, Any]) -> None:
    recipe = load(FinetuneRecipe, output / "recipe.yaml", [])
    protocol, cost = result["protocol"], result["cost"]
    assert (protocol["name"], protocol["version"]) == ("finetune", "1")
    train, val = STAGE.job(recipe, Opened(recipe.data)).dataset.source, Opened(recipe.data).val
    encoder = weights_digest(load_encoder(recipe.encoder).state_dict())
    assert protocol["fingerprints"] == {"encoder": encoder, "train": train.fingerprint(), "val": val.fingerprint()}
    assert result["seeds"] == {"run": 0, "labels": 0}
    assert cost["steps"] == result["steps"] == 15 and cost["from_step"] == 0
    assert cost["cpu_s"] > 0 and cost["wall_s"] > 0 and cost["images_per_s"] > 0
    assert result["interval"][0] <= result["accuracy"] <= result["interval"][1]
    groups = result["groups"]
    assert set(groups) == {"few"} and groups["few"]["classes"] == len(result["per_class"])


def test_beside_it_a_page_and_two_diagrams(output: Path, result: dict[str, Any]) -> None:
    text = (output / "result.md").read_text(encoding="utf-8")
    assert f"accuracy {result['accuracy']:.2f} %" in text and "finetune 1" in text
    worst = min(result["per_class"], key=result["per_class"].get)
    table = text.split("## Hardest classes")[1].splitlines()
    assert float(table[4].split("|")[2]) == pytest.approx(result["per_class"][worst], abs=0.01)
    assert text.count("| balanced") >= 1 and "counts the same" in text
    assert f"the most frequent class for every picture, % | {result['majority']:.2f}" in " ".join(text.split())
    for name in ("confusion.png", "reliability.png"):
        with Image.open(output / name) as image:
            assert min(image.size) > 300


def test_a_run_does_not_go_on_from_other_weights(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    home = output.parent
    (home / "weights").mkdir()
    for file in (home / "pretrain" / "export").iterdir():
        (home / "weights" / file.name).write_bytes(file.read_bytes())
    command = [str(home / "finetune.yaml"), f"encoder={home}/weights", f"run.output={home}/twice", "train.epochs=1"]
    assert launch("finetune", command) == [0]
    weights = safetensors.torch.load_file(home / "weights" / "model.safetensors")
    weights["cls_token"] += 1
    (home / "weights" / "MANIFEST.json").unlink()
    safetensors.torch.save_file(weights, home / "weights" / "model.safetensors")
    assert launch("finetune", command) == [2]
    assert "holds a run that began with other weights than encoder=" in capfd.readouterr().err


def test_the_page_says_which_labels_and_which_weights(output: Path, result: dict[str, Any]) -> None:
    text = markdown.write(page(result))
    assert "| 42 |" in re.sub(" +", " ", text) and "best weights" not in text
    few = copy.deepcopy(result)
    few["protocol"]["task"] |= {"shots": 4, "long_tail": 10.0, "balance": "sqrt", "balance_from": 2.0}
    few["protocol"]["task"] |= {"logit_adjustment": 1.0}
    few["protocol"] |= {"watch": {"hold_out": 0.2}, "weights_of_step": 3}
    text = markdown.write(page(few))
    assert "42 (a long tail of 10 : 1, 4 a class, 20 % of them held out)" in text
    assert "15, best weights of step 3" in text
    assert "drawn by the root of their count from epoch 2; logits adjusted by 1 x log frequency" in text


@pytest.mark.parametrize(
    ("every", "says"),
    [
        (0.5, "4 layers from the top, one every 0.5 epochs"),
        (
            1.0,
            "4 layers from the top, one every 1 epochs: 1 never learn in 3 epochs. task.strategy.unfreeze_every below "
            "1 unfreezes",
        ),
    ],
)
def test_the_plan_says_which_layers_are_never_unfrozen(output: Path, every: float, says: str) -> None:
    changes = ["task.strategy.name=gradual", f"task.strategy.unfreeze_every={every}"]
    recipe = load(FinetuneRecipe, output / "recipe.yaml", changes)
    found = recipe.task.unfreezing(STAGE.job(recipe, Opened(recipe.data)).build(), 3)
    assert found.startswith(says) and ("never" in found) == ("never" in says)


def test_the_plan_says_how_many_are_left_out() -> None:
    from unlabeled.stages.finetune import _count

    whole = Opened(Shapes(train_size=1200)).train
    assert _count(whole) == _count(Part(whole, np.arange(1200))) == "1,200"
    assert _count(Part(whole, np.arange(0, 1200, 3))) == "400 of 1,200"


def test_a_new_start_removes_them(output: Path) -> None:
    from unlabeled.launch.stage import OWN

    assert set(FILES) <= set(OWN) and all((output / name).is_file() for name in FILES)


def test_classes_without_training_pictures_are_named() -> None:
    val = SimpleNamespace(labels=np.array([0, 2, 2, -1]), classes=("cat", "dog", "eel", "fox"))
    with pytest.raises(UserError, match="has pictures of 'eel', of which"):
        Scorer(None, val, np.array([0, 1, 1]))  # type: ignore[arg-type]
    Scorer(None, val, np.array([0, 1, 2, -1]))  # type: ignore[arg-type]


def test_pictures_are_prepared_as_the_task_says_and_the_method_is_in_evaluation(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    how: dict[str, Any] = {}
    method: Any = torch.nn.Dropout()

    def noted(encode: Any, source: Any, **asked: Any) -> None:
        how.update(asked, training=method.training)

    monkeypatch.setattr(module, "extract", noted)
    accelerator: Any = SimpleNamespace(device=torch.device("cpu"), process_index=1, num_processes=2)
    view = View(size=(8, 12), interpolation="bilinear")
    for asked, used in ((None, "bilinear"), ("bicubic", "bicubic")):
        text = "name: it\nencoder: nowhere\ndata: {name: shapes}\nrun: {workers: 0}"
        recipe = parse(FinetuneRecipe, text).model_copy(
            update={"task": classifying(view=view, interpolation=asked, crop_pct=0.9)}
        )
        predicting(recipe, accelerator)(method, method, cast("Any", None))
        assert (how["shape"], how["crop_pct"], how["interpolation"]) == ((8, 12), 0.9, used)
        assert (how["rank"], how["world"], how["training"]) == (1, 2, False) and method.training


def test_groups_go_by_pictures_that_were_learnt_from() -> None:
    val: Any = SimpleNamespace(labels=np.array([0, 0, 1, 1]), classes=("cat", "dog"))
    seen = Features(torch.eye(2)[[0, 0, 0, 1]], torch.from_numpy(val.labels))
    method: Any = SimpleNamespace(predict=None)
    found = Scorer(lambda *_: seen, val, np.repeat([0, 1], [101, 5]))(method)  # type: ignore[arg-type]
    assert found["groups"] == {"many": {"classes": 1, "accuracy": 100.0}, "few": {"classes": 1, "accuracy": 50.0}}


def test_a_head_is_chosen_before_it_is_scored() -> None:
    class Second:
        def __call__(self, method: Any) -> None:
            method.chosen = 1

        def summary(self, method: Any) -> dict[str, int]:
            return {"chosen": method.chosen}

    val: Any = SimpleNamespace(labels=np.array([1, 1]), classes=("cat", "dog"))
    method: Any = SimpleNamespace(chosen=0, predict=None)
    labels = torch.from_numpy(val.labels)
    predict: Any = lambda *_: Features(torch.eye(2)[[method.chosen] * 2], labels)  # noqa: E731
    found = Scorer(predict, val, np.array([0, 1]), Second())(method)  # type: ignore[arg-type]
    assert (found["accuracy"], found["sweep"]) == (100, {"chosen": 1})
