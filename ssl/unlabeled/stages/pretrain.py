"""Pretraining: recipe -> method and images -> the engine -> an export of the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from shlex import quote
from typing import Annotated, Any, ClassVar, Literal, cast

import torch
from accelerate import Accelerator
from pydantic import Field, field_validator
from pydantic_core.core_schema import ValidationInfo

from unlabeled.backbone.folder import Preprocessing, export_encoder
from unlabeled.backbone.importing import importer_names
from unlabeled.backbone.pooling import encoder_features
from unlabeled.data.archive.listing import Split
from unlabeled.data.batch.loader import Normalize, ViewDataset
from unlabeled.data.batch.sampler import per_process, steps_per_epoch, total_steps
from unlabeled.data.opened import Opened, location
from unlabeled.data.source import Source, SourceConfig
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.evaluate.evaluation import Evaluation, Evaluator
from unlabeled.evaluate.features import Encode
from unlabeled.evaluate.protocol import ACCURACY
from unlabeled.evaluate.splits import Splits, most_frequent
from unlabeled.launch.plan import Line, on_meta
from unlabeled.launch.sides import held_out
from unlabeled.launch.stage import Stage
from unlabeled.look.collect import Prepared
from unlabeled.look.during import Looking, Pictures
from unlabeled.look.recipe import Look
from unlabeled.paths import UserPath
from unlabeled.pretrain.continued import Caution, Continued, advice, cautions
from unlabeled.pretrain.method import AnyMethod, Method, MethodConfig, PretrainMethod, Progress
from unlabeled.pretrain.rescale import Rescaled, Setting, check_epochs, rescale
from unlabeled.processes import on_main
from unlabeled.progress import duration
from unlabeled.recipe import dump, load, said
from unlabeled.recipe.free import FREE
from unlabeled.report.card import Made, pretrain_card
from unlabeled.train.bar import Bar
from unlabeled.train.beginning import Begun, begin
from unlabeled.train.engine import Engine
from unlabeled.train.following import following
from unlabeled.train.job import Job
from unlabeled.train.pictures import PictureWriter
from unlabeled.train.recipe import ELSEWHERE, Recipe
from unlabeled.train.state import split_heads

SUMMARY = "pretrain an encoder on pictures without labels"


class PretrainRecipe(Recipe, frozen=True, extra="forbid"):
    """A recipe for `unlabeled pretrain`."""

    method: AnyMethod = Field(description="what is learnt and from what")
    init: UserPath | None = Field(
        None,
        description="weights to begin with: an export folder (its heads too where they fit), a fine-tuned one, "
        f"METHOD:FILE.pth of an official release ({', '.join(f'{name}:' for name in importer_names())}), timm:NAME, or "
        "hf-hub:OWNER/NAME. "
        "Fields of method.encoder follow from it unless set; null = from scratch",
    )
    adapt: tuple[Literal["size", "channels"], ...] = Field(
        (),
        description="what of the weights at init may be fitted to the pictures: size (positions are resampled), "
        "channels (the first layer is summed or repeated)",
    )
    continued: Continued | None = Field(
        None, description="how the encoder of `init` learns on without forgetting; null = as a new one"
    )
    evaluate: Annotated[Evaluation | None, FREE] = Field(
        None,
        description="kNN and linear probes on labelled pictures while it trains; null = none. A protocol may stand "
        "here again under a name of its own: knn50: {name: knn, k: 50}",
    )

    look: Annotated[Look | None, FREE] = Field(
        Look(), description="what is drawn of the encoder while it trains and at the end; null = nothing"
    )

    @field_validator("method")
    @classmethod
    def _channels_match(cls, method: MethodConfig, info: ValidationInfo) -> MethodConfig:
        data = info.data.get("data")
        if data is not None and method.backbone.channels != data.channels:
            found, given = method.backbone.channels, data.channels
            raise ValueError(
                f"encoder.channels is {found}, the pictures have {given} (the values of data.mean and data.std). Set "
                f"method.encoder.channels={given}, or give mean and std {found} values each"
            )
        return method if data is None else method.seeing(Preprocessing.of(data, 1.0))

    @field_validator("evaluate")
    @classmethod
    def _seen_alike(cls, evaluate: Evaluation | None, info: ValidationInfo) -> Evaluation | None:
        if evaluate is None or evaluate.data is None or "data" not in info.data:
            return evaluate
        return evaluate.model_copy(update={"data": evaluate.data.normalised_as(info.data["data"], ELSEWHERE)})

    @field_validator("continued")
    @classmethod
    def _continues_something(cls, continued: Continued | None, info: ValidationInfo) -> Continued | None:
        if continued is not None and info.data.get("init") is None:
            raise ValueError(
                "found settings for an encoder that learns on, but init is null. Set init, or leave it out"
            )
        return continued

    successor: ClassVar[str | None] = "init"

    @property
    def views(self) -> dict[str, View]:
        return {f"method.{name}": value for name, value in self.method if isinstance(value, View)}

    @property
    def elsewhere(self) -> SourceConfig | None:
        return None if self.evaluate is None else self.evaluate.data

    @property
    def evaluated_every(self) -> int | None:
        return None if self.evaluate is None else self.evaluate.every

    @property
    def crop_unit(self) -> int:
        return self.method.backbone.crop_multiple

    def replaces(self, other: Recipe) -> bool:
        """Whether it is of the same method, for images of as many channels."""
        if not isinstance(other, PretrainRecipe) or self.method.name != other.method.name:
            return False
        return self.method.backbone.channels == other.data.channels

    def bound_to_length(self, old: Progress, new: Progress) -> Iterator[str]:
        batch = self.train.batch_size
        short, long = (rescale(self.method, Setting(batch, p.epochs, p.total_steps))[0] for p in (old, new))
        for name, end in self.method.ends.items():
            if getattr(short, name) != end:
                yield f"method.{name}: it goes from {getattr(short, name):g} to {end:g} over the whole run"
        if self.continued is not None and self.continued.hold:
            yield f"continued.hold: heads learn alone for {self.continued.hold:g} of the run"
        for name in self.method.rules:
            if name not in self.method.ends and getattr(short, name) != getattr(long, name):
                yield f"method.{name}: left at null it follows from the length of the run"


@dataclass(frozen=True, kw_only=True)
class PretrainJob(Job):
    """The job of a recipe for `unlabeled pretrain`."""

    recipe: PretrainRecipe
    method: MethodConfig  # with the values of this run
    steps: int  # of the run
    rescaled: Sequence[Rescaled]  # settings of the method that follow from batch and length of the run
    others: dict[str, str]  # weights that it learns from beside those of `init`, see `MethodConfig.relies_on`
    begun: Begun | None = None  # the weights that it begins with; None = from scratch
    looking: Looking | None = None  # draws its encoder; None = nothing does


class Pretrain(Stage[PretrainRecipe, PretrainJob]):
    """The pretraining stage."""

    name = "pretrain"
    recipe_type = PretrainRecipe

    def load(self, path: str | Path, overrides: Sequence[str] = ()) -> tuple[PretrainRecipe, Sequence[str]]:
        taken: list[str] = []
        kept: list[str] = []
        unread: UserError | None = None
        try:
            taken, kept = following(said(path, overrides))
        except UserError as error:
            unread = error
        try:
            return load(PretrainRecipe, path, [*overrides, *taken, *kept]), taken
        except UserError:
            if unread is not None:  # the faults may be of fields that follow from what could not be read
                raise unread from None
            raise

    def job(self, recipe: PretrainRecipe, data: Opened) -> PretrainJob:
        source, train = data.train, recipe.train
        steps = total_steps(train.epochs, steps_per_epoch(len(source), train.batch_size))
        check_epochs(recipe.method, train.epochs)
        config, rescaled = rescale(recipe.method, Setting(train.batch_size, train.epochs, steps))
        if recipe.continued is not None:
            config, rescaled = recipe.continued.slowed(config, rescaled)

        base, uncut = recipe.data.order, recipe.run.views == "device"
        mixing, seed = config.mixing, recipe.seed
        dataset = ViewDataset(source, config.views, config.mask_patch, seed, mixing, base=base, uncut=uncut)
        job = PretrainJob(
            recipe=recipe,
            build=config.build,
            data=data,
            dataset=dataset,
            method=config,
            steps=steps,
            rescaled=rescaled,
            others=config.relies_on(),
        )
        if recipe.init is None:
            return job
        shape = config.views[0].shape
        sizes = [f"{field}.size" for field, view in recipe.views.items() if view.shape == shape]
        beginning = begin(recipe.init, config.backbone, shape, recipe.data.channels, recipe.adapt, sizes)

        def build() -> Method:
            method = config.build()
            beginning.load_(method)
            if recipe.continued is not None:
                method.continue_(recipe.continued)
            return method

        outline = cast("PretrainMethod", on_meta(config.build))
        return replace(job, build=build, begun=beginning.described(outline, Preprocessing.of(recipe.data, 1.0)))

    def scored(self, job: PretrainJob, accelerator: Accelerator) -> PretrainJob:
        recipe, evaluator = job.recipe, self._evaluator(job.recipe, job.data, accelerator)
        each = per_process(recipe.train.batch_size, accelerator.num_processes, recipe.run.micro_batches)
        job.dataset.mixing.check(each, "method.mixup")
        looking = _looking(job, accelerator.device)

        def scores(method: Any) -> Iterator[tuple[str, float]]:
            assert evaluator is not None
            return evaluator(method.evaluated(), method.pooling())

        return replace(
            job,
            evaluate=None if evaluator is None else scores,
            facts={
                "pictures": job.dataset.source.fingerprint(),
                **job.others,
                **({} if evaluator is None or recipe.elsewhere is None else {ELSEWHERE: evaluator.fingerprint}),
                **({} if job.begun is None else {"init": job.begun.digest}),
            },
            picture=Pictures(
                PictureWriter(Path(recipe.output) / "pictures", recipe.data.mean, recipe.data.std), looking
            ),
            looking=looking,
            bar=None if recipe.init is None else _bar(recipe, recipe.init, evaluator),
        )

    def _evaluator(self, recipe: PretrainRecipe, data: Opened, accelerator: Accelerator) -> Evaluator | None:
        if recipe.evaluate is None:
            if recipe.data.has_val:  # not read now, but by whatever comes after this run
                data.pictures("val")
            return None
        labelled = data.other(ELSEWHERE, recipe.elsewhere)
        if recipe.elsewhere is not None and not recipe.elsewhere.has_val:
            raise UserError(
                f"{ELSEWHERE} has no pictures to test on: expected {recipe.elsewhere.what_val_is}, or a share of every "
                f"class that is held out: {ELSEWHERE}.split=0.2"
            )
        if not labelled.config.has_val:
            raise UserError(
                "evaluate needs labelled pictures, but data.val is null. Set data.val, hold a share of every class out "
                "of train (data.split=0.2), or name other labelled pictures (evaluate.data=FOLDER); or evaluate=null."
            )
        # one process looks for images, the others read its index
        on_main(accelerator, lambda: labelled.pictures("train"), whole=False)
        evaluate, run = recipe.evaluate, recipe.run
        evaluate.check_reads(recipe.method.backbone)
        where = (accelerator.device, run.workers, accelerator.process_index, accelerator.num_processes)
        splits = Splits(evaluate, labelled, *where, labels=evaluate.needs_labels, timeout=run.timeout)
        evaluate.check(splits)
        return Evaluator(evaluate, splits, recipe.method.views[0].shape)

    def plan(self, job: PretrainJob, taken: Sequence[str]) -> list[Line]:
        recipe, source = job.recipe, job.dataset.source
        labels = f", {len(source.classes)} classes (not used to pretrain)" if source.classes else ""
        encoder, rescaled = recipe.method.backbone, job.rescaled
        return [
            ("pictures", f"{len(source):,} from {location(recipe.data)}{labels}"),
            ("method", f"{recipe.method.name} with {encoder.model}, {encoder.summary}"),
            *job.others.items(),
            *([] if job.begun is None else [("init", job.begun.words)]),
            *([("taken", f"from init: {', '.join(taken)}")] if taken else []),
            *([] if recipe.evaluate is None else [("evaluate", _evaluation(recipe.evaluate, job))]),
            *(("rescaled", f"{name}: paper {paper:g}, yours {own:.6g}: {why}") for name, paper, own, why in rescaled),
            *(
                []
                if recipe.continued is None
                else [("continued", recipe.continued.in_words(job.steps)), ("keep", _kept(recipe, recipe.continued))]
            ),
            *(("caution", f"{text}: {advice}") for _, text, advice in self.cautions(job)),
        ]

    def cautions(self, job: PretrainJob) -> list[Caution]:
        recipe, begun = job.recipe, job.begun
        if begun is None:
            return []
        peak = recipe.optim.peak(recipe.train.batch_size)
        return list(cautions(recipe.continued, job.method, peak, recipe.optim.gentle, begun.new, job.steps))

    def finish(self, job: PretrainJob, engine: Engine) -> list[str]:
        recipe, output, export = job.recipe, engine.output, f"{engine.output}/export"
        kept = engine.checkpoints.best if engine.use_best() else None
        method = cast("PretrainMethod", engine.whole_method())
        encoder, heads = split_heads(method)
        if unlearnt := kept == 0 and job.begun is not None and bool(job.begun.new):
            heads = {}
        address = encoder.address(encoder.model, export)
        how = recipe.evaluate or Evaluation()
        prepared = Preprocessing.of(recipe.data, how.crop_pct, how.interpolation, how.pool or method.pooling())
        source = job.dataset.source
        counts = (len(source), job.facts["pictures"], engine.step, engine.skipped, len(engine.bad.keys))
        begun = "" if job.begun is None else job.begun.words
        loading = encoder.loading(encoder.model, encoder.arguments, told=", num_classes=0")
        facts = Made(recipe.name, dump(recipe), *counts, begun=begun, kept=kept, held_out="; ".join(held_out(job.data)))
        found = engine.evaluated if kept is None or engine.bar is None else engine.bar.scores.best
        card = pretrain_card(facts, recipe.method.name, found, loading)
        on_main(engine.accelerator, lambda: export_encoder(output / "export", encoder, prepared, card, heads))
        if (looking := job.looking) is not None:
            step = engine.step if kept is None else kept
            on_main(engine.accelerator, lambda: looking.map(step, method, engine.clock.seconds), whole=False)
        compared = "" if engine.bar is None else engine.bar.verdict(engine.evaluated, kept)
        return [
            f"done in {duration(engine.clock.seconds)}: {engine.step:,} steps, {engine.skipped} skipped, "
            f"{len(engine.bad.keys)} bad pictures",
            f"  encoder    {export}  ({encoder.loaded_by(encoder.model, export)})",
            f"  metrics    {output}/metrics.jsonl   pictures {output}/pictures",
            *([compared] if compared else []),
            *(["  heads      none are exported: those of the start were new"] if unlearnt else []),
            f"next: unlabeled ladder {quote(address)} {_labelled(job)}   (which way to use it pays)",
        ]

    def evaluated(self, recipe: PretrainRecipe) -> tuple[Split, ...]:
        return () if recipe.evaluate is None else ("train", "val")  # fitted on `train`, tested on `val`

    def check_evaluation(self, recipe: PretrainRecipe, data: Opened) -> None:
        if (evaluate := recipe.evaluate) is not None:
            evaluate.check(
                Splits(
                    evaluate, data.other(ELSEWHERE, recipe.elsewhere), torch.device("cpu"), labels=evaluate.needs_labels
                )
            )

    def encoder(self, job: PretrainJob, method: Method) -> Encode:
        how = job.recipe.evaluate or Evaluation()
        trained = cast("PretrainMethod", method)
        return encoder_features(trained.evaluated(), how.pool or trained.pooling())


def _evaluation(how: Evaluation, job: PretrainJob) -> str:
    """The protocols, and how images become features for them; the export says the same."""
    method, names = job.recipe.method, ", ".join(how.protocols)
    height, width = method.views[0].shape
    pool = how.pool or f"{cast('PretrainMethod', on_meta(job.build)).pooling()} (as {method.name} is evaluated)"
    labelled, on, level = job.data.other(ELSEWHERE, how.data), "", ""
    if any(protocol.unit == ACCURACY for protocol in how.protocols.values()):
        with suppress(UserError):  # which the evaluation raises, too
            right = most_frequent(labelled.train, labelled.val)[-1]
            level = f" (always the most frequent class: {right.mean():.1f} %)"
    if how.data is not None:
        train, test = len(labelled.pictures("train")), len(labelled.pictures("val"))
        on = f"; fitted on {train:,} and tested on {test:,} pictures of {ELSEWHERE} ({location(how.data)})"
    return f"{names}{level}; size {height}x{width}, crop {how.crop_pct:g}, {how.interpolation}, pooling {pool}{on}"


def _looking(job: PretrainJob, device: torch.device) -> Looking | None:
    """What draws the encoder, prepared as for its evaluation."""
    recipe, run = job.recipe, job.recipe.run
    if recipe.look is None:
        return None
    how, normalize = recipe.evaluate or Evaluation(), Normalize(recipe.data.mean, recipe.data.std, device)

    def sources() -> dict[str, Source]:
        labelled = job.data.other(ELSEWHERE, recipe.elsewhere)
        val = {"val": labelled.pictures("val")} if labelled.config.has_val else {}
        train = job.dataset.source if recipe.elsewhere is None else labelled.pictures("train")
        return {**val, "train": train}

    return Looking(
        recipe.look,
        Path(recipe.output) / "look",
        sources,
        Prepared(recipe.method.views[0].shape, how.crop_pct, how.interpolation, normalize, device),
        pool=how.pool,
        seed=recipe.seed,
        most=recipe.look.most(job.steps, recipe.train.batch_size),
        workers=run.workers,
        timeout=run.timeout,
    )


def _in_percent(recipe: PretrainRecipe) -> list[str]:
    """The protocols whose scores are in percent: these are better when they are higher."""
    protocols = {} if recipe.evaluate is None else recipe.evaluate.protocols
    return [name for name, one in protocols.items() if one.unit.endswith("%")]


def _kept(recipe: PretrainRecipe, continued: Continued) -> str:
    """The weights that a run with a `continued:` section exports, for its plan."""
    names = _in_percent(recipe)
    if continued.keep == "last":
        return "the last"
    if names:
        return f"the best by {names[0]} of the start and every evaluation"
    return "the last: to keep the best, evaluate must have a score in percent, such as knn"


def _bar(recipe: PretrainRecipe, init: str, evaluator: Evaluator | None) -> Bar:
    """What a run that begins with an encoder is compared with."""
    keep = recipe.continued is not None and recipe.continued.keep == "best"
    pictures = None if evaluator is None else evaluator.pictures
    return Bar(init, _in_percent(recipe), advice(recipe.continued), keep, pictures)


def _labelled(job: PretrainJob) -> str:
    """The DATA of a command that needs labelled images: the run itself where it has some."""
    with suppress(UserError):  # of labels that were not asked for and do not fit
        labelled = job.data.other(ELSEWHERE, job.recipe.elsewhere)
        if labelled.config.has_val and labelled.train.classes and labelled.val.classes:
            return quote(job.recipe.output)
    return "LABELLED"


STAGE = Pretrain()
