r"""Who enlarges best? GLIDE's upsampler in miniature, a regressor of the same cost, and why a regressor blurs.

Real images of the little world, single things, pairs and counts, are reduced to 16 pixels, rounded to bytes, and
enlarged to 64 again in five ways:

  bicubic           interpolation, which has learned nothing
  regressor, |e|    a small EDSR [Lim et al. 2017, arXiv 1707.02921] that minimises the absolute error, as EDSR does
  regressor, e²     the same network, which minimises the squared error
  diffusion         the tiny upsampler (07) in its usual 27 steps
  diffusion, long   the same network as it comes with the course, lessons/weights/upsampler.pt, trained far longer

The three networks in the middle are trained by 08 alike, as the tiny upsampler's preset says: on the very same crops in
the same order, with the same optimiser, schedule and average, and about the same FLOP for each. Only the learning rate
is each one's own. A regressor does not read captions, which an upsampler hardly needs (trials.py).

Measured are, against the true images, PSNR (07), SSIM [Wang et al. 2004, IEEE TIP 13 (4)] and sharpness, the energy of
the gradient; against *other* real images FID, precision and recall (11, in the judge's features); how often the judge
reads every noun right; and the time. Intervals are over images and say nothing of another training's luck.

Why does a regressor blur? Many sharp images fit one small image, and what has the least squared error to all of them is
their mean (for the absolute error, each pixel's median). So the mean of several draws of a diffusion model should come
closer to the truth than each of them, and look as the regressor's answer does. If draws were perfect, a draw would be
as far from the mean as the truth is, with twice the mean's squared error: 3 dB [Blau & Michaeli 2018, arXiv
1711.06077].

    python lessons/experiments/upsamplers.py --dtype bfloat16                         38 minutes on one core
    python lessons/experiments/upsamplers.py --redraw --out lessons/figures/upsamplers.png

Found: trained alike, the regressor, |e|, is 2.7 dB ahead in PSNR (27.3 to 24.6) and 80 times as fast, and the diffusion
model nearly twice as sharp (0.79 of the real images' energy of edges, to 0.41): sharper, and slower. The mean of 16 of
its draws is 2.6 dB better than one draw and about as blurred as the regressors (0.45, to 0.43 for the same images). How
near the mean is to a regressor's own answer was not measured. FID, precision and recall tell no two of the learned ways
apart; nouns are read right in 99 to 100%. The regressor for e² has a lower PSNR than that for |e|, 27.0 dB: neither has
reached its minimum in so short a training, or dB, averaged over images, are not squared errors; which, was not checked.
After nine times as many pixels the diffusion model has 29.2 dB. A regressor trained that long was not tried, so this
says nothing of which of them is better then.
"""
import math
import sys
import time
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, transformer, unet, diffusion, upsample, train, judge, measures = map(import_module, (
    "lessons.experiments.common", "02_transformer", "03_unet", "04_diffusion", "07_upsample", "08_train",
    "lessons.10_judge", "lessons.11_measures"))

KINDS = ("single", "pair", "count")
ERRORS = {"regressor, |e|": torch.abs, "regressor, e²": torch.square}
COLORS = {"bicubic": "0.6", "regressor, |e|": "tab:orange", "regressor, e²": "tab:red", "diffusion": "tab:blue",
          "diffusion, long": "tab:cyan", "real": "0.25"}
RATE = 1e-3             # the regressors' learning rate: in 200 steps a little better than half as much
BATCH = 16              # in drawing, where each batch is timed
EXAMPLES, CROP = (0, 1), 20


# --- The regressor -----------------------------------------------------------------------------------

class Block(nn.Module):
    """EDSR's residual block: no norm, for a norm would take away how strong the contrast is."""

    def __init__(self, width, scale):
        super().__init__()
        self.scale = scale
        self.convs = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.ReLU(),
                                   nn.Conv2d(width, width, 3, padding=1))

    def forward(self, x):
        """[B, C, H, W] -> the same"""
        return x + self.scale * self.convs(x)


