"""COCO's JSON of boxes: images, categories and annotations, checked one by one."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from unlabeled.data.label.boxes import BoxTable
from unlabeled.data.label.labels import renumbered
from unlabeled.errors import UserError
from unlabeled.recipe.faults import show

SECTIONS = ("images", "categories", "annotations")
SIDES = ("left", "top", "width", "height")


class Annotated(NamedTuple):
    """The content of a file of annotations."""

    names: list[bytes]  # of the images' files [n]
    classes: tuple[str, ...]
    boxes: BoxTable


def read(path: str, order: tuple[str, ...] | None) -> Annotated:
    """The images and boxes of a JSON file, classes numbered by `order`; None = as the file lists them.

    Raises UserError when it cannot be read, or holds anything else.
    """
    content = _content(path)
    categories = _numbered(path, content, "categories", "name")
    classes, numbers = renumbered(list(categories.values()), np.arange(len(categories)), order)
    number_of = dict(zip(categories, numbers.tolist(), strict=True))
    images = _numbered(path, content, "images", "file_name")
    if not images:
        raise UserError(f"{path!r} lists no images; expected one for each picture in `images`.")
    rows: dict[Any, list[tuple[float, ...]]] = {image: [] for image in images}
    for place, found in enumerate(content["annotations"]):
        where = f"{path!r}: annotations[{place}]"
        image = _known(where, found, "image_id", rows, "images")
        category = _known(where, found, "category_id", number_of, "categories")
        left, top, width, height = _box(where, found)
        crowd, area = bool(found.get("iscrowd", 0)), found.get("area", width * height)
        if not _is_number(area):
            raise UserError(f"{where}.area is {show(area)}; expected square pixels. Mend it, or leave it out.")
        rows[image].append((left, top, left + width, top + height, number_of[category], crowd, area))
    return Annotated([os.fsencode(name) for name in images.values()], classes, BoxTable.of(list(rows.values())))


def _content(path: str) -> dict[str, Any]:
    try:
        with open(path, encoding="utf-8") as file:
            content = json.load(file)
    except OSError as error:
        raise UserError(f"{path!r} cannot be read: {error.strerror or error}. Name COCO's JSON of boxes.") from error
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path!r}: line {error.lineno}, column {error.colno}: {error.msg}; expected JSON. Copy the file again."
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"{path!r} is no JSON in UTF-8: {error}. Copy the file again.") from error
    if not isinstance(content, dict) or any(not isinstance(content.get(name), list) for name in SECTIONS):
        found = show(sorted(content)) if isinstance(content, dict) else f"a {type(content).__name__}"
        raise UserError(
            f"{path!r} holds {found}; expected an object with the lists {', '.join(SECTIONS)}, as COCO's "
            "instances_*.json have them."
        )
    return content


def _numbered(path: str, content: dict[str, Any], section: str, field: str) -> dict[Any, str]:
    """A text of every entry of a section by its `id`."""
    return dict(_entries(path, content[section], section, field))


def _entries(path: str, entries: list[Any], section: str, field: str) -> Iterator[tuple[Any, str]]:
    seen: dict[Any, int] = {}
    for place, found in enumerate(entries):
        where = f"{path!r}: {section}[{place}]"
        if not isinstance(found, dict) or not isinstance(found.get("id"), int | str):
            raise UserError(f"{where} is {show(found)}; expected an object with an `id`.")
        if not isinstance(found.get(field), str) or not found[field]:
            raise UserError(f"{where}.{field} is {show(found.get(field))}; expected a name.")
        if (other := seen.setdefault(found["id"], place)) != place:
            raise UserError(f"{where}.id is {show(found['id'])}, as that of {section}[{other}]; expected another.")
        yield found["id"], found[field]


def _known(where: str, found: Any, field: str, among: dict[Any, Any], section: str) -> Any:
    if not isinstance(found, dict):
        raise UserError(f"{where} is {show(found)}; expected an object with image_id, category_id and bbox.")
    value = found.get(field)
    if not isinstance(value, int | str) or value not in among:
        raise UserError(f"{where}.{field} is {show(value)}; expected an `id` of {section}. Add it there, or mend it.")
    return value


def _box(where: str, found: dict[str, Any]) -> tuple[float, float, float, float]:
    box = found.get("bbox")
    if not isinstance(box, list) or len(box) != len(SIDES) or not all(map(_is_number, box)):
        raise UserError(f"{where}.bbox is {show(box)}; expected [{', '.join(SIDES)}] in pixels.")
    left, top, width, height = map(float, box)
    if width < 0 or height < 0:
        raise UserError(
            f"{where}.bbox is {show(box)}: width or height is below 0; expected [{', '.join(SIDES)}], not corners."
        )
    return left, top, width, height


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
