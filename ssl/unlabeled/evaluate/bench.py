"""An encoder on the bench: its features of the labelled pictures, computed once for all protocols."""

from __future__ import annotations

import copy
from collections.abc import Iterable

import torch

from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Part, Pool, check, parts, reader
from unlabeled.data.label.subset import few_shot, stratified
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.splits import Splits


class Bench:
    """One encoder and the labelled pictures of both splits.

    Args:
        encoder: in any mode, on the device of `splits`; it stays as it is.
        splits: the pictures, and how they are prepared.
        shape: (height, width) that the encoder sees, pixels.
        seed: see below.
        pool: of features where neither a protocol nor the evaluation says; None = the encoder's default.

    Attributes:
        fraction: share of the training labels that `features` gives out; 1 = all.
        shots: labels of every class that it gives out; None = as `fraction` says.
        seed: of what protocols draw, and of which labels that share holds.
    """

    def __init__(
        self, encoder: Encoder, splits: Splits, shape: tuple[int, int], seed: int = 0, pool: Pool | None = None
    ) -> None:
        self.encoder, self.splits, self.shape, self.seed = encoder, splits, shape, seed
        self._pool = pool
        self.fraction = 1.0
        self.shots: int | None = None
        self._parts: dict[Part, tuple[Features, Features]] = {}

    @property
    def device(self) -> torch.device:
        """Where encoder and features are."""
        return self.splits.device

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.splits.num_classes

    @property
    def pool(self) -> Pool:
        """The pooling of features where a protocol does not say."""
        return self.splits.preparation.pool or self._pool or self.encoder.default_pool

    def few(self, fraction: float, seed: int = 0, shots: int | None = None) -> Bench:
        """The same bench with a share of the training labels, or `shots` of every class; both share their features."""
        twin = copy.copy(self)
        twin.fraction, twin.seed, twin.shots = fraction, seed, shots
        return twin

    def prepare(self, wanted: Iterable[FeatureSpec]) -> None:
        """Compute the features of several kinds in one pass over the pictures; what is there already is kept.

        Raises:
            UserError: the encoder has no class token or not so many blocks, or no picture is left.
        """
        kinds = list(dict.fromkeys(wanted))
        for kind in kinds:
            check(self.encoder, kind)
        missing = [part for part in dict.fromkeys(p for kind in kinds for p in parts(kind)) if part not in self._parts]
        if not missing:
            return
        pieces = [
            [Features(x.contiguous(), split.y) for x in split.x.chunk(len(missing), dim=1)]
            for split in self.splits.features(reader(self.encoder, missing), self.shape)
        ]
        self._parts |= dict(zip(missing, zip(*pieces, strict=True), strict=True))

    def features(self, pool: Pool | None = None, blocks: int = 1) -> tuple[Features, Features]:
        """(train, test) features on the device: [n, D], or wider, see `FeatureSpec`; of the share of labels asked for.

        Args:
            pool: how tokens become one vector; None = as the evaluation says.
            blocks: how many of the last blocks, each through the final norm.

        Raises:
            UserError: as `prepare`.
        """
        wanted = FeatureSpec(pool or self.pool, blocks)
        self.prepare([wanted])
        found = [self._parts[part] for part in parts(wanted)]
        train, test = (_joined([pair[side] for pair in found]) for side in (0, 1))
        names = self.splits.sources[0].classes
        if self.shots is not None:
            train = train.take(few_shot(train.y.cpu().numpy(), self.shots, self.seed, names))
        elif self.fraction < 1:
            train = train.take(stratified(train.y.cpu().numpy(), self.fraction, self.seed, names=names))
        return train, test


def _joined(pieces: list[Features]) -> Features:
    return pieces[0] if len(pieces) == 1 else Features(torch.cat([piece.x for piece in pieces], dim=1), pieces[0].y)
