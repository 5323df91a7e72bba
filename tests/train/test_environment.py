"""What Accelerate reads from the environment changes nothing, is refused, or is followed where that is harmless."""

from __future__ import annotations

import ast
import os
from collections.abc import Iterator
from functools import cache, partial
from pathlib import Path

import accelerate
import pytest
import torch
from support import TINY_PRETRAIN, checkpoint_bytes, launch

from unlabeled.accelerator import make_accelerator
from unlabeled.environment import (
    FOLLOWED,
    NOTHING,
    ON_CPU,
    REFUSED,
    REFUSED_WITH_FSDP,
    SWITCHES,
    drop,
    overruled,
)
from unlabeled.errors import UserError
from unlabeled.launch.program import main

# values that would change what is learnt, if anybody listened
HOSTILE = {
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4",
    "ACCELERATE_MIXED_PRECISION": "bf16",
    "ACCELERATE_DYNAMO_BACKEND": "eager",
    "ACCELERATE_DYNAMO_USE_DYNAMIC": "perhaps",
    "ACCELERATE_TORCH_DEVICE": "meta",
    "ACCELERATE_FP8_BACKEND": "TE",
    "ACCELERATE_DOWNCAST_BF16": "1",
    "ACCELERATE_GRADIENT_CLIPPING": "0.001",
    "ACCELERATE_OF_A_LATER_VERSION": "1",
}
USUAL = {
    "ACCELERATE_MIXED_PRECISION": "no",
    "ACCELERATE_DYNAMO_BACKEND": "no",
    "ACCELERATE_DYNAMO_MODE": "default",
    "ACCELERATE_DYNAMO_USE_FULLGRAPH": "False",
    "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "1",
}
# beside ACCELERATE_*: who this process is among how many, threads, trackers, libraries of other hardware
HARMLESS = """
RANK WORLD_SIZE LOCAL_RANK LOCAL_WORLD_SIZE MASTER_ADDR MASTER_PORT NODE_RANK NPROC PMI_RANK PMI_SIZE
OMPI_COMM_WORLD_LOCAL_RANK OMPI_COMM_WORLD_LOCAL_SIZE OMPI_COMM_WORLD_RANK OMPI_COMM_WORLD_SIZE
MV2_COMM_WORLD_LOCAL_RANK MV2_COMM_WORLD_LOCAL_SIZE MV2_COMM_WORLD_RANK MV2_COMM_WORLD_SIZE MPI_LOCALRANKID
MPI_LOCALNRANKS FORK_LAUNCHED OMP_NUM_THREADS CUDA_VISIBLE_DEVICES CLEARML_PROJECT CLEARML_TASK
MLFLOW_EXPERIMENT_NAME MLFLOW_NESTED_RUN MLFLOW_RUN_ID MLFLOW_TAGS NCCL_IB_DISABLE NCCL_P2P_DISABLE PJRT_DEVICE
TPU_NAME PT_HPU_LAZY_MODE DEEPSPEED_USE_HPU PYTORCH_ENABLE_MPS_FALLBACK USE_TORCH_XLA XLA_DOWNCAST_BF16
XLA_USE_BF16 systemdrive FOO AWS_ACCESS_KEY_ID AWS_DEFAULT_REGION AWS_PROFILE AWS_SECRET_ACCESS_KEY
"""
# how FSDP spreads weights, and its version 1, which is refused
SHARDING = """
FSDP_VERSION FSDP_SHARDING_STRATEGY FSDP_RESHARD_AFTER_FORWARD FSDP_BACKWARD_PREFETCH FSDP_AUTO_WRAP_POLICY
FSDP_TRANSFORMER_CLS_TO_WRAP FSDP_MIN_NUM_PARAMS FSDP_USE_ORIG_PARAMS FSDP_SYNC_MODULE_STATES
FSDP_FORWARD_PREFETCH FSDP_CPU_RAM_EFFICIENT_LOADING FSDP_STATE_DICT_TYPE FSDP_ACTIVATION_CHECKPOINTING_OFFLOAD
"""
READERS = {"get", "getenv", "parse_flag_from_env", "parse_choice_from_env", "get_int_from_env", "setdefault"}


@cache
def names_read() -> frozenset[str]:
    """Names of the variables that Accelerate reads outside its command line, with prefixes put together."""
    folder, names = Path(accelerate.__file__).parent, set()
    for file in sorted(folder.rglob("*.py")):
        if file.relative_to(folder).parts[0] not in ("commands", "test_utils"):
            tree = ast.parse(file.read_text(encoding="utf-8"))
            for scope in (node for node in ast.walk(tree) if isinstance(node, ast.Module | ast.FunctionDef)):
                names |= set(_names_in(scope))
    return frozenset(names)


