"""Classifier-free guidance, on a distribution one knows; the noised CLIP and its gradient; released answers."""
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import formula
import small

tokenizer, transformer, unet, diffusion, guidance = (import_module(m) for m in (
    "01_tokenizer", "02_transformer", "03_unet", "04_diffusion", "05_guidance"))
T = torch.tensor([0, 500, 999])
MEANS = torch.tensor([[-0.4, 0.0], [0.2, 0.3], [0.3, -0.3]]).view(3, 2, 1, 1)


def oracle(d, std=0.15):
    return diffusion.MixtureDenoiser(d, MEANS, std)


def prompt(n, which=1):
    return {"tokens": torch.full((n, 1), which), "mask": torch.ones(n, 1, dtype=torch.bool)}


def process(spec=None):
    return diffusion.Diffusion.from_config(diffusion.DiffusionConfig(), spec)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5])
def test_guidance_goes_along_the_line_between_two_guesses(scale):
    model, x = oracle(process()), torch.randn(3, 2, 1, 1)
    with_prompt, without = model(x, T, **prompt(3)), model(x, T)
    answer = guidance.classifier_free(model, scale)(x, T, **prompt(3))
    expected = without[:, :2] + scale * (with_prompt[:, :2] - without[:, :2])
    assert torch.allclose(answer[:, :2], expected, atol=1e-4), "ε̂ = ε_∅ + s·(ε_c - ε_∅)"
    assert torch.allclose(answer[:, 2:], with_prompt[:, 2:], atol=1e-4), "the variance is the prompted one"


def test_the_papers_other_form_is_the_same_line():
    """Ho & Salimans write (1+w)·ε_c - w·ε_∅: s = 1 + w."""
    model, x = oracle(process()), torch.randn(3, 2, 1, 1)
    e_c, e_0 = model(x, T, **prompt(3))[:, :2], model(x, T)[:, :2]
    answer = guidance.classifier_free(model, 3.0)(x, T, **prompt(3))[:, :2]
    assert torch.allclose(answer, 3 * e_c - 2 * e_0, atol=1e-4), "s = 3 is (1+w)·ε_c - w·ε_∅ for w = 2"


def test_both_branches_are_one_batch_and_every_condition_is_doubled():
    seen = []

    def model(x, t, **cond):
        seen.append((x, t, cond))
        return torch.zeros(len(x), 6, 2, 2)
    x, mask = torch.randn(3, 3, 2, 2), torch.tensor([[True, True], [True, False], [False, False]])
    cond = {"tokens": torch.tensor([[1, 2], [3, 4], [5, 6]]), "mask": mask.clone(), "low_res": torch.rand(3, 3, 1, 1)}
    guidance.classifier_free(model, 3)(x, T, **cond)
    (x2, t2, inner), = seen
    assert torch.equal(x2, torch.cat([x, x])) and torch.equal(t2, torch.cat([T, T])), "both branches see the same x_t"
    assert torch.equal(inner["low_res"], torch.cat([cond["low_res"]] * 2)), "the low-resolution image is no prompt"
    assert torch.equal(inner["mask"][:3], mask) and not inner["mask"][3:].any(), "the second half has the empty caption"
    assert torch.equal(cond["mask"], mask), "the caller's tensors are not changed"


def test_a_prepared_guided_model_answers_the_same():
    network = small.randomize(unet.UNet(unet.UNET["tiny"])).eval()
    model, x = guidance.classifier_free(network, 3), torch.randn(3, 3, 16, 16)
    cond = {"tokens": torch.arange(60).view(3, 20), "mask": torch.arange(20) < torch.tensor([[20], [5], [0]])}
    with torch.no_grad():
        assert torch.equal(model(x, T, **cond), model(x, T, **model.prepare(**cond))), "prepare saves time only"


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

CLIP_TEXT = formula.toks("clip_tokens", 3, 16, 96), torch.tensor([16, 7, 2])


def clip(**sizes):
    """A small noised CLIP for images of 16 pixels; its random weights are large enough to tell its inputs apart."""
    text = transformer.TextConfig(vocab_size=512, context=20, width=32, layers=1, heads=1)
    config = replace(guidance.CLIP["tiny"], width=32, layers=1, heads=1, text=text, embedding=32, **sizes)
    torch.manual_seed(0)
    return guidance.NoisedCLIP(config).eval()


