"""What pays in an upsampler's training? Short runs, each with one thing changed, all with the same images and noise.

    python lessons/experiments/trials.py                          50 minutes on one core
    python lessons/experiments/trials.py --only "32 groups"       one of them

Each trial trains the tiny upsampler from random weights, for the same number of images (crops: four times as many), and
enlarges the same real images in 27 steps. Three numbers judge it: how far colours are off when the result is reduced
again (on [0, 1]), how far the bare ground is off (in levels of 255), and PSNR (dB). They are early numbers, after 2,400
images: what learns faster is not always what ends better. A second seed shows how much is chance.

Found: predicting ε comes to nothing in so few steps; 32 groups, one channel each, nearly double what colours are off
by; half a batch of the noisiest timesteps costs four decibels. Crops, which show four times as many images for the same
arithmetic, gain one, and so do a rate that does not decay, twice as many steps of half as many images, and 48 channels,
which take 2¼ times the arithmetic. Half the learning rate loses two decibels; twice the rate is a little better. No
captions, or noise on the small image: half a decibel lost. A second seed differs by 0.04 dB, and the last weights from
their average by 0.02, for the rate has gone down to zero.
"""
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, diffusion, upsample, train, judge = map(import_module, (
    "lessons.experiments.common", "04_diffusion", "07_upsample", "08_train", "lessons.10_judge"))

# name: what is changed of the preset's network, its diffusion process or its training; or another seed, or noise on the
# small image that it is shown, or more steps. Crops of a quarter of the pixels come four at a time: the same pixels a
# step. 48 channels take 2¼ times the arithmetic of 32, so they are the one trial that costs more minutes.
TRIALS = {
    "as it is: 8 groups, v, whole images": {},
    "the same from another seed": {"seed": 1},
    "32 groups": {"network": {"groups": 32}},
    "1 group": {"network": {"groups": 1}},
    "ε instead of v": {"diffusion": {"prediction_type": "eps"}, "train": {"weighting": "eps"}},
    "32 groups and ε": {"network": {"groups": 32}, "diffusion": {"prediction_type": "eps"},
                        "train": {"weighting": "eps"}},
    "four times as many crops": {"train": {"crop": 32, "batch": 32}},
    "a constant learning rate": {"train": {"decay": False}},
    "half the batch is noisiest": {"train": {"high_noise_fraction": 0.5}},
    "twice the learning rate": {"train": {"lr": 4e-3}},
    "half the learning rate": {"train": {"lr": 1e-3}},
    "batches of 4, twice the steps": {"train": {"batch": 4}, "times": 2},
    "48 channels instead of 32": {"network": {"channels": 48, "groups": 12, "head_channels": 96}},
    "the last weights, no average": {"train": {"ema": 0.0}},
    "no captions": {"train": {"caption_dropout": 1.0}},
    "noise on what it is shown": {"low_res_noise": 0.05},
}


class Trial(train.Trainer):
    """A training run whose small images are noised, so that the upsampler learns not to believe them to the last bit
    [Ho et al. 2021, Cascaded Diffusion Models, section 4.2: "conditioning augmentation"; theirs is random in size]."""

    def __init__(self, name, args):
        changes, preset = TRIALS[name], train.PRESETS["tiny"]["upsampler"]
        steps = args.steps * changes.get("times", 1)
        preset = replace(preset, train=replace(preset.train, steps=steps, batch=8, crop=0))
        self.low_res_noise = changes.get("low_res_noise", 0)
        super().__init__(replace(preset, **{part: replace(getattr(preset, part), **changes.get(part, {}))
                                            for part in ("network", "diffusion", "train")}),
                         world="full", seed=args.seed + changes.get("seed", 0))

    def batch(self, step):
        """As 08 has it, and noise on low_res."""
        batch, reasons = super().batch(step)
        g = diffusion.seeded_generator("low_res", step, 0)
        batch["low_res"] = batch["low_res"] + self.low_res_noise * diffusion.gaussian(batch["low_res"], g)
        return batch, reasons


def errors(trainer, args):
    """The three numbers of each of the real images, as cells."""
    scenes = [scene for kind in ("single", "pair") for scene in judge.eval_captions(kind, args.n, args.seed)]
    images = judge.real_images(scenes, args.seed)
    true, low_res = diffusion.downsample(images, 64), upsample.round_to_bytes(diffusion.downsample(images, 16))
    drawn = judge.draw(None, scenes, upsampler=common.model_of(trainer), low_res=low_res, seed=args.seed)
    bare = (true == true[:, :, :1, :1]).all(1)
    off = (drawn - true).abs().mean(1) * 127.5
    ground = torch.stack([one[where].mean() for one, where in zip(off, bare)])
    return dict(zip(MEASURES, map(common.cell, (upsample.color_error(drawn, low_res), ground,
                                                upsample.psnr(drawn, true)))))


MEASURES = {"colour": "colours off by, on [0, 1]", "ground": "bare ground off by, of 255", "psnr": "PSNR, dB"}


def measure(args, partial):
    """Trains and measures one trial after the other, and prints each as soon as it is known."""
    table = {}
    for name in args.only or TRIALS:
        def one():
            trainer = Trial(name, args)
            while trainer.step < trainer.preset.train.steps:
                trainer.train_step(trainer.batch(trainer.step)[0])
            return errors(trainer, args)
        table[name] = partial(name, one)
        print(f"{name:<40}" + "   ".join(f"{key} {table[name][key]['value']:.4g}" for key in MEASURES), flush=True)
    return {"steps": args.steps, "seed": args.seed, "n": 2 * args.n, "trials": table}


def draw(table):
    """A row for each trial, a panel for each number, with 95% intervals; a line where the recipe as it is stands."""
    trials = dict(sorted(table["trials"].items(), key=lambda trial: trial[1]["psnr"]["value"]))
    figure, places = Figure(figsize=(13, 0.42 * len(trials) + 1.6), layout="constrained"), np.arange(len(trials))
    for ax, (key, label) in zip(figure.subplots(1, 3, sharey=True), MEASURES.items()):
        means, errors = common.error_bars([one[key] for one in trials.values()])
        ax.errorbar(means, places, xerr=errors, fmt="o", capsize=3)
        if (plain := next(iter(TRIALS))) in trials:
            ax.axvline(trials[plain][key]["value"], color="0.6", linestyle=":")
        better, scale = ("more", "linear") if key == "psnr" else ("less", "log")
        ax.set(title=f"{label}\n({better} is better, {scale} scale)", yticks=places, yticklabels=list(trials),
               xscale=scale)
        if key != "psnr":
            ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            ax.xaxis.set_major_formatter("{x:g}")
            ax.xaxis.set_minor_locator(NullLocator())
        ax.grid(axis="x", alpha=0.3)
    figure.suptitle(f"{table['steps']} steps of the tiny upsampler: ε fails; norms, crops, timesteps, the rate, steps "
                    "and width matter, captions a little", fontweight="bold")
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "trials", n=24)
    parser.add_argument("--steps", type=int, default=300, help="of each trial (default: 300)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="+", choices=TRIALS, help="these trials alone")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
