"""Exercises of lesson 4: schedules, one step back, the loss, samplers, bytes."""
from math import cos, log, pi, sqrt

from expect import close, holds, same
from oracles import (ROUGH, SHAPE, Setting, constant, draws_the_same, first_of_two, form, losses, moved,
                     prepares_once, products, refuses, section, spread, step_of, tells_onlookers, unchanged,
                     walks_down)
from pytest import fixture
from torch import Generator, arange, cat, float64, full, full_like, isfinite, rand, tensor, zeros_like
from torch.autograd import grad

POSTERIOR = {"posterior_coef_x0": "√ᾱ_{t-1}·β_t/(1-ᾱ_t)", "posterior_coef_xt": "(1-ᾱ_{t-1})·√(1-β_t)/(1-ᾱ_t)",
             "posterior_variance": "(1-ᾱ_{t-1})/(1-ᾱ_t)·β_t"}
TABLES = ("alpha_bar", "alpha_bar_prev", "alpha_bar_next", "betas", "signal", "noise", *POSTERIOR, "log_posterior")
FINE = 1e-9                 # a tolerance for tables in float64
FLOATS = "networks take float32: what is looked up in a float64 table is converted first, as extract does"


@fixture
def s(m, course, draw, rng):
    return Setting(m, course, draw, rng)


# --- 4.1 ---

def test_4_1_has_a_float64_number_for_each_step(m, rng):
    steps = rng.randint(20, 200)
    form(f"linear_betas({steps})", m.linear_betas(steps), [steps], "float64",
         "a schedule has one β for each step, in float64, for 1 - ᾱ would keep only three digits in float32")


def test_4_1_a_thousand_steps_are_the_papers(m):
    betas = m.linear_betas(1000)
    close("the first and the last of linear_betas(1000)", betas[[0, -1]], [1e-4, 0.02],
          "of 1,000 steps the first β is 1e-4 and the last is 0.02, both included", tolerance=FINE)
    close("the differences between neighbours of linear_betas(1000)", betas.diff(), [0.0199 / 999] * 999,
          "β itself rises in equal steps, and not its root or its logarithm", tolerance=FINE)


def test_4_1_fewer_steps_add_as_much_noise(m, rng):
    for steps in rng.randint(30, 300), rng.randint(1500, 3000):
        want = [1000 / steps * (1e-4 + i * (0.02 - 1e-4) / (steps - 1)) for i in range(steps)]
        close(f"linear_betas({steps})", m.linear_betas(steps), want, "β is scaled by 1000/steps, the first and the last"
              " alike: with fewer steps each is larger, and the whole process adds as much noise", tolerance=FINE)


def test_4_1_too_few_steps_are_refused(m, rng):
    for steps in 19, rng.randint(1, 18):
        refuses(f"linear_betas({steps})", lambda: m.linear_betas(steps),
                "with fewer than 20 steps the last β would exceed 1: say so with a ValueError")
    close("the last of linear_betas(20)", m.linear_betas(20)[-1:], [1.0], "20 steps are enough, and not refused")


# --- 4.2 ---

def f(share):
    """[Improved DDPM eq. 17]"""
    return cos((share + 0.008) / 1.008 * pi / 2) ** 2


def test_4_2_has_a_float64_number_for_each_step(m, rng):
    steps = rng.randint(20, 200)
    form(f"cosine_betas({steps})", m.cosine_betas(steps), [steps], "float64",
         "a schedule has one β for each step, in float64: T betas come from T + 1 values of f")


def test_4_2_starts_with_an_offset(m):
    first = float(m.cosine_betas(1000)[0])
    other = 0 < first < 1e-5 or 2e-4 < first < 1e-3
    holds("the first of cosine_betas(1000), which is to be 4.1e-5", f"{first:.2g}", not other,
          "the offset s = 0.008 keeps the first β from being too small: without it the first steps would do nothing")


def test_4_2_alpha_bar_is_a_squared_cosine(m, rng):
    for steps in rng.randint(20, 60), rng.randint(500, 900):
        close(f"all of cosine_betas({steps}) but the last", m.cosine_betas(steps)[:-1],
              [1 - f((i + 1) / steps) / f(i / steps) for i in range(steps - 1)], "ᾱ_t = f(t)/f(0), f = cos²((t/T + s)/"
              "(1 + s)·π/2), s = 0.008, and β_t = 1 - ᾱ_t/ᾱ_{t-1}, all in float64", tolerance=FINE)