def test_clip_guidance_is_the_slope_of_the_logit():
    """Against finite differences in float64, along a direction of its own for every example."""
    model = clip().double()
    x, text = torch.randn(3, 3, 16, 16).double(), F.normalize(torch.randn(3, 32, dtype=torch.float64), dim=-1)
    direction, h = torch.randn(x.shape, dtype=torch.float64), 1e-5

    @torch.no_grad()      # without gradients attention is the fused one, in float64 throughout
    def logits(x):
        return 3.0 * 100 * (model.image(x, T) * text).sum(1)

    slope = (logits(x + h * direction) - logits(x - h * direction)) / (2 * h)
    gradient = guidance.clip_guidance(model, text, 3.0)(x, T)
    along = (gradient * direction).flatten(1).sum(1)
    # attention in training takes its softmax in float32, so six digits agree at best
    assert torch.allclose(along, slope, rtol=1e-3), f"gradient {along.tolist()}, finite differences {slope.tolist()}"
    assert all(p.grad is None for p in model.parameters()), "a guide is not trained by guiding"


@torch.no_grad()
def test_padding_never_reaches_a_caption():
    tokens, lengths = CLIP_TEXT
    other = tokens.clone()
    other[1, 7:], other[2, 2:] = 0, 95
    same = torch.allclose(clip().text(tokens, lengths), clip().text(other, lengths), atol=1e-5)
    assert same, "the encoder is causal and reads the end token, so what stands behind it cannot matter"


@torch.no_grad()
def test_clip_answers_unit_vectors_that_know_the_timestep():
    model, x = clip(), torch.randn(3, 3, 16, 16)
    early, late = (model.image(x, torch.full((3,), t)) for t in (0, 999))
    assert torch.allclose(early.norm(dim=1), torch.ones(3), atol=1e-5), "only directions are compared"
    assert (early - late).abs().max() > 1e-2, "the same image means something else at another noise level"


@pytest.mark.parametrize("sampler", ["ddpm_sample", "ddim_sample", "dpm_sample"])
def test_the_pull_of_clip_ends_where_the_caption_fits_better(sampler):
    """Images of a plain Gaussian, sampled from the same noise with and without guidance."""
    model, d, n = clip(), process("20"), 24
    text = model.text(*CLIP_TEXT).detach()[1:2]
    images, fit = diffusion.MixtureDenoiser(d, torch.zeros(1, 3, 16, 16), 0.5), []
    for grad_fn in (None, guidance.clip_guidance(model, text, 1.0)):
        g = torch.Generator().manual_seed(0)
        x = getattr(d, sampler)(images, torch.randn(n, 3, 16, 16, generator=g), grad_fn=grad_fn, generator=g)
        with torch.no_grad():
            fit.append((model.image(x, torch.zeros(n, dtype=torch.long)) @ text[0]).mean().item())
    assert fit[1] > fit[0] + 0.1, f"the mean similarity is {fit[0]:.2f} without the pull and {fit[1]:.2f} with it"


@pytest.mark.parametrize("preset", ["filtered", "paper"])
def test_released_clip_sizes_to_the_last_parameter(preset):
    with torch.device("meta"):   # shapes without memory
        model = guidance.NoisedCLIP(guidance.CLIP[preset])
    counts = [unet.parameters(encoder) for encoder in (model.image_encoder, model.caption_encoder)]
    assert counts == [86_443_776, 71_679_488], f"the encoders have {counts} parameters"


def test_the_tiny_clip_is_small_enough_to_come_along():
    with torch.device("meta"):
        model = guidance.NoisedCLIP(guidance.CLIP["tiny"])
    assert model.config.size == 16 and model.config.text.vocab_size >= tokenizer.world_tokenizer().vocab_size
    size = 2 * sum(p.numel() for p in model.parameters())
    assert size < 2_500_000, f"{size:,} bytes in 16 bits"


# --- Captions for both tokenizers ---

def test_the_worlds_captions_end_with_an_end_token_that_counts():
    tok = tokenizer.world_tokenizer()
    words = guidance.encode_clip(["a red heart", ""], tok, 6)
    assert words["tokens"].tolist() == [[*tok.encode("a red heart"), *[tok.end_token] * 3], [tok.end_token] * 6]
    assert words["lengths"].tolist() == [4, 1], "the first end token is the one that is read, even of nothing"


