"""Continued pretraining: an encoder of one set of pictures goes on to another, and what becomes of it.

    python benchmarks/continued.py cifar10.tar grocery_store.tar [--runs FOLDER] [--methods mae,dino] [--ways there]

One method of each kind: masked (MAE), contrast (SimCLR), self-distillation (DINO). Of both sets small copies of 40 px
are made once: up to 5,000 pictures to begin on (`from_NAME.tar`), and one in three parts to go on to (`to_NAME.tar`):
`--pictures` of the training split to learn from, as many others of it as `val`, and up to 5,000 of the test split. An
encoder is pretrained on the one by `recipes/pretrain/METHOD_cifar10.yaml`; then it goes on to the other without its
heads, as public weights come, in three ways, for as many steps:

    continued   recipes/pretrain/continue_METHOD_grocery.yaml as it is, but for its length (and DINO's momentum, which
                is as slow for this length as the recipe's is for its own)
    scratch     the same without `init` and `continued`: a new encoder
    wrong       the same with `init` but no `continued`: all learns at once, at rates and momentum as from scratch

While they run, kNN and a linear probe are fitted on the pictures to learn from and read on `val`: the best by kNN
is kept. At the end the start and every export are read on `test`, with the standard error of the difference to the
start over the same pictures. Everything is one process with one thread; a run that is there is not run again.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import re
import shutil
import tarfile
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from common import finish, machine, picked, table
from PIL import Image

from unlabeled.accelerator import settle
from unlabeled.backbone.address import find
from unlabeled.backbone.weights import prepare
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.comparison import prepared_as, protocols_of
from unlabeled.evaluate.evaluation import runs as scores_of
from unlabeled.evaluate.splits import Splits
from unlabeled.launch.program import main as run_program

ROOT = Path(__file__).parents[1]
SIDE = 40  # of the small copies, pixels
MOST = 5000  # pictures to begin on, and to test on
BATCH = 64
LOOKS = 3  # evaluations of a run, the start aside


class Kind(NamedTuple):
    """A method: its recipes, how many steps it takes, and the fields of its small network.

    Attributes:
        source: recipe of the encoder that goes on.
        recipe: recipe of the run that goes on.
        steps: of a source, and of each run that goes on.
        network: fields of the source's recipe beside its length.
        gently: fields of the run that goes on as shipped, for so few steps.
    """

    source: str
    recipe: str
    steps: tuple[int, int]
    network: tuple[str, ...] = ()
    gently: tuple[str, ...] = ()


SMALL = ("method.encoder.patch_size=8", "method.encoder.width=64", "method.encoder.depth=4")
KINDS = {
    "mae": Kind("mae_cifar10", "continue_mae_grocery", (1200, 210), SMALL),
    "simclr": Kind("simclr_cifar10", "continue_simclr_grocery", (720, 150), SMALL),
    "dino": Kind(
        "dino_cifar10",
        "continue_dino_grocery",
        (720, 210),
        (*SMALL, "method.local=null", f"train.batch_size={BATCH}"),
        # the teacher's memory, 1 / (1 - momentum) steps, is a quarter of the recipe's 4,100
        ("continued.momentum=0.98",),
    ),
}
SETS = ("cifar10", "grocery")
WAYS = {"there": SETS, "back": SETS[::-1]}
SPLITS = {"val": "train"}  # the split of the whole set that a part is drawn from, where it is not called so
PROBE = ("evaluate.knn.k=20", "evaluate.linear.lrs=[0.01,0.1]", "evaluate.linear.max_steps=150")
QUIET = ("run.threads=1", "run.workers=0", "run.log_every=10", "run.pictures_every=100000", "run.checkpoint_every=1000")
Hits = dict[str, np.ndarray]  # by protocol: 100 for each test picture that was recognised, else 0


class Run(NamedTuple):
    """A run: its scores by step on `val`, the lines of its log that matter, and its CPU minutes."""

    name: str
    scores: list[dict[str, float]]
    moved: float | None
    said: list[str]
    cpu_minutes: float

    @property
    def kept(self) -> str:
        """The step of the export."""
        found = re.search(r"the export is (of step [0-9,]+|the encoder you began with)", " ".join(self.said))
        return "last" if found is None else found[1].removeprefix("of step ").replace("the encoder you began with", "0")

    @property
    def diagnosis(self) -> str:
        """What the log says of it."""
        cautions = sum(line.startswith("caution") for line in self.said)
        worse = sum(line.startswith("warning: the encoder") for line in self.said)
        found = [f"{cautions} cautions"] * (cautions > 0) + [f"{worse} x worse than its start"] * (worse > 0)
        return ", ".join(found) or "-"


def small_copy(tar: Path, file: Path, counts: dict[str, int]) -> None:
    """Write about so many pictures of every split, evenly chosen, in 40 px and without loss; `val` are others of the
    training split."""
    with tarfile.open(tar) as pictures:
        members = [member for member in pictures.getmembers() if Path(member.name).suffix in (".jpg", ".png")]
    writing = file.with_suffix(".writing")
    with tarfile.open(tar) as pictures, tarfile.open(writing, "w") as copies:
        for split, count in counts.items():
            whole = SPLITS.get(split, split)
            found = [member for member in members if member.name.startswith(f"{whole}/")]
            every = max(1, len(found) // count)
            for member in found[0 if split == whole else every // 2 :: every]:
                opened = pictures.extractfile(member)
                assert opened is not None
                image = Image.open(opened).convert("RGB")
                image = image if max(image.size) <= SIDE else image.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                image.save(written := io.BytesIO(), "PNG")
                entry = tarfile.TarInfo(f"{split}{str(Path(member.name).with_suffix('.png'))[len(whole) :]}")
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
        probe = [] if "evaluate=null" in fields else [f"evaluate.every={steps // LOOKS}", "data.val=val", *PROBE]
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
    said = [line.strip() for line in log if line.strip().startswith(("caution", "warning", "start ", "kept "))]
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
        "continued": go_on(way, f"init={export}", *method.gently),
        "wrong": go_on(f"{way}_wrong", f"init={export}", "continued=null"),
        "scratch": go_on(f"{way}_scratch", "init=null", "continued=null", *_fields_of(export)),
    }


def tested(export: Path, like: Path, data: Path, kept: Path) -> Hits:
    """kNN and linear probe of an export, fitted on the pictures to learn from, read on `test`; or what `kept` has.

    Pictures are prepared, and tokens pooled, as for the export `like`.
    """
    if not kept.exists():
        encoder, how = prepare(str(export)).encoder, prepare(str(like)).how
        pictures = Opened(Files(name="files", path=str(data), train="train", val="test", mean=how.mean, std=how.std))
        splits = Splits(prepared_as(how), pictures, torch.device("cpu"))
        changes = [field.removeprefix("evaluate.") for field in PROBE]
        bench = Bench(encoder, splits, encoder.image_size, pool=how.pool)
        found = scores_of(protocols_of(["knn", "linear"], changes), [1.0], bench)
        hits: dict[str, Any] = {score.name: score.each for score, *_ in found}
        np.savez(kept, **hits)
    with np.load(kept) as read:
        return dict(read)


def difference(after: Hits, before: Hits, name: str) -> str:
    """Points gained, and the standard error over the same pictures."""
    gained = after[name] - before[name]
    return f"{gained.mean():+.1f} ± {gained.std(ddof=1) / math.sqrt(len(gained)):.1f}"


def _fields_of(export: Path) -> Iterator[str]:
    """Fields of a recipe that build the network of an export with new weights."""
    for name, value in find(str(export)).encoder.fields().items():
        if value is not None:
            yield f"method.encoder.{name}={json.dumps(value)}"


def rows(kind: str, source: str, target: str, runs: dict[str, Run], folder: Path) -> Iterator[list[str]]:
    """Rows of the table."""
    data, way = folder / f"to_{target}.tar", f"{kind}_{source}_{target}"
    like = folder / way / "export"
    before = tested(folder / f"{kind}_{source}_encoder", like, data, folder / f"{way}_before.npz")
    for name, run in runs.items():
        after = tested(folder / run.name / "export", like, data, folder / f"{run.name}.npz")
        looks = " ".join(f"{score['knn']:.1f}/{score['linear']:.1f}" for score in run.scores)
        test = [" / ".join(f"{hits[name].mean():.1f}" for name in ("knn", "linear")) for hits in (before, after)]
        gains = [difference(after, before, name) for name in ("knn", "linear")]
        moved = "-" if run.moved is None else f"{run.moved:.3f}"
        yield [way, name, looks, run.kept, *test, *gains, moved, run.diagnosis, f"{run.cpu_minutes:.1f}"]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run all, then print."""
    parser = argparse.ArgumentParser(description="What becomes of an encoder that goes on to other pictures.")
    parser.add_argument("cifar10", type=Path, help="a tar with train/CLASS/* and test/CLASS/*")
    parser.add_argument("grocery", type=Path, help="another")
    parser.add_argument("--runs", type=Path, default=Path("runs/continued"), help="folder of the runs")
    parser.add_argument("--pictures", type=int, default=2000, help="of the second set (default 2000)")
    parser.add_argument("--length", type=float, default=1.0, help="factor on all numbers of steps (default 1)")
    parser.add_argument("--ways", default=",".join(WAYS), help=f"which (default {','.join(WAYS)})")
    parser.add_argument("--methods", default=",".join(KINDS), help=f"which (default {','.join(KINDS)})")
    parser.add_argument("--json", action="store_true", help="one JSON object on the last line")
    chosen = parser.parse_args(arguments)
    folder, kinds = chosen.runs.resolve(), picked(parser, chosen.methods, list(KINDS))
    folder.mkdir(parents=True, exist_ok=True)
    for name in SETS:
        for file, counts in (
            (folder / f"from_{name}.tar", {"train": MOST, "test": 10}),
            (folder / f"to_{name}.tar", {"train": chosen.pictures, "val": chosen.pictures, "test": MOST}),
        ):
            if not file.exists():
                small_copy(getattr(chosen, name), file, counts)

    settle(1)
    print(machine())
    found: dict[str, dict[str, Any]] = {}
    lines: list[list[str]] = []
    for source, target in (WAYS[way] for way in picked(parser, chosen.ways, list(WAYS))):
        for kind in kinds:
            runs = measure(kind, folder, source, target, chosen.length)
            found[f"{kind}, {source} to {target}"] = {name: run._asdict() for name, run in runs.items()}
            lines += rows(kind, source, target, runs, folder)
            print(f"{kind}, {source} to {target}: done", flush=True)
    val, gains = "val at the start and at each look", ("kNN gained", "linear gained")
    head = ("way", "run", val, "kept", "test before", "test after", *gains, "moved", "said", "CPU minutes")
    print(table(head, lines))
    print("kNN / linear, top-1 %, on the target; `moved` is the relative distance of the last encoder to the start")
    finish(chosen, found)


if __name__ == "__main__":
    main()
