"""Exercises of lesson 3: noise, a timestep and meaning become a guess at the noise."""
from math import cos, sin

from expect import close, holds, same
from oracles import far, shaped, silence, tried, unchanged
from torch import arange, autocast, bfloat16, cat, eye, float32, no_grad, stack, tensor, zeros, zeros_like
from torch.autograd import grad
from torch.nn.functional import avg_pool2d, silu
from torch.nn.functional import scaled_dot_product_attention as fused

T = tensor([3, 500, 999])


def learns(got, want, inputs, up, oracle=None):
    """got has the gradients with respect to inputs {name: tensor} that want has, or has with respect to oracle's."""
    idea = "gradients run through every branch and reach every weight, or it could not learn"
    close("whether the answer has a gradient", [float(got.requires_grad)], [1.0], idea)
    slopes, wants = grad(got, [*inputs.values()], up, allow_unused=True), grad(want, oracle or [*inputs.values()], up)
    for (name, x), slope, wanted in zip(inputs.items(), slopes, wants):
        close(f"the gradient of {name}", zeros_like(x) if slope is None else slope, wanted, idea, tolerance=3e-3)


def randomize(module, draw):
    """The module with random weights, in use and not in training: zeros would hide mistakes."""
    for p in module.parameters():
        p.data = draw(*p.shape) * (0.7 / max(1, p[0].numel()) ** 0.5) + 0.3 * (p.dim() == 1)
    return module.eval()


# --- 3.1 timestep_embedding ---

def waves(t, dim):
    """The rows by a pocket calculator: cosines, then sines."""
    half = dim // 2
    angles = [[step * 10000 ** (-i / half) for i in range(half)] for step in t]
    return [[*map(cos, row), *map(sin, row)] for row in angles]


def test_3_1_a_row_for_each_timestep(m):
    for dim in 2, 8, 12:
        row = m.timestep_embedding(T, dim)
        shaped(f"timestep_embedding(t [3], {dim})", row, [3, dim], "a row of dim numbers for each timestep")
        same("their type", str(row.dtype), str(float32), "the embedding is float32, though timesteps are integers")


def test_3_1_cosines_first(m):
    close("t = 0", m.timestep_embedding(tensor([0, 0]), 8), [[1, 1, 1, 1, 0, 0, 0, 0]] * 2,
          "cosines first, then sines: at t = 0 all cosines are 1 and all sines are 0")


def test_3_1_the_fastest_turns_by_t(m, rng):
    t = rng.randint(1, 9)
    row = m.timestep_embedding(tensor([t, t]), 8)[0]
    close(f"the first cosine and the first sine for t = {t}", row[[0, 4]], [cos(t), sin(t)],
          "the fastest wave comes first and turns by t itself: t·10000^0, an angle in radians")


def test_3_1_all_the_cosines_before_all_the_sines(m, rng):
    t = rng.randint(1, 3)
    row = m.timestep_embedding(tensor([t, t]), 12)[0]
    close(f"cos² + sin² of each wave for t = {t}", row[:6] ** 2 + row[6:] ** 2, [1.0] * 6,
          "first the cosines of all waves, then the sines of the same waves in the same order, not in turns")


def test_3_1_from_fast_to_slow(m):
    for half in 2, 4, 16:
        sines = m.timestep_embedding(tensor([1, 1]), 2 * half)[0, half:]
        close(f"the sines for t = 1 and dim = {2 * half}", sines, [sin(10000 ** (-i / half)) for i in range(half)],
              "frequencies fall from 1 as 10000^(-i/half) with half = dim/2: the exponent is never quite 1",
              tolerance=1e-5)


def test_3_1_fractions_and_mixed_timesteps(m, rng):
    t = [rng.uniform(0, 20) for _ in range(5)]
    close(f"timesteps that are no integers, {[round(step, 3) for step in t]}", m.timestep_embedding(tensor(t), 8),
          waves(tensor(t).tolist(), 8), "any real number works as a timestep, and each has a row of its own")


