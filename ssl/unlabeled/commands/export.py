"""`python -m unlabeled export EXPORT OUT`: an export as a program that runs without this package."""

from __future__ import annotations

import argparse

from unlabeled.paths import user_path
from unlabeled.serve.deploy import deploy
from unlabeled.text import one_line

SUMMARY = "an export as a program for torch.export or ONNX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    parser.add_argument(
        "export", type=user_path, help="an export folder of pretrain.py or finetune.py (runs/NAME/export)"
    )
    parser.add_argument("out", type=user_path, help="folder to write")
    parser.add_argument("--format", choices=("torch", "onnx"), default="torch", help="a .pt2 of torch.export, or ONNX")
    parser.add_argument(
        "--normalize",
        choices=("unit", "uint8"),
        help="bake the normalisation in: pixels are then float32 in 0..1, or uint8; default: normalised by the caller",
    )


def run(args: argparse.Namespace) -> int:
    """Export, read back, compare. Returns the exit code.

    Raises:
        UserError: there is no such export, the format cannot be had, or the program differs from the model.
    """
    worst = deploy(args.export, args.out, args.format, args.normalize or "normalised")
    print(one_line(f"{args.out}: {args.format}, differs from the timm model by at most {worst:.1e}"))
    return 0
