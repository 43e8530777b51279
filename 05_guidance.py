r"""
05 · How hard to listen to the prompt.

A denoiser trained with captions listens politely: many different pictures are likely for "a red heart", and it
draws any of them, half-hearted ones too. Guidance makes it insist. Trained with a fifth of its captions
left out, the network can guess the noise with the prompt and without; the difference between the
two guesses points towards what the prompt alone explains. Go further that way:

    x_t ─┬─► model(x_t, caption) ──► ε_c ─┐
         └─► model(x_t, nothing) ──► ε_∅ ─┴─► ε̂ = ε_∅ + s·(ε_c - ε_∅)

s = 0 ignores the prompt, s = 1 is the model as trained, s = 3 is GLIDE's habit: pictures that anyone would
caption the same way, at the price of variety. Nothing is trained for it and nothing in the samplers
changes: guidance is a function from a denoiser to a denoiser.

It adds to 04: the prompt's loudness. It leaves out: guidance by CLIP's gradient.

Papers: classifier-free guidance, Ho & Salimans 2022, arXiv 2207.12598 (section 3.2; they write
(1+w)·ε_c - w·ε_∅, so s = 1 + w); GLIDE, Nichol et al. 2021, arXiv 2112.10741 (sections 2.3 and 5: s is 3).

    python 05_guidance.py       about ten seconds: what guidance does to a distribution one can plot, then
                                one prompt drawn at scales 0, 1, 3 and 8; a picture in outputs/
"""
from importlib import import_module
from pathlib import Path

import torch

diffusion = import_module("04_diffusion")

OUTPUTS = Path(__file__).parent / "outputs"


def classifier_free(model, scale):
    """A denoiser that exaggerates what the prompt changes [GLIDE section 2.3].

    model  a denoiser that takes `mask` (False: no token there), trained with some captions dropped
    scale  s: 0 ignores the prompt, 1 follows it as trained, more insists
    """
    def double(value):
        return torch.cat([value, value])

    def inner_prepare(**cond):
        # Every conditioning tensor twice; in the second half no token is real: the empty caption.
        twice = {name: double(value) for name, value in cond.items()}
        twice["mask"][len(twice["mask"]) // 2:] = False
        return {"both": diffusion.prepare(model, **twice)}

    def denoiser(x, t, *, both=None, **cond):
        """x [B, C, H, W] -> [B, 2C, H, W]; the two branches are one batch of 2B, from the same x_t."""
        both = inner_prepare(**cond)["both"] if both is None else both
        with_prompt, without = model(double(x), double(t), **both).chunk(2)
        eps, variance = with_prompt.chunk(2, dim=1)    # the variance is the prompt's own, unguided
        eps_empty = without.chunk(2, dim=1)[0]
        return torch.cat([eps_empty + scale * (eps - eps_empty), variance], dim=1)   # ε_∅ + s·(ε_c - ε_∅)

    denoiser.prepare = inner_prepare
    return denoiser
