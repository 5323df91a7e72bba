"""The errors that a fine-tuning shows: which they are, their pictures, and the page that is made of them."""

from __future__ import annotations

import csv
import itertools
import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import SHOWN_FINETUNE, launch
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import center_crop
from unlabeled.errors import BadSample
from unlabeled.look.thumbnails import thumbnail
from unlabeled.page.finetuned import parts
from unlabeled.recipe import load
from unlabeled.report.classification import Outcomes
from unlabeled.report.document import Figure, Part, Table, Text
from unlabeled.report.visuals import Chart, Gallery, Matrix
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.transfer import errors
from unlabeled.transfer.errors import OF_EACH, choose
from unlabeled.transfer.looks import Look, write_looks


@pytest.fixture(scope="module")
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("looks")
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(home / "export", encoder, IMAGENET, "# card\n", {})
    recipe = SHOWN_FINETUNE.replace("UNSET", str(home / "export")).replace("val_size: 20", "val_size: 60")
    (home / "finetune.yaml").write_text(recipe, encoding="utf-8")
    settings = [f"run.output={home / 'run'}", "train.epochs=1", "optim.warmup_epochs=0"]
    assert launch("finetune", [str(home / "finetune.yaml"), *settings]) == [0]
    return home / "run"


def outcomes(n: int, classes: int) -> tuple[Outcomes, Tensor]:
    generator = torch.Generator().manual_seed(n)
    logits, labels = torch.randn(n, classes, generator=generator), torch.randint(classes, (n,), generator=generator)
    logits[:, 0] += 1  # one class is predicted more often than others
    return Outcomes.of(logits, labels), torch.randperm(10 * n, generator=generator)[:n]


@pytest.mark.parametrize(("n", "classes"), [(200, 7), (30, 3), (5, 9)])
def test_errors_are_those_of_a_plain_search(n: int, classes: int) -> None:
    found, numbers = outcomes(n, classes)
    everything = [
        (number.item(), *row)
        for number, row in zip(
            numbers,
            zip(found.labels.tolist(), found.predicted.tolist(), found.confidence.tolist(), strict=True),
            strict=True,
        )
    ]
    wrong = sorted((one for one in everything if one[1] != one[2]), key=lambda one: -one[3])
    chosen = choose(found, numbers, worst=20, right=8)
    assert chosen.worst == wrong[:20] and errors.wrong(found, numbers) == wrong

    recall = {c: np.mean([one[1] == one[2] for one in everything if one[1] == c] or [2]) for c in range(classes)}
    order = [c for c in sorted(recall, key=lambda c: (recall[c], c)) if any(one[1] == c for one in wrong)]
    assert [row[0].true for row in chosen.confused] == order[: len(chosen.confused)]
    for row in chosen.confused:
        mine = [one for one in wrong if one[1] == row[0].true]
        counts = np.bincount([one[2] for one in mine])
        mine = [one for one in mine if one[2] == counts.argmax()]
        start = max(0, len(mine) - OF_EACH) // 2
        assert list(row) == mine[start : start + OF_EACH]

    right = sorted((one for one in everything if one[1] == one[2]), key=lambda one: -one[3])
    assert [one for one in right if one in chosen.right] == chosen.right and len(set(chosen.right)) == min(
        8, len(right)
    )
    if right:
        assert (chosen.right[0], chosen.right[-1]) == (right[0], right[-1])


def test_all_right_and_all_wrong() -> None:
    labels = torch.tensor([0, 1, 1])
    right = choose(Outcomes.of(5 * torch.eye(2)[labels], labels), torch.arange(3), 20, 8)
    assert (right.worst, right.confused, len(right.right)) == ([], [], 3)
    wrong = choose(Outcomes.of(5 * torch.eye(2)[1 - labels], labels), torch.arange(3), 20, 8)
    assert len(wrong.worst) == 3 and wrong.right == [] and [len(row) for row in wrong.confused] == [1, 2]


