r"""
08 · Where the weights come from.

Everything before this file can answer, and nothing in it knows anything yet. Here a network is shown images with
captions until it does. The whole of training is one line, repeated, and the rest is care:

    image x0 ──┐
    timestep t ┼─► x_t ─► model(x_t, t, caption, or for one image in seven nothing) ─► loss ─► gradient ─► AdamW
    noise ε ───┘                                                                                            │
                                                     EMA, the average of recent weights, is kept ◄──────────┘

It adds to 07: gradients. The data are those of the little world (01, 04), drawn as they are needed, or images of
your own, from a folder or from tar shards. Either way the order of the data is a function of the step: `batch(step)`
gives the same examples whoever computes it, so a run that was stopped continues with the same bits, and one, two or
sixty-four processes train on the same stream. The same loop trains the tiny model on a laptop and the paper's on GPUs.

Read it in this order: presets; what an example is; what the network is asked; the step; the loop; checkpoints; many
processes; what you see; the command line. Left out: how good the result is (lessons/10_judge.py) and what a large
run costs (lessons/13_cost.py).

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); Improved DDPM, Nichol & Dhariwal 2021, arXiv
2102.09672 (section 3: the hybrid loss); captions dropped for guidance: Ho & Salimans 2022, arXiv 2207.12598
(algorithm 1); AdamW: Loshchilov & Hutter 2017, arXiv 1711.05101; [C] CLIP, Radford et al. 2021, arXiv 2103.00020.

    python 08_train.py                     the base model, 16 pixels, single things: about 13 minutes on two cores
    python 08_train.py --steps 50          a minute, to see what a run leaves behind
    python 08_train.py upsampler           16 -> 64 pixels
    python 08_train.py inpaint             lessons/weights/base.pt learns to look at what is known; inpaint-upsampler
    python 08_train.py clip --world full   the noised CLIP of 05
    python 08_train.py base --data FOLDER --init-from lessons/weights/base.pt             images of your own
    torchrun --nproc-per-node 8 08_train.py base --preset paper --shard --data shards/*.tar --vocab vocab.bpe

Each run shows one line of progress and leaves in its folder: the averaged weights (base.pt, …), samples.png,
loss.png, log.jsonl and the last two checkpoints, from which --resume continues.
"""
import argparse
import csv
import hashlib
import io
import json
import math
import os
import shlex
import signal
import sys
import tarfile
import time
import zlib
from collections import Counter, deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from functools import lru_cache, partial
from importlib import import_module
from itertools import count
from pathlib import Path
from textwrap import fill

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps
from torch import nn
from torch.distributed.checkpoint import state_dict as dcp
from torch.utils.checkpoint import checkpoint
from torch.utils.data import Dataset

tokenizer = import_module("01_tokenizer")
transformer = import_module("02_transformer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
inpaint = import_module("06_inpaint")
upsample = import_module("07_upsample")

OUTPUTS = Path(__file__).parent / "outputs"


# --- Presets -----------------------------------------------------------------------------------------

# A preset is a row of choices and no code: the same loop trains all of them. The large ones hold the paper's numbers,
# to show what those weights took: 2.5 million steps of 2,048 images are five billion images for the base model
# alone. The tiny base model sees 2,700 × 64 = 172,800, of a world that is smaller by as much; what the small presets do
# otherwise (a larger rate, warm-up and decay, weights on the loss) gets there in minutes.
@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's for the base model [GLIDE section 4; ADM appendix]."""

    steps: int = 2_500_000
    batch: int = 2048
    lr: float = 1e-4
    text_lr: float = 1e-4       # the text encoder's own, see `Trainer.slow`
    warmup: int = 0
    decay: bool = False         # cosine to zero at the end; the papers keep the rate constant
    ema: float = 0.9999
    caption_dropout: float = 0.2
    weighting: str = "eps"      # of the timesteps, see `loss_weights`
    crop: int | None = None     # train on squares of this many pixels: the U-Net is convolutional
    high_noise_fraction: float = 0.0    # of a batch, drawn from the noisiest timesteps alone
    canonical_first: bool = False       # pairs are said one way first, see `canonical_fraction`
    freeze: tuple[str, ...] = ()        # parts of the network that stay as they are


@dataclass(frozen=True)
class Preset:
    """One trainable model: its kind (of KINDS), network, diffusion process, image size and training."""

    kind: str
    network: unet.UNetConfig | guidance.CLIPConfig
    diffusion: diffusion.DiffusionConfig
    size: int
    train: TrainConfig


PAPER, PAPER_UPSAMPLER = TrainConfig(), TrainConfig(steps=1_600_000, batch=512)
TINY = TrainConfig(2700, 64, 2e-3, warmup=50, decay=True, ema=0.999, caption_dropout=0.15, weighting="middle")
TINY_UPSAMPLER = replace(TINY, steps=3600, batch=32, weighting="v", crop=32)
TINY_CLIP = TrainConfig(5000, 256, 2e-3, 2e-3, warmup=100, decay=True, ema=0.999, caption_dropout=0.0)
# Fine-tuning must lose nothing that was learned. Words mean what they meant, and how the way up turns what was
# understood into an image need not change either: only the part that looks at the image learns, at a lower rate.
FINE_TUNE = dict(steps=1200, lr=5e-4, text_lr=2.5e-5, freeze=("text", "pool", "up"))

# preset: (size of the base model's images, training of base, upsampler, inpaint, inpaint-upsampler and clip)
TABLE = {
    "tiny": (16, TINY, TINY_UPSAMPLER, replace(TINY, **FINE_TUNE),
             replace(TINY_UPSAMPLER, **FINE_TUNE | {"batch": 8, "crop": None}), TINY_CLIP),
    "small": (32, replace(TINY, steps=8000), replace(TINY_UPSAMPLER, steps=8000, batch=16, crop=64),
              replace(TINY, **FINE_TUNE), replace(TINY_UPSAMPLER, **FINE_TUNE | {"batch": 4, "crop": None}), TINY_CLIP),
    "filtered": (64, PAPER, PAPER_UPSAMPLER, PAPER, PAPER_UPSAMPLER, PAPER),
    "paper": (64, PAPER, PAPER_UPSAMPLER, PAPER, PAPER_UPSAMPLER, PAPER),
}
KINDS = ("base", "upsampler", "inpaint", "inpaint-upsampler", "clip")
# What the tiny base model's training does otherwise when it learns pairs and counts as well (--world full)
FULL_WORLD = {"base": {"text_lr": 1e-3, "weighting": "late", "high_noise_fraction": 0.5, "canonical_first": True},
              "inpaint": {"weighting": "late", "high_noise_fraction": 0.5}}


def preset_of(name, kind):
    """The Preset of a row of TABLE and one of KINDS, with the sizes that 03, 04 and 05 list under the same name."""
    size, *trainings = TABLE[name]
    row = name + ("-upsampler" if "upsampler" in kind else "")
    network = guidance.CLIP[name] if kind == "clip" else unet.UNET[row]
    if "inpaint" in kind:
        network = replace(network, in_channels=network.in_channels + 4)
    size *= upsample.FACTOR if "upsampler" in kind else 1
    return Preset(kind, network, diffusion.DIFFUSION[row], size, trainings[KINDS.index(kind)])


PRESETS = {name: {kind: preset_of(name, kind) for kind in KINDS} for name in TABLE}


def build_network(config):
    """A fresh network of these sizes: a UNet or a NoisedCLIP."""
    return (guidance.NoisedCLIP if isinstance(config, guidance.CLIPConfig) else unet.UNet)(config)


# --- An example: the little world --------------------------------------------------------------------

# A run is one long line of examples, and step n of batch size B takes the places n·B … n·B + B - 1. A data set here is
# a map from a place to (image, caption, caption of all that is shown, reasons): what was left out on the way, see
# `OwnImages`. It keeps no state, so nothing has to be saved of it.
class LittleWorld(Dataset):
    """Endless captioned images of the little world (01, 04), drawn when they are asked for, no two alike.

    world      "single" or "full", the difficulty of `tokenizer.random_scene`
    side       of the images, a multiple of 64: what a model needs is averaged down from that
    canonical  position -> the fraction of captions that are said the one canonical way
    """

    def __init__(self, world, seed, side=64, canonical=lambda position: 0.0):
        self.world, self.seed, self.side, self.canonical = world, seed, side, canonical

    def __getitem__(self, position):
        """-> uint8 [3, side, side], its caption, the caption of all that it shows, no reasons"""
        rng = tokenizer.seeded_rng("world", self.seed, position)
        said = tokenizer.random_scene(rng, self.world)
        shown = said.fill(rng)
        image = diffusion.draw_all([shown], rng, self.side)[0]
        if rng.random() < self.canonical(position):
            said = said.canonical()
        return image, said.caption(), shown.caption(), []


def canonical_fraction(step, config):
    """The fraction of captions that are said the canonical way ("left of", never "right of"): all, then ever fewer.

    Which thing is on the left in "a red heart to the right of a blue star" takes two facts, a thing's place in the
    caption *and* the relation. Either alone says nothing, as in an exclusive or, so there is no slope to follow:
    after 6,000 steps on captions said both ways, the colours of a pair were all there, on the wrong side half of the
    time. Said one way, order alone decides. That was learned within a few hundred steps; the other way of saying it
    is then an exception to a rule.
    """
    return max(0.0, 1 - 2 * step / config.steps) if config.canonical_first else 0.0


# --- An example: images of your own ------------------------------------------------------------------

# Two things have to be right. Whatever is in a file, the run continues, or stops with a sentence; and nothing is left
# out silently. A shard is a tar file of some thousand examples: disks and networks read one long file much faster than
# a thousand short ones. It is never unpacked: a file inside it is a path, an offset and a size, like any other file.
IMAGES, CAPTIONS = (".jpg", ".jpeg", ".png", ".webp"), (".txt", ".json")
FORMATS = ("JPEG", "PNG", "WEBP")            # the only decoders that strangers' bytes may reach
TABLES = ("captions.csv", "captions.jsonl", "metadata.jsonl")
FILE_KEYS, CAPTION_KEYS = ("file", "file_name"), ("caption", "text", "TEXT")
MAX_BYTES, MAX_PIXELS = 2 ** 26, 2 ** 27     # of a file; of an image, 400 MB when decoded
MAX_CAPTION = 1000                           # characters; a text encoder reads 128 tokens, some 500 characters
GAP = 3     # a quick, rough reduction ends at this multiple of the size that is wanted, and a good one follows


class BadExample(ValueError):
    """Why an example cannot be used, in a few words: they are what is counted."""


def open_image(file, mode="RGB", *, formats=None, size=None):
    """An image file (a path or an open binary file) as an upright 8-bit image of mode "RGB" or "L", in sRGB.

    What is transparent becomes white in RGB and black in L. Of an animation the first frame is taken.

    formats  Pillow's names of those that may be opened; None: all that it knows
    size     the least length of the shorter side; a much larger JPEG is decoded smaller, to GAP times this or more

    Raises BadExample for what can be read and is not wanted. For what cannot be read Pillow has no common error:
    OSError, SyntaxError, ValueError and others.
    """
    with Image.open(file, formats=formats) as image:
        # So far only the header has been read: a file of a few bytes may claim 50,000 × 50,000 pixels.
        if image.width * image.height > MAX_PIXELS:
            raise BadExample(f"more than {MAX_PIXELS // 10 ** 6} million pixels")
        if size and min(image.size) < size:      # enlarged, it would teach that things are blurred
            raise BadExample(f"fewer than {size} pixels a side")
        image.draft(None, (GAP * (size or image.width),) * 2)    # a JPEG can be decoded at 1/2, 1/4 or 1/8, much faster
        image = ImageOps.exif_transpose(image)                   # cameras store how they were held next to the pixels
        try:
            profile, out = io.BytesIO(image.info.get("icc_profile", b"")), "RGBA" if image.mode == "RGBA" else "RGB"
            image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=out)
        except ImageCms.PyCMSError:
            pass                                                 # it has no colour profile, or one of no use
        return to_eight_bits(image, mode)


