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

Papers: [D] DDPM, Ho et al. 2020, arXiv 2006.11239; [I] Improved DDPM, Nichol & Dhariwal 2021, 2102.09672;
[S] DDIM, Song et al. 2020, arXiv 2010.02502; [A] ADM, Dhariwal & Nichol 2021, arXiv 2105.05233;
[V] Salimans & Ho 2022, arXiv 2202.00512 (predicting v); [B] Analytic-DPM, Bao et al. 2022, arXiv 2201.06503;
[L] DPM-Solver++, Lu et al. 2022, arXiv 2211.01095.

    python 04_diffusion.py      about ten seconds: both schedules, a picture drowning, the oracle and its
                                samplers, the best variance, a small denoiser learning to draw a star out
                                of points, walks of 5 to 250 steps; outputs/04_diffusion.png shows them
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
    prediction_type: str = "eps"      # "eps", as GLIDE does, or "v" (see `to_eps`)


# GLIDE's are "filtered", which was released, and "paper". The tiny ones, which learn on a laptop, differ in
# one thing: v forgives a small network more than ε does.
DIFFUSION = {
    "tiny": DiffusionConfig(prediction_type="v"), "tiny-upsampler": DiffusionConfig("linear", prediction_type="v"),
    "small": DiffusionConfig(prediction_type="v"), "small-upsampler": DiffusionConfig("linear", prediction_type="v"),
    "filtered": DiffusionConfig(), "filtered-upsampler": DiffusionConfig("linear"),
    "paper": DiffusionConfig(), "paper-upsampler": DiffusionConfig("linear")}


# --- Schedules ---------------------------------------------------------------------------------------

# β_t is the share of noise that step t adds: x_t = √(1-β_t)·x_{t-1} + √β_t·ε   [D eq. 2]. The picture shrinks
# as noise comes in, so that the sum keeps a variance near 1. What is left of the picture after all steps up
# to t is √ᾱ_t, where ᾱ_t is the product of (1 - β) so far: that curve is what a schedule is about.

def linear_betas(steps):
    """β from 1e-4 to 0.02 in equal steps, for 1,000 of them [D section 4]; fewer, larger ones otherwise.

    It suits large pictures; of a small one little is left after half of the steps [I section 3.2].
    -> [steps] float64.
    """
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)


