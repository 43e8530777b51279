"""Pictures of one's own, from the folder to the drawing; and OpenAI's weights as a place to begin."""
from dataclasses import asdict
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import small
from small import main
from test_09_pipeline import SHORT, SMALL, pixels, refused, released, short_lists, shrunk  # noqa: F401 (fixtures)

tokenizer, unet, train, sample = (import_module(m) for m in ("01_tokenizer", "03_unet", "08_train", "09_sample"))
(lesson,) = (import_module(f"lessons.{name}") for name in ("own_pictures",))
CAPTIONS = "a red field", "green grass", "a blue sea"
PARTS = "base", "upsampler", "inpaint", "inpaint-upsampler", "clip"


# --- A folder becomes weights ---

@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """Three photographs, one colour each, and what they show."""
    folder = tmp_path_factory.mktemp("pictures")
    for i, (caption, color) in enumerate(zip(CAPTIONS, ("red", "green", "blue"))):
        Image.new("RGB", (80, 64 + i), color).save(folder / f"{i}.png")
        (folder / f"{i}.txt").write_text(caption)
    return folder


@pytest.fixture
def quiet(monkeypatch):
    """No samples: they take longer than such a run."""
    monkeypatch.setattr(train, "sample_grid", lambda *args: None)


@pytest.fixture
def narrow(monkeypatch):
    """The tiny preset made smaller still."""
    kinds = {kind: small.clip_preset() if kind == "clip" else small.preset(kind) for kind in PARTS}
    monkeypatch.setitem(train.PRESETS, "tiny", kinds)


def trained(capfd, out, pictures, kind="base", *options):
    """One step of 08's command line on the pictures: what it said, and what it wrote."""
    train.main([kind, "--data", str(pictures), "--steps", "1", "--batch", "4", "--out", str(out), *map(str, options)])
    return capfd.readouterr().out, unet.read_weights(out / "weights.pt")


@pytest.mark.parametrize("kind", PARTS)
def test_every_model_learns_from_ones_own_pictures_and_says_what_next(kind, pictures, narrow, quiet, tmp_path, capfd):
    options = [] if "inpaint" not in kind else ["--start", tmp_path / "first.pt"]
    if options:
        first = unet.UNet(small.preset(kind.replace("inpaint-", "").replace("inpaint", "base")).network)
        unet.save_weights(options[1], first, tokenizer=[], made={"words": ["sky"]})
    told, saved = trained(capfd, tmp_path / "run", pictures, kind, *options)
    assert saved["difficulty"] == "", "no little world, whose grammar 09 would ask for"
    known = {"a", "red", "field", "green", "grass", "blue", "sea"} | ({"sky"} if options else set())
    assert set(saved["made"]["words"]) == known, "what was learned to draw, and what the first weights knew before"
    assert f"{kind}.pt" in told and '09_sample.py "a red field" --weights FOLDER' in told, told
    assert "lessons/weights" not in told, "the course's own weights are not to be written over"


def test_weights_of_other_knowledge_do_not_claim_to_know_few_words(pictures, narrow, quiet, tmp_path, capfd):
    """What began as a model of the world knows more words than twenty captions hold, and nobody can list them."""
    first = unet.UNet(small.preset().network)
    unet.save_weights(tmp_path / "first.pt", first, tokenizer=[], made={"from": "elsewhere"})
    _, saved = trained(capfd, tmp_path / "run", pictures, "base", "--start", tmp_path / "first.pt")
    assert "words" not in saved["made"]


def test_samples_stand_beside_the_pictures_they_were_learned_from(pictures, narrow, monkeypatch, tmp_path, capfd):
    """Drawn alone they would not show what matters with few pictures: whether they were learned by heart."""
    shown = {}

    def keep(images, captions, path, **_):
        shown.update(zip(captions[::2], images[::2]))
        assert set(captions[1::2]) == {"drawn"}
    monkeypatch.setattr(train, "save_grid", keep)
    trained(capfd, tmp_path, pictures)
    assert set(shown) == set(CAPTIONS)
    assert (shown["a red field"] - torch.tensor([1.0, -1, -1]).view(3, 1, 1)).abs().max() == 0, "the picture itself"