def to_eight_bits(image, mode):
    """An image of any of Pillow's kinds as "RGB" or "L": see `open_image`."""
    if image.mode[0] in "IF":   # 16 or 32 bits of grey, or floats; Pillow's own conversion would clip them at 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        whites = {"F": (1, 255, 65535), "I": (255, 65535)}.get(image.mode, (65535,))
        white = next((white for white in whites if values.max() <= white), values.max())
        alpha = 255 * (values != image.info.get("transparency", -1))
        image = Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))
        image.putalpha(Image.fromarray(alpha.astype(np.uint8)))
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white" if mode == "RGB" else "black")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(mode)


def crop_square(image, size, rng=None):
    """The middle square of an RGB image, or with rng any square, reduced to uint8 [3, size, size].

    All is one resampling with a Lanczos filter: counting whole pixels instead (BOX) would take one pixel here and two
    there when 300 become 256, and slanted lines would get steps.
    """
    side = min(image.size)
    left, top = (free // 2 if rng is None else rng.randint(0, free) for free in (image.width - side, image.height - side))
    small = image.resize((size, size), Image.LANCZOS, (left, top, left + side, top + side), reducing_gap=GAP)
    return torch.from_numpy(np.array(small)).permute(2, 0, 1).contiguous()       # H W C -> C H W


def tidy(text):
    """A caption as models are trained on it: white space of any kind becomes single spaces."""
    return " ".join(text.split())[:MAX_CAPTION].rstrip()


def field(entry, names):
    """The first field of an entry with one of these names that holds words, tidied; "" if there is none."""
    return next((tidy(entry[name]) for name in names if isinstance(entry.get(name), str) and tidy(entry[name])), "")


def read_place(path, offset, size):
    """The bytes of a file, or of a file inside a shard. Raises BadExample."""
    try:
        with open(path, "rb") as file:
            file.seek(offset)
            return file.read(size)
    except OSError:
        raise BadExample("a file that cannot be read") from None


def read_caption(suffix, source):
    """A caption, as one tidy line: source itself, if suffix is "", or what a .txt or .json file at that place says."""
    try:
        text = read_place(*source).decode("utf-8-sig") if suffix else source     # -sig: some editors mark a beginning
        text = field(json.loads(text), CAPTION_KEYS) if suffix == ".json" else tidy(text)
        text.encode()                     # JSON can spell half a character, "\ud800", that no tokenizer takes
    except (AttributeError, RecursionError, UnicodeError, json.JSONDecodeError):
        raise BadExample("a caption that cannot be read") from None
    if not text:
        raise BadExample("an empty caption")
    return text


def read_table(path):
    """Yields (file name, caption) of captions.csv, .jsonl, …. ValueError, one line, names the row that is wrong."""
    with open(path, encoding="utf-8-sig", newline="") as file:
        table = csv.DictReader(file, strict=True, skipinitialspace=True)
        n = 1
        try:
            for n, row in enumerate(map(json.loads, file) if path.suffix == ".jsonl" else table, 1):
                name = Path(field(row, FILE_KEYS))
                if None in row or None in row.values() or not (set(row) & set(CAPTION_KEYS) and name.parts):
                    raise ValueError(f"{[*row.values()]} under {[*row]}; file and caption are needed, with quotes around"
                                     " a caption that has a comma")
                yield name.as_posix(), field(row, CAPTION_KEYS)
        except (csv.Error, ValueError, AttributeError, RecursionError) as e:
            raise ValueError(f"{path}, row {n} or the next: {e}") from None


def pair_up(files):
    """What files make together: [(name, image, suffix, caption)], and a Counter of what is left out, by reason.

    files  (name without its suffix, suffix, where the file is), …;  a .txt file goes before a .json file
    """
    groups, entries, left_out = {}, [], Counter()
    for name, suffix, place in files:
        groups.setdefault(name, []).append((suffix.lower(), place))
    for name, group in groups.items():
        images = [place for suffix, place in group if suffix in IMAGES]
        captions = sorted((file for file in group if file[0] in CAPTIONS), reverse=True)
        others = [suffix for suffix, _ in group if suffix not in IMAGES + CAPTIONS]
        if len(images) == 1 and captions:
            entries.append((name, images[0], *captions[0]))
        elif images:
            left_out["several images of one name" if len(images) > 1 else "an image without a caption"] += 1
        else:
            left_out[f"a {others[0] or 'nameless'} file" if others else "a caption without an image"] += 1
    return entries, left_out


def folder_examples(root):
    """`pair_up` of a folder and those below it. Captions are in NAME.txt or NAME.json next to NAME.jpg, or in a table at
    the top (TABLES) with the columns file and caption. Names that begin with a dot are ignored."""
    rows = [row for table in TABLES if (root / table).is_file() for row in read_table(root / table)]
    names = sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file())
    listed = {os.path.splitext(name)[0] for name in [*TABLES, *(name for name, _ in rows)]}
    split = ((*os.path.splitext(name), (f"{root}/{name}", 0, MAX_BYTES)) for name in names if "/." not in f"/{name}")
    entries, left_out = pair_up(file for file in split if file[0] not in listed)
    # A table must not lead out of its folder.
    inside = [(f"{root}/{name}", name, caption) for name, caption in rows if name in set(names)]
    entries += [(name, (path, 0, MAX_BYTES), "", caption) for path, name, caption in inside]
    return entries, left_out + Counter({"a listed file that is not there": len(rows) - len(inside)})


