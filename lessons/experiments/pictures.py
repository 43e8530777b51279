"""Are the pictures good to look at? What the judge finds in them, and four things that the eye sees at once.

  captions   what is drawn at the base model's size shows all that the caption says; at the upsampler's, all its nouns;
             and how far colours are off, on [0, 1], when the large image is reduced again
  flat       backgrounds: their standard deviation, and how far their mean is off the colour that the caption names
  holes      holes in real images that hold only background: deviation, and how far off the image's ground
  turns      a thing is drawn next to a real one, into the other half: how far off the ground is around the new thing,
             and the median jump across the edge of the hole

All but `captions` are in levels of 255, at both sizes.

    python lessons/experiments/pictures.py --dtype bfloat16                            25 minutes on one core
    python lessons/experiments/pictures.py --redraw --out lessons/figures/pictures.png

Found: nearly every single thing and count is drawn right, and nine pairs in ten. At 64 pixels grounds are flat to less
than a level, and off by about two.
"""
import random
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, inpainting, tokenizer, diffusion, upsample, sample, judge = map(import_module, (
    "lessons.experiments.common", "lessons.experiments.inpainting", "01_tokenizer", "04_diffusion", "07_upsample",
    "09_sample", "lessons.10_judge"))


# --- Images and holes --------------------------------------------------------------------------------

def small_things(n, seed):
    """n scenes of one small thing each, over all backgrounds in turn."""
    rng = random.Random(f"small things {seed}")
    for i in range(n):
        color, noun = rng.choice(tokenizer.EASY_PAIRS)
        yield tokenizer.Scene.parse(f"a small {color} {noun} on a {tokenizer.BACKGROUNDS[i % 4]} background")


# The left, right, upper and lower half of an image, as --box says them
HALVES = "0,0,0.5,1", "0.5,0,1,1", "0,0,1,0.5", "0,0.5,1,1"


def hole_of(half, side):
    """One of HALVES as a hole, a bool tensor [side, side]."""
    return torch.from_numpy(np.asarray(sample.box_mask(half).resize((side, side), Image.NEAREST)) > 0)


def emptier_half(image):
    """The half of an image [3, side, side] that has least that is unlike the ground: its place in HALVES."""
    ink = (image != image[:, :1, :1]).any(0)
    return min(range(4), key=lambda at: int(ink[hole_of(HALVES[at], image.shape[-1])].sum()))


def fill(weights, image, half, prompt, seed):
    """The image with this half of it drawn anew, at both sizes: uint8 [3, S, S], and [3, 4S, 4S]."""
    small, stages = weights.header("size"), {}
    known = sample.InpaintInput(Image.fromarray(image.permute(1, 2, 0).numpy()), sample.box_mask(half), small)
    large = sample.generate(prompt, weights, known=known, seed=seed,
                            callback=lambda stage, x0, done, total: stages.__setitem__(stage, x0))
    return diffusion.to_bytes(stages["base"][0]), known.composite(large[0])


def ground_error(drawn, image, hole):
    """(deviation, mean off, edge) of the ground within a hole; of a real image all three are 0.

    drawn, image  uint8 [3, S, S]; the image's first pixel is background
    The ground is what is within 40 levels of it, but for the pixels next to anything else: these are mixtures.
    """
    ground, near = image[:, :1, :1].double(), image.shape[-1] // 16
    other = ((drawn - ground).abs().amax(0) >= 40).float()
    inside = hole & (F.max_pool2d(other[None], 2 * near + 1, 1, near)[0] == 0)
    pixels = drawn.double()[:, inside]
    mask = (~hole)[None, None].float()
    edge = inpainting.edges(drawn[None] / 127.5 - 1, image[None] / 127.5 - 1, mask)
    if pixels.shape[1] < 2:                     # an untrained model draws no ground
        return float("nan"), float("nan"), edge.item()
    return pixels.std(1).mean().item(), (pixels.mean(1) - ground[:, 0, 0]).abs().max().item(), edge.item()


# --- Measuring ---------------------------------------------------------------------------------------

def captions(base, upsampler, args, partial):
    """Rates of captions entirely right, and of nouns right at the large size, by kind; how far colours are off."""
    readers, found = {m.size: judge.judge_for(m.size, args.weights) for m in (base, upsampler)}, {}
    options = replace(sample.default_options(base), **({"scale": args.scale} if args.scale else {}))
    for kind in judge.KINDS:
        def one():
            scenes = judge.eval_captions(kind, args.n, args.seed)
            small = judge.draw(base, scenes, options=options, seed=args.seed)
            large = judge.draw(None, scenes, upsampler=upsampler, low_res=small, seed=args.seed)
            seen = (judge.scores(readers[x.shape[-1]], x, scenes)[asked]
                    for x, asked in ((small, "all"), (large, "noun")))
            return dict(zip(("right", "nouns", "conserved"), map(common.cell, (
                *map(torch.from_numpy, seen), upsample.color_error(large, upsample.round_to_bytes(small))))))
        found[kind] = partial(kind, one)
        print(f"{kind:<12} entirely right {common.percent(found[kind]['right'])}, nouns at {upsampler.size} pixels"
              f" {common.percent(found[kind]['nouns'])}, colours off by {found[kind]['conserved']['value']:.4f}",
              flush=True)
    return found


