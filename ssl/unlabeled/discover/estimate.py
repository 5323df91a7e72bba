"""How many classes there are: the number of clusters by which held-out classes are found best.

Vaze et al. (2022, section 3.3) search for the number with the best Hungarian accuracy on labelled images, by Brent's
method and one seed. That curve is neither smooth nor unimodal, and with every known class in it the best number leans
to theirs. Here half of the known classes are held out, as if unknown, anew for every seed; numbers on a grid are tried,
then those around the best; and a curve that is no more than noise is called undecided.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from unlabeled.discover.accuracy import contingency, matching
from unlabeled.discover.kmeans import Clustering, Labelled

GRID, AROUND, SEEDS = 20, 10, 3
LEAST = 4  # known classes: two to know, two to find
HELD_OUT = 0.5
# standard errors between the best and the worst mean: the studentised range of 20 to 30 numbers over 3 seeds, which
# chance alone exceeds about once in 20 times
NOISE = 5.5


class Curve(NamedTuple):
    """Accuracies on held-out classes, in percent.

    Attributes:
        accuracies: those of each seed, by the number of clusters.
    """

    accuracies: Mapping[int, Sequence[float]]

    @property
    def numbers(self) -> list[int]:
        """Numbers of clusters that were tried, ascending."""
        return sorted(self.accuracies)

    def mean(self, k: int) -> float:
        """Over seeds."""
        return float(np.mean(self.accuracies[k]))

    @property
    def best(self) -> int:
        """The number of the highest mean, of equal ones the largest: too few clusters may mix new classes, which nobody
        sees, too many break up held-out ones, which lowers the accuracy."""
        return max(self.numbers, key=lambda k: (self.mean(k), k))

    @property
    def error(self) -> float:
        """Standard error of a mean over seeds, the same for every number: what is left when each seed's own mean, of
        the classes that it holds out, is taken off."""
        found = np.array([self.accuracies[k] for k in self.numbers])
        rest = found - found.mean(0)
        seeds = found.shape[1]
        return float(np.sqrt(rest.var(1, ddof=1).mean() / seeds)) if seeds > 1 else math.inf

    @property
    def range(self) -> tuple[int, int]:
        """The smallest and the largest number whose mean is within two standard errors of a difference to the best."""
        least = self.mean(self.best) - 2 * math.sqrt(2) * self.error
        good = [k for k in self.numbers if self.mean(k) >= least]
        return good[0], good[-1]

    @property
    def doubt(self) -> str:
        """Why the best number is not to be trusted, in words; '' = no reason is seen."""
        means = [self.mean(k) for k in self.numbers]
        apart, chance = max(means) - min(means), NOISE * self.error
        if apart <= chance:
            return (
                f"The curve is flat: its best and worst mean are {apart:.1f} points apart, and chance alone may give "
                f"{chance:.1f} ({NOISE:g} standard errors)"
            )
        if self.best == self.numbers[-1]:
            return f"The best number is the largest that was tried, {self.best}: try more with --most"
        return ""

    @property
    def json(self) -> dict[str, Any]:
        """As JSON."""
        tried = [{"classes": k, "mean": self.mean(k), "accuracies": list(self.accuracies[k])} for k in self.numbers]
        doubt = {"undecided": bool(self.doubt), "why": self.doubt}
        return {"best": self.best, "range": list(self.range), **doubt, "error": self.error, "curve": tried}


def grid(known: int, most: int) -> list[int]:
    """At most GRID numbers of clusters from `known` to `most`, evenly."""
    return sorted({round(value) for value in np.linspace(known, most, GRID)})


def around(tried: Sequence[int], best: int) -> list[int]:
    """At most AROUND further numbers between the two neighbours of the best of those that were tried, evenly."""
    below = max((k for k in tried if k < best), default=best)
    above = min((k for k in tried if k > best), default=best)
    left = [k for k in range(below + 1, above) if k not in tried]
    places = np.linspace(0, len(left) - 1, min(AROUND, len(left)))
    return [left[round(place)] for place in places]


class Split(NamedTuple):
    """The known classes as if some were unknown: labelled images of the others, features [n, D] of the held-out ones,
    and the classes of all of them [l + n], labelled first."""

    kept: Labelled
    held: Tensor
    truth: NDArray[np.int64]


def held_out(order: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first half of the known classes in an `order` of them, ascending."""
    return np.sort(order[: math.ceil(HELD_OUT * len(order))])


def split(labelled: Labelled, out: NDArray[np.int64]) -> Split:
    """Hold out some classes, ascending."""
    y = labelled.y.cpu().numpy()
    held = np.isin(y, out)
    names, numbers = np.unique(y[~held], return_inverse=True)
    rest, gone = (torch.from_numpy(np.flatnonzero(rows)).to(labelled.x.device) for rows in (~held, held))
    kept = Labelled(labelled.x[rest], torch.from_numpy(numbers.astype(np.int64)).to(labelled.x.device), len(names))
    return Split(kept, labelled.x[gone], np.concatenate([numbers, len(names) + np.searchsorted(out, y[held])]))


def found(one: Split, clusters: Clustering) -> float:
    """Accuracy on the held-out images, in percent, by one matching of all labelled images. `clusters` are of the
    held-out images, then of others."""
    everything = np.concatenate([one.kept.y.cpu().numpy(), clusters.labels[: len(one.held)].cpu().numpy()])
    hits = matching(contingency(everything, one.truth))[everything] == one.truth
    return 100 * float(hits[len(one.kept.y) :].mean())
