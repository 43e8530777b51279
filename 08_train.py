r"""
08 · Where the weights come from.

The networks of 01 to 07 can answer, but a fresh one knows nothing yet. Here it is shown images with captions until it
does. Training is this one line, repeated; the rest of the file sees to it that nothing goes wrong meanwhile:

    image x0 ──┐
    timestep t ┼─► x_t ─► model(x_t, t, caption; for some images, no caption) ─► loss ─► gradient ─► AdamW
    noise ε ───┘                                                                                       │
                                                EMA, the average of recent weights, is kept ◄──────────┘

It adds to 07: gradients. The data are those of the little world (01, 04), drawn as they are needed, or images of
your own, from a folder or from tar shards. Either way the order of the data is a function of the step: the examples of
step n are the same whichever process asks for them and whenever it does. So a run that was stopped continues with the
same bits, and one, two or sixty-four processes train on the same stream. The same loop trains the tiny model on a
laptop and the paper's on GPUs.

Sections: presets; what an example is; the step, first what the network is asked, then what is done with its answer;
the loop; checkpoints; many processes; what you see; the command line. On a first reading, `Trainer` and `train` are
enough. Left out: how good the result is (lessons/10_judge.py) and what a large run costs (lessons/13_cost.py).

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); Improved DDPM, Nichol & Dhariwal 2021, arXiv
2102.09672 (section 3: the hybrid loss); captions dropped for guidance: Ho & Salimans 2022, arXiv 2207.12598
(algorithm 1); AdamW: Loshchilov & Hutter 2017, arXiv 1711.05101; [C] CLIP, Radford et al. 2021, arXiv 2103.00020.

    python 08_train.py                     the base model, 16 pixels, single things: about 13 minutes on two cores
    python 08_train.py --steps 50          a minute, to see what a run leaves behind
    python 08_train.py upsampler           16 -> 64 pixels
    python 08_train.py inpaint             lessons/weights/base.pt learns to look at what is known (06)
    python 08_train.py inpaint-upsampler   and so does lessons/weights/upsampler.pt
    python 08_train.py clip --world full   the noised CLIP of 05
    python 08_train.py base --data FOLDER --init-from lessons/weights/base.pt             images of your own
    torchrun --nproc-per-node 8 08_train.py base --preset paper --shard --data shards/*.tar --vocab vocab.bpe

Each run shows one line of progress and leaves in its folder, outputs/train-base for the first: the averaged weights
(base.pt, …), samples.png (not of a CLIP, which draws nothing), loss.png, log.jsonl and the last two checkpoints, from
which --resume continues.
"""
import argparse
import csv
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
from contextlib import closing, contextmanager, suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, field, fields, replace
from functools import lru_cache, partial
from importlib import import_module
from itertools import count
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from PIL import Image, ImageOps
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
# alone. The tiny base model sees 2,700 × 64 = 172,800, of a far smaller world. To get there in minutes, the tiny and
# small presets also differ in kind: a higher learning rate with warm-up and decay, and weights on the loss (04).
#
# `TrainConfig` says how to train, `Preset` adds what is trained, and TABLE gives the rows their names. The fields of a
# TrainConfig are options of the command line at the same time, so one choice of a row can be changed without a new row.
def option(default, help, **more):
    """A field of a configuration that is also an option of the command line; more is argparse's, such as choices."""
    return field(default=default, metadata={"help": help, **more})


@dataclass(frozen=True)
class TrainConfig:
    """How to train. The defaults are the paper's for the base model [GLIDE section 4; ADM appendix]."""

    steps: int = option(2_500_000, "how long")
    batch: int = option(2048, "images a step")
    lr: float = option(1e-4, "the learning rate, of a U-Net without its text encoder")
    text_lr: float = option(1e-4, "the text encoder's own, see Trainer.slow")
    warmup: int = option(0, "steps until the full rate")
    decay: bool = option(False, "let the rate go down to zero; the papers keep it constant")
    ema: float = option(0.9999, "how slowly the average of the weights forgets")
    caption_dropout: float = option(0.2, "the fraction of captions that are replaced by the empty one")
    weighting: str = option("eps", "of the timesteps, see 04", choices=("eps", "v", "middle", "late"))
    crop: int = option(0, "train the upsampler on squares of this many pixels; 0: on whole images")
    high_noise_fraction: float = option(0.0, "of a batch, drawn from the noisiest timesteps alone")
    canonical_first: bool = option(False, "say pairs one way first, see canonical_fraction")
    freeze: tuple = option((), "parts that stay as they begin, such as: text pool time down middle up")

    def __post_init__(self):
        fractions = self.text_lr, self.ema, self.caption_dropout, self.high_noise_fraction
        if not (self.steps > 0 and self.batch > 0 and 0 < self.lr < 1 and all(0 <= x <= 1 for x in fractions)):
            raise ValueError("steps and batch are at least 1; learning rates, ema and fractions are between 0 and 1")


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
# Fine-tuning must not lose what was learned. The words mean what they meant before, and the way up may go on turning
# what was understood into an image as it did. So only the part that looks at the image learns, at a lower rate.
FINE_TUNE = dict(steps=1200, lr=5e-4, text_lr=2.5e-5, freeze=("text", "pool", "up"))

# preset: (size of the base model's images, training of base, upsampler, inpaint, inpaint-upsampler and clip)
TABLE = {
    "tiny": (16, TINY, TINY_UPSAMPLER, replace(TINY, **FINE_TUNE),
             replace(TINY_UPSAMPLER, **FINE_TUNE | {"batch": 8, "crop": 0}), TINY_CLIP),
    "small": (32, replace(TINY, steps=8000), replace(TINY_UPSAMPLER, steps=8000, batch=16, crop=64),
              replace(TINY, **FINE_TUNE), replace(TINY_UPSAMPLER, **FINE_TUNE | {"batch": 4, "crop": 0}), TINY_CLIP),
    "filtered": (64, PAPER, PAPER_UPSAMPLER, PAPER, PAPER_UPSAMPLER, PAPER),
    "paper": (64, PAPER, PAPER_UPSAMPLER, PAPER, PAPER_UPSAMPLER, PAPER),
}
KINDS = ("base", "upsampler", "inpaint", "inpaint-upsampler", "clip")
# What changes for a tiny or small model that learns pairs and counts as well (--world full). It must find out which
# thing goes where, and that is decided at the noisiest timesteps, to which the plain presets give little weight. The
# text encoder's rate is for one that knows the words from single things; one that begins from nothing takes 1e-4.
FULL_WORLD = {"base": {"text_lr": 1e-3, "weighting": "late", "high_noise_fraction": 0.5, "canonical_first": True},
              "inpaint": {"weighting": "late", "high_noise_fraction": 0.5}}


def preset_of(name, kind, size, train):
    """The Preset of one of KINDS: its network and its process are those that 03, 04 and 05 list under this name."""
    row = f"{name}-upsampler" if "upsampler" in kind else name      # both upsamplers, inpainting or not
    network = guidance.CLIP[name] if kind == "clip" else unet.UNET[row]
    if "inpaint" in kind:
        network = replace(network, in_channels=network.in_channels + 4)     # the known part and its mask (06)
    return Preset(kind, network, diffusion.DIFFUSION[row], size * (upsample.FACTOR if row != name else 1), train)


