"""Training: what is drawn at each step, and what is learned from it. The judge and its honesty."""
import json
import math
import random
from dataclasses import asdict, replace
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import small
from small import one_line, refused, same

tokenizer, unet, diffusion, guidance, inpaint, train = (import_module(m) for m in (
    "01_tokenizer", "03_unet", "04_diffusion", "05_guidance", "06_inpaint", "08_train"))
KINDS = ["base", "upsampler"]
TUNED = {"inpaint": "base", "inpaint-upsampler": "upsampler"}                # … and what they are fine-tuned from
TOK = tokenizer.world_tokenizer()


# --- Presets ---

@pytest.mark.parametrize("name", ["filtered", "paper"])
@pytest.mark.parametrize("kind, steps, batch", [("base", 2_500_000, 2048), ("upsampler", 1_600_000, 512),
                                                ("inpaint", 2_500_000, 2048), ("inpaint-upsampler", 1_600_000, 512)])
def test_large_presets_train_as_published(name, kind, steps, batch):
    preset = train.PRESETS[name][kind]
    got = preset.train
    assert (got.steps, got.batch) == (steps, batch), "GLIDE section 4: 2.5 M steps of 2,048; 1.6 M of 512"
    assert (got.lr, got.text_lr, got.ema, got.drop) == (1e-4, 1e-4, 0.9999, 0.2)
    assert not got.decay and got.crop is None, "the papers keep the rate constant and train on whole pictures"
    assert preset.diffusion.predicts == got.weighting == "eps", "GLIDE predicts ε, and weighs all its errors alike"
    assert preset.diffusion.schedule == ("linear" if "upsampler" in kind else "cosine")
    assert preset.size == (256 if "upsampler" in kind else 64)


@pytest.mark.parametrize("name", ["tiny", "filtered", "paper"])
def test_input_channels_follow_from_what_is_given(name):
    channels = {kind: preset.network.in_channels for kind, preset in train.PRESETS[name].items() if kind != "clip"}
    assert channels == {"base": 3, "inpaint": 7, "upsampler": 6, "inpaint-upsampler": 10}


@pytest.mark.parametrize("kind", TUNED)
def test_fine_tuning_is_short_and_gentle(kind):
    tuning, first = (train.PRESETS["tiny"][name].train for name in (kind, TUNED[kind]))
    assert tuning.steps * tuning.batch < first.steps * first.batch, "most is known already"
    assert tuning.lr < first.lr and tuning.text_lr < first.text_lr and tuning.warmup and tuning.decay


# --- Data ---

@pytest.mark.parametrize("kind", [*KINDS, *TUNED])
def test_a_seed_is_a_batch(kind):
    def batch(seed):
        x0, cond = train.world_batch(small.preset(kind), TOK, batch=8, difficulty="full", seed=seed)
        return {"x0": x0, **cond}
    assert same(batch(5), batch(5)), "the same seed must give the same pictures, captions and crops"
    assert not torch.equal(batch(5)["x0"], batch(6)["x0"]), "another seed must give others"


def test_the_small_picture_is_the_large_one_reduced():
    """Crop by crop: if low_res were cut elsewhere, the upsampler would learn to ignore it."""
    x0, cond = train.world_batch(small.preset("upsampler", crop=32), TOK, batch=24, difficulty="full", seed=3)
    assert x0.shape == (24, 3, 32, 32) and cond["low_res"].shape == (24, 3, 8, 8)
    off = (F.avg_pool2d(x0, 4) - cond["low_res"]).abs().max().item()
    assert off <= 0.5 / 127.5 + 1e-5, f"low_res is {off:.3f} off; rounding to bytes explains {0.5 / 127.5:.4f}"
    bytes_ = (cond["low_res"] + 1) * 127.5
    assert (bytes_ - bytes_.round()).abs().max() < 1e-3, "low_res must be what an 8-bit file would hold"


@pytest.mark.parametrize("kind, crop", [("inpaint", None), ("inpaint-upsampler", None), ("inpaint-upsampler", 32)])
def test_what_is_known_is_the_picture_itself(kind, crop):
    """x0 stays the whole true picture: the loss is over all of it, and the mask alone says what is shown."""
    preset = small.preset(kind, crop=crop)
    x0, cond = train.world_batch(preset, TOK, batch=24, difficulty="full", seed=3)
    side = crop or preset.size
    assert torch.equal(cond["inpaint_image"], x0) and x0.shape == (24, 3, side, side)
    mask = cond["inpaint_mask"]
    assert mask.shape == (24, 1, side, side) and set(mask.unique().tolist()) == {0.0, 1.0}
    assert 0.1 < mask.mean() < 0.9 and len(mask.unique(dim=0)) > 10, "every picture its own mask"


def test_an_upsamplers_mask_has_the_small_pictures_pixels_and_its_place(monkeypatch):
    """Both models draw into one hole. Masks that can be told from the pictures: 1 where the small one is bright."""
    pictures, _, _ = diffusion.world_pictures(24, seed=3, difficulty="full")
    bright = (train.upsample.round_to_bytes(diffusion.reduce(pictures, 16))[:, :1] > 0.01).float()
    monkeypatch.setattr(inpaint, "random_mask", lambda count, height, width, *, seed: bright)
    for crop in (32, None):
        preset = small.preset("inpaint-upsampler", crop=crop)
        _, cond = train.world_batch(preset, TOK, batch=24, difficulty="full", seed=3)
        here = (cond["low_res"][:, :1] > 0.01).float().repeat_interleave(4, 2).repeat_interleave(4, 3)
        assert torch.equal(cond["inpaint_mask"], here), f"crop {crop}: picture, mask and low_res are cut at one place"


def test_the_upsamplers_small_picture_has_no_hole():
    """In use it comes from the base model, which has filled the hole already."""
    x0, cond = train.world_batch(small.preset("inpaint-upsampler"), TOK, batch=24, difficulty="full", seed=3)
    assert (F.avg_pool2d(x0, 4) - cond["low_res"]).abs().max() <= 0.5 / 127.5 + 1e-5


