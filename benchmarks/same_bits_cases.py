"""The runs of `same_bits.py`: every method, way of transfer, source, protocol and command, each in seconds on a CPU.

Recipes are those of the older checkout, in `recipes/`, shrunk by overrides; results lie in `runs/`.
"""

from __future__ import annotations

from typing import NamedTuple

SHAPES = "data={name: shapes, train_size: 42, val_size: 20, size: 32}"
LABELS = "data={name: shapes, train_size: 80, val_size: 40, size: 32}"
MACHINE = ("run.device=cpu", "run.threads=1", "run.log_every=1", "run.keep_last=100", "run.checkpoint_every=4")
SHORT = ("train.batch_size=8", "train.epochs=1", "optim.warmup_epochs=0.5")
LENGTH = ("train.batch_size=8", "train.epochs=2", "optim.warmup_epochs=0.5")
GREY = "{name: files, path: pictures, train: train, val: val, mean: [0.5], std: [0.25]}"
CHEAP = ("evaluate.knn={k: 3}", "evaluate.linear={epochs: 2}")
VIT, CNN, BEIT = (f"runs/{name}/export" for name in ("mae", "simclr_resnet", "simmim"))

# a few pictures of every shape, for sources that read files
TINY = """
name: tiny
data: {name: files, path: pictures/train}
method:
  name: mae
  view: {size: 16, mask: {name: random, ratio: 0.5}}
  encoder: {model: vit_tiny_patch16_224, patch_size: 4, width: 16, depth: 2, heads: 2, drop_path: 0.2}
  decoder: {name: self, width: 16, depth: 1, heads: 2}
optim: {name: adamw, base_lr: 0.03, warmup_epochs: 1}
train: {epochs: 4, batch_size: 8}
run: {workers: 0}
"""


class Case(NamedTuple):
    """One run.

    Attributes:
        name: of the case.
        arguments: the program and its command line, `python` left out.
        result: the folder to compare.
        resumes: the case whose folder, as the older checkout left it, it goes on with from an early checkpoint.
    """

    name: str
    arguments: tuple[str, ...]
    result: str
    resumes: str | None = None


def pretrain(name: str, recipe: str, *overrides: str, workers: int = 0, resumes: str | None = None) -> Case:
    """A pretraining, `recipe` with overrides."""
    rest = (f"run.output=runs/{name}", f"run.workers={workers}", *MACHINE, *LENGTH, *overrides)
    return Case(name, ("pretrain.py", recipe, *rest), f"runs/{name}", resumes)


def finetune(
    name: str, recipe: str, encoder: str, *overrides: str, workers: int = 0, resumes: str | None = None
) -> Case:
    """A fine-tuning of an export on 80 labelled shapes; `recipe` is one for CIFAR-10."""
    rest = (f"encoder={encoder}", f"run.output=runs/{name}", f"run.workers={workers}", LABELS, *MACHINE, *SHORT)
    arguments = ("finetune.py", f"recipes/finetune/{recipe}_cifar10.yaml", *rest, *overrides)
    return Case(name, arguments, f"runs/{name}", resumes)


def command(name: str, *arguments: str) -> Case:
    """One of `unlabeled`, which writes into `runs/NAME`."""
    return Case(name, ("-m", "unlabeled", *arguments), f"runs/{name}")


def demo(name: str, resumed: bool = False) -> Case:
    """The demo's recipe of a method; of a resumed one, that of the run it goes on with."""
    probes = CHEAP[:1] if name in ("mae", "simmim", "mocov3_resnet") else CHEAP
    arguments = (f"recipes/demo/{name}_shapes.yaml", SHAPES, *probes)
    return pretrain(f"{name}_resumed", *arguments, resumes=name) if resumed else pretrain(name, *arguments)


def variant(name: str, recipe: str, *overrides: str, workers: int = 0) -> Case:
    """Another recipe, or a demo's that is changed, without probes."""
    return pretrain(name, f"recipes/{recipe}.yaml", SHAPES, "evaluate=null", *overrides, workers=workers)


