"""What all experiments share: a command line, partial results that survive an interruption, and figures that are drawn
from a table alone.

An experiment is two functions, and `run` puts them together:

    measure(args, partial) -> the table, a dictionary that JSON can hold      minutes
    draw(table) -> a matplotlib Figure, from nothing but the table            a second

The table is written next to the figure. With --redraw the first function is skipped, so the look of a figure can be
changed without measuring again, and a number can be cited without reading it off a curve. A table holds numbers as
*cells*: {"value", "low", "high", "n"}, with a 95% interval; and small images as PNG files in base64.
"""
import argparse
import base64
import hashlib
import io
import json
import re
import shlex
import sys
import textwrap
import time
from copy import deepcopy
from functools import partial
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
unet, diffusion, upsample, train, sample, judge, measures = map(import_module, (
    "03_unet", "04_diffusion", "07_upsample", "08_train", "09_sample", "lessons.10_judge", "lessons.11_measures"))

OUTPUTS = ROOT / "outputs"


# --- Running -----------------------------------------------------------------------------------------

def parser(doc, name, *, n=None, seeds=None):
    """An ArgumentParser with the options that all experiments have; n and seeds are defaults, None: no such option."""
    p = argparse.ArgumentParser(description=doc.split("\n\n")[0], allow_abbrev=False, prog=f"{name}.py")
    p.add_argument("--out", type=train.path_name, default=OUTPUTS / f"{name}.png",
                   help=f"the figure; its table is written next to it, as .json (default: outputs/{name}.png)")
    p.add_argument("--redraw", action="store_true", help="draw the figure again from its table, without measuring")
    p.add_argument("--weights", type=train.path_name, default=unet.WEIGHTS, help="a folder (default: lessons/weights)")
    p.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32",
                   help="to draw in: bfloat16 is twice as fast on some processors (default: float32)")
    if n:
        p.add_argument("--n", type=int, default=n, help=f"how many captions a seed (default: {n})")
    if seeds:
        p.add_argument("--seeds", type=int, nargs="+", default=seeds, help="of captions and noise")
    return p


def weights(args, **which):
    """The models (09) that the command line names."""
    return sample.Weights(args.weights, dtype=getattr(torch, args.dtype), **which)


def run(parser, measure, draw, argv=None):
    """An experiment from its command line. -> exit status: 0, or 2 for what you can mend, with one line on stderr"""
    words = sys.argv[1:] if argv is None else list(map(str, argv))
    name = parser.prog
    command = partial(complete, measure=measure, draw=draw,
                      command=shlex.join(["python", f"lessons/experiments/{name}", *words]))
    return train.run(command, parser.parse_args(words), name)


def complete(args, *, measure, draw, command):
    """Measure, unless only the figure is wanted; write the table; draw the figure from it."""
    path = args.out.with_suffix(".json")
    if not args.redraw:
        args.out.parent.mkdir(parents=True, exist_ok=True)      # what cannot be written is refused now
        start, results = time.time(), Partial(args)
        table = measure(args, results)
        made = {"command": command, "minutes": round((time.time() - start) / 60, 1), "torch": str(torch.__version__)}
        write(path, {"made": made} | table)
        results.path.unlink(missing_ok=True)
    elif not path.exists():
        raise ValueError(f"there is no table {path}; leave --redraw out to measure one")
    draw(json.loads(path.read_text(encoding="utf-8"))).savefig(args.out, dpi=100, bbox_inches="tight")
    print(f"wrote {args.out} and its table {path.name}")


def write(path, table):
    """A table as JSON, whole or not at all; each of its innermost lists and dictionaries, a cell say, is one line."""
    text = json.dumps(table, ensure_ascii=False, indent=1)
    text = re.sub(r"[{\[][^{}\[\]]*[}\]]", lambda inner: " ".join(inner[0].split()), text)
    with unet.atomic_write(path) as file:
        file.write_text(text + "\n", encoding="utf-8")


class Partial:
    """Results of an experiment so far: `partial(key, compute)` computes each once, also if the run is interrupted.

    They are kept in outputs/experiments/, in a file whose name depends on all options and on the weights: a run with
    other ones begins anew. The file is removed when the experiment is complete.
    """

    def __init__(self, args):
        options = {name: str(value) for name, value in vars(args).items() if name not in ("out", "redraw")}
        files = [(path.name, path.stat().st_mtime_ns) for path in sorted(args.weights.glob("*.pt"))]
        key = hashlib.sha256(json.dumps([options, files]).encode()).hexdigest()[:12]
        self.path = OUTPUTS / "experiments" / f"{args.out.stem}-{key}.json"
        self.results = json.loads(self.path.read_text(encoding="utf-8")) if self.path.exists() else {}
        if self.results:
            print(f"continuing: {len(self.results)} results are in {self.path} already")

    def __call__(self, key, compute):
        """compute(), or what it returned for this key before."""
        if key not in self.results:
            self.results[key] = compute()
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write(self.path, self.results)
        return self.results[key]


