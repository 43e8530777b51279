r"""
02 · Integers become meaning.

A tokenizer returns integers, and nothing in the number 317 says "umbrella". The Transformer turns each of them
into a vector and lets the vectors look at one another, so that the one for "red" can find out which thing is red:

    tokens [B, K] ──► token vector + position vector ──► N × block ──► layer norm ──► [B, K, D]
                          ▲                                │
      mask False: replaced by a learned padding vector     │   block:  x = x + attention(norm(x))
                                                           └──         x = x + mlp(norm(x))

It adds to 01: the first learned numbers. It leaves out everything about images. GLIDE uses the result twice
(03): the vector at the *last* position, K-1, stands for the whole caption, and the attention layers of the U-Net
attend to all K vectors. Three details are easy to get wrong and are tested:

  · attention is not causal: "red" may look ahead at "umbrella";
  · at a padded position the token and its position are replaced, not hidden: padding is attended to like
    any word, and it has a learned vector for each position. An empty caption is therefore K padding
    vectors, the network's idea of "no prompt", which guidance needs (05);
  · so the mask does not enter attention. It only decides which vector a position starts from.

Papers: Attention Is All You Need, Vaswani et al. 2017, arXiv 1706.03762 (section 3.2: eq. 1, the heads);
GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4: the text encoder, its last vector and its K vectors).

    python 02_transformer.py        about five seconds: attention by hand, a caption's way through the
                                    encoder, what padding and word order do, the named sizes;
                                    outputs/02_transformer.png: who looks at whom in a caption
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


# The named sizes [GLIDE section 4 and the released configuration]. Base and upsampler each have their own encoder.
TEXT = {
    "tiny": TextConfig(vocab_size=512, context=20, width=128, layers=3, heads=2),
    "tiny-upsampler": TextConfig(vocab_size=512, context=20, width=128, layers=2, heads=2),
    "small": TextConfig(vocab_size=512, context=20, width=128, layers=3, heads=2),
    "small-upsampler": TextConfig(vocab_size=512, context=20, width=128, layers=2, heads=2),
    "filtered": TextConfig(width=512, layers=16, heads=8),
    "paper": TextConfig(width=2048, layers=24, heads=32),
    "paper-upsampler": TextConfig(width=1024, layers=24, heads=16),
}


# --- Attention ---------------------------------------------------------------------------------------

# Attention is a soft look-up. Each vector asks a question (its query), offers an answer (its value) and says what it is
# an answer to (its key). A question gets the mean of all answers, in which those with a fitting key weigh more. What
# fits is learned. The cost is one product for each pair, K² of them for a caption of K tokens. Both networks of the
# course use these few functions: here words look at words, and in 03 places of an image look at places and words.
def attention_weights(q, k):
    """Who looks at whom: softmax(q·kᵀ/√d) over the keys, which is Vaswani et al.'s eq. 1 without the values.

    q [..., N, d], k [..., M, d] -> [..., N, M] float32; every row sums to one. The models call `attention`; this is
    written out so that it can be read and the weights can be plotted.
    """
    # q and k are each scaled by d^(-1/4), instead of their product by d^(-1/2): it is the same number, but in
    # 16 bits the product of two unscaled vectors may overflow. The softmax is computed in float32, for precision.
    scale = q.shape[-1] ** -0.25
    return torch.softmax((q * scale) @ (k * scale).transpose(-1, -2), dim=-1, dtype=torch.float32)


def attention(q, k, v, *, causal=False):
    """For each query the mean of all values, weighted by how well their keys fit.

    q [B, h, N, d], k and v [B, h, M, d] -> [B, h, N, d]. causal=True hides all keys to the right of a query
    (only CLIP's caption encoder needs that, 05).
    """
    if q.device.type == "cpu" and q.requires_grad and not causal:
        return attention_weights(q, k).to(v.dtype) @ v   # for training on a CPU, 3-4 times as fast as the fused one
    # The same result from torch's fused operator, which never writes the N×M table of weights to memory.
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def split_heads(x, heads):
    """[B, N, 3·D] -> q, k, v, each [B, h, N, d]. Each head's q, k and v lie together in the last axis."""
    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)   # [B, h, N, 3d]
    return x.chunk(3, dim=-1)


