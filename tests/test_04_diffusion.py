"""Diffusion: schedules, process and samplers against closed forms; the little world's pictures; released answers."""
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


def cosine(spec=None, strength=1.0):
    return diffusion.Diffusion.from_config(diffusion.DiffusionConfig("cosine"), spec, strength)


def linear(spec=None):
    return diffusion.Diffusion.from_config(diffusion.DiffusionConfig("linear"), spec)


# --- Schedules and respacing ---

def test_cosine_schedule_is_the_papers_curve():
    """ᾱ_t = f(t)/f(0), f(t) = cos²((t/T + s)/(1 + s)·π/2), s = 0.008  [Improved DDPM eq. 17]."""
    f = [math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2 for t in range(1001)]
    alpha_bar = cosine().alpha_bar
    for t in (0, 10, 500, 900):
        assert alpha_bar[t].item() == pytest.approx(f[t + 1] / f[0], rel=1e-10), "√ᾱ falls like a cosine"


@pytest.mark.parametrize("steps", [100, 500, 1000, 4000])
def test_a_linear_schedule_adds_as_much_noise_in_any_number_of_steps(steps):
    """Σ β = T·(1000/T)·(1e-4 + 0.02)/2 = 10.05 for every T, log ᾱ_T = -Σ β - Σ β²/2 - …"""
    betas = diffusion.linear_betas(steps)
    assert betas.sum().item() == pytest.approx(10.05), "β must be scaled by 1000/T: then the sum of all β is the same"
    log_alpha_bar = diffusion.Diffusion(betas).alpha_bar[-1].log().item()
    assert log_alpha_bar == pytest.approx(-10.05 - betas.square().sum().item() / 2, rel=0.02), "… and so is ᾱ_T, nearly"
    assert betas[0] * steps == pytest.approx(0.1) and betas[-1] * steps == pytest.approx(20), "1e-4 … 0.02 for T = 1000"


@pytest.mark.parametrize("steps", [1, 2, 19])
def test_a_linear_schedule_of_too_few_steps_is_refused(steps):
    with pytest.raises(ValueError, match=f"at least 20 steps, not {steps}"):     # the last β would be 20/T, above 1
        diffusion.linear_betas(steps)


BAD_SPECS = ["0", "1001", "-3", "ten", "", "10,,10", "ddim", "ddim0", "ddim999", "600,600", "2.5"]


@pytest.mark.parametrize("spec", BAD_SPECS)
def test_a_spec_that_cannot_be_met_is_refused(spec):
    with pytest.raises(ValueError):
        diffusion.respace(1000, spec)


@pytest.mark.parametrize("spec, kept", [("1", [999]), ("2", [0, 999]), ("2,1", [0, 499, 999]), ("1,1", [0, 999])])
def test_sampling_starts_at_the_noisiest_timestep_however_few_there_are(spec, kept):
    assert diffusion.respace(1000, spec) == kept, "x_T is pure noise, so the noisiest timestep must be kept"


def test_one_step_draws_an_image_and_not_its_noise():
    d, x_T = cosine("1"), torch.randn(500, 2, 1, 1)
    drawn = d.ddim_sample(diffusion.MixtureDenoiser(d, MEANS, 0.1), x_T)
    off = (drawn - MEANS.mean(0)).abs().max().item()
    assert off < 0.05, f"the best guess at x_0 from nothing but noise is the data's mean; one step is off by {off:.3f}"


def test_a_respaced_process_keeps_alpha_bar_and_the_original_names():
    whole, short, asked = cosine(), cosine("10"), []
    assert torch.allclose(short.alpha_bar, whole.alpha_bar[short.timesteps]), "fewer steps, the same noise at each"

    def spy(x, t):
        asked.extend(t.tolist())
        return torch.zeros(len(x), 6, 2, 2)
    for sampler in SAMPLERS:
        asked.clear()
        getattr(short, sampler)(spy, torch.randn(1, 3, 2, 2))
        assert asked == short.timesteps[::-1], f"{sampler} must tell the denoiser original timesteps, 999 first"


def test_a_timestep_that_was_not_kept_is_an_error():
    short, x = cosine("10"), torch.zeros(1, 3, 2, 2)
    for call in (lambda t: short.q_sample(x, t, x), lambda t: short.p_mean_variance(torch.zeros(1, 6, 2, 2), x, t)):
        with pytest.raises(ValueError, match="timestep 5 "):
            call(torch.tensor([5]))


