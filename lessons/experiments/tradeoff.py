"""What does guidance buy, and who pays? GLIDE's figure 6 in miniature: two guides, at scales from 0 to 8.

The small base model draws the same captions of the whole little world from the same noise, guided by itself
(classifier-free, 05) or by the noised CLIP. Each point of a curve is a scale, and thousands of pictures, which are
compared with as many real ones of other captions. Of them are measured (11, in the judge's features):

  FID, precision, recall    95% intervals by half-sampling: a bootstrap would be off, as 11 shows
  Inception Score           of the judge's answers for the first noun; intervals likewise
  CLIP score                by the CLIP that guides, so one of the two guides marks its own work; interval by bootstrap
  right                     captions that are drawn right in every attribute, says the judge: what no photograph offers

Classifier-free scale 0 hears no caption; scale 1 is no guidance, as CLIP's scale 0. That point is drawn once. A star
stands for real images of the same captions. Measures of thousands depend on their number: compare at one n only.

    python lessons/experiments/tradeoff.py --dtype bfloat16                            48 minutes on a busy core
    python lessons/experiments/tradeoff.py --redraw --out lessons/figures/tradeoff.png

Found: measures disagree. FID is best without guidance, 7.2; the Inception Score with classifier-free scale 2, 27.0, as
real images have it; CLIP's score with CLIP as the guide at scale 5, 39.9, more than real images have. Of the captions
92% are drawn right without guidance, 98% with classifier-free scale 2, and 94% with CLIP at any scale from 1 to 5.
Recall differs by no more than chance. Classifier-free scales 0 and 8 have one FID, 32 and 30, with 0% and 72% right.
"""
import random
import sys
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, guides, tokenizer, diffusion, judge, measures = map(import_module, (
    "lessons.experiments.common", "lessons.experiments.guidance", "01_tokenizer", "04_diffusion", "lessons.10_judge",
    "lessons.11_measures"))

GUIDES = "free", "clip"
# Each panel as in GLIDE, and one that needs a judge: a measure across, and one upwards
PANELS = {("recall", "precision"): "Recall is all one; classifier-free precision falls from 5 on",
          ("FID", "Inception Score"): "FID wants no guidance, the Inception Score wants 2",
          ("FID", "CLIP score"): "By CLIP’s own score its guidance wins",
          ("FID", "right"): "By what is right CLIP loses: 94%, to 98% at scale 2"}
# What hears no caption lies far below: these axes leave it out
AXES = {"Inception Score": (23, 27.5), "CLIP score": (38.2, 40.2), "right": (0.68, 1.02)}


def random_scenes(base, n, seed):
    """n scenes of all kinds, as often as the base model's world has them."""
    rng = random.Random(f"trade-off {seed}")
    return [tokenizer.random_scene(rng, base.world) for _ in range(n)]


def drawn(base, clip, scenes, seed, steps, how):
    """An image of each scene's caption, [n, 3, S, S]; how: guide, sampler, scale. A seed is the same noise for all."""
    parts = [scenes[start:start + 100] for start in range(0, len(scenes), 100)]
    return torch.cat([guides.drawn(base, clip, part, 1000 * seed + i, steps, how, copies=1)
                      for i, part in enumerate(parts)])


@torch.no_grad()
def measured(images, scenes, real, reader, clip):
    """All measures of images of scenes, as cells; real: features of real images."""
    g, texts = measures.seeded(), clip.embed([scene.caption() for scene in scenes])
    seen = torch.cat([clip.network.image(x, torch.zeros(len(x), dtype=torch.long)) for x in images.split(500)])
    nouns = torch.cat([reader(x)[2].softmax(1) for x in images.split(500)])      # of the first thing

    def of_clouds(real, generated, nouns):
        return (measures.fid(real, generated), *measures.precision_recall(real, generated),
                measures.inception_score(nouns)[0])

    def as_cells(names, numbers):
        return {name: common.interval(*one, len(images)) for name, *one in zip(names, *numbers)}

    clouds = measures.half_sampling(of_clouds, real, measures.features(reader, images), nouns, generator=g)
    fits = measures.bootstrap(lambda *pair: [measures.clip_score(*pair)], seen, texts, generator=g)
    return as_cells(("FID", "precision", "recall", "Inception Score"), clouds) | as_cells(("CLIP score",), fits) | {
        "right": common.cell(torch.from_numpy(judge.scores(reader, images, scenes)["all"]))}


