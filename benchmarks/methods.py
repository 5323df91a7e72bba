"""What every method learns from CIFAR-10 in the same CPU time, beside raw pixels and untrained encoders.

    python benchmarks/methods.py cifar10.tar [--minutes 10] [--methods mae,dino] [--processes N] [--json]

Each recipe `recipes/pretrain/NAME_cifar10.yaml` runs in one process with one thread that also loads the pictures, so
its CPU time is about its wall time; as many run side by side as there are cores. How many epochs fit is found by two
short runs first; learning-rate warm-up keeps its share of the run. Probes, pooled as the recipe says, count for nobody.
Each encoder is also probed untrained. Runs land in `runs/NAME_Nmin`; what is there, a run with its cost or its probes,
is not run again. The distill recipes need their teacher, `runs/simclr_resnet_cifar10/export`, before.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from common import finish, machine, picked, table

from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

ROOT = Path(__file__).parents[1]
RECIPES, ENDING = ROOT / "recipes" / "pretrain", "_cifar10.yaml"
NAMES = sorted(file.name.removesuffix(ENDING) for file in RECIPES.glob(f"*{ENDING}"))
PICTURES, TRIAL_STEPS = 50_000, (10, 60)
QUIET = ("run.threads=1", "run.workers=0", "evaluate=null", "run.log_every=10", "--fresh", "--force")
PROBES = ("--train", "train", "--val", "test", "--fractions", "1", "0.01", "--crop-pct", "1.0", "--workers", "0")
SCORES = {"knn": "kNN", "linear": "linear", "knn_1%": "kNN, 1 %", "linear_1%": "linear, 1 %"}


@dataclass(frozen=True)
class Run:
    """A method's run: what it cost, and what its log said first and last."""

    method: str
    export: str
    cpu_minutes: float
    images: int
    first: dict[str, float]
    last: dict[str, float]


def python(*arguments: str) -> float:
    """CPU minutes of a program run by one thread, which must succeed."""
    process = subprocess.Popen([sys.executable, *arguments], cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"})
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"python {' '.join(arguments)} ended with {process.returncode}")
    return (used.ru_utime + used.ru_stime) / 60


def file_of(method: str) -> str:
    """Where the recipe that is measured lies."""
    return str(RECIPES / f"{method}{ENDING}")


@cache
def recipe_of(method: str) -> Any:
    """The recipe that is measured."""
    return load(PretrainRecipe, file_of(method), [])


def pretrain(method: str, data: str, name: str, epochs: float) -> float:
    """CPU minutes of a run over so many epochs."""
    recipe = recipe_of(method)
    warmup = epochs * recipe.optim.warmup_epochs / recipe.train.epochs
    lengths = (f"train.epochs={epochs:.4f}", f"optim.warmup_epochs={warmup:.4f}")
    return python("pretrain.py", file_of(method), f"data.path={data}", f"name={name}", *lengths, *QUIET)


def readings(name: str) -> list[dict[str, float]]:
    """A run's log."""
    return [
        json.loads(line) for line in (ROOT / "runs" / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    ]


def epochs_in(method: str, data: str, minutes: float) -> float:
    """How many epochs take so many CPU minutes, starting and ending included."""
    share = recipe_of(method).train.batch_size / PICTURES
    few, more = (pretrain(method, data, f"{method}_trial", steps * share) for steps in TRIAL_STEPS)
    step = (more - few) / (TRIAL_STEPS[1] - TRIAL_STEPS[0])
    return share * (minutes - few + TRIAL_STEPS[0] * step) / step


def measure(method: str, data: str, minutes: float) -> Run:
    """A run that takes about so many CPU minutes, or took."""
    name = f"{method}_{minutes:g}min"
    cost = ROOT / "runs" / name / "cpu_minutes.json"
    if not cost.exists():
        spent = pretrain(method, data, name, epochs_in(method, data, minutes))
        cost.write_text(json.dumps(spent), encoding="utf-8")
    log = readings(name)
    images = int(log[-1]["step"]) * recipe_of(method).train.batch_size
    return Run(method, f"runs/{name}/export", json.loads(cost.read_text(encoding="utf-8")), images, log[0], log[-1])


def untrained_too(methods: Sequence[str]) -> dict[str, bool]:
    """Whether a method is the first of them with its encoder and its way to pool."""
    kinds = {
        method: (recipe.method.backbone, recipe.evaluate.pool) for method in methods for recipe in [recipe_of(method)]
    }
    return {method: kind not in list(kinds.values())[:place] for place, (method, kind) in enumerate(kinds.items())}


def probe(run: Run, data: str, untrained: bool, raw: bool) -> dict[str, dict[str, Any]]:
    """What `unlabeled evaluate` finds, or found, by the name of the row: the method, and what else is asked for."""
    file = ROOT / Path(run.export).parent / f"evaluation{'_untrained' * untrained}{'_raw' * raw}.json"
    exports = (run.export, *([f"scratch:{run.export}"] if untrained and not raw else []))
    options = (*PROBES, "--json", str(file), "--baselines" if raw else "--no-baselines")
    if not file.exists():
        python("-m", "unlabeled", "evaluate", *exports, "--data", data, *options)
    names = (run.method, *(["raw pixels"] if raw else []), f"untrained, as {run.method}")
    return dict(zip(names, json.loads(file.read_text(encoding="utf-8"))["rows"], strict=False))


def shown(name: str, row: dict[str, Any], run: Run | None) -> list[str]:
    """A row of the table."""
    scores = [row["scores"][score] for score in SCORES]
    cells = [f"{s['mean']:.1f}" + (f" ± {s['std']:.1f}" if s["std"] is not None else "") for s in scores]
    rank = f"{row['effective_rank']:.0f} of {row['dimensions']}"
    return [name, *cells, rank, *([f"{run.images:,}", f"{run.cpu_minutes:.1f}"] if run else ["-", "-"])]


def main(arguments: Sequence[str] | None = None) -> None:
    """Pretrain and probe each, then print."""
    parser = argparse.ArgumentParser(description="What every method learns in the same CPU time.")
    parser.add_argument("data", help="a tar with train/CLASS/* and test/CLASS/*, as recipes/pretrain/*_cifar10 read it")
    parser.add_argument("--minutes", type=float, default=10, help="CPU minutes of each (default 10)")
    parser.add_argument("--methods", default=",".join(NAMES), help="which, by name (default all)")
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="side by side (default: one per core)"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    data, methods = str(Path(chosen.data).resolve()), picked(parser, chosen.methods, NAMES)

    print(machine())
    also = untrained_too(methods)

    def measured(method: str) -> tuple[Run, dict[str, dict[str, Any]]]:
        run = measure(method, data, chosen.minutes)
        return run, probe(run, data, also[method], raw=method == methods[0])

    with ThreadPoolExecutor(chosen.processes) as side_by_side:
        found = list(side_by_side.map(measured, methods))
    by_name = {run.method: run for run, _ in found}
    probes = {name: row for _, rows in found for name, row in rows.items()}
    ordered = sorted(probes, key=lambda name: name not in by_name)  # what was not trained comes last
    rows = [shown(name, probes[name], by_name.get(name)) for name in ordered]
    print(table(("", *SCORES.values(), "effective rank", "images seen", "CPU minutes"), rows))
    finish(chosen, {name: {**(asdict(by_name[name]) if name in by_name else {}), **probes[name]} for name in ordered})


if __name__ == "__main__":
    main()
