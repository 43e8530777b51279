r"""
03 · Noise, a timestep and meaning become a guess at the noise.

The U-Net is handed a noisy picture, how noisy it is, and a caption, and answers with a picture of the same
size: its guess at the noise (and at how sure one can be of the next step, 04). It looks at the picture at
several sizes, going down to see the whole and up again to place the detail, and keeps what it saw on the
way down for the way up:

    x ─► conv ─► level 0 ───────────────── skips ─────────────────► level 0 ─► norm, SiLU, conv ─► answer
                   └► level 1 ──────────── skips ────────────► level 1 ┘
                         └► level 2 ────── skips ──────► level 2 ┘
                               └─────────► middle ─────────┘

A level is a few residual blocks, with attention at the coarse ones. Two things steer every block:

  · one vector, timestep + caption's last vector, scales and shifts its second norm (AdaGN);
  · in an attention layer each place of the picture may look at all others *and at the K vectors of the
    caption*: their keys and values simply stand in front of the picture's own.

It adds to 02: pictures and time. It leaves out: what the answer is used for (04). This is ADM's U-Net with
GLIDE's text conditioning, whole: the tiny one differs from the released one by its numbers only.

Papers: ADM, Dhariwal & Nichol 2021, arXiv 2105.05233 (section 3: AdaGN, BigGAN-style resampling, 64
channels a head); GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4); U-Net, Ronneberger et al. 2015,
arXiv 1505.04597; sinusoids: Vaswani et al. 2017, arXiv 1706.03762 (section 3.5).

    python 03_unet.py           about five seconds: the table of levels for three sizes, the timestep
                                embedding, a fresh network's answer, what `prepare` saves; a plot in outputs/
"""
import math
import os
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
    """The sizes of a U-Net. Level 0 is the full picture, each further level half as large."""

    channels: int = 192                              # at level 0; level i has channels × multipliers[i]
    multipliers: tuple[int, ...] = (1, 2, 3, 4)
    blocks: int = 3                                  # residual blocks a level going down; one more going up
    attention_levels: tuple[int, ...] = (1, 2, 3)    # 64-pixel pictures: at 32, 16 and 8
    in_channels: int = 3                             # more where a picture is given beside the noise (06, 07)
    out_channels: int = 6                            # noise and variance of a picture of three channels
    head_channels: int = 64
    dropout: float = 0.1
    text: TextConfig = field(default_factory=TextConfig)


# The named sizes. Upsamplers see the enlarged low-resolution picture on three more channels (07).
UNET = {
    "tiny": UNetConfig(64, (1, 2), 1, (1,), dropout=0.0, text=TEXT["tiny"]),
    "tiny-upsampler": UNetConfig(32, (1, 2, 2), 1, (2,), 6, dropout=0.0, text=TEXT["tiny-upsampler"]),
    "filtered": UNetConfig(text=TEXT["filtered"]),
    "filtered-upsampler": UNetConfig(192, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 6, text=TEXT["filtered"]),
    "paper": UNetConfig(512, text=TEXT["paper"]),
    "paper-upsampler": UNetConfig(384, (1, 1, 2, 2, 4, 4), 2, (3, 4, 5), 6, text=TEXT["paper-upsampler"]),
}


# --- Pieces ------------------------------------------------------------------------------------------

def timestep_embedding(t, dim):
    """A timestep as a row of waves, from fast to slow: [cos, sin] of t·10000^(-i/half) for i < half.

    t [B] of 0 … 999 (any real number works) -> [B, dim] float32. A single number would leave the network
    to tell 500 from 501; here neighbours share their slow waves and differ in their fast ones.
    """
    half = dim // 2
    frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t[:, None].float() * frequencies                     # [B, half]
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def norm(channels):
    """Group norm over 32 groups: a picture's statistics do not depend on its neighbours in the batch."""
    return nn.GroupNorm(32, channels, eps=1e-5)


def zero(layer):
    """Start a layer at zero, so that its block answers x + 0: a deep network begins as a shallow one."""
    nn.init.zeros_(layer.weight)
    nn.init.zeros_(layer.bias)
    return layer


