"""YOLO's boxes: a text file for each image, `class x y width height` on a line, centre and sides as shares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np

from unlabeled.data.archive.index import IndexBuilder, is_picture
from unlabeled.data.archive.listing import Listing, Stamp
from unlabeled.data.label.boxes import BoxTable
from unlabeled.data.label.labels import read_classes, renumbered
from unlabeled.errors import UserError
from unlabeled.recipe.faults import show

IMAGES, LABELS = "images", "labels"  # the folders of images and of text files that lie side by side
NAMED_IN = ("data.yaml", "classes.txt")
PARTS = ("class", "x", "y", "width", "height")
ALMOST = 1e-3  # shares beyond 0 and 1 that rounding may leave


class Named(NamedTuple):
    """A file below a folder."""

    name: bytes
    size: int
    changed: int  # ns


def labels_beside(folder: str) -> str:
    """The folder of the text files for a folder of images: the last `images` in its path is `labels`.

    Raises UserError when it has none.
    """
    parts = folder.split(os.sep)
    if IMAGES not in parts:
        raise UserError(
            f"{folder!r} has no folder `{IMAGES}` in its path, so that the text files of its boxes cannot be found in "
            f"`{LABELS}` beside it. Rename it: {IMAGES}/train and {LABELS}/train."
        )
    place = len(parts) - 1 - parts[::-1].index(IMAGES)
    return os.sep.join([*parts[:place], LABELS, *parts[place + 1 :]])


def stamp_of(folder: str) -> Stamp:
    """The images and text files of a folder as they are now: a hash of names, sizes and times."""
    hashed, count = blake2b(digest_size=16), 0
    for where in (folder, labels_beside(folder)):
        for file in sorted(_files(where)):
            hashed.update(b"%b\0%d %d;" % file)
            count += 1
    return Stamp(folder, count, f"hash {hashed.hexdigest()}")


def scan(folder: str, names: list[str] | None, order: tuple[str, ...] | None) -> Listing:
    """The images below a folder with the boxes of their text files; one without a text file has none.

    Args:
        folder: of the images.
        names: of the classes by number; None = they are called by their numbers.
        order: of the classes, where somebody pins it.

    Raises:
        UserError: there are no images, or a line is no box.
    """
    builder, rows, labels = IndexBuilder(), list[list[tuple[float, ...]]](), labels_beside(folder)
    if not os.path.isdir(labels):
        raise UserError(
            f"{labels!r} is no folder; expected the text files of the pictures in {folder!r} there, "
            f"`{' '.join(PARTS)}` on a line."
        )
    for file in sorted(file for file in _files(folder) if is_picture(file.name)):
        builder.add(file.name, file.size)
        rows.append(list(_boxes(os.path.join(labels, os.fsdecode(os.path.splitext(file.name)[0]) + ".txt"), names)))
    if not rows:
        raise UserError(f"{folder!r} holds no pictures. Name their folder: data.train={IMAGES}/train.")
    highest = max((int(row[4]) for boxes in rows for row in boxes), default=-1)
    known = list(map(str, range(highest + 1))) if names is None else names
    classes, numbers = renumbered(known, np.arange(len(known)), order)
    table = BoxTable.of(rows, relative=True).renumbered(numbers)
    index = builder.build()
    return Listing.of(index, classes, table.largest(), (stamp_of(folder),), named=True, boxes=table)


def names_of(root: str, file: str | None) -> list[str] | None:
    """The names of the classes by number, of a file below `root`; None without one, where there is none.

    Raises UserError when it cannot be read, or names no classes.
    """
    found = [file] if file is not None else [name for name in NAMED_IN if os.path.isfile(os.path.join(root, name))]
    if not found:
        return None
    path = os.path.join(root, found[0])
    return list(_from_yaml(path)) if path.endswith((".yaml", ".yml")) else list(read_classes(path))


def _from_yaml(path: str) -> Iterator[str]:
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        with open(path, encoding="utf-8") as file:
            content: Any = YAML(typ="safe", pure=True).load(file)
    except (OSError, YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path!r} cannot be read: {error}. Mend it, or set data.names to another file.") from error
    names = content.get("names") if isinstance(content, dict) else None
    named = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(named, dict) or sorted(named) != list(range(len(named))) or not named:
        raise UserError(f"{path!r}: names is {show(names)}; expected a list, or numbers from 0 with their names.")
    yield from (str(named[number]) for number in range(len(named)))


def _files(folder: str) -> Iterator[Named]:
    """All files below a folder, hidden ones left out, by their names relative to it."""
    root = os.fsencode(folder)
    for where, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if not name.startswith(b"."))
        for name in files:
            if not name.startswith(b"."):
                path = os.path.join(where, name)
                about = os.stat(path)
                yield Named(
                    os.path.relpath(path, root).replace(os.sep.encode(), b"/"), about.st_size, about.st_mtime_ns
                )


def _boxes(path: str, names: list[str] | None) -> Iterator[tuple[float, ...]]:
    """Rows for a `BoxTable` of a text file; nothing where there is none."""
    try:
        with open(path, encoding="utf-8-sig") as file:
            lines = file.read().split("\n")
    except FileNotFoundError:
        return
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path!r} cannot be read: {error}. Expected text, `{' '.join(PARTS)}` on a line.") from error
    for number, line in enumerate(lines, start=1):
        if line.strip():
            yield _row(f"{path!r}: line {number}", line.split(), names)


def _row(where: str, words: list[str], names: list[str] | None) -> tuple[float, ...]:
    if len(words) != len(PARTS):
        raise UserError(f"{where} has {len(words)} values, {show(' '.join(words))}; expected `{' '.join(PARTS)}`.")
    if not words[0].isdecimal():
        raise UserError(f"{where}: class is {show(words[0])}; expected a whole number from 0.")
    if names is not None and int(words[0]) >= len(names):
        raise UserError(
            f"{where}: class is {words[0]}; expected 0 to {len(names) - 1}, of the names {show(names)}. Add its name "
            "to data.names."
        )
    x, y, width, height = (_share(where, part, word) for part, word in zip(PARTS[1:], words[1:], strict=True))
    return x - width / 2, y - height / 2, x + width / 2, y + height / 2, int(words[0]), 0, width * height


def _share(where: str, part: str, word: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = float("nan")
    if not -ALMOST <= value <= 1 + ALMOST:
        raise UserError(
            f"{where}: {part} is {show(word)}; expected a share of the picture's width or height, 0 to 1, not pixels."
        )
    return value
