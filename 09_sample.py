r"""
09 · A prompt becomes a picture.

All the parts are there; this file puts them in a row. The words become tokens, noise becomes a small image under
guidance, the small image becomes a large one:

    "a red heart" ─► tokens, mask ─┬─► base model, guided, 25 steps ─► 16×16 ─► 8 bits ─┐
                                   └──────────────────── upsampler, 27 steps ◄──────────┘ ─► 64×64 ─► a PNG file

It adds to 08: use. Models come as a folder of weight files (03), each of which says what it is: base.pt, upsampler.pt,
for drawing into an image inpaint.pt and inpaint-upsampler.pt, and clip.pt, the noised CLIP of 05. The small weights of
the course, your own, and OpenAI's after lessons/12_released.py has fetched and converted them, are all such folders,
and the same lines draw 64 pixels on a laptop and 256 on a GPU. Left out: how often what is drawn is right
(lessons/10_judge.py).

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4: base and upsampler; section 5: guidance); the
upsampler's 27 steps, and its sampler when it inpaints: the released notebooks; from a sketch: SDEdit, Meng et al. 2021,
arXiv 2108.01073 (section 3.2).

    python 09_sample.py "a red heart above a blue umbrella"                                    about five seconds
    python 09_sample.py "a small green star" --n 8 --seed 3 --scale 5 --steps 50 --sampler ddpm
    python 09_sample.py "a red heart to the left of a blue star" --image x.png --box 0.5,0,1,1   into its right half
    python 09_sample.py "a large red sun" --init sketch.png --strength 0.6               turns a sketch into an image
    python 09_sample.py "two green stars" --n 2 --rerank 8               draws 8, keeps the 2 that CLIP says fit best
    python 09_sample.py "a pair of glasses" --weights my-weights         weights that 08 made from images of your own
    python 09_sample.py "an oil painting of a corgi" --preset filtered   OpenAI's weights

It writes the picture and, next to it, a strip of what the model believed on the way, and prints the seed.
"""
import argparse
import os
import random
import re
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from itertools import chain, count
from pathlib import Path

import numpy as np
import torch
from PIL import Image

