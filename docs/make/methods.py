"""What guides of methods say from the code: symptoms, recipes, fidelity; at lines `<!-- PART of METHOD -->`."""

from __future__ import annotations

import ast
import inspect
import math
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import torch
from make.recipes import Head

from unlabeled.pretrain.method import METHODS, MethodConfig, Symptom

MARK = re.compile(r"^<!-- (symptoms|recipes|fidelity) of (\w+) -->$", re.MULTILINE)


def filled(text: str, root: Path) -> str:
    """The text of a guide, with what belongs at its marks."""
    parts = {"symptoms": _symptoms, "recipes": _recipes, "fidelity": _fidelity}
    return MARK.sub(lambda found: "\n".join(parts[found[1]](found[2], root)), text)


def _symptoms(name: str, root: Path) -> Iterator[str]:
    """A table of the collapses that a run of the method's defaults warns of."""
    config = cast(MethodConfig, METHODS.kind(name)())
    with torch.device("meta"):  # nothing is computed
        symptoms = config.build().symptoms()
    yield from ("| when | the run says | and what to turn |", "|---|---|---|")
    for symptom in symptoms:
        yield f"| `{symptom.metric}` {_range(symptom)} | {symptom.meaning} | {symptom.advice} |"


def _range(symptom: Symptom) -> str:
    low = f"at or below {symptom.at_most:.3g}" if symptom.at_most > -math.inf else ""
    high = f"at or above {symptom.at_least:.3g}" if symptom.at_least < math.inf else ""
    return " or ".join(filter(None, (low, high)))


def _recipes(name: str, root: Path) -> Iterator[str]:
    """A list of the recipes whose method it is."""
    yield from ("| recipe | for |", "|---|---|")
    for folder in ("pretrain", "demo"):
        for file in sorted((root / "recipes" / folder).glob("*.yaml")):
            text = file.read_text(encoding="utf-8")
            if re.search(rf"^method:.*\n  name: {name}$", text, re.MULTILINE):
                yield f"| [{file.stem}](../recipes/{folder}/{file.stem}.md) | {Head.of(text).summary} |"


def _fidelity(name: str, root: Path) -> Iterator[str]:
    """What the method's file says of its source, and the tests that compare with the official code."""
    source = inspect.getdoc(sys.modules[METHODS.kind(name).__module__])
    yield from (f"> {line}".rstrip() for line in (source or "").splitlines())
    tests = sorted((root / "tests" / "parity").glob(f"test_{name}*.py"))
    for one in {"ibot": ("dinov2", "dinov3"), "dino": ("simdino",)}.get(name, ()):
        tests += sorted((root / "tests" / "parity").glob(f"test_{one}*.py"))
    if tests:
        yield from ("", "Compared with numbers of the official code, within 1e-5:", "")
    for file in tests:
        tree = ast.parse(file.read_text(encoding="utf-8"))
        names = [node.name for node in tree.body if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")]
        said = ", ".join(one.removeprefix("test_").replace("_", " ") for one in names)
        yield f"- `{file.relative_to(root).as_posix()}`: {said}"
