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
many captions came out right. So is the noised CLIP of 05, which guides and reranks. The released and the paper's
sizes stand in PRESETS beside the tiny one and go through the same loop, with a person's own pictures (--data), on
one processor or many GPUs (torchrun); --plan says beforehand what that takes.

It adds to 07: gradients. Read it down to the line that ends the method; what is below makes a run that lasts: files
of strangers, checkpoints, signals, the bill.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); Improved DDPM, Nichol & Dhariwal 2021, arXiv
2102.09672 (section 3: the hybrid loss); captions dropped for guidance: Ho & Salimans 2022, arXiv 2207.12598
(section 3.2, algorithm 1); AdamW: Loshchilov & Hutter 2017, arXiv 1711.05101; [C] CLIP, Radford et al. 2021,
arXiv 2103.00020 (section 2.3, figure 3).

    python 08_train.py              the base model, 16 pixels, single things: about 13 minutes on two cores
                                    --world full --start WEIGHTS --steps 7500: pairs and counts too, 42 minutes
    python 08_train.py upsampler    16 -> 64 pixels, on squares of 32: about 11 minutes, and then, because norms and
                                    attention meet other statistics on whole pictures, some minutes on those:
                                    upsampler --start outputs/train-upsampler/weights.pt --crop 64 --batch 8 --lr 5e-4
    python 08_train.py inpaint      lessons/weights/base.pt, or --start FILE, learns to look at what is known, ten
                                    minutes on one core; inpaint-upsampler: the same of upsampler.pt, on whole
                                    pictures
    python 08_train.py judge        the classifier of real pictures: about 2 minutes
    python 08_train.py clip         the noised CLIP, a quarter of an hour; how often it finds a picture's own caption
                                    among 100, at ten noise levels: matching.png
    python 08_train.py base --preset paper --plan --gpus 64          bytes, FLOP and days, in seconds
    torchrun --nproc-per-node 8 08_train.py base --preset paper --shard --recompute --data "shards/{0000..9999}.tar"

Each prints one line of progress (step, loss, pictures a second, share of the peak, time left) and leaves weights, a
grid of samples, the loss by step and by timestep and its last checkpoints in outputs/; --resume goes on where a run
was stopped.
"""
import argparse
import csv
import glob
import hashlib
import io
import json
import math
import os
import random
import re
import shutil
import signal
import sys
import tarfile
import threading
import time
import unicodedata
import warnings
from collections import Counter
from contextlib import closing, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import lru_cache, partial
from importlib import import_module
from itertools import groupby, islice
from pathlib import Path
from unittest import mock

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

tokenizer = import_module("01_tokenizer")
transformer = import_module("02_transformer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
inpaint = import_module("06_inpaint")
upsample = import_module("07_upsample")

OUTPUTS = Path(__file__).parent / "outputs"


# --- Presets: what there is to train, and how --------------------------------------------------------

# A preset is a table of choices and no code: the same loop trains all of them. The large ones hold the papers'
# numbers, so that one sees what those weights took: 2.5 million steps of 2,048 pictures are 5 billion pictures for the
# base model alone. The tiny base model sees 2,700 × 64 = 172,800, of a world that is that much smaller; what the
# tiny presets do otherwise (a larger rate, warm-up and decay, weights of the loss) is for getting there in minutes.
@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults of the large presets are the papers' [GLIDE section 4; ADM appendix].

    steps counts corrections of the weights, batch the pictures that each of them looks at; rates are Adam's. A field
    is here only if some preset needs another value of it.
    """

    steps: int = 2_500_000
    batch: int = 2048
    lr: float = 1e-4
    text_lr: float = 1e-4       # the text encoder's own; see `Trainer`
    warmup: int = 0
    decay: bool = False         # cosine to zero at the end; the papers keep the rate constant
    ema: float = 0.9999
    drop: float = 0.2           # captions replaced by the empty one
    weighting: str = "eps"      # of the timesteps, see `loss_weights`
    crop: int | None = None     # train on squares of this many pixels (the U-Net is convolutional)
    noisy: float = 0.0          # share of a batch that is drawn from the noisiest timesteps alone
    plain_first: bool = False   # pairs are said one way first, see `plain_share`
    freeze: tuple[str, ...] = ()    # parts of the network that stay as they are


@dataclass(frozen=True)
class ModelPreset:
    """One trainable model: its network, its process, its picture size and its training."""

    network: unet.UNetConfig | guidance.CLIPConfig
    diffusion: diffusion.DiffusionConfig
    size: int
    train: TrainConfig

    @property
    def enlarges(self):
        """Whether a small picture is given, on three more channels (07)."""
        return self.network.in_channels in (6, 10)

    @property
    def inpaints(self):
        """Whether a part of the picture is given, on four more channels (06)."""
        return self.network.in_channels in (7, 10)


def _preset(name, sizes, train, upsampler_train, *, tuning=({}, {})):
    """The models of a preset: base, upsampler, their inpainting variants with four more channels, and a noised
    CLIP. (A CLIP is two files when released: with it, a preset has all six.)

    tuning  what is different when the base model and the upsampler are fine-tuned for inpainting
    """
    def models(part, size, train, tuning):
        net = unet.UNET[name + part]
        yield "", ModelPreset(net, diffusion.DIFFUSION[name + part], size, train)
        yield "inpaint", ModelPreset(replace(net, in_channels=net.in_channels + 4),
                                     diffusion.DIFFUSION[name + part], size, replace(train, **tuning))

    base = {kind or "base": m for kind, m in models("", sizes[0], train, tuning[0])}
    large = {f"{kind}-upsampler".strip("-"): m for kind, m in models("-upsampler", sizes[1], upsampler_train, tuning[1])}
    return base | large | {"clip": ModelPreset(guidance.CLIP[name], diffusion.DIFFUSION[name], sizes[0], train)}


# GLIDE's base model and upsampler. Inpainting goes through the same numbers, from a trained model on (--start).
LARGE = (TrainConfig(), TrainConfig(steps=1_600_000, batch=512))
# Both rates a quarter of what they were: nothing that was learned is to be lost. Words mean what they meant, and how
# the way up makes a picture of what was understood does not change either: only what looks at the picture learns, and
# the file is a third as large (03). The upsampler has learned on squares, then on whole pictures, where norms and
# attention meet other statistics; on squares it would forget those again.
LOOKING = dict(steps=1200, lr=5e-4, text_lr=2.5e-5, freeze=("text", "pool", "up"))
TINY_TUNING = LOOKING, dict(LOOKING, batch=8, crop=None)
PRESETS = {
    "tiny": _preset("tiny", (16, 64),
                    TrainConfig(2700, 64, 2e-3, warmup=50, decay=True, ema=0.999, drop=0.15, weighting="middle"),
                    TrainConfig(3600, 32, 2e-3, warmup=50, decay=True, ema=0.999, drop=0.15, weighting="v", crop=32),
                    tuning=TINY_TUNING),
    "filtered": _preset("filtered", (64, 256), *LARGE),
    "paper": _preset("paper", (64, 256), *LARGE),
}
# The tiny CLIP's own way: no caption is dropped, and all of it learns alike.
PRESETS["tiny"]["clip"] = replace(PRESETS["tiny"]["clip"], train=TrainConfig(
    5000, 256, 2e-3, 2e-3, warmup=100, decay=True, ema=0.999, drop=0.0))

# What the full world takes beyond the single one: see `plain_share`, which tells why. Fine-tuning begins with a text
# encoder that has learned all that.
FULL_WORLD = {"base": {"text_lr": 1e-3, "weighting": "late", "noisy": 0.5, "plain_first": True},
              "inpaint": {"weighting": "late", "noisy": 0.5}}


# --- Data --------------------------------------------------------------------------------------------

# A batch is made from its number and nothing else: the seed decides what is in the pictures, how it is said, what is
# masked and which squares are cut out. Nothing is stored, no picture comes twice, and a batch that made trouble can be
# made again. The scene is drawn once, at 64 pixels; what a model is to draw and what it is shown are both reduced
# from that, so a small picture is exactly what its large one reduces to.
def dice(*names):
    """Random numbers that belong to these names: what one example of one step is given does not depend on which
    process draws it, in how many parts, or before or after which stop."""
    return random.Random(" ".join(map(str, names)))


def torch_dice(*names):
    """The same for tensors."""
    return torch.Generator().manual_seed(dice(*names).getrandbits(63))


def world_batch(preset, tok, *, batch, difficulty, seed, plain=0.0, mine=None):
    """One batch of the little world for a model: x0 [B, 3, S, S] and its conditioning. Same seed, same batch.

    plain is the share of captions that are said the one canonical way; mine are the places of the batch that are
    wanted, as for `conditioned`, which says the rest; None is all of them.
    """
    mine = range(batch) if mine is None else mine
    pictures, captions, _ = diffusion.world_pictures(batch, seed, difficulty, side=max(64, preset.size))
    # Dice of their own for the wording: with other shares of plain captions the pictures stay the same
    rng = random.Random(f"{seed} said")
    captions = [tokenizer.Scene.parse(caption).canonical().caption() if rng.random() < plain else caption
                for caption in captions]
    return conditioned(preset, tok, pictures[list(mine)], [captions[i] for i in mine], seed=seed, mine=mine)