# --- Strength: drawing over a sketch ---

@pytest.mark.parametrize("spec", ["100", "5", "1", "fast27", "ddim50", None])
def test_full_strength_is_the_whole_process(spec):
    whole = list(range(1000)) if spec is None else diffusion.respace(1000, spec)
    assert cosine(spec).timesteps == cosine(spec, 1.0).timesteps == whole


@pytest.mark.parametrize("spec", ["1", "2", "5", "25", "10,10,3,2,2", "fast27", "ddim25", None])
def test_a_sketch_is_noised_in_proportion_to_strength(spec):
    whole, starts = cosine(spec), []
    for strength in (0.05, 0.2, 0.4, 0.5, 0.6, 0.8, 1.0):
        d = cosine(spec, strength)
        starts.append(d.noise[-1].item())
        assert abs(d.timesteps[-1] - strength * whole.timesteps[-1]) <= 0.5, "strength is a share of the way to noise"
        assert spec is None or len(d.timesteps) > 0.8 * len(whole.timesteps), "the steps are spread over that share"
    assert all(a < b for a, b in itertools.pairwise(starts)), f"more strength, more noise at the start: {starts}"


def test_next_to_no_strength_leaves_one_step():
    assert cosine("25", 1e-9).timesteps == cosine(None, 0.0).timesteps == [0], "timesteps that coincide are kept once"


@pytest.mark.parametrize("strength", [-0.1, 1.1, math.nan])
def test_an_impossible_strength_is_refused(strength):
    with pytest.raises(ValueError, match="strength"):
        cosine("25", strength)


@pytest.mark.parametrize("sampler", ["ddim_sample", "ddpm_sample"])
def test_the_stronger_the_more_of_a_sketch_changes(sampler):
    sketch, changes = torch.full((500, 2, 1, 1), 0.3), []
    for strength in (0.1, 0.4, 0.8):
        d, g = cosine("10", strength), torch.Generator().manual_seed(0)
        x_T = d.q_sample(sketch, torch.full((500,), d.timesteps[-1]), diffusion.gaussian(sketch, g))
        oracle = diffusion.MixtureDenoiser(d, torch.zeros(1, 2, 1, 1), 0.5)
        changes.append((getattr(d, sampler)(oracle, x_T, generator=g) - sketch).square().mean().item())
    assert changes[0] < changes[1] < changes[2], f"mean squared changes at strength 0.1, 0.4 and 0.8: {changes}"


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
        expected = {"posterior_variance": 1 / precision, "posterior_coef_xt": (1 - step).sqrt() / step / precision,
                    "posterior_coef_x0": d.alpha_bar[t - 1].sqrt() / prior / precision}
        for name, value in expected.items():
            assert getattr(d, name)[t].item() == pytest.approx(value.item(), rel=1e-9), f"{name} is not Bayes' rule"


def test_noise_and_image_follow_from_each_other():
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
        log_sigma = torch.tensor(sigma, dtype=torch.float64).log()
        mass = diffusion.log_likelihood_of_bytes(values, torch.tensor(mean, dtype=torch.float64), log_sigma).exp()
        assert mass.sum().item() == pytest.approx(1, abs=1e-9), "no mass is lost or counted twice"


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


@pytest.mark.parametrize("spec", ["5", "25", "250"])
def test_ancestral_sampling_of_a_gaussian_is_exact(spec):
    """With the best mean and the best variance every step is exact, however few: 5 draw what 250 do."""
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
    spread = distance.square().mean().sqrt().item()             # eta 1 is a little narrow, since its variance is β̃
    assert abs(spread - 0.05 * 2 ** 0.5) < 0.012, f"points spread by {spread:.3f} about their centres"


def test_eta_one_draws_with_the_posterior_variance(monkeypatch):
    """Two trajectories that differ in one draw differ by eta·√β̃ times that draw [DDIM eq. 16]."""
    d, ends = cosine("10"), []
    for first in (0.0, 1.0):
        draws, seen = iter([first] + [0.0] * 9), []
        monkeypatch.setattr(diffusion, "gaussian", lambda x, generator: torch.full_like(x, next(draws)))
        d.ddim_sample(lambda x, t: torch.zeros(1, 4, 1, 1), torch.zeros(1, 2, 1, 1), eta=1.0,
                      callback=lambda t, x, x0: seen.append(x))
        ends.append(seen[0].flatten()[0].item())
    assert ends[1] - ends[0] == pytest.approx(d.posterior_variance[-1].sqrt().item(), rel=1e-5), "σ is √β̃ for eta 1"


