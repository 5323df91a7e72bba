"""What is wrong with a folder is found and named, and nothing else; what is well stays silent."""

from __future__ import annotations

import json
import os
import re
import signal
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY_FINETUNE, TINY_PRETRAIN, launch

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.doctor import duplicates, pictures
from unlabeled.doctor.kept import Kept, Part
from unlabeled.doctor.speed import Speed
from unlabeled.train.engine import Engine
from unlabeled.work import doctor as command

SHAPES = "{name: shapes, train_size: 42, val_size: 20, size: 16}"
FAST_LOADER = Speed(loader=1000, model=100, together=95, encode=300, batch=8, peak=10**9)


@pytest.fixture
def speed(monkeypatch: pytest.MonkeyPatch) -> Speed:
    """Measured: the same on every machine."""
    monkeypatch.setattr(command, "measure", lambda *_: FAST_LOADER)
    return FAST_LOADER


def report(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """The exit code and what `--json` says, all of standard output."""
    code = main(["doctor", "--json", *map(str, arguments)])
    return {"code": code, **json.loads(capsys.readouterr().out)}


def codes(found: dict[str, Any]) -> list[str]:
    return [finding["code"] for finding in found["findings"]]


def picture(number: int, width: int = 32, height: int = 32) -> Image.Image:
    """Smooth, and unlike any other number's."""
    random = np.random.default_rng(number)
    noise = Image.fromarray(random.integers(0, 256, (8, 8, 3), dtype=np.uint8))
    return noise.resize((width, height), Image.Resampling.BICUBIC)


def healthy(root: Path) -> Path:
    """Two classes of eight pictures, and of two in val."""
    for split, count, first in (("train", 8, 0), ("val", 2, 100)):
        for label in ("a", "b"):
            (root / split / label).mkdir(parents=True)
            for i in range(count):
                picture(first + i + 20 * (label == "b")).save(root / split / label / f"{i}.png")
    return root


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """To pretrain on a folder `pictures` beside it."""
    text = TINY_PRETRAIN.replace(SHAPES, f"{{name: files, path: {tmp_path / 'pictures'}, train: train, val: val}}")
    file = tmp_path / "recipe.yaml"
    file.write_text(text.replace("size: 16, mask", "size: 32, mask") + "evaluate: {pool: mean}\n", encoding="utf-8")
    healthy(tmp_path / "pictures")
    return file


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize("workers", [0, 1])
def test_a_healthy_folder_stays_silent(recipe: Path, workers: int, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, recipe, f"run.workers={workers}", "data.mean=[0.5,0.5,0.5]")
    assert (found["code"], found["verdict"], found["findings"]) == (0, "ready", [])
    assert found["splits"]["train"]["looked_at"] == 16 and found["splits"]["val"]["looked_at"] == 4


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize(("options", "train", "val"), [(["--pictures", 7], 7, 4), (["--pictures", 7, "--full"], 16, 4)])
def test_how_many_are_looked_at(
    options: list[object], train: int, val: int, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    splits = report(capsys, recipe, *options)["splits"]
    assert (splits["train"]["looked_at"], splits["val"]["looked_at"]) == (train, val)
    assert splits["train"]["classes"]["largest"]["pictures"] == 8


@pytest.mark.usefixtures("speed")
def test_shapes_stay_silent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    found = report(capsys, tmp_path / "tiny.yaml", "data.train_size=300", "data.size=32", "--full")
    assert (found["code"], found["verdict"], found["findings"]) == (0, "ready", [])


def add_constant(train: Path) -> None:
    Image.new("RGB", (32, 32), (10, 200, 30)).save(train / "a" / "wrong.png")


def add_almost_constant(train: Path) -> None:
    pixels = np.random.default_rng(0).integers(100, 103, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(train / "a" / "wrong.png")


def add_tiny(train: Path) -> None:
    picture(50, 12, 12).save(train / "a" / "wrong.png")


def add_elongated(train: Path) -> None:
    picture(51, 200, 32).save(train / "a" / "wrong.png")


def add_wrong_ending(train: Path) -> None:
    picture(52).save(train / "a" / "wrong.png", "JPEG")


def add_copy(train: Path) -> None:
    Image.open(train / "b" / "3.png").save(train / "b" / "wrong.bmp")


def add_copy_of_another_class(train: Path) -> None:
    Image.open(train / "b" / "3.png").save(train / "a" / "wrong.bmp")


def add_near_copy(train: Path) -> None:
    Image.open(train / "b" / "3.png").resize((48, 48)).save(train / "b" / "wrong.jpg", quality=90)


def add_leak(train: Path) -> None:
    Image.open(train / "b" / "3.png").save(train.parent / "val" / "b" / "wrong.tif")


def add_near_leak(train: Path) -> None:
    Image.open(train / "b" / "3.png").resize((48, 48)).save(train.parent / "val" / "b" / "wrong.jpg", quality=90)


def add_truncated(train: Path) -> None:
    picture(53).save(train / "a" / "wrong.jpg")
    (train / "a" / "wrong.jpg").write_bytes((train / "a" / "wrong.jpg").read_bytes()[:500])


def add_many_of_a_class(train: Path) -> None:
    for i in range(75):
        picture(200 + i).save(train / "a" / f"wrong{i}.png")


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize(
    ("harm", "expected", "severity"),
    [
        (add_constant, ["constant"], "warning"),
        (add_almost_constant, ["constant"], "warning"),
        (add_tiny, ["tiny"], "warning"),
        (add_elongated, ["elongated"], "warning"),
        (add_wrong_ending, ["wrong_ending"], "note"),
        (add_copy, ["exact_duplicates"], "warning"),
        (add_copy_of_another_class, ["exact_duplicates", "conflicting_labels"], "warning"),
        (add_near_copy, ["near_duplicates"], "warning"),
        (add_leak, ["leak_exact"], "high"),
        (add_near_leak, ["leak_near"], "high"),
        (add_truncated, ["unreadable"], "warning"),
        (add_many_of_a_class, ["uneven_classes"], "note"),
    ],
)
def test_each_fault_is_found_named_and_nothing_else(
    harm: Any, expected: list[str], severity: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    harm(recipe.parent / "pictures" / "train")
    found = report(capsys, recipe, "data.max_bad_fraction=0.5", "data.mean=[0.5,0.5,0.5]")
    assert (codes(found), found["code"]) == (expected, 0)
    finding = found["findings"][0]
    assert finding["severity"] == severity
    assert found["verdict"].startswith("ready") and (severity == "note") == (found["verdict"] == "ready")
    assert finding["advice"]
    if "leak" in expected[0] or "duplicates" in expected[0]:
        assert "/b/3.png" in finding["text"]
    assert ("class" if harm is add_many_of_a_class else "/wrong.") in finding["text"]


@pytest.mark.usefixtures("speed")
def test_all_faults_at_once(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for harm in (add_truncated, add_near_leak, add_many_of_a_class):
        harm(recipe.parent / "pictures" / "train")
    found = report(capsys, recipe, "data.max_bad_fraction=0.001", "data.mean=[0.5,0.5,0.5]")
    # the worst first
    assert codes(found) == ["unreadable", "leak_near", "uneven_classes"]
    assert (found["code"], found["verdict"]) == (2, "not ready: 1 thing to mend first")
    assert found["copies"]["overlap"]["near"] == {
        "count": 1,
        "examples": [[str(recipe.parent / "pictures" / part) for part in ("train/b/3.png", "val/b/wrong.jpg")]],
    }


@pytest.mark.usefixtures("speed")
def test_normalisation_far_off_can_be_pasted(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, recipe, "data.mean=[0.5,0.5,0.1]")
    assert codes(found) == ["normalisation"]
    words = found["findings"][0]["advice"].removeprefix("set ").split()
    again = report(capsys, recipe, *words)
    assert again["findings"] == [] and words[0] == "data.mean=" + str(found["splits"]["train"]["mean"]).replace(" ", "")
    for std in ("[0.5,0.2,0.2]", "[0.2,0.2,0.1]"):
        assert codes(report(capsys, recipe, f"data.std={std}", "data.mean=[0.5,0.5,0.5]")) == ["normalisation"]


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize(
    ("override", "expected", "said"),
    [
        ("train.batch_size=17", "refused", "a batch of 17 is larger than the data: found 16 pictures"),
        ("run.accumulate=3", "refused", "does not divide"),
        ("init=nowhere", "refused", "nowhere is not an export"),
        ("data.val=null", "refused", "data.val is null"),
    ],
)
def test_what_would_not_start(
    override: str, expected: str, said: str, recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = report(capsys, recipe, override, "data.mean=[0.5,0.5,0.5]")
    assert (found["code"], codes(found)) == (2, [expected])
    # the pictures are looked at all the same
    assert said in found["findings"][0]["text"] and found["splits"]["train"]["looked_at"] == 16
    assert found["verdict"].startswith("not ready")


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize(("override", "expected"), [("seed=0", ["refused"]), ("evaluate=null", [])])
def test_evaluation_without_labels(
    override: str, expected: list[str], recipe: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = recipe.parent / "pictures" / "train"
    for file in sorted(train.glob("*/*")):
        file.rename(train / f"{file.parent.name}_{file.name}")
    found = report(capsys, recipe, override, "data.mean=[0.5,0.5,0.5]")
    assert codes(found) == expected and all("no picture of train has one" in f["text"] for f in found["findings"])


@pytest.mark.usefixtures("speed")
def test_enlarged_pictures(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = report(capsys, recipe, "method.view.size=36", "data.mean=[0.5,0.5,0.5]")
    assert codes(found) == ["enlarged"] and "100 %" in found["findings"][0]["text"]


@pytest.mark.parametrize(
    ("measured", "overrides", "advice"),
    [
        ((50, 100, 45), ["run.workers=1"], "run.workers=2"),
        ((50, 100, 45), ["run.workers=2"], "more cores"),
        ((50, 100, 45), ["run.workers=2", "method.view.size=8"], "prepare RECIPE data.cache=FOLDER"),
        ((300, 100, 75), ["run.workers=0"], "run.workers=1"),
    ],
)
def test_who_waits_and_what_to_do(
    measured: tuple[float, ...],
    overrides: list[str],
    advice: str,
    recipe: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(command, "measure", lambda *_: Speed(*measured, None, 8, 10**8))  # type: ignore[arg-type]
    monkeypatch.setattr("unlabeled.doctor.facts.cores", lambda: 3)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    found = report(capsys, recipe, *overrides, "data.mean=[0.5,0.5,0.5]", "train.epochs=100")
    assert codes(found) == ["loader_bound"] and advice in found["findings"][0]["advice"]
    assert found["speed"]["waiting"] == 1 - measured[2] / 100
    gpu, each = found["speed"]["gpu"], 50 if "run.workers=1" in overrides else measured[0] / 2
    if "run.workers=0" not in overrides:
        assert gpu["cores"] == pytest.approx(gpu["images_per_s"] / each, abs=1) and not gpu["here"]
    # 200 steps of 8 pictures
    assert found["speed"]["time"]["training_s"] == pytest.approx(1600 / measured[2], abs=0.1)


def test_a_step_that_does_not_fit(
    recipe: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def too_much(*_: object) -> None:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(command, "measure", too_much)
    found = report(capsys, recipe, "data.mean=[0.5,0.5,0.5]")
    assert (found["code"], codes(found)) == (2, ["out_of_memory"])


@pytest.mark.parametrize("workers", [0, 1])
def test_measures_for_real_and_leaves_nothing(
    recipe: Path, workers: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(recipe.parent)
    rehearse, steps = Engine.rehearse, set()

    def noted(engine: Engine, pending: Any) -> None:
        steps.add(tuple(len(raw.labels) for raw in pending))
        rehearse(engine, pending)

    monkeypatch.setattr(Engine, "rehearse", noted)
    options = ("--seconds", 0.01, "--html", recipe.parent / "page" / "doctor.html")
    found = report(capsys, recipe, f"run.workers={workers}", "run.accumulate=2", *options)
    documented = {"recipe", "stage", "verdict", "findings", "refused", "out_of_memory", "splits", "copies", "speed"}
    documented |= {"as_one", "time_limit", "cautions"}
    assert found.keys() - {"code"} == documented | {"versions"}
    speed = found["speed"]
    assert all(rate > 0 for rate in speed["images_per_s"].values())
    assert steps == {(4, 4)}
    assert speed["batch"] == {"measured": 4, "run": 4} and speed["memory"]["peak"] > 10**7
    # three epochs of two steps, and one evaluation at the end
    assert (speed["time"]["steps"], speed["time"]["evaluations"]) == (6, 1)
    page = (recipe.parent / "page" / "doctor.html").read_text(encoding="utf-8")
    assert f"verdict: {found['verdict']}" in page and '"names":["loader","model","together"' in page
    assert sorted(path.name for path in recipe.parent.iterdir()) == ["page", "pictures", "recipe.yaml"]


@pytest.mark.usefixtures("speed")
def test_a_run_that_takes_too_long_is_not_ready(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = recipe.parent / "recipes" / "own"
    recipes.mkdir(parents=True)
    file = recipe.rename(recipes / "long.yaml")
    smaller = (
        file.read_text(encoding="utf-8").replace("size: 32, mask", "size: 16, mask").replace("epochs: 3", "epochs: 2")
    )
    (recipes.parent / "short.yaml").write_text(smaller, encoding="utf-8")
    (recipes.parent / "other.yaml").write_text("name: other\ndata: {name: shapes}\n", encoding="utf-8")
    monkeypatch.chdir(recipe.parent)
    command = [file, "run.workers=1", "data.mean=[0.5,0.5,0.5]", "train.epochs=3"]
    usual = report(capsys, *command)
    times = usual["speed"]["time"]
    assert (usual["verdict"], usual["time_limit"]) == ("ready", {"hours": 72, "fits": []})

    # 2.5 of its 3 epochs
    limit = (2.5 / 3 * times["training_s"] + times["evaluation_s"]) / 3600
    late = report(capsys, *command, "--hours", limit)
    assert (late["code"], codes(late)) == (2, ["too_long"]) and "ready" not in late["verdict"]
    epochs, crops, other = late["time_limit"]["fits"]
    assert epochs.startswith("train.epochs=2 (") and other.startswith("recipes/short.yaml: crops of 16 px, 2 epochs (")
    assert crops.startswith("method.view.size=24 (about ")
    assert epochs in late["findings"][0]["advice"]
    assert report(capsys, *command, epochs.split()[0], "--hours", limit)["verdict"] == "ready"


@pytest.mark.usefixtures("speed")
def test_training_and_test_pictures_read_as_one(recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    same = ["data.mean=[0.5,0.5,0.5]", "run.workers=1", "evaluate=null", "data.val=null"]
    found = report(capsys, recipe, *same, "data.train=''")
    assert codes(found) == ["as_one"] and found["as_one"] == ["train", "val"]
    assert "data.train=train" in found["findings"][0]["advice"]
    assert report(capsys, recipe, *same)["findings"] == []


@pytest.mark.usefixtures("speed")
def test_torch_does_not_repeat_what_a_finding_says(
    recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0})
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        main(["doctor", str(recipe), "run.workers=2"])
    assert not [str(one.message) for one in said if "DataLoader" in str(one.message)]
    assert "run.workers=2, but this machine has" in capsys.readouterr().out


@pytest.mark.usefixtures("speed")
def test_finetuning(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2).build((32, 32))
    export_encoder(tmp_path / "export", encoder, Preprocessing((0.1,) * 3, (0.1,) * 3), "card", {})
    pictures = f"{{name: files, path: {tmp_path / 'pictures'}, train: train, val: val}}"
    text = TINY_FINETUNE.replace("UNSET", str(tmp_path / "export")).replace(SHAPES, pictures)
    (tmp_path / "finetune.yaml").write_text(text.replace("view: {size: 16}", "view: {size: 32}"), encoding="utf-8")
    add_many_of_a_class(tmp_path / "pictures" / "train")
    same = ["data.mean=[0.1,0.1,0.1]", "data.std=[0.1,0.1,0.1]"]
    found = report(capsys, tmp_path / "finetune.yaml", *same)
    # normalisation is the encoder's, and classes matter
    assert [(f["code"], f["severity"]) for f in found["findings"]] == [("uneven_classes", "warning")]
    assert (found["stage"], found["code"]) == ("finetune", 0)
    assert codes(report(capsys, tmp_path / "finetune.yaml")) == ["uneven_classes"]
    assert "mean" in report(capsys, tmp_path / "finetune.yaml", "data.mean=[0.3,0.3,0.3]")["findings"][0]["text"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: x\ndata: {name: shapes}\n", "expected `method`.* or `encoder`.*, found data, name"),
        ("a: [", "recipe.yaml:"),
        (TINY_PRETRAIN.replace("epochs: 3", "epochs: -3").replace("lr: 0.03", "lr: x"), "optim.base_lr(.|\n)*epochs"),
    ],
)
def test_no_recipe(text: str, message: str, recipe: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe.write_text(text, encoding="utf-8")
    assert main(["doctor", str(recipe)]) == 2
    said = capsys.readouterr()
    assert said.out == "" and re.search(message, said.err)


@pytest.mark.usefixtures("speed")
@pytest.mark.parametrize("width", [80, 120])
def test_the_report_fits_the_terminal_and_ends_with_the_verdict(
    width: int, recipe: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(width))
    add_leak(recipe.parent / "pictures" / "train")
    # overrides may stand behind options
    assert main(["doctor", str(recipe), "--pictures", "100", "name=renamed"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "renamed (pretrain)"
    verdict = lines.index("verdict: ready, but 1 thing to look at")
    assert lines[verdict + 1].startswith("  1. high") and lines[-1].lstrip().startswith("-> remove them")
    # a path is never broken
    assert [line for line in lines if len(line) > width and "/" not in line] == []
    assert any(str(recipe.parent / "pictures" / "val" / "b" / "wrong.tif") in line for line in lines)


def in_small_shards() -> None:
    """Shards of four pictures and slices of about five hashes; the speed as everywhere."""
    pictures.SHARD, duplicates.SLICE = 4, 5
    command.measure = lambda *_: FAST_LOADER


def killed_while_looking() -> None:
    """The same, and the second process is killed when it has looked at its first shard."""
    in_small_shards()
    write = Kept.write

    def armed(self: Kept, number: int, part: Part) -> None:
        write(self, number, part)
        if os.environ.get("RANK") == "1":
            os.kill(os.getpid(), signal.SIGKILL)

    Kept.write = armed  # type: ignore[method-assign]


@pytest.mark.usefixtures("speed")
def test_any_number_of_processes_finds_the_same(
    recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pictures, "SHARD", 4)
    train = tmp_path / "pictures" / "train"
    for label in ("a", "b"):
        picture(0).save(train / label / "copy.bmp")
        picture(20).resize((48, 48)).save(train / label / "larger.png")
    (train / "a" / "broken.png").write_bytes(b"no picture")

    def options(name: str) -> list[str]:
        return ["--json", str(recipe), "--csv", str(tmp_path / f"{name}.csv"), "--keep", str(tmp_path / name)]

    def files(name: str) -> dict[str, bytes]:
        return {file.name: file.read_bytes() for file in (tmp_path / name).glob("*.safetensors")}

    code = main(["doctor", *options("one")])
    one = capsys.readouterr().out
    assert launch("doctor", options("several"), world=2, hook=killed_while_looking) == [69, -9]
    assert len(files("several")) < len(files("one")) and capsys.readouterr()
    assert launch("doctor", options("several"), world=3, hook=in_small_shards) == [code, 0, 0]
    assert capsys.readouterr().err == one
    assert files("several") == files("one") and len(files("one")) == 7
    assert (tmp_path / "several.csv").read_bytes() == (tmp_path / "one.csv").read_bytes()
    found = json.loads(one)["copies"]["train"]
    assert (found["exact"]["count"], found["near"]["count"]) == (3, 1)


@pytest.mark.usefixtures("speed")
def test_what_is_kept_is_of_these_pictures(recipe: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = report(capsys, recipe, "--keep", tmp_path / "kept")
    file = tmp_path / "kept" / "train-00000.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))  # a damaged column is measured again
    assert report(capsys, recipe, "--keep", tmp_path / "kept") == first and file.read_bytes() == whole
    assert main(["doctor", str(recipe), "--keep", str(tmp_path / "kept"), "--pictures", "3"]) == 2
    assert "train-00000.safetensors tells of other pictures" in capsys.readouterr().err
