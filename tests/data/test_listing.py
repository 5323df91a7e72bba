"""An index that was kept is the scan's, is not looked for again, and is refused once anything has changed."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from support import TINY_PRETRAIN, launch

from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source, SourceConfig
from unlabeled.data.sources import files as sources
from unlabeled.data.sources import table
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.data.sources.table import Config as Table

LONG_AGO = 1_000_000_000
NAMES = ("cat/0.png", "cat/1.png", "dog/0.png", "dog/deep/2.png", "notes.txt")

Make = Callable[[Path], SourceConfig]


def settle(home: Path) -> None:
    """As if nothing had been touched for years."""
    for path in [home, *home.rglob("*")]:
        os.utime(path, (LONG_AGO, LONG_AGO), follow_symlinks=False)


def fill(folder: Path) -> Path:
    for name in NAMES:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(name.encode())
    return folder


def folder(home: Path) -> SourceConfig:
    return Files(path=str(fill(home / "x")), val="", train="")


def tars(home: Path) -> SourceConfig:
    with tarfile.open(home / "a.tar", "w") as packed:
        packed.add(fill(home / "x"), "")
    return Files(path=str(home / "*.tar"))


def csv(home: Path) -> SourceConfig:
    fill(home)
    rows = [f"{name},{name[:3]},train" for name in NAMES[:4]]
    (home / "t.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    return Table(path=str(home / "t.csv"), label="label", split="split")


def mixture(home: Path) -> SourceConfig:
    return Mixture(sources=(folder(home / "f"), csv(home / "t")))  # type: ignore[arg-type]


KINDS = [folder, tars, csv, mixture]


def opened(config: SourceConfig, index: Path) -> Source:
    """As a new program opens it."""
    fresh = type(config).model_validate(config.model_dump())
    return Opened(fresh, IndexFolder(index)).train


def same(one: Source, other: Source) -> bool:
    keys = [[source.key(i) for i in range(len(source))] for source in (one, other)]
    labels = np.array_equal(one.labels, other.labels)
    return keys[0] == keys[1] and one.classes == other.classes and labels and one.fingerprint() == other.fingerprint()


def no_scans(monkeypatch: pytest.MonkeyPatch) -> None:
    def scan(*_: object) -> None:
        raise AssertionError("looked for pictures again")

    monkeypatch.setattr(sources, "scan_places", scan)
    monkeypatch.setattr(table, "read_rows", scan)


@pytest.mark.parametrize("make", KINDS)
def test_what_was_found_is_kept(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make(tmp_path)
    settle(tmp_path)
    scanned = opened(config, tmp_path / "index")
    no_scans(monkeypatch)
    kept = opened(config, tmp_path / "index")
    assert scanned.classes and same(kept, scanned)


def more(home: Path) -> None:
    (home / "x" / "dog" / "deep" / "3.png").write_bytes(b"new")


def fewer(home: Path) -> None:
    (home / "x" / "cat" / "1.png").unlink()


def renamed(home: Path) -> None:
    (home / "x" / "cat").rename(home / "x" / "lion")


def another_tar(home: Path) -> None:
    (home / "b.tar").write_bytes((home / "a.tar").read_bytes())


def packed_again(home: Path) -> None:
    more(home)
    tars(home)


def another_row(home: Path) -> None:
    (home / "t.csv").write_text(
        (home / "t.csv").read_text(encoding="utf-8") + "\ncat/0.png,cat,train", encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (folder, more),
        (folder, fewer),
        (folder, renamed),
        (tars, another_tar),
        (tars, packed_again),
        (csv, another_row),
    ],
)
def test_what_has_changed_is_looked_for_again(
    make: Make, change: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    home = tmp_path / "data"
    home.mkdir()
    config = make(home)
    settle(home)
    before = opened(config, tmp_path / "index")
    change(home)
    now = opened(config, tmp_path / "index")
    assert same(now, Opened(config).train) and not same(now, before)
    assert "has changed since the pictures were indexed" in caplog.text


def test_another_question_is_not_answered_by_what_is_kept(tmp_path: Path) -> None:
    config = folder(tmp_path)
    settle(tmp_path)
    opened(config, tmp_path / "index")
    cats = config.model_copy(update={"train": "cat", "val": None})
    assert len(opened(cats, tmp_path / "index")) == 2


def test_a_damaged_index_is_not_used(tmp_path: Path) -> None:
    config = folder(tmp_path)
    settle(tmp_path)
    scanned = opened(config, tmp_path / "index")
    file = tmp_path / "index" / "train.safetensors"
    good = file.read_bytes()
    for place in range(0, len(good), 7):
        file.write_bytes(good[:place] + bytes([good[place] ^ 4]) + good[place + 1 :])
        assert same(opened(config, tmp_path / "index"), scanned), place
    for length in (0, 7, 100, len(good) - 1):
        file.write_bytes(good[:length])
        assert same(opened(config, tmp_path / "index"), scanned), length


def test_what_may_still_be_changing_is_not_kept(tmp_path: Path) -> None:
    config = folder(tmp_path)
    opened(config, tmp_path / "index")
    assert not (tmp_path / "index").exists()


def test_a_mixture_looks_into_every_folder_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    homes = [fill(tmp_path / name / split).parent for name in ("a", "b") for split in ("train", "val")]
    found = [Files(path=str(home), train="train", val="val") for home in homes[::2]]
    entered: list[str] = []
    real = os.scandir

    def scandir(path: bytes) -> object:
        entered.append(os.fsdecode(path))
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    data = Opened(Mixture(sources=tuple(found)))  # type: ignore[arg-type]
    assert len(data.train) == len(data.val) == 8
    assert len(entered) == len(set(entered)) == 16


def test_a_run_keeps_its_index_and_notices_new_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from PIL import Image

    data = tmp_path / "data"
    data.mkdir()
    for number in range(10):
        Image.new("RGB", (20, 20), (number, 0, 0)).save(data / f"{number}.png")
    settle(data)
    recipe = TINY_PRETRAIN.replace(
        "{name: shapes, train_size: 42, val_size: 20, size: 16}", f"{{path: {data}, name: files}}"
    )
    (tmp_path / "tiny.yaml").write_text(recipe, encoding="utf-8")
    arguments = [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / 'run'}", "run.checkpoint_every=1"]
    assert launch("pretrain", [*arguments, "--dry-run"]) == [0] and not (tmp_path / "run").exists()
    assert launch("pretrain", arguments, kill={"step": 2}, world=2) == [-9, -9]
    assert (tmp_path / "run" / "index" / "train.safetensors").exists()
    Image.new("RGB", (20, 20)).save(data / "new.png")
    capsys.readouterr()
    assert launch("pretrain", arguments) == [2]
    said = capsys.readouterr().err
    assert "has changed since the pictures were indexed" in said and "on 10 pictures, and there are 11 now" in said