def test_reverse_ddim_finds_the_noise_that_draws_the_picture():
    d = cosine("250")
    oracle = diffusion.MixtureDenoiser(d, torch.tensor([0.1, -0.2]).view(1, 2, 1, 1), 0.3)
    x0 = torch.tensor([[0.3, -0.1], [-0.2, 0.2], [0.1, -0.4]]).view(3, 2, 1, 1)
    noise = d.ddim_reverse(oracle, x0)
    assert torch.allclose(d.ddim_sample(oracle, noise), x0, atol=0.02)


def test_the_gradient_of_a_likelihood_turns_one_gaussian_into_another():
    """score + ∇ log p(c | x_t) is the conditional's score: the trajectory must be the conditional's own."""
    d, x_T = cosine("20"), torch.linspace(-1, 1, 10).view(5, 2, 1, 1)
    wide = diffusion.MixtureDenoiser(d, torch.zeros(1, 2, 1, 1), 0.3)
    narrow = diffusion.MixtureDenoiser(d, torch.full((1, 2, 1, 1), 0.2), 0.1)

    def grad_fn(x, t):
        return (wide(x, t) - narrow(x, t))[:, :2] / d.extract(d.noise, t, x)     # score = -ε/√(1-ᾱ)
    for sampler in "ddim_sample", "dpm_sample":
        pulled, own = getattr(d, sampler)(wide, x_T, grad_fn=grad_fn), getattr(d, sampler)(narrow, x_T)
        assert torch.allclose(pulled, own, atol=2e-3), f"{sampler}: off by {(pulled - own).abs().max():.4f}"
        assert not torch.allclose(getattr(d, sampler)(wide, x_T), own, atol=0.05)


def test_the_shifted_x0_is_not_clipped_again():
    d, x = diffusion.Diffusion(diffusion.cosine_betas(1000), [700]), torch.zeros(1, 2, 1, 1)
    model = diffusion.MixtureDenoiser(d, MEANS, 0.1)
    for sampler in "ddim_sample", "dpm_sample":
        assert (getattr(d, sampler)(model, x, grad_fn=lambda x, t: torch.ones_like(x)) > 1).all(), sampler


# --- The second-order sampler, against the curve that it follows ---

def exact_end(d, x_T, mean, std):
    """Where the exact curve from x_T ends, at the cleanest kept timestep, for one Gaussian: as many σ off as x_T."""
    spread = (d.alpha_bar * std ** 2 + 1 - d.alpha_bar).sqrt()
    return d.signal[0] * mean + spread[0] / spread[-1] * (x_T - d.signal[-1] * mean)


def error_of(sampler, d, mean=0.1, std=0.3):
    """How far a sampler ends from the curve, just before its last step, which leaves the curve for x̂_0."""
    x_T, path = torch.linspace(-1.2, 1.2, 7, dtype=torch.float64).view(7, 1, 1, 1), []
    oracle = diffusion.MixtureDenoiser(d, torch.full((1, 1, 1, 1), mean, dtype=torch.float64), std)
    getattr(d, sampler)(oracle, x_T, step_fn=lambda x, t: path.append(x) or x)
    return (path[-2] - exact_end(d, x_T, mean, std)).abs().max().item()


def process_in_lambda(steps, power=1):
    """A process whose λ = log(√ᾱ/√(1-ᾱ)) goes from 3 to -3, in equal steps (which show orders best) or, with a
    power above 1, in steps that get shorter towards the picture."""
    level = 3 - 6 * torch.linspace(0, 1, steps + 1, dtype=torch.float64) ** power
    a = (2 * level).sigmoid()                                                      # ᾱ = 1/(1 + e^(-2λ))
    return diffusion.Diffusion(1 - a / torch.cat([torch.ones(1, dtype=torch.float64), a[:-1]]))


