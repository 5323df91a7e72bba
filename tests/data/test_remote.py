"""Tars on another machine: the same pictures as from the disk, what fails once is asked for again."""

from __future__ import annotations

import io
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support import served

from unlabeled.data.archive import remote
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import Interrupted, UserError

pytest.importorskip("aiohttp")


def pack(file: Path, seed: int, count: int = 3) -> Path:
    with tarfile.open(file, "w") as tar:
        for number in range(count):
            buffer = io.BytesIO()
            pixels = np.random.default_rng((seed, number)).integers(256, size=(9, 7, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(buffer, "PNG")
            info = tarfile.TarInfo(f"cat/{number}.png")
            info.size = len(buffer.getvalue())
            tar.addfile(info, io.BytesIO(buffer.getvalue()))
    return file


def test_a_remote_tar_is_the_local_one(tmp_path: Path) -> None:
    local = Opened(Files(path=str(pack(tmp_path / "a.tar", 0)))).train
    with served(tmp_path) as address:
        there = Opened(Files(path=f"{address}/a.tar")).train
        assert there.fingerprint() == local.fingerprint() and there.classes == ("cat",)
        assert all(torch.equal(there.image(i), local.image(i)) for i in range(3))
        assert there.key(1) == f"{address}/a.tar/cat/1.png"


def test_what_fails_is_asked_for_again_and_then_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "WAITS", (0.01, 0.01, 0.01))
    local, fails = Opened(Files(path=str(pack(tmp_path / "a.tar", 0)))).train, {"a.tar": 0}
    with served(tmp_path, fails) as address:
        source = Opened(Files(path=f"{address}/a.tar")).train
        fails["a.tar"] = 3
        assert torch.equal(source.image(2), local.image(2)) and fails == {"a.tar": 0}
        fails["a.tar"] = 4
        with pytest.raises(Interrupted, match=r"cannot be read: the server answers 503\. .*the same command goes on"):
            source.image(2)


def test_a_remote_tar_that_changed_ends_the_run(tmp_path: Path) -> None:
    pack(tmp_path / "a.tar", 0)
    with served(tmp_path) as address:
        source = Opened(Files(path=f"{address}/a.tar")).train
        pack(tmp_path / "a.tar", 1, count=4)
        with pytest.raises(UserError, match=r"has changed since it was indexed\. Start again") as error:
            source.image(0)
    assert not isinstance(error.value, Interrupted)


def test_globs_of_other_file_systems(tmp_path: Path) -> None:
    for number in range(2):
        pack(tmp_path / f"s-{number}.tar", number)
    source = Opened(Files(path=f"file://{tmp_path}/s-*.tar")).train
    assert len(source) == 6 and source.key(3) == f"file://{tmp_path}/s-1.tar/cat/0.png"
    assert source.fingerprint() == Opened(Files(path=f"{tmp_path}/s-*.tar")).train.fingerprint()


def test_what_is_not_there(tmp_path: Path) -> None:
    with served(tmp_path) as address, pytest.raises(UserError, match=r"absent\.tar' cannot be read"):
        _ = Opened(Files(path=f"{address}/absent.tar")).train
    with pytest.raises(UserError, match="cannot be reached"):
        _ = Opened(Files(path="gopher://x/a.tar")).train


@pytest.mark.parametrize(("start", "package"), [("s3", "s3fs"), ("gs", "gcsfs")])
def test_what_a_bucket_needs_is_named(start: str, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"pip install {package}$"):
        _ = Opened(Files(path=f"{start}://bucket/a.tar")).train
