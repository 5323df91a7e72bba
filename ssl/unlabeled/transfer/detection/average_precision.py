"""Average precision of boxes as COCO defines it, by numpy alone: the numbers of pycocotools' `COCOeval`, and what its
result lacks, an interval over images."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Numbers = NDArray[np.int64]

THRESHOLDS = np.linspace(0.5, 0.95, 10)  # of the overlap
RECALLS = np.linspace(0.0, 1.0, 101)
MOST = 100  # boxes of an image and a class that count
SIZES = {"all": (0.0, 1e10), "small": (0.0, 32.0**2), "medium": (32.0**2, 96.0**2), "large": (96.0**2, 1e10)}


class Objects(NamedTuple):
    """The objects of one image."""

    corners: Floats  # [n, 4] left, top, right, bottom, pixels
    classes: Numbers  # [n]
    crowd: Flags  # [n]
    areas: Floats  # [n] square pixels


class Found(NamedTuple):
    """The boxes that were found in one image."""

    corners: Floats  # [m, 4]
    classes: Numbers  # [m]
    scores: Floats  # [m]


class Matched(NamedTuple):
    """The boxes of a class that were found in all images, those of the highest score first."""

    image: Numbers  # [d] the number of the image
    right: Flags  # [thresholds, d] whether a box matches an object
    ignored: Flags  # [thresholds, d] whether a box counts as neither right nor wrong
    objects: Numbers  # [images] objects that can be found


def overlaps(found: Floats, objects: Floats, crowd: Flags) -> Floats:
    """Intersection over union of boxes [m, n]; over the found box's own area where an object is a crowd."""
    sides = np.minimum(found[:, None, 2:], objects[None, :, 2:]) - np.maximum(found[:, None, :2], objects[None, :, :2])
    common = np.clip(sides, 0, None).prod(-1)
    own, other = ((boxes[:, 2:] - boxes[:, :2]).prod(-1) for boxes in (found, objects))
    union = np.where(crowd, own[:, None], own[:, None] + other - common)
    return common / np.where(union > 0, union, 1)


def match(found: Floats, objects: Objects, size: tuple[float, float]) -> tuple[Flags, Flags, int]:
    """Give each found box [m, 4], the best first, the free object that it overlaps most, at every threshold.

    Objects outside of a range of areas, and crowds, are taken where no other is left; a box on one is ignored, and so
    is a box of another size that matches nothing. Returns which boxes are right and ignored [thresholds, m], and the
    number of objects that can be found.
    """
    low, high = size
    outside = objects.crowd | (objects.areas < low) | (objects.areas > high)
    order = np.argsort(outside, kind="stable")
    outside, crowd = outside[order], objects.crowd[order]
    overlap, wanted = overlaps(found, objects.corners[order], crowd), int((~outside).sum())
    right = np.zeros((len(THRESHOLDS), len(found)), bool)
    ignored, taken = right.copy(), np.zeros((len(THRESHOLDS), len(outside)), bool)
    for number, row in enumerate(overlap if len(outside) else ()):
        fits = (row >= THRESHOLDS[:, None]) & (~taken | crowd)
        for part in (slice(0, wanted), slice(wanted, None)):
            place, there = _last_of_the_most(np.where(fits[:, part], row[part], -1))
            new = there & ~right[:, number]
            right[new, number], taken[new, place[new] + (part.start or 0)] = True, True
            ignored[new, number] = part.start > 0 or not wanted
    areas = (found[:, 2:] - found[:, :2]).prod(-1)
    return right, ignored | (~right & ((areas < low) | (areas > high))), wanted


def _last_of_the_most(values: Floats) -> tuple[Numbers, Flags]:
    """The last place of the highest of values [t, n], and whether any is at least 0."""
    if not values.shape[1]:
        return np.zeros(len(values), np.int64), np.zeros(len(values), bool)
    place = values.shape[1] - 1 - values[:, ::-1].argmax(1)
    return place, values.max(1) >= 0


class Summary(NamedTuple):
    """Average precision and recall by threshold, class and size of `SIZES`; NaN where there is no such object."""

    precision: Floats  # [thresholds, classes, sizes]
    recall: Floats  # [thresholds, classes, sizes]


