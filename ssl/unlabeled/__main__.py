"""Everything that `unlabeled` does: `unlabeled COMMAND`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from unlabeled.command import command, parser, programs, summaries
from unlabeled.errors import suggest
from unlabeled.launch import program
from unlabeled.signals import EXIT_DONE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Without arguments, those of this process, which then ends."""
    words, last = sys.argv[1:] if arguments is None else arguments, arguments is None
    if words and words[0] in programs():
        return program.main(words[0], words[1:], last=last)
    return program.exit_code(lambda: _run(words), last=last)


def _run(words: Sequence[str]) -> int:
    def fill(name: str, one: argparse.ArgumentParser) -> None:
        if name in words[:1]:  # the others are not imported
            chosen = command(name)
            chosen.add_arguments(one)
            one.set_defaults(run=chosen.run)

    whole = parser(fill)
    if not words:
        whole.print_help()
        return EXIT_DONE
    known = summaries()
    if not words[0].startswith("-") and words[0] not in known:
        shown = ", ".join(known)
        whole.error(f"{words[0]!r} is no command{suggest(words[0], known) or f'. Commands: {shown}'}")
    options, rest = whole.parse_known_args(words)
    # argparse takes no positional after an option: `doctor RECIPE --json a.b=value`
    if rest and ("overrides" not in options or any(word.startswith("-") for word in rest)):
        whole.error(f"unrecognized arguments: {' '.join(rest)}{_mend(options, rest)}")
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
