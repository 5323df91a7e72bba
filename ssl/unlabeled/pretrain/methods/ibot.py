"""iBOT (Zhou et al., ICLR 2022; official code bytedance/ibot at da316d8), and by options DINOv2 (Oquab et al. 2023;
facebookresearch/dinov2 at b8931f7) and DINOv3 (Siméoni et al. 2025; facebookresearch/dinov3 at 6876159).

DINO on class tokens, and the same distillation on patches: the student sees large crops with patches hidden, the
teacher sees them whole. Where paper and code differ this follows the code, and where code and recipes differ the
recipes: heads are shared (for what the code's flags do unless set: `teacher_shares`), half of the large crops have
nothing hidden, and patches are averaged per crop, then over all crops, those with nothing hidden included. As in DINO
the last layer is left alone in the first epoch (in DINOv2's code by a learning rate of 0: `frozen_by`).

With `coding_rate` it is SimDINOv2 (Wu et al., ICML 2025; official code RobinWu218/SimDINO at 8149fc4): class tokens
and hidden patches agree by their cosines, and a coding rate keeps class tokens apart, see `dino`.
"""

from __future__ import annotations

from collections.abc import Iterable
from copy import deepcopy
from typing import ClassVar, Literal, NamedTuple

import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

from unlabeled.backbone.config import EncoderConfig
from unlabeled.backbone.encoder import Encoder, Hiding
from unlabeled.data.batch.batch import Batch
from unlabeled.data.masks.block import Config as BlockMask
from unlabeled.data.view.views import View
from unlabeled.nn.curves import Temperature, cosine
from unlabeled.nn.heads import DistillHead, HeadConfig
from unlabeled.nn.loss.prototypes import CrossEntropy, sharpen
from unlabeled.nn.loss.sinkhorn import sinkhorn
from unlabeled.nn.loss.spread import CodingRate, koleo
from unlabeled.nn.measures import contrast, feature_std
from unlabeled.nn.patches import PatchMask, hidden_rows, padded_count
from unlabeled.nn.teacher import Centre, ema_, follow_
from unlabeled.pretrain.gram import Gram, GramTeacher
from unlabeled.pretrain.method import Crops, MethodConfig, Output, PretrainMethod, Progress, Symptom
from unlabeled.pretrain.rates import layered
from unlabeled.pretrain.rescale import Rule, Setting, as_in_paper, same_share, same_window
from unlabeled.pretrain.symptoms import of_self_distillation

GLOBAL_1 = View(scale=(0.25, 1.0), jitter=(0.4, 0.4, 0.2, 0.1), jitter_p=0.8, grayscale=0.2, blur=1.0, mask=BlockMask())
GLOBAL_2 = GLOBAL_1.model_copy(update={"blur": 0.1, "solarize": 0.2})
LOCAL = GLOBAL_1.model_copy(update={"count": 10, "size": 96, "scale": (0.05, 0.25), "blur": 0.5, "mask": None})
SMALL = EncoderConfig(model="vit_small_patch16_224", positions="learned", interpolation="scale", drop_path=0.1)