def cosine_betas(steps):
    """β such that √ᾱ falls like a cosine [I eq. 17]: noise comes in evenly. -> [steps] float64.

    The last β would be 1, and nothing at all left to divide by; it is capped at 0.999.
    """
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    # ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s)·π/2) with s = 0.008; β_t = 1 - ᾱ_t/ᾱ_{t-1}   [I eq. 17]
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def respace(steps, spec):
    """The timesteps that a shorter walk keeps, ascending.

    spec  "100": a hundred, evenly. "10,10,3,2,2": the steps cut into five equal sections, so many kept of
          each. "fast27": that one with its last step moved from 999 to 997, for GLIDE's upsampler.
          "ddim50": fifty at one whole stride from 0.
    Raises ValueError where there is no such walk. Sections are for steps of unequal worth: the first of the
    five is the one nearest to the picture, where the details are made, and "10,10,3,2,2" spends most there.
    """
    spec = str(spec)
    if spec == "fast27":
        return respace(steps, "10,10,3,2,2")[:-1] + [steps * 997 // 1000]
    if spec.startswith("ddim"):
        count = _whole(spec[4:], spec)
        for stride in range(1, steps):
            if len(range(0, steps, stride)) == count:
                return list(range(0, steps, stride))
        raise ValueError(f"no whole stride keeps {count} of {steps} timesteps; try {count} without 'ddim'")
    counts = [_whole(part, spec) for part in spec.split(",")]
    kept, start = [], 0
    for i, count in enumerate(counts):
        size = steps // len(counts) + (i < steps % len(counts))      # what does not divide goes to the first
        if count > size:
            raise ValueError(f"cannot keep {count} of a section of {size} timesteps")
        stride = (size - 1) / (count - 1) if count > 1 else 1        # both ends of a section are kept
        kept += [start + round(k * stride) for k in range(count)]
        start += size
    return kept


def _whole(text, spec):
    """A count of steps that a person typed, as an integer; ValueError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"steps {spec!r} not understood; write '100', '10,10,3,2,2', 'fast27' or 'ddim50'")
    return int(text)


# --- The process -------------------------------------------------------------------------------------

# Forwards, noise is added; no network is needed. Backwards, each step draws from q(x_{t-1} | x_t), which
# nobody can compute, for it asks which pictures are likely. But q(x_{t-1} | x_t, x_0) is a plain Gaussian,
# its mean a mixture of x_t and x_0. So a guess at the noise, which is a guess at x_0, is all a step needs.

class GaussianStep(NamedTuple):
    """What a look at x_t says about x_{t-1}: a Gaussian, and the picture it heads for. Each [B, C, H, W]."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    x0: torch.Tensor


def seeded_generator(*names):
    """A torch.Generator that depends on these names alone (01): the same names, the same noise."""
    return torch.Generator().manual_seed(tokenizer.seeded_rng(*names).getrandbits(63))


def gaussian(x, generator):
    """Unit noise in the shape of x. A CPU generator gives the same noise, the same picture, on any device; a list of
    them, one a picture, gives each picture its own, whatever is drawn beside it."""
    if isinstance(generator, list):
        return torch.cat([gaussian(row[None], own) for row, own in zip(x, generator, strict=True)])
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
        # ᾱ_t = Π_{s≤t} (1 - β_s)   [D section 2]
        alpha_bar = torch.cumprod(1 - torch.as_tensor(betas, dtype=torch.float64), dim=0)
        self.timesteps = list(range(len(alpha_bar))) if timesteps is None else sorted(set(timesteps))
        kept = torch.tensor(self.timesteps)
        self.rows = torch.full((len(alpha_bar),), -1)   # timestep -> its row in the tables below
        self.rows[kept] = torch.arange(len(kept))

        one, zero = torch.ones(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        self.alpha_bar = alpha_bar[kept]
        self.alpha_bar_prev = torch.cat([one, self.alpha_bar[:-1]])    # ᾱ one kept step nearer to the picture
        self.alpha_bar_next = torch.cat([self.alpha_bar[1:], zero])     # … and one nearer to pure noise
        self.betas = 1 - self.alpha_bar / self.alpha_bar_prev          # with all steps kept, the ones that came in
        self.signal, self.noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        # The mean of x_{t-1} once x_0 and x_t are known is a mixture of the two, in these shares   [D eq. 7]:
        # √ᾱ_{t-1}·β_t/(1-ᾱ_t) of x_0, (1-ᾱ_{t-1})·√(1-β_t)/(1-ᾱ_t) of x_t
        self.posterior_coef_x0 = self.alpha_bar_prev.sqrt() * self.betas / (1 - self.alpha_bar)
        self.posterior_coef_xt = (1 - self.alpha_bar_prev) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)
        # β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t)·β_t   [D eq. 7]. The first is 0, so its log is borrowed from the second.
        self.posterior_variance = (1 - self.alpha_bar_prev) / (1 - self.alpha_bar) * self.betas
        borrowed = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]])
        self.log_posterior = borrowed.log() if len(kept) > 1 else self.betas.log()

    @classmethod
    def from_config(cls, config, spec=None, strength=1.0):
        """The process of a DiffusionConfig, whole or respaced. strength below 1 leaves out the noisy end: its walks
        begin at the kept timestep nearest to that share of the way, with a picture that was noised so far."""
        betas = {"cosine": cosine_betas, "linear": linear_betas}[config.schedule](config.steps)
        kept = list(range(config.steps)) if spec is None else respace(config.steps, spec)
        begin = min(kept, key=lambda t: abs(t - strength * (config.steps - 1)))
        return cls(betas, [t for t in kept if t <= begin])   # steps nearer to the picture do not ask where it began

    def extract(self, table, t, x):
        """table[t] for every example, float32 and shaped to meet x: [B, 1, 1, 1].

        Tables are float64, and so is every sum made of them: in float32, 1 - ᾱ at the first steps would keep
        only three digits. What is looked up is float32. The look-up happens where t is; samplers keep t on the CPU,
        so that no GPU has to be waited for. Raises ValueError for a timestep that was not kept.
        """
        rows = self.rows.to(t.device)[t]
        if len(self.timesteps) < len(self.rows) and (rows < 0).any():
            raise ValueError(f"timestep {t[rows < 0][0].item()} is not among the {len(self.timesteps)} kept")
        return table.float().to(t.device)[rows].to(x.device).view(-1, *[1] * (x.dim() - 1))

    def q_sample(self, x0, t, noise):
        """Straight from the picture to step t. x0, noise [B, C, H, W], t [B] -> x_t [B, C, H, W]."""
        # x_t = √ᾱ_t·x_0 + √(1-ᾱ_t)·ε   [D eq. 4]: Gaussians add up, so t small steps are one large one
        return self.extract(self.signal, t, x0) * x0 + self.extract(self.noise, t, x0) * noise

    def x0_from_eps(self, x_t, t, eps):
        """The same equation solved for the picture: x_0 = (x_t - √(1-ᾱ)·ε)/√ᾱ."""
        return (x_t - self.extract(self.noise, t, x_t) * eps) / self.extract(self.signal, t, x_t)

    def eps_from_x0(self, x_t, t, x0):
        """… and for the noise: ε = (x_t - √ᾱ·x_0)/√(1-ᾱ)."""
        return (x_t - self.extract(self.signal, t, x_t) * x0) / self.extract(self.noise, t, x_t)

    def posterior_mean(self, x0, x_t, t):
        """Where x_{t-1} lies on average, once x_0 and x_t are known [D eq. 7]."""
        return self.extract(self.posterior_coef_x0, t, x_t) * x0 + self.extract(self.posterior_coef_xt, t, x_t) * x_t

    def p_mean_variance(self, model_output, x_t, t, clip=True, x0_fn=None):
        """The model's Gaussian for x_{t-1}. model_output [B, 2C, H, W] -> GaussianStep.

        x0_fn may change the predicted picture before it is clipped to [-1, 1] and the mean is taken.
        Clipping matters most at the noisy end: there √ᾱ is tiny, and a small error in ε is a huge one in x_0.
        """
        eps, between = model_output.float().chunk(2, dim=1)
        x0 = self.x0_from_eps(x_t, t, eps)
        x0 = x0 if x0_fn is None else x0_fn(x0)
        x0 = x0.clamp(-1, 1) if clip else x0
        # The true variance lies between β̃ (one picture is possible) and β (anything is); the network says
        # where: log σ² = v'·log β + (1-v')·log β̃, v' = (v+1)/2   [I eq. 15]
        share = (between + 1) / 2
        high, low = self.extract(self.betas.log(), t, x_t), self.extract(self.log_posterior, t, x_t)
        return GaussianStep(self.posterior_mean(x0, x_t, t), share * high + (1 - share) * low, x0)

    # --- Training ---

    def loss(self, model, x0, t, noise, *, weights=None, **cond):
        """The hybrid loss of each example [I eq. 16]: L_simple + T/1000 · L_t in bits per dimension.

        x0, noise [B, C, H, W], t [B] -> [B] float32. weights, a table [T], multiplies the squared error in ε
        at each timestep: 1/ᾱ makes it the squared error in v, (1-ᾱ)/ᾱ the one in x_0. None is DDPM's choice.
        """
        x_t = self.q_sample(x0, t, noise)
        output = model(x_t, t.to(x_t.device), **cond)
        eps, between = output.chunk(2, dim=1)
        simple = (eps - noise).square().flatten(1).mean(1)     # ‖ε - ε̂‖²   [D eq. 14]
        simple = simple if weights is None else simple * self.extract(weights, t, simple)
        # The bound trains the variance alone: through the mean its gradient is far noisier than L_simple's.
        # The expected L_t of one drawn t times T is the whole bound; 1/1000 keeps it from drowning L_simple.
        frozen = torch.cat([eps.detach(), between], dim=1)
        return simple + len(self.timesteps) / 1000 * self.bound(frozen, x0, x_t, t)

    def bound(self, model_output, x0, x_t, t):
        """L_t, one term of the variational bound [D eq. 5], in bits per dimension: [B].

        KL(q(x_{t-1} | x_t, x_0) ‖ p) for t > 0; at the first step -log p(x_0) of the 8-bit picture. The sum
        over all t, plus the little that x_T still knows, bounds the bits it takes to store a dimension.
        """
        p = self.p_mean_variance(model_output, x_t, t, clip=False)
        mean, log_variance = self.posterior_mean(x0, x_t, t), self.extract(self.log_posterior, t, x_t)
        # KL of two Gaussians: ½·(log σ_p²/σ_q² - 1 + σ_q²/σ_p² + (μ_q-μ_p)²/σ_p²)
        kl = 0.5 * (p.log_variance - log_variance - 1 + (log_variance - p.log_variance).exp()
                    + (mean - p.mean).square() * (-p.log_variance).exp())
        first = (t.to(x_t.device) == self.timesteps[0]).view(-1, *[1] * (x_t.dim() - 1))
        nats = torch.where(first, -log_likelihood_of_bytes(x0, p.mean, 0.5 * p.log_variance), kl)
        return nats.flatten(1).mean(1) / math.log(2)

    # --- Samplers: x_T [B, C, H, W] -> x_0. What they share:
    #   x0_fn(x0)       changes each predicted x_0 before it is clipped
    #   grad_fn(x, t)   ∇ log p(c | x_t), scaled: pulls the trajectory towards c (05)
    #   step_fn(x, t)   changes each new x_{t-1}; t [B] is the timestep just left
    #   callback(t, x, x0)   is told of each step: the timestep just left, the new x_{t-1}, the predicted x_0
    #   generator       where random numbers come from
    #   **cond          for the denoiser, prepared once

    def reversed_timesteps(self, x):
        """The kept timesteps from the noisy end to the picture, each as [B], on the CPU: see `extract`."""
        return [torch.full((len(x),), t) for t in reversed(self.timesteps)]

    def after_step(self, x, t, x0, step_fn, callback):
        """The new x_{t-1} as the two functions of a caller want it: changed by the one, shown to the other."""
        x = x if step_fn is None else step_fn(x, t)
        if callback is not None:
            callback(t, x, x0)
        return x

    def predict(self, model, x, t, cond, x0_fn=None, grad_fn=None):
        """Where a step without fresh noise heads: the predicted x0 and ε, shifted by the gradient if there is one."""
        x0 = self.p_mean_variance(model(x, t.to(x.device), **cond), x, t, x0_fn=x0_fn).x0
        eps = self.eps_from_x0(x, t, x0)     # the noise that fits the clipped picture
        if grad_fn is not None:
            # ε̂ = ε - √(1-ᾱ)·∇ log p(c | x_t): the score shifted [A alg. 2]; not clipped again
            eps = eps - self.extract(self.noise, t, x) * grad_fn(x, t.to(x.device))
            x0 = self.x0_from_eps(x, t, eps)
        return x0, eps

    @torch.no_grad()
    def ddpm_sample(self, model, x_T, *, x0_fn=None, grad_fn=None, step_fn=None, callback=None, generator=None,
                    **cond):
        """Ancestral sampling [D alg. 2]: each x_{t-1} is drawn from the model's Gaussian."""
        x, cond = x_T, prepare(model, **cond)
        for t in self.reversed_timesteps(x_T):
            p = self.p_mean_variance(model(x, t.to(x.device), **cond), x, t, x0_fn=x0_fn)
            # μ̂ = μ + Σ·∇ log p(c | x_t)   [A alg. 1]
            mean = p.mean if grad_fn is None else p.mean + p.log_variance.exp() * grad_fn(x, t.to(x.device))
            noise = gaussian(x, generator) if t[0] > self.timesteps[0] else 0   # the last step adds none
            # x_{t-1} = μ + σ·z   [D alg. 2, line 4]
            x = self.after_step(mean + (0.5 * p.log_variance).exp() * noise, t, p.x0, step_fn, callback)
        return x

    @torch.no_grad()
    def ddim_sample(self, model, x_T, *, eta=0.0, x0_fn=None, grad_fn=None, step_fn=None, callback=None,
                    generator=None, **cond):
        """DDIM [S eq. 12]: aim at the predicted picture, go there as far as step t-1 allows, and put the
        *same* noise back. With eta 0 nothing is drawn: x_T alone decides the picture.

        Without fresh noise the walk is a smooth curve, and some 25 long steps follow it almost as well as
        250 short ones; fresh noise would have to be taken away again by the steps that are still to come.
        """
        x, cond = x_T, prepare(model, **cond)
        for t in self.reversed_timesteps(x_T):
            x0, eps = self.predict(model, x, t, cond, x0_fn, grad_fn)
            sigma = eta * self.posterior_variance.sqrt()   # [S eq. 16]: eta 1 has the ancestral β̃
            # x_{t-1} = √ᾱ_{t-1}·x̂_0 + √(1-ᾱ_{t-1}-σ²)·ε̂ + σ·z   [S eq. 12]
            x = self.extract(self.alpha_bar_prev.sqrt(), t, x) * x0 \
                + self.extract((1 - self.alpha_bar_prev - sigma ** 2).clamp(min=0).sqrt(), t, x) * eps
            if eta:
                x = x + self.extract(sigma, t, x) * gaussian(x, generator)   # σ is 0 at the last step
            x = self.after_step(x, t, x0, step_fn, callback)
        return x

    @torch.no_grad()
    def dpm_sample(self, model, x_T, *, x0_fn=None, grad_fn=None, step_fn=None, callback=None, generator=None,
                   **cond):
        """DPM-Solver++(2M) [L alg. 2]: DDIM's step, aimed not at x̂_0 but at what x̂_0 is about to become.

        DDIM keeps its aim for a whole step, while the best aim moves. Here the last two predictions are
        extended by a straight line to the middle of the step, at no further call of the model. Where steps are
        short, twice as many divide DDIM's error by two and this one's by four. Nothing is drawn: `generator`
        is ignored. Unlike algorithm 2, the line is never extended by more than half of what it was drawn through.
        """
        # Length is counted in λ = log(√ᾱ/√(1-ᾱ)). The last step goes to ᾱ = 1, where λ is infinite.
        level, infinite = (self.signal / self.noise).log(), torch.full((1,), math.inf, dtype=torch.float64)
        h = torch.cat([infinite, level[:-1] - level[1:]])
        # 1/(2r), r = h of the step before over h. Timesteps at even distances lie ever further apart in λ, the last
        # two some four times as far as those before; so long a line misses by more than DDIM does. Hence r ≥ 1.
        extend = (h / (2 * torch.cat([h[1:], infinite]))).clamp(max=0.5)   # 0 at the first: there is no line yet
        extend[0] = 0                                                      # the last ends at x̂_0 itself
        x, last, cond = x_T, torch.zeros_like(x_T), prepare(model, **cond)
        for t in self.reversed_timesteps(x_T):
            x0, _ = self.predict(model, x, t, cond, x0_fn, grad_fn)
            # D = (1 + 1/(2r))·x̂_0 - 1/(2r)·x̂_0 of the step before   [L alg. 2]
            aim = x0 + self.extract(extend, t, x) * (x0 - last)
            # x_{t-1} = √(1-ᾱ_{t-1})/√(1-ᾱ_t)·x_t - √ᾱ_{t-1}·(e^(-h) - 1)·D   [L alg. 2]; DDIM if D is x̂_0
            x = self.extract(((1 - self.alpha_bar_prev) / (1 - self.alpha_bar)).sqrt(), t, x) * x \
                - self.extract(self.alpha_bar_prev.sqrt() * torch.expm1(-h), t, x) * aim
            x, last = self.after_step(x, t, x0, step_fn, callback), x0
        return x

    @torch.no_grad()
    def ddim_reverse(self, model, x0, **cond):
        """DDIM run backwards, from a picture to the noise that would draw it [S section 4.3, 5.4].

        The same step, with ᾱ of the next noisier timestep in place of the next cleaner one. Exact only as
        steps grow small: ε̂ is taken where a step begins, and not where it ends.
        """
        x, cond = x0, prepare(model, **cond)
        for t in reversed(self.reversed_timesteps(x0)):
            guess, eps = self.predict(model, x, t, cond)
            x = self.extract(self.alpha_bar_next.sqrt(), t, x) * guess + self.extract((1 - self.alpha_bar_next).sqrt(), t, x) * eps
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


