"""Official numbers as they lie in files, their settings, and which of them tests have read."""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

# a module test_NAME.py or test_NAME_part.py compares with the folder NAME
METHODS = sorted({module.stem.split("_")[1] for module in Path(__file__).parent.glob("test_*.py")} - {"sets", "whole"})
DEFAULT = Path(__file__).parents[1] / "golden"
# names that read, by file
READ: dict[Path, set[str]] = defaultdict(set)

# one setting, as different scripts may call it
SYNONYMS = (
    {"config", "settings", "cfg", "args", "options", "hparams"},
    {"num_heads", "heads", "n_heads", "nheads", "num_attention_heads", "attention_heads"},
    {"decoder_num_heads", "decoder_heads", "dec_num_heads", "dec_heads", "decoder_nheads", "dheads"},
    {"ln_eps", "layer_norm_eps", "norm_eps", "layernorm_eps"},
    {"mask_ratios", "ratios"},
    {"mask_ratio", "ratio", "r", "mask"},
    {"kept_mask_ratio", "kept", "kept_ratio"},
    {"lr", "learning_rate", "base_lr", "peak_lr", "init_lr", "max_lr"},
    {"min_lr", "lr_min", "minimum_lr", "eta_min"},
    {"epochs", "nepochs", "num_epochs", "n_epochs", "total_epochs"},
    {"warmup_epochs", "warmup", "lr_warmup_epochs"},
    {"niter_per_ep", "niter_per_epoch", "iters_per_epoch", "steps_per_epoch", "niter"},
    {"base_value", "base", "initial_value", "start_value", "start"},
    {"final_value", "final", "end_value", "end"},
    {"start_warmup_value", "warmup_start_value", "warmup_start", "start_warmup"},
    {"momentum_teacher", "teacher_momentum", "moco_m", "moco_momentum", "ema_momentum", "m", "ema"},
    {"stop_grad_conv1", "freeze_patch_embed", "freeze_conv1"},
    {"weight_decay", "wd"},
    {"base_ema", "base_target_ema", "target_ema"},
    {"lr_weights", "learning_rate_weights"},
    {"lr_biases", "learning_rate_biases"},
    {"sim", "sim_coeff", "sim_weight"},
    {"std", "std_coeff", "std_weight"},
    {"cov", "cov_coeff", "cov_weight"},
    {"max_steps", "total_steps"},
    {"batch", "batch_size"},
    {"trust_coefficient", "trust_coef", "trust", "eta"},
    {"student_temp", "student_temperature", "temp_student"},
    {"teacher_temp", "teacher_temperature", "temp_teacher"},
    {"warmup_teacher_temp", "warmup_teacher_temperature", "teacher_temp_start"},
    {"warmup_teacher_temp_epochs", "warmup_teacher_temperature_epochs", "teacher_temp_warmup_epochs"},
    {"teacher_patch_temp", "teacher_temp2", "patch_teacher_temp"},
    {"warmup_teacher_patch_temp", "warmup_teacher_temp2", "patch_teacher_temp_start"},
    {"center_momentum", "centre_momentum"},
    {"center_momentum2", "centre_momentum2", "patch_center_momentum"},
    {"mim_start_epoch", "pred_start_epoch"},
    {"clip_grad", "clip", "max_norm", "grad_clip"},
    {"freeze_last_layer", "freeze_last_layer_epochs", "frozen_epochs"},
    {"norm_last_layer", "freeze_gain"},
    {"T", "temperature", "temp", "tau"},
    {"eps", "epsilon"},
    {"it", "iterations", "sinkhorn_iterations", "num_iters", "n_iters"},
    {"coeff", "coef"},
    {"num_masking_patches", "num_mask", "n_masked", "target"},
    {"min_num_patches", "min_patches"},
    {"max_num_patches", "max_patches"},
    {"draws", "n_draws", "num_draws", "n"},
    {"mask_patch_size", "mask_unit", "unit"},
    {"lamb", "lambda", "lambd", "lam"},
    {"slices", "num_slices", "n_slices"},
    {"knots", "num_knots", "n_knots", "n_points"},
    {"p_cutoff", "cutoff", "threshold"},
    {"lambda_u", "ulb_loss_ratio"},
    {"lambda_e", "ent_loss_ratio"},
)


class Settings(dict[str, Any]):
    """Settings by official name or a synonym of it; dictionaries inside answer alike."""

    def find(self, name: str) -> str | None:
        """What a setting is called here."""
        names = [name, *next((sorted(group - {name}) for group in SYNONYMS if name in group), [])]
        return next((other for other in names if other in self), None)

    def get(self, name: str, default: Any = None) -> Any:
        """A setting, or the stated default."""
        found = self.find(name)
        value = default if found is None else super().__getitem__(found)
        return Settings(value) if isinstance(value, dict) else value

    def __getitem__(self, name: str) -> Any:
        if self.find(name) is None:
            pytest.fail(f"the settings have no {name}, only {sorted(self)}")
        return self.get(name)


class Part(Mapping[str, Tensor]):
    """Tensors of a file below a prefix; each counts as read when it is looked at."""

    def __init__(self, golden: Golden, prefix: str) -> None:
        self.golden, self.prefix = golden, prefix
        self.names = [key.removeprefix(self.prefix) for key in golden.names() if key.startswith(self.prefix)]

    def __getitem__(self, name: str) -> Tensor:
        return self.golden[self.prefix + name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)

    def __contains__(self, name: object) -> bool:
        return name in self.names

    def get(self, name: str, default: Any = None) -> Any:
        """A tensor, or the default where the set has none of the name."""
        return self[name] if name in self.names else default


