"""Batch normalisation over the global batch, on any device and backend."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm, _NormBase

from unlabeled.nn.collectives import gather, sum_over_processes, world
from unlabeled.nn.loss.exact import wide

OWN = ("unlabeled", "torch", "timm")  # packages whose buffers are known


class BatchNorm(nn.BatchNorm1d):
    """Batch normalisation of x [B, D], [B, D, N] or [B, D, H, W] over the images (and pixels) of all processes.

    torch's SyncBatchNorm does the same, on CUDA only, and waits there for the device in every forward pass. Every
    process must have the same number of rows. Only with `affine` it learns a weight and a bias (MoCo v3's last layers
    do not).

    Raises:
        ValueError: in training, the global batch has fewer than two values per feature.
    """

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        if x.numel() // x.shape[1] * world() < 2:
            raise ValueError("batch normalisation needs a batch of at least 2, found 1: raise train.batch_size")
        return super().forward(x) if world() == 1 else self._over_processes(x)

    def _check_input_dim(self, input: Tensor) -> None:
        assert input.ndim in (2, 3, 4), f"expected [B, D], [B, D, N] or [B, D, H, W], found {tuple(input.shape)}"

    def _over_processes(self, x: Tensor) -> Tensor:
        rows = x.numel() // x.shape[1] * world()
        assert self.running_mean is not None and self.running_var is not None
        assert self.momentum is not None and self.num_batches_tracked is not None
        if is_fused(x):
            self.num_batches_tracked.add_(1)
            running = self.running_mean, self.running_var, self.momentum, self.eps
            fused: Tensor = _Fused.apply(x, self.weight, self.bias, *running)
            return fused
        with torch.no_grad():
            moments = torch.var_mean(wide(x), dim=(0, *range(2, x.ndim)), correction=0)
            variances, means = gather(torch.stack(moments).unsqueeze(0)).unbind(1)
            mean = means.mean(0)
            variance = (variances + (means - mean).square()).mean(0)
            self.running_mean.lerp_(mean, self.momentum)
            self.running_var.lerp_(variance * (rows / (rows - 1)), self.momentum)
            self.num_batches_tracked.add_(1)
        normalised: Tensor = _Normalize.apply(x, self.weight, self.bias, mean, (variance + self.eps).rsqrt())
        return normalised


class BatchNorm2d(BatchNorm):
    """Drop-in replacement for `nn.BatchNorm1d`, `nn.BatchNorm2d` and timm's `BatchNormAct2d`, with statistics over all
    processes."""

    def __init__(self, norm: nn.BatchNorm1d | nn.BatchNorm2d) -> None:
        assert norm.track_running_stats and norm.momentum is not None, "a norm without a running mean"
        super().__init__(norm.num_features, affine=norm.affine)
        self.eps, self.momentum, self.training = norm.eps, norm.momentum, norm.training
        self._parameters, self._buffers = norm._parameters, norm._buffers  # taken over
        # timm's BatchNormAct2d
        self.drop: nn.Module = getattr(norm, "drop", nn.Identity())
        self.act: nn.Module = getattr(norm, "act", nn.Identity())

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.drop(super().forward(x)))


def synchronise_(network: nn.Module) -> None:
    """Replace every `BatchNorm1d` and `BatchNorm2d` inside a network by one over the global batch; the state dict stays
    the same."""
    for part in list(network.modules()):
        for name, child in part.named_children():
            if isinstance(child, nn.BatchNorm1d | nn.BatchNorm2d) and not isinstance(child, BatchNorm):
                setattr(part, name, BatchNorm2d(child))


def buffers_differ(network: nn.Module) -> bool:
    """Whether buffers may come to differ between processes: those of code outside this package, and those of torch's
    normalisations, which see the rows of one process alone."""
    return any(
        type(part).__module__.partition(".")[0] not in OWN
        or (isinstance(part, _NormBase) and not isinstance(part, BatchNorm))
        for part in network.modules()
        if any(buffer is not None for buffer in part._buffers.values())
    )


def normalises(network: nn.Module) -> bool:
    """Whether a network's output for an image depends on its batch: it has batch normalisation in training mode."""
    return any(isinstance(part, _BatchNorm) and part.training for part in network.modules())