def to_eps(model, config):
    """A denoiser out of a network that predicts what `config.prediction_type` says; for ε, the network as it is.

    v = √ᾱ·ε - √(1-ᾱ)·x_0, so ε = √ᾱ·v + √(1-ᾱ)·x_t and x_0 = √ᾱ·x_t - √(1-ᾱ)·v   [V section 4, appendix D].
    In the plane of picture and noise x_t turns along a quarter of a circle; v points along the circle.
    An error in ε grows by √(1-ᾱ)/√ᾱ on its way to x_0, without bound at the noisy end; one in v never grows.
    """
    if config.prediction_type == "eps":
        return model
    process = Diffusion.from_config(config)

    def denoiser(x, t, **cond):
        v, between = model(x, t, **cond).chunk(2, dim=1)
        eps = process.extract(process.signal, t, x) * v + process.extract(process.noise, t, x) * x
        return torch.cat([eps, between], dim=1)

    denoiser.prepare = lambda **cond: prepare(model, **cond)
    return denoiser


# --- An oracle ---------------------------------------------------------------------------------------

class MixtureDenoiser:
    """The best possible denoiser of data that are a mixture of Gaussians, in closed form.

    Noise makes of each Gaussian a wider one, nearer to 0. Given x_t, one can tell how likely it came from
    each of them, and what x_0 then is on average. A network has to learn just that, of pictures.

    diffusion  the process it will be used with (the variance depends on the kept steps)
    means      [M, C, H, W], the middles of M equally likely Gaussians of standard deviation `std`
    tokens     [B, 1] picks one of them as the "prompt"; mask [B, 1] False (or no tokens) means any
    """

    def __init__(self, diffusion, means, std):
        self.diffusion, self.means, self.std = diffusion, means, std

    def __call__(self, x, t, tokens=None, mask=None):
        d, s2 = self.diffusion, self.std ** 2
        signal, noise = d.extract(d.signal, t, x), d.extract(d.noise, t, x)
        # x_t given component k is N(√ᾱ·μ_k, spread), spread = ᾱ·s² + 1-ᾱ
        spread = signal ** 2 * s2 + noise ** 2
        off = x[:, None] - signal[:, None] * self.means           # [B, M, C, H, W]
        logits = -off.square().flatten(2).sum(2) / (2 * spread.flatten(1))
        if tokens is not None:
            wrong = torch.arange(len(self.means), device=x.device) != tokens
            logits = logits.masked_fill(wrong & mask, float("-inf"))
        share = logits.softmax(1).view(*logits.shape, 1, 1, 1)    # how likely each component made x_t
        # E[ε | x_t] = -√(1-ᾱ)·∇ log p(x_t) = √(1-ᾱ)·Σ_k share_k·(x_t - √ᾱ·μ_k)/spread
        eps = noise / spread * (share * off).sum(1)

        # Var(x_0 | x_t), within components and between them, gives the best variance of x_{t-1} [B theorem 1]
        centres = self.means + (signal * s2 / spread)[:, None] * off      # E[x_0 | x_t, k]
        middle = (share * centres).sum(1)
        variance = s2 * noise ** 2 / spread + (share * (centres - middle[:, None]).square()).sum(1)
        low, high = d.extract(d.log_posterior, t, x), d.extract(d.betas.log(), t, x)
        # σ² = β̃ + (share of x_0)²·Var(x_0 | x_t): what x_0 would leave open, and what is open about x_0
        best = d.extract(d.posterior_variance, t, x) + d.extract(d.posterior_coef_x0, t, x).square() * variance
        # … as the network would say it: [I eq. 15] solved for v
        return torch.cat([eps, 2 * (best.log() - low) / (high - low) - 1], dim=1)


