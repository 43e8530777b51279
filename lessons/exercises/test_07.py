"""Exercises of lesson 7: from a small picture to a large one."""
from expect import close, holds, same
from torch import Generator, arange, bfloat16, cat, full, ones, tensor, zeros_like
from torch.nn.functional import interpolate

T = tensor([3, 500, 999])


# --- 7.1 with_low_res ---

def shown(m, x, low_res):
    """What the network inside with_low_res is shown."""
    seen = []

    def model(x, t, **cond):
        seen.append(x)
        return cat([x[:, :3], x[:, :3]], dim=1)
    m.with_low_res(model)(x, T[:len(x)], low_res=low_res)
    return seen[-1]


def test_7_1_six_channels(m, draw):
    same("the shape of what the network is shown, for x of [3, 3, 8, 20] and low_res of [3, 3, 2, 5]",
         list(shown(m, draw(3, 3, 8, 20), draw(3, 3, 2, 5)).shape), [3, 6, 8, 20],
         "three more channels: the small picture, enlarged to x's size")


def test_7_1_x_comes_first(m, draw):
    x, low_res = draw(3, 3, 8, 20), draw(3, 3, 2, 5)
    close("the first three channels that the network is shown are x", shown(m, x, low_res)[:, :3], x,
          "the order of the channels: x comes first and is not changed, for the weights expect it there")


def test_7_1_low_res_is_not_noised(m, draw):
    x, low_res = draw(3, 3, 8, 20), draw(3, 3, 2, 5)
    close("the small picture that is shown when the network is asked again", shown(m, x, low_res)[:, 3:],
          shown(m, x, low_res)[:, 3:], "low_res is not noised, at any step")


def test_7_1_low_res_is_a_condition(m, draw):
    x, low_res = draw(3, 3, 8, 20), draw(3, 3, 2, 5)
    close("the small picture that is shown next to another x", shown(m, 5 * x, low_res)[:, 3:],
          shown(m, zeros_like(x), low_res)[:, 3:], "low_res is a condition, like the caption: the same whatever x is")


# What a row of two pixels, 0 and 1, becomes if it is enlarged four times. Bilinear: the middle of a large pixel i is at
# (i + 0.5)/4 - 0.5 of the small ones, and beyond the outermost middles the values stay.
STEP = tensor([0, 0, 0.125, 0.375, 0.625, 0.875, 1, 1])
BICUBIC = interpolate(tensor([[[[0.0, 1.0]]]]), (1, 8), mode="bicubic").flatten()
SLIPS = {
    "bilinear, not nearest: the small picture is enlarged smoothly": tensor([0.0, 0, 0, 0, 1, 1, 1, 1]),
    "bilinear, not bicubic: the values stay between those of the small picture": BICUBIC,
    "bilinear without align_corners: each small pixel lies over the 4×4 that were averaged to it": arange(8) / 7}


def slip(row, low, high):
    """The idea that was missed, if this row is what a usual mistake makes of a step from low to high."""
    found = [idea for idea, values in SLIPS.items() if (row - low - (high - low) * values).abs().max().item() < 1e-4]
    return (found + ["bilinear, as torch's interpolate does it by default"])[0]


def test_7_1_bilinear(m, rng, draw):
    low, high = rng.uniform(-0.9, -0.3), rng.uniform(0.2, 0.9)
    small = full((3, 3, 2, 2), low)
    small[:, :, :, 1] = high
    for name, low_res in ("a row", small), ("a column", small.transpose(2, 3)):
        seen = shown(m, draw(3, 3, 8, 8), low_res)[:, 3:]
        row = (seen if name == "a row" else seen.transpose(2, 3))[0, 0, 3]
        close(f"{name} of two pixels, {low:.3f} and {high:.3f}, becomes eight", row,
              low + (high - low) * STEP, slip(row, low, high))


def refuses(call):
    """What a call that should raise ValueError does instead; "" if it does raise it."""
    try:
        call()
    except ValueError:
        return ""
    except NotImplementedError:
        raise
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "an answer"


