"""The files of `deploy/`: what the scripts do with every exit code and signal, and fields that clusters insist on."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from slurm import Slurm, options, until
from support import ROOT

DEPLOY = ROOT / "deploy"
SCRIPT = DEPLOY / "slurm.sh"


def node(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(DEPLOY / "node.py"), *words]
    return subprocess.run(command, env=os.environ | variables, capture_output=True, text=True, timeout=60)


def test_every_process_knows_its_place() -> None:
    shown = "echo $RANK $LOCAL_RANK $GROUP_RANK $WORLD_SIZE $LOCAL_WORLD_SIZE $MASTER_ADDR $MASTER_PORT"
    how = ["--nodes=3", "--node=1", "--processes=2", "--address=first:5"]
    assert sorted(node(*how, "sh", "-c", shown).stdout.split("\n")) == ["", "2 0 1 6 2 first 5", "3 1 1 6 2 first 5"]
    slurm = {"SLURM_NNODES": "3", "SLURM_NODEID": "2", "SLURM_GPUS_ON_NODE": "2"}
    said = node("--address=first:5", "sh", "-c", shown, **slurm).stdout
    assert sorted(said.split("\n")) == ["", "4 0 2 6 2 first 5", "5 1 2 6 2 first 5"]
    assert node("--nodes=2", "sh", "-c", shown, JOB_COMPLETION_INDEX="1").stdout == "1 0 1 2 1 127.0.0.1 29500\n"
    assert node("--nodes=2", "--node=2", "true").returncode == 2


@pytest.mark.parametrize("first, code", [("exit 0", 0), ("exit 2", 2), ("exit 75", 75), ("kill -9 $$", 137)])
def test_the_first_failure_is_the_exit_code(first: str, code: int) -> None:
    others = "sleep 0.4; exit 69" if code else "exit 0"
    assert node("--processes=2", "sh", "-c", f"if [ $RANK = 1 ]; then {first}; else {others}; fi").returncode == code


def test_a_process_that_hangs_after_a_failure_is_ended() -> None:
    assert node("--processes=2", "--wait=0.3", "sh", "-c", "[ $RANK = 0 ] && exit 5; exec sleep 50").returncode == 5


def batch(tmp_path: Path, shell: str, *more: str, **variables: str) -> tuple[Slurm, int, str]:
    slurm = Slurm(tmp_path / "slurm", nodes=2)
    started = slurm.start(SCRIPT, "sh", "-c", shell, "sh", *more, **variables)
    said = started.communicate(timeout=60)[1]
    return slurm, started.returncode, said


@pytest.mark.parametrize(
    "code, long, again",
    [(0, True, False), (75, False, True), (2, True, False), (1, True, False), (69, True, True), (69, False, False)],
)
def test_what_slurm_does_with_an_exit_code(tmp_path: Path, code: int, long: bool, again: bool) -> None:
    slurm, ended, said = batch(tmp_path, f"exit {code}", AGAIN_AFTER="0" if long else "600")
    assert slurm.requeued is again and ended == (0 if again else code), said
    assert "unbound" not in said and "syntax" not in said


STOPS = "trap 'exit 75' USR1 TERM; touch up-$RANK; while :; do sleep 0.1; done"


@pytest.mark.parametrize("how", ["limit", "steps", "preempted", "ended"])
def test_signals_reach_every_process(tmp_path: Path, how: str) -> None:
    slurm = Slurm(tmp_path / "slurm", nodes=2)
    job = slurm.start(SCRIPT, "sh", "-c", STOPS)
    until(lambda: len(list(slurm.folder.glob("node-*/up-*"))) == 2)
    if how in ("limit", "ended"):  # --signal=B:USR1, or scancel --batch
        os.kill(job.pid, signal.SIGUSR1 if how == "limit" else signal.SIGTERM)
    for task in slurm.tasks() if how in ("steps", "preempted") else ():  # --signal=USR1, or SIGTERM to the steps
        os.kill(task, signal.SIGUSR1 if how == "steps" else signal.SIGTERM)
    said = job.communicate(timeout=60)[1]
    assert (job.returncode, slurm.requeued) == (0, True), said


def test_a_job_of_an_array_knows_its_number(tmp_path: Path) -> None:
    told = 'touch "$1"'
    slurm, code, _ = batch(tmp_path, told, "part-%a", SLURM_ARRAY_TASK_ID="7")
    assert code == 0 and (slurm.folder / "node-0" / "part-7").exists()


def test_slurm_is_asked_for_one_task_per_node_and_a_signal() -> None:
    told = options(SCRIPT)
    assert told["ntasks-per-node"] == "1" and told["signal"].startswith("B:USR1@") and "requeue" in told


@pytest.mark.skipif(shutil.which("shellcheck") is None, reason="shellcheck is not installed")
def test_scripts_are_sound() -> None:
    subprocess.run(["shellcheck", str(SCRIPT)], check=True)


# ---------------------------------------------------------------- Kubernetes, Docker


def parts() -> tuple[dict[str, Any], dict[str, Any]]:
    text = (DEPLOY / "kubernetes.yaml").read_text(encoding="utf-8")
    service, job = YAML(typ="safe", pure=True).load_all(text)
    return service, job


def option(command: list[str], name: str) -> str:
    return next(word.partition("=")[2] for word in command if word.startswith(f"--{name}="))


def test_the_job_of_kubernetes() -> None:
    service, job = parts()
    assert (service["apiVersion"], service["kind"], job["apiVersion"], job["kind"]) == (
        "v1",
        "Service",
        "batch/v1",
        "Job",
    )
    spec, name = job["spec"], job["metadata"]["name"]
    pod = spec["template"]["spec"]
    [container] = pod["containers"]
    command = container["command"]
    assert spec["completionMode"] == "Indexed"
    assert spec["completions"] == spec["parallelism"] == int(option(command, "nodes"))
    assert int(option(command, "processes")) == container["resources"]["limits"]["nvidia.com/gpu"]
    # the pods' names are resolved by a headless service of the name of their subdomain, ready or not
    assert service["spec"]["clusterIP"] == "None" and service["spec"]["publishNotReadyAddresses"] is True
    assert service["spec"]["selector"] == {"job-name": name} and pod["subdomain"] == service["metadata"]["name"]
    assert option(command, "address").startswith(f"{name}-0.{pod['subdomain']}:")
    mounts = {mount["name"] for mount in container["volumeMounts"]}
    assert mounts == {volume["name"] for volume in pod["volumes"]}


def test_exit_codes_of_a_pod() -> None:
    """A policy is only allowed with restartPolicy Never; its first rule that fits counts."""
    _, job = parts()
    assert job["spec"]["template"]["spec"]["restartPolicy"] == "Never"
    rules = job["spec"]["podFailurePolicy"]["rules"]
    found = {}
    for code in (2, 75, 69, 1):
        fits = (rule for rule in rules if code in rule.get("onExitCodes", {}).get("values", ()))
        found[code] = next(fits, {"action": "Count"})["action"]
    assert found == {2: "FailJob", 75: "Ignore", 69: "Count", 1: "Count"}
    for rule in rules:
        assert ("onExitCodes" in rule) != ("onPodConditions" in rule)
        if "onExitCodes" in rule:
            names = [container["name"] for container in job["spec"]["template"]["spec"]["containers"]]
            assert rule["onExitCodes"]["operator"] == "In" and rule["onExitCodes"]["containerName"] in names
    assert {"type": "DisruptionTarget"} in rules[-1]["onPodConditions"]


def instructions() -> list[tuple[str, str]]:
    text = (DEPLOY / "Dockerfile").read_text(encoding="utf-8").replace("\\\n", "")
    lines = [line for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(name, rest.strip()) for name, _, rest in (line.partition(" ") for line in lines)]


def test_the_docker_file() -> None:
    known = {"ARG", "FROM", "RUN", "COPY", "ENV", "USER", "WORKDIR", "CMD"}
    found = instructions()
    assert {name for name, _ in found} <= known and [name for name, _ in found][:2] == ["ARG", "FROM"]
    assert [rest for name, rest in found if name == "USER"][-1] not in ("root", "0")
    for name, rest in found:
        if name == "RUN":
            subprocess.run(["bash", "-n", "-c", rest], check=True)
        if name == "COPY":
            assert all((ROOT / word).exists() for word in rest.split()[:-1]), rest
        if name == "CMD":
            assert json.loads(rest)[0] == "unlabeled"
    _, job = parts()
    [container] = job["spec"]["template"]["spec"]["containers"]
    copied = re.search(r"/app(/\S+)", " ".join(container["command"]))
    assert copied and (ROOT / copied[1][1:]).is_file()


def test_the_development_container() -> None:
    told = json.loads((ROOT / ".devcontainer" / "devcontainer.json").read_text(encoding="utf-8"))
    file = (ROOT / ".devcontainer" / told["build"]["dockerfile"]).resolve()
    assert file == DEPLOY / "Dockerfile" and (ROOT / ".devcontainer" / told["build"]["context"]).resolve() == ROOT
    found = instructions()
    assert set(told["build"]["args"]) <= {rest.partition("=")[0] for name, rest in found if name == "ARG"}
    assert told["remoteUser"] == [rest for name, rest in found if name == "USER"][-1]
    program, target = told["postCreateCommand"].split()
    assert program == "make" and re.search(
        rf"^{target}:", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE
    )
