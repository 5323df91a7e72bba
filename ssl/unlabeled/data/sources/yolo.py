"""Images with boxes in text files beside them, as YOLO has them."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from unlabeled.data.archive.listing import CacheKey, IndexFolder, Listing, Split
from unlabeled.data.boxed.pictures import BoxedPictures
from unlabeled.data.boxed.yolo import names_of, scan, stamp_of
from unlabeled.data.source import EncodedConfig
from unlabeled.errors import UserError
from unlabeled.paths import UserPath
from unlabeled.recipe.free import FREE


class Config(EncodedConfig):
    """Images below `images/`, and for each a text file of the same name below `labels/`: `class x y width height` on a
    line, centre and sides as shares of the image. The label of an image is the class of its largest box."""

    what_val_is: ClassVar[str] = "the folder of the pictures to evaluate on, such as data.val=images/val"

    name: Literal["yolo"] = "yolo"
    path: Annotated[UserPath, FREE] = Field(description="folder that the others are relative to")
    train: str = Field("images/train", description="folder of the images to train on; its boxes are in labels/train")
    val: str | None = Field(None, description="folder of the images to evaluate on; null = none")
    names: str | None = Field(
        None,
        description="file below path that names the classes by number, a YAML with `names:` or a text file with one on "
        "a line; null = data.yaml or classes.txt where there is one, else the numbers are the names",
    )

    def source(self, split: Split, index: IndexFolder) -> BoxedPictures:
        folder = self._folder(split)
        names = names_of(self.path, self.names)
        asked = {split: CacheKey(repr([folder, names, self.numbering]), lambda known: _changed(folder, known))}
        listing = index.listings(asked, lambda: {split: scan(folder, names, self.numbering)})[split]
        return BoxedPictures(os.fsencode(folder), listing, self.target)

    def _folder(self, split: Split) -> str:
        folder = os.path.join(self.path, (self.train if split == "train" else self.val) or "")
        if not os.path.isdir(folder):
            raise UserError(f"{folder!r} is no folder. Set data.path and data.{split} to the folder of the pictures.")
        return folder


def _changed(folder: str, known: Listing) -> str | None:
    return None if (stamp_of(folder),) == known.files else folder
