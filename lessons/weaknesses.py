"""Known weaknesses, measured: binding, relations, counting and new combinations, and what guidance does to each.

Models like GLIDE are known to fail there. In the little world a caption's truth can be checked, so each weakness
becomes a rate. The base model draws the same captions from the same noise at several guidance scales, and the judge
(08) says what it sees:

  binding      pairs of things that differ in noun and in colour: has each noun its own colour? Or are they all there,
               and the colours, or the nouns, have changed places?
  relations    the same pictures: of those that show both nouns, how many have them as said? Each of the four relations
               is asked for equally often. Which thing is which is told by the nouns alone
  counting     one, two and three of the same thing; the judge says how many there are, whatever they are
  composition  things whose colour and noun were never trained together, beside the same things in a colour that was

Each rate stands beside its 95% interval and beside what the judge says of *real* pictures of the same captions: for
successes its ceiling, for mistakes its floor. At scale 0 the caption is not heard: what comes out right there is chance.

  negation     "not a red heart": a word that no caption of the training had, spelt out in letters before one that many
               had. How often is the thing drawn all the same? The language has no negation, so this tells what a
               model does with one that it never learned; larger ones have seen the word, and mostly do the same

    python lessons/weaknesses.py [OUT.png] [--n 50] [--seeds 0 1 2] [--scales 0 1 2 3 5 8] [--steps 25]

Default outputs/weaknesses.png. It takes weights that know pairs and counts (08's --world full). One n stands for n
pairs, 3n counts, 2n single things and n denied ones: at n = 50, three seeds and six scales, 25 guided steps are 157,500
steps of one picture: 24 minutes on one core without the denied ones, which take two more.
"""
import argparse
import math
import random
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")
tokenizer, diffusion = train.tokenizer, train.diffusion

SCALES = (0, 1, 2, 3, 5, 8)
NOUNS, COLORS = ([i for i, (name, _) in enumerate(train.QUESTIONS) if name == part] for part in ("noun", "color"))
LAYOUT, PAIRED = 0, train.LAYOUTS.index("side by side")     # the first question; the first of two answers that see a pair
SHARES = dict(zip(train.LAYOUTS, (0.4, 0.1, 0.1, 0.2, 0.2)))                    # in training (01, `random_scene`)
WHOLE = "all that the caption says"


# --- What is asked -----------------------------------------------------------------------------------

def pairs(n, seed):
    """n scenes of two things that differ in noun and in colour, or a swap would not show; relations in turn."""
    rng, found = random.Random(f"pairs {seed}"), []
    while len(found) < n:
        scene = tokenizer.random_scene(rng)
        if scene.kind == "pair" and all(len({getattr(thing, part) for thing in scene.things}) == 2
                                        for part in ("noun", "color")):
            found.append(replace(scene, relation=tokenizer.RELATIONS[len(found) % len(tokenizer.RELATIONS)]))
    return found


def counts(n, seed):
    """n scenes, each of one, of two and of three: nothing but the number differs."""
    return [replace(scene, count=count) for scene in train.exam("count", n, seed) for count in (1, 2, 3)]


def singles(n, seed):
    """n held-out things, and each in another colour, one that training has shown of its noun."""
    rng, new = random.Random(f"colours {seed}"), train.exam("held out", n, seed)
    return new + [recolored(scene, rng) for scene in new]


def recolored(scene, rng):
    thing, = scene.things
    seen = [color for color in tokenizer.COLORS if (color, thing.noun) not in tokenizer.HELD_OUT]
    return replace(scene, things=(replace(thing, color=rng.choice(seen)),))


# --- What is seen ------------------------------------------------------------------------------------
# Each takes scenes and what the judge saw, [n, questions], and returns lines of a table:
# {line: (which of the n did it, which of the n the line is about)}, two bool tensors.

def everything(scenes, seen):
    """Whether each picture shows all that its caption says: bool [n]."""
    wanted = train.labels(scenes)
    return ((seen == wanted) | (wanted < 0)).all(1)


def in_place_or_swapped(scenes, seen, part):
    """Whether both things have the nouns, or the colours, that were asked for, or each has the other's."""
    seen, wanted = seen[:, part], train.labels(scenes)[:, part]
    return (seen == wanted).all(1), (seen == wanted.flip(1)).all(1)


def binding(scenes, seen):
    nouns, other_nouns = in_place_or_swapped(scenes, seen, NOUNS)
    colors, other_colors = in_place_or_swapped(scenes, seen, COLORS)
    pair = seen[:, LAYOUT] >= PAIRED         # of anything else, what the judge says about a second thing means nothing
    there = pair & (nouns | other_nouns) & (colors | other_colors)
    bound = pair & (nouns & colors | other_nouns & other_colors)       # or the things, as wholes, changed places
    every = torch.ones_like(pair)
    return {WHOLE: (everything(scenes, seen), every),
            "both nouns and both colours are there": (there, every),
            "each noun in its own colour": (bound, every),
            "colours swapped": (there & nouns & other_colors, every),
            "nouns swapped": (there & other_nouns & colors, every),
            "own colours, if all four are there": (bound, there)}


