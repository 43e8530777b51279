r"""
10 · Does the picture show what the caption says?

Is this model better than yesterday's? Its loss hardly tells, since most of it is noise that nobody could guess.
People can tell, but not ten thousand times. In a little world whose captions have a truth there is a better way: a
classifier looks at a picture *without* its caption and answers a fixed list of questions.

    caption ──► base model ──► picture ──► judge ──► how many? which? what colour, size, ground? ──┐
       │                                                                                           ├─► right, or not
       └─► parsed: what the caption says ──────────────────────────────────────────────────────────┘

A picture is right if everything that its caption says is answered so. What the caption leaves open cannot be wrong. The
judge errs too, so its rate on *real* pictures, the ceiling, stands next to every score; and n pictures are only a
sample, so every rate comes with an interval.

It adds measures to 09: caption accuracy by kind, the upsampler next to bicubic interpolation, how flat backgrounds
are, and how often the noised CLIP finds a picture's own caption among a hundred. It leaves out measures of many
pictures at once, such as FID (11). The judge was trained on real pictures only and never guides a sampler: a network
that helped to draw a picture finds in it what it asked for.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 5: what it measured instead); CLIP, Radford et al. 2021,
arXiv 2103.00020 (section 2); measuring composition with detectors: GenEval, Ghosh et al. 2023, arXiv 2310.11513;
intervals: Wilson 1927, JASA 22; Brown, Cai & DasGupta 2001, Statistical Science 16 (2).

    python lessons/10_judge.py              about ten seconds: what the judge sees, its ceiling, and two intervals
                                            put to the test; outputs/10_judge.png
    python lessons/10_judge.py measure      caption accuracy of the small models, ten minutes; --n 60: four minutes
    python lessons/10_judge.py retrieval    captions found by the noised CLIP, ten seconds; both: --weights FOLDER
    python lessons/10_judge.py train        the judge of 16 pixels, four minutes; --size 64 and 128 take longer
"""
import argparse
import random
import sys
import time
from dataclasses import astuple, dataclass, replace
from importlib import import_module
from itertools import count, islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # the project's root
tokenizer, unet, diffusion, guidance, upsample, train, sample = map(import_module, (
    "01_tokenizer", "03_unet", "04_diffusion", "05_guidance", "07_upsample", "08_train", "09_sample"))


# --- Questions ---------------------------------------------------------------------------------------

# A picture is described by its layout, its background, and noun, colour and size of one or two things. "Above" and
# "below" say the same of two things in another order, so scenes are made canonical first: then there is a first thing,
# the left or the upper one, and two layouts are enough for four relations.
LAYOUTS = ("one", "two", "three", "side by side", "one above the other")
THING = [("noun", tuple(tokenizer.NOUNS)), ("color", tokenizer.COLORS), ("size", tokenizer.SIZES)]
QUESTIONS = [("layout", LAYOUTS), ("background", tokenizer.BACKGROUNDS), *THING, *THING]   # name, possible answers


def labels(scenes):
    """The right answers, [n, questions], as places in the lists of QUESTIONS; -1 where a scene does not say.

    -1 is what the loss ignores, and what no picture can get wrong.
    """
    rows = []
    for scene in map(tokenizer.Scene.canonical, scenes):
        layout = scene.count - 1 if scene.relation is None else 4 if scene.relation == "above" else 3
        said = (LAYOUTS[layout], scene.background, *sum(map(astuple, scene.things), ()), None, None, None)
        rows.append([answers.index(word) if word else -1 for word, (_, answers) in zip(said, QUESTIONS)])
    return torch.tensor(rows)


def in_words(answers):
    """One row of answers to a picture of two things, in three lines of text."""
    layout, background, *words = [choices[i] for i, (_, choices) in zip(answers.tolist(), QUESTIONS)]
    return f"{layout}, on {background}:\n" + ",\n".join(" ".join(words[i:i + 3][::-1]) for i in (0, 3))


# --- The judge ---------------------------------------------------------------------------------------

