"""The environment of a process: versions of packages, and variables that `accelerate launch` sets for Accelerate.

A recipe alone decides the result: variables that could change it are dropped, as are all that are unknown here.
"""

from __future__ import annotations

import os
import platform
from functools import cache
from importlib.metadata import PackageNotFoundError, version

from unlabeled.errors import UserError

PACKAGES = ("unlabeled", "torch", "torchvision", "timm", "accelerate", "numpy")
PREFIX = "ACCELERATE_"
# followed: sharding gives the same numbers, the others choose the device and the logs
_NAMES = ("USE_FSDP", "DEBUG_MODE", "DEBUG_RDV_FILE", "CPU_AFFINITY", "LOG_LEVEL", "ENABLE_RICH")
FOLLOWED = frozenset(f"{PREFIX}{name}" for name in _NAMES)
ON_CPU = f"{PREFIX}USE_CPU"
REFUSED = {
    f"{PREFIX}USE_DEEPSPEED": "DeepSpeed has a training loop, a clipping and a precision of its own",
    f"{PREFIX}USE_MEGATRON_LM": "Megatron-LM is for language models",
    f"{PREFIX}USE_PARALLELISM_CONFIG": "processes share pictures here, not tensors or sequences",
    f"{PREFIX}USE_SAGEMAKER": "SageMaker's own collectives are not supported",
}
REFUSED_WITH_FSDP = {
    "FSDP_IGNORED_MODULES": "the gradients of what is not sharded would not be averaged",
    "FSDP_OFFLOAD_PARAMS": "weights must stay on their device",
    "FSDP_ACTIVATION_CHECKPOINTING": "it renames parameters. Set run.checkpoint_activations instead",
}
SWITCHES = [f"{PREFIX}{name}" for name in ("USE_FSDP", "DEBUG_MODE", "CPU_AFFINITY", "USE_CPU")]
NOTHING = frozenset({"", "0", "no", "none", "false", "f", "n", "off"})
SOMETHING = frozenset({"1", "yes", "true", "t", "y", "on"})
# defaults that `accelerate launch` sets
USUAL = {f"{PREFIX}GRADIENT_ACCUMULATION_STEPS": "1", f"{PREFIX}DYNAMO_MODE": "default"}


def overruled(precision: str) -> list[str]:
    """Variables, as NAME=value, that contradict the recipe, which has this precision, and are ignored."""
    said = [name for name in sorted(os.environ) if _is_dropped(name) and _asks(name, precision)]
    return [f"{name}={os.environ[name]}" for name in said]


def wants_cpu() -> bool:
    """Whether `accelerate launch --cpu` asks for a CPU."""
    return _is_on(ON_CPU)


def drop() -> None:
    """Remove every variable that could change a result from this process's environment.

    Raises:
        UserError: a variable asks for an unsupported way to train.
    """
    refused = REFUSED | (REFUSED_WITH_FSDP if _is_on(f"{PREFIX}USE_FSDP") else {})
    for name, reason in refused.items():
        if _is_on(name):
            raise UserError(
                f"{name}={os.environ[name]} in the environment: {reason}. Unset it, or run `accelerate config` again "
                "with plain data parallelism or FSDP version 2."
            )
    for name in SWITCHES:
        if _is_on(name) and os.environ[name].strip().lower() not in SOMETHING:
            raise UserError(f"{name}={os.environ[name]} in the environment: expected true or false. Unset it.")
    for name in list(os.environ):
        if _is_dropped(name) or (name in SWITCHES and not _is_on(name)):
            del os.environ[name]


def _is_dropped(name: str) -> bool:
    return name.startswith(PREFIX) and name not in FOLLOWED and name != ON_CPU


def _is_on(name: str) -> bool:
    return os.environ.get(name, "").strip().lower() not in NOTHING


def _asks(name: str, precision: str) -> bool:
    value = os.environ[name].strip().lower()
    if name == f"{PREFIX}MIXED_PRECISION":
        return value != precision
    return value not in NOTHING and value != USUAL.get(name)


def versions() -> dict[str, str]:
    """Versions of what decides numbers."""
    return {"python": platform.python_version(), **{name: _version(name) for name in PACKAGES}}


@cache
def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