def merge_heads(x):
    """[B, h, N, d] -> [B, N, h·d]."""
    return x.transpose(1, 2).flatten(2)


class KeysWithoutBias(nn.Linear):
    """The linear layer in front of CLIP's attention (05): queries and values have a bias, keys have none.

    Nothing is lost: a bias of the keys would add the same number to all logits of a query, and the softmax only
    depends on their differences.
    """

    def __init__(self, width, heads):
        super().__init__(width, 3 * width, bias=False)
        self.heads, self.query_value_bias = heads, nn.Parameter(torch.zeros(2 * width))

    def forward(self, x):
        """[B, K, D] -> [B, K, 3·D], in the order that `split_heads` reads"""
        query, value = self.query_value_bias.view(self.heads, 2, -1).unbind(1)      # [h, d] each
        bias = torch.stack([query, torch.zeros_like(query), value], dim=1)          # [h, 3, d]
        return F.linear(x, self.weight, bias.flatten())


class SelfAttention(nn.Module):
    """Several small attentions in parallel: each head asks a question of its own.

    One head returns one mean. If a noun needs its colour and its neighbour's name, each undiluted, that takes two
    heads. Each works on d = D/h numbers, so h of them cost as much as one of full width.
    key_bias=False leaves out the bias of the keys, as CLIP does.
    """

    def __init__(self, width, heads, *, causal=False, key_bias=True):
        super().__init__()
        self.heads, self.causal = heads, causal
        self.qkv = nn.Linear(width, 3 * width) if key_bias else KeysWithoutBias(width, heads)
        self.out = nn.Linear(width, width)

    def forward(self, x):
        """[B, K, D] -> [B, K, D]"""
        q, k, v = split_heads(self.qkv(x), self.heads)
        return self.out(merge_heads(attention(q, k, v, causal=self.causal)))


# --- The Transformer ---------------------------------------------------------------------------------

# A block moves information between the vectors (in attention, the only place where they interact) and then processes
# each by itself (in the MLP). Both add to what is there and never replace it, so a block that has nothing to add can
# add nothing, and gradients reach the first block through the sums. The encoder is a table of vectors, a stack of
# blocks and a norm.
class MLP(nn.Sequential):
    """What happens to each vector by itself: four times wider, an exact GELU, and back. [B, K, D] -> [B, K, D].

    Two thirds of a block's weights are here. The GELU is x·Φ(x) itself and not GPT-2's approximation by a tanh, with
    which released weights would still run, and answer a little wrongly.
    """

    def __init__(self, width):
        super().__init__()
        self.up = nn.Linear(width, 4 * width)
        self.act = nn.GELU()
        self.down = nn.Linear(4 * width, width)


class Block(nn.Module):
    """Attention, then the MLP, each added to its input. The norms come before them (pre-norm), so that the sum
    itself, the "residual stream", runs from the first block to the last without being normalised.

    Vaswani et al. put the norm after the sum, which needs a warm-up of the learning rate, the more so the deeper the
    stack is. GPT-2 and most later models, GLIDE among them, put it before; the price is one more norm at the very end.
    options are SelfAttention's causal and key_bias, which CLIP sets differently (05).
    """

    def __init__(self, width, heads, **options):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = SelfAttention(width, heads, **options)
        self.norm2 = nn.LayerNorm(width)
        self.mlp = MLP(width)

    def forward(self, x):
        """[B, K, D] -> [B, K, D]"""
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


def init_weights(module, layers):
    """Initialise the weights of a stack of `layers` blocks, for `Module.apply`.

    A linear layer preserves the size of its inputs (variance 1/inputs). Layers that write to the residual stream
    start smaller, the more there are (as in GPT-2).
    """
    if isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, std=module.in_features ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    if isinstance(module, Block):
        for layer in (module.attention.out, module.mlp.down):
            layer.weight.data *= (2 * layers) ** -0.5


