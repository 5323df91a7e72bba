"""Networks outside timm: named by the path of their code, read, pretrained, exported, fine-tuned."""

from __future__ import annotations

import json
import re
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import strangers
import torch
from support import ROOT, UNSHOWN, checkpoint_bytes, classifying, launch, metrics
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from unlabeled.__main__ import main
from unlabeled.backbone.address import find
from unlabeled.backbone.build import copy_encoder
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, export_encoder, load_timm, timm_config, write_export
from unlabeled.backbone.folder_config import read_config
from unlabeled.backbone.weights import load_classifier, load_encoder, preprocessing_of
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.view.views import View
from unlabeled.errors import UserError
from unlabeled.pretrain.method import Progress
from unlabeled.pretrain.methods import dino, mae, simclr
from unlabeled.serve.deploy import deploy
from unlabeled.train.optim import param_groups
from unlabeled.transfer.network import Trained
from unlabeled.transfer.tasks.classify import Classifier

START = Progress(0, 1, 0.0, 1.0)
SIDE = 32
SETTINGS: dict[str, dict[str, Any]] = {
    "cnn": {"model": "nets:cnn", "output": "map", "arguments": {"width": 4}},
    "resnet": {"model": "nets:resnet", "layer": "layer4"},
    "vit": {"model": "nets:Vit", "output": "tokens", "layer": "tokens", "prefix": 1},
    "flat": {"model": "nets:Flat", "output": "vector"},
}
every_network = pytest.mark.parametrize("name", SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def home(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A folder with the module `nets`, which is on this process's path too."""
    folder = tmp_path_factory.mktemp("networks")
    strangers.write(folder)
    sys.path.insert(0, str(folder))
    yield folder
    sys.path.remove(str(folder))


def make(name: str, **changes: Any) -> Encoder:
    """An encoder with running statistics that are not those of a new network."""
    torch.manual_seed(0)
    encoder = EncoderConfig(**{**SETTINGS[name], **changes}).build((SIDE, SIDE))
    for key, buffer in encoder.named_buffers():
        if buffer.is_floating_point():
            nn.init.uniform_(buffer, *((0.5, 2.0) if key.endswith("var") else (-0.3, 0.3)))
    return encoder.eval()


def pictures(rows: int = 3) -> Tensor:
    return torch.randn(rows, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))


def reference(name: str, network: Any, images: Tensor) -> tuple[Tensor, Tensor]:
    """Prefix tokens and patches, by the parts of the network."""
    if name == "vit":
        tokens = network(images)["tokens"]
        return tokens[:, :1], tokens[:, 1:]
    if name == "resnet":
        x = network.maxpool(network.relu(network.bn1(network.conv1(images))))
        x = network.layer4(network.layer3(network.layer2(network.layer1(x))))
    else:
        x = network(images)
    patches = torch.stack([row.reshape(len(row), -1).T for row in x])
    return patches[:, :0], patches


# ---------------------------------------------------------------- one network


@every_network
def test_tokens_are_those_of_its_own_code(name: str) -> None:
    encoder, images = make(name), pictures()
    tokens, (prefix, patches) = encoder(images), reference(name, encoder.vit, images)
    assert torch.equal(tokens.prefix, prefix) and torch.equal(tokens.patches, patches)
    facts = (encoder.width, encoder.native_grid, encoder.patch_size, encoder.num_prefix, encoder.has_class_token)
    assert (
        facts
        == {
            "cnn": (8, (8, 8), 4, 0, False),
            "resnet": (24, (1, 1), 32, 0, False),
            "vit": (16, (4, 4), 8, 1, True),
            "flat": (6, (1, 1), 32, 0, False),
        }[name]
    )
    assert tokens.grid == encoder.native_grid and encoder.feature(images).shape == (3, encoder.feature_width)
    expected = prefix[:, 0] if name == "vit" else patches.mean(1)
    torch.testing.assert_close(encoder.feature(images), expected)
    assert torch.equal(copy_encoder(encoder).eval().feature(images), encoder.feature(images))


def test_the_spelling_with_a_name_and_a_path() -> None:
    told = EncoderConfig.model_validate({"name": "module", "path": "nets:cnn", "output": "map"})
    assert told == EncoderConfig(model="nets:cnn", output="map")
    assert EncoderConfig.model_validate({"name": "timm", "model": "resnet18"}) == EncoderConfig(model="resnet18")
    assert EncoderConfig.model_validate_json(told.model_dump_json()) == told


def test_layers_are_the_children_in_order_or_groups_of_its_own() -> None:
    cnn, resnet, vit = (make(name) for name in ("cnn", "resnet", "vit"))
    assert [cnn.layer_of(name) for name in ("stem.weight", "norm.bias", "body.0.weight", "body.1.bias")] == [0, 1, 2, 2]
    names = ("conv1.weight", "bn1.bias", "layer1.0.conv1.weight", "layer4.0.weight", "fc.weight", "linear_head.weight")
    assert [resnet.layer_of(name) for name in names] == [0, 1, 2, 5, 6, 6]
    assert [vit.layer_of(name) for name in ("cls", "positions", "blocks.0.norm1.bias", "blocks.1.norm1.bias")] == [
        *(0, 0, 1, 2)
    ]
    assert [make("flat").layer_of(name) for name in ("0.weight", "3.weight", "4.bias")] == [0, 1, 2]


@every_network
def test_every_trained_parameter_gets_a_gradient(name: str) -> None:
    encoder = make(name).train()
    encoder.feature(pictures(4)).square().sum().backward()
    trained = {key: p.grad for key, p in encoder.vit.named_parameters() if p.requires_grad}
    assert trained and not [key for key, gradient in trained.items() if gradient is None]
    held = [key for key, p in encoder.vit.named_parameters() if not p.requires_grad]
    assert held == (["fc.weight", "fc.bias"] if name == "resnet" else [])


@every_network
def test_the_same_seed_is_the_same_network_probed_before_or_not(name: str) -> None:
    from unlabeled.backbone import outside

    first = make(name).state_dict()
    outside._probe.cache_clear()
    assert all(torch.equal(tensor, first[key]) for key, tensor in make(name).state_dict().items())


@pytest.mark.parametrize("name", ["cnn", "resnet", "vit"])
def test_runs_on_a_gpu_without_waiting_for_it(name: str) -> None:
    """With tensors that have a device but no values: reading one, or mixing devices, raises."""
    torch.manual_seed(0)
    config = EncoderConfig(**SETTINGS[name])
    method = simclr.Config(view=View(size=SIDE, count=2), encoder=config, hidden=16, dim=8).build()
    with FakeTensorMode(allow_non_fake_inputs=False):
        for part in method.modules():
            for key, parameter in part._parameters.items():
                if parameter is not None:
                    empty = torch.empty(parameter.shape, device="cuda")
                    part._parameters[key] = nn.Parameter(empty, parameter.requires_grad)
            for key, buffer in part._buffers.items():
                if buffer is not None:
                    part._buffers[key] = torch.empty(buffer.shape, dtype=buffer.dtype, device="cuda")
        views = [ViewBatch(torch.empty(2, 4, 3, SIDE, SIDE, device="cuda"), None)]
        numbers = torch.empty(4, dtype=torch.int64, device="cuda")
        assert method(Batch(views, numbers, numbers), START).loss.device.type == "cuda"


# ---------------------------------------------------------------- exports


@every_network
def test_its_address_gives_the_encoder_again(name: str, tmp_path: Path) -> None:
    encoder, images = make(name), pictures()
    export_encoder(tmp_path / "export", encoder, IMAGENET, "# card\n", {})
    address = f"{encoder.model}:{tmp_path / 'export'}"
    again = load_encoder(address).eval()
    assert torch.equal(again.feature(images), encoder.feature(images)) and again.arguments == encoder.arguments
    names = safetensors.torch.load_file(tmp_path / "export" / "model.safetensors").keys()
    assert names == encoder.vit.state_dict().keys(), "the names are those of the network itself"
    scratch = load_encoder(f"scratch:{address}").eval()
    assert scratch.width == encoder.width and not torch.equal(scratch.feature(images), encoder.feature(images))
    assert preprocessing_of(address).pool == ("cls" if name == "vit" else "mean")


@pytest.mark.parametrize("pool", ["cls", "mean", "mean_max"])
def test_an_export_pools_as_it_says(pool: Any, tmp_path: Path) -> None:
    encoder, images = make("vit"), pictures()
    export_encoder(tmp_path, encoder, IMAGENET._replace(pool=pool), "# card\n", {})
    tokens, whole = encoder(images), load_timm(tmp_path, read_config(tmp_path, "nets:Vit")).eval()
    mean = tokens.patches.mean(1)
    pooled = {"cls": tokens.prefix[:, 0], "mean": mean, "mean_max": (mean + tokens.patches.amax(1)) / 2}
    torch.testing.assert_close(whole(images), pooled[pool])
    assert preprocessing_of(f"nets:Vit:{tmp_path}").pool == pool


def test_random_weights_need_no_export() -> None:
    assert load_encoder("scratch:nets:cnn").image_size == (224, 224)
    assert load_encoder("scratch:nets:Flat").image_size == (SIDE, SIDE), "the first usual size that it takes"
    assert load_encoder("scratch:nets:cnn", 48).native_grid == (12, 12)


@pytest.mark.parametrize(("layer", "classes"), [("norm", 0), (None, 4)])
def test_a_program_says_the_same(layer: str | None, classes: int, tmp_path: Path) -> None:
    encoder = make("cnn", layer=layer)
    if classes:
        method = classifier(encoder, "frozen")
        config = timm_config(encoder.model, method.arguments, encoder.width, IMAGENET, classes, "abcd")
        write_export(tmp_path / "export", method.exported(), config, "# card\n")
    else:
        export_encoder(tmp_path / "export", encoder, IMAGENET, "# card\n", {})
    worst = deploy(Path(f"{encoder.model}:{tmp_path / 'export'}"), tmp_path / "program", "torch")
    program = torch.export.load(tmp_path / "program" / "model.pt2").module()
    with torch.no_grad():
        expected = method.eval().logits(pictures()) if classes else encoder.feature(pictures())
        torch.testing.assert_close(program(pictures()), expected)
    assert worst < 1e-5


def test_a_path_in_an_export_is_never_imported(home: Path, tmp_path: Path) -> None:
    encoder = make("cnn")
    export_encoder(tmp_path, encoder, IMAGENET, "# card\n", {})
    told = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config.json").write_text(json.dumps({**told, "architecture": "trap:cnn"}), encoding="utf-8")
    for read in (load_encoder, load_classifier, preprocessing_of):
        for address in (tmp_path, f"scratch:{tmp_path}") if read is not load_classifier else (tmp_path,):
            with pytest.raises(UserError, match=f"a network outside timm.*use the address trap:cnn:{tmp_path}"):
                read(address)
    with pytest.raises(UserError, match="a network outside timm"):
        deploy(tmp_path, tmp_path / "program", "torch")
    assert torch.equal(load_encoder(f"nets:cnn:{tmp_path}").eval().feature(pictures()), encoder.feature(pictures()))
    assert not (home / "sprung").exists()
    load_encoder(f"trap:cnn:{tmp_path}")
    assert (home / "sprung").exists(), "the trap works"


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"arguments": {"width": "a/b"}}, "expected a number, true, false, null, a name"),
        ({"arguments": {"file": "https://x"}}, "expected a number, true, false, null, a name"),
        ({"layer": "../x"}, "model_args.layer"),
        ({"prefix": -1}, "model_args.prefix"),
        ({"depth": 2}, "depth.*do not shape the network 'nets:cnn'"),
        ({"arguments": {"width": 8}}, "weights and architecture do not match"),
        ({"arguments": {"widht": 8}}, r"nets:cnn\(widht=8\) raises TypeError"),
    ],
)
def test_what_a_stranger_writes_into_an_export(change: dict[str, Any], says: str, tmp_path: Path) -> None:
    export_encoder(tmp_path, make("cnn"), IMAGENET, "# card\n", {})
    told = json.loads((tmp_path / "config.json").read_text(encoding="utf-8"))
    told["model_args"] |= change
    (tmp_path / "config.json").write_text(json.dumps(told), encoding="utf-8")
    with pytest.raises(UserError, match=says):
        load_encoder(f"nets:cnn:{tmp_path}")


