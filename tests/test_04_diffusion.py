"""Diffusion: released answers, closed forms for every sampler, the schedule's arithmetic; the little world's pictures."""
import itertools
import json
import math
import random
from importlib import import_module

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import formula

tokenizer = import_module("01_tokenizer")
diffusion = import_module("04_diffusion")
SCHEDULES = {"squaredcos_cap_v2": diffusion.cosine_betas, "linear": diffusion.linear_betas}
SAMPLERS = "ddim_sample", "ddpm_sample", "dpm_sample"
T4 = torch.tensor([0, 1, 500, 999])


def inputs():
    x0 = formula.inp("x0", 4, 3, 8, 8).clamp(-1, 1)
    output = torch.cat([formula.inp("model_eps", 4, 3, 8, 8), formula.inp("model_var", 4, 3, 8, 8)], dim=1)
    return x0, formula.inp("noise", 4, 3, 8, 8), output


def cosine(spec=None):
    return diffusion.Diffusion.from_config(diffusion.DiffusionConfig("cosine"), spec)


def linear(spec=None):
    return diffusion.Diffusion.from_config(diffusion.DiffusionConfig("linear"), spec)


# --- Schedules and respacing ---

@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_released_ones(name):
    betas = SCHEDULES[name](1000)
    d = diffusion.Diffusion(betas)
    assert betas.dtype == torch.float64, "the schedule is float64: in float32 the product of 1,000 numbers drifts"
    for table, key in (betas, "betas"), (d.alpha_bar, "alphas_cumprod"), (d.posterior_coef_x0, "posterior_mean_coef1"), \
            (d.posterior_coef_xt, "posterior_mean_coef2"), (d.posterior_variance, "posterior_variance"), \
            (d.log_posterior, "posterior_log_variance_clipped"):
        assert torch.allclose(table, formula.golden(f"schedule.{name}.{key}"), rtol=1e-9, atol=1e-12), key
    for spec in "100", "fast27":
        respaced = diffusion.Diffusion(betas, diffusion.respace(1000, spec)).betas
        assert torch.allclose(respaced, formula.golden(f"respaced.{name}.{spec}.betas"), rtol=1e-9, atol=1e-12)