@pytest.mark.parametrize("preset, steps, every", [("tiny", 500, 200), ("filtered", 500, 100), ("filtered", 9000, 900),
                                                  ("filtered", 2_500_000, 2000)])
def test_a_short_run_of_a_large_model_is_saved_before_its_end(preset, steps, every):
    args = train.arguments(["base", "--peak", "1", "--preset", preset, "--steps", str(steps)])
    assert train.work_of(args).save_every == every


def test_a_file_that_cannot_be_used_is_named(pictures, narrow, tmp_path, capfd):
    """Of twenty pictures one wants to know which."""
    Image.new("RGB", (9, 99)).save(tmp_path / "thin.png")
    (tmp_path / "thin.txt").write_text("a line")
    (line,) = small.refused(["--data", tmp_path, "--steps", 1, "--batch", 4, "--out", tmp_path / "run"], capfd)
    assert "fewer than 16 pixels a side (thin.png)" in line


# --- The lesson ---

def test_the_lessons_folder_is_one_that_08_reads(tmp_path, capfd):
    assert lesson.main([str(tmp_path / "new")]) == 0 and "20 pictures" in capfd.readouterr().out
    data = train.Pictures(tmp_path / "new", train.DataConfig(64, 20))
    pictures, captions = data.next()
    assert set(captions) == set(lesson.read(tmp_path / "new")) >= set(lesson.LEFT_OUT) and not data.bad
    assert pictures.flatten(1).float().std(1).min() > 1, "each shows something"
    assert not set(captions) & set(lesson.NEW), "what is asked for as new must be new"
    assert lesson.main([str(tmp_path / "new")]) == 2 and "there already" in small.one_line(capfd.readouterr().err)


def test_the_lessons_figures_are_drawn(pictures, narrow, monkeypatch, tmp_path, capfd):
    monkeypatch.setattr(lesson, "NEW", ("a cat",))
    monkeypatch.setattr(lesson, "LEFT_OUT", CAPTIONS[:1])
    monkeypatch.setattr(sample.Sampling, "of", lambda *_: sample.Sampling("2"))
    drawn, losses = tmp_path / "drawn.png", tmp_path / "losses.png"
    status = lesson.main([str(pictures), "--weights", str(own(tmp_path)), "--drawn", str(drawn), "--losses", str(losses),
                          "--steps", "1"])
    said = capfd.readouterr()
    assert status == 0 and "step 1: loss" in said.out and "of 2 pictures it sees" in said.out, said.err
    for path in drawn, losses:
        assert len(np.unique(pixels(path).reshape(-1, 3), axis=0)) > 20, "a figure, and not an empty page"


# --- Weights of one's own, drawn with ---

def own(folder, *, kinds=("base", "upsampler"), sizes=(16, 64)):
    """A folder of weights as 08 leaves them after a run on one's own pictures, of any picture size."""
    words = tokenizer.BPETokenizer.train(CAPTIONS, 512)
    for kind in kinds:
        preset = small.preset(kind)
        unet.save_weights(folder / f"{kind}.pt", small.randomize(unet.UNet(preset.network)), difficulty="",
                          size=sizes["upsampler" in kind], diffusion=asdict(preset.diffusion), **train.kept(words),
                          made={"words": ["a", "field", "red"]})
    return folder


def test_any_prompt_is_drawn_and_words_it_never_read_are_named(tmp_path, capfd):
    """The little world's grammar says nothing of them; but that they mean nothing to the model must be said."""
    folder = own(tmp_path)
    status, told, err = main(capfd, "A red dragon's field", "--weights", folder, "--out", tmp_path / "a.png", *SHORT)
    assert status == 0 and "'dragon', 's': such words mean nothing" in told, (told, err)
    status, told, err = main(capfd, "red FIELD", "--weights", folder, "--out", tmp_path / "b.png", *SHORT)
    assert status == 0 and "mean nothing" not in told, (told, err)