def test_crops_reach_every_place_and_differ():
    """Pictures that hold their own coordinates, so that a crop tells where it was cut."""
    low = torch.stack(torch.meshgrid(torch.arange(16.0), torch.arange(16.0), indexing="ij")).expand(300, 2, 16, 16)
    high = low.repeat_interleave(4, 2).repeat_interleave(4, 3)
    x0, low_res = train.crop_both(high, low, 32, [random.Random(i) for i in range(len(high))])
    assert torch.equal(x0, low_res.repeat_interleave(4, 2).repeat_interleave(4, 3)), "both must be cut at one place"
    assert set(low_res[:, 0, 0, 0].tolist()) == set(range(9)), "tops 0 … 8 are possible, the last one too"
    assert set(low_res[:, 1, 0, 0].tolist()) == set(range(9)), "and so for the left edges"


@pytest.mark.parametrize("difficulty", ["single", "full"])
def test_held_out_pairs_are_never_trained_on(difficulty):
    seen = set()
    for seed in range(6):
        _, cond = train.world_batch(small.preset(), TOK, batch=100, difficulty=difficulty, seed=seed)
        for tokens, mask in zip(cond["tokens"], cond["mask"]):
            scene = tokenizer.Scene.parse(TOK.decode(tokens[mask].tolist()))
            seen |= {(thing.color, thing.noun) for thing in scene.things}
    assert not seen & tokenizer.HELD_OUT, f"composition can no longer be measured: {seen & tokenizer.HELD_OUT}"
    assert len(seen) > 80, "many other pairs of colour and noun do occur"


def test_the_judge_learns_held_out_pairs_too():
    _, scenes = train.judge_pictures(1000, random.Random(0), 16)
    seen = {(thing.color, thing.noun) for scene in scenes for thing in scene.things}
    assert tokenizer.HELD_OUT <= seen, "a judge that never saw a green heart could not recognise one that is drawn"


# --- One step ---

def rigged(monkeypatch, batch, **training):
    """A Trainer whose pictures are single pixels and whose network costs nothing: for counting what is drawn."""
    trainer = train.Trainer(small.preset(batch=batch, steps=10 ** 6, **training))
    cond = guidance.encode(["a small red heart on a white background"] * batch, TOK, 20)
    monkeypatch.setattr(train, "world_batch", lambda *a, **k: (
        torch.zeros(batch, 3, 1, 1), {name: value.clone() for name, value in cond.items()}))
    monkeypatch.setattr(trainer.optimizer, "step", lambda: None)
    monkeypatch.setattr(trainer, "_average", lambda: None)
    return trainer, cond["mask"]


@pytest.mark.parametrize("drop", [0.15, 0.4])
def test_captions_are_dropped_one_by_one(monkeypatch, drop):
    trainer, whole = rigged(monkeypatch, 64, drop=drop)
    masks = []

    def spy(x, t, *, tokens, mask):
        masks.append(mask)
        return trainer.model.enter.bias.sum() + torch.zeros(len(x), 6, 1, 1)
    trainer.denoiser = spy
    for _ in range(100):
        trainer.advance()
    masks = torch.stack(masks)                                               # steps, batch, K
    kept = masks.any(2)
    assert torch.equal(masks[kept], whole[:1].expand(int(kept.sum()), -1)), "what is not dropped stays whole"
    n, dropped = kept.numel(), (~kept).sum().item()
    sigma = math.sqrt(n * drop * (1 - drop))
    assert abs(dropped - n * drop) < 4 * sigma, f"{dropped / n:.3f} of the captions were dropped, not {drop}"
    spread = (~kept).sum(1).double().var().item() / (64 * drop * (1 - drop))
    assert 0.6 < spread < 1.5, f"per batch the number varies {spread:.1f} times as much as independent drops would"


def test_every_timestep_is_equally_likely(monkeypatch):
    """The first and the last too: a well-known bug never drew 999, and rounding halves the ends' share."""
    trainer, _ = rigged(monkeypatch, 64)
    counts, batches = torch.zeros(1000), 2000

    def spy(model, x0, t, noise, **cond):
        counts.index_add_(0, t, torch.ones(len(t)))
        widest = t.sort().values.diff().max().item()
        assert widest <= 2 * math.ceil(1000 / 64), f"{widest} steps without a draw: not one t from each stretch"
        return trainer.model.enter.bias.sum().expand(len(x0))
    monkeypatch.setattr(trainer.process, "loss", spy)
    for _ in range(batches):
        trainer.advance()
    share = 64 / 1000
    sigma = math.sqrt(batches * share * (1 - share))
    off = (counts - batches * share) / sigma
    assert counts[0] > 0 and counts[999] > 0, f"t = 0 was drawn {counts[0]:.0f} times, t = 999 {counts[999]:.0f}"
    worst = off.abs().argmax().item()
    assert off.abs().max() < 4.5, f"t = {worst} was drawn {counts[worst]:.0f} times, {batches * share:.0f} expected"


def test_noisy_timesteps_are_drawn_more_often():
    """Half of a batch from everywhere, half from the last two fifths: there t is 1 + 2.5 times as likely."""
    g = torch.Generator().manual_seed(0)
    t = torch.stack([train.draw_timesteps(64, 0.5, 1000, g) for _ in range(2000)])
    counts = torch.bincount(t.flatten(), minlength=1000).double()
    assert t.shape == (2000, 64) and counts.min() > 0 and len(counts) == 1000, "0 and 999 included, nothing beyond"
    assert 3.4 < counts[600:].mean() / counts[:600].mean() < 3.6, "half of the batch falls on 400 of 1,000 timesteps"


def test_pairs_are_first_said_one_way():
    """The caption changes, the picture does not: a heart below a star is a star above a heart."""
    draw = partial(train.world_batch, small.preset(), TOK, batch=200, difficulty="full", seed=3)
    both, plain = draw(), draw(plain=1.0)
    assert torch.equal(both[0], plain[0]), "only what is said may change"
    said = [[TOK.decode(row[mask].tolist()) for row, mask in zip(cond["tokens"], cond["mask"])] for _, cond in (both, plain)]
    reversed_ = [("right of" in caption or "below" in caption) for caption in said[0]]
    assert 20 < sum(reversed_) < 60, "of 40% pairs half are said the other way round"
    assert not any("right of" in caption or "below" in caption for caption in said[1])
    assert all(tokenizer.Scene.parse(a).canonical() == tokenizer.Scene.parse(b).canonical() for a, b in zip(*said))
    assert all(a == b for a, b, other in zip(*said, reversed_) if not other), "what was plain stays as it is"


