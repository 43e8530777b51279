"""Classifier-free guidance: released answers, and what the scale does to a distribution one knows."""
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import formula

diffusion, guidance = import_module("04_diffusion"), import_module("05_guidance")
T = torch.tensor([0, 500, 999])
MEANS = torch.tensor([[-0.4, 0.0], [0.2, 0.3], [0.3, -0.3]]).view(3, 2, 1, 1)


def oracle(d, std=0.15):
    return diffusion.MixtureDenoiser(d, MEANS, std)


def prompt(n, which=1):
    return {"tokens": torch.full((n, 1), which), "mask": torch.ones(n, 1, dtype=torch.bool)}


def process(spec=None):
    return diffusion.Diffusion.of(diffusion.DiffusionConfig(), spec)


def test_guided_denoiser_gives_the_released_answer():
    model = guidance.classifier_free(formula.denoiser("base"), 3)
    with torch.no_grad():
        answer = model(formula.inp("x", 3, 3, 16, 16), T, **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden("cfg3.output"), 1e-4)


@pytest.mark.parametrize("scale", [1, 3])
def test_guided_walk_gives_the_released_answer(scale):
    model, d = guidance.classifier_free(formula.denoiser("base"), scale), process("ddim10")
    answer = d.ddim_sample(model, formula.inp("x_T", 3, 3, 16, 16), **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden(f"ddim.cfg{scale}"), 2e-3)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_goes_along_the_line_between_two_guesses(scale):
    model, x = oracle(process()), torch.randn(3, 2, 1, 1)
    with_prompt, without = model(x, T, **prompt(3)), model(x, T)
    answer = guidance.classifier_free(model, scale)(x, T, **prompt(3))
    expected = without[:, :2] + scale * (with_prompt[:, :2] - without[:, :2])
    assert torch.allclose(answer[:, :2], expected, atol=1e-5), "ε̂ = ε_∅ + s·(ε_c - ε_∅)"
    assert torch.equal(answer[:, 2:], with_prompt[:, 2:]), "the variance is the conditional branch's, unguided"


def test_the_papers_other_form_is_the_same_line():
    """Ho & Salimans write (1+w)·ε_c - w·ε_∅: s = 1 + w."""
    model, x = oracle(process()), torch.randn(3, 2, 1, 1)
    e_c, e_0 = model(x, T, **prompt(3))[:, :2], model(x, T)[:, :2]
    answer = guidance.classifier_free(model, 3.0)(x, T, **prompt(3))[:, :2]
    assert torch.allclose(answer, 3 * e_c - 2 * e_0, atol=1e-5)


def test_both_branches_are_one_batch_and_every_condition_is_doubled():
    seen = []

    def model(x, t, **cond):
        seen.append((x, t, cond))
        return torch.zeros(len(x), 6, 2, 2)
    cond = {"tokens": torch.tensor([[1, 2], [3, 4], [5, 6]]), "mask": torch.tensor([[True, True], [True, False], [False, False]]),
            "low_res": torch.rand(3, 3, 1, 1)}
    before = {name: value.clone() for name, value in cond.items()}
    x = torch.randn(3, 3, 2, 2)
    guidance.classifier_free(model, 3)(x, T, **cond)
    (x2, t2, inner), = seen
    assert torch.equal(x2, torch.cat([x, x])) and torch.equal(t2, torch.cat([T, T])), "the same x_t twice"
    assert torch.equal(inner["low_res"], torch.cat([cond["low_res"]] * 2))
    assert torch.equal(inner["mask"][:3], before["mask"]) and not inner["mask"][3:].any(), "the second half: no prompt"
    assert all(torch.equal(cond[name], before[name]) for name in cond), "the caller's tensors are left alone"


def test_a_prepared_guided_model_answers_the_same():
    model, cond = guidance.classifier_free(formula.denoiser("upsample"), 3), formula.conditioning("upsample", "a")
    x = formula.inp("x", 3, 3, 16, 16)
    with torch.no_grad():
        assert torch.equal(model(x, T, **cond), model(x, T, **model.prepare(**cond)))


@pytest.mark.parametrize("sampler", ["ddim_sample", "dpm_sample"])
def test_scale_trades_variety_for_certainty(sampler):
    """On a mixture whose parts overlap: the larger s, the surer is the part that was asked for, and the narrower."""
    d, n = process("50"), 2000
    surest, spread = [], []
    for scale in (0, 1, 3):
        g = torch.Generator().manual_seed(0)
        model = guidance.classifier_free(oracle(d, 0.3), scale)
        drawn = getattr(d, sampler)(model, torch.randn(n, 2, 1, 1, generator=g), **prompt(n)).flatten(1)
        nearest = (drawn[:, None] - MEANS.flatten(1)).norm(dim=2).argmin(1)
        surest.append((nearest == 1).float().mean().item())
        spread.append(drawn.var(0).sum().item())
    assert surest[0] < 0.45 < surest[1] < surest[2], f"share of the prompt's own part by scale: {surest}"
    assert spread[0] > spread[1] > spread[2], f"variance by scale: {spread}"


