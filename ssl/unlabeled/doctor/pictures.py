"""A survey of a source in one pass: sizes, statistics of channels, unreadable and suspicious images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from hashlib import blake2b
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from unlabeled.data.batch.loader import make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.source import Source
from unlabeled.doctor.duplicates import spectrum
from unlabeled.doctor.kept import NOWHERE, Bad, Kept, Part
from unlabeled.errors import BadSample
from unlabeled.processes import collect, everywhere, on_main
from unlabeled.randomness import Stream, stream
from unlabeled.sharing.shards import HERE, Sharing, each_shard

BATCH, SHARD = 16, 4096
LEVELS = np.arange(256)
# first bytes of files, and the endings of their names
CONTENTS = (
    (b"\xff\xd8\xff", "JPEG", (".jpg", ".jpeg", ".jpe", ".jfif", ".jif", ".jfi")),
    (b"\x89PNG", "PNG", (".png",)),
    (b"GIF8", "GIF", (".gif",)),
    (b"BM", "BMP", (".bmp",)),
    (b"II", "TIFF", (".tif", ".tiff")),
    (b"MM", "TIFF", (".tif", ".tiff")),
    (b"RIFF", "WebP", (".webp",)),
    (b"P", "PNM", (".pbm", ".pgm", ".ppm", ".pnm")),
)
ENDINGS = tuple(ending for _, _, endings in CONTENTS for ending in endings)


class Look(NamedTuple):
    """Measurements of an image. `wrong` is the kind of its file where its name says another, else ''."""

    number: int
    height: int
    width: int
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    digest: int
    spectrum: NDArray[np.float16]
    wrong: str


class Survey(NamedTuple):
    """Measurements of one split in columns, one row per readable image.

    Attributes:
        source: the images.
        looked: number of opened images, bad ones included.
        number: [n] int64, of the image in the source.
        height, width: [n] int64, pixels.
        mean, square: [n, C] float64, means of the values and of their squares, on the [0, 1] scale.
        digest: [n] uint64, equal for equal pixels.
        spectrum: [n, 63] float16, see `unlabeled.doctor.duplicates`.
        wrong: [n], the kind of the file where its name says another.
        bad: images that cannot be used.
    """

    source: Source
    looked: int
    number: NDArray[np.int64]
    height: NDArray[np.int64]
    width: NDArray[np.int64]
    mean: NDArray[np.float64]
    square: NDArray[np.float64]
    digest: NDArray[np.uint64]
    spectrum: NDArray[np.float16]
    wrong: NDArray[np.str_]
    bad: list[Bad]

    def __len__(self) -> int:
        return len(self.number)

    @property
    def contrast(self) -> NDArray[np.float64]:
        """Standard deviation of each image, in the channel where it is largest: [n]."""
        return np.sqrt(np.maximum(self.square - self.mean**2, 0)).max(axis=1)

    def statistics(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Mean and standard deviation [C] over pixels, every image with the same weight."""
        mean = self.mean.mean(axis=0)
        return mean, np.sqrt(np.maximum(self.square.mean(axis=0) - mean**2, 0))

    def key(self, row: int) -> str:
        """The name of the image of a row."""
        return self.source.key(int(self.number[row]))


def survey(
    source: Source,
    most: int | None,
    seed: int,
    workers: int,
    timeout: float,
    seen: Callable[[int], None],
    sharing: Sharing = HERE,
    kept: Kept = NOWHERE,
) -> Survey:
    """Survey `most` images, evenly over a source (None = all), or those that `kept` lacks.

    With several processes, call it on all: each looks at its share, and the main one gets all.

    Args:
        seen: called with the number of images opened since.
    """
    chosen = drop_repeats(source, evenly(len(source), most or len(source), seed))
    shards = [chosen[i : i + SHARD] for i in range(0, len(chosen), SHARD)]
    kept = kept.of(source.fingerprint(), chosen)
    there = on_main(sharing.group, lambda: kept.read(len(shards))) or {}
    missing = everywhere(sharing.group, lambda: [number for number in range(len(shards)) if number not in there])
    found: dict[int, list[Part]] = {number: [] for number in missing}
    for number, part in each_shard(missing, partial(_looks, source, shards, workers, timeout), sharing):
        found[number].append(part)
        seen(part.opened)
        if sum(one.opened for one in found[number]) == len(shards[number]):
            found[number] = [Part.joined(found[number])]
            kept.write(number, found[number][0])
    everyone = collect({number: parts[0] for number, parts in found.items() if parts})
    together = there | {number: part for parts in everyone for number, part in parts.items()}
    whole = Part.joined([together[number] for number in sorted(together)])
    columns: list[Any] = whole.columns
    return Survey(*[source, len(chosen), *columns, whole.bad])


