"""Classifier-free guidance or CLIP's? GLIDE's comparison in miniature [GLIDE section 5.1], where truth can be checked.

The small base model draws the same captions from the same noise under either guide, at several scales, by the
ancestral sampler and by DDIM. A third time CLIP guides a model that is given no caption: what is drawn then is what
CLIP alone takes for the caption. Two images are drawn of each caption. Four measures:

  right     the judge (10) finds every attribute that the caption names
  log p     the judge's log-probability of those attributes. The judge never guides, so it is a fair witness
  CLIP      100 times the similarity that the guiding CLIP itself sees. It marks its own work: with CLIP's score as the
            only measure you would believe that CLIP guides best
  variety   the distance of a caption's two images in the judge's features, divided by that of real images. Wrong images
            differ too, so it means little where few are right

Scale 1 of the one guide and scale 0 of the other are the same model without guidance, drawn once. The timesteps
"ddim25" begin at 960, not at 999: there √ᾱ is nearly zero, and DDIM, which shifts x̂_0 after clipping, would divide
CLIP's gradient by it.

    python lessons/experiments/guidance.py --dtype bfloat16                            26 minutes on one core
    python lessons/experiments/guidance.py --redraw --out lessons/figures/guidance.png

Found: with ancestral sampling CLIP's guidance is best by CLIP's own score, better than real images even, though the
intervals overlap (tradeoff.py has more pictures). The judge sees nothing of that lead: with classifier-free guidance
94% of captions are right, with CLIP's 91%, and 91% and 78% with DDIM. CLIP alone draws nothing that the judge would
accept.
"""
import sys
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, judge, measures, diffusion, guidance = map(import_module, (
    "lessons.experiments.common", "lessons.10_judge", "lessons.11_measures", "04_diffusion", "05_guidance"))

SCALES = {"free": (1, 2, 3, 5, 8), "clip": (0, 0.5, 1, 3, 8), "alone": (3, 8, 20)}     # 1 and 0 are no guidance
TITLES = {"free": "classifier-free", "clip": "noised CLIP", "alone": "noised CLIP alone"}
SAMPLERS = {"ddpm": "ancestral", "ddim": "DDIM"}
LOOKS = {"free": "tab:blue", "clip": "tab:orange", "alone": "tab:red", "ddpm": "-", "ddim": "--"}
SHOWN = {"free": 3, "clip": 3, "alone": 8}      # the scales whose images are shown, ancestral
COPIES = 2
MEASURES = ("right", "log p", "CLIP", "variety")


def drawn(base, clip, scenes, seed, steps, how, copies=COPIES):
    """So many images of each scene's caption: [copies · n, 3, S, S]. A seed is the same noise for all guides.

    how  guide (of SCALES), sampler (of SAMPLERS) and scale
    """
    guide, sampler, scale = how
    captions, g = [scene.caption() for scene in scenes] * copies, torch.Generator().manual_seed(seed)
    process = diffusion.Diffusion.from_config(base.diffusion, steps)
    x_T = diffusion.gaussian(torch.empty(len(captions), 3, base.size, base.size), g)
    denoiser, grad_fn = base.denoiser, None
    if guide == "free":
        denoiser = guidance.classifier_free(denoiser, scale)
    elif scale:
        grad_fn = guidance.clip_guidance(clip.network, clip.embed(captions), scale)
    read = [""] * len(captions) if guide == "alone" else captions
    return getattr(process, f"{sampler}_sample")(denoiser, x_T, grad_fn=grad_fn, generator=g, **base.encode(read))


def real(scenes, seed, size):
    """The same number of real images."""
    return torch.cat([diffusion.downsample(judge.real_images(scenes, 1000 * seed + copy), size)
                      for copy in range(COPIES)])


@torch.no_grad()
def log_probability(reader, images, scenes):
    """The judge's log-probability of all that each image's caption says: [n]. What it leaves open (-1) counts 0."""
    return -sum(F.cross_entropy(logits, answers, ignore_index=-1, reduction="none")
                for logits, answers in zip(reader(images), judge.labels(scenes).T))


@torch.no_grad()
def measured(images, scenes, reader, clip):
    """{measure: a number for each caption, [n]} of COPIES images a caption; "variety" is a distance still."""
    scenes = scenes * COPIES
    each = {"right": torch.from_numpy(judge.scores(reader, images, scenes)["all"]).float(),
            "log p": log_probability(reader, images, scenes),
            "CLIP": 100 * clip.similarity(images, [scene.caption() for scene in scenes])}
    features = measures.features(reader, images).unflatten(0, (COPIES, -1))      # [COPIES, n, 256]
    return {name: values.unflatten(0, (COPIES, -1)).mean(0) for name, values in each.items()} | {
        "variety": (features[0] - features[1]).norm(dim=1)}


def over_seeds(make, scenes_of, reader, clip):
    """{measure: a number for each caption of all seeds, as a list}; make(scenes, seed) -> images."""
    found = [measured(make(scenes, seed), scenes, reader, clip) for seed, scenes in scenes_of.items()]
    return {name: torch.cat([one[name] for one in found]).tolist() for name in MEASURES}


