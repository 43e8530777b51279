r"""
09 · A prompt becomes a picture.

Everything is there; this file puts it in a row. The words are checked and become tokens, noise becomes a small
picture under guidance, the small picture becomes a large one:

    "a red heart" ─► tokens, mask ─┬─► 25 steps, guidance 3 ─► 16×16 ─► 8 bits ─┐
                                   └─────────────────────────► 27 steps ◄───────┘ ─► 64×64 ─► a PNG file

It adds to 08: use. `generate` is the pipeline, ten lines long. Beside it stand the measures (how many
captions came out right, beside what the judge says of real pictures), and the table
that renames OpenAI's released weights to ours and back, so that the same U-Net runs them.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4: base and upsampler; section 5: guidance
3); the steps of the upsampler: the released notebooks; from a sketch: SDEdit, Meng et al. 2021, arXiv 2108.01073;
score intervals: Wilson 1927, J. Am. Stat. Assoc. 22.

    python 09_sample.py "a red heart above a blue umbrella"     about five seconds
    python 09_sample.py "a small green star" --n 8 --seed 3 --scale 5 --steps 50 --sampler ddpm
    python 09_sample.py "a heart to the left of a star" --image x.png --box 0.5,0,1,1    draws into its right half
    python 09_sample.py "a red heart" --init sketch.png                makes a drawing into a picture
    python 09_sample.py --measure                               some minutes: caption accuracy, with intervals
    python 09_sample.py "a pair of glasses" --weights FOLDER    what 08 has learned from pictures of one's own
    python 09_sample.py --preset filtered --fetch               OpenAI's base model and upsampler, about 3.1 GB
"""
import argparse
import errno
import hashlib
import http.client
import itertools
import math
import os
import random
import re
import shlex
import shutil
import sys
import time
import urllib.request
import zipfile
import zlib
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache, partial
from importlib import import_module
from pathlib import Path
from urllib.error import URLError
from urllib.parse import urlsplit

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, UnidentifiedImageError

