"""Pictures that a table lists: a CSV, TSV or Parquet file of paths, with labels and splits if it has them."""

from __future__ import annotations

import csv
import itertools
import os
from collections.abc import Iterator
from functools import partial
from typing import Any, ClassVar, Literal, TextIO

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from unlabeled.data.archive.dialect import (
    LONGEST,
    Dialect,
    path_bytes,
    places,
    refuse_other_encodings,
    separator_named,
    separator_of,
)
from unlabeled.data.archive.index import IndexBuilder, file_size
from unlabeled.data.archive.listing import CacheKey, IndexFolder, Listing, Split, Stamp
from unlabeled.data.archive.tar import local_identity
from unlabeled.data.label.labels import numbered
from unlabeled.data.source import EncodedConfig
from unlabeled.data.sources.files import Folder, Pictures
from unlabeled.errors import UserError, first_line
from unlabeled.paths import UserPath
from unlabeled.recipe.faults import show

Row = tuple[str, ...]
PARQUET = (".parquet", ".pq")

LONGEST_OTHER = 16 << 20  # of any value beside them
LONGEST_LINE = 64 << 20


class Table(EncodedConfig):
    """A row per picture, in the table's order. Any value may be a label; empty ones are unknown."""

    what_val_is: ClassVar[str] = "the value of `split` in labelled rows, such as data.split=split data.val=test"

    name: Literal["table"] = "table"
    path: UserPath = Field(description="a .csv, .tsv or .parquet with a row per picture")
    root: UserPath | None = Field(None, description="folder that the paths are relative to; null = the table's own")
    header: bool = Field(True, description="whether the first line names the columns; if not, they have numbers from 0")
    separator: str | None = Field(
        None,
        description="between values: a character, or comma, semicolon, tab, pipe or space; null = what makes the "
        "columns of the first lines",
    )
    image: str | NonNegativeInt = Field("path", description="column of the pictures' paths, by name or number")
    label: str | NonNegativeInt | None = Field(None, description="column of the labels; null = unlabelled")
    split: str | NonNegativeInt | None = Field(
        None, description="column that tells splits apart; null = all rows are trained on"
    )
    train: str = Field("train", description="value of `split` in the rows to train on")
    val: str | None = Field(None, description="value of `split` in the labelled rows to evaluate on; null = none")

    @field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        return None if separator is None else separator_named(separator)

    @model_validator(mode="after")
    def _val_has_a_column(self) -> Table:
        if self.val is not None and self.split is None:
            raise ValueError(f"val={self.val!r} is a value of the column `split`, which is null: expected its name")
        return self

    def source(self, split: Split, index: IndexFolder) -> Pictures:
        """Its rows of one split."""
        path, root = self.path, os.fsencode(self._root)
        text = repr([path, self._dialect, self._wanted(split), self.order])
        asked = {split: CacheKey(text, partial(_changed, path))}
        listings = index.listings(asked, lambda: {split: self._scan(split)})
        return Pictures(Folder(root), listings[split], self.target)

    @property
    def _root(self) -> str:
        return self.root or os.path.dirname(self.path) or "."

    @property
    def _dialect(self) -> Dialect:
        columns = [self.image, *(column for column in (self.label, self.split) if column is not None)]
        return Dialect(columns, self.header, self.separator, os.fsencode(self._root))

    def _wanted(self, split: Split) -> str | None:
        return None if self.split is None else self.train if split == "train" else self.val

    def _scan(self, split: Split) -> Listing:
        wanted, root = self._wanted(split), os.fsencode(self._root)
        stamp = _stamp(self.path)
        builder, labels, values = IndexBuilder(), [], set()
        # rows are read for each split anew: millions of them would stay as Python objects otherwise
        for path, *rest in _read(self.path, self._dialect):
            if wanted is None or rest[-1].strip() == wanted.strip():
                name = path_bytes(path)
                builder.add(name, file_size(os.path.join(root, name)) or 0)
                labels.append("" if self.label is None else rest[0])
            elif not labels:
                values.add(rest[-1])
        if not labels:
            if not values:
                raise UserError(f"{self.path!r} has no rows below its columns; expected one for each picture")
            found = f"[{', '.join(map(show, sorted(values)[:10]))}]"
            raise UserError(f"no row of {self.path!r} has {self.split}={wanted!r}; found {found}")
        return Listing.of(builder.build(), *numbered(labels, self.order), (stamp,), named=True)


