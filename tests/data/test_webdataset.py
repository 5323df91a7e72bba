"""Tars as users of WebDataset have them, and tars of ordinary files whose names have dots; braces, globs and lists."""

from __future__ import annotations

import io
import itertools
import logging
import os
import pickle
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.archive.paths import braces
from unlabeled.data.opened import Opened
from unlabeled.data.sources.arrays import Config as Arrays
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.table import Config as Table
from unlabeled.errors import UserError
from unlabeled.recipe import parse


def picture(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8 + number, 8)).save(buffer, "PNG")
    return buffer.getvalue()


def pack(path: Path, names: list[str], **contents: str) -> Path:
    """A tar; pictures are as wide as their place, other files hold what `contents` have for their last ending."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for place, name in enumerate(names):
            ending = name.rpartition(".")[2].lower()
            data = contents[ending].encode() if ending in contents else picture(place)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def opened(path: Any, **fields: Any) -> Any:
    return Opened(Files(path=str(path) if isinstance(path, Path) else path, **fields)).train


def names(source: Any) -> list[str]:
    return [Path(source.key(i)).name for i in range(len(source))]


def labels_of(source: Any) -> list[str | None]:
    return [source.classes[label] if label >= 0 else None for label in source.labels]


# ---------------------------------------------------------------- samples of several parts


def test_the_parts_of_a_sample_are_one_picture(tmp_path: Path) -> None:
    tar = pack(
        tmp_path / "s.tar", ["000.jpg", "000.mask.png", "000.cls", "001.cls", "001.jpg", "001.mask.png"], cls="7"
    )
    source = opened(tar, labels="cls")
    assert names(source) == ["000.jpg", "001.jpg"] and labels_of(source) == ["7", "7"]
    assert source.skipped == {"other parts of samples": 2} and source.image(1).shape[2] == 8 + 4
    assert names(opened(tar)) == ["000.jpg", "001.jpg"]


@pytest.mark.parametrize("mask", ["mask.png", "MASK.PNG", "seg.tif", "png"])
def test_masks_beside_plain_pictures_are_parts_without_labels_too(mask: str, tmp_path: Path) -> None:
    shards = [[f"{i}/{n:03}.{ending}" for n in range(3) for ending in ("JPG", mask)] for i in range(2)]
    for i, members in enumerate(shards):
        pack(tmp_path / f"s-{i}.tar", members)
    source = opened(tmp_path / "s-*.tar")
    assert names(source) == ["000.JPG", "001.JPG", "002.JPG"] * 2 and source.classes == ("0", "1")
    assert source.skipped == {"other parts of samples": 6}


PLAIN = [
    ["IMG.2021.jpg", "IMG.2022.jpg"],
    ["IMG.jpg", "IMG.1.jpg", "IMG.2.jpg", "other.jpg"],
    ["p1.t1.png", "p1.t2.png", "p2.t1.png", "p2.t2.png"],
    ["a.b/1.png", "a.b/2.png", "a.c/1.png"],
    ["scan.2021-05-01.jpg", "scan.2021-05-02.jpg", "README", "notes.txt", "scan2.json"],
    [".hidden.jpg", "x.jpg", "y.jpg"],
]


@pytest.mark.parametrize("members", PLAIN, ids=lambda members: members[0])
def test_names_with_dots_are_pictures_on_their_own(
    members: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pictures = [name for name in members if name[-4:] in (".jpg", ".png") and not name.startswith(".")]
    with caplog.at_level(logging.WARNING):
        source = opened(pack(tmp_path / "s.tar", members, txt="x", json="{}"))
    assert len(source) == len(pictures) and names(source) == [Path(name).name for name in sorted(pictures)]
    shared = len({name.partition(".")[0] for name in pictures}) < len(pictures) and "/" not in pictures[0]
    assert caplog.text.count("read as pictures on their own") == shared


def test_several_pictures_of_a_labelled_sample_are_said_once_and_can_be_chosen(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    members = [f"{n}.{ending}" for n in range(3) for ending in ("left.jpg", "right.jpg", "cls")]
    tar = pack(tmp_path / "s.tar", members, cls="3")
    for _ in range(2):
        assert names(opened(tar, labels="cls")) == ["0.left.jpg", "1.left.jpg", "2.left.jpg"]
    said = [record.getMessage() for record in caplog.records]
    assert (
        len(said) == 1
        and "3 names up to the first dot have several pictures, such as '0': left.jpg, right.jpg" in said[0]
    )
    assert "read as WebDataset samples" in said[0] and "data.part=ENDING" in said[0]
    assert names(opened(tar, labels="cls", part="RIGHT.jpg")) == ["0.right.jpg", "1.right.jpg", "2.right.jpg"]
    every = opened(tar, labels="cls", part="all")
    assert len(every) == 6 and labels_of(every) == ["3"] * 6
    with pytest.raises(UserError, match=r"no pictures in .* go on with 'middle\.jpg' after the first dot"):
        opened(tar, part="middle.jpg")
    assert len(caplog.records) == 1


def test_the_plainest_part_is_the_picture(tmp_path: Path) -> None:
    tar = pack(
        tmp_path / "s.tar",
        ["0.png", "0.jpg", "0.aaa.jpg", "0.cls", "1.depth.png", "1.cls", "2.b.png", "2.a.png"],
        cls="1",
    )
    assert names(opened(tar, labels="cls")) == ["0.jpg", "1.depth.png", "2.a.png"]


def test_a_part_is_for_tars(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    with pytest.raises(UserError, match=r"data\.part='left\.png' is for tars, .* expected data\.part=all"):
        opened(tmp_path, part="left.png")
    assert len(opened(tmp_path, part="all")) == 1
    with pytest.raises(ValidationError, match="part"):
        Files(path="x", part=".jpg")


# ---------------------------------------------------------------- labels beside pictures


@pytest.mark.parametrize("ending", ["cls", "CLS", "Cls"])
@pytest.mark.parametrize("asked", ["cls", "CLS"])
def test_endings_in_any_case(ending: str, asked: str, tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", ["0.JPG", f"0.{ending}", "1.jpg"], cls="5")
    source = opened(tar, labels=asked)
    assert labels_of(source) == ["5", None] and source.skipped == {}


@pytest.mark.parametrize("content", ["", "\n", "-1", "nan", "null"])
def test_a_label_file_may_hold_nothing(content: str, tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", ["0.jpg", "0.cls", "1.jpg", "1.txt"], cls=content, txt="4")
    assert labels_of(opened(tar, labels="cls")) == [None, None]
    assert labels_of(opened(tar, labels="txt")) == [None, "4"]


@pytest.mark.parametrize(
    ("document", "key", "label"),
    [
        ('{"meta": {"y": 3}}', "meta.y", "3"),
        ('{"meta.y": "a", "meta": {"y": 3}}', "meta.y", "a"),
        ('{"a": {"b": {"c": "deep"}}}', "a.b.c", "deep"),
        ('{"y": null}', "y", None),
        ('{"y": NaN}', "y", None),
        ('{"y": true}', "y", "True"),
    ],
)
def test_json_keys_lead_inwards(document: str, key: str, label: str | None, tmp_path: Path) -> None:
    tar = pack(tmp_path / "s.tar", ["0.jpg", "0.json"], json=document)
    assert labels_of(opened(tar, labels=f"json:{key}")) == [label]


def test_a_json_without_the_key_is_unlabelled_unless_all_are(tmp_path: Path) -> None:
    pack(tmp_path / "s-0.tar", ["0.jpg", "0.json"], json='{"y": 1}')
    pack(tmp_path / "s-1.tar", ["0.jpg", "0.json"], json='{"z": 1, "other": {}}')
    assert labels_of(opened(tmp_path / "s-*.tar", labels="json:y")) == ["1", None]
    with pytest.raises(UserError, match=r"no \.json file has the key 'x'; the first has \['y'\]"):
        opened(tmp_path / "s-*.tar", labels="json:x")
    with pytest.raises(UserError, match="expected a label under 'other', found dict"):
        opened(tmp_path / "s-1.tar", labels="json:other")
    pack(tmp_path / "m.tar", ["0.jpg", "0.meta.json"], json='{"y": 1}')
    assert labels_of(opened(tmp_path / "m.tar", labels="meta.json:y")) == ["1"]


def test_labels_of_names_with_more_dots(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    dotted = [f"IMG.{year}.{ending}" for year in (2021, 2022) for ending in ("jpg", "cls")]
    source = opened(pack(tmp_path / "s.tar", dotted, cls="9"), labels="cls")
    assert names(source) == ["IMG.2021.jpg", "IMG.2022.jpg"] and labels_of(source) == ["9", "9"]
    assert "labels belong to names up to the last dot" in caplog.text
    mixed = opened(pack(tmp_path / "m.tar", [*dotted, "x.jpg", "x.cls"], cls="9"), labels="cls")
    assert labels_of(mixed)[-1] == "9" and "2 .cls files have more dots in their names" in caplog.text


@pytest.mark.parametrize("content", ["x" * 5000, "a\0b", '{"y": ' + "7" * 5000 + "}", "[" * 100_000])
def test_labels_beyond_reason_are_refused(content: str, tmp_path: Path) -> None:
    pack(tmp_path / "s.tar", ["0.jpg", "0.cls", "0.json"], cls=content, json=content)
    for labels, problem in (("cls", "holds a label of"), ("json:y", "holds no y|holds a label of")):
        if labels == "cls" or content.startswith(("{", "[")):
            with pytest.raises(UserError, match=problem) as error:
                opened(tmp_path / "s.tar", labels=labels)
            assert len(str(error.value)) < 1000


def test_two_labels_of_one_picture(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"'0\.cls' is a second label"):
        opened(pack(tmp_path / "s.tar", ["0.jpg", "0.cls", "0.CLS"], cls="1"), labels="cls")


# ---------------------------------------------------------------- braces, globs, lists


@pytest.mark.parametrize(
    ("text", "spelt"),
    [
        ("s-{000..002}.tar", ["s-000.tar", "s-001.tar", "s-002.tar"]),
        ("s-{8..11}", ["s-8", "s-9", "s-10", "s-11"]),
        ("s-{08..11}", ["s-08", "s-09", "s-10", "s-11"]),
        ("{0..6..3}", ["0", "3", "6"]),
        ("{2..0}", ["2", "1", "0"]),
        ("{a,b}{1,2}", ["a1", "a2", "b1", "b2"]),
        ("{a,b{1..2},{c,d}}.tar", ["a.tar", "b1.tar", "b2.tar", "c.tar", "d.tar"]),
        ("{a,}x", ["ax", "x"]),
        ("plain", ["plain"]),
        ("{a}", ["{a}"]),
        ("a{b", ["a{b"]),
        ("{{0..1}}", ["{0}", "{1}"]),
        ("a{b{1,2}", ["a{b1", "a{b2"]),
        ("{" * 3000, ["{" * 3000]),
    ],
)
def test_braces_as_shells_have_them(text: str, spelt: list[str]) -> None:
    assert braces(text) == spelt


def test_braces_name_shards_and_none_may_be_missing(tmp_path: Path) -> None:
    for i in range(3):
        pack(tmp_path / f"s-{i:03}.tar", [f"{i}.jpg"])
    assert names(opened(f"{tmp_path}/s-{{000..002}}.tar")) == ["0.jpg", "1.jpg", "2.jpg"]
    assert names(opened(f"{tmp_path}/s-{{002,000}}.tar")) == ["2.jpg", "0.jpg"]
    with pytest.raises(UserError, match=r"2 of the 5 archives of .* do not exist, the first: .*s-003\.tar"):
        opened(f"{tmp_path}/s-{{000..004}}.tar")
    with pytest.raises(UserError, match=r"spells more than 100,000 names"):
        opened(f"{tmp_path}/s-{{0..99999999999}}.tar")
    pack(tmp_path / "odd{0..1}.tar", ["x.jpg"])
    assert names(opened(tmp_path / "odd{0..1}.tar")) == ["x.jpg"], "a file of that very name comes first"


def test_lists_of_tars_and_globs(tmp_path: Path) -> None:
    for folder, i in itertools.product("ab", range(2)):
        pack(tmp_path / folder / f"{i}.tar", [f"{folder}{i}/x.jpg"])
    source = opened([f"{tmp_path}/b/*.tar", f"{tmp_path}/a/{{0..1}}.tar"])
    assert [Path(source.key(i)).parts[-2] for i in range(4)] == ["b0", "b1", "a0", "a1"]
    assert source.classes == ("a0", "a1", "b0", "b1") and source.labels.tolist() == [2, 3, 0, 1]
    with pytest.raises(UserError, match="is named twice"):
        opened([f"{tmp_path}/b/*.tar", f"{tmp_path}/a/../b/1.tar"])
    with pytest.raises(UserError, match=r"names folders, such as .* and archives"):
        opened([f"{tmp_path}/b", f"{tmp_path}/a/0.tar"])
    with pytest.raises(ValidationError, match="path"):
        Files(path=[])


def folders(home: Path) -> list[str]:
    for root, name in (("one", "cat/1.png"), ("one", "10/2.png"), ("two", "cat/1.png"), ("two", "9/3.png")):
        (home / root / name).parent.mkdir(parents=True, exist_ok=True)
        (home / root / name).write_bytes(picture(int(Path(name).stem)))
    return [str(home / "one"), str(home / "two")]


def test_lists_of_folders(tmp_path: Path) -> None:
    where = folders(tmp_path)
    source = opened(where)
    keys = [os.path.relpath(source.key(i), tmp_path) for i in range(4)]
    assert keys == ["one/10/2.png", "one/cat/1.png", "two/9/3.png", "two/cat/1.png"]
    assert source.classes == ("9", "10", "cat") and source.labels.tolist() == [1, 2, 0, 2]
    again = pickle.loads(pickle.dumps(source))
    assert [again.image(i).shape[2] for i in range(4)] == [10, 9, 11, 9]
    assert names(opened(f"{tmp_path}/*")) == names(source)
    assert opened(where[:1]).fingerprint() == opened(where[0]).fingerprint() != source.fingerprint()
    (tmp_path / "inside").mkdir()
    (tmp_path / "inside" / "link").symlink_to(tmp_path / "two")
    assert len(opened([*where, str(tmp_path / "inside")])) == 4, "a folder is entered once"


def test_a_change_in_any_folder_of_a_list_is_seen(tmp_path: Path) -> None:
    where = folders(tmp_path / "data")

    def found() -> int:
        for path in (tmp_path / "data").rglob("*"):
            os.utime(path, (1e9, 1e9 + len(os.listdir(path)) if path.is_dir() else 1e9))
        config = Files(path=tuple(where))
        return len(Opened(config, IndexFolder(tmp_path / "index")).train)

    assert found() == 4 and found() == 4
    (tmp_path / "data/two/cat/new.png").write_bytes(picture())
    assert found() == 5
    where.pop(0)
    assert found() == 3


def test_a_list_on_the_command_line() -> None:
    from pydantic import BaseModel

    class Recipe(BaseModel, frozen=True, extra="forbid"):
        data: Files

    assert parse(Recipe, "data: {path: x}", ["data.path=[a,b]"]).data.path == ("a", "b")
    assert parse(Recipe, "data: {path: x}", ["data.path=s-{000..012}.tar"]).data.path == "s-{000..012}.tar"


def test_samples_keep_their_labels_when_parts_are_left_out(tmp_path: Path) -> None:
    """Against a naive reading of the same tar."""
    rng = np.random.default_rng(0)
    samples = {f"{n:02}": [f"e{k}.png" for k in range(int(rng.integers(1, 4)))] for n in range(20)}
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        for n, (name, endings) in enumerate(samples.items()):
            for ending, data in [
                *((e, picture(n)) for e in endings),
                *([("cls", str(n % 3).encode())] if n % 4 else []),
            ]:
                info = tarfile.TarInfo(f"{name}.{ending}")
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    source = opened(tmp_path / "s.tar", labels="cls")
    assert labels_of(source) == [str(n % 3) if n % 4 else None for n in range(20)]
    assert [source.image(i).shape[2] for i in range(20)] == [8 + n for n in range(20)]


@pytest.mark.parametrize("names", [["0.png", "1.png"], ["a/0.png", "0.cls"], ["x.y.png", "x.z.cls"]])
def test_labels_of_no_picture_are_said(names: list[str], tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = str(pack(tmp_path / "t.tar", names, cls="3"))
    with caplog.at_level(logging.WARNING):
        source = Opened(Files(path=path, train=".", labels="cls")).train
    assert set(source.labels.tolist()) == {-1}
    found = sum(name.endswith("cls") for name in names)
    assert f"{found} .cls files, none beside a picture of its name" in caplog.text


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: os.symlink("/dev/zero", path)])
def test_what_might_have_no_end_is_not_read(make: Any, tmp_path: Path) -> None:
    make(tmp_path / "x")
    for kind, field in ((Files, "path"), (Table, "path"), (Arrays, "train")):
        with pytest.raises(UserError, match="no plain file"):
            _ = Opened(kind(**{field: str(tmp_path / "x")})).train
