"""The lessons' measurements: what they ask, what they count, and that they run to their picture with weights that know
nothing."""
import re
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import small

unet, train = import_module("03_unet"), import_module("08_train")
guided, inpainting, weaknesses = (import_module(f"lessons.{name}") for name in (
    "guidance_compared", "inpainting_compared", "weaknesses"))
tokenizer, sample = train.tokenizer, small.sample


def weights(folder, scratch, **options):
    """A folder of the tiny models and a judge, all with random weights."""
    torch.manual_seed(0)
    unet.save_weights(folder / "judge-16.pt", train.Judge(train.JudgeConfig(16)), ceiling={})
    return small.save_models(folder, scratch, **options)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def complete(tmp_path_factory, scratch):
    """A base model, its inpainting variant and a judge."""
    return weights(tmp_path_factory.mktemp("weights"), scratch, kinds=("base", "inpaint"))


def is_a_figure(path):
    with Image.open(path) as picture:
        width, spread = picture.width, np.asarray(picture.convert("L"), np.float32).std()
    assert width >= 600 and spread > 5, "the figure is nearly empty"


# --- Two guides ---

@pytest.fixture(scope="module")
def with_clip(complete):
    """… and a noised CLIP."""
    clip = small.randomize(train.guidance.NoisedCLIP(small.clip_preset().network))
    unet.save_weights(complete / "clip.pt", clip, size=16, difficulty="full",
                      tokenizer=tokenizer.world_tokenizer().merges)
    return complete


def test_a_deaf_model_hears_no_caption_and_its_guide_does(with_clip):
    """What CLIP draws alone is its own idea of the caption, and nobody else's."""
    base, clip = (kind.load(with_clip / name) for kind, name in ((sample.Model, "base.pt"), (sample.Clip, "clip.pt")))
    one, other = train.exam("pair", 2, seed=0)

    def draw(scene, guide, scale):
        return guided.drawn(base, clip, [scene], 0, {"guide": guide, "sampler": "ddpm", "scale": scale, "steps": "3"})

    assert not torch.allclose(draw(one, "clip", 0), draw(other, "clip", 0), atol=1e-4), "the base model hears"
    assert torch.equal(draw(one, "alone", 0), draw(other, "alone", 0)), "told nothing, it draws the same"
    assert not torch.allclose(draw(one, "alone", 9), draw(other, "alone", 9), atol=1e-4), "but its guide hears"


def test_real_pictures_are_right_and_vary_by_one(with_clip, capfd):
    """With the shipped judge: what the measures say where the truth is known."""
    judge, clip = train.load_judge(unet.WEIGHTS / "judge-16.pt"), sample.Clip.load(with_clip / "clip.pt")
    exams = {seed: train.exam("easy single", 20, seed) for seed in (0, 1)}
    found = guided.over_seeds(lambda scenes, seed: guided.real(scenes, seed, 16), exams, judge, clip)
    assert set(found) == set(guided.MEASURES) and all(len(values) == 40 for values in found.values())
    assert found["right"].mean() > 0.9 and found["log p"].mean() > -0.5 and found["CLIP"].abs().max() <= 100.1
    copies = guided.over_seeds(lambda scenes, seed: guided.real(scenes, seed, 16)[:20].repeat(2, 1, 1, 1), exams, judge,
                               clip)
    assert copies["variety"].max() < 1e-3 < found["variety"].min(), "the same picture twice has no variety"


def test_guidance_compared_runs(with_clip, tmp_path, capfd):
    guided.main([str(tmp_path / "guides.png"), "--n", "2", "--seeds", "0", "1", "--steps", "2",
                 "--weights", str(with_clip)])
    told = capfd.readouterr().out
    for guide, scales in guided.SCALES.items():
        for sampler in guided.SAMPLERS.values():
            line = f"\n{guided.TITLES[guide]}, {sampler}, scale"
            assert [scale for scale in scales if f"{line} {scale:g} " in told] == [*scales], told
    assert "nan" not in told
    is_a_figure(tmp_path / "guides.png")


# --- Three ways to draw into a hole ---

@pytest.fixture(scope="module")
def edits():
    return inpainting.Edits.of(("single", "pair"), 40, 16, 5)


def inks(edits):
    """The ink of the pictures that an Edits holds."""
    return inpainting.inked(train.real_pictures(edits.scenes, 5), 16)


def test_one_seed_is_one_set(edits):
    again, other = (inpainting.Edits.of(("single", "pair"), 40, 16, seed) for seed in (5, 6))
    assert again.scenes == edits.scenes and torch.equal(again.images, edits.images)
    assert all(torch.equal(again.masks[hole], edits.masks[hole]) for hole in inpainting.HOLES)
    assert other.scenes != edits.scenes
    assert [scene.kind for scene in edits.scenes] == ["single"] * 20 + ["pair"] * 20


def test_ink_is_where_a_thing_is(edits):
    """Without ink there is background, in one colour to the last bit."""
    for image, ink in zip(edits.images, inks(edits)):
        bare = image[:, ~ink]
        assert ink.any() and (bare == bare[:, :1]).all() and not (image[:, ink] == bare[:, :1]).all(0).any()


