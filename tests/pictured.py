"""Folders and tars of small pictures, all different, and facts about machines and pictures in all combinations."""

from __future__ import annotations

import io
import itertools
import tarfile
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unlabeled.start.facts import Facts

SETS = ((9, 24), (300, 60), (1000, 150), (2000, 200), (8000, 400), (60_000, 3000))
MACHINES = (
    ("cpu", 2, 0.0, False),
    ("cpu", 8, 0.0, False),
    ("mps", 8, 0.0, False),
    ("cuda", 2, 8.0, False),
    ("cuda", 8, 24.0, True),
    ("cuda", 32, 80.0, True),
)
KINDS = ((3, False, False, True), (3, True, False, False), (1, False, True, False), (6, False, True, False))
WEIGHTS = (("none", 0.0), ("free", 11.0), ("sized", 86.0))


def drawn(number: int, side: int = 40, bands: int = 3) -> np.ndarray:
    """A smooth picture [side, side, bands] of 8 bits, unlike any other number's."""
    noise = np.random.default_rng(number).integers(0, 256, (6, 6, bands), dtype=np.uint8)
    planes = [Image.fromarray(noise[:, :, i]).resize((side, side), Image.Resampling.BICUBIC) for i in range(bands)]
    return np.stack([np.asarray(plane) for plane in planes], axis=2)


def photos(folder: Path, count: int = 12, first: int = 0, side: int = 40) -> Path:
    """A flat folder of pictures."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(drawn(first + i, side)).save(folder / f"{i}.png")
    return folder


def classes(folder: Path, count: int = 6, first: int = 0, names: tuple[str, ...] = ("cat", "dog")) -> Path:
    """Folders of classes."""
    for i, name in enumerate(names):
        photos(folder / name, count, first + 100 * i)
    return folder


def pack(file: Path, members: Mapping[str, bytes], format: int = tarfile.DEFAULT_FORMAT) -> Path:
    """A tar of files by name."""
    with tarfile.open(file, "w", format=format) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return file


def grid() -> Iterator[Facts]:
    """Machines, pictures, times and weights in all combinations."""
    minutes, labels = (5, 30, 240), ("none", "splits", "flat", "albums", "elsewhere")
    for parts in itertools.product(SETS, MACHINES, KINDS, WEIGHTS, minutes, labels):
        (
            (pictures, side),
            (device, cores, memory, bf16),
            (channels, grey, wide, plain),
            (kind, millions),
            time,
            found,
        ) = parts
        yield Facts(
            pictures, side, device, cores, time, channels, grey, wide, plain, found,  # type: ignore[arg-type]
            memory=memory, bf16=bf16, weights=kind, millions=millions,  # type: ignore[arg-type]
        )  # fmt: skip
