"""Classifier-free guidance: released answers, and what the scale does to a distribution one knows. The noised CLIP."""
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import formula
import small

tokenizer, unet, diffusion, guidance = (import_module(m) for m in (
    "01_tokenizer", "03_unet", "04_diffusion", "05_guidance"))
T = torch.tensor([0, 500, 999])
MEANS = torch.tensor([[-0.4, 0.0], [0.2, 0.3], [0.3, -0.3]]).view(3, 2, 1, 1)


def oracle(d, std=0.15):
    return diffusion.MixtureDenoiser(d, MEANS, std)


def prompt(n, which=1):
    return {"tokens": torch.full((n, 1), which), "mask": torch.ones(n, 1, dtype=torch.bool)}


def process(spec=None):
    return diffusion.Diffusion.from_config(diffusion.DiffusionConfig(), spec)


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
    assert [sum(p.numel() for p in tower.parameters()) for tower in (model.image_encoder, model.caption_encoder)] == [86_443_776, 71_679_488]


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
    """The tower stops at the longest: a short caption means the same beside it and alone."""
    model, tok = guidance.NoisedCLIP(small.clip_preset().network), tokenizer.world_tokenizer()
    both = guidance.encode_clip(["a red heart", "a small red heart on a white background"], tok, 20)
    alone = guidance.encode_clip(["a red heart"], tok, 20)
    assert torch.allclose(model.text(**both)[:1], model.text(**alone), atol=1e-5)


# --- Weight files ---

def save_clip(path, **facts):
    torch.manual_seed(0)
    model = guidance.NoisedCLIP(small.clip_preset().network)
    unet.save_weights(path, model, **facts)
    return model


def test_a_clip_comes_back_as_it_went(tmp_path):
    model = save_clip(tmp_path / "clip.pt")
    again = guidance.NoisedCLIP.load(tmp_path / "clip.pt")
    assert again.config == model.config and not again.training
    for (key, value), back in zip(model.state_dict().items(), again.state_dict().values()):
        assert torch.equal(value.half().float(), back), key


@pytest.mark.parametrize("what", ["nothing", "half a file", "a U-Net", "other sizes"])
def test_what_is_no_clip_is_refused_in_one_line(tmp_path, what):
    path = tmp_path / "clip.pt"
    if what == "half a file":
        save_clip(path)
        path.write_bytes(path.read_bytes()[:3000])
    elif what == "a U-Net":
        unet.save_weights(path, unet.UNet(small.preset().network))
    elif what == "other sizes":
        model = guidance.NoisedCLIP(small.clip_preset().network)
        model.config = guidance.CLIP["tiny"]
        unet.save_weights(path, model)
    with pytest.raises((FileNotFoundError, ValueError)) as refusal:
        guidance.NoisedCLIP.load(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_tiny_clip_guides_and_reranks(tmp_path):
    sample = import_module("09_sample")
    tok = tokenizer.world_tokenizer()
    save_clip(tmp_path / "clip.pt", tokenizer=tok.merges, difficulty="single")
    guide = sample.Clip.load(tmp_path / "clip.pt")
    assert (guide.preset, guide.difficulty) == ("tiny", "single") and guide.embed(["a red heart"]).shape == (1, 32)
    preset = small.preset()
    captions = ["a red heart"] * 2
    base = sample.Model.of(small.randomize(unet.UNet(preset.network)), preset.diffusion, 16, tok)
    g = torch.Generator().manual_seed(0)
    x_T = diffusion.gaussian(torch.empty(2, 3, 16, 16), g)
    walk = diffusion.Diffusion.from_config(base.process, "4")
    plain = walk.ddpm_sample(base.denoiser, x_T, generator=g, **base.encode(captions))
    unmoved, moved = (sample.draw_small(base, captions, generator=torch.Generator().manual_seed(0), clip=guide,
                                        guide="clip", scale=scale, steps="4", sampler="ddpm") for scale in (0.0, 1.0))
    assert torch.allclose(unmoved, plain, atol=1e-6), "pulled by nothing: the model as trained"
    assert not torch.allclose(moved, plain, atol=1e-3), "pulled by CLIP: another picture"
    assert guide.fit(plain, captions).shape == (2,) and guide.fit(plain, captions).abs().max() <= 1.001


def test_tiny_weights_without_a_clip_are_refused_in_one_line(tmp_path, capfd):
    """--guide clip needs clip.pt in the folder of the weights; what to do is said."""
    status = import_module("09_sample").main(["a red heart", "--guide", "clip", "--weights", str(tmp_path)])
    lines = capfd.readouterr().err.strip().splitlines()
    assert status == 2 and len(lines) == 1 and "08_train.py clip" in lines[0] and str(tmp_path) in lines[0], lines


def test_a_clip_of_single_things_is_not_asked_about_pairs():
    sample = import_module("09_sample")
    guide = sample.Clip(None, None, preset="tiny", difficulty="single")
    with pytest.raises(ValueError, match="single things only"):
        sample.check_prompt("a red heart above a blue star", guide)
