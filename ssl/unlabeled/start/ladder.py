"""The plan of the ladder: which labels it climbs on, and what it costs."""

from __future__ import annotations

import os
from shlex import quote
from typing import NamedTuple

from unlabeled.start.facts import Facts
from unlabeled.start.opening import Place
from unlabeled.start.timing import Pace

STEPS, BATCH, SEEDS = 300, 32, 3
TUNED, TUNED_TOKENS = 1, 3  # rungs that are trained, of a network of maps and of tokens
PASSES = 2  # over all labelled pictures: by the encoder and by an untrained one
FEW, MANY = 20, 50  # labelled pictures of a class
TESTED = 0.2  # share of the labelled pictures that is tested on


class Ladder(NamedTuple):
    """A command, and its duration in seconds; None = not measured."""

    command: str
    seconds: float | None


def ladder(
    run: str, labelled: Place, facts: Facts, transformer: bool, pace: Pace | None, crops: float
) -> Ladder | None:
    """How to climb with the encoder of `run`, on the labelled pictures that its recipe names; None without.

    Args:
        run: folder of the run.
        labelled: the labelled pictures.
        transformer: whether the encoder is one.
        pace: of pretraining.
        crops: large crops that pretraining makes of a picture, by area.
    """
    if labelled.labels not in ("splits", "flat"):
        return None
    amounts, where = _amounts(facts.each), f"{quote(os.path.join(run, 'export'))} {quote(run)}"
    command = f"unlabeled ladder {where} {amounts} --seeds {SEEDS} --steps {STEPS} --batch-size {BATCH}"
    if pace is None:
        return Ladder(command, None)
    encode = pace.speed.encode or pace.real
    runs = SEEDS * len(amounts.split()[1:]) * (TUNED_TOKENS if transformer else TUNED)
    tuning = runs * (STEPS * BATCH / (crops * pace.real) + TESTED * labelled.labelled / encode)
    return Ladder(command, PASSES * labelled.labelled / encode + tuning)


def _amounts(each: int) -> str:
    if each >= MANY:
        return "--fractions 0.1 1"
    return "--fractions 0.3 1" if each >= FEW else "--fractions 1"