def test_the_other_way_of_saying_it_comes_in_slowly():
    config = small.preset(steps=100, plain_first=True).train
    assert [train.plain_share(step, config) for step in (0, 25, 50, 75)] == [1.0, 0.5, 0.0, 0.0]
    assert train.plain_share(0, small.preset().train) == 0.0, "single things have no other way of being said"


def test_every_step_draws_anew_and_from_the_seed(monkeypatch):
    def draws(seed):
        trainer, seen = rigged(monkeypatch, 4)[0], []
        trainer.seed = seed

        def spy(model, x0, t, noise, **cond):
            seen.append(noise.flatten().tolist())
            return trainer.model.enter.bias.sum().expand(len(x0))
        monkeypatch.setattr(trainer.process, "loss", spy)
        trainer.advance(), trainer.advance()
        return seen
    first, second = draws(0)
    assert first != second, "two steps must not share their noise"
    assert draws(0) == [first, second] and first not in draws(1)


@pytest.mark.parametrize("kind", [*KINDS, *TUNED])
def test_one_batch_can_be_learned_by_heart(monkeypatch, kind):
    """By every U-Net that is trained; the noised CLIP's turn comes below."""
    crop = 32 if "upsampler" in kind else None
    trainer = train.Trainer(small.preset(kind, steps=200, warmup=5, lr=2e-3, freeze=(), crop=crop))
    x0, cond = train.world_batch(trainer.preset, TOK, batch=8, difficulty="single", seed=0)
    monkeypatch.setattr(train, "world_batch", lambda *a, **k: (x0, {name: v.clone() for name, v in cond.items()}))
    losses = [trainer.advance() for _ in range(100)]
    start, end = sum(losses[:5]) / 5, sum(losses[-10:]) / 10
    assert end < 0.3 * start, f"the loss of one batch, shown 100 times, went from {start:.3f} to {end:.3f} only"


@pytest.mark.parametrize("weighting", ["v", "middle", "late"])
def test_loss_weights_change_what_is_compared(weighting):
    """1/ᾱ turns ‖ε - ε̂‖² into ‖v - v̂‖²; "middle" is √ᾱ·‖x_0 - x̂_0‖² and a little ‖ε - ε̂‖², "late" ᾱ^¼ in its place. Told by the
    difference from the unweighted loss, so that the variance's part does not matter."""
    d, t = diffusion.Diffusion.of(diffusion.DiffusionConfig()), torch.tensor([5, 300, 700, 950])
    g = torch.Generator().manual_seed(0)
    x0, noise, guess = (torch.randn(4, 3, 8, 8, generator=g) for _ in range(3))
    x_t = d.q_sample(x0, t, noise)

    def mean_square(x):
        return x.square().flatten(1).mean(1)
    signal, sigma = (d.at(table, t, x0) for table in (d.signal, d.noise))
    in_eps, in_x0 = mean_square(guess - noise), mean_square(d.x0_from_eps(x_t, t, guess) - x0)
    guessed_v = (guess - sigma * x_t) / signal                               # ε = √ᾱ·v + √(1-ᾱ)·x_t, solved for v
    expected = {"v": mean_square(guessed_v - (signal * noise - sigma * x0)),
                "middle": signal.flatten() * in_x0 + 0.05 * in_eps,
                "late": signal.flatten().sqrt() * in_x0 + 0.05 * in_eps}[weighting]

    def model(x, t):
        return torch.cat([guess, torch.zeros_like(guess)], 1)
    weights = train.loss_weights(d, weighting)
    difference = d.loss(model, x0, t, noise, weights=weights) - d.loss(model, x0, t, noise)
    assert torch.allclose(difference, expected - in_eps, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("weighting", ["eps", "v", "middle", "late"])
def test_the_preset_decides_what_the_loss_weighs(monkeypatch, weighting):
    trainer, asked = train.Trainer(small.preset(weighting=weighting)), []
    real = trainer.process.loss

    def spy(*args, weights, **cond):
        asked.append(weights)
        return real(*args, weights=weights, **cond)
    monkeypatch.setattr(trainer.process, "loss", spy)
    trainer.advance()
    expected = train.loss_weights(trainer.process, weighting)
    assert (asked[0] is None and expected is None) or torch.equal(asked[0], expected)


@pytest.mark.parametrize("kind", [*KINDS, *TUNED])
def test_every_denoiser_answers_noise(kind):
    """Even where the network predicts v. At t = 999 nearly all of x is noise, so ε̂ is nearly x."""
    trainer = train.Trainer(small.preset(kind))
    small.randomize(trainer.model)
    x0, cond = train.world_batch(trainer.preset, TOK, batch=4, difficulty="single", seed=0)
    x, t = torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 500, 999])
    with torch.no_grad():
        out = trainer.denoiser(x, t, **cond)
    assert out.shape == (4, 6, *x0.shape[2:]) and out.dtype == torch.float32 and out.isfinite().all()
    signal = trainer.process.signal[999]
    assert (out[3, :3] - x[3]).abs().max() < 20 * signal, "ε̂ = √ᾱ·v̂ + √(1-ᾱ)·x_t at t = 999"


def test_the_text_encoder_has_a_rate_of_its_own():
    trainer = train.Trainer(small.preset(lr=1e-2, text_lr=1e-5, warmup=0, decay=False))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.advance()
    rates = {group["lr"] for group in trainer.optimizer.param_groups}
    assert rates == {1e-2, 1e-5}
    groups = sum(len(group["params"]) for group in trainer.optimizer.param_groups)
    assert groups == len(before), "every parameter is trained, once"
    moved = {name: (p - before[name]).abs().max().item() for name, p in trainer.model.named_parameters()}
    text = max(size for name, size in moved.items() if name.startswith("text."))
    assert text < 1e-4 < max(moved.values()), f"the text encoder moved by {text}"


ALL_BUT_TEXT = ("pool", "time", "enter", "down", "middle", "up", "leave")


