"""Several processes train as one would: the same examples, losses and gradients, and one checkpoint for all."""
import json
import os
import subprocess
import sys
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

import many
import small

unet, train = import_module("03_unet"), import_module("08_train")
pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="this torch has no torch.distributed")


def launch(processes, *args):
    """tests/many.py under torchrun: CompletedProcess."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    return subprocess.run([*command, "tests/many.py", *map(str, args)], cwd=small.ROOT, timeout=300, text=True,
                          env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one, two and three processes found. What two saved in pieces goes on as one, two and three."""
    folder = tmp_path_factory.mktemp("many")
    for kind in ("base", "inpaint", "clip"):
        many.start(kind, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train, "round", round, raising=False)
        patch.setattr(train.diffusion, "respace", None)
        many.exactly()
        for name in ("base", "frozen", "clip"):
            many.experiment(name, folder / "1", folder)
        for processes, names in (2, many.EXPERIMENTS), (3, ["base", "clip in pieces"]):
            done = launch(processes, folder / str(processes), folder, folder / "2" / "run", *names)
            assert done.returncode == 0, done.stderr[-3000:]
        many.go_on({}, folder / "2" / "run", folder / "1" / "goes on whole", folder)
    return folder


def told(path):
    return json.loads((path / "told.json").read_text())


def compare(path, alone):
    """Losses and gradients to 1e-5. The average too, but for Adam: it divides by a gradient's size, so where that is
    zero but for rounding a step may go either way; it is at most the rate long."""
    found, expected = told(path), told(alone)
    for (loss, norm), (one_loss, one_norm) in zip(found, expected[-len(found):], strict=True):
        assert abs(loss - one_loss) < 1e-5 * one_loss, f"loss {loss} where one process has {one_loss}"
        assert abs(norm - one_norm) < 1e-5 * one_norm, f"a gradient {norm} long where one process has {one_norm}"
    average, one = (torch.load(folder / "average.pt", weights_only=True) for folder in (path, alone))
    assert average.keys() == one.keys(), "one ordinary network, whatever its pieces were called"
    off = torch.cat([(average[name] - one[name]).abs().flatten() for name in one])
    assert off.max() < 2e-3 and off.mean() < 1e-6, f"averages differ by {off.max():.1e}, on average {off.mean():.1e}"


@pytest.mark.parametrize("name", many.EXPERIMENTS)
def test_two_processes_train_as_one(folder, name):
    kind = many.EXPERIMENTS[name][0]
    compare(folder / "2" / name, folder / "1" / ("frozen" if kind == "inpaint" else kind))


@pytest.mark.parametrize("name", ["base", "clip in pieces"])
def test_three_processes_train_as_one(folder, name):
    compare(folder / "3" / name, folder / "1" / many.EXPERIMENTS[name][0])


@pytest.mark.parametrize("processes, way", [
    (1, "whole"), (2, "whole"), (2, "in pieces"), (3, "whole"), (3, "in pieces")])
def test_a_run_that_two_saved_in_pieces_goes_on_as_any_other(folder, processes, way):
    compare(folder / str(processes) / f"goes on {way}", folder / "1" / "base")


def test_weights_in_pieces_draw_and_are_written_whole(folder):
    run, alone = folder / "2" / "run", folder / "1" / "run"
    assert {path.name for path in run.iterdir()} >= {"base.pt", "samples.png", "checkpoint-0000002.pt"}
    drawn, expected = (np.asarray(Image.open(path / "samples.png"), int) for path in (run, alone))
    assert np.abs(drawn - expected).max() <= 2, "two processes draw together what one draws"
    whole, one = (unet.read_weights(path / "base.pt")["weights"] for path in (run, alone))
    assert all((whole[name] - one[name]).abs().max() < 3e-3 for name in one), "and write one ordinary file"


def test_the_experiments_tell_something(folder):
    """Losses that do not change, or gradients that are zero, would agree without being right."""
    for name in ("base", "frozen", "clip"):
        losses, norms = zip(*told(folder / "1" / name))
        assert len(set(losses)) == many.STEPS and min(norms) > 0.1, name


def test_the_error_of_any_process_is_seen(tmp_path):
    done = launch(2, "fail", tmp_path / "run")
    assert done.returncode != 0 and "process 1: the second process is out of luck" in done.stderr, done.stderr[-3000:]
