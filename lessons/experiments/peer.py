"""What do GLIDE's parts buy? The same captions are drawn by our base model and by a *peer*, what a class would
otherwise use: the usual tutorial's denoising-diffusion U-Net, trained on the same pictures for as long, on one core.

Three networks are trained from random weights on single things of 16 pixels, in the same order (08):

  ours      the tiny base model, as `python 08_train.py` trains it, for half as many steps
  linear    the same with the linear noise schedule, in training and in sampling
  the peer  a plain U-Net of about that size. The timestep, and the caption as a bag of words, are added to its feature
            maps. It predicts ε; plain squared error, uniform timesteps, fixed variance, a constant rate, no average of
            the weights. A tenth of the captions is dropped, so that it can be guided, too. Its rate is 1e-3: after
            150 steps the loss was lower than with 3e-4, and no others were tried

Data, batches, bfloat16 and gradient clipping are 08's for all three. They take turns, step by step, so that whatever
else the computer does slows all alike. The peer, which has no attention and is faster, takes as many steps as fit into
our seconds of a core; so its number of steps, in the table, differs a little from run to run. All weights stay in
outputs/experiments/: measuring anew needs no new training. Going down the figure, one group of parts changes at a time:
the sampler and its steps, then guidance, then all that makes the peer ours but the schedule, then the schedule. After
that come ours without guidance, and the shipped weights, which were trained for hours and on all kinds of captions.

  right                      the judge (10) finds every attribute that the caption names
  FID, precision, recall     of its features (11), against as many real pictures of other captions of this world
  seconds                    to draw one picture, 100 at a time

Single things are all that the peer can hope for. A bag of words is the same for "a heart to the left of a star" and for
"a star to the left of a heart", so whatever is trained on it draws both alike. The table says by how much the captions'
vectors differ, in each network.

    python lessons/experiments/peer.py --dtype bfloat16                      48 minutes on one core
    python lessons/experiments/peer.py --redraw --out lessons/figures/peer.png

Found: after 12 minutes each, the tutorial's way gets 4% of 600 captions right (3 to 6), and 3% with our sampler and
guidance, though it has seen 1.8 times as many pictures; ours gets 38% (34 to 42), or 22% without guidance, or 12% with
the linear schedule. Ours errs nearly always in the noun, the peer in colours (58 to 90% right) and backgrounds, too.
FID tells another story: without guidance ours has 14, with it 33, and the peer 36 as tutorials sample (88 with DDIM,
151 with guidance). Of 60 captions 1,000 steps get two right, and so do 250. It is one training each; intervals are over
captions.
"""
import copy
import sys
import time
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, transformer, unet, diffusion, guidance, upsample, train, judge, measures, cost = map(import_module, (
    "lessons.experiments.common", "02_transformer", "03_unet", "04_diffusion", "05_guidance", "07_upsample", "08_train",
    "lessons.10_judge", "lessons.11_measures", "lessons.13_cost"))

# title: model, sampler, steps and scale of guidance (1: none). {0} and {1} are the two numbers of --ancestral.
ROWS = {
    "the peer, as tutorials sample:\nancestral, {0} steps": ("peer", "ddpm", "{0}", 1),
    "the peer, DDIM, 25 steps": ("peer", "ddim", "25", 1),
    "the peer, DDIM, guidance 3": ("peer", "ddim", "25", 3),
    "ours, linear schedule,\nDDIM, guidance 3": ("linear", "ddim", "25", 3),
    "ours, DDIM, guidance 3": ("ours", "ddim", "25", 3),
    "ours, DDIM, 25 steps": ("ours", "ddim", "25", 1),
    "shipped weights, trained for\nhours, DDIM, guidance 3": ("shipped", "ddim", "25", 3)}
CHECKS = {       # drawn of a tenth of the captions only, the first
    "the peer, ancestral, {0} steps": ("peer", "ddpm", "{0}", 1),
    "the peer, ancestral, {1} steps": ("peer", "ddpm", "{1}", 1),
    "the peer, ancestral, {0} steps, guidance 3": ("peer", "ddpm", "{0}", 3)}
QUESTIONS = ("all", "noun", "color", "size", "background")
CLOUDS = ("FID", "precision", "recall")     # of two clouds of features (11)
SWAPPED = ("a heart to the left of a star", "a star to the left of a heart")
BATCH, SHOWN = 100, 6
COLORS = {"real": "0.5", "peer": "tab:orange", "linear": "tab:cyan", "ours": "tab:blue", "shipped": "tab:green"}


# --- The peer ----------------------------------------------------------------------------------------

