r"""
04 · Guessing noise well is enough to draw.

Take a picture and drown it in noise, in a thousand small steps. Each step is easy to undo *if you know the
noise*. So a network is trained for a single task: given a noisy picture, guess the noise. A picture is then
drawn by starting from pure noise and removing a little of the guessed noise, again and again:

    x_999 ──► x_t ──► model(x_t, t) ──► ε̂ ──► x̂_0 = a guess at the whole picture ──► x_{t-1} ──► … ──► x_0
              └────────────────────────── clipped to [-1, 1], mixed with x_t ◄──┘

It adds to 03: schedules, the loss, samplers. It leaves out how strictly a prompt is followed (05).
The **denoiser** is the one idea the rest of the course builds on. It is any callable

    model(x_t, t, **cond) -> [B, 2C, H, W]        C channels of noise, then C for the variance; float32

with t a LongTensor of original timesteps 0 … 999 and images in [-1, 1]. Nothing here relies on more than that,
so the same sampler runs on the U-Net, on guided or masked ones, and on an oracle: if the data are a mixture
of Gaussians, the best guess has a closed form (`MixtureDenoiser`), and no training is needed to see, and to
test, what a sampler does. The last part draws the little world's pictures.

Papers: [D] DDPM, Ho et al. 2020, arXiv 2006.11239; [I] Improved DDPM, Nichol & Dhariwal 2021, 2102.09672;
[S] DDIM, Song et al. 2020, arXiv 2010.02502; [A] ADM, Dhariwal & Nichol 2021, arXiv 2105.05233;
[V] Salimans & Ho 2022, arXiv 2202.00512 (predicting v); [B] Analytic-DPM, Bao et al. 2022, arXiv 2201.06503;
[L] DPM-Solver++, Lu et al. 2022, arXiv 2211.01095; [E] SDEdit, Meng et al. 2022, arXiv 2108.01073.

    python 04_diffusion.py      about ten seconds: what both schedules do to a picture, the oracle checked by
                                hand, and a star drawn by three samplers in 5, 25 and 250 steps;
                                outputs/04_diffusion.png shows them
"""
import math
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
    """Which noise schedule is used, and what the network predicts."""

    schedule: str = "cosine"        # "cosine" or "linear"
    steps: int = 1000
    prediction_type: str = "eps"    # "eps", as in GLIDE, or "v" (see `to_eps`)


# GLIDE's own are "filtered", the released one, and "paper". The tiny and small ones, which are trained on a laptop or
# on one GPU, differ in one thing: predicting v is more forgiving of a network's errors than predicting ε.
DIFFUSION = {
    "tiny": DiffusionConfig(prediction_type="v"), "tiny-upsampler": DiffusionConfig("linear", prediction_type="v"),
    "small": DiffusionConfig(prediction_type="v"), "small-upsampler": DiffusionConfig("linear", prediction_type="v"),
    "filtered": DiffusionConfig(), "filtered-upsampler": DiffusionConfig("linear"),
    "paper": DiffusionConfig(), "paper-upsampler": DiffusionConfig("linear")}


# --- Schedules ---------------------------------------------------------------------------------------

# β_t is the share of noise that step t adds: x_t = √(1-β_t)·x_{t-1} + √β_t·ε   [D eq. 2]. The picture shrinks
# as noise comes in, so that the sum keeps a variance near 1. After all steps up to t, √ᾱ_t of the picture is
# left, where ᾱ_t is the product of all (1 - β) so far. A schedule is chosen for the shape of that curve.

def linear_betas(steps):
    """β rising in equal steps from 1e-4 to 0.02, if there are 1,000 of them [D section 4]. -> [steps] float64.

    With fewer steps each β is larger in proportion, so that the whole process adds about as much noise. This
    schedule suits large images; a small one is almost lost after half of the steps [I section 3.2].
    Raises ValueError for fewer than 20 steps, where the last β would exceed 1.
    """
    if steps < 20:
        raise ValueError(f"a linear schedule needs at least 20 steps, not {steps}: β would exceed 1")
    scale = 1000 / steps
    return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)


def cosine_betas(steps):
    """β such that √ᾱ falls like a cosine, so noise comes in evenly [I eq. 17]. -> [steps] float64.

    The last β would be 1, which leaves nothing of the image to divide by; it is capped at 0.999.
    """
    time = torch.arange(steps + 1, dtype=torch.float64) / steps
    # ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s)·π/2) with s = 0.008; β_t = 1 - ᾱ_t/ᾱ_{t-1}   [I eq. 17]
    alpha_bar = torch.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2
    return (1 - alpha_bar[1:] / alpha_bar[:-1]).clamp(max=0.999)