def test_4_2_the_last_is_capped(m, rng):
    steps = rng.randint(20, 200)
    close(f"the last of cosine_betas({steps})", m.cosine_betas(steps)[-1:], [0.999],
          "the last β would be 1 and leave nothing of the image to divide by: it is capped at 0.999", tolerance=1e-7)


# --- 4.3 ---

def whole(m, s):
    """A process that keeps all of nine steps, and its ᾱ."""
    return m.Diffusion(s.betas[:9]), products(s.betas, range(9))


def test_4_3_has_all_tables(m, s):
    for name in TABLES:
        form(f"Diffusion(betas).{name}", getattr(whole(m, s)[0], name, None), [9], "float64",
             "other methods look up their numbers in tables of these names, with one float64 number a kept timestep")


def test_4_3_alpha_bar_is_a_product(m, s):
    betas = s.betas.clone()
    close("Diffusion(betas).alpha_bar", m.Diffusion(betas[:9]).alpha_bar, products(s.betas, range(9)),
          "ᾱ_t is the product of 1 - β over all steps up to t, with t included", tolerance=FINE)
    unchanged("Diffusion(betas)", (betas, s.betas))


def test_4_3_shares_of_signal_and_noise_are_roots(m, s):
    process, a = whole(m, s)
    for name, want, root in ("signal", a, "√ᾱ"), ("noise", [1 - x for x in a], "√(1-ᾱ)"):
        close(f"Diffusion(betas).{name}", getattr(process, name), [sqrt(x) for x in want],
              f"the share of the {name} is the square root {root}: what adds up to 1 are variances", tolerance=FINE)


def test_4_3_neighbours_are_one_step_away(m, s):
    process, a = whole(m, s)
    close("Diffusion(betas).alpha_bar_prev", process.alpha_bar_prev, [1, *a[:-1]],
          "prev is one step nearer to the picture: it starts with 1, a clean picture", tolerance=FINE)
    close("Diffusion(betas).alpha_bar_next", process.alpha_bar_next, [*a[1:], 0],
          "next is one step nearer to noise: it ends with 0, where nothing of the picture is left", tolerance=FINE)


def test_4_3_respaced_betas_keep_alpha_bar(s):
    close("alpha_bar of a process that keeps a few timesteps", s.process.alpha_bar, s.a,
          "respaced: a shorter process has the same ᾱ at each timestep that it keeps", tolerance=FINE)
    close("its alpha_bar_prev", s.process.alpha_bar_prev, [1, *s.a[:-1]],
          "respaced: a neighbour is the next timestep that is kept, not the next of all", tolerance=FINE)
    close("its betas", s.process.betas, s.new_betas, "respaced: betas are computed anew, 1 - ᾱ_t/ᾱ_{t-1} of kept"
          " timesteps, since a longer step adds more noise", tolerance=FINE)


def test_4_3_the_posterior_is_bayes_rule(s):
    close("the first of posterior_coef_x0, and of posterior_coef_xt",
          [float(getattr(s.process, name)[0]) for name in TABLES[6:8]], [1, 0], "the shares of x_0 and x_t are wrong or"
          " exchanged: the last step ends at x_0, whose share is then 1", tolerance=FINE)
    for (name, formula), want in zip(POSTERIOR.items(), (s.shares_x0, s.shares_xt, s.variances)):
        close(f"{name} of a process that keeps a few timesteps", getattr(s.process, name), list(want),
              f"q(x_(t-1) | x_t, x_0) is a product of two Gaussians, by which {name} is {formula}", tolerance=FINE)


def test_4_3_log_variance_is_finite(m, s):
    logs = [log(variance) for variance in s.variances[1:]]
    close("log_posterior from the second kept timestep on", s.process.log_posterior[1:], logs,
          "log_posterior is the logarithm of β̃, posterior_variance", tolerance=FINE)
    close("log_posterior of the first kept timestep", s.process.log_posterior[:1], logs[:1],
          "the first variance is 0 and has no logarithm: it borrows the second's", tolerance=FINE)
    alone = s.short(1)[0].log_posterior
    holds("log_posterior of a process with a single timestep", str(alone.tolist()),
          len(alone) == 1 and bool(isfinite(alone).all()), "where there is no second variance to borrow, log β will do")


