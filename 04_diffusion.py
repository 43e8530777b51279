r"""
04 · Guessing noise well is enough to draw.

Take a picture and drown it in noise, a thousand small steps long. Each step is easy to undo *if one knows the
noise*. So a network is trained on one game only: here is a noisy picture, what is the noise? A picture
is then drawn by starting from pure noise and taking a little of the guessed noise away, again and again:

    x_999 ──► x_t ──► model(x_t, t) ──► ε̂ ──► x̂_0 = the whole picture, guessed  ──► x_{t-1} ──► … ──► x_0
              └────────────────────────── clipped to [-1, 1], mixed with x_t ◄──┘

It adds to 03: schedules, the loss, samplers. It leaves out: how strongly a prompt is listened to (05).
The **denoiser** is the one idea the rest of the course builds on: any callable

    model(x_t, t, **cond) -> [B, 2C, H, W]        C channels of noise, then C for the variance; float32

with t a LongTensor of original timesteps 0 … 999 and pictures in [-1, 1]. Everything here knows only that,
so the same sampler runs on the U-Net, on guided or masked ones, and on an oracle: for data that are a
mixture of Gaussians the best guess has a closed form (`MixtureDenoiser`), and no training is needed
to see, and to test, what a sampler does. The last part draws the little world's pictures.

Papers: [D] DDPM, Ho et al. 2020, arXiv 2006.11239; [I] Improved DDPM, Nichol & Dhariwal 2021, arXiv 2102.09672;
[S] DDIM, Song et al. 2020, arXiv 2010.02502; [A] ADM, Dhariwal & Nichol 2021, arXiv 2105.05233;
[V] Salimans & Ho 2022, arXiv 2202.00512 (predicting v); [B] Analytic-DPM, Bao et al. 2022, arXiv 2201.06503.

    python 04_diffusion.py      about ten seconds: both schedules, a picture drowning, the oracle and its
                                samplers, a small denoiser trained on the spot; a picture in outputs/
"""
import math
import random
from dataclasses import dataclass
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib import get_data_path   # matplotlib brings the font that the little world is drawn with
from PIL import Image, ImageDraw, ImageFont

tokenizer = import_module("01_tokenizer")
unet = import_module("03_unet")

OUTPUTS = Path(__file__).parent / "outputs"


@dataclass(frozen=True)
class DiffusionConfig:
    """Which noise, and what the network says about it."""

    schedule: str = "cosine"   # "cosine" or "linear"
    steps: int = 1000
    predicts: str = "eps"      # "eps", as GLIDE does, or "v" (see `answers_eps`)


DIFFUSION = {
    "tiny": DiffusionConfig(predicts="v"),
    "tiny-upsampler": DiffusionConfig("linear", predicts="v"),
    "filtered": DiffusionConfig(),
    "filtered-upsampler": DiffusionConfig("linear"),
    "paper": DiffusionConfig(),
    "paper-upsampler": DiffusionConfig("linear"),
}


# --- Schedules ---------------------------------------------------------------------------------------

def linear_betas(steps):
    """β from 1e-4 to 0.02 in equal steps, for 1,000 of them [D section 4]; fewer, larger ones otherwise.
    -> [steps] float64."""
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)


def cosine_betas(steps):
    """β such that √ᾱ falls like a cosine [I eq. 17]: noise comes in evenly. Capped at 0.999.
    -> [steps] float64."""
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def respace(steps, spec):
    """The timesteps that a shorter walk keeps, ascending.

    spec  "100": a hundred, evenly. "10,10,3,2,2": the steps cut into five equal sections, so many kept of
          each. "fast27": that one with its last step moved from 999 to 997, for GLIDE's upsampler.
          "ddim50": fifty at one whole stride from 0.
    Raises ValueError where there is no such walk.
    """
    spec = str(spec)
    if spec == "fast27":
        return respace(steps, "10,10,3,2,2")[:-1] + [steps * 997 // 1000]
    if spec.startswith("ddim"):
        count = _whole(spec[4:], spec)
        for stride in range(1, steps):
            if len(range(0, steps, stride)) == count:
                return list(range(0, steps, stride))
        raise ValueError(f"no whole stride keeps exactly {count} of {steps} timesteps; try {count} without 'ddim'")
    counts = [_whole(part, spec) for part in spec.split(",")]
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))
        if count > size:
            raise ValueError(f"cannot keep {count} of a section of {size} timesteps")
        stride = (size - 1) / (count - 1) if count > 1 else 1
        kept += [start + round(k * stride) for k in range(count)]
        start += size
    return kept


