"""Wrong solutions of lesson 2's exercises, and right but odd ones. See tests/test_exercises.py."""

# What is replaced more than once
WEIGHTS = "return torch.softmax((q * scale) @ (k * scale).transpose(-1, -2), dim=-1, dtype=torch.float32)"
SCALE = "scale = q.shape[-1] ** -0.25"
TRAINED = 'if q.device.type == "cpu" and q.requires_grad and not causal:'
OWN = "return attention_weights(q, k).to(v.dtype) @ v"
FUSED = "return F.scaled_dot_product_attention(q, k, v, is_causal=causal)"
ATTENTION = """    if q.device.type == "cpu" and q.requires_grad and not causal:
        return attention_weights(q, k).to(v.dtype) @ v   # for training on a CPU, 3-4 times as fast as the fused one
    # The same result from torch's fused operator, which never writes the N×M table of weights to memory.
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)"""
SPLIT = """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)   # [B, h, N, 3d]
    return x.chunk(3, dim=-1)"""
UP, DOWN = "self.up = nn.Linear(width, 4 * width)", "self.down = nn.Linear(4 * width, width)"
ACT = "self.act = nn.GELU()"
FIRST, SECOND = "x = x + self.attention(self.norm1(x))", "return x + self.mlp(self.norm2(x))"
WORD = "x = self.tokens(tokens) + self.positions"
EMBED = "return torch.where(mask[..., None], x, self.padding)"


def by_hand(hidden, softmax="torch.softmax(scores.float(), dim=-1)"):
    """attention, written out, where `hidden` says which keys a causal query does not see."""
    return f"""    scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
    if causal:
        places = torch.arange(q.shape[-2])
        hidden = {hidden}
        scores = scores.masked_fill(hidden, float("-inf"))
    return ({softmax}).to(v.dtype) @ v"""