PRESETS = {name: {kind: preset_of(name, kind, size, train) for kind, train in zip(KINDS, trainings)}
           for name, (size, *trainings) in TABLE.items()}


def build_network(config):
    """A fresh network of these sizes: a UNet or a NoisedCLIP."""
    return (guidance.NoisedCLIP if isinstance(config, guidance.CLIPConfig) else unet.UNet)(config)


# --- An example: the little world --------------------------------------------------------------------

# A run is one long line of examples, and step n of batch size B takes the positions n·B … n·B + B - 1. A data set is a
# map from a position to four things: the image, its caption, a caption of all that the image shows, and reasons, which
# say what other examples had to be skipped (only `OwnImages` has any). A map keeps no state, unlike an iterator, so a
# checkpoint has nothing to save of it, and any process can ask for any position.
#
# The little world's data set is `LittleWorld` in 04, which draws each example when it is asked for. Its captions leave
# things open: "a red heart" may be large or small. What the image shows in full is there for the CLIP's loss (05),
# which must know every caption that is true. Training adds only this to it: in which words pairs are described.
def canonical_fraction(step, config):
    """The fraction of captions that are put the canonical way ("left of", never "right of"): all, then ever fewer.

    To tell what is on the left in "a red heart to the right of a blue star", one needs two facts: the order of the
    things in the caption *and* the relation. Either alone says nothing, as in an exclusive or, so at first the gradient
    points nowhere: after 6,000 steps on captions put both ways, the colours of a pair were all there, but on the wrong
    side half of the time. Put one way, order alone decides. That was learned within a few hundred steps, and the other
    way is then learned as an exception to a rule.
    """
    # 1 - 2n/N of N steps: 1 at the start, 0 from the middle of the run on
    return max(0.0, 1 - 2 * step / config.steps) if config.canonical_first else 0.0


# --- An example: images of your own ------------------------------------------------------------------

# Two rules. Whatever is in a file, the run goes on or stops with a clear message; and nothing is left out without being
# counted. A shard is a tar file of some thousand examples: disks and networks read one long file much faster than a
# thousand short ones. It is never unpacked: a file inside it is a path, an offset and a size, like any other file.
#
# `pair_up` finds out which image and which caption belong together, `make_index` keeps what it found as a file with one
# line for each example, and `OwnImages` shuffles those lines and reads the images. In between, an example is an entry
# (name, image, suffix, caption), in which image is such a (path, offset, size). Suffix ".txt" or ".json" says that the
# caption is one, too; with suffix "", from a table, it is the text itself.
IMAGES, CAPTIONS = (".jpg", ".jpeg", ".png", ".webp"), (".txt", ".json")
FORMATS = ("JPEG", "PNG", "WEBP")            # the only decoders that strangers' bytes may reach
TABLES = ("captions.csv", "captions.jsonl", "metadata.jsonl")
FILE_KEYS, CAPTION_KEYS = ("file", "file_name"), ("caption", "text", "TEXT")
# No more of a file is read than this many bytes, and no more of a caption kept than this many characters; a network
# reads 128 tokens, some 500 characters, at most.
MAX_BYTES, MAX_CAPTION = 2 ** 26, 1000


def tidy(text):
    """A caption in the form that models are trained on: white space of any kind becomes single spaces."""
    return " ".join(text.split())[:MAX_CAPTION].rstrip()


def first_text(entry, names):
    """The first of a dictionary's fields of these names that holds text, tidied; "" if none does."""
    return next((tidy(entry[name]) for name in names if isinstance(entry.get(name), str) and tidy(entry[name])), "")


def read_place(path, offset, size):
    """The bytes of a file, or of a file inside a shard."""
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(size)


def read_caption(suffix, source):
    """A caption as one tidy line; "" if it is empty or cannot be read.

    suffix  ".txt" or ".json": source is such a file's (path, offset, size);  "": source is the caption itself
    """
    with suppress(OSError, AttributeError, RecursionError, ValueError):
        text = read_place(*source).decode("utf-8-sig") if suffix else source     # -sig: some editors begin with a mark
        text = first_text(json.loads(text), CAPTION_KEYS) if suffix == ".json" else tidy(text)
        return text if text.encode() else ""     # JSON can hold half a character, "\ud800": encode raises ValueError
    return ""


def read_table(path):
    """[(file name, caption)] from one of TABLES. Raises ValueError, which names the row that is wrong and says why."""
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            table = csv.DictReader(file, strict=True, skipinitialspace=True)
            for row in table if path.suffix == ".csv" else map(json.loads, filter(str.strip, file)):
                name, known = first_text(row, FILE_KEYS), set(row) & set(CAPTION_KEYS)
                if not (name and known) or None in row or path.suffix == ".csv" and None in row.values():
                    raise ValueError(f"{[*row.values()]} under {[*row]}: need file, caption, quotes round commas")
                rows.append((Path(name).as_posix(), first_text(row, CAPTION_KEYS)))
    except (csv.Error, ValueError, AttributeError, RecursionError) as e:
        raise ValueError(f"{path}, row {len(rows) + 1} or the one after it: {e}") from None
    return rows


def pair_up(files):
    """Files of one name become an example. -> [(name, image, suffix, caption)], a Counter: why others are left out

    files  (name without its suffix, suffix, (path, offset, size)), …
    Of two captions, a .txt file is preferred to a .json file, which often holds much else.
    """
    groups, entries, left_out = {}, [], Counter()
    for name, suffix, place in files:
        groups.setdefault(name, []).append((suffix.lower(), place))
    for name, group in groups.items():
        images = [place for suffix, place in group if suffix in IMAGES]
        captions = sorted((file for file in group if file[0] in CAPTIONS), reverse=True)
        others = [f"a {suffix or 'suffixless'} file" for suffix, _ in group if suffix not in IMAGES + CAPTIONS]
        if len(images) == 1 and captions:
            entries.append((name, images[0], *captions[0]))
        elif images:
            left_out["images without a caption, or several of one name"] += 1
        else:
            left_out[(others + ["a caption without an image"])[0]] += 1
    return entries, left_out


def folder_examples(root):
    """`pair_up` for a folder and those below it. Captions are in NAME.txt or NAME.json next to NAME.jpg, or in a table
    at the top (TABLES) with the columns file and caption. Names that begin with a dot are ignored.

    A table has the last word: what it lists is not paired up again, and the tables themselves are not left-out files.
    """
    rows = [row for table in TABLES if (root / table).is_file() for row in read_table(root / table)]
    names = dict.fromkeys(sorted(path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()))
    listed = {os.path.splitext(name)[0] for name, _ in [*rows, *((table, "") for table in TABLES)]}
    split = [(*os.path.splitext(name), (f"{root}/{name}", 0, MAX_BYTES)) for name in names if "/." not in f"/{name}"]
    entries, left_out = pair_up(file for file in split if file[0] not in listed)
    there = [(name, (f"{root}/{name}", 0, MAX_BYTES), "", caption) for name, caption in rows if name in names]
    return entries + there, left_out + Counter({"a listed file that is not there": len(rows) - len(there)})