# --- Noised CLIP ---

def clip():
    return import_module("09_sample").load_openai_clip(*(formula.state_dict(f"clip/{tower}-enc", "a")
                                                         for tower in ("image", "text")))


CLIP_TEXT = formula.toks("clip_tokens", 3, 16, 96), torch.tensor([16, 7, 2])


@torch.no_grad()
def test_clip_towers_give_the_released_answers():
    formula.agree(clip().text(*CLIP_TEXT), formula.golden("clip.text"), 1e-4)
    formula.agree(clip().image(formula.inp("x", 3, 3, 16, 16), T), formula.golden("clip.image"), 1e-4)


def test_clip_guidance_gives_the_released_gradient():
    model = clip()
    with torch.no_grad():
        grad_fn = guidance.clip_guidance(model, model.text(*CLIP_TEXT), 1.0)
        answer = grad_fn(formula.inp("x", 3, 3, 16, 16), T)       # it turns gradients on itself
    formula.agree(answer, formula.golden("clip.grad"), 1e-4)
    assert all(p.grad is None for p in model.parameters()), "a guide is not trained by guiding"


def test_clip_guidance_is_the_slope_of_the_logit():
    """Against finite differences in float64, along a direction of its own for every example."""
    model = clip().double()
    x, text = formula.inp("x", 3, 3, 16, 16).double(), F.normalize(torch.randn(3, 48, dtype=torch.float64), dim=-1)
    direction, h = torch.randn(x.shape, dtype=torch.float64), 1e-5

    @torch.no_grad()      # without gradients attention is the fused one, in float64 throughout
    def logits(x):
        return 3.0 * 100 * (model.image(x, T) * text).sum(1)

    slope = (logits(x + h * direction) - logits(x - h * direction)) / (2 * h)
    gradient = guidance.clip_guidance(model, text, 3.0)(x, T)
    along = (gradient * direction).flatten(1).sum(1)
    assert torch.allclose(along, slope, rtol=1e-3), f"gradient {along.tolist()}, finite differences {slope.tolist()}"


@torch.no_grad()
def test_padding_never_reaches_a_caption():
    """The tower is causal and reads the end token: what stands behind it cannot matter."""
    tokens, lengths = CLIP_TEXT
    other = tokens.clone()
    other[1, 7:], other[2, 2:] = 0, 95
    assert torch.allclose(clip().text(tokens, lengths), clip().text(other, lengths), atol=1e-6)


@torch.no_grad()
def test_clip_answers_unit_vectors_that_know_the_timestep():
    model, x = clip(), formula.inp("x", 3, 3, 16, 16)
    early, late = (model.image(x, torch.full((3,), t)) for t in (0, 999))
    assert torch.allclose(early.norm(dim=1), torch.ones(3), atol=1e-5)
    assert (early - late).abs().max() > 1e-2, "the same picture means something else at another noise level"


@pytest.mark.parametrize("sampler", ["ddpm_sample", "ddim_sample", "dpm_sample"])
def test_a_guided_walk_ends_where_the_caption_fits_better(sampler):
    """Pictures of a plain Gaussian, walked to from the same noise with and without the pull."""
    model, d = clip(), process("20")
    text = model.text(*CLIP_TEXT).detach()
    pictures = diffusion.MixtureDenoiser(d, torch.zeros(1, 3, 16, 16), 0.5)
    fit = []
    for grad_fn in (None, guidance.clip_guidance(model, text, 1.0)):
        g = torch.Generator().manual_seed(0)
        x = getattr(d, sampler)(pictures, torch.randn(3, 3, 16, 16, generator=g), grad_fn=grad_fn, generator=g)
        fit.append((model.image(x, torch.zeros(3, dtype=torch.long)) * text).sum(1))
    assert (fit[1] > fit[0] + 0.05).all(), f"similarity {fit[0].tolist()} unguided, {fit[1].tolist()} guided"


@pytest.mark.parametrize("preset", ["filtered", "paper"])
def test_released_clip_sizes_to_the_last_parameter(preset):
    with torch.device("meta"):   # shapes without memory
        model = guidance.NoisedCLIP(import_module("08_train").PRESETS[preset]["clip"].network)
    assert [sum(p.numel() for p in tower.parameters()) for tower in (model.picture, model.caption)] == [86_443_776, 71_679_488]
