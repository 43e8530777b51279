"""Training: what is shown at a step, what is learned from it, and runs that survive whatever happens to them."""
import errno
import io
import os
import random
import signal
import sys
import time
from contextlib import closing, contextmanager
from copy import deepcopy
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import nn

import small
from small import folder_of, one_line, refused, same

tokenizer, unet, diffusion, guidance, inpaint, train, sample = (import_module(m) for m in (
    "01_tokenizer", "03_unet", "04_diffusion", "05_guidance", "06_inpaint", "08_train", "09_sample"))
WORDS = tokenizer.world_tokenizer()
EXACT = train.ComputeConfig(dtype="float32")      # rounding to bfloat16 would hide small differences


def little(kind="base", **training):
    """small.preset with a U-Net of one level, where a network of two would only cost time."""
    preset = small.preset(kind, **training)
    return replace(preset, network=replace(preset.network, multipliers=(1,), attention_levels=(0,), blocks=1))


def trainer_of(kind="base", *, compute=EXACT, world="full", random_weights=True, **training):
    """A Trainer of a network that is far too small, whose weights are random: a fresh one answers zero."""
    preset = (little if kind == "base" else small.preset)(kind, **training)
    options = {"compute": compute, "world": world}
    trainer = (train.CLIPTrainer if kind == "clip" else train.Trainer)(preset, **options)
    if random_weights:
        small.randomize(trainer.model)
        trainer.ema.load_state_dict(trainer.model.state_dict())
    return trainer


def tensors(batch):
    """A batch without its reasons, as plain copies."""
    return {name: value.clone() for name, value in batch[0].items()}


# --- Presets -----------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, kind, count", [
    ("filtered", "base", 385_030_726), ("filtered", "upsampler", 398_361_286), ("filtered", "inpaint", 385_037_638),
    ("filtered", "inpaint-upsampler", 398_368_198), ("filtered", "clip", 86_443_776 + 71_679_488),
    ("paper", "base", 3_554_414_086), ("paper", "upsampler", 1_641_702_790)])
def test_the_large_presets_are_the_published_models(name, kind, count):
    with torch.device("meta"):
        network = train.build_network(train.PRESETS[name][kind].network)
    assert unet.parameters(network) == count, "the released models, and the paper's, have this many parameters"


@pytest.mark.parametrize("name", ["tiny", "small", "filtered", "paper"])
def test_a_presets_parts_fit_together(name):
    presets = train.PRESETS[name]
    assert list(presets) == list(train.KINDS)
    side = presets["base"].size
    for kind, preset in presets.items():
        large, inpaints = "upsampler" in kind, "inpaint" in kind
        assert preset.kind == kind and preset.size == side * (4 if large else 1), "an upsampler enlarges four times"
        assert preset.diffusion.schedule == ("linear" if large else "cosine"), "GLIDE section 4"
        assert preset.train.batch * preset.train.steps > 0 and preset.train.crop <= preset.size
        if kind == "clip":
            assert preset.network.size == side, "a noised CLIP guides the base model, so it sees images of that size"
        else:
            assert preset.network.in_channels == 3 + 3 * large + 4 * inpaints, "x, low_res, known part and mask"


@pytest.mark.parametrize("kind, steps, batch", [("base", 2_500_000, 2048), ("upsampler", 1_600_000, 512)])
def test_the_large_presets_train_as_published(kind, steps, batch):
    got = train.PRESETS["paper"][kind].train
    assert (got.steps, got.batch) == (steps, batch), "GLIDE section 4: 2.5 M steps of 2,048; 1.6 M of 512"
    assert (got.lr, got.text_lr, got.ema, got.caption_dropout) == (1e-4, 1e-4, 0.9999, 0.2)
    assert not got.decay and not got.warmup and not got.freeze and got.weighting == "eps", "nothing of our own"


# --- What is shown at a step -------------------------------------------------------------------------

@pytest.mark.parametrize("kind", train.KINDS)
def test_a_batch_is_a_function_of_the_step(kind):
    trainer = trainer_of(kind)
    first = tensors(trainer.batch(3))
    trainer.batch(0)
    torch.manual_seed(99)                                   # a stop, another process, other random numbers
    random.seed(99)
    again = tensors(trainer_of(kind).batch(3))
    assert same(first, again), "the same step must give the same batch, whatever was drawn before"
    assert not same(first, tensors(trainer.batch(4))), "another step shows other examples"


@pytest.mark.parametrize("kind", ["base", "inpaint", "clip"])
def test_any_number_of_processes_shows_the_same_examples(kind, monkeypatch):
    whole = tensors(trainer_of(kind, batch=12).batch(5))
    for ranks in (2, 3):
        for rank in range(ranks):
            monkeypatch.setattr(train, "rank_and_world_size", lambda: (rank, ranks))
            own = tensors(trainer_of(kind, batch=12).batch(5))
            assert same(own, {name: value[rank::ranks] for name, value in whole.items()}), \
                f"process {rank} of {ranks} has every {ranks}th example of the same batch"


def test_parts_and_threads_change_nothing_that_is_shown():
    plain = trainer_of()
    expected = [tensors(plain.batch(step)) for step in (7, 8, 9)]
    for compute in (replace(EXACT, grad_accum=4), replace(EXACT, workers=0), replace(EXACT, workers=3)):
        trainer = trainer_of(compute=compute)
        trainer.step = 7
        with closing(trainer.batches()) as batches:
            got = [tensors(next(batches)) for _ in range(3)]
        assert same(got, expected), f"{compute} computes otherwise, but shows the same"


def test_training_images_go_from_minus_one_to_one():
    """The diffusion process (04) and every sampler expect that; images in [0, 1] train as well, and draw too bright."""
    x0 = torch.cat([trainer_of(batch=32).batch(step)[0]["x0"] for step in range(2)])
    assert x0.min() == -1 and x0.max() == 1, f"black is -1 and white 1; found {x0.min():.2f} to {x0.max():.2f}"
    trainer = trainer_of()
    image = trainer.data[0][0]
    assert torch.equal(trainer.batch(0)[0]["x0"][0], F.avg_pool2d(image.float(), 4) / 127.5 - 1), \
        "each pixel of 16×16 is the mean of 4×4 pixels of the picture"


