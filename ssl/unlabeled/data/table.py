"""Pictures that a table lists: a CSV, TSV or Parquet file of paths, with labels and splits if it has them."""

from __future__ import annotations

import csv
import difflib
import json
import os
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal, TextIO

from pydantic import Field, model_validator

from unlabeled.data.index import IndexBuilder, file_size
from unlabeled.data.labels import numbered
from unlabeled.data.listing import Asked, Listing, Stamp, kept
from unlabeled.data.source import EncodedConfig, Split
from unlabeled.data.sources import Folder, Pictures
from unlabeled.data.tar import local_identity
from unlabeled.errors import UserError, first_line
from unlabeled.recipe.faults import show

Row = tuple[str, ...]
PARQUET = (".parquet", ".pq")

LONGEST = 4096  # characters of a path or a label
LONGEST_OTHER = 16 << 20  # of any value beside them
LONGEST_LINE = 64 << 20
NEAREST, SEARCHED = 3, 10_000  # names in a message, and names looked through for them


class Table(EncodedConfig):
    """A row per picture, in the table's order. Any value may be a label; empty ones are unknown."""

    what_val_is: ClassVar[str] = "the value of `split` in labelled rows, such as data.split=split data.val=test"

    name: Literal["table"] = "table"
    path: str = Field(min_length=1, description="a .csv, .tsv or .parquet with a row per picture")
    root: str | None = Field(None, description="folder that the paths are relative to; null = the table's own")
    image: str = Field("path", description="column of the pictures' paths")
    label: str | None = Field(None, description="column of the labels; null = unlabelled")
    split: str | None = Field(None, description="column that tells splits apart; null = all rows are trained on")
    train: str = Field("train", description="value of `split` in the rows to train on")
    val: str | None = Field(None, description="value of `split` in the labelled rows to evaluate on; null = none")

    @model_validator(mode="after")
    def _val_has_a_column(self) -> Table:
        if self.val is not None and self.split is None:
            raise ValueError(f"val={self.val!r} is a value of the column `split`, which is null: expected its name")
        return self

    def source(self, split: Split) -> Pictures:
        """Its rows of one split."""
        path, root = os.path.expanduser(self.path), os.fsencode(self._root)
        text = json.dumps([path, self._root, self.image, self.label, self.split, self._wanted(split), self.order])
        asked = {split: Asked(text, partial(_changed, path))}
        listings = kept(self._index_folder, asked, lambda: {split: self._scan(split)}, self._index_written)
        return Pictures(Folder(root), listings[split], self.target)

    @property
    def _root(self) -> str:
        return os.path.expanduser(self.root or os.path.dirname(self.path) or ".")

    def _wanted(self, split: Split) -> str | None:
        return None if self.split is None else self.train if split == "train" else self.val

    def _scan(self, split: Split) -> Listing:
        wanted, root = self._wanted(split), os.fsencode(self._root)
        stamp = _stamp(os.path.expanduser(self.path))
        columns = [self.image, *(name for name in (self.label, self.split) if name is not None)]
        builder, labels, values = IndexBuilder(), [], set()
        # rows are read for each split anew: millions of them would stay as Python objects otherwise
        for path, *rest in _read(os.path.expanduser(self.path), columns):
            if wanted is None or rest[-1] == wanted:
                name = os.fsencode(path)
                builder.add(name, file_size(os.path.join(root, name)) or 0)
                labels.append(rest[0] if self.label else "")
            elif not labels:
                values.add(rest[-1])
        if not labels:
            found = f"[{', '.join(map(show, sorted(values)[:10]))}]" if values else "no rows"
            raise UserError(f"no row of {self.path!r} has {self.split}={wanted!r}; found {found}")
        return Listing.of(builder.build(), *numbered(labels, self.order), (stamp,), named=True)


def _stamp(path: str) -> Stamp:
    try:
        return Stamp(path, *local_identity(path))
    except OSError as error:
        raise UserError(f"data.path={path!r} cannot be read: {error.strerror or error}") from error


