"""The `evaluate:` section of recipes, and the evaluator that runs its protocols on an encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar

import torch
from pydantic import (
    BaseModel,
    BeforeValidator,
    Field,
    SerializerFunctionWrapHandler,
    WrapValidator,
    create_model,
    model_serializer,
)
from pydantic_core import PydanticKnownError

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.pooling import FeatureSpec, Pool
from unlabeled.data.archive.listing import digest
from unlabeled.data.source import AnyData
from unlabeled.errors import UserError
from unlabeled.evaluate.bench import Bench
from unlabeled.evaluate.protocol import PROTOCOLS, AnyProtocol, Protocol, Score, scored
from unlabeled.evaluate.splits import Preparation, Splits

DEFAULT = ("knn", "linear")
Fraction = Annotated[float, Field(gt=0, le=1, allow_inf_nan=False)]
IN_ORDER = sorted(PROTOCOLS.names(), key=lambda name: getattr(PROTOCOLS.kind(name), "order", 0))
M = TypeVar("M", bound=BaseModel)


def _in_folders(value: Any) -> Any:
    """The section that a path alone stands for."""
    return {"name": "files", "path": value, "train": "train", "val": "val"} if isinstance(value, str) else value


def _with_name(value: Any, handler: Any) -> Any:
    """Refuse a field of another name that names no protocol, as an unknown field."""
    if not isinstance(value, Protocol) and not (isinstance(value, Mapping) and "name" in value):
        raise PydanticKnownError("extra_forbidden")
    return handler(value)


def _one_field_each(section: type[M]) -> type[M]:
    """The section with a field for every protocol, by its name and in its order; those of DEFAULT are on."""
    fields: dict[str, Any] = {}
    for name in IN_ORDER:
        kind, on = PROTOCOLS.kind(name), name in DEFAULT
        words = f"{getattr(kind, 'summary', '')}; null = none{'' if on else ', {} = as it is'}"
        fields[name] = (kind | None, Field(kind() if on else None, description=words))
    return create_model(
        section.__name__, __base__=section, __module__=section.__module__, __doc__=section.__doc__, **fields
    )


@_one_field_each
class Evaluation(Preparation, frozen=True, extra="allow"):
    """Protocols on frozen features, fitted on `train`, tested on `val`; each is a field by its name.

    A field of another name holds the protocol that it says: `knn50: {name: knn, k: 50}` or `mine: {name:
    mypackage.myprotocol}`. Scores are called by the name of the field.
    """

    __pydantic_extra__: dict[str, Annotated[AnyProtocol, WrapValidator(_with_name)]]
    extra_kind: ClassVar[Any] = AnyProtocol

    data: Annotated[AnyData | None, BeforeValidator(_in_folders)] = Field(
        None,
        description="labelled pictures to fit and test on that lie elsewhere: a section like `data`, or only a folder "
        "with train/CLASS/ and val/CLASS/; null = those of `data`. They are normalised as `data` is",
    )
    every: int | None = Field(None, ge=1, description="steps between evaluations; null = only at the end")
    fractions: tuple[Fraction, ...] = Field(
        (1.0,), min_length=1, description="shares of the training labels to use, each its own result"
    )

    @property
    def protocols(self) -> dict[str, Protocol]:
        """Protocols that are on, by name: the fields in their order, then those under other names."""
        return {name: value for name, value in self if isinstance(value, Protocol)}

    @property
    def needs_labels(self) -> bool:
        """Whether classes matter; without protocols they do."""
        needed = [protocol.labels for protocol in self.protocols.values()]
        return any(needed) or not needed

    @model_serializer(mode="wrap")
    def _without_names(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the name of a protocol where its field has it."""
        return {name: told(name, value) if isinstance(value, dict) else value for name, value in handler(self).items()}

    def check(self, splits: Splits) -> None:
        """Raise errors of the images and of every protocol now, not in the middle of training."""
        _ = splits.sources
        for protocol in self.protocols.values():
            protocol.check(splits)

    def check_reads(self, encoder: EncoderConfig) -> None:
        """Raise UserError when encoders of a recipe lack features that are asked for."""
        pool = self.pool or "mean"
        for spec in (FeatureSpec(pool), *required(self.protocols, pool, 1)):
            if not encoder.family.can_read(encoder.model, spec.pool, spec.blocks):
                lacks = "its last map alone is read"
                if not encoder.family.can_read(encoder.model, spec.pool, 1):
                    lacks = "it has no class token"
                raise UserError(
                    f"evaluate asks for pool={spec.pool} of {spec.blocks} block(s) of {encoder.in_words}, but {lacks}. "
                    "Set evaluate.pool=mean, and take `cls` and more blocks out of its protocols."
                )


