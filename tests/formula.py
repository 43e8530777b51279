"""The formula behind the golden vectors: weights, inputs and tokens out of nothing but their names.

`uniform(name, shape)` runs splitmix64 over (crc32(name) << 32) + i, so every value can be made again anywhere.
"""
import json
import zlib
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

GOLDEN = Path(__file__).parent / "golden"
CONTEXT = {"a": (16, 96), "b": (24, 128)}   # model -> text context, vocabulary


def uniform(name, shape, piece=1 << 17):
    """Values in [-1, 1), float32, row-major into shape; made in pieces that fit a processor's cache."""
    values = np.empty(int(np.prod(shape)), np.float32)
    start = np.uint64(zlib.crc32(name.encode())) << np.uint64(32)
    for i in range(0, len(values), piece):
        # unsigned arithmetic wraps, as splitmix64 wants
        z = start + np.arange(i, min(i + piece, len(values)), dtype=np.uint64) + np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z = z ^ (z >> np.uint64(31))
        values[i:i + piece] = (z >> np.uint64(40)).astype(np.float64) / 2 ** 23 - 1
    return values.reshape(shape)


def weight(key, shape):
    u, last = uniform(key, shape), key.rpartition(".")[2]
    if "embedding" in key or last in ("w_pos", "w_voc", "w_t"):
        return torch.from_numpy(0.3 * u)
    if last in ("bias", "b"):
        return torch.from_numpy(0.1 * u)
    if len(shape) == 1:
        return torch.from_numpy(1 + 0.1 * u)
    return torch.from_numpy(u * np.float32(np.sqrt(3 / np.prod(shape[1:]))))


def inp(name, *shape):
    return torch.from_numpy(uniform(name, shape) * np.float32(np.sqrt(3)))


def toks(name, batch, length, vocab):
    return torch.from_numpy(((uniform(name, (batch, length)).astype(np.float64) + 1) / 2 * vocab).astype(np.int64))


def conditioning(kind, model):
    """Tokens and a mixed mask (all, five, none), and what the kind asks for beside them."""
    length, vocab = CONTEXT[model]
    mask = torch.ones(3, length, dtype=torch.bool)
    mask[1, 5:], mask[2] = False, False
    cond = {"tokens": toks("tokens", 3, length, vocab), "mask": mask}
    if "upsample" in kind:
        cond["low_res"] = inp("low_res", 3, 3, 4, 4).clamp(-1, 1)
    if "inpaint" in kind:
        cond["inpaint_image"] = inp("inpaint_image", 3, 3, 16, 16).clamp(-1, 1)
        cond["inpaint_mask"] = known_mask()
    return cond


def known_mask():
    mask = torch.ones(3, 1, 16, 16)
    mask[:, :, 4:8, 4:] = 0
    return mask


@lru_cache
def state_dict(kind, model):
    layout = json.loads((GOLDEN / "layouts_small.json").read_text())[f"{kind}.{model}"]
    return {key: weight(key, tuple(shape)) for key, shape in layout.items()}


@lru_cache
def denoiser(kind, model="a"):
    return import_module("lessons.12_released").load_openai(state_dict(kind, model))


def golden(key, file="small.npz"):
    with np.load(GOLDEN / file) as answers:
        return torch.from_numpy(np.array(answers[key]))


def distance(answer, expected):
    """How far off each example is, as a share of its largest value, or of 1: a large row must not hide a small one."""
    assert answer.shape == expected.shape, f"shape {tuple(answer.shape)}, expected {tuple(expected.shape)}"
    answer, expected = answer.double().reshape(len(expected), -1), expected.double().reshape(len(expected), -1)
    return (answer - expected).abs().amax(1) / expected.abs().amax(1).clamp(min=1)


def agree(answer, expected, tolerance):
    off = distance(answer, expected)
    assert off.max() <= tolerance, f"differs from the released code by {off.tolist()}, {tolerance} allowed"