@pytest.mark.parametrize("frozen", [("text", "pool", "up"), ("text",), ALL_BUT_TEXT])
def test_frozen_parts_stay_and_all_others_learn(frozen):
    """Fine-tuning that may not forget: what is frozen has no gradient, is not in the optimiser, and keeps every bit."""
    trainer = train.Trainer(small.preset(warmup=0, freeze=frozen))
    small.randomize(trainer.model)
    trainer.ema.load_state_dict(trainer.model.state_dict())
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trained = {p.data_ptr() for group in trainer.optimizer.param_groups for p in group["params"]}
    trainer.advance()
    for (name, p), average in zip(trainer.model.named_parameters(), trainer.ema.parameters()):
        stays = name.split(".")[0] in frozen
        assert (p.data_ptr() in trained) != stays, f"{name}: whatever is in the optimiser costs memory"
        # A word that no caption of the batch said has no gradient either
        if stays or not name.endswith(("embedding.weight", "padding", "positions")):
            assert torch.equal(p, before[name]) == stays and torch.equal(average, before[name]) == stays, name


# --- Averages and pace ---

def test_the_average_is_the_closed_form():
    """w̄_N = Π d_j · w_0 + Σ_k (1-d_k) · Π_{j>k} d_j · w_k, with d_k = min(EMA, (1+k)/(10+k))."""
    trainer = train.Trainer(small.preset(ema=0.55))
    name = "enter.weight"
    model, ema = (dict(m.named_parameters())[name] for m in (trainer.model, trainer.ema))
    start, values = ema.clone(), [3.0, -1.0, 0.5, 8.0, 2.0, -4.0, 1.0, 1.0, 7.0, -2.0, 5.0, 0.0]
    for k, value in enumerate(values, 1):
        model.data.fill_(value)
        trainer.step = k
        trainer._average()
    decays = [min(0.55, (1 + k) / (10 + k)) for k in range(1, len(values) + 1)]
    expected = math.prod(decays) * start + sum((1 - decays[k]) * math.prod(decays[k + 1:]) * v
                                               for k, v in enumerate(values))
    assert decays[0] < decays[1] < decays[-1] == 0.55, "young averages forget faster"
    assert torch.allclose(ema, expected, atol=1e-5)


def test_a_step_is_averaged_once_and_training_never_sees_it():
    trainer = train.Trainer(small.preset(ema=0.999))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.advance()
    d = 2 / 11                                                               # (1 + 1) / (10 + 1)
    for (name, p), q in zip(trainer.model.named_parameters(), trainer.ema.parameters()):
        assert torch.allclose(q, d * before[name] + (1 - d) * p, atol=1e-6), name
        assert q.data_ptr() != p.data_ptr() and not q.requires_grad


def test_the_pace_warms_up_and_comes_to_rest():
    config = train.TrainConfig(steps=1000, warmup=50, decay=True)
    pace = [train.pace(step, config) for step in range(1000)]
    assert pace[0] == pytest.approx(1 / 51) and pace[50] == max(pace) > 0.99, "a slow start"
    assert all(a < b for a, b in zip(pace[:50], pace[1:51])) and all(a > b for a, b in zip(pace[50:], pace[51:]))
    assert pace[500] == pytest.approx(0.5) and 0 < pace[-1] < 1e-5, "half a cosine, down to zero"


def test_large_presets_keep_a_constant_pace():
    config = train.PRESETS["filtered"]["base"].train
    assert {train.pace(step, config) for step in (0, 1, 10 ** 6, config.steps - 1)} == {1.0}


@pytest.fixture
def quiet(monkeypatch):
    monkeypatch.setattr(train, "sample_grid", lambda trainer, path: None)


# --- Fine-tuning for inpainting ---

@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """A base model and an upsampler with random weights, to be fine-tuned."""
    return small.save_models(tmp_path_factory.mktemp("plain"), tmp_path_factory.mktemp("scratch"))


@pytest.mark.parametrize("kind", TUNED)
def test_an_inpainting_model_begins_as_the_trained_one_grown(plain, kind):
    start = plain / f"{TUNED[kind]}.pt"
    trainer, grown = train.Trainer(small.preset(kind)), inpaint.grow(unet.UNet.load(start)).state_dict()
    trainer.start_from(start)
    assert same(dict(trainer.model.state_dict()), dict(grown)) and same(dict(trainer.ema.state_dict()), dict(grown))


@pytest.mark.parametrize("kind", TUNED)
def test_one_step_makes_the_new_channels_heard(plain, kind):
    trainer = train.Trainer(small.preset(kind, warmup=0, crop=None if kind == "inpaint" else 32))
    trainer.start_from(plain / f"{TUNED[kind]}.pt")
    assert not trainer.model.enter.weight[:, 3:7].any(), "at first the known part is not heard"
    trainer.advance()
    assert trainer.model.enter.weight[:, 3:7].abs().amax((0, 2, 3)).min() > 0, "after one step each of its channels is"


def test_fine_tuning_can_go_on_from_a_fine_tuned_model(plain, tmp_path, quiet):
    first = train.train(small.preset("inpaint", steps=1), tmp_path / "first", start=plain / "base.pt")
    trainer = train.Trainer(small.preset("inpaint"))
    trainer.start_from(first)
    assert same(dict(trainer.model.state_dict()), unet.read_weights(first)["weights"]), "as they are, not grown again"


@pytest.mark.parametrize("kind, other", [("inpaint", "upsampler"), ("inpaint-upsampler", "base"), ("base", "upsampler")])
def test_weights_of_another_kind_are_not_grown_into_it(plain, kind, other):
    with pytest.raises(ValueError, match="another size") as refusal:
        train.Trainer(small.preset(kind)).start_from(plain / f"{other}.pt")
    one_line(refusal.value)


@pytest.mark.parametrize("kind", TUNED)
def test_samples_show_what_was_known_beside_what_was_drawn(monkeypatch, tmp_path, kind):
    seen = {}
    monkeypatch.setattr(train, "save_grid", lambda x, captions, path, title: seen.update(x=x, captions=captions))
    train.sample_grid(train.Trainer(small.preset(kind)), tmp_path / "samples.png")
    known, preset = seen["x"][::2], small.preset(kind)
    real = diffusion.reduce(train.real_pictures([scene(caption) for caption in train.SHOWN]), preset.size)
    assert seen["x"].shape == (16, 3, preset.size, preset.size) and seen["captions"][1::2] == list(train.SHOWN)
    hole = (known == 0).all(1, keepdim=True).expand_as(known)
    assert torch.equal(known[~hole], real[~hole]) and 0.1 < hole.float().mean() < 0.9, "the picture, its hole grey"


