"""PNGs of a method's inputs and outputs during a run."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.batch.loader import Normalize
from unlabeled.pretrain.method import Method

COLUMNS, GAP, SIDE = 8, 2, 64


@dataclass(frozen=True)
class PictureWriter:
    """Writes `step-N.png`: a column per image, its rows as the method returns them."""

    folder: Path
    mean: Sequence[float]  # of the input's normalisation, which is undone
    std: Sequence[float]

    def __call__(self, step: int, method: Method, batch: Batch) -> Path:
        """Draw the first images of a batch: `Method.pictures` of them, else their crops."""
        import torchvision

        first = [
            ViewBatch(view.pixels[:, :COLUMNS], view.mask and view.mask.map(lambda tensor: tensor[:, :COLUMNS]))
            for view in batch.views
        ]
        boxes = None if batch.boxes is None else batch.boxes.first(COLUMNS)
        classes = None if batch.pixel_labels is None else batch.pixel_labels[:COLUMNS]
        batch = Batch(first, batch.labels[:COLUMNS], batch.index[:COLUMNS], boxes=boxes, pixel_labels=classes)
        shown = method.pictures(batch)
        drawn = crops(batch) if shown is None else shown
        self.folder.mkdir(parents=True, exist_ok=True)
        rows = Normalize(self.mean, self.std, drawn.device).undo(drawn).cpu()
        file = self.folder / f"step-{step:08d}.png"
        torchvision.io.write_png(sheet(rows), str(file))
        return file


def crops(batch: Batch) -> Tensor:
    """All crops of each image [B, crops, C, H, W], small ones padded, hidden patches filled with the mean colour; after
    a crop with sets of patches to predict, each of the sets alone."""
    height, width = (max(view.pixels.shape[axis] for view in batch.views) for axis in (-2, -1))
    seen = [_amid(_visible(view), height, width) for view in batch.views]
    return torch.cat(seen).transpose(0, 1)


def _visible(view: ViewBatch) -> Tensor:
    """Pixels [crops, B, C, H, W] with hidden patches at 0, the mean colour."""
    if view.mask is None:
        return view.pixels
    hidden, targets, crops = view.mask.hidden, view.mask.targets, view.pixels
    if targets is not None:
        alone = torch.ones_like(hidden).unsqueeze(2).expand(-1, -1, targets.shape[2], -1).scatter(3, targets, False)
        hidden = torch.cat([hidden.unsqueeze(2), alone], 2).transpose(1, 2).flatten(0, 1)
        crops = crops.repeat_interleave(1 + targets.shape[2], 0)
    height, width = crops.shape[-2:]
    patch = math.isqrt(height * width // hidden.shape[-1])
    hidden = hidden.unflatten(-1, (height // patch, width // patch))
    hidden = hidden.repeat_interleave(patch, -2).repeat_interleave(patch, -1)
    return crops.masked_fill(hidden.unsqueeze(2), 0)


def _amid(pixels: Tensor, height: int, width: int) -> Tensor:
    """Pad pixels [..., h, w] with zeros on all sides to [..., height, width]."""
    above, left = (height - pixels.shape[-2]) // 2, (width - pixels.shape[-1]) // 2
    below, right = height - pixels.shape[-2] - above, width - pixels.shape[-1] - left
    return torch.nn.functional.pad(pixels, (left, right, above, below))


def sheet(images: Tensor) -> Tensor:
    """Tile uint8 images [columns, rows, C, H, W], small ones enlarged: [3 or 1, height, width]."""
    images = images[:, :, :3] if images.shape[2] >= 3 else images[:, :, :1]  # a PNG shows no other channels
    factor = max(1, SIDE // images.shape[-1])
    images = images.repeat_interleave(factor, -1).repeat_interleave(factor, -2)
    framed = torch.nn.functional.pad(images, (GAP, GAP, GAP, GAP), value=255)
    return torch.cat([torch.cat(list(column), dim=-2) for column in framed], dim=-1)
