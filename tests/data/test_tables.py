"""How tables are written: encodings, separators, columns by number."""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from pydantic import ValidationError

from unlabeled.data.opened import Opened
from unlabeled.data.sources.table import Config as Table
from unlabeled.errors import UserError

CLASSES = {0: "chat", 1: "café", 2: "10"}


def fill(folder: Path, names: tuple[str | bytes, ...] = ("a.png", "b c.png", "d.png")) -> None:
    for number, name in enumerate(names):
        with open(os.path.join(os.fsencode(folder), os.fsencode(name)), "wb") as file:
            Image.new("RGB", (8 + number, 8)).save(file, "PNG")


def opened(folder: Path, text: str | bytes, **fields: Any) -> Any:
    data = text if isinstance(text, bytes) else text.encode()
    (folder / "t.csv").write_bytes(data)
    return Opened(Table(path=str(folder / "t.csv"), **fields)).train


def labels_of(source: Any) -> list[str]:
    return [source.classes[label] for label in source.labels]


# ---------------------------------------------------------------- separators


@pytest.mark.parametrize(
    ("separator", "name"), [(",", ""), (";", "semicolon"), ("\t", "tab"), ("|", "pipe"), (" ", "space")]
)
@pytest.mark.parametrize("header", [True, False])
def test_separators_are_found_and_said(
    separator: str, name: str, header: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    fill(tmp_path, ("a.png", "b.png", "d.png"))
    rows = [["path", "note", "kind"]] * header + [["a.png", "1,5", "x"], ["b.png", "2,5", "y"], ["d.png", "3", "x"]]
    if separator == ",":
        rows = [[value.replace(",", ".") for value in row] for row in rows]
    columns = {"label": "kind"} if header else {"header": False, "image": 0, "label": 2}
    with caplog.at_level(logging.WARNING):
        source = opened(tmp_path, "\n".join(map(separator.join, rows)), **columns)
    assert labels_of(source) == ["x", "y", "x"] and source.image(1).shape == (3, 8, 9)
    assert (f"data.separator={name} says" in caplog.text) == bool(name)


def test_a_separator_that_is_given_is_not_looked_for(tmp_path: Path) -> None:
    fill(tmp_path)
    source = opened(tmp_path, "path~kind\na.png~x;y\nb c.png~z\n", separator="~", label="kind")
    assert labels_of(source) == ["x;y", "z"]
    source = opened(tmp_path, "path|kind\na.png|x\n", separator="pipe", label="kind")
    assert labels_of(source) == ["x"]
    with pytest.raises(UserError, match=r"no column 'path'; it has \['path\|kind'\]"):
        opened(tmp_path, "path|kind\na.png|x\n", separator="tab", label="kind")
    for wrong in ("", "::", '"'):
        with pytest.raises(ValidationError, match="separator"):
            Table(path="t.csv", separator=wrong)


@pytest.mark.parametrize("rows", ["path;art;teil\na b.png;x;train\n", "\ufeffpath\tart\tteil\r\na b.png\tx\ty\r\n"])
def test_a_wrong_column_is_named_beside_the_columns_that_are_there(rows: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no column 'kind'; it has \['path', 'art', 'teil'\]"):
        opened(tmp_path, rows, label="kind")


def test_a_column_of_paths_alone_with_blanks_in_them(tmp_path: Path) -> None:
    fill(tmp_path)
    for header in ("path\n", ""):
        source = opened(tmp_path, f"{header}b c.png\n", header=bool(header), image="path" if header else 0)
        assert source.image(0).shape == (3, 8, 9)


# ---------------------------------------------------------------- columns by number


def test_columns_by_number(tmp_path: Path) -> None:
    fill(tmp_path)
    rows = "a.png,x,train\nb c.png,y,train\nd.png,x,test\n"
    fields: dict[str, Any] = {"image": 0, "label": 1, "split": 2, "val": "test"}
    source = opened(tmp_path, rows, header=False, **fields)
    assert (
        labels_of(source) == ["x", "y"]
        and len(Opened(Table(path=str(tmp_path / "t.csv"), header=False, **fields)).val) == 1
    )
    source = opened(tmp_path, f"path,kind,part\n{rows}", image="path", label=1)
    assert labels_of(source) == ["x", "y", "x"]
    pyarrow = pytest.importorskip("pyarrow")
    table = pyarrow.table({"p": ["a.png", "d.png"], "y": ["u", "v"]})
    __import__("pyarrow.parquet").parquet.write_table(table, tmp_path / "t.parquet")
    assert labels_of(Opened(Table(path=str(tmp_path / "t.parquet"), image=0, label=1)).train) == ["u", "v"]


def test_messages_name_the_fields_and_the_columns(tmp_path: Path) -> None:
    rows = "a.png,x\nd.png,y\n"
    with pytest.raises(
        UserError, match=r"a row already, 2 columns: 0 'a\.png', 1 'x', set data\.header=false data\.image=0"
    ):
        opened(tmp_path, rows, label=1)
    with pytest.raises(UserError, match=r"columns have numbers, found 'path'; it has 2 columns: 0 'a\.png', 1 'x'"):
        opened(tmp_path, rows, header=False)
    with pytest.raises(UserError, match="no column 2; it has 2 columns"):
        opened(tmp_path, rows, header=False, image=0, label=2)
    with pytest.raises(UserError, match=r"\['file', 'kind'\]\. Set data\.image, .* by name or by number"):
        opened(tmp_path, "file,kind\na.png,x\n")
    with pytest.raises(ValidationError, match="label"):
        Table(path="t.csv", label=-1)


# ---------------------------------------------------------------- encodings


def test_a_table_in_another_encoding_is_refused_by_line_column_and_value(tmp_path: Path) -> None:
    fill(tmp_path, ("a.png", "é.png"))
    rows = "path;kind\na.png;chat\na.png;café\n"
    with pytest.raises(
        UserError, match=r"line 3, column 'kind' holds b'caf.xe9', .*Windows-1252 it would be 'café'.*as UTF-8"
    ):
        opened(tmp_path, rows.encode("cp1252"), label="kind")
    with pytest.raises(UserError, match=r"line 3, column 1 holds"):
        opened(tmp_path, rows.encode("cp1252"), label=1)
    with pytest.raises(UserError, match=r"line 2, column 'path' holds b'.xe9\.png'"):
        opened(tmp_path, "path,kind\né.png,x\n".encode("cp1252"))
    with pytest.raises(UserError, match=r"line 1, column .* would be 'légende'"):
        opened(tmp_path, "path,légende\na.png,x\n".encode("cp1252"), label="légende")
    # of other columns nothing is read
    assert len(opened(tmp_path, "path,note\na.png,é\n".encode("cp1252"))) == 1


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_wide_encodings_are_named(encoding: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"is {encoding[:6].upper()}; expected UTF-8"):
        opened(tmp_path, "path,kind\na.png,x\n".encode(encoding), label="kind")


def test_utf8_is_read_with_and_without_its_mark(tmp_path: Path) -> None:
    fill(tmp_path, ("é.png",))
    for mark in ("", "\ufeff"):
        source = opened(tmp_path, f"{mark}path;kind\né.png;café\n", label="kind")
        assert labels_of(source) == ["café"] and source.image(0).shape == (3, 8, 8)


def test_a_path_may_be_any_bytes_that_name_a_file(tmp_path: Path) -> None:
    fill(tmp_path, (b"caf\xe9.png",))
    source = opened(tmp_path, b"path,kind\ncaf\xe9.png,x\n", label="kind")
    assert source.image(0).shape == (3, 8, 8) and source.key(0).endswith(r"caf\xe9.png")


# ---------------------------------------------------------------- rows


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is empty"),
        ("\ufeff", "is empty"),
        ("\n\r\n\n", "is empty"),
        ("path,kind\n", "has no rows below its columns"),
        ('path,kind\na.png,"x\nb c.png,y\nd.png,x\n', "line 4 cannot be read: unexpected end of data"),
    ],
)
def test_tables_without_rows_or_with_half_of_one(text: str, said: str, tmp_path: Path) -> None:
    fill(tmp_path)
    with pytest.raises(UserError, match=said):
        opened(tmp_path, text, label="kind")


def test_blanks_around_a_split_lose_no_row(tmp_path: Path) -> None:
    fill(tmp_path)
    source = opened(
        tmp_path, "path,kind,part\na.png,x, train\nb c.png,y,train \nd.png,x,test", label="kind", split="part"
    )
    assert labels_of(source) == ["x", "y"]