def test_3_1_any_timesteps(m, rng):
    for dim in 4, 8, 32:
        t = [rng.randint(0, 999) for _ in range(6)]
        given = tensor(t)
        close(f"t = {t}, dim = {dim}", m.timestep_embedding(given, dim), waves(t, dim),
              "[cos, sin] of t·10000^(-i/half) for i < half", tolerance=1e-3)
        unchanged("timestep_embedding(t, dim)", (given, tensor(t)))


# --- 3.2 ResBlock.forward ---

def block_of(m, draw, resample=None, out=12, dropout=0.0):
    """A block of 8 channels with random weights, an image that is not square, and a vector for each example."""
    block = randomize(m.ResBlock(8, out, 10, groups=4, resample=resample, dropout=dropout), draw).double()
    return block, 2 * draw(3, 8, 4, 6).double() + 1, draw(3, 10).double()


def resized(x, resample):
    """The mean of each 2×2 square, or each pixel four times."""
    if resample == "down":
        return avg_pool2d(x, 2)
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3) if resample else x


def hidden(block, x, emb):
    """What the last convolution is given, as a formula; without dropout."""
    scale, shift = block.scale_shift(emb)[..., None, None].chunk(2, dim=1)
    h = block.norm2(block.conv1(resized(silu(block.norm1(x)), block.resample)))
    return silu(h + scale * h + shift)


def written_out(block, x, emb):
    """The whole block as a formula; without dropout."""
    return block.skip(resized(x, block.resample)) + block.conv2(hidden(block, x, emb))


def test_3_2_the_size_that_is_asked_for(m, draw):
    for how, size in ("down", (2, 2)), (None, (4, 6)), ("down", (4, 6)), ("up", (4, 6)):
        block, _, emb = block_of(m, draw, how)
        factor, x = {"down": 0.5, "up": 2}.get(how, 1), draw(3, 8, *size).double()
        idea = "both the branch and the identity are resized, so that they can be added"
        asked = f"the answer to x {list(x.shape)} with resample={how!r} and 12 channels"
        shaped(asked, tried(asked, lambda: block(x, emb), idea), [3, 12, *(int(side * factor) for side in size)], idea)


def test_3_2_the_identity_is_kept(m, draw):
    for out in 8, 12:
        block, x, emb = block_of(m, draw, out=out)
        silence(block.conv2)
        close(f"the answer of a block from 8 to {out} channels whose last convolution answers zero",
              block(x.clone(), emb), block.skip(x),
              "the block adds to its input: x + 0 is x, or skip(x) if the number of channels changes")


def test_3_2_the_identity_is_resized(m, draw):
    for how in "down", "up":
        block, x, emb = block_of(m, draw, how)
        silence(block.conv2)
        close(f"the answer of a block with resample={how!r} whose last convolution answers zero", block(x.clone(), emb),
              block.skip(resized(x, how)), "the identity is resized too: the mean of 2×2, or each pixel 4 times")


def test_3_2_the_one_of_adagn(m, draw):
    block, x, emb = block_of(m, draw)
    silence(block.scale_shift)
    got = block(x.clone(), emb)
    shaped("the answer", got, [3, 12, 4, 6], "as many channels as were asked for")
    inside = (got - block.skip(x))[:, :, 1:-1, 1:-1].flatten(2)
    holds("the answer where scale and shift are zero", "nothing that depends on the place",
          far(inside, inside.mean(2, keepdim=True)) > 1e-3,
          "AdaGN multiplies by 1 + scale: a scale of zero leaves the norm as it is, and does not wipe it out")


def test_3_2_scale_comes_first(m, draw):
    block, x, emb = block_of(m, draw)
    got = block(x.clone(), emb)
    for p in block.scale_shift.parameters():
        p.data = p.data.roll(12, 0)
    shaped("the answer", got, [3, 12, 4, 6], "as many channels as were asked for")
    holds("the first half of what scale_shift answers is the scale", "the answer if it is the shift",
          far(got, written_out(block, x, emb)) > 1e-3, "scale comes first, then shift")


def test_3_2_norm_first_then_scale_and_shift(m, draw):
    block, x, emb = block_of(m, draw)
    silence(block.scale_shift)
    block.scale_shift.bias.data = draw(24).double() + 1
    close("the answer for a scale and a shift that are the same for all examples", block(x.clone(), emb),
          written_out(block, x, emb), "conv(SiLU(norm1(x))), then AdaGN: first norm2, then (1 + scale)·h + shift, whose"
          " scale is the first half of what scale_shift answers; then conv(SiLU(h))")


