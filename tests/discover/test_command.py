"""`unlabeled discover`: the clusters of pictures, whoever computed them, and however often it was interrupted."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import CONTEXT, free_port

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.discover.fits import Fits

COLOURS = {"red": 0x900000, "green": 0x009000, "blue": 0x000090, "white": 0x909090, "pink": 0x900090, "teal": 0x009090}
KNOWN, NEW = ("blue", "green", "red", "white"), ("pink", "teal")
PREPARED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9, interpolation="bilinear")
SMALL = ("--batch-size", "8", "--workers", "0", "--device", "cpu", "--starts", "3")


def picture(colour: str, random: np.random.Generator) -> Image.Image:
    """Noise around a colour."""
    parts = [COLOURS[colour] >> shift & 255 for shift in (16, 8, 0)]
    pixels = np.array(parts, np.uint8) + random.integers(0, 100, (20, 24, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures of four colours, unlabelled ones of six, a broken one on each side; and an export."""
    home, random = tmp_path_factory.mktemp("discover"), np.random.default_rng(0)
    for side, colours, count in (("labelled", KNOWN, 5), ("unlabelled", (*KNOWN, *NEW), 6)):
        for colour in colours:
            (home / side / colour).mkdir(parents=True)
            for number in range(count):
                picture(colour, random).save(home / side / colour / f"{number}.png")
        (home / side / "red" / "broken.png").write_bytes(b"no picture")
    (home / "flat").mkdir()
    for file in (home / "unlabelled").rglob("?.png"):
        shutil.copy(file, home / "flat" / f"{file.parent.name}-{file.name}")
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2)
    export_encoder(home / "export", config.build((16, 16)), PREPARED, "card", {})
    return home


def arguments(home: Path, out: Path, *options: str, unlabelled: str = "unlabelled") -> list[str]:
    sides = ("--labelled", str(home / "labelled"), "--unlabelled", str(home / unlabelled))
    return ["discover", str(home / "export"), *sides, str(out), *SMALL, *options]


def found(out: Path) -> Any:
    return json.loads((out / "clusters.json").read_text(encoding="utf-8"))


def rows(out: Path) -> dict[str, dict[str, str]]:
    """The table of pictures by their names."""
    with (out / "clusters.csv").open(newline="", encoding="utf-8") as file:
        return {row["picture"]: row for row in csv.DictReader(file)}


def test_clusters_of_known_and_new_colours(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(home, tmp_path, "--classes", "6")) == 0
    told = found(tmp_path)
    clusters = told["clusters"]
    assert [one["name"] for one in clusters] == [*KNOWN, "new 1", "new 2"]
    assert [one["size"] for one in clusters] == [6] * 6 and [one["labelled"] for one in clusters] == [5] * 4 + [0] * 2
    scores = told["scores"]
    assert (scores["all"], scores["old"], scores["new"], scores["nmi"]) == (100, 100, 100, 100)
    assert scores["pictures"] == {"all": 36, "old": 24, "new": 12}
    assert told["baseline"]["scores"]["all"] == 100 and told["estimate"] is None
    for one in clusters:
        folders = {Path(name).parent.name for name in (*one["nearest"], *one["random"])}
        assert len(folders) == 1 and len(one["nearest"]) == len(one["random"]) == 6
        assert sorted(one["nearest"]) == sorted(one["random"]), "of six pictures all are shown"
        assert folders == {one["name"]} or not one["known"]
        assert one["like"] in KNOWN and one["like"] != one["name"] and 0 < one["spread"] < 2
        drawn = np.array(Image.open(tmp_path / one["picture"]))
        assert drawn.shape == (200, 900, 3)
    known, new = ([one["known_score"] for one in clusters if one["known"] == kind] for kind in (True, False))
    assert min(known) > max(new) and told["known_score"]["labelled"] == pytest.approx(np.mean(known), abs=0.05)
    table = rows(tmp_path)
    assert len(table) == 36 and {Path(name).parent.name for name, row in table.items() if row["name"] == "red"} == {
        "red"
    }
    mean = np.mean([float(row["known_score"]) for row in table.values() if row["name"] == "new 1"])
    assert clusters[4]["known_score"] == pytest.approx(mean, abs=1e-5)
    text = (tmp_path / "clusters.md").read_text(encoding="utf-8")
    assert "![new 1: above nearest to the centre, below at random](pictures/cluster-05.png)" in text
    page = (tmp_path / "discover.html").read_text(encoding="utf-8")
    assert page.count("data:image/jpeg") == 1 and "5. new 1, 6 pictures: nearest to the centre" in page
    assert "2 that cannot be used" in page and "pictures/cluster" not in page
    assert "semi-supervised k-means" in capsys.readouterr().out
    assert (tmp_path / "features" / "unlabelled" / "manifest.json").exists()


