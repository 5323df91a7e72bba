"""Pretraining that begins with weights: of every kind of address, for every method."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support import UNSHOWN, assert_close_weights, checkpoint_bytes, launch
from timm.models import _registry
from torch import nn

from unlabeled.backbone import weights
from unlabeled.backbone.build import family_of
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, export_encoder, read_weights, timm_config, write_export
from unlabeled.backbone.weights import load_encoder, weights_digest
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.launch.plan import on_meta
from unlabeled.launch.program import main
from unlabeled.manifest import MANIFEST, write_folder
from unlabeled.nn.positions import resample
from unlabeled.pretrain.method import METHODS, Crops, PretrainMethod
from unlabeled.stages.pretrain import STAGE, PretrainJob
from unlabeled.train.state import split_heads

MODEL = "vit_tiny_patch16_224"
TIMM = "test_vit.r160_in1k"
SHAPE: dict[str, Any] = {"img_size": [32, 32], "patch_size": 8, "embed_dim": 48, "depth": 2, "in_chans": 3}
HEADS = [f"method.head.{name}=16" for name in ("hidden", "bottleneck", "prototypes")]
SMALL = {
    "dino": ["method.local={count: 1, size: 16}", *HEADS],
    "ibot": ["method.local=null", *HEADS],
    "mae": ["method.decoder={name: self, width: 16, depth: 1, heads: 2}"],
    "mocov3": ["method.hidden=16", "method.dim=8"],
    "barlowtwins": ["method.hidden=16", "method.dim=8"],
    "vicreg": ["method.hidden=16", "method.dim=8"],
    "byol": ["method.hidden=16", "method.dim=8"],
    "simsiam": ["method.hidden=16", "method.dim=8", "method.predictor_hidden=4"],
    "simclr": ["method.hidden=16", "method.dim=8"],
    "msn": ["method.focal=null", "method.hidden=16", "method.dim=8", "method.prototypes=16"],
    "swav": ["method.local=null", "method.hidden=16", "method.dim=8", "method.prototypes=16"],
    "distill": ["method.teacher=scratch:timm:test_vit", "method.queue=16"],
}
VITS = [name for name in METHODS.names() if METHODS.kind(name).hides != "zero"]  # methods that learn one
QUIET = [*UNSHOWN, "run.device=cpu", "run.workers=0", "run.log_every=1"]
BARE = "{home}/bare"
GREY = "mean: [0.5], std: [0.2]"
RECIPE = """
name: begun
data: {name: shapes, train_size: 8, val_size: 4, size: 32}
train: {epochs: 1, batch_size: 4}
optim: {name: adamw, base_lr: 0.01, warmup_epochs: 0}
"""


def random(model: nn.Module, seed: int = 1) -> Any:
    """With weights that no initialisation leaves."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.3, generator=generator)
    return model.eval()


def network(**more: Any) -> Any:
    return random(timm.create_model(MODEL, num_classes=0, **{**SHAPE, **more}))


def classifier(folder: Path) -> Any:
    """As fine-tuning leaves one that pools patches: its norm comes after pooling."""
    arguments = {**SHAPE, "global_pool": "avg", "fc_norm": True}
    model = random(timm.create_model(MODEL, num_classes=5, **arguments))
    config = timm_config(MODEL, arguments, 48, IMAGENET, 5, list("abcde"))
    write_export(folder, model.state_dict(), config, "card")
    return model


def dino_file(file: Path) -> None:
    """As the official program leaves a backbone."""
    model = random(timm.create_model(MODEL, num_classes=0, img_size=32, patch_size=8, depth=1))
    torch.save({"teacher": {f"backbone.{name}": tensor for name, tensor in model.state_dict().items()}}, file)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights under every kind of address."""
    home = tmp_path_factory.mktemp("beginnings")
    (home / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    encoder = wrapped(network())
    export_encoder(home / "bare", encoder, IMAGENET._replace(mean=(0.5,) * 3), "card", {})
    classifier(home / "classifier")
    dino_file(home / "official.pth")
    torch.save(random(timm.create_model("test_vit")).state_dict(), home / "timm.pth")
    for i in range(8):
        (home / "grey").mkdir(exist_ok=True)
        Image.fromarray(np.full((32, 32), 30 * i, np.uint8)).save(home / "grey" / f"{i}.png")
    return home


def wrapped(vit: nn.Module) -> Encoder:
    return family_of(MODEL)(vit, MODEL, SHAPE)


@pytest.fixture(autouse=True)
def _hub(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """timm's own loading, from a file in place of its hub."""
    known = _registry._model_pretrained_cfgs
    monkeypatch.setitem(
        known, TIMM, dataclasses.replace(known[TIMM], file=str(home / "timm.pth"), hf_hub_id=None, custom_load=False)
    )


