"""What ours and other packages learn from the same pictures in the same CPU time, judged by one evaluation.

    python benchmarks/race.py cifar10.tar --pictures 10000 --minutes 10 --seeds 0 1 2 \\
        --peers lightly_train=/venvs/lightly_train/bin/python stable_pretraining=/venvs/spt/bin/python

DATA is a tar with train/CLASS/* and test/CLASS/*. Peers are installed in environments of their own and started as their
users start them (`racers/NAME.py`); nothing of theirs is imported here. All get the same pictures, in folders by class
that nobody looks at while training, the same network, crop size and batch, and one thread that also loads the pictures.
A peer runs the whole number of epochs that comes nearest to `--minutes` of CPU time, starting included, which two short
runs tell; ours then gets the CPU minutes of the peer that has used least. Networks are judged by kNN and linear probes
on the test split, with all labels of those pictures and with `--few` of them, each with the start and statistics of its
side. As many runs go side by side as there are cores.

Whatever stands in `--out` is not run again: the same command goes on where it stopped.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from common import Results, machine, table
from racers import RACERS, racer
from racers.parts import Task

OURS, PEERS = RACERS[0], RACERS[1:]
TRIAL, SHARE = (1, 3), 5  # epochs, of a fifth of the pictures
PROBES = ("--train", "train", "--val", "test", "--crop-pct", "1.0", "--workers", "0", "--no-baselines")


@dataclass(frozen=True)
class Race:
    """The same for all runs: pictures and labels, the network, where results and runs lie, and who runs."""

    data: Path
    trial: Task  # with few pictures
    runs: Path
    results: Results
    pythons: dict[str, Path]
    seeds: Sequence[int]
    few: float  # share of the labels

    def cpu_minutes(self, name: str, task: Task) -> float:
        """CPU minutes of a run from its start to its end, all its processes together; it must succeed."""
        shutil.rmtree(task.out, ignore_errors=True)
        task.out.parent.mkdir(parents=True, exist_ok=True)
        command = racer(name).command(self.pythons[name], task)
        quiet = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        with open(f"{task.out}.log", "w", encoding="utf-8") as log:
            process = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **quiet})
            _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {process.returncode}, see {task.out}.log")
        return (used.ru_utime + used.ru_stime) / 60

    def speed(self, name: str, task: Task) -> tuple[float, float]:
        """CPU minutes to start and end, and of an epoch, by two short runs."""
        key = f"{task.method}/{name}/speed"
        if key not in self.results:
            out = self.runs / f"{task.method}_{name}_trial"
            few, more = (
                self.cpu_minutes(name, replace(self.trial, method=task.method, epochs=epochs, out=out))
                for epochs in TRIAL
            )
            epoch = (more - few) / (TRIAL[1] - TRIAL[0])
            self.results.add(key, [few - TRIAL[0] * epoch, epoch * task.count / self.trial.count])
        around, epoch = self.results.found[key]
        return around, epoch

    def run(self, name: str, task: Task, minutes: float) -> None:
        """Train for about so many CPU minutes, and judge what was learnt."""
        key = f"{task.method}/{name}/{task.seed}"
        if key in self.results:
            return
        around, epoch = self.speed(name, task)
        # one step at least, however short the budget
        epochs = max(task.batch / task.count, (minutes - around) / epoch)
        if racer(name).whole_epochs:
            epochs = max(1, round(epochs))
        task = replace(task, epochs=epochs, out=self.runs / key.replace("/", "_"))
        spent = self.cpu_minutes(name, task)
        self.results.add(key, {"epochs": epochs, "cpu_minutes": spent, **self.judge(name, task)})

    def least(self, task: Task, peers: Iterable[str]) -> float:
        """CPU minutes of the peer that used least with that method and seed."""
        runs = (self.results.found.get(f"{task.method}/{name}/{task.seed}") for name in peers)
        return min(float(run["cpu_minutes"]) for run in runs if run)

    def judge(self, name: str, task: Task) -> dict[str, Any]:
        """Scores of the network, and at the first seed of the same one untrained."""
        export, scores = racer(name).export(task), Path(f"{task.out}.json")
        first = [f"scratch:{export}"] if task.seed == self.seeds[0] else []
        arguments = (str(export), *first, "--data", str(self.data), *PROBES, "--fractions", "1", str(self.few))
        command = [sys.executable, "-m", "unlabeled", "evaluate", *arguments, "--json", str(scores)]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        rows = [row["scores"] for row in json.loads(scores.read_text(encoding="utf-8"))["rows"]]
        trained, *untrained = ({score: row[score]["mean"] for score in scores_of(self.few)} for row in rows)
        return {**trained, **({"untrained": untrained[0]} if untrained else {})}


def scores_of(few: float) -> dict[str, str]:
    """The scores by their names in an evaluation, and in the table."""
    part = f"{100 * few:g}%"
    return {"knn": "kNN", "linear": "linear", f"knn_{part}": f"kNN, {part}", f"linear_{part}": f"linear, {part}"}


def unpacked(data: Path, folder: Path, pictures: int | None) -> int:
    """Write the test split and pictures of the training split, spread over the tar, into a folder; their number."""
    with tarfile.open(data) as tar:
        members = [member for member in tar if member.isfile()]
        train = [member for member in members if member.name.split("/")[0] == "train"]
        chosen = train[:: max(1, len(train) // (pictures or len(train)))][:pictures]
        if not folder.exists():
            test = [member for member in members if member.name.split("/")[0] == "test"]
            tar.extractall(folder, [*chosen, *test], filter="data")
    return len(chosen)


def rows(found: dict[str, Any], chosen: argparse.Namespace) -> Iterator[list[str]]:
    """A row for every side of every method, the mean and standard deviation over seeds."""
    for method in chosen.methods:
        for name in (*PEERS, OURS):
            cells = [found.get(f"{method}/{name}/{seed}") for seed in chosen.seeds]
            runs = [cell for cell in cells if cell]
            if runs:
                minutes = f"{mean(run['cpu_minutes'] for run in runs):.1f}"
                epochs = f"{mean(run['epochs'] for run in runs):.1f}"
                scores = [spread([run[score] for run in runs]) for score in scores_of(chosen.few)]
                start = next(run["untrained"] for run in runs if "untrained" in run)
                starts = [f"{start[score]:.1f}" for score in ("knn", "linear")]
                yield [method, name, f"{len(runs)}", minutes, epochs, *scores, *starts]


def spread(values: Sequence[float]) -> str:
    """A mean and a standard deviation."""
    return f"{mean(values):.1f}" + (f" ± {stdev(values):.1f}" if len(values) > 1 else "")


def chosen_by(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Ours and other packages in the same CPU time.")
    parser.add_argument("data", type=Path, help="a tar with train/CLASS/* and test/CLASS/*")
    parser.add_argument("--peers", nargs="+", default=[], metavar="NAME=PYTHON", help=f"of {', '.join(PEERS)}")
    parser.add_argument("--methods", nargs="+", default=["simclr"], help="by our names (default simclr)")
    parser.add_argument("--minutes", type=float, default=10, help="CPU minutes of a run (default 10)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--pictures", type=int, help="how many of the training split (default all)")
    parser.add_argument("--few", type=float, default=0.01, help="share of labels that probes get too (default 0.01)")
    parser.add_argument("--network", default="resnet18", help="by its name in timm and torchvision")
    parser.add_argument("--size", type=int, default=32, help="of crops, pixels (default 32)")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument(
        "--processes", type=int, default=os.cpu_count() or 1, help="side by side (default: one per core)"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/race"), help="folder of the runs")
    parser.add_argument("--out", type=Path, default=Path("runs/race.json"), help="the results")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> None:
    """Each pair at each seed, then the table of all that is known."""
    chosen = chosen_by(arguments)
    peers = {name: Path(python) for name, _, python in (peer.partition("=") for peer in chosen.peers)}
    if unknown := sorted(peers.keys() - set(PEERS)):
        raise SystemExit(f"no racer {', '.join(unknown)}: choose from {', '.join(PEERS)}")
    runs, data = chosen.runs.resolve(), chosen.runs.resolve() / "data"
    count = unpacked(chosen.data, data, chosen.pictures)
    start = Task(data / "train", count, "", chosen.network, chosen.size, chosen.batch, 0, 0, runs)
    some = runs / "some"
    few = unpacked(chosen.data, some, max(count // SHARE, min(count, chosen.batch)))
    trial = replace(start, pictures=some / "train", count=few)
    race = Race(data, trial, runs, Results(chosen.out), {**peers, OURS: Path(sys.executable)}, chosen.seeds, chosen.few)
    race.results.add("machine", machine())
    shared = [method for method in chosen.methods if any(method in racer(name).methods for name in peers)]
    tasks = [replace(start, method=method, seed=seed) for seed in chosen.seeds for method in shared]
    entries = [(name, task) for task in tasks for name in peers if task.method in racer(name).methods]
    with ThreadPoolExecutor(chosen.processes) as side_by_side:
        # how fast each is, once; the peers; then ours
        firsts = {(name, task.method): task for name, task in [*entries, *((OURS, task) for task in tasks)]}
        [*side_by_side.map(lambda first: race.speed(first[0][0], first[1]), firsts.items())]
        [*side_by_side.map(lambda entry: race.run(entry[0], entry[1], chosen.minutes), entries)]
        [*side_by_side.map(lambda task: race.run(OURS, task, race.least(task, peers)), tasks)]
    head = (
        "method",
        "",
        "seeds",
        "CPU minutes",
        "epochs",
        *scores_of(chosen.few).values(),
        "untrained kNN",
        "untrained linear",
    )
    print(table(head, list(rows(race.results.found, chosen))))


if __name__ == "__main__":
    main()