# --- The judge ---

def scene(caption):
    return tokenizer.Scene.parse(caption)


QUESTIONS = [name for name, _ in train.QUESTIONS]
BACKGROUND, FIRST_SIZE = QUESTIONS.index("background"), QUESTIONS.index("size")
COLORS = [i for i, name in enumerate(QUESTIONS) if name == "color"]


@pytest.mark.parametrize("one, other", [
    ("a red heart to the left of a small blue star", "a small blue star to the right of a red heart"),
    ("a red heart above a small blue star on a gray background", "a small blue star below a red heart on a gray background")])
def test_a_picture_said_two_ways_has_one_answer(one, other):
    assert torch.equal(*(train.labels([scene(caption)]) for caption in (one, other)))


def test_answers_tell_all_layouts_apart():
    captions = ["a red star", "two red stars", "three red stars", "a red star above a red moon",
                "a red star to the left of a red moon"]
    assert train.labels([scene(c) for c in captions])[:, 0].unique().numel() == 5


def test_what_the_caption_leaves_open_is_not_asked():
    row = dict(zip(range(len(QUESTIONS)), train.labels([scene("a red heart")])[0].tolist()))
    open_questions = [i for i, place in row.items() if place == -1]
    assert open_questions == [BACKGROUND, FIRST_SIZE, *range(FIRST_SIZE + 1, len(QUESTIONS))], \
        "background, size, and everything about a second thing"


SCENES = [scene(c) for c in ("a red heart above a blue star", "a small green cloud on a white background",
                             "three pink moons", "a large red sun to the right of a yellow house")]


def judged(monkeypatch, change=lambda answers: None):
    """scores for a judge that answers as wanted, but for a change; what is left open it answers with 0."""
    answers = train.labels(SCENES).clamp(min=0)
    change(answers)
    monkeypatch.setattr(train, "answer", lambda judge, images: answers)
    return train.scores(None, None, SCENES)


def test_a_perfect_answer_is_right_in_everything(monkeypatch):
    right = judged(monkeypatch)
    assert set(right) == {"all", "layout", "background", "noun", "color", "size"}
    assert all(values.all() for values in right.values())


def test_an_open_attribute_may_be_anything(monkeypatch):
    def change(answers):
        answers[0, FIRST_SIZE] = 1
        answers[2, BACKGROUND] = 3
    assert judged(monkeypatch, change)["all"].all()


def test_a_stated_attribute_must_be_right(monkeypatch):
    def change(answers):
        answers[1, FIRST_SIZE] = 1 - answers[1, FIRST_SIZE]
    right = judged(monkeypatch, change)
    assert right["size"].tolist() == right["all"].tolist() == [True, False, True, True]


def test_colours_that_changed_places_are_wrong(monkeypatch):
    """Binding: a blue heart above a red star has the right layout and nouns, and is still the wrong picture."""
    def change(answers):
        answers[0, COLORS] = answers[0, COLORS[::-1]]
    right = judged(monkeypatch, change)
    assert right["color"].tolist() == right["all"].tolist() == [False, True, True, True]
    assert right["noun"].all() and right["layout"].all()


def test_exams_are_of_their_kind_and_always_the_same():
    for kind in train.KINDS:
        scenes = train.exam(kind, 40)
        assert len(scenes) == 40 and scenes == train.exam(kind, 40), "two models must sit the same exam"
        pairs = [{(thing.color, thing.noun) for thing in s.things} for s in scenes]
        held_out = [bool(found & tokenizer.HELD_OUT) for found in pairs]
        assert all(held_out) if kind == "held out" else not any(held_out)
        assert {s.kind for s in scenes} == {kind if kind in ("pair", "count") else "single"}


@pytest.fixture(scope="module")
def judge():
    return train.train_judge(16, steps=60, batch=64)


def test_a_judge_learns_within_seconds(judge):
    scenes = train.exam("easy single", 200)
    right = train.scores(judge, diffusion.reduce(train.real_pictures(scenes), 16), scenes)
    rates = {name: float(values.mean()) for name, values in right.items()}
    assert rates["color"] > 0.5 and rates["layout"] > 0.8, f"chance is 1/8 and 1/5; after 60 small steps: {rates}"


def test_a_judge_comes_back_as_it_went(judge, tmp_path):
    ceiling = {"easy single": (9, 10)}
    unet.save_weights(tmp_path / "judge.pt", judge, ceiling=ceiling)
    again = train.load_judge(tmp_path / "judge.pt")
    assert again.ceiling == ceiling and again.config == judge.config and not again.training
    for (key, value), back in zip(judge.state_dict().items(), again.state_dict().values()):
        assert torch.equal(value.half().float() if value.is_floating_point() else value, back), key


@pytest.mark.parametrize("words", ["other", "fewer"])
def test_a_judge_of_another_vocabulary_is_refused(tmp_path, words):
    """Its answer 7 would mean another noun now."""
    judge = train.Judge(train.JudgeConfig(16))
    nouns = judge.config.answers[2]
    nouns = nouns[::-1] if words == "other" else nouns[:-1]
    if words == "fewer":
        judge.thing[-1] = torch.nn.Linear(256, judge.thing[-1].out_features - 1)
    judge.config = replace(judge.config, answers=(*judge.config.answers[:2], nouns, *judge.config.answers[3:]))
    unet.save_weights(tmp_path / "judge.pt", judge, ceiling={})
    with pytest.raises(ValueError, match="another vocabulary") as refusal:
        train.load_judge(tmp_path / "judge.pt")
    one_line(refusal.value)


@pytest.mark.parametrize("what", ["a U-Net", "no ceiling"])
def test_what_is_no_judge_is_refused(tmp_path, what):
    network = train.Judge(train.JudgeConfig(16)) if what == "no ceiling" else unet.UNet(small.preset().network)
    unet.save_weights(tmp_path / "judge.pt", network)
    with pytest.raises(ValueError, match="does not hold a judge") as refusal:
        train.load_judge(tmp_path / "judge.pt")
    one_line(refusal.value)


