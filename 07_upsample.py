r"""
07 · 64 becomes 256.

A large picture is drawn in two walks. The first decides what there is, on few pixels; the second, with a
network of its own, starts from noise again and adds what few pixels cannot hold, looking all the
time at the small picture:

    low_res [B, 3, H/4, W/4] ─► bilinear, ×4 ─┐
                                              ├─► [B, 6, H, W] ─► U-Net ─► ε̂, variance
    x_t     [B, 3, H, W] ─────────────────────┘

It adds to 04: three input channels. It leaves out nothing of GLIDE's upsampler: the prompt still conditions it,
through a text encoder of its own, the low-resolution picture is rounded to 8 bits first, as a saved file
would be, and 27 DDIM steps are enough, most of them near the picture, where detail is made.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); ADM, Dhariwal & Nichol 2021,
arXiv 2105.05233 (section 4.4: upsampling); SR3, Saharia et al. 2021, arXiv 2104.07636; what the network should
predict: Salimans & Ho 2022, arXiv 2202.00512.

    python 07_upsample.py       about fifteen seconds: why a little-trained upsampler should predict v, and
                                four pictures enlarged beside bicubic; a picture in outputs/
"""
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F

unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
inpaint = import_module("06_inpaint")

OUTPUTS = Path(__file__).parent / "outputs"
FACTOR = 4   # 64 -> 256, and 16 -> 64 in the tiny preset


def with_low_res(model):
    """A denoiser of large pictures that is shown the small one: `low_res` [B, 3, H/4, W/4] in [-1, 1].

    model sees x and the enlarged picture side by side on its input channels; it is the enlarging, by torch's
    bilinear filter, that `prepare` does once.
    """
    def inner_prepare(low_res, **cond):
        enlarged = F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear")
        return {"enlarged": enlarged, **diffusion.prepare(model, **cond)}

    def denoiser(x, t, *, enlarged=None, low_res=None, **cond):
        if enlarged is None:
            enlarged = F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear")
        if enlarged.shape[2:] != x.shape[2:]:
            raise ValueError(f"a picture of {tuple(x.shape[2:])} pixels needs low_res {FACTOR} times smaller, "
                             f"not one that enlarges to {tuple(enlarged.shape[2:])}")
        return model(torch.cat([x, enlarged], dim=1), t, **cond)

    denoiser.prepare = inner_prepare
    return denoiser


def round_to_bytes(x):
    """The picture as an 8-bit file would hold it: [-1, 1] in 256 steps, as GLIDE's low-resolution input is."""
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def upsample(model, low_res, *, process, generator=None, noise=0.997, **cond):
    """Enlarge pictures four times.

    model    a denoiser that takes low_res;  process  its Diffusion, respaced to 'fast27' by default elsewhere
    low_res  [B, 3, H, W] in [-1, 1] -> [B, 3, 4H, 4W]. No guidance, DDIM with eta 0, starting from slightly
             less than unit noise, as the released notebooks do.
    """
    B, C, H, W = low_res.shape
    x = noise * diffusion.gaussian(low_res.new_empty(B, C, FACTOR * H, FACTOR * W), generator)
    return process.ddim_sample(model, x, low_res=round_to_bytes(low_res), **cond)


def denoiser_of(model, config, process=diffusion.DiffusionConfig()):
    """A U-Net as a denoiser: given the inputs that its channels ask for, and answering ε whatever it predicts.

    config  its UNetConfig: 3 input channels for a base model, 6 for an upsampler, and 4 more with known parts
    """
    inputs = {0: [], 3: [with_low_res], 4: [inpaint.with_known], 7: [with_low_res, inpaint.with_known]}
    extra = config.in_channels - config.out_channels // 2
    if extra not in inputs:
        raise ValueError(f"no GLIDE model has {config.in_channels} input channels; they have 3, 6, 7 or 10")
    for wrap in inputs[extra]:
        model = wrap(model)
    return diffusion.answers_eps(model, process)
