"""A billion pictures in 100,000 tars, simulated: what order and index cost a process, and how far apart neighbours lie.

    python benchmarks/billion.py [--rows 1000000000] [--shards 100000] [--ranks 64] [--folder DIR] [--json]

Nothing is simplified but the pictures: the table of all tars is kept and read as a run keeps it, indexes of tars are
real files (`--files` of them stand for all others), and samplers of all ranks are asked for their shares of batches.
Looking a picture up is everything but reading its bytes. Seconds are of the CPU: a busy machine does not matter.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from common import finish, machine, table
from scale import KEPT, MEMORY, made_up, memory

from unlabeled.data.archive import listing
from unlabeled.data.archive.index import Index
from unlabeled.data.archive.listing import IndexFolder, Listing, Stamp
from unlabeled.data.archive.places import Reading
from unlabeled.data.archive.sharded import Sharded, Shards
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.decoding.bands import Target
from unlabeled.data.order import EpochOrder
from unlabeled.data.orders import keyed, window

BATCH, OPEN, STEPS, TOGETHER = 4096, 256, 20, 10_000
ORDERS: dict[str, EpochOrder] = {
    "keyed": keyed.Config(),
    "window": window.Config(),
    "window, 8 together": window.Config(together=8),
}


class _MadeUp(Shards):
    """Indexes of tars that do not exist: a few files stand for all."""

    files: list[Path]

    def listing(self, shard: int, stamp: Stamp) -> Listing:
        found = listing.read(self.files[shard % len(self.files)], KEPT)
        assert found is not None, "it was written a moment ago"
        return found._replace(files=(stamp,))


class _Counted(_MadeUp):
    """The same, each file read once: what a table is made of."""

    def listing(self, shard: int, stamp: Stamp) -> Listing:
        return _once(self.files[shard % len(self.files)])._replace(files=(stamp,))


@cache
def _once(file: Path) -> Listing:
    found = listing.read(file, KEPT)
    assert found is not None, "it was written a moment ago"
    return found


def indexes(rows: int, files: int, folder: Path) -> list[Path]:
    """So many indexes of one tar with `rows` pictures each."""
    paths, found = [folder / f"{number}.safetensors" for number in range(files)], made_up(rows)
    names, ends, sizes = found.pictures.names, found.pictures.ends, found.pictures.sizes
    starts = np.arange(rows, dtype=np.int64) * 1024
    packed = Index(names, ends, sizes, np.zeros(rows, np.int32), starts, found.pictures.skipped)
    for path in paths:
        listing.save(path, found._replace(pictures=packed), KEPT)
    return paths


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds of this process, of all its threads."""
    began = time.process_time()
    work()
    return time.process_time() - began


