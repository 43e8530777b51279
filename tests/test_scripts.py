"""Every script is a demonstration: it runs from the command line, shows what it does, and leaves a picture."""
import re
import shutil

import numpy as np
import pytest
from PIL import Image

import small

SCRIPTS = sorted(path.name for path in small.ROOT.glob("0[1-9]_*.py"))
DEMONSTRATIONS = [name for name in SCRIPTS if name < "08"]


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The scripts and the small trained models in a folder of their own: no picture of the reader's is overwritten."""
    folder = tmp_path_factory.mktemp("course")
    for name in SCRIPTS:
        shutil.copy(small.ROOT / name, folder)
    shutil.copytree(small.ROOT / "lessons" / "weights", folder / "lessons" / "weights")
    return folder


def test_there_are_nine():
    assert [name[:2] for name in SCRIPTS] == [f"0{i}" for i in range(1, 10)]


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_demonstration_runs_and_leaves_a_picture(name, copy):
    done = small.run(name, cwd=copy)
    assert done.returncode == 0, f"{name} fails:\n{done.stderr[-2000:]}"
    assert "Warning" not in done.stderr, f"a reader would wonder about\n{done.stderr[-1000:]}"

    headings = re.findall(r"^(?:── )?\d\. .+$", done.stdout, re.M)
    assert 3 <= len(headings) <= 6, f"{len(headings)} titled sections instead of 3 to 6: {headings}"
    assert [int(re.search(r"\d", line)[0]) for line in headings] == list(range(1, len(headings) + 1)), headings
    assert len(re.findall(r"\d", done.stdout)) > 50, "a demonstration prints real intermediate values"

    following = SCRIPTS[SCRIPTS.index(name) + 1]
    assert following in " ".join(done.stdout.splitlines()[-3:]), f"the last lines must lead on to {following}"

    pictures = list((copy / "outputs").glob(f"{name[:2]}_*.png"))
    assert [p.name for p in pictures] == [name.replace(".py", ".png")], "one picture, named like its script"
    with Image.open(pictures[0]) as picture:
        width, spread = picture.width, np.asarray(picture.convert("L"), np.float32).std()
    assert width >= 600, f"{width} pixels wide: too small for a slide"
    assert spread > 5, "the picture is nearly empty"


@pytest.mark.parametrize("name", ["08_train.py", "09_sample.py"])
def test_a_command_explains_itself(name, copy):
    done = small.run(name, "--help", cwd=copy)
    assert done.returncode == 0 and done.stdout.startswith("usage:") and name in done.stdout, done.stderr
    assert not (copy / "outputs" / "train-base").exists(), "asking for help must not start anything"


def test_a_scene_is_built_in_turns(tmp_path):
    """Weights that know nothing draw nothing; but each turn changes one quarter of the picture before and no other."""
    weights = small.save_models(tmp_path / "weights", tmp_path / "scratch")
    done = small.run("lessons/story.py", tmp_path / "tale.png", "--weights", weights)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("python 09_sample.py") == 3 and "--box" in done.stdout, "one command a turn, and told"
    turns = [np.asarray(Image.open(tmp_path / f"tale-{k}.png")) for k in (1, 2, 3)]
    side = len(turns[0]) // 2
    for before, after in zip(turns, turns[1:]):
        changed = [not np.array_equal(before[r:r + side, c:c + side], after[r:r + side, c:c + side])
                   for r in (0, side) for c in (0, side)]
        assert sum(changed) == 1, "what was there before stays to the last bit"
    assert (tmp_path / "tale.png").exists()
