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

It adds to 04: masks, and four input channels grown onto a trained network so that it answers at first exactly as
before. It leaves out: their training (08).

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4.3); overwriting: Song et al. 2020, arXiv 2011.13456
(section 5, appendix I.2).

    python 06_inpaint.py        about ten seconds: masks, the ways with the small weights, how much of the
                                known part each keeps, and the channels grown; a picture in outputs/
"""
import random
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import torch

tokenizer = import_module("01_tokenizer")
unet = import_module("03_unet")
diffusion = import_module("04_diffusion")
guidance = import_module("05_guidance")

OUTPUTS = Path(__file__).parent / "outputs"


# --- Masks: 1 = known, 0 = to be drawn ---------------------------------------------------------------

# A network that saw only boxes in training fills boxes; what people wipe out has any shape. So five kinds are mixed, of
# all sizes: boxes, strokes of a brush, and what lies outside a box, which asks for the picture to be continued; in
# three cases of twenty everything or nothing is known. "Nothing known" keeps the model able to draw from scratch,
# "everything known" shows it that what is known is to be repeated as it is.
def box(height, width, rng):
    """A rectangle to be drawn, of a quarter to all of either side."""
    mask = torch.ones(height, width)
    h, w = rng.randint(max(1, height // 4), height), rng.randint(max(1, width // 4), width)
    top, left = rng.randint(0, height - h), rng.randint(0, width - w)
    mask[top:top + h, left:left + w] = 0
    return mask


def border(height, width, rng):
    """Everything outside a rectangle: the picture is to be continued."""
    return 1 - box(height, width, rng)


def stroke(height, width, rng):
    """What a brush wipes out along a few straight lines: each pixel nearer than its radius to one of them."""
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    pixels = torch.stack([rows, columns], dim=-1).float()                     # [H, W, 2]
    corners = torch.tensor([[rng.uniform(0, height), rng.uniform(0, width)] for _ in range(rng.randint(2, 5))])
    radius, mask = rng.uniform(0.05, 0.2) * min(height, width), torch.ones(height, width)
    for start, end in zip(corners, corners[1:]):
        along = end - start
        share = ((pixels - start) @ along / along.square().sum().clamp(min=1e-6)).clamp(0, 1)
        mask[(pixels - start - share[..., None] * along).norm(dim=-1) <= radius] = 0
    return mask


def random_mask(count, height, width, *, seed=0):
    """The masks that inpainting is trained and tested on: boxes, strokes, borders, everything and nothing.

    -> [count, 1, height, width] of 0 and 1, float32. The same seed gives the same masks.
    """
    rng = random.Random(seed)
    kinds = rng.choices([box, stroke, border, lambda h, w, _: torch.ones(h, w), lambda h, w, _: torch.zeros(h, w)],
                        weights=[8, 5, 4, 1, 2], k=count)
    return torch.stack([kind(height, width, rng) for kind in kinds])[:, None]


# --- Three ways of drawing around them ---------------------------------------------------------------

# All three fit into what samplers and denoisers offer (04), and can be combined: with_known is a denoiser around a
# denoiser; replace_known is an x0_fn, which sees each predicted picture; overwrite_known is a step_fn, which sees each
# x_{t-1}. GLIDE's own notebook uses the first together with the second: the fine-tuned network looks at what is known,
# and whatever it makes of that, the known pixels come out exact.
def with_known(model):
    """A denoiser that is shown the known part of the picture.

    inpaint_image [B, 3, H, W] in [-1, 1], inpaint_mask [B, 1, H, W], 1 = known. The inner model sees
    x, picture × mask and mask on its input channels, in this order. With an upsampler: with_known(with_low_res(unet)).

    The picture is multiplied by the mask before anything sees it: in training the whole picture is at hand, and a
    network that could peek under its hole would learn to copy. The mask is shown too, for a wiped-out pixel is 0, and
    so is a grey one. Neither is noised: the known part is seen clearly from the first step on.
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
    """A U-Net that takes a known part too, out of one that does not: four more input channels, after x's three,
    with weights zero. All else is as it was, so before any training it gives the old one's answers.

    network  a base model's U-Net (3 input channels -> 7) or an upsampler's (6 -> 10); it stays as it is
    """
    # Random weights there would spoil at once what took long to learn. Zero ones are heard as soon as they help: their
    # gradient is what the network wants to hear times what they are shown, and neither is zero.
    config, weights = network.config, {name: value.clone() for name, value in network.state_dict().items()}
    noisy = config.out_channels // 2                                    # x's channels; low_res comes last
    enter = weights["input_conv.weight"]                                     # [width, in, 3, 3]
    silent = enter.new_zeros(len(enter), 4, *enter.shape[2:])
    weights["input_conv.weight"] = torch.cat([enter[:, :noisy], silent, enter[:, noisy:]], dim=1)
    with torch.device("meta"):                                          # no weights are made to be thrown away
        grown = unet.UNet(replace(config, in_channels=config.in_channels + 4))
    grown.load_state_dict(weights, assign=True)
    return grown.train(network.training)


