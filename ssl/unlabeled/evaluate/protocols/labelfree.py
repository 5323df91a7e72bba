"""Label-free measures of features: ranks, alignment and uniformity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

from pydantic import Field

from unlabeled.backbone.pooling import encoder_features
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.evaluate.augmented import default_view, view_features
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.evaluate.splits import Splits
from unlabeled.nn.measures import LIDAR_DELTA, RANK_EPSILON, alignment, lidar, spectral_rank, uniformity


class Config(Pooled, frozen=True, extra="forbid"):
    """Measures of the test pictures' features that read no label, see `unlabeled.nn.measures`.

    Of the pictures as they are: `labelfree_rankme` (Garrido et al. 2023) and `labelfree_uniformity` (Wang & Isola
    2020). Of random views of some of them: `labelfree_lidar` (Thilak et al. 2024, who take 1,000 pictures and 50 views
    each) and `labelfree_alignment`.
    """

    version: ClassVar[str] = "labelfree/1"
    summary: ClassVar[str] = "RankMe, LiDAR, alignment and uniformity, which read no labels"
    order: ClassVar[int] = 5
    labels: ClassVar[bool] = False
    unit: ClassVar[str] = "ranks in dimensions, alignment in 0..4, uniformity in -4..0"
    pixels: ClassVar[bool] = False
    name: Literal["labelfree"] = "labelfree"

    pictures: int = Field(1000, ge=2, description="test pictures to take views of, at most all")
    views: int = Field(10, ge=2, description="random views of each; 50 in LiDAR's paper")
    view: View | None = Field(
        None,
        description="how views are cut and coloured, their size and count aside; null = random resized crops of "
        "0.2 to 1 of the area, flips and, of RGB, colour jitter",
    )
    delta: float = Field(LIDAR_DELTA, gt=0, allow_inf_nan=False, description="LiDAR's, added to the scatter within")
    epsilon: float = Field(
        RANK_EPSILON, ge=0, allow_inf_nan=False, description="RankMe's and LiDAR's, added to shares of the spectrum"
    )

    def scores(self, bench: Bench) -> Iterator[Score]:
        [(pool, blocks)] = self.required_features(bench.pool, bench.encoder.readable)
        _, test = bench.features(pool, blocks)
        encode = encoder_features(bench.encoder, pool, blocks)
        view = self.augmentation(bench.splits, bench.shape)
        views = view_features(encode, bench.splits, view, self.pictures, bench.seed)
        yield Score("rankme", spectral_rank(test.x, self.epsilon))
        yield Score("lidar", lidar(views, self.delta, self.epsilon))
        yield Score("alignment", alignment(views), digits=3)
        yield Score("uniformity", uniformity(test.x), digits=3)

    def check(self, splits: Splits) -> None:
        self.augmentation(splits)

    def augmentation(self, splits: Splits, shape: tuple[int, int] | None = None) -> View:
        """The view that is cut, of the size that the encoder sees where that is known.

        Raises:
            UserError: it does not suit the pictures, or hides patches.
        """
        channels = splits.data.config.channels
        view = self.view or default_view(channels)
        view = view.model_copy(update={"size": shape or view.size, "count": self.views})
        if view.mask is not None:
            raise UserError("labelfree.view.mask hides patches, which nothing here reads. Set it to null.")
        try:
            view.check(1, channels)
        except ValueError as error:
            raise UserError(f"labelfree.view: {error}") from error
        return view
