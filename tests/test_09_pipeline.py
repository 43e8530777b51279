"""The pipeline beyond its plain path: many pictures, memory, known parts, precision, CLIP, released files, trouble."""
import io
import weakref
from dataclasses import replace
from functools import lru_cache, partial
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import formula
import small
from small import main

tokenizer, transformer, unet, diffusion, guidance, upsample, train, sample = (import_module(m) for m in (
    "01_tokenizer", "02_transformer", "03_unet", "04_diffusion", "05_guidance", "07_upsample", "08_train", "09_sample"))
PROMPT = "a red heart above a blue umbrella"
SHORT = "--steps", "2", "--upsampler-steps", "2"


# --- Stand-ins ---

@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of the tiny base.pt and upsampler.pt, with random weights."""
    return small.save_models(tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("scratch"))


@pytest.fixture(scope="module")
def tiny(weights):
    return {name: sample.Model.load(weights / f"{name}.pt") for name in ("base", "upsampler")}


# In place of the released sizes: the same kinds, 16 and 64 pixels. What load_openai reads off shapes fits them.
TEXT = unet.TextConfig(260, 16, 64, 1, 1)
SMALL = {"base": (unet.UNetConfig(32, (1, 2), 1, (1,), text=TEXT), 16),
         "upsampler": (unet.UNetConfig(32, (1, 1, 2), 1, (2,), 6, text=TEXT), 64)}
SMALL |= {"inpaint": (replace(SMALL["base"][0], in_channels=7), 16),
          "inpaint-upsampler": (replace(SMALL["upsampler"][0], in_channels=10), 64)}
SMALL_CLIP = guidance.CLIPConfig(16, 4, 64, 1, 1, transformer.TextConfig(520, 16, 64, 1, 1), 32)
MERGES = {"vocab.bpe": b"#version: 0.2\nr e\nh e\nre d\n",
          "bpe_simple_vocab_16e6.txt.gz": b'"bpe_simple_vocab_16e6.txt#version: 0.2\nr e\nre d</w>\nh e\n'}


@pytest.fixture
def shrunk(monkeypatch):
    """The large presets shrunk to a size for tests."""
    sizes = SMALL | {"clip": (SMALL_CLIP, 16)}
    for name in "filtered", "paper":
        monkeypatch.setitem(train.PRESETS, name, {part: replace(train.PRESETS[name][part], network=config, size=size)
                                                  for part, (config, size) in sizes.items()})


def network(part):
    return small.randomize(unet.UNet(SMALL[part][0])).eval()


@pytest.fixture(scope="module")
def released(tmp_path_factory):
    """A cache folder of small files in place of OpenAI's."""
    folder = tmp_path_factory.mktemp("cache")
    for part in SMALL:
        torch.save(sample.export_openai(network(part)), folder / sample.RELEASED[part].file)
    towers = sample.export_openai_clip(small.randomize(guidance.NoisedCLIP(SMALL_CLIP)))
    for tower, state in zip(("clip-image", "clip-text"), towers):
        torch.save(state, folder / sample.RELEASED[tower].file)
    for name, lines in MERGES.items():
        (folder / name).write_bytes(lines)
    return folder


@pytest.fixture
def short_lists(monkeypatch, shrunk):
    """The tokenizers read lists of three merges as if they were the published ones."""
    real = tokenizer.read_merges
    monkeypatch.setattr(tokenizer, "read_merges", lambda path, alphabet, header, _: real(path, alphabet, header, 3))


class Spy:
    """In place of a U-Net: keeps all that it is given, and sees no noise anywhere."""

    def __init__(self):
        self.seen = []

    def __call__(self, x, t, **cond):
        self.seen.append((x, cond))
        return x.new_zeros(len(x), 6, *x.shape[2:])


def spied(part, tok=None):
    """-> (a Model of this part whose network is a Spy, the Spy)"""
    config, size = SMALL[part]
    spy, process = Spy(), train.PRESETS["filtered"][part].diffusion
    return sample.Model(upsample.denoiser_of(spy, config, process), config, process, size,
                        tok or tokenizer.BPETokenizer([]), preset="filtered"), spy


def refused(capfd, *argv):
    """The one line of a refusal: status 2, and nothing else is said."""
    status, _, err = main(capfd, *argv)
    assert status == 2 and len(err) == 1 and err[0].startswith("09_sample.py: "), (status, err)
    return err[0]


def pixels(path):
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


# --- The k-th picture depends on the seed and on k alone ---

@pytest.fixture(scope="module", params=["ddim", "ddpm", "dpm"])
def three(request, tiny):
    """-> (draw(n, batch): pictures of one seed, the three that one draws at once)"""
    def draw(n, batch):
        return sample.generate(PROMPT, **tiny, n=n, seed=5, steps="3", sampler=request.param, batch=batch,
                               large={"steps": "3", "sampler": request.param, "batch": batch}).int()
    return draw, draw(3, 3)


@pytest.mark.parametrize("n, batch", [(3, 1), (3, 2), (1, 1), (2, 2), (5, 4)])
def test_a_picture_does_not_depend_on_what_is_drawn_beside_it(three, n, batch):
    """Drawn apart, a few bytes differ by 1: a matrix product adds up in another order if it has more rows, and
    float32 rounds. Pictures of other random numbers differ by tens."""
    draw, expected = three
    off = (draw(n, batch)[:3] - expected[:n]).abs()
    assert off.max() <= 3 and off.float().mean() < 0.1, \
        f"--n {n} --batch {batch}: bytes differ by up to {off.max()}; each picture needs random numbers of its own"


