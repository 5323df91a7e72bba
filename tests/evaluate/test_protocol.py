from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.data.label.subset import stratified
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation, Evaluator, measured
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.probing import accuracy, hits_of
from unlabeled.evaluate.protocol import Protocol
from unlabeled.evaluate.protocols.knn import Config as Knn
from unlabeled.evaluate.protocols.knn import knn_predict
from unlabeled.evaluate.protocols.linear import Config as Linear
from unlabeled.evaluate.protocols.linear import linear_probe
from unlabeled.evaluate.splits import Splits

CPU = torch.device("cpu")


class FakeSource(Source):
    """Noise that is brighter the higher the class."""

    def __init__(self, n: int, seed: int, classes: tuple[str, ...] = ("dim", "grey", "bright")) -> None:
        self.classes = classes
        self.labels = np.arange(n, dtype=np.int64) % 3
        noise = torch.randint(0, 120, (n, 3, 8, 8), generator=torch.Generator().manual_seed(seed))
        self.pictures = (noise + 60 * torch.from_numpy(self.labels).view(-1, 1, 1, 1)).to(torch.uint8)

    def __len__(self) -> int:
        return len(self.labels)

    def image(self, i: int) -> Tensor:
        return self.pictures[i]

    def key(self, i: int) -> str:
        return str(i)

    def fingerprint(self) -> str:
        return "fake"


class FakeData(Opened):
    def __init__(self) -> None:
        config = Shapes(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), max_bad_fraction=0.5, allow_overlap=True)
        super().__init__(config)
        self.splits = {"train": FakeSource(90, seed=0), "val": FakeSource(30, seed=1)}
        self.opened: list[str] = []

    @property
    def train(self) -> FakeSource:
        self.opened.append("train")
        return self.splits["train"]

    @property
    def val(self) -> FakeSource:
        self.opened.append("val")
        return self.splits["val"]

    def original(self, split: Literal[train, val]) -> FakeSource:
        return self.splits[split]


@pytest.fixture
def encoder() -> Encoder:
    torch.manual_seed(0)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    return config.build((8, 8)).train()


def features(encoder: Encoder, source: FakeSource) -> Features:
    with torch.no_grad():
        x = encoder.eval()((source.pictures.float() / 255 - 0.5) / 0.25).patches.mean(1)
    return Features(x, torch.from_numpy(source.labels))


def test_scores_by_name(encoder: Encoder) -> None:
    data = FakeData()
    config = Evaluation(pool="mean", crop_pct=1.0, batch_size=32, knn=Knn(k=5), fractions=(1.0, 0.1))
    evaluator = Evaluator(config, Splits(config, data, CPU), (8, 8))
    assert data.opened == []
    found = dict(evaluator(encoder))
    assert encoder.training

    train, test = (features(encoder, data.splits[split]) for split in ("train", "val"))
    few = train.take(stratified(train.y.numpy(), 0.1, seed=0))
    assert len(few.y) == 9
    assert found == {
        "knn": accuracy(hits_of(knn_predict(train, test.x, 5, 0.07, 3), test.y)),
        "linear": linear_probe(train, test, 3, Linear())[0],
        "knn_10%": accuracy(hits_of(knn_predict(few, test.x, 5, 0.07, 3), test.y)),
        "linear_10%": linear_probe(few, test, 3, Linear())[0],
    }
    assert found["linear"] > 50

    list(evaluator(encoder))
    assert data.opened == ["train", "val"]


def test_a_class_that_nothing_is_learnt_from_is_named(encoder: Encoder) -> None:
    data = FakeData()
    data.splits["train"].labels[data.splits["train"].labels == 1] = -1
    with pytest.raises(UserError, match="train has none of: 'grey'"):
        Evaluation().check(Splits(Evaluation(), data, CPU))


def test_sections_of_a_recipe_are_run_and_what_reads_no_labels_runs_once(encoder: Encoder) -> None:
    settings = {"logistic": {}, "fewshot": {"ways": 3, "shots": [1], "queries": 5, "episodes": 9}, "linear": None}
    config = Evaluation.model_validate({"pool": "mean", "fractions": [1, 0.5], **settings})
    found = dict(Evaluator(config, Splits(config, FakeData(), CPU), (8, 8))(encoder))
    shots = ["fewshot_prototype_3way_1shot", "fewshot_logistic_3way_1shot"]
    assert list(found) == ["knn", "logistic", "knn_50%", "logistic_50%", *shots]
    assert found["logistic"] > 50


