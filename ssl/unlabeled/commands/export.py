"""`unlabeled export EXPORT OUT`: an export as a program that runs without this package."""

from __future__ import annotations

import argparse

from unlabeled.paths import user_path
from unlabeled.text import one_line

SUMMARY = "an export as a program for torch.export or ONNX"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `export`."""
    add = parser.add_argument
    add("export", type=user_path, help="an export folder, of an encoder or a classifier (runs/NAME/export)")
    add("out", type=user_path, help="folder to write")
    add("--format", choices=("torch", "onnx"), default="torch", help="a .pt2 of torch.export (default), or ONNX")
    baked = "include the normalisation: pixels are float32 in 0..1, or uint8 (default: the caller normalises)"
    add("--normalize", choices=("unit", "uint8"), help=baked)


def run(args: argparse.Namespace) -> int:
    """Export, read back, compare."""
    from unlabeled.serve.deploy import deploy

    worst = deploy(args.export, args.out, args.format, args.normalize or "normalised")
    print(one_line(f"{args.out}: {args.format}, differs from the timm model by at most {worst:.1e}"))
    return 0
