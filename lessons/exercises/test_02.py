"""Exercises of lesson 2: integers become meaning."""
from math import erf, exp, sqrt

from expect import close, holds, same
from oracles import far, shaped, silence
from torch import (Tensor, arange, bfloat16, cat, einsum, eye, float64, full, linspace, nn, ones, stack, tensor, tril,
                   where, zeros, zeros_like)
from torch.autograd import grad
from torch.nn.functional import gelu, layer_norm, linear
from torch.nn.functional import scaled_dot_product_attention as fused

B, H, N, M, D = 3, 2, 5, 7, 16      # examples, heads, queries, keys, and the width of a head: all different
UNCHANGED = "what belongs to the caller must not be changed"


def randomize(module, draw):
    """The module with random weights, for zeros hide mistakes."""
    for p in module.parameters():
        p.data = draw(*p.shape) * (0.7 / max(1, p[0].numel()) ** 0.5) + 0.2 * (p.dim() == 1)
    return module.eval()


def learns(asked, got, want, inputs, up, idea):
    """got has the gradients of want with respect to inputs {name: tensor}."""
    close(f"whether {asked} have a gradient", [float(got.requires_grad)], [1.0], idea)
    slopes = grad(got, [*inputs.values()], up.to(got.dtype), allow_unused=True)
    wants = grad(want, [*inputs.values()], up.to(want.dtype))
    for (name, x), slope, wanted in zip(inputs.items(), slopes, wants):
        close(f"the gradient of {name}", zeros_like(x) if slope is None else slope, wanted, idea)


# --- 2.1 attention_weights ---

def trained(*tensors):
    """The same tensors, as they are in training."""
    return [x.clone().requires_grad_() for x in tensors]


def questions(draw):
    """q [B, h, N, d], k [B, h, M, d]"""
    return draw(B, H, N, D), draw(B, H, M, D)


def softmaxed(scores):
    """The softmax over the last axis, in float64."""
    weights = (scores.double() - scores.double().amax(-1, keepdim=True)).exp()
    return weights / weights.sum(-1, keepdim=True)


def test_2_1_a_weight_for_each_query_and_key(m, draw):
    q, k = questions(draw)
    idea = "a row for each query, and in it a weight for each key: q times k transposed"
    shaped(f"the weights of q {list(q.shape)} and k {list(k.shape)}", m.attention_weights(q, k), [B, H, N, M], idea)
    shaped("the weights of q [5, 16] and k [7, 16]", m.attention_weights(q[0, 0], k[0, 0]), [N, M], idea)


def test_2_1_rows_sum_to_one(m, draw):
    weights = m.attention_weights(*questions(draw))
    close("the sums over the keys", weights.sum(-1), ones(B, H, N),
          "the softmax runs over the keys, the last axis: each query has one whole attention to give away")


def test_2_1_all_keys_alike(m, draw):
    q, k = questions(draw)
    close("weights where all keys are the same", m.attention_weights(q, k[:, :, :1].expand(-1, -1, M, -1)),
          full((B, H, N, M), 1 / M), "keys that fit equally well get equal weights")


def test_2_1_divided_by_the_root_of_d(m, rng):
    for d in 4, 16, 64:
        q, k, z = zeros(1, d), zeros(2, d), rng.uniform(1, 2)
        q[0, :2], k[0, 1] = 1.0, z * d ** 0.5
        close(f"the weights for q·k = {z:.3f}·√{d} and 0, where d = {d}", m.attention_weights(q, k),
              [[exp(z) / (exp(z) + 1), 1 / (exp(z) + 1)]],
              "q·k is divided by √d, the root of the width of a head, so that its spread is the same at any width")


def test_2_1_a_fitting_key_weighs_more(m, draw):
    q, k = draw(1, D), draw(1, D)
    close("which of the keys q, k, -q a query q looks at most", m.attention_weights(q, cat([k / 9, q, -q])).argmax(1),
          [1.0], "the larger q·k, the larger the weight")


