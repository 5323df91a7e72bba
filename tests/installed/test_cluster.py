"""The files of `deploy/` and the launchers of several nodes, end to end on this machine, to the bits of a quiet run."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path

import pytest
from machines import BIN, INSTALLED, LAST, STARTED, ended, nodes, program, same_bits, steps
from ruamel.yaml import YAML
from slurm import Slurm, until
from support import (
    ROOT,
    TINY_FINETUNE,
    assert_close_weights,
    free_port,
    launch,
    metrics,
    on_own_node,
)


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
