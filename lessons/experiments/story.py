"""A scene built in turns [GLIDE section 1]: a prompt draws an image, then every turn adds a thing to it.

Each turn is one command of 09, which is printed: it draws into a free corner of the last turn's image and leaves the
rest as it is. The little language has no sentence with three different things, so each prompt says where the new thing
is next to one that is there already, and is silent about the others: the model sees what those are.

    python lessons/experiments/story.py                                                15 seconds on two cores
    python lessons/experiments/story.py --redraw --out lessons/figures/story.png

Found: it works, but this seed was chosen. Of the seeds 0 to 19 it is the only one that fills both corners. With the
others the model leaves one of them empty, mostly that of the diamond: a scene of three things it never saw in training.
"""
import shlex
import sys
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, sample = map(import_module, ("lessons.experiments.common", "09_sample"))

ON = " on a white background"
BEGIN = "a small red heart above a small blue star" + ON
# What is added, in the upper half (0) or the lower one (1), and next to what
ADDED = ("a small yellow diamond", 1, "a small blue star"), ("a small green cross", 0, "a small red heart")


def room(image, half, side):
    """How many sixteenths of the width are empty: at the left (0) or the right (1) of the upper half (0) or the lower
    one (1)."""
    x = sample.pixels(image, 64)[0]
    ink = (x - x.flatten(1).median(1).values[:, None, None]).abs().amax(0) > 0.4     # unlike the background
    columns = ink[32 * half:32 * half + 32].any(0).view(16, 4).any(1)
    return int((columns.flip(0) if side else columns).cumsum(0).eq(0).sum())


def corner(image, half, side):
    """What --box says of a free corner: half the height, and as wide as there is room, or half the width."""
    empty = room(image, half, side)
    width = min(empty, 8) / 16 if empty >= 5 else 0.5
    left, right = (1 - width, 1) if side else (0, width)
    return f"{left:g},{half / 2:g},{right:g},{(half + 1) / 2:g}"


def turn(prompt, path, options):
    """One command of 09, printed as you would type it; its image is written to path. -> the image"""
    for earlier in (path, path.with_name(f"{path.stem}-steps.png")):
        earlier.unlink(missing_ok=True)
    argv = [prompt, *options, "--out", str(path)]
    print(f"\n{shlex.join(['python', '09_sample.py', *argv])}", flush=True)
    if sample.main(argv):
        raise ValueError("this command failed, so the story ends here")
    return sample.read_image(path)


def panel(words, image):
    """A panel of the strip: what stands above it, and the image at 64 pixels a side, which all of them have."""
    return [words, common.to_text(sample.pixels(image, 64)[0])]


def measure(args, partial):
    """All turns. -> the panels of the strip: each image, and between two of them the hole"""
    options = ["--seed", str(args.seed), "--weights", str(args.weights)]
    options += ["--dtype", args.dtype] * (args.dtype != "float32")
    paths = [args.out.with_name(f"{args.out.stem}-{k}.png") for k in range(1, len(ADDED) + 2)]
    image = turn(BEGIN, paths[0], options)
    panels, side = [panel(BEGIN, image)], max((0, 1), key=lambda side: min(room(image, half, side) for half in (0, 1)))
    for (thing, half, there), before, path in zip(ADDED, paths, paths[1:]):
        box = corner(image, half, side)
        prompt = " to the left of ".join((there, thing) if side else (thing, there)) + ON
        hole = sample.box_mask(box).resize(image.size, Image.NEAREST)
        panels.append(panel(f"--box {box}", Image.composite(Image.new("RGB", image.size, "gray"), image, hole)))
        image = turn(prompt, path, ["--image", str(before), "--box", box, "--scale", "3", *options])
        panels.append(panel(prompt, image))
    return {"seed": args.seed, "panels": panels}


def draw(table):
    """The images in a row, each under what was asked for."""
    panels = table["panels"]
    figure = Figure(figsize=(3.2 * len(panels), 4.1), layout="constrained")
    for ax, (words, image) in zip(figure.subplots(1, len(panels)), panels):
        common.show(ax, image, title=words, width=30, size=13)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "story")
    parser.add_argument("--seed", type=int, default=5, help="of all turns (default: 5)")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
