"""Three ways to draw into a hole [GLIDE section 4.3], compared: what shows at its edge, and what is in it.

  overwrite   after each step the known part of x_{t-1} becomes a draw from q: the network sees it through noise only
  replace     the known part of each predicted picture becomes the true one: the network is corrected behind its back
  fine-tune   the network is shown the known part on four more channels; replaced it is, too, as GLIDE's notebooks do

The set is fixed by its seeds: pictures of single things and of pairs, each with four holes and with the caption of
the whole picture. Of a pair, one thing is to be drawn, and the caption names both:

  box      a rectangle around the thing; nothing of it is left
  half     the half of the picture that the thing lies in; of a single thing's picture any half, so half of it may show
  border   all but a rectangle around the other thing, or but the middle of a single thing's picture
  stroke   what a brush wipes out (06), at least a third of the thing

Three measures, each with its 95% interval over all pictures of all seeds:

  right    everything that the caption names is there, says the judge (08), who looks at the whole picture. What the
           caption leaves open it does not ask: another background in the hole shows in the next measure
  edge     the jump across the hole's edge, at the places where the true picture has none: the median of a picture's. A
           seam runs along all of the edge; a thing that is drawn up to it touches some of it, and may
  context  how far the network's own predicted pictures are off where the truth is known, before they are corrected,
           the mean over the walk: how much of its surroundings the network has understood

Edge and context are in levels of 255. In the end the known pixels are exact in all three ways; one line says whether
they are. What was wrong with the pictures that are not right stands in a second table.

    python lessons/inpainting_compared.py [OUT.png] [--n 60] [--seeds 0 1 2] [--steps 50] [--scale 5]

Default outputs/inpainting_compared.png. Without lessons/weights/inpaint.pt (python 08_train.py inpaint makes it) the
third way is left out. At n = 60, three seeds, four holes and three ways, 50 guided steps are 108,000 steps of one
picture: 22 minutes on one core.
"""
import argparse
import random
import sys
import textwrap
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")
diffusion, guidance, inpaint = train.diffusion, train.guidance, train.inpaint

HOLES = ("box", "half", "border", "stroke")
WAYS = {"overwrite": "overwrite x_t", "replace": "replace x̂_0", "fine-tune": "fine-tune"}
COLORS = {"overwrite": "tab:orange", "replace": "tab:blue", "fine-tune": "tab:green"}
MEASURES = {"right": "captions that came out right", "edge": "edge: jump where there should be none, of 255",
            "context": "context: error where the picture is known, of 255"}
ASKED = list(dict.fromkeys(name for name, _ in train.QUESTIONS))     # layout, background, noun, color, size


def interval(name, values):
    """(mean, low, high), 95%, of one of MEASURES."""
    return train.mean_interval(values[~values.isnan()], rate=name == "right")


# --- The fixed set -----------------------------------------------------------------------------------

