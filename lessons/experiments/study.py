"""Which sampling hyperparameters matter? One thing changed at a time: what does it do to truth, distance and time?

The small base model draws the same captions of the whole little world: 25 steps of DDIM with guidance 3 unless said
otherwise. The upsampler's panel enlarges real images in its usual 27 steps.

  right     captions whose every attribute is drawn right, says the judge (10); of enlarged images, whose nouns are
  FID       to real images of other captions, in the judge's features (11). It falls with n, so compare it within here
  seconds   of processor time a picture, on the machine that ran it: compare within here, too

    python lessons/experiments/study.py --dtype bfloat16                               51 minutes on a busy core
    python lessons/experiments/study.py --redraw --out lessons/figures/study.png

The noise schedule must be chosen before training: peer.py compares the two.

Found: a few settings ruin pictures, and among the others hardly any difference is larger than chance. 12 steps are
enough for any sampler, 8 for DDIM (96% right), and in 5 DDIM is ahead (84%; the others have 62% and 50%). The learned
variance draws as the smallest one does; the largest one needs 25 steps or more. Guidance from 1.5 to 5 has 96% right,
none 90%, 8 has 91%, while FID grows with the scale all the way, from 22 to 41. η, the places of the 25 timesteps, and
the upsampler's first noise make no difference larger than the intervals of 400 (of the upsampler, 100) pictures. So:
DDIM, 12 to 25 steps, guidance 1.5 to 3, and no thought for the rest. What two changes do together it cannot see: at
scale 5, 15 ancestral steps have 90% right (tradeoff.py), where 25 of DDIM have 96%.
"""
import sys
import time
from importlib import import_module
from pathlib import Path

import torch
from matplotlib.figure import Figure

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))     # the project's root
common, tradeoff, diffusion, guidance, upsample, judge, measures = map(import_module, (
    "lessons.experiments.common", "lessons.experiments.tradeoff", "04_diffusion", "05_guidance", "07_upsample",
    "lessons.10_judge", "lessons.11_measures"))

STEPS = ("5", "8", "12", "25", "50")
USUAL = {"steps": "25", "eta": 0.0, "scale": 3.0}
# panel: its curves, and of each the settings: what `drawn` is told
PANELS = {
    "sampler and steps": {
        "DDIM": [{"steps": steps} for steps in STEPS],
        "ancestral": [{"steps": steps, "sampler": "ddpm"} for steps in STEPS],
        "DPM-Solver++": [{"steps": steps, "sampler": "dpm"} for steps in STEPS]},
    "variance of ancestral steps": {
        name: [{"steps": steps, "sampler": "ddpm"} | changes for steps in STEPS] for name, changes in (
            ("learned", {}), (r"always $\tilde\beta$", {"variance": -1.0}),
            (r"always $\beta$", {"variance": 1.0}))},
    "DDIM's η": {"DDIM": [{"eta": eta} for eta in (0.0, 0.25, 0.5, 0.75, 1.0)]},
    "which 25 timesteps": {"DDIM": [{"steps": spec} for spec in ("25", "ddim25", "9,7,5,2,2", "2,2,5,7,9")]},
    "guidance": {"DDIM": [{"scale": scale} for scale in (1.0, 1.5, 2.0, 3.0, 5.0, 8.0)]},
    "the upsampler's first noise": {"DDIM": [{"noise": noise} for noise in (0.98, 0.99, 0.995, 0.997, 1.0)]},
}


def fixed_variance(model, between):
    """A denoiser whose variance is not learned: between -1 is always the smallest, β̃, and 1 the largest, β."""
    def denoiser(x, t, **cond):
        eps = model(x, t, **cond).chunk(2, dim=1)[0]
        return torch.cat([eps, torch.full_like(eps, between)], dim=1)
    denoiser.prepare = lambda **cond: diffusion.prepare(model, **cond)
    return denoiser


def drawn(base, scenes, generator, *, steps="25", sampler="ddim", scale=3.0, variance=None, **how):
    """An image of each scene's caption: [n, 3, S, S]; variance as for `fixed_variance`, how: the sampler's options."""
    denoiser = guidance.classifier_free(base.denoiser, scale)
    denoiser = denoiser if variance is None else fixed_variance(denoiser, variance)
    process = diffusion.Diffusion.from_config(base.diffusion, steps)
    x_T = diffusion.gaussian(torch.empty(len(scenes), 3, base.size, base.size), generator)
    return getattr(process, f"{sampler}_sample")(denoiser, x_T, generator=generator, **how,
                                                 **base.encode([scene.caption() for scene in scenes]))