@dataclass(frozen=True)
class JudgeConfig:
    """The sizes of a judge: its images' side, 16, 32, 64 or 128, and how wide its layers are."""

    size: int = 16
    width: int = 64
    features: int = 128
    heads: int = 4
    stem: int = 32
    answers: tuple = tuple(choices for _, choices in QUESTIONS)   # the vocabulary that it was trained for


def conv(inputs, outputs, kernel=3, stride=1):
    """Convolution, batch normalization, ReLU. With the normalization the judge learns about ten times as fast; in the
    U-Net (03) it would be out of place, because there the images of a batch must not influence one another."""
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU())


def reader(width, questions):
    """A small network that answers some of the questions: [..., width] -> all their logits side by side."""
    return nn.Sequential(nn.Linear(width, 256), nn.ReLU(), nn.Linear(256, sum(len(words) for _, words in questions)))


class Judge(nn.Module):
    """[B, 3, size, size] in [-1, 1] -> the logits of every question, a list of [B, answers].

    Convolutions describe each of 8×8 places. A glance at all of them decides where to look for the first and for the
    second thing: that is attention with two sets of queries. One small network reads both things, so what it learns
    about an anchor on the left it knows of an anchor below.
    """

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        # 8×8 places at every size: 16, 32, 64 and 128 pixels are halved one to four times.
        enter = [conv(3, c.stem)] if c.size == 16 else [conv(3, c.stem, 4, 2)]
        enter += [conv(c.stem, c.stem, 4, 2) for size in (64, 128) if size <= c.size] + [conv(c.stem, c.width, 4, 2)]
        self.places = nn.Sequential(*enter, conv(c.width, c.width), conv(c.width, c.features))
        self.position = nn.Parameter(0.1 * torch.randn(64, c.features))
        self.glance = nn.Sequential(conv(c.features, 64, 4, 2), nn.Flatten(), nn.Linear(1024, 256), nn.ReLU())
        self.queries = nn.Linear(256, 2 * c.heads * c.features)        # two things, h looks at each
        self.thing = reader(c.heads * c.features, THING)
        self.scene = reader(256 + 2 * c.heads * c.features, QUESTIONS[:2])

    def forward(self, x):
        """x [B, 3, size, size] -> a list of [B, answers], float32, in the order of QUESTIONS

        Images that are a multiple of its size it sees reduced, each pixel the mean of a square.
        """
        places = self.places(F.avg_pool2d(x, x.shape[-1] // self.config.size))              # [B, C, 8, 8]
        glance = self.glance(places)                                   # [B, 256]
        keys = places.flatten(2).transpose(1, 2) + self.position       # [B, 64, C]
        queries = self.queries(glance).view(len(x), 2 * self.config.heads, -1)         # [B, 2h, C]
        # Attention (02): each query takes the mean of all places, those weighing more that fit it.
        seen = F.scaled_dot_product_attention(queries, keys, keys).view(len(x), 2, -1)     # [B, 2, h·C]: first, second
        logits = [self.scene(torch.cat([glance, seen.flatten(1)], 1)), *self.thing(seen).unbind(1)]
        return torch.cat(logits, 1).float().split([len(choices) for _, choices in QUESTIONS], 1)

    @classmethod
    def load(cls, path):
        """The judge of a weight file, in eval mode, with its `ceiling`: {kind: (right, n)} on real pictures.

        Raises FileNotFoundError, or ValueError: for another kind of file, or if it was trained for other words.
        """
        saved = unet.read_weights(path)
        if saved["config"].get("answers", JudgeConfig.answers) != JudgeConfig.answers:
            raise ValueError(f"{path} was trained for other words: python lessons/10_judge.py train makes a new one")
        judge = unet.load_model(lambda config: cls(JudgeConfig(**config)), saved, path)
        judge.ceiling = saved.get("ceiling", {})
        return judge


@torch.no_grad()
def answer(judge, images):
    """What the judge sees in images [n, 3, size, size]: [n, questions], places in the lists of QUESTIONS."""
    return torch.cat([torch.stack([logits.argmax(1) for logits in judge(x)], 1) for x in images.split(500)])


def scores(judge, images, scenes):
    """Whether each image shows what its scene says: {"all", "layout", "noun", …: bool array [n]}.

    Two things that changed places have the right layout and wrong nouns or colours, so a relation is right when
    layout, nouns and colours are.
    """
    wanted, names = labels(scenes), ("all", *dict(QUESTIONS))
    right = (answer(judge, images) == wanted) | (wanted < 0)                             # [n, questions]
    return {name: right[:, [name in ("all", asked) for asked, _ in QUESTIONS]].all(1).numpy() for name in names}


# --- Its training ------------------------------------------------------------------------------------

def judge_images(n, rng, size):
    """Real images with *all* pairs of colour and noun, and the scenes they show: what the judge learns from.

    A tenth of them have a pair that the models never see in training. A judge that had not met those either could not
    tell a model that composes from one that does not. -> [n, 3, size, size], n scenes
    """
    scenes = [tokenizer.random_scene(rng, "full", rng.random() < 0.1).fill(rng) for _ in range(n)]
    return diffusion.downsample(diffusion.draw_all(scenes, rng, max(size, 64)), size), scenes


def degrade(x):
    """Images [B, 3, S, S] a little blurred, tinted and noisy, each to its own degree, as generated ones are.

    A judge trained without this is right about real images and lost as soon as a colour is a shade off.
    """
    blur, tint, noise = (most * torch.rand(len(x), 1, 1, 1) for most in (0.3, 0.12, 0.15))
    x = torch.lerp(x, F.avg_pool2d(x, 3, 1, 1, count_include_pad=False), blur)
    return x + tint * torch.randn(len(x), 3, 1, 1) + noise * torch.randn_like(x)


def train_judge(size, *, steps=1000, seed=0, batch=256, lr=3e-3):
    """A judge of images of this size, in eval mode.

    The loss is the sum of the questions' cross entropies, without those that a scene leaves open. The rate goes up for
    a tenth of the steps and then down (the one-cycle policy): 1,000 steps have no time for anything slower.
    """
    torch.manual_seed(seed)
    judge, rng = Judge(JudgeConfig(size)).to(memory_format=torch.channels_last), random.Random(seed)
    optimizer = torch.optim.AdamW(judge.parameters(), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=steps, pct_start=0.1)
    for step in range(1, steps + 1):
        x, scenes = judge_images(batch, rng, size)
        with torch.autocast("cpu", torch.bfloat16, enabled=train.fast_dtype("cpu") == torch.bfloat16):
            logits = judge(degrade(x.to(memory_format=torch.channels_last)))
        loss = sum(F.cross_entropy(guess, right, ignore_index=-1) for guess, right in zip(logits, labels(scenes).T))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(judge.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"  step {step:,}/{steps:,}   loss {loss.item():.3f}", flush=True)
    return judge.eval()


# --- Captions to measure with, and the ceiling -------------------------------------------------------

# Kinds are counted apart: a model may know its colours and not which of two things is above. "Easy" are the dozen
# nouns of the world of single things; "held out" are single things of a colour and a noun never trained together.
KINDS = ("easy single", "single", "pair", "count", "held out")


def eval_captions(kind, n, seed=12345):
    """n scenes of one of KINDS, whose captions are drawn. The same kind and seed give the same ones to every model."""
    if kind not in KINDS:
        raise ValueError(f"{kind!r} is no kind of captions; there are {', '.join(KINDS)}")
    rng, easy = random.Random(f"{kind} {seed}"), kind in ("easy single", "held out")
    scenes = (tokenizer.random_scene(rng, "single" if easy else "full", kind == "held out") for _ in count())
    return list(islice((scene for scene in scenes if easy or scene.kind == kind), n))


def real_images(scenes, seed=0, side=64):
    """What the scenes should look like, one image each, what they leave open decided by the seed: uint8
    [n, 3, side, side], side a multiple of 64."""
    rng = random.Random(seed)
    return diffusion.draw_all((scene.fill(rng) for scene in scenes), rng, side)


def judge_ceiling(judge, n=3000):
    """How often the judge is right about *real* images: {kind: (right, n)}.

    A model that drew just as the world is drawn would score this, up to chance; but a model that scores this need not
    draw so, since wrong pictures may pass too (four things as three). A model at 90% under a ceiling of 93% need not
    draw one caption in ten wrong: part of what is missing may be the judge's own errors.
    """
    size, ceiling = judge.config.size, {}
    for kind in KINDS:
        scenes = eval_captions(kind, n)
        images = diffusion.downsample(real_images(scenes, side=max(size, 64)), size)
        ceiling[kind] = int(scores(judge, images, scenes)["all"].sum()), n
    return ceiling


# --- Intervals ---------------------------------------------------------------------------------------

def textbook(right, n, z=1.96):
    """The interval that textbooks give first, p ± z·√(p(1-p)/n). `wilson` says what is wrong with it."""
    return tuple(right / n + sign * z * (right / n * (1 - right / n) / n) ** 0.5 for sign in (-1, 1))


def wilson(right, n, z=1.96):
    """Wilson's 95% interval for a rate of which `right` of n trials are known; it holds near 0 and 1 too.

    By hand: a model that is right 99 times in 100 has all of 60 right in 0.99^60 = 55% of the experiments. Then the
    textbook's interval is 100% to 100%, which does not hold the true 99%; this one is 94% to 100%. At one half, 300
    trials leave ± 5.6 points: models that differ by less have hardly been told apart.
    """
    # All rates p that make p̂ = right/n no more surprising than z standard deviations, |p̂ - p| ≤ z·√(p(1-p)/n), lie
    # between (p̂ + z²/2n ± z·√(p̂(1-p̂)/n + z²/4n²)) / (1 + z²/n)   [Wilson 1927]
    rate, spread = right / n, z * z / n
    middle, half = rate + spread / 2, z * (rate * (1 - rate) / n + spread / n / 4) ** 0.5
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))   # not -1e-18


