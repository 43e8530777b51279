"""Several processes train as one would: the same losses, the same gradients, the same data, in any number of pieces."""
import json
import shutil
import subprocess
import sys
from importlib import import_module

import pytest
import torch

import many
import small

unet, train = import_module("03_unet"), import_module("08_train")


def launch(processes, script, *args):
    """A script under torchrun, or alone. Its stderr if it fails."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
    command = [sys.executable, *(torchrun if processes > 1 else []), script, *map(str, args)]
    env = small.environment() | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=small.ROOT, env=env, timeout=600, capture_output=True, text=True)


def experiments(processes, *args):
    done = launch(processes, "tests/many.py", *args)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What one, two and three processes found; 3 and 1 also went on from what 2 had saved in pieces."""
    folder = tmp_path_factory.mktemp("many")
    experiments(1, folder / "1")
    experiments(2, folder / "2")
    experiments(3, folder / "3", folder / "2")
    experiments(1, folder / "1 again", folder / "2")
    return folder


def compare(folder, run, name, alone):
    """Losses and norms to 1e-5. Weights too, but for Adam: it divides by the gradient's size, so where that is zero but
    for rounding (what cancels in a softmax, say) a step may go either way; it is at most the rate long."""
    told, expected = (json.loads((folder / path).with_suffix(".json").read_text()) for path in (f"{run}/{name}", f"1/{alone}"))
    for step, ((loss, norm), (loss1, norm1)) in enumerate(zip(told, expected[-len(told):])):
        assert abs(loss - loss1) < 1e-5 * loss1, f"step {step}: loss {loss} where one process has {loss1}"
        assert abs(norm - norm1) < 1e-5 * norm1, f"step {step}: gradient's length {norm} where one process has {norm1}"
    weights, one = (torch.load((folder / path).with_suffix(".weights"), weights_only=True)
                    for path in (f"{run}/{name}", f"1/{alone}"))
    assert weights.keys() == one.keys(), "one ordinary network, whatever its pieces were called"
    off = torch.cat([(weights[key] - one[key]).abs().flatten() for key in one])
    assert off.max() < 2 * many.STEPS * 1e-3 and off.mean() < 1e-6, f"weights are off by {off.max():.1e}, mean {off.mean():.1e}"


@pytest.mark.parametrize("name", many.EXPERIMENTS)
def test_two_processes_train_as_one(folder, name):
    compare(folder, "2", name, name)


@pytest.mark.parametrize("name", ["base", "clip"])
def test_three_processes_train_as_one(folder, name):
    compare(folder, "3", name, name)


@pytest.mark.parametrize("processes", ["3", "1 again"])
@pytest.mark.parametrize("name", [name for name, (_, work) in many.EXPERIMENTS.items() if work.get("shard")])
def test_a_divided_run_goes_on_in_other_numbers_of_processes(folder, processes, name):
    compare(folder, processes, f"{name} from 2", name)


def test_experiments_tell_something(folder):
    """Losses that do not change, or gradients that are zero, would agree without being right."""
    for name in many.EXPERIMENTS:
        told = json.loads((folder / "1" / name).with_suffix(".json").read_text())
        losses, norms = zip(*told)
        assert len(told) == many.STEPS and len(set(losses)) == many.STEPS and min(norms) > 0.1, told


@pytest.mark.parametrize("damage", ["no weights", "no facts", "cut facts"])
def test_a_damaged_folder_of_pieces_is_refused_in_one_line(folder, tmp_path, damage):
    path = tmp_path / "checkpoint-0000002.shards"
    shutil.copytree(folder / "2" / "shard.shards", path)
    if damage == "no weights":
        (path / ".metadata").unlink()
    elif damage == "no facts":
        (path / "run.json").unlink()
    else:
        (path / "run.json").write_text((path / "run.json").read_text()[:20])
    trainer = many.trainer_of("base", tmp_path)
    before = {name: p.clone() for name, p in trainer.model.named_parameters()}
    with pytest.raises(ValueError, match="damaged") as refusal:
        trainer.resume(path)
    assert str(path) in str(refusal.value) and "\n" not in str(refusal.value)
    assert trainer.step == 0 and all(torch.equal(p, before[name]) for name, p in trainer.model.named_parameters())


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="multiple of 5"):
        train.Trainer(small.preset(batch=12), work=train.Work(parts=5))


def test_torchrun_trains_from_the_command_line(tmp_path):
    """Divided among two, with a checkpoint on the way; then a single process goes on with it."""
    options = "--steps", 3, "--batch", 4, "--out", tmp_path / "run", "--save-every", 2, "--keep", 5, "--device", "cpu"
    done = launch(2, "08_train.py", "base", *options, "--shard")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 3/3") == 1, "one process speaks for all"
    made = {path.name for path in (tmp_path / "run").iterdir()}
    assert made == {"weights.pt", "samples.png", "loss.png", "timesteps.png", "log.jsonl", "checkpoint-0000002.shards",
                    "checkpoint-0000003.shards"}
    whole = unet.UNet.load(tmp_path / "run" / "weights.pt")
    (tmp_path / "run" / "weights.pt").unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-0000003.shards")
    done = launch(1, "08_train.py", "base", *options, "--resume")
    assert done.returncode == 0, done.stderr[-3000:]
    again = unet.UNet.load(tmp_path / "run" / "weights.pt")
    off = max((p - q).abs().max().item() for p, q in zip(whole.parameters(), again.parameters()))
    assert off < 2e-3, "the last step, made by one process instead of two"
    assert done.stderr == "", "nothing to say but progress"
    refused = launch(2, "08_train.py", "base", *options)
    assert refused.stderr.count("--resume goes on") == 1, "one process says what all refuse"