def test_3_2_emb_as_it_is(m, draw):
    block, x, emb = block_of(m, draw)
    close("the answer to an emb with negative numbers", block(x.clone(), -emb.abs()), written_out(block, x, -emb.abs()),
          "emb has been through its SiLU already, and each example has a scale and a shift of its own")


def test_3_2_the_branch_is_resized_before_its_convolution(m, draw):
    for how in "down", "up":
        block, x, emb = block_of(m, draw, how)
        close(f"the answer with resample={how!r}", block(x.clone(), emb), written_out(block, x, emb),
              "the branch is resized between SiLU and the first convolution, which works at the new size")


def test_3_2_dropout_in_training_only(m, draw):
    (block, x, emb), given = block_of(m, draw, dropout=0.5), []
    close("two answers of a block that is not in training", block(x.clone(), emb), block(x.clone(), emb),
          "outside training nothing is dropped: use self.dropout, which knows")
    block.conv2.register_forward_pre_hook(lambda layer, args: given.append(args[0]))
    got = block.train()(x.clone(), emb)
    left = given[0] != 0
    holds("what the last convolution is given in training, with dropout 0.5", "all of it, and nothing was dropped",
          left.sum().item() < left.numel(), "in training self.dropout drops numbers before the last convolution")
    close("what of it is left in training", given[0], 2 * left * hidden(block, x, emb),
          "dropout comes after the SiLU, just before the last convolution; what is left is doubled to make up for it")
    close("the answer in training", got, block.skip(x) + block.conv2(given[0]),
          "what is dropped is the last convolution's input, neither its answer nor the identity")


def test_3_2_any_block(m, draw):
    for how in None, "down", "up":
        for out in 8, 12:
            block, x, emb = block_of(m, draw, how, out)
            before = x.clone(), emb.clone()
            close(f"the answer of a block from 8 to {out} channels with resample={how!r}", block(x, emb),
                  written_out(block, x, emb), "norm, SiLU, resize, conv; AdaGN, SiLU, dropout, conv; + the identity")
            unchanged("block(x, emb)", (x, before[0]), (emb, before[1]))


def test_3_2_everything_learns(m, draw):
    block, x, emb = block_of(m, draw, "down")
    inputs = {**dict(block.named_parameters()), "x": x.requires_grad_()}
    learns(block(x, emb), written_out(block, x, emb), inputs, draw(3, 12, 2, 3).double())


# --- 3.3 TextAttention.forward ---

def attention_of(m, draw, words=5):
    """A layer of 8 channels and 2 heads with random weights, an image of 3×4, and keys and values of some words."""
    layer = randomize(m.TextAttention(8, 4, 6, groups=4), draw).double()
    return layer, 2 * draw(3, 8, 3, 4).double() + 1, tuple(draw(3, 2, words, 4).double() for _ in range(2))


def attended(layer, x, text_kv):
    """The whole layer as a formula."""
    parts = layer.qkv(layer.norm(x).flatten(2).mT).split(4, dim=-1)
    q, k, v = (stack([parts[i], parts[3 + i]], dim=1) for i in range(3))
    seen = fused(q, cat([k, text_kv[0]], dim=2), cat([v, text_kv[1]], dim=2))
    return x + layer.out(cat([seen[:, 0], seen[:, 1]], dim=-1)).mT.reshape(x.shape)


def seen_by(layer, x, text_kv):
    """What is added to x."""
    idea = "words and places are joined along the token axis, and the answer has the image's shape"
    got = tried("the answer to x [3, 8, 3, 4] and 5 words", lambda: layer(x.clone(), text_kv), idea)
    shaped("the answer to x [3, 8, 3, 4]", got, x.shape, idea)
    return got - x


def test_3_3_adds_to_x(m, draw):
    layer, x, text_kv = attention_of(m, draw)
    silence(layer.out)
    close("what a layer whose last part answers zero changes", seen_by(layer, x, text_kv), zeros(3, 8, 3, 4),
          "what was seen is added to x itself, not to the normed x, and does not replace it")