@pytest.mark.parametrize("size", [16, 32, 64])
def test_judges_of_all_sizes_answer_every_question(size):
    out = train.Judge(train.JudgeConfig(size)).eval()(torch.zeros(2, 3, size, size))
    assert [tuple(logits.shape) for logits in out] == [(2, len(answers)) for _, answers in train.QUESTIONS]


@pytest.mark.parametrize("right, n, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962),
                                                 (1, 2, 0.0945, 0.9055)])
def test_wilsons_interval(right, n, low, high):
    """(p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96."""
    assert train.wilson(right, n) == (pytest.approx(low, abs=1e-4), pytest.approx(high, abs=1e-4))


def test_a_mean_comes_with_its_interval():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])            # mean 3, standard deviation √(14/3)
    mean, low, high = train.mean_interval(values)
    half = 1.96 * math.sqrt(14 / 3) / 2
    assert (mean, low, high) == pytest.approx((3, 3 - half, 3 + half))
    right = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert train.mean_interval(right, rate=True) == pytest.approx((0.75, *train.wilson(3, 4)))


# --- The noised CLIP ---

CAPTIONS = ["a red heart above a blue star", "a blue star below a red heart", "a red heart", "a red heart",
            "a small red heart on a white background", "a large red heart", "two red hearts"]


def clip_scenes():
    """CAPTIONS as scenes, and filled: the open sizes large, the open backgrounds black."""
    said = [scene(caption) for caption in CAPTIONS]
    shown = [replace(s, things=tuple(replace(thing, size=thing.size or "large") for thing in s.things),
                     background=s.background or "black") for s in said]
    return said, shown


def test_the_truth_of_captions_is_more_than_the_diagonal():
    """Said two ways, said twice, said less exactly: true. Another size, number or thing: false."""
    said, shown = clip_scenes()
    assert train.true_of(said, shown).int().tolist() == [
        [1, 1, 0, 0, 0, 0, 0], [1, 1, 0, 0, 0, 0, 0],
        [0, 0, 1, 1, 0, 1, 0], [0, 0, 1, 1, 0, 1, 0],            # large on black
        [0, 0, 1, 1, 1, 0, 0],                                   # small on white
        [0, 0, 1, 1, 0, 1, 0],
        [0, 0, 0, 0, 0, 0, 1]]


def units(n, width, seed):
    g = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(n, width, dtype=torch.float64, generator=g), dim=1)


@pytest.mark.parametrize("truth", ["the diagonal", "several"])
def test_the_contrastive_loss_is_a_double_loop(truth):
    """-Σ q·log p over all captions of a picture and all pictures of a caption, q shared out among the true ones."""
    fits = torch.eye(7, dtype=torch.bool) if truth == "the diagonal" else train.true_of(*clip_scenes())
    images, texts = units(7, 16, 1), units(7, 16, 2)

    def cross_entropy(logits, true):
        total = sum(math.exp(logit) for logit in logits)
        return -sum(math.log(math.exp(logit) / total) for logit, right in zip(logits, true) if right) / sum(true)
    expected = []
    for i in range(7):
        row = [100 * float(images[i] @ texts[j]) for j in range(7)]
        column = [100 * float(images[j] @ texts[i]) for j in range(7)]
        expected.append((cross_entropy(row, fits[i].tolist()) + cross_entropy(column, fits[:, i].tolist())) / 2)
    answer = train.contrastive_loss(images, texts, fits)
    assert answer.dtype == torch.float64 and torch.allclose(answer, torch.tensor(expected, dtype=torch.float64), rtol=1e-5)


def test_duplicates_are_no_negatives():
    """A picture is drawn towards a caption that is another's and true of it; CLIP's own rule pushes it away."""
    texts = torch.eye(3, dtype=torch.float64)
    images = torch.tensor([[1, 0.9, 0], [0.9, 1, 0], [0, 0, 1]], dtype=torch.float64)
    images = F.normalize(images, dim=1).requires_grad_()
    alike = torch.tensor([[True, True, False], [True, True, False], [False, False, True]])
    for fits, sign in (alike, -1), (torch.eye(3, dtype=torch.bool), 1):
        slope, = torch.autograd.grad(train.contrastive_loss(images, texts, fits).sum(), images)
        assert slope[0, 1].sign() == sign, f"the loss's slope towards the other's caption is {slope[0, 1]:.3f}"


def test_clips_pictures_are_noised_as_the_base_models_are(monkeypatch):
    """By the same process; and independent draws reach every timestep of it."""
    trainer, counts = train.CLIPTrainer(small.clip_preset(batch=500)), torch.zeros(1000)
    assert trainer.preset.diffusion == train.PRESETS["tiny"]["base"].diffusion
    seen, real = {}, trainer.process.q_sample

    def spy(x0, t, noise):
        counts.index_add_(0, t, torch.ones(len(t)))
        seen.update(x0=x0, t=t, noise=noise, x_t=real(x0, t, noise))
        return seen["x_t"]
    monkeypatch.setattr(trainer.process, "q_sample", spy)

    def image(x, t):
        seen.update(asked=(x, t))
        return torch.ones(len(x), 32, requires_grad=True)
    monkeypatch.setattr(trainer.model, "image", image)
    monkeypatch.setattr(trainer.model, "text", lambda tokens, lengths: torch.ones(len(tokens), 32))
    trainer.losses(trainer.examples())
    assert torch.equal(seen["asked"][0], seen["x_t"]) and torch.equal(seen["asked"][1], seen["t"]), "told its own step"
    pictures = diffusion.reduce(diffusion.world_pictures(500, 0, "single")[0], 16)
    assert torch.equal(seen["x0"], pictures) and abs(seen["noise"].std() - 1) < 0.02
    monkeypatch.setattr(diffusion, "world_pictures", lambda n, seed, difficulty: (
        torch.zeros(n, 3, 64, 64), ["a red heart"] * n, [replace(scene("a small red heart"), background="white")] * n))
    for trainer.step in range(1, 40):
        trainer.losses(trainer.examples())
    off = (counts - 20) / math.sqrt(20)
    assert counts.min() > 0 and off.abs().max() < 5, "20,000 draws of 1,000 timesteps: about 20 each"