def relations(scenes, seen):
    nouns, other_nouns = in_place_or_swapped(scenes, seen, NOUNS)
    both = (seen[:, LAYOUT] >= PAIRED) & (nouns | other_nouns)
    in_line = seen[:, LAYOUT] == train.labels(scenes)[:, LAYOUT]
    said = {word: torch.tensor([scene.relation == word for scene in scenes]) for word in tokenizer.RELATIONS}
    left, right, above, below = said.values()
    right_places = both & nouns & in_line
    return {"both nouns are there": (both, torch.ones_like(both)),
            "left or right, as said": (right_places, both & (left | right)),
            "above or below, as said": (right_places, both & (above | below)),
            "changed places": (in_line & other_nouns, both),
            "beside instead of above, or the reverse": (~in_line, both),
            **{f"“{word}”, as said": (right_places, both & group) for word, group in said.items()}}


def counting(scenes, seen):
    """A confusion table: each number that was asked for against each that was drawn."""
    asked, drawn = (torch.tensor([scene.count for scene in scenes]), seen[:, LAYOUT] + 1)
    names, lines, right = train.LAYOUTS[:3], {}, everything(scenes, seen)
    for count, name in enumerate(names, 1):
        lines |= {f"“{name}” drawn as {other}": (drawn == number, asked == count)
                  for number, other in enumerate(names, 1)}
        lines[f"“{name}” drawn as two different things"] = drawn > len(names), asked == count
        lines[f"“{name}”: {WHOLE}"] = right, asked == count
    return lines


def composition(scenes, seen):
    wanted, lines = train.labels(scenes), {}
    new = torch.tensor([(scene.things[0].color, scene.things[0].noun) in tokenizer.HELD_OUT for scene in scenes])
    for name, group in {"never seen together": new, "seen together": ~new}.items():
        lines[f"{name}: all that is said"] = everything(scenes, seen), group
        for part, (place, _) in {"colour": COLORS, "noun": NOUNS}.items():
            lines[f"{name}: the {part}"] = seen[:, place] == wanted[:, place], group
    return lines


def denied(n, seed):
    """n captions of single things with a "not" before them, and the scenes that are denied."""
    scenes = singles(n, seed)[n:]          # of colours and nouns that were trained together
    return scenes, [f"not {scene.caption()}" for scene in scenes]


EXAMS = {"pairs": (pairs, (binding, relations)), "counts": (counts, (counting,)),
         "single things": (singles, (composition,))}
# The lines of each table that are drawn; the first is its main one.
PLOTTED = {"binding": ("each noun in its own colour", "colours swapped", "nouns swapped"),
           "relations": ("left or right, as said", "above or below, as said", "changed places"),
           "counting": ("“one” drawn as one", "“two” drawn as two", "“three” drawn as three"),
           "composition": ("never seen together: all that is said", "seen together: all that is said")}
TITLES = {"binding": "binding: two nouns, two colours", "relations": "relations, where both nouns are there",
          "counting": "counting", "composition": "composition: colour and noun of a thing"}


# --- Measuring ---------------------------------------------------------------------------------------

def look(base, judge, scenes, seed, scale, steps, captions=None):
    """What the judge sees, [n, questions], in drawings of these scenes' captions, or of other captions given; scale
    None: in real pictures."""
    if scale is None:
        return train.answer(judge, diffusion.reduce(train.real_pictures(scenes, seed), base.size))
    generator = torch.Generator().manual_seed(seed)      # one seed is one noise, whatever the scale
    return torch.cat([
        train.answer(judge, sample.draw_small(base, some, generator=generator, scale=scale, steps=steps).cpu())
        for some in sample.batches(captions or [scene.caption() for scene in scenes], 100)])


def measure(base, judge, n, seeds, scales, steps):
    """Prints every table as soon as it is known.

    -> {weakness: {line: [(right, n) for each scale, and of real pictures]}}
    """
    tables = {}
    for name, (make, weaknesses) in EXAMS.items():
        exams = {seed: make(n, seed) for seed in seeds}
        scenes = [scene for exam in exams.values() for scene in exam]
        seen = {scale: torch.cat([look(base, judge, exam, seed, scale, steps) for seed, exam in exams.items()])
                for scale in (*scales, None)}
        for weakness in weaknesses:
            found = [weakness(scenes, answers) for answers in seen.values()]
            table = tables[weakness.__name__] = {line: [rate(*one[line]) for one in found] for line in found[0]}
            tell(weakness.__name__, f"{len(scenes)} {name}", table, scales)
        if 0 in scales and name == "pairs":
            tell_unasked(seen[0])
    tell_denied(base, judge, n, seeds, scales, steps)
    return tables


