"""`unlabeled push EXPORT OWNER/NAME`: an export as a repository on the Hugging Face Hub."""

from __future__ import annotations

import argparse

from unlabeled.paths import expand
from unlabeled.text import one_line

SUMMARY = "an export as a repository on the Hugging Face Hub"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `push`."""
    add = parser.add_argument
    add("export", type=expand, help="an export folder (runs/NAME/export), or PACKAGE.MODULE:NAME:FOLDER")
    add("repo", metavar="OWNER/NAME", help="the repository; it is made where there is none")
    add("--private", action="store_true", help="nobody else may see a repository that is made")
    add("--revision", metavar="BRANCH", help="made where there is none (default: main)")
    add("--message", help="of the commit (default: Upload and the folder's name)")
    add("--license", metavar="ID", help="for the card, such as apache-2.0 (default: the card names none)")


def run(options: argparse.Namespace) -> int:
    """Upload, and say how to load it."""
    from unlabeled.serve.hub import push_to_hub

    told = {name: getattr(options, name) for name in ("private", "revision", "message", "license")}
    address = push_to_hub(options.export, options.repo, **told)
    print(one_line(f"{address}  (timm.create_model('{address}', pretrained=True); unlabeled takes this address, too)"))
    return 0
