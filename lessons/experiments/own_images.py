"""What do twenty images of your own teach a network, and what do they not?

No download: matplotlib ships one photograph (Grace Hopper in the uniform of the United States Navy), one scan of a head
and one drawing of a present. Parts of them, captioned as anyone would caption them, make a folder such as you could
fill yourself: NAME.jpg, and its caption in NAME.txt. lessons/own_images.md is the lesson that uses them.

    python lessons/experiments/own_images.py make my-images      makes and fills the folder: a second
    python lessons/experiments/own_images.py draw my-images --weights outputs/train-base
                                                                 each image, a drawing of its caption below it, and
                                                                 drawings of NEW captions: half a minute on one core
    python lessons/experiments/own_images.py losses my-images    trains without four of the images, and follows the
                                                                 loss of those and of the others: 4 minutes on one core
    python lessons/experiments/own_images.py losses --redraw --out lessons/figures/own_images_loss.png

Found: after 800 steps all twenty are known by heart, and captions that were not among them give one of the twenty or
mud. The four that were left out are predicted best after about 100 steps, and ever worse from then on.
"""
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from matplotlib import cbook
from matplotlib.figure import Figure
from PIL import Image

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, diffusion, upsample, train, sample = map(import_module, (
    "lessons.experiments.common", "04_diffusion", "07_upsample", "08_train", "09_sample"))

# left, top, right, bottom in pixels of the photograph. Few are square: training takes the middle square of each image,
# so what is meant must be there.
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

# Captions that are not in the folder: its things in other words, and things that it does not show
NEW = ("stars", "a blue star on white", "a scan of a woman's face", "a red present", "a cat")
# Left out of a training run, to see whether more is learned than the images themselves: for each of them, something
# like it stays in
LEFT_OUT = ("one white star on blue", "an eye behind glasses", "a golden eagle on black", "a scan of a brain")


# --- The folder --------------------------------------------------------------------------------------

def sample_image(name):
    """One of matplotlib's sample files as an RGB image."""
    with cbook.get_sample_data(name, asfileobj=True) as file:
        if name.endswith((".jpg", ".png")):
            image = Image.open(file).convert("RGBA")
            return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
        numbers = np.frombuffer(file.read(), np.uint16).reshape(256, 256)   # cbook has unpacked the .gz
        return Image.fromarray((255.0 * numbers / numbers.max()).astype(np.uint8)).convert("RGB")


def make(args):
    """Write a new folder: an image and its caption under one name, twenty times."""
    if args.folder.exists():
        raise ValueError(f"{args.folder} exists already; name a new folder, or continue with that one")
    args.folder.mkdir(parents=True)
    files = {"grace_hopper.jpg": PHOTOGRAPH, "s1045.ima.gz": SCAN, "Minduka_Present_Blue_Pack.png": PRESENT}
    examples = [(caption, sample_image(name).crop(box))
                for name, boxes in files.items() for caption, box in boxes.items()]
    for number, (caption, image) in enumerate(examples):
        image.save(args.folder / f"{number:02d}.jpg", quality=95)
        (args.folder / f"{number:02d}.txt").write_text(caption + "\n", encoding="utf-8")
    print(f"wrote {len(examples)} images and their captions to {args.folder}")


def read(folder, size):
    """The captioned images of a folder, by caption: {caption: uint8 [3, size, size]}."""
    data = train.OwnImages([folder], size)
    found = {caption: image for image, caption, *_ in (data[i] for i in range(len(data)))}
    return dict(sorted(found.items()))


# --- What is drawn -----------------------------------------------------------------------------------

def draw_all(args):
    """The folder's images, each with a drawing of its caption below it; in the last row NEW captions, twice each."""
    weights = common.weights(args)
    base, upsampler = weights.load("base"), weights.load("upsampler")
    true = read(args.folder, upsampler.size)
    captions, g = [*true, *(caption for caption in NEW for _ in range(2))], torch.Generator().manual_seed(args.seed)
    small = sample.sample_base(base, captions, generator=g)
    drawn = diffusion.to_bytes(sample.sample_upsampler(upsampler, small, captions, generator=g))
    rows, shown = [], list(zip(true.items(), drawn))
    for start in range(0, len(shown), 10):
        rows += [[(caption, image) for (caption, image), _ in shown[start:start + 10]],
                 [("drawn", image) for _, image in shown[start:start + 10]]]
    rows.append(list(zip(captions, drawn))[len(true):])
    figure = Figure(figsize=(15, 2.1 * len(rows)), layout="constrained")
    for axes, row in zip(figure.subplots(len(rows), 10), rows):
        for ax, (caption, image) in zip(axes, row + [("", None)] * (10 - len(row))):
            picture = None if image is None else diffusion.image_grid(image[None])
            common.show(ax, picture, title=caption, width=19, size=9)
            ax.axis("off")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.out, dpi=70, bbox_inches="tight")
    print(f"wrote {args.out}")