def tell_denied(base, judge, n, seeds, scales, steps):
    """Prints how often a thing is drawn of which the caption says that it is not there."""
    rates = {"the noun is drawn all the same": [], "… and all the rest that is denied": []}
    for scale in scales:
        hits = []
        for seed in seeds:
            scenes, captions = denied(n, seed)
            seen, wanted = look(base, judge, scenes, seed, scale, steps, captions), train.labels(scenes)
            right = (seen == wanted) | (wanted < 0)
            hits.append(torch.stack([right[:, NOUNS[0]], right.all(1)]))
        for line, hit in zip(rates, torch.cat(hits, 1)):
            rates[line].append(rate(hit, torch.ones_like(hit)))
    tell("negation", f"{n * len(seeds)} captions that begin with “not”", rates, scales, real=False)


def rate(hits, among):
    """-> (how many of those that count did it, how many count)"""
    return int((hits & among).sum()), int(among.sum())


def interval(right, n):
    """(rate, low, high), 95%; not a number where nothing counts."""
    return (right / n, *train.wilson(right, n)) if n else (math.nan,) * 3


def tell(title, among, table, scales, real=True):
    """Prints one weakness: a line for each rate, a column for each scale, in % with 95% intervals."""
    heads = [*(f"scale {scale:g}" for scale in scales), *(["real"] if real else [])]
    print(f"\n{title}, of {among}: % (95% interval)\n" + " " * 42 + "".join(f"{head:>14}" for head in heads))
    for line, rates in table.items():
        cells = ("{:.0f} ({:.0f}–{:.0f})".format(*(100 * value for value in interval(*one))) if one[1] else "none"
                 for one in rates)
        print(f"{line:<42}" + "".join(f"{cell:>14}" for cell in cells), flush=True)


def tell_unasked(seen):
    """Prints what is drawn when nothing is said, beside what training has shown."""
    print(f"\nWithout a caption (scale 0), what the judge sees in {len(seen)} pictures, and how often training showed it")
    for place, (layout, share) in enumerate(SHARES.items()):
        drawn, low, high = interval(int((seen[:, LAYOUT] == place).sum()), len(seen))
        print(f"{layout:<42}{100 * drawn:>5.0f} ({100 * low:.0f}–{100 * high:.0f}), shown {100 * share:.0f}")


# --- The picture -------------------------------------------------------------------------------------

def plot(axes, weakness, table, scales):
    """Rates against the scale: a line each in its 95% interval, and dashed what the judge says of real pictures."""
    for name in PLOTTED[weakness]:
        *drawn, (ceiling, _, _) = (interval(*one) for one in table[name])
        rates, lows, highs = zip(*drawn)
        line, = axes.plot(scales, rates, "o-", linewidth=2.2, label=name)
        axes.fill_between(scales, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
        axes.axhline(ceiling, color=line.get_color(), linestyle="--", linewidth=1)
    axes.plot([], [], "--", color="0.4", linewidth=1, label="the judge, of real pictures")
    axes.set(ylim=(-0.02, 1.02), xlabel="guidance scale")
    axes.xaxis.label.set_size(13)
    axes.set_xticks(scales, [f"{scale:g}" for scale in scales], size=12)
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.tick_params(axis="y", labelsize=12)
    axes.set_title(TITLES[weakness], size=15)
    axes.grid(alpha=0.3)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2, fontsize=12)    # below: lines cross everywhere


def save_picture(tables, scales, path):
    """One panel a weakness."""
    figure = Figure(figsize=(15, 12), layout="constrained")
    for axes, (weakness, table) in zip(figure.subplots(2, 2).flat, tables.items()):
        plot(axes, weakness, table, scales)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


# --- The command line --------------------------------------------------------------------------------

def load(folder):
    """-> the base Model and the judge of a folder. Raises FileNotFoundError or ValueError, one line each."""
    base = sample.Model.load(folder / "base.pt")
    if base.difficulty != "full":
        raise ValueError(f"{folder / 'base.pt'} was trained on single things only; pairs and counts take weights of 08's"
                         " --world full")
    return base, train.load_judge(folder / f"judge-{base.size}.pt")


def arguments(argv=None):
    parser = argparse.ArgumentParser(description="Binding, relations, counting and composition, at several scales.")
    add = parser.add_argument
    add("out", nargs="?", type=Path, default=sample.OUTPUTS / "weaknesses.png")
    add("--n", type=train.positive, default=50, help="pairs a seed; counts are 3n, single things 2n (default 50)")
    add("--seeds", type=train.seed, nargs="+", default=(0, 1, 2), help="of captions and noise (default 0 1 2)")
    add("--scales", type=sample.finite, nargs="+", default=SCALES, help="of guidance (default 0 1 2 3 5 8)")
    add("--steps", default="25", help="of DDIM, see 04's respace (default 25)")
    add("--weights", type=Path, default=sample.WEIGHTS, help="folder of the tiny weights")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    scales, seeds = sorted(set(args.scales)), list(dict.fromkeys(args.seeds))
    try:
        base, judge = load(args.weights)
        diffusion.Diffusion.of(base.process, args.steps)                       # or a wrong --steps would show late
    except (OSError, ValueError) as e:
        sys.exit(f"weaknesses.py: {e}")
    print(f"{len(seeds)} seeds; {args.steps} DDIM steps")
    save_picture(measure(base, judge, args.n, seeds, scales, args.steps), scales, args.out)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
