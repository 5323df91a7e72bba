"""Values of masks and the classes they stand for: all are counted before training, and never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple
from typing import Protocol as Structure

import numpy as np
from numpy.typing import NDArray

from unlabeled.errors import UserError
from unlabeled.evaluate.segmentation_decoding import COLOUR, MOST, packed

UNLABELLED = -1
MAX_CLASSES = 1024
# the usual value of unlabelled pixels, taken for it only beside class numbers without a gap
VOID = 255
# more values than this of 8 bits are edges that were smoothed, not classes
MOST_WITHOUT_ASKING = 200
SHOWN = 12


class Held(NamedTuple):
    """Frequency of a value.

    Attributes:
        pixels: that have it.
        first: the mask that has it first, for people.
    """

    pixels: int
    first: str


class MaskSettings(Structure):
    """Settings that say what masks hold, see `protocols.segmentation`."""

    @property
    def classes(self) -> int | None: ...
    @property
    def values(self) -> tuple[int | str, ...] | None: ...
    @property
    def threshold(self) -> int | None: ...
    @property
    def unlabelled(self) -> int | None: ...


class Coding(NamedTuple):
    """Maps values of masks to classes.

    Attributes:
        values: [n] int64, ascending, that are classes.
        classes: [n] int16, of each.
        names: C, what each class is called: its value, or the side of the threshold.
        ignore: the value of unlabelled pixels; None = there is none.
        threshold: from where on a pixel is of class 1; None = `values` says.
    """

    values: NDArray[np.int64]
    classes: NDArray[np.int16]
    names: tuple[str, ...]
    ignore: int | None = None
    threshold: int | None = None

    @classmethod
    def of(cls, values: Sequence[int], ignore: int | None) -> Coding:
        """A class for every value, in this order."""
        order = np.argsort(values)
        names = tuple(name_of(value) for value in values)
        return cls(np.asarray(values, np.int64)[order], order.astype(np.int16), names, ignore)

    def __call__(self, mask: NDArray[Any]) -> NDArray[np.int16]:
        """Classes [H, W] of values [H, W], `UNLABELLED` where they say nothing.

        Raises:
            ValueError: a value is no class.
        """
        labelled = np.ones_like(mask, bool) if self.ignore is None else mask != self.ignore
        if self.threshold is not None:
            return np.where(labelled, mask >= self.threshold, UNLABELLED).astype(np.int16)
        place = np.searchsorted(self.values, mask).clip(max=len(self.values) - 1)
        if (strange := mask[labelled & (self.values[place] != mask)]).size:
            raise ValueError(f"it holds {name_of(strange[0])}, which is no class")
        return np.where(labelled, self.classes[place], UNLABELLED).astype(np.int16)

    def present(self, counts: Mapping[int, Held]) -> set[int]:
        """The classes that occur."""
        held = self(np.array(list(counts)))
        return {int(i) for i in held if i != UNLABELLED}


def name_of(value: int) -> str:
    """A value as people and settings write it: a number, or a colour such as `#00ff80`."""
    return f"#{value - COLOUR:06x}" if value >= COLOUR else str(int(value))


def number_of(value: int | str) -> int:
    """The number that a value of the settings is counted as. Raises ValueError where it is none."""
    if isinstance(value, int) and abs(value) <= MOST:
        return value
    digits = str(value).removeprefix("#")
    if not re.fullmatch("[0-9a-fA-F]{6}", digits) or digits == str(value):
        raise ValueError(
            f"{value!r} is no value of a mask; expected a number of 16 bits, or a colour such as '#00ff80'"
        )
    return int(packed(np.array([[list(bytes.fromhex(digits))]], np.uint8))[0, 0])


def count(masks: Iterable[tuple[str, NDArray[np.int32]]]) -> dict[int, Held]:
    """How often every value occurs in (name, mask) pairs, ascending."""
    found: dict[int, Held] = {}
    for name, mask in masks:
        for value, pixels in zip(*(column.tolist() for column in np.unique(mask, return_counts=True)), strict=True):
            before = found.get(value, Held(0, name))
            found[value] = before._replace(pixels=before.pixels + pixels)
    return dict(sorted(found.items()))


def together(*counts: Mapping[int, Held]) -> dict[int, Held]:
    """Counts of several sets as one."""
    found: dict[int, Held] = {}
    for one in counts:
        for value, held in one.items():
            before = found.get(value, Held(0, held.first))
            found[value] = before._replace(pixels=before.pixels + held.pixels)
    return dict(sorted(found.items()))


def shares(counts: Mapping[int, Held], coding: Coding | None = None) -> str:
    """`0 62.1 %, 128 30.0 %, 255 7.9 % (unlabelled)`: of many values the most frequent."""
    total = sum(held.pixels for held in counts.values())
    shown = sorted(sorted(counts, key=lambda value: -counts[value].pixels)[:SHOWN])
    unlabelled = None if coding is None else coding.ignore
    texts = [
        f"{name_of(value)} {100 * counts[value].pixels / total:.1f} %{' (unlabelled)' if value == unlabelled else ''}"
        for value in shown
    ]
    return ", ".join(texts) + (f" and {len(counts) - len(shown):,} more values" if len(counts) > len(shown) else "")


def coding_of(counts: Mapping[int, Held], settings: MaskSettings, lossy: str | None = None) -> Coding:
    """How these values are to be read.

    Args:
        counts: of all masks.
        settings: what a person says of them.
        lossy: a mask that is a JPEG, whose values cannot be believed; None = there is none.

    Raises:
        UserError: the settings do not fit the values, or nothing is said and the values are not class numbers.
    """
    if settings.threshold is not None:
        return _split(counts, settings.threshold, settings.unlabelled)
    if lossy is not None:
        raise UserError(
            f"the mask {lossy} is a JPEG, which changes values: {shares(counts)}. Save masks as PNG; of two classes "
            f"whose values lie far apart set segmentation.threshold={_middle(counts)}."
        )
    if settings.values is not None:
        return _known(counts, Coding.of([number_of(value) for value in settings.values], settings.unlabelled), settings)
    if settings.classes is not None:
        void = VOID if settings.unlabelled is None and settings.classes <= VOID else settings.unlabelled
        return _known(counts, Coding.of(range(settings.classes), void), settings)
    return _class_numbers(counts, settings.unlabelled)


def _class_numbers(counts: Mapping[int, Held], ignore: int | None) -> Coding:
    """Values that are 0, 1, 2 ... without a gap, beside those that are to be ignored, or 255."""
    if len(counts) > MOST_WITHOUT_ASKING and VOID - 10 < max(counts) <= VOID:
        raise UserError(_soft(counts))
    for unlabelled in (ignore,) if ignore is not None else (None, VOID):
        found = [value for value in counts if value != unlabelled]
        if 2 <= len(found) <= MAX_CLASSES and found == list(range(len(found))):
            return Coding.of(found, unlabelled)
    raise UserError(_gaps(counts, ignore))


def _split(counts: Mapping[int, Held], threshold: int, ignore: int | None) -> Coding:
    """Two classes, of grey values below a threshold and the others."""
    coloured = [value for value in counts if value >= COLOUR and value != ignore]
    if coloured:
        raise UserError(
            f"segmentation.threshold={threshold} is for grey masks, and {counts[coloured[0]].first} holds the colour "
            f"{name_of(coloured[0])}. List the colours instead: segmentation.values={_pasted(list(counts))}."
        )
    names = f"below {threshold}", f"{threshold} and more"
    return Coding(np.arange(2), np.arange(2, dtype=np.int16), names, ignore, threshold)


def _known(counts: Mapping[int, Held], coding: Coding, settings: MaskSettings) -> Coding:
    """The coding. Raises UserError where masks hold what it does not know."""
    known = {*coding.values.tolist(), coding.ignore}
    strange = [value for value in counts if value not in known]
    if not strange:
        return coding
    classes = (
        f"classes 0 to {len(coding.names) - 1}"
        if settings.values is None
        else f"one of {', '.join(coding.names[:SHOWN])}"
    )
    unlabelled = "" if coding.ignore is None else f", or {name_of(coding.ignore)} where unlabelled"
    held, names = counts[strange[0]], ", ".join(map(name_of, strange[:SHOWN]))
    field = "segmentation.classes" if settings.values is None else "segmentation.values"
    raise UserError(
        f"the mask {held.first} holds {name_of(strange[0])}; expected {classes}{unlabelled}. Masks hold "
        f"{shares(counts)}; not expected: {names}. Say what these are: {field} for classes (at most {MAX_CLASSES}), "
        f"segmentation.ignore={name_of(strange[0])} for unlabelled pixels."
    )


def _gaps(counts: Mapping[int, Held], ignore: int | None) -> str:
    """Advice for values that are not 0, 1, 2 ..."""
    found = [value for value in counts if value != ignore]
    beside = "" if ignore is None else f" ({name_of(ignore)} is segmentation.ignore)"
    text = f"masks hold {shares(counts)}{beside}; expected class numbers 0, 1, 2 ... without a gap, of two classes "
    text += "or more. Nothing is learnt from a guess. "
    if len(found) < 2:
        return f"{text}With one value there is nothing to tell apart."
    if len(found) > MAX_CLASSES:
        return f"{text}These are more than {MAX_CLASSES} classes: save class numbers, not numbers of objects."
    if _seems_soft(counts):
        return f"{text}{_threshold(counts)} If each is a class: segmentation.values={_pasted(found)}."
    advice = f"If each is a class: segmentation.values={_pasted(found)}, the class is the place in the list."
    if ignore is None and len(found) > 2:
        nothing = _pasted(found[-1:])[1:-1]
        advice += f" One of them that says nothing is left out of the list, such as segmentation.ignore={nothing}."
    if found[0] >= 0 and found[-1] < MAX_CLASSES:
        advice += f" If they are class numbers, some of which do not occur: segmentation.classes={found[-1] + 1}."
    return text + advice


def _soft(counts: Mapping[int, Held]) -> str:
    return (
        f"masks hold {len(counts)} values from {min(counts)} to {max(counts)}: {shares(counts)}. "
        f"{_threshold(counts)} If there are so many classes: segmentation.classes={max(counts) + 1}."
    )


def _threshold(counts: Mapping[int, Held]) -> str:
    return (
        "That looks like soft edges between two classes (antialiased, resized or JPEG): "
        f"segmentation.threshold={_middle(counts)} makes class 1 of what is there and above. Of more classes, save "
        "the masks anew without smoothing."
    )


def _seems_soft(counts: Mapping[int, Held]) -> bool:
    """Whether few values hold most of the pixels, and many with gaps between them the rest."""
    pixels = np.cumsum(sorted((held.pixels for held in counts.values()), reverse=True))
    peaks = int(np.searchsorted(pixels, 0.8 * pixels[-1])) + 1
    dense = len(counts) > 0.8 * (max(counts) - min(counts) + 1)
    return max(counts) < COLOUR and not dense and len(counts) >= 4 * peaks


def _middle(counts: Mapping[int, Held]) -> int:
    return (min(counts) + min(max(counts), MOST) + 1) // 2


def _pasted(values: Sequence[int]) -> str:
    return f"[{','.join(name_of(v) if v < COLOUR else chr(34) + name_of(v) + chr(34) for v in values)}]"
