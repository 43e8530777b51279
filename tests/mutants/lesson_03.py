"""Wrong solutions of lesson 3's exercises, and right but odd ones. See tests/test_exercises.py."""

# What is replaced more than once
FREQUENCIES = ("frequencies = torch.exp(-math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device)"
               " / half)")
ANGLES = "angles = t[:, None].float() * frequencies                     # [B, half]"
WAVES = "return torch.cat([angles.cos(), angles.sin()], dim=1)"
BRANCH = "h = self.conv1(self._resize(F.silu(self.norm1(x))))"
SPLIT = "scale, shift = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)"
ADAGN = "h = torch.addcmul(shift, self.norm2(h), 1 + scale)"
SUM = "return self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))"
PLACES = "places = self.norm(x).flatten(2).transpose(1, 2)"
HEADS = "q, k, v = transformer.split_heads(self.qkv(places), self.heads)"
JOINED = "k, v = (torch.cat(both, dim=2) for both in zip(text_kv, (k, v)))"
SEEN = "seen = self.out(transformer.merge_heads(transformer.attention(q, k, v)))"
BACK = "return x + seen.transpose(1, 2).unflatten(2, x.shape[2:])"
EMB = "emb = F.silu(self.time(timestep_embedding(t, self.config.channels).to(pooled.dtype)) + pooled)"
FIRST = "        skips = [h]\n"
DOWN = """            for block in level.blocks:
                h = block(h, emb, text_kv)
                skips.append(h)
            if level.resample:
                h = level.resample(h, emb)
                skips.append(h)
"""
MIDDLE = """        for block in self.middle:
            h = block(h, emb, text_kv)
"""
UP = "h = block(torch.cat([h, skips.pop()], dim=1), emb, text_kv)"
PAIRS = "text_kv = iter(text_kv)"
OUTPUT = "return self.output(h.float()).float()"

# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 3.1 timestep_embedding
    ("3.1", WAVES, "return torch.cat([angles.sin(), angles.cos()], dim=1)", "cosines first"),
    ("3.1", WAVES, "return torch.stack([angles.cos(), angles.sin()], dim=2).flatten(1)", "cosines first"),
    ("3.1", WAVES, "return torch.cat([angles.cos(), angles.sin().flip(1)], dim=1)", "sine"),
    ("3.1", WAVES, "return torch.cat([angles.cos(), -angles.sin()], dim=1)", "turns by t itself"),
    ("3.1", WAVES, "return torch.cat([angles.cos(), angles.cos()], dim=1)", "cosines first"),
    ("3.1", WAVES, "return torch.cat([angles.cos(), angles.sin()], dim=0)", "a row of dim numbers"),
    ("3.1", WAVES, "return torch.cat([angles.cos(), angles.sin()], dim=1).to(t.dtype)", "float32"),
    ("3.1", WAVES, "return torch.cat([angles.cos(), angles.sin()], dim=1).double()", "float32"),
    ("3.1", WAVES, "return torch.cat([angles.cos(), angles.sin()], dim=1)[:1].expand(len(t), -1)",
     "each has a row of its own"),
    ("3.1", FREQUENCIES, FREQUENCIES.replace("/ half)", "/ (half - 1))"), "the exponent is never quite 1"),
    ("3.1", FREQUENCIES, FREQUENCIES.replace("/ half)", "/ dim)"), "half = dim/2"),
    ("3.1", FREQUENCIES, FREQUENCIES.replace("/ half)", "/ (half + 1))"), "half = dim/2"),
    ("3.1", FREQUENCIES, FREQUENCIES.replace("10000", "1000"), "10000^(-i/half)"),
    ("3.1", FREQUENCIES, FREQUENCIES.replace("-math", "math"), "10000^(-i/half)"),
    ("3.1", FREQUENCIES, FREQUENCIES + ".flip(0)", "the fastest wave comes first"),
    ("3.1", FREQUENCIES, FREQUENCIES.replace("arange(half", "arange(1, half + 1"), "the fastest wave comes first"),
    ("3.1", FREQUENCIES, "frequencies = torch.linspace(1, 1 / 10000, half)", "frequencies fall from 1"),
    ("3.1", FREQUENCIES, "frequencies = torch.logspace(0, -4, half)", "the exponent is never quite 1"),
    ("3.1", FREQUENCIES, FREQUENCIES + " * 2 * math.pi", "an angle in radians"),
    ("3.1", FREQUENCIES, FREQUENCIES + " * math.pi / 180", "an angle in radians"),
    ("3.1", ANGLES, "angles = t[:, None].long() * frequencies", "any real number works"),
    ("3.1", ANGLES, "angles = t[:, None].float() / 1000 * frequencies", "turns by t itself"),
    ("3.1", ANGLES, "angles = (t[:, None].float() + 1) * frequencies", "at t = 0"),
    ("3.1", ANGLES, "angles = t[:, None].float() / frequencies", "10000^(-i/half)"),
    # 3.2 ResBlock.forward
    ("3.2", SUM, "return self.skip(x) + self.conv2(self.dropout(F.silu(h)))", "both the branch and the identity"),
    ("3.2", BRANCH, "h = self.conv1(F.silu(self.norm1(x)))", "both the branch and the identity"),
    ("3.2", SUM, "return self.conv2(self.dropout(F.silu(h)))", "the block adds to its input"),
    ("3.2", SUM, "return self.skip(self._resize(self.norm1(x))) + self.conv2(self.dropout(F.silu(h)))",
     "the block adds to its input"),
    ("3.2", SUM, "return self.skip(self._resize(F.silu(x))) + self.conv2(self.dropout(F.silu(h)))",
     "the block adds to its input"),
    ("3.2", SUM, "return self.skip(self._resize(x)) + self.conv2(self.dropout(h))", "conv(SiLU(h))"),
    ("3.2", SUM, "return self.skip(self._resize(x)) + self.dropout(self.conv2(F.silu(h)))",
     "before the last convolution"),
    ("3.2", SUM, "return self.skip(self._resize(x)) + self.conv2(F.silu(self.dropout(h)))", "after the SiLU"),
    ("3.2", SUM, "return self.skip(self._resize(x.detach())) + self.conv2(self.dropout(F.silu(h)))", "gradients run"),
    ("3.2", ADAGN + "   # AdaGN: (1 + s)·GroupNorm(h) + b  [ADM section 3]\n        " + SUM, ADAGN + "\n        "
     "return self.dropout(self.skip(self._resize(x)) + self.conv2(F.silu(h)))", "before the last convolution"),
    ("3.2", SUM, "return self.dropout(self.skip(self._resize(x))) + self.conv2(self.dropout(F.silu(h)))",
     "nor the identity"),
    ("3.2", SUM, "return self.skip(self._resize(x)) + self.conv2(F.silu(h))", "in training self.dropout drops"),
    ("3.2", SUM, "return self.skip(self._resize(x)) + self.conv2(F.dropout(F.silu(h), self.dropout.p))",
     "outside training nothing is dropped"),
    ("3.2", SUM, "return self.skip(self._resize(x)) + F.silu(self.conv2(self.dropout(h)))", "conv(SiLU(h))"),
    ("3.2", SUM, "return self.skip(self._resize(x)) - self.conv2(self.dropout(F.silu(h)))", "AdaGN"),
    ("3.2", SUM, "x += 0 * x + 0.1\n        return self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))",
     "x + 0 is x"),
    ("3.2", SUM, "out = self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))\n"
     "        x.data.mul_(2)\n        return out", "norm, SiLU, resize"),
    ("3.2", SUM, "return (self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h)))) / 2 ** 0.5", "x + 0 is x"),
    ("3.2", SUM, "return self.skip(self._resize(x)) + self.conv2(self.dropout(F.silu(h))).detach()", "gradients run"),
    ("3.2", SUM, "x = F.interpolate(x, size=h.shape[2:])\n"
     "        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))", "the mean of 2×2"),
    ("3.2", SUM, "x = F.interpolate(x, size=h.shape[2:], mode='bilinear')\n"
     "        return self.skip(x) + self.conv2(self.dropout(F.silu(h)))", "each pixel 4 times"),
    ("3.2", ADAGN, "h = torch.addcmul(shift, self.norm2(h), scale)", "multiplies by 1 + scale"),
    ("3.2", ADAGN, "h = torch.addcmul(shift + 1, self.norm2(h), scale)", "multiplies by 1 + scale"),
    ("3.2", ADAGN, "h = self.norm2(h) * (1 - scale) + shift", "first half of what scale_shift"),
    ("3.2", ADAGN, "h = (self.norm2(h) + shift) * (1 + scale)", "first norm2, then (1 + scale)·h + shift"),
    ("3.2", ADAGN, "h = self.norm2(h * (1 + scale) + shift)", "first norm2"),
    ("3.2", ADAGN, "h = torch.addcmul(shift, h, 1 + scale)", "norm"),
    ("3.2", ADAGN, "h = self.norm2(h) * (1 + scale)", "first norm2, then (1 + scale)·h + shift"),
    ("3.2", ADAGN, "h = self.norm2(h) + shift", "first half of what scale_shift"),
    ("3.2", ADAGN, "h = self.norm2(h)", "first half of what scale_shift"),
    ("3.2", ADAGN, "h = torch.addcmul(shift, F.silu(self.norm2(h)), 1 + scale)", "norm"),
    ("3.2", ADAGN, "h = torch.addcmul(shift, self.norm2(h), scale.exp())", "first half of what scale_shift"),
    ("3.2", SPLIT, "shift, scale = self.scale_shift(emb)[:, :, None, None].chunk(2, dim=1)",
     "scale comes first"),
    ("3.2", SPLIT, "both = self.scale_shift(emb)[:, :, None, None]\n"
     "        scale, shift = both[:, ::2], both[:, 1::2]", "first half of what scale_shift"),
    ("3.2", SPLIT, "scale, shift = self.scale_shift(F.silu(emb))[:, :, None, None].chunk(2, dim=1)",
     "through its SiLU already"),
    ("3.2", SPLIT, "scale, shift = self.scale_shift(emb[:1])[:, :, None, None].chunk(2, dim=1)",
     "each example has a scale"),
    ("3.2", SPLIT, "scale, shift = self.scale_shift(emb.mean(0, True))[:, :, None, None].chunk(2, dim=1)",
     "each example has a scale"),
    ("3.2", SPLIT, "scale, shift = self.scale_shift(emb).detach()[:, :, None, None].chunk(2, dim=1)", "gradients run"),
    ("3.2", BRANCH, "h = self._resize(self.conv1(F.silu(self.norm1(x))))", "between SiLU and the first convolution"),
    ("3.2", BRANCH, "h = self.conv1(F.silu(self.norm1(self._resize(x))))", "between SiLU and the first convolution"),
    ("3.2", BRANCH, "h = self.conv1(F.silu(self._resize(self.norm1(x))))", "between SiLU and the first convolution"),
    ("3.2", BRANCH, "h = self.conv1(self._resize(self.norm1(x)))", "norm"),
    ("3.2", BRANCH, "h = self.conv1(self._resize(self.norm1(F.silu(x))))", "norm"),
    ("3.2", BRANCH, "h = self.conv1(self._resize(F.silu(x)))", "norm"),
    ("3.2", BRANCH, "h = self.conv1(self._resize(F.gelu(self.norm1(x))))", "norm"),
    ("3.2", BRANCH, "x = self._resize(F.silu(self.norm1(x)))\n        h = self.conv1(x)", "both"),
    # 3.3 TextAttention.forward
    ("3.3", JOINED, "k, v = text_kv", "do not replace them"),
    ("3.3", JOINED, "pass", "attends to the caption as well"),
    ("3.3", JOINED, "k, v = torch.cat([text_kv[0], k], 2), torch.cat([v, text_kv[1]], 2)", "in the same order"),
    ("3.3", JOINED, "k, v = (torch.cat(both, dim=2) for both in zip(text_kv[::-1], (k, v)))", "keys, then values"),
    ("3.3", JOINED, "k, v = (torch.cat(both, dim=2) for both in zip(text_kv, (v, k)))",
     "q, k and v of what self.qkv answers"),
    ("3.3", JOINED, "k, v = (torch.cat(both, dim=1) for both in zip(text_kv, (k, v)))", "along the token axis"),
    ("3.3", JOINED, "k, v = (torch.cat(both, dim=-1) for both in zip(text_kv, (k, v)))", "along the token axis"),
    ("3.3", JOINED, "k, v = (torch.cat(both, dim=0) for both in zip(text_kv, (k, v)))", "along the token axis"),
    ("3.3", JOINED, "k, v = (torch.cat([a[:, :, -1:], b], dim=2) for a, b in zip(text_kv, (k, v)))", "one softmax"),
    ("3.3", JOINED, "q = torch.cat([text_kv[0], q], dim=2)\n        " + JOINED, "the image's shape"),
    ("3.3", JOINED + "     # [B, h, K + H·W, d]\n        " + SEEN,
     "both = transformer.attention(q, k, v) + transformer.attention(q, *text_kv)\n"
     "        seen = self.out(transformer.merge_heads(both))", "one softmax"),
    ("3.3", JOINED + "     # [B, h, K + H·W, d]\n        " + SEEN,
     "both = (transformer.attention(q, k, v) + transformer.attention(q, *text_kv)) / 2\n"
     "        seen = self.out(transformer.merge_heads(both))", "one softmax"),
    ("3.3", SEEN, "seen = self.out(transformer.merge_heads(transformer.attention(q, k, v, causal=True)))",
     "one softmax"),
    ("3.3", SEEN, "seen = self.out(transformer.merge_heads(transformer.attention(k, q, v)))", "along the token axis"),
    ("3.3", SEEN, "seen = transformer.merge_heads(transformer.attention(q, k, v))", "added to x itself"),
    ("3.3", SEEN, "seen = transformer.attention(q, k, v).flatten(1, 2)\n"
     "        seen = self.out(seen.unflatten(1, (-1, self.heads)).flatten(2))", "this very place"),
    ("3.3", SEEN, "seen = self.out(transformer.merge_heads(transformer.attention(q, k, v).flip(1)))",
     "heads stay apart"),
    ("3.3", SEEN, "seen = self.out(transformer.merge_heads(transformer.attention(8 * q, k, v)))",
     "each query looks for keys"),
    ("3.3", SEEN, SEEN + ".detach()", "gradients run"),
    ("3.3", PLACES, "places = x.flatten(2).transpose(1, 2)", "attention sees self.norm(x)"),
    ("3.3", PLACES, "x = self.norm(x)\n        places = x.flatten(2).transpose(1, 2)", "not to the normed x"),
    ("3.3", PLACES, "places = self.norm(x).flatten(2).view(len(x), -1, x.shape[1])", "this very place"),
    ("3.3", PLACES, "places = self.norm(x).transpose(2, 3).flatten(2).transpose(1, 2)", "this very place"),
    ("3.3", PLACES, "places = self.norm(x).mean((2, 3))[:, None].expand(-1, x[0, 0].numel(), -1)",
     "each query looks for keys"),
    ("3.3", HEADS, "q, k, v = (part.unflatten(-1, (self.heads, -1)).transpose(1, 2)\n"
     "                   for part in self.qkv(places).chunk(3, dim=-1))", "heads stay apart"),
    ("3.3", HEADS, "q, v, k = transformer.split_heads(self.qkv(places), self.heads)", "in this order"),
    ("3.3", HEADS, "k, q, v = transformer.split_heads(self.qkv(places), self.heads)", "in this order"),
    ("3.3", BACK, "return seen.transpose(1, 2).unflatten(2, x.shape[2:])", "does not replace it"),
    ("3.3", BACK, "return x + seen.reshape(x.shape)", "this very place"),
    ("3.3", BACK, "return x + seen.transpose(1, 2).unflatten(2, x.shape[:1:-1]).transpose(2, 3)", "this very place"),
    ("3.3", BACK, "return self.norm(x + seen.transpose(1, 2).unflatten(2, x.shape[2:]))", "not to the normed x"),
    ("3.3", BACK, "return self.norm(x) + seen.transpose(1, 2).unflatten(2, x.shape[2:])", "not to the normed x"),
    ("3.3", BACK, "return x.add_(seen.transpose(1, 2).unflatten(2, x.shape[2:]))", "belongs to the caller"),
    # 3.4 UNet.forward
    ("3.4", UP, "h = block(torch.cat([skips.pop(), h], dim=1), emb, text_kv)", "what comes from below is first"),
    ("3.4", UP, "h = block(torch.cat([h, skips.pop(0)], dim=1), emb, text_kv)", "skips are a stack"),
    ("3.4", UP, "h = block(torch.cat([h, skips[-1]], dim=1), emb, text_kv)", "skips are a stack"),
    ("3.4", UP, "h = block(torch.cat([h, skips.pop() * 0], dim=1), emb, text_kv)", "popped first"),
    ("3.4", UP, "h = block(torch.cat([h, skips.pop().detach()], dim=1), emb, text_kv)", "gradients run"),
    ("3.4", UP, "h = block(h + skips.pop(), emb, text_kv)", "skips are a stack"),
    ("3.4", UP, "h = block(torch.cat([h, skips.pop()], dim=1) / 2 ** 0.5, emb, text_kv)", "one after the other"),
    ("3.4", "            for block in level.blocks:\n                " + UP,
     "            some = [skips.pop() for _ in level.blocks]\n            for block in level.blocks:\n"
     "                h = block(torch.cat([h, some.pop()], dim=1), emb, text_kv)", "popped first"),
    ("3.4", FIRST, "        skips = []\n", "the first convolution's"),
    ("3.4", DOWN, DOWN.replace("emb)\n                skips.append(h)", "emb)"), "each halving's"),
    ("3.4", DOWN, DOWN.replace("text_kv)\n                skips.append(h)", "text_kv)"), "each block's"),
    ("3.4", DOWN, DOWN.replace("h = block(h, emb, text_kv)\n                skips.append(h)",
                               "skips.append(h)\n                h = block(h, emb, text_kv)"), "popped first"),
    ("3.4", DOWN, DOWN.replace("h = level.resample(h, emb)\n                skips.append(h)",
                               "skips.append(h)\n                h = level.resample(h, emb)"), "skips are a stack"),
    ("3.4", DOWN, DOWN.replace("h = block(h, emb, text_kv)\n                skips.append(h)",
                               "h = block.res(h, emb)\n                skips.append(h)\n                "
                               "h = block.attention(h, next(text_kv)) if block.attention else h"), "popped first"),
    ("3.4", DOWN, DOWN.replace("h = block(h, emb, text_kv)", "h = block(h, emb, text_kv) if block is level.blocks[0]"
                               " else h"), "runs once"),
    ("3.4", DOWN, DOWN.replace("h = block(h, emb, text_kv)", "h = block(skips[-1], emb, text_kv) + h"),
     "one after the other"),
    ("3.4", MIDDLE, "", "the middle ones too"),
    ("3.4", MIDDLE, "        h = self.middle[0](h, emb, text_kv)\n", "the middle ones too"),
    ("3.4", MIDDLE, "        for block in reversed(self.middle):\n            h = block(h, emb, text_kv)\n",
     "one after the other"),
    ("3.4", MIDDLE, MIDDLE + "            skips.append(h)\n", "skips are a stack"),
    ("3.4", MIDDLE, MIDDLE + "        h = h + skips[-1]\n", "one after the other"),
    ("3.4", MIDDLE, "        for block in self.middle:\n            h = h + block(h, emb, text_kv)\n",
     "one after the other"),
    ("3.4", EMB, EMB.replace(" + pooled)", ")"), "one vector for all blocks"),
    ("3.4", EMB, "emb = F.silu(pooled)", "one vector for all blocks"),
    ("3.4", EMB, "emb = self.time(timestep_embedding(t, self.config.channels)) + pooled", "the sum and then the SiLU"),
    ("3.4", EMB, "emb = F.silu(self.time(timestep_embedding(t, self.config.channels))) + pooled",
     "the sum and then the SiLU"),
    ("3.4", EMB, "emb = F.silu(self.time(timestep_embedding(t, self.config.channels)) * pooled)",
     "one vector for all blocks"),
    ("3.4", EMB, EMB.replace("(t, ", "(t[:1], "), "each image's own t"),
    ("3.4", EMB, EMB.replace("(t, ", "(t / 1000, "), "time enters as timestep_embedding"),
    ("3.4", EMB, EMB.replace("(t, ", "(999 - t, "), "time enters as timestep_embedding"),
    ("3.4", EMB, EMB.replace("self.config.channels", "4 * self.config.channels"), "config.channels"),
    ("3.4", EMB, EMB.replace("self.config.channels", "self.config.text.width // 2"), "config.channels"),
    ("3.4", EMB, EMB.replace("+ pooled", "* 2 + pooled"), "one vector for all blocks"),
    ("3.4", EMB, EMB.replace("+ pooled", "+ pooled.detach()"), "gradients run"),
    ("3.4", PAIRS, "text_kv = iter(text_kv[::-1])", "takes the next pair"),
    ("3.4", PAIRS, "text_kv = iter([text_kv[0]] * len(text_kv)) if text_kv else iter(text_kv)", "takes the next pair"),
    ("3.4", PAIRS, "text_kv.reverse()\n        text_kv = iter(text_kv.pop, None)", "not used up"),
    ("3.4", PAIRS, "text_kv = iter([(k.detach(), v.detach()) for k, v in text_kv])", "gradients run"),
    ("3.4", "if text_kv is None:", "if text_kv is not None or text_kv is None:", "it stopped"),
    ("3.4", "self.prepare(tokens, mask)", "self.prepare(tokens, mask | True)", "prepare saves time"),
    ("3.4", "self.prepare(tokens, mask)", "self.prepare(tokens[:1], mask[:1])", "prepare saves time"),
    ("3.4", "h = self.input_conv(x.to(self.input_conv.weight.dtype))",
     "h = F.silu(self.input_conv(x.to(self.input_conv.weight.dtype)))", "one after the other"),
    ("3.4", "h = self.input_conv(x.to(self.input_conv.weight.dtype))", "x.clamp_(-1, 1)\n"
     "        h = self.input_conv(x)", "belongs to the caller"),
    ("3.4", OUTPUT, "return self.output(F.silu(h))",
     "self.output makes the answer"),
    ("3.4", OUTPUT, "return self.output[2](h)", "self.output makes the answer"),
    ("3.4", OUTPUT, "return self.output(h)[:, :3]", "the noise, and its variance"),
    ("3.4", OUTPUT, "return self.output(h.float()).half()", "the answer is float32"),
    ("3.4", OUTPUT, "return self.output(h.float()).double()", "the answer is float32"),
    ("3.4", OUTPUT, "return self.output(h)", "the answer is float32"),
    ("3.4", OUTPUT, "return self.output(h.float())", "the answer is float32"),
    ("3.4", OUTPUT, "return self.output(h.float()).to(x.dtype).round(decimals=2)", "self.output makes the answer"),
    ("3.4", OUTPUT, "return self.output(h.float()).clamp(-1, 1)", "self.output makes the answer"),
    ("3.4", OUTPUT, "return x + self.output(h.float())[:, :3]", "the noise, and its variance"),
    ("3.4", OUTPUT, "return self.output(h.float()).float().detach()", "gradients run"),
]

