"""The commands of every tutorial, as they stand on the page, in an empty folder with small drawn pictures.

What a page calls its pictures is drawn before (`PICTURES`), and commands get the words of `SMALLER` behind them.
Blocks of `sh` are run in order; other blocks only show something.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import commanded
import numpy as np
import pytest
import tifffile
from PIL import Image

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = {page.stem: page for page in [DOCS / "first_hour.md", *sorted((DOCS / "tutorials").glob("*.md"))]}
TINY_VIT = "method.encoder.width=32 method.encoder.depth=1 method.encoder.heads=2"
CPU = "run.device=cpu run.workers=0 run.compile=false train.precision=no train.epochs=1 train.batch_size=8"
CNN = "method.encoder.model=test_resnet method.view.size=32"
MAE = f"{CPU} {TINY_VIT} method.decoder.width=32 method.decoder.depth=1 method.decoder.heads=2 optim.warmup_epochs=0"
TUNED = f"{CPU} task.view.size=32 optim.warmup_epochs=0 look=null"
DINO = (
    f"{CPU} {TINY_VIT} method.global_1.size=32 method.global_2.size=32 method.local.size=16 method.local.count=2 "
    "method.head={prototypes: 64, hidden: 32, bottleneck: 16, layers: 3} optim.warmup_epochs=0"
)

# (what a command looks like, the words that it gets behind it); every row that fits is used
SMALLER = [
    (r"(pretrain|doctor|prepare) (photos|defects|medical_grey)_cpu\b", f"{CPU} {CNN} optim.warmup_epochs=0"),
    (r"(pretrain|doctor|prepare) mae_vits16_\w*1gpu\b", f"{MAE} method.view.size=32"),
    (r"pretrain dino_vits16_1gpu\b", DINO),
    (r"finetune (photos_few_labels|defects_few_labels|retrain_cifar10)\b", TUNED),
    (r"finetune vits16_1gpu\b", f"{TUNED} task.view.rand_augment=null task.strategy.drop_path=0"),
    (
        r"finetune detect_cpu\b",
        f"{CPU} task.view.size=64 task.detector.channels=16 task.detector.width=32 optim.warmup_epochs=0",
    ),
    (r"finetune segment_cpu\b", f"{TUNED} task.decoder.channels=8 task.decoder.width=8"),
    (r"^unlabeled start\b", "--minutes 1"),
    (r"pretrain recipe.yaml", "train.epochs=1 optim.warmup_epochs=0 method.view.size=32"),
    (r"^unlabeled doctor\b", "--pictures 12 --seconds 0.2"),
    (r"^unlabeled ladder\b", "--steps 4 --batch-size 4 --seeds 1 --rungs knn linear layer_decay"),
    (r"^unlabeled ladder .*--unlabelled\b", "--rungs unlabelled --no-baselines"),
    (r"^unlabeled evaluate\b", "--no-baselines"),
    (r"^unlabeled discover\b", "--starts 2 --workers 0"),
    (r"^unlabeled look\b", "--map pca --examples 2 --queries 2"),
]
INSTEAD = {
    "pip install unlabeled": "true",  # what is tested is installed
    "unlabeled watch runs": "timeout 8 unlabeled watch runs || [ $? = 124 ]",  # it serves until it is ended
    "--nproc_per_node 8": "--nproc_per_node 2",
    "train.batch_size=512": "",
    "--shots 5 10 --seeds 3": "--shots 3",
}

Draw = Callable[[Path, np.random.Generator], None]


def drawn(rng: np.random.Generator, bands: int = 3, side: int = 40) -> np.ndarray:
    """A picture [side, side, bands] of stripes, 0 to 255."""
    x, y = np.meshgrid(np.arange(side), np.arange(side))
    phase = rng.uniform(0.1, 0.6, 2) @ np.stack([x, y]).reshape(2, -1)
    stripes = 90 + 80 * np.sin(phase.reshape(side, side, 1) + rng.uniform(0, 6, bands))
    return np.clip(stripes + rng.normal(0, 8, stripes.shape), 0, 255)


def photos(folder: Path, rng: np.random.Generator, count: int = 24) -> None:
    folder.mkdir(parents=True)
    for number in range(count):
        Image.fromarray(drawn(rng).astype(np.uint8)).save(folder / f"IMG_{number:04}.jpg")


def labelled(folder: Path, rng: np.random.Generator, draw: Draw = photos) -> None:
    for split in ("train", "val"):
        for name in ("first", "second"):
            draw(folder / split / name, rng)


def tiles(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for number in range(24):
        values = (drawn(rng, bands=6) * 30).astype(np.uint16)
        tifffile.imwrite(folder / f"T32UNA_{number:04}.tif", values, planarconfig="contig")


def scans(folder: Path, rng: np.random.Generator) -> None:
    folder.mkdir(parents=True)
    for number in range(24):
        values = (drawn(rng, bands=1)[..., 0] * 16).astype(np.uint16)
        Image.fromarray(values).save(folder / f"patient{number // 2:04}_{'ab'[number % 2]}.png")


def labelled_tiles(folder: Path, rng: np.random.Generator) -> None:
    labelled(folder, rng, tiles)


def labelled_scans(folder: Path, rng: np.random.Generator) -> None:
    labelled(folder, rng, scans)


def classes(count: int) -> Draw:
    """So many class folders."""

    def draw(folder: Path, rng: np.random.Generator) -> None:
        for number in range(count):
            photos(folder / f"class_{number}", rng, 6)

    return draw


def many(folder: Path, rng: np.random.Generator) -> None:
    for split in ("train", "val"):
        classes(4)(folder / split, rng)


def boxed(folder: Path, rng: np.random.Generator) -> None:
    for split in ("train", "val"):
        photos(folder / "images" / split, rng, 12)
        (folder / "labels" / split).mkdir(parents=True)
        for picture in (folder / "images" / split).iterdir():
            x, y = rng.uniform(0.3, 0.7, 2)
            (folder / "labels" / split / f"{picture.stem}.txt").write_text(f"{rng.integers(2)} {x} {y} 0.4 0.4\n")
    (folder / "data.yaml").write_text("names: [screw, nut]\n")


def masked(folder: Path, rng: np.random.Generator) -> None:
    for split in ("train", "val"):
        photos(folder / split / "a", rng, 12)
        (folder / f"{split}_masks" / "a").mkdir(parents=True)
        for picture in (folder / split / "a").iterdir():
            mask = np.zeros((40, 40), np.uint8)
            mask[rng.integers(20) :, rng.integers(20) :] = 1
            Image.fromarray(mask).save(folder / f"{split}_masks" / "a" / f"{picture.stem}.png")


# page -> what it calls its pictures -> how they are drawn
PICTURES: dict[str, dict[str, Draw]] = {
    "first_hour": {"photos": photos, "labelled": labelled},
    "photos_on_a_laptop": {"photos": photos},
    "satellite": {"tiles": tiles, "labelled": labelled_tiles},
    "medical": {"scans": scans, "labelled": labelled_scans},
    "defects": {"parts": photos, "labelled": labelled},
    "continued": {"last_year": photos, "this_year": photos, "labelled": labelled},
    "long_tails": {"photos": photos, "labelled": labelled},
    "few_labels": {"photos": photos, "labelled": labelled},
    "new_classes": {"photos": photos, "labelled": classes(4), "checked": classes(6)},
    "unknown": {"photos": photos, "labelled": labelled, "strange": photos, "many": many},
    "boxes": {"photos": photos, "boxes": boxed},
    "masks": {"photos": photos, "masks": masked},
    "one_gpu": {"pictures": photos, "labelled": labelled},
    "eight_gpus": {"pictures": photos, "labelled": labelled},
    "slurm": {"pictures": photos, "labelled": labelled},
}


def commands(text: str) -> Iterator[str]:
    """The commands of a page: the lines of its `sh` blocks, those that end in a backslash joined."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL):
        yield from (line for line in block.replace("\\\n", " ").splitlines() if line.strip())


