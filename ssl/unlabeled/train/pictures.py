"""Pictures of what a method does, one PNG per evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.data.loader import Normalize
from unlabeled.method import Batch, Method, ViewBatch

COLUMNS, GAP, SIDE = 8, 2, 64


class PictureWriter:
    """Writes `step-N.png`: a column per picture, its rows as the method returns them.

    Args:
        folder: where to.
        mean, std: of the input, to undo.
    """

    def __init__(self, folder: Path, mean: Sequence[float], std: Sequence[float]) -> None:
        self.folder, self.mean, self.std = folder, mean, std

    def __call__(self, step: int, method: Method, batch: Batch) -> None:
        """Draw the first pictures of a batch; nothing if the method has nothing to show."""
        drawn = method.pictures(_first(batch, COLUMNS))
        if drawn is None:
            return
        import torchvision

        self.folder.mkdir(parents=True, exist_ok=True)
        rows = Normalize(self.mean, self.std, drawn.device).undo(drawn).cpu()
        torchvision.io.write_png(sheet(rows), str(self.folder / f"step-{step:08d}.png"))


def sheet(images: Tensor) -> Tensor:
    """uint8 images [columns, rows, 3, H, W] side by side, enlarged to be seen: [3, height, width]."""
    factor = max(1, SIDE // images.shape[-1])
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    framed = torch.nn.functional.pad(images, (GAP, GAP, GAP, GAP), value=255)
    columns = [torch.cat(list(column), dim=-2) for column in framed]
    return torch.cat(columns, dim=-1)


def _first(batch: Batch, n: int) -> Batch:
    """The first n samples of a batch."""
    views = [
        ViewBatch(view.pixels[:, :n], None if view.mask is None else view.mask.map(lambda tensor: tensor[:, :n]))
        for view in batch.views
    ]
    return Batch(views, batch.labels[:n], batch.index[:n])