def _whole(text, spec):
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"steps {spec!r} not understood; write '100', '10,10,3,2,2', 'fast27' or 'ddim50'")
    return int(text)


# --- The process -------------------------------------------------------------------------------------

class Step(NamedTuple):
    """What one look at x_t says about x_{t-1}: a Gaussian, and the picture it heads for. Each [B, C, H, W]."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    x0: torch.Tensor


def gaussian(x, generator):
    """Unit noise in the shape of x. A CPU generator gives the same noise, so the same picture, on any device."""
    device = generator.device if generator is not None else x.device
    return torch.randn(x.shape, generator=generator, device=device).to(x)


def prepare(model, **cond):
    """Let a denoiser that can do so compute once what depends on the prompt alone."""
    return model.prepare(**cond) if hasattr(model, "prepare") else cond


class Diffusion:
    """A noise schedule and everything that follows from it.

    betas      [T], float64: the noise added at each of the T steps
    timesteps  the ones to keep, ascending (see `respace`); all of them if None. The shorter walk has betas of
               its own, chosen so that at the kept timesteps ᾱ is the same; the denoiser is told the
               original timestep, so it never notices. Any other timestep raises ValueError.
    """

    def __init__(self, betas, timesteps=None):
        alpha_bar = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), dim=0)
        self.timesteps = list(range(len(alpha_bar))) if timesteps is None else sorted(set(timesteps))
        kept = torch.tensor(self.timesteps)
        self.places = torch.full((len(alpha_bar),), -1)   # timestep -> its row in the tables below
        self.places[kept] = torch.arange(len(kept))

        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self.alpha_bar = alpha_bar[kept]
        self.before = torch.cat([one, self.alpha_bar[:-1]])    # ᾱ one kept step nearer to the picture
        self.after = torch.cat([self.alpha_bar[1:], zero])     # … and one nearer to pure noise
        self.betas = 1 - self.alpha_bar / self.before
        self.signal, self.noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        # The mean of x_{t-1} once x_0 and x_t are known is a mixture of the two, in these shares  [D eq. 7]
        self.share_x0 = self.before.sqrt() * self.betas / (1 - self.alpha_bar)
        self.share_xt = (1 - self.before) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)
        # β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t)·β_t   [D eq. 7]. It is 0 at the first step, whose log is borrowed from the second.
        self.posterior_variance = (1 - self.before) / (1 - self.alpha_bar) * self.betas
        self.log_posterior = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log() \
            if len(kept) > 1 else self.betas.log()

    @classmethod
    def of(cls, config, spec=None):
        """The process of a DiffusionConfig, whole or respaced."""
        betas = {"cosine": cosine_betas, "linear": linear_betas}[config.schedule](config.steps)
        return cls(betas, None if spec is None else respace(config.steps, spec))

    def at(self, table, t, x):
        """table[t] for every example, float32 and shaped to meet x: [B, 1, 1, 1]. Tables are float64, and so is
        every sum made of them: in float32, 1 - ᾱ at the first steps would keep only three digits."""
        place = self.places[t.cpu()]
        if (place < 0).any():
            raise ValueError(f"timestep {t[place.to(t.device) < 0][0].item()} is not among the {len(self.timesteps)} kept")
        return table[place].to(x.device, torch.float32).view(-1, *[1] * (x.dim() - 1))

    def q_sample(self, x0, t, noise):
        """Straight from the picture to step t. x0, noise [B, C, H, W], t [B] -> x_t [B, C, H, W]."""
        return self.at(self.signal, t, x0) * x0 + self.at(self.noise, t, x0) * noise   # x_t = √ᾱ·x_0 + √(1-ᾱ)·ε   [D eq. 4]

    def x0_from_eps(self, x_t, t, eps):
        """The same equation solved for the picture."""
        return (x_t - self.at(self.noise, t, x_t) * eps) / self.at(self.signal, t, x_t)

    def eps_from_x0(self, x_t, t, x0):
        """… and for the noise."""
        return (x_t - self.at(self.signal, t, x_t) * x0) / self.at(self.noise, t, x_t)

    def posterior_mean(self, x0, x_t, t):
        """Where x_{t-1} lies on average, once x_0 and x_t are known [D eq. 7]."""
        return self.at(self.share_x0, t, x_t) * x0 + self.at(self.share_xt, t, x_t) * x_t

    def p_mean_variance(self, model_output, x_t, t, clip=True, x0_fn=None):
        """The model's Gaussian for x_{t-1}. model_output [B, 2C, H, W] -> Step.

        x0_fn may change the predicted picture before it is clipped to [-1, 1] and the mean is taken.
        """
        eps, between = model_output.float().chunk(2, dim=1)
        x0 = self.x0_from_eps(x_t, t, eps)
        if x0_fn is not None:
            x0 = x0_fn(x0)
        if clip:
            x0 = x0.clamp(-1, 1)
        # The true variance lies between β̃ (one picture is possible) and β (anything is); the network says
        # where: log σ² = v'·log β + (1-v')·log β̃, v' = (v+1)/2   [I eq. 15]
        share = (between + 1) / 2
        high, low = self.at(self.betas.log(), t, x_t), self.at(self.log_posterior, t, x_t)
        return Step(self.posterior_mean(x0, x_t, t), share * high + (1 - share) * low, x0)

    # --- Training ---

    def loss(self, model, x0, t, noise, *, weights=None, **cond):
        """The hybrid loss of each example [I eq. 16]: L_simple + T/1000 · L_t in bits per dimension.

        x0, noise [B, C, H, W], t [B] -> [B] float32. weights, a table [T], multiplies the squared error in ε at
        each timestep: 1/ᾱ makes it the squared error in v, (1-ᾱ)/ᾱ the one in x_0. None is DDPM's own choice.
        """
        x_t = self.q_sample(x0, t, noise)
        output = model(x_t, t.to(x_t.device), **cond)
        eps, between = output.chunk(2, dim=1)
        simple = (eps - noise).square().flatten(1).mean(1)     # ‖ε - ε̂‖²   [D eq. 14]
        if weights is not None:
            simple = simple * self.at(weights, t, simple)
        # The bound trains the variance alone: through the mean its gradient is far noisier than L_simple's.
        frozen = torch.cat([eps.detach(), between], dim=1)
        return simple + len(self.timesteps) / 1000 * self.bound(frozen, x0, x_t, t)

    def bound(self, model_output, x0, x_t, t):
        """L_t, one term of the variational bound [D eq. 5], in bits per dimension: [B].

        KL(q(x_{t-1} | x_t, x_0) ‖ p) for t > 0; at the first step -log p(x_0) of the 8-bit picture.
        """
        p = self.p_mean_variance(model_output, x_t, t, clip=False)
        mean, log_variance = self.posterior_mean(x0, x_t, t), self.at(self.log_posterior, t, x_t)
        # KL of two Gaussians: ½·(log σ_p²/σ_q² - 1 + σ_q²/σ_p² + (μ_q-μ_p)²/σ_p²)
        kl = 0.5 * (p.log_variance - log_variance - 1 + (log_variance - p.log_variance).exp()
                    + (mean - p.mean).square() * (-p.log_variance).exp())
        first = (t.to(x_t.device) == self.timesteps[0]).view(-1, *[1] * (x_t.dim() - 1))
        nats = torch.where(first, -log_likelihood_of_bytes(x0, p.mean, 0.5 * p.log_variance), kl)
        return nats.flatten(1).mean(1) / math.log(2)

    # --- Samplers: x_T [B, C, H, W] -> x_0. What they share:
    #   x0_fn(x0)       changes each predicted picture before it is clipped
    #   grad_fn(x, t)   ∇ log p(c | x_t), scaled: pulls the walk towards c (05)
    #   step_fn(x, t)   changes each new x_{t-1}; t is the timestep just left
    #   generator       where random numbers come from
    #   **cond          for the denoiser, prepared once

    def _descend(self, x):
        for t in reversed(self.timesteps):
            yield torch.full((len(x),), t, device=x.device)

    @torch.no_grad()
    def ddpm_sample(self, model, x_T, *, x0_fn=None, grad_fn=None, step_fn=None, generator=None, **cond):
        """Ancestral sampling [D alg. 2]: each x_{t-1} is drawn from the model's Gaussian."""
        x, cond = x_T, prepare(model, **cond)
        for t in self._descend(x_T):
            p = self.p_mean_variance(model(x, t, **cond), x, t, x0_fn=x0_fn)
            mean = p.mean if grad_fn is None else p.mean + p.log_variance.exp() * grad_fn(x, t)   # [A alg. 1]
            noise = gaussian(x, generator) if t[0] > self.timesteps[0] else 0   # the last step adds none
            x = mean + (0.5 * p.log_variance).exp() * noise
            x = x if step_fn is None else step_fn(x, t)
        return x

    @torch.no_grad()
    def ddim_sample(self, model, x_T, *, eta=0.0, x0_fn=None, grad_fn=None, step_fn=None, generator=None, **cond):
        """DDIM [S eq. 12]: aim at the predicted picture, go there as far as step t-1 allows, and put the
        *same* noise back. With eta 0 nothing is drawn: x_T alone decides the picture."""
        x, cond = x_T, prepare(model, **cond)
        for t in self._descend(x_T):
            x0 = self.p_mean_variance(model(x, t, **cond), x, t, x0_fn=x0_fn).x0
            eps = self.eps_from_x0(x, t, x0)     # the noise that fits the clipped picture
            if grad_fn is not None:
                eps = eps - self.at(self.noise, t, x) * grad_fn(x, t)   # the score shifted [A alg. 2]; not clipped again
                x0 = self.x0_from_eps(x, t, eps)
            sigma = eta * self.posterior_variance.sqrt()   # [S eq. 16]: eta 1 has the ancestral β̃
            x = self.at(self.before.sqrt(), t, x) * x0 \
                + self.at((1 - self.before - sigma ** 2).clamp(min=0).sqrt(), t, x) * eps
            if eta:
                x = x + self.at(sigma, t, x) * gaussian(x, generator)   # σ is 0 at the last step
            x = x if step_fn is None else step_fn(x, t)
        return x

    @torch.no_grad()
    def ddim_reverse(self, model, x0, **cond):
        """DDIM run backwards, from a picture to the noise that would draw it [S section 4.3, 5.4]."""
        x, cond = x0, prepare(model, **cond)
        for step in self.timesteps:
            t = torch.full((len(x),), step, device=x.device)
            guess = self.p_mean_variance(model(x, t, **cond), x, t).x0
            eps = self.eps_from_x0(x, t, guess)
            x = self.at(self.after.sqrt(), t, x) * guess + self.at((1 - self.after).sqrt(), t, x) * eps
        return x


