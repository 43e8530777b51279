"""Attention against its formula, what the text encoder does with order and padding; the released answers."""
from dataclasses import replace
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import formula

transformer = import_module("02_transformer")
SMALL = transformer.TextConfig(vocab_size=50, context=12, width=128, layers=2, heads=2)


def random_encoder(config=SMALL):
    torch.manual_seed(0)
    encoder = transformer.TextEncoder(config).eval()
    for p in encoder.parameters():   # small initial weights would hide wiring: everything would be nearly equal
        torch.nn.init.normal_(p, std=p.shape[-1] ** -0.5)
    return encoder


def test_attention_is_a_weighted_mean_written_as_loops():
    """softmax(q·k/√d)·v, one query at a time, in float64."""
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 16, dtype=torch.float64), *torch.randn(2, 3, 2, 7, 16, dtype=torch.float64)
    answer = transformer.attention(q, k, v)
    for b in range(3):
        for h in range(2):
            for n in range(5):
                scores = torch.stack([q[b, h, n] @ k[b, h, m] / 4 for m in range(7)])   # √16 is 4
                expected = (scores.exp() / scores.exp().sum()) @ v[b, h]
                assert torch.allclose(answer[b, h, n], expected, atol=1e-12), "attention is not softmax(q·k/√d)·v"


def test_the_weights_one_can_draw_are_those_the_fused_operator_uses():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 2, 5, 16), *torch.randn(2, 3, 2, 7, 16)
    weights = transformer.attention_weights(q, k)
    assert torch.allclose(weights.sum(-1), torch.ones(3, 2, 5), atol=1e-6), "every row of attention sums to one"
    assert torch.allclose(weights @ v, transformer.attention(q, k, v), atol=1e-5), "both are softmax(q·k/√d)·v"


