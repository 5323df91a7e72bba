"""The host queues a step and does not wait for it: it reads flags one step late, and that changes no number.

The form to which all is held reads the flags of a step before it updates anything.
"""

from __future__ import annotations

import os
import signal
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from every_method import every_method, recipe_of
from support import TINY_PRETRAIN, checkpoint_bytes, free_port, metrics, on_processes, weights
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from unlabeled.accelerator import make_accelerator
from unlabeled.data.batch.loader import Feed, ViewDataset
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.pretrain.methods.mae import MAE
from unlabeled.recipe import parse
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train import engine as module
from unlabeled.train import snapshot
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.optim import Guarded
from unlabeled.train.optimizer import Optim
from unlabeled.train.optimizers import adamw, lamb, larc, lars, sgd
from unlabeled.train.state import Statistics
from unlabeled.train.stepping.queued import Flags

LATE = ["run.log_every=100", "run.checkpoint_every=100", "train.epochs=1", "optim.warmup_epochs=0"]  # of 5 steps
BIT = "{model: vit_tiny_patch16_224, patch_size: 4, width: 16, depth: 1, heads: 2}"
DINO = (
    "method={name: dino, global_1: {size: 16}, global_2: {size: 16}, local: {size: 8, count: 1}, frozen_epochs: 0, "
    f"encoder: {BIT}, head: {{prototypes: 32, hidden: 16, bottleneck: 8}}}}"
)
MOCO = f"method={{name: mocov3, first: {{size: 16}}, second: {{size: 16}}, hidden: 16, dim: 8, encoder: {BIT}}}"


class Waiting(Engine):
    """The form that stood before: it waits in every step, and skips by leaving out what a step does."""

    def _forward_backward(self, pending: Any) -> Any:
        self.kept = [(buffer, buffer.clone()) for buffer in self.method.buffers()]
        return super()._forward_backward(pending)

    def _update(self, broken: Tensor) -> None:
        skipped = bool(broken)
        if not skipped:
            self.optimizer.step()
        self.optimizer.zero_grad()
        taken = self.progress()
        self.step += 1
        self.meter.count(self.job.recipe.train.batch_size)
        if not skipped:
            self.method.after_step(taken)
        for buffer, kept in self.kept if skipped else ():
            buffer.copy_(kept)


class Queueing(Engine):
    """As on a GPU, whose flags are not at hand."""

    def _update(self, found: Tensor) -> None:
        before, module.at_hand = module.at_hand, lambda _: False
        super()._update(found)
        module.at_hand = before


def made(recipe: Any, output: Path, kind: type[Engine] = Engine) -> Engine:
    data = Opened(recipe.data)
    dataset = ViewDataset(data.train, recipe.method.views, recipe.method.mask_patch, recipe.seed, recipe.method.mixing)
    output.mkdir(exist_ok=True, parents=True)
    return kind(Job(recipe, recipe.method.build, data, dataset), make_accelerator("cpu", "no", 60.0), output)


def tiny(output: Path, *more: str, kind: type[Engine] = Engine) -> Engine:
    return made(parse(PretrainRecipe, TINY_PRETRAIN, [*LATE, *more]), output, kind)


def poison(engine: Engine, rank: int, losses: tuple[int, ...], gradients: tuple[int, ...] = ()) -> None:
    """Losses of the one process and gradients of the other are not finite in some steps."""
    forward, parameter = engine.method.forward, next(p for p in engine.method.parameters() if p.requires_grad)

    def loss(batch: Any, progress: Any) -> Any:
        output = forward(batch, progress)
        return output._replace(loss=output.loss * torch.nan) if rank == 1 and progress.step in losses else output

    def gradient(grad: Tensor) -> Tensor:
        return grad / 0 if rank == 0 and engine.step in gradients else grad

    engine.method.forward = loss  # type: ignore[method-assign]
    parameter.register_hook(gradient)


# ---------------------------------------------------------------- two processes


def on_a_pair(work: Callable[[int, Path], dict[str, Any]]) -> list[dict[str, Any]]:
    """What `work(rank, folder)` returns in each of two processes that train together."""
    with tempfile.TemporaryDirectory() as folder:
        return on_processes(Pair(work, Path(folder), free_port()))


class Pair:
    def __init__(self, work: Callable[[int, Path], dict[str, Any]], folder: Path, port: int) -> None:
        self.work, self.folder, self.port = work, folder, port

    def __call__(self, rank: int) -> dict[str, Any]:
        env = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "LOCAL_WORLD_SIZE": 2, "MASTER_PORT": self.port}
        os.environ |= {name: str(value) for name, value in env.items()} | {"MASTER_ADDR": "127.0.0.1"}
        return self.work(rank, self.folder)


OPTIMIZERS = {
    "adamw": (DINO,),
    "sgd": (DINO, "optim={name: sgd, base_lr: 1.0}"),
    "sgd, not torch's": (DINO, "optim={name: sgd, base_lr: 1.0}"),
    "lars": (MOCO, "optim={name: lars, base_lr: 30.0}"),
}