def replace_known(image, mask):
    """x0_fn for a sampler: the known part of every predicted picture becomes the true one.

    image [B, C, H, W] in [-1, 1], mask [B, 1, H, W] with 1 = known. The last predicted picture is the result (the last
    step adds no noise), so the known pixels come out exact. On the way the posterior's mean is taken with the true
    pixels, and the known part walks towards them.
    """
    return lambda x0: torch.where(mask.bool(), image, x0)


def overwrite_known(process, image, mask, generator=None):
    """step_fn for a sampler: the known part of every new x_{t-1} becomes a draw from q(x_{t-1} | image).

    process is the (respaced) Diffusion that is sampled; at the last step the picture itself is put in.

    Fresh noise at every step: the known part of x_{t-1} is then noised like any picture of the data at t-1, as
    the model expects. But at the noisy end it says little, and by the time it can be seen the hole has been settled.
    """
    def step_fn(x, t):
        before = process.alpha_bar_prev   # ᾱ of the step just reached: 1 at the end
        # x_{t-1} = √ᾱ_{t-1}·image + √(1-ᾱ_{t-1})·ε   [DDPM eq. 4]
        noised = process.extract(before.sqrt(), t, x) * image \
            + process.extract((1 - before).sqrt(), t, x) * diffusion.gaussian(image, generator)
        return torch.where(mask.bool(), noised, x)
    return step_fn


# --- The demonstration -------------------------------------------------------------------------------

# What the picture shows, what is asked for in its hole, and the hole: rows and columns of 16. No wish names the
# background: whoever draws it has looked around.
EDITS = (("a large red heart on a gray background", "a large blue star", (1, 15, 1, 15)),
         ("a large purple umbrella on a gray background", "a large purple umbrella", (0, 16, 8, 16)),
         ("a small yellow sun on a black background", "a small cyan cross", (2, 14, 2, 14)),
         ("a large green house on a brown background", "a large green house", (0, 8, 0, 16)))


def show_masks():
    """The five kinds of random masks, and how much each leaves known."""
    print("\n── 1. Random masks: what inpainting is trained on")
    rng = random.Random(0)
    for kind in (box, stroke, border):
        known = [kind(64, 64, rng).mean().item() for _ in range(300)]
        print(f"   {kind.__name__:<8} leaves {min(known):4.0%} to {max(known):4.0%} known, {sum(known) / 300:.0%} on average")
    print("   … and now and then everything or nothing is known")


def edit_pictures():
    """-> the four pictures [4, 3, 16, 16] and masks [4, 1, 16, 16] of EDITS."""
    rng, mask = random.Random(3), torch.ones(len(EDITS), 1, 16, 16)
    scenes = [tokenizer.Scene.parse(shown).fill(rng) for shown, _, _ in EDITS]
    for i, (_, _, (top, bottom, left, right)) in enumerate(EDITS):
        mask[i, :, top:bottom, left:right] = 0
    return diffusion.downsample(diffusion.draw_all(scenes, rng), 16), mask


def seam(x, mask):
    """How visible the edge is: the mean jump between neighbours of which one is known and the other is not."""
    jumps = []
    for dim in (2, 3):
        crossing = mask.diff(dim=dim).abs().expand(-1, x.shape[1], -1, -1).bool()
        jumps.append(x.diff(dim=dim).abs()[crossing])
    return torch.cat(jumps).mean().item()


def watching(put, image, mask, off):
    """x0_fn: notes in the list `off` how far a predicted picture is off where it is known, then passes it to `put`."""
    def x0_fn(x0):
        off.append((((x0.clamp(-1, 1) - image).abs() * mask).sum() / (3 * mask.sum())).item())
        return put(x0)
    return x0_fn