def test_training_and_sampling_paths_of_attention_agree_in_value_and_gradient():
    """On a CPU attention takes another path when gradients are wanted; a path may change speed only."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(3, 2, 6, 16, requires_grad=True) for _ in range(3))
    plain, fused = transformer.attention(q, k, v), F.scaled_dot_product_attention(q, k, v)
    up = torch.randn_like(plain)
    assert torch.allclose(plain, fused, atol=1e-5), "the two paths have different values"
    for ours, torchs in zip(torch.autograd.grad(plain, (q, k, v), up), torch.autograd.grad(fused, (q, k, v), up)):
        assert torch.allclose(ours, torchs, atol=1e-5), "the two paths have different gradients"


def test_causal_attention_sees_nothing_to_its_right():
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 3, 2, 5, 16)
    before = transformer.attention(q, k, v, causal=True)
    k[:, :, 3:], v[:, :, 3:] = 9.0, 9.0
    after = transformer.attention(q, k, v, causal=True)
    assert torch.allclose(before[:, :, :3], after[:, :, :3], atol=1e-6), "a later key changed an earlier query's answer"
    assert not torch.allclose(before[:, :, 3:], after[:, :, 3:])


def test_every_word_may_look_ahead():
    encoder = random_encoder()
    tokens, mask = torch.randint(0, 50, (1, 12)), torch.ones(1, 12, dtype=torch.bool)
    changed = tokens.clone()
    changed[0, 11] = (tokens[0, 11] + 1) % 50
    with torch.no_grad():
        difference = (encoder(tokens, mask) - encoder(changed, mask)).abs()
    assert difference[0, 0].max() > 1e-4, "GLIDE's text encoder is not causal: the last word must reach the first"


def test_a_padded_position_forgets_its_token_and_keeps_its_place():
    encoder = random_encoder()
    mask = torch.arange(12)[None] < torch.tensor([[12], [5], [0]])   # full, five words, the empty caption
    one, other = torch.randint(0, 50, (2, 3, 12))
    other = torch.where(mask, one, other)   # they differ under the padding only
    assert torch.allclose(encoder(one, mask), encoder(other, mask), atol=1e-6), "tokens under the padding do not matter"
    x = encoder.embed(one, mask)
    assert torch.equal(x[2], encoder.padding), "the empty caption is the padding vectors, in their places"
    assert torch.equal(x[1, 5:], encoder.padding[5:]), "padding keeps its place, whatever stands before it"


def test_padding_is_attended_to_not_hidden():
    encoder = random_encoder()
    tokens, mask = torch.randint(0, 50, (1, 12)), torch.arange(12)[None] < 5
    before = encoder(tokens, mask)
    with torch.no_grad():
        encoder.padding[8] *= -1   # (a constant added would be lost in the layer norm)
    assert (encoder(tokens, mask) - before).abs()[0, 0].max() > 1e-4, "words see the padding vectors behind them"


def test_examples_of_a_batch_do_not_meet():
    encoder = random_encoder()
    tokens, mask = torch.randint(0, 50, (3, 12)), torch.rand(3, 12) < 0.6
    together = encoder(tokens, mask)
    alone = torch.cat([encoder(tokens[i:i + 1], mask[i:i + 1]) for i in range(3)])
    assert torch.allclose(together, alone, atol=1e-5), "a caption's vectors depend on no other caption of the batch"


def test_heads_are_what_they_say():
    """Two heads of a layer are two separate attentions: cut one out and the other does not change."""
    layer = transformer.SelfAttention(128, 2).eval()
    x = torch.randn(3, 7, 128)
    q, k, v = transformer.split_heads(layer.qkv(x), 2)
    assert q.shape == (3, 2, 7, 64), "two heads of 64 numbers"
    row = layer.qkv(x)[0, 0]   # each head's q, k and v lie together: q1 k1 v1 q2 k2 v2
    assert torch.equal(torch.cat([q[0, 0, 0], k[0, 0, 0], v[0, 0, 0], q[0, 1, 0], k[0, 1, 0], v[0, 1, 0]]), row)
    assert torch.equal(transformer.merge_heads(q)[0, 0], torch.cat([q[0, 0, 0], q[0, 1, 0]]))


def test_captions_are_cut_or_padded_to_the_context():
    words = transformer.tokenizer.world_tokenizer()
    cond = transformer.encode(["a red heart", "", "a red heart above a blue star"], words, 5)
    assert cond["tokens"].shape == (3, 5) and cond["tokens"].dtype == torch.long
    assert cond["mask"].sum(1).tolist() == [3, 0, 5], "real tokens: a word each, none, and as many as there is room for"
    assert (cond["tokens"][~cond["mask"]] == words.end_token).all(), "padding is the end token"


def test_a_caption_of_another_length_is_refused():
    encoder = transformer.TextEncoder(SMALL)
    with pytest.raises(ValueError, match="12 expected"):
        encoder(torch.zeros(1, 9, dtype=torch.long), torch.ones(1, 9, dtype=torch.bool))


def test_named_sizes_count_the_papers_parameters():
    """GLIDE's text: 24 blocks of width 2048 are 1.2 billion parameters (section 4)."""
    with torch.device("meta"):
        blocks = transformer.TextEncoder(transformer.TEXT["paper"]).blocks
    assert transformer.parameters(blocks) == 24 * (12 * 2048 ** 2 + 13 * 2048), "12·D² weights a block, 13·D in biases"
    assert replace(transformer.TEXT["filtered"], layers=1).heads * 64 == 512, "a head is 64 numbers wide"


# --- Released answers ---

@pytest.mark.parametrize("model", ["a", "b"])
def test_text_encoder_gives_the_released_answers(model):
    network = formula.denoiser("base", model)              # a base model's denoiser is its U-Net
    cond = formula.conditioning("base", model)
    with torch.no_grad():
        sequence = network.text(cond["tokens"], cond["mask"])
        pooled = network.pool(sequence[:, -1])
    expected = formula.golden(f"text.{model}.sequence")
    expected = expected if expected.shape == sequence.shape else expected.transpose(1, 2)
    formula.agree(sequence, expected, 1e-4)
    formula.agree(pooled, formula.golden(f"text.{model}.pooled"), 1e-4)