def test_cosine_schedule_is_the_papers_curve():
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s)·π/2), s = 0.008  [Improved DDPM eq. 17]."""
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    alpha_bar = cosine().alpha_bar
    for t in (0, 10, 500, 900):
        assert alpha_bar[t].item() == pytest.approx(f[t + 1] / f[0], rel=1e-10)


def test_respacing_keeps_the_released_timesteps():
    for spec, kept in json.loads((formula.GOLDEN / "respacing.json").read_text()).items():
        assert diffusion.respace(1000, spec) == kept, f"{spec} keeps other timesteps"


@pytest.mark.parametrize("spec", ["0", "1001", "-3", "ten", "", "10,,10", "ddim", "ddim0", "ddim999", "600,600", "2.5"])
def test_an_impossible_walk_is_refused(spec):
    with pytest.raises(ValueError):
        diffusion.respace(1000, spec)


def test_a_respaced_process_keeps_alpha_bar_and_the_original_names():
    whole, short = cosine(), cosine("10")
    assert torch.allclose(short.alpha_bar, whole.alpha_bar[short.timesteps]), "fewer steps, the same noise at each"
    asked = []

    def spy(x, t):
        asked.extend(t.tolist())
        return torch.zeros(len(x), 6, 2, 2)
    for sampler in SAMPLERS:
        asked.clear()
        getattr(short, sampler)(spy, torch.randn(1, 3, 2, 2))
        assert asked == short.timesteps[::-1], f"{sampler} tells the denoiser original timesteps, 999 first"


def test_a_timestep_that_was_not_kept_is_an_error():
    short, x = cosine("10"), torch.zeros(1, 3, 2, 2)
    for call in (lambda t: short.q_sample(x, t, x), lambda t: short.p_mean_variance(torch.zeros(1, 6, 2, 2), x, t)):
        with pytest.raises(ValueError, match="timestep 5 "):
            call(torch.tensor([5]))


# --- Released answers ---

def test_q_sample_gives_the_released_answer():
    x0, noise, _ = inputs()
    formula.agree(cosine().q_sample(x0, T4, noise), formula.golden("q_sample"), 1e-4)


@pytest.mark.parametrize("case", ["clip0", "clip1", "fast27"])
def test_posterior_gives_the_released_answer(case):
    d, t = (cosine("fast27"), formula.golden("p_mean_variance.fast27.timesteps")) if case == "fast27" else (cosine(), T4)
    p = d.p_mean_variance(inputs()[2], formula.golden("q_sample"), t, clip=case != "clip0")
    for answer, key in (p.mean, "mean"), (p.log_variance, "log_variance"), (p.x0, "pred_xstart"):
        formula.agree(answer, formula.golden(f"p_mean_variance.{case}.{key}"), 1e-4)


@pytest.mark.parametrize("name, d", [("cosine", cosine()), ("linear", linear())])
def test_hybrid_loss_gives_the_released_answer(name, d):
    x0, noise, output = inputs()
    formula.agree(d.loss(lambda x, t: output, x0, T4, noise), formula.golden(f"loss.{name}.loss"), 1e-4)
    bound = d.bound(output, x0, d.q_sample(x0, T4, noise), T4)
    formula.agree(bound, formula.golden(f"vb_bits_per_dim.{name}"), 1e-4)
    formula.agree((noise - output[:, :3]).square().flatten(1).mean(1), formula.golden(f"loss.{name}.mse"), 1e-4)


def released_walk(sampler, d=None, **options):
    return getattr(d or cosine("ddim10"), sampler)(
        formula.denoiser("base"), formula.inp("x_T", 3, 3, 16, 16), **formula.conditioning("base", "a"), **options)


def pull(x, t):
    return 0.5 * (1.5 * formula.inp("inpaint_image", 3, 3, 16, 16) - x)


def test_ddim_walks_as_the_released_code():
    formula.agree(released_walk("ddim_sample"), formula.golden("ddim.plain"), 2e-3)
    formula.agree(released_walk("ddim_sample", grad_fn=pull), formula.golden("ddim.grad"), 2e-3)


@pytest.mark.parametrize("key, grad_fn", [("ddpm.injected", None), ("ddpm.grad", pull)])
def test_ancestral_sampler_walks_as_the_released_code(key, grad_fn, monkeypatch):
    steps = iter(range(10))
    monkeypatch.setattr(diffusion, "gaussian", lambda x, g: formula.inp(f"noise_{next(steps)}", 3, 3, 16, 16))
    formula.agree(released_walk("ddpm_sample", grad_fn=grad_fn), formula.golden(key), 2e-3)


def test_reverse_ddim_walks_as_the_released_code():
    x0 = 0.5 * formula.inp("x0_image", 3, 3, 16, 16).clamp(-1, 1)
    answer = cosine("ddim10").ddim_reverse(formula.denoiser("base"), x0, **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden("ddim.reverse"), 2e-3)


# --- The process, by other means ---

def test_a_thousand_small_steps_are_one_large_one():
    """q(x_t | x_{t-1}) applied 300 times gives the mean and variance of the closed form [DDPM eq. 2 and 4]."""
    d, (mean, variance) = cosine(), (1.0, 0.0)
    for beta in d.betas[:300].tolist():
        mean, variance = mean * math.sqrt(1 - beta), variance * (1 - beta) + beta
    assert mean == pytest.approx(d.signal[299].item()) and variance == pytest.approx(1 - d.alpha_bar[299].item())


def test_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x_0) out of the two Gaussians it is made of, by multiplying densities."""
    d = cosine()
    for t in (1, 400, 998):
        prior, step = 1 - d.alpha_bar[t - 1], d.betas[t]     # x_{t-1} given x_0; x_t given x_{t-1}
        precision = 1 / prior + (1 - step) / step
        assert d.posterior_variance[t].item() == pytest.approx((1 / precision).item(), rel=1e-9)
        assert d.posterior_coef_x0[t].item() == pytest.approx((d.alpha_bar[t - 1].sqrt() / prior / precision).item(), rel=1e-9)
        assert d.posterior_coef_xt[t].item() == pytest.approx(((1 - step).sqrt() / step / precision).item(), rel=1e-9)


def test_noise_and_picture_are_two_names_for_one_thing():
    d, (x0, noise, _) = linear(), inputs()
    x0, noise = x0.double(), noise.double()
    x_t = d.q_sample(x0, T4, noise)
    assert torch.allclose(d.x0_from_eps(x_t, T4, noise), x0, atol=1e-4)
    assert torch.allclose(d.eps_from_x0(x_t, T4, x0), noise, atol=1e-4)


def test_a_network_that_knows_v_answers_eps():
    config = diffusion.DiffusionConfig("cosine", prediction_type="v")
    d, (x0, noise, output) = diffusion.Diffusion.from_config(config), inputs()
    a = d.alpha_bar[T4].float().view(-1, 1, 1, 1)
    v = a.sqrt() * noise - (1 - a).sqrt() * x0
    model = diffusion.to_eps(lambda x, t: torch.cat([v, output[:, 3:]], dim=1), config)
    answer = model(d.q_sample(x0, T4, noise), T4)
    assert torch.allclose(answer[:, :3], noise, atol=1e-5), "ε = √ᾱ·v + √(1-ᾱ)·x_t"
    assert torch.equal(answer[:, 3:], output[:, 3:]), "the variance channels are left alone"


