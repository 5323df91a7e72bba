"""What is found below a folder, and that nothing outside it is read."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from served import make_run

from unlabeled.watch import found as module
from unlabeled.watch import runs as listed
from unlabeled.watch.found import MARK, Found, search, survey
from unlabeled.watch.runs import Runs


def found_in(root: Path) -> dict[str, Found]:
    return {one.path: one for one in search(root.resolve()).found}


@pytest.mark.parametrize("mark", ["metrics.jsonl", "plan.json", "recipe.yaml"])
def test_any_file_of_a_run_makes_one(tmp_path: Path, mark: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / mark).touch()
    (tmp_path / "a" / "notes.txt").touch()
    assert {path: one.kind for path, one in found_in(tmp_path).items()} == {"a/b": "run"}


def test_runs_at_any_depth_and_the_folder_itself(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").touch()
    for path in ("one", "sweep/two", "sweep/deep/three", "one/seeds/four", "a/b/c/d/e/six", "a/b/c/d/e/f/seven"):
        make_run(tmp_path / path)
    shown = ["", "one", "sweep/two", "one/seeds/four", "sweep/deep/three", "a/b/c/d/e/six"]
    assert list(found_in(tmp_path)) == shown


def test_what_a_run_keeps_is_no_run_of_its_own(tmp_path: Path) -> None:
    for path in ("run", "run/export", "run/checkpoints/step-1", "run/logs/tb", "run/look/x", "run/.export-former"):
        make_run(tmp_path / path)
    assert list(found_in(tmp_path)) == ["run"]


def test_a_page_of_ours_is_a_report_and_others_are_not(tmp_path: Path) -> None:
    for name, text in {"ours": MARK, "theirs": b"<html>", "late": b" " * 5000 + MARK}.items():
        (tmp_path / name).mkdir()
        (tmp_path / name / "index.html").write_bytes(b"<!doctype html><head>" + text)
    assert {path: one.kind for path, one in found_in(tmp_path).items()} == {"ours": "report"}


def test_links_to_folders_are_not_followed(tmp_path: Path) -> None:
    root = tmp_path / "root"
    make_run(tmp_path / "outside" / "secret")
    make_run(root / "run")
    (root / "loop").symlink_to(root)
    (root / "same").symlink_to(root / "run")
    (root / "away").symlink_to(tmp_path / "outside")
    (root / "awry").symlink_to(tmp_path / "outside" / "secret")
    (root / "nothing").symlink_to(tmp_path / "nowhere")
    found = found_in(root)
    assert sorted(found) == ["away", "awry", "run"]
    assert found["away"].kind == found["awry"].kind == "unreadable"
    assert "a link that leads outside the folder" in found["awry"].trouble
    # the folder itself may be named by a link
    (tmp_path / "named").symlink_to(root)
    assert sorted(found_in(tmp_path / "named")) == ["away", "awry", "run"]


@pytest.mark.parametrize("name", ["metrics.jsonl", "recipe.yaml", "events.jsonl", "bad_samples.jsonl", "later.json"])
@pytest.mark.parametrize("target", ["../../outside.txt", "/etc/passwd", "../../missing", "../../root-of-another/file"])
def test_a_run_whose_files_lead_outside_is_not_read(tmp_path: Path, name: str, target: str) -> None:
    root = tmp_path / "root"
    run = make_run(root / "run")
    (tmp_path / "outside.txt").write_text("a secret", encoding="utf-8")
    (tmp_path / "root-of-another").mkdir()
    (tmp_path / "root-of-another" / "file").touch()
    (run / name).unlink(missing_ok=True)
    (run / name).symlink_to(target)
    one = found_in(root)["run"]
    assert one.trouble == f"is not read: it has {name}, a link that leads outside the folder" and not one.stamps
    with pytest.raises(ValueError, match="leads outside the folder"):
        survey(root.resolve(), one)


@pytest.mark.parametrize("under", ["pictures", "look", "look/deep"])
def test_images_that_lead_outside_are_not_read(tmp_path: Path, under: str) -> None:
    run = make_run(tmp_path / "root" / "run")
    (run / under).mkdir(parents=True)
    one = found_in(tmp_path / "root")["run"]
    assert not one.trouble and survey((tmp_path / "root").resolve(), one)
    (run / under / "step-1.png").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match=r"step-1.png, a link that leads outside the folder"):
        survey((tmp_path / "root").resolve(), one)


def test_folders_that_a_page_shows_are_no_links(tmp_path: Path) -> None:
    root = tmp_path / "root"
    run = make_run(root / "run")
    (root / "elsewhere").mkdir()
    (run / "look").symlink_to(root / "elsewhere")
    assert found_in(root)["run"].trouble == "is not read: it has look, a link to a folder"
    (run / "look").unlink()
    (run / "look").symlink_to(tmp_path)
    assert "look, a link that leads outside the folder" in found_in(root)["run"].trouble


def test_links_within_the_folder_and_those_that_no_page_reads(tmp_path: Path) -> None:
    root = tmp_path / "root"
    run, other = make_run(root / "run"), make_run(root / "other")
    (run / "recipe.yaml").unlink()
    (run / "recipe.yaml").symlink_to(other / "recipe.yaml")
    (tmp_path / "disk").mkdir()
    for name in ("checkpoints", "export", "data"):
        (run / name).symlink_to(tmp_path / "disk")
    one = found_in(root)["run"]
    assert not one.trouble
    assert {name for name, *_ in survey(root.resolve(), one)} == {"recipe.yaml", "metrics.jsonl"}


@pytest.mark.parametrize("name", ["metrics.jsonl", "plan.json"])
def test_pipes_are_not_opened(tmp_path: Path, name: str) -> None:
    run = make_run(tmp_path / "run")
    (run / name).unlink(missing_ok=True)
    os.mkfifo(run / name)
    assert found_in(tmp_path)["run"].trouble == f"is not read: it has {name}, no ordinary file"


def test_a_search_of_a_very_large_folder_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_run(tmp_path / "a")
    for i in range(50):
        (tmp_path / "b" / f"{i}").mkdir(parents=True)
    assert search(tmp_path).whole
    monkeypatch.setattr(module, "MOST", 20)
    found = search(tmp_path)
    assert not found.whole and [one.path for one in found.found] == ["a"]


def test_a_change_is_seen_and_what_has_not_changed_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    state: Callable[[Path], object] = listed.state

    def counted(folder: Path) -> object:
        read.append(folder.name)
        return state(folder)

    monkeypatch.setattr(listed, "state", counted)
    monkeypatch.setattr(listed, "SEARCHED_FOR", 0.0)
    for name in "abc":
        (make_run(tmp_path / name) / "export").mkdir()
    runs = Runs(tmp_path)
    assert list(runs.all()) == read == ["a", "b", "c"]
    runs.all()
    assert len(read) == 3
    with (tmp_path / "b" / "metrics.jsonl").open("a", encoding="utf-8") as opened:
        opened.write('{"step": 4, "loss": 0.25}\n')
    changed = runs.all()["b"].state
    assert changed is not None and changed.loss == 0.25
    assert read[3:] == ["b"]
    (tmp_path / "c" / "recipe.yaml").unlink()
    (tmp_path / "c" / "metrics.jsonl").unlink()
    assert list(runs.all()) == ["a", "b"] and len(read) == 4


def test_words_that_tell_the_time_are_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(listed, "SEARCHED_FOR", 0.0)
    run = make_run(tmp_path / "silent")
    for file in run.iterdir():
        os.utime(file, (time.time() - 1000,) * 2)
    runs = Runs(tmp_path)
    first = runs.all()["silent"].state
    assert first is not None and first.condition == "silent" and runs.all()["silent"].state is first
    monkeypatch.setattr(listed, "READ_FOR", 0.0)
    assert runs.all()["silent"].state is not first


def test_a_search_is_good_for_a_moment(tmp_path: Path) -> None:
    runs = Runs(tmp_path)
    assert not runs.all()
    make_run(tmp_path / "new")
    assert not runs.all()
    runs._searched -= listed.SEARCHED_FOR
    assert list(runs.all()) == ["new"]


def test_one_run_that_cannot_be_read_costs_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    state = listed.state

    def fails(folder: Path) -> object:
        if folder.name == "b":
            raise RecursionError("too deep\nfor one line")
        return state(folder)

    monkeypatch.setattr(listed, "state", fails)
    for name in "abc":
        make_run(tmp_path / name)
    found = Runs(tmp_path).all()
    assert found["a"].state and found["c"].state
    assert found["b"].state is None and found["b"].trouble == "cannot be read: too deep"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_folder_that_cannot_be_read_is_listed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    scandir = os.scandir

    def refuse(path: str | Path) -> object:
        if Path(path).name == "locked":
            raise error
        return scandir(path)

    make_run(tmp_path / "open")
    (tmp_path / "locked").mkdir()
    monkeypatch.setattr(os, "scandir", refuse)
    found = found_in(tmp_path)
    assert sorted(found) == ["locked", "open"]
    assert found["locked"].trouble == f"cannot be read: {error.strerror}"


def test_a_folder_that_goes_meanwhile_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scandir = os.scandir

    def late(path: str | Path) -> object:
        if Path(path).name == "gone":
            raise FileNotFoundError(2, "No such file or directory")
        return scandir(path)

    make_run(tmp_path / "gone")
    make_run(tmp_path / "here")
    monkeypatch.setattr(os, "scandir", late)
    assert list(found_in(tmp_path)) == ["here"]