def test_3_3_places_see_places(m, draw):
    layer, x, (keys, values) = attention_of(m, draw)
    seen = seen_by(layer, x, (keys, 0 * values))
    holds("attention to words whose values are all zero", "the same for all images, whatever they show",
          far(seen, layer.out.bias.view(-1, 1, 1)) > 1e-3,
          "the text's keys and values are joined to the image's, and do not replace them")


def test_3_3_places_see_words(m, draw):
    layer, x, text_kv = attention_of(m, draw)
    other = tuple(3 * part + 1 for part in text_kv)
    holds("attention to other words", "the same answer", far(
        seen_by(layer, x, text_kv), seen_by(layer, x, other)) > 1e-3,
        "every place attends to the caption as well: its keys and values are in text_kv")


def test_3_3_one_softmax(m, draw, rng):
    words = rng.randint(2, 9)
    layer, x, (keys, values) = attention_of(m, draw, words)
    silence(layer.qkv, layer.out)
    layer.out.weight.data = eye(8).double()
    close(f"attention to {words} words of value 1 and 12 places of value 0, which all fit alike",
          seen_by(layer, x, (0 * keys + 1, 0 * values + 1)), zeros(3, 8, 3, 4) + words / (words + 12),
          "one softmax over words and places together: a place divides its attention among all of them, once")


def test_3_3_keys_belong_to_their_values(m, draw, rng):
    layer, x, (keys, _) = attention_of(m, draw)
    silence(layer.qkv, layer.out)
    layer.out.weight.data, layer.qkv.bias.data = eye(8).double(), layer.qkv.bias.data + 5     # q, k and v are all 5
    word, values = rng.randrange(5), draw(3, 1, 5, 1).double()
    keys[:], keys[:, :, word] = -9, 90
    close(f"attention where only word {word} fits", seen_by(layer, x, (keys, values.expand(keys.shape))),
          values[:, :, word, :, None].expand(x.shape),
          "text_kv is keys, then values, and both are joined to the image's in the same order")


def test_3_3_attention_sees_the_norm(m, draw):
    layer, x, text_kv = attention_of(m, draw)
    close("what is added to an image that is ten times as bright", seen_by(layer, 10 * x, text_kv),
          seen_by(layer, x, text_kv), "attention sees self.norm(x), for which brightness does not matter",
          tolerance=1e-3)


def test_3_3_places_come_back_where_they_were(m, draw, rng):
    layer, x, text_kv = attention_of(m, draw)
    order = list(range(12))
    rng.shuffle(order)
    close("attention of an image whose places were shuffled, and put back in order afterwards",
          seen_by(layer, x.flatten(2)[..., order].view_as(x), text_kv).flatten(2),
          seen_by(layer, x, text_kv).flatten(2)[..., order],
          "places have no order of their own: what a place has seen must come back to this very place")


def test_3_3_each_head_for_itself(m, draw):
    layer, x, text_kv = attention_of(m, draw)
    close("attention with two heads", layer(x.clone(), text_kv), attended(layer, x, text_kv),
          "heads stay apart: split_heads makes each head's q, k and v of what self.qkv answers, in this order, each"
          " query looks for keys and gets their values, and merge_heads puts the heads side by side again")


def test_3_3_any_image(m, draw):
    for height, width, words in (3, 4, 5), (5, 2, 1), (1, 7, 9):
        layer, _, (keys, values) = attention_of(m, draw, words)
        x = 2 * draw(3, 8, height, width).double().requires_grad_()
        before, want = (x.clone(), keys.clone(), values.clone()), attended(layer, x, (keys, values))
        got = layer(x, (keys, values))
        close(f"attention of {height}×{width} places to themselves and {words} words", got, want,
              "x + out(attention(q, text's and image's keys, text's and image's values)): one softmax, with"
              " q, k and v as split_heads gives them")
        unchanged("attention(x, text_kv)", *zip((x, keys, values), before))
        learned = {name: p for name, p in layer.named_parameters() if not name.startswith("text_kv")}
        learns(got, want, {**learned, "x": x}, draw(*x.shape).double())


# --- 3.4 UNet.forward ---

