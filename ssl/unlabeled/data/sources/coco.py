"""Images with boxes that a JSON file lists as COCO does."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from unlabeled.data.archive.index import IndexBuilder, file_size
from unlabeled.data.archive.listing import CacheKey, IndexFolder, Listing, Split, Stamp
from unlabeled.data.archive.tar import local_identity
from unlabeled.data.boxed.coco import read
from unlabeled.data.boxed.pictures import BoxedPictures
from unlabeled.data.source import EncodedConfig
from unlabeled.errors import UserError
from unlabeled.paths import UserPath
from unlabeled.recipe.free import FREE


class Config(EncodedConfig):
    """An image for each entry of a JSON file, with its boxes. The label of an image is the class of its largest box."""

    what_val_is: ClassVar[str] = (
        "the JSON of the pictures to evaluate on, such as data.val_boxes=instances_val2017.json"
    )

    name: Literal["coco"] = "coco"
    path: Annotated[UserPath, FREE] = Field(description="folder that the other paths are relative to")
    train: str = Field("", description="folder of the images to train on; '' = path itself")
    train_boxes: str = Field(description="JSON of these images, such as annotations/instances_train2017.json")
    val: str | None = Field(None, description="folder of the images to evaluate on; null = as train")
    val_boxes: str | None = Field(None, description="JSON of these images; null = none")

    @model_validator(mode="after")
    def _val_has_boxes(self) -> Config:
        if self.val is not None and self.val_boxes is None:
            raise ValueError(f"val={self.val!r} names a folder; expected val_boxes, the JSON of its pictures, too")
        return self

    @property
    def names_val(self) -> bool:
        return self.val_boxes is not None

    def source(self, split: Split, index: IndexFolder) -> BoxedPictures:
        folder, file = self._places(split)
        asked = {split: CacheKey(repr([file, folder, self.numbering]), lambda known: _changed(file, known))}
        listing = index.listings(asked, lambda: {split: self._scan(folder, file)})[split]
        return BoxedPictures(os.fsencode(folder), listing, self.target)

    def _places(self, split: Split) -> tuple[str, str]:
        """The folder of the images of a split, and its JSON."""
        own = split == "val" and self.val is not None
        boxes = self.train_boxes if split == "train" else self.val_boxes
        assert boxes is not None, "asked for only where there are some"
        return os.path.join(self.path, (self.val if own else self.train) or ""), os.path.join(self.path, boxes)

    def _scan(self, folder: str, file: str) -> Listing:
        stamp, found, builder = _stamp(file), read(file, self.numbering), IndexBuilder()
        for name in found.names:
            builder.add(name, file_size(os.path.join(os.fsencode(folder), name)) or 0)
        index, labels = builder.build(), found.boxes.largest()
        if not index.sizes.any():
            raise UserError(
                f"{folder!r} has none of the {len(index):,} pictures that {file!r} lists, such as "
                f"{os.fsdecode(found.names[0])!r}. Set data.train and data.val to their folders."
            )
        return Listing.of(index, found.classes, labels, (stamp,), named=True, boxes=found.boxes)


def _changed(file: str, known: Listing) -> str | None:
    return None if (_stamp(file),) == known.files else file


def _stamp(file: str) -> Stamp:
    try:
        return Stamp(file, *local_identity(file))
    except OSError as error:
        raise UserError(
            f"{file!r} cannot be read: {error.strerror or error}. Set data.train_boxes and data.val_boxes to COCO's "
            "JSON of boxes."
        ) from error