def conditioned(preset, tok, pictures, captions, *, seed, mine):
    """Captioned pictures as a model trains on them: x0 [B, 3, S, S] in [-1, 1], and its conditioning.

    pictures, captions  uint8 [B, 3, side, side] with side a multiple of S, and B strings
    seed, mine          the dice for masks and squares: the batch's seed, and which of its examples these are

    The conditioning is a dictionary of tensors under the names that denoisers take (04): tokens and mask [B, K], and
    by the kind of model low_res [B, 3, S/4, S/4], inpaint_image [B, 3, S, S], inpaint_mask [B, 1, S, S].
    The upsampler's low_res is the area-reduced picture, rounded to bytes, and all it gets is cut to the same crop.
    """
    x0, cond = diffusion.reduce(pictures, preset.size), guidance.encode(captions, tok, preset.network.text.context)
    if preset.inpaints:
        cond |= known_part(preset, x0, [f"masks {seed} {i}" for i in mine])
    if preset.enlarges:
        # Rounded in training because it is rounded in use: the network must not learn to read what bytes lose
        low_res = upsample.round_to_bytes(diffusion.reduce(pictures, preset.size // upsample.FACTOR))

        def cut(x):   # the same dice every time: the same squares
            rngs = [dice("square", seed, i) for i in mine]
            return crop_both(x, low_res, preset.train.crop or preset.size, rngs)
        cond |= {name: cut(cond[name])[0] for name in ("inpaint_image", "inpaint_mask") if name in cond}
        x0, cond["low_res"] = cut(x0)
    return x0, cond


def known_part(preset, x0, seeds):
    """What an inpainting model is shown of pictures x0 [B, 3, S, S], itself to be drawn whole: a random part of each.

    A mask has the base model's pixels, for both models draw into the same hole; the upsampler's are squares of them.
    """
    side = preset.size // (upsample.FACTOR if preset.enlarges else 1)
    mask = torch.cat([inpaint.random_mask(1, side, side, seed=seed) for seed in seeds])
    return {"inpaint_image": x0, "inpaint_mask": F.interpolate(mask, size=preset.size, mode="nearest")}


def crop_both(x0, low_res, size, rngs):
    """The same square out of a picture and its small version, each example's by dice of its own.

    x0 [B, C, S, S], low_res [B, 3, S/4, S/4] -> [B, C, size, size], [B, 3, size/4, size/4]. The corner is drawn in
    small pixels and multiplied: a corner between them would shift one picture against the other by a part of a pixel.
    A square of half the side costs a quarter of the time, and enlarging needs to see only what is near.
    """
    small, free = size // upsample.FACTOR, low_res.shape[-1] - size // upsample.FACTOR
    spots = [(rng.randint(0, free), rng.randint(0, free)) for rng in rngs]
    low = torch.stack([p[:, r:r + small, c:c + small] for p, (r, c) in zip(low_res, spots)])
    f = upsample.FACTOR
    high = torch.stack([p[:, f * r:f * r + size, f * c:f * c + size] for p, (r, c) in zip(x0, spots)])
    return high, low


# --- The loop ----------------------------------------------------------------------------------------

# One step: make a batch, draw a timestep and noise for each picture, let the network guess, and let the gradient
# correct it. `Run` holds what any training needs (the weights and their average, the optimiser, checkpoints);
# `Trainer`, below it, says what a U-Net is asked, `CLIPTrainer` what a CLIP is asked. The functions before them are the
# choices that decide how soon a run gets somewhere: the arithmetic, the rate, the captions, the timesteps, the weights.
def has_fast_bf16(device):
    """Whether 16-bit arithmetic is worth it here: on GPUs that know bfloat16 and CPUs with instructions for it.

    bfloat16 has float32's 8 bits of exponent and pays in digits: 8 binary ones are left of 24. Nothing that float32
    can hold becomes infinite or vanishes. float16 is the other way round, and small gradients become zero in it:
    GLIDE, trained in 16 bits, therefore multiplied its loss by a large number and divided it out again. Elsewhere
    bfloat16 runs too, but by converting back and forth.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    return device.type == "cpu" and "avx512_bf16" in cpu_flags()


@lru_cache
def cpu_flags():
    """The names of what this processor can do, as Linux lists them; torch has no question for it."""
    try:
        return set(re.search(r"^(?:flags|Features)\s*:(.*)", Path("/proc/cpuinfo").read_text(), re.M)[1].split())
    except (OSError, TypeError):   # not Linux: we do not know, so no
        return set()


def wants_bf16(work):
    """Whether a run computes in bfloat16."""
    return has_fast_bf16(work.device) if work.bf16 is None else work.bf16


def autocast(device, wanted=True):
    """Inside, matrix products and convolutions are in bfloat16. Each weight is used once on a way forward, so the store
    of 16-bit copies that torch would keep till its end is of no use, and 7 GB for the paper's base model."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=wanted, cache_enabled=False)


def in_bf16(model, device, wanted=None):
    """A denoiser that computes in bfloat16: if `wanted`, or, where that is None, if it is fast on the device. Weights,
    gradients and the answer stay float32.

    Autocast converts the inputs of matrix products and convolutions and leaves the rest as it is. The weights must stay
    long numbers: Adam changes one by about the rate, 1e-4 in the large presets, and bfloat16 holds a
    weight of 0.1 in steps of 0.0005: the change would be rounded away, every time.
    `prepare` is wrapped too, or the caption would be read in another precision than the picture.
    """
    if not (has_fast_bf16(device) if wanted is None else wanted):
        return model

    def denoiser(x, t, **cond):
        with autocast(device):
            return model(x, t, **cond)

    def prepare(**cond):
        with autocast(device):
            return diffusion.prepare(model, **cond)

    denoiser.prepare = prepare
    return denoiser


def pace(step, config):
    """The share of the learning rate at a step: a slow start, while Adam's averages fill; then one, or down a
    half cosine to zero.

    Large steps find the way, and jump about at its end; small ones settle there. Who trains for weeks can keep the rate
    and average the jumps away (EMA); who trains for minutes gains by both.
    """
    # ½·(1 + cos(π·step/steps)): 1 at the start, ½ half-way, 0 at the end
    share = min(1, (step + 1) / (config.warmup + 1))
    return share * 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.decay else share


def plain_share(step, config):
    """The share of captions that are said the canonical way ("left of", never "right of"): all, then ever fewer.

    Which thing is on the left in "a red heart to the right of a blue star" takes two facts, a thing's place in the
    caption *and* the relation. Either alone says nothing, as in an exclusive or, and so there is no slope to follow:
    after 6,000 steps on captions said both ways, the colours of a pair were all there, and on the wrong side half of
    the time. Said one way, order alone decides. That was learned within a few hundred steps; the other way
    of saying it is then an exception to a rule.
    """
    return max(0.0, 1 - 2 * step / config.steps) if config.plain_first else 0.0


def draw_timesteps(batch, noisy, steps, generator):
    """A timestep for each example, [B] long: one from each of B equal stretches of 0 … steps - 1, so that each is
    as likely as any other but no batch is all noise or all detail (the low-discrepancy sampler of Kingma et al.
    2021, arXiv 2107.00630). A share `noisy` of the batch is spread over the last two fifths alone: which thing
    goes where is decided there, before anything can be seen."""
    few = int(noisy * batch)
    shift, begin = torch.rand(1, generator=generator), steps * 3 // 5
    everywhere = (torch.arange(batch - few) + shift) * steps / (batch - few)
    late = begin + (torch.arange(few) + shift) * (steps - begin) / max(few, 1)
    return torch.cat([everywhere, late]).long().clamp(max=steps - 1)


def loss_weights(process, weighting):
    """How much the squared error in ε counts at each timestep: a table for `Diffusion.loss`, or None.

    "eps"     every timestep alike, as DDPM and GLIDE do
    "v"       as if v had been compared: 1/ᾱ. Little training is enough to get the noisy end right
    "middle"  √ᾱ times the squared error in x_0, and a little of the first: most weight where the picture is half
              visible, so that the caption is needed to say what it is. At the noisy end only the background shows,
              at the other end only noise is to be learned. (Hang et al. 2023, arXiv 2303.09556, weigh the same way.)
    "late"    ᾱ^¼ times it instead: more for the noisy end, where it is decided which thing goes where
    """
    return {"eps": None, "v": 1 / process.alpha_bar,   # (1-ᾱ)/ᾱ would make it the squared error in x_0
            "middle": (1 - process.alpha_bar) / process.alpha_bar.sqrt() + 0.05,
            "late": (1 - process.alpha_bar) / process.alpha_bar ** 0.75 + 0.05}[weighting]


# Who computes, and how. None of this changes what is learned, but for rounding: the same examples, with the same dice,
# are shared out among parts and processes, and their gradients are averaged before the one step that all take.
@dataclass(frozen=True)
class Work:
    """How a run does its sums.

    device     where: "cpu", "cuda", "cuda:3", …
    parts      the batch goes through the network in so many parts, whose gradients are added up: memory for time
    recompute  activations are computed again on the way back instead of being kept (`recompute`): memory for time
    compile    the backend of torch.compile, such as "inductor"; None is none
    shard      weights, gradients, averages and Adam's memory are divided among the processes (`share_weights`)
    bf16       whether to compute in bfloat16; None: where that is fast
    save_every steps between two checkpoints; keep: how many of them stay
    peak       the FLOP/s that a device can do, with which the line of progress compares; None: it does not
    """

    device: str = "cpu"
    parts: int = 1
    recompute: bool = False
    compile: str | None = None
    shard: bool = False
    bf16: bool | None = None
    save_every: int = 200
    keep: int = 2
    peak: float | None = None


def team():
    """Which of the processes this is, and how many there are: (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def share_weights(model):
    """Divide a network among the processes (FSDP2): each keeps its piece of every weight, and of what belongs to it.

    A block's weights are gathered when it is their turn, and thrown away after it; the gradients are summed and only
    each one's piece is kept. So eight GPUs hold one copy of the paper's model together instead of eight.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    # What our blocks return is often a view of something; nothing is ever added to it in place
    warnings.filterwarnings("ignore", message=".*returned a view tensor.*")
    for part in list(model.modules()):
        if isinstance(part, BLOCKS):
            fully_shard(part)
        if isinstance(part, unet.TextAttention):
            register_fsdp_forward_method(part, "read")     # weights are wanted there too, not in `forward` alone
    fully_shard(model)
    for name in ("prepare", "image", "text"):
        if callable(getattr(type(model), name, None)):
            register_fsdp_forward_method(model, name)


def put_away(model):
    """After a drawing: let go of the weights that were gathered for it. The way back does so, and drawing has none."""
    for part in model.modules():
        if hasattr(part, "reshard"):
            part.reshard()


class Run:
    """A network in training: its average, its optimiser, and how far it has come. What it is asked is left to
    `examples` and `losses` in the classes below.

    model learns; ema is its running average, never gets a gradient, and is the one that is kept and drawn with. The
    optimiser is AdamW without weight decay, which is Adam, with one learning rate for the parts named in `slow`
    and another for all others.

    Every random number of step n comes from (seed, n) and the example's place in the batch, dropout's too. So a run
    that is continued from a checkpoint sees what the undisturbed one would have seen, and so do several processes.

    pictures  None for the little world, of that difficulty; else a function (batch=, reader=, state=) -> Pictures
    tok       the tokenizer, if it is not the little world's
    """

    network, slow = None, ()   # what is trained, and how the names of its parts begin that learn at `text_lr`

    def __init__(self, preset, *, difficulty="single", seed=0, work=Work(), pictures=None, tok=None):
        rank, size = team()
        if preset.train.batch % (size * work.parts):
            raise ValueError(f"a batch of {preset.train.batch} cannot be shared out evenly (processes: {size}, parts of"
                             f" each one's share: {work.parts}); take a multiple of {size * work.parts}")
        torch.manual_seed(seed)   # the first weights
        self.preset, self.difficulty, self.seed, self.work, self.step = preset, difficulty, seed, work, 0
        self.device, self.seconds = work.device, 0.0
        self.ill, self.lost = 0, 0      # steps that were left out: the last ones in a row, and all of them
        self.since = []                 # the losses since the last line of the log
        self.tok = tok or tokenizer.world_tokenizer()
        self.pictures, self.reader, self.place = pictures, None, None
        self.mine = range(rank, preset.train.batch, size)   # this process's places in every batch
        self.model = self.network(preset.network).to(self.device)
        self.ema = self.network(preset.network).to(self.device).requires_grad_(False)
        self.ema.load_state_dict(self.model.state_dict())
        self.process = diffusion.Diffusion.of(preset.diffusion)
        self.by_time = LossByTime(len(self.process.timesteps))
        self._set_out(size)

    def _set_out(self, size):
        """What `work` asks for, and the optimiser, which must know the weights as they are afterwards."""
        work, train = self.work, self.preset.train
        for part in train.freeze:   # no gradient: the way back ends where nothing before it learns either
            self.model.get_submodule(part).requires_grad_(False)
        self.answer = self.model                 # what is asked in training: the network, whatever is wrapped around it
        if work.recompute:
            recompute(self.model)
        if work.shard:
            share_weights(self.model)
            share_weights(self.ema)
        elif size > 1:
            self.answer = nn.parallel.DistributedDataParallel(self.model, gradient_as_bucket_view=True)
        self.together = self.answer              # … and what sums the gradients of all processes
        if work.compile:
            self.answer = torch.compile(self.answer, backend=work.compile)
        learning = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        text = [p for name, p in learning.items() if name.startswith(self.slow)]
        rest = [p for name, p in learning.items() if not name.startswith(self.slow)]
        groups = {"params": text, "full_lr": train.text_lr}, {"params": rest, "full_lr": train.lr}
        self.optimizer = torch.optim.AdamW([group for group in groups if group["params"]], weight_decay=0.0, fused=True)

    # --- A step ---

    def batch_seed(self):
        """The step's seed. A large prime apart, so that no two runs of different seeds ever share a batch."""
        return self.seed * 10_000_019 + self.step

    def read(self):
        """This process's share of the next captioned pictures of a person's own."""
        if self.reader is None:
            self.reader = self.pictures(batch=len(self.mine), reader=team(), state=self.place)
        return self.reader.next()

    def counts(self):
        """What the log says beside the loss: how many steps were left out, if any; of a person's own pictures, how many
        were read and how many of them could not be used."""
        left_out = {"lost": self.lost} if self.lost else {}
        return left_out | ({"read": self.reader.seen, "bad": self.reader.bad.total()} if self.reader else {})

    def remark(self):
        """What the line of progress has to say beside the loss."""
        left_out = f"  {self.lost} steps left out" if self.lost else ""
        return left_out + (f"  {self.reader.bad.total()} bad examples" if self.reader and self.reader.bad else "")

    def close(self):
        """Let the readers' processes go."""
        if self.reader is not None:
            self.reader.close()

    def shown(self):
        """What a run shows its progress with: captions, and their true pictures as the model trains on them, uint8. Of
        a person's own, the first eight of an epoch."""
        if self.pictures is None:
            scenes = [tokenizer.Scene.parse(caption) for caption in SHOWN]
            return list(SHOWN), real_pictures(scenes, side=max(64, self.preset.size))
        pictures, captions = self.pictures(batch=len(SHOWN), reader=(0, 1), workers=0).next()
        return captions, pictures

    def advance(self):
        """One step: draw, guess, compare, correct. -> the batch's mean loss, over all processes.

        A step whose loss or gradient is infinite or no number is left out: weights, average and Adam's memory stay as
        they were. One in a million is an accident. After PATIENCE such steps one after another it is an illness of the
        weights, and ValueError is raised; `save_checkpoint` has written none of them since it began.
        """
        config, mean = self.preset.train, 0.0
        parts = list(in_parts(self.examples(), self.work.parts))
        for i, part in enumerate(parts):
            torch.manual_seed(dice("dropout", self.seed, self.step, i, *team()).getrandbits(63))
            with self._summing(last=i == len(parts) - 1):
                loss = self.losses(part).mean() / len(parts)
                loss.backward()
            mean += loss.item()
        mean = mean_over_all(mean, self.device)
        # All gradients together, as one vector, are at most 1 long: Adam remembers the squares of the last thousand
        # or so, and one freak batch would otherwise make its steps small for that long.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.norm = (norm.full_tensor() if self.work.shard else norm).item()
        for group in self.optimizer.param_groups:
            group["lr"] = group["full_lr"] * pace(self.step, config)
        healthy = math.isfinite(mean) and math.isfinite(self.norm)
        self.step += 1
        if healthy:
            self.optimizer.step()
            self._average()
        self.optimizer.zero_grad()
        self.ill, self.lost = (0, self.lost) if healthy else (self.ill + 1, self.lost + 1)
        if self.ill == PATIENCE:
            raise ValueError(f"the loss or gradient of {PATIENCE} steps in a row, up to step {self.step}, was no finite"
                             " number. The checkpoints are from before; begin anew with a smaller --lr, in another --out")
        return mean

    def _summing(self, last):
        """Processes exchange their gradients after the last part of a batch only: it is the costly part of a step."""
        if self.work.shard:
            self.model.set_requires_gradient_sync(last)
        return self.together.no_sync() if not last and hasattr(self.together, "no_sync") else nullcontext()

    @torch.no_grad()
    def _average(self):
        """EMA: the average forgets slowly, but at first, when there is little worth remembering, faster.

        Every batch pulls the weights its own way. An average of the last 1/(1-d) or so lies in the middle of where they
        jump about, and mostly draws better than any of them. With d = 0.9999 these are the last 10,000 steps.
        """
        # d = min(ema, (1+n)/(10+n)) after n steps: the average then reaches back over the last ninth of the run, and a
        # run of 2,700 steps never gets to 0.999, which the second reaches at step 8,990.
        decay = min(self.preset.train.ema, (1 + self.step) / (10 + self.step))
        # θ_ema ← d·θ_ema + (1-d)·θ, all tensors in one call
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)

    def start_from(self, path):
        """Begin with the weights of a file, or with the average of a checkpoint, instead of random ones; an inpainting
        model also with those of a model that knows no masks yet. ValueError if its sizes are others."""
        network = self.network.out_of(read_start(path), path)
        channels = [getattr(config, "in_channels", 0) for config in (network.config, self.preset.network)]
        if channels[0] and channels[0] + 4 == channels[1]:
            network = inpaint.grow(network)
        if network.config != self.preset.network:
            raise ValueError(f"{path} is of another size than the model to be trained")
        for mine in (self.model, self.ema):
            if self.work.shard:
                _, state_dicts = for_pieces()
                state_dicts.set_model_state_dict(mine, network.state_dict(),
                                                 options=state_dicts.StateDictOptions(full_state_dict=True))
            else:
                mine.load_state_dict(network.state_dict())

    # --- Checkpoints: everything that the next step depends on ---

    # Adam's averages are part of it: a run that goes on without them starts with steps of the wrong size. So is the
    # number of the step, which stands for the state of all dice, and the place in the data. What decides which run it
    # is (preset, difficulty, seed, …) is there to be compared: a run that goes on with other options would be neither
    # the one run nor the other. How the sums are done may change: other GPUs, more of them, other parts.

    def state(self):
        """A dictionary of tensors and plain values, which torch.load reads without running any code."""
        return {**self.tensors(), **self.facts()}

    def tensors(self):
        """What has learned, and the optimiser's memory of how."""
        return {"model": self.model.state_dict(), "ema": self.ema.state_dict(),
                "optimizer": self.optimizer.state_dict()}

    def facts(self):
        """The plain values among it. All processes must ask for it together."""
        return {"step": self.step, "seconds": self.seconds, "lost": self.lost, "since": self.since,
                "by_time": self.by_time.sums.tolist(), "data": self.places(), **self.identity()}

    def identity(self):
        """Which run this is, in values that JSON gives back as they were."""
        return json.loads(json.dumps({"preset": asdict(self.preset), "difficulty": self.difficulty, "seed": self.seed,
                                      "tokenizer": self.tok.merges}))

    def places(self):
        """Where the readers of all processes are in a person's own pictures; None in the little world."""
        if self.reader is None:
            return self.place
        return Pictures.merge(of_each(self.reader.state()))

    def save(self, path):
        """Write a checkpoint, whole or not at all: a file, or a folder where the weights are divided among processes.
        All processes must call it together; one of them writes the file."""
        facts = self.facts()
        if self.work.shard:
            return self._save_shards(path.with_suffix(".shards"), facts)
        if team()[0] == 0:
            with unet.whole_file(path) as partial:
                torch.save({**self.tensors(), **facts}, partial)

    def resume(self, path):
        """Go on where a checkpoint of the same run stopped. ValueError if it is of another, Damaged if of none."""
        if path.suffix == ".shards":
            return self._resume_shards(path)
        if not path.is_file():
            raise FileNotFoundError(f"no checkpoint at {path}")
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True)
            saved = {name: saved[name] for name in self.state()}
        except Exception as e:   # torch.load fails in many ways on bytes that are not its own
            raise Damaged(f"{path} is not a checkpoint of a training run, or is damaged ({type(e).__name__})") from None
        if self.work.shard:
            raise ValueError(f"{path} is whole, and this run is divided; begin with its weights.pt and --start")
        self._take_up(saved, path)
        self.model.load_state_dict(saved["model"])
        self.ema.load_state_dict(saved["ema"])
        self.optimizer.load_state_dict(saved["optimizer"])

    def _take_up(self, facts, path):
        """The plain values of a checkpoint, if they are of this run."""
        for name, value in self.identity().items():
            if facts[name] != value:
                raise ValueError(f"{path} is of a run with another {difference(name, facts[name], value)}; give the same"
                                 " options, or another --out")
        self.step, self.seconds, self.lost, self.since, self.place = (
            facts[name] for name in ("step", "seconds", "lost", "since", "data"))
        self.by_time.sums = torch.tensor(facts["by_time"], dtype=torch.float64)

    def _divided(self):
        """The tensors of a checkpoint as torch.distributed.checkpoint takes and fills them, each process its piece."""
        _, state_dicts = for_pieces()
        model, optimizer = state_dicts.get_state_dict(self.model, self.optimizer)
        return {"model": model, "optimizer": optimizer, "ema": state_dicts.get_model_state_dict(self.ema)}

    def _save_shards(self, path, facts):
        """Each process writes its pieces into one folder, which gets its name when all are done."""
        partial = path.with_name(path.name + ".tmp")
        if team()[0] == 0:
            shutil.rmtree(partial, ignore_errors=True)
        wait_for_all()
        dcp, _ = for_pieces()
        dcp.save(self._divided(), checkpoint_id=partial, no_dist=not dist.is_initialized())
        if team()[0] == 0:
            with unet.whole_file(partial / "run.json") as file:
                file.write_text(json.dumps(facts))
            shutil.rmtree(path, ignore_errors=True)   # the same step, made again after a stop
            os.replace(partial, path)
        wait_for_all()

    def _resume_shards(self, path):
        """Pieces find their way into any number of processes, into a single one too."""
        dcp, state_dicts = for_pieces()
        try:
            facts, saved = json.loads((path / "run.json").read_text()), self._divided()
            with warnings.catch_warnings():     # torch thinks it worth saying that there is one process
                warnings.simplefilter("ignore")
                dcp.load(saved, checkpoint_id=path, no_dist=not dist.is_initialized())
        except (OSError, KeyError, ValueError, AssertionError, dcp.api.CheckpointException) as e:
            raise Damaged(f"{path} is not a checkpoint of a training run, or is damaged ({type(e).__name__})") from None
        self._take_up(facts, path)
        state_dicts.set_state_dict(self.model, self.optimizer, model_state_dict=saved["model"],
                                   optim_state_dict=saved["optimizer"])
        state_dicts.set_model_state_dict(self.ema, saved["ema"])

    def average(self):
        """The averaged weights as one ordinary network on the CPU; None but in the first process. All must ask."""
        whole = self.ema.state_dict()
        if self.work.shard:
            _, state_dicts = for_pieces()
            whole = state_dicts.get_model_state_dict(
                self.ema, options=state_dicts.StateDictOptions(full_state_dict=True, cpu_offload=True))
        if team()[0] != 0:
            return None
        with torch.device("meta"):
            network = self.network(self.preset.network)
        network.load_state_dict({name: value.cpu() for name, value in whole.items()}, assign=True)
        return network.eval()