def test_addresses_that_do_not_fit(tmp_path: Path) -> None:
    export_encoder(tmp_path / "own", make("cnn"), IMAGENET, "# card\n", {})
    export_encoder(tmp_path / "timm", EncoderConfig(model="test_resnet").build((64, 64)), IMAGENET, "# card\n", {})
    for address, says in {
        f"nets:other:{tmp_path / 'own'}": "weights and architecture do not match",
        f"nets:cnn:{tmp_path / 'timm'}": "has the weights of timm's 'test_resnet'",
        f"nets:cnn:{tmp_path / 'none'}": "is not an export",
        "nets:cnn": "names the code of a network and no weights",
        f"nts:cnn:{tmp_path / 'own'}": "the module 'nts' cannot be imported",
        "scratch:nets:Odd": "the shape .1, 2, 4, 56, 56. for 2 images, expected .B, D, H, W. or",
    }.items():
        with pytest.raises(UserError, match=says):
            load_encoder(address)
    with pytest.raises(UserError, match=r"cannot encode images of 4 channels and 32x32 pixels: RuntimeError"):
        load_encoder(f"nets:cnn:{tmp_path / 'own'}", channels=4)


# ---------------------------------------------------------------- fine-tuning

STRATEGIES = [
    *(("cnn", strategy) for strategy in ("frozen", "linear", "full", "differential", "gradual")),
    *(("resnet", "full"), ("vit", "linear"), ("vit", "differential"), ("flat", "full")),
]


