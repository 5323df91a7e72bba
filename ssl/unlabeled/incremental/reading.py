"""What a network knows at the end of a task: features, logits and importances of the task's images."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

from unlabeled.data.batch.loader import Normalize, make_loader
from unlabeled.data.label.subset import Part
from unlabeled.evaluate.features import CentreCrops, stack_centred
from unlabeled.incremental.fisher import CHUNK, chunk_importances, importances
from unlabeled.incremental.method import Increment
from unlabeled.incremental.strategy import After
from unlabeled.processes import gather_objects, together
from unlabeled.transfer.predict import Predict


def read(method: Increment, predict: Predict, source: Part) -> After:
    """Read a task's images with the crops of evaluation. All processes must call it, and get the same."""

    def side_by_side(images: Tensor) -> Tensor:
        seen = method.seen(images)
        return torch.cat([seen.features.float(), seen.logits.float()], dim=1)

    found = predict(side_by_side, method, source)
    width = found.x.shape[1] - method.task.classes
    assert found.numbers is not None
    numbers = torch.from_numpy(source.indices)[found.numbers]
    return After(
        found.x[:, :width].double(),
        found.y,
        found.x[:, width:],
        numbers,
        {name: tensor.detach() for name, tensor in method.learning().items()},
        lambda: mirrored(method, predict, source),
        partial(_importances, method, predict, source, found.numbers.numpy()),
    )


def mirrored(method: Increment, predict: Predict, source: Part) -> Tensor:
    """Features [n, D] float64 of the images flipped."""
    return predict(lambda images: method.seen(images.flip(-1)).features.float(), method, source).x.double()


class Logits(nn.Module):
    """Images to logits, for gradients by the names of the method."""

    def __init__(self, method: Increment) -> None:
        super().__init__()
        self.method = method

    def forward(self, images: Tensor) -> Tensor:
        return self.method.seen(images).logits


def _importances(method: Increment, predict: Predict, source: Part, numbers: np.ndarray) -> dict[str, Tensor]:
    """Chunks take turns among the processes, and their sums are added in the order of their numbers."""
    group, device = predict.accelerator, predict.accelerator.device
    dataset = CentreCrops(source, numbers, predict.shape, predict.crop_pct, predict.interpolation)
    chunks = [range(first, min(first + CHUNK, len(numbers))) for first in range(0, len(numbers), CHUNK)]
    own = chunks[group.process_index :: group.num_processes]
    how = {"workers": predict.workers, "device": device, "timeout": predict.timeout, "collate": stack_centred}
    normalize, network = Normalize(predict.mean, predict.std, device), Logits(method)
    sums: list[Mapping[str, Tensor]] = []
    with together():
        for pixels, _, labels, _ in make_loader(dataset, [list(chunk) for chunk in own], **how):
            images = normalize(pixels.to(device))
            found = chunk_importances(network, images, torch.tensor(labels, device=device))
            sums.append({method.known_as(name.removeprefix("method.")): one.cpu() for name, one in found.items()})
    everybody = gather_objects(sums)
    in_order = [everybody[i % len(everybody)][i // len(everybody)] for i in range(len(chunks))]
    return importances(in_order, len(numbers))