def respace(steps, spec):
    """The timesteps that a shorter process keeps, as an ascending list.

    spec  "100"          a hundred, evenly spaced from 0 to the last
          "10,10,3,2,2"  five equal sections, of which 10, 10, 3, 2 and 2 timesteps are kept. The first section
                         is nearest to the picture, where details are made, so most steps are spent there.
          "fast27"       the same, with its last timestep moved from 999 to 997: what GLIDE's upsampler uses
          "ddim50"       fifty, a whole stride apart, starting at 0
    Sampling starts at the last one kept, so a last section of one timestep keeps its noisiest.
    Raises ValueError, with a sentence that says why, for a spec that cannot be met.
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
    return kept if counts[-1] > 1 else kept[:-1] + [steps - 1]


def _whole(text, spec):
    """The number of steps that a person typed, as an integer; ValueError for anything else."""
    if not text.isdecimal() or int(text) < 1:
        raise ValueError(f"steps {spec!r} not understood; write '100', '10,10,3,2,2', 'fast27' or 'ddim50'")
    return int(text)


# --- The process -------------------------------------------------------------------------------------

# Going forwards, noise is added, and no network is needed. Going backwards, each step draws from
# q(x_{t-1} | x_t), which nobody can compute, because it depends on which pictures are likely. But
# q(x_{t-1} | x_t, x_0) is a plain Gaussian whose mean mixes x_t and x_0. So a guess at the noise, which is
# also a guess at x_0, is all that a step needs.

class GaussianStep(NamedTuple):
    """What x_t tells about x_{t-1}: a Gaussian, and the predicted x_0 behind it. Each is [B, C, H, W]."""

    mean: torch.Tensor
    log_variance: torch.Tensor
    x0: torch.Tensor


def seeded_generator(*names):
    """A torch.Generator that depends on these names alone (01): the same names, the same noise."""
    return torch.Generator().manual_seed(tokenizer.seeded_rng(*names).getrandbits(63))


def send(x, device):
    """A tensor on another device. A copy to a CUDA device joins its queue, so that the CPU need not wait for the
    device to finish its work; only CUDA promises that this is safe."""
    return x.to(device, non_blocking=torch.device(device).type == "cuda")


def gaussian(x, generator):
    """Unit Gaussian noise of the shape, dtype and device of x.

    generator  a torch.Generator, or None for torch's own. One on the CPU gives the same noise, hence the same
               picture, on any device. A list of generators, one for each image of the batch, makes an image's
               noise independent of what else is in the batch.
    """
    if isinstance(generator, list):
        return torch.cat([gaussian(row[None], own) for row, own in zip(x, generator, strict=True)])
    device = generator.device if generator is not None else x.device
    return send(torch.randn(x.shape, generator=generator, device=device), x.device).to(x.dtype)


def prepare(model, **cond):
    """Let a denoiser compute once what depends on the prompt alone, if it can: conditioning in, conditioning out."""
    return model.prepare(**cond) if hasattr(model, "prepare") else cond


class Diffusion:
    """A noise schedule and everything that follows from it.

    betas      [T], float64: the noise added at each of the T steps
    timesteps  the ones to keep (see `respace`); all of them if None. The shorter process gets betas of its own,
               such that ᾱ is unchanged at each timestep kept. The denoiser is told the original timestep, so it
               never notices. Asking for any other timestep raises ValueError.

    What it holds: timesteps, a list; rows, from a timestep to its place in the tables, -1 if it was not kept; and the
    tables, float64 with an entry for each timestep kept: alpha_bar, alpha_bar_prev, alpha_bar_next, betas, signal √ᾱ,
    noise √(1-ᾱ), posterior_coef_x0, posterior_coef_xt, posterior_variance β̃, and its logarithm log_posterior.
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
        self.betas = 1 - self.alpha_bar / self.alpha_bar_prev          # with all steps kept, the betas given
        self.signal, self.noise = self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt()
        # Once x_0 and x_t are known, the mean of x_{t-1} is a mixture of the two, in these shares   [D eq. 7]:
        # √ᾱ_{t-1}·β_t/(1-ᾱ_t) of x_0, (1-ᾱ_{t-1})·√(1-β_t)/(1-ᾱ_t) of x_t
        self.posterior_coef_x0 = self.alpha_bar_prev.sqrt() * self.betas / (1 - self.alpha_bar)
        self.posterior_coef_xt = (1 - self.alpha_bar_prev) * (1 - self.betas).sqrt() / (1 - self.alpha_bar)
        # β̃_t = (1-ᾱ_{t-1})/(1-ᾱ_t)·β_t   [D eq. 7]. The first is 0 and has no log: the second's is used.
        self.posterior_variance = (1 - self.alpha_bar_prev) / (1 - self.alpha_bar) * self.betas
        borrowed = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]])
        self.log_posterior = borrowed.log() if len(kept) > 1 else self.betas.log()

    @classmethod
    def from_config(cls, config, spec=None, strength=1.0):
        """The process of a DiffusionConfig: all its timesteps, or those that spec keeps (see `respace`).

        strength  0 to 1, for drawing over a sketch [E]: the share of the way to pure noise at which sampling
                  starts. Each kept timestep t becomes strength·t, so that the same number of steps is spread over
                  the part of the way that is left (a few less where two coincide). Sampling that starts from
                  x_T = q_sample(sketch, timesteps[-1], noise) changes the sketch in proportion to strength.
        Raises ValueError for a strength outside 0 … 1 and for a spec that cannot be met.
        """
        if not 0 <= strength <= 1:
            raise ValueError(f"strength goes from 0, nothing changes, to 1, everything may; it is {strength}")
        betas = {"cosine": cosine_betas, "linear": linear_betas}[config.schedule](config.steps)
        kept = range(config.steps) if spec is None else respace(config.steps, spec)
        return cls(betas, [round(strength * t) for t in kept])

    def extract(self, table, t, x):
        """table[t] for each example: [B, 1, 1, 1] float32 on x's device, to be multiplied with x.

        Tables are float64, and so is all arithmetic on them: in float32, 1 - ᾱ would keep only three digits at
        the first steps. Only float32 values leave the CPU, since some devices have no float64.
        The look-up happens where t is. Samplers keep t on the CPU, where a timestep that was not kept raises
        ValueError. On a GPU, checking would mean waiting for it, so such a timestep gives NaN there.
        """
        rows = send(self.rows, t.device)[t]
        if t.device.type == "cpu" and (rows < 0).any():
            raise ValueError(f"timestep {t[rows < 0][0].item()} is not among the {len(self.timesteps)} kept")
        table = F.pad(table.float(), (0, 1), value=math.nan)   # row -1: of timesteps that were not kept
        return send(send(table, t.device)[rows], x.device).view(-1, *[1] * (x.dim() - 1))

    def q_sample(self, x0, t, noise):
        """Straight from the image to step t. x0, noise [B, C, H, W], t [B] -> x_t [B, C, H, W]."""
        # x_t = √ᾱ_t·x_0 + √(1-ᾱ_t)·ε   [D eq. 4]: Gaussians add up, so t small steps are one large one
        return self.extract(self.signal, t, x0) * x0 + self.extract(self.noise, t, x0) * noise

    def x0_from_eps(self, x_t, t, eps):
        """The same equation solved for the image: x_0 = (x_t - √(1-ᾱ)·ε)/√ᾱ."""
        return (x_t - self.extract(self.noise, t, x_t) * eps) / self.extract(self.signal, t, x_t)

    def eps_from_x0(self, x_t, t, x0):
        """… and for the noise: ε = (x_t - √ᾱ·x_0)/√(1-ᾱ)."""
        return (x_t - self.extract(self.signal, t, x_t) * x0) / self.extract(self.noise, t, x_t)

    def posterior_mean(self, x0, x_t, t):
        """The mean of x_{t-1}, once x_0 and x_t are known [D eq. 7]."""
        return self.extract(self.posterior_coef_x0, t, x_t) * x0 + self.extract(self.posterior_coef_xt, t, x_t) * x_t

    def p_mean_variance(self, model_output, x_t, t, clip=True, x0_fn=None):
        """The model's Gaussian for x_{t-1}. model_output [B, 2C, H, W] -> GaussianStep.

        x0_fn may change the predicted x_0 before it is clipped to [-1, 1] and the mean is computed. Clipping
        matters most at the noisy end: √ᾱ is tiny there, so a small error in ε becomes a huge one in x_0.
        """
        eps, between = model_output.float().chunk(2, dim=1)
        x0 = self.x0_from_eps(x_t, t, eps)
        x0 = x0 if x0_fn is None else x0_fn(x0)
        x0 = x0.clamp(-1, 1) if clip else x0
        # On average the best variance lies between β̃ (if only one image is possible) and β (if any is); the network
        # says where: log σ² = v'·log β + (1-v')·log β̃, v' = (v+1)/2   [I eq. 15]; not the v of `to_eps`
        share = (between + 1) / 2
        high, low = self.extract(self.betas.log(), t, x_t), self.extract(self.log_posterior, t, x_t)
        return GaussianStep(self.posterior_mean(x0, x_t, t), share * high + (1 - share) * low, x0)

    # --- Training ---

    def draw_timesteps(self, batch, rng, high_noise_fraction=0.0):
        """A timestep for each example of a training batch, [B] long: one from each of B equal stretches of all.

        Each timestep is as likely as any other, but no batch is all noise or all detail (the low-discrepancy sampler of
        Kingma et al. 2021, arXiv 2107.00630). A fraction of the batch is spread over the last two fifths alone: which
        thing goes where is decided there, before anything can be seen. rng is a random.Random.
        """
        steps, few, shift = len(self.timesteps), int(high_noise_fraction * batch), rng.random()
        everywhere = (torch.arange(batch - few) + shift) * steps / (batch - few)
        high = steps * 3 / 5 + (torch.arange(few) + shift) * steps * 2 / 5 / max(few, 1)
        return torch.cat([everywhere, high]).long().clamp(max=steps - 1)

    def loss_weights(self, weighting):
        """How much the squared error in ε counts at each timestep: a table [T] for `loss`, or None.

        "eps"     every timestep counts the same, as in DDPM and GLIDE
        "v"       as if v had been compared: 1/ᾱ. Little training is enough to get the noisy end right
        "middle"  √ᾱ times the squared error in x_0, and a little of the first: most weight where the image is half
                  visible, so that the caption is needed to say what it is. At the noisy end only the background shows,
                  at the other end only noise is left to learn. (Similar: Hang et al. 2023, arXiv 2303.09556)
        "late"    ᾱ^¼ times it instead: more for the noisy end, where it is decided which thing goes where
        """
        a = self.alpha_bar
        return {"eps": None, "v": 1 / a, "middle": (1 - a) / a.sqrt() + 0.05,
                "late": (1 - a) / a ** 0.75 + 0.05}[weighting]

    def loss(self, model, x0, t, noise, *, weights=None, **cond):
        """The hybrid loss of each example [I eq. 16]: L_simple + T/1000 · L_t in bits per dimension.

        x0, noise [B, C, H, W], t [B] -> [B] float32. weights is a table [T] by which the squared error in ε is
        multiplied: 1/ᾱ makes it the squared error in v, (1-ᾱ)/ᾱ the one in x_0. Without it the loss is DDPM's.
        """
        x_t = self.q_sample(x0, t, noise)
        output = model(x_t, send(t, x_t.device), **cond)
        eps, between = output.chunk(2, dim=1)
        simple = (eps - noise).square().flatten(1).mean(1)     # ‖ε - ε̂‖²   [D eq. 14]
        simple = simple if weights is None else simple * self.extract(weights, t, simple)
        # The bound trains the variance only: its gradient through the mean is far noisier than L_simple's.
        # For a random t, T·L_t is on average the whole bound; 1/1000 keeps it from outweighing L_simple.
        frozen = torch.cat([eps.detach(), between], dim=1)
        return simple + len(self.timesteps) / 1000 * self.bound(frozen, x0, x_t, t)

    def bound(self, model_output, x0, x_t, t):
        """L_t, one term of the variational bound [D eq. 5], in bits per dimension: [B].

        KL(q(x_{t-1} | x_t, x_0) ‖ p) for t > 0; at t = 0 it is -log p(x_0) of the 8-bit image. The sum over all
        t, plus the little that x_T still tells about x_0, bounds the bits needed to store one dimension.
        """
        p = self.p_mean_variance(model_output, x_t, t, clip=False)
        mean, log_variance = self.posterior_mean(x0, x_t, t), self.extract(self.log_posterior, t, x_t)
        # KL of two Gaussians: ½·(log σ_p²/σ_q² - 1 + σ_q²/σ_p² + (μ_q-μ_p)²/σ_p²)
        kl = 0.5 * (p.log_variance - log_variance - 1 + (log_variance - p.log_variance).exp()
                    + (mean - p.mean).square() * (-p.log_variance).exp())
        first = (send(t, x_t.device) == self.timesteps[0]).view(-1, *[1] * (x_t.dim() - 1))
        nats = torch.where(first, -log_likelihood_of_bytes(x0, p.mean, 0.5 * p.log_variance), kl)
        return nats.flatten(1).mean(1) / math.log(2)

    # --- Samplers: x_T [B, C, H, W] -> x_0. They share these options:
    #   x0_fn(x0)            returns what each predicted x_0 is to become, before it is clipped
    #   grad_fn(x, t)        returns ∇ log p(c | x_t), scaled, which pulls the trajectory towards c (05)
    #   step_fn(x, t)        returns what each new x_{t-1} is to become; t [B] is the timestep just left
    #   callback(t, x, x0)   is called once a step with the timestep just left, the new x_{t-1} and the predicted x_0
    #   generator            the source of random numbers, see `gaussian`
    #   **cond               the denoiser's conditioning, prepared once

    def reversed_timesteps(self, x):
        """The kept timesteps from the noisiest to the cleanest, each as [B], on the CPU: see `extract`."""
        return [torch.full((len(x),), t) for t in reversed(self.timesteps)]

    def after_step(self, x, t, x0, step_fn, callback):
        """The new x_{t-1}, after step_fn has changed it and callback has seen it."""
        x = x if step_fn is None else step_fn(x, t)
        if callback is not None:
            callback(t, x, x0)
        return x

    def predict(self, model, x, t, cond, x0_fn=None, grad_fn=None):
        """The predicted x_0 and ε of a step that adds no noise, shifted by the gradient if there is one."""
        x0 = self.p_mean_variance(model(x, send(t, x.device), **cond), x, t, x0_fn=x0_fn).x0
        eps = self.eps_from_x0(x, t, x0)     # the noise that fits the clipped x_0
        if grad_fn is not None:
            # ε̂ = ε - √(1-ᾱ)·∇ log p(c | x_t): the score is shifted [A alg. 2], and x_0 is not clipped again
            eps = eps - self.extract(self.noise, t, x) * grad_fn(x, send(t, x.device))
            x0 = self.x0_from_eps(x, t, eps)
        return x0, eps

    @torch.no_grad()
    def ddpm_sample(self, model, x_T, *, x0_fn=None, grad_fn=None, step_fn=None, callback=None, generator=None,
                    **cond):
        """Ancestral sampling [D alg. 2]: each x_{t-1} is drawn from the model's Gaussian."""
        x, cond = x_T, prepare(model, **cond)
        for t in self.reversed_timesteps(x_T):
            p = self.p_mean_variance(model(x, send(t, x.device), **cond), x, t, x0_fn=x0_fn)
            # μ̂ = μ + Σ·∇ log p(c | x_t)   [A alg. 1]
            mean = p.mean if grad_fn is None else p.mean + p.log_variance.exp() * grad_fn(x, send(t, x.device))
            noise = gaussian(x, generator) if t[0] > self.timesteps[0] else 0   # the last step adds none
            # x_{t-1} = μ + σ·z   [D alg. 2, line 4]
            x = self.after_step(mean + (0.5 * p.log_variance).exp() * noise, t, p.x0, step_fn, callback)
        return x

    @torch.no_grad()
    def ddim_sample(self, model, x_T, *, eta=0.0, x0_fn=None, grad_fn=None, step_fn=None, callback=None,
                    generator=None, **cond):
        """DDIM [S eq. 12]: mix the predicted x_0 with the *same* noise, now in the proportion of step t-1.

        With eta 0 no fresh noise is drawn, and x_T alone decides the picture. The trajectory is then a smooth
        curve, which 25 long steps follow almost as well as 250 short ones; fresh noise would have to be removed
        again by the steps still to come.
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

        DDIM keeps one x̂_0 for a whole step, although the best guess changes on the way. Here a straight line
        through the last two guesses is extended to the middle of the step, without another call of the model.
        When steps are short, doubling their number halves DDIM's error and quarters this one's. No noise is
        drawn, so `generator` is ignored. Unlike in algorithm 2, the line is never extended by more than half of
        the distance between the two guesses.
        """
        # A step's length h is measured in λ = log(√ᾱ/√(1-ᾱ)). The last step goes to ᾱ = 1, where λ is infinite.
        level, infinite = (self.signal / self.noise).log(), torch.full((1,), math.inf, dtype=torch.float64)
        h = torch.cat([infinite, level[:-1] - level[1:]])
        # 1/(2r), where r is the h of the step before over h. From the middle on, evenly spaced timesteps lie further
        # and further apart in λ, of 25 the last two four times as far as those before. Extended that far, a line
        # misses by more than DDIM does, hence r ≥ 1.
        extend = (h / (2 * torch.cat([h[1:], infinite]))).clamp(max=0.5)   # 0 at the first: there is no line yet
        extend[0] = 0                                                      # the last step ends at x̂_0 itself
        x, last, cond = x_T, torch.zeros_like(x_T), prepare(model, **cond)
        for t in self.reversed_timesteps(x_T):
            x0, _ = self.predict(model, x, t, cond, x0_fn, grad_fn)
            # D = (1 + 1/(2r))·x̂_0 - 1/(2r)·x̂_0 of the step before   [L alg. 2]
            aim = x0 + self.extract(extend, t, x) * (x0 - last)
            # x_{t-1} = √(1-ᾱ_{t-1})/√(1-ᾱ_t)·x_t - √ᾱ_{t-1}·(e^(-h) - 1)·D   [L alg. 2], which is DDIM if D = x̂_0
            x = self.extract(((1 - self.alpha_bar_prev) / (1 - self.alpha_bar)).sqrt(), t, x) * x \
                - self.extract(self.alpha_bar_prev.sqrt() * torch.expm1(-h), t, x) * aim
            x, last = self.after_step(x, t, x0, step_fn, callback), x0
        return x

    @torch.no_grad()
    def ddim_reverse(self, model, x0, **cond):
        """DDIM run backwards, from an image to the noise that would draw it [S section 4.3, 5.4].

        x0 [B, C, H, W] -> x_T. The step is the same, with ᾱ of the next noisier timestep in place of the next
        cleaner one. It is exact only in the limit of small steps, because ε̂ is taken where a step begins and
        not where it ends.
        """
        x, cond = x0, prepare(model, **cond)
        for t in reversed(self.reversed_timesteps(x0)):
            guess, eps = self.predict(model, x, t, cond)
            x = self.extract(self.alpha_bar_next.sqrt(), t, x) * guess \
                + self.extract((1 - self.alpha_bar_next).sqrt(), t, x) * eps
        return x