# --- The pictures of the little language -------------------------------------------------------------

# Each noun is one character of DejaVu Sans, the font that matplotlib brings along.
GLYPHS = dict(
    heart="♥", star="★", umbrella="☂", cloud="☁", sun="☀", moon="☾", house="⌂", diamond="♦", anchor="⚓",
    airplane="✈", cross="✚", flower="✿", club="♣", spade="♠", telephone="☎", envelope="✉", knight="♞",
    rook="♜", queen="♛", note="♪", skull="☠", flag="⚑", gear="⚙", smiley="☻", pencil="✎", bolt="⚡", cat="🐱",
    snowman="☃")

# Red, green, blue from 0 to 255, chosen to stay apart from each other and from every background.
RGB = dict(red=(222, 20, 35), green=(25, 165, 55), blue=(35, 75, 235), yellow=(255, 232, 20),
           purple=(140, 40, 190), orange=(255, 130, 0), pink=(255, 125, 200), cyan=(0, 215, 230),
           white=(255, 255, 255), gray=(128, 128, 128), black=(0, 0, 0), brown=(100, 60, 25))
RGB = {name: np.array(rgb, np.float32) for name, rgb in RGB.items()}

# The longer side of a glyph, smallest and largest: what has the 64 pixels to itself, and what shares them.
ALONE = dict(small=(27, 31), large=(44, 50))
SHARED = dict(small=(18, 21), large=(26, 29))