def arguments(home: Path, name: str, init: str, *more: str) -> list[str]:
    given = {"mae": "mask: {name: random}", "simmim": "mask: {name: random, unit: 8}", "ibot": "mask: {name: block}"}
    given["ijepa"] = "mask: {name: multi_block, min_keep: 1}"
    crops, sizes = METHODS.kind(name).crops, list[str]()
    for view in views_of(name):
        expected = crops.get(view, Crops())
        own = "count: 2" if expected.count == 2 else given.get(name, "mask: {name: random}" if expected.masked else "")
        sizes.append(f"method.{view}={{size: 32{f', {own}' if own else ''}}}")
    begin = [f"method.name={name}", *sizes, *SMALL.get(name, []), f"init={init}", *QUIET]
    return [str(home / "recipe.yaml"), *begin, *more]


def views_of(name: str) -> list[str]:
    """The views that a recipe cannot leave out."""
    return [key for key, field in METHODS.kind(name).model_fields.items() if field.annotation is View]


def job_of(home: Path, name: str, init: str, *more: str) -> PretrainJob:
    path, *overrides = arguments(home, name, init, *more)
    recipe, _ = STAGE.load(path, overrides)
    return STAGE.job(recipe, Opened(recipe.data))


def addresses(home: Path) -> dict[str, tuple[str, list[str]]]:
    """Addresses, and what else a recipe says."""
    return {
        "bare": (f"{home}/bare", []),
        "official": (f"dino:{home}/official.pth", []),
        "channels": (f"{home}/bare", ["adapt=[channels]", f"data={{name: files, path: {home}/grey, {GREY}}}"]),
    }


@pytest.mark.parametrize(
    ("name", "kind"), [*((name, "bare") for name in VITS), ("ibot", "official"), ("mae", "channels")]
)
def test_every_method_begins_with_the_features_of_any_weights(home: Path, name: str, kind: str) -> None:
    init, more = addresses(home)[kind]
    job = job_of(home, name, init, *more)
    method = cast("PretrainMethod", job.build().eval().double())
    channels = job.recipe.data.channels
    source, images = load_encoder(init, 32, channels).eval().double(), torch.randn(2, channels, 32, 32).double()
    expected = source(images).patches
    for encoder in method.exports().values():
        assert torch.allclose(encoder(images).patches, expected, atol=1e-6)
    assert job.begun is not None and "loaded: encoder; new: " in job.begun.words
    assert "(heads: there are none)" in job.begun.words
    assert ("3 channels to 1" in job.begun.words) is (kind == "channels")


@pytest.mark.parametrize("name", VITS)
def test_teachers_follow_and_new_heads_are_those_of_a_fresh_start(home: Path, name: str) -> None:
    """But for the encoder a method is what it is from scratch with the same seed, teachers' heads included."""
    job = job_of(home, name, f"{home}/bare")
    torch.manual_seed(0)
    fresh = job.recipe.method.build().state_dict()
    torch.manual_seed(0)
    begun = job.build().state_dict()
    weights = load_encoder(home / "bare").vit.state_dict()
    for key, tensor in begun.items():
        name_in_timm = key.partition("vit.")[2]
        assert torch.equal(tensor, weights[name_in_timm] if name_in_timm else fresh[key]), key


