"""An encoder on the bench: its features of the labelled images, computed once for all protocols."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Part, Pool, check, parts, reader, widths
from unlabeled.data.label.subset import few_shot, stratified
from unlabeled.data.source import Source
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.splits import Splits


class Bench:
    """One encoder and the labelled images of both splits.

    Args:
        encoder: in any mode, on the device of `splits`; it does not change.
        splits: the images and their preparation.
        shape: (height, width) that the encoder sees, pixels.
        seed: of the draws of protocols, and of the share of labels.
        pool: of features where neither a protocol nor the evaluation gives one; None = the encoder's default.

    Attributes:
        fraction: share of the training labels that `features` gives out; 1 = all.
        shots: labels of every class, instead of `fraction`.
        device: of encoder and features.
    """

    def __init__(
        self, encoder: Encoder, splits: Splits, shape: tuple[int, int], seed: int = 0, pool: Pool | None = None
    ) -> None:
        self.encoder, self.splits, self.shape, self.seed = encoder, splits, shape, seed
        self._pool, self.device, self.fraction = pool, splits.device, 1.0
        self.shots: int | None = None
        self._parts: dict[Part, tuple[Features, Features]] = {}
        self._others: dict[tuple[str, FeatureSpec], Tensor] = {}

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return len(self.splits.sources[0].classes)

    @property
    def pool(self) -> Pool:
        """The pooling of features where a protocol has none."""
        return self.splits.preparation.pool or self._pool or self.encoder.default_pool

    def few(self, fraction: float, seed: int = 0, shots: int | None = None) -> Bench:
        """Copy the bench with a share of the training labels, or `shots` of every class; both share their features."""
        twin = copy.copy(self)
        twin.fraction, twin.seed, twin.shots = fraction, seed, shots
        return twin

    def prepare(self, wanted: Iterable[FeatureSpec]) -> None:
        """Compute features in one pass over the images, those that are not there yet.

        Raises:
            UserError: the encoder has no class token or too few blocks, or no image is left.
        """
        specs = list(dict.fromkeys(wanted))
        for spec in specs:
            check(self.encoder, spec)
        missing = list(dict.fromkeys(part for spec in specs for part in parts(spec) if part not in self._parts))
        if not missing:
            return
        pieces = [
            [
                Features(x.contiguous(), split.y)
                for x in split.x.split(widths(self.encoder, missing, split.x.shape[1]), dim=1)
            ]
            for split in self.splits.features(reader(self.encoder, missing), self.shape)
        ]
        self._parts |= dict(zip(missing, zip(*pieces, strict=True), strict=True))

    def features(self, pool: Pool | None = None, blocks: int = 1) -> tuple[Features, Features]:
        """(train, test) features on the device: [n, D], or wider, see `FeatureSpec`; of the bench's share of labels.

        Args:
            pool: of tokens; None = the evaluation's.
            blocks: number of last blocks, each through the final norm.

        Raises:
            UserError: as `prepare`.
        """
        wanted = FeatureSpec(pool or self.pool, blocks)
        self.prepare([wanted])
        train, test = (_joined(pieces) for pieces in zip(*(self._parts[part] for part in parts(wanted)), strict=True))
        names = self.splits.sources[0].classes
        if self.shots is not None:
            train = train.take(few_shot(train.y.cpu().numpy(), self.shots, self.seed, names))
        elif self.fraction < 1:
            train = train.take(stratified(train.y.cpu().numpy(), self.fraction, self.seed, names=names))
        return train, test

    def others(self, source: Source, wanted: FeatureSpec) -> Tensor:
        """Features [m, D] of images that lie elsewhere, labelled or not, prepared as those of the splits. Raises
        UserError as `prepare`."""
        check(self.encoder, wanted)
        if (key := (source.fingerprint(), wanted)) not in self._others:
            one = source.relabelled(np.zeros(len(source), np.int64), ("picture",))
            self._others[key] = self.splits.encoded(reader(self.encoder, parts(wanted)), one, self.shape).x
        return self._others[key]


def _joined(pieces: Sequence[Features]) -> Features:
    return pieces[0] if len(pieces) == 1 else Features(torch.cat([piece.x for piece in pieces], dim=1), pieces[0].y)
