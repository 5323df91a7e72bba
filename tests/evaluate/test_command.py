from __future__ import annotations

import argparse
import json
import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.commands.evaluate import add_arguments, run
from unlabeled.data.opened import Opened
from unlabeled.data.sources.files import Config as Files
from unlabeled.errors import UserError
from unlabeled.evaluate import baselines
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.comparison import Comparison, protocols_of, untrained_twin
from unlabeled.evaluate.features import Features
from unlabeled.evaluate.protocol import Protocol, Score
from unlabeled.evaluate.protocols.knn import Config as Knn
from unlabeled.evaluate.results import Column, EncoderScores, Result
from unlabeled.report.intervals import bootstrap
from unlabeled.work import evaluate as command


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Two classes, told apart by brightness: 20 pictures of each to train on, 5 to test on."""
    random = np.random.Generator(np.random.PCG64(0))
    for split, count in (("train", 20), ("val", 5)):
        for label, low in (("dark", 0), ("light", 100)):
            folder = tmp_path / "pictures" / split / label
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = random.integers(low, low + 150, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{i}.png")
    return tmp_path / "pictures"


def export(folder: Path, seed: int) -> str:
    torch.manual_seed(seed)
    config = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2)
    prepared = Preprocessing((0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    export_encoder(folder, config.build((8, 8)), prepared, "card", {})
    return str(folder)


def evaluate(*arguments: str) -> int:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    return run(parser.parse_args([*arguments, "--device", "cpu", "--workers", "0"]))


def test_table_and_json(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    exports = [export(tmp_path / name, seed) for seed, name in enumerate("ab")]
    file = tmp_path / "results" / "few.json"
    options = ("--fractions", "1", "0.1", "--seeds", "2", "--pool", "mean", "--crop-pct", "1", "--baselines")
    assert (
        evaluate(*exports, "--data", str(pictures), *options, "--json", str(file), "--html", str(tmp_path / "few.html"))
        == 0
    )

    shown = (tmp_path / "few.html").read_text(encoding="utf-8")
    assert "raw pixels 8x8" in shown and '"names":["kNN 100 %","linear 100 %","kNN 10 %","linear 10 %"]' in shown
    report: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    rows = {row["name"]: row for row in report["rows"]}
    # two exports of one architecture share their baselines
    names = [row["name"] for row in report["rows"]]
    assert names == [*exports, "raw pixels 8x8", "untrained vit_tiny_patch16_224 (1 x 16)", "most frequent class"]
    assert all(score["mean"] == 50 for score in rows.pop("most frequent class")["scores"].values())
    assert rows["raw pixels 8x8"]["dimensions"] == 192
    for row in rows.values():
        assert (row["train_size"], row["test_size"]) == (40, 10)
        assert 1 <= row["effective_rank"] <= min(row["dimensions"], row["test_size"])
        assert [(name, len(s["values"])) for name, s in row["scores"].items()] == [
            ("knn", 1),
            ("linear", 1),
            ("knn_10%", 2),
            ("linear_10%", 2),
        ]
    assert rows["raw pixels 8x8"]["scores"]["linear"]["mean"] == 100
    assert report["protocol"]["evaluation"]["knn"] == {
        "k": 20,
        "temperature": 0.07,
        "top5": False,
        "pool": None,
        "blocks": 1,
    }
    assert report["protocol"]["evaluation"]["crop_pct"] == 1
    assert "raw pixels" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--fractions", "10"), "^--fractions: expected a number greater than 0 and no more than 1, found 10.0$"),
        (("--crop-pct", "0"), "--crop-pct: expected a number greater than 0 .*, found 0.0"),
        (("--seeds", "0"), "--seeds 0"),
    ],
)
def test_wrong_options_are_the_users_error(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(UserError, match=message):
        evaluate("nowhere", "--data", "nowhere", *options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--set", "linear.epoch=5"), "linear.epoch: unknown field.*'epochs'"),
        (("--set", "knn.k=0"), "command line *knn.k: expected"),
        (("--set", "logistic.l2=[1]"), "logistic is not run. Add it to --protocol"),
        (("--image-size", "10"), "--image-size 10: .* patches of 4 pixels.* Use 8 or 12"),
        (("--image-size", "0"), "--image-size 0"),
        (("--json", "/proc/no/such.json"), "^--json /proc/no/such.json cannot be written: .*Name another"),
        (("--markdown", "/proc"), "^--markdown /proc is a folder"),
        (("--protocol", "knm"), "knm.name: expected one of: cka.*Did you mean 'ncm'"),
        (("--protocol", "a.knn", "knn"), "--protocol a.knn knn: the last parts of the names must differ"),
        (("--protocol", "fewshot", "--set", "fewshot.ways=2"), "'dark' has 5 test pictures, fewer than 1 shots and 15"),
    ],
)
def test_wrong_settings_are_the_users_error(
    options: tuple[str, ...], message: str, pictures: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=message):
        evaluate(export(tmp_path / "a", 0), "--data", str(pictures), *options)


def test_a_class_without_training_pictures_is_named(pictures: Path, tmp_path: Path) -> None:
    (pictures / "val" / "light").rename(pictures / "val" / "lightning")
    with pytest.raises(UserError, match="lacks: 'lightning'"):
        evaluate(export(tmp_path / "a", 0), "--data", str(pictures))


def test_channels_without_their_normalisation(pictures: Path, tmp_path: Path) -> None:
    folder = Path(export(tmp_path / "a", 0))
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["pretrained_cfg"]["mean"] = config["pretrained_cfg"]["std"] = [0.5]
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(UserError, match=r"sees 3 channels, .* normalised in 1.*config\.json"):
        evaluate(str(folder), "--data", str(pictures))


def test_every_protocol_with_settings_intervals_and_what_it_rests_on(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = (
        *("--protocol", "knn", "linear", "logistic", "fewshot"),
        *("--set", "knn.k=[1,5]", "linear.pools=[cls,cls_mean]", "linear.epochs=5"),
        *("--set", "fewshot.ways=2", "fewshot.shots=[2]", "fewshot.queries=3", "fewshot.episodes=20"),
        *("--fractions", "0.2", "--seeds", "2", "--pool", "mean", "--crop-pct", "1", "--image-size", "12"),
        *("--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "found.md"), "--baselines"),
    )
    assert evaluate(export(tmp_path / "a", 0), "--data", str(pictures), *options) == 0
    report = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    row, pixels = report["rows"][:2]
    assert row["shape"] == [12, 12] and list(row["scores"]) == list(pixels["scores"])
    assert list(row["scores"]) == [
        "knn_k1_20%",
        "knn_k5_20%",
        "linear_20%",
        "logistic_20%",
        "fewshot_prototype_2way_2shot",
        "fewshot_logistic_2way_2shot",
    ]
    for name, score in row["scores"].items():
        few = name.endswith("%")
        assert (score["seeds"], score["labels"]) == (([0, 1], 8) if few else ([0], None))
        assert score["mean"] == pytest.approx(sum(score["values"]) / len(score["values"]))
        low, high = score["interval"]
        assert low <= score["mean"] <= high and (low < high or score["mean"] in (0, 100))
    chosen = row["scores"]["linear_20%"]["chosen"]
    assert len(chosen) == 2 and set(chosen[0]) == {"lr", "pool", "blocks"}

    splits = [Opened(Files(path=str(pictures), train="train", val="val")).split(split) for split in ("train", "val")]
    assert row["fingerprints"] == {"train": splits[0].fingerprint(), "val": splits[1].fingerprint()}
    assert row["cost"]["cpu_seconds"] > 0 and row["cost"]["pictures_per_second"] > 0
    protocol = report["protocol"]
    assert protocol["protocols"] == {name: f"{name}/1" for name in ("knn", "linear", "logistic", "fewshot")}
    assert protocol["evaluation"]["linear"]["epochs"] == 5 and protocol["evaluation"]["fewshot"]["queries"] == 3
    assert "torch" in protocol["versions"]

    head, _, first, *_ = (tmp_path / "found.md").read_text(encoding="utf-8").splitlines()
    assert "kNN k5 20 %" in head and f"{row['scores']['linear_20%']['mean']:.1f} ± " in first
    said = capsys.readouterr().out
    assert "mean accuracy of episodes" in said
    assert any(line.count("│") == 6 and "fewshot logistic 2way 2shot" in line for line in said.splitlines())


def test_baselines_come_unasked_and_may_be_left_out(
    pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(3):  # the darker class is now the larger one
        shutil.copy(pictures / "val" / "dark" / "0.png", pictures / "val" / "dark" / f"more{i}.png")
    options = ["--data", str(pictures), "--pool", "mean", "--crop-pct", "1", "--protocol", "knn"]
    files = ["--json", str(tmp_path / "found.json"), "--markdown", str(tmp_path / "found.md")]
    assert evaluate(export(tmp_path / "a", 0), *options, *files) == 0
    report = json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))
    encoder, pixels, untrained, most = report["rows"]
    assert most["scores"]["knn"]["mean"] == pytest.approx(100 * 8 / 13)
    details = most["scores"]["knn"]["details"][0]
    assert (details["balanced_accuracy"], details["recall"], details["uneven"]) == (50, {"dark": 100, "light": 0}, 1.6)
    said = capsys.readouterr()
    assert "raw pixels 8x8, untrained vit_tiny_patch16_224 (1 x 16): about" in said.err and "--no-baselines" in said.err
    # random weights against raw pixels: nothing is gained, and the last line says so
    best = max(row["scores"]["knn"]["mean"] for row in (pixels, untrained, most))
    told = report["over_baselines"][encoder["name"]]["knn"]
    assert told["best"] == best and told["difference"] == pytest.approx(encoder["scores"]["knn"]["mean"] - best)
    assert not told["clear"] and told["interval"][0] <= told["difference"] <= told["interval"][1]
    last = said.out.strip().splitlines()[-1]
    page = (tmp_path / "found.md").read_text(encoding="utf-8")
    for text in (last, page.splitlines()[-1]):
        assert "pretraining did not pay: kNN" in text and "What to try" in text
    assert "has 1.6 times as many as the smallest. Balanced accuracy" in page

    assert evaluate(export(tmp_path / "b", 0), *options, "--no-baselines", *files[:2]) == 0
    assert len(json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]) == 1
    monkeypatch.setattr(command, "CHEAP", 0.0)
    assert evaluate(export(tmp_path / "c", 0), *options, *files[:2]) == 0
    names = [row["name"] for row in json.loads((tmp_path / "found.json").read_text(encoding="utf-8"))["rows"]]
    assert names[1:] == ["most frequent class"] and "baselines left out" in capsys.readouterr().err


def row_of(name: str, **each: np.ndarray) -> EncoderScores:
    scores = {Column(score, 1.0): Result(None, [Score(score, values.mean(), values)]) for score, values in each.items()}
    return EncoderScores(name, (8, 8), 4, 10, 10, 2.0, {}, scores, {})


def test_gains_over_the_best_baseline_of_the_same_pictures() -> None:
    random = np.random.default_rng(0)
    hits = 100.0 * (random.random((3, 200)) < np.array([[0.8], [0.5], [0.3]]))
    ours = row_of("net", knn=hits[0], linear=hits[1])
    rivals = [row_of("worst", knn=hits[2]), row_of("twin", knn=hits[1])]
    rivals.append(row_of("twin of linear", linear=hits[1]))
    knn, linear = baselines.gains(ours, rivals)
    assert (knn.baseline, linear.baseline) == ("twin", "twin of linear")
    assert knn.interval == bootstrap(hits[0] - hits[1]) and knn.clear and linear.interval == (0, 0)
    text = baselines.verdict(ours, rivals)
    assert text and "What to try" in text
    assert text.startswith("net: pretraining did not pay in 1 of 2 scores: linear 47.5 against 47.5 of twin of linear")
    paid = baselines.verdict(row_of("net", knn=hits[0]), rivals)
    assert paid and paid.startswith("net: pretraining paid in every score: kNN ")
    assert baselines.verdict(ours, []) is None


def test_a_result_of_several_seeds() -> None:
    each = [100.0 * np.random.default_rng(seed).integers(2, size=50) for seed in (0, 1)]
    result = Result(8, [Score("knn", values.mean(), values) for values in each])
    means = [values.mean() for values in each]
    assert result.mean == pytest.approx(sum(means) / 2)
    assert result.std == pytest.approx(abs(means[0] - means[1]) / math.sqrt(2)) and means[0] != means[1]
    assert result.interval == bootstrap((each[0] + each[1]) / 2), "a picture counts with its mean over seeds"


class Echo(Protocol, frozen=True, extra="forbid"):
    """Says what it is given."""

    version: ClassVar[str] = "echo/1"
    few_labels: ClassVar[bool] = True
    name: str = "echo"

    def scores(self, bench: Bench) -> Iterator[tuple[str, float]]:
        yield "", 1000 * bench.fraction + bench.seed


def test_every_share_is_drawn_once_for_every_seed() -> None:
    classes = SimpleNamespace(classes=("ant", "bee"))
    splits: Any = SimpleNamespace(device=torch.device("cpu"), sources=[classes])
    bench: Any = Bench(None, splits, (8, 8))  # type: ignore[arg-type]
    bench.features = lambda: (Features(torch.zeros(40, 1), torch.arange(40) % 2),) * 2
    comparison = Comparison({"echo": Echo()}, (1.0, 0.5), 3, torch.device("cpu"), 0)
    found = comparison._scores(bench, comparison.protocols)
    assert {
        column.key: ([score.value for score in result.found], result.labels) for column, result in found.items()
    } == {
        "echo": ([1000], 40),
        "echo_50%": ([500, 501, 502], 20),
    }


def test_protocols_under_other_names() -> None:
    found = protocols_of(["knn", "wide"], ["wide.name=knn", "wide.k=[50]", "knn.k=5"])
    assert found == {"knn": Knn(k=5), "wide": Knn(k=(50,))}
    with pytest.raises(UserError, match=r"no_package\.mine' cannot be imported"):
        protocols_of(["no_package.mine"], [])


def test_an_untrained_twin_is_always_the_same_other_one(tmp_path: Path) -> None:
    encoder = load_encoder(export(tmp_path / "a", 1))
    one, two = (untrained_twin(encoder).state_dict() for _ in range(2))
    assert all(torch.equal(one[name], two[name]) for name in one)
    name = "vit.blocks.0.attn.qkv.weight"
    assert not torch.equal(one[name], encoder.state_dict()[name])