def show_ways(image, mask):
    """The two ways that need no training, with the small base model, and the third where its weights are:
    -> {name: pictures}."""
    print("\n── 2. Holes filled by the small models, 50 ancestral steps, guidance 5")
    base, config, encode = guidance.load_pretrained("base")
    process, captions = diffusion.Diffusion.from_config(config, "50"), [asked for _, asked, _ in EDITS]
    replace_it, drawn = replace_known(image, mask), {}
    overwrite = {"step_fn": overwrite_known(process, image, mask, torch.Generator().manual_seed(1))}
    ways = {"overwrite": (base, lambda x0: x0, overwrite), "replace": (base, replace_it, {})}
    if (unet.WEIGHTS / "inpaint.pt").exists():      # with replacing, as GLIDE's notebooks do
        tuned = guidance.load_pretrained("inpaint", wrap=with_known)[0]
        ways["fine-tune"] = tuned, replace_it, {"inpaint_image": image, "inpaint_mask": mask}
    for name, (model, put, given) in ways.items():
        g, off = torch.Generator().manual_seed(0), []
        noise, guided = torch.randn(image.shape, generator=g), guidance.classifier_free(model, 5.0)
        x = drawn[name] = process.ddpm_sample(guided, noise, generator=g, x0_fn=watching(put, image, mask, off),
                                              **given, **encode(captions))
        print(f"   {name:<10} what is known: guessed wrong by {sum(off) / len(off):.3f} on the way, in the end by"
              f" {((x - image).abs() * mask).max():g}; jump at the edge {seam(x, mask):.3f}")
    print(f"   the true pictures' mean jump at the same places is {seam(image, mask):.3f}")
    return drawn


def show_channels(image, mask):
    """What the third way, fine-tuning, shows to the network, and how a trained one gets the channels for it."""
    print("\n── 3. The third way: four more input channels")
    seen = []
    t = torch.full((len(image),), 500)
    with_known(lambda x, t: seen.append(x) or x)(torch.randn(image.shape), t, inpaint_image=image, inpaint_mask=mask)
    for name, part in zip(("x_t", "picture × mask", "mask"), seen[0].split([3, 3, 1], dim=1)):
        print(f"   {name:<15} {list(part.shape)}   mean {part.mean():+.3f}")
    print(f"   the mask is 1 on {mask.mean():.0%} of the pixels: known; under the 0s the picture is wiped out")
    old, cond = unet.UNet.load(unet.WEIGHTS / "base.pt"), guidance.load_pretrained("base")[2]([asked for _, asked, _ in EDITS])
    new = add_mask_channels(old)
    with torch.no_grad():
        answers = [network(seen[0][:, :network.config.in_channels], t, **cond) for network in (old, new)]
    print(f"   grown onto the base model: {list(old.input_conv.weight.shape)} -> {list(new.input_conv.weight.shape)}, the new "
          f"weights at most {new.input_conv.weight[:, 3:].abs().max():g};\n   before any training its answers differ from the "
          f"old ones by {(answers[0] - answers[1]).abs().max():g}")


def save_picture(image, mask, drawn, path):
    """One row an edit: the picture, what is left of it, and its fillings."""
    from matplotlib.figure import Figure
    columns = {"the picture": image, "what is known": torch.where(mask.bool(), image, torch.full_like(image, 0.8))}
    columns |= {{"overwrite": "overwrite x_t", "replace": "replace x̂_0"}.get(way, way): x for way, x in drawn.items()}
    figure = Figure(figsize=(3 * len(columns), 12.6), layout="constrained")
    axes = figure.subplots(len(EDITS), len(columns))
    for j, (title, pictures) in enumerate(columns.items()):
        axes[0, j].set_title(title, size=17, pad=12)
        for i, (shown, asked, _) in enumerate(EDITS):
            axes[i, j].imshow(pictures[i].clamp(-1, 1).add(1).div(2).permute(1, 2, 0).numpy(), interpolation="nearest")
            axes[i, j].set(xticks=[], yticks=[])
            axes[i, j].set_xlabel({0: shown, 2: f"asked for: {asked}"}.get(j, "").replace(" on ", "\non "), size=11)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=90)


def main():
    """The three sections and the picture."""
    image, mask = edit_pictures()
    show_masks()
    drawn = show_ways(image, mask)
    show_channels(image, mask)
    save_picture(image, mask, drawn, OUTPUTS / "06_inpaint.png")
    print("\nThe picture is outputs/06_inpaint.png.\nNext: python 07_upsample.py makes small pictures large.")


if __name__ == "__main__":
    main()