# --- What is learned ---------------------------------------------------------------------------------

class Deck:
    """A few images in memory, in another order in every epoch: a data set as 08 takes it, {caption: image}."""

    def __init__(self, images):
        self.images = list(images.items())

    def __getitem__(self, position):
        epoch, place = divmod(position, len(self.images))
        caption, image = self.images[np.random.default_rng(epoch).permutation(len(self.images))[place]]
        return image, caption, caption, []


@torch.no_grad()
def mean_loss(trainer, images):
    """The mean loss of captioned images at 16 timesteps each, with the averaged weights and always the same noise."""
    captions, g = list(images), torch.Generator().manual_seed(0)
    rngs = [train.tokenizer.seeded_rng("losses", caption) for caption in captions]
    x0, cond = trainer.conditioning(torch.stack([*images.values()]), captions, rngs)
    model = upsample.denoiser_of(trainer.ema, trainer.preset.network, trainer.preset.diffusion)
    losses = [trainer.process.loss(model, x0, torch.full((len(x0),), t), diffusion.gaussian(x0, g),
                                   weights=trainer.weights, **cond).mean() for t in range(30, 1000, 64)]
    return torch.stack(losses).mean().item()


def measure(args, partial):
    """A training run on the folder without LEFT_OUT. -> the loss of what it sees and of what was left out, by step"""
    preset = train.PRESETS["tiny"]["base"]
    preset = replace(preset, train=replace(preset.train, steps=args.steps, batch=16))
    images = read(args.folder, 64)
    if not set(LEFT_OUT) < set(images):
        raise ValueError(f"{args.folder} is not the folder that `own_images.py make` writes: an image is missing")
    left_out = {caption: images.pop(caption) for caption in LEFT_OUT}
    words = train.tokenizer.BPETokenizer.train([*images, *left_out], preset.network.text.vocab_size)
    trainer, table = train.Trainer(preset, data=Deck(images), words=words, seed=args.seed), []
    while True:
        if trainer.step % args.every == 0 or trainer.step == args.steps:
            table.append([trainer.step, round(mean_loss(trainer, images), 5), round(mean_loss(trainer, left_out), 5)])
            print("step {}: loss {:.4f} of the images it sees, {:.4f} of those left out".format(*table[-1]), flush=True)
        if trainer.step == args.steps:
            return {"seed": args.seed, "seen": len(images), "left out": len(left_out), "step, seen, left out": table}
        trainer.train_step(trainer.batch(trainer.step)[0])


def draw(table):
    """Both losses against the step."""
    steps, seen, left_out = zip(*table["step, seen, left out"])
    best = steps[left_out.index(min(left_out))]
    figure = Figure(figsize=(8, 4.6), layout="constrained")
    ax = figure.subplots()
    ax.plot(steps, seen, "o-", label=f"the {table['seen']} images it is trained on")
    ax.plot(steps, left_out, "o-", label=f"the {table['left out']} it never saw")
    ax.set(xlabel="step", ylabel="loss", yscale="log",
           title=f"What is learned by heart: images that are left out are\n"
                 f"predicted best at step {best}, and ever worse from then on")
    ax.grid(alpha=0.3)
    ax.legend()
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "own_images")
    parser.add_argument("what", choices=("make", "draw", "losses"))
    parser.add_argument("folder", type=train.path_name, nargs="?", default=Path("my-images"))
    parser.add_argument("--seed", type=int, default=0, help="draw: of the noise; losses: of the training run")
    parser.add_argument("--steps", type=int, default=600, help="losses: of the training run (default: 600)")
    parser.add_argument("--every", type=int, default=50, help="losses: steps between two points (default: 50)")
    args = parser.parse_args(argv)
    if args.what == "losses":
        parser.set_defaults(out=common.OUTPUTS / "own_images_loss.png")
        return common.run(parser, measure, draw, argv)
    return train.run({"make": make, "draw": draw_all}[args.what], args, parser.prog)


if __name__ == "__main__":
    sys.exit(main())
