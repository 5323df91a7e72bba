"""The ladder: which rung pays, and a whole climb on drawn shapes that goes on where it was cut off."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.weights import load_encoder
from unlabeled.data.label.subset import few_shot
from unlabeled.data.opened import Opened
from unlabeled.data.source import Source, Split
from unlabeled.data.sources.shapes import Config as Shapes
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.evaluation import Evaluation
from unlabeled.evaluate.protocols.knn import Config as Knn
from unlabeled.evaluate.protocols.linear import Config as Linear
from unlabeled.evaluate.protocols.ncm import Config as Ncm
from unlabeled.evaluate.protocols.ranpac import Config as Ranpac
from unlabeled.evaluate.splits import Splits
from unlabeled.ladder import ahead, page, rungs, training, verdict, ways
from unlabeled.ladder.amount import Amount
from unlabeled.ladder.rungs import RungResult
from unlabeled.report.document import Text

FEW = Shapes(train_size=200, val_size=40, size=16)
CHEAP, MIDDLE, DEAR = (
    RungResult("knn", 0.1, [50.0, 52.0], 1.0),
    RungResult("linear", 0.1, [55.0, 57.0], 2.0),
    RungResult("lora", 0.1, [56.0, 58.0], 90.0),
)


def test_the_cheapest_rung_that_none_clearly_beats_pays() -> None:
    # 56 and 57 differ by 1, their difference has an error of sqrt(2 + 2) / sqrt(2) = 1.4; 51 is 6 below
    assert verdict.pays([CHEAP, MIDDLE, DEAR]) is MIDDLE
    assert verdict.pays([CHEAP, MIDDLE, DEAR._replace(accuracies=[66.0, 67.0])]).rung == "lora"
    # twice an error of 1.4 is less than 3.5, twice a deviation of 2 would not be
    assert verdict.pays([CHEAP, MIDDLE, DEAR._replace(accuracies=[58.5, 60.5])]).rung == "lora"
    assert verdict.pays([CHEAP._replace(accuracies=[57.0]), MIDDLE, DEAR]).rung == "knn"
    assert "linear probe pays, 56.0 % for 2.0 s; LoRA, 57.0 % for 90 s, is not better" in page.verdict(
        [CHEAP, MIDDLE, DEAR], Amount(0.1)
    )


def said(results: list[RungResult]) -> str:
    """The last sentence of the page on a tenth of the labels."""
    last = page.page("", results, [Amount(0.1)], {}).parts[-1]
    assert isinstance(last, Text)
    return last.text


def test_whether_pretraining_paid() -> None:
    steps = [step._replace(pictures=1000) for step in (CHEAP, MIDDLE, DEAR)]
    guess, scratch = RungResult("majority", 0.1, [10.0], 0.0), RungResult("scratch", 0.1, [49.0, 51.0], 80.0)
    rivals = [guess._replace(pictures=1000), scratch._replace(pictures=1000)]
    # 57 against 50: errors of 1 and 1 by seeds, and of sqrt(57 * 43 / 1000) and sqrt(50 * 50 / 1000) by pictures
    found = verdict.lead([*rivals, *steps], Amount(0.1))
    assert found and (found.rung, found.baseline, found.points) == ("lora", "scratch", 7)
    assert found.error == pytest.approx(2 * math.sqrt(1 + 1 + 57 * 43 / 1000 + 50 * 50 / 1000))
    assert said([*rivals, *steps]).startswith("Pretraining paid: with 10 % of the labels LoRA")
    closer = [rivals[0], rivals[1]._replace(accuracies=[52.0, 54.0])]
    told = said([*closer, *steps])
    assert "not certain that pretraining paid: with 10 % of the labels LoRA is +4.0 points (± 5.3) against tr" in told
    ahead = [rivals[0], rivals[1]._replace(accuracies=[61.0, 63.0])]
    assert "Pretraining did not pay: with 10 % of the labels LoRA is -5.0" in said([*ahead, *steps])
    # a rung without pretraining is no way to use it
    assert verdict.pays([*rivals, *steps]).rung == "linear"
    assert verdict.lead(steps, Amount(0.1)) is None and said(steps).startswith("10 % of the labels: linear probe pays")


def test_charts_have_every_rung_by_labels_and_by_cost() -> None:
    more = [step._replace(fraction=1.0, accuracies=[one + 20 for one in step.accuracies]) for step in (CHEAP, DEAR)]
    once = RungResult("majority", 0.1, [10.0], 3.0), RungResult("majority", 1.0, [12.0], 1.0)
    amounts = [Amount(0.1), Amount(1.0)]
    labels, cost = page.charts([CHEAP, *more, DEAR, *once, MIDDLE._replace(rung="knn", fraction=0.5)], amounts)
    assert labels.names == ["10 %", "100 %"] and [line.name for line in labels.lines] == [
        page.NAMES[rung] for rung in ("knn", "lora", "majority")
    ]
    assert (labels.lines[0].x, labels.lines[0].y) == ([0, 1], [51.0, 71.0])
    deviation = math.sqrt(2)
    assert labels.lines[0].low == pytest.approx([51 - deviation, 71 - deviation])
    assert labels.lines[0].high == pytest.approx([51 + deviation, 71 + deviation])
    assert (labels.lines[2].low, cost.lines[2].x, cost.lines[2].y) == ((), [1.0, 3.0], [12.0, 10.0])
    assert page.charts([], []) == []


def test_cells_and_titles_are_short() -> None:
    assert page.score(CHEAP) == "51.0 ± 1.4" and page.score(CHEAP._replace(accuracies=[50.0])) == "50.0"
    times = [page.duration(seconds, exact=True) for seconds in (0.04, 9.9, 10, 99, 600)]
    assert times == ["0.0 s", "9.9 s", "10 s", "99 s", "10 min"]
    title = f"/{'long/' * 30}runs/mae/export, 3 seeds"
    assert page._cut(title).startswith("…") and page._cut(title).endswith("/runs/mae/export, 3 seeds")
    assert len(page._cut(title)) == page.TITLE_LENGTH and page._cut("short") == "short"


@pytest.fixture
def export(tmp_path: Path) -> str:
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 2, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(tmp_path / "net" / "export", encoder, IMAGENET, "# card\n", {})
    return str(tmp_path / "net" / "export")


@pytest.fixture
def arguments(export: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setattr("unlabeled.work.ladder.data_of", lambda *_: Opened(FEW))
    flags = [
        "--fractions",
        "0.1",
        "1",
        "--seeds",
        "2",
        "--steps",
        "3",
        "--workers",
        "0",
        "--device",
        "cpu",
        "--crop-pct",
        "1",
        "--pool",
        "mean",
    ]
    return ["ladder", export, "shapes", "--out", str(tmp_path / "out"), *flags]


def test_a_climb(arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # the other rungs that are trained are climbed below
    changed = ["--rungs", "knn", "ncm", "ranpac", "linear", "lora", "scratch"]
    changed += ["--set", "lora.task.strategy.rank=2", "pixels.epochs=1", "untrained.epochs=1", "ranpac.dim=40"]
    changed += ["lora.look=null", "scratch.look=null", "--html", str(tmp_path / "ladder.html")]
    drawn: list[Path] = []
    monkeypatch.setattr("unlabeled.work.ladder.plot", lambda *args: drawn.append(args[-1]) or page.plot(*args))
    assert main([*arguments, *changed]) == 0
    content = json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))
    found = {(step["rung"], step["fraction"]): step["accuracies"] for step in content["steps"]}
    climbed = (*rungs.BASELINES, *ways.PROBES, "lora", "scratch")
    assert set(found) == {(rung, fraction) for rung in climbed for fraction in (0.1, 1.0)}
    read = (*rungs.BASELINES, *ways.PROBES)
    assert all(len(scores) == (1 if key in {(rung, 1.0) for rung in read} else 2) for key, scores in found.items())
    train, val = (Opened(FEW).split(split) for split in ("train", "val"))
    assert found["majority", 1.0] == [100 * np.mean(val.labels == np.bincount(train.labels).argmax())]
    last = (tmp_path / "out" / "ladder.md").read_text(encoding="utf-8").splitlines()[-1]
    assert "retraining did not pay: " in last or last.startswith("It is not certain that pretraining paid: ")
    assert "What to try: " in last
    scratch = (tmp_path / "out" / "scratch_10pct_seed1" / "recipe.yaml").read_text(encoding="utf-8")
    assert f"scratch:{arguments[1]}" in scratch and "name: full" in scratch
    assert {step["labels"] for step in content["steps"] if step["fraction"] == 0.1} == {20}
    for rung, fraction in (("scratch", 0.1), ("lora", 1.0)):
        results = [tmp_path / "out" / f"{rung}_{100 * fraction:g}pct_seed{seed}" / "result.json" for seed in (0, 1)]
        assert found[rung, fraction] == [json.loads(file.read_text(encoding="utf-8"))["accuracy"] for file in results]
    splits = Splits(Evaluation(pool="mean", crop_pct=1.0), Opened(FEW), torch.device("cpu"))
    bench = Bench(load_encoder(arguments[1]), splits, (16, 16))
    for probe in (Knn(), Ncm(), Ranpac(dim=40), Linear()):
        by_hand = [next(iter(probe.scores(bench.few(0.1, seed)))).value for seed in (0, 1)]  # type: ignore[union-attr]
        assert found[probe.name, 0.1] == by_hand
    recipe = (tmp_path / "out" / "lora_10pct_seed1" / "recipe.yaml").read_text(encoding="utf-8")
    assert "rank: 2" in recipe and "fraction_seed: 1" in recipe and "fraction: 0.1" in recipe
    assert set(content["pays"]) == {"10 %", "100 %"} and (tmp_path / "out" / "ladder.png").stat().st_size > 10_000
    assert len(drawn) == 1

    pages = [file.read_text(encoding="utf-8") for file in (tmp_path / "out" / "index.html", tmp_path / "ladder.html")]
    assert pages[0] == pages[1] and "Accuracy by cost" in pages[0] and "trained from scratch" in pages[0]

    # again: nothing is trained, the same is said
    monkeypatch.setattr(training, "opened", lambda *_: pytest.fail("trained again"))
    assert main([*arguments, *changed]) == 0
    again = json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))
    assert [step["accuracies"] for step in again["steps"]] == [step["accuracies"] for step in content["steps"]]


def test_recipes_of_the_rungs_that_are_trained(export: str) -> None:
    how = IMAGENET._replace(pool="mean", crop_pct=0.9)
    changes = ["lora.task.strategy.rank=2", "scratch.task.strategy.drop_path=0.3"]
    amounts = [Amount(0.1)]
    climb = rungs.Climb(
        export, Opened(FEW), (16, 16), how, torch.device("cpu"), Path("out"), amounts, 3, 40, 64, 0.3, changes
    )
    others = [rung for rung in ways.TUNED if rung != "unlabelled"]
    made = {rung: training.recipe_of(climb, rung, Amount(0.1), 3) for rung in others}
    for recipe in made.values():
        assert recipe.seed == recipe.task.fraction_seed == 3 and recipe.task.fraction == 0.1
        # 20 labels in batches of a quarter: ten epochs of four steps, one of them warm-up
        assert (recipe.train.batch_size, recipe.train.epochs, recipe.optim.warmup_epochs) == (5, 10, 1)
        assert (recipe.task.view.scale, recipe.task.view.shape) == ((0.3, 1.0), (16, 16))
        assert recipe.task.crop_pct == 0.9 and recipe.optim.clip == 1.0
    tasks = {rung: recipe.task for rung, recipe in made.items()}
    assert [(task.way, task.pool) for task in tasks.values()] == [
        ("attentive", "attention"),
        ("lora", "mean"),
        ("differential", "mean"),
        ("full", "mean"),
    ]
    assert [recipe.encoder for recipe in made.values()] == [export] * 3 + [f"scratch:{export}"]
    few = training.recipe_of(climb, "lora", Amount(shots=2), 3)
    assert (few.name, few.task.shots, few.task.fraction) == ("lora_2shots_seed3", 2, 1.0)
    assert few.train.batch_size * 4 <= 2 * len(Opened(FEW).train.classes)
    assert (tasks["lora"].strategy.rank, tasks["layer_decay"].strategy.layer_decay) == (2, 0.75)
    assert [task.strategy.last_drop_path() for task in tasks.values()] == [0.0, 0.0, 0.1, 0.3]


def test_a_rung_learns_from_pictures_without_labels_too(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = [*arguments, "--no-baselines", "--fractions", "0.1", "--seeds", "1", "--set", "unlabelled.look=null"]
    assert main([*few, "--rungs", "unlabelled"]) == 2
    assert "Name them (--unlabelled PATH)" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main([*few, "--rungs", "unlabelled", "--unlabelled", "train"]) == 0
    (step,) = json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))["steps"]
    assert (step["rung"], step["labels"]) == ("unlabelled", 20)
    result = json.loads((tmp_path / "out" / "unlabelled_10pct_seed0" / "result.json").read_text(encoding="utf-8"))
    assert result["steps"] == 3 and result["protocol"]["unlabelled_pictures"] == 200
    # five labelled pictures, a quarter of them, and as many without labels
    assert result["protocol"]["train"]["batch_size"] == 10
    assert "pictures without labels too" in (tmp_path / "out" / "ladder.md").read_text(encoding="utf-8")


def test_pictures_without_labels_may_lie_elsewhere(export: str, tmp_path: Path) -> None:
    for number in range(30):
        Image.fromarray(np.full((16, 16, 3), number, dtype=np.uint8)).save(tmp_path / f"{number}.png")
    how, some = IMAGENET._replace(pool="mean", crop_pct=1.0), [Amount(0.1)]
    climb = rungs.Climb(export, Opened(FEW), (16, 16), how, torch.device("cpu"), tmp_path, some, 1, 40, 64)
    climb = climb._replace(unlabelled=str(tmp_path))
    recipe = training.recipe_of(climb, "unlabelled", some[0], 0)
    # 20 labelled pictures and 30 others, 10 at a time
    assert recipe.train.epochs == 40 / 5 and recipe.task.without_labels is not None
    # a step passes forward and back, and the others forward once more
    assert ahead.pictures(climb, ["unlabelled"])["unlabelled", some[0]] == 40 * 10 * 3.5 + 40


def test_the_time_left_is_by_the_pictures_of_each_step(export: str, tmp_path: Path) -> None:
    few, every, how = Amount(0.1), Amount(1.0), IMAGENET._replace(pool="mean", crop_pct=1.0)
    climb = rungs.Climb(export, Opened(FEW), (16, 16), how, torch.device("cpu"), tmp_path, [few, every], 2, 40, 64)
    costs = ahead.pictures(climb, ["majority", "pixels", "knn", "linear", "lora"])
    # 200 pictures and 40 for tests; a step passes forward and back, as much as three forward
    reading = {("pixels", few): 240, ("knn", few): 240}
    training = {("lora", few): 2 * (3 * 10 * 20 + 40), ("lora", every): 2 * (3 * 10 * 200 + 40)}
    assert {step: cost for step, cost in costs.items() if cost} == reading | training
    assert ahead.seconds_left(costs, {("majority", few): 1.0}) is None
    took = {("majority", few): 1.0, ("pixels", few): 2.4}
    assert ahead.seconds_left(costs, took) == pytest.approx(0.01 * (240 + sum(training.values())))
    took |= {(rung, amount): 0.1 for rung, amount in costs if rung != "lora"} | {("lora", few): 128.0}
    assert ahead.seconds_left(costs, took) == pytest.approx(0.1 * training["lora", every])
    # a finished run is not trained again
    (tmp_path / "lora_10pct_seed1").mkdir()
    (tmp_path / "lora_10pct_seed1" / "result.json").touch()
    assert ahead.pictures(climb, ["lora"])["lora", few] == training["lora", few] / 2


def test_a_rung_of_another_recipe_is_refused(
    arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*arguments, "--rungs", "knn", "attentive", "--no-baselines", "--fractions", "1", "--seeds", "1"]
    assert main(arguments) == 0
    left = {name: (tmp_path / "out" / name).read_bytes() for name in ("ladder.json", "ladder.md", "ladder.png")}
    assert main([*arguments, "--set", "attentive.optim.base_lr=0.5", "knn.k=1"]) == 2
    assert "holds a rung of another recipe" in capsys.readouterr().err
    assert {name: (tmp_path / "out" / name).read_bytes() for name in left} == left


def test_a_probe_can_be_changed_too(arguments: list[str], tmp_path: Path) -> None:
    found = []
    for k in (1, 60):
        assert main([*arguments, "--no-baselines", "--rungs", "knn", "--set", f"knn.k={k}", "knn.temperature=1"]) == 0
        found.append(
            [
                step["mean"]
                for step in json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))["steps"]
            ]
        )
    assert found[0] != found[1]


def test_shots(arguments: list[str], tmp_path: Path) -> None:
    place = arguments.index("--fractions")
    few = [*arguments[:place], *arguments[place + 3 :], "--rungs", "knn", "--no-baselines"]
    assert main([*few, "--shots", "3", "1"]) == 0
    steps = json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))["steps"]
    classes = len(Opened(FEW).train.classes)
    assert [(step["shots"], step["labels"], len(step["accuracies"])) for step in steps] == [
        (1, classes, 2),
        (3, 3 * classes, 2),
    ]
    splits = Splits(Evaluation(pool="mean", crop_pct=1.0), Opened(FEW), torch.device("cpu"))
    bench = Bench(load_encoder(arguments[1]), splits, (16, 16))
    kept = few_shot(bench.features()[0].y.numpy(), 3, 1)
    train, _ = bench.few(1.0, 1, shots=3).features()
    assert torch.equal(train.x, bench.features()[0].x[kept])
    assert "3 labels a class" in (tmp_path / "out" / "ladder.md").read_text(encoding="utf-8")
    assert main(few) == 0  # a hundredth of the labels would leave classes without a picture
    steps = json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))["steps"]
    assert [step["fraction"] for step in steps] == [0.1, 1.0] and np.bincount(Opened(FEW).train.labels).min() in range(
        5, 50
    )
    assert main([*few, "--shots", "1", "--fractions", "1"]) == 0
    steps = json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))["steps"]
    assert [(step["shots"], step["fraction"]) for step in steps] == [(1, 1.0), (None, 1.0)]


def test_a_folder_that_cannot_be_written_is_named(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    for place in ("/proc/ladder", __file__):
        assert main([*arguments, "--rungs", "knn", "--out", place]) == 2
        assert f"cannot write to {place}: " in (said := capsys.readouterr().err) and "another --out" in said


def test_pictures_without_labels_cannot_be_climbed(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def unlabelled(self: Opened, split: Split) -> Source:
        source = self.original(split)
        return source.relabelled(np.full(len(source), -1), source.classes)

    monkeypatch.setattr(Opened, "pictures", unlabelled)
    assert main(arguments) == 2
    assert "evaluation needs labels" in capsys.readouterr().err


def test_a_cnn_has_fewer_rungs(arguments: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    export_encoder(tmp_path / "cnn", EncoderConfig(model="test_resnet").build((16, 16)), IMAGENET, "card", {})
    arguments = [arguments[0], str(tmp_path / "cnn"), *arguments[2:], "--pool", "mean"]
    assert main([*arguments, "--rungs", "knn", "lora"]) == 2
    said = capsys.readouterr().err
    assert (
        "--rungs lora: it needs a transformer's attention" in said
        and "knn, ncm, ranpac, linear, layer_decay, scratch" in said
    )
    fast = ["--fractions", "1", "--seeds", "1", "--set", "pixels.epochs=1", "untrained.epochs=1", "linear.epochs=1"]
    fast.append("ranpac.dim=40")
    assert main([*arguments, *fast]) == 0
    steps = json.loads((tmp_path / "out" / "ladder.json").read_text(encoding="utf-8"))["steps"]
    assert [step["rung"] for step in steps] == [*rungs.BASELINES, *ways.PROBES, "layer_decay", "scratch"]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (["--set", "lorra.seed=1"], "expected RUNG.a.b=value"),
        (["--set", "lora.task.strategy.rnk=1"], "rung lora: command line  task.strategy.rnk: unknown field"),
        (["--set", "knn.kk=1"], "knn.kk: unknown field"),
        (["--set", "knn.kk=1", "--set", "linear.epochs=5"], "knn.kk: unknown field"),
        (["--set", "lora.seed=1", "--rungs", "knn"], "lora is not climbed. Add it to --rungs"),
        (["--shots", "0"], "--shots 0: expected at least 1"),
        (["--shots", "4000"], "4000 shots were asked for"),
        (["--seeds", "0"], "--seeds 0: expected at least 1"),
        (["--batch-size", "0"], "--batch-size 0: expected at least 2"),
        (["--workers", "-1"], "--workers -1: expected at least 0"),
        (["--min-scale", "2"], "--min-scale 2: expected a share above 0"),
        (["--crop-pct", "3", "--rungs", "knn"], "--crop-pct: expected a number greater than 0 and no more than 1"),
        (["--fractions", "0.001"], "a label fraction of 0.001 leaves"),
    ],
)
def test_mistakes_are_named_before_anything_runs(
    arguments: list[str], capsys: pytest.CaptureFixture[str], more: list[str], says: str, tmp_path: Path
) -> None:
    assert main([*arguments, *more]) == 2
    assert says in capsys.readouterr().err and not (tmp_path / "out").exists()