def log_likelihood_of_bytes(x0, mean, log_sigma):
    """log of the probability that a Gaussian gives each 8-bit pixel value: the mass between the two
    half-way points to its neighbours, the outermost values taking all that lies beyond [D eq. 13].

    The normal CDF is approximated as in GLIDE's training code: Φ(u) ≈ ½·(1 + tanh(√(2/π)·(u + 0.044715·u³))).
    """
    def cdf(edge):
        u = (edge - mean) * (-log_sigma).exp()
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))

    above, below = cdf(x0 + 1 / 255), cdf(x0 - 1 / 255)
    mass = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def answers_eps(model, config):
    """A denoiser out of a network that predicts what `config.predicts` says; one that predicts ε is returned as it is.

    v = √ᾱ·ε - √(1-ᾱ)·x_0, so ε = √ᾱ·v + √(1-ᾱ)·x_t and x_0 = √ᾱ·x_t - √(1-ᾱ)·v   [V section 4, appendix D].
    An error in ε grows by √(1-ᾱ)/√ᾱ on its way to x_0, without bound at the noisy end; one in v never grows.
    """
    if config.predicts == "eps":
        return model
    process = Diffusion.of(config)

    def denoiser(x, t, **cond):
        v, between = model(x, t, **cond).chunk(2, dim=1)
        eps = process.at(process.signal, t, x) * v + process.at(process.noise, t, x) * x
        return torch.cat([eps, between], dim=1)

    denoiser.prepare = lambda **cond: prepare(model, **cond)
    return denoiser