class Regressor(nn.Module):
    """A small EDSR: [B, 3, H, W] -> [B, 3, 4H, 4W]. All blocks work at the small size; the end doubles it twice.

    width, blocks  such that a training step costs as much as the tiny upsampler's; the paper has 256 and 32
    scale          of what a block adds: 0.1 in the paper, whose network is so wide that training is unstable without
    It learns what is to be added to bicubic interpolation, at first nothing; the paper's learns the whole image.
    """

    def __init__(self, width=96, blocks=18, scale=1.0):
        super().__init__()
        self.head = nn.Conv2d(3, width, 3, padding=1)
        self.blocks = nn.Sequential(*(Block(width, scale) for _ in range(blocks)),
                                    nn.Conv2d(width, width, 3, padding=1))
        # Pixel shuffle: four channels of one place become one channel of 2×2 places.
        doubling = [layer for _ in range(2) for layer in (nn.Conv2d(width, 4 * width, 3, padding=1),
                                                          nn.PixelShuffle(2))]
        self.tail = nn.Sequential(*doubling, unet.zero(nn.Conv2d(width, 3, 3, padding=1)))

    def forward(self, low_res):
        h = self.head(low_res)
        return bicubic(low_res) + self.tail(h + self.blocks(h))


def bicubic(low_res):
    """[B, 3, H, W] -> [B, 3, 4H, 4W]"""
    return F.interpolate(low_res, scale_factor=upsample.FACTOR, mode="bicubic")


class Regression(train.Trainer):
    """08's training, with the same images in the same order, of a network that answers once and for all."""

    def __init__(self, preset, error, **options):
        super().__init__(preset, **options)
        torch.manual_seed(self.seed)
        self.error, self.model = error, Regressor()
        self.synced, self.ema = self.model, deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW([{"params": [*self.model.parameters()], "rate": RATE}],
                                           weight_decay=0, fused=True)

    def loss(self, batch):
        """[B]"""
        return self.error(self.model(batch["low_res"]) - batch["x0"]).flatten(1).mean(1)


def trained(trainer, path, every=250):
    """The trainer after its last step; one that was stopped goes on from its checkpoint."""
    if path.exists():
        common.restore(trainer, torch.load(path, weights_only=True))
    while trainer.step < trainer.preset.train.steps:
        loss = trainer.train_step(trainer.batch(trainer.step)[0])["loss"]
        if trainer.step % every == 0 or trainer.step == trainer.preset.train.steps:
            with unet.atomic_write(path) as file:
                torch.save(common.state_of(trainer), file)
            print(f"   {path.stem}: step {trainer.step}, loss {loss}", flush=True)
    return trainer


def trainers(args):
    """{name: a Trainer} of the three networks that are trained here, all by the tiny upsampler's preset."""
    preset = train.PRESETS["tiny"]["upsampler"]
    preset = replace(preset, train=replace(preset.train, steps=args.steps))
    return {name: Regression(preset, error, world="full", seed=args.seed) for name, error in ERRORS.items()} | {
        "diffusion": train.Trainer(preset, world="full", seed=args.seed)}


# --- Measures ----------------------------------------------------------------------------------------

def ssim(x, true):
    """Structural similarity of images [B, 3, H, W] in [-1, 1]: [B], at most 1.

    Around each pixel it compares means, contrasts and, by the correlation, the patterns of two images.
    """
    x, y, (c1, c2) = (x + 1) / 2, (true + 1) / 2, (0.01 ** 2, 0.03 ** 2)        # on [0, 1], so that L is 1
    line = torch.exp(-torch.arange(-5, 6) ** 2 / (2 * 1.5 ** 2))
    window = (torch.outer(line, line) / line.sum() ** 2).expand(3, 1, 11, 11)

    def mean(a):                                        # weighted by a Gaussian of σ = 1.5, channel by channel
        return F.conv2d(a, window, groups=3)

    # (2·μx·μy + C1)·(2·σxy + C2) / ((μx² + μy² + C1)·(σx² + σy² + C2))   [Wang et al. eq. 13]
    mx, my = mean(x), mean(y)
    vx, vy, cov = mean(x * x) - mx * mx, mean(y * y) - my * my, mean(x * y) - mx * my
    index = (2 * mx * my + c1) * (2 * cov + c2) / ((mx * mx + my * my + c1) * (vx + vy + c2))
    return index.flatten(1).mean(1)


