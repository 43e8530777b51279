"""Masks and known regions: released answers, and what is known stays known to the last bit."""
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


def test_replacing_known_regions_gives_the_released_answer():
    image = 1.5 * formula.inp("inpaint_image", 3, 3, 16, 16)   # beyond ±1 on purpose: clipping comes after
    answer = process().ddim_sample(formula.denoiser("base"), formula.inp("x_T", 3, 3, 16, 16),
                                   x0_fn=inpaint.replace_known(image, formula.known_mask()),
                                   **formula.conditioning("base", "a"))
    formula.agree(answer, formula.golden("ddim.replace_known"), 2e-3)


@pytest.mark.parametrize("sampler", ["ddim_sample", "ddpm_sample", "dpm_sample"])
@pytest.mark.parametrize("way", ["replace", "overwrite"])
def test_known_pixels_come_out_bit_for_bit(sampler, way):
    d, image, mask = process(), formula.inp("inpaint_image", 3, 3, 16, 16).clamp(-1, 1), masks()
    hook = {"x0_fn": inpaint.replace_known(image, mask)} if way == "replace" else \
        {"step_fn": inpaint.overwrite_known(d, image, mask, torch.Generator().manual_seed(0))}
    x_T = formula.inp("x_T", 3, 3, 16, 16)
    out = getattr(d, sampler)(formula.denoiser("base"), x_T, generator=torch.Generator().manual_seed(1), **hook,
                              **formula.conditioning("base", "a"))
    known = mask.bool().expand_as(out)
    assert torch.equal(out[known], image[known]), "the last step's x̂_0 (replace) or x_0 (overwrite) is the image there"
    assert not torch.equal(out[~known], image[~known])


def test_overwriting_draws_the_known_part_from_q():
    """Each x_{t-1} is √ᾱ_{t-1}·image + √(1-ᾱ_{t-1})·noise where the picture is known."""
    d, n = process("10"), 4000
    image, mask = torch.full((n, 1, 1, 2), 0.5), torch.tensor([1.0, 0.0]).view(1, 1, 1, 2)
    step_fn = inpaint.overwrite_known(d, image, mask, torch.Generator().manual_seed(0))
    for place in (1, 5, 9):
        out = step_fn(torch.full((n, 1, 1, 2), 9.0), torch.full((n,), d.timesteps[place]))
        known, a = out[..., 0], d.alpha_bar[place - 1]
        assert (out[..., 1] == 9).all(), "the unknown part is left to the sampler"
        assert abs(known.mean() - 0.5 * a.sqrt()) < 0.06 and abs(known.std() - (1 - a).sqrt()) < 0.05
    assert (step_fn(image * 0, torch.full((n,), d.timesteps[0]))[..., 0] == 0.5).all(), "at the end, the picture"


def test_the_network_sees_picture_under_mask_then_mask():
    seen = []

    def model(x, t, **cond):
        seen.append((x, cond))
        return torch.zeros(len(x), 6, *x.shape[2:])
    x, image, mask = torch.randn(3, 3, 16, 12), torch.rand(3, 3, 16, 12), masks()[..., :12]
    inpaint.with_known(model)(x, T, inpaint_image=image, inpaint_mask=mask, tokens="t")
    assert torch.equal(seen[0][0], torch.cat([x, image * mask, mask], dim=1)) and seen[0][1] == {"tokens": "t"}


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
    assert seen[0].shape[1] == 10 and torch.equal(seen[0], seen[1])
    assert torch.equal(seen[0][:, 3:6], image * masks()) and torch.equal(seen[0][:, 6:7], masks())


# --- Four more channels ---

GROWN = {"base": ("inpaint", 7), "upsampler": ("inpaint-upsampler", 10)}


def network(kind):
    """Random weights; two heads; the first convolution's in 64ths, so that its sums are exact in any order."""
    net = small.randomize(unet.UNet(small.preset(kind).network)).eval()
    net.input_conv.weight.data = net.input_conv.weight.data.mul(64).round() / 64
    return net


