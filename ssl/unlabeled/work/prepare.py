"""The work of `unlabeled prepare`: pack small copies, with a bar."""

from __future__ import annotations

import argparse
from pathlib import Path

from unlabeled.data.archive.listing import Split
from unlabeled.data.archive.prepare import prepare
from unlabeled.data.archive.prepared import summary
from unlabeled.data.archive.storing import Settings
from unlabeled.data.source import SourceConfig
from unlabeled.errors import UserError
from unlabeled.launch.options import checked
from unlabeled.processes import claim_together, cores_each, joined
from unlabeled.progress import Clock, Task, duration, task
from unlabeled.sharing.shards import Sharing
from unlabeled.stages import load_any
from unlabeled.text import say

SHOWN = 5
TIMEOUT = 12 * 3600.0  # seconds that a process may wait at the end for another's last tar


def run(options: argparse.Namespace) -> int:
    """Prepare every source of a recipe that has a cache."""
    settings = checked(Settings, **{name: getattr(options, name) for name in Settings.model_fields})
    workers = cores_each() if options.workers is None else options.workers
    if workers < 1:
        raise UserError(f"--workers {options.workers}: expected at least 1")
    recipe = load_any(options.recipe, options.overrides)
    parts = [part for data in filter(None, (recipe.data, recipe.elsewhere)) for part in data.parts]
    sources = [(part, Path(part.cache)) for part in parts if part.cache is not None]
    if not sources:
        field = "data.cache" if len(recipe.data.parts) == 1 else "data.sources.0.cache"
        raise UserError(f"{field} is null; expected the folder to fill, such as {field}=/fast/disk/pictures")
    with joined(TIMEOUT) as group:
        for data, folder in sources:
            lock = claim_together(group, folder, "data.cache")
            try:
                _prepare(data, folder, settings, Sharing(workers, group, options.engine))
            except OSError as error:
                problem = error.strerror or str(error)
                raise UserError(f"cannot write to {folder}: {problem}. Make room; the same command goes on.") from error
            if lock:
                lock.close()
    return 0


def _prepare(data: SourceConfig, folder: Path, settings: Settings, sharing: Sharing) -> None:
    """Prepare one source, with a bar for each split."""
    clock, shown = Clock(), 0
    tasks: dict[Split, Task] = {}
    for packed in prepare(data, folder, settings, sharing):
        if packed.split not in tasks:
            tasks[packed.split] = task(f"preparing {packed.split}", packed.total)
        tasks[packed.split].advance(packed.pictures - tasks[packed.split].done)
        for key, reason in packed.bad[: SHOWN - shown] if sharing.group.is_main_process else ():
            say(f"cannot be used: {key}: {reason}")
        shown = min(SHOWN, shown + len(packed.bad))
    for done in tasks.values():
        done.close()
    if not sharing.group.is_main_process:
        return
    size = sum(file.stat().st_size for file in folder.glob("*.tar"))
    bad = sum(file.read_text(encoding="utf-8").count("\n") for file in folder.glob("*_bad.jsonl"))
    unusable = f", {bad} pictures cannot be used: {folder}/*_bad.jsonl" if bad else ""
    say(f"done in {duration(clock.seconds)}: {summary(folder)}, {size / 1e9:.2f} GB{unusable}")
    say(f"train with it: data.cache={folder}")
