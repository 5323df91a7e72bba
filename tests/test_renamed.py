"""Fields under their old names: in recipes, on the command line, in what earlier runs wrote down."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from unlabeled.launch.resume import resume
from unlabeled.recipe import RecipeError, dump, parse, renamed, updated
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.stages.pretrain import PretrainRecipe

BARE = "name: it\nencoder: nowhere\ndata: {name: shapes}\n"
# a `task:` section as the version before wrote it out
WRITTEN: dict[str, Any] = {
    "mode": "full",
    "pool": "cls",
    "drop_path": 0.0,
    "flood": None,
    "ema": None,
    "backbone_lr": 1.0,
    "layer_decay": 1.0,
    "wake_every": 1.0,
    "lora": {"rank": 8, "alpha": 16.0, "targets": ["qkv", "proj", "fc1", "fc2"]},
    "sweep": {"rates": [1.0], "pools": [], "blocks": [1]},
    "repeats": 2,
}


@pytest.fixture(autouse=True)
def _unsaid() -> None:
    renamed.say.cache_clear()


def task(section: str = "{}", *overrides: str) -> dict[str, Any]:
    """What a recipe says of its task and strategy."""
    recipe = parse(FinetuneRecipe, f"{BARE}task: {section}", overrides)
    assert parse(FinetuneRecipe, dump(recipe)) == recipe
    return recipe.task.model_dump(mode="json", exclude_defaults=True, exclude={"view", "mixing"}) | {
        "name": recipe.task.name,
        **({"strategy": recipe.task.strategy.model_dump(mode="json")} if recipe.task.name != "sweep" else {}),
    }


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{mode: lora, lora: {rank: 2}}", "{strategy: {name: lora, rank: 2}}"),
        (
            "{mode: differential_lr, layer_decay: 0.5, drop_path: 0.2}",
            "{strategy: {name: differential, layer_decay: 0.5, drop_path: 0.2}}",
        ),
        (
            "{mode: gradual, wake_every: 2, backbone_lr: 0.5}",
            "{strategy: {name: gradual, unfreeze_every: 2, backbone_lr: 0.5}}",
        ),
        ("{mode: sweep, sweep: {rates: [1, 2], blocks: [4]}}", "{name: sweep, rates: [1, 2], blocks: [4]}"),
        ("{drop_path: 0.2}", "{strategy: {drop_path: 0.2}}"),
        ("{mode: frozen, layer_decay: 1.0}", "{strategy: {name: frozen}}"),
    ],
)
def test_old_names_say_the_same(old: str, new: str, capsys: pytest.CaptureFixture[str]) -> None:
    watch = "watch: {every: 5}\n"
    expected = parse(FinetuneRecipe, f"{BARE}{watch}task: {new}")
    assert "note" not in capsys.readouterr().err
    assert parse(FinetuneRecipe, f"{BARE}{watch}task: {old}") == expected
    said = capsys.readouterr().err.splitlines()
    assert said and all(" is now task." in line and line.endswith("works until version 0.2") for line in said)


@pytest.mark.parametrize(
    "mode", ["frozen", "linear", "attentive", "lora", "full", "differential_lr", "gradual", "retrain", "sweep"]
)
def test_a_recipe_that_was_written_out_loads(mode: str) -> None:
    import json

    pool = "attention" if mode == "attentive" else "cls"
    found = task(json.dumps(WRITTEN | {"mode": mode, "pool": pool}))
    assert found["repeats"] == 2
    assert found["name"] == ("sweep" if mode == "sweep" else "classify")
    if mode != "sweep":
        assert found["strategy"]["name"] == {"differential_lr": "differential"}.get(mode, mode)


def test_old_names_on_the_command_line() -> None:
    assert task("{}", "task.lora.rank=2", "task.mode=lora")["strategy"]["rank"] == 2
    assert task("{strategy: {name: differential, layer_decay: 0.5}}", "task.mode=frozen")["strategy"] == {
        "name": "frozen"
    }
    assert task("{strategy: {name: full, drop_path: 0.5}}", "task.drop_path=0.0")["strategy"]["drop_path"] == 0.0
    assert task("{mode: lora, ema: 0.9, lora: {rank: 2}}", "task.mode=sweep")["name"] == "sweep"
    sweep = "{name: sweep, rates: [1]}"
    assert task(sweep, "task.mode=gradual", "task.wake_every=2")["strategy"]["unfreeze_every"] == 2
    assert task(sweep, "task.sweep={blocks: [2]}", "task.sweep.pools=[cls]")["blocks"] == [2]


@pytest.mark.parametrize(
    ("section", "override", "says"),
    [
        (
            "{mode: full, layer_decay: 0.75}",
            (),
            r"recipe:4 +task\.strategy\.layer_decay: unknown field.*\. differential, gradual, last have it",
        ),
        ("{strategy: {name: lora, rnk: 2}}", (), r"task\.strategy\.rnk: unknown field\. Did you mean 'rank'\?"),
        ("{strategy: {name: lora}}", ("task.lora.rnk=2",), r"command line  task\.strategy\.rnk: unknown .* 'rank'"),
        ("{mode: ful}", (), r"task\.strategy\.name: expected one of: .* Did you mean 'full'"),
        ("{mode: lora, drop_path: 0.1}", (), r"drop_path: unknown field.* differential, full, gradual, last have it"),
        ("{mode: retrain, pool: mean}", (), r"task\.pool: retrain pools as its classifier was trained"),
        ("{mode: full, strategy: {name: lora}}", (), r"task\.mode: is now task\.strategy\.name, which is there too"),
        (
            "{mode: sweep, strategy: {name: full}}",
            (),
            r"task\.strategy: unknown field.*classify, .*segment, simgcd have it",
        ),
    ],
)
def test_settings_that_nobody_reads_are_errors(section: str, override: tuple[str, ...], says: str) -> None:
    with pytest.raises(RecipeError, match=says):
        task(section, *override)


def test_what_a_run_did_not_read_is_left_out_of_what_it_wrote() -> None:
    """It had no effect: the run goes on under a recipe that does not say it."""
    before = {"task": WRITTEN | {"layer_decay": 0.75, "lora": {"rank": 4}}, "seed": 3}
    after = updated(before)
    assert after == {
        "seed": 3,
        "task": {
            "pool": "cls",
            "strategy": {"name": "full", "drop_path": 0.0},
            "repeats": 2,
            "flood": None,
            "ema": None,
        },
    }
    assert before["task"]["mode"] == "full" and updated(after) == after
    swept = updated({"task": WRITTEN | {"mode": "sweep"}})["task"]
    assert swept == {"pool": "cls", "repeats": 2, "name": "sweep", "rates": [1.0], "pools": [], "blocks": [1]}
    assert updated({"task": {"mode": "retrain", "pool": "mean"}}) == {
        "task": {"pool": "cls", "strategy": {"name": "retrain"}}
    }
    assert updated({"method": {"name": "mae"}, "task": None}) == {"method": {"name": "mae"}, "task": None}


def test_a_cross_decoder_with_a_share_is_the_light_one(capsys: pytest.CaptureFixture[str]) -> None:
    recipe = "name: it\ndata: {name: shapes}\nmethod:\n  name: mae\n  decoder: {name: cross, share: 0.5}\n"
    decoder = parse(PretrainRecipe, recipe).method.decoder  # type: ignore[attr-defined]
    assert (decoder.name, decoder.share) == ("cross_light", 0.5)
    assert "method.decoder.name=cross with a share is now cross_light" in capsys.readouterr().err
    before = {"method": {"decoder": {"name": "cross", "share": 0.25}}}
    assert updated(before) == {"method": {"decoder": {"name": "cross_light", "share": 0.25}}}
    now = {"method": {"decoder": {"name": "cross", "predicted": 0.25}}}
    assert updated(now) == now


def test_a_run_from_before_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = parse(FinetuneRecipe, f"{BARE}task: {{repeats: 2}}")
    state = {"recipe": recipe.model_dump(mode="json") | {"task": WRITTEN}, "facts": {}, "processes": 1}
    checkpoint, restored = SimpleNamespace(state=state, folder="there"), list[Any]()
    engine: Any = SimpleNamespace(
        job=SimpleNamespace(recipe=recipe, facts={}),
        checkpoints=SimpleNamespace(newest=lambda: checkpoint),
        display=SimpleNamespace(say=print),
        accelerator=SimpleNamespace(num_processes=1),
    )
    monkeypatch.setattr("unlabeled.launch.resume.restore_", lambda _, found: restored.append(found))
    resume(engine)  # another recipe would be refused
    assert restored == [checkpoint]