def test_without_an_upsampler_one_sees_the_small_picture(tmp_path, capfd):
    folder = own(tmp_path, kinds=("base",))
    status, told, err = main(capfd, "a red field", "--weights", folder, "--seed", 1, *SHORT, "--out", tmp_path / "a.png")
    assert status == 0 and "no upsampler" in told and "16×16" in told, (told, err)
    base = sample.Model.load(folder / "base.pt")
    drawn = sample.generate("a red field", base=base, upsampler=None, seed=1, steps="2")
    shown = pixels(tmp_path / "a.png")
    zoom = len(shown) // 16
    assert drawn.shape == (1, 3, 16, 16) and zoom >= 8, "large enough to be looked at"
    squares = drawn[0].permute(1, 2, 0).numpy().repeat(zoom, 0).repeat(zoom, 1)
    assert np.array_equal(shown, squares), "and nothing is invented"


def test_models_that_do_not_belong_together_are_refused(tmp_path, capfd):
    line = refused(capfd, "a red field", "--weights", own(tmp_path, sizes=(16, 256)))
    assert "draws 16 pixels" in line and "enlarges 64" in line


def test_nobody_can_judge_ones_own_pictures(tmp_path, capfd):
    line = refused(capfd, "--measure", "--weights", own(tmp_path))
    assert "not trained on the little world" in line and str(tmp_path) in line


@pytest.mark.parametrize("preset", ["tiny", "filtered", "paper"])
def test_large_pictures_of_a_folder_are_drawn_as_large_ones_are(preset, tmp_path, capfd):
    """64 and 256 pixels, whatever --preset says: the files know their sizes."""
    folder = own(tmp_path, sizes=(64, 256))
    status, _, err = main(capfd, "a red field", "--preset", preset, "--weights", folder, "--out", tmp_path / "a.png",
                          "--steps", 1, "--upsampler-steps", 1)
    assert status == 0 and pixels(tmp_path / "a.png").shape == (256, 256, 3), err
    base, upsampler = (sample.Model.load(folder / f"{kind}.pt").sampling for kind in ("base", "upsampler"))
    assert (base.steps, base.sampler, base.batch) == ("150", "ddpm", 8), "the reports' habits, not the tiny ones'"
    assert (upsampler.steps, upsampler.batch) == ("fast27", 2)


@pytest.mark.parametrize("sizes, dtype", [((16, 64), torch.float32), ((64, 256), torch.bfloat16)])
def test_large_models_of_a_folder_take_16_bits_where_those_are_fast(sizes, dtype, tmp_path, monkeypatch):
    taken = []
    monkeypatch.setattr(train, "has_fast_bf16", lambda device: True)
    monkeypatch.setattr(sample, "in_precision", lambda network, dtype: taken.append(dtype) or network)
    args = sample.arguments(["x", "--weights", str(own(tmp_path, sizes=sizes))])
    sample.load_own(args, "base")
    assert taken == [dtype]


# --- OpenAI's weights as ours, and back ---

@pytest.fixture
def converted(released, short_lists, tmp_path, capfd):  # noqa: F811
    """A folder of weight files of ours, made of small files in place of OpenAI's."""
    status, told, err = main(capfd, "--convert", tmp_path / "ours", "--cache", released)
    assert status == 0 and "16 bits" in told and "08_train.py base --preset filtered --start" in told, err
    return tmp_path / "ours"


def in_16_bits(state_dict):
    return {key: value.half().float() for key, value in state_dict.items()}


def of_openai(released, part):  # noqa: F811
    return torch.load(released / sample.RELEASED[part].file, weights_only=True)


