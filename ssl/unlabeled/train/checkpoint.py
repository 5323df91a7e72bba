"""Checkpoints on disk: safetensors and JSON, complete or absent, verified before use.

    step-00001000/
      model.safetensors  optimizer.safetensors  rng-0.safetensors ...  state.json
      model-0-of-2.safetensors  model-1-of-2.safetensors ...   where the model is sharded: each process its own pieces
      MANIFEST.json      size and SHA-256 of every other file, written last
    refused-step-00002000/    failed verification; no longer a checkpoint of the run

A checkpoint is written beside its place under a temporary name, flushed to disk, then renamed. A checkpoint, or the
folder of all, may be a link to another disk.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from unlabeled.errors import UserError
from unlabeled.files import remove, replace_folder
from unlabeled.manifest import (
    Damaged,
    Tensors,
    parse_json,
    read_file,
    read_listed,
    verify_file,
    write_file,
    write_manifest,
)
from unlabeled.processes import from_main, gather_objects, placed, raise_together
from unlabeled.train.saving.stored import Header, Place, Stored, assembled, packed, read_header

WRITING, REMOVING = ".writing-", ".removing-"
PREFIX, REFUSED = "step-", "refused-"
Exchange = Callable[[Any], list[Any]]


def alone(value: Any) -> list[Any]:
    """The exchange of a process that writes by itself."""
    return [value]


class Checkpoint(NamedTuple):
    """A checkpoint that was verified. Its tensors are read when they are asked for."""

    folder: Path
    tensors: dict[str, dict[str, Stored]]  # by file stem
    state: dict[str, Any]  # has `step`


@dataclass(eq=False)
class Checkpoints:
    """The checkpoints of one run."""

    folder: Path  # of all checkpoints; made when the first is saved
    keep_last: int  # number of the newest to keep
    keep_every: int | None  # also keep the multiples of this step; None = no others
    say: Callable[[str], None]  # prints a warning
    check: Callable[[Checkpoint], None] = lambda _: None  # raises Damaged where a run could not resume from it
    writes: bool = True  # whether this process saves, renames and removes
    best: int | None = None  # step of a checkpoint that is never removed

    def steps(self) -> list[int]:
        """Steps that have a checkpoint, valid or not, ascending; by name, so that clocks do not matter."""
        return [step for step in self._named() if os.path.isdir(self.path(step))]

    def path(self, step: int) -> Path:
        """The folder of the checkpoint of a step."""
        return self.folder / f"{PREFIX}{step:08d}"

    # ---------------------------------------------------------------- writing

    def save(
        self,
        step: int,
        tensors: dict[str, Tensors],
        state: dict[str, Any],
        places: Mapping[str, Mapping[str, Place]] = MappingProxyType({}),
        exchange: Exchange = alone,
    ) -> Path:
        """Write one checkpoint, then remove old ones.

        Several processes may write one together: each its own files. The main one then puts it in its place.

        Args:
            step: of the checkpoint.
            tensors: of this process, by file stem; contiguous and in host memory.
            state: as JSON.
            places: of those that are pieces, by file stem and name.
            exchange: gathers a value of all processes that write.

        Raises:
            UserError: it cannot be written (full disk, quota, permissions). Earlier checkpoints are intact.
        """
        target = self.path(step)
        temporary, entries = self.folder / f"{WRITING}{target.name}", dict[str, Any]()
        try:
            with _agreed(exchange):
                if self.writes:
                    self.sweep()
                    temporary.mkdir(parents=True)
            with _agreed(exchange):
                for stem, part in tensors.items():
                    name, parts = f"{stem}.safetensors", packed(part, places.get(stem, {}))
                    entries[name] = write_file(temporary, name, parts)
            entries = {name: entry for one in exchange(entries) for name, entry in one.items()}
            with _agreed(exchange):
                if self.writes:
                    self._complete(temporary, step, entries, state)
        except OSError as error:
            if self.writes:
                self._remove(temporary)
            intact = f"{self.path(kept[-1])} is intact" if (kept := self.steps()) else "there is no earlier checkpoint"
            said = f"cannot save {target}: {error.strerror or error}; {intact}. Free space, then rerun."
            raise UserError(said) from error
        return target

    def _complete(self, temporary: Path, step: int, entries: dict[str, Any], state: dict[str, Any]) -> None:
        """Add what makes a checkpoint of a folder of tensors, and put it in its place."""
        entries["state.json"] = write_file(temporary, "state.json", [json.dumps(state, indent=1).encode()])
        write_manifest(temporary, entries)
        if os.path.lexists(self.path(step)):
            self._set_aside(step)
        replace_folder(temporary, self.path(step))
        self._prune(step)

    def sweep(self) -> None:
        """Remove the leftovers of interrupted saves."""
        for name in self._names():
            if name.startswith((WRITING, REMOVING)):
                self._remove(self.folder / name)

    def _prune(self, written: int) -> None:
        """Remove old checkpoints; those of later steps than `written` are left alone and not counted."""
        older = [step for step in self.steps() if step < written]
        for step in older[: max(0, len(older) - self.keep_last + 1)]:
            if step != self.best and not (self.keep_every and step % self.keep_every == 0):
                # renamed first: a folder that is half removed must not look like a checkpoint
                self._remove(self._rename(step, REMOVING))

    def _remove(self, path: Path) -> None:
        """Remove a folder or a link; say so, and go on, where that fails."""
        try:
            remove(path)
        except OSError as error:
            self.say(f"{path} cannot be removed: {error.strerror}")

    # ---------------------------------------------------------------- reading

    def newest(self) -> Checkpoint | None:
        """The newest checkpoint that every process can resume from; None if there is none. Call it on all processes.

        Newer ones are named and set aside, to be neither found again nor counted. Raises UserError where there are
        checkpoints, but none can be trusted.
        """
        steps = self._agreed()
        for step in reversed(steps):
            if (checkpoint := self.read(step)) is not None:
                if step != steps[-1]:
                    self.say(f"falling back to {checkpoint.folder}")
                for refused in steps[steps.index(step) + 1 :] if self.writes else []:
                    self._set_aside(refused)
                return checkpoint
        if steps:
            none = f"none of the {len(steps)} checkpoints in {self.folder} can be trusted"
            raise UserError(f"{none}. Start over with --fresh --force.")
        return None

    def read(self, step: int) -> Checkpoint | None:
        """Read a checkpoint; None, with a warning, if any process cannot resume from it. Call it on all processes."""
        contents, reason = Contents({}, {}), ""
        try:
            contents = examine(self.path(step), *placed())
            if self.writes:
                self._check(step, contents)
        except Damaged as error:
            reason = f"{error}" if self.writes else f"by another process: {error}"
        if reasons := [reason for reason in gather_objects(reason) if reason]:
            self.say(f"{self.path(step)} is refused: {reasons[0]}")
            return None
        return from_main(contents).checkpoint(self.path(step))

    def _check(self, step: int, contents: Contents) -> None:
        if contents.state["step"] != step:
            raise Damaged(f"state.json is of step {contents.state['step']}")
        self.check(contents.checkpoint(self.path(step)))

    def _agreed(self) -> list[int]:
        """Steps with anything of the name of a checkpoint, ascending; all processes must see the same."""
        steps, error = [], None
        try:
            if self.writes:
                self.sweep()
            steps = self._named()
        except UserError as caught:
            error = caught
        raise_together(error)
        seen = gather_objects(steps)
        if any(other != steps for other in seen):
            differ = f"processes see different checkpoints (steps {seen})"
            raise UserError(f"{differ}: {self.folder} must lie on a shared file system")
        return steps

    def _set_aside(self, step: int) -> None:
        """Rename what cannot be a checkpoint of the run, for a person to look at."""
        if (path := self._rename(step, REFUSED)) != self.path(step):
            self.say(f"{self.path(step)} is set aside as {path.name}; remove it when nobody wants to look at it")

    def _rename(self, step: int, prefix: str) -> Path:
        """Put a prefix before the name of a step's checkpoint; returns its new path."""
        path = self.path(step)
        names = (f"{prefix}{path.name}{f'-{n}' if n else ''}" for n in count())
        target = next(target for name in names if not os.path.lexists(target := self.folder / name))
        try:
            return path.rename(target)
        except OSError as error:
            self.say(f"{path} cannot be renamed to {target.name}: {error.strerror}")
            return path

    def _named(self) -> list[int]:
        """Steps with anything of their name, files and dangling links included."""
        found = (re.fullmatch(rf"{PREFIX}([0-9]+)", name) for name in self._names())
        steps = (int(match[1]) for match in found if match)
        return sorted({step for step in steps if os.path.lexists(self.path(step))})

    def _names(self) -> list[str]:
        """The names of everything in the folder. Raises UserError where it cannot be listed."""
        try:
            return os.listdir(self.folder)
        except OSError as error:
            if isinstance(error, FileNotFoundError) and not self.folder.is_symlink():
                return []
            raise UserError(f"{self.folder} cannot be read: {error.strerror}. Mend it, or what it links to.") from error


