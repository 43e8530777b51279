r"""
03 · Noise, a timestep and meaning become a guess at the noise.

The U-Net is given a noisy image, how noisy it is, and a caption. It answers with an image of the same size:
its guess at the noise (and at how certain the next step is, 04). It looks at the image at several sizes, going
down to see the whole and up again to place the detail, and keeps what it saw on the way down for the way up:

    x ─► conv ─► level 0 ───────────────── skips ─────────────────► level 0 ─► norm, SiLU, conv ─► answer
                   └► level 1 ──────────── skips ────────────► level 1 ┘
                         └► level 2 ────── skips ──────► level 2 ┘
                               └─────────► middle ─────────┘

A level is a few residual blocks, with attention at the coarse levels. Two things condition every block:

  · one vector, the sum of the timestep's and the caption's, scales and shifts its second norm (AdaGN);
  · in an attention layer each place of the image attends to all others *and to the K vectors of the caption*,
    whose keys and values stand in front of the image's own.

It adds to 02: images and time. It leaves out what the answer is used for (04). This is ADM's complete U-Net
with GLIDE's text conditioning: the tiny one differs from the released one only in its numbers.

Papers: ADM, Dhariwal & Nichol 2021, arXiv 2105.05233 (section 3: AdaGN, BigGAN-style resampling, 64
channels a head); GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); U-Net, Ronneberger et al. 2015,
arXiv 1505.04597; sinusoids: Vaswani et al. 2017, arXiv 1706.03762 (section 3.5).

    python 03_unet.py           about five seconds: the levels of three sizes, the timestep's waves, why a
                                fresh network answers zero, and the way down and up;
                                outputs/03_unet.png: the waves, and the released network as bars
"""
import math
import os
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

transformer = import_module("02_transformer")
TextConfig, TEXT = transformer.TextConfig, transformer.TEXT

OUTPUTS = Path(__file__).parent / "outputs"
WEIGHTS = Path(__file__).parent / "lessons" / "weights"   # the small trained models that come with the course


@dataclass(frozen=True)
class UNetConfig:
    """The sizes of a U-Net. Level 0 is the full image; each further level is half as large.

    Attention compares every place with every other: 4,096² pairs per head at 64×64, a sixteenth of that at 32×32.
    So there is none at level 0, where convolutions do well enough on their own.
    """

    channels: int = 192                              # at level 0; level i has channels × multipliers[i]
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3                                  # residual blocks per level going down; one more going up
    attention_levels: tuple[int, ...] = (1, 2, 3)    # of 64-pixel images: at 32, 16 and 8
    in_channels: int = 3                             # more if other images are given along with x (06, 07)
    out_channels: int = 6                            # three of noise, three of variance
    head_channels: int = 64
    dropout: float = 0.1
    groups: int = 32                                 # of every group norm; must divide all numbers of channels
    text: TextConfig = field(default_factory=TextConfig)


# The named sizes. Upsamplers see the enlarged low-resolution image on three more channels (07).
UNET = {
    "tiny": UNetConfig(64, (1, 2), 1, (1,), dropout=0.0, text=TEXT["tiny"]),
    "tiny-upsampler": UNetConfig(32, (1, 2, 2), 1, (2,), 6, dropout=0.0, groups=8, text=TEXT["tiny-upsampler"]),
    "small": UNetConfig(32, (1, 2, 4), 1, (1, 2), dropout=0.0, groups=8, text=TEXT["small"]),
    "small-upsampler": UNetConfig(32, (1, 2, 2, 2), 1, (3,), 6, dropout=0.0, groups=8, text=TEXT["small-upsampler"]),
    "filtered": UNetConfig(text=TEXT["filtered"]),
    "filtered-upsampler": UNetConfig(192, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 6, text=TEXT["filtered"]),
    "paper": UNetConfig(512, text=TEXT["paper"]),
    "paper-upsampler": UNetConfig(384, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 6, text=TEXT["paper-upsampler"]),
}


# --- Pieces ------------------------------------------------------------------------------------------

