r"""
05 · How hard to listen to the prompt.

A denoiser trained with captions listens politely: many different pictures are likely for "a red heart", and it
draws any of them, half-hearted ones too. Guidance makes it insist. A network trained with a fifth of its
captions left out can guess the noise with the prompt and without it, and the difference between the two
guesses is what the prompt alone explains. So go further in that direction:

    x_t ─┬─► model(x_t, caption) ──► ε_c ─┐
         └─► model(x_t, nothing) ──► ε_∅ ─┴─► ε̂ = ε_∅ + s·(ε_c - ε_∅)

s = 0 ignores the prompt, s = 1 is the model as trained, and s = 3, which GLIDE uses, gives pictures that anyone
would caption the same way, at the price of variety. Nothing has to be trained for it and nothing changes in
the samplers: guidance is a function from a denoiser to a denoiser.

GLIDE compares it with an older method: a second network, a *noised CLIP*, tells how well a noisy image fits a
caption, and its gradient pulls every step towards a better fit:

    x_t, t ──► image encoder ───► f ─┐
                                     ├─► 100·f·g ──► ∇ with respect to x_t ──► grad_fn of the samplers (04)
    caption ─► caption encoder ─► g ─┘

People preferred the first. CLIP itself prefers the second, which was made to please it [GLIDE section 5].

It adds to 04: how strongly the prompt counts, and what a noised CLIP learns from. It leaves out its training (08).

Papers: classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598 (section 3.2; they write
(1+w)·ε_c - w·ε_∅, so s = 1 + w); GLIDE, Nichol et al. 2021, arXiv 2112.10741 (sections 2.3, 2.4, 4.4 and 5: s is
3); [C] CLIP, Radford et al. 2021, arXiv 2103.00020 (section 2).

    python 05_guidance.py       about fifteen seconds: what guidance does to a distribution one can plot, one
                                prompt drawn at scales 0, 1, 3 and 8, then with the noised CLIP as a guide;
                                outputs/05_guidance.png shows them
"""
import random
import time
import zlib
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

tokenizer = import_module("01_tokenizer")
transformer = import_module("02_transformer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")

OUTPUTS = Path(__file__).parent / "outputs"


# --- Classifier-free guidance --------------------------------------------------------------------------

# By Bayes' rule p(c | x_t) is p(x_t | c)/p(x_t) up to a constant, so ∇ log p(c | x_t) is the difference of two scores,
# and a score is -ε/√(1-ᾱ_t). Asked twice, the network is therefore an implicit classifier, whose opinion counts s - 1
# times more than it does anyway: ε̂ belongs to p(x_t | c)·p(c | x_t)^(s-1), which prefers pictures that could show
# nothing else. No second network and no gradient is needed; the price is a second answer at each step.

