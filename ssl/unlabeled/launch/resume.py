"""Resume from a checkpoint. Changes of the recipe are refused, but for a longer run with the same steps so far."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from unlabeled.data.batch.sampler import total_steps
from unlabeled.errors import UserError
from unlabeled.manifest import Damaged, parse_json, read_file, read_manifest
from unlabeled.pretrain.method import Progress
from unlabeled.recipe import differences, format_differences, load, updated
from unlabeled.recipe.free import is_free
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.optimizer import Optim
from unlabeled.train.recipe import Recipe
from unlabeled.train.snapshot import restore_
from unlabeled.train.watch import Watching

ADVICE = "Undo this, choose another run.output, or start over with --fresh --force."


def length(output: Path, epochs: float, extend: float | None) -> float:
    """The epochs of a run, with those that `--extend` adds or has added before.

    Args:
        output: the run's folder.
        epochs: of the recipe.
        extend: epochs to add, of the command line; None = not given.
    """
    if extend is not None:
        return epochs + extend
    for state in states(output):
        with suppress(ArithmeticError, ValueError, LookupError, TypeError):
            return float(state["recipe"]["train"]["epochs"]) if epochs in state["lengths"] else epochs
    return epochs


def states(output: Path) -> Iterator[dict[str, Any]]:
    """States of the checkpoints in a run's folder that can be read, the newest first. They are not checked: loading
    them reports the damage."""
    for folder in sorted(output.glob("checkpoints/step-*"), reverse=True):
        with suppress(Damaged):
            state = parse_json(read_file(folder, "state.json", read_manifest(folder)))
            if isinstance(state, dict):
                yield state


def resume(engine: Engine, longer: bool = False, extend: float | None = None) -> None:
    """Restore the newest good checkpoint, if there is one.

    Args:
        engine: before its first step.
        longer: whether the run is longer than its recipe, by `--extend` now or before.
        extend: epochs to add, of the command line; None = not given.

    Raises:
        UserError: the recipe or the images have changed so that the result could change, or a longer run would have
            taken other steps.
    """
    job, checkpoint = engine.job, engine.checkpoints.newest()
    if checkpoint is None:
        if extend is None:
            return
        raise UserError(f"--extend: {engine.output} holds no run to go on with. Leave it out, and set train.epochs.")
    try:
        before = type(job.recipe).model_validate(updated(checkpoint.state["recipe"]))
    except ValidationError as error:
        found = f"{engine.output} holds a run of another program, or of another version of this one"
        raise UserError(f"{found}. {ADVICE}") from error
    _refuse_other_recipe(engine, job, before, checkpoint.state, longer, extend)
    _refuse_other_pictures(engine, job, checkpoint.state)
    restore_(engine, checkpoint)
    if before.train.epochs < job.recipe.train.epochs:  # undo the effects of the end of the shorter run
        engine.lengths = [*engine.lengths, before.train.epochs]
        if engine.watch is not None:
            engine.watch.forget_end()
            engine.checkpoints.best = engine.watch.kept_step
    engine.display.say(f"resuming from {checkpoint.folder}")
    _note_other_processes(engine, checkpoint.state["processes"], before.run.micro_batches)
    if extend is not None and engine.done:
        epochs = job.recipe.train.epochs
        engine.display.say(
            f"this run has been {epochs:g} epochs long already: --extend counts from the recipe's {epochs - extend:g}. "
            f"For more, give --extend a number above {extend:g}."
        )


def refuse_another(recipe: Recipe, what: str, advice: str = ADVICE) -> None:
    """Raise UserError when the output folder holds `what`, in words, of another recipe; `advice` says what to do."""
    output = Path(recipe.output)
    if not (output / "recipe.yaml").exists():
        return
    before = load(type(recipe), output / "recipe.yaml")
    if changed := [d for d in differences(before, recipe) if not is_free(type(recipe), d.path)]:
        raise UserError(f"{output} holds {what} of another recipe:\n{format_differences(changed)}\n{advice}")


def _note_other_processes(engine: Engine, processes: int, micro_batches: int) -> None:
    """Note that the same batch is now worked on by other processes, or in other parts, than before."""
    now, parts, batch = engine.accelerator.num_processes, engine.job.recipe.run.micro_batches, engine.job.recipe.train
    if (now, parts) == (processes, micro_batches):
        return
    then, ours = (f"{count} x {size}" for count, size in ((processes, micro_batches), (now, parts)))
    text = f"the batch of {batch.batch_size} is now worked on by {ours} (processes x accumulation), before by {then}"
    engine.display.say(text)
    engine.events.add(engine.step, text, "note")


def _refuse_other_recipe(
    engine: Engine, job: Job, before: Recipe, saved: dict[str, Any], longer: bool, extend: float | None
) -> None:
    changed = [d for d in differences(before, job.recipe) if not is_free(type(job.recipe), d.path)]
    if not changed:
        return
    if [d.path for d in changed] != ["train.epochs"]:
        raise UserError(f"{engine.output} holds a run of another recipe:\n{format_differences(changed)}\n{ADVICE}")
    old, new = before.train.epochs, job.recipe.train.epochs
    if new < old:
        more = "" if extend is None else f" --extend counts from the recipe's {new - extend:g} epochs."
        raise UserError(f"{engine.output} holds a run of {old:g} epochs, and {new:g} are asked for.{more} {ADVICE}")
    reasons = obstacles(before, job.recipe, engine.steps_per_epoch, saved)
    if reasons:
        why = "\n".join(f"  {reason}" for reason in reasons)
        raise UserError(
            f"{engine.output} holds a run of {old:g} epochs, which cannot go on as one of {new:g} would have:\n{why}\n"
            f"{_start_anew(engine, job)}"
        )
    if not longer:
        raise UserError(
            f"{engine.output} holds a run of {old:g} epochs, and train.epochs is {new:g}. It can go on exactly as if "
            f"it had been that long from the start: leave train.epochs at {old:g} and add --extend {new - old:g}."
        )


def _refuse_other_pictures(engine: Engine, job: Job, saved: dict[str, Any]) -> None:
    facts = saved["facts"]
    # what an older version did not note cannot be told, and labelled pictures may come and go
    changed = [name for name, value in job.facts.items() if facts.get(name, value) != value]
    if not changed:
        return
    if "pictures" not in changed:
        name = changed[0]
        if name.startswith("method."):
            raise UserError(
                f"{engine.output} holds a run whose {name} was {facts[name]}; now it is {job.facts[name]}. {ADVICE}"
            )
        if "." in name:
            raise UserError(
                f"{engine.output} holds a run that was evaluated on other pictures than {name} has now: names, sizes "
                f"or labels have changed, so scores could not be compared. {ADVICE}"
            )
        weights = f"{name}={dict(job.recipe)[name]}"
        raise UserError(f"{engine.output} holds a run that began with other weights than {weights} has now. {ADVICE}")
    now, then = len(job.dataset.source), saved.get("samples")
    if then is None or then == now:
        found = f"on {now:,} other pictures: names, sizes or labels have changed"
    else:
        found = f"on {then:,} pictures, and there are {now:,} now"
    raise UserError(f"{engine.output} holds a run {found}. {_start_anew(engine, job)}")


def _start_anew(engine: Engine, job: Job) -> str:
    """Advice for a run that cannot go on."""
    if job.recipe.successor is None:
        return ADVICE
    return (
        f"For a new run that begins with what it has learnt: {job.recipe.successor}={engine.output}/export "
        "run.output=OTHER. Or undo this, or start over with --fresh --force."
    )


def obstacles(before: Recipe, after: Recipe, per_epoch: int, saved: dict[str, Any]) -> list[str]:
    """Reasons why a longer run would have taken other steps; empty if it would not.

    Args:
        before, after: recipes that differ in `train.epochs`.
        per_epoch: steps of an epoch.
        saved: the state of its checkpoint.
    """
    lengths = (before.train.epochs, after.train.epochs)
    old, new = (Progress(0, total_steps(epochs, per_epoch), 0.0, epochs) for epochs in lengths)
    return [
        *_of_rates(before.optim, old, new),
        *before.bound_to_length(old, new),
        *_of_watch(before.watching, saved, old.total_steps),
    ]


def _of_rates(optim: Optim, old: Progress, new: Progress) -> Iterator[str]:
    schedule = optim.schedule
    if schedule.ends:
        yield f"optim.schedule {schedule.name}: the learning rate comes down over the whole run (constant does not)"
    turns = [optim.warmup_epochs, *schedule.turns] if schedule.turns else []
    if [old.steps(epoch) for epoch in turns] != [new.steps(epoch) for epoch in turns]:
        yield f"optim.schedule {schedule.name}: its milestones would be other steps, as train.epochs is no whole number"
    if optim.weight_decay_end not in (None, optim.weight_decay):
        yield "optim.weight_decay_end: weight decay gets there at the end of the run"


def _of_watch(watch: Watching | None, saved: dict[str, Any], total: int) -> Iterator[str]:
    noted = saved.get("watch")
    if watch is None or noted is None:
        return
    before = noted.get("before") or noted
    if watch.patience is not None and before["since_best"] >= watch.patience:
        yield "watch.patience: it has ended the run, and would have ended a longer one there"
    out_of_turn = saved["step"] >= total and total % watch.every
    if out_of_turn and watch.keep == "best" and noted["best_step"] == total:
        yield f"watch.keep: the end, step {total}, is the best so far, out of turn, and those before are not kept"
