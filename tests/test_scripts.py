"""Every script is a demonstration: run from the command line, it shows what it does and leaves a picture."""
import re
import shutil
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

import small

NINE = sorted(path.name for path in small.ROOT.glob("0[1-9]_*.py"))
LESSONS = sorted(f"lessons/{path.name}" for path in small.ROOT.glob("lessons/1[0-9]_*.py"))
DEMONSTRATIONS = NINE[:7] + LESSONS


@pytest.fixture(scope="module")
def copy(tmp_path_factory):
    """The scripts and the small trained models in a folder of their own: no picture of the reader's is overwritten."""
    folder = tmp_path_factory.mktemp("course")
    shutil.copytree(small.ROOT / "lessons", folder / "lessons", ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    for name in NINE:
        shutil.copy(small.ROOT / name, folder)
    return folder


@pytest.fixture(scope="module")
def demonstrations(copy):
    """All of them, run two at a time: {name: CompletedProcess}."""
    with ThreadPoolExecutor(2) as pool:
        done = pool.map(lambda name: small.run(name, cwd=copy, OMP_NUM_THREADS="1"), DEMONSTRATIONS)
        return dict(zip(DEMONSTRATIONS, done))


def test_there_are_nine():
    assert [name[:2] for name in NINE] == [f"0{i}" for i in range(1, 10)]


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_demonstration_runs_and_leaves_a_picture(name, copy, demonstrations):
    done, stem = demonstrations[name], name.removesuffix(".py").rpartition("/")[2]
    assert done.returncode == 0, f"{name} fails:\n{done.stderr[-2000:]}"
    assert "Warning" not in done.stderr, f"a reader would wonder about\n{done.stderr[-1000:]}"

    headings = [int(number) for number in re.findall(r"^(?:── )?(\d)\. .+$", done.stdout, re.M)]
    assert headings == [*range(1, len(headings) + 1)] and 3 <= len(headings) <= 6, f"sections numbered {headings}"
    assert len(re.findall(r"\d", done.stdout)) > 50, "a demonstration prints real intermediate values"
    following = NINE[NINE.index(name) + 1] if name in NINE else "lessons/"
    assert following in " ".join(done.stdout.splitlines()[-3:]), f"the last lines must lead on to {following}"

    pictures = [path.name for path in (copy / "outputs").glob(f"{stem[:2]}_*.png")]
    assert pictures == [f"{stem}.png"], "one picture, named like its script"
    with Image.open(copy / "outputs" / pictures[0]) as picture:
        width, spread = picture.width, np.asarray(picture.convert("L"), np.float32).std()
    assert width >= 600, f"{width} pixels wide: too small for a slide"
    assert spread > 5, "the picture is nearly empty"


@pytest.mark.parametrize("name", ["08_train.py", "09_sample.py"])
def test_a_command_explains_itself(name, copy):
    done = small.run(name, "--help", cwd=copy)
    assert done.returncode == 0 and done.stdout.startswith("usage:") and name in done.stdout, done.stderr
    assert not (copy / "outputs" / "train-base").exists(), "asking for help must not start anything"