def test_holes_hide_one_thing_and_leave_the_other(edits):
    for i, (scene, ink) in enumerate(zip(edits.scenes, inks(edits))):
        known = {hole: mask[i, 0].bool() for hole, mask in edits.masks.items()}
        assert all(mask.any() and not mask.all() for mask in known.values()), "something to draw, and something around it"
        assert known["half"].sum() == 128
        if scene.kind == "single":
            assert not (ink & known["box"]).any() and known["border"].sum() == 64
            assert (ink & known["stroke"]).sum() <= 0.67 * ink.sum()
            continue
        thing, other = ink & ~known["half"], ink & known["half"]
        assert thing.any() and other.any(), "a pair is cut between its things"
        for hole in ("box", "half", "border"):
            assert not (thing & known[hole]).any() and (other & known[hole]).sum() == other.sum(), hole
        assert (thing & known["stroke"]).sum() <= 0.67 * thing.sum()


def test_the_edge_of_a_true_picture_is_none_and_a_grey_hole_has_one(edits):
    mask = edits.masks["half"]
    grey = torch.where(mask.bool(), edits.images, torch.full_like(edits.images, 0.3))
    plain = inpainting.edges(edits.images, edits.images, mask)
    assert (plain[~plain.isnan()] == 0).all() and plain.isnan().float().mean() < 0.2
    seen = inpainting.edges(grey, edits.images, mask)
    assert seen[~seen.isnan()].mean() > 10


def test_a_thing_that_touches_its_holes_edge_is_no_seam():
    """The median along the edge: a seam runs along all of it, a thing covers some of it."""
    image, mask = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    mask[:, :, 4:12, 4:12] = 0
    thing, seam = image.clone(), image.clone()
    thing[:, :, 4:12, 4:7], seam[:, :, 4:12, 4:12] = 1.0, 0.1
    assert inpainting.edges(thing, image, mask).item() == 0
    assert inpainting.edges(seam, image, mask).item() == pytest.approx(12.75)


@pytest.mark.parametrize("way", inpainting.WAYS)
def test_each_way_keeps_what_is_known(way, edits, complete):
    models, judge = inpainting.load(complete)
    drawn, context = inpainting.fill(way, models[way], edits, "border", seed=0, steps="3", scale=2.0)
    found = inpainting.examined(drawn, context, edits, "border", judge)
    assert (found["left"] == 0).all(), "known pixels are exact in the end"
    assert (context > 0).all(), "a network that knows nothing is corrected, and that is seen before it is"
    assert all(len(values) == 40 for values in found.values())


def test_what_is_right_is_right_in_every_question(edits):
    """A judge that gives every wanted answer but one."""
    wanted = train.labels(edits.scenes)
    answers = wanted.clamp(min=0)
    answers[3, 3] = (answers[3, 3] + 1) % len(tokenizer.COLORS)

    def judge(x):
        return [torch.nn.functional.one_hot(a, len(words)).float() for a, (_, words) in zip(answers.T, train.QUESTIONS)]

    found = inpainting.examined(edits.images, torch.zeros(40), edits, "box", judge)
    assert found["right"].sum() == 39 and not found["right"][3]
    assert inpainting.verdict(found, 3) == "wrong: color" and inpainting.verdict(found, 4) == "right"


@pytest.mark.parametrize("kinds", [("base",), ("base", "inpaint")])
def test_inpainting_compared_runs(kinds, scratch, tmp_path, capfd):
    folder = weights(tmp_path / "weights", scratch, kinds=kinds)
    inpainting.main([str(tmp_path / "ways.png"), "--n", "2", "--seeds", "0", "1", "--steps", "2",
                     "--weights", str(folder)])
    told = capfd.readouterr().out
    ways = [way for way in inpainting.WAYS if way != "fine-tune" or "inpaint" in kinds]
    for hole in inpainting.HOLES:
        assert [way for way in inpainting.WAYS if len(re.findall(rf"^{hole} +{way} ", told, re.M)) == 2] == ways, told
    assert ("left out" in told) == (len(ways) == 2), "a missing way is told"
    assert "nan" not in told
    is_a_figure(tmp_path / "ways.png")


# --- Weaknesses ---

def rates(weakness, scenes, seen):
    """The lines of a table, each as a fraction."""
    return {line: hits / n for line, (hits, n) in
            ((line, weaknesses.rate(*pair)) for line, pair in weakness(scenes, seen).items()) if n}


@pytest.mark.parametrize("weakness, make", [(one, make) for make, some in weaknesses.EXAMS.values() for one in some])
def test_a_faultless_model_makes_no_mistake(weakness, make):
    """Also: every line that is drawn as a curve is a line of the table."""
    scenes = make(12, 0)
    found = rates(weakness, scenes, train.labels(scenes).clamp(min=0))
    mistakes = {line for line in found if "swapped" in line or "changed" in line or "instead" in line
                or "different things" in line or re.fullmatch(r"“(\w+)” drawn as (?!\1)\w+", line)}
    assert found == {line: 0.0 if line in mistakes else 1.0 for line in found}
    assert set(weaknesses.PLOTTED[weakness.__name__]) <= set(found) and weakness.__name__ in weaknesses.TITLES