@dataclass(frozen=True)
class Edits:
    """Pictures, what shall be in them when they are whole, and their holes."""

    scenes: list
    images: torch.Tensor    # [n, 3, S, S] in [-1, 1]
    masks: dict             # kind of hole -> [n, 1, S, S], 1 = known

    @classmethod
    def of(cls, kinds, n, size, seed):
        """n pictures, as many of each of 08's kinds; one seed is one set."""
        scenes = [scene for kind in kinds for scene in train.exam(kind, -(-n // len(kinds)), seed)][:n]
        pictures, rng = train.real_pictures(scenes, seed), random.Random(f"holes {seed}")
        known = [holes(scene, one, rng) for scene, one in zip(scenes, inked(pictures, size))]
        masks = {hole: torch.stack([one[hole] for one in known])[:, None].float() for hole in HOLES}
        return cls(scenes, diffusion.reduce(pictures, size), masks)

    @classmethod
    def joined(cls, sets):
        return cls([scene for one in sets for scene in one.scenes], torch.cat([one.images for one in sets]),
                   {hole: torch.cat([one.masks[hole] for one in sets]) for hole in HOLES})


def inked(pictures, size):
    """Where there is something of a thing: uint8 [n, 3, 64, 64] -> bool [n, size, size]."""
    # No thing reaches the outermost pixels (04), so the corner has the background's colour.
    ink = (pictures != pictures[:, :, :1, :1]).any(1, keepdim=True)
    return F.max_pool2d(ink.float(), 64 // size)[:, 0].bool()


def some_half(scene, size, rng):
    """A half of the picture, bool [S, S]. A pair is cut between its things; a single thing anyhow."""
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
    """What a brush leaves that has wiped out a third of a thing, or more: bool [S, S]."""
    while True:
        known = inpaint.stroke(*thing.shape, rng).bool()
        if known[thing].float().mean() <= 2 / 3:
            return known


def holes(scene, ink, rng):
    """What each kind of hole leaves known of one picture with this ink, [S, S]: {kind: bool [S, S]}."""
    size, half = len(ink), some_half(scene, len(ink), rng)
    if scene.kind == "pair":
        thing, kept = ink & half, rectangle(ink & ~half)
    else:
        thing, kept = ink, torch.zeros_like(ink)
        kept[size // 4:size * 3 // 4, size // 4:size * 3 // 4] = True
    return {"box": ~rectangle(thing), "half": ~half, "border": kept, "stroke": brushed(thing, rng)}


# --- Drawing and measuring ---------------------------------------------------------------------------

def fill(way, model, edits, hole, seed, steps, scale):
    """Draws into one kind of hole, ancestrally. One seed is one noise, whatever the way.

    -> pictures [n, 3, S, S] and `context` for each of them [n]
    """
    image, mask, off = edits.images, edits.masks[hole], []
    process, generator = diffusion.Diffusion.of(model.process, steps), torch.Generator().manual_seed(seed)
    noise, put = diffusion.gaussian(image, generator), inpaint.replace_known(image, mask)
    count = image.shape[1] * mask.sum((1, 2, 3))                                                   # [n]

    def look(x0):                       # at what was predicted, before it is corrected
        off.append(((x0.clamp(-1, 1) - image).abs() * mask).sum((1, 2, 3)) / count)
        return x0 if way == "overwrite" else put(x0)

    hooks, given = {"x0_fn": look}, {}
    if way == "overwrite":              # dice of its own, so that the noise outside is that of the other ways
        hooks["step_fn"] = inpaint.overwrite_known(process, image, mask, torch.Generator().manual_seed(seed + 1))
    if way == "fine-tune":
        given = {"inpaint_image": image, "inpaint_mask": mask}
    drawn = process.ddpm_sample(guidance.classifier_free(model.denoiser, scale), noise, generator=generator, **hooks,
                                **given, **model.encode([scene.caption() for scene in edits.scenes]))
    return drawn, torch.stack(off).mean(0) * 127.5


def edges(drawn, image, mask):
    """How visible each picture's edge is: the median jump across it, where the true picture has none: [n], in levels of
    255. Not a number where the true one jumps everywhere."""
    found = []
    for x, true, known in zip(drawn, image, mask):
        jumps = [x.diff(dim=dim).abs().mean(0)[known.diff(dim=dim)[0].bool() & (true.diff(dim=dim) == 0).all(0)]
                 for dim in (1, 2)]
        found.append(torch.cat(jumps).median() if sum(map(len, jumps)) else torch.tensor(torch.nan))
    return 127.5 * torch.stack(found)


def examined(drawn, context, edits, hole, judge):
    """All that is known of the drawings for one kind of hole: {name: a number, or a picture, for each}."""
    image, mask = edits.images, edits.masks[hole]
    said = {name: torch.from_numpy(right) for name, right in train.scores(judge, drawn, edits.scenes).items()}
    return {"right": said.pop("all").float(), "edge": edges(drawn, image, mask), "context": context, "drawn": drawn,
            "left": ((drawn - image).abs() * mask).amax((1, 2, 3)), **said}


def measure(models, judge, sets, **how):
    """Prints the table, a row as soon as it is known. -> {(hole, way): {name: a value for each picture of all seeds}}

    models  {way: Model};  sets  {seed: Edits};  how  steps and scale
    """
    print(f"\n{'hole':<8}{'way':<12}" + "".join(f"{name:>8} {'95% interval':<16}" for name in MEASURES))
    table = {}
    for hole in HOLES:
        for way, model in models.items():
            found = [examined(*fill(way, model, edits, hole, seed, **how), edits, hole, judge)
                     for seed, edits in sets.items()]
            table[hole, way] = {name: torch.cat([one[name] for one in found]) for name in found[0]}
            print(f"{hole:<8}{way:<12}" + "".join(cell(name, table[hole, way][name]) for name in MEASURES), flush=True)
    return table


def cell(name, values):
    """A measure with its interval, as one column of the table."""
    mean, low, high = (value * (100 if name == "right" else 1) for value in interval(name, values))
    return f"{mean:>8.1f} " + f"({low:.1f} to {high:.1f})".ljust(16)


def tell_failures(table, scenes):
    """Prints how often each thing that a caption says is wrong, and how single things and pairs fare."""
    pair = torch.tensor([scene.kind == "pair" for scene in scenes])
    groups = {"single things": ~pair, "pairs": pair}
    print("\nWhat was wrong, in % of all pictures; and right, in % of single things and of pairs; 95% intervals")
    print(f"{'hole':<8}{'way':<12}" + "".join(f"{name:>14}" for name in [*ASKED, *groups]))
    for (hole, way), found in table.items():
        lines = [~found[name] for name in ASKED] + [found["right"][group].bool() for group in groups.values()]
        print(f"{hole:<8}{way:<12}" + "".join(f"{share(line):>14}" for line in lines))


def share(hits):
    """Of a bool tensor: "12 (8–17)", in %."""
    if not len(hits):
        return "none"
    low, high = train.wilson(int(hits.sum()), len(hits))
    return f"{100 * hits.float().mean():.0f} ({100 * low:.0f}–{100 * high:.0f})"


def tell_known(table, models):
    """Prints how far known pixels are off when all is drawn."""
    off = {way: max(table[hole, way]["left"].max().item() for hole in HOLES) for way in models}
    print("\nKnown pixels, in the end, are off by at most " + ", ".join(f"{way} {most:.1g}" for way, most in off.items()))


# --- The picture -------------------------------------------------------------------------------------

def show_examples(figure, edits, table, models):
    """One row a hole: the first picture of the set that one of the first two ways got wrong, else the first."""
    titles = ["the picture", "what is known", *(WAYS[way] for way in models)]
    figure.suptitle("The first picture of the set that overwriting or replacing gets wrong", size=15)
    for i, (hole, axes) in enumerate(zip(HOLES, figure.subplots(len(HOLES), len(titles)))):
        wrong = (table[hole, "overwrite"]["right"] * table[hole, "replace"]["right"] == 0).nonzero()
        at = int(wrong[0]) if len(wrong) else 0
        image, mask, caption = edits.images[at], edits.masks[hole][at], edits.scenes[at].caption()
        known = torch.where(mask.bool(), image, torch.full_like(image, 0.6))
        pictures = [image, known, *(table[hole, way]["drawn"][at] for way in models)]
        words = [caption, hole, *(verdict(table[hole, way], at) for way in models)]
        for ax, picture, below, title in zip(axes, pictures, words, titles):
            ax.imshow(train.to_bytes(picture).permute(1, 2, 0).numpy(), interpolation="nearest")
            ax.set(xticks=[], yticks=[])
            ax.set_xlabel("\n".join(textwrap.wrap(below, 24)), size=11)
            ax.set_title(title if i == 0 else "", size=14)


def verdict(found, at):
    """What the judge says of one drawing."""
    wrong = [name for name in ASKED if not found[name][at]]
    return "wrong: " + ", ".join(wrong) if wrong else "right"


def show_bars(figure, table, models, ceiling):
    """One panel a measure: a bar for each hole and way, with its 95% interval."""
    width, axes = 0.8 / len(models), figure.subplots(len(MEASURES), 1)
    for ax, (name, title) in zip(axes, MEASURES.items()):
        for k, way in enumerate(models):
            means, lows, highs = np.array([interval(name, table[hole, way][name]) for hole in HOLES]).T
            places = np.arange(len(HOLES)) + (k - (len(models) - 1) / 2) * width
            ax.bar(places, means, 0.92 * width, yerr=np.clip([means - lows, highs - means], 0, None), capsize=4,
                   color=COLORS[way], label=WAYS[way])
        ax.set_xticks(range(len(HOLES)), HOLES, size=13)
        ax.set_title(title, size=14)
        ax.tick_params(axis="y", labelsize=11)
        ax.axhline(0, color="0.2", linewidth=0.8)
        ax.grid(axis="y", alpha=0.3)
    axes[0].axhline(ceiling, color="0.3", linestyle="--", label="true pictures")
    axes[0].set_ylim(0, 1.02)
    axes[0].yaxis.set_major_formatter("{x:.0%}")
    axes[0].legend(loc="lower center", bbox_to_anchor=(0.5, 1.12), ncol=2, fontsize=12)


def save_picture(edits, table, models, ceiling, path):
    """Left, examples; right, the three measures."""
    wide = 2.4 * (2 + len(models))
    figure = Figure(figsize=(wide + 6.5, 13), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(wide, 6.5))
    show_examples(left, edits, table, models)
    show_bars(right, table, models, ceiling)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


# --- The command line --------------------------------------------------------------------------------

def load(folder):
    """-> {way: Model} and the judge of a folder. Raises FileNotFoundError or ValueError, one line each."""
    base, tuned = sample.Model.load(folder / "base.pt"), folder / "inpaint.pt"
    models = {"overwrite": base, "replace": base}
    if tuned.exists():
        models["fine-tune"] = sample.Model.load(tuned)
    else:
        print(f"there is no {tuned} (python 08_train.py inpaint makes it): fine-tuning is left out")
    return models, train.load_judge(folder / f"judge-{base.size}.pt")


def arguments(argv=None):
    parser = argparse.ArgumentParser(description="Three ways to draw into a hole, by three measures.")
    add = parser.add_argument
    add("out", nargs="?", type=Path, default=sample.OUTPUTS / "inpainting_compared.png")
    add("--n", type=train.positive, default=60, help="pictures a seed, each with four holes (default 60)")
    add("--seeds", type=train.seed, nargs="+", default=(0, 1, 2), help="of pictures, holes and noise (default 0 1 2)")
    add("--steps", default="50", help="of the ancestral walk, see 04's respace (default 50)")
    add("--scale", type=sample.finite, default=5.0, help="of guidance (default 5)")
    add("--weights", type=Path, default=sample.WEIGHTS, help="folder of the tiny weights")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    try:
        models, judge = load(args.weights)
        diffusion.Diffusion.of(models["replace"].process, args.steps)          # or a wrong --steps would show late
    except (OSError, ValueError) as e:
        sys.exit(f"inpainting_compared.py: {e}")
    full = all(model.difficulty == "full" for model in models.values())
    kinds, size = ("single", "pair") if full else ("easy single",), judge.config.size
    sets = {seed: Edits.of(kinds, args.n, size, seed) for seed in dict.fromkeys(args.seeds)}
    edits = Edits.joined(sets.values())
    true = torch.from_numpy(train.scores(judge, edits.images, edits.scenes)["all"])
    print(f"{len(sets)} × {args.n} pictures of kind {', '.join(kinds)}; {args.steps} ancestral steps, guidance "
          f"{args.scale:g}\nof the true pictures the judge finds {share(true)} % right")
    table = measure(models, judge, sets, steps=args.steps, scale=args.scale)
    tell_known(table, models)
    tell_failures(table, edits.scenes)
    save_picture(edits, table, models, true.float().mean().item(), args.out)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