# --- An oracle ---------------------------------------------------------------------------------------

class MixtureDenoiser:
    """The best possible denoiser of data that are a mixture of Gaussians, in closed form.

    diffusion  the process it will be used with (the variance depends on the kept steps)
    means      [M, C, H, W], the middles of M equally likely Gaussians of standard deviation `std`
    tokens     [B, 1] picks one of them as the "prompt"; mask [B, 1] False (or no tokens) means any
    """

    def __init__(self, diffusion, means, std):
        self.diffusion, self.means, self.std = diffusion, means, std

    def __call__(self, x, t, tokens=None, mask=None):
        d, s2 = self.diffusion, self.std ** 2
        signal, noise = d.at(d.signal, t, x), d.at(d.noise, t, x)
        spread = signal ** 2 * s2 + noise ** 2                    # x_t given component k: N(√ᾱ·μ_k, spread)
        off = x[:, None] - signal[:, None] * self.means           # [B, M, C, H, W]
        logits = -off.square().flatten(2).sum(2) / (2 * spread.flatten(1))
        if tokens is not None:
            wrong = torch.arange(len(self.means), device=x.device) != tokens
            logits = logits.masked_fill(wrong & mask, float("-inf"))
        share = logits.softmax(1).view(*logits.shape, 1, 1, 1)    # how likely each component made x_t
        eps = noise / spread * (share * off).sum(1)      # ε = -√(1-ᾱ)·∇ log p(x_t)

        # Var(x_0 | x_t), within components and between them, gives the best variance of x_{t-1} [B theorem 1]
        centres = self.means + (signal * s2 / spread)[:, None] * off      # E[x_0 | x_t, k]
        middle = (share * centres).sum(1)
        variance = s2 * noise ** 2 / spread + (share * (centres - middle[:, None]).square()).sum(1)
        low, high = d.at(d.log_posterior, t, x), d.at(d.betas.log(), t, x)
        best = d.at(d.posterior_variance, t, x) + d.at(d.share_x0, t, x).square() * variance
        return torch.cat([eps, 2 * (best.log() - low) / (high - low) - 1], dim=1)