def as_cells(title, values, distance):
    """A row of the table, printed: {measure: cell}. distance: of real images, the unit of variety."""
    values = {name: torch.tensor(numbers) for name, numbers in values.items()}
    values["variety"] /= distance
    cells = {name: common.cell(numbers, rate=name == "right") for name, numbers in values.items()}
    texts = ("{value:.2f} ({low:.2f} to {high:.2f})".format(**one) for one in cells.values())
    print(f"{title:<36}" + "".join(f"{text:>26}" for text in texts), flush=True)
    return cells


def measure(args, partial):
    """Prints a line for each guide, sampler and scale as soon as it is known. -> the table"""
    weights = common.weights(args, clip=True)
    base, clip = weights.load("base"), weights.load("clip")
    reader = judge.judge_for(base.size, args.weights)
    scenes_of = {seed: judge.eval_captions(args.kind, args.n, seed) for seed in args.seeds}

    def found(title, make):
        return partial(title, lambda: over_seeds(make, scenes_of, reader, clip))

    print(f"{'':<36}" + "".join(f"{name:>26}" for name in MEASURES))
    true = found("real images", lambda scenes, seed: real(scenes, seed, base.size))
    distance, rows = torch.tensor(true["variety"]).mean(), []
    cells = as_cells("real images", true, distance)
    for guide, sampler in ((guide, sampler) for guide in SCALES for sampler in SAMPLERS):
        for scale in SCALES[guide]:
            how = ("free", sampler, 1) if (guide, scale) == ("clip", 0) else (guide, sampler, scale)
            values = found(f"{how}", lambda scenes, seed: drawn(base, clip, scenes, seed, args.steps, how))
            title = f"{TITLES[guide]}, {SAMPLERS[sampler]}, scale {scale:g}"
            rows.append({"guide": guide, "sampler": sampler, "scale": scale} | as_cells(title, values, distance))
    seed, scenes = next(iter(scenes_of.items()))
    return {"kind": args.kind, "n": args.n, "seeds": args.seeds, "copies": COPIES, "steps": args.steps, "real": cells,
            "rows": rows, "examples": examples(base, clip, reader, scenes[:6], seed, args.steps)}


def examples(base, clip, reader, scenes, seed, steps):
    """One row a guide: its title, and for each caption an image with what CLIP and the judge say of it."""
    captions, rows = [scene.caption() for scene in scenes], []
    for guide, scale in SHOWN.items():
        images = drawn(base, clip, scenes, seed, steps, (guide, "ddpm", scale))[:len(scenes)]
        right, fits = judge.scores(reader, images, scenes)["all"], 100 * clip.similarity(images, captions)
        verdicts = [f"CLIP {fit:.1f}, {'right' if good else 'wrong'}" for fit, good in zip(fits.tolist(), right)]
        rows.append([f"{TITLES[guide]},\nscale {scale:g}", *zip(map(common.to_text, images), captions, verdicts)])
    return rows


def plot(ax, table, x, guides):
    """The share of right captions against a measure: a curve for each guide and sampler, with its scales."""
    ax.plot(table["real"][x]["value"], table["real"]["right"]["value"], "*", markersize=17, color="0.3",
            label="real images")
    for guide, sampler in ((guide, sampler) for guide in guides for sampler in SAMPLERS):
        rows = [row for row in table["rows"] if (row["guide"], row["sampler"]) == (guide, sampler)]
        across, (up, lows, highs) = [row[x]["value"] for row in rows], common.columns([row["right"] for row in rows])
        ax.vlines(across, lows, highs, color=LOOKS[guide], alpha=0.3)
        ax.plot(across, up, marker="o", color=LOOKS[guide], linestyle=LOOKS[sampler],
                label=f"{TITLES[guide]}, {SAMPLERS[sampler]}")
        for row, place in zip(rows, zip(across, up)):
            ax.annotate(f"{row['scale']:g}", place, (5, 5), textcoords="offset points", color=LOOKS[guide], size=12)
    ax.yaxis.set_major_formatter("{x:.0%}")
    ax.tick_params(labelsize=12)
    ax.grid(alpha=0.3)


def draw(table):
    """Above, what guidance gains and costs, and what the guiding CLIP would have you believe; below, examples."""
    rows = table["examples"]
    figure = Figure(figsize=(14, 13), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(5.6, 7.4))
    left, right = above.subplots(1, 2)
    plot(left, table, "variety", ("free", "clip"))
    plot(right, table, "CLIP", SCALES)
    left.set_xlabel("variety, that of real images being 1", size=13)
    left.set_ylabel("captions drawn right, says the judge", size=13)
    right.set_xlabel("the guiding CLIP's own score", size=13)
    right.set_ylim(-0.03, None)
    right.legend(loc="center left", fontsize=12)
    above.suptitle(f"{len(table['seeds'])} × {table['n']} captions of kind “{table['kind']}”, each drawn twice,"
                   f" {table['steps']}; numbers are scales", size=15)
    for axes, (title, *images) in zip(below.subplots(len(rows), len(rows[0]) - 1, squeeze=False), rows):
        for ax, (image, caption, verdict) in zip(axes, images):
            common.show(ax, image, title=caption if title == rows[0][0] else "", below=verdict)
        axes[0].set_ylabel(title, size=13)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "guidance", n=40, seeds=(0, 1, 2))
    parser.add_argument("--kind", choices=judge.KINDS, default="pair", help="of captions (default: pair)")
    parser.add_argument("--steps", default="ddim25", help="timesteps, see 04's respace (default: ddim25)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
