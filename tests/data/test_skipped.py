"""Files that are not read: what is a picture, what is counted of the rest, what is said of formats we lack."""

from __future__ import annotations

import json
import tarfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import numpy as np
import pytest
from PIL import Image, features
from support import TINY_PRETRAIN

from unlabeled.data.archive.index import ending_of
from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.archive.skipped import FOREIGN, in_words
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.doctor.facts import split_facts
from unlabeled.doctor.page import _pictures
from unlabeled.doctor.pictures import survey
from unlabeled.errors import UserError
from unlabeled.launch.program import main

FORMATS = {"jpg": "JPEG", "JFIF": "JPEG", "jpe": "JPEG", "jif": "JPEG", "jfi": "JPEG", "PNG": "PNG", "pnm": "PPM"}


def fill(home: Path, names: list[str]) -> Path:
    for name in names:
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        (home / name).write_bytes(b"")
    return home


def draw(home: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (home / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (16, 16), (number, 0, 0)).save(home / name, FORMATS.get(name.rpartition(".")[2], "PNG"))
    return home


def test_every_ending_of_a_readable_format_is_read(tmp_path: Path) -> None:
    source = Opened(Files(path=str(draw(tmp_path, [f"{i}.{ending}" for i, ending in enumerate(FORMATS)])))).train
    assert len(source) == len(FORMATS) and {source.image(i).shape for i in range(len(source))} == {(3, 16, 16)}


@pytest.mark.skipif(not features.check("avif"), reason="Pillow has no AVIF")
def test_avif_is_read_where_pillow_has_it(tmp_path: Path) -> None:
    Image.new("RGB", (16, 12), (200, 10, 10)).save(tmp_path / "a.avif")
    picture = Opened(Files(path=str(tmp_path))).train.image(0)
    assert picture.shape == (3, 12, 16) and abs(int(picture[0].float().mean()) - 200) < 8


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        (b"a/b.JP2", ".jp2"),
        (b"a/b.nii.gz", ".nii.gz"),
        (b"a/b.2021.dcm", ".dcm"),
        (b"a/b.tar.gz", ".tar.gz"),
        (b"a/1.2.840.10008.5", "without an ending"),
        (b"a/IM0001", "without an ending"),
        (b"a.b/IM0001", "without an ending"),
        (b"a/b.\x1b[31m", "without an ending"),
        (b"a/b.", "without an ending"),
        (b"a/.b/c.jp2", "hidden"),
        (b"a/._c.jpg", "hidden"),
    ],
)
def test_files_are_counted_under_their_endings(name: bytes, kind: str) -> None:
    assert ending_of(name) == kind


SCATTERED = ["a/1.jp2", "a/2.JP2", "a/3.dcm", "a/README", "b/.DS_Store", "b/x.jp2"]
COUNTED = {".jp2": 3, ".dcm": 1, "without an ending": 1, "hidden": 1}
WORDS = "6 files are not read: 3 .jp2, 1 .dcm, 1 hidden, 1 without an ending"


def test_a_folder_and_a_tar_count_what_they_do_not_read(tmp_path: Path) -> None:
    home = draw(fill(tmp_path / "x", SCATTERED), ["a/1.png", "b/2.png"])
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        tar.add(home, "")
    for path in (home, tmp_path / "x.tar"):
        source = Opened(Files(path=str(path))).train
        assert source.skipped == COUNTED and in_words(source.skipped) == WORDS
        assert Part(source, np.arange(1)).skipped == COUNTED
    both = Opened(Mixture(sources=(Files(path=str(home)), Files(path=str(tmp_path / "x.tar"))))).train
    assert both.skipped[".jp2"] == 6


def test_many_kinds_are_few_words() -> None:
    assert in_words(Counter({f".e{i}": 1 for i in range(20)})).endswith("1 .e15, 12 of 12 other kinds")


