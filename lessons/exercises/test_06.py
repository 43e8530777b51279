"""Exercises of lesson 6: drawing into a part of an image. In tensors a mask is 1 where the image is known."""
from dataclasses import replace

from expect import close, holds, same
from torch import Generator, arange, cat, empty, full, manual_seed, no_grad, tensor, zeros_like

empty(1, device="meta").normal_()            # the first time this takes seconds, which no exercise is to be charged for
T = tensor([3, 500, 999])


def example(draw, batch=3, height=6, width=10):
    """x, an image and a mask of its own for each; each pixel is known or not by chance."""
    image, mask = draw(batch, 3, height, width).clamp(-1, 1), (draw(batch, 1, height, width) > 0).float()
    return draw(batch, 3, height, width), image, mask


# --- 6.1 with_known ---

def shown(m, x, image, mask):
    """What the network inside with_known is shown."""
    seen = []

    def model(x, t, **cond):
        seen.append(x)
        return cat([x[:, :3], x[:, :3]], dim=1)
    m.with_known(model)(x, T[:len(x)], inpaint_image=image, inpaint_mask=mask)
    return seen[-1]


def test_6_1_adds_four_channels(m, draw):
    same("the shape of what the network is shown, for x of [3, 3, 6, 10]", list(shown(m, *example(draw)).shape),
         [3, 7, 6, 10], "four more channels: three of the image × mask, one of the mask itself")


def test_6_1_x_comes_first(m, draw):
    x, image, mask = example(draw)
    close("the first three channels that the network is shown are x", shown(m, x, image, mask)[:, :3], x,
          "the order of the channels: x comes first and is not changed, for the weights expect it there")


def test_6_1_the_mask_comes_last(m, draw):
    x, image, mask = example(draw)
    seen = shown(m, x, image, mask)
    channels = [c for c in range(3, 7) if ((seen[:, c:c + 1] - mask).abs().max() < 1e-6).item()]
    holds("behind x the three channels of the image × mask, and behind these the mask",
          f"the mask in channel {channels} of 0 … 6", channels in ([], [6]),
          "the order of the channels: x, image × mask, mask")


def test_6_1_shows_what_is_known(m, draw):
    x, image, mask = example(draw)
    close("channels 3, 4, 5 where the mask is 1", shown(m, x, image, mask)[:, 3:6] * mask, image * mask,
          "polarity: 1 means known, so there the network sees the image as it is, without noise")


def test_6_1_hides_the_hole(m, draw):
    x, image, mask = example(draw)
    close("channels 3, 4, 5 where the mask is 0", shown(m, x, image, mask)[:, 3:6] * (1 - mask), zeros_like(image),
          "the image is multiplied by the mask: a network that could look under the mask would learn to copy")


def test_6_1_shows_the_mask(m, draw):
    x, image, mask = example(draw)
    close("channel 6", shown(m, x, image, mask)[:, 6:], mask,
          "the mask itself is shown, 1 = known: without it an erased pixel and a grey one look the same")


def test_6_1_passes_on_the_rest(m, draw):
    (x, image, mask), seen = example(draw), []

    def model(x, t, **cond):
        seen.append((t, cond))
        return 2 * x[:, :6]
    answer = m.with_known(model)(x, T, inpaint_image=image, inpaint_mask=mask, tokens="the words", low_res="small")
    same("the rest of the conditioning reaches the network as it is", seen[0][1],
         {"tokens": "the words", "low_res": "small"}, "a wrapper adds its own input and passes on all others")
    close("the timesteps reach the network as they are", seen[0][0], T, "the network must know how noisy x is")
    close("the network's answer comes back as it is", answer, 2 * cat([x, image * mask], dim=1),
          "a wrapper changes what a network is shown, not what it answers")


