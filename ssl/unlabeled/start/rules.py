"""Every choice of `unlabeled start` as one table: of the rows of a field, the first whose conditions all hold.

A condition is `FACT SIGN VALUE`, see `unlabeled.start.facts`, or is about a field further up; several are separated by
commas, none holds always. The last row of a field has none. `unlabeled start --rules` prints the table, docs/start.md
has it.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from unlabeled.launch.plan import number
from unlabeled.report.document import Document, Table, Text
from unlabeled.start.facts import Facts

SIGNS: dict[str, Callable[[Any, Any], bool]] = {"=": operator.eq, "<": operator.lt, ">=": operator.ge}
# where a choice comes from
METHODS = "benchmarks/results/2026-11-24_methods.md"
CONTINUED = "benchmarks/results/2026-11-29_continued.md"
LOG = "benchmarks/LOG.md"
FIRST_HOUR = "benchmarks/results/2026-11-30_first_hour.md"
PAPER, ARITHMETIC, UNMEASURED = "the papers", "arithmetic", "not measured"


class Rule(NamedTuple):
    """A row of the table.

    Attributes:
        field: the choice to make.
        when: conditions on facts, separated by commas; '' = always.
        take: the choice.
        because: the reason, in words; facts in braces are filled in.
        evidence: a file of results, or where else it comes from.
    """

    field: str
    when: str
    take: str | int
    because: str
    evidence: str

    def holds(self, facts: Facts, chosen: Mapping[str, Rule]) -> bool:
        """Whether all conditions hold, of facts and of fields that were chosen before."""
        return all(_holds(condition.split(), facts, chosen) for condition in filter(None, self.when.split(", ")))

    def reason(self, facts: Facts) -> str:
        """The reason with the facts filled in."""
        return self.because.format(**facts._asdict() | {"cores": number(facts.cores, "core")})


def _holds(condition: list[str], facts: Facts, chosen: Mapping[str, Rule]) -> bool:
    name, sign, text = condition
    found = chosen[name].take if name in chosen else getattr(facts, name)
    value = text == "yes" if isinstance(found, bool) else type(found)(text)
    return SIGNS[sign](found, value)


# fmt: off
SMALL = "pictures of {side} px: larger crops would only enlarge them"
RULES = (
    # weights to begin with
    Rule("begin", "weights = none", "scratch", "no weights are at hand", ARITHMETIC),
    Rule("begin", "channels >= 4", "scratch", "weights of three channels do not fit {channels} bands", ARITHMETIC),
    Rule("begin", "device = cpu, millions >= 30", "scratch",
         "the weights at hand have {millions:.0f} M parameters: too slow for a CPU", ARITHMETIC),
    Rule("begin", "", "weights", "weights that have learnt know more than {minutes:g} minutes can teach", CONTINUED),
    # a recipe that is shipped: method, augmentations, heads and optimizer are taken from it
    Rule("recipe", "device = cuda, channels >= 4", "mae_vits16_multispectral_1gpu",
         "{channels} bands: MAE hides patches, and needs no changes of colour", PAPER),
    Rule("recipe", "device = cuda, channels = 3, grey = no, pictures >= 50000", "ibot_vits16_1gpu",
         "{pictures:,} pictures and a GPU: iBOT learns from whole pictures and from patches", PAPER),
    Rule("recipe", "device = cuda, channels = 3, grey = no, pictures >= 5000", "photos_1gpu",
         "{pictures:,} pictures and a GPU: DINO, which learns from small batches", PAPER),
    Rule("recipe", "channels = 1", "medical_grey_cpu",
         "one channel: SimCLR, which changes brightness and crops alone", METHODS),
    Rule("recipe", "grey = yes, begin = scratch", "medical_grey_cpu",
         "no colours: SimCLR, which changes brightness and crops alone", METHODS),
    Rule("recipe", "", "photos_cpu",
         "in minutes SimCLR, which tells pictures apart, learns more than MAE or DINO", METHODS),
    # the network, where it begins from scratch
    Rule("network", "device = cpu, core_minutes < 200", "test_resnet",
         "{minutes:g} minutes of {cores}: the smallest ResNet, which sees the pictures most often", FIRST_HOUR),
    Rule("network", "device = cpu, core_minutes < 480", "resnet10t",
         "{minutes:g} minutes of {cores}: a ResNet of 10 layers, which learns faster than a ViT", METHODS),
    Rule("network", "device = cpu", "resnet18",
         "{minutes:g} minutes of {cores}: a ResNet of 18 layers", UNMEASURED),
    Rule("network", "device = mps", "resnet18", "a GPU of a laptop: a ResNet of 18 layers", UNMEASURED),
    Rule("network", "channels < 4, pictures < 5000", "resnet18",
         "{pictures:,} pictures are few for a ViT: a ResNet of 18 layers", UNMEASURED),
    Rule("network", "channels = 1", "resnet50", "a GPU: a ResNet of 50 layers, the network of SimCLR's paper", PAPER),
    Rule("network", "grey = yes", "resnet50", "a GPU: a ResNet of 50 layers, the network of SimCLR's paper", PAPER),
    Rule("network", "", "vit_small_patch16_224", "a GPU: a ViT-S, the papers' network for one GPU", PAPER),
    # side of a ViT's patches, pixels
    Rule("patch", "side < 160", 8, "pictures of {side} px: smaller patches keep enough of them", PAPER),
    Rule("patch", "", 16, "the usual patches", PAPER),
    # side of the large crops, pixels
    Rule("size", "side < 48", 32, SMALL, ARITHMETIC),
    Rule("size", "side < 96", 64, SMALL, ARITHMETIC),
    Rule("size", "device = cpu, core_minutes < 240", 64,
         "{minutes:g} minutes of {cores}: small crops are seen more often", METHODS),
    Rule("size", "side < 160", 96, SMALL, ARITHMETIC),
    Rule("size", "device = cpu", 96, "{minutes:g} minutes of {cores} are enough for 96 px", UNMEASURED),
    Rule("size", "device = mps", 96, "a GPU of a laptop: 96 px", UNMEASURED),
    Rule("size", "side < 224", 160, SMALL, ARITHMETIC),
    Rule("size", "", 224, "the papers' size", PAPER),
    # colours of the crops
    Rule("colours", "recipe = photos_1gpu", "changed", "jitter and grey, as in the papers: there is time", PAPER),
    Rule("colours", "recipe = ibot_vits16_1gpu", "changed", "jitter and grey, as in the papers: there is time", PAPER),
    Rule("colours", "", "kept",
         "saturation and hue are kept: in minutes photos and satellite pictures are learnt better so", FIRST_HOUR),
    # pictures in a step
    Rule("batch", "pictures < 64", 8, "{pictures:,} pictures: small batches make more steps", LOG),
    Rule("batch", "device = cpu, pictures < 640", 32, "{pictures:,} pictures: small batches make more steps", LOG),
    Rule("batch", "device = cpu", 64, "in minutes small batches learn more, as they make more steps", LOG),
    Rule("batch", "pictures < 1280", 64, "{pictures:,} pictures: small batches make more steps", LOG),
    Rule("batch", "memory < 11", 64, "fits into {memory:.0f} GB", ARITHMETIC),
    Rule("batch", "memory >= 40", 256, "fits into {memory:.0f} GB", ARITHMETIC),
    Rule("batch", "", 128, "fits into {memory:.0f} GB", ARITHMETIC),
    # the most epochs, however much time there is
    Rule("most_epochs", "pictures < 500", 300, "more passes over so few pictures learn them by heart", UNMEASURED),
    Rule("most_epochs", "", 800, "as long as the longest runs of the papers", PAPER),
    Rule("precision", "device = cuda, bf16 = yes", "bf16", "the GPU has bfloat16: half the memory, no overflow", PAPER),
    Rule("precision", "device = cuda", "fp16", "the GPU has no bfloat16", PAPER),
    Rule("precision", "", "no", "32 bits: on a CPU less is slower", LOG),
    # processes that make samples
    Rule("workers", "cores < 4", 1, "{cores}: one process makes samples beside the network", ARITHMETIC),
    Rule("workers", "device = cpu", 2, "{cores}: two processes make samples beside the network", ARITHMETIC),
    Rule("workers", "", "all but one", "{cores}: all but one make samples, as a GPU takes many", ARITHMETIC),
    Rule("compile", "device = cuda, minutes >= 30", "true", "compiling takes minutes, then steps are faster", PAPER),
    Rule("compile", "", "false", "compiling takes minutes, and would not pay here", LOG),
    # mean and standard deviation that pictures are normalised by
    Rule("normalise", "begin = weights", "theirs", "as the weights were trained", ARITHMETIC),
    Rule("normalise", "channels = 3, grey = no, wide = no, plain = yes", "imagenet",
         "ImageNet's: those of these pictures are near", ARITHMETIC),
    Rule("normalise", "", "measured", "measured on these pictures", ARITHMETIC),
    # small copies of large pictures, made once by `unlabeled prepare`
    Rule("copies", "side >= 640", "true", "pictures of {side} px: small copies are read several times as fast", LOG),
    Rule("copies", "", "false", "pictures of {side} px are read as they are", ARITHMETIC),
    # scores while it trains
    Rule("evaluate", "labels = splits", "knn", "{classes} classes in train and val: kNN tells what is learnt", METHODS),
    Rule("evaluate", "labels = flat", "knn", "{classes} classes: kNN on a fifth that is held out", METHODS),
    Rule("evaluate", "labels = elsewhere", "knn", "{classes} classes in other pictures: kNN on those", METHODS),
    Rule("evaluate", "", "nothing", "no labelled train and val: see loss and pictures on the run's page", ARITHMETIC),
    # the second best, and when to take it
    Rule("second", "device = cuda, channels >= 4", "init=RUN/export",
         "an encoder that learnt from such bands, where there is one", CONTINUED),
    Rule("second", "device = cuda, pictures >= 5000", "mae_vits16_1gpu",
         "where most of a picture matters more than its subject, as in scans and tiles", PAPER),
    Rule("second", "begin = scratch, channels < 4", "timm:resnet18.a1_in1k",
         "public weights. Fetch them once, then start again: python -c "
         "\"import timm; timm.create_model('resnet18.a1_in1k', pretrained=True)\"", CONTINUED),
    Rule("second", "channels >= 4", "mae_vits16_multispectral_1gpu", "on a machine with a GPU", PAPER),
    Rule("second", "", "scratch", "without init and continued: where pictures are unlike photos", CONTINUED),
)
# fmt: on
FIELDS = tuple(dict.fromkeys(rule.field for rule in RULES))


def choose(facts: Facts) -> dict[str, Rule]:
    """The row of every field."""
    chosen: dict[str, Rule] = {}
    for field in FIELDS:
        chosen[field] = next(rule for rule in RULES if rule.field == field and rule.holds(facts, chosen))
    return chosen


def document() -> Document:
    """The whole table, for people."""
    head = ("field", "when", "choice", "because", "evidence")
    rows = [(rule.field, rule.when or "else", str(rule.take), rule.because, rule.evidence) for rule in RULES]
    text = Text("Of the rows of a field, the first whose conditions all hold is taken.")
    data = {"rules": [rule._asdict() for rule in RULES]}
    return Document("rules of unlabeled start", [text, Table(head, rows, left=5)], data)
