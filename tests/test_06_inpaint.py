"""Masks, known regions that stay known to the last bit, four more channels; the released answer."""
from dataclasses import replace
from importlib import import_module

import pytest
import torch

import formula
import small

unet, diffusion, inpaint = import_module("03_unet"), import_module("04_diffusion"), import_module("06_inpaint")
upsample = import_module("07_upsample")
T = torch.tensor([0, 500, 999])


def process(spec="ddim10"):
    return diffusion.Diffusion.from_config(diffusion.DiffusionConfig(), spec)


def masks():
    """Nothing known, everything known, an L: a batch of three."""
    mask = torch.zeros(3, 1, 16, 16)
    mask[1], mask[2, :, 4:, :5], mask[2, :, 12:] = 1, 1, 1
    return mask


@pytest.mark.parametrize("sampler", ["ddim_sample", "ddpm_sample", "dpm_sample"])
@pytest.mark.parametrize("way", ["replace", "overwrite"])
def test_known_pixels_come_out_bit_for_bit(sampler, way):
    """No rounding is in the way: the last x̂_0 is mixed in with weight 1, everything else with weight 0."""
    d, image, mask, g = process(), torch.rand(3, 3, 16, 16) * 2 - 1, masks(), torch.Generator().manual_seed(0)
    options = {"x0_fn": inpaint.replace_known(image, mask)} if way == "replace" else \
        {"step_fn": inpaint.overwrite_known(d, image, mask, g)}
    oracle = diffusion.MixtureDenoiser(d, torch.zeros(1, 3, 16, 16), 0.5)
    out = getattr(d, sampler)(oracle, torch.randn(3, 3, 16, 16), generator=g, **options)
    known = mask.bool().expand_as(out)
    assert torch.equal(out[known], image[known]), "known pixels are the image's"
    assert (out[~known] != image[~known]).all(), "all others are drawn"


def test_a_seam_is_the_jump_across_the_edge_of_a_hole():
    x, mask = torch.zeros(1, 3, 4, 4), torch.ones(1, 1, 4, 4)
    mask[..., 2:] = 0
    x[..., 2:], x[..., 3] = 0.5, 9.0
    assert inpaint.seam(x, mask) == 0.5, "only neighbours of which one is known and one is drawn count"


def test_overwriting_draws_the_known_part_from_q():
    """Each x_{t-1} is √ᾱ_{t-1}·image + √(1-ᾱ_{t-1})·noise where the image is known."""
    d, n = process("10"), 4000
    image, mask = torch.full((n, 1, 1, 2), 0.5), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    step_fn = inpaint.overwrite_known(d, image, mask, torch.Generator().manual_seed(0))
    for place in (1, 5, 9):
        out = step_fn(torch.full((n, 1, 1, 2), 9.0), torch.full((n,), d.timesteps[place]))
        known, a = out[..., 0], d.alpha_bar[place - 1]
        assert (out[..., 1] == 9).all(), "the unknown part is left to the sampler"
        close = abs(known.mean() - 0.5 * a.sqrt()) < 0.06 and abs(known.std() - (1 - a).sqrt()) < 0.05
        assert close, "the known part is noised as the image would be at the timestep just reached"
    assert (step_fn(image * 0, torch.full((n,), d.timesteps[0]))[..., 0] == 0.5).all(), "at the end it is the image"


def test_the_network_sees_x_then_image_times_mask_then_mask():
    seen = []

    def model(x, t, **cond):
        seen.append((x, cond))
        return torch.zeros(len(x), 6, *x.shape[2:])
    x, image, mask = torch.randn(3, 3, 16, 12), torch.rand(3, 3, 16, 12), masks()[..., :12]
    inpaint.with_known(model)(x, T, inpaint_image=image, inpaint_mask=mask, tokens="t")
    assert torch.equal(seen[0][0], torch.cat([x, image * mask, mask], dim=1)), "under the mask nothing may be seen"
    assert seen[0][1] == {"tokens": "t"}, "other conditioning is passed on"


def test_with_an_upsampler_the_known_part_stands_before_the_low_resolution():
    seen = []

    def model(x, t):
        seen.append(x)
        return torch.zeros(len(x), 6, *x.shape[2:])
    x, image, low = torch.randn(3, 3, 16, 16), torch.rand(3, 3, 16, 16), torch.rand(3, 3, 4, 4)
    denoiser = inpaint.with_known(upsample.with_low_res(model))
    cond = {"inpaint_image": image, "inpaint_mask": masks(), "low_res": low}
    denoiser(x, T, **cond)
    denoiser(x, T, **denoiser.prepare(**cond))
    assert seen[0].shape[1] == 10 and torch.equal(seen[0], seen[1]), "prepare saves time only"
    assert torch.equal(seen[0][:, 3:7], torch.cat([image * masks(), masks()], dim=1)), "x, image × mask, mask, low_res"


