"""A prompt becomes a picture: the pipeline, drawing into images, prompts, files, and what is refused."""
import math
import shutil
import weakref
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms
from torch.nn.attention import SDPBackend, sdpa_kernel

import small
from small import main, refused

tokenizer, transformer, unet, diffusion, guidance, upsample, train, sample = (import_module(m) for m in (
    "01_tokenizer", "02_transformer", "03_unet", "04_diffusion", "05_guidance", "07_upsample", "08_train", "09_sample"))
PROMPT = "a red heart above a blue umbrella"
QUICK = {"steps": "3", "upsampler_steps": "2"}
SHORT = "--steps", "2", "--upsampler-steps", "2", "--seed", "1"
CASES = Path(__file__).parent / "cases"


# --- Stand-ins ---

@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All five kinds of weight files, with random weights. Nothing changes them."""
    return small.save_models(tmp_path_factory.mktemp("weights"), train.KINDS)


@pytest.fixture(scope="module")
def weights(folder, tmp_path_factory):
    """A folder of base.pt and upsampler.pt alone."""
    return copied(folder, tmp_path_factory.mktemp("plain"), "base", "upsampler")


def copied(folder, to, *kinds):
    to.mkdir(exist_ok=True)
    for kind in kinds:
        shutil.copy(folder / f"{kind}.pt", to)
    return to


class Spy:
    """In place of a denoiser: it keeps what it is asked, and guesses the same noise everywhere (zero, if not told)."""

    def __init__(self, guess=0.0):
        self.guess, self.seen = guess, []

    def __call__(self, x, t, **cond):
        self.seen.append((x, t[0].item(), cond))
        return torch.full((len(x), 6, *x.shape[2:]), self.guess)


class Shelf:
    """In place of Weights: models, or a stand-in for the CLIP, that are there already."""

    def __init__(self, **saved):
        self.saved, self.load = saved, saved.get


def spied(folder, *kinds, guess=0.0):
    """-> the Models of these kinds, each with a Spy as its denoiser"""
    return [replace(sample.Model.load(folder / f"{kind}.pt"), denoiser=Spy(guess)) for kind in kinds]


class Taste:
    """In place of a Clip: how well each image fits its prompt is known beforehand."""

    def __init__(self, *fits):
        self.fits = torch.tensor(fits)

    def similarity(self, images, prompts):
        self.images = images
        assert len(images) == len(prompts) == len(self.fits)
        return self.fits


def noise_image(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- The pipeline ---

def test_the_pipeline_is_these_few_lines(weights):
    base, upsampler = (sample.Model.load(weights / f"{kind}.pt") for kind in ("base", "upsampler"))
    x_T = diffusion.gaussian(torch.empty(1, 3, 16, 16), [diffusion.seeded_generator(7, "base", 0)])
    process = diffusion.Diffusion.from_config(base.diffusion, "3")
    low_res = process.ddim_sample(guidance.classifier_free(base.denoiser, 8.0), x_T, **base.encode([PROMPT]))
    process = diffusion.Diffusion.from_config(upsampler.diffusion, "2")
    image = upsample.upsample(upsampler.denoiser, low_res, process=process, **upsampler.encode([PROMPT]),
                              generator=[diffusion.seeded_generator(7, "upsampler", 0)])
    drawn = sample.generate(PROMPT, sample.Weights(weights), seed=7, scale=8.0, **QUICK)
    assert torch.equal(drawn, diffusion.to_bytes(image)), \
        "a small image, guided by --scale, that is enlarged without guidance; each stage with noise of its own"


def test_both_stages_go_from_the_noisiest_step_to_the_image_and_each_step_is_told(weights):
    base, upsampler = spied(weights, "base", "upsampler")
    told = []
    sample.generate(PROMPT, Shelf(base=base, upsampler=upsampler), n=2, steps="4", upsampler_steps="3",
                    callback=lambda stage, x0, done, total: told.append((stage, tuple(x0.shape), done, total)))
    for model, spec in (base, "4"), (upsampler, "3"):
        steps = [t for _, t, _ in model.denoiser.seen]
        assert steps == diffusion.respace(1000, spec)[::-1] and steps[0] == 999, "from noise to image, not back"
    assert told == [("base", (2, 3, 16, 16), k, 4) for k in (1, 2, 3, 4)] + \
        [("upsampler", (2, 3, 64, 64), k, 3) for k in (1, 2, 3)], "the small image is finished before it is enlarged"


@pytest.mark.parametrize("kind, size, expected", [
    ("base", 16, ("25", "ddim", 3.0)), ("base", 64, ("150", "ddpm", 3.0)), ("inpaint", 64, ("150", "ddpm", 5.0)),
    ("upsampler", 64, ("fast27", "ddim", 1.0)), ("upsampler", 256, ("fast27", "ddim", 1.0)),
    ("inpaint-upsampler", 256, ("fast27", "ddpm", 1.0))])
def test_what_is_usual_depends_on_the_kind_and_the_size(folder, kind, size, expected):
    (model,) = spied(folder, kind)
    how = sample.default_options(replace(model, size=size))
    assert (how.steps, how.sampler, how.scale) == expected, "the released notebooks' habits for the large models"


@pytest.mark.parametrize("change", [{"scale": 8.0}, {"sampler": "ddpm"}, {"sampler": "dpm"}, {"steps": "4"},
                                    {"upsampler_steps": "3"}, {"seed": 2}, {"prompt": "a pink moon"}], ids=str)
def test_each_choice_reaches_the_picture(weights, change):
    options = {"prompt": PROMPT, "seed": 1, **QUICK}
    plain = sample.generate(weights=sample.Weights(weights), **options)
    assert not torch.equal(plain, sample.generate(weights=sample.Weights(weights), **options | change))


@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_the_kth_image_depends_on_the_seed_and_on_k_alone(weights, sampler):
    """Drawn apart, a few bytes differ by a little: a matrix product adds up in another order if it has more rows."""
    def draw(n, batch):
        torch.manual_seed(n)                                   # other people's random numbers must not matter either
        how = {"sampler": sampler, "batch": batch, **QUICK}
        return sample.generate(PROMPT, sample.Weights(weights), n=n, seed=5, **how).int()
    three = draw(3, 3)
    for n, batch in (3, 1), (3, 2), (1, 1), (2, 2):
        off = (draw(n, batch) - three[:n]).abs()
        assert off.max() <= 3 and off.float().mean() < 0.1, f"n {n}, batch {batch}: bytes differ by up to {off.max()}"
    a, b, c = three.float()
    assert min((a - b).abs().mean(), (b - c).abs().mean()) > 5, "other places, other images"


def test_noise_comes_from_the_cpu_and_is_not_the_same_in_both_stages(weights):
    base, upsampler = spied(weights, "base", "upsampler")
    sample.generate(PROMPT, Shelf(base=base, upsampler=upsampler), steps="1", upsampler_steps="1")
    small_noise, large_noise = (model.denoiser.seen[0][0][0].flatten() for model in (base, upsampler))
    expected = torch.randn(1, 3, 16, 16, generator=diffusion.seeded_generator(0, "base", 0)).flatten()
    assert torch.equal(small_noise, expected), "the CPU's numbers, which are the same whatever the device"
    r = torch.corrcoef(torch.stack([small_noise, large_noise[:768]]))[0, 1]
    assert abs(r) < 0.2, f"the two stages' noise is correlated by {r:.2f}: the upsampler would see its own noise drawn"


def test_the_upsampler_sees_the_small_image_as_a_file_would_hold_it(weights, monkeypatch):
    base, upsampler = spied(weights, "base", "upsampler")
    drawn = torch.linspace(-1.3, 1.3, 768).view(1, 3, 16, 16)
    monkeypatch.setattr(sample, "sample_base", lambda *_, **__: drawn)
    sample.generate(PROMPT, Shelf(base=base, upsampler=upsampler), **QUICK)
    low_res = upsampler.denoiser.seen[0][2]["low_res"]
    assert torch.allclose(low_res, diffusion.to_bytes(drawn) / 127.5 - 1, atol=1e-5), "rounded to 8 bits, within ±1"


def test_values_beyond_the_range_are_clipped_and_all_are_rounded(weights, monkeypatch):
    bytes_ = torch.tensor([-900, -0.9, 0, 41.4, 41.9, 254.9, 255, 255.9, 256, 511, 900])
    drawn = bytes_.expand(1, 3, 11, 11) / 127.5 - 1
    monkeypatch.setattr(sample, "sample_base", lambda *_, **__: drawn)
    drawn = sample.generate(PROMPT, Shelf(base=spied(weights, "base")[0]))
    assert drawn[0, 0, 0].tolist() == [0, 0, 0, 41, 42, 255, 255, 255, 255, 255, 255], \
        "bytes that wrap round are black specks in white; cut instead of rounded, all is half a byte too dark"


def test_dropout_is_off(tmp_path):
    drawn = []
    for share in 0.0, 0.5:
        network = replace(small.preset().network, dropout=share)
        small.save_model(tmp_path / str(share) / "base.pt", replace(small.preset(), network=network))
        drawn.append(sample.generate(PROMPT, sample.Weights(tmp_path / str(share)), steps="2"))
    assert torch.equal(*drawn), "dropout is for training: samples are drawn in eval mode"


@pytest.mark.parametrize("stage", ["base", "upsampler"])
def test_numbers_that_are_none_become_no_picture(weights, stage):
    """As an overflow of float16 leaves them."""
    models = dict(zip(("base", "upsampler"), spied(weights, "base", "upsampler")))
    models[stage].denoiser.guess = math.nan
    with pytest.raises(ValueError, match="--dtype"):
        sample.generate(PROMPT, Shelf(**models), **QUICK)
    assert stage == "upsampler" or not models["upsampler"].denoiser.seen, "refused before the expensive stage"


def test_bfloat16_draws_nearly_the_same(folder, tmp_path):
    network = sample.to_dtype(unet.UNet(small.preset().network), torch.bfloat16)
    assert network.output[2].weight.dtype == torch.float32, "samplers divide the last layer's rounding errors by √ᾱ"
    assert network.input_conv.weight.dtype == torch.bfloat16, "all others are, or no memory is saved"
    copied(folder, tmp_path, "base")
    # torch's fused attention in 16 bits stops where ATEN_CPU_CAPABILITY hides what the processor can do.
    with sdpa_kernel(SDPBackend.MATH):
        drawn = [sample.generate(PROMPT, sample.Weights(tmp_path, dtype=dtype), steps="3").float()
                 for dtype in (torch.float32, torch.bfloat16)]
    off = (drawn[0] - drawn[1]).abs().mean()
    assert 0 < off < 8, f"bytes differ by {off:.2f} on average; images of two seeds differ by tens"


def test_only_one_stage_is_in_memory_at_a_time(folder, monkeypatch):
    """The released models fill 1.5 GB each. The CLIP, a tenth of that, stays while it is needed."""
    book, networks = [], {}
    for cls in unet.UNet, guidance.NoisedCLIP:
        def load(saved, path, real=cls.from_saved):
            book.append((path.stem, [name for name, network in networks.items() if network() is not None]))
            network = real(saved, path)
            networks[path.stem] = weakref.ref(network)
            return network
        monkeypatch.setattr(cls, "from_saved", load)
    for guide, sampler in ("free", "ddim"), ("clip", "ddpm"):
        book.clear()
        sample.generate(PROMPT, sample.Weights(folder, clip=True), n=2, rerank=3, batch=1, guide=guide, sampler=sampler,
                        **QUICK)
        assert book == [("clip", []), ("base", ["clip"]), ("upsampler", [])], "(what is loaded, what is there then)"


# --- A sketch, a CLIP ---

@pytest.mark.parametrize("steps, strength, expected", [
    ("2", 0.5, [500, 0]), ("2", 0.6, [599, 0]), ("4", 0.3, [300, 200, 100, 0]), ("25", 0.0, [0]), ("1", 1.0, [999]),
    ("2,1", 1.0, [999, 499, 0])])
def test_a_sketch_is_changed_in_proportion_to_strength(weights, steps, strength, expected):
    (base,), image = spied(weights, "base"), noise_image(48, 48)
    how = sample.Options(steps=steps, strength=strength)
    sample.sample_base(base, [PROMPT], how, generator=torch.Generator().manual_seed(0), init=image)
    assert [t for _, t, _ in base.denoiser.seen] == expected, \
        "as many steps, over the share of the way that is left; all of it begins at 999, where x_T is noise"
    # ᾱ_t of the cosine schedule, as it is defined
    alpha_bar = (math.cos((expected[0] + 9) / 1008 * math.pi / 2) / math.cos(0.008 / 1.008 * math.pi / 2)) ** 2
    noise = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    start = math.sqrt(alpha_bar) * sample.pixels(image, 16) + math.sqrt(1 - alpha_bar) * noise
    assert torch.allclose(base.denoiser.seen[0][0][:1], start, atol=3e-3), "it begins with the sketch, noised so far"


class Reddish(torch.nn.Module):
    """A CLIP that sees nothing but an image's mean red and green: its gradient can be written down."""

    config = small.clip_preset().network

    def image(self, x, t):
        return x[:, :2].mean((2, 3))

    def text(self, tokens, lengths):
        return torch.tensor([[0.6, -0.8]]).expand(len(tokens), -1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_clip_guides_by_its_gradient_and_nothing_else_does(weights, sampler):
    (base,), clip = spied(weights, "base"), sample.Clip(Reddish(), tokenizer.world_tokenizer(), "cpu")
    how = sample.Options("4", sampler, scale=0.5, guide="clip")
    drawn = sample.sample_base(base, [PROMPT] * 2, how, generator=torch.Generator().manual_seed(3), clip=clip)
    assert {len(x) for x, _, _ in base.denoiser.seen} == {2}, "classifier-free guidance would ask about twice as many"
    # ∂/∂x of s·100·(0.6·mean red - 0.8·mean green), each the mean of 256 pixels
    gradient = 0.5 * 100 / 256 * torch.tensor([0.6, -0.8, 0]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    generator, process = torch.Generator().manual_seed(3), diffusion.Diffusion.from_config(base.diffusion, "4")
    expected = getattr(process, f"{sampler}_sample")(
        base.denoiser, torch.randn(2, 3, 16, 16, generator=generator), generator=generator,
        grad_fn=lambda x, t: gradient, **base.encode([PROMPT] * 2))
    assert torch.allclose(drawn, expected, atol=1e-4), "s·100·∇ of the similarity, added by the sampler at every step"


def test_similarity_is_that_of_clean_images_each_with_its_own_prompt(folder):
    clip = sample.Weights(folder, clip=True).load("clip")
    images, prompts = torch.rand(3, 3, 16, 16) * 2 - 1, [PROMPT, "a pink moon", "two red hearts"]
    with torch.no_grad():
        alone = [clip.network.image(image[None], torch.tensor([0])) @ clip.embed([prompt]).T
                 for image, prompt in zip(images, prompts)]
    assert torch.allclose(clip.similarity(images, prompts), torch.cat(alone).flatten(), atol=1e-5)


def test_reranking_enlarges_the_best_of_what_this_seed_draws_best_first(weights, monkeypatch):
    monkeypatch.setattr(sample, "sample_upsampler", lambda model, low_res, *_, **__: low_res)
    base, upsampler = (sample.Model.load(weights / f"{kind}.pt") for kind in ("base", "upsampler"))
    taste = Taste(0.1, 0.9, -0.3, 0.95, 0.2)
    best = sample.generate(PROMPT, Shelf(base=base, upsampler=upsampler, clip=taste), n=2, rerank=5, batch=2, steps="2")
    assert torch.equal(best, diffusion.to_bytes(taste.images[[3, 1]])), "similarities 0.95 and 0.9, in this order"
    plain = sample.generate(PROMPT, Shelf(base=base), n=5, batch=2, steps="2")
    assert torch.equal(plain, diffusion.to_bytes(taste.images)), "candidates are images that would be drawn anyway"


# --- Drawing into an image ---

def half_white(width, height):
    """A mask that is white from a quarter of the width to three quarters, in the upper half."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 4, 0, 3 * width // 4, height // 2))
    return mask


@pytest.mark.parametrize("side", [16, 64])
@pytest.mark.parametrize("size", [(97, 61), (1200, 800), (16, 16), (7, 5)], ids="{0[0]}x{0[1]}".format)
def test_white_in_a_file_is_drawn_and_one_in_a_tensor_is_known(size, side):
    image, mask = sample.InpaintInput(noise_image(*size), half_white(48, 80), 16).at(side, "cpu", 2)
    expected = torch.ones(2, 1, side, side)
    expected[..., :side // 2, side // 4:3 * side // 4] = 0
    assert torch.equal(mask, expected), "turned round once: white = draw becomes 1 = known"
    assert image.shape == (2, 3, side, side)
    colour = sample.pixels(Image.new("RGB", size, (255, 0, 51)), side)[0, :, 3, 3]
    assert torch.allclose(colour, torch.tensor([1.0, -1.0, -0.6])), "bytes 0 … 255 are numbers from -1 to 1"


@pytest.mark.parametrize("name", ["mask_thin.png", "mask_blob_with_tail.png", "odd"])
def test_every_white_pixel_is_drawn_however_thin(name):
    if name == "odd":
        rng = np.random.default_rng(0)
        mask = Image.fromarray(((rng.random((61, 97)) < 0.01) * 255).astype(np.uint8))
    else:
        mask = sample.read_image(CASES / name, "L")
    white, size = np.asarray(mask) >= 128, mask.size
    known = sample.InpaintInput(Image.new("RGB", size), mask, 16)
    drawn = known.composite(torch.full((3, 64, 64), 255, dtype=torch.uint8)).numpy()
    assert white.any() and (drawn[0][white] == 255).all(), "thin lines and tails of a mask are drawn too"
    small_mask = known.at(16, "cpu", 1)[1][0, 0]
    for y, x in zip(*np.nonzero(white)):
        cell = int((y + 0.5) * 16 / size[1]), int((x + 0.5) * 16 / size[0])
        assert small_mask[cell] == 0, f"white at {x},{y}: the model must know that its cell is to be drawn"
    assert small_mask.mean() > 0.3, "and no more than the cells that hold white"
    large_mask = known.at(64, "cpu", 1)[1][0, 0]
    assert torch.equal(large_mask, small_mask.repeat_interleave(4, 0).repeat_interleave(4, 1)), \
        "a finer hole would have the upsampler invent what the base model was told not to draw"


@pytest.mark.parametrize("size", [(97, 61), (61, 97), (1200, 801), (16, 16), (1, 1)], ids="{0[0]}x{0[1]}".format)
def test_known_pixels_come_back_untouched(size):
    image, mask = noise_image(*size), half_white(*size)
    known = sample.InpaintInput(image, mask, 16)
    back = known.composite(torch.zeros(3, 64, 64, dtype=torch.uint8)).permute(1, 2, 0).numpy()
    hole = np.asarray(known.hole(size)) > 0
    assert back.shape == (size[1], size[0], 3), "the image's own size"
    assert np.array_equal(back[~hole], np.asarray(image)[~hole]), "to the last bit: not a copy through 64 pixels"
    assert not back[hole].any(), "in the hole, what was drawn"


@pytest.mark.parametrize("zoom, filter", [(1, Image.NEAREST), (5, Image.NEAREST), (5, Image.BICUBIC)])
def test_an_image_of_squares_stays_one(zoom, filter):
    """As 09 shows what the tiny models draw; what is drawn into that must be of squares, too."""
    image = noise_image(64, 64).resize((64 * zoom, 64 * zoom), filter)
    drawn = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    page = sample.InpaintInput(image, Image.new("L", (4, 4), 255), 16).composite(drawn)
    squares = page[:, ::zoom, ::zoom].repeat_interleave(zoom, 1).repeat_interleave(zoom, 2)
    assert torch.equal(page, squares) == (filter == Image.NEAREST)


@pytest.mark.parametrize("stage, tuned", [("base", "inpaint"), ("upsampler", "inpaint-upsampler")])
def test_a_tuned_model_looks_at_what_is_known_and_another_draws_around_it(folder, stage, tuned):
    known = sample.InpaintInput(noise_image(97, 61), half_white(32, 32), 16)
    for model in spied(folder, stage, tuned):
        draw = sample.sample_base if stage == "base" else sample.sample_upsampler
        given = () if stage == "base" else (torch.zeros(1, 3, 16, 16),)
        generator = torch.Generator().manual_seed(0)
        drawn = draw(model, *given, [PROMPT], sample.Options("2"), generator=generator, known=known)
        image, mask = known.at(model.size, "cpu", 1)
        shown = model.denoiser.seen[0][2]
        assert ("inpaint_image" in shown) == (model.kind == tuned), "a model is shown what it was trained to look at"
        if model.kind == tuned:
            assert torch.equal(shown["inpaint_image"][:1], image) and torch.equal(shown["inpaint_mask"][:1], mask)
        assert torch.allclose(drawn * mask, image * mask, atol=1e-5), "the known part is put into each predicted image"
        assert (drawn - image)[(mask == 0).expand_as(drawn)].abs().mean() > 0.1, "… and the rest is drawn"


@pytest.mark.parametrize("there", [(), ("inpaint",), ("inpaint-upsampler",), ("inpaint", "inpaint-upsampler")])
def test_tuned_weights_are_used_where_there_are_some(folder, tmp_path, there):
    copied(folder, tmp_path, "base", "upsampler", *there)

    def kinds(**options):
        models = sample.Weights(tmp_path, **options)
        return [models.load(stage).kind for stage in ("base", "upsampler")]
    assert kinds() == ["base", "upsampler"], "the tuned ones are for drawing into images"
    pairs = ("base", "inpaint"), ("upsampler", "inpaint-upsampler")
    assert kinds(inpaints=True) == [tuned if tuned in there else plain for plain, tuned in pairs]


def test_generate_finds_the_tuned_weights_by_itself(folder, monkeypatch):
    real, asked = sample.Weights, []
    monkeypatch.setattr(sample, "Weights", lambda **options: asked.append(options) or real(folder, **options))
    known = sample.InpaintInput(noise_image(20, 20), half_white(8, 8), 16)
    sample.generate(PROMPT, known=known, **QUICK)
    assert asked == [{"inpaints": True, "clip": False}]


@pytest.mark.parametrize("plain", [True, False], ids=["without inpaint.pt", "with it"])
def test_a_box_is_a_mask_that_is_white_there(folder, weights, plain, tmp_path, capfd):
    image = noise_image(160, 96)
    image.save(tmp_path / "x.png")
    mask = Image.new("L", (16, 16))
    mask.paste(255, (8, 0, 16, 4))
    mask.save(tmp_path / "mask.png")
    drawn = {}
    for name, where in ("mask", ("--mask", tmp_path / "mask.png")), ("box", ("--box", "0.5,0,1,0.25")):
        out = tmp_path / f"out-{name}.png"
        argv = "--weights", weights if plain else folder, "--image", tmp_path / "x.png", *where, "--n", 2, "--out", out
        status, told, err = main(capfd, PROMPT, *argv, *SHORT)
        assert status == 0, err
        assert ("no inpaint.pt" in told) == plain, "what draws with seams is said"
        drawn[name] = pixels(out)
    assert np.array_equal(drawn["mask"], drawn["box"])
    first, second = drawn["box"][:, :160], drawn["box"][:, 168:]
    hole = np.zeros((96, 160), bool)
    hole[:24, 80:] = True
    for page in first, second:
        assert np.array_equal(page[~hole], np.asarray(image)[~hole]), "outside the box not a bit may change"
        assert not np.array_equal(page[hole], np.asarray(image)[hole])
    assert not np.array_equal(first[hole], second[hole]), "two images are two tries"


# --- Image files ---

GREY = np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)
SQUARES = np.repeat(np.repeat(np.repeat(GREY[:3, :2, None], 8, 0), 8, 1), 3, 2)      # of 8 pixels: easy for a JPEG


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def save_palette(path):
    """Red, green and blue; and green is transparent."""
    image = Image.fromarray(GREY % 3, "P")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path, transparency=1)


def save_turned(path):
    """As a camera saves it that was held upright: the sensor's image, and how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6                      # to be turned clockwise by 90°
    Image.fromarray(SQUARES).save(path, exif=exif, quality=95)


def save_swapped_profile(path):
    """Red numbers, in a colour profile whose first primary is the second one of sRGB: what one sees is green."""
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    profile = profile.replace(b"rXYZ", b"----").replace(b"gXYZ", b"rXYZ").replace(b"----", b"gXYZ")
    Image.new("RGB", (30, 20), (255, 0, 0)).save(path, icc_profile=profile)


def copy(path):
    shutil.copy(CASES / path.name, path)


def plain(*color):
    return np.tile(np.array(color, np.uint8), (20, 30, 1))


DEEP, FLOATS = (np.array(Image.open(CASES / name)) for name in ("grey16_trns.png", "float01.tif"))


# What a file holds -> (its name, how it is written, the pixels that one should see, how far off they may be)
FORMATS = {
    "grey": ("a.png", Image.fromarray(GREY).save, as_rgb(GREY), 0),
    "16 bits of grey": ("a.png", Image.fromarray(GREY.astype(np.uint16) * 257).save, as_rgb(GREY), 0),
    "a palette with transparency": ("a.png", save_palette,
                                    np.array([(255, 0, 0), (255, 255, 255), (0, 0, 255)], np.uint8)[GREY % 3], 0),
    "16 bits, of which a grey is transparent": ("grey16_trns.png", copy, as_rgb(np.where(DEEP, DEEP // 257, 255)), 1),
    "floats from 0 to 1": ("float01.tif", copy, as_rgb((FLOATS * 255).round()), 0),
    "EXIF that turns it": ("a.jpg", save_turned, np.rot90(SQUARES, -1), 8),
    "CMYK": ("a.jpg", Image.new("CMYK", (30, 20), (255, 0, 0, 51)).save, plain(0, 204, 204), 3),
    "a colour profile": ("a.png", save_swapped_profile, plain(0, 255, 0), 3)}


@pytest.mark.parametrize("case", FORMATS)
def test_a_file_is_read_as_one_sees_it(case, tmp_path):
    name, write, expected, tolerance = FORMATS[case]
    write(tmp_path / name)
    seen = np.asarray(sample.read_image(tmp_path / name)).astype(int)
    assert seen.shape == expected.shape, f"{seen.shape[:2]} pixels; upright it has {expected.shape[:2]}"
    assert np.abs(seen - expected).max() <= tolerance, f"{case}: off by up to {np.abs(seen - expected).max()}"


def test_a_sketch_of_another_shape_is_cropped_and_that_is_said(weights, tmp_path, capfd):
    wide = noise_image(90, 40)
    wide.save(tmp_path / "wide.png")
    wide.crop((25, 0, 65, 40)).save(tmp_path / "middle.png")
    drawn = {}
    for name in "wide", "middle":
        out = tmp_path / f"out-{name}.png"
        status, told, err = main(capfd, PROMPT, "--init", tmp_path / f"{name}.png", "--weights", weights, *SHORT,
                                 "--out", out)
        assert status == 0 and ("not square" in told and "40×40" in told) == (name == "wide"), (told, err)
        drawn[name] = pixels(out)
    assert np.array_equal(drawn["wide"], drawn["middle"]), "its middle is what is drawn over; nothing is squashed"


# --- Prompts ---

TIDY = "a small red sun"
SPACES = ("a small red sun ", "  a small red sun", "a small  red sun", "a\tsmall red\nsun\r\n",
          "a\u00a0small\u2003red\u3000sun")


@pytest.mark.parametrize("prompt", [*SPACES, "A Small RED sun"], ids=repr)
def test_a_prompt_is_drawn_as_it_is_checked(weights, prompt):
    models = sample.Weights(weights)
    sample.check_prompt(prompt, models)
    drawn = [sample.generate(text, models, steps="2", upsampler_steps="1") for text in (TIDY, prompt)]
    assert torch.equal(*drawn), "white space of every kind is tidied before the words become tokens, as in training"


def test_weights_that_take_captions_as_they_are_get_them_so(tmp_path):
    models = {world: sample.Weights(small.save_models(tmp_path / world, ["base"], world="", verbatim=world == "theirs"))
              for world in ("ours", "theirs")}
    tokens = {world: [models[world].load("base").encode([text])["tokens"] for text in (TIDY, *SPACES)]
              for world in models}
    assert all(torch.equal(tokens["ours"][0], other) for other in tokens["ours"])
    assert not any(torch.equal(tokens["theirs"][0], other) for other in tokens["theirs"][1:]), \
        "OpenAI's weights were trained on captions as people had written them"


@pytest.mark.parametrize("prompt, word", [("a red dragon", "'dragon'"), ("a red\nwyvern", "'wyvern'"), ("", "empty"),
                                          (" \t\u00a0", "empty"), ("heart red a", "caption")], ids=repr)
def test_what_the_small_weights_cannot_know_is_refused(weights, prompt, word, tmp_path, capfd):
    line = refused(capfd, prompt, "--weights", weights, "--out", tmp_path / "a.png")
    assert word in line and not list(tmp_path.iterdir())
    if "unknown" in line:
        assert "umbrella" in line and "to the left of" in line, "an unknown word is answered with the known ones"


@pytest.mark.parametrize("prompt", [PROMPT, "two red hearts", "a red snowman"])
def test_weights_of_single_things_are_asked_for_no_more(prompt, tmp_path, capfd):
    line = refused(capfd, prompt, "--weights", small.save_models(tmp_path, ["base"], world="single"))
    assert "single things only" in line and "heart" in line


@pytest.mark.parametrize("prompt, cut", [("a red heart " * 9, True), ("any words", False), (f"a{' ' * 99}sun", False)])
def test_a_prompt_that_is_too_long_is_said_to_be_cut(prompt, cut, tmp_path, capfd):
    """A context of 20 tokens, and a world "": weights of one's own take any words."""
    models = sample.Weights(small.save_models(tmp_path, ["base"], world=""))
    sample.check_prompt(prompt, models)
    told = capfd.readouterr().out
    assert ("20 tokens" in told) == cut and len(told.splitlines()) == cut, told


# --- Files ---

def test_a_prompt_becomes_a_picture_and_a_strip(weights, tmp_path, capfd):
    out = tmp_path / "new" / "heart.png"
    status, told, err = main(capfd, PROMPT, "--weights", weights, "--out", out, "--n", 2, *SHORT)
    assert status == 0 and str(out) in told and PROMPT in told and "seed 1" in told, err
    assert [line.split(" at ")[0] for line in err] == ["base: step 2 of 2", "upsampler: step 2 of 2"]
    assert sorted(path.name for path in out.parent.iterdir()) == ["heart-steps.png", "heart.png"], "no scraps"
    drawn = sample.generate(PROMPT, sample.Weights(weights), n=2, seed=1, steps="2", upsampler_steps="2")
    page = pixels(out)
    zoom = page.shape[0] // 64
    for k in 0, 1:
        tile = page[zoom // 2::zoom, k * (64 * zoom + 8) + zoom // 2::zoom][:64, :64]
        assert np.array_equal(tile, drawn[k].permute(1, 2, 0).numpy()), "the file shows what generate answers"


def test_without_a_seed_another_is_taken_each_time_and_told(weights, tmp_path, capfd):
    told = [main(capfd, PROMPT, "--weights", weights, "--out", tmp_path / f"{i}.png", *SHORT[:4])[1] for i in "ab"]
    seeds = [line.split("seed ")[1].split()[0].strip(",") for line in told]
    assert seeds[0] != seeds[1] and all(map(str.isdecimal, seeds)), f"a picture can be drawn again by its seed: {seeds}"


def test_two_runs_of_one_prompt_and_seed_leave_two_pictures(weights, tmp_path, capfd, monkeypatch):
    """One after the other, and at the same moment: here a second run begins while the first is drawing."""
    monkeypatch.setattr(sample, "OUTPUTS", tmp_path)
    real, argv = sample.generate, [PROMPT, "--weights", str(weights), *SHORT]
    status, _, err = main(capfd, *argv)

    def generate(*args, **options):
        monkeypatch.setattr(sample, "generate", real)
        assert sample.main(argv) == 0
        return real(*args, **options)
    monkeypatch.setattr(sample, "generate", generate)
    assert status == 0 and main(capfd, *argv, "--scale", 8)[0] == 0, err
    stem = "a-red-heart-above-a-blue-umbrella-1"
    names = [f"{stem}{number}{part}.png" for number in ("", "-2", "-3") for part in ("", "-steps")]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names), "none may be overwritten"
    first, scaled, third = (pixels(tmp_path / f"{stem}{number}.png") for number in ("", "-2", "-3"))
    assert np.array_equal(first, third) and not np.array_equal(first, scaled), "each file holds its own drawing"


def test_every_path_may_begin_with_the_home_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    for option in "weights", "image", "mask", "init", "out":
        args = sample.arguments(["x", f"--{option}=~/file.png"])
        assert getattr(args, option) == tmp_path / "file.png", "a shell does not expand the ~ of --out=~/file.png"


REFUSED = {
    "another suffix": (["--out", "{tmp}/picture.jpg"], "must end in .png"),
    "a file where a folder must be": (["--out", "{tmp}/file/new/a.png"], "a file stands where"),
    "a picture that is there": (["--out", "{tmp}/there.png"], "exists already"),
    "a folder of that name": (["--out", "{tmp}/folder.png"], "exists already"),
    "no steps": (["--steps", "0"], "'0'"), "steps in words": (["--steps", "ten"], "'ten'"),
    "too many steps": (["--upsampler-steps", "2000"], "2000"), "no such stride": (["--steps", "ddim999"], "999"),
    "too strong": (["--init", "{tmp}/x.png", "--strength", "1.5"], "1.5"),
    "a folder that is not there": (["--weights", "{tmp}/nowhere"], "there is no base.pt in"),
    "a file for a folder": (["--weights", "{tmp}/file"], "is a file; --weights takes a folder"),
    "no CLIP to rerank": (["--rerank", "4"], "there is no clip.pt in"),
    "no CLIP to guide": (["--guide", "clip"], "08_train.py clip trains one"),
    "fewer candidates than images": (["--rerank", "4", "--n", "5"], "--rerank 4 draws fewer"),
    "an image alone": (["--image", "{tmp}/x.png"], "--image goes with --mask"),
    "a box alone": (["--box", "0,0,1,1"], "--image goes with --mask"),
    "a box and a mask": (["--image", "{tmp}/x.png", "--mask", "{tmp}/x.png", "--box", "0,0,1,1"], "not with both"),
    "a sketch and an image": (["--init", "{tmp}/x.png", "--image", "{tmp}/x.png", "--box", "0,0,1,1"], "one of the"),
    "a black mask": (["--image", "{tmp}/x.png", "--mask", "{tmp}/black.png"], "black.png leaves nothing to draw"),
    "no box": (["--image", "{tmp}/x.png", "--box", "0,0,0.0001,1"], "--box leaves nothing to draw"),
    "an image that is not there": (["--init", "{tmp}/nowhere.png"], "there is no file"),
    "a text file": (["--init", "{tmp}/file"], "cannot be read as an image"),
    "a folder for an image": (["--init", "{tmp}/folder.png"], "cannot be read as an image"),
    "half an image": (["--init", "{tmp}/half.png"], "cannot be read as an image")}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line_and_leaves_nothing(case, weights, tmp_path, capfd):
    for name in "file", "there.png":
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder.png").mkdir()
    noise_image(40, 40).save(tmp_path / "x.png")
    Image.new("L", (9, 9), 100).save(tmp_path / "black.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "x.png").read_bytes()[:2000])
    before = sorted(tmp_path.rglob("*"))
    options, word = REFUSED[case]
    argv = ["--weights", str(weights), "--out", "{tmp}/new/a.png", *options]        # of an option given twice, the last
    line = refused(capfd, PROMPT, *(part.format(tmp=tmp_path) for part in argv))
    assert line.startswith("09_sample.py") and word in line, line
    left = [path for path in tmp_path.rglob("*") if path.name != "new"]
    assert sorted(left) == before and (tmp_path / "there.png").read_text() == "mine", "nothing is left or changed"


@pytest.mark.parametrize("argv", ["--n 0", "--n two", "--scale nan", "--seed -1", "--device warp9", "--strength -1",
                                  "--step 5", "--box 0,0,1", "--box a,b,c,d", "--box 0,nan,1,1", "--box .5,0,.2,1"])
def test_values_that_an_option_does_not_take_are_refused(argv, capfd):
    line = refused(capfd, PROMPT, *argv.split())
    assert "error:" in line and argv.split()[-1] in line, line


def another_network(path):
    saved = torch.load(path, weights_only=True)
    torch.save(saved | {"config": saved["config"] | {"blocks": 3}}, path)


# What is found in place of base.pt -> (how it comes there, what its sentence says)
STRANGE = {
    "a page of HTML": (lambda path: path.write_text("<html>not found</html>"), "damaged, or not a weight file"),
    "half a file": (lambda path: path.write_bytes(path.read_bytes()[:50_000]), "damaged, or not a weight file"),
    "a folder": (lambda path: (path.unlink(), path.mkdir()), "is a folder"),
    "a checkpoint": (lambda path: torch.save({"optimizer": {}, "ema": {}}, path), "is a checkpoint of a training run"),
    "OpenAI's file": (lambda path: torch.save({"input_blocks.0.0.weight": torch.zeros(8, 3, 3, 3)}, path),
                      "as OpenAI released it; python lessons/12_released.py convert"),
    "a bare state dict": (lambda path: torch.save(unet.UNet.load(path).state_dict(), path), "holds bare weights"),
    "another file of torch's": (lambda path: torch.save({"epoch": 3}, path), "not one of our weight files"),
    "weights without facts": (lambda path: unet.save_weights(path, unet.UNet(small.preset().network)),
                              "does not say its diffusion, size, tokenizer, world"),
    "an upsampler": (lambda path: shutil.copy(path.with_name("upsampler.pt"), path), "of another kind: upsampler"),
    "a CLIP": (lambda path: small.save_model(path, small.clip_preset()), "of another kind: clip"),
    "weights of other sizes": (another_network, "another network")}


@pytest.mark.parametrize("case", STRANGE)
def test_what_is_no_model_says_what_it_is(case, weights, tmp_path, capfd):
    put, sentence = STRANGE[case]
    put(copied(weights, tmp_path / "weights", "base", "upsampler") / "base.pt")
    line = refused(capfd, PROMPT, "--weights", tmp_path / "weights", "--out", tmp_path / "a.png", *SHORT)
    assert sentence in line and str(tmp_path / "weights" / "base.pt") in line, line
    assert [path.name for path in tmp_path.iterdir()] == ["weights"], "nothing is left behind"


def test_models_that_do_not_belong_together_are_refused_before_anything_is_drawn(folder, tmp_path):
    copied(folder, tmp_path, "base", "upsampler", "clip")
    small.save_model(tmp_path / "clip.pt", replace(small.preset("clip"), diffusion=diffusion.DiffusionConfig("linear")))
    with pytest.raises(ValueError, match="another noise schedule"):
        sample.Weights(tmp_path, clip=True)
    small.save_model(tmp_path / "upsampler.pt", replace(small.preset("upsampler"), size=256))
    with pytest.raises(ValueError, match="base model draws 16 pixels, and upsampler.pt is for 256, not 64"):
        sample.Weights(tmp_path)


def test_without_an_upsampler_the_small_image_is_shown_in_squares(folder, tmp_path, capfd):
    models = copied(folder, tmp_path / "weights", "base")
    status, _, err = main(capfd, PROMPT, "--weights", models, "--out", tmp_path / "a.png", *SHORT)
    assert status == 0, err
    drawn = sample.generate(PROMPT, sample.Weights(models), seed=1, steps="2")[0]
    squares = drawn.repeat_interleave(32, 1).repeat_interleave(32, 2).permute(1, 2, 0)
    assert np.array_equal(pixels(tmp_path / "a.png"), squares.numpy()), "512 pixels wide, and nothing is invented"


def stop(*_, **__):
    raise KeyboardInterrupt


def fill_the_gpu(*_, **__):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")


def fill_the_memory(*_, **__):
    torch.empty(1 << 46)                  # 256 TiB of float32; on a CPU it is a plain RuntimeError


def fill_the_disk(self, path, **_):
    Path(path).write_bytes(b"half")
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("place, trouble, status, word", [
    ((sample, "generate"), stop, 130, ""), ((sample, "sample_upsampler"), stop, 130, ""),
    ((sample, "generate"), fill_the_gpu, 2, "--batch"), ((sample, "sample_base"), fill_the_memory, 2, "--batch"),
    ((Image.Image, "save"), fill_the_disk, 2, "No space left")])
def test_trouble_leaves_one_line_and_no_file(place, trouble, status, word, weights, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(*place, trouble)
    ended, _, err = main(capfd, PROMPT, "--weights", weights, "--out", tmp_path / "a.png", *SHORT)
    told = [line for line in err if not line.startswith(("base: ", "upsampler: "))]
    assert ended == status and len(told) == 1 and word in told[0], err
    assert not list(tmp_path.iterdir()), "neither an empty file nor half of one"


def test_a_console_that_cannot_show_a_heart_shows_a_question_mark(tmp_path):
    """As Windows' consoles are; any other command line is as good, so this starts the one script of these tests."""
    small.save_models(tmp_path / "weights", ["base"], world="")
    done = small.run("09_sample.py", "I ♥ red", "--weights", tmp_path / "weights", "--steps", 1, "--out",
                     tmp_path / "a.png", PYTHONIOENCODING="cp1252")
    assert done.returncode == 0 and "'I ? red'" in done.stdout and (tmp_path / "a.png").exists(), done.stderr


def test_the_help_can_be_shown_anywhere(capfd):
    status, out, _ = main(capfd, "--help")
    assert status == 0 and "umbrella" in out and out.isascii()


# --- The weights that come with the course ---

HEART = "a large red heart on a white background"


@pytest.mark.parametrize("preset, size", [("tiny", 64), ("small", 128)])
def test_the_courses_weights_draw_what_is_asked(preset, size):
    drawn = sample.generate(HEART, sample.Weights(sample.FOLDERS[preset]), n=8, upsampler_steps="1", seed=3)
    assert drawn.shape == (8, 3, size, size)
    red, green, blue = F.avg_pool2d(drawn.float(), size // 64)[:, :, 26:38, 26:38].mean((2, 3)).T
    right = ((red > green + 80) & (red > blue + 80)).sum()
    assert right >= 6, f"{right} of 8 hearts are red in the middle"


def test_the_courses_weights_change_a_sketch_in_proportion():
    sketch, left = Image.new("RGB", (16, 16), "black"), []
    sketch.paste("cyan", (4, 4, 12, 12))
    base = sample.Model.load(unet.WEIGHTS / "base.pt")
    for strength in 0.0, 0.2, 0.5, 1.0:
        drawn = sample.sample_base(base, [HEART] * 6, sample.Options("2", strength=strength), init=sketch,
                                   generator=[torch.Generator().manual_seed(k) for k in range(6)])
        pair = torch.stack([drawn.mean(0).flatten(), sample.pixels(sketch, 16).flatten()])
        left.append(torch.corrcoef(pair)[0, 1].item())
    assert left[0] > 0.9 and all(a > b + 0.1 for a, b in zip(left, left[1:])), \
        f"the sketch must be left less and less: its correlation with what two steps make of it is {left}"


def test_the_courses_weights_are_complete_and_small():
    for options in {}, {"inpaints": True, "clip": True}:
        models = sample.Weights(**options)
        assert models.header("size") == 16 and models.header("world") == "full" and "upsampler" in models.saved
    total = sum(path.stat().st_size for path in unet.WEIGHTS.rglob("*") if path.is_file())
    assert total <= 60_000_000, f"lessons/weights has grown to {total / 1e6:.1f} MB; 60 are allowed"
