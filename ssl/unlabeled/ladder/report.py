"""A ladder as a table, a plot and JSON, and which rung pays."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path

from unlabeled.ladder.rungs import Step
from unlabeled.report.table import estimate, markdown
from unlabeled.text import drawable

NAMES = {
    "knn": "kNN",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "lora": "LoRA",
    "layer_decay": "fine-tuned, layer decay",
}

TITLE_LENGTH = 64


def at(steps: Sequence[Step], fraction: float) -> list[Step]:
    """The rungs on one share of the labels, the cheapest first as they were climbed."""
    return [step for step in steps if step.fraction == fraction]


def pays(steps: Sequence[Step]) -> Step:
    """The cheapest rung on one share that no other beats by more than twice the error of the difference."""
    best = max(steps, key=lambda step: step.mean)
    near = [step for step in steps if best.mean - step.mean <= 2 * _deviation(best, step)]
    return min(near, key=lambda step: step.seconds)


def _deviation(a: Step, b: Step) -> float:
    """Standard error of the difference of two means."""
    return math.sqrt(sum(step.std**2 / len(step.accuracies) for step in (a, b)))


def table(steps: Sequence[Step], fractions: Sequence[float]) -> str:
    """Markdown: rungs down, shares across, CPU time of one seed behind each; the rung that pays in bold."""
    head = ["", *(f"{100 * fraction:g} % of the labels" for fraction in fractions)]
    rungs = dict.fromkeys(step.rung for step in steps)
    return markdown(head, [[NAMES[rung], *(cell(steps, rung, fraction) for fraction in fractions)] for rung in rungs])


def cell(steps: Sequence[Step], rung: str, fraction: float) -> str:
    """A rung's mean ± deviation and cost on a share."""
    found = at(steps, fraction)
    step = next(step for step in found if step.rung == rung)
    text = score(step)
    return f"{f'**{text}**' if pays(found) is step else text} ({duration(step.seconds)})"


def score(step: Step) -> str:
    """Mean ± deviation over seeds; of one seed, what it got."""
    return estimate(step.mean, step.std if len(step.accuracies) > 1 else None, digits=1)


def duration(seconds: float) -> str:
    """Seconds or minutes."""
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def verdict(steps: Sequence[Step], fraction: float) -> str:
    """Which rung pays on a share, in a sentence."""
    found = at(steps, fraction)
    chosen, best = pays(found), max(found, key=lambda step: step.mean)
    text = f"{100 * fraction:g} % of the labels: {NAMES[chosen.rung]} pays, {_price(chosen)}"
    if chosen is best:
        return f"{text}; nothing is better."
    return f"{text}; {NAMES[best.rung]}, {_price(best)}, is not better beyond the deviation of the seeds."


def _price(step: Step) -> str:
    return f"{step.mean:.1f} % for {duration(step.seconds)}"


def _cut(title: str) -> str:
    """A title that fits above the plot: of a long path its end."""
    return drawable(title if len(title) <= TITLE_LENGTH else f"…{title[1 - TITLE_LENGTH :]}")


def plot(steps: Sequence[Step], fractions: Sequence[float], title: str, file: Path) -> None:
    """Accuracy over the number of labels, a line per rung, deviations as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for place, rung in enumerate(dict.fromkeys(step.rung for step in steps)):
        own = [step for step in steps if step.rung == rung]
        x = [100 * step.fraction for step in own]
        axes.errorbar(
            x,
            [step.mean for step in own],
            [step.std for step in own],
            marker="osD^v"[place % 5],
            capsize=3,
            label=f"{NAMES[rung]} ({duration(own[-1].seconds)})",
        )
    axes.set_xscale("log")
    axes.set_xticks([100 * fraction for fraction in fractions], [f"{100 * fraction:g} %" for fraction in fractions])
    axes.minorticks_off()
    axes.set(xlabel="labels", ylabel="top-1 accuracy, %", title=_cut(title))
    axes.grid(alpha=0.3)
    axes.legend(title="CPU time with the most labels", fontsize="small", title_fontsize="small")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        figure.savefig(file)
