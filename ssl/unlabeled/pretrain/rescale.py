"""What a paper set for its batch and its number of epochs, carried over to yours.

A field that a recipe leaves at null follows its rule; a number in the recipe pins it. The learning rate has a rule of
its own in `optim` (base_lr, lr_rule).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from unlabeled.errors import UserError

# an average over more of the run than this would still hold its random start
LONGEST_WINDOW = 0.05


class Setting(NamedTuple):
    """How many pictures make a step, and how many epochs and steps a run."""

    batch: int
    epochs: float
    steps: int


class Rescaled(NamedTuple):
    """One line of the plan: a field, its value in the paper and here, and why."""

    field: str
    paper: float
    yours: float
    why: str


def same_window(value: float, paper: Setting, yours: Setting) -> float:
    """The EMA averages over as many pictures: m to the power of batch / paper's batch (Busbridge et al. 2023), but over
    a twentieth of the run at most: 1 / (1 - m) steps."""
    longest = max(1.0, LONGEST_WINDOW * yours.steps)
    return min(value ** (yours.batch / paper.batch), 1 - 1 / longest)


def same_share(value: float, paper: Setting, yours: Setting) -> float:
    """Epochs keep their share of the run."""
    return value * yours.epochs / paper.epochs


class Rule(NamedTuple):
    """A paper's value of a field, and how it is carried over."""

    value: float
    carry: Callable[[float, Setting, Setting], float]


REASONS: dict[Any, str] = {
    same_window: "averages over as many pictures, at most a twentieth of the run",
    same_share: "the same share of the run",
}


def check_epochs(config: Any, epochs: float) -> None:
    """Raise UserError when a field that counts epochs, by its rule, goes beyond the end of the run."""
    for name, rule in getattr(config, "rules", {}).items():
        value = getattr(config, name)
        if rule.carry is same_share and value is not None and value > epochs:
            raise UserError(
                f"method.{name}: found {value:g} epochs, but the run has {epochs:g}. Lower it, or set it to null for "
                f"the paper's share of the run."
            )


def as_in_paper(config: Any) -> Any:
    """A method's Config with what a recipe leaves open as in the paper."""
    return rescale(config, config.paper)[0]


def rescale(config: Any, yours: Setting) -> tuple[Any, list[Rescaled]]:
    """A method's Config with every null field of its `rules` filled in, and what that changed.

    Args:
        config: may have `paper`, the Setting of its defaults, and `rules`, a Rule by field name.
        yours: of the run.
    """
    rules: dict[str, Rule] = getattr(config, "rules", {})
    open_fields = {name: rule for name, rule in rules.items() if getattr(config, name) is None}
    filled = {name: rule.carry(rule.value, config.paper, yours) for name, rule in open_fields.items()}
    notes = [
        Rescaled(f"method.{name}", rule.value, filled[name], REASONS[rule.carry])
        for name, rule in open_fields.items()
        if filled[name] != rule.value
    ]
    return config.model_copy(update=filled), notes
