"""`unlabeled import METHOD FILE OUT`: an official release becomes an export folder."""

from __future__ import annotations

import argparse

from unlabeled.command import kinds
from unlabeled.errors import UserError
from unlabeled.paths import user_path
from unlabeled.text import one_line

SUMMARY = "official weights into an export folder"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `import`."""
    add = parser.add_argument
    add("method", choices=kinds("backbone/importers"), help="method whose release it is")
    add("file", type=user_path, help="the official .pth")
    add("out", type=user_path, help="folder to write")
    add("--heads", type=int, help="attention heads, where the width does not tell")
    add("--norm-eps", type=float, help="eps of its layer norms, which weights do not show (default: the official one)")
    add("--key", choices=["student", "teacher"], help="network of a full checkpoint (default: the one evaluated)")


def run(options: argparse.Namespace) -> int:
    """Write the folder."""
    from unlabeled.backbone.weights import import_official

    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out} is there already. Choose another folder, or remove it.")
    fields = import_official(options.method, options.file, options.out, options.heads, options.key, options.norm_eps)
    print(one_line(f"{options.out}  (timm.create_model('local-dir:{options.out}', pretrained=True))"))
    if fields:
        print(f"\npretraining goes on from it (init={one_line(str(options.out))}) with these fields:\n{fields}", end="")
    return 0