def shard_examples(path):
    """`pair_up` of a tar file: what has one name up to its first dot belongs together, 0007.jpg and 0007.txt.

    An archive is a stranger's. What is not a plain file is ignored; what is whole before a cut or damage is used.
    """
    files, length = [], path.stat().st_size
    try:
        with open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:    # "r:": no decompression
            for member in tar:
                tar.members = []             # tarfile would keep them all
                folder, _, name = member.name.rpartition("/")
                stem, _, suffix = name.partition(".")
                if member.isreg() and not member.issparse() and stem and member.offset_data + member.size <= length:
                    place = (str(path), member.offset_data, min(member.size, MAX_BYTES))
                    files.append((f"{folder}/{stem}", f".{suffix}", place))
            file.seek(tar.offset)            # tarfile takes damage for the end; a true end is a block of zeros
            damaged = file.read(512) != bytes(512)
    except (tarfile.TarError, OSError, ValueError, OverflowError):
        damaged = True
    entries, left_out = pair_up(files)
    return entries, left_out + Counter({"a shard that is damaged or cut off": int(damaged)})


def shard_index(folder, path):
    """The file that lists a shard's examples, made once, from its headers: [how many, what is left out], then a line for
    each. A shard that was changed or moved gets a new one."""
    stat = path.stat()
    key = hashlib.sha256(f"{path.resolve()} {stat.st_size} {stat.st_mtime_ns}".encode())
    index = Path(folder) / f"{key.hexdigest()[:16]}.jsonl"
    if not index.exists():
        entries, left_out = shard_examples(path)
        with unet.atomic_write(index) as file:
            file.write_text("\n".join(json.dumps(line) for line in [[len(entries), left_out], *entries]))
    return index


def counted(reasons):
    """A Counter in words, the most frequent first: "3 × a broken image, 1 × a .gif file"."""
    return ", ".join(f"{n} × {reason}" for reason, n in reasons.most_common())


class OwnImages(Dataset):
    """Captioned images in a folder or in tar shards, epoch after epoch, each in an order of its own that is not stored.

    Position p is place p mod N of epoch p div N. An epoch permutes the units (shards, or runs of 1,000 files), cuts
    them into windows of several, and permutes the examples of each window. So examples of one shard are mixed with
    those of others, differently in each epoch; a disk reads from a few files at a time, and no permutation is longer
    than a window. An example that cannot be used is replaced by the next, with the reason, whoever asks for it.

    paths  one folder, or .tar files or a folder of them;  index  a folder for the shards' indexes
    Raises ValueError, one line, where there is nothing to read.
    """

    def __init__(self, paths, size, *, seed=0, index=OUTPUTS / "index", random_crop=False):
        self.size, self.seed, self.random_crop = size, seed, random_crop
        paths = [Path(path).expanduser() for path in paths]
        folder = len(paths) == 1 and paths[0].is_dir()
        shards = sorted(path for path in paths[0].rglob("*") if path.suffix.lower() == ".tar") if folder else paths
        if wrong := [path for path in shards if path.suffix.lower() != ".tar" or not path.is_file()]:
            raise ValueError(f"--data {wrong[0]} is neither a folder nor a .tar file that is there")
        if shards:
            with ThreadPoolExecutor(8) as pool:
                indexes = list(pool.map(partial(shard_index, index), shards))
            counts, left_out = zip(*(json.loads(path.open().readline()) for path in indexes))
            lines = lru_cache(32)(lambda unit: indexes[unit].read_text().splitlines()[1:])
            self.entry, self.mixed = lambda unit, i: json.loads(lines(unit)[i]), 8
        else:
            examples, *left_out = folder_examples(paths[0])
            counts = [len(examples[i:i + 1000]) for i in range(0, len(examples), 1000)]
            self.entry, self.mixed = lambda unit, i: examples[1000 * unit + i], 1000
        self.counts, self.left_out = np.array(counts, int), sum(map(Counter, left_out), Counter())
        if not len(self):
            raise ValueError(f"{paths[0]} holds no image ({', '.join(IMAGES)}) with a caption; {counted(self.left_out)}")

    def __len__(self):
        return int(self.counts.sum())

    @lru_cache(2)
    def epoch(self, epoch):
        """The order of an epoch's units, and the place where each of its windows ends."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.counts))
        last = np.arange(self.mixed, len(order) + self.mixed, self.mixed).clip(max=len(order)) - 1
        return order, self.counts[order].cumsum()[last]

    @lru_cache(4)
    def window(self, epoch, window):
        """The examples of a window in their order: [n, 2], unit and place in it."""
        units = self.epoch(epoch)[0][window * self.mixed:][:self.mixed]
        examples = [(unit, i) for unit in units.tolist() for i in range(self.counts[unit])]
        return np.random.default_rng([self.seed, epoch, window]).permutation(examples)

    def example(self, position):
        """The entry (name, image, suffix, caption) of a position of the run."""
        epoch, place = divmod(position, len(self))
        ends = self.epoch(epoch)[1]
        window = int(np.searchsorted(ends, place, side="right"))
        return self.entry(*self.window(epoch, window)[place - (ends[window - 1] if window else 0)])

    def __getitem__(self, position):
        """-> uint8 [3, size, size], its caption, twice, and [(reason, name)] of the examples that it replaces"""
        reasons = []
        for candidate in range(position, position + min(len(self), 1000)):
            name, place, *caption = self.example(candidate)
            try:
                text, image = read_caption(*caption), self.open(place)
            except BadExample as e:
                reasons.append((str(e), name))
            else:
                rng = tokenizer.seeded_rng("square", self.seed, position) if self.random_crop else None
                return crop_square(image, self.size, rng), text, text, reasons
        raise ValueError(f"of {len(reasons)} examples none can be used: {counted(Counter(why for why, _ in reasons))}")

    def open(self, place):
        """The image in the file at this place. Raises BadExample, whatever is wrong with it."""
        data = io.BytesIO(read_place(*place))
        try:
            return open_image(data, formats=FORMATS, size=self.size)
        except BadExample:
            raise
        except Exception:   # damaged bytes take decoders by surprise: struct.error, IndexError, zlib.error, …
            raise BadExample("a broken image") from None

    def captions(self, most=10_000):
        """Some of the captions, for a tokenizer to learn from. No image is read."""
        for position in range(min(len(self), most)):
            try:
                yield read_caption(*self.example(position)[2:])
            except BadExample:
                pass


# --- What the network is asked -----------------------------------------------------------------------

def conditioning(preset, words, images, captions, rngs, crop=None):
    """Captioned images as a model trains on them: x0 [B, 3, S, S] in [-1, 1], and its conditioning.

    images uint8 [B, 3, side, side] with side a multiple of S; captions B strings; rngs a random.Random for each
    crop   train the upsampler on squares of this many pixels, which cost less and teach as much: it looks at what is near

    The conditioning is a dictionary of tensors under the names that denoisers take (04): tokens and mask [B, K], and
    by the kind of model low_res [B, 3, S/4, S/4], inpaint_image [B, 3, S, S], inpaint_mask [B, 1, S, S].
    """
    size, cond = preset.size, transformer.encode(captions, words, preset.network.text.context)
    if crop:
        # A corner between two small pixels would shift low_res against x0 by a part of a pixel.
        size, free = crop, (images.shape[-1] - crop) // upsample.FACTOR
        corners = [(upsample.FACTOR * rng.randint(0, free), upsample.FACTOR * rng.randint(0, free)) for rng in rngs]
        images = torch.stack([image[:, r:r + crop, c:c + crop] for image, (r, c) in zip(images, corners)])
    x0 = diffusion.downsample(images, size)
    if "inpaint" in preset.kind:
        # A mask has the base model's pixels, for both models draw into the same hole; the upsampler's are squares.
        side = size // (upsample.FACTOR if "upsampler" in preset.kind else 1)
        masks = torch.cat([inpaint.random_mask(1, side, side, seed=rng.random()) for rng in rngs])
        cond |= {"inpaint_image": x0, "inpaint_mask": F.interpolate(masks, size=size)}
    if "upsampler" in preset.kind:
        # Rounded in training because it is rounded in use: the network must not learn to read what bytes lose.
        cond["low_res"] = upsample.round_to_bytes(diffusion.downsample(images, size // upsample.FACTOR))
    return x0, cond


def draw_timesteps(batch, high_noise_fraction, steps, rng):
    """A timestep for each example, [B] long: one from each of B equal stretches of 0 … steps - 1.

    Each timestep is as likely as any other, but no batch is all noise or all detail (the low-discrepancy sampler of
    Kingma et al. 2021, arXiv 2107.00630). A fraction of the batch is spread over the last two fifths alone: which
    thing goes where is decided there, before anything can be seen.
    """
    few = int(high_noise_fraction * batch)
    shift, begin = rng.random(), steps * 3 // 5
    everywhere = (torch.arange(batch - few) + shift) * steps / (batch - few)
    high = begin + (torch.arange(few) + shift) * (steps - begin) / max(few, 1)
    return torch.cat([everywhere, high]).long().clamp(max=steps - 1)


def loss_weights(process, weighting):
    """How much the squared error in ε counts at each timestep: a table for `Diffusion.loss`, or None.

    "eps"     every timestep alike, as DDPM and GLIDE do
    "v"       as if v had been compared: 1/ᾱ. Little training is enough to get the noisy end right
    "middle"  √ᾱ times the squared error in x_0, and a little of the first: most weight where the image is half
              visible, so that the caption is needed to say what it is. At the noisy end only the background shows,
              at the other end only noise is left to learn. (Hang et al. 2023, arXiv 2303.09556, weigh the same way.)
    "late"    ᾱ^¼ times it instead: more for the noisy end, where it is decided which thing goes where
    """
    return {"eps": None, "v": 1 / process.alpha_bar,   # (1-ᾱ)/ᾱ would make it the squared error in x_0
            "middle": (1 - process.alpha_bar) / process.alpha_bar.sqrt() + 0.05,
            "late": (1 - process.alpha_bar) / process.alpha_bar ** 0.75 + 0.05}[weighting]


# --- The step ----------------------------------------------------------------------------------------

@dataclass(frozen=True)
class ComputeConfig:
    """How a run computes. None of this changes what is learned, except for rounding: the same examples, with the same
    random numbers, are shared out among parts and processes, and their gradients are averaged before the step."""

    device: str = "cpu"
    bf16: bool | None = None            # autocast to bfloat16; None: where that is fast
    grad_accum: int = 1                 # a batch goes through in this many parts, whose gradients are added up
    activation_checkpointing: bool = False      # memory for time: blocks are computed again on the way back
    compile: str | None = None          # the backend of torch.compile, such as "inductor"
    shard: bool = False                 # divide the weights among the processes (FSDP2)
    workers: int = 2                    # threads that prepare batches ahead


def fast_dtype(device):
    """The 16-bit type that is worth computing in on this device; float32 where none is.

    bfloat16 has float32's 8 bits of exponent and pays in digits: of 24 binary ones it keeps 8, and nothing that
    float32 can hold overflows. float16 is the other way round: numbers above 65,504 are infinite. Where bfloat16 is
    only emulated, on older GPUs and CPUs, it is slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else torch.float32


