"""Known weaknesses, measured: binding, relations, counting, new combinations, negation, and what guidance does to them.

Models like GLIDE are known to fail there. In the little world a caption's truth can be checked, so each weakness
becomes a rate. The base model draws the same captions from the same noise at several guidance scales, and the judge
(10) says what it sees:

  binding      pairs of things that differ in noun and in colour: has each noun its own colour? Or are all nouns and
               colours there, and the colours, or the nouns, have changed places?
  relations    the same images: of those that show both nouns, how many show them in the relation that was asked for?
               Each of the four relations is asked for equally often; which thing is which, the nouns alone tell
  counting     one, two and three of the same thing; the judge says how many there are, whatever they are
  composition  things whose colour and noun were never trained together, next to the same things in a colour that was
  negation     "not a red heart": a word that no training caption had. How often is a heart drawn all the same?

Next to each rate stands what the judge says of *real* images of the same captions: its ceiling for successes, its floor
for mistakes. At scale 0 the caption is ignored, so what is right there is chance.

    python lessons/experiments/weaknesses.py --dtype bfloat16                          26 minutes on one core
    python lessons/experiments/weaknesses.py --redraw --out lessons/figures/weaknesses.png

Found: of 750 pairs at scales 1 to 8 none has its colours or its things exchanged. What this model misses is a noun: on
16 pixels one of two things sometimes cannot be recognised. Guidance of 2 or 3 helps most; negation it ignores.
"""
import random
import sys
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, judge, tokenizer, diffusion, sample = map(import_module, (
    "lessons.experiments.common", "lessons.10_judge", "01_tokenizer", "04_diffusion", "09_sample"))

NOUNS, COLORS = ([i for i, (name, _) in enumerate(judge.QUESTIONS) if name == part] for part in ("noun", "color"))
LAYOUT, PAIR = 0, judge.LAYOUTS.index("side by side")     # the first question; the first of two answers that see a pair


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
    """n scenes each of one, two and three things; nothing but the number differs."""
    return [replace(scene, count=count) for scene in judge.eval_captions("count", n, seed) for count in (1, 2, 3)]


def singles(n, seed):
    """n things of a colour and a noun never trained together, then each in a colour that was trained with its noun."""
    rng, new = random.Random(f"colours {seed}"), judge.eval_captions("held out", n, seed)
    return new + [recolored(scene, rng) for scene in new]


def recolored(scene, rng):
    """The same single thing in a colour that training has shown of its noun."""
    thing, = scene.things
    seen = [color for color in tokenizer.COLORS if (color, thing.noun) not in tokenizer.HELD_OUT]
    return replace(scene, things=(replace(thing, color=rng.choice(seen)),))


@dataclass(frozen=True)
class Denied:
    """A scene, and a caption that says it is not there."""

    scene: tokenizer.Scene

    def caption(self):
        """Such as "not a red heart"."""
        return f"not {self.scene.caption()}"


def denied(n, seed):
    """n single things of colours and nouns that were trained together, denied."""
    return [Denied(scene) for scene in singles(n, seed)[n:]]


# --- What is seen ------------------------------------------------------------------------------------
# Each takes scenes and what the judge saw, [n, questions], and returns lines of a table:
# {line: (which of the n did it, which of the n the line is about)}, two bool tensors.

def right_questions(scenes, seen):
    """Which of the judge's answers are as the scenes say, or about what they leave open: bool [n, questions]."""
    wanted = judge.labels(scenes)
    return (seen == wanted) | (wanted < 0)


def in_place_or_swapped(scenes, seen, part):
    """Whether both things have the nouns, or the colours, that were asked for; and whether each has the other's."""
    seen, wanted = seen[:, part], judge.labels(scenes)[:, part]
    return (seen == wanted).all(1), (seen == wanted.flip(1)).all(1)


def binding(scenes, seen):
    """Nouns and colours of pairs."""
    nouns, other_nouns = in_place_or_swapped(scenes, seen, NOUNS)
    colors, other_colors = in_place_or_swapped(scenes, seen, COLORS)
    pair = seen[:, LAYOUT] >= PAIR           # of anything else, what the judge says about a second thing means nothing
    there = pair & (nouns | other_nouns) & (colors | other_colors)
    bound = pair & (nouns & colors | other_nouns & other_colors)       # or the things, as wholes, changed places
    every = torch.ones_like(pair)
    return {"all that is said": (right_questions(scenes, seen).all(1), every),
            "both nouns and both colours are there": (there, every),
            "each noun in its own colour": (bound, every),
            "colours swapped": (there & nouns & other_colors, every),
            "nouns swapped": (there & other_nouns & colors, every),
            "own colours, if all four are there": (bound, there)}


def relations(scenes, seen):
    """Where the things of pairs are, among images that show both nouns."""
    nouns, other_nouns = in_place_or_swapped(scenes, seen, NOUNS)
    both = (seen[:, LAYOUT] >= PAIR) & (nouns | other_nouns)
    in_line = seen[:, LAYOUT] == judge.labels(scenes)[:, LAYOUT]
    beside = torch.tensor([scene.relation in ("to the left of", "to the right of") for scene in scenes])
    return {"both nouns are there": (both, torch.ones_like(both)),
            "left or right, as said": (both & nouns & in_line, both & beside),
            "above or below, as said": (both & nouns & in_line, both & ~beside),
            "changed places": (in_line & other_nouns, both),
            "beside instead of above, or the reverse": (~in_line, both)}


