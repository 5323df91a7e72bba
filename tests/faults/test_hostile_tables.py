"""Tables that are none, or whose values are beyond reason: a short `UserError` that names row and column."""

from __future__ import annotations

import csv
import time
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from unlabeled.data.archive.rows import LONGEST_LINE
from unlabeled.data.opened import Opened
from unlabeled.data.sources.table import Config as Table
from unlabeled.errors import UserError


def table(path: Path, **fields: str) -> Table:
    return Table(path=str(path), **fields)  # type: ignore[arg-type]


def refused(path: Path, **fields: str) -> str:
    """The message."""
    began = time.process_time()
    with pytest.raises(UserError) as error:
        _ = Opened(table(path, label="label", **fields)).train
    assert len(str(error.value)) < 1500 and "\0" not in str(error.value) and time.process_time() - began < 5
    return str(error.value)


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("a.png,{}".format("7" * 5000), "row 2 has 5,000 characters under 'label', '777"),
        ("a.png,{}".format("x" * 200_000), "row 2 has 200,000 characters under 'label', 'xxx"),
        ("{},cat".format("p" * 200_000), "row 2 has 200,000 characters under 'path', 'ppp"),
        ("a\0.png,cat", r"row 2 has 6 characters under 'path', 'a\\x00.png'; .*without NUL"),
        ("a.png,c\0t", r"row 2 has 3 characters under 'label', 'c\\x00t'"),
        (",cat", "row 2 has nothing under 'path'"),
        ("a.png", "line 3 has 1 values"),
    ],
)
def test_values_beyond_reason_are_named(row: str, said: str, tmp_path: Path) -> None:
    import re

    (tmp_path / "t.csv").write_text(f"path,label\na.png,cat\n{row}\nb.png,dog\n", encoding="utf-8")
    assert re.search(said, refused(tmp_path / "t.csv"))


def test_a_quote_that_is_not_closed(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("w", encoding="utf-8") as file:
        file.write('path,label\na.png,"cat\n')
        file.writelines("b.png,dog, and more to make it long\n" for _ in range(500_000))
    assert "quote that is not closed" in refused(tmp_path / "t.csv")


def test_a_long_value_beside_path_and_label_is_nobodys_trouble(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with (tmp_path / "t.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "outline"), ("a.png", "cat", "1 " * 500_000)])
    source = Opened(table(tmp_path / "t.csv", label="label")).train
    assert source.classes == ("cat",) and source.image(0).shape == (3, 4, 4)


def test_a_file_without_a_line_end(tmp_path: Path) -> None:
    with (tmp_path / "t.csv").open("wb") as file:
        file.truncate(4 * LONGEST_LINE)
    assert "line 1 has more than" in refused(tmp_path / "t.csv")


def test_a_million_columns_and_not_the_one(tmp_path: Path) -> None:
    names = ",".join(f"feature{i}" for i in range(1_000_000))
    (tmp_path / "t.csv").write_text(f"labels,path,{names}\n", encoding="utf-8")
    message = refused(tmp_path / "t.csv")
    assert "no column 'label'; it has 1,000,002 columns, such as 'labels'" in message


def test_a_column_twice(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,label,label\na,b,c\n", encoding="utf-8")
    assert "has the column 'label' 2 times" in refused(tmp_path / "t.csv")


def test_splits_of_any_length_do_not_fill_the_screen(tmp_path: Path) -> None:
    rows = "".join(f"a.png,cat,{str(i) * 2000}\n" for i in range(20))
    (tmp_path / "t.csv").write_text(f"path,label,split\n{rows}", encoding="utf-8")
    assert "has split='train'; found ['000" in refused(tmp_path / "t.csv", split="split")


@pytest.mark.parametrize("data", [b"", b"PAR1", b"PAR1" + bytes(5000) + b"PAR1", b"<html>" * 1000, bytes(100_000)])
def test_parquet_that_is_none(data: bytes, tmp_path: Path) -> None:
    pytest.importorskip("pyarrow")
    (tmp_path / "t.parquet").write_bytes(data)
    assert "is no Parquet file" in refused(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ([b"a", b"caf\xe9"], r"line 2, column 'label' holds b'caf\xe9'"),
        ([[1], [2]], "has lists or mappings under 'label'"),
        ([{"a": 1}, None], "has lists or mappings under 'label'"),
    ],
)
def test_parquet_whose_labels_are_none(labels: list[Any], said: str, tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({"path": ["a.png", "b.png"], "label": labels}), tmp_path / "t.parquet")
    assert said in refused(tmp_path / "t.parquet")


def test_parquet_without_the_column(tmp_path: Path) -> None:
    pyarrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    parquet.write_table(pyarrow.table({f"c{i}": [1] for i in range(2000)}), tmp_path / "t.parquet")
    assert "it has 2,000 columns, such as" in refused(tmp_path / "t.parquet")
