"""Figures of the package's structure, and what breaks its rules: `python tests/structure.py [CHECKOUT ...]`.

Everything is read from the source text; nothing of the package is imported. `tests/test_structure.py` holds the rules.
"""

from __future__ import annotations

import ast
import re
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

PACKAGE = "unlabeled"
LAZY = ("commands", "stages")  # where own imports may stand in functions: start-up time
MOST_LAZY, MOST_QUESTIONS, MOST_FILES = 25, 3, 18
FAMILIES = ("backbone/families/", "nn/families.py", "nn/conv.py", "nn/beit.py")

# what asks an encoder which architecture it is
QUESTIONS = re.compile(
    r"\bis_(?:cnn|beit|relative|vit)\(|isinstance\([^()]*,\s*\(?(?:ConvEncoder|BeitEncoder|Cnn|Maps|Beit|Vit|ViT)\b"
    r"|\.has_class_token|\bhas_batch_norm\b|[\"'](?:cnn|transformer|beit|vit)[\"']"
    r"|startswith\(\(?[\"'](?:vit|beit|resnet|convnext|swin)|hasattr\(\w*(?:vit|model|block)\b"
)
UNTYPED = re.compile(r"\b(?:recipe|engine): Any\b")
WAYS = "frozen|linear|full|differential|gradual|lora|attentive|retrain|sweep"
MODES = re.compile(rf"\bmode\b\s*(?:==|!=|(?:not )?in)\s*[(\[{{]?\s*[\"'](?:{WAYS})")

# the modules of kinds, where they are now or where they were
KINDS = {
    "method": r"(pretrain/)?methods/[a-z]\w+",
    "mask": r"data/masks/[a-z]\w+",
    "order": r"data/orders/[a-z]\w+",
    "source": r"data/(sources/[a-z]\w+|sources|table|huggingface|tv|arrays|shapes)",
    "protocol": r"evaluate/(protocols/[a-z]\w+|cka|fewshot|knn|labelfree|linear|logistic|retrieval|segmentation)",
    "incremental strategy": r"incremental/strategies/[a-z]\w+",
    "importer": r"(backbone/)?importers/[a-z]\w+",
    "family of networks": r"backbone/families/[a-z]\w+|nn/(encoder|beit|conv)",
}


class Import(NamedTuple):
    """An import of an own module: who imports it, what, on which line, and where it stands."""

    importer: str
    imported: str
    line: int
    lazy: bool  # in a function
    typing: bool  # under TYPE_CHECKING