tokenizer = import_module("01_tokenizer")
transformer = import_module("02_transformer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
inpaint = import_module("06_inpaint")
upsample = import_module("07_upsample")
train = import_module("08_train")

OUTPUTS, WEIGHTS = Path(__file__).parent / "outputs", unet.WEIGHTS


# --- The pipeline ------------------------------------------------------------------------------------

# From the outside in: `generate` makes pictures of a prompt, in batches; `draw_small` and `enlarge` are its two walks,
# each a few lines that put together what 04 to 07 defined; `Model` holds what such a walk needs to know of a network,
# and `Sampling` how one usually draws with it. Nothing here knows where weights come from: tiny, released and random
# ones are all a Model. So the same lines draw 16 pixels on a laptop and 256 on a GPU.
PARTS = {3: "base", 6: "upsampler", 7: "inpaint", 10: "inpaint-upsampler"}   # by the U-Net's input channels


@dataclass(frozen=True)
class Sampling:
    """How a model is drawn with, unless one says otherwise.

    Few steps are coarse, many are slow. A small scale lets the prompt slip, a large one makes loud pictures that are
    all alike (05). batch is a matter of memory alone, see `dice`.
    """

    steps: str = "25"         # see diffusion.respace
    sampler: str = "ddim"     # "ddim", "ddpm" or "dpm"
    scale: float = 3.0        # of guidance; the upsampler has none
    guide: str = "free"       # "free": classifier-free guidance; "clip": the noised CLIP's gradient
    batch: int = 64           # pictures at a time
    sketch: object = None     # a Sketch to begin with, instead of noise alone

    @classmethod
    def of(cls, preset, part):
        """The habits of the released notebooks and of the reports (150 steps); 25 DDIM steps for the tiny ones."""
        batch = {"tiny": 64}.get(preset, 2 if "upsampler" in part else 8)
        if "upsampler" in part:
            return cls("fast27", "ddpm" if "inpaint" in part else "ddim", 1.0, batch=batch)
        steps, sampler = ("25", "ddim") if preset == "tiny" else ("150", "ddpm")
        return cls(steps, sampler, 5.0 if "inpaint" in part else 3.0, batch=batch)


@dataclass
class Model:
    """A network with all that drawing with it takes.

    Weights alone are of no use: with another schedule, tokenizer or picture size the same numbers draw noise. So these
    travel together, in a file of 08's as facts beside the weights, and here as one object.
    """

    denoiser: object
    config: unet.UNetConfig
    process: diffusion.DiffusionConfig
    size: int             # of its pictures
    tokenizer: object
    device: str = "cpu"
    preset: str = "tiny"
    difficulty: str = ""  # of the little world it was trained on: "single" or "full"; "" where it was none
    made: dict = field(default_factory=dict)   # how: command, steps, minutes, seed

    @classmethod
    def load(cls, path, device="cpu", dtype=torch.float32):
        """A model of a file that 08 or --convert wrote. Raises FileNotFoundError or ValueError, one line each.

        dtype None stands for what is usual at its size, see `usual_dtype`.
        """
        saved = unet.read_weights(path)
        network = unet.UNet.out_of(saved, path)
        try:
            process, tok = diffusion.DiffusionConfig(**saved["diffusion"]), tokenizer.BPETokenizer(saved["tokenizer"])
            preset = habits_of(saved["size"], network.config)
            dtype = dtype or usual_dtype(preset, device)
            return cls.of(network, process, saved["size"], tok, device=device, dtype=dtype, preset=preset,
                          difficulty=saved["difficulty"], made=saved["made"])
        except (KeyError, TypeError) as e:
            raise ValueError(f"{path} lacks what sampling needs ({e})") from None

    @classmethod
    def of(cls, network, process, size, tok, *, device="cpu", dtype=torch.float32, **facts):
        """A model around a U-Net, whose input channels tell what kind it is."""
        network = in_precision(network.to(device), dtype)
        return cls(upsample.denoiser_of(network, network.config, process), network.config, process, size, tok,
                   device, **facts)

    @property
    def part(self):
        """What kind of model: "base", "upsampler", "inpaint" or "inpaint-upsampler"."""
        return PARTS[self.config.in_channels]

    @property
    def sampling(self):
        """How one usually draws with it."""
        return Sampling.of(self.preset, self.part)

    def encode(self, prompts):
        """Tokens and mask, [B, K] each, by name."""
        return guidance.encode(prompts, self.tokenizer, self.config.text.context, self.device)


def habits_of(size, config):
    """Whose habits a file's model has, "tiny" or "filtered": it does not say, but its pictures do.

    Photographs of 64 pixels take more steps than glyphs of 16, whoever trained on them, and whatever the width.
    """
    small = size // upsample.FACTOR if "upsampler" in PARTS[config.in_channels] else size
    return "filtered" if small >= train.PRESETS["filtered"]["base"].size else "tiny"


def usual_dtype(preset, device):
    """The numbers to draw with: 16 bits where they are fast and the model is large enough to gain by them.

    bfloat16 if there is a choice, because it cannot overflow where float32 does not (08); float16 on GPUs that do not
    have it. A CPU without instructions for 16 bits would convert them back and forth.
    """
    if preset == "tiny":
        return torch.float32
    if train.has_fast_bf16(device):
        return torch.bfloat16
    return torch.float16 if torch.device(device).type == "cuda" else torch.float32


def in_precision(network, dtype):
    """Turn a U-Net to 16 bits, all but its last layer; float32 leaves it as it is.

    For drawing, unlike training (08), the weights themselves may be short: nothing small is ever added to them. That
    halves the memory, 1.5 GB to 0.8 for the released base model, as well as the time to read it.

    The softmax and the norms' statistics are float32 inside torch's operators whatever comes in. The last layer stays
    as it is, because samplers divide its answer by √ᾱ, which makes an error in it large. Channels last in
    memory: what a convolution's matrix product reads together then lies together.
    """
    if dtype != torch.float32:
        network.to(dtype).to(memory_format=torch.channels_last)
        network.leave.float()
    return network


def draw_small(base, prompts, *, generator, known=None, clip=None, watch=None, **how):
    """The base model's pictures [B, 3, S, S] in [-1, 1].

    generator  one, or a list of one for each picture;  known  a Known: draw only what it leaves open
    clip       a Clip, for guide="clip";  watch(x0, left)  sees each predicted picture
    how        changes of base.sampling: steps, sampler, scale, guide, sketch

    Both ways of guiding [GLIDE section 2.3 and 2.4] end in one call of a sampler: classifier-free guidance is another
    denoiser, CLIP's a gradient that is added on the way. One or the other, as the paper compares them.
    """
    how = replace(base.sampling, **how)
    noise = diffusion.gaussian(torch.empty(len(prompts), 3, base.size, base.size, device=base.device), generator)
    process, x_T = beginning(base, how, noise)
    given, x0_fn = drawing_around(known, base, len(prompts))
    model, grad_fn = guidance.classifier_free(base.denoiser, how.scale), None
    if how.guide == "clip":
        model, grad_fn = base.denoiser, guidance.clip_guidance(clip.network, clip.embed(prompts), how.scale)
    return getattr(process, f"{how.sampler}_sample")(
        model, x_T, generator=generator, grad_fn=grad_fn, x0_fn=watching(watch, len(process.timesteps), x0_fn),
        **given, **base.encode(prompts))


def beginning(base, how, noise):
    """-> the process to walk and where its walk begins: at noise [B, 3, S, S] or, with a sketch, on the way from there.

    The sketch is noised so far that its details are drowned and its composition is not, and only the rest of the way
    is walked, to a picture that the model finds likely: SDEdit [section 3.2]. strength is the choice between the two: a
    little noise leaves a clumsy drawing clumsy, much of it leaves nothing of the drawing.
    """
    if how.sketch is None:
        return diffusion.Diffusion.of(base.process, how.steps), noise
    # x_t = √ᾱ_t·sketch + √(1-ᾱ_t)·ε at the noisiest timestep that is kept   [DDPM eq. 4]
    process = diffusion.Diffusion.of(base.process, how.steps, how.sketch.strength)
    t = torch.full((len(noise),), process.timesteps[-1])
    return process, process.q_sample(pixels(how.sketch.picture, base.size).to(noise), t, noise)


def enlarge(upsampler, low_res, prompts, *, generator, known=None, watch=None, **how):
    """[B, 3, S, S] -> [B, 3, 4S, 4S], guided by nothing but the small picture and the prompt.

    How closely the prompt is followed has been decided at the small size; guidance here would double the cost of the
    dearest steps, those on sixteen times as many pixels, for what is settled.
    """
    how = replace(upsampler.sampling, **how)
    process = diffusion.Diffusion.of(upsampler.process, how.steps)
    given, x0_fn = drawing_around(known, upsampler, len(prompts))
    return upsample.upsample(upsampler.denoiser, low_res.to(upsampler.device), process=process, generator=generator,
                             sampler=how.sampler, x0_fn=watching(watch, len(process.timesteps), x0_fn),
                             **given, **upsampler.encode(prompts))


def generate(prompt, *, base, upsampler, n=1, seed=0, clip=None, candidates=None, known=None, watch=None, large=None,
             **how):
    """A prompt becomes pictures: uint8 [n, 3, H, W]. The k-th picture depends on the seed and k alone.

    base, upsampler, clip  a Model or Clip, or a function that loads one, which is then in memory while it works;
        upsampler None: there is none, and the small pictures are the answer
    candidates  so many small pictures are drawn; those n that fit the prompt best, says clip, are enlarged
    watch(stage, x0, left)  is told of every step: "base" or "upsampler", the predicted picture, steps left
    known  as for draw_small;  how, large  changes of the base model's and the upsampler's sampling
    Raises ValueError where numbers overflowed: float16 ends at 65,504, and beyond that are no numbers.
    """
    large, guide = large or {}, opened(clip) if how.get("guide") == "clip" else None

    def draw(model, places):
        return draw_small(model, [prompt] * len(places), generator=dice(seed, "base", places), known=known,
                          clip=guide, watch=told(watch, "base"), **how)

    def enlarge_some(model, places):
        return enlarge(model, small[places], [prompt] * len(places), generator=dice(seed, "upsampler", places),
                       known=known, watch=told(watch, "upsampler"), **large)

    small = in_batches(draw, opened(base), candidates or n, how)
    if candidates:
        fit = (guide or opened(clip)).fit(small, [prompt] * candidates)
        small = small[fit.argsort(descending=True)[:n].to(small.device)]
    guide = None   # the upsampler has the memory to itself
    pictures = small if upsampler is None else in_batches(enlarge_some, opened(upsampler), n, large)
    if not torch.isfinite(pictures).all():
        raise ValueError("the numbers grew beyond what this --dtype holds; try float32, or a smaller --scale")
    return train.to_bytes(pictures).cpu()


def opened(model):
    """A model, loaded now if it is a function that loads it.

    One that is loaded here leaves memory when its walk is over: at no time need the released base model and upsampler,
    some 400 million numbers each, lie there together.
    """
    return model() if callable(model) else model


def in_batches(draw, model, n, how):
    """draw(model, places) for n pictures, as many at a time as the model's habit or `how` says: [n, 3, H, W]."""
    size = replace(model.sampling, **how).batch
    return torch.cat([draw(model, places) for places in batches(list(range(n)), size)])


def dice(seed, stage, places):
    """A source of random numbers for each picture of a stage: how many are drawn at a time changes nothing.

    With one source for all, the third picture's noise would depend on how many stand before it, and --batch or --n
    would change every picture. They live on the CPU, whose numbers are the same on every machine; a GPU's are its own.
    The name of the stage is part of the seed: the upsampler must not begin with the noise that the base began with.
    """
    return [torch.Generator().manual_seed(zlib.crc32(f"{seed} {stage} {k}".encode())) for k in places]


def told(watch, stage):
    """watch(stage, x0, left) as a watch(x0, left) that knows its stage; None stays None."""
    return (lambda x0, left: watch(stage, x0, left)) if watch else None


def watching(watch, steps, x0_fn=None):
    """An x0_fn that does what another does, if any, and counts down.

    Samplers have no hook for onlookers; x0_fn (04) sees every predicted picture, and may as well leave it as it is.
    """
    left = itertools.count(steps - 1, -1)

    def watched(x0):
        x0 = x0 if x0_fn is None else x0_fn(x0)
        watch(x0, next(left))
        return x0
    return watched if watch else x0_fn


# --- Drawing into a picture, and over one ------------------------------------------------------------

# People bring pictures of any size and shape; a model has one size. Two conversions are kept apart here. On the way in,
# picture and hole become tensors at each model's size. On the way out, only the hole is taken from what was drawn:
# outside it each pixel of the person's own picture comes back untouched, not a copy that went through 64 pixels.
#
# A mask *file* is white where shall be drawn, as a painter would mark it; a mask *tensor* is 1 where the picture is
# known, as the network was taught (06). `Known.at` is the only place where the one becomes the other: turned round
# twice, or in one of two places, it would keep the hole and draw over the rest.
def pixels(picture, size):
    """An RGB image of any size as [1, 3, size, size] in [-1, 1].

    Made smaller, a pixel is the mean of those it covers, as in training; made larger, it is interpolated.
    """
    filter = Image.BOX if min(picture.size) >= size else Image.BICUBIC
    return torch.from_numpy(np.array(picture.resize((size, size), filter))).permute(2, 0, 1)[None] / 127.5 - 1


@dataclass
class Sketch:
    """A drawing to begin with."""

    picture: Image.Image    # RGB
    strength: float = 0.6   # above 0: how much of the walk is left to the model; at 1 hardly a trace of it stays


@dataclass
class Known:
    """A picture of any size and its hole, as both models want them and as it comes back.

    The hole has the small model's pixels at every size: what the base model left alone, the upsampler must not
    redraw, and what the base model drew is what the upsampler has to enlarge.
    """

    picture: Image.Image    # RGB
    hole: Image.Image       # L: white = draw here
    small: int              # the base model's size

    def at(self, size, device):
        """-> the picture [1, 3, size, size] in [-1, 1] and its mask [1, 1, size, size], 1 = known."""
        mask = torch.from_numpy(np.array(self._mask((size, size)))) == 0     # white = draw becomes 1 = known: here
        return pixels(self.picture, size).to(device), mask[None, None].to(device, torch.float32)

    def _mask(self, size):
        """White where half or more of a small pixel is to be drawn; larger ones are made of those, as squares."""
        small = self.hole.resize((self.small, self.small), Image.BOX).point(lambda grey: 255 * (grey >= 128))
        return small.resize(size, Image.NEAREST)

    def put_back(self, drawn):
        """A drawn picture, uint8 [3, H, W], at the known one's size, with the known pixels themselves: an image."""
        page = Image.fromarray(drawn.permute(1, 2, 0).numpy())
        # A picture of squares, as `sheet` makes them of the tiny models' pixels, stays one; others are smooth.
        size, known = self.picture.size, self.picture.resize(page.size, Image.BOX)
        squares = not (size[0] % page.width or size[1] % page.height) and known.resize(size, Image.NEAREST) == self.picture
        page = page.resize(size, Image.NEAREST if squares else Image.BICUBIC)
        return Image.composite(page, self.picture, self._mask(self.picture.size))


def drawing_around(known, model, count):
    """-> what a model is shown of a Known, for `count` pictures, and the x0_fn that puts its known part into each
    predicted picture.

    A model that was not trained to look is shown nothing, and draws around what is put in as well as it can (06).
    """
    if known is None:
        return {}, None
    image, mask = (value.expand(count, -1, -1, -1) for value in known.at(model.size, model.device))
    given = {"inpaint_image": image, "inpaint_mask": mask} if "inpaint" in model.part else {}
    return given, inpaint.replace_known(image, mask)


# --- Which of them fits best? ------------------------------------------------------------------------

# A model that draws a caption right half of the time draws it right nearly always if one may choose among many: of 16
# tries, all are wrong once in 65,536. What is missing is somebody to choose. CLIP can, for it says how well a picture
# fits a caption; it reads clean pictures here, at t = 0. Only small pictures are compared, and only the best are
# enlarged.
@dataclass
class Clip:
    """A noised CLIP with its tokenizer. It reads captions in a vocabulary of its own, unlike any U-Net's."""

    network: guidance.NoisedCLIP
    tokenizer: object
    device: str = "cpu"
    preset: str = "filtered"
    difficulty: str = ""      # what a tiny one was trained on, as a Model's

    @classmethod
    def load(cls, path, device="cpu"):
        """The CLIP of a file that 08 wrote. Raises FileNotFoundError or ValueError, one line each."""
        saved = unet.read_weights(path)
        network = guidance.NoisedCLIP.out_of(saved, path).to(device)
        try:
            preset = "tiny" if network.config.size < train.PRESETS["filtered"]["clip"].size else "filtered"
            return cls(network, train.tokenizer_in(saved), device, preset, saved["difficulty"])
        except (KeyError, TypeError) as e:
            raise ValueError(f"{path} lacks what reading captions needs ({e})") from None

    @torch.no_grad()
    def embed(self, prompts):
        """-> unit vectors [B, E]"""
        context = self.network.config.text.context
        return self.network.text(**guidance.encode_clip(prompts, self.tokenizer, context, self.device))

    @torch.no_grad()
    def fit(self, pictures, prompts):
        """How well pictures [B, 3, S, S] without noise (t = 0) fit their prompts: [B], from -1 to 1."""
        t = torch.zeros(len(pictures), dtype=torch.long, device=self.device)
        return (self.network.image(pictures.to(self.device), t) * self.embed(prompts)).sum(1)


# --- Measures ----------------------------------------------------------------------------------------

# How many captions come out right, in the eyes of 08's judge; how faithful the upsampler is. The captions are drawn
# from a seed of the measure's own, the same for every model, and each kind is counted apart: a model may know its
# colours and not which of two things is above. Kinds that a world of single things never showed are not asked for.
def caption_accuracy(base, judge, kind, n, *, seed=0, batch=100, **options):
    """How many of n captions of a kind (08's KINDS) the judge finds entirely right in the picture: (right, n).

    Entirely: with four questions that are each right nine times in ten, and independent, all are in two of three.
    """
    right, generator = 0, torch.Generator().manual_seed(seed)
    for scenes in batches(train.exam(kind, n, seed), batch):
        drawn = draw_small(base, [scene.caption() for scene in scenes], generator=generator, **options)
        right += int(train.scores(judge, drawn.cpu(), scenes)["all"].sum())
    return right, n


def batches(items, size):
    """A list in pieces of at most this length, in order."""
    return [items[i:i + size] for i in range(0, len(items), size)]


def enlarging(upsampler, judge, kind, n, *, seed=0, batch=50):
    """True small pictures enlarged, by the upsampler and by bicubic interpolation.

    -> {"upsampler": …, "bicubic": …}, each with `colour`: the mean absolute difference, on [0, 1], between
    the result reduced again and the small picture; `psnr` in dB against the true large picture; `right`: how
    often the judge of large pictures names every noun.

    PSNR alone would mislead: it rewards the mean of all sharp pictures that are possible, which is a blurred one. The
    judge asks instead whether one sees what it is.
    """
    generator, sums = torch.Generator().manual_seed(seed), {}
    for scenes in batches(train.exam(kind, n, seed), batch):
        true = train.real_pictures(scenes, seed)
        large = diffusion.reduce(true, upsampler.size)
        low = upsample.round_to_bytes(diffusion.reduce(true, upsampler.size // upsample.FACTOR))
        results = {"upsampler": enlarge(upsampler, low.to(upsampler.device), [s.caption() for s in scenes],
                                        generator=generator).cpu(),
                   "bicubic": F.interpolate(low, scale_factor=upsample.FACTOR, mode="bicubic").clamp(-1, 1)}
        for name, x in results.items():
            colour = (F.avg_pool2d(x, upsample.FACTOR) - low).abs().flatten(1).mean(1) / 2
            # PSNR = -10·log₁₀ of the mean squared difference on [0, 1]; a difference on [-1, 1] is twice as large
            psnr = -10 * ((x - large) / 2).square().flatten(1).mean(1).log10()
            seen = torch.from_numpy(train.scores(judge, x, scenes)["noun"]).double()
            total = torch.stack([colour.sum().double(), psnr.sum().double(), seen.sum()])
            sums[name] = sums.get(name, 0) + total
    return {name: dict(zip(("colour", "psnr", "right"), (total / n).tolist())) for name, total in sums.items()}


# --- Released weights: one table of names, both ways -----------------------------------------------------

# OpenAI's checkpoints name the same layers by where they stood in OpenAI's code: "input_blocks.4.1.encoder_kv.weight".
# Loading them is three questions. How large is the network? That stands in no file, but the shapes tell:
# `config_from_shapes`. What is each tensor called here? `released_names` works it out for any size. Does it lie the
# same way? Almost always; `joined` and `apart` convert where not. Then everything is checked: a key too many or too
# few, or a shape that does not fit, is an error. A weight that is passed over in silence leaves a network that runs and
# draws something, and nobody ever finds out why it is not as good as it should be.
# Ours on the left, OpenAI's on the right; {} is a number. The places of blocks are filled in by `released_names`.
INSIDE_BLOCK = {"norm1": "in_layers.0", "conv1": "in_layers.2", "scale_shift": "emb_layers.1",
                "norm2": "out_layers.0", "conv2": "out_layers.3", "skip": "skip_connection"}
INSIDE_ATTENTION = {"norm": "norm", "qkv": "qkv", "text_kv": "encoder_kv", "out": "proj_out"}
INSIDE_TEXT = {"norm1": "ln_1", "attention.qkv": "attn.c_qkv", "attention.out": "attn.c_proj",
               "norm2": "ln_2", "mlp.up": "mlp.c_fc", "mlp.down": "mlp.c_proj"}
OUTSIDE = {"text.tokens": "token_embedding", "text.norm": "final_ln", "pool": "transformer_proj",
           "time.0": "time_embed.0", "time.2": "time_embed.2", "enter": "input_blocks.0.0",
           "leave.0": "out.0", "leave.2": "out.2", "middle.0.block": "middle_block.0",
           "middle.0.attention": "middle_block.1", "middle.1.block": "middle_block.2"}

ROW_CONVOLUTIONS = (".qkv.weight", ".encoder_kv.weight", ".proj_out.weight")   # [out, in, 1]: see `joined`


def released_names(config):
    """{our key: OpenAI's key} for a U-Net of these sizes. Their blocks are numbered through, ours by level."""
    places = dict(OUTSIDE)
    levels, numbers = range(len(config.multipliers)), {"down": itertools.count(1), "up": itertools.count()}
    for way, theirs, steps in ("down", "input_blocks", config.blocks), ("up", "output_blocks", config.blocks + 1):
        for i, level in enumerate(levels if way == "down" else reversed(levels)):
            for j in range(steps):
                n = next(numbers[way])
                places[f"{way}.{i}.steps.{j}.block"] = f"{theirs}.{n}.0"
                places[f"{way}.{i}.steps.{j}.attention"] = f"{theirs}.{n}.1"
            if way == "down" and i < levels[-1]:      # going down, a resampling block has a number of its own
                places[f"down.{i}.resample"] = f"input_blocks.{next(numbers['down'])}.0"
            if way == "up" and level:                 # going up, it comes last in the block before
                places[f"up.{i}.resample"] = f"output_blocks.{n}.{1 + (level in config.attention_levels)}"
    places |= {f"text.blocks.{i}.{ours}": f"transformer.resblocks.{i}.{theirs}"
               for i in range(config.text.layers) for ours, theirs in INSIDE_TEXT.items()}
    places |= {f"{place}.{ours}": f"{there}.{theirs}" for place, there in list(places.items())
               for ours, theirs in (INSIDE_ATTENTION if place.endswith("attention") else INSIDE_BLOCK).items()
               if place.endswith(("attention", "block", "resample"))}
    names = {"text.positions": "positional_embedding", "text.padding": "padding_embedding"}
    with torch.device("meta"):
        ours = unet.UNet(config).state_dict()
    for key in ours:
        place, _, part = key.rpartition(".")
        if key not in names:
            names[key] = f"{places[place]}.{part}"
    return names


def config_from_shapes(shapes):
    """The sizes of a released U-Net, read off its keys and shapes {key: shape}.

    The way up is read, because there each level has the same number of blocks, each with the level's width, and a
    doubling block at its end. What no shape tells is assumed: 64 channels a head, in both networks.
    """
    def numbers(pattern):
        """The numbers that keys have at one place, each once, ascending."""
        return sorted({int(m[1]) for m in map(re.compile(pattern).match, shapes) if m})

    doubling = numbers(r"output_blocks\.(\d+)\.[12]\.in_layers\.0\.weight")     # one a level but the last
    steps = len(numbers(r"output_blocks\.(\d+)\.")) // (len(doubling) + 1)      # blocks + 1
    levels, channels = len(doubling) + 1, shapes["input_blocks.0.0.weight"][0]
    widths = [shapes[f"output_blocks.{i * steps}.0.in_layers.2.weight"][0] for i in reversed(range(levels))]
    attending = {levels - 1 - n // steps for n in numbers(r"output_blocks\.(\d+)\.1\.qkv\.weight")}
    vocab, width = shapes["token_embedding.weight"]
    text = unet.TextConfig(vocab, shapes["positional_embedding"][0], width,
                           len(numbers(r"transformer\.resblocks\.(\d+)\.")), max(1, width // 64))
    return unet.UNetConfig(channels, tuple(w // channels for w in widths), steps - 1, tuple(sorted(attending)),
                           shapes["input_blocks.0.0.weight"][1], shapes["out.2.weight"][0], text=text)


def load_openai(state_dict):
    """A released checkpoint's weights as a denoiser, in eval mode.

    state_dict  of base.pt, upsample.pt, base_inpaint.pt or upsample_inpaint.pt, in 32 or 16 bits
    returns     a denoiser taking tokens, mask and, by kind, low_res, inpaint_image, inpaint_mask
    Every key must be used and every shape must fit: ValueError otherwise.
    """
    network = released_unet(state_dict)
    return upsample.denoiser_of(network, network.config)


def released_unet(state_dict):
    """The U-Net of a released checkpoint, without the inputs that `load_openai` puts around it."""
    what = "a released GLIDE U-Net"
    with refusing(what):
        config = config_from_shapes(shapes_of(state_dict))
        with torch.device("meta"):       # weights come from the file: none are made to be thrown away
            network = unet.UNet(config)
    take_over(network, state_dict, released_names(config), what)
    return network.eval()


@contextmanager
def refusing(what):
    """Reading sizes off the shapes of another model fails in many ways; to the user they are all one.

    Inside the with block each of them becomes a ValueError that names `what` was expected, in at most 300 characters.
    """
    try:
        yield
    except (LookupError, ValueError, ZeroDivisionError, AttributeError, TypeError, RuntimeError) as e:
        raise ValueError(f"these are not the weights of {what} ({e!r})"[:300]) from None


def take_over(model, state_dict, names, what, heads=1):
    """Give a model the released weights: {our key: theirs, or several of theirs}. All or ValueError.

    names covers all of the model's keys, so comparing their names with the file's, both ways, is the whole check. The
    weights become float32: a file may hold 16 bits. assign=True puts the tensors in the place of the model's, which
    was built on the meta device and has no memory that could be copied into.
    """
    names = {ours: (theirs,) if isinstance(theirs, str) else theirs for ours, theirs in names.items()}
    if odd := sorted({part for parts in names.values() for part in parts} ^ set(state_dict)):
        raise ValueError(f"{len(odd)} keys do not fit {what}, {odd[0]!r} for one")
    own, weights = model.state_dict(), {}
    for ours, parts in names.items():
        with refusing(what):
            weights[ours] = joined([state_dict[part] for part in parts], heads)
        if not weights[ours].is_floating_point() or weights[ours].shape != own[ours].shape:
            raise ValueError(f"{' and '.join(parts)}: {weights[ours].dtype} {list(weights[ours].shape)} where "
                             f"{list(own[ours].shape)} was expected")
    model.load_state_dict({ours: value.float() for ours, value in weights.items()}, assign=True)


def joined(parts, heads):
    """Their tensors as one of ours. Their U-Net's attention uses 1×1 convolutions over a row, [out, in, 1], where
    ours are linear layers; their CLIP keeps q, k and v apart, which lie together head by head in ours."""
    if len(parts) == 1:
        return parts[0].squeeze(-1) if parts[0].dim() == 3 else parts[0]
    return torch.stack([part.unflatten(0, (heads, -1)) for part in parts], dim=1).flatten(0, 2)


def apart(value, theirs, heads):
    """The way back: {their key: tensor} of one of our tensors."""
    if isinstance(theirs, str):
        return {theirs: value[..., None] if theirs.endswith(ROW_CONVOLUTIONS) else value}
    parts = value.unflatten(0, (heads, len(theirs), -1)).unbind(1)
    return {key: part.flatten(0, 1) for key, part in zip(theirs, parts)}


def exported(model, names, heads=1):
    """A model's weights under the released names {our key: theirs} and in the released shapes."""
    return {key: value for ours, tensor in model.state_dict().items()
            for key, value in apart(tensor, names[ours], heads).items()}


def export_openai(model):
    """A U-Net's weights under the released names and in their shapes: what `load_openai` takes."""
    return exported(model, released_names(model.config))


def shapes_of(state_dict):
    """{key: shape as a tuple}: all that sizes are read off, and all that a check of a file compares."""
    return {key: tuple(value.shape) for key, value in state_dict.items()}


def released_shapes(part):
    """{key: shape} of a released file, by the name of its part, without filling memory."""
    with torch.device("meta"):
        if part in ("clip-image", "clip-text"):
            clip = guidance.NoisedCLIP(train.PRESETS["filtered"]["clip"].network)
            return shapes_of(export_openai_clip(clip)[part == "clip-text"])
        return shapes_of(export_openai(unet.UNet(train.PRESETS["filtered"][part].network)))


# Their CLIP is two files, one a tower. The first lines of the table are a tower's own, the rest both have.
INSIDE_TOWER = {
    "norm.weight": "output.ln.g", "norm.bias": "output.ln.b", "project.weight": "output.f.w", "positions": "input.w_pos"}
INSIDE_PICTURE_TOWER = {
    "time.weight": "input.w_t", "cut.weight": "input.patch_proj", "enter.weight": "input.ln.g", "enter.bias": "input.ln.b"}
INSIDE_CAPTION_TOWER = {"tokens.weight": "input.w_voc"}
INSIDE_TOWER_BLOCK = {
    "norm1.weight": "f_attn.ln.g", "norm1.bias": "f_attn.ln.b",
    "attention.qkv.weight": ("f_attn.f_q.w", "f_attn.f_k.w", "f_attn.f_v.w"),
    "attention.qkv.query_value_bias": ("f_attn.f_q.b", "f_attn.f_v.b"),
    "attention.out.weight": "f_attn.f_c.w", "attention.out.bias": "f_attn.f_c.b",
    "norm2.weight": "f_mlp.ln.g", "norm2.bias": "f_mlp.ln.b",
    "mlp.up.weight": "f_mlp.f_1.w", "mlp.up.bias": "f_mlp.f_1.b",
    "mlp.down.weight": "f_mlp.f_2.w", "mlp.down.bias": "f_mlp.f_2.b"}


def released_tower_names(tower):
    """{our key: OpenAI's, or a tuple of them} for one tower of a NoisedCLIP."""
    own = INSIDE_PICTURE_TOWER if isinstance(tower, guidance.PictureTower) else INSIDE_CAPTION_TOWER
    names = {ours: f"blocks.{theirs}" for ours, theirs in (INSIDE_TOWER | own).items()}
    for i in range(len(tower.blocks)):
        for ours, theirs in INSIDE_TOWER_BLOCK.items():
            here = f"blocks.block_{i}."
            names[f"blocks.{i}.{ours}"] = here + theirs if isinstance(theirs, str) else tuple(here + part for part in theirs)
    return names


def clip_config_from_shapes(image, text):
    """The sizes of a released noised CLIP, read off both towers' keys and shapes. A head has 64 channels."""
    layers = [len({key.split(".")[1] for key in tower if key.startswith("blocks.block_")}) for tower in (image, text)]
    (vocab, width), (timesteps, wide) = text["blocks.input.w_voc"], image["blocks.input.w_t"]
    patch, places = image["blocks.input.patch_proj"][-1], image["blocks.input.w_pos"][0] - 1
    return guidance.CLIPConfig(math.isqrt(places) * patch, patch, wide, layers[0], wide // 64,
                               transformer.TextConfig(vocab, text["blocks.input.w_pos"][0], width, layers[1], width // 64),
                               text["blocks.output.f.w"][0], timesteps)


def load_openai_clip(image_sd, text_sd):
    """The released noised CLIP, in eval mode, from the state dicts of clip_image_enc.pt and clip_text_enc.pt.

    Every key must be used and every shape must fit: ValueError otherwise.
    """
    what = "the released noised CLIP"
    with refusing(what):
        config = clip_config_from_shapes(shapes_of(image_sd), shapes_of(text_sd))
        with torch.device("meta"):
            clip = guidance.NoisedCLIP(config)
    for tower, state_dict, heads in (clip.picture, image_sd, config.heads), (clip.caption, text_sd, config.text.heads):
        take_over(tower, state_dict, released_tower_names(tower), what, heads)
    return clip.eval()


def export_openai_clip(clip):
    """A NoisedCLIP's two state dicts, picture's and text's, under the released names."""
    towers = (clip.picture, clip.config.heads), (clip.caption, clip.config.text.heads)
    return tuple(exported(tower, released_tower_names(tower), heads) for tower, heads in towers)


# ======================================================================================================
# The method ends here. Below: the command line.
# ======================================================================================================

def check_prompt(prompt, model):
    """Raises ValueError, one line, for a prompt that these weights cannot know how to draw.

    A model does not refuse: asked for what it never saw, it draws something, and one would blame the sampler. The
    little world has a grammar, so here one can tell beforehand; those that saw photographs, somebody's twenty or
    OpenAI's millions, take any text (see `unknown_words`).
    """
    if not prompt.strip():
        raise ValueError('the prompt is empty; try "a red heart above a blue umbrella"')
    if model is None or not model.difficulty:
        return
    scene = tokenizer.Scene.parse(prompt)
    strange = [thing.noun for thing in scene.things if thing.noun not in tokenizer.EASY_NOUNS]
    if model.difficulty == "single" and (scene.kind != "single" or strange):
        raise ValueError(f"these weights were trained on single things only ({', '.join(tokenizer.EASY_NOUNS)}); "
                         f"{prompt!r} asks for more")


def unknown_words(prompt, model):
    """The words of a prompt that were in none of the few captions a model was trained on, in order; [] where there
    were many captions, or another model's before them (`made` lists the words of a small folder only)."""
    known = model.made.get("words")
    return [] if known is None else [word for word in dict.fromkeys(train.words_in(prompt)) if word not in known]


def sheet(pictures, *, width=512, gap=8):
    """Pictures uint8 [n, 3, H, W] side by side, enlarged so that pixels show as squares: a PIL image.

    At most four in a row. Zoomed by a whole number, for otherwise some pixels would come out wider than others.
    """
    n, _, H, W = pictures.shape
    columns = min(n, 4)
    zoom = max(1, width // (W * min(columns, 2)))
    rows = -(-n // columns)
    page = Image.new("RGB", (columns * (zoom * W + gap) - gap, rows * (zoom * H + gap) - gap), "white")
    for i, picture in enumerate(pictures):
        tile = Image.fromarray(picture.permute(1, 2, 0).numpy()).resize((zoom * W, zoom * H), Image.NEAREST)
        page.paste(tile, ((i % columns) * (zoom * W + gap), (i // columns) * (zoom * H + gap)))
    return page


def save_picture(image, path):
    """Write a PNG, whole or not at all."""
    partial = path.with_name(path.name + ".tmp")
    try:
        image.save(partial, format="PNG")
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


def read_picture(path, mode):
    """A picture file as an image of mode "RGB" or "L", upright; what is transparent becomes white in RGB and
    nothing to draw (black) in L. ValueError, one line, for what is no single picture."""
    try:
        return train.open_picture(path, mode, single=True)
    except train.Unusable as e:
        raise ValueError(f"{path} holds {e}") from None
    except (UnidentifiedImageError, Image.DecompressionBombError, SyntaxError, ValueError) as e:
        raise ValueError(f"{path} is no picture that can be read ({type(e).__name__})") from None
    except OSError as e:
        raise ValueError(f"{path} cannot be read as a picture: {e.strerror or e}") from None


def read_known(args, small):
    """--image and --mask or --box as a Known; None without them.

    A hole without a single pixel is refused: one would wait for a drawing and get the same picture back.
    """
    if args.image is None and args.mask is None and args.box is None:
        return None
    if args.image is None or (args.mask is None) == (args.box is None):
        raise ValueError("--image goes with --mask, a picture of where to draw (white), or with --box, which part of it;"
                         " with one of the two")
    hole = boxed(args.box) if args.mask is None else read_picture(args.mask, "L")
    known = Known(read_picture(args.image, "RGB"), hole, small)
    if known.at(small, "cpu")[1].all():
        why = (f"{args.mask} leaves nothing to draw: white is where it shall draw, and there is none" if args.mask else
               f"--box {args.box} leaves nothing to draw: it covers no pixel of the {small}×{small} that are drawn")
        raise ValueError(why)
    return known


def boxed(text):
    """left,top,right,bottom, in fractions of the sides of any picture, as a hole: an image white there."""
    try:
        left, top, right, bottom = corners = [float(number) for number in text.split(",")]
    except ValueError:
        left = top = right = bottom = math.nan
    if not (0 <= left < right <= 1 and 0 <= top < bottom <= 1):
        raise ValueError(f"--box {text!r} is not left,top,right,bottom: four numbers from 0 to 1, the left below the "
                         "right and the top below the bottom one, such as 0.5,0,1,0.5")
    hole = Image.new("L", (1024, 1024))
    hole.paste(255, tuple(round(1024 * number) for number in corners))
    return hole


def read_sketch(args):
    """--init and --strength as a Sketch; None without them."""
    if args.init is None:
        if args.strength is not None:
            raise ValueError("--strength says how much of --init FILE, a drawing to begin with, may change; give both")
        return None
    if args.image is not None or args.mask is not None or args.box is not None:
        raise ValueError("--init changes a whole drawing, --image only what --mask or --box names; give one of the two")
    return Sketch(read_picture(args.init, "RGB"), args.strength or Sketch.strength)


class Watch:
    """The progress line, and the predicted pictures that become the strip.

    Not x_t but x̂_0: what the model believes at each step that the picture will be. It begins as a blurred average and
    becomes certain, and one sees at which step it is decided what is drawn.
    """

    def __init__(self):
        self.start, self.total, self.frames = time.time(), {}, {"base": [], "upsampler": []}

    def __call__(self, stage, x0, left):
        """One step of a stage: its predicted pictures [B, 3, H, W], and how many steps are left after it."""
        total = self.total.setdefault(stage, left + 1)
        if len(self.frames[stage]) < total:                # of the first picture only
            self.frames[stage].append(train.to_bytes(x0[0].detach().clamp(-1, 1)).cpu())
        size = "×".join(map(str, x0.shape[2:]))
        if sys.stderr.isatty():
            done = (total - left) * 24 // total
            print(f"\r{stage:<10}{size:>8}  [{'█' * done}{'·' * (24 - done)}] {total - left:>3}/{total}"
                  f"  {time.time() - self.start:5.1f} s", end="" if left else "\n", file=sys.stderr, flush=True)
        elif not left:
            print(f"{stage}: {total} steps at {size}, {time.time() - self.start:.1f} s", file=sys.stderr)

    def strip(self, count=8):
        """The first picture on its way: predicted x̂_0 of the base model, then of the upsampler."""
        frames = []
        for stage in self.frames.values():
            places = torch.linspace(0, len(stage) - 1, min(count, len(stage))).round().long().tolist()
            frames += [F.interpolate(stage[i][None].float(), size=128)[0].to(torch.uint8) for i in places]
        rows = 2 if len(frames) > count else 1
        page = Image.new("RGB", (count * 132 - 4, rows * 132 - 4), "white")
        for i, frame in enumerate(frames):
            row, column = divmod(i, count)
            page.paste(Image.fromarray(frame.permute(1, 2, 0).numpy()), (column * 132, row * 132))
        return page


def arguments(argv=None):
    """The command line. None is left where the model has a say in the default: 25 steps for one, 150 for another."""
    parser = argparse.ArgumentParser(description="A prompt becomes a picture.", allow_abbrev=False,
                                     epilog=f"The language of the tiny weights: {tokenizer.vocabulary()}")
    add = parser.add_argument
    add("prompt", nargs="?", help='such as "a red heart above a blue umbrella"')
    add("--preset", default="tiny", choices=("tiny", "filtered", "paper"),
        help="tiny: the weights in lessons/weights (default); filtered: OpenAI's; paper: nobody has published any")
    add("--n", type=train.positive, help="how many pictures (default 1; with --measure captions of each kind, 300)")
    add("--seed", type=train.seed, help="the same seed gives the same pictures (default: another one each time)")
    add("--scale", type=finite, help="guidance: 1 is the model as trained, more insists (default 3, inpainting 5)")
    add("--guide", default="free", choices=("free", "clip"), help="by the model itself (default), or by a noised CLIP")
    add("--steps", help="of the base model: 25, 100, 10,10,3,2,2, ddim50 (default: tiny 25, else 150)")
    add("--sampler", choices=("ddim", "ddpm", "dpm"), help="of the base model (default: tiny ddim, else and with CLIP ddpm)")
    add("--upsampler-steps", default="fast27", help="likewise (default fast27)")
    add("--image", type=Path, help="a picture to draw into, where --mask is white or in --box")
    add("--mask", type=Path, help="white = draw here, black = leave as it is; any size")
    add("--box", metavar="LEFT,TOP,RIGHT,BOTTOM", help="draw here, in fractions: 0.5,0,1,1 is the right half")
    add("--init", type=Path, help="a drawing to begin with")
    add("--strength", type=strength, help="how much of it may change, above 0 to 1 (default 0.6)")
    add("--candidates", type=train.positive, help="with --rerank: draw so many small pictures (default 16) …")
    add("--rerank", action="store_true", help="… and enlarge those --n that a noised CLIP finds fit best")
    add("--out", type=Path, help="where the picture goes (default: outputs/PROMPT-SEED.png)")
    add("--weights", type=Path, help="folder of base.pt, upsampler.pt, clip.pt, … that 08 trained, of any size; without"
                                     " an upsampler.pt one sees the small picture (default of tiny: lessons/weights)")
    add("--random-weights", action="store_true", help="draw noise with weights that know nothing: does it run here?")
    add("--device", type=train.device, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", default="auto", choices=("auto", "float32", "bfloat16", "float16"),
        help="auto: 16 bits for the large presets where they are fast")
    add("--batch", type=train.positive, help="pictures at a time (default: tiny 64, else 8 and 2); fewer need less memory")
    add("--keep", action="store_true", help="hold all weights in memory, not one model's at a time")
    add_other_work(parser.add_argument_group("instead of a picture").add_argument)
    args = parser.parse_args(argv)
    if args.preset == "tiny" and args.weights is None:
        args.weights = WEIGHTS
    return args


def add_other_work(add):
    """The options that do something else than drawing, and what belongs to them."""
    add("--measure", action="store_true", help="how many captions come out right")
    add("--fetch", nargs="?", const="base", choices=GROUPS,
        help="fetch released files: base model and upsampler (default), inpaint, clip, or all")
    add("--cache", type=lambda text: Path(text).expanduser(),
        help="folder of released files (default: $GLIDE_CACHE or ~/.cache/glide-readable)")
    add("--convert", type=Path, metavar="FOLDER",
        help="write the fetched models there as weight files that 08 can --start from")
    add("--export", type=Path, metavar="FOLDER",
        help="write the large models of --weights there as OpenAI's files are laid out")
    add("--mirror", metavar="URL", help="with --fetch: the address of a folder that holds copies of the files")


def finite(text):
    """A number for argparse; float() alone also takes "nan" and "inf", which no picture survives."""
    if not math.isfinite(float(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a finite number")
    return float(text)


def strength(text):
    """A share for argparse; at 0 there would be nothing to draw."""
    if not 0 < float(text) <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not above 0 and at most 1")
    return float(text)


def target(args):
    """Where the picture goes; refuses early what could not be written, and what would overwrite."""
    name = re.sub(r"[^a-z0-9]+", "-", args.prompt.lower()).strip("-")[:80] or "picture"
    out = args.out or free_name(OUTPUTS / f"{name}-{args.seed}.png")
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png")
    for path in (out, strip_of(out)):
        if args.out and path.exists():
            raise ValueError(f"{path} exists already; give another --out, or remove it first")
    out.parent.mkdir(parents=True, exist_ok=True)
    probe = out.with_name(out.name + ".tmp")
    probe.touch()   # raises OSError where the folder cannot be written
    probe.unlink()
    return out


def free_name(path):
    """The path, or with -2, -3, … at its end if there is such a file: the same prompt and seed can be drawn in
    other ways."""
    names = itertools.chain([path], (path.with_name(f"{path.stem}-{k}.png") for k in itertools.count(2)))
    return next(name for name in names if not name.exists() and not strip_of(name).exists())


def strip_of(out):
    """Where the steps on the way to a picture go."""
    return out.with_name(out.stem + "-steps.png")


def dtype_of(args):
    """What --dtype says of a preset's models; of those in a folder, see `load_own`."""
    return usual_dtype(args.preset, args.device) if args.dtype == "auto" else getattr(torch, args.dtype)


def load_own(args, name):
    """base.pt, upsampler.pt or clip.pt of the folder of weights; ValueError for one in another's place."""
    path = args.weights / f"{name}.pt"
    if name == "clip":
        return Clip.load(path, args.device)
    model = Model.load(path, args.device, None if args.dtype == "auto" else getattr(torch, args.dtype))
    if model.part != name:
        raise ValueError(f"{path} is a model of kind {model.part}; a model of kind {name} was expected")
    return model


def load_random(args, part):
    """A model or CLIP of a preset's size that knows nothing. Its tokenizer knows bytes only.

    To find out whether a size runs on a machine, how fast and in how much memory, before gigabytes are fetched or weeks
    are spent. No weight of a U-Net is left at zero: a fresh one has some, and answers zero (03).
    """
    torch.manual_seed(0)
    preset = train.PRESETS[args.preset][part]
    if part == "clip":
        clip = guidance.NoisedCLIP(preset.network).to(args.device).eval()
        words = tokenizer.BPETokenizer if args.preset == "tiny" else tokenizer.CLIPTokenizer
        return Clip(clip, words([]), args.device)
    with torch.device("meta"):
        network = unet.UNet(preset.network).to(dtype_of(args)).eval()
    network.to_empty(device=args.device)
    for p in network.parameters():
        torch.nn.init.normal_(p, std=0.02)
    return Model.of(network, preset.diffusion, preset.size, tokenizer.BPETokenizer([]), device=args.device,
                    dtype=dtype_of(args), preset=args.preset)


def load_released(args, folder, part):
    """One of OpenAI's models, or their CLIP, out of the cache folder."""
    (network, tok), preset = released_model(folder, part), train.PRESETS["filtered"][part]
    if part == "clip":
        return Clip(network.to(args.device), tok, args.device)
    return Model.of(network, preset.diffusion, preset.size, tok, device=args.device, dtype=dtype_of(args), preset="filtered")


def released_model(cache, part):
    """One of the released models, its network and its tokenizer, out of the cache folder."""
    files = {name: cache / entry.file for name, entry in RELEASED.items()}
    config = train.PRESETS["filtered"][part].network
    if part == "clip":
        clip = of_files(load_openai_clip, config, files["clip-image"], files["clip-text"])
        return clip, tokenizer.CLIPTokenizer.from_file(files["clip-merges"])
    return of_files(released_unet, config, files[part]), tokenizer.BPETokenizer.from_gpt2(files["merges"])


def for_inpainting(folder=None):
    """The kinds of model to draw into a picture with; of a folder that lacks one, the one that was not fine-tuned."""
    kinds = {"base": "inpaint", "upsampler": "inpaint-upsampler"}
    return {part: kind if folder is None or (folder / f"{kind}.pt").exists() else part for part, kind in kinds.items()}


def of_files(load, config, *paths):
    """load(what the files hold), a network of these sizes; ValueError, one line that names the files, for another."""
    weights = [read_released(path) for path in paths]
    try:
        network = load(*weights)
        if network.config != config:
            raise ValueError("its sizes are others")
    except ValueError as e:
        files = " or ".join(map(str, paths))
        raise ValueError(f"{files} is of another model than the released one; remove it and fetch it anew: {e}") from None
    return network


def loaders(args):
    """{"base", "upsampler", "clip"}: functions that load what this drawing takes. What is missing is told now.

    Functions, so that `generate` can have one large model in memory at a time. Those of a folder of weights, and all
    with --keep, remember what they loaded. A folder without an upsampler has none to offer: None.
    """
    kinds = {"base": "base", "upsampler": "upsampler"}
    if args.image is not None:
        kinds = for_inpainting(args.weights)
    if args.rerank or args.guide == "clip":
        kinds["clip"] = "clip"
    if args.random_weights:
        load = partial(load_random, args)
    elif args.weights is not None:
        if "clip" in kinds and not (args.weights / "clip.pt").is_file():
            raise ValueError(f"these weights come without a CLIP; --preset filtered has one, and python 08_train.py"
                             f" clip trains one: its weights.pt belongs in {args.weights}, as clip.pt")
        load = partial(load_own, args)
    elif args.preset == "paper":
        raise ValueError("nobody has published weights of the paper's size; --weights FOLDER draws with your own, and"
                         " --random-weights shows whether they would run")
    else:
        folder = args.cache or cache_folder()
        needed = [*kinds.values(), "merges"] + ["clip-image", "clip-text", "clip-merges"] * ("clip" in kinds)
        if trouble := missing([name for name in needed if name != "clip"], folder):
            raise trouble
        load = partial(load_released, args, folder)
    loading = {name: partial(load, kind) for name, kind in kinds.items()}
    if args.keep or from_a_folder(args):
        loading = {name: lru_cache(load) for name, load in loading.items()}
    if from_a_folder(args) and lacks_upsampler(args.weights, kinds):
        loading["upsampler"] = None
    return loading


def from_a_folder(args):
    """Whether a drawing's models are files of a folder of weights, the course's or one's own."""
    return args.weights is not None and not args.random_weights


def lacks_upsampler(folder, kinds):
    """Whether a folder of weights holds the small model and no large one. (Where both are missing, the small one is
    missed first, and that is said.)"""
    return (folder / f"{kinds['base']}.pt").is_file() and not (folder / f"{kinds['upsampler']}.pt").is_file()


def settings(args):
    """What the command line changes of the base model's Sampling and of the upsampler's; an impossible walk is refused
    before any work."""
    how = train.changes(args, "scale", "steps", "sampler", "batch")
    large = {"steps": args.upsampler_steps} | train.changes(args, "batch")
    for spec in (args.steps or "1", args.upsampler_steps):
        diffusion.respace(train.PRESETS[args.preset]["base"].diffusion.steps, spec)
    if args.guide == "clip" and args.sampler is None:
        how["sampler"] = "ddpm"      # DDIM shifts x̂_0 itself, by more than a picture where nearly all is noise (04)
    return how, large


def ready(args):
    """The models of a drawing, for `generate`; what is wrong with the prompt or with small files is told at once."""
    if args.candidates and not args.rerank or args.rerank and (args.n or 1) > (args.candidates or 16):
        raise ValueError("--candidates belongs to --rerank, and there must be at least as many as --n asks for")
    check_prompt(args.prompt, None)
    models = loaders(args)
    if from_a_folder(args):
        models = {name: load and load() for name, load in models.items()}
        check_fit(models["base"], models["upsampler"], args.weights)
        for name in models.keys() & {"base", "clip"}:
            check_prompt(args.prompt, models[name])
    return models


def check_fit(base, upsampler, folder):
    """Raises ValueError where the one draws what the other cannot enlarge: a network of 16 pixels runs at 64, too."""
    if upsampler is not None and upsampler.size != upsample.FACTOR * base.size:
        raise ValueError(f"in {folder} the base model draws {base.size} pixels and the upsampler enlarges"
                         f" {upsampler.size // upsample.FACTOR}: they do not belong together")


def remarks(prompt, base, upsampler, folder):
    """What a person should know of a drawing with weights of their own, a line each."""
    if strange := unknown_words(prompt, base):
        yield (f"no caption that these weights were trained on has {', '.join(map(repr, strange))}: such words mean"
               " nothing to them, and what is drawn is guesswork")
    if upsampler is None:
        yield f"{folder} holds no upsampler: this is the small picture, {base.size}×{base.size}, its pixels as they are"


def sample(args):
    """A prompt, and what else the command line says, becomes a file and its strip.

    Everything that can be refused is refused before the first step: a picture that took minutes must not be lost
    because its folder cannot be written. The seed is drawn here if none was given, and printed, so that any picture can
    be drawn again.
    """
    models, (how, large) = ready(args), settings(args)
    base = models["base"] if from_a_folder(args) else None
    args.seed = random.SystemRandom().randrange(10 ** 6) if args.seed is None else args.seed
    sketch, known = read_sketch(args), read_known(args, (base or train.PRESETS[args.preset]["base"]).size)
    out, watch = target(args), Watch()
    print(", ".join([repr(args.prompt), f"seed {args.seed}", *(f"{name} {value}" for name, value in how.items())]))
    for remark in remarks(args.prompt, base, models["upsampler"], args.weights) if base else ():
        print(remark)
    pictures = generate(args.prompt, n=args.n or 1, seed=args.seed, watch=watch, known=known, large=large, sketch=sketch,
                        guide=args.guide, candidates=(args.candidates or 16) if args.rerank else None, **models, **how)
    if known is not None:
        pictures = torch.stack([torch.from_numpy(np.array(known.put_back(p))).permute(2, 0, 1) for p in pictures])
    if args.rerank:
        watch.frames["base"].clear()     # they are of the first candidate, which need not be the best
    zoomed = (base.preset if base else args.preset) == "tiny" and known is None
    save_picture(sheet(pictures, width=512 if zoomed else 1), out)
    save_picture(watch.strip(), strip_of(out))
    print(f"wrote {out}\n      {strip_of(out)}: what the model believed on the way")


def measure(args):
    """Caption accuracy by kind beside the judge's ceiling, and the upsampler beside bicubic interpolation.

    The last column divides a rate by its ceiling: roughly, how near the model is to the best that this judge can see.
    """
    if args.preset != "tiny":
        raise ValueError("only the tiny weights can be measured: their captions have a truth that can be checked")
    base, upsampler = (load_own(args, name) for name in ("base", "upsampler"))
    if not (base.difficulty and upsampler.difficulty):
        raise ValueError(f"the weights in {args.weights} were not trained on the little world: of other pictures no"
                         " judge knows what is true, and --measure has nothing to count")
    judges = {size: train.load_judge(args.weights / f"judge-{size}.pt") for size in (base.size, upsampler.size)}
    n, seed = args.n or 300, args.seed or 0
    kinds = ("easy single", "held out") if base.difficulty == "single" else train.KINDS
    how = train.changes(args, "scale", "steps", "sampler")
    usual = replace(base.sampling, **how)
    print(f"base model, {base.size} pixels: scale {usual.scale:g}, {usual.sampler} {usual.steps}, seed {seed}, n {n} a kind")
    print(f"{'kind':<13}{'right':>7}   {'95% interval':<17}{'ceiling':>8}{'share of it':>13}")
    for kind in kinds:
        right, n = caption_accuracy(base, judges[base.size], kind, n, seed=seed, **how)
        (low, high), (real, of) = train.wilson(right, n), judges[base.size].ceiling[kind]
        print(f"{kind:<13}{right / n:7.1%}   {low:.1%} to {high:<7.1%}  {real / of:8.1%}{right / n / (real / of):13.1%}")
    kind, count = kinds[0], min(n, 200)
    print(f"\nupsampler, {upsampler.size} pixels, true small pictures of kind {kind!r}, n {count}")
    for name, r in enlarging(upsampler, judges[upsampler.size], kind, count, seed=seed).items():
        low, high = train.wilson(r["right"] * count, count)
        print(f"{name:<10} colour off by {r['colour']:.4f}, PSNR {r['psnr']:.1f} dB, nouns read right"
              f" {r['right']:.1%} ({low:.1%} to {high:.1%})")


# --- Fetching what OpenAI released -------------------------------------------------------------------
#
# Nothing is fetched but by --fetch. One copy of each file lies in a cache folder, and a file of the right name there
# is the right file: while it comes it is called otherwise, and it takes its name when it is whole and checked.
#
#     NAME.part ── all bytes that were announced ──► its check: keys and shapes, or SHA-256 ──► NAME
#     NAME.part.txt    of which file the part is a part: its whole size and the server's name for this version (ETag)
#
# A transfer that is cut leaves its part. The next one asks for the rest (RFC 9110, section 14) and may be told
#
#     206  here is the rest                        of the same file: it is appended. Of another: begin again
#     200  here is all of it                       the server knows no parts: begin again
#     416  the file has no such byte               it has become shorter: begin again
#
# What a server, a network or a disk can do beyond that becomes one line that says what to do.

AZURE = "https://openaipublic.blob.core.windows.net"
TIMEOUT = 30   # seconds of silence after which a server is given up; a slow one that goes on sending is not


@dataclass(frozen=True)
class Published:
    """One file that can be fetched."""

    file: str          # its name, there and in the cache
    source: str        # the address of its folder
    size: int          # in bytes; of weights about: 4 for each parameter, float32
    check: Callable    # check(path) raises ValueError, one line, for a file that is not this one


def read_released(path):
    """The state dict in a file of OpenAI's, its numbers read as they are needed; ValueError if it holds none. Runs
    nothing that the file says."""
    try:
        # torch's files are zip archives, with a checksum of each tensor. torch does not look at those; this does.
        zipped = zipfile.is_zipfile(path)
        if zipped:
            with zipfile.ZipFile(path) as archive:
                if damaged := archive.testzip():
                    raise ValueError(f"damaged at {damaged}")
        weights = torch.load(path, map_location="cpu", mmap=zipped, weights_only=True)
        shapes_of(weights)
        return weights
    except OSError:
        raise
    except Exception as e:   # torch.load fails in many ways on bytes that are not its own
        raise ValueError(f"{path} holds no weights, or is damaged ({type(e).__name__})") from None


def check_shapes(path, part):
    """Raises ValueError unless a file holds this part of the released models: every key, every shape.

    Two parts differ in few of them: base and inpainting base only in the first convolution, 3 input channels or 7.
    """
    expected, found = released_shapes(part), shapes_of(read_released(path))
    if odd := sorted(key for key in expected.keys() | found.keys() if expected.get(key) != found.get(key)):
        raise ValueError(f"it holds another model ({len(odd)} keys or shapes differ, {odd[0]!r} for one)")


def check_hash(path, sha256):
    """Raises ValueError unless a file is this one to the last bit."""
    if (found := hashlib.sha256(path.read_bytes()).hexdigest()) != sha256:
        raise ValueError(f"its SHA-256 begins {found[:8]}, not {sha256[:8]}")


def _weights(part, file, parameters):
    """The entry of a file of weights. Its keys and shapes are known and are what is checked."""
    return Published(file, f"{AZURE}/diffusion/dec-2021", 4 * parameters, partial(check_shapes, part=part))


RELEASED = {
    "merges": Published("vocab.bpe", f"{AZURE}/gpt-2/encodings/main", 456_318, partial(
        check_hash, sha256="1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5")),
    "base": _weights("base", "base.pt", 385_030_726),
    "upsampler": _weights("upsampler", "upsample.pt", 398_361_286),
    "inpaint": _weights("inpaint", "base_inpaint.pt", 385_037_638),
    "inpaint-upsampler": _weights("inpaint-upsampler", "upsample_inpaint.pt", 398_368_198),
    "clip-merges": Published("bpe_simple_vocab_16e6.txt.gz", "https://openaipublic.azureedge.net/clip", 1_356_917, partial(
        check_hash, sha256="924691ac288e54409236115652ad4aa250f48203de50a9e4722a6ecd48d6804a")),
    "clip-image": _weights("clip-image", "clip_image_enc.pt", 86_443_776),
    "clip-text": _weights("clip-text", "clip_text_enc.pt", 71_679_488),
}
GROUPS = {   # what --fetch names; the small file first, so that what goes wrong goes wrong early
    "base": ("merges", "base", "upsampler"),
    "inpaint": ("merges", "inpaint", "inpaint-upsampler"),
    "clip": ("clip-merges", "clip-image", "clip-text"),
    "all": tuple(RELEASED),
}


def cache_folder():
    """Where released files lie unless --cache says otherwise. (The tests of 01 look there for the merge lists.)"""
    return Path(os.environ.get("GLIDE_CACHE") or "~/.cache/glide-readable").expanduser()


def amount(size):
    """A number of bytes for people: 456 kB, 1.5 GB."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if size < 1000 or unit == "GB":
            break
        size /= 1000
    return f"{size:.1f} {unit}" if size < 10 and unit != "bytes" else f"{size:.0f} {unit}"


def missing(names, folder):
    """What the folder lacks of RELEASED's entries of these names: a ValueError to raise, or None.

    Its one line says what is missing, how large it is, and the command that fetches it.
    """
    lacking = [RELEASED[name] for name in names if not (folder / RELEASED[name].file).is_file()]
    if not lacking:
        return None
    group = next(group for group in GROUPS if set(names) <= set(GROUPS[group]))
    command = "python 09_sample.py --preset filtered --fetch" + (f" {group}" if group != "base" else "")
    if folder != cache_folder():
        command += f" --cache {shlex.quote(str(folder))}"
    files = ", ".join(f"{entry.file} ({amount(entry.size)})" for entry in lacking)
    total = amount(sum(entry.size for entry in lacking))
    return ValueError(f"{folder} lacks {files}; to fetch them, about {total} in all: {command}")


def fetch(entry, folder, *, url=None, show=None):
    """A published file's path in a folder; it is fetched unless it is there.

    url   of the file, where that is not OpenAI's;   show(have, total)  is told of every piece, in bytes
    Raises ValueError, one line that says what to do. What came before is kept in NAME.part for the next time.
    """
    path, part, url = folder / entry.file, folder / f"{entry.file}.part", url or f"{entry.source}/{entry.file}"
    if os.path.lexists(path):
        check(entry, path, f"{path} is no {entry.file}", "remove it, and the same command fetches it anew")
        return path
    if not re.fullmatch("https?://[!-~]+", url) or not urlsplit(url).hostname:
        raise ValueError(f"{url!r} is no address to fetch from; it should begin with https:// and a server's name")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with alone(folder):
            receive(url, part, show or Progress(entry.file))
            accept(entry, part, url)
    except OSError as e:       # of the disk: those of the network have become ValueErrors where they arose
        raise ValueError(disk_trouble(e, folder) + kept(part)) from None
    except ValueError as e:
        raise ValueError(f"{e}{kept(part)}") from None
    return path


def check(entry, path, accusation, advice):
    """An entry's check of a file, with a message that says whose fault it is and what to do."""
    try:
        entry.check(path)
    except (OSError, ValueError) as e:
        raise ValueError(f"{accusation}: {e}; {advice}") from None


def accept(entry, part, url):
    """A part with all its bytes takes the file's name, or goes: more of them would not mend it."""
    try:
        check(entry, part, f"{url} is no {entry.file}", "nothing of it was kept; try again, or another --mirror")
        os.replace(part, part.with_name(entry.file))   # in one step: nobody ever sees half a file of that name
    except ValueError:
        part.unlink()
        raise
    finally:
        if not part.exists():
            note_of(part).unlink(missing_ok=True)


@contextmanager
def alone(folder):
    """One fetch at a time in a folder: two that append to one part would spoil it.

    The lock is on the folder itself and ends with the process, however that ends: no stale lock is ever in the way.
    """
    try:
        import fcntl
    except ImportError:        # Windows, which by itself renames no file that another program has open
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another fetch is writing to {folder}: wait until it has ended") from None
        except OSError:        # some network drives have no locks
            pass
        yield
    finally:
        os.close(handle)


def note_of(part):
    """The path of the line that says of what a part is a part."""
    return part.with_name(f"{part.name}.txt")


def size_of(path):
    """In bytes; 0 for a file that is not there."""
    return os.path.getsize(path) if os.path.isfile(path) else 0


def kept(part):
    """The end of a message: what the next fetch can build on."""
    have = size_of(part)
    return f"; {part.name} keeps the first {amount(have)}, and the same command goes on from there" if have else ""


def receive(url, part, show):
    """The bytes of a file into its part, less those that are there. Returns when all are; else ValueError or OSError."""
    have = size_of(part)
    note = note_of(part).read_text(encoding="utf-8") if have and note_of(part).exists() else ""
    if note.partition(" ")[0] == str(have):   # all came the last time, which ended before it was checked
        return
    reply, begin, total, version = ask(url, have, note)
    with reply:
        pieces = chunks(reply, url)
        first = next(pieces, b"")
        # Everything that could be wrong is looked at before a byte of what is there is overwritten.
        refuse_page(reply, first if begin == 0 else b"")
        if (free := shutil.disk_usage(part.parent).free) < total - have:
            raise ValueError(f"{part.parent} has room for {amount(free)} and {amount(total - have)} are still to come: "
                             "free some, or choose another folder with --cache")
        write(itertools.chain([first], pieces), part, begin, partial(show, total=total), version)
    if size_of(part) != total:
        raise ValueError(f"the connection to {urlsplit(url).hostname} was cut after {amount(size_of(part))} "
                         f"of {amount(total)}")


def refuse_page(reply, first):
    """Raises ValueError for a page to look at. Login pages of networks come so: with status 200, whatever was asked."""
    begins = first.lstrip(b"\xef\xbb\xbf \t\r\n")[:1]            # after what may stand before a page's first "<"
    if "html" in reply.headers.get_content_type() or begins == b"<":
        raise ValueError(f"{reply.url} is a web page and not the file; open it in a browser: it may be the "
                         "login page of this network, or --mirror is not the folder of the files")


def write(pieces, part, begin, show, version):
    """Pieces after the first `begin` bytes of a part, and the note beside it."""
    with open(part, "ab") as file:
        file.truncate(begin)
        note_of(part).write_text(version, encoding="utf-8")
        show(begin)
        for piece in pieces:
            file.write(piece)
            show(begin := begin + len(piece))
        file.flush()
        os.fsync(file.fileno())   # on the disk before it gets its name: a power cut must not leave an empty file


class SafeRedirects(urllib.request.HTTPRedirectHandler):
    """Goes where a server sends it, but never from https to what anyone on the way could change."""

    def redirect_request(self, request, *rest):
        schemes = urlsplit(request.full_url).scheme, urlsplit(rest[-1]).scheme
        if schemes[1] != "https" and schemes != ("http", "http"):
            raise ValueError(f"{request.full_url} leads on to {rest[-1]}, which is not safe: try another --mirror")
        return super().redirect_request(request, *rest)


def ask(url, have, note):
    """A server's reply that brings a file from byte `have` on, or else from its beginning.

    -> (reply, the place of its first byte, size of the whole file, version: the note for the next time)
    """
    opener = urllib.request.build_opener(SafeRedirects)
    for begin in dict.fromkeys((have, 0)):
        request = urllib.request.Request(url, headers={"Range": f"bytes={begin}-"} if begin else {})
        try:
            reply = opener.open(request, timeout=TIMEOUT)
        except (OSError, http.client.HTTPException) as e:
            if begin and getattr(e, "code", None) == 416:
                continue
            raise ValueError(network_trouble(e, url)) from None
        first, total = span(reply)
        version = f"{total} {reply.headers.get('ETag', '')}"
        # Without a note, the part came from elsewhere; should it be of another file, the check at the end will tell.
        if first == 0 or first == begin and note in ("", version):
            return reply, first, total, version
        reply.close()   # the rest of another file, or not the rest
    raise ValueError(f"{url} comes without its size, or not from its beginning: try another --mirror")


def span(reply):
    """Where a reply's bytes begin and how many the whole file has; (None, None) where it does not say.

    Without a size a transfer that was cut would look like a whole one.
    """
    if reply.status == 206:
        said = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+)", reply.headers.get("Content-Range", ""))
        first, last, total = map(int, said.groups()) if said else (0, 0, 0)
        return (first, total) if last + 1 == total else (None, None)
    length = reply.headers.get("Content-Length", "")
    return (0, int(length)) if length.isdecimal() else (None, None)


def chunks(reply, url):
    """A reply's bytes, a quarter of a megabyte at a time: a file of 1.5 GB never lies in memory as a whole.

    A cut is the end, or a ValueError: both happen. So `receive` counts what has come.
    """
    try:
        while piece := reply.read(1 << 18):
            yield piece
    except (OSError, http.client.HTTPException) as e:
        raise ValueError(network_trouble(e, url)) from None


def network_trouble(error, url):
    """What went wrong on the way and what to do, in one line."""
    host, reason, status = urlsplit(url).hostname, getattr(error, "reason", error), getattr(error, "code", None)
    if status in (404, 410):
        return f"{url} is not there (status {status}): the files have moved, or --mirror names the wrong folder"
    if status and status < 400:
        return f"{url} leads in circles, or to no web address (status {status}): try another --mirror"
    if status:
        return f"{host} refused {url} (status {status} {http.client.responses.get(status, '')}): try again later"
    if isinstance(reason, TimeoutError):
        return f"{host} has been silent for {TIMEOUT:g} seconds: try again later"
    if isinstance(error, URLError):
        return f"cannot reach {host} ({' '.join(str(reason).split())}): is this machine online?"
    return f"the connection to {host} was cut ({type(error).__name__}): try again"


def disk_trouble(error, folder):
    """What went wrong here and what to do, in one line."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):   # no space, or no more for this user
        return f"the disk of {folder} is full: free some room, or choose another folder with --cache"
    return f"cannot write to {folder} ({error.strerror or error}): choose another folder with --cache or GLIDE_CACHE"


class Progress:
    """How far a transfer is, on stderr: on a terminal one line that is rewritten, elsewhere a line every ten seconds."""

    def __init__(self, name):
        self.name, self.start, self.begin, self.told = name, None, 0, 0.0

    def __call__(self, have, total):
        """So many bytes are there, of so many. Time left is reckoned from the mean speed of this transfer."""
        now, terminal = time.monotonic(), sys.stderr.isatty()
        if self.start is None:                     # what an earlier transfer brought says nothing of this one's speed
            self.start, self.begin, self.told = now, have, now
        last = terminal and have == total          # elsewhere the command's own line is the last
        if not last and now - self.told < (0.1 if terminal else 10):
            return
        self.told, rate = now, max(have - self.begin, 1) / max(now - self.start, 1e-3)
        left = int((total - have) / rate)
        line = f"{self.name}: {have / 1e6:,.1f} of {total / 1e6:,.1f} MB, {rate / 1e6:.1f} MB/s, {left // 60}:{left % 60:02d} left"
        # The cursor returns to the line's beginning: whatever is said next, a refusal too, takes the line's place.
        print(f"{line:<78}" if terminal else line, end="\r" if terminal and not last else "\n", file=sys.stderr, flush=True)


def fetch_command(args):
    """--fetch: the files of a group, one after the other. The first that fails ends it; those before it stay."""
    folder = args.cache or cache_folder()
    for name in GROUPS[args.fetch]:
        entry = RELEASED[name]
        known = "was there, whole" if os.path.lexists(folder / entry.file) else "fetched and checked"
        path = fetch(entry, folder, url=args.mirror and f"{args.mirror.rstrip('/')}/{entry.file}")
        print(f"{path}: {known}", flush=True)


# --- Between their files and ours ---------------------------------------------------------------------

# A released file holds weights and nothing else; one of ours also says what they are weights of, and so 08 can begin
# with it: fine-tune it on somebody's pictures, grow channels onto it. One way is --convert, the way back --export: what
# was fine-tuned here then runs in every program that reads the released files.
def convert(args):
    """--convert FOLDER: the released models of the cache as weight files of the course, which 08 takes with --start.

    16 bits a number, as 08 writes them: half the size, and a picture does not show it. What is there is left alone.
    """
    cache, out = args.cache or cache_folder(), args.convert
    needs = {part: ("merges", part) for part in PARTS.values()} | {"clip": GROUPS["clip"]}    # the last one decides
    there = [part for part, files in needs.items() if (cache / RELEASED[files[-1]].file).is_file()]
    if trouble := missing(sorted({name for part in there or ["base"] for name in needs[part]}), cache):
        raise trouble
    for part in there:
        path = out / f"{part}.pt"
        if os.path.lexists(path):
            print(f"{path}: was there, and stays as it is")
            continue
        network, tok = released_model(cache, part)
        unet.save_weights(path, network, **facts_of(part, tok))
        print(f"{path}: {unet.parameters(network):,} parameters, {amount(size_of(path))} in 16 bits", flush=True)
    print(f"Next: python 08_train.py base --preset filtered --start {shlex.quote(str(out / 'base.pt'))} --data PICTURES"
          " --freeze text --lr 1e-5 --steps 2000 --batch 8 --parts 4")


def facts_of(part, tok):
    """What a weight file of ours tells of a released model beside the weights: what 08 would, but for its making."""
    preset = train.PRESETS["filtered"][part]
    sources = ("clip-image", "clip-text") if part == "clip" else (part,)
    made = {"from": [f"{RELEASED[name].source}/{RELEASED[name].file}" for name in sources]}
    return {"size": preset.size, "diffusion": asdict(preset.diffusion), "difficulty": "", **train.kept(tok),
            "made": made}


def export(args):
    """--export FOLDER: the models of --weights as files with the released names, keys and shapes, in float32.

    All is looked at before anything is written.
    """
    parts = [part for part in (*PARTS.values(), "clip") if (args.weights / f"{part}.pt").is_file()]
    if not parts:
        raise ValueError(f"{args.weights} holds no base.pt, upsampler.pt, … to export")
    states = {name: state for part in parts for name, state in as_released(args, part).items()}
    files = {args.export / RELEASED[name].file: state for name, state in states.items()}
    if there := [path for path in files if os.path.lexists(path)]:
        raise ValueError(f"{there[0]} exists already; give --export another folder, or remove it first")
    for path, state in files.items():
        with unet.whole_file(path) as partial:
            torch.save(state, partial)
        print(f"{path}: {amount(size_of(path))}, as OpenAI's is laid out", flush=True)


def as_released(args, part):
    """One of our files as the released ones that hold the same: {name in RELEASED: state dict}. ValueError for a model
    that the released code could not draw with: for another schedule, or v instead of ε, their files have no word."""
    path = args.weights / f"{part}.pt"
    saved, published = unet.read_weights(path), asdict(train.PRESETS["filtered"][part].diffusion)
    if saved.get("diffusion") != published:
        raise ValueError(f"{path} draws by {saved.get('diffusion')} and the released code by {published}: of no use there")
    if part == "clip":
        return dict(zip(("clip-image", "clip-text"), export_openai_clip(guidance.NoisedCLIP.out_of(saved, path))))
    return {part: export_openai(unet.UNet.out_of(saved, path))}


# What --OPTION does instead of drawing
COMMANDS = {"fetch": fetch_command, "convert": convert, "export": export, "measure": measure}


def main(argv=None):
    """The command line. -> exit status: 0, 2 for what a person can mend (one line on stderr), 130 after Ctrl-C.

    An error that is none of these is ours, and is shown in full.
    """
    args = arguments(argv)
    try:
        if args.mirror and not args.fetch:
            raise ValueError("--mirror says where to fetch from; it goes with --fetch")
        if args.export and args.weights is None:
            raise ValueError("--export FOLDER writes what --weights FOLDER holds; give both")
        command = next((command for option, command in COMMANDS.items() if getattr(args, option)), sample)
        if args.prompt is None and command is sample:
            raise ValueError('what shall it draw? python 09_sample.py "a red heart above a blue umbrella"')
        command(args)
    except (MemoryError, RuntimeError) as e:
        if not isinstance(e, (MemoryError, torch.OutOfMemoryError)) and "DefaultCPUAllocator" not in str(e):
            raise                # torch has a class of its own for a GPU's memory only
        print("09_sample.py: out of memory; try --batch 1, or --dtype bfloat16", file=sys.stderr)
        return 2
    except (OSError, ValueError) as e:
        print(f"09_sample.py: {e}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("\nstopped; " + ("the same command goes on from here" if args.fetch else "nothing was written"),
              file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
