"""stable-pretraining by a program after its documentation: `programs/stable_pretraining_simclr.py`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from racers.parts import Peer, Task, load

PROGRAM = Path(__file__).parent / "programs" / "stable_pretraining_simclr.py"


class StablePretraining(Peer):
    """Whole epochs."""

    methods = ("simclr",)

    def command(self, python: Path, task: Task) -> list[str]:
        sizes = {"size": task.size, "batch": task.batch, "epochs": round(task.epochs), "seed": task.seed}
        told = [text for name, value in sizes.items() for text in (f"--{name}", str(value))]
        return [str(python), str(PROGRAM), str(task.pictures), str(task.out), "--network", task.network, *told]

    def weights(self, task: Task) -> Mapping[str, Tensor]:
        return load(task.out / "backbone.pt")


RACER = StablePretraining()