def test_6_1_prepared_or_not(m, course, draw):
    (x, image, mask), seen, prepared = example(draw), [], []

    class Model:
        def prepare(self, tokens):
            prepared.append(tokens)
            return {"words": 2 * tokens}

        def __call__(self, x, t, tokens=None, words=None):
            seen.append((x, 2 * tokens if words is None else words))
            return x[:, :6]
    denoiser, before = m.with_known(Model()), (image.clone(), mask.clone())
    cond = course[4].prepare(denoiser, inpaint_image=image, inpaint_mask=mask, tokens=T)
    for x_t in x, 2 * x:
        denoiser(x_t, T, **cond)
        close("after `prepare`, at every step: x, image × mask, mask", seen[-1][0],
              cat([x_t, image * mask, mask], dim=1), "prepare saves time, and changes nothing")
        close("after `prepare`: what the network inside has prepared", seen[-1][1], 2 * T,
              "the rest of the conditioning is prepared by the network inside")
    if hasattr(denoiser, "prepare"):
        same("how often the network inside was asked to prepare, for two steps", len(prepared), 1,
             "a wrapper's prepare hands on to that of the network inside, once for all steps")
    close("the image afterwards", image, before[0], "the image belongs to the caller, and must not be changed")
    close("the mask afterwards", mask, before[1], "the mask belongs to the caller, and must not be changed")


def test_6_1_any_image(m, draw):
    for height, width in (4, 4), (7, 3), (2, 9):
        x, image, mask = example(draw, 3, height, width)
        close(f"what the network is shown for images of {height}×{width}", shown(m, x, image, mask),
              cat([x, image * mask, mask], dim=1), "x, image × mask, mask, side by side on the channel axis")


# --- 6.2 replace_known ---

def test_6_2_is_a_function_of_x0(m, draw):
    x0, image, mask = example(draw)
    x0_fn = m.replace_known(image, mask)
    holds("replace_known(image, mask) is an x0_fn: a function of the predicted x_0",
          f"something of type {type(x0_fn).__name__}", callable(x0_fn), "samplers call it anew at every step")
    same("the shape of its answer", list(x0_fn(x0).shape), [3, 3, 6, 10], "a predicted x_0 of the same shape")


def test_6_2_known_pixels_become_true(m, draw):
    x0, image, mask = example(draw)
    close("x_0 where the mask is 1", m.replace_known(image, mask)(x0.clamp(-1, 1)) * mask, image * mask,
          "polarity: 1 means known, and what is known becomes the true image", tolerance=1e-5)


def test_6_2_the_hole_is_left_to_the_model(m, draw):
    x0, image, mask = example(draw)
    close("x_0 where the mask is 0 and the prediction is within ±1",
          m.replace_known(image, mask)(x0.clamp(-1, 1)) * (1 - mask), x0.clamp(-1, 1) * (1 - mask),
          "in the hole the prediction stays as it is", tolerance=1e-5)


def test_6_2_does_not_clip(m, draw):
    x0, image, mask = example(draw)
    close("x_0 where the mask is 0, with predictions up to ±10", m.replace_known(image, mask)(4 * x0) * (1 - mask),
          4 * x0 * (1 - mask), "replaced before clipping: an x0_fn gets the prediction unclipped and leaves it so,"
          " for to clip is the sampler's task", tolerance=1e-5)


def test_6_2_leaves_the_image_alone(m, draw):
    x0, image, mask = example(draw)
    before, x0_fn = image.clone(), m.replace_known(image, mask)
    for step in range(2):
        close("x_0 at a second step, with another prediction" if step else "x_0 at a first step",
              x0_fn(x0 + step), before * mask + (x0 + step) * (1 - mask),
              "every step begins with a prediction of its own")
    close("the image afterwards", image, before, "the image belongs to the caller, and must not be changed")