def mean_interval(values, *, rate=False):
    """(mean, low, high) of a tensor of independent numbers [n], with a 95% interval: Wilson's for a rate, whose values
    are 0 and 1, otherwise the normal one."""
    mean, half = values.mean().item(), 1.96 * values.std().item() / len(values) ** 0.5
    return mean, *(wilson(values.sum().item(), len(values)) if rate else (mean - half, mean + half))


# --- Measures ----------------------------------------------------------------------------------------

def draw(base, scenes, *, upsampler=None, low_res=None, options=None, seed=0, batch=16):
    """Images of the scenes' captions by the base model, and by the upsampler if there is one: [n, 3, S, S], on the CPU.

    base, upsampler  Models (09);  low_res  images to enlarge instead of the base model's
    options          the base model's Options, by default its usual ones
    """
    generator, drawn = torch.Generator().manual_seed(seed), []
    for part in (slice(start, start + batch) for start in range(0, len(scenes), batch)):
        captions = [scene.caption() for scene in scenes[part]]
        x = low_res[part] if low_res is not None else sample.sample_base(base, captions, options, generator=generator)
        if upsampler is not None:
            x = sample.sample_upsampler(upsampler, x, captions, generator=generator)
        drawn.append(x.cpu())
    return torch.cat(drawn)


