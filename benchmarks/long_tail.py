"""What helps with a long tail: CIFAR-10 made exponentially unbalanced, one option after another beside plain training.

    python benchmarks/long_tail.py EXPORT cifar10.tar [--options ...] [--epochs 3] [--seeds 1] [--processes N] [--json]

Every option is `recipes/finetune/long_tail_cifar10.yaml` with other fields; re-training takes the plain classifier of
the same seed. Each run has one thread that also loads the pictures. Runs land in `runs/long_tail_*`; one that is there
is not run again.
"""

from __future__ import annotations

import argparse
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from common import finish, machine, once, over, table

from unlabeled.processes import cores

ROOT = Path(__file__).parents[1]
PLAIN = "task.logit_adjustment=0"
OPTIONS: dict[str, tuple[str, ...]] = {
    "plain": (PLAIN,),
    "balanced sampler": (PLAIN, "task.balance=balanced"),
    "square-root sampler": (PLAIN, "task.balance=sqrt"),
    "balanced in the last third": (PLAIN, "task.balance=balanced", "task.balance_from=LATE"),
    "effective-number weights": (PLAIN, "task.effective_number=0.9999"),
    "logit adjustment": ("task.logit_adjustment=1",),
    "mixup, then plain": (PLAIN, "task.mixing={mixup: 0.4, off_epoch: LATE}"),
}
RETRAINED = "head re-trained, balanced"
SCORES = ("accuracy", "many", "medium", "few")


def main() -> None:
    """Train what has not been trained, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="an encoder of 32 px")
    parser.add_argument("data", help="cifar10.tar")
    parser.add_argument("--options", nargs="+", choices=OPTIONS, default=list(OPTIONS), help="which (default all)")
    parser.add_argument("--epochs", type=int, default=3, help="of every option (default 3)")
    parser.add_argument("--seeds", type=int, default=1, help="of every option (default 1)")
    parser.add_argument(
        "--factor", type=float, default=100, help="how many times rarer the last class is (default 100)"
    )
    parser.add_argument("--processes", type=int, default=cores(), help="runs at a time (default: one per core)")
    parser.add_argument("--device", default="cpu", help="where they run (default cpu)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args()

    jobs = [(name, seed) for seed in range(chosen.seeds) for name in chosen.options]
    with ThreadPoolExecutor(chosen.processes) as pool:
        results = dict(zip(jobs, pool.map(lambda job: train(chosen, *job), jobs), strict=True))
        again = [(RETRAINED, seed) for seed in range(chosen.seeds)]
        results |= dict(zip(again, pool.map(lambda job: retrain(chosen, job[1]), again), strict=True))
    rows = {name: [results[name, seed] for seed in range(chosen.seeds)] for name in (*chosen.options, RETRAINED)}
    print(table(["option", "accuracy", "many", "medium", "few", "CPU seconds"], [line(*row) for row in rows.items()]))
    print(machine())
    finish(chosen, {name: [scores(result) for result in found] for name, found in rows.items()})


def train(chosen: argparse.Namespace, name: str, seed: int) -> dict[str, Any]:
    """The result of an option; the last third begins at a whole epoch."""
    late = str(max(1, chosen.epochs - max(1, round(chosen.epochs / 3))))
    settings = [setting.replace("LATE", late) for setting in OPTIONS[name]]
    schedule = [f"train.epochs={chosen.epochs}", "optim.warmup_epochs=0.5"]
    return run(chosen, name, seed, "long_tail_cifar10", f"encoder={chosen.export}", *settings, *schedule)


def retrain(chosen: argparse.Namespace, seed: int) -> dict[str, Any]:
    """The plain classifier with another head, which costs little: the rest is still."""
    return run(chosen, RETRAINED, seed, "retrain_cifar10", f"encoder={folder('plain', seed)}/export", "train.epochs=1")


def folder(name: str, seed: int) -> Path:
    """Where a run lands."""
    return ROOT / "runs" / f"long_tail_{name.replace(', ', '_').replace(' ', '_').replace('-', '_')}_{seed}"


def run(chosen: argparse.Namespace, name: str, seed: int, recipe: str, *settings: str) -> dict[str, Any]:
    """The result of fine-tuning by a recipe."""
    own = (f"seed={seed}", f"data.path={chosen.data}", f"task.long_tail={chosen.factor:g}")
    return once(folder(name, seed), "finetune", recipe, *settings, *own, f"run.device={chosen.device}")


def scores(result: dict[str, Any]) -> dict[str, float]:
    """Accuracy (the test classes are equally large, so balanced too) and that of classes with many or few pictures."""
    groups = {name: group["accuracy"] for name, group in result["groups"].items()}
    return {"accuracy": result["accuracy"], **groups}


def line(name: str, results: list[dict[str, Any]]) -> list[str]:
    """A row of the table."""
    found = [scores(result) for result in results]
    values = [[each[score] for each in found if score in each] for score in SCORES]
    cells = [over(some) if some else "-" for some in values]
    return [name, *cells, f"{mean(result['cost']['cpu_s'] for result in results):.0f}"]


if __name__ == "__main__":
    main()
