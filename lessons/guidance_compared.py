"""Classifier-free guidance or CLIP's? GLIDE's comparison in miniature (its figure of CLIP guidance against
classifier-free guidance, section 5), with a truth that can be checked.

The small base model draws the same captions from the same noise under either guide, at several scales, by the
ancestral sampler and by DDIM. A third time CLIP guides a model that is told nothing: what comes out is CLIP's idea of
the caption, and no one else's. Of each caption two pictures are drawn. Four measures:

  right     every attribute that the caption names is there, says the judge (08)
  log p     the judge's log-probability of those attributes: it never saw the guide, and is not what guides
  CLIP      100 times the fit that the guiding CLIP itself sees in the finished picture. A guide that is asked for its
            own opinion: with CLIP alone as a measure one would believe that CLIP guides best
  variety   how far the two pictures of a caption lie apart in the judge's features, where real ones are 1. Pictures
            that are wrong differ, too, so it means little where few are right

The two guides meet in one point: scale 1 of the one and 0 of the other are the model as trained, drawn once. The walk
"ddim25" does not begin at t = 999 but at 960. At 999 a CLIP's gradient, however small, is divided by √ᾱ, nearly zero,
where DDIM turns the shifted noise into a picture, which is not clipped again.

    python lessons/guidance_compared.py [OUT.png] [--n 40] [--seeds 0 1 2] [--kind pair] [--steps ddim25]
        [--weights FOLDER]

Default outputs/guidance_compared.png. It needs lessons/weights/clip.pt (python 08_train.py clip). At n = 40 and three
seeds the 24 walks are 144,000 guided steps of one picture: 20 minutes on one core.
"""
import argparse
import sys
import textwrap
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")

SCALES = {"free": (1, 2, 3, 5, 8), "clip": (0, 0.5, 1, 3, 8), "alone": (3, 8, 20)}     # 1 and 0 are no guidance
TITLES = {"free": "classifier-free", "clip": "noised CLIP", "alone": "noised CLIP alone"}
SAMPLERS = {"ddpm": "ancestral", "ddim": "DDIM"}
LOOKS = {"free": "tab:blue", "clip": "tab:orange", "alone": "tab:red", "ddpm": "-", "ddim": "--"}
SHOWN = {"free": 3, "clip": 3, "alone": 8}      # the scales of which examples are shown, ancestral
COPIES = 2
MEASURES = ("right", "log p", "CLIP", "variety")


@torch.no_grad()
def judged(pictures, scenes, judge, clip):
    """What the measures say of COPIES pictures a caption, [COPIES · n, 3, S, S]: {measure: a number a caption, [n]}.

    "variety" is not yet divided by that of real pictures.
    """
    scenes = scenes * COPIES
    wanted, logits = train.labels(scenes), judge(pictures)
    said = [torch.where(answer < 0, 0.0, guess.log_softmax(1).gather(1, answer[:, None].clamp(min=0))[:, 0])
            for guess, answer in zip(logits, wanted.T)]          # what the caption leaves open does not count
    features = judge.glance(judge.places(pictures)).unflatten(0, (COPIES, -1))                  # [COPIES, n, 256]
    each = {"right": torch.from_numpy(train.scores(judge, pictures, scenes)["all"]).float(), "log p": sum(said),
            "CLIP": 100 * clip.fit(pictures, [scene.caption() for scene in scenes])}
    return {name: values.unflatten(0, (COPIES, -1)).mean(0) for name, values in each.items()} | {
        "variety": (features[0] - features[1]).norm(dim=1)}


def deaf(base):
    """The same Model, for which every caption is the empty one."""
    def denoiser(x, t, **prepared):              # samplers prepare before they ask
        return base.denoiser(x, t, **prepared)

    def prepare(mask, **cond):
        return train.diffusion.prepare(base.denoiser, mask=torch.zeros_like(mask), **cond)

    denoiser.prepare = prepare
    return replace(base, denoiser=denoiser)


