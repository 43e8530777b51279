"""The judge: what it is asked, what counts as right, how sure a rate is; measures of images and of a CLIP."""
import math
import random
from dataclasses import replace
from functools import lru_cache
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import small

lesson = import_module("lessons.10_judge")
tokenizer, unet, diffusion, guidance, upsample, sample = (import_module(m) for m in (
    "01_tokenizer", "03_unet", "04_diffusion", "05_guidance", "07_upsample", "09_sample"))
scene, QUESTIONS = tokenizer.Scene.parse, lesson.QUESTIONS
LAYOUT, BACKGROUND, NOUN, COLOR, SIZE = range(5)      # of the first thing; the second one's are three further on


# --- Questions ---

@pytest.mark.parametrize("one, other", [
    ("a red heart above a blue star", "a blue star below a red heart"),
    ("a red heart to the left of a blue star", "a blue star to the right of a red heart")])
def test_a_picture_said_two_ways_has_one_answer(one, other):
    assert torch.equal(*(lesson.labels([scene(caption)]) for caption in (one, other))), "one picture, one answer"


def test_answers_tell_all_layouts_apart():
    captions = ["a red star", "two red stars", "three red stars", "a red star above a red moon",
                "a red star to the left of a red moon"]
    assert lesson.labels(map(scene, captions))[:, LAYOUT].unique().numel() == 5


def test_what_a_caption_leaves_open_is_not_asked():
    answers = lesson.labels([scene("a red heart")])[0].tolist()
    assert [i for i, place in enumerate(answers) if place == -1] == [BACKGROUND, SIZE, 5, 6, 7], \
        "open are the background, the size, and everything about a second thing"


SCENES = list(map(scene, ("a red heart above a blue star", "a small green cloud on a white background",
                          "three pink moons", "a large red sun to the right of a yellow house")))


def judged(monkeypatch, *changes):
    """`scores` for a judge that answers as wanted, but for (image, question, other answer)."""
    answers = lesson.labels(SCENES).clamp(min=0)      # what is left open it answers with 0
    for image, question, place in changes:
        answers[image, question] = place
    monkeypatch.setattr(lesson, "answer", lambda judge, images: answers)
    return lesson.scores(None, None, SCENES)


def test_a_perfect_answer_is_right_in_everything(monkeypatch):
    right = judged(monkeypatch)
    assert set(right) == {"all", "layout", "background", "noun", "color", "size"}
    assert all(values.all() for values in right.values())


def test_an_open_attribute_may_be_anything(monkeypatch):
    right = judged(monkeypatch, (0, SIZE, 1), (2, BACKGROUND, 3), (1, NOUN + 3, 5))
    assert right["all"].all(), "the caption does not say it, so no picture can get it wrong"


def test_a_stated_attribute_must_be_right(monkeypatch):
    right = judged(monkeypatch, (1, SIZE, 1))
    assert right["size"].tolist() == right["all"].tolist() == [True, False, True, True], "said: small"


def test_colours_that_changed_places_are_wrong(monkeypatch):
    """Binding: a blue heart above a red star has the right layout and nouns, and is still the wrong picture."""
    red, blue = (tokenizer.COLORS.index(color) for color in ("red", "blue"))
    right = judged(monkeypatch, (0, COLOR, blue), (0, COLOR + 3, red))
    assert right["color"].tolist() == right["all"].tolist() == [False, True, True, True]
    assert right["noun"].all() and right["layout"].all()


def test_eval_captions_are_of_their_kind_and_always_the_same():
    for kind in lesson.KINDS:
        scenes = lesson.eval_captions(kind, 40)
        assert len(scenes) == 40 and scenes == lesson.eval_captions(kind, 40), "every model gets the same captions"
        assert scenes != lesson.eval_captions(kind, 40, seed=1)
        held_out = [any((thing.color, thing.noun) in tokenizer.HELD_OUT for thing in s.things) for s in scenes]
        assert all(held_out) if kind == "held out" else not any(held_out)
        assert {s.kind for s in scenes} == {kind if kind in ("pair", "count") else "single"}
    with pytest.raises(ValueError, match="easy single, single, pair"):
        lesson.eval_captions("pairs", 40)


# --- The judge ---

