r"""
08 · Where the weights come from.

Everything before this file can answer; nothing in it knows anything yet. Here a network is shown pictures with
captions until it does. The whole of training is one line repeated, and the rest is care:

    picture x0 ──┐
    a timestep t ┼─► x_t ─► model(x_t, t, caption or, one time in seven, nothing) ─► loss ─► gradient ─► AdamW
    noise ε ─────┘                                                                             │
                                                      EMA: the average of the last weights ◄───┘  what is kept

The data are the little world's (01, 04): drawn as they are needed, never the same twice, with a truth that
can be checked. A judge, a small classifier of real pictures, is trained here too; 09 uses it to say how
many captions came out right. The released and the paper's sizes stand in PRESETS beside the tiny one and go
through the same loop.

It adds to 07: gradients. It leaves out: photographs, several GPUs.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); Improved DDPM, Nichol & Dhariwal 2021, arXiv
2102.09672 (section 3: the hybrid loss); captions dropped for guidance: Ho & Salimans 2022, arXiv 2207.12598
(section 3.2, algorithm 1); AdamW: Loshchilov & Hutter 2017, arXiv 1711.05101.

    python 08_train.py              the base model, 16 pixels, on single things
    python 08_train.py upsampler    16 -> 64 pixels
    python 08_train.py judge        the classifier of real pictures
"""
import argparse
import json
import math
import os
import random
import re
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

