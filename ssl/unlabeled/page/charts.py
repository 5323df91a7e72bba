"""The curves of one run, or of several over each other, as charts."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby

from unlabeled.page.curves import Curve, Curves
from unlabeled.page.measures import Measure, ordered
from unlabeled.report.document import Part, Text
from unlabeled.report.visuals import Band, Chart, Line, Mark

START = "start"


def charts(
    runs: Mapping[str, Curves], bands: Mapping[str, Band] | None = None, marks: Sequence[Mark] = ()
) -> Iterator[Part]:
    """A heading for each group of measures, and a chart for each of them.

    Args:
        runs: by the name in the legend; '' = there is one run, and lines are called by what they measure.
        bands: of healthy values, by the name of the measure.
        marks: on the step axis of the loss, and of the measures that they name.
    """
    found = [(name, False) for curves in runs.values() for name in curves.training]
    found += [(name, True) for curves in runs.values() for name in curves.scores]
    for heading, measures in groupby(ordered(found), key=lambda one: one.group):
        shown = [(one, lines) for one in measures if (lines := _lines(one, runs))]
        if shown:
            yield Text(heading, "heading")
        for one, lines in shown:
            band = (bands or {}).get(one.name, one.band)
            named = [
                mark for mark in marks if one.name == "loss" or re.search(rf"\b{re.escape(one.name)}\b", mark.text)
            ]
            yield Chart(one.title, lines, y=one.unit, band=band, marks=named, text=_named(one))


def _named(measure: Measure) -> str:
    """The explanation behind the name that recipes, warnings and `metrics.jsonl` have for the measure."""
    named = "" if measure.name.replace("_", " ").lower() == measure.title.lower() else measure.name
    return ": ".join(filter(None, (named, measure.text)))


def _lines(measure: Measure, runs: Mapping[str, Curves]) -> list[Line]:
    lines = []
    for name, curves in runs.items():
        curve = curves.training.get(measure.name) or curves.scores.get(measure.name)
        if curve is None or (measure.rare and not curve.best[1] > 0):
            continue
        lines.append(curve.line(name or measure.title))
        if curves.scores.get(measure.name) is curve and _is_compared(curve):
            lines.append(_start(f"{name} {START}".strip(), curve))
    return lines


def _is_compared(curve: Curve) -> bool:
    """Whether a run began with an encoder that has learnt: it is scored before the first step."""
    return curve.first[0] == 0 and curve.readings > 1


def _start(name: str, curve: Curve) -> Line:
    """The score before the first step, as a level."""
    return Line(name, [0, int(curve.steps[-1])], [curve.first[1]] * 2)