MAE, IBOT, RESNET = "demo/mae_shapes", "demo/ibot_shapes", "demo/mocov3_resnet_shapes"
SMALL_VIT = "{model: vit_tiny_patch16_224, patch_size: 4, width: 32, depth: 3, heads: 2, positions: learned}"
CROPS = tuple(f"method.{view}.size={size}" for view, size in (("global_1", 32), ("global_2", 32), ("local", 16)))
HEAD = "head={prototypes: 64, hidden: 32, bottleneck: 16, freeze_gain: false}"
DINOV2 = "pretrain/dinov2_vitl16_in1k"
EPOCHS = ("method.teacher_temperature_epochs=1", "method.frozen_epochs=1")
DINOV2_SMALL = (f"method.encoder={SMALL_VIT}", f"method.{HEAD}", *CROPS, "train.precision=no", *EPOCHS)

PRETRAINED = [
    *(demo(name) for name in ("mae", "simmim", "simclr", "simclr_resnet", "mocov3", "mocov3_resnet", "dino", "ibot")),
    demo("mae", resumed=True),
    demo("dino", resumed=True),
    demo("mocov3_resnet", resumed=True),
    variant("mae_workers", MAE, workers=2),
    variant("ibot_workers", IBOT, workers=2),
    variant("mae_accumulated", MAE, "run.accumulate=2"),
    variant("simmim_accumulated", "demo/simmim_shapes", "run.accumulate=2", workers=2),
    variant("mae_init", MAE, f"init={VIT}"),
    variant("mae_cross", MAE, "method.decoder={name: cross_light, width: 32, depth: 2, heads: 2, share: 0.5}"),
    variant("mae_fixed_block", MAE, "method.view.mask={name: fixed_block, ratio: 0.5}"),
    variant("mae_inverse", MAE, "method.view.mask={name: inverse, mask: {name: random, ratio: 0.25}}"),
    variant("simmim_vit", "demo/simmim_shapes", f"method.encoder={SMALL_VIT}"),
    variant("ibot_block", IBOT, "method.global_1.mask={name: block}", "method.global_2.mask={name: block}"),
    variant("dinov2", DINOV2, *DINOV2_SMALL, "method.koleo=0.1"),
    variant("dinov2_sinkhorn", DINOV2, *DINOV2_SMALL, f"method.patch_{HEAD}", "method.targets=sinkhorn"),
    variant(
        "dino_resnet", "pretrain/dino_resnet_cifar10", "method.encoder={model: test_resnet}", f"method.{HEAD}", *CROPS
    ),
    variant("mocov3_lars", RESNET, "optim={name: lars, base_lr: 0.3}", "optim.warmup_epochs=0.5"),
    variant("mocov3_efficientnet", RESNET, "method.encoder={model: test_efficientnet}"),
    variant("simclr_sgd", "demo/simclr_shapes", "optim={name: sgd, base_lr: 0.1, schedule: {name: timm_cosine}}"),
    variant("mae_constant", MAE, "optim.schedule={name: constant}"),
    variant("mae_steps", MAE, "optim.schedule={name: steps, milestones: [1], factor: 0.5}"),
    pretrain("grey", "tiny.yaml", f"data={GREY}", "method.encoder.channels=1"),
    Case("prepare", ("-m", "unlabeled", "prepare", "tiny.yaml", "data.cache=cache", "--workers", "1"), "cache"),
    *(
        pretrain(f"from_{name}", "tiny.yaml", f"data={data}")
        for name, data in {
            "folder": "{name: files, path: pictures/train}",
            "cache": "{name: files, path: pictures/train, cache: cache}",
            "tar": "{name: files, path: pictures.tar, train: train}",
            "table": "{name: table, path: table.csv}",
            "arrays": "{name: arrays, train: x.npy}",
            "mixture": "{name: mixture, weights: [2, 1], sources: "
            "[{name: files, path: pictures/train}, {name: shapes, train_size: 20, size: 16}]}",
        }.items()
    ),
]