# The whole network is made of three pieces. The timestep becomes a vector of waves. A residual block looks at 3×3
# places at a time and is conditioned on that vector. Attention looks at all places at once, and at the caption. Except
# for the blocks that resample, they keep the image's size, so they can be stacked to any depth.
def timestep_embedding(t, dim):
    """A timestep as a row of waves, from fast to slow: [cos, sin] of t·10000^(-i/half) for i < half.

    t [B], 0 … 999 (any real number works) -> [B, dim] float32. As a single number 500 would look almost like
    501; here neighbours have their slow waves in common and differ in their fast ones.
    """
    # The slowest wave turns by about t/10000, a tenth of a radian in 1,000 steps. The fastest turns by t.
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies                     # [B, half]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(channels, groups):
    """Group norm: each group of channels is normalised by its own mean and spread over all places of one image.

    Unlike batch norm it makes an image's statistics independent of its neighbours. They must be: in sampling, a batch
    may be a single image, or hold the same one twice (guidance, 05). channels must be divisible by groups.
    """
    return nn.GroupNorm(groups, channels, eps=1e-5)


def zero(layer):
    """Initialise a layer to zero, so that its block answers x + 0: a deep network begins as a shallow one.

    It learns all the same: the gradient of its weights is its input times the gradient of its output, and neither is
    zero. Only the layers before it have to wait one step, until it lets gradients through. A test of the wiring must
    give it random weights first, or every mistake would be multiplied by zero.
    """
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Two convolutions whose result is added to the input, conditioned on time and caption in between.

    emb       the width of the conditioning vector, four times the network's channels
    resample  "down" or "up" halves or doubles the image inside the block, as in BigGAN; None keeps its size
    If in_channels and out_channels differ, a 1×1 convolution takes the place of the identity.
    """

    def __init__(self, in_channels, out_channels, emb, *, groups=32, dropout=0.0, resample=None):
        super().__init__()
        self.resample = resample
        self.norm1 = norm(in_channels, groups)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.scale_shift = nn.Linear(emb, 2 * out_channels)
        self.norm2 = norm(out_channels, groups)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(out_channels, out_channels, 3, padding=1))
        self.skip = nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)

    def _resize(self, x):
        """[B, C, H, W] -> [B, C, H/2, W/2], [B, C, 2H, 2W] or x itself. It has no weights."""
        if self.resample == "down":
            return F.avg_pool2d(x, 2)                                   # the mean of each 2×2 square
        return F.interpolate(x, scale_factor=2) if self.resample else x   # each pixel four times

    def forward(self, x, emb):
        """x [B, C, H, W], emb [B, E] (already through SiLU) -> [B, C', H', W']"""
        # Resizing comes before the convolution, which thus works at the new size. The identity is resized too, so
        # that the two can be added.
        h = self.conv1(self._resize(F.silu(self.norm1(x))))
        # One vector acts on all places alike: it says how noisy x is and what to draw, but never where.
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)   # AdaGN: (1 + s)·GroupNorm(h) + b  [ADM section 3]
        return self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))


class TextAttention(nn.Module):
    """Every place of the image attends to every other and to the caption [GLIDE section 4].

    A convolution only sees a place's neighbours. That both eyes get the same colour, or that the red thing is the one
    on the left, is decided here. Places have no position vectors, unlike words (02): the convolutions' zero padding at
    the borders, whose effect reaches further in with every layer, tells a place where it is. The caption needs no mask,
    since padding has learned vectors of its own (02).
    """

    def __init__(self, channels, head_channels, text_width, groups=32):
        super().__init__()
        self.heads = channels // head_channels
        self.norm = norm(channels, groups)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.text_kv = nn.Linear(text_width, 2 * channels)   # each layer has its own view of the caption
        self.out = zero(nn.Linear(channels, channels))

    def project_text(self, text):
        """text [B, K, D] -> keys and values, each [B, h, K, d]. They are the same at every sampling step."""
        return self.text_kv(text).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(2, dim=-1)

    def forward(self, x, text_kv):
        """x [B, C, H, W], text_kv from `project_text` -> [B, C, H, W]"""
        places = self.norm(x).flatten(2).transpose(1, 2)                     # [B, H·W, C]
        q, k, v = transformer.split_heads(self.qkv(places), self.heads)      # [B, h, H·W, d]
        # The caption has no queries: words are attended to, but do not attend. One softmax runs over words and
        # places together, so a place divides its attention among them.
        k, v = (torch.cat(both, dim=2) for both in zip(text_kv, (k, v)))     # [B, h, K + H·W, d]
        seen = self.out(transformer.merge_heads(transformer.attention(q, k, v)))
        return x + seen.transpose(1, 2).unflatten(2, x.shape[2:])


