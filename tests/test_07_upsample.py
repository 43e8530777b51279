"""Low-resolution conditioning, rounding to bytes, sampling in 27 steps; the released answer."""
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import formula

diffusion, upsample, unet = import_module("04_diffusion"), import_module("07_upsample"), import_module("03_unet")
T = torch.tensor([0, 500, 999])


def test_the_network_sees_the_noise_and_the_enlarged_image():
    seen = []

    def model(x, t, **cond):
        seen.append(x)
        return torch.zeros(len(x), 6, *x.shape[2:])
    x, low = torch.randn(3, 3, 12, 20), torch.rand(3, 3, 3, 5)
    denoiser = upsample.with_low_res(model)
    denoiser(x, T, low_res=low)
    denoiser(x, T, **denoiser.prepare(low_res=low))
    assert torch.equal(seen[0][:, :3], x), "x comes first"
    assert torch.allclose(seen[0][:, 3:], F.interpolate(low, (12, 20), mode="bilinear"), atol=1e-6), "then low_res"
    assert torch.equal(seen[0], seen[1]), "prepare saves time only"


def test_a_low_res_of_the_wrong_size_is_refused():
    with pytest.raises(ValueError, match="4 times smaller"):
        upsample.with_low_res(lambda x, t: x)(torch.zeros(1, 3, 16, 16), T[:1], low_res=torch.zeros(1, 3, 8, 8))


def test_rounding_gives_the_256_values_of_a_file():
    x = torch.linspace(-1.1, 1.1, 4001)
    rounded = upsample.round_to_bytes(x)
    assert len(rounded.unique()) == 256 and rounded.min() == -1 and rounded.max() == 1, "[-1, 1] in 256 values"
    assert (rounded - x.clamp(-1, 1)).abs().max() <= 0.5 / 127.5 + 1e-6, "no value moves further than half a step"
    assert torch.equal(upsample.round_to_bytes(rounded), rounded), "rounding what is rounded changes nothing"


def test_upsample_starts_below_unit_noise_and_rounds_its_input():
    seen = {}

    def model(x, t, low_res, **cond):
        seen.setdefault("x", x)
        seen["low"] = low_res
        return torch.zeros(len(x), 6, *x.shape[2:])
    low = torch.rand(3, 3, 3, 5) * 2 - 1
    process = diffusion.Diffusion.from_config(diffusion.DiffusionConfig("linear"), "fast27")
    out = upsample.upsample(model, low, process=process, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(3, 3, 12, 20, generator=torch.Generator().manual_seed(0))
    assert out.shape == (3, 3, 12, 20)
    assert torch.equal(seen["x"], 0.997 * noise), "x_T is a little less than unit noise, as in the released notebooks"
    assert torch.equal(seen["low"], upsample.round_to_bytes(low)), "low_res is what an 8-bit file would hold"


@pytest.mark.parametrize("channels, names", [(3, []), (6, ["low_res"]), (7, ["inpaint_image", "inpaint_mask"]),
                                             (10, ["low_res", "inpaint_image", "inpaint_mask"])])
def test_a_network_is_given_what_its_channels_ask_for(channels, names):
    config = unet.UNetConfig(in_channels=channels)
    sizes = {"low_res": (3, 3, 4, 4), "inpaint_image": (3, 3, 16, 16), "inpaint_mask": (3, 1, 16, 16)}

    def model(x, t):
        assert x.shape[1] == channels, "x and all conditioning images, one after the other"
        return torch.zeros(len(x), 6, *x.shape[2:])
    upsample.denoiser_of(model, config)(torch.zeros(3, 3, 16, 16), T, **{n: torch.zeros(sizes[n]) for n in names})


def test_other_channel_counts_are_refused():
    with pytest.raises(ValueError, match="3, 6, 7 or 10"):
        upsample.denoiser_of(lambda x, t: x, unet.UNetConfig(in_channels=4))


def test_psnr_and_colour_error_by_hand():
    x, true = torch.full((2, 3, 8, 8), 0.2), torch.zeros(2, 3, 8, 8)
    assert torch.allclose(upsample.psnr(x, true), torch.full((2,), 20.0)), "0.2 on [-1, 1] is 0.1 on [0, 1]: 20 dB"
    assert torch.allclose(upsample.color_error(x, torch.zeros(2, 3, 2, 2)), torch.full((2,), 0.1))


# --- The released answer ---

def test_sampling_in_27_steps_gives_the_released_answer():
    d = diffusion.Diffusion.from_config(diffusion.DiffusionConfig("linear"), "fast27")
    answer = d.ddim_sample(formula.denoiser("upsample"), 0.997 * formula.inp("x_T", 3, 3, 16, 16),
                           **formula.conditioning("upsample", "a"))
    formula.agree(answer, formula.golden("ddim.upsample_fast27"), 2e-3)