def test_names_of_unlabelled_folders_are_scored_not_used(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--classes", "7", "--seed", "3")
    assert main(arguments(home, tmp_path / "a", *options)) == 0
    assert main(arguments(home, tmp_path / "b", *options, unlabelled="flat")) == 0
    assert found(tmp_path / "b")["scores"] is None
    one, other = rows(tmp_path / "a"), rows(tmp_path / "b")
    named = {f"{Path(name).parent.name}-{Path(name).name}": row for name, row in one.items()}
    flat = {Path(name).name: row for name, row in other.items()}
    assert len(flat) == 36 and named.keys() == flat.keys()
    for column in ("cluster", "known_score"):
        assert {name: row[column] for name, row in named.items()} == {name: row[column] for name, row in flat.items()}
    assert "lie in no class folders" in capsys.readouterr().out


def test_the_number_of_classes_is_estimated(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments(home, tmp_path, "--most", "12")) == 0
    told = found(tmp_path)
    estimate = told["estimate"]
    assert [one["classes"] for one in estimate["curve"]] == list(range(4, 13))
    assert [len(names) for names in estimate["held_out"]] == [2, 2, 2] and len(
        set(map(tuple, estimate["held_out"]))
    ) > 1
    assert estimate["best"] == told["classes"] == len(told["clusters"])
    means = {one["classes"]: one["mean"] for one in estimate["curve"]}
    assert means[estimate["best"]] == max(means.values()) and max(means.values()) > min(means.values()) + 20
    page = (tmp_path / "discover.html").read_text(encoding="utf-8")
    assert "accuracy on held-out classes" in page
    verdict = "How many classes there are is undecided" if estimate["undecided"] else "The best number is"
    assert verdict in page
    capsys.readouterr()
    # by default up to three times the known ones and twenty
    assert main(arguments(home, tmp_path)) == 0
    assert found(tmp_path)["estimate"]["curve"][-1]["classes"] == 32
    assert ("undecided" in capsys.readouterr().out) == found(tmp_path)["estimate"]["undecided"]


def test_another_number_of_classes_takes_the_place(home: Path, tmp_path: Path) -> None:
    assert main(arguments(home, tmp_path, "--classes", "9")) == 0
    # an index is kept only of folders that have been still for seconds
    files = [file for file in tmp_path.rglob("*.safetensors") if file.parent.name != "index"]
    features = {file: file.stat().st_mtime_ns for file in files}
    assert len(list((tmp_path / "pictures").iterdir())) == sum(one["size"] > 0 for one in found(tmp_path)["clusters"])
    assert main(arguments(home, tmp_path, "--classes", "5")) == 0
    assert {file: file.stat().st_mtime_ns for file in files} == features
    assert len(found(tmp_path)["clusters"]) == 5 and len(list((tmp_path / "pictures").iterdir())) == 5
    assert main(arguments(home, tmp_path / "alone", "--classes", "5")) == 0
    assert outputs(tmp_path) == outputs(tmp_path / "alone")


def test_an_empty_class_and_one_picture(home: Path, tmp_path: Path) -> None:
    """A known class of one picture of which no unlabelled one is left."""
    shutil.copytree(home / "labelled", tmp_path / "labelled")
    for file in sorted((tmp_path / "labelled" / "blue").iterdir())[1:]:
        file.unlink()
    shutil.copytree(home / "unlabelled", tmp_path / "unlabelled")
    shutil.rmtree(tmp_path / "unlabelled" / "blue")
    shutil.copytree(home / "export", tmp_path / "export")
    assert main(arguments(tmp_path, tmp_path / "out", "--classes", "6")) == 0
    empty = found(tmp_path / "out")["clusters"][0]
    assert (empty["name"], empty["size"], empty["labelled"], empty["nearest"]) == ("blue", 0, 1, [])
    assert (empty["spread"], empty["picture"]) == (None, None)
    assert not (tmp_path / "out" / "pictures" / "cluster-01.png").exists()


def test_labelled_pictures_among_the_unlabelled_are_said(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(home / "unlabelled", tmp_path / "unlabelled")
    for file in (home / "labelled").rglob("?.png"):
        shutil.copy(file, tmp_path / "unlabelled" / file.parent.name / f"again-{file.name}")
    out = tmp_path / "out"
    assert main(arguments(home, out, "--classes", "6", "--unlabelled", str(tmp_path / "unlabelled"))) == 0
    assert "are labelled too: scores flatter" in capsys.readouterr().err
    assert "are labelled too: scores flatter" in (out / "clusters.md").read_text(encoding="utf-8")


# ---------------------------------------------------------------- processes, and interruptions


def _member(words: Sequence[str], rank: int, world: int, port: int, strike: int | None) -> None:
    torch.set_num_threads(1)
    if world > 1:
        ranks = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(world), "LOCAL_WORLD_SIZE": str(world)}
        os.environ |= {**ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    if strike is not None:
        _kill_after(strike)
    raise SystemExit(main(list(words)))


def _kill_after(count: int) -> None:
    """SIGKILL ourselves when so many runs of k-means are noted, with half a note of the next one."""
    run = Fits.run

    def armed(self: Fits, fits: Any, places: Sequence[int]) -> Iterator[Any]:
        for done, one in enumerate(run(self, fits, places)):
            if done == count - 1:
                self._file(fits[places[done + 1]]).write_text("{", encoding="utf-8")
                os.kill(os.getpid(), signal.SIGKILL)
            yield one

    Fits.run = armed  # type: ignore[method-assign]


def launch(words: Sequence[str], world: int = 1, strike: int | None = None) -> list[Any]:
    port = free_port()
    processes = [CONTEXT.Process(target=_member, args=(words, rank, world, port, strike)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    return [process.exitcode for process in processes]


def outputs(out: Path) -> dict[str, bytes]:
    files = [file for file in out.iterdir() if file.is_file() and file.name != ".lock"]
    return {file.name: file.read_bytes() for file in (*files, *(out / "pictures").iterdir())}


def test_two_processes_and_a_killed_one_leave_the_same_bytes(home: Path, tmp_path: Path) -> None:
    options = ("--most", "8")
    assert main(arguments(home, tmp_path / "one", *options)) == 0
    assert launch(arguments(home, tmp_path / "two", *options), world=2) == [0, 0]
    whole = outputs(tmp_path / "one")
    assert outputs(tmp_path / "two") == whole and {"clusters.json", "discover.html", "cluster-01.png"} <= whole.keys()

    cut = tmp_path / "cut"
    assert launch(arguments(home, cut, *options), strike=4) == [-9]
    notes = sorted((cut / "fits").glob("classes-*.json"))
    assert len(notes) == 5 and notes[-1].read_text(encoding="utf-8") == "{" and not (cut / "clusters.json").exists()
    before = notes[0].stat().st_mtime_ns
    assert main(arguments(home, cut, *options)) == 0
    assert notes[0].stat().st_mtime_ns == before, "what is done is not done again"
    assert outputs(cut) == whole


# ---------------------------------------------------------------- what cannot be clustered


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--classes", "3"), "--classes 3: "),
        (("--classes", "3"), "alone has 4 classes, which count too. Ask for 4 or more"),
        (("--classes", "many"), "--classes many: expected a number of at least 1, or auto"),
        (("--classes", "0"), "--classes 0: expected a number of at least 1, or auto"),
        (("--classes", "99"), "99 classes, 95 of them new, and 37 unlabelled pictures"),
        (("--classes", "6", "--most", "9"), "--most 9: expected with --classes auto"),
        (("--most", "4"), "--most 4: expected with --classes auto, and more than the 4 known classes"),
        (("--starts", "0"), "--starts 0: expected at least 1"),
        (("--size", "18"), "--size 18"),
        (("--labelled", "flat"), "has no picture with a class; expected a folder for each known class"),
        (("--labelled", "few"), "holds half of the known classes out, and there are 2; expected at least 4"),
        (("--labelled", "split"), "split has the folders train and val, which are splits and no classes"),
        (("--unlabelled", "split"), "Name one of them: --unlabelled split/train"),
        (("--unlabelled", "empty"), "empty"),
        (("--unlabelled", "nowhere"), "nowhere"),
        (("--classes", "6", "data.nonsense=1"), "nonsense"),
    ],
)
def test_bad_input_is_said(
    home: Path,
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(home)
    (home / "empty").mkdir(exist_ok=True)
    for colour in ("red", "blue"):
        shutil.copytree(home / "labelled" / colour, home / "few" / colour, dirs_exist_ok=True)
    for split in ("train", "val"):
        shutil.copytree(home / "labelled", home / "split" / split, dirs_exist_ok=True)
    assert main(arguments(home, tmp_path / "out", *options)) == 2
    assert said in capsys.readouterr().err
    assert not list(tmp_path.rglob("features-*")), "before anything is encoded"


def test_nothing_but_broken_pictures(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(4):
        (tmp_path / "broken").mkdir(exist_ok=True)
        (tmp_path / "broken" / f"{number}.png").write_bytes(b"no picture")
    out = tmp_path / "out"
    assert main(arguments(home, out, "--classes", "6", "--unlabelled", str(tmp_path / "broken"))) == 2
    assert "can be used" in capsys.readouterr().err


def test_clusters_of_other_pictures_are_not_overwritten(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments(home, tmp_path, "--classes", "6")) == 0
    before = outputs(tmp_path)
    assert main(arguments(home, tmp_path, "--classes", "6", unlabelled="flat")) == 2
    assert "holds other features" in capsys.readouterr().err
    assert main(arguments(home, tmp_path, "--classes", "6", "--seed", "1")) == 2
    assert "holds clusters of other pictures, features or another --seed" in capsys.readouterr().err
    assert outputs(tmp_path) == before


def test_features_that_are_not_finite_are_said(home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2).build((16, 16))
    torch.nn.init.constant_(encoder.vit.norm.weight, float("nan"))
    export_encoder(tmp_path / "export", encoder, PREPARED, "card", {})
    for side in ("labelled", "unlabelled"):
        shutil.copytree(home / side, tmp_path / side)
    assert main(arguments(tmp_path, tmp_path / "out", "--classes", "6")) == 2
    assert "not finite" in capsys.readouterr().err
