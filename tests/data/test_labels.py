"""Labels that are missing, the order of classes, and a file that pins it: alike in every kind of source."""

from __future__ import annotations

import io
import json
import math
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictured import pack
from PIL import Image

from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.archive.prepare import Settings, prepare
from unlabeled.data.label.labels import (
    MISSING,
    MISSING_IN_ANY_CASE,
    is_missing,
    natural,
    numbered,
    read_classes,
    renumbered,
)
from unlabeled.data.opened import Opened
from unlabeled.data.source import SourceConfig
from unlabeled.data.sources.arrays import Config as Arrays
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.data.sources.table import Config as Table
from unlabeled.data.sources.torchvision import TorchVisionSource
from unlabeled.errors import UserError
from unlabeled.recipe.free import is_free
from unlabeled.sharing.shards import Sharing
from unlabeled.stages.finetune import FinetuneRecipe

ABSENT = [
    -1,
    "-1",
    -1.0,
    float("nan"),
    None,
    "nan",
    "NaN",
    "NAN",
    "NA",
    "None",
    "null",
    "NULL",
    "",
    "  ",
    "<NA>",
    "n/a",
]


@pytest.mark.parametrize("label", [*ABSENT, np.float32("nan"), np.int64(-1), b"NaN", "\t"])
def test_what_is_missing(label: Any) -> None:
    assert is_missing(label)


@pytest.mark.parametrize("label", [0, 1.0, -2, False, "0", "none", "na", "Nancy", "nullable", "x", "-", "11", "-10"])
def test_what_is_a_label(label: Any) -> None:
    assert not is_missing(label)


@pytest.mark.parametrize(
    ("labels", "names", "numbers"),
    [
        (["b", "a", "b", ""], ("a", "b"), [1, 0, 1, -1]),
        ([10, 9, None, 10], ("9", "10"), [1, 0, -1, 1]),
        (["10", "9", "x"], ("9", "10", "x"), [1, 0, 2]),
        ([None, math.nan], (), [-1, -1]),
        ([np.float32(1), 1, "2"], ("1", "2"), [0, 0, 1]),
        ([-1, 2], ("2",), [-1, 0]),
        ([2.0, math.nan, 0.5, 10.0], ("0.5", "2", "10"), [1, -1, 0, 2]),
        ([" cat", "cat ", "cat"], ("cat",), [0, 0, 0]),
        (["cafe\u0301", "caf\u00e9"], ("caf\u00e9",), [0, 0]),
    ],
)
def test_labels_of_any_type_are_numbered(labels: list[Any], names: tuple[str, ...], numbers: list[int]) -> None:
    found, ids = numbered(labels)
    assert found == names and ids.tolist() == numbers and ids.dtype == np.int64


ORDERED = ["-10", "-9", "0", "1", "01", "02", "2", "2b", "10", "٣٣", "100", "A", "a1b2", "a1b10", "a2", "a10", "b", "é"]


def test_natural_order_is_total_and_takes_numbers_by_value() -> None:
    assert sorted(random.Random(0).sample(ORDERED, len(ORDERED)), key=natural) == [
        "-10", "-9", "0", "01", "1", "02", "2", "2b", "10", "٣٣", "100", "A", "a1b2", "a1b10", "a2", "a10", "b", "é",
    ]  # fmt: skip
    assert sorted(["9" * 5000, "1" + "0" * 5000, "8" * 5000], key=natural)[-1] == "1" + "0" * 5000
    words = ["".join(random.Random(i).choices("a-01٣²9", k=3)) for i in range(300)]
    for one, other in zip(words, reversed(words), strict=True):
        assert one == other or (natural(one) < natural(other)) != (natural(other) < natural(one))


# ---------------------------------------------------------------- the same labels in every kind of source

NAMES = ["10", "9", "1", "2", "0", "10"]
NATURAL, NUMBERS = ("0", "1", "2", "9", "10"), [4, 3, 1, 2, 0, 4]


def picture(number: int = 0) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (number, 0, 0)).save(buffer, "PNG")
    return buffer.getvalue()


def folder(home: Path, names: list[Any]) -> SourceConfig:
    for place, name in enumerate(names):
        (home / "f" / str(name)).mkdir(parents=True, exist_ok=True)
        (home / "f" / str(name) / f"{place}.png").write_bytes(picture())
    return Files(path=str(home / "f"))


def tar(home: Path, names: list[Any]) -> SourceConfig:
    return Files(path=str(pack(home / "t.tar", {f"{name}/{place}.png": picture() for place, name in enumerate(names)})))