def lr_scale(step, config):
    """The share of the learning rate at a step: a slow start, while Adam's averages fill; then one, or down a half
    cosine to zero. Large steps find the way and jump about at its end; small ones settle there."""
    # ½·(1 + cos(π·step/steps)): 1 at the start, ½ half-way, 0 at the end
    scale = min(1, (step + 1) / (config.warmup + 1))
    return scale * 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.decay else scale


MAX_NONFINITE = 10   # steps in a row without a finite loss: more are no accident


class Trainer:
    """A U-Net in training: given a noisy image and, mostly, its caption, what is the noise?

    Two hooks say what is trained: `batch`, the questions of a step, and `loss`, how wrong the answers are. CLIPTrainer
    overrides both. All else is the same for any model. Every random number about example i of step n comes from
    (seed, n, i), so it does not matter which process draws it, in how many parts, or before or after which stop.

    data       a map-style data set, see `LittleWorld`; None: the little world itself, of difficulty `world`
    words      the tokenizer; None: the little world's
    init_from  a weight file to begin with, instead of random weights
    """

    # The text encoder learns slowly. At the U-Net's rate it collapses in the first hundred steps: the words
    # that explain most of the image (the background's) drown all others, and their gradient with them.
    slow = ("text.", "pool.")

    def __init__(self, preset, *, data=None, world="single", words=None, seed=0, compute=ComputeConfig(),
                 init_from=None):
        self.preset, self.seed, self.compute, self.device = preset, seed, compute, compute.device
        config, (self.rank, self.ranks) = preset.train, rank_and_world_size()
        if config.batch % (self.ranks * compute.grad_accum):
            raise ValueError(f"a batch of {config.batch} cannot be divided evenly: {self.ranks} processes, each in"
                             f" {compute.grad_accum} parts")
        self.indices = range(self.rank, config.batch, self.ranks)      # this process's places in every batch
        self.world, self.words = "" if data else world, words or tokenizer.world_tokenizer()
        self.data = data or LittleWorld(world, seed, max(64, preset.size),
                                        lambda position: canonical_fraction(position // config.batch, config))
        self.process = diffusion.Diffusion.from_config(preset.diffusion)
        self.weights = loss_weights(self.process, config.weighting)
        self.bf16 = fast_dtype(self.device) == torch.bfloat16 if compute.bf16 is None else compute.bf16
        self.step, self.seconds, self.nonfinite, self.skipped_steps, self.bad = 0, 0.0, 0, 0, Counter()
        torch.manual_seed(seed)         # the first weights
        self.model = load_initial(init_from, preset) if init_from else build_network(preset.network)
        self.model.to(self.device).train()
        for name, p in self.model.named_parameters():       # before there is an optimiser to hear of these
            p.requires_grad_(name.split(".")[0] not in config.freeze)
        self.ema = deepcopy(self.model).requires_grad_(False).eval()
        self.synced = parallelize(self.model, self.ema, compute)
        self.answer = torch.compile(self.synced, backend=compute.compile) if compute.compile else self.synced
        rates = {"slow": config.text_lr, "rest": config.lr}
        groups = {name: {"params": [], "lr": rate, "rate": rate} for name, rate in rates.items()}
        for name, p in self.model.named_parameters():
            if p.requires_grad:
                groups["slow" if name.startswith(self.slow) else "rest"]["params"].append(p)
        # Without weight decay AdamW is Adam.
        self.optimizer = torch.optim.AdamW([g for g in groups.values() if g["params"]], weight_decay=0, fused=True)

    # --- The two hooks ---

    def batch(self, step):
        """This process's share of a step's questions: a dictionary of tensors [B, …], and the reasons for bad examples.

        x0, a timestep t and noise for each image, and its conditioning. The same step gives the same batch, always.
        """
        config = self.preset.train
        images, captions, _, reasons = self.examples(step)
        rngs = [tokenizer.seeded_rng("example", self.seed, step, i) for i in self.indices]
        x0, cond = conditioning(self.preset, self.words, images, captions, rngs, config.crop)
        # Caption by caption, some are dropped: the network learns both halves of guidance (05) at once. A mask that is
        # False everywhere *is* the empty caption (02), so no token has to be changed.   [Ho & Salimans, alg. 1]
        cond["mask"] &= torch.tensor([[rng.random() >= config.caption_dropout] for rng in rngs])
        noise = diffusion.gaussian(x0, [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs])
        return {"x0": x0, "t": self.timesteps(step, config.high_noise_fraction), "noise": noise, **cond}, reasons

    def loss(self, batch):
        """The loss (04) of each example, [B]. batch: a dictionary of tensors, as `batch` makes it."""
        given = {name: value.to(self.device, non_blocking=True) for name, value in batch.items() if name != "t"}
        denoiser = upsample.denoiser_of(self.answer, self.preset.network, self.preset.diffusion)
        return self.process.loss(denoiser, given.pop("x0"), batch["t"], given.pop("noise"), weights=self.weights, **given)

    # --- What any trainer does ---

    def examples(self, step):
        """This process's examples of a step: images uint8 [B, 3, side, side], captions, what they show, reasons."""
        images, captions, shown, reasons = zip(*(self.data[step * self.preset.train.batch + i] for i in self.indices))
        return torch.stack(images), captions, shown, sum(reasons, [])

    def timesteps(self, step, high_noise_fraction=0.0):
        """A timestep for each of this process's examples, [B] long."""
        rng = tokenizer.seeded_rng("timesteps", self.seed, step)
        t = draw_timesteps(self.preset.train.batch, high_noise_fraction, len(self.process.timesteps), rng)
        return t[self.indices]

    def batches(self):
        """The batches from this step on, prepared ahead by threads (decoding an image lets other threads run)."""
        with ThreadPoolExecutor(max(1, self.compute.workers)) as pool:
            ahead = deque(pool.submit(self.batch, self.step + i) for i in range(self.compute.workers))
            for step in count(self.step + self.compute.workers):
                ahead.append(pool.submit(self.batch, step))
                yield ahead.popleft().result()

    def train_step(self, batch, stop=False):
        """Ask, compare, correct: one step of all processes together. -> {"loss", "grad_norm", "stop", "bad"}

        A step whose loss or gradient is not finite is skipped: weights, average and Adam's memory stay as they were.
        Raises ValueError after MAX_NONFINITE such steps in a row.
        """
        parts = [{name: value.chunk(self.compute.grad_accum)[i] for name, value in batch.items()}
                 for i in range(self.compute.grad_accum)]
        loss = torch.zeros((), device=self.device)
        for i, part in enumerate(parts):
            torch.manual_seed(tokenizer.seeded_rng("dropout", self.seed, self.step, i, self.rank).getrandbits(63))
            exchange_gradients(self.synced, last=i == len(parts) - 1)     # it is the expensive part of a step
            # Matrix products and convolutions are in bfloat16; weights, gradients and answers stay float32. Adam changes
            # a weight by about the rate, 1e-4, and bfloat16 holds a weight of 0.1 in steps of 0.0005.
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
                part_loss = self.loss(part).mean() / len(parts)
            part_loss.backward()
            loss += part_loss.detach()
        # All gradients together, as one vector, are at most 1 long: Adam remembers the squares of the last thousand
        # or so, and one freak batch would otherwise make its steps small for that long.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        norm = norm.full_tensor() if self.compute.shard else norm
        # One vector, summed over the processes and read once, so that all of them take the same decisions.
        vector = torch.stack([loss, torch.full_like(loss, stop), torch.full_like(loss, self.bad.total())])
        if self.ranks > 1:
            dist.all_reduce(vector)
        loss, stop, bad, norm = torch.cat([vector, norm[None]]).tolist()
        self.step += 1
        if math.isfinite(loss + norm):
            for group in self.optimizer.param_groups:
                group["lr"] = group["rate"] * lr_scale(self.step - 1, self.preset.train)
            self.optimizer.step()
            self.update_ema()
        self.optimizer.zero_grad()
        self.nonfinite = 0 if math.isfinite(loss + norm) else self.nonfinite + 1
        self.skipped_steps += self.nonfinite > 0
        if self.nonfinite == MAX_NONFINITE:
            raise ValueError(f"the loss or gradient of {MAX_NONFINITE} steps in a row, up to step {self.step}, was not"
                             " finite; the checkpoints are from before that: begin again with a smaller --lr")
        return {"loss": loss / self.ranks, "grad_norm": norm, "stop": bool(stop), "bad": int(bad)}

    @torch.no_grad()
    def update_ema(self):
        """θ_ema ← d·θ_ema + (1-d)·θ: the average of recent weights, which is the one that is kept and drawn with.

        Every batch pulls the weights its own way. The average of the last 1/(1-d) or so lies in the middle of where
        they jump about, and mostly draws better than any of them. At first, when there is little worth remembering,
        d is smaller: (1+n)/(10+n) after n steps reaches back over the last ninth of the run.
        """
        decay = min(self.preset.train.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)


def load_initial(path, preset):
    """The network of a weight file, for a run of this preset to begin with. ValueError if it is of other sizes.

    A model that is to inpaint may begin as one that knows no masks yet: it gets four more channels (06).
    """
    saved, clip = unet.read_weights(path), preset.kind == "clip"
    model = (guidance.NoisedCLIP if clip else unet.UNet).from_saved(saved, path)
    if not clip and model.config.in_channels + 4 == preset.network.in_channels:
        model = inpaint.add_mask_channels(model)
    theirs, mine = asdict(model.config) | saved["diffusion"], asdict(preset.network) | asdict(preset.diffusion)
    if other := [name for name in mine if theirs[name] != mine[name] and name != "dropout"]:
        raise ValueError(f"{path} is of other sizes: its {other[0]} is {theirs[other[0]]}, and {mine[other[0]]} is needed")
    return model


class CLIPTrainer(Trainer):
    """A noised CLIP in training: which of a batch's captions is this image's, and which image is this caption's?

    The images are noised as the base model's are, each to a timestep of its own, so that the answer can be asked for
    at every step of a sampling loop (05). The batch is large, 256, because the other captions in it are the wrong
    answers: with more of them the question is harder, and closer to the one that will be asked.
    """

    slow = ()

    def batch(self, step):
        """Noised images x [B, 3, S, S], t [B], tokens and lengths; what the captions say and what the images show."""
        if self.compute.grad_accum > 1:
            raise ValueError("a CLIP compares every image of a batch with every caption of it: --grad-accum must be 1")
        images, captions, shown, reasons = self.examples(step)
        x0, t = diffusion.downsample(images, self.preset.size), self.timesteps(step)
        noise = diffusion.gaussian(x0, [diffusion.seeded_generator(self.seed, step, i) for i in self.indices])
        words = guidance.encode_clip(captions, self.words, self.preset.network.text.context)
        said, shows = (torch.tensor([statements(text, self.world) for text in texts]) for texts in (captions, shown))
        return {"x": self.process.q_sample(x0, t, noise), "t": t, **words, "said": said, "shows": shows}, reasons

    def loss(self, batch):
        """The losses of the whole batch, [B]: each process knows all the answers, and has a gradient for its own."""
        given = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        said, shows = given.pop("said"), given.pop("shows")
        images, texts, said, shows = map(all_gather, (*self.answer(**given), said, shows))
        true = ((said == shows[:, None]) | (said < 0)).all(2)        # [images, captions]
        return contrastive_loss(images.float(), texts.float(), true)


def statements(caption, world):
    """What a caption states, as numbers: its layout, its background, and the noun, colour and size of two things, -1
    where it is silent. Two captions of your own state the same if they are the same text."""
    if not world:
        return [zlib.crc32(caption.encode())]
    scene = tokenizer.Scene.parse(caption).canonical()
    said = [scene.relation or scene.count, scene.background]
    for thing in (*scene.things, tokenizer.Thing(None, None))[:2]:
        said += [thing.noun, thing.color, thing.size]
    return [-1 if word is None else zlib.crc32(str(word).encode()) for word in said]


def contrastive_loss(images, texts, true):
    """Of unit vectors [B, E] of images and of captions, and which captions are true of which images, [B, B]: [B].

    CLIP takes the diagonal for all the truth there is [C fig. 3]. In the little world several captions of a batch are
    often true of one image, and to push them apart would teach nonsense. Their truth is known here, so the right
    answer to each question is shared out among all that are true.
    """
    true = true.to(images.dtype)
    # A CLIP for which all are alike pays log B for each question: 5.55 for 256.
    logits = guidance.LOGIT_SCALE * images @ texts.T                                           # [images, captions]
    of_captions = F.cross_entropy(logits, true / true.sum(1, keepdim=True), reduction="none")
    of_images = F.cross_entropy(logits.T, true.T / true.T.sum(1, keepdim=True), reduction="none")
    return (of_captions + of_images) / 2     # L = ½·(which caption? + which image?)   [C fig. 3]


# --- The loop ----------------------------------------------------------------------------------------

def train(preset, out, *, resume=False, save_every=200, max_bad=0.05, made=None, **options):
    """Train one model of a preset and leave in the folder `out` its averaged weights, samples.png, loss.png, log.jsonl
    and the last two checkpoints, from which resume=True continues. -> the trainer

    max_bad  the run stops when a larger fraction of at least 100 examples cannot be used
    made     what the weight file remembers of its making, besides steps, seed and minutes
    options  as for `Trainer`

    Ctrl-C and SIGTERM finish the step, save and leave. Under torchrun all processes call this together.
    """
    begin_run(out, resume)
    trainer = (CLIPTrainer if preset.kind == "clip" else Trainer)(preset, **options)
    if resume:
        load_checkpoint(trainer, out)
    began = trainer.step
    with stop_signals() as signals, closing(trainer.batches()) as batches, closing(MetricsLog(out, trainer)) as log:
        while trainer.step < preset.train.steps:
            start = time.time()
            batch, reasons = next(batches)
            trainer.bad.update(reason for reason, _ in reasons)
            metrics = trainer.train_step(batch, stop=bool(signals))
            seen = metrics["bad"] + (trainer.step - began) * preset.train.batch
            if seen >= 100 and metrics["bad"] > max_bad * seen:
                raise ValueError(f"{metrics['bad']} of {seen} examples cannot be used: {counted(trainer.bad)}; the last"
                                 f" was {reasons[-1:]}. --max-bad allows more")
            trainer.seconds += time.time() - start
            log.write(trainer, metrics, time.time() - start)
            if metrics["stop"] or trainer.step % save_every == 0 or trainer.step == preset.train.steps:
                save_checkpoint(trainer, out, made or {})
                save_pictures(trainer, out)
            if metrics["stop"] and trainer.step < preset.train.steps:
                log_once(f"stopped after {trainer.step} steps; the same command with --resume continues")
                raise SystemExit(1)
    return trainer


@contextmanager
def stop_signals():
    """Ctrl-C, and SIGTERM, which computing centres send before they take a machine away, do not interrupt a step.

    Yields a list that is empty until one of them arrives. A second Ctrl-C leaves at once, without saving.
    """
    caught = []

    def handler(number, frame):
        if number == signal.SIGINT and caught and not dist.is_initialized():    # torchrun passes on what all have got
            raise KeyboardInterrupt
        caught.append(number)
    before = [signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)]
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


# --- Checkpoints -------------------------------------------------------------------------------------

# A checkpoint is one dictionary in one file, whole even if the weights are divided among processes: torch gathers it
# for one process, under the names of the layers, and divides it again for any other number of processes. The data need
# no word in it, nor do random numbers: both follow from the step.
WHOLE = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)