def classifier(encoder: Encoder, strategy: str, **settings: Any) -> Classifier:
    pool = "cls" if encoder.has_class_token else "mean"
    view = View(size=encoder.image_size[0])
    return Classifier(encoder, classifying(**{"strategy": strategy, "pool": pool, "view": view, **settings}), [4] * 4)


def labelled(rows: int = 8) -> Batch:
    return Batch([ViewBatch(pictures(rows).unsqueeze(0), None)], torch.arange(rows) % 4, torch.arange(rows))


@pytest.mark.parametrize(("name", "strategy"), STRATEGIES)
def test_two_steps_of_every_strategy(name: str, strategy: str, tmp_path: Path) -> None:
    method = classifier(make(name), strategy).train()
    before = {key: tensor.clone() for key, tensor in method.model.state_dict().items()}
    optimizer = torch.optim.SGD([p for p in method.parameters() if p.requires_grad], 0.1)
    for _ in range(2):
        optimizer.zero_grad()
        method(labelled(), Progress(0, 2, 9.0, 10.0)).loss.backward()
        optimizer.step()
    moved = {key for key, tensor in method.model.named_parameters() if not torch.equal(tensor, before[key])}
    learns = {key for key, p in method.model.named_parameters() if p.requires_grad}
    assert moved == learns and {key for key in learns if "head" in key} == {"linear_head.weight", "linear_head.bias"}
    assert (len(learns) == 2) == (strategy in ("frozen", "linear"))
    method.eval()

    # its export is read again, and gets another head
    config = timm_config(method.architecture, method.arguments, method.model.num_features, IMAGENET, 4, "abcd")
    write_export(tmp_path, method.exported(), config, "# card\n")
    encoder, arguments, weights = load_classifier(f"{method.architecture}:{tmp_path}")
    again = encoder.create(encoder.model, arguments, classes=4)
    again.load_state_dict(weights)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(pictures()), method.logits(pictures()))