def test_6_2_in_a_sampler(m, course, draw):
    """Whatever the model predicts; and with a mask of its own for each image."""
    x_T, image, mask = example(draw)
    process = course[4].Diffusion.from_config(course[4].DiffusionConfig(), "10")
    for sampler in process.ddim_sample, process.ddpm_sample:
        x = sampler(lambda x, t: cat([0.3 * x, x], dim=1), x_T, x0_fn=m.replace_known(image, mask),
                    generator=Generator().manual_seed(1))
        want = sampler(lambda x, t: cat([0.3 * x, x], dim=1), x_T, generator=Generator().manual_seed(1),
                       x0_fn=lambda x0: image * mask + x0 * (1 - mask))
        close(f"an image drawn by {sampler.__name__}", x, want,
              "the last x_0 is the result, so known pixels come out as they are", tolerance=1e-3)


# --- 6.3 overwrite_known ---

def noised(m, course, draw, place, size=(4, 24, 40)):
    """At this place of ten kept timesteps: x, image, mask, what the step_fn makes of x, and the process."""
    process = course[4].Diffusion.from_config(course[4].DiffusionConfig(), "10")
    x, image, mask = example(draw, *size)
    t = full((len(x),), process.timesteps[place])
    step_fn = m.overwrite_known(process, image, mask, Generator().manual_seed(place))
    return x, image, mask, step_fn(x.clone(), t), process


def test_6_3_the_hole_is_left_to_the_sampler(m, course, draw):
    x, image, mask, got, _ = noised(m, course, draw, 5)
    close("x_{t-1} where the mask is 0", got * (1 - mask), x * (1 - mask),
          "polarity: 0 means unknown, and there x_{t-1} stays as the sampler made it")


def test_6_3_ends_with_the_image(m, course, draw):
    x, image, mask, got, _ = noised(m, course, draw, 0)
    close("x after the last step, where the mask is 1", got * mask, image * mask,
          "the noise is that of the timestep just reached, whose ᾱ is alpha_bar_prev: at the end ᾱ is 1, and the"
          " image itself is put in")


def share(got, image, mask):
    """How much of the image is in `got` where the mask is 1, and how large the rest is."""
    signal = ((got * image * mask).sum() / (image.square() * mask).sum()).item()
    rest = (got - signal * image) * mask
    return signal, (rest.square().sum() / (3 * mask.sum())).sqrt().item()


def test_6_3_as_much_signal_as_at_the_step_reached(m, course, draw):
    for place in 2, 4, 6:
        _, image, mask, got, process = noised(m, course, draw, place)
        asked = f"the share of the image in the known part after step {place} of 10 kept ones"
        close(asked, [share(got, image, mask)[0]], [process.alpha_bar[place - 1].sqrt().item()],
              "√ᾱ of the timestep just reached: the sampler is at t-1 by now, whose ᾱ is alpha_bar_prev",
              tolerance=0.06)


def test_6_3_as_much_noise_as_at_the_step_reached(m, course, draw):
    for place in 2, 4, 6:
        _, image, mask, got, process = noised(m, course, draw, place)
        asked = f"the spread of the noise in the known part after step {place} of 10 kept ones"
        close(asked, [share(got, image, mask)[1]], [(1 - process.alpha_bar[place - 1]).sqrt().item()],
              "√(1-ᾱ) of the timestep just reached: known, and as noisy as the rest", tolerance=0.04)


def test_6_3_fresh_noise_at_every_step(m, course, draw):
    process = course[4].Diffusion.from_config(course[4].DiffusionConfig(), "10")
    x, image, mask = example(draw)
    step_fn, t = m.overwrite_known(process, image, mask, Generator().manual_seed(0)), full((3,), process.timesteps[5])
    first, second = step_fn(x.clone(), t), step_fn(x.clone(), t)
    holds("two calls with the same x and t", "the same x_{t-1} twice", ((first - second).abs().max() > 1e-3).item(),
          "each step draws fresh noise; it is not drawn once for all of them")
    step_fn = m.overwrite_known(process, image[:1].expand(3, -1, -1, -1), zeros_like(mask) + 1, None)
    twin = step_fn(x.clone(), t)
    holds("one image three times in a batch, each as noisy as the others", "the same noise in two of them",
          ((twin[0] - twin[1]).abs().max() > 1e-3).item(), "each image of a batch has its own noise")