# --- Four more channels ---

CHANNELS = {"tiny": (7, 16), "tiny-upsampler": (10, 32)}      # of the grown network; the side of its test images


def network(name):
    """A named size of one text layer, with random weights: a fresh one answers zero, whatever its channels."""
    config = unet.UNET[name]
    return small.randomize(unet.UNet(replace(config, text=replace(config.text, layers=1)))).eval()


def inputs(name):
    """x, and all that a grown network of this kind is conditioned on; one caption is full, one short, one empty."""
    side = CHANNELS[name][1]
    cond = {"tokens": torch.arange(60).view(3, 20), "mask": torch.arange(20) < torch.tensor([[20], [5], [0]]),
            "inpaint_image": torch.rand(3, 3, side, side) * 2 - 1,
            "inpaint_mask": torch.nn.functional.interpolate(masks(), size=side)}
    if name == "tiny-upsampler":
        cond["low_res"] = torch.rand(3, 3, side // 4, side // 4) * 2 - 1
    return torch.randn(3, 3, side, side), cond


@pytest.mark.parametrize("name", CHANNELS)
@torch.no_grad()
def test_before_training_a_grown_network_answers_as_before(name):
    """The first convolution sums four more channels of exact zeros, in an order of its own: of its up to 90 terms, each
    rounded to 24 bits, the sums may differ by 90·2⁻²⁴, and the layers behind it may enlarge that some ten times."""
    old, (x, cond) = network(name), inputs(name)
    new = inpaint.add_mask_channels(old)
    without = {key: value for key, value in cond.items() if not key.startswith("inpaint")}
    before = upsample.denoiser_of(old, old.config)(x, T, **without)
    after = upsample.denoiser_of(new, new.config)(x, T, **cond)
    assert before.abs().max() > 0.1, "a network that answers zero would prove nothing"
    off = ((after - before).abs().max() / before.abs().max()).item()
    assert off < 1e-4, f"zero weights ignore the known part, so no answer may change; step 0 is off by {off:.1g}"


@pytest.mark.parametrize("name", CHANNELS)
def test_the_new_channels_stand_between_x_and_the_low_resolution(name):
    old = network(name)
    new, before = inpaint.add_mask_channels(old), {key: value.clone() for key, value in old.state_dict().items()}
    assert new.config == replace(old.config, in_channels=CHANNELS[name][0]), "nothing else changes"
    weight, trained = new.input_conv.weight, before["input_conv.weight"]
    assert torch.equal(weight[:, :3], trained[:, :3]) and torch.equal(weight[:, 7:], trained[:, 3:]), "x, new, low_res"
    assert (weight[:, 3:7] == 0).all(), "image × mask and mask are ignored at first"
    for key, value in new.state_dict().items():
        assert key == "input_conv.weight" or torch.equal(value, before[key]), f"{key} must stay as it was trained"
    for p in new.parameters():
        p.data.add_(1)
    assert all(torch.equal(value, before[key]) for key, value in old.state_dict().items()), "the old network stays"


def test_what_starts_at_zero_still_learns():
    new, (x, cond) = inpaint.add_mask_channels(network("tiny")), inputs("tiny")
    inpaint.with_known(new)(x, T, **cond).square().mean().backward()
    learns = new.input_conv.weight.grad[:, 3:7].abs().amax((0, 2, 3)) > 0
    assert learns.all(), "a weight's gradient is its input times its output's gradient, and neither is zero"


# --- Random masks ---

def test_random_masks_come_in_all_kinds():
    mask = inpaint.random_mask(400, 16, 24)
    assert mask.shape == (400, 1, 16, 24) and set(mask.unique().tolist()) == {0.0, 1.0}
    known = mask.flatten(1).mean(1)
    assert (known == 0).any() and (known == 1).any(), "everything and nothing known must occur: both happen in use"
    assert ((known > 0.05) & (known < 0.95)).float().mean() > 0.5, "most masks erase a part"


def test_one_seed_is_one_mask():
    draw = [inpaint.random_mask(5, 16, 16, seed=s) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])


# --- The released answer ---

def test_replacing_known_regions_gives_the_released_answer():
    image = 1.5 * formula.inp("inpaint_image", 3, 3, 16, 16)   # beyond ±1 on purpose: clipping comes after
    answer = process().ddim_sample(formula.denoiser("base"), formula.inp("x_T", 3, 3, 16, 16),
                                   x0_fn=inpaint.replace_known(image, formula.known_mask()),
                                   **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden("ddim.replace_known"), 2e-3)