@lru_cache(maxsize=None)
def glyph(noun):
    """A noun's glyph, drawn large and cropped to its ink: a grey picture, some 200 pixels high.

    A little bold: thin lines would be lost at 16 pixels.
    """
    font = ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 300)
    page = Image.new("L", (600, 600))
    ImageDraw.Draw(page).text((150, 100), GLYPHS[noun], font=font, fill=255, stroke_width=3)
    return page.crop(page.getbbox())


@lru_cache(maxsize=None)
def coverage(noun, side, zoom=1):
    """How much of each pixel a glyph covers when its longer side is `side` pixels, each of them zoom × zoom: [h, w, 1],
    0 to 1."""
    shape = glyph(noun)
    w, h = (round(length * side / max(shape.size)) * zoom for length in shape.size)
    return np.asarray(shape.resize((w, h), Image.BOX), np.float32)[..., None] / 255   # BOX: the area's mean


def cells(scene, rng):
    """The corner (x, y) of a square of 32 pixels for each thing of a canonical scene.

    Two things in relation share a row or a column; things that are counted take quarters of the picture.
    """
    along = rng.randint(0, 32)
    if scene.relation == "to the left of":
        return [(0, along), (32, along)]
    if scene.relation == "above":
        return [(along, 0), (along, 32)]
    return rng.sample([(0, 0), (32, 0), (0, 32), (32, 32)], scene.count)


