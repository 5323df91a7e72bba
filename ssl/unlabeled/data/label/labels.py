"""Labels: which are missing, which class each names, and how classes are numbered. One rule for every source.

- Missing labels, as programs write them (see `MISSING`), are -1 and make no class.
- Class names are compared in Unicode's composed form (NFC) without blanks around them: one name on two file systems is
  one class.
- Classes are numbered in the natural order of their names: 0, 1, 2, 10; a2, a10. A list of names pins another order;
  what it lists is a class, however it is spelt.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unlabeled.errors import UserError
from unlabeled.recipe.faults import show

# spelt as programs spell them; `none` and `na` are words, and may be classes
MISSING = frozenset({"", "-1", "-1.0", "NA", "None", "NaT"})
MISSING_IN_ANY_CASE = frozenset({"nan", "-nan", "null", "n/a", "#n/a", "<na>"})
SHOWN = 10
LONGEST = 4096  # characters of a name
Numbered = tuple[tuple[str, ...], NDArray[np.int64]]


def canonical(label: Any) -> str:
    """A label of any type as text: composed (NFC), without blanks around it. A column of integers of which some are
    missing comes as floats: 1.0 is 1."""
    if isinstance(label, float | np.floating) and label.is_integer():
        label = int(label)
    text = label.decode("utf-8", "backslashreplace") if isinstance(label, bytes) else str(label)
    return unicodedata.normalize("NFC", text).strip()


def is_missing(label: Any) -> bool:
    """Whether a label means "missing": -1, NaN, null, NA, empty and the like, as number or text."""
    name = canonical(label)
    return name in MISSING or name.casefold() in MISSING_IN_ANY_CASE


def natural(name: str) -> tuple[Any, ...]:
    """A key to sort names by: numbers in them by value, negative ones first; all else by code points. Total."""
    if re.fullmatch(r"-\d+", name):
        length, digits = _value(name[1:])
        return (0, -length, [-ord(digit) for digit in digits], name)
    pieces = re.split(r"(\d+)", name)  # text at even places, digits at odd ones
    return (1, [_value(piece) if place % 2 else piece for place, piece in enumerate(pieces)], name)


def _value(digits: str) -> tuple[int, str]:
    """Sorts as the number does: Python reads no more than 4,300 digits."""
    plain = "".join(str(unicodedata.decimal(digit)) for digit in digits).lstrip("0")
    return len(plain), plain


def numbered(labels: Iterable[Any], order: Sequence[str] | None = None) -> Numbered:
    """Class names, and which of them each of the labels (of any type) is: [n] int64, -1 where it is missing. `order`
    are the names of all classes; None = natural order of those that occur. Raises UserError when a label is not in
    `order`."""
    ids: dict[str, int] = {}
    texts = (label if isinstance(label, str) else canonical(label) for label in labels)
    found = np.fromiter((ids.setdefault(text, len(ids)) for text in texts), np.int64)
    names = list(map(canonical, ids))
    _refuse_long(names)
    present = {name for name in names if not is_missing(name)}
    classes = tuple(sorted(present, key=natural)) if order is None else tuple(order)
    rank = {name: number for number, name in enumerate(classes)}
    if strange := sorted(present - rank.keys(), key=natural):
        raise UserError(
            f"data.classes lacks {', '.join(map(show, strange[:SHOWN]))}{', ...' if strange[SHOWN:] else ''}, which "
            f"label pictures; it lists {len(classes)}, such as {classes[0]!r}. Add them to the file, one on a line"
        )
    if not rank.keys() & set(names):
        classes = ()
    return classes, np.array([rank.get(name, -1) for name in names], np.int64)[found]


def _refuse_long(names: Iterable[str]) -> None:
    if odd := next((name for name in names if len(name) > LONGEST), None):
        raise UserError(f"a label of {len(odd):,} characters, {show(odd)}; expected names of at most {LONGEST:,}")


def renumbered(names: Sequence[str], labels: NDArray[np.int64], order: Sequence[str] | None = None) -> Numbered:
    """`numbered` for labels [n] that number the class names of a data set. Its own order is kept, unless it is that of
    the alphabet, which is nobody's choice (0, 1, 10, 2)."""
    named = list(dict.fromkeys(map(canonical, names)))
    own = named if named != sorted(named) else sorted(named, key=natural)
    inside = (labels >= 0) & (labels < len(names))
    used = set(range(len(names))) if order is None else set(np.unique(labels[inside]).tolist())
    classes, ids = numbered([names[i] if i in used else None for i in range(len(names))], order or own)
    return classes, np.where(inside, np.append(ids, -1)[np.where(inside, labels, -1)], -1)


def read_classes(path: str) -> tuple[str, ...]:
    """The names in a text file, one on a line. Raises UserError when it cannot be read, is empty, or has a name
    twice."""
    try:
        lines = Path(path).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UserError(f"data.classes={path!r} is no UTF-8 at byte {error.start}. Save it as UTF-8") from error
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", error)
        raise UserError(
            f"data.classes={path!r} cannot be read: {why}. Name a text file with a class a line."
        ) from error
    names = [name for name in map(canonical, lines) if name]
    _refuse_long(names)
    if not names:
        raise UserError(f"data.classes={path!r} is empty; expected the names of the classes, one on a line")
    name, times = Counter(names).most_common(1)[0]
    if times > 1:
        raise UserError(f"data.classes={path!r} has {name!r} twice; expected every class once")
    return tuple(names)
