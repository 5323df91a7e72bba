"""Every strategy for classes that come in tasks, in several orders of the classes, between its bounds.

    python benchmarks/class_tasks.py EXPORT cifar10.tar --memory 500 [--strategies ...] [--orders 1993 1994 1995]
        [--set task.fraction=0.2 train.epochs=3] [--runs runs/incremental] [--processes N] [--json]

Each run is `recipes/incremental/NAME.yaml` with another strategy and order, on one thread that also loads the pictures;
those that replay have a memory, and `ncm` runs with both bounds. `ncm` in tasks of another size checks that its result
is the same for any split. Runs land in the folder of `--runs`; one that is there is not run again.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from common import finish, machine, once, over, table

from unlabeled.incremental.strategy import STRATEGIES
from unlabeled.processes import cores

NAMES = ("ncm", "ranpac", "lwf", "ewc", "icarl", "derpp", "podnet", "der", "mgsvf")
BOUNDS = {"joint": "all classes at once", "finetune": "plain fine-tuning"}
SPLIT = "ncm, other tasks"
MEASURES = ("average", "last", "forgetting")


def main() -> None:
    """Run what has not been run, then the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("export", help="an encoder")
    parser.add_argument("data", help="labelled pictures, as the recipe reads them")
    parser.add_argument("--recipe", default="incremental_cifar10", help="a name or a file (default %(default)s)")
    parser.add_argument("--strategies", nargs="+", choices=NAMES, default=list(NAMES), help="which (default all)")
    parser.add_argument("--orders", type=int, nargs="+", default=[1993, 1994, 1995], help="seeds of the classes' order")
    parser.add_argument("--memory", type=int, default=500, help="pictures in all of those that replay (default 500)")
    parser.add_argument("--other-step", type=int, help="classes a task in which ncm runs too (default: all in one)")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="other settings of all")
    parser.add_argument("--runs", type=Path, default=Path("runs/incremental"), help="where they land")
    parser.add_argument("--processes", type=int, default=cores(), help="runs at a time (default: one per core)")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args()

    names = [*chosen.strategies, *([SPLIT] if "ncm" in chosen.strategies else [])]
    jobs = [(name, order) for name in names for order in chosen.orders]
    with ThreadPoolExecutor(chosen.processes) as pool:
        results = dict(zip(jobs, pool.map(lambda job: run(chosen, *job), jobs), strict=True))
    by_name = {name: [results[name, order] for order in chosen.orders] for name in names}
    found = {name: [row(result, name) for result in some] for name, some in by_name.items()}
    if "ncm" in found:
        for bound, words in BOUNDS.items():
            found[words] = [row(result, bound) for result in by_name["ncm"]]
    head = ("", *MEASURES, "pictures kept", "parameters, millions", "MB from task to task", "CPU minutes")
    print(table(head, [line(name, rows) for name, rows in found.items()]))
    if SPLIT in found:
        apart = max(abs(a["last"] - b["last"]) for a, b in zip(found["ncm"], found[SPLIT], strict=True))
        print(f"ncm's last accuracy in other tasks differs by at most {apart:g}")
    print(machine())
    finish(chosen, found)


def run(chosen: argparse.Namespace, name: str, order: int) -> dict[str, Any]:
    """The result of a strategy in an order, with what the last task was left, MB."""
    strategy = "ncm" if name == SPLIT else name
    settings = [f"tasks.strategy.name={strategy}", f"tasks.order_seed={order}", *chosen.set]
    if getattr(STRATEGIES.kind(strategy), "remembers", False):
        settings.append(f"tasks.memory.total={chosen.memory}")
    if name == "ncm":
        settings.append("tasks.bounds=true")
    if name == SPLIT:
        size = chosen.other_step or "null"
        settings += [f"tasks.init={size}", f"tasks.step={chosen.other_step or 1}"]
    output = chosen.runs / f"{name.replace(', ', '_').replace(' ', '_')}_{order}"
    own = (f"encoder={chosen.export}", f"data.path={chosen.data}", f"name={output.name}", "run.page=false")
    return {**once(output, "incremental", chosen.recipe, *own, *settings), "output": str(output)}


def row(result: dict[str, Any], name: str) -> dict[str, float]:
    """What is compared: of the run, or of one of its bounds."""
    bound = name in BOUNDS
    measured = result["measures"][name if bound else result["protocol"]["tasks"]["strategy"]["name"]]
    cost = result["cost"][name if bound else result["protocol"]["tasks"]["strategy"]["name"]]
    folder = Path(result["output"]) / (name if bound else "")
    last = max(folder.glob("task-*"))
    return {
        **{one: measured[one] for one in MEASURES if measured[one] is not None},
        "pictures": 0 if bound else result["tasks"][-1]["remembered"],
        "parameters": 0 if bound else result["tasks"][-1]["parameters"] / 1e6,
        "passed_mb": 0 if bound else (last / "passed.safetensors").stat().st_size / 1e6,
        "cpu_minutes": cost["cpu_s"] / 60,
    }


def line(name: str, rows: Sequence[dict[str, float]]) -> list[str]:
    """A row of the table."""
    cells = [over([one[measure] for one in rows]) if measure in rows[0] else "-" for measure in MEASURES]
    kept = [f"{rows[0]['pictures']:g}", f"{rows[0]['parameters']:.2f}", f"{rows[0]['passed_mb']:.0f}"]
    return [name, *cells, *(["-"] * 3 if name in BOUNDS.values() else kept), over([one["cpu_minutes"] for one in rows])]


if __name__ == "__main__":
    main()
