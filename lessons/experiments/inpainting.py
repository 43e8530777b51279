"""Three ways to draw into a hole [GLIDE section 4.3], compared: what shows at its edge, and what is drawn in it.

  overwrite   after each step the known part of x_{t-1} becomes a draw from q: the network sees it only through noise
  replace     the known part of each predicted x̂_0 becomes the true one: corrected after the network has answered
  fine-tune   the network is shown the known part on four more channels; replaced it is as well, as in GLIDE's notebooks

The images show single things and pairs. Each gets four holes and the caption of the whole image; of a pair one thing
is erased, and the caption names both:

  box      a rectangle around the thing, so that nothing of it is left
  half     the half of the image that the thing is in; of a single thing any half, so half of it may show
  border   all but a rectangle around the other thing, or all but the middle of a single thing's image
  stroke   what a brush erases (06), at least a third of the thing

Three measures, with 95% intervals over all images of all seeds:

  right    the judge (10) looks at the whole image and finds everything that the caption names
  edge     the jump across the hole's edge where the true image has none: an image's median, because a seam runs along
           all of the edge, while a thing that is drawn up to it touches some of it, and may (06's seam is a mean)
  context  how far the network's own predictions are off where the truth is known, before they are corrected, averaged
           over the steps: how well it has understood the surroundings

Edge and context are in levels of 255. In the end the known pixels are exact in all three ways.

    python lessons/experiments/inpainting.py --dtype bfloat16                          24 minutes on one core
    python lessons/experiments/inpainting.py --redraw --out lessons/figures/inpainting.png

Found: the fine-tuned network understands its surroundings 1.7 to 2.4 times as well. In the result it shows where much
is drawn around little, where its edges are less than half as high; elsewhere captions and edges do not differ by more
than chance.
"""
import random
import sys
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, judge, diffusion, guidance, inpaint = map(import_module, (
    "lessons.experiments.common", "lessons.10_judge", "04_diffusion", "05_guidance", "06_inpaint"))

HOLES = ("box", "half", "border", "stroke")
WAYS = {"overwrite": "overwrite x_t", "replace": "replace x̂_0", "fine-tune": "fine-tune"}
COLORS = {"overwrite": "tab:orange", "replace": "tab:blue", "fine-tune": "tab:green"}
MEASURES = {"right": "captions drawn right", "edge": "edge: jump where there should be none, of 255",
            "context": "context: error where the image is known, of 255"}
ASKED = ("layout", "background", "noun", "color", "size")


# --- Images and their holes --------------------------------------------------------------------------