def classifier_free(model, scale):
    """A denoiser that exaggerates what the prompt changes [GLIDE section 2.3].

    model  a denoiser that takes `mask` (False: no token there), trained with some captions dropped
    scale  s: 0 ignores the prompt, 1 follows it as trained, more than 1 insists on it
    -> a denoiser, so that everything that takes a denoiser, samplers above all, takes a guided one

    Only the noise is exaggerated. The variance says how certain the next step is; a value beyond what either branch
    answered would mean nothing.
    """
    def double(value):
        return torch.cat([value, value])

    def inner_prepare(**cond):
        # Every conditioning tensor twice; the second half has the empty caption, in which no token is real.
        twice = {name: double(value) for name, value in cond.items()}
        twice["mask"][len(twice["mask"]) // 2:] = False
        return {"both": diffusion.prepare(model, **twice)}

    def denoiser(x, t, *, both=None, **cond):
        """x [B, C, H, W] -> [B, 2C, H, W]; the two branches are one batch of 2B, from the same x_t."""
        both = inner_prepare(**cond)["both"] if both is None else both
        with_prompt, without = model(double(x), double(t), **both).chunk(2)
        eps, variance = with_prompt.chunk(2, dim=1)    # the variance is the one with the prompt, unguided
        eps_empty = without.chunk(2, dim=1)[0]
        return torch.cat([eps_empty + scale * (eps - eps_empty), variance], dim=1)   # ε_∅ + s·(ε_c - ε_∅)

    denoiser.prepare = inner_prepare
    return denoiser


# --- Noised CLIP ---------------------------------------------------------------------------------------

# Two Transformers map into one space, in which the vectors of an image and of its caption point the same way, so that
# their product is large. An ordinary CLIP has never seen noise, and its gradient on a half-drawn image is noise too.
# This one was trained on images at every timestep of the diffusion, and is told the timestep. It must use the base
# model's schedule: with another one, its t would mean another amount of noise.

@dataclass(frozen=True)
class CLIPConfig:
    """The sizes of a noised CLIP: an image encoder, a caption encoder, and the space they share. The defaults are
    those of the released one."""

    size: int = 64              # of the images, in pixels, and of the patches they are cut into
    patch: int = 4
    width: int = 768            # of the image encoder
    layers: int = 12
    heads: int = 12
    text: transformer.TextConfig = transformer.TextConfig(65536, 77, 512, 12, 8)
    embedding: int = 512
    timesteps: int = 1000


# The named sizes. The paper does not give its CLIP's, so the released one stands for both. The tiny and small ones read
# captions of at most 16 words, each one token, so their caption encoder is the smaller of the two. Their heads are
# narrower than 64 numbers, because recognising shapes takes several comparisons at once.
CLIP = {"tiny": CLIPConfig(16, 4, 128, 4, 4, transformer.TextConfig(512, 20, 96, 2, 3), 128),
        "small": CLIPConfig(32, 4, 128, 4, 4, transformer.TextConfig(512, 20, 96, 2, 3), 128),
        "filtered": CLIPConfig(), "paper": CLIPConfig()}
LOGIT_SCALE = 100.0   # similarities of unit vectors are at most 1, which is too flat for a softmax over captions
# The mean and the spread of red, green and blue in photographs, 0 … 255, with which the released CLIP was trained
PIXEL_MEAN = 122.77093945, 116.74601272, 104.09373519
PIXEL_STD = 68.50053285, 66.63215831, 70.32316309


class Tower(nn.Module):
    """What both encoders have in common: blocks, then one token is read, normalised and projected to a unit vector.

    Among unit vectors only directions can be compared: no image or caption scores high by being large.
    """

    def __init__(self, width, layers, heads, embedding, *, causal=False):
        super().__init__()
        self.blocks = nn.ModuleList(transformer.Block(width, heads, causal=causal, key_bias=False)
                                    for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.project = nn.Linear(width, embedding, bias=False)
        self.apply(lambda module: transformer.init_weights(module, layers))

    def pool(self, x, place):
        """x [B, N, D], place [B], the position of the token to read -> [B, E], each row of length 1"""
        for block in self.blocks:
            x = block(x)
        x = self.norm(x[torch.arange(len(x), device=x.device), place])
        return F.normalize(self.project(x), dim=-1)


class ImageEncoder(Tower):
    """A vision Transformer for noisy images. Its tokens are square patches of pixels, and in front of them a vector
    for the timestep, in the place of an ordinary one's "class" token. That one is read at the end."""

    def __init__(self, config):
        super().__init__(config.width, config.layers, config.heads, config.embedding)
        self.patch_embed = nn.Conv2d(3, config.width, config.patch, stride=config.patch, bias=False)
        self.time = nn.Embedding(config.timesteps, config.width)
        self.positions = nn.Parameter(0.5 * torch.randn((config.size // config.patch) ** 2 + 1, config.width))
        self.input_norm = nn.LayerNorm(config.width)
        # Position vectors start nearly as large as patches. If they were much smaller, the encoder would see a bag of
        # patches, and take hundreds of training steps to find out where they are.
        nn.init.normal_(self.time.weight, std=0.3)

    def forward(self, x, t):
        """x [B, 3, H, W] in [-1, 1], noised to step t [B] -> [B, E] unit vectors"""
        mean, std = diffusion.send(torch.tensor([PIXEL_MEAN, PIXEL_STD]), x.device)[:, :, None, None]   # [3, 1, 1] each
        pixels = ((x + 1) * 127.5 - mean) / std
        patches = self.patch_embed(pixels).flatten(2).transpose(1, 2)                  # [B, patches, D]
        x = torch.cat([self.time(t)[:, None], patches], dim=1) + self.positions
        return self.pool(self.input_norm(x), torch.zeros_like(t))


class CaptionEncoder(Tower):
    """A causal text Transformer: only the end token has seen the whole caption, so it is the one that is read."""

    def __init__(self, config):
        text = config.text
        super().__init__(text.width, text.layers, text.heads, config.embedding, causal=True)
        self.tokens = nn.Embedding(text.vocab_size, text.width)
        self.positions = nn.Parameter(0.1 * torch.randn(text.context, text.width))
        nn.init.normal_(self.tokens.weight, std=0.3)

    def forward(self, tokens, lengths):
        """tokens [B, K], lengths [B], up to and including the end token -> [B, E] unit vectors"""
        return self.pool(self.tokens(tokens) + self.positions[:tokens.shape[1]], lengths - 1)


class NoisedCLIP(nn.Module):
    """How well does a caption fit an image, even one half drowned in noise? A CLIP [C section 2] that was trained on
    images at every timestep of the diffusion, and is told the timestep [GLIDE section 2.4, 4.4].

    The fit is the product of two unit vectors, `image(x, t) · text(tokens, lengths)`, from -1 to 1.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.image_encoder, self.caption_encoder = ImageEncoder(config), CaptionEncoder(config)

    def image(self, x, t):
        """x [B, 3, size, size], clean images scaled to [-1, 1]; t [B] long, 0 … 999 -> [B, E], rows of length 1"""
        return self.image_encoder(x, t)

    def text(self, tokens, lengths):
        """tokens [B, K] long, K at most the configured context, lengths [B] long -> [B, E], rows of length 1"""
        return self.caption_encoder(tokens, lengths)

    def forward(self, x, t, tokens, lengths):
        """Images and captions at once, as in training (08): what `image` and `text` return."""
        return self.image(x, t), self.text(tokens, lengths)

    @classmethod
    def load(cls, path):
        """The CLIP of a weight file, in eval mode and float32. Raises what `UNet.load` (03) raises."""
        return cls.from_saved(unet.read_weights(path), path)

    @classmethod
    def from_saved(cls, saved, path):
        """The CLIP in what `read_weights` returned for path (which is only named in errors)."""
        return unet.load_model(lambda config: cls(unet.config_from(CLIPConfig, config)), saved, path)


def statements(caption, world):
    """What a caption states, as numbers, so that captions can be compared: a list of 8, -1 where it is silent.

    Its layout, its background, and the noun, colour and size of two things. world is False for captions that are not of
    the little language: those state the same if they are the same text, and the list has one number.
    """
    if not world:
        return [zlib.crc32(caption.encode())]
    scene = tokenizer.Scene.parse(caption).canonical()
    said = [scene.relation or scene.count, scene.background]
    for thing in (*scene.things, tokenizer.Thing(None, None))[:2]:
        said += [thing.noun, thing.color, thing.size]
    return [-1 if word is None else zlib.crc32(str(word).encode()) for word in said]


def contrastive_loss(images, texts, said, shown):
    """Which caption is this image's, which image is this caption's? Both questions' losses, averaged: [B].

    images, texts  unit vectors [B, E];  said, shown  [B, n] what captions and images state, see `statements`

    CLIP takes the diagonal for all the truth there is [C fig. 3]. In the little world several captions of a batch are
    often true of one image, and to push them apart would teach nonsense. Their truth is known here, so the right
    answer to each question is shared out among all that are true.
    """
    true = ((said == shown[:, None]) | (said < 0)).all(2).float()        # [images, captions]
    # A CLIP for which all are alike pays log B for each question: 5.55 for 256.
    logits = LOGIT_SCALE * images.float() @ texts.float().T              # [images, captions]
    of_captions = F.cross_entropy(logits, true / true.sum(1, keepdim=True), reduction="none")
    of_images = F.cross_entropy(logits.T, true.T / true.T.sum(1, keepdim=True), reduction="none")
    return (of_captions + of_images) / 2     # L = ½·(which caption? + which image?)   [C fig. 3]


def clip_guidance(clip, text_embedding, scale):
    """A sampler's grad_fn that pulls the image towards a caption, as CLIP sees both.

    text_embedding  [B, E] or [1, E], from clip.text
    scale           s: how hard it pulls (3 in the released notebook)
    -> grad_fn(x, t): x [B, 3, H, W] -> s·100·∇_x f(x, t)·g(c), the gradient of the logit [GLIDE section 2.4]

    log p(c | x_t) would be the logit minus the log of a sum over all possible captions, which nobody can list, so the
    logit alone is used. The sampler multiplies the gradient by its own variance (04). At every step the network runs
    forwards and backwards, but no weight gets a gradient, only x.
    """
    def grad_fn(x, t):
        with torch.enable_grad():            # samplers run without
            x = x.detach().requires_grad_()
            logits = LOGIT_SCALE * (clip.image(x, t) * text_embedding).sum()   # examples do not affect each other
            return scale * torch.autograd.grad(logits, x)[0]
    return grad_fn


# --- Captions and weights for all that follows -----------------------------------------------------------

# A noised CLIP takes captions in another form than a U-Net: it is causal, has no mask, and must be told where the end
# token is. What `encode` (02) and `encode_clip` return are keyword arguments, to be passed on with **.
def encode_clip(texts, tok, context, device="cpu"):
    """Captions as a noised CLIP takes them: {"tokens": [B, K] long, "lengths": [B] long}, cut or padded to K = context.

    texts  strings;  tok  a BPETokenizer or a CLIPTokenizer (01)
    A length includes the end token, which is the one that is read. It is kept when a caption is cut.
    """
    def pad(ids):
        if isinstance(tok, tokenizer.CLIPTokenizer):
            return tok.pad(ids, context)                # it adds a start and an end token, and counts them itself
        ids = ids[:context - 1]                         # a BPETokenizer pads with its end token: leave room for one
        return tok.pad(ids, context)[0], len(ids) + 1   # the first end token is read; it does not see those behind it

    tokens, lengths = zip(*(pad(tok.encode(text)) for text in texts))
    return {"tokens": torch.tensor(tokens, device=device), "lengths": torch.tensor(lengths, device=device)}


def load_pretrained(name, wrap=lambda network: network):
    """A small model that comes with the course: (its denoiser, its DiffusionConfig, a function of captions that
    returns the denoiser's conditioning).

    name  "base" or "upsampler", a file in lessons/weights;  wrap  gives the network its other inputs (06, 07)
    """
    path = unet.WEIGHTS / f"{name}.pt"
    saved = unet.read_weights(path)
    network = unet.UNet.from_saved(saved, path)
    process, tok = diffusion.DiffusionConfig(**saved["diffusion"]), tokenizer.load_tokenizer(saved)
    return (diffusion.to_eps(wrap(network), process), process,
            lambda captions: transformer.encode(captions, tok, network.config.text.context))


# --- The demonstration -------------------------------------------------------------------------------

SCALES = (0, 1, 3, 8)
PROMPT = "a large red heart on a white background"
MEANS = torch.tensor([[-0.35, -0.05], [0.25, 0.35], [0.3, -0.35]]).view(3, 2, 1, 1)   # three Gaussians that overlap


def show_the_line(d):
    """One point, two guesses, and where guidance goes."""
    print("\n── 1. One noisy point, two guesses at its noise")
    oracle, x, t = diffusion.MixtureDenoiser(d, MEANS, 0.25), torch.tensor([[[[0.2]], [[0.1]]]]), torch.tensor([500])
    asked = {"tokens": torch.tensor([[0]]), "mask": torch.tensor([[True]])}
    guess = {"ε_c": oracle(x, t, **asked), "ε_∅": oracle(x, t)}
    for name, eps in guess.items():
        print(f"   {name} = ({eps[0, 0].item():+.3f}, {eps[0, 1].item():+.3f})")
    for scale in SCALES:
        eps = classifier_free(oracle, scale)(x, t, **asked)[0, :2].flatten().tolist()
        print(f"   s = {scale}: ε_∅ + {scale}·(ε_c - ε_∅) = ({eps[0]:+.3f}, {eps[1]:+.3f})")


def show_the_mixture(d, n=1500):
    """The oracle is asked for its left Gaussian, and guided. -> {scale: points [n, 2]}"""
    print("\n── 2. A distribution one can plot: three Gaussians, of which the left one is asked for")
    oracle, drawn = diffusion.MixtureDenoiser(d, MEANS, 0.25), {}
    asked = {"tokens": torch.zeros(n, 1, dtype=torch.long), "mask": torch.ones(n, 1, dtype=torch.bool)}
    for scale in SCALES:
        noise = torch.randn(n, 2, 1, 1, generator=torch.Generator().manual_seed(0))
        points = d.ddim_sample(classifier_free(oracle, scale), noise, **asked).flatten(1)
        nearest = (points[:, None] - MEANS.flatten(1)).norm(dim=2).argmin(1)
        drawn[scale] = points
        print(f"   s = {scale}: {(nearest == 0).double().mean():6.1%} of the points are nearest to it;"
              f" their spread is {points.std(0).mean():.3f}")
    print("   s = 1 draws the Gaussian nearly as it is (0.25); larger scales are surer, at the price of variety")
    return drawn


def show_the_prompt(n=6):
    """The same noise and the same prompt at four scales. -> {scale: images [n, 3, 16, 16]}"""
    model, config, encode = load_pretrained("base")
    d, drawn = diffusion.Diffusion.from_config(config, "25"), {}
    print(f"\n── 3. {PROMPT!r}, from the same {n} noises at four scales, in 25 DDIM steps")
    for scale in SCALES:
        noise, start = torch.randn(n, 3, 16, 16, generator=torch.Generator().manual_seed(1)), time.time()
        drawn[scale] = d.ddim_sample(classifier_free(model, scale), noise, **encode([PROMPT] * n))
        red, green, blue = drawn[scale][:, :, 6:10, 6:10].mean((0, 2, 3)).add(1).div(2).tolist()
        print(f"   s = {scale}: the middle has on average red {red:.2f}, green {green:.2f}, blue {blue:.2f};"
              f" the spread between pictures is {drawn[scale].std(0).mean():.3f}   ({time.time() - start:.1f} s)")
    return drawn


# PROMPT and captions that each differ from it in one thing, by that thing.
CAPTIONS = {"as it is": PROMPT, "blue": "a large blue heart on a white background",
            "umbrella": "a large red umbrella on a white background",
            "small": "a small red heart on a white background", "on black": "a large red heart on a black background"}


def show_the_clip(n=6):
    """The other guide: what it sees in noise, and where it leads a model that is given no caption.

    -> {scale: images [n, 3, 16, 16]}
    """
    path = unet.WEIGHTS / "clip.pt"
    saved, (model, config, encode) = unet.read_weights(path), load_pretrained("base")
    clip, tok, drawn = NoisedCLIP.from_saved(saved, path), tokenizer.load_tokenizer(saved), {}
    print("\n── 4. The noised CLIP: which caption fits an image, and which image would fit better?")
    with torch.no_grad():
        texts = clip.text(**encode_clip(CAPTIONS.values(), tok, clip.config.text.context))
    real = show_the_fit(clip, texts, diffusion.Diffusion.from_config(config))
    print(f"   The logit of the true caption is {real:.1f} on average for real pictures. For those by a model that is\n"
          "   given no caption and is pulled by CLIP alone, it is")
    nothing = encode([PROMPT] * n)
    nothing["mask"][:] = False       # the empty caption, as in training
    for scale in SCALES:
        g, start = torch.Generator().manual_seed(1), time.time()
        drawn[scale] = x = diffusion.Diffusion.from_config(config, "25").ddpm_sample(
            model, torch.randn(n, 3, 16, 16, generator=g), generator=g,
            grad_fn=clip_guidance(clip, texts[:1], scale), **nothing)
        with torch.no_grad():
            fit = LOGIT_SCALE * (clip.image(x, torch.zeros(n, dtype=torch.long)) @ texts[0]).mean()
        print(f"   s = {scale}: {fit:5.1f}   ({time.time() - start:.1f} s)")
    print("   That is CLIP's own opinion. The picture shows what it takes for a heart.")
    return drawn


@torch.no_grad()
def show_the_fit(clip, texts, d, n=60):
    """The true caption among false ones, for real pictures at several noise levels. -> the true one's mean logit"""
    rng, scene = random.Random(0), tokenizer.Scene.parse(PROMPT)
    x0 = diffusion.downsample(diffusion.draw_all((scene.fill(rng) for _ in range(n)), rng), 16)
    print(f"   For {n} real pictures, noised to t: the true caption against four that are wrong in one thing\n   "
          + "".join(f"{words:>14}" for words in ("t", *CAPTIONS)))
    for t in (0, 300, 600, 900):
        steps = torch.full((n,), t)
        x_t = d.q_sample(x0, steps, torch.randn(x0.shape, generator=torch.Generator().manual_seed(t)))
        # p(caption | x_t), given that it is one of these: the softmax of 100·f·g   [C section 2.3]
        logits = LOGIT_SCALE * clip.image(x_t, steps) @ texts.T
        print(f"   {t:>14}" + "".join(f"{p:>14.1%}" for p in logits.softmax(1).mean(0).tolist()))
    return LOGIT_SCALE * (clip.image(x0, torch.zeros_like(steps)) @ texts[0]).mean().item()


def show_the_cost():
    """What the second branch costs, and what preparing the prompt saves."""
    model, _, encode = load_pretrained("base")
    print("\n── 5. What guidance costs: both branches are one batch, and the caption is encoded once")
    x, t, cond = torch.randn(8, 3, 16, 16), torch.full((8,), 500), encode([PROMPT] * 8)
    guided = classifier_free(model, 3.0)
    runs = {"unguided": (model, diffusion.prepare(model, **cond)), "guided": (guided, guided.prepare(**cond)),
            "guided, unprepared": (guided, cond)}
    for name, (denoiser, cond) in runs.items():
        with torch.no_grad():
            denoiser(x, t, **cond)   # the first call warms up
            start = time.time()
            for _ in range(10):
                denoiser(x, t, **cond)
        print(f"   {name:<20}{(time.time() - start) * 100:6.1f} ms a step for 8 pictures")


def save_picture(points, rows, path):
    """Above, the guided mixture; below, rows {title: {scale: images}} of guided drawings; one column a scale."""
    from matplotlib.figure import Figure            # here, so that importing this file stays quick
    heights = [4.0, 2.9, 2.9]
    figure = Figure(figsize=(12, sum(heights)), layout="constrained")
    above, *below = figure.subfigures(len(heights), 1, height_ratios=heights)
    names = "ignores the prompt", "as trained", "insists", "exaggerates"
    for ax, name, (scale, xy) in zip(above.subplots(1, len(SCALES)), names, points.items()):
        ax.scatter(*MEANS.flatten(1).T, s=2600, color="0.9")
        ax.scatter(*xy.T, s=4, color="#c0392b", alpha=0.35, linewidths=0)
        ax.set(xlim=(-1.05, 1.05), ylim=(-1.05, 1.05), xticks=[], yticks=[], aspect="equal")
        ax.set_title(f"{name}:  s = {scale}", size=14)
    above.suptitle("“The left one, please”: three Gaussians, drawn by their own oracle with guidance", size=16)
    for part, (title, drawn) in zip(below, rows.items()):
        part.suptitle(title, size=16)
        for ax, (scale, x) in zip(part.subplots(1, len(drawn)), drawn.items()):
            ax.imshow(diffusion.image_grid(x, columns=3, zoom=8, gap=8, color="silver"))
            ax.set_title(f"s = {scale}", size=14)
            ax.set(xticks=[], yticks=[])
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


def main():
    """The five sections and the picture."""
    d = diffusion.Diffusion.from_config(diffusion.DiffusionConfig(), "50")
    show_the_line(diffusion.Diffusion.from_config(diffusion.DiffusionConfig()))
    points, free, clip = show_the_mixture(d), show_the_prompt(), show_the_clip()
    show_the_cost()
    rows = {f"“{PROMPT}”, classifier-free, from the same six noises": free,
            "Only the noised CLIP knows the prompt, and pulls a model that is given no caption": clip}
    save_picture(points, rows, OUTPUTS / "05_guidance.png")
    print("\nThe picture is outputs/05_guidance.png. Its lesson: lessons/05_guidance.ipynb.\n"
          "Next: python 06_inpaint.py draws into a part of a picture.")


if __name__ == "__main__":
    main()