class ResBlock(nn.Module):
    """Two convolutions beside the identity, told the time and the caption between them.

    resample "down" or "up" halves or doubles the picture inside the block, the identity too (BigGAN's way).
    """

    def __init__(self, inside, outside, emb, *, dropout=0.0, resample=None):
        super().__init__()
        self.resample = resample
        self.norm1 = norm(inside)
        self.conv1 = nn.Conv2d(inside, outside, 3, padding=1)
        self.scale_shift = nn.Linear(emb, 2 * outside)
        self.norm2 = norm(outside)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = zero(nn.Conv2d(outside, outside, 3, padding=1))
        self.skip = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)

    def _resize(self, x):
        if self.resample == "down":
            return F.avg_pool2d(x, 2)                                   # the mean of each 2×2 square
        return F.interpolate(x, scale_factor=2) if self.resample else x   # each pixel four times

    def forward(self, x, emb):
        """x [B, C, H, W], emb [B, E] (already through SiLU) -> [B, C', H', W']"""
        h = self.conv1(self._resize(F.silu(self.norm1(x))))
        scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)
        h = torch.addcmul(shift, self.norm2(h), 1 + scale)   # AdaGN: (1 + s)·GroupNorm(h) + b  [ADM section 3]
        return self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))


class TextAttention(nn.Module):
    """Every place of the picture looks at every other and at the caption."""

    def __init__(self, channels, head_channels, text_width):
        super().__init__()
        self.heads = channels // head_channels
        self.norm = norm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.text_kv = nn.Linear(text_width, 2 * channels)   # this layer's own view of the caption
        self.out = zero(nn.Linear(channels, channels))

    def read(self, text):
        """text [B, K, D] -> keys and values, each [B, h, K, d]: the same at every step of a drawing."""
        return self.text_kv(text).unflatten(-1, (self.heads, -1)).transpose(1, 2).chunk(2, dim=-1)

    def forward(self, x, text_kv):
        """x [B, C, H, W], text_kv from `read` -> [B, C, H, W]"""
        places = self.norm(x).flatten(2).transpose(1, 2)                     # [B, H·W, C]
        q, k, v = transformer.split_heads(self.qkv(places), self.heads)      # [B, h, H·W, d]
        k, v = (torch.cat(both, dim=2) for both in zip(text_kv, (k, v)))     # [B, h, K + H·W, d]
        seen = self.out(transformer.join_heads(transformer.attention(q, k, v)))
        return x + seen.transpose(1, 2).unflatten(2, x.shape[2:])


class Step(nn.Module):
    """A residual block and, at the coarse levels, attention after it."""

    def __init__(self, block, attention=None):
        super().__init__()
        self.block, self.attention = block, attention

    def forward(self, h, emb, text_kv):
        """text_kv is an iterator: every attention layer takes the next pair of keys and values."""
        h = self.block(h, emb)
        return self.attention(h, next(text_kv)) if self.attention else h


class Level(nn.Module):
    """The steps of one size, then a halving block (down) or a doubling one (up), if another level follows."""

    def __init__(self, steps, resample):
        super().__init__()
        self.steps, self.resample = nn.ModuleList(steps), resample


# --- The U-Net ---------------------------------------------------------------------------------------

