"""A path to pictures: the source that reads them, and the labels that are found there."""

from __future__ import annotations

import csv
import glob
import os
from collections import Counter
from typing import Any, NamedTuple

import numpy as np

from unlabeled.data.archive.index import is_picture
from unlabeled.data.archive.remote import is_remote
from unlabeled.data.archive.rows import PARQUET
from unlabeled.data.opened import Opened
from unlabeled.data.source import EncodedConfig, Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.table import Config as Table
from unlabeled.errors import UserError, first_line
from unlabeled.launch.given import TABLES
from unlabeled.launch.plan import number
from unlabeled.start.facts import Labels
from unlabeled.start.layout import Splits, counts, kind, splits

HELD = 0.2  # share of every class that is evaluated on, where nothing else says
FEWEST = 12  # pictures: a batch of 8 where some are held out
# endings of what holds pictures and is not read, and how they are taken out
PACKED = {
    ".zip": "unzip FILE -d FOLDER",
    ".tar.gz": "mkdir FOLDER && tar xzf FILE -C FOLDER",
    ".tgz": "mkdir FOLDER && tar xzf FILE -C FOLDER",
    ".tar.bz2": "mkdir FOLDER && tar xjf FILE -C FOLDER",
    ".tar.xz": "mkdir FOLDER && tar xJf FILE -C FOLDER",
    ".7z": "7z x FILE -oFOLDER",
    ".rar": "unrar x FILE FOLDER/",
    **dict.fromkeys(
        (".mp4", ".mov", ".avi", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg", ".wmv"),
        "mkdir FOLDER && ffmpeg -i FILE -vf fps=1 FOLDER/%06d.jpg   (a picture of each second)",
    ),
}
# names of columns, the first preferred
IMAGE = ("path", "image", "image_path", "file", "filename", "file_name", "filepath", "file_path", "img", "id", "name")
LABEL = ("label", "class", "category", "species", "target", "diagnosis", "y")
SPLIT = ("split", "set", "subset", "partition", "fold")


class Place(NamedTuple):
    """Pictures that a path names.

    Attributes:
        path: absolute, unless it is remote.
        config: reads all pictures to learn from.
        fields: of the recipe's `data:` section, but for normalisation.
        labels: see `unlabeled.start.facts.Facts`.
        classes: number of classes.
        each: labelled pictures of the median class.
        labelled: pictures with a label, to train on and to test on.
        note: what was found out about labels, in words.
    """

    path: str
    config: EncodedConfig
    fields: dict[str, Any]
    labels: Labels = "none"
    classes: int = 0
    each: int = 0
    labelled: int = 0
    note: str = ""


def place(path: str) -> Place:
    """Look for pictures at a path: a folder, a tar, a glob of tars or a table. Raises UserError when there are none."""
    where = path if is_remote(path) else os.path.abspath(path)
    if where.lower().endswith(TABLES):
        found = _table(where)
    else:
        _refuse_files(path)
        found = _files(where)
    count = len(Opened(found.config).train)
    if count < FEWEST:
        raise UserError(
            f"{path} has {number(count, 'picture')}; expected at least {FEWEST}, and some hundred to gain by it."
        )
    return found


def _refuse_files(path: str) -> None:
    if (ending := _ending(path)) in PACKED and os.path.exists(path):
        how = PACKED[ending].replace("FILE", path)
        raise UserError(f"{path} is not read; expected a folder of pictures, a .tar or a table. Take them out: {how}")
    if os.path.isfile(path) and is_picture(os.fsencode(os.path.basename(path))):
        folder = os.path.dirname(path) or "."
        raise UserError(f"{path} is one picture; expected a folder of them. Name its folder: unlabeled start {folder}")
    if os.path.isfile(path) and not path.endswith(".tar"):
        raise UserError(
            f"{path} is a file; expected a folder of pictures, a .tar, a glob of tars, or a .csv, .tsv or .parquet."
        )


def _ending(name: str) -> str:
    return next((ending for ending in PACKED if name.lower().endswith(ending)), "")


def _files(path: str) -> Place:
    config = Files(path=path, stray="keep")
    try:
        whole = Opened(config).train
    except UserError as error:
        raise UserError(f"{first_line(error)}{_packed_in(path)}") from error
    fields: dict[str, Any] = {"name": "files", "path": path, "train": "", "val": None}
    if (named := splits(whole.classes)) is not None:
        return _split(path, named, fields)
    labels = kind(whole)
    each = int(np.median(counts(whole))) if labels == "flat" else 0
    classes = len(whole.classes) if labels == "flat" else 0
    if np.mean(whole.labels < 0) > 0 and whole.classes:  # pictures beside folders are learnt from, too
        fields["stray"] = "keep"
    if labels == "flat":
        fields["split"] = HELD
    notes = {
        "flat": f"{classes} folders look like classes; a fifth of each is held out to evaluate on",
        "albums": f"{len(whole.classes)} folders look like albums, not classes: they are not used",
    }
    return Place(path, config, fields, labels, classes, each, len(whole) if classes else 0, notes.get(labels, ""))


def _split(path: str, named: Splits, fields: dict[str, Any]) -> Place:
    """Folders named like splits: with classes in both, val is evaluated on; without, all pictures are learnt from."""
    config = Files(path=path, train=named.train, val=named.val, stray="keep")
    data, problem = Opened(config), ""
    train: Source = data.train
    try:
        val = data.val
        if train.classes:
            fields |= {"train": named.train, "val": named.val}
            labelled = int((train.labels >= 0).sum() + (val.labels >= 0).sum())
            note = f"{len(train.classes)} classes in {named.train} and {named.val}"
            each = int(np.median(counts(train)))
            return Place(path, config, fields, "splits", len(train.classes), each, labelled, note)
    except UserError as error:
        problem = f": {first_line(error)}"
    note = f"{named.train} and {named.val} have no classes to score by, and are read as one{problem}"
    return Place(path, Files(path=path, stray="keep"), {**fields, "stray": "keep"}, note=note)


def _packed_in(path: str) -> str:
    """How to take pictures out of the archives or videos in a folder; '' where there are none."""
    names = [name for folder in glob.glob(path) if os.path.isdir(folder) for name in os.listdir(folder)]
    found = Counter(ending for name in names if (ending := _ending(name)))
    if not found:
        return ""
    [(ending, count)] = found.most_common(1)
    return f". It has {count:,} {ending}: take the pictures out of each by: {PACKED[ending]}"


def _table(path: str) -> Place:
    if not os.path.isfile(path):
        raise UserError(f"{path} does not exist; expected a .csv, .tsv or .parquet with a row for each picture.")
    names, row = _head(path)
    lower = {name.strip().lower(): name for name in reversed(names)}
    image = next((lower[name] for name in IMAGE if name in lower and _is_file(path, row, lower[name])), None)
    image = image or next((name for name in names if _is_file(path, row, name)), None)
    if image is None:
        raise UserError(
            f"no column of {path} has paths of files; found the columns {', '.join(names)}, the first row {row}. "
            "Give one of them the paths."
        )
    label, split = (next((lower[name] for name in some if name in lower), None) for some in (LABEL, SPLIT))
    fields: dict[str, Any] = {"name": "table", "path": path, "image": image, "label": label}
    if split is not None and (values := _values(path, split)) is not None:
        fields |= {"split": split, **values}
    config = Table.model_validate(fields)
    train = Opened(config).train
    if not train.classes:
        return Place(path, config, fields)
    each, note = int(np.median(counts(train))), f"{len(train.classes)} classes in the column {label}"
    labels: Labels = "splits" if config.has_val else "flat"
    if labels == "flat":
        fields["split"] = HELD
        note += "; a fifth of each is held out to evaluate on"
    return Place(path, config, fields, labels, len(train.classes), each, int((train.labels >= 0).sum()), note)


def _head(path: str) -> tuple[list[str], dict[str, str]]:
    """The names of the columns, and the first row."""
    rows = _rows(path, 2)
    if len(rows) < 2:
        raise UserError(f"{path} has no rows below its columns; expected one for each picture")
    return rows[0], dict(zip(*rows, strict=False))


def _rows(path: str, most: int) -> list[list[str]]:
    if path.lower().endswith(PARQUET):
        try:
            import pyarrow.parquet
        except ImportError as error:
            raise UserError("Parquet needs pyarrow: pip install pyarrow, or give a CSV") from error
        file = pyarrow.parquet.ParquetFile(path)
        batch = next(file.iter_batches(batch_size=most)).to_pylist()
        return [file.schema_arrow.names, *([str(value) for value in row.values()] for row in batch)][:most]
    with open(path, newline="", encoding="utf-8-sig", errors="surrogateescape") as file:
        first = file.readline()
        separator = max("\t,;|", key=first.count)
        file.seek(0)
        return [row for row, _ in zip(csv.reader(file, delimiter=separator), range(most), strict=False)]


def _is_file(path: str, row: dict[str, str], column: str) -> bool:
    return os.path.isfile(os.path.join(os.path.dirname(path), row.get(column, "\0").replace("\0", "")))


def _values(path: str, split: str) -> dict[str, str] | None:
    """The values of a column of splits to learn from and to evaluate on; None without both."""
    rows = _rows(path, 1_000_000)
    at = rows[0].index(split)
    found = {row[at].strip() for row in rows[1:] if len(row) > at}
    named = splits(sorted(found))
    return None if named is None else named._asdict()
