r"""
02 · Integers become meaning.

A tokenizer hands over integers; nothing in the number 317 says "umbrella". The Transformer turns each
of them into a vector and lets the vectors look at one another, so that the one for "red" can learn which
thing is red:

    tokens [B, K] ──► token vector + position vector ──► N × block ──► layer norm ──► [B, K, D]
                          ▲                                │
      mask False: replaced by a learned padding vector     │   block:  x = x + attention(norm(x))
                                                           └──         x = x + mlp(norm(x))

It adds to 01: the first learned numbers. It leaves out: everything about pictures. GLIDE uses the result
twice (03): the vector at the *last* position, K-1, stands for the whole caption, and all K vectors are
offered to the picture's attention layers. Three details are easy to get wrong and are tested:

  · attention is not causal: "red" may look ahead at "umbrella";
  · at a padded position the token and its position are replaced, not hidden: padding is attended to like
    any word, and it has a learned vector for each position. An empty caption is therefore a full row of
    padding vectors: the network's idea of "no prompt", which guidance needs (05);
  · a mask therefore never enters attention. It only chooses which vector a position starts from.

Papers: Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762 (section 3.2: eq. 1, the heads);
GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4: the text encoder, its last vector and its K vectors).

    python 02_transformer.py        about five seconds: attention by hand, a caption's way through the
                                    encoder, what padding does; a map of attention in outputs/
"""
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

tokenizer = import_module("01_tokenizer")

OUTPUTS = Path(__file__).parent / "outputs"


@dataclass(frozen=True)
class TextConfig:
    """The sizes of a text encoder. Width is D, context is K; a head is 64 numbers wide in every GLIDE model."""

    vocab_size: int = 50257
    context: int = 128
    width: int = 512
    layers: int = 16
    heads: int = 8


# The named sizes [GLIDE section 4 and the released configuration]. Base and upsampler each own an encoder.
TEXT = {
    "tiny": TextConfig(vocab_size=512, context=20, width=128, layers=3, heads=2),
    "tiny-upsampler": TextConfig(vocab_size=512, context=20, width=128, layers=2, heads=2),
    "filtered": TextConfig(width=512, layers=16, heads=8),
    "paper": TextConfig(width=2048, layers=24, heads=32),
    "paper-upsampler": TextConfig(width=1024, layers=24, heads=16),
}


# --- Attention ---------------------------------------------------------------------------------------

def attention_weights(q, k):
    """Who looks at whom: softmax(q·kᵀ/√d) over the keys (Vaswani et al. eq. 1), the part before the values.

    q [..., N, d], k [..., M, d] -> [..., N, M] float32; every row sums to one. Written out to be read and
    to be drawn; `attention` is what the models call.
    """
    # q and k are each scaled by d^(-1/4), not their product by d^(-1/2): the same number, but in 16 bits
    # the product of two unscaled vectors may overflow. The softmax is taken in float32 for its sums' sake.
    scale = q.shape[-1] ** -0.25
    return torch.softmax((q * scale) @ (k * scale).transpose(-1, -2), dim=-1, dtype=torch.float32)


def attention(q, k, v, *, causal=False):
    """Each query's mixture of the values, weighted by how well its key answers.

    q [B, h, N, d], k and v [B, h, M, d] -> [B, h, N, d]. causal=True hides every key to the right of its
    query (only CLIP's text tower wants that, 05).
    """
    if q.device.type == "cpu" and q.requires_grad and not causal:
        return attention_weights(q, k).to(v.dtype) @ v   # in training on a CPU 3-4 times faster than the fused
    # The same sums by torch's fused operator, which never writes the N×M table of weights to memory.
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def split_heads(x, heads):
    """[B, N, 3·D] -> q, k, v, each [B, h, N, d]. Each head's q, k and v lie together in the last axis."""
    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)   # [B, h, N, 3d]
    return x.chunk(3, dim=-1)


def join_heads(x):
    """[B, h, N, d] -> [B, N, h·d]."""
    return x.transpose(1, 2).flatten(2)


class SelfAttention(nn.Module):
    """Several small attentions side by side: each head compares the vectors by a question of its own."""

    def __init__(self, width, heads, *, causal=False):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        """[B, K, D] -> [B, K, D]"""
        q, k, v = split_heads(self.qkv(x), self.heads)
        return self.out(join_heads(attention(q, k, v, causal=self.causal)))


# --- The Transformer ---------------------------------------------------------------------------------

class MLP(nn.Sequential):
    """What is done to each vector alone: four times wider, bent by an exact GELU, and back."""

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width)


class Block(nn.Module):
    """Look around, then think: two residual steps. The norms stand before them (pre-norm), so the sum
    itself, the "residual stream", runs untouched from the first block to the last."""

    def __init__(self, width, heads, *, causal=False):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, causal=causal)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x):
        """[B, K, D] -> [B, K, D]"""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TextEncoder(nn.Module):
    """GLIDE's text Transformer: a caption's tokens become K vectors of width D."""

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.padding = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.apply(self._start)

    def _start(self, module):
        """The first weights. A linear layer keeps the size of what it is given (variance 1/inputs); those that
        write into the residual stream start smaller the more of them there are (as in GPT-2)."""
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=module.in_features ** -0.5)
            nn.init.zeros_(module.bias)
        if isinstance(module, Block):
            for layer in (module.attention.out, module.mlp.down):
                layer.weight.data *= (2 * self.config.layers) ** -0.5
        if module is self:   # a word starts louder than its place; the released code leaves the last two unset
            for table, std in (self.tokens.weight, 0.3), (self.positions, 0.02), (self.padding, 0.02):
                nn.init.normal_(table, std=std)

    def embed(self, tokens, mask):
        """tokens [B, K] long, mask [B, K] bool -> [B, K, D]: what the first block sees."""
        x = self.tokens(tokens) + self.positions
        return torch.where(mask[..., None], x, self.padding)   # replaced, position and all

    def forward(self, tokens, mask):
        """Caption to vectors.

        tokens  [B, K] integers in 0 … vocab_size-1; K must be the configured context
        mask    [B, K] bool, True where a token is real, False where it is padding
        returns [B, K, D]
        """
        if tokens.shape[-1] != self.config.context:
            raise ValueError(f"captions of {tokens.shape[-1]} tokens given, {self.config.context} expected: "
                             f"pad or cut them with tokenizer.pad(ids, {self.config.context})")
        x = self.embed(tokens, mask)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


# --- The demonstration -------------------------------------------------------------------------------

def tell(title):
    """A section's heading."""
    print(f"\n── {title} " + "─" * max(0, 92 - len(title)))
