"""`unlabeled completion SHELL`: what a shell needs to complete this command line."""

from __future__ import annotations

import argparse

SUMMARY = "completion of commands, options and recipes for bash, zsh or fish"
HOW = """to complete from now on:
  bash   unlabeled completion bash > ~/.local/share/bash-completion/completions/unlabeled
  zsh    unlabeled completion zsh > ~/.zfunc/_unlabeled      (with `fpath+=~/.zfunc` before compinit in ~/.zshrc)
  fish   unlabeled completion fish > ~/.config/fish/completions/unlabeled.fish
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of `completion`."""
    parser.epilog, parser.formatter_class = HOW, argparse.RawDescriptionHelpFormatter
    parser.add_argument("shell", choices=("bash", "zsh", "fish"))


def run(options: argparse.Namespace) -> int:
    """Print the script."""
    from unlabeled.work.completion import run

    return run(options)
