"""The images with masks of a fine-tuning: those to learn from, to watch and to score."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import Tensor

from unlabeled.data.archive.listing import digest
from unlabeled.data.label.subset import Part
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.evaluate.segmentation_masks import Scenes, coded, open_scenes
from unlabeled.evaluate.segmentation_values import MaskSettings
from unlabeled.processes import placed
from unlabeled.randomness import HELD_OUT
from unlabeled.transfer.detection.images import some_of
from unlabeled.transfer.labels import Labelled


class Masked(Part):
    """Images of a source with their masks, by their numbers there; its classes are those of the masks' pixels."""

    masked = True
    unlabelled = 0

    def __init__(self, scenes: Scenes, rows: np.ndarray) -> None:
        super().__init__(scenes.pictures, rows)
        self.scenes, self.classes = scenes, scenes.coding.names
        self.labels = np.zeros(len(rows), np.int64)  # one is as good as another

    @property
    def ignored(self) -> int | None:
        """The value of pixels without a class in the files of masks; None = there is none."""
        return self.scenes.coding.ignore

    def pixel_labels(self, i: int, height: int, width: int) -> Tensor:
        with in_the_task():
            return self.scenes.fitting(int(self.indices[i]), height, width)

    def fingerprint(self) -> str:
        """Of the images, of their masks, and of what their values mean."""
        masks, coding = self.scenes.masks.fingerprint(), repr((self.classes, self.ignored))
        return digest([super().fingerprint().encode(), masks.encode(), coding.encode()])


def masked(data: Opened, settings: MaskSettings, fraction: float, seed: int, hold_out: float | None) -> Labelled:
    """The images of a `data:` section with their masks, all of which are read once.

    Args:
        data: the section.
        settings: that give the values of masks a meaning.
        fraction: share of the images to learn from, in (0, 1].
        seed: of the choice.
        hold_out: share of these that is kept from training to be watched; 0 = those of val are watched, None = nothing
            is.

    Raises:
        UserError: masks are missing or unclear, or there are fewer images than asked for.
    """
    config = data.config
    if not config.has_val:
        raise UserError(
            "segmentation is scored on data.val, which is not named. Set data.val=val, with masks in val_masks, or "
            "hold a share out of train: data.split=0.2"
        )
    if config.cache is not None:
        raise UserError(f"data.cache={config.cache!r} holds small copies without masks. Set data.cache=null.")
    with in_the_task():
        source, test = (open_scenes(data, split, patch=1) for split in ("train", "val"))
        coded(source, test, settings, aloud=placed()[0] == 0)
    data.check_apart(source.pictures, test.pictures)
    rows = some_of(np.arange(len(source)), fraction, seed)
    scored = Masked(test, np.arange(len(test)))
    if not hold_out:
        return Labelled(Masked(source, rows), None if hold_out is None else scored, scored)
    held = some_of(np.arange(len(rows)), hold_out, HELD_OUT + seed, leave=1)
    return Labelled(Masked(source, np.delete(rows, held)), Masked(source, rows[held]), scored)


@contextmanager
def in_the_task() -> Iterator[None]:
    """Let errors name the fields of the task, not those of the protocol of the same masks."""
    try:
        yield
    except UserError as error:
        raise UserError(re.sub(r"\bsegmentation\.(?=classes|values|threshold|ignore)", "task.", str(error))) from error
