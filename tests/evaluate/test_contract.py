"""The contract of protocols, for every file of `protocols/` and for modules outside it (`--kind protocol=MODULE`)."""

from __future__ import annotations

import json
import math
import sys
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from pydantic import BaseModel, ValidationError

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import Pixels
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation, measured, required
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.protocol import PROTOCOLS, Protocol
from unlabeled.evaluate.splits import Preparation, Splits
from unlabeled.recipe import RecipeError, dump, parse

CPU = torch.device("cpu")
OUTSIDE = "outside_protocols.spread"
MODULE = """
from typing import ClassVar, Literal

from unlabeled.evaluate.protocol import Pooled


class Config(Pooled, frozen=True, extra="forbid"):
    version: ClassVar[str] = "spread/1"
    unit: ClassVar[str] = "standard deviation"
    labels: ClassVar[bool] = False
    name: Literal["outside_protocols.spread"] = "outside_protocols.spread"
    power: int = 1

    def scores(self, bench):
        x = bench.features(self.pool, self.blocks)[1].x
        yield "", float(x.std()) ** self.power
        yield "largest", float(x.abs().max())
"""


@pytest.fixture(scope="module", autouse=True)
def outside(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("modules") / "outside_protocols"
    folder.mkdir()
    (folder / "__init__.py").touch()
    (folder / "spread.py").write_text(MODULE, encoding="utf-8")
    sys.path.insert(0, str(folder.parent))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """Five classes by brightness, each picture with a mask of its dark and its light pixels."""
    random, root = np.random.Generator(np.random.PCG64(0)), tmp_path_factory.mktemp("pictures")
    for split, count in (("train", 8), ("val", 20)):
        for label in range(5):
            for folder in (split, f"{split}_masks"):
                (root / folder / str(label)).mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(0, 100, (8, 8, 3), dtype=np.uint8) + np.uint8(30 * label)
                Image.fromarray(pixels).save(root / split / str(label) / f"{i}.png")
                mask = (pixels.mean(2) > 110).astype(np.uint8)
                Image.fromarray(mask).save(root / f"{split}_masks" / str(label) / f"{i}.png")
    return Opened(Files(path=str(root), train="train", val="val", mean=(0.5,) * 3, std=(0.25,) * 3, allow_overlap=True))


def make() -> Encoder:
    torch.manual_seed(0)
    return EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=2, heads=2).build((8, 8)).train()


class Section(BaseModel, frozen=True, extra="forbid"):
    evaluate: Evaluation | None = None


@pytest.mark.every_kind("protocol", OUTSIDE)
def test_settings(name: str, section: dict[str, Any]) -> None:
    kind = PROTOCOLS.kind(name)
    protocol = kind.model_validate(section)
    assert isinstance(protocol, Protocol) and protocol.version.startswith(f"{name.rpartition('.')[2]}/")
    assert protocol.unit and hash(protocol) == hash(kind.model_validate(section))
    with pytest.raises(ValidationError):
        protocol.name = "other"
    with pytest.raises(ValidationError):
        kind.model_validate({**section, "no_such_field": 1})
    if name in PROTOCOLS.names():
        assert kind.summary, "the help of recipes says it"  # type: ignore[attr-defined]
    found = parse(Section, f"evaluate: {{own: {json.dumps(section)}}}").evaluate
    assert found is not None and found.protocols["own"] == protocol
    assert parse(Section, dump(Section(evaluate=found))).evaluate == found


def test_order() -> None:
    """Protocols run and are reported in one order, however a recipe lists them; those under other names come last."""
    order = ["knn", "ncm", "linear", "logistic", "ranpac", "fewshot", "labelfree", "retrieval", "cka", "segmentation"]
    order.append("openset")
    fields = ", ".join(f"{name}: {{}}" for name in sorted(order))
    found = parse(Section, f"evaluate: {{a: {{name: knn}}, {fields}}}").evaluate
    assert found is not None and list(found.protocols) == [*order, "a"]


@pytest.mark.every_kind("protocol", OUTSIDE)
def test_scores(name: str, section: dict[str, Any], data: Opened, monkeypatch: pytest.MonkeyPatch) -> None:
    protocol, encoder = PROTOCOLS.kind(name).model_validate(section), make()
    assert isinstance(protocol, Protocol)
    preparation = Preparation(pool="mean", crop_pct=1.0)
    bench = Bench(encoder, Splits(preparation, data, CPU, labels=protocol.labels), (8, 8))
    bench.prepare(required({name: protocol}, bench.pool, bench.encoder.readable))
    monkeypatch.setattr(bench.splits, "features", lambda *_: pytest.fail("features that it does not say it reads"))
    protocol.check(bench.splits)
    state = torch.get_rng_state()
    found = measured("own", protocol, bench)
    assert encoder.training and torch.equal(torch.get_rng_state(), state)
    assert found and all(math.isfinite(score.value) for score in found)
    names = [score.name for score in found]
    assert len(set(names)) == len(names) and all(each == "own" or each.startswith("own_") for each in names)
    assert [score.value for score in measured("own", protocol, bench)] == [score.value for score in found]
    for score in found:
        assert score.each is None or score.each.mean() == pytest.approx(score.value)
    if protocol.few_labels:
        assert [score.name for score in measured("own", protocol, bench.few(0.5, seed=1))] == names
    if protocol.pixels:
        pixels = Bench(Pixels(), Splits(preparation, data, CPU, labels=protocol.labels), (8, 8))  # type: ignore[arg-type]
        assert [score.name for score in measured("own", protocol, pixels)] == names


def test_features_are_not_changed(data: Opened) -> None:
    bench = Bench(make(), Splits(Preparation(pool="mean"), data, CPU), (8, 8))
    before = [Features(part.x.clone(), part.y.clone()) for part in bench.features()]
    for name in ("knn", "ncm", "linear", "logistic", "ranpac", "retrieval"):
        protocol = PROTOCOLS.kind(name)()
        assert isinstance(protocol, Protocol)
        measured(name, protocol, bench)
    assert all(torch.equal(a.x, b.x) and torch.equal(a.y, b.y) for a, b in zip(before, bench.features(), strict=True))


@pytest.mark.parametrize(
    ("section", "says"),
    [
        ("{knnn: {k: 5}}", r"evaluate\.knnn: unknown field\. Did you mean 'knn'"),
        ("{batch_sise: 5}", r"evaluate\.batch_sise: unknown field\. Did you mean 'batch_size'"),
        ("{linaer: null}", r"evaluate\.linaer: unknown field\. Did you mean 'linear'"),
        ("{knn50: {name: knm}}", r"evaluate\.knn50\.name: expected one of: cka.*Did you mean 'ncm'"),
        ("{knn50: {name: knn, kk: 5}}", r"evaluate\.knn50\.kk: unknown field"),
        ("{knn50: {name: knn, k: 0}}", r"evaluate\.knn50\.k: expected an integer of at least 1"),
        ("{knn: {name: linear}}", r"evaluate\.knn\.name: expected knn, found 'linear'"),
        ("{mine: {name: no.such}}", r"evaluate\.mine: the module 'no\.such' cannot be imported"),
        (f"{{mine: {{name: {OUTSIDE}, powr: 2}}}}", r"evaluate\.mine\.powr: unknown field. Did you mean 'power'"),
    ],
)
def test_mistakes_in_the_section(section: str, says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        parse(Section, f"evaluate: {section}")
