"""All commands but the training: `unlabeled COMMAND`."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence

from unlabeled.command import command, summaries
from unlabeled.launch.program import exit_code


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Without arguments, those of this process, which then ends."""
    return exit_code(lambda: _run(sys.argv[1:] if arguments is None else arguments), last=arguments is None)


def _run(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="unlabeled", description=__doc__)
    commands = parser.add_subparsers(required=True)
    for name, summary in summaries().items():
        one = commands.add_parser(name, help=summary)
        if name in arguments[:1]:  # the others are not imported
            chosen = command(name)
            chosen.add_arguments(one)
            one.set_defaults(run=chosen.run)
    options, rest = parser.parse_known_args(arguments)
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