def test_6_3_noise_comes_from_the_generator(m, course, draw):
    process, (x, image, mask) = course[4].Diffusion.from_config(course[4].DiffusionConfig(), "10"), example(draw)
    t, got = full((3,), process.timesteps[5]), {}
    for name, seeds in ("one", [7]), ("the same", [7]), ("three", [7, 8, 9]), ("two of the three", [8, 9]):
        manual_seed(len(name))
        generators, n = [Generator().manual_seed(seed) for seed in seeds], 3 if len(seeds) == 1 else len(seeds)
        given = generators[0] if len(seeds) == 1 else generators
        got[name] = m.overwrite_known(process, image[-n:], mask[-n:], given)(x[-n:], t[-n:])
    close("x_{t-1} with a generator of the same seed", got["the same"], got["one"],
          "all noise comes from the generator that was given, so that a picture can be drawn again")
    close("x_{t-1} of two images, each with a generator of its own, when a third is there or not",
          got["three"][1:], got["two of the three"], "with a list of generators each image has its own noise")


def test_6_3_any_timesteps(m, course, draw):
    """Each image may be at another timestep."""
    d = course[4].Diffusion.from_config(course[4].DiffusionConfig("linear"), "20")
    (x, image, mask), t = example(draw, 4), tensor([d.timesteps[i] for i in (0, 3, 11, 19)])
    before = image.clone()
    got = m.overwrite_known(d, image, mask, Generator().manual_seed(5))(x.clone(), t)
    a = tensor([1.0, *(d.alpha_bar[i - 1] for i in (3, 11, 19))]).view(4, 1, 1, 1)
    noise = course[4].gaussian(image, Generator().manual_seed(5))
    close("x_{t-1} of four images at four timesteps", got,
          (a.sqrt() * image + (1 - a).sqrt() * noise) * mask + x * (1 - mask),
          "√ᾱ·image + √(1-ᾱ)·noise where the image is known, with ᾱ = alpha_bar_prev of each image's own t")
    close("the image afterwards", image, before, "the image belongs to the caller, and must not be changed")


# --- 6.4 add_mask_channels ---

def network(course, draw, in_channels=6, dropout=0.0):
    """A tiny U-Net with random weights, in use, not in training."""
    text = course[2].TextConfig(30, 5, 16, 1, 2)
    unet = course[3].UNet(course[3].UNetConfig(16, (1,), 1, (), in_channels, head_channels=8, dropout=dropout,
                                               groups=4, text=text))
    for p in unet.parameters():
        p.data = draw(*p.shape) * 0.7 / max(1, p[0].numel()) ** 0.5
    return unet.eval()


def answer(unet, x):
    with no_grad():
        return unet(x, T, tokens=arange(15).view(3, 5), mask=arange(5) < tensor([[5], [2], [0]]))


def zero_channels(weight):
    """The input channels whose weights are all zero."""
    return [c for c in range(weight.shape[1]) if not weight[:, c].any().item()]


def test_6_4_four_more_channels(m, course, draw):
    for channels in 3, 6:
        old = network(course, draw, channels)
        config, grown = old.config, m.add_mask_channels(old)
        same(f"the shape of the first convolution's weights, grown from {channels} input channels",
             list(grown.input_conv.weight.shape), [16, channels + 4, 3, 3], "four more input channels")
        same(f"config.in_channels of a network that is grown from {channels}", grown.config.in_channels, channels + 4,
             "the config has to say how many channels there are, for by it others know what the network is shown")
        holds("everything else in its config as it was", f"{grown.config}",
              replace(grown.config, in_channels=channels) == config, "nothing but the first layer grows")