def unet_of(m, course, draw, multipliers=(1, 1, 1), blocks=2, attention=(1, 2)):
    """A tiny U-Net with random weights. All its levels are equally wide, so that no shape tells skips apart."""
    config = m.UNetConfig(8, multipliers, blocks, attention, 3, 6, head_channels=4, dropout=0.0, groups=4,
                          text=course[2].TextConfig(30, 5, 8, 1, 2))
    return randomize(m.UNet(config), draw)


def question(draw):
    """x, t, and captions: a full one, one of two words, the empty one."""
    tokens = (1000 * draw(3, 5)).long().remainder(30)
    return draw(3, 3, 8, 12), T.clone(), {"tokens": tokens, "mask": arange(5) < tensor([[5], [2], [0]])}


STATES = ("skips are a stack: each state of the way down is pushed, the first convolution's, each block's and each"
          " halving's, and each is popped once")


class Watched:
    """What goes into the parts of a U-Net and what comes out of them in one call, in the order of the calls."""

    def __init__(self, network, draw):
        self.went, self.came, self.network = {}, {}, network
        for part in network.modules():
            part.register_forward_hook(self.note, with_kwargs=True)
        x, t, cond = question(draw)
        with no_grad():
            self.cond = network.prepare(**cond)
            self.answer = tried("a call of the network", lambda: network(x, t, **self.cond), STATES)
            self.emb = silu(network.time(tensor(waves(t.tolist(), 8))) + self.cond["pooled"])

    def note(self, part, args, named, answer):
        self.went.setdefault(part, []).append([*args, *named.values()])
        self.came.setdefault(part, []).append(answer)

    def into(self, part, place=0):
        """What went into a part: its first argument, or another one."""
        holds("each part of the network runs once", f"{len(self.went.get(part, []))} times, for one of them",
              len(self.went.get(part, [])) == 1, "every block, the middle ones too, runs once in each call")
        return self.went[part][0][place]

    def after(self, block):
        """What came out of a block: of its attention, or of its residual block if there is none."""
        part = getattr(block, "attention", None) or getattr(block, "res", None) or block
        self.into(part)
        return self.came[part][0]

    def way(self, levels):
        """The parts of these levels, in the order in which they run."""
        return [part for level in levels for part in (*level.blocks, level.resample) if part]

    def running(self):
        """All blocks and resamplings, in the order in which they run."""
        return [*self.way(self.network.down), *self.network.middle, *self.way(self.network.up)]

    def ups(self):
        return [block for level in self.network.up for block in level.blocks]


def test_3_4_time_as_waves(m, course, draw):
    network, (x, t, cond) = unet_of(m, course, draw), question(draw)
    network.time[0].register_forward_pre_hook(lambda layer, given: close(
        "what network.time is given", given[0], waves(T.tolist(), 8),
        "time enters as timestep_embedding(t, config.channels), a row for each image's own t", tolerance=1e-3))
    tried("a call of the network", lambda: network(x, t, **network.prepare(**cond)), STATES)


def test_3_4_every_state_is_pushed(m, course, draw):
    watched = Watched(unet_of(m, course, draw), draw)
    same("how many channels come into the blocks of the way up", [watched.into(b.res).shape[1] for b in watched.ups()],
         [b.res.norm1.num_channels for b in watched.ups()], STATES)
    shaped("the answer to x [3, 3, 8, 12]", watched.answer, [3, 6, 8, 12], "as large as x: the noise, and its variance")
    same("its type", str(watched.answer.dtype), str(float32), "the answer is float32")


def test_3_4_skips_come_second(m, course, draw):
    watched = Watched(unet_of(m, course, draw), draw)
    below, first = watched.after(watched.network.middle[1]), watched.into(watched.ups()[0].res)
    holds("the first block on the way up gets [h, skip]", "the skip first", far(first[:, -8:], below) > 1e-4,
          "the order of what is concatenated: what comes from below is first and the skip is second")


def test_3_4_the_way_runs_on(m, course, draw):
    watched = Watched(unet_of(m, course, draw), draw)
    way = [watched.network.input_conv, *watched.running()]
    for before, part in zip(way, way[1:]):
        h = watched.after(before)
        close("what goes into a part of the network, but for the skip", watched.into(getattr(part, "res", part))
              [:, :h.shape[1]], h, "one after the other: down with its resampling, the middle, up with its resampling")
    with no_grad():
        close("the answer", watched.answer, watched.network.output(watched.after(way[-1])),
              "self.output makes the answer of what the last block on the way up leaves")


