"""PODNet's losses and head against numbers of official code (PODNet, PyCIL)."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from parity.golden import Golden, assert_close, assert_gradient_at, peek
from parity.incremental import NOTHING, TOLERANCE, assert_grads, coming
from torch import Tensor, nn

from unlabeled.incremental.heads import LocalSimilarity, weighted
from unlabeled.incremental.strategies.podnet import Config, apart, nca, pooled, spatial
from unlabeled.incremental.strategy import Seen


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """One test per variant of whatever set is given, as its names tell."""
    for asked, pattern in {"collapsed": r"out/pod_(\w+)", "similar": r"out/((?:nca|ams)_\w+(?:\.\d+)?)"}.items():
        if asked in metafunc.fixturenames:
            golden = peek(metafunc.config, "podnet", "pod_variants.safetensors")
            metafunc.parametrize(asked, (golden and golden.found(pattern)) or ["absent"])


def maps_of(golden: Golden) -> tuple[list[Tensor], list[Tensor]]:
    """Maps of all stages, which learn, and those of the old network."""
    stages = sorted(int(stage) for stage in golden.found(r"in/map(\d+)"))
    now = [golden[f"in/map{stage}"].requires_grad_() for stage in stages]
    return now, [golden[f"in/old_map{stage}"] for stage in stages]


def head_of(golden: Golden) -> LocalSimilarity:
    """Our head with the set's proxies, those of old classes resting."""
    c, (rows, width) = golden.config, golden.shape("sd/weights")
    first = LocalSimilarity(width, c["old"], c["P"])
    head = LocalSimilarity(width, c["new"], c["P"], first)
    old = c["old"] * c["P"]
    assert head.known is not None and len(head.weights) == rows
    with torch.no_grad():
        head.known = nn.Parameter(golden["sd/weights"][:old])
        head.coming = nn.Parameter(golden["sd/weights"][old:])
        head.scale = nn.Parameter(golden["sd/factor"])
    return head


@pytest.mark.parametrize("data", ["cifar100", "imagenet"])
def test_loss_and_gradients(folder: Path, data: str) -> None:
    golden = Golden(folder / f"loss_{data}.safetensors")
    c, head, y = golden.config, head_of(golden), golden["in/y"]
    features = golden["in/features"].requires_grad_()
    maps, before = maps_of(golden)
    strategy = Config(proxies=c["P"], flat=c["pod_flat"], spatial=c["pod_spatial"])
    now = Seen(features, head(features), tuple(maps))
    then = Seen(golden["in/old_features"], golden["in/old_features"], tuple(before))
    terms = strategy.loss(now, then, y, coming(c["old"], c["new"], remembered=True), NOTHING)
    loss = torch.stack(list(terms.values())).sum()
    loss.backward()
    assert_close(head.raw(features), golden["out/raw_logits"], TOLERANCE, "raw similarities")
    assert_close(head.similarities(features), golden["out/logits"], TOLERANCE, "similarities")
    for ours, name in (("classification", "nca"), ("flat", "flat"), ("spatial", "pod")):
        assert_close(terms[ours], golden[f"out/{name}"], TOLERANCE, name)
    assert_close(loss, golden["out/loss"], TOLERANCE, "loss")
    assert head.known is not None and head.known.grad is not None and head.coming.grad is not None
    named = {"features": features, **{f"map{stage}": one for stage, one in enumerate(maps)}}
    assert_grads(named, golden)
    assert_gradient_at(torch.cat([head.known.grad, head.coming.grad]), golden, "grad/weights", TOLERANCE)
    assert_gradient_at(head.scale.grad.reshape(1), at_one(golden), "grad/factor", TOLERANCE)  # type: ignore[union-attr]


def at_one(golden: Golden) -> Golden:
    """The same numbers, single ones as vectors of one."""
    golden._tensors = {key: t.reshape(1) if t.ndim == 0 else t for key, t in golden._tensors.items()}
    return golden


def collapse(x: Tensor, how: str) -> Tensor:
    """Ways to pool a map, of which `spatial` is built and others were tried in the paper."""
    squares = x.square()
    ways = {"channels": 1, "width": 2, "height": 3}
    if how == "gap":
        return squares.mean((2, 3))
    return pooled(x) if how == "spatial" else squares.sum(ways[how]).flatten(1)


def test_ways_to_pool(folder: Path, collapsed: str) -> None:
    golden = Golden(folder / "pod_variants.safetensors")
    now, before = maps_of(golden)
    found = [apart(collapse(a, collapsed), collapse(b, collapsed)) for a, b in zip(now, before, strict=True)]
    assert_close(torch.stack(found).mean(), golden[f"out/pod_{collapsed}"], TOLERANCE, collapsed)
    if collapsed == "spatial":
        assert_close(spatial(now, before), golden["out/pod_spatial"], TOLERANCE, "POD")


def scales_of(golden: Golden) -> list[float]:
    """The scale of the set's similarities: its settings', else those that give its plain cross-entropy."""
    if golden.config.find("scale"):
        return [golden.config["scale"]]
    s, y = golden["in/similarities"], golden["in/y"]
    official = {name: golden[name] for name in golden.names() if name.startswith("out/ams_")}

    def off(scale: float) -> float:
        return float(F.cross_entropy(scale * s, y) - next(iter(official.values())))

    found = []
    for low, high in pairwise(0.05 * step for step in range(1, 1000)):
        if (below := off(low) < 0) != (off(high) < 0):
            for _ in range(60):
                middle = (low + high) / 2
                low, high = (middle, high) if (off(middle) < 0) == below else (low, middle)
            found.append(low)
    return found


def test_margins_change_nothing(folder: Path, similar: str) -> None:
    golden = Golden(folder / "pod_variants.safetensors")
    official, y = golden[f"out/{similar}"], golden["in/y"]
    found = []
    for scale in scales_of(golden):
        s = scale * golden["in/similarities"]
        if similar.startswith("ams"):
            found.append(F.cross_entropy(s, y))
        elif "hinge" in similar:
            found.append(torch.stack([nca(s[i : i + 1], y[i : i + 1]).clamp(min=0) for i in range(len(y))]).mean())
        else:
            found.append(nca(s, y))
    nearest = min(found, key=lambda one: float((one - official).abs()))
    assert_close(nearest, official, TOLERANCE, similar)


def test_a_port_of_it(folder: Path) -> None:
    """PyCIL's maps and classification, and its head, whose similarities are cosines."""
    golden = Golden(folder / "pycil.safetensors")
    now, before = maps_of(golden)
    found = spatial(now, before)
    found.backward()
    assert_close(found, golden["out/pod_spatial"], TOLERANCE, "POD")
    assert_grads({f"map{stage}": one for stage, one in enumerate(now)}, golden)
    s = golden["in/similarities"].requires_grad_()
    loss = nca(s, golden["in/y"])
    loss.backward()
    assert_close(loss, golden["out/nca"], TOLERANCE, "NCA")
    assert_grads({"similarities": s}, golden)
    cosines = F.normalize(golden["in/f"], dim=1) @ F.normalize(golden["sd/weight"], dim=1).T
    classes = golden.shape("out/cosine_logits")[1]
    logits = golden["sd/sigma"] * weighted(cosines, cosines.shape[1] // classes)
    assert_close(logits, golden["out/cosine_logits"], TOLERANCE, "cosine head")
