"""Whole runs in processes of their own: started fast, killed where a test asks, several at once."""

from __future__ import annotations

import http.server
import json
import multiprocessing
import os
import signal
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

ROOT = Path(__file__).parents[1]
# what programs import late, so that every process of a test need not
PRELOAD = [
    "torch",
    "timm",
    "accelerate",
    "torchvision",
    "einops._torch_specific",
    "matplotlib.backends.backend_agg",
    "matplotlib.figure",
    "rich._emoji_codes",
    "unlabeled.launch.program",
    "unlabeled.train.engine",
    "unlabeled.launch.plan",
    "unlabeled.report.plots",
    "unlabeled.stages.pretrain",
    "unlabeled.transfer.result",
    "unlabeled.transfer.tasks.sweep",
    "unlabeled.stages.finetune",
    "unlabeled.transfer.start",
    *(
        f"unlabeled.pretrain.methods.{file.stem}"
        for file in sorted((ROOT / "ssl/unlabeled/pretrain/methods").glob("[a-z]*.py"))
    ),
]

CONTEXT = multiprocessing.get_context("forkserver")
CONTEXT.set_forkserver_preload(PRELOAD)

TINY_PRETRAIN = """
name: tiny
data: {name: shapes, train_size: 42, val_size: 20, size: 16}
method:
  name: mae
  view: {size: 16, mask: {name: random, ratio: 0.5}}
  encoder: {model: vit_tiny_patch16_224, patch_size: 4, width: 16, depth: 2, heads: 2, drop_path: 0.2}
  decoder: {name: self, width: 16, depth: 1, heads: 2}
optim: {name: adamw, base_lr: 0.03, warmup_epochs: 1}
train: {epochs: 3, batch_size: 8}
run: {device: cpu, workers: 0, log_every: 1, checkpoint_every: 3, keep_last: 100, page: false}
look: null
"""

TINY_FINETUNE = """
name: tiny
encoder: UNSET
data: {name: shapes, train_size: 42, val_size: 20, size: 16}
task: {strategy: {name: full, drop_path: 0.3}, view: {size: 16}, crop_pct: 1.0, mixing: {mixup: 0.5, cutmix: 0.5}}
optim: {name: adamw, base_lr: 0.03, warmup_epochs: 1}
train: {epochs: 3, batch_size: 8}
run: {device: cpu, workers: 0, log_every: 1, checkpoint_every: 3, keep_last: 100, page: false}
look: null
"""

# the same, with the page and the look of a run
SHOWN_PRETRAIN, SHOWN_FINETUNE = (
    text.replace(", page: false", "").replace("look: null\n", "") for text in (TINY_PRETRAIN, TINY_FINETUNE)
)
# for runs of which only the numbers matter
UNSHOWN = ("look=null", "run.page=false")


def without_diagrams() -> None:
    """Leave the two diagrams of a fine-tuned run empty: drawing them takes half of a tiny run."""
    from unlabeled.transfer import result

    result.draw_confusion = result.draw_reliability = lambda file, *_: file.touch()  # type: ignore[assignment]


def without_estimates() -> None:
    """Leave the plan's estimate of memory out: to count it takes up to a quarter of a tiny run."""
    from unlabeled.launch import plan

    plan.memory = lambda *_: (0.0, 0.0)


def launch(
    stage: str,
    arguments: Sequence[str],
    *,
    world: int = 1,
    kill: dict[str, Any] | None = None,
    hook: Any = None,
    diagrams: bool = False,
) -> list[int]:
    """Run a stage in `world` fresh processes; returns their exit codes (-9 where killed).

    Args:
        stage: pretrain or finetune, or another command.
        arguments: of the command line.
        world: number of gloo processes.
        kill: `{"step": n}` sends SIGKILL after step n, `{"save": n, "at": WHERE}` during the save of step n;
            `"signal"` names another signal, `"ranks"` which processes.
        hook: called with nothing in each process before it starts.
        diagrams: whether a fine-tuned run draws them.
    """
    port = free_port()
    with tempfile.NamedTemporaryFile("r") as said:
        processes = [
            CONTEXT.Process(
                target=_child, args=(stage, list(arguments), rank, world, port, kill, hook, diagrams, said.name)
            )
            for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        sys.stderr.write(said.read())
    codes = [process.exitcode for process in processes]
    assert None not in codes, "a run hangs"
    return codes  # type: ignore[return-value]


def on_processes(function: Callable[[int], Any], world: int = 2, timeout: float = 1800) -> list[Any]:
    """What `function(rank)` returns in each of `world` fresh processes of one gloo group, whose exchanges have so many
    seconds."""
    with tempfile.TemporaryDirectory() as folder:
        processes = [
            CONTEXT.Process(target=_member, args=(function, rank, world, folder, timeout)) for rank in range(world)
        ]
        for process in processes:
            process.start()
        for process in processes:
            process.join(120)
        assert [process.exitcode for process in processes] == [0] * world
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=True) for rank in range(world)]