def state_of(trainer):
    """All that the next step depends on, as tensors and plain values. All processes must ask together."""
    model, optimizer = dcp.get_state_dict(trainer.model, trainer.optimizer, options=WHOLE)
    return {"model": model, "optimizer": optimizer, "ema": dcp.get_model_state_dict(trainer.ema, options=WHOLE),
            "step": trainer.step, "seconds": trainer.seconds, "skipped_steps": trainer.skipped_steps,
            "run": run_config(trainer)}


def run_config(trainer):
    """Which run this is, as one flat dictionary: continued with other values it would be no run of either."""
    preset, data = trainer.preset, trainer.data
    parts = asdict(preset.network) | asdict(preset.diffusion) | {f"training's {k}": v for k, v in asdict(preset.train).items()}
    return parts | {"size": preset.size, "world": trainer.world, "seed": trainer.seed, "tokenizer": trainer.words.merges,
                    "number of examples": len(data) if isinstance(data, OwnImages) else 0}


def save_checkpoint(trainer, out, made):
    """Write a checkpoint and the averaged weights, and remove checkpoints that are too many.

    None is written while steps are being skipped: if the weights turn out to be spoiled, those from before must still
    be there. A full disk does not end the run: it is said, and tried again next time.
    """
    if trainer.nonfinite:
        return
    state, preset, words = state_of(trainer), trainer.preset, trainer.words
    if trainer.rank:
        return
    try:
        with unet.atomic_write(out / f"checkpoint-{trainer.step:07d}.pt") as partial_file:
            torch.save(state, partial_file)
        with torch.device("meta"):
            average = build_network(preset.network)
        average.load_state_dict(state["ema"], assign=True)
        made = {"steps": trainer.step, "seed": trainer.seed, "minutes": round(trainer.seconds / 60, 1),
                "torch": str(torch.__version__)} | made
        unet.save_weights(out / f"{preset.kind}.pt", average, size=preset.size, diffusion=asdict(preset.diffusion),
                          tokenizer=words.merges, vocabulary="clip" * isinstance(words, tokenizer.CLIPTokenizer),
                          world=trainer.world, train=asdict(preset.train), made=made)
        for old in checkpoints(out)[:-2]:
            old.unlink()
    except OSError as e:
        log_once(f"nothing saved at step {trainer.step}: {e}; the run continues, and what was saved before stays")


