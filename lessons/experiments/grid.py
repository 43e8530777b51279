"""The grid at the head of the README: twelve captions, one drawing of each, nothing chosen by hand.

The captions are the first ones of three kinds, single things, pairs and counts, that seed 1 gives; the noise is that of
seed 0. Both models draw: 16 pixels become 64.

    python lessons/experiments/grid.py                                                 20 seconds on two cores
    python lessons/experiments/grid.py --redraw --out lessons/figures/grid.png

Found: colours, places and numbers are mostly as the captions say; thin things (a pencil, a gear) are hard to recognise.
One caption in twelve here is drawn wrong for certain: the three anchors are four.
"""
import sys
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, judge = map(import_module, ("lessons.experiments.common", "lessons.10_judge"))


def measure(args, partial):
    """Draws all images at once. -> their captions and the images"""
    weights = common.weights(args)
    base, upsampler = weights.load("base"), weights.load("upsampler")
    kinds = ("single", "pair", "count") if base.world == "full" else ("easy single",)
    scenes = [scene for kind in kinds for scene in judge.eval_captions(kind, args.n // len(kinds), seed=1)]
    images = judge.draw(base, scenes, upsampler=upsampler, seed=args.seed, batch=len(scenes))
    return {"seed": args.seed, "images": [[scene.caption(), common.to_text(x)] for scene, x in zip(scenes, images)]}


def draw(table):
    """Four images a row, each under its caption."""
    images = table["images"]
    rows = -(-len(images) // 4)
    figure = Figure(figsize=(11, 3.4 * rows), layout="constrained")
    for ax, pair in zip(figure.subplots(rows, 4, squeeze=False).flat, images + [("", None)] * (4 * rows - len(images))):
        common.show(ax, pair[1], title=pair[0], size=14)
        ax.set_frame_on(False)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "grid", n=12)
    parser.add_argument("--seed", type=int, default=0, help="of the noise (default: 0)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