def _changed(path: str, listing: Listing) -> str | None:
    return None if (_stamp(path),) == listing.files else path


def _read(path: str, columns: list[str]) -> Iterator[Row]:
    """Those columns of a table, as text.

    Raises:
        UserError: it cannot be read, lacks a column, or a row has no path.
    """
    try:
        read = _parquet if path.lower().endswith(PARQUET) else _csv
        for number, row in enumerate(read(path, columns), 1):
            if not row[0]:
                raise UserError(f"{path!r}: row {number} has nothing under {columns[0]!r}; expected a path")
            if odd := next((pair for pair in zip(columns, row, strict=True) if _is_odd(pair[1])), None):
                raise UserError(
                    f"{path!r}: row {number} has {len(odd[1]):,} characters under {odd[0]!r}, {show(odd[1])}; expected "
                    f"a path or a label of at most {LONGEST:,}, without NUL"
                )
            yield row
    except OSError as error:
        raise UserError(f"data.path={path!r} cannot be read: {error.strerror or error}") from error


def _csv(path: str, columns: list[str]) -> Iterator[Row]:
    delimiter = "\t" if Path(path).suffix.lower() == ".tsv" else ","
    # a byte order mark, which spreadsheets write, is no part of the first name
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(_lines(path, file), delimiter=delimiter)
        rows = _rows(path, reader)
        places = _places(path, next(rows, []), columns)
        for row in rows:
            if row:
                if len(row) <= max(places):
                    raise UserError(f"{path!r}: line {reader.line_num} has {len(row)} values, expected more. Mend it.")
                yield tuple(row[place] for place in places)


def _is_odd(value: str) -> bool:
    return len(value) > LONGEST or "\0" in value


def _lines(path: str, file: TextIO) -> Iterator[str]:
    """The lines of a text file, which may be no text at all and end nowhere."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError(f"{path!r}: line {number} has more than {LONGEST_LINE:,} characters; expected a CSV")
        yield line


def _rows(path: str, reader: Any) -> Iterator[list[str]]:
    """The rows of a CSV reader."""
    csv.field_size_limit(LONGEST_OTHER)
    try:
        yield from reader
    except csv.Error as error:
        raise UserError(
            f"{path!r}: line {reader.line_num} cannot be read: {error}. Look for a quote that is not closed before it"
        ) from error


def _parquet(path: str, columns: list[str]) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install 'unlabeled[data]', or give a CSV") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        _places(path, file.schema_arrow.names, columns)
        for batch in file.iter_batches(columns=columns):
            values = (["" if v is None else str(v) for v in batch.column(name).to_pylist()] for name in columns)
            yield from zip(*values, strict=True)
    except (pyarrow.ArrowException, ArithmeticError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # not pyarrow's, the disk's
            raise
        raise UserError(f"data.path={path!r} is no Parquet file: {show(first_line(error), 200)}") from error


def _places(path: str, found: list[str], columns: list[str]) -> list[int]:
    if missing := [name for name in columns if name not in found]:
        raise UserError(
            f"{path!r} has no column {', '.join(map(show, missing))}; it has {_some_of(found, missing[0])}. "
            "Set data.image, data.label and data.split to its columns."
        )
    if twice := [name for name in columns if found.count(name) > 1]:
        raise UserError(f"{path!r} has the column {show(twice[0])} {found.count(twice[0])} times; expected it once.")
    return [found.index(name) for name in columns]


def _some_of(names: list[str], wanted: str) -> str:
    """Names for a message: all where they are few, else the nearest to the one that is wanted."""
    if len(names) <= 2 * NEAREST:
        return f"[{', '.join(map(show, names))}]"
    near = difflib.get_close_matches(wanted, [name for name in names[:SEARCHED] if len(name) < LONGEST], NEAREST, 0)
    return f"{len(names):,} columns, such as {', '.join(map(show, near))}"
