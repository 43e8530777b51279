"""The lessons' experiments: what they ask and count, and that each runs from its question to its table and figure."""
import json
import re
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import small

unet, judge = import_module("03_unet"), import_module("lessons.10_judge")
NAMES = ("grid", "guidance", "inpainting", "own_images", "peer", "pictures", "preference", "samplers", "story", "study",
         "tradeoff", "trials", "upsamplers", "weaknesses", "words")
experiments = {name: import_module(f"lessons.experiments.{name}") for name in NAMES}
common = import_module("lessons.experiments.common")
guided, inpainting, weaknesses = (experiments[name] for name in ("guidance", "inpainting", "weaknesses"))
FIGURES = small.ROOT / "lessons" / "figures"
QUICK = {"grid": ["--n", 3], "guidance": ["--n", 2, "--seeds", 0, "--steps", 2],
         "inpainting": ["--n", 4, "--seeds", 0, 1, "--steps", 2], "pictures": ["--n", 2, "--turns", 2],
         "peer": ["--n", 2, "--steps", 1, "--peer-channels", 32, "--ancestral", 2, 3], "preference": ["--n", 2],
         "samplers": ["--n", 4, "--steps", 2, 3], "story": [],
         "study": ["--n", 4, "--only", "DDIM's η"], "tradeoff": ["--n", 4, "--steps", 2, "--scales", 3],
         "trials": ["--n", 2, "--steps", 2, "--only", "32 groups", "noise on what it is shown"],
         "upsamplers": ["--n", 3, "--steps", 1, "--averaged", 2, "--draws", 2],
         "weaknesses": ["--n", 4, "--seeds", 0, 1, "--scales", 0, 3, "--steps", 2],
         "words": ["--n", 2, "--steps", 1]}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """All kinds of tiny models and a judge, with random weights."""
    folder = small.save_models(tmp_path_factory.mktemp("weights"), small.train.KINDS)
    torch.manual_seed(0)
    unet.save_weights(folder / "judge-16.pt", judge.Judge(judge.JudgeConfig(16)), ceiling={"pair": (9, 10)})
    return folder


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    """Partial results of a test must not meet those of a reader."""
    monkeypatch.setattr(common, "OUTPUTS", tmp_path / "outputs")


def is_a_figure(path):
    with Image.open(path) as picture:
        width, spread = picture.width, np.asarray(picture.convert("L"), np.float32).std()
    assert width >= 600 and spread > 5, f"{path.name} is nearly empty"
    return True


def strict(path):
    """A table as any reader of JSON reads it: NaN is no number there."""
    return json.loads(path.read_text(encoding="utf-8"), parse_constant=lambda word: pytest.fail(f"{path} holds {word}"))


# --- What is asked and counted ---

def test_a_hole_hides_one_thing_of_a_pair_and_leaves_the_other():
    edits = inpainting.Edits.make(("pair",), 12, 16, seed=5)
    masks = [edits.masks[hole][:, 0].bool() for hole in ("half", "box", "border")]
    for image, half, box, border in zip(edits.images, *masks):
        ink = (image != image[:, :1, :1]).any(0)
        thing, other = ink & ~half, ink & half
        assert thing.any() and other.any(), "half an image holds one thing of two"
        assert not (thing & (half | box | border)).any(), "what is to be drawn must not show through its hole"
        assert (other & half & box & border).sum() == other.sum(), "the other thing stays whole"


def test_a_thing_that_touches_the_edge_of_its_hole_is_no_seam():
    """The median along the edge tells them apart: a seam runs along all of it, a thing covers a part."""
    image, mask = torch.zeros(1, 3, 16, 16), torch.ones(1, 1, 16, 16)
    mask[:, :, 4:12, 4:12] = 0
    thing, seam = image.clone(), image.clone()
    thing[:, :, 4:12, 4:7], seam[:, :, 4:12, 4:12] = 1.0, 0.1
    assert inpainting.edges(thing, image, mask).item() == 0
    assert inpainting.edges(seam, image, mask).item() == pytest.approx(12.75)
    assert inpainting.edges(image, image, mask).item() == 0, "the true image has no seam"


@pytest.mark.parametrize("way", inpainting.WAYS)
def test_in_the_end_the_known_pixels_are_exact(way, weights):
    model = experiments["samplers"].sample.Weights(weights, inpaints=way == "fine-tune").load("base")
    edits = inpainting.Edits.make(("single", "pair"), 4, 16, seed=0)
    drawn, context = inpainting.fill(way, model, edits, "border", seed=0, steps="3", scale=2.0)
    assert ((drawn - edits.images) * edits.masks["border"]).abs().max() == 0, f"{way} changes what is known"
    assert (context > 0).all(), "what the network predicts there is measured before it is corrected"