def state(engine: Engine) -> dict[str, Tensor]:
    """Weights, moments and random states."""
    parts = snapshot.tensors_of(engine).items()
    return {f"{file}/{key}": tensor for file, part in parts for key, tensor in part.items()}


def skipped_steps(rank: int, folder: Path) -> dict[str, Any]:
    """By optimizer: the names of tensors that the two forms leave different, and what each logged."""
    found: dict[str, Any] = {}
    for name, more in OPTIMIZERS.items():
        left, logged = [], []
        for kind in (Waiting, Queueing, Engine):
            if kind is Queueing and name == "sgd, not torch's":
                sgd.Config.build = lambda self, groups: sgd.SGD(groups, 0.0, self.momentum)  # type: ignore[method-assign,misc]
            engine = tiny(folder / f"{name}-{kind.__name__}", *more, kind=kind)
            poison(engine, rank, (1,), (3,))
            assert engine.run()
            left.append(state(engine))
            line = metrics(engine.output)[-1] if rank == 0 else {}
            logged.append([engine.skipped, *(line.get(key) for key in ("loss", "grad_norm", "step"))])
        one, *others = left
        wrong = [key for two in others for key in one.keys() & two.keys() if not one[key].equal(two[key])]
        wrong += [key for two in others for key in one.keys() ^ two.keys()]
        wrong += [key for two in others for key in two if not two[key].isfinite().all()]
        found[name] = {"wrong": wrong, "logged": logged, "names": sorted(one)}
    return found


def test_a_skipped_step_of_one_of_two_processes_changes_nothing() -> None:
    main, other = on_a_pair(skipped_steps)
    for name in OPTIMIZERS:
        assert main[name]["wrong"] == other[name]["wrong"] == [], name
        before, *now = main[name]["logged"]
        assert now == [before] * 2 and before[0] == 2 and before[-1] == 5
    kept = " ".join(key for name in OPTIMIZERS for key in main[name]["names"])
    for part in ("teacher.", "centre.value", "exp_avg_sq", "/step", "momentum_buffer", "running_var", "num_batches"):
        assert part in kept


def ends(rank: int, folder: Path) -> dict[str, Any]:
    """How runs end that something stops, beside one that nothing stops and that keeps all its checkpoints."""
    whole = tiny(folder / "whole", "run.checkpoint_every=1")
    assert whole.run()
    said: dict[str, Any] = {"files": {step: checkpoint_bytes(whole.output, step) for step in range(1, 6)}}

    def ended(name: str, *more: str, arm: Callable[[Engine], None]) -> None:
        engine = tiny(folder / name, *more)
        arm(engine)
        try:
            how = f"ended: {engine.run()}"
        except (UserError, RuntimeError) as error:
            how = f"{type(error).__name__}: {error}"
        kept = engine.checkpoints.steps() if rank == 0 else []
        files = {step: checkpoint_bytes(engine.output, step) for step in kept}
        first, now = weights(whole.output, 1), engine.method.state_dict()
        moved = [key for key in first if not first[key].equal(now[key])]
        said[name] = {"how": how, "step": engine.step, "files": files, "moved": moved, "skipped": engine.skipped}

    def told(engine: Engine) -> None:
        update = engine._update

        def strike(broken: Tensor) -> None:
            update(broken)
            if rank == 1 and engine.step == 2:
                os.kill(os.getpid(), signal.SIGTERM)

        engine._update = strike  # type: ignore[method-assign]

    def lost(engine: Engine) -> None:
        dataset, read = engine.job.dataset, engine.job.dataset._good_image
        calls = iter(range(100))

        def image(index: int) -> Any:
            if rank == 1 and next(calls) == 3 * 4:  # the first of the fourth batch
                raise RuntimeError("a worker is lost")
            return read(index)

        dataset._good_image = image  # type: ignore[method-assign]

    ended("told", arm=told)
    ended("told, logged", "run.log_every=1", arm=told)
    ended("lost", arm=lost)
    ended("lost, logged", "run.log_every=1", arm=lost)
    ended("broken", "run.max_skipped=2", arm=lambda engine: poison(engine, rank, (1, 2, 3, 4)))
    return said


@pytest.fixture(scope="module")
def ended() -> list[dict[str, Any]]:
    return on_a_pair(ends)


@pytest.mark.parametrize("logged", ["", ", logged"])
def test_a_signal_to_one_process_stops_both_a_step_later(ended: list[dict[str, Any]], logged: str) -> None:
    # the signal comes after the second step, all hear of it in the third and act in the fourth
    for rank in ended:
        assert (rank[f"told{logged}"]["how"], rank[f"told{logged}"]["step"]) == ("ended: False", 4)
    main = ended[0]
    assert main[f"told{logged}"]["files"] == {4: main["files"][4]}


@pytest.mark.parametrize("logged", ["", ", logged"])
def test_what_one_process_cannot_read_costs_no_step(ended: list[dict[str, Any]], logged: str) -> None:
    main, other = (rank[f"lost{logged}"] for rank in ended)
    assert main["how"] == "UserError: process 1: a worker is lost"
    assert other["how"] == "RuntimeError: a worker is lost"
    assert main["step"] == other["step"] == 3 and main["files"] == {3: ended[0]["files"][3]}


