"""What pretrain.py and finetune.py share: arguments, plan, resuming, and errors without tracebacks."""

from __future__ import annotations

import argparse
import errno
import importlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from unlabeled.errors import Interrupted, Stopped, UserError
from unlabeled.files import remove, write_text
from unlabeled.signals import EXIT_BAD_INPUT, EXIT_DONE, EXIT_STOPPED, stop
from unlabeled.streams import make_lasting
from unlabeled.text import escape_logs, plain

if TYPE_CHECKING:
    from accelerate import Accelerator

    from unlabeled.data.opened import Opened
    from unlabeled.launch.plan import Line
    from unlabeled.train.engine import Engine
    from unlabeled.train.job import Job

# what a run leaves in its output folder, and all that --fresh --force removes
OWN = (
    "checkpoints",
    "export",
    ".export-writing",
    ".export-former",
    "logs",
    "pictures",
    "metrics.jsonl",
    "bad_samples.jsonl",
    "recipe.yaml",
    "result.json",
    "result.md",
    "confusion.png",
    "reliability.png",
)

# nothing is wrong with the program: the disk is full, a quota is used up, or it may only be read
DISK_TROUBLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)

# nor here: something else has the name of what is written, or lies in its way
PLACE_TROUBLE = (
    *(errno.EISDIR, errno.ENOTDIR, errno.EEXIST, errno.EACCES, errno.EPERM),
    *(errno.ELOOP, errno.ENAMETOOLONG, errno.EIO, errno.ESTALE),
)

LONGEST = 20_000  # characters of an error, however many faults it lists

EPILOG = """exit codes: 0 done; 2 bad recipe or data; 75 stopped by SIGTERM, SIGUSR1, SIGHUP, Ctrl-C or for a lost
loader worker, after a checkpoint if any step was made: the same command goes on from there. Several processes, on GPUs
or a CPU: accelerate launch --multi_gpu --num_processes N pretrain.py ..., or torchrun --nproc_per_node N ...
"""


class Stage(Protocol):
    """One of the two programs."""

    name: str
    summary: str

    def schema(self) -> Any:
        """The type of its recipes."""

    def complete(self, recipe: Any) -> Any:
        """A recipe with what can only be known from what it names."""

    def job(self, recipe: Any, data: Opened, accelerator: Accelerator) -> Job:
        """Say what to run."""

    def what(self, recipe: Any, job: Job) -> list[Line]:
        """Its own lines of the plan."""

    def finish(self, recipe: Any, engine: Engine, output: Path) -> list[str]:
        """Write results; returns lines for a person."""


def main(name: str, arguments: Sequence[str] | None = None) -> int:
    """Run one stage; returns the exit code.

    Args:
        name: of its file in `unlabeled.stages`.
        arguments: of the command line; None = this process's own, which then ends deaf to signals.
    """

    where = " before the first step"
    return exit_code(lambda: _start(name, arguments), last=arguments is None, where=where)


def exit_code(run: Callable[[], int], *, last: bool, where: str = "") -> int:
    """What a program ends with: its own code, or that of an error, which is said without a traceback.

    Args:
        run: the program. A signal ends it wherever it stands, see `unlabeled.signals`.
        last: nothing comes after it, so later signals are ignored.
        where: it is when it begins, to be said with a signal.
    """
    with stop:
        stop.where = where
        try:
            with stop.now():
                from unlabeled.progress import Bars

                make_lasting()
                escape_logs()
                # torch says it of every loader anew; the plan says it once
                warnings.filterwarnings("ignore", "This DataLoader will create")
                with Bars(active=os.environ.get("RANK", "0") == "0"):
                    code = run()
        except Stopped as error:
            code = _said(f"{error}. Nothing is lost: run the same command again.", EXIT_STOPPED)
        except Interrupted as error:
            code = _said(f"error: {error}", EXIT_STOPPED)
        except UserError as error:
            code = _said(f"error: {error}", EXIT_BAD_INPUT)
        except OSError as error:
            if error.errno not in (*DISK_TROUBLE, *PLACE_TROUBLE):
                raise
            mend = "Make room" if error.errno in DISK_TROUBLE else "Move it away, or mend it"
            code = _said(f"error: cannot write: {error}. {mend}; the same command goes on from there.", EXIT_BAD_INPUT)
        if last:
            stop.ignore()
    return code


def _said(text: str, code: int) -> int:
    more = len(text) - LONGEST
    text = f"{text[:LONGEST]}\n... and {more:,} more characters" if more > 0 else text
    print(plain(text), file=sys.stderr, flush=True)
    return code


