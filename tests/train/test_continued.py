"""An encoder that has learnt already is held first, then learns slowly, and is compared with what it was."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from every_method import every_method, recipe_of
from support import TINY_PRETRAIN, assert_close_weights, checkpoint_bytes, launch, metrics, shard
from torch import Tensor, nn

from unlabeled.accelerator import make_accelerator
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.lowrank import LowRank
from unlabeled.data.batch.loader import ViewDataset
from unlabeled.data.opened import Opened
from unlabeled.errors import UserError
from unlabeled.launch.program import main
from unlabeled.nn.lowrank import LowRankLinear, merge_, merged_parameters, merged_state
from unlabeled.nn.teacher import ema_
from unlabeled.pretrain.continued import Continued, cautions
from unlabeled.pretrain.method import METHODS, PretrainMethod, Progress
from unlabeled.recipe import parse
from unlabeled.stages.pretrain import PretrainRecipe
from unlabeled.train.bar import Bar
from unlabeled.train.engine import Engine
from unlabeled.train.job import Job
from unlabeled.train.optim import param_groups, set_rates
from unlabeled.train.state import split_heads

HOLD = 0.25
LAST = 4  # steps of these runs


def engine_of(name: str, folder: Path, settings: Continued) -> Engine:
    """An engine of a method whose encoder learns on, before its first step."""
    recipe = recipe_of(name)
    sooner = {"train": {"epochs": 2.0, "batch_size": 4}, "optim": {"warmup_epochs": 0.0}}
    recipe = recipe.model_copy(
        update={name: getattr(recipe, name).model_copy(update=new) for name, new in sooner.items()}
    )
    data = Opened(recipe.data)

    def build() -> PretrainMethod:
        method: PretrainMethod = recipe.method.build()
        method.continue_(settings)
        return method

    dataset = ViewDataset(data.train, recipe.method.views, recipe.method.mask_patch, recipe.seed)
    made = Engine(Job(recipe, build, data, dataset), make_accelerator("cpu", "no", 60.0), folder)
    made.total_steps = LAST
    made.model.train()
    return made


def stepped(engine: Engine, steps: int) -> dict[str, Tensor]:
    """The state after some steps on the first batch."""
    feed = engine._feed()
    pending = feed.next()[0]
    feed.close()
    for _ in range(steps):
        engine.rehearse(pending)
    return {name: tensor.clone() for name, tensor in engine.method.state_dict().items()}


@every_method
def test_heads_learn_first_and_the_encoder_is_held_to_the_bit(name: str, tmp_path: Path) -> None:
    engine = engine_of(name, tmp_path, Continued(hold=HOLD))
    method: Any = engine.method
    prefixes = {id(part): f"{path}." for path, part in method.named_modules()}
    encoders = tuple(prefixes[id(encoder)] for encoder in method.exports().values())
    start = {key: tensor.clone() for key, tensor in method.state_dict().items()}
    held = stepped(engine, round(HOLD * LAST))
    for key, tensor in start.items():
        if key.startswith(encoders):
            assert torch.equal(held[key], tensor), f"{key} has moved while it was held"
    assert all(not encoder.training for encoder in method.exports().values())
    moments = engine.optimizer.optimizer.state
    assert moments and not any(p in moments for encoder in method.exports().values() for p in encoder.parameters())
    assert any(not torch.equal(held[key], start[key]) for key in start if not key.startswith(encoders))

    later = stepped(engine, 2)  # the rate of the first of them is still 0
    moved = {key for key in start if not torch.equal(later[key], held[key])}
    assert all(any(key.startswith(prefix) for key in moved) for prefix in encoders), "an encoder does not learn"
    assert all(encoder.training for encoder in method.exports().values())


def test_rates_climb_after_the_hold_and_fall_by_layer(tmp_path: Path) -> None:
    recipe = recipe_of("mae")
    method = recipe.method.build()
    method.continue_(Continued(hold=0.2, rate=0.1, layer_decay=0.5))
    optimizer = recipe.optim.build(param_groups(method, 0.05))
    flat = recipe.optim.model_copy(update={"schedule": recipe.optim.schedule, "warmup_epochs": 0.0, "min_lr": 1.0})
    names = {id(parameter): name for name, parameter in method.named_parameters()}
    depth = method.encoder.depth
    layers = {"patch_embed.": 0, "cls_token": 0, "norm.": depth + 1}
    layers |= {f"blocks.{i}.": i + 1 for i in range(depth)}
    for step, share in ((0, 0.0), (19, 0.0), (20, 0.0), (30, 0.5), (40, 1.0), (99, 1.0)):
        set_rates(optimizer, flat, 1.0, Progress(step, 100, step / 10, 10.0))
        for group in optimizer.param_groups:
            for name in (names[id(parameter)] for parameter in group["params"]):
                own = name.removeprefix("encoder.vit.")
                layer = next((layer for part, layer in layers.items() if own.startswith(part)), None)
                expected = 1.0 if own == name else share * 0.1 * 0.5 ** (depth + 1 - layer)  # type: ignore[operator]
                assert group["lr"] == pytest.approx(expected), (name, step)


def adapted(rank: int = 2) -> tuple[nn.Module, nn.Module]:
    """A small network, and the same with low-rank additions that are not 0."""
    torch.manual_seed(0)
    plain = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    network = nn.Sequential(*(LowRankLinear(p, rank, 0.5) if isinstance(p, nn.Linear) else p for p in plain))
    for layer in network:
        if isinstance(layer, LowRankLinear):
            nn.init.normal_(layer.lora_up)
    return plain, network


def test_merged_layers_compute_the_same() -> None:
    plain, network = adapted()
    x = torch.randn(5, 6)
    before, state = network(x), merged_state(network)
    assert state.keys() == plain.state_dict().keys()
    assert not torch.allclose(plain(x), before, atol=1e-2)
    twin = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    twin.load_state_dict(state)
    torch.testing.assert_close(twin(x), before)
    merge_(network)
    assert {type(layer) for layer in network} == {nn.Linear, nn.ReLU}
    torch.testing.assert_close(network(x), before)


def test_a_plain_teacher_follows_weights_and_additions() -> None:
    teacher, student = adapted()
    teacher = nn.Sequential(nn.Linear(6, 4), nn.ReLU(), nn.Linear(4, 3))
    before = {name: p.detach().clone() for name, p in teacher.named_parameters()}
    ema_(teacher, student, 0.9)
    for name, parameter in teacher.named_parameters():
        layer: Any = student[int(name[0])]
        weight = layer.weight + 0.5 * layer.lora_up @ layer.lora_down
        expected = 0.9 * before[name] + 0.1 * (weight if name.endswith("weight") else layer.bias)
        torch.testing.assert_close(parameter, expected)


@pytest.mark.parametrize("name", ["mae", "dino"])
def test_low_rank_additions_learn_alone_and_are_merged_at_export(name: str, tmp_path: Path) -> None:
    plain = recipe_of(name).method.build().state_dict()
    engine = engine_of(name, tmp_path, Continued(hold=0.0, rate=1.0, lora=LowRank(rank=2)))
    method: Any = engine.method
    before = merged_parameters(method)
    before = {key: tensor.clone() for key, tensor in before.items()}
    after = stepped(engine, 3)
    assert all(torch.equal(after[key], before[key]) for key in before if key.startswith("encoder."))
    images = torch.randn(2, 3, *method.encoder.image_size)
    with torch.no_grad():
        features = method.eval().encoder.feature(images)
        encoder, heads = split_heads(method)
        torch.testing.assert_close(method.encoder.feature(images), features)
    path = next(path for path, part in method.named_modules() if part is encoder)
    whole = {**heads, **{f"{path}.{key}": tensor for key, tensor in encoder.state_dict().items()}}
    assert whole.keys() == plain.keys()
    moved = {key for key in before if not torch.equal(whole[key], before[key])}
    for part in method.exports().values():  # a teacher too
        path = next(path for path, module in method.named_modules() if module is part)
        assert {key.split(".")[-3] for key in moved if key.startswith(f"{path}.")} == {"attn", "mlp"}


def test_low_rank_additions_need_a_transformer() -> None:
    method = recipe_of("simclr").model_copy().method
    small = method.backbone.model_copy(update={"model": "resnet10t"})
    with pytest.raises(UserError, match=r"LoRA adapts .* Set continued.lora=null"):
        type(method)(encoder={"model": small.model}, view=method.view).build().continue_(Continued(lora=LowRank()))


# ---------------------------------------------------------------- whole runs


TINY = TINY_PRETRAIN.replace("checkpoint_every: 3", "checkpoint_every: 4")
MORE = [
    "method.encoder.drop_path=0.0",
    "continued={hold: 0.3, rate: 0.5, lora: {rank: 2}}",
    "evaluate.knn.k=3",
    "evaluate.crop_pct=1.0",
]


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export to begin with, and a run that was not interrupted."""
    home = tmp_path_factory.mktemp("continued")
    (home / "recipe.yaml").write_text(TINY, encoding="utf-8")
    torch.manual_seed(1)
    method: Any = parse(PretrainRecipe, TINY).method.build()
    encoder, heads = split_heads(method)
    export_encoder(home / "export", encoder, IMAGENET, "# card\n", heads)
    assert main("pretrain", command(home, "whole")) == 0
    return home