def test_the_v_weighted_loss_is_the_error_in_v():
    config = diffusion.DiffusionConfig("cosine", prediction_type="v")
    d, (x0, noise, _) = diffusion.Diffusion.from_config(config), inputs()
    a, guess = d.alpha_bar[T4].float().view(-1, 1, 1, 1), formula.inp("v", 4, 3, 8, 8)
    model = diffusion.to_eps(lambda x, t: torch.cat([guess, torch.zeros_like(guess)], dim=1), config)
    extra = d.bound(model(d.q_sample(x0, T4, noise), T4), x0, d.q_sample(x0, T4, noise), T4)
    error = (guess - (a.sqrt() * noise - (1 - a).sqrt() * x0)).square().flatten(1).mean(1)
    answer = d.loss(model, x0, T4, noise, weights=1 / d.alpha_bar)
    assert torch.allclose(answer[:3] - extra[:3], error[:3], rtol=1e-3), "1/ᾱ times ε's squared error is v's"


def test_the_bound_trains_the_variance_and_not_the_mean():
    x0, noise, output = inputs()
    output = output.clone().requires_grad_()
    d = cosine()
    gradient, = torch.autograd.grad(d.loss(lambda x, t: output, x0, T4, noise).sum(), output)
    simple, = torch.autograd.grad((output[:, :3] - noise).square().flatten(1).mean(1).sum(), output)
    assert torch.allclose(gradient[:, :3], simple[:, :3], atol=1e-7), "ε is trained by L_simple alone"
    assert (gradient[:, 3:].abs().flatten(1).amax(1) > 0).all(), "the variance is trained at every timestep"


def test_byte_likelihoods_sum_to_one():
    """The 256 values of a pixel share the whole mass of the Gaussian [DDPM eq. 13]."""
    values = torch.arange(256, dtype=torch.float64) / 127.5 - 1
    for mean, sigma in (0.1, 0.3), (-0.98, 0.01), (0.0, 2.0):
        mass = diffusion.log_likelihood_of_bytes(values, torch.tensor(mean).double(), torch.tensor(sigma).double().log())
        assert mass.exp().sum().item() == pytest.approx(1, abs=1e-9)


# --- The oracle, and every sampler against the distribution it should draw ---

MEANS = torch.tensor([[-0.5, 0.2], [0.4, -0.3], [0.3, 0.5]]).view(3, 2, 1, 1)


def test_the_oracle_is_the_gradient_of_the_density():
    d, x = cosine(), torch.randn(5, 2, 1, 1, dtype=torch.float64, requires_grad=True)
    t, means = torch.tensor([0, 50, 300, 700, 999]), MEANS.double()
    oracle = diffusion.MixtureDenoiser(d, means, 0.1)
    a = d.alpha_bar[t].view(-1, 1, 1, 1, 1)
    distance = (x[:, None] - a.sqrt() * means).square().sum((2, 3, 4))
    spread = (a * 0.1 ** 2 + 1 - a).flatten(1)
    score, = torch.autograd.grad(torch.logsumexp(-distance / (2 * spread), dim=1).sum(), x)
    expected = -(1 - a[:, 0]).sqrt() * score
    assert torch.allclose(oracle(x, t)[:, :2], expected, rtol=1e-4, atol=1e-5), "ε* = -√(1-ᾱ)·∇ log p(x_t)"


def test_nothing_beats_the_oracle():
    """Among guesses at the noise, E[ε | x_t] has the least squared error: any change makes it worse."""
    torch.manual_seed(0)
    d, n = cosine(), 20_000
    x0 = MEANS[torch.randint(3, (n,))] + 0.1 * torch.randn(n, 2, 1, 1)
    t, noise = torch.full((n,), 400), torch.randn(n, 2, 1, 1)
    x_t = d.q_sample(x0, t, noise)
    eps = diffusion.MixtureDenoiser(d, MEANS, 0.1)(x_t, t)[:, :2]
    error = (eps - noise).square().mean()
    for other in (0.98 * eps, 1.02 * eps, eps + 0.02, x_t):
        assert (other - noise).square().mean() > error


@pytest.mark.parametrize("spec", ["5", "25", None])
def test_ancestral_sampling_of_a_gaussian_is_exact(spec):
    """With the best mean and the best variance every step is exact, however few: 5 draw what 1,000 do."""
    d, n = cosine(spec), 20_000
    g = torch.Generator().manual_seed(0)
    oracle = diffusion.MixtureDenoiser(d, torch.tensor([0.3, -0.2]).view(1, 2, 1, 1), 0.15)
    drawn = d.ddpm_sample(oracle, torch.randn(n, 2, 1, 1, generator=g), generator=g).flatten(1)
    assert torch.allclose(drawn.mean(0), torch.tensor([0.3, -0.2]), atol=5 * 0.15 / n ** 0.5 + 2e-3)
    assert torch.allclose(drawn.std(0), torch.tensor([0.15, 0.15]), rtol=0.03), f"std {drawn.std(0).tolist()}"