def _looks(
    source: Source, shards: Sequence[NDArray[np.int64]], workers: int, timeout: float, numbers: Sequence[int]
) -> Iterator[tuple[int, Part]]:
    """Look at some shards; yields the number of one with a batch of it."""
    rows = [(n, shards[n][i : i + BATCH].tolist()) for n in numbers for i in range(0, len(shards[n]), BATCH)]
    batches, cpu = [batch for _, batch in rows], torch.device("cpu")
    loader = make_loader(_Looks(source), batches, workers=workers, device=cpu, timeout=timeout, collate=_part)
    with Batches(loader) as made:
        yield from zip((number for number, _ in rows), made, strict=True)


def evenly(n: int, most: int, seed: int) -> NDArray[np.int64]:
    """`most` numbers below n, or all: one drawn from each of as many equal stretches."""
    most = min(n, most)
    edges = np.arange(most + 1) * n // most
    random = stream(seed, Stream.SURVEY).random(most)
    return edges[:-1] + (random * np.diff(edges)).astype(np.int64)


def drop_repeats(source: Source, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
    """Those that are not the same picture again: an epoch of a mixture repeats what weighs more."""
    if len(source.parts) == 1:
        return numbers
    places = [source.origin(int(number)) for number in numbers]
    _, first = np.unique([(id(part), number) for part, number in places], axis=0, return_index=True)
    return numbers[np.sort(first)]


class _Looks(Dataset[Any]):
    """A Look at an image of a source, or a Bad."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def __getitems__(self, numbers: Sequence[int]) -> list[Look | Bad]:
        """Those of a batch, images that lie far away read side by side."""
        near = _Looks(self.source.ahead(numbers))
        return [near[number] for number in numbers]

    def __getitem__(self, number: int) -> Look | Bad:
        try:
            return look(self.source, number)
        except BadSample as error:
            return Bad(error.key, error.reason)


def look(source: Source, number: int) -> Look:
    """Measure one image. Raises BadSample."""
    image = source.image(number)
    counts = np.stack([np.bincount(channel.flatten().numpy(), minlength=256) for channel in image])
    shares = counts / counts.sum(axis=1, keepdims=True)
    # pixels, not bytes of the file: the same pixels in another file are the same image
    digest = blake2b(repr(tuple(image.shape)).encode(), digest_size=8)
    digest.update(image.contiguous().numpy().data)
    height, width = image.shape[-2:]
    return Look(
        number,
        height,
        width,
        shares @ (LEVELS / 255),
        shares @ (LEVELS / 255) ** 2,
        int.from_bytes(digest.digest(), "little"),
        spectrum(image),
        wrong_ending(source, number),
    )


def wrong_ending(source: Source, number: int) -> str:
    """The kind of a file whose name ends like another kind; else ''."""
    source, number = source.origin(number)
    name = source.key(number).lower()
    if not (source.encoded and name.endswith(ENDINGS)):
        return ""
    data = source.read(number)
    kind, endings = next(((kind, ends) for start, kind, ends in CONTENTS if data.startswith(start)), ("", ENDINGS))
    return "" if name.endswith(endings) else kind


def _part(looks: Sequence[Look | Bad]) -> Part:
    return Part.of((one for one in looks if isinstance(one, Look)), [one for one in looks if isinstance(one, Bad)])
