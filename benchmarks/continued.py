"""Continued pretraining: an encoder of one set of pictures goes on to another, and what becomes of it.

    python benchmarks/continued.py cifar10.tar grocery_store.tar [--runs FOLDER] [--methods mae,dino] [--json]

One method of each kind: masked (MAE), contrast (SimCLR on a CNN), self-distillation (DINO). Of both sets small copies
of 40 px are made once: 5,000 and 1,000 of CIFAR-10's pictures, every one that is learnt from and every second that is
tested on of Grocery Store. An encoder is pretrained on each by `recipes/pretrain/METHOD_cifar10.yaml`; then it goes on
to the other set in three ways, for as many steps:

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
CIFAR_PICTURES = {"train": 5000, "test": 1000}
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
    "simclr": Kind("simclr_resnet_cifar10", "continue_simclr_resnet_grocery", (180, 100)),
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


def small_copy(tar: Path, file: Path, name: str) -> None:
    """Write the pictures of a set that are used, in 40 px and without loss."""
    counts = dict.fromkeys(CIFAR_PICTURES, 0)
    with tarfile.open(tar) as pictures:
        members = [member for member in pictures.getmembers() if member.isfile()]
    every = {split: _every(members, split, name) for split in CIFAR_PICTURES}
    writing = file.with_suffix(".writing")
    with tarfile.open(tar) as pictures, tarfile.open(writing, "w") as copies:
        for member in members:
            split = member.name.split("/")[0]
            if split not in counts or Path(member.name).suffix not in (".jpg", ".png"):
                continue
            counts[split] += 1
            if counts[split] % every[split]:
                continue
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


def _every(members: Sequence[tarfile.TarInfo], split: str, name: str) -> int:
    """Every so many-th picture of a split is used."""
    if name == "grocery":
        return 1 if split == "train" else 2
    return sum(member.name.startswith(f"{split}/") for member in members) // CIFAR_PICTURES[split]


def pictures_of(file: Path) -> int:
    """The number of pictures that are learnt from."""
    with tarfile.open(file) as pictures:
        return sum(name.startswith("train/") for name in pictures.getnames())


def pretrain(folder: Path, name: str, recipe: str, data: Path, steps: int, *fields: str) -> Run:
    """A run of so many steps, or what it has left."""
    output, cost = folder / name, folder / name / "cpu_minutes.json"
    if not cost.exists():
        epochs = steps * BATCH / (pictures_of(data) // BATCH * BATCH)
        length = (
            f"train.epochs={epochs:.5f}",
            f"optim.warmup_epochs={epochs / 20:.5f}",
            f"evaluate.every={steps // 2}",
        )
        command = [str(ROOT / f"recipes/pretrain/{recipe}.yaml"), f"data.path={data}", f"run.output={output}"]
        before = time.process_time()
        with open(folder / f"{name}.log", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            code = run_program("pretrain", [*command, *length, *PROBE, *QUIET, *fields])
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


def measure(kind: str, folder: Path, source: str, target: str) -> dict[str, Run]:
    """The encoder of a source, and the three runs on a target."""
    method, data = KINDS[kind], {name: folder / f"{name}.tar" for name in SETS}
    export = folder / f"{kind}_{source}" / "export"
    begun = pretrain(folder, f"{kind}_{source}", method.source, data[source], method.steps[0], *method.network)
    network = [f"init={export}"]
    new = ["init=null", "continued=null", *_fields_of(export)]
    way = f"{kind}_{source}_{target}"
    return {
        "source": begun,
        "continued": pretrain(folder, way, method.recipe, data[target], method.steps[1], *network),
        "wrong": pretrain(
            folder, f"{way}_wrong", method.recipe, data[target], method.steps[1], *network, "continued=null",
            *method.momentum,
        ),
        "scratch": pretrain(
            folder, f"{kind}_{target}_scratch", method.recipe, data[target], method.steps[1], *new, *method.momentum
        ),
    }  # fmt: skip


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
    parser.add_argument("--methods", default=",".join(KINDS), help=f"which (default {','.join(KINDS)})")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    folder, kinds = chosen.runs.resolve(), picked(parser, chosen.methods, list(KINDS))
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        if not (folder / f"{name}.tar").exists():
            small_copy(getattr(chosen, name), folder / f"{name}.tar", name)

    settle(1)
    print(machine())
    found: dict[str, dict[str, Any]] = {}
    lines: list[list[str]] = []
    for source, target in (SETS, SETS[::-1]):
        for kind in kinds:
            runs = measure(kind, folder, source, target)
            found[f"{kind}, {source} to {target}"] = {name: run._asdict() for name, run in runs.items()}
            lines += rows(kind, source, target, runs)
            print(f"{kind}, {source} to {target}: done", flush=True)
    head = ("", "run", "before", "half-time", "after", "moved", "warned", "CPU minutes")
    print(table(head, lines))
    print("kNN / linear, top-1 %, on the target; `moved` is the relative distance of the encoder to its start")
    finish(chosen, found)


if __name__ == "__main__":
    main()
