"""Results as Markdown."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from unlabeled import text
from unlabeled.report.intervals import student


def markdown(head: Sequence[str], rows: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table with its columns aligned: the first to the left, the others, which hold numbers, to the right.

    Args:
        head: names of the columns.
        rows: as many cells each.
        left: how many are aligned to the left.
    """
    lines = [[text.markdown(cell) for cell in row] for row in (head, *rows)]
    widths = [max(3, *(len(line[i]) for line in lines)) for i in range(len(head))]
    rule = ["-" * width if i < left else "-" * (width - 1) + ":" for i, width in enumerate(widths)]
    return "".join(f"| {' | '.join(_aligned(line, widths, left))} |\n" for line in (lines[0], rule, *lines[1:]))


def estimate(
    mean: float, deviation: float | None = None, interval: tuple[float, float] | None = None, digits: int = 2
) -> str:
    """A number with what is known of its error: `91.20 ± 0.31 [90.84, 91.56]`."""
    spread = "" if deviation is None else f" ± {deviation:.{digits}f}"
    bounds = "" if interval is None else f" [{interval[0]:.{digits}f}, {interval[1]:.{digits}f}]"
    return f"{mean:.{digits}f}{spread}{bounds}"


def repeated(values: Sequence[float], digits: int = 2, level: float = 0.95) -> str:
    """Mean, standard deviation and Student's interval over seeds or episodes; of a single value, the value."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return estimate(mean, digits=digits)
    half = student(values, level)
    return estimate(mean, statistics.stdev(values), (mean - half, mean + half), digits)


def _aligned(line: Sequence[str], widths: Sequence[int], left: int) -> list[str]:
    pairs = enumerate(zip(line, widths, strict=True))
    return [cell.ljust(width) if i < left else cell.rjust(width) for i, (cell, width) in pairs]