def log_likelihood_of_bytes(x0, mean, log_sigma):
    """The log probability of each 8-bit pixel value under a Gaussian [D eq. 13]. All arguments [B, C, H, W].

    A value gets the mass between the half-way points to its two neighbours; 0 and 255 get all that lies beyond.
    The normal CDF is approximated as in GLIDE's training code: Φ(u) ≈ ½·(1 + tanh(√(2/π)·(u + 0.044715·u³))).
    """
    def cdf(edge):
        u = (edge - mean) * (-log_sigma).exp()
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u ** 3)))

    above, below = cdf(x0 + 1 / 255), cdf(x0 - 1 / 255)
    mass = torch.where(x0 < -0.999, above, torch.where(x0 > 0.999, 1 - below, above - below))
    return mass.clamp(min=1e-12).log()


def to_eps(model, config):
    """A denoiser made of a network that predicts ε or v, as config.prediction_type says.

    v = √ᾱ·ε - √(1-ᾱ)·x_0, so ε = √ᾱ·v + √(1-ᾱ)·x_t and x_0 = √ᾱ·x_t - √(1-ᾱ)·v   [V section 4, appendix D].
    In the plane of image and noise, x_t moves along a quarter of a circle, and v is the direction it moves in.
    An error in ε is multiplied by √(1-ᾱ)/√ᾱ in x_0, without bound at the noisy end; an error in v never grows.
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

    Noise turns each Gaussian into a wider one, nearer to 0. Given x_t, one can compute how likely it came from
    each of them, and what x_0 then is on average. That is what a network has to learn about pictures.

    diffusion  the process it will be used with (the variance depends on the kept timesteps)
    means      [M, C, H, W], the centres of M equally likely Gaussians of standard deviation `std`
    tokens     [B, 1] picks one of them as the "prompt"; where mask [B, 1] is False, or without tokens, any may be
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
        # σ² = β̃ + (coefficient of x_0)²·Var(x_0 | x_t): what is uncertain given x_0, plus what is about x_0
        best = d.extract(d.posterior_variance, t, x) + d.extract(d.posterior_coef_x0, t, x).square() * variance
        # … as the network would say it: [I eq. 15] solved for v
        return torch.cat([eps, 2 * (best.log() - low) / (high - low) - 1], dim=1)


# --- The pictures of the little language -------------------------------------------------------------

# Each noun is one character of DejaVu Sans, a font that comes with matplotlib.
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

# The longer side of a glyph in pixels, least and most: of one that has all 64 to itself, and of one that shares them.
ALONE = dict(small=(27, 31), large=(44, 50))
SHARED = dict(small=(18, 21), large=(26, 29))


@lru_cache(maxsize=None)
def glyph(noun):
    """A noun's glyph, drawn large and cropped to its ink: a grey PIL image, about 200 pixels high.

    It is drawn a little bold, since thin lines would be lost at 16 pixels.
    """
    font = ImageFont.truetype(Path(get_data_path()) / "fonts/ttf/DejaVuSans.ttf", 300)
    page = Image.new("L", (600, 600))
    ImageDraw.Draw(page).text((150, 100), GLYPHS[noun], font=font, fill=255, stroke_width=3)
    return page.crop(page.getbbox())


@lru_cache(maxsize=None)
def coverage(noun, side, zoom=1):
    """How much of each pixel a glyph covers if its longer side is side·zoom pixels: [h, w, 1] float32, 0 to 1."""
    shape = glyph(noun)
    w, h = (round(length * side / max(shape.size)) * zoom for length in shape.size)
    return np.asarray(shape.resize((w, h), Image.BOX), np.float32)[..., None] / 255   # BOX: the area's mean


def cells(scene, rng):
    """The corner (x, y) of a square of 32 pixels for each thing of a canonical scene.

    Two things in a relation share a row or a column; two or three of a kind each get a quarter of the picture.
    """
    along = rng.randint(0, 32)
    if scene.relation == "to the left of":
        return [(0, along), (32, along)]
    if scene.relation == "above":
        return [(along, 0), (along, 32)]
    return rng.sample([(0, 0), (32, 0), (0, 32), (32, 32)], scene.count)


def near_middle(rng, corner, room, length, wander):
    """Where `length` pixels begin: in the middle of the room, or up to `wander` pixels off.

    A margin of 1 pixel stays free, so that nothing is ever cut off and no two things touch.
    """
    slack = (room - 2 - length) // 2
    return corner + 1 + slack + rng.randint(-min(slack, wander), min(slack, wander))


def draw(scene, rng, zoom=1):
    """The picture of a scene in which nothing is left open (`Scene.fill`): uint8 [64·zoom, 64·zoom, 3].

    rng, a random.Random, decides what no caption says: exact sizes and places, the same ones at every zoom.
    """
    scene = scene.canonical()                   # so that the thing on the left, or above, comes first
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
    return (picture + 0.5).astype(np.uint8)     # rounded; astype alone would cut the fraction off


def draw_all(scenes, rng, side=64):
    """One picture of each scene: uint8 [n, 3, side, side].

    scenes  filled ones, in any iterable; a generator may fill each with the same rng just before it is drawn
    side    a multiple of 64
    """
    pictures = np.stack([draw(scene, rng, side // 64) for scene in scenes])   # [n, side, side, 3]
    return torch.from_numpy(pictures).permute(0, 3, 1, 2).contiguous()        # [n, 3, side, side]


class LittleWorld:
    """Endless captioned images of the little world, no two the same: a map from a position to an example.

    Nothing is stored: position 0, 1, 2, … decides what is drawn, so any example can be drawn again by itself.

    difficulty  as for `random_scene` (01);  side  of the images, a multiple of 64
    canonical  position -> the fraction of captions that are said the one canonical way, see 08
    """

    def __init__(self, difficulty, seed=0, side=64, canonical=lambda position: 0.0):
        self.difficulty, self.seed, self.side, self.canonical = difficulty, seed, side, canonical

    def __getitem__(self, position):
        """-> uint8 [3, side, side], its caption, the caption of all that it shows, and [] (08: reasons)"""
        rng = tokenizer.seeded_rng("world", self.seed, position)
        said = tokenizer.random_scene(rng, self.difficulty)
        shown = said.fill(rng)
        said = said.canonical() if rng.random() < self.canonical(position) else said
        return draw_all([shown], rng, self.side)[0], said.caption(), shown.caption(), []


def to_bytes(x):
    """Values in [-1, 1] -> uint8 0 … 255, any shape. They are rounded, and those beyond ±1 are clipped."""
    return ((x.float() + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)


def image_grid(images, *, columns=4, zoom=1, gap=2, color="white"):
    """Images [n, 3, H, W], uint8 or float in [-1, 1], as one PIL image, row by row.

    Each pixel becomes zoom × zoom of them; gap pixels of `color` separate the images.
    """
    images = images if images.dtype == torch.uint8 else to_bytes(images)
    n, _, h, w = images.shape
    columns, h, w = min(columns, n), h * zoom + gap, w * zoom + gap
    page = Image.new("RGB", (columns * w - gap, math.ceil(n / columns) * h - gap), color)
    for i, image in enumerate(images):
        tile = Image.fromarray(image.permute(1, 2, 0).cpu().numpy())
        page.paste(tile.resize((w - gap, h - gap), Image.NEAREST), (i % columns * w, i // columns * h))
    return page


def downsample(images, size):
    """uint8 [n, 3, side, side] -> float32 [n, 3, size, size] in [-1, 1]: each pixel is the mean of a square.

    Downsampling in two steps is the same as in one, so the small image of a pair is exactly its large one reduced.
    """
    return F.avg_pool2d(images.float(), images.shape[-1] // size) / 127.5 - 1


# --- The demonstration ---

# Everything from here on only shows what the code above does; no other file needs it.
SHOWN = torch.tensor([0, 100, 250, 400, 550, 700, 850, 999])    # timesteps, in the tables and in the picture
STD = 0.02                                                      # of the Gaussians round the star's points


def row(label, values):
    """One line of a table: numbers with four digits, or words."""
    print(f"   {label:16}", *(f"{v if isinstance(v, str) else f'{float(v):.4g}':>9}" for v in values))


def show_schedule(number, name, process, x0, noise):
    """A schedule's tables, and what it does to an image x0 [1, 3, 64, 64].

    -> x_t [8, 3, 64, 64] at the timesteps SHOWN, and the correlation r of each with x_0: [8].
    """
    print(f"\n{number}. The {name} schedule")
    x_t = process.q_sample(x0, SHOWN, noise)
    r = torch.stack([torch.corrcoef(torch.stack([x0.flatten(), x.flatten()]))[0, 1] for x in x_t])
    tables = {"t": torch.arange(1000), "β": process.betas, "ᾱ": process.alpha_bar, "√ᾱ": process.signal}
    for label, table in tables.items():
        row(label, table[SHOWN])
    row("r", r)
    return x_t, r


def star_points(count):
    """Random points of the star's glyph, within [-1, 1], y upwards: [count, 2, 1, 1]."""
    spots = torch.tensor(coverage("star", 200)[::-1, :, 0].copy()).nonzero().flip(1)      # [n, 2]: x, y
    return ((spots - spots.amax(0) / 2) / 110)[torch.randperm(len(spots))[:count]].view(-1, 2, 1, 1)