def for_pieces():
    """torch's tools for networks in pieces. To import them takes a second, which nobody else should have to wait."""
    import torch.distributed.checkpoint as dcp
    import torch.distributed.checkpoint.state_dict as state_dicts
    return dcp, state_dicts


PATIENCE = 10   # steps in a row that may have no finite loss


def difference(name, theirs, mine):
    """The innermost name at which two nests of dictionaries part, and both values if they are short."""
    if isinstance(theirs, dict) and isinstance(mine, dict):
        for key in mine:
            if theirs.get(key) != mine[key]:
                return difference(key, theirs.get(key), mine[key])
    both = f" ({theirs}, not {mine})"
    return name + both * (len(both) < 50)


class Damaged(ValueError):
    """A file that is no checkpoint, or no longer one: an older one may take its place."""


def in_parts(examples, parts):
    """A dictionary of tensors [B, …] as `parts` dictionaries of [B/parts, …]."""
    pieces = {name: value.chunk(parts) for name, value in examples.items()}
    return ({name: value[i] for name, value in pieces.items()} for i in range(parts))


def mean_over_all(value, device):
    """The mean of a number over the processes."""
    if team()[1] == 1:
        return value
    value = torch.tensor(value, dtype=torch.float64, device=device)
    dist.all_reduce(value)
    return value.item() / team()[1]


def of_each(value):
    """A plain value of every process, in the order of their ranks."""
    values = [value] * team()[1]
    if len(values) > 1:
        dist.all_gather_object(values, value)
    return values


def wait_for_all():
    if dist.is_initialized():
        dist.barrier()


def read_start(path):
    """What --start names, as `unet.read_weights` has it: a weight file, or a run's checkpoint, of which the averaged
    weights are taken. Raises as it does."""
    path = Path(path)
    if not re.fullmatch(r"checkpoint-\d+\.(pt|shards)", path.name):
        return unet.read_weights(path)
    if path.is_dir():
        raise ValueError(f"{path} holds the pieces of a divided run; --resume that, and start from its weights.pt")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        config = {name: tuple(value) if isinstance(value, list) else value     # JSON makes lists of tuples
                  for name, value in saved["preset"]["network"].items()}
        return {"config": config, "weights": saved["ema"], "tokenizer": saved["tokenizer"],
                "difficulty": saved["difficulty"]}
    except FileNotFoundError:
        raise FileNotFoundError(f"no checkpoint at {path}") from None
    except Exception as e:   # as in `Run.resume`
        raise Damaged(f"{path} is not a checkpoint of a training run, or is damaged ({type(e).__name__})") from None


class Trainer(Run):
    """A U-Net in training: given a noisy picture and, mostly, its caption, what is the noise?"""

    # The text encoder learns slowly. At the U-Net's rate it collapses in the first hundred steps: the words
    # that explain most of the picture (the background's) drown all others, and their gradient with them.
    network, slow = unet.UNet, ("text.", "pool.")

    def __init__(self, preset, **options):
        super().__init__(preset, **options)
        self.weights = loss_weights(self.process, preset.train.weighting)
        self.denoiser = self.denoiser_of(self.answer)

    def denoiser_of(self, network):
        """A network of this preset as a denoiser, in the precision of this run."""
        network = in_bf16(network, self.device, self.work.bf16)
        return upsample.denoiser_of(network, self.preset.network, self.preset.diffusion)

    def examples(self):
        """This process's share of the step's batch: pictures x0, timesteps t and noise, each [B, …], and the conditioning.
        A caption, a timestep and noise for each picture."""
        config, seed = self.preset.train, self.batch_seed()
        if self.pictures is None:
            x0, cond = world_batch(self.preset, self.tok, batch=config.batch, difficulty=self.difficulty, seed=seed,
                                   plain=plain_share(self.step, config), mine=self.mine)
        else:
            x0, cond = conditioned(self.preset, self.tok, *self.read(), seed=seed, mine=self.mine)
        g, mine = torch.Generator().manual_seed(seed), list(self.mine)
        t = draw_timesteps(config.batch, config.noisy, len(self.process.timesteps), g)[mine]
        # Caption by caption, some are dropped: the network learns both halves of guidance (05) at once. A mask that is
        # False everywhere *is* the empty caption (02), so no token has to be changed.   [Ho & Salimans, alg. 1]
        cond["mask"] &= torch.rand(config.batch, 1, generator=g)[mine] >= config.drop
        return {"x0": x0, "t": t, "noise": diffusion.gaussian(x0, [torch_dice("noise", seed, i) for i in mine]), **cond}

    def losses(self, examples):
        """The loss (04) of each example, [B]."""
        t = examples.pop("t")     # stays where it is: the tables of 04 are looked up there
        cond = {name: value.to(self.device, non_blocking=True) for name, value in examples.items()}
        x0, noise = cond.pop("x0"), cond.pop("noise")
        loss = self.process.loss(self.denoiser, x0, t, noise, weights=self.weights, **cond)
        self.by_time.add(t, loss.detach())
        return loss

    def show(self, out):
        """How far it has come, as pictures in `out`. -> what the weights shall remember of it"""
        if self.work.shard or team()[0] == 0:      # a divided network draws with the help of all
            sample_grid(self, out / "samples.png")
            put_away(self.ema)
        if team()[0] == 0:
            save_by_time(self.by_time, out / "timesteps.png", title=f"after {self.step} steps")
        return {}


# --- The noised CLIP ---------------------------------------------------------------------------------

# A batch of pictures and their captions asks two questions of each: which of all these captions is this picture's,
# and which of all these pictures is this caption's? [C section 2.3]. The pictures are noised as the base model's are,
# each to a timestep of its own, so that the answer can be asked for at every step of a drawing (05). Where nearly all
# is noise nobody can answer well, and a CLIP that has learned so pulls gently there.

class CLIPTrainer(Run):
    """A noised CLIP in training. Its two towers learn alike, and no caption is dropped.

    The batch is large, 256, because the other captions in it are the wrong answers: with more of them the question
    is harder and closer to the one that will be asked.
    """

    network = guidance.NoisedCLIP

    def __init__(self, preset, **options):
        super().__init__(preset, **options)
        if self.work.parts > 1:
            raise ValueError("a CLIP compares every picture of a batch with every caption of it: --parts must be 1")

    def examples(self):
        """This process's share of the batch: noised pictures x_t, t, tokens and lengths; and `fits`, the whole batch's."""
        config, seed, mine = self.preset.train, self.batch_seed(), list(self.mine)
        if self.pictures is None:
            pictures, captions, shown = diffusion.world_pictures(config.batch, seed, self.difficulty)
            fits = true_of(map(tokenizer.Scene.parse, captions), shown)
            pictures, captions = pictures[mine], [captions[i] for i in mine]
        else:
            pictures, captions = self.read()
            said = captions_of_all(captions)
            fits = torch.tensor([[one == other for other in said] for one in said])
        x0 = diffusion.reduce(pictures, self.preset.size)
        t = torch.randint(len(self.process.timesteps), (config.batch,), generator=torch_dice("t", seed))[mine]
        noise = diffusion.gaussian(x0, [torch_dice("noise", seed, i) for i in mine])
        words = guidance.encode_clip(captions, self.tok, self.preset.network.text.context)
        return {"x": self.process.q_sample(x0, t, noise), "t": t, **words, "fits": fits}

    def losses(self, examples):
        """The losses of the whole batch, [B]: each process knows all the answers, and has a gradient for its own."""
        given = {name: value.to(self.device) for name, value in examples.items()}
        fits = given.pop("fits")
        with autocast(self.device, wants_bf16(self.work)):
            images, texts = self.answer(**given)
        return contrastive_loss(of_all(images.float()), of_all(texts.float()), fits)

    def show(self, out):
        """Trainer's, for captions found among others instead of samples."""
        if self.pictures is not None:
            return {}                # the examination knows the truth of the little world's captions only
        rates = matching(self.ema.eval(), self.tok, self.process, difficulty=self.difficulty)
        put_away(self.ema)
        if team()[0] == 0:
            save_matching(rates, out / "matching.png", title=f"after {self.step} steps")
        return {"matching": rates}


def of_all(own):
    """Vectors [n, E] of every process, together [B, E] in the batch's order. Only one's own carry a gradient."""
    rank, size = team()
    if size == 1:
        return own
    vectors = [torch.empty_like(own) for _ in range(size)]
    dist.all_gather(vectors, own.detach().contiguous())
    # Every process has the whole loss and a gradient for its own vectors, all of which add up to the whole gradient.
    # But gradients will be averaged, not summed: so each is made `size` times as large, and its value left as it is.
    vectors[rank] = size * own - (size - 1) * own.detach()
    return torch.stack(vectors, dim=1).flatten(0, 1)     # example i of process r has place i·size + r in the batch


def captions_of_all(own):
    """The same for strings."""
    return [caption for row in zip(*of_each(own)) for caption in row]


def true_of(captions, pictures):
    """Which captions are true of which pictures, both given as scenes, the pictures' filled: bool [pictures, captions].

    More than each one's own: another may say the same, or "above" the other way round, or leave the size open.
    """
    said, shown = labels(captions), labels(pictures)
    return ((said == shown[:, None]) | (said < 0)).all(2)


def contrastive_loss(images, texts, fits):
    """Of unit vectors [B, E] of pictures and of captions, and which are true of which, [B, B]: [B].

    CLIP takes the diagonal for all the truth there is [C fig. 3]. In the little world several captions of a batch are
    often true of one picture, and to push them apart would teach nonsense. Their truth is known here, so each
    question's right answer is shared out among all that are true. The logit then learns log p(the caption is true |
    x_t), nearly, but for a constant: the slope of that is what guidance wants.
    """
    fits = fits.to(images.dtype)
    # A CLIP for which all are alike pays log B for each question: 5.55 for 256.
    logits = guidance.LOGIT_SCALE * images @ texts.T                                           # [pictures, captions]
    of_captions = F.cross_entropy(logits, fits / fits.sum(1, keepdim=True), reduction="none")
    of_pictures = F.cross_entropy(logits.T, fits.T / fits.T.sum(1, keepdim=True), reduction="none")
    # L = ½·(which caption? + which picture?)   [C fig. 3]
    return (of_captions + of_pictures) / 2


CHOICES = 100   # captions that each picture is offered when a CLIP is examined


@torch.no_grad()
def matching(clip, tok, process, *, difficulty, n=500, timesteps=range(0, 1000, 100)):
    """How often a picture's own caption fits best of CHOICES: {timestep: (right, n)}.

    The others are of different scenes (in canonical form), each false of the picture. Everybody sits the same exam.
    Guessing finds one in a hundred. It is asked at several noise levels because guidance asks at all of them: a
    CLIP that only reads clean pictures would do well at t = 0 and be of no use to a sampler.
    """
    rng, g = random.Random(12345), torch.Generator().manual_seed(12345)
    scenes = [tokenizer.random_scene(rng, difficulty) for _ in range(n)]
    shown = [scene.fill(rng) for scene in scenes]
    captions = list({scene.canonical(): scene for scene in scenes}.values())             # each scene once
    own = labels(scenes)[:, None].eq(labels(captions)).all(2).long().argmax(1)           # [n]: which of them is mine
    rivals = torch.multinomial((~true_of(captions, shown)).float(), CHOICES - 1, generator=g)
    offered = torch.cat([own[:, None], rivals], 1)
    offered = offered.gather(1, torch.rand(offered.shape, generator=g).argsort(1))       # or the first of equals wins
    device = next(clip.parameters()).device
    words = guidance.encode_clip([scene.caption() for scene in captions], tok, clip.config.text.context, device)
    texts, x0, rates = clip.text(**words), diffusion.reduce(diffusion.draw_all(shown, rng), clip.config.size), {}
    for t in timesteps:
        x_t = process.q_sample(x0, torch.full((n,), t), torch.randn(x0.shape, generator=g))
        fit = (clip.image(x_t.to(device), torch.full((n,), t, device=device)) @ texts.T).cpu().gather(1, offered)
        rates[t] = (int((offered.gather(1, fit.argmax(1, keepdim=True))[:, 0] == own).sum()), n)
    return rates


# --- The judge ---------------------------------------------------------------------------------------

# Is a model better than yesterday's? Its loss hardly tells: most of it is noise that nobody could guess. People can
# tell, but not ten thousand times. The usual measures need a large network that has seen the world (FID, the CLIP
# score), and one that guided the drawing must not mark it: it would find what it asked for. In a little world there is
# a better way. A classifier looks at a picture, *without* its caption, and answers a fixed list of questions: how many
# things, which, of what colour and size, on what ground. A picture is right if all that its caption said is answered
# so. The judge errs too, so it is first examined on real pictures; that rate, its ceiling, stands beside every score.
LAYOUTS = ("one", "two", "three", "side by side", "one above the other")
THING = {"noun": list(tokenizer.NOUNS), "color": tokenizer.COLORS, "size": tokenizer.SIZES}
# What is asked of every picture: a name for each question, and its possible answers.
QUESTIONS = ([("layout", LAYOUTS), ("background", tokenizer.BACKGROUNDS)]
             + list(THING.items())        # of the only thing, or the left or upper one of two
             + list(THING.items()))       # of the right or lower one of two


def labels(scenes):
    """The right answers, [n, questions], as places in the lists of QUESTIONS; -1 where a scene does not say.

    In canonical form, so that "above" and "below" come out as the same two things in the same order. -1 is what the
    loss ignores, and what no picture can get wrong.
    """
    rows = []
    for scene in scenes:
        scene = scene.canonical()
        layout = scene.count - 1 if scene.relation is None else 4 if scene.relation == "above" else 3
        said = [LAYOUTS[layout], scene.background]
        for thing in (*scene.things, None)[:2]:
            said += [thing.noun, thing.color, thing.size] if thing else [None] * 3
        rows.append([answers.index(word) if word else -1 for word, (_, answers) in zip(said, QUESTIONS)])
    return torch.tensor(rows)


def conv(inputs, outputs, kernel=3, stride=1):
    """Convolution, batch normalization, ReLU: the judge learns about ten times as fast with the normalization."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


@dataclass(frozen=True)
class JudgeConfig:
    """The sizes of a judge: its pictures' side, and how wide its layers are."""

    size: int = 16
    width: int = 64
    features: int = 128
    heads: int = 4
    stem: int = 32
    answers: tuple = tuple(tuple(answers) for _, answers in QUESTIONS)   # a judge knows the words of its day


