"""The demo: pretrain on drawn shapes, evaluate, fine-tune with few labels, and say what it was worth.

make demo
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from rich.console import Console

from unlabeled.report import terminal
from unlabeled.report.document import Document, Table

ROOT = Path(__file__).parents[1]
RUNS = Path("runs")
PRETRAINED = RUNS / "simclr_resnet_shapes"
EXPORT = PRETRAINED / "export"


def main() -> None:
    """Three stages, one table."""
    times: dict[str, float] = {}
    run(times, "pretrain", "pretrain.py", "recipes/demo/simclr_resnet_shapes.yaml", "--fresh", "--force")
    scores = PRETRAINED / "evaluation.json"
    arguments = ["--data", str(PRETRAINED), "--workers", "2"]
    run(times, "evaluate", "-m", "unlabeled", "evaluate", str(EXPORT), *arguments, "--json", str(scores))
    for name, encoder in (("scratch", f"scratch:{EXPORT}"), ("pretrained", str(EXPORT))):
        recipe = ["recipes/demo/finetune_shapes.yaml", f"name=shapes_{name}", f"encoder={encoder}"]
        run(times, f"fine-tune {name}", "finetune.py", *recipe, "--fresh", "--force")
    show(json.loads(scores.read_text(encoding="utf-8")), times)


def run(times: dict[str, float], name: str, *arguments: str) -> None:
    """One stage in a process of its own, timed."""
    print(f"\n--- {name}: python {' '.join(arguments)}", flush=True)
    started = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=ROOT, check=True)
    times[name] = time.perf_counter() - started


def show(evaluated: dict[str, Any], times: dict[str, float]) -> None:
    """The table, the times and the picture."""
    console = Console()
    tuned = {name: accuracy_of(name) for name in ("scratch", "pretrained")}
    rows = []
    for row in evaluated["rows"]:
        knn, linear = (f"{row['scores'][score]['mean']:.1f}" for score in ("knn", "linear"))
        first_word = row["name"].split()[0]
        others = {"raw": "-", "most": "-", "untrained": f"{tuned['scratch']:.1f}"}
        accuracy = others.get(first_word, f"{tuned['pretrained']:.1f}")
        rows.append((row["name"], knn, linear, accuracy))
    head = ("shapes", "kNN %", "linear %", "fine-tuned, 500 labels %")
    terminal.show(console, Document("", [Table(head, rows, title="what pretraining was worth")]))
    console.print("took  " + "  ".join(f"{name} {seconds:.0f} s" for name, seconds in times.items()))
    console.print(f"two views of each picture, as they went in: {newest_picture()}")


def accuracy_of(name: str) -> float:
    """What fine-tuning reached."""
    return json.loads((RUNS / f"shapes_{name}" / "result.json").read_text(encoding="utf-8"))["accuracy"]


def newest_picture() -> Path:
    """The last PNG of the pretraining run."""
    return max((PRETRAINED / "pictures").glob("*.png"))


if __name__ == "__main__":
    main()
