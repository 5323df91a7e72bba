"""A run that goes on from an encoder exports the best one, the start among them, and knows the noise of its scores."""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from support import TINY_PRETRAIN, launch, shard, weights
from torch import Tensor

from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.evaluate.evaluation import Evaluator
from unlabeled.launch.program import main
from unlabeled.recipe import parse
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.bar import Bar, standard_error
from unlabeled.train.checkpoint import load
from unlabeled.train.engine import Engine
from unlabeled.train.state import split_heads

BEST_AT_10 = {0: 50.0, 5: 55.0, 10: 60.0, 15: 52.0}
NEVER_BETTER = {0: 50.0, 5: 50.0, 10: 45.0, 15: 20.0}
LORA = {"rank": 2, "alpha": 3.0}
RESNET = """
name: tiny
data: {name: shapes, train_size: 42, val_size: 20, size: 32}
method:
  name: simclr
  view: {count: 2, size: 32}
  encoder: {model: test_resnet}
  hidden: 8
  dim: 4
optim: {name: adamw, base_lr: 0.03, warmup_epochs: 0}
train: {epochs: 3, batch_size: 8}
run: {device: cpu, workers: 0, log_every: 1, checkpoint_every: 100, keep_last: 1, page: false}
look: null
"""


def scripted(scores: dict[int, float], *more: Any) -> None:
    """Let the evaluation of a step find these scores; then do more."""
    score, at = Engine._score, [0]

    def remembered(self: Engine, method: Any) -> None:
        at[0] = self.step
        score(self, method)

    def found(self: Evaluator, *_: Any) -> Iterator[tuple[str, float]]:
        self.pictures["knn"] = 20
        yield "knn", scores[at[0]]
        yield "linear", float(at[0])

    Engine._score, Evaluator.__call__ = remembered, found  # type: ignore[method-assign]
    for hook in more:
        hook()


def an_export(folder: Path, text: str, heads: bool = True) -> dict[str, Tensor]:
    """Write an export to begin with; returns its weights."""
    torch.manual_seed(1)
    method: Any = parse(PretrainRecipe, text).method.build()
    for buffer in method.buffers():
        if buffer.is_floating_point():
            buffer.add_(0.5)  # running statistics that no new network has
    encoder, rest = split_heads(method)
    export_encoder(folder, encoder, IMAGENET, "# card\n", rest if heads else {})
    return exported(folder)


def exported(folder: Path, name: str = "model") -> dict[str, Tensor]:
    return safetensors.torch.load_file(folder / f"{name}.safetensors")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Exports to begin with, one of them without its heads."""
    home = tmp_path_factory.mktemp("kept")
    for name, text in (("vit", TINY_PRETRAIN), ("cnn", RESNET)):
        (home / f"{name}.yaml").write_text(text, encoding="utf-8")
        an_export(home / name, text)
    an_export(home / "bare", TINY_PRETRAIN, heads=False)
    return home


def command(home: Path, output: str, kind: str = "vit", *more: str) -> list[str]:
    begun = [f"init={home / kind}", "evaluate.every=5", "evaluate.crop_pct=1.0", "run.keep_last=1"]
    recipe = home / ("cnn.yaml" if kind == "cnn" else "vit.yaml")
    return [str(recipe), f"run.output={home / output}", "continued={hold: 0.1, rate: 0.5}", *begun, *more]


def played(home: Path, scores: dict[int, float], output: str, kind: str = "vit", *more: str, **how: Any) -> list[int]:
    """A run whose evaluations find these scores; in processes of its own where it is killed or there are several."""
    arguments, hooks = command(home, output, kind, *more), how.pop("hooks", ())
    if how.get("world", 1) > 1 or "kill" in how:
        return launch("pretrain", arguments, hook=partial(scripted, scores, *hooks), **how)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Engine, "_score", Engine._score)  # undone at the end
        patch.setattr(Evaluator, "__call__", Evaluator.__call__)
        scripted(scores)
        return [main("pretrain", arguments)]


def best(home: Path, output: str) -> dict[str, Any]:
    """What the last checkpoint remembers of the scores."""
    found: dict[str, Any] = load(home / output / "checkpoints" / "step-00000015").state["bar"]
    return found


def of_encoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Weights of the encoder in a checkpoint, low-rank products added."""
    own = {name.removeprefix("encoder.vit."): t for name, t in state.items() if name.startswith("encoder.vit.")}
    for name in [name for name in own if name.endswith("lora_up")]:
        down, up = own.pop(name.replace("lora_up", "lora_down")), own.pop(name)
        own[name.replace("lora_up", "weight")] += LORA["alpha"] / LORA["rank"] * up @ down
    return own


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-6, msg=lambda text, name=name: f"{name} {text}")