@pytest.mark.parametrize("weakness, make", [(one, make) for make, some in weaknesses.QUESTIONS for one in some])
def test_a_faultless_model_makes_no_mistake(weakness, make):
    scenes = make(12, 0)
    shown = [scene.scene for scene in scenes] if make is weaknesses.denied else scenes
    found = weakness(scenes, judge.labels(shown).clamp(min=0))
    for line, (did, among) in found.items():
        mistake = re.search("swapped|changed|instead", line) or re.fullmatch(r"“(\w+)” drawn as (?!\1)\w+", line)
        assert did[among].float().mean() == (0 if mistake else 1), f"“{line}” of faultless images"
    assert set(weaknesses.PLOTTED.get(weakness.__name__, ())) <= set(found), "a curve without a line in the table"


@pytest.mark.parametrize("swapped", ["colours", "nouns", "things"])
def test_swaps_are_told_apart(swapped):
    scenes = weaknesses.pairs(12, 0)
    seen = judge.labels(scenes).clamp(min=0)
    for part in {"colours": [weaknesses.COLORS], "nouns": [weaknesses.NOUNS]}.get(
            swapped, [weaknesses.COLORS, weaknesses.NOUNS]):
        seen[:, part] = seen[:, part].flip(1)
    rates = {line: did[among].float().mean() for weakness in (weaknesses.binding, weaknesses.relations)
             for line, (did, among) in weakness(scenes, seen).items()}
    assert rates["both nouns and both colours are there"] == 1 and rates["all that is said"] == 0
    assert rates["each noun in its own colour"] == (swapped == "things"), "things that change places keep their colours"
    assert rates["colours swapped"] == (swapped == "colours") and rates["nouns swapped"] == (swapped == "nouns")
    assert rates["changed places"] == (swapped != "colours"), "which thing is which, the nouns alone tell"


def test_what_guides_alone_is_heard_and_the_model_hears_nothing(weights):
    loaded = experiments["samplers"].sample.Weights(weights, clip=True)
    base, clip, (one, other) = loaded.load("base"), loaded.load("clip"), judge.eval_captions("pair", 2, 0)

    def drawn(scene, *how):
        return guided.drawn(base, clip, [scene], 0, "3", how)

    assert not torch.allclose(drawn(one, "clip", "ddpm", 0), drawn(other, "clip", "ddpm", 0), atol=1e-4)
    assert torch.equal(drawn(one, "alone", "ddpm", 0), drawn(other, "alone", "ddpm", 0)), "the model heard a caption"
    assert not torch.allclose(drawn(one, "alone", "ddpm", 9), drawn(other, "alone", "ddpm", 9), atol=1e-4)


def test_always_the_smallest_or_largest_variance_is_what_a_network_would_answer():
    study, x = experiments["study"], torch.randn(3, 3, 4, 6)
    fixed = study.fixed_variance(lambda x, t: torch.cat([x, 0.3 * x], 1), -1.0)(x, torch.tensor([1, 500, 999]))
    assert torch.equal(fixed[:, :3], x) and (fixed[:, 3:] == -1).all(), "the noise stays, the variance is told"


def test_structural_similarity_has_closed_forms():
    ssim, x = experiments["upsamplers"].ssim, torch.rand(3, 3, 16, 20) * 2 - 1
    assert ssim(x, x).tolist() == pytest.approx([1, 1, 1], abs=1e-5)
    flat = ssim(torch.full((1, 3, 16, 20), 0.2), torch.full((1, 3, 16, 20), -0.6)).item()      # 0.6 and 0.2 on [0, 1]
    assert flat == pytest.approx((2 * 0.6 * 0.2 + 1e-4) / (0.6 ** 2 + 0.2 ** 2 + 1e-4), abs=1e-4), "only means differ"
    assert ssim(x, -x).max() < 0, "a negative has the opposite pattern"


def test_a_bag_of_words_does_not_know_what_is_on_the_left():
    peer, words = experiments["peer"], small.tokenizer.world_tokenizer()
    network = small.randomize(peer.Peer(small.train.PRESETS["tiny"]["base"].network))
    tokens, mask = import_module("02_transformer").encode(peer.SWAPPED, words, 20).values()
    prepared = network.prepare(tokens, mask)
    assert torch.equal(*prepared["pooled"]), "both captions have the same words"
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([3, 900])
    assert torch.equal(network(x, t, **prepared), network(x, t, tokens=tokens, mask=mask))


def test_votes_of_people_come_back_from_the_page(weights, tmp_path, capsys):
    main, folder = experiments["preference"].main, tmp_path / "blind"
    page = ["--n", "2", "--page", str(folder), "--weights", str(weights), "--out", str(tmp_path / "a.png")]
    assert main(page) == 0 and main(page) == 2 and "already" in capsys.readouterr().err, "a key is never overwritten"
    key, html = json.loads((folder / "key.json").read_text()), (folder / "test.html").read_text(encoding="utf-8")
    assert len(key["questions"]) == 20, "each two of five players, for two captions"
    assert key["test"] in html and "guidance" not in html, "the page does not tell who drew what"
    count = ["--votes", str(folder), "--out", str(tmp_path / "b.png")]
    assert main(count) == 2 and "no votes" in capsys.readouterr().err
    rows = [f"{key['test']},Ada,{i},{'tie' if i % 3 else 'left'}" for i in range(20)]
    (folder / "votes-Ada.csv").write_text("\n".join(["test,voter,question,choice", *rows]), encoding="utf-8")
    assert main(count) == 0
    table = strict(tmp_path / "b.json")
    assert table["votes"] == 20 and table["ties"]["value"] == 0.65, "13 of 20 are no multiples of three"
    (folder / "votes-Bob.csv").write_text("test,voter,question,choice\nother,Bob,0,left\n", encoding="utf-8")
    assert main(count) == 2 and "another test" in capsys.readouterr().err


