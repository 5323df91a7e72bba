"""Similarity of an encoder's blocks, or of two encoders: linear CKA (Kornblith et al. 2019)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import ClassVar, Literal

import torch
from pydantic import Field
from torch import Tensor

from unlabeled.backbone.pooling import FeatureSpec, Pool
from unlabeled.backbone.weights import load_encoder, preprocessing_of
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.protocol import Protocol, Score
from unlabeled.evaluate.splits import Splits
from unlabeled.nn.measures import linear_cka
from unlabeled.paths import UserPath


class Config(Protocol, frozen=True, extra="forbid"):
    """Linear CKA of features of the test images after the last `blocks` blocks, each through the final norm.

    Scores are `cka_neighbours`, the mean over pairs of consecutive blocks, and `cka_ends`, of the first and the last;
    against another encoder `cka_against`, of the last block of each. The details hold all pairs, by rows of this
    encoder, the last block last.
    """

    version: ClassVar[str] = "cka/1"
    summary: ClassVar[str] = "similarity of the encoder's blocks"
    order: ClassVar[int] = 7
    labels: ClassVar[bool] = False
    unit: ClassVar[str] = "linear CKA, 0 to 1"
    name: Literal["cka"] = "cka"

    pool: Pool | None = Field(None, description="cls, mean or mean_max; null = as evaluate.pool says")
    blocks: int | None = Field(
        None, ge=1, description="how many of the last blocks to compare; null = all, of a CNN its last map"
    )
    against: UserPath | None = Field(None, description="an export folder to compare with; null = blocks of one encoder")
    unbiased: bool = Field(
        False, description="the unbiased estimate, which few pictures of many dimensions do not raise"
    )

    def required_features(self, pool: Pool, depth: int) -> list[FeatureSpec]:
        if (found := self.pool or pool) == "cls_mean":
            raise UserError("cka compares blocks, and cls_mean reads patches of the last only. Set cka.pool=mean.")
        return [FeatureSpec(found, self.blocks or depth)]

    def scores(self, bench: Bench) -> Iterator[Score]:
        own = self._by_block(bench)
        if len(own[0]) < 2:
            raise UserError("cka compares how pictures differ, and one test picture can be used. Give it more.")
        if self.against is not None:
            table = self._table(own, self._by_block(_other(bench, self.against)))
            yield Score("against", table[-1][-1], details={"blocks": table}, digits=3)
            return
        if len(own) == 1:
            raise UserError(
                f"of {bench.encoder.model} one block is read, so there is none to compare it with. Compare it with "
                "another encoder: --against EXPORT."
            )
        table = self._table(own, own)
        neighbours = [table[i][i + 1] for i in range(len(own) - 1)]
        yield Score("neighbours", sum(neighbours) / len(neighbours), details={"blocks": table}, digits=3)
        yield Score("ends", table[0][-1], digits=3)

    def _by_block(self, bench: Bench) -> Sequence[Tensor]:
        """Features [n, D] of the test images, block by block."""
        [(pool, blocks)] = self.required_features(bench.pool, bench.encoder.readable)
        return bench.features(pool, blocks)[1].x.chunk(blocks, dim=1)

    def _table(self, rows: Sequence[Tensor], columns: Sequence[Tensor]) -> list[list[float]]:
        return [[linear_cka(x, y, self.unbiased) for y in columns] for x in rows]


def _other(bench: Bench, path: str) -> Bench:
    """A second encoder on the same images, at its own size and normalisation. Raises UserError for other channels."""
    with torch.random.fork_rng():  # a network begins with random weights
        encoder = load_encoder(path)
    prepared, splits = preprocessing_of(path), bench.splits
    if encoder.channels != bench.encoder.channels:
        raise UserError(
            f"{path} sees {encoder.channels} channels, expected {bench.encoder.channels}, as many as what it is "
            "compared with."
        )
    data = splits.data.normalised(tuple(prepared.mean), tuple(prepared.std))
    where = (splits.device, splits.workers, splits.rank, splits.world)
    again = Splits(splits.preparation, data, *where, labels=splits.labels, timeout=splits.timeout)
    return Bench(encoder.to(bench.device), again, encoder.image_size, pool=bench.pool)
