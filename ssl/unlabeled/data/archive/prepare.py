"""`unlabeled prepare`: every image decoded once, made smaller and packed, so that training need not.

Each tar is one piece of work: it is written beside its place, read back, and only then put there with a note of what
is in it. Whatever ends the program, the same command goes on with the tars that are missing.
"""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from unlabeled.data.archive import listing
from unlabeled.data.archive.contents import ENDING, write_manifest
from unlabeled.data.archive.index import IndexBuilder
from unlabeled.data.archive.listing import IndexFolder, Listing, Split, Stamp
from unlabeled.data.archive.prepared import ASKED, Record, different, fingerprint, index_file, which
from unlabeled.data.archive.storing import Settings
from unlabeled.data.decoding.decode import decode
from unlabeled.data.opened import Opened
from unlabeled.data.source import MAX_PIXELS, Source, SourceConfig
from unlabeled.data.view.views import resize
from unlabeled.errors import BadSample, Interrupted, UserError
from unlabeled.files import replacing
from unlabeled.manifest import sha256_of
from unlabeled.processes import everywhere, gather_objects, on_main, share, together
from unlabeled.progress import track
from unlabeled.sharing.shards import Sharing, each_shard

log = logging.getLogger(__name__)
ENDINGS = {"raw": "npy", "jpeg": "jpg"}


class Done(NamedTuple):
    """The contents of one tar: its size in bytes, where its images lie, and their CRC-32."""

    size: int
    sha256: str
    starts: list[int]
    sizes: list[int]
    sums: list[int]
    bad: list[tuple[int, str]]  # numbers and reasons of images that cannot be used: they are in the tar as they were


