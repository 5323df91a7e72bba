"""Pictures on a server that takes its time: how fast one worker reads them, and by how many requests.

    python benchmarks/remote.py [--latency 0.04] [--tars 16] [--pictures 250] [--connections 1 8 32] [--json]

JPEGs of 160 x 120 are packed in tars, served over HTTP on the loopback by another process, every answer after so many
seconds; they are indexed, and cut into crops in batches as a worker does: one picture at a time, and by the batch, in
random order and in the tars' own.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import multiprocessing
import re
import tarfile
import tempfile
import time
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from common import finish, machine, table
from PIL import Image

from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.view.views import View

BATCH, ALONE, SIDE = 128, 50, 64
COUNT = "/requests"


def pack(folder: Path, tars: int, pictures: int) -> None:
    """Make tars of drawn JPEGs."""
    rng = np.random.default_rng(0)
    for shard in range(tars):
        with tarfile.open(folder / f"{shard:03d}.tar", "w") as tar:
            for number in range(pictures):
                small = Image.fromarray(rng.integers(0, 255, (12, 16, 3), dtype=np.uint8))
                small.resize((160, 120), Image.Resampling.BICUBIC).save(buffer := io.BytesIO(), "JPEG")
                info = tarfile.TarInfo(f"{number:05d}.jpg")
                info.size = len(buffer.getvalue())
                tar.addfile(info, io.BytesIO(buffer.getvalue()))


def serve(folder: Path, latency: float, port: Any) -> None:
    """Answer ranges of files, each after so many seconds; says how many were asked for."""
    asked = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal asked
        try:
            while True:
                head = await reader.readuntil(b"\r\n\r\n")
                name = head.split()[1].decode()
                if name == COUNT:
                    writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%d" % (len(str(asked)), asked))
                    continue
                asked += 1
                await asyncio.sleep(latency)
                writer.write(answer(folder / name.lstrip("/"), head))
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def forever() -> None:
        server = await asyncio.start_server(talk, "127.0.0.1", 0)
        port.send(server.sockets[0].getsockname()[1])
        await server.serve_forever()

    asyncio.run(forever())


def answer(file: Path, head: bytes) -> bytes:
    """The range of a file that the head of a request asks for."""
    found = re.search(rb"bytes=(\d+)-(\d+)", head)
    if found is None or not file.is_file():
        return b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n"
    first, size = int(found[1]), file.stat().st_size
    with file.open("rb") as opened:
        opened.seek(first)
        data = opened.read(int(found[2]) + 1 - first)
    lines = f"Content-Length: {len(data)}\r\nContent-Range: bytes {first}-{first + len(data) - 1}/{size}"
    return f'HTTP/1.1 206 Partial Content\r\n{lines}\r\nETag: "{file.stat().st_mtime_ns}"\r\n\r\n'.encode() + data


def read(source: Source, numbers: Sequence[int], together: bool) -> None:
    """Make the samples of batches."""
    dataset = ViewDataset(source, [View(size=SIDE)], SIDE, seed=0)
    for start in range(0, len(numbers), BATCH):
        positions = [Position(0, number) for number in numbers[start : start + BATCH]]
        collate(dataset.__getitems__(positions) if together else [dataset[one] for one in positions])


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--latency", type=float, default=0.04, help="seconds before every answer (default 0.04)")
    parser.add_argument("--tars", type=int, default=16, help="number of tars (default 16)")
    parser.add_argument("--pictures", type=int, default=250, help="pictures in each (default 250)")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32], help="data.connections")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        pack(Path(folder), given.tars, given.pictures)
        here, there = multiprocessing.Pipe()
        server = multiprocessing.Process(target=serve, args=(Path(folder), given.latency, there), daemon=True)
        server.start()
        rows = measured(f"http://127.0.0.1:{here.recv()}", Path(folder), given)
        server.kill()
    head = ("what", "pictures", "requests", "seconds", "pictures/s", "CPU ms a picture")
    print(machine())
    print(table(head, [tuple(map(str, row)) for row in rows]))
    finish(given, {"latency": given.latency, "rows": [dict(zip(head, row, strict=True)) for row in rows]})


def measured(address: str, folder: Path, given: argparse.Namespace) -> list[tuple[Any, ...]]:
    """A row for the index, and for each way to read."""

    def timed(what: str, count: int, work: Callable[[], object]) -> None:
        asked, clock, cpu = requests(address), time.perf_counter(), time.process_time()
        work()
        seconds, spent = time.perf_counter() - clock, time.process_time() - cpu
        found = (requests(address) - asked, round(seconds, 2), round(count / seconds), round(1e3 * spent / count, 2))
        rows.append((what, count, *found))

    def opened(path: str, connections: int = 1) -> Source:
        return Opened(Files(path=path, connections=connections)).train

    rows: list[tuple[Any, ...]] = []
    remote, count = f"{address}/{{000..{given.tars - 1:03d}}}.tar", given.tars * given.pictures
    timed("index", count, lambda: opened(remote))
    order = np.random.default_rng(0).permutation(count).tolist()
    local, far = opened(f"{folder}/*.tar"), opened(remote)
    timed("from the disk", count, lambda: read(local, order, together=True))
    timed("one at a time", min(ALONE, count), lambda: read(far, order[:ALONE], together=False))
    for connections in given.connections:
        source = opened(remote, connections)
        few = order[: BATCH * max(1, min(connections, count // BATCH))]
        timed(f"by the batch, {connections} connections", len(few), lambda s=source, n=few: read(s, n, together=True))  # type: ignore[misc]
    timed("in the tars' order", count, lambda: read(source, range(count), together=True))
    return rows


def requests(address: str) -> int:
    """The number of requests that the server has answered."""
    with urllib.request.urlopen(f"{address}{COUNT}") as said:
        return int(said.read())


if __name__ == "__main__":
    main()
