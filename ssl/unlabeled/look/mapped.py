"""The content of `look/map.json`: images on a plane, their neighbours, outliers and near-duplicates.

Images are named by their place in `names`, which is that of their thumbnail.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import BaseModel, Field, model_validator

FILE, SHEET = "map.json", "map.jpg"
Place = Annotated[int, Field(ge=0)]


class Thumbnails(BaseModel, frozen=True):
    """The sheet `map.jpg`: thumbnails of `side` pixels, `columns` in a row."""

    side: int = Field(ge=1)
    columns: int = Field(ge=1)


class Query(BaseModel, frozen=True):
    """An image and its nearest neighbours, the nearest first, as (place, cosine)."""

    place: Place
    neighbours: list[tuple[Place, float]]


class Duplicates(BaseModel, frozen=True):
    """Images that look the same to the encoder; `cosine` is the smallest of a pair that joined them."""

    places: list[Place]
    cosine: float


class Mapped(BaseModel, frozen=True, extra="ignore"):
    """All that is known of the images of a map.

    Attributes:
        about: the encoder and the images, in words.
        plane: how points were made, in words.
        step: of the run; None = of no run.
        root: folder of all files; '' = none is common.
        names: of the images' files below it.
        points: (x, y) of each.
        thumbnails: of each.
        words: by the name of a colouring, a word of each image: class, split, cluster.
        numbers: the same with numbers: uncertainty.
        queries: some images with their nearest neighbours.
        outliers: (place, mean distance to its nearest neighbours), the farthest first.
        duplicates: groups of near-duplicates, the closest first.
        grouped: number of groups that were found.
        threshold: cosine above which two images are near-duplicates.
        left_out: number of images that cannot be used.
    """

    about: str
    plane: str
    step: int | None = None
    root: str = ""
    names: list[str] = Field(min_length=1)
    points: list[tuple[float, float]]
    thumbnails: Thumbnails
    words: dict[str, list[str]] = {}
    numbers: dict[str, list[float]] = {}
    queries: list[Query] = []
    outliers: list[tuple[Place, float]] = []
    duplicates: list[Duplicates] = []
    grouped: int = 0
    threshold: float = 1.0
    left_out: int = 0

    @model_validator(mode="after")
    def _of_one_length(self) -> Mapped:
        lists = {"points": len(self.points)}
        lists |= {name: len(values) for name, values in self.words.items()}
        lists |= {name: len(values) for name, values in self.numbers.items()}
        if wrong := [f"{count} {name}" for name, count in lists.items() if count != len(self.names)]:
            raise ValueError(f"expected {len(self.names)} of everything, found {', '.join(wrong)}")
        if any(place >= len(self.names) for place in self._places()):
            raise ValueError(f"expected places below {len(self.names)}, found {max(self._places())}")
        return self

    def _places(self) -> list[int]:
        near = [place for query in self.queries for place in (query.place, *(n for n, _ in query.neighbours))]
        alike = [place for group in self.duplicates for place in group.places]
        return [*near, *alike, *(place for place, _ in self.outliers)]