# (exercise, what stands in the module, what replaces it, words of the idea that the message must name)
MUTANTS = [
    # 2.1 attention_weights
    ("2.1", WEIGHTS, WEIGHTS.replace("dim=-1", "dim=-2"), "over the keys, the last axis"),
    ("2.1", WEIGHTS, WEIGHTS.replace("dim=-1", "dim=1"), "over the keys, the last axis"),
    ("2.1", WEIGHTS, WEIGHTS.replace("dim=-1", "dim=0"), "over the keys, the last axis"),
    ("2.1", WEIGHTS, "return torch.sigmoid((q * scale) @ (k * scale).transpose(-1, -2)).float()",
     "over the keys, the last axis"),
    ("2.1", WEIGHTS, "return (q * scale).float() @ (k * scale).float().transpose(-1, -2)",
     "over the keys, the last axis"),
    ("2.1", WEIGHTS, "return torch.log_softmax((q * scale).float() @ (k * scale).float().transpose(-1, -2), dim=-1)",
     "over the keys, the last axis"),
    ("2.1", WEIGHTS, "return torch.softmax((k * scale) @ (q * scale).transpose(-1, -2), dim=-1, dtype=torch.float32)",
     "a row for each query"),
    ("2.1", WEIGHTS, "return torch.softmax((q * scale) @ (k * scale).transpose(-1, -2), dim=-1)",
     "weights are float32"),
    ("2.1", WEIGHTS, "return torch.softmax((q * scale) @ (k * scale).transpose(-1, -2), dim=-1).float()",
     "the softmax itself runs in float32"),
    ("2.1", WEIGHTS, "return torch.softmax(-(q * scale) @ (k * scale).transpose(-1, -2), dim=-1, dtype=torch.float32)",
     "√d"),
    ("2.1", WEIGHTS, WEIGHTS + ".detach()", "gradients must reach q and k"),
    ("2.1", WEIGHTS, "with torch.no_grad():\n        " + WEIGHTS, "gradients must reach q and k"),
    ("2.1", WEIGHTS, WEIGHTS.replace("(k * scale)", "(k.detach() * scale)"), "gradients must reach q and k"),
    ("2.1", WEIGHTS, WEIGHTS.replace("(q * scale)", "q.mul_(scale)"), "must not be changed"),
    ("2.1", WEIGHTS, "w = (q * scale) @ (k * scale).transpose(-1, -2)\n"
     "    return torch.softmax(w - w.mean(0, keepdim=True), dim=-1, dtype=torch.float32)", "softmax(q·kᵀ/√d)"),
    ("2.1", SCALE, "scale = 1.0", "divided by √d"),
    ("2.1", SCALE, "scale = q.shape[-1] ** -0.5", "divided by √d"),
    ("2.1", SCALE, "scale = q.shape[-1] ** 0.25", "divided by √d"),
    ("2.1", SCALE, "scale = q.shape[-2] ** -0.25", "divided by √d"),
    ("2.1", SCALE, "scale = k.shape[-2] ** -0.25", "divided by √d"),
    ("2.1", SCALE, "scale = 64 ** -0.25", "divided by √d"),
    ("2.1", SCALE, "scale = (q.shape[-1] * q.shape[1]) ** -0.25", "divided by √d"),
    ("2.1", WEIGHTS, WEIGHTS + ".to(q.dtype)", "weights are float32"),
    ("2.1", WEIGHTS, "q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)\n    " + WEIGHTS, "divided by √d"),
    # 2.2 attention
    ("2.2", TRAINED, 'if q.device.type == "cpu" and q.requires_grad:', "up to its own place"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k, v)", "up to its own place"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k, v, is_causal=True)", "sees all keys"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k, v, is_causal=not causal)", "sees all keys"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1.0)", "softmax(q·k/√d)"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k, v, is_causal=causal, scale=1 / q.shape[-1])",
     "softmax(q·k/√d)"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k, v, is_causal=causal, dropout_p=0.2)", "weighted mean"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, v, k, is_causal=causal)", "weighted mean"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(k, q, v, is_causal=causal)", "q"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2),"
     " is_causal=causal).transpose(1, 2)", "q"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k.detach(), v, is_causal=causal)", "attention is learned"),
    ("2.2", FUSED, "return F.scaled_dot_product_attention(q, k, v, is_causal=causal and q.requires_grad)",
     "up to its own place"),
    ("2.2", FUSED, "with torch.no_grad():\n        " + FUSED, "attention is learned"),
    ("2.2", FUSED, FUSED + ".sum(1, keepdim=True)", "one answer for each query"),
    ("2.2", OWN, "return attention_weights(q, k) @ v", "float"),
    ("2.2", OWN, "return (attention_weights(q, k) @ v.float())", "has the type of the values"),
    ("2.2", OWN, "return attention_weights(q, k).to(v.dtype).detach() @ v", "attention is learned"),
    ("2.2", OWN, "return attention_weights(q, k).to(v.dtype) @ v.detach()", "attention is learned"),
    ("2.2", OWN, "return attention_weights(k, q).mT.to(v.dtype) @ v", "weighted mean"),
    ("2.2", OWN, "return attention_weights(q / q.shape[-1] ** 0.5, k).to(v.dtype) @ v", "softmax(q·k"),
    ("2.2", ATTENTION, "    return attention_weights(q, k).to(v.dtype) @ v", "up to its own place"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places + 1"), "itself included"),
    ("2.2", ATTENTION, by_hand("places[:, None] + 1 < places"), "itself included"),
    ("2.2", ATTENTION, by_hand("places[:, None] > places"), "itself included"),
    ("2.2", ATTENTION, by_hand("places[:, None] >= places"), "itself included"),
    ("2.2", ATTENTION, by_hand("(places > 0) & (places == places[-1])"), "itself included"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places").replace('float("-inf")', "0.0"), "itself included"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places").replace("masked_fill(hidden", "masked_fill(~hidden"),
     "itself included"),
    ("2.2", ATTENTION, """    w = attention_weights(q, k).to(v.dtype)
    return (w.tril() if causal else w) @ v""", "hidden before the softmax"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places", "torch.softmax(scores.float(), dim=-2)"), "weighted mean"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places", "torch.softmax(scores.float(), dim=1)"), "weighted mean"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places").replace(" / q.shape[-1] ** 0.5", ""), "softmax(q·k/√d)"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places").replace("** 0.5", "** 1"), "softmax(q·k/√d)"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places").replace(".to(v.dtype) @ v", " @ v.float()"),
     "has the type of the values"),
    # 2.3 split_heads
    ("2.3", SPLIT, """    q, k, v = x.chunk(3, dim=-1)
    return tuple(part.unflatten(-1, (heads, -1)).transpose(1, 2) for part in (q, k, v))""", "heads first"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (-1, heads)).permute(0, 3, 1, 2)
    return x.chunk(3, dim=-1)""", "heads first"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1, 3)).transpose(1, 2)
    return x.unbind(-1)""", "its query, then its key, then its value"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1))
    return x.chunk(3, dim=-1)""", "[B, h, N, d]"),
    ("2.3", SPLIT, """    x = x.reshape(len(x), heads, x.shape[1], -1)
    return x.chunk(3, dim=-1)""", "mix up the places"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return x""", "[B, h, N, d]"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return x.chunk(3, dim=1)""", "three tensors"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return x.chunk(2, dim=-1)""", "three tensors"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    k, q, v = x.chunk(3, dim=-1)
    return q, k, v""", "its query, then its key, then its value"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, v, k = x.chunk(3, dim=-1)
    return q, k, v""", "its query, then its key, then its value"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    return x.chunk(3, dim=-1)[::-1]""", "its query, then its key, then its value"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2).flip(1)
    return x.chunk(3, dim=-1)""", "heads first"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k, v = x.chunk(3, dim=-1)
    return q, k.transpose(-1, -2), v""", "[B, h, N, d]"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(0, 2)
    return x.chunk(3, dim=-1)""", "[B, h, N, d]"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, -1)).transpose(1, 2)
    q, k, v = x.chunk(3, dim=-1)
    return q / q.shape[-1] ** 0.5, k, v""", "its query, then its key, then its value"),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, 3, -1))
    return [x[..., i, :].flatten(2).view(len(x), heads, x.shape[1], -1) for i in range(3)]""", "mix up the places"),
    # 2.4 MLP.__init__
    ("2.4", ACT, 'self.act = nn.GELU(approximate="tanh")', "approximation by a tanh"),
    ("2.4", ACT, "self.act = nn.ReLU()", "between the two layers is a GELU"),
    ("2.4", ACT, "self.act = nn.SiLU()", "between the two layers is a GELU"),
    ("2.4", ACT, "self.act = nn.Identity()", "between the two layers is a GELU"),
    ("2.4", ACT, "self.act = nn.Tanh()", "between the two layers is a GELU"),
    ("2.4", "        self.act = nn.GELU()\n", "", "between the two layers is a GELU"),
    ("2.4", UP + "\n        " + ACT, ACT + "\n        " + UP, "between the two layers is a GELU"),
    ("2.4", ACT + "\n        " + DOWN, DOWN + "\n        " + ACT, "between the two layers is a GELU"),
    ("2.4", DOWN, DOWN + "\n        self.end = nn.GELU()", "a GELU"),
    ("2.4", DOWN, DOWN + "\n        self.dropout = nn.Dropout(0.1)", "no dropout"),
    ("2.4", DOWN, DOWN + "\n        self.norm = nn.LayerNorm(width)", "GELU"),
    ("2.4", UP + "\n        self.act = nn.GELU()\n        " + DOWN,
     "self.up = nn.Linear(width, 2 * width)\n        self.act = nn.GELU()\n"
     "        self.down = nn.Linear(2 * width, width)", "four times wider"),
    ("2.4", UP + "\n        self.act = nn.GELU()\n        " + DOWN,
     "self.up = nn.Linear(width, width)\n        self.act = nn.GELU()\n"
     "        self.down = nn.Linear(width, width)", "four times wider"),
    ("2.4", UP, "self.up = nn.Linear(width, 4 * width, bias=False)", "have a bias"),
    ("2.4", DOWN, "self.down = nn.Linear(4 * width, width, bias=False)", "have a bias"),
    ("2.4", DOWN, "self.out = nn.Linear(4 * width, width)", "it is called down"),
    ("2.4", UP + "\n        self.act = nn.GELU()\n        " + DOWN,
     "self.down = nn.Linear(width, 4 * width)\n        self.act = nn.GELU()\n"
     "        self.up = nn.Linear(4 * width, width)", "it is called down"),
    # 2.5 Block.forward
    ("2.5", FIRST + "\n        " + SECOND, "x = self.norm1(x + self.attention(x))\n"
     "        return self.norm2(x + self.mlp(x))", "the norm is inside the branch"),
    ("2.5", FIRST, "x = self.norm1(x + self.attention(x))", "the norm is inside the branch"),
    ("2.5", SECOND, "return self.norm2(x + self.mlp(x))", "the norm is inside the branch"),
    ("2.5", FIRST, "x = self.norm1(x)\n        x = x + self.attention(x)", "the norm is inside the branch"),
    ("2.5", SECOND, "x = self.norm2(x)\n        return x + self.mlp(x)", "the norm is inside the branch"),
    ("2.5", FIRST, "x = self.attention(self.norm1(x))", "never replaces it"),
    ("2.5", SECOND, "return self.mlp(self.norm2(x))", "never replaces it"),
    ("2.5", FIRST + "\n        " + SECOND, "return self.mlp(self.norm2(self.attention(self.norm1(x))))",
     "never replaces it"),
    ("2.5", FIRST + "\n        " + SECOND, "return x + self.mlp(self.norm2(self.attention(self.norm1(x))))",
     "attention sees the normed x"),
    ("2.5", FIRST, "x = x + self.attention(x)", "attention sees the normed x"),
    ("2.5", SECOND, "return x + self.mlp(x)", "through the second norm"),
    ("2.5", FIRST, "x = x + self.attention(self.norm2(x))", "attention sees the normed x"),
    ("2.5", SECOND, "return x + self.mlp(self.norm1(x))", "through the second norm"),
    ("2.5", FIRST + "\n        " + SECOND,
     "return x + self.attention(self.norm1(x)) + self.mlp(self.norm2(x))", "one after the other"),
    ("2.5", FIRST + "\n        " + SECOND, "x = x + self.mlp(self.norm2(x))\n"
     "        return x + self.attention(self.norm1(x))", "attention comes first"),
    ("2.5", FIRST, "x += self.attention(self.norm1(x))", "belongs to the caller"),
    ("2.5", FIRST, "x = x + self.norm1(self.attention(x))", "is added to"),
    ("2.5", SECOND, "return x + self.norm2(self.mlp(x))", "is added to"),
    ("2.5", FIRST, "x = 2 * x + self.attention(self.norm1(x))", "never replaces it"),
    ("2.5", FIRST, "start, x = x, x + self.attention(self.norm1(x))\n        return start + self.mlp(self.norm2(x))",
     "attention sees the normed x"),
    ("2.5", FIRST, "x = x + self.attention(self.norm1(x)).detach()", "gradients pass"),
    ("2.5", FIRST, "x = x.detach() + self.attention(self.norm1(x))", "gradients pass"),
    # 2.6 TextEncoder.embed
    ("2.6", EMBED, "return x", "a learned padding vector stands"),
    ("2.6", EMBED, "return torch.where(mask[..., None], self.padding, x)", "a learned padding vector stands"),
    ("2.6", EMBED, "return torch.where(mask[..., None], self.tokens(tokens), self.padding) + self.positions",
     "replaces the token and its position"),
    ("2.6", EMBED, "return x * mask[..., None]", "learned padding vector"),
    ("2.6", EMBED, "return torch.where(mask[..., None], x, 0)", "learned padding vector"),
    ("2.6", EMBED, "return torch.where(mask[..., None], x, self.padding[0])", "learned padding vector of that place"),
    ("2.6", EMBED, "return torch.where(mask[..., None], x, self.padding.mean(0))", "padding vector of that place"),
    ("2.6", EMBED, "return torch.where(mask[..., None], x, x + self.padding)", "learned padding vector"),
    ("2.6", EMBED, "return x + torch.where(mask[..., None], 0, self.padding)", "learned padding vector"),
    ("2.6", EMBED, "return torch.where(mask[..., None], x + self.padding, self.padding)", "the vector of its place"),
    ("2.6", EMBED, "return torch.where(mask[..., None], x, self.padding.flip(0))", "padding vector of that place"),
    ("2.6", EMBED, "return torch.where(mask[:1, :, None], x, self.padding)", "learned padding vector"),
    ("2.6", EMBED, "return torch.where(mask.any(1).view(-1, 1, 1), x, self.padding)", "nothing of the token is left"),
    ("2.6", EMBED, "n = mask.sum(1).view(-1, 1, 1)\n        places = torch.arange(len(self.padding)).view(1, -1, 1)\n"
     "        return torch.where(places < n, x, self.padding)", "padding keeps its place"),
    ("2.6", EMBED, "n = mask.sum(1, keepdim=True)\n        places = torch.arange(len(self.padding)) - n\n"
     "        return torch.where(mask[..., None], x, self.padding[places.clamp(min=0)])", "keeps its place"),
    ("2.6", EMBED, "return torch.where(mask[..., None], x, self.padding.detach())", "padding learns"),
    ("2.6", EMBED, "self.padding.data *= 1.01\n        return torch.where(mask[..., None], x, self.padding)",
     "must not change the tables"),
    ("2.6", WORD, "x = self.tokens(tokens)", "the vector of its place"),
    ("2.6", WORD, "x = self.positions.expand(*tokens.shape, -1)", "the vector of its place"),
    ("2.6", WORD, "x = self.tokens(tokens) * self.config.width ** 0.5 + self.positions", "the vector of its place"),
    ("2.6", WORD, "x = self.tokens(tokens) * self.positions", "the vector of its place"),
    ("2.6", WORD, "x = self.tokens(tokens) + self.positions[0]", "the vector of its place"),
    ("2.6", WORD, "x = self.tokens(tokens) + self.positions.flip(0)", "the vector of its place"),
    ("2.6", WORD, "x = self.norm(self.tokens(tokens) + self.positions)", "the vector of its place"),
    ("2.6", WORD, "x = self.tokens(tokens).detach() + self.positions", "words and their positions learn"),
    ("2.6", WORD, "x = self.tokens.weight.data[tokens] + self.positions", "words and their positions learn"),
    ("2.6", WORD, "x = self.tokens(tokens) + self.positions.data", "words and their positions learn"),
]