def test_pictures_of_one_seed_are_far_apart(three):
    """What the test above would see if all pictures shared their random numbers, or k did not count."""
    a, b, c = three[1]
    assert min((a - b).abs().float().mean(), (b - c).abs().float().mean(), (a - c).abs().float().mean()) > 5


# --- One model in memory at a time ---

def fresh(name):
    """-> (a new small network, the Model or Clip around it)"""
    if name == "clip":
        net = small.randomize(guidance.NoisedCLIP(SMALL_CLIP)).eval()
        return net, sample.Clip(net, tokenizer.CLIPTokenizer([]))
    net, size = network(name), SMALL[name][1]
    process = train.PRESETS["filtered"][name].diffusion
    return net, sample.Model.of(net, process, size, tokenizer.BPETokenizer([]), preset="filtered")


def shelf():
    """-> (load(name), book): new small models, and a list of (who was loaded, who was in memory then)."""
    book, networks = [], {}

    def load(name):
        book.append((name, [other for other, reference in networks.items() if reference() is not None]))
        net, model = fresh(name)
        networks[name] = weakref.ref(net)
        return model
    return load, book


def functions(load, keep=False):
    return {name: (lru_cache if keep else lambda f: f)(partial(load, name)) for name in ("base", "upsampler", "clip")}


def few_steps(**how):
    return {"n": 2, "seed": 1, "steps": "2", "batch": 1, "large": {"steps": "2", "batch": 1}} | how


@pytest.mark.parametrize("how, expected", [
    ({}, [("base", []), ("upsampler", [])]),
    ({"candidates": 3}, [("base", []), ("clip", []), ("upsampler", [])]),
    ({"guide": "clip"}, [("clip", []), ("base", ["clip"]), ("upsampler", [])]),
    ({"guide": "clip", "candidates": 3}, [("clip", []), ("base", ["clip"]), ("upsampler", [])])])
def test_each_model_is_loaded_once_and_leaves_before_the_next_one_comes(how, expected):
    """Two pictures, one at a time: four batches. The released models fill 1.5 GB each."""
    load, book = shelf()
    sample.generate(PROMPT, **functions(load), **few_steps(**how))
    assert book == expected, "(who is loaded, who is in memory then); a model that is done with must be gone by then"


def test_models_that_are_kept_are_loaded_once_for_all_drawings():
    load, book = shelf()
    models = functions(load, keep=True)
    for seed in 1, 2:
        sample.generate(PROMPT, **models, **few_steps(seed=seed))
    assert book == [("base", []), ("upsampler", ["base"])], "--keep: both live on, and the second drawing loads nothing"


@pytest.mark.parametrize("options, kept", [([], False), (["--keep"], True)])
def test_keep_is_what_makes_the_command_keep_them(options, kept, shrunk):
    args = sample.arguments([PROMPT, "--preset", "filtered", "--random-weights", *options])
    base = sample.loaders(args)["base"]
    assert (base() is base()) == kept


# --- Known parts ---