def test_too_many_skipped_steps_end_both(ended: list[dict[str, Any]]) -> None:
    for rank in ended:
        found = rank["broken"]
        assert found["how"].startswith("UserError: 2 steps in a row") and "the last at step 2 " in found["how"]
        assert (found["skipped"], found["moved"], found["files"]) == (2, [], {})


# ---------------------------------------------------------------- what is read


class Reads(TorchDispatchMode):
    """Notes the operators that hand numbers of the device to the host, while `on`."""

    WAITING = ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select", "_unique2", "item")

    def __init__(self) -> None:
        super().__init__()
        self.on, self.found, self.seen = False, list[str](), 0

    def __torch_dispatch__(self, operator: Any, types: Any, arguments: Any = (), named: Any = None) -> Any:
        name = operator._schema.name.removeprefix("aten::")
        if self.on:
            self.seen += 1
            if name in self.WAITING:
                self.found.append(name)
        return operator(*arguments, **(named or {}))


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Reads:
    """Counts from the second step on, but for what the host does with its own numbers: samples, and their masks."""
    counted = Reads()

    def aside(owner: Any, name: str) -> None:
        inner = getattr(owner, name)

        def outside(*arguments: Any, **named: Any) -> Any:
            was, counted.on = counted.on, False
            try:
                return inner(*arguments, **named)
            finally:
                counted.on = was

        monkeypatch.setattr(owner, name, outside)

    for owner, name in ((Feed, "next"), (module, "to_device"), (Engine, "_log"), (Engine, "save")):
        aside(owner, name)
    begin = Engine._forward_backward

    def begun(engine: Engine, pending: Any) -> Any:
        counted.on = engine.step > engine.first_step
        return begin(engine, pending)

    monkeypatch.setattr(Engine, "_forward_backward", begun)
    monkeypatch.setattr(module, "at_hand", lambda _: False)
    return counted


@every_method
def test_nothing_is_read_between_logs(name: str, tmp_path: Path, reads: Reads) -> None:
    engine = made(recipe_of(name, "run.log_every=100", "run.checkpoint_every=100", "train.batch_size=4"), tmp_path)
    engine.total_steps = 3
    with reads:
        assert engine.run()
    assert reads.seen > 1000 and reads.found == []


@pytest.mark.parametrize("optim", ["{name: lars, base_lr: 1.0}", "{name: adamw, base_lr: 0.001}"])
def test_optimizers_read_nothing(optim: str, tmp_path: Path, reads: Reads) -> None:
    engine = tiny(tmp_path, f"optim={optim}")
    with reads:
        assert engine.run()
    assert reads.found == []


def test_flags_are_read_one_step_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[tuple[str, int]] = []
    engine = tiny(tmp_path)
    read, update, step_of = Flags.read, engine._update, dict[Flags, int]()

    def noted(flags: Flags) -> Any:
        order.append(("read", step_of.get(flags, 0)))
        return read(flags)

    def updated(broken: Tensor) -> None:
        update(broken)
        assert engine._queued is not None
        step_of[engine._queued.flags] = engine.step
        order.append(("step", engine.step))

    monkeypatch.setattr(Flags, "read", noted)
    engine._update = updated  # type: ignore[method-assign]
    assert engine.run()
    assert order[:8] == [(what, step + (what == "step")) for step in range(4) for what in ("step", "read")]


def test_a_method_that_takes_the_progress_alone_follows_the_steps_that_are_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    followed, skipped, exchange = list[int](), {1, 3}, Engine._exchange

    def some_broken(engine: Engine, *arguments: Any) -> Any:
        queued = exchange(engine, *arguments)
        queued.flags.broken = torch.tensor(engine.step in skipped)
        return queued

    monkeypatch.setattr(Engine, "_exchange", some_broken)
    monkeypatch.setattr(MAE, "after_step", lambda _, progress: followed.append(progress.step), raising=False)
    engine = tiny(tmp_path)
    assert engine.run()
    assert followed == sorted(set(range(engine.total_steps)) - skipped)


@pytest.mark.parametrize(
    "optim", [kind.Config() for kind in (adamw, sgd, lars, lamb, larc)], ids=lambda optim: optim.name
)
def test_an_update_on_a_gpu_reads_nothing(optim: Optim) -> None:
    with FakeTensorMode():  # which raises where a number is read
        broken = torch.empty((), dtype=torch.bool, device="cuda")
        network = nn.Sequential(nn.Linear(2, 2, device="cuda"), nn.BatchNorm1d(2, device="cuda"))
        statistics = Statistics(network)
        own = optim.build([{"params": list(network.parameters()), "weight_decay": 0.1}])
        guarded = Guarded(SimpleNamespace(optimizer=own, scaler=None, step=own.step))  # type: ignore[arg-type]
        network(torch.empty(3, 2, device="cuda"))
        for parameter in network.parameters():
            parameter.grad = torch.empty_like(parameter)
        with pytest.raises(DataDependentOutputException):
            guarded.step(broken)  # parameters without a state are waited for
        guarded._new.clear()
        for _ in range(2):
            guarded.step(broken)
            statistics.restore_(broken)
