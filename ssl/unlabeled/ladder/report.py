"""A ladder as a table, a plot and JSON, and which rung pays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from unlabeled.ladder.amount import Amount
from unlabeled.ladder.rungs import UNPRETRAINED, Step
from unlabeled.report.table import estimate, markdown
from unlabeled.text import drawable

NAMES = {
    "majority": "most frequent class",
    "pixels": "raw pixels, linear",
    "untrained": "untrained network, linear",
    "knn": "kNN",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "lora": "LoRA",
    "layer_decay": "fine-tuned, layer decay",
    "scratch": "trained from scratch",
}
WHAT_TO_TRY = (
    "What to try: more steps (--steps) for the rungs that are trained, features of other tokens (--pool), pretraining "
    "for more epochs, on more pictures or on larger crops, or by another method."
)

TITLE_LENGTH = 64


class Gain(NamedTuple):
    """What the best rung of a pretrained network is above the best without pretraining, in points of accuracy.

    Attributes:
        rung, baseline: which they are.
        points: the difference of their means.
        error: twice its standard error, of seeds and of test pictures.
    """

    rung: str
    baseline: str
    points: float
    error: float

    @property
    def clear(self) -> bool:
        """Whether it is more than its error."""
        return self.points > self.error


def at(steps: Sequence[Step], amount: Amount) -> list[Step]:
    """The rungs on one amount of labels, the cheapest first as they were climbed."""
    return [step for step in steps if step.amount == amount]


def pretrained(steps: Sequence[Step]) -> list[Step]:
    """Those that use what was pretrained."""
    return [step for step in steps if step.rung not in UNPRETRAINED]


def gain(steps: Sequence[Step], amount: Amount) -> Gain | None:
    """What pretraining is worth on one amount of labels; None where there is nothing to compare with."""
    found = at(steps, amount)
    rivals, ours = [step for step in found if step.rung in UNPRETRAINED], pretrained(found)
    if not rivals or not ours:
        return None
    best, rival = (max(some, key=lambda step: step.mean) for some in (ours, rivals))
    chance = sum(step.mean * (100 - step.mean) / step.pictures for step in (best, rival) if step.pictures)
    error = 2 * math.sqrt(_deviation(best, rival) ** 2 + chance)
    return Gain(best.rung, rival.rung, best.mean - rival.mean, error)


def worth(steps: Sequence[Step], amounts: Sequence[Amount]) -> str:
    """Whether pretraining paid, as the last line of a page; '' where nothing can be compared."""
    found = {amount: one for amount in amounts if (one := gain(steps, amount)) is not None}
    if not found:
        return ""
    unclear = {amount: one for amount, one in found.items() if not one.clear}
    told = "; ".join(
        f"with {amount.words} {NAMES[one.rung]} is {one.points:+.1f} points (± {one.error:.1f}) against "
        f"{NAMES[one.baseline]}"
        for amount, one in (unclear or found).items()
    )
    if unclear:
        ahead = all(one.points > 0 for one in unclear.values())
        judged = "It is not certain that pretraining paid" if ahead else "Pretraining did not pay"
        return f"\n{judged}: {told}. {WHAT_TO_TRY}\n"
    return f"\nPretraining paid: {told}.\n"


def pays(steps: Sequence[Step]) -> Step:
    """The cheapest rung with pretraining on one amount of labels that no other of these beats by more than twice the
    error of the difference."""
    steps = pretrained(steps)
    best = max(steps, key=lambda step: step.mean)
    near = [step for step in steps if best.mean - step.mean <= 2 * _deviation(best, step)]
    return min(near, key=lambda step: step.seconds)


def _deviation(a: Step, b: Step) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(sum(step.std**2 / len(step.accuracies) for step in (a, b)))


def table(steps: Sequence[Step], amounts: Sequence[Amount]) -> str:
    """Markdown: rungs down, amounts across, CPU time of one seed behind each; the rung that pays in bold."""
    head = ["", *(amount.words for amount in amounts)]
    rungs = dict.fromkeys(step.rung for step in steps)
    return markdown(head, [[NAMES[rung], *(cell(steps, rung, amount) for amount in amounts)] for rung in rungs])


def cell(steps: Sequence[Step], rung: str, amount: Amount) -> str:
    """A rung's mean ± deviation and cost on an amount of labels."""
    found = at(steps, amount)
    step = next(step for step in found if step.rung == rung)
    text = score(step)
    return f"{f'**{text}**' if pretrained(found) and pays(found) is step else text} ({duration(step.seconds)})"


def score(step: Step) -> str:
    """Mean ± deviation over seeds; of one seed, what it got."""
    return estimate(step.mean, step.std if len(step.accuracies) > 1 else None, digits=1)


def duration(seconds: float) -> str:
    """Seconds or minutes."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def verdict(steps: Sequence[Step], amount: Amount) -> str:
    """Which rung pays on an amount of labels, in a sentence."""
    found = pretrained(at(steps, amount))
    chosen, best = pays(found), max(found, key=lambda step: step.mean)
    text = f"{amount.words}: {NAMES[chosen.rung]} pays, {_price(chosen)}"
    if chosen is best:
        return f"{text}; nothing is better."
    return f"{text}; {NAMES[best.rung]}, {_price(best)}, is not better beyond the deviation of the seeds."


def _price(step: Step) -> str:
    return f"{step.mean:.1f} % for {duration(step.seconds)}"


def _cut(title: str) -> str:
    """A title that fits above the plot: of a long path its end."""
    return drawable(title if len(title) <= TITLE_LENGTH else f"…{title[1 - TITLE_LENGTH :]}")


def plot(steps: Sequence[Step], amounts: Sequence[Amount], title: str, file: Path) -> None:
    """Accuracy over the number of labels, a line per rung, deviations as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, rung in enumerate(dict.fromkeys(step.rung for step in steps)):
        own = [step for step in steps if step.rung == rung]
        x = [amounts.index(step.amount) for step in own]
        axes.errorbar(
            x,
            [step.mean for step in own],
            [step.std for step in own],
            marker="osD^v<>PX"[place % 9],
            capsize=3,
            label=f"{NAMES[rung]} ({duration(own[-1].seconds)})",
        )
    axes.set_xticks(range(len(amounts)), [amount.short for amount in amounts])
    axes.set(xlabel="labels", ylabel="top-1 accuracy, %", title=_cut(title))
    axes.grid(alpha=0.3)
    axes.legend(title="CPU time with the most labels", fontsize="small", title_fontsize="small")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        figure.savefig(file)
