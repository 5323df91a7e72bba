"""Model cards: what an export is, what it was made from, what was measured."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from unlabeled.recipe import dump
from unlabeled.text import code, markdown

PACKAGES = ("unlabeled", "torch", "torchvision", "timm", "accelerate", "numpy")


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


def pretrain_card(recipe: Any, engine: Any) -> str:
    """The card of a pretrained encoder."""
    scores = "\n".join(f"- {name}: {value:.2f} %" for name, value in engine.evaluated.items()) or "- not evaluated"
    pictures = len(engine.job.dataset.source)
    body = f"Pretrained without labels on {pictures:,} pictures.\n\n## Evaluation (frozen)\n\n{scores}"
    return _card(recipe, engine, f"{recipe.name}: {recipe.method.name} encoder", body, "num_classes=0")


def head_card(recipe: Any, engine: Any, result: dict[str, Any], pool: str, blocks: int, reading: str) -> str:
    """The card of a backbone with a linear head on features of several blocks; `reading` is Python that makes them."""
    source = engine.job.dataset.source
    body = (
        f"A frozen backbone, {code(recipe.encoder)}, and a linear head on {pool} of {blocks} block(s), trained on "
        f"{len(source):,} labelled pictures.\n\n```python\nimport torch\nfrom safetensors.torch import load_file\n"
        f"head = load_file('THIS_FOLDER/heads.safetensors')\nmodel.eval()\n{reading}\n"
        f"logits = features @ head['weight'].T + head['bias']\n```\n\n"
        f"## Evaluation\n\n- accuracy: {result['accuracy']:.2f} % on {result['pictures']:,} pictures"
    )
    title = f"{recipe.name}: linear head of {len(source.classes)} classes"
    return _card(recipe, engine, title, body + _classes(recipe), "")


def classifier_card(recipe: Any, engine: Any, result: dict[str, Any]) -> str:
    """The card of a fine-tuned classifier."""
    source = engine.job.dataset.source
    body = (
        f"Fine-tuned ({recipe.task.mode}) from {code(recipe.encoder)} on {len(source):,} labelled pictures.\n\n"
        f"## Evaluation\n\n- accuracy: {result['accuracy']:.2f} % on {result['pictures']:,} pictures"
    )
    title = f"{recipe.name}: classifier of {len(source.classes)} classes"
    return _card(recipe, engine, title, body + _classes(recipe), "")


def _classes(recipe: Any) -> str:
    """How classes are numbered."""
    rule = "the natural order of their names (2 before 10), or the data set's own"
    if recipe.data.classes is not None:
        rule = f"the order of `{recipe.data.classes}`"
    return f"\n\n## Classes\n\n`label_names` in config.json has them by number: {rule}."


def _card(recipe: Any, engine: Any, title: str, body: str, arguments: str) -> str:
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    call = ", ".join(filter(None, ["'local-dir:THIS_FOLDER'", "pretrained=True", arguments]))
    return (
        f"# {markdown(title)}\n\n```python\nimport timm\nmodel = timm.create_model({call})\n```\n\n{body}\n\n"
        f"## Made with\n\n- {made_with}\n- pictures: fingerprint {engine.job.facts['pictures']}\n"
        f"- {engine.step:,} steps, {engine.skipped} skipped, {len(engine.bad.keys)} bad pictures\n\n"
        f"```yaml\n{dump(recipe)}```\n"
    )


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