class Config(MethodConfig, frozen=True):
    """iBOT: defaults are the paper's ViT-S/16."""

    name: Literal["ibot"] = "ibot"
    global_1: View = Field(GLOBAL_1, description="the first large crop and its mask: always blurred")
    global_2: View = Field(GLOBAL_2, description="the second large crop and its mask: rarely blurred")
    local: View | None = Field(LOCAL, description="small crops, for the student only; null = none")
    encoder: EncoderConfig = Field(SMALL, description="the vision transformer that is kept")
    head: HeadConfig = Field(HeadConfig(prototypes=8192, freeze_gain=False), description="from tokens to prototypes")
    patch_prototypes: int | None = Field(None, ge=2, description="of a last layer of the patches' own; null = shared")
    teacher_shares: bool = Field(
        False, description="with patch_prototypes: the teacher has one last layer for both (official flags' defaults)"
    )
    patch_head: HeadConfig | None = Field(None, description="patches get a whole head of their own (DINOv2)")
    targets: Literal["centre", "sinkhorn"] = Field("centre", description="how the teacher is kept from collapsing")
    coding_rate: CodingRate | None = Field(None, description="SimDINOv2's objective, without prototypes; null = iBOT's")
    patch_centre: Literal["all", "hidden"] = Field(
        "all", description="patches whose logits make up the patches' centre: all (iBOT) or hidden ones (DINOv2)"
    )
    student_temperature: float = Field(0.1, gt=0, description="of the student's distributions")
    teacher_temperature: float = Field(0.07, gt=0, description="of the teacher's, at class tokens")
    teacher_temperature_start: float = Field(0.04, gt=0, description="where its warm-up begins: sharper")
    patch_temperature: float = Field(0.07, gt=0, description="of the teacher's, at patches")
    patch_temperature_start: float = Field(0.04, gt=0, description="where its warm-up begins")
    teacher_temperature_epochs: float | None = Field(
        None, ge=0, description="of both warm-ups; null = 30 of 800, rescaled"
    )
    teacher_temperature_per_step: bool = Field(False, description="warm up every step (DINOv2), not every epoch")
    centre_momentum: float = Field(0.9, ge=0, lt=1, description="of the running centres of the teacher's logits")
    momentum: float | None = Field(
        None, ge=0, le=1, description="of the teacher at first, by a cosine to 1; null = 0.996 at batch 1024, rescaled"
    )
    frozen_epochs: float | None = Field(
        None, ge=0, description="epochs in which the last layers are left alone; null = 1 of 800, rescaled"
    )
    frozen_by: Literal["gradient", "rate"] = Field(
        "gradient", description="how: no gradient (DINO, iBOT), or a learning rate of 0 while moments grow (DINOv2)"
    )
    patch_start_epoch: float = Field(0.0, ge=0, description="epoch from which patches are hidden, and their warm-up")
    class_weight: float = Field(1.0, ge=0, description="weight of the class tokens' loss")
    patch_weight: float = Field(1.0, ge=0, description="weight of the patches' loss")
    koleo: float = Field(0.0, ge=0, description="weight of KoLeo, which spreads class tokens; DINOv2: 0.1")
    koleo_neighbours: int = Field(1, ge=1, description="nearest neighbours that KoLeo keeps away")
    gram: Gram | None = Field(None, description="patches stay as similar as an earlier teacher's (DINOv3); null = free")
    local_norm: bool = Field(
        False, description="class tokens of small crops get a final norm of their own, which is not exported (DINOv3)"
    )
    class_token_std: float = Field(0.02, gt=0, description="of the class token at the start; DINOv2: 1e-6")
    layer_decay: float = Field(1.0, gt=0, le=1, description="learning rate falls by this per block downwards")
    patch_embed_lr: float = Field(1.0, gt=0, description="factor on the patch embedding's learning rate")

    title: ClassVar[str] = "iBOT"
    crops: ClassVar[dict[str, Crops]] = {
        "global_1": Crops(masked=True, rounding="floor_hidden"),
        "global_2": Crops(masked=True, rounding="floor_hidden", like="global_1"),
        "local": Crops(count=None),
    }
    hides: ClassVar[Hiding | None] = "replace"
    any_size: ClassVar[bool] = True
    class_token: ClassVar[bool] = True
    paper: ClassVar[Setting] = Setting(batch=1024, epochs=800, steps=1_000_800)
    ends: ClassVar[dict[str, float]] = {"momentum": 1.0}
    rules: ClassVar[dict[str, Rule]] = {
        "momentum": Rule(0.996, same_window),
        "teacher_temperature_epochs": Rule(30, same_share),
        "frozen_epochs": Rule(1, same_share),
    }

    @model_validator(mode="after")
    def _parts_agree(self) -> Config:
        if not self.class_weight + self.patch_weight:
            raise ValueError("expected class_weight or patch_weight above 0, found 0 for both")
        if self.patch_prototypes is not None and self.patch_head is not None:
            raise ValueError("expected patch_prototypes or patch_head, found both. Set patch_head.prototypes instead.")
        if self.teacher_shares and self.patch_prototypes != self.head.prototypes:
            found, expected = self.patch_prototypes, self.head.prototypes
            raise ValueError(f"teacher_shares: set patch_prototypes={expected}, as head.prototypes; found {found}")
        if self.local_norm and not (self.local and self.encoder.family.other_norm):
            raise ValueError("local_norm is for small crops and a vision transformer: set local_norm=false")
        if self.coding_rate and (self.patch_head or self.patch_prototypes or not self.head.bottleneck):
            raise ValueError("coding_rate: expected head.bottleneck above 0, and no patch_head or patch_prototypes")
        return self

    @property
    def views(self) -> tuple[View, ...]:
        """See `MethodConfig`; last come the Gram teacher's, cut as the large ones."""
        given = super().views
        return given if self.gram is None else (*given, *self.gram.twins(given[:2]))

    def build(self) -> IBOT:
        """A randomly initialised model, its teacher equal to it. The teacher drops no paths."""
        student = self._network(self.encoder, self.patch_prototypes)
        teacher = self._network(self.encoder.calm, None if self.teacher_shares else self.patch_prototypes)
        student.encoder.initialise_("dino", class_token_std=self.class_token_std)
        return IBOT(student, teacher, self)

    def _network(self, config: EncoderConfig, patch_prototypes: int | None) -> Network:
        encoder = config.build(self.global_1.shape, pooled=False)
        head = self.head.build(encoder.width, patch_prototypes, embeds=self.coding_rate is not None)
        return Network(encoder, head, None if self.patch_head is None else self.patch_head.build(encoder.width))