def show_samplers(star):
    """What three samplers make of the best guesses, in few steps and in many.

    A point more than 3·STD away from all of the star's is astray. -> DDIM's last trajectory, [251, 1000, 2, 1, 1]
    """
    print(f"\n3. The oracle of {len(star)} narrow Gaussians draws a star, in 5, 25 and 250 steps")
    row("", ["mean x", "mean y", "std x", "std y", "astray"])
    row("the truth", [*star.mean(0), *star.std(0), 0])
    for spec in ("5", "25", "250"):
        process = Diffusion.from_config(DiffusionConfig(), spec)
        for name in ("ddpm", "dpm", "ddim"):
            trajectory = [torch.randn(1000, 2, 1, 1)]
            x = getattr(process, f"{name}_sample")(MixtureDenoiser(process, star, STD), trajectory[0],
                                                   callback=lambda t, x, x0: trajectory.append(x))
            astray = torch.cdist(x.flatten(1), star.flatten(1)).amin(1) > 3 * STD
            row(f"{spec:>3} {name}", [*x.mean(0), *x.std(0), astray.float().mean()])
    print("   In 5 steps ddpm has nearly the right spread but blurs; ddim, which aims at averages, draws everything\n"
          "   too close together. In 25 dpm has the right spread too, without fresh noise.")
    return torch.stack(trajectory)