def _names_in(scope: ast.AST) -> Iterator[str]:
    prefixes = {
        target.id: node.value.value
        for node in ast.walk(scope)
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for target in node.targets
        if isinstance(target, ast.Name) and isinstance(scope, ast.FunctionDef)
    }
    for node in ast.walk(scope):
        if isinstance(node, ast.Call) and node.args and _called(node) in READERS:
            yield from _spelled(node.args[0], prefixes)
        if isinstance(node, ast.Subscript) and ast.unparse(node.value) == "os.environ":
            yield from _spelled(node.slice, prefixes)


def _called(call: ast.Call) -> str:
    function = ast.unparse(call.func)
    return function.rsplit(".", 1)[-1] if function.startswith("os.") or "." not in function else ""


def _spelled(node: ast.expr, prefixes: dict[str, str]) -> Iterator[str]:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield node.value
    elif isinstance(node, ast.List):
        yield from (name for part in node.elts for name in _spelled(part, prefixes))
    elif isinstance(node, ast.BinOp) and isinstance(node.left, ast.Name) and node.left.id in prefixes:
        yield from (prefixes[node.left.id] + name for name in _spelled(node.right, prefixes))


def test_every_variable_of_the_installed_accelerate_is_decided() -> None:
    found = names_read()
    assert {"ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "ACCELERATE_DYNAMO_BACKEND", "FSDP_IGNORED_MODULES"} <= found
    decided = {*HARMLESS.split(), *SHARDING.split(), *REFUSED_WITH_FSDP}
    conditional = ("ACCELERATE_", "MEGATRON_LM_", "PARALLELISM_CONFIG_")  # dropped; read only where that is refused
    assert {name for name in found if not name.startswith(conditional)} - decided == set()


def test_only_what_is_followed_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    names = {name for name in names_read() if name.startswith("ACCELERATE_")} - set(REFUSED) - FOLLOWED - {ON_CPU}
    assert len(names) > 15
    for name in (*names, *FOLLOWED - {"ACCELERATE_USE_FSDP"}, "ACCELERATE_OF_A_LATER_VERSION"):
        monkeypatch.setenv(name, "1")
    drop()
    assert {name for name in os.environ if name.startswith("ACCELERATE_")} - {ON_CPU} == FOLLOWED - {
        "ACCELERATE_USE_FSDP"
    }


def surround(variables: dict[str, str]) -> None:
    os.environ |= variables


def test_the_environment_changes_nothing_and_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN, encoding="utf-8")
    saved = []
    for name, variables in (("usual", USUAL), ("hostile", HOSTILE)):
        arguments = [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / name}", "train.epochs=1"]
        assert launch("pretrain", arguments, hook=partial(surround, variables)) == [0]
        said = capsys.readouterr().err
        lines = [line for line in said.splitlines() if "not followed" in line]
        assert len(lines) == (1 if variables is HOSTILE else 0)
        assert all(f"{key}={value}" in lines[0] for key, value in variables.items() if lines)
        saved.append(checkpoint_bytes(tmp_path / name, 5))
    assert saved[0] == saved[1]


def test_a_precision_of_the_launcher_is_said_only_where_it_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert overruled("no") == [] and overruled("bf16") == ["ACCELERATE_MIXED_PRECISION=no"]


@pytest.mark.parametrize("name", [*REFUSED, *REFUSED_WITH_FSDP])
def test_other_ways_to_train_are_refused(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in REFUSED_WITH_FSDP:
        monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    monkeypatch.setenv(name, "true")
    with pytest.raises(UserError, match=f"{name}=true in the environment: "):
        make_accelerator("cpu", "no", 60.0)
    for word in NOTHING:
        monkeypatch.setenv(name, word)
        drop()


def test_a_switch_is_on_or_off(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in SWITCHES:
        for value in ("", "none", "FALSE"):
            monkeypatch.setenv(name, value)
            drop()
            assert name not in os.environ
        monkeypatch.setenv(name, "maybe")
        with pytest.raises(UserError, match=f"{name}=maybe in the environment: expected true or false"):
            drop()
        monkeypatch.delenv(name)


def test_a_device_of_the_recipe_is_not_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: True)
    monkeypatch.setenv(ON_CPU, "true")
    with pytest.raises(UserError, match="cuda, but ACCELERATE_USE_CPU asks for a CPU"):
        make_accelerator("cuda", "no", 60.0)


@pytest.mark.parametrize("change", ["train.precision=fp16", "run.device=cuda"])
def test_a_plan_needs_no_gpu(
    change: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    (tmp_path / "tiny.yaml").write_text(TINY_PRETRAIN.replace("device: cpu, ", ""), encoding="utf-8")
    arguments = [str(tmp_path / "tiny.yaml"), f"run.output={tmp_path / 'run'}", change]
    assert main("pretrain", [*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "this one cannot run it: " in said and "about" in said and "steps" in said
    assert main("pretrain", arguments) == 2
    assert "accelerator" in capsys.readouterr().err and not (tmp_path / "run" / "checkpoints").exists()