def enlarged(model, scenes, generator, *, noise):
    """Real images of the scenes, enlarged from a quarter of the size: [n, 3, S, S]."""
    low = diffusion.downsample(judge.real_images(scenes, 0), model.size // upsample.FACTOR)
    return upsample.upsample(model.denoiser, low, generator=generator, noise=noise,
                             process=diffusion.Diffusion.from_config(model.diffusion, "fast27"),
                             **model.encode([scene.caption() for scene in scenes]))


def measured(make, model, args, **how):
    """{"right", "FID", "seconds"}: cells of args.n images, a quarter as many of the upsampler, with these settings."""
    reader, n = judge.judge_for(model.size, args.weights), args.n // (4 if "noise" in how else 1)
    scenes, others = tradeoff.random_scenes(model, n, args.seed), tradeoff.random_scenes(model, n, "others")
    real = diffusion.downsample(judge.real_images(others, 1, max(64, model.size)), model.size)
    g, start = torch.Generator().manual_seed(args.seed), time.process_time()
    images = torch.cat([make(model, scenes[i:i + 50], g, **how) for i in range(0, n, 50)])
    seconds = round((time.process_time() - start) / n, 5)
    right = judge.scores(reader, images, scenes)["noun" if "noise" in how else "all"]
    numbers = measures.half_sampling(measures.fid, *(measures.features(reader, x) for x in (real, images)),
                                     generator=measures.seeded())
    return {"right": common.cell(torch.from_numpy(right)), "seconds": seconds,
            "FID": common.interval(*numbers, n)}


def label(how):
    """A setting's place on the axis."""
    value = next(iter(how.values()))
    return value if isinstance(value, str) else f"{value:g}"


def measure(args, partial):
    """Prints a line for each setting as soon as it is known. -> the table"""
    weights, found = common.weights(args), {}
    base, upsampler = weights.load("base"), weights.load("upsampler")
    for panel in args.only or PANELS:
        found[panel] = {}
        for name, settings in PANELS[panel].items():
            found[panel][name] = rows = []
            for how in settings:
                make, model = (enlarged, upsampler) if "noise" in how else (drawn, base)
                changes = {option: value for option, value in how.items() if USUAL.get(option) != value}
                numbers = partial(f"{changes}", lambda: measured(make, model, args, **how))
                rows.append({"at": label(how)} | numbers)
                print(f"{panel}, {name}, {label(how)}: right {common.percent(numbers['right'])}, FID",
                      "{value:.1f} ({low:.1f} to {high:.1f}),".format(**numbers["FID"]),
                      f"{numbers['seconds']:.3f} s", flush=True)
    return {"n": args.n, "seed": args.seed, "panels": found}


# --- The figure --------------------------------------------------------------------------------------

TITLES = dict(zip(PANELS, (
    "12 steps are enough; for DDIM, 8", r"Learned is as good as $\tilde\beta$; $\beta$ needs 25 steps",
    "η: nothing beyond chance", "Which timesteps: nothing beyond chance",
    "Truth wants 1.5 to 5; FID wants none", "First noise: nothing that shows")))


def draw(table):
    """Two panels for each hyperparameter: truth above FID, with 95% intervals, and seconds under the first curve."""
    figure = Figure(figsize=(16, 17), layout="constrained")
    for part, (panel, curves) in zip(figure.subfigures(2, 3).flat, table["panels"].items()):
        above, below = part.subplots(2, 1, sharex=True)
        for k, (name, rows) in enumerate(curves.items()):
            for ax, measured in ((above, "right"), (below, "FID")):
                values, errors = common.error_bars([row[measured] for row in rows])
                ax.errorbar(torch.arange(len(rows)) + 0.08 * k, values, yerr=errors, marker="o", capsize=3, label=name)
        rows = next(iter(curves.values()))
        below.set_xticks(range(len(rows)), [f"{row['at']}\n{row['seconds']:.2g} s" for row in rows])
        below.set(xlabel=panel, ylabel="FID", ylim=(0, None))
        above.set(ylabel="right")
        above.set_ylim(min(0.85, above.get_ylim()[0]), 1.01)       # a few points are no canyon
        above.yaxis.set_major_formatter("{x:.0%}")
        above.set_title(TITLES[panel], size=14)
        if len(curves) > 1:
            above.legend()
        for ax in (above, below):
            ax.grid(alpha=0.3)
    return figure


def main(argv=None):
    parser = common.parser(__doc__, "study", n=400)
    parser.add_argument("--seed", type=int, default=0, help="of captions and noise (default: 0)")
    parser.add_argument("--only", nargs="+", choices=PANELS, help="these hyperparameters alone")
    return common.run(parser, measure, draw, argv)


if __name__ == "__main__":
    sys.exit(main())