@pytest.mark.parametrize("kind, crop", [("upsampler", 0), ("upsampler", 32), ("inpaint-upsampler", 0)])
def test_the_small_image_is_the_large_one_reduced_and_rounded(kind, crop):
    batch = trainer_of(kind, batch=16, crop=crop).batch(0)[0]
    side = crop or 64
    assert batch["x0"].shape == (16, 3, side, side) and batch["low_res"].shape == (16, 3, side // 4, side // 4)
    off = (F.avg_pool2d(batch["x0"], 4) - batch["low_res"]).abs().max()
    assert off <= 0.5 / 127.5 + 1e-5, f"cut elsewhere, or not the area's mean: off by {off:.3f}"
    as_bytes = (batch["low_res"] + 1) * 127.5
    assert off > 1e-3 and (as_bytes - as_bytes.round()).abs().max() < 1e-3, "it must be what an 8-bit file would hold"


def test_squares_for_the_upsampler_are_cut_everywhere():
    """Images that hold their own coordinates tell where they were cut."""
    rows = torch.arange(64, dtype=torch.uint8).expand(3, 64, 64).transpose(1, 2)
    images = torch.stack([rows, rows.transpose(1, 2)]).repeat_interleave(100, 0)
    rngs = [random.Random(i) for i in range(200)]
    x0, _ = trainer_of("upsampler").conditioning(images, ["a heart"] * 200, rngs, crop=32)
    for corners in ((x0[:100, 0, 0, 0] + 1) * 127.5).round().long(), ((x0[100:, 0, 0, 0] + 1) * 127.5).round().long():
        assert set(corners.tolist()) == set(range(0, 33, 4)), "any corner that is a whole small pixel, the last one too"


def test_what_is_known_is_the_image_itself():
    """x0 stays the whole true image: the loss is over all of it, and the mask says what the network is shown."""
    batch = trainer_of("inpaint", batch=64).batch(0)[0]
    mask = batch["inpaint_mask"]
    assert torch.equal(batch["inpaint_image"], batch["x0"]) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert len(mask.unique(dim=0)) > 30 and 0.3 < mask.mean() < 0.8, "every image has a mask of its own"


def test_captions_are_dropped_one_by_one_and_by_their_mask():
    full = tensors(trainer_of(batch=100, caption_dropout=0.0).batch(0))
    dropped = tensors(trainer_of(batch=100, caption_dropout=0.2).batch(0))
    gone = ~dropped["mask"].any(1)
    assert 8 <= gone.sum() <= 34, f"of 100 captions about 20 are dropped (±14 is four deviations), not {gone.sum()}"
    assert full["mask"].any(1).all() and torch.equal(dropped["mask"][~gone], full["mask"][~gone])
    assert torch.equal(dropped["tokens"], full["tokens"]), "the empty caption is a mask that is False everywhere (02)"
    steps = [trainer_of(batch=100, caption_dropout=0.2).batch(step)[0]["mask"].any(1) for step in (1, 2)]
    assert not torch.equal(*steps), "other captions are dropped at another step"


def test_every_timestep_is_drawn_the_last_one_too():
    """A public project's copy of this training never drew t = 999: samplers begin there."""
    trainer = trainer_of(batch=100)
    drawn = torch.cat([trainer.timesteps(step) for step in range(100)])
    assert drawn.min() == 0 and drawn.max() == 999, f"0 … 999 are to be drawn; these are {drawn.min()} … {drawn.max()}"
    counts = torch.bincount(drawn // 100, minlength=10)
    assert (counts - 1000).abs().max() <= 10, f"each tenth of the timesteps is as likely as any other: {counts}"


def test_a_part_of_the_batch_may_be_noisier():
    usual, noisy = (torch.cat([trainer_of(batch=64, high_noise_fraction=share).batch(step)[0]["t"]
                               for step in range(4)]) for share in (0.0, 0.5))
    assert 0.38 <= (usual >= 600).float().mean() <= 0.42, "two fifths of the timesteps"
    assert 0.68 <= (noisy >= 600).float().mean() <= 0.72, "half of the batch, and two fifths of the other half"


def test_pairs_are_first_said_one_way():
    config = train.TrainConfig(steps=100, canonical_first=True)
    assert [train.canonical_fraction(step, config) for step in (0, 25, 50, 99)] == [1, 0.5, 0, 0]

    def inverted(step):
        trainer = trainer_of(batch=200, steps=100, canonical_first=True)
        said = [trainer.data[step * 200 + i][1] for i in range(200)]
        return sum(" right of " in text or " below " in text for text in said)
    assert inverted(0) == 0, "at first everything is said the canonical way: left of, above"
    assert inverted(60) > 20, "and from half-way on both ways"


def test_held_out_pairs_are_never_shown():
    """Whether a green heart can be drawn, after green stars and red hearts, is what lessons/10_judge.py asks."""
    data = trainer_of(batch=8).data
    seen = {(thing.color, thing.noun) for i in range(600) for thing in tokenizer.Scene.parse(data[i][2]).things}
    assert len(seen) > 150 and not seen & tokenizer.HELD_OUT


# --- The step ----------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["base", "upsampler", "inpaint"])
def test_the_network_is_asked_for_the_noise_in_the_noisy_image(kind):
    """By hand: x_t = √ᾱ·x0 + √(1-ᾱ)·noise goes in, and the squared error of the noise (04: plus the bound) counts."""
    trainer, seen = trainer_of(kind, weighting="eps"), []
    batch = trainer.batch(0)[0]

    def answers_noise(x, t, **cond):
        seen.append((x, t, cond))
        target = (process.extract(process.signal, t, x) * batch["noise"]
                  - process.extract(process.noise, t, x) * batch["x0"])       # v, which the tiny models predict
        return torch.cat([target + 0.1, torch.zeros_like(target)], 1)
    trainer.answer, process = answers_noise, trainer.process
    loss = trainer.loss(batch)
    x, t, cond = seen[0]
    x_t = process.q_sample(batch["x0"], batch["t"], batch["noise"])
    assert torch.equal(x[:, :3], x_t) and torch.equal(t, batch["t"]), "the network sees x_t and its timestep"
    assert torch.equal(cond["mask"], batch["mask"]) and torch.equal(cond["tokens"], batch["tokens"])
    simple = 0.01 * process.alpha_bar[t].float()        # an error of 0.1 in v is one of 0.1·√ᾱ in the noise
    bound = loss - simple
    frozen = process.bound(torch.cat([batch["noise"] + 0.1 * process.extract(process.signal, t, x_t),
                                      torch.zeros_like(x_t)], 1), batch["x0"], x_t, t)
    assert torch.allclose(bound, frozen, atol=1e-3, rtol=1e-3), "the rest is the variance's bound, 1000/1000 of it"


@pytest.mark.parametrize("kind", ["base", "clip"])
def test_one_batch_can_be_learned_by_heart(kind):
    trainer = trainer_of(kind, random_weights=False, steps=60, lr=2e-3, text_lr=2e-3)
    batch = trainer.batch(0)[0]
    losses = [trainer.train_step(batch)["loss"] for _ in range(20)]
    assert losses[-1] < 0.75 * losses[0], f"the same eight examples, twenty times: {losses[0]} became {losses[-1]}"


def plain_decay(n):
    return min(0.999, (1 + n) / (10 + n))


def test_the_average_forgets_slowly_once_it_knows_something():
    trainer = trainer_of(lr=0.01)
    expected = [p.detach().clone() for p in trainer.model.parameters()]
    for n in (1, 2, 3):
        trainer.train_step(trainer.batch(n)[0])
        d = plain_decay(n)                                                  # θ_ema ← d·θ_ema + (1-d)·θ
        expected = [d * a + (1 - d) * p.detach() for a, p in zip(expected, trainer.model.parameters())]
    off = max((a - b).abs().max() for a, b in zip(expected, trainer.ema.parameters()))
    assert off < 1e-6, f"after three steps d was 2/11, 3/12 and 4/13; the average is off by {off:.1e}"
    memory = [{p.data_ptr() for p in network.parameters()} for network in (trainer.model, trainer.ema)]
    assert not memory[0] & memory[1], "weights and average must not be the same memory"
    assert plain_decay(100_000) == trainer.preset.train.ema == 0.999, "in the end it remembers a thousand steps"


def test_the_rate_warms_up_and_comes_to_rest():
    config = train.TrainConfig(steps=100, warmup=9, decay=True)
    assert [round(train.lr_scale(step, config), 3) for step in (0, 4, 50, 100)] == [0.1, 0.498, 0.5, 0], \
        "a tenth at first, ½·(1 + cos(π·step/steps)) later"
    flat = replace(config, decay=False)
    assert [train.lr_scale(step, flat) for step in (8, 9, 99)] == [0.9, 1, 1]


def test_the_text_encoder_has_a_rate_of_its_own():
    """Without warm-up Adam's first step is the rate long, whatever the gradient."""
    trainer = trainer_of(warmup=0, lr=1e-3, text_lr=1e-5, decay=False)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train_step(trainer.batch(0)[0])
    moved = {name: (p - before[name]).abs().max().item() for name, p in trainer.model.named_parameters()}
    text = [value for name, value in moved.items() if name.startswith(("text.", "pool."))]
    rest = [value for name, value in moved.items() if not name.startswith(("text.", "pool."))]
    assert max(text) < 1.1e-5 and max(rest) < 1.1e-3, "no weight moves further than its rate"
    assert np.median(text) > 0.9e-5 and np.median(rest) > 0.9e-3, "text_lr for text and pool, lr for the rest"


@pytest.mark.parametrize("kind, parts", [("inpaint", ("text", "pool", "up")), ("clip", ("caption_encoder",))])
def test_frozen_parts_stay_and_all_others_learn(kind, parts):
    trainer = trainer_of(kind, freeze=parts)
    before = {name: p.detach().clone() for name, p in trainer.model.named_parameters()}
    trainer.train_step(trainer.batch(0)[0])
    changed = {name for name, p in trainer.model.named_parameters() if not torch.equal(p, before[name])}
    free = {name for name in before if name.split(".")[0] not in parts}
    assert not changed - free, "frozen weights must stay as they began"
    assert len(free - changed) <= 1, f"these should have learned: {sorted(free - changed)}"


def test_a_freak_batch_moves_adams_memory_no_further_than_length_one():
    trainer = trainer_of()
    batch = trainer.batch(0)[0]
    metrics = trainer.train_step(batch | {"noise": 1000 * batch["noise"]})
    memory = torch.cat([state["exp_avg"].flatten() for state in trainer.optimizer.state.values()])
    length = memory.norm().item() / (1 - 0.9)                # exp_avg is (1-β₁)·gradient after one step
    assert metrics["grad_norm"] > 100 and abs(length - 1) < 1e-3, f"of a gradient clipped to 1 Adam sees {length:.3f}"


def snapshot(trainer):
    """Weights, average and Adam's memory, copied."""
    return deepcopy([trainer.model.state_dict(), trainer.ema.state_dict(), trainer.optimizer.state_dict()["state"]])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_step_without_a_finite_loss_leaves_no_trace(bad):
    trainer = trainer_of()
    trainer.train_step(trainer.batch(0)[0])
    before, batch = snapshot(trainer), trainer.batch(1)[0]
    batch["x0"][0, 0, 0, 0] = bad
    trainer.train_step(batch)
    assert same(snapshot(trainer), before), "weights, average and Adam's memory must stay as they were"
    assert (trainer.step, trainer.skipped_steps) == (2, 1), "the step is over all the same, and counted"
    trainer.train_step(trainer.batch(2)[0])
    assert not same(snapshot(trainer), before) and trainer.nonfinite == 0, "and training goes on"


def test_ten_steps_without_a_finite_loss_end_the_run():
    trainer = trainer_of()
    batch = trainer.batch(0)[0]
    batch["x0"][:] = float("nan")
    with pytest.raises(ValueError, match="10 steps in a row without a finite loss.*--lr") as refusal:
        for _ in range(20):
            trainer.train_step(batch)
    assert trainer.step == 10 and one_line(refusal.value)


def gradients(trainer, batch):
    """The gradient of one step, parameter by parameter."""
    found = {}
    with pytest.MonkeyPatch.context() as patch:              # before it is clipped and thrown away
        patch.setattr(nn.utils, "clip_grad_norm_", lambda parameters, limit: found.update(
            {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None}
        ) or torch.tensor(1.0))
        trainer.train_step(batch)
    return found


def relative_error(got, expected):
    """How far two gradients lie apart, as a fraction of the second one's length."""
    assert got.keys() == expected.keys()
    apart, length = (sum(value.double().square().sum() for value in values) ** 0.5
                     for values in ([got[name] - expected[name] for name in expected], expected.values()))
    return (apart / length).item()


@pytest.fixture(scope="module")
def plain():
    """A trainer in float32, without any acceleration; the gradient of its step 0; a batch."""
    trainer = trainer_of()
    batch = trainer.batch(0)[0]
    return gradients(trainer, batch), batch


# name -> how it is computed, and how far rounding may lead it astray
WAYS = {"in four parts": (dict(grad_accum=4), 1e-5), "recomputed": (dict(activation_checkpointing=True), 1e-5),
        "compiled": (dict(compile="aot_eager"), 1e-5),
        "bfloat16": (dict(dtype="bfloat16"), 0.05),
        "compiled bfloat16": (dict(dtype="bfloat16", compile="aot_eager"), 0.05)}


@pytest.mark.parametrize("way", WAYS)
def test_however_it_is_computed_the_gradient_is_the_same(plain, way):
    """A public project found that torch.compile under bfloat16 autocast gave its copy of this U-Net wrong gradients,
    silently. bfloat16 keeps 8 binary digits, an error of 1/512 at most each time a number is rounded."""
    (expected, batch), (how, tolerance) = plain, WAYS[way]
    error = relative_error(gradients(trainer_of(compute=replace(EXACT, **how)), batch), expected)
    assert error < tolerance, f"{way}: off by {error:.1e} of its length; {tolerance} is what rounding explains"
    assert "bfloat16" not in way or error > 1e-4, "it was not computed in bfloat16"


def test_dropout_is_for_training_alone():
    """Samples are drawn with the average in eval mode: dropout would make pictures worse than the model is."""
    tiny = small.preset()
    preset = replace(tiny, network=replace(tiny.network, dropout=0.5))
    trainer = train.Trainer(preset, compute=EXACT)
    small.randomize(trainer.model)
    assert trainer.model.training, "trained with dropout"
    batch, seen = trainer.batch(0)[0], []
    a, b = trainer.loss(batch), trainer.loss(batch)
    assert not torch.equal(a, b), "dropout differs from one pass to the next"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "dropout", lambda x, p, training, inplace: seen.append(training) or x)
        patch.setattr(diffusion, "respace", lambda steps, spec: [0, 999])            # two steps are enough to see it
        train.draw_samples(trainer)
    assert seen and not any(seen), "dropout is on while samples are drawn"
    trainer.train_step(batch)
    assert trainer.model.training, "drawing must not change how training goes on"


def test_dropout_differs_from_step_to_step():
    tiny = little(lr=1e-9, text_lr=0.0)
    trainer = train.Trainer(replace(tiny, network=replace(tiny.network, dropout=0.5)), compute=EXACT)
    small.randomize(trainer.model)
    batch = trainer.batch(0)[0]
    losses = [trainer.train_step(batch)["loss"] for _ in range(3)]
    assert len(set(losses)) == 3, "the same weights and the same batch, but other numbers are dropped"
    trainer.step = 1
    assert trainer.train_step(batch)["loss"] == losses[1], "those that belong to the step"


def test_samples_show_each_real_image_and_its_drawing(monkeypatch):
    monkeypatch.setattr(diffusion, "respace", lambda steps, spec: [0, 999])
    trainer = trainer_of("inpaint")
    one, other = train.draw_samples(trainer), train.draw_samples(trainer)
    assert np.array_equal(one, other), "the same noise each time: what differs between samples.png is the model"
    known = [tokenizer.seeded_rng("samples", i).random() for i in range(16)]
    assert len(set(known)) == 16 and one.size == (8 * 130 - 2, 4 * 130 - 2), "sixteen pairs of 16 pixels, magnified"


# --- The noised CLIP ---------------------------------------------------------------------------------

@pytest.mark.parametrize("world", ["single", "full"])
def test_the_truth_of_captions_is_more_than_the_diagonal(world):
    """By brute force: a caption is true of an image if all that it says is so, whatever it leaves open."""
    def facts(text):
        scene = tokenizer.Scene.parse(text).canonical()
        things = [(thing.noun, thing.color, thing.size) for thing in scene.things]
        return [scene.relation, scene.count, scene.background, len(things), *sum(things, ())]

    def is_true(a, b):
        return len(a) == len(b) and all(x in (None, y) for x, y in zip(a, b))
    data = diffusion.LittleWorld(world)
    items = [data[i] for i in range(300)]
    said, shown = ([item[k] for item in items] for k in (1, 2))
    table = [torch.tensor([guidance.statements(text, world) for text in texts]) for texts in (said, shown)]
    got = ((table[0] == table[1][:, None]) | (table[0] < 0)).all(2)                   # [images, captions]
    said, shown = ([facts(text) for text in texts] for texts in (said, shown))
    expected = torch.tensor([[is_true(a, b) for a in said] for b in shown])
    assert torch.equal(got, expected), "statements must compare as captions do"
    assert expected.diagonal().all() and expected.sum() > 320, "and several captions are true of one image"


def test_right_answers_share_the_probability():
    """Four pairs, of which the first two images fit both of the first two captions: a closed form."""
    said = torch.tensor([[1], [1], [2], [3]])
    vectors = F.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    logits = guidance.LOGIT_SCALE * vectors @ vectors.flip(0).T
    true = torch.tensor([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.]])
    target = true / true.sum(1, keepdim=True)
    expected = -(target * logits.log_softmax(1)).sum(1) / 2 - (target * logits.T.log_softmax(1)).sum(1) / 2
    got = guidance.contrastive_loss(vectors, vectors.flip(0), said, said)
    assert torch.allclose(got, expected, rtol=1e-5), "two right answers get one half each"
    alike = guidance.contrastive_loss(*[torch.ones(4, 4) / 2] * 2, said, said)
    assert torch.allclose(alike, torch.tensor(4.0).log()), "who finds all alike pays log B"


