"""Twenty captioned pictures to practise on, and two figures of what is learned from them.

No download: matplotlib ships one photograph (Grace Hopper, a United States Navy portrait), one scan of a head and one
drawing of a present. Parts of the first two, named as one would name them, make a folder such as anybody could fill
with pictures of their own: NAME.jpg, and its caption in NAME.txt. own_pictures.md tells what to do with it.

    python lessons/own_pictures.py FOLDER                                    makes and fills the folder, a second
    python lessons/own_pictures.py FOLDER --weights WEIGHTS --drawn OUT.png  draws its captions, and NEW ones, with
                                                                             weights trained on it; half a minute
    python lessons/own_pictures.py FOLDER --losses OUT.png                   trains anew, without four of the pictures,
                                                                             and watches the loss of both; three minutes
"""
import argparse
import io
import sys
import textwrap
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from matplotlib import cbook
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent.parent))
sample, train = import_module("09_sample"), import_module("08_train")

# left, top, right, bottom in pixels of the photograph. Few are square: the reader takes the middle square of each, so
# what is meant must lie there.
PHOTOGRAPH = {
    "a woman in a navy uniform": (0, 44, 512, 556),
    "a woman's face with glasses": (165, 115, 375, 325),
    "a pair of glasses": (170, 152, 365, 242),
    "an eye behind glasses": (278, 160, 352, 234),
    "a smiling mouth": (215, 250, 315, 320),
    "a white cap with a golden eagle": (150, 15, 378, 150),
    "a golden eagle on black": (218, 24, 308, 110),
    "white stars on blue": (0, 40, 130, 210),
    "one white star on blue": (44, 56, 110, 122),
    "red and white stripes of a flag": (30, 250, 130, 390),
    "a golden cord before a flag": (100, 160, 172, 330),
    "a blue wall": (400, 20, 505, 180),
    "a dark shoulder before a blue wall": (335, 290, 512, 470),
    "a white collar and a black tie": (180, 340, 350, 530),
    "ribbons on a dark uniform": (320, 460, 462, 550),
    "a name tag on a dark uniform": (70, 455, 175, 545),
    "a golden button on a dark uniform": (210, 530, 278, 600),
}
SCAN = {"a scan of a head": (0, 0, 256, 256), "a scan of a brain": (38, 38, 188, 148)}
PRESENT = {"a blue present with a silver ribbon": (0, 0, 128, 128)}

# What the folder does not say: its things in other words, and things that it does not show
NEW = ("stars", "a blue star on white", "a scan of a woman's face", "a red present", "a cat")
# Left out of a training to see whether anything else is learned than the pictures themselves: of each, something like
# it stays in
LEFT_OUT = ("one white star on blue", "an eye behind glasses", "a golden eagle on black", "a scan of a brain")


def picture_of(name):
    """One of matplotlib's sample files as an RGB image."""
    with cbook.get_sample_data(name, asfileobj=True) as file:
        if name.endswith(".jpg") or name.endswith(".png"):
            image = Image.open(file).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        numbers = np.frombuffer(file.read(), np.uint16).reshape(256, 256)   # cbook has unpacked the .gz
        return Image.fromarray((255.0 * numbers / numbers.max()).astype(np.uint8)).convert("RGB")


def examples():
    """All of them: {caption: image}."""
    files = {"grace_hopper.jpg": PHOTOGRAPH, "s1045.ima.gz": SCAN, "Minduka_Present_Blue_Pack.png": PRESENT}
    return {caption: picture_of(name).crop(box) for name, boxes in files.items() for caption, box in boxes.items()}


def fill(folder):
    """Write a new folder: a picture and its caption under one name. -> how many. OSError or ValueError if it cannot be."""
    if folder.exists():
        raise ValueError(f"{folder} is there already; name a new folder, or go on with that one")
    folder.mkdir(parents=True)
    for number, (caption, image) in enumerate(examples().items()):
        image.save(folder / f"{number:02d}.jpg", quality=95)
        (folder / f"{number:02d}.txt").write_text(caption + "\n", encoding="utf-8")
    return number + 1


def read(folder):
    """The captioned pictures of a folder in the order of their names: {caption: image}."""
    source = train.find_pictures(folder)
    found = (train.example(files, 64) for unit in range(len(source.units)) for files in source.examples(unit, 0))
    return {caption: image for image, caption in found}


def save_rows(rows, path):
    """Rows of (caption, picture [3, H, W] in [-1, 1]) or None, as one figure with a caption over each picture."""
    columns = max(map(len, rows))
    figure = Figure(figsize=(1.25 * columns, 1.75 * len(rows)), layout="constrained")
    for axes, cell in zip(figure.subplots(len(rows), columns).flat,
                          (cell for row in rows for cell in [*row, *[None] * (columns - len(row))])):
        axes.axis("off")
        if cell:
            axes.imshow(train.to_bytes(cell[1]).cpu().permute(1, 2, 0).numpy(), interpolation="nearest")
            axes.set_title("\n".join(textwrap.wrap(cell[0], 17)), fontsize=7.5)
    page = io.BytesIO()
    figure.savefig(page, dpi=84)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.open(page).convert("RGB").quantize(256, Image.Quantize.FASTOCTREE).save(path, optimize=True)


