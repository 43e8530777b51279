"""How many steps does an image take? Caption accuracy against the number of steps, for the three samplers of 04.

The small base model at guidance 3 draws the same captions from the same noise each time, and the judge (10) says how
many images are entirely right. The dashed line is the judge's ceiling: what it says of real images.

    python lessons/experiments/samplers.py --dtype bfloat16 --n 60 --steps 5 8 12 16 20 25 50 150
                                                                                       13 minutes on two cores
    python lessons/experiments/samplers.py --redraw --out lessons/figures/samplers.png

Found: from 12 steps on no sampler is worse than ancestral sampling in 150 steps, as far as 60 captions can tell. In 5
steps DDIM is ahead, with 98% of single things and 65% of pairs right, where the others have 73% and 82%, 33% and 23%.
"""
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, judge, train, sample = map(import_module, (
    "lessons.experiments.common", "lessons.10_judge", "08_train", "09_sample"))

SAMPLERS = {"ddpm": "ancestral (DDPM)", "ddim": "DDIM", "dpm": "DPM-Solver++(2M)"}
LOOKS = {"ddpm": ("s", 5), "ddim": ("o", 3.5), "dpm": ("^", 2)}      # later ones are narrower, so that none is hidden


def hits(right, n):
    """A bool tensor [n] with so many True: what `common.cell` takes."""
    return torch.arange(n) < right


def measure(args, partial):
    """Prints a line for each number of steps as soon as it is known. -> the table"""
    base = common.weights(args).load("base")
    reader = judge.judge_for(base.size, args.weights)
    steps, kinds = sorted(set(args.steps)), {}
    for kind in ("easy single", "pair") if base.world == "full" else ("easy single",):
        curves = {name: [] for name in SAMPLERS}
        ceiling = common.cell(hits(*reader.ceiling[kind])) if kind in reader.ceiling else None
        kinds[kind] = {"ceiling": ceiling, "curves": curves}
        print(f"\n{kind}: % right of {args.n} (95% interval); the judge's ceiling is {common.percent(ceiling)}")
        print("steps" + "".join(f"{title:>20}" for title in SAMPLERS.values()))
        for number in steps:
            for name, curve in curves.items():
                options = replace(sample.default_options(base), steps=str(number), sampler=name, scale=args.scale)
                curve.append(partial(f"{kind}, {name}, {number}", lambda: common.cell(hits(*judge.caption_accuracy(
                    base, reader, kind, args.n, seed=args.seed, options=options, batch=100)))))
            print(f"{number:>5}" + "".join(f"{common.percent(curve[-1]):>20}" for curve in curves.values()), flush=True)
    return {"n": args.n, "seed": args.seed, "scale": args.scale, "steps": steps, "kinds": kinds}


def draw(table):
    """One panel a kind: accuracy against steps, each curve in its 95% interval."""
    figure, steps = Figure(figsize=(8 * len(table["kinds"]), 5.6), layout="constrained"), table["steps"]
    for ax, (kind, found) in zip(figure.subplots(1, len(table["kinds"]), squeeze=False).flat, table["kinds"].items()):
        for name, curve in found["curves"].items():
            (rates, lows, highs), (marker, width) = common.columns(curve), LOOKS[name]
            line, = ax.plot(steps, rates, marker=marker, markersize=width + 5, linewidth=width, label=SAMPLERS[name])
            ax.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
        if found["ceiling"]:
            ax.axhline(found["ceiling"]["value"], color="0.3", linestyle="--", label="the judge's ceiling")
        ax.set_xscale("log")
        ax.set_xticks(steps, [str(number) for number in steps], size=13)
        ax.minorticks_off()
        ax.set_ylim(0, 1.02)
        ax.set_xlabel("steps", size=14)
        ax.yaxis.set_major_formatter("{x:.0%}")
        ax.tick_params(axis="y", labelsize=13)
        ax.set_title(f"captions of kind “{kind}” drawn entirely right, of {table['n']}", size=15)
        ax.grid(alpha=0.3)
    ax.legend(loc="lower right", fontsize=13)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "samplers", n=200)
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise (default: 0)")
    parser.add_argument("--scale", type=float, default=3.0, help="of guidance (default: 3)")
    parser.add_argument("--steps", type=int, nargs="+", default=(5, 8, 12, 16, 20, 25, 50, 100, 150))
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
