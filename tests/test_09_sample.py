"""The pipeline, the released weights' names, the command line; and that the shipped weights are as good as is said."""
import hashlib
import json
import math
from dataclasses import replace
from functools import lru_cache
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import formula
import small
from small import main

tokenizer, unet, diffusion, guidance, train, sample = (import_module(m) for m in (
    "01_tokenizer", "03_unet", "04_diffusion", "05_guidance", "08_train", "09_sample"))
KINDS = {"base": 3, "upsample": 6, "base-inpaint": 7, "upsample-inpaint": 10}
PROMPT = "a red heart above a blue umbrella"


# --- Released weights ---

def shapes(kind, model):
    layout = json.loads((formula.GOLDEN / "layouts_small.json").read_text())[f"{kind}.{model}"]
    return {key: tuple(shape) for key, shape in layout.items()}


SMALL_CONFIGS = {"a": unet.UNetConfig(64, (1, 2), 1, (1,), text=unet.TextConfig(96, 16, 128, 2, 2)),
                 "b": unet.UNetConfig(64, (1, 2, 3), 2, (1, 2), text=unet.TextConfig(128, 24, 64, 1, 1))}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", "ab")
def test_sizes_are_read_off_the_shapes(kind, model):
    expected = replace(SMALL_CONFIGS[model], in_channels=KINDS[kind])
    assert sample.config_from_shapes(shapes(kind, model)) == expected


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("model", "ab")
def test_the_table_of_names_goes_both_ways(kind, model):
    config = replace(SMALL_CONFIGS[model], in_channels=KINDS[kind])
    names = sample.released_names(config)
    assert len(set(names.values())) == len(names), "two of our keys have one released name"
    assert set(names.values()) == set(shapes(kind, model)), "every released key is used, and no other is asked for"
    with torch.device("meta"):
        assert set(names) == set(unet.UNet(config).state_dict()), "every one of our keys has a released name"