@pytest.mark.parametrize("name", VITS)
def test_heads_are_loaded_by_their_own_method_alone(home: Path, name: str, tmp_path: Path) -> None:
    before = random(job_of(home, name, f"{home}/bare").build().train())
    encoder, heads = split_heads(before)
    export_encoder(tmp_path / "heads", encoder, IMAGENET, "card", heads)
    job = job_of(home, name, f"{tmp_path}/heads")
    for key, tensor in job.build().state_dict().items():
        assert torch.equal(tensor, before.state_dict()[key]), key
    assert job.begun is not None and "new:" not in job.begun.words
    other = job_of(home, VITS[VITS.index(name) - 1], f"{tmp_path}/heads").begun
    assert other is not None and "loaded: encoder; new: " in other.words and "of another method" in other.words


def test_a_method_of_cnns_begins_with_the_features_of_one(home: Path, tmp_path: Path) -> None:
    encoder = EncoderConfig(model="test_resnet").build((32, 32))
    random(encoder)
    export_encoder(tmp_path / "cnn", encoder, IMAGENET, "card", {})
    view = "method.view={size: 64, mask: {name: random, ratio: 0.5}}"
    small = ["method.decoder={name: unet, width: 32}", "data.size=64"]
    overrides = ["method.name=spark", view, *small, f"init={tmp_path}/cnn", *QUIET]
    recipe, _ = STAGE.load(str(home / "recipe.yaml"), overrides)
    job = STAGE.job(recipe, Opened(recipe.data))
    begun = cast("Any", job.build()).encoder.vit.state_dict()
    assert job.begun is not None and "loaded: encoder" in job.begun.words
    assert all(torch.equal(tensor, begun[name]) for name, tensor in encoder.vit.state_dict().items())


def test_a_gram_teacher_begins_as_what_is_evaluated_and_is_not_exported(home: Path, tmp_path: Path) -> None:
    """Heads of a run without one fit a run that has it."""
    before = random(job_of(home, "ibot", f"{home}/bare").build().train())
    encoder, heads = split_heads(before)
    export_encoder(tmp_path / "heads", encoder, IMAGENET, "card", heads)
    job = job_of(home, "ibot", f"{tmp_path}/heads", "method.gram={}")
    begun = cast("Any", job.build())
    assert job.begun is not None and "new:" not in job.begun.words
    assert torch.equal(begun.head.last_layer.weight_v, before.state_dict()["head.last_layer.weight_v"])
    for key, tensor in begun.gram.encoder.vit.state_dict().items():
        assert torch.equal(tensor, encoder.vit.state_dict()[key]), key
    assert split_heads(begun)[1].keys() == heads.keys()


def test_other_sizes_keep_heads_that_do_not_depend_on_it(home: Path, tmp_path: Path) -> None:
    """MAE's decoder has a fixed table of positions; a DINO's student stands among the heads."""
    for name in ("mae", "dino"):
        before = random(job_of(home, name, f"{home}/bare").build())
        encoder, heads = split_heads(before)
        export_encoder(tmp_path / name, encoder, IMAGENET, "card", heads)
        smaller = [f"method.{view}.size=16" for view in views_of(name)]
        with pytest.raises(UserError, match=rf"trained at 32x32 pixels, method\.{views_of(name)[0]}\.size is 16x16"):
            job_of(home, name, f"{tmp_path}/{name}", *smaller)
        job = job_of(home, name, f"{tmp_path}/{name}", *smaller, "adapt=[size]")
        assert job.begun is not None and "new:" not in job.begun.words
        after, old = job.build().state_dict(), before.state_dict()
        fitted = [key for key, tensor in old.items() if after[key].shape != tensor.shape]
        assert fitted == {"mae": ["encoder.vit.pos_embed", "decoder.positions"]}.get(
            name, ["encoder.vit.pos_embed", "teacher.vit.pos_embed"]
        )
        assert all(torch.equal(after[key], tensor) for key, tensor in old.items() if key not in fitted)
        table = old["encoder.vit.pos_embed"]
        assert torch.equal(after["encoder.vit.pos_embed"][:, 1:], resample(table[:, 1:], (4, 4), (2, 2)))


