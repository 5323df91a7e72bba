"""TensorBoard: event files in the run's folder, `tensorboard --logdir runs`.

A run that goes on after a step hides what was written of later ones (`purge_step`).
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from unlabeled.train.tracker import Tracked, Tracker

MEND = "Make the folder of its files writable (`run.output`)"


class TensorBoard(Tracker):
    """Event files in a folder of the run's name."""

    def __init__(self, tracked: Tracked) -> None:
        from torch.utils.tensorboard import SummaryWriter

        later = tracked.step + 1 if tracked.step else None
        self._writer = SummaryWriter(str(tracked.folder / tracked.name), purge_step=later)
        self._writer.add_hparams(dict(tracked.recipe), {}, run_name="recipe")

    def log(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def show(self, step: int, file: Path) -> None:
        pixels = np.asarray(Image.open(file).convert("RGB"))
        self._writer.add_image(file.parent.name, pixels, step, dataformats="HWC")

    def close(self) -> None:
        self._writer.close()


start = TensorBoard
