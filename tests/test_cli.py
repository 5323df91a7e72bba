"""What a person sees who made a mistake: one clear message, exit code 2, no traceback, nothing lost."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from support import ROOT, TINY_FINETUNE, TINY_PRETRAIN, checkpoint_bytes, launch

from unlabeled.__main__ import main as commands
from unlabeled.errors import UserError
from unlabeled.launch.stage import _notes, make_room
from unlabeled.processes import cores
from unlabeled.train.recipe import Run

BAD = """
name: tiny
data: {name: shapes, train_size: -1}
method:
  name: mae
  view: {size: 18, mask: {name: random, ratio: 1.0}}
  encoder: {model: vit_tinny_patch16_224, patch_size: 4}
optim: {name: adamw, base_lr: .nan, lerning_rate: 1}
train: {epochs: 0}
"""


def refuse(capsys: pytest.CaptureFixture[str], stage: str, arguments: list[str]) -> str:
    """Run, expect a refusal, return what was said."""
    assert launch(stage, arguments) == [2]
    said = capsys.readouterr().err
    assert "Traceback" not in said and "error: " in said
    return said


def test_all_mistakes_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bad.yaml").write_text(BAD, encoding="utf-8")
    said = refuse(capsys, "pretrain", [str(tmp_path / "bad.yaml")])
    for place in (
        "data.train_size",
        "mask.ratio",
        "encoder.model",
        "optim.base_lr",
        "optim.lerning_rate",
        "train.epochs",
    ):
        assert place in said
    assert "vit_tiny_patch16_224" in said


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("train.batch_size=43", "a batch of 43 is larger than the data: found 42 pictures"),
        ("data.train_size=1", "a batch of 8 is larger than the data: found 1 pictures"),
        ("method.view.size=18", "patch_size 4 does not divide a crop of 18x18"),
        ("method.view.mask.ratio=0", "mask.ratio"),
        ("method.view.mask.ratio=1", "mask.ratio"),
        (
            "method.encoder.model=resnet50",
            "method.encoder.patch_size: the patches of the network 'resnet50' are its stride, 32",
        ),
        ("run.accumulate=3", "does not divide among 1 processes x 3 accumulation steps"),
        ("init=nowhere", "nowhere is not an export"),
    ],
)
def test_bad_input(tmp_path: Path, capsys: pytest.CaptureFixture[str], override: str, expected: str) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    said = refuse(capsys, "pretrain", [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / 'run'}", override])
    assert expected in said
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(
    ("name", "overrides", "expected"),
    [
        ("simclr", ["method.view.count=1"], "SimCLR needs two whole crops, found count 1"),
        ("dino", ["method.global_2=null"], "method.global_2: expected a mapping, found null"),
        ("mocov3", ["method.local={size: 16}"], "method.local: unknown field"),
        ("mocov3", ["method.second.size=16"], "first and second of one size, found (32, 32) and (16, 16)"),
        (
            "mae",
            ["method.view.mask={name: block}"],
            "found mask block. Use fixed_block, inverse, multi_block or random",
        ),
        ("ibot", ["method.global_1.mask=null"], "one masked crop, found count 1 and mask None"),
        ("ibot", ["method.class_weight=0", "method.patch_weight=0"], "class_weight or patch_weight above 0, found 0"),
        ("ibot", ["method.head.prototypes=1"], "at least 2, found 1"),
        ("ibot", ["method.targets=sinkhorn", "train.batch_size=1"], "found train.batch_size=1. Raise it"),
        ("mocov3", ["train.batch_size=1"], "found train.batch_size=1. Raise it"),
        ("mocov3", ["run.accumulate=2"], "run.accumulate=2 would change its loss"),
        ("dino", ["method.teacher_temperature=0"], "greater than 0, found 0"),
        ("dino", ["method.momentum=1.5"], "from 0 to 1 or null, found 1.5"),
        ("dino", ["optim.warmup_epochs=10"], "warmup_epochs 10.0 is longer than the run of 9.0 epochs"),
        ("dino", ["method.teacher_temperature_epochs=30"], "found 30 epochs, but the run has 9. Lower it"),
        ("dino", ["method.encoder={model: beit_base_patch16_224, positions: relative}"], "Use a vit_*"),
        (
            "simclr",
            ["method.encoder.model=vit_little_patch16_reg4_gap_256"],
            "but it has no class token",
        ),
    ],
)
def test_what_a_method_cannot_do(
    name: str, overrides: list[str], expected: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = str(ROOT / "recipes" / "demo" / f"{name}_shapes.yaml")
    said = refuse(capsys, "pretrain", [recipe, f"run.output={tmp_path / 'run'}", *overrides])
    assert expected in said
    assert not (tmp_path / "run").exists()


def test_the_checkpoint_of_another_method(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mae.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (tmp_path / "simmim.yaml").write_text(
        TINY_PRETRAIN.replace("name: mae", "name: simmim").replace(
            "  decoder: {name: self, width: 16, depth: 1, heads: 2}\n", ""
        ),
        encoding="utf-8",
    )
    output = [f"run.output={tmp_path / 'run'}"]
    assert launch("pretrain", [str(tmp_path / "mae.yaml"), *output]) == [0]
    simmim = str(tmp_path / "simmim.yaml")
    assert "method.name" in refuse(capsys, "pretrain", [simmim, *output])


def test_an_empty_folder_and_a_missing_export(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "pretrain.yaml").write_text(
        TINY_PRETRAIN.replace("{name: shapes, train_size: 42, val_size: 20, size: 16}", "{name: files, path: EMPTY}"),
        encoding="utf-8",
    )
    said = refuse(capsys, "pretrain", [str(tmp_path / "pretrain.yaml"), f"data.path={tmp_path / 'empty'}"])
    assert str(tmp_path / "empty") in said
    (tmp_path / "finetune.yaml").write_text(TINY_FINETUNE.replace("UNSET", str(tmp_path / "nothing")), encoding="utf-8")
    assert "is not an export" in refuse(capsys, "finetune", [str(tmp_path / "finetune.yaml")])


def test_a_recipe_of_the_other_program(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (tmp_path / "finetune.yaml").write_text(TINY_FINETUNE, encoding="utf-8")
    said = refuse(capsys, "pretrain", [str(tmp_path / "finetune.yaml")])
    assert "has `encoder`, so it is a recipe for `unlabeled finetune`; this is `unlabeled pretrain`" in said
    said = refuse(capsys, "finetune", [str(tmp_path / "pretrain.yaml")])
    assert "has `method`, so it is a recipe for `unlabeled pretrain`; this is `unlabeled finetune`" in said


def test_outputs_that_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    (tmp_path / "finetune.yaml").write_text(
        TINY_FINETUNE.replace("UNSET", str(tmp_path / "run" / "export")), encoding="utf-8"
    )
    assert launch("pretrain", [str(tmp_path / "pretrain.yaml"), f"run.output={tmp_path / 'run'}"]) == [0]
    capsys.readouterr()
    said = refuse(capsys, "finetune", [str(tmp_path / "finetune.yaml"), f"run.output={tmp_path / 'run'}"])
    assert "holds a run of another program" in said and "choose another run.output" in said
    # a source of files keeps its index there too
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    files = [f"data={{name: files, path: {tmp_path}, stray: skip}}", "train.batch_size=1"]
    files.append(f"run.output={tmp_path / 'a.png'}")
    assert "cannot write to" in refuse(capsys, "pretrain", [str(tmp_path / "pretrain.yaml"), *files])


def test_what_lies_in_the_way_of_an_output_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "pretrain.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [str(tmp_path / "pretrain.yaml"), f"run.output={tmp_path / 'run'}", "evaluate=null"]
    (tmp_path / "run" / "recipe.yaml").mkdir(parents=True)
    assert "run/recipe.yaml" in (said := refuse(capsys, "pretrain", arguments)) and "Move it away, or mend it" in said
    (tmp_path / "run" / "recipe.yaml").rmdir()
    (tmp_path / "run" / "pictures").touch()
    assert "run/pictures" in refuse(capsys, "pretrain", arguments)
    (tmp_path / "run" / "pictures").unlink()
    assert launch("pretrain", arguments) == [0]


def test_links_of_an_earlier_run_go_and_what_they_lead_to_stays(tmp_path: Path) -> None:
    output, disk = tmp_path / "run", tmp_path / "disk"
    output.mkdir()
    (disk / "step-00000003").mkdir(parents=True)
    (output / "checkpoints").symlink_to(disk)
    (output / "export").symlink_to("unmounted")
    with pytest.raises(UserError, match=r"holds an earlier run \(checkpoints, export\)"):
        make_room(output, force=False)
    make_room(output, force=True)
    assert not list(output.iterdir()) and (disk / "step-00000003").is_dir()


def test_help_may_be_cut_off() -> None:
    command = f"{sys.executable} {ROOT / 'finetune.py'} --help | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: finetune.py") and not done.stderr


def _small_files() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))


def test_a_quota_during_a_save_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / 'run'}"]
    assert launch("pretrain", arguments, kill={"step": 5}) == [-9]
    before = checkpoint_bytes(tmp_path / "run", 3)
    capsys.readouterr()
    assert launch("pretrain", arguments, hook=_small_files) == [2]
    said = capsys.readouterr().err
    assert "cannot save" in said and "step-00000003 is intact" in said and "Traceback" not in said
    assert checkpoint_bytes(tmp_path / "run", 3) == before
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["step-00000003"]


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 600 kB."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("may not mount a file system")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def test_a_full_disk_loses_nothing(tmp_path: Path, disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    arguments = [str(tmp_path / "tiny.yaml"), f"run.output={disk / 'run'}", "run.keep_last=1"]
    assert launch("pretrain", arguments, kill={"step": 5}) == [-9]

    # full in a save
    fill(disk)
    assert "cannot save" in refuse(capsys, "pretrain", arguments)
    (disk / "filling").unlink()
    assert launch("pretrain", arguments) == [0]

    # full where an ended run writes its export again
    before = (disk / "run" / "export" / "model.safetensors").read_bytes()
    fill(disk)
    assert "cannot write" in refuse(capsys, "pretrain", arguments)
    assert (disk / "run" / "export" / "model.safetensors").read_bytes() == before


def fill(disk: Path) -> None:
    """Leave a page or so."""
    with open(disk / "filling", "wb", buffering=0) as file:
        file.write(bytes(shutil.disk_usage(disk).free - 8192))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["evaluate", "e", "--data", "d", "knn.k=[10, 20]"], "come after --set: --set 'knn.k=[10, 20]'"),
        (["ladder", "e", "d", "data.stray=skip"], "come after --set: --set data.stray=skip"),
        (["embed", "e", "d", "o", "--set", "data.label=kind"], "stand without --set: data.label=kind"),
        (["doctor", "r", "--set"], "stand without --set: a.b=value"),
    ],
)
def test_fields_behind_the_wrong_option_are_shown_as_they_should_be(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        commands(arguments)
    assert said in capsys.readouterr().err


def test_more_loader_workers_than_cores_are_said_once_by_the_plan() -> None:
    run = Run(device="cpu", workers=10_000)
    said = dict(_notes(run, "no"))["workers"]
    assert said.startswith("10000 loader workers, ") and f"run.workers={cores()} is enough" in said
    assert "workers" not in dict(_notes(Run(device="cpu", workers=0), "no"))