tokenizer = import_module("01_tokenizer")
transformer = import_module("02_transformer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
inpaint = import_module("06_inpaint")
upsample = import_module("07_upsample")
train = import_module("08_train")

OUTPUTS = Path(__file__).parent / "outputs"
# Where --preset looks. lessons/12_released.py puts OpenAI's converted weights into the second folder.
CACHE = Path(os.environ.get("GLIDE_CACHE") or "~/.cache/glide-readable").expanduser()
FOLDERS = {"tiny": unet.WEIGHTS, "small": unet.WEIGHTS / "small", "filtered": CACHE / "filtered"}


# --- Models ------------------------------------------------------------------------------------------

# From a folder to something that can be called: `Weights` finds the files of a folder and checks that they belong
# together; of each it makes a `Model`, or a `Clip` if it holds the CLIP. The checks come before any drawing, because a
# wrong combination raises no error in torch; it draws nonsense.
#
# A network's input channels tell its kind: 3 of x, 3 of low_res if it enlarges (07), 4 of a known part (06)
KINDS = {3: "base", 6: "upsampler", 7: "inpaint", 10: "inpaint-upsampler"}


# Weights alone are of no use: with another schedule, tokenizer or image size the same numbers draw noise. So a weight
# file holds all of these, and a Model has them ready for use.
@dataclass
class Model:
    """A U-Net with all that is needed to sample from it."""

    kind: str             # "base", "upsampler", "inpaint" or "inpaint-upsampler"
    denoiser: object      # the U-Net as a denoiser (04): whatever the network predicts, this answers ε
    config: unet.UNetConfig
    diffusion: diffusion.DiffusionConfig
    size: int             # of its images
    tokenizer: object
    device: str
    world: str            # which part of the little world it has learned: "single" or "full"; "" for real captions
    verbatim: bool        # see `as_trained`

    @classmethod
    def load(cls, path, device="cpu", dtype=None):
        """The model of a weight file. dtype None: the one that `usual_dtype` chooses.

        Raises FileNotFoundError or ValueError, one line each.
        """
        return cls.from_saved(unet.read_weights(path), path, device, dtype)

    @classmethod
    def from_saved(cls, saved, path, device="cpu", dtype=None):
        """The same, from what `unet.read_weights` returned for path."""
        network = unet.UNet.from_saved(saved, path)
        config = network.config
        network = to_dtype(network, dtype or usual_dtype(config, device)).to(device)
        process = diffusion.DiffusionConfig(**saved["diffusion"])
        denoiser = upsample.denoiser_of(network, config, process)
        return cls(KINDS[config.in_channels], denoiser, config, process, saved["size"],
                   tokenizer.load_tokenizer(saved), device, saved["world"], saved.get("verbatim", False))

    def encode(self, prompts):
        """Prompts -> {"tokens": [B, K], "mask": [B, K]}, as the denoiser takes them."""
        words = [as_trained(prompt, self.verbatim) for prompt in prompts]
        return transformer.encode(words, self.tokenizer, self.config.text.context, self.device)


def as_trained(prompt, verbatim):
    """A prompt in the form of the captions that a model was trained on: verbatim for OpenAI's models, with tidy white
    space for ours. To ours an extra space is a token that they have never seen, and may turn a picture into another."""
    return prompt if verbatim else train.tidy(prompt)


# From this many channels on, a network is faster in 16 bits and with the channels last in memory; smaller ones gain
# nothing.
LARGE = 128


def usual_dtype(config, device):
    """The dtype to sample with: 16 bits where they are fast and the network is large enough to gain by them."""
    return train.fast_dtype(device) if config.channels >= LARGE else torch.float32


def to_dtype(network, dtype):
    """A U-Net with its weights, except for those of the last layer, converted to this type.

    For sampling, unlike training (08), the weights themselves may have 16 bits: no small change is ever added to them.
    That halves the memory, and the time to read it. The softmax and the norms' statistics are float32 inside torch's
    operators whatever comes in; the last layer stays float32 because samplers divide its answer by √ᾱ, which enlarges
    any error in it. Channels last: what a convolution's matrix product reads together lies together in memory.
    """
    network.to(dtype)
    network.output.float()
    return network.to(memory_format=torch.channels_last) if network.config.channels >= LARGE else network


@dataclass
class Clip:
    """A noised CLIP with its tokenizer. It reads captions in a vocabulary of its own, unlike any U-Net's."""

    network: guidance.NoisedCLIP
    tokenizer: object
    device: str

    @torch.no_grad()
    def embed(self, prompts):
        """-> unit vectors [B, E]"""
        context = self.network.config.text.context
        return self.network.text(**guidance.encode_clip(prompts, self.tokenizer, context, self.device))

    @torch.no_grad()
    def similarity(self, images, prompts):
        """How well images [B, 3, S, S] without noise (t = 0) fit their prompts: [B], from -1 to 1."""
        t = torch.zeros(len(images), dtype=torch.long, device=self.device)
        return (self.network.image(images.to(self.device), t) * self.embed(prompts)).sum(1)


class Weights:
    """The models that one drawing needs, in a folder of weight files. `load` makes them, one at a time.

    Only the headers are read here, and checked together: what does not fit is refused before anything is drawn.

    inpaints  whether an image is drawn into: then inpaint.pt and inpaint-upsampler.pt, if there are any, are preferred
    clip      whether a CLIP is needed
    Raises FileNotFoundError or ValueError, one line each. Without an upsampler in the folder the images stay small.
    """

    def __init__(self, folder=unet.WEIGHTS, *, inpaints=False, clip=False, device="cpu", dtype=None):
        self.folder, self.device, self.dtype, self.saved = Path(folder), device, dtype, {}
        if self.folder.is_file():
            raise ValueError(f"{folder} is a file; --weights takes a folder that holds base.pt, upsampler.pt, …")
        for stage, tuned in ("base", "inpaint"), ("upsampler", "inpaint-upsampler"), ("clip", "clip"):
            path = self.folder / f"{tuned if inpaints and self.has(tuned) else stage}.pt"
            # A base model there must be, and a CLIP if it is asked for: `read` complains if they are missing.
            if stage == "base" or clip and stage == "clip" or stage == "upsampler" and path.exists():
                self.saved[stage] = path, self.read(path)
        # A network that was trained on 16 pixels also runs on 64, and draws nonsense. So sizes are compared here.
        sizes = {stage: saved["size"] for stage, (_, saved) in self.saved.items()}
        expected = {"base": sizes["base"], "upsampler": upsample.FACTOR * sizes["base"], "clip": sizes["base"]}
        if wrong := [stage for stage in sizes if sizes[stage] != expected[stage]]:
            raise ValueError(f"in {folder} the base model draws {sizes['base']} pixels, and {wrong[0]}.pt is for"
                             f" {sizes[wrong[0]]}, not {expected[wrong[0]]}: they do not belong together")
        schedules = {stage: saved["diffusion"]["schedule"] for stage, (_, saved) in self.saved.items()}
        if schedules.get("clip", schedules["base"]) != schedules["base"]:
            raise ValueError(f"in {folder} clip.pt was trained on another noise schedule than the base model")

    def has(self, kind):
        """Whether the folder holds a model of this kind."""
        return (self.folder / f"{kind}.pt").exists()

    def read(self, path):
        """What `unet.read_weights` returns for a file, checked. Raises FileNotFoundError, which says where such a file
        comes from, or ValueError, which says what is wrong with it."""
        if path.exists():
            saved = unet.read_weights(path)
            if lacking := {"size", "diffusion", "tokenizer", "world"} - set(saved):
                raise ValueError(f"{path} does not say its {', '.join(sorted(lacking))}, as a file of 08_train.py does")
            kind = KINDS.get(saved["config"].get("in_channels"), "clip" if "patch" in saved["config"] else "unknown")
            if kind != path.stem:
                raise ValueError(f"{path} holds a model of another kind: {kind}")
            return saved
        what = {"clip": " clip"}.get(path.stem, "")
        how = (f"python lessons/12_released.py fetch{what} brings it" if self.folder == FOLDERS["filtered"] else
               f"python 08_train.py{what} trains one, and its {path.name} belongs there")
        raise FileNotFoundError(f"there is no {path.name} in {self.folder}; {how}")

    def load(self, stage):
        """The Model of a stage, "base" or "upsampler"; for "clip" a Clip."""
        path, saved = self.saved[stage]
        if stage == "clip":
            network = guidance.NoisedCLIP.from_saved(saved, path).to(self.device)
            return Clip(network, tokenizer.load_tokenizer(saved), self.device)
        return Model.from_saved(saved, path, self.device, self.dtype)

    def header(self, name):
        """A value in the header of the base model's file."""
        return self.saved["base"][1][name]


# --- Drawing into an image, and over one -------------------------------------------------------------

# People bring images of any size and shape; a model has one size. So there is a conversion on the way in, where image
# and mask become tensors at each model's size (`InpaintInput.at`), and another on the way out (`composite`), where only
# the hole is taken from what was drawn: outside it each pixel of the person's own image comes back untouched, not a
# copy that went through 64 pixels. An image that is drawn *over*, such as a sketch, needs only `pixels`.
#
# A mask *file* is white where something is to be drawn, as a painter would mark it; a mask *tensor* is 1 where the
# image is known, as the network was taught (06). `InpaintInput.at` is the only place where the one becomes the other:
# inverted once more, a mask would keep the hole and draw over the rest.
def pixels(image, size):
    """An RGB image of any size as [1, 3, size, size] in [-1, 1].

    If the image is larger, each new pixel is the mean of those that it covers, as in training; if it is smaller, new
    pixels are interpolated.
    """
    filter = Image.BOX if min(image.size) >= size else Image.BICUBIC
    return torch.from_numpy(np.array(image.resize((size, size), filter))).permute(2, 0, 1)[None] / 127.5 - 1


@dataclass
class InpaintInput:
    """An image of any size with a mask: the two in the form that each model wants, and the way back from a result.

    At every size the hole consists of whole pixels of the base model. Its edge is then the same for both models, and
    the upsampler cannot redraw what the base model left alone. A pixel is drawn if any part of it is white in the mask,
    so that thin lines count.
    """

    image: Image.Image    # RGB
    mask: Image.Image     # L: white = draw here
    small: int            # the base model's size

    def hole(self, size):
        """White where something is drawn: an L image of size (w, h), in squares of the base model's pixels."""
        white = np.asarray(self.mask) >= 128                                                    # [H, W]
        # Do the rows of cell i hold any white? They go from ⌊i·H/small⌋ to ⌈(i+1)·H/small⌉: a row that lies in two
        # cells counts for both. Turned by .T, the columns are treated likewise, and turned back.
        for _ in range(2):
            edges = [(i * len(white) // self.small, -(-(i + 1) * len(white) // self.small)) for i in range(self.small)]
            white = np.array([white[begin:end].any(0) for begin, end in edges]).T
        return Image.fromarray(white.astype(np.uint8) * 255).resize(size, Image.NEAREST)

    def at(self, size, device, count):
        """-> images [count, 3, size, size] in [-1, 1] and their masks [count, 1, size, size], 1 = known."""
        known = torch.from_numpy(np.array(self.hole((size, size)))) == 0     # here white = draw becomes 1 = known
        known = known.to(device, torch.float32).expand(count, 1, -1, -1)
        return pixels(self.image, size).to(device).expand(count, -1, -1, -1), known

    def composite(self, drawn):
        """A drawn image, uint8 [3, H, W] -> uint8 [3, H', W'], the size of the known image, whose own pixels it has
        everywhere outside the hole."""
        page, size = Image.fromarray(drawn.permute(1, 2, 0).numpy()), self.image.size
        # Pictures of the tiny models are saved with each pixel as a square. Drawing into such a picture gives squares
        # again; into any other, smooth transitions.
        reduced = self.image.resize(page.size, Image.BOX)
        whole = not (size[0] % page.width or size[1] % page.height)
        squares = whole and reduced.resize(size, Image.NEAREST) == self.image
        page = page.resize(size, Image.NEAREST if squares else Image.BICUBIC)
        page = Image.composite(page, self.image, self.hole(size))
        return torch.from_numpy(np.array(page)).permute(2, 0, 1)


# --- The pipeline ------------------------------------------------------------------------------------

# From the inside out: `Options` says how a stage samples, and `default_options` how it usually does; `sample_base` and
# `sample_upsampler` are the two stages, each a few lines that put together what 04 to 07 defined; `generate` runs one
# after the other, in batches. Guidance, inpainting and sketches are no separate pipelines. Each only changes what one
# sampler is given: another denoiser, an x0_fn, a grad_fn, another x_T.
@dataclass(frozen=True)
class Options:
    """How a stage samples. Few steps are coarse, many are slow; with a low scale the prompt is often missed, with a
    high one images become garish and all alike (05). batch changes memory and speed, not the images."""

    steps: str = "25"         # see diffusion.respace
    sampler: str = "ddim"     # "ddim", "ddpm" or "dpm"
    scale: float = 3.0        # of guidance; the upsampler has none
    batch: int = 64           # images at a time
    guide: str = "free"       # "free": classifier-free guidance; "clip": the noised CLIP's gradient
    strength: float = 1.0     # how far towards pure noise an image to begin with is taken, 0 to 1


def default_options(model):
    """For large models the settings of the released notebooks, with 150 steps instead of their 100; for small ones 25
    steps of DDIM, which needs fewer than DDPM (04)."""
    large, inpaints = model.size >= (256 if "upsampler" in model.kind else 64), "inpaint" in model.kind
    if "upsampler" in model.kind:
        return Options("fast27", "ddpm" if inpaints else "ddim", 1.0, 2 if large else 64)
    scale = 5.0 if inpaints and large else 3.0
    return Options("150" if large else "25", "ddpm" if large else "ddim", scale, 8 if large else 64)


def around_known(known, model, count):
    """-> (what a model is shown of an InpaintInput, for `count` images; the x0_fn that puts the known part into each
    predicted x_0). A model that has no inputs for it is shown nothing: the x0_fn must do alone, and seams show (06)."""
    if known is None:
        return {}, None
    image, mask = known.at(model.size, model.device, count)
    shown = {"inpaint_image": image, "inpaint_mask": mask} if "inpaint" in model.kind else {}
    return shown, inpaint.replace_known(image, mask)


def sample_base(model, prompts, options=None, *, generator, clip=None, known=None, init=None, callback=None):
    """The base model's images [B, 3, S, S] in [-1, 1].

    options    None: `default_options(model)`
    generator  a torch.Generator, or a list of them, one for each image
    clip       a Clip, for options.guide "clip";  known  an InpaintInput: draw only into its hole
    init       an RGB image to begin with; options.strength says how little of it stays
    callback   as for the samplers (04)

    Both ways of guiding [GLIDE section 2.3 and 2.4] end in one call of a sampler: classifier-free guidance gives it
    another denoiser, CLIP guidance a gradient to add at each step. The two are not combined: the paper, too, compares
    one with the other.
    """
    how = options or default_options(model)
    process = diffusion.Diffusion.from_config(model.diffusion, how.steps, how.strength if init else 1.0)
    x_T = diffusion.gaussian(torch.empty(len(prompts), 3, model.size, model.size, device=model.device), generator)
    if init:
        # The image is noised until its details are drowned but its composition is not, and sampling starts there
        # instead of at pure noise. It leads to an image of that composition that the model finds likely.
        # x_t = √ᾱ_t·init + √(1-ᾱ_t)·ε   at the noisiest t that is kept   [SDEdit section 3.2]
        t = torch.full((len(prompts),), process.timesteps[-1])
        x_T = process.q_sample(pixels(init, model.size).to(x_T), t, x_T)
    shown, x0_fn = around_known(known, model, len(prompts))
    denoiser, grad_fn = guidance.classifier_free(model.denoiser, how.scale), None
    if how.guide == "clip":
        denoiser, grad_fn = model.denoiser, guidance.clip_guidance(clip.network, clip.embed(prompts), how.scale)
    sampler = getattr(process, f"{how.sampler}_sample")
    return sampler(denoiser, x_T, generator=generator, grad_fn=grad_fn, x0_fn=x0_fn, callback=callback,
                   **shown, **model.encode(prompts))


def sample_upsampler(model, low_res, prompts, options=None, *, generator, known=None, callback=None):
    """[B, 3, S, S] -> [B, 3, 4S, 4S], conditioned on the small images and the prompts; arguments as for `sample_base`.

    Without guidance: how closely the prompt is followed has been decided at the small size, and guidance would double
    the cost of the most expensive steps, those on sixteen times as many pixels.
    """
    how = options or default_options(model)
    process = diffusion.Diffusion.from_config(model.diffusion, how.steps)
    shown, x0_fn = around_known(known, model, len(prompts))
    return upsample.upsample(model.denoiser, low_res.to(model.device), process=process, sampler=how.sampler,
                             generator=generator, x0_fn=x0_fn, callback=callback, **shown, **model.encode(prompts))


def generate(prompt, weights=None, *, n=1, seed=0, rerank=None, known=None, init=None, callback=None,
             upsampler_steps=None, **changes):
    """A prompt becomes images: uint8 [n, 3, H, W]. The k-th image's random numbers depend on the seed and k alone.

    weights   a Weights; None: the small ones of the course
    rerank    draw this many small images, and enlarge only the n that fit the prompt best according to the noised CLIP
    known, init   as for `sample_base`;  changes  of the base model's default Options, such as scale=5
    callback(stage, x0, done, total)  is called at every step: "base" or "upsampler", the predicted x_0, the number of
              steps done in this batch, and of all of them
    Raises ValueError if numbers overflowed (float16 ends at 65,504).
    """
    judged = bool(rerank) or changes.get("guide") == "clip"
    weights = weights or Weights(inpaints=known is not None, clip=judged)
    if judged and "clip" not in weights.saved:
        raise ValueError("rerank and guide need a noised CLIP: Weights(…, clip=True)")
    clip = weights.load("clip") if judged else None

    def stage(name, n, draw, **changes):
        """All images of a stage, a batch at a time. Its model leaves memory at the end, since `model` is local: the two
        stages need not fit side by side."""
        model, images = weights.load(name), []
        how = replace(default_options(model), **changes)
        for places in torch.arange(n).split(how.batch):
            # A generator for each image. With one for all, an image would depend on how many are drawn before it. They
            # are on the CPU, because GPUs draw other numbers from the same seed; and the stage's name is part of the
            # seed, because the two stages must not begin with the same noise.
            generator = [diffusion.seeded_generator(seed, name, int(k)) for k in places]
            steps = len(diffusion.Diffusion.from_config(model.diffusion, how.steps, how.strength).timesteps)
            done = count(1)
            told = callback and (lambda t, x, x0: callback(name, x0, next(done), steps))
            images.append(draw(model, places, [prompt] * len(places), how, generator=generator, callback=told))
            if not torch.isfinite(images[-1]).all():
                raise ValueError("the numbers grew beyond what this --dtype holds; try float32, or a lower --scale")
        return torch.cat(images)

    def draw_base(model, places, *given, **options):
        return sample_base(model, *given, clip=clip, known=known, init=init, **options)

    def draw_large(model, places, *given, **options):
        return sample_upsampler(model, images[places], *given, known=known, **options)

    images = stage("base", rerank or n, draw_base, **changes)
    # A model that draws a caption right half of the time nearly always has a right one among many: that all of 16 are
    # wrong happens once in 2^16 = 65,536 times. The CLIP chooses, and sees finished images (t = 0). It does so before
    # the upsampler, whose steps cost the most.
    if rerank:
        similarity = clip.similarity(images, [prompt] * len(images))
        images = images[similarity.argsort(descending=True)[:n].to(images.device)]
    clip = None                   # the upsampler has the memory to itself
    if "upsampler" in weights.saved:
        large = {"batch": changes["batch"]} if "batch" in changes else {}
        large |= {"steps": upsampler_steps} if upsampler_steps else {}
        images = stage("upsampler", n, draw_large, **large)
    return diffusion.to_bytes(images).cpu()


# --- The command line --------------------------------------------------------------------------------

# Here what a person types and the files that a person has become the arguments of `generate`. First come readers and
# checks, one for each kind of input, each with a message that says what to do instead; then `Progress`, which shows
# what happens; last `command`, which runs everything in order.
def read_image(path, mode="RGB"):
    """A person's image file: see inpaint.open_image. Raises ValueError, one line, if it is not an image."""
    try:
        return inpaint.open_image(path, mode)
    except FileNotFoundError:
        raise ValueError(f"there is no file {path}") from None
    except Exception as e:        # Pillow has no common error
        raise ValueError(f"{path} cannot be read as an image: {e}") from None


def read_known(args, small):
    """--image with --mask or --box as an InpaintInput; None without them."""
    if args.image is None and args.mask is None and args.box is None:
        return None
    if args.image is None or (args.mask is None) == (args.box is None):
        raise ValueError("--image goes with --mask FILE, white where to draw, or with --box, but not with both")
    mask = read_image(args.mask, "L") if args.mask else args.box
    known = InpaintInput(read_image(args.image), mask, small)
    if not known.hole((small, small)).getbbox():
        raise ValueError(f"{args.mask or '--box'} leaves nothing to draw: white is where to draw, and there is none")
    return known


def at_least(low, kind=int):
    """A type for argparse: a number of this kind, low or more."""
    def number(text):
        if not low <= kind(text) < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not a number from {low:g} on")
        return kind(text)
    return number


def device_name(text):
    """A type for argparse: a device that computes here."""
    try:
        torch.zeros(1, device=text)
    except (RuntimeError, AssertionError, ImportError):
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here; cpu always works") from None
    return text


def box_mask(text):
    """A type for argparse: left,top,right,bottom, in fractions of an image's sides, as a mask that is white there."""
    try:
        left, top, right, bottom = corners = [float(number) for number in text.split(",")]
        valid = 0 <= left < right <= 1 and 0 <= top < bottom <= 1
    except ValueError:
        valid = False
    if not valid:
        raise argparse.ArgumentTypeError(f"{text} is not left,top,right,bottom from 0 to 1, such as 0.5,0,1,1")
    mask = Image.new("L", (1024, 1024))
    mask.paste(255, tuple(round(1024 * number) for number in corners))
    return mask


def read_init(args):
    """--init as a square image; None without it."""
    if args.init is None:
        return None
    image = read_image(args.init)
    if image.width != image.height:
        side = min(image.size)
        left, top = (image.width - side) // 2, (image.height - side) // 2
        image = image.crop((left, top, left + side, top + side))
        print(f"{args.init} is not square: its middle {side}×{side} pixels are taken")
    return image


def check_prompt(prompt, weights):
    """Raise ValueError for a prompt that the little world's models have never learned to draw. They would draw
    something all the same, and one would blame the sampler. Print a note if a prompt is so long that it is cut.
    """
    if not prompt.strip():
        raise ValueError('the prompt is empty; try "a red heart above a blue umbrella"')
    if weights.header("world"):
        scene = tokenizer.Scene.parse(prompt)
        strange = [thing.noun for thing in scene.things if thing.noun not in tokenizer.EASY_NOUNS]
        if weights.header("world") == "single" and (scene.kind != "single" or strange):
            raise ValueError(f"these weights know single things only: {', '.join(tokenizer.EASY_NOUNS)}")
    saved = weights.saved["base"][1]
    words, context = tokenizer.load_tokenizer(saved), saved["config"]["text"]["context"]
    ids = words.encode(as_trained(prompt, saved.get("verbatim", False)))
    if len(ids) > context:
        print(f"the prompt is longer than the {context} tokens that the model reads: it is cut after"
              f" {words.decode(ids[:context])[-40:]!r}")


class Progress:
    """The progress line, and the strip of predicted images.

    The strip shows not x_t, which is mostly noise, but x̂_0, the image that the model expects at each step. It is a
    blurred average at first and becomes sharp, so one sees at which step it is decided what is drawn.
    """

    def __init__(self):
        self.start, self.frames = time.time(), {"base": [], "upsampler": []}

    def __call__(self, stage, x0, done, total):
        """One step of a stage."""
        if len(self.frames[stage]) < total:                # the first image of the first batch; later ones are not kept
            self.frames[stage].append(diffusion.to_bytes(x0[:1]).cpu())
        live, seconds = sys.stderr.isatty(), time.time() - self.start
        line = f"{stage}: step {done} of {total} at {x0.shape[3]}×{x0.shape[2]}, {seconds:.1f} s"
        if live or done == total:
            print("\r" * live + line, end="\n" if done == total else "", file=sys.stderr, flush=True)

    def strip(self, columns=8):
        """How the first image came about, as a PIL image: x̂_0 of the base model in one row, of the upsampler below."""
        rows = []
        for frames in filter(None, self.frames.values()):
            chosen = [frames[round(i)] for i in np.linspace(0, len(frames) - 1, min(columns, len(frames)))]
            zoom = max(1, 128 // frames[0].shape[3])
            rows.append(diffusion.image_grid(torch.cat(chosen), columns=columns, zoom=zoom))
        page = Image.new("RGB", (max(row.width for row in rows), sum(row.height + 4 for row in rows) - 4), "white")
        for i, row in enumerate(rows):
            page.paste(row, (0, sum(before.height + 4 for before in rows[:i])))
        return page


@contextmanager
def new_file(path, free):
    """Yields a path that is ours to write: path or, if `free`, the first of path-2, path-3, … that does not exist.

    The file is created at once, so that two runs never share one, and removed if nothing was written to it.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{path} cannot be written: a file stands where a folder would have to be") from None
    for candidate in chain([path], (path.with_name(f"{path.stem}-{k}.png") for k in count(2))):
        try:
            candidate.touch(exist_ok=False)
            break
        except FileExistsError:
            if not free:
                raise ValueError(f"{path} exists already; give another --out, or remove it first") from None
    try:
        yield candidate
    finally:
        if not candidate.stat().st_size:
            candidate.unlink()


def arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description="A prompt becomes a picture.", allow_abbrev=False,
                                     epilog=f"The language of the tiny weights: {tokenizer.vocabulary()}")
    add = parser.add_argument
    add("prompt", help='such as "a red heart above a blue umbrella"')
    add("--preset", default="tiny", choices=tuple(FOLDERS), help="whose weights: the course's, or OpenAI's (filtered)")
    add("--weights", type=train.path_name, help="any other folder of base.pt, upsampler.pt, clip.pt, ...")
    add("--n", type=at_least(1), default=1, help="how many images (default 1)")
    add("--seed", type=at_least(0), help="the same seed, the same images (default: another one each time)")
    add("--scale", type=at_least(-1e6, float), help="guidance; 1: as trained (default 3; large, inpainting: 5)")
    add("--guide", default="free", choices=("free", "clip"), help="by the model itself (default) or a noised CLIP")
    add("--steps", help="of the base model: 25, 100, 10,10,3,2,2, ddim50 (default: tiny 25, OpenAI's 150)")
    add("--sampler", choices=("ddim", "ddpm", "dpm"), help="of the base model (default ddim; large or with CLIP ddpm)")
    add("--upsampler-steps", help="likewise (default fast27)")
    add("--image", type=train.path_name, help="an image to draw into, where --mask is white or in --box")
    add("--mask", type=train.path_name, help="an image: white = draw here, black = leave as it is")
    add("--box", type=box_mask, metavar="L,T,R,B", help="draw here, in fractions: 0.5,0,1,1 is the right half")
    add("--init", type=train.path_name, help="an image to begin with, such as a sketch")
    add("--strength", type=at_least(0, float), default=0.6, help="how much of --init may change (default 0.6)")
    add("--rerank", type=at_least(1), metavar="K", help="draw K, keep the --n that a noised CLIP finds best")
    add("--out", type=train.path_name, help="where the picture goes (default: outputs/PROMPT-SEED.png)")
    add("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=("float32", "bfloat16", "float16"), help="(default: 16 bits for large models, where fast)")
    add("--batch", type=at_least(1), help="images at a time (default: small models 64, large 8 and 2)")
    return parser.parse_args(argv)


def command(args):
    """Do what the command line asks for: write a picture, and the strip that shows how it came about.

    All that can be refused is refused before the first step: a picture that took minutes must not be lost because its
    folder cannot be written. The seed is printed, so that any picture can be drawn again.
    """
    if args.rerank and args.rerank < args.n:
        raise ValueError(f"--rerank {args.rerank} draws fewer images than the {args.n} of --n")
    if args.init and args.image:
        raise ValueError("--init changes a whole image, --image only what --mask or --box names; give one of the two")
    weights = Weights(args.weights or FOLDERS[args.preset], inpaints=args.image is not None, device=args.device,
                      clip=bool(args.rerank) or args.guide == "clip", dtype=args.dtype and getattr(torch, args.dtype))
    check_prompt(args.prompt, weights)
    known, init = read_known(args, weights.header("size")), read_init(args)
    changes = {name: getattr(args, name) for name in ("scale", "steps", "sampler", "batch")}
    changes = {name: value for name, value in changes.items() if value is not None}
    # With CLIP guidance DDPM is the default. DDIM shifts x̂_0 itself by the gradient, at the noisy end by far more than
    # an image's values, and does not clip it again (04); DDPM only shifts the mean of the next step.
    if args.guide == "clip":
        changes = {"sampler": "ddpm", "guide": "clip"} | changes
    if known and weights.saved["base"][0].stem == "base":
        print(f"there is no inpaint.pt in {weights.folder}: base.pt draws around what is known without seeing it")
    if init:
        changes["strength"] = args.strength
    for spec in filter(None, (args.steps, args.upsampler_steps)):
        diffusion.respace(weights.header("diffusion")["steps"], spec)      # ValueError for steps that make no sense
    seed = random.SystemRandom().randrange(10 ** 6) if args.seed is None else args.seed
    name = re.sub(r"[^a-z0-9]+", "-", args.prompt.lower()).strip("-")[:80] or "picture"
    out, progress = args.out or OUTPUTS / f"{name}-{seed}.png", Progress()
    if out.suffix.lower() != ".png":
        raise ValueError(f"--out {out} must end in .png")
    # Both files exist from here on, before the first step, so that no other run takes their names. If this one fails,
    # they are removed.
    with new_file(out, free=not args.out) as out, new_file(out.with_name(f"{out.stem}-steps.png"), free=True) as strip:
        print(", ".join([repr(args.prompt), f"seed {seed}", *(f"{name} {value}" for name, value in changes.items())]))
        images = generate(args.prompt, weights, n=args.n, seed=seed, rerank=args.rerank, known=known, init=init,
                          callback=progress, upsampler_steps=args.upsampler_steps, **changes)
        # The person's own pixels come back untouched; only the hole is from the model.
        if known:
            images = torch.stack([known.composite(image) for image in images])
        zoom = max(1, 512 // (images.shape[3] * min(args.n, 2)))      # so that pixels show as squares
        save_png(diffusion.image_grid(images, zoom=1 if known else zoom, gap=8), out)
        save_png(progress.strip(), strip)
    first = ", in the upper row about the first of all candidates" if args.rerank else ""
    print(f"wrote {out}\n      {strip}: what the model believed on the way{first}")


def save_png(image, path):
    """Write an image, whole or not at all."""
    with unet.atomic_write(path) as partial:
        image.save(partial, format="PNG")


def main(argv=None):
    """The command line. -> exit status: 0, 2 for what you can mend (one line on stderr), 130 after Ctrl-C"""
    return train.run(command, arguments(argv), "09_sample.py")


if __name__ == "__main__":
    sys.exit(main())
