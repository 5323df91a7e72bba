"""Images that a table lists: a CSV, TSV or Parquet file of paths, with labels and splits if it has them."""

from __future__ import annotations

import os
from typing import Annotated, ClassVar, Literal

from pydantic import Field, NonNegativeInt, field_validator, model_validator

from unlabeled.data.archive.dialect import Dialect, path_bytes, separator_named
from unlabeled.data.archive.index import IndexBuilder, file_size
from unlabeled.data.archive.listing import CacheKey, IndexFolder, Listing, Split, Stamp
from unlabeled.data.archive.pictures import Folder, Pictures
from unlabeled.data.archive.rows import read_rows
from unlabeled.data.archive.tar import local_identity
from unlabeled.data.label.labels import numbered
from unlabeled.data.source import HOLDS_OUT, EncodedConfig, Share
from unlabeled.errors import UserError
from unlabeled.paths import UserPath
from unlabeled.recipe.faults import show
from unlabeled.recipe.free import FREE


class Config(EncodedConfig):
    """A row per image, in the table's order. Any value may be a label; empty ones are unknown."""

    what_val_is: ClassVar[str] = "the value of `split` in labelled rows, such as data.split=split data.val=test"

    name: Literal["table"] = "table"
    path: Annotated[UserPath, FREE] = Field(description="a .csv, .tsv or .parquet with a row per image")
    root: Annotated[UserPath | None, FREE] = Field(
        None, description="folder that the paths are relative to; null = the table's own"
    )
    header: bool = Field(True, description="whether the first line names the columns; if not, they have numbers from 0")
    separator: str | None = Field(
        None,
        description="between values: a character, or comma, semicolon, tab, pipe or space; null = what makes the "
        "columns of the first lines",
    )
    image: str | NonNegativeInt = Field("path", description="column of the images' paths, by name or number")
    label: str | NonNegativeInt | None = Field(None, description="column of the labels; null = unlabelled")
    split: Share | str | NonNegativeInt | None = Field(  # type: ignore[assignment]  # a column, too
        None,
        description=f"column that tells splits apart; a number between 0 and 1: {HOLDS_OUT}; null = all are train",
    )
    train: str = Field("train", description="value of `split` in the rows to train on")
    val: str | None = Field(None, description="value of `split` in the labelled rows to evaluate on; null = none")

    @field_validator("separator")
    @classmethod
    def _one_character(cls, separator: str | None) -> str | None:
        return None if separator is None else separator_named(separator)

    @model_validator(mode="after")
    def _val_has_a_column(self) -> Config:
        if self.val is not None and self._column is None and self.share is None:
            raise ValueError(f"val={self.val!r} is a value of the column `split`, which is null: expected its name")
        return self

    def source(self, split: Split, index: IndexFolder) -> Pictures:
        path, root = self.path, os.fsencode(self._root)
        text = repr([path, self._dialect, self._wanted(split), self.numbering])
        asked = {split: CacheKey(text, lambda listing: None if (_stamp(path),) == listing.files else path)}
        listings = index.listings(asked, lambda: {split: self._scan(split)})
        return Pictures(Folder(root), listings[split], self.target)

    @property
    def share(self) -> float | None:
        return self.split if isinstance(self.split, float) else None

    @property
    def _column(self) -> str | int | None:
        """The column that tells splits apart."""
        return None if isinstance(self.split, float) else self.split

    @property
    def _root(self) -> str:
        return self.root or os.path.dirname(self.path) or "."

    @property
    def _dialect(self) -> Dialect:
        columns = [self.image, *(column for column in (self.label, self._column) if column is not None)]
        return Dialect(columns, self.header, self.separator, os.fsencode(self._root))

    def _wanted(self, split: Split) -> str | None:
        return None if self._column is None else self.train if split == "train" else self.val

    def _scan(self, split: Split) -> Listing:
        wanted, root = self._wanted(split), os.fsencode(self._root)
        stamp = _stamp(self.path)
        builder, labels, values = IndexBuilder(), [], set()
        # rows are read for each split anew: millions of them would stay as Python objects otherwise
        for path, *rest in read_rows(self.path, self._dialect):
            if wanted is None or rest[-1].strip() == wanted.strip():
                name = path_bytes(path)
                builder.add(name, file_size(os.path.join(root, name)) or 0)
                labels.append("" if self.label is None else rest[0])
            elif not labels:
                values.add(rest[-1])
        if not labels:
            if not values:
                raise UserError(f"{self.path!r} has no rows below its columns; expected one for each picture")
            found = f"[{', '.join(map(show, sorted(values)[:10]))}]. Choose one of these."
            raise UserError(f"no row of {self.path!r} has {self._column}={wanted!r}; found {found}")
        return Listing.of(builder.build(), *numbered(labels, self.numbering), (stamp,), named=True)


def _stamp(path: str) -> Stamp:
    try:
        return Stamp(path, *local_identity(path))
    except OSError as error:
        said = f"data.path={path!r} cannot be read: {error.strerror or error}. Name a table that can be."
        raise UserError(said) from error