def caption_accuracy(base, judge, kind, n, *, seed=0, question="all", **options):
    """How many of n captions of a kind the judge finds entirely right in what is drawn: (right, n).

    question  "all", or one name of QUESTIONS;  options  as for `draw`. Entirely right is a strict measure: of four
    independent questions that are each answered rightly nine times in ten, all are right in two images of three.
    """
    scenes = eval_captions(kind, n, seed)
    return int(scores(judge, draw(base, scenes, seed=seed, **options), scenes)[question].sum()), n


def upsampler_quality(upsampler, judge, kind, n, *, seed=0):
    """Real small images enlarged by the upsampler and by bicubic interpolation: {"upsampler": …, "bicubic": …}.

    Each has three numbers: "color", how far colours are off when the result is reduced again (07); "psnr" in dB against
    the real large image; and "right", how often the judge of large images names every noun. PSNR alone would mislead:
    it rewards the mean of all sharp images that are possible, which is a blurred one. The judge asks whether one sees
    what it is.
    """
    scenes = eval_captions(kind, n, seed)
    real = real_images(scenes, seed, max(upsampler.size, 64))
    large = diffusion.downsample(real, upsampler.size)
    low = upsample.round_to_bytes(diffusion.downsample(real, upsampler.size // upsample.FACTOR))
    results = {"upsampler": draw(None, scenes, upsampler=upsampler, low_res=low, seed=seed),
               "bicubic": F.interpolate(low, scale_factor=upsample.FACTOR, mode="bicubic").clamp(-1, 1)}
    return {name: {"color": upsample.color_error(x, low).mean().item(), "psnr": upsample.psnr(x, large).mean().item(),
                   "right": scores(judge, x, scenes)["noun"].mean()} for name, x in results.items()}


def background_error(images, background):
    """How flat backgrounds are, and how near to the colour that was asked for, in steps of 255: two tensors [n].

    images  [n, 3, S, S] in [-1, 1], each of one *small* thing, for captions that name this background
    The world is flat there, so the truth is (0, 0). Only the upper and the lower tenth are looked at, which no small
    single thing of the world reaches. Returned are the standard deviation, a mean over the channels, and how far a
    channel's mean is off, the largest of the three.
    """
    edge = images.shape[2] // 10
    pixels = diffusion.to_bytes(torch.cat([images[:, :, :edge], images[:, :, -edge:]], dim=2)).double().flatten(2)
    return pixels.std(2).mean(1), (pixels.mean(2) - torch.from_numpy(diffusion.RGB[background])).abs().amax(1)


@torch.no_grad()
def retrieval_accuracy(clip, words, process, world, *, n=500, timesteps=range(0, 1000, 100), choices=100):
    """How often an image's own caption fits it best of `choices`, by noise level: {timestep: (right, n)}.

    words  the CLIP's tokenizer;  process  the Diffusion it was trained with;  world  "single" or "full"
    The distractors are captions of other scenes, each false of the image. Guessing finds one in a hundred. Every noise
    level is measured because guidance asks at all of them: a CLIP that reads only clean images is of no use to it.
    """
    rng, g, size = random.Random(12345), torch.Generator().manual_seed(12345), clip.config.size
    scenes = [tokenizer.random_scene(rng, world) for _ in range(max(n, 2 * choices))]
    filled = [scene.fill(rng) for scene in scenes[:n]]
    # A caption is false if anything that it says is not shown. Several may be true of an image, not only its own.
    said, shown = labels(scenes), labels(filled)                                         # [captions, 8], [images, 8]
    distractors = torch.multinomial(((said != shown[:, None]) & (said >= 0)).any(2).float(), choices - 1, generator=g)
    texts = clip.text(**guidance.encode_clip([scene.caption() for scene in scenes], words, clip.config.text.context))
    x0, rates = diffusion.downsample(diffusion.draw_all(filled, rng, max(size, 64)), size), {}
    for t in timesteps:
        steps = torch.full((n,), t)
        # How well each image fits each caption, [images, captions]; on the diagonal stands its own.
        fits = clip.image(process.q_sample(x0, steps, diffusion.gaussian(x0, g)), steps) @ texts.T
        rates[t] = int((fits.diagonal()[:, None] > fits.gather(1, distractors)).all(1).sum()), n
    return rates


# --- The commands ------------------------------------------------------------------------------------

def show_rates(title, rows):
    """A table of rates with their intervals, each as soon as it is known. rows yields (name, right, n) and a note."""
    print(title)
    for name, right, n, *note in rows:
        print(f"   {name:<12} {right / n:6.1%}   {'({:.1%} to {:.1%})'.format(*wilson(right, n)):<18}", *note)


def judge_for(size, folder):
    """The judge of a folder for images of this size, or else one that comes with the course: for those of more than 64
    pixels, the one of 64."""
    path = folder / f"judge-{size}.pt"
    return Judge.load(path if path.exists() else unet.WEIGHTS / f"judge-{min(size, 64)}.pt")


def make_judge(args):
    """`train`: a judge and its ceiling, in a file."""
    out, steps, start = args.out or train.OUTPUTS / f"judge-{args.size}.pt", int(args.steps or 1000), time.time()
    out.parent.mkdir(parents=True, exist_ok=True)          # what cannot be made is refused now, not in four minutes
    judge = train_judge(args.size, steps=steps, seed=args.seed)
    made = {"command": f"python lessons/10_judge.py train --size {args.size} --steps {steps} --seed {args.seed}",
            "minutes": round((time.time() - start) / 60, 1), "torch": str(torch.__version__)}
    judge.ceiling = judge_ceiling(judge)
    unet.save_weights(out, judge, ceiling=judge.ceiling, made=made)
    show_rates(f"{out}: real images entirely right", ((kind, *rate) for kind, rate in judge.ceiling.items()))


def measure(args):
    """`measure`: what the models of a folder can do, in the judge's eyes."""
    weights, n = sample.Weights(args.weights, device=args.device), args.n or 300
    base = weights.load("base")
    if not base.world:
        raise ValueError(f"{args.weights} holds models of images of your own, whose captions cannot be checked")
    kinds = KINDS if base.world == "full" else ("easy single", "held out")
    said = {name: getattr(args, name) for name in ("scale", "steps", "sampler") if getattr(args, name) is not None}
    how = {"options": replace(sample.default_options(base), **said), "seed": args.seed}
    judge = judge_for(base.size, args.weights)
    show_rates(f"Captions entirely right, {base.size} pixels, n {n} a kind, seed {args.seed}, {how['options']}", (
        (kind, *caption_accuracy(base, judge, kind, n, **how), "ceiling {:.1%}".format(
            judge.ceiling[kind][0] / judge.ceiling[kind][1])) for kind in kinds))
    if "upsampler" in weights.saved:
        how["upsampler"] = weights.load("upsampler")
        measure_large(base, judge_for(how["upsampler"].size, args.weights), kinds[:3], min(n, 100), how)


def measure_large(base, judge, kinds, n, how):
    """The second half of `measure`: the upsampler alone, both models together, and their backgrounds."""
    show_rates(f"Nouns right in real images of easy single things, enlarged to {how['upsampler'].size} pixels, n {n}", (
        (name, round(r["right"] * n), n, f"colours off by {r['color']:.4f} on [0, 1], PSNR {r['psnr']:.1f} dB")
        for name, r in upsampler_quality(how["upsampler"], judge, "easy single", n, seed=how["seed"]).items()))
    show_rates(f"Nouns right in what both models draw together, n {n} a kind", (
        (kind, *caption_accuracy(base, judge, kind, n, question="noun", **how)) for kind in kinds))
    print("The backgrounds that they draw, 8 images each of one small thing, in steps of 255")
    for name in tokenizer.BACKGROUNDS:
        scenes = [tokenizer.Scene.parse(f"a small {color} {noun} on a {name} background")
                  for color, noun in tokenizer.EASY_PAIRS[::11]]
        deviation, off = background_error(draw(base, scenes, **how), name)
        print(f"   {name:<12} deviation {deviation.mean():.1f}; mean off by {off.mean():.1f}, at most {off.max():.1f}")


def retrieve(args):
    """`retrieval`: how often the noised CLIP of a folder finds an image's own caption."""
    saved, n = unet.read_weights(args.weights / "clip.pt"), args.n or 500
    clip, words = guidance.NoisedCLIP.from_saved(saved, args.weights / "clip.pt"), tokenizer.load_tokenizer(saved)
    process = diffusion.Diffusion.from_config(diffusion.DiffusionConfig(**saved["diffusion"]))
    rates = retrieval_accuracy(clip, words, process, saved["world"], n=n)
    show_rates(f"Own captions found among 100, n {n}, chance 1%", ((f"t = {t}", *rate) for t, rate in rates.items()))


# --- The demonstration -------------------------------------------------------------------------------

def coverage(interval, rate, n=60, experiments=20_000):
    """How often an interval holds the true rate: the share of simulated experiments of n trials each."""
    right = (torch.rand(experiments, n, generator=torch.Generator().manual_seed(0)) < rate).sum(1).tolist()
    return sum(low <= rate <= high for low, high in (interval(k, n) for k in right)) / experiments


def save_picture(images, seen, right, path):
    """The images in two rows, real ones above, and what the judge sees in each: red if that is not what was asked."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(16, 6.6), layout="constrained")
    for ax, image, caption, fine in zip(figure.subplots(2, 6).flat, diffusion.to_bytes(images), seen, right):
        ax.imshow(image.permute(1, 2, 0).numpy())
        ax.set(xticks=[], yticks=[])
        ax.set_xlabel(caption, size=11, color="#1e8449" if fine else "#c0392b")
    figure.suptitle("What the judge sees in real pictures, above, and in drawn ones; red: not what was asked", size=18)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90, bbox_inches="tight", pad_inches=0.1)


def demonstrate(_):
    """The three sections and the picture."""
    base = sample.Model.load(unet.WEIGHTS / "base.pt")
    judge = judge_for(base.size, unet.WEIGHTS)
    print("1. What the judge sees in six real images and in six drawn ones of the same captions, which it never reads")
    scenes = eval_captions("pair", 6, 7) * 2
    images = torch.cat([diffusion.downsample(real_images(scenes[:6]), base.size), draw(base, scenes[:6])])
    seen, right = list(map(in_words, answer(judge, images))), scores(judge, images, scenes)["all"]
    for scene, words, fine in zip(scenes, seen, right):
        print(f"   {scene.caption()}\n      {'right' if fine else 'WRONG'}:", *words.split("\n"))
    show_rates("\n2. Its ceiling: real images entirely right", ((kind, *rate) for kind, rate in judge.ceiling.items()))
    print("\n3. How often do 95% intervals hold the true rate? 20,000 experiments of 60 trials each")
    for rate in (0.5, 0.8, 0.95, 0.99):
        print(f"   true rate {rate:.0%}: textbook {coverage(textbook, rate):.1%}, Wilson {coverage(wilson, rate):.1%}")
    save_picture(images, seen, right, train.OUTPUTS / "10_judge.png")
    print("\nThe picture is outputs/10_judge.png. The lesson to this file is lessons/10_judge.ipynb.")


def main(argv=None):
    """The command line. -> exit status: 0, or 2 for what you can mend, with one line on stderr"""
    parser = argparse.ArgumentParser(description="Does the picture show what the caption says?")
    add, commands = parser.add_argument, {"train": make_judge, "measure": measure, "retrieval": retrieve}
    add("command", nargs="?", choices=commands, help="without one: a demonstration")
    add("--weights", type=train.path_name, default=unet.WEIGHTS, help="measure, retrieval: a folder (lessons/weights)")
    add("--n", type=int, help="measure: captions of each kind (300); retrieval: images (500)")
    add("--seed", type=int, default=0, help="train, measure")
    add("--steps", help="train: of 256 images each (1000); measure: of the base model's sampling loop")
    add("--scale", type=float, help="measure: of guidance; its default, like that of steps and sampler, is the model's")
    add("--sampler", choices=("ddpm", "ddim", "dpm"), help="measure")
    add("--device", default="cpu", help="measure")
    add("--size", type=int, choices=(16, 32, 64, 128), default=16, help="train: of the judge's images, in pixels")
    add("--out", type=train.path_name, help="train: the file; default outputs/judge-SIZE.pt")
    args = parser.parse_args(argv)
    if args.n is not None and args.n < 1:
        parser.error("--n is at least 1")
    return train.run(commands.get(args.command, demonstrate), args, "10_judge.py")


if __name__ == "__main__":
    sys.exit(main())
