"""The only training loop: pretraining and fine-tuning, one process or many."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from inspect import signature
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from torch import Tensor

from unlabeled.accelerator import multiply, settle, spread
from unlabeled.data.batch.bad import BadSamples
from unlabeled.data.batch.batch import Batch
from unlabeled.data.batch.loader import Feed, Normalize, to_device
from unlabeled.data.batch.sampler import EpochSampler, steps_per_epoch, total_steps
from unlabeled.data.batch.samples import RawBatch
from unlabeled.errors import Stopped, UserError
from unlabeled.nn.batchnorm import buffers_differ
from unlabeled.nn.measures import effective_rank
from unlabeled.nn.modes import evaluating
from unlabeled.nn.regions import compile_blocks_, compiling
from unlabeled.pretrain.method import Method, Output, Progress
from unlabeled.processes import gather_objects, on_main, raise_together
from unlabeled.progress import Clock
from unlabeled.signals import stop
from unlabeled.train import snapshot, state
from unlabeled.train.checkpoint import Checkpoints
from unlabeled.train.events import Events
from unlabeled.train.job import Job
from unlabeled.train.optim import Guarded, clip_gradients, param_groups, scheduled, set_rates
from unlabeled.train.saving.background import Background
from unlabeled.train.stepping.queued import Ahead, Flags, Queued, Verdict, at_hand
from unlabeled.train.tracker import Trackers
from unlabeled.train.tracking import Averages, Diagnosis, Display, Meter, MetricsFile, scores_at
from unlabeled.train.watch import EarlyStopping


class Engine:
    """Trains a job to its end, or until a signal, in the folder `output`.

    The host queues a step on the device and does not wait for it: the flags of a step, which all processes exchange
    there, are read while the next one runs, or when something is due that needs them. The device skips a broken step by
    itself. Batches are fetched two steps ahead, so that every process has one for the step in which it learns of a stop
    or of another's failure.
    """

    def __init__(self, job: Job, accelerator: Accelerator, output: Path) -> None:
        self.job, self.accelerator, self.output = job, accelerator, output
        recipe, self.device = job.recipe, accelerator.device
        self.steps_per_epoch = steps_per_epoch(len(job.dataset.source), recipe.train.batch_size)
        self.total_steps = total_steps(recipe.train.epochs, self.steps_per_epoch)
        self.step, self.skipped, self.skipped_in_a_row = 0, 0, 0
        self.watch, self.bar = job.watch, job.bar
        self.first_step = 0  # of this process: 0, or that of the checkpoint it resumed from
        self.evaluated: dict[str, float] = {}
        self.lengths: list[float] = []  # epochs of the run before it was extended
        self._outputs: list[Output] = []  # of the step's micro-batches
        self._queued: Queued | None = None  # the newest step

        if self.device.type == "cpu":
            settle(recipe.run.threads)
        multiply(self.device, recipe.train.tf32)
        # equal weights on all processes, then different random numbers
        torch.manual_seed(recipe.seed)
        self.method = job.trained()
        torch.manual_seed(recipe.seed + 1 + accelerator.process_index)
        if recipe.run.compile:
            masks = [view.mask for view in job.dataset.views if view.mask is not None]
            compile_blocks_(self.method, steady=all(mask.steady for mask in masks))
        optimizer = recipe.optim.build(param_groups(self.method.to(self.device), recipe.optim.weight_decay))
        self.model, self.optimizer = spread(
            accelerator, self.method, optimizer, recipe.train.gradient_exchange, buffers_differ(self.method)
        )
        self.guarded = Guarded(self.optimizer)
        # a method of somebody else may take the progress alone: the device is asked first
        self.method_skips = len(signature(self.method.after_step).parameters) > 1
        self.statistics = state.Statistics(self.method)
        if self.bar is not None:
            self.bar.keep(self.method)
        self.peak = recipe.optim.peak(recipe.train.batch_size)
        self.normalize = Normalize(recipe.data.mean, recipe.data.std, self.device)
        self._ahead = Ahead(self.device, self._on_device)

        self.display = Display(recipe.name, self.total_steps, recipe.train.epochs, accelerator.is_main_process)
        run = recipe.run
        self.clock = Clock()
        main = accelerator.is_main_process
        self.events = Events(output / "events.jsonl" if main else None, self.display.say, self.clock)
        kept = run.keep_last, run.keep_every, self.tell, snapshot.check, main
        self.checkpoints = Checkpoints(output / "checkpoints", *kept)
        self.saving = Background(self.checkpoints, any(map(state.is_shard, self.method.parameters())))
        self.bad = BadSamples(output / "bad_samples.jsonl", len(job.dataset.source), recipe.data.max_bad_fraction)
        self.meter, self.averages = Meter(), Averages()
        self.diagnosis = Diagnosis(self.method.symptoms(), self.total_steps, self.tell)
        self.metrics: MetricsFile | None = None  # of the main process, while it runs
        self.trackers = Trackers(accelerator, run.trackers, self.tell)

    # ---------------------------------------------------------------- a run

    def run(self) -> bool:
        """Train to the end. False when a signal stopped the run after a checkpoint.

        Raises:
            UserError: too many bad pictures or non-finite steps, or a checkpoint cannot be written.
        """
        self.metrics = on_main(self.accelerator, lambda: MetricsFile(self.output / "metrics.jsonl", self.step))
        self.events.begin(self.step)
        self.trackers.start(self.job.recipe.name, self.job.recipe, self.output / "logs", self.step)
        self.model.train()
        feed = self._feed()
        self.meter.reset(feed)
        try:
            with stop, self.display:
                ended = self._owed() and self._loop(feed)
                self.saving.wait()
        finally:
            feed.close()
            self.saving.close()
            self.trackers.close()
            if self.metrics:
                self.metrics.close()
        if not ended:
            kept = f"checkpoint in {self.checkpoints.path(self.step)}. The same command goes on from there."
            text = f"stopped by {stop.received or 'another process'} at step {self.step}; {kept}"
            self.display.say(text)
            self.events.end(self.step, text, "stopped")
        return ended

    def _loop(self, feed: Feed) -> bool:
        (pending, error), second = feed.next(), feed.next()
        self._note_bad(pending, error)
        self.meter.reset(feed)
        with stop.later():
            stop.where = ""
            nothing = torch.zeros((), device=self.device)
            begin = self._exchange(nothing, nothing, *second)
            begin.counted = True
            return self._steps(feed, pending, begin)

    def _steps(self, feed: Feed, pending: list[RawBatch], before: Queued) -> bool:
        while not self.done:
            batch, norm = self._forward_backward(pending)
            if before.fetched:
                self._ahead.begin(before.fetched[0])
            queued = self._take(norm, *feed.next())
            verdict = self._count(before, shown=True)  # waits for the step before this one
            if verdict.failed:
                self.save()  # the step is whole: what the loader lost must not cost more
            if verdict.bad or verdict.failed:
                self._note_bad(before.fetched, before.error)
            self._report(norm, feed)
            stopped = verdict.stop or (self.done and self._count(queued).stop)
            scored, drawn = self._is_scored(), self._is_drawn()
            due = self._due(self.job.recipe.run.checkpoint_every) or self.done or stopped
            may_be_kept = scored and self.bar is not None and self.bar.keeps
            if saves := due or may_be_kept or self.checkpoints.best == self.step:
                self.save()  # before it is scored, which may take long
            if self.done:
                self.saving.wait()  # killed while it is scored, the run has no step left to take
            if stopped:
                return False
            if (scored or drawn) and not self._evaluate(batch if drawn else None, scored):
                if not saves:
                    self.save()
                return False
            pending, before = before.fetched, queued
        return True

    def _owed(self) -> bool:
        """Score the step that a run goes on from, if that was left out, and the encoder that it begins with; False
        when a signal cut it short."""
        if not (self._is_scored() if self.step else self.bar is not None):
            return True
        known = gather_objects(scores_at(self.output / "metrics.jsonl", self.step) if self.metrics else None)[0]
        self.evaluated |= known
        if known:
            self._compare(known)
        return bool(known) or self._evaluate(None)

    def _is_scored(self) -> bool:
        return self._due(self.job.recipe.evaluated_every) or self.done

    def _is_drawn(self) -> bool:
        every = self.job.recipe.run.pictures_every
        due = self._is_scored() if every is None else self._due(every) or self.done
        return due and self.job.picture is not None

    @property
    def done(self) -> bool:
        """Whether there is nothing left to do: all steps are taken, or the watched score has stood still too long."""
        return self.step >= self.total_steps or (self.watch is not None and self.watch.over)

    # ---------------------------------------------------------------- one step

    def progress(self) -> Progress:
        """Where the run stands."""
        return Progress(self.step, self.total_steps, self.step / self.steps_per_epoch, self.job.recipe.train.epochs)

    def rehearse(self, pending: list[RawBatch]) -> None:
        """One whole step on micro-batches in hand, waited for; nothing is logged or saved."""
        _, norm = self._forward_backward(pending)
        self._count(self._take(norm, [], None))

    def _forward_backward(self, pending: list[RawBatch]) -> tuple[Batch, Tensor]:
        """Gradients of one global batch, clipped; returns the last micro-batch and the gradient norm."""
        progress, optim, continued = self.progress(), self.job.recipe.optim, self.method.continuation
        if continued is not None:
            continued.set_modes_(progress.share)
        set_rates(self.optimizer, optim, self.peak, progress, self.watch.rate if self.watch else 1.0)
        self._outputs = []
        self.statistics.keep()
        for i, raw in enumerate(pending, start=1):
            batch = self._ahead.take(raw)
            with nullcontext() if i == len(pending) else self.accelerator.no_sync(self.model):
                self._outputs.append(self._micro(batch, progress, len(pending)))
        self.accelerator.unscale_gradients(self.optimizer)
        held = () if continued is None else continued.held(progress.share)
        for parameter in (*self.method.inactive(progress), *held):
            parameter.grad = None
        norm = clip_gradients(self.method, optim.clip, optim.clip_by, optim.clip_value)
        for parameter in self.method.frozen(progress):
            parameter.grad = None
        return batch, state.full(norm)

    def _on_device(self, raw: RawBatch) -> Batch:
        with compiling(self.job.recipe.run.compile):
            return to_device(raw, self.device, self.normalize)

    def _micro(self, batch: Batch, progress: Progress, parts: int) -> Output:
        with compiling(self.job.recipe.run.compile):
            output = self.model(batch, progress)
        self.accelerator.backward(output.loss / parts)
        return output._replace(loss=output.loss.detach())

    def _take(self, norm: Tensor, fetched: list[RawBatch], error: Exception | None) -> Queued:
        """Exchange the flags of a step and update by it, all on the device. The loss is the mean of all parts."""
        loss = torch.stack([output.loss for output in self._outputs]).mean()
        self._queued = queued = self._exchange(loss, norm, fetched, error)
        self._update(queued.flags.broken)
        return queued

    def _exchange(self, loss: Tensor, norm: Tensor, fetched: list[RawBatch], error: Exception | None) -> Queued:
        told, bad = stop.received is not None, any(raw.bad for raw in fetched)
        failed = error is not None or self.saving.failed
        flags = Flags(self.accelerator, loss, norm, stop=told, bad=bad, failed=failed)
        return Queued(flags, self.step + 1, self._outputs, fetched, error)

    def _update(self, found: Tensor) -> None:
        """Step the optimizer and what follows it. Where `found` broken nothing changes, on every process alike."""
        broken = None if at_hand(found) and not found else found
        self.guarded.step(broken)
        self.optimizer.zero_grad()
        taken = self.progress()
        self.step += 1
        self.meter.count(self.job.recipe.train.batch_size)
        if self.method_skips:
            self.method.after_step(taken, broken)
        elif not broken:
            self.method.after_step(taken)
        if broken is not None:
            self.statistics.restore_(broken)

    def _count(self, queued: Queued, shown: bool = False) -> Verdict:
        """Read the flags of a step, and count it, once, as taken or skipped."""
        verdict = queued.flags.read()
        if queued.counted:
            return verdict
        queued.counted = True
        if verdict.broken:
            self._count_skipped(queued)
        else:
            self.skipped_in_a_row = 0
            for output in queued.outputs:
                self.averages.add({"loss": output.loss, **output.metrics})
        if shown:
            self.display.show(queued.step, queued.step / self.steps_per_epoch, verdict.loss, self.meter.pace)
        return verdict

    def _settle(self) -> None:
        """Count the newest step: wait for the device."""
        if self._queued is not None:
            self._count(self._queued)

    def _count_skipped(self, queued: Queued) -> None:
        self.skipped += 1
        self.skipped_in_a_row += 1
        limit = self.job.recipe.run.max_skipped
        if self.skipped_in_a_row >= limit:
            losses = [f"{output.loss.item():g}" for output in queued.outputs]
            raise UserError(
                f"{limit} steps in a row had a loss or gradient that is not finite, the last at step {queued.step - 1} "
                f"(epoch {queued.step / self.steps_per_epoch:.2f}, losses {', '.join(losses)} on process "
                f"{self.accelerator.process_index}). No weight was touched. Lower optim.base_lr, set optim.clip, or "
                f"use train.precision=bf16; the newest checkpoint is in {self.checkpoints.folder}."
            )

    # ---------------------------------------------------------------- data

    def _feed(self) -> Feed:
        """Micro-batches from here to the end."""
        dataset, run = self.job.dataset, self.job.recipe.run
        sampler = EpochSampler(
            len(dataset.source),
            self.job.recipe.train.batch_size,
            self.total_steps,
            seed=dataset.seed,
            start=self.step,
            rank=self.accelerator.process_index,
            world=self.accelerator.num_processes,
            accumulate=run.micro_batches,
            order=dataset.order,
            base=dataset.base,
            shards=dataset.source.shards,
            groups=dataset.groups,
        )
        return Feed(dataset, sampler, workers=run.workers, timeout=run.timeout, device=self.device)

    def _note_bad(self, pending: list[RawBatch], error: Exception | None) -> None:
        """Every process learns of every bad picture, and stops when there are too many or a loader failed."""
        raise_together(error)
        for found in gather_objects([bad for raw in pending for bad in raw.bad]):
            for key, reason in found:
                if self.bad.add(key, reason, write=self.accelerator.is_main_process):
                    self.display.say(f"skipped {key}: {reason}")
                    self.events.add(self.step, f"skipped {key}: {reason}", "note", image=key)
        self.bad.check()

    # ---------------------------------------------------------------- what is said and kept

    def tell(self, text: str) -> None:
        """Say a warning, and keep it among the events of the run."""
        self.display.say(text)
        self.events.add(self.step, text)

    def _due(self, every: int | None) -> bool:
        return every is not None and self.step % every == 0

    def _report(self, norm: Tensor, feed: Feed) -> None:
        last = self.step == self.total_steps
        if self._due(self.job.recipe.run.log_every) or last:
            self._log(norm, feed)
        if self.watch is not None and ((in_turn := self._due(self.watch.config.every)) or last):
            self.watch.begin_look(in_turn)
            self._look(self.watch)

    def _log(self, norm: Tensor, feed: Feed) -> None:
        self._settle()
        speed, epoch = self.meter.read(feed), self.progress().epoch
        rate = max(group["lr"] for group in self.optimizer.param_groups if scheduled(group))
        values = self.averages.read(self.accelerator) or {"loss": math.nan}
        values |= {"epoch": epoch, "lr": rate, "grad_norm": norm.item(), "skipped": self.skipped, **speed}
        if (features := self._outputs[-1].features) is not None:
            values["effective_rank"] = effective_rank(features)
        if self.bar is not None:
            values["moved"] = self.bar.moved(self.method)
        self._write(values)
        self.diagnosis.read(self.step, values)
        said = f"{speed['images_per_s']:,.0f} img/s  data {100 * speed['data_wait']:.0f} %"
        self.display.show(self.step, epoch, values["loss"], self.meter.pace, said)

    def _write(self, values: dict[str, float]) -> None:
        if self.metrics:
            self.metrics.write(self.step, values)
            self.events.heard()
        self.trackers.log(self.step, values)

    def _evaluate(self, batch: Batch | None, scored: bool = True) -> bool:
        """Evaluators, and pictures of a batch; False when a signal cut them short."""
        try:
            with stop.now(), self._aside() as method:
                if scored:
                    self._score(method)
                if self.job.picture is not None and batch is not None and self.accelerator.is_main_process:
                    file = self.job.picture(self.step, method, batch)
                    with stop.later():
                        self.trackers.show(self.step, file)
                    self.events.heard()
                raise_together(None)  # pictures may have taken long, and are drawn by one process
        except Stopped:
            return False
        return True

    def _score(self, method: Method) -> None:
        if self.job.evaluate is None:
            return
        self.evaluated = dict(self.job.evaluate(method))
        if not self.evaluated:
            return
        with stop.later():
            self._write(self.evaluated)
        self.display.say(f"step {self.step}  " + "  ".join(f"{k} {v:.2f}" for k, v in self.evaluated.items()))
        self._compare(self.evaluated)

    def _compare(self, scores: Mapping[str, float]) -> None:
        """Hold scores of this step against those of the encoder that the run began with; the best may be kept."""
        if self.bar is None:
            return
        warning = self.bar.read(self.step, scores)
        self.checkpoints.best = self.bar.kept_step
        if warning:
            self.tell(warning)

    def _look(self, watch: EarlyStopping) -> None:
        """The watched score decides which checkpoint stays, where the rate falls and when the run ends."""
        with self._aside() as method:
            score = watch.measure(method)[watch.config.metric]
        consequence = watch.read(self.step, score)
        self.checkpoints.best = watch.kept_step
        self._write({f"watched_{watch.config.metric}": score})
        if consequence:
            self.display.say(f"step {self.step}  {consequence}")
            self.events.add(self.step, consequence, "note")

    @contextmanager
    def _aside(self) -> Iterator[Method]:
        """Within, the whole method in evaluation; random state, mode and speed are left as they were found."""
        before, method = time.perf_counter(), self.whole_method()
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices), torch.no_grad(), evaluating(method):
            yield method
        self.meter.pause(time.perf_counter() - before)

    def use_best(self) -> bool:
        """Take the weights whose score was best, if they are readable; returns whether they are others."""
        self.saving.wait()
        best = self.checkpoints.best
        if best is None or best == self.step:
            return False
        if best == 0:
            state.load_model(self.method, self._beginning())
            return True
        if (kept := self.checkpoints.read(best)) is None:
            self.tell(f"the best weights, of step {best:,}, are lost: those of the last step are used")
            self.checkpoints.best = None
            return False
        state.load_model(self.method, kept.tensors["model"])
        return True

    def _beginning(self) -> state.Tensors:
        """The whole weights before the first step, made again."""
        with torch.random.fork_rng(devices=()):
            torch.manual_seed(self.job.recipe.seed)
            return state.model_tensors(self.job.build())

    def whole_method(self) -> Method:
        """The method with whole weights: itself, or a copy where they are sharded (all processes must ask)."""
        return cast("Method", state.whole(self.method, self.job.build))

    def save(self) -> None:
        """Begin to write a checkpoint of this step; every process raises if the one before could not be written."""
        self._settle()
        self.saving.begin(self.step, snapshot.tensors_of(self), snapshot.state_of(self))
