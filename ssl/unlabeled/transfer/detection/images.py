"""The images with boxes of a fine-tuning: those to learn from, to watch and to score."""

from __future__ import annotations

import numpy as np

from unlabeled.data.label.subset import Part, stratified
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.randomness import HELD_OUT
from unlabeled.transfer.labels import Labelled


class Drawn(Part):
    """Images of a source with boxes; one without any is as good as another."""

    unlabelled = 0


def boxed(data: Opened, fraction: float, seed: int, hold_out: float | None) -> Labelled:
    """The images of a `data:` section with their boxes.

    Args:
        data: the section.
        fraction: share of the images to learn from, in (0, 1].
        seed: of the choice.
        hold_out: share of these that is kept from training to be watched; 0 = those of val are watched, None = nothing
            is.

    Raises:
        UserError: boxes are missing, or there are fewer images than asked for.
    """
    config = data.config
    if not config.has_val:
        raise UserError(
            "detection is scored on data.val, which is not named. Set data.val_boxes (coco) or data.val (yolo), or "
            "hold a share out of train: data.split=0.2"
        )
    if config.cache is not None:
        raise UserError(f"data.cache={config.cache!r} holds small copies without boxes. Set data.cache=null.")
    source, test = data.train, data.val
    for split, one in (("train", source), ("val", test)):
        if not one.boxed:
            raise UserError(
                f"data.{split} is of the kind {config.name}, which has no boxes. Set data.name=coco for COCO's JSON, "
                "or data.name=yolo for text files."
            )
    data.check_apart(source, test)
    rows = some_of(np.arange(len(source)), fraction, seed)
    train = source if len(rows) == len(source) else Drawn(source, rows)
    if not hold_out:
        return Labelled(train, None if hold_out is None else test, test)
    held = some_of(np.arange(len(rows)), hold_out, HELD_OUT + seed, leave=1)
    return Labelled(Drawn(source, np.delete(rows, held)), Drawn(source, rows[held]), test)


def some_of(rows: np.ndarray, share: float, seed: int, leave: int = 0) -> np.ndarray:
    """A share of rows that are all alike, at least one of them, ascending; `leave` of them stay whatever the share."""
    return rows[stratified(np.zeros(len(rows), np.int64), share, seed, at_least=1, leave=leave)]