class House:
    """The modules of a checkout.

    Args:
        root: of the checkout.
    """

    def __init__(self, root: Path) -> None:
        self.base = root / "ssl" / PACKAGE
        self.files = sorted(self.base.rglob("*.py"))
        self.programs = [file for file in root.glob("*.py") if file.stem in ("pretrain", "finetune")]
        self.texts = {file: file.read_text(encoding="utf-8") for file in self.files}
        self.modules = {self.module(file): file for file in self.files}
        self.imports = [one for file in self.files for one in self._imports(file)]

    def module(self, file: Path) -> str:
        """The dotted name of a file's module."""
        parts = file.relative_to(self.base.parent).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def _imports(self, file: Path) -> Iterator[Import]:
        importer = self.module(file)
        for node, lazy, typing in _nodes(ast.parse(self.texts[file])):
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                inside = [f"{node.module}.{alias.name}" for alias in node.names]
                names = [name if name in self.modules else node.module for name in inside]
            else:
                continue
            for name in dict.fromkeys(names):
                if name in self.modules:
                    yield Import(importer, name, node.lineno, lazy, typing)

    def name(self, module: str) -> str:
        """The path of a module's file below the package."""
        return self.modules[module].relative_to(self.base).as_posix()

    def cycles(self, hidden: bool = True) -> list[list[str]]:
        """Groups of modules that import each other; with `hidden` imports in functions and for types count too."""
        arrows: dict[str, set[str]] = {module: set() for module in self.modules}
        for one in self.imports:
            if hidden or not (one.lazy or one.typing):
                arrows[one.importer].add(one.imported)
        return [sorted(group) for group in _components(arrows) if len(group) > 1]

    def found(self, pattern: re.Pattern[str], outside: tuple[str, ...] = ()) -> list[str]:
        """FILE:LINE of every match of a pattern, files whose path begins with one of `outside` left out."""
        hits = []
        for file, text in self.texts.items():
            name = file.relative_to(self.base).as_posix()
            if not name.startswith(outside):
                hits += [f"{name}:{text.count(chr(10), 0, match.start()) + 1}" for match in pattern.finditer(text)]
        return hits

    def functions(self) -> list[int]:
        """The lengths of all functions, lines."""
        trees = (ast.parse(text) for text in self.texts.values())
        return [
            (node.end_lineno or node.lineno) - node.lineno + 1
            for tree in trees
            for node in ast.walk(tree)
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        ]

    def figures(self) -> dict[str, str]:
        """What is counted, by what it is called."""
        programs = sum(file.read_text(encoding="utf-8").count("\n") for file in self.programs)
        lines, functions = [text.count("\n") for text in self.texts.values()], sorted(self.functions())
        folders = Counter(file.parent.relative_to(self.base).as_posix() for file in self.files)
        largest, size = folders.most_common(1)[0]
        lazy, typing = self.lazy(), [one for one in self.imports if one.typing]
        cycles, visible = self.cycles(), self.cycles(hidden=False)
        questions = self.found(QUESTIONS, FAMILIES)
        return {
            "files": str(len(self.files)),
            "lines": f"{sum(lines) + programs:,}, of which {programs} in the two programs (longest file {max(lines)})",
            "functions": f"{len(functions):,} (median {functions[len(functions) // 2]} lines, "
            f"nine in ten at most {functions[9 * len(functions) // 10]}, longest {functions[-1]})",
            "files of the largest folder": f"{size} ({largest})",
            "import cycles at import time": f"{len(visible)} {[len(cycle) for cycle in visible]}",
            "import cycles, all imports": f"{len(cycles)} {[len(cycle) for cycle in cycles]}",
            "own imports in functions": f"{len(lazy)}, {len(self.lazy_outside())} outside {' and '.join(LAZY)}",
            "own imports under TYPE_CHECKING": str(len(typing)),
            "untyped recipe and engine": str(len(self.found(UNTYPED))),
            "architecture questions outside the families": f"{len(questions)} in "
            f"{len({hit.split(':')[0] for hit in questions})} files",
            "comparisons of a mode": str(len(self.found(MODES))),
            **{f"files to add: {kind}": str(count) for kind, count in self.to_add().items()},
        }

    def to_add(self) -> dict[str, int]:
        """The files to write or change for one more of each kind: its own, and those that import at least half of the
        kinds by name; for a way of fine-tuning those that compare a mode."""
        counts = {"way of fine-tuning": max(1, len({hit.split(":")[0] for hit in self.found(MODES)}))}
        for kind, pattern in KINDS.items():
            kinds = {one for one in self.modules if re.fullmatch(pattern, self.name(one).removesuffix(".py"))}
            arrows = {(one.importer, one.imported) for one in self.imports if one.imported in kinds}
            uses = Counter(importer for importer, _ in arrows if importer not in kinds)
            counts[kind] = 1 + sum(2 * count >= len(kinds) for count in uses.values())
        return counts

    def lazy(self) -> list[Import]:
        """Imports of own modules in functions."""
        return [one for one in self.imports if one.lazy and not one.typing]

    def lazy_outside(self) -> list[Import]:
        """Those that stand where they may not."""
        return [one for one in self.lazy() if not self.name(one.importer).startswith(tuple(f"{f}/" for f in LAZY))]

    def breaches(self) -> list[str]:
        """What the rules forbid, one line each."""
        folders = Counter(file.parent.relative_to(self.base).as_posix() for file in self.files)
        questions = self.found(QUESTIONS, FAMILIES)
        return [
            *(f"import cycle: {' '.join(cycle)}" for cycle in self.cycles()),
            *(f"in a function: {self.name(one.importer)}:{one.line} {one.imported}" for one in self.lazy_outside()),
            *(f"for types: {self.name(one.importer)}:{one.line} {one.imported}" for one in self.imports if one.typing),
            *(f"untyped: {hit}" for hit in self.found(UNTYPED)),
            *(f"question: {hit}" for hit in questions if len(questions) > MOST_QUESTIONS),
            *(f"mode: {hit}" for hit in self.found(MODES)),
            *(f"full folder: {folder} has {count} files" for folder, count in folders.items() if count > MOST_FILES),
            *([f"{len(self.lazy())} own imports in functions"] if len(self.lazy()) > MOST_LAZY else []),
        ]


def _nodes(tree: ast.AST, lazy: bool = False, typing: bool = False) -> Iterator[tuple[ast.AST, bool, bool]]:
    """All nodes, with whether they are in a function and whether they are under TYPE_CHECKING."""
    for node in ast.iter_child_nodes(tree):
        yield node, lazy, typing
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        guarded = typing or (isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test))
        yield from _nodes(node, inner, guarded)


def _components(arrows: dict[str, set[str]]) -> list[list[str]]:
    """Strongly connected components, by Tarjan's algorithm (1972)."""
    order: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(node: str) -> None:
        order[node] = low[node] = len(order)
        stack.append(node)
        for other in arrows[node]:
            if other not in order:
                visit(other)
                low[node] = min(low[node], low[other])
            elif other in stack:
                low[node] = min(low[node], order[other])
        if low[node] == order[node]:
            at = stack.index(node)
            found.append(stack[at:])
            del stack[at:]

    sys.setrecursionlimit(10_000)
    for node in arrows:
        if node not in order:
            visit(node)
    return found


def main() -> None:
    """Print the figures of each checkout, side by side; of the last one also what the rules forbid."""
    houses = [House(Path(name)) for name in sys.argv[1:] or [str(Path(__file__).parents[1])]]
    for name, *values in zip(houses[0].figures(), *(house.figures().values() for house in houses), strict=True):
        print(f"| {name} | {' | '.join(values)} |")
    print(*houses[-1].breaches(), sep="\n")


if __name__ == "__main__":
    main()
