"""Diagrams as PNG files, without matplotlib's global state and without a display."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from unlabeled.files import replacing
from unlabeled.report.calibration import Reliability
from unlabeled.text import drawable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 130
LABELS, LABEL_LENGTH = 50, 22  # the most names, and the most letters of each
COUNTED, SHARED, COARSE = 14, 30, 200  # the most classes with a count, a percentage, a pixel for every cell
INK, GRID, BLUE, RED = "#222222", "#dddddd", "#7fa8d1", "#c0392b"


def draw_confusion(file: Path, confusion: Tensor, classes: Sequence[str], title: str = "") -> None:
    """Draw counts [C, C], rows the true class, coloured by their share of it. Raises OSError.

    Cells show a count up to 14 classes, a percentage up to 30. Of more than 50 names, every n-th is written.
    """
    from matplotlib.colors import PowerNorm

    counts = confusion.cpu().numpy()
    n = len(classes)
    shares = counts / np.where(counts.sum(1) == 0, np.nan, counts.sum(1))[:, None]
    side = float(np.clip(2.5 + 0.45 * n, 4.5, 11.5))
    figure = figure_of(side + 1.2, side)
    axes = figure.add_subplot()
    axes.set_facecolor(GRID)  # a class without pictures
    # a square root, so that a hundredth of a class differs from nothing
    drawn = axes.imshow(
        shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1), interpolation="nearest" if n <= COARSE else "auto"
    )
    _name_classes(axes, classes)
    if n <= SHARED:
        _write_cells(axes, counts, shares)
    bar = figure.colorbar(drawn, ax=axes, fraction=0.04, pad=0.02, ticks=[0, 0.01, 0.05, 0.2, 0.5, 1])
    bar.ax.set_yticklabels(["0", "1 %", "5 %", "20 %", "50 %", "100 %"], fontsize=8)
    bar.set_label("share of the true class", fontsize=9)
    axes.set_title(drawable(title), fontsize=11)
    write_figure(figure, file)


def draw_reliability(file: Path, found: Reliability, title: str = "") -> None:
    """Draw accuracy over confidence, the gap between them, and the number of images in each bin. Raises OSError."""
    figure = figure_of(5.2, 6.2)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(3, 1))
    counts, accuracy, confidence = (values.cpu().numpy() for values in found)
    width = 1 / len(counts)
    centres = (np.arange(len(counts)) + 0.5) * width
    filled = counts > 0
    upper.bar(centres[filled], accuracy[filled], 0.94 * width, color=BLUE, label="accuracy")
    gap = {"color": "none", "edgecolor": RED, "hatch": "////", "lw": 0.8, "label": "gap"}
    upper.bar(centres[filled], (confidence - accuracy)[filled], 0.94 * width, accuracy[filled], **gap)
    upper.plot([0, 1], [0, 1], color=INK, lw=1, ls="--", label="perfect calibration")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy", title=drawable(title))
    paper = {"facecolor": "white", "edgecolor": GRID, "boxstyle": "round"}
    upper.text(0.97, 0.05, f"ECE {100 * found.error:.2f} %", ha="right", transform=upper.transAxes, bbox=paper)
    upper.legend(loc="upper left", fontsize=9)
    lower.bar(centres, counts, 0.94 * width, color=BLUE)
    _write_counts(lower, centres, counts)
    lower.set(xlabel="confidence (probability of the predicted class)", ylabel="pictures")
    for axes in (upper, lower):
        axes.grid(color=GRID, lw=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    write_figure(figure, file)


def figure_of(width: float, height: float) -> Figure:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=DPI, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    return figure


def write_figure(figure: Figure, file: Path) -> None:
    with replacing(file) as temporary, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of letters that its font lacks
        figure.savefig(temporary, format="png")


def _name_classes(axes: Any, classes: Sequence[str]) -> None:
    n = len(classes)
    shown = list(range(0, n, -(-n // LABELS)))
    whole = [classes[i] for i in shown]
    names = [drawable(name if len(name) <= LABEL_LENGTH else name[: LABEL_LENGTH - 1] + "…") for name in whole]
    size = float(np.clip(440 / max(len(shown), 1), 7, 10))
    axes.set_xticks(shown, names, fontsize=size, rotation=90 if n > 4 else 0)
    axes.set_yticks(shown, names, fontsize=size)
    axes.set_xlabel("predicted", fontsize=10)
    axes.set_ylabel("true", fontsize=10)


def _write_cells(axes: Any, counts: np.ndarray, shares: np.ndarray) -> None:
    n = len(counts)
    for row, column in zip(*np.nonzero(counts), strict=True):
        share = shares[row, column]
        text = f"{counts[row, column]}" if n <= COUNTED else f"{100 * share:.0f}"
        colour = "white" if share > 0.3 else INK
        axes.text(column, row, text, ha="center", va="center", color=colour, fontsize=9 if n <= COUNTED else 7)


def _write_counts(axes: Any, centres: np.ndarray, counts: np.ndarray) -> None:
    for centre, count in zip(centres, counts, strict=True):
        if count:
            axes.text(centre, count, f"{count}", ha="center", va="bottom", fontsize=6.5, color=INK)
    axes.set_ylim(0, 1.15 * max(1, counts.max()))