# (exercise, what stands in the module, what replaces it): right, if unusual, solutions
VARIANTS = [
    ("2.1", WEIGHTS, "scores = torch.einsum('...nd,...md->...nm', q.float(), k.float()) / q.shape[-1] ** 0.5\n"
     "    return scores.softmax(-1)"),
    ("2.1", WEIGHTS, "q, k = q.double(), k.double()\n"
     "    scores = (q[..., :, None, :] * k[..., None, :, :]).sum(-1) / q.shape[-1] ** 0.5\n"
     "    weights = (scores - scores.max(-1, keepdim=True).values).exp()\n"
     "    return (weights / weights.sum(-1, keepdim=True)).float()"),
    ("2.1", WEIGHTS, "rows = [torch.softmax((row * scale).float() @ (k * scale).float().transpose(-1, -2), dim=-1)\n"
     "            for row in q.split(1, dim=-2)]\n"
     "    return torch.cat(rows, dim=-2)"),
    ("2.2", ATTENTION, by_hand("places[:, None] < places")),
    ("2.2", ATTENTION, by_hand("torch.ones(scores.shape[-2:], dtype=torch.bool).triu(1)").replace(
        'float("-inf")', "-1e9")),
    ("2.2", ATTENTION, "    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)"),
    ("2.2", ATTENTION, """    answers = []
    for i in range(q.shape[2]):
        n = i + 1 if causal else k.shape[2]
        weights = attention_weights(q[:, :, i:i + 1], k[:, :, :n])
        answers.append((weights[..., 0, :, None] * v[:, :, :n]).sum(2).to(v.dtype))
    return torch.stack(answers, dim=2)"""),
    ("2.3", SPLIT, """    x = x.unflatten(-1, (heads, 3, -1))
    return tuple(x[..., i, :].transpose(1, 2) for i in range(3))"""),
    ("2.3", SPLIT, """    batch, places, width = x.shape
    x = x.reshape(batch, places, heads, 3, width // heads // 3).permute(3, 0, 2, 1, 4).contiguous()
    return [x[0], x[1], x[2]]"""),
    ("2.3", SPLIT, """    d = x.shape[-1] // heads // 3
    parts = [[], [], []]
    for h in range(heads):
        for i in range(3):
            parts[i].append(x[:, :, (3 * h + i) * d:(3 * h + i + 1) * d])
    return tuple(torch.stack(part, dim=1) for part in parts)"""),
    ("2.3", SPLIT, "    return torch.stack(x.unflatten(-1, (heads, -1)).transpose(1, 2).chunk(3, dim=-1))"),
    ("2.4", ACT, 'self.act = nn.GELU(approximate="none")'),
    ("2.4", UP, "self.wide = nn.Linear(width, width * 4)"),
    ("2.5", FIRST + "\n        " + SECOND, "attended = torch.add(x, self.attention(self.norm1(x)))\n"
     "        out = attended.clone()\n        out += self.mlp(self.norm2(attended))\n        return out"),
    ("2.5", SECOND, "return self.mlp(self.norm2(x)) + x"),
    ("2.6", EMBED, "real = mask[..., None].to(x.dtype)\n        return real * x + (1 - real) * self.padding"),
    ("2.6", EMBED, "out = self.padding.expand(len(x), -1, -1).clone()\n"
     "        out[mask] = x[mask]\n        return out"),
    ("2.6", WORD, "places = torch.arange(tokens.shape[1])\n"
     "        x = F.embedding(tokens, self.tokens.weight) + self.positions[places]"),
    ("2.6", EMBED, "return torch.stack([torch.stack([x[b, k] if mask[b, k] else self.padding[k]\n"
     "                                         for k in range(mask.shape[1])]) for b in range(len(mask))])"),
]
