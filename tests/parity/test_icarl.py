"""iCaRL's herding, means and loss against numbers of official code (iCaRL, DER, mammoth, PyCIL)."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close, peek
from parity.incremental import NOTHING, TOLERANCE, after, assert_grads, coming
from torch import Tensor

from unlabeled.incremental.herding import herd
from unlabeled.incremental.memory import added, shrunk
from unlabeled.incremental.strategies.icarl import Config
from unlabeled.incremental.strategy import Kept, Seen

DIVIDED = 1e-7  # official divisions add 1e-8


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per number of exemplars of whatever set is given, as its names tell."""
    for asked, pattern in {
        "places": r"out/chosen_(\d+)",
        "closest": r"out/closest_(\d+)",
        "flipped": r"out/mean_with_flips_(\d+)",
    }.items():
        if asked in metafunc.fixturenames:
            golden = peek(metafunc.config, "icarl", "herding.safetensors")
            metafunc.parametrize(asked, (golden and golden.found(pattern)) or ["0"])


def test_herding(folder: Path, places: str) -> None:
    golden = Golden(folder / "herding.safetensors")
    assert_close(herd(golden["in/features"], int(places)), golden[f"out/chosen_{places}"], 0, "chosen")


def test_der_herds_alike(folder: Path) -> None:
    golden = Golden(folder / "herding.safetensors")
    official = golden["out/der_order"]
    assert_close(herd(golden["in/features"], len(official)), official, 0, "chosen")


def test_the_closest_as_coded_are_not_ours(folder: Path, closest: str) -> None:
    """They are divided by norms over images instead of dimensions: shown to be a mistake, not copied."""
    golden = Golden(folder / "herding.safetensors")
    x = golden["in/features"]
    wrong = x / x.norm(dim=0)
    order = (wrong - wrong.mean(0)).square().sum(1).argsort()[: int(closest)]
    assert_close(order, golden[f"out/closest_{closest}"], 0, "closest")
    assert not herd(x, int(closest)).equal(order)


def test_means_with_mirror_images(folder: Path, flipped: str) -> None:
    golden = Golden(folder / "herding.safetensors")
    x, mirrored = golden["in/features"], golden["in/features_flipped"]
    kept = Kept({}, herd(x, int(flipped)))
    end = after(x, torch.zeros(len(x), dtype=torch.int64), mirrored=mirrored)
    means = Config().learnt(end, coming(0, 1), kept)["means"]
    assert_close(means[0], golden[f"out/mean_with_flips_{flipped}"], DIVIDED, "mean")


def test_loss_and_gradients(folder: Path) -> None:
    golden = Golden(folder / "loss.safetensors")
    weights = {name: golden[f"sd/{name}"].requires_grad_() for name in ("weight", "bias")}
    x, y = golden["in/x"], golden["in/y"]
    logits = F.linear(x, weights["weight"], weights["bias"])
    old, classes = golden.config["past"], logits.shape[1]
    before = golden["in/old_probabilities"][:, :old].logit()
    now, then = Seen(x, logits), Seen(x, before)
    first = Config().loss(now, None, y, coming(0, classes), NOTHING)
    assert_close(first["classification"], golden["out/first_task"], TOLERANCE, "first task")
    later = Config().loss(now, then, y, coming(old, classes - old, remembered=True), NOTHING)
    assert list(later) == ["classification"]
    later["classification"].backward()
    assert_close(later["classification"], golden["out/later_task"], TOLERANCE, "later task")
    assert_grads(weights, golden)


def test_exemplars_means_and_nearest_mean(folder: Path) -> None:
    golden = Golden(folder / "pycil_exemplars.safetensors")
    x, official = golden["in/features"], golden["out/chosen"]
    (classes, per_class, _), kept = x.shape, official.shape[1]
    features, labels = x.flatten(0, 1), torch.arange(classes).repeat_interleave(per_class)
    memory = added(features, labels, torch.arange(len(labels)), 0, kept, replacement=False)
    assert_close(memory.reshape(classes, kept) % per_class, official, 0, "chosen")
    assert (
        memory.reshape(classes, kept)
        .div(per_class, rounding_mode="floor")
        .equal(torch.arange(classes)[:, None].expand(-1, kept))
    )

    strategy = Config(flips=False)

    def means(memory: Tensor) -> Tensor:
        return strategy.learnt(after(features, labels), coming(0, classes), Kept({}, memory))["means"]

    found = means(memory)
    assert_close(found, golden["out/means"], DIVIDED, "means")
    seen = Seen(golden["in/test"], golden["in/test"])
    named = strategy.scores(seen, Kept({"means": found}, memory)).argmax(1)
    assert_close(named, golden["out/nme"], 0, "nearest means")
    right = (named == golden["in/test_labels"]).double().mean()
    assert right > 1 / classes, "labels and features belong together"
    # to how many memory shrinks stands in no setting: one number below `kept` fits all classes
    fewer = [means(shrunk(memory, labels[memory], most)) for most in range(1, kept)]
    official = golden["out/means_reduced"]
    assert min((one - official).abs().max() for one in fewer) < DIVIDED