def test_2_1_in_float32(m, draw):
    q, k = questions(draw)
    for dtype in bfloat16, float64:
        weights = m.attention_weights(q.to(dtype), k.to(dtype))
        shaped("the weights", weights, [B, H, N, M], "a row for each query, a weight for each key")
        same(f"the type of the weights of q and k in {dtype}", str(weights.dtype), "torch.float32",
             "weights are float32, whatever the type of q and k")
    close("the sums of weights in bfloat16", m.attention_weights(q.to(bfloat16), k.to(bfloat16)).sum(-1), ones(B, H, N),
          "the softmax itself runs in float32: in 16 bits its rows no longer sum to one")


def test_2_1_gradients_pass(m, draw):
    q, k = trained(*questions(draw))
    learns("the weights", m.attention_weights(q, k), softmaxed(q @ k.mT / D ** 0.5), {"q": q, "k": k},
           draw(B, H, N, M), "attention is learned: gradients must reach q and k")


def test_2_1_q_and_k_stay_as_they_are(m, draw):
    q, k = questions(draw)
    before = q.clone(), k.clone()
    shaped("the weights", m.attention_weights(q, k), [B, H, N, M], "a row for each query, a weight for each key")
    close("q and k afterwards", cat([q, k], dim=2), cat(before, dim=2), UNCHANGED)


def test_2_1_any_questions(m, draw):
    for shape in (), (2,), (B, H), (2, 3, 2):
        q, k = 2 * draw(*shape, N, D), 2 * draw(*shape, M, D)
        close(f"the weights of q {list(q.shape)} and k {list(k.shape)}", m.attention_weights(q, k),
              softmaxed(einsum("...nd,...md->...nm", q.double(), k.double()) / sqrt(D)), "softmax(q·kᵀ/√d)")


# --- 2.2 attention ---

def soft_lookup(q, k, v, causal=False):
    """softmax(q·kᵀ/√d)·v in float64."""
    scores = q.double() @ k.double().mT / q.shape[-1] ** 0.5
    if causal:
        scores = where(tril(ones(scores.shape[-2:])) > 0, scores, -float("inf"))
    return softmaxed(scores) @ v.double()


def test_2_2_an_answer_for_each_query(m, draw):
    q, k = questions(draw)
    shaped("attention of q [3, 2, 5, 16], k and v [3, 2, 7, 16]", m.attention(q, k, draw(B, H, M, D)), [B, H, N, D],
         "one answer for each query, as wide as a value")


def test_2_2_is_a_mean(m, draw):
    (q, k), v = questions(draw), draw(B, H, 1, D)
    for given in (q, k), trained(q, k):
        close("attention where all values are the same", m.attention(*given, v.expand(-1, -1, M, -1)),
              v.expand(-1, -1, N, -1), "the answer is a weighted mean of the values: the weights sum to one")


def test_2_2_looks_ahead_if_not_causal(m, draw):
    q, k, v = draw(3, B, H, N, D)
    for given in (q, k, v), trained(q, k, v):
        got = m.attention(*given)
        shaped("attention", got, [B, H, N, D], "one answer for each query, as wide as a value")
        holds("attention without causal", "the first query sees one key alone", far(got[:, :, 0], v[:, :, 0]) > 0.1,
              "unless it is causal, each query sees all keys, those to its right too")


def test_2_2_a_fitting_key_decides(m, rng):
    z, d = rng.uniform(1, 2), 4
    q, k, v = zeros(1, 1, 1, d), zeros(1, 1, 2, d), zeros(1, 1, 2, d)
    q[..., 0], k[..., 0, 0], v[..., 0, :] = 1.0, z * d ** 0.5, tensor([100.0, 0, 1, 2])
    for given in (q, k, v), trained(q, k, v):
        close(f"the answer, where q·k is {z:.3f}·√4 and 0", m.attention(*given),
              v[:, :, :1] * (exp(z) / (exp(z) + 1)), "values are weighted by softmax(q·k/√d)")


def test_2_2_causal_is_a_mean_too(m, draw):
    q, k, v = *draw(2, B, H, N, D), draw(B, H, 1, D)
    close("causal attention of the places 1 … 3, where all values are the same",
          m.attention(q, k, v.expand(-1, -1, N, -1), causal=True)[:, :, 1:-1], v.expand(-1, -1, N - 2, -1),
          "what is hidden is hidden before the softmax, so that the other weights sum to one")


