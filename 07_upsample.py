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
import random
import time
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F

tokenizer = import_module("01_tokenizer")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")
inpaint = import_module("06_inpaint")

OUTPUTS = Path(__file__).parent / "outputs"
FACTOR = 4   # 64 -> 256, and 16 -> 64 in the tiny preset

# Why two models? A U-Net at 256×256 pays for sixteen times as many pixels at every step, and most of what it would
# have to decide, what is where, can be seen at 64. So the first walk is the long one, 100 to 250
# guided steps on few pixels, and this one has 27 steps and no guidance. It is a denoiser with one more wrapping, and
# everything that 04 says of denoisers holds for it.


def with_low_res(model):
    """A denoiser of large pictures that is shown the small one: `low_res` [B, 3, H/4, W/4] in [-1, 1].

    model sees x and the enlarged picture side by side on its input channels; it is the enlarging, by torch's
    bilinear filter, that `prepare` does once. Enlarged, each small pixel lies over the 4×4 that it became, so
    that the first convolution finds both at one place. The low-resolution picture is *not* noised, at any step:
    it is a condition, like the caption.  -> model(x, t, low_res=, …); ValueError where the sizes do not fit
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
        return model(torch.cat([x, enlarged], dim=1), t, **cond)   # [B, 6, H, W]; x first, as the weights expect

    denoiser.prepare = inner_prepare
    return denoiser


def round_to_bytes(x):
    """The picture as an 8-bit file would hold it: [-1, 1] in 256 steps, as GLIDE's low-resolution input is.

    In training it is a reduced photograph, which has bytes; what a base model draws has not, and may lie a little
    beyond ±1. Rounded and clipped, the two are of one kind, and a network cannot trip over the difference.
    """
    return ((x + 1) * 127.5).round().clamp(0, 255) / 127.5 - 1


def upsample(model, low_res, *, process, sampler="ddim", generator=None, noise=0.997, **cond):
    """Enlarge pictures four times.

    model    a denoiser that takes low_res;  process  its Diffusion, respaced to 'fast27' by default elsewhere
    low_res  [B, 3, H, W] in [-1, 1] -> [B, 3, 4H, 4W]. No guidance, DDIM with eta 0, starting from slightly
             less than unit noise, as the released notebooks do; when inpainting they walk with sampler "ddpm".
    cond     what the denoiser takes beside low_res (tokens, mask, …), and a sampler's x0_fn, grad_fn or step_fn

    DDIM draws no fresh noise, and so the walk may be short (04). Of its 27 steps 'fast27' spends ten on the two
    hundred timesteps nearest to the picture: with the small picture given, detail is all there is to find.
    """
    B, C, H, W = low_res.shape
    x = noise * diffusion.gaussian(low_res.new_empty(B, C, FACTOR * H, FACTOR * W), generator)
    return getattr(process, f"{sampler}_sample")(model, x, low_res=round_to_bytes(low_res), generator=generator, **cond)


def denoiser_of(model, config, process=diffusion.DiffusionConfig()):
    """A U-Net as a denoiser: given the inputs that its channels ask for, and answering ε whatever it predicts.

    config  its UNetConfig: 3 input channels for a base model, 6 for an upsampler, and 4 more with known parts
    process its DiffusionConfig, which says whether it predicts ε or v. Raises ValueError for other channel counts.

    This is where the course's pieces meet: the network of 03, its inputs of 06 and 07, ε of 04. Channels reach
    the network as x, known part, low_res: each wrapping puts its own behind x, so the one that comes later here, and
    stands further out, is nearer to x. The other order runs as well, and draws nonsense with trained weights.
    """
    # channels beside x's -> what is wrapped around the network, innermost first
    inputs = {0: [], 3: [with_low_res], 4: [inpaint.with_known], 7: [with_low_res, inpaint.with_known]}
    extra = config.in_channels - config.out_channels // 2
    if extra not in inputs:
        raise ValueError(f"no GLIDE model has {config.in_channels} input channels; they have 3, 6, 7 or 10")
    for wrap in inputs[extra]:
        model = wrap(model)
    return diffusion.to_eps(model, process)


def psnr(x, true):
    """Peak signal-to-noise ratio of images [B, 3, H, W] in [-1, 1], in dB: [B]. It favours blur over a wrong edge."""
    # -10·log₁₀ of the mean squared error on [0, 1]; a difference on [-1, 1] is twice as large
    return -10 * ((x - true) / 2).square().flatten(1).mean(1).log10()


def color_error(x, low_res):
    """How far x [B, 3, 4H, 4W], averaged down again, is from low_res [B, 3, H, W]: mean difference on [0, 1], [B]."""
    return (F.avg_pool2d(x, FACTOR) - low_res).abs().flatten(1).mean(1) / 2


# --- The demonstration -------------------------------------------------------------------------------

CAPTIONS = ("a large red heart on a white background", "a small blue airplane on a gray background",
            "a large yellow umbrella on a black background", "a small purple anchor on a brown background",
            "a large cyan flower on a gray background", "a large orange house on a white background")


def show_amplification(process):
    """Why the small upsampler predicts v: what an error at step t does to the predicted picture."""
    print("\n── 1. An error in ε is multiplied by √(1-ᾱ)/√ᾱ on its way to x̂_0; one in v by √(1-ᾱ), never above 1")
    for t in (100, 300, 500, 700, 900, 999):
        print(f"   t = {t:3}   √ᾱ {process.signal[t]:.4f}   ε: × {process.noise[t] / process.signal[t]:7.2f}"
              f"   v: × {process.noise[t]:.2f}")
    print("   by hand, t = 999: √(1 - 0.0064²) / 0.0064 = 157. A network that is off by 0.05 in ε there is off by 8\n"
          "   in a picture that reaches from -1 to 1; clipped, it is a saturated colour that no later step repairs")


def real_pictures():
    """-> what CAPTIONS should look like, [n, 3, 64, 64] and [n, 3, 16, 16] in [-1, 1]."""
    rng = random.Random(7)
    scenes = [tokenizer.Scene.parse(caption).fill(rng) for caption in CAPTIONS]
    pictures = diffusion.draw_all(scenes, rng)
    return diffusion.downsample(pictures, 64), round_to_bytes(diffusion.downsample(pictures, 16))


@torch.no_grad()
def show_errors(model, process, true, low_res, cond):
    """How far the trained upsampler's predicted picture is off, from little noise to nothing but noise."""
    print("\n── 2. The small upsampler's x̂_0: mean error on [-1, 1], from little noise to nothing but noise")
    cond, g = model.prepare(low_res=low_res, **cond), torch.Generator().manual_seed(0)
    for step in (100, 300, 500, 700, 900, 999):
        t = torch.full((len(true),), step)
        x_t = process.q_sample(true, t, torch.randn(true.shape, generator=g))
        x0 = process.p_mean_variance(model(x_t, t, **cond), x_t, t).x0
        print(f"   t = {step:3}   {(x0 - true).abs().mean():.3f}")


