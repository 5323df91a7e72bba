"""A Ray of this machine with two workers gives the same files as processes, also when a worker is killed."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import TINY_PRETRAIN

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.doctor import pictures
from unlabeled.errors import Interrupted, UserError
from unlabeled.sharing.shards import Sharing, each_shard

ray = pytest.importorskip("ray", reason="Ray is not installed: pip install 'unlabeled[ray]'")
SHARED = Sharing(engine="ray")
PREPARED = Preprocessing((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), crop_pct=0.9, interpolation="bilinear")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures with a copy and a broken one, a recipe and an export."""
    home, random = tmp_path_factory.mktemp("ray"), np.random.default_rng(0)
    (home / "pictures").mkdir()
    for number in range(14):
        pixels = random.integers(256, size=(24, 20 + number, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(home / "pictures" / f"{number:02d}.png")
    Image.fromarray(pixels).save(home / "pictures" / "copy.bmp")
    (home / "pictures" / "03.png").write_bytes(b"no picture")
    shapes = "{name: shapes, train_size: 42, val_size: 20, size: 16}"
    data = json.dumps({"name": "files", "path": str(home / "pictures"), "max_bad_fraction": 0.5})
    (home / "tiny.yaml").write_text(TINY_PRETRAIN.replace(shapes, data), encoding="utf-8")
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    export_encoder(home / "export", config.build((16, 16)), PREPARED, "card", {})
    return home


@pytest.fixture(autouse=True, scope="module")
def _awake() -> Iterator[None]:
    """Ray's workers are as nice as this process, and no other Ray is asked."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        yield


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error")
    yield
    ray.shutdown()


def files(folder: Path) -> dict[str, bytes]:
    """All but what has dates, versions or the order of a hash in it."""
    kinds = (".tar", ".jsonl", ".csv", ".safetensors")
    return {file.name: file.read_bytes() for file in folder.iterdir() if file.suffix in kinds and file.stem != "train"}


def prepared(home: Path, out: Path, engine: str) -> list[str]:
    how = ["--shard=3", "--short-side=16", f"--engine={engine}", "--workers=1"]
    return ["prepare", str(home / "tiny.yaml"), f"data.cache={out}", *how]


def embedded(home: Path, out: Path, engine: str) -> list[str]:
    how = ["--shard=3", "--device=cpu", "--workers=0", f"--engine={engine}"]
    return ["embed", str(home / "export"), str(home / "pictures"), str(out), *how]


def looked(home: Path, out: Path, engine: str) -> list[str]:
    how = ["--keep", str(out), "--csv", str(out / "copies.csv"), "--seconds=0.01", f"--engine={engine}"]
    return ["doctor", str(home / "tiny.yaml"), *how]


def killing(work: Callable[[Sequence[int]], Any], mark: Path) -> Callable[[Sequence[int]], Any]:
    """The same work; the process that begins with it is killed as long as there is no mark."""

    def armed(numbers: Sequence[int]) -> Any:
        if not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return work(numbers)

    return armed


def compare(command: Callable[[Path, Path, str], list[str]], home: Path, out: Path, count: int) -> None:
    """Run a command with both engines: the same files."""
    for engine in ("processes", "ray"):
        (out / engine).mkdir()
        assert main(command(home, out / engine, engine)) in (0, 2)
    assert files(out / "ray") == files(out / "processes") and len(files(out / "ray")) == count


@pytest.mark.parametrize(
    ("command", "module", "count"),
    [(prepared, "unlabeled.data.archive.prepare", 6), (embedded, "unlabeled.work.embed", 6)],
)
def test_workers_give_the_same_bytes_though_one_is_killed(
    command: Callable[[Path, Path, str], list[str]],
    module: str,
    count: int,
    home: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """By a Ray that the command starts."""

    def shared(numbers: Sequence[int], work: Any, sharing: Sharing) -> Iterator[Any]:
        armed = killing(work, tmp_path / "killed") if sharing.engine == "ray" else work
        return each_shard(numbers, armed, sharing)

    monkeypatch.setattr(f"{module}.each_shard", shared)
    compare(command, home, tmp_path, count)
    assert (tmp_path / "killed").exists() and not ray.is_initialized()


@pytest.mark.usefixtures("cluster")
def test_pictures_are_looked_at_by_workers(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pictures, "SHARD", 4)
    compare(looked, home, tmp_path, 5)


@pytest.mark.usefixtures("cluster")
def test_errors_of_the_work_are_its_own(tmp_path: Path) -> None:
    def refused(numbers: Sequence[int]) -> Iterator[int]:
        raise UserError(f"{numbers} are none. Mend them.")

    def lost(numbers: Sequence[int]) -> Iterator[int]:
        os.kill(os.getpid(), signal.SIGKILL)
        yield 0

    with pytest.raises(UserError, match=r"^\[7\] are none\. Mend them\.$"):
        list(each_shard([7], refused, SHARED))
    with pytest.raises(Interrupted, match="lost 3 times at shard 7"):
        list(each_shard([7], lost, SHARED))
    with pytest.raises(UserError, match="none of 1 machines of the Ray cluster has 99 CPU"):
        list(each_shard([7], lost, SHARED._replace(cpus=99)))