def test_2_2_causal_sees_itself(m, draw):
    q, k, v = draw(3, B, H, N, D)
    for given in (q, k, v), trained(q, k, v):
        close("what the first query of a causal attention answers", m.attention(*given, causal=True)[:, :, 0],
              v[:, :, 0], "a causal query sees the keys up to its own place, itself included: the first, only itself")


def test_2_2_causal_sees_nothing_to_the_right(m, draw, rng):
    (q, k, v), at = draw(3, B, H, N, D), rng.randint(1, N - 1)
    after = arange(N).view(N, 1) >= at
    for name, given in ("", lambda x: x), (", in training", lambda x: x.clone().requires_grad_()):
        one, two = (m.attention(given(q), given(a), given(b), causal=True)[:, :, :at]
                    for a, b in ((k, v), (where(after, k + 3, k), where(after, 9 - v, v))))
        close(f"causal answers of places 0 … {at - 1}{name}, after the keys and values from {at} on were changed",
              two, one, "a causal query does not look ahead: keys to its right are hidden, in training too")


def test_2_2_in_the_values_type(m, draw):
    q, k, v = draw(3, B, H, N, D)
    for dtype, tolerance in (float64, 1e-5), (bfloat16, 0.05):
        for causal in False, True:
            for given in (q.to(dtype), k.to(dtype), v.to(dtype)), trained(q.to(dtype), k.to(dtype), v.to(dtype)):
                got, asked = m.attention(*given, causal=causal), f"attention in {dtype}, causal={causal}"
                close(asked, got, soft_lookup(q, k, v, causal), "in any type of numbers it is the same mean",
                      tolerance=tolerance)
                same(f"the type of {asked}", str(got.dtype), str(dtype),
                     "a mean of values has the type of the values, or the next layer cannot take it")


def test_2_2_gradients(m, draw):
    q, k, v = trained(*draw(3, B, H, N, D))
    for causal in False, True:
        learns("the answers", m.attention(q, k, v, causal=causal), fused(q, k, v, is_causal=causal),
               {"q": q, "k": k, "v": v}, draw(B, H, N, D),
               "attention is learned: the same gradients reach q, k and v as with torch's operator")


def test_2_2_any_questions(m, draw):
    for keys in N, M, 1:
        q, k, v = 2 * draw(B, H, N, D), 2 * draw(B, H, keys, D), draw(B, H, keys, D)
        before = q.clone(), k.clone(), v.clone()
        for given in (q, k, v), trained(q, k, v):
            close(f"attention of {N} queries and {keys} keys", m.attention(*given), soft_lookup(q, k, v),
                  "softmax(q·kᵀ/√d)·v")
        close("q, k and v afterwards", cat([q, k, v], dim=2), cat(before, dim=2), UNCHANGED)
    close("causal attention", m.attention(q, q, v[:, :, :1].expand(-1, -1, N, -1) * q, causal=True),
          soft_lookup(q, q, v[:, :, :1] * q, causal=True), "softmax(q·kᵀ/√d)·v over the keys 0 … i")


# --- 2.3 split_heads ---

