"""Two processes in mixed precision learn the same as replicas and with shards, and not quite with rounded gradients."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from support import TINY_PRETRAIN, UNSHOWN, launch, metrics, shard

SHORT = [
    "train.epochs=0.6",
    "train.precision=bf16",
    "method.encoder.drop_path=0.0",
    "optim.warmup_epochs=0",
    "evaluate=null",
    *UNSHOWN,
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("parallel")
    (home / "recipe.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    return home


def losses(home: Path, name: str, hook: Any = None, *more: str) -> list[float]:
    """Of two processes in mixed precision."""
    arguments = [str(home / "recipe.yaml"), f"run.output={home / name}", *SHORT, *more]
    assert launch("pretrain", arguments, world=2, hook=hook) == [0, 0]
    return [line["loss"] for line in metrics(home / name) if "loss" in line]


def test_shards_learn_what_replicas_do_in_mixed_precision(home: Path) -> None:
    replicas = losses(home, "replicas")
    assert losses(home, "shards", shard) == pytest.approx(replicas, rel=1e-6)
    # the first loss is that of the same weights, all others follow averaged gradients
    first, *rounded = losses(home, "rounded", None, "train.gradient_exchange=bf16")
    assert first == replicas[0] and rounded != replicas[1:] and rounded == pytest.approx(replicas[1:], rel=1e-3)