class Block(nn.Module):
    """Two convolutions; in between, what the embedding says is added to every place alike."""

    def __init__(self, inputs, outputs, emb):
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs)
        self.emb = nn.Linear(emb, outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, padding=1), nn.GroupNorm(8, outputs)

    def forward(self, x, emb):
        """x [B, C, H, W], emb [B, E] -> [B, C', H, W]"""
        h = F.silu(self.norm1(self.conv1(x))) + self.emb(emb)[:, :, None, None]
        return F.silu(self.norm2(self.conv2(h)))


class Peer(nn.Module):
    """The usual tutorial's U-Net as a denoiser (04). Of config, a UNetConfig, channels and vocabulary are used."""

    def __init__(self, config):
        super().__init__()
        self.config, c, emb = config, config.channels, 4 * config.channels
        self.words = nn.Linear(config.text.vocab_size, emb, bias=False)      # of counts: a table of vectors
        self.time = nn.Sequential(nn.Linear(c, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.down = nn.ModuleList([Block(3, c, emb), Block(c, 2 * c, emb), Block(2 * c, 4 * c, emb)])
        self.up = nn.ModuleList([Block(4 * c + 2 * c, 2 * c, emb), Block(2 * c + c, c, emb)])
        self.output = nn.Conv2d(c, 3, 1)

    def prepare(self, tokens, mask):
        """The mean of the words' vectors, {"pooled": [B, E]}: zero for the empty caption, blind to the words' order."""
        bag = (F.one_hot(tokens, self.config.text.vocab_size) * mask[:, :, None]).sum(1)           # [B, V] counts
        return {"pooled": self.words((bag / bag.sum(1, keepdim=True).clamp(min=1)).to(self.words.weight.dtype))}

    def forward(self, x, t, *, tokens=None, mask=None, pooled=None):
        """x [B, 3, H, W], t [B] -> [B, 6, H, W] float32: ε, then ones, which stand for the variance β (04)"""
        pooled = self.prepare(tokens, mask)["pooled"] if pooled is None else pooled
        emb = F.silu(self.time(unet.timestep_embedding(t, self.config.channels).to(pooled.dtype)) + pooled)
        first, *smaller = self.down
        skips = [first(x.to(pooled.dtype), emb)]
        for block in smaller:
            skips.append(block(F.avg_pool2d(skips[-1], 2), emb))
        h = skips.pop()
        for block in self.up:
            h = block(torch.cat([F.interpolate(h, scale_factor=2), skips.pop()], dim=1), emb)
        eps = self.output(h.float()).float()
        return torch.cat([eps, torch.ones_like(eps)], dim=1)


# --- Training ----------------------------------------------------------------------------------------

class PeerTrainer(train.Trainer):
    """08's trainer with the tutorial's habits. What the loss (04) has of the variance has no gradient here: plain MSE.
    An ema of 0 forgets at once, so the "average" is the last weights."""

    def __init__(self, args):
        preset = train.PRESETS["tiny"]["base"]
        habits = train.TrainConfig(args.steps, preset.train.batch, args.peer_lr, args.peer_lr, ema=0,
                                   caption_dropout=0.1)
        super().__init__(replace(preset, network=replace(preset.network, channels=args.peer_channels),
                                 diffusion=diffusion.DiffusionConfig("linear"), train=habits), seed=args.seed)
        torch.manual_seed(args.seed)
        self.model = self.synced = self.answer = Peer(self.preset.network)      # in place of a U-Net of 03
        self.ema = copy.deepcopy(self.model).requires_grad_(False)
        group = {"params": list(self.model.parameters()), "rate": args.peer_lr}
        self.optimizer = torch.optim.AdamW([group], weight_decay=0, fused=True)

    def timesteps(self, step, _):
        """Independent ones, not one from each stretch."""
        g = diffusion.seeded_generator("peer", self.seed, step)
        return torch.randint(len(self.process.timesteps), (len(self.indices),), generator=g)


def fresh(args):
    """The three trainers, by name; ours are 08's."""
    preset = train.PRESETS["tiny"]["base"]
    preset = replace(preset, train=replace(preset.train, steps=args.steps))
    linear = replace(preset, diffusion=replace(preset.diffusion, schedule="linear"))
    return {"ours": train.Trainer(preset, seed=args.seed), "linear": train.Trainer(linear, seed=args.seed),
            "peer": PeerTrainer(args)}


def timed_step(trainer):
    """One step, its pictures included, counts as time of training: seconds of a core that works on nothing else."""
    start = time.process_time()
    trainer.train_step(trainer.batch(trainer.step)[0])
    trainer.seconds += time.process_time() - start


def trained(args, every=120):
    """The three trainers after their training, which continues from its file, written every so many seconds."""
    trainers, saved = fresh(args), time.time()
    name = "-".join(map(str, ("peer", args.steps, args.seed, args.peer_lr, args.peer_channels)))
    path = common.OUTPUTS / "experiments" / f"{name}.pt"
    if path.exists():
        for name, state in torch.load(path, weights_only=True).items():
            common.restore(trainers[name], state)
    ours, linear, peer = trainers.values()
    while ours.step < args.steps:
        timed_step(ours)
        timed_step(linear)
        while peer.seconds < ours.seconds:
            timed_step(peer)
        if ours.step == args.steps or time.time() - saved > every:
            with unet.atomic_write(path) as file:
                torch.save({name: common.state_of(trainer) for name, trainer in trainers.items()}, file)
            saved = time.time()
            print(*(f"{name}: step {trainer.step}, {trainer.seconds / 60:.1f} minutes  "
                    for name, trainer in trainers.items()), flush=True)
    return trainers


def facts(trainer):
    """What a network is and what its training took, for the table."""
    once = common.flop(lambda: cost.forward(trainer.ema, trainer.preset.size, 1))
    return {"parameters": transformer.parameters(trainer.ema), "GFLOP a forward pass": once / 1e9,
            "steps": trainer.step, "images": trainer.step * trainer.preset.train.batch,
            "minutes": round(trainer.seconds / 60, 1)}


# --- Measuring ---------------------------------------------------------------------------------------

def drawn(model, scenes, how, seed):
    """One batch: {"seconds": for each picture, "images": side by side as text}. A seed is the same noise for all."""
    sampler, steps, scale = how
    process, g = diffusion.Diffusion.from_config(model.diffusion, steps), torch.Generator().manual_seed(seed)
    denoiser = model.denoiser if scale == 1 else guidance.classifier_free(model.denoiser, scale)
    x_T, start = diffusion.gaussian(torch.empty(len(scenes), 3, model.size, model.size), g), time.process_time()
    cond = model.encode([scene.caption() for scene in scenes])
    images = getattr(process, f"{sampler}_sample")(denoiser, x_T, generator=g, **cond)
    seconds = (time.process_time() - start) / len(scenes)
    return {"seconds": seconds, "images": common.to_text(torch.cat(list(images), dim=2))}


def from_text(text):
    """Square images that stand side by side in a PNG file in base64: [n, 3, S, S] in [-1, 1]."""
    strip = torch.from_numpy(np.array(common.from_text(text)))                                       # [S, n·S, 3]
    return strip.unflatten(1, (-1, len(strip))).permute(1, 3, 0, 2) / 127.5 - 1


def pictures(model, scenes, how, seed, partial):
    """Pictures of the scenes' captions [n, 3, S, S], and the seconds that each took, as a cell; kept by the batch."""
    name, *how = how
    found = [partial(f"{name}, {how}, {start} of {len(scenes)}",
                     lambda: drawn(model, scenes[start:start + BATCH], how, seed + start))
             for start in range(0, len(scenes), BATCH)]
    seconds = torch.tensor([one["seconds"] for one in found])
    return torch.cat([from_text(one["images"]) for one in found]), common.cell(seconds)


def clouds(reader, real, images):
    """{one of CLOUDS: cell}, against real pictures; None for each if there are too few for halves with neighbours."""
    if len(images) < 8:
        return dict.fromkeys(CLOUDS)
    return common.clouds(*(measures.features(reader, x) for x in (real, images)))


def as_row(title, reader, images, scenes, **more):
    """A row of the table, printed: what the judge finds, and more."""
    right = {name: torch.from_numpy(found) for name, found in judge.scores(reader, images, scenes).items()}
    row = {"title": title} | {name: common.cell(right[name]) for name in QUESTIONS} | more
    told = "".join(f"   {name} {row[name]['value']:.3g}" for name in (*CLOUDS, "seconds") if row.get(name))
    print(f"{title!r:<64} right {common.percent(row['all'])} %{told}", flush=True)
    return row | {"examples": [[common.to_text(image), bool(one)] for image, one in zip(images[:SHOWN], right["all"])]}


def filled(rows, args):
    """(title, how) of ROWS or CHECKS, with the steps of the command line."""
    return [(title.format(*args.ancestral), [word.format(*args.ancestral) for word in how[:3]] + [how[3]])
            for title, how in rows.items()]


def measure(args, partial):
    """Trains, then prints a line for each row as soon as it is known. -> the table"""
    trainers, dtype = trained(args), getattr(torch, args.dtype)
    models = {name: common.model_of(trainer, dtype) for name, trainer in trainers.items()}
    models["shipped"], reader = common.weights(args).load("base"), judge.judge_for(16, args.weights)
    scenes = judge.eval_captions("easy single", args.n, args.seed)
    own, other = (upsample.round_to_bytes(diffusion.downsample(judge.real_images(of, args.seed), 16)) for of in
                  (scenes, judge.eval_captions("easy single", args.n, args.seed + 1)))
    rows = [as_row("real pictures", reader, own, scenes, model="real", **clouds(reader, other, own))]
    for title, how in filled(ROWS, args):
        images, seconds = pictures(models[how[0]], scenes, how, args.seed, partial)
        rows.append(as_row(title, reader, images, scenes, model=how[0], seconds=seconds,
                           **clouds(reader, other, images)))
    few, checks = scenes[:max(2, args.n // 10)], {}
    for title, how in filled(CHECKS, args):
        images, seconds = pictures(models[how[0]], few, how, args.seed, partial)
        checks[title] = as_row(title, reader, images, few, seconds=seconds)["all"]
    vectors = {name: diffusion.prepare(model.denoiser, **model.encode(SWAPPED))["pooled"].float()
               for name, model in models.items()}
    return {"n": args.n, "seed": args.seed, "captions": [scene.caption() for scene in scenes[:SHOWN]], "rows": rows,
            "checks": checks, "training": {name: facts(trainer) for name, trainer in trainers.items()},
            "swapped": {"captions": SWAPPED, "their vectors differ, relative to their length": {
                name: round(((a - b).norm() / a.norm()).item(), 4) for name, (a, b) in vectors.items()}}}


# --- The figure --------------------------------------------------------------------------------------

def draw(table):
    """A row for each way of drawing: the same captions from the same noise, and next to them the measures."""
    rows, captions = table["rows"], table["captions"]
    figure = Figure(figsize=(15, 1.27 * len(rows) + 1.6), layout="constrained")
    grid = figure.add_gridspec(len(rows), len(captions) + 3, width_ratios=[1] * len(captions) + [2.2] * 3)
    for i, row in enumerate(rows):
        for j, (image, right) in enumerate(row["examples"]):
            ax = figure.add_subplot(grid[i, j])
            common.show(ax, image, title=captions[j] if i == 0 else "", width=11)
            ax.spines[:].set(color="tab:green" if right else "tab:red", linewidth=3)
            if j == 0:
                ax.set_ylabel(label(row, table), rotation=0, ha="right", va="center", size=12)
    panels = [figure.add_subplot(grid[:, len(captions) + k]) for k in range(3)]
    bars(panels[0], rows, "all", "captions drawn right", "{:.0%}")
    bars(panels[1], rows, "FID", "FID (less is better)", "{:.0f}")
    bars(panels[2], rows, "precision", "precision (bars) and\nrecall (diamonds)", "")
    values, errors = common.error_bars([row["recall"] for row in rows])
    panels[2].errorbar(values, range(len(rows)), xerr=errors, fmt="D", color="k", capsize=3)
    plain, _, guided, _, ours = (f"{row['all']['value']:.0%}" for row in rows[1:6])       # in the order of ROWS
    figure.suptitle(f"After {table['training']['ours']['minutes']:.0f} minutes of training on one core, the tutorial's "
                    f"U-Net draws {plain} of {table['n']:,} captions right,\n{guided} with our sampler and guidance; "
                    f"our base model draws {ours}; one training each. Red frame: not what was asked", size=16)
    return figure


def label(row, table):
    """A row's name; under it how many images its model saw, if it was trained here, and what a picture takes."""
    training, seconds = table["training"].get(row["model"]), row.get("seconds")
    return row["title"] + (f"\n{training['images']:,} images seen" if training else "") + (
        f"\n{seconds['value']:.2g} s a picture" if seconds else "")


def bars(ax, rows, name, title, text):
    """One measure of all rows, as bars with 95% intervals that stand beside the rows' pictures."""
    values, lows, highs = map(np.array, common.columns([row[name] for row in rows]))
    ax.barh(range(len(rows)), values, 0.5, xerr=[values - lows, highs - values], capsize=3, alpha=0.8,
            color=[COLORS[row["model"]] for row in rows])
    for y, (value, high) in enumerate(zip(values, highs)):
        if text and np.isfinite(value):
            ax.annotate(text.format(value), (max(value, high), y), (5, 0), textcoords="offset points", va="center",
                        size=12)
    ax.set(ylim=(len(rows) - 0.6, -0.4), yticks=[], xlim=(0, 1.3 * np.nanmax([1e-9, *values, *highs])))
    ax.set_title(title, size=13)
    ax.tick_params(labelsize=11)
    ax.spines[["top", "right"]].set_visible(False)


def main(argv=None):
    parser = common.parser(__doc__, "peer", n=600)
    parser.add_argument("--seed", type=int, default=0, help="of weights, captions and noise (default: 0)")
    parser.add_argument("--steps", type=int, default=1400, help="of our trainings, 64 images each (default: 1,400)")
    parser.add_argument("--ancestral", type=int, nargs=2, default=(250, 1000), metavar="STEPS",
                        help="of ancestral sampling, and of a tenth of the captions as a check (default: 250 1000)")
    parser.add_argument("--peer-lr", type=float, default=1e-3, help="the peer's learning rate (default: 1e-3)")
    parser.add_argument("--peer-channels", type=int, default=96, help="the peer's width (default: 96)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