def test_a_clip_learns_one_batch_by_heart(monkeypatch):
    trainer = train.CLIPTrainer(small.clip_preset(steps=200, warmup=5, batch=16, lr=3e-3))
    batch = diffusion.world_pictures(16, 0, "single")
    monkeypatch.setattr(diffusion, "world_pictures", lambda *a, **k: batch)
    monkeypatch.setattr(torch, "randint", lambda high, size, **k: torch.zeros(size, dtype=torch.long))
    losses = [trainer.advance() for _ in range(150)]
    start, end = sum(losses[:5]) / 5, sum(losses[-10:]) / 10
    assert end < 0.3 * start, f"the loss of one batch, shown 150 times, went from {start:.3f} to {end:.3f} only"


def test_both_towers_of_a_clip_learn():
    trainer = train.CLIPTrainer(small.clip_preset(warmup=0))
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    trainer.advance()
    still = [name for name, p in trainer.model.named_parameters() if torch.equal(p, before[name])]
    assert not still, f"these did not move: {still}"
    assert sum(len(group["params"]) for group in trainer.optimizer.param_groups) == len(before)


def test_a_stopped_clip_goes_on_as_if_nothing_had_happened(tmp_path):
    def advanced(trainer, steps):
        return [trainer.advance() for _ in range(steps)]
    undisturbed, stopped = (train.CLIPTrainer(small.clip_preset(), seed=3) for _ in range(2))
    expected = advanced(undisturbed, 4)
    first = advanced(stopped, 2)
    stopped.save(tmp_path / "checkpoint.pt")
    torch.manual_seed(99)
    resumed = train.CLIPTrainer(small.clip_preset(), seed=3)
    resumed.resume(tmp_path / "checkpoint.pt")
    assert first + advanced(resumed, 2) == expected
    one, other = ({**trainer.state(), "seconds": 0} for trainer in (resumed, undisturbed))
    assert same(one, other), "bit for bit"


def test_a_clips_run_leaves_what_guiding_needs(tmp_path):
    path = train.train(small.clip_preset(steps=2), tmp_path, difficulty="full", seed=3)
    assert {p.name for p in tmp_path.iterdir()} == {"weights.pt", "matching.png", "loss.png", "log.jsonl",
                                                    train.checkpoints(tmp_path)[-1].name}
    saved = unet.read_weights(path)
    assert (saved["difficulty"], saved["size"], saved["made"]["steps"]) == ("full", 16, 2)
    assert saved["diffusion"] == asdict(small.clip_preset().diffusion)
    assert tokenizer.BPETokenizer(saved["tokenizer"]).encode("a red heart") == TOK.encode("a red heart")
    assert list(saved["matching"]) == list(range(0, 1000, 100)) and all(n == 500 for _, n in saved["matching"].values())
    assert guidance.NoisedCLIP.load(path).config == small.clip_preset().network


class RiggedCLIP(torch.nn.Module):
    """A CLIP that knows the truth: `image` answers the vectors it was given, `text` the captions' own."""

    def __init__(self, truth):
        super().__init__()
        self.config, self.truth = small.clip_preset().network, truth
        self.weight = torch.nn.Parameter(torch.zeros(1))

    def text(self, tokens, lengths):
        scenes = [scene(TOK.decode(ids[:length - 1].tolist())) for ids, length in zip(tokens, lengths)]
        return self.truth(scenes)


def vectors_of(scenes):
    """One-hot answers side by side, nothing where a scene is silent: products count what agrees."""
    answers = train.labels(scenes)
    hot = [F.one_hot(column.clamp(min=0), len(question[1])) * (column >= 0)[:, None]
           for column, question in zip(answers.T, train.QUESTIONS)]
    said = torch.cat(hot, 1).float()
    return said / said.sum(1, keepdim=True).clamp(min=1)        # the share of what is said that agrees: 1 if all does


@pytest.mark.parametrize("difficulty", ["single", "full"])
def test_a_clip_that_knows_all_finds_every_caption(monkeypatch, difficulty):
    shown, real = [], diffusion.draw_all

    def draw_all(scenes, rng):
        shown.extend(scenes)
        return real(scenes, rng)
    monkeypatch.setattr(diffusion, "draw_all", draw_all)
    clip = RiggedCLIP(vectors_of)
    clip.image = lambda x, t: (vectors_of(shown[-len(x):]) > 0).float()
    process = diffusion.Diffusion.of(diffusion.DiffusionConfig())
    found = train.matching(clip, TOK, process, difficulty=difficulty, n=200, timesteps=(0, 500))
    assert found == {0: (200, 200), 500: (200, 200)}


def test_a_clip_that_knows_nothing_guesses():
    """All captions fit alike: one in a hundred is right, wherever the own one stands."""
    clip = RiggedCLIP(lambda scenes: torch.ones(len(scenes), 2))
    clip.image = lambda x, t: torch.ones(len(x), 2)
    process = diffusion.Diffusion.of(diffusion.DiffusionConfig())
    right, n = train.matching(clip, TOK, process, difficulty="full", n=1500, timesteps=(0,))[0]
    low, high = train.wilson(right, n, z=3.5)
    assert low < 0.01 < high, f"{right} of {n} where chance is 1 in 100"


# --- The command line ---

def test_the_command_trains_and_says_what_comes_next(tmp_path):
    out = tmp_path / "run"
    done = small.run("08_train.py", "--steps", 3, "--batch", 8, "--out", out)
    assert done.returncode == 0, done.stderr
    assert {p.name for p in out.iterdir()} == {"weights.pt", "samples.png", "loss.png", "timesteps.png", "log.jsonl",
                                               "checkpoint-0000003.pt"}
    log = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert [entry["step"] for entry in log] == [1, 2, 3] and all(math.isfinite(entry["loss"]) for entry in log)
    assert "09_sample.py" in done.stdout and "step 3/3" in done.stdout
    saved = unet.read_weights(out / "weights.pt")
    told = saved["made"]["command"]
    assert told.startswith("python 08_train.py") and "--steps 3 --batch 8" in told, "weights tell how they were made"
    assert saved["config"] == asdict(train.PRESETS["tiny"]["base"].network)