@pytest.mark.parametrize("sampler, order", [("ddim_sample", 1), ("dpm_sample", 2)])
def test_orders_of_convergence(sampler, order):
    errors = [error_of(sampler, process_in_lambda(steps)) for steps in (40, 80, 160)]
    for coarse, fine in itertools.pairwise(errors):
        assert math.log2(coarse / fine) == pytest.approx(order, abs=0.1), \
            f"twice the steps divide the error by {coarse / fine:.2f}, not by about {2 ** order}"


def test_the_second_order_sampler_is_the_papers():
    """Algorithm 2 of DPM-Solver++ in its symbols (λ, h, r, D), in float64. No step is longer than the one before."""
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
    path = []
    oracle = diffusion.MixtureDenoiser(d, torch.full((1, 1, 1, 1), mean, dtype=torch.float64), std)
    d.dpm_sample(oracle, x_T, step_fn=lambda x, t: path.append(x) or x)
    assert torch.allclose(path[-2], x, atol=1e-5), "each step is algorithm 2's"


@pytest.mark.parametrize("steps, margin", [("10", 2.5), ("25", 10), ("50", 10)])
def test_the_second_order_sampler_ends_nearer_to_the_curve(steps, margin):
    """Also on evenly spaced timesteps, which are the ones in use; their last steps are long in λ."""
    first, second = (error_of(sampler, cosine(steps)) for sampler in ("ddim_sample", "dpm_sample"))
    assert second * margin < first, f"off by {second:.4f}; DDIM by {first:.4f}"


@pytest.mark.parametrize("steps, margin", [("25", 1.4), ("50", 3)])
def test_the_curve_of_a_mixture_is_followed_more_closely_too(steps, margin):
    x_T = torch.randn(100, 2, 1, 1, generator=torch.Generator().manual_seed(0))
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


# --- What samplers promise their callers ---

@pytest.mark.parametrize("sampler", SAMPLERS)
def test_x0_fn_and_step_fn_decide_where_a_trajectory_goes(sampler):
    d, seen, x_T = cosine("5"), [], torch.randn(3, 2, 1, 1)
    model = diffusion.MixtureDenoiser(d, MEANS, 0.1)
    out = getattr(d, sampler)(model, x_T, x0_fn=lambda x0: torch.full_like(x0, 0.25))
    assert torch.allclose(out, torch.full_like(out, 0.25), atol=1e-5), "the last predicted x_0 is the result"

    def spy(x, t):
        seen.append(x)
        return model(x, t)
    out = getattr(d, sampler)(spy, x_T, step_fn=lambda x, t: torch.full_like(x, 0.125))
    assert all((x == 0.125).all() for x in (*seen[1:], out)), "sampling goes on from what step_fn returned"


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_callback_is_told_of_each_step_once(sampler):
    d, told, reached, predicted = cosine("10"), [], [], []

    def step_fn(x, t):
        reached.append(x + 0.001)
        return reached[-1]

    def x0_fn(x0):
        predicted.append(x0.clamp(-1, 1))
        return x0
    out = getattr(d, sampler)(diffusion.MixtureDenoiser(d, MEANS, 0.1), torch.randn(3, 2, 1, 1), step_fn=step_fn,
                              x0_fn=x0_fn, callback=lambda t, x, x0: told.append((t, x, x0)))
    assert [t.tolist() for t, _, _ in told] == [[t] * 3 for t in d.timesteps[::-1]], "t is the timestep just left"
    assert all(torch.equal(x, new) for (_, x, _), new in zip(told, reached)), "x is x_{t-1}, after step_fn changed it"
    assert all(torch.equal(x0, guess) for (_, _, x0), guess in zip(told, predicted)), "x0 is the clipped prediction"
    assert torch.equal(told[-1][1], out), "the last x is the result"


def test_x0_fn_comes_before_clipping():
    d, x = cosine(), torch.zeros(1, 3, 2, 2)
    p = d.p_mean_variance(torch.zeros(1, 6, 2, 2), x, torch.tensor([500]), x0_fn=lambda x0: x0 + 7)
    assert torch.equal(p.x0, torch.ones_like(x)), "what x0_fn returns is clipped to [-1, 1] too"