def told(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    """Settings of a protocol in a section called `name`."""
    return {field: value for field, value in settings.items() if field != "name" or value != name}


class Evaluator:
    """Computes the scores of an encoder on images of `shape` (height, width). Knows nothing of training.

    Attributes:
        pictures: how many test images, or episodes, each score was the mean of, by name; without scores that are none.
    """

    def __init__(self, evaluation: Evaluation, splits: Splits, shape: tuple[int, int]) -> None:
        self.evaluation, self.splits, self.shape = evaluation, splits, shape
        self.pictures: dict[str, int] = {}

    @property
    def fingerprint(self) -> str:
        """Of the images of both splits."""
        return digest([source.fingerprint().encode() for source in self.splits.sources])

    def __call__(self, encoder: Encoder, pool: Pool | None = None) -> Iterator[tuple[str, float]]:
        """Yield ("knn", percent), ("linear", percent), then the same for smaller shares as "linear_1%".

        All processes must call it and get the same scores. Neither the encoder nor the random state changes.

        Args:
            encoder: in any mode.
            pool: of tokens where the recipe has none; None = the encoder's default.

        Raises:
            UserError: the images have no labels, or the encoder cannot be pooled as asked.
        """
        bench, protocols = Bench(encoder, self.splits, self.shape, pool=pool), self.evaluation.protocols
        bench.prepare(required(protocols, bench.pool, encoder.readable))
        for score, _, fraction, _ in runs(protocols, self.evaluation.fractions, bench):
            name = scored(score.name, fraction)
            if score.each is not None:
                self.pictures[name] = len(score.each)
            yield name, score.value


def required(protocols: Mapping[str, Protocol], pool: Pool, depth: int) -> list[FeatureSpec]:
    """The features of all protocols, see `Protocol.required_features`."""
    return [spec for protocol in protocols.values() for spec in protocol.required_features(pool, depth)]


def runs(
    protocols: Mapping[str, Protocol], fractions: Sequence[float], bench: Bench, seeds: int = 1
) -> Iterator[tuple[Score, Protocol, float, int]]:
    """Scores with protocol, share of the labels and seed of its draw; protocols without training labels run once, last.

    Raises:
        UserError: two protocols give a score one name.
    """
    names: dict[tuple[str, float, int], str] = {}
    order = [(name, fraction) for fraction in fractions for name, one in protocols.items() if one.few_labels]
    order += [(name, 1.0) for name, one in protocols.items() if not one.few_labels]
    for name, fraction in order:
        for seed in range(1 if fraction == 1 else seeds):  # with every label there is nothing to draw
            for score in measured(name, protocols[name], bench.few(fraction, seed)):
                if (other := names.setdefault((score.name, fraction, seed), name)) != name:
                    raise UserError(f"{other} and {name} both have a score {score.name}. Give one another name.")
                yield score, protocols[name], fraction, seed


def measured(name: str, protocol: Protocol, bench: Bench) -> list[Score]:
    """Scores of a protocol called `name`, in float32 even under the caller's autocast."""
    with torch.autocast(bench.device.type, enabled=False):
        found = [Score(*score) for score in protocol.scores(bench)]
    return [score._replace(name=f"{name}_{score.name}" if score.name else name) for score in found]