def compare(true, low_res, large, seconds):
    """The enlarged pictures beside bicubic interpolation. -> bicubic's, [n, 3, 64, 64]

    Three numbers, since none tells all: does the colour stay what it was (reduced again, the result should be the
    small picture), how near is each pixel (PSNR, which favours blur), and are edges as steep as true ones are?
    """
    print(f"\n── 3. {len(true)} pictures of 16×16 enlarged to 64×64: 27 steps, {seconds:.1f} s")
    bicubic = F.interpolate(low_res, scale_factor=FACTOR, mode="bicubic").clamp(-1, 1)
    for name, x in ("bicubic", bicubic), ("upsampler", large):
        colour, decibels = color_error(x, low_res).mean(), psnr(x, true).mean()
        edges = x.diff(dim=3).abs().flatten(1).quantile(0.99, dim=1).mean()
        print(f"   {name:<10} colour off by {colour:.4f} on [0, 1], PSNR {decibels:.1f} dB, steepest edges {edges:.2f}")
    print(f"   {'truth':<10} steepest edges {true.diff(dim=3).abs().flatten(1).quantile(0.99, dim=1).mean():.2f}")
    return bicubic


def save_picture(rows, path):
    """One row each: small, bicubic, upsampler, truth; one column a caption."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(14, 9.8), layout="constrained")
    axes = figure.subplots(len(rows), len(CAPTIONS))
    for i, (name, pictures) in enumerate(rows.items()):
        axes[i, 0].set_ylabel(name, size=16)
        for j, picture in enumerate(pictures):
            axes[i, j].imshow(picture.clamp(-1, 1).add(1).div(2).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes[i, j].set(xticks=[], yticks=[])
    for ax, caption in zip(axes[0], CAPTIONS):
        ax.set_title(caption.replace(" on ", "\non "), size=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def main():
    """The three sections and the picture."""
    model, config, encode = guidance.load_pretrained("upsampler", wrap=with_low_res)
    (true, low_res), cond = real_pictures(), encode(CAPTIONS)
    show_amplification(diffusion.Diffusion.from_config(config))
    show_errors(model, diffusion.Diffusion.from_config(config), true, low_res, cond)
    start = time.time()
    large = upsample(model, low_res, process=diffusion.Diffusion.from_config(config, "fast27"),
                     generator=torch.Generator().manual_seed(0), **cond)
    bicubic = compare(true, low_res, large, time.time() - start)
    save_picture({"16×16": low_res, "bicubic": bicubic, "upsampler": large, "truth, 64×64": true},
                 OUTPUTS / "07_upsample.png")
    print("\nThe picture is outputs/07_upsample.png.\nNext: python 08_train.py trains such models.")


if __name__ == "__main__":
    main()
