"""Checkpoints on disk: safetensors and JSON, complete or absent, verified before they are believed.

    step-00001000/
      model.safetensors  optimizer.safetensors  rng-0.safetensors ...  state.json
      MANIFEST.json      size and SHA-256 of every other file, written last

A folder is written beside its place under a temporary name, flushed to disk, then renamed.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from unlabeled.errors import UserError

MANIFEST = "MANIFEST.json"
TEMPORARY = ".writing-"
PREFIX = "step-"
Tensors = dict[str, Tensor]


class Checkpoint(NamedTuple):
    """A checkpoint read back: tensors by file stem, and the state."""

    folder: Path
    tensors: dict[str, Tensors]
    state: dict[str, Any]


class Damaged(Exception):
    """A checkpoint that cannot be trusted, and why."""


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: where they lie; made when the first is saved.
        keep_last: how many of the newest to keep.
        keep_every: also keep every step that this divides; None = no others.
        say: where a warning goes.
    """

    def __init__(self, folder: Path, keep_last: int, keep_every: int | None, say: Callable[[str], None]) -> None:
        self.folder, self.keep_last, self.keep_every, self.say = folder, keep_last, keep_every, say
        self.best: int | None = None  # the step whose checkpoint is kept whatever its age

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, good or not, ascending. By name, so that a wrong clock changes nothing."""
        names = (path.name.removeprefix(PREFIX) for path in self.folder.glob(f"{PREFIX}*") if path.is_dir())
        return sorted(int(name) for name in names if name.isdigit())

    def path(self, step: int) -> Path:
        """Where the checkpoint of a step lies."""
        return self.folder / f"{PREFIX}{step:08d}"

    def save(self, step: int, tensors: dict[str, Tensors], state: dict[str, Any]) -> Path:
        """Write one checkpoint; only when it is safely on disk are old ones removed.

        Raises:
            UserError: it cannot be written (full disk, quota, permissions). Earlier checkpoints are intact.
        """
        target = self.path(step)
        temporary = self.folder / f"{TEMPORARY}{target.name}"
        try:
            self.sweep()
            temporary.mkdir(parents=True)
            files = {f"{stem}.safetensors": safetensors.torch.save(_plain(part)) for stem, part in tensors.items()}
            files["state.json"] = json.dumps(state, indent=1).encode()
            write_folder(temporary, files)
            if target.exists():  # a damaged one of the same step
                shutil.rmtree(target)
            temporary.rename(target)
            sync(self.folder)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            kept = self.steps()
            intact = f"{self.path(kept[-1])} is intact" if kept else "there is no earlier checkpoint"
            raise UserError(
                f"cannot save {target}: {error.strerror or error}; {intact}. Free space, then rerun."
            ) from error
        self._prune()
        return target

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that verifies; every newer one that does not is named. None if there is none at all.

        Raises:
            UserError: there are checkpoints, but none can be trusted.
        """
        self.sweep()
        steps = self.steps()
        for step in reversed(steps):
            try:
                checkpoint = load(self.path(step))
            except Damaged as error:
                self.say(f"{self.path(step)} is refused: {error}")
                continue
            if step != steps[-1]:
                self.say(f"falling back to {checkpoint.folder}")
            return checkpoint
        if steps:
            count = f"none of the {len(steps)} checkpoints in {self.folder}"
            raise UserError(f"{count} can be trusted. Start over with --fresh --force.")
        return None

    def sweep(self) -> None:
        """Remove what an interrupted save left behind."""
        for leftover in self.folder.glob(f"{TEMPORARY}*"):
            shutil.rmtree(leftover)

    def _prune(self) -> None:
        old = self.steps()[: -self.keep_last]
        for step in old:
            if step != self.best and not (self.keep_every and step % self.keep_every == 0):
                shutil.rmtree(self.path(step))


def load(folder: Path) -> Checkpoint:
    """Read and verify one checkpoint.

    Raises:
        Damaged: the manifest is missing, or a file is missing, extra, truncated or changed.
    """
    contents = read_verified(folder)
    try:
        tensors = {
            name.removesuffix(".safetensors"): safetensors.torch.load(data)
            for name, data in contents.items()
            if name.endswith(".safetensors")
        }
        return Checkpoint(folder, tensors, json.loads(contents["state.json"]))
    except (SafetensorError, json.JSONDecodeError, KeyError) as error:
        raise Damaged(f"unreadable contents ({error})") from error


def read_verified(folder: Path) -> dict[str, bytes]:
    """Every file that the manifest lists, after checking size and SHA-256. Raises Damaged."""
    try:
        manifest = json.loads((folder / MANIFEST).read_bytes())
    except (OSError, json.JSONDecodeError) as error:
        raise Damaged(f"no readable {MANIFEST} ({error})") from error
    found, listed = {path.name for path in folder.iterdir()} - {MANIFEST}, set(manifest)
    if found != listed:
        raise Damaged(f"missing files {sorted(listed - found)}, unexpected files {sorted(found - listed)}")
    contents = {name: (folder / name).read_bytes() for name in sorted(listed)}
    for name, data in contents.items():
        if describe(data) != manifest[name]:
            raise Damaged(f"{name} is not what was written (size or SHA-256 differ)")
    return contents


def write_folder(folder: Path, files: dict[str, bytes]) -> None:
    """Write files, then the manifest, each flushed to disk."""
    for name, data in _with_manifest(files):
        with open(folder / name, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    sync(folder)


def sync(folder: Path) -> None:
    """Flush a folder's entries to disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def describe(data: bytes) -> dict[str, Any]:
    """What a manifest says of a file."""
    return {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def _with_manifest(files: dict[str, bytes]) -> Iterator[tuple[str, bytes]]:
    yield from files.items()
    manifest = {name: describe(data) for name, data in files.items()}
    yield MANIFEST, json.dumps(manifest, indent=1).encode()


def _plain(tensors: Tensors) -> Tensors:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
