"""How long a run may be: a few steps on this machine, and as many epochs as fit."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import NamedTuple

from unlabeled.accelerator import make_accelerator
from unlabeled.backbone.pooling import Encode
from unlabeled.data.batch.sampler import steps_per_epoch, total_steps
from unlabeled.doctor.speed import Speed, measure
from unlabeled.pretrain.method import Method
from unlabeled.progress import duration
from unlabeled.start.facts import Facts
from unlabeled.start.recipe import Length
from unlabeled.start.rules import Rule
from unlabeled.train.job import Job

SECONDS = 1.5  # of each measurement
STARTING = 20.0  # seconds that a run takes to start and to end
EVALUATIONS = 4  # in a run
KEPT = 0.95  # share of the measured speed that is counted on: machines grow warm, and people use them
GUESS = Length(10, 1000, None, "")  # where nothing is measured yet
UNMEASURED = 100.0  # epochs of a run on a machine that is not here


class Pace(NamedTuple):
    """The speed of a recipe on this machine with so many threads."""

    speed: Speed
    threads: int | None

    @property
    def real(self) -> float:
        """Pictures per second that a run can count on."""
        return KEPT * self.speed.real


def paced(job: Job, facts: Facts, encoder: Callable[[Job, Method], Encode]) -> Pace:
    """Measure a recipe with one thread and with all cores, on a CPU; returns the faster."""
    threads = [None] if facts.device != "cpu" else sorted({1, facts.cores})
    return max((_measured(job, count, encoder) for count in threads), key=lambda pace: pace.real)


def _measured(job: Job, threads: int | None, encoder: Callable[[Job, Method], Encode]) -> Pace:
    run = job.recipe.run.model_copy(update={"threads": threads})
    recipe = job.recipe.model_copy(update={"run": run})
    accelerator = make_accelerator(run.device, recipe.train.precision, run.timeout)
    timed = replace(job, recipe=recipe)
    return Pace(measure(timed, accelerator, SECONDS, partial(encoder, timed)), threads)


def length(facts: Facts, chosen: Mapping[str, Rule], pace: Pace | None, scored: int) -> Length:
    """As many epochs as fit into the minutes, an evaluation reading `scored` pictures; without a pace the usual."""
    batch, most = int(chosen["batch"].take), int(chosen["most_epochs"].take)
    if pace is None:
        why = "not measured, as there is no GPU here: `unlabeled doctor` measures it there"
        return Length(UNMEASURED, total_steps(UNMEASURED, steps_per_epoch(facts.pictures, batch)), None, why)
    encode = pace.speed.encode or pace.real
    besides = STARTING + EVALUATIONS * scored / encode
    epochs = max(5.0, 60 * facts.minutes - besides) * pace.real / facts.pictures
    many = epochs > most
    epochs = float(most) if many else round(epochs) if epochs >= 10 else max(0.1, round(epochs, 1))
    steps = total_steps(epochs, steps_per_epoch(facts.pictures, batch))
    seconds = besides + steps * batch / pace.real
    scores = f", {duration(EVALUATIONS * scored / encode)} of it for kNN" if scored else ""
    why = f"about {duration(seconds)} here, by {pace.real:,.0f} pictures/s as measured{scores}"
    return Length(epochs, steps, pace.threads, f"{chosen['most_epochs'].because}; {why}" if many else why, seconds)