def test_the_best_is_exported_and_a_killed_run_exports_the_same(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert played(home, BEST_AT_10, "whole") == [0]
    assert "  kept       the export is of step 10 (knn 60.00); the last had 52.00, the start 50.00" in (
        said := capsys.readouterr().err
    )
    assert "keep       the best by knn of the start and every evaluation" in " ".join(said.split("\n"))
    kept, last = weights(home / "whole", 10), weights(home / "whole", 15)
    assert_same(exported(home / "whole/export"), of_encoder(kept))
    heads = exported(home / "whole/export", "heads")
    assert_same(heads, {name: tensor for name, tensor in kept.items() if not name.startswith("encoder.")})
    assert any(not torch.equal(tensor, last[name]) for name, tensor in heads.items())
    card = (home / "whole/export/README.md").read_text(encoding="utf-8")
    assert "kept: step 10, whose score was best" in card and "- knn: 60.00 %" in card and "- linear: 10.00 %" in card

    assert played(home, BEST_AT_10, "killed", kill={"step": 13}) == [-9]  # the best is not the newest
    assert played(home, BEST_AT_10, "killed") == [0]
    for file in ("model.safetensors", "heads.safetensors"):
        assert (home / "killed/export" / file).read_bytes() == (home / "whole/export" / file).read_bytes(), file
    assert played(home, BEST_AT_10, "whole") == [0]  # there is nothing left to do
    assert (home / "whole/export/model.safetensors").read_bytes() == (
        home / "killed/export/model.safetensors"
    ).read_bytes()


def test_two_processes_with_sharded_weights_keep_the_same(home: Path) -> None:
    more = [f"continued={{hold: 0.1, rate: 0.5, lora: {{rank: {LORA['rank']}, alpha: {LORA['alpha']}}}}}"]
    assert played(home, BEST_AT_10, "sharded", "vit", *more, world=2, hooks=[shard]) == [0, 0]
    found = exported(home / "sharded/export")
    assert_same(found, of_encoder(weights(home / "sharded", 10)))
    last = of_encoder(weights(home / "sharded", 15))
    assert any(not torch.allclose(found[name], last[name], atol=1e-4) for name in found)


@pytest.mark.parametrize("hooks", [(), (shard,)], ids=["one", "sharded"])
def test_the_start_is_kept_where_nothing_was_better(
    hooks: tuple[Any, ...], home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = [f"continued={{hold: 0.1, rate: 0.5, lora: {{rank: {LORA['rank']}, alpha: {LORA['alpha']}}}}}"]
    output, world = f"start{len(hooks)}", 1 + len(hooks)
    assert played(home, NEVER_BETTER, output, "vit", *more, world=world, hooks=hooks) == [0] * world
    for file in ("model", "heads"):
        assert_same(exported(home / output / "export", file), exported(home / "vit", file))
    said = capsys.readouterr().err
    assert f"worse than the one you started from: knn 50.00 of {home / 'vit'}, 20.00 now" in said
    assert "The export is the encoder you began with" in said and "heads      none" not in said


def test_heads_that_were_new_are_not_exported_with_the_start(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert played(home, {**NEVER_BETTER, 15: 49.0}, "bare_start", "bare") == [0]
    assert_same(exported(home / "bare_start/export"), exported(home / "bare"))
    assert not (home / "bare_start/export/heads.safetensors").exists()
    said = capsys.readouterr().err
    assert "no evaluation was above the start: the export is the encoder you began with (knn 50.00" in said
    assert "heads      none are exported" in said and "warning" not in said


@pytest.mark.parametrize(("scores", "kept"), [(BEST_AT_10, 10), (NEVER_BETTER, 0)])
def test_running_statistics_are_those_of_the_kept_encoder(scores: dict[int, float], kept: int, home: Path) -> None:
    assert played(home, scores, f"cnn{kept}", "cnn") == [0]
    expected = of_encoder(weights(home / f"cnn{kept}", kept)) if kept else exported(home / "cnn")
    found, last = exported(home / f"cnn{kept}/export"), of_encoder(weights(home / f"cnn{kept}", 15))
    assert_same(found, expected)
    assert any("running_mean" in name and not torch.equal(found[name], last[name]) for name in found)


def test_the_last_is_kept_where_that_is_asked_for_or_nothing_is_scored(
    home: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert played(home, NEVER_BETTER, "last", "vit", "continued={hold: 0.1, rate: 0.5, keep: last}") == [0]
    assert_same(exported(home / "last/export"), of_encoder(weights(home / "last", 15)))
    assert best(home, "last") == {
        "start": {"knn": 50.0, "linear": 0.0},
        "below": [],
        "pictures": 20,
        "best": {"knn": 50.0, "linear": 0.0},
        "best_step": 0,
    }, "45 % of 20 pictures is within chance of 50 %, and the end is scored after its checkpoint"
    assert "Use the start" in capsys.readouterr().err
    unscored = [a for a in command(home, "unscored") if not a.startswith("evaluate")]
    assert main("pretrain", [*unscored, "--dry-run"]) == 0
    assert "the last: to keep the best, evaluate must have a score in percent" in " ".join(
        capsys.readouterr().err.split()
    )


# ---------------------------------------------------------------- noise


def bar(pictures: int) -> Bar:
    return Bar("runs/old/export", ["knn"], "Lower continued.rate.", pictures={"knn": pictures})


def test_one_picture_of_625_is_chance_and_five_points_are_not() -> None:
    one = 100 / 625
    for start in (100.0, 50.08, 21.92, 0.16):
        again = bar(625)
        again.read(0, {"knn": start})
        assert not any(again.read(step, {"knn": start - one}) for step in (10, 20, 30))
        assert again.verdict({"knn": start - one}).startswith("  start ")
        assert "less than chance explains on 625 pictures" in again.verdict({"knn": start - one})
    again = bar(625)
    again.read(0, {"knn": 21.92})
    assert not again.read(10, {"knn": 16.8})
    said = again.read(20, {"knn": 16.64})
    assert (
        "21.92 at the start, 16.80 at step 10 and 16.64 at step 20, more than chance explains on 625 pictures" in said
    )
    assert "more than chance explains on 625 pictures" in again.verdict({"knn": 16.64})
    many = bar(100_000)  # on so many, two points are no chance
    many.read(0, {"knn": 21.92})
    assert not many.read(10, {"knn": 19.9}) and many.read(20, {"knn": 19.9})


def test_a_fall_within_chance_ends_the_row() -> None:
    again = bar(625)
    again.read(0, {"knn": 50.0})
    assert not again.read(10, {"knn": 40.0}) and not again.read(20, {"knn": 49.0}) and not again.read(30, {"knn": 40.0})
    assert again.read(40, {"knn": 40.0})


@pytest.mark.parametrize(("one", "other", "pictures"), [(22.0, 20.0, 625), (90.0, 85.0, 2000), (50.0, 50.0, 300)])
def test_the_standard_error_is_that_of_drawn_pictures(one: float, other: float, pictures: int) -> None:
    drawn = np.random.default_rng(0).binomial(pictures, [[one / 100], [other / 100]], size=(2, 40_000)) / pictures
    assert standard_error(one, other, pictures) == pytest.approx(100 * (drawn[0] - drawn[1]).std(), rel=0.03)
    assert not math.isnan(standard_error(0.0, 100.0, 1))


def test_the_evaluation_counts_its_pictures(home: Path) -> None:
    """Of the second split, which is what is scored: the first has 42."""
    assert main("pretrain", [*command(home, "counted"), "evaluate.knn.k=3", "evaluate.linear=null"]) == 0
    assert best(home, "counted")["pictures"] == 20