def counting(scenes, seen):
    """Each number that was asked for against each that was drawn."""
    asked, drawn = (torch.tensor([scene.count for scene in scenes]), seen[:, LAYOUT] + 1)
    return {f"“{judge.LAYOUTS[i - 1]}” drawn as {judge.LAYOUTS[j - 1]}": (drawn == j, asked == i)
            for i in (1, 2, 3) for j in (1, 2, 3)}


def composition(scenes, seen):
    """Colours and nouns that were never trained together, next to others."""
    new = torch.tensor([(scene.things[0].color, scene.things[0].noun) in tokenizer.HELD_OUT for scene in scenes])
    right = right_questions(scenes, seen).all(1)
    return {"never seen together: all that is said": (right, new), "seen together: all that is said": (right, ~new)}


def negation(scenes, seen):
    """How much is drawn of what is denied."""
    right = right_questions([one.scene for one in scenes], seen)
    every = torch.ones(len(scenes), dtype=torch.bool)
    return {"the noun is drawn all the same": (right[:, NOUNS[0]], every),
            "and all the rest that is denied": (right.all(1), every)}


QUESTIONS = ((pairs, (binding, relations)), (counts, (counting,)), (singles, (composition,)), (denied, (negation,)))
# The lines of each table that are drawn
PLOTTED = {"binding": ("each noun in its own colour", "colours swapped", "nouns swapped"),
           "relations": ("left or right, as said", "above or below, as said", "changed places"),
           "counting": ("“one” drawn as one", "“two” drawn as two", "“three” drawn as three"),
           "composition": ("never seen together: all that is said", "seen together: all that is said")}
TITLES = {"binding": "binding: two nouns, two colours", "relations": "relations, where both nouns are there",
          "counting": "counting", "composition": "composition: colour and noun of a thing"}


# --- Measuring ---------------------------------------------------------------------------------------

def look(base, reader, scenes, seed, scale, steps):
    """What the judge sees, [n, questions], in drawings of these scenes' captions; scale None: in real images."""
    if scale is None:
        images = diffusion.downsample(judge.real_images(scenes, seed), base.size)
    else:                                    # a seed is the same noise at all scales
        options = replace(sample.default_options(base), scale=scale, steps=steps)
        images = judge.draw(base, scenes, options=options, seed=seed, batch=100)
    return judge.answer(reader, images).tolist()


def tabulate(weakness, scenes, seen, scales):
    """A weakness as a table, printed: {line: {"scales": [a cell each], "real": a cell, or None where none is asked}}.

    seen  what the judge saw at each scale and, after those, in real images
    """
    found = [weakness(scenes, answers) for answers in seen]
    heads = [f"scale {scale:g}" for scale in scales] + ["real"] * (len(seen) - len(scales))
    print(f"\n{weakness.__name__}: % (95% interval)\n{'':<42}" + "".join(f"{head:>14}" for head in heads))
    table = {}
    for line in found[0]:
        cells = [common.cell(did[among]) for did, among in (one[line] for one in found)]
        print(f"{line:<42}" + "".join(f"{common.percent(cell):>14}" for cell in cells), flush=True)
        table[line] = {"scales": cells[:len(scales)], "real": (cells + [None])[len(scales)]}
    return table


def measure(args, partial):
    """Prints every table as soon as it is known. -> the table"""
    base = common.weights(args).load("base")
    if base.world != "full":
        raise ValueError(f"the base model in {args.weights} knows single things only; pairs and counts take weights of"
                         " python 08_train.py --world full")
    reader, tables = judge.judge_for(base.size, args.weights), {}
    for make, weaknesses in QUESTIONS:
        scenes_of, seen = {seed: make(args.n, seed) for seed in args.seeds}, []
        for scale in args.scales if make is denied else [*args.scales, None]:
            answers = [partial(f"{make.__name__}, {seed}, {scale}", lambda: look(base, reader, scenes, seed, scale,
                                                                                args.steps))
                       for seed, scenes in scenes_of.items()]
            seen.append(torch.tensor(sum(answers, [])))
        for weakness in weaknesses:
            tables[weakness.__name__] = tabulate(weakness, sum(scenes_of.values(), []), seen, args.scales)
    return {"n": args.n, "seeds": args.seeds, "steps": args.steps, "scales": args.scales, "tables": tables}


def draw(table):
    """One panel a weakness: rates against the scale in their 95% intervals; dashed, the judge's of real images."""
    figure, scales = Figure(figsize=(15, 12), layout="constrained"), table["scales"]
    for ax, (weakness, names) in zip(figure.subplots(2, 2).flat, PLOTTED.items()):
        for name in names:
            line = table["tables"][weakness][name]
            rates, lows, highs = common.columns(line["scales"])
            curve, = ax.plot(scales, rates, "o-", linewidth=2.2, label=name)
            ax.fill_between(scales, lows, highs, color=curve.get_color(), alpha=0.15, linewidth=0)
            if line["real"]:
                ax.axhline(line["real"]["value"], color=curve.get_color(), linestyle="--", linewidth=1)
        ax.plot([], [], "--", color="0.4", linewidth=1, label="the judge, of real images")
        ax.set_ylim(-0.02, 1.02)
        ax.set_xlabel("guidance scale", size=14)
        ax.set_xticks(scales, [f"{scale:g}" for scale in scales], size=13)
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.tick_params(axis="y", labelsize=13)
        ax.set_title(TITLES[weakness], size=16)
        ax.grid(alpha=0.3)
        ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.14), ncol=2, fontsize=13)    # below, clear of the lines
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "weaknesses", n=50, seeds=(0, 1, 2))
    parser.add_argument("--scales", type=float, nargs="+", default=(0, 1, 2, 3, 5, 8), help="of guidance")
    parser.add_argument("--steps", default="25", help="of DDIM, see 04's respace (default: 25)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