def measure(args, partial):
    """Prints a line for each guide and scale as soon as it is known. -> the table"""
    weights = common.weights(args, clip=True)
    base, clip = weights.load("base"), weights.load("clip")
    reader = judge.judge_for(base.size, args.weights)
    scenes = {seed: random_scenes(base, args.n, seed) for seed in args.seeds}
    everything, others = sum(scenes.values(), []), random_scenes(base, args.n * len(args.seeds), "others")
    reals = [diffusion.downsample(judge.real_images(asked, seed), base.size)
             for seed, asked in enumerate((others, everything))]
    real = measures.features(reader, reals[0])

    def row(title, make):
        cells = partial(title, lambda: measured(make(), everything, real, reader, clip))
        print(f"{title:<28}" + "   ".join("{} {value:.2f} ({low:.2f} to {high:.2f})".format(name, **one)
                                          for name, one in cells.items()), flush=True)
        return cells

    table = {"n": args.n, "seeds": args.seeds, "steps": args.steps, "real": row("real images", lambda: reals[1])}
    table["rows"] = []
    for guide, scale in ((guide, scale) for guide in GUIDES for scale in args.scales):
        how = ("free", "ddpm", 1) if (guide, scale) == ("clip", 0) else (guide, "ddpm", scale)
        cells = row(f"{guides.TITLES[how[0]]}, scale {how[2]:g}", lambda: torch.cat(
            [drawn(base, clip, asked, seed, args.steps, how) for seed, asked in scenes.items()]))
        table["rows"].append({"guide": guide, "scale": scale} | cells)
    return table


def draw(table):
    """A panel for each pair of measures, a curve for each guide, its scales beside its points."""
    figure = Figure(figsize=(15, 13), layout="constrained")
    for ax, ((across, up), title) in zip(figure.subplots(2, 2).flat, PANELS.items()):
        ax.plot(table["real"][across]["value"], table["real"][up]["value"], "*", markersize=18, color="0.3",
                label="real images", zorder=3)
        for guide in GUIDES:
            rows = [row for row in table["rows"] if row["guide"] == guide]
            curve(ax, [row[across] for row in rows], [row[up] for row in rows], labels(rows, guide, up), guide)
        if up in AXES:
            ax.set_ylim(*AXES[up])
            for row in (row for row in table["rows"] if (row["guide"], row["scale"]) == ("free", 0)):
                ax.annotate(f"↓ 0: {row[up]['value']:.3g}", (0.97, 0.04), xycoords="axes fraction",
                            color=guides.LOOKS["free"], size=13, ha="right")
        ax.set_title(title, size=15)
        ax.set_xlabel(f"{across}, less is better" if across == "FID" else across, size=14)
        ax.set_ylabel("captions drawn right" if up == "right" else up, size=14)
        ax.tick_params(labelsize=12)
        ax.grid(alpha=0.3)
        ax.legend(fontsize=13, loc="lower left" if up == "CLIP score" else "best")
    figure.suptitle(f"{len(table['seeds'])} × {table['n']} pictures a point, {table['steps']} ancestral steps; "
                    "numbers are scales", size=15)
    return figure


def labels(rows, guide, up):
    """What stands beside the points: their scales; "none" where both guides begin; nothing in a crowd."""
    crowd = () if guide == "free" else (0, 1, 1.5, 2, 3, 5) if up == "precision" else (0, 1, 1.5)
    return ["none" if (guide, row["scale"]) == ("free", 1) else "" if row["scale"] in crowd else f"{row['scale']:g}"
            for row in rows]


def curve(ax, across, up, names, guide):
    """One guide's points in the order of its scales, with both 95% intervals."""
    (x, x_errors), (y, y_errors) = map(common.error_bars, (across, up))
    ax.errorbar(x, y, xerr=x_errors, yerr=y_errors, marker="o", color=guides.LOOKS[guide], elinewidth=1, alpha=0.9,
                label=guides.TITLES[guide])
    for name, place in zip(names, zip(x, y)):
        ax.annotate(name, place, (7, 7), textcoords="offset points", color=guides.LOOKS[guide], size=13)


def main(argv=None):
    parser = common.parser(__doc__, "tradeoff", n=700, seeds=(0, 1, 2))
    parser.add_argument("--scales", type=float, nargs="+", default=(0, 1, 1.5, 2, 3, 5, 8), help="of either guide")
    parser.add_argument("--steps", default="15", help="timesteps, see 04's respace (default: 15)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