def cls(home: Path, names: list[Any]) -> SourceConfig:
    members = {f"{place}.png": picture() for place in range(len(names))}
    beside = {f"{place}.cls": str(name).encode() for place, name in enumerate(names) if name is not None}
    return Files(path=str(pack(home / "c.tar", {**members, **beside})), labels="cls")


def json_beside(home: Path, names: list[Any]) -> SourceConfig:
    members = {f"{place}.png": picture() for place in range(len(names))}
    beside = {f"{place}.json": json.dumps({"y": name}).encode() for place, name in enumerate(names)}
    return Files(path=str(pack(home / "j.tar", {**members, **beside})), labels="json:y")


def csv(home: Path, names: list[Any]) -> SourceConfig:
    rows = [f"{place}.png,{'' if name is None else name}" for place, name in enumerate(names)]
    (home / "t.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return Table(path=str(home / "t.csv"), label="label")


def parquet(home: Path, names: list[Any]) -> SourceConfig:
    pyarrow = pytest.importorskip("pyarrow")
    paths = [f"{place}.png" for place in range(len(names))]
    __import__("pyarrow.parquet").parquet.write_table(pyarrow.table({"path": paths, "label": names}), home / "t.pq")
    return Table(path=str(home / "t.pq"), label="label")


def arrays(home: Path, names: list[Any]) -> SourceConfig:
    np.save(home / "x.npy", np.zeros((len(names), 8, 8, 3), np.uint8))
    values = [math.nan if name is None else name for name in names]
    np.save(home / "y.npy", np.array(values))
    return Arrays(train=str(home / "x.npy"), train_labels=str(home / "y.npy"))


def hugging_face(home: Path, names: list[Any]) -> SourceConfig:
    datasets = pytest.importorskip("datasets")
    from unlabeled.data.sources.huggingface import Config as HuggingFace

    cells = [{"bytes": picture(), "path": None} for _ in names]
    rows = datasets.Dataset.from_dict({"image": cells, "label": names})
    datasets.DatasetDict({"train": rows}).save_to_disk(home / "saved")
    return HuggingFace(path=str(home / "saved"), label="label")


def mixture(home: Path, names: list[Any]) -> SourceConfig:
    (home / "a").mkdir()
    return Mixture(sources=(csv(home / "a", names[:3]), json_beside(home, names[3:])))  # type: ignore[arg-type]


Make = Callable[[Path, list[Any]], SourceConfig]
KINDS: list[Make] = [folder, tar, cls, json_beside, csv, parquet, arrays, hugging_face, mixture]


def named(config: SourceConfig) -> list[str | None]:
    """The class of every picture, in no order of the pictures."""
    source = Opened(config).train
    return sorted((source.classes[label] if label >= 0 else None for label in source.labels), key=str)


@pytest.mark.parametrize("kind", KINDS)
def test_classes_are_in_natural_order_in_every_source(kind: Make, tmp_path: Path) -> None:
    source = Opened(kind(tmp_path, NAMES)).train
    assert source.classes == NATURAL and sorted(source.labels) == sorted(NUMBERS)
    if kind not in (folder, tar):
        assert source.labels.tolist() == NUMBERS


@pytest.mark.parametrize("absent", [None, -1, "-1", "nan", "NA", "None", "null", ""], ids=repr)
@pytest.mark.parametrize("kind", [cls, json_beside, csv, parquet, arrays, hugging_face, mixture])
def test_missing_labels_are_missing_in_every_source(kind: Make, absent: Any, tmp_path: Path) -> None:
    given = [5, absent, 12, absent, 5, 12]
    if isinstance(absent, str):  # columns of Parquet and arrays have one type
        given = list(map(str, given))
    source = Opened(kind(tmp_path, given)).train
    assert source.classes == ("5", "12")
    assert source.labels.tolist() == [0, -1, 1, -1, 0, 1]


@pytest.mark.parametrize("kind", [folder, tar])
def test_a_folder_of_that_name_labels_nothing_unless_a_file_lists_it(kind: Make, tmp_path: Path) -> None:
    config = kind(tmp_path, ["cat", "nan", "dog"])
    assert named(config) == [None, "cat", "dog"]
    (tmp_path / "classes.txt").write_text("nan\ncat\ndog\n", encoding="utf-8")
    pinned = config.model_copy(update={"classes": str(tmp_path / "classes.txt")})
    pinned = type(config).model_validate(pinned.model_dump())
    assert named(pinned) == ["cat", "dog", "nan"] and Opened(pinned).train.classes == ("nan", "cat", "dog")


PINNED = "﻿2\r\n0\n\n10 \n1\n9\nnever\n"


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_pins_another_order_and_the_fingerprint_knows(kind: Make, tmp_path: Path) -> None:
    plain = kind(tmp_path, NAMES)
    (tmp_path / "classes.txt").write_text(PINNED, encoding="utf-8")
    pinned = type(plain).model_validate(plain.model_dump() | {"classes": str(tmp_path / "classes.txt")})
    assert Opened(pinned).train.classes == ("2", "0", "10", "1", "9", "never")
    assert named(pinned) == named(plain)
    assert Opened(pinned).train.fingerprint() != Opened(plain).train.fingerprint()
    (tmp_path / "short.txt").write_text("0\n1\n10\n", encoding="utf-8")
    short = type(plain).model_validate(plain.model_dump() | {"classes": str(tmp_path / "short.txt")})
    with pytest.raises(UserError, match=r"data\.classes lacks ('2', '9'|'9'|'2'), which label pictures; it lists 3"):
        _ = Opened(short).train


def test_the_order_of_a_cache_is_that_of_the_file_when_it_is_opened(tmp_path: Path) -> None:
    config = folder(tmp_path, NAMES)
    (tmp_path / "cache").mkdir()
    list(prepare(config, tmp_path / "cache", Settings(short_side=16), Sharing()))
    cached = {"cache": str(tmp_path / "cache")}
    plain = Files.model_validate(config.model_dump() | cached)
    (tmp_path / "classes.txt").write_text(PINNED, encoding="utf-8")
    pinned = Files.model_validate(config.model_dump() | cached | {"classes": str(tmp_path / "classes.txt")})
    assert Opened(plain).train.classes == NATURAL and Opened(pinned).train.classes[0] == "2"
    assert named(plain) == named(pinned) and Opened(plain).train.fingerprint() != Opened(pinned).train.fingerprint()
    assert is_free(FinetuneRecipe, "data.classes")


def test_a_kept_index_answers_for_its_own_classes(tmp_path: Path) -> None:
    import os

    config = folder(tmp_path, NAMES)
    for path in [tmp_path / "f", *(tmp_path / "f").rglob("*")]:
        os.utime(path, (1e9, 1e9))
    (tmp_path / "classes.txt").write_text(PINNED, encoding="utf-8")
    for classes, first in ((None, "0"), (str(tmp_path / "classes.txt"), "2"), (None, "0")):
        again = Files.model_validate(config.model_dump() | {"classes": classes})
        assert Opened(again, IndexFolder(tmp_path / "index")).train.classes[0] == first
    assert (tmp_path / "index" / "train.safetensors").exists()


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"a\nb\na\n", "has 'a' twice"),
        ("café\ncafé\n".encode(), "has 'café' twice"),
        (b"\n \n", "is empty"),
        (b"caf\xe9\n", "no UTF-8 at byte 3"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_of_classes_that_cannot_be_used(content: bytes | None, problem: str, tmp_path: Path) -> None:
    if content is not None:
        (tmp_path / "c.txt").write_bytes(content)
    with pytest.raises(UserError, match=re.escape(problem)):
        read_classes(str(tmp_path / "c.txt"))


def test_a_data_sets_own_order_is_kept_unless_it_is_the_alphabets() -> None:
    labels = np.array([0, 2, -1, 1])
    assert renumbered(["dog", "cat", "ant"], labels)[0] == ("dog", "cat", "ant")
    classes, numbers = renumbered(["1", "10", "2"], labels)
    assert classes == ("1", "2", "10") and numbers.tolist() == [0, 1, -1, 2]
    classes, numbers = renumbered(["dog", "cat", "unused"], np.array([0, 1]), ("cat", "dog"))
    assert classes == ("cat", "dog") and numbers.tolist() == [1, 0]


def test_torchvisions_unlabelled_pictures_make_no_class() -> None:
    from types import SimpleNamespace

    class Some(SimpleNamespace):
        def __len__(self) -> int:
            return 3

    source = TorchVisionSource(Some(labels=np.array([1, -1, 0]), classes=["plane", "bird"]), "x", None)  # type: ignore[arg-type]
    assert source.classes == ("plane", "bird") and source.labels.tolist() == [1, -1, 0]
    source = TorchVisionSource(Some(labels=np.array([-1, -1, -1])), "x", None)  # type: ignore[arg-type]
    assert source.classes == () and source.labels.tolist() == [-1, -1, -1]


def test_the_documentation_lists_what_is_missing() -> None:
    page = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
    assert all(f"`{spelling}`" in page for spelling in MISSING | MISSING_IN_ANY_CASE if spelling)