def energy(x):
    """The squared gradient at each place of images [B, 3, H, W], without the last row and column: [B, H - 1, W - 1]"""
    return (x.diff(dim=2)[..., :-1].square() + x.diff(dim=3)[..., :-1, :].square()).sum(1)


def sharpness(x, true):
    """The energy of the gradient, that of the true images being 1: [B]. Blur has less; noise has more."""
    return energy(x).sum((1, 2)) / energy(true).sum((1, 2))


# --- The comparison ----------------------------------------------------------------------------------

def pictures(n, seed):
    """n scenes of each of KINDS, in turn, and their real images [3n, 3, 64, 64]."""
    scenes = [scene for mixed in zip(*(judge.eval_captions(kind, n, seed) for kind in KINDS)) for scene in mixed]
    return scenes, diffusion.downsample(judge.real_images(scenes, seed), 64)


@torch.no_grad()
def timed(way, low_res, scenes, seed):
    """Images enlarged in a way, [n, 3, 64, 64], and the milliseconds for one image in each batch."""
    images, times = [], []
    for i in range(0, len(scenes), BATCH):
        start = time.perf_counter()
        images.append(way(low_res[i:i + BATCH], scenes[i:i + BATCH], seed + i))
        times.append(1000 * (time.perf_counter() - start) / len(images[-1]))
    return torch.cat(images), torch.tensor(times)


def row(images, times, true, others, scenes, reader):
    """All measures of enlarged images as cells, and examples, whole and in part. others: features of real images."""
    cells = common.clouds(others, measures.features(reader, images))
    cells["nouns"] = common.cell(torch.from_numpy(judge.scores(reader, images, scenes)["noun"]))
    if images is not true:
        each = {"PSNR": upsample.psnr(images, true), "SSIM": ssim(images, true), "sharpness": sharpness(images, true)}
        cells |= {name: common.cell(values) for name, values in (each | {"ms": times}).items()}
    return {"cells": cells, "examples": [[common.to_text(images[i]), common.to_text(edge(images, true, i))]
                                         for i in EXAMPLES]}


def edge(images, true, i):
    """The square of CROP pixels of image i in which the true one has most contrast: [3, CROP, CROP]"""
    place = F.avg_pool2d(energy(true[i:i + 1]), CROP, 1)[0]
    r, c = divmod(place.argmax().item(), place.shape[1])
    return images[i, :, r:r + CROP, c:c + CROP]


