"""What a picture costs before it is looked at: at the start of a run, and in memory.

    python benchmarks/scale.py [--entries 10000 1000000 10000000] [--files 1000000] [--folder DIR] [--json]

An index of so many entries is made up, written as a run keeps it, and read back as the next start does. With `--files`
a folder of so many empty files is made, looked through, and opened again from the kept index. Workers are watched over
an epoch in which they look up every picture of the largest index of at most a million entries.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish, machine, seconds, table
from torch.utils.data import Dataset

from unlabeled.data.archive import listing
from unlabeled.data.archive.index import Index
from unlabeled.data.archive.listing import IndexFolder, Listing
from unlabeled.data.archive.pictures import Folder, Pictures
from unlabeled.data.batch.loader import make_loader
from unlabeled.data.batch.sampler import EpochSampler, Position
from unlabeled.data.decoding.bands import Target
from unlabeled.data.opened import Opened
from unlabeled.data.orders.shuffle import epoch_order
from unlabeled.data.sources.files import Config as Files

WORKERS, BATCH, MOST = 4, 1000, 1_000_000
PER_CLASS = 1000
KEPT = "made up"
MEMORY = ("Rss", "Anonymous")


def made_up(n: int) -> Listing:
    """An index like ImageNet's, of n entries in classes of a thousand."""
    names = b"".join(b"n%08d/n%08d_%08d.JPEG" % (i // PER_CLASS, i // PER_CLASS, i) for i in range(n))
    length = len(names) // n
    index = Index(
        np.frombuffer(names, np.uint8),
        np.arange(n + 1, dtype=np.int64) * length,
        np.full(n, 1, np.int64),
        np.zeros(0, np.int32),
        np.zeros(0, np.int64),
        Counter(),
    )
    labels = np.arange(n, dtype=np.int64) // PER_CLASS
    return Listing.of(index, tuple(f"n{k:08d}" for k in range(labels[-1] + 1)), labels)


def entries(n: int, folder: Path) -> dict[str, float]:
    """Costs of an index of n entries."""
    file = folder / f"{n}.safetensors"
    found = made_up(n)
    writing = seconds(lambda: listing.save(file, found, KEPT))
    starts = [seconds(lambda: opened(file).fingerprint()) for _ in range(3)]
    ordering = seconds(lambda: epoch_order(n, 0, 0))
    return {
        "bytes_per_entry": round(file.stat().st_size / n, 1),
        "write_s": round(writing, 3),
        "start_s": round(min(starts), 3),
        "order_s": round(ordering, 3),
    }


def opened(file: Path) -> Pictures:
    """The pictures of a kept index, which nobody looks at."""
    found = listing.read(file, KEPT)
    assert found is not None, "it was written a moment ago"
    return Pictures(_Nowhere(b"/nowhere"), found, Target(1))


class _Nowhere(Folder):
    """Looks up where a picture would lie, as a folder does, and gives one byte."""

    def read(self, index: Index, i: int) -> bytes:
        return self.path(index, i)[:1]


class _LookUps(Dataset[int]):
    def __init__(self, source: Pictures) -> None:
        self.source = source

    def __getitem__(self, position: Position) -> int:
        i = position.index
        return len(self.source.read(i)) + len(self.source.key(i)) + int(self.source.labels[i])


def workers(n: int, folder: Path) -> dict[str, float]:
    """Growth of the workers' memory over an epoch, MB for all of them together, and lookups per second."""
    order = EpochSampler(n, BATCH, n // BATCH)
    loader = make_loader(
        _LookUps(opened(folder / f"{n}.safetensors")),
        order,
        workers=WORKERS,
        device=torch.device("cpu"),
        timeout=600,
        collate=torch.tensor,
    )
    batches = iter(loader)
    pids = [worker.pid for worker in batches._workers]  # type: ignore[attr-defined]
    before, after, began = memory(pids), {}, time.perf_counter()
    for left, _ in zip(range(n // BATCH, 0, -1), batches, strict=True):
        if left == WORKERS:  # they end with their last batches
            after = memory(pids)
    spent = time.perf_counter() - began
    grown = {f"{name.lower()}_mb": round(after[name] - before[name], 1) for name in MEMORY}
    return {**grown, "lookups_per_s": round(n / spent)}


def memory(pids: Sequence[int]) -> dict[str, float]:
    """MB of processes together: resident, and of that what is not mapped from files."""
    total = dict.fromkeys(MEMORY, 0.0)
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
            name, _, value = line.partition(":")
            if name in total:
                total[name] += int(value.split()[0]) / 1024
    return total


def files(n: int, folder: Path) -> dict[str, float]:
    """Seconds to look through a folder of n files, and to open it again."""
    making = seconds(lambda: make(n, folder / "files"))
    data = {"path": str(folder / "files")}
    long_ago = time.time() - 3600
    for path, _, _ in os.walk(folder / "files"):
        os.utime(path, (long_ago, long_ago))

    def open_kept() -> None:
        config = Files(**data)
        assert len(Opened(config, IndexFolder(folder / "index")).train) == n

    scanning = seconds(open_kept)
    return {"make_s": round(making, 1), "scan_s": round(scanning, 2), "start_s": round(seconds(open_kept), 3)}


def make(n: int, root: Path) -> None:
    """So many empty files, a thousand to a folder."""
    for first in range(0, n, PER_CLASS):
        folder = root / f"{first // PER_CLASS:08d}"
        folder.mkdir(parents=True)
        for i in range(first, min(first + PER_CLASS, n)):
            os.close(os.open(folder / f"{i:08d}.jpg", os.O_CREAT | os.O_WRONLY))


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and one object with `--json`."""
    parser = argparse.ArgumentParser(description="Start and memory per picture.")
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 1_000_000, 10_000_000])
    parser.add_argument("--files", type=int, default=0, help="also a folder of so many empty files")
    parser.add_argument("--folder", type=Path, help="where to make them (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    print(machine())
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        folder = Path(temporary)
        result: dict[str, Any] = {str(n): entries(n, folder) for n in chosen.entries}
        watched = [n for n in chosen.entries if n <= MOST]
        if watched and os.path.exists("/proc/self/smaps_rollup"):
            result["workers"] = {"entries": max(watched), **workers(max(watched), folder)}
        if chosen.files:
            result["files"] = {"files": chosen.files, **files(chosen.files, folder)}
    print(table(("entries", *result[str(chosen.entries[0])]), list(rows(result, chosen.entries))))
    for name in ("workers", "files"):
        if name in result:
            print(name, ", ".join(f"{key} {value:,}" for key, value in result[name].items()))
    finish(chosen, result)


def rows(result: dict[str, Any], counts: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """The table's."""
    shown: Callable[[float], str] = "{:g}".format
    for n in counts:
        yield (f"{n:,}", *map(shown, result[str(n)].values()))


if __name__ == "__main__":
    main()