@contextmanager
def _agreed(exchange: Exchange) -> Iterator[None]:
    """Work that every process does alone, with one exchange at its end: an error of one is raised on all."""
    error: Exception | None = None
    try:
        yield
    except Exception as caught:
        error = caught
    reasons = exchange(None if error is None else getattr(error, "strerror", None) or str(error))
    if error is not None:
        raise error
    for rank, reason in enumerate(reasons):
        if reason is not None:
            raise OSError(None, f"process {rank}: {reason}")


class Contents(NamedTuple):
    """What a checkpoint holds: the headers of its files, and its state."""

    headers: dict[str, Header]
    state: dict[str, Any]

    def checkpoint(self, folder: Path) -> Checkpoint:
        """The checkpoint in a folder. Raises Damaged where pieces of a tensor are missing."""
        return Checkpoint(folder, assembled(folder, self.headers), self.state)


def load(folder: Path) -> Checkpoint:
    """Read and verify a checkpoint alone. Raises Damaged where a file is missing, extra, truncated, changed or
    malformed."""
    return examine(folder, 0, 1).checkpoint(folder)


def examine(folder: Path, rank: int, world: int) -> Contents:
    """Verify this process's share of a checkpoint's files, the manifest and the state; the first process reads the
    headers of all. A file is verified by the process of its number, `rng-2` by the third, and without one by the first.

    Raises Damaged as `load`.
    """
    manifest = read_listed(folder)
    state = parse_json(read_file(folder, "state.json", manifest))
    files = sorted(manifest.keys() - {"state.json"})
    for name in files:
        number = re.match(r"[a-z]+-([0-9]+)", name)
        if int(number[1] if number else 0) % world == rank:
            verify_file(folder, name, manifest)
    step = state.get("step") if isinstance(state, dict) else None
    if type(step) is not int or step < 0:
        raise Damaged(f"state.json has no step, or one that cannot be: {step!r}")
    packs = [name for name in files if name.endswith(".safetensors")]
    return Contents({name: read_header(folder / name) for name in packs} if rank == 0 else {}, state)