def test_4_3_timesteps_keep_their_names(m, course, s):
    same("timesteps of a process that keeps a few", [*s.process.timesteps], s.kept,
         "timesteps is the ascending list of those that are kept, by their original names")
    doubled = m.Diffusion.from_config(course[4].DiffusionConfig(), "6", 0.003)
    same("timesteps of from_config(config, '6', strength=0.003)", [*doubled.timesteps], [0, 1, 2, 3],
         "timesteps that coincide are kept once")
    same("rows of a process that keeps a few timesteps", [int(row) for row in s.process.rows],
         [s.kept.index(t) if t in s.kept else -1 for t in range(len(s.betas))], "rows says in which row of the tables"
         " an original timestep is found; it is -1 where it was not kept, for which extract raises ValueError")


# --- 4.4 ---

def test_4_4_the_picture_shrinks_by_a_root(s):
    close("q_sample(x0, t, noise) without noise", s.process.q_sample(s.x0.clone(), s.t, 0 * s.x0),
          s.at(s.a).sqrt() * s.x0, "of the picture √ᾱ_t is left: the square root of ᾱ_t, at each example's own t")


def test_4_4_the_noise_grows_by_a_root(s):
    close("q_sample(x0, t, noise) of a grey picture, x0 = 0", s.process.q_sample(0 * s.x0, s.t, s.noise / 9),
          (1 - s.at(s.a)).sqrt() * s.noise / 9, "the noise's share is √(1-ᾱ_t), so that the variances add up to 1")


def test_4_4_any_picture_at_any_timestep(s):
    x0, noise = s.x0.clone(), s.noise.clone()
    x_t = s.process.q_sample(x0, s.later, noise)
    close("q_sample(x0, t, noise)", x_t, s.noisy(s.x0, s.later), "x_t = √ᾱ_t·x_0 + √(1-ᾱ_t)·ε, each at its own t")
    form("q_sample of float32 images", x_t, SHAPE, "float32", FLOATS)
    unchanged("q_sample(x0, t, noise)", (x0, s.x0), (noise, s.noise))


# --- 4.5 ---

def test_4_5_ends_at_the_picture(s):
    mean = s.process.posterior_mean(s.x0, s.noise, full(SHAPE[:1], s.kept[0]))
    close("posterior_mean(x0, x_t, t) at the first timestep that is kept", mean, s.x0, "the two shares are exchanged or"
          " wrong: one step before the first timestep is the picture itself, so x_0 counts fully and x_t not at all")


def test_4_5_shares_of_both(s):
    none, t = zeros_like(s.noise), s.later
    close("posterior_mean(x0, x_t, t) where x_t is 0", s.process.posterior_mean(s.noise / 9, none.clone(), t),
          s.at(s.shares_x0, t) * s.noise / 9, "the share of x_0 is in posterior_coef_x0, at each example's own t")
    close("posterior_mean(x0, x_t, t) where x0 is 0", s.process.posterior_mean(none, s.noise / 9, t),
          s.at(s.shares_xt, t) * s.noise / 9, "the share of x_t is in posterior_coef_xt, at each example's own t")


def test_4_5_the_mean_by_bayes_rule(s):
    x0, x_t = s.noise.clone(), s.x_T.clone()
    mean = s.process.posterior_mean(x0, x_t, s.t)
    close("posterior_mean(x0, x_t, t)", mean, s.at(s.shares_x0) * s.noise + s.at(s.shares_xt) * s.x_T,
          "the mean is a mixture: one table times x_0 plus the other times x_t")
    form("posterior_mean of float32 images", mean, SHAPE, "float32", FLOATS)
    unchanged("posterior_mean(x0, x_t, t)", (x0, s.noise), (x_t, s.x_T))


# --- 4.6 ---

def test_4_6_answers_a_gaussian_step(s):
    step = step_of(s, s.x0)
    same("the fields of what p_mean_variance returns", [*getattr(type(step), "_fields", [])],
         ["mean", "log_variance", "x0"], "it returns a GaussianStep, whose parts have names")
    for name in step._fields:
        form(f"{name} for 2C channels", getattr(step, name), SHAPE, "float32",
             "half of the 2C channels are for the noise and half for the variance: what comes of them has C")


def test_4_6_half_of_the_channels_are_noise(s):
    close("the predicted x0, if the noise was guessed rightly", step_of(s, s.x0).x0, s.x0,
          "the first C channels are the guess at ε, from which x_0 = (x_t - √(1-ᾱ)·ε)/√ᾱ follows")


