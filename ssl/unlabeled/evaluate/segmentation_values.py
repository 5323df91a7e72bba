"""Values of masks, all counted before training, and the classes they stand for, which are never guessed."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, field_validator, model_validator

from unlabeled.data.masked.view import UNLABELLED as UNLABELLED
from unlabeled.errors import UserError
from unlabeled.evaluate.segmentation_decoding import COLOUR, MOST, packed

MAX_CLASSES = 1024
VOID = 255  # usual value of unlabelled pixels; taken for it only beside class numbers without a gap
MOST_WITHOUT_ASKING = 200  # more values of 8 bits are smoothed edges, not classes
SHOWN = 12


class Held(NamedTuple):
    """Frequency of a value in pixels, and the first mask that holds it."""

    pixels: int
    first: str


class MaskSettings(BaseModel, frozen=True, extra="forbid"):
    """Settings that give the values of masks a meaning."""

    classes: int | None = Field(
        None,
        ge=2,
        le=MAX_CLASSES,
        description="masks hold class numbers below, not all of which need to occur; null = as many as occur",
    )
    values: tuple[int | str, ...] | None = Field(
        None,
        min_length=2,
        max_length=MAX_CLASSES,
        description="the values of masks that are classes, by their place in this list, such as [0, 128, 255] or "
        "['#000000', '#ff0000']; null = class numbers",
    )
    threshold: int | None = Field(
        None, ge=1, le=65535, description="of grey masks with soft edges: two classes, values below and the others"
    )
    ignore: int | str | None = Field(
        None, description="value of unlabelled pixels in masks; null = 255, if the others are 0, 1, 2 ... without a gap"
    )

    @property
    def unlabelled(self) -> int | None:
        """`ignore` as the number it is counted as."""
        return None if self.ignore is None else number_of(self.ignore)

    @field_validator("ignore")
    @classmethod
    def _ignore_is_a_value(cls, ignore: int | str | None) -> int | str | None:
        if ignore is not None:
            number_of(ignore)
        return ignore

    @field_validator("values")
    @classmethod
    def _values_differ(cls, values: tuple[int | str, ...] | None) -> tuple[int | str, ...] | None:
        numbers = [number_of(value) for value in values or ()]
        if twice := [value for value in values or () if numbers.count(number_of(value)) > 1]:
            raise ValueError(f"{twice[0]!r} stands in the list twice; expected a value for each class")
        return values

    @model_validator(mode="after")
    def _one_way_to_say_it(self) -> MaskSettings:
        given = [name for name in ("classes", "values", "threshold") if getattr(self, name) is not None]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different ways to say what masks hold: leave all but one out")
        if self.unlabelled in [number_of(value) for value in self.values or ()]:
            raise ValueError(f"{self.ignore} is in values, so it is a class; take it out, or leave ignore out")
        return self


class Coding(NamedTuple):
    """Maps values of masks to classes.

    Attributes:
        values: [n] int64, ascending.
        classes: [n] int16, the class of each value.
        names: C names: the value of each class, or the side of the threshold.
        ignore: value of unlabelled pixels; None = there is none.
        threshold: smallest value of class 1, instead of `values`.
    """

    values: NDArray[np.int64]
    classes: NDArray[np.int16]
    names: tuple[str, ...]
    ignore: int | None = None
    threshold: int | None = None

    @classmethod
    def of(cls, values: Sequence[int], ignore: int | None) -> Coding:
        """Number classes by the order of their values."""
        order = np.argsort(values)
        return cls(np.asarray(values, np.int64)[order], order.astype(np.int16), tuple(map(name_of, values)), ignore)

    def __call__(self, mask: NDArray[Any]) -> NDArray[np.int16]:
        """Map values [H, W] to classes [H, W], `UNLABELLED` where there is none.

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
        """Find the classes that occur."""
        return set(self(np.array(list(counts))).tolist()) - {UNLABELLED}


def name_of(value: int) -> str:
    """Write a value as in settings: a number, or a colour such as `#00ff80`."""
    return f"#{value - COLOUR:06x}" if value >= COLOUR else str(int(value))


def number_of(value: int | str) -> int:
    """Read a value of the settings as the number it is counted as. Raises ValueError where it is none."""
    if isinstance(value, int) and abs(value) <= MOST:
        return value
    digits = str(value).removeprefix("#")
    if not re.fullmatch("[0-9a-fA-F]{6}", digits) or digits == str(value):
        raise ValueError(
            f"{value!r} is no value of a mask; expected a number of 16 bits, or a colour such as '#00ff80'"
        )
    return int(packed(np.array([[list(bytes.fromhex(digits))]], np.uint8))[0, 0])


def count(masks: Iterable[tuple[str, NDArray[np.int32]]]) -> dict[int, Held]:
    """Count every value of (name, mask) pairs, ascending."""
    pairs = ((name, np.unique(mask, return_counts=True)) for name, mask in masks)
    return together(
        {value: Held(pixels, name) for value, pixels in zip(values.tolist(), counts.tolist(), strict=True)}
        for name, (values, counts) in pairs
    )


def together(counts: Iterable[Mapping[int, Held]]) -> dict[int, Held]:
    """Add the counts of several sets, ascending."""
    found: dict[int, Held] = {}
    for one in counts:
        for value, held in one.items():
            before = found.get(value, Held(0, held.first))
            found[value] = Held(before.pixels + held.pixels, before.first)
    return dict(sorted(found.items()))