@pytest.mark.parametrize("kind", TUNED)
def test_the_command_fine_tunes_the_shipped_model(kind, tmp_path, quiet):
    """Without --start and --world: of the course's own weights, on what they were trained on."""
    train.main([kind, "--steps", "1", "--batch", "2", "--lr", "1e-9", "--out", str(tmp_path)])
    saved, first = (unet.read_weights(path) for path in (tmp_path / "weights.pt", unet.WEIGHTS / f"{TUNED[kind]}.pt"))
    assert saved["config"] == asdict(train.PRESETS["tiny"][kind].network) and saved["difficulty"] == first["difficulty"]
    name = "up.0.steps.0.block.conv1.weight"
    off = (saved["weights"][name] - first["weights"][name]).abs().max()
    assert off < 1e-6, "at a rate of next to nothing they stay the shipped ones"


@pytest.mark.parametrize("kind", TUNED)
def test_a_tuned_model_is_shipped_without_what_it_shares(kind, tmp_path, quiet):
    """Its file goes beside the one it began as. Read, it is whole; what was frozen is that one's to the last bit."""
    train.main([kind, "--steps", "2", "--batch", "2", "--freeze", "--out", str(tmp_path / "whole")])
    train.main([kind, "--steps", "2", "--batch", "2", "--out", str(tmp_path / "part")])
    whole, part = (tmp_path / name / "weights.pt" for name in ("whole", "part"))
    assert part.stat().st_size < 0.45 * whole.stat().st_size, "the way up and the text encoder are not said twice"
    assert "beside" not in unet.read_file(whole), "where all has learned there is nothing to share"
    first, tuned = unet.read_weights(unet.WEIGHTS / f"{TUNED[kind]}.pt")["weights"], unet.read_weights(part)["weights"]
    for name, value in first.items():
        if name.split(".")[0] in ("text", "pool", "up"):
            assert torch.equal(tuned[name], value), name
    assert not torch.equal(tuned["middle.0.block.conv1.weight"], first["middle.0.block.conv1.weight"])
    with pytest.raises(FileNotFoundError, match=f"{TUNED[kind]}.pt"):
        unet.read_weights(part.rename(tmp_path / "alone.pt"))


def test_a_file_of_the_users_is_not_copied_over(tmp_path, quiet):
    (tmp_path / "base.pt").write_bytes(b"the user's own")
    train.main(["inpaint", "--steps", "1", "--batch", "2", "--out", str(tmp_path)])
    assert (tmp_path / "base.pt").read_bytes() == b"the user's own"
    assert "beside" not in unet.read_file(tmp_path / "weights.pt"), "whole, since its neighbour is another"


@pytest.mark.parametrize("names, parts", [(["up", "text"], ("text", "up")), ([], ()), (["text"], ("text",)),
                                          (["unet"], ALL_BUT_TEXT)])
def test_the_command_freezes_parts_by_name(names, parts, tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(train, "train", lambda preset, out, **rest: asked.append((preset.train.freeze, rest["facts"])))
    train.main(["base", "--start", str(unet.WEIGHTS / "base.pt"), "--freeze", *names, "--out", str(tmp_path)])
    (frozen, facts), = asked
    assert frozen == parts, "in the network's order, whatever the command's: the same run has the same name"
    assert " ".join(["--freeze", *names, "--start"]) in facts["command"], "weights tell how they were made"


@pytest.mark.parametrize("argv, word", [
    (["inpaint", "--freeze", "text", "wings"], "wings"), (["clip", "--freeze", "unet", "--start", "x.pt"], "unet"),
    (["inpaint", "--freeze", "unet", "text"], "nothing to learn"), (["base", "--freeze", "text"], "--start")])
def test_what_cannot_be_frozen_is_refused_in_one_line(argv, word, tmp_path, capfd):
    lines = refused([*argv, "--out", tmp_path / "run"], capfd)
    assert len(lines) == 1 and word in lines[0], lines
    assert not (tmp_path / "run").exists(), "refused before anything is made"


def test_the_world_is_that_of_the_first_weights_unless_one_says_otherwise(plain, tmp_path, monkeypatch):
    asked, start = [], plain / "base.pt"
    monkeypatch.setattr(train, "train", lambda preset, out, *, difficulty, start, **rest: asked.append(
        (start, difficulty, preset.train.weighting)))
    for model, *rest in (["base"], ["base", "--start", start], ["inpaint", "--start", start],
                         ["base", "--start", start, "--world", "single"]):
        train.main([str(word) for word in (model, *rest, "--out", tmp_path)])
    assert asked == [(None, "single", "middle"), (start, "full", "late"), (start, "full", "late"),
                     (start, "single", "middle")]


@pytest.mark.parametrize("argv", [["--steps", "0"], ["--steps", "ten"], ["--batch", "-4"], ["dragon"], ["--seed", "x"],
                                  ["--seed", 10 ** 30], ["--size", "17"], ["--world", "flat"], ["--device", "warp9"],
                                  ["--device", "meta"], ["--step", "3"]])
def test_wrong_options_are_refused(argv, capfd):
    lines = refused(argv, capfd)
    assert lines[0].startswith("usage:") and "error:" in lines[-1], lines
    assert argv[0].strip("-") in lines[-1] or argv[1] in lines[-1], "the line must name what is wrong"


@pytest.mark.parametrize("model", ["base", "judge"])
def test_a_folder_that_cannot_be_made_is_refused_before_work(tmp_path, capfd, model):
    (tmp_path / "file").write_text("not a folder")
    lines = refused([model, "--out", tmp_path / "file" / "run"], capfd)
    assert len(lines) == 1 and lines[0].startswith("08_train.py:") and str(tmp_path / "file") in lines[0], lines


@pytest.mark.parametrize("argv", [["judge", "--world", "full"], ["judge", "--batch", 4], ["judge", "--resume"],
                                  ["--crop", 64], ["base", "--size", 32], ["upsampler", "--size", 64],
                                  ["inpaint", "--crop", 32], ["inpaint-upsampler", "--size", 64],
                                  ["clip", "--size", 32], ["clip", "--crop", 32]])
def test_an_option_is_never_passed_over_in_silence(argv, tmp_path, capfd):
    lines = refused([*argv, "--out", tmp_path / "run"], capfd)
    assert len(lines) == 1 and next(word for word in argv if str(word).startswith("--")) in lines[0], lines
    assert not (tmp_path / "run").exists(), "refused before anything is made"


def test_a_shell_sees_the_status(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    done = small.run("08_train.py", "--out", tmp_path / "file" / "run")
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1, done.stderr