def test_the_judge_meets_what_the_models_never_see():
    _, scenes = lesson.judge_images(300, random.Random(0), 16)
    new = sum(any((thing.color, thing.noun) in tokenizer.HELD_OUT for thing in s.things) for s in scenes)
    assert 10 < new < 60, f"{new} of 300 have a held-out pair: without any, no judge could tell a model that composes"


@pytest.mark.parametrize("size", [16, 32, 64, 128])
def test_judges_of_all_sizes_answer_every_question(size):
    judge = lesson.Judge(lesson.JudgeConfig(size)).eval()
    images, scenes = lesson.judge_images(2, random.Random(0), size)
    assert images.shape == (2, 3, size, size) and judge.places(images).shape[2:] == (8, 8)
    assert [tuple(logits.shape) for logits in judge(images)] == [(2, len(answers)) for _, answers in QUESTIONS]


def test_degraded_images_are_degraded_each_to_its_own_degree():
    torch.manual_seed(0)
    grey = torch.zeros(200, 3, 16, 16)
    noise = (lesson.degrade(grey) - lesson.degrade(grey).mean((2, 3), keepdim=True)).flatten(1).std(1)
    tint = lesson.degrade(grey).mean((2, 3)).abs()
    assert noise.min() < 0.06 and 0.1 < noise.max() < 0.35, "from hardly noisy to quite noisy"
    assert tint.median() < 0.1, "a shade off, not another colour"


@pytest.fixture(scope="module")
def quick():
    """A judge after a few seconds of training."""
    return lesson.train_judge(16, steps=60, batch=64)


def test_a_judge_learns_within_seconds(quick):
    scenes = lesson.eval_captions("easy single", 200)
    right = lesson.scores(quick, diffusion.downsample(lesson.real_images(scenes), 16), scenes)
    rates = {name: float(values.mean()) for name, values in right.items()}
    assert rates["color"] > 0.5 and rates["layout"] > 0.8, f"chance is 1/8 and 1/5; after 60 small steps: {rates}"


def test_a_judge_comes_back_as_it_went(quick, tmp_path):
    unet.save_weights(tmp_path / "judge.pt", quick, ceiling={"easy single": (9, 10)})
    again = lesson.Judge.load(tmp_path / "judge.pt")
    assert again.ceiling == {"easy single": (9, 10)} and again.config == quick.config and not again.training
    images, _ = lesson.judge_images(50, random.Random(1), 16)
    assert (lesson.answer(again, images) == lesson.answer(quick, images)).double().mean() > 0.98, "16 bits are enough"


@pytest.mark.parametrize("words", ["in another order", "fewer"])
def test_a_judge_of_other_words_is_refused(tmp_path, words):
    """Its answer 7 would mean another noun now."""
    judge = lesson.Judge(lesson.JudgeConfig(16))
    answers = list(judge.config.answers)
    answers[NOUN] = answers[NOUN][::-1] if words == "in another order" else answers[NOUN][:-1]
    judge.config = replace(judge.config, answers=tuple(answers))
    unet.save_weights(tmp_path / "judge.pt", judge, ceiling={})
    with pytest.raises(ValueError, match="other words"):
        lesson.Judge.load(tmp_path / "judge.pt")


def test_what_is_no_judge_is_refused():
    with pytest.raises(ValueError, match="base.pt"):
        lesson.Judge.load(unet.WEIGHTS / "base.pt")
    with pytest.raises(FileNotFoundError):
        lesson.Judge.load(unet.WEIGHTS / "judge-17.pt")


# --- Intervals ---

@pytest.mark.parametrize("right, n, low, high", [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (50, 100, 0.4038, 0.5962),
                                                 (1, 2, 0.0945, 0.9055)])
def test_wilsons_interval(right, n, low, high):
    """(p + z²/2n ± z·√(p(1-p)/n + z²/4n²)) / (1 + z²/n), z = 1.96."""
    assert lesson.wilson(right, n) == pytest.approx((low, high), abs=1e-4)


@pytest.mark.parametrize("right, n", [(3, 10), (59, 60), (150, 300)])
def test_wilsons_ends_are_the_rates_at_which_the_result_is_just_surprising(right, n):
    """What the formula solves: |right/n - p| = z·√(p(1-p)/n), with the spread of p and not that of right/n."""
    for p in lesson.wilson(right, n):
        assert abs(right / n - p) == pytest.approx(1.96 * math.sqrt(p * (1 - p) / n))