def shard_examples(path):
    """`pair_up` for a tar file: names that agree up to the first dot belong together, as 0007.jpg and 0007.txt do.

    Archives come from strangers. Links and devices in them are ignored; if one is damaged or cut off, what comes before
    the damage is used.
    """
    files, size, damaged = [], path.stat().st_size, Counter({"a shard that is damaged or cut off": 1})
    # Damaged until its end has been seen. "r:" is a tar file that is not compressed: only there do offsets help.
    with suppress(tarfile.TarError, OSError, ValueError, OverflowError), tarfile.open(path, "r:") as tar:
        for member in tar:
            tar.members = []                 # tarfile would keep the header of every file in memory
            folder, _, name = member.name.rpartition("/")
            stem, _, suffix = name.partition(".")
            if member.isreg() and not member.issparse() and stem and member.offset_data + member.size <= size:
                place = (str(path), member.offset_data, min(member.size, MAX_BYTES))
                files.append((f"{folder}/{stem}", f".{suffix}", place))
        tar.fileobj.seek(tar.offset)         # tarfile mistakes damage for the end; a true end is a block of zeros
        if tar.fileobj.read(512) == bytes(512):
            damaged.clear()
    entries, left_out = pair_up(files)
    return entries, left_out + damaged


def make_index(folder, path):
    """The file that lists the examples of a folder or a shard: [how many, what is left out], then a line for each.

    A shard's is made once, from its headers, and again if the shard changes. A folder's is made at every start: a new
    file in one of its subfolders leaves no trace in the folder's own date.
    """
    key = zlib.crc32(f"{path.resolve()} {path.stat().st_size} {path.stat().st_mtime_ns}".encode())
    index = Path(folder) / f"{path.name}-{key:08x}.jsonl"
    if path.is_dir() or not index.exists():
        entries, left_out = (folder_examples if path.is_dir() else shard_examples)(path)
        with unet.atomic_write(index) as file:
            file.write_text("\n".join(json.dumps(line) for line in [[len(entries), left_out], *entries]))
    return index


def counted(reasons):
    """A Counter in words, the most frequent first: "3 × a broken image, 1 × a .gif file"."""
    return ", ".join(f"{n} × {reason}" for reason, n in reasons.most_common())


BLOCK, MIXED = 4096, 16      # neighbours stay together in blocks of 4,096; sixteen blocks are mixed with each other


