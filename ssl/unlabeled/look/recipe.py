"""The `look:` section of recipes for `unlabeled pretrain`."""

from __future__ import annotations

from pydantic import BaseModel, Field

from unlabeled.look.plane import How

SHARE = 100  # images trained on for each image of the map: its features cost about 1 % of the run at most
FEWEST, LONG = 32, 2400.0  # images that a map has in any case; seconds of a run to which UMAP adds about 1 %


class Look(BaseModel, frozen=True, extra="forbid"):
    """What is drawn of the encoder, into `look/` of the run's folder; it changes nothing of the training."""

    examples: int = Field(
        8,
        ge=0,
        le=16,
        description="pictures whose attention and principal components are drawn where pictures are (see "
        "run.pictures_every): the same ones each time, of val where there is one; 0 = none",
    )
    pictures: int = Field(
        2000,
        ge=0,
        le=20_000,
        description="pictures of the map, its neighbours, outliers and near-duplicates, at most one for each "
        f"{SHARE} images trained on; 0 = no map",
    )
    queries: int = Field(6, ge=0, le=64, description="pictures whose nearest neighbours are shown")
    map: How = Field(
        "auto",
        description="how features are put on a plane: umap (`pip install umap-learn`; takes about half a minute), pca, "
        f"or auto = umap at the end of a run of more than {LONG / 60:.0f} minutes where it is installed",
    )
    every: int | None = Field(
        None,
        ge=1,
        description="also make the map at steps that this divides, of those where pictures are drawn; null = only at "
        "the end",
    )

    def most(self, steps: int, batch_size: int) -> int:
        """The number of images of the map of a run."""
        return min(self.pictures, max(FEWEST, steps * batch_size // SHARE))

    def way(self, seconds: float) -> How:
        """How the plane is made after a run of so many seconds."""
        return "pca" if self.map == "auto" and seconds < LONG else self.map