def test_near_one_only_wilsons_interval_keeps_its_promise():
    assert lesson.coverage(lesson.wilson, 0.99) > 0.94, "95% is promised"
    share = lesson.coverage(lesson.textbook, 0.99)
    assert share == pytest.approx(1 - 0.99 ** 60, abs=0.02), "it misses whenever all 60 are right, 55% of the time"


def test_a_mean_comes_with_its_interval():
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])            # mean 3, standard deviation √(14/3)
    half = 1.96 * math.sqrt(14 / 3) / 2
    assert lesson.mean_interval(values) == pytest.approx((3, 3 - half, 3 + half))
    right = torch.tensor([1.0, 0.0, 1.0, 1.0])
    assert lesson.mean_interval(right, rate=True) == pytest.approx((0.75, *lesson.wilson(3, 4)))


# --- Measures ---

@lru_cache
def shipped_judge(size):
    return lesson.Judge.load(unet.WEIGHTS / f"judge-{size}.pt")


def painter(size, mistake=lambda s: s):
    """A base model in the place of 09's that draws captions as the world does, but for a mistake."""
    def sample_base(model, prompts, options, *, generator):
        return diffusion.downsample(lesson.real_images([mistake(scene(prompt)) for prompt in prompts]), size)
    return sample_base


@pytest.mark.parametrize("kind", lesson.KINDS)
def test_a_perfect_painter_scores_the_ceiling(kind, monkeypatch):
    monkeypatch.setattr(sample, "sample_base", painter(16))
    right, n = lesson.caption_accuracy(None, shipped_judge(16), kind, 100)
    low, high = lesson.wilson(right, n, z=3.5)
    real, of = shipped_judge(16).ceiling[kind]
    assert n == 100 and low <= real / of <= high, f"{right} of 100, the ceiling is {real / of:.1%}"


def test_larger_images_are_seen_reduced():
    images = lesson.real_images(lesson.eval_captions("pair", 60, seed=4), 4)
    seen = [lesson.answer(shipped_judge(16), diffusion.downsample(images, size)) for size in (16, 64)]
    assert (seen[0] == seen[1]).double().mean() > 0.99, "each of its pixels is the mean of a square"
    assert lesson.judge_for(128, unet.WEIGHTS / "small").config.size == 64, "128 pixels have no judge of their own"
    with pytest.raises(RuntimeError):
        shipped_judge(64)(torch.zeros(1, 3, 16, 16))       # too few pixels are not made up


def test_a_painter_of_one_colour_is_found_out(monkeypatch):
    def red(s):
        return replace(s, things=tuple(replace(thing, color="red") for thing in s.things))
    monkeypatch.setattr(sample, "sample_base", painter(16, red))
    scenes = lesson.eval_captions("single", 60, seed=3)
    wanted = sum(s.things[0].color == "red" for s in scenes)
    right, _ = lesson.caption_accuracy(None, shipped_judge(16), "single", 60, seed=3)
    assert abs(right - wanted) <= 2, f"{wanted} captions ask for red things; {right} came out right"
    nouns, _ = lesson.caption_accuracy(None, shipped_judge(16), "single", 60, seed=3, question="noun")
    assert nouns >= 58, "the nouns are right all the same"


def test_every_caption_is_drawn_once_and_in_order(monkeypatch):
    asked = []

    def sample_base(model, prompts, options, *, generator):
        asked.extend(prompts)
        return torch.zeros(len(prompts), 3, 16, 16)
    monkeypatch.setattr(sample, "sample_base", sample_base)
    scenes = lesson.eval_captions("pair", 11)
    assert lesson.draw(None, scenes, batch=4).shape == (11, 3, 16, 16) and asked == [s.caption() for s in scenes]


def repeat_pixels(model, low_res, prompts, *, generator):
    """An upsampler in the place of 09's, quick and coarse."""
    return F.interpolate(low_res, scale_factor=4)