def test_ddim_of_a_gaussian_is_its_closed_form():
    """For one Gaussian each DDIM step is linear: x0 and ε are known functions of x, followed here in float64."""
    d, mu, s = cosine("20"), 0.1, 0.2
    x_T = torch.linspace(-1.5, 1.5, 7).view(7, 1, 1, 1)
    x = x_T.double()
    for t in reversed(range(20)):
        a, before = d.alpha_bar[t], d.alpha_bar_prev[t]
        x0 = mu + a.sqrt() * s ** 2 / (a * s ** 2 + 1 - a) * (x - a.sqrt() * mu)   # E[x_0 | x_t]
        x = before.sqrt() * x0 + (1 - before).sqrt() * (x - a.sqrt() * x0) / (1 - a).sqrt()
    oracle = diffusion.MixtureDenoiser(d, torch.tensor([mu]).view(1, 1, 1, 1), s)
    assert torch.allclose(d.ddim_sample(oracle, x_T).double(), x, atol=3e-4)


@pytest.mark.parametrize("sampler, options", [("ddim_sample", {}), ("ddim_sample", {"eta": 1.0}), ("ddpm_sample", {}),
                                              ("dpm_sample", {})])
def test_every_sampler_finds_all_of_a_mixture_in_its_shares(sampler, options):
    d, n = cosine("250"), 6000
    g = torch.Generator().manual_seed(0)
    oracle = diffusion.MixtureDenoiser(d, MEANS, 0.05)
    drawn = getattr(d, sampler)(oracle, torch.randn(n, 2, 1, 1, generator=g), generator=g, **options)
    distance, nearest = (drawn[:, None] - MEANS).flatten(2).norm(dim=2).min(1)
    shares = torch.bincount(nearest, minlength=3) / n
    assert torch.allclose(shares, torch.full((3,), 1 / 3), atol=0.04), f"shares {shares.tolist()}, a third each"
    assert abs(distance.square().mean().sqrt() - 0.05 * 2 ** 0.5) < 0.012, "the spread about the middles"   # eta 1: β̃ is a little narrow


def test_eta_one_draws_with_the_posterior_variance():
    """Two walks that differ in one draw differ by eta·√β̃ times that draw [DDIM eq. 16]."""
    d, x_T = cosine("10"), torch.zeros(1, 2, 1, 1)
    ends = []
    for first in (0.0, 1.0):
        draws = iter([first] + [0.0] * 9)
        seen = []

        def fixed(x, generator):
            return torch.full_like(x, next(draws))
        original, diffusion.gaussian = diffusion.gaussian, fixed
        try:
            d.ddim_sample(lambda x, t: torch.zeros(1, 4, 1, 1), x_T, eta=1.0,
                          step_fn=lambda x, t: seen.append(x) or x)
        finally:
            diffusion.gaussian = original
        ends.append(seen[0])
    assert (ends[1] - ends[0]).flatten()[0].item() == pytest.approx(d.posterior_variance[-1].sqrt().item(), rel=1e-5)


def test_reverse_ddim_finds_the_noise_that_draws_the_picture():
    d = cosine("250")
    oracle = diffusion.MixtureDenoiser(d, torch.tensor([0.1, -0.2]).view(1, 2, 1, 1), 0.3)
    x0 = torch.tensor([[0.3, -0.1], [-0.2, 0.2], [0.1, -0.4]]).view(3, 2, 1, 1)
    noise = d.ddim_reverse(oracle, x0)
    assert torch.allclose(d.ddim_sample(oracle, noise), x0, atol=0.02)


def test_the_gradient_of_a_likelihood_turns_one_gaussian_into_another():
    """score + ∇ log p(c | x_t) is the conditional's score: with it the walk is the conditional's own, to rounding."""
    d, x_T = cosine("20"), torch.linspace(-1, 1, 10).view(5, 2, 1, 1)
    wide, narrow = (diffusion.MixtureDenoiser(d, torch.full((1, 2, 1, 1), mean), std) for mean, std in ((0, 0.3), (0.2, 0.1)))

    def grad_fn(x, t):
        return (wide(x, t) - narrow(x, t))[:, :2] / d.extract(d.noise, t, x)     # score = -ε/√(1-ᾱ)
    for sampler in "ddim_sample", "dpm_sample":
        pulled, own = getattr(d, sampler)(wide, x_T, grad_fn=grad_fn), getattr(d, sampler)(narrow, x_T)
        assert torch.allclose(pulled, own, atol=2e-3), f"{sampler}: off by {(pulled - own).abs().max():.4f}"
        assert not torch.allclose(getattr(d, sampler)(wide, x_T), own, atol=0.05)


