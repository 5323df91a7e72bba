"""python -m unlabeled doctor | prepare | evaluate | ladder | report | embed | export | import: all but the training."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Sequence
from typing import Any

from unlabeled.errors import UserError
from unlabeled.launch.program import exit_code
from unlabeled.signals import EXIT_DONE
from unlabeled.text import one_line


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit code. Without arguments, those of this process, which then ends."""
    return exit_code(lambda: _run(arguments), last=arguments is None)


def _run(arguments: Sequence[str] | None) -> int:
    from unlabeled.backbone.importing import importer_names
    from unlabeled.commands import doctor, ladder, report
    from unlabeled.commands import embed as serve
    from unlabeled.commands import evaluate as command
    from unlabeled.commands import prepare as prepare_command
    from unlabeled.paths import user_path
    from unlabeled.serve import deploy

    parser = argparse.ArgumentParser(prog="python -m unlabeled", description=__doc__)
    commands = parser.add_subparsers(required=True)
    programs: dict[str, tuple[Any, str]] = {
        "prepare": (prepare_command, "small copies of a recipe's pictures, read several times as fast"),
        "doctor": (doctor, "look at pictures, machine and recipe before a run"),
        "evaluate": (command, "probes and other measures of exported encoders"),
        "ladder": (ladder, "from kNN to fine-tuning: which way to use an encoder pays"),
        "report": (report, "fine-tuned runs beside each other: seeds to mean, deviation and interval"),
        "embed": (serve, "features of every picture through an exported encoder"),
        "export": (deploy, "an export as a program for torch.export or ONNX"),
    }
    for name, (program, meaning) in programs.items():
        one = commands.add_parser(name, help=meaning)
        program.add_arguments(one)
        one.set_defaults(run=program.run)
    importer = commands.add_parser("import", help="official weights into an export folder")
    importer.add_argument("method", choices=importer_names(), help="whose format the file has")
    importer.add_argument("file", type=user_path, help="the official .pth")
    importer.add_argument("out", type=user_path, help="folder to write")
    importer.add_argument("--heads", type=int, help="attention heads, where the width does not tell")
    importer.add_argument(
        "--key", choices=["student", "teacher"], help="which network of a full checkpoint; default: the one evaluated"
    )
    importer.set_defaults(run=_import)
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


def _import(options: argparse.Namespace) -> int:
    from unlabeled.backbone.weights import import_official

    if options.out.exists() and (not options.out.is_dir() or any(options.out.iterdir())):
        raise UserError(f"{options.out} is there already. Choose another folder, or remove it.")
    import_official(options.method, options.file, options.out, options.heads, options.key)
    print(one_line(f"{options.out}  (timm.create_model('local-dir:{options.out}', pretrained=True))"))
    return EXIT_DONE


if __name__ == "__main__":
    sys.exit(main())
