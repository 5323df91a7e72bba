"""The demo: pretrain on drawn patterns, evaluate, fine-tune with few labels, and say what it was worth.

make demo
python benchmarks/demo.py --seeds 3     # everything with other pictures and other starts, and the mean of all
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

from rich.console import Console

from unlabeled.report import terminal
from unlabeled.report.document import Document, Table, Text

ROOT = Path(__file__).parents[1]
RUNS = Path("runs")
PRETRAIN, FINETUNE = (f"recipes/demo/{name}.yaml" for name in ("simclr_resnet_shapes", "finetune_shapes"))

RAW, FREQUENT, UNTRAINED, PRETRAINED = ROWS = ("raw pixels", "most frequent class", "untrained", "pretrained")
COLUMNS = ("kNN", "linear", "fine-tuned")
Scores = dict[str, dict[str, float]]  # percent by row and column

OPENING = """\
Pictures of 32 px are drawn as they are needed: ten kinds of patterns (stripes, bricks, rings, ...). Colours, place,
size and angle are random and clutter lies behind, so that pixels alone say little about the kind. A small ResNet is
pretrained on them without labels (SimCLR), and compared with raw pixels and the same network untrained: by nearest
neighbours (kNN), by a linear classifier on top, and fine-tuned with few labels, against the same fine-tuning from
scratch. It takes about five minutes on two CPU cores, and ends with a table and the page of the run."""


class Seed(NamedTuple):
    """One seed of everything: pictures, networks and the choice of labels. Its runs have names of their own."""

    number: int

    @property
    def pretrained(self) -> Path:
        return RUNS / ("simclr_resnet_shapes" + self._ending)

    def finetuned(self, start: str) -> Path:
        return RUNS / (f"shapes_{start}" + self._ending)

    @property
    def _ending(self) -> str:
        return f"_{self.number}" if self.number else ""

    def stage(self, times: dict[str, float], program: str, recipe: str, run: Path, *overrides: str) -> None:
        """Train from a recipe into the folder of a run."""
        seeds = (f"seed={self.number}", f"data.seed={self.number}")
        timed(times, run.name, program, recipe, f"name={run.name}", *seeds, *overrides, "--fresh", "--force")

    def run(self) -> dict[str, float]:
        """Pretrain, evaluate and fine-tune twice; the seconds of each."""
        times: dict[str, float] = {}
        export = self.pretrained / "export"
        self.stage(times, "pretrain.py", PRETRAIN, self.pretrained)
        data = ("--data", str(self.pretrained), "--workers", "2", "--json", str(self.pretrained / "evaluation.json"))
        timed(times, "evaluation", "-m", "unlabeled", "evaluate", str(export), *data)
        for start, encoder in (("scratch", f"scratch:{export}"), ("pretrained", str(export))):
            choice = f"task.fraction_seed={self.number}"
            self.stage(times, "finetune.py", FINETUNE, self.finetuned(start), f"encoder={encoder}", choice)
        return times

    def scores(self) -> Scores:
        """What its runs have left."""
        rows = read(self.pretrained / "evaluation.json")["rows"]
        found = {name: {} for name in ROWS}  # type: Scores
        for row in rows:
            name = next((name for name in ROWS[:3] if row["name"].startswith(name.split()[0])), PRETRAINED)
            found[name] = {column: row["scores"][column.lower()]["mean"] for column in COLUMNS[:2]}
        for row, start in ((UNTRAINED, "scratch"), (PRETRAINED, "pretrained")):
            found[row]["fine-tuned"] = read(self.finetuned(start) / "result.json")["accuracy"]
        return found


def main(arguments: Sequence[str] | None = None) -> None:
    """Run every seed, and show what pretraining was worth."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1, metavar="N", help="repeat with so many seeds (default 1)")
    seeds = [Seed(number) for number in range(parser.parse_args(arguments).seeds)]
    print(OPENING, flush=True)
    times = [seed.run() for seed in seeds]
    console = Console()
    terminal.show(console, report([seed.scores() for seed in seeds], labels(seeds[0])))
    for took in times:
        console.print("took  " + "  ".join(f"{name} {seconds:.0f} s" for name, seconds in took.items()))
    console.print("\nLook at it, in a browser:")
    for run in (seeds[0].pretrained, seeds[0].finetuned("pretrained")):
        console.print(f"  {(ROOT / run / 'index.html').as_uri()}", soft_wrap=True)


def timed(times: dict[str, float], name: str, *arguments: str) -> None:
    """One stage in a process of its own."""
    print(f"\n--- {name}: python {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    times[name] = time.perf_counter() - started


def read(file: Path) -> dict[str, Any]:
    """A JSON file of a run."""
    found: dict[str, Any] = json.loads((ROOT / file).read_text(encoding="utf-8"))
    return found


def labels(seed: Seed) -> int:
    """The number of labelled pictures of the fine-tuning."""
    labelled: int = read(seed.finetuned("pretrained") / "result.json")["protocol"]["labelled_pictures"]
    return labelled


def report(seeds: Sequence[Scores], labels: int) -> Document:
    """The table of all seeds, means with ranges where there are several, and its ratios in words."""
    head = ("", "kNN %", "linear %", f"fine-tuned, {labels} labels %")
    rows = [(name, *(cell([one[name].get(column) for one in seeds]) for column in COLUMNS)) for name in ROWS]
    title = "what pretraining was worth" + (f", {len(seeds)} seeds" if len(seeds) > 1 else "")
    return Document("", [Table(head, rows, title=title), Text(words(average(seeds), labels))])


def cell(values: Sequence[float | None]) -> str:
    """The mean of values, with their range where there are several; a dash where there are none."""
    known = [value for value in values if value is not None]
    if not known:
        return "-"
    return f"{mean(known):.1f}" + (f" ({min(known):.1f} to {max(known):.1f})" if len(known) > 1 else "")


def average(seeds: Sequence[Scores]) -> Scores:
    """Means over seeds."""
    return {row: {column: mean(one[row][column] for one in seeds) for column in seeds[0][row]} for row in ROWS}


def words(scores: Scores, labels: int) -> str:
    """How many times better the pretrained network is than what it is compared with."""
    ours, untrained = scores[PRETRAINED], scores[UNTRAINED]
    knn, linear, tuned = (ours[column] / untrained[column] for column in COLUMNS)
    raw = ours["kNN"] / scores[RAW]["kNN"]
    return (
        f"Pretrained: kNN {raw:.1f} times raw pixels' and {knn:.1f} times the untrained network's, linear {linear:.1f} "
        f"times the untrained network's, {labels} labels {tuned:.1f} times from scratch."
    )


if __name__ == "__main__":
    main()