def _start(name: str, arguments: Sequence[str] | None) -> int:
    stage: Stage = importlib.import_module(f"unlabeled.stages.{name}").STAGE
    return _run(stage, _parse(stage, arguments))


def _parse(stage: Stage, arguments: Sequence[str] | None) -> argparse.Namespace:
    class Help(argparse.Action):
        def __call__(self, parser: argparse.ArgumentParser, _namespace: Any, section: Any, *_: Any) -> None:
            from unlabeled.recipe import describe

            if section is None or os.path.isfile(section):  # a recipe behind --help is no section
                print(parser.format_help() + "\nrecipe fields:\n\n" + describe(stage.schema()))
                parser.exit()
            try:
                print(describe(stage.schema(), section))
            except UserError as error:
                parser.exit(EXIT_BAD_INPUT, f"error: {error}\n")
            parser.exit()

    from unlabeled.paths import expand

    parser = argparse.ArgumentParser(
        prog=f"{stage.name}.py",
        description=stage.summary,
        epilog=EPILOG,
        add_help=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("recipe", type=expand, help="a YAML file, see recipes/")
    parser.add_argument("overrides", nargs="*", metavar="a.b=value", help="fields to change")
    parser.add_argument(
        "-h",
        "--help",
        action=Help,
        nargs="?",
        metavar="SECTION",
        help="show every field of a recipe, or those of a section such as optim.schedule or method.mae, and stop",
    )
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--fresh", action="store_true", help="start over instead of resuming; refuses to overwrite")
    parser.add_argument("--force", action="store_true", help="with --fresh: remove what an earlier run left")
    parser.add_argument(
        "--extend",
        type=_epochs,
        metavar="EPOCHS",
        help="go on with an earlier run, so many epochs beyond the recipe's, where it goes on as if it had always been "
        "that long (schedule constant, plateau or steps)",
    )
    options = parser.parse_intermixed_args(arguments)
    if options.fresh and options.extend is not None:
        parser.error("--fresh starts over and --extend goes on: choose one")
    return options


def _epochs(text: str) -> float:
    """A number of epochs above 0."""
    with suppress(ValueError):
        if 0 < (number := float(text)) < float("inf"):
            return number
    raise argparse.ArgumentTypeError(f"expected a number of epochs above 0, found {text!r}")


def _run(stage: Stage, options: argparse.Namespace) -> int:
    from unlabeled.accelerator import make_accelerator
    from unlabeled.data.archive.listing import IndexFolder
    from unlabeled.data.opened import Opened
    from unlabeled.launch.resume import length
    from unlabeled.processes import on_main
    from unlabeled.recipe import load

    _refuse_the_other_programs(stage, options.recipe)
    recipe = load(stage.schema(), options.recipe, options.overrides)
    output, asked = Path(recipe.output), recipe.train.epochs
    epochs = asked if options.fresh else length(output, asked, options.extend)
    if epochs != asked:
        recipe = load(stage.schema(), options.recipe, [*options.overrides, f"train.epochs={epochs!r}"])
    recipe = stage.complete(recipe)
    notes, run = _notes(recipe), recipe.run
    accelerator = make_accelerator(
        run.device, recipe.train.precision, run.timeout, list(run.trackers), str(output), planning=options.dry_run
    )
    data = Opened(recipe.data, IndexFolder(output / "index", write=not options.dry_run))
    try:
        # one process looks for pictures, the others read its index
        on_main(accelerator, lambda: data.train, whole=False)
        job = stage.job(recipe, data, accelerator)
        if options.dry_run:
            notes = [*_time(recipe, job, accelerator), *notes]
        _print_plan(stage, recipe, job, accelerator, notes)
        if options.dry_run:
            return EXIT_DONE
        options.longer = epochs != asked
        return train(stage, recipe, job, accelerator, output, options)
    finally:
        import torch.distributed as dist

        if dist.is_initialized():
            dist.destroy_process_group()


def _refuse_the_other_programs(stage: Stage, path: str) -> None:
    from unlabeled.recipe import fields

    found = fields(path)
    for field, program in {"method": "pretrain", "encoder": "finetune", "task": "finetune"}.items():
        if field in found and field not in stage.schema().model_fields:
            raise UserError(f"{path} has `{field}`, so it is a recipe for {program}.py; this is {stage.name}.py.")


def _notes(recipe: Any) -> list[Line]:
    """Lines of the plan about what is around the recipe: this machine and its environment."""
    from unlabeled.accelerator import cannot_run
    from unlabeled.environment import overruled
    from unlabeled.processes import cores

    lacking, ignored = cannot_run(recipe.run.device, recipe.train.precision), overruled(recipe.train.precision)
    lines = [("machine", f"this one cannot run it: {lacking}")] if lacking else []
    here, workers = cores(), recipe.run.workers * int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if workers > here:
        lines.append(("workers", f"{workers} loader workers, {here} cores here: run.workers={here} is enough"))
    if ignored:
        lines.append(("launcher", f"{', '.join(ignored)}: not followed, the recipe decides"))
    return lines


def _print_plan(stage: Stage, recipe: Any, job: Job, accelerator: Accelerator, notes: list[Line]) -> None:
    from unlabeled.launch.plan import format_plan, plan

    dataset, device = job.dataset, str(accelerator.device)
    lines = plan(
        recipe,
        len(dataset.source),
        stage.what(recipe, job),
        job.build,
        dataset.views,
        dataset.patch,
        accelerator.num_processes,
        device,
    )
    text = format_plan(f"{recipe.name} ({stage.name})", [*lines, *_left_out(recipe, job), *notes])
    if accelerator.is_main_process:
        print(text, file=sys.stderr, flush=True)


def _time(recipe: Any, job: Job, accelerator: Accelerator) -> list[Line]:
    """The line of the plan about how long the run would take here."""
    from unlabeled.errors import first_line
    from unlabeled.launch.forecast import forecast, in_words
    from unlabeled.launch.plan import on_meta

    method, processes = on_meta(job.build), accelerator.num_processes
    try:
        text = in_words(forecast(recipe, method, job.dataset, processes, accelerator.device))
    except (UserError, RuntimeError) as error:  # a plan is worth having without it: a full GPU, a picture that is gone
        text = f"not known: {first_line(error)}"
    return [("time", text)]


def _left_out(recipe: Any, job: Job) -> Iterator[Line]:
    """Lines of the plan about files and pictures that nobody will see, or that somebody may see who should not."""
    from unlabeled.data.archive.skipped import in_words
    from unlabeled.data.label.as_one import how_to_tell_apart

    train = job.dataset.source
    splits = {"train": train}
    if recipe.data.has_val and recipe.evaluate is not None:
        with suppress(UserError):  # pictures without labels will do where an evaluation reads none
            splits["val"] = job.data.val
    yield from (("skipped", f"{name}: {in_words(n)}") for name, source in splits.items() if (n := source.skipped))
    if count := train.unlabelled:
        yield "unlabelled", f"{count:,} of the pictures of train have no label and are left out"
    if folders := recipe.data.read_as_one(train.whole):
        yield "as one", f"{', '.join(folders)} are all trained on; {how_to_tell_apart(folders)}"


def train(
    stage: Stage, recipe: Any, job: Job, accelerator: Accelerator, output: Path, options: argparse.Namespace
) -> int:
    """Run a job from where an earlier run left it; returns the exit code.

    Of the options `fresh`, `force`, `longer` and `extend` are read.
    """
    from unlabeled.files import claim
    from unlabeled.launch.resume import resume
    from unlabeled.processes import on_main
    from unlabeled.recipe import dump
    from unlabeled.train.engine import Engine

    lock = on_main(accelerator, lambda: claim(output, "run.output"))
    on_main(accelerator, lambda: _make_room(output, options))
    engine = Engine(job, accelerator, output)
    resume(engine, job, options.longer, options.extend)
    if accelerator.is_main_process:
        write_text(output / "recipe.yaml", dump(recipe))
    if not engine.run():
        engine.display.say(
            f"stopped by {stop.received or 'another process'} at step {engine.step}; checkpoint in "
            f"{engine.checkpoints.path(engine.step)}. The same command goes on from there."
        )
        return EXIT_STOPPED
    for line in stage.finish(recipe, engine, output):
        engine.display.say(line)
    if lock:
        lock.close()
    return EXIT_DONE


def _make_room(output: Path, options: argparse.Namespace) -> None:
    if not options.fresh:
        return
    left = [name for name in OWN if os.path.lexists(output / name)]
    if left and not options.force:
        found = ", ".join(left)
        raise UserError(
            f"{output} holds an earlier run ({found}). Add --force to remove it, or choose another run.output."
        )
    for name in left:
        remove(output / name)  # a link goes, what it leads to stays
