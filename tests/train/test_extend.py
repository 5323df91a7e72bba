"""A longer run: bit-equal to one that was that long from the start, or refused with what depends on the length."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import batch_of, build
from PIL import Image
from support import TINY_FINETUNE, TINY_PRETRAIN, checkpoint_bytes

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.launch.program import main
from unlabeled.launch.resume import length, obstacles
from unlabeled.pretrain.method import METHODS, Progress
from unlabeled.recipe import load, parse
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.checkpoint import Checkpoints

PER_EPOCH = 5
LEVEL = ("optim.schedule.name=constant", "evaluate=null")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Recipes; a run of 2 epochs, ended; and one of 3."""
    home = tmp_path_factory.mktemp("extend")
    (home / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert pretrain(home, "short", "train.epochs=2") == 0
    assert pretrain(home, "long", "train.epochs=3") == 0
    return home


def pretrain(home: Path, output: str, *more: str, recipe: Path | None = None) -> int:
    first = [str(recipe)] if recipe else [str(home / "pretrain.yaml"), *LEVEL]
    return main("pretrain", [*first, f"run.output={home / output}", *more])


@pytest.fixture
def ended(home: Path, request: pytest.FixtureRequest) -> str:
    """A copy of the short run, by the name of its folder."""
    name = f"copy-{request.node.name}".replace("[", "-").rstrip("]")
    shutil.copytree(home / "short", home / name)
    return name


def state(home: Path, output: str, step: int) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((home / output / "checkpoints" / f"step-{step:08d}" / "state.json").read_text())
    return found


def test_it_goes_on_as_if_it_had_always_been_that_long(
    home: Path, ended: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert pretrain(home, ended, "train.epochs=2", "--extend", "1") == 0
    assert "long already" not in capsys.readouterr().err
    assert checkpoint_bytes(home / ended, 15) == checkpoint_bytes(home / "long", 15)
    for file in ("model.safetensors", "config.json", "heads.safetensors"):
        assert (home / ended / "export" / file).read_bytes() == (home / "long" / "export" / file).read_bytes()

    # what it leaves agrees, so the same command and the recipe alone find it done; and again further
    kept = load(PretrainRecipe, home / ended / "recipe.yaml")
    assert kept.train.epochs == 3 and state(home, ended, 15)["lengths"] == [2.0]
    assert pretrain(home, ended, "train.epochs=2", "--extend", "1") == 0
    assert "has been 3 epochs long already: --extend counts from the recipe's 2." in capsys.readouterr().err
    assert pretrain(home, ended, "train.epochs=2") == 0
    assert not (home / ended / "checkpoints" / "step-00000016").exists()
    assert pretrain(home, ended, "--extend", "0.4", recipe=home / ended / "recipe.yaml") == 0
    assert state(home, ended, 17)["lengths"] == [2.0, 3.0]


def test_stopped_on_the_way_it_goes_on_to_the_longer_end(
    home: Path, ended: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from unlabeled.train.engine import Engine

    save = Engine.save

    def break_off(engine: Any) -> None:
        save(engine)
        if engine.step == 12:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Engine, "save", break_off)
        with pytest.raises(KeyboardInterrupt):
            pretrain(home, ended, "train.epochs=2", "--extend", "1")
    assert pretrain(home, ended, "train.epochs=2") == 0
    assert checkpoint_bytes(home / ended, 15) == checkpoint_bytes(home / "long", 15)


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (("train.epochs=3",), "leave train.epochs at 2 and add --extend 1"),
        (("train.epochs=1",), "holds a run of 2 epochs, and 1 are asked for"),
        (("train.epochs=1", "--extend", "0.6"), "--extend counts from the recipe's 1 epochs"),
        (("train.epochs=2", "seed=1", "--extend", "1"), "holds a run of another recipe:"),
    ],
)
def test_what_is_refused_says_what_to_do(
    home: Path, ended: str, capsys: pytest.CaptureFixture[str], more: tuple[str, ...], says: str
) -> None:
    assert pretrain(home, ended, *more) == 2
    assert says in capsys.readouterr().err
    assert not (home / ended / "checkpoints" / "step-00000011").exists()