class Network(NamedTuple):
    """An encoder, its head, and the patches' own head if they have one."""

    encoder: Encoder
    head: DistillHead
    patch_head: DistillHead | None


class IBOT(PretrainMethod):
    """Self-distillation of class tokens across views, and of hidden patches within one."""

    of_a_run: ClassVar[tuple[str, ...]] = ("gram",)

    def __init__(self, student: Network, teacher: Network, config: Config) -> None:
        super().__init__()
        self.encoder, self.head, self.patch_head = student
        self.teacher, self.teacher_head, self.teacher_patch_head = teacher
        self.mask_token = nn.Parameter(torch.zeros(1, student.encoder.embedding_width))
        own = config.patch_prototypes if config.patch_head is None else config.patch_head.prototypes
        self.centre = Centre(config.head.prototypes, config.centre_momentum)
        self.patch_centre = Centre(own or config.head.prototypes, config.centre_momentum)
        self.config = c = as_in_paper(config)
        self.objective = c.coding_rate or CrossEntropy(c.student_temperature)
        warmup = c.teacher_temperature_epochs, c.teacher_temperature_per_step
        self.temperature = Temperature(c.teacher_temperature_start, c.teacher_temperature, *warmup)
        self.patch_temperature = Temperature(c.patch_temperature_start, c.patch_temperature, *warmup)
        self.local_norm = deepcopy(self.encoder.vit.norm) if c.local_norm else None
        for follower, followed in self._pairs():
            follow_(follower, followed)
        self.gram = None if c.gram is None else GramTeacher(c.gram, deepcopy(self.teacher))
        if config.teacher_shares and self.head.patch_layer is not None:
            # official `load_state_dict` fills the one layer twice, under both names; the average knows the first alone
            follow_(self.teacher_head.last_layer, self.head.patch_layer)

    def forward(self, batch: Batch, progress: Progress) -> Output:
        c = self.config
        large = torch.cat([view.flat()[0] for view in batch.views[:2]])
        hidden = torch.cat([view.flat()[1].hidden for view in batch.views[:2]])  # type: ignore[union-attr]
        if progress.epoch < c.patch_start_epoch:
            hidden = torch.zeros_like(hidden)
        index, weight = hidden_rows(hidden, padded_count([view.hidden for view in batch.views[:2]], hidden.numel()))
        class_targets, patch_targets = self._teach(large, index, weight, progress)

        # the student sees large crops with patches hidden, small ones whole
        tokens = self.encoder(large, replace=PatchMask(hidden, None, None), fill=self.mask_token)
        views = batch.views[2:3] if c.local else []
        small = [self.encoder.prefix(view.flat()[0], self.local_norm)[:, 0] for view in views]
        classes, patches = torch.cat([tokens.prefix[:, 0], *small]), tokens.patches.flatten(0, 1)[index]
        if self.patch_head is None:
            classes, patches = self.head.both(classes, patches)
        else:
            classes, patches = self.head(classes), self.patch_head.patches(patches)

        # class tokens across views, patches within theirs
        targets, student = (rows.unflatten(0, (-1, len(large) // 2)) for rows in (class_targets, classes))
        across, parts = self.objective.compare(student, targets)
        within = self.objective.compare_hidden(patches, patch_targets, weight, len(large))
        loss = c.class_weight * across + c.patch_weight * within
        if c.koleo:
            spread = [koleo(view, neighbours=c.koleo_neighbours) for view in tokens.prefix[:, 0].chunk(2)]
            loss = loss + c.koleo * sum(spread)
        parts = {"class_loss": across.detach(), "patch_loss": within.detach(), **parts}
        if self.gram is not None and (anchored := self.gram(tokens, batch.views[-2:], progress)) is not None:
            loss, parts["gram_loss"] = loss + anchored, anchored.detach()

        first, second = tokens.prefix[:, 0].detach().chunk(2)
        parts |= {"feature_std": feature_std(torch.cat([first, second])), **contrast(first, second)}
        return Output(loss, parts, first)

    @torch.no_grad()
    def _teach(self, large: Tensor, index: Tensor, weight: Tensor, progress: Progress) -> tuple[Tensor, Tensor]:
        """The teacher's targets from whole large crops: of class tokens [2B, K], of listed patches [M, K]."""
        tokens = self.teacher(large)
        classes = self.teacher_head(tokens.prefix[:, 0])

        # the centre of all patches needs their MLP; prototypes, being linear, see the mean of what it makes alone
        head = self.teacher_head if self.teacher_patch_head is None else self.teacher_patch_head
        everything = self.config.targets == "centre" and self.config.patch_centre == "all"
        patches = tokens.patches.flatten(0, 1)
        if self.config.coding_rate is not None:
            return classes, head.patches(patches[index])
        embedded = head.embed(patches if everything else patches[index])
        hidden = head.patch_logits(embedded[index] if everything else embedded)

        epoch, steps_per_epoch = progress.epoch, progress.total_steps / progress.epochs
        temperature = self.temperature.at(epoch, steps_per_epoch)
        patch_temperature = self.patch_temperature.at(epoch - self.config.patch_start_epoch, steps_per_epoch)
        if self.config.targets == "sinkhorn":
            return sinkhorn(classes, temperature), sinkhorn(hidden, patch_temperature, valid=weight > 0)
        self.centre.note(classes, progress.step)
        if everything:
            mean = embedded.float().mean(0, keepdim=True).to(embedded.dtype)
            self.patch_centre.note(head.patch_logits(mean), progress.step)
        else:
            self.patch_centre.note(hidden, progress.step, valid=weight > 0)
        patch_targets = sharpen(hidden, self.patch_centre.value, patch_temperature)
        return sharpen(classes, self.centre.value, temperature), patch_targets

    def _pairs(self) -> list[tuple[nn.Module, nn.Module]]:
        """(follower, followed)."""
        teachers = self.teacher, self.teacher_head, self.teacher_patch_head
        students = self.encoder, self.head, self.patch_head
        return [(t, s) for t, s in zip(teachers, students, strict=True) if t is not None and s is not None]

    def after_step(self, progress: Progress, broken: Tensor | None = None) -> None:
        momentum = cosine(self.config.momentum, 1.0, progress.step / progress.total_steps)
        for follower, followed in self._pairs():
            ema_(follower, followed, momentum, broken)
        if self.gram is not None:
            self.gram.after_step(self.teacher, progress)
        if self.config.targets == "centre" and self.config.coding_rate is None:
            self.centre.update_()
            self.patch_centre.update_()

    def frozen(self, progress: Progress) -> Iterable[nn.Parameter]:
        """The last layers, at first (official `cancel_gradients_last_layer`)."""
        frozen = self.config.frozen_by == "gradient" and progress.epoch < self.config.frozen_epochs
        return self._last_layers() if frozen else ()

    def begins(self, name: str) -> float:
        """Later for the last layers, where their rate is what holds them (DINOv2, official `apply_optim_scheduler`)."""
        last = {id(parameter) for parameter in self._last_layers()} if self.config.frozen_by == "rate" else ()
        return self.config.frozen_epochs if id(self.get_parameter(name)) in last else 0.0

    def _last_layers(self) -> list[nn.Parameter]:
        return [p for head in (self.head, self.patch_head) if head is not None for p in head.prototypes()]

    def batch_statistics(self) -> tuple[str, ...]:
        c, rated = self.config, self.config.coding_rate is not None
        own = {"KoLeo": c.koleo > 0, "the coding rate": rated, "Sinkhorn-Knopp": c.targets == "sinkhorn" and not rated}
        return *(name for name, there in own.items() if there), *super().batch_statistics()

    def clip_groups(self) -> list[list[nn.Parameter]]:
        """The backbone with its mask token, and each head (DINOv2)."""
        heads = [list(head.parameters()) for head in (self.head, self.patch_head) if head is not None]
        local = [] if self.local_norm is None else self.local_norm.parameters()
        return [[*self.encoder.parameters(), self.mask_token, *local], *heads]

    def lr_scale(self, name: str) -> float:
        """Less for lower blocks and the patch embedding (DINOv2)."""
        if not name.startswith(("encoder.", "mask_token")):
            return 1.0
        return layered(self.encoder, name, self.config.layer_decay, self.config.patch_embed_lr)

    def exports(self) -> dict[str, Encoder]:
        return {"teacher": self.teacher, "encoder": self.encoder}

    def symptoms(self) -> list[Symptom]:
        return of_self_distillation(self.config, centred=self.config.targets == "centre")