def _stamp(path: str) -> Stamp:
    try:
        return Stamp(path, *local_identity(path))
    except OSError as error:
        raise UserError(f"data.path={path!r} cannot be read: {error.strerror or error}") from error


def _changed(path: str, listing: Listing) -> str | None:
    return None if (_stamp(path),) == listing.files else path


def _read(path: str, asked: Dialect) -> Iterator[Row]:
    """Those columns of a table, as text.

    Raises:
        UserError: it cannot be read, lacks a column, or a row has no path.
    """
    try:
        read = _parquet if path.lower().endswith(PARQUET) else _csv
        for number, row in enumerate(read(path, asked), 1):
            if not row[0]:
                raise UserError(f"{path!r}: row {number} has nothing under {asked.columns[0]!r}; expected a path")
            if odd := next((pair for pair in zip(asked.columns, row, strict=True) if _is_odd(pair[1])), None):
                raise UserError(
                    f"{path!r}: row {number} has {len(odd[1]):,} characters under {odd[0]!r}, {show(odd[1])}; expected "
                    f"a path or a label of at most {LONGEST:,}, without NUL"
                )
            yield row
    except OSError as error:
        raise UserError(f"data.path={path!r} cannot be read: {error.strerror or error}") from error


def _csv(path: str, asked: Dialect) -> Iterator[Row]:
    delimiter = separator_of(path, asked)
    # a byte order mark, which spreadsheets write, is no part of the first name
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        reader = csv.reader(_lines(path, file), delimiter=delimiter, strict=True)
        rows = _rows(path, reader)
        if not (first := next(filter(None, rows), [])):
            raise UserError(f"{path!r} is empty; expected a row for each picture")
        wanted = places(path, first, asked)
        for row in rows if asked.header else itertools.chain([first], rows):
            if row:
                if len(row) <= max(wanted):
                    raise UserError(f"{path!r}: line {reader.line_num} has {len(row)} values, expected more. Mend it.")
                found = tuple(row[place] for place in wanted)
                refuse_other_encodings(path, reader.line_num, asked.columns, found, asked.root)
                yield found


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


def _text(value: Any) -> str:
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, float) and value.is_integer():  # integers of which some are missing
        return str(int(value))
    return "" if value is None else str(value)


def _parquet(path: str, asked: Dialect) -> Iterator[Row]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise UserError("Parquet needs pyarrow: pip install pyarrow, or give a CSV") from error
    try:
        file = pyarrow.parquet.ParquetFile(path)
        names: list[str] = file.schema_arrow.names
        wanted = [names[place] for place in places(path, names, asked._replace(header=True))]
        if odd := next((name for name in wanted if pyarrow.types.is_nested(file.schema_arrow.field(name).type)), None):
            raise UserError(f"{path!r} has lists or mappings under {odd!r}; expected one value for each picture")
        numbers = itertools.count(1)
        for batch in file.iter_batches(columns=wanted):
            columns = ([_text(value) for value in batch.column(name).to_pylist()] for name in wanted)
            for row in zip(*columns, strict=True):
                refuse_other_encodings(path, next(numbers), asked.columns, row, asked.root)
                yield row
    except (pyarrow.ArrowException, ArithmeticError, OSError) as error:
        if isinstance(error, OSError) and error.errno:  # not pyarrow's, the disk's
            raise
        raise UserError(f"data.path={path!r} is no Parquet file: {show(first_line(error), 200)}") from error