def test_3_4_skips_are_a_stack(m, course, draw):
    watched = Watched(unet_of(m, course, draw), draw)
    pushed = watched.network.input_conv, *watched.way(watched.network.down)
    for i, (block, skip) in enumerate(zip(watched.ups(), map(watched.after, reversed(pushed)))):
        close(f"the skip of block {i} on the way up", watched.into(block.res)[:, -skip.shape[1]:], skip,
              "skips are a stack: what was pushed last on the way down is popped first")


def test_3_4_time_and_caption_make_one_vector(m, course, draw):
    watched = Watched(unet_of(m, course, draw), draw)
    for part in watched.running():
        close("emb, which goes into every residual block", watched.into(getattr(part, "res", part), 1), watched.emb,
              "one vector for all blocks: SiLU of time(timestep_embedding(t)) + pooled, the sum and then the SiLU",
              tolerance=1e-3)


def test_3_4_each_attention_has_its_own_text(m, course, draw):
    watched = Watched(unet_of(m, course, draw), draw)
    layers = [block.attention for block in watched.running() if getattr(block, "attention", None)]
    for layer, pair in zip(layers, watched.cond["text_kv"]):
        close("the text keys and values of an attention layer", stack(list(watched.into(layer, 1))), stack(list(pair)),
              "each attention layer takes the next pair of text_kv: down, middle, up")


def test_3_4_prepared_or_not(m, course, draw):
    network, (x, t, cond) = unet_of(m, course, draw), question(draw)
    idea = "prepare saves time and changes nothing: what it made is used again at each step, and not used up"
    with no_grad():
        prepared = network.prepare(**cond)
        want = tried("an answer to tokens and mask", lambda: network(x, t, **cond), idea)
        count = len(prepared["text_kv"])
        for call in "first", "second":
            asked = f"the {call} answer with what prepare made of the caption"
            close(asked, tried(asked, lambda: network(x, t, **prepared), idea), want, idea)
    same("pairs that are left in text_kv", len(prepared["text_kv"]), count, "what belongs to the caller is not changed")


def test_3_4_answers_in_float32(m, course, draw):
    network, (x, t, cond) = unet_of(m, course, draw), question(draw)
    with no_grad(), autocast("cpu", bfloat16):
        got = network(x, t, **cond)
    same("the type of an answer whose products were computed in 16 bits (torch.autocast, as in training)",
         str(got.dtype), str(float32), "the answer is float32 even if what is inside is not: .float() at the end")


def test_3_4_examples_do_not_meet(m, course, draw):
    network, (x, t, cond) = unet_of(m, course, draw), question(draw)
    idea = "an image's answer depends on its own t and its own caption, and on no other image"
    with no_grad():
        got = tried("an answer", lambda: network(x, t, **cond), idea)
        alone = [network(x[i:i + 1], t[i:i + 1], **{k: v[i:i + 1] for k, v in cond.items()}) for i in range(3)]
    close("three images at three timesteps with three captions, in one batch", got, cat(alone), idea, tolerance=1e-3)


def test_3_4_any_network(m, course, draw):
    for multipliers, blocks, attention in ((1, 1, 2), 2, (0, 2)), ((1,), 1, ()), ((1, 2), 1, (1,)):
        network, (x, t, cond) = unet_of(m, course, draw, multipliers, blocks, attention), question(draw)
        oracle, before = course[3].UNet(network.config).eval(), x.clone()
        oracle.load_state_dict(network.state_dict())
        asked = f"the answer of a network with the multipliers {multipliers}"
        idea = "down, keeping every state; the middle; up, popping them; output"
        got, want = tried(asked, lambda: network(x, t, **cond), idea), oracle(x, t, **cond)
        close(asked, got, want, idea, tolerance=1e-3)
        unchanged("network(x, t, tokens=tokens, mask=mask)", (x, before))
    learns(got, want, dict(network.named_parameters()), draw(3, 6, 8, 12), [*oracle.parameters()])
