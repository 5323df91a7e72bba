"""Everything that `unlabeled` does: `unlabeled COMMAND`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from unlabeled.command import command, programs, started, summaries
from unlabeled.launch import program

DESCRIPTION = "Self-supervised pretraining for images: from a folder of pictures to a timm backbone."


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Without arguments, those of this process, which then ends."""
    words, last = sys.argv[1:] if arguments is None else arguments, arguments is None
    if words and words[0] in programs():
        return program.main(words[0], words[1:], last=last)
    return program.exit_code(lambda: _run(words), last=last)


def _run(words: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog=started(), description=DESCRIPTION)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, summary in summaries().items():
        one = commands.add_parser(name, help=summary)
        if name in words[:1]:  # the others are not imported
            chosen = command(name)
            chosen.add_arguments(one)
            one.set_defaults(run=chosen.run)
    options, rest = parser.parse_known_args(words)
    # argparse takes no positional after an option: `doctor RECIPE --json a.b=value`
    if rest and ("overrides" not in options or any(word.startswith("-") for word in rest)):
        parser.error(f"unrecognized arguments: {' '.join(rest)}{_mend(options, rest)}")
    if rest:
        options.overrides += rest
    return int(options.run(options))


def _mend(options: argparse.Namespace, rest: Sequence[str]) -> str:
    """How fields are written for this command: some take `--set`, others do without."""
    fields = shlex.join(word for word in rest if "=" in word and not word.startswith("-"))
    if "set" in options and fields:
        return f". Fields of this command come after --set: --set {fields}"
    if "overrides" in options and "--set" in rest:
        return f". Fields of this command stand without --set: {fields or 'a.b=value'}"
    return ""


if __name__ == "__main__":
    sys.exit(main())