def save_picture(schedules, drowned, star, trajectory):
    """Above, a picture drowns, twice; below, both schedules, and points on their way to a shape."""
    from matplotlib.figure import Figure            # here, so that importing this file stays quick
    figure = Figure(figsize=(14, 8.2), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.45, 1))
    above.suptitle("A picture drowns in noise; r is its correlation with the clean picture", size=18)
    below.suptitle("Guessing the noise is enough to draw: DDIM takes points from noise to a star", size=18)
    curve, *panels = below.subplots(1, 6, width_ratios=(1.4, 1, 1, 1, 1, 1))
    for axes, (name, (x_t, r)) in zip(above.subplots(2, 1), drowned.items()):
        axes.imshow(image_grid(x_t, columns=8, gap=6))
        axes.tick_params(length=0, labelsize=12.5)
        axes.set_xticks(range(32, 554, 70), [f"t = {t}   r = {abs(c):.2f}" for t, c in zip(SHOWN, r)])
        axes.set_yticks([32], [name], size=17, rotation=90, va="center")
        curve.plot(schedules[name].signal, label=name, linewidth=3)
    curve.legend(title="signal √ᾱ at t", frameon=False, loc="lower left")
    # Each point has the colour of the direction, seen from the centre, in which it *ends*. DDIM adds no noise on the
    # way, so the colours are in order from the start: x_T has decided everything.
    clouds = {f"{k} steps of 250": (trajectory[k], trajectory[-1]) for k in (0, 175, 210, 250)}
    for axes, (title, (cloud, end)) in zip(panels, [*clouds.items(), ("the data", [star] * 2)]):
        axes.scatter(*cloud.flatten(1).T, s=5, linewidth=0, c=torch.atan2(*end.flatten(1).T), cmap="hsv")
        axes.set(title=title, xlim=(-1.15, 1.15), ylim=(-1.15, 1.15), aspect="equal")
        axes.axis("off")
    OUTPUTS.mkdir(exist_ok=True)
    figure.savefig(OUTPUTS / "04_diffusion.png", dpi=120)


def main():
    """The three sections and the picture."""
    torch.manual_seed(0)
    schedules = {name: Diffusion.from_config(DiffusionConfig(name)) for name in ("cosine", "linear")}
    picture, caption, _, _ = LittleWorld("full", seed=3)[0]
    x0, noise, star = downsample(picture[None], 64), torch.randn(1, 3, 64, 64), star_points(600)
    print(f"{caption!r} drowns in noise: x_t = √ᾱ·x_0 + √(1-ᾱ)·ε; x_0 has σ = {x0.std():.3f}, r = √ᾱ·σ/√(ᾱ·σ² + 1-ᾱ)")
    drowned = {name: show_schedule(i, name, process, x0, noise)
               for i, (name, process) in enumerate(schedules.items(), 1)}
    save_picture(schedules, drowned, star, show_samplers(star))
    print("\nThe picture is outputs/04_diffusion.png. Its lesson: lessons/04_diffusion.ipynb.\n"
          "Next: python 05_guidance.py decides how closely a picture follows its prompt.")


if __name__ == "__main__":
    main()