def test_a_run_leaves_its_worst_errors(output: Path) -> None:
    found = json.loads((output / "look" / "errors.json").read_text(encoding="utf-8"))
    recipe = load(FinetuneRecipe, output / "recipe.yaml", [])
    val = Opened(recipe.data).val
    keys = [val.key(i) for i in range(len(val))]
    pictures = [found["pictures"][place] for place in found["worst"]]
    assert pictures and [one["probability"] for one in pictures] == sorted(
        (p["probability"] for p in pictures), reverse=True
    )
    with Image.open(output / "look" / found["sheet"]["file"]) as image:
        sheet = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).float()
    side, columns = found["sheet"]["side"], found["sheet"]["columns"]
    for place, picture in enumerate(found["pictures"]):
        number = keys.index(picture["file"])
        assert val.classes[val.labels[number]] == picture["true"] != picture["predicted"]
        row, column = divmod(place, columns)
        tile = sheet[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        crop = center_crop(val.image(number), (16, 16), 1.0, "bicubic")
        assert (tile - thumbnail(crop, side)).abs().mean() < 6  # JPEG


def test_a_run_leaves_a_table_of_all_errors(output: Path) -> None:
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    with (output / "errors.csv").open(newline="", encoding="utf-8") as opened:
        rows = list(csv.DictReader(opened))
    counts = np.asarray(result["confusion"])
    assert len(rows) == counts.sum() - counts.trace()
    names = list(result["classes"].values())
    for true, predicted in itertools.permutations(range(len(names)), 2):
        mine = [row for row in rows if (row["true"], row["predicted"]) == (names[true], names[predicted])]
        assert len(mine) == counts[true, predicted]
    probabilities = [float(row["probability"]) for row in rows]
    assert probabilities == sorted(probabilities, reverse=True)
    shown = json.loads((output / "look" / "errors.json").read_text(encoding="utf-8"))
    worst = [shown["pictures"][place] for place in shown["worst"]]
    assert [row["picture"] for row in rows[: len(worst)]] == [one["file"] for one in worst]


def visuals(folder: Path) -> dict[str, Part]:
    return {part.title: part for part in parts(folder) if isinstance(part, Chart | Gallery | Matrix)}


def test_the_page_shows_scores_errors_classes_and_maps(output: Path) -> None:
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    found, shown = parts(output), visuals(output)
    assert set(shown) == {"Worst errors", "Typical confusions", "Where the model looks", "Confusion", "Reliability"}
    matrix, chart, where = shown["Confusion"], shown["Reliability"], shown["Where the model looks"]
    assert isinstance(matrix, Matrix) and matrix.counts == result["confusion"]
    assert isinstance(chart, Chart) and [line.name for line in chart.lines] == ["accuracy", "confidence"]
    filled = [i for i, n in enumerate(result["reliability"]["counts"]) if n]
    assert [chart.lines[0].y[i] for i in filled] == [
        round(100 * result["reliability"]["accuracy"][i], 2) for i in filled
    ]
    assert [y is None for y in chart.lines[1].y] == [n == 0 for n in result["reliability"]["counts"]]
    assert isinstance(where, Gallery) and where.sheet.file == "look/where.jpg" and (output / where.sheet.file).is_file()
    assert {len(row.shown) for row in where.rows} <= {2, 3}
    assert max(one.place for row in where.rows for one in row.shown) < where.sheet.images
    table = next(part for part in found if isinstance(part, Table) and part.title.startswith("What each class"))
    assert [float(row[2]) for row in table.rows] == sorted(float(row[2]) for row in table.rows)  # type: ignore[arg-type]
    names, counts = list(result["classes"].values()), np.array(result["confusion"])
    for name, taken, _, _, pictures in table.rows:
        row = counts[names.index(name)].copy()  # type: ignore[arg-type]
        assert int(pictures) == row.sum()  # type: ignore[arg-type]
        row[names.index(name)] = 0  # type: ignore[arg-type]
        for other in filter(None, taken.split(" and ")[0].split(", ")):  # type: ignore[union-attr]
            word, count = other.rsplit(" ", 1)
            assert row[names.index(word)] == int(count)


def test_pages_of_no_run_old_runs_and_damaged_ones(output: Path, tmp_path: Path) -> None:
    assert parts(tmp_path) == []
    shutil.copytree(output, old := tmp_path / "old", ignore=shutil.ignore_patterns("look", "checkpoints"))
    assert set(visuals(old)) == {"Confusion", "Reliability"}
    (old / "look").mkdir()
    for name in ("errors", "where"):
        (old / "look" / f"{name}.json").write_text('{"pictures": 3, "worst": [1]}', encoding="utf-8")
    assert set(visuals(old)) == {"Confusion", "Reliability"}
    said = [part.text for part in parts(old) if isinstance(part, Text)]
    assert [text.split(":")[0] for text in said if "cannot be shown" in text] == [
        "errors.json cannot be shown",
        "where.json cannot be shown",
    ]
    for text in ("[]", '{"classes": {}}', "{", '{"confusion": 3}'):
        (old / "result.json").write_text(text, encoding="utf-8")
        assert "result.json cannot be shown" in parts(old)[1].text  # type: ignore[union-attr]


def test_many_classes_have_their_diagram(output: Path, tmp_path: Path) -> None:
    result = json.loads((output / "result.json").read_text(encoding="utf-8"))
    names = [f"class {i}" for i in range(1200)]
    result |= {"classes": dict(enumerate(names)), "confused": {"7": {"7": 1, "3": 2, "1199": 5}}}
    result |= {"per_class": {"class 7": 12.5}, "precision": {"class 7": 100.0}, "auroc": {}}
    del result["confusion"]
    (tmp_path / "result.json").write_text(json.dumps(result), encoding="utf-8")
    found = parts(tmp_path)
    assert any(isinstance(part, Figure) and part.file == "confusion.png" for part in found)
    table = next(part for part in found if isinstance(part, Table) and part.title.startswith("What each class"))
    assert table.rows == [("class 7", "class 1199 5, class 3 2", "12.5", "100.0", "8")]


class Unreadable:
    """Two pictures, of which one is no longer there."""

    labels, classes = np.array([0, 1]), ("a", "b")

    def image(self, i: int) -> Tensor:
        if i == 1:
            raise BadSample("1.png", "gone")
        return torch.zeros(3, 8, 8, dtype=torch.uint8)

    def key(self, i: int) -> str:
        return f"{i}.png"


def scorer() -> Any:
    accelerator = SimpleNamespace(device=torch.device("cpu"))
    how = SimpleNamespace(shape=(8, 8), crop_pct=1.0, interpolation="bicubic", mean=[0.5] * 3, std=[0.5] * 3)
    how.accelerator = accelerator
    wrong = Outcomes.of(5 * torch.eye(2)[[1, 0]], torch.tensor([0, 1]))
    return SimpleNamespace(
        outcomes=wrong, numbers=torch.arange(2), source=Unreadable(), classes=("a", "b"), predict=how
    )


def test_what_cannot_be_made_is_said(tmp_path: Path) -> None:
    task: Any = SimpleNamespace(network=None, modules=list, eval=lambda: None)
    assert write_looks(tmp_path / "look", scorer(), task, Look()) == ""
    found = json.loads((tmp_path / "look" / "errors.json").read_text(encoding="utf-8"))
    assert [one["file"] for one in found["pictures"]] == ["0.png"] and found["worst"] == [0]
    assert not (tmp_path / "none").exists() and write_looks(tmp_path / "none", scorer(), task, Look(errors=0)) == ""
    assert {file.name for file in (tmp_path / "none").iterdir()} == {"where.json"}
    assert "traced" in json.loads((tmp_path / "look" / "where.json").read_text(encoding="utf-8"))["failed"]
    (tmp_path / "file").write_text("in the way", encoding="utf-8")
    assert "not shown: " in write_looks(tmp_path / "file", scorer(), task, Look())
