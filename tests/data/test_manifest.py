"""Manifests beside tars, and remote tars without: few requests, and the same listing as from the headers."""

from __future__ import annotations

import io
import logging
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pictured import pack
from PIL import Image
from support import Asked, on_processes, served

from unlabeled.data.archive import remote
from unlabeled.data.archive.contents import ASKED, ENDING
from unlabeled.data.archive.listing import read
from unlabeled.data.archive.prepare import prepare
from unlabeled.data.archive.sharded import ByShard
from unlabeled.data.archive.storing import Settings
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import Interrupted, UserError
from unlabeled.processes import Group, on_main
from unlabeled.sharing.shards import Sharing

pytest.importorskip("aiohttp")
COUNT = 10


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Labelled pictures, small copies of them in three tars, a manifest beside each."""
    home = tmp_path_factory.mktemp("prepared")
    for number in range(COUNT):
        pixels = np.random.default_rng(number).integers(256, size=(20, 30, 3), dtype=np.uint8)
        folder = home / "pictures" / "abc"[number % 3]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(folder / f"{number}.png")
    (home / "small").mkdir()
    list(prepare(Files(path=str(home / "pictures")), home / "small", Settings(short_side=16, shard=4), Sharing()))
    return home


def copy_of(folder: Path, to: Path) -> Path:
    for file in folder.glob("*.tar*"):
        (to / file.name).write_bytes(file.read_bytes())
    return to


def opened(place: str, labels: str = "folders", **fields: Any) -> Source:
    return Opened(Files(path=f"{place}/train-{{00000..00002}}.tar", labels=labels, **fields)).train


def test_a_manifest_takes_the_place_of_headers(prepared: Path, tmp_path: Path) -> None:
    small, bare, asked = prepared / "small", copy_of(prepared / "small", tmp_path), Asked()
    for manifest in bare.glob(f"*{ENDING}"):
        manifest.unlink()
    with served(small, asked=asked) as address, served(bare) as other:
        by_manifest, by_headers, local = opened(address), opened(other), opened(str(small))
    assert by_manifest.fingerprint() == by_headers.fingerprint() == local.fingerprint()
    assert len(asked.names) == 6 and len(set(asked.names)) == 6  # every tar's beginning, and its manifest
    assert len(list(small.glob("*.tar"))) == 3


def test_a_manifest_knows_the_labels(prepared: Path) -> None:
    original = Opened(Files(path=str(prepared / "pictures"))).train
    local = opened(str(prepared / "small"), "manifest")
    with served(prepared / "small") as address:
        far = opened(address, "manifest")
        assert np.array_equal(far.image(7), local.image(7))
    assert far.classes == local.classes == original.classes == ("a", "b", "c")
    assert np.array_equal(far.labels, original.labels) and np.array_equal(local.labels, original.labels)
    assert far.fingerprint() == local.fingerprint() != opened(str(prepared / "small")).fingerprint()


def test_indexes_by_shard_are_read_from_manifests_and_a_batch_side_by_side(prepared: Path) -> None:
    local, asked, rows = opened(str(prepared / "small"), "manifest"), Asked(), [9, 0, 5, 1, 0]
    with served(prepared / "small", asked=asked) as address:
        far = opened(address, "manifest", by_shard=ByShard(open=1))
        assert len(asked.names) == 9  # as without, and the identity of every tar once more
        assert [far.label(i) for i in range(COUNT)] == local.labels.tolist()
        asked.names.clear()
        coming = far.ahead(rows)
        assert all(np.array_equal(coming.image(i), local.image(i)) for i in rows)
        tars = [name for name in asked.names if name.endswith(".tar")]
        # one range of each tar: the two of the first are neighbours; indexes that are no longer open come again
        assert len([name for name in tars if "00000" in name]) <= 3
    assert far.classes == local.classes and len(far) == COUNT


def of_another_size(tar: Path) -> None:
    with tarfile.open(tar, "a") as opened:
        opened.addfile(tarfile.TarInfo("more.npy"), io.BytesIO())


def of_the_same_size(tar: Path) -> None:
    data = bytearray(tar.read_bytes())
    data[700] ^= 1
    tar.write_bytes(bytes(data))


def damaged(tar: Path) -> None:
    manifest = Path(f"{tar}{ENDING}")
    manifest.write_bytes(manifest.read_bytes()[:-1])


def removed(tar: Path) -> None:
    Path(f"{tar}{ENDING}").unlink()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (of_another_size, "is of another tar of [0-9,]+ bytes"),
        (of_the_same_size, "is of another tar of [0-9,]+ bytes"),
        (damaged, "is damaged"),
        (removed, "does not exist"),
    ],
)
def test_a_stale_manifest_is_not_believed(
    prepared: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, change: Any, said: str
) -> None:
    folder = copy_of(prepared / "small", tmp_path)
    change(folder / "train-00001.tar")
    caplog.set_level(logging.WARNING)
    with served(folder) as address:
        assert opened(address).fingerprint() == opened(str(folder)).fingerprint()
        assert ("headers are read instead" in caplog.text) == (change is not removed)
        with pytest.raises(UserError, match=said):
            opened(address, "manifest")
    with pytest.raises(UserError, match=said):
        opened(str(folder), "manifest")


def test_a_server_that_fails_is_no_tar_without_a_manifest(prepared: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.01,))
    fails = {f"train-00002.tar{ENDING}": 1}
    with served(prepared / "small", fails) as address:
        assert opened(address).fingerprint() == opened(str(prepared / "small")).fingerprint()
        fails[f"train-00002.tar{ENDING}"] = 2
        with pytest.raises(Interrupted, match="answers 503"):
            opened(address)


def test_manifests_that_are_gone_are_written_again(prepared: Path) -> None:
    manifest = prepared / "small" / f"train-00001.tar{ENDING}"
    before = read(manifest, ASKED)
    manifest.unlink()
    list(
        prepare(Files(path=str(prepared / "pictures")), prepared / "small", Settings(short_side=16, shard=4), Sharing())
    )
    after = read(manifest, ASKED)
    assert before is not None and after is not None and after.fingerprint == before.fingerprint


def test_remote_tars_are_scanned_side_by_side_in_large_ranges(tmp_path: Path) -> None:
    for shard in range(8):
        members = dict[str, bytes]()
        for number in range(40):
            members |= {f"{number:02d}.jpg": bytes(50_000), f"{number:02d}.cls": b"%d" % (number % 3)}
        pack(tmp_path / f"s-{shard}.tar", members)
    asked = Asked()
    with served(tmp_path, asked=asked, latency=0.04) as address:
        far = Opened(Files(path=f"{address}/s-{{0..7}}.tar", labels="cls")).train
    near = Opened(Files(path=f"{tmp_path}/s-*.tar", labels="cls")).train
    assert far.fingerprint() == near.fingerprint() and far.classes == ("0", "1", "2")
    # 2 MB each: the beginning, no manifest, ranges of 64 kB to 2 MB
    assert asked.most >= 4 and len(asked.names) <= 8 * 8


def test_headers_far_apart_are_read_alone(tmp_path: Path) -> None:
    pack(tmp_path / "s.tar", {f"{number}.npy": bytes(3 << 20) for number in range(4)})
    sent: list[int] = []
    read = remote.read_range

    def noted(path: str, start: int, size: int, file: remote.Identity) -> bytes:
        sent.append(size)
        return read(path, start, size, file)

    with pytest.MonkeyPatch.context() as patch, served(tmp_path) as address:
        patch.setattr(remote, "read_range", noted)
        assert len(Opened(Files(path=f"{address}/s.tar")).train) == 4
    assert sum(sent) < 6 * remote.HEADERS


def looked_for(rank: int) -> list[Any]:
    def scan(problem: str) -> int:
        time.sleep(1.5)
        if problem:
            raise UserError(problem)
        return 7

    found: list[Any] = [on_main(Group(rank, 2), lambda: scan(""), whole=False)]
    try:
        on_main(Group(rank, 2), lambda: scan("no pictures"), whole=False)
    except UserError as error:
        found.append(str(error))
    return found


def test_looking_for_pictures_may_take_longer_than_an_exchange() -> None:
    assert on_processes(looked_for, timeout=0.5) == [[7, "no pictures"], [None, "process 0: no pictures"]]