class Golden:
    """One safetensors file. It fails where a name is absent, and remembers which were read."""

    def __init__(self, file: Path) -> None:
        if not file.is_file():
            pytest.fail(f"the set has no file {file}")
        self.file = file
        with safe_open(file, "pt") as opened:
            self.config = settings_of(opened.metadata() or {})
            self._tensors: dict[str, Tensor] = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118

    def names(self) -> list[str]:
        """All names."""
        return list(self._tensors)

    def __contains__(self, key: str) -> bool:
        return key in self._tensors

    def __getitem__(self, key: str) -> Tensor:
        if key not in self._tensors:
            pytest.fail(f"the set's {self.file} has no {key}")
        READ[self.file].add(key)
        return self._tensors[key].clone()

    def shape(self, key: str) -> tuple[int, ...]:
        """The shape of a tensor, which compares nothing."""
        if key not in self._tensors:
            pytest.fail(f"the set's {self.file} has no {key}")
        return tuple(self._tensors[key].shape)

    def under(self, prefix: str, end: str = "/") -> Part:
        """Tensors below `prefix/`, by what follows. Fails when there are none."""
        part = Part(self, prefix + end)
        if not len(part):
            pytest.fail(f"the set's {self.file} has nothing under {prefix}{end}")
        return part

    def some(self, prefix: str) -> Part:
        """Tensors below `prefix/` of which a set may store some or none: gradients, and what a step makes of them."""
        return Part(self, f"{prefix}/")

    def found(self, pattern: str) -> list[str]:
        """What the group of a regular expression matches at the beginning of names, each once, sorted."""
        return sorted({match[1] for key in self._tensors if (match := re.match(pattern, key))})


def settings_of(metadata: dict[str, str]) -> Settings:
    """The settings in a file's metadata: JSON under `config` or another name; none is allowed, see the tests'
    defaults."""
    texts = Settings(metadata)
    names = [texts.find("config"), *texts]
    for name in names:
        try:
            value = json.loads(metadata[name]) if name else None
        except ValueError:
            continue
        if isinstance(value, dict):
            return Settings(value)
    return Settings()


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file, of which every entry counts as read: whoever reads it compares them all."""
    if not file.is_file():
        pytest.fail(f"the set has no file {file}")
    entries = entries_of(file)
    READ[file].update(entries)
    return entries


def entries_of(file: Path) -> dict[str, Any]:
    """The entries of a JSON file by name, those of a list by number."""
    found = json.loads(file.read_text(encoding="utf-8"))
    return {str(number): entry for number, entry in enumerate(found)} if isinstance(found, list) else found


def assert_close(ours: Tensor, golden: Tensor, tolerance: float, what: str) -> None:
    """max|difference| / max|golden| at most `tolerance`."""
    assert ours.shape == golden.shape, f"{what}: shape {list(ours.shape)}, official {list(golden.shape)}"
    if not golden.numel():
        return
    if not golden.is_floating_point():  # counters
        assert ours.equal(golden), f"{what}: found {ours.tolist()}, official {golden.tolist()}"
        return
    scale = golden.abs().max().clamp_min(torch.finfo(golden.dtype).tiny)
    error = ((ours.detach() - golden).abs().max() / scale).item()
    assert error <= tolerance, f"{what}: off by {error:.2e} of the tensor's maximum, allowed {tolerance:.0e}"


def assert_gradient_at(ours: Tensor | None, golden: Golden, key: str, tolerance: float) -> None:
    """As `assert_begins`, with a gradient that the set may leave out: `test_whole` sees to it that it holds some."""
    assert ours is not None, f"{key}: no gradient here"
    if key in golden:
        assert_begins(ours, golden[key], tolerance, key)


def assert_begins(ours: Tensor, golden: Tensor, tolerance: float, what: str) -> None:
    """As `assert_close`, with an official tensor that may be stored for its first rows only."""
    assert_close(ours[: len(golden)], golden, tolerance, what)


# ---------------------------------------------------------------- which sets there are


def folders_of(root: Path) -> dict[str, Path]:
    """The folders of a set by method: below `root`, or `root` itself, which its name or its files tell."""
    found = {method: root / method for method in METHODS if (root / method).is_dir()}
    if found or not root.is_dir():
        return found
    named = [root.name, *(word for file in sorted(root.glob("*.safetensors")) for word in _says(file))]
    return dict.fromkeys([name for name in named if name in METHODS][:1], root)


def _says(file: Path) -> list[str]:
    with safe_open(file, "pt") as opened:
        return list((opened.metadata() or {}).values())


def golden_folders(config: pytest.Config) -> dict[str, Path]:
    """The set that a run compares with. Fails when it holds none of the methods."""
    given = config.getoption("--golden")
    found = folders_of(Path(given).resolve() if given else DEFAULT)
    if not found:
        raise pytest.UsageError(f"--golden {given}: found none of the folders {', '.join(METHODS)}")
    return found


def peek(config: pytest.Config, method: str, file: str) -> Golden | None:
    """A file before tests are made of it; None where it is absent, which the tests then report."""
    path = golden_folders(config).get(method, Path()) / file
    return Golden(path) if path.is_file() else None


def files_of(folder: Path) -> list[Path]:
    """The files that a set consists of, notes about its making aside."""
    return sorted(f for f in folder.iterdir() if f.suffix in (".safetensors", ".json") and not f.name.startswith("."))


def names_in(file: Path) -> set[str]:
    """Names of tensors, or the entries of a JSON file, but for those that say nothing of numbers."""
    if file.suffix == ".json":
        return set(entries_of(file))
    with safe_open(file, "pt") as opened:
        return set(opened.keys())