def test_the_shifted_picture_is_not_clipped_again():
    d, x = diffusion.Diffusion(diffusion.cosine_betas(1000), [700]), torch.zeros(1, 2, 1, 1)
    model = diffusion.MixtureDenoiser(d, MEANS, 0.1)
    for sampler in "ddim_sample", "dpm_sample":
        assert (getattr(d, sampler)(model, x, grad_fn=lambda x, t: torch.ones_like(x)) > 1).all(), sampler


def test_what_step_fn_returns_is_what_the_walk_goes_on_from():
    d, model, seen = cosine("5"), diffusion.MixtureDenoiser(cosine("5"), MEANS, 0.1), []

    def spy(x, t):
        seen.append(x)
        return model(x, t)
    for sampler in SAMPLERS:
        seen.clear()
        out = getattr(d, sampler)(spy, torch.zeros(1, 2, 1, 1), step_fn=lambda x, t: x * 0 + 0.125)
        assert all((x == 0.125).all() for x in (*seen[1:], out)), sampler


# --- The second-order sampler, against the curve that it follows ---

def gaussian_walk(d, x_T, mean, std):
    """Where the exact curve from x_T lies at the cleanest kept timestep, for one Gaussian: as many σ off as x_T is."""
    spread = (d.alpha_bar * std ** 2 + 1 - d.alpha_bar).sqrt()
    return d.signal[0] * mean + spread[0] / spread[-1] * (x_T - d.signal[-1] * mean)


def error_of(sampler, d, mean=0.1, std=0.3):
    """How far a sampler ends from the curve, just before its last step, which leaves the curve for x̂_0."""
    x_T, walk = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64).view(7, 1, 1, 1), []
    oracle = diffusion.MixtureDenoiser(d, torch.full((1, 1, 1, 1), mean, dtype=torch.float64), std)
    getattr(d, sampler)(oracle, x_T, step_fn=lambda x, t: walk.append(x) or x)
    return (walk[-2] - gaussian_walk(d, x_T, mean, std)).abs().max().item()


def process_in_lambda(steps, power=1):
    """A process whose λ = log(√ᾱ/√(1-ᾱ)) goes from 3 to -3, in equal steps (there orders are seen best) or, with a
    power above 1, in steps that are the shorter the nearer they are to the picture."""
    level = 3 - 6 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    a = (2 * level).sigmoid()                                                      # ᾱ = 1/(1 + e^(-2λ))
    return diffusion.Diffusion(1 - a / torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]]))


@pytest.mark.parametrize("sampler, order", [("ddim_sample", 1), ("dpm_sample", 2)])
def test_orders_of_convergence(sampler, order):
    errors = [error_of(sampler, process_in_lambda(steps)) for steps in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1), \
            f"twice the steps divide the error by {coarse / fine:.2f}, not by about {2 ** order}"


def test_the_second_order_walk_is_the_papers():
    """DPM-Solver++'s algorithm 2 in its own symbols (λ, h, r, D), in float64. No step is longer than the one before."""
    d, mean, std = process_in_lambda(8, power=2), 0.1, 0.3
    x_T = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64).view(7, 1, 1, 1)
    x, predicted = x_T, []
    lam = [math.log(a / s) for a, s in zip(d.signal.tolist(), d.noise.tolist())]
    for i in range(8, 0, -1):
        a, h = d.alpha_bar[i], lam[i - 1] - lam[i]
        predicted.append(mean + a.sqrt() * std ** 2 / (a * std ** 2 + 1 - a) * (x - a.sqrt() * mean))
        D = predicted[-1]
        if i < 8:
            r = (lam[i] - lam[i + 1]) / h
            D = (1 + 1 / (2 * r)) * predicted[-1] - 1 / (2 * r) * predicted[-2]
        x = d.noise[i - 1] / d.noise[i] * x - d.signal[i - 1] * (math.exp(-h) - 1) * D
    walk = []
    oracle = diffusion.MixtureDenoiser(d, torch.full((1, 1, 1, 1), mean, dtype=torch.float64), std)
    d.dpm_sample(oracle, x_T, step_fn=lambda x, t: walk.append(x) or x)
    assert torch.allclose(walk[-2], x, atol=1e-5), "the walk is algorithm 2's"


@pytest.mark.parametrize("steps, margin", [("10", 2.5), ("25", 10), ("50", 10)])
def test_in_as_many_steps_it_ends_nearer_to_the_curve(steps, margin):
    """Also on the timesteps that are used, evenly spaced ones, whose last steps are long in λ."""
    first, second = (error_of(sampler, cosine(steps)) for sampler in ("ddim_sample", "dpm_sample"))
    assert second * margin < first, f"off by {second:.4f}; DDIM by {first:.4f}"