def test_4_6_clips_the_predicted_picture(s):
    for options, x0, idea in (({}, (3 * s.x0).clamp(-1, 1), "the predicted x_0 is clipped to [-1, 1], and neither x_t"
                              " nor the mean"), ({"clip": False}, 3 * s.x0, "with clip=False nothing is clipped")):
        step = step_of(s, 3 * s.x0, **options)
        close(f"the predicted x0 that was far from [-1, 1], with {options}", step.x0, x0, idea, tolerance=ROUGH)
        close(f"its mean, with {options}", step.mean, s.own.posterior_mean(x0, s.noisy(3 * s.x0), s.t),
              f"the mean is computed from the x_0 that was clipped; {idea}", tolerance=ROUGH)


def test_4_6_x0_fn_comes_before_the_clip(s):
    seen, want = [], (1.7 - 6 * s.x0).clamp(-1, 1)
    step = step_of(s, 3 * s.x0, x0_fn=lambda x: seen.append(x.clone()) or 1.7 - 2 * x)
    same("how often x0_fn is called", len(seen), 1, "x0_fn may change the predicted x_0, so it has to be called")
    close("what x0_fn is given", seen[0], 3 * s.x0, "x0_fn comes before the clip: it is given x_0 as it was predicted",
          tolerance=ROUGH)
    close("x0 after x0_fn", step.x0, want, "x0_fn comes before the clip, which clips what it returned", tolerance=ROUGH)
    close("the mean after x0_fn", step.mean, s.own.posterior_mean(want, s.noisy(3 * s.x0), s.t),
          "the mean is computed from what x0_fn made of x_0", tolerance=ROUGH)


def test_4_6_the_variance_lies_between_two(s):
    high, low = s.at([log(b) for b in s.new_betas]), s.at([log(x) for x in (s.variances[1], *s.variances[1:])])
    for v, want, idea in (
            (1, high, "v = 1 stands for log β, the larger variance (and v = -1 for log β̃, of posterior_variance)"),
            (-1, low, "v runs from -1 to 1, so the share of log β is (v+1)/2: at v = -1 nothing of it is left"),
            (0, (high + low) / 2, "the logarithms of β and β̃ are interpolated, not the variances themselves")):
        close(f"log_variance where v = {v}", step_of(s, s.x0, v).log_variance, want.expand(SHAPE), idea)


def test_4_6_any_answer(s):
    output, x_t = cat([s.noise, s.v], dim=1), s.x_T.clone()
    copy = output.clone()
    for clip in True, False:
        step, want = (d.p_mean_variance(output, x_t, s.t, clip, lambda x: x - 0.2) for d in (s.process, s.own))
        for name in want._fields:
            close(f"{name} of p_mean_variance(output, x_t, t, clip={clip}, x0_fn=…)", getattr(step, name), getattr(
                want, name), "x_0 from ε, x0_fn, clip, mean; log σ² = v'·log β + (1-v')·log β̃ for any v, without clip")
    unchanged("p_mean_variance(output, x_t, t)", (output, copy), (x_t, s.x_T))


# --- 4.7 ---

def test_4_7_is_one_number_for_each_example(s):
    loss, *_ = losses(s, s.t, s.off, s.v)
    form("loss(model, x0, t, noise)", loss, SHAPE[:1], "float32", "the mean runs over all but the batch: [B], float32")
    holds("loss(…).requires_grad", "False", loss.requires_grad, "nothing can be learned from a loss without gradient")


def test_4_7_asks_the_model_about_x_t(s):
    asked = []
    s.process.loss(lambda x, t, **cond: asked.append((x, t.tolist(), cond)) or cat([x, x], 1), s.x0, s.t, s.noise,
                   word="red")
    close("what the model is shown", asked[0][0], s.noisy(s.x0), "the model sees x_t = q_sample(x0, t, noise)")
    same("what else it is told, and how often", [other for _, *other in asked], [[s.t.tolist(), {"word": "red"}]],
         "the model is asked once, with the original timesteps and the conditioning as it is")


def test_4_7_variance_channels_are_not_compared_with_noise(s):
    loss, _, output = losses(s, s.later, 0 * s.off, full_like(s.v, -1))
    slope = grad(loss.sum(), output)[0][:, 3:]
    close("the loss's gradient on the variance channels where they are as good as can be (β̃, and ε is right)", slope,
          0 * slope, "the squared error counts the noise channels only: the bound alone trains the variance channels")