def near_middle(rng, corner, room, length, wander):
    """Where `length` pixels begin: in the middle of the room or up to `wander` pixels off.

    A margin of 1 stays free, so no thing is ever cut, and none touches another.
    """
    slack = (room - 2 - length) // 2
    return corner + 1 + slack + rng.randint(-min(slack, wander), min(slack, wander))


def draw(scene, rng, zoom=1):
    """The picture of a scene that leaves nothing open (`Scene.fill`): uint8 [64·zoom, 64·zoom, 3].

    rng, a random.Random, decides what no caption says: exact sizes and places, the same ones at every zoom.
    """
    scene = scene.canonical()                   # so that the thing to the left, or above, comes first
    sides, room, wander = (ALONE, 64, 8) if scene.kind == "single" else (SHARED, 32, 5)
    corners = [(0, 0)] if scene.kind == "single" else cells(scene, rng)
    background = RGB[scene.background]
    picture = np.tile(background, (64 * zoom, 64 * zoom, 1))
    for thing, (x, y) in zip(scene.things * scene.count, corners):
        mask = coverage(thing.noun, rng.randint(*sides[thing.size]), zoom)
        h, w, _ = mask.shape
        x, y = (near_middle(rng, corner, room, length // zoom, wander) * zoom for corner, length in ((x, w), (y, h)))
        # colour·coverage + background·(1 - coverage), written as a change of what is there
        picture[y:y + h, x:x + w] += mask * (RGB[thing.color] - background)
    return (picture + 0.5).astype(np.uint8)     # rounded, where astype alone would cut


def draw_all(scenes, rng, side=64):
    """One picture of each scene: uint8 [n, 3, side, side], side a multiple of 64.

    scenes  filled ones; a generator may fill each with the same rng just before it is drawn
    """
    pictures = np.stack([draw(scene, rng, side // 64) for scene in scenes])   # [n, side, side, 3]
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()        # [n, 3, side, side]


def world_pictures(n, seed, difficulty="full", *, held_out=False, side=64):
    """n pictures, their captions and what they show: uint8 [n, 3, side, side], n strings, n filled scenes.

    One seed is one set of pictures, at every side (a multiple of 64). difficulty, held_out: as for
    tokenizer.random_scene.
    """
    rng = random.Random(seed)
    said = [tokenizer.random_scene(rng, difficulty, held_out) for _ in range(n)]
    shown = [scene.fill(rng) for scene in said]
    return draw_all(shown, rng, side), [scene.caption() for scene in said], shown


def to_bytes(x):
    """[-1, 1] -> uint8 0 … 255, any shape: rounded, and what lies beyond ±1 clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(images, *, columns=4, zoom=1, gap=2, color="white"):
    """Images [n, 3, H, W], uint8 or float in [-1, 1], as one PIL image: row by row, each pixel zoom × zoom."""
    images = images if images.dtype == torch.uint8 else to_bytes(images)
    n, _, h, w = images.shape
    columns, h, w = min(columns, n), h * zoom + gap, w * zoom + gap
    page = Image.new("RGB", (columns * w - gap, math.ceil(n / columns) * h - gap), color)
    for i, image in enumerate(images):
        tile = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        page.paste(tile.resize((w - gap, h - gap), Image.NEAREST), (i % columns * w, i // columns * h))
    return page


def downsample(pictures, size):
    """uint8 [n, 3, side, side] -> float32 [n, 3, size, size] in [-1, 1]: each pixel the mean of a square.

    Reducing twice is reducing once, so the small picture of a pair is exactly what its large one reduces to.
    """
    return F.avg_pool2d(pictures.float(), pictures.shape[-1] // size) / 127.5 - 1


# --- The demonstration ---

# Everything from here on only shows what the code above does; no other file needs it.
SHOWN = torch.tensor([0, 100, 250, 400, 550, 700, 850, 999])    # timesteps, in tables and picture


def row(label, values):
    """One line of a table: numbers with four digits, or words."""
    print(f"   {label:16}", *(f"{v if isinstance(v, str) else f'{float(v):.4g}':>9}" for v in values))


def show_schedule(name, d, x0, noise):
    """A schedule's tables, and what it does to a picture, x0 [1, 3, 64, 64].

    -> x_t [8, 3, 64, 64] and eight numbers r: how far the pixels of x_t correlate with those of x_0.
    """
    print(f"\n{dict(cosine=1, linear=2)[name]}. The {name} schedule")
    x_t = d.q_sample(x0, SHOWN, noise)
    alike = [torch.corrcoef(torch.stack([x0.flatten(), x.flatten()]))[0, 1] for x in x_t]
    for label, table in {
            "t": torch.arange(1000), "β": d.betas, "β̃/β": d.posterior_variance / d.betas, "ᾱ": d.alpha_bar,
            "√ᾱ": d.signal, "√(1-ᾱ)": d.noise, "ᾱ/(1-ᾱ)": d.alpha_bar / (1 - d.alpha_bar)}.items():
        row(label, table[SHOWN])
    row("r", alike)
    return x_t, alike


def show_walks(denoiser, points):
    """Draws by three samplers, in 5, 25, 250 steps, beside the truth. -> DDIM's last walk, [251, n, 2, 1, 1].

    denoiser(process) is the model for a process. points [N, 2, 1, 1] are true ones; a drawn point that is
    further than 0.05 from all of them is astray. In five steps DDIM, which aims at averages, draws everything
    too close together; ancestral sampling has the right spread, but blurs. In 25 DPM-Solver++ has the right
    spread without fresh noise. All agree when steps are many.
    """
    row("", ["mean x", "mean y", "std x", "std y", "astray"])
    row("the truth", [*points.mean(0), *points.std(0), 0])
    for spec in ("5", "25", "250"):
        short = Diffusion.from_config(DiffusionConfig(), spec)
        for name, sampler in {"ancestral": short.ddpm_sample, "DPM++": short.dpm_sample,
                              "DDIM": short.ddim_sample}.items():
            walk = [torch.randn(2000, 2, 1, 1)]
            x = sampler(denoiser(short), walk[0], step_fn=lambda x, t: walk.append(x) or x)
            astray = torch.cdist(x.flatten(1), points.flatten(1)).amin(1) > 0.05
            row(f"{spec:>3} {name}", [*x.mean(0), *x.std(0), astray.float().mean()])
    return torch.stack(walk)


def show_oracle(d):
    """The best guess at one point, to be checked by hand; then what samplers make of the best guesses.

    Where two or three of the Gaussians may have made x_t, the best guess lies between theirs.
    """
    middles, t = torch.tensor([[-0.5, 0.2], [0.4, -0.3], [0.3, 0.5]]).view(3, 2, 1, 1), torch.tensor([100])
    a, x = d.alpha_bar[100].item(), d.signal[100].float() * middles[:1] - 0.1
    eps, _, between, _ = MixtureDenoiser(d, middles, 0.1)(x, t).flatten()
    print("\n3. An oracle: three Gaussians in the plane, equally likely, standard deviation 0.1\n"
          "   At t = 100, 0.1 left of √ᾱ·(first middle) and 0.1 below, the others being far away, by hand:\n"
          f"   ε = -√(1-ᾱ)·0.1/(ᾱ·0.1² + 1-ᾱ) = -{(1 - a) ** 0.5:.4f}·0.1/{a / 100 + 1 - a:.5f}. The oracle:"
          f" {eps:.4f};\n   σ²: {(between + 1) / 2:.2f} of the way from log β̃ to log β. Its samples:")
    points = middles[torch.randint(3, (4000,))] + 0.1 * torch.randn(4000, 2, 1, 1)
    show_walks(lambda process: MixtureDenoiser(process, middles, 0.1), points)


def ink_points(noun):
    """Up to 4,000 points of a glyph's ink, in any order, within [-1, 1], y upwards: [n, 2, 1, 1]."""
    spots = torch.tensor(coverage(noun, 200)[::-1, :, 0].copy()).nonzero().flip(1)      # [n, 2]: x, y
    return ((spots - spots.amax(0) / 2) / 110)[torch.randperm(len(spots))[:4000]].view(-1, 2, 1, 1)


def learn_to_draw(d, points, steps=1500):
    """A denoiser for points: four linear layers, trained much as 08 trains U-Nets. -> model

    A point is a picture of one pixel and two channels, so nothing above has to be told. The network says v,
    as the tiny presets do: with ε the same star comes out blurred, for x_0 is off by √(1-ᾱ)/√ᾱ times more.
    """
    layers = [layer for _ in range(3) for layer in (torch.nn.Linear(128, 128), torch.nn.SiLU())]
    net = torch.nn.Sequential(*layers, torch.nn.Linear(128, 4))

    def network(x, t):
        """[B, 2, 1, 1], [B] -> [B, 4, 1, 1]. x and y become waves, as t does: the fast show fine detail."""
        waves = unet.timestep_embedding(10 * x.flatten(), 32), unet.timestep_embedding(t / 10, 64)
        return net(torch.cat([wave.view(-1, 64) for wave in waves], dim=1))[..., None, None]

    model, optimizer = to_eps(network, DIFFUSION["tiny"]), torch.optim.Adam(net.parameters(), lr=5e-3)
    # Long steps first, short ones last: so a star of few seconds has arms
    decay = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.02, steps)
    for step in range(steps):
        x0, t = points[torch.randint(len(points), (512,))], torch.randint(1000, (512,))
        loss = d.loss(model, x0, t, torch.randn_like(x0), weights=1 / d.alpha_bar).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        decay.step()
        if step in (0, 10, 100, 500, steps - 1):
            print(f"   step {step:4}: loss {loss:.3f}")
    return model


def save_picture(schedules, drowned, walk, points):
    """Above, a picture drowns, twice; below, both schedules, and points on their way to a shape."""
    from matplotlib.figure import Figure            # here, so that importing this file stays quick
    figure = Figure(figsize=(14, 8), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.45, 1))
    above.suptitle("A picture drowns in noise; r is how far it still correlates with the picture", size=18)
    below.suptitle("A denoiser, trained for seconds, draws: DDIM takes points from noise to a star", size=18)
    curve, *panels = below.subplots(1, 6, width_ratios=(1.4, 1, 1, 1, 1, 1))
    for axes, (name, (x_t, alike)) in zip(above.subplots(2, 1), drowned.items()):
        # [8, 3, 64, 64] -> a white frame round each -> side by side, [70, 560, 3]
        axes.imshow(F.pad(x_t.clamp(-1, 1) / 2 + 0.5, [3] * 4, value=1).permute(2, 0, 3, 1).flatten(1, 2))
        axes.tick_params(length=0, labelsize=12.5)
        axes.set_xticks(range(35, 560, 70), [f"t = {t}  r = {abs(r):.2f}" for t, r in zip(SHOWN, alike)])
        axes.set_yticks([35], [name], size=17, rotation=90, va="center")
        axes.set_frame_on(False)
        curve.plot(schedules[name].signal, label=name, linewidth=3)
    curve.set_title("signal √ᾱ at step t", size=14)
    curve.legend(frameon=False, fontsize=13)
    # Each point has the colour of the direction in which it *ends*, seen from the middle. DDIM draws no noise
    # on the way, so the colours lie in order from the start: x_T has decided all.
    clouds = {f"{k} steps of 250": (walk[k], walk[-1]) for k in (0, 175, 210, 250)}
    for axes, (title, (cloud, end)) in zip(panels, [*clouds.items(), ("learned from", [points] * 2)]):
        axes.scatter(*cloud.flatten(1).T, s=3, linewidth=0, c=torch.atan2(*end.flatten(1).T), cmap="hsv")
        axes.set_title(title, size=14)
        axes.set(xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
        axes.axis("off")
    OUTPUTS.mkdir(exist_ok=True)
    figure.savefig(OUTPUTS / "04_diffusion.png", dpi=120)


def main():
    """The five sections and the picture."""
    torch.manual_seed(0)
    schedules = {name: Diffusion.from_config(DiffusionConfig(name)) for name in ("cosine", "linear")}
    pictures, (caption,), _ = world_pictures(1, seed=127)
    x0, noise = downsample(pictures, 64), torch.randn(1, 3, 64, 64)
    print(f"{caption!r} drowns in noise: x_t = √ᾱ·x_0 + √(1-ᾱ)·ε. x_0 has σ = {x0.std():.4f}")
    drowned = {name: show_schedule(name, d, x0, noise) for name, d in schedules.items()}
    print("   By hand: β_250 = 0.0001 + 250·0.0199/999; r, correlation with x_0, is √ᾱ·σ/√(ᾱ·σ² + 1-ᾱ)")
    show_oracle(schedules["cosine"])
    points = ink_points("star")
    print("\n4. A small denoiser learns a star, given as points. Saying v = 0, for want of knowledge, costs\n"
          f"   mean(ᾱ) + mean(1-ᾱ)·mean(x_0²) = 0.496 + 0.504·{points.square().mean():.3f}")
    model = learn_to_draw(schedules["cosine"], points)
    print(f"\n5. It draws, in few steps or many; '5' keeps the timesteps {respace(1000, '5')}")
    save_picture(schedules, drowned, show_walks(lambda process: model, points), points)
    print("\nThe picture is outputs/04_diffusion.png.\n"
          "Next: python 05_guidance.py decides how closely a drawing follows its prompt.")


if __name__ == "__main__":
    main()