def test_prepare_is_called_once_before_the_loop():
    calls = []

    class Model:
        def prepare(self, **cond):
            calls.append(cond)
            return {"ready": 1}

        def __call__(self, x, t, ready):
            return torch.zeros(len(x), 6, 2, 2)
    for sampler in SAMPLERS:
        getattr(cosine("10"), sampler)(Model(), torch.zeros(1, 3, 2, 2), tokens=5)
    assert calls == [{"tokens": 5}] * 3, "the text is encoded once, not at every step"


def test_one_seed_is_one_image():
    d = cosine("10")
    one, again, other = (
        d.ddpm_sample(diffusion.MixtureDenoiser(d, MEANS, 0.1), torch.zeros(3, 2, 1, 1),
                      generator=diffusion.seeded_generator("a name", seed)) for seed in (1, 1, 2))
    assert torch.equal(one, again) and not torch.equal(one, other), "the generator is the only source of chance"


def test_an_image_with_its_own_generator_does_not_depend_on_the_batch():
    def own(*seeds):
        return diffusion.gaussian(torch.zeros(len(seeds), 3, 2, 2), [diffusion.seeded_generator(s) for s in seeds])
    assert torch.equal(own(1, 2, 3)[1:2], own(2)), "a list of generators gives each image noise of its own"


# --- What a training step draws ---

@pytest.mark.parametrize("fraction", [0.0, 0.5])
def test_a_batch_has_timesteps_from_the_first_to_the_last(fraction):
    rngs = [random.Random(seed) for seed in range(400)]
    t = torch.stack([cosine().draw_timesteps(64, rng, fraction) for rng in rngs])
    assert t.shape == (400, 64) and t.dtype == torch.long
    assert t.min() == 0 and t.max() == 999, "both ends are drawn: an off-by-one would never train the last timestep"
    late = (t >= 600).float().mean()
    expected = 0.4 * (1 - fraction) + fraction
    assert abs(late - expected) < 0.02, f"{late:.2f} of them are of the noisiest two fifths, not {expected:.2f}"
    stretches = torch.histc(t[:, :int(64 * (1 - fraction))].float(), 10, 0, 1000)
    assert stretches.max() / stretches.min() < 1.2, "apart from that, each timestep is as likely as any other"


def test_a_batch_is_spread_over_all_timesteps():
    t = cosine().draw_timesteps(50, random.Random(1)).sort().values
    assert (t.diff() >= 19).all() and (t.diff() <= 21).all(), "one from each of B equal stretches, never all noise"


def test_the_weights_of_the_loss_are_what_they_are_called():
    d = cosine()
    a = d.alpha_bar
    assert d.loss_weights("eps") is None, "DDPM's own: every timestep counts the same"
    assert torch.allclose(d.loss_weights("v"), 1 / a), "an error in v is one in ε divided by √ᾱ"
    x0_error = (1 - a) / a                            # of an error of 1 in ε
    assert torch.allclose(d.loss_weights("middle"), a.sqrt() * x0_error + 0.05)
    assert torch.allclose(d.loss_weights("late"), a ** 0.25 * x0_error + 0.05)


def test_the_little_world_is_a_function_of_the_position():
    world = diffusion.LittleWorld("full", seed=5)
    image, caption, shown, reasons = world[123_456_789]
    again = diffusion.LittleWorld("full", seed=5)[123_456_789]
    assert torch.equal(image, again[0]) and (caption, shown) == again[1:3], "any example can be drawn again by itself"
    assert image.dtype == torch.uint8 and image.shape == (3, 64, 64) and reasons == []
    others = [diffusion.LittleWorld("full", seed=6)[123_456_789], world[123_456_790]]
    assert all(not torch.equal(image, other[0]) for other in others), "another seed or position is another image"


def test_the_little_world_shows_what_it_says():
    for position in range(40):
        _, caption, shown, _ = diffusion.LittleWorld("full", seed=1)[position]
        said, full = (tokenizer.Scene.parse(text) for text in (caption, shown))
        assert full.background and all(thing.size for thing in full.things), "what is shown leaves nothing open"
        assert [(t.noun, t.color) for t in said.things] == [(t.noun, t.color) for t in full.things]
        assert said.background in (None, full.background), "what the caption says is shown"


def test_pairs_can_be_said_the_canonical_way_alone():
    captions = [diffusion.LittleWorld("full", seed=2, canonical=lambda position: 1.0)[i][1] for i in range(60)]
    relations = {tokenizer.Scene.parse(caption).relation for caption in captions}
    assert relations == {None, "to the left of", "above"}, "never right of, never below"


