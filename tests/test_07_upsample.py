"""Low-resolution conditioning, rounding to bytes, sampling in 27 steps; the released answer."""
import random
from dataclasses import replace
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


# --- What a model is shown in training ---

def captioned(n=4, side=64):
    world = diffusion.LittleWorld("full", seed=3, side=side)
    images, captions, _, _ = zip(*(world[i] for i in range(n)))
    return torch.stack(images), captions


def shown(name, extra=0, n=4, size=64, crop=0, seed=0):
    config = unet.UNET[name]
    config = replace(config, in_channels=config.in_channels + extra)
    images, captions = captioned(n)
    rngs = [random.Random(f"{seed} {i}") for i in range(n)]
    words = import_module("01_tokenizer").world_tokenizer()
    return images, upsample.conditioning(images, captions, words, config, size, rngs, crop)


def test_training_images_are_between_minus_one_and_one():
    images, (x0, cond) = shown("tiny", size=16)
    assert x0.shape == (4, 3, 16, 16) and set(cond) == {"tokens", "mask"}
    assert x0.min() == -1 and 0.9 < x0.max() <= 1, "the range that samplers clip to, not 0 … 1"
    assert torch.allclose((x0 + 1) * 127.5, F.avg_pool2d(images.float(), 4), atol=1e-3)


def test_low_res_is_the_reduced_image_as_a_file_would_hold_it():
    images, (x0, cond) = shown("tiny-upsampler")
    levels = (cond["low_res"] + 1) * 127.5
    assert (levels - levels.round()).abs().max() < 1e-3, "whole levels of 255, as a saved file has them"
    assert (levels - F.avg_pool2d(images.float(), 4)).abs().max() <= 0.501, "the mean of each 4×4, rounded"
    assert torch.allclose(x0, images / 127.5 - 1, atol=1e-6), "the target is the large image itself"


def test_a_crop_is_the_same_square_of_both_sizes():
    images, (x0, cond) = shown("tiny-upsampler", crop=32)
    assert x0.shape[2:] == (32, 32) and cond["low_res"].shape[2:] == (8, 8)
    off = (F.avg_pool2d(x0, 4) - cond["low_res"]).abs().max()
    assert off <= 1.01 / 255, f"low_res is off by {off:.3f}: shifted by a part of a pixel, it would teach a shift"
    assert any(not torch.equal(x0, shown("tiny-upsampler", crop=32, seed=seed)[1][0]) for seed in range(1, 4))


@pytest.mark.parametrize("name, size, side", [("tiny", 16, 1), ("tiny-upsampler", 64, 4)])
def test_an_inpainting_model_is_shown_the_whole_image_and_a_mask_of_the_base_models_pixels(name, size, side):
    _, (x0, cond) = shown(name, extra=4, size=size)
    assert torch.equal(cond["inpaint_image"], x0), "with_known erases the hole; the target is the whole image"
    mask = cond["inpaint_mask"]
    assert mask.shape == (4, 1, size, size) and set(mask.unique().tolist()) <= {0.0, 1.0}
    squares = F.interpolate(F.avg_pool2d(mask, side), scale_factor=side)
    assert torch.equal(squares, mask), "both models draw into the same hole"
    assert len({tuple(m.flatten().tolist()) for m in mask}) > 1, "every image has a mask of its own"


# --- The released answer ---

def test_sampling_in_27_steps_gives_the_released_answer():
    d = diffusion.Diffusion.from_config(diffusion.DiffusionConfig("linear"), "fast27")
    answer = d.ddim_sample(formula.denoiser("upsample"), 0.997 * formula.inp("x_T", 3, 3, 16, 16),
                           **formula.conditioning("upsample", "a"))
    formula.agree(answer, formula.golden("ddim.upsample_fast27"), 2e-3)
