"""Random streams: every draw depends on the seed of the recipe, the name of its stream and a key, on nothing else.

The same in any process, on any number of workers and after a restart.
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np


class Stream(IntEnum):
    """Names of the streams. Two streams of one seed are independent; their numbers must never change."""

    SAMPLE = 0x5A37  # crops, colours and masks of one image; key: epoch, index, turn
    ORDER = 0x0DE2  # permutation of an epoch; key: epoch
    KEYED = 0x6EED  # keys of a keyed permutation of an epoch; key: epoch
    SHARDS = 0x5AD5  # keys of the permutation of shards of an epoch; key: epoch
    WINDOW = 0x717D  # keys of the permutation of a window of shards; key: epoch, window
    BALANCE = 0xBA1A  # permutation of a class-balanced epoch; key: epoch
    GROUP = 0x6209  # seed of the order of a group of rows; key: group
    SLOT = 0x91AC  # mask ratios over the crops of a global batch; key: step
    BLOCKS = 0xB70C  # sizes and places of the blocks of a global batch's masks; key: step
    MIX = 0x317  # mixup and CutMix of a pair; key: step, pair
    MOSAIC = 0x405A  # centre and other images of a mosaic; key: step, row
    BOXES = 0xB0C5  # boxes that a detector's losses are computed on; key: step, index, stage
    SIZE = 0x512E  # size of a step's crops; key: step
    SUBSET = 0x5B5E  # stratified subset of labels
    EPISODE = 0xFE35  # episodes of few-shot classification; key: shots
    AUGMENTED = 0x1D4A  # test images that get augmented views
    SURVEY = 0xD0C7  # images that the doctor looks at
    SPLIT = 0x5B117  # groups that go to validation
    UNKNOWN = 0x0B5E  # classes that are held out as unknown; key: draw
    CLUSTER = 0xC1A5  # k-means of category discovery; key: purpose, clusters, start
    LOOK = 0x100C  # images that a look shows; key: 0 examples, 1 clusters and queries, 2 of the map
    RIDGE = 0x21D6E  # ridge regression on a random projection; key: 0 projection, 1 images that choose the ridge
    STRATEGY = 0x57A7  # what a class-incremental strategy draws; key: task, 0 projection, 1 ridge, 2 proxies


HELD_OUT = 0x4E1D  # added to the seed of a subset where labels are held out of training


def stream(seed: int, name: Stream, *key: int) -> np.random.Generator:
    """The generator of one stream: Philox, seeded by (seed, name, key) alone."""
    return np.random.Generator(np.random.Philox(np.random.SeedSequence((seed, name.value, *key))))
