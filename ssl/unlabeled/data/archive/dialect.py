"""How a text table is written: its encoding, what separates its values, which of its columns are wanted."""

from __future__ import annotations

import csv
import difflib
import io
import logging
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

from unlabeled.data.archive.index import EXTENSIONS
from unlabeled.errors import UserError
from unlabeled.recipe.faults import show

Column = str | int
SEPARATORS = {"comma": ",", "semicolon": ";", "tab": "\t", "pipe": "|", "space": " "}
HEAD, ROWS = 1 << 16, 20  # bytes and rows that are looked at before a table is read
LONGEST = 4096  # characters of a path or a label
NEAREST, SEARCHED = 3, 10_000  # names in a message, and names looked through for them
BYTE_ORDER_MARKS = {b"\xff\xfe\0\0": "UTF-32", b"\0\0\xfe\xff": "UTF-32", b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}
log = logging.getLogger(__name__)


@cache
def say_once(text: str) -> None:
    """Log a warning about data once, however often it is met."""
    log.warning("%s", text)


class Dialect(NamedTuple):
    """The columns to read of a table, and how."""

    columns: list[Column]  # wanted, by name or by number from 0; the first holds paths
    header: bool = True  # whether the first line names columns
    separator: str | None = None  # between values; None = find out
    root: bytes = b"."  # folder that the paths are relative to


def separator_named(text: str) -> str:
    """The character that a word such as `semicolon` or `tab` stands for, or a character itself. Raises ValueError when
    it is neither."""
    found = SEPARATORS.get(text, "\t" if text == r"\t" else text)
    if len(found) != 1 or found in '"\r\n\0':
        raise ValueError(f"expected one character or one of {', '.join(SEPARATORS)}, found {text!r}")
    return found


def separator_of(path: str, asked: Dialect) -> str:
    """Find a table's separator: as asked for, else the one that gives the wanted columns in its first lines. It is
    logged unless it is a comma, or a tab in a .tsv. Raises UserError when the table is UTF-16 or UTF-32."""
    with open(path, "rb") as file:
        head = file.read(HEAD)
    _refuse_wide(path, head)
    if asked.separator is not None:
        return asked.separator
    usual = "\t" if Path(path).suffix.lower() == ".tsv" else ","
    text = head.decode("utf-8", "replace").removeprefix("\ufeff")
    rows = {sign: _first_rows(text, sign) for sign in dict.fromkeys([usual, *SEPARATORS.values()])}
    fitting = [sign for sign in rows if _fits(rows[sign], asked)]
    if not fitting and any(isinstance(column, str) for column in asked.columns):
        # a name is wrong: the message lists the columns as a person sees them
        fitting = [sign for sign in rows if sign != " " and len({len(row) for row in rows[sign]}) == 1]
    # file names have blanks in them
    best = max(fitting, key=lambda sign: (sign != " ", len(rows[sign][0])), default=usual)
    if best != usual:
        name = next(name for name, sign in SEPARATORS.items() if sign == best)
        say_once(f"{path}: values are separated by {best!r}, as data.separator={name} says")
    return best


def _first_rows(text: str, separator: str) -> list[list[str]]:
    try:
        rows = [
            row for row, _ in zip(csv.reader(io.StringIO(text), delimiter=separator), range(ROWS + 1), strict=False)
        ]
    except csv.Error:
        return []
    # the last of a cut text may be a part of one
    return [row for row in (rows[:-1] if len(text) >= HEAD or len(rows) > ROWS else rows) if row]


def _fits(rows: list[list[str]], asked: Dialect) -> bool:
    """Whether the first rows have the wanted columns: by name, or by number with image paths in them."""
    names = [column for column in asked.columns if isinstance(column, str)]
    if names:
        return bool(rows) and all(name in rows[0] for name in names)
    image, last = asked.columns[0], max(column for column in asked.columns if isinstance(column, int))
    assert isinstance(image, int)
    rows = rows[1:] if asked.header else rows
    return bool(rows) and all(len(row) == len(rows[0]) > last and _is_path(row[image]) for row in rows)


def _is_path(value: str) -> bool:
    return path_bytes(value).lower().endswith(EXTENSIONS)