def test_7_1_sizes_must_fit(m, draw):
    for height, width in (2, 4), (1, 5), (8, 20):
        came = refuses(lambda: shown(m, draw(3, 3, 8, 20), draw(3, 3, height, width)))
        holds(f"ValueError for x of 8×20 and low_res of {height}×{width}", came, not came,
              "low_res must be exactly four times smaller: what does not fit is refused, not stretched")


def test_7_1_passes_on_the_rest(m, draw):
    x, low_res, seen = draw(3, 3, 8, 20), draw(3, 3, 2, 5), []

    def model(x, t, **cond):
        seen.append((t, cond))
        return 2 * x
    answer = m.with_low_res(model)(x, T, low_res=low_res, tokens="the words")
    same("the rest of the conditioning reaches the network as it is", seen[0][1], {"tokens": "the words"},
         "a wrapper adds its own input and passes on all others")
    close("the timesteps reach the network as they are", seen[0][0], T, "the network must know how noisy x is")
    close("the network's answer comes back as it is", answer[:, :3], 2 * x,
          "a wrapper changes what a network is shown, not what it answers")


class Prepared:
    """A network that prepares its words."""

    def __init__(self):
        self.times, self.seen = 0, []

    def prepare(self, tokens=None):
        self.times += 1
        return {"words": tokens}

    def __call__(self, x, t, tokens=None, words=None):
        self.seen.append((x, tokens if words is None else words))
        return x


def test_7_1_prepare_enlarges(m, course, draw):
    low_res, model = draw(3, 3, 2, 5), Prepared()
    cond = course[4].prepare(m.with_low_res(model), low_res=low_res, tokens=T)
    sizes = [list(value.shape) for value in cond.values() if hasattr(value, "shape")]
    holds("`prepare` enlarges the small picture, once for all steps", f"tensors of the shapes {sizes}",
          [3, 3, 8, 20] in sizes, "prepare does once what does not change from step to step")


def test_7_1_prepare_hands_on(m, course, draw):
    model = Prepared()
    denoiser = m.with_low_res(model)
    cond = course[4].prepare(denoiser, low_res=draw(3, 3, 2, 5), tokens=T)
    for _ in range(3):
        denoiser(draw(3, 3, 8, 20), T, **cond)
    same("how often the network inside was asked to prepare, for three steps", model.times, 1,
         "a wrapper's prepare hands on to that of the network inside, once for all steps")
    holds("what the network inside gets at a step: the words that it was given, prepared", "nothing, or something else",
          model.seen[-1][1] is T, "a wrapper's prepare hands on all other conditioning")


def test_7_1_prepared_or_not(m, course, draw):
    x, low_res, model = draw(3, 3, 8, 20), draw(3, 3, 2, 5), Prepared()
    denoiser, before = m.with_low_res(model), low_res.clone()
    denoiser(x, T, **course[4].prepare(denoiser, low_res=low_res, tokens=T))
    denoiser(x, T, low_res=low_res, tokens=T)
    close("what the network is shown, with and without `prepare`", model.seen[0][0], model.seen[1][0],
          "prepare saves time, and changes nothing")
    close("low_res afterwards", low_res, before, "low_res belongs to the caller, and must not be changed")


def test_7_1_any_picture(m, draw):
    for height, width in (1, 1), (2, 3), (5, 2):
        x, low_res = draw(3, 3, 4 * height, 4 * width), draw(3, 3, height, width)
        close(f"what the network is shown for low_res of {height}×{width}", shown(m, x, low_res),
              cat([x, interpolate(low_res, (4 * height, 4 * width), mode="bilinear")], dim=1),
              "x, and behind it the small picture, enlarged bilinearly")


# --- 7.2 round_to_bytes ---

def levels(*steps):
    """Bytes, or numbers between them, as values from -1 to 1."""
    return tensor(steps) / 127.5 - 1


def test_7_2_float32_of_the_same_shape(m, draw):
    for x in draw(2, 3, 4, 5), draw(7), draw(1)[0], draw(2, 3).double(), draw(2, 3).to(bfloat16):
        got = m.round_to_bytes(x)
        same(f"the type and shape for a {x.dtype} of shape {list(x.shape)}", [str(got.dtype), list(got.shape)],
             ["torch.float32", list(x.shape)], "rounded to bytes and back: a float32 image, not bytes")


