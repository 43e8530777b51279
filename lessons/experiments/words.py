"""What are words worth? The same short training with a text encoder that knows nothing, and with one that knows them.

A U-Net and its text encoder learn together. A gradient reaches the words through pictures that are still blobs, and
words that mean nothing yet are no help to the pictures. So one would expect a network that is given the words to be
ahead. Tiny base models are trained in the whole little world by 08's recipe, with the same seed, images and noise. They
differ in the text encoder: it is random; or that of the shipped base model; or that one and frozen, as Imagen has it
(Saharia et al. 2022, arXiv 2205.11487; theirs has read text only, ours has seen images). And in its learning rate: the
recipe's, 1e-3, is half of the U-Net's; the slow one is a tenth of that. The judge says of how many captions the layout
is right (one, two or three things; of two, side by side or one above the other), all colours, and all nouns.

    python lessons/experiments/words.py --dtype bfloat16                               an hour of one busy core
    python lessons/experiments/words.py --steps 3000                                   longer trainings

Found: after 1,000 steps the network that began from nothing and fast hardly listens: of 100 single things 32 have their
colour. The other three are alike: all 100 have it, 68 to 77 pairs of 100 and 52 to 59 counts have their layout. So it
is not words that were lacking but a slow enough rate. Nouns have hardly begun in any of the four: 4 to 9 single things
of 100, where guessing finds 4. One training each; intervals are over captions.
"""
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, unet, train, judge = map(import_module, (
    "lessons.experiments.common", "03_unet", "08_train", "lessons.10_judge"))

# name: whether the text encoder is given, and what is changed of the recipe
TRAININGS = {"from nothing, fast": (False, {}), "from nothing, slow": (False, {"text_lr": 1e-4}),
             "words given, fast": (True, {}), "words given, frozen": (True, {"freeze": ("text",)})}
KINDS = "single", "pair", "count"
ASKED = {"layout": "layout", "color": "colours", "noun": "nouns", "all": "all that is said"}


def trained(name, args, knowing):
    """The Model (09) after its training. knowing: a U-Net of the same size, whose text encoder knows the words"""
    (given, changes), preset = TRAININGS[name], train.PRESETS["tiny"]["base"]
    recipe = replace(preset.train, **train.FULL_WORLD["base"] | changes, steps=args.steps)
    trainer = train.Trainer(replace(preset, network=knowing.config, train=recipe), world="full", seed=args.seed)
    if given:
        for network in (trainer.model, trainer.ema):
            network.text.load_state_dict(knowing.text.state_dict())
    while trainer.step < args.steps:
        trainer.train_step(trainer.batch(trainer.step)[0])
    return common.model_of(trainer, getattr(torch, args.dtype))


def drawn(model, reader, args):
    """What a model draws: {kind: {"examples": two captions, each with its image as text, "layout": a rate, …}}."""
    found = {}
    for kind in KINDS:
        scenes = judge.eval_captions(kind, args.n, args.seed)
        images = judge.draw(model, scenes, seed=args.seed)
        scores = judge.scores(reader, images, scenes)
        rates = {asked: common.cell(torch.from_numpy(scores[asked])) for asked in ASKED}
        found[kind] = rates | {"examples": [[s.caption(), common.to_text(x)] for s, x in zip(scenes[:2], images)]}
    return found


def measure(args, partial):
    """Trains and measures one model after the other, and prints each as soon as it is known."""
    path, saved = common.weights(args).saved["base"]
    knowing, reader, table = unet.UNet.from_saved(saved, path), judge.judge_for(16, args.weights), {}
    for name in TRAININGS:
        table[name] = partial(name, lambda: drawn(trained(name, args, knowing), reader, args))
        for kind, cells in table[name].items():
            print(f"{name:<21}{kind:<8}" + "".join(f"{asked} {common.percent(cells[asked])}%   " for asked in ASKED),
                  flush=True)
    return {"steps": args.steps, "seed": args.seed, "n": args.n, "trainings": table}


def draw(table):
    """What each draws of six captions, a row for each; below, how often it is right."""
    figure = Figure(figsize=(14, 15), layout="constrained")
    figure.suptitle(f"{table['steps']:,} steps: a text encoder that learns fast from nothing hardly learns; one that "
                    "learns slowly\nis as far as one that knew the words. Shapes take longer in all", size=16)
    upper, lower = figure.subfigures(2, 1, height_ratios=(2.6, 1))
    for row, (name, found) in zip(upper.subplots(len(TRAININGS), 2 * len(KINDS)), table["trainings"].items()):
        for ax, (caption, image) in zip(row, (pair for kind in KINDS for pair in found[kind]["examples"])):
            common.show(ax, image, title=caption if row[0] is upper.axes[0] else "", width=20, size=12)
        row[0].set_ylabel(name, size=14)
    for ax, kind in zip(lower.subplots(1, len(KINDS), sharey=True), KINDS):
        for k, (name, found) in enumerate(table["trainings"].items()):
            common.bars(ax, k, len(TRAININGS), [found[kind][asked] for asked in ASKED], label=name)
        ax.set_title(f"{kind}s: fraction right, n {table['n']}")
        ax.set_xticks(range(len(ASKED)), ASKED.values())
        ax.grid(axis="y", alpha=0.3)
    ax.legend()
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "words", n=100)
    parser.add_argument("--steps", type=int, default=1000, help="of each training (default: 1000)")
    parser.add_argument("--seed", type=int, default=0)
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
