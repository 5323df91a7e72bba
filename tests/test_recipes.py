"""Every recipe that we ship reads, and says what it costs; every method keeps its contract."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.data.batch.sampler import steps_per_epoch, total_steps
from unlabeled.data.view.mixing import Mixing
from unlabeled.errors import UserError
from unlabeled.launch.plan import _rate as rate
from unlabeled.launch.program import main
from unlabeled.pretrain.method import METHODS
from unlabeled.recipe import describe, dump, load, parse
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.incremental import IncrementalRecipe
from unlabeled.stages.pretrain import PretrainRecipe

RECIPES = sorted((Path(__file__).parents[1] / "recipes").rglob("*.yaml"))


def schema_of(file: Path) -> type:
    text = file.read_text(encoding="utf-8")
    return IncrementalRecipe if "\ntasks:" in text else FinetuneRecipe if "\ntask:" in text else PretrainRecipe


@pytest.mark.parametrize("file", RECIPES, ids=lambda file: file.stem)
def test_recipe_reads_and_has_a_header(file: Path) -> None:
    schema = schema_of(file)
    recipe = load(schema, file)
    assert parse(schema, dump(recipe)) == recipe
    header = [line for line in file.read_text(encoding="utf-8").splitlines() if line.startswith("#")]
    for topic in ("command", "cost", "expect", "source"):
        assert any(line.startswith(f"#   {topic} ") for line in header), f"no {topic} in the header"


@pytest.mark.parametrize("name", METHODS.names())
def test_a_method_is_found_by_its_file_name(name: str) -> None:
    config = METHODS.kind(name)()
    assert config.name == name
    assert config.views and config.encoder.patch_size


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("pretrain/mae_vitb16_in1k", 2.4e-3),
        ("pretrain/mae_vitl16_in1k", 2.4e-3),
        ("pretrain/simmim_vitb_in1k", 4e-4),
        ("pretrain/simmim_swinb_in1k", 8e-4),
        ("pretrain/ijepa_vith14_in1k", 1e-3),
        ("pretrain/spark_resnet50_in1k", 3.2e-3),
        ("pretrain/mocov3_vits16_in1k", 2.4e-3),
        ("pretrain/mocov3_vitb16_in1k", 2.4e-3),
        ("pretrain/barlowtwins_resnet50_in1k", 1.6),
        ("pretrain/vicreg_resnet50_in1k", 1.6),
        ("pretrain/byol_resnet50_in1k", 3.2),
        ("pretrain/simsiam_resnet50_in1k", 0.1),
        ("pretrain/dino_vits16_in1k", 2e-3),
        ("pretrain/dino_vitb16_in1k", 3e-3),
        ("pretrain/ibot_vits16_in1k", 2e-3),
        ("pretrain/ibot_vitb16_in1k", 3e-3),
        ("pretrain/dinov2_vitl16_in1k", 4e-3 * 2**0.5),
        ("pretrain/dinov3_vitl16_in1k", 4e-3 * 2**0.5),
        ("pretrain/simdino_vitb16_in1k", 1e-3),
        ("pretrain/swav_resnet50_in1k", 4.8),
        ("pretrain/swav_resnet50_1gpu", 0.6),
        ("pretrain/msn_vits16_in1k", 1e-3),
        ("pretrain/distill_vits16_in1k", 5e-4),
        ("pretrain/distill_vits16_1gpu", 5e-4 / 6**0.5),
        ("pretrain/distill_resnet50_in1k", 1.8),
        ("finetune/mae_vitb16_in1k", 2e-3),
        ("finetune/mae_vitb16_linear_in1k", 6.4),
        ("finetune/mocov3_vitb16_linear_in1k", 12),
        ("finetune/dino_vits16_linear_in1k", 4e-3),
        ("finetune/ibot_vits16_linear_in1k", 4),
    ],
)
def test_the_papers_rates(name: str, peak: float) -> None:
    path = next(recipe for recipe in RECIPES if str(recipe).endswith(f"{name}.yaml"))
    recipe = load(schema_of(path), path)
    assert recipe.optim.peak(recipe.train.batch_size) == pytest.approx(peak)


@pytest.mark.parametrize(
    ("name", "rates", "features", "steps"),
    [
        ("dino_vits16", [1], {("cls", 4)}, 125_100),
        ("dino_vitb16", [1], {("cls_mean", 1)}, 125_100),
        ("ibot_vits16", [n / 10**p for p in (4, 3, 2, 1, 0) for n in range(1, 10)], {("cls", 4)}, 125_100),
        ("ibot_vitb16", [n / 10**p for p in (4, 3, 2, 1, 0) for n in range(1, 10)], {("cls_mean", 1)}, 125_100),
        (
            "dinov2_vitl14",
            [1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 2e-3, 5e-3, 0.01, 0.02, 0.05, 0.1],
            {("cls", 1), ("cls", 4), ("cls_mean", 1), ("cls_mean", 4)},
            12_500,
        ),
    ],
)
def test_the_papers_heads(name: str, rates: list[float], features: set[tuple[str, int]], steps: int) -> None:
    file = next(recipe for recipe in RECIPES if recipe.stem == f"{name}_linear_in1k")
    recipe = load(FinetuneRecipe, file)
    heads = recipe.task.heads()
    assert {head.kind for head in heads} == features and len(heads) == len(features) * len(rates)
    assert [head.rate for head in heads[: len(rates)]] == pytest.approx(rates)
    images = 1_281_167
    assert total_steps(recipe.train.epochs, steps_per_epoch(images, recipe.train.batch_size)) == steps


def stand_in(channels: int, folder: Path) -> str:
    """5000 pictures of as many channels."""
    if channels == 3:
        return "data={name: shapes, train_size: 5000, size: 32}"
    np.save(folder / "x.npy", np.zeros((5000, 4, 4, channels), np.uint8))
    return f"data={{name: arrays, train: {folder}/x.npy, mean: {[0.5] * channels}, std: {[0.5] * channels}}}"


@pytest.mark.parametrize(
    "file",
    [file for file in RECIPES if file.parent.name in ("pretrain", "demo") and "finetune" not in file.stem],
    ids=lambda file: file.stem,
)
def test_every_pretraining_recipe_has_a_plan(
    file: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("unlabeled.launch.forecast.SECONDS", 0.01)
    if file.parent.name != "demo":  # of large networks the work takes seconds to count
        monkeypatch.setattr("unlabeled.launch.stage._time", lambda *_: ("time", ""))
    recipe = load(PretrainRecipe, file)
    data = stand_in(recipe.data.channels, tmp_path)
    run = [f"run.output={tmp_path / 'run'}", "run.device=cpu", "evaluate=null", "train.precision=no"]
    if recipe.init is not None:  # weights that are elsewhere
        small = EncoderConfig(model="vit_tiny_patch16_224", patch_size=16, width=16, depth=2, heads=2)
        export_encoder(tmp_path / "export", small.build(recipe.method.views[0].shape), IMAGENET, "# card\n", {})
        run += [f"init={tmp_path / 'export'}"]
    if recipe.method.name == "distill" and file.parent.name != "demo":
        run += ["method.teacher=scratch:timm:test_vit"]
    assert main("pretrain", [str(file), data, *run, "--dry-run"]) == 0
    said = capsys.readouterr().err
    for topic in ("steps", "lr", "memory", "encoder", "time", *(["init", "continued"] if recipe.init else [])):
        assert f"\n  {topic} " in said
    assert "\n  caution " not in said, "a recipe of ours would ruin what it begins with"
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("file", [f for f in RECIPES if f.parent.name == "finetune"], ids=lambda file: file.stem)
def test_recipes_leave_no_labelled_picture_out_unasked(file: Path) -> None:
    """Whoever names pictures of his own wants them all learnt from; demonstrations draw theirs."""
    task = load(FinetuneRecipe, file).task
    few = {"shots"} if task.without_labels is not None else set()  # the others are learnt from without their labels
    assert task.chosen().keys() <= {"repeated", "drawn", *few}


def switched(file: str, *overrides: str) -> Any:
    path = Path(__file__).parents[1] / "recipes" / f"{file}.yaml"
    return load(schema_of(path), path, overrides)


def test_another_kind_of_section_needs_one_override() -> None:
    """Over recipes that set fields which only the old kind has."""
    before = switched("pretrain/simmim_vitb_in1k")
    assert before.optim.schedule.name == "steps"
    assert switched("pretrain/simmim_vitb_in1k", "optim.schedule.name=constant").optim.schedule.name == "constant"
    level = switched("pretrain/mae_vitb16_in1k", "optim.schedule.name=constant")
    assert rate(level).endswith("warm-up 40 epochs, constant")
    sgd = switched("pretrain/mae_vitb16_in1k", "optim.name=sgd").optim
    assert sgd.name == "sgd" and sgd.base_lr == switched("pretrain/mae_vitb16_in1k").optim.base_lr
    data = switched(
        "pretrain/mae_vitb16_in1k", "data.name=huggingface", "data.path=uoft-cs/cifar10", "data.val=null"
    ).data
    assert data.name == "huggingface" and data.path == "uoft-cs/cifar10"
    cross = switched(
        "pretrain/mae_vitb16_in1k", "method.decoder.name=cross_light", "method.decoder.share=0.5"
    ).method.decoder
    assert (cross.name, cross.share, cross.width) == ("cross_light", 0.5, 512)
    assert switched("pretrain/mae_vitb16_in1k", "method.name=simmim").method.encoder.model == "vit_base_patch16_224"
    told = r"^command line  method.decoder.name: expected one of: cross, cross_light, self, found 'l[^\n]*$"
    with pytest.raises(UserError, match=told):
        switched("pretrain/mae_vitb16_in1k", "method.decoder.name=linear")


def test_null_turns_mixing_off_and_scores_at_the_end_alone() -> None:
    assert switched("finetune/full_cifar10", "task.mixing=null").task.mixing == Mixing()
    assert switched("finetune/full_cifar10", "evaluate=null").evaluate.every is None


def test_an_empty_split_says_what_it_became_and_how_to_mean_the_folder_itself() -> None:
    with pytest.raises(UserError) as caught:
        switched("finetune/full_cifar10", "data.train=")
    message = str(caught.value)
    assert "data.train: expected text, found null, which an empty value is" in message
    assert "data.train='\"\"'" in message and "'' or . = all of data.path" in message
    for everything in (".", '""'):
        assert switched("finetune/full_cifar10", f"data.train={everything}", "data.val=null").data.train == ""
    with pytest.raises(
        UserError, match=r"name: expected text like .*, found 2024\. Quotes make it text: name='\"2024\"'"
    ):
        switched("finetune/full_cifar10", "name=2024")
    assert switched("finetune/full_cifar10", 'name="2024"').name == "2024"


@pytest.mark.parametrize(
    ("section", "begins", "has", "lacks"),
    [
        ("optim.schedule", "optim.schedule  mapping with name: constant, cosine", "name: constant", "base_lr"),
        ("method.ibot.head", "method.head\n", "method.head.prototypes  integer >= 2 = 8192", "teacher_shares"),
        ("method.mae", "method.view\n", "method.decoder.width", "global_1"),
        ("method.head", "method.name=dino:\nmethod.head", "method.name=ibot:\nmethod.head", "global_1"),
        ("run.workers", "run.workers  integer >= 0", "processes that make samples", "accumulate"),
        ("data.sources.0.path", "data.sources.N.name=coco:\n", "data.sources.N.path", "mean"),
        ("evaluate", "evaluate  mapping or null = null", "evaluate.every", "momentum"),
    ],
)
def test_help_of_a_section(section: str, begins: str, has: str, lacks: str) -> None:
    text = describe(PretrainRecipe, section)
    assert text.startswith(begins) and has in text and lacks not in text


def test_help_of_no_section_suggests_one(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main("pretrain", ["--help", "optim.shedule"])
    assert ended.value.code == 2 and "Did you mean 'optim.schedule'?" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main("pretrain", ["--help", "x" * 5000])
    assert ended.value.code == 2 and "recipes have no such field" in capsys.readouterr().err
    with pytest.raises(SystemExit) as ended:
        main("pretrain", ["--help", str(RECIPES[0])])
    assert ended.value.code == 0 and capsys.readouterr().out.startswith("usage: unlabeled pretrain")