def test_a_clip_sees_images_noised_as_the_base_model_does():
    trainer = trainer_of("clip", batch=64)
    batch = trainer.batch(0)[0]
    x0 = diffusion.downsample(trainer.examples(0)[0], 16)
    process, t = diffusion.Diffusion.from_config(small.preset().diffusion), batch["t"]
    noise = (batch["x"] - process.extract(process.signal, t, x0) * x0) / process.extract(process.noise, t, x0)
    assert t.min() < 20 and t.max() > 980, "at every timestep, for it guides at every step of a sampling loop"
    noise = noise[t > 50]                                                 # where there is enough of it to be measured
    assert abs(noise.mean()) < 0.02 and abs(noise.std() - 1) < 0.02, "√ᾱ·x0 + √(1-ᾱ)·noise, by the base's schedule"


def test_a_clips_batch_is_not_taken_apart():
    with pytest.raises(ValueError, match="every caption.*--grad-accum must be 1"):
        trainer_of("clip", compute=replace(EXACT, grad_accum=2)).batch(0)


# --- Runs: what they leave, stopped, killed, continued -----------------------------------------------

QUICK = {"draw_samples": lambda trainer: Image.new("RGB", (8, 8)),
         "save_curve": lambda lines, path: path.write_bytes(b"a curve")}