def drawn(folder, weights, path, *, columns=10):
    """The folder's pictures, each with a drawing of its caption below; and in the last row NEW captions, twice each."""
    base, upsampler = (sample.Model.load(weights / f"{name}.pt") for name in ("base", "upsampler"))
    true = read(folder)
    captions = [*true, *(caption for caption in NEW for _ in range(2))]
    generator = torch.Generator().manual_seed(0)
    small = sample.draw_small(base, captions, generator=generator)
    pictures = list(zip(captions, sample.enlarge(upsampler, small, captions, generator=generator)))
    rows = []
    for i in range(0, len(true), columns):
        some = list(true.items())[i:i + columns]
        rows.append([(caption, train.square(image, upsampler.size) / 127.5 - 1) for caption, image in some])
        rows.append([("drawn", picture) for _, picture in pictures[i:i + len(some)]])
    save_rows([*rows, pictures[len(true):]], path)


def losses(folder, *, steps, every):
    """A training on the folder without LEFT_OUT: [(step, loss of what it sees, loss of what was left out), …].

    Always the same timesteps and noise, and the averaged weights, so that only what was learned makes a difference.
    """
    tiny = train.PRESETS["tiny"]["base"]
    preset = train.replace(tiny, train=train.replace(tiny.train, steps=steps, batch=16))
    everything = {caption: train.square(image, preset.size) for caption, image in read(folder).items()}
    seen = [caption for caption in everything if caption not in LEFT_OUT]
    tok = train.tokenizer.BPETokenizer.train(everything, preset.network.text.vocab_size)
    trainer, told = train.Trainer(preset, difficulty="", tok=tok, pictures=Deck({c: everything[c] for c in seen})), []
    while True:
        if trainer.step % every == 0 or trainer.step == steps:
            told.append((trainer.step, *(examined(trainer, everything, some) for some in (seen, LEFT_OUT))))
            print("step {}: loss {:.4f} of {} pictures it sees, {:.4f} of {} it never saw".format(
                told[-1][0], told[-1][1], len(seen), told[-1][2], len(LEFT_OUT)), flush=True)
        if trainer.step == steps:
            return told
        trainer.advance()


class Deck:
    """A few pictures, dealt out again and again in another order: what a training reads, without any files."""

    def __init__(self, pictures):
        self.pictures, self.rng, self.left = pictures, train.random.Random(0), []
        self.seen, self.bad = 0, train.Counter()

    def __call__(self, **_):
        return self

    def next(self, n=16):
        while len(self.left) < n:
            self.left += self.rng.sample(list(self.pictures), len(self.pictures))
        captions, self.left = self.left[:n], self.left[n:]
        return torch.stack([self.pictures[caption] for caption in captions]), captions


@torch.no_grad()
def examined(trainer, pictures, captions):
    """The mean loss of these pictures at 16 timesteps each."""
    x0, cond = train.conditioned(trainer.preset, trainer.tok, torch.stack([pictures[c] for c in captions]), captions,
                                 seed=0, mine=range(len(captions)))
    model, generator = trainer.denoiser_of(trainer.ema), torch.Generator().manual_seed(0)
    of_all = [trainer.process.loss(model, x0, torch.full((len(x0),), t), torch.randn(x0.shape, generator=generator),
                                   weights=trainer.weights, **cond).mean() for t in range(30, 1000, 64)]
    return torch.stack(of_all).mean().item()


def save_losses(told, path):
    """Both losses against the step."""
    steps, seen, left_out = zip(*told)
    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(steps, seen, "o-", label="the sixteen pictures it is trained on")
    axes.plot(steps, left_out, "o-", label="the four it never saw")
    axes.set(xlabel="step", ylabel="loss", yscale="log", title="What is learned by heart, and what is learned")
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)


def main(argv=None):
    parser = argparse.ArgumentParser(description="Twenty captioned pictures to practise on.", allow_abbrev=False)
    add = parser.add_argument
    add("folder", type=Path)
    add("--weights", type=Path, help="a folder of base.pt and upsampler.pt, trained on the pictures")
    add("--drawn", type=Path, metavar="OUT.png", help="what those weights draw, beside the pictures")
    add("--losses", type=Path, metavar="OUT.png", help="the loss of pictures that are trained on, and of others")
    add("--steps", type=train.positive, default=600, help="of --losses (default 600)")
    args = parser.parse_args(argv)
    try:
        if (args.weights is None) != (args.drawn is None):
            raise ValueError("--weights and --drawn go together")
        if args.drawn:
            drawn(args.folder, args.weights, args.drawn)
        if args.losses:
            save_losses(losses(args.folder, steps=args.steps, every=min(50, args.steps)), args.losses)
        for out in filter(None, (args.drawn, args.losses)):
            print(f"wrote {out}")
        if not (args.drawn or args.losses):
            print(f"wrote {fill(args.folder)} pictures and their captions to {args.folder}")
    except (OSError, ValueError) as e:
        print(f"own_pictures.py: {e}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
