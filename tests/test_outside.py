"""Kinds outside the package: one file each, named by their import path, from the command line to the export."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import outside
import pytest
import timm
import torch
from support import ROOT, UNSHOWN, checkpoint_bytes, launch, metrics

from unlabeled.backbone.folder import IMAGENET
from unlabeled.data.archive.listing import IndexFolder
from unlabeled.data.batch.loader import Normalize, ViewDataset, to_device
from unlabeled.data.batch.sampler import EpochSampler
from unlabeled.data.batch.samples import collate
from unlabeled.data.mask import MASKS
from unlabeled.data.source import SOURCES
from unlabeled.pretrain.method import METHODS, Progress
from unlabeled.recipe import RecipeError, dump, load, parse
from unlabeled.stages.pretrain import PretrainRecipe

LAST = 10


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the package `lab`, which is on this process's path too."""
    folder = tmp_path_factory.mktemp("outside")
    outside.write(folder)
    for name in ("PRETRAIN", "FINETUNE"):
        (folder / f"{name.lower()}.yaml").write_text(getattr(outside, name), encoding="utf-8")
    sys.path.insert(0, str(folder))
    return folder


@pytest.fixture(scope="module")
def run(home: Path) -> Path:
    """An undisturbed pretraining, started as a user starts it: the package is on PYTHONPATH."""
    path = os.pathsep.join([str(ROOT / "ssl"), str(home)])
    command = [sys.executable, str(ROOT / "pretrain.py"), str(home / "pretrain.yaml"), f"run.output={home / 'run'}"]
    done = subprocess.run(command, env={**os.environ, "PYTHONPATH": path}, cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return home / "run"


def inside(home: Path) -> Any:
    """What a process of a test does first."""
    return partial(sys.path.insert, 0, str(home))


def test_pretrains_and_resumes_to_the_same_bits(home: Path, run: Path) -> None:
    arguments = [str(home / "pretrain.yaml"), f"run.output={home / 'again'}", *UNSHOWN]
    assert launch("pretrain", arguments, kill={"step": 5}, hook=inside(home)) == [-9]
    assert launch("pretrain", arguments, hook=inside(home)) == [0]
    assert checkpoint_bytes(home / "again", LAST) == checkpoint_bytes(run, LAST)
    losses = [line["loss"] for line in metrics(run) if "loss" in line]
    assert losses[-1] < losses[0] and any("mine" in line for line in metrics(run))


def test_names_travel_in_the_recipe(run: Path) -> None:
    said = (run / "recipe.yaml").read_text(encoding="utf-8")
    assert all(f"name: lab.{name}" in said for name in ("colour", "stripes", "dots", "spread"))
    assert "lab.colour" in (run / "export" / "README.md").read_text(encoding="utf-8")
    recipe = load(PretrainRecipe, run / "recipe.yaml")
    assert parse(PretrainRecipe, dump(recipe)) == recipe


def test_fine_tunes_from_the_export(home: Path, run: Path) -> None:
    arguments = [str(home / "finetune.yaml"), f"encoder={run / 'export'}", f"run.output={home / 'tuned'}"]
    assert launch("finetune", arguments, hook=inside(home)) == [0]
    assert json.loads((home / "tuned" / "result.json").read_text(encoding="utf-8"))["pictures"] == 20
    assert "name: lab.slow" in (home / "tuned" / "recipe.yaml").read_text(encoding="utf-8")
    assert timm.create_model(f"local-dir:{home / 'tuned' / 'export'}", pretrained=True).num_classes == 4


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("method.nmae=3", r"method\.nmae: unknown field"),
        ("method.view.mask.evry=3", r"method\.view\.mask\.evry: unknown field\. Did you mean 'every'"),
        ("method.view.mask.every=3", "expected a number of columns that 3 divides, found 4"),
        ("method.view.mask=null", "lab.colour needs one masked crop, found count 1 and mask None"),
        ("method.encoder={model: resnet18}", "lab.colour hides patches, which the network 'resnet18' cannot"),
        ("method.name=lab.absent", "the module 'lab.absent' cannot be imported"),
        ("method.name=lab.stripes", "the module 'lab.stripes' has no class Config derived from MethodConfig"),
    ],
)
def test_mistakes_are_said_as_of_the_packages_own(home: Path, override: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        load(PretrainRecipe, home / "pretrain.yaml", [override])


# ---------------------------------------------------------------- the contracts


CONTRACTS = {
    "method": "tests/methods/test_contract.py",
    "mask": "tests/data/test_mask_contract.py",
    "source": "tests/data/test_source_contract.py",
    "protocol": "tests/evaluate/test_contract.py",
}
KINDS = {
    **{"method": ["lab.colour", "lies.unused"], "mask": ["lab.stripes", "lies.counts"]},
    **{"source": ["lab.dots", "lies.noise"], "protocol": ["lab.spread", "lies.draws"]},
}


@pytest.fixture(scope="module")
def verdicts(home: Path) -> dict[str, set[str]]:
    """The contract tests, but for whole runs, as a researcher starts them; `PASSED lab.dots` are those passed."""
    kinds = [f"--kind={folder}={name}" for folder, names in KINDS.items() for name in names]
    chosen = "(lab. or lies.) and not resumes and not processes"
    options = ["-rA", "-p", "no:cacheprovider", f"--basetemp={home / 'contracts'}", "--tb=no", "-k", chosen]
    command = [sys.executable, "-m", "pytest", *options, *kinds, *CONTRACTS.values()]
    path = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "ssl"), str(home)])}
    done = subprocess.run(command, env=path, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    found: dict[str, set[str]] = {}
    for verdict, test, name in re.findall(r"^(PASSED|FAILED|ERROR) \S+::(\w+)\[([\w.]+)\]", done.stdout, re.MULTILINE):
        found.setdefault(f"{verdict} {name}", set()).add(test)
    return found


@pytest.mark.parametrize("folder", KINDS)
def test_the_contract_holds_for_a_module_outside(folder: str, verdicts: dict[str, set[str]]) -> None:
    text = (ROOT / CONTRACTS[folder]).read_text(encoding="utf-8")
    every = re.findall(r"^@(?:every_|pytest\.mark\.every_kind).*\ndef (\w+)", text, re.MULTILINE)
    runs = {"test_resumes_exactly", "test_two_processes_learn_what_one_does"}
    assert verdicts[f"PASSED {KINDS[folder][0]}"] == {*every} - runs


@pytest.mark.parametrize(
    ("name", "tests"),
    [
        ("lies.unused", {"test_every_trained_parameter_gets_a_gradient"}),
        ("lies.counts", {"test_equal_counts_is_true_to_its_word"}),
        ("lies.noise", {"test_images_and_labels", "test_travels_to_workers", "test_other_labels_are_those_of_a_copy"}),
        ("lies.draws", {"test_scores"}),
    ],
)
def test_the_contract_finds_a_lie(name: str, tests: set[str], verdicts: dict[str, set[str]]) -> None:
    assert verdicts[f"FAILED {name}"] == tests


@pytest.mark.parametrize("kind", ["method", "method=simclr", "loss=lab.colour", "mask={every: 4}", "mask={"])
def test_a_kind_that_is_none_is_refused(kind: str, pytestconfig: pytest.Config) -> None:
    with pytest.raises(pytest.UsageError, match=r"one of method, mask, source, protocol, then =PACKAGE\.MODULE"):
        pytestconfig._parser.parse([f"--kind={kind}"])


# ---------------------------------------------------------------- each alone


def test_the_methods_contract(home: Path) -> None:
    recipe = load(PretrainRecipe, home / "pretrain.yaml")
    kind = METHODS.kind("lab.colour")
    assert isinstance(recipe.method, kind) and [view.shape for view in recipe.method.views] == [(16, 16)]
    source = recipe.data.source("train", IndexFolder(None))
    dataset = ViewDataset(source, recipe.method.views, recipe.method.backbone.patch_size, recipe.seed)
    positions, cpu = next(iter(EpochSampler(42, 8, LAST, seed=recipe.seed))), torch.device("cpu")
    batch = to_device(
        collate([dataset[position] for position in positions]), cpu, Normalize(IMAGENET.mean, IMAGENET.std, cpu)
    )
    torch.manual_seed(0)
    method = recipe.method.build()
    output = method(batch, Progress(0, LAST, 0.0, 2.0))
    assert output.loss.shape == () and torch.isfinite(output.loss) and output.metrics
    output.loss.backward()
    assert all(p.grad is not None for p in method.parameters() if p.requires_grad)


def test_the_masks_contract(home: Path) -> None:
    mask: Any = MASKS.kind("lab.stripes")(every=2)
    mask.check((16, 16), 4)
    one, two = (mask.draw(np.random.default_rng(seed), (4, 4), 4) for seed in (0, 0))
    assert torch.equal(one.hidden, two.hidden), "a mask depends on its generator alone"
    assert one.hidden.shape == (16,) and one.hidden[one.drop].all() and not one.hidden[one.keep].any()


def test_the_sources_contract(home: Path) -> None:
    config: Any = SOURCES.kind("lab.dots")()
    train, val = (config.source(split, IndexFolder(None)) for split in ("train", "val"))
    assert (len(train), len(val)) == (42, 20) == (len(train.labels), len(val.labels))
    assert train.image(3).dtype == torch.uint8 and train.image(3).shape == (3, 16, 16)
    assert torch.equal(train.image(3), config.source("train", IndexFolder(None)).image(3))
    assert train.fingerprint() != val.fingerprint() and train.classes == val.classes


def test_each_is_one_file(home: Path, run: Path) -> None:
    assert {file.stem for file in (home / "lab").glob("*.py")} == set(outside.FILES)
