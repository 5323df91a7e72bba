"""How fast `unlabeled watch` answers: the list of many runs that have logged much, again, and the page of one.

Wall-clock seconds are those of a machine with other work, too; CPU seconds are those of server and reader together.

python benchmarks/watching.py                  # 200 runs of 100,000 logged steps
python benchmarks/watching.py --runs 20 --steps 1000 --json
"""

from __future__ import annotations

import argparse
import http.client
import json
import math
import os
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from common import finish, machine, median, peak_memory_mb, table

from unlabeled.watch import runs as listed
from unlabeled.watch.server import Server, listen
from unlabeled.watch.site import Site

RECIPE = """name: NAME
seed: 0
data:
  name: files
  path: /pictures
train:
  epochs: 100.0
  batch_size: 256
method:
  name: mae
"""
CHANGED = 20  # runs that log between two answers


def make(root: Path, runs: int, steps: int) -> None:
    """Folders of runs. All have the same log, as links to one file: only those that go on get their own."""
    log = root.parent / "metrics.jsonl"
    with log.open("w", encoding="utf-8") as opened:
        for step in range(1, steps + 1):
            line = {
                "step": step,
                "loss": 1 + math.exp(-step / steps),
                "epoch": 100 * step / steps,
                "lr": 1e-3,
                "skipped": 0,
            }
            line |= {
                "grad_norm": 1.5,
                "images_per_s": 812.3,
                "data_wait": 0.0123,
                "feature_std": 0.5123,
                "explained": 0.3,
            }
            opened.write(json.dumps(line) + "\n")
            if step % 1000 == 0:
                opened.write(json.dumps({"step": step, "knn": 30 + 20 * step / steps}) + "\n")
    for number in range(runs):
        folder = root / f"sweep_{number % 10}" / f"run_{number}"
        (folder / "pictures").mkdir(parents=True)
        (folder / "recipe.yaml").write_text(RECIPE.replace("NAME", folder.name), encoding="utf-8")
        plan = {"title": f"{folder.name} (pretrain)", "started": time.time() - 3600, "first_step": 0, "steps": steps}
        (folder / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        os.link(log, folder / "metrics.jsonl")


class Took(NamedTuple):
    """What an answer took, seconds by the clock and of the CPU; its body and tag."""

    wall: float
    cpu: float
    body: bytes
    tag: str


def ask(server: Server, path: str, tag: str = "") -> Took:
    """Ask once."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    wall, cpu = time.perf_counter(), time.process_time()
    connection.request("GET", path, headers={"If-None-Match": tag} if tag else {})
    answer = connection.getresponse()
    body = answer.read()
    return Took(time.perf_counter() - wall, time.process_time() - cpu, body, answer.headers.get("ETag", ""))


def measure(root: Path, rounds: int) -> tuple[dict[str, Took], dict[str, float]]:
    """Every kind of answer, medians over the rounds; and what they weigh, MB."""
    listed.SEARCHED_FOR = 0.0  # every answer searches
    path = f"/run/{sorted(root.glob('*/*'))[0].relative_to(root)}/"
    site = Site(root)
    with listen(8000, site.answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        took = {"the list, first": (first := ask(server, "/"))}
        took["the list, nothing changed"] = _median(rounds, lambda: ask(server, "/", first.tag))
        took[f"the list, {CHANGED} runs have logged"] = _median(rounds, lambda: ask(server, "/"), lambda: log(root))
        took["a page, first"] = page = ask(server, path)
        took["a page, nothing changed"] = _median(rounds, lambda: ask(server, path, page.tag))
        server.shutdown()
        thread.join()
    return took, {"the list": len(first.body) / 1e6, "a page": len(page.body) / 1e6}


def log(root: Path) -> None:
    """Let some runs touch their plan, as live ones do."""
    for folder in sorted(root.glob("*/*"))[:CHANGED]:
        (folder / "plan.json").touch()


def _median(rounds: int, answer: Callable[[], Took], before: Callable[[], None] = lambda: None) -> Took:
    found = []
    for _ in range(rounds):
        before()
        found.append(answer())
    return found[0]._replace(wall=median([one.wall for one in found]), cpu=median([one.cpu for one in found]))


def main(arguments: Sequence[str] | None = None) -> None:
    """Make the runs in a temporary folder, ask, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, number in {"runs": 200, "steps": 100_000, "rounds": 5}.items():
        parser.add_argument(f"--{name}", type=int, default=number, help=f"(default {number})")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        root.mkdir()
        make(root, chosen.runs, chosen.steps)
        took, weights = measure(root, chosen.rounds)
    print(f"{chosen.runs:,} runs of {chosen.steps:,} steps; {machine()}; {peak_memory_mb():.0f} MB of memory at most")
    print(table(("answer", "s", "CPU s"), [[name, f"{one.wall:.3f}", f"{one.cpu:.3f}"] for name, one in took.items()]))
    print(table(("", "MB"), [[name, f"{weight:.2f}"] for name, weight in weights.items()]))
    result = {name: {"s": one.wall, "cpu_s": one.cpu} for name, one in took.items()}
    finish(chosen, {"runs": chosen.runs, "steps": chosen.steps, "took": result, "mb": weights})


if __name__ == "__main__":
    main()
