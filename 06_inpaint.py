r"""
06 · Draw only here.

Take a finished picture, erase a part of it, and ask for that part again, in words. A diffusion model can do
this in three ways. The first two do about equally well, the third better:

    1  overwrite   after each step the known part of x_{t-1} is replaced by the image, noised to t-1
    2  replace     the known part of each *predicted* image x̂_0 is replaced by the true one
    3  fine-tune   the network is shown what is known, on four more input channels, and trained to use it

    x_t [B, 3, H, W] ───────┐
    image × mask [B, 3, …] ─┼─► [B, 7, H, W] ─► U-Net ─► ε̂, variance
    mask [B, 1, …] ─────────┘

The first two need no training and work with any model. But the network sees the known part only through noise,
too late to draw what fits it, and seams show [GLIDE section 4.3]. In tensors a mask is 1 where the image
is known; in files white means "draw here". The conversion is done once, in 09.

It adds to 04: masks, four input channels added to a trained network in such a way that at first it answers as
before, and images that people bring, in files of any kind. It leaves out the channels' training (08).

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4.3); overwriting: Song et al. 2020, arXiv 2011.13456
(section 5, appendix I.2).

    python 06_inpaint.py        about ten seconds: random masks, holes filled in three ways by the small models,
                                and what the new channels hold; outputs/06_inpaint.png shows the fillings
"""
import io
import random
from contextlib import suppress
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageCms, ImageOps

tokenizer = import_module("01_tokenizer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")

OUTPUTS = Path(__file__).parent / "outputs"


# --- Masks: 1 = known, 0 = to be drawn ---------------------------------------------------------------