class OwnImages(Dataset):
    """Captioned images in a folder or in tar shards, epoch after epoch. Each epoch has an order of its own, which is
    computed, not stored: a permutation of a billion examples takes 8 GB.

    Of N examples, position p of the run is place p mod N of epoch p div N. An epoch permutes blocks of neighbours,
    which lie in few shards, takes them sixteen at a time as a window, and permutes the examples of each window. So
    examples of one shard are mixed with those of others, differently in each epoch; a disk reads from a few files at a
    time, and no permutation of examples is longer than a window. An example that cannot be used is replaced by the next
    one, and the reason is counted.

    paths  folders of images, .tar files and folders of them (of which the .tar files alone are read)
    index  a folder for the indexes
    Raises ValueError, one line, where there is nothing to read.
    """

    def __init__(self, paths, size, *, seed=0, index=OUTPUTS / "index", random_crop=False):
        self.size, self.seed, self.random_crop = size, seed, random_crop
        paths = [Path(path).expanduser() for path in paths]
        if wrong := [path for path in paths if not (path.is_dir() or path.is_file() and path.suffix.lower() == ".tar")]:
            raise ValueError(f"--data {wrong[0]} is neither a folder nor a .tar file that is there")
        sources = [source for path in paths for source in sorted(path.glob("**/*.tar")) or [path]]
        with ThreadPoolExecutor(8) as pool:
            self.indexes = list(pool.map(partial(make_index, index), sources))
        counts, left_out = zip(*(json.loads(path.open().readline()) for path in self.indexes))
        self.ends, self.left_out = np.cumsum(counts), sum(map(Counter, left_out), Counter())
        if not len(self):
            raise ValueError(f"{paths[0]} holds no captioned image ({', '.join(IMAGES)}); {counted(self.left_out)}")

    def __len__(self):
        return int(self.ends[-1])

    @lru_cache(32)
    def lines(self, source):
        """The lines of an index, one for each example."""
        return self.indexes[source].read_text().splitlines()[1:]

    @lru_cache(4)
    def window(self, epoch, window):
        """The numbers of a window's examples, in the order of this epoch.

        The last block, which may be short, always stays the last. So all windows but the last are of one length, and
        `example` finds a place's window by division.
        """
        blocks = np.random.default_rng([self.seed, epoch]).permutation(len(self) // BLOCK)
        blocks = np.append(blocks, len(self) // BLOCK)[window * MIXED:][:MIXED]
        numbers = np.concatenate([np.arange(block * BLOCK, min(len(self), (block + 1) * BLOCK)) for block in blocks])
        return np.random.default_rng([self.seed, epoch, window]).permutation(numbers)

    def example(self, position):
        """The entry (name, image, suffix, caption) of a position of the run."""
        epoch, place = divmod(position, len(self))
        number = self.window(epoch, place // (BLOCK * MIXED))[place % (BLOCK * MIXED)]
        source = int(np.searchsorted(self.ends, number, side="right"))
        return json.loads(self.lines(source)[number - self.ends[source]])     # a negative index, from the source's end

    def __getitem__(self, position):
        """-> uint8 [3, size, size], its caption, twice, and [(reason, name)] of the examples that it replaces

        Twice, because the second is to say all that the image shows, and here nobody knows more than the first says.
        """
        reasons = []
        rng = tokenizer.seeded_rng("square", self.seed, position)
        place_of_square = (rng.random(), rng.random()) if self.random_crop else (0.5, 0.5)
        for candidate in range(position, position + min(2 * len(self), 1000)):
            name, place, *caption = self.example(candidate)
            text, image = read_caption(*caption), None
            with suppress(Exception):   # decoders raise almost anything on damaged bytes: struct.error, IndexError, …
                image = inpaint.open_image(io.BytesIO(read_place(*place)), formats=FORMATS, near=self.size)
            if text and image and min(image.size) >= self.size:      # a small one, enlarged, would teach blur
                square = ImageOps.fit(image, (self.size, self.size), Image.LANCZOS, centering=place_of_square)
                return torch.from_numpy(np.array(square)).permute(2, 0, 1), text, text, reasons      # H W C -> C H W
            why = "too small an image" if image else "an image that cannot be read"
            reasons.append((why if text else "a caption that is empty or cannot be read", name))
        raise ValueError(f"of {len(reasons)} examples none can be used: {counted(Counter(why for why, _ in reasons))}")


# --- The step ----------------------------------------------------------------------------------------

# A step asks the network about each image of a batch what only the trainer knows: the noise that was added to it.
# `Trainer.batch` makes the questions, `Trainer.loss` judges the answers, and `Trainer.train_step` turns the losses into
# one change of the weights. How all this is computed, where and how precisely, is kept apart from what is learned: the
# first in a ComputeConfig, the second in a TrainConfig.
@dataclass(frozen=True)
class ComputeConfig:
    """How a run computes. None of this changes what is learned, except for rounding (and dropout): the same examples,
    with the same random numbers, are shared out among parts and processes, whose gradients are averaged before the
    step."""

    device: str = option("cpu", "where: cpu, cuda, cuda:1, mps (default: cuda where it is)")
    dtype: str = option("auto", "of matrix products; auto: bfloat16 if fast", choices=("auto", "float32", "bfloat16"))
    grad_accum: int = option(1, "the batch goes through in this many parts, whose gradients are added up: less memory")
    activation_checkpointing: bool = option(False, "blocks are computed again on the way back: much less memory")
    compile: str = option("", "torch.compile with this backend, such as inductor")
    shard: bool = option(False, "divide the weights among torchrun's processes (FSDP2)")
    workers: int = option(2, "threads that prepare batches ahead")


def fast_dtype(device):
    """The 16-bit type that is worth computing in on this device; float32 where none is.

    bfloat16 has float32's 8 bits of exponent, so nothing that float32 can hold overflows, and pays for it in digits: of
    24 binary ones it keeps 8. float16 keeps 11, but numbers above 65,504 become infinite, and small gradients 0. So
    training uses bfloat16 or float32 only; sampling (09) can use float16. Where bfloat16 is only emulated, on older
    GPUs and CPUs, it is slower than float32.
    """
    device = torch.device(device)
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return torch.bfloat16 if device.type == "cpu" and torch.cpu._is_avx512_bf16_supported() else torch.float32


def lr_scale(step, config):
    """The fraction of the learning rate that is used at a step: small at first, while Adam's averages still rest on few
    gradients; then 1, or down along half a cosine to 0. Large steps get near a minimum and then jump about in it; small
    ones settle there."""
    # warm-up: min(1, (n+1)/(w+1));  decay: ½·(1 + cos(π·n/N)), which is 1 at the start, ½ half-way, 0 at the end
    scale = min(1, (step + 1) / (config.warmup + 1))
    return scale * 0.5 * (1 + math.cos(math.pi * step / config.steps)) if config.decay else scale


MAX_NONFINITE = 10   # steps in a row without a finite loss: more are no accident


class Trainer:
    """A U-Net in training: given a noisy image and, mostly, its caption, what is the noise?

    Two hooks say what is trained: `batch`, the questions of a step, and `loss`, how wrong the answers are. CLIPTrainer
    overrides both. All else is the same for any model. Every random number about example i of step n comes from
    (seed, n, i). So it does not matter which process draws it, how many parts the batch is computed in, or how often
    the run was stopped and continued. (Dropout, which only the large presets use, depends on part and process.)

    data       a map-style data set, see diffusion.LittleWorld; None: the little world itself, of difficulty `world`
    words      the tokenizer; None: the little world's
    init_from  a weight file to begin with, instead of random weights
    """

    # Parts of a U-Net that learn at TrainConfig.text_lr. At the U-Net's own rate the text encoder collapses in the
    # first hundred steps: the words that explain most of the image, the background's, drown out all others, which
    # then get no gradient either.
    slow = ("text.", "pool.")

    def __init__(self, preset, *, data=None, world="single", words=None, seed=0, compute=ComputeConfig(),
                 init_from=None):
        self.preset, self.seed, self.compute, self.device = preset, seed, compute, compute.device
        config, (self.rank, self.ranks) = preset.train, rank_and_world_size()
        if compute.grad_accum < 1 or config.batch % (self.ranks * compute.grad_accum):
            raise ValueError(f"a batch of {config.batch} is no multiple of {self.ranks} processes × --grad-accum parts")
        if compute.shard and not dist.is_initialized():
            raise ValueError("--shard divides the weights among several processes: start them with torchrun")
        if config.crop and ("upsampler" not in preset.kind or config.crop not in range(32, preset.size + 1, 32)):
            raise ValueError(f"--crop is for upsamplers, and a multiple of 32 that is at most {preset.size}")
        self.indices = range(self.rank, config.batch, self.ranks)      # this process's places in every batch
        self.world, self.words = "" if data else world, words or tokenizer.world_tokenizer()
        self.data = data or diffusion.LittleWorld(
            world, seed, max(64, preset.size), lambda position: canonical_fraction(position // config.batch, config))
        self.process = diffusion.Diffusion.from_config(preset.diffusion)
        self.weights = self.process.loss_weights(config.weighting)      # of the loss, a table [T] or None
        self.bf16 = compute.dtype == "bfloat16" or compute.dtype == "auto" and fast_dtype(self.device) == torch.bfloat16
        self.step, self.seconds, self.nonfinite, self.skipped_steps, self.bad = 0, 0.0, 0, 0, Counter()
        torch.manual_seed(seed)         # the first weights
        self.model = load_initial(init_from, preset) if init_from else build_network(preset.network)
        self.model.to(self.device).train()
        if unknown := set(config.freeze) - {name for name, _ in self.model.named_children()}:
            raise ValueError(f"--freeze: this network has no part {', '.join(sorted(unknown))}")
        for name, p in self.model.named_parameters():       # before there is an optimiser to hear of these
            p.requires_grad_(name.split(".")[0] not in config.freeze)
        # One network under three names: `model` has the weights, `synced` is the model or DDP around it, which averages
        # gradients among processes, and `answer` is that, compiled if so wished. `ema` is a second network.
        self.ema = deepcopy(self.model).requires_grad_(False).eval()
        self.synced = parallelize(self.model, self.ema, compute)
        self.answer = torch.compile(self.synced, backend=compute.compile) if compute.compile else self.synced
        learning = [(name.startswith(self.slow), p) for name, p in self.model.named_parameters() if p.requires_grad]
        groups = [{"params": [p for slow, p in learning if slow], "rate": config.text_lr},
                  {"params": [p for slow, p in learning if not slow], "rate": config.lr}]
        # "rate" is the full learning rate; train_step sets torch's "lr" to the part of it that a step uses. The papers'
        # optimiser is AdamW; without weight decay, as here, it is the same as Adam.
        self.optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0, fused=True)

    # --- The two hooks ---

    def batch(self, step):
        """This process's share of a step's questions: a dictionary of tensors [B, …], and the reasons for bad examples.

        The tensors are x0, t, noise and the conditioning: all that `loss` needs, so that it has nothing left to draw.
        The same step always gives the same batch.
        """
        config = self.preset.train
        images, captions, _, reasons = self.examples(step)
        rngs = [tokenizer.seeded_rng("example", self.seed, step, i) for i in self.indices]
        x0, cond = self.conditioning(images, captions, rngs, config.crop)
        # Some captions are dropped, each with this probability, so that one network learns both of the answers that
        # guidance compares (05): with a caption and without. A mask that is False everywhere *is* the empty caption
        # (02), so no token has to be changed.   [Ho & Salimans, alg. 1]
        cond["mask"] &= torch.tensor([[rng.random() >= config.caption_dropout] for rng in rngs])    # [B, K] &= [B, 1]
        noise = diffusion.gaussian(x0, [torch.Generator().manual_seed(rng.getrandbits(63)) for rng in rngs])
        return {"x0": x0, "t": self.timesteps(step, config.high_noise_fraction), "noise": noise, **cond}, reasons

    def loss(self, batch):
        """The loss (04) of each example, [B]. batch: a dictionary of tensors, as `batch` makes it."""
        # t stays on the CPU, where the schedule's tables are; the loss sends the network a copy of it.
        given = {name: value.to(self.device, non_blocking=True) for name, value in batch.items() if name != "t"}
        model = upsample.denoiser_of(self.answer, self.preset.network, self.preset.diffusion)
        return self.process.loss(model, given.pop("x0"), batch["t"], given.pop("noise"), weights=self.weights, **given)

    # --- What any trainer does ---

    def examples(self, step):
        """This process's examples of a step: images uint8 [B, 3, side, side], their captions, captions of all that they
        show, and the reasons why others were skipped."""
        images, captions, shown, reasons = zip(*(self.data[step * self.preset.train.batch + i] for i in self.indices))
        return torch.stack(images), captions, shown, sum(reasons, [])

    def conditioning(self, images, captions, rngs, crop=0):
        """x0 [B, 3, S, S] in [-1, 1] and what the network is told about it: see upsample.conditioning (07)."""
        return upsample.conditioning(images, captions, self.words, self.preset.network, self.preset.size, rngs, crop)

    def timesteps(self, step, high_noise_fraction=0.0):
        """A timestep for each of this process's examples, [B] long.

        They are drawn for the whole batch, because they are spread evenly over it (04), and each process takes its own.
        """
        rng = tokenizer.seeded_rng("timesteps", self.seed, step)
        return self.process.draw_timesteps(self.preset.train.batch, rng, high_noise_fraction)[self.indices]

    def batches(self):
        """The batches from this step on, prepared ahead by threads, so that the device need not wait for images.

        Threads are enough, and simpler than processes: Pillow and torch let other threads run while they compute.
        """
        with ThreadPoolExecutor(max(1, self.compute.workers)) as pool:
            ahead = deque(pool.submit(self.batch, self.step + i) for i in range(self.compute.workers))
            for step in count(self.step + len(ahead)):
                ahead.append(pool.submit(self.batch, step))
                yield ahead.popleft().result()

    def train_step(self, batch, stop=()):
        """Ask, compare, correct: one step of all processes together. -> {"loss", "grad_norm", "stop", "bad"}

        stop  a list; if it is not empty, all processes are to stop after this step. It is looked at only when the
              gradients are there, so that a signal still counts if it arrives while they are computed.
        A step whose loss or gradient is not finite is skipped: weights, average and Adam's memory stay as they were.
        Raises ValueError after MAX_NONFINITE such steps in a row.
        """
        loss, parts = torch.zeros((), device=self.device), self.compute.grad_accum
        for i in range(parts):
            torch.manual_seed(tokenizer.seeded_rng("dropout", self.seed, self.step, i, self.rank).getrandbits(63))
            self.synced.require_backward_grad_sync = i == parts - 1    # DDP: exchange gradients after the last part
            # Matrix products and convolutions are in bfloat16; weights, gradients and answers stay float32. Adam
            # changes a weight by about the rate, 1e-4, and next to 0.1 the numbers of bfloat16 are 0.0005 apart: the
            # change would be rounded away. Each weight is used once on the way forward, so keeping its bfloat16 copy
            # for a second use (cache_enabled) would only take memory.
            with torch.autocast(torch.device(self.device).type, torch.bfloat16, enabled=self.bf16, cache_enabled=False):
                part_loss = self.loss({name: value.chunk(parts)[i] for name, value in batch.items()}).mean() / parts
            part_loss.backward()
            loss += part_loss.detach()
        # All gradients together, taken as one vector g, are scaled to a length of at most 1: g·min(1, 1/‖g‖). Adam
        # divides by an average of the squares of the last thousand or so, and one freak batch would make its steps
        # small for that long.
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        norm = norm.full_tensor() if self.compute.shard else norm
        # One vector, summed over the processes, so that all of them take the same decisions: to skip, to stop, to give
        # up. It is read once, because reading makes the CPU wait for the device.
        vector = torch.stack([loss, torch.full_like(loss, bool(stop)), torch.full_like(loss, self.bad.total())])
        if self.ranks > 1:
            dist.all_reduce(vector)
        loss, stop, bad, norm = torch.cat([vector, norm[None]]).tolist()
        self.nonfinite = 0 if math.isfinite(loss + norm) else self.nonfinite + 1
        for group in self.optimizer.param_groups:
            group["lr"] = group["rate"] * lr_scale(self.step, self.preset.train)
        self.step += 1
        if not self.nonfinite:
            self.optimizer.step()
            self.update_ema()
        self.optimizer.zero_grad()
        self.skipped_steps += self.nonfinite > 0
        if self.nonfinite == MAX_NONFINITE:
            raise ValueError(f"{MAX_NONFINITE} steps in a row without a finite loss; begin again with a smaller --lr")
        return {"loss": round(loss / self.ranks, 5), "grad_norm": round(norm, 5), "stop": bool(stop), "bad": int(bad)}

    @torch.no_grad()
    def update_ema(self):
        """The average of recent weights, which is what is kept and drawn with, moves a little towards the present ones.

        Every batch pulls the weights its own way. The average of the last 1/(1-d) or so lies in the middle of where
        they jump about, and mostly draws better than any of them. At first, when there is little worth remembering,
        d is smaller: (1+n)/(10+n) after n steps reaches back over the last tenth of the run so far.
        """
        # θ_ema ← d·θ_ema + (1-d)·θ   with d = min(ema, (1+n)/(10+n))
        decay = min(self.preset.train.ema, (1 + self.step) / (10 + self.step))
        torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - decay)


def load_initial(path, preset):
    """The network of a weight file, for a run of this preset to begin with. ValueError if its sizes are others.

    A model that is to inpaint may begin as one that knows nothing of masks: it gets four more channels (06).
    """
    saved, clip = unet.read_weights(path), preset.kind == "clip"
    model = (guidance.NoisedCLIP if clip else unet.UNet).from_saved(saved, path)
    if not clip and model.config.in_channels + 4 == preset.network.in_channels:
        model = inpaint.add_mask_channels(model)
    theirs, mine = asdict(model.config) | saved["diffusion"], asdict(preset.network) | asdict(preset.diffusion)
    if other := [name for name in mine if theirs[name] != mine[name] and name != "dropout"]:
        raise ValueError(f"{path} is of other sizes: its {other[0]} is {theirs[other[0]]}, not {mine[other[0]]}")
    return model


class CLIPTrainer(Trainer):
    """A noised CLIP in training: which of a batch's captions is this image's, and which image is this caption's?

    The images are noised as the base model's are, each to a timestep of its own, because guidance asks for the answer
    at every step of a sampling loop (05). The batch is large, 256, because the other captions in it are the wrong
    answers: the more of them there are, the harder the question, and the closer to the one that guidance will ask.
    """

    def batch(self, step):
        """Noised images x [B, 3, S, S], t [B], tokens [B, K], lengths [B]; said and shows [B, n], what the captions
        state and what the images show, in numbers: see guidance.statements (05)."""
        if self.compute.grad_accum > 1:
            raise ValueError("a CLIP compares every image of a batch with every caption of it: --grad-accum must be 1")
        images, captions, shown, reasons = self.examples(step)
        x0, t = diffusion.downsample(images, self.preset.size), self.timesteps(step)
        noise = diffusion.gaussian(x0, [diffusion.seeded_generator(self.seed, step, i) for i in self.indices])
        words = guidance.encode_clip(captions, self.words, self.preset.network.text.context)
        said, shows = (torch.tensor([guidance.statements(s, self.world) for s in texts]) for texts in (captions, shown))
        return {"x": self.process.q_sample(x0, t, noise), "t": t, "said": said, "shows": shows, **words}, reasons

    def loss(self, batch):
        """The losses of the whole batch, [B], in every process: its images need the others' captions as wrong answers.
        See `all_gather` for whose gradient goes where."""
        given = {name: value.to(self.device, non_blocking=True) for name, value in batch.items()}
        said, shows = given.pop("said"), given.pop("shows")
        return guidance.contrastive_loss(*map(all_gather, (*self.answer(**given), said, shows)))


# --- The loop ----------------------------------------------------------------------------------------

# Take a batch, take a step, write down the numbers, now and then save. A run of days will be interrupted, so each turn
# ends in a state that can be saved, and whatever ends the run, a person can continue it from the last checkpoint. Every
# decision below follows from the step's number or from the vector that train_step sums over the processes. Therefore
# all processes decide alike, and none is left waiting for another that has gone.
def train(preset, out, *, resume=False, save_every=200, max_bad=0.05, made=None, **options):
    """Train one model of a preset and leave in the folder `out` its averaged weights, samples.png, loss.png, log.jsonl
    and the last two checkpoints, from which resume=True continues. -> the trainer

    max_bad  the run stops when a larger fraction of at least 100 examples cannot be used
    made     a dictionary of what the weight file should say of its making, besides steps, seed and minutes
    options  as for `Trainer`

    After Ctrl-C or SIGTERM it finishes the step, saves and leaves. Under torchrun all processes call this together.
    """
    if not resume and checkpoints(out):
        raise ValueError(f"{out} holds a run already; --resume continues it, another --out begins a new one")
    trainer = (CLIPTrainer if preset.kind == "clip" else Trainer)(preset, **options)
    if resume:
        load_checkpoint(trainer, out)
    if trainer.rank == 0:      # the log may be ahead of the checkpoint: those steps will be made again
        lines = [json.dumps(line) + "\n" for line in read_log(out / "log.jsonl") if line["step"] <= trainer.step]
        with unet.atomic_write(out / "log.jsonl") as file:
            file.write_text("".join(lines))
    began = trainer.step
    with stop_signals() as signals, closing(trainer.batches()) as batches:
        while trainer.step < preset.train.steps:
            start = time.time()
            batch, reasons = next(batches)
            trainer.bad.update(reason for reason, _ in reasons)
            metrics = trainer.train_step(batch, stop=signals)
            seen = metrics["bad"] + (trainer.step - began) * preset.train.batch
            if seen >= 100 and metrics["bad"] > max_bad * seen:
                raise ValueError(f"{metrics['bad']} of {seen} examples are bad (--max-bad): {counted(trainer.bad)}")
            trainer.seconds += time.time() - start
            if trainer.rank == 0:
                log_step(trainer, out, metrics, time.time() - start)
            if metrics["stop"] or trainer.step % save_every == 0 or trainer.step == preset.train.steps:
                save(trainer, out, made or {})
            if metrics["stop"] and trainer.step < preset.train.steps:
                sys.exit(f"stopped after step {trainer.step}; --resume continues" if trainer.rank == 0 else 1)
    return trainer


@contextmanager
def stop_signals():
    """Inside, no signal interrupts a step, neither Ctrl-C nor SIGTERM, which clusters send before they end a job.

    Yields a list that is empty until one of them arrives. A second Ctrl-C leaves at once, without saving.
    """
    caught = []

    def handler(number, frame):
        caught.append(number)
        # Under torchrun one Ctrl-C arrives twice: from the terminal, and again from torchrun, which passes it on.
        if not dist.is_initialized():
            signal.signal(signal.SIGINT, signal.default_int_handler)
    before = signal.signal(signal.SIGINT, handler), signal.signal(signal.SIGTERM, handler)
    try:
        yield caught
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])


# --- Checkpoints -------------------------------------------------------------------------------------

# A weight file (03) is for drawing: the averaged weights, in 16 bits. A checkpoint is for continuing: weights and their
# average in full precision, the optimiser's memory and the step. It is one dictionary in one file, whole even if the
# weights are divided among processes: torch gathers them in one process, under the names of the layers, and divides
# them again for any other number of processes. It says nothing of data or random numbers: both follow from the step.
WHOLE = dcp.StateDictOptions(full_state_dict=True, cpu_offload=True)


def run_config(trainer):
    """Everything that decides what a run learns, as one flat dictionary. A run may only be continued with the same
    values: with others, its weights would be the result of no set of options that anybody could name."""
    preset, data = trainer.preset, trainer.data
    parts = asdict(preset.network) | {"diffusion": asdict(preset.diffusion)} | asdict(preset.train)
    own = {"number of examples": len(data), "random_crop": data.random_crop} if isinstance(data, OwnImages) else {}
    return parts | own | {"world": trainer.world, "seed": trainer.seed, "tokenizer": trainer.words.merges}


def save(trainer, out, made):
    """Write a checkpoint, the averaged weights, samples.png and loss.png, and remove all but the last two checkpoints.

    Nothing is written while steps are being skipped: if the weights turn out to be spoiled, those from before must
    still be there. A full disk does not end the run: there is a message, and another attempt next time.
    """
    if trainer.nonfinite:
        return log_once(f"not saved at step {trainer.step}, whose loss is not finite")
    # Divided weights are gathered, and drawn with, by all processes together; otherwise the first one draws alone. The
    # results are the first one's, which writes them.
    model, optimizer = dcp.get_state_dict(trainer.model, trainer.optimizer, options=WHOLE)
    state = {"model": model, "optimizer": optimizer, "ema": dcp.get_model_state_dict(trainer.ema, options=WHOLE),
             "progress": (trainer.step, trainer.seconds, trainer.skipped_steps), "run": run_config(trainer)}
    preset, words = trainer.preset, trainer.words
    drawn = draw_samples(trainer) if preset.kind != "clip" and (trainer.compute.shard or trainer.rank == 0) else None
    if trainer.rank:
        return
    made = made | {"steps": trainer.step, "seed": trainer.seed, "minutes": round(trainer.seconds / 60, 1)}
    with torch.device("meta"):      # no memory for weights that are replaced at once
        average = build_network(preset.network)
    average.load_state_dict(state["ema"], assign=True)
    try:
        with unet.atomic_write(out / f"checkpoint-{trainer.step:07d}.pt") as partial_file:
            torch.save(state, partial_file)
        unet.save_weights(out / f"{preset.kind}.pt", average, size=preset.size, diffusion=asdict(preset.diffusion),
                          tokenizer=words.merges, vocabulary="clip" * isinstance(words, tokenizer.CLIPTokenizer),
                          world=trainer.world, train=asdict(preset.train), made=made)
        if drawn:
            drawn.save(out / "samples.png")
        save_curve(read_log(out / "log.jsonl"), out / "loss.png")
        for old in [*checkpoints(out)[:-2], *out.glob("checkpoint-*.tmp")]:     # .tmp: a killed process left it
            old.unlink()
    except OSError as e:
        log_once(f"not saved at step {trainer.step}: {e}; the run continues, and what was saved before stays")


def load_checkpoint(trainer, out):
    """Continue from a run's newest checkpoint, whatever number of processes saved it.

    Of what `run_config` lists, only the number of steps may differ: that makes a run longer or shorter.
    Raises ValueError if there is no checkpoint, if it is damaged, or if it is another run's.
    """
    path, mine = ([None] + checkpoints(out))[-1], run_config(trainer)
    if path is None:
        raise ValueError(f"no checkpoint in {out}; leave --resume out to begin a run")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        other = [name for name in mine if saved["run"].get(name) != mine[name]]
    except Exception as e:   # torch.load fails in many ways on bytes that are not its own
        raise ValueError(f"{path} is damaged ({type(e).__name__}); remove it: --resume takes the one before") from None
    if other == ["steps"]:
        log_once(f"{saved['run']['steps']} steps become {mine['steps']}: a rate that decays follows the new number")
    elif other:
        raise ValueError(f"{path} is of a run with another {other[-1]}; give the same options, or another --out")
    dcp.set_state_dict(trainer.model, trainer.optimizer, model_state_dict=saved["model"],
                       optim_state_dict=saved["optimizer"], options=WHOLE)
    dcp.set_model_state_dict(trainer.ema, saved["ema"], options=WHOLE)
    trainer.step, trainer.seconds, trainer.skipped_steps = saved["progress"]


def checkpoints(out):
    """The checkpoints in a run's folder, the newest last."""
    return sorted(Path(out).glob("checkpoint-*[0-9].pt"))


# --- Many processes ----------------------------------------------------------------------------------

# torchrun starts the same program several times. Each process computes its share of a batch; in `backward` their
# gradients are averaged, and all take the same step. With DDP each process keeps a whole copy of the model, with FSDP2
# a piece of it, for models that do not fit.
#
# Two savings of memory work block by block: FSDP2 gathers one block's weights at a time, and activation checkpointing
# keeps only what goes into a block and computes the rest again when `backward` needs it. A smaller unit would mean more
# messages, a larger one more memory at once. BLOCKS are those units.
BLOCKS = unet.ResBlock, unet.TextAttention, transformer.Block


def rank_and_world_size():
    """Which of the processes this is, and how many there are: (0, 1) unless torchrun started several."""
    return (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)


def join_processes(device):
    """Under torchrun, join the other processes; each takes a GPU of its own. -> the device"""
    if "RANK" in os.environ:
        if device == "cuda":
            device = f"cuda:{os.environ['LOCAL_RANK']}"
            torch.cuda.set_device(device)
        dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
    return device


def parallelize(model, ema, compute):
    """Prepare a model and its average for the processes. -> what training calls: the model, or DDP around it

    With FSDP2 each process keeps a piece of every weight, and of its gradient, average and optimiser state. A block's
    weights are gathered when its turn comes and dropped after it, and of the averaged gradients each process keeps only
    its piece. So eight GPUs hold one copy of the paper's model together, instead of eight.
    """
    if compute.activation_checkpointing:
        for part in model.modules():
            if isinstance(part, BLOCKS):
                part.forward = partial(checkpoint, part.forward, use_reentrant=False)
    if compute.shard:
        from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
        for part in [*model.modules(), *ema.modules()]:
            if isinstance(part, BLOCKS):
                fully_shard(part)
            # Weights are gathered for `forward` alone, unless FSDP2 is told of other methods that use them.
            if isinstance(part, unet.TextAttention):
                register_fsdp_forward_method(part, "project_text")     # after fully_shard, or it has no effect
        fully_shard(model)
        # What is outside of blocks stays gathered until `backward`, by default; drawing has none, so it must be told.
        fully_shard(ema, reshard_after_forward=True)
        if isinstance(ema, unet.UNet):
            register_fsdp_forward_method(ema, "prepare")       # samplers call it once, before `forward`
    elif dist.is_initialized():
        return nn.parallel.DistributedDataParallel(model, gradient_as_bucket_view=True)
    return model


def all_gather(own):
    """Rows [n, …] of every process, together [B, …] in the batch's order, with a gradient for one's own."""
    if not dist.is_initialized():
        return own
    # Each process computes the whole loss, so from each a gradient arrives here for these rows. They are summed, which
    # counts each row once for every process, and the averaging of DDP or FSDP2 divides by that number again.
    # Example i of process r has place i·ranks + r in the batch, so the processes are interleaved: [n, ranks, …].
    return torch.stack(torch.distributed.nn.functional.all_gather(own), dim=1).flatten(0, 1)


# --- What you see ------------------------------------------------------------------------------------

# The loss is an average over all timesteps, and hardly moves any more when images still become better. So a run shows
# drawings too: in them colours come out right first, then shapes, and last which thing is where.
@torch.no_grad()
def draw_samples(trainer):
    """The first sixteen captions, drawn with the averaged weights and always the same noise, so that what differs from
    the last time is the model. -> a PIL image, in which each real image (for inpainting, what is known of it) is
    followed by its drawing"""
    preset, n, g = trainer.preset, 16, torch.Generator().manual_seed(0)
    images, captions, _, _ = zip(*(trainer.data[i] for i in range(n)))
    rngs = [tokenizer.seeded_rng("samples", i) for i in range(n)]
    known, cond = trainer.conditioning(torch.stack(images), captions, rngs)
    cond = {name: value.to(trainer.device) for name, value in cond.items()}
    denoiser, large = upsample.denoiser_of(trainer.ema, preset.network, preset.diffusion), "upsampler" in preset.kind
    process = diffusion.Diffusion.from_config(preset.diffusion, "fast27" if large else "25")
    denoiser = denoiser if large else guidance.classifier_free(denoiser, 3)
    drawn = process.ddim_sample(denoiser, diffusion.gaussian(known, g).to(trainer.device), **cond)
    known = known * cond["inpaint_mask"].cpu() if "inpaint" in preset.kind else known
    pairs = torch.stack([known, drawn.cpu()], 1).flatten(0, 1)
    return diffusion.image_grid(pairs, columns=8, zoom=max(1, 128 // preset.size))


def save_curve(lines, path):
    """The loss of every step in the log, in grey, and its running mean.

    A batch's loss depends much on chance, on its images and its noise, so single values jump about; look at the mean. A
    curve that goes flat does not mean that nothing is learned: images go on improving for a long time.
    """
    from matplotlib.figure import Figure        # here, so that importing this file stays quick
    finite = [(line["step"], line["loss"]) for line in lines if line["loss"] is not None]
    if not finite:
        return
    steps, losses = np.array(finite).T
    window = max(1, min(25, len(losses) // 4))
    figure = Figure(figsize=(7, 4), layout="constrained")
    ax = figure.add_subplot(xlabel="step", ylabel="loss", yscale="log", title=f"loss, and the mean of {window} batches")
    ax.plot(steps, losses, "0.8", steps[window - 1:], np.convolve(losses, np.ones(window) / window, "valid"), "C0")
    figure.savefig(path, dpi=110)


def log_step(trainer, out, metrics, seconds):
    """A line in log.jsonl and the line of progress: one for every step, or in a long run for one step in many, so that
    the log stays below 10,000 lines."""
    step, steps, live = trainer.step, trainer.preset.train.steps, sys.stdout.isatty()
    metrics = {"step": step, **{name: value if math.isfinite(value) else None for name, value in metrics.items()},
               "lr": trainer.optimizer.param_groups[-1]["lr"], "skipped": trainer.skipped_steps,
               "images_per_second": round(trainer.preset.train.batch / seconds, 1)}
    last = metrics.pop("stop") or step == steps
    if last or step % max(1, steps // 5000) == 0:
        with suppress(OSError), open(out / "log.jsonl", "a", encoding="utf-8") as file:    # a full disk: `save` says so
            file.write(json.dumps(metrics) + "\n")
    if live or last or step % max(1, steps // 200) == 0:
        told = "".join(f"  {name} {metrics[name]}" for name in ("loss", "images_per_second", "skipped", "bad"))
        left = (steps - step) * trainer.seconds / step / 60
        print(f"{chr(13) * live}step {step}/{steps}{told}  {left:.0f} minutes left", end="\n" * (last or not live))


def read_log(path):
    """The lines of a log.jsonl as dictionaries; [] if there is none. Lines that a power cut or a full disk has left
    incomplete are skipped."""
    lines = path.read_text().splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}") and line.rfind("{") == 0]


def log_once(text):
    """Print a message once, from the first process only, and not in the middle of the line of progress."""
    if rank_and_world_size()[0] == 0:
        print(("\n" if sys.stdout.isatty() else "") + text, file=sys.stderr, flush=True)


# --- The command line --------------------------------------------------------------------------------

# The fields of TrainConfig and ComputeConfig become options by themselves (`add_options`). A value is looked for on the
# command line first, then in FULL_WORLD, then in the preset. So an option that was not given must not bring a default
# of its own: argparse.SUPPRESS leaves it out, and `given` collects the others.
def path_name(text):
    """A type for argparse: a path, in which ~ is the home folder."""
    return Path(text).expanduser()


def add_options(parser, config):
    """An option for each field of a configuration. One that is not given is not among the arguments."""
    for item in fields(config):
        kind, name = type(item.default), item.name.replace("_", "-")
        how = {bool: {"action": argparse.BooleanOptionalAction}, tuple: {"nargs": "*"}}.get(kind, {"type": kind})
        parser.add_argument(f"--{name}", default=argparse.SUPPRESS, **how, **item.metadata)


def given(args, config):
    """The fields of a configuration that the command line gives."""
    return {item.name: getattr(args, item.name) for item in fields(config) if hasattr(args, item.name)}


def arguments(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(description="Train a model.", allow_abbrev=False)
    add = parser.add_argument
    add("kind", nargs="?", default="base", choices=KINDS)
    add("--preset", choices=tuple(PRESETS), default="tiny", help="how large (default: tiny)")
    add("--world", choices=("single", "full"), help="single things, or pairs and counts too (default: --init-from's)")
    add("--seed", type=int, default=0)
    add("--out", type=path_name, help="the run's folder (default: outputs/train-KIND)")
    add("--init-from", type=path_name, help="a weight file to begin with (tiny inpaint: those in lessons/weights)")
    add("--resume", action="store_true", help="continue from the newest checkpoint in that folder")
    add("--save-every", type=int, help="steps between checkpoints (default: a tenth of the run, 100 to 2,000)")
    add("--data", nargs="+", help="images of your own: a folder of NAME.jpg, NAME.txt or captions.csv, or tar files")
    add("--random-crop", action="store_true", help="of your own images a random square, not the middle one")
    add("--max-bad", type=float, default=0.05, help="stop when a larger fraction of them is of no use (0.05)")
    add("--vocab", type=path_name, help="GPT-2's merge list, for clip CLIP's (else trained; not with --init-from)")
    add_options(parser.add_argument_group("training (default: the preset's)"), TrainConfig)
    add_options(parser.add_argument_group("computing: changes nothing that is learned but for rounding"), ComputeConfig)
    return parser.parse_args(argv)


def chosen_words(args, init, data, room):
    """The tokenizer: init's, or the one of --vocab, or one trained on the captions of --data, in this order. None
    stands for the little world's. room is the number of tokens that the network has vectors for."""
    words = tokenizer.load_tokenizer(init) if init else None
    if args.vocab and not init:       # weights that are to be continued know one vocabulary, their own
        read = tokenizer.CLIPTokenizer.from_file if args.kind == "clip" else tokenizer.BPETokenizer.from_gpt2
        words = read(args.vocab)
    elif data and not init:
        captions = (read_caption(*data.example(i)[2:]) for i in range(min(len(data), 10_000)))    # no image is read
        words = tokenizer.BPETokenizer.train(captions, room)
    if words and words.vocab_size > room:
        raise ValueError(f"the vocabulary has {words.vocab_size:,} tokens, the network room for {room:,}")
    return words


def command(args):
    """Do what the command line asks for: find the preset, the data and the tokenizer, and train."""
    preset, data = PRESETS[args.preset][args.kind], None
    out = args.out or OUTPUTS / "-".join(["train"] + [args.preset] * (args.preset != "tiny") + [args.kind])
    if args.init_from is None and args.preset == "tiny" and "inpaint" in args.kind:
        args.init_from = unet.WEIGHTS / ("upsampler.pt" if "upsampler" in args.kind else "base.pt")
    init = unet.read_weights(args.init_from) if args.init_from else {}
    world = args.world or init.get("world") or "single"
    full = world == "full" and args.preset in ("tiny", "small") and not args.data
    changes = (FULL_WORLD.get(args.kind, {}) if full else {}) | given(args, TrainConfig)
    preset = replace(preset, train=replace(preset.train, **changes))
    compute = ComputeConfig(**{"device": "cuda" if torch.cuda.is_available() else "cpu"} | given(args, ComputeConfig))
    compute = replace(compute, device=join_processes(compute.device))
    if args.data:
        data = OwnImages(args.data, preset.size, seed=args.seed, index=out / "index", random_crop=args.random_crop)
        log_once(f"{len(data)} examples; left out: {counted(data.left_out) or 'none'}")
    train(preset, out, resume=args.resume, save_every=args.save_every or min(2000, max(100, preset.train.steps // 10)),
          max_bad=args.max_bad, made={"command": shlex.join(["python", "08_train.py", *sys.argv[1:]])}, data=data,
          world=world, words=chosen_words(args, init, data, preset.network.text.vocab_size), seed=args.seed,
          compute=compute, init_from=args.init_from)
    log_once(f"wrote {out / args.kind}.pt, and next to it the loss, the log and, but for a CLIP, samples.png")


def run(command, args, name):
    """command(args) -> exit status. An error that the user can do something about ends in one line, without a
    traceback. 09 and the lessons' scripts leave through here too."""
    sys.stdout.reconfigure(errors="replace")      # a console that lacks a character shows a ? instead
    sys.stderr.reconfigure(errors="replace")
    try:
        command(args)
        return 0
    except (KeyboardInterrupt, OSError, ValueError, MemoryError, RuntimeError, AssertionError) as e:
        # Errors of these two kinds are ours, and keep their traceback, unless torch speaks of memory, a device, what a
        # processor can do, or a compiler, which only the user can change.
        yours = any(word in str(e) for word in ("memory", "device", "CUDA", "support")) or getattr(args, "compile", "")
        if isinstance(e, (RuntimeError, AssertionError)) and not yours:
            raise
        error = str(e).strip().partition("\n")[0] or {KeyboardInterrupt: "stopped"}.get(type(e), "out of memory")
        error += "; a smaller --batch needs less" * ("memory" in error)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()
    who = f"{name}, process {os.environ['RANK']}" if "RANK" in os.environ else name
    print(f"{who}: {error}", file=sys.stderr, flush=True)
    return 130 if error == "stopped" else 2


def main(argv=None):
    """One model, trained as the command line says."""
    return run(command, arguments(argv), "08_train.py")


if __name__ == "__main__":
    sys.exit(main())
