"""Continued pretraining: an encoder of one set of pictures goes on to another, and what becomes of it.

    python benchmarks/continued.py cifar10.tar grocery_store.tar [--runs FOLDER] [--methods mae,dino] [--json]

One method of each kind: masked (MAE), contrast (SimCLR), self-distillation (DINO). Of both sets small copies
of 40 px are made once: up to 5,000 pictures to begin on (`from_NAME.tar`), and `--pictures` to go on to, with half as
many to test on (`to_NAME.tar`). An encoder is pretrained on the one by `recipes/pretrain/METHOD_cifar10.yaml`; then it
goes on to the other without its heads, as public weights come, in three ways, for as many steps:

    continued   recipes/pretrain/continue_METHOD_grocery.yaml as it is, but for its length
    scratch     the same without `init` and `continued`: a new encoder
    wrong       the same with `init` but no `continued`, the teacher's momentum as from scratch: all learns at once

kNN and a linear probe on the target are read before, at half-time and at the end; `before` is the encoder untouched.
Everything is one process with one thread; a run that is there is not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

from common import finish, machine, picked, table
from PIL import Image

from unlabeled.accelerator import settle
from unlabeled.backbone.address import find
from unlabeled.launch.program import main as run_program

ROOT = Path(__file__).parents[1]
SIDE = 40  # of the small copies, pixels
MOST = 5000  # pictures to begin on
BATCH = 64


class Kind(NamedTuple):
    """A method: its recipes, how many steps it takes, and the fields of its small network.

    Attributes:
        source: recipe of the encoder that goes on.
        recipe: recipe of the run that goes on.
        steps: of a source, and of each run that goes on.
        network: fields of the source's recipe beside its length.
        momentum: fields that let a teacher follow as from scratch.
    """

    source: str
    recipe: str
    steps: tuple[int, int]
    network: tuple[str, ...] = ()
    momentum: tuple[str, ...] = ()


SMALL = ("method.encoder.patch_size=8", "method.encoder.width=96", "method.encoder.depth=4")
KINDS = {
    "mae": Kind("mae_cifar10", "continue_mae_grocery", (400, 160), SMALL),
    "simclr": Kind("simclr_cifar10", "continue_simclr_grocery", (240, 120), SMALL),
    "dino": Kind(
        "dino_cifar10",
        "continue_dino_grocery",
        (240, 120),
        (*SMALL, "method.local=null", f"train.batch_size={BATCH}"),
        ("method.momentum=0.99",),
    ),
}
SETS = ("cifar10", "grocery")
PROBE = ("evaluate.knn.k=20", "evaluate.linear.lrs=[0.01,0.1]", "evaluate.linear.max_steps=150")
QUIET = ("run.threads=1", "run.workers=0", "run.log_every=10", "run.pictures_every=100000", "run.checkpoint_every=1000")


class Run(NamedTuple):
    """A run: its scores by step, the lines of its log that matter, and its CPU minutes."""

    name: str
    scores: list[dict[str, float]]
    moved: float | None
    said: list[str]
    cpu_minutes: float

    def at(self, place: int) -> str:
        """kNN and linear of an evaluation."""
        return f"{self.scores[place]['knn']:.1f} / {self.scores[place]['linear']:.1f}"


def small_copy(tar: Path, file: Path, counts: dict[str, int]) -> None:
    """Write about so many pictures of every split, evenly chosen, in 40 px and without loss."""
    with tarfile.open(tar) as pictures:
        members = [member for member in pictures.getmembers() if Path(member.name).suffix in (".jpg", ".png")]
    writing = file.with_suffix(".writing")
    with tarfile.open(tar) as pictures, tarfile.open(writing, "w") as copies:
        for split, count in counts.items():
            found = [member for member in members if member.name.startswith(f"{split}/")]
            for member in found[:: max(1, len(found) // count)]:
                opened = pictures.extractfile(member)
                assert opened is not None
                image = Image.open(opened).convert("RGB")
                image = image if max(image.size) <= SIDE else image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                image.save(written := io.BytesIO(), "PNG")
                entry = tarfile.TarInfo(str(Path(member.name).with_suffix(".png")))
                entry.size = len(written.getvalue())
                written.seek(0)
                copies.addfile(entry, written)
    writing.rename(file)


def pictures_of(file: Path) -> int:
    """The number of pictures that are learnt from."""
    with tarfile.open(file) as pictures:
        return sum(name.startswith("train/") for name in pictures.getnames())


def pretrain(folder: Path, name: str, recipe: str, data: Path, steps: int, *fields: str) -> Run:
    """A run of so many steps, or what it has left."""
    output, cost = folder / name, folder / name / "cpu_minutes.json"
    if not cost.exists():
        epochs = steps * BATCH / (pictures_of(data) // BATCH * BATCH)
        length = [f"train.epochs={epochs:.10g}", f"optim.warmup_epochs={epochs / 20:.10g}"]
        probe = [] if "evaluate=null" in fields else [f"evaluate.every={steps // 2}", *PROBE]
        command = [str(ROOT / f"recipes/pretrain/{recipe}.yaml"), f"data.path={data}", f"run.output={output}"]
        before = time.process_time()
        with open(folder / f"{name}.log", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            code = run_program("pretrain", [*command, *length, *probe, *QUIET, *fields])
        if code:
            raise SystemExit(f"{name} ended with {code}, see {folder / name}.log")
        cost.write_text(json.dumps((time.process_time() - before) / 60), encoding="utf-8")
    return read(folder, name)


def read(folder: Path, name: str) -> Run:
    """What a run has left."""
    lines = [json.loads(line) for line in (folder / name / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    moved = [line["moved"] for line in lines if "moved" in line]
    log = (folder / f"{name}.log").read_text(encoding="utf-8").splitlines()
    said = [line.strip() for line in log if line.strip().startswith(("caution", "warning", "start "))]
    cost = json.loads((folder / name / "cpu_minutes.json").read_text(encoding="utf-8"))
    return Run(name, [line for line in lines if "knn" in line], moved[-1] if moved else None, said, cost)


def measure(kind: str, folder: Path, source: str, target: str, length: float) -> dict[str, Run]:
    """The three runs on a target, from an encoder of a source."""
    method, way, name = KINDS[kind], f"{kind}_{source}_{target}", f"{kind}_{source}"
    begun, steps = (round(length * count) for count in method.steps)
    pretrain(folder, name, method.source, folder / f"from_{source}.tar", begun, "evaluate=null", *method.network)
    export = folder / f"{name}_encoder"
    ignored = shutil.ignore_patterns("heads.safetensors")
    shutil.copytree(folder / name / "export", export, ignore=ignored, dirs_exist_ok=True)

    def go_on(name: str, *fields: str) -> Run:
        return pretrain(folder, name, method.recipe, folder / f"to_{target}.tar", steps, *fields)

    return {
        "continued": go_on(way, f"init={export}"),
        "wrong": go_on(f"{way}_wrong", f"init={export}", "continued=null", *method.momentum),
        "scratch": go_on(f"{way}_scratch", "init=null", "continued=null", *_fields_of(export), *method.momentum),
    }


def _fields_of(export: Path) -> Iterator[str]:
    """Fields of a recipe that build the network of an export with new weights."""
    for name, value in find(str(export)).encoder.fields().items():
        if value is not None:
            yield f"method.encoder.{name}={json.dumps(value)}"


def rows(kind: str, source: str, target: str, runs: dict[str, Run]) -> Iterator[list[str]]:
    """Rows of the table."""
    way = f"{kind}, {source} to {target}"
    for name in ("continued", "wrong", "scratch"):
        run = runs[name]
        before, half, after = (run.at(0), run.at(1), run.at(2)) if len(run.scores) == 3 else ("-", run.at(0), run.at(1))
        moved = "-" if run.moved is None else f"{run.moved:.3f}"
        warned = "yes" if any(line.startswith("warning: the encoder") for line in run.said) else "no"
        yield [way, name, before, half, after, moved, warned, f"{run.cpu_minutes:.1f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, then print."""
    parser = argparse.ArgumentParser(description="What becomes of an encoder that goes on to other pictures.")
    parser.add_argument("cifar10", type=Path, help="a tar with train/CLASS/* and test/CLASS/*")
    parser.add_argument("grocery", type=Path, help="another")
    parser.add_argument("--runs", type=Path, default=Path("runs/continued"), help="folder of the runs")
    parser.add_argument("--pictures", type=int, default=2000, help="of the second set (default 2000)")
    parser.add_argument("--length", type=float, default=1.0, help="factor on all numbers of steps (default 1)")
    parser.add_argument("--methods", default=",".join(KINDS), help=f"which (default {','.join(KINDS)})")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    folder, kinds = chosen.runs.resolve(), picked(parser, chosen.methods, list(KINDS))
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        for file, counts in (
            (folder / f"from_{name}.tar", {"train": MOST, "test": 10}),
            (folder / f"to_{name}.tar", {"train": chosen.pictures, "test": chosen.pictures // 2}),
        ):
            if not file.exists():
                small_copy(getattr(chosen, name), file, counts)

    settle(1)
    print(machine())
    found: dict[str, dict[str, Any]] = {}
    lines: list[list[str]] = []
    for source, target in (SETS, SETS[::-1]):
        for kind in kinds:
            runs = measure(kind, folder, source, target, chosen.length)
            found[f"{kind}, {source} to {target}"] = {name: run._asdict() for name, run in runs.items()}
            lines += rows(kind, source, target, runs)
            print(f"{kind}, {source} to {target}: done", flush=True)
    head = ("", "run", "before", "half-time", "after", "moved", "warned", "CPU minutes")
    print(table(head, lines))
    print("kNN / linear, top-1 %, on the target; `moved` is the relative distance of the encoder to its start")
    finish(chosen, found)


if __name__ == "__main__":
    main()
