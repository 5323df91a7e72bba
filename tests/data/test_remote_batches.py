"""Batches of pictures that lie on another machine: read side by side, and the same as from the disk."""

from __future__ import annotations

import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from pictured import pack
from PIL import Image
from support import Asked, served

from unlabeled.data.archive import remote
from unlabeled.data.archive.http import Identity
from unlabeled.data.archive.remote import GAP, RANGE, Ahead, Piece, joined
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import RawBatch, collate
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.data.sources.mixture import Config as Mixture
from unlabeled.data.view.views import View
from unlabeled.errors import Interrupted, UserError
from unlabeled.evaluate.features import CentreCrops, stack_centred

pytest.importorskip("aiohttp")
COUNT, LATENCY, BAD = 24, 0.04, 5
ORDER = np.random.default_rng(0).permutation(2 * COUNT).tolist()
FILE = Identity(1 << 40, '"tag"')


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tars of labelled pictures with large files between them, one picture of each damaged."""
    folder = tmp_path_factory.mktemp("tars")
    for shard in range(2):
        members = dict[str, bytes]()
        for number in range(COUNT):
            name = f"c{number % 3}/{number:02d}"
            members |= {f"{name}.png": picture(shard, number), f"{name}.txt": bytes(GAP)}
        pack(folder / f"s-{shard}.tar", members)
    return folder


def picture(shard: int, number: int) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng((shard, number)).integers(256, size=(9 + number, 11, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()[: 60 if number == BAD else None]


def batch(source: Source, numbers: list[int], together: bool = True) -> RawBatch:
    dataset = ViewDataset(source, [View(size=8, count=2)], 8, seed=3)
    positions = [Position(2, number) for number in numbers]
    return collate(dataset.__getitems__(positions) if together else [dataset[one] for one in positions])


def mixed(path: str) -> Mixture:
    parts = [Files(path=f"{path}/s-{number}.tar") for number in (0, 1)]
    return Mixture(sources=tuple(parts), weights=(3.0, 1.0))


SOURCES: dict[str, Callable[[str], Source]] = {
    "tars": lambda path: Opened(Files(path=f"{path}/s-{{0,1}}.tar")).train,
    "held out": lambda path: Opened(Files(path=f"{path}/s-{{0,1}}.tar", split=0.1)).train,
    "part": lambda path: Part(Opened(Files(path=f"{path}/s-{{0,1}}.tar")).train, np.arange(1, 2 * COUNT, 2)),
    "mixture": lambda path: Opened(mixed(path)).train,
}


@pytest.mark.parametrize("kind", SOURCES)
def test_a_remote_batch_is_the_local_one_to_the_bit(folder: Path, kind: str) -> None:
    local, asked = SOURCES[kind](str(folder)), Asked()
    numbers = [number for number in ORDER if number < len(local)]
    with served(folder, asked=asked) as address:
        there = SOURCES[kind](address)
        asked.names.clear()
        near, far = batch(local, numbers, together=False), batch(there, numbers)
    assert torch.equal(near.crops[0].pixels, far.crops[0].pixels) and torch.equal(near.index, far.index)
    assert torch.equal(near.labels, far.labels)
    assert [reason for _, reason in near.bad] == [reason for _, reason in far.bad] and near.bad
    assert len(asked.names) <= len(numbers) + len(far.bad)  # one for each, and for what takes the place of a bad one


def test_they_are_read_side_by_side(folder: Path) -> None:
    asked, one = Asked(), Asked()
    with served(folder, asked=asked, latency=LATENCY) as address:
        source = Opened(Files(path=f"{address}/s-{{0,1}}.tar")).train
        asked.most = 0
        batch(source, ORDER)
        assert asked.most >= 8
    with served(folder, asked=one) as address:
        source = Opened(Files(path=f"{address}/s-{{0,1}}.tar", connections=1)).train
        one.most = 0
        batch(source, ORDER)
        assert one.most <= 2  # the next is asked for while the server ends the last


def test_frozen_features_read_a_batch_too(folder: Path) -> None:
    asked, shape = Asked(), (8, 8)
    with served(folder, asked=asked, latency=LATENCY) as address:
        sources = [Opened(Files(path=f"{path}/s-{{0,1}}.tar")).train for path in (str(folder), address)]
        near, far = (CentreCrops(source, np.array(ORDER), shape, 1.0, "bicubic") for source in sources)
        asked.most, rows = 0, list(range(len(ORDER)))
        found, expected = stack_centred(far.__getitems__(rows)), stack_centred([near[row] for row in rows])
    assert found[0] is not None and expected[0] is not None and torch.equal(found[0], expected[0])
    assert found[1:3] == expected[1:3] and asked.most >= 8


def test_what_is_on_the_disk_is_read_as_it_was(folder: Path) -> None:
    source = Opened(Files(path=f"{folder}/s-*.tar")).train
    assert torch.equal(batch(source, ORDER).crops[0].pixels, batch(source, ORDER, False).crops[0].pixels)
    assert vars(vars(source.ahead(ORDER))["_place"])["_ahead"] is None


def test_other_file_systems_are_read_ahead_too(folder: Path) -> None:
    near, far = (Opened(Files(path=f"{path}/s-*.tar")).train for path in (str(folder), f"file://{folder}"))
    assert torch.equal(batch(far, ORDER).crops[0].pixels, batch(near, ORDER, together=False).crops[0].pixels)
    assert vars(vars(far.ahead(ORDER))["_place"])["_ahead"] is not None


def test_what_fails_once_is_asked_for_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    local, fails = Opened(Files(path=f"{folder}/s-0.tar")).train, {"s-0.tar": 0}
    with served(folder, fails) as address:
        source = Opened(Files(path=f"{address}/s-0.tar")).train
        fails["s-0.tar"] = 3
        far = batch(source, list(range(10)))
        assert torch.equal(far.crops[0].pixels, batch(local, list(range(10))).crops[0].pixels) and not fails["s-0.tar"]
        fails["s-0.tar"] = 1000
        with pytest.raises(Interrupted, match="answers 503"):
            batch(source, list(range(10)))


def test_who_ends_early_asks_for_no_more(folder: Path) -> None:
    asked = Asked()

    def ask(path: str) -> int:
        return len([remote.identity(path) for _ in range(1 if path.endswith("0.tar") else 100)])

    with served(folder, asked=asked, latency=LATENCY) as address:
        answers = remote.side_by_side(ask, [f"{address}/s-0.tar", *[f"{address}/s-1.tar"] * 40])
        assert next(answers) == 1
        answers.close()  # type: ignore[attr-defined]
        time.sleep(5 * LATENCY)
        before = len(asked.names)
        time.sleep(5 * LATENCY)
        assert len(asked.names) == before < 10 * remote.AT_ONCE


def test_a_tar_that_changed_ends_the_run(tmp_path: Path, folder: Path) -> None:
    (tmp_path / "s-0.tar").write_bytes((folder / "s-0.tar").read_bytes())
    with served(tmp_path) as address:
        source = Opened(Files(path=f"{address}/s-0.tar")).train
        (tmp_path / "s-0.tar").write_bytes((folder / "s-1.tar").read_bytes())
        with pytest.raises(UserError, match="has changed since it was indexed"):
            batch(source, [3, 7])


def piece(start: int, size: int, path: str = "a") -> Piece:
    return Piece(path, start, size, FILE)


def test_neighbours_are_read_in_one_range() -> None:
    close, behind = piece(0, 100), piece(100 + GAP, 50)
    far, other = piece(151 + 2 * GAP, 10), piece(0, 100, "b")
    ranges = joined([far, behind, other, close, close])
    assert ranges[close] is ranges[behind] and (ranges[close].start, ranges[close].end) == (0, 150 + GAP)
    assert ranges[close].left == 3 and len({id(one) for one in ranges.values()}) == 3
    large = [piece(start, RANGE // 2) for start in range(0, 2 * RANGE, RANGE // 2)]
    assert [(one.start, one.end) for one in dict.fromkeys(joined(large).values())] == [(0, RANGE), (RANGE, 2 * RANGE)]
    assert (inside := joined([piece(0, 100), piece(10, 20)])[piece(10, 20)]).end == 100 and inside.start == 0


def test_no_more_is_held_than_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []

    def range_of(_path: str, start: int, size: int, _file: Identity) -> bytes:
        read.append(start)
        return start.to_bytes(8, "big") + bytes(size - 8)

    monkeypatch.setattr(remote, "read_range", range_of)
    monkeypatch.setattr(remote, "HELD", 2 * RANGE)
    pieces = [piece(number * 2 * RANGE, RANGE) for number in (3, 0, 2, 1, 0)]
    ahead = Ahead(pieces, connections=1)
    for place, (one, begun) in enumerate(zip(pieces, (3, 3, 4, 4, 4), strict=True)):
        assert len(ahead.take(one)) == RANGE, place
        assert sum(whole.coming is not None or not whole.left for whole in {*joined_of(ahead)}) == begun
    assert read == [one.start for one in pieces[:4]]  # the same piece twice: read once
    assert ahead.take(pieces[0])[:8] == pieces[0].start.to_bytes(8, "big") and len(read) == 5


def joined_of(ahead: Ahead) -> list[remote._Range]:
    return list(ahead._ranges.values())


def test_pictures_in_order_take_few_requests(tmp_path: Path) -> None:
    pack(tmp_path / "small.tar", {f"{number:02d}.png": picture(0, number) for number in range(COUNT)})
    asked, local = Asked(), Opened(Files(path=f"{tmp_path}/small.tar")).train
    with served(tmp_path, asked=asked) as address:
        source = Opened(Files(path=f"{address}/small.tar")).train
        asked.names.clear()
        far = batch(source, list(range(COUNT)))
    assert len(asked.names) == 2  # one range, and the picture that takes the place of a bad one
    assert torch.equal(far.crops[0].pixels, batch(local, list(range(COUNT))).crops[0].pixels)
