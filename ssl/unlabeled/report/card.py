"""Model cards: what an export is, what it was made from, what was measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from unlabeled.environment import versions
from unlabeled.text import code, markdown

NATURAL = "the natural order of their names (2 before 10), or the data set's own"


class Made(NamedTuple):
    """How an export was made, for its card.

    Attributes:
        name: of the run.
        recipe: its YAML.
        pictures: how many were learnt from.
        fingerprint: of those.
        steps, skipped, bad: steps taken, steps skipped, pictures that could not be read.
        begun: the weights that pretraining began with, in words; "" = none.
        kept: the step of the weights, which scored best; None = the last.
        encoder: the address that fine-tuning started from.
        way: the name of its strategy, or of its task.
        classes: names, by number.
        order: the file that orders them; None = nobody did.
        held_out: what the run held out of the pictures, in words; "" = nothing.
        accuracy: percent; of a detector its mean average precision, of a segmentation its mean IoU.
        scored: how many pictures that is of.
    """

    name: str
    recipe: str
    pictures: int
    fingerprint: str
    steps: int
    skipped: int
    bad: int
    begun: str = ""
    kept: int | None = None
    encoder: str = ""
    way: str = ""
    classes: Sequence[str] = ()
    order: str | None = None
    held_out: str = ""
    accuracy: float = 0.0
    scored: int = 0


def pretrain_card(made: Made, method: str, evaluated: Mapping[str, float], loading: str) -> str:
    """The card of a pretrained encoder, with the name of its method and its scores in percent; `loading` is Python that
    loads it as `model`."""
    scores = "\n".join(f"- {name}: {value:.2f} %" for name, value in evaluated.items()) or "- not evaluated"
    body = f"Pretrained without labels on {made.pictures:,} pictures.\n\n## Evaluation (frozen)\n\n{scores}"
    return _card(made, f"{method} encoder", body, loading)


def head_card(made: Made, pool: str, blocks: int, reading: str, loading: str) -> str:
    """The card of a backbone with a linear head on features of several blocks; `reading` is Python that makes them from
    the `model` of `loading`."""
    body = (
        f"A frozen backbone, {code(made.encoder)}, and a linear head on {pool} of {blocks} block(s), trained on "
        f"{made.pictures:,} labelled pictures.\n\n```python\nimport torch\nfrom safetensors.torch import load_file\n"
        f"head = load_file('THIS_FOLDER/heads.safetensors')\nmodel.eval()\n{reading}\n"
        f"logits = features @ head['weight'].T + head['bias']\n```\n\n"
    )
    return _card(made, f"linear head of {len(made.classes)} classes", body + _scored(made), loading)


def backbone_card(made: Made, strategy: str, loading: str) -> str:
    """The card of the backbone of an incremental run, whose classes no linear head names."""
    body = (
        f"The newest backbone of an incremental run ({strategy}) from {code(made.encoder)}. What names classes by its "
        f"features is in `heads.safetensors`.\n\n"
    )
    return _card(made, f"backbone for {len(made.classes)} classes", body + _scored(made), loading)


def classifier_card(made: Made, loading: str) -> str:
    """The card of a fine-tuned classifier; `loading` is Python that loads it."""
    body = f"Fine-tuned ({made.way}) from {code(made.encoder)} on {made.pictures:,} labelled pictures.\n\n"
    return _card(made, f"classifier of {len(made.classes)} classes", body + _scored(made), loading)


def detector_card(made: Made, loading: str) -> str:
    """The card of a detector; `loading` is Python that loads its backbone."""
    body = (
        f"Fine-tuned ({made.way}) from {code(made.encoder)} on {made.pictures:,} pictures with boxes. The code above "
        "loads the backbone alone; with its pyramid and heads:\n\n```python\nimport torchvision\nimport unlabeled\n"
        "detector = unlabeled.load_detector('THIS_FOLDER')\n"
        "found = detector([torchvision.io.decode_image('picture.jpg', 'RGB')], score=0.3)[0]\n"
        "print(found.boxes, found.labels, found.scores)\n```\n\n"
    )
    return _card(
        made, f"detector of {len(made.classes)} classes", body + _scored(made, "mean average precision"), loading
    )


def segmenter_card(made: Made, loading: str) -> str:
    """The card of a segmentation; `loading` is Python that loads its backbone."""
    body = (
        f"Fine-tuned ({made.way}) from {code(made.encoder)} on {made.pictures:,} pictures with masks. The code above "
        "loads the backbone alone; with its pyramid and decoder:\n\n```python\nimport torchvision\nimport unlabeled\n"
        "segmenter = unlabeled.load_segmenter('THIS_FOLDER')\n"
        "mask = segmenter([torchvision.io.decode_image('picture.jpg', 'RGB')])[0]\n"
        "print(mask.shape, [segmenter.classes[number] for number in mask.unique().tolist()])\n```\n\n"
    )
    scored = _scored(
        made, "mean intersection over union", "the values of masks, ascending, or as `task.values` lists them"
    )
    return _card(made, f"segmentation of {len(made.classes)} classes", body + scored, loading)


def _scored(made: Made, score: str = "accuracy", natural: str = NATURAL) -> str:
    """The score, and how classes are numbered."""
    rule = natural if made.order is None else f"the order of `{made.order}`"
    place = "`label_names` in config.json has them by number"
    return (
        f"## Evaluation\n\n- {score}: {made.accuracy:.2f} % on {made.scored:,} pictures\n\n## Classes\n\n"
        f"{place}: {rule}."
    )


def _card(made: Made, title: str, body: str, loading: str) -> str:
    made_with = ", ".join(f"{name} {number}" for name, number in versions().items())
    held_out = f"- {markdown(made.held_out)}\n" if made.held_out else ""
    begun = f"- began with {markdown(made.begun)}\n" if made.begun else ""
    kept = "" if made.kept is None else f", kept: step {made.kept:,}, whose score was best"
    return (
        f"# {markdown(f'{made.name}: {title}')}\n\n```python\n{loading}\n```\n\n"
        f"{body}\n\n## Made with\n\n- {made_with}\n- pictures: fingerprint {made.fingerprint}\n{held_out}{begun}"
        f"- {made.steps:,} steps, {made.skipped} skipped, {made.bad} bad pictures{kept}\n\n```yaml\n{made.recipe}```\n"
    )
