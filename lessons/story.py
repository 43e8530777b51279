"""A scene built in turns [GLIDE section 1]: a prompt draws a picture, then every turn adds a thing to it.

Each turn is one command of 09, which is printed: it draws into a free quarter of the picture of the turn before and
leaves the rest as it is. Its prompt says where the new thing shall stand to one that is there. With inpaint.pt and
inpaint-upsampler.pt in lessons/weights (08 makes them in minutes) the models see what they draw into; without, what is
known is put into each picture that they predict (06). It takes weights that know pairs and counts (08's --world full).

    python lessons/story.py [OUT.png] [--seed 0] [--weights FOLDER]

Default outputs/story.png, a strip of all turns; the turns' own pictures lie beside it: story-1.png, story-2.png, …
About five seconds a turn.
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

FIRST, ON = "a small red heart", " on a white background"
BEGIN, ADDED = "two small red hearts" + ON, ("a small blue star", "a small yellow sun")
QUARTERS = {(0, 0): "0,0,0.5,0.5", (0, 1): "0.5,0,1,0.5", (1, 0): "0,0.5,0.5,1", (1, 1): "0.5,0.5,1,1"}   # row, column: box


def busy(picture):
    """The quarters (row, column), the one with most in it first: where colours change most between neighbours."""
    x = sample.pixels(picture, 64)[0]
    parts = {(r, c): x[:, 32 * r:32 * r + 32, 32 * c:32 * c + 32] for r, c in QUARTERS}
    return sorted(parts, key=lambda q: -sum(parts[q].diff(dim=dim).abs().sum().item() for dim in (1, 2)))


def prompt_for(thing, place, hearts):
    """A caption for a thing in a quarter: where it stands to a heart beside, above or below it."""
    row, column = next((r, c) for r, c in hearts if (r == place[0]) != (c == place[1]))
    if row == place[0]:
        said = (FIRST, "to the left of", thing) if column < place[1] else (thing, "to the left of", FIRST)
    else:
        said = (FIRST, "above", thing) if row < place[0] else (thing, "above", FIRST)
    return " ".join(said) + ON


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
    strip, (*hearts, one, other) = [(BEGIN, picture)], busy(picture)
    for thing, place, before, path in zip(ADDED, (one, other), paths, paths[1:]):
        prompt, box = prompt_for(thing, place, hearts), QUARTERS[place]
        hole = Image.composite(Image.new("RGB", picture.size, "gray"), picture,
                               sample.boxed(box).resize(picture.size, Image.NEAREST))
        picture = turn(prompt, path, ["--image", str(before), "--box", box, *options])
        strip += [(f"--box {box}", hole), (prompt, picture)]
    return strip


def save_strip(strip, out):
    """The pictures in a row, each under what was asked for."""
    figure = Figure(figsize=(3.2 * len(strip), 4.4), layout="constrained")
    for axes, (words, picture) in zip(figure.subplots(1, len(strip)), strip):
        axes.imshow(picture, interpolation="nearest")
        axes.set_title("\n".join(textwrap.wrap(words, 28)), size=12)
        axes.set(xticks=[], yticks=[])
    figure.savefig(out, dpi=100)


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