# --- The pictures of the little world ---

def shown(caption, seed=0):
    """A caption's picture as integers [64, 64, 3], and the scene it was drawn from."""
    rng = random.Random(seed)
    scene = tokenizer.Scene.parse(caption).fill(rng)
    return diffusion.draw(scene, rng).astype(int), scene


def world(n, seed, difficulty="full"):
    """n pictures of the little world, uint8 [n, 3, 64, 64], the captions that are said, the scenes that are shown."""
    pictures, said, shown, _ = zip(*(diffusion.LittleWorld(difficulty, seed)[i] for i in range(n)))
    return torch.stack(pictures), said, [tokenizer.Scene.parse(caption) for caption in shown]


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
    first, again, other = (world(20, seed) for seed in (3, 3, 4))
    assert torch.equal(first[0], again[0]) and first[1:] == again[1:], "seed and position decide picture and caption"
    assert not torch.equal(first[0], other[0]), "another seed, other pictures"


def test_the_world_is_bytes_with_the_captions_of_their_scenes():
    pictures, captions, scenes = world(50, 0)
    assert pictures.shape == (50, 3, 64, 64) and pictures.dtype == torch.uint8, "uint8 [n, 3, 64, 64]"
    for caption, scene in zip(captions, scenes):
        said = tokenizer.Scene.parse(caption)
        assert said.background in (None, scene.background), f"{caption!r} was drawn on {scene.background}"
        for word, thing in zip(said.things, scene.things):
            assert (word.noun, word.color) == (thing.noun, thing.color) and word.size in (None, thing.size), \
                f"{caption!r} was drawn as {thing}: a scene may add to its caption, never contradict it"


def test_low_and_high_resolution_are_one_picture():
    """The upsampler's pairs must fit: reducing in two steps is reducing in one."""
    pictures = world(30, 1)[0]
    small, large = diffusion.downsample(pictures, 16), diffusion.downsample(pictures, 32)
    assert torch.allclose(small, F.avg_pool2d(large, 2), atol=1e-6), "the 16-pixel image is the 32-pixel one, reduced"
    full = diffusion.downsample(pictures, 64)
    assert full.min() == -1 and full.max() == 1, "images are in [-1, 1], not [0, 1]"


@pytest.mark.parametrize("color", tokenizer.COLORS)
def test_a_thing_has_the_colour_of_its_caption(color):
    for background in tokenizer.BACKGROUNDS:
        picture, _ = shown(f"a large {color} heart on a {background} background")
        ink = picture[(picture != rgb(background)).any(2)]
        values, times = np.unique(ink, axis=0, return_counts=True)
        assert (values[times.argmax()] == rgb(color)).all(), \
            f"most of a {color} heart on {background} is {values[times.argmax()]}, not {rgb(color)}"


def test_the_background_is_everywhere_that_no_thing_is():
    pictures, captions, scenes = world(200, 2)
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
        pictures, captions, _ = world(300, 5, difficulty)
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


# --- Images as bytes ---

def test_values_beyond_the_range_are_clipped_and_never_wrap():
    x = torch.tensor([-3e38, -40.0, -1.5, -1.004, 1.004, 1.01, 1.5, 40.0, 3e38])
    expected = torch.where(x > 0, 255, 0).to(torch.uint8)
    assert torch.equal(diffusion.to_bytes(x), expected), "as a byte 256 would be 0: what is too bright would turn black"


def test_values_are_rounded_to_the_nearest_byte_and_not_cut():
    every, off = torch.arange(256, dtype=torch.uint8), 0.45 / 127.5
    values = every.float() / 127.5 - 1
    for x in (values, values + off, values - off):
        assert torch.equal(diffusion.to_bytes(x), every), "cut instead of rounded, an image gets darker"


def test_bytes_keep_the_shape_and_are_made_of_half_precision_too():
    x = torch.zeros(2, 3, 4, 5, dtype=torch.float16)
    assert diffusion.to_bytes(x).shape == x.shape and diffusion.to_bytes(x).dtype == torch.uint8