def test_clips_captions_are_padded_by_its_own_tokenizer():
    tok = tokenizer.CLIPTokenizer([])
    words = guidance.encode_clip(["ab", "a b c"], tok, 8)
    padded = [tok.pad(tok.encode(text), 8) for text in ("ab", "a b c")]
    assert words["tokens"].tolist() == [ids for ids, _ in padded]
    assert words["lengths"].tolist() == [length for _, length in padded] == [4, 5]


@pytest.mark.parametrize("tok", [tokenizer.world_tokenizer(), tokenizer.CLIPTokenizer([])], ids=["world", "clip"])
def test_a_caption_that_is_cut_keeps_its_end_token(tok):
    words = guidance.encode_clip(["a red heart above a blue star", "a"], tok, 5)
    last = words["tokens"].gather(1, words["lengths"][:, None] - 1)
    assert words["tokens"].shape == (2, 5) and words["lengths"][0] == 5
    assert (last == tok.end_token).all()


@torch.no_grad()
def test_the_longest_caption_of_a_batch_changes_no_other():
    model, tok = clip(), tokenizer.world_tokenizer()
    both = guidance.encode_clip(["a red heart", "a small red heart on a white background"], tok, 20)
    alone = guidance.encode_clip(["a red heart"], tok, 20)
    assert torch.allclose(model.text(**both)[:1], model.text(**alone), atol=1e-5), "captions do not affect each other"


# --- Weight files ---

def test_a_clip_comes_back_as_it_went(tmp_path):
    model = clip()
    unet.save_weights(tmp_path / "clip.pt", model)
    again = guidance.NoisedCLIP.load(tmp_path / "clip.pt")
    assert again.config == model.config and not again.training
    for (key, value), back in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(value.half().float(), back), key


@pytest.mark.parametrize("what", ["nothing", "a U-Net", "other sizes"])
def test_what_is_no_clip_is_refused_in_one_line(tmp_path, what):
    path, model = tmp_path / "clip.pt", clip()
    if what == "a U-Net":
        unet.save_weights(path, unet.UNet(unet.UNET["tiny"]))
    elif what == "other sizes":
        model.config = guidance.CLIP["tiny"]
        unet.save_weights(path, model)
    with pytest.raises((FileNotFoundError, ValueError)) as refusal:
        guidance.NoisedCLIP.load(path)
    assert str(path) in small.one_line(refusal.value), "a refusal is one line that names the file"


# --- Released answers ---

def released_clip():
    towers = (formula.state_dict(f"clip/{tower}-enc", "a") for tower in ("image", "text"))
    return import_module("lessons.12_released").load_openai_clip(*towers)


def test_guided_denoiser_gives_the_released_answer():
    model = guidance.classifier_free(formula.denoiser("base"), 3)
    with torch.no_grad():
        answer = model(formula.inp("x", 3, 3, 16, 16), T, **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden("cfg3.output"), 1e-4)


@pytest.mark.parametrize("scale", [1, 3])
def test_guided_sampling_gives_the_released_answer(scale):
    model, d = guidance.classifier_free(formula.denoiser("base"), scale), process("ddim10")
    answer = d.ddim_sample(model, formula.inp("x_T", 3, 3, 16, 16), **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden(f"ddim.cfg{scale}"), 2e-3)


@torch.no_grad()
def test_clip_encoders_give_the_released_answers():
    formula.agree(released_clip().text(*CLIP_TEXT), formula.golden("clip.text"), 1e-4)
    formula.agree(released_clip().image(formula.inp("x", 3, 3, 16, 16), T), formula.golden("clip.image"), 1e-4)


def test_clip_guidance_gives_the_released_gradient():
    model = released_clip()
    with torch.no_grad():
        grad_fn = guidance.clip_guidance(model, model.text(*CLIP_TEXT), 1.0)
        answer = grad_fn(formula.inp("x", 3, 3, 16, 16), T)       # it turns gradients on itself
    formula.agree(answer, formula.golden("clip.grad"), 1e-4)
    assert all(p.grad is None for p in model.parameters()), "a guide is not trained by guiding"