def _member(function: Callable[[int], Any], rank: int, world: int, folder: str, timeout: float) -> None:
    import torch.distributed as dist

    torch.set_num_threads(1)
    place, seconds = f"file://{folder}/store", timedelta(seconds=timeout)
    dist.init_process_group("gloo", init_method=place, rank=rank, world_size=world, timeout=seconds)
    torch.save(function(rank), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def on_own_node(home: Path, per_node: int = 1) -> None:
    """Move this process to the folder of its node, `node-0` for the first `per_node` ranks and so on."""
    node, local = divmod(int(os.environ.get("RANK", "0")), per_node)
    folder = home / f"node-{node}"
    for name, below in {"TMPDIR": "tmp", "HOME": "home", "XDG_CACHE_HOME": "home/cache"}.items():
        os.environ[name] = str(folder / below)
        (folder / below).mkdir(exist_ok=True, parents=True)
    tempfile.tempdir = None
    if "RANK" in os.environ:
        os.environ |= {"LOCAL_RANK": str(local), "LOCAL_WORLD_SIZE": str(per_node)}
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: node + 1])
    os.chdir(folder)


def shard() -> None:
    """Let Accelerate shard: on CPUs it would take DDP whatever its configuration says."""
    from accelerate import Accelerator, FullyShardedDataParallelPlugin
    from accelerate.utils import DistributedType
    from torch.distributed.tensor import DTensor

    from unlabeled.train.engine import Engine

    made, ran = Accelerator.__init__, Engine.run

    def make(self: Any, *arguments: Any, **named: Any) -> None:
        made(self, *arguments, **named)
        self.state.distributed_type = DistributedType.FSDP
        self.state.fsdp_plugin = FullyShardedDataParallelPlugin(
            fsdp_version=2,
            auto_wrap_policy="transformer_based_wrap",
            transformer_cls_names_to_wrap=["Block", "SelfBlock"],
        )

    def run(self: Any) -> bool:
        assert all(isinstance(p, DTensor) for p in self.method.parameters()), "nothing is sharded"
        return ran(self)

    Accelerator.__init__, Engine.run = make, run  # type: ignore[method-assign]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def checkpoint_bytes(output: Path, step: int) -> dict[str, bytes]:
    """What a checkpoint holds of weights, optimizer and random state."""
    folder = output / "checkpoints" / f"step-{step:08d}"
    return {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}


def metrics(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]


def weights(output: Path, step: int) -> dict[str, Any]:
    """The whole weights of a checkpoint, in one file or in pieces."""
    from unlabeled.train.checkpoint import load
    from unlabeled.train.saving.stored import everything

    found = load(output / "checkpoints" / f"step-{step:08d}").tensors["model"]
    return {name: tensor[everything(tensor)] for name, tensor in found.items()}


def assert_close_weights(a: Path, b: Path, step: int) -> None:
    """To 1e-4, the key third of qkv biases aside: its true gradient is zero, and AdamW turns rounding into steps."""
    ours, theirs = weights(a, step), weights(b, step)
    for name, tensor in ours.items():
        other = theirs[name]
        if name.endswith("qkv.bias"):
            third = len(tensor) // 3
            tensor, other = (torch.cat([t[:third], t[2 * third :]]) for t in (tensor, other))
        torch.testing.assert_close(other, tensor, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}")


