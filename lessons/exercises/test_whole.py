"""All nine of a student's modules together: what comes out must be what comes out of the course's own.

Here m is a dictionary {lesson: module}, as the files are. Prompts and seeds are drawn anew for every --seed.
"""
from copy import deepcopy
from dataclasses import replace

from expect import close, holds, same
from PIL import Image
from torch import Generator, cat, empty, no_grad, nn, optim, tensor, zeros

empty(1, device="meta").normal_()                 # the first time these take seconds, which nobody is to be charged for
optim.AdamW([nn.Parameter(zeros(1))])
EXPECTED = {}                                     # what the course's own modules answer, for all tasks of a process


def expected(course, ask, *given):
    """ask(course, *given), computed once; a copy, so that nobody can change it for the next task."""
    key = ask.__name__, given
    if key not in EXPECTED:
        EXPECTED[key] = ask(course, *given)
    return deepcopy(EXPECTED[key])


def prompt(course, rng):
    """A caption of the little world."""
    return course[1].random_scene(rng, "full").caption()


def weights(course, name):
    return course[3].WEIGHTS / f"{name}.pt"


# --- From a caption to an answer ---

def tokens(m, captions):
    """The merges that are learned from captions; and the tokens of another text by these and by the trained model's."""
    learned = m[1].BPETokenizer.train(captions, 300)
    trained = m[1].load_tokenizer(m[3].read_weights(weights(m, "base")))
    coded = [m[2].encode([*captions[:3], "A  Red heart, 2 blue ones!"], words, 20) for words in (learned, trained)]
    return learned.merges, [[code["tokens"].tolist(), code["mask"].tolist()] for code in coded]


def test_whole_tokens(m, course, rng):
    captions = tuple(prompt(course, rng) for _ in range(40))
    same("merges learned from forty captions, and the tokens and masks of four", tokens(m, captions),
         expected(course, tokens, captions), "lessons 1 and 2: a text becomes tokens and a mask")


@no_grad()
def answers(m, captions, seed):
    """The trained models' ε and variance: the base model's for three captions, the last one empty, guided; and the
    upsampler's for one."""
    (base, large), found = [m[9].Model.load(weights(m, name)) for name in ("base", "upsampler")], Generator()
    x, big, low_res = (m[4].gaussian(empty(shape), found.manual_seed(seed + k)) for k, shape in
                       enumerate([(3, 3, 16, 16), (1, 3, 64, 64), (1, 3, 16, 16)]))
    guided = m[5].classifier_free(base.denoiser, 2.0)
    return (guided(x, tensor([30, 500, 950]), **base.encode([*captions, ""])),
            large.denoiser(big, tensor([400]), low_res=low_res, **large.encode(captions[:1])))


def test_whole_answers(m, course, rng):
    given = (prompt(course, rng), prompt(course, rng)), rng.randrange(10 ** 6)
    got, want = answers(m, *given), expected(course, answers, *given)
    close("what the trained base model answers for noise and three captions, guided", got[0], want[0],
          "lessons 1 to 5: tokens, Transformer, U-Net, ε from v, guidance", tolerance=5e-5)
    close("what the trained upsampler answers for noise and a small picture", got[1], want[1],
          "lesson 7: the small picture is enlarged bilinearly, behind x", tolerance=5e-5)


# --- From a prompt to a picture ---

def alike(asked, got, want, idea):
    """Two pictures of bytes: no pixel is off by more than a few levels, and on average there is no difference."""
    close(asked, got, want, idea, tolerance=4 / 255)      # steps add up rounding
    off = (got.float() - want.float()).abs().mean().item()
    close(f"{asked}, off by so many levels on average", [off], [0.0], idea, tolerance=0.04)


def picture(m, text, seed):
    """Two pictures of a prompt, in few steps."""
    return m[9].generate(text, m[9].Weights(m[3].WEIGHTS), n=2, seed=seed, steps="3,2,2", upsampler_steps="1")


def test_whole_picture(m, course, rng):
    given = prompt(course, rng), rng.randrange(10 ** 6)
    alike(f"two pictures of {given[0]!r}, 64×64 bytes", picture(m, *given), expected(course, picture, *given),
          "the whole pipeline: tokens, guidance, DDIM, 8 bits, upsampler")


