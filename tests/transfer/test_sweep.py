"""Many linear heads at once: as if each had been trained alone, one chosen, and read by timm alone."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import safetensors.torch
import timm
import torch
import torch.nn.functional as F
from support import TINY_FINETUNE, launch, weights
from torch import Tensor

from unlabeled.__main__ import main
from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder
from unlabeled.backbone.folder import IMAGENET, export_encoder
from unlabeled.backbone.folder_config import read_config
from unlabeled.data.batch.batch import Batch, ViewBatch
from unlabeled.data.batch.loader import Normalize
from unlabeled.data.opened import Opened
from unlabeled.data.view.views import View, center_crop
from unlabeled.errors import UserError
from unlabeled.evaluate.features import Features
from unlabeled.pretrain.method import Progress
from unlabeled.recipe import load
from unlabeled.serve.deploy import network
from unlabeled.stages.finetune import FinetuneRecipe
from unlabeled.train.optim import param_groups, set_rates
from unlabeled.transfer.tasks.sweep import Choice, Config, LinearSweep, balanced

CLASSES, WIDTH = 5, 16
COUNTS = (9, 6, 3, 2, 1)
RATES = (0.1, 1.0, 3.0)
IBOT = tuple(digit * 10.0**power for power in range(-4, 1) for digit in range(1, 10))


def encoder(model: str = "vit_tiny_patch16_224") -> Encoder:
    torch.manual_seed(0)
    shape: Any = {} if model == "test_resnet" else {"patch_size": 4, "width": WIDTH, "depth": 3, "heads": 2}
    return EncoderConfig(model=model, **shape).build((16, 16))


def sweep(model: str = "vit_tiny_patch16_224", **fields: Any) -> LinearSweep:
    config = Config(view=View(size=16), label_smoothing=0.1, logit_adjustment=0.5, **fields)
    return LinearSweep(encoder(model), config, COUNTS)


def batches(n: int = 4) -> list[Batch]:
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 1, 8, 3, 16, 16, generator=generator)
    return [Batch([ViewBatch(pixels, None)], torch.arange(8) % CLASSES, torch.arange(8)) for pixels in images]


def features(images: Tensor, pool: str, blocks: int) -> Tensor:
    """By timm's own reading of intermediate layers."""
    vit = encoder().vit.eval()
    with torch.no_grad():
        read = vit.get_intermediate_layers(images, n=blocks, return_prefix_tokens=True, norm=True)
    if pool == "cls":
        return torch.cat([prefix[:, 0] for _, prefix in read], dim=1)
    if pool == "cls_mean":
        return torch.cat([*(prefix[:, 0] for _, prefix in read), read[-1][0].mean(1)], dim=1)
    return torch.cat([patches.mean(1) for patches, _ in read], dim=1)