def sixteenths(*shape):
    return torch.randint(-48, 49, shape, generator=torch.Generator().manual_seed(0)) / 16


@pytest.mark.parametrize("kind", GROWN)
def test_before_training_a_grown_network_answers_as_before(kind):
    """Bit for bit, whatever it is shown: zero weights make of the known part exact zeros."""
    old = network(kind)
    new, side = inpaint.add_mask_channels(old), 16 if kind == "base" else 32
    cond = {"tokens": torch.arange(60).view(3, 20), "mask": torch.arange(20) < torch.tensor([[20], [5], [0]])}
    if kind == "upsampler":
        cond["low_res"] = sixteenths(3, 3, side // 4, side // 4).clamp(-1, 1)
    mask = torch.nn.functional.interpolate(masks(), size=side)
    x = sixteenths(3, 3, side, side)
    with torch.no_grad():
        expected = upsample.denoiser_of(old, old.config)(x, T, **cond)
        cond |= {"inpaint_image": x.flip(0).clamp(-1, 1), "inpaint_mask": mask}
        answer = upsample.denoiser_of(new, new.config)(x, T, **cond)
    assert expected.abs().max() > 0.1, "a network that answers zero would prove nothing"
    assert torch.equal(answer, expected), f"step 0 of fine-tuning is off by {(answer - expected).abs().max():.1g}"


@pytest.mark.parametrize("kind", GROWN)
def test_the_new_channels_stand_between_x_and_the_low_resolution(kind):
    old = network(kind)
    new, before = inpaint.add_mask_channels(old), {name: value.clone() for name, value in old.state_dict().items()}
    preset, channels = GROWN[kind]
    assert new.config.in_channels == channels and new.config == small.preset(preset).network
    weight, trained = new.input_conv.weight, before["input_conv.weight"]
    assert torch.equal(weight[:, :3], trained[:, :3]) and torch.equal(weight[:, 7:], trained[:, 3:])
    assert (weight[:, 3:7] == 0).all(), "picture × mask and mask are not heard yet"
    for name, value in new.state_dict().items():
        assert name == "input_conv.weight" or torch.equal(value, before[name]), f"{name} must stay as it was trained"
    for p in new.parameters():
        p.data.add_(1)
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items()), "a copy: the old one stays"


def test_what_starts_at_zero_still_learns():
    """Its gradient is what the network wants to hear times what it is shown; neither is zero."""
    new = inpaint.add_mask_channels(network("base"))
    cond = formula.conditioning("base-inpaint", "a")
    x, image, mask = formula.inp("x", 3, 3, 16, 16), cond["inpaint_image"], cond["inpaint_mask"]
    tokens = {"tokens": torch.zeros(3, 20, dtype=torch.long), "mask": torch.ones(3, 20, dtype=torch.bool)}
    inpaint.with_known(new)(x, T, inpaint_image=image, inpaint_mask=mask, **tokens).square().mean().backward()
    new_part = new.input_conv.weight.grad[:, 3:7]
    assert (new_part.abs().amax((0, 2, 3)) > 0).all(), "each of the four channels must be able to learn"


# --- Random masks ---

def test_random_masks_come_in_all_kinds():
    mask = inpaint.random_mask(400, 16, 24)
    assert mask.shape == (400, 1, 16, 24) and set(mask.unique().tolist()) == {0.0, 1.0}
    known = mask.flatten(1).mean(1)
    assert (known == 0).any() and (known == 1).any(), "everything and nothing must occur: both are asked for in use"
    assert ((known > 0.05) & (known < 0.95)).float().mean() > 0.5, "most masks erase a part"


def test_one_seed_is_one_mask():
    draw = [inpaint.random_mask(5, 16, 16, seed=s) for s in (1, 1, 2)]
    assert torch.equal(draw[0], draw[1]) and not torch.equal(draw[0], draw[2])