def load_checkpoint(trainer, out):
    """Continue from a run's newest checkpoint that can be read, whatever number of processes saved it.

    Raises ValueError if there is none, or if it is another run's.
    """
    mine, saved = run_config(trainer), None
    for path in reversed(checkpoints(out)):
        try:
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
            break
        except Exception as e:   # torch.load fails in many ways on bytes that are not its own
            log_once(f"{path} is damaged ({type(e).__name__}); continuing from the one before")
    if not saved:
        raise ValueError(f"no checkpoint in {out} that can be read; leave --resume out to begin a run")
    other = [name for name in mine if saved["run"].get(name) != mine[name]]
    if other == ["training's steps"]:
        log_once(f"{saved['run'][other[0]]} steps become {mine[other[0]]}; a rate that decays follows the new number")
    elif other:
        raise ValueError(f"{path} is of a run with another {other[0]} ({str(saved['run'].get(other[0]))[:60]}, not"
                         f" {str(mine[other[0]])[:60]}); give the same options, or another --out")
    dcp.set_state_dict(trainer.model, trainer.optimizer, model_state_dict=saved["model"],
                       optim_state_dict=saved["optimizer"], options=WHOLE)
    dcp.set_model_state_dict(trainer.ema, saved["ema"], options=WHOLE)
    trainer.step, trainer.seconds, trainer.skipped_steps = (saved[name] for name in ("step", "seconds", "skipped_steps"))


def checkpoints(out):
    """The checkpoints in a run's folder, the newest last."""
    return sorted(Path(out).glob("checkpoint-*[0-9].pt"))