class Preparation:
    """One split of a source, of so many channels, on its way into a folder."""

    def __init__(self, source: Source, split: Split, folder: Path, settings: Settings, channels: int) -> None:
        self.source, self.split, self.folder, self.settings = source, split, folder, settings
        self.channels = channels
        self.tars = -(-len(source) // settings.shard)
        self.index = listing.read(index_file(folder, split), ASKED)  # written when all is done

    def pictures(self, number: int) -> range:
        """The images of a tar."""
        return range(number * self.settings.shard, min((number + 1) * self.settings.shard, len(self.source)))

    def missing(self) -> list[int]:
        """The tars that are not there as they were written, of which damaged ones are named. All are read once."""
        there = [number for number in range(self.tars) if self._tar(number).exists()]
        good = {number for number in track(there, "checking what is there", len(there)) if self._intact(number)}
        return [number for number in range(self.tars) if number not in good]

    def _intact(self, number: int) -> bool:
        """Whether a tar is as it was written; log where it is not."""
        tar, known = self._tar(number), self._stamp(number)
        if known is not None and tar.stat().st_size == known.size and known.tag in ("", _tag(sha256_of(tar))):
            return True
        log.warning("%s is not what was written (size or SHA-256 differ): it is made again", tar)
        return False

    def _stamp(self, number: int) -> Stamp | None:
        """The expected size and hash of a tar; the tag is '' in folders that older versions prepared."""
        if self.index is not None:
            return self.index.files[number]
        done = self.done(number)
        return None if done is None else Stamp(self._tar(number).name, done.size, _tag(done.sha256))

    def done(self, number: int) -> Done | None:
        """The note of a tar, while there is no index; None where its size differs."""
        try:
            said = json.loads(self._note(number).read_text(encoding="utf-8"))
            done = Done(**{**said, "bad": [(i, reason) for i, reason in said["bad"]]})
            return done if self._tar(number).stat().st_size == done.size else None
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None

    def packed(self, numbers: Sequence[int]) -> Iterator[tuple[int, Done]]:
        """Write some tars; yields each number with what was written."""
        for number in numbers:
            yield number, self.pack(number)

    def pack(self, number: int) -> Done:
        with replacing(self._tar(number)) as temporary:
            done = self._write(temporary, self.pictures(number))
            self._check(temporary, done, self.pictures(number))
            done = done._replace(sha256=sha256_of(temporary))
        self._note(number).write_text(json.dumps(done._asdict()), encoding="utf-8")
        return done

    def finish(self) -> None:
        """Write the index of all tars, which replaces the notes on each, and the list of bad images."""
        builder, stamps, bad = IndexBuilder(), [], []
        os.listdir(self.folder)  # a network file system may remember that there were no such files
        for number in range(self.tars):
            if (done := self.done(number)) is None:
                raise Interrupted(f"{self._tar(number)} is gone or has changed. The same command makes it again.")
            stamps.append(Stamp(self._tar(number).name, done.size, _tag(done.sha256)))
            bad += [json.dumps({"key": self.source.key(i), "reason": reason}) + "\n" for i, reason in done.bad]
            for i, start, size in zip(self.pictures(number), done.starts, done.sizes, strict=True):
                builder.add_stored(self.source.key(i).encode("utf-8", "surrogateescape"), number, start, size)
        found = Listing.of(builder.build(), self.source.classes, self.source.labels, tuple(stamps))
        own = fingerprint(self.source.fingerprint(), self.settings)
        (self.folder / f"{self.split}_bad.jsonl").write_text("".join(bad), encoding="utf-8")
        listing.save(index_file(self.folder, self.split), found._replace(fingerprint=own), ASKED)
        for number in range(self.tars):
            self._note(number).unlink()

    def mended(self, numbers: Sequence[int]) -> None:
        """Tars that the index knows were made again. Raises UserError when they became others than they were, so
        that they do not suit it."""
        for number in numbers:
            if not self._intact(number):
                raise UserError(
                    f"{self._tar(number)} is not what it was, though it was made again: by other versions of packages? "
                    f"Remove {self.folder} and prepare it again."
                )
            self._note(number).unlink()

    def describe(self) -> None:
        """Write the manifest of every tar that lacks one."""
        index = listing.read(index_file(self.folder, self.split), ASKED)
        for number in range(self.tars) if index is not None else ():
            tar, rows = self._tar(number), self.pictures(number)
            if index is not None and not Path(f"{tar}{ENDING}").exists():
                places = zip(rows, index.pictures.starts[rows], index.pictures.sizes[rows], strict=True)
                members = [(self._member(i).encode(), int(start), int(size)) for i, start, size in places]
                write_manifest(tar, members, index.classes, index.labels[rows])

    def _write(self, file: Path, pictures: range) -> Done:
        done = Done(0, "", [], [], [], [])
        source = self.source.ahead(pictures)
        with tarfile.open(file, "w", format=tarfile.USTAR_FORMAT) as tar:
            for i in pictures:
                data, problem = self._stored(source, i)
                member = tarfile.TarInfo(self._member(i))
                member.size = len(data)
                done.starts.append(tar.offset + tarfile.BLOCKSIZE)
                done.sizes.append(len(data))
                done.sums.append(zlib.crc32(data))
                tar.addfile(member, io.BytesIO(data))
                if problem is not None:
                    done.bad.append((i, problem))
        return done._replace(size=file.stat().st_size)

    def _stored(self, source: Source, i: int) -> tuple[bytes, str | None]:
        """Encoded bytes of image i; if it cannot be decoded, its original bytes (it will fail alike) and the reason."""
        try:
            return encode(shrink(source.image(i), self.settings.short_side), self.settings), None
        except BadSample as error:
            data = b""
            with suppress(BadSample):
                data = source.read(i)
            return data, error.reason

    def _check(self, file: Path, done: Done, pictures: range) -> None:
        """Read back what was written, from the disk where the system allows it, and decode it."""
        unusable = {i for i, _ in done.bad}
        with file.open("rb") as written:
            _to_disk(written.fileno())
            for i, start, size, checksum in zip(pictures, done.starts, done.sizes, done.sums, strict=True):
                written.seek(start)
                data = written.read(size)
                if zlib.crc32(data) != checksum:
                    raise UserError(
                        f"{file} does not hold what was written to it at byte {start}. Check the disk, or take another."
                    )
                if i not in unusable:
                    decode(data, MAX_PIXELS, self.source.key(i), self.channels)

    def _member(self, i: int) -> str:
        """The name of image i in its tar."""
        return f"{i:09d}.{ENDINGS[self.settings.format]}"

    def _tar(self, number: int) -> Path:
        return self.folder / f"{self.split}-{number:05d}.tar"

    def _note(self, number: int) -> Path:
        return self._tar(number).with_suffix(".json")


def _tag(sha256: str) -> str:
    return f"sha256:{sha256}"


def _to_disk(descriptor: int) -> None:
    os.fsync(descriptor)
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)


