"""SimCLR by stable-pretraining, run by an interpreter that has it: the network of its CIFAR-10 benchmark, plain.

Views, projector and temperature are those of that benchmark. Its rate is for LARS and batches of 256 over 1,000 epochs;
here AdamW with 1e-3, which short runs with small batches stand, and its own warm-up and cosine.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import lightning
import stable_pretraining as spt
import torch
from stable_pretraining import forward
from stable_pretraining.data import transforms
from torch import nn
from torchvision.datasets import ImageFolder


def view(size: int) -> transforms.Compose:
    """One of two alike."""
    return transforms.Compose(
        transforms.RGB(),
        transforms.RandomResizedCrop((size, size)),
        transforms.RandomHorizontalFlip(p=0.5),
        transforms.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
        transforms.RandomGrayscale(p=0.2),
        transforms.ToImage(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225]),
    )


def projector(width: int) -> nn.Module:
    """Three layers."""
    inner = (nn.Linear(width, 2048), nn.BatchNorm1d(2048), nn.ReLU(), nn.Linear(2048, 2048), nn.BatchNorm1d(2048))
    return nn.Sequential(*inner, nn.ReLU(), nn.Linear(2048, 256))


def main() -> None:
    """Train, then write the weights of the backbone."""
    parser = argparse.ArgumentParser()
    parser.add_argument("pictures")
    parser.add_argument("out", type=Path)
    parser.add_argument("--network", required=True)
    for name in ("size", "batch", "epochs", "seed"):
        parser.add_argument(f"--{name}", type=int, required=True)
    told = parser.parse_args()
    lightning.seed_everything(told.seed)
    views = transforms.MultiViewTransform([view(told.size), view(told.size)])
    train = spt.data.FromTorchDataset(ImageFolder(told.pictures), names=["image", "label"], transform=views)
    loader = torch.utils.data.DataLoader(train, batch_size=told.batch, shuffle=True, num_workers=0, drop_last=True)
    backbone = spt.backbone.from_torchvision(told.network, low_resolution=False)
    width = backbone(torch.zeros(2, 3, told.size, told.size)).shape[1]
    module = spt.Module(
        backbone=backbone,
        projector=projector(width),
        forward=forward.simclr,
        simclr_loss=spt.losses.NTXEntLoss(temperature=0.5),
        optim={
            "optimizer": {"type": "AdamW", "lr": 1e-3, "weight_decay": 0.05},
            "scheduler": {"type": "LinearWarmupCosineAnnealing"},
            "interval": "step",
        },
    )
    trainer = lightning.Trainer(
        max_epochs=told.epochs, accelerator="cpu", logger=False, enable_checkpointing=False, num_sanity_val_steps=0
    )
    spt.Manager(trainer=trainer, module=module, data=spt.data.DataModule(train=loader))()
    told.out.mkdir(parents=True, exist_ok=True)
    torch.save(backbone.state_dict(), told.out / "backbone.pt")


if __name__ == "__main__":
    main()
