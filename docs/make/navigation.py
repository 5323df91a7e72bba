"""The order of the pages, and the settings of the site from it."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

# section -> its pages, in order; those of "" come first. A page that does not exist is left out
SECTIONS = {
    "": ["index.md", "first_hour.md"],
    "Tutorials": [
        "tutorials/photos_on_a_laptop.md",
        "tutorials/satellite.md",
        "tutorials/medical.md",
        "tutorials/defects.md",
        "tutorials/continued.md",
        "tutorials/long_tails.md",
        "tutorials/few_labels.md",
        "tutorials/new_classes.md",
        "tutorials/unknown.md",
        "tutorials/boxes.md",
        "tutorials/masks.md",
        "tutorials/one_gpu.md",
        "tutorials/eight_gpus.md",
        "tutorials/slurm.md",
    ],
    "Methods": [
        "methods/index.md",
        "methods/mae.md",
        "methods/simmim.md",
        "methods/spark.md",
        "methods/simclr.md",
        "methods/mocov3.md",
        "methods/barlowtwins.md",
        "methods/vicreg.md",
        "methods/byol.md",
        "methods/simsiam.md",
        "methods/dino.md",
        "methods/ibot.md",
        "methods/swav.md",
        "methods/msn.md",
        "methods/ijepa.md",
        "methods/lejepa.md",
        "methods/distill.md",
    ],
    "How to": [
        "install.md",
        "start.md",
        "data.md",
        "begin.md",
        "continue.md",
        "transfer.md",
        "incremental.md",
        "python.md",
        "search.md",
        "trackers.md",
        "hub.md",
        "look.md",
        "page.md",
        "watch.md",
        "backbones.md",
        "memory.md",
        "compile.md",
        "cluster.md",
        "errors.md",
    ],
    "Reference": ["recipes/index.md", "commands.md", "fields.md", "api.md", "exactness.md", "results/index.md"],
}


def ordered(pages: Iterable[str]) -> dict[str, list[str]]:
    """The pages of every section, in order. Those of docs/ that no section names are the last ones of `How to`."""
    there = set(pages)
    sections = {name: [page for page in named if page in there] for name, named in SECTIONS.items()}
    named = {page for found in sections.values() for page in found}
    sections["How to"] += sorted(page for page in there - named if "/" not in page)
    return sections


def settings(base: Path, pages: Iterable[str]) -> str:
    """The text of `zensical.toml`: the settings of a file, with the navigation of these pages."""
    sections = ordered(pages)
    entries = [json.dumps(page) for page in sections.pop("")]
    entries += [f"{{ {json.dumps(name)} = {json.dumps(found)} }}" for name, found in sections.items() if found]
    return base.read_text(encoding="utf-8").replace("nav = []", f"nav = [{', '.join(entries)}]")