@pytest.mark.parametrize("part", SMALL)
def test_a_run_that_starts_from_a_converted_file_answers_as_the_released_model(part, converted, released):  # noqa: F811
    """To the last bit as the released weights rounded to 16 bits; so a few in a thousand from themselves."""
    trainer = train.Trainer(train.PRESETS["filtered"][part], difficulty="", work=train.Work(bf16=False))
    trainer.start_from(converted / f"{part}.pt")
    rounded = sample.released_unet(in_16_bits(of_openai(released, part)))
    for mine in trainer.model, trainer.ema:
        assert small.same(mine.state_dict(), rounded.state_dict())
    x, t = torch.randn(2, 3, 16, 16), torch.tensor([10, 900])
    cond = {"tokens": torch.ones(2, 16, dtype=torch.long), "mask": torch.ones(2, 16, dtype=torch.bool)}
    cond |= {"low_res": torch.randn(2, 3, 4, 4)} if "ups" in part else {}
    cond |= {"inpaint_image": x.flip(0), "inpaint_mask": (x[:, :1] > 0).float()} if "inp" in part else {}
    with torch.no_grad():
        answer = trainer.denoiser_of(trainer.model.eval())(x, t, **cond)
        exact, near = (sample.load_openai(weights)(x, t, **cond) for weights in (
            in_16_bits(of_openai(released, part)), of_openai(released, part)))
    assert torch.equal(answer, exact)
    assert (exact - near).abs().max() < 0.01 * near.abs().max(), "16 bits keep three digits of a weight"


def test_converted_models_read_captions_as_the_released_ones_do(converted, released):  # noqa: F811
    gpt2 = tokenizer.BPETokenizer.from_gpt2(released / "vocab.bpe")
    clips = tokenizer.CLIPTokenizer.from_file(released / "bpe_simple_vocab_16e6.txt.gz")
    assert sample.Model.load(converted / "base.pt").tokenizer.encode("a red hen") == gpt2.encode("a red hen")
    clip = sample.Clip.load(converted / "clip.pt")
    assert clip.tokenizer.pad(clip.tokenizer.encode("a red hen"), 9) == clips.pad(clips.encode("a red hen"), 9)
    assert not isinstance(clip.tokenizer, tokenizer.BPETokenizer), "start and end tokens, and words that end in </w>"


def test_a_folder_of_converted_files_draws_as_the_cache_does(converted, released, tmp_path, capfd):  # noqa: F811
    """Up to the 16 bits: the same walk from the same noise, with CLIP's guidance too."""
    for name, where in ("ours", ["--weights", converted]), ("theirs", ["--preset", "filtered", "--cache", released]):
        status, _, err = main(capfd, "a red hen", *where, "--seed", 3, "--dtype", "float32", "--rerank",
                              "--candidates", 2, "--out", tmp_path / f"{name}.png", *SHORT)
        assert status == 0, err
    ours, theirs = (pixels(tmp_path / f"{name}.png").astype(int) for name in ("ours", "theirs"))
    assert np.abs(ours - theirs).mean() < 1, "less than one of 255 grey values"


def tuned(capfd, start, pictures, out, kind, *options):
    train.main([kind, "--preset", "filtered", "--start", str(start), "--data", str(pictures), "--steps", "2",
                "--batch", "4", "--parts", "2", "--lr", "0.01", "--out", str(out), *options])
    return unet.read_weights(out / "weights.pt")


def test_fine_tuning_leaves_what_is_frozen_and_keeps_the_tokenizer(converted, pictures, quiet, tmp_path, capfd):
    first = unet.read_weights(converted / "base.pt")
    after = tuned(capfd, converted / "base.pt", pictures, tmp_path / "run", "base", "--freeze", "text")
    same = {name: torch.equal(value, after["weights"][name]) for name, value in first["weights"].items()}
    assert all(same[name] for name in same if name.startswith("text."))
    assert not (same["enter.weight"] or same["leave.2.weight"] or same["time.0.weight"]), "all else learns"
    assert all(after[fact] == first[fact] for fact in ("tokenizer", "size", "diffusion"))
    assert "--start" in after["made"]["command"] and "words" not in after["made"], "it knows more than these captions"


