"""The released networks at their real size: all 1.7 billion numbers by formula, loaded, run, and compared."""
from concurrent.futures import ThreadPoolExecutor
from importlib import import_module

import numpy as np
import pytest
import torch

import formula

sample = import_module("09_sample")


def filled(shapes):
    """Formula weights for {key: shape}. numpy lets go of the interpreter, so two threads make them twice as fast."""
    with ThreadPoolExecutor() as pool:
        return dict(zip(shapes, pool.map(formula.weight, shapes, shapes.values())))


@pytest.fixture(scope="module", params=["base", "upsampler"])
def released(request):
    """(part, weights) of the base model and of the upsampler; of an inpainting variant one tensor is another."""
    return request.param, filled(sample.released_shapes(request.param))


@pytest.mark.parametrize("inpaint", [False, True], ids=["plain", "inpaint"])
def test_released_unets_give_the_released_answers(released, inpaint):
    part, weights = released
    if inpaint:
        key, channels = "input_blocks.0.0.weight", {"base": 7, "upsampler": 10}[part]
        weights = weights | {key: formula.weight(key, (192, channels, 3, 3))}
    kind, size = {"base": "base", "upsampler": "upsample"}[part], {"base": 64, "upsampler": 256}[part]
    mask = torch.arange(128)[None] < 9
    cond = {"tokens": formula.toks("tokens", 1, 128, 50257), "mask": mask}
    if part == "upsampler":
        cond["low_res"] = formula.inp("low_res", 1, 3, 64, 64).clamp(-1, 1)
    if inpaint:
        known = torch.ones(1, 1, size, size)
        known[:, :, size // 4:size // 2, size // 4:] = 0
        cond |= {"inpaint_image": formula.inp("inpaint_image", 1, 3, size, size).clamp(-1, 1), "inpaint_mask": known}
    with torch.no_grad():
        answer = sample.load_openai(weights)(formula.inp("x", 1, 3, size, size), torch.tensor([700]), **cond)
    expected = formula.golden(f"released.{kind}{'-inpaint' * inpaint}", "released.npz").flatten()
    places = np.linspace(0, answer.numel() - 1, 256).astype(np.int64)
    answer = torch.cat([answer.flatten()[places], answer.mean()[None], answer.std()[None]])
    formula.agree(answer[None], expected[None], 5e-4)


def test_released_clip_gives_the_released_answers():
    clip = sample.load_openai_clip(*(filled(sample.released_shapes(f"clip-{tower}")) for tower in ("image", "text")))
    with torch.no_grad():
        text = clip.text(formula.toks("clip_tokens", 2, 77, 65536), torch.tensor([77, 9]))
        image = clip.image(formula.inp("x", 2, 3, 64, 64), torch.tensor([10, 700]))
    formula.agree(text, formula.golden("released.clip.text", "released.npz"), 5e-4)
    formula.agree(image, formula.golden("released.clip.image", "released.npz"), 5e-4)
