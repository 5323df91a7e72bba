"""Tars as WebDataset lays them out: the files of a sample share a name up to the first dot, what follows says what each
is (`000.jpg`, `000.mask.png`, `000.cls`).

Names of ordinary files may have dots too (`IMG.2021.jpg`, `IMG.2022.jpg`). Where both readings are possible, what is
read and why is said once.
"""

from __future__ import annotations

import itertools
import json
import operator
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from unlabeled.data.archive.dialect import LONGEST, say_once
from unlabeled.data.archive.index import EXTENSIONS, Index, is_picture, readable
from unlabeled.errors import UserError, first_line
from unlabeled.recipe.faults import show

Member = tuple[bytes, int, int]  # name, start, size
LABEL_BYTES = 1 << 20  # of a file
ALL = "all"
OTHER_PARTS = "other parts of samples"
SHOWN = 5


def stem(name: bytes, whole: bool = False) -> tuple[bytes, bytes]:
    """A member's name up to the first dot after the last slash, and what follows: WebDataset's rule; or, as ordinary
    files have it, the `whole` name up to the last dot."""
    folder, slash, file = name.rpartition(b"/")
    root, _, ending = file.rpartition(b".") if whole else file.partition(b".")
    return folder + slash + root, ending


class Found(NamedTuple):
    """Labels of one tar by the stems of their files: by WebDataset's rule, and those that only the other rule has."""

    labels: dict[bytes, Any]
    others: dict[bytes, Any]

    def names(self, picture: bytes) -> bool:
        """Whether a label belongs to an image of this name."""
        return stem(picture)[0] in self.labels or stem(picture, whole=True)[0] in self.others


class Beside:
    """Labels in files beside images: `000001.jpg` and `000001.cls` or `000001.json`. They are named by an ending such
    as `cls`, or one of JSON and a key in it, `json:KEY`, which may lead inwards: `meta.y`."""

    def __init__(self, text: str) -> None:
        ending, _, self.key = text.partition(":")
        self.ending = ending.lower().encode()
        self.labels = self.others = self._lacking = 0
        self.used = False
        self._keys = ""

    def read(self, texts: Mapping[int, bytes], path: str, members: Sequence[Member]) -> Found:
        """The labels in one tar, from the texts of such files by where they start. Raises UserError when a file holds
        no label, or a sample has two."""
        found = Found({}, {})
        for member in members:
            for whole, labels in ((False, found.labels), (True, found.others)):
                root, ending = stem(member[0], whole)
                if ending.lower() == self.ending:
                    if root in labels:
                        raise UserError(
                            f"{path!r}: {readable(member[0])!r} is a second label; expected one for a picture"
                        )
                    labels[root] = self._label(texts, path, member)
                    break
        self.labels, self.others = self.labels + len(found.labels), self.others + len(found.others)
        return found

    def check(self, path: str) -> None:
        """Say what was left out of the tars that begin with `path`. Raises UserError when no file had the key."""
        ending = self.ending.decode()
        if not self.used:
            count = self.labels + self.others
            say_once(f"{path}: {count:,} .{ending} files, none beside a picture of its name: no picture has a label")
        elif self.others and self.labels:
            say_once(f"{path}: {self.others:,} .{ending} files have more dots in their names and label nothing")
        elif self.others:
            say_once(f"{path}: labels belong to names up to the last dot, where WebDataset looks for the first")
        if self._lacking and self._lacking == self.labels + self.others:
            raise UserError(
                f"no .{ending} file has the key {self.key!r}; the first has {self._keys}. Name it in data.label."
            )

    def _label(self, texts: Mapping[int, bytes], path: str, member: Member) -> Any:
        name, start, size = member
        if size > LABEL_BYTES:
            raise UserError(f"{path!r}: {readable(name)!r} has {size:,} bytes; expected a label")
        try:
            text = texts[start].decode("utf-8-sig")
            label = self._value(json.loads(text)) if self.key else text.strip()
        except (ValueError, TypeError, RecursionError) as error:
            why = first_line(error)
            raise UserError(f"{path!r}: {readable(name)!r} holds no {self.key or 'text'}: {why}. Mend it.") from error
        if isinstance(label, str) and (len(label) > LONGEST or "\0" in label):
            raise UserError(
                f"{path!r}: {readable(name)!r} holds a label of {len(label):,} characters, {show(label)}; expected at "
                f"most {LONGEST:,}, without NUL"
            )
        return label

    def _value(self, document: Any) -> Any:
        """The value under the key, None where the document lacks it."""
        if not isinstance(document, dict):
            raise TypeError(f"expected an object, found {type(document).__name__}")
        node: Any = document
        for part in [self.key] if self.key in document else self.key.split("."):
            if not isinstance(node, dict) or part not in node:
                self._lacking, self._keys = self._lacking + 1, self._keys or show(list(document))
                return None
            node = node[part]
        if isinstance(node, dict | list):
            raise TypeError(f"expected a label under {self.key!r}, found {type(node).__name__}")
        return node