# --- Cells -------------------------------------------------------------------------------------------

def cell(values, *, rate=False):
    """Independent values [n], or bools, as a number with a 95% interval (10); None for no values at all.

    Values that are not numbers are left out.
    """
    rate, values = rate or values.dtype == torch.bool, values.float()
    values = values[~values.isnan()]
    if not len(values):
        return None
    numbers = judge.mean_interval(values, rate=rate)
    return dict(zip(("value", "low", "high"), (round(x, 5) if x == x else None for x in numbers)), n=len(values))


def interval(value, low, high, n):
    """A number with its 95% interval, as `measures.half_sampling` and `bootstrap` (11) return them, as a cell."""
    return dict(zip(("value", "low", "high"), (round(x, 5) for x in (value, low, high))), n=n)


def clouds(real, generated):
    """Features of real and of generated images, [n, d] and [m, d] -> {"FID", "precision", "recall"}: cells."""
    numbers = measures.half_sampling(lambda *pair: (measures.fid(*pair), *measures.precision_recall(*pair)),
                                     real, generated, generator=measures.seeded())
    return {name: interval(*one, len(generated)) for name, *one in zip(("FID", "precision", "recall"), *numbers)}


def percent(rate):
    """A cell of a rate as text: "62 (49–73)"."""
    if rate is None:
        return "none"
    return "{:.0f} ({:.0f}–{:.0f})".format(*(100 * rate[name] for name in ("value", "low", "high")))


def columns(cells, *names):
    """The values of a list of cells, their lows and highs: three lists; nan for a cell that is None."""
    return [[one[name] if one and one[name] is not None else float("nan") for one in cells]
            for name in names or ("value", "low", "high")]


def error_bars(cells):
    """The values of a list of cells, [n], and how far their intervals reach below and above, [2, n]: for matplotlib."""
    values, lows, highs = map(np.array, columns(cells))
    return values, np.array([values - lows, highs - values])


def bars(ax, k, of, cells, **looks):
    """The k-th bar in each of len(cells) groups of so many bars, with its interval."""
    (values, errors), step = error_bars(cells), 0.81 / of
    ax.bar(np.arange(len(cells)) + step * (k - (of - 1) / 2), values, step - 0.02, yerr=errors,
           **{"capsize": 3} | looks)


# --- Trainings ---------------------------------------------------------------------------------------

PARTS = "model", "ema", "optimizer"


def state_of(trainer):
    """All that a Trainer (08) needs to go on from here; `restore` reads it."""
    return {part: getattr(trainer, part).state_dict() for part in PARTS} | {"progress": (trainer.step, trainer.seconds)}


def restore(trainer, state):
    """Go on from what `state_of` returned for a Trainer of the same sizes."""
    for part in PARTS:
        getattr(trainer, part).load_state_dict(state[part])
    trainer.step, trainer.seconds = state["progress"]


def model_of(trainer, dtype=torch.float32):
    """The Model (09) of a Trainer's averaged weights."""
    preset, network = trainer.preset, sample.to_dtype(deepcopy(trainer.ema), dtype)
    return sample.Model(preset.kind, upsample.denoiser_of(network, preset.network, preset.diffusion), preset.network,
                        preset.diffusion, preset.size, trainer.words, "cpu", trainer.world, False)


def flop(function):
    """The FLOP of all matrix products and convolutions of function()."""
    with FlopCounterMode(display=False) as counter:
        function()
    return counter.get_total_flops()


# --- Images ------------------------------------------------------------------------------------------

def to_text(image):
    """An image [3, H, W], uint8 or float in [-1, 1], as a PNG file in base64."""
    file = io.BytesIO()
    diffusion.image_grid(image[None]).save(file, format="PNG", optimize=True)
    return base64.b64encode(file.getvalue()).decode()


def from_text(text):
    """The PIL image that `to_text` wrote."""
    return Image.open(io.BytesIO(base64.b64decode(text)))


def show(ax, image, *, title="", below="", width=26, size=11):
    """An image, from `to_text` or PIL, in a matplotlib panel, with its pixels as squares; None: an empty panel."""
    if image is None:
        ax.axis("off")
        return
    ax.imshow(from_text(image) if isinstance(image, str) else image, interpolation="nearest")
    ax.set(xticks=[], yticks=[])
    ax.set_title(textwrap.fill(title, width), size=size)
    ax.set_xlabel(textwrap.fill(below, width), size=size)
