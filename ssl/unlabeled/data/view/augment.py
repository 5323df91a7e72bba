"""Augmentations of fine-tuning: timm's RandAugment in the worker, random erasing on the device.

RandAugment (Cubuk et al. 2020) is timm's own code with the settings of its `transforms_imagenet_train`. Random erasing
(Zhong et al. 2020) is the rule of timm's `RandomErasing` in mode `pixel`, drawn like all else by sample.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

MEAN_COLOUR = (124, 116, 104)  # ImageNet's mean, with 8 bits
# what timm's parser reads: it passes over what it does not know, and takes its usual set for a set that it lacks
SECTION = re.compile(r"(m|n|mmax|inc)\d+|(p|mstd)\d+(\.\d+)?|t(weights|3a|3aw)")
ERASED_AREA = (0.02, 1 / 3)
ERASED_ASPECT = (0.3, 1 / 0.3)
ERASE_ATTEMPTS = 10


def must_be_rand_augment(spec: str) -> None:
    """Raise ValueError when timm cannot make a RandAugment of `spec`, or would pass over a part of it."""
    expected = "expected rand, then any of -m9 -n2 -p0.5 -mstd0.5 -mmax10 -inc1 -tweights, as rand-m9-mstd0.5-inc1"
    first, *sections = spec.split("-")
    unknown = [section for section in sections if not SECTION.fullmatch(section)]
    if first != "rand" or unknown:
        raise ValueError(f"found {(unknown or [first])[0]!r} in {spec!r}: {expected}")
    try:
        rand_augment(torch.zeros(3, 2, 2, dtype=torch.uint8), spec, np.random.default_rng(0))
    except (AssertionError, ValueError) as error:
        raise ValueError(f"timm cannot make a RandAugment of {spec!r} ({error}): {expected}") from error


def rand_augment(pixels: Tensor, spec: str, rng: np.random.Generator) -> Tensor:
    """timm's RandAugment of a crop, uint8 [3, H, W], in timm's language, such as `rand-m9-mstd0.5-inc1`.

    timm draws from Python's and NumPy's global generators: they are seeded for the call by two draws of the sample's
    generator, and then put back.
    """
    picture = Image.merge("RGB", [Image.fromarray(channel) for channel in pixels.numpy()])
    with _seeded(*rng.integers(2**32, size=2).tolist()):
        picture = _timms(spec)(picture)
    return torch.from_numpy(np.stack([np.asarray(channel) for channel in picture.split()]))


@cache
def _timms(spec: str) -> Callable[[Image.Image], Image.Image]:
    from timm.data.auto_augment import posterize, rand_augment_transform

    def posterize_to_black(picture: Image.Image, bits: int, **rest: Any) -> Image.Image:
        # timm asks for no bits at full magnitude, and for fewer above it: older Pillow gave black, 13 refuses
        return posterize(picture, bits, **rest) if bits > 0 else Image.new(picture.mode, picture.size)

    augment = rand_augment_transform(spec, {"img_mean": MEAN_COLOUR, "interpolation": Image.Resampling.BICUBIC})
    for operation in augment.ops:
        if operation.aug_fn is posterize:
            operation.aug_fn = posterize_to_black
    return augment


@contextmanager
def _seeded(pythons: int, numpys: int) -> Iterator[None]:
    states = random.getstate(), np.random.get_state()
    random.seed(pythons)
    np.random.seed(numpys)
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])


class Erased(NamedTuple):
    """Random parameters of erasing."""

    box: Tensor  # [..., 4] int64: top, left, height, width in pixels; all 0 = not erased
    key: Tensor  # [...] int64, seed of the noise

    def map(self, function: Callable[[Tensor], Tensor]) -> Erased:
        """The same with `function` applied to each tensor."""
        return Erased(*map(function, self))

    @staticmethod
    def stack(drawn: Sequence[Erased]) -> Erased:
        """Several with a new leading axis."""
        return Erased(*(torch.stack(column) for column in zip(*drawn, strict=True)))


def draw_erased(probability: float, shape: tuple[int, int], rng: np.random.Generator) -> Erased:
    """Draw whether and where a crop of `shape` (height, width) is erased. Takes a fixed number of draws."""
    chance, *uniform = rng.random(1 + 4 * ERASE_ATTEMPTS)
    key = int(rng.integers(2**63))
    box = _erased_box(np.reshape(uniform, (ERASE_ATTEMPTS, 4)), *shape) if chance < probability else (0, 0, 0, 0)
    return Erased(torch.tensor(box), torch.tensor(key))


def _erased_box(uniform: np.ndarray, height: int, width: int) -> tuple[int, int, int, int]:
    """The first of ten random boxes that is smaller than the crop both ways (timm's rule); nothing if none is."""
    (smallest, largest), (low, high) = ERASED_AREA, np.log(ERASED_ASPECT)
    for area, aspect, top, left in uniform:
        target = height * width * (smallest + area * (largest - smallest))
        exact = math.exp(low + aspect * (high - low))  # height by width, the inverse of what crops have
        h, w = round(math.sqrt(target * exact)), round(math.sqrt(target / exact))
        if h < height and w < width:
            return int(top * (height - h + 1)), int(left * (width - w + 1)), h, w
    return 0, 0, 0, 0


def erase_(pixels: Tensor, erased: Erased) -> None:
    """Fill boxes of normalised crops [count, B, C, H, W] in place with noise of N(0, 1), the same on every device. What
    was drawn has leading axes [B, count] and is on the host, which thereby waits for nothing."""
    places = [tuple(place) for place in erased.box[..., 2:].prod(-1).nonzero().tolist()]
    boxes, keys = [erased.box[place].tolist() for place in places], [int(erased.key[place]) for place in places]
    sizes = [pixels.shape[2] * h * w for _, _, h, w in boxes]
    drawn = torch.empty(sum(sizes), pin_memory=pixels.device.type == "cuda")  # on the host, and copied as one
    for values, key in zip(drawn.split(sizes), keys, strict=True):
        values.normal_(generator=torch.Generator().manual_seed(key))
    noise = drawn.to(pixels.device, non_blocking=True).split(sizes)
    for (b, crop), (top, left, h, w), values in zip(places, boxes, noise, strict=True):
        pixels[crop, b, :, top : top + h, left : left + w] = values.view(-1, h, w)
