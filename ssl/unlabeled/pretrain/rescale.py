"""Carry a paper's settings over to another batch size and another number of epochs.

A field that a recipe leaves at null follows its rule; a number in the recipe pins it. The learning rate has a rule of
its own in `optim` (base_lr, lr_rule).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple, TypeVar

from pydantic import BaseModel

from unlabeled.errors import UserError


class Setting(NamedTuple):
    """The batch size of a run, and its length in epochs and steps."""

    batch: int
    epochs: float
    steps: int


class Rescaled(NamedTuple):
    """A line of the plan: a field, its value in the paper and in this run, and the reason."""

    field: str
    paper: float
    yours: float
    why: str


class Rule(NamedTuple):
    """A paper's value of a field, and the function that carries it over."""

    value: float
    carry: Callable[[float, Setting, Setting], float]


class Rescalable(BaseModel, frozen=True, extra="forbid"):
    """Settings of which some follow from the batch size and the length of the run."""

    rules: ClassVar[dict[str, Rule]] = {}  # the rule of each field that a recipe may leave at null
    paper: ClassVar[Setting]  # the run that the values of `rules` are for


Config = TypeVar("Config", bound=Rescalable)


def same_window(value: float, paper: Setting, yours: Setting) -> float:
    """Average an EMA over as many images: m to the power of batch / paper's batch (Busbridge et al. 2023).

    The window of 1 / (1 - m) steps is at most a twentieth of the run: a longer one still has the random start in it.
    """
    longest = max(1.0, 0.05 * yours.steps)
    return min(value ** (yours.batch / paper.batch), 1 - 1 / longest)


def same_share(value: float, paper: Setting, yours: Setting) -> float:
    """Keep the share of the run that a number of epochs is."""
    return value * yours.epochs / paper.epochs


def same_balance(value: float, paper: Setting, yours: Setting) -> float:
    """Keep the balance of two terms with weights w and 1 - w, of which the first grows with the batch: w / (1 - w) goes
    with 1 / batch."""
    first, second = value * paper.batch, (1 - value) * yours.batch
    return first / (first + second)


# rows of a queue of features for up to so many pictures
QUEUES = {50: 16, 100: 32, 250: 64, 500: 128, 1000: 256, 2000: 512, 4000: 1024, 10_000: 2048, 20_000: 4096}


def queue_for_pictures(value: float, paper: Setting, yours: Setting) -> float:
    """Keep a queue well below the number of pictures, so that a picture is rarely in it twice (lightly-train)."""
    pictures = yours.steps * yours.batch / yours.epochs
    return next((rows for most, rows in QUEUES.items() if pictures <= most), value)


REASONS: dict[Callable[[float, Setting, Setting], float], str] = {
    same_window: "averages over as many pictures, at most a twentieth of the run",
    same_share: "the same share of the run",
    same_balance: "the same balance of the two losses, of which one grows with the batch",
    queue_for_pictures: "a picture is rarely in it twice",
}


def check_epochs(config: Rescalable, epochs: float) -> None:
    """Raise UserError when a field in epochs is longer than the run."""
    for name, rule in config.rules.items():
        value = getattr(config, name)
        if rule.carry is same_share and value is not None and value > epochs:
            raise UserError(
                f"method.{name}: found {value:g} epochs, but the run has {epochs:g}. Lower it, or set it to null for "
                f"the paper's share of the run."
            )


def as_in_paper(config: Rescalable) -> Any:
    """Fill the null fields of a config with the paper's values: optional numbers are numbers then."""
    return rescale(config, config.paper)[0]


def rescale(config: Config, yours: Setting) -> tuple[Config, list[Rescaled]]:
    """Fill the null fields of a config by its rules; returns it, and the values that differ from the paper's."""
    open_fields = {name: rule for name, rule in config.rules.items() if getattr(config, name) is None}
    filled = {name: rule.carry(rule.value, config.paper, yours) for name, rule in open_fields.items()}
    notes = [
        Rescaled(f"method.{name}", rule.value, filled[name], REASONS[rule.carry])
        for name, rule in open_fields.items()
        if filled[name] != rule.value
    ]
    return config.model_copy(update=filled), notes
