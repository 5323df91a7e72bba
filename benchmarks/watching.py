"""How fast `unlabeled watch` answers: the list of many runs that have logged much, again, and the page of one.

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
from typing import Any

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


def ask(server: Server, path: str, tag: str = "") -> tuple[float, int, bytes, str]:
    """Seconds, status, body and tag of an answer."""
    connection = http.client.HTTPConnection("127.0.0.1", server.server_port)
    began = time.perf_counter()
    connection.request("GET", path, headers={"If-None-Match": tag} if tag else {})
    answer = connection.getresponse()
    body = answer.read()
    return time.perf_counter() - began, answer.status, body, answer.headers.get("ETag", "")


def measure(root: Path, rounds: int) -> dict[str, float]:
    """Seconds of every kind of answer, medians over the rounds; and what they weigh, MB."""
    listed.SEARCHED_FOR = 0.0  # every answer searches
    site = Site(root)
    with listen(8000, site.answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        first, _, body, tag = ask(server, "/")
        again = _median(rounds, lambda: ask(server, "/", tag))
        changed = _median(rounds, lambda: ask(server, "/"), before=lambda: log(root))
        path = f"/run/{sorted(root.glob('*/*'))[0].relative_to(root)}/"
        page, _, shown, page_tag = ask(server, path)
        page_again = _median(rounds, lambda: ask(server, path, page_tag))
        server.shutdown()
        thread.join()
    return {
        "the list, first": first,
        "the list, nothing changed": again,
        f"the list, {CHANGED} runs have logged": changed,
        "a page, first": page,
        "a page, nothing changed": page_again,
        "MB of the list": len(body) / 1e6,
        "MB of a page": len(shown) / 1e6,
    }


def log(root: Path) -> None:
    """Let some runs touch their plan, as live ones do."""
    for folder in sorted(root.glob("*/*"))[:CHANGED]:
        (folder / "plan.json").touch()


def _median(
    rounds: int, answer: Callable[[], tuple[float, int, bytes, str]], before: Callable[[], None] = lambda: None
) -> float:
    seconds = []
    for _ in range(rounds):
        before()
        seconds.append(answer()[0])
    return median(seconds)


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
        result: dict[str, Any] = {"runs": chosen.runs, "steps": chosen.steps, **measure(root, chosen.rounds)}
    result["MB of memory at most"] = peak_memory_mb()
    print(machine())
    print(
        table(
            ("", ""),
            [[name, f"{value:,}" if isinstance(value, int) else f"{value:.3f}"] for name, value in result.items()],
        )
    )
    finish(chosen, result)


if __name__ == "__main__":
    main()