def test_6_4_they_start_at_zero(m, course, draw):
    for channels in 3, 6:
        weight = m.add_mask_channels(network(course, draw, channels)).input_conv.weight
        same(f"of {channels + 4} input channels, how many have weights that are all zero", len(zero_channels(weight)),
             4, "the new channels start at zero: random weights would spoil at once what took long to learn")


def test_6_4_behind_x_in_front_of_low_res(m, course, draw):
    for channels, name in (3, "base"), (6, "upsampler"):
        weight = m.add_mask_channels(network(course, draw, channels)).input_conv.weight
        same(f"the channels with zero weights in a grown {name} model", zero_channels(weight), [3, 4, 5, 6],
             "their place: new channels stand behind x's three and in front of low_res, as with_known puts them")


def test_6_4_the_old_weights_keep_their_places(m, course, draw):
    for channels in 3, 6:
        old = network(course, draw, channels)
        weight, kept = m.add_mask_channels(old).input_conv.weight, old.input_conv.weight
        close("the weights of x's channels", weight[:, :3], kept[:, :3], "x's channels keep their own weights")
        close("the weights of the channels behind the four new ones", weight[:, 7:], kept[:, 3:],
              "low_res keeps its own weights, four channels further back")


def test_6_4_the_original_is_not_changed(m, course, draw):
    old = network(course, draw)
    before, config = {name: value.clone() for name, value in old.state_dict().items()}, old.config
    m.add_mask_channels(old)
    same("the original's number of input channels afterwards", [old.config.in_channels, old.input_conv.weight.shape[1]],
         [config.in_channels, 6], "the network that is given is not changed; a grown copy of it comes back")
    for name, value in old.state_dict().items():
        close(f"the original's {name} afterwards", value, before[name], "the network that is given is not changed")
    holds("the original can be trained as before", "weights that require no gradient any more",
          all(p.requires_grad for p in old.parameters()), "the network that is given is not changed")


def test_6_4_is_a_copy(m, course, draw):
    old = network(course, draw)
    before, grown = {name: value.clone() for name, value in old.state_dict().items()}, m.add_mask_channels(old)
    for p in grown.parameters():
        p.data.add_(1.0)
    for name, value in old.state_dict().items():
        close(f"the original's {name}, after the copy was trained", value, before[name],
              "a copy has weights of its own: they must not share memory with the network that was given")


def test_6_4_answers_as_before(m, course, draw):
    for channels in 3, 6:
        old, x, new = network(course, draw, channels, dropout=0.5), draw(3, channels, 8, 6), draw(3, 4, 8, 6)
        grown = m.add_mask_channels(old)
        got = answer(grown, cat([x[:, :3], new, x[:, 3:]], dim=1))
        close("two answers of the copy of a network in eval mode", answer(grown, cat([x[:, :3], new, x[:, 3:]], dim=1)),
              got, "eval mode: the copy of a network that is in use is in use as well, and drops nothing out")
        close(f"the answer of a grown network, from {channels} channels, whatever the new ones show", got,
              answer(old, x), "zero weights ignore what is new, and everything else is copied: the same answers",
              tolerance=1e-3)


def test_6_4_the_new_channels_can_learn(m, course, draw):
    grown = m.add_mask_channels(network(course, draw))
    holds("weights that can be trained", "weights that do not require a gradient",
          all(p.requires_grad for p in grown.parameters()), "what is new has to learn, and what is old may change")
    grown(draw(3, 10, 6, 8), T, tokens=arange(15).view(3, 5), mask=arange(5) < 3).square().mean().backward()
    gradient = grown.input_conv.weight.grad
    holds("a gradient for each of the new channels", "none for some of them",
          gradient is not None and gradient[:, 3:7].abs().amax((0, 2, 3)).gt(0).all().item(),
          "they start at zero but are weights like all others, and training must be able to change them")
