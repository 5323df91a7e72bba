"""Label-free measures of features: ranks, alignment and uniformity."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from unlabeled.backbone.pooling import Encode, encoder_features
from unlabeled.data.batch.loader import Normalize, ViewDataset, make_loader, to_device
from unlabeled.data.batch.sampler import Position
from unlabeled.data.batch.samples import collate
from unlabeled.data.batch.workers import Batches
from unlabeled.data.view.views import View
from unlabeled.errors import Stopped, UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.protocol import Pooled, Score
from unlabeled.evaluate.splits import Splits
from unlabeled.nn.measures import LIDAR_DELTA, RANK_EPSILON, alignment, lidar, spectral_rank, uniformity
from unlabeled.processes import gather_objects, raise_together
from unlabeled.progress import track
from unlabeled.randomness import Stream, stream
from unlabeled.signals import stop

JITTER = (0.4, 0.4, 0.2, 0.1)  # of DINO and iBOT


class Config(Pooled, frozen=True, extra="forbid"):
    """Measures of features of the test images that read no label, see `unlabeled.nn.measures`.

    Of the images themselves: `labelfree_rankme` (Garrido et al. 2023) and `labelfree_uniformity` (Wang & Isola 2020).
    Of random views of some of them: `labelfree_lidar` (Thilak et al. 2024: 1,000 images, 50 views each) and
    `labelfree_alignment`.
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
        encode, view = encoder_features(bench.encoder, pool, blocks), self.augmentation(bench.splits, bench.shape)
        views = view_features(encode, bench.splits, view, self.pictures, bench.seed)
        yield Score("rankme", spectral_rank(test.x, self.epsilon))
        yield Score("lidar", lidar(views, self.delta, self.epsilon))
        yield Score("alignment", alignment(views), digits=3)
        yield Score("uniformity", uniformity(test.x), digits=3)

    def check(self, splits: Splits) -> None:
        self.augmentation(splits)

    def augmentation(self, splits: Splits, shape: tuple[int, int] | None = None) -> View:
        """The view, of the size that the encoder sees where that is known.

        Raises:
            UserError: it does not suit the images, or hides patches.
        """
        channels = splits.data.config.channels
        # random resized crops and flips; of RGB also colour jitter
        view = self.view or View(scale=(0.2, 1.0), jitter=JITTER if channels == 3 else None)
        view = view.model_copy(update={"size": shape or view.size, "sizes": (), "count": self.views})
        if view.mask is not None:
            raise UserError("labelfree.view.mask hides patches, which nothing here reads. Set it to null.")
        try:
            view.check(1, channels)
        except ValueError as error:
            raise UserError(f"labelfree.view: {error}") from error
        return view


def choose(n: int, most: int, seed: int) -> np.ndarray:
    """Draw numbers below n, at most `most`, and sort them; they depend on nothing else."""
    return np.sort(stream(seed, Stream.AUGMENTED).permutation(n)[:most])


def view_features(encode: Encode, splits: Splits, view: View, most: int, seed: int) -> Tensor:
    """Features [n, q, D] of q = `view.count` views of at most `most` test images each; the same on every process.

    Views depend on the seed and the number of the image alone. Leaves out unusable images. Each process encodes its own
    share. Draws nothing from torch's random state.

    Args:
        encode: normalised images [B, C, h, w] to features [B, D].
        splits: holds the test images in its second source.
        view: without a mask.
        most: number of images; the seed chooses them.
        seed: of choice and views.

    Raises:
        UserError: fewer than two images are left.
    """
    source, device = splits.sources[1], splits.device
    chosen = choose(len(source), most, seed)[splits.rank :: splits.world]
    size = max(1, splits.preparation.batch_size // view.count)
    batches = [[Position(0, int(i)) for i in chosen[start : start + size]] for start in range(0, len(chosen), size)]
    normalize = Normalize(splits.data.config.mean, splits.data.config.std, device)
    share: tuple[list[int], list[Tensor]] = [], []
    error = None
    try:
        loader = make_loader(
            ViewDataset(source, [view], 1, seed),
            batches,
            workers=splits.workers,
            device=device,
            timeout=splits.timeout,
            collate=collate,
        )
        with stop.alone(), Batches(loader) as made:
            pairs = zip(batches, made, strict=True)
            for asked, raw in track(pairs, "views of images", len(chosen), lambda pair: len(pair[0])):
                [one] = to_device(raw, device, normalize).views
                features = encode(one.pixels.transpose(0, 1).flatten(0, 1)).float().cpu()
                # the next image stands in place of an unusable one
                good = raw.index == torch.tensor([position.index for position in asked])
                share[0].extend(raw.index[good].tolist())
                share[1].append(features.unflatten(0, (len(asked), -1))[good])
    except (Exception, Stopped) as caught:  # the other processes wait to hear of any error
        error = caught
    raise_together(error)
    shares = gather_objects(share) if splits.world > 1 else [share]
    rows = torch.tensor([row for numbers, _ in shares for row in numbers])
    if len(rows) < 2:
        raise UserError(f"{len(rows)} of the test pictures can be used, expected at least 2 to compare views of.")
    return torch.cat([part for _, parts in shares for part in parts])[rows.argsort()]