def drawn(base, clip, scenes, seed, how):
    """COPIES pictures of each scene's caption: [COPIES · n, 3, S, S]. One seed is one noise, whatever guides."""
    captions, generator = [scene.caption() for scene in scenes] * COPIES, torch.Generator().manual_seed(seed)
    if how["guide"] == "alone":
        base, how = deaf(base), {**how, "guide": "clip"}
    return torch.cat([sample.draw_small(base, some, generator=generator, clip=clip, **how)
                      for some in sample.batches(captions, 100)])


def real(scenes, seed, size):
    """The same many real pictures."""
    return torch.cat([train.diffusion.reduce(train.real_pictures(scenes, 1000 * seed + copy), size)
                      for copy in range(COPIES)])


def over_seeds(make, exams, judge, clip):
    """{measure: a number for each caption of all seeds}; make(scenes, seed) -> pictures."""
    found = [judged(make(scenes, seed), scenes, judge, clip) for seed, scenes in exams.items()]
    return {name: torch.cat([one[name] for one in found]) for name in MEASURES}


def interval(name, values):
    """(mean, low, high), 95%: captions are drawn independently, copies of one are not."""
    return train.mean_interval(values, rate=name == "right")


def tell(title, row):
    """One line of the table."""
    cells = "".join(f"{mean:>9.2f} ({low:6.2f} to {high:6.2f})" for mean, low, high in (row[name] for name in MEASURES))
    print(f"{title:<33}{cells}", flush=True)


def measure(base, judge, clip, exams, steps):
    """Prints the table, a line as soon as it is known.

    -> {(guide, sampler): [{measure: (mean, low, high)} by scale], "real": {measure: (mean, low, high)}}
    """
    print(" " * 33 + "".join(f"{name:>9} {'95% interval':>18}" for name in MEASURES))
    truth = over_seeds(lambda scenes, seed: real(scenes, seed, base.size), exams, judge, clip)
    apart, table = truth["variety"].mean(), {}

    def row(values):
        values["variety"] = values["variety"] / apart
        return {name: interval(name, values[name]) for name in MEASURES}

    table["real"] = row(truth)
    tell("real pictures", table["real"])
    for guide, scales in SCALES.items():
        for sampler, name in SAMPLERS.items():
            for scale in scales:
                how = {"guide": guide, "sampler": sampler, "scale": scale, "steps": steps}
                found = table["free", sampler][0] if (guide, scale) == ("clip", 0) else row(
                    over_seeds(lambda scenes, seed: drawn(base, clip, scenes, seed, how), exams, judge, clip))
                table.setdefault((guide, sampler), []).append(found)
                tell(f"{TITLES[guide]}, {name}, scale {scale:g}", found)
    return table


def plot(axes, table, x, y, guides):
    """One measure against another: a curve for each guide and sampler, its scales written at their points."""
    axes.plot(table["real"][x][0], table["real"][y][0], "*", markersize=15, color="0.3", label="real pictures")
    for guide, sampler in ((guide, sampler) for guide in guides for sampler in SAMPLERS):
        rows = table[guide, sampler]
        (across, *_), (up, low, high) = (list(zip(*(row[name] for row in rows))) for name in (x, y))
        reach = [[mean - end for mean, end in zip(up, low)], [end - mean for mean, end in zip(up, high)]]
        axes.errorbar(across, up, reach, color=LOOKS[guide], linestyle="none", alpha=0.3)
        axes.plot(across, up, marker="o", color=LOOKS[guide], linestyle=LOOKS[sampler],
                  label=f"{TITLES[guide]}, {SAMPLERS[sampler]}")
        for scale, place in zip(SCALES[guide], zip(across, up)):
            axes.annotate(f"{scale:g}", place, (5, 5), textcoords="offset points", color=LOOKS[guide])
    axes.grid(alpha=0.3)