def test_the_count_is_kept_with_the_index(tmp_path: Path) -> None:
    import os

    home = draw(fill(tmp_path / "x", SCATTERED), ["a/1.png"])
    for path in [home, *home.rglob("*")]:
        os.utime(path, (1e9, 1e9))
    for _ in range(2):
        config = Files(path=str(home))
        assert Opened(config, IndexFolder(tmp_path / "index")).train.skipped == COUNTED
    assert (tmp_path / "index" / "train.safetensors").exists()


def test_plan_and_doctor_say_what_is_not_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    home = draw(fill(tmp_path / "x", SCATTERED), [f"{name}/{i}.jfif" for name in "ab" for i in range(5)])
    where = f"{{name: files, path: {home}}}"
    recipe = TINY_PRETRAIN.replace("{name: shapes, train_size: 42, val_size: 20, size: 16}", where)
    (tmp_path / "r.yaml").write_text(recipe, encoding="utf-8")
    output = f"run.output={tmp_path / 'run'}"
    assert main("pretrain", [str(tmp_path / "r.yaml"), output, "--dry-run"]) == 0
    assert f"  skipped    train: {WORDS}" in capsys.readouterr().err
    found = survey(Opened(Files(path=str(home))).train, 4, seed=0, workers=0, timeout=60, seen=lambda _: None)
    facts = split_facts(found, (16, 16), 4)
    assert facts["skipped"] == COUNTED and json.loads(json.dumps(facts)) == facts
    assert ("skipped", WORDS) in list(_pictures(SimpleNamespace(data=Files(path="x")), facts, None))


def test_a_plan_counts_what_fine_tuning_leaves_out_for_want_of_a_label() -> None:
    source = cast(Source, SimpleNamespace(labels=np.array([0, -1, 1, -1, -1]), classes=("a", "b"), boxed=False))
    part = Part(source, np.array([0, 2]))
    assert part.unlabelled == 3 and part.whole is source


# ---------------------------------------------------------------- formats that are not read


@pytest.mark.parametrize(
    ("files", "name", "package"),
    [
        (["a/1.dcm", "a/2.DCM", "a/notes.txt"], "DICOM", "pydicom"),
        (["1.nii.gz", "2.nii"], "NIfTI", "nibabel"),
        (["all.h5"], "HDF5", "h5py"),
        (["a.heic"], "HEIF", "pillow-heif"),
        (["a.jp2"], "JPEG 2000", "pillow"),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_a_format_of_the_field_is_named_with_the_lines_that_convert_it(
    files: list[str], name: str, package: str, packed: bool, tmp_path: Path
) -> None:
    home = fill(tmp_path / "x", files)
    if packed:
        with tarfile.open(tmp_path / "x.tar", "w") as tar:
            tar.add(home, "")
        home = tmp_path / "x.tar"
    with pytest.raises(UserError) as error:
        _ = Opened(Files(path=str(home))).train
    text, *lines = str(error.value).split("\n")
    assert f"{name} is not read. These lines make files that are (pip install {package}):" in text
    assert len(lines) == 3 and compile("\n".join(line.strip() for line in lines), "x", "exec")


def test_dicom_without_an_ending_is_known_by_its_beginning(tmp_path: Path) -> None:
    for name in ("IM0001", "1.2.840.10008"):
        (tmp_path / name).write_bytes(bytes(128) + b"DICM")
    with pytest.raises(UserError, match=r"2 files are not read: 2 without an ending.* DICOM is not read"):
        _ = Opened(Files(path=str(tmp_path))).train
    (tmp_path / "IM0001").unlink()
    (tmp_path / "1.2.840.10008").write_bytes(b"nothing of the kind")
    with pytest.raises(UserError, match=r"npy$"):
        _ = Opened(Files(path=str(tmp_path))).train


def test_the_lines_for_jpeg_2000_make_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not features.check("jpg_2000"):
        pytest.skip("Pillow has no JPEG 2000")
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (16, 16), (1, 2, 3)).save("FILE.jp2")
    lines = next(lines for _, name, _, lines in FOREIGN if name == "JPEG 2000")
    exec(lines, {})
    assert Opened(Files(path=str(tmp_path))).train.image(0).shape == (3, 16, 16)