@pytest.fixture
def quick(monkeypatch):
    """No pictures: to draw them takes longer than such a run."""
    for name, function in QUICK.items():
        monkeypatch.setattr(train, name, function)


def run(out, *, kind="base", resume=False, save_every=2, compute=EXACT, training=None, **options):
    """A run of six steps, with dropout, so that forgotten random numbers would show."""
    preset = (little if kind == "base" else small.preset)(kind, **{"steps": 6, "batch": 4} | (training or {}))
    if kind != "clip":
        preset = replace(preset, network=replace(preset.network, dropout=0.2))
    return train.train(preset, out, resume=resume, save_every=save_every, compute=compute, **{"seed": 3} | options)


def last(out):
    """A run's newest checkpoint, less the seconds it took."""
    saved = torch.load(train.checkpoints(out)[-1], weights_only=True)
    return saved | {"progress": (saved["progress"][0], saved["progress"][2])}


def log(out):
    """The lines of log.jsonl, less the speed."""
    return [{name: value for name, value in line.items() if name != "images_per_second"}
            for line in train.read_log(out / "log.jsonl")]


def same_results(out, expected):
    """The same bits, the same log, the same files."""
    assert same(last(out), last(expected)), "weights, average, optimiser: the undisturbed run's, bit for bit"
    assert same(*[unet.read_weights(folder / "base.pt")["weights"] for folder in (out, expected)]), "and what is kept"
    assert log(out) == log(expected), "each step is logged once"
    names = [{path.name for path in folder.iterdir()} for folder in (out, expected)]
    assert names[0] == names[1], "no half-written file may stay behind"


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """A whole run, with its pictures."""
    out = tmp_path_factory.mktemp("runs") / "undisturbed"
    run(out, made={"command": "python 08_train.py base"})
    return out