class Samples:
    """Counts WebDataset samples with several images each."""

    def __init__(self) -> None:
        self.several, self.example = 0, ""
        self._labelled = self._named = 0

    def note(self, members: Sequence[Member]) -> None:
        """Look at the sorted names of one tar."""
        for root, sample in itertools.groupby(map(stem, (name for name, _, _ in members)), operator.itemgetter(0)):
            found = [ending.lower() for _, ending in sample if ending]
            pictures = [ending for ending in found if is_picture(b"_." + ending)]
            if len(pictures) > 1 and is_picture(root + b"." + pictures[0]):
                self.several += 1
                shown = ", ".join(map(readable, sorted(pictures)[:SHOWN]))
                self.example = self.example or f"{readable(root)!r}: {shown}"
                self._labelled += len(found) > len(pictures) and _has_bare(set(found) - set(pictures))
                self._named += _has_bare(set(pictures)) and all(map(_is_word, pictures))

    @property
    def likely(self) -> bool:
        """A label or the like belongs to such a sample; or most have a plain image (`000.jpg`) and others whose
        endings are words (`000.mask.png`), not numbers."""
        return self._labelled > 0 or 2 * self._named > self.several


def _has_bare(endings: set[bytes]) -> bool:
    return any(b"." not in ending for ending in endings)


def _is_word(ending: bytes) -> bool:
    """Whether an ending has a letter before its last part, or one part only."""
    inner, dot, _ = ending.rpartition(b".")
    return not dot or inner.upper() != inner.lower()


def one_of_each(index: Index, part: str | None) -> tuple[Index, np.ndarray]:
    """One image of every sample of tars whose names are sorted, and which those are: a flag [n] for each image.

    `part` is the ending of the images to use; None = the plainest: `000.jpg` before `000.left.jpg`, JPEG before PNG.
    """
    chosen = np.zeros(len(index), np.bool_)
    for _, sample in itertools.groupby(range(len(index)), lambda i: (index.place(i), stem(index.name(i))[0])):
        endings = {i: stem(index.name(i))[1] for i in sample}
        fitting = [i for i, ending in endings.items() if part is None or ending.lower() == part.encode()]
        if fitting:
            chosen[min(fitting, key=lambda i: _rank(endings[i]))] = True
    return index.only(chosen, Counter({OTHER_PARTS: int((~chosen).sum())})), chosen


def _rank(ending: bytes) -> tuple[bool, int, bytes]:
    last = b"." + ending.lower().rpartition(b".")[2]
    return b"." in ending, EXTENSIONS.index(last), ending


def reads_samples(path: str, samples: Samples, part: str | None, labelled: bool) -> bool:
    """Decide whether tars, the first at `path`, are read as samples; log it once where the names leave it open.
    `labelled`: labels were found in files beside the images, by WebDataset's rule."""
    if part is not None or not samples.several:
        return part not in (None, ALL)
    chosen = labelled or samples.likely
    how = (
        "read as WebDataset samples, the plainest picture of each; data.part=ENDING takes another, data.part=all all"
        if chosen
        else "read as pictures on their own; data.part=ENDING reads WebDataset samples and takes that picture of each"
    )
    say_once(
        f"{path}: {samples.several:,} names up to the first dot have several pictures, such as {samples.example}: {how}"
    )
    return chosen