# --- The pictures of the little language -------------------------------------------------------------

# Each noun is one character of DejaVu Sans, the font that matplotlib brings along.
GLYPHS = dict(
    heart="♥", star="★", umbrella="☂", cloud="☁", sun="☀", moon="☾", house="⌂", diamond="♦", anchor="⚓",
    airplane="✈", cross="✚", flower="✿", club="♣", spade="♠", telephone="☎", envelope="✉", knight="♞", rook="♜",
    queen="♛", note="♪", skull="☠", flag="⚑", gear="⚙", smiley="☻", pencil="✎", bolt="⚡", cat="🐱", snowman="☃")

# Red, green, blue from 0 to 255, chosen to stay apart from each other and from every background.
RGB = dict(red=(222, 20, 35), green=(25, 165, 55), blue=(35, 75, 235), yellow=(255, 232, 20), purple=(140, 40, 190),
           orange=(255, 130, 0), pink=(255, 125, 200), cyan=(0, 215, 230),
           white=(255, 255, 255), gray=(128, 128, 128), black=(0, 0, 0), brown=(100, 60, 25))
RGB = {name: np.array(rgb, np.float32) for name, rgb in RGB.items()}

# The longer side of a glyph, smallest and largest: what has the 64 pixels to itself, and what shares them.
ALONE = dict(small=(27, 31), large=(44, 50))
SHARED = dict(small=(18, 21), large=(26, 29))


