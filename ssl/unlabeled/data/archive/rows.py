"""The rows of a CSV, TSV or Parquet file, as text."""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterator
from typing import Any, TextIO

from unlabeled.data.archive.dialect import LONGEST, Dialect, places, refuse_other_encodings, separator_of
from unlabeled.errors import UserError, first_line
from unlabeled.recipe.faults import show

Row = tuple[str, ...]
PARQUET = (".parquet", ".pq")

LONGEST_OTHER = 16 << 20  # of any value beside them
LONGEST_LINE = 64 << 20


def read_rows(path: str, asked: Dialect) -> Iterator[Row]:
    """Read the wanted columns of a table as text. Raises UserError when it cannot be read, lacks a column, or a row has
    no path."""
    try:
        read = _parquet if path.lower().endswith(PARQUET) else _csv
        for number, row in enumerate(read(path, asked), 1):
            if not row[0]:
                raise UserError(f"{path!r}: row {number} has nothing under {asked.columns[0]!r}; expected a path")
            for name, value in zip(asked.columns, row, strict=True):
                if len(value) > LONGEST or "\0" in value:
                    raise UserError(
                        f"{path!r}: row {number} has {len(value):,} characters under {name!r}, {show(value)}; expected "
                        f"a path or a label of at most {LONGEST:,}, without NUL"
                    )
            yield row
    except OSError as error:
        said = f"data.path={path!r} cannot be read: {error.strerror or error}. Name a table that can be."
        raise UserError(said) from error


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


def _lines(path: str, file: TextIO) -> Iterator[str]:
    """The lines of a text file, which may be no text at all and end nowhere."""
    number = 0
    while line := file.readline(LONGEST_LINE):
        number += 1
        if len(line) == LONGEST_LINE:
            raise UserError(f"{path!r}: line {number} has more than {LONGEST_LINE:,} characters; expected a CSV")
        yield line


def _rows(path: str, reader: Any) -> Iterator[list[str]]:
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
        raise UserError(
            f"data.path={path!r} is no Parquet file: {show(first_line(error), 200)}. Write it again."
        ) from error