def split(m, x, heads):
    """q, k and v, stacked."""
    parts = m.split_heads(x, heads)
    holds(f"split_heads(x, {heads})", f"something of type {type(parts).__name__}",
          type(parts) in (list, tuple, Tensor), "q, k and v come back, three tensors")
    same(f"how many tensors split_heads(x, {heads}) returns", len(parts), 3, "q, k and v come back, three tensors")
    for part in parts:
        shaped(f"each part of x {list(x.shape)} with {heads} heads", part,
             [len(x), heads, x.shape[1], x.shape[2] // heads // 3], "each of q, k and v is [B, h, N, d]")
    return stack(list(parts))


def test_2_3_three_parts_of_each_head(m, draw):
    for heads, d in (2, 4), (3, 5), (1, 6):
        split(m, draw(B, N, 3 * heads * d), heads)


def test_2_3_query_key_value(m, draw):
    x = draw(B, N, 3 * D)
    close("q, k and v of a single head", split(m, x, 1)[:, :, 0], stack([x[..., i * D:][..., :D] for i in range(3)]),
          "a head's part holds its query, then its key, then its value")


def test_2_3_places_stay_apart(m):
    x = arange(B * N).view(B, N, 1).expand(B, N, 24).float()
    close("q, k and v where each place holds a number of its own", split(m, x.clone(), 4),
          x[..., :2].view(1, B, 1, N, 2).expand(3, B, 4, N, 2),
          "heads and places change places by a transpose: a view alone would mix up the places")


def test_2_3_heads_are_cut_first(m):
    heads, d = 4, 2
    x = arange(heads).repeat_interleave(3 * d).expand(B, N, -1).float()
    close("q, k and v where each head's part of the last axis holds the head's number", split(m, x.clone(), heads),
          arange(heads).view(1, 1, heads, 1, 1).expand(3, B, heads, N, d).float(),
          "each head's q, k and v lie together: cut the last axis into heads first, and each head's part into three")


def test_2_3_any_heads(m, draw):
    for heads, d in (2, 4), (3, 5), (1, 6), (4, 1):
        x = draw(B, N, 3 * heads * d)
        before, got = x.clone(), split(m, x, heads)
        close(f"q, k and v of {heads} heads", got, stack([
            stack([x[..., (3 * h + i) * d:][..., :d] for h in range(heads)], dim=1) for i in range(3)]),
            "first cut the last axis into heads, then each head's part into q, k and v, and put heads before places")
        close("x afterwards", x, before, UNCHANGED)


# --- 2.4 MLP.__init__ ---

def layers(mlp):
    """The linear layers of an MLP, in order."""
    return [layer for layer in mlp.modules() if isinstance(layer, nn.Linear)]


def times_phi(x):
    """x·Φ(x)"""
    return [[value * (1 + erf(value / sqrt(2))) / 2 for value in row] for row in x.tolist()]


def activation(m, x):
    """What the activation makes of x [..., 3], if it stands between two layers that double and halve."""
    mlp = m.MLP(3).eval()
    for layer, weight in zip(layers(mlp), (2 * eye(12)[:, :3], eye(12)[:3] / 2)):
        layer.weight.data = weight
        layer.bias.data.zero_()
    return 2 * mlp(x / 2)


def test_2_4_four_times_wider_and_back(m, rng):
    width = rng.randint(3, 9)
    mlp = m.MLP(width)
    same(f"the weights of the linear layers of MLP({width})", [list(layer.weight.shape) for layer in layers(mlp)],
         [[4 * width, width], [width, 4 * width]], "four times wider, and back")
    holds("layers with a bias", "a layer without one", all(layer.bias is not None for layer in layers(mlp)),
          "both linear layers have a bias")
    holds("the second layer's name", f"the layers {list(dict(mlp.named_children()))}",
          getattr(mlp, "down", None) is layers(mlp)[1],
          "it is called down: init_weights knows it by this name, and so do files of weights")
    shaped(f"what MLP({width}) answers to [2, 3, {width}]", mlp(zeros(2, 3, width)), [2, 3, width], "as wide as before")


def test_2_4_the_activation_is_a_gelu(m):
    x = linspace(-3, 3, 60).view(-1, 3)
    close("the activation between -3 and 3", activation(m, x), times_phi(x),
          "between the two layers is a GELU, x·Φ(x): not a ReLU, a SiLU or nothing at all", tolerance=0.002)


def test_2_4_the_gelu_is_exact(m):
    x = linspace(-3, 3, 60).view(-1, 3)
    close("the activation between -3 and 3", activation(m, x), times_phi(x),
          "the exact GELU, and not its approximation by a tanh, with which released weights answer a little wrongly",
          tolerance=5e-6)


def test_2_4_nothing_else(m, draw):
    mlp = m.MLP(4).train()
    one, two, x = *layers(mlp), draw(2, 50, 4)
    close("the answer in training", mlp(x), linear(gelu(linear(x, one.weight, one.bias)), two.weight, two.bias),
          "down(gelu(up(x))) is all: no dropout, no norm, no activation at the end", tolerance=1e-5)
    same("the number of parameters", sum(p.numel() for p in mlp.parameters()), 8 * 4 ** 2 + 5 * 4,
         "two weights of four times the square, and two biases, are all that is learned")


def test_2_4_any_weights(m, draw, rng):
    width = rng.randint(3, 9)
    mlp, x = randomize(m.MLP(width), draw), draw(B, N, width)
    one, two = layers(mlp)
    hidden = linear(x.double(), one.weight.double(), one.bias.double())
    close(f"what MLP({width}) answers", mlp(x), linear(gelu(hidden), two.weight.double(), two.bias.double()),
          "down(gelu(up(x)))", tolerance=1e-5)


# --- 2.5 Block.forward ---

def random_block(m, draw, width=8, heads=2):
    return randomize(m.Block(width, heads), draw), 3 * draw(B, N, width) + 2


def normed(norm, x):
    return layer_norm(x, x.shape[-1:], norm.weight, norm.bias)


def test_2_5_the_sum_is_not_normalised(m, draw):
    block, x = random_block(m, draw)
    silence(block.attention.out, block.mlp.down)
    got = block(x.clone())
    shaped("the answer", got, x.shape, "a block changes no shape")
    after = [normed(norm, x) for norm in (block.norm1, block.norm2)]
    after += [normed(block.norm2, after[0])]
    holds("x, from a block whose branches answer zero", "x after a norm", min(far(got, x) for x in after) > 1e-3,
          "pre-norm: the norm is inside the branch, and the sum itself is never normalised")


def test_2_5_branches_are_added(m, draw):
    block, x = random_block(m, draw)
    silence(block.attention.out, block.mlp.down)
    close("the answer of a block whose branches both answer zero", block(x.clone()), x,
          "each branch is added to its input, and never replaces it: x + 0 is x")


def test_2_5_attention_is_added(m, draw):
    block, x = random_block(m, draw)
    silence(block.mlp.down)
    close("the answer of a block whose MLP answers zero", block(x.clone()), x + block.attention(normed(block.norm1, x)),
          "first x + attention(norm1(x)): attention sees the normed x, and its answer is added to x itself")


def test_2_5_the_mlp_is_added(m, draw):
    block, x = random_block(m, draw)
    silence(block.attention.out)
    close("the answer of a block whose attention answers zero", block(x.clone()), x + block.mlp(normed(block.norm2, x)),
          "then x + mlp(norm2(x)): the MLP sees x through the second norm, and its answer is added to x itself")


def test_2_5_the_mlp_sees_what_attention_found(m, draw):
    block, x = random_block(m, draw)
    both = x + block.attention(normed(block.norm1, x)) + block.mlp(normed(block.norm2, x))
    mlp_first = x + block.mlp(normed(block.norm2, x))
    mlp_first = mlp_first + block.attention(normed(block.norm1, mlp_first))
    got = block(x.clone())
    shaped("the answer", got, x.shape, "a block changes no shape")
    holds("first attention, then the MLP, which sees its result", "both side by side", far(got, both) > 1e-3,
          "one after the other: the MLP sees the sum that attention has added to")
    holds("first attention, then the MLP, which sees its result", "the MLP first", far(got, mlp_first) > 1e-3,
          "attention comes first, so that the MLP can digest what it has found")


def test_2_5_any_input(m, draw):
    block, given = random_block(m, draw, 12, 3)
    x, = trained(given)
    middle = x + block.attention(normed(block.norm1, x))
    got, want = block(given), middle + block.mlp(normed(block.norm2, middle))
    close("the answer", got, want, "x = x + attention(norm1(x)), then x + mlp(norm2(x))")
    close("x afterwards", given, x, UNCHANGED)
    learned = {"x": x, "attention.out": block.attention.out.weight, "mlp.down": block.mlp.down.weight}
    learns("the answer", block(x), want, learned, draw(*x.shape), "gradients pass through both branches and the sum")


# --- 2.6 TextEncoder.embed ---

def encoder_of(m, draw, context=6, width=8):
    return randomize(m.TextEncoder(m.TextConfig(30, context, width, 1, 2)), draw)


def captions(draw, context=6):
    """tokens [4, K] and a mask: a full caption, some words, the empty caption, words with gaps."""
    tokens = (1000 * draw(4, context)).long().remainder(30)
    mask = arange(context) < tensor([[context], [2], [0], [0]])
    return tokens, mask | (arange(4).view(4, 1) == 3) & (arange(context) % 2 == 1)


def test_2_6_a_vector_for_each_place(m, draw):
    shaped("embed(tokens [4, 6], mask [4, 6]) with D = 8", encoder_of(m, draw).embed(*captions(draw)), [4, 6, 8],
         "each place of each caption becomes a vector of width D")


def test_2_6_padding_is_learned(m, draw):
    encoder, (tokens, mask) = encoder_of(m, draw), captions(draw)
    got = encoder.embed(tokens, mask)[2]
    holds("an empty caption begins as the padding vectors", "the tokens under it, with their positions",
          far(got, encoder.tokens(tokens)[2] + encoder.positions) > 1e-3,
          "mask is True where a token is real; where it is False, a learned padding vector stands")
    holds("an empty caption begins as the padding vectors", "padding vectors and positions added up",
          far(got, encoder.padding + encoder.positions) > 1e-3,
          "padding replaces the token and its position: nothing of either is left")
    close("an empty caption", got, encoder.padding,
          "where the mask is False the learned padding vector of that place stands instead of everything else")


def test_2_6_a_word_is_its_vector_and_its_place(m, draw):
    encoder, (tokens, mask) = encoder_of(m, draw), captions(draw)
    close("a full caption", encoder.embed(tokens, mask)[0],
          stack([encoder.tokens.weight[i] + place for i, place in zip(tokens[0].tolist(), encoder.positions)]),
          "where the mask is True: the token's vector + the vector of its place")


def test_2_6_tokens_under_the_padding_do_not_matter(m, draw):
    encoder, (tokens, mask) = encoder_of(m, draw), captions(draw)
    close("captions whose tokens differ under the padding only",
          encoder.embed(where(mask, tokens, (tokens + 7) % 30), mask)[:3], encoder.embed(tokens, mask)[:3],
          "where the mask is False, nothing of the token is left")


def test_2_6_each_place_has_its_own_padding(m, draw):
    encoder, (tokens, mask) = encoder_of(m, draw), captions(draw)
    got = encoder.embed(tokens, mask)
    for row in 1, 3:
        close(f"the padded places of a caption with the mask {mask[row].int().tolist()}", got[row][~mask[row]],
              encoder.padding[~mask[row]], "padding keeps its place: each place has a padding vector of its own")
        close(f"the real places of a caption with the mask {mask[row].int().tolist()}", got[row][mask[row]],
              (encoder.tokens(tokens[row]) + encoder.positions)[mask[row]],
              "each caption's own mask decides, place by place")


def test_2_6_all_tables_learn(m, draw):
    encoder, (tokens, mask) = encoder_of(m, draw), captions(draw)
    before = [p.detach().clone() for p in encoder.parameters()]
    got, up = encoder.embed(tokens, mask), draw(4, 6, 8)
    for p, old in zip(encoder.parameters(), before):
        close("the encoder's tables afterwards", p, old, "looking up vectors must not change the tables")
    words = encoder.tokens.weight
    learns("the vectors", got, where(mask[..., None], words[tokens] + encoder.positions, encoder.padding),
           {"tokens": words, "positions": encoder.positions, "padding": encoder.padding}, up,
           "words and their positions learn where the mask is True, padding learns where it is False")


def test_2_6_any_captions(m, draw):
    for context in 1, 4, 9:
        encoder, tokens = encoder_of(m, draw, context, 6), (1000 * draw(5, context)).long().remainder(30)
        mask, rows = draw(5, context) > 0, encoder.tokens(tokens) + encoder.positions
        close(f"embed for {context} places and any mask", encoder.embed(tokens, mask), stack([
            stack([rows[b, k] if mask[b, k].item() else encoder.padding[k] for k in range(context)])
            for b in range(5)]), "token + position where the mask is True, the padding vector of the place elsewhere")
