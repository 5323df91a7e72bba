"""Tables of the doctor: copies and leaks, and a split of all images that keeps groups together."""

from __future__ import annotations

import argparse
import os
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unlabeled.data.source import Source
from unlabeled.doctor.compared import Compared
from unlabeled.doctor.duplicates import groups
from unlabeled.errors import UserError
from unlabeled.files import write_csv
from unlabeled.randomness import Stream, stream
from unlabeled.text import spreadsheet

FOLDER = "folder"
COPIES = ("kind", "split", "picture", "class", "copy_of_split", "copy_of", "copy_of_class")
TABLE = ("path", "label", "split", "group")


def check_split(args: argparse.Namespace) -> None:
    """Raise UserError when options of a split do not fit."""
    if not 0 < args.val_share < 1:
        raise UserError(f"--val-share {args.val_share:g}: expected a share between 0 and 1, such as 0.2")
    if args.group is None:
        return
    if args.split is None:
        raise UserError("--group says which pictures a split keeps together. Add --split FILE.csv, or leave it out.")
    try:
        re.compile(args.group)
    except re.error as error:
        raise UserError(
            f"--group {args.group!r} is neither 'folder' nor a regular expression: {error}. Mend it."
        ) from error


def write_copies(file: Path, compared: Compared) -> str:
    """Write every pair of copies, `exact` or `near`, as a row of a CSV; returns a line about it."""
    names, split = list(compared.surveys), compared.split
    rows = [
        (kind, *(cell for n in (copy, first) for cell in (names[split[n]], *compared.keys([n]), compared.label(n))))
        for kind, pairs in compared.copies._asdict().items()
        for first, copy in pairs.tolist()
    ]
    write_csv(file, COPIES, ([spreadsheet(cell) for cell in row] for row in rows))
    leaks = sum(row[1] != row[4] for row in rows)
    return f"{file}: {len(rows):,} copies, {leaks:,} of them leaks from one split to the other"


def write_split(file: Path, compared: Compared, group: str | None, share: float, seed: int) -> list[str]:
    """Write all images as a table with a train and a val that share neither copies nor groups; returns lines about it.

    Raises:
        UserError: images lie in tars, or no group is small enough for val.
    """
    n = len(compared.split)
    paths, labels = [path_of(*compared.place(i)) for i in range(n)], [compared.label(i) for i in range(n)]
    named, first = _named(paths, group), dict[str, int]()
    # each image and the first of its group
    linked = [(first.setdefault(name, i), i) for i, name in enumerate(named) if name is not None]
    together = [compared.copies.exact, compared.copies.near, np.array(linked, np.int64).reshape(-1, 2)]
    group_of = groups(np.concatenate(together), n)
    held_out = grouped_split(group_of, np.unique(labels, return_inverse=True)[1], share, seed)
    if not held_out.any():
        raise UserError(
            f"--split: no group is small enough for a val of {share:g} of {n:,} pictures; the largest of "
            f"{len(np.unique(group_of)):,} groups has {Counter(group_of.tolist()).most_common(1)[0][1]:,}. Raise "
            "--val-share, or group less."
        )
    splits = np.where(held_out, "val", "train")
    write_csv(file, TABLE, zip(paths, labels, splits.tolist(), map(str, group_of.tolist()), strict=True))
    count, kinds = int(held_out.sum()), len(np.unique(group_of))
    label = ", label: label" if any(labels) else ""
    matched = "" if group is None else f"; {sum(name is not None for name in named):,} paths match --group"
    return [
        f"{file}: {n - count:,} pictures of train and {count:,} of val, in {kinds:,} groups{matched}",
        f"  data: {{name: table, path: {file}{label}, split: split, train: train, val: val}}",
    ]


def grouped_split(group_of: NDArray[np.int64], labels: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Hold out whole groups of n images, about `share` of every class.

    Groups come by size, the largest first, equal ones in random order; a group is held out where that brings its
    classes nearer to their share.

    Args:
        group_of: [n] number of each image's group.
        labels: [n] number of each image's class.
        share: in (0, 1).
        seed: of the order.
    """
    _, group, sizes = np.unique(group_of, return_inverse=True, return_counts=True)
    counts = np.zeros((len(sizes), labels.max() + 1), np.int64)
    np.add.at(counts, (group, labels), 1)
    random = stream(seed, Stream.SPLIT)
    wanted, held = share * counts.sum(axis=0), np.zeros(counts.shape[1])
    chosen = np.zeros(len(sizes), bool)
    for one in np.lexsort((random.random(len(sizes)), -sizes)).tolist():
        if (counts[one] * (wanted - held - counts[one] / 2)).sum() > 0:
            chosen[one], held = True, held + counts[one]
    return chosen[group]


def path_of(source: Source, i: int) -> str:
    """The file of an image. Raises UserError when it has none of its own."""
    source, i = source.origin(i)
    path = source.file(i)
    if path is None:
        raise UserError(
            f"--split lists paths, and {source.key(i)} is no file of its own. Unpack the pictures into a folder, or "
            "leave --split out."
        )
    return os.path.abspath(os.fsdecode(path))


def _named(paths: Sequence[str], group: str | None) -> list[str | None]:
    """The group of each path, as `--group` names it; None = none."""
    if group is None:
        return [None] * len(paths)
    if group == FOLDER:
        return [os.path.dirname(path) for path in paths]
    found = [re.search(group, path) for path in paths]
    return [match and "\0".join(part or "" for part in (match.groups() or (match[0],))) for match in found]
