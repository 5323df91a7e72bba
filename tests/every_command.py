"""Every command on a few pictures, in one process and the working folder: `python every_command.py`.

It is run by the Python of another environment, so it imports nothing of the tests.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image

import unlabeled
from unlabeled.__main__ import main
from unlabeled.command import summaries

SIZES = ("data.train_size=32", "data.val_size=32")
QUIET = ("run.device=cpu", "run.workers=0", "evaluate=null")
SMALL = (*SIZES, "train.epochs=1", "train.batch_size=16", "optim.warmup_epochs=0", *QUIET)
VIT, CNN, TUNED = "runs/mae_shapes/export", "runs/simclr_resnet_shapes/export", "runs/finetune_shapes/export"


def pictures(folder: Path) -> None:
    """Two classes of noise, reddish and bluish, and a table of them."""
    random, rows = np.random.default_rng(0), ["path,label"]
    for split, number in (("train", 12), ("val", 6)):
        for label, colour in (("red", 2), ("blue", 0)):
            (folder / split / label).mkdir(parents=True)
            for index in range(number):
                pixels = random.integers(0, 255, (48, 40, 3), dtype=np.uint8)
                pixels[..., colour] //= 4
                Image.fromarray(pixels).save(folder / split / label / f"{index}.jpg")
                rows.append(f"{split}/{label}/{index}.jpg,{label}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n", encoding="utf-8")


def commands() -> Iterator[Sequence[str]]:
    """What is typed, in this order: later commands read what earlier ones wrote."""
    for name in summaries():
        yield name, "--help"
    yield ("--version",)
    yield "recipes", "list"
    yield from (("completion", shell) for shell in ("bash", "zsh", "fish"))
    yield "start", "pictures", "--minutes", "5"
    yield "doctor", "mae_shapes", *SIZES, "train.batch_size=16", "run.device=cpu"
    yield "prepare", "photos_cpu", "data.path=pictures", "data.cache=cache"
    yield "pretrain", "mae_shapes", *SMALL, "run.trackers=[tensorboard]"
    yield "pretrain", "dino_shapes", *SMALL
    yield "pretrain", "simmim_swin_shapes", *SMALL
    yield "pretrain", "simclr_resnet_shapes", *SMALL
    yield "finetune", "finetune_shapes", f"encoder={VIT}", "task.fraction=1", *SMALL
    yield "finetune", "finetune_shapes", f"encoder={CNN}", "task.fraction=1", "name=lora", *SMALL
    yield "report", "runs/finetune_shapes", "--html", "report.html"
    for encoder in (VIT, CNN):
        yield "evaluate", encoder, "--data", "mae_shapes", "--protocol", "knn", "linear", "--set", *SIZES
    yield "evaluate", VIT, "--data", "pictures/table.csv", "--protocol", "knn", "--set", "data.split=0.5"
    yield "embed", VIT, "pictures", "features"
    yield "embed", CNN, "pictures", "table", "--format", "parquet"
    yield "search", "features", "--build"
    yield "search", "features", "--like", "pictures/val/red/0.jpg"
    yield "neighbours", VIT, "pictures", "neighbours"
    sides = ("--labelled", "pictures/val", "--unlabelled", "pictures/train", "--classes", "3", "--starts", "2")
    yield "discover", VIT, *sides, "clusters"
    yield "look", VIT, "pictures", "look", "--most", "16", "--map", "pca"
    yield "export", TUNED, "onnx", "--format", "onnx"


def in_python() -> None:
    """The interface of Python, and an export without this package."""
    paths = sorted(str(path) for path in Path("pictures/val").rglob("*.jpg"))
    features = unlabeled.Embedder(VIT).fit(paths).transform(paths)
    assert np.allclose(features, unlabeled.load(VIT).embed(paths), atol=1e-6) and np.isfinite(features).all()
    for encoder in (VIT, CNN):
        model = timm.create_model(f"local-dir:{encoder}", pretrained=True).eval()
        assert model(torch.zeros(1, 3, 32, 32)).isfinite().all()


def code_of(words: Sequence[str]) -> object:
    """The exit code of a command; argparse exits by itself."""
    try:
        return main(words)
    except SystemExit as done:
        return done.code


if __name__ == "__main__":
    pictures(Path("pictures"))
    for words in commands():
        print(">", *words, flush=True)
        if code := code_of(words):
            sys.exit(f"{' '.join(words)} ended with {code}")
    in_python()
    print("done")