def _child(
    stage: str,
    arguments: list[str],
    rank: int,
    world: int,
    port: int,
    kill: dict[str, Any] | None,
    hook: Any,
    diagrams: bool,
    said: str,
) -> None:
    import torch

    # what a run prints goes to a file: the server these processes come from has its own idea of stderr
    file = os.open(said, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)

    torch.set_num_threads(1)
    if world > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(world),
            "LOCAL_WORLD_SIZE": str(world),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(port),
        }
    without_estimates()
    if not diagrams:
        without_diagrams()
    if hook is not None:
        hook()
    if kill is not None and rank in kill.get("ranks", range(world)):
        _arm(kill)
    from unlabeled.__main__ import main

    sys.exit(main([stage, *arguments]))


def _arm(kill: dict[str, Any]) -> None:
    """Send ourselves a signal at a place in the code."""
    from unlabeled import manifest
    from unlabeled.train import checkpoint
    from unlabeled.train.engine import Engine

    def strike() -> None:
        os.kill(os.getpid(), kill.get("signal", signal.SIGKILL))

    if "step" in kill:
        update = Engine._update

        def after_step(engine: Engine, *arguments: Any) -> None:
            update(engine, *arguments)
            if engine.step == kill["step"]:
                engine.saving.close()  # checkpoints of the steps before are complete, on a slow machine too
                strike()

        Engine._update = after_step  # type: ignore[method-assign]
        return

    place = {"first file": "describe", "written": "sync", "renamed": "_prune"}[kill["at"]]
    save = checkpoint.Checkpoints.save

    def armed_save(self: checkpoint.Checkpoints, step: int, *arguments: Any) -> Path:
        if step == kill["save"]:
            owner: Any = checkpoint.Checkpoints if place == "_prune" else manifest
            setattr(owner, place, lambda *_: strike())
        return save(self, step, *arguments)

    checkpoint.Checkpoints.save = armed_save  # type: ignore[method-assign]


class Asked:
    """The requests of a server: `names` of files in their order, and the `most` that were answered at once."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.now = self.most = 0

    @contextmanager
    def answering(self, name: str) -> Iterator[None]:
        self.names.append(name)
        self.now += 1
        self.most = max(self.most, self.now)
        yield
        self.now -= 1


class _Ranges(http.server.SimpleHTTPRequestHandler):
    """Serves files whole or in ranges after some seconds; a name in `fails` is refused so many times."""

    fails: ClassVar[dict[str, int]] = {}
    asked: Asked
    latency = 0.0

    def do_GET(self) -> None:
        with self.asked.answering(os.path.basename(self.path)):
            time.sleep(self.latency)
            self._answer()

    def _answer(self) -> None:
        file, asked = Path(self.translate_path(self.path)), self.headers.get("Range")
        if self.fails.get(file.name, 0) > 0 and asked:
            self.fails[file.name] -= 1
            self.send_error(503)
        elif not asked or not file.is_file():
            super().do_GET()
        else:
            first, last = asked.removeprefix("bytes=").split("-")
            with file.open("rb") as opened:
                opened.seek(int(first))
                data = opened.read(int(last) - int(first) + 1)
            self.send_response(206)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Content-Range", f"bytes {first}-{int(first) + len(data) - 1}/{file.stat().st_size}")
            self.send_header("ETag", f'"{file.stat().st_mtime_ns}"')
            self.end_headers()
            self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def served(
    folder: Path, fails: dict[str, int] | None = None, asked: Asked | None = None, latency: float = 0.0
) -> Iterator[str]:
    """A folder over HTTP on the loopback: its address. `fails` says which file refuses how many more ranges, `asked`
    notes the requests, each of which is answered after `latency` seconds."""
    own = {"fails": {} if fails is None else fails, "asked": asked or Asked(), "latency": latency}
    handler = type("Handler", (_Ranges,), own)
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), partial(handler, directory=str(folder))) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def classifying(strategy: str = "full", **settings: Any) -> Any:
    """A `task:` section for classification; fields of the strategy stand beside those of the task."""
    from unlabeled.transfer.strategy import STRATEGIES
    from unlabeled.transfer.tasks import classify

    known = STRATEGIES.kind(strategy).model_fields
    own = {name: settings.pop(name) for name in list(settings) if name in known}
    return classify.Config(strategy={"name": strategy, **own}, **settings)