class ResAttnBlock(nn.Module):
    """A residual block and, at the coarse levels, attention after it. On the way down each leaves one skip."""

    def __init__(self, res, attention=None):
        super().__init__()
        self.res, self.attention = res, attention

    def forward(self, h, emb, text_kv):
        """h [B, C, H, W] -> [B, C', H, W]. text_kv is an iterator: each attention layer takes the next pair."""
        h = self.res(h, emb)
        return self.attention(h, next(text_kv)) if self.attention else h


class Level(nn.Module):
    """The blocks of one size, then a ResBlock that halves (down) or doubles (up), or None if no level follows.

    It only holds them: `UNet.forward` decides in which order they run, and what is skipped.
    """

    def __init__(self, blocks, resample):
        super().__init__()
        self.blocks, self.resample = nn.ModuleList(blocks), resample


# --- The U-Net ---------------------------------------------------------------------------------------

# The constructor lays out the way down, the middle and the way up, and `forward` runs through them. Both are short
# because skips are a stack: what is pushed last on the way down is popped first on the way up. A level of n blocks has
# n + 1 skips, one from each block and one from what feeds it (the first convolution, or the halving of the level
# before), so it has n + 1 blocks on the way up.
# What comes up and what was skipped are concatenated, in this order, and not added, so that the next block can weight
# the two as it likes. Exchanging them changes no shape, but makes trained weights worthless.
class UNet(nn.Module):
    """GLIDE's U-Net with its text encoder: a denoiser (04) of images with captions. config is a UNetConfig."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        emb, width = 4 * c.channels, c.channels
        self.text = transformer.TextEncoder(c.text)
        self.pool = nn.Linear(c.text.width, emb)      # the caption's last vector, added to the timestep's
        self.time = nn.Sequential(nn.Linear(c.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.input_conv = nn.Conv2d(c.in_channels, width, 3, padding=1)

        def res(in_channels, out_channels, resample=None):
            return ResBlock(in_channels, out_channels, emb, groups=c.groups, dropout=c.dropout, resample=resample)

        def block(in_channels, out_channels, attend):
            attention = TextAttention(out_channels, c.head_channels, c.text.width, c.groups) if attend else None
            return ResAttnBlock(res(in_channels, out_channels), attention)

        # `skips` holds the channels of what the way down leaves behind. The way up pops them, last one first, and so
        # knows how many channels come in. `forward` does the same with the tensors themselves.
        self.down, skips, deepest = nn.ModuleList(), [width], len(c.multipliers) - 1
        for i, multiplier in enumerate(c.multipliers):
            before, width = width, multiplier * c.channels
            incoming = [before] + [width] * (c.blocks - 1)
            blocks = [block(channels, width, i in c.attention_levels) for channels in incoming]
            self.down.append(Level(blocks, res(width, width, "down") if i < deepest else None))
            skips += [width] * (c.blocks + (i < deepest))

        # The smallest size: block, attention, block, whatever attention_levels says.
        self.middle = nn.ModuleList([block(width, width, True), block(width, width, False)])

        # Going up mirrors going down, with one more block at each size.
        self.up = nn.ModuleList()
        for i, multiplier in reversed(list(enumerate(c.multipliers))):
            before, width = width, multiplier * c.channels
            incoming = [before] + [width] * c.blocks
            blocks = [block(channels + skips.pop(), width, i in c.attention_levels) for channels in incoming]
            self.up.append(Level(blocks, res(width, width, "up") if i else None))

        last = zero(nn.Conv2d(width, c.out_channels, 3, padding=1))
        self.output = nn.Sequential(norm(width, c.groups), nn.SiLU(), last)

    def prepare(self, tokens, mask):
        """What depends on the caption alone, computed once before a sampling loop.

        tokens [B, K], mask [B, K] -> the conditioning that `forward` takes instead of them: `pooled`
        [B, 4·channels], and the text keys and values of each attention layer, in the order in which they run.
        """
        # An attention layer's view of the caption depends on neither x nor t: in a loop of 150 steps, 149 would
        # compute it again. `forward` hands the pairs out in the order of `layers`.
        text = self.text(tokens, mask)                                         # [B, K, D]
        layers = [m for m in self.modules() if isinstance(m, TextAttention)]   # as registered: down, middle, up
        return {"pooled": self.pool(text[:, -1]), "text_kv": [layer.project_text(text) for layer in layers]}

    def forward(self, x, t, *, tokens=None, mask=None, pooled=None, text_kv=None):
        """Guess the noise in x.

        x        [B, in_channels, H, W], clean images scaled to [-1, 1]; H and W divisible by 2^(levels - 1)
        t        [B] long, the original timesteps 0 … 999
        tokens, mask  [B, K], or in place of them what `prepare` made of them: pooled, text_kv
        returns  [B, out_channels, H, W] float32: the channels of the noise (in the small trained models of a mixture
                 from which 04's `to_eps` computes it), then those of the variance (04)
        """
        if text_kv is None:
            prepared = self.prepare(tokens, mask)
            pooled, text_kv = prepared["pooled"], prepared["text_kv"]
        text_kv = iter(text_kv)
        emb = F.silu(self.time(timestep_embedding(t, self.config.channels).to(pooled.dtype)) + pooled)

        # Going down, every state is kept. Going up, each is concatenated to what comes from below: the coarse path
        # knows what the image shows, and the skips still know where, to the pixel.
        h = self.input_conv(x.to(self.input_conv.weight.dtype))   # the network may run in 16 bits (09) …
        skips = [h]
        for level in self.down:
            for block in level.blocks:
                h = block(h, emb, text_kv)
                skips.append(h)
            if level.resample:
                h = level.resample(h, emb)
                skips.append(h)
        for block in self.middle:
            h = block(h, emb, text_kv)
        for level in self.up:
            for block in level.blocks:
                h = block(torch.cat([h, skips.pop()], dim=1), emb, text_kv)
            if level.resample:
                h = level.resample(h, emb)
        return self.output(h.float()).float()            # … but never its last layer, which writes the answer

    @classmethod
    def load(cls, path):
        """The U-Net of a weight file, in eval mode and float32. Raises what `read_weights` and `load_model` raise."""
        return cls.from_saved(read_weights(path), path)

    @classmethod
    def from_saved(cls, saved, path):
        """The U-Net in what `read_weights` returned for path (which is only named in errors)."""
        return load_model(lambda config: cls(config_from(UNetConfig, config)), saved, path)


# --- Weight files ------------------------------------------------------------------------------------

# A weight file explains itself: along with the weights it holds the sizes of the network and all that is needed to draw
# with it. It is read with weights_only=True, which accepts tensors and plain values and refuses anything that would run
# code: people load weight files from strangers more readily than they run strangers' programs.

def save_weights(path, model, **metadata):
    """Write a model's weights in 16 bits, with its config and everything else that is needed to use them.

    metadata  plain values, in 08: size, diffusion, tokenizer (its merges), world, made (how and for how long)
    Raises OSError if the file cannot be written; see `atomic_write`.
    """
    # 16 bits halve the file and keep 11 binary digits of each weight, more than can be seen in an image.
    weights = {key: value.detach().cpu().half() if value.is_floating_point() else value.cpu()
               for key, value in model.state_dict().items()}
    with atomic_write(path) as partial:
        torch.save({"config": asdict(model.config), "weights": weights, **metadata}, partial)


@contextmanager
def atomic_write(path):
    """Yields a temporary path to write to. At the end that file replaces `path`; after an error it is removed.

    So a reader sees the old file or the new one, never half of one, even after a power cut: the new file is flushed to
    the disk before it is renamed. Missing folders are made. Raises OSError if the file cannot be written.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        yield partial
        with open(partial, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except RuntimeError as e:    # how torch.save reports a full disk
        raise OSError(f"{path} could not be written; is the disk full? ({type(e).__name__})") from None
    finally:
        partial.unlink(missing_ok=True)


def read_weights(path):
    """What `save_weights` wrote: a dictionary of config, weights (float16) and the metadata.

    The weights stay on the disk until they are used (mmap), so it costs little to look at a config.
    Raises FileNotFoundError, or ValueError with a one-line message that says what the file is instead.
    """
    path = Path(path)
    if path.is_dir():
        raise ValueError(f"{path} is a folder; a weight file was expected")
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as e:   # torch.load fails in many ways on bytes that are not its own
        raise ValueError(f"{path} is damaged, or not a weight file at all ({type(e).__name__})") from None
    if isinstance(saved, dict) and isinstance(saved.get("config"), dict) and isinstance(saved.get("weights"), dict):
        return saved
    raise ValueError(f"{path} {what_it_is(saved)}")


def what_it_is(saved):
    """The predicate of a sentence about a file that torch can read, but that is not one of our weight files."""
    keys = {str(key) for key in saved} if isinstance(saved, dict) else set()
    if "optimizer" in keys:
        return "is a checkpoint of a training run; its weights are next to it, in base.pt, upsampler.pt, …"
    if keys & {"input_blocks.0.0.weight", "blocks.input.w_t", "blocks.input.w_voc"}:
        return "is a file as OpenAI released it; python lessons/12_released.py convert makes a weight file of it"
    if keys and all(isinstance(value, torch.Tensor) for value in saved.values()):
        return "holds bare weights, without the sizes and the tokenizer that belong to them; save_weights adds those"
    return "is a file of torch's, but not one of our weight files"


def config_from(cls, values):
    """A UNetConfig or CLIPConfig (05) from the dictionary that a weight file holds."""
    return cls(**{**values, "text": TextConfig(**values["text"])})


def load_model(build, saved, path):
    """The network that build(config) makes, with the weights of a file, in float32 and eval mode.

    saved is what `read_weights` returned for path. Raises ValueError if the weights do not fit the network.
    """
    try:
        with torch.device("meta"):       # no memory for weights that would be replaced at once
            model = build(saved["config"])
        model.load_state_dict(saved["weights"], assign=True)
        return model.float().eval()
    except (AttributeError, ArithmeticError, LookupError, TypeError, ValueError, RuntimeError) as e:
        raise ValueError(f"{path} holds another network than the one expected here ({type(e).__name__})") from None


# --- The demonstration -------------------------------------------------------------------------------

# Everything from here on only shows what the code above does; no other file needs it.
BASES = {"tiny": 16, "filtered": 64, "paper": 64}   # and the side of their images
parameters = transformer.parameters


def on_meta(name):
    """A network of a named size on the meta device, which has shapes but needs no memory."""
    with torch.device("meta"):
        return UNet(UNET[name])


def levels(network):
    """The U as a table, finest level first: (level, channels, whether it has attention, way down, way up)."""
    c = network.config
    for i, multiplier in enumerate(c.multipliers):
        yield i, c.channels * multiplier, i in c.attention_levels, network.down[i], network.up[-1 - i]


def show_sizes():
    """A row for each level, its way down and its way up together; then the other large parts and the total."""
    print("\n1. The levels, built on the meta device; blocks: down + up")
    for name, side in BASES.items():
        network = on_meta(name)
        for i, channels, attends, down, up in levels(network):
            print(f"   {name:<9} {side >> i:>2}×{side >> i:<2}  {channels:>5,} channels   {len(down.blocks)} +"
                  f" {len(up.blocks)} blocks  {'attention' * attends:<9} {parameters(down) + parameters(up):>13,}"
                  " parameters")
        print(f"             middle {parameters(network.middle):,}, text {parameters(network.text):,}, in all"
              f" {parameters(network):,}; its upsampler {parameters(on_meta(name + '-upsampler')):,}")


def show_time():
    """Waves that a pocket calculator confirms."""
    print("\n2. A timestep as waves: t = 3 in 8 numbers; check: cos of 3, 0.3, 0.03, 0.003, then their sines")
    print("   " + " ".join(f"{wave:+.3f}" for wave in timestep_embedding(torch.tensor([3]), 8)[0].tolist()))


def show_fresh(network, x, t, cond):
    """Why a new network answers nothing, and why it learns all the same."""
    answer = network(x, t, **cond)
    (answer - 1).square().mean().backward()     # any target that is not zero
    tensors = dict(network.named_parameters())
    awake = [name for name, p in tensors.items() if p.grad is not None and p.grad.any()]
    print("\n3. A fresh network answers zero, because its last layer starts at zero\n"
          f"   {list(x.shape)} -> {list(answer.shape)}, largest {answer.abs().max():.1f}; the first gradient reaches"
          f" {len(awake)} of {len(tensors)} tensors,\n   {' and '.join(awake)};"
          " one step later these are not zero any more and let gradients through")


def show_shapes(network, x, t, cond):
    """A forward hook on every block prints what goes in and what comes out."""
    print(f"\n4. Down and up again, now with random weights: x {list(x.shape)}, t = {t.item()}")
    for p in network.parameters():               # zeros would hide every mistake in the wiring
        nn.init.normal_(p, std=0.5 / p[0].numel() ** 0.5)
    names = {part: name for name, part in network.named_modules()
             if isinstance(part, ResAttnBlock) or name.endswith("resample")}
    words, before = cond["tokens"].shape[1], [network.config.channels]

    def tell(part, given, out):
        (_, channels, h, w), skip = out.shape, given[0].shape[1] - before[-1]
        sees = f"   attends to {words} words + {h * w} places" if getattr(part, "attention", None) else ""
        print(f"   {names[part]:<15} {before[-1]:>4} {f'+ {skip} skipped' if skip else '':<13} -> "
              f"{f'{channels} × {h} × {w}':<13}  mean {out.mean():+.2f}  std {out.std():.2f}{sees}")
        before.append(channels)

    for part in names:
        part.register_forward_hook(tell)
    print(f"   the answer: {list(network(x, t, **cond).shape)}, three channels of noise and three of variance")


def draw_waves(above, below):
    """The embedding of all timesteps as a heat map, and how similar they are to three of them."""
    rows = timestep_embedding(torch.arange(1000), 192)
    image = above.imshow(rows.T, cmap="RdBu_r", aspect="auto", interpolation="nearest")
    above.set_yticks([8, 87, 104, 183], ["fast cos", "slow cos", "fast sin", "slow sin"], size=12)
    above.figure.colorbar(image, ax=above, ticks=[-1, 0, 1], pad=0.015)
    for t, color in ((100, "#2980b9"), (500, "#27ae60"), (900, "#c0392b")):
        below.plot(rows @ rows[t] / 96, color=color)
        below.text(t, 1.03, f"t = {t}", color=color, size=14, ha="center")
    below.set(xlabel="timestep", ylabel="cosine similarity", xlim=(0, 999), ylim=(0, 1.15))
    above.set_title("A timestep is a row of waves …", size=18, loc="left")
    below.set_title("… most like those of its neighbours", size=18, loc="left")
    below.spines[["top", "right"]].set_visible(False)


def draw_levels(axes, name):
    """The U as bars: their length is a level's channels, their height the logarithm of its image's side."""
    network, gap = on_meta(name), 1.2
    bottom = -len(network.down)
    # Behind everything, the way of an image: in at the upper left, through the middle, out at the upper right.
    axes.plot([-1.58, -1.58, 1.58, 1.58], [0.4, bottom, bottom, 0.55], "^-", markevery=[3], color="#d5d8dc",
              linewidth=8, markersize=22, zorder=0)
    for i, channels, attends, *ways in levels(network):
        side, width, color = BASES[name] >> i, channels / 250, "#e67e22" if attends else "#7f8c8d"
        for sign, level in zip((-1, 1), ways):
            axes.barh(-i, sign * width, math.log2(side) / 9, left=sign * gap, color=color)
            axes.text(sign * (gap + width / 2), -i, channels, ha="center", va="center", color="w", size=15)
            note = f"{len(level.blocks)} blocks\n{parameters(level) / 1e6:.1f} M"
            axes.text(sign * (gap + width + 0.5), -i, note, ha="center", va="center", size=13)
        axes.annotate("", (gap, -i), (-gap, -i), arrowprops={"arrowstyle": "-|>", "lw": 1.5})
        axes.text(0, 0.07 - i, f"{side}×{side}", ha="center", size=16, weight="bold")
        axes.text(0, -0.07 - i, f"{len(level.blocks)} skips", ha="center", va="top", size=13)
    axes.barh(bottom, width, 0.33, left=-width / 2, color=color)
    axes.text(0, bottom, f"middle  {channels}", ha="center", va="center", color="w", size=15)
    axes.set(xlim=(-5.3, 5.3), ylim=(bottom - 0.3, 0.85))
    axes.set_title(f"The released base model, {parameters(network):,} parameters; attention in orange", size=18)
    axes.axis("off")


def save_picture(path):
    """Left, time as the network sees it; right, the levels of the released base model."""
    from matplotlib.figure import Figure         # here, so that importing this file stays quick
    figure = Figure(figsize=(18, 8), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.25))
    draw_waves(*left.subplots(2, 1))
    draw_levels(right.subplots(), "filtered")
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=100, bbox_inches="tight", pad_inches=0.2)


def main():
    """The four sections and the picture; one noisy image of 16×16 pixels and one caption go through them."""
    torch.manual_seed(0)
    network, x, t = UNet(UNET["tiny"]), torch.randn(1, 3, 16, 16), torch.tensor([500])
    words = transformer.tokenizer.world_tokenizer()
    cond = transformer.encode(["a red heart above a blue star"], words, network.config.text.context)
    show_sizes()
    show_time()
    show_fresh(network, x, t, cond)
    with torch.no_grad():
        show_shapes(network, x, t, cond)
    save_picture(OUTPUTS / "03_unet.png")
    print("\nThe picture is outputs/03_unet.png. Its lesson: lessons/03_unet.ipynb.\n"
          "Next: python 04_diffusion.py draws by guessing the noise.")


if __name__ == "__main__":
    main()