def test_the_upsampler_stands_next_to_bicubic_interpolation(monkeypatch):
    """An upsampler that repeats pixels keeps colours exactly; bicubic interpolation does not quite."""
    monkeypatch.setattr(sample, "sample_upsampler", repeat_pixels)
    found = lesson.upsampler_quality(type("Model", (), {"size": 64}), shipped_judge(64), "easy single", 20)
    assert found["upsampler"]["color"] == pytest.approx(0, abs=1e-6) and 0 < found["bicubic"]["color"] < 0.02
    assert 15 < found["upsampler"]["psnr"] < found["bicubic"]["psnr"] < 30, "smooth guesses are nearer to the truth"
    assert all(0 <= measures["right"] <= 1 for measures in found.values())


@pytest.mark.parametrize("side", [64, 128])
@pytest.mark.parametrize("background", tokenizer.BACKGROUNDS)
def test_the_worlds_backgrounds_are_flat(background, side):
    scenes = [scene(f"a small {color} {noun} on a {background} background") for color, noun in tokenizer.TRAINING_PAIRS]
    images = diffusion.downsample(lesson.real_images(scenes, side=side), side)
    deviation, off = lesson.background_error(images, background)
    assert deviation.max() == 0 and off.max() == 0, "no small thing reaches the strips that are looked at"


def test_grain_and_tint_are_told_apart_and_measured_in_steps_of_255():
    flat = torch.full((2, 3, 64, 64), 1 / 255)                 # byte 128: gray
    flat[1, 2] += 3 * 2 / 255                                  # the second image's blue is three steps off
    deviation, off = lesson.background_error(flat, "gray")
    assert deviation.tolist() == [0, 0] and off.tolist() == [0, 3]
    checks = torch.arange(64)[:, None] % 2 ^ torch.arange(64) % 2
    deviation, off = lesson.background_error(flat[:1] + (2 * checks - 1) * 4 / 255, "gray")     # two steps up and down
    assert deviation.item() == pytest.approx(2, rel=1e-3) and off.item() == pytest.approx(0, abs=1e-9)


# --- Retrieval ---

def hot(scenes):
    """What scenes say, as rows of zeros and ones; nothing where they are silent."""
    columns = zip(lesson.labels(scenes).T, QUESTIONS)
    rows = [F.one_hot(column.clamp(min=0), len(words)) * (column >= 0)[:, None] for column, (_, words) in columns]
    return torch.cat(rows, dim=1).float()


class RiggedCLIP:
    """A CLIP that is told the truth about the images; a caption's fit is the share of what it says that is shown."""

    def __init__(self, monkeypatch, knows=1.0):
        self.config, self.knows, draw_all = small.preset("clip").network, knows, diffusion.draw_all

        def spy(shown, *args, **options):
            self.shown = list(shown)
            return draw_all(self.shown, *args, **options)
        monkeypatch.setattr(diffusion, "draw_all", spy)

    def text(self, tokens, lengths):
        words = tokenizer.world_tokenizer()
        said = hot([scene(words.decode(ids[:length - 1].tolist())) for ids, length in zip(tokens, lengths)])
        said = said / said.sum(1, keepdim=True)
        return said if self.knows else torch.randn(said.shape, generator=torch.Generator().manual_seed(0))

    def image(self, x, t):
        return hot(self.shown[:len(x)])


PROCESS = diffusion.Diffusion.from_config(diffusion.DiffusionConfig())


@pytest.mark.parametrize("world", ["single", "full"])
def test_a_clip_that_knows_all_finds_every_caption(monkeypatch, world):
    """Whatever the caption leaves open: no distractor may be true of the image too."""
    found = lesson.retrieval_accuracy(RiggedCLIP(monkeypatch), tokenizer.world_tokenizer(), PROCESS, world, n=150,
                                      timesteps=(0, 500))
    assert found == {0: (150, 150), 500: (150, 150)}


def test_a_clip_that_knows_nothing_guesses(monkeypatch):
    clip = RiggedCLIP(monkeypatch, knows=0)
    right, n = lesson.retrieval_accuracy(clip, tokenizer.world_tokenizer(), PROCESS, "full", n=1500, timesteps=(0,))[0]
    low, high = lesson.wilson(right, n, z=3.5)
    assert low < 0.01 < high, f"{right} of {n} where chance is 1 in 100"


