"""lightly-train as its quick start has it: `lightly-train pretrain`, defaults but for what is the same for all."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from racers.parts import Peer, Task, load


class LightlyTrain(Peer):
    """Whole epochs."""

    methods = ("simclr", "dino")

    def command(self, python: Path, task: Task) -> list[str]:
        return [
            *(str(python.parent / "lightly-train"), "pretrain", f"out={task.out}", f"data={task.pictures}"),
            *(f"model=torchvision/{task.network}", f"method={task.method}", f"epochs={round(task.epochs)}"),
            *(f"batch_size={task.batch}", f"seed={task.seed}", "num_workers=0", "accelerator=cpu", "overwrite=true"),
            f'transform_args={{"image_size":[{task.size},{task.size}]{self._local(task)}}}',
        ]

    def _local(self, task: Task) -> str:
        """Small crops keep their share of the large ones', 96 of 224 pixels."""
        side = round(task.size * 96 / 224)
        return f',"local_view":{{"view_size":[{side},{side}]}}' if task.method == "dino" else ""

    def weights(self, task: Task) -> Mapping[str, Tensor]:
        return load(task.out / "exported_models" / "exported_last.pt")


RACER = LightlyTrain()