def examples(base, judge, clip, scenes, seed, steps):
    """The first captions, drawn by each guide: -> {title: [(picture, what is to be said of it)]}"""
    shown = {}
    for guide, scale in SHOWN.items():
        x = drawn(base, clip, scenes, seed, {"guide": guide, "sampler": "ddpm", "scale": scale, "steps": steps})
        fits = 100 * clip.fit(x[:len(scenes)], [scene.caption() for scene in scenes])
        right = train.scores(judge, x[:len(scenes)], scenes)["all"]
        words = [f"CLIP {fit:.1f}, {'right' if good else 'wrong'}" for fit, good in zip(fits.tolist(), right)]
        shown[f"{TITLES[guide]},\nscale {scale:g}"] = list(zip(x, words))
    return shown


def show_examples(figure, shown, scenes):
    """One row a guide, one column a caption; below each picture what its CLIP and the judge say."""
    grid = figure.subplots(len(shown), len(scenes), squeeze=False)
    for row, (axes, (title, pictures)) in enumerate(zip(grid, shown.items())):
        axes[0].set_ylabel(title, size=12)
        for ax, (picture, words), scene in zip(axes, pictures, scenes):
            ax.imshow(train.to_bytes(picture).permute(1, 2, 0).numpy(), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel(words, size=11)
            ax.set_title(textwrap.fill(scene.caption(), 26) if row == 0 else "", size=10)


def save_picture(table, shown, scenes, title, path):
    """Above, what guidance gains and costs, and what the guiding CLIP's own score would have one believe; below,
    examples."""
    figure = Figure(figsize=(14, 13), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(5.6, 7.4))
    left, right = above.subplots(1, 2)
    plot(left, table, "variety", "right", ("free", "clip"))
    plot(right, table, "CLIP", "right", SCALES)
    left.set(xlabel="variety, real pictures' being 1", ylabel="captions that came out right, says the judge")
    right.set(xlabel="the guiding CLIP's own score", ylim=(-0.03, None))
    for ax in (left, right):
        ax.yaxis.set_major_formatter("{x:.0%}")
    right.legend(loc="center left")
    above.suptitle(title, size=15)
    show_examples(below, shown, scenes)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=80)


def arguments(argv=None):
    parser = argparse.ArgumentParser(description="Classifier-free guidance and CLIP's, by four measures.")
    add = parser.add_argument
    add("out", nargs="?", type=Path, default=sample.OUTPUTS / "guidance_compared.png")
    add("--n", type=train.positive, default=40, help="captions a seed, each drawn twice (default 40)")
    add("--seeds", type=train.seed, nargs="+", default=(0, 1, 2), help="of captions and noise (default 0 1 2)")
    add("--kind", choices=train.KINDS, default="pair", help="of captions (default: pair)")
    add("--steps", default="ddim25", help="the walk, see 04's respace (default ddim25)")
    add("--weights", type=Path, default=sample.WEIGHTS, help="folder of the tiny weights")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    try:
        base = sample.Model.load(args.weights / "base.pt")
        judge = train.load_judge(args.weights / f"judge-{base.size}.pt")
        clip = sample.Clip.load(args.weights / "clip.pt")
        exams = {seed: train.exam(args.kind, args.n, seed) for seed in args.seeds}
        for scene in (scene for scenes in exams.values() for scene in scenes):
            sample.check_prompt(scene.caption(), base)
            sample.check_prompt(scene.caption(), clip)
    except (OSError, ValueError) as e:
        sys.exit(f"guidance_compared.py: {e}")
    title = f"{len(args.seeds)} × {args.n} captions of kind “{args.kind}”, each drawn twice; {args.steps}"
    print(title)
    table, (seed, scenes) = measure(base, judge, clip, exams, args.steps), next(iter(exams.items()))
    shown = examples(base, judge, clip, scenes[:6], seed, args.steps)
    save_picture(table, shown, scenes[:6], title, args.out)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