class TextEncoder(nn.Module):
    """GLIDE's text Transformer: a caption's tokens become K vectors of width D [GLIDE section 4].

    K is fixed: positions and padding are tables with a row for each place, and every caption fills all places, with
    words or with padding. That costs time for short captions, but makes a batch a rectangle in which nothing is hidden.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tokens = nn.Embedding(config.vocab_size, config.width)
        self.positions = nn.Parameter(torch.empty(config.context, config.width))
        self.padding = nn.Parameter(torch.empty(config.context, config.width))
        self.blocks = nn.ModuleList(Block(config.width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(config.width)
        self.apply(lambda module: init_weights(module, config.layers))
        # A word starts larger than its position, so that it counts more. The released code leaves the last two unset.
        for table, std in (self.tokens.weight, 0.3), (self.positions, 0.02), (self.padding, 0.02):
            nn.init.normal_(table, std=std)

    def embed(self, tokens, mask):
        """tokens [B, K] long, mask [B, K] bool -> [B, K, D], the input of the first block."""
        x = self.tokens(tokens) + self.positions
        return torch.where(mask[..., None], x, self.padding)   # padding replaces the token and its position

    def forward(self, tokens, mask):
        """Captions to vectors.

        tokens  [B, K] integers in 0 … vocab_size-1; K must be the configured context
        mask    [B, K] bool, True where a token is real, False where it is padding
        returns [B, K, D], a vector for each place that depends on all the others
        Raises ValueError for captions of another length.
        """
        if tokens.shape[-1] != self.config.context:
            raise ValueError(f"captions of {tokens.shape[-1]} tokens given, {self.config.context} expected: "
                             f"pad or cut them with tokenizer.pad(ids, {self.config.context})")
        x = self.embed(tokens, mask)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


def encode(texts, words, context, device="cpu"):
    """Captions as an encoder takes them: {"tokens": [B, K] long, "mask": [B, K] bool}, cut or padded to K = context.

    texts  strings;  words  a BPETokenizer (01). Pass the result on with **.
    """
    ids, masks = zip(*(words.pad(words.encode(text), context) for text in texts))
    return {"tokens": torch.tensor(ids, device=device), "mask": torch.tensor(masks, device=device)}


# --- The demonstration -------------------------------------------------------------------------------

# Everything from here on only shows what the code above does. Other files need no more of it than `parameters`.
CAPTION = "a small red heart on a white background"
WEIGHTS = Path(__file__).parent / "lessons" / "weights" / "base.pt"


def parameters(module):
    """The number of a module's parameters."""
    return sum(p.numel() for p in module.parameters())


def course_encoder(path):
    """The text encoder of the small trained model that comes with the course, and its tokenizer.

    A file may only import those before it, which rules out 03's `UNet.load`; so the encoder's weights are picked out
    here. Without the file the encoder is random, which shows the same mechanics.
    """
    if not path.is_file():
        print("(lessons/weights/base.pt is missing, so the encoder is random, and so is who looks at whom.)")
        return TextEncoder(TEXT["tiny"]), tokenizer.world_tokenizer()
    saved = torch.load(path, map_location="cpu", weights_only=True)   # tensors only: the file cannot run code
    encoder = TextEncoder(TextConfig(**saved["config"]["text"]))
    encoder.load_state_dict({key[5:]: value for key, value in saved["weights"].items() if key[:5] == "text."})
    return encoder, tokenizer.load_tokenizer(saved)


def inputs(encoder, words, caption):
    """A caption as the encoder takes it: tokens [1, K] and mask [1, K]."""
    return encode([caption], words, encoder.config.context).values()


