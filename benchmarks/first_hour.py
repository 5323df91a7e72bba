"""Does pretraining pay in the first half hour? Methods and budgets on small sets of several kinds of pictures.

    python benchmarks/first_hour.py KINDS --budgets 5 30 120 --kinds photos satellite --out first_hour.json

KINDS is a folder of tars that `benchmarks/kinds.py` wrote. A cell is a kind, a contender and a budget in CPU minutes of
one core. Each contender is a shipped recipe with a few fields changed, run by the programs that users run, in one
process with one thread that also loads the pictures. How many steps fit the budget is measured beforehand by two short
runs on the same pictures. Whatever stands in `--out`, which is rewritten after every cell, is not run again: the same
command goes on where it stopped. Runs land in `--runs`.

Every encoder is judged on the test split by
    linear      a linear probe on all training labels, and on 5 and 20 labels a class (the mean over two draws)
    tuned       fine-tuning everything on 5 and 20 labels a class, two seeds, which draw the same labels for all;
                photos have 16 pictures in their smallest class, so 15 stand for 20
against kNN on raw pixels, and against the same network with new weights, probed and fine-tuned alike.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from statistics import mean
from typing import Any, NamedTuple

import torch
from common import Results, machine, table

from unlabeled.accelerator import settle
from unlabeled.backbone.pooling import Pixels, Pool
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.comparison import PIXELS_SIDE, protocols_of, untrained_twin
from unlabeled.evaluate.evaluation import measured
from unlabeled.evaluate.splits import Preparation, Splits
from unlabeled.launch.program import main as run_program
from unlabeled.recipe import load
from unlabeled.stages.pretrain import PretrainRecipe

ROOT = Path(__file__).parents[1]
KINDS = ("photos", "satellite", "medical", "textures", "thumbnails")
SHOTS = {"photos": (5, 15)}
USUAL_SHOTS, SEEDS = (5, 20), (0, 1)
TRIAL_STEPS = (3, 3, 18)
TUNED_STEPS, TUNED_BATCH = (100, 200), 32  # for the fewer and the more labels
RATES = {"vit": 1e-3, "resnet": 3e-3}  # of fine-tuning, by network: the better of both for new weights
QUIET = ("run.threads=1", "run.workers=0", "run.page=false", "run.log_every=10", "run.checkpoint_every=1000000")
PROBE = ("linear.lrs=[0.003,0.01,0.03,0.1,0.3]", "linear.max_steps=300")


Scores = dict[str, float | list[float]]  # by judge; of fine-tuning one a seed


class Contender(NamedTuple):
    """A way to pretrain.

    Attributes:
        recipe: shipped, by its stem in `recipes/pretrain`.
        fields: of it that change.
        pool: of the tokens, for probes and fine-tuning.
        size: of crops and of test pictures, pixels.
        network: its family, which decides the rate of fine-tuning.
    """

    recipe: str
    fields: tuple[str, ...]
    pool: Pool = "mean"
    size: int = 64
    network: str = "resnet"


def sized(*views: str, size: int = 64) -> tuple[str, ...]:
    """Fields of the size of some views."""
    return tuple(f"method.{view}.size={size}" for view in views)


TINY = "method.encoder.model=test_resnet"
COLOURS = ("method.view.jitter=[0.4,0.4,0.0,0.0]", "method.view.grayscale=0.0")  # views keep them
VIT = ("method.encoder.patch_size=8", "method.encoder.width=192", "method.encoder.depth=4", "method.encoder.heads=3")
GLOBAL, LOCAL = sized("global_1", "global_2"), ("method.local.size=32",)
CONTENDERS = {
    "simclr_tiny": Contender("simclr_resnet_cifar10", (*sized("view"), TINY)),
    "simclr_colours": Contender("simclr_resnet_cifar10", (*sized("view"), TINY, *COLOURS)),
    "mae_vit": Contender("mae_cifar10", (*sized("view"), *VIT), network="vit"),
    "mocov3_tiny": Contender("mocov3_resnet_cifar10", (*sized("first", "second"), TINY)),
    "dino_tiny": Contender("dino_resnet_cifar10", (*GLOBAL, *LOCAL, TINY)),
    "simclr_resnet10": Contender("simclr_resnet_cifar10", sized("view")),
    "simclr_resnet10_colours": Contender("simclr_resnet_cifar10", (*sized("view"), *COLOURS)),
    "mocov3_resnet10": Contender("mocov3_resnet_cifar10", sized("first", "second")),
    "simclr_resnet18": Contender("simclr_resnet_cifar10", (*sized("view"), "method.encoder.model=resnet18")),
    "simclr_96": Contender("simclr_resnet_cifar10", (*sized("view", size=96), TINY), size=96),
    "simmim_vit": Contender("simmim_cifar10", (*sized("view"), *VIT, "method.view.mask.unit=16"), network="vit"),
    "dino_vit": Contender("dino_cifar10", (*GLOBAL, *LOCAL, *VIT), "cls", network="vit"),
    "ibot_vit": Contender("ibot_cifar10", (*GLOBAL, *LOCAL, *VIT), "cls", network="vit"),
    "simclr_vit": Contender("simclr_cifar10", (*sized("view"), *VIT), "cls", network="vit"),
}


class Place(NamedTuple):
    """A kind of pictures, and the folder of its runs."""

    kind: str
    data: Path
    runs: Path

    @property
    def shots(self) -> tuple[int, ...]:
        """Labels of every class."""
        return SHOTS.get(self.kind, USUAL_SHOTS)

    def program(self, stage: str, name: str, *arguments: str) -> float:
        """CPU seconds of a run of one of the programs, which must succeed."""
        self.runs.mkdir(parents=True, exist_ok=True)
        before, output = time.process_time(), self.runs / name
        command = [*arguments, f"data.path={self.data}", f"run.output={output}", *QUIET, "--fresh", "--force"]
        with open(f"{output}.log", "w", encoding="utf-8") as log, redirect_stdout(log), redirect_stderr(log):
            code = run_program(stage, command)
        if code:
            raise SystemExit(f"{stage} ended with {code}, see {output}.log")
        return time.process_time() - before


def pretrain(place: Place, name: str, contender: Contender, steps: int) -> float:
    """CPU seconds of a run of so many steps; warm-up keeps its share of the shipped recipe: a tenth."""
    train = Opened(files_of(place)).train
    epochs = steps / (len(train) // recipe_of(contender).train.batch_size)
    length = (f"train.epochs={epochs:.10g}", f"optim.warmup_epochs={epochs / 10:.10g}", "evaluate=null")
    return place.program("pretrain", name, file_of("pretrain", contender.recipe), *length, *contender.fields)


def file_of(stage: str, name: str) -> str:
    """Where a shipped recipe lies."""
    return str(ROOT / "recipes" / stage / f"{name}.yaml")


def recipe_of(contender: Contender) -> PretrainRecipe:
    """The recipe that is run."""
    return load(PretrainRecipe, file_of("pretrain", contender.recipe), contender.fields)


def files_of(place: Place) -> Files:
    """The pictures, as the recipes have them."""
    return Files(name="files", path=str(place.data), train="train", val="test")


def step_seconds(place: Place, name: str, contender: Contender) -> float:
    """CPU seconds of a step, by two short runs after one that warms the process up."""
    _, few, more = (pretrain(place, f"{name}_trial", contender, steps) for steps in TRIAL_STEPS)
    return (more - few) / (TRIAL_STEPS[2] - TRIAL_STEPS[1])


def probes(place: Place, encoder: Any, contender: Contender, size: int) -> Scores:
    """kNN and linear probes of an encoder; of raw pixels kNN alone, since a probe of so many values takes minutes."""
    preparation = Preparation(pool=contender.pool, crop_pct=1.0)
    bench = Bench(encoder, Splits(preparation, Opened(files_of(place)), torch.device("cpu")), (size, size))
    knn, linear = protocols_of(["knn", "linear"], PROBE).values()
    found: Scores = {"knn": measured("knn", knn, bench)[0].value}
    if isinstance(encoder, Pixels):
        return found
    found["linear"] = measured("linear", linear, bench)[0].value
    for shots in place.shots:
        draws = (bench.few(1.0, seed, shots) for seed in SEEDS)
        found[f"linear_{shots}"] = mean(measured("linear", linear, few)[0].value for few in draws)
    return found


def tuned(place: Place, name: str, encoder: str, contender: Contender) -> Scores:
    """Accuracies of fine-tuning with few labels."""
    classes, found = len(Opened(files_of(place)).train.classes), {}
    for shots, steps in zip(place.shots, TUNED_STEPS, strict=True):
        batch = min(TUNED_BATCH, shots * classes // 4)
        epochs = steps / (shots * classes // batch)
        length = (f"train.epochs={epochs:.10g}", f"optim.warmup_epochs={epochs / 10:.10g}")
        few = (f"task.shots={shots}", f"train.batch_size={batch}", *length)
        runs = {seed: f"{name}_{shots}_{seed}" for seed in SEEDS}
        found[f"tuned_{shots}"] = [tune(place, run, seed, encoder, contender, *few) for seed, run in runs.items()]
    return {**found}


def tune(place: Place, name: str, seed: int, encoder: str, contender: Contender, *few: str) -> float:
    """The accuracy of one fine-tuning by `recipes/finetune/full_cifar10.yaml`."""
    fields = (f"encoder={encoder}", f"seed={seed}", f"task.fraction_seed={seed}", f"task.pool={contender.pool}")
    rate = f"optim.base_lr={RATES[contender.network]}"
    more = ("optim.lr_rule=none", rate, f"task.view.size={contender.size}", "look=null")
    place.program("finetune", name, file_of("finetune", "full_cifar10"), *fields, *more, *few)
    return float(json.loads((place.runs / name / "result.json").read_text(encoding="utf-8"))["accuracy"])


def cell(results: Results, place: Place, name: str, budget: float) -> None:
    """Run what is missing of a contender on a kind: its time per step, the budget itself, then its baselines."""
    contender, about, run = CONTENDERS[name], f"{place.kind}/{name}", f"{name}_{budget:g}min"
    export = str(place.runs / run / "export")
    if f"{about}/step" not in results:
        results.add(f"{about}/step", step_seconds(place, name, contender))
    if f"{about}/{budget:g}" not in results:
        steps = max(1, round(60 * budget / results.found[f"{about}/step"]))
        cost = {"steps": steps, "cpu_minutes": pretrain(place, run, contender, steps) / 60}
        scores = probes(place, load_encoder(export), contender, contender.size)
        results.add(f"{about}/{budget:g}", {**cost, **scores, **tuned(place, f"{run}_tuned", export, contender)})
    if (twin := f"{place.kind}/{network_of(contender)}") not in results:
        scores = probes(place, untrained_twin(load_encoder(export)), contender, contender.size)
        results.add(twin, {**scores, **tuned(place, f"{name}_scratch", f"scratch:{export}", contender)})
    if f"{place.kind}/pixels" not in results:
        results.add(f"{place.kind}/pixels", probes(place, Pixels(), contender, PIXELS_SIDE))


def network_of(contender: Contender) -> str:
    """The name of the network with new weights that a contender is compared with."""
    network = recipe_of(contender).method.backbone
    size = f" {network.depth}x{network.width}" if network.depth else ""
    return f"new {network.model}{size} {contender.pool} {contender.size}px"


def rows(found: dict[str, Any]) -> Iterator[list[str]]:
    """A row of the table for every cell and baseline."""
    for key, scores in found.items():
        if not isinstance(scores, dict):
            continue
        cost = f"{scores['steps']:,} ({scores['cpu_minutes']:.1f})" if "steps" in scores else "-"
        values = [value for name, value in scores.items() if name not in ("steps", "cpu_minutes")]
        yield [key, cost, *(shown(value) for value in values)]


def shown(value: float | list[float]) -> str:
    """A score, or the mean of several and each of them."""
    return f"{value:.1f}" if isinstance(value, float) else f"{mean(value):.1f} ({', '.join(f'{v:.1f}' for v in value)})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Kinds outside, then budgets, then contenders; then the table of all that is known."""
    parser = argparse.ArgumentParser(description="Does pretraining pay in the first half hour?")
    parser.add_argument("folder", type=Path, help="tars of benchmarks/kinds.py")
    parser.add_argument("--kinds", nargs="+", default=KINDS, choices=KINDS, help="which (default all)")
    parser.add_argument("--budgets", nargs="+", type=float, default=[5.0, 30.0, 120.0], help="CPU minutes")
    parser.add_argument("--contenders", nargs="+", default=[*CONTENDERS], choices=[*CONTENDERS], help="(default all)")
    parser.add_argument("--out", type=Path, default=Path("runs/first_hour.json"), help="the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/first_hour"), help="folder of the runs")
    chosen = parser.parse_args(arguments)
    settle(1)
    results = Results(chosen.out)
    results.add("machine", machine())
    for kind in chosen.kinds:
        place = Place(kind, (chosen.folder / f"{kind}.tar").resolve(), chosen.runs.resolve() / kind)
        if not place.data.exists():
            print(f"{kind}: left out, there is no {place.data}")
            continue
        for budget in chosen.budgets:
            for name in chosen.contenders:
                cell(results, place, name, budget)
    head = ("kind/contender/CPU minutes", "steps (CPU minutes)", "kNN", "linear", "linear 5", "linear 20", "tuned 5")
    print(table((*head, "tuned 20"), [[*row, *["-"] * (9 - len(row))][:8] for row in rows(results.found)]))


if __name__ == "__main__":
    main()
