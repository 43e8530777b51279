r"""
06 · Draw only here.

Give the painter a finished picture, wipe out a part of it, and ask for that part again, in words. A diffusion
model can do it in three ways, each better than the one before:

    1  overwrite   after each step the known part of x_{t-1} is replaced by the picture, noised to t-1
    2  replace     the known part of each *predicted* picture x̂_0 is replaced by the true one
    3  fine-tune   the network is shown what is known, on four more input channels, and taught to use it

    x_t [B, 3, H, W] ─────────┐
    picture × mask [B, 3, …] ─┼─► [B, 7, H, W] ─► U-Net ─► ε̂, variance
    mask [B, 1, …] ───────────┘

The first two need no training and work on any model, but the network meets its surroundings only through
noise, or corrected behind its back, and seams show [GLIDE section 4.3]. In tensors a mask is 1 where the picture is
known; in files white means "draw here". It is turned round once, in 09.

It adds to 04: masks. It leaves out: the training of the third way.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4.3); overwriting: Song et al. 2020, arXiv 2011.13456
(section 5, appendix I.2).

    python 06_inpaint.py        about ten seconds: masks, the first two ways with the small weights, and
                                how much of the known part each keeps; a picture in outputs/
"""
from importlib import import_module
from pathlib import Path

import torch

diffusion = import_module("04_diffusion")

OUTPUTS = Path(__file__).parent / "outputs"


def with_known(model):
    """A denoiser that is shown the known part of the picture.

    inpaint_image [B, 3, H, W] in [-1, 1], inpaint_mask [B, 1, H, W], 1 = known. The inner model sees
    x, picture × mask and mask on its input channels, in this order. With an upsampler: with_known(with_low_res(unet)).
    """
    def known(inpaint_image, inpaint_mask):
        return torch.cat([inpaint_image * inpaint_mask, inpaint_mask], dim=1)   # [B, 4, H, W]

    def inner_prepare(inpaint_image, inpaint_mask, **cond):
        return {"known_part": known(inpaint_image, inpaint_mask), **diffusion.prepare(model, **cond)}

    def denoiser(x, t, *, known_part=None, inpaint_image=None, inpaint_mask=None, **cond):
        if known_part is None:
            known_part = known(inpaint_image, inpaint_mask)
        return model(torch.cat([x, known_part], dim=1), t, **cond)

    denoiser.prepare = inner_prepare
    return denoiser


def replace_known(image, mask):
    """x0_fn for a sampler: the known part of every predicted picture becomes the true one.

    image [B, C, H, W] in [-1, 1], mask [B, 1, H, W] with 1 = known
    """
    return lambda x0: torch.where(mask.bool(), image, x0)


def overwrite_known(process, image, mask, generator=None):
    """step_fn for a sampler: the known part of every new x_{t-1} becomes a draw from q(x_{t-1} | image).

    process is the (respaced) Diffusion that is sampled; at the last step the picture itself is put in.
    """
    def step_fn(x, t):
        before = process.before   # ᾱ of the step just reached: 1 at the end
        noised = process.at(before.sqrt(), t, x) * image \
            + process.at((1 - before).sqrt(), t, x) * diffusion.gaussian(image, generator)
        return torch.where(mask.bool(), noised, x)
    return step_fn