def _refuse_wide(path: str, head: bytes) -> None:
    name = next((name for mark, name in BYTE_ORDER_MARKS.items() if head.startswith(mark)), None)
    # Latin letters are every other byte of UTF-16
    few, many = sorted((head[0::2].count(0), head[1::2].count(0)))
    if name is None and many > 0.4 * len(head) / 2 and few < 0.1 * many:
        name = "UTF-16"
    if name is not None:
        raise UserError(f"{path!r} is {name}; expected UTF-8. Save it as UTF-8 (in Excel: CSV UTF-8)")


def refuse_other_encodings(
    path: str, line: int, names: Sequence[Column], row: Sequence[str], root: bytes = b""
) -> None:
    """Raise UserError for a value that is no UTF-8, read with `surrogateescape`. A path may be any bytes that name a
    file."""
    for name, value in zip(names, row, strict=True):
        if value.isascii() or not any("\udc80" <= sign <= "\udcff" for sign in value):
            continue
        data = path_bytes(value)
        if name == names[0] and os.path.lexists(os.path.join(root, data)):
            continue
        raise UserError(
            f"{path!r}: line {line}, column {show(name)} holds {data[:80]!r}, which is no UTF-8; as Windows-1252 it "
            f"would be {show(data.decode('cp1252', 'replace'))}. Save the table as UTF-8 (in Excel: CSV UTF-8)"
        )


def path_bytes(text: str) -> bytes:
    """A path of a table as the file system has it, whatever the locale."""
    return text.encode("utf-8", "surrogateescape")


def places(path: str, first: list[str], asked: Dialect) -> list[int]:
    """Find the positions of the wanted columns in the first row of a table, or among the names of its columns. Raises
    UserError when there is no such column, or it is there twice."""
    return [_place(path, first, column, asked.header) for column in asked.columns]


def _place(path: str, first: list[str], column: Column, header: bool) -> int:
    number = int(column) if isinstance(column, int) or (not header and column.isdecimal()) else None
    if number is not None:
        if 0 <= number < len(first):
            return number
        raise UserError(f"{path!r} has no column {number}; it has {_listed(first)}. Choose one of these.")
    if not header:
        raise UserError(
            f"{path!r} has no header (data.header=false), so columns have numbers, found {show(column)}; it has "
            f"{_listed(first)}. Set data.image, data.label and data.split to numbers"
        )
    if first.count(str(column)) > 1:
        raise UserError(f"{path!r} has the column {show(column)} {first.count(str(column))} times; expected it once.")
    if column not in first:
        refuse_other_encodings(path, 1, list(first), first)
        raise UserError(
            f"{path!r} has no column {show(column)}; it has {some_of(first, str(column))}. {_mend(first, column)}"
        )
    return first.index(str(column))


def _mend(first: list[str], column: Column) -> str:
    if any(map(_is_path, first)):
        return f"If its first line is a row already, {_listed(first)}, set data.header=false data.image=0 data.label=1"
    share = "data.split=0.2 data.val=null holds out a fifth of each class (evaluate and ladder: --set data.split=0.2)"
    unsplit = f" If no column tells splits apart, {share}." if column == "split" else ""
    return f"Set data.image, data.label and data.split to its columns, by name or by number from 0.{unsplit}"


def _listed(first: list[str]) -> str:
    """Columns by their numbers, with what the first line has in them."""
    shown = ", ".join(f"{number} {show(value)}" for number, value in enumerate(first[: 2 * NEAREST]))
    more = ", ..." if len(first) > 2 * NEAREST else ""
    return f"{len(first):,} column{'s' if len(first) > 1 else ''}: {shown}{more}"


def some_of(names: list[str], wanted: str) -> str:
    """Names for a message: all where they are few, else the nearest to the one that is wanted."""
    if len(names) <= 2 * NEAREST:
        return f"[{', '.join(map(show, names))}]"
    near = difflib.get_close_matches(wanted, [name for name in names[:SEARCHED] if len(name) < LONGEST], NEAREST, 0)
    return f"{len(names):,} columns, such as {', '.join(map(show, near))}"