def test_one_protocol_under_two_names(encoder: Encoder) -> None:
    config = Evaluation.model_validate({"pool": "mean", "linear": None, "knn5": {"name": "knn", "k": 5, "top5": True}})
    assert list(config.protocols) == ["knn", "knn5"]
    found = dict(Evaluator(config, Splits(config, FakeData(), CPU), (8, 8))(encoder))
    assert list(found) == ["knn", "knn5", "knn5_top5"]
    alone = Evaluation(pool="mean", knn=Knn(k=5))
    assert found["knn5"] == dict(Evaluator(alone, Splits(alone, FakeData(), CPU), (8, 8))(encoder))["knn"]
    written = config.model_dump(mode="json")
    assert "name" not in written["knn"] and written["knn5"]["name"] == "knn"


def test_two_scores_of_one_name_are_refused(encoder: Encoder) -> None:
    config = Evaluation.model_validate({"knn": {"top5": True}, "linear": None, "knn_top5": {"name": "knn"}})
    with pytest.raises(UserError, match="knn and knn_top5 both have a score knn_top5"):
        dict(Evaluator(config, Splits(config, FakeData(), CPU), (8, 8))(encoder))


@pytest.mark.parametrize(
    "asked", [{"pool": "cls_mean"}, {"linear": {"pools": ["mean", "cls"]}}, {"logistic": {"blocks": 2}}]
)
def test_what_a_cnn_lacks_is_refused_before_a_run(asked: dict[str, object]) -> None:
    config = Evaluation.model_validate({"pool": "mean", **asked})
    with pytest.raises(UserError, match=r"of the network 'resnet18', but (it has no class token|its last map alone)"):
        config.check_reads(EncoderConfig(model="resnet18"))
    config.check_reads(EncoderConfig(model="vit_tiny_patch16_224"))


def test_episodes_that_cannot_be_drawn_are_refused_before_a_run() -> None:
    config = Evaluation.model_validate({"fewshot": {"ways": 3, "shots": [1, 9]}})
    with pytest.raises(UserError, match="'dim' has 10 test pictures, fewer than 9 shots and 15 queries"):
        config.check(Splits(config, FakeData(), CPU))


class Precision(Protocol, frozen=True, extra="forbid"):
    """How many bytes a number of a product has."""

    version: ClassVar[str] = "precision/1"
    name: str = "precision"

    def scores(self, bench: Bench) -> Iterator[tuple[str, float]]:
        yield "bytes", (torch.ones(2, 2) @ torch.ones(2, 2)).element_size()


def test_probes_are_float32_under_autocast(encoder: Encoder) -> None:
    config = Evaluation(knn=None, linear=Linear(epochs=2))
    splits = Splits(config, FakeData(), CPU)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert [name for name, _ in Evaluator(config, splits, (8, 8))(encoder)] == ["linear"]
        assert [score.value for score in measured("own", Precision(), Bench(encoder, splits, (8, 8)))] == [4]


def test_unlabelled_pictures_are_the_users_error(encoder: Encoder) -> None:
    data = FakeData()
    data.splits["train"].labels[:] = -1
    with pytest.raises(UserError, match="no picture of train has one"):
        dict(Evaluator(Evaluation(), Splits(Evaluation(), data, CPU), (8, 8))(encoder))


def test_one_class_is_nothing_to_tell_apart() -> None:
    data = FakeData()
    for source in data.splits.values():
        source.labels[:], source.classes = 0, ("dim",)
    with pytest.raises(UserError, match="train has one class, 'dim'; expected at least two"):
        Evaluation().check(Splits(Evaluation(), data, CPU))
    assert len(Splits(Evaluation(), data, CPU, labels=False).sources) == 2


def test_more_neighbours_than_pictures_are_named(encoder: Encoder, caplog: pytest.LogCaptureFixture) -> None:
    config = Evaluation(pool="mean", knn=Knn(k=(90, 91)), linear=None, fractions=(1.0, 0.5))
    dict(Evaluator(config, Splits(config, FakeData(), CPU), (8, 8))(encoder))
    assert [record.getMessage() for record in caplog.records] == [
        "knn.k is 91, but there are 90 training pictures: all of them vote"
    ]


def test_splits_must_number_classes_alike(encoder: Encoder) -> None:
    data = FakeData()
    data.splits["val"].classes = ("bright", "dim", "grey")
    with pytest.raises(UserError, match="same class folders"):
        dict(Evaluator(Evaluation(), Splits(Evaluation(), data, CPU), (8, 8))(encoder))


@pytest.mark.parametrize("wrong", [{"fractions": [0.0]}, {"fractions": []}, {"crop_pct": 1.2}, {"evry": 5}])
def test_refuses_what_makes_no_sense(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Evaluation.model_validate(wrong)
