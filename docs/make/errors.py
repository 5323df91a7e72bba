"""Every error message of the package, from its source: what was found, what is expected, and the mend."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

RAISED = {"UserError", "Interrupted", "ValueError"}
# heading -> folders and files of the package
AREAS = {
    "Recipes and command lines": [
        "recipe",
        "registry",
        "paths",
        "commands",
        "work",
        "stages",
        "__main__",
        "command",
        "interface",
    ],
    "Pictures, labels and tables": ["data", "doctor", "start", "sharing"],
    "Networks and weights": ["backbone", "nn"],
    "Pretraining": ["pretrain"],
    "Training, checkpoints and going on": ["train", "launch", "accelerator", "environment", "processes"],
    "Fine-tuning": ["transfer", "ladder", "incremental"],
    "Evaluation": ["evaluate"],
    "Features, exports and search": ["serve", "search", "discover", "push"],
    "Reports, looks and watching": ["report", "look", "page", "watch"],
    "Files": ["files", "manifest"],
}
VERBS = (
    "add|allow|ask|attach|call|check|choose|close|compare|convert|copy|create|delete|download|embed|evaluate|export|"
    "finish|fit|free|give|install|keep|launch|leave|let|list|look|lower|mend|make|map|move|name|pass|point|prepare|put|"
    "raise|read|remove|rename|repair|report|run|save|set|start|take|tell|train|try|undo|unpack|unset|update|upgrade|"
    "use|wait|write"
)
FIX = re.compile(
    rf"(?:(?<=[.;:,] )|(?<=, or )|(?<= and )|^)(?i:{VERBS})\b"
    r"|\b[Ee]xpected\b|\b[Tt]he same command\b|\bmust\b|\bpip install\b|`unlabeled [a-z ]+`[a-z ]* shows"
    r"|(?:(?<=\. )|(?<=\n))‹[^›]+›\.?$|‹(?:near|hint|mend)›$"  # put together elsewhere
)
WITHIN = ("must",)  # stands in the middle of its clause
CLAUSE = re.compile(r"[.;:] ")


class Message(NamedTuple):
    """A message as it stands in the source, with ‹names› for what was found."""

    file: str  # below the package
    line: int
    kind: str
    text: str

    @property
    def forwards(self) -> bool:
        """Whether it only hands on another message."""
        return not re.search(r"[a-z]{2,}", re.sub(r"‹[^›]*›|^(?:\w+ )?\S+: |`[^`]*`", "", self.text))

    @property
    def fix(self) -> int:
        """Where the part begins that says what is expected or what to do; -1 = there is none."""
        found = FIX.search(self.text)
        if found is None:
            return -1
        ends = [match.end() for match in CLAUSE.finditer(self.text, 0, found.start() + 1)]
        return found.start() if found[0] not in WITHIN else max(ends, default=0)


def messages(package: Path) -> Iterator[Message]:
    """The messages of all errors that users see, in the order of the files."""
    trees = {file: ast.parse(file.read_text(encoding="utf-8")) for file in sorted(package.rglob("*.py"))}
    names = {file: ".".join(file.relative_to(package.parent).with_suffix("").parts) for file in trees}
    constants = {names[file]: _texts(tree.body, {}) for file, tree in trees.items()}
    for file, tree in trees.items():
        known = dict(constants[names[file]])
        for imported in (node for node in tree.body if isinstance(node, ast.ImportFrom)):
            there = constants.get(imported.module or "", {})
            known |= {alias.name: there[alias.name] for alias in imported.names if alias.name in there}
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            raised = sorted(_raised(function), key=lambda call: call.lineno)
            texts = _texts(ast.walk(function), known) if raised else known
            for call in raised:
                name = file.relative_to(package).as_posix()
                yield Message(name, call.lineno, ast.unparse(call.func), _text(call.args[0], texts))


def _raised(function: ast.FunctionDef) -> Iterator[ast.Call]:
    """The errors that a function raises, those aside that only add to another of ours."""
    handlers = [node for node in ast.walk(function) if isinstance(node, ast.ExceptHandler)]
    added = {node for handler in handlers if _catches_ours(handler) for node in ast.walk(handler)}
    for node in ast.walk(function):
        error = node.exc if isinstance(node, ast.Raise) and node not in added else None
        if isinstance(error, ast.Call) and error.args and ast.unparse(error.func) in RAISED:
            yield error


def _catches_ours(handler: ast.ExceptHandler) -> bool:
    return handler.type is not None and ast.unparse(handler.type) in ("UserError", "ValueError")


def _texts(nodes: Iterable[ast.AST], known: dict[str, str]) -> dict[str, str]:
    """Names that stand for a text, and the text; of several the last."""
    found = dict(known)
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name) and _is_text(node.value):
            found[node.targets[0].id] = _text(node.value, found)
    return found


def _is_text(node: ast.expr) -> bool:
    match node:
        case ast.IfExp():
            return _is_text(node.body)
        case ast.Constant():
            return isinstance(node.value, str)
    return isinstance(node, ast.JoinedStr)


def _text(node: ast.expr, texts: dict[str, str]) -> str:
    match node:
        case ast.Constant():
            return str(node.value)
        case ast.JoinedStr():
            return "".join(_text(part, texts) for part in node.values)
        case ast.FormattedValue():
            return _text(node.value, texts)
        case ast.IfExp():
            return _text(node.body, texts)
        case ast.Name() if node.id in texts:
            return texts[node.id]
    return f"‹{_placeholder(node) or '...'}›"


def _placeholder(node: ast.expr) -> str:
    match node:
        case ast.Name():
            return node.id
        case ast.Attribute():
            return _placeholder(node.value) if node.attr.startswith("_") else node.attr
        case ast.Call(args=[first, *_]):
            return _placeholder(first)
        case ast.Call(func=ast.Attribute(value=owner)):
            return _placeholder(owner)
        case ast.Subscript() | ast.Starred() | ast.Await():
            return _placeholder(node.value)
    return ""


def pages(root: Path) -> dict[str, str]:
    """`errors.md`."""
    found = sorted({message[0::3]: message for message in messages(root / "ssl" / "unlabeled")}.values())
    return {"errors.md": "\n".join(_page([message for message in found if not message.forwards]))}


def _page(found: list[Message]) -> Iterator[str]:
    yield from (
        "# Errors",
        "",
        "Every message with which a program ends, or refuses a picture or a field of a recipe, from its source.",
        "‹Words› like these stand for what was found; what is expected, or what to do, is **bold**. Exit codes",
        "stand in [From one GPU to many machines](cluster.md#exit-codes).",
        "",
    )
    for title, owners in AREAS.items():
        own = [message for message in found if re.split(r"[/.]", message.file)[0] in owners]
        if own:
            yield from (f"## {title}", "", *(f"- {_shown(message)}" for message in own), "")


def _shown(message: Message) -> str:
    text = re.sub(r"([\[\]<>_|#*])", r"\\\1", message.text.replace("\n", " "))
    at = message._replace(text=text).fix
    return text if at < 0 else f"{text[:at]}**{text[at:].strip()}**"