def test_7_2_from_minus_1_to_1(m):
    got = m.round_to_bytes(levels(0.0, 255.0, 1.3, 153.3, 254.3))
    close("what becomes of -1, of 1, and of three values between", got, levels(0.0, 255.0, 1.0, 153.0, 254.0),
          "bytes stand for [-1, 1]: 0 for -1 and 255 for 1, so what comes back is byte/127.5 - 1", tolerance=0.006)


def test_7_2_clips(m, rng):
    over = [rng.uniform(1.02, 4) for _ in range(3)]
    close(f"what becomes of {over[0]:.2f}, {over[1]:.2f} and -{over[2]:.2f}",
          m.round_to_bytes(tensor([over[0], over[1], -over[2]])), [1.0, 1.0, -1.0],
          "what lies beyond ±1 is clipped before it becomes a byte, for bytes wrap around", tolerance=1e-5)


def test_7_2_rounds_to_the_nearest(m, rng):
    k = [rng.randrange(1, 254) for _ in range(5)]
    close("what becomes of values that are 0.8 of the way from a byte to the next",
          m.round_to_bytes(levels(*(n + 0.8 for n in k))), levels(*(n + 1.0 for n in k)),
          "rounded to the nearest byte: a conversion to uint8 alone cuts the fraction off", tolerance=1e-3)
    close("what becomes of values that are 0.2 of the way from a byte to the next",
          m.round_to_bytes(levels(*(n + 0.2 for n in k))), levels(*map(float, k)),
          "rounded to the nearest byte, not up", tolerance=1e-3)


def test_7_2_a_files_values_stay(m):
    close("what becomes of the 256 values themselves", m.round_to_bytes(arange(256) / 127.5 - 1),
          arange(256) / 127.5 - 1, "rounding what is rounded changes nothing: the 256 values byte/127.5 - 1 stay",
          tolerance=1e-5)


def test_7_2_any_picture(m, draw):
    step = (draw(4, 3, 5, 6) * 90 + 128).round()
    x = (step + draw(4, 3, 5, 6).clamp(-1, 1) * 0.45) / 127.5 - 1
    before = x.clone()
    close("a picture with values on both sides of ±1", m.round_to_bytes(x), step.clamp(0, 255) / 127.5 - 1,
          "as an 8-bit file holds it: the nearest of 256 values from -1 to 1", tolerance=1e-4)
    close("the picture afterwards", x, before, "the picture belongs to the caller, and must not be changed")


# --- 7.3 upsample ---

class Spy:
    """A Diffusion whose samplers only note how they are called."""

    def __init__(self):
        self.calls = []
        for name in "ddim", "ddpm", "dpm":
            setattr(self, f"{name}_sample", self.sampler(name))

    def sampler(self, name):
        def sample(model, x_T, **options):
            self.calls.append((name, model, x_T, options))
            return 2 * x_T
        return sample


def called(m, low_res, model=None, **options):
    """(name of the sampler, model, x_T, its options, what upsample returned)"""
    process = Spy()
    answer = m.upsample(model, low_res, process=process, **options)
    same("how many samplers are called", len(process.calls), 1, "one call of one sampler does the work")
    return *process.calls[0], answer


def seeded(seed=0):
    return Generator().manual_seed(seed)


def test_7_3_four_times_larger(m, draw):
    x_T = called(m, draw(3, 3, 2, 5), generator=seeded())[2]
    same("the shape of x_T for low_res of [3, 3, 2, 5]", list(x_T.shape), [3, 3, 8, 20],
         "both sides are four times as long; batch and channels stay")


def test_7_3_the_generator(m, draw):
    low_res, generator = draw(3, 3, 2, 5), seeded(4)
    _, _, first, options, _ = called(m, low_res, generator=generator)
    holds("the sampler gets the generator too", "another one, or none", options.get("generator") is generator,
          "all random numbers come from the generator: a sampler that draws noise needs it as well")
    close("x_T with a generator of the same seed", called(m, low_res, generator=seeded(4))[2], first,
          "x_T is drawn by the generator, so that a picture can be drawn again")
    three, two = (called(m, low_res[:n], generator=[seeded(k) for k in range(n)])[2] for n in (3, 2))
    close("x_T of two pictures, each with a generator of its own, when a third is there or not", three[:2], two,
          "with a list of generators each picture has its own noise")


