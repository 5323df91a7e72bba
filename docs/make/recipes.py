"""A page for every recipe, from its head comment and its text, and a table of them all."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

FOLDERS = {
    "pretrain": "Pretraining",
    "finetune": "Fine-tuning",
    "incremental": "Classes that come in tasks",
    "demo": "Demo: drawn pictures, nothing to download",
}
TOPIC = re.compile(r"#   (\w+) +(.+)")


class Head(NamedTuple):
    """The comment at the top of a recipe."""

    summary: str
    topics: dict[str, str]  # command, cost, expect, source

    @classmethod
    def of(cls, text: str) -> Head:
        """Read the head of a recipe's text: a sentence, then topics, whose further lines are indented deeper."""
        lines = [line.rstrip() for line in text.split("\n\n", 1)[0].splitlines() if line.startswith("#")]
        summary, topics, topic = "", dict[str, str](), ""
        for line in lines:
            if found := TOPIC.match(line):
                topic, topics[found[1]] = found[1], found[2]
            elif topic:
                topics[topic] += " " + line.strip("# ")
            else:
                summary = f"{summary} {line.strip('# ')}".strip()
        return cls(summary, topics)


def files(root: Path) -> dict[str, list[Path]]:
    """The recipes of every folder of `recipes/`."""
    return {folder: sorted((root / "recipes" / folder).glob("*.yaml")) for folder in FOLDERS}


def pages(root: Path) -> dict[str, str]:
    """`recipes/index.md`, and a page for each recipe."""
    found = {f"recipes/{folder}/{file.stem}.md": file for folder, group in files(root).items() for file in group}
    one = {name: "\n".join(_page(file, root)) for name, file in found.items()}
    return {"recipes/index.md": "\n".join(_table(root)), **one}


def _page(file: Path, root: Path) -> Iterator[str]:
    text = file.read_text(encoding="utf-8")
    head = Head.of(text)
    yield from (f"# {file.stem}", "", head.summary, "")
    command = head.topics.get("command", "")
    yield from ("```sh", command, "```", "")
    for topic in ("cost", "expect", "source"):
        yield from (f"**{topic.capitalize()}.** {head.topics.get(topic, '')}", "")
    yield from (f"`{file.relative_to(root).as_posix()}`:", "", "```yaml", text.rstrip(), "```", "")


def _table(root: Path) -> Iterator[str]:
    yield from (
        "# Recipes",
        "",
        "A recipe is a complete file: data, method, optimizer, length. Every field of it can be",
    )
    yield from ("changed on the command line (`train.epochs=50`); [all fields](../fields.md).", "")
    for folder, title in FOLDERS.items():
        yield from (f"## {title}", "", "| recipe | for |", "|---|---|")
        for file in files(root)[folder]:
            summary = Head.of(file.read_text(encoding="utf-8")).summary
            yield f"| [{file.stem}]({folder}/{file.stem}.md) | {summary} |"
        yield ""
