r"""
07 · 64 becomes 256.

A large image is drawn in two stages. The first decides what it shows, on few pixels. The second, with a network
of its own, starts from noise again and adds what few pixels cannot hold, looking at the small image all the time:

    low_res [B, 3, H/4, W/4] ─► bilinear, ×4 ─┐
                                              ├─► [B, 6, H, W] ─► U-Net ─► ε̂, variance
    x_t     [B, 3, H, W] ─────────────────────┘

It adds to 04: three input channels. It leaves out nothing of GLIDE's upsampler: the prompt still conditions it,
through a text encoder of its own; the low-resolution image is first rounded to 8 bits, as in a saved file; and
27 DDIM steps are enough, most of them at the low-noise end, where detail is made.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); ADM, Dhariwal & Nichol 2021,
arXiv 2105.05233 (section 4.4: upsampling); SR3, Saharia et al. 2021, arXiv 2104.07636; what the network should
predict: Salimans & Ho 2022, arXiv 2202.00512.

    python 07_upsample.py       about ten seconds: why a small upsampler should predict v, how good its guesses
                                are, and six pictures enlarged; outputs/07_upsample.png compares with bicubic
"""
import random
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F

tokenizer = import_module("01_tokenizer")
transformer = import_module("02_transformer")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
inpaint = import_module("06_inpaint")

OUTPUTS = Path(__file__).parent / "outputs"
FACTOR = 4   # 64 -> 256, and 16 -> 64 in the tiny preset

# Why two models? At 256×256 a U-Net pays for sixteen times as many pixels at every step, although most of what it has
# to decide, what is where, can be seen at 64×64. So the first stage takes 100 to 250 guided steps on few pixels, and
# the second only 27, without guidance. It is a denoiser with one more wrapper, and all that 04 says of denoisers holds.


def with_low_res(model):
    """A denoiser of large images that is shown the small ones.

    model  a denoiser that takes x and the enlarged small image on its input channels, in this order
    -> model(x, t, low_res=, …): [B, 3, H/4, W/4] in [-1, 1]; ValueError if the sizes do not fit

    `prepare` enlarges, by torch's bilinear filter, once for all steps. Each small pixel then lies over the 4×4 pixels
    that were averaged to it, so the first convolution finds both at the same place. The small image is *not* noised,
    at any step: it is a condition, like the caption.
    """
    def inner_prepare(low_res, **cond):
        enlarged = F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear")
        return {"enlarged": enlarged, **diffusion.prepare(model, **cond)}

    def denoiser(x, t, *, enlarged=None, low_res=None, **cond):
        if enlarged is None:
            enlarged = F.interpolate(low_res, scale_factor=FACTOR, mode="bilinear")
        if enlarged.shape[2:] != x.shape[2:]:
            raise ValueError(f"an image of {tuple(x.shape[2:])} pixels needs a low_res {FACTOR} times smaller, "
                             f"not one that enlarges to {tuple(enlarged.shape[2:])}")
        return model(torch.cat([x, enlarged], dim=1), t, **cond)   # [B, 6, H, W]; x first, as the weights expect

    denoiser.prepare = inner_prepare
    return denoiser


def round_to_bytes(x):
    """An image as an 8-bit file would hold it: any shape -> the 256 values from -1 to 1, float32.

    GLIDE's low-resolution input is rounded like this. A base model's images are not made of bytes and may go a little
    beyond ±1, while those seen in training come from files. Rounded and clipped, they no longer differ in that.
    """
    return diffusion.to_bytes(x).float() / 127.5 - 1


def upsample(model, low_res, *, process, sampler="ddim", generator=None, noise=0.997, **cond):
    """Enlarge images four times: low_res [B, 3, H, W] in [-1, 1] -> [B, 3, 4H, 4W].

    model    a denoiser that takes low_res
    process  its Diffusion, usually respaced to "fast27"
    sampler  "ddim" (with eta 0), "dpm", or "ddpm", which the released notebooks use when inpainting
    noise    x_T is this times unit noise; the released notebooks start from slightly less than 1
    cond     the denoiser's other conditioning (tokens, mask, …), and a sampler's x0_fn, grad_fn, step_fn, callback

    DDIM adds no fresh noise, so few steps are enough (04). Of its 27, "fast27" spends ten on the two hundred least
    noisy timesteps: with the small image given, detail is all that is left to find.
    """
    B, C, H, W = low_res.shape
    x = noise * diffusion.gaussian(low_res.new_empty(B, C, FACTOR * H, FACTOR * W), generator)
    return getattr(process, f"{sampler}_sample")(model, x, low_res=round_to_bytes(low_res), generator=generator, **cond)