class Judge(nn.Module):
    """[B, 3, size, size] in [-1, 1] -> the logits of every question, a list of [B, answers]; size 16, 32 or 64.

    Convolutions describe each of 8×8 places. A glance at all of them decides where the first and the second
    thing are looked for: that is attention with two sets of queries. One small network reads both, so what
    it learns about an anchor on the left it knows of an anchor below.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        size, width, features, heads, stem = config.size, config.width, config.features, config.heads, config.stem
        # However large the picture, 8×8 places come out: 16, 32 and 64 pixels are halved once, twice and three times.
        enter = [conv(3, stem)] if size == 16 else [conv(3, stem, 4, 2)]
        enter += [conv(stem, stem, 4, 2)] if size == 64 else []
        self.places = nn.Sequential(*enter, conv(stem, width, 4, 2), conv(width, width), conv(width, features))
        self.position = nn.Parameter(0.1 * torch.randn(64, features))
        self.glance = nn.Sequential(conv(features, 64, 4, 2), nn.Flatten(), nn.Linear(1024, 256), nn.ReLU())
        self.queries = nn.Linear(256, 2 * heads * features)        # two things, h looks at each
        self.thing = self.reader(heads * features, QUESTIONS[2:5])
        self.scene = self.reader(256 + 2 * heads * features, QUESTIONS[:2])

    @staticmethod
    def reader(inputs, questions):
        """A small network that answers some of the questions: [..., inputs] -> all their logits side by side."""
        outputs = sum(len(answers) for _, answers in questions)
        return nn.Sequential(nn.Linear(inputs, 256), nn.ReLU(), nn.Linear(256, outputs))

    def forward(self, x):
        """x [B, 3, size, size] -> a list of [B, answers], float32, in the order of QUESTIONS"""
        places = self.places(x)                                        # B C 8 8
        glance = self.glance(places)                                   # B 256
        keys = places.flatten(2).transpose(1, 2) + self.position       # B 64 C
        queries = self.queries(glance).view(len(x), 2 * self.config.heads, -1)                # B 2h C
        look = (queries @ keys.transpose(1, 2) / keys.shape[2] ** 0.5).softmax(-1)     # B 2h 64
        seen = (look @ keys).view(len(x), 2, -1)                       # B 2 hC
        logits = [self.scene(torch.cat([glance, seen.flatten(1)], 1)), *self.thing(seen).unbind(1)]
        return torch.cat(logits, 1).float().split([len(answers) for _, answers in QUESTIONS], 1)


def judge_pictures(n, rng, size, difficulty="full"):
    """Real pictures with *all* pairs of colour and noun, and the scenes they show: what the judge learns from.

    Also those that the models never see (about a tenth of a batch): a judge that had not met them either could not tell
    a model that composes from one that does not. -> [n, 3, size, size], n scenes
    """
    scenes = [tokenizer.random_scene(rng, difficulty, rng.random() < 0.1).fill(rng) for _ in range(n)]
    return diffusion.reduce(diffusion.draw_all(scenes, rng), size), scenes


def soil(x):
    """Pictures a little blurred, tinted and noisy, each to its own degree, as generated ones are. [B, 3, S, S], both.

    Without this the judge is right about real pictures and lost when a colour is a shade off.
    """
    blur, tint, noise = (most * torch.rand(len(x), 1, 1, 1) for most in (0.3, 0.12, 0.15))
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), blur)
    return x + tint * torch.randn(len(x), 3, 1, 1) + noise * torch.randn_like(x)


def train_judge(size, *, steps=1000, seed=0, batch=256, lr=3e-3):
    """A judge of pictures of this size, in eval mode.

    Its loss is the sum of the questions' cross entropies; what a scene does not say is left out of it. The rate
    goes up for a tenth of the steps and then down (the one-cycle policy): 1,000 steps have no time for anything slower.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    judge = Judge(JudgeConfig(size)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        x, scenes = judge_pictures(batch, rng, size)
        with torch.autocast("cpu", torch.bfloat16):
            logits = judge(soil(x.to(memory_format=torch.channels_last)))
        answers = labels(scenes)
        loss = sum(F.cross_entropy(guess, answer, ignore_index=-1) for guess, answer in zip(logits, answers.T))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return judge.eval()


def load_judge(path):
    """The judge of a weight file. ValueError where it knows other words than the language has now."""
    saved = unet.read_weights(path)
    try:
        config = JudgeConfig(**saved["config"])
        if config.answers != JudgeConfig().answers:
            raise ValueError(f"{path} was trained for another vocabulary; train it anew: python 08_train.py judge")
        judge = Judge(config)
        judge.load_state_dict(saved["weights"])
        judge.ceiling = saved["ceiling"]   # {kind: (right, n)} on real pictures, measured when it was trained
    except (KeyError, TypeError, RuntimeError) as e:
        raise ValueError(f"{path} does not hold a judge ({type(e).__name__})") from None
    return judge.eval()


@torch.no_grad()
def answer(judge, images):
    """What the judge sees: [n, questions], places in the lists of QUESTIONS."""
    return torch.cat([torch.stack([guess.argmax(1) for guess in judge(x)], 1) for x in images.split(500)])


def real_pictures(scenes, seed=0, side=64):
    """What captions' scenes should look like, one picture each: uint8 [n, 3, side, side]."""
    rng = random.Random(seed)
    return diffusion.draw_all((scene.fill(rng) for scene in scenes), rng, side)


KINDS = ("easy single", "single", "pair", "count", "held out")   # easy: the dozen nouns of difficulty "single"


def exam(kind, n, seed=12345):
    """n captions' scenes of one kind. "held out": single things of colours and nouns never trained together."""
    rng, scenes = random.Random(f"{kind} {seed}"), []
    while len(scenes) < n:
        scene = tokenizer.random_scene(rng, "single" if kind in ("easy single", "held out") else "full",
                                       held_out=kind == "held out")
        if kind in ("easy single", "held out", scene.kind):
            scenes.append(scene)
    return scenes


def judge_ceiling(judge, n=3000):
    """How often the judge is right about *real* pictures: {kind: (right, n)}.

    A model that drew just as the world is drawn would score this, up to chance. So a model at 90% under a ceiling of
    93% does not draw one caption in ten wrong: a good part of what is missing may be the judge's own errors.
    """
    size, ceiling = judge.config.size, {}
    for kind in KINDS:
        scenes = exam(kind, n)
        right = scores(judge, diffusion.reduce(real_pictures(scenes), size), scenes)["all"]
        ceiling[kind] = (int(right.sum()), n)
    return ceiling


def scores(judge, images, scenes):
    """Whether each picture shows what its scene says: {"all", "layout", "noun", …: bool array [n]}.

    What a scene leaves open counts as right. Two things that changed places have the right layout and wrong
    nouns or colours, so the relation is right when layout, nouns and colours are.
    """
    wanted = labels(scenes)
    right = ((answer(judge, images) == wanted) | (wanted < 0)).numpy()
    names = np.array([name for name, _ in QUESTIONS])
    return {"all": right.all(1)} | {name: right[:, names == name].all(1) for name in dict.fromkeys(names.tolist())}


def wilson(right, n, z=1.96):
    """Wilson's 95% interval for a rate of which `right` of n trials are known: honest near 0 and 1 too.

    The textbook's ± z·√(p(1-p)/n) says "100%, certainly" after 300 of 300; this one says 98.7% to 100%. At one
    half, 300 trials leave ± 5.6 points: models that differ by less have hardly been told apart.
    """
    # (p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n)   [Wilson 1927]
    rate, spread = right / n, z * z / n
    middle, half = rate + spread / 2, z * math.sqrt(rate * (1 - rate) / n + spread / n / 4)
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))   # not -1e-18


def mean_interval(values, *, rate=False):
    """(mean, low, high) of numbers [n], with a 95% interval: Wilson's for a rate, whose values are 0 and 1, else the
    normal one. The numbers are taken to be independent of one another."""
    mean, n = values.mean().item(), len(values)
    if rate:
        return mean, *wilson(values.sum().item(), n)
    half = 1.96 * values.std().item() / math.sqrt(n)
    return mean, mean - half, mean + half


# ======================================================================================================
# The method ends here. Below: what one sees of a run and what makes it last; pictures of one's own; the bill;
# the command line.
# ======================================================================================================

# --- What one sees, and what stays -------------------------------------------------------------------

SHOWN = ("a large red heart", "a small blue star on a white background", "a green umbrella",
         "a yellow sun on a black background", "a large purple house", "a small orange cloud on a gray background",
         "a pink moon", "a cyan anchor on a brown background")


