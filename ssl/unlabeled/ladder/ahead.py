"""How long the rest of a climb takes: by the pictures of each step, and the seconds that a picture took so far."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from unlabeled.ladder.amount import Amount
from unlabeled.ladder.rungs import Climb
from unlabeled.ladder.training import RATIO, learnt_from, recipe_of, without_labels
from unlabeled.ladder.ways import PROBES, TUNED

Step = tuple[str, Amount]
BACKWARD = 2  # passes forward that one backward costs


def pictures(climb: Climb, rungs: Sequence[str]) -> dict[Step, float]:
    """What each step costs, in pictures that pass forward through a network.

    A probe reads all pictures once, for its first amount of labels; a training also reads those for testing, once. Runs
    that are finished cost nothing.
    """
    sizes = {split: len(climb.data.split(split)) for split in ("train", "val")}
    return {
        (rung, amount): _trained(climb, rung, amount, sizes)
        if rung in TUNED
        else _read(climb, rungs, rung, amount, sizes)
        for rung in rungs
        for amount in climb.amounts
    }


def _read(climb: Climb, rungs: Sequence[str], rung: str, amount: Amount, sizes: Mapping[str, int]) -> float:
    """All pictures, for the first of the steps that share their features."""
    first = next((one for one in PROBES if one in rungs), rung) if rung in PROBES else rung
    return float(sum(sizes.values())) if (rung, amount) == (first, climb.amounts[0]) and rung != "majority" else 0.0


def _trained(climb: Climb, rung: str, amount: Amount, sizes: Mapping[str, int]) -> float:
    unlabelled, cost = without_labels(climb) if rung == "unlabelled" else None, 0.0
    # an unlabelled picture passes forward once more, in its weak view
    more = 0 if unlabelled is None else RATIO / (1 + RATIO)
    for seed in range(climb.seeds):
        recipe = recipe_of(climb, rung, amount, seed)
        if not (Path(recipe.output) / "result.json").exists():
            count, batch = learnt_from(climb, amount, seed, unlabelled), recipe.train.batch_size
            cost += (1 + BACKWARD + more) * recipe.train.epochs * (count // batch * batch) + sizes["val"]
    return cost


def seconds_left(costs: Mapping[Step, float], took: Mapping[Step, float]) -> float | None:
    """Seconds of the steps that are not in `took`, the seconds of those done; None while there is nothing to judge by.

    Trainings judge trainings as soon as one is done.
    """
    paid = {step for step in took if costs[step]}
    known = {step for step in paid if step[0] in TUNED} or paid
    if not known:
        return None
    a_picture = sum(took[step] for step in known) / sum(costs[step] for step in known)
    return a_picture * sum(cost for step, cost in costs.items() if step not in took)
