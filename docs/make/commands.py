"""The command line, from the programs' own `--help`."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Iterator

from unlabeled.__main__ import main
from unlabeled.command import summaries
from unlabeled.recipe import describe
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.pretrain import PretrainRecipe

WIDTH = "88"  # columns of the texts


def pages() -> dict[str, str]:
    """`commands.md` and `fields.md`."""
    return {"commands.md": "\n".join(_commands()), "fields.md": "\n".join(_fields())}


def shown(*words: str) -> str:
    """What `unlabeled WORDS --help` prints."""
    columns, os.environ["COLUMNS"] = os.environ.get("COLUMNS"), WIDTH
    text = io.StringIO()
    with contextlib.redirect_stdout(text), contextlib.suppress(SystemExit):
        main([*words, "--help"])
    os.environ.pop("COLUMNS")
    if columns is not None:
        os.environ["COLUMNS"] = columns
    return text.getvalue().rstrip()


def _commands() -> Iterator[str]:
    yield from ("# The command line", "", "```text", shown(), "```", "")
    for name, summary in summaries().items():
        yield from (f"## {name}", "", f"{summary[0].upper()}{summary[1:]}".rstrip(".") + ".", "")
        yield from ("```text", shown(name), "```", "")


def _fields() -> Iterator[str]:
    yield from ("# Fields of a recipe", "")
    yield from (
        "Name, type, default and meaning, as `unlabeled pretrain --help all` and `unlabeled finetune --help all`",
    )
    yield from ("print them; `--help SECTION` prints one section. `a.b=value` behind a recipe changes a field.", "")
    for title, schema in (("Pretraining", PretrainRecipe), ("Fine-tuning", FinetuneRecipe)):
        yield from (f"## {title}", "")
        for section in schema.model_fields:
            yield from (f"### {title}: {section}", "", "```text", describe(schema, section).rstrip(), "```", "")