@torch.no_grad()
def averaged(way, low_res, true, scenes, seeds):
    """Means of ever more draws in one way: {number of draws, as text: {measure: a number for each image}}; and the edge
    of an example in four draws and in the mean of all."""
    drawn = torch.stack([way(low_res, scenes, seed) for seed in seeds])                     # [draws, m, 3, 64, 64]
    found = {}
    for k in (2 ** i for i in range(len(seeds).bit_length())):
        means = drawn[:len(seeds) // k * k].unflatten(0, (-1, k)).mean(1)          # no draw is used twice
        found[str(k)] = {name: torch.stack([function(x, true) for x in means]).mean(0).tolist()
                         for name, function in (("PSNR", upsample.psnr), ("sharpness", sharpness))}
    return found, [common.to_text(edge(x, true, min(EXAMPLES[-1], len(true) - 1))) for x in (*drawn[:4], drawn.mean(0))]


def means(ways, low_res, true, scenes, args, partial):
    """What `averaged` found, for all that was learned: {way: {number of draws: cells}}, the PSNR being what it is above
    a single draw of "diffusion" for the same image; and the example in draws of both diffusion models."""
    parts = [slice(i, i + BATCH) for i in range(0, len(scenes), BATCH)]
    groups = {name: [partial(f"means, {name}, {part.start}", lambda: averaged(
        ways[name], low_res[part], true[part], scenes[part],
        range(1000, 1000 + (args.draws if "diffusion" in name else 1)))) for part in parts]
        for name in ways if name != "bicubic"}

    def values(name, k, measure):
        return torch.tensor([x for found, _ in groups[name] for x in found[k][measure]])

    single = values("diffusion", "1", "PSNR")
    table = {name: {k: {"gain": common.cell(values(name, k, "PSNR") - single),
                        "sharpness": common.cell(values(name, k, "sharpness"))} for k in several[0][0]}
             for name, several in groups.items()}
    return {"means": table, "draws": {name: groups[name][0][1] for name in groups if "diffusion" in name}}


def ways_to_enlarge(args, trained):
    """{name: a function of small images [B, 3, 16, 16], scenes and a seed -> [B, 3, 64, 64] in [-1, 1]}"""
    def regressed(network):
        def way(low_res, scenes, seed):
            with torch.autocast("cpu", torch.bfloat16, enabled=args.dtype == "bfloat16"):
                return network(low_res).float().clamp(-1, 1)
        return way

    def diffused(model):
        return lambda low_res, scenes, seed: judge.draw(None, scenes, upsampler=model, low_res=low_res, seed=seed)

    model = common.model_of(trained["diffusion"], getattr(torch, args.dtype))
    return {"bicubic": lambda low_res, scenes, seed: bicubic(low_res).clamp(-1, 1)} | {
        name: regressed(trained[name].ema) for name in ERRORS} | {
        "diffusion": diffused(model), "diffusion, long": diffused(common.weights(args).load("upsampler"))}


def cost(trainer):
    """What a network costs: its parameters, the images that it sees, and the FLOP for each of them."""
    batch = trainer.batch(0)[0]
    once = common.flop(lambda: trainer.loss(batch).sum().backward()) / len(batch["x0"])
    trainer.optimizer.zero_grad()
    return {"parameters": transformer.parameters(trainer.model), "FLOP": once,
            "images": trainer.preset.train.steps * trainer.preset.train.batch}


def measure(args, partial):
    """Prints a line for each way as soon as it is known. -> the table"""
    networks, reader = trainers(args), judge.judge_for(64, args.weights)
    costs = {name: cost(trainer) for name, trainer in networks.items()}
    paths = {name: partial.path.with_name(f"{partial.path.stem}-{i}.pt") for i, name in enumerate(networks)}
    ways = ways_to_enlarge(args, {name: trained(networks[name], paths[name]) for name in networks})
    scenes, true = pictures(args.n, args.seed)
    low_res = upsample.round_to_bytes(F.avg_pool2d(true, upsample.FACTOR))
    others = measures.features(reader, pictures(args.n, args.seed + 1)[1])
    table = {"n": len(scenes), "seed": args.seed, "training": costs, "ways": {},
             "small": [common.to_text(low_res[i]) for i in EXAMPLES]}
    for name in (*ways, "real"):
        def one():
            if name == "real":
                return row(true, None, true, others, scenes, reader)
            once = common.flop(lambda: ways[name](low_res[:1], scenes[:1], 0))  # and the first call, which takes longer
            return row(*timed(ways[name], low_res, scenes, args.seed), true, others, scenes, reader) | {"FLOP": once}
        table["ways"][name] = found = partial(name, one)
        numbers = "".join(f"   {key} {cell['value']:.4g}" for key, cell in found["cells"].items())
        print(f"{name:<16}{numbers}", flush=True)
    m = min(args.averaged, len(scenes))
    table |= means(ways, low_res[:m], true[:m], scenes[:m], args, partial)
    for path in paths.values():
        path.unlink()
    return table


# --- The figure --------------------------------------------------------------------------------------

BARS = {"PSNR": "PSNR, dB", "SSIM": "SSIM", "sharpness": "sharpness,\nreal = 1", "FID": "FID,\nless is better",
        "precision": "precision", "nouns": "nouns\nread right", "ms": "milliseconds\nan image"}


def bars(ax, ways, measure):
    """One measure of all ways that have it, with 95% intervals."""
    names = [name for name in ways if measure in ways[name]["cells"]]
    values, lows, highs = common.columns([ways[name]["cells"][measure] for name in names])
    places, ends = [-[*ways].index(name) for name in names], [max(pair) for pair in zip(values, highs)]
    ax.barh(places, values, color=[COLORS[name] for name in names], alpha=0.8)
    ax.hlines(places, lows, highs, color="black", linewidth=2)
    for place, value, end in zip(places, values, ends):
        ax.text(end, place, f" {value:.3g}" if value < 100 else f" {value:.0f}", va="center", size=12)
    if measure == "ms":
        ax.set_xscale("log")
    ax.set_xlim(None, max(ends) * (100 if measure == "ms" else 1.5))
    ax.set_xticks([])
    ax.minorticks_off()
    ax.set_yticks([-i for i in range(len(ways))], [*ways], size=13)
    ax.set_title(BARS[measure], size=13)


def curves(ax, means):
    """What averaging gains in PSNR, next to what it would gain if draws were perfect; and the regressors."""
    for name, found in means.items():
        numbers, (values, lows, highs) = [*map(int, found)], common.columns([one["gain"] for one in found.values()])
        if name in ERRORS:
            ax.axhline(values[0], color=COLORS[name], linewidth=2, label=name)
            ax.axhspan(lows[0], highs[0], color=COLORS[name], alpha=0.12)
            continue
        ax.plot(numbers, values, marker="o", color=COLORS[name], label=f"{name}: mean of draws")
        ax.fill_between(numbers, lows, highs, color=COLORS[name], alpha=0.15)
        # A draw has the mean's squared error twice; a mean of k draws has it 1 + 1/k times.
        perfect = [values[0] + 10 * math.log10(2 / (1 + 1 / k)) for k in numbers]
        ax.plot(numbers, perfect, ":", color=COLORS[name], label="if draws were perfect")
    ax.set_xscale("log", base=2)
    ax.set_xticks(numbers, numbers)
    ax.set_xlabel("draws for the same small image, averaged", size=13)
    ax.set_ylabel("PSNR above that of one draw of “diffusion”, dB", size=13)
    ax.tick_params(labelsize=12)
    ax.legend(fontsize=12)
    ax.grid(alpha=0.3)


def examples(axes, table):
    """Two images in all ways, whole and in part, and the second one's part in several draws. axes: [5, 7]"""
    columns = {"16 pixels": table["small"]} | {name: way["examples"] for name, way in table["ways"].items()}
    for i, pair in enumerate(axes[:4].reshape(2, 2, -1)):
        for j, (name, images) in enumerate(columns.items()):
            whole, part = images[i] if j else (images[i], None)
            common.show(pair[0, j], whole, title="" if i else name, size=12, width=10)
            common.show(pair[1, j], part)
    draws = table["draws"]["diffusion"]
    names = [f"draw {i + 1}" for i in range(len(draws) - 1)] + ["mean of all"]
    for ax, name, image in zip(axes[4, 1:], names, draws):
        common.show(ax, image, below=name, size=12)
    for ax in axes[4]:
        ax.axis("on" if ax.images else "off")
    axes[4, 0].text(0.5, 0.5, "draws of\n“diffusion”", size=12, ha="center", va="center",
                    transform=axes[4, 0].transAxes)


def draw(table):
    """Above, examples, and means of draws next to the regressors; below, all measures."""
    figure = Figure(figsize=(15, 13.2), layout="constrained")
    figure.suptitle("Trained alike, a regressor blurs; one draw of a diffusion model is sharper, farther from the "
                    "truth, and slower,\nand the mean of many draws is about as near and as blurred as the regressor",
                    size=16)
    above, below = figure.subfigures(2, 1, height_ratios=(8.4, 4.2))
    left, right = above.subfigures(1, 2, width_ratios=(9, 6))
    examples(left.subplots(5, 7), table)
    curves(right.subplots(), table["means"])
    for ax, measure in zip(below.subplots(1, len(BARS), sharey=True), BARS):
        bars(ax, table["ways"], measure)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "upsamplers", n=200)
    parser.add_argument("--seed", type=int, default=0, help="of trainings, images and noise (default: 0)")
    parser.add_argument("--steps", type=int, default=1600, help="of each training (default: 1600)")
    parser.add_argument("--averaged", type=int, default=48, help="images of which draws are averaged (default: 48)")
    parser.add_argument("--draws", type=int, default=16, help="of each of those (default: 16)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
