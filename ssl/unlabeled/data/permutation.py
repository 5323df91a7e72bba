"""A keyed permutation of [0, n), computed number by number: no memory, any number of it at once."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

ROUNDS = 12  # of half the number each


class Permutation:
    """A permutation of [0, n) by a Feistel network over the places (row, column) of a table with n or slightly more.

    Rounds add to the row a hash of the column and to the column a hash of the row, in turn (Luby and Rackoff 1988; on
    any table instead of bits: Black and Rogaway 2002, section 5). A number that falls beyond n is permuted again until
    it is below (their section 3, "cycle walking"): less than one in sqrt(n) does.

    Args:
        n: how many numbers, at least 1.
        keys: where the keys of the rounds come from.
    """

    def __init__(self, n: int, keys: np.random.Generator) -> None:
        self.n = n
        rows = math.isqrt(n - 1) + 1
        self.rows, self.columns = np.uint64(rows), np.uint64(-(-n // rows))
        self.keys = keys.bit_generator.random_raw(ROUNDS)

    def __call__(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The numbers at positions [m] below n: [m]."""
        found = self._network(positions.astype(np.uint64))
        while len(beyond := np.flatnonzero(found >= self.n)):
            found[beyond] = self._network(found[beyond])
        return found.astype(np.int64)

    def _network(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        row, column = np.divmod(numbers, self.columns)
        for even, odd in self.keys.reshape(-1, 2):
            row = (row + mixed(column, even)) % self.rows
            column = (column + mixed(row, odd)) % self.columns
        return row * self.columns + column


def mixed(numbers: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """Hashes of 63 bits of numbers and a key: SplitMix64's output function (Steele, Lea and Flood 2014, figure 17)."""
    hashed = numbers + key
    hashed = (hashed ^ (hashed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashed = (hashed ^ (hashed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    # a bit is left for the sum with a row or a column: one that wraps around would be no permutation
    return (hashed ^ (hashed >> np.uint64(31))) >> np.uint64(1)