def test_rates_fall_with_the_depth() -> None:
    method = classifier(make("cnn"), "differential", layer_decay=0.5)
    groups = param_groups(method, 0.05)
    scales = {name: method.lr_scale(f"model.{name}") for name, _ in method.model.named_parameters()}
    assert groups and scales["linear_head.weight"] == 1.0
    wanted = {"network.stem.weight": 0.125, "network.norm.weight": 0.25, "network.body.0.weight": 0.5}
    assert {name: scales[name] for name in wanted} == wanted


@pytest.mark.parametrize(("strategy", "says"), [("lora", "the network 'nets:cnn' has no qkv"), ("attentive", "pool")])
def test_strategies_for_transformers_are_refused(strategy: str, says: str) -> None:
    pool = {"pool": "attention"} if strategy == "attentive" else {}
    with pytest.raises(UserError, match=says):
        classifier(make("cnn"), strategy, **pool)


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"model": "nets.cnn"}, "timm has no model 'nets.cnn'"),
        ({"model": "nets:"}, "expected an import path PACKAGE.MODULE:NAME, found 'nets:'"),
        ({"model": "nest:cnn"}, "the module 'nest' cannot be imported: ModuleNotFoundError"),
        ({"model": "nets:cmn"}, "the module 'nets' has no 'cmn'. Did you mean 'cnn'"),
        ({"model": "nets:NUMBER"}, "'nets:NUMBER' is of type int, expected a function"),
        ({"model": "nets:cnn", "width": 8}, "the network 'nets:cnn' has no width of ours"),
        ({"model": "nets:cnn", "drop_path": 0.1}, "the network 'nets:cnn' has no drop_path of ours"),
        ({"model": "nets:cnn", "arguments": {"path": "a/b"}}, "expected a number, true, false, null, a name"),
        ({"model": "resnet18", "layer": "layer4"}, "layer belongs to networks outside timm, 'resnet18' is timm's"),
        ({"name": "module"}, "name module needs a path"),
    ],
)
def test_mistakes_in_a_recipe(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        EncoderConfig.model_validate(told)


@pytest.mark.parametrize(
    ("told", "says"),
    [
        ({"model": "nets:nothing"}, "returns a int, expected a torch.nn.Module"),
        ({"model": "nets:cnn", "arguments": {"widht": 3}}, "raises TypeError: .*'widht'"),
        ({"model": "nets:cnn", "output": "vector"}, r"the shape \[2, 16, 8, 8\] for 2 images, expected \[B, D\]"),
        ({"model": "nets:cnn", "prefix": 1}, "encoder.prefix=1 is of a sequence of tokens, its output is a map"),
        ({"model": "nets:cnn", "layer": "boddy"}, "expected one of stem, norm, body"),
        ({"model": "nets:cnn", "channels": 4}, "cannot encode images of 4 channels and 32x32 pixels"),
        (
            {"model": "nets:Vit"},
            "its output is of type dict, expected a tensor. Set encoder.layer to one of tokens, cl",
        ),
        ({"model": "nets:Vit", "layer": "tokens"}, "17 tokens after 0 prefix tokens are no grid"),
        ({"model": "nets:Odd"}, r"the shape \[1, 2, 4, 8, 8\] for 2 images"),
        ({"model": "nets:Odd", "arguments": {"kind": "list"}}, "type list, expected a tensor.*one of 0, 1"),
        ({"model": "nets:Odd", "arguments": {"kind": "number"}}, "values of type torch.int64"),
        ({"model": "nets:Odd", "arguments": {"kind": "moved"}}, r"the shape \[64, 2, 4\] for 2 images"),
        ({"model": "nets:Odd", "arguments": {"kind": "peeks"}}, "runs on the CPU alone: .*read no values in its forw"),
        ({"model": "nets:Odd", "arguments": {"kind": "stopped"}}, "gets a gradient.*Remove torch.no_grad"),
    ],
)
def test_networks_that_cannot_be_read(told: dict[str, Any], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        simclr.Config(view=View(size=SIDE, count=2), encoder=EncoderConfig(**told))


def test_what_it_cannot_do_is_said_before_it_runs() -> None:
    vit = EncoderConfig(**SETTINGS["vit"])
    large, small = View(size=SIDE), View(size=16, count=2)
    with pytest.raises(ValueError, match=r"'nets:Vit' cannot encode images of 3 channels and 16x16 pixels: RuntimeErr"):
        dino.Config(global_1=large, global_2=large, local=small, encoder=vit)
    with pytest.raises(ValueError, match=r"hides patches, which the network 'nets:Vit' cannot. Use a vit_\*"):
        mae.Config(encoder=vit)
    with pytest.raises(UserError, match="cannot encode images of 3 channels and 48x48 pixels"):
        make("vit")(torch.zeros(1, 3, 48, 48))


# ---------------------------------------------------------------- whole runs

RECIPES = ROOT / "recipes" / "demo"
TINY = ["data.train_size=42", "data.val_size=20", "train.batch_size=8", "train.epochs=1", "optim.warmup_epochs=0.5"]
QUIET = ["run.workers=0", "run.log_every=1", "run.checkpoint_every=2", "run.device=cpu"]
CNN = "method.encoder={name: module, path: 'nets:cnn', output: map, arguments: {width: 4}}"
LAST = 5


def arguments(output: Path, encoder: str = CNN, recipe: str = "simclr_resnet_shapes") -> list[str]:
    return [str(RECIPES / f"{recipe}.yaml"), f"run.output={output}", "evaluate=null", encoder, *TINY, *QUIET]


@pytest.fixture(scope="module")
def run(home: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("run") / "whole"
    assert launch("pretrain", arguments(output), hook=partial(sys.path.insert, 0, str(home))) == [0]
    return output


def test_resumes_exactly(home: Path, run: Path, tmp_path: Path) -> None:
    path = partial(sys.path.insert, 0, str(home))
    assert launch("pretrain", [*arguments(tmp_path), *UNSHOWN], kill={"step": 3}, hook=path) == [-9]
    assert launch("pretrain", [*arguments(tmp_path), *UNSHOWN], hook=path) == [0]
    assert checkpoint_bytes(tmp_path, LAST) == checkpoint_bytes(run, LAST)


def test_two_processes_learn_what_one_does(home: Path, run: Path, tmp_path: Path) -> None:
    path = partial(sys.path.insert, 0, str(home))
    assert launch("pretrain", [*arguments(tmp_path), *UNSHOWN], world=2, hook=path) == [0, 0]
    one, two = ([line["loss"] for line in metrics(output) if "loss" in line] for output in (run, tmp_path))
    assert two == pytest.approx(one, rel=1e-5)


def test_distills_a_network_of_torchvision(home: Path, tmp_path: Path) -> None:
    encoder = "method.encoder={name: module, path: 'nets:resnet', layer: layer4}"
    assert launch(
        "pretrain", arguments(tmp_path, encoder, "dino_shapes"), hook=partial(sys.path.insert, 0, str(home))
    ) == [0]
    assert load_encoder(f"nets:resnet:{tmp_path / 'export'}").width == 24


def test_the_card_loads_it_without_this_package(run: Path, home: Path) -> None:
    card = (run / "export" / "README.md").read_text(encoding="utf-8")
    assert "timm cannot load this network" in card
    [code, *_] = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    found: dict[str, Any] = {}
    exec(code.replace("THIS_FOLDER", str(run / "export")), found)
    encoder = load_encoder(f"nets:cnn:{run / 'export'}").eval()
    with torch.no_grad():
        torch.testing.assert_close(found["model"].eval()(pictures()).mean((2, 3)), encoder.feature(pictures()))


def test_begins_with_weights_of_its_own(run: Path, tmp_path: Path) -> None:
    found = find(f"nets:cnn:{run / 'export'}")
    assert found.heads and found.encoder.fields() == {**SETTINGS["cnn"], "channels": 3}
    encoder, method = make("cnn"), classifier(make("cnn"), "full")
    config = timm_config(encoder.model, method.arguments, encoder.width, IMAGENET, 4, "abcd")
    write_export(tmp_path, method.exported(), config, "# card\n")
    of_classifier = find(f"nets:cnn:{tmp_path}")
    assert torch.equal(of_classifier.encoder.eval().feature(pictures()), encoder.feature(pictures()))
    assert sorted(of_classifier.left) == ["linear_head.bias", "linear_head.weight"] and not of_classifier.heads
    with pytest.raises(UserError, match="use the address nets:cnn:"):
        find(tmp_path)
    again, arguments, weights = load_classifier(f"nets:cnn:{tmp_path}")
    retrained = Classifier(again, classifying("retrain", view=View(size=SIDE)), [4] * 3, Trained(arguments, weights))
    assert retrained.logits(pictures()).shape == (3, 3)
    assert torch.equal(retrained.model.network.stem.weight, encoder.vit.stem.weight)


def test_is_evaluated_embedded_and_fine_tuned(home: Path, run: Path, tmp_path: Path) -> None:
    address = f"nets:cnn:{run / 'export'}"
    probes = ["--protocol", "knn", "--device", "cpu", "--workers", "0", "--json", str(tmp_path / "scores.json")]
    assert main(["evaluate", address, "--data", str(run), *probes]) == 0
    assert json.loads((tmp_path / "scores.json").read_text(encoding="utf-8"))
    assert main(["embed", address, str(run), str(tmp_path / "features"), "--device", "cpu", "--workers", "0"]) == 0
    told = [f"encoder={address}", f"run.output={tmp_path / 'tuned'}", "task.fraction=1.0", *TINY, *QUIET, *UNSHOWN]
    recipe = str(RECIPES / "finetune_shapes.yaml")
    assert launch("finetune", [recipe, *told], hook=partial(sys.path.insert, 0, str(home))) == [0]
    assert json.loads((tmp_path / "tuned" / "result.json").read_text(encoding="utf-8"))["pictures"] == 20
    _, _, weights = load_classifier(f"nets:cnn:{tmp_path / 'tuned' / 'export'}")
    assert weights["linear_head.weight"].shape == (10, 8)