def test_every_head_learns_as_if_it_were_alone() -> None:
    """Against heads trained one at a time on timm's features, rate by rate."""
    model = sweep(rates=RATES, pools=("cls", "cls_mean"), blocks=(1, 2)).train()
    alone = [(kind, rate, torch.nn.Linear(layer.in_features, CLASSES)) for (kind, rate), layer in _pairs(model)]
    for (_, _, twin), layer in zip(alone, model.heads, strict=True):
        twin.load_state_dict(layer.state_dict())
    optimizer = torch.optim.SGD(param_groups(model, 0.0), lr=0.0, momentum=0.9)
    twins = [torch.optim.SGD(twin.parameters(), lr=0.2 * rate, momentum=0.9) for _, rate, twin in alone]
    priors = 0.5 * (torch.tensor(COUNTS) / sum(COUNTS)).log()
    config: Any = load(
        FinetuneRecipe, _recipe(), ["optim={name: sgd, base_lr: 0.2, lr_rule: none, weight_decay: 0.0}"]
    ).optim
    for batch in batches():
        progress = Progress(0, 10**9, 0.0, 1.0)
        set_rates(optimizer, config, config.peak(8), progress)
        model(batch, progress).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        images = batch.views[0].pixels[0]
        for (kind, _, twin), other in zip(alone, twins, strict=True):
            other.zero_grad()
            x = features(images, kind.pool, kind.blocks)
            F.cross_entropy(twin(x) + priors, batch.labels, label_smoothing=0.1).backward()
            other.step()
    for (_, _, twin), layer in zip(alone, model.heads, strict=True):
        torch.testing.assert_close(layer.weight, twin.weight, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(layer.bias, twin.bias, rtol=1e-5, atol=1e-5)


def test_every_head_reads_its_own_features_and_the_chosen_one_predicts() -> None:
    model, images = sweep(rates=RATES, pools=("cls", "mean"), blocks=(1, 2)).eval(), batches()[0].views[0].pixels[0]
    for number, ((kind, _), layer) in enumerate(_pairs(model)):
        model.chosen, expected = number, layer(features(images, kind.pool, kind.blocks))
        torch.testing.assert_close(model.predict(images), expected)
        assert torch.equal(model.guesses(images)[:, number], expected.argmax(1))
        whole = model.as_classifier()
        assert (whole is None) == (kind.blocks == 2)
        if whole is not None:
            torch.testing.assert_close(whole.eval().predict(images), expected)
    right = (model.guesses(images) == batches()[0].labels.unsqueeze(1)).float().mean(0)
    loss, found, *_ = model(batches()[0], Progress(0, 1, 0.0, 1.0))
    assert loss.item() == pytest.approx(len(model.heads) * found["loss_per_head"].item())
    assert found["train_accuracy"].item() == pytest.approx(100 * right.max().item()) and right.min() < right.max()


def _pairs(model: LinearSweep) -> Any:
    return zip(model.tried, model.heads, strict=True)


def _recipe() -> str:
    return str(Path(__file__).parents[2] / "recipes" / "demo" / "finetune_shapes.yaml")


def widths(model: LinearSweep) -> list[int]:
    return [head.weight.shape[1] // WIDTH for head in model.heads]  # type: ignore[union-attr,misc]


def test_heads_are_as_many_and_as_wide_as_the_papers() -> None:
    ibot, dinov2 = (
        sweep(rates=IBOT, blocks=(3,)),
        sweep(rates=tuple(range(1, 14)), pools=("cls", "cls_mean"), blocks=(1, 3)),
    )
    assert len(ibot.heads) == 45 and {head.in_features for head in ibot.heads} == {3 * WIDTH}  # type: ignore[union-attr]
    assert [head.in_features // WIDTH for head in dinov2.heads] == [1] * 13 + [2] * 13 + [3] * 13 + [4] * 13  # type: ignore[operator,union-attr]
    drawn = torch.cat([head.weight.flatten() for head in ibot.heads])  # type: ignore[union-attr,arg-type,operator]
    assert drawn.std().item() == pytest.approx(0.02, rel=0.05) and not any(head.bias.any() for head in ibot.heads)  # type: ignore[union-attr,operator]
    assert len(dinov2.pieces) == 4, "a piece that several heads read is computed once"


@pytest.mark.parametrize("model", ["vit_tiny_patch16_224", "test_resnet"])
def test_the_backbone_stays_as_it_is(model: str) -> None:
    method = sweep(model, rates=RATES, pools=("mean",)).train()
    before = {name: tensor.clone() for name, tensor in method.state_dict().items()}
    method(batches()[0], Progress(0, 1, 0.0, 1.0)).loss.backward()
    torch.optim.SGD(param_groups(method, 0.1), lr=1.0).step()
    changed = {name for name, tensor in method.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {name for name in before if name.startswith("heads.")}
    assert all(p.grad is None for p in method.encoder.parameters()) and not method.encoder.training


def test_balanced_against_a_loop() -> None:
    labels = torch.tensor([0, 0, 0, 2])
    right = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    assert balanced(right, labels).tolist() == pytest.approx([(2 / 3 + 0) / 2, (1 / 3 + 1) / 2])


@pytest.mark.parametrize(("metric", "best", "score"), [("accuracy", 1, 75.0), ("balanced_accuracy", 3, 200 / 3)])
def test_the_metric_chooses_and_of_equals_the_first(metric: str, best: int, score: float) -> None:
    labels = torch.tensor([0, 0, 0, 2])
    guesses = torch.tensor([[1, 1, 1, 1], [0, 0, 0, 1], [0, 0, 0, 3], [0, 1, 1, 2], [1, 0, 1, 2]]).T
    method = sweep(rates=(1, 2, 3, 4, 5))

    def predict(*_: Any) -> Features:
        return Features(guesses.float(), labels)

    assert Choice(cast("Any", predict), cast("Any", None), metric, 0.1)(method) == {metric: pytest.approx(score)}
    assert method.chosen == best


def test_features_that_are_not_there_are_refused() -> None:
    with pytest.raises(UserError, match="has 3 blocks, found blocks=4"):
        sweep(blocks=(4,))
    with pytest.raises(UserError, match="no class token"):
        sweep("test_resnet")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("sweep")
    for kind, model in (("vit", "vit_tiny_patch16_224"), ("cnn", "test_resnet")):
        export_encoder(home / kind, encoder(model), IMAGENET, "# card\n", {})
    (home / "finetune.yaml").write_text(TINY_FINETUNE.replace("UNSET", str(home / "vit")), encoding="utf-8")
    return home


def run(home: Path, output: Path, *more: str) -> int:
    sgd = "optim={name: sgd, base_lr: 3.0, weight_decay: 0.0}"
    settings = (f"run.output={output}", "task.name=sweep", sgd, "train.epochs=4", "data.val_size=60")
    return launch("finetune", [str(home / "finetune.yaml"), *settings, *more])[0]


@pytest.mark.parametrize("metric", ["accuracy", "balanced_accuracy"])
def test_the_best_head_is_chosen_on_what_was_held_out(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], metric: str
) -> None:
    heads = ("task.rates=[1.0e-6, 0.1, 1.0]", "task.pools=[cls, cls_mean]", "task.blocks=[1, 2]")
    assert run(home, tmp_path, *heads, f"watch={{every: 5, hold_out: 0.3, metric: {metric}}}") == 0
    kinds = "cls of 1 block, cls_mean of 1 block, cls of 2 blocks, cls_mean of 2 blocks"
    assert f"sweep, 12 heads: 3 rates x {kinds}" in capfd.readouterr().err
    result = json.loads((tmp_path / "result.json").read_text(encoding="utf-8"))
    found = result["sweep"]
    assert len(found["heads"]) == 12 and found["on"] == "30 % of the labels, held out"
    assert found["chosen"][metric] == max(head[metric] for head in found["heads"])
    name = f"watched_{metric}"
    watched = {line["step"]: line[name] for line in _lines(tmp_path) if name in line}
    assert found["chosen"][metric] == pytest.approx(max(watched.values())) and list(watched) == [5, 10, 12]
    place, step = found["heads"].index(found["chosen"]), result["protocol"]["weights_of_step"]
    exported = safetensors.torch.load_file(tmp_path / "export" / "heads.safetensors")["weight"]
    assert place > 0 and torch.equal(exported, weights(tmp_path, step)[f"heads.{place}.weight"])
    assert f" {found['chosen']['pool']} of {found['chosen']['blocks']} block" in (tmp_path / "result.md").read_text(
        encoding="utf-8"
    )


READINGS = [("vit", pool, blocks) for pool in ("cls", "mean", "cls_mean", "mean_max") for blocks in (1, 2)]


@pytest.mark.parametrize(("kind", "pool", "blocks"), [*READINGS, ("cnn", "mean", 1), ("cnn", "mean_max", 1)])
def test_timm_alone_reads_the_chosen_head_as_the_card_says(
    home: Path, tmp_path: Path, kind: str, pool: str, blocks: int
) -> None:
    heads = (f"task.pools=[{pool}]", f"task.blocks=[{blocks}]")
    assert run(home, tmp_path, *heads, "task.pool=mean", f"encoder={home}/{kind}") == 0
    result, export = json.loads((tmp_path / "result.json").read_text(encoding="utf-8")), tmp_path / "export"
    recipe = load(FinetuneRecipe, tmp_path / "recipe.yaml", [])
    val, normalize = Opened(recipe.data).val, Normalize(recipe.data.mean, recipe.data.std, torch.device("cpu"))
    images = torch.stack([normalize(center_crop(val.image(i), (16, 16), 1.0, "bicubic")) for i in range(len(val))])
    model = timm.create_model(f"local-dir:{export}", pretrained=True).eval()
    with torch.no_grad():
        logits = model(images)
        if blocks > 1 or pool not in ("cls", "mean"):
            assert model.num_classes == 0 and "linear_head" in json.loads(
                (export / "config.json").read_text(encoding="utf-8")
            )
            logits = _as_the_card_says(export, model, images)
        torch.testing.assert_close(network(export, read_config(export))(images), logits)
    counts = np.zeros((len(val.classes),) * 2, int)
    np.add.at(counts, (val.labels, logits.argmax(1).numpy()), 1)
    assert result["confusion"] == counts.tolist()


@pytest.mark.parametrize(("kind", "pool", "blocks"), [("vit", "cls_mean", 2), ("cnn", "mean_max", 1)])
def test_a_chosen_head_becomes_a_program(home: Path, tmp_path: Path, kind: str, pool: str, blocks: int) -> None:
    heads = (f"task.pools=[{pool}]", f"task.blocks=[{blocks}]")
    assert run(home, tmp_path / "run", *heads, "task.pool=mean", f"encoder={home}/{kind}") == 0
    export, out = tmp_path / "run" / "export", tmp_path / "out"
    assert main(["export", str(export), str(out)]) == 0
    images = torch.randn(5, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = network(export, read_config(export))(images)
        torch.testing.assert_close(torch.export.load(out / "model.pt2").module()(images), expected)
    about, result = (
        json.loads(file.read_text(encoding="utf-8")) for file in (out / "model.json", tmp_path / "run" / "result.json")
    )
    assert about["output"] == {"name": "logits", "shape": ["batch", 10]}
    assert about["label_names"] == list(result["classes"].values())


def _as_the_card_says(export: Path, model: Any, images: Tensor) -> Tensor:
    code = re.findall(r"```python\n(.*?)```", (export / "README.md").read_text(encoding="utf-8"), re.DOTALL)[1]
    names: dict[str, Any] = {"model": model, "images": images}
    exec(code.replace("THIS_FOLDER", str(export)), names)
    assert safetensors.torch.load_file(export / "heads.safetensors").keys() == {"weight", "bias"}
    return names["logits"]


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (("task.rates=[1,2]",), "trains 2 heads and must be told which pictures choose one"),
        (("task.rates=[1,2]", "watch={every: 3, metric: nll}"), "set watch.metric=accuracy"),
        (("task.rates=[1,2]", "watch={every: 3}", "optim.clip=1.0"), "would make 2 heads share one norm"),
        (("task.ema=0.9",), "task.ema: unknown field"),
        (("task.pool=attention",), "task.pool: expected one of: cls, mean, mean_max, found 'attention'"),
        (("task.blocks=[9]",), "has 3 blocks, found blocks=9"),
    ],
)
def test_mistakes_are_named(
    home: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str], settings: tuple[str, ...], says: str
) -> None:
    assert run(home, tmp_path, *settings) == 2
    error = capfd.readouterr().err
    assert says in error and "Traceback" not in error


def _lines(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