def smaller(command: str) -> str:
    """A command with the words of `SMALLER`."""
    for old, new in INSTEAD.items():
        command = command.replace(old, new)
    rows = [more for pattern, more in SMALLER if re.search(pattern, command)]
    more = " ".join(shlex.quote(word) for row in rows for word in re.findall(r"\S+=\{[^}]*\}|\S+", row))
    return f"{command} {more}"


@pytest.fixture
def shell(tmp_path: Path) -> dict[str, str]:
    """The environment of a shell whose `unlabeled` is this interpreter's, and whose `sbatch` runs here at once."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "sbatch").write_text(
        "#!/usr/bin/env bash\nset -eu\nwhile [[ $1 == --* ]]; do shift; done\n"
        f'bash -n "{ROOT}/$1"; shift\nexec "${{@//%a/0}}"\n'
    )
    (tools / "sbatch").chmod(0o755)
    path = os.pathsep.join([str(tools), str(Path(sys.executable).parent), os.environ["PATH"]])
    return {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1", "HOME": str(tmp_path), "HF_HUB_OFFLINE": "1"}


def run(command: str, folder: Path, shell: dict[str, str]) -> tuple[int | None, str]:
    """(exit code, output) of a command: one of ours alone without importing all anew, any other by bash."""
    words = shlex.split(command, comments=True)
    if words[0] == "unlabeled" and not {"|", "||", ">", "&&"} & set(words):
        return commanded.command(words[1:], folder)
    done = subprocess.run(["bash", "-c", command], cwd=folder, env=shell, capture_output=True, text=True, timeout=500)
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize("name", PAGES)
def test_commands_of_a_tutorial_run(name: str, tmp_path: Path, shell: dict[str, str]) -> None:
    work, rng = tmp_path / "empty", np.random.default_rng(0)
    work.mkdir()
    for folder, draw in PICTURES[name].items():
        draw(work / folder, rng)
    ran = [smaller(command) for command in commands(PAGES[name].read_text(encoding="utf-8"))]
    assert ran, "a tutorial without commands"
    for command in ran:
        code, text = run(command, work, shell)
        assert code == 0, f"{command}\n{text[-4000:]}"


def test_a_command_that_fails_is_found(tmp_path: Path, shell: dict[str, str]) -> None:
    (command,) = commands("```sh\nunlabeled doctor mae_vits16_1gpu \\\n  data.path=nowhere\n```\n")
    code, text = run(smaller(command), tmp_path, shell)
    assert code == 2 and "nowhere" in text


def test_every_page_has_its_pictures() -> None:
    assert PICTURES.keys() == PAGES.keys()