def start(rows: int, count: int, files: int, folder: Path) -> tuple[Sharded, dict[str, float]]:
    """The source, and what it takes to have it: with and without a table that was kept."""
    made = indexes(rows // count, files, folder)
    stamps = [Stamp(f"/pictures/shard-{number:06d}.tar", 1 << 30, "1700000000000000000") for number in range(count)]
    before = memory([os.getpid()])

    def shards(kind: type[_MadeUp]) -> _MadeUp:
        found = kind([stamp.path for stamp in stamps], "", Reading(), "train", IndexFolder(folder / "index"), None)
        found.files = made
        return found

    making = seconds(lambda: shards(_Counted).table(stamps))
    _once.cache_clear()
    found: list[Sharded] = []

    def open_kept() -> None:
        kept = shards(_MadeUp)
        found.append(Sharded(kept, kept.table(stamps).numbered(Reading(), ""), OPEN, Target(1), 1))

    opening = seconds(open_kept)
    fingerprint = seconds(found[0].fingerprint)
    size = (folder / "index" / "by_shard" / "train.json").stat().st_size
    return found[0], {
        "table_mb": round(size / 1e6, 1),
        "table_made_s": round(making, 2),
        "start_s": round(opening + fingerprint, 2),
        "start_mb": grown(before)["anonymous_mb"],
    }


def grown(before: dict[str, float]) -> dict[str, float]:
    """Growth of this process since then, MB."""
    now = memory([os.getpid()])
    return {f"{name.lower()}_mb": round(now[name] - before[name], 1) for name in MEMORY}


def ordered(source: Sharded, order: EpochOrder, ranks: int) -> dict[str, float]:
    """Costs of an order for one of the ranks, and that all ranks together have the global batch."""
    n, total = len(source), 3 * (len(source) // BATCH)
    before, shards = memory([os.getpid()]), source.shards

    def sampler(rank: int, world: int, first: int) -> EpochSampler:
        return EpochSampler(n, BATCH, total, start=first, rank=rank, world=world, base=order, shards=shards)

    def look_up(positions: Sequence[Any]) -> None:
        for position in positions:
            pictures, row = source._at(position.index)
            assert pictures.name(row) and pictures.marks[row] and source.label(position.index) >= 0

    first = seconds(lambda: look_up(next(iter(sampler(0, ranks, 0)))))
    resumed = seconds(lambda: look_up(next(iter(sampler(ranks - 1, ranks, total - total // 5)))))
    batches = iter(sampler(0, ranks, 7))
    next(batches)
    made: list[Any] = []
    ordering = seconds(lambda: made.extend(next(batches) for _ in range(STEPS))) / STEPS
    looking = seconds(lambda: look_up(list(chain(*made)))) / STEPS
    whole = next(iter(sampler(0, 1, total // 2)))
    parts = [next(iter(sampler(rank, ranks, total // 2))) for rank in range(ranks)]
    assert [position for part in parts for position in part] == whole
    return {
        "first_batch_s": round(first, 3),
        "resume_s": round(resumed, 3),
        "order_ms": round(1e3 * ordering, 2),
        "look_up_ms": round(1e3 * looking, 2),
        **{name: value for name, value in grown(before).items() if name.startswith("anon")},
        **apart(order, shards),
    }


def apart(order: EpochOrder, shards: np.ndarray) -> dict[str, float]:
    """How many shards TOGETHER consecutive positions lie in, how often neighbours lie in one shard and side by side
    there, per cent, and how far apart, pictures."""
    numbers = order.epoch(shards, 0, 0)(np.arange(TOGETHER) + int(shards[-1]) // 3)
    of = np.searchsorted(shards, numbers, "right")
    return {
        "shards_in_10000": len(np.unique(of)),
        "neighbours_in_one_%": round(100 * float((of[1:] == of[:-1]).mean()), 2),
        "side_by_side_%": round(100 * float((np.diff(numbers) == 1).mean()), 2),
        "median_distance": float(np.median(np.abs(np.diff(numbers)))),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print a table, and one object with `--json`."""
    parser = argparse.ArgumentParser(description="A billion pictures, simulated.")
    parser.add_argument("--rows", type=int, default=10**9, help="pictures (default 10^9)")
    parser.add_argument("--shards", type=int, default=100_000, help="tars that they lie in (default 100,000)")
    parser.add_argument("--ranks", type=int, default=64, help="processes that share a batch of 4096 (default 64)")
    parser.add_argument("--files", type=int, default=512, help="indexes that are really different (default 512)")
    parser.add_argument("--folder", type=Path, help="where to make them (default: the system's temporary folder)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    print(machine())
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(dir=chosen.folder) as temporary:
        source, costs = start(chosen.rows, chosen.shards, chosen.files, Path(temporary))
        result: dict[str, Any] = {"start": costs}
        result |= {name: ordered(source, order, chosen.ranks) for name, order in ORDERS.items()}
    print(f"{len(source):,} pictures in {chosen.shards:,} tars:", ", ".join(f"{k} {v:g}" for k, v in costs.items()))
    shown: Callable[[float], str] = "{:,g}".format
    print(table(("order", *result["keyed"]), [(name, *map(shown, result[name].values())) for name in ORDERS]))
    print(f"all of it took {time.perf_counter() - began:.0f} s")
    finish(chosen, result)


if __name__ == "__main__":
    main()