def shrink(picture: Tensor, short_side: int) -> Tensor:
    """An image [C, H, W] uint8 with a short side of at most so many pixels, by antialiased bicubic interpolation."""
    height, width = picture.shape[-2:]
    scale = short_side / min(height, width)
    if scale >= 1:
        return picture
    return resize(picture, (max(1, round(height * scale)), max(1, round(width * scale))), "bicubic")


def encode(picture: Tensor, settings: Settings) -> bytes:
    """An image [C, H, W] uint8 as the bytes of a `.npy` [H, W, C] or of a JPEG. Raises UserError for a JPEG of other
    than 1 or 3 channels."""
    pixels, buffer = np.ascontiguousarray(picture.permute(1, 2, 0).numpy()), io.BytesIO()
    if settings.format == "raw":
        np.save(buffer, pixels)
    elif pixels.shape[2] not in (1, 3):
        raise UserError(f"a JPEG has 1 or 3 channels, the pictures have {pixels.shape[2]}. Use --format raw.")
    else:
        Image.fromarray(pixels.squeeze(2) if pixels.shape[2] == 1 else pixels).save(
            buffer, "JPEG", quality=settings.quality
        )
    return buffer.getvalue()


# ---------------------------------------------------------------- all of it


def prepare(data: SourceConfig, folder: Path, settings: Settings, sharing: Sharing) -> Iterator[Packed]:
    """Fill a folder with a source's images, tar after tar, from where an earlier try stopped. Every process of a group
    makes its share, and hears of that alone.

    Raises:
        UserError: the folder was prepared from other images or in another way, or the disk is full.
    """
    group = sharing.group
    # classes are numbered when the folder is opened
    data = data.model_copy(update={"classes": None})
    splits: tuple[Split, ...] = ("train", "val") if data.has_val else ("train",)
    opened = Opened(data, IndexFolder(folder / "index", write=group.is_main_process))
    # one process looks for images, the others read its index
    on_main(group, lambda: [opened.original(split) for split in splits], whole=False)
    with together():
        sources = {split: opened.original(split) for split in splits}
        fingerprints = {split: source.fingerprint() for split, source in sources.items()}
    _agree(fingerprints)
    on_main(group, lambda: _claim(folder, Record(settings=settings, data=which(data), fingerprints=fingerprints)))
    for split, source in sources.items():
        preparation = Preparation(source, split, folder, settings, data.channels)
        missing = everywhere(group, preparation.missing)
        yield from _packed(preparation, missing, sharing)
        on_main(group, preparation.finish if preparation.index is None else partial(preparation.mended, missing))
        on_main(group, preparation.describe)


class Packed(NamedTuple):
    """How far it is: images packed of all in a split, but for other processes' shares, and what was found bad in the
    newest tar."""

    split: Split
    pictures: int
    total: int
    bad: list[tuple[str, str]]


def _claim(folder: Path, record: Record) -> None:
    before = Record.read(folder)
    if before is None:
        record.write(folder)
        return
    what = different(before.data, record.data) or different(before.settings.model_dump(), record.settings.model_dump())
    if what or before.fingerprints != record.fingerprints:
        raise UserError(
            f"{folder} was prepared otherwise: {what or 'the pictures themselves have changed'}. "
            "Choose another folder, or remove it."
        )


def _agree(fingerprints: dict[Split, str]) -> None:
    """Raise UserError on all processes where one has found other images."""
    for rank, found in enumerate(seen := gather_objects(fingerprints)):
        if found != seen[0]:
            raise UserError(
                f"process {rank} has other pictures than process 0. Every process must read the same files: put them "
                "on a file system that all machines share, or copy them again."
            )


def _packed(preparation: Preparation, missing: Sequence[int], sharing: Sharing) -> Iterator[Packed]:
    def pictures(numbers: Sequence[int]) -> int:
        return sum(len(preparation.pictures(number)) for number in numbers)

    count = len(preparation.source) - pictures(missing)
    total = count + pictures(share(sharing.group, missing))
    yield Packed(preparation.split, count, total, [])
    for number, done in each_shard(missing, preparation.packed, sharing):
        count += len(preparation.pictures(number))
        bad = [(preparation.source.key(i), reason) for i, reason in done.bad]
        yield Packed(preparation.split, count, total, bad)