# --- Tables ---

def test_a_cell_is_a_number_with_its_interval():
    rate = common.cell(torch.arange(60) < 42)
    assert rate["n"] == 60 and [rate[name] for name in ("low", "value", "high")] == pytest.approx([0.575, 0.7, 0.801],
                                                                                                  abs=1e-3)
    assert common.percent(rate) == "70 (57–80)" and common.cell(torch.tensor([])) is None
    mean = common.cell(torch.tensor([1.0, 3.0, torch.nan]))
    assert mean["value"] == 2 and mean["n"] == 2, "what is no number does not count"


def test_an_interrupted_experiment_continues(tmp_path, weights):
    args = common.parser("", "x", n=3).parse_args(["--out", str(tmp_path / "x.png"), "--weights", str(weights)])
    assert common.Partial(args)("a", lambda: [1, 2]) == [1, 2]
    assert common.Partial(args)("a", lambda: pytest.fail("this was measured before")) == [1, 2]
    args.n = 4
    assert common.Partial(args)("a", lambda: "anew") == "anew", "with other options it is another experiment"


# --- From the command line ---

@pytest.mark.parametrize("name", NAMES)
def test_it_explains_itself(name, capsys):
    with pytest.raises(SystemExit) as end:
        experiments[name].main(["--help"])
    assert end.value.code == 0 and "--redraw" in capsys.readouterr().out
    doc = experiments[name].__doc__
    assert f"python lessons/experiments/{name}.py" in doc and "\nFound:" in doc, "its command, and what it found"
    assert (FIGURES / f"{name}.png").exists()


@pytest.mark.parametrize("name", QUICK)
def test_it_leaves_a_table_and_a_figure_that_is_drawn_from_it(name, weights, tmp_path):
    out, main = tmp_path / f"{name}.png", experiments[name].main
    assert main([*map(str, QUICK[name]), "--weights", str(weights), "--out", str(out)]) == 0
    assert is_a_figure(out) and f"lessons/experiments/{name}.py" in strict(out.with_suffix(".json"))["made"]["command"]
    with Image.open(out) as image:
        before = np.asarray(image)
    out.unlink()
    assert main(["--redraw", "--out", str(out), "--weights", str(tmp_path / "none")]) == 0, "it needs no model"
    with Image.open(out) as image:
        assert np.array_equal(before, np.asarray(image)), "the figure holds more than its table"
    if name == "story":
        sides = [np.asarray(Image.open(tmp_path / f"story-{k}.png").convert("RGB")) for k in (1, 2, 3)]
        half = len(sides[0]) // 2
        for before, after in zip(sides, sides[1:]):
            changed = [not np.array_equal(before[r:r + half, c:c + half], after[r:r + half, c:c + half])
                       for r in (0, half) for c in (0, half)]
            assert sum(changed) == 1, "a turn draws into one quarter; the others stay as they are to the last bit"


def test_own_images_are_made_learned_and_drawn(weights, tmp_path, capsys, monkeypatch):
    main, folder = experiments["own_images"].main, tmp_path / "images"
    assert main(["make", str(folder)]) == 0 and len(list(folder.iterdir())) == 40
    assert main(["make", str(folder)]) == 2 and "exists already" in capsys.readouterr().err
    monkeypatch.setitem(small.train.PRESETS["tiny"], "base", small.preset())
    assert main(["losses", str(folder), "--steps", "2", "--every", "2", "--out", str(tmp_path / "loss.png")]) == 0
    for path in sorted(folder.iterdir())[2:]:     # one image is enough to draw
        path.unlink()
    monkeypatch.setattr(experiments["own_images"], "NEW", ("a cat",))
    small.save_models(tmp_path, world="")
    assert main(["draw", str(folder), "--weights", str(tmp_path), "--out", str(tmp_path / "drawn.png")]) == 0
    assert is_a_figure(tmp_path / "drawn.png") and is_a_figure(tmp_path / "loss.png")
    assert [row[0] for row in strict(tmp_path / "loss.json")["step, seen, left out"]] == [0, 2]


@pytest.mark.parametrize("path", sorted(FIGURES.glob("*.json")), ids=lambda path: path.stem)
def test_a_shipped_figure_has_its_table(path):
    table = strict(path)
    assert table["made"]["command"].startswith("python lessons/experiments/")
    assert is_a_figure(path.with_suffix(".png"))
    name = re.search(r"experiments/(\w+)\.py", table["made"]["command"])[1]
    if len(table) > 1:          # drawings of your own images have no table, only the command that draws them
        assert experiments[name].draw(table).axes, "a figure without a panel"
