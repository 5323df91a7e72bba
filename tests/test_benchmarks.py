"""Benchmarks that run and compare like with like. Times are not tested."""

from __future__ import annotations

import gzip
import importlib.util
import io
import itertools
import json
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from support import ROOT

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.pretrain.method import METHODS
from unlabeled.recipe import load
from unlabeled.report import terminal
from unlabeled.stages.pretrain import PretrainRecipe

sys.path.insert(0, str(ROOT / "benchmarks"))
import billion
import colours
import contenders
import continued
import demo
import first_hour
import kinds
import methods
import probe
import remote
import scale
import step
import tuning
import views
import watching

every_method = pytest.mark.parametrize("name", contenders.METHODS)


def test_every_method_is_measured() -> None:
    assert sorted(contenders.METHODS) == METHODS.names()


@every_method
def test_our_steps_run(name: str) -> None:
    method = contenders.comparison(name)
    for contender in (step.OURS, *method.variants):
        assert torch.isfinite(step.make_step(method, contender, depth=1, pictures=2)())


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm`")
@every_method
def test_lightly_does_the_same(name: str) -> None:
    pytest.importorskip("lightly")
    method = contenders.comparison(name)
    if method.lightly is None:
        pytest.skip("lightly has no parts for it")
    assert torch.isfinite(step.make_step(method, step.LIGHTLY, depth=1, pictures=2)())
    loss, gradient = step.disagreement(method)
    assert loss < 1e-6 and gradient < 1e-6


def test_products_of_a_small_network_counted_by_hand() -> None:
    """One block of width 2 over 3 tokens: qkv, proj, two of the MLP's, and attention's two."""
    parts = contenders.parts
    products = [(3, 2, 6), (3, 2, 2), (3, 2, 8), (3, 8, 2), (3, 2, 3), (3, 3, 2)]
    assert parts.blocks(3, 2, 1) * 1e9 == pytest.approx(sum(2 * a * b * c for a, b, c in products))
    assert parts.linear(3, 2, 6, 5) * 1e9 == pytest.approx(2 * 3 * (2 * 6 + 6 * 5))


def test_a_line_of_json_for_every_method(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """lightly takes twice as long as all others."""

    def measured(method: str, names: tuple[str, ...], rounds: int, threads: int) -> dict[str, list[Any]]:
        return {name: [step.Turn(4.0 if "lightly" in name else 2.0, 100.0, 500.0)] * rounds for name in names}

    monkeypatch.setattr(step, "measure", measured)
    monkeypatch.setattr(step, "disagreement", lambda method: (0.0, 0.0))
    step.main(["--json", "--rounds", "2", "--threads", "1"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    for name in contenders.METHODS:
        method = contenders.comparison(name)
        assert result[name]["vs_lightly"] == (2 if method.lightly else None)
        assert result[name]["images_per_s"] == method.batch / 2
        assert result[name]["share_of_peak"] == pytest.approx(method.batch * method.ours.gflop / 200, abs=1e-3)
        assert result[name]["peak_mb"] == 500
    assert result["mae_cross"]["vs_mae"] == 1


def test_methods_in_equal_time_have_their_warmup_share_and_a_row(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """100 images/s after a start of six seconds: 29,400 of 50,000 pictures in 5 minutes."""
    commands: dict[str, dict[str, str]] = {}

    def python(*arguments: str) -> float:
        settings = dict(argument.split("=", 1) for argument in arguments if "=" in argument)
        commands[settings["name"]] = settings
        (tmp_path / "runs" / settings["name"]).mkdir(parents=True, exist_ok=True)
        return 0.1 + float(settings["train.epochs"]) * 50_000 / 6_000

    def probe(run: methods.Run, data: str, untrained: bool, raw: bool) -> dict[str, dict[str, Any]]:
        row = {
            "scores": {score: {"mean": 50.0, "std": None} for score in methods.SCORES},
            "effective_rank": 7.0,
            "dimensions": 8,
        }
        return dict.fromkeys([run.method, *(["raw pixels"] if raw else []), *(["new"] if untrained else [])], row)

    log = [{"step": 117.0, "loss": 1.0}]
    monkeypatch.setattr(methods, "ROOT", tmp_path)
    monkeypatch.setattr(methods, "python", python)
    monkeypatch.setattr(methods, "readings", lambda name: log)
    monkeypatch.setattr(methods, "probe", probe)
    methods.main(["cifar10.tar", "--minutes", "5", "--methods", "mae,dino", "--json"])

    run = commands["mae_5min"]
    assert float(run["train.epochs"]) == pytest.approx(29_400 / 50_000, rel=1e-3)
    recipe = load(PretrainRecipe, methods.file_of("mae"), [])
    assert float(run["optim.warmup_epochs"]) == pytest.approx(
        0.588 * recipe.optim.warmup_epochs / recipe.train.epochs, rel=2e-3
    )
    *lines, last = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[-4:]] == ["mae", "dino", "raw pixels", "new"]
    assert json.loads(last)["dino"]["cpu_minutes"] == pytest.approx(5, rel=1e-3)

    commands.clear()
    methods.main(["cifar10.tar", "--minutes", "5", "--methods", "mae,dino"])
    assert not commands, "runs that are there are not run again"


@pytest.mark.parametrize("name", views.NAMES)
def test_all_contenders_make_the_same_views(name: str, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(256, size=(280, 300, 3), dtype=np.uint8)).save(buffer, "JPEG")
    files = [buffer.getvalue()] * 3
    contenders = views.contenders(name, files, tmp_path, lightly=importlib.util.find_spec("lightly") is not None)
    batch = contenders.pop("ours")(files)
    expected = [tuple(crop.shape) for view in batch.views for crop in view.pixels]
    for other in contenders.values():
        assert [tuple(crop.shape) for crop in other(files)] == expected
        assert all(crop.dtype == torch.float32 for crop in other(files))


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_workers_hold_nothing_per_picture(tmp_path: Path) -> None:
    """100,000 names as Python strings would cost tens of megabytes, as each worker counts references to them."""
    n = 100_000
    assert scale.entries(n, tmp_path)["bytes_per_entry"] < 64
    grown = scale.workers(n, tmp_path)
    assert grown["anonymous_mb"] < 4 and grown["rss_mb"] < 20


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="memory is read from /proc")
def test_a_small_billion(capsys: pytest.CaptureFixture[str]) -> None:
    billion.main(["--rows", "50000", "--shards", "500", "--files", "3", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])
    one, other = found["keyed"], found["window"]
    assert one["shards_in_10000"] == 500 and other["shards_in_10000"] <= 3 * 64
    assert max(one["anonymous_mb"], other["anonymous_mb"], found["start"]["start_mb"]) < 8


def test_a_folder_opens_from_its_kept_index(tmp_path: Path) -> None:
    assert set(scale.files(2500, tmp_path)) == {"make_s", "scan_s", "start_s"}
    assert (tmp_path / "index" / "train.safetensors").exists()


def test_fused_colours_differ_by_hues_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in range(3):
        pixels = np.random.default_rng(number).integers(90, 150, size=(300, 280, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    colours.main([str(tmp_path), "--rounds", "1", "--json"])
    found = json.loads(capsys.readouterr().out.splitlines()[-1])["differences"]
    assert {name for name, levels in found.items() if levels["max"] < 0.01} == {
        f"{what} {factor:g}" for what, factors in colours.STRONGEST.items() for factor in factors if what != "hue"
    }


def test_a_probe_on_cached_features_does_as_one_behind_the_backbone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for split, (label, low) in itertools.product(("train", "test"), (("dark", 0), ("light", 60))):
        folder = tmp_path / "pictures" / split / label
        folder.mkdir(parents=True)
        for number in range(40):
            pixels = random.integers(low, low + 190, size=(8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{number}.png")
    torch.manual_seed(0)
    encoder = EncoderConfig(model="vit_tiny_patch16_224", patch_size=4, width=16, depth=1, heads=2).build((8, 8))
    export_encoder(tmp_path / "export", encoder, IMAGENET, "card", {})

    steps = ("--pictures", "60", "--epochs", "8", "--batch-size", "30", "--threads", "1")
    probe.main([str(tmp_path / "export"), str(tmp_path / "pictures"), *steps, "--json"])
    *_, said, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["cached"]["accuracy"] > 75 and abs(found["difference"]) < 5
    assert f"{found['ratio']:.1f} times as cheap" in said


def test_fine_tuning_takes_turns_with_timm_at_the_same_mathematics(tmp_path: Path) -> None:
    setting = tuning.Setting()
    job = tuning.make_job(tmp_path, 2, setting, depth=1, width=16, heads=2)
    batch, model = tuning.batch_of(job, setting), tuning.timms_model(job, setting)
    before = tuning.loss(model, batch).item()
    turns = tuning.Turns(tuning.bare_step(model, batch, setting), setting.wait)
    tuning.run_engine(job, tmp_path, turns)
    assert len(turns.ours_s) == len(turns.bare_s) == 2
    assert tuning.loss(model, batch).item() != before, "timm's model learns"
    assert tuning.disagreement(job, model, batch, setting) < 1e-6


def test_a_small_copy_is_drawn_evenly(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "all.tar", "w") as tar:
        for split, count in (("train", 9), ("test", 4)):
            for i in range(count):
                Image.new("RGB", (50, 60), (10 * i, 0, 0)).save(tmp_path / "it.png")
                tar.add(tmp_path / "it.png", f"{split}/a/{i}.png")
    continued.small_copy(tmp_path / "all.tar", tmp_path / "few.tar", {"train": 3, "test": 2})
    with tarfile.open(tmp_path / "few.tar") as tar:
        images = {name: Image.open(tar.extractfile(name)) for name in tar.getnames()}  # type: ignore[arg-type]
        reds = [image.getpixel((0, 0))[0] // 10 for image in images.values()]  # type: ignore[index]
    assert len(images) == 5 and continued.pictures_of(tmp_path / "few.tar") == 3
    assert {image.size for image in images.values()} == {(continued.SIDE, continued.SIDE)}
    names = [int(Path(name).stem) for name in images]
    assert reds == names and all(abs(a - b) > 1 for a, b in itertools.pairwise(sorted(names[:3])))


@pytest.mark.parametrize("kind", continued.KINDS.values(), ids=continued.KINDS)
def test_recipes_of_continued_pretraining_are_there(kind: continued.Kind) -> None:
    for name in (kind.source, kind.recipe):
        recipe = load(PretrainRecipe, ROOT / "recipes" / "pretrain" / f"{name}.yaml")
        assert (recipe.init is not None) == (name == kind.recipe)


def test_watching(capsys: pytest.CaptureFixture[str]) -> None:
    watching.main(["--runs", "3", "--steps", "40", "--rounds", "1", "--json"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["runs"] == 3 and len(result["took"]) == 5 and result["mb"]["a page"] > result["mb"]["the list"] > 0


def demo_scores(better: float) -> demo.Scores:
    """Scores of a seed; the pretrained network's are `better` times the untrained one's."""
    untrained = {"kNN": 20.0, "linear": 30.0, "fine-tuned": 25.0}
    pretrained = {column: better * value for column, value in untrained.items()}
    constant = dict.fromkeys(demo.COLUMNS[:2], 10.0)
    return dict(zip(demo.ROWS, ({**constant, "kNN": 16.0}, constant, untrained, pretrained), strict=True))


def test_the_demo_says_in_words_what_pretraining_was_worth() -> None:
    one = terminal.write(demo.report([demo_scores(2.0)], labels=200))
    assert "kNN 2.5 times raw pixels' and 2.0 times the untrained network's" in one
    assert "200 labels 2.0 times from scratch" in one and "seeds" not in one
    several = terminal.write(demo.report([demo_scores(1.0), demo_scores(2.0)], labels=200))
    assert "2 seeds" in several and "30.0 (20.0 to 40.0)" in several
    assert "200 labels 1.5 times from scratch" in several


def test_the_demo_reads_what_its_stages_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ROOT", tmp_path)
    seed = demo.Seed(2)
    names = ("most frequent", "raw pixels", "untrained", "runs/export")
    rows = [
        {"name": name, "scores": {key: {"mean": 10.0 * i + j} for j, key in enumerate(("knn", "linear"))}}
        for i, name in enumerate(names)
    ]
    write(tmp_path / seed.pretrained / "evaluation.json", {"rows": rows})
    for start, accuracy in (("scratch", 20.0), ("pretrained", 35.0)):
        result = {"accuracy": accuracy, "protocol": {"labelled_pictures": 200}}
        write(tmp_path / seed.finetuned(start) / "result.json", result)
    assert seed.scores() == {
        "most frequent class": {"kNN": 0.0, "linear": 1.0},
        "raw pixels": {"kNN": 10.0, "linear": 11.0},
        "untrained": {"kNN": 20.0, "linear": 21.0, "fine-tuned": 20.0},
        "pretrained": {"kNN": 30.0, "linear": 31.0, "fine-tuned": 35.0},
    }
    assert demo.labels(seed) == 200


def write(file: Path, content: dict[str, Any]) -> None:
    """Write JSON into a folder that may be new."""
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content), encoding="utf-8")


@pytest.fixture
def surfaces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tar of two kinds of stripes, 20 pictures to learn from and 4 to test on, as `kinds` writes it."""
    monkeypatch.setattr(kinds, "SPLITS", {"train": 20, "test": 4})
    grey = np.indices((64, 160)).sum(0)
    areas = {"wide": grey % 16 * 15, "narrow": grey % 4 * 60}

    def drawn() -> Iterator[kinds.Picture]:
        for name, area in areas.items():
            halves = ([area[:, :80].astype(np.uint8)], [area[:, 80:].astype(np.uint8)])
            yield from kinds.patches(name, halves, classes=2)

    assert kinds.write(tmp_path / "textures.tar", drawn()) == 24
    return tmp_path


def test_patches_of_a_split_come_from_its_own_areas() -> None:
    area = np.arange(4 * 64 * 200).reshape(4 * 64, 200) % 251
    left, right = area[:, :100].astype(np.uint8), (area[:, 100:] * 0).astype(np.uint8)
    for name, picture in kinds.patches("a", ([left, left], [right]), classes=400):
        assert isinstance(picture, Image.Image) and picture.size == (64, 64)
        assert (np.asarray(picture).max() > 0) == name.startswith("train/a/")


def test_a_volume_is_read_in_its_own_order() -> None:
    values = np.arange(24, dtype="<i2").reshape(2, 3, 4)
    head = bytearray(352)
    head[40:48], head[70:72], head[108:112] = (
        np.array(x, kind).tobytes() for x, kind in (([3, 2, 3, 4], "<i2"), (4, "<i2"), (352, "<f4"))
    )
    assert (kinds.volume(gzip.compress(bytes(head) + values.tobytes(order="F"))) == values).all()


@pytest.mark.parametrize("name", first_hour.CONTENDERS)
def test_contenders_of_the_first_hour_are_recipes(name: str) -> None:
    contender = first_hour.CONTENDERS[name]
    recipe = first_hour.recipe_of(contender)
    sizes = {view.size for view in recipe.views.values()}
    assert contender.size in sizes and sizes <= {contender.size, contender.size // 2}
    assert recipe.method.backbone.model.startswith(("vit", "beit") if contender.network == "vit" else ("test_r", "r"))


def test_a_cell_of_the_first_hour(surfaces: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One contender on one kind; the same command runs nothing again."""
    small = (*first_hour.CONTENDERS["simclr_tiny"].fields, "train.batch_size=4")
    monkeypatch.setattr(first_hour, "CONTENDERS", {"tiny": first_hour.Contender("simclr_resnet_cifar10", small)})
    monkeypatch.setattr(first_hour, "step_seconds", lambda *_: 30.0)
    monkeypatch.setattr(first_hour, "USUAL_SHOTS", (4,))
    monkeypatch.setattr(first_hour, "TUNED_STEPS", (1,))
    monkeypatch.setattr(first_hour, "SEEDS", (0,))
    out = surfaces / "found.json"
    command = [str(surfaces), "--kinds", "textures", "photos", "--budgets", "1", "--contenders", "tiny"]
    for _ in range(2):
        first_hour.main([*command, "--out", str(out), "--runs", str(surfaces / "runs")])
        monkeypatch.setattr(first_hour, "pretrain", None)
    found = json.loads(out.read_text(encoding="utf-8"))
    scratch = "textures/new test_resnet mean 64px"
    assert set(found) == {"machine", "textures/tiny/step", "textures/tiny/1", scratch, "textures/pixels"}
    assert found["textures/tiny/1"]["steps"] == 2 and found["textures/pixels"].keys() == {"knn"}
    assert found[scratch].keys() == {"knn", "linear", "linear_4", "tuned_4"}


def test_a_slow_server_is_measured(capsys: pytest.CaptureFixture[str]) -> None:
    remote.main(["--latency", "0.01", "--tars", "2", "--pictures", "16", "--connections", "4", "--json"])
    rows = {row["what"]: row for row in json.loads(capsys.readouterr().out.splitlines()[-1])["rows"]}
    assert rows["from the disk"]["requests"] == 0 and rows["one at a time"]["requests"] == 32
    assert rows["in the tars' order"]["requests"] <= 4 and rows["index"]["pictures"] == 32