class UNet(nn.Module):
    """GLIDE's U-Net with its text encoder: a denoiser (04) of pictures with captions."""

    def __init__(self, config):
        super().__init__()
        self.config = c = config
        emb, width = 4 * c.channels, c.channels
        self.text = transformer.TextEncoder(c.text)
        self.pool = nn.Linear(c.text.width, emb)      # the caption's last vector joins the timestep
        self.time = nn.Sequential(nn.Linear(c.channels, emb), nn.SiLU(), nn.Linear(emb, emb))
        self.enter = nn.Conv2d(c.in_channels, width, 3, padding=1)

        def block(inside, outside, resample=None):
            return ResBlock(inside, outside, emb, dropout=c.dropout, resample=resample)

        def step(inside, outside, attend):
            return Step(block(inside, outside),
                        TextAttention(outside, c.head_channels, c.text.width) if attend else None)

        self.down, skips, deepest = nn.ModuleList(), [width], len(c.multipliers) - 1
        for i, multiplier in enumerate(c.multipliers):
            inside, width = width, multiplier * c.channels
            widths = [inside] + [width] * (c.blocks - 1)
            steps = [step(w, width, i in c.attention_levels) for w in widths]
            self.down.append(Level(steps, block(width, width, "down") if i < deepest else None))
            skips += [width] * (c.blocks + (i < deepest))

        self.middle = nn.ModuleList([step(width, width, True), step(width, width, False)])

        self.up = nn.ModuleList()
        for i, multiplier in reversed(list(enumerate(c.multipliers))):
            inside, width = width, multiplier * c.channels
            widths = [inside] + [width] * c.blocks   # one step more than going down: the halving's skip
            steps = [step(w + skips.pop(), width, i in c.attention_levels) for w in widths]
            self.up.append(Level(steps, block(width, width, "up") if i else None))

        self.leave = nn.Sequential(norm(width), nn.SiLU(), zero(nn.Conv2d(width, c.out_channels, 3, padding=1)))

    def prepare(self, tokens, mask):
        """What depends on the caption alone, computed once for a whole drawing.

        tokens [B, K], mask [B, K] -> the conditioning that `forward` takes instead of them: `pooled`
        [B, 4·channels], and for each attention layer, in the order they are met, its text keys and values.
        """
        text = self.text(tokens, mask)                                         # [B, K, D]
        layers = [m for m in self.modules() if isinstance(m, TextAttention)]   # as registered: down, middle, up
        return {"pooled": self.pool(text[:, -1]), "text_kv": [layer.read(text) for layer in layers]}

    def forward(self, x, t, *, tokens=None, mask=None, pooled=None, text_kv=None):
        """Guess the noise in x.

        x       [B, in_channels, H, W], in [-1, 1] where it is a clean picture; H and W divisible by
                2^(levels - 1)
        t       [B] long, the original timesteps 0 … 999
        tokens, mask       [B, K], or what `prepare` made of them (pooled, text_kv)
        returns [B, out_channels, H, W] float32: noise first, then the variance's channels (04)
        """
        if text_kv is None:
            prepared = self.prepare(tokens, mask)
            pooled, text_kv = prepared["pooled"], prepared["text_kv"]
        text_kv = iter(text_kv)
        emb = F.silu(self.time(timestep_embedding(t, self.config.channels)) + pooled)

        h = self.enter(x)
        skips = [h]
        for level in self.down:
            for step in level.steps:
                h = step(h, emb, text_kv)
                skips.append(h)
            if level.resample:
                h = level.resample(h, emb)
                skips.append(h)
        for step in self.middle:
            h = step(h, emb, text_kv)
        for level in self.up:
            for step in level.steps:
                h = step(torch.cat([h, skips.pop()], dim=1), emb, text_kv)
            if level.resample:
                h = level.resample(h, emb)
        return self.leave(h).float()

    @classmethod
    def load(cls, path):
        """The U-Net of a weight file, in eval mode and float32. Raises as `read_weights`."""
        saved = read_weights(path)
        try:
            model = cls(UNetConfig(**{**saved["config"], "text": TextConfig(**saved["config"]["text"])}))
            model.load_state_dict(saved["weights"])
        except (KeyError, TypeError, RuntimeError) as e:
            raise ValueError(f"{path} does not hold a U-Net of this course ({type(e).__name__})") from None
        return model.eval()


# --- Weight files ------------------------------------------------------------------------------------

def save_weights(path, model, **facts):
    """Write a model's weights, in 16 bits, with its config and whatever else must be known to use them.

    First under a temporary name, then renamed: whoever looks sees the old file or the new one, never half of one.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    weights = {key: value.detach().cpu().half() if value.is_floating_point() else value.cpu()
               for key, value in model.state_dict().items()}
    partial = path.with_name(path.name + ".tmp")
    try:
        torch.save({"config": asdict(model.config), "weights": weights, **facts}, partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)


def read_weights(path):
    """What `save_weights` wrote: a dictionary with config, weights (float32) and facts.

    Raises FileNotFoundError, or ValueError for a file that is cut short or holds something else.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"no weights at {path}")
    try:
        saved = torch.load(path, map_location="cpu", weights_only=True)
        return {**saved, "weights": {key: value.float() if value.is_floating_point() else value
                                     for key, value in saved["weights"].items()}}
    except Exception as e:   # torch.load fails in many ways on bytes that are not its own
        raise ValueError(f"{path} is not one of our weight files, or is damaged ({type(e).__name__})") from None