TRANSFERRED = [
    *(finetune(mode, mode, VIT) for mode in ("frozen", "linear", "full", "differential_lr", "gradual")),
    *(finetune(mode, mode, VIT) for mode in ("lora", "attentive")),
    finetune("sweep", "sweep", VIT, "watch.every=3"),
    finetune("retrain", "retrain", "runs/full/export"),
    finetune("full_resumed", "full", VIT, resumes="full"),
    finetune("gradual_resumed", "gradual", VIT, resumes="gradual"),
    finetune("gradual_slow", "gradual", VIT, "train.epochs=3", "task.wake_every=0.5", "task.backbone_lr=0.3"),
    finetune("few_labels", "few_labels", VIT, workers=2),
    finetune("long_tail", "long_tail", VIT),
    finetune("balanced", "full", VIT, "task.balance=balanced", "task.effective_number=0.99", "task.shots=5"),
    finetune("averaged", "full", VIT, "task.ema=0.9", "task.mixing={mixup: 0.8, cutmix: 1.0}"),
    finetune("accumulated", "full", VIT, "run.accumulate=2", "task.mixing={mixup: 0.8}"),
    finetune("flooded", "full", VIT, "task.flood=1.0", "task.repeats=2", "task.pool=mean_max"),
    finetune("watched", "full", VIT, "watch={every: 2, hold_out: 0.25, patience: 2}", "train.epochs=2"),
    finetune("plateau", "full", VIT, "watch={every: 2, hold_out: 0.25}", "optim.schedule={name: plateau, patience: 1}"),
    finetune("scratch", "full", f"scratch:{VIT}", workers=2),
    finetune("adapted", "full", VIT, "task.view.size=40", "adapt=[size]"),
    finetune("full_grey", "full", VIT, f"data={GREY}", "adapt=[channels]"),
    *(finetune(f"{mode}_cnn", mode, CNN) for mode in ("frozen", "linear", "full", "differential_lr", "gradual")),
    finetune("sweep_cnn", "sweep", CNN, "task.sweep.pools=[mean]", "watch.every=3"),
    finetune("retrain_cnn", "retrain", "runs/full_cnn/export"),
    finetune("averaged_cnn", "full", CNN, "task.ema=0.9", workers=2),
    *(finetune(f"{mode}_beit", mode, BEIT) for mode in ("linear", "full", "gradual", "lora")),
    finetune("sweep_beit", "sweep", BEIT, "watch.every=3"),
]

READ = ("--data", "runs/mae", "--device", "cpu", "--workers", "0", "--no-baselines")
SCENES = ("--data", "scenes", *READ[2:])
PROTOCOLS = ("knn", "linear", "logistic", "fewshot", "retrieval", "labelfree")
SETTINGS = ("knn.k=[3,5]", "linear.epochs=2", "fewshot.episodes=3", "fewshot.queries=1", "fewshot.shots=[1]")
EMBED = ("--device", "cpu", "--batch-size", "8", "--shard", "16")
CLIMB = ("--seeds", "1", "--steps", "3", "--fractions", "0.5", "--device", "cpu", "--batch-size", "8", "--workers", "0")


def evaluate(name: str, *arguments: str, settings: tuple[str, ...] = ()) -> Case:
    """`evaluate`, which writes its scores and its table."""
    files = ("--json", f"runs/{name}/scores.json", "--markdown", f"runs/{name}/scores.md")
    return command(name, "evaluate", *arguments, *files, "--set", *settings)


COMMANDS = [
    evaluate("evaluate_vit", VIT, "runs/dino/export", *READ, "--protocol", *PROTOCOLS, "cka", settings=SETTINGS),
    evaluate("evaluate_few", VIT, *READ, "--fractions", "1", "0.5", "--seeds", "2", settings=SETTINGS[:2]),
    evaluate("evaluate_cnn", CNN, *READ, "--protocol", *PROTOCOLS, settings=SETTINGS),
    evaluate("evaluate_beit", BEIT, *READ, "--protocol", *PROTOCOLS, "cka", "--against", VIT, settings=SETTINGS),
    evaluate("evaluate_baselines", VIT, CNN, *READ[:-3], "--workers", "2", "--baselines", settings=SETTINGS[:2]),
    evaluate("evaluate_scenes", VIT, CNN, *SCENES, "--protocol", "segmentation", settings=("segmentation.epochs=2",)),
    command("embed", "embed", VIT, "pictures", "runs/embed", *EMBED, "--tokens", "--workers", "0"),
    command("embed_cnn", "embed", CNN, "runs/mae", "runs/embed_cnn", *EMBED, "--workers", "2"),
    command("ladder", "ladder", VIT, "runs/mae", "--out", "runs/ladder", *CLIMB),
    command("ladder_cnn", "ladder", CNN, "runs/mae", "--out", "runs/ladder_cnn", *CLIMB),
    command("report", "report", "runs/full", "runs/averaged", "--json", "runs/report/scores.json"),
]
CASES = {case.name: case for case in (*PRETRAINED, *TRANSFERRED, *COMMANDS)}