def test_a_run_leaves_what_it_says(undisturbed):
    assert {path.name for path in undisturbed.iterdir()} == {
        "base.pt", "samples.png", "loss.png", "log.jsonl", "checkpoint-0000004.pt", "checkpoint-0000006.pt"}, \
        "the averaged weights, two pictures, the log and the last two checkpoints"
    with Image.open(undisturbed / "samples.png") as image:
        assert image.size == (8 * 130 - 2, 4 * 130 - 2)
    lines = train.read_log(undisturbed / "log.jsonl")
    assert [line["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
    for line in lines:
        assert set(line) == {"step", "loss", "grad_norm", "bad", "lr", "images_per_second", "skipped"}
        assert line["loss"] > 0 < line["grad_norm"] and line["images_per_second"] > 0 == line["skipped"] == line["bad"]
    config = little(steps=6).train
    assert [line["lr"] for line in lines] == [config.lr * train.lr_scale(step, config) for step in range(6)]


def test_a_weight_file_tells_its_own_story_and_holds_the_average(undisturbed):
    saved, average = unet.read_weights(undisturbed / "base.pt"), last(undisturbed)["ema"]
    assert same({name: value.half() for name, value in average.items()}, saved["weights"]), \
        "the average is what is kept, in 16 bits"
    assert saved["size"] == 16 and saved["world"] == "single" and saved["diffusion"]["prediction_type"] == "v"
    assert saved["made"]["command"] == "python 08_train.py base" and saved["made"]["steps"] == 6
    model = sample.Weights(undisturbed).load("base")
    assert model.size == 16 , "09 draws with it without being told anything"
    assert model.tokenizer.encode("a red heart") == WORDS.encode("a red heart")


def kill():
    """An exception that nothing catches: to the files it is what a kill would be."""
    raise KeyboardInterrupt


@contextmanager
def interrupted(owner, name, when=lambda *args: True, *, what=kill, after=False):
    """what() happens on such a call of a function, before or after its work."""
    real = getattr(owner, name)

    def function(*args, **kwargs):
        hit = when(*args)
        if hit and not after:
            what()
        answer = real(*args, **kwargs)
        if hit and after:
            what()
        return answer
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(owner, name, function)
        yield


def at(step):
    return lambda trainer, *rest: trainer.step == step


# What happens, where the run is then: (owner, function, condition, after its work?)
MOMENTS = {
    "before the first save": (train.Trainer, "loss", at(1), False),
    "in the loop": (train.Trainer, "loss", at(4), False),
    "between weights and their average": (train.Trainer, "update_ema", at(4), False),
    "before a line of the log": (train, "log_step", at(5), False),
    "before the checkpoint had its name": (os, "replace", lambda old, new: "checkpoint-0000004" in str(new), False),
    "between checkpoint and weights": (os, "replace", lambda old, new: "checkpoint-0000004" in str(new), True),
    "before the old checkpoints were removed": (train, "save_curve", lambda *args: True, True),
    "while the log is shortened": (os, "replace", lambda old, new: "log.jsonl" in str(new), False)}


@pytest.mark.parametrize("moment", MOMENTS)
def test_stopped_at_any_moment_a_run_goes_on_as_if_nothing_had_happened(undisturbed, tmp_path, quick, moment):
    out, (owner, name, when, after) = tmp_path / "run", MOMENTS[moment]
    with interrupted(owner, name, when, after=after), pytest.raises(KeyboardInterrupt):
        run(out)
    torch.manual_seed(99)                                            # another process has other random numbers
    run(out, resume=bool(train.checkpoints(out)), made={"command": "python 08_train.py base"})
    same_results(out, undisturbed)


def killed_run():
    """In a process of its own: a run that kills itself while it writes its second checkpoint."""
    out, save = Path(sys.argv[1]), torch.save

    def half(value, path):
        if "checkpoint-0000004" in path.name:
            path.write_bytes(b"half")
            with open(out / "log.jsonl", "a") as file:
                file.write('{"step": 5, "lo')
            os.kill(os.getpid(), signal.SIGKILL)
        save(value, path)
    torch.save = half
    vars(train).update(QUICK)
    run(out)


def test_a_run_killed_while_it_wrote_goes_on(undisturbed, tmp_path, quick):
    """A real kill, by the signal that no program sees: half a checkpoint and half a line of the log are left."""
    out = tmp_path / "run"
    done = small.run("-c", "import sys; sys.path[:0] = ['tests']; import test_08_train as t; t.killed_run()", out)
    assert done.returncode == -signal.SIGKILL, done.stderr
    assert [path.name for path in out.glob("*.tmp")], "the kill left half a file"
    run(out, resume=True, made={"command": "python 08_train.py base"})
    same_results(out, undisturbed)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_asked_to_stop_a_run_ends_its_step_saves_and_says_how_to_go_on(undisturbed, tmp_path, quick, number):
    before = signal.getsignal(number)
    with interrupted(train.Trainer, "loss", at(2), what=lambda: os.kill(os.getpid(), number)):
        with pytest.raises(SystemExit) as stop:
            run(tmp_path / "run", save_every=100)
    assert stop.value.code == "stopped after step 3; --resume continues", "the step was finished, and what to do said"
    assert last(tmp_path / "run")["progress"][0] == 3, "what was learned must be saved"
    assert signal.getsignal(number) is before, "afterwards Ctrl-C is Python's own again"
    run(tmp_path / "run", resume=True)
    assert same(last(tmp_path / "run"), last(undisturbed)) and log(tmp_path / "run") == log(undisturbed)


def test_a_second_ctrl_c_leaves_at_once(tmp_path, quick):
    def twice():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(1)
    with interrupted(train.Trainer, "loss", at(2), what=twice), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "run", save_every=100)
    assert not train.checkpoints(tmp_path / "run")


def test_resume_with_more_steps_goes_on_and_says_so(tmp_path, quick, capfd):
    run(tmp_path, training={"steps": 3})
    capfd.readouterr()
    trainer = run(tmp_path, training={"steps": 5}, resume=True)
    assert trainer.step == 5 and [line["step"] for line in log(tmp_path)] == [1, 2, 3, 4, 5]
    said = one_line(capfd.readouterr().err)
    assert said.startswith("3 steps become 5") and "rate" in said, "what more steps change is said"


@pytest.mark.parametrize("change, name", [
    ({"training": {"batch": 8}}, "batch"), ({"seed": 4}, "seed"), ({"world": "full"}, "world"),
    ({"training": {"lr": 1e-3}}, "lr"), ({"training": {"steps": 9, "crop": 0, "ema": 0.5}}, "ema")])
def test_a_run_is_not_continued_with_other_options(undisturbed, change, name):
    with pytest.raises(ValueError, match=f"is of a run with another {name}; give the same options") as refusal:
        run(undisturbed, resume=True, **change)
    one_line(refusal.value)


@pytest.mark.parametrize("damage", ["cut", "html", "foreign", "empty"])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_still_serves(undisturbed, tmp_path, quick, damage):
    for path in undisturbed.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    newest = train.checkpoints(tmp_path)[-1]
    bad = {"cut": newest.read_bytes()[:-5000], "html": b"<html>not found</html>", "empty": b""}
    if damage == "foreign":
        torch.save({"epoch": 3}, newest)
    else:
        newest.write_bytes(bad[damage])
    with pytest.raises(ValueError, match="is damaged.*remove it: --resume takes the one before") as refusal:
        run(tmp_path, resume=True)
    assert str(newest) in one_line(refusal.value)
    newest.unlink()
    run(tmp_path, resume=True)
    assert same(last(tmp_path), last(undisturbed)), "done as told, the run ends with the same bits"


def test_a_run_is_not_written_over(undisturbed, tmp_path):
    before = {path: path.read_bytes() for path in undisturbed.iterdir()}
    with pytest.raises(ValueError, match="holds a run already; --resume continues it, another --out"):
        run(undisturbed)
    assert before == {path: path.read_bytes() for path in undisturbed.iterdir()}
    with pytest.raises(ValueError, match="no checkpoint in .*; leave --resume out"):
        run(tmp_path / "empty", resume=True)


@pytest.mark.parametrize("where", ["checkpoint", "base.pt", "samples.png", "log.jsonl"])
def test_a_full_disk_does_not_end_a_run(tmp_path, quick, monkeypatch, capfd, where):
    """The disk is full at step 4 and has room again at step 6."""
    full, real_save, real_open = [False], torch.save, io.open

    def check(path):
        if full[0] and where in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")

    def save_tensors(value, path):
        check(path)
        real_save(value, path)

    def save_picture(self, path):
        check(path)
        Path(path).write_bytes(b"picture")
    monkeypatch.setattr(torch, "save", save_tensors)
    monkeypatch.setattr(Image.Image, "save", save_picture)
    monkeypatch.setattr("builtins.open", lambda path, *args, **rest: (
        check(path) if where == "log.jsonl" and "a" in args else None) or real_open(path, *args, **rest))
    real_step = train.Trainer.train_step

    def train_step(self, batch, stop):
        answer = real_step(self, batch, stop)
        full[0] = 3 <= self.step < 6
        return answer
    monkeypatch.setattr(train.Trainer, "train_step", train_step)
    trainer = run(tmp_path)
    said = capfd.readouterr().err
    assert trainer.step == 6 and last(tmp_path)["progress"][0] == 6, "the run went on, and saved when it could again"
    assert not list(tmp_path.glob("*.tmp")), "no half file"
    if where != "log.jsonl":
        assert "not saved at step 4" in said and "No space left" in said and "the run continues" in said


def test_what_the_log_cannot_say_does_not_end_a_run(tmp_path):
    """Not a single line (a full disk), or none with a finite loss: there is no curve then, and no error."""
    train.save_curve([], tmp_path / "loss.png")
    train.save_curve([{"step": 1, "loss": None}], tmp_path / "loss.png")
    assert not (tmp_path / "loss.png").exists()
    (tmp_path / "log.jsonl").write_text('{"step": 1, "loss": 2}\n{"step": 2, "lo{"step": 3, "loss": 1}\n\n{"step": 4')
    assert train.read_log(tmp_path / "log.jsonl") == [{"step": 1, "loss": 2}], "parts of lines are no lines"


def test_a_long_runs_log_has_a_few_thousand_lines(tmp_path, capsys):
    trainer = trainer_of(steps=50_000)
    trainer.seconds = 1.0
    for trainer.step in range(1, 41):
        train.log_step(trainer, tmp_path, {"loss": 1.0, "grad_norm": float("nan"), "bad": 0, "stop": False}, 0.1)
    lines = train.read_log(tmp_path / "log.jsonl")
    assert [line["step"] for line in lines] == [10, 20, 30, 40], "one step in ten of 50,000"
    assert lines[0]["grad_norm"] is None, "JSON has no word for what is not a number"


# --- Beginning with the weights of a file ------------------------------------------------------------

@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """All five kinds of weight files, with random weights."""
    return small.save_models(tmp_path_factory.mktemp("weights"), train.KINDS)


@pytest.mark.parametrize("kind, begins_as", [("base", "base"), ("inpaint", "inpaint"), ("clip", "clip"),
                                             ("inpaint", "base"), ("inpaint-upsampler", "upsampler")])
def test_training_can_begin_with_the_weights_of_a_file(weights, kind, begins_as):
    preset = small.preset(kind)
    trainer = (train.CLIPTrainer if kind == "clip" else train.Trainer)(
        preset, compute=EXACT, init_from=weights / f"{begins_as}.pt")
    saved = unet.read_weights(weights / f"{begins_as}.pt")["weights"]
    expected = {name: value.float() for name, value in saved.items()}
    got = trainer.model.state_dict()
    if kind != begins_as:
        grown = got["input_conv.weight"]
        assert not grown[:, 3:7].any(), "the four channels of the mask begin at zero (06)"
        got["input_conv.weight"] = torch.cat([grown[:, :3], grown[:, 7:]], 1)
    assert same(dict(got), expected) and trainer.model.training, "the file's weights, in float32, ready to learn"
    assert same(dict(trainer.ema.state_dict()), dict(trainer.model.state_dict())), "and the average begins there too"


@pytest.mark.parametrize("kind, path", [("upsampler", "base"), ("clip", "base"), ("base", "clip"), ("base", "inpaint")])
def test_weights_of_other_sizes_are_no_beginning(weights, kind, path):
    preset = small.preset(kind)
    trainer = train.CLIPTrainer if kind == "clip" else train.Trainer
    with pytest.raises(ValueError) as refusal:
        trainer(preset, init_from=weights / f"{path}.pt")
    assert f"{path}.pt" in one_line(refusal.value)


def test_fine_tuning_that_was_stopped_goes_on_with_the_same_bits(weights, tmp_path, quick):
    options = dict(kind="inpaint", init_from=weights / "base.pt", training={"steps": 3})
    run(tmp_path / "whole", **options)
    with interrupted(train.Trainer, "loss", at(2)), pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", **options)
    run(tmp_path / "cut", resume=True, **options)
    assert same(last(tmp_path / "cut"), last(tmp_path / "whole")), "masks and frozen parts are the undisturbed run's"


def test_a_clips_run_leaves_what_guiding_needs(tmp_path, quick):
    run(tmp_path, kind="clip")
    clip = guidance.NoisedCLIP.load(tmp_path / "clip.pt")
    saved = unet.read_weights(tmp_path / "clip.pt")
    assert saved["vocabulary"] == "" and clip.config.size == 16 and not (tmp_path / "samples.png").exists()


# --- The command line --------------------------------------------------------------------------------

@pytest.fixture
def asked(monkeypatch):
    """What the command line would have trained: a dictionary of train's arguments, filled in when it is called."""
    told = {}
    monkeypatch.setattr(train, "train", lambda preset, out, **options: told.update(options, preset=preset, out=out))
    return told


def command(capfd, *argv):
    return small.main(capfd, *argv, script=train)


def test_the_plain_command_trains_the_tiny_base_model(asked, capfd):
    assert command(capfd)[0] == 0
    assert asked["preset"] == train.PRESETS["tiny"]["base"] and asked["out"] == train.OUTPUTS / "train-base"
    assert asked["world"] == "single" and asked["save_every"] == 270 and not asked["resume"] and not asked["init_from"]


def test_options_change_the_preset_and_how_it_is_computed(asked, capfd):
    command(capfd, "upsampler", "--preset", "small", "--lr", "1e-3", "--no-decay", "--freeze", "text", "pool",
            "--grad-accum", 2, "--dtype", "bfloat16", "--activation-checkpointing", "--seed", 5, "--save-every", 7)
    preset, compute = asked["preset"], asked["compute"]
    assert preset == replace(train.PRESETS["small"]["upsampler"], train=replace(
        train.PRESETS["small"]["upsampler"].train, lr=1e-3, decay=False, freeze=["text", "pool"]))
    assert (compute.grad_accum, compute.dtype, compute.activation_checkpointing) == (2, "bfloat16", True)
    assert asked["seed"] == 5 and asked["save_every"] == 7 and asked["out"].name == "train-small-upsampler"


def test_the_full_world_is_trained_otherwise(asked, capfd):
    command(capfd, "--world", "full", "--lr", "1e-4")
    got = asked["preset"].train
    assert got.weighting == "late" and got.high_noise_fraction == 0.5 and got.canonical_first and got.lr == 1e-4
    command(capfd, "inpaint")
    assert asked["init_from"] == unet.WEIGHTS / "base.pt", "fine-tuning begins with the course's weights"
    assert asked["world"] == unet.read_weights(unet.WEIGHTS / "base.pt")["world"], "and shows the world they know"
    command(capfd, "inpaint-upsampler")
    assert asked["init_from"] == unet.WEIGHTS / "upsampler.pt"


def test_a_tilde_is_the_home_folder(asked, capfd, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    folder_of(tmp_path / "mine", 3)
    small.save_model(tmp_path / "base.pt", train.PRESETS["tiny"]["base"])
    status, _, err = command(capfd, "--out=~/run", "--data", "~/mine", "--init-from=~/base.pt")
    assert status == 2 and "3 × too small" not in err[-1] or status == 0, err
    assert asked["out"] == tmp_path / "run" and asked["init_from"] == tmp_path / "base.pt" and len(asked["data"]) == 3


def test_the_tokenizer_of_ones_own_captions_is_trained_without_reading_an_image(asked, capfd, tmp_path, monkeypatch):
    folder_of(tmp_path / "in", 20)
    for i in range(20):
        (tmp_path / "in" / f"{i:04}.txt").write_text("eine Schneeeule auf einer Tanne" * (i > 0))       # one is empty
    monkeypatch.setattr(inpaint, "open_image", lambda *args, **rest: pytest.fail("an image was opened"))
    status, _, err = command(capfd, "--data", tmp_path / "in", "--out", tmp_path / "run")
    assert status == 0 and err[0] == "20 examples; left out: none", err
    words = asked["words"]
    assert len(words.encode("eine Schneeeule")) == 2 < len(WORDS.encode("eine Schneeeule")), "its words are tokens"


def test_the_tokenizer_is_that_of_the_first_weights(asked, capfd, tmp_path):
    """A CLIP's vocabulary goes with a CLIP's weights: another one's numbers would mean other words."""
    clip = tokenizer.CLIPTokenizer([])
    small.save_model(tmp_path / "clip.pt", small.preset("clip"), tokenizer=clip.merges, vocabulary="clip")
    tiny = train.PRESETS["tiny"]["clip"]
    roomy = replace(tiny, network=replace(tiny.network, text=replace(tiny.network.text, vocab_size=600)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(train.PRESETS["tiny"], "clip", roomy)
        command(capfd, "clip", "--init-from", tmp_path / "clip.pt")
    assert isinstance(asked["words"], tokenizer.CLIPTokenizer)
    small.save_model(tmp_path / "base.pt", small.preset(), tokenizer=[(104, 101)])
    command(capfd, "--init-from", tmp_path / "base.pt")
    assert [tuple(pair) for pair in asked["words"].merges] == [(104, 101)]


REFUSED = {
    "--lr 0": "learning rates", "--lr nan": "learning rates", "--lr fast": "--lr", "--steps 0": "steps and batch",
    "--batch -1": "steps and batch", "--ema 2": "between 0 and 1", "--caption-dropout 1.5": "between 0 and 1",
    "--high-noise-fraction -1": "between 0 and 1", "--weighting best": "--weighting", "--dtype float16": "--dtype",
    "--freeze txet": "no part txet", "--crop 32": "--crop is for upsamplers", "--grad-accum 0": "no multiple",
    "--batch 6 --grad-accum 4": "a batch of 6 is no multiple", "--shard": "torchrun", "--device abacus": "abacus",
    "--device cuda:77": "CUDA", "--compile magic": "magic", "--init-from none.pt": "no weights at none.pt",
    "--vocab none.bpe": "none.bpe", "--data none": "--data none is neither", "--preset huge": "huge",
    "poster": "poster",
    "upsampler --crop 96": "at most 64", "clip --grad-accum 2": "must be 1", "--resume": "no checkpoint in"}


@pytest.mark.parametrize("argv", REFUSED)
def test_what_cannot_be_done_is_refused_in_one_line(argv, capfd, tmp_path):
    if "cuda" in argv and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    said = refused(capfd, *argv.split(), "--out", tmp_path / "run", script=train)
    assert REFUSED[argv] in said, f"it must say what is wrong: {said}"
    left = [path.name for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size]
    assert not left, f"nothing may be left of it: {left}"


@pytest.mark.parametrize("text", ["CUDA out of memory. Tried to allocate 20 GiB\nGPU 0 has a total capacity",
                                  "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory"])
def test_too_little_memory_is_said_and_what_to_do(text, asked, capfd, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *args, **options: exec("raise RuntimeError(text)", {"text": text}))
    said = refused(capfd, script=train)
    assert text.split("\n")[0] in said and "a smaller --batch" in said


def test_a_fault_of_ours_keeps_its_traceback(capfd, monkeypatch):
    monkeypatch.setattr(train, "train", lambda *args, **options: torch.zeros(2) @ torch.zeros(3))
    with pytest.raises(RuntimeError, match="size"):
        command(capfd)


def test_the_command_trains(capfd, tmp_path, monkeypatch, quick):
    """All of it together, in the smallest size."""
    monkeypatch.setitem(train.PRESETS["tiny"], "base", little(steps=3))
    status, out, err = command(capfd, "--out", tmp_path / "run", "--dtype", "float32")
    assert status == 0 and "step 3/3" in out and err[-1].startswith(f"wrote {tmp_path / 'run' / 'base'}.pt")
    said = refused(capfd, "--out", tmp_path / "run", script=train)
    assert "holds a run already" in said
    status, out, err = command(capfd, "--out", tmp_path / "run", "--resume", "--steps", 5, "--dtype", "float32")
    assert status == 0 and "step 5/5" in out and any("3 steps become 5" in line for line in err)