def test_an_image_grid_shows_each_image_in_its_place():
    images = torch.zeros(5, 3, 2, 4, dtype=torch.uint8)
    images[:, 0] = torch.tensor([10, 20, 30, 40, 50])[:, None, None]
    grid = np.asarray(diffusion.image_grid(images, columns=3, zoom=2, gap=1, color="white"))
    assert grid.shape == (2 * 4 + 1, 3 * 8 + 2, 3), "two rows of three, each pixel 2 × 2, gaps of one pixel in between"
    for i in range(5):
        top, left = i // 3 * 5, i % 3 * 9
        assert (grid[top:top + 4, left:left + 8, 0] == 10 * (i + 1)).all(), f"image {i} is not where it belongs"
    assert (grid[4] == 255).all() and (grid[:, 8] == 255).all() and (grid[5:, 18:] == 255).all(), "the rest is white"


def test_an_image_grid_of_floats_goes_from_minus_one_to_one():
    images = torch.tensor([-1.0, 0.0, 1.0, 7.0]).view(4, 1, 1, 1).expand(4, 3, 1, 1)
    grid = np.asarray(diffusion.image_grid(images, gap=0))
    assert grid[0, :, 0].tolist() == [0, 128, 255, 255], "floats are in [-1, 1] and become bytes as in to_bytes"


# --- Released answers ---

@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_are_the_released_ones(name):
    betas = SCHEDULES[name](1000)
    d = diffusion.Diffusion(betas)
    assert betas.dtype == torch.float64, "the schedule is float64: in float32 the product of 1,000 numbers drifts"
    tables = {"betas": betas, "alphas_cumprod": d.alpha_bar, "posterior_mean_coef1": d.posterior_coef_x0,
              "posterior_mean_coef2": d.posterior_coef_xt, "posterior_variance": d.posterior_variance,
              "posterior_log_variance_clipped": d.log_posterior}
    for key, table in tables.items():
        assert torch.allclose(table, formula.golden(f"schedule.{name}.{key}"), rtol=1e-9, atol=1e-12), key
    for spec in "100", "fast27":
        respaced = diffusion.Diffusion(betas, diffusion.respace(1000, spec)).betas
        assert torch.allclose(respaced, formula.golden(f"respaced.{name}.{spec}.betas"), rtol=1e-9, atol=1e-12)


def test_respacing_keeps_the_released_timesteps():
    for spec, kept in json.loads((formula.GOLDEN / "respacing.json").read_text()).items():
        assert diffusion.respace(1000, spec) == kept, f"{spec} keeps other timesteps"


def test_q_sample_gives_the_released_answer():
    x0, noise, _ = inputs()
    formula.agree(cosine().q_sample(x0, T4, noise), formula.golden("q_sample"), 1e-4)


@pytest.mark.parametrize("case", ["clip0", "clip1", "fast27"])
def test_posterior_gives_the_released_answer(case):
    d, t = cosine(), T4
    if case == "fast27":
        d, t = cosine("fast27"), formula.golden("p_mean_variance.fast27.timesteps")
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


def released(sampler, **options):
    return getattr(cosine("ddim10"), sampler)(
        formula.denoiser("base"), formula.inp("x_T", 3, 3, 16, 16), **formula.conditioning("base", "a"), **options)


def pull(x, t):
    return 0.5 * (1.5 * formula.inp("inpaint_image", 3, 3, 16, 16) - x)


def test_ddim_samples_as_the_released_code():
    formula.agree(released("ddim_sample"), formula.golden("ddim.plain"), 2e-3)
    formula.agree(released("ddim_sample", grad_fn=pull), formula.golden("ddim.grad"), 2e-3)


@pytest.mark.parametrize("key, grad_fn", [("ddpm.injected", None), ("ddpm.grad", pull)])
def test_the_ancestral_sampler_samples_as_the_released_code(key, grad_fn, monkeypatch):
    steps = iter(range(10))
    monkeypatch.setattr(diffusion, "gaussian", lambda x, g: formula.inp(f"noise_{next(steps)}", 3, 3, 16, 16))
    formula.agree(released("ddpm_sample", grad_fn=grad_fn), formula.golden(key), 2e-3)


def test_reverse_ddim_gives_the_released_answer():
    x0 = 0.5 * formula.inp("x0_image", 3, 3, 16, 16).clamp(-1, 1)
    answer = cosine("ddim10").ddim_reverse(formula.denoiser("base"), x0, **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden("ddim.reverse"), 2e-3)
