"""The contract of methods, for every file of `methods/` and for modules outside the package (`--kind method=MODULE`).

A method is tested by having a demo recipe, `NAME_shapes.yaml`: in `recipes/demo`, or beside the module.
"""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from every_method import QUIET, SMALL, START, batch_of, build, every_method, on_a_gpu, recipe_file, smaller
from support import UNSHOWN, assert_close_weights, checkpoint_bytes, launch, metrics

from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.pretrain.method import METHODS
from unlabeled.train.state import split_heads


@every_method
def test_one_loss_and_detached_metrics(name: str) -> None:
    output = build(name)(batch_of(name), START)
    assert output.loss.shape == () and output.loss.dtype == torch.float32 and torch.isfinite(output.loss)
    assert output.metrics, "a method says how it is doing"
    for key, value in output.metrics.items():
        assert value.shape == () and not value.requires_grad and torch.isfinite(value), key


@every_method
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    method = build(name)
    method(batch_of(name), START).loss.backward()
    trained = {key: p.grad for key, p in method.named_parameters() if p.requires_grad}
    assert not [key for key, gradient in trained.items() if gradient is None]
    assert all(torch.isfinite(gradient).all() for gradient in trained.values() if gradient is not None)


@every_method
def test_forward_is_a_function_of_weights_and_batch(name: str) -> None:
    first, second, batch = build(name), build(name), batch_of(name)
    torch.manual_seed(1)
    loss = first(batch, START).loss
    torch.manual_seed(1)
    assert torch.equal(loss, second(batch, START).loss)


@every_method
def test_timm_loads_the_export(name: str, tmp_path: Path) -> None:
    method, batch = build(name).eval(), batch_of(name)
    encoder, heads = split_heads(method)
    export_encoder(tmp_path / "export", encoder, IMAGENET, "# card\n", heads)
    alone = timm.create_model(f"local-dir:{tmp_path / 'export'}", pretrained=True, num_classes=0).eval()
    images = batch.views[0].pixels[0]
    with torch.no_grad():
        tokens = encoder(images)
        expected = torch.cat([tokens.prefix, tokens.patches], dim=1)
        found = alone.forward_features(images)
        torch.testing.assert_close(found.flatten(2).mT if found.ndim == 4 else found, expected, rtol=1e-5, atol=1e-6)


@every_method
def test_runs_on_a_gpu_without_waiting_for_it(name: str) -> None:
    """With tensors that have a device but no values: reading one, or mixing devices, raises."""
    small = smaller(name)
    output = on_a_gpu(build(name, *small), batch_of(name, *small))
    assert output.loss.device.type == "cuda" and output.loss.dtype == torch.float32


# ---------------------------------------------------------------- whole runs

# of 28 pictures no loss of SimSiam's, which lie about 0, is too small for its digits to be compared
SHORT = ["data.train_size=28", "run.checkpoint_every=2"]
AN_EPOCH, LAST = 3, 6  # steps: the checkpoint before the end of the first epoch lies within it


def arguments(name: str, output: Path, *more: str) -> list[str]:
    return [str(recipe_file(name)), f"run.output={output}", *SMALL, *QUIET, *SHORT, *smaller(name), *more]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an undisturbed run of each method, made when first asked for; it alone is looked at."""
    return tmp_path_factory.mktemp("contract")


def undisturbed(runs: Path, name: str) -> Path:
    if not (runs / name).exists():
        assert launch("pretrain", arguments(name, runs / name)) == [0]
    return runs / name


@every_method
def test_resumes_exactly(name: str, runs: Path, tmp_path: Path) -> None:
    whole = undisturbed(runs, name)
    assert launch("pretrain", arguments(name, tmp_path, "run.workers=1", *UNSHOWN), kill={"step": AN_EPOCH}) == [-9]
    assert launch("pretrain", arguments(name, tmp_path, *UNSHOWN)) == [0]
    assert checkpoint_bytes(tmp_path, LAST) == checkpoint_bytes(whole, LAST)


def compare_buffers() -> None:
    """End this process where, after a step, a buffer of it differs from the other process's in a bit."""
    import hashlib

    from unlabeled.processes import gather_objects
    from unlabeled.train.engine import Engine

    original = Engine._forward_backward

    def compared(engine: Engine, *arguments: Any) -> Any:
        assert not getattr(engine.model, "broadcast_buffers", False)
        found = {key: hashlib.sha256(b.numpy().tobytes()).hexdigest() for key, b in engine.method.named_buffers()}
        first, second = gather_objects(found)
        assert first == second
        return original(engine, *arguments)

    Engine._forward_backward = compared  # type: ignore[method-assign]


@every_method
def test_two_processes_learn_what_one_does(name: str, runs: Path, tmp_path: Path) -> None:
    whole = undisturbed(runs, name)
    assert launch("pretrain", arguments(name, tmp_path, *UNSHOWN), world=2, hook=compare_buffers) == [0, 0]
    one, two = ([line["loss"] for line in metrics(output)] for output in (whole, tmp_path))
    assert two == pytest.approx(one, rel=1e-5)
    assert_close_weights(whole, tmp_path, LAST)


# ---------------------------------------------------------------- documentation


@every_method
def test_is_documented(name: str) -> None:
    config = METHODS.kind(name)
    undescribed = [key for key, field in config.model_fields.items() if key != "name" and not field.description]
    assert not undescribed
    module = importlib.import_module(config.__module__)
    assert module.__doc__, "the docstring says what the method does"
    if name in METHODS.names():
        assert re.search(r"\b20\d\d\b", module.__doc__), "the docstring names the paper and its year"
        assert "paper" in module.__doc__.lower() and "code" in module.__doc__.lower(), "and says which it follows"
        assert len(Path(module.__file__ or "").read_text(encoding="utf-8").splitlines()) <= 300