@lru_cache(maxsize=None)
def ink(noun):
    """A noun's glyph, drawn large, a little bold (thin lines would be lost at 16 pixels), and cropped to its ink."""
    font = ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 300)
    page = Image.new("L", (600, 600))
    ImageDraw.Draw(page).text((150, 100), GLYPHS[noun], font=font, fill=255, stroke_width=3)
    return page.crop(page.getbbox())


@lru_cache(maxsize=None)
def coverage(noun, side):
    """How much of each pixel a glyph covers when its longer side is `side` pixels: [h, w, 1], 0 to 1."""
    glyph = ink(noun)
    w, h = (round(length * side / max(glyph.size)) for length in glyph.size)
    return np.asarray(glyph.resize((w, h), Image.BOX), np.float32)[..., None] / 255   # BOX: the area's mean


def cells(scene, rng):
    """The corner (x, y) of a square of 32 pixels for each thing of a canonical scene."""
    along = rng.randint(0, 32)
    if scene.relation == "to the left of":
        return [(0, along), (32, along)]
    if scene.relation == "above":
        return [(along, 0), (along, 32)]
    return rng.sample([(0, 0), (32, 0), (0, 32), (32, 32)], scene.count)


def near_middle(rng, corner, room, length, wander):
    """Where `length` pixels begin: in the middle of the room or up to `wander` pixels off, a margin of 1 left free."""
    slack = (room - 2 - length) // 2
    return corner + 1 + slack + rng.randint(-min(slack, wander), min(slack, wander))


def draw(scene, rng):
    """The picture of a scene that leaves nothing open (`Scene.fill`): uint8 [64, 64, 3]; rng a random.Random."""
    scene = scene.canonical()
    sides, room, wander = (ALONE, 64, 8) if scene.kind == "single" else (SHARED, 32, 5)
    corners = [(0, 0)] if scene.kind == "single" else cells(scene, rng)
    background = RGB[scene.background]
    picture = np.tile(background, (64, 64, 1))
    for thing, (x, y) in zip(scene.things * scene.count, corners):
        mask = coverage(thing.noun, rng.randint(*sides[thing.size]))
        h, w, _ = mask.shape
        x, y = near_middle(rng, x, room, w, wander), near_middle(rng, y, room, h, wander)
        picture[y:y + h, x:x + w] += mask * (RGB[thing.color] - background)
    return (picture + 0.5).astype(np.uint8)


def world_pictures(n, seed, difficulty="full", held_out=False):
    """n pictures, their captions and what they show: uint8 [n, 3, 64, 64], n strings, n filled scenes."""
    rng = random.Random(seed)
    said = [tokenizer.random_scene(rng, difficulty, held_out) for _ in range(n)]
    shown = [scene.fill(rng) for scene in said]
    pictures = torch.from_numpy(np.stack([draw(scene, rng) for scene in shown]))
    return pictures.permute(0, 3, 1, 2).contiguous(), [scene.caption() for scene in said], shown


def reduce(pictures, size):
    """uint8 [n, 3, 64, 64] -> float32 [n, 3, size, size] in [-1, 1]: each pixel the mean of a square."""
    return F.avg_pool2d(pictures.float(), 64 // size) / 127.5 - 1