def command(home: Path, output: str) -> list[str]:
    more = [f"init={home / 'export'}", "evaluate.linear=null", "evaluate.every=5", *MORE]
    return [str(home / "recipe.yaml"), f"run.output={home / output}", *more]


def without_speed(line: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in line.items() if name not in ("images_per_s", "data_wait")}


def test_killed_in_the_hold_and_after_an_evaluation(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A checkpoint of step 4 is within the hold, one of step 12 after the first scores below the start or above."""
    assert launch("pretrain", command(home, "killed"), kill={"step": 5}) == [-9]
    assert launch("pretrain", command(home, "killed"), kill={"step": 13}) == [-9]
    assert main("pretrain", command(home, "killed")) == 0
    assert checkpoint_bytes(home / "killed", 15) == checkpoint_bytes(home / "whole", 15)
    ours, theirs = ([without_speed(line) for line in metrics(home / name)] for name in ("killed", "whole"))
    assert f" of {home / 'export'}, " in capsys.readouterr().err, "the scores of the start are lost"
    assert ours == theirs and ours[0].keys() == {"step", "knn"} and ours[0]["step"] == 0


@pytest.mark.parametrize("hook", [None, shard], ids=["whole weights", "sharded weights"])
def test_two_processes_continue_as_one(home: Path, hook: Any) -> None:
    output = "two" if hook is None else "sharded"
    assert launch("pretrain", command(home, output), world=2, hook=hook) == [0, 0]
    assert_close_weights(home / "whole", home / output, 15)
    ours, theirs = ([line["moved"] for line in metrics(home / name) if "moved" in line] for name in (output, "whole"))
    assert ours == pytest.approx(theirs, rel=1e-3) and not any(ours[:4]) and ours[-1] > 1e-4


# ---------------------------------------------------------------- the start as a bar


def a_bar() -> Bar:
    return Bar("runs/old/export", ["knn", "linear"], "Lower optim.base_lr.")


def test_scores_below_the_start_are_said_once_they_stay_there() -> None:
    bar = a_bar()
    assert not bar.read(0, {"linear": 60.0, "knn": 52.0, "rank": 3.0})
    assert not bar.read(10, {"knn": 51.0}) and not bar.read(20, {"knn": 52.0}) and not bar.read(30, {"knn": 40.0})
    again = a_bar()
    again.restore(bar.state())
    said = again.read(40, {"knn": 31.5, "linear": 99.0})
    assert said == bar.read(40, {"knn": 31.5}) != ""
    for part in ("worse than the one it began with", "52.00", "40.00 at step 30", "31.50 at step 40", "Lower optim"):
        assert part in said
    assert not bar.read(50, {"knn": 20.0})
    assert "worse than the one you started from" in bar.verdict({"knn": 20.0})
    assert "Use the start" in bar.verdict({"knn": 20.0}) and "runs/old/export" in bar.verdict({"knn": 20.0})
    assert bar.verdict({"knn": 52.0}).startswith("  start ") and not a_bar().verdict({"knn": 1.0})


def test_the_distance_to_the_start_is_that_of_all_weights() -> None:
    method: Any = parse(PretrainRecipe, TINY).method.build()
    bar = a_bar()
    bar.keep(method)
    before = torch.cat([p.detach().flatten() for p in method.encoder.parameters()]).double()
    assert bar.moved(method) == 0
    with torch.no_grad():
        for parameter in method.parameters():
            parameter.add_(0.01 * torch.randn_like(parameter))
    after = torch.cat([p.detach().flatten() for p in method.encoder.parameters()]).double()
    assert bar.moved(method) == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-4)


def test_settings_of_a_run_from_scratch_are_cautioned_against(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [a for a in command(home, "plan") if not a.startswith("continued")]
    assert main("pretrain", [*arguments, "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "rate of 0.000937, as if from scratch: at most 0.0001 is usual: set continued={rate: 0.11}" in said
    assert "learn at once" not in said, "the heads are those of init"
    assert main("pretrain", [*arguments, "continued={rate: 0.1}", "--dry-run"]) == 0
    said = capsys.readouterr().err
    assert "caution" not in said and "heads alone for 2 steps, then the encoder at 0.1 x the heads' rate" in said


def test_a_teacher_is_slowed_and_a_fast_one_cautioned_against() -> None:
    config = METHODS.kind("dino")(momentum=0.99)
    codes = [caution.code for caution in cautions(None, config, 1e-3, 1e-4, ["head"])]
    assert codes == ["fast_encoder", "fast_teacher", "nothing_held"]
    slowed, lines = Continued().slowed(config, [])
    assert slowed.momentum == 0.999 and [(line.field, line.yours) for line in lines] == [("method.momentum", 0.999)]
    assert not list(cautions(Continued(), slowed, 1e-3, 1e-4, ["head"]))
    assert Continued(momentum=0.9).slowed(config, [])[0] == config
    fast = config.model_copy(update={"momentum": 0.98})  # it remembers 50 steps
    assert not list(cautions(Continued(), fast, 1e-3, 1e-4, ["head"], steps=200))
    (caution,) = cautions(Continued(), fast, 1e-3, 1e-4, ["head"], steps=400)
    assert caution.code == "fast_teacher" and caution.advice == "set continued.momentum=0.99"


def test_it_is_refused_without_weights_to_begin_with(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("pretrain", [str(home / "recipe.yaml"), "continued={}", "--dry-run"]) == 2
    assert "continued: found settings for an encoder that learns on, but init is null" in capsys.readouterr().err