def begin_run(out, resume):
    """Make a run's folder ready. ValueError for one that would be written over."""
    if not resume and (out / "log.jsonl").exists():
        raise ValueError(f"{out} holds a run already; --resume continues it, another --out begins a new one")
    out.mkdir(parents=True, exist_ok=True)
    for left in out.glob("*.tmp"):       # by a process that was killed
        left.unlink(missing_ok=True)


# --- Many processes ----------------------------------------------------------------------------------

# torchrun starts the same program several times. Each process computes its share of a batch; in `backward` their
# gradients are averaged, and all take the same step. DDP keeps a whole copy of the model in each process, FSDP2 a piece.
BLOCKS = unet.ResBlock, unet.TextAttention, transformer.Block   # what is recomputed, or gathered from its shards, at once


def rank_and_world_size():
    """Which of the processes this is, and how many there are: (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_processes(device):
    """Under torchrun, join the others, on a GPU of one's own. -> the device"""
    if "RANK" in os.environ:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def parallelize(model, ema, compute):
    """Prepare a model and its average for the processes. -> what is asked in training: the model, or DDP around it"""
    if compute.activation_checkpointing:
        for part in model.modules():
            if isinstance(part, BLOCKS):      # keeps its inputs only, and is computed again on the way back
                part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    if compute.shard:
        shard_model(model)
        shard_model(ema)
    elif dist.is_initialized():
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    return model


def shard_model(model):
    """Divide a network among the processes (FSDP2): each keeps a piece of every weight, and of what belongs to it.

    A block's weights are gathered when it is their turn and dropped after it; of the summed gradients each process
    keeps its piece. So eight GPUs hold one copy of the paper's model together, instead of eight.
    """
    from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
    for part in list(model.modules()):
        if isinstance(part, BLOCKS):
            fully_shard(part)
        if isinstance(part, unet.TextAttention):      # weights are wanted there too, not in `forward` alone
            register_fsdp_forward_method(part, "project_text")
    fully_shard(model)


def exchange_gradients(model, last):
    """Have processes exchange their gradients after the last part of a batch only."""
    if hasattr(model, "set_requires_gradient_sync"):    # FSDP2
        model.set_requires_gradient_sync(last)
    elif dist.is_initialized():                         # DDP
        model.require_backward_grad_sync = last


def all_gather(own):
    """Rows [n, …] of every process, together [B, …] in the batch's order, with a gradient for one's own."""
    if not dist.is_initialized():
        return own
    # Each process has the whole loss: the gradients of all of them arrive here summed, and are averaged afterwards.
    rows = torch.distributed.nn.functional.all_gather(own)
    return torch.stack(rows, dim=1).flatten(0, 1)     # example i of process r has place i·ranks + r in the batch


# --- What you see ------------------------------------------------------------------------------------

def save_pictures(trainer, out):
    """samples.png and loss.png. A run does not end because they cannot be written."""
    try:
        if trainer.preset.kind != "clip" and (trainer.compute.shard or trainer.rank == 0):
            images, captions = draw_samples(trainer)      # a divided network draws with the help of all processes
            if trainer.rank == 0:
                save_grid(images, captions, out / "samples.png", title=f"after {trainer.step} steps")
        if trainer.rank == 0:
            save_curve(read_log(out / "log.jsonl"), out / "loss.png")
    except OSError as e:
        log_once(f"no pictures of step {trainer.step}: {e}; the run continues")


@torch.no_grad()
def draw_samples(trainer):
    """The first eight captions, drawn with the averaged weights and always the same noise: what differs from the last
    time is the model. Before each drawing stands what was known of it. -> images in [-1, 1], their titles"""
    preset, g = trainer.preset, torch.Generator().manual_seed(0)
    images, captions, _, _ = zip(*(trainer.data[i] for i in range(8)))
    rngs = [tokenizer.seeded_rng("samples", i) for i in range(8)]
    known, cond = conditioning(preset, trainer.words, torch.stack(images), captions, rngs)
    cond = {name: value.to(trainer.device) for name, value in cond.items()}
    denoiser = upsample.denoiser_of(trainer.ema, preset.network, preset.diffusion)
    process = partial(diffusion.Diffusion.from_config, preset.diffusion)
    if "upsampler" in preset.kind:
        drawn = upsample.upsample(denoiser, process=process("fast27"), generator=g, **cond)
    else:
        x_T = diffusion.gaussian(known, g).to(trainer.device)
        drawn = process("25").ddim_sample(guidance.classifier_free(denoiser, 3), x_T, **cond)
    for part in trainer.ema.modules():
        if hasattr(part, "reshard"):         # drawing has no way back, which lets go of weights that were gathered
            part.reshard()
    known = known * cond["inpaint_mask"].cpu() if "inpaint" in preset.kind else known
    return torch.stack([known, drawn.cpu()], 1).flatten(0, 1), [title for text in captions for title in (text, "drawn")]


