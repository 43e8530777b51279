"""Training: what is shown at a step, what is learned from it, and runs that can be trusted, whatever happens to them."""
import errno
import io
import json
import os
import random
import signal
import subprocess
import sys
import tarfile
import time
from collections import Counter
from contextlib import closing
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
from small import one_line, refused, same

tokenizer, transformer, unet, diffusion, guidance, inpaint, upsample, train, sample = (import_module(m) for m in (
    "01_tokenizer", "02_transformer", "03_unet", "04_diffusion", "05_guidance", "06_inpaint", "07_upsample",
    "08_train", "09_sample"))
CASES = Path(__file__).parent / "cases"
WORDS = tokenizer.world_tokenizer()
EXACT = train.ComputeConfig(dtype="float32")      # rounding to bfloat16 would hide small differences


def trainer_of(kind="base", *, compute=EXACT, world="full", random_weights=True, **training):
    """A Trainer of a network that is far too small, whose weights are random: a fresh one answers zero."""
    preset, options = small.preset(kind, **training), {"compute": compute, "world": world}
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
