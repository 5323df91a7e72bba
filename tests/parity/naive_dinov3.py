"""A second set of numbers for DINOv3's losses, computed step by step in double precision: see `naive.py`."""

from __future__ import annotations

import torch
from parity.naive import Numbers, Set, Tensors, gradients


def dinov3(seed: int = 0) -> Set:
    draw, batch, patches, width, prototypes, small = Numbers(seed), 3, 5, 7, 22, 2
    wanted, temperature, own_temperature, neighbours = Tensors(), 0.08, 0.2, 2
    tensors = {
        "student_patches": draw(batch, patches, width),
        "teacher_patches": draw(batch, patches, width),
        "features": draw(2 * batch, width),
        "teacher_logits": draw(2 * batch, prototypes),
        "student_global_logits": draw(2, batch, prototypes),
        "student_local_logits": draw(small, batch, prototypes),
    }
    tensors = {name: tensor.requires_grad_() for name, tensor in tensors.items()}

    # squared differences of similarities, a pair at a time
    for name in ("image", "batch", "image_no_negatives", "image_no_teacher_negatives", "image_unnormalised"):
        rows = [tensors["student_patches"], tensors["teacher_patches"].detach()]
        if not name.endswith("unnormalised"):
            rows = [part / part.norm(dim=2, keepdim=True) for part in rows]
        if name == "batch":
            rows = [part.flatten(0, 1)[None] for part in rows]
        terms = []
        for own, aim in zip(*rows, strict=True):
            for i in range(len(own)):
                for j in range(len(own)):
                    mine, theirs = own[i] @ own[j], aim[i] @ aim[j]
                    if name.endswith("negatives"):
                        theirs = theirs.clamp_min(0)
                    terms.append(((mine.clamp_min(0) if name.endswith("no_negatives") else mine) - theirs) ** 2)
        wanted[f"gram_{name}"] = torch.stack(terms).mean()

    # the nearest among the others, each counted
    unit, terms = tensors["features"] / tensors["features"].norm(dim=1, keepdim=True), []
    for i, x in enumerate(unit):
        others = sorted(
            (other for other in range(len(unit)) if other != i), key=lambda j: -float((x @ unit[j]).detach())
        )
        terms += [-(((x - unit[j] + 1e-8) ** 2).sum().sqrt() + 1e-8).log() for j in others[:neighbours]]
    wanted[f"koleo_top{neighbours}"] = torch.stack(terms).mean()

    shares = (tensors["teacher_logits"].detach() / temperature).exp()
    for _ in range(3):
        shares = shares / shares.sum(0) / prototypes
        shares = shares / shares.sum(1, keepdim=True) / len(shares)
    targets = (shares * len(shares)).view(2, batch, prototypes)
    for name in ("global_ignore_diagonal", "global", "local"):
        student = tensors[f"student_{name.partition('_')[0]}_logits"]
        views = [(i, j) for i in range(2) for j in range(len(student)) if i != j or "diagonal" not in name]
        rows = [-(targets[i] * (student[j] / own_temperature).log_softmax(1)).sum(1).mean() for i, j in views]
        wanted[f"dino_{name}"] = torch.stack(rows).mean()

    of = {"gram": "student_patches", "koleo": "features", "dino_g": "student_global_logits"}
    found = {f"in/{name}": tensor for name, tensor in tensors.items()} | {"out/sinkhorn": targets.flatten(0, 1)}
    for name, loss in wanted.items():
        source = tensors[next((given for begin, given in of.items() if name.startswith(begin)), "student_local_logits")]
        found |= {f"out/{name}": loss, f"grad/{name}": gradients(loss, {"it": source})["it"]}
    settings = {"teacher_temp": temperature, "student_temp": own_temperature, "topk": neighbours}
    return Set("losses.safetensors", found, settings)