def test_a_changed_data_set_is_told_in_numbers_of_pictures(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def draw(count: int, side: int = 16) -> None:
        for i in range(count):
            Image.new("RGB", (side, side), (i, 2 * i, 3 * i)).save(home / "pictures" / f"{i}.png")

    (home / "pictures").mkdir()
    draw(8)
    data = (f"data={{name: files, path: {home / 'pictures'}}}", "train.epochs=1", "optim.warmup_epochs=0")
    assert pretrain(home, "files", *data) == 0
    draw(11)
    assert pretrain(home, "files", *data) == 2
    said = capsys.readouterr().err
    assert "holds a run on 8 pictures, and there are 11 now" in said
    assert f"init={home / 'files'}/export run.output=OTHER" in said
    for i in range(8, 11):
        (home / "pictures" / f"{i}.png").unlink()
    draw(8, side=20)
    assert pretrain(home, "files", *data) == 2
    assert "holds a run on 8 other pictures: names, sizes or labels have changed" in capsys.readouterr().err


def test_schedules_that_end_with_the_run_are_refused_with_their_reason(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    falls = "optim.schedule.name=cosine"
    assert pretrain(home, "cosine", falls, "train.epochs=1") == 0
    assert pretrain(home, "cosine", falls, "train.epochs=1", "--extend", "1") == 2
    said = capsys.readouterr().err
    assert "optim.schedule cosine: the learning rate comes down over the whole run" in said
    assert f"init={home / 'cosine'}/export run.output=OTHER" in said


def test_a_watched_fine_tuning_goes_on_as_if_it_had_not_looked_at_its_end(home: Path) -> None:
    torch.manual_seed(0)
    tiny: Any = {"patch_size": 4, "width": 16, "depth": 1, "heads": 2}
    encoder = EncoderConfig(model="vit_tiny_patch16_224", **tiny).build((16, 16))
    export_encoder(home / "encoder", encoder, IMAGENET, "# card\n", {})
    (home / "finetune.yaml").write_text(TINY_FINETUNE.replace("UNSET", str(home / "encoder")), encoding="utf-8")
    watched = "watch={every: 2, hold_out: 0.3, min_delta: 90}"

    def finetune(output: str, *more: str) -> int:
        level = ("optim.schedule={name: plateau, patience: 1, factor: 0.5}", "optim.warmup_epochs=0")
        arguments = [str(home / "finetune.yaml"), watched, *level, f"run.output={home / output}", *more]
        return main("finetune", arguments)

    assert finetune("watched-long", "train.epochs=2") == 0
    assert finetune("watched", "train.epochs=1") == 0
    at_the_end = state(home, "watched", 3)["watch"]
    assert at_the_end["before"]["since_best"] < at_the_end["since_best"], "three steps, a look every two"
    assert finetune("watched", "train.epochs=1", "--extend", "1") == 0
    assert checkpoint_bytes(home / "watched", 6) == checkpoint_bytes(home / "watched-long", 6)
    assert state(home, "watched", 6)["watch"] == state(home, "watched-long", 6)["watch"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--extend", "0"], "expected a number of epochs above 0, found '0'"),
        (["--extend", "nan"], "found 'nan'"),
        (["--extend", "more"], "found 'more'"),
        (["--extend", "1", "--fresh"], "choose one"),
    ],
)
def test_epochs_that_are_none(home: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], says: str) -> None:
    with pytest.raises(SystemExit) as ended:
        pretrain(home, "short", *arguments)
    assert ended.value.code == 2 and says in capsys.readouterr().err


def test_a_length_is_read_from_a_good_checkpoint_only(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "checkpoints", 100, None, print)
    for step, epochs in ((3, 5.0), (6, 7.0)):
        state = {"step": step, "lengths": [2.0], "recipe": {"train": {"epochs": epochs}}}
        file = checkpoints.save(step, {}, state) / "state.json"
    assert length(tmp_path, 2.0, None) == 7 and length(tmp_path, 4.0, None) == 4
    file.write_text(file.read_text(encoding="utf-8").replace("7.0", "9.0"), encoding="utf-8")
    assert length(tmp_path, 2.0, None) == 5
    file.unlink()
    os.mkfifo(file)  # which would never end
    assert length(tmp_path, 2.0, None) == 5
    checkpoints.save(9, {}, {**state, "recipe": {"train": {"epochs": 10**400}}, "step": 9})
    assert length(tmp_path, 2.0, None) == 5