# --- The commands ---

def test_measuring_prints_rates_with_intervals_and_ceilings(tmp_path, capfd, monkeypatch):
    monkeypatch.setattr(sample, "sample_upsampler", repeat_pixels)
    small.save_models(tmp_path)
    for size in (16, 64):
        unet.save_weights(tmp_path / f"judge-{size}.pt", lesson.Judge(lesson.JudgeConfig(size)),
                          ceiling={kind: (9, 10) for kind in lesson.KINDS})
    status, told, err = small.main(capfd, "measure", "--weights", tmp_path, "--n", 2, "--steps", 1, script=lesson)
    assert status == 0, err
    for kind in lesson.KINDS:
        row = next(line.strip() for line in told.splitlines() if line.strip().startswith(kind + " "))
        assert "ceiling 90.0%" in row and " to " in row, "each rate comes with its interval and the judge's ceiling"
    for word in ("upsampler", "bicubic", "PSNR", *(f"{name}   " for name in tokenizer.BACKGROUNDS), "deviation"):
        assert word in told


def test_a_judge_is_trained_and_its_file_says_how(tmp_path, capfd, monkeypatch):
    ceiling = lesson.judge_ceiling
    monkeypatch.setattr(lesson, "judge_ceiling", lambda judge: ceiling(judge, 10))
    out = tmp_path / "new" / "judge.pt"
    status, told, err = small.main(capfd, "train", "--steps", 2, "--size", 32, "--out", out, script=lesson)
    assert status == 0 and "held out" in told, err
    judge, saved = lesson.Judge.load(out), unet.read_weights(out)
    assert judge.config.size == 32 and set(judge.ceiling) == set(lesson.KINDS)
    assert saved["made"]["command"] == "python lessons/10_judge.py train --size 32 --steps 2 --seed 0"


@pytest.mark.parametrize("argv, word", [
    (["measure", "--n", "0"], "--n"), (["measure", "--sampler", "euler"], "--sampler"),
    (["train", "--size", "17"], "--size"), (["train", "--steps", "many"], "many"), (["judge"], "judge"),
    (["measure", "--weights", "/nowhere"], "nowhere"),
    (["retrieval", "--weights", "/nowhere"], "nowhere")])
def test_what_cannot_be_done_is_refused_in_one_line(argv, word, capfd):
    assert word in small.refused(capfd, *argv, script=lesson)


def test_models_of_your_own_images_cannot_be_measured(tmp_path, capfd):
    small.save_models(tmp_path, world="")
    assert "cannot be checked" in small.refused(capfd, "measure", "--weights", tmp_path, script=lesson)


# --- The weights that come with the course ---

@pytest.mark.parametrize("size", [16, 32, 64])
def test_shipped_judges_can_be_trusted(size):
    right, n = shipped_judge(size).ceiling["easy single"]
    assert n >= 1000 and right / n > 0.95, "a judge that errs on real images cannot measure drawn ones"
    scenes = lesson.eval_captions("easy single", 200, seed=77)
    seen = lesson.scores(shipped_judge(size), diffusion.downsample(lesson.real_images(scenes, 77), size), scenes)["all"]
    assert seen.mean() > right / n - 0.06, f"recorded {right / n:.3f}, on 200 other images {seen.mean():.3f}"


def test_shipped_base_draws_what_is_asked():
    base = sample.Model.load(unet.WEIGHTS / "base.pt")
    right, n = lesson.caption_accuracy(base, shipped_judge(16), "easy single", 24)
    assert right / n >= 0.85, f"{right} of {n} captions of single easy things came out right"


def test_shipped_clip_finds_an_images_caption_in_noise():
    saved = unet.read_weights(unet.WEIGHTS / "clip.pt")
    clip, words = guidance.NoisedCLIP.from_saved(saved, "clip.pt"), tokenizer.load_tokenizer(saved)
    process = diffusion.Diffusion.from_config(diffusion.DiffusionConfig(**saved["diffusion"]))
    for t, (right, n) in lesson.retrieval_accuracy(clip, words, process, "full", n=200, timesteps=(0, 250)).items():
        assert right / n > 0.8, f"{right} of {n} captions found among 100 at t = {t}"