def is_fused(x: Tensor) -> bool:
    """Whether the device of x has the fused functions of torch's SyncBatchNorm."""
    return x.device.type == "cuda"


class _Fused(torch.autograd.Function):
    """Batch normalisation in two passes over x forward (statistics, normalisation) and two backward, by the functions
    of torch's SyncBatchNorm. Rows are as many on every process, so that nothing is waited for."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor,
        running_var: Tensor,
        momentum: float,
        eps: float,
    ) -> Tensor:
        x = _dense(x)
        means, inverse_stds = gather(torch.stack(torch.batch_norm_stats(x, eps)).unsqueeze(0)).unbind(1)
        rows = x.numel() // x.shape[1]
        running = running_mean, running_var, momentum, eps
        mean, inverse_std = torch.batch_norm_gather_stats(x, means, inverse_stds, *running, rows)
        ctx.save_for_backward(x, weight, mean, inverse_std)
        return torch.batch_norm_elemt(x, weight, bias, mean, inverse_std, eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradient, learns = _dense(gradients[0]), weight is not None
        saved = gradient, x, mean, inverse_std, weight
        *sums, of_weight, of_bias = torch.batch_norm_backward_reduce(*saved, True, learns, learns)
        # the gradient through mean and variance, which depend on the rows of all processes
        by_mean, by_variance = sum_over_processes(torch.stack(sums)).unbind()
        rows = torch.full((1,), x.numel() // x.shape[1] * world(), dtype=torch.int32, device=x.device)
        of_x = torch.batch_norm_backward_elemt(*saved, by_mean, by_variance, rows)
        return of_x, of_weight if learns else None, of_bias if learns else None, None, None, None, None


def _dense(x: Tensor) -> Tensor:
    """The same without gaps, channels last where they are."""
    return x if x.is_contiguous(memory_format=torch.channels_last) else x.contiguous()


class _Normalize(torch.autograd.Function):
    """(x - mean) inverse_std weight + bias, where mean and inverse_std are statistics of x over all processes.

    Ioffe & Szegedy 2015, section 3; saves nothing but x for the backward pass.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, inverse_std: Tensor
    ) -> Tensor:
        ctx.save_for_backward(x, weight, mean, inverse_std)
        normal = _normal(x, mean, inverse_std)
        if weight is not None and bias is not None:
            normal = normal * _column(weight, x) + _column(bias, x)
        return normal.to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, mean, inverse_std = ctx.saved_tensors
        gradient, normal = wide(gradients[0]), _normal(x, mean, inverse_std)
        axes, rows = (0, *range(2, x.ndim)), x.numel() // x.shape[1] * world()
        of_bias, of_weight = gradient.sum(axes), (gradient * normal).sum(axes)

        # the gradient through mean and variance, which depend on the rows of all processes
        by_mean, by_variance = sum_over_processes(torch.stack([of_bias, of_weight])) / rows
        rest = gradient - _column(by_mean, x) - normal * _column(by_variance, x)
        scale = inverse_std if weight is None else inverse_std * weight
        of_x = (rest * _column(scale, x)).to(x.dtype)
        return (of_x, None, None, None, None) if weight is None else (of_x, of_weight, of_bias, None, None)


def _column(values: Tensor, x: Tensor) -> Tensor:
    """View values [D] so that they broadcast over x [B, D, ...]."""
    return values.view(-1, *[1] * (x.ndim - 2))


def _normal(x: Tensor, mean: Tensor, inverse_std: Tensor) -> Tensor:
    return (wide(x) - _column(mean, x)) * _column(inverse_std, x)
