"""A scene built in turns [GLIDE section 1]: a prompt draws a picture, then every turn adds a thing to it.

Each turn is one command of 09, which is printed: it draws into a free corner of the picture of the turn before and
leaves the rest as it is. The little language has no sentence with three different things, so a prompt says where the
new thing shall stand to one that is there, and is silent about the others: what they are the model sees. It takes
inpaint.pt and inpaint-upsampler.pt in lessons/weights; without them what is known is put into each picture that is
predicted (06).

    python lessons/story.py [OUT.png] [--seed 0] [--weights FOLDER]

Default outputs/story.png, a strip of all turns; the turns' own pictures lie beside it: story-1.png, story-2.png, …
About five seconds a turn. Not every seed tells it well: there must be room beside the first two things.
"""
import argparse
import sys
import textwrap
from importlib import import_module
from pathlib import Path

from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")

ON = " on a white background"
BEGIN = "a small red heart above a small blue star" + ON
# What is added, in the upper (0) or the lower half (1), and beside what.
ADDED = ("a small yellow diamond", 1, "a small blue star"), ("a small green cross", 0, "a small red heart")


def room(picture, half, side):
    """How many sixteenths of the width are bare: at the left side (0) or the right (1) of the upper half (0) or the
    lower (1)."""
    x = sample.pixels(picture, 64)[0]
    ink = ((x - x.flatten(1).median(1).values[:, None, None]).abs().amax(0) > 0.4)[32 * half:32 * half + 32]
    columns = ink.any(0).view(16, 4).any(1)
    return int((columns.flip(0) if side else columns).cumsum(0).eq(0).sum())


def corner(picture, half, side):
    """What --box says of a free corner: half the height, and as wide as there is room, or half the width."""
    bare = room(picture, half, side)
    width = min(bare, 8) / 16 if bare >= 5 else 0.5
    left, right = (1 - width, 1) if side else (0, width)
    return f"{left:g},{half / 2:g},{right:g},{(half + 1) / 2:g}"


def turn(prompt, path, options):
    """One command of 09: it leaves its picture at path, and says how one would have typed it. -> the picture"""
    for old in (path, sample.strip_of(path)):     # of an earlier story
        old.unlink(missing_ok=True)
    argv = [prompt, *options, "--out", str(path)]
    print(f"\npython 09_sample.py {' '.join(sample.shlex.quote(word) for word in argv)}", flush=True)
    if sample.main(argv):
        sys.exit(2)
    return sample.read_picture(path, "RGB")


def tell(out, options):
    """All turns: -> [(what the strip says, a picture), …]"""
    paths = [out.with_name(f"{out.stem}-{k}.png") for k in range(1, len(ADDED) + 2)]
    picture = turn(BEGIN, paths[0], options)
    strip, side = [(BEGIN, picture)], max((0, 1), key=lambda side: min(room(picture, half, side) for half in (0, 1)))
    for (thing, half, there), before, path in zip(ADDED, paths, paths[1:]):
        box = corner(picture, half, side)
        prompt = " to the left of ".join((there, thing) if side else (thing, there)) + ON
        hole = Image.composite(Image.new("RGB", picture.size, "gray"), picture,
                               sample.boxed(box).resize(picture.size, Image.NEAREST))
        picture = turn(prompt, path, ["--image", str(before), "--box", box, *options])
        strip += [(f"--box {box}", hole), (prompt, picture)]
    return strip


def save_strip(strip, out):
    """The pictures in a row, each under what was asked for."""
    figure = Figure(figsize=(3.2 * len(strip), 4.0), layout="constrained")
    for axes, (words, picture) in zip(figure.subplots(1, len(strip)), strip):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title("\n".join(textwrap.wrap(words, 34)), size=11)
        axes.set(xticks=[], yticks=[])
    figure.savefig(out, dpi=90, bbox_inches="tight")


def main(argv=None):
    parser = argparse.ArgumentParser(description="A scene built in turns.")
    parser.add_argument("out", nargs="?", type=Path, default=sample.OUTPUTS / "story.png")
    parser.add_argument("--seed", type=train.seed, default=0, help="of all turns (default 0)")
    parser.add_argument("--weights", type=Path, default=sample.WEIGHTS, help="folder of the tiny weights")
    args = parser.parse_args(argv)
    save_strip(tell(args.out, ["--seed", str(args.seed), "--weights", str(args.weights)]), args.out)
    print(f"\nwrote {args.out}")


if __name__ == "__main__":
    main()
