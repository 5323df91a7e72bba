"""Random streams draw what they always drew: a changed number here changes every run."""

from __future__ import annotations

import numpy as np
import pytest

from unlabeled.randomness import HELD_OUT, Stream, stream

NUMBERS = {
    "SAMPLE": 0x5A37,
    "ORDER": 0x0DE2,
    "KEYED": 0x6EED,
    "SHARDS": 0x5AD5,
    "WINDOW": 0x717D,
    "BALANCE": 0xBA1A,
    "GROUP": 0x6209,
    "SLOT": 0x91AC,
    "BLOCKS": 0xB70C,
    "MIX": 0x317,
    "MOSAIC": 0x405A,
    "BOXES": 0xB0C5,
    "SIZE": 0x512E,
    "SUBSET": 0x5B5E,
    "EPISODE": 0xFE35,
    "AUGMENTED": 0x1D4A,
    "SURVEY": 0xD0C7,
    "SPLIT": 0x5B117,
    "UNKNOWN": 0x0B5E,
    "CLUSTER": 0xC1A5,
    "LOOK": 0x100C,
    "RIDGE": 0x21D6E,
    "STRATEGY": 0x57A7,
}


def test_streams_keep_their_numbers() -> None:
    assert {name.name: name.value for name in Stream} == NUMBERS
    assert HELD_OUT == 0x4E1D


@pytest.mark.parametrize("name", list(Stream))
@pytest.mark.parametrize("key", [(), (3,), (7, 123_456), (7, np.int64(5), 2)])
def test_a_stream_is_a_philox_of_seed_name_and_key(name: Stream, key: tuple[int, ...]) -> None:
    literal = np.random.Generator(np.random.Philox(np.random.SeedSequence((11, NUMBERS[name.name], *key))))
    assert np.array_equal(stream(11, name, *key).random(64), literal.random(64))


def test_streams_of_one_seed_differ() -> None:
    drawn = {tuple(stream(0, name, 1).integers(2**62, size=4)) for name in Stream}
    assert len(drawn) == len(Stream)
