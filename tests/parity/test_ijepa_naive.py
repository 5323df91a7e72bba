"""I-JEPA's parity tests over another set, made here step by step: several contexts, a grid that is not square."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import torch
from parity.test_sets import run
from safetensors.numpy import save_file

from unlabeled.nn.positions import sincos_2d
from unlabeled.pretrain.methods.ijepa import regression

Arrays = dict[str, np.ndarray]
GRID, PATCH, BATCH = (2, 4), 4, 2
ENCODER, PREDICTOR, HEADS, HIDDEN = 16, 8, 2, 12
CONTEXTS = np.array([[[7, 0, 2], [1, 5, 6]], [[0, 2, 4], [3, 1, 7]]])
TARGETS = np.array([[[1, 3], [0, 2]], [[4, 5], [3, 7]], [[3, 6], [4, 2]]])


def linear(x: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def norm(x: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)
    return scaled * weights[f"{name}.weight"] + weights[f"{name}.bias"]


def block(x: np.ndarray, weights: Arrays, name: str) -> np.ndarray:
    """One block on a sequence [L, D], a query at a time."""
    qkv = linear(norm(x, weights, f"{name}.norm1"), weights, f"{name}.attn.qkv")
    query, key, value = (part.reshape(len(x), HEADS, -1) for part in np.split(qkv, 3, axis=1))
    mixed = np.zeros_like(query)
    for head in range(HEADS):
        for place in range(len(x)):
            logits = key[:, head] @ query[place, head] / math.sqrt(query.shape[2])
            share = np.exp(logits - logits.max())
            mixed[place, head] = share / share.sum() @ value[:, head]
    x = x + linear(mixed.reshape(len(x), -1), weights, f"{name}.attn.proj")
    inner = linear(norm(x, weights, f"{name}.norm2"), weights, f"{name}.mlp.fc1")
    inner = inner * 0.5 * (1 + np.vectorize(math.erf)(inner / math.sqrt(2)))
    return x + linear(inner, weights, f"{name}.mlp.fc2")


def encoded(image: np.ndarray, weights: Arrays, kept: np.ndarray) -> np.ndarray:
    """Tokens of the patches that are kept of one image [C, H, W]."""
    rows = []
    for number in kept:
        top, left = number // GRID[1] * PATCH, number % GRID[1] * PATCH
        pixels = image[:, top : top + PATCH, left : left + PATCH].reshape(-1)
        token = weights["patch_embed.proj.weight"].reshape(ENCODER, -1) @ pixels + weights["patch_embed.proj.bias"]
        rows.append(token + weights["pos_embed"][0, number])
    return norm(block(np.stack(rows), weights, "blocks.0"), weights, "norm")


def predicted(tokens: np.ndarray, weights: Arrays, kept: np.ndarray, target: np.ndarray) -> np.ndarray:
    """The predictor on one context and one target."""
    table = weights["predictor_pos_embed"][0]
    context = linear(tokens, weights, "predictor_embed") + table[kept]
    x = np.concatenate([context, weights["mask_token"][0] + table[target]])
    x = block(block(x, weights, "predictor_blocks.0"), weights, "predictor_blocks.1")
    return linear(norm(x, weights, "predictor_norm")[len(kept) :], weights, "predictor_proj")


def drawn(rng: np.random.Generator, width: int, blocks: list[str]) -> Arrays:
    """Random weights of blocks."""
    shapes: dict[str, tuple[int, ...]] = {}
    for name in blocks:
        for part, size in (("norm1", (width,)), ("norm2", (width,)), ("attn.qkv", (3 * width, width))):
            shapes |= {f"{name}.{part}.weight": size, f"{name}.{part}.bias": size[:1]}
        for part, size in (("attn.proj", (width, width)), ("mlp.fc1", (HIDDEN, width)), ("mlp.fc2", (width, HIDDEN))):
            shapes |= {f"{name}.{part}.weight": size, f"{name}.{part}.bias": size[:1]}
    return {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def more(rng: np.random.Generator, **shapes: tuple[int, ...]) -> Arrays:
    return {name.replace("__", "."): rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in shapes.items()}


def vit(rng: np.random.Generator) -> Arrays:
    own = more(rng, norm__weight=(ENCODER,), norm__bias=(ENCODER,), patch_embed__proj__bias=(ENCODER,))
    own |= more(rng, patch_embed__proj__weight=(ENCODER, 3, PATCH, PATCH))
    return {**drawn(rng, ENCODER, ["blocks.0"]), **own, "pos_embed": sincos_2d(ENCODER, GRID).float()[None].numpy()}


def narrow(rng: np.random.Generator) -> Arrays:
    width = PREDICTOR
    own = more(rng, predictor_embed__weight=(width, ENCODER), predictor_embed__bias=(width,), mask_token=(1, 1, width))
    own |= more(rng, predictor_norm__weight=(width,), predictor_norm__bias=(width,))
    own |= more(rng, predictor_proj__weight=(ENCODER, width), predictor_proj__bias=(ENCODER,))
    table = {"predictor_pos_embed": sincos_2d(width, GRID).float()[None].numpy()}
    return {**drawn(rng, width, ["predictor_blocks.0", "predictor_blocks.1"]), **own, **table}


def numbers() -> Arrays:
    """The set, computed in double precision, kept in single."""
    rng = np.random.default_rng(0)
    encoder, teacher, predictor = vit(rng), vit(rng), narrow(rng)
    images = rng.normal(size=(BATCH, 3, GRID[0] * PATCH, GRID[1] * PATCH)).astype(np.float32)
    precise = [{name: array.astype(np.float64) for name, array in one.items()} for one in (encoder, teacher, predictor)]
    everything = np.arange(GRID[0] * GRID[1])
    whole = [encoded(image.astype(np.float64), precise[1], everything) for image in images]
    context, prediction, targets = [], [], []
    for own in CONTEXTS:
        context += [encoded(images[row].astype(np.float64), precise[0], kept) for row, kept in enumerate(own)]
    for target in TARGETS:
        for number, own in enumerate(CONTEXTS):
            for row, kept in enumerate(own):
                tokens = context[number * BATCH + row]
                prediction.append(predicted(tokens, precise[2], kept, target[row]))
                picked = whole[row][target[row]]
                centred = picked - picked.mean(1, keepdims=True)
                targets.append(centred / np.sqrt((centred**2).mean(1, keepdims=True) + 1e-5))
    error = np.abs(np.stack(prediction) - np.stack(targets))
    loss = np.where(error < 1, error**2 / 2, error - 0.5).mean()
    found = {"context_tokens": context, "target_tokens": whole, "prediction": prediction, "targets": targets}
    return {
        "in/images": images,
        **{f"in/mask_enc{i}": own for i, own in enumerate(CONTEXTS)},
        **{f"in/mask_pred{i}": own for i, own in enumerate(TARGETS)},
        **{f"out/{name}": np.stack(values).astype(np.float32) for name, values in found.items()},
        "out/loss": np.array(loss, dtype=np.float32),
        **{f"sd_encoder/{name}": array for name, array in encoder.items()},
        **{f"sd_target/{name}": array for name, array in teacher.items()},
        **{f"sd_predictor/{name}": array for name, array in predictor.items()},
    }


def test_the_parity_tests_pass_on_numbers_made_step_by_step(tmp_path: Path) -> None:
    folder = tmp_path / "ijepa"
    folder.mkdir()
    settings = {"n_heads": HEADS}
    save_file(numbers(), folder / "model.safetensors", {"options": json.dumps(settings)})
    chosen = "tokens or predictions or loss or positions"
    assert run(tmp_path, str(Path(__file__).parent / "test_ijepa.py"), "-k", chosen) == (0, set())

    # and fail on others
    broken = numbers()
    broken["out/loss"] = np.array(broken["out/loss"] * np.float32(1.001))
    (tmp_path / "broken" / "ijepa").mkdir(parents=True)
    save_file(broken, tmp_path / "broken" / "ijepa" / "model.safetensors", {"options": json.dumps(settings)})
    status, failed = run(tmp_path / "broken", str(Path(__file__).parent / "test_ijepa.py"), "-k", chosen)
    assert (status, failed) == (1, {"test_loss_and_gradients"})


def test_smooth_l1_of_a_zero_prediction() -> None:
    """Against normalised targets, as published formulas have it: about 0.425."""
    targets = torch.randn(2000, 64, generator=torch.Generator().manual_seed(0))
    loss, _ = regression(torch.zeros_like(targets), torch.nn.functional.layer_norm(targets, (64,)))
    assert abs(loss.item() - 0.425) < 0.01