def test_4_7_the_bound_trains_the_variance(s):
    loss, bound, output = losses(s, s.t, s.off / 2, s.v / 2)
    slope, want = (grad(x.sum(), output, retain_graph=True)[0][:, 3:] for x in (loss, bound))
    holds("the loss's gradient on the variance channels", "zero everywhere", bool((slope != 0).any()),
          "the variance is never trained: inside the bound only the noise channels are detached")
    close("the loss's gradient on the variance channels, as a share of the largest that T/1000·bound has",
          slope / want.abs().max(), want / want.abs().max(),
          "the bound L_t counts T/1000, where T is the number of timesteps kept", tolerance=ROUGH)


def test_4_7_the_target_is_the_noise(s):
    loss, *_ = losses(s, s.later, 0 * s.off, full_like(s.v, -1))
    close("the loss of the right noise with the right variance", loss, 0 * loss,
          "the target is the noise, so that its right guess has no error (nor a bound, at these timesteps)")


def test_4_7_simple_loss_is_a_mean_square(s):
    loss, bound, _ = losses(s, s.later, s.off, s.v / 2)
    close("the loss without T/1000·bound", loss - bound, s.off.square().mean((1, 2, 3)), "L_simple is the mean square"
          " of the error over an example's numbers, neither a sum nor a half, and the bound is added", tolerance=ROUGH)


def test_4_7_the_bound_does_not_teach_the_mean(s):
    loss, _, output = losses(s, s.t, s.off / 2, s.v / 2)
    close("the loss's gradient on the noise channels, times C·H·W", 60 * grad(loss.sum(), output)[0][:, :3], s.off,
          "the bound must not teach the mean: inside it ε is detached, and its gradient is L_simple's", tolerance=ROUGH)


def test_4_7_weights_multiply_the_squared_error(s):
    weights = tensor([1 + 3 * variance + s.scale for variance in s.variances], dtype=float64)
    more, less = (losses(s, s.later, s.off, s.v / 2, w)[0] for w in (weights, None))
    want = (s.at(weights.tolist(), s.later).flatten() - 1) * s.off.square().mean((1, 2, 3))
    close("what weights add to the loss", more - less, want, "weights is a table by kept timesteps, by which the"
          " squared error in ε is multiplied, and not the bound", tolerance=ROUGH)


def test_4_7_any_answer(s):
    loss, bound, _ = losses(s, s.t, s.off, s.v)
    close("loss(model, x0, t, noise)", loss, s.off.square().mean((1, 2, 3)) + bound,
          "L_simple + T/1000·L_t, where L_t is bound(output, x0, x_t, t)", tolerance=ROUGH)


# --- 4.8 ---

def test_4_8_from_noise_to_picture(s):
    walks_down(s, "ddpm")


def test_4_8_prepares_the_prompt_once(s):
    prepares_once(s, "ddpm")


def test_4_8_tells_step_fn_and_callback(s):
    tells_onlookers(s, "ddpm")


def test_4_8_the_last_step_adds_no_noise(s):
    model, _ = constant(s.noise, s.v)
    one, two = (s.short(1)[0].ddpm_sample(model, s.x_T, generator=Generator().manual_seed(k)) for k in s.seeds[:2])
    close("two drawings of a process of one step, from the same x_T", one, two,
          "the last step, from timesteps[0], adds no noise: no step comes after it that could remove it")


def test_4_8_noise_has_the_standard_deviation(s):
    x_T, eps, v = (full((4000, 1, 1, 1), number) for number in (s.scale, 0.3, s.scale - 0.5))
    p = s.short(2)[1].p_mean_variance(cat([eps, v], 1), x_T, full((4000,), s.kept[1]))
    spread("the spread of 4,000 images after a step before which they were alike", first_of_two(s, "ddpm", x_T, eps, v),
           float((0.5 * p.log_variance[0]).exp()), "each image gets fresh noise times σ = exp(½·log σ²), the standard"
           " deviation")


def test_4_8_noise_surrounds_the_mean(s):
    tiny, t = full_like(s.v, -1e5), full(SHAPE[:1], s.kept[1])
    close("x after a step whose variance is next to 0", first_of_two(s, "ddpm", s.x_T, s.noise, tiny),
          s.short(2)[1].p_mean_variance(cat([s.noise, tiny], 1), s.x_T, t).mean,
          "x_{t-1} is drawn round the mean of p_mean_variance")