def test_7_3_x_T_is_noise_alone(m, draw):
    low_res = draw(3, 3, 2, 5)
    close("x_T for another small picture, with the same generator", called(m, low_res + 1, generator=seeded())[2],
          called(m, low_res, generator=seeded())[2],
          "sampling starts from noise; the small picture is a condition, not the beginning")


def test_7_3_a_little_less_noise(m, draw):
    low_res = draw(3, 3, 2, 5)
    usual, unit, half = (called(m, low_res, generator=seeded(), **noise)[2]
                         for noise in ({}, {"noise": 1.0}, {"noise": 0.5}))
    close("the spread of x_T with noise=1.0", [unit.std().item()], [1.0], "x_T is unit Gaussian noise, scaled",
          tolerance=0.2)
    close("x_T with noise=0.5, set against noise=1.0", half, 0.5 * unit, "noise is the factor that scales x_T")
    close("x_T with the usual noise, set against noise=1.0", usual, 0.997 * unit,
          "by default x_T is 0.997 times unit noise, as the released notebooks have it", tolerance=1e-5)


def test_7_3_low_res_is_rounded(m, draw):
    low_res = draw(3, 3, 2, 5)
    before = low_res.clone()
    options = called(m, low_res, generator=seeded())[3]
    holds("the denoiser is given low_res", f"the conditioning {sorted(options)}", "low_res" in options,
          "the small picture is part of the conditioning, under the name low_res")
    close("the low_res that the denoiser is given", options["low_res"],
          ((before + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1,
          "low_res is rounded to bytes, as the files were that the network has seen in training", tolerance=1e-5)
    close("low_res afterwards", low_res, before, "low_res belongs to the caller, and must not be changed")


def test_7_3_the_sampler_that_was_asked_for(m, draw):
    for sampler, options in ("ddim", {}), ("ddpm", {"sampler": "ddpm"}), ("dpm", {"sampler": "dpm"}):
        name, _, _, given, _ = called(m, draw(3, 3, 2, 5), generator=seeded(), **options)
        same(f"the sampler that is called for {options or 'nothing else'}", name, sampler,
             "the sampler is chosen by its name; DDIM is the usual one")
        same(f"its eta for {options or 'nothing else'}", float(given.get("eta", 0.0)), 0.0,
             "DDIM with eta 0 adds no fresh noise, so few steps are enough")


def test_7_3_passes_on_the_rest(m, draw):
    given = {"tokens": "words", "mask": "m", "x0_fn": abs, "callback": print}
    _, model, x_T, options, answer = called(m, draw(3, 3, 2, 5), model=len, generator=seeded(), **given)
    holds("the model that the sampler gets is the denoiser", "another one", model is len,
          "the denoiser is used as it is: it takes low_res already")
    for name, value in given.items():
        holds(f"the sampler gets {name} as it was given", "nothing of that name, or something else",
              options.get(name) is value, "other conditioning, x0_fn and callback are passed on to the sampler")
    close("what comes back", answer, 2 * x_T, "what the sampler returns is the result")


def test_7_3_enlarges(m, course, draw):
    """With real samplers and a denoiser that can be written down."""
    d = course[4].Diffusion.from_config(course[4].DiffusionConfig("linear", 50), "6")

    def model(x, t, low_res, tokens):
        eps = 0.7 * x - 0.3 * interpolate(low_res, scale_factor=4) + (tokens * t / 50).view(-1, 1, 1, 1)
        return cat([eps, 0 * eps], dim=1)
    low_res, tokens = draw(3, 3, 3, 2).clamp(-1, 1), ones(3) * 0.1
    for name in "ddim", "dpm", "ddpm":
        got = m.upsample(model, low_res, process=d, sampler=name, generator=seeded(1), tokens=tokens)
        generator, x0 = seeded(1), ((low_res + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1
        x_T = 0.997 * course[4].gaussian(got, generator)
        want = getattr(d, f"{name}_sample")(model, x_T, low_res=x0, tokens=tokens, generator=generator)
        close(f"a small picture enlarged by {name} in six steps", got, want,
              "x_T, the rounded low_res and the rest go into one call of the sampler", tolerance=1e-3)
