"""How many steps does a picture take? Caption accuracy against the number of steps, for the three samplers.

The small base model at guidance 3 draws the same captions from the same noise each time, and the judge says how many
came out entirely right. The dashed line is the judge's ceiling: what it says of real pictures.

    python lessons/samplers.py [OUT.png] [--n 200] [--seed 0] [--steps 5 8 12 ...]

Default outputs/samplers.png. A kind is "easy single", and also "pair" if the weights know all the language: with both,
60 captions and eight numbers of steps took eleven minutes on two cores.
"""
import argparse
import sys
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")

SAMPLERS = {"ddpm": "ancestral (DDPM)", "ddim": "DDIM", "dpm": "DPM-Solver++(2M)"}
LOOKS = {"ddpm": ("s", 5), "ddim": ("o", 3.5), "dpm": ("^", 2)}      # the later ones narrower, so that none is hidden
STEPS = (5, 8, 12, 16, 20, 25, 50, 100, 150)


def measure(base, judge, kind, steps, n, seed):
    """Prints a table, a line as soon as it is known. -> {sampler: [(rate, low, high) for each number of steps]}"""
    found = {name: [] for name in SAMPLERS}
    print(f"\n{kind}: right of {n} captions, with 95% intervals; the judge's ceiling is {ceiling(judge, kind):.1%}")
    print("steps " + "".join(f"{title:>26}" for title in SAMPLERS.values()))
    for count in steps:
        print(f"{count:>5} ", end="", flush=True)
        for name in SAMPLERS:
            right, _ = sample.caption_accuracy(base, judge, kind, n, seed=seed, sampler=name, steps=str(count))
            low, high = train.wilson(right, n)
            found[name].append((right / n, low, high))
            print(f"{right / n:>11.1%} ({low:5.1%}–{high:5.1%})", end="", flush=True)
        print(flush=True)
    return found


def ceiling(judge, kind):
    """The share of real pictures of a kind that the judge reads right."""
    right, n = judge.ceiling[kind]
    return right / n


def plot(axes, kind, n, steps, found, most):
    """Accuracy against steps: a curve for each sampler within its 95% interval, and the ceiling `most`."""
    for name, title in SAMPLERS.items():
        (rates, lows, highs), (marker, width) = zip(*found[name]), LOOKS[name]
        line, = axes.plot(steps, rates, marker=marker, markersize=width + 5, linewidth=width, label=title)
        axes.fill_between(steps, lows, highs, color=line.get_color(), alpha=0.15, linewidth=0)
    axes.axhline(most, color="0.3", linestyle="--", label="the judge's ceiling")
    axes.set_xscale("log")
    axes.set_xticks(steps, [str(count) for count in steps])
    axes.minorticks_off()
    axes.set(ylim=(0, 1.02), xlabel="steps")
    axes.yaxis.set_major_formatter("{x:.0%}")
    axes.set_title(f"captions of kind “{kind}” that came out right, of {n}", size=14)
    axes.grid(alpha=0.3)


def arguments(argv=None):
    parser = argparse.ArgumentParser(description="Caption accuracy against the number of steps, for three samplers.")
    add = parser.add_argument
    add("out", nargs="?", type=Path, default=sample.OUTPUTS / "samplers.png")
    add("--n", type=train.positive, default=200, help="captions of each kind (default 200)")
    add("--seed", type=train.seed, default=0, help="of captions and noise (default 0)")
    add("--steps", type=train.positive, nargs="+", default=STEPS, help="numbers of steps (default 5 to 150)")
    return parser.parse_args(argv)


def main(argv=None):
    args = arguments(argv)
    base = sample.Model.load(sample.WEIGHTS / "base.pt")
    judge = train.load_judge(sample.WEIGHTS / f"judge-{base.size}.pt")
    steps, kinds = sorted(args.steps), ["easy single"] + ["pair"] * (base.difficulty == "full")
    figure = Figure(figsize=(8 * len(kinds), 5.4), layout="constrained")
    for axes, kind in zip(figure.subplots(1, len(kinds), squeeze=False).flat, kinds):
        found = measure(base, judge, kind, steps, args.n, args.seed)
        plot(axes, kind, args.n, steps, found, ceiling(judge, kind))
    axes.legend(loc="lower right")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=120)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