def save_grid(images, captions, path, *, title="", columns=4):
    """Images [n, 3, H, W] in [-1, 1] with their captions, as one figure."""
    from matplotlib.figure import Figure        # here, so that importing this file stays quick
    rows = math.ceil(len(images) / columns)
    figure = Figure(figsize=(2.3 * columns, 2.9 * rows), layout="constrained")
    for i, (image, caption) in enumerate(zip(diffusion.to_bytes(images), captions), 1):
        ax = figure.add_subplot(rows, columns, i, xticks=[], yticks=[], frame_on=False)
        ax.imshow(image.permute(1, 2, 0).numpy(), interpolation="nearest")
        ax.set_title(fill(caption, 24), fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.savefig(path, dpi=110)


def save_curve(lines, path):
    """The loss of every step in the log, in grey, and its running mean.

    One batch's loss depends most on which timesteps it drew, so single values jump about and the mean tells. A curve
    that goes flat does not mean that nothing is learned: images improve long after.
    """
    from matplotlib.figure import Figure
    steps, losses = np.array([(line["step"], line["loss"]) for line in lines if line["loss"] is not None]).T
    window = max(1, min(25, len(losses) // 4))
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log", title="The loss of a batch, and its running mean")
    ax.plot(steps, losses, color="0.8", linewidth=0.8, label="one batch")
    mean = np.convolve(losses, np.ones(window) / window, "valid")
    ax.plot(steps[window - 1:], mean, color="tab:blue", label=f"mean of {window}")
    ax.grid(alpha=0.3)
    ax.legend()
    figure.savefig(path, dpi=110)


class MetricsLog:
    """log.jsonl, a line a step (in runs of millions of steps, one step in so many), and the line of progress."""

    def __init__(self, out, trainer):
        self.steps, self.batch, self.path = trainer.preset.train.steps, trainer.preset.train.batch, out / "log.jsonl"
        self.file, self.times, self.losses, self.shown = None, deque(maxlen=50), deque(maxlen=50), 0.0
        if trainer.rank == 0:
            # After a stop the log may be ahead of the checkpoint: those steps will be made again.
            lines = [line for line in read_log(self.path) if line["step"] <= trainer.step]
            with unet.atomic_write(self.path) as file:
                file.write_text("".join(json.dumps(line) + "\n" for line in lines))
            self.file = open(self.path, "a", buffering=1)

    def write(self, trainer, metrics, seconds):
        """Add a step's metrics. A log that cannot be written is no reason to stop."""
        if self.file is None:
            return
        self.times.append(seconds)
        speed = self.batch * len(self.times) / sum(self.times)
        finite = {name: value if math.isfinite(value) else None for name, value in metrics.items() if name != "stop"}
        self.losses += [finite["loss"]] * (finite["loss"] is not None)
        last = metrics["stop"] or trainer.step == self.steps
        if last or trainer.step % max(1, self.steps // 5000) == 0:
            line = {"step": trainer.step, **finite, "lr": trainer.optimizer.param_groups[-1]["lr"],
                    "images_per_second": round(speed, 2), "skipped": trainer.skipped_steps}
            try:
                self.file.write(json.dumps(line) + "\n")
            except OSError as e:
                log_once(f"step {trainer.step} is missing in {self.path}: {e}")
        live = sys.stdout.isatty()
        if last or time.time() - self.shown > (0.2 if live else 20):
            self.shown = time.time()
            left = timedelta(seconds=int((self.steps - trainer.step) * self.batch / speed))
            skipped = f"  {trainer.skipped_steps} steps skipped" if trainer.skipped_steps else ""
            bad = f"  {metrics['bad']} bad examples" if metrics["bad"] else ""
            mean = sum(self.losses) / len(self.losses) if self.losses else math.nan
            print(f"{chr(13) * live}step {trainer.step}/{self.steps}  loss {mean:.4f}  {speed:.0f} images a second"
                  f"  {left} left{skipped}{bad}", end="  " if live and not last else "\n", flush=True)

    def close(self):
        if self.file:
            self.file.close()


def read_log(path):
    """The lines of a log.jsonl, [] if there is none. A power cut may have left half a line at its end."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def log_once(text):
    """A message from one process, on a line of its own."""
    if rank_and_world_size()[0] == 0:
        print(("\n" if sys.stdout.isatty() else "") + text, file=sys.stderr, flush=True)


# --- The command line --------------------------------------------------------------------------------

def at_least(low, kind=int):
    """A type for argparse: a number of this kind, low or more."""
    def number(text):
        if not low <= kind(text) < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not a number of at least {low:g}")
        return kind(text)
    return number


def path_name(text):
    """A type for argparse: a path, in which ~ is the home folder."""
    return Path(text).expanduser()


def device_name(text):
    """A type for argparse: a device that computes here."""
    try:
        torch.zeros(1, device=text).item()
    except (RuntimeError, AssertionError, ImportError):
        raise argparse.ArgumentTypeError(f"there is no device {text!r} here; cpu always works") from None
    return text


def arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a model. What is not given is the preset's.", allow_abbrev=False)
    add = parser.add_argument
    add("kind", nargs="?", default="base", choices=KINDS)
    add("--preset", choices=tuple(PRESETS), default="tiny", help="how large (default: tiny)")
    add("--world", choices=("single", "full"), help="single things, or pairs and counts too (default: --init-from's)")
    add("--steps", type=at_least(1), help="how long")
    add("--batch", type=at_least(1), help="images a step")
    add("--lr", type=at_least(1e-12, float), help="the learning rate, of a U-Net without its text encoder")
    add("--freeze", nargs="*", metavar="PART", help="parts that stay as they begin: text pool time down middle up …")
    add("--crop", type=int, choices=(32, 64, 128), help="pixels of the upsampler's training squares")
    add("--seed", type=at_least(0), default=0)
    add("--out", type=path_name, help="the run's folder (default: outputs/train-KIND)")
    add("--init-from", type=path_name, help="a weight file to begin with (tiny inpaint: those in lessons/weights)")
    add("--resume", action="store_true", help="continue from the newest checkpoint in that folder")
    add("--save-every", type=at_least(1), help="steps between checkpoints (default: a tenth of the run, 100 to 2,000)")
    add = parser.add_argument_group("images of your own, instead of the little world").add_argument
    add("--data", nargs="+", help="a folder of images with NAME.txt next to each, or captions.csv; or tar shards of them")
    add("--random-crop", action="store_true", help="a random square of each image, not the middle one")
    add("--max-bad", type=at_least(0, float), default=0.05, help="stop when more than this cannot be used (default: 0.05)")
    add("--vocab", type=path_name, help="GPT-2's merge list, for clip CLIP's (default: --init-from's tokenizer, or one"
                                        " that is trained on the captions)")
    add = parser.add_argument_group("how to compute: changes nothing that is learned but for rounding").add_argument
    add("--device", type=device_name, default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", choices=("float32", "bfloat16"), help="of matrix products (default: bfloat16 where it is fast)")
    add("--grad-accum", type=at_least(1), default=1, help="the batch goes through in this many parts: less memory")
    add("--activation-checkpointing", action="store_true", help="much less memory, a fifth more work")
    add("--compile", nargs="?", const="inductor", metavar="BACKEND", help="torch.compile")
    add("--shard", action="store_true", help="divide the weights among torchrun's processes (FSDP2)")
    add("--workers", type=at_least(0), default=2, help="threads that prepare batches ahead (default: 2)")
    return parser.parse_args(argv)


def chosen_preset(args, world):
    """The preset with what the command line changes of it."""
    preset, small = PRESETS[args.preset][args.kind], args.preset in ("tiny", "small")
    changes = FULL_WORLD.get(args.kind, {}) if small and world == "full" else {}
    changes |= {name: getattr(args, name) for name in ("steps", "batch", "lr") if getattr(args, name)}
    if args.crop:
        changes["crop"] = min(args.crop, preset.size)
    if args.freeze is not None:
        changes["freeze"] = tuple(args.freeze)
    return replace(preset, train=replace(preset.train, **changes))


def chosen_words(args, init, data, room):
    """The tokenizer: the one that is given, init's, or one trained on the captions; None is the little world's."""
    words = None
    if args.vocab:
        clip = args.kind == "clip"
        words = (tokenizer.CLIPTokenizer.from_file if clip else tokenizer.BPETokenizer.from_gpt2)(args.vocab)
    elif init or data:
        words = tokenizer.load_tokenizer(init) if init else tokenizer.BPETokenizer.train(data.captions(), room)
    if words and words.vocab_size > room:
        raise ValueError(f"the vocabulary has {words.vocab_size:,} tokens, and the network has room for {room:,}")
    return words


def command(args):
    """What the command line asks for, done."""
    out = args.out or OUTPUTS / "-".join(["train"] + [args.preset] * (args.preset != "tiny") + [args.kind])
    if args.init_from is None and args.preset == "tiny" and "inpaint" in args.kind:
        args.init_from = unet.WEIGHTS / ("upsampler.pt" if "upsampler" in args.kind else "base.pt")
    init = unet.read_weights(args.init_from) if args.init_from else {}
    world = args.world or init.get("world") or "single"
    device, preset, data = join_processes(args.device), chosen_preset(args, world if not args.data else ""), None
    if args.shard and not dist.is_initialized():
        raise ValueError("--shard divides a network among processes: start them with torchrun --nproc-per-node 8")
    if args.data:
        data = OwnImages(args.data, preset.size, seed=args.seed, index=out / "index", random_crop=args.random_crop)
        log_once(f"{len(data)} examples; left out: {counted(data.left_out) or 'none'}")
    compute = ComputeConfig(device, args.dtype and args.dtype == "bfloat16", args.grad_accum,
                            args.activation_checkpointing, args.compile, args.shard, args.workers)
    train(preset, out, resume=args.resume, save_every=args.save_every or min(2000, max(100, preset.train.steps // 10)),
          max_bad=args.max_bad, made={"command": shlex.join(["python", "08_train.py", *sys.argv[1:]])}, data=data,
          world=world, words=chosen_words(args, init, data, preset.network.text.vocab_size), seed=args.seed,
          compute=compute, init_from=args.init_from)
    log_once(f"wrote {out / args.kind}.pt, and samples.png, loss.png and log.jsonl next to it")


def run(command, args, name, memory="out of memory"):
    """command(args); what you can mend ends in one line and exit status 2. The way out of every command line here."""
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="replace")      # a console that lacks a character shows a ? instead
    try:
        command(args)
        return 0
    except KeyboardInterrupt:
        error, status = "stopped; what had been finished stays", 130
    except (OSError, ValueError) as e:
        error, status = e, 2
    except (MemoryError, torch.OutOfMemoryError):
        error, status = memory, 2
    except RuntimeError as e:
        if not getattr(args, "compile", None):
            raise
        error, status = f"--compile {args.compile} failed, leave it out: {str(e).strip().splitlines()[0][:200]}", 2
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    rank = os.environ.get("RANK", "0")
    print(f"{name}{f', process {rank}' * (rank != '0')}: {error}", file=sys.stderr, flush=True)
    return status


def main(argv=None):
    """One model, trained as the command line says."""
    return run(command, arguments(argv), "08_train.py", "out of memory; try --grad-accum, --activation-checkpointing")


if __name__ == "__main__":
    sys.exit(main())
