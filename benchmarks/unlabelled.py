"""What pictures without labels add to a few with labels, at as many steps.

    python benchmarks/unlabelled.py EXPORT cifar10.tar [--shots 4 25] [--seeds 0 1 2] [--steps 600]
        [--runs runs/unlabelled] [--processes N] [--json]

Each run is `recipes/finetune/unlabelled_cifar10.yaml`, on one thread that also loads the pictures. Labels alone are the
same recipe without its section, on batches of the labelled pictures that the others have in theirs. Runs land in the
folder of `--runs`; one that is there is not run again.
"""

from __future__ import annotations

import argparse
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import mean
from typing import Any

from common import finish, machine, once, over, table

from unlabeled.processes import cores

RECIPE, BATCH, CLASSES, PICTURES = "unlabelled_cifar10", 64, 10, 50_000
WAYS: dict[str, tuple[str, ...]] = {
    "labels alone": ("task.unlabelled=null", f"train.batch_size={BATCH // 2}"),
    "FreeMatch": (),
    "FixMatch": ("task.unlabelled.threshold={name: fixed}",),
}
LATE = 0.75  # of the run, from where what is logged is averaged
LOGGED = {"pseudo_accuracy": "pseudo-labels right, %", "passed": "learnt from, %", "passed_right": "and right, %"}


def main() -> None:
    """Run what has not been run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="an encoder of 32 px")
    parser.add_argument("data", help="cifar10.tar")
    parser.add_argument("--shots", type=int, nargs="+", default=[4, 25], help="labels of each class (default 4 25)")
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS), help="which (default all)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of labels and runs (default 0 1 2)")
    parser.add_argument("--steps", type=int, default=600, help="of every run (default 600)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings of all")
    parser.add_argument("--runs", type=Path, default=Path("runs/unlabelled"), help="where they land")
    parser.add_argument("--processes", type=int, default=cores(), help="runs at a time (default: one per core)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args()

    jobs = [(shots, way, seed) for seed in chosen.seeds for shots in chosen.shots for way in chosen.ways]
    with ThreadPoolExecutor(chosen.processes) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run(chosen, *job), jobs), strict=True))
    rows = [
        [str(shots), way, *cells([results[shots, way, seed] for seed in chosen.seeds])]
        for shots in chosen.shots
        for way in chosen.ways
    ]
    print(table(("labels a class", "", "accuracy", *LOGGED.values(), "CPU minutes"), rows))
    print(machine())
    finish(chosen, {f"{shots} {way} {seed}": result for (shots, way, seed), result in results.items()})


def run(chosen: argparse.Namespace, shots: int, way: str, seed: int) -> dict[str, Any]:
    """What is compared of a run."""
    alone = WAYS[way][:1] == ("task.unlabelled=null",)
    pictures, batch = (shots * CLASSES, BATCH // 2) if alone else (PICTURES + shots * CLASSES, BATCH)
    epochs = chosen.steps / (pictures // batch)  # an epoch has whole batches alone
    output = chosen.runs / f"{way.replace(' ', '_')}_{shots}_{seed}"
    own = (f"encoder={chosen.export}", f"data.path={chosen.data}", f"seed={seed}", f"task.fraction_seed={seed}")
    length = (f"train.epochs={epochs:.5f}", f"optim.warmup_epochs={epochs / 10:.5f}", "run.log_every=20")
    result = once(output, "finetune", RECIPE, *own, f"task.shots={shots}", *WAYS[way], *length, *chosen.set)
    log = [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    late = [reading for reading in log if LATE * chosen.steps < reading["step"] and "passed" in reading]
    means = {name: mean(reading[name] for reading in late) for name in LOGGED if late}
    cost = {"cpu_minutes": result["cost"]["cpu_s"] / 60, "steps": result["cost"]["steps"]}
    return {"accuracy": result["accuracy"], **cost, **means}


def cells(results: list[dict[str, Any]]) -> list[str]:
    """A row of the table, after its names."""
    names = ("accuracy", *LOGGED, "cpu_minutes")
    return [over([one[name] for one in results]) if name in results[0] else "-" for name in names]


if __name__ == "__main__":
    main()