def test_4_8_the_gradient_is_multiplied_by_the_variance(s):
    p = s.short(1)[1].p_mean_variance(cat([s.noise, s.v], 1), s.x_T, full(SHAPE[:1], s.kept[0]))
    close("how far grad_fn moves what a process of one step draws", moved(s, "ddpm"), p.log_variance.exp() * s.off / 10,
          "μ̂ = μ + Σ·g: the gradient is multiplied by the variance σ², not by σ, and added")


def test_4_8_draws_what_the_course_draws(s):
    draws_the_same(s, "ddpm")


# --- 4.9 ---

def test_4_9_from_noise_to_picture(s):
    walks_down(s, "ddim")


def test_4_9_prepares_the_prompt_once(s):
    prepares_once(s, "ddim")


def test_4_9_tells_step_fn_and_callback(s):
    tells_onlookers(s, "ddim")


def test_4_9_ends_at_the_predicted_picture(s):
    model, _ = constant(s.noise, s.v)
    for eta in 0.0, 1.0:
        x = s.short(1)[0].ddim_sample(model, s.noisy(s.x0, full(SHAPE[:1], s.kept[0])), eta=eta)
        close(f"what one step draws, if the noise was guessed rightly, with eta={eta:g}", x, s.x0, "the last step ends"
              " at the predicted x_0: there ᾱ is 1, and neither old nor fresh noise is left", tolerance=ROUGH)


def test_4_9_mixes_the_same_noise_in_the_proportion_of_the_step_before(s):
    now, before = (full(SHAPE[:1], k) for k in (s.kept[1], s.kept[0]))
    close("x after the first of two steps, if the noise was guessed rightly",
          first_of_two(s, "ddim", s.noisy(s.x0, now), s.noise), s.noisy(s.x0, before), "x_{t-1} = √ᾱ_{t-1}·x̂_0 +"
          " √(1-ᾱ_{t-1})·ε̂: the same noise, in the proportion of the step before, alpha_bar_prev", tolerance=ROUGH)


def test_4_9_the_noise_fits_the_clipped_picture(s):
    a, b = s.a[:2]
    x0 = ((4 * s.x_T - sqrt(1 - b) * s.noise) / sqrt(b)).clamp(-1, 1)
    eps = (4 * s.x_T - sqrt(b) * x0) / sqrt(1 - b)
    close("x after a step whose x0 had to be clipped", first_of_two(s, "ddim", 4 * s.x_T, s.noise),
          sqrt(a) * x0 + sqrt(1 - a) * eps, "when x_0 is clipped, ε̂ becomes the noise that fits the clipped one, as"
          " predict returns it", tolerance=ROUGH)


def test_4_9_eta_brings_fresh_noise(s):
    (a, b), eta, eps = s.a[:2], 0.4 + s.scale / 2, full((4000, 1, 1, 1), 3.0)
    x = first_of_two(s, "ddim", sqrt(b) * s.scale + sqrt(1 - b) * eps, eps, eps, eta=eta)
    sigma = eta * sqrt(s.variances[1])
    spread(f"the spread of 4,000 images after a step with eta={eta:.2f} before which they were alike", x, sigma,
           "fresh noise has the standard deviation σ = eta·√β̃: eta times the root of posterior_variance")
    close("their mean", [float(x.mean())], [sqrt(a) * s.scale + sqrt(1 - a - sigma ** 2) * 3],
          "fresh noise replaces old noise, of which √(1-ᾱ_{t-1}-σ²) stays", tolerance=6 * sigma / 4000 ** 0.5)


def test_4_9_the_gradient_shifts_the_noise(s):
    a = s.a[0]
    close("how far grad_fn moves what a process of one step draws", moved(s, "ddim"), (1 - a) / sqrt(a) * s.off / 10,
          "ε̂ = ε - √(1-ᾱ)·g, and x̂_0 follows from it: predict does both, if it is given grad_fn", tolerance=ROUGH)


def test_4_9_draws_what_the_course_draws(s):
    draws_the_same(s, "ddim")
    draws_the_same(s, "ddim", eta=s.scale)


# --- 4.10 ---

def test_4_10_keeps_both_ends(m, rng):
    steps = rng.randint(200, 1000)
    count, want = section(rng, steps)
    same(f"respace({steps}, '{count}')", m.respace(steps, str(count)), want,
         "evenly spaced from 0 to the last, both ends included, each rounded to the nearest whole timestep")