# A network that saw only boxes in training can only fill boxes, but people erase any shape. So five kinds are mixed, in
# all sizes: boxes, brush strokes, and everything outside a box, which asks for the image to be continued; and in three
# cases of twenty, everything or nothing is known. "Nothing known" keeps the model able to draw from scratch, and
# "everything known" teaches it that known pixels are to be repeated as they are.
def box(height, width, rng):
    """A rectangle to be drawn, with sides of a quarter to all of the image's. -> [height, width] of 0 and 1"""
    mask = torch.ones(height, width)
    h, w = rng.randint(max(1, height // 4), height), rng.randint(max(1, width // 4), width)
    top, left = rng.randint(0, height - h), rng.randint(0, width - w)
    mask[top:top + h, left:left + w] = 0
    return mask


def border(height, width, rng):
    """Everything outside a rectangle is to be drawn: the image is to be continued. -> [height, width] of 0 and 1"""
    return 1 - box(height, width, rng)


def stroke(height, width, rng):
    """A brush erases along a few straight lines: all pixels within its radius. -> [height, width] of 0 and 1"""
    pixels = torch.cartesian_prod(torch.arange(height), torch.arange(width)).view(height, width, 2).float()
    corners = torch.tensor([[rng.uniform(0, height), rng.uniform(0, width)] for _ in range(rng.randint(2, 5))])
    radius, mask = rng.uniform(0.05, 0.2) * min(height, width), torch.ones(height, width)
    for start, end in zip(corners, corners[1:]):
        along = end - start
        share = ((pixels - start) @ along / along.square().sum().clamp(min=1e-6)).clamp(0, 1)
        mask[(pixels - start - share[..., None] * along).norm(dim=-1) <= radius] = 0
    return mask


def random_mask(count, height, width, *, seed=0):
    """The masks that inpainting is trained and tested on: boxes, strokes, borders, everything and nothing known.

    -> [count, 1, height, width] of 0 and 1, float32. The same seed gives the same masks.
    """
    rng = random.Random(seed)
    kinds = rng.choices([box, stroke, border, lambda h, w, _: torch.ones(h, w), lambda h, w, _: torch.zeros(h, w)],
                        weights=[8, 5, 4, 1, 2], k=count)
    return torch.stack([kind(height, width, rng) for kind in kinds])[:, None]


# --- Three ways of filling a hole --------------------------------------------------------------------

# All three fit into what samplers and denoisers offer (04), and can be combined: with_known wraps a denoiser,
# replace_known is an x0_fn, which changes each predicted x_0, and overwrite_known is a step_fn, which changes each
# x_{t-1}. The released notebook combines the first with the second: the fine-tuned network sees what is known, and
# whatever it makes of that, the known pixels come out exact.
def with_known(model):
    """A denoiser that is shown the known part of the image.

    model  a denoiser that takes x, image × mask and mask on its input channels, in this order;
           an upsampler becomes with_known(with_low_res(unet))
    -> model(x, t, inpaint_image=, inpaint_mask=, …): [B, 3, H, W] in [-1, 1], and [B, 1, H, W], where 1 = known

    The image is multiplied by the mask before the network sees it: in training the whole image is at hand, and a
    network that could look under the mask would learn to copy. The mask is shown as well, since an erased pixel is 0,
    but so is a grey one. Neither is noised, so the known part is clear from the first step on.
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


def add_mask_channels(network):
    """A copy of a U-Net with four more input channels, behind x's three, for the known part of an image.

    network  a base model's U-Net (3 input channels -> 7) or an upsampler's (6 -> 10); it is not changed
    The new channels' weights are zero, so before any training the copy gives the same answers.
    """
    # Random weights would spoil at once what took long to learn. Zero ones learn as soon as that helps: their gradient
    # is what they are shown times the gradient of what they feed, and neither is zero.
    config, weights = network.config, {name: value.clone() for name, value in network.state_dict().items()}
    noisy = config.out_channels // 2                                    # x's channels; low_res comes last
    old = weights["input_conv.weight"]                                  # [width, in, 3, 3]
    zeros = old.new_zeros(len(old), 4, *old.shape[2:])
    weights["input_conv.weight"] = torch.cat([old[:, :noisy], zeros, old[:, noisy:]], dim=1)
    with torch.device("meta"):                                          # no memory for weights replaced at once
        grown = unet.UNet(replace(config, in_channels=config.in_channels + 4))
    grown.load_state_dict(weights, assign=True)
    return grown.train(network.training)


def replace_known(image, mask):
    """A sampler's x0_fn: the known part of every predicted x_0 becomes the true one.

    image [B, C, H, W] in [-1, 1], mask [B, 1, H, W] with 1 = known. The last predicted x_0 is the result, since the
    last step adds no noise, so the known pixels come out exact. Before that, each step's mean is computed with the
    true pixels, so that the known part moves towards them.
    """
    return lambda x0: torch.where(mask.bool(), image, x0)


def overwrite_known(process, image, mask, generator=None):
    """A sampler's step_fn: the known part of every new x_{t-1} becomes a sample of q(x_{t-1} | image).

    process    the (respaced) Diffusion whose sampler is used; its last step puts in the image itself
    image [B, C, H, W] in [-1, 1], mask [B, 1, H, W] with 1 = known; generator as for `gaussian` (04)

    With fresh noise at every step, the known part of x_{t-1} is noised just as the model expects at t-1. But at the
    noisy end it tells little, and by the time it can be seen, the content of the hole has been decided.
    """
    def step_fn(x, t):
        alpha_bar = process.alpha_bar_prev   # ᾱ of the timestep just reached; 1 at the end
        # x_{t-1} = √ᾱ_{t-1}·image + √(1-ᾱ_{t-1})·ε   [DDPM eq. 4]
        noised = process.extract(alpha_bar.sqrt(), t, x) * image \
            + process.extract((1 - alpha_bar).sqrt(), t, x) * diffusion.gaussian(image, generator)
        return torch.where(mask.bool(), noised, x)
    return step_fn


def seam(x, mask):
    """How visible the edge of a hole is: the mean difference between neighbours, one known and the other drawn.

    x [B, C, H, W] in [-1, 1], mask [B, 1, H, W] -> a number
    """
    mask = mask.expand_as(x)
    jumps = [x.diff(dim=dim).abs()[mask.diff(dim=dim) != 0] for dim in (2, 3)]
    return torch.cat(jumps).mean().item()


# --- Image files -------------------------------------------------------------------------------------

# A network takes 8-bit red, green and blue, upright, in sRGB. What people bring is palettes, transparency, 16 bits,
# floats, other colour spaces, and photographs that lie on their side. 08 reads its training images here, 09 the image
# and the mask that somebody draws with.
def open_image(file, mode="RGB", *, formats=None, near=0):
    """An image file (a path or an open binary file) as an upright 8-bit image of mode "RGB" or "L", in sRGB.

    What is transparent becomes white in RGB and black in L. Of an animation the first frame is taken.

    formats  Pillow's names of those that may be opened; None: all that it knows
    near     the size that is needed: a JPEG of more than three times as many pixels is decoded smaller, much faster

    For what cannot be read Pillow has no common error: OSError, SyntaxError, ValueError and others.
    """
    with Image.open(file, formats=formats) as image:
        image.draft(None, (3 * (near or image.width),) * 2)
        image = ImageOps.exif_transpose(image)          # cameras store how they were held next to the pixels
        with suppress(ImageCms.PyCMSError):             # it has no colour profile, or one of no use
            profile, out = io.BytesIO(image.info.get("icc_profile", b"")), "RGBA" if image.mode == "RGBA" else "RGB"
            image = ImageCms.profileToProfile(image, profile, ImageCms.createProfile("sRGB"), outputMode=out)
        return to_eight_bits(image, mode)


def to_eight_bits(image, mode):
    """A PIL image of any kind as "RGB" or "L": see `open_image`."""
    if image.mode[0] in "IF":   # 16 or 32 bits of grey, or floats; Pillow's own conversion would clip them at 255
        values = np.nan_to_num(np.asarray(image, np.float64))
        whites = (65535,) if image.mode.startswith("I;") else (1, 255, 65535, values.max())
        white = next(white for white in whites if values.max() <= white)
        opaque = Image.fromarray(np.uint8(255) * (values != image.info.get("transparency", -1)))
        image = Image.fromarray((values / white * 255).round().clip(0, 255).astype(np.uint8))
        image.putalpha(opaque)
    if image.has_transparency_data:
        background = Image.new("RGBA", image.size, "white" if mode == "RGB" else "black")
        image = Image.alpha_composite(background, image.convert("RGBA"))
    return image.convert(mode)


# --- The demonstration -------------------------------------------------------------------------------

# What the picture shows, what is asked for in its hole, and the hole: from row, to row, from column, to column of 16.
# No prompt names the background, so a model that draws the right one must have looked at the known part.
EDITS = (("a large red heart on a gray background", "a large blue star", (1, 15, 1, 15)),
         ("a large purple umbrella on a gray background", "a large purple umbrella", (0, 16, 8, 16)),
         ("a large green house on a brown background", "a large green house", (0, 8, 0, 16)))


def show_masks():
    """Three of the five kinds of random masks, and how much each leaves known."""
    print("\n── 1. Random masks: what inpainting is trained on")
    rng = random.Random(0)
    for kind in (box, stroke, border):
        known = [kind(64, 64, rng).mean().item() for _ in range(300)]
        print(f"   {kind.__name__:<8} leaves {min(known):3.0%} to {max(known):3.0%} known, mean {sum(known) / 300:.0%}")


def edit_pictures():
    """-> the three pictures [3, 3, 16, 16] and masks [3, 1, 16, 16] of EDITS."""
    rng, mask = random.Random(3), torch.ones(len(EDITS), 1, 16, 16)
    scenes = [tokenizer.Scene.parse(shown).fill(rng) for shown, _, _ in EDITS]
    for i, (_, _, (top, bottom, left, right)) in enumerate(EDITS):
        mask[i, :, top:bottom, left:right] = 0
    return diffusion.downsample(diffusion.draw_all(scenes, rng), 16), mask


def show_ways(image, mask):
    """The two ways that need no training, with the small base model, and the third with its fine-tuned copy.

    -> {way: images [3, 3, 16, 16]}
    """
    print(f"\n── 2. Three ways, in 50 steps; seam: the jump across a hole's edge, in truth {seam(image, mask):.3f}")
    (base, config, encode), drawn = guidance.load_pretrained("base"), {}
    tuned = guidance.load_pretrained("inpaint", wrap=with_known)[0]
    process, captions = diffusion.Diffusion.from_config(config, "50"), [asked for _, asked, _ in EDITS]
    step_fn = overwrite_known(process, image, mask, torch.Generator().manual_seed(1))
    ways = {"1 overwrite x_t": (base, None, {"step_fn": step_fn}),
            "2 replace x̂_0": (base, replace_known(image, mask), {}),      # the third also replaces, as GLIDE does
            "3 fine-tune": (tuned, replace_known(image, mask), {"inpaint_image": image, "inpaint_mask": mask})}
    for way, (model, x0_fn, options) in ways.items():
        g = torch.Generator().manual_seed(0)
        x_T, guided = torch.randn(image.shape, generator=g), guidance.classifier_free(model, 5.0)
        x = drawn[way] = process.ddpm_sample(guided, x_T, generator=g, x0_fn=x0_fn, **options, **encode(captions))
        print(f"   {way:<15} the known part is off by {((x - image).abs() * mask).max():g}, seam {seam(x, mask):.3f}")
    return drawn


def show_channels(image, mask):
    """What the third way shows to the network, and how a trained network gets the channels for it."""
    print("\n── 3. The third way: four more input channels")
    seen, t = [], torch.full((len(image),), 500)
    with_known(lambda x, t: seen.append(x) or x)(torch.zeros_like(image), t, inpaint_image=image, inpaint_mask=mask)
    for name, part in zip(("x_t", "image × mask", "mask"), seen[0].split([3, 3, 1], dim=1)):
        print(f"   {name:<13} {list(part.shape)}   mean {part.mean():+.3f}")
    weight = add_mask_channels(unet.UNet.load(unet.WEIGHTS / "base.pt")).input_conv.weight
    print(f"   added to the base model, with weights {weight[:, 3:].abs().max():g}: at first it answers as before")


def save_picture(image, mask, drawn, path):
    """One row for each edit: the picture, what is left of it, and its fillings."""
    from matplotlib.figure import Figure            # here, so that importing this file stays quick
    columns = {"the picture": image, "what is known": torch.where(mask.bool(), image, 0.8), **drawn}
    figure = Figure(figsize=(3 * len(columns), 9.6), layout="constrained")
    axes = figure.subplots(len(EDITS), len(columns))
    for j, (title, images) in enumerate(columns.items()):
        axes[0, j].set_title(title, size=17, pad=12)
        for i, (shown, asked, _) in enumerate(EDITS):
            axes[i, j].imshow(diffusion.to_bytes(images[i]).permute(1, 2, 0))
            label = {0: shown.replace(" on ", "\non "), 2: f"asked for: {asked}"}.get(j, "")
            axes[i, j].set(xticks=[], yticks=[], xlabel=label)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def main():
    """The three sections and the picture."""
    image, mask = edit_pictures()
    show_masks()
    save_picture(image, mask, show_ways(image, mask), OUTPUTS / "06_inpaint.png")
    show_channels(image, mask)
    print("\nThe picture is outputs/06_inpaint.png. Its lesson: lessons/06_inpaint.ipynb.\n"
          "Next: python 07_upsample.py makes small pictures large.")


if __name__ == "__main__":
    main()