def shares(counts: Mapping[int, Held], coding: Coding | None = None) -> str:
    """Write `0 62.1 %, 128 30.0 %, 255 7.9 % (unlabelled)`; of many values the most frequent ones."""
    total = sum(held.pixels for held in counts.values())
    shown = sorted(sorted(counts, key=lambda value: -counts[value].pixels)[:SHOWN])
    words = {coding.ignore: " (unlabelled)"} if coding else {}
    texts = [f"{name_of(value)} {100 * counts[value].pixels / total:.1f} %{words.get(value, '')}" for value in shown]
    return ", ".join(texts) + (f" and {len(counts) - len(shown):,} more values" if len(counts) > len(shown) else "")


def coding_of(counts: Mapping[int, Held], settings: MaskSettings, lossy: str | None = None) -> Coding:
    """Find the coding of the values of all masks.

    Args:
        counts: of all masks.
        settings: of the protocol.
        lossy: a mask that is a JPEG, which changes values; None = there is none.

    Raises:
        UserError: the settings do not fit the values, or give none and the values are not class numbers.
    """
    if settings.threshold is not None:
        return _divided(counts, settings.threshold, settings.unlabelled)
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
    return _numbered(counts, settings.unlabelled)


def _numbered(counts: Mapping[int, Held], ignore: int | None) -> Coding:
    """Code values 0, 1, 2 ... without a gap, beside the ignored one or 255."""
    if len(counts) > MOST_WITHOUT_ASKING and VOID - 10 < max(counts) <= VOID:
        raise UserError(
            f"masks hold {len(counts)} values from {min(counts)} to {max(counts)}: {shares(counts)}. "
            f"{_threshold(counts)} If there are so many classes, set segmentation.classes={max(counts) + 1}."
        )
    for unlabelled in (ignore,) if ignore is not None else (None, VOID):
        found = [value for value in counts if value != unlabelled]
        if 2 <= len(found) <= MAX_CLASSES and found == list(range(len(found))):
            return Coding.of(found, unlabelled)
    raise UserError(_gaps(counts, ignore))


def _divided(counts: Mapping[int, Held], threshold: int, ignore: int | None) -> Coding:
    """Code two classes: grey values below a threshold, and the others."""
    if coloured := [value for value in counts if value >= COLOUR and value != ignore]:
        raise UserError(
            f"segmentation.threshold={threshold} is for grey masks, and {counts[coloured[0]].first} holds the colour "
            f"{name_of(coloured[0])}. List the colours instead: segmentation.values={_pasted(list(counts))}."
        )
    names = f"below {threshold}", f"{threshold} and more"
    return Coding(np.arange(2), np.arange(2, dtype=np.int16), names, ignore, threshold)


def _known(counts: Mapping[int, Held], coding: Coding, settings: MaskSettings) -> Coding:
    """The coding. Raises UserError where masks hold other values."""
    known = {*coding.values.tolist(), coding.ignore}
    if not (strange := [value for value in counts if value not in known]):
        return coding
    field, expected = "values", f"one of {', '.join(coding.names[:SHOWN])}"
    if settings.values is None:
        field, expected = "classes", f"classes 0 to {len(coding.names) - 1}"
    unlabelled = "" if coding.ignore is None else f", or {name_of(coding.ignore)} where unlabelled"
    first, names = name_of(strange[0]), ", ".join(map(name_of, strange[:SHOWN]))
    raise UserError(
        f"the mask {counts[strange[0]].first} holds {first}; expected {expected}{unlabelled}. Masks hold "
        f"{shares(counts)}; not expected: {names}. Say what these are: segmentation.{field} for classes (at most "
        f"{MAX_CLASSES}), segmentation.ignore={first} for unlabelled pixels."
    )


def _gaps(counts: Mapping[int, Held], ignore: int | None) -> str:
    """Advise on values that are not 0, 1, 2 ..."""
    found = [value for value in counts if value != ignore]
    beside = "" if ignore is None else f" ({name_of(ignore)} is segmentation.ignore)"
    text = f"masks hold {shares(counts)}{beside}; expected class numbers 0, 1, 2 ... without a gap, of two classes "
    text += "or more. Nothing is learnt from a guess. "
    if len(found) < 2:
        return f"{text}With one value there is nothing to tell apart."
    if len(found) > MAX_CLASSES:
        return f"{text}These are more than {MAX_CLASSES} classes: save class numbers, not numbers of objects."
    # few values hold most of the pixels, many with gaps between them the rest
    pixels = np.cumsum(sorted((held.pixels for held in counts.values()), reverse=True))
    peaks, dense = int(np.searchsorted(pixels, 0.8 * pixels[-1])) + 1, 0.8 * (max(counts) - min(counts) + 1)
    if max(counts) < COLOUR and 4 * peaks <= len(counts) <= dense:
        return f"{text}{_threshold(counts)} If each is a class: segmentation.values={_pasted(found)}."
    advice = f"If each is a class: segmentation.values={_pasted(found)}, the class is the place in the list."
    if ignore is None and len(found) > 2:
        nothing = _pasted(found[-1:])[1:-1]
        advice += f" One of them that says nothing is left out of the list, such as segmentation.ignore={nothing}."
    if found[0] >= 0 and found[-1] < MAX_CLASSES:
        advice += f" If they are class numbers, some of which do not occur: segmentation.classes={found[-1] + 1}."
    return text + advice


def _threshold(counts: Mapping[int, Held]) -> str:
    return (
        "That looks like soft edges between two classes (antialiased, resized or JPEG): "
        f"segmentation.threshold={_middle(counts)} makes class 1 of what is there and above. Of more classes, save "
        "the masks anew without smoothing."
    )


def _middle(counts: Mapping[int, Held]) -> int:
    return (min(counts) + min(max(counts), MOST) + 1) // 2


def _pasted(values: Sequence[int]) -> str:
    return f"[{','.join(name_of(v) if v < COLOUR else chr(34) + name_of(v) + chr(34) for v in values)}]"