def stages(encoder, tokens, mask):
    """The residual stream [B, K, D] before, between and after the blocks, by name."""
    x = encoder.embed(tokens, mask)
    states = {"before block 1": x}
    for n, block in enumerate(encoder.blocks, 1):
        x = states[f"after block {n}"] = block(x)
    return states | {"after the last norm": encoder.norm(x)}


def show_attention():
    """Arithmetic that can be followed with a pencil."""
    q, k = torch.tensor([[2., 0, 0, 0]]), torch.tensor([[1., 0, 0, 0], [0, 1, 0, 0], [-1, 0, 0, 0]])
    v, (a, b, c) = torch.tensor([[100.], [10.], [1.]]), attention_weights(q, k)[0].tolist()
    print("\n1. Attention by hand: one query, three keys, d = 4\n"
          f"   query {q[0].int().tolist()}, keys {k.int().tolist()}, values 100, 10, 1\n"
          f"   q·k = {(q @ k.T)[0].int().tolist()}, divided by √4 = {(q @ k.T / 2)[0].int().tolist()}\n"
          f"   weights e¹, e⁰, e⁻¹ over their sum, 4.086: {a:.3f}, {b:.3f}, {c:.3f}\n"
          f"   result {a:.3f}·100 + {b:.3f}·10 + {c:.3f}·1 = {(attention_weights(q, k) @ v).item():.2f}")


def show_way(encoder, words):
    """Tokens, vectors, and how a noun finds out about its colour."""
    tokens, mask = inputs(encoder, words, CAPTION)
    ids, states = tokens[mask].tolist(), stages(encoder, tokens, mask)
    print(f"\n2. A caption's way through the encoder: {CAPTION!r}\n   "
          + "  ".join(f"{words.decode([i]).replace(' ', '·')} {i}" for i in ids)
          + f"  and {(~mask).sum()} × end {words.end_token}: tokens {list(tokens.shape)}")
    token, place = encoder.tokens.weight[ids[0], 0].item(), encoder.positions[0, 0].item()
    print(f"   by hand: row {ids[0]} of the table begins {token:+.4f}, position 0 {place:+.4f}; their sum"
          f" {states['before block 1'][0, 0, 0]:+.4f}")
    # The same caption with a blue heart: its "heart", the fourth token, starts as the very same vector.
    blue = stages(encoder, *inputs(encoder, words, CAPTION.replace("red", "blue")))
    for name, x in states.items():
        same = F.cosine_similarity(x[0, 3], blue[name][0, 3], dim=0)
        print(f"   {name:<20} {list(x.shape)}   mean {x.mean():+.3f}   std {x.std():.3f}  cosine {same:.3f}")
    print('   cosine: this "heart" compared with that of "a small blue heart …", the same until it sees its colour')


def show_padding(encoder, words):
    """Tokens under the padding have no effect, and the padding itself takes in the caption."""
    (tokens, mask), nothing = inputs(encoder, words, "a red heart"), inputs(encoder, words, "")
    out, other = encoder(tokens, mask), encoder(torch.where(mask, tokens, 7), mask)
    start, end = encoder.embed(*nothing), encoder(*nothing)
    before, after = encoder.embed(tokens, mask)[0, -1] - start[0, -1], out[0, -1] - end[0, -1]
    rows = (start[0] == encoder.padding).all(dim=1)
    print("\n3. Padding: where the mask is False, the token and its position are replaced\n   Other tokens under the"
          f" padding of 'a red heart' change the answer by {(out - other).abs().max():.1f}.\n   Of the empty"
          f" caption's {len(rows)} vectors, {rows.sum()} are learned padding.\n   The last position, with and"
          f" without 'a red heart', differs by {before.abs().max():.1f} before block 1 and by {after.abs().max():.3f}"
          " at the end:\n   padding attends to the words, so its last vector can stand for the whole caption (03).")


