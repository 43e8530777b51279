"""Exercises of lesson 9: from a prompt to a picture. The networks are tiny, or formulas that are watched."""
from dataclasses import asdict
from types import SimpleNamespace

from expect import close, holds, same
from numpy import asarray
from PIL import Image
from torch import Generator, arange, cat, empty, float32, float64, full, manual_seed, no_grad, tensor, zeros
from torch.nn.functional import interpolate

empty(1, device="meta").normal_()            # the first time this takes seconds, which no exercise is to be charged for


# --- 9.1 InpaintInput.at ---

def picture(rng, width, height, mode="RGB"):
    """An image of random pixels."""
    return Image.frombytes(mode, (width, height), rng.randbytes(width * height * len(mode)))


def half_white(width, height):
    """A mask file whose right half is white: to be drawn."""
    mask = Image.new("L", (width, height))
    mask.paste(255, (width // 2, 0, width, height))
    return mask


def test_9_1_images_and_masks(m, rng):
    known = m.InpaintInput(picture(rng, 40, 24), half_white(40, 24), 4)
    images, masks = known.at(8, "cpu", 3)
    same("the shapes of images and masks at size 8, three of each", [list(images.shape), list(masks.shape)],
         [[3, 3, 8, 8], [3, 1, 8, 8]], "first the images, then the masks, both square, one of each for every drawing")
    same("their types", [str(images.dtype), str(masks.dtype)], ["torch.float32"] * 2, "both are float32 tensors")


def test_9_1_white_becomes_0(m, rng):
    masks = m.InpaintInput(picture(rng, 40, 24), half_white(40, 24), 4).at(8, "cpu", 3)[1]
    want = (arange(8) < 4).float().expand(3, 1, 8, 8)
    close("the masks for a file whose right half is white", masks, want,
          "polarity: white means draw, and in the tensor 0 means draw: white becomes 0" if
          (masks - want).abs().min() > 0.5 else "1 where the image is known, 0 in the hole, and nothing between")


def test_9_1_the_image_as_it_is(m, rng):
    image = picture(rng, 8, 8)
    images = m.InpaintInput(image, half_white(40, 24), 4).at(8, "cpu", 2)[0]
    close("an image of 8×8 pixels at size 8", images,
          tensor(asarray(image) / 127.5 - 1).permute(2, 0, 1).float().expand(2, 3, 8, 8),
          "values from -1 to 1, channels first; the image is whole, for to erase is with_known's task", tolerance=1e-5)


def test_9_1_the_hole_has_whole_cells(m, rng):
    """Cells of the base model's pixels at every size, and a thin line counts."""
    for width, height in (64, 64), (70, 41):
        mask = Image.new("L", (width, height))
        x, y = rng.randrange(width), rng.randrange(height)
        mask.putpixel((x, y), 255)
        known, size = m.InpaintInput(picture(rng, 30, 50), mask, 4), 16
        want = tensor(asarray(known.hole((size, size))) == 0).float().expand(2, 1, size, size)
        masks = known.at(size, "cpu", 2)[1]
        close(f"the masks at size 16 for one white pixel, {x}, {y} of {width}×{height}", masks, want,
              "the hole is that of InpaintInput.hole, in squares of the base model's pixels, at every size")
        holds("a hole of 4×4 of the 16×16 pixels at least", f"{int((masks[0] == 0).sum())} pixels",
              bool((masks[0] == 0).sum() >= 16), "a cell is drawn if any part of it is white")


def test_9_1_any_size(m, course, rng):
    image, mask = picture(rng, 37, 23), picture(rng, 11, 19, "L")
    for size, count in (4, 1), (8, 2), (16, 3), (64, 1):
        images, masks = m.InpaintInput(image, mask, 4).at(size, "cpu", count)
        want = course[9].InpaintInput(image, mask, 4).at(size, "cpu", count)
        close(f"{count} images at size {size}", images, want[0], "the image at the model's size, the same for each",
              tolerance=1e-3)
        close(f"{count} masks at size {size}", masks, want[1], "the mask at the model's size, the same for each")


# --- Denoisers that are watched ---

class Watched:
    """A denoiser that can be written down: what it is asked is kept, and its answer depends on all of it."""

    def __init__(self):
        self.asked = []

    def __call__(self, x, t, tokens, mask, low_res=None, **shown):
        image = shown.get("inpaint_image")
        self.asked.append(SimpleNamespace(x=x, t=t, tokens=tokens, mask=mask, low_res=low_res, image=image,
                                          known=shown.get("inpaint_mask")))
        eps = 0.6 * x + ((tokens * mask).float().sum(1) / 700 - t / 2000).view(-1, 1, 1, 1)
        eps = eps if low_res is None else eps - 0.3 * interpolate(low_res, scale_factor=4)
        eps = eps if image is None else eps - 0.2 * image
        return cat([eps, 0 * eps], dim=1)


def model_of(m, course, kind="base", size=8):
    """A Model whose denoiser is watched."""
    channels = {"base": 3, "upsampler": 6, "inpaint": 7, "inpaint-upsampler": 10}[kind]
    config = course[3].UNetConfig(16, in_channels=channels, text=course[2].TextConfig(257, 6, 16, 1, 2))
    return m.Model(kind, Watched(), config, course[4].DiffusionConfig(), size, course[1].BPETokenizer([]), "cpu",
                   "full", False)


PROMPTS = ["a b", "hearts", "~"]
GUIDED, LARGE = {"steps": "5", "scale": 3.0}, {"steps": "4", "scale": 1.0}


def seeds(n=3, first=0):
    """A generator for each of n images."""
    return [Generator().manual_seed(first + k) for k in range(n)]


def noise(course, size, generator=None):
    """x_T of three images."""
    return course[4].gaussian(zeros(3, 3, size, size), generator or seeds())


def encoded(course, empty=False):
    """What the tokenizer makes of PROMPTS; empty: with masks that are False everywhere."""
    words = course[2].encode(PROMPTS, course[1].BPETokenizer([]), 6)
    return words | {"mask": words["mask"] & (not empty)}


def process(course, steps, strength=1.0):
    return course[4].Diffusion.from_config(course[4].DiffusionConfig(), steps, strength)


def drawn(m, course, how=GUIDED, kind="base", generator=None, **options):
    """sample_base with a watched denoiser: (images, what the denoiser was asked)"""
    model, how = model_of(m, course, kind), how and course[9].Options(**how)
    return m.sample_base(model, PROMPTS, how, generator=generator or seeds(), **options), model.denoiser.asked


def inpainting(m, rng, small):
    """An InpaintInput with some cells to be drawn."""
    mask = Image.new("L", (40, 40))
    mask.paste(255, (5, 12, 27, 33))
    return m.InpaintInput(picture(rng, 40, 40), mask, small)


# --- 9.2 sample_base ---

def test_9_2_three_images(m, course):
    same("the shape of what is drawn for three prompts at size 8", list(drawn(m, course)[0].shape), [3, 3, 8, 8],
         "an image for each prompt, of the model's size")


def test_9_2_from_the_noisiest_timestep(m, course):
    for steps, want in ("5", [999, 749, 500, 250, 0]), ("3", [999, 500, 0]):
        asked = [int(a.t[0]) for a in drawn(m, course, GUIDED | {"steps": steps})[1]]
        same(f"the timesteps that the denoiser is asked about in {steps} steps", asked, want,
             "options.steps says which timesteps are kept, and sampling goes from the noisiest to the cleanest")


def test_9_2_its_own_prompt(m, course):
    asked = drawn(m, course)[1][0]
    close("the tokens that the denoiser is asked with", asked.tokens[:3], encoded(course)["tokens"],
          "each image has its own prompt, in the model's tokens")


def test_9_2_noise_from_the_generators(m, course):
    """Each image has its own, and a sampler that adds noise needs them too."""
    for sampler in "ddim", "ddpm":
        how, got = GUIDED | {"sampler": sampler, "scale": 1.0}, []
        for first in 0, 0, 100:
            manual_seed(first + len(got))
            got.append(drawn(m, course, how, generator=seeds(2, first) + seeds(1, 2))[0])
        close(f"three images by {sampler}, drawn again with generators of the same seeds", got[1], got[0],
              "all noise comes from the generators: x_T, and what the sampler draws")
        close(f"the third of three images by {sampler}, if only the others' seeds are changed", got[2][2], got[0][2],
              "an image's noise comes from its own generator alone")
        holds(f"another image by {sampler} from another seed", "the same image",
              bool((got[2][0] - got[0][0]).abs().max() > 1e-2), "x_T is noise from the generator")


def test_9_2_guided(m, course):
    """With scale 0 the prompt is ignored, and with 1 it is followed as trained."""
    for scale, empty in (0.0, True), (1.0, False):
        want = process(course, "5").ddim_sample(Watched(), noise(course, 8), **encoded(course, empty))
        close(f"what is drawn with scale={scale:g}", drawn(m, course, GUIDED | {"scale": scale})[0], want,
              "classifier-free guidance with options.scale: 0 ignores the prompt, 1 follows it as trained",
              tolerance=1e-3)


def test_9_2_insists(m, course):
    want = process(course, "5").ddim_sample(course[5].classifier_free(Watched(), 6.0), noise(course, 8),
                                            **encoded(course))
    close("what is drawn with scale=6", drawn(m, course, GUIDED | {"scale": 6.0})[0], want,
          "classifier-free guidance is applied once, with options.scale", tolerance=1e-3)


def test_9_2_the_sampler_that_was_asked_for(m, course):
    for sampler in "ddim", "ddpm", "dpm":
        generator = seeds()
        x_T, guided = noise(course, 8, generator), course[5].classifier_free(Watched(), 3.0)
        want = getattr(process(course, "5"), f"{sampler}_sample")(guided, x_T, generator=generator, **encoded(course))
        close(f"what is drawn with sampler={sampler!r}", drawn(m, course, GUIDED | {"sampler": sampler})[0], want,
              "options.sampler names the sampler, and x_T is unit Gaussian noise", tolerance=1e-3)


def test_9_2_usual_options(m, course):
    got, asked = drawn(m, course, None)
    same("how often the denoiser is asked without options", len(asked), 25, "None means default_options(model)")
    close("what is drawn without options", got, drawn(course[9], course, {"steps": "25", "scale": 3.0})[0],
          "None means default_options(model): 25 steps of DDIM with scale 3 for a small one", tolerance=1e-3)


def test_9_2_begins_with_a_sketch(m, course, rng):
    sketch, strength = picture(rng, 8, 8), rng.randrange(30, 90) / 100
    asked = drawn(m, course, GUIDED | {"strength": strength}, init=sketch)[1]
    d = process(course, "5", strength)
    same(f"the timesteps that the denoiser is asked about with strength={strength}", [int(a.t[0]) for a in asked],
         d.timesteps[::-1], "with init each kept timestep t becomes strength·t")
    x0 = tensor(asarray(sketch) / 127.5 - 1).permute(2, 0, 1).float().expand(3, -1, -1, -1)
    want = d.q_sample(x0, full((3,), d.timesteps[-1]), noise(course, 8))
    close("the x that sampling begins with", asked[0].x[:3], want,
          "x_T is the sketch, noised to the noisiest timestep that is kept")


def test_9_2_strength_is_for_sketches(m, course):
    asked = drawn(m, course, GUIDED | {"strength": 0.6})[1]
    same("the first timestep with strength=0.6 but without init", int(asked[0].t[0]), 999,
         "without an image to begin with, sampling begins at pure noise, whatever options.strength says")


def test_9_2_known_pixels_stay(m, course, rng):
    known = inpainting(m, rng, 8)
    image, mask = known.at(8, "cpu", 3)
    for kind in "base", "inpaint":
        got, asked = drawn(m, course, kind=kind, known=known)
        close(f"the known pixels of what a model of kind {kind!r} draws", got * mask, image * mask,
              "the x0_fn puts what is known into each predicted x_0: it must reach the sampler")
        holds("the hole is drawn", "the image itself", bool(((got - image) * (1 - mask)).abs().max() > 0.05),
              "0 in the mask is to be drawn")
        holds("a model of kind 'inpaint' is shown what is known, and no other one", f"otherwise for {kind!r}",
              (asked[0].image is None) is (kind == "base"), "only a model with inputs for it is shown the known part")
    close("the mask that it is shown", asked[0].known[:3], mask, "1 in the mask is known, at the model's size")


def fake_clip():
    """A Clip whose similarity has a gradient that can be written down."""
    network = SimpleNamespace(image=lambda x, t: cat([x.mean((2, 3)), x.square().mean((2, 3))], dim=1))
    embed = lambda prompts: tensor([[0.4, -0.2, len(prompt) / 9] * 2 for prompt in prompts])  # noqa: E731
    return SimpleNamespace(network=network, embed=embed)


def test_9_2_guided_by_clip(m, course):
    how = GUIDED | {"guide": "clip", "scale": 0.5, "sampler": "ddpm"}
    generator, clip, model = seeds(), fake_clip(), Watched()
    grad_fn = course[5].clip_guidance(clip.network, clip.embed(PROMPTS), 0.5)
    want = process(course, "5").ddpm_sample(model, noise(course, 8, generator), generator=generator, grad_fn=grad_fn,
                                            **encoded(course))
    got, asked = drawn(m, course, how, clip=clip)
    same("how many answers the denoiser gives at a step, for three images", len(asked[0].x), 3,
         "the two ways of guiding are not combined: CLIP guidance takes the denoiser as it is")
    close("what is drawn with guide='clip'", got, want,
          "the gradient of the similarity to the prompts, times options.scale, goes to the sampler", tolerance=1e-3)


def test_9_2_tells_the_callback(m, course):
    told = []
    got = drawn(m, course, callback=lambda t, x, x0: told.append((int(t[0]), x)))[0]
    same("the timesteps that the callback is told", [t for t, _ in told], [999, 749, 500, 250, 0],
         "the callback is handed on to the sampler, which calls it once a step")
    close("the last x that it is told", told[-1][1], got, "what the sampler returns is the result")


# --- 9.3 sample_upsampler ---

def enlarged(m, course, low_res, how=LARGE, kind="upsampler", generator=None, **options):
    """sample_upsampler with a watched denoiser: (images, what the denoiser was asked)"""
    model, how = model_of(m, course, kind, 16), how and course[9].Options(**how)
    answer = m.sample_upsampler(model, low_res, PROMPTS, how, generator=generator or seeds(), **options)
    return answer, model.denoiser.asked


def test_9_3_four_times_larger(m, course, draw):
    same("the shape of what is drawn for low_res of [3, 3, 4, 4]",
         list(enlarged(m, course, draw(3, 3, 4, 4))[0].shape), [3, 3, 16, 16], "[B, 3, S, S] becomes [B, 3, 4S, 4S]")


def test_9_3_no_guidance(m, course, draw):
    asked = enlarged(m, course, draw(3, 3, 4, 4), LARGE | {"scale": 3.0})[1]
    same("how many answers the denoiser gives at a step, for three images", len(asked[0].x), 3,
         "the upsampler is not guided: what is drawn has been decided, and it would cost twice as much")
    close("the tokens that it is asked with", asked[0].tokens * asked[0].mask,
          encoded(course)["tokens"] * encoded(course)["mask"], "the upsampler reads the prompts too, each its own")


def test_9_3_is_shown_the_small_images(m, course, draw):
    low_res = draw(3, 3, 4, 4)
    close("the low_res that the denoiser is shown", enlarged(m, course, low_res)[1][0].low_res,
          ((low_res + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1,
          "low_res conditions the upsampler, rounded to bytes as in training", tolerance=1e-4)


def test_9_3_its_own_steps(m, course, draw):
    for steps in "4", "10,1":
        asked = enlarged(m, course, draw(3, 3, 4, 4), LARGE | {"steps": steps})[1]
        same(f"the timesteps that the denoiser is asked about with steps={steps!r}", [int(a.t[0]) for a in asked],
             course[4].respace(1000, steps)[::-1], "options.steps says which timesteps are kept, the noisiest first")


def test_9_3_samples(m, course, draw):
    low_res = draw(3, 3, 4, 4).clamp(-1, 1)
    rounded = ((low_res + 1) * 127.5).round() / 127.5 - 1
    for sampler in "ddim", "ddpm", "dpm":
        generator = seeds()
        x_T = 0.997 * noise(course, 16, generator)
        want = getattr(process(course, "4"), f"{sampler}_sample")(
            Watched(), x_T, low_res=rounded, generator=generator, **encoded(course))
        close(f"what is drawn with sampler={sampler!r}", enlarged(m, course, low_res, LARGE | {"sampler": sampler})[0],
              want, "upsample with options.sampler, the generators and the prompts", tolerance=1e-3)


def test_9_3_usual_options(m, course, draw):
    for kind, sampler in ("upsampler", "ddim"), ("inpaint-upsampler", "ddpm"):
        low_res = draw(3, 3, 4, 4).clamp(-1, 1)
        got, asked = enlarged(m, course, low_res, None, kind)
        same("the timesteps without options", [int(a.t[0]) for a in asked], course[4].respace(1000, "fast27")[::-1],
             "None means default_options(model), fast27 for an upsampler")
        close(f"what a model of kind {kind!r} draws without options", got,
              enlarged(course[9], course, low_res, {"steps": "fast27", "sampler": sampler}, kind)[0],
              f"None means default_options(model), whose sampler is {sampler} here", tolerance=1e-3)


def test_9_3_known_pixels_stay(m, course, draw, rng):
    known = inpainting(m, rng, 4)
    image, mask = known.at(16, "cpu", 3)
    for kind in "upsampler", "inpaint-upsampler":
        low_res = draw(3, 3, 4, 4).clamp(-1, 1)
        got, asked = enlarged(m, course, low_res, kind=kind, known=known)
        close(f"the known pixels of what a model of kind {kind!r} draws", got * mask, image * mask,
              "the x0_fn puts what is known, at the large size, into each predicted x_0")
        holds("a model of kind 'inpaint-upsampler' is shown what is known, and no other one", f"otherwise for {kind!r}",
              (asked[0].image is None) is (kind == "upsampler"), "only a model that has inputs for it is shown it")
        want = enlarged(course[9], course, low_res, kind=kind, known=known)[0]
        close(f"what a model of kind {kind!r} draws", got, want,
              "an inpainting upsampler samples as any other one, with what is known", tolerance=1e-3)
    close("the mask that it is shown", asked[0].known, mask, "1 in the mask is known, at the upsampler's own size")


def test_9_3_tells_the_callback(m, course, draw):
    told = []
    got = enlarged(m, course, draw(3, 3, 4, 4), callback=lambda t, x, x0: told.append((int(t[0]), x)))[0]
    same("the timesteps that the callback is told", [t for t, _ in told], [999, 666, 333, 0],
         "the callback is handed on to the sampler, which calls it once a step")
    close("the last x that it is told", told[-1][1], got, "what the sampler returns is the result")


# --- 9.4 Model.from_saved ---

def saved_model(course, draw, channels=3, dropout=0.0, prediction="v"):
    """A weight file as read_weights returns it, with random weights; and the network that it holds."""
    text = course[2].TextConfig(257, 6, 16, 1, 2)
    network = course[3].UNet(course[3].UNetConfig(16, (1,), 1, (), channels, head_channels=8, dropout=dropout, groups=4,
                                                  text=text)).eval()
    for p in network.parameters():
        p.data = (draw(*p.shape) * 0.7 / max(1, p[0].numel()) ** 0.5).half().float()
    saved = {"config": asdict(network.config), "weights": {k: v.half() for k, v in network.state_dict().items()},
             "size": 8, "diffusion": {"schedule": "linear", "steps": 500, "prediction_type": prediction},
             "tokenizer": [(71, 68), (256, 64)], "world": "single"}
    return saved, network


def inputs(course, draw, channels=3):
    """x, t and conditioning for a denoiser of this many input channels."""
    cond = course[2].encode(PROMPTS, course[1].BPETokenizer([]), 6)
    cond |= {"low_res": draw(3, 3, 2, 2)} if channels in (6, 10) else {}
    cond |= {"inpaint_image": draw(3, 3, 8, 8), "inpaint_mask": (draw(3, 1, 8, 8) > 0).float()} if channels > 6 else {}
    return draw(3, 3, 8, 8), tensor([0, 250, 499]), cond


def test_9_4_takes_what_its_channels_are_for(m, course, draw):
    for channels in 3, 6, 10:
        model, came = m.Model.from_saved(saved_model(course, draw, channels)[0], "a file"), ""
        *given, cond = inputs(course, draw, channels)
        try:
            answer = ask(model.denoiser, *given, cond)
            same("the shape of its answer", list(answer.shape), [3, 6, 8, 8], "channels of noise, then of variance")
        except (TypeError, RuntimeError) as error:
            came = str(error)
        holds(f"a denoiser with {channels} input channels that takes {', '.join(cond)}", came, not came,
              "the denoiser takes the inputs that the network's channels are for: see upsample.denoiser_of")


@no_grad()
def ask(denoiser, x, t, cond):
    return denoiser(x, t, **cond)


def test_9_4_its_kind(m, course, draw):
    for channels, kind in (3, "base"), (6, "upsampler"), (7, "inpaint"), (10, "inpaint-upsampler"):
        model = m.Model.from_saved(saved_model(course, draw, channels)[0], "a file")
        holds("a Model", f"a {type(model).__name__}", type(model) is m.Model, "from_saved returns a Model")
        same(f"the kind with {channels} input channels", str(model.kind), kind, "input channels tell the kind")


def test_9_4_what_the_file_says(m, course, draw):
    saved, network = saved_model(course, draw)
    model = m.Model.from_saved(saved, "a file", "cpu")
    same("size, device, world, verbatim", [model.size, model.device, model.world, model.verbatim],
         [8, "cpu", "single", False], "a weight file says what the model is; verbatim is False unless it says so")
    same("the process", asdict(model.diffusion), saved["diffusion"], "the file's own noise schedule and prediction")
    same("the sizes", asdict(model.config), asdict(network.config), "the config is the network's own")
    same("its tokens for 'heart'", model.encode(["heart"])["tokens"][0].tolist(), [257, 81, 83, 258, 258, 258],
         "the tokenizer is made of the file's own merges")
    model = m.Model.from_saved(saved | {"verbatim": True, "world": ""}, "a file")
    same("world and verbatim of a model of real captions", [model.world, model.verbatim], ["", True],
         "a weight file says what the model is")


def test_9_4_ready_to_draw(m, course, draw):
    model = m.Model.from_saved(saved_model(course, draw, dropout=0.5)[0], "a file")
    given = inputs(course, draw)
    close("its answer to the same question, asked twice", ask(model.denoiser, *given), ask(model.denoiser, *given),
          "eval mode: dropout is for training, and a model that draws drops nothing out")


def test_9_4_in_the_type_that_was_asked_for(m, course, draw):
    saved, network = saved_model(course, draw, prediction="eps")
    given = inputs(course, draw)
    exact = ask(network, *given)
    for dtype, least, most in (None, 0, 1e-5), (float32, 0, 1e-5), (float64, 1e-10, 1e-5):
        off = (ask(m.Model.from_saved(saved, "a file", "cpu", dtype).denoiser, *given) - exact).abs().mean()
        off = (off / exact.abs().mean()).item()
        holds(f"with dtype={dtype}, answers that are off by {least:g} to {most:g} from those in float32", f"{off:.1g}",
              least <= off <= most, "the weights are converted to the dtype that is given, and those of small networks"
              " otherwise stay float32: see to_dtype and usual_dtype")


def test_9_4_answers_eps(m, course, draw):
    for prediction in "eps", "v":
        saved, network = saved_model(course, draw, prediction=prediction)
        x, t, cond = inputs(course, draw)
        answer, d = ask(network, x, t, cond), course[4].Diffusion.from_config(course[4].DiffusionConfig("linear", 500))
        if prediction == "v":
            signal, sigma = (table[t].float().view(3, 1, 1, 1) for table in (d.signal, d.noise))
            answer = cat([signal * answer[:, :3] + sigma * x, answer[:, 3:]], dim=1)
        close(f"the answer of the denoiser, whose network predicts {prediction}",
              ask(m.Model.from_saved(saved, "a file").denoiser, x, t, cond), answer,
              "a denoiser answers ε, whatever the network predicts: ε = √ᾱ·v + √(1-ᾱ)·x_t, on the file's own schedule",
              tolerance=1e-3)