# (exercise, what stands in the module, what replaces it): right, if unusual, solutions
VARIANTS = [
    ("3.1", WAVES, "rows = [[f(float(s) * 10000 ** (-i / half)) for f in (math.cos, math.sin) for i in range(half)]\n"
     "            for s in t]\n"
     "    return torch.tensor(rows, dtype=torch.float32)"),
    ("3.1", FREQUENCIES, "frequencies = (10000 ** (-2 * torch.arange(half, dtype=torch.float64) / dim)).float()"),
    ("3.1", FREQUENCIES, "frequencies = torch.logspace(0, -4, half + 1)[:-1]"),
    ("3.2", ADAGN, "h = self.norm2(h)\n        h = h + scale * h + shift"),
    ("3.2", SUM, "return self._resize(self.skip(x)) + self.conv2(self.dropout(h * torch.sigmoid(h)))"),
    ("3.2", SPLIT, "both = self.scale_shift(emb)\n        c = both.shape[1] // 2\n"
     "        scale, shift = both[:, :c].reshape(-1, c, 1, 1), both[:, c:].reshape(-1, c, 1, 1)"),
    ("3.3", JOINED, "k, v = torch.cat([k, text_kv[0]], dim=-2), torch.cat([v, text_kv[1]], dim=-2)"),
    ("3.3", JOINED + "     # [B, h, K + H·W, d]\n        " + SEEN,
     "a, b = ((q @ keys.mT / q.shape[-1] ** 0.5).logsumexp(-1, keepdim=True) for keys in (text_kv[0], k))\n"
     "        gate = torch.sigmoid(a - b)\n"
     "        seen = gate * transformer.attention(q, *text_kv) + (1 - gate) * transformer.attention(q, k, v)\n"
     "        seen = self.out(transformer.merge_heads(seen))"),
    ("3.3", BACK, "b, c, height, width = x.shape\n"
     "        return seen.permute(0, 2, 1).reshape(b, c, height, width) + x"),
    ("3.4", UP, "skip = skips[-1]\n                skips = skips[:-1]\n"
     "                h = block(torch.cat((h, skip), 1), emb=emb, text_kv=text_kv)"),
    ("3.4", DOWN, """            for block in level.blocks:
                h = block.res(h, emb)
                h = block.attention(h, next(text_kv)) if block.attention is not None else h
                skips = skips + [h]
            if level.resample is not None:
                skips.append(level.resample(h, emb))
                h = skips[-1]
"""),
    ("3.4", OUTPUT, "for layer in self.output:\n            h = layer(h)\n        return h.float()"),
    ("3.4", EMB, "emb = pooled + self.time(timestep_embedding(t, self.config.channels))\n"
     "        emb = emb * torch.sigmoid(emb)"),
]