def show_order(encoder, words):
    """The same seven words in two orders, with position vectors and without.

    Attention by itself sees a set of words: only the position vectors tell which thing is red.
    """
    captions = "a red heart above a blue star", "a blue heart above a red star"
    print(f"\n4. Order: {captions[0]!r} and {captions[1]!r} are the same set of words")
    kept = encoder.positions.clone()
    for title, factor in ("as they are", 1), ("set to zero", 0):
        encoder.positions.copy_(kept * factor)
        one, two = (encoder(*inputs(encoder, words, caption))[0] for caption in captions)
        heart, star = (one - two)[[2, 6]].abs().amax(dim=1)
        print(f"   position vectors {title}: \"heart\" changes by {heart:.4f}, \"star\" by {star:.4f}")
    encoder.positions.copy_(kept)


def show_sizes():
    """The named sizes, built on the meta device: shapes without memory."""
    print("\n5. The named sizes: a block has 4·D² weights in attention, 8·D² in the MLP, 13·D in biases and norms")
    for name, config in TEXT.items():
        with torch.device("meta"):
            encoder = TextEncoder(config)
        block, total = parameters(encoder.blocks[0]), parameters(encoder)
        print(f"   {name:<16} D {config.width:>4}   {config.layers:>2} blocks × {block:>10,} + tables"
              f" {total - config.layers * block:>11,} = {total:>13,}")


def draw_map(axes, weights, names, title):
    """One head's weights [N, M]: rows look, columns are looked at; weights from 10% up are written out."""
    image = axes.imshow(weights, cmap="magma_r", vmin=0, vmax=1, aspect="auto")
    axes.set_xticks(range(len(names)), [*names[:-1], "all padding"], rotation=40, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(length=0, labelsize=13)
    axes.set_title(title, size=14)
    for row, column in (weights >= 0.1).nonzero().tolist():
        axes.text(column, row, f"{100 * weights[row, column]:.0f}", ha="center", va="center",
                  color="w" if weights[row, column] > 0.5 else "k")
    return image


def save_picture(encoder, words, path):
    """Who looks at whom in CAPTION: a row of panels for each head, a column for each block."""
    from matplotlib.figure import Figure                    # here, so that importing this file stays quick
    tokens, mask = inputs(encoder, words, CAPTION)
    names = [words.decode([i]).strip() for i in tokens[mask]] + ["last position"]
    n, heads, states = mask.sum(), encoder.config.heads, stages(encoder, tokens, mask).values()
    figure = Figure(figsize=(15, 8.5), layout="constrained")
    panels = figure.subplots(heads, len(encoder.blocks), sharex=True, sharey=True, squeeze=False)
    for column, (block, x) in enumerate(zip(encoder.blocks, states)):
        q, k, _ = split_heads(block.attention.qkv(block.norm1(x)), heads)
        for head, look in enumerate(attention_weights(q, k)[0]):                 # [K, K]
            # The padded columns are summed into one, so that a row still adds up to 100%. Of the padded rows only the
            # last is shown, the one that stands for the whole caption in 03.
            look = torch.cat([look[:, :n], look[:, n:].sum(1, keepdim=True)], dim=1)[[*range(n), -1]]
            image = draw_map(panels[head, column], look, names, f"block {column + 1}, head {head + 1}")
    figure.suptitle("Who looks at whom: each row adds up to 100%", size=22)
    figure.colorbar(image, ax=panels, shrink=0.6).set_label("share of a row's attention", size=14)
    path.parent.mkdir(exist_ok=True)
    figure.savefig(path, dpi=110)


@torch.no_grad()
def main(weights=WEIGHTS):
    """The five sections and the picture."""
    torch.manual_seed(0)
    encoder, words = course_encoder(weights)
    show_attention()
    show_way(encoder, words)
    show_padding(encoder, words)
    show_order(encoder, words)
    show_sizes()
    save_picture(encoder, words, OUTPUTS / "02_transformer.png")
    print("\nThe picture is outputs/02_transformer.png. Its lesson: lessons/02_transformer.ipynb.\n"
          "Next: python 03_unet.py lets a noisy image look at these vectors.")


if __name__ == "__main__":
    main()