def noise_picture(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def half_hole(width, height):
    """White from a quarter of the width to three quarters, in the upper half."""
    hole = Image.new("L", (width, height))
    hole.paste(255, (width // 4, 0, 3 * width // 4, height // 2))
    return hole


SIZES = [(97, 61), (61, 97), (300, 201), (16, 16), (64, 64), (7, 5), (1, 1)]


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
@pytest.mark.parametrize("side", [16, 64])
def test_white_is_where_it_draws(size, side):
    """The hole is of another size than the picture, and both are of another than the models'."""
    image, mask = sample.Known(noise_picture(*size), half_hole(48, 80), 16).at(side, "cpu")
    expected = torch.ones(1, 1, side, side)
    expected[..., :side // 2, side // 4:3 * side // 4] = 0
    assert torch.equal(mask, expected), "in files white = draw here, in tensors 1 = known"
    assert image.shape == (1, 3, side, side) and image.min() >= -1 and image.max() <= 1


def test_the_picture_is_seen_from_minus_one_to_one():
    picture = Image.new("RGB", (97, 61), (255, 0, 51))
    image = sample.Known(picture, Image.new("L", (5, 5), 255), 16).at(16, "cpu")[0]
    assert torch.allclose(image[0, :, 3, 3], torch.tensor([1.0, -1.0, -0.6])), "255, 0 and 51 of a file"


@pytest.mark.parametrize("side", [16, 64])
def test_a_large_picture_is_reduced_by_its_mean(side):
    """As the pictures were that the models learned from."""
    picture = noise_picture(4 * side, 4 * side)
    image = sample.Known(picture, half_hole(16, 16), 16).at(side, "cpu")[0]
    squares = np.asarray(picture, np.float64).reshape(side, 4, side, 4, 3).mean((1, 3))
    assert np.abs((image[0].permute(1, 2, 0).numpy() + 1) * 127.5 - squares).max() <= 1, "bytes, each stage rounded"


def test_a_small_pixel_is_drawn_if_half_of_it_is_white():
    hole, rng = np.zeros((16, 4, 16, 4), np.uint8), np.random.default_rng(0)
    white = np.arange(256).reshape(16, 16) % 17                 # so many of a block's 16 pixels
    for row, column in np.ndindex(16, 16):
        block = np.repeat(np.array([255, 0], np.uint8), [white[row, column], 16 - white[row, column]])
        hole[row, :, column] = rng.permutation(block).reshape(4, 4)
    mask = sample.Known(noise_picture(64, 64), Image.fromarray(hole.reshape(64, 64)), 16).at(16, "cpu")[1]
    assert np.array_equal(mask[0, 0].numpy() == 0, white >= 8), "half or more white: drawn; less: known"


def test_both_models_get_the_same_hole():
    """Were the upsampler's finer, it would have to invent what the base model was told not to draw."""
    rng = np.random.default_rng(0)
    hole = Image.fromarray((rng.random((61, 97)) < 0.5).astype(np.uint8) * 255)
    known = sample.Known(noise_picture(97, 61), hole, 16)
    base, large = (known.at(side, "cpu")[1] for side in (16, 64))
    assert 0 < base.mean() < 1
    assert torch.equal(large, base.repeat_interleave(4, 2).repeat_interleave(4, 3)), "each small pixel is a 4×4 square"


@pytest.mark.parametrize("size", SIZES, ids="{0[0]}x{0[1]}".format)
def test_what_comes_back_has_the_pictures_size_and_its_known_pixels(size):
    picture, drawn = noise_picture(*size), torch.zeros(3, 64, 64, dtype=torch.uint8)
    back = sample.Known(picture, half_hole(32, 32), 16).put_back(drawn)
    assert back.size == picture.size
    rows, columns = (np.arange(side) + 0.5 for side in (size[1], size[0]))
    open_ = (rows < size[1] / 2)[:, None] & (abs(columns - size[0] / 2) < size[0] / 4)
    edge = np.minimum(abs(rows - size[1] / 2)[:, None], abs(abs(columns - size[0] / 2) - size[0] / 4)) < 0.01
    expected = np.where(open_[..., None], 0, np.asarray(picture))
    assert np.array_equal(np.asarray(back)[~edge], expected[~edge]), "known pixels to the last bit, drawn ones drawn"


@pytest.mark.parametrize("part", ["inpaint", "inpaint-upsampler"])
def test_a_model_trained_to_look_is_shown_what_is_known(part):
    """On its input channels: x, (low_res last, if any) picture × mask, mask; in [-1, 1], and 1 = known."""
    model, spy = spied(part)
    known = sample.Known(noise_picture(97, 61), half_hole(32, 32), 16)
    how = {"generator": torch.Generator().manual_seed(0), "known": known, "steps": "2"}
    if part == "inpaint":
        sample.draw_small(model, [PROMPT] * 2, **how)
    else:
        sample.enlarge(model, torch.zeros(2, 3, 16, 16), [PROMPT] * 2, **how)
    image, mask = known.at(model.size, "cpu")
    assert len(spy.seen) == 2 and all(x.shape[1] == model.config.in_channels for x, _ in spy.seen)
    for x, _ in spy.seen:
        assert torch.equal(x[:, 3:6], (image * mask).expand(len(x), -1, -1, -1)), "what is to be drawn is wiped out"
        assert torch.equal(x[:, 6:7], mask.expand(len(x), -1, -1, -1)), "the mask: 1 = known"


@pytest.mark.parametrize("part", ["base", "upsampler"])
def test_a_model_that_was_not_trained_to_look_is_shown_nothing_and_draws_around(part):
    model, spy = spied(part)
    known = sample.Known(noise_picture(97, 61), half_hole(32, 32), 16)
    how = {"generator": torch.Generator().manual_seed(0), "known": known, "steps": "2"}
    drawn = sample.draw_small(model, [PROMPT], **how) if part == "base" else \
        sample.enlarge(model, torch.zeros(1, 3, 16, 16), [PROMPT], **how)
    image, mask = known.at(model.size, "cpu")
    assert {x.shape[1] for x, _ in spy.seen} == {model.config.in_channels}
    assert torch.allclose(drawn * mask, image * mask, atol=1e-5), "the known part is put into each predicted picture"
    assert (drawn - image)[(mask == 0).expand_as(drawn)].abs().mean() > 0.1, "… and the rest is drawn"


# --- --image and --mask ---

@pytest.fixture
def edit(weights, tmp_path, capfd):
    """edit(name, write, hole): a picture file drawn into by the command -> the pixels it wrote."""
    def run(name, write, hole=None, *options):
        picture, mask, out = tmp_path / name, tmp_path / "mask.png", tmp_path / "out" / "a.png"
        write(picture)
        (hole or left_known()).save(mask)
        status, _, err = main(capfd, PROMPT, "--weights", weights, "--image", picture, "--mask", mask,
                              "--out", out, "--seed", "1", *SHORT, *options)
        assert status == 0, err
        return pixels(out)
    return run


def left_known(width=32, height=32):
    """White in the right half."""
    hole = Image.new("L", (width, height))
    hole.paste(255, (width // 2, 0, width, height))
    return hole


@pytest.mark.parametrize("size", [(98, 61), (40, 300), (6, 4)], ids="{0[0]}x{0[1]}".format)
def test_an_edited_picture_keeps_its_size_and_what_was_known(edit, size):
    picture = noise_picture(*size)
    out = edit("picture.png", picture.save)
    assert out.shape == (size[1], size[0], 3)
    middle = size[0] // 2
    assert np.array_equal(out[:, :middle], np.asarray(picture)[:, :middle]), "black of the mask: not a bit may change"
    assert not np.array_equal(out[:, middle:], np.asarray(picture)[:, middle:]), "white of the mask: drawn"


def test_with_nothing_known_all_of_it_is_drawn(edit):
    out = edit("picture.png", noise_picture(98, 61).save, Image.new("1", (3, 3), 1))
    same = (out == np.asarray(noise_picture(98, 61))).all(2).mean()
    assert out.shape == (61, 98, 3) and same < 0.05, f"{same:.0%} of the pixels are still the old ones"


def test_several_pictures_of_one_hole_stand_side_by_side(edit):
    picture = noise_picture(30, 20)
    out = edit("picture.png", picture.save, None, "--n", "2")
    assert out.shape == (20, 2 * 30 + 8, 3)
    assert np.array_equal(out[:, :15], out[:, 38:53]) and not np.array_equal(out[:, 15:30], out[:, 53:])


GREY = np.random.default_rng(1).integers(0, 256, (20, 30), dtype=np.uint8)


def as_rgb(grey):
    return np.repeat(grey[..., None], 3, axis=2)


def palette(path):
    image = Image.fromarray(GREY % 3).convert("L")
    image.putpalette([255, 0, 0, 0, 255, 0, 0, 0, 255])
    image.save(path)


def see_through(path):
    """Black everywhere, its alpha 0, 51 or 255 by column."""
    rgba = np.zeros((20, 30, 4), np.uint8)
    rgba[..., 3] = np.array([0, 51, 255], np.uint8)[np.arange(30) % 3]
    Image.fromarray(rgba).save(path)


SQUARES = as_rgb(np.repeat(np.repeat(GREY[:3, :2], 8, axis=0), 8, axis=1))   # of 8 pixels: easy for a JPEG


def turned(path):
    """A JPEG as a camera saves it that was held upright: the sensor's picture, and how to turn it."""
    exif = Image.Exif()
    exif[0x0112] = 6                      # to be turned by 90° clockwise
    Image.fromarray(SQUARES).save(path, exif=exif, quality=95)


# What a file holds -> (its name, how it is written, the pixels that one should see, how far off they may be)
FILES = {
    "grey": ("a.png", Image.fromarray(GREY).save, as_rgb(GREY), 0),
    "16 bits of grey": ("a.png", Image.fromarray(GREY.astype(np.uint16) * 257).save, as_rgb(GREY), 0),
    "a palette": ("a.gif", palette, np.eye(3, dtype=np.uint8)[GREY % 3] * 255, 0),
    "transparency": ("a.png", see_through, as_rgb(np.tile(np.array([255, 204, 0], np.uint8), (20, 10))), 1),
    "a turned JPEG": ("a.jpg", turned, np.rot90(SQUARES, -1), 8),
    "a CMYK JPEG": ("a.jpg", Image.new("CMYK", (30, 20), (255, 0, 0, 51)).save,
                    np.tile(np.array([0, 204, 204], np.uint8), (20, 30, 1)), 3),
    "a camera's JPEG with a second picture": ("a.jpg", lambda path: Image.new("RGB", (30, 20), "blue").save(
        path, format="MPO", save_all=True, append_images=[Image.new("RGB", (3, 2))]),
        np.tile(np.array([0, 0, 254], np.uint8), (20, 30, 1)), 3),
}


@pytest.mark.parametrize("case", FILES)
def test_every_common_picture_file_can_be_drawn_into(case, edit):
    name, write, expected, tolerance = FILES[case]
    out = edit(name, write)
    assert out.shape == expected.shape, f"{out.shape[1]}×{out.shape[0]} pixels; upright it is {expected.shape[1]} wide"
    middle = out.shape[1] // 2
    off = np.abs(out[:, :middle].astype(int) - expected[:, :middle]).max()
    assert off <= tolerance, f"the known half is off by up to {off}"


def test_a_mask_that_is_transparent_asks_for_nothing_there(tmp_path):
    """White, but to be seen in the upper half only."""
    rgba = np.full((32, 32, 4), 255, np.uint8)
    rgba[16:, :, 3] = 0
    Image.fromarray(rgba).save(tmp_path / "mask.png")
    mask = sample.Known(noise_picture(9, 9), sample.read_picture(tmp_path / "mask.png", "L"), 16).at(16, "cpu")[1]
    assert mask[..., :8, :].sum() == 0 and mask[..., 8:, :].all()


def truncated(path):
    data = io.BytesIO()
    noise_picture(60, 40).save(data, format="PNG")
    path.write_bytes(data.getvalue()[:3000])


def animated(path):
    frames = [noise_picture(20, 20, seed).quantize(16) for seed in range(3)]
    frames[0].save(path, save_all=True, append_images=frames[1:])


BAD = {
    "a missing file": ("a.png", lambda path: None, "No such file"),
    "a text file": ("a.png", lambda path: path.write_text("not a picture"), "no picture"),
    "an empty file": ("a.png", lambda path: path.touch(), "no picture"),
    "a folder": ("a.png", lambda path: path.mkdir(), "directory"),
    "a truncated file": ("a.png", truncated, "cannot be read"),
    "damaged numbers": ("a.ppm", lambda path: path.write_bytes(b"P6 3x 20 255\n" + bytes(1800)), "no picture"),
    "an animation": ("a.gif", animated, "holds 3 pictures"),
}


@pytest.mark.parametrize("option", ["--image", "--mask"])
@pytest.mark.parametrize("case", BAD)
def test_what_is_no_picture_is_refused_in_one_line(case, option, weights, tmp_path, capfd):
    name, write, word = BAD[case]
    write(tmp_path / name)
    left_known().save(tmp_path / "other.png")
    before = sorted(tmp_path.iterdir())
    other = "--mask" if option == "--image" else "--image"
    line = refused(capfd, PROMPT, "--weights", weights, option, tmp_path / name, other, tmp_path / "other.png",
                   "--out", tmp_path / "new" / "out.png", *SHORT)
    assert word in line and str(tmp_path / name) in line, line
    assert sorted(tmp_path.iterdir()) == before, "nothing new may be left behind"


@pytest.mark.parametrize("options, word", [
    (["--image", "there.png"], "--image goes with --mask"), (["--mask", "there.png"], "--image goes with --mask"),
    (["--image", "there.png", "--mask", "black.png"], "nothing to draw")])
def test_half_a_wish_is_refused(options, word, weights, tmp_path, capfd, monkeypatch):
    monkeypatch.chdir(tmp_path)
    noise_picture(20, 20).save("there.png")
    Image.new("L", (20, 20), 100).save("black.png")        # dark grey: nowhere half white
    assert word in refused(capfd, PROMPT, "--weights", weights, "--out", "new/out.png", *options, *SHORT)
    assert {path.name for path in tmp_path.iterdir()} == {"there.png", "black.png"}


# --- Precision ---

# Twice the largest distance measured: 0.023 and 0.0029 of the largest value. bfloat16 keeps 8 binary digits of a
# number, float16 11, and the errors of some twenty layers add up.
TOLERANCE = {"bfloat16": 0.045, "float16": 0.006}


@pytest.mark.parametrize("dtype", TOLERANCE)
@pytest.mark.parametrize("kind", ["base", "upsample", "base-inpaint", "upsample-inpaint"])
@pytest.mark.parametrize("model", "ab")
def test_16_bits_answer_nearly_the_same(kind, model, dtype):
    net = sample.in_precision(sample.released_unet(formula.state_dict(kind, model)), getattr(torch, dtype))
    x, t, cond = formula.inp("x", 3, 3, 16, 16), torch.tensor([0, 500, 999]), formula.conditioning(kind, model)
    with torch.no_grad():
        answer = upsample.denoiser_of(net, net.config)(x, t, **cond)
        expected = formula.denoiser(kind, model)(x, t, **cond)
    assert answer.dtype == torch.float32, "samplers add small steps to large numbers: an answer is float32"
    off = formula.distance(answer, expected)
    print(f"{kind} {model} {dtype}: off by {off.max():.4f}")
    assert 0 < off.max() <= TOLERANCE[dtype], f"{dtype} is off by {off.tolist()}, {TOLERANCE[dtype]} allowed"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_last_layer_stays_float32(dtype):
    net = sample.in_precision(network("base"), dtype)
    kinds = {name.split(".")[0]: p.dtype for name, p in net.named_parameters()}
    assert kinds.pop("leave") == torch.float32, "its rounding errors would be in the picture"
    assert set(kinds.values()) == {dtype}, "all others are turned, or half of the memory is not saved"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_a_picture_of_16_bits_is_nearly_the_same(dtype, weights, tmp_path, capfd):
    drawn = []
    for name in dtype, "float32":
        out = tmp_path / f"{name}.png"
        status, _, err = main(capfd, PROMPT, "--weights", weights, "--seed", "1", "--dtype", name, "--out", out, *SHORT)
        assert status == 0, err
        drawn.append(pixels(out).astype(int))
    off = np.abs(drawn[0] - drawn[1]).mean()
    assert 0 < off < 8, f"bytes differ by {off:.2f} on average; pictures of two seeds by tens"


@pytest.mark.parametrize("preset, device, fast, expected", [
    ("tiny", "cpu", True, torch.float32), ("tiny", "cuda", True, torch.float32),
    ("filtered", "cpu", False, torch.float32), ("filtered", "cpu", True, torch.bfloat16),
    ("filtered", "cuda", False, torch.float16), ("paper", "cuda", True, torch.bfloat16)])
def test_auto_takes_16_bits_where_they_are_fast_and_the_model_is_large(preset, device, fast, expected, monkeypatch):
    monkeypatch.setattr(train, "has_fast_bf16", lambda device: fast)
    args = sample.arguments([PROMPT, "--preset", preset])
    args.device = device
    assert sample.dtype_of(args) == expected


# --- CLIP: reranking and guidance ---

class Taste:
    """In place of a Clip: how well each picture fits is known beforehand."""

    def __init__(self, fits):
        self.fits = torch.tensor(fits)

    def fit(self, pictures, prompts):
        assert len(pictures) == len(prompts) == len(self.fits)
        self.pictures = pictures
        return self.fits


def test_the_candidates_that_fit_best_are_enlarged_best_first(tiny, monkeypatch):
    taste, enlarged = Taste([0.1, 0.9, -0.3, 0.95, 0.2]), []
    monkeypatch.setattr(sample, "enlarge", lambda model, low_res, prompts, **how: enlarged.append(low_res) or low_res)
    pictures = sample.generate(PROMPT, **tiny, clip=taste, candidates=5, n=2, seed=1, steps="2", batch=2)
    assert torch.equal(torch.cat(enlarged), taste.pictures[[3, 1]]), "fits 0.95 and 0.9, in this order; nothing else"
    assert torch.equal(pictures, train.to_bytes(taste.pictures[[3, 1]]))


def test_candidates_are_the_pictures_that_this_seed_draws_anyway(tiny, monkeypatch):
    monkeypatch.setattr(sample, "enlarge", lambda model, low_res, prompts, **how: low_res)
    how = {"n": 2, "seed": 1, "steps": "2"}
    plain, ranked = (sample.generate(PROMPT, **tiny, **how, **extra)
                     for extra in ({}, {"candidates": 2, "clip": Taste([0.4, 0.5])}))
    assert torch.equal(ranked, plain.flip(0)), "with nothing to leave out, reranking only changes the order"


def test_fit_is_the_product_of_unit_vectors_of_pictures_without_noise():
    _, clip = fresh("clip")
    pictures, prompts = formula.inp("x", 3, 3, 16, 16).clamp(-1, 1), [PROMPT, "a cat", ""]
    fit = clip.fit(pictures, prompts)
    with torch.no_grad():
        alone = [clip.network.image(picture[None], torch.tensor([0])) @ clip.embed([prompt]).T
                 for picture, prompt in zip(pictures, prompts)]
    assert torch.allclose(fit, torch.cat(alone).flatten(), atol=1e-5), "each picture beside its own prompt, at t = 0"
    assert fit.shape == (3,) and fit.abs().max() <= 1 + 1e-5 and not fit.requires_grad


def test_a_prompts_embedding_is_read_at_its_end_token():
    """The filling after it counts for nothing: the same prompt in a longer row is the same vector."""
    _, clip = fresh("clip")
    ids, length = clip.tokenizer.pad(clip.tokenizer.encode("a cat"), 9)
    with torch.no_grad():
        expected = clip.network.text(torch.tensor([ids + [0] * 7]), torch.tensor([length]))
    assert torch.allclose(clip.embed(["a cat"]), expected, atol=1e-6)


class Reddish(torch.nn.Module):
    """A CLIP that sees nothing but a picture's mean red and green: its gradient can be written down."""

    config = SMALL_CLIP

    def image(self, x, t):
        return x[:, :2].mean((2, 3))

    def text(self, tokens, lengths):
        return torch.tensor([[0.6, -0.8]]).expand(len(tokens), -1)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim", "dpm"])
def test_clip_guides_by_its_gradient_and_the_model_goes_unguided(sampler):
    model, spy = spied("base")
    clip = sample.Clip(Reddish(), tokenizer.CLIPTokenizer([]))
    drawn = sample.draw_small(model, [PROMPT] * 2, generator=torch.Generator().manual_seed(3), clip=clip, guide="clip",
                              scale=0.5, steps="4", sampler=sampler)
    guided = [x for x, _ in spy.seen]
    assert {len(x) for x in guided} == {2}, "classifier-free guidance would ask about twice as many"
    assert all(cond["mask"].any(1).all() for _, cond in spy.seen), "the prompt is told to the model as well"
    # ∂/∂x of s·100·(0.6·mean red - 0.8·mean green): the mean of 256 pixels
    gradient = 0.5 * 100 / 256 * torch.tensor([0.6, -0.8, 0]).view(1, 3, 1, 1).expand(2, 3, 16, 16)
    g, process = torch.Generator().manual_seed(3), diffusion.Diffusion.of(model.process, "4")
    x_T = torch.randn(2, 3, 16, 16, generator=g)
    expected = getattr(process, f"{sampler}_sample")(model.denoiser, x_T, generator=g, grad_fn=lambda x, t: gradient,
                                                     **model.encode([PROMPT] * 2))
    assert torch.allclose(drawn, expected, atol=1e-5), "s·100·∇ of the fit, added by the sampler"
    assert all(torch.allclose(a, b, atol=1e-5) for a, (b, _) in zip(guided, spy.seen[4:])), "… at every step alike"
    plain = sample.draw_small(model, [PROMPT] * 2, generator=torch.Generator().manual_seed(3), steps="4", scale=1.0,
                              sampler=sampler)
    assert (drawn - plain)[:, 0].mean() > 1e-3 > -1e-3 > (drawn - plain)[:, 1].mean(), "redder, and less green"


@pytest.mark.parametrize("options", [["--candidates", "4"], ["--rerank", "--n", "5", "--candidates", "4"],
                                     ["--rerank", "--n", "17"]])
def test_candidates_need_reranking_and_be_enough(options, capfd, tmp_path):
    line = refused(capfd, PROMPT, "--preset", "filtered", "--cache", tmp_path, *options)
    assert "--candidates belongs to --rerank" in line and "as many as --n" in line


@pytest.mark.parametrize("options", [["--rerank"], ["--guide", "clip"]])
def test_a_folder_without_a_clip_is_told_so(options, weights, capfd):
    line = refused(capfd, PROMPT, "--weights", weights, *options)
    assert "without a CLIP" in line and "--preset filtered" in line and "08_train.py clip" in line


# --- --random-weights: does it run here? ---

@pytest.mark.parametrize("preset", ["filtered", "paper"])
@pytest.mark.parametrize("options", [[], ["--n", "3", "--batch", "2"], ["--rerank", "--candidates", "3"],
                                     ["--guide", "clip"], ["--keep", "--dtype", "bfloat16"]], ids=" ".join)
def test_random_weights_draw_a_picture_of_the_upsamplers_size(preset, options, shrunk, tmp_path, capfd):
    out = tmp_path / "a.png"
    status, _, err = main(capfd, "any words at all", "--preset", preset, "--random-weights", "--seed", "1",
                          "--dtype", "float32", "--out", out, *SHORT, *options)
    assert status == 0, err
    n = 3 if "--n" in options else 1
    assert pixels(out).shape == (64, n * 64 + (n - 1) * 8, 3)


def test_random_weights_draw_into_a_picture_with_the_inpainting_models(shrunk, tmp_path, capfd, monkeypatch):
    noise_picture(98, 61).save(tmp_path / "image.png")
    left_known().save(tmp_path / "mask.png")
    loaded, load = [], sample.load_random
    monkeypatch.setattr(sample, "load_random", lambda args, part: loaded.append(part) or load(args, part))
    status, _, err = main(capfd, "a corgi", "--preset", "filtered", "--random-weights", "--out", tmp_path / "a.png",
                          *SHORT, "--image", tmp_path / "image.png", "--mask", tmp_path / "mask.png")
    assert status == 0, err
    assert loaded == ["inpaint", "inpaint-upsampler"], "the released models that were trained to look at what is known"
    assert np.array_equal(pixels(tmp_path / "a.png")[:, :49], pixels(tmp_path / "image.png")[:, :49])


def test_the_papers_weights_cannot_be_had(capfd):
    line = refused(capfd, PROMPT, "--preset", "paper")
    assert "nobody has published" in line and "--random-weights" in line


# --- Released files, from the cache folder to the picture ---

def by_hand(folder, part):
    """The Model that a reader would make of a released file with load_openai."""
    (config, size), preset = SMALL[part], train.PRESETS["filtered"][part]
    denoiser = sample.load_openai(torch.load(folder / sample.RELEASED[part].file, weights_only=True))
    tok = tokenizer.BPETokenizer(tokenizer.read_merges(folder / "vocab.bpe", tokenizer.SYMBOLS, "#version: 0.2", 3))
    return sample.Model(denoiser, config, preset.diffusion, size, tok, preset="filtered")


def test_released_files_draw_what_load_openai_draws(released, short_lists, tmp_path, capfd):
    status, told, err = main(capfd, "a red hen", "--preset", "filtered", "--cache", released, "--seed", "7", "--n", "3",
                             "--dtype", "float32", "--batch", "2", "--out", tmp_path / "a.png", *SHORT)
    assert status == 0 and "seed 7" in told, err
    expected = sample.generate("a red hen", base=by_hand(released, "base"), upsampler=by_hand(released, "upsampler"),
                               n=3, seed=7, steps="2", batch=2, large={"steps": "2", "batch": 2})
    tiles = [pixels(tmp_path / "a.png")[:, k * 72:k * 72 + 64] for k in range(3)]
    assert np.array_equal(np.stack(tiles), expected.permute(0, 2, 3, 1).numpy()), "the command adds nothing of its own"


def test_released_files_walk_as_the_reports_do(released, short_lists, tmp_path, capfd):
    """150 ancestral steps at 64 pixels, 27 DDIM steps at 256: on stderr stands what was walked."""
    status, _, err = main(capfd, "x", "--preset", "filtered", "--cache", released, "--out", tmp_path / "a.png")
    assert status == 0, err
    assert [line.split(",")[0] for line in err] == ["base: 150 steps at 16×16", "upsampler: 27 steps at 64×64"]


@pytest.mark.parametrize("options", [["--rerank", "--candidates", "3"], ["--guide", "clip"]], ids=" ".join)
def test_the_released_clip_is_taken_from_the_cache(options, released, short_lists, tmp_path, capfd):
    pictures = {}
    for name, extra in ("with", options), ("without", []):
        status, _, err = main(capfd, "a red hen", "--preset", "filtered", "--cache", released, "--seed", "4", *SHORT,
                              "--dtype", "float32", "--out", tmp_path / f"{name}.png", *extra)
        assert status == 0, err
        pictures[name] = pixels(tmp_path / f"{name}.png")
    assert not np.array_equal(pictures["with"], pictures["without"]), "CLIP must have had a say"


def test_the_prompt_reaches_released_models_in_their_own_tokens(released, short_lists, tmp_path):
    args = sample.arguments(["red", "--preset", "filtered", "--cache", str(released), "--rerank"])
    models = {name: load() for name, load in sample.loaders(args).items()}
    assert models["base"].encode(["red"])["tokens"][0, 0] == 258, "256 bytes, then re, he, red"
    assert models["clip"].tokenizer.encode("red") == [513], "512 bytes, then re, red at a word's end"


def copied(released, folder):
    for path in released.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    return folder


@pytest.mark.parametrize("name, other", [
    ("base.pt", "upsample.pt"), ("base.pt", "base_inpaint.pt"), ("base.pt", "clip_text_enc.pt"),
    ("upsample.pt", "base.pt"), ("clip_image_enc.pt", "clip_text_enc.pt")])
def test_another_models_file_is_refused_by_name(name, other, released, short_lists, tmp_path, capfd):
    copied(released, tmp_path)
    (tmp_path / name).write_bytes((released / other).read_bytes())
    line = refused_after_start(capfd, "x", "--preset", "filtered", "--cache", tmp_path, "--rerank", "--candidates", "2",
                               "--out", tmp_path / "new" / "a.png", *SHORT)
    assert str(tmp_path / name) in line and "another model" in line and "fetch" in line, line


def refused_after_start(capfd, *argv):
    """As `refused`, for what is found out when a model is loaded: others may have told of their steps by then."""
    status, _, err = main(capfd, *argv)
    assert status == 2 and [line for line in err if not line.startswith(("base: ", "upsampler: "))] == err[-1:], err
    assert err[-1].startswith("09_sample.py: ")
    return err[-1]


def test_a_file_that_holds_no_weights_is_refused_by_name(released, short_lists, tmp_path, capfd):
    (copied(released, tmp_path) / "base.pt").write_text("<html>")
    line = refused(capfd, "x", "--preset", "filtered", "--cache", tmp_path, "--out", tmp_path / "a.png", *SHORT)
    assert str(tmp_path / "base.pt") in line


def test_a_list_of_merges_that_is_none_is_refused_by_name(released, shrunk, tmp_path, capfd):
    """Here with the real reader, which wants all of GPT-2's merges."""
    line = refused(capfd, "x", "--preset", "filtered", "--cache", released, "--out", tmp_path / "a.png", *SHORT)
    assert str(released / "vocab.bpe") in line and "50,000 merges" in line


NEEDED = {"plain": ([], {"vocab.bpe", "base.pt", "upsample.pt"}, "--fetch --cache"),
          "inpainting": (["--image", "i.png", "--mask", "m.png"],
                         {"vocab.bpe", "base_inpaint.pt", "upsample_inpaint.pt"}, "--fetch inpaint --cache"),
          "reranking": (["--rerank"], {"vocab.bpe", "base.pt", "upsample.pt", "bpe_simple_vocab_16e6.txt.gz",
                                       "clip_image_enc.pt", "clip_text_enc.pt"}, "--fetch all --cache")}


@pytest.mark.parametrize("case", NEEDED)
def test_missing_files_are_told_with_the_command_that_fetches_them(case, tmp_path, capfd):
    options, files, command = NEEDED[case]
    line = refused(capfd, "x", "--preset", "filtered", "--cache", tmp_path, "--out", tmp_path / "new/a.png", *options)
    assert command in line and str(tmp_path) in line
    every = {entry.file for entry in sample.RELEASED.values()}
    assert {file for file in every if f" {file} (" in line} == files, "what this drawing takes, and nothing else"
    assert not list(tmp_path.iterdir())


# --- File names ---

def test_the_same_prompt_and_seed_twice_are_two_files(weights, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sample, "OUTPUTS", tmp_path)
    for scale in "1", "8", "8":
        status, told, err = main(capfd, PROMPT, "--weights", weights, "--seed", "3", "--scale", scale, *SHORT)
        assert status == 0, err
    stem = "a-red-heart-above-a-blue-umbrella-3"
    names = [f"{stem}.png", f"{stem}-2.png", f"{stem}-3.png"]
    steps = [name.replace(".png", "-steps.png") for name in names]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names + steps), "none may be overwritten"
    first, second, third = (pixels(tmp_path / name) for name in names)
    assert not np.array_equal(first, second) and np.array_equal(second, third), "each file holds its own drawing"
    assert names[2] in told


def test_a_strip_of_that_name_is_not_overwritten_either(tmp_path):
    (tmp_path / "a-1-steps.png").touch()
    assert sample.free_name(tmp_path / "a-1.png") == tmp_path / "a-1-2.png"


# --- Trouble ---

def gpu_is_full(*args, **kwargs):
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation")


def cpu_is_full(*args, **kwargs):
    torch.empty(1 << 46)     # 256 TiB of float32


@pytest.mark.parametrize("trouble", [gpu_is_full, cpu_is_full])
def test_out_of_memory_is_one_line_with_a_remedy(trouble, weights, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sample, "generate", trouble)
    line = refused(capfd, PROMPT, "--weights", weights, "--out", tmp_path / "a.png")
    assert "out of memory" in line and "--batch 1" in line and not list(tmp_path.iterdir())


def test_other_errors_of_torch_are_not_taken_for_it(weights, tmp_path, monkeypatch):
    def bug(*args, **kwargs):
        raise RuntimeError("shapes do not match")
    monkeypatch.setattr(sample, "generate", bug)
    with pytest.raises(RuntimeError, match="shapes"):
        sample.main([PROMPT, "--weights", str(weights), "--out", str(tmp_path / "a.png")])


@pytest.mark.parametrize("name", ["base", "upsampler"])
def test_numbers_that_are_none_become_no_picture(name, weights, tmp_path, capfd):
    """As an overflow of 16 bits leaves them: inf - inf."""
    folder, out = copied(weights, tmp_path), tmp_path / "a.png"
    net, saved = unet.UNet.load(folder / f"{name}.pt"), unet.read_weights(folder / f"{name}.pt")
    net.leave[2].bias.data[0] = float("nan")
    unet.save_weights(folder / f"{name}.pt", net, **{k: v for k, v in saved.items() if k not in ("config", "weights")})
    line = refused_after_start(capfd, PROMPT, "--weights", folder, "--out", out, *SHORT)
    assert "--dtype" in line and not out.exists()


@pytest.mark.parametrize("options, word", [
    (["--upsampler-steps", "0"], "'0'"), (["--upsampler-steps", "many"], "'many'"),
    (["--upsampler-steps", "1001"], "1001"), (["--mirror", "https://example.org"], "--fetch"),
    (["--measure", "--preset", "filtered"], "only the tiny"), (["--measure", "--preset", "paper"], "only the tiny")])
def test_what_makes_no_sense_is_refused_in_one_line(options, word, weights, tmp_path, capfd):
    line = refused(capfd, PROMPT, "--weights", weights, "--out", tmp_path / "new" / "a.png", *options)
    assert word in line and not list(tmp_path.iterdir()), line


@pytest.mark.parametrize("options", [["--batch", "0"], ["--batch", "-1"], ["--dtype", "int8"], ["--preset", "huge"],
                                     ["--guide", "me"], ["--candidates", "0"], ["--fetch", "everything"]], ids=" ".join)
def test_wrong_values_are_refused(options, weights, tmp_path, capfd):
    status, _, err = main(capfd, "--weights", weights, "--out", tmp_path / "a.png", PROMPT, *options)
    assert status == 2 and "error:" in err[-1] and options[-1] in err[-1], err
    assert not list(tmp_path.iterdir())
