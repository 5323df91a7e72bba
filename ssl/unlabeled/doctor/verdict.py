"""Findings, the worst first, each with advice, and the verdict in one sentence."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, NamedTuple, get_args

from unlabeled.data.label.overlap import how_to_tell_apart
from unlabeled.doctor.facts import Facts
from unlabeled.launch.plan import gigabytes, number
from unlabeled.progress import duration
from unlabeled.train.recipe import Recipe

# the worst first
Severity = Literal["stop", "high", "warning", "note"]

# thresholds of findings
MEAN_OFF, STD_OFF = 0.1, 1.5
MANY_ENLARGED, MANY_LARGE, MANY_COPIES = 0.1, 0.5, 0.01
UNEVEN, WAITING, NEARLY_FULL = 10, 0.1, 0.9


class Finding(NamedTuple):
    """A finding.

    Attributes:
        code: its name, for machines.
        severity: stop = the run would fail or be spoiled; high, warning = it will run; note = good to know.
        text: the finding in words.
        advice: how to mend it.
    """

    code: str
    severity: Severity
    text: str
    advice: str


def findings(recipe: Recipe, facts: Facts) -> list[Finding]:
    """All findings, the worst first, from facts as in `unlabeled.doctor`."""
    found = [*_start(facts), *_overlap(facts["copies"])]
    for name, split in facts["splits"].items():
        found += [*_unreadable(recipe, name, split), *_suspicious(name, split), *_copies(name, split, facts["copies"])]
    train = facts["splits"]["train"]
    pretrains = facts["stage"] == "pretrain"
    # fine-tuning normalises as the encoder was trained
    found += [*(_channels(recipe, train) if pretrains else ()), *_sizes(train), *_classes(train, pretrains)]
    found += [*_speed(recipe, facts["speed"], train)]
    if folders := facts["as_one"]:
        advice = f"if some are to test on: {how_to_tell_apart(folders)}"
        found.append(Finding("as_one", "warning", f"{', '.join(folders)} are all trained on, as one", advice))
    found += _too_long(facts["speed"], facts["time_limit"])
    return sorted(found, key=lambda finding: get_args(Severity).index(finding.severity))


def sentence(found: Sequence[Finding]) -> str:
    """The verdict in words."""
    stops = [finding for finding in found if finding.severity == "stop"]
    warnings = sum(finding.severity in ("high", "warning") for finding in found)
    looks = f"{number(warnings, 'thing')} to look at" if warnings else ""
    if [finding.code for finding in stops] == ["too_long"]:
        return f"not in time: {stops[0].text}" + (f"; {looks}" if looks else "")
    if stops:
        return f"not ready: {number(len(stops), 'thing')} to mend first"
    return f"ready, but {looks}" if looks else "ready"


def _start(facts: Facts) -> Iterator[Finding]:
    for reason in facts["refused"]:
        yield Finding("refused", "stop", f"the run would not start: {reason}", "mend this and look again")
    for caution in facts["cautions"]:
        yield Finding(caution["code"], "warning", caution["text"], caution["advice"])
    if facts["out_of_memory"]:
        advice = "set run.checkpoint_activations=blocks, raise run.accumulate, or lower train.batch_size"
        yield Finding("out_of_memory", "stop", "a step does not fit into the memory of the GPU", advice)


def _unreadable(recipe: Recipe, name: str, split: Facts) -> Iterator[Finding]:
    bad, looked, allowed = split["unreadable"]["count"], split["looked_at"], recipe.data.max_bad_fraction
    if not bad:
        return
    first = split["unreadable"]["examples"][0]
    text = f"{bad:,} of {number(looked, 'picture')} of {name} cannot be read, such as {first['key']}: {first['reason']}"
    advice = "mend or remove them; a run skips them and writes them to bad_samples.jsonl"
    if name == "train" and bad > allowed * looked:
        text += f". More than data.max_bad_fraction={allowed:g} allows: the run would stop"
        yield Finding("unreadable", "stop", text, "mend or remove them, or raise data.max_bad_fraction")
    else:
        yield Finding("unreadable", "warning", text, advice)


def _suspicious(name: str, split: Facts) -> Iterator[Finding]:
    what = {
        "constant": ("of one colour and nothing else", "remove them if they are failures of a camera or a download"),
        "elongated": ("more than five times as long as wide", "cut them up: crops stretch them or see a part"),
        "tiny": ("tiny", "remove them if they are thumbnails: crops enlarge them until nothing is left"),
        "wrong_ending": ("of another kind than their names say", "rename them; they are read all the same"),
        "boxes_outside": ("with boxes that end outside", "mend them: they are cut at the edge"),
        "boxes_empty": ("with boxes of less than a pixel", "remove these: they are left out"),
        "boxes_doubled": ("with a box that is there twice", "remove one: such an object counts twice"),
    }
    for kind, (text, advice) in what.items():
        found = split.get("suspicious", {}).get(kind, {"count": 0})
        if found["count"]:
            severity: Severity = "note" if kind == "wrong_ending" else "warning"
            count = _share(found["count"], split)
            yield Finding(kind, severity, f"{count} of {name}: {text}, such as {found['examples'][0]}", advice)


def _copies(name: str, split: Facts, copies: Facts) -> Iterator[Finding]:
    for kind, text in (("exact", "the same as others to the pixel"), ("near", "look the same as others")):
        found = copies.get(name, {}).get(kind, {"count": 0})
        if found["count"]:
            severity: Severity = "warning" if found["count"] >= MANY_COPIES * split["looked_at"] else "note"
            count, pair = _share(found["count"], split), " and ".join(found["examples"][0][:2])
            advice = "remove copies: such a picture counts more than others"
            yield Finding(f"{kind}_duplicates", severity, f"{count} of {name}: {text}, such as {pair}", advice)
    if conflicts := copies.get(name, {}).get("conflicting_labels"):
        text = f"{number(conflicts, 'picture')} of {name} with another label than the same picture elsewhere in it"
        yield Finding("conflicting_labels", "warning", text, "one of the two labels is wrong: look at them")


def _overlap(copies: Facts) -> Iterator[Finding]:
    for kind, how in (("exact", "to the pixel"), ("near", "encoded anew or resized")):
        found = copies.get("overlap", {}).get(kind, {"count": 0})
        if found["count"]:
            train, val = found["examples"][0]
            text = f"{number(found['count'], 'picture')} of val also in train ({how}), such as {val}, which is {train}"
            yield Finding(f"leak_{kind}", "high", text, "remove them from one split: scores on val come out too high")


def _channels(recipe: Recipe, split: Facts) -> Iterator[Finding]:
    if "mean" not in split:
        return
    if split["channels"] != len(recipe.data.mean):
        text = f"pictures have {number(split['channels'], 'channel')}, data.mean and data.std {len(recipe.data.mean)}"
        yield Finding("channels", "stop", text, "give data.mean and data.std a number per channel")
        return
    pairs = list(zip(split["std"], recipe.data.std, strict=True))
    off = any(abs(ours - theirs) > MEAN_OFF for ours, theirs in zip(split["mean"], recipe.data.mean, strict=True))
    if off or any(not 1 / STD_OFF <= ours / theirs <= STD_OFF for ours, theirs in pairs):
        text = f"data.mean and data.std are far from those of the pictures, {split['mean']} and {split['std']}"
        if min(split["std"]) == 0:
            yield Finding("normalisation", "warning", text, "a channel is the same everywhere: leave it out")
        else:
            advice = f"set data.mean={_pasted(split['mean'])} data.std={_pasted(split['std'])}"
            yield Finding("normalisation", "warning", text, advice)


def _sizes(split: Facts) -> Iterator[Finding]:
    if split.get("smaller_than_crop", 0) >= MANY_ENLARGED:
        text = f"{100 * split['smaller_than_crop']:.0f} % of the pictures of train are smaller than the largest crop"
        yield Finding("enlarged", "warning", text, "lower the size of the views: enlarging adds cost and no detail")


def _classes(split: Facts, pretrains: bool) -> Iterator[Finding]:
    classes = split["classes"]
    if classes is None:
        return
    severity: Severity = "note" if pretrains else "warning"
    if classes["empty"]:
        text = f"{classes['empty']:,} of {classes['classes']:,} classes have no picture in train"
        yield Finding("empty_classes", severity, text, "nothing can be learnt about them: add pictures")
    elif classes["ratio"] >= UNEVEN:
        small, large = classes["smallest"], classes["largest"]
        few = f"'{small['name']}' {small['pictures']:,}"
        text = f"classes are uneven: '{large['name']}' has {large['pictures']:,} pictures, {few}"
        yield Finding("uneven_classes", severity, text, "look at the accuracy per class, not at its mean alone")
    if classes["unlabelled"]:
        text = f"{classes['unlabelled']:,} of {split['pictures']:,} pictures of train have no label"
        yield Finding("unlabelled", "note", text, "probes and fine-tuning leave them out")


def _speed(recipe: Recipe, speed: Facts | None, split: Facts) -> Iterator[Finding]:
    if speed is None:
        return
    rates, waiting = speed["images_per_s"], speed["waiting"]
    if (speed["bound_by"] == "loader" or not speed["workers"]) and waiting >= WAITING:
        how = f"pictures come at {rates['loader']:,.0f}/s and the model takes {rates['model']:,.0f}/s"
        if not speed["workers"]:
            how = "with run.workers=0 pictures are made between steps"
        text = f"{how}: the model would wait {100 * waiting:.0f} % of the time"
        yield Finding("loader_bound", "warning", text, _faster_loader(recipe, speed, split))
    elif speed["workers"] > speed["cores"]:
        text = f"run.workers={speed['workers']}, but this machine has {speed['cores']} cores"
        yield Finding("many_workers", "note", text, f"set run.workers={speed['cores']} or fewer here")
    memory = speed["memory"]
    if memory["peak"] > NEARLY_FULL * memory["available"] or memory["expected"] > memory["available"]:
        text = (
            f"memory is short: {gigabytes(memory['peak'])} held, {gigabytes(memory['expected'])} expected, "
            f"{gigabytes(memory['available'])} there"
        )
        how = (
            "set run.checkpoint_activations=blocks, raise run.accumulate (where the method allows it), lower "
            "train.batch_size, or use train.precision=bf16"
        )
        yield Finding("memory", "high", text, how)


def _too_long(speed: Facts | None, limit: Facts) -> Iterator[Finding]:
    if speed is None:
        return
    seconds = speed["time"]["training_s"] + speed["time"]["evaluation_s"]
    if seconds <= 3600 * limit["hours"]:
        return
    allowed = duration(3600 * limit["hours"])
    text = f"a run would take {duration(seconds)} in one process on this machine, and {allowed} are allowed (--hours)"
    fits = "; ".join(limit["fits"])
    advice = f"what fits in {allowed}: {fits}" if fits else f"no crop and no recipe of this method fits in {allowed}"
    yield Finding("too_long", "stop", text, f"{advice}. Or use more processes or another machine, or raise --hours")


def _faster_loader(recipe: Recipe, speed: Facts, split: Facts) -> str:
    # the network needs cores of its own where it runs on them
    free = speed["cores"] - (speed["threads"] if speed["device"] == "cpu" else 0)
    workers, rates = speed["workers"], speed["images_per_s"]
    if workers < free:
        wanted = math.ceil(max(1, workers) * rates["model"] / rates["loader"])
        return f"set run.workers={min(free, max(wanted, workers + 1))}: {speed['cores']} cores are there"
    if split.get("larger_than_twice_crop", 0) >= MANY_LARGE and recipe.data.parts == (recipe.data,):
        return (
            "most pictures are far larger than the crops: make small copies once with "
            "unlabeled prepare RECIPE data.cache=FOLDER, and train with data.cache=FOLDER"
        )
    return "use a machine with more cores, or views that cost less"


def _share(count: int, split: Facts) -> str:
    return f"{count:,} of {number(split['looked_at'], 'picture')}"


def _pasted(values: list[float]) -> str:
    return f"[{','.join(f'{value:g}' for value in values)}]"