def equal(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("model", "ab")
def test_export_gives_the_released_weights_back(model):
    released = formula.state_dict("base", model)
    assert equal(sample.export_openai(sample.load_openai(released)), released), "no number may change on the way"


def test_export_gives_both_clip_towers_back():
    released = [formula.state_dict(f"clip/{tower}-enc", "a") for tower in ("image", "text")]
    exported = sample.export_openai_clip(sample.load_openai_clip(*released))
    assert equal(exported[0], released[0]) and equal(exported[1], released[1]), "no number may change on the way"


def test_weights_of_half_precision_serve_as_well():
    """They become float32 on loading, so only their own rounding shows."""
    halves = {key: value.half() for key, value in formula.state_dict("base", "a").items()}
    model, cond = sample.load_openai(halves), formula.conditioning("base", "a")
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    with torch.no_grad():
        answer = model(formula.inp("x", 3, 3, 16, 16), torch.tensor([0, 500, 999]), **cond)
    formula.agree(answer, formula.golden("unet.base.a"), 1e-2)


# Keys and shapes of the released checkpoints as one number each: SHA-256 of their sorted lines "key [shape]".
RELEASED = {("base", "base"): "e0b1269b3127aecdcd9477e4ea58afa5e01dd08c2df243ab1c931b81079e73fc",
            ("upsample", "upsampler"): "62a42fe6d9e08f0f4bdd81ae6fec28900a04e8a3bdd2299493afd88e2d2809cd",
            ("base-inpaint", "inpaint"): "03110f1ba40064c89cdc0a9114b5caaa9383671f31a716616d5194a955b0fdbd",
            ("upsample-inpaint", "inpaint-upsampler"): "b4ce0af4a758fad34afff27d41e52be97a02584fca12d238d5f457cf2503e1be"}


@lru_cache
def released_shapes(preset):
    """Our U-Net of a released size under the released names: {key: shape}."""
    return sample.released_shapes(preset)


@pytest.mark.parametrize("released, preset", RELEASED)
def test_our_large_presets_have_the_released_keys_and_shapes(released, preset):
    lines = sorted(f"{key} {list(shape)}" for key, shape in released_shapes(preset).items())
    digest = hashlib.sha256("\n".join(lines).encode()).hexdigest()
    assert digest == RELEASED[released, preset], f"{released}.pt would not fit; our {len(lines)} keys begin {lines[:2]}"


TOWERS = {"clip-image": (86_443_776, "9f79242d087c921c5b0390a393d7bac3234fa202018a4508c1e7a4ccc84a80a0"),
          "clip-text": (71_679_488, "9d4e78f3d565dbbae21c81f1a710510f0e515c1e65668d6ee2602d35ce7f7103")}


@pytest.mark.parametrize("tower", TOWERS)
def test_our_clip_has_the_released_keys_shapes_and_size(tower):
    parameters, expected = TOWERS[tower]
    shapes = sample.released_shapes(tower)
    lines = sorted(f"{key} {list(shape)}" for key, shape in shapes.items())
    assert sum(map(math.prod, shapes.values())) == parameters
    assert hashlib.sha256("\n".join(lines).encode()).hexdigest() == expected, f"{tower} would not fit: {lines[:2]}"


def test_clip_sizes_are_read_off_the_shapes():
    towers = (sample.released_shapes(f"clip-{tower}") for tower in ("image", "text"))
    assert sample.clip_config_from_shapes(*towers) == guidance.CLIP["filtered"]


@pytest.mark.parametrize("preset", ["base", "upsampler", "inpaint", "inpaint-upsampler"])
def test_released_sizes_are_read_off_the_shapes(preset):
    assert sample.config_from_shapes(released_shapes(preset)) == train.PRESETS["filtered"][preset].network


def damaged(how):
    weights = dict(formula.state_dict("base", "a"))
    if how == "a key too few":
        del weights["middle_block.0.out_layers.3.bias"]
    elif how == "a key too many":
        weights["ema.decay"] = torch.zeros(1)
    elif how == "another model":
        weights = {"conv1.weight": torch.zeros(64, 3, 7, 7), "fc.weight": torch.zeros(1000, 512)}
    elif how == "nothing":
        weights = {}
    elif how == "no tensors":
        weights = dict.fromkeys(weights, 3)
    elif how == "a list":
        weights = list(weights.values())
    elif how == "the text tower of CLIP":
        weights = {key: value for key, value in weights.items() if key.startswith("transformer.")}
    else:                                                                    # the name of a key: of another shape
        weights[how] = weights[how][..., :-1] if weights[how].dim() > 1 else weights[how][0]
    return weights


@pytest.mark.parametrize("how", [
    "a key too few", "a key too many", "another model", "nothing", "no tensors", "a list", "the text tower of CLIP",
    "input_blocks.0.0.weight", "input_blocks.0.0.bias", "out.2.weight", "out.2.bias", "positional_embedding",
    "token_embedding.weight", "middle_block.1.qkv.weight", "time_embed.0.weight", "final_ln.bias"])
def test_what_is_no_released_model_is_refused_in_one_line(how):
    with pytest.raises(ValueError) as refusal:
        sample.load_openai(damaged(how))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300, str(refusal.value)


def damaged_clip(how):
    image, text = (dict(formula.state_dict(f"clip/{tower}-enc", "a")) for tower in ("image", "text"))
    if how == "the other way round":
        image, text = text, image
    elif how == "a U-Net":
        image = formula.state_dict("base", "a")
    elif how == "a key too few":
        del text["blocks.output.f.w"]
    elif how == "a key too many":
        image["blocks.block_0.f_attn.f_k.b"] = torch.zeros(128)
    elif how == "integers":
        text["blocks.output.f.w"] = text["blocks.output.f.w"].long()
    else:
        image[how] = image[how][..., :-1]
    return image, text


@pytest.mark.parametrize("how", ["the other way round", "a U-Net", "a key too few", "a key too many", "integers",
                                 "blocks.input.w_t", "blocks.block_1.f_attn.f_k.w", "blocks.block_1.f_attn.f_v.b"])
def test_what_is_no_released_clip_is_refused_in_one_line(how):
    with pytest.raises(ValueError) as refusal:
        sample.load_openai_clip(*damaged_clip(how))
    assert "\n" not in str(refusal.value) and len(str(refusal.value)) < 300, str(refusal.value)


def test_a_loaded_model_is_in_eval_mode():
    model, cond = formula.denoiser("base"), formula.conditioning("base", "a")
    assert model.config.dropout == 0.1 and not model.training
    x, t = formula.inp("x", 3, 3, 16, 16), torch.tensor([0, 500, 999])
    with torch.no_grad():
        assert torch.equal(model(x, t, **cond), model(x, t, **cond)), "dropout must be off: two calls, one answer"


# --- The pipeline, with weights that know nothing ---

@pytest.fixture(scope="module")
def scratch(tmp_path_factory):
    return tmp_path_factory.mktemp("scratch")


@pytest.fixture(scope="module")
def weights(tmp_path_factory, scratch):
    """A folder of base.pt and upsampler.pt with random weights, "trained" on the full language."""
    return small.save_models(tmp_path_factory.mktemp("weights"), scratch)


@pytest.fixture(scope="module")
def models(weights):
    return {name: sample.Model.load(weights / f"{name}.pt") for name in ("base", "upsampler")}


def test_a_model_is_loaded_with_what_sampling_needs(models):
    base, upsampler = models["base"], models["upsampler"]
    assert (base.size, upsampler.size) == (16, 64) and base.difficulty == "full" and base.made["steps"] == 1
    assert base.config == small.preset().network and upsampler.config == small.preset("upsampler").network
    assert (base.process.schedule, upsampler.process.schedule) == ("cosine", "linear")
    cond = base.encode([PROMPT])
    assert base.tokenizer.decode(cond["tokens"][cond["mask"]].tolist()) == PROMPT


def test_a_seed_is_a_picture(models):
    one, again, other = (sample.generate(PROMPT, **models, seed=seed, steps=3) for seed in (1, 1, 2))
    assert one.dtype == torch.uint8 and one.shape == (1, 3, 64, 64)
    assert torch.equal(one, again), "the same seed must give the same picture again, to the last bit"
    assert not torch.equal(one, other), "another seed must give another one"


def test_random_numbers_of_others_do_not_matter(models):
    one = sample.generate(PROMPT, **models, seed=1, steps=3, sampler="ddpm")
    torch.manual_seed(12345)
    assert torch.equal(one, sample.generate(PROMPT, **models, seed=1, steps=3, sampler="ddpm"))


def test_several_pictures_differ(models):
    pictures = sample.generate(PROMPT, **models, n=3, seed=1, steps=3)
    assert pictures.shape == (3, 3, 64, 64) and not torch.equal(pictures[0], pictures[1])


def test_prompt_scale_and_sampler_reach_the_picture(models):
    plain = sample.generate(PROMPT, **models, seed=1, steps=3)
    for change in {"scale": 8.0}, {"sampler": "ddpm"}, {"sampler": "dpm"}, {"steps": "4"}:
        assert not torch.equal(plain, sample.generate(PROMPT, **models, seed=1, **({"steps": 3} | change))), change
    assert not torch.equal(plain, sample.generate("a pink moon", **models, seed=1, steps=3)), "the prompt"


def test_one_sees_every_step(models):
    seen = []
    watched = sample.generate(PROMPT, **models, seed=1, steps=3, n=2,
                              watch=lambda stage, x0, left: seen.append((stage, tuple(x0.shape), left)))
    assert seen[:3] == [("base", (2, 3, 16, 16), left) for left in (2, 1, 0)], "25 steps by default, here 3"
    assert seen[3:] == [("upsampler", (2, 3, 64, 64), left) for left in range(26, -1, -1)], "27 steps"
    assert torch.equal(watched, sample.generate(PROMPT, **models, seed=1, steps=3, n=2)), "watching changes nothing"


def test_the_default_walk_is_25_ddim_steps(models):
    counts = []
    sample.draw_small(models["base"], [PROMPT], generator=torch.Generator().manual_seed(0),
                      watch=lambda x0, left: counts.append(left))
    assert counts == list(range(24, -1, -1))


def test_accuracy_counts_the_captions_that_came_out_right(models, monkeypatch):
    """A judge that sees what was asked for, and one mistake in every picture of a red thing."""
    scenes = train.exam("single", 7, seed=2)
    red = sum(scene.things[0].color == "red" for scene in scenes)
    monkeypatch.setattr(train, "exam", lambda kind, n, seed=0: [scenes, scenes[:3] + [tokenizer.Scene.parse("a red moon")]][
        kind == "with red"][:n])

    def score(judge, drawn, asked):
        assert drawn.shape == (len(asked), 3, 16, 16)
        return {"all": np.array([scene.things[0].color != "red" for scene in asked])}
    monkeypatch.setattr(train, "scores", score)
    assert sample.caption_accuracy(models["base"], None, "plain", 7, batch=3, steps=2) == (7 - red, 7)
    right = 4 - sum(scene.things[0].color == "red" for scene in scenes[:3]) - 1
    assert sample.caption_accuracy(models["base"], None, "with red", 4, batch=3, steps=2) == (right, 4)


# --- From a sketch ---

def ring(size=48, color="red"):
    """A drawing of another size than the models': a square frame on white."""
    picture = Image.new("RGB", (size, size), "white")
    picture.paste(color, (size // 6, size // 6, size - size // 6, size - size // 6))
    picture.paste("white", (size // 3, size // 3, size - size // 3, size - size // 3))
    return picture


@pytest.mark.parametrize("strength", [0.2, 0.6, 1.0])
def test_a_walk_begins_with_the_sketch_noised_so_far(models, strength):
    """x_t = √ᾱ_t·sketch + √(1-ᾱ_t)·ε at the kept timestep nearest to strength·999."""
    base, noise = models["base"], torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    how = replace(base.sampling, steps="50", sketch=sample.Sketch(ring(), strength))
    process, x = sample.beginning(base, how, noise)
    kept = diffusion.respace(1000, "50")
    t = min(kept, key=lambda step: abs(step - 999 * strength))
    share = math.cos((t + 1 + 8) / 1008 * math.pi / 2) ** 2 / math.cos(0.008 / 1.008 * math.pi / 2) ** 2   # ᾱ_t, cosine
    drawing = sample.pixels(ring(), 16)
    assert process.timesteps == [step for step in kept if step <= t]
    assert torch.allclose(x, math.sqrt(share) * drawing + math.sqrt(1 - share) * noise, atol=2e-3)


def test_without_a_sketch_a_walk_begins_at_noise(models):
    noise = torch.randn(1, 3, 16, 16)
    process, x = sample.beginning(models["base"], models["base"].sampling, noise)
    assert x is noise and process.timesteps == diffusion.respace(1000, "25")


def test_little_strength_changes_little(models):
    drawn = sample.draw_small(models["base"], [PROMPT], generator=torch.Generator().manual_seed(0), scale=1.0,
                              sketch=sample.Sketch(ring(), 1e-3))
    assert (drawn - sample.pixels(ring(), 16)).abs().max() < 0.2, "one step away from the drawing, even at random weights"


def test_a_sketch_shortens_the_small_pictures_walk_only(models):
    seen = []
    sample.generate(PROMPT, **models, seed=1, steps="10", sketch=sample.Sketch(ring(), 0.45), large={"steps": "3"},
                    watch=lambda stage, x0, left: seen.append(stage))
    assert seen == ["base"] * 5 + ["upsampler"] * 3, "of ten steps those from 444 = 0.444·999 on: 444, 333, 222, 111, 0"


# --- The command line ---

def test_a_prompt_becomes_a_file(weights, tmp_path, capfd):
    out = tmp_path / "new" / "heart.png"
    status, told, _ = main(capfd, PROMPT, "--weights", weights, "--out", out, "--seed", 1, "--steps", 2, "--n", 2)
    assert status == 0 and str(out) in told and PROMPT in told and "seed 1" in told
    assert sorted(p.name for p in out.parent.iterdir()) == ["heart-steps.png", "heart.png"], "the picture and its strip"
    with Image.open(out) as picture:
        pictures = sample.generate(PROMPT, n=2, seed=1, steps=2, **{
            name: sample.Model.load(weights / f"{name}.pt") for name in ("base", "upsampler")})
        zoom = picture.height // 64
        shown = np.asarray(picture.convert("RGB"))[zoom // 2::zoom, zoom // 2::zoom][:64, :64]
        assert np.array_equal(shown, pictures[0].permute(1, 2, 0).numpy()), "the file shows what generate answers"


def test_without_a_seed_the_command_says_which_it_took(weights, tmp_path, capfd):
    told = [main(capfd, PROMPT, "--weights", weights, "--out", tmp_path / f"{i}.png", "--steps", 1)[1] for i in "ab"]
    seeds = [line.split("seed ")[1].split(",")[0] for line in told]
    assert seeds[0] != seeds[1] and all(map(str.isdecimal, seeds)), f"another one each time, and told: {seeds}"


def test_all_that_the_language_says_reads_the_same(weights, tmp_path, capfd):
    status, _, _ = main(capfd, "  A  Red HEART above a blue umbrella ", "--weights", weights, "--seed", 1,
                        "--out", tmp_path / "a.png", "--steps", 1)
    assert status == 0


def test_measuring_prints_rates_with_intervals_and_ceilings(weights, tmp_path, capfd):
    for kind in ("base", "upsampler"):
        (tmp_path / f"{kind}.pt").write_bytes((weights / f"{kind}.pt").read_bytes())
    for size in (16, 64):
        unet.save_weights(tmp_path / f"judge-{size}.pt", train.Judge(train.JudgeConfig(size)),
                          ceiling={kind: (9, 10) for kind in train.KINDS})
    status, told, err = main(capfd, "--measure", "--weights", tmp_path, "--n", 2, "--steps", 1)
    assert status == 0, err
    for kind in train.KINDS:
        row = next(line for line in told.splitlines() if line.startswith(kind + " "))
        assert "90.0%" in row and " to " in row, "each rate stands beside its interval and the judge's ceiling"
    assert "upsampler" in told and "bicubic" in told and "PSNR" in told


REFUSALS = {
    "an unknown word": (["a red dragon"], "'dragon'"),
    "no grammar": (["heart red a"], "caption"),
    "an empty prompt": ([""], "empty"),
    "a blank prompt": (["   "], "empty"),
    "a prompt of two lines": (["a red\nwyvern"], "'wyvern'"),
    "no prompt": ([], "what shall it draw"),
    "no steps": ([PROMPT, "--steps", "0"], "'0'"),
    "steps in words": ([PROMPT, "--steps", "ten"], "'ten'"),
    "more steps than there are": ([PROMPT, "--steps", "2000"], "2000"),
    "no whole stride": ([PROMPT, "--steps", "ddim999"], "999"),
    "a folder without weights": ([PROMPT, "--weights", "{tmp}/nowhere"], "nowhere"),
    "another file type": ([PROMPT, "--out", "{tmp}/picture.jpg"], ".png"),
    "no folder there": ([PROMPT, "--out", "{tmp}/file/picture.png"], "file"),
    "a file that is there": ([PROMPT, "--out", "{tmp}/there.png"], "exists already"),
    "a strip that is there": ([PROMPT, "--out", "{tmp}/other.png"], "other-steps.png exists already"),
    "a folder of that name": ([PROMPT, "--out", "{tmp}/folder.png"], "exists already"),
    "a box of three": ([PROMPT, "--image", "{tmp}/x.png", "--box", "0,0,1"], "four numbers"),
    "a box of words": ([PROMPT, "--image", "{tmp}/x.png", "--box", "left,top,right,bottom"], "four numbers"),
    "a box inside out": ([PROMPT, "--image", "{tmp}/x.png", "--box", "0.5,0,0.2,1"], "0.5,0,0.2,1"),
    "a box upside down": ([PROMPT, "--image", "{tmp}/x.png", "--box", "0,1,1,0"], "0,1,1,0"),
    "a box beyond the picture": ([PROMPT, "--image", "{tmp}/x.png", "--box", "0,0,1,1.5"], "from 0 to 1"),
    "a box of no numbers": ([PROMPT, "--image", "{tmp}/x.png", "--box", "0,nan,1,1"], "four numbers"),
    "a box too small": ([PROMPT, "--image", "{tmp}/x.png", "--box", "0.5,0.5,0.51,0.51"], "leaves nothing to draw"),
    "a box without a picture": ([PROMPT, "--box", "0,0,1,1"], "--image"),
    "a box and a mask": ([PROMPT, "--image", "{tmp}/x.png", "--mask", "{tmp}/x.png", "--box", "0,0,1,1"], "one of the two"),
    "a sketch and a picture": ([PROMPT, "--init", "{tmp}/x.png", "--image", "{tmp}/x.png", "--box", "0,0,1,1"], "--init"),
    "a sketch and a mask": ([PROMPT, "--init", "{tmp}/x.png", "--mask", "{tmp}/x.png"], "--init"),
    "a sketch that is not there": ([PROMPT, "--init", "{tmp}/nowhere.png"], "nowhere.png"),
    "a sketch that is no picture": ([PROMPT, "--init", "{tmp}/file"], "no picture"),
    "strength without a sketch": ([PROMPT, "--strength", "0.5"], "--init"),
    "no judge": (["--measure", "--n", "1"], "judge-16.pt"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_done_is_refused_in_one_line(case, weights, tmp_path, capfd):
    for name in ("file", "there.png", "other-steps.png"):
        (tmp_path / name).write_text("mine")
    (tmp_path / "folder.png").mkdir()
    ring(64).save(tmp_path / "x.png")
    argv, word = REFUSALS[case]
    argv = [part.format(tmp=tmp_path) for part in argv]
    status, _, err = main(capfd, *argv, *([] if "--weights" in argv else ["--weights", weights]))
    assert status == 2, "a refusal ends with status 2"
    assert len(err) == 1 and err[0].startswith("09_sample.py: ") and word in err[0], err
    left = {p.name for p in tmp_path.iterdir()}
    assert left == {"file", "there.png", "other-steps.png", "folder.png", "x.png"}, "nothing new may be left behind"
    assert all((tmp_path / name).read_text() == "mine" for name in ("file", "there.png", "other-steps.png"))


def test_an_unknown_word_is_answered_with_the_known_ones(weights, capfd):
    _, _, err = main(capfd, "a red dragon", "--weights", weights)
    assert all(noun in err[0] for noun in tokenizer.NOUNS) and "to the left of" in err[0]


@pytest.mark.parametrize("argv", [["--n", "0"], ["--n", "two"], ["--scale", "nan"], ["--scale", "inf"], ["--scale", "1e999"],
                                  ["--scale", "much"], ["--sampler", "foo"], ["--seed", "-1"], ["--seed", "1.5"],
                                  ["--seed", str(10 ** 30)], ["--device", "warp9"], ["--device", "meta"],
                                  ["--strength", "0"], ["--strength", "1.1"], ["--strength", "nan"],
                                  ["--step", "5"], ["--frobnicate"]])
def test_wrong_options_are_refused(argv, weights, tmp_path, capfd):
    status, _, err = main(capfd, PROMPT, "--weights", weights, "--out", tmp_path / "a.png", *argv)
    assert status == 2 and "error:" in err[-1] and argv[-1] in err[-1], err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("sampler", ["ddim", "ddpm", "dpm"])
def test_a_sketch_and_a_prompt_become_a_file(weights, tmp_path, capfd, sampler):
    ring().save(tmp_path / "ring.png")
    drawn = {}
    for strength in ("0.3", "0.6"):
        out = tmp_path / f"{strength}.png"
        status, _, err = main(capfd, PROMPT, "--init", tmp_path / "ring.png", "--strength", strength, "--sampler", sampler,
                              "--weights", weights, "--seed", 1, "--steps", 5, "--upsampler-steps", 2, "--out", out)
        assert status == 0, err
        drawn[strength] = out.read_bytes()
    assert drawn["0.3"] != drawn["0.6"]


# --- Drawing into a picture ---

@pytest.fixture(scope="module")
def tuned(tmp_path_factory, scratch):
    """A folder that holds all four tiny models."""
    kinds = ("base", "upsampler", "inpaint", "inpaint-upsampler")
    return small.save_models(tmp_path_factory.mktemp("tuned"), scratch, kinds=kinds)


def edited(capfd, folder, out, *where):
    """09 draws into a ring of 64 pixels: the picture that it leaves, as an array."""
    image = out.with_name("x.png")
    ring(64).save(image)
    status, _, err = main(capfd, PROMPT, "--image", image, *where, "--weights", folder, "--seed", 1, "--steps", 2,
                          "--upsampler-steps", 2, "--out", out)
    assert status == 0, err
    return np.asarray(Image.open(out))


@pytest.mark.parametrize("folder", ["weights", "tuned"])
def test_a_box_is_a_mask_that_is_white_there(folder, request, tmp_path, capfd):
    folder, hole = request.getfixturevalue(folder), Image.new("L", (64, 64))
    hole.paste(255, (32, 0, 64, 16))
    hole.save(tmp_path / "hole.png")
    by_mask = edited(capfd, folder, tmp_path / "mask.png", "--mask", tmp_path / "hole.png")
    by_box = edited(capfd, folder, tmp_path / "box.png", "--box", "0.5,0,1,0.25")
    assert np.array_equal(by_mask, by_box)
    inside = np.zeros((64, 64), bool)
    inside[:16, 32:] = True
    before = np.asarray(ring(64))
    assert np.array_equal(by_box[~inside], before[~inside]), "outside the box not a bit may change"
    assert not np.array_equal(by_box[inside], before[inside])


@pytest.mark.parametrize("there", [[], ["inpaint"], ["inpaint-upsampler"], ["inpaint", "inpaint-upsampler"]])
def test_fine_tuned_weights_are_used_where_there_are_some(there, tuned, tmp_path):
    for kind in ["base", "upsampler", *there]:
        (tmp_path / f"{kind}.pt").write_bytes((tuned / f"{kind}.pt").read_bytes())

    def parts(*argv):
        models = sample.loaders(sample.arguments([PROMPT, "--weights", str(tmp_path), *argv]))
        return [models[name]().part for name in ("base", "upsampler")]
    assert parts() == ["base", "upsampler"], "they are for drawing into pictures"
    pairs = ("base", "inpaint"), ("upsampler", "inpaint-upsampler")
    expected = [kind if kind in there else plain for plain, kind in pairs]
    assert parts("--image", "x.png") == expected


def test_fine_tuned_models_see_what_they_draw_into(tuned, tmp_path, capfd, monkeypatch):
    seen, real = [], sample.Model.load

    def load(*args, **options):
        model = real(*args, **options)
        inner = model.denoiser
        model.denoiser = lambda x, t, **cond: seen.append((model.part, cond)) or inner(x, t, **cond)
        return model
    monkeypatch.setattr(sample.Model, "load", load)
    edited(capfd, tuned, tmp_path / "a.png", "--box", "0.5,0,1,1")
    assert {part for part, _ in seen} == {"inpaint", "inpaint-upsampler"}
    for part, cond in seen:
        side = 16 if part == "inpaint" else 64
        expected = sample.pixels(ring(64), side)
        assert torch.allclose(cond["inpaint_image"][:1], expected) and cond["inpaint_mask"].shape[1:] == (1, side, side)
        assert (cond["inpaint_mask"][..., :side // 2] == 1).all() and not cond["inpaint_mask"][..., side // 2:].any()


@pytest.mark.parametrize("zoom, filter", [(1, Image.NEAREST), (5, Image.NEAREST), (5, Image.BICUBIC)])
def test_a_picture_of_squares_stays_one(zoom, filter):
    """What 09 shows of the tiny models is enlarged to squares; what is drawn into that must be, too."""
    picture, hole = ring(64).resize((64 * zoom,) * 2, filter), Image.new("L", (4, 4), 255)
    drawn = torch.randint(0, 256, (3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    page = np.asarray(sample.Known(picture, hole, 16).put_back(drawn))
    squares = np.array_equal(page, np.repeat(np.repeat(page[::zoom, ::zoom], zoom, 0), zoom, 1))
    assert squares == (filter == Image.NEAREST)


@pytest.mark.parametrize("damage", ["cut", "foreign", "html", "empty", "a judge", "no facts", "swapped", "released"])
@pytest.mark.parametrize("name", ["base", "upsampler"])
def test_what_are_no_weights_is_refused_in_one_line(weights, tmp_path, capfd, damage, name):
    for kind in ("base", "upsampler"):
        (tmp_path / f"{kind}.pt").write_bytes((weights / f"{kind}.pt").read_bytes())
    path, other = tmp_path / f"{name}.pt", weights / f"{'base' if name == 'upsampler' else 'upsampler'}.pt"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:50_000])
    elif damage == "foreign":
        torch.save({"epoch": 3}, path)
    elif damage == "a judge":
        unet.save_weights(path, train.Judge(train.JudgeConfig(16)), ceiling={})
    elif damage == "no facts":
        unet.save_weights(path, unet.UNet.load(path))
    elif damage == "swapped":
        path.write_bytes(other.read_bytes())
    elif damage == "released":
        torch.save(formula.state_dict("base", "a"), path)
    else:
        path.write_text("<html>not found</html>" if damage == "html" else "")
    status, _, err = main(capfd, PROMPT, "--weights", tmp_path, "--out", tmp_path / "a.png", "--steps", 1)
    assert status == 2 and len(err) == 1 and err[0].startswith("09_sample.py: ") and str(path) in err[0], err


@pytest.mark.parametrize("prompt", [PROMPT, "two red hearts", "a red snowman"])
def test_weights_are_not_asked_for_what_they_never_saw(prompt, tmp_path, scratch, capfd):
    small.save_models(tmp_path, scratch, difficulty="single")
    status, _, err = main(capfd, prompt, "--weights", tmp_path)
    assert status == 2 and len(err) == 1 and "single things only" in err[0] and "heart" in err[0], err


def test_ctrl_c_leaves_no_picture(weights, tmp_path, capfd, monkeypatch):
    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt
    monkeypatch.setattr(sample, "enlarge", interrupt)
    status, _, err = main(capfd, PROMPT, "--weights", weights, "--out", tmp_path / "a.png", "--steps", 1)
    assert status == 130 and "stopped" in err[-1] and not list(tmp_path.iterdir())


def test_a_full_disk_leaves_no_half_picture(weights, tmp_path, capfd, monkeypatch):
    def full_disk(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(Image.Image, "save", full_disk)
    status, _, err = main(capfd, PROMPT, "--weights", weights, "--out", tmp_path / "a.png", "--steps", 1)
    assert status == 2 and "No space left" in err[-1] and not list(tmp_path.iterdir())


def test_a_shell_sees_status_and_lines(weights, tmp_path):
    done = small.run("09_sample.py", "a red dragon", "--weights", weights)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and done.stdout == "", done.stderr
    done = small.run("09_sample.py", PROMPT, "--weights", weights, "--seed", 1, "--steps", 2, "--out", tmp_path / "a.png")
    assert done.returncode == 0 and (tmp_path / "a.png").exists(), done.stderr
    assert [line.split(":")[0] for line in done.stderr.splitlines()] == ["base", "upsampler"], "one line a model"


# --- The weights that come with the course: if they are missing or have become worse, these tests fail ---

@lru_cache
def shipped(name):
    return sample.Model.load(unet.WEIGHTS / f"{name}.pt")


@lru_cache
def shipped_judge(size):
    return train.load_judge(unet.WEIGHTS / f"judge-{size}.pt")


def test_shipped_weights_are_there_and_small():
    for name, size in ("base", 16), ("upsampler", 64), ("inpaint", 16), ("inpaint-upsampler", 64):
        assert shipped(name).size == size and shipped(name).difficulty == "full", "all the language says"
        assert "08_train.py" in shipped(name).made["command"] and "/home" not in shipped(name).made["command"]
        assert shipped(name).config == train.PRESETS["tiny"][name].network, "the tiny preset is what is shipped"
    total = sum(path.stat().st_size for path in unet.WEIGHTS.rglob("*") if path.is_file())
    assert total <= 25_000_000, f"lessons/weights has grown to {total / 1e6:.1f} MB; 25 are allowed"


@pytest.mark.parametrize("size", [16, 64])
def test_shipped_judges_can_be_trusted(size):
    right, n = shipped_judge(size).ceiling["easy single"]
    assert n >= 1000 and right / n > 0.95, "a judge that errs on real pictures cannot measure drawn ones"
    scenes = train.exam("easy single", 200, seed=77)
    seen = train.scores(shipped_judge(size), diffusion.reduce(train.real_pictures(scenes, 77), size), scenes)["all"]
    assert seen.mean() > right / n - 0.06, f"recorded {right / n:.3f}, on 200 other pictures {seen.mean():.3f}"


def test_shipped_base_draws_what_is_asked():
    right, n = sample.caption_accuracy(shipped("base"), shipped_judge(16), "easy single", 60)
    assert right / n >= 0.7, f"{right} of {n} captions of single easy things came out right: below 70%"


def test_shipped_upsampler_keeps_colours():
    rates = sample.enlarging(shipped("upsampler"), shipped_judge(64), "easy single", 20)["upsampler"]
    assert rates["colour"] < 0.02, f"enlarged pictures are off by {rates['colour']:.3f} when reduced again"


def test_shipped_clip_finds_a_pictures_caption_in_noise():
    saved = unet.read_weights(unet.WEIGHTS / "clip.pt")
    assert all(right / n > 0.8 for t, (right, n) in saved["matching"].items() if t <= 300), "recorded in its training"
    clip, tok = guidance.NoisedCLIP.out_of(saved, "clip.pt"), tokenizer.BPETokenizer(saved["tokenizer"])
    process = diffusion.Diffusion.of(diffusion.DiffusionConfig(**saved["diffusion"]))
    for t, (right, n) in train.matching(clip, tok, process, difficulty="full", n=200, timesteps=(0, 250)).items():
        assert right / n > 0.8, f"{right} of {n} captions found among 100 at t = {t}"


@torch.no_grad()
@pytest.mark.parametrize("plain, tuned, t, share", [("base", "inpaint", 800, 0.6),
                                                    ("upsampler", "inpaint-upsampler", 400, 0.95)])
def test_shipped_inpainting_models_look_at_what_is_known(plain, tuned, t, share):
    """Where the picture is known they guess it better than the model they began as, which sees noise only; the
    upsampler a little better, since the small picture has told it nearly all."""
    model, size = shipped(tuned), shipped(tuned).size
    scenes = train.exam("single", 12, seed=9)
    pictures = train.real_pictures(scenes, 9)
    x0, mask = diffusion.reduce(pictures, size), torch.ones(12, 1, size, size)
    mask[:, :, :, size // 2:] = 0
    process, steps = diffusion.Diffusion.of(model.process), torch.full((12,), t)
    x_t = process.q_sample(x0, steps, torch.randn(x0.shape, generator=torch.Generator().manual_seed(0)))
    cond = model.encode([scene.caption() for scene in scenes])
    if size == 64:
        cond["low_res"] = diffusion.reduce(pictures, 16)
    off = {}
    for name, known in (plain, {}), (tuned, {"inpaint_image": x0, "inpaint_mask": mask}):
        guess = process.p_mean_variance(shipped(name).denoiser(x_t, steps, **cond, **known), x_t, steps).x0
        off[name] = ((guess - x0).abs() * mask).sum() / (3 * mask.sum())
    assert off[tuned] < share * off[plain], f"off by {off[tuned]:.3f}; the model it began as, by {off[plain]:.3f}"


def test_the_first_command_works_and_repeats_itself(tmp_path):
    runs = [small.run("09_sample.py", "a red heart", "--seed", 1, "--out", tmp_path / f"{i}.png") for i in "ab"]
    assert all(done.returncode == 0 for done in runs), runs[0].stderr
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes(), "the same seed, the same file"
