"""A ladder as a report: a table of rungs by amount of labels, sentences on which rung pays, and a plot."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlabeled.ladder.amount import Amount
from unlabeled.ladder.rungs import RungResult
from unlabeled.ladder.verdict import Lead, at, lead, pays, pretrained
from unlabeled.progress import duration
from unlabeled.report.document import Cell, Document, Marked, Table, Text
from unlabeled.report.intervals import estimate
from unlabeled.report.visuals import Chart, Line
from unlabeled.text import drawable

NAMES = {
    "majority": "most frequent class",
    "pixels": "raw pixels, linear",
    "untrained": "untrained network, linear",
    "knn": "kNN",
    "ncm": "nearest class mean",
    "ranpac": "random projection, ridge",
    "linear": "linear probe",
    "attentive": "attentive probe",
    "lora": "LoRA",
    "layer_decay": "fine-tuned, layer decay",
    "unlabelled": "the same, pictures without labels too",
    "scratch": "trained from scratch",
}
ADVICE = (
    "What to try: more steps (--steps) for the rungs that are trained, features of other tokens (--pool), pretraining "
    "for more epochs, on more pictures or on larger crops, or by another method."
)
MEANING = (
    "Top-1 accuracy in percent, mean ± deviation over seeds, CPU time of one seed; in bold the cheapest rung that none "
    "beats by more than twice the error of the difference."
)
TITLE_LENGTH = 64


def page(title: str, results: Sequence[RungResult], done: Sequence[Amount], data: Mapping[str, Any]) -> Document:
    """The `results` of the rungs so far, a column for each amount of labels that is `done` by every rung.

    `data` is for programs: protocol, options and versions.
    """
    ready = [one for one in done if pretrained(at(results, one))]
    leads = {one: found for one in ready if (found := lead(results, one))}
    head = ["", *(amount.phrase for amount in done)]
    rungs = dict.fromkeys(result.rung for result in results)
    rows = [[NAMES[rung], *(_cell(at(results, amount), rung) for amount in done)] for rung in rungs]
    sentences = [Text(verdict(results, one), "item") for one in ready] + ([Text(worth(leads))] if leads else [])
    content = {
        **data,
        "steps": [{**result._asdict(), "mean": result.mean, "std": result.std} for result in results],
        "pays": {one.short: pays(at(results, one)).rung for one in ready},
        "pretraining": {one.short: found._asdict() for one, found in leads.items()},
    }
    return Document(title, [Text(MEANING), Table(head, rows), *charts(results, done), *sentences], content)


def charts(results: Sequence[RungResult], done: Sequence[Amount]) -> list[Chart]:
    """Accuracy over the amount of labels and over the cost, a line for each rung."""
    if not done:
        return []
    rungs = {result.rung: [one for one in results if one.rung == result.rung] for result in results}
    own = {
        rung: [next(one for one in found if one.amount == amount) for amount in done] for rung, found in rungs.items()
    }
    labels = [_line(rung, range(len(done)), found) for rung, found in own.items()]
    seconds = {rung: sorted(found, key=lambda one: one.seconds) for rung, found in own.items()}
    cost = [_line(rung, [round(one.seconds, 2) for one in found], found) for rung, found in seconds.items()]
    accuracy, spread = "top-1 accuracy, %", "Means over seeds; bands and bars are one deviation up and down."
    names = [amount.short for amount in done]
    return [
        Chart("Accuracy by labels", labels, "labels", accuracy, text=spread, names=names),
        Chart("Accuracy by cost", cost, "CPU seconds of one seed", accuracy, "dots", text=spread),
    ]


def _line(rung: str, x: Sequence[float], results: Sequence[RungResult]) -> Line:
    """The means of a rung, and a deviation around them where there are several seeds."""
    line = Line(NAMES[rung], list(x), [one.mean for one in results])
    if all(len(one.accuracies) == 1 for one in results):
        return line
    return line._replace(low=[one.mean - one.std for one in results], high=[one.mean + one.std for one in results])


def _cell(results: Sequence[RungResult], rung: str) -> Cell:
    """Mean ± deviation and CPU time of a rung on one amount of labels, marked where it pays."""
    result = next(result for result in results if result.rung == rung)
    text, cost = score(result), f" ({duration(result.seconds, exact=True)})"
    return Marked(text, rest=cost) if pretrained(results) and pays(results) is result else text + cost


def score(result: RungResult) -> str:
    """Mean ± deviation over seeds; of one seed, its accuracy."""
    return estimate(result.mean, result.std if len(result.accuracies) > 1 else None, digits=1)


def verdict(results: Sequence[RungResult], amount: Amount) -> str:
    """A sentence: the rung that pays on an amount of labels."""
    found = pretrained(at(results, amount))
    chosen, best = pays(found), max(found, key=lambda result: result.mean)
    text = f"{amount.phrase}: {NAMES[chosen.rung]} pays, {_price(chosen)}"
    if chosen is best:
        return f"{text}; nothing is better."
    return f"{text}; {NAMES[best.rung]}, {_price(best)}, is not better beyond the deviation of the seeds."


def _price(result: RungResult) -> str:
    return f"{result.mean:.1f} % for {duration(result.seconds, exact=True)}"


def worth(leads: Mapping[Amount, Lead]) -> str:
    """The last sentence: whether pretraining paid, by amount of labels, at least one."""
    unclear = {amount: found for amount, found in leads.items() if not found.clear}
    told = "; ".join(
        f"with {amount.phrase} {NAMES[found.rung]} is {found.points:+.1f} points (± {found.error:.1f}) against "
        f"{NAMES[found.baseline]}"
        for amount, found in (unclear or leads).items()
    )
    if not unclear:
        return f"Pretraining paid: {told}."
    ahead = all(found.points > 0 for found in unclear.values())
    judged = "It is not certain that pretraining paid" if ahead else "Pretraining did not pay"
    return f"{judged}: {told}. {ADVICE}"


def plot(results: Sequence[RungResult], amounts: Sequence[Amount], title: str, file: Path) -> None:
    """Draw accuracy over the number of labels, a line per rung, deviations as bars."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for i, rung in enumerate(dict.fromkeys(result.rung for result in results)):
        own = [result for result in results if result.rung == rung]
        places, means = [amounts.index(result.amount) for result in own], [result.mean for result in own]
        label = f"{NAMES[rung]} ({duration(own[-1].seconds, exact=True)})"
        axes.errorbar(places, means, [result.std for result in own], marker="osD^v<>PX"[i % 9], capsize=3, label=label)
    axes.set_xticks(range(len(amounts)), [amount.short for amount in amounts])
    axes.set(xlabel="labels", ylabel="top-1 accuracy, %", title=_cut(title))
    axes.grid(alpha=0.3)
    axes.legend(title="CPU time with the most labels", fontsize="small", title_fontsize="small")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        figure.savefig(file)


def _cut(title: str) -> str:
    """A title that fits above the plot: the end of a long path."""
    return drawable(title if len(title) <= TITLE_LENGTH else f"…{title[1 - TITLE_LENGTH :]}")