@pytest.mark.parametrize("steps, margin", [("25", 1.4), ("50", 3)])
def test_a_mixture_too_is_followed_more_closely(steps, margin):
    x_T = torch.randn(500, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    ends = {spec: [getattr(cosine(spec), sampler)(diffusion.MixtureDenoiser(cosine(spec), MEANS, 0.1), x_T)
                   for sampler in ("ddim_sample", "dpm_sample")] for spec in (steps, "500")}
    first, second = ((end - ends["500"][1]).square().mean().sqrt() for end in ends[steps])
    assert second * margin < first, f"off by {second:.4f}; DDIM by {first:.4f}"


@pytest.mark.parametrize("timesteps", [[700], [300, 700]])
def test_with_nothing_to_extend_it_is_ddim(timesteps):
    """The first step and the last are DDIM's; one or two steps have no others."""
    d = diffusion.Diffusion(diffusion.cosine_betas(1000), timesteps)
    x_T = torch.randn(5, 2, 1, 1, generator=torch.Generator().manual_seed(0))
    model = diffusion.MixtureDenoiser(d, MEANS, 0.1)
    assert torch.allclose(d.dpm_sample(model, x_T), d.ddim_sample(model, x_T), atol=1e-5)


def test_the_second_order_walk_ends_at_its_last_prediction():
    seen, d = [], cosine("10")
    out = d.dpm_sample(diffusion.MixtureDenoiser(d, MEANS, 0.1), torch.randn(5, 2, 1, 1),
                       x0_fn=lambda x0: seen.append(x0) or 3 * x0)
    assert torch.equal(out, (3 * seen[-1]).clamp(-1, 1)), "x_0 is x̂_0: changed by x0_fn, then clipped, and no more"


def test_hooks_see_what_they_are_promised():
    d, model = cosine("10"), diffusion.MixtureDenoiser(cosine("10"), MEANS, 0.1)
    for sampler in SAMPLERS:
        times, pictures = [], []
        out = getattr(d, sampler)(model, torch.randn(3, 2, 1, 1), x0_fn=lambda x0: pictures.append(x0) or x0 * 0 + 0.25,
                                  step_fn=lambda x, t: times.append(t.tolist()) or x)
        assert [t[0] for t in times] == d.timesteps[::-1] and len(pictures) == 10
        assert torch.allclose(out, torch.full_like(out, 0.25), atol=0.02 if sampler == "ddpm_sample" else 1e-6), \
            "x0_fn decides where the walk ends"


def test_x0_fn_comes_before_clipping():
    d, x = cosine(), torch.zeros(1, 3, 2, 2)
    p = d.p_mean_variance(torch.zeros(1, 6, 2, 2), x, torch.tensor([500]), x0_fn=lambda x0: x0 + 7)
    assert torch.equal(p.x0, torch.ones_like(x)), "what x0_fn returns is clipped to [-1, 1] too"


def test_prepare_is_called_once_a_walk():
    calls = []

    class Model:
        def prepare(self, **cond):
            calls.append(cond)
            return {"ready": 1}

        def __call__(self, x, t, ready):
            return torch.zeros(len(x), 6, 2, 2)
    for sampler in SAMPLERS:
        getattr(cosine("10"), sampler)(Model(), torch.zeros(1, 3, 2, 2), tokens=5)
    assert calls == [{"tokens": 5}] * 3, "the text is read once, not at every step"


@pytest.mark.parametrize("spec", ["100", "5", "fast27", "ddim50", None])
def test_full_strength_is_the_whole_walk(spec):
    config = diffusion.DiffusionConfig()
    whole = list(range(1000)) if spec is None else diffusion.respace(1000, spec)
    assert diffusion.Diffusion.from_config(config, spec, 1.0).timesteps == diffusion.Diffusion.from_config(config, spec).timesteps == whole


@pytest.mark.parametrize("strength, expected", [(0.6, [0, 200, 400, 600]), (0.65, [0, 200, 400, 600]),
                                                (0.75, [0, 200, 400, 600, 800]), (0.05, [0]), (1e-9, [0])])
def test_a_weaker_walk_begins_at_the_nearest_kept_timestep(strength, expected):
    assert diffusion.Diffusion.from_config(diffusion.DiffusionConfig(), "ddim5", strength).timesteps == expected


@pytest.mark.parametrize("sampler", ["ddim_sample", "ddpm_sample"])
def test_a_walk_begun_midway_is_the_end_of_the_whole_one(sampler):
    """Handed what the whole walk had reached at that timestep, and its dice, it goes on to the same picture."""
    config, reached = diffusion.DiffusionConfig(), {}
    whole, short = diffusion.Diffusion.from_config(config, "20"), diffusion.Diffusion.from_config(config, "20", 0.6)
    oracle = diffusion.MixtureDenoiser(whole, torch.tensor([-0.5, 0.5]).view(2, 1, 1, 1), 0.1)
    g = torch.Generator().manual_seed(0)

    def note(x, t):
        reached[int(t[0])] = x, g.get_state()
        return x
    expected = getattr(whole, sampler)(oracle, torch.randn(6, 1, 1, 1, generator=g), generator=g, step_fn=note)
    x, dice = reached[whole.timesteps[len(short.timesteps)]]                 # the step just before
    g.set_state(dice)
    assert short.timesteps == whole.timesteps[:12]
    assert torch.equal(getattr(short, sampler)(oracle, x, generator=g), expected)


def test_one_seed_is_one_picture():
    d, model = cosine("10"), diffusion.MixtureDenoiser(cosine("10"), MEANS, 0.1)
    draw = [d.ddpm_sample(model, torch.zeros(3, 2, 1, 1), generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


# --- The pictures of the little world ---

def shown(caption, seed=0):
    """A caption's picture as integers [64, 64, 3], and the scene it was drawn from."""
    rng = random.Random(seed)
    scene = tokenizer.Scene.parse(caption).fill(rng)
    return diffusion.draw(scene, rng).astype(int), scene


def rgb(name):
    return diffusion.RGB[name].astype(int)


def ink_of(picture, background):
    """Where a picture is not its background: [64, 64] of True and False."""
    return np.abs(picture - rgb(background)).max(2) > 40


def middle_of(picture, color):
    """(x, y) of the middle of all pixels that have this colour."""
    y, x = np.nonzero(np.abs(picture - rgb(color)).max(2) < 8)
    return x.mean(), y.mean()


def regions(ink):
    """How many separate pieces of ink there are, corners not joining them: a flood fill from each in turn."""
    todo, count = set(zip(*np.nonzero(ink))), 0
    while todo:
        count, flood = count + 1, [todo.pop()]
        while flood:
            y, x = flood.pop()
            near = {(y + 1, x), (y - 1, x), (y, x + 1), (y, x - 1)} & todo
            todo -= near
            flood += near
    return count


def stencil(noun):
    """A glyph of 48 pixels in the middle of 48 × 48."""
    mask = diffusion.coverage(noun, 48)[..., 0]
    spare = [48 - length for length in mask.shape]
    return np.pad(mask, [(room // 2, room - room // 2) for room in spare])


def test_every_noun_has_a_glyph_and_every_glyph_a_noun():
    assert set(diffusion.GLYPHS) == set(tokenizer.NOUNS), \
        f"a word without a picture, or the reverse: {set(diffusion.GLYPHS) ^ set(tokenizer.NOUNS)}"


def test_every_colour_and_background_has_its_rgb():
    words = {*tokenizer.COLORS, *tokenizer.BACKGROUNDS}
    assert set(diffusion.RGB) == words, f"colour words and colours differ: {set(diffusion.RGB) ^ words}"


def test_every_glyph_is_in_the_font(monkeypatch):
    """For a character that it lacks a font draws one and the same box, and all such nouns would look alike."""
    monkeypatch.setitem(diffusion.GLYPHS, "no such character", "\U0010fffe")
    box = stencil("no such character")
    for noun in tokenizer.NOUNS:
        difference = np.abs(stencil(noun) - box).sum() / box.sum()
        assert difference > 0.3, f"the {noun} is the box that a font draws for a missing character"


def test_every_glyph_looks_different():
    stencils = {noun: stencil(noun) for noun in tokenizer.NOUNS}
    for one, other in itertools.combinations(stencils, 2):
        a, b = stencils[one], stencils[other]
        share = np.abs(a - b).sum() / (a.sum() + b.sum())      # 0: the same, 1: nothing in common
        assert share > 0.12, f"{one} and {other} differ in {share:.0%} of their ink only: hard to tell apart"


def test_one_seed_is_one_set_of_pictures():
    first, again, other = (diffusion.world_pictures(20, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and first[1:] == again[1:], "the seed decides pictures and captions"
    assert not torch.equal(first[0], other[0]), "another seed, other pictures"


def test_world_pictures_are_bytes_with_the_captions_of_their_scenes():
    pictures, captions, scenes = diffusion.world_pictures(50, 0)
    assert pictures.shape == (50, 3, 64, 64) and pictures.dtype == torch.uint8, "uint8 [n, 3, 64, 64]"
    for caption, scene in zip(captions, scenes):
        said = tokenizer.Scene.parse(caption)
        assert said.background in (None, scene.background), f"{caption!r} was drawn on {scene.background}"
        for word, thing in zip(said.things, scene.things):
            assert (word.noun, word.color) == (thing.noun, thing.color) and word.size in (None, thing.size), \
                f"{caption!r} was drawn as {thing}: a scene may add to its caption, never contradict it"


def test_low_and_high_resolution_are_one_picture():
    """The upsampler's pairs must fit: reducing in two steps is reducing in one."""
    pictures = diffusion.world_pictures(30, 1)[0]
    small, large = diffusion.downsample(pictures, 16), diffusion.downsample(pictures, 32)
    assert torch.allclose(small, F.avg_pool2d(large, 2), atol=1e-6), "the 16-pixel picture is the 32-pixel one, reduced"
    assert diffusion.downsample(pictures, 64).min() >= -1 and diffusion.downsample(pictures, 64).max() <= 1, "within [-1, 1]"


@pytest.mark.parametrize("color", tokenizer.COLORS)
def test_a_thing_has_the_colour_of_its_caption(color):
    for background in tokenizer.BACKGROUNDS:
        picture, _ = shown(f"a large {color} heart on a {background} background")
        ink = picture[(picture != rgb(background)).any(2)]
        values, times = np.unique(ink, axis=0, return_counts=True)
        assert (values[times.argmax()] == rgb(color)).all(), \
            f"most of a {color} heart on {background} is {values[times.argmax()]}, not {rgb(color)}"


def test_the_background_is_everywhere_that_no_thing_is():
    pictures, captions, scenes = diffusion.world_pictures(200, 2)
    for picture, caption, scene in zip(pictures.permute(0, 2, 3, 1).numpy().astype(int), captions, scenes):
        plain = (picture == rgb(scene.background)).all(2)
        assert plain[[0, 0, -1, -1], [0, -1, 0, -1]].all(), f"{caption!r}: a corner is not {scene.background}"
        assert plain.mean() > 0.4, f"{caption!r}: only {plain.mean():.0%} of the picture is background"


@pytest.mark.parametrize("relation", tokenizer.RELATIONS)
def test_two_things_lie_as_their_caption_says(relation):
    for seed in range(20):
        picture, _ = shown(f"a red heart {relation} a blue star on a white background", seed)
        (x1, y1), (x2, y2) = middle_of(picture, "red"), middle_of(picture, "blue")
        lies = {"to the left of": x2 - x1, "to the right of": x1 - x2, "above": y2 - y1, "below": y1 - y2}[relation]
        across = abs(y1 - y2) if "to the" in relation else abs(x1 - x2)
        assert lies > 12 and lies > across, f"seed {seed}: the heart is not clearly {relation} the star"


def test_one_picture_said_in_two_ways_is_one_picture():
    one, other = shown("a small red heart below a large blue star on a gray background")[0], \
        shown("a large blue star above a small red heart on a gray background")[0]
    assert (one == other).all(), "“below” is “above” the other way round: the same picture"


@pytest.mark.parametrize("words, count", [("a green heart", 1), ("two green hearts", 2), ("three green hearts", 3)])
def test_as_many_things_are_drawn_as_the_caption_counts(words, count):
    for seed in range(20):
        picture, scene = shown(words, seed)
        found = regions(ink_of(picture, scene.background))
        assert found == count, f"{words!r}, seed {seed}: {found} hearts"


def test_nothing_is_cut_by_the_border():
    """A pixel at the border is always background, so no glyph ends there."""
    for difficulty in ("single", "full"):
        pictures, captions, _ = diffusion.world_pictures(300, 5, difficulty)
        for picture, caption in zip(pictures, captions):
            corner = picture[:, :1, :1]
            for side in (picture[:, :1], picture[:, -1:], picture[:, :, :1], picture[:, :, -1:]):
                assert (side == corner).all(), f"{caption!r} reaches the border"


def test_all_of_every_glyph_is_in_the_picture(monkeypatch):
    """What the picture differs from its background by is as much as its stencils cover: none hides another."""
    used, coverage = [], diffusion.coverage
    monkeypatch.setattr(diffusion, "coverage", lambda *args: used.append(coverage(*args)) or used[-1])
    for caption in ("a small pink cat", "three large blue envelopes", "a large cyan sun above a cyan gear"):
        for seed in range(10):
            used.clear()
            picture, scene = shown(caption, seed)
            change = rgb(scene.things[0].color) - rgb(scene.background)
            covered = (picture - rgb(scene.background)).sum() / change.sum()
            whole = sum(mask.sum() for mask in used)
            assert covered == pytest.approx(whole, rel=0.02), f"{caption!r}: {covered:.0f} of {whole:.0f} pixels"


@pytest.mark.parametrize("caption", ["a {} red {} on a white background", "two {} red {}s on a white background"])
def test_small_things_are_smaller_than_large_ones(caption):
    for noun in ("heart", "umbrella", "cat", "bolt"):
        area = {size: [ink_of(shown(caption.format(size, noun), seed)[0], "white").sum() for seed in range(10)]
                for size in tokenizer.SIZES}
        assert max(area["small"]) < 0.8 * min(area["large"]), f"a small {noun} may be as large as a large one: {area}"
