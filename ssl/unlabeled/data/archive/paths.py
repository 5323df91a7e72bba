"""Paths of several archives or folders: globs, braces, lists."""

from __future__ import annotations

import glob
import itertools
import os
import re
from collections.abc import Iterator, Sequence

from unlabeled.data.archive.remote import is_remote, matching
from unlabeled.errors import UserError, suggest

MANY, DEEP = 100_000, 50  # names that braces may spell, and braces in one
COMPARED = 1000  # names beside one that does not exist
Paths = tuple[str, ...]


def entries(paths: Sequence[str]) -> list[str]:
    """The folders and archives that paths name: each itself, what its braces spell, or what matches it as a glob,
    sorted. Raises UserError when one is not there, or is named twice."""
    found: list[str] = []
    for path in paths:
        spelt = [path] if not is_remote(path) and os.path.exists(path) else braces(path)
        each = [_matches(one) for one in spelt]
        if lacking := [one for one, there in zip(spelt, each, strict=True) if not there]:
            first, count = lacking[0], len(lacking)
            many = f"{count:,} of the {len(spelt):,} archives of {path!r} do not exist, the first: {first!r}. Add them."
            expected = "expected a folder, a .tar or a glob of tars (data.path, data.val_path or DATA)"
            raise UserError(many if len(spelt) > 1 else f"{path!r} does not exist; {expected}{_near(path)}")
        found += [one for there in each for one in there]
    places = [one if is_remote(one) else os.path.realpath(one) for one in found]
    if len(set(places)) < len(places):
        twice = next(one for i, one in enumerate(found) if places[i] in places[:i])
        raise UserError(f"{twice!r} is named twice in {list(paths)}; expected every folder and archive once")
    return found


def _near(path: str) -> str:
    """The name beside it that a path may have meant, as a question; '' = none."""
    folder, name = os.path.split(path.rstrip("/"))
    try:
        with os.scandir(folder or ".") as found:
            return suggest(name, [one.name for one in itertools.islice(found, COMPARED)])
    except OSError:
        return ""


def _matches(path: str) -> list[str]:
    if is_remote(path):
        return list(matching(path))
    return [path] if os.path.exists(path) else sorted(glob.glob(path))


def braces(text: str) -> list[str]:
    """Expand braces as shells and WebDataset do: `s-{000..012}.tar` and `{a,b}.tar`, one after the other."""
    spelt = list(itertools.islice(_spelt(text), MANY + 1))
    if len(spelt) > MANY:
        raise UserError(f"{text!r} spells more than {MANY:,} names; expected fewer")
    return spelt


def _spelt(text: str) -> Iterator[str]:
    start = text.find("{")
    if start < 0 or text.count("{") > DEEP:
        yield text
        return
    end = _closing(text, start)
    options = _options(text[start + 1 : end]) if end > 0 else None
    if options is None:  # a brace that offers no choice is part of the name
        options, end = iter("{"), start
    for option in options:
        for rest in _spelt(text[end + 1 :]):
            yield text[:start] + option + rest


def _closing(text: str, start: int) -> int:
    depth = 0
    for place in range(start, len(text)):
        depth += {"{": 1, "}": -1}.get(text[place], 0)
        if depth == 0:
            return place
    return -1


def _options(inner: str) -> Iterator[str] | None:
    """The options of one pair of braces, None where it offers no choice."""
    if found := re.fullmatch(r"(\d{1,18})\.\.(\d{1,18})(?:\.\.(\d{1,18}))?", inner):
        first, last, step = int(found[1]), int(found[2]), max(1, int(found[3] or 1))
        padded = any(len(one) > 1 and one.startswith("0") for one in found.group(1, 2))
        width = max(len(found[1]), len(found[2])) if padded else 0
        numbers = range(first, last + 1, step) if first <= last else range(first, last - 1, -step)
        return (f"{number:0{width}}" for number in numbers)
    parts = _split(inner)
    return (name for part in parts for name in _spelt(part)) if len(parts) > 1 else None


def _split(inner: str) -> list[str]:
    """At commas outside of inner braces."""
    parts, depth = [""], 0
    for sign in inner:
        depth += {"{": 1, "}": -1}.get(sign, 0)
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts
