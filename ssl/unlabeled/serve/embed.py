"""Features of every image of a source, on any number of processes; an interrupted command is resumed.

    OUT/manifest.json            settings and images; at the end also the files
    OUT/features-00000.*         see `shards`
    OUT/bad.jsonl                images that could not be used: key and reason

A shard is written when its images are done, with a note beside it, by any process.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from pydantic import BaseModel, Field, ValidationError
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Pool, check, parts, read
from unlabeled.backbone.weights import weights_digest
from unlabeled.data.archive.prepared import different
from unlabeled.data.batch.loader import Normalize, make_loader
from unlabeled.data.batch.workers import Batches
from unlabeled.data.source import Source
from unlabeled.data.view.views import Interpolation
from unlabeled.environment import versions
from unlabeled.errors import Interrupted, UserError
from unlabeled.evaluate.features import WORKER_TIMEOUT, Bad, CentreCrops, stack_centred
from unlabeled.files import json_object, write_text
from unlabeled.manifest import sha256_of
from unlabeled.progress import track
from unlabeled.recipe import flat
from unlabeled.serve.shards import Format, Shard

log = logging.getLogger(__name__)
MANIFEST, BAD = "manifest.json", "bad.jsonl"


class Settings(BaseModel, frozen=True, extra="forbid"):
    """Settings that decide the content of the files, see the options of `embed`."""

    pool: Pool = "cls"
    tokens: bool = False
    dtype: Literal["float32", "float16"] = "float32"
    precision: Literal["no", "bf16", "fp16"] = "no"
    format: Format = "safetensors"
    shard: int = Field(4096, ge=1)
    crop_pct: float = Field(0.875, gt=0, le=1)
    interpolation: Interpolation = "bicubic"


class Note(BaseModel, frozen=True):
    """A note about a shard: size in bytes, SHA-256, number of images, and the bad ones."""

    size: int
    sha256: str
    pictures: int
    bad: list[Bad]


@torch.inference_mode()
def features_of(encoder: Encoder, images: Tensor, pool: Pool, tokens: bool) -> list[Tensor]:
    """Normalised images [B, C, h, w] to features [B, D] and, where asked for, patch tokens [B, N, D]."""
    found = encoder(images)
    features = read([found], parts(FeatureSpec(pool)), encoder.own)
    return [features, found.patches] if tokens else [features]


def batched(numbers: range, size: int) -> list[list[int]]:
    """Cut numbers into batches, the last one shorter."""
    return [list(numbers[i : i + size]) for i in range(0, len(numbers), size)]


def encoded(
    crops: CentreCrops,
    batches: Sequence[Sequence[int]],
    encode: Callable[[Tensor], list[Tensor]],
    normalize: Normalize,
    device: torch.device,
    workers: int,
) -> Generator[tuple[list[Tensor] | None, list[int], list[Bad]], None, None]:
    """Pass batches of rows of `crops` through `encode`, which takes normalised images on the device. Yields for each
    what comes out, None where no image can be used, the rows of the usable images, and the bad ones.

    Raises Interrupted when a loader worker is lost.
    """
    loader = make_loader(crops, batches, workers=workers, device=device, timeout=WORKER_TIMEOUT, collate=stack_centred)
    with Batches(loader) as made:
        for pixels, used, _, refused in made:
            out = None if pixels is None else encode(normalize(pixels.to(device, non_blocking=True)))
            yield out, used, refused


class Embedding:
    """The features of a source, written to an existing folder shard by shard, by an encoder that is on its device.

    Raises UserError where the class token is asked for and there is none.
    """

    def __init__(
        self,
        encoder: Encoder,
        source: Source,
        mean: Sequence[float],
        std: Sequence[float],
        settings: Settings,
        folder: Path,
    ) -> None:
        check(encoder, FeatureSpec(settings.pool))
        self.encoder, self.source, self.settings, self.folder = encoder.eval(), source, settings, folder
        self.mean, self.std = mean, std
        self.device = next(encoder.parameters()).device
        self.shards = range(-(-len(source) // settings.shard))
        empty = torch.zeros(1, encoder.channels, *encoder.image_size, device=self.device)
        self.nothing = [part[:0] for part in self.encode(empty)]

    def claim(self, about: dict[str, Any]) -> None:
        """Write the manifest; entries of `about` may differ when an interrupted command is resumed.

        Raises UserError where the folder holds features of other images or settings.
        """
        file, asked = self.folder / MANIFEST, self.asked()
        if file.exists():
            before = read_manifest(file)
            if others := different(flat(before["asked"]), flat(asked)):
                raise UserError(f"{self.folder} holds other features: {others}. Choose another folder, or remove it.")
            _write(file, {**before, **about})
            return
        shapes = {name: [None, *part.shape[1:]] for name, part in self._named(self.nothing).items()}
        about = {**about, "classes": list(self.source.classes), "shapes": shapes, "versions": versions()}
        _write(file, {"asked": asked, **about, "complete": False, "files": {}})

    def asked(self) -> dict[str, Any]:
        """Everything that decides the content of the files."""
        return {
            "encoder": {"architecture": self.encoder.model, "weights": weights_digest(self.encoder.state_dict())},
            "preprocessing": {
                "size": list(self.encoder.image_size),
                "crop_pct": self.settings.crop_pct,
                "interpolation": self.settings.interpolation,
                "mean": list(self.mean),
                "std": list(self.std),
            },
            "pictures": {"count": len(self.source), "fingerprint": self.source.fingerprint()},
            **self.settings.model_dump(exclude={"crop_pct", "interpolation"}),
        }

    def missing(self) -> list[int]:
        """Numbers of shards that are missing or damaged; every file is read once, and damaged ones are logged."""
        manifest = read_manifest(self.folder / MANIFEST)
        there = [number for number in self.shards if self._file(number).exists()]
        checked = track(there, "checking what is there", len(there))
        good = {number for number in checked if self._intact(number, manifest)}
        return [number for number in self.shards if number not in good]

    def count(self, numbers: Sequence[int]) -> int:
        """Number of images of some shards, bad ones included."""
        return sum(len(self._pictures(number)) for number in numbers)

    def finish(self) -> dict[str, Any]:
        """Complete the manifest, which replaces the notes, and list the bad images."""
        manifest, notes = read_manifest(self.folder / MANIFEST), {}
        os.listdir(self.folder)  # a network file system may remember that there were no such files
        for number in self.shards:
            if (note := self._noted(number, manifest)) is None:
                raise Interrupted(f"{self._file(number)} is gone or has changed. The same command makes it again.")
            notes[self._file(number).name] = note.model_dump(mode="json")
        refused = (entry for note in notes.values() for entry in note["bad"])
        bad = [json.dumps({"key": key, "reason": reason}) + "\n" for key, reason in refused]
        (self.folder / BAD).write_text("".join(bad), encoding="utf-8")
        written = sum(note["pictures"] for note in notes.values())
        manifest |= {"complete": True, "written": written, "bad": len(bad), "files": notes}
        manifest["skipped"] = dict(self.source.skipped)
        _write(self.folder / MANIFEST, manifest)
        for number in self.shards:
            self._note(number).unlink(missing_ok=True)
        return manifest

    def _intact(self, number: int, manifest: dict[str, Any]) -> bool:
        """Whether a shard is as it was written; a damaged one is logged."""
        note, file = self._noted(number, manifest), self._file(number)
        with suppress(OSError):
            if note is not None and sha256_of(file) == note.sha256:
                return True
        log.warning("%s is not what was written (size or SHA-256 differ): it is made again", file)
        return False

    def _noted(self, number: int, manifest: dict[str, Any]) -> Note | None:
        """The note about a shard; None where none fits its size."""
        file = self._file(number)
        for noted in (_object(self._note(number)), manifest["files"].get(file.name)):  # the note is newer
            with suppress(OSError, ValidationError):
                note = Note.model_validate(noted)
                if file.stat().st_size == note.size:
                    return note
        return None

    def _file(self, number: int) -> Path:
        return self.folder / f"features-{number:05d}.{self.settings.format}"

    def _note(self, number: int) -> Path:
        return self._file(number).with_suffix(".json")

    def run(
        self, numbers: Sequence[int], accelerator: Accelerator, batch_size: int, workers: int
    ) -> Iterator[tuple[int, list[Bad]]]:
        """Write some shards; yields, for every batch, the number of images and the bad ones.

        Raises:
            Interrupted: a loader worker is lost. Files that are done stay.
            OSError: the disk is full.
        """
        how = self.encoder.image_size, self.settings.crop_pct, self.settings.interpolation
        crops = CentreCrops(self.source, np.arange(len(self.source)), *how)
        parts = [batched(self._pictures(number), batch_size) for number in numbers]
        batches = [batch for part in parts for batch in part]

        def encode(images: Tensor) -> list[Tensor]:
            with accelerator.autocast():
                return self.encode(images)

        made = encoded(crops, batches, encode, Normalize(self.mean, self.std, self.device), self.device, workers)
        with closing(made):
            for number, part in zip(numbers, parts, strict=True):
                good: list[int] = []
                bad: list[Bad] = []
                found = [self.nothing]
                for batch in part:
                    features, used, refused = next(made)
                    found += [] if features is None else [features]
                    good, bad = good + used, bad + refused
                    yield len(batch), refused
                self._write(number, good, bad, [torch.cat(column).cpu() for column in zip(*found, strict=True)])

    def encode(self, images: Tensor) -> list[Tensor]:
        """See `features_of`."""
        dtype = getattr(torch, self.settings.dtype)
        return [part.to(dtype) for part in features_of(self.encoder, images, self.settings.pool, self.settings.tokens)]

    def _pictures(self, number: int) -> range:
        size = self.settings.shard
        return range(number * size, min((number + 1) * size, len(self.source)))

    def _write(self, number: int, good: list[int], bad: list[Bad], encoded: list[Tensor]) -> None:
        index, file = torch.tensor(good, dtype=torch.int64), self._file(number)
        keys, labels = [self.source.key(i) for i in good], torch.from_numpy(self.source.labels[good])
        named = self._named(encoded)
        Shard(index, keys, labels, named["features"], named.get("tokens")).write(file)
        note = Note(size=file.stat().st_size, sha256=sha256_of(file), pictures=len(good), bad=bad)
        _write(self._note(number), note.model_dump(mode="json"))

    def _named(self, parts: list[Tensor]) -> dict[str, Tensor]:
        return dict(zip(("features", "tokens"), parts, strict=False))


def read_manifest(file: Path) -> dict[str, Any]:
    """What is known of features. Raises UserError when it cannot be read."""
    found = _object(file)
    if not isinstance(found.get("asked"), dict) or not isinstance(found.get("files"), dict):
        raise UserError(f"{file} cannot be read, or is no manifest of features. Remove {file.parent}, and embed again.")
    return found


def _object(file: Path) -> dict[str, Any]:
    """The JSON object in a file; {} where there is none."""
    try:
        return json_object(file.read_bytes())
    except OSError:
        return {}


def _write(file: Path, content: dict[str, Any]) -> None:
    write_text(file, json.dumps(content, indent=1) + "\n")
