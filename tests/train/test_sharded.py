"""Weights spread over two processes (FSDP) learn the same and leave the same checkpoints and exports."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from support import TINY_PRETRAIN, checkpoint_bytes, launch, metrics, shard

from unlabeled.train.checkpoint import load
from unlabeled.train.saving.stored import everything

SCORED = ["evaluate.knn.k=3", "evaluate.crop_pct=1.0", "evaluate.every=6"]
MORE = ["method.encoder.drop_path=0.0", "optim.base_lr=0.003", "optim.clip=0.5", "run.accumulate=2", *SCORED]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sharded")
    (home / "recipe.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert launch("pretrain", arguments(home, "one")) == [0]
    assert launch("pretrain", arguments(home, "sharded"), world=2, hook=shard) == [0, 0]
    return home


def arguments(home: Path, name: str) -> list[str]:
    return [str(home / "recipe.yaml"), f"run.output={home / name}", *MORE]


@pytest.mark.parametrize("file", ["export/model.safetensors", "export/heads.safetensors"])
def test_a_sharded_run_learns_the_same(home: Path, file: str) -> None:
    assert losses(home / "sharded") == pytest.approx(losses(home / "one"), rel=1e-5)
    assert_close(home / "one" / file, home / "sharded" / file)


def test_moments_are_whole_in_the_checkpoint(home: Path) -> None:
    """Read as one, though every process has written its own pieces."""
    one, sharded = (load(home / name / "checkpoints" / "step-00000015").tensors for name in ("one", "sharded"))
    files = sorted(file.name for file in (home / "sharded" / "checkpoints" / "step-00000015").glob("*-of-*"))
    assert files == [f"{part}-{rank}-of-2.safetensors" for part in ("model", "optimizer") for rank in (0, 1)]
    assert one.keys() == sharded.keys() - {"rng-1"}
    for part in ("model", "optimizer"):
        assert_close_tensors(*({name: t[everything(t)] for name, t in found[part].items()} for found in (one, sharded)))


def test_sharded_whole_sharded(home: Path) -> None:
    stop = {"step": 6, "signal": 15}
    assert launch("pretrain", arguments(home, "mixed"), world=2, hook=shard, kill=stop) == [75, 75]
    assert launch("pretrain", arguments(home, "mixed"), kill=stop | {"step": 11}) == [75]
    assert launch("pretrain", arguments(home, "mixed"), world=2, hook=shard) == [0, 0]
    assert losses(home / "mixed") == pytest.approx(losses(home / "one"), rel=1e-5)


def test_killed_while_it_is_written_and_resumed_by_one_process(home: Path) -> None:
    """One process is killed when it writes its pieces of step 9: the other must not take that for a checkpoint, and
    step 6 leads to the same bits as without that."""
    stop, kill = {"step": 6, "signal": 15}, {"save": 9, "at": "first file", "ranks": [1]}
    assert launch("pretrain", arguments(home, "quiet"), world=2, hook=shard, kill=stop) == [75, 75]
    codes = launch("pretrain", [*arguments(home, "killed"), "run.timeout=20"], world=2, hook=shard, kill=kill)
    assert codes[1] == -9 and codes[0] not in (0, 75)
    left = sorted(folder.name for folder in (home / "killed" / "checkpoints").iterdir())
    assert left[-1] == "step-00000006" and ".writing-step-00000009" in left
    for name in ("quiet", "killed"):
        assert launch("pretrain", arguments(home, name), kill=stop | {"step": 11}) == [75]
    assert checkpoint_bytes(home / "killed", 11) == checkpoint_bytes(home / "quiet", 11)


def losses(output: Path) -> list[float]:
    return [line["loss"] for line in metrics(output) if "loss" in line]


def assert_close(one: Path, two: Path) -> None:
    """To 1e-4, the key third of qkv biases aside: its true gradient is zero."""
    assert_close_tensors(safetensors.torch.load_file(one), safetensors.torch.load_file(two))


def assert_close_tensors(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if "qkv.bias" not in name:
            torch.testing.assert_close(theirs[name], tensor, rtol=1e-4, atol=1e-4, msg=lambda t, n=name: f"{n}: {t}")