tokenizer = import_module("01_tokenizer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
upsample = import_module("07_upsample")

OUTPUTS = Path(__file__).parent / "outputs"


# --- Presets: what there is to train, and how --------------------------------------------------------

@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults of the large presets are the papers' [GLIDE section 4; ADM appendix]."""

    steps: int = 2_500_000
    batch: int = 2048
    lr: float = 1e-4
    warmup: int = 0
    decay: bool = False         # cosine to zero at the end; the papers keep the rate constant
    ema: float = 0.9999
    drop: float = 0.2           # captions replaced by the empty one
    crop: int | None = None     # train on squares of this many pixels (the U-Net is convolutional)


@dataclass(frozen=True)
class ModelPreset:
    """One trainable model: its network, its process, its picture size and its training."""

    unet: unet.UNetConfig
    diffusion: diffusion.DiffusionConfig
    size: int
    train: TrainConfig


def _preset(name, sizes, train, upsampler_train):
    """The base model and the upsampler of a preset, and their inpainting variants with four more channels."""
    def models(part, size, train):
        net = unet.UNET[name + part]
        yield "", ModelPreset(net, diffusion.DIFFUSION[name + part], size, train)
        yield "inpaint", ModelPreset(replace(net, in_channels=net.in_channels + 4),
                                     diffusion.DIFFUSION[name + part], size, train)

    base = {kind or "base": m for kind, m in models("", sizes[0], train)}
    large = {f"{kind}-upsampler".strip("-"): m for kind, m in models("-upsampler", sizes[1], upsampler_train)}
    return base | large


LARGE = (TrainConfig(), TrainConfig(steps=1_600_000, batch=512))
PRESETS = {
    "tiny": _preset("tiny", (16, 64),
                    TrainConfig(1800, 64, 1e-3, 100, True, 0.999, 0.15),
                    TrainConfig(4000, 32, 1e-3, 100, True, 0.999, 0.15, crop=32)),
    "filtered": _preset("filtered", (64, 256), *LARGE),
    "paper": _preset("paper", (64, 256), *LARGE),
}


# --- Data --------------------------------------------------------------------------------------------

def encode(texts, tok, context, device="cpu"):
    """Captions to tokens [B, K] and mask [B, K]."""
    ids, masks = zip(*(tok.pad(tok.encode(text), context) for text in texts))
    return torch.tensor(ids, device=device), torch.tensor(masks, device=device)


def world_batch(preset, tok, *, batch, difficulty, seed):
    """One batch of the little world for a model: x0 [B, 3, S, S] and its conditioning. Same seed, same batch.

    The upsampler's low_res is the area-reduced picture, rounded to bytes, and both are cut to the same crop.
    """
    pictures, captions, _ = diffusion.world_pictures(batch, seed=seed, difficulty=difficulty)
    tokens, mask = encode(captions, tok, preset.unet.text.context)
    x0, cond = diffusion.reduce(pictures, preset.size), {"tokens": tokens, "mask": mask}
    if preset.unet.in_channels > 3:
        low_res = upsample.round_to_bytes(diffusion.reduce(pictures, preset.size // upsample.FACTOR))
        x0, cond["low_res"] = crop_both(x0, low_res, preset.train.crop or preset.size, random.Random(seed))
    return x0, cond


def crop_both(x0, low_res, size, rng):
    """The same square out of a picture and its small version, a different one for every example."""
    small, free = size // upsample.FACTOR, low_res.shape[-1] - size // upsample.FACTOR
    spots = [(rng.randint(0, free), rng.randint(0, free)) for _ in x0]
    low = torch.stack([p[:, r:r + small, c:c + small] for p, (r, c) in zip(low_res, spots)])
    f = upsample.FACTOR
    high = torch.stack([p[:, f * r:f * r + size, f * c:f * c + size] for p, (r, c) in zip(x0, spots)])
    return high, low


# --- The loop ----------------------------------------------------------------------------------------

def has_fast_bf16(device):
    """Whether 16-bit arithmetic is worth it here: on GPUs that know bfloat16 and CPUs with instructions for it."""
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and "avx512_bf16" in cpu_flags()


@lru_cache
def cpu_flags():
    try:
        return set(re.search(r"^(?:flags|Features)\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    except (OSError, TypeError):   # not Linux: we do not know, so no
        return set()


def in_bf16(model, device):
    """A denoiser that computes in bfloat16 where that is fast. Weights, gradients and the answer stay float32."""
    if not has_fast_bf16(device):
        return model

    def denoiser(x, t, **cond):
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return model(x, t, **cond)

    def prepare(**cond):
        with torch.autocast(torch.device(device).type, torch.bfloat16):
            return diffusion.prepare(model, **cond)

    denoiser.prepare = prepare
    return denoiser


def learning_rate(step, config):
    """A slow start, while Adam's averages fill; then constant, or down a half cosine to zero."""
    rate = config.lr * min(1, (step + 1) / (config.warmup + 1))
    if config.decay:
        rate *= 0.5 * (1 + math.cos(math.pi * step / config.steps))
    return rate


class Trainer:
    """A model in training: network, average, optimiser, and how far it has come.

    Every random number of step n comes from (seed, n), so a run that is continued from a checkpoint sees what
    the undisturbed one would have seen.
    """

    def __init__(self, preset, *, difficulty="single", seed=0, device="cpu"):
        torch.manual_seed(seed)   # the first weights
        self.preset, self.difficulty, self.seed, self.device, self.step = preset, difficulty, seed, device, 0
        self.tok = tokenizer.world_tokenizer()
        self.model = unet.UNet(preset.unet).to(device)
        self.ema = unet.UNet(preset.unet).to(device).requires_grad_(False)
        self.ema.load_state_dict(self.model.state_dict())
        self.process = diffusion.Diffusion.of(preset.diffusion)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), preset.train.lr, fused=True, weight_decay=0.0)
        self.denoiser = upsample.denoiser_of(in_bf16(self.model, device), preset.unet, preset.diffusion)

    def advance(self):
        """One step: draw, guess, compare, correct. -> the batch's mean loss."""
        config = self.preset.train
        seed = self.seed * 10_000_019 + self.step
        x0, cond = world_batch(self.preset, self.tok, batch=config.batch, difficulty=self.difficulty, seed=seed)
        g = torch.Generator().manual_seed(seed)
        t = torch.randint(len(self.process.timesteps), (len(x0),), generator=g)   # every timestep, 0 and 999 too
        noise = torch.randn(x0.shape, generator=g)
        # Caption by caption, some are dropped: the network learns both halves of guidance (05) at once.
        cond["mask"] &= torch.rand(len(x0), 1, generator=g) >= config.drop
        x0, noise = x0.to(self.device), noise.to(self.device)
        cond = {name: value.to(self.device) for name, value in cond.items()}

        loss = self.process.loss(self.denoiser, x0, t, noise, weigh_v=self.preset.diffusion.predicts == "v", **cond)
        loss.mean().backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate(self.step, config)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        self._average()
        return loss.mean().item()

    @torch.no_grad()
    def _average(self):
        """EMA: the average forgets slowly, but at first, when there is little worth remembering, faster."""
        decay = min(self.preset.train.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)