def denoiser_of(model, config, process=diffusion.DiffusionConfig()):
    """A U-Net as a denoiser: it takes the inputs that its channels are for, and answers ε whatever it predicts.

    config   its UNetConfig, with 3 input channels for a base model, 6 for an upsampler, 4 more for inpainting
    process  its DiffusionConfig, which says whether it predicts ε or v
    Raises ValueError for other numbers of channels.

    The pieces of the course come together here: the network of 03, the inputs of 06 and 07, ε of 04. The channels must
    reach the network as x, known part, low_res. Each wrapper puts its own right behind x, so the outermost, which comes
    last in the lists, is nearest to x. The other order would run too, but draw nonsense with trained weights.
    """
    # number of channels after x's -> wrappers of the network, innermost first
    inputs = {0: [], 3: [with_low_res], 4: [inpaint.with_known], 7: [with_low_res, inpaint.with_known]}
    extra = config.in_channels - config.out_channels // 2
    if extra not in inputs:
        raise ValueError(f"no GLIDE model has {config.in_channels} input channels; they have 3, 6, 7 or 10")
    for wrap in inputs[extra]:
        model = wrap(model)
    return diffusion.to_eps(model, process)


def conditioning(images, captions, words, config, size, rngs, crop=0):
    """Captioned images as a model trains on them: x0 [B, 3, S, S] in [-1, 1], and its conditioning.

    images   uint8 [B, 3, side, side] with side a multiple of size
    captions, words, config   strings, their tokenizer, and the UNetConfig, whose input channels say what it is shown
    rngs     a random.Random for each image: what is erased, and which square is taken
    crop     train an upsampler on squares of this many pixels: they cost less, and it looks only at what is near

    The conditioning is a dictionary of tensors under the names that denoisers take (04): tokens and mask [B, K], and
    by the kind of model low_res [B, 3, S/4, S/4], inpaint_image [B, 3, S, S], inpaint_mask [B, 1, S, S].
    """
    upsamples, inpaints = config.in_channels in (6, 10), config.in_channels in (7, 10)
    if crop:
        # A corner between two small pixels would shift low_res against x0 by a part of a pixel.
        size, free = crop, (images.shape[-1] - crop) // FACTOR
        corners = [(FACTOR * rng.randint(0, free), FACTOR * rng.randint(0, free)) for rng in rngs]
        images = torch.stack([image[:, r:r + crop, c:c + crop] for image, (r, c) in zip(images, corners)])
    x0, cond = diffusion.downsample(images, size), transformer.encode(captions, words, config.text.context)
    if inpaints:
        # A mask has the base model's pixels, for both models draw into the same hole; the upsampler's are squares.
        side = size // FACTOR if upsamples else size
        masks = torch.cat([inpaint.random_mask(1, side, side, seed=rng.random()) for rng in rngs])
        cond |= {"inpaint_image": x0, "inpaint_mask": F.interpolate(masks, size=size)}
    if upsamples:
        # Rounded in training because it is rounded in use: the network must not learn to read what bytes lose.
        cond["low_res"] = round_to_bytes(diffusion.downsample(images, size // FACTOR))
    return x0, cond


def psnr(x, true):
    """Peak signal-to-noise ratio of images [B, 3, H, W] in [-1, 1], in dB: [B]. It prefers blur to a misplaced edge."""
    # -10·log₁₀ of the mean squared error on [0, 1]; differences on [-1, 1] are twice as large
    return -10 * ((x - true) / 2).square().flatten(1).mean(1).log10()


def color_error(x, low_res):
    """The mean difference on [0, 1] between x [B, 3, 4H, 4W], averaged down again, and low_res [B, 3, H, W]: [B]."""
    return (F.avg_pool2d(x, FACTOR) - low_res).abs().flatten(1).mean(1) / 2


# --- The demonstration -------------------------------------------------------------------------------

CAPTIONS = ("a large red heart on a white background", "a small blue airplane on a gray background",
            "a large yellow umbrella on a black background", "a small purple anchor on a brown background",
            "a large cyan flower on a gray background", "a large orange house on a white background")


def show_amplification(process):
    """Why the small upsampler predicts v: what an error at timestep t does to the predicted x_0.

    By hand, for t = 999: √(1 - 0.00635²) / 0.00635 = 157. A network that is off by 0.05 in ε is off by 8 in an image
    that goes from -1 to 1. Clipped, that is a saturated colour which later steps repair only in part.
    """
    print("\n── 1. An error in ε is multiplied by √(1-ᾱ)/√ᾱ in x̂_0; an error in v by √(1-ᾱ), never above 1")
    for t in (100, 300, 500, 700, 900, 999):
        print(f"   t = {t:3}   √ᾱ {process.signal[t]:.4f}   ε: × {process.noise[t] / process.signal[t]:7.2f}"
              f"   v: × {process.noise[t]:.2f}")


def real_pictures():
    """What CAPTIONS should look like: -> [6, 3, 64, 64] and the same reduced to [6, 3, 16, 16], in [-1, 1]."""
    rng = random.Random(7)
    scenes = [tokenizer.Scene.parse(caption).fill(rng) for caption in CAPTIONS]
    pictures = diffusion.draw_all(scenes, rng)
    return diffusion.downsample(pictures, 64), round_to_bytes(diffusion.downsample(pictures, 16))


def show_inputs(low_res, cond):
    """What the network is shown: a look at its input channels."""
    seen = []
    with_low_res(lambda x, t, **cond: seen.append(x))(torch.zeros(6, 3, 64, 64), None, low_res=low_res, **cond)
    print(f"\n── 2. The network is shown x_t and the enlarged {list(low_res.shape)}: {list(seen[0].shape)}")


def compare(true, low_res, large):
    """The enlarged images next to those of bicubic interpolation. -> bicubic's, [6, 3, 64, 64]

    Are the colours unchanged (reduced again, the result should be the small image), and how close is each pixel (PSNR,
    which prefers blur)? Whether it looks right is for your eyes: see the picture.
    """
    print(f"\n── 3. {len(true)} pictures enlarged from 16×16 to 64×64 in 27 steps")
    bicubic = F.interpolate(low_res, scale_factor=FACTOR, mode="bicubic").clamp(-1, 1)
    for name, x in ("bicubic", bicubic), ("upsampler", large), ("truth", true):
        colour, decibels = color_error(x, low_res).mean(), psnr(x, true).mean()
        print(f"   {name:<10} colours off by {colour:.4f}, PSNR {decibels:4.1f} dB")
    return bicubic


def save_picture(rows, path):
    """One row each of low_res, bicubic, upsampler and truth, [6, 3, H, W]; one column for each caption."""
    from matplotlib.figure import Figure            # here, so that importing this file stays quick
    figure = Figure(figsize=(14, 9.8), layout="constrained")
    for axes, (name, images) in zip(figure.subplots(len(rows), 1), rows.items()):
        axes.imshow(diffusion.image_grid(images, columns=6, zoom=256 // images.shape[-1], gap=8, color="silver"))
        axes.set_yticks([128], [name], size=17, rotation=90, va="center")
        axes.set_xticks(range(128, 6 * 264, 264), [text.replace(" on ", "\non ") for text in CAPTIONS], size=12)
        axes.tick_params(length=0, labelbottom=False, labeltop=axes.get_subplotspec().is_first_row())
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def main():
    """The three sections and the picture."""
    model, config, encode = guidance.load_pretrained("upsampler", wrap=with_low_res)
    (true, low_res), cond = real_pictures(), encode(CAPTIONS)
    show_amplification(diffusion.Diffusion.from_config(config))
    show_inputs(low_res, cond)
    large = upsample(model, low_res, process=diffusion.Diffusion.from_config(config, "fast27"),
                     generator=torch.Generator().manual_seed(0), **cond)
    bicubic = compare(true, low_res, large)
    save_picture({"16×16": low_res, "bicubic": bicubic, "upsampler": large, "truth, 64×64": true},
                 OUTPUTS / "07_upsample.png")
    print("\nThe picture is outputs/07_upsample.png. Its lesson: lessons/07_upsample.ipynb.\n"
          "Next: python 08_train.py trains such models.")


if __name__ == "__main__":
    main()