def test_no_run_cannot_be_extended(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert pretrain(home, "none", "--extend", "1") == 2
    assert "holds no run to go on with" in capsys.readouterr().err


# ---------------------------------------------------------------- what depends on the length


def pretraining(method: str, *more: str) -> Any:
    text = TINY_PRETRAIN.split("method:")[0] + f"method: {{name: {method}}}\noptim: {{name: adamw}}\n"
    return parse(PretrainRecipe, text, ["optim.schedule.name=constant", "train.epochs=4", *more])


def reasons(recipe: Any, epochs: float = 6, step: int = 4 * PER_EPOCH, **noted: Any) -> list[str]:
    after = recipe.model_copy(update={"train": recipe.train.model_copy(update={"epochs": epochs})})
    watch = {"since_best": 0, "best_step": 5, **noted} if getattr(recipe, "watch", None) else None
    return [reason.split(":")[0] for reason in obstacles(recipe, after, PER_EPOCH, {"step": step, "watch": watch})]


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ([], []),
        (["optim.schedule.name=table"], ["optim.schedule table"]),
        (["optim.schedule.name=timm_cosine"], ["optim.schedule timm_cosine"]),
        (["optim.schedule={name: steps, milestones: [2.5]}"], []),
        (["optim.schedule={name: steps, milestones: [2.5]}", "train.epochs=3.9"], ["optim.schedule steps"]),
        (["optim.weight_decay_end=0.1"], ["optim.weight_decay_end"]),
        (["optim.weight_decay_end=0.05"], []),
        (["train.epochs=3.9"], []),
    ],
)
def test_of_rates(more: list[str], expected: list[str]) -> None:
    assert reasons(pretraining("mae", *more)) == expected


def test_of_a_teacher() -> None:
    assert reasons(pretraining("mocov3")) == ["method.momentum"]
    assert reasons(pretraining("dino", "method.momentum=0.99")) == [
        "method.momentum",
        "method.teacher_temperature_epochs",
        "method.frozen_epochs",
    ]
    pinned = ["method.momentum=1", "method.teacher_temperature_epochs=1", "method.frozen_epochs=0"]
    assert reasons(pretraining("dino", *pinned)) == []


def test_of_a_watched_score() -> None:
    def watched(*more: str) -> Any:
        return parse(FinetuneRecipe, TINY_FINETUNE, ["optim.schedule.name=plateau", "train.epochs=4", *more])

    assert reasons(watched("watch={every: 5}")) == []
    assert reasons(watched("watch={every: 3}")) == []
    assert reasons(watched("watch={every: 3}"), best_step=20) == ["watch.keep"]
    assert reasons(watched("watch={every: 3, keep: last}"), best_step=20) == []
    assert reasons(watched("watch={every: 5}"), best_step=20) == []
    assert reasons(watched("watch={every: 5, patience: 2}"), since_best=2) == ["watch.patience"]
    out_of_turn = {"since_best": 2, "before": {"since_best": 1, "best_step": 5}}
    assert reasons(watched("watch={every: 3, patience: 2}"), **out_of_turn) == []


@pytest.mark.parametrize("name", METHODS.names())
def test_methods_say_what_goes_on_over_the_whole_run(name: str) -> None:
    """A step of a method that declares no `ends` is the same whatever the length; others' teachers differ."""
    after = []
    for epochs in (4.0, 9.0):
        method, progress = build(name), Progress(3, round(5 * epochs), 0.6, epochs)
        torch.manual_seed(1)
        loss = method(batch_of(name), progress).loss
        loss.backward()
        with torch.no_grad():
            for parameter in method.parameters():
                if parameter.grad is not None:
                    parameter.sub_(parameter.grad)
        method.after_step(progress)
        after.append({"loss": loss.detach(), **method.state_dict()})
    same = all(torch.equal(tensor, after[1][key]) for key, tensor in after[0].items())
    assert same == (not METHODS.kind(name).ends)