def test_a_fine_tuned_backbone_without_its_head(home: Path) -> None:
    job = job_of(home, "simclr", f"{home}/classifier")
    words = "" if job.begun is None else job.begun.words
    assert "the final norm is the one that came after its pooling; left out: head.bias, head.weight" in words
    images, model = torch.randn(2, 3, 32, 32).double(), classifier(home / "classifier").double()
    method = cast("PretrainMethod", job.build().eval().double())
    tokens = model.forward_features(images)
    norm = model.fc_norm(tokens)
    assert torch.allclose(method.evaluated()(images).patches, norm[:, 1:], atol=1e-6)
    assert torch.allclose(method.evaluated()(images).prefix, norm[:, :1], atol=1e-6)


def test_timms_weights_by_its_own_loading(home: Path) -> None:
    job = job_of(home, "mocov3", f"timm:{TIMM}", "adapt=[size]")
    assert job.begun is not None and "positions of 160x160 to 32x32" in job.begun.words
    own = torch.load(home / "timm.pth")
    for name, tensor in job.build().state_dict().items():
        if "encoder.vit." in name and "pos_embed" not in name:
            assert torch.equal(tensor, own[name.partition("vit.")[2]]), name


@pytest.mark.parametrize("name", VITS)
def test_a_run_says_and_keeps_its_beginning(
    home: Path, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "run"
    told = arguments(home, name, f"{home}/bare", f"run.output={output}")
    assert main("pretrain", told) == 0
    plan = {line.split()[0]: line for line in capsys.readouterr().err.splitlines() if line.strip()}
    digest = weights_digest(load_encoder(home / "bare").state_dict())
    assert f"weights {digest}); loaded: encoder; new: " in plan["init"]
    assert "from init: data.mean=[0.5, 0.5, 0.5], " in plan["taken"] and "method.encoder.patch_size=8" in plan["taken"]
    state = json.loads((output / "checkpoints" / "step-00000002" / "state.json").read_text())
    assert state["facts"]["init"] == digest
    assert f"- began with {home}/bare ({MODEL}, weights {digest}); loaded: encoder" in (
        (output / "export" / "README.md").read_text().replace("\\", "")
    )


@pytest.mark.parametrize("name", ["dino", "simmim"])
def test_a_run_resumes_exactly(home: Path, name: str, tmp_path: Path) -> None:
    output = tmp_path / "run"
    told = arguments(home, name, f"{home}/bare", f"run.output={output}", "run.checkpoint_every=1")
    assert main("pretrain", told) == 0
    whole = checkpoint_bytes(output, 2)
    shutil.rmtree(output / "checkpoints" / "step-00000002")
    assert main("pretrain", told) == 0
    assert checkpoint_bytes(output, 2) == whole


def test_other_weights_under_the_same_address_are_refused(
    home: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights, told = tmp_path / "weights", [f"run.output={tmp_path / 'run'}"]
    shutil.copytree(home / "bare", weights)
    assert main("pretrain", arguments(home, "simclr", str(weights), *told)) == 0
    shutil.rmtree(weights)
    other = random(timm.create_model(MODEL, num_classes=0, **SHAPE), seed=2)
    export_encoder(weights, wrapped(other), IMAGENET._replace(mean=(0.5,) * 3), "card", {})
    assert main("pretrain", arguments(home, "simclr", str(weights), *told)) == 2
    assert f"holds a run that began with other weights than init={weights} has now" in capsys.readouterr().err


def test_the_state_of_before_beginnings_were_noted_resumes(home: Path, tmp_path: Path) -> None:
    told = arguments(home, "simclr", f"{home}/bare", f"run.output={tmp_path / 'run'}", "run.checkpoint_every=1")
    assert main("pretrain", told) == 0
    shutil.rmtree(tmp_path / "run" / "checkpoints" / "step-00000002")
    state = tmp_path / "run" / "checkpoints" / "step-00000001" / "state.json"
    files = {file.name: file.read_bytes() for file in state.parent.iterdir() if file.name != MANIFEST}
    noted = json.loads(files["state.json"])
    del noted["facts"]["init"], noted["recipe"]["adapt"]
    write_folder(state.parent, {**files, "state.json": json.dumps(noted).encode()})
    assert main("pretrain", told) == 0
    assert "init" in json.loads((tmp_path / "run/checkpoints/step-00000002/state.json").read_text())["facts"]


def test_two_processes_begin_as_one_does(home: Path, tmp_path: Path) -> None:
    told = arguments(home, "mae", f"{home}/bare")
    assert main("pretrain", [*told, f"run.output={tmp_path / '1'}"]) == 0
    assert launch("pretrain", [*told, f"run.output={tmp_path / '2'}"], world=2) == [0, 0]
    assert_close_weights(tmp_path / "1", tmp_path / "2", 2)


REFUSED = {
    "nowhere": ("{home}/nowhere", "nowhere is not an export"),
    "no file": ("dino:{home}/nowhere.pth", "no file"),
    "no model": ("timm:vit_huger", "timm has no model 'vit_huger'"),
    "random": ("scratch:{home}/bare", "has random weights: there is nothing to begin with"),
    "method.view.size=24": (BARE, "32x32 pixels, method.view.size is 24x24. Set method.view.size=[32,32], or adapt"),
    f"data={{name: files, path: HOME/grey, {GREY}}}": (BARE, "sees 3 channels, the pictures have 1"),
    "method.encoder.width=96": (BARE, "another network than method.encoder: width is 48, the recipe says 96"),
    "method.encoder.depth=1": (BARE, "depth is 2, the recipe says 1; blocks.1.norm1.weight [48], "),
    "method.encoder.heads=6": (BARE, "attention heads are 3, the recipe says 6"),
    "method.encoder.norm_eps=0.01": (BARE, "eps=1e-06"),
    "method.encoder.model=resnet18": (BARE, "patch_size is 8, the recipe says 32"),
}


@pytest.mark.parametrize("change", REFUSED)
def test_what_is_refused_says_what_was_found_and_the_fix(
    home: Path, change: str, capsys: pytest.CaptureFixture[str]
) -> None:
    init, said = REFUSED[change]
    more = [change.replace("HOME", str(home))] if "=" in change else []
    assert main("pretrain", arguments(home, "simclr", init.format(home=home), *more, "--dry-run")) == 2
    assert said in capsys.readouterr().err


def test_what_a_recipe_says_of_the_encoder_stands_beside_what_follows(home: Path) -> None:
    path, *overrides = arguments(home, "dino", f"{home}/bare", "data.mean=[0.1,0.2,0.3]", "data.std=[1,1,1]")
    recipe, taken = STAGE.load(path, overrides)
    encoder = recipe.method.backbone
    assert (encoder.patch_size, encoder.depth, encoder.positions) == (8, 2, "learned")
    assert (encoder.drop_path, encoder.interpolation) == (0.1, "scale"), "DINO's own"
    assert recipe.data.mean == (0.1, 0.2, 0.3) and not any("mean" in change for change in taken)
    recipe, _ = STAGE.load(path, [*overrides, "method.encoder={drop_path: 0.3}"])
    assert (recipe.method.backbone.drop_path, recipe.method.backbone.interpolation) == (0.3, "size")
    assert recipe.method.backbone.patch_size == 8


@pytest.mark.parametrize("positions", ["sincos", "sincos_rows", "learned"])
def test_positions_stay_what_they_were(home: Path, tmp_path: Path, positions: str) -> None:
    encoder = EncoderConfig(model=MODEL, patch_size=8, depth=1, positions=positions).build((32, 32))
    export_encoder(tmp_path, encoder, IMAGENET, "card", {})
    job = job_of(home, "dino", str(tmp_path))
    table = job.build().encoder.vit.pos_embed
    assert torch.equal(table, encoder.vit.pos_embed) and table.requires_grad is (positions == "learned")
    assert job.recipe.method.backbone.positions == positions


def test_weights_are_read_once(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shutil.copytree(home / "bare", tmp_path / "bare")
    for file in (tmp_path / "bare").iterdir():
        os.utime(file, (0, 0))
    read: list[Path] = []
    monkeypatch.setattr(weights, "read_weights", lambda file: (read.append(file), read_weights(file))[1])
    job = job_of(home, "simmim", f"{tmp_path}/bare")
    on_meta(job.build)
    job.build()
    assert read == [tmp_path / "bare" / "model.safetensors"]