@dataclass(frozen=True)
class Edits:
    """Images, what they show when they are whole, and their holes."""

    scenes: list
    images: torch.Tensor    # [n, 3, S, S] in [-1, 1]
    masks: dict             # kind of hole -> [n, 1, S, S], 1 = known

    @classmethod
    def make(cls, kinds, n, size, seed):
        """n images, the same number of each kind of 10; the same seed gives the same ones."""
        scenes = [scene for kind in kinds for scene in judge.eval_captions(kind, -(-n // len(kinds)), seed)][:n]
        images, rng = judge.real_images(scenes, seed), random.Random(f"holes {seed}")
        # No thing reaches the outermost pixels (04), so a corner has the background's colour.
        ink = (images != images[:, :, :1, :1]).any(1, keepdim=True).float()
        ink = F.max_pool2d(ink, ink.shape[-1] // size)[:, 0].bool()                                # [n, S, S]
        known = [holes(scene, one, rng) for scene, one in zip(scenes, ink)]
        masks = {hole: torch.stack([one[hole] for one in known])[:, None].float() for hole in HOLES}
        return cls(scenes, diffusion.downsample(images, size), masks)


def some_half(scene, size, rng):
    """A half of the image, bool [S, S]. A pair is cut between its things, a single thing's image either way."""
    beside = scene.canonical().relation == "to the left of" if scene.kind == "pair" else rng.random() < 0.5
    half, part = torch.zeros(size, size, dtype=torch.bool), rng.choice((slice(0, size // 2), slice(size // 2, size)))
    half[(slice(None), part) if beside else part] = True
    return half


def rectangle(ink):
    """The smallest rectangle around all that is True in [S, S]: bool [S, S]."""
    rows, columns = ink.any(1).nonzero(), ink.any(0).nonzero()
    around = torch.zeros_like(ink)
    around[rows.min():rows.max() + 1, columns.min():columns.max() + 1] = True
    return around


def brushed(thing, rng):
    """What remains after a brush has erased at least a third of a thing: bool [S, S]."""
    while True:
        known = inpaint.stroke(*thing.shape, rng).bool()
        if known[thing].float().mean() <= 2 / 3:
            return known


def holes(scene, ink, rng):
    """What each kind of hole leaves known of an image with this ink, [S, S]: {kind: bool [S, S]}."""
    size, half = len(ink), some_half(scene, len(ink), rng)
    if scene.kind == "pair":
        thing, kept = ink & half, rectangle(ink & ~half)
    else:
        thing, kept = ink, torch.zeros_like(ink)
        kept[size // 4:size * 3 // 4, size // 4:size * 3 // 4] = True
    return {"box": ~rectangle(thing), "half": ~half, "border": kept, "stroke": brushed(thing, rng)}


# --- Drawing and measuring ---------------------------------------------------------------------------

def fill(way, model, edits, hole, *, seed, steps, scale):
    """Draw into one kind of hole, ancestrally. A seed is the same noise for all three ways.

    -> images [n, 3, S, S] and `context` for each of them, [n]
    """
    image, mask, errors = edits.images, edits.masks[hole], []
    process, g = diffusion.Diffusion.from_config(model.diffusion, steps), torch.Generator().manual_seed(seed)
    x_T, put = diffusion.gaussian(image, g), inpaint.replace_known(image, mask)

    def look(x0):                       # at what was predicted, before it is corrected
        errors.append(((x0.clamp(-1, 1) - image).abs() * mask).sum((1, 2, 3)) / (3 * mask.sum((1, 2, 3))))
        return x0 if way == "overwrite" else put(x0)

    options = {"x0_fn": look}
    if way == "overwrite":              # with a generator of its own, so that the other ways have the same noise
        options["step_fn"] = inpaint.overwrite_known(process, image, mask, torch.Generator().manual_seed(seed + 1))
    if way == "fine-tune":
        options |= {"inpaint_image": image, "inpaint_mask": mask}
    drawn = process.ddpm_sample(guidance.classifier_free(model.denoiser, scale), x_T, generator=g, **options,
                                **model.encode([scene.caption() for scene in edits.scenes]))
    return drawn, torch.stack(errors).mean(0) * 127.5


def edges(drawn, image, mask):
    """The median jump across each image's edge, where the true image has none: [n], in levels of 255. Not a number
    where the true image jumps everywhere."""
    found = []
    for x, true, known in zip(drawn, image, mask):
        jumps = [x.diff(dim=dim).abs().mean(0)[known.diff(dim=dim)[0].bool() & (true.diff(dim=dim) == 0).all(0)]
                 for dim in (1, 2)]
        found.append(torch.cat(jumps).median() if sum(map(len, jumps)) else torch.tensor(torch.nan))
    return 127.5 * torch.stack(found)


def filled(way, model, edits, hole, reader, **how):
    """All that is measured of one set's drawings: {name: a number for each image}, and the images as text."""
    drawn, context = fill(way, model, edits, hole, **how)
    scores = judge.scores(reader, drawn, edits.scenes)
    wrong = [", ".join(name for name in ASKED if not scores[name][i]) for i in range(len(drawn))]
    edge = edges(drawn, edits.images, edits.masks[hole])
    return {"right": scores["all"].astype(float).tolist(), "wrong": wrong, "context": context.tolist(),
            "edge": edge.tolist(), "images": [common.to_text(x) for x in drawn]}


def measure(args, partial):
    """Prints a line for each hole and way as soon as it is known. -> the table"""
    models = {name: common.weights(args, inpaints=tuned).load("base") for name, tuned in (
        ("overwrite", False), ("replace", False), ("fine-tune", True))}
    if models["fine-tune"].kind != "inpaint":
        raise ValueError(f"there is no inpaint.pt in {args.weights}; python 08_train.py inpaint trains one")
    reader, kinds = judge.judge_for(models["replace"].size, args.weights), ("single", "pair")
    sets = {seed: Edits.make(kinds, args.n, reader.config.size, seed) for seed in args.seeds}
    true = torch.cat([torch.from_numpy(judge.scores(reader, edits.images, edits.scenes)["all"])
                      for edits in sets.values()])
    table = {"n": args.n, "seeds": args.seeds, "steps": args.steps, "scale": args.scale, "true": common.cell(true)}
    found, table["holes"] = {}, {hole: {} for hole in HOLES}
    for hole, way in ((hole, way) for hole in HOLES for way in WAYS):
        parts = found[hole, way] = [partial(f"{hole}, {way}, {seed}", lambda: filled(
            way, models[way], edits, hole, reader, seed=seed, steps=args.steps, scale=args.scale))
            for seed, edits in sets.items()]
        cells = {name: common.cell(torch.tensor(sum((part[name] for part in parts), [])), rate=name == "right")
                 for name in MEASURES}
        table["holes"][hole][way] = cells
        texts = ("{value:.1f} ({low:.1f} to {high:.1f})".format(**cells[name]) for name in ("edge", "context"))
        print(f"{hole:<8}{way:<11}{common.percent(cells['right']):>14}" + "".join(f"{text:>24}" for text in texts))
    return table | {"examples": examples(next(iter(sets.values())), {key: one[0] for key, one in found.items()})}


def examples(edits, found):
    """For each hole the first image of the first seed that overwriting or replacing gets wrong, or else the first:
    a row of (image, what stands below it)."""
    rows = []
    for hole in HOLES:
        wrong = {way: found[hole, way]["wrong"] for way in WAYS}
        i = next((i for i, pair in enumerate(zip(wrong["overwrite"], wrong["replace"])) if any(pair)), 0)
        known = torch.where(edits.masks[hole][i].bool(), edits.images[i], 0.6)
        rows.append([(common.to_text(edits.images[i]), edits.scenes[i].caption()), (common.to_text(known), hole)])
        for way in WAYS:
            verdict = f"wrong: {wrong[way][i]}" if wrong[way][i] else "right"
            rows[-1].append((found[hole, way]["images"][i], verdict))
    return rows


# --- The figure --------------------------------------------------------------------------------------

def draw(table):
    """Left, examples; right, the three measures, a bar for each hole and way with its 95% interval."""
    figure = Figure(figsize=(18.5, 13), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(12, 6.5))
    left.suptitle("The first image that overwriting or replacing gets wrong", size=16)
    titles = ("the image", "what is known", *WAYS.values())
    for row, axes in zip(table["examples"], left.subplots(len(HOLES), len(titles))):
        for ax, (image, below), title in zip(axes, row, titles):
            common.show(ax, image, title=title if row is table["examples"][0] else "", below=below, size=13)
    for ax, (name, title) in zip(right.subplots(len(MEASURES), 1), MEASURES.items()):
        for k, way in enumerate(WAYS):
            cells = [found[way][name] for found in table["holes"].values()]
            common.bars(ax, k, len(WAYS), cells, capsize=4, color=COLORS[way], label=WAYS[way])
        ax.set_xticks(range(len(HOLES)), HOLES, size=14)
        ax.set_title(title, size=15)
        ax.tick_params(axis="y", labelsize=12)
        ax.grid(axis="y", alpha=0.3)
        if name == "right":
            ax.axhline(table["true"]["value"], color="0.3", linestyle="--", label="true images")
            ax.set_ylim(0, 1.02)
            ax.yaxis.set_major_formatter("{x:.0%}")
            ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.12), ncol=2, fontsize=13)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "inpainting", n=60, seeds=(0, 1, 2))
    parser.add_argument("--steps", default="50", help="of the ancestral sampler, see 04's respace (default: 50)")
    parser.add_argument("--scale", type=float, default=5.0, help="of guidance (default: 5)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
