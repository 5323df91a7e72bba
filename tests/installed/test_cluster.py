"""The files of `deploy/` and the launchers of several nodes, end to end on this machine, to the bits of a quiet run."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from slurm import Slurm, until
from support import (
    ROOT,
    TINY_FINETUNE,
    TINY_PRETRAIN,
    assert_close_weights,
    checkpoint_bytes,
    free_port,
    launch,
    metrics,
    on_own_node,
)

LAST = 150
MORE = ["train.epochs=30", "run.checkpoint_every=1000"]
STARTED: list[subprocess.Popen[str]] = []
BIN = Path(sys.executable).parent
INSTALLED = {"PYTHONPATH": str(ROOT / "ssl"), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A recipe, and a run of two processes that nothing happened to."""
    home = tmp_path_factory.mktemp("cluster")
    (home / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    assert launch("pretrain", words(home, home / "quiet"), world=2) == [0, 0]
    return home


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    """End what a test that failed has started: torchrun ends its processes, which are in sessions of their own."""
    yield
    for number in (signal.SIGTERM, signal.SIGKILL):
        for process in (process for process in STARTED if process.poll() is None):
            os.killpg(process.pid, number)
        for process in STARTED:
            with suppress(subprocess.TimeoutExpired):
                process.wait(20)
    STARTED.clear()


def words(home: Path, output: Path) -> list[str]:
    return [str(home / "tiny.yaml"), f"run.output={output}", *MORE]


def program(home: Path, output: Path) -> list[str]:
    return [sys.executable, str(ROOT / "pretrain.py"), *words(home, output)]


def steps(output: Path) -> int:
    return metrics(output)[-1]["step"] if (output / "metrics.jsonl").exists() and metrics(output) else 0


def same_bits(home: Path, output: Path) -> bool:
    return checkpoint_bytes(output, LAST) == checkpoint_bytes(home / "quiet", LAST)


def test_slurm_time_limit_then_preemption_then_the_end(home: Path, tmp_path: Path) -> None:
    slurm, output, before = Slurm(tmp_path / "slurm", nodes=2), tmp_path / "run", 0
    for attempt in range(3):
        job = slurm.start(ROOT / "deploy" / "slurm.sh", *program(home, output), **INSTALLED)
        STARTED.append(job)
        if attempt < 2:
            until(lambda before=before: steps(output) >= before + 5)
            if attempt == 0:
                os.kill(job.pid, signal.SIGUSR1)  # the batch shell, before the time limit
            else:
                for task in slurm.tasks():  # the step, when a job of higher priority takes its nodes
                    os.kill(task, signal.SIGTERM)
        said = job.communicate(timeout=400)[1]
        assert (job.returncode, slurm.requeued) == (0, attempt < 2), said
        assert "Traceback" not in said and "nodes" in said, said.partition("Traceback")[2][:2000]
        before = steps(output)
    assert before == LAST and same_bits(home, output)


def nodes(commands: Sequence[Sequence[str]], homes: Path, **variables: str) -> list[subprocess.Popen[str]]:
    """A launcher per node, each with its own folders; the second starts later."""
    started = []
    for number, command in enumerate(commands):
        folder = homes / f"node-{number}"
        (folder / "tmp").mkdir(parents=True, exist_ok=True)
        own = {"TMPDIR": str(folder / "tmp"), "HOME": str(folder), "JOB_COMPLETION_INDEX": str(number)}
        log = open(folder / "log", "w", encoding="utf-8")  # noqa: SIM115 - the process writes there
        how = {"cwd": folder, "stdout": log, "stderr": log, "env": os.environ | INSTALLED | own | variables}
        how["start_new_session"] = True
        started.append(subprocess.Popen(list(command), **how))  # type: ignore[call-overload]
        time.sleep(3 * (number == 0))
    STARTED.extend(started)
    return started


def ended(started: Sequence[subprocess.Popen[str]], homes: Path) -> list[int]:
    codes = [process.wait(400) for process in started]
    for log in sorted(homes.glob("node-*/log")):
        print(log.read_text(encoding="utf-8"))
    return codes


def test_the_pods_of_kubernetes(home: Path, tmp_path: Path) -> None:
    output = tmp_path / "run"
    _, job = YAML(typ="safe", pure=True).load_all((ROOT / "deploy" / "kubernetes.yaml").read_text(encoding="utf-8"))
    told = job["spec"]["template"]["spec"]["containers"][0]["command"]
    first = told.index("unlabeled")
    ours = {"python": sys.executable, "/app/deploy/node.py": str(ROOT / "deploy" / "node.py")}
    start = [ours.get(word, word) for word in told[:first] if not word.startswith(("--processes", "--address"))]
    for attempt in range(2):
        pod = [*start, "--processes=1", f"--address=127.0.0.1:{free_port()}", *program(home, output)]
        pods = nodes([pod] * job["spec"]["completions"], tmp_path)
        if attempt == 0:
            until(lambda: steps(output) >= 5)
            pods[1].send_signal(signal.SIGTERM)  # one is evicted
        assert ended(pods, tmp_path) == ([75, 75], [0, 0])[attempt]
    assert same_bits(home, output)


def test_torchrun_goes_on_after_a_process_was_killed(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Processes that torchrun has started again sometimes wait for each other; the same command then goes on."""
    output = tmp_path / "run"
    command = [str(BIN / "torchrun"), "--standalone", "--nproc-per-node=2", "--max-restarts=2"]
    command += [*program(home, output)[1:], "run.checkpoint_every=20"]
    agents = nodes([command], tmp_path)
    until(lambda: steps(output) >= 25)
    os.kill(children(agents[0].pid)[-1], signal.SIGKILL)
    try:
        assert agents[0].wait(120) == 0
    except subprocess.TimeoutExpired:
        for process in [*children(agents[0].pid), agents[0].pid]:  # a worker has a session of its own
            os.kill(process, signal.SIGKILL)
        agents = nodes([command], tmp_path)
    assert ended(agents, tmp_path) == [0]
    assert "resuming from" in capsys.readouterr().out
    assert same_bits(home, output)


def test_torchrun_goes_on_with_the_machines_that_are_left(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In parts that are no larger than before, from the newest checkpoint, as two runs would have done by hand."""
    torchrun = [str(BIN / "torchrun"), "--nnodes=1:2", "--nproc-per-node=1", "--max-restarts=3", "--rdzv-backend=c10d"]
    torchrun += [f"--rdzv-endpoint=127.0.0.1:{free_port()}", "--rdzv-id=1", "--rdzv-conf=last_call_timeout=5"]
    more = ["run.accumulate=auto", "run.checkpoint_every=40", "run.timeout=30"]
    agents = nodes([[*torchrun, *program(home, tmp_path / "run")[1:], *more]] * 2, tmp_path)
    until(lambda: steps(tmp_path / "run") >= 45)
    for process in [*children(agents[1].pid), agents[1].pid]:
        os.kill(process, signal.SIGKILL)
    assert ended(agents, tmp_path) == [0, -signal.SIGKILL]
    said = capsys.readouterr().out
    assert "the batch of 8 is now worked on by 1 x 2 (processes x accumulation), before by 2 x 1" in said
    assert "step-00000040" in said and "resuming from" in said
    by_hand = [*words(home, tmp_path / "by-hand"), *more]
    assert launch("pretrain", by_hand, world=2, kill={"step": 45, "signal": 15}) == [75, 75]
    for later in sorted((tmp_path / "by-hand" / "checkpoints").iterdir())[1:]:
        shutil.rmtree(later)
    assert launch("pretrain", by_hand) == [0]
    assert checkpoint_bytes(tmp_path / "run", LAST) == checkpoint_bytes(tmp_path / "by-hand", LAST)


def children(process: int) -> list[int]:
    file = Path(f"/proc/{process}/task/{process}/children")
    return [int(word) for word in file.read_text(encoding="utf-8").split()]


@pytest.mark.parametrize("stage", ["pretrain", "finetune"])
def test_two_nodes_with_two_processes_learn_what_one_process_does(home: Path, tmp_path: Path, stage: str) -> None:
    quiet, more = ["train.epochs=4", "optim.base_lr=0.003"], ["method.encoder.drop_path=0.0"]
    if stage == "finetune":
        begin = [str(home / "tiny.yaml"), f"run.output={tmp_path / 'begin'}", *quiet, *more]
        assert launch("pretrain", begin) == [0]
        recipe, more = (
            TINY_FINETUNE.replace("UNSET", str(tmp_path / "begin" / "export")),
            ["task.strategy.drop_path=0.0"],
        )
        (home / "finetune.yaml").write_text(recipe, encoding="utf-8")
    recipe_file = str(home / ("tiny.yaml" if stage == "pretrain" else "finetune.yaml"))
    for world in (1, 4):
        arguments = [recipe_file, f"run.output={tmp_path / f'of-{world}'}", *quiet, *more]
        assert launch(stage, arguments, world=world, hook=partial(on_own_node, tmp_path, 2)) == [0] * world
    one, four = ([line["loss"] for line in metrics(tmp_path / f"of-{world}") if "loss" in line] for world in (1, 4))
    assert four == pytest.approx(one, rel=1e-4) and len(one) == 20
    if stage == "pretrain":
        assert_close_weights(tmp_path / "of-1", tmp_path / "of-4", 18)


def test_embed_on_two_nodes(home: Path, tmp_path: Path) -> None:
    start = [sys.executable, str(ROOT / "deploy" / "node.py")]
    how = ["embed", str(home / "quiet" / "export"), str(home / "quiet"), "--shard", "8", "--workers", "0"]
    for count in (1, 2):
        embed = [sys.executable, "-m", "unlabeled", *how[:3], str(tmp_path / f"of-{count}"), *how[3:]]
        launcher = [*start, f"--nodes={count}", f"--address=127.0.0.1:{free_port()}", *embed]
        assert ended(nodes([launcher] * count, tmp_path), tmp_path) == [0] * count
    one, two = ({file.name: file.read_bytes() for file in (tmp_path / f"of-{n}").glob("features-*")} for n in (1, 2))
    assert len(one) == 6 and one == two


def test_accelerate_on_two_machines(home: Path, tmp_path: Path) -> None:
    """Each with its own file of `accelerate config`, as in docs/cluster.md."""
    text = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
    config = text.partition("```yaml\n")[2].partition("```")[0]
    own = {"main_process_ip: node0": "main_process_ip: 127.0.0.1", "num_processes: 16": "num_processes: 2"}
    own["main_process_port: 29500"] = f"main_process_port: {free_port()}"
    commands = []
    for number in range(2):
        changed = config
        for old, new in (own | {"machine_rank: 0": f"machine_rank: {number}"}).items():
            assert old in config
            changed = changed.replace(old, new)
        file = tmp_path / f"machine-{number}.yaml"
        file.write_text(changed, encoding="utf-8")
        launcher = [str(BIN / "accelerate"), "launch", "--config_file", str(file)]
        commands.append([*launcher, *program(home, tmp_path / "run")[1:]])
    assert ended(nodes(commands, tmp_path), tmp_path) == [0, 0]
    assert same_bits(home, tmp_path / "run")
