"""A data set that needs no download: ten kinds of shapes or of patterns, each image drawn from its number alone."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from functools import cached_property
from typing import Annotated, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, model_validator
from torch import Tensor

from unlabeled.data.archive.listing import IndexFolder, Split
from unlabeled.data.label.labels import renumbered
from unlabeled.data.source import AFTERWARDS, Source, SourceConfig
from unlabeled.recipe.free import FREE

# A number in what the images look like: part of the fingerprint, raised whenever drawing changes.
VERSION = 2

# Lengths are in half sides: the image spans [-1, 1] both ways, a radius of 0.5 is half of the side across.
RADIUS = (0.43, 0.7)
# the clutter: short strokes, bent to a circle of radius BEND
STROKES = 4
WIDTH = (0.025, 0.07)
LENGTH = (0.05, 0.2)
BEND = (0.1, 1.0)
# textures: stripes across the image at most, each way; how far they tint; ground to fill, per channel
CYCLES = 4.0
TINT = 0.1
CONTRAST = 0.4
# patterns: periods in half a side
PERIODS = (2.0, 2.6)
TURN = 0.3  # at most, either way, radians


# ---- outlines: signed distance (about; negative inside) of a shape that fits the unit disc, at points x, y


def _norm(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    return np.sqrt(x * x + y * y)


def _star(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # a pentagram is where at most one of its five lines is crossed: the second largest of five distances
    angles = [2 * math.pi * k / 5 for k in range(5)]
    first = second = np.full_like(x, -np.inf)
    for line in (x * math.sin(a) + y * math.cos(a) for a in angles):
        second = np.maximum(second, np.minimum(first, line))
        first = np.maximum(first, line)
    return second - 0.31


def _heart(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    # a square on its corner with a half disc on each of its two upper sides
    x, y = np.abs(x), y + 0.14
    return np.minimum((x + np.abs(y)) * 0.7071068 - 0.54, _norm(x - 0.382, y - 0.382) - 0.54)


def _arrow(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    head = np.maximum(-y, (np.abs(x) + y) * 0.7071068 - 0.6364)
    return np.minimum(head, np.maximum(np.abs(x) - 0.24, np.abs(y + 0.4) - 0.52))  # and the shaft


OUTLINES: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "circle": lambda x, y: _norm(x, y) - 0.9,
    "square": lambda x, y: np.maximum(np.abs(x), np.abs(y)) - 0.7,
    "triangle": lambda x, y: np.maximum(y, np.abs(x) * 0.8660254 - y * 0.5) - 0.5,
    "star": _star,
    "cross": lambda x, y: np.maximum(np.minimum(abs(x), abs(y)) - 0.27, np.maximum(abs(x), abs(y)) - 0.93),
    "ring": lambda x, y: np.abs(_norm(x, y) - 0.72) - 0.2,
    "crescent": lambda x, y: np.maximum(_norm(x, y) - 0.95, 0.75 - _norm(x - 0.5, y)),
    "heart": _heart,
    "arrow": _arrow,
    "hourglass": lambda x, y: np.maximum(np.abs(y) - 0.66, (np.abs(x) - np.abs(y)) * 0.7071068 - 0.08),
}


# ---- patterns: signed distance in periods (about; negative inside) of what repeats with period one, at points u, v


def _offset(u: np.ndarray) -> np.ndarray:
    """Difference from the nearest whole number, in [-0.5, 0.5]."""
    return u - np.rint(u)


def _beside(u: np.ndarray) -> np.ndarray:
    """Distance from the nearest whole number, in [0, 0.5]."""
    return np.abs(_offset(u))


def _checks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    a, b = _beside(u) - 0.25, _beside(v) - 0.25
    return np.maximum(np.minimum(a, b), -np.maximum(a, b))  # inside one set of stripes, not both


def _bricks(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    every_other = np.floor(v) - 2 * np.floor(v / 2)  # rows are shifted by half a brick, which is two periods long
    return np.minimum(_beside(v), 2 * _beside(u / 2 + every_other / 2)) - 0.1


def _crosses(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    return OUTLINES["cross"](_offset(u) * 2.4, _offset(v) * 2.4) / 2.4


def _mesh(u: np.ndarray, v: np.ndarray) -> np.ndarray:
    # three sets of lines, each turned by a third of a circle
    left, right = v * 0.8660254 - u * 0.5, v * -0.8660254 - u * 0.5
    return np.minimum(np.minimum(_beside(u), _beside(left)), _beside(right)) - 0.1


PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {
    "stripes": lambda u, v: _beside(u) - 0.25,
    "checks": _checks,
    "dots": lambda u, v: _norm(_offset(u), _offset(v)) - 0.3,
    "rings": lambda u, v: np.abs(_norm(_offset(u), _offset(v)) - 0.3) - 0.1,
    "grid": lambda u, v: np.minimum(_beside(u), _beside(v)) - 0.12,
    "bricks": _bricks,
    "zigzag": lambda u, v: (_beside(u + _beside(v) * 1.2) - 0.25) * 0.64,
    "targets": lambda u, v: _beside(_norm(u, v)) - 0.25,
    "crosses": _crosses,
    "mesh": _mesh,
}


# ---- the data set


class Config(SourceConfig):
    """The recipe's `data:` for images drawn on the fly: one textured shape over a cluttered background.

    The class is the outline alone: position, size, rotation, colours and textures are random, so that raw
    pixels tell little about it and learning shows. With `kinds: patterns` a pattern fills the whole image in place of
    the shape: its kind is the class, and contrast learns it in minutes. The two splits share no image.
    """

    name: Literal["shapes"] = "shapes"
    train_size: int = Field(default=10_000, ge=1, le=100_000_000, description="images in the train split")
    val_size: int = Field(default=2_000, ge=1, le=100_000_000, description="images in the val split")
    kinds: Literal["outlines", "patterns"] = Field(
        default="outlines",
        description="what the classes are: outlines of one shape, or patterns that fill the image",
    )
    size: int = Field(default=32, ge=8, le=512, description="side of the square images, pixels")
    seed: int = Field(default=0, ge=0, lt=2**63, description="which images are drawn")
    max_bad_fraction: Annotated[float, FREE, AFTERWARDS] = Field(
        default=0.0, ge=0, le=1, description="share of bad images a run survives"
    )

    @model_validator(mode="after")
    def _drawn_in_colour(self) -> Config:
        self.check_channels(self.channels)
        return self

    def check_channels(self, channels: int) -> None:
        if channels != 3:
            raise ValueError(
                f"shapes are drawn in 3 channels, found a mean of {channels} values; give mean and std 3 each"
            )

    @property
    def names_val(self) -> bool:
        return True

    def source(self, split: Split, index: IndexFolder) -> ShapesSource:
        count = self.train_size if split == "train" else self.val_size
        return ShapesSource(split, count, self.size, self.seed, self.numbering, self.kinds == "patterns")


class ShapesSource(Source):
    """Images of shapes by number; classes are the outlines, or the patterns, and take turns. Image i depends on (seed,
    split, i); `size` only sets its resolution. Pixels take arithmetic and square roots alone, which IEEE 754 rounds
    exactly: processors agree on them."""

    def __init__(
        self,
        split: Split,
        count: int,
        size: int,
        seed: int,
        order: tuple[str, ...] | None = None,
        patterned: bool = False,
    ) -> None:
        self.patterned, self.classes = patterned, tuple(PATTERNS if patterned else OUTLINES)
        self.split, self.count, self.size, self.seed, self._order = split, count, size, seed, order
        self.labels = np.arange(count, dtype=np.int64) % len(self.classes)
        if order is not None:
            self.classes, self.labels = renumbered(self.classes, self.labels, order)

    def __len__(self) -> int:
        return self.count

    @property
    def marks(self) -> NDArray[np.int64]:
        return np.arange(self.count) * 2 + (self.split == "val")

    def key(self, i: int) -> str:
        return f"shapes/{self.split}/{i:06d}"

    def fingerprint(self) -> str:
        recipe = f"shapes {VERSION} {self.split} {self.count} {self.size} {self.seed}"
        recipe += " patterns" if self.patterned else ""
        recipe += "" if self._order is None else f" {self._order}"
        return hashlib.sha256(recipe.encode()).hexdigest()[:16]

    def image(self, i: int) -> Tensor:
        random = self._random(i)
        inside = self._coverage(self._figure(i, random))
        ground, clutter, fill = self._colours(random)
        ground_wave, fill_wave = self._textures(random)

        picture = ground + _uniform(random, (3, 1, 1), -TINT, TINT) * ground_wave
        distance, nearest = self._strokes(random)
        picture = _blend(picture, clutter[:, nearest], self._coverage(distance))
        picture = _blend(picture, fill + _uniform(random, (3, 1, 1), -TINT, TINT) * fill_wave, inside)
        return torch.from_numpy((_unit(picture) * 255 + 0.5).astype(np.uint8))

    def mask(self, i: int) -> Tensor:
        """Mask of the shape, or the pattern, of image i: bool [size, size], True where it covers half of the pixel."""
        return torch.from_numpy(self._figure(i, self._random(i)) <= 0)

    def _random(self, i: int) -> np.random.Generator:
        assert 0 <= i < self.count, f"picture {i} of {self.count}"
        return np.random.Generator(np.random.Philox(key=[self.seed, 2 * int(i) + (self.split == "val")]))

    @cached_property
    def _grid(self) -> tuple[np.ndarray, np.ndarray]:
        """Pixel centres: x [1, size] and y [size, 1], in half sides."""
        centres = ((np.arange(self.size) + 0.5) * 2 / self.size - 1).astype(np.float32)
        return centres[None, :], centres[:, None]

    def _coverage(self, distance: np.ndarray) -> np.ndarray:
        """The share of a pixel that lies inside, for the distance of its centre in half sides."""
        t = _unit(0.5 - distance * (self.size / 2))
        return t * t * (3 - 2 * t)

    def _figure(self, i: int, random: np.random.Generator) -> np.ndarray:
        """Signed distance [size, size] to what makes the class of image i. Takes the first draws."""
        return self._pattern(i, random) if self.patterned else self._outline(i, random)

    def _outline(self, i: int, random: np.random.Generator) -> np.ndarray:
        """Signed distance [size, size] to the outline of image i's shape."""
        radius = _uniform(random, (), *RADIUS)
        centre_x, centre_y = _uniform(random, (2,), -1, 1) * (1 - radius)
        cos, sin = _turn(random, ()) / radius
        x, y = self._grid[0] - centre_x, self._grid[1] - centre_y
        outline = tuple(OUTLINES.values())[i % len(OUTLINES)]
        return outline(x * cos + y * sin, y * cos - x * sin) * radius

    def _pattern(self, i: int, random: np.random.Generator) -> np.ndarray:
        """Signed distance [size, size] to image i's pattern, moved at random, turned and scaled a little."""
        periods, angle = _uniform(random, (), *PERIODS), random.random() * 2 * TURN - TURN
        along, across = np.float32(math.cos(angle)) * periods, np.float32(math.sin(angle)) * periods
        x, y = (axis - _uniform(random, (), -1, 1) for axis in self._grid)
        pattern = tuple(PATTERNS.values())[i % len(PATTERNS)]
        return pattern(x * along + y * across, y * along - x * across) / periods

    def _colours(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Ground [3, 1, 1], clutter [3, STROKES] and fill [3, 1, 1], far from the ground in every channel."""
        ground = _uniform(random, (3, 1, 1), 0, 1)
        fill = (ground + _uniform(random, (3, 1, 1), CONTRAST, 1 - CONTRAST)) % 1
        return ground, _uniform(random, (3, STROKES), 0, 1), fill

    def _textures(self, random: np.random.Generator) -> np.ndarray:
        """Two textures [2, size, size] in [-1, 1]: stripes, bent by a second set of stripes."""
        across, down = _uniform(random, (2, 4, 1, 1), -CYCLES / 2, CYCLES / 2)
        phase = self._grid[0] * across + (self._grid[1] * down + _uniform(random, (4, 1, 1), 0, 1))
        bend = _uniform(random, (2, 1, 1), 0, 0.5)
        return _wave(phase[:2] + bend * _wave(phase[2:]))

    def _strokes(self, random: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Distance [size, size] to the nearest of STROKES short, bent strokes, and which one that is."""
        along = (STROKES, 1, 1)
        centre_x, centre_y = _uniform(random, (2, *along), -1, 1)
        cos, sin = _turn(random, along)
        bend, length, width = (_uniform(random, along, *r) for r in (BEND, LENGTH, WIDTH))
        x, y = self._grid[0] - centre_x, self._grid[1] - centre_y
        side = y * cos - x * sin
        circle = np.abs(_norm(x * cos + (y * sin + bend), side) - bend)
        distance = np.maximum(circle - width, np.abs(side) - length)
        return distance.min(0), distance.argmin(0)


def _uniform(random: np.random.Generator, shape: tuple[int, ...], low: float, high: float) -> np.ndarray:
    return np.asarray(random.random(shape) * (high - low) + low, dtype=np.float32)


def _turn(random: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Cosine and sine [2, *shape] of random angles."""
    angle = random.random(shape) * (2 * math.pi)
    return np.stack([np.cos(angle), np.sin(angle)]).astype(np.float32)


def _wave(phase: np.ndarray) -> np.ndarray:
    """A triangle wave in [-1, 1] of period one."""
    return np.abs(phase - np.rint(phase)) * 4 - 1


def _blend(below: np.ndarray, above: np.ndarray, coverage: np.ndarray) -> np.ndarray:
    return below + (above - below) * coverage


def _unit(values: np.ndarray) -> np.ndarray:
    return np.minimum(np.maximum(values, 0), 1)
