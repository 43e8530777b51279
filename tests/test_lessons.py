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
inpainting = import_module("lessons.inpainting_compared")
tokenizer = train.tokenizer


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
    assert (inpainting.edges(edits.images, edits.images, mask) == 0).all()
    assert inpainting.edges(grey, edits.images, mask).mean() > 10


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