@torch.no_grad()
def sample_grid(trainer, path):
    """Draw a few fixed captions with the averaged weights: how far the model has come."""
    preset, (captions, pictures) = trainer.preset, trainer.shown()
    model, n = trainer.denoiser_of(trainer.ema.eval()), len(captions)
    cond = guidance.encode(captions, trainer.tok, preset.network.text.context, trainer.device)
    g = torch.Generator().manual_seed(0)
    if preset.inpaints:
        known = known_part(preset, diffusion.reduce(pictures, preset.size), range(n))
        cond |= {name: value.to(trainer.device) for name, value in known.items()}
    if preset.enlarges:
        low_res = diffusion.reduce(pictures, preset.size // upsample.FACTOR).to(trainer.device)
        process = diffusion.Diffusion.of(preset.diffusion, "fast27")
        drawn = upsample.upsample(model, low_res, process=process, generator=g, **cond)
    else:
        # The same captions, noise and scale every time: what differs from the last grid is the model
        process, model = diffusion.Diffusion.of(preset.diffusion, "25"), guidance.classifier_free(model, 3)
        noise = torch.randn(n, 3, preset.size, preset.size, generator=g).to(trainer.device)
        drawn = process.ddim_sample(model, noise, **cond)
    if preset.inpaints:     # beside each drawing what was known for it, the hole grey
        drawn = torch.stack([cond["inpaint_image"] * cond["inpaint_mask"], drawn], dim=1).flatten(0, 1)
        captions = [text for caption in captions for text in ("known", caption)]
    elif trainer.pictures is not None:      # beside each drawing the picture of that caption: is it known by heart?
        true = diffusion.reduce(pictures, preset.size).to(drawn)
        drawn = torch.stack([true, drawn], dim=1).flatten(0, 1)
        captions = [text for caption in captions for text in (caption, "drawn")]
    if team()[0] == 0:
        save_grid(drawn, captions, path, title=f"after {trainer.step} steps")


def save_grid(pictures, captions, path, *, title="", columns=4):
    """Pictures [n, 3, H, W] in [-1, 1] with their captions, as one figure."""
    import textwrap
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    rows = math.ceil(len(pictures) / columns)
    figure, axes = plt.subplots(rows, columns, figsize=(2.3 * columns, 2.9 * rows), squeeze=False, layout="constrained")
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, caption in zip(axes.flat, to_bytes(pictures).cpu(), captions):
        ax.imshow(picture.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title("\n".join(textwrap.wrap(caption, 24)), fontsize=9)
    figure.suptitle(title, fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def to_bytes(x):
    """[-1, 1] -> uint8 0 … 255, any shape."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def save_curve(log, path):
    """The loss against the step, its noise in grey and its running mean.

    One batch's loss depends most on which timesteps it drew, so single values jump about and the mean tells. A curve
    that goes flat does not mean that nothing is learned: pictures improve long after.
    """
    import matplotlib
    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    log = [entry for entry in log if entry["loss"] is not None]     # steps that were left out leave a gap
    if not log:
        return
    losses = torch.tensor([entry["loss"] for entry in log], dtype=torch.float64)
    steps = [entry["step"] for entry in log]
    window = max(1, min(25, len(losses) // 4))
    mean = losses.unfold(0, window, 1).mean(1)
    figure, ax = plt.subplots(figsize=(7, 4))
    ax.plot(steps, losses, color="0.8", linewidth=0.8, label="one batch")
    ax.plot(steps[window - 1:], mean, color="tab:blue", label=f"mean of {window}")
    ax.set(xlabel="step", ylabel="loss", yscale="log", title="The loss of every batch, and its running mean")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


def save_matching(rates, path, *, title=""):
    """Captions found among others against the timestep, with 95% intervals, and chance."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax, found = figure.subplots(), {t: right / n for t, (right, n) in rates.items()}
    low, high = zip(*(wilson(*rate) for rate in rates.values()))
    ax.plot(found.keys(), found.values(), "o-", label="the noised CLIP")
    ax.fill_between(list(found), low, high, alpha=0.2, linewidth=0, label="95% interval")
    ax.axhline(1 / CHOICES, color="0.4", linestyle="--", label=f"chance, 1 in {CHOICES}")
    ax.set(xlabel="timestep: how noisy the picture is", ylim=(0, 1.02), title=f"own caption found among {CHOICES}, {title}")
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(path, dpi=110)


def save_by_time(by_time, path, *, title=""):
    """The recent mean loss of each stretch of timesteps.

    At the clean end the noise is hard to see, so the loss is large there in every network; what falls in the
    course of a run is the noisy half, where the picture has to be understood.
    """
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax, (t, mean) = figure.subplots(), by_time.means()
    ax.plot(t, mean, "o-", color="tab:blue")
    ax.set(xlabel="timestep: how noisy the picture is", ylabel="loss, as it is weighted", yscale="log",
           title=f"the loss by timestep, {title}")
    ax.grid(alpha=0.3, which="both")
    figure.savefig(path, dpi=110)


class LossByTime:
    """The recent losses of equal stretches of timesteps: older steps count ever less, half as much after 140."""

    def __init__(self, steps, stretches=20):
        self.width, self.sums = steps / stretches, torch.zeros(2, stretches, dtype=torch.float64)

    def add(self, t, loss):
        """t [B] and the losses [B] of one step, or of a part of one. What is no finite number is passed over: it would
        be in the sums for ever."""
        loss = loss.double().cpu()
        known = loss.isfinite()
        place = (t.cpu()[known] / self.width).long()
        now = torch.stack([loss[known], torch.ones(len(place), dtype=torch.float64)])
        self.sums = self.sums.mul(0.995).index_add(1, place, now)

    def means(self):
        """The middles of the stretches that have been met, and their mean losses."""
        met = self.sums[1] > 0
        middles = (torch.arange(len(met)) + 0.5) * self.width
        return middles[met].numpy(), (self.sums[0] / self.sums[1])[met].numpy()


class Progress:
    """One line that says where a run is, rewritten in place on a terminal and printed now and then elsewhere."""

    def __init__(self, total, unit, flop=0.0, peak=None):
        """flop is what one of `unit` takes, peak what all devices together can do in a second."""
        self.total, self.unit, self.start, self.first, self.last = total, unit, time.time(), None, 0.0
        self.flop, self.peak = flop, peak

    def show(self, step, batch, text, *, final=False):
        """Tell of a step, unless the last line is too fresh. Speed counts from where this run began or went on."""
        now = time.time()
        self.first = step - 1 if self.first is None else self.first
        live = sys.stdout.isatty()
        if not final and now - self.last < (0.2 if live else 20):
            return
        self.last, rate = now, (step - self.first) / max(1e-9, now - self.start)
        left = (self.total - step) / rate
        work = rate * batch * self.flop
        share = f"  {work / 1e12:.3g} TFLOP/s, {work / self.peak:.0%} of peak" if self.peak else ""
        line = f"step {step}/{self.total}  {text}  {rate * batch:.0f} {self.unit} a second{share}  {duration(left)} left"
        if live:    # as wide as the terminal and no wider: a line that wraps cannot be written over
            width = shutil.get_terminal_size((100, 24)).columns - 1
            line = f"\r{line[:width]:<{width}}"
        print(line, end="\n" if final or not live else "", flush=True)


def say(text):
    """A message on a line of its own, from one process: on a terminal the line of progress stands there, unfinished."""
    if team()[0] == 0:
        print(("\n" if sys.stdout.isatty() else "") + text, file=sys.stderr, flush=True)


def duration(seconds):
    """Seconds as a person says them: 3:20 (minutes), 5 h 02, 12 d 07 h."""
    minutes = int(seconds // 60)
    if minutes < 60:
        return f"{minutes}:{int(seconds % 60):02d}"
    return f"{minutes // 60} h {minutes % 60:02d}" if minutes < 2880 else f"{minutes // 1440} d {minutes // 60 % 24:02d} h"


class Journal:
    """What is written down of a run: the line of progress, log.jsonl, a line a step, and the losses for the curve.

    A run of millions of steps keeps one line in so many that there are a few thousand, each the mean of its steps.
    Losses that were no finite number are not in the mean, for JSON has no word for them; a line without any says null.
    """

    def __init__(self, trainer, out):
        self.steps, self.batch = trainer.preset.train.steps, trainer.preset.train.batch
        self.every = max(1, self.steps // 5000)
        flop = flop_of_a_picture(trainer.preset, trainer.work) if trainer.work.peak else 0.0
        self.progress = Progress(self.steps, "pictures", flop, trainer.work.peak and trainer.work.peak * team()[1])
        self.path, self.file = out / "log.jsonl", None
        # The log may be ahead of the checkpoint: those steps will be made again
        self.lines = [line for line in read_log(self.path) if line["step"] <= trainer.step] if trainer.step else []
        self.begin()

    def begin(self):
        """Write all that is known, whole or not at all, and go on behind it. Line by line, without a buffer: whoever
        watches sees each at once, and a kill takes none that a checkpoint knows of."""
        if team()[0] == 0:      # one process writes for all
            with unet.whole_file(self.path) as partial:
                partial.write_text("".join(json.dumps(line) + "\n" for line in self.lines))
            self.file = open(self.path, "ab", buffering=0)

    def tell(self, trainer, loss):
        """Of one step that was made."""
        trainer.since.append(loss)
        if trainer.step % self.every == 0 or trainer.step == self.steps:
            mean, norm = finite_mean(trainer.since), finite_mean([trainer.norm])
            self.write({"step": trainer.step, "loss": mean, "norm": norm,
                        "rate": trainer.optimizer.param_groups[-1]["lr"], **trainer.counts()})
            trainer.since = []
        if team()[0] == 0:
            # One loss jumps about too much to be read
            recent = finite_mean([line["loss"] for line in self.lines[-50:]] or [loss])
            text = "no finite loss" if recent is None else f"loss {recent:.4f}"
            self.progress.show(trainer.step, self.batch, text + trainer.remark(), final=trainer.step == self.steps)

    def write(self, line):
        """Add a line. A log that cannot be written is no reason to stop: it is said, and tried again with every
        checkpoint, from the first line on."""
        self.lines.append(line)
        data = (json.dumps(line) + "\n").encode()
        try:
            if self.file and self.file.write(data) < len(data):
                raise OSError(f"{self.path}: only a part of a line could be written")
        except OSError as e:
            self.close()
            say(f"no log after step {line['step'] - self.every}: {e}; the run goes on")

    def mend(self):
        """Try again what `write` could not."""
        try:
            if self.file is None:
                self.begin()
        except OSError:
            pass            # that has been said

    def close(self):
        if self.file:
            self.file.close()
        self.file = None


def read_log(path):
    """The lines of a log.jsonl, [] if there is none. A power cut may have left half a line at its end."""
    lines = []
    for text in path.read_text().splitlines() if path.is_file() else ():
        try:
            lines.append(json.loads(text))
        except json.JSONDecodeError:
            break
    return lines


def finite_mean(values):
    """The mean of those numbers that are finite; None if none is."""
    finite = [value for value in values if value is not None and math.isfinite(value)]
    return sum(finite) / len(finite) if finite else None


@contextmanager
def asked_to_stop():
    """Ctrl-C and SIGTERM, which computing centres send before they take a machine away, do not stop a step half-way.
    Yields a list that is empty until one of them came. A second Ctrl-C leaves at once, without saving. A SIGTERM after
    another or after Ctrl-C does not: torchrun passes both on, and who asks in two ways still asks for the same."""
    asked = []

    def ask(number, frame):
        if number == signal.SIGINT and signal.SIGINT in asked:
            raise KeyboardInterrupt
        asked.append(number)
    old = {}
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            old[number] = signal.signal(number, ask)
    except ValueError:   # not the main thread: signals are somebody else's
        pass
    try:
        yield asked
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)


def checkpoints(out, until=math.inf):
    """The whole checkpoints in a run's folder, up to a step, the newest last."""
    found = [path for path in out.glob("checkpoint-*") if step_of(path) is not None and step_of(path) <= until]
    return sorted(found, key=step_of)


def step_of(path):
    """The step in a checkpoint's name; None for other files."""
    named = re.fullmatch(r"checkpoint-(\d+)\.(pt|shards)", path.name)
    return int(named[1]) if named else None


def save_checkpoint(trainer, out):
    """Write one and remove those that are too many. A full disk is said and the run goes on: it tries again at the next
    one, and the last that was written stays.

    None is written while steps are being left out: should the weights turn out to be ill, those from before must not
    have been pushed out. Nor is one that is ahead of the run counted or removed: it is damaged, or the run would be
    there.
    """
    if trainer.ill:
        return
    try:
        trainer.save(out / f"checkpoint-{trainer.step:07d}.pt")
    except OSError as e:
        return say(f"no checkpoint at step {trainer.step}: {e}; those before stay")
    if team()[0] == 0:
        for old in checkpoints(out, until=trainer.step)[:-trainer.work.keep]:
            shutil.rmtree(old) if old.is_dir() else old.unlink()


def show(trainer, out):
    """The pictures of a run on its way. It does not end because they cannot be written."""
    try:
        trainer.show(out)
    except OSError as e:
        say(f"no pictures of step {trainer.step}: {e}; the run goes on")


def go_on(trainer, out):
    """Resume from the newest checkpoint that can be read; an older one takes a damaged one's place, and it is said."""
    found = checkpoints(out)
    for path in reversed(found):
        try:
            return trainer.resume(path)
        except Damaged as e:
            if path == found[0]:
                raise
            say(f"{e}; going on from the one before")


def begin_in(out, resume):
    """Make a run's folder ready, and clear away what a process that was killed has left half-written in it. ValueError
    for a run that would be written over, FileNotFoundError if there is none to go on with."""
    if resume and not checkpoints(out):
        raise FileNotFoundError(f"no checkpoint in {out}; leave --resume out to begin a run")
    if not resume and checkpoints(out):
        raise ValueError(f"{out} holds a run already; --resume goes on with it, another --out begins a new one")
    out.mkdir(parents=True, exist_ok=True)
    if team()[0] == 0:
        for left in [*out.glob("checkpoint-*.tmp"), out / "weights.pt.tmp", out / "log.jsonl.tmp"]:
            shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)


def stopped(trainer, out):
    """Leave a run before its end, with a line that says how to go on."""
    saved, how = checkpoints(out, until=trainer.step), "nothing could be saved"
    if saved:
        how = f"the same command with --resume goes on from step {step_of(saved[-1])}"
    say(f"stopped after {trainer.step} steps; {how}")
    raise SystemExit(1)


def train(preset, out, *, start=None, resume=False, facts=None, **options):
    """Train one model of a preset and leave in `out`: weights.pt (the averaged weights, 16 bits), samples.png (of a
    CLIP matching.png), loss.png, timesteps.png, log.jsonl and the last checkpoints, from which resume=True goes on.
    -> the path of weights.pt

    start    a weight file to begin with instead of random weights, see `Run.start_from`
    facts    what the weights shall remember of their making, beside steps, seed and minutes
    options  difficulty, seed, work, pictures and tok, as for `Run`

    Ctrl-C and SIGTERM end the step, save a checkpoint and leave. Under torchrun all processes call this together.
    """
    begin_in(out, resume)
    kind = CLIPTrainer if isinstance(preset.network, guidance.CLIPConfig) else Trainer
    trainer = kind(preset, **options)
    beside = brought(preset, start, out)
    if start is not None:
        trainer.start_from(start)
    if resume:
        go_on(trainer, out)
    steps, every = preset.train.steps, trainer.work.save_every
    with asked_to_stop() as asked, closing(trainer), closing(Journal(trainer, out)) as journal:
        while trainer.step < steps and not mean_over_all(len(asked), trainer.device):
            begin = time.time()
            loss = trainer.advance()
            trainer.seconds += time.time() - begin
            journal.tell(trainer, loss)
            if trainer.step % every == 0 and trainer.step < steps:
                save_checkpoint(trainer, out)
                journal.mend()
                show(trainer, out)
        save_checkpoint(trainer, out)
        journal.mend()
    if trainer.step < steps:
        stopped(trainer, out)
    return save_results(trainer, out, journal, beside=beside, facts=facts or {})


def save_results(trainer, out, journal, *, beside, facts):
    """What a finished run leaves beside its checkpoints. -> the path of weights.pt"""
    shown, average, preset = trainer.show(out), trainer.average(), trainer.preset
    if average is not None:
        save_curve(journal.lines, out / "loss.png")
        unet.save_weights(out / "weights.pt", average, beside=beside, size=preset.size,
                          diffusion=asdict(preset.diffusion), difficulty=trainer.difficulty, **kept(trainer.tok),
                          **shown,
                          made={"steps": trainer.step, "seed": trainer.seed, "minutes": round(trainer.seconds / 60, 1),
                                "torch": str(torch.__version__), **facts})
    wait_for_all()
    return out / "weights.pt"


def kept(tok):
    """A tokenizer as the facts of a weight file."""
    return {"tokenizer": tok.merges} | ({"vocabulary": "clip"} if isinstance(tok, tokenizer.CLIPTokenizer) else {})


def tokenizer_in(saved):
    """The way back: the tokenizer that a weight file was made with. Merges alone do not tell a CLIP's from GPT-2's."""
    kind = tokenizer.CLIPTokenizer if saved.get("vocabulary") == "clip" else tokenizer.BPETokenizer
    return kind(saved["tokenizer"])


def brought(preset, start, out):
    """One of STARTS, copied to `out` so that weights with frozen parts can leave out what they have in common with it.
    -> the copy; None where the weights shall be whole

    Whoever puts weights.pt beside the original, in lessons/weights, need not take the copy along. Weights that began
    elsewhere are whole: nobody knows where their first ones will lie tomorrow.
    """
    own = [path.resolve() for path in STARTS.values()]
    if not (preset.train.freeze and preset.inpaints and start is not None and Path(start).resolve() in own):
        return None
    copy, content = out / Path(start).name, Path(start).read_bytes()
    if not copy.exists() and team()[0] == 0:
        with unet.whole_file(copy) as partial:
            partial.write_bytes(content)
    wait_for_all()
    return copy if copy.read_bytes() == content else None


# --- Data: pictures of one's own ---------------------------------------------------------------------

# The little world is drawn as it is needed; photographs lie on disks, by the million, on machines that stop. Two things
# are to be right. Whatever is in a file, the run goes on, or stops with a sentence: `open_picture` and `example`. And
# in each epoch every picture is seen once, however many processes read and however often they were stopped: `Reader`
# and `deal`. A folder of files is the simple form. Shards are the large one: tar archives of some thousand examples
# each, because disks and networks read one long file much faster than a thousand short ones.
PICTURES, CAPTIONS = (".jpg", ".jpeg", ".png", ".webp"), (".txt", ".json")
FORMATS = ("JPEG", "PNG", "WEBP")   # the only decoders to be opened: each is code that a stranger's bytes may attack
TABLES = ("captions.jsonl", "captions.csv")
MAX_BYTES = 2 ** 26                 # of one file, 67 MB
MAX_PIXELS = 2 ** 27                # of one picture: 134 million, 400 MB when decoded
MAX_CAPTION = 1000                  # characters; a text encoder reads 128 tokens, some 500 characters
GAP = 3                             # quick, rough reduction ends at so many times the wanted size; a good one follows


@dataclass(frozen=True)
class DataConfig:
    """How files become batches."""

    size: int                # pixels of a side, of what the model is to draw
    batch: int               # examples that one process gets at a time
    seed: int = 0            # decides every epoch's order, and where random crops are
    crop: str = "centre"     # or "random": which square of a picture that is none
    bad_share: float = 0.05  # of at least 100 seen by a reader; when more are unusable, the run stops


class Unusable(ValueError):
    """Why one example is passed over, in few words: they are what is counted."""


def open_picture(file, mode="RGB", *, formats=None, single=False, size=None):
    """A picture file (a path, or an open binary file) as an upright 8-bit image of mode "RGB" or "L".

    What is transparent becomes white in RGB and black in L, 16 bits become 8, of an animation the first frame is taken.

    formats  Pillow's names of those that may be opened; None: all that it knows
    single   refuse a file that holds several pictures
    size     the shorter side's least length; a much larger JPEG comes out smaller, but at least GAP times this

    Raises Unusable for what can be read and is not wanted, a phrase that fits behind "holds". For what cannot be read
    Pillow has no common error: OSError, SyntaxError, ValueError and others.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")   # odd metadata, which nobody asked about
        with Image.open(file, formats=formats) as image:
            # So far the header has been read and no pixel: a file of some bytes may claim 50,000 × 50,000 of them
            if image.width * image.height > MAX_PIXELS:
                raise Unusable(f"more than {MAX_PIXELS // 10 ** 6} million pixels")
            # An MPO is a camera's JPEG, with extras
            if single and image.format != "MPO" and getattr(image, "n_frames", 1) > 1:
                raise Unusable(f"{image.n_frames} pictures; save the one that is meant by itself")
            if size:
                if min(image.size) < size:   # enlarged, it would teach that things are blurred
                    raise Unusable(f"fewer than {size} pixels a side")
                image.draft(None, (GAP * size, GAP * size))   # a JPEG can be decoded at 1/2, 1/4 or 1/8: much sooner
            image = ImageOps.exif_transpose(image)            # cameras save how they were held beside the pixels
            image.load()
    return eight_bits(image, mode)


def eight_bits(image, mode):
    """An image of any kind as "RGB" or "L": see `open_picture`."""
    if image.mode.startswith("I"):   # 16 bits of grey, which Pillow's own conversion clips at 255: white
        image = Image.fromarray((np.asarray(image, np.float64) / 257).round().clip(0, 255).astype(np.uint8))
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white" if mode == "RGB" else "black"), image)
    return image.convert(mode)


def square(image, size, rng=None):
    """The middle square of an RGB image, or with rng any, reduced to uint8 [3, size, size].

    The shorter side gives the square's length; then all is one resampling. Lanczos weighs the neighbours of every new
    pixel by a smooth curve as wide as the reduction. Pillow's BOX counts whole pixels instead: reducing 300 to 256
    takes one pixel here and two there, and slanted lines get steps. What is GAP times larger or more is first
    averaged over whole squares, where that does no harm and saves most of the time.
    """
    side, free = min(image.size), (image.width - min(image.size), image.height - min(image.size))
    left, top = (n // 2 if rng is None else rng.randint(0, n) for n in free)
    small = image.resize((size, size), Image.LANCZOS, (left, top, left + side, top + side), reducing_gap=GAP)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()       # H W C -> C H W


def read_caption(suffix, data):
    """A caption file's bytes, .txt or .json with a "caption" or "text", as one tidy line; "" where it says nothing.

    Line breaks, tabs and control characters become single spaces; MAX_CAPTION characters are kept.
    """
    try:
        text = data.decode("utf-8-sig")   # -sig: some editors begin with a mark of the byte order
        if suffix == ".json":
            text = caption_of(json.loads(text), ("caption", "text"))
        text.encode()                     # JSON can spell half a character, "\ud800", that no tokenizer takes
    except UnicodeError:
        raise Unusable("a caption that is not UTF-8") from None
    except (ValueError, RecursionError):  # such as 100,000 brackets
        raise Unusable("a damaged caption file") from None
    plain = "".join(" " if unicodedata.category(c) == "Cc" else c for c in text[:10 * MAX_CAPTION])
    return " ".join(plain.split())[:MAX_CAPTION].rstrip()


def caption_of(entry, names):
    """The first of an entry's fields of these names that holds words; "" if there is none."""
    said = [entry.get(name) for name in names] if isinstance(entry, dict) else []
    return next((text for text in said if isinstance(text, str) and text.strip()), "")


def example(files, size):
    """What lies under one name, pairs of suffix and bytes (or Unusable), as an RGB image and its caption.

    Raises Unusable where these are not one picture and its words; a .txt goes before a .json.
    """
    for _, data in files:
        if isinstance(data, Unusable):
            raise data
    pictures, words = ([f for f in files if f[0] in kind] for kind in (PICTURES, CAPTIONS))
    if not pictures:
        raise Unusable("no picture beside a caption")
    if len(pictures) > 1 or len(dict(words)) < len(words):
        raise Unusable("one name used twice")   # and whose is the caption?
    caption = next(filter(None, (read_caption(*f) for f in sorted(words, reverse=True))), None)
    if caption is None:
        raise Unusable("no caption")
    try:
        return open_picture(io.BytesIO(pictures[0][1]), formats=FORMATS, size=size), caption
    except Unusable:
        raise
    except Image.DecompressionBombError:   # Pillow's own limit comes before ours
        raise Unusable(f"more than {MAX_PIXELS // 10 ** 6} million pixels") from None
    except Exception:   # damaged bytes take decoders by surprise: struct.error, IndexError, zlib.error, ...
        raise Unusable("a broken picture") from None


def load(read):
    """A file's bytes; Unusable, as a value, where there are none to be had: the rest of its group is read on."""
    try:
        return read()
    except Unusable as e:
        return e
    except OSError:
        return Unusable("a file that cannot be read")


def check_bytes(size):
    """Before a file is read into memory: not more than MAX_BYTES of it."""
    if size > MAX_BYTES:
        raise Unusable(f"a file of more than {MAX_BYTES // 10 ** 6} MB")


class Folder:
    """Pictures in a folder and those below it; a unit is one picture, in the order of the paths' characters.

    The caption is in NAME.txt beside it, or in captions.jsonl or captions.csv at the top, with `file` (or `file_name`),
    a path from there, and `caption` (or `text`). A picture with several entries counts as several examples. Names that
    begin with a dot are passed over.
    """

    def __init__(self, root, names):
        self.root = root
        rows = [row for table in TABLES if table in names for row in read_table(root / table)]
        listed = {name for name, _ in rows}
        rows += [(name, None) for name in names if suffix_of(name) in PICTURES and name not in listed]
        self.units = self.names = sorted(rows, key=lambda row: row[0])

    def label(self, unit):
        """A unit's name for people."""
        return self.units[unit][0]

    def examples(self, unit, skip):
        """A unit's groups of files for `example`, without the first `skip`: here one or none."""
        if skip:
            return
        name, caption = self.units[unit]
        words = (self.root / name).with_suffix(".txt")
        files = [(suffix_of(name), load(partial(read_file, self.root / name)))]
        if caption is not None:
            files += [(".txt", caption)]
        elif os.path.isfile(words):
            files += [(".txt", load(partial(read_file, words)))]
        yield files


def read_file(path):
    """A plain file's bytes."""
    if not os.path.isfile(path):   # nor is a pipe, at which one would wait for ever
        raise Unusable("a file that is not there")
    check_bytes(path.stat().st_size)
    return path.read_bytes()


def suffix_of(name):
    """Of a path's last part, in small letters: ".jpg"."""
    return os.path.splitext(name)[1].lower()


def read_table(path):
    """The rows of captions.jsonl or .csv, (path, caption's bytes). ValueError names the line that is none.

    What is not UTF-8 stays as it is until its example is read, and is counted then.
    """
    rows = []
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        try:
            lines = csv.DictReader(file) if path.suffix == ".csv" else (json.loads(x) for x in file if x.strip())
            for entry in lines:
                name = caption_of(entry, ("file", "file_name"))
                parts = Path(name).parts
                if not parts or Path(name).is_absolute() or ".." in parts:   # a table is not to lead out of its folder
                    raise ValueError(f"it has no file that is inside {path.parent}")
                caption = caption_of(entry, ("caption", "text"))
                rows.append((Path(name).as_posix(), caption.encode("utf-8", "surrogatepass")))
        except (ValueError, RecursionError, csv.Error) as e:
            raise ValueError(f"{path}, entry {len(rows) + 1}, should give file and caption: {e}") from None
    return rows


class Shards:
    """Tar archives; a unit is one of them, its examples come in the order they have there.

    The WebDataset convention: neighbours of one name up to its first dot are one example, such as 0007.jpg and
    0007.txt. Nothing is mixed within a shard: shuffle before packing, and make many more shards than readers.
    """

    def __init__(self, paths):
        self.units = paths
        self.names = [Path(path).name for path in paths]   # a set of shards may move to another disk

    def label(self, unit):
        """A unit's name for people."""
        return self.names[unit]

    def examples(self, unit, skip):
        """A shard's groups of files for `example`, without the first `skip`, whose bytes are passed over."""
        for index, (_, files) in enumerate(groupby(shard_files(self.units[unit]), key=lambda file: file[0])):
            if index >= skip:
                yield [(suffix, read()) for _, suffix, read in files]   # before the next is looked for: forwards only


class Bounded(io.BufferedReader):
    """A file of which nobody gets more than MAX_BYTES at once.

    An archive's long names and extended headers go through memory too, and give their lengths themselves.
    """

    def read(self, size=-1):
        if not 0 <= size <= MAX_BYTES:
            raise tarfile.ReadError(f"{size} bytes at once")
        return super().read(size)


def shard_files(path):
    """A shard's pictures and captions, one after the other: (name, suffix, function that loads it).

    An archive is a stranger's. Nothing is unpacked, so its names lead nowhere; links, devices and what else is not a
    plain file are passed over. What is whole before a cut or damage comes, then one that loads as Unusable.
    """
    why = "a shard that is damaged or cut off"
    try:
        # "r:" is tar and nothing else: no decompression, hence no bomb
        with Bounded(io.FileIO(path)) as file, tarfile.open(fileobj=file, mode="r:") as tar:
            length, offset = os.fstat(file.fileno()).st_size, -1
            while (member := tar.next()) is not None:
                tar.members.clear()                                # tarfile would keep them all
                end = member.offset_data + member.size
                if not offset < member.offset < member.offset_data <= end <= length:    # a size may even be negative
                    raise tarfile.ReadError
                offset = member.offset
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                suffix = f".{suffix.lower()}"
                if stem and suffix in PICTURES + CAPTIONS and member.isreg() and not member.issparse():
                    yield (folder, stem), suffix, partial(load, partial(read_at, file, member))
            # tarfile takes damage for the end; a true end is a block of zeros
            file.seek(tar.offset)
            if file.read(512) == bytes(512):
                return
    except FileNotFoundError:
        why = "a shard that is gone"
    except Exception:   # as in `example`
        pass
    yield None, "", lambda: Unusable(why)


def read_at(file, member):
    """The bytes of a tar's member."""
    check_bytes(member.size)
    file.seek(member.offset_data)
    return file.read(member.size)


def find_pictures(where):
    """A folder of pictures, or shards: a .tar file, a folder of them, or a pattern such as "data/{00000..00099}.tar" or
    "data/*.tar". -> Folder or Shards. ValueError, one line, where there is nothing."""
    root = Path(where)
    if not root.is_dir():
        return Shards(find_shards(str(where)))
    names = sorted(Path(folder, name).relative_to(root).as_posix() for folder, inside, files in os.walk(root)
                   if not any(part.startswith(".") for part in Path(folder).relative_to(root).parts)
                   for name in files if not name.startswith("."))
    shards = [str(root / name) for name in names if suffix_of(name) == ".tar"]
    folder = Folder(root, names)
    if shards and folder.units:
        raise ValueError(f"{where} holds both pictures and .tar shards; give each a folder of its own")
    if not shards and not folder.units:
        raise ValueError(f"{where} holds no pictures ({', '.join(PICTURES)}) and no .tar shards")
    return Shards(shards) if shards else folder


def find_shards(pattern):
    """The shards of a pattern. ValueError if there is none, or one that braces name is missing."""
    paths = []
    for name in [pattern] if Path(pattern).exists() else expand(pattern):
        paths += sorted(glob.glob(name)) if glob.has_magic(name) and not Path(name).exists() else [name]
    missing = [path for path in paths if not Path(path).is_file() or suffix_of(path) != ".tar"]
    if missing or not paths:
        what = f"{missing[0]} (of {len(paths)})" if len(paths) > 1 else pattern
        raise ValueError(f"{what} is neither a folder nor a .tar file that is there")
    return list(dict.fromkeys(paths))


def expand(pattern):
    """"a{08..11}.tar" -> ["a08.tar", "a09.tar", "a10.tar", "a11.tar"], as a shell does it."""
    found = re.search(r"\{(\d{1,6})\.\.(\d{1,6})\}", pattern)
    if not found:
        return [pattern]
    first, last = found.groups()
    return [name for n in range(int(first), int(last) + 1) for name in
            expand(f"{pattern[:found.start()]}{n:0{len(first)}}{pattern[found.end():]}")]


# --- Whose turn it is ---

# Think of one endless sequence of units: epoch after epoch, each a permutation of all. Of n readers, reader k takes the
# places k, k+n, k+2n, ... So nothing is read twice and nothing forgotten, without a word between them, and together
# they read what a single one would. A reader's bookmark is
#     {"begun": [[place, examples of it that are done], ...], "next": place}
# and it goes through `begun`, then to next, next+n, ...

@lru_cache(maxsize=2)
def permutation(n, seed, epoch):
    """The order of an epoch's n units, as an array."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def deal(bookmarks, readers):
    """The bookmarks of all readers of a run, dealt out to another number of them; the same number keeps its own.

    Nothing is lost and nothing comes twice. The order may change: what lay between the readers comes first.
    """
    if len(bookmarks) == readers:
        return bookmarks
    # Readers do not run in step. Behind `front` nobody has begun anything; before it are gaps, some of each reader's
    front = max(mark["next"] for mark in bookmarks)
    left = [place for mark in bookmarks for place in mark["begun"]]
    left += [[place, 0] for mark in bookmarks for place in range(mark["next"], front, len(bookmarks))]
    left.sort()
    while left and left[-1] == [front - 1, 0]:   # readers in step leave no gaps: then the order stays, too
        front -= 1
        left.pop()
    return [{"begun": left[k::readers], "next": front + k} for k in range(readers)]


class Reader:
    """One of a run's readers: endless examples, and a bookmark to go on from. See above."""

    def __init__(self, source, config, bookmark, stride):
        self.source, self.config, self.stride = source, config, stride
        self.begun, self.next = [list(place) for place in bookmark["begun"]], bookmark["next"]
        self.seen, self.bad, self.barren = 0, Counter(), set()
        self.first = {}     # reason -> where it was met first: of twenty pictures one wants to know which

    def bookmark(self):
        """Where it is, as lists and numbers that do not change when it goes on."""
        return {"begun": [list(place) for place in self.begun], "next": self.next}

    def __iter__(self):
        """Endless (uint8 [3, size, size], caption). ValueError when too much is unusable."""
        n = len(self.source.units)
        while True:
            if not self.begun:
                self.begun, self.next = [[self.next, 0]], self.next + self.stride
            here = self.begun[0]
            place, used = here
            self.unit = unit = int(permutation(n, self.config.seed, place // n)[place % n])
            for files in self.source.examples(unit, used):
                here[1] += 1
                found = self.take(files, f"{self.config.seed} {place} {here[1]}")
                if found:
                    yield found      # and the bookmark says that it is done
            if here[1] == 0:
                self.take([("", Unusable("an empty shard"))], "")
            if not used and self.bad.total() == self.seen:
                self.barren.add(unit)
            self.begun.pop(0)
            if len(self.barren) == n and self.bad.total() == self.seen:
                raise ValueError(f"nothing here can be used: {counted(self.bad, self.first)}")

    def take(self, files, dice):
        """A group of files as (picture, caption), or None, and counted. Where a random crop is depends on dice alone, a
        text that names seed and place: after a stop the same one comes again."""
        self.seen += 1
        try:
            image, caption = example(files, self.config.size)
        except Unusable as e:
            self.bad[str(e)] += 1
            self.first.setdefault(str(e), self.source.label(self.unit))
            bad, most = self.bad.total(), self.config.bad_share
            if self.seen >= 100 and bad > most * self.seen:
                raise ValueError(f"{bad} of {self.seen} examples cannot be used, more than {most:.0%} (bad_share):"
                                 f" {counted(self.bad, self.first)}") from None
            return None
        return square(image, self.config.size, random.Random(dice) if self.config.crop == "random" else None), caption


def counted(bad, first):
    """{reason: how often} and {reason: where first} in words, the most frequent first."""
    return ", ".join(f"{n} × {why} ({first[why]})" for why, n in Counter(bad).most_common())


class Batches(IterableDataset):
    """What a process or each of its workers goes through: whole batches, each with what is known after it.

    (uint8 [batch, 3, size, size], captions, bookmark, (seen, bad)). Where it cannot go on a text alone, and no more: an
    error that crossed from a worker would bring its traceback along.
    """

    def __init__(self, source, config, bookmarks, stride):
        self.source, self.config, self.bookmarks, self.stride = source, config, bookmarks, stride

    def __iter__(self):
        worker = get_worker_info()
        reader = Reader(self.source, self.config, self.bookmarks[worker.id if worker else 0], self.stride)
        examples = iter(reader)
        try:
            while True:
                pictures, captions = zip(*islice(examples, self.config.batch))
                yield torch.stack(pictures), list(captions), reader.bookmark(), (reader.seen, dict(reader.bad))
        except ValueError as e:
            yield (str(e),)


def begin_worker(_):
    """A worker ends when its parent says so or is gone, and at nothing else.

    Ctrl-C goes to all of a terminal's processes, and the signal that ends a job to all of the job's. The parent stops
    in order then, for which it may need one more batch.
    """
    parent = os.getppid()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    patient = hasattr(signal, "sigtimedwait")   # who sent a signal can be asked on Linux; elsewhere every one counts
    if patient:
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
    else:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)   # not what the parent does, which is to save and leave

    def watch():
        told = None
        while os.getppid() == parent and not (told and told.si_pid == parent):
            told = signal.sigtimedwait([signal.SIGTERM], 1) if patient else time.sleep(1)
        os._exit(0)
    threading.Thread(target=watch, daemon=True).start()


class Pictures:
    """Endless batches of somebody's own pictures: `next()`; `state()` says how to go on exactly.

    where    what `find_pictures` takes
    reader   (rank, ranks): which of how many processes this is; together they see every example once an epoch
    workers  processes that decode ahead; 0: none. A batch is from one of them, in turn
    state    of an earlier run: `merge` of what all its processes said, however many they were

    seen counts the examples that went into what was delivered, bad the unusable of them by reason, both since this
    object was made. ValueError, one line, for what cannot be read, here or from `next`.
    """

    def __init__(self, where, config, *, reader=(0, 1), workers=0, state=None):
        if config.crop not in ("centre", "random"):
            raise ValueError(f"crop {config.crop!r}: a crop is centre or random")
        source, (rank, ranks), each = find_pictures(where), reader, max(1, workers)
        self.where, self.delivered, self.counts = where, 0, [(0, {})] * each
        digest = hashlib.sha256()
        for name in source.names:
            digest.update(repr(name).encode())
        self.facts = {"seed": config.seed, "files": digest.hexdigest()}
        if state is not None and any(state[name] != fact for name, fact in self.facts.items()):
            raise ValueError(f"{where} holds other files than when this run began, or the seed is another;"
                             " put them back, or begin a new run from its weights")
        began = [{"begun": [], "next": k} for k in range(ranks * each)]
        marks = began if state is None else deal(state["readers"], len(began))
        self.bookmarks = marks[rank * each:(rank + 1) * each]
        batches = Batches(source, config, list(self.bookmarks), len(began))
        # A generator of its own: the loader would draw from the one that also makes the training's noise
        self._batches = iter(DataLoader(batches, batch_size=None, num_workers=workers, worker_init_fn=begin_worker,
                                        collate_fn=tuple, generator=torch.Generator()) if workers else batches)

    def next(self):
        """-> pictures uint8 [batch, 3, size, size] and their captions, a list."""
        try:
            item = next(self._batches)
        except RuntimeError as e:
            if not str(e).startswith("DataLoader worker"):
                raise
            # A worker was killed, mostly for the memory it took
            raise ValueError(f"{self.where}: {str(e).splitlines()[0]}") from None
        if len(item) == 1:
            self.close()
            raise ValueError(f"{self.where}: {item[0]}")
        pictures, captions, bookmark, counts = item
        turn = self.delivered % len(self.bookmarks)   # the loader asks its workers in turn
        self.bookmarks[turn], self.counts[turn] = bookmark, counts
        self.delivered += 1
        return pictures, captions

    def close(self):
        """Let the workers go; nothing comes after it.

        Python would see to it too, but late if an error still holds on to this object: the queues may then be gone by
        which workers are told, and each is waited for in vain, five seconds long.
        """
        self._batches = iter(())

    @property
    def seen(self):
        return sum(seen for seen, _ in self.counts)

    @property
    def bad(self):
        return sum((Counter(bad) for _, bad in self.counts), Counter())

    def state(self):
        """How to go on after the last batch that was *delivered*; what workers prefetched is made again.

        Lists, texts and whole numbers. The worker whose turn is next comes first.
        """
        turn = self.delivered % len(self.bookmarks)
        return {"readers": self.bookmarks[turn:] + self.bookmarks[:turn], **self.facts}

    @staticmethod
    def merge(states):
        """One state of those of all processes, in the order of their ranks."""
        return {**states[0], "readers": [mark for state in states for mark in state["readers"]]}


# --- The bill ----------------------------------------------------------------------------------------

# What will a run take? It can be known to the byte and to the day before anything is bought, from shapes alone. torch
# can walk through a network whose tensors have a shape, a type and no numbers ("fake" ones): no memory is touched, so
# the paper's largest model is priced on a laptop, in seconds. Three accounts are kept on that walk:
#
#   · what training holds for every parameter: 4 bytes of weight, 4 of gradient, 8 of Adam, 4 of average, 20 in all.
#     They can be shared out over the GPUs (sharding: each holds a piece and borrows the others' when it needs them);
#   · what autograd keeps of the way forward, because the way back will ask for it. That grows with the pictures, and
#     can be thrown away and computed again (`recompute`);
#   · the multiplications. Peak and the share of it that one reaches turn them into days.
BLOCKS = unet.ResBlock, unet.TextAttention, transformer.Block   # what is recomputed, or gathered from its shards, at once


def recompute(network):
    """Make a network's blocks forget what they did on the way forward and do it again on the way back.

    Of each block only the input is kept, memory for time: most of a way forward once more, a fifth of a step. The answers and
    the gradients stay the same to the bit, dropout included, whose dice are set back. It changes `network`, once (a
    second call does nothing), but no weight and no name of one, and its type knows nothing of it. -> network

    Chen et al. 2016, arXiv 1604.06174. Without gradients (samples, EMA) nothing is kept and so nothing done twice.
    """
    for part in network.modules():
        if isinstance(part, BLOCKS) and "forward" not in vars(part):
            part.forward = partial(_forgetful, part.forward)
    return network


def _forgetful(forward, x, *given):
    """A block's forward that keeps x and given only. Text keys and values come as a pair, and go one by one: torch
    takes charge of tensors that it is handed, not of those in a tuple."""
    if given and not torch.is_tensor(given[0]):
        return checkpoint(lambda x, *pair: forward(x, pair), x, *given[0], use_reentrant=False)
    return checkpoint(forward, x, *given, use_reentrant=False)


def ask(network, side, pictures):
    """One way forward with so many pictures of side × side and their captions, zeros all of them, on the default
    device. -> what comes out; of a CLIP the sum of both towers' vectors, so that its gradient reaches both."""
    config = network.config
    t = torch.zeros(pictures, dtype=torch.long)
    tokens = torch.zeros(pictures, config.text.context, dtype=torch.long)
    if isinstance(network, guidance.NoisedCLIP):
        # `text` would look for the longest caption's length: a number, which a tensor of shape only does not hold
        words = network.caption.tokens(tokens) + network.caption.positions
        return network.image(torch.zeros(pictures, 3, side, side), t) + network.caption.read(words, t)
    return network(torch.zeros(pictures, config.in_channels, side, side), t, tokens=tokens, mask=tokens == 0)


@contextmanager
def noting_kept(network):
    """Yields a dictionary that fills with the storages which autograd keeps inside, each once, and no weight of the
    network's, which is there anyway. A storage is the memory behind a tensor; many tensors may be views of one."""
    weights, kept = {p.untyped_storage()._cdata for p in network.parameters()}, {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage   # held, or its address might be used again for another one
        return tensor
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        yield kept


def total(storages):
    """Bytes."""
    return sum(storage.nbytes() for storage in storages)


@contextmanager
def counting_flop(network):
    """Yields {kind: FLOP} of what the network computes inside: 2 for each multiply-add, one × and one +.

    Convolutions, linear layers and attention's two products are everything that is worth counting. Norms,
    activations and sums do a handful of operations a number, these do thousands.
    """
    flop, attention = dict.fromkeys(("convolutions", "linear layers", "attention"), 0), transformer.attention

    def count(part, given, out):
        # Each number that comes out sums as many products as one output's weights: C·3·3 of a convolution, D of a layer
        kind = "convolutions" if isinstance(part, nn.Conv2d) else "linear layers"
        flop[kind] += 2 * out.numel() * part.weight[0].numel()

    def counted(q, k, v, **options):
        flop["attention"] += 2 * 2 * q.numel() * k.shape[2]   # q·kᵀ, then its softmax times v; M keys for every query
        return attention(q, k, v, **options)
    hooks = [part.register_forward_hook(count) for part in network.modules() if isinstance(part, (nn.Conv2d, nn.Linear))]
    with mock.patch.object(transformer, "attention", counted):   # all attention of the course goes through it (02)
        yield flop
    for hook in hooks:
        hook.remove()


@contextmanager
def as_on_a_gpu(network):
    """Inside, a network of fake tensors, which say they lie on a CPU, keeps for the way back what it would on a GPU.

    Three habits differ: there autocast turns to float32 for norms; a dropout's mask takes one byte and not four; and
    attention is fused in training too, so that the N×M weights are never kept (02).
    """
    def fused(q, k, v, *, causal=False):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    for part in network.modules():
        if isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
            part.register_forward_pre_hook(lambda part, given: (given[0].float(),))
        elif isinstance(part, nn.Dropout):
            part.forward = lambda x, p=part.p: torch.native_dropout(x, p, True)[0]
    with mock.patch.object(transformer, "attention", fused):
        yield


def network_of(config):
    """A fresh network of a preset's sizes, with its first weights."""
    return (guidance.NoisedCLIP if isinstance(config, guidance.CLIPConfig) else unet.UNet)(config)


def walk(config, side, pictures, *, recomputed=False, back=False, gpu=True):
    """A way forward, with `back` also the way back, in bf16 and without memory. -> bytes kept for the way back, bytes
    kept inside each block [list], {kind: FLOP}, network.

    FLOP are those of the layers' forward passes, the repeated ones too. They need not be all of them: a block that is
    computed again stops when backward has what it asked for, and so does not make its last product.
    """
    from torch._subclasses.fake_tensor import FakeTensorMode   # here, so that importing this file stays quick
    with FakeTensorMode():
        network, inside, began = network_of(config), [], []
        if recomputed:
            recompute(network)
        for part in network.modules():
            if isinstance(part, BLOCKS):
                part.register_forward_pre_hook(lambda *_: began.append(len(kept)))
                part.register_forward_hook(lambda *_: inside.append(total(list(kept.values())[began[-1]:])))
        with as_on_a_gpu(network) if gpu else nullcontext(), counting_flop(network) as flop:
            # No weight is used twice, so autocast's store of 16-bit copies would only hold them all till the end
            with noting_kept(network) as kept, torch.autocast("cpu", torch.bfloat16, cache_enabled=False):
                answer = ask(network, side, pictures)
            if back:
                answer.sum().backward()
        return total(kept.values()), inside, flop, network


@dataclass(frozen=True)
class Activations:
    """Bytes kept between the way forward and the way back: a fixed part, a part a picture, and, where blocks are
    recomputed, the same two of each block, since the one that is at work keeps all of its own for a moment."""

    fixed: int
    picture: int
    blocks: tuple = ((0, 0),)

    def bytes(self, pictures):
        """With so many pictures at a time."""
        return self.fixed + pictures * self.picture + max(f + pictures * p for f, p in self.blocks)

    def most(self, room):
        """How many pictures at a time fit into so many bytes."""
        return max(0, min(int((room - self.fixed - f) // (self.picture + p)) for f, p in self.blocks))


@lru_cache
def measure(config, side):
    """-> {"plain", "recomputed": Activations}, the same of a picture's FLOP, {kind: FLOP} of its way forward, network.

    Bytes lie on a straight line, which two walks give: with 2 pictures and with 3. (One alone would not do: of a single
    picture some copies are not made.)
    """
    def line(two, three):
        return 3 * two - 2 * three, three - two
    plain, again = ([walk(config, side, n, recomputed=flag, back=flag and n == 2) for n in (2, 3)]
                    for flag in (False, True))
    kept = [line(*(one[0] for one in both)) for both in (plain, again)]
    blocks = tuple(map(line, *(one[1] for one in plain)))
    forward, twice = (sum(both[0][2].values()) // 2 for both in (plain, again))
    # On the way back each product becomes two, one for the input's gradient and one for the weight's: three in all.
    # The paper's base model then takes 2.85e22 for its run and its upsampler 1.26e22. GLIDE says: about the compute of
    # DALL·E, which at 6 FLOP a parameter and token took 6 × 12e9 × 430,000 × 1,024 × 1,280 = 4.06e22 (Ramesh et al.
    # 2021, arXiv 2102.12092: 12 G parameters, 430,000 steps of 1,024 rows of 1,280 tokens).
    return ({"plain": Activations(*kept[0]), "recomputed": Activations(*kept[1], blocks)},
            {"plain": 3 * forward, "recomputed": twice + 2 * forward},
            {kind: flop // 2 for kind, flop in plain[0][2].items()}, plain[0][3])


@dataclass(frozen=True)
class Machines:
    """What a run is to be paid on. GB are 10⁹ bytes, TFLOP/s 10¹² a second."""

    gpus: int = 1
    memory: float = 80.0   # GB of each
    peak: float = 990.0    # TFLOP/s of each: bfloat16, dense, of an H100 (SXM) or H200, as their data sheet has it
    share: float = 0.4     # of the peak that a run reaches


def flop_of_a_picture(preset, work):
    """What a step takes for each of its pictures, forward and back."""
    def forward(again):
        return sum(walk(preset.network, preset.train.crop or preset.size, 1, recomputed=again, back=again)[2].values())
    # As in `measure`, without the accounts of bytes, which a run has no use for
    once = forward(False)
    return (forward(True) if work.recompute else once) + 2 * once


def matrix_rate(device, bf16):
    """The peak as it is here: FLOP/s of the product of two large matrices, the best of a few, in half a second."""
    n, best = 8192 if torch.device(device).type == "cuda" else 1024, math.inf
    a = torch.randn(n, n, device=device, dtype=torch.bfloat16 if bf16 else torch.float32)
    for _ in range(5):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()        # the answer is waited for
        best = min(best, time.perf_counter() - begin)
    return 2 * n ** 3 / best


RESERVE = 0.1   # of the memory, for what is not counted: operations' scratch space, the allocator's gaps, the driver


class Plan:
    """What a preset takes on given machines. pictures: how many a GPU takes at a time; default: the largest even part
    of its share of a batch that fits, with recomputation if the run is to have it. ValueError for numbers that do not
    divide each other."""

    def __init__(self, preset, machines, *, pictures=None, recomputed=False):
        self.preset, self.machines, self.side = preset, machines, preset.train.crop or preset.size
        self.part, rest = divmod(preset.train.batch, machines.gpus)
        if rest:
            raise ValueError(f"{preset.train.batch} pictures a step cannot be shared out evenly to {machines.gpus} GPUs")
        if pictures and self.part % pictures:
            raise ValueError(f"a GPU's part of a step, {self.part} pictures, cannot be taken {pictures} at a time")
        self.kept, self.step, self.forward, self.network = measure(preset.network, self.side)   # step: FLOP of a picture
        most = max(1, self.most("recomputed" if recomputed else "plain", sharded=True))
        self.pictures = pictures or max(n for n in range(1, self.part + 1) if self.part % n == 0 and n <= most)

    def states(self, *, sharded):
        """{what: bytes on each GPU}, whatever the number of pictures."""
        bytes_of = {"weights": 4, "gradients": 4, "optimiser": 8, "EMA": 4}
        all_of, gpus = unet.parameters(self.network), self.machines.gpus if sharded else 1
        blocks = [unet.parameters(part) for part in self.network.modules() if isinstance(part, BLOCKS)]
        # Of two blocks at a time, the one at work and the next, and of what is in no block, weights and gradients whole
        whole = all_of - sum(blocks) + 2 * max(blocks) if gpus > 1 else 0
        return {what: n * all_of / gpus for what, n in bytes_of.items()} | {"gathered": 8 * whole}

    def most(self, way, *, sharded):
        """How many pictures at a time fit on a GPU; way is "plain" or "recomputed"."""
        room = (1 - RESERVE) * self.machines.memory * 1e9 - sum(self.states(sharded=sharded).values())
        return self.kept[way].most(room)

    def gpu_days(self, way):
        """Days of one GPU for the whole run."""
        run = self.step[way] * self.preset.train.batch * self.preset.train.steps
        return run / (self.machines.peak * 1e12 * self.machines.share) / 86400


def print_plan(plan, title):
    """The bill as tables: a line for each number, and beside it where it comes from."""
    train, gpus = plan.preset.train, plan.machines.gpus
    everything, side = unet.parameters(plan.network), plan.side
    words = unet.parameters(getattr(plan.network, "caption", None) or plan.network.text)
    print(f"The bill of {title}: {train.steps:,} steps of {train.batch:,} pictures, {side} × {side} pixels, on {gpus}"
          f" GPU{'s' * (gpus > 1)}.\nNothing was allocated for it: a network of shapes without numbers told it all."
          f"\n\nParameters  {everything:,}: {everything - words:,} for pictures, {words:,} for captions")
    print_memory(plan, *((1e9, "GB, 10⁹ bytes") if 20 * everything > 1e9 else (1e6, "MB, 10⁶ bytes")))
    print_work(plan)


def row(name, *cells, note=""):
    """A line of a table: its name, its numbers under one another, where they come from."""
    numbers = (f"{cell:,.3f}" if isinstance(cell, float) else cell for cell in cells)
    print(f"  {name:<11}{''.join(f'{number:>16}' for number in numbers)}   {note}".rstrip())


def print_memory(plan, unit, name):
    """What a GPU holds, what it keeps from forward to backward, and how many pictures at a time that allows."""
    n, whole, sharded = plan.pictures, plan.states(sharded=False), plan.states(sharded=True)
    print(f"\nHeld by each GPU, in {name}")
    row("", "whole", f"sharded by {plan.machines.gpus}")
    for what, note in zip(whole, (
            "4 bytes a parameter: float32", "as many",
            "8: Adam's averages of gradient and square", "4: the averaged weights",
            "whole: two blocks, what is in none, gradients")):
        row(what, whole[what] / unit, sharded[what] / unit, note=note)
    row("together", sum(whole.values()) / unit, sum(sharded.values()) / unit)
    print("\nKept from the way forward for the way back, computing in bf16 as on a GPU")
    row("", "fixed", "a picture", f"{n} at a time")
    for (way, kept), note in zip(plan.kept.items(), (
            "fixed: 16-bit copies of the weights", "inputs of blocks, all of one block")):
        row(way, kept.fixed / unit, kept.picture / unit, kept.bytes(n) / unit, note=note)
    print(f"\nBoth together; how many pictures at a time fit into {plan.machines.memory:g} GB, {RESERVE:.0%} of it left free")
    row("", "whole", f"sharded by {plan.machines.gpus}")
    for way, kept in plan.kept.items():
        sums = [(sum(states.values()) + kept.bytes(n)) / unit for states in (whole, sharded)]
        row(way, *sums, note=f"{plan.most(way, sharded=False):,} fit whole, {plan.most(way, sharded=True):,} sharded")
    print(f"  A GPU's part of a step is {plan.part:,} pictures: {plan.part // n:,} × {n:,}, which is --parts {plan.part // n}")


def print_work(plan):
    """FLOP, and what they come to in days."""
    train, machines, forward = plan.preset.train, plan.machines, sum(plan.forward.values())
    print("\nFLOP: 2 for each multiply-add of " + ", ".join(f"{kind} ({n / forward:.0%})" for kind, n in plan.forward.items())
          + "; all else is left out")
    row("", "a picture", "a step", "the run")
    for what, n, note in (("forward", forward, f"a step is {train.batch:,} pictures"),
                          ("plain", plan.step["plain"], "backward is twice forward"),
                          ("recomputed", plan.step["recomputed"], "and most of forward once more")):
        row(what, *(f"{n * times:.2e}" for times in (1, train.batch, train.batch * train.steps)), note=note)
    print(f"\nTime at {machines.share:.0%} (--share) of {machines.peak:g} TFLOP/s a GPU (--peak; 990: H100 and H200 in dense"
          " bf16)")
    row("", "GPU-days", "a step", "the run")
    for way in plan.kept:
        days = plan.gpu_days(way)
        row(way, f"{days:,.1f}" if days >= 1 else f"{days:.1e}", span(days / machines.gpus / train.steps),
            span(days / machines.gpus), note=f"on {machines.gpus} GPU{'s' * (machines.gpus > 1)}")


def span(days):
    """A time in the unit that suits it."""
    for name, length in ("days", 1), ("hours", 24), ("min", 1440):
        if days * length >= 1:
            return f"{days * length:,.1f} {name}"
    return f"{days * 86400:.3g} s"


# --- The command line --------------------------------------------------------------------------------

def save_judge(path, *, size, steps, seed, facts):
    """Train a judge, measure its ceiling on real pictures, print it and write both."""
    start = time.time()
    judge = train_judge(size, steps=steps, seed=seed)
    minutes = round((time.time() - start) / 60, 1)
    ceiling = judge_ceiling(judge)
    unet.save_weights(path, judge, ceiling=ceiling, made={"steps": steps, "seed": seed, "minutes": minutes, **facts})
    print(f"trained in {minutes} minutes; how often it is right about real pictures of {size} pixels:")
    print_rates(ceiling)


def print_rates(rates):
    """A line for each of {name: (right, n)}, with its interval: a rate without one invites comparing chance."""
    for kind, (right, n) in rates.items():
        low, high = wilson(right, n)
        print(f"  {kind:<12} {right / n:6.1%}   n {n}, 95% interval {low:.1%} to {high:.1%}")


def arguments(argv=None):
    """The command line. What is not given is None wherever a preset or --start has a say in the default."""
    parser = argparse.ArgumentParser(description="Train a model of the little world.", allow_abbrev=False)
    add = parser.add_argument
    add("model", nargs="?", default="base", choices=("base", "upsampler", "inpaint", "inpaint-upsampler", "clip", "judge"))
    add("--world", choices=("single", "full"),
        help="single things, or all the language says (default: what --start was trained on, else single)")
    add("--steps", type=positive, help="how long (default: the preset's)")
    add("--batch", type=positive, help="pictures a step (default: the preset's)")
    add("--lr", type=above_zero, help="the learning rate, of a U-Net without its text encoder (default: the preset's)")
    add("--freeze", nargs="*", metavar="PART",
        help="parts of the network that stay as they begin: text, pool, time, enter, down, middle, up, leave; unet is"
             " all but text; --freeze alone is none (default: the preset's)")
    add("--crop", type=int, choices=(32, 64), help="pixels of the upsampler's training squares (default: 32)")
    add("--size", type=int, default=16, choices=(16, 32, 64), help="of the judge's pictures")
    add("--seed", type=seed, default=0)
    add("--out", type=Path, help="folder for weights, samples and curves (default: outputs/train-MODEL)")
    add("--start", type=Path, help="weights to begin with, such as lessons/weights/base.pt or a run's checkpoint-0000200.pt"
                                   " (default: random ones; to inpaint, lessons/weights' base.pt or upsampler.pt, which get"
                                   " more channels)")
    add("--resume", action="store_true", help="go on from the checkpoint in that folder")
    add("--preset", choices=tuple(PRESETS), default="tiny", help="how large (default: tiny)")
    own_options(parser)
    plan_options(parser)
    sum_options(parser)
    return parser.parse_args(argv)


def own_options(parser):
    """What `data_of` and `tokenizer_of` read."""
    add = parser.add_argument_group("pictures of one's own, instead of the little world").add_argument
    add("--data", metavar="WHERE", help="a folder of pictures with NAME.txt beside each or captions.csv/.jsonl; or tar"
                                        ' shards: "shards/{0000..0099}.tar"')
    add("--workers", type=count, default=0, help="processes that decode pictures ahead (default: none)")
    add("--random-crop", action="store_true", help="a random square of each, not the middle one")
    add("--bad-share", type=above_zero, default=0.05,
        help="stop when more than this share of the examples cannot be used (default: 0.05)")
    add("--vocab", type=Path, help="GPT-2's merge list, vocab.bpe, for the large presets' captions; for clip"
                                   " CLIP's (default: the tokenizer of --start, else, of tiny, one trained on the captions)")


def plan_options(parser):
    """What `show_plan` reads."""
    add = parser.add_argument_group("the bill, before there is anything to pay").add_argument
    add("--plan", action="store_true", help="print what the run would take, in bytes and days, and leave")
    add("--gpus", type=positive, help="of a plan (default: 1)")
    add("--per-gpu", type=positive, help="of a plan: pictures at a time on each (default: as many as fit)")
    add("--memory", type=above_zero, help="of a plan: GB of each GPU (default: 80)")
    add("--peak", type=above_zero, help="TFLOP/s of each GPU (default: of a plan 990, an H100's or H200's in bf16;"
                                       " of a run what a large matrix product reaches here)")
    add("--share", type=above_zero, help="of a plan: how much of that is reached, up to 1 (default: 0.4)")


def sum_options(parser):
    """What `work_of` reads."""
    add = parser.add_argument_group("how the sums are done: nothing here changes what is learned, but for"
                                    " rounding").add_argument
    add("--device", type=device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--parts", type=positive, default=1, help="a batch goes through in so many parts: less memory")
    add("--recompute", action="store_true", help="compute activations again on the way back: much less memory,"
                                                  " a fifth more work")
    add("--compile", metavar="BACKEND", nargs="?", const="inductor", help="torch.compile (default: inductor)")
    add("--shard", action="store_true", help="divide the weights among torchrun's processes (FSDP2)")
    add("--dtype", choices=("float32", "bfloat16"), help="of the products (default: bfloat16 where it is fast)")
    add("--save-every", type=positive, help="steps between two checkpoints (default: 200; large presets a tenth of"
                                            " the run, 100 to 2,000)")
    add("--keep", type=positive, default=2, help="how many checkpoints stay")


def work_of(args):
    """The options of that group as a Work. Under torchrun: this process joins the others, on a GPU of its own."""
    device = args.device
    if "RANK" in os.environ:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    elif args.shard:
        raise ValueError("--shard divides a network among processes; start them with: torchrun --nproc-per-node 8 08_train.py …")
    bf16 = None if args.dtype is None else args.dtype == "bfloat16"
    # An hour or so of a large run; but who fine-tunes for 500 steps does not want to lose them all, nor to see nothing
    steps = args.steps or PRESETS[args.preset][args.model].train.steps
    every = args.save_every or (200 if args.preset == "tiny" else min(2000, max(100, steps // 10)))
    work = Work(device, args.parts, args.recompute, args.compile, args.shard, bf16, every, args.keep)
    return replace(work, peak=1e12 * args.peak if args.peak else matrix_rate(device, wants_bf16(work)))


def data_of(args, preset):
    """--data as what a Run takes: a function that opens the pictures; None for the little world."""
    if args.data is None:
        return None

    def pictures(*, batch, reader, state=None, workers=args.workers):
        config = DataConfig(preset.size, batch, args.seed, "random" if args.random_crop else "centre", args.bad_share)
        return Pictures(args.data, config, reader=reader, workers=workers, state=state)
    return pictures


def tokenizer_of(args, preset, start):
    """Whose words the captions are cut into: those that the first weights know, else GPT-2's, else for pictures of one's
    own the best for their captions. None is the little world's. ValueError where the network has no room for them."""
    if start is not None:
        tok = tokenizer_in(read_start(start))
    elif args.vocab is not None:
        clip = args.model == "clip"
        tok = tokenizer.CLIPTokenizer.from_file(args.vocab) if clip else tokenizer.BPETokenizer.from_gpt2(args.vocab)
    elif args.data is not None:
        tok = tokenizer.BPETokenizer.train(captions_of(args.data), preset.network.text.vocab_size)
    else:
        return None
    if tok.vocab_size > preset.network.text.vocab_size:
        raise ValueError(f"the vocabulary has {tok.vocab_size:,} tokens, and the {args.preset} network has room for"
                         f" {preset.network.text.vocab_size:,}")
    return tok


def captions_in(where, most=100_000):
    """The first captions of somebody's pictures, whose words a tokenizer is trained on. No picture is decoded."""
    source = find_pictures(where)
    for unit in range(len(source.units)):
        for files in source.examples(unit, 0):
            words = [read_caption(suffix, data) for suffix, data in files
                     if suffix in CAPTIONS and not isinstance(data, Unusable)]
            if any(words):
                yield next(filter(None, words))
                most -= 1
            if not most:
                return


@lru_cache
def captions_of(where):
    """The same as a tuple, read once."""
    return tuple(captions_in(where))


def words_in(text):
    """The words of a text in small letters, in order."""
    return re.findall(r"\w+", text.lower())


def words_learned(args, start, most=1000):
    """All words of somebody's few captions, sorted: what the weights can have learned to draw. Together with those of
    the weights that they began as. None where nobody can list them: for many captions, for weights of another kind."""
    if args.data is None:
        return None
    before, said = [] if start is None else read_start(start).get("made", {}).get("words"), captions_of(args.data)
    if before is None or len(said) > most:
        return None
    return sorted({*before, *(word for text in said for word in words_in(text))})


# Models that begin as others: what is fine-tuned, unless --start says otherwise.
STARTS = {"inpaint": unet.WEIGHTS / "base.pt", "inpaint-upsampler": unet.WEIGHTS / "upsampler.pt"}


# Types for argparse: what cannot be meant is refused with a sentence, before any work is done.

def positive(text):
    """A whole number, 1 or more."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above 0")
    return int(text)


def count(text):
    """A whole number, 0 or more."""
    return 0 if text == "0" else positive(text)


def above_zero(text):
    """A number above 0, and not infinite."""
    try:
        if 0 < float(text) < math.inf:
            return float(text)
    except ValueError:
        pass
    raise argparse.ArgumentTypeError(f"{text!r} is not a number above 0")


def seed(text):
    """A whole number that every generator takes."""
    if not text.isdecimal() or int(text) >= 2 ** 32:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0 to {2 ** 32 - 1}")
    return int(text)


def device(text):
    """The name of a device that computes here."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError, ImportError):
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here; cpu always works") from None
    return text


def main(argv=None):
    """One model, trained as the command line says. What a person can mend ends in one line and exit status 2."""
    try:
        return command(arguments(argv))
    except (OSError, ValueError) as e:
        sys.exit(refuse(e))
    except KeyboardInterrupt:       # before the first step, after the last, or for the second time
        say("stopped at once; nothing was saved but what is in the folder")
        sys.exit(130)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


def command(args):
    """What the command line asks for, done."""
    out = args.out or OUTPUTS / "-".join(["train", *([args.preset] if args.preset != "tiny" else []), args.model])
    said = {name: value for name, value in vars(args).items()   # what the weights will remember of their making
            if name not in ("model", "out", "resume") and value != vars(arguments([args.model]))[name]}
    facts = {"command": " ".join(["python 08_train.py", args.model, *map(option, said.items())])}
    check_options(args, said, out)
    if args.plan:
        return show_plan(args)
    if args.model == "judge":
        out.mkdir(parents=True, exist_ok=True)      # what cannot be made is refused now, not in two minutes
        save_judge(out / f"judge-{args.size}.pt", size=args.size, steps=args.steps or 1000, seed=args.seed, facts=facts)
        return
    start = args.start or (STARTS.get(args.model) if args.preset == "tiny" else None)
    preset, world = chosen(args, start)
    work, pictures, tok = work_of(args), data_of(args, preset), tokenizer_of(args, preset, start)
    if (words := words_learned(args, start)) is not None:
        facts["words"] = words
    weights = train(preset, out, difficulty=world, seed=args.seed, work=work, pictures=pictures, tok=tok, start=start,
                    resume=args.resume, facts=facts)
    if team()[0] == 0:
        tell_what_comes_next(args, weights)


def changes(args, *names):
    """Those of these options that the command line gives: {name: value}. The rest is the preset's."""
    return {name: value for name in names if (value := getattr(args, name)) is not None}


def chosen(args, start):
    """The preset with what the command line changes of it, and the world: start's, unless one says otherwise; "" where
    pictures of one's own take its place."""
    preset = PRESETS[args.preset][args.model]
    begun = read_start(start).get("difficulty") if start and not args.data else None
    world = "" if args.data else args.world or begun or "single"
    options = dict(FULL_WORLD.get(args.model, {})) if world == "full" and args.preset == "tiny" else {}
    options |= changes(args, "steps", "batch", "lr", "crop")
    if args.freeze is not None:
        options["freeze"] = frozen_parts(args.freeze, preset)
    return replace(preset, train=replace(preset.train, **options)), world


def tell_what_comes_next(args, weights):
    """The last lines of a run."""
    clip = args.model == "clip"
    rates = unet.read_file(weights).get("matching") if clip else None     # none where nobody knows what is true
    if rates:
        print(f"how often a picture's own caption is found among {CHOICES}, by timestep:")
        print_rates(rates)
    left = ["matching.png"] * bool(rates) if clip else ["samples.png", "timesteps.png"]
    print(f"wrote {', '.join([str(weights), *left, 'loss.png', 'log.jsonl'])}\nNext: to draw with it, copy weights.pt"
          f" {where_to(args)}, as {args.model}.pt:\n{how_to_draw(args)}")


def where_to(args):
    """Which folder weights belong in. The course's own stay as they are unless a run made others of that kind."""
    if args.preset == "tiny" and args.data is None:
        return "to lessons/weights, or to another folder with copies of the rest there"
    return "to a folder for weights of your own"


def how_to_draw(args):
    """The command that shows what a run has brought."""
    prompt = "a red heart" if args.data is None else captions_of(args.data)[0]
    kinds = {"clip": " --guide clip", "inpaint": " --image PICTURE --box 0.5,0,1,1"}
    more = kinds.get(args.model.partition("-")[0], "")
    return f"python 09_sample.py {json.dumps(prompt, ensure_ascii=False)} --weights FOLDER{more}"


def option(item):
    """A name and its value as they are typed."""
    name, value = item
    values = [] if value is True else value if isinstance(value, list) else [value]
    return " ".join(["--" + name.replace("_", "-"), *map(str, values)])


# What a plan depends on; the last five are of a plan only
PLANNED = ("plan", "preset", "steps", "batch", "crop", "recompute", "gpus", "per_gpu", "memory", "peak", "share")


def show_plan(args):
    """--plan: what the run of this command line would take."""
    preset = PRESETS[args.preset][args.model]
    preset = replace(preset, train=replace(preset.train, **changes(args, "steps", "batch", "crop")))
    machines = Machines(**changes(args, "gpus", "memory", "peak", "share"))
    plan = Plan(preset, machines, pictures=args.per_gpu, recomputed=args.recompute)
    print_plan(plan, f"{args.preset} {args.model}")


def check_options(args, said, out):
    """Raises ValueError for options that would be passed over in silence, or that nothing can be done with."""
    for name in [*said, *(name for name in ("out", "resume") if getattr(args, name))]:
        if args.plan and name not in PLANNED:
            raise ValueError(f"--{name.replace('_', '-')} changes nothing in a plan; leave it out")
        if not args.plan and name in ("gpus", "per_gpu", "memory", "share"):
            raise ValueError(f"--{name.replace('_', '-')} is for --plan; give both, or leave it out")
    if (args.share or 0) > 1:
        raise ValueError("--share is a part of the peak, at most 1")
    if args.plan and args.model == "judge":
        raise ValueError("a judge is trained in minutes, and no plan is needed; leave --plan out")
    sums = ("device", "parts", "recompute", "compile", "shard", "dtype", "save_every", "keep", "peak")
    own = ("workers", "random_crop", "bad_share")
    if args.data is None and (without := [name for name in own if name in said]):
        raise ValueError(f"--{without[0].replace('_', '-')} is for pictures of your own; add --data WHERE")
    if args.data and args.preset != "tiny" and not (args.vocab or args.start or args.plan):
        raise ValueError(f"a {args.preset} model reads captions with a published vocabulary: add --vocab FILE"
                         " (python 09_sample.py --preset filtered --fetch brings it), or --start WEIGHTS")
    if args.vocab and args.start:
        raise ValueError("--start brings the vocabulary that its weights know; leave --vocab out")
    if args.data and args.world:
        raise ValueError("--data takes the little world's place; leave --world out")
    if args.preset != "tiny" and args.model.startswith("inpaint") and not (args.start or args.plan):
        raise ValueError(f"the {args.model} begins as a trained {'upsampler' if 'ups' in args.model else 'base model'};"
                         " add --start WEIGHTS")
    pointless = {"judge": ("world", "batch", "lr", "crop", "start", "freeze", "preset", "data", "vocab", *own, *sums),
                 "base": ("size", "crop"),
                 "clip": ("size", "crop"), "inpaint": ("size", "crop")}
    for name in said:
        if name in pointless.get(args.model, ("size",)):
            raise ValueError(f"--{name.replace('_', '-')} means nothing for the {args.model}; leave it out")
    if args.freeze:
        frozen_parts(args.freeze, PRESETS[args.preset][args.model])
        if args.start is None and args.model not in STARTS:
            raise ValueError("--freeze keeps what was learned, and nothing was yet; add --start WEIGHTS")
    if args.resume and args.model == "judge":
        raise ValueError("a judge is trained in one go; leave --resume out")
    if args.compile and args.compile not in torch.compiler.list_backends(()):     # those for debugging included
        backends = ", ".join(torch.compiler.list_backends())
        raise ValueError(f"--compile {args.compile}: no such backend; there are {backends}")


def frozen_parts(names, preset):
    """What --freeze names, as parts of a preset's network in their order. ValueError if it lacks one, or if none is
    left to learn."""
    with torch.device("meta"):   # names without weights
        parts = [name for name, _ in network_of(preset.network).named_children()]
    groups = {name: [name] for name in parts}
    if "text" in parts:
        groups["unet"] = [name for name in parts if name != "text"]
    if unknown := [name for name in names if name not in groups]:
        raise ValueError(f"--freeze {unknown[0]}: the network has no such part; it has {', '.join(groups)}")
    frozen = {part for name in names for part in groups[name]}
    if frozen == set(parts):
        raise ValueError(f"--freeze {' '.join(names)} leaves nothing to learn")
    return tuple(part for part in parts if part in frozen)


def refuse(error):
    """One line for what cannot be done, whatever the number of processes; exit status 2."""
    if os.environ.get("RANK", "0") == "0":
        print(f"08_train.py: {error}", file=sys.stderr)
    return 2


if __name__ == "__main__":
    main()
