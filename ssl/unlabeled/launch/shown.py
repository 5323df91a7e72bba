"""An encoder and the pictures that a command shows through it, see `unlabeled.launch.picture_options`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import NamedTuple

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import Pool, encoder_features
from unlabeled.backbone.weights import prepare
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.source import Source
from unlabeled.evaluate.features import WORKER_TIMEOUT
from unlabeled.evaluate.splits import Preparation
from unlabeled.launch.given import WHOLE, Load, given, splits_of
from unlabeled.launch.options import check_side, checked, device_of
from unlabeled.look.collect import Prepared, choose, describe
from unlabeled.look.mapping import Described
from unlabeled.look.thumbnails import Thumbs


class Shown(NamedTuple):
    """An encoder on its device, and pictures by their splits.

    Attributes:
        prepared: how pictures become its input.
        words: the same, for people.
        pictures: what was named on the command line.
    """

    encoder: Encoder
    sources: Mapping[str, Source]
    prepared: Prepared
    pool: Pool
    words: str
    pictures: str

    def described(self, most: int, seed: int, workers: int) -> tuple[Described, Thumbs, str]:
        """Features and thumbnails of at most so many pictures, drawn by the seed, and how many these are, in words."""
        encode, chosen = encoder_features(self.encoder, self.pool), choose(self.sources, most, seed)
        images, thumbs = describe(encode, self.sources, chosen, self.prepared, workers, WORKER_TIMEOUT)
        everything = sum(map(len, self.sources.values()))
        return images, thumbs, f"{len(images.names):,} of {everything:,} pictures of {self.pictures}"


def shown(args: argparse.Namespace, load: Load) -> Shown:
    """What the options name; `load` reads a recipe of any stage. Raises UserError when it cannot be had."""
    encoder, how, words = prepare(args.export, args.image_size, crop_pct=args.crop_pct, pool=args.pool)
    check_side(encoder, "--image-size", args.image_size)
    asked = checked(Preparation, pool=how.pool, crop_pct=how.crop_pct, interpolation=how.interpolation)
    encoder = encoder.to(device := device_of(args.device)).eval()
    sources, config = splits_of(
        args.pictures,
        args.split,
        args.overrides,
        lambda splits: given(args.pictures, load, how, splits, args.overrides, WHOLE),
    )
    normalize = Normalize(config.mean, config.std, device)
    prepared = Prepared(encoder.image_size, asked.crop_pct, asked.interpolation, normalize, device)
    return Shown(encoder, sources, prepared, how.pool or encoder.default_pool, words, args.pictures)