def test_4_10_each_section_has_its_own_count(m, rng):
    for rest in 0, 1, 2:
        sizes = [100 + (i < rest) for i in range(3)]
        parts = [section(rng, size, sum(sizes[:i])) for i, size in enumerate(sizes)]
        spec = ",".join(str(count) for count, _ in parts)
        same(f"respace({300 + rest}, '{spec}')", m.respace(300 + rest, spec), sum((kept for _, kept in parts), []),
             "sections are as equal as can be, and the first is nearest to the picture; each keeps its own number, both"
             " ends included" + "; what does not divide goes to the first ones, a timestep to each" * bool(rest))


def test_4_10_a_last_section_of_one_keeps_its_noisiest(m, rng):
    steps = rng.randint(100, 1000)
    for spec, size, want in ("1", steps, [steps - 1]), ("1,1", 2 * steps, [0, 2 * steps - 1]), (
            "2,1", 2 * steps, [0, steps - 1, 2 * steps - 1]):
        same(f"respace({size}, '{spec}')", m.respace(size, spec), want,
             "sampling starts at the last timestep kept: a single one of the last section is the noisiest")


def test_4_10_fast27(m):
    same("the end of respace(1000, 'fast27')", m.respace(1000, "fast27")[-8:], [399, 400, 500, 599, 600, 799, 800, 997],
         "fast27 is 10,10,3,2,2 with its last timestep moved from 999 to 997")


def test_4_10_ddim_strides_are_whole(m, rng):
    stride, count = rng.randint(3, 9), rng.randint(20, 40)
    steps = stride * count - rng.randint(0, stride - 1)      # no other stride keeps as many
    same(f"respace({steps}, 'ddim{count}')", m.respace(steps, f"ddim{count}"), [*range(0, steps, stride)],
         "ddim's timesteps begin at 0 and lie a whole stride apart")


def test_4_10_what_cannot_be_met_is_refused(m, rng):
    steps = rng.randint(100, 300)
    for spec in f"{steps + 1}", f"{steps // 2 + 2},1", f"1,{steps // 2 + 2}", f"ddim{steps - 1}", "ten", "5,,5", "0":
        refuses(f"respace({steps}, '{spec}')", lambda: m.respace(steps, spec),
                "what cannot be met is refused with a ValueError: more timesteps than a section has, a stride that is"
                " not whole, or no number above 0")
    same("respace(100, '100')", m.respace(100, "100"), [*range(100)], "all timesteps may be kept")


# --- 4.11 ---

def test_4_11_ends_are_0_and_255(m, rng):
    shape = [rng.randint(1, 4) for _ in range(rng.randint(1, 5))]
    form(f"to_bytes of shape {shape}", m.to_bytes(rand(shape)), shape, "uint8", "8-bit images are uint8, in any shape")
    close("to_bytes(tensor([-1., 1.]))", m.to_bytes(tensor([-1.0, 1.0])), [0, 255],
          "-1 becomes 0 and 1 becomes 255: add 1, then multiply by 127.5", tolerance=0)


def test_4_11_bytes_do_not_wrap_around(m, rng):
    beyond = tensor([rng.uniform(1.01, 3) for _ in range(6)])
    for x, want in (beyond, 255), (-beyond, 0):
        close(f"to_bytes of {x[0]:.2f} and other values beyond ±1", m.to_bytes(x.clone()), [want] * 6,
              "values beyond ±1 are clipped, for bytes wrap around", tolerance=0)


def test_4_11_values_are_rounded(m, rng):
    whole = [rng.randint(1, 253) for _ in range(20)]
    for part in 0.8, 0.2:
        x = ((tensor(whole, dtype=float64) + part) / 127.5 - 1).float()
        close(f"to_bytes of what is {whole[0] + part} on a scale to 255, and so on", m.to_bytes(x), [
            n + round(part) for n in whole], "values are rounded: the conversion would cut the fraction", tolerance=0)


def test_4_11_every_byte_comes_back(m):
    values = (arange(256) / 127.5 - 1).view(4, 1, 8, 8)
    kept = values.clone()
    close("to_bytes of n/127.5 - 1, for n = 0 … 255", m.to_bytes(values), arange(256).view(4, 1, 8, 8),
          "an image that came from bytes becomes the same bytes again", tolerance=0)
    unchanged("to_bytes(x)", (values, kept))
