"""`unlabeled start` on small folders: the recipe is whole, valid and explained; what a person should know is said."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictured import classes, drawn, grid, photos
from PIL import Image

from unlabeled.__main__ import main
from unlabeled.doctor.speed import Speed
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.start import timing
from unlabeled.start.facts import Facts
from unlabeled.start.looking import look
from unlabeled.start.opening import place
from unlabeled.start.recipe import built
from unlabeled.start.rules import choose
from unlabeled.start.timing import GUESS, Pace

FAST = Speed(loader=4000, model=1000, together=1000, encode=4000, batch=8, peak=10**9)


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder of its own, an empty cache, a measured speed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(timing, "measure", lambda *_: FAST)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def started(capsys: pytest.CaptureFixture[str], *words: object) -> dict[str, Any]:
    """What `--json` says, all of standard output."""
    assert main(["start", "--json", "--device", "cpu", *map(str, words)]) == 0
    return dict(json.loads(capsys.readouterr().out))


def codes(found: dict[str, Any]) -> list[str]:
    return [caution["code"] for caution in found["cautions"] if caution["code"] not in ("few", "busy", "short", "tiny")]


def written() -> PretrainRecipe:
    return load(PretrainRecipe, "recipe.yaml")


def test_a_flat_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = started(capsys, photos(tmp_path / "my photos"))
    recipe, text = written(), Path("recipe.yaml").read_text(encoding="utf-8")
    assert (recipe.name, recipe.method.name, recipe.data.path) == ("my_photos", "simclr", str(tmp_path / "my photos"))
    assert recipe.evaluate is None and found["ladder"] is None and codes(found) == []
    assert recipe.views["method.view"].size == 32 and recipe.train.batch_size == 8
    for choice in ("recipe", "network", "size", "batch", "precision", "workers", "evaluate"):
        assert found["choices"][choice]["because"] in " ".join(text.split("\n# ")), f"no reason for {choice}"
    assert found["commands"][0] == "unlabeled pretrain recipe.yaml"
    assert set(found["facts"]) >= {"pictures", "side", "cores"} and found["time"]["measured"]


def test_epochs_are_those_that_fit() -> None:
    facts = Facts(pictures=2000, side=160, device="cpu", cores=2, minutes=30)
    slow, quick = (Pace(FAST._replace(loader=100 * rate, model=rate, together=rate), 1) for rate in (50, 5000))
    found = timing.length(facts, choose(facts), slow, 0)
    assert found.epochs == round((1800 - 20) * 50 * 0.95 / 2000) == 42 and found.steps == 42 * 31
    scored = timing.length(facts, choose(facts), slow, 40_000)  # four evaluations of ten seconds each
    assert scored.epochs == round((1800 - 20 - 40) * 50 * 0.95 / 2000)
    # what is promised is the whole run
    assert found.seconds == pytest.approx(20 + found.steps * 64 / (0.95 * 50)) and "kNN" not in found.why
    assert scored.seconds == pytest.approx(20 + 40 + scored.steps * 64 / (0.95 * 50)) and "40 s of it" in scored.why
    assert timing.length(facts, choose(facts), quick, 0).epochs == 800, "the table allows no more"
    assert timing.length(facts._replace(minutes=1), choose(facts), slow, 0).epochs == 0.9


def test_labels_are_evaluated_on_and_the_ladder_is_planned(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes(tmp_path / "set" / "train", 12)
    classes(tmp_path / "set" / "val", 2, first=500)
    found = started(capsys, tmp_path / "set")
    recipe = written()
    assert (recipe.data.train, recipe.data.val) == ("train", "val")
    assert recipe.evaluate is not None and list(recipe.evaluate.protocols) == ["knn"] and recipe.evaluate.every
    assert found["ladder"]["command"].startswith("unlabeled ladder runs/set/export runs/set --fractions ")
    assert found["ladder"]["seconds"] > 0 and found["commands"][-1] == found["ladder"]["command"]
    assert "labels" in codes(found)


def test_a_fifth_of_folders_of_classes_is_held_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = started(capsys, classes(tmp_path / "set", 10))
    data = written().data
    assert (data.split, data.has_val) == (0.2, True) and written().evaluate is not None
    assert found["facts"]["labels"] == "flat" and found["ladder"]["command"].count("runs/set") == 2


def test_labels_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classes(tmp_path / "set" / "training", 8)
    classes(tmp_path / "set" / "test", 2, first=500)
    found = started(capsys, photos(tmp_path / "a"), "--labels", tmp_path / "set")
    assert found["ladder"]["command"].startswith("unlabeled ladder runs/a/export runs/a ")
    assert found["choices"]["evaluate"]["value"] == "knn" and "few_labels" in codes(found)
    elsewhere = written().evaluate.data  # type: ignore[union-attr]
    assert (elsewhere.path, elsewhere.train, elsewhere.val) == (str(tmp_path / "set"), "training", "test")
    assert elsewhere.mean == written().data.mean
    assert main(["start", str(tmp_path / "a"), "--labels", str(tmp_path / "a"), "--force"]) == 2
    assert "has no labels; expected folders of classes" in capsys.readouterr().err


def test_grey_as_rgb_is_read_as_one_channel(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for i in range(12):
        (tmp_path / "g").mkdir(exist_ok=True)
        Image.fromarray(np.repeat(drawn(i, 100, 1), 3, axis=2)).save(tmp_path / "g" / f"{i}.png")
    assert codes(started(capsys, tmp_path / "g")) == ["grey"]
    recipe = written()
    assert recipe.data.channels == recipe.method.backbone.channels == 1


def test_bands_and_wide_values(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "b").mkdir()
    for i in range(12):
        np.save(tmp_path / "b" / f"{i}.npy", drawn(i, 100, 6).astype(np.uint16) * 40)
    assert codes(started(capsys, tmp_path / "b")) == ["bits", "bands"]
    data = written().data
    assert data.channels == 6 and data.value_range[1] == pytest.approx(10_000, rel=0.05)  # type: ignore[attr-defined]


def test_copies_and_mixed_sizes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(photos(tmp_path / "a", side=300), 12, first=50, side=60)
    for i in range(12):
        Image.fromarray(drawn(90 + i, 300)).save(tmp_path / "a" / f"large{i}.png")
    shutil.copy(tmp_path / "a" / "3.png", tmp_path / "a" / "copy.png")
    found = started(capsys, tmp_path / "a")
    assert codes(found) == ["mixed", "copies"]
    assert any("`unlabeled doctor recipe.yaml --csv copies.csv`" in one["advice"] for one in found["cautions"])


@pytest.mark.parametrize(("alpha", "said"), [(0, ["transparent"]), (255, [])])
def test_transparent_parts_are_said(
    alpha: int, said: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "a").mkdir()
    for i in range(12):
        image = Image.fromarray(drawn(i, 100)).convert("RGBA")
        image.putpixel((3, 5), (0, 0, 0, alpha))
        (image.quantize(64) if i < 4 else image).save(tmp_path / "a" / f"{i}.png")
    assert codes(started(capsys, tmp_path / "a")) == said


def test_large_pictures_get_small_copies_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = started(capsys, photos(tmp_path / "a", side=640))
    assert written().data.cache == "cache/a"
    assert found["commands"][:2] == ["unlabeled prepare recipe.yaml", "unlabeled pretrain recipe.yaml"]


def test_a_gpu_that_is_elsewhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", str(photos(tmp_path / "a", side=240)), "--device", "cuda", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["time"] == {**found["time"], "measured": False, "seconds": None, "epochs": 100}
    assert "unmeasured" in codes(found)
    recipe = written()
    assert (recipe.train.precision, recipe.run.device, recipe.run.compile) == ("bf16", "auto", True)


def test_what_a_person_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["start", str(photos(tmp_path / "a")), "--device", "cpu"]) == 0
    text = " ".join(capsys.readouterr().out.split())
    for part in (
        "12 pictures in",
        "from scratch: no weights are at hand",
        "unlabeled watch runs",
        "few: pretraining from",
    ):
        assert part in text
    assert main(["start", "--rules"]) == 0
    assert "device = cpu" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "name a folder of pictures"),
        (["a", "--minutes", "0"], "--minutes 0: expected at least 1"),
        (["a", "--out", "r.txt"], "expected a name that ends in .yaml"),
        (["a", "--out", "old.yaml"], "old.yaml exists, and may be yours. Add --force"),
        (["a", "--out", "/proc/no/r.yaml"], "--out /proc/no/r.yaml cannot be written"),
        (["a", "--out", "folder.yaml"], "--out folder.yaml is a folder"),
        (["empty"], "no pictures in"),
        (["b", "--out", "old.yaml"], "'b' does not exist; expected a folder"),
        (["empti/"], ". Did you mean 'empty'?"),
        (["no/where"], "(data.path, data.val_path or DATA)\n"),
        (["a", "--labels", "b"], "'b' does not exist; expected a folder"),
    ],
)
def test_errors(words: list[str], said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos(tmp_path / "a")
    (tmp_path / "empty").mkdir()
    (tmp_path / "folder.yaml").mkdir()
    (tmp_path / "old.yaml").write_text("mine", encoding="utf-8")
    assert main(["start", *words]) == 2
    assert said in capsys.readouterr().err
    assert (tmp_path / "old.yaml").read_text(encoding="utf-8") == "mine" and not Path("recipe.yaml").exists()


def test_errors_of_options_are_found_before_torch_is_imported(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "recipe.yaml").touch()
    code = "import sys; from unlabeled.__main__ import main; print(main(['start', 'a']), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "2 False\n" and "recipe.yaml exists" in done.stderr


def test_weights_in_the_cache_begin_a_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Weights of timm's in the form of the hub's cache, of a revision that no network is asked about."""
    from unlabeled.backbone import weights

    folder = tmp_path / "hub" / "models--timm--test_resnet.r160_in1k" / "snapshots" / "abc"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_bytes(bytes(1_400_000))
    address, original = "timm:test_resnet.r160_in1k", weights._from_timm
    monkeypatch.setattr(weights, "_from_timm", lambda *args, **more: original(*args, **{**more, "pretrained": False}))
    found = started(capsys, photos(tmp_path / "a", side=100))
    assert found["begin"] == address and found["choices"]["begin"]["value"] == "weights"
    text = Path("recipe.yaml").read_text(encoding="utf-8")
    assert "continued:" in text and "encoder:" not in text and "mean:" not in text


def test_every_choice_gives_a_valid_recipe(tmp_path: Path) -> None:
    """Over a grid of facts, by the types of recipes; weights aside, which need files."""
    seen: set[str] = set()
    found = place(str(photos(tmp_path / "a")))
    looked = look(found.config)
    for facts in grid():
        if facts.weights != "none" or facts.labels != "none":
            continue
        channels = 1 if facts.grey else facts.channels
        here = looked._replace(mean=[0.5] * channels, std=[0.2] * channels)
        chosen = choose(facts)
        key = repr([channels, *(chosen[field].take for field in ("recipe", "network", "size"))])
        if key not in seen:
            seen.add(key)
            PretrainRecipe.model_validate(built("x", facts, chosen, found, here, None, None, GUESS).fields)
    assert len(seen) > 20