def flatness(base, upsampler, args):
    """{background: {"deviation", "off"}}: cells over 8 images each."""
    found = {}
    for name in tokenizer.BACKGROUNDS:
        scenes = [tokenizer.Scene.parse(f"a small {color} {noun} on a {name} background")
                  for color, noun in tokenizer.EASY_PAIRS[::11]][:args.n]
        large = judge.draw(base, scenes, upsampler=upsampler, seed=args.seed)
        found[name] = dict(zip(("deviation", "off"), map(common.cell, judge.background_error(large, name))))
        print(f"{name:<12} deviation {found[name]['deviation']['value']:.2f}, off {found[name]['off']['value']:.2f}",
              flush=True)
    return found


def holes(weights, args):
    """{"empty": …, "turns": …}: {"small", "large"}: {"deviation", "off", "edge"}, cells over args.turns images."""
    rows = {kind: {"small": [], "large": []} for kind in ("empty", "turns")}
    large = weights.header("size") * upsample.FACTOR
    for i, scene in enumerate(small_things(args.turns, args.seed)):
        image = diffusion.to_bytes(diffusion.downsample(judge.real_images([scene], i, max(64, large)), large)[0])
        at = emptier_half(image)
        rng, thing = random.Random(f"turn {args.seed} {i}"), scene.caption().partition(" on ")[0]
        color, noun = rng.choice(tokenizer.EASY_PAIRS)
        relation = ("to the left of", "to the right of", "above", "below")[at]
        prompts = {"empty": scene.caption(), "turns": f"a small {color} {noun} {relation} {thing}"
                   f" on a {scene.background} background"}
        for kind, prompt in prompts.items():
            images = fill(weights, image, HALVES[at], prompt, i)
            for size, drawn in zip(("small", "large"), images):
                side = drawn.shape[-1]
                real = diffusion.to_bytes(diffusion.downsample(image[None], side)[0])
                rows[kind][size].append(ground_error(drawn, real, hole_of(HALVES[at], side)))
    found = {kind: {size: dict(zip(("deviation", "off", "edge"), map(common.cell, torch.tensor(values).T)))
                    for size, values in sizes.items()} for kind, sizes in rows.items()}
    for kind, sizes in found.items():
        for size, cells in sizes.items():
            print(f"{kind}, {size}: " + ", ".join(f"{name} {one['value']:.2f}" for name, one in cells.items() if one))
    return found


def measure(args, partial):
    """Prints each line as soon as it is known. -> the table"""
    plain, filling = (common.weights(args, inpaints=inpaints) for inpaints in (False, True))
    base, upsampler = plain.load("base"), plain.load("upsampler")
    return {"n": args.n, "seed": args.seed, "captions": captions(base, upsampler, args, partial),
            "flat": partial("flat", lambda: flatness(base, upsampler, args)),
            "holes": partial("holes", lambda: holes(filling, args))}


# --- The figure --------------------------------------------------------------------------------------

HOLES = {"empty": "hole left empty", "turns": "thing drawn in"}


def draw(table):
    """Left, captions; right, what the eye sees, both with 95% intervals."""
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2)
    for k, (name, label) in enumerate((("right", "entirely right, small"), ("nouns", "nouns right, large"))):
        cells = [one[name] for one in table["captions"].values()]
        common.bars(left, k, 3, cells, label=label)
    left.set_xticks(range(len(table["captions"])), table["captions"], rotation=20)
    left.set(title="One pair in ten is wrong, of the rest at most one in fifty", ylim=(0.5, 1.01))
    left.yaxis.set_major_formatter("{x:.0%}")
    rows = table["flat"] | {f"{HOLES[kind]}, {size}": cells for kind, sizes in table["holes"].items()
                            for size, cells in sizes.items()}
    for k, (name, label) in enumerate((("deviation", "standard deviation"), ("off", "mean off"), ("edge", "edge"))):
        common.bars(right, k, 3, [cells.get(name) for cells in rows.values()], label=label)
    right.set_xticks(range(len(rows)), rows, rotation=30, ha="right")
    right.set(title="Grounds (the truth is 0) are flat to about a level, and off by two", ylabel="levels of 255")
    for ax in (left, right):
        ax.grid(axis="y", alpha=0.3)
        ax.legend(loc="lower right" if ax is left else "best", framealpha=1)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "pictures", n=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--scale", type=float, help="of guidance (default: the base model's usual one)")
    parser.add_argument("--turns", type=int, default=100, help="images with holes (default: 100)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