def summary(truth: Sequence[Objects], found: Sequence[Found], classes: int) -> Summary:
    """Average precision and recall of boxes in as many images as there are objects of."""
    shape = (len(THRESHOLDS), classes, len(SIZES))
    made = Summary(np.full(shape, np.nan), np.full(shape, np.nan))
    for place, size in enumerate(SIZES):
        for number, one in enumerate(matched(truth, found, classes, size)):
            if (scores := precisions(one)) is not None:
                made.precision[:, number, place], made.recall[:, number, place] = scores
    return made


def matched(truth: Sequence[Objects], found: Sequence[Found], classes: int, size: str = "all") -> list[Matched]:
    """Match the boxes of every class in all images, for objects of a size of `SIZES`."""
    none = np.zeros((len(THRESHOLDS), 0), bool)
    rights, ignoreds = ([[none] for _ in range(classes)] for _ in range(2))
    images: list[list[int]] = [[] for _ in range(classes)]
    scores = [[np.zeros(0)] for _ in range(classes)]
    objects = np.zeros((classes, len(truth)), np.int64)
    for image, (true, guess) in enumerate(zip(truth, found, strict=True)):
        for number in np.union1d(true.classes, guess.classes):
            mine = np.flatnonzero(guess.classes == number)
            mine = mine[np.argsort(-guess.scores[mine], kind="stable")][:MOST]
            of_class = Objects(*(column[true.classes == number] for column in true))
            right, ignored, objects[number, image] = match(guess.corners[mine], of_class, SIZES[size])
            rights[number].append(right)
            ignoreds[number].append(ignored)
            images[number] += [image] * len(mine)
            scores[number].append(guess.scores[mine])
    orders = [np.argsort(-np.concatenate(parts), kind="stable") for parts in scores]
    columns = zip(orders, images, rights, ignoreds, objects, strict=True)
    return [
        Matched(
            np.array(numbers, np.int64)[order],
            np.concatenate(right, axis=1)[:, order],
            np.concatenate(ignored, axis=1)[:, order],
            own,
        )
        for order, numbers, right, ignored, own in columns
    ]


def precisions(one: Matched, weights: Numbers | None = None) -> tuple[Floats, Floats] | None:
    """Average precision and recall of a class at every threshold; None where there is no object of it.

    `weights` [images] are how often each image counts; None = once.
    """
    times = np.ones(len(one.objects), np.int64) if weights is None else weights
    wanted = float((times * one.objects).sum())
    if wanted == 0:
        return None
    counted = times[one.image] * ~one.ignored
    true, false = (np.cumsum(counted * flags, axis=1, dtype=np.float64) for flags in (one.right, ~one.right))
    recall, precision = true / wanted, true / np.maximum(true + false, np.spacing(1.0))
    envelope = np.maximum.accumulate(precision[:, ::-1], axis=1)[:, ::-1]
    padded = np.concatenate([envelope, np.zeros((len(envelope), 1))], axis=1)
    at = np.stack([np.searchsorted(row, RECALLS, side="left") for row in recall])
    last = recall[:, -1] if recall.shape[1] else np.zeros(len(recall))
    return np.take_along_axis(padded, at, axis=1).mean(1), last


def mean_precision(classes: Sequence[Matched], weights: Numbers | None = None) -> float:
    """The mean over classes that occur and over thresholds, 0 to 1; NaN where none occurs."""
    found = [one for one in (precisions(each, weights) for each in classes) if one is not None]
    return float(np.mean([precision for precision, _ in found])) if found else float("nan")


def interval(
    classes: Sequence[Matched], draws: int = 200, seed: int = 0, level: float = 0.95
) -> tuple[float, float] | None:
    """Percentile interval of `mean_precision` over images drawn with replacement (Efron 1979); None without objects.

    An image that is drawn twice makes the curves coarser, and their upper bound, which average precision is of, higher:
    the interval is moved by so much as the mean of the draws lies above the mean itself.
    """
    images = len(classes[0].objects) if classes else 0
    generator = np.random.Generator(np.random.Philox(seed))
    drawn = (
        np.bincount(generator.integers(images, size=images), minlength=images) for _ in range(draws if images else 0)
    )
    means = [mean for mean in (mean_precision(classes, weights) for weights in drawn) if not np.isnan(mean)]
    if not means:
        return None
    low, high = np.quantile(means, ((1 - level) / 2, (1 + level) / 2)) - (np.mean(means) - mean_precision(classes))
    return max(0.0, float(low)), min(1.0, float(high))