def edited(m, text, seed):
    """A picture of which a part is drawn anew; a small one, begun with a sketch and guided by CLIP; and a small one in
    which what is known is overwritten at every step."""
    image = Image.effect_mandelbrot((64, 48), (-2, -1.5, 1, 1.5), 30).convert("RGB")
    mask = Image.new("L", (64, 48))
    mask.paste(255, (30, 5, 60, 44))
    folder = m[9].Weights(m[3].WEIGHTS, inpaints=True, clip=True)
    known, base = m[9].InpaintInput(image, mask, 16), m[9].Model.load(weights(m, "base"))
    large = m[9].generate(text, folder, seed=seed, known=known, steps="4", sampler="ddpm", upsampler_steps="2")
    how, found = m[9].Options("3", "ddpm", 3.0, guide="clip", strength=0.8), Generator().manual_seed(seed)
    sketch = m[9].sample_base(base, [text], how, generator=found, clip=folder.load("clip"), init=image)
    process, (pixels, shown) = m[4].Diffusion.from_config(base.diffusion, "3"), known.at(16, "cpu", 1)
    over = process.ddim_sample(base.denoiser, m[4].gaussian(pixels, found), **base.encode([text]),
                               step_fn=m[6].overwrite_known(process, pixels, shown, found))
    return large, sketch, over


def test_whole_edits(m, course, rng):
    given = prompt(course, rng), rng.randrange(10 ** 6)
    got, want = edited(m, *given), expected(course, edited, *given)
    alike(f"a picture of which a part is drawn anew: {given[0]!r}", got[0], want[0],
          "inpainting at both sizes: the mask, what is known, DDPM")
    close("a small picture, begun with a sketch and guided by CLIP", got[1], want[1],
          "from a sketch, and the other way of guiding", tolerance=2e-3)
    close("a small picture in which what is known is overwritten at every step", got[2], want[2],
          "inpainting without training: lesson 6", tolerance=2e-3)


# --- Training ---

def vector(network):
    return cat([p.detach().flatten() for p in network.parameters()])


def dropped(run):
    """How many of four captions are dropped in each of ten steps, if half of them are to be."""
    run.preset = replace(run.preset, train=replace(run.preset.train, caption_dropout=0.5))
    return [4 - run.batch(step)[0]["mask"].any(1).sum().item() for step in range(10)]


def trained(m, seed, batch=None):
    """Two steps from the trained base model towards one that inpaints, and the loss of a CLIP.

    -> a batch; two losses and lengths of gradients; how far the average has moved; CLIP's loss; captions dropped
    """
    row, compute = m[8].PRESETS["tiny"]["inpaint"], m[8].ComputeConfig(dtype="float32")
    row = replace(row, train=replace(row.train, batch=4, steps=6, warmup=1, lr=1e-3, caption_dropout=0.0, freeze=()))
    run = m[8].Trainer(row, world="full", seed=seed, compute=compute, init_from=weights(m, "base"))
    begin, own = vector(run.ema), run.batch(0)[0]
    told = [run.train_step(batch or own) for _ in range(2)]
    moved = (vector(run.ema) - begin).abs().mean().item()
    row = m[8].PRESETS["tiny"]["clip"]
    clip = m[8].CLIPTrainer(replace(row, train=replace(row.train, batch=24)), seed=seed, compute=compute,
                            init_from=weights(m, "clip"))
    with no_grad():
        loss = clip.loss(clip.batch(0)[0]).mean().item()
    return own, [number for step in told for number in (step["loss"], step["grad_norm"])], moved, loss, dropped(run)


def test_whole_training(m, course, rng):
    seed = rng.randrange(10 ** 6)
    want = expected(course, trained, seed)
    got = trained(m, seed, want[0])
    for name in "x0", "t", "tokens", "mask":
        close(f"{name} of the first batch", got[0][name], want[0][name], "lesson 8: a batch follows from seed and step")
    noise = got[0]["noise"]
    close("mean and spread of its noise", [noise.mean().item(), noise.std().item()], [0.0, 1.0],
          "lesson 8: unit noise", tolerance=0.15)
    close("loss and length of the gradient of two steps of training, as shares of what they should be",
          [a / b for a, b in zip(got[1], want[1], strict=True)], [1.0] * 4,
          "lessons 3 to 8: four more channels, the loss, clipping, the step", tolerance=4e-3)
    close("how far two steps move the average of the weights, as a share of what it should be",
          [got[2] / want[2]], [1.0], "lesson 8: the learning rate and the average", tolerance=5e-3)
    close("the trained CLIP's loss for 24 pictures", [got[3]], [want[3]], "lesson 5: which caption is whose",
          tolerance=1e-3)
    mixed = [0 < n < 4 for n in got[4]]
    holds("with caption_dropout=0.5, steps in which some of four captions are dropped and some are not",
          f"{sum(mixed)} of 10 steps", sum(mixed) >= 4, "lesson 8: each caption has its own chance")