def test_channels_grown_on_a_released_model_change_nothing_at_first(converted, pictures, quiet, tmp_path, capfd):
    base = sample.Model.load(converted / "base.pt")
    trainer = train.Trainer(train.PRESETS["filtered"]["inpaint"], difficulty="", work=train.Work(bf16=False))
    trainer.start_from(converted / "base.pt")
    x, t, cond = torch.randn(2, 3, 16, 16), torch.tensor([10, 900]), base.encode(["a red hen", ""])
    known = {"inpaint_image": x.flip(0), "inpaint_mask": (x[:, :1] > 0).float()}
    with torch.no_grad():
        answer = trainer.denoiser_of(trainer.model.eval())(x, t, **known, **cond)
        assert torch.equal(answer, base.denoiser(x, t, **cond)), "what is known is multiplied by nothing yet"
    after = tuned(capfd, converted / "base.pt", pictures, tmp_path / "run", "inpaint")
    assert after["weights"]["enter.weight"][:, 3:].any(), "and is looked at after some steps"


def test_what_is_there_already_stays(converted, released, capfd):  # noqa: F811
    (converted / "base.pt").write_bytes(b"mine")
    (converted / "clip.pt").unlink()
    status, told, _ = main(capfd, "--convert", converted, "--cache", released)
    assert status == 0 and "base.pt: was there" in told and (converted / "clip.pt").exists()
    assert (converted / "base.pt").read_bytes() == b"mine"


LACKING = {"vocab.bpe": "--fetch --cache", "clip_image_enc.pt": "--fetch clip --cache"}


@pytest.mark.parametrize("lacking, told", LACKING.items())
def test_what_conversion_lacks_is_told_with_its_command(lacking, told, released, tmp_path, capfd):  # noqa: F811
    there = {"vocab.bpe": ("base.pt", "upsample.pt"), "clip_image_enc.pt": ("clip_text_enc.pt",)}[lacking]
    for name in there:
        (tmp_path / name).write_bytes((released / name).read_bytes())
    line = refused(capfd, "--convert", tmp_path / "ours", "--cache", tmp_path)
    assert f"{lacking} (" in line and told in line and not (tmp_path / "ours").exists(), line


def test_an_empty_cache_has_nothing_to_convert(tmp_path, capfd):
    line = refused(capfd, "--convert", tmp_path / "ours", "--cache", tmp_path)
    assert "base.pt" in line and "--fetch" in line and not list(tmp_path.iterdir())


@pytest.mark.parametrize("part", [*SMALL, "clip"])
def test_export_writes_the_released_files_again(part, converted, released, tmp_path, capfd):  # noqa: F811
    status, told, err = main(capfd, "--export", tmp_path / "theirs", "--weights", converted)
    assert status == 0, err
    for name in ("clip-image", "clip-text") if part == "clip" else (part,):
        file = sample.RELEASED[name].file
        again = torch.load(tmp_path / "theirs" / file, weights_only=True)
        assert small.same(again, in_16_bits(of_openai(released, name))), "every key and number, in float32"
        assert file in told


def test_what_the_released_code_could_not_use_is_not_exported(tmp_path, capfd):
    """The tiny models answer v, which no file of OpenAI's could say."""
    line = refused(capfd, "--export", tmp_path / "theirs", "--weights", own(tmp_path))
    assert "base.pt" in line and "'v'" in line and not (tmp_path / "theirs").exists()
    assert "give both" in refused(capfd, "--preset", "filtered", "--export", tmp_path / "theirs")
    assert "to export" in refused(capfd, "--export", tmp_path / "theirs", "--weights", tmp_path / "nowhere")


def test_export_writes_over_nothing(converted, tmp_path, capfd):
    (tmp_path / "base.pt").write_bytes(b"mine")
    line = refused(capfd, "--export", tmp_path, "--weights", converted)
    assert "exists already" in line and (tmp_path / "base.pt").read_bytes() == b"mine"