def test_pairs_show_every_swap_and_ask_each_relation_as_often():
    scenes = weaknesses.pairs(12, 0)
    assert scenes == weaknesses.pairs(12, 0) != weaknesses.pairs(12, 1)
    for scene in scenes:
        one, other = scene.things
        assert one.noun != other.noun and one.color != other.color
        assert tokenizer.Scene.parse(scene.caption()) == scene
    assert [scene.relation for scene in scenes] == 3 * list(tokenizer.RELATIONS)


@pytest.mark.parametrize("swapped", ["colours", "nouns", "things"])
def test_swaps_are_told_apart(swapped):
    scenes = weaknesses.pairs(12, 0)
    seen = train.labels(scenes).clamp(min=0)
    for part in {"colours": [weaknesses.COLORS], "nouns": [weaknesses.NOUNS]}.get(
            swapped, [weaknesses.COLORS, weaknesses.NOUNS]):
        seen[:, part] = seen[:, part].flip(1)
    bound = rates(weaknesses.binding, scenes, seen)
    assert bound["both nouns and both colours are there"] == 1 and bound[weaknesses.WHOLE] == 0
    assert bound["each noun in its own colour"] == bound["own colours, if all four are there"] == (swapped == "things")
    assert bound["colours swapped"] == (swapped == "colours") and bound["nouns swapped"] == (swapped == "nouns")
    lie = rates(weaknesses.relations, scenes, seen)
    assert lie["changed places"] == (swapped != "colours"), "which thing is which is told by the nouns"
    assert lie["left or right, as said"] == lie["above or below, as said"] == (swapped == "colours")


def test_what_is_no_pair_is_no_swap():
    """Where one thing is drawn, the judge's answers about a second one mean nothing."""
    scenes = weaknesses.pairs(12, 0)
    seen = train.labels(scenes).clamp(min=0)
    seen[:, weaknesses.LAYOUT] = 0
    assert set(rates(weaknesses.binding, scenes, seen).values()) == {0.0}
    assert rates(weaknesses.relations, scenes, seen) == {"both nouns are there": 0.0}, "and nothing is said of places"


def test_counts_are_a_confusion_table():
    scenes = weaknesses.counts(5, 0)
    assert [scene.count for scene in scenes] == 5 * [1, 2, 3]
    seen = train.labels(scenes).clamp(min=0)
    seen[seen[:, 0] == 1, 0] = 2                  # every two is drawn as three
    found = rates(weaknesses.counting, scenes, seen)
    assert found["“two” drawn as three"] == 1 and found["“two” drawn as two"] == found["“three” drawn as two"] == 0
    assert found["“one” drawn as one"] == found["“three” drawn as three"] == 1


def test_a_new_thing_is_compared_with_a_seen_one_of_its_noun():
    scenes = weaknesses.singles(20, 0)
    for new, seen in zip(scenes[:20], scenes[20:]):
        (one,), (other,) = new.things, seen.things
        assert (one.color, one.noun) in tokenizer.HELD_OUT and (other.color, other.noun) not in tokenizer.HELD_OUT
        assert (one.noun, one.size, new.background) == (other.noun, other.size, seen.background)


def test_what_is_denied_is_a_caption_behind_not():
    scenes, captions = weaknesses.denied(5, 0)
    assert len(scenes) == len(captions) == 5
    assert all(tokenizer.Scene.parse(caption.removeprefix("not ")) == scene for scene, caption in zip(scenes, captions))
    assert all(caption.startswith("not ") for caption in captions)


def test_a_rate_of_nothing_is_no_number():
    assert np.isnan(weaknesses.interval(0, 0)).all()
    assert weaknesses.interval(5, 10)[0] == 0.5


def test_weaknesses_runs(complete, tmp_path, capfd):
    weaknesses.main([str(tmp_path / "weak.png"), "--n", "4", "--seeds", "0", "1", "--scales", "0", "3", "--steps", "2",
                     "--weights", str(complete)])
    told = capfd.readouterr().out
    for weakness, lines in weaknesses.PLOTTED.items():
        assert re.search(rf"^{weakness}, of \d+ ", told, re.M) and all(f"\n{line} " in told for line in lines), told
    assert "negation, of 8 captions" in told and "all the same" in told and "Without a caption" in told and "nan" not in told
    is_a_figure(tmp_path / "weak.png")


def test_weights_of_single_things_are_refused_in_one_line(scratch, tmp_path):
    folder = weights(tmp_path, scratch, difficulty="single", kinds=("base",))
    with pytest.raises(SystemExit, match="single things only") as refusal:
        weaknesses.main(["--weights", str(folder)])
    assert "\n" not in str(refusal.value)
