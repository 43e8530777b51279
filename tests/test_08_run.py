"""Runs that can be trusted: killed, stopped, out of disk or ill, and continued as if nothing had happened."""
import errno
import io
import json
import math
import os
import resource
import signal
import subprocess
import sys
import traceback
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import small
from small import one_line, refused, same

tokenizer, unet, inpaint, train = (import_module(m) for m in ("01_tokenizer", "03_unet", "06_inpaint", "08_train"))
TOK = tokenizer.world_tokenizer()
UNETS = ["base", "upsampler", "inpaint", "inpaint-upsampler"]


def read(path):
    return torch.load(path, map_location="cpu", weights_only=True)


@pytest.fixture
def quiet(monkeypatch):
    """No pictures: they take longer than such a run."""
    monkeypatch.setattr(train.Trainer, "show", lambda self, out: {})
    monkeypatch.setattr(train, "save_curve", lambda log, path: None)


# --- Runs: repeated, stopped, continued ---

@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    train.train(small.preset(), out, seed=3)
    return out


def last(out):
    """A run's last checkpoint less the seconds it took."""
    return {name: value for name, value in read(train.checkpoints(out)[-1]).items() if name != "seconds"}


def stop_at(monkeypatch, step):
    """Ctrl-C while that step is being computed."""
    real = train.Trainer.advance

    def advance(self):
        if self.step + 1 == step:
            os.kill(os.getpid(), signal.SIGINT)
        return real(self)
    monkeypatch.setattr(train.Trainer, "advance", advance)


def test_training_twice_gives_the_same_bits(undisturbed, tmp_path, quiet):
    train.train(small.preset(), tmp_path, seed=3)
    assert same(read(tmp_path / "weights.pt")["weights"], read(undisturbed / "weights.pt")["weights"])
    assert (tmp_path / "log.jsonl").read_text() == (undisturbed / "log.jsonl").read_text()


@pytest.mark.parametrize("step", [1, 3])
def test_a_stopped_run_goes_on_as_if_nothing_had_happened(undisturbed, tmp_path, quiet, capfd, step):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, step)
        with pytest.raises(SystemExit):
            train.train(small.preset(), tmp_path, seed=3)
    assert f"after {step} step" in (said := one_line(capfd.readouterr().err)) and "--resume" in said, "how to go on"
    assert last(tmp_path)["step"] == step, "Ctrl-C must save what has been learned"
    torch.manual_seed(99)                                                    # another process has other random numbers
    train.train(small.preset(), tmp_path, seed=3, resume=True)
    assert same(last(tmp_path), last(undisturbed)), "weights, average, optimiser: the undisturbed run's, bit for bit"
    assert (tmp_path / "log.jsonl").read_text() == (undisturbed / "log.jsonl").read_text()


@pytest.mark.parametrize("change", ["steps", "batch", "difficulty", "seed", "kind"])
def test_a_run_is_not_continued_with_other_options(undisturbed, change):
    training = {change: 6} if change in ("steps", "batch") else {}
    preset = small.preset("upsampler" if change == "kind" else "base", **training)
    trainer = train.Trainer(preset, difficulty="full" if change == "difficulty" else "single",
                            seed=4 if change == "seed" else 3)
    with pytest.raises(ValueError, match="another") as refusal:
        trainer.resume(train.checkpoints(undisturbed)[-1])
    told = {"steps": "another steps (4, not 6)", "batch": "another batch (8, not 6)", "seed": "another seed (3, not 4)",
            "difficulty": "another difficulty (single, not full)", "kind": "another"}[change]
    assert told in one_line(refusal.value), "what it is that differs: a forgotten option is easily added"


@pytest.mark.parametrize("damage", ["missing", "cut", "html", "foreign"])
def test_what_is_no_checkpoint_is_refused_in_one_line(undisturbed, tmp_path, damage):
    path = tmp_path / "checkpoint.pt"
    if damage == "cut":
        path.write_bytes(train.checkpoints(undisturbed)[-1].read_bytes()[:5000])
    elif damage == "html":
        path.write_text("<html>not found</html>")
    elif damage == "foreign":
        torch.save({"epoch": 3}, path)
    with pytest.raises((FileNotFoundError, ValueError)) as refusal:
        train.Trainer(small.preset(), seed=3).resume(path)
    assert str(path) in one_line(refusal.value)


def test_a_failed_save_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    trainer, path = train.Trainer(small.preset()), tmp_path / "checkpoint.pt"
    trainer.save(path)
    before = path.read_bytes()

    def full_disk(value, where):
        where.write_bytes(b"half")
        raise OSError(28, "No space left on device")
    monkeypatch.setattr(torch, "save", full_disk)
    trainer.step = 1
    with pytest.raises(OSError):
        trainer.save(path)
    assert path.read_bytes() == before, "the last good checkpoint is all that is left of the run"
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"], "no half-written file may stay behind"


def test_a_run_leaves_what_sampling_needs(undisturbed):
    saved = unet.read_weights(undisturbed / "weights.pt")
    assert saved["size"] == 16 and saved["difficulty"] == "single" and saved["diffusion"]["predicts"] == "v"
    assert tokenizer.BPETokenizer(saved["tokenizer"]).encode("a red heart") == TOK.encode("a red heart")
    assert saved["made"]["steps"] == 4 and saved["made"]["seed"] == 3
    average = last(undisturbed)["ema"]
    assert all(torch.equal(average[key].half().float(), value) for key, value in saved["weights"].items()), \
        "the averaged weights are the ones to keep, not the last"


def test_training_can_begin_with_weights_of_a_file(undisturbed, tmp_path, quiet):
    """The assignments go on from the shipped models; the average must start there too."""
    trainer, start = train.Trainer(small.preset(), seed=8), undisturbed / "weights.pt"
    trainer.start_from(start)
    weights = unet.read_weights(start)["weights"]
    assert same(dict(trainer.model.state_dict()), weights) and same(dict(trainer.ema.state_dict()), weights)
    train.train(small.preset(steps=1, lr=0.0, text_lr=0.0), tmp_path, start=start)
    assert same(unet.read_weights(tmp_path / "weights.pt")["weights"], weights), "at rate 0 they stay what they were"


def test_training_can_begin_with_a_checkpoint(undisturbed, tmp_path):
    """Its average, in 32 bits; and what else a weight file knows."""
    start = train.checkpoints(undisturbed)[-1]
    trainer = train.Trainer(small.preset(), seed=8)
    trainer.start_from(start)
    average = read(start)["ema"]
    assert same(dict(trainer.model.state_dict()), average) and same(dict(trainer.ema.state_dict()), average)
    known, whole = train.read_start(start), train.read_start(undisturbed / "weights.pt")
    assert known["difficulty"] == whole["difficulty"] == "single"
    assert [tuple(pair) for pair in known["tokenizer"]] == [tuple(pair) for pair in whole["tokenizer"]]
    broken = tmp_path / start.name
    broken.write_bytes(start.read_bytes()[:3000])
    with pytest.raises(ValueError, match="damaged") as refusal:
        trainer.start_from(broken)
    small.one_line(refusal.value)


def test_weights_of_another_size_are_no_start(undisturbed):
    with pytest.raises(ValueError, match="another size") as refusal:
        train.Trainer(small.preset("upsampler")).start_from(undisturbed / "weights.pt")
    one_line(refusal.value)


def test_stopped_fine_tuning_goes_on_as_if_nothing_had_happened(tmp_path, quiet):
    plain = small.save_models(tmp_path / "plain", tmp_path / "scratch", kinds=["base"])
    options = {"seed": 3, "start": plain / "base.pt", "difficulty": "full"}
    train.train(small.preset("inpaint", steps=3), tmp_path / "whole", **options)
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, 2)
        with pytest.raises(SystemExit):
            train.train(small.preset("inpaint", steps=3), tmp_path / "cut", **options)
    train.train(small.preset("inpaint", steps=3), tmp_path / "cut", resume=True, **options)
    one, other = (last(tmp_path / name) for name in ("whole", "cut"))
    assert same(one, other), "weights, average, optimiser and masks must be the undisturbed run's, bit for bit"


# --- Killed at any moment ---

# Real processes and real kills. To start Python and torch anew for each would take longer than the run, so one process
# imports them and forks a child for every run, before it has computed anything itself.
RUN = replace(small.preset(steps=5, batch=2), network=replace(
    small.preset().network, multipliers=(1,), attention_levels=(0,), dropout=0.2))
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


def nursery():
    """A run in a process of its own for every line of the input, [folder, mishap, arguments…]; answers its status."""
    for line in sys.stdin:
        child = os.fork()
        if not child:
            os._exit(one_run(*json.loads(line)))
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)


def one_run(out, mishap, *argv):
    """08's command line with a tiny preset, and something that goes wrong. What it says goes to a file beside `out`."""
    said = os.open(f"{out}.said", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(said, 1), os.dup2(said, 2)
    signal.signal(signal.SIGINT, signal.default_int_handler)   # who was started in the background inherits deafness to it
    train.PRESETS["tiny"]["base"], train.Trainer.show, train.save_curve = RUN, lambda self, out: {}, lambda *a: None
    try:
        MISHAPS[mishap]()
        train.main(["base", "--seed", "3", "--save-every", "2", "--dtype", "float32", "--out", out, *argv])
    except SystemExit as end:
        return end.code or 0
    except BaseException:
        traceback.print_exc()
        return 70
    finally:
        sys.stdout.flush(), sys.stderr.flush()
    return 0


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def interfere(owner, name, before=None, after=None, when=lambda *args: True):
    """Put something before or after a function's own work, on such calls."""
    real = getattr(owner, name)

    def interfered(*args, **kwargs):
        wanted = when(*args)
        if wanted and before:
            before(*args)
        answer = real(*args, **kwargs)
        if wanted and after:
            after(*args)
        return answer
    setattr(owner, name, interfered)


def at_step(step, what):
    """Something that happens while the loss of that step is computed."""
    return lambda: interfere(train.Trainer, "losses", lambda *args: what(), when=lambda self, _: self.step + 1 == step)


def half_written(name):
    def save(value, path):
        content = io.BytesIO()
        REAL_SAVE(value, content)
        path.write_bytes(content.getvalue()[:content.tell() // 2])
        if name in path.name:
            die()
        path.write_bytes(content.getvalue())
    return lambda: setattr(torch, "save", save)


def renamed(name, **what):
    return lambda: interfere(os, "replace", when=lambda old, new: name in new.name, **what)


def send(*signals):
    return lambda: [os.kill(os.getpid(), number) for number in signals]


def full_from_step_3():
    """No file may grow beyond 300 kB: enough for the log, not for a checkpoint."""
    at_step(3, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, resource.RLIM_INFINITY)))()


REAL_SAVE = torch.save
MISHAPS = {
    "none": lambda: None,
    "in the first step": at_step(1, die),
    "in a step": at_step(4, die),
    "between the weights and their average": lambda: interfere(
        train.Trainer, "_average", die, when=lambda self: self.step == 4),
    "with half a checkpoint": half_written("checkpoint-0000004"),
    "with half of the first checkpoint": half_written("checkpoint-0000002"),
    "before the checkpoint had its name": renamed("checkpoint-0000004", before=die),
    "before the old checkpoints were removed": renamed("checkpoint-0000005", after=die),
    "with half of the weights": half_written("weights.pt"),
    "with half a line of the log": lambda: interfere(
        train.Journal, "write", lambda journal, line: (journal.file.write(b'{"step": 3, "lo'), die()),
        when=lambda journal, line: line["step"] == 3),
    "before the log had its name": renamed("log.jsonl", before=die),
    "SIGTERM": at_step(3, send(signal.SIGTERM)), "Ctrl-C": at_step(3, send(signal.SIGINT)),
    "SIGTERM twice and Ctrl-C": at_step(3, send(signal.SIGTERM, signal.SIGTERM, signal.SIGINT)),
    "Ctrl-C twice": at_step(3, send(signal.SIGINT, signal.SIGINT)),
    "Ctrl-C before the run": lambda: interfere(train, "go_on", lambda *args: send(signal.SIGINT)()),
    "full disk": full_from_step_3,
}


@pytest.fixture(scope="module")
def runs():
    """run(folder, mishap, arguments…) -> (exit status, the lines it said)"""
    env = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (small.ROOT, small.ROOT / "tests"))),
                        "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    process = subprocess.Popen([sys.executable, "-c", "import test_08_run; test_08_run.nursery()"], env=env, text=True,
                               stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def run(out, mishap="none", *argv):
        process.stdin.write(json.dumps([str(out), mishap, *argv]) + "\n")
        process.stdin.flush()
        status = int(process.stdout.readline())
        return status, [line for line in Path(f"{out}.said").read_text().splitlines() if line.strip()]
    yield run
    process.stdin.close()
    process.wait(20)


@pytest.fixture(scope="module")
def unkilled(runs, tmp_path_factory):
    out = tmp_path_factory.mktemp("unkilled") / "run"
    assert runs(out)[0] == 0
    return out


def same_results(out, expected):
    """The same bits, the same log, and nothing left behind."""
    assert same(read(out / "weights.pt")["weights"], read(expected / "weights.pt")["weights"]), \
        "the weights must be the undisturbed run's, bit for bit"
    assert same(last(out), last(expected)), "and so must average, optimiser and losses"
    assert (out / "log.jsonl").read_text() == (expected / "log.jsonl").read_text(), "a step is logged once"
    assert {p.name for p in out.iterdir()} == {p.name for p in expected.iterdir()}, "no half-written file stays"


def goes_on(runs, out, expected):
    """--resume ends the run as if nothing had happened."""
    assert runs(out, "none", "--resume")[0] == 0
    same_results(out, expected)


@needs_fork
def test_dropout_is_part_of_what_must_be_repeated(unkilled):
    """Otherwise the tests below would pass for a run that forgets its random numbers."""
    with_dropout = unet.UNet(RUN.network)
    assert any(isinstance(m, torch.nn.Dropout) and m.p == 0.2 for m in with_dropout.modules())
    assert [line["step"] for line in train.read_log(unkilled / "log.jsonl")] == [1, 2, 3, 4, 5]


@needs_fork
@pytest.mark.parametrize("mishaps", [
    ["in a step"], ["between the weights and their average"], ["with half a checkpoint"],
    ["before the checkpoint had its name"], ["before the old checkpoints were removed"], ["with half of the weights"],
    ["with half a line of the log"], ["in a step", "before the log had its name", "in a step"]], ids=", then ".join)
def test_killed_at_any_moment_a_run_goes_on_as_if_nothing_had_happened(runs, unkilled, tmp_path, mishaps):
    out = tmp_path / "run"
    for i, mishap in enumerate(mishaps):
        assert runs(out, mishap, *["--resume"][:i])[0] == -signal.SIGKILL, "it was to be killed"
    if train.checkpoints(out):
        status, said = runs(out, "none", "--resume")
    else:
        status, said = runs(out)
    assert status == 0, said
    same_results(out, unkilled)


@needs_fork
@pytest.mark.parametrize("mishap", ["in the first step", "with half of the first checkpoint"])
def test_killed_before_its_first_checkpoint_a_run_begins_anew(runs, unkilled, tmp_path, mishap):
    out = tmp_path / "run"
    assert runs(out, mishap)[0] == -signal.SIGKILL
    status, said = runs(out, "none", "--resume")
    assert status == 2 and len(said) == 1 and "leave --resume out" in said[0], said
    assert runs(out)[0] == 0
    same_results(out, unkilled)


def test_what_a_killed_process_left_is_cleared_away_and_nothing_else(tmp_path):
    """A checkpoint of the largest model is 60 GB, and a step that was asked for by SIGTERM is not saved again."""
    (tmp_path / "checkpoint-0000004.shards.tmp").mkdir()
    for name in ("checkpoint-0000003.pt.tmp", "weights.pt.tmp", "log.jsonl.tmp", "notes.tmp", "checkpoint-best.txt"):
        (tmp_path / name).write_text("half")
    train.begin_in(tmp_path, resume=False)
    assert {p.name for p in tmp_path.iterdir()} == {"notes.tmp", "checkpoint-best.txt"}


# --- Asked to stop ---

@needs_fork
@pytest.mark.parametrize("mishap", ["SIGTERM", "Ctrl-C", "SIGTERM twice and Ctrl-C"])
def test_asked_to_stop_a_run_ends_its_step_saves_and_says_how_to_go_on(runs, unkilled, tmp_path, mishap):
    """torchrun sends SIGTERM after a Ctrl-C that all processes have got already: that is no impatience."""
    out = tmp_path / "run"
    status, said = runs(out, mishap)
    assert status == 1 and "after 3 steps" in said[-1] and "--resume goes on from step 3" in said[-1], said
    assert not any("Traceback" in line for line in said) and not (out / "weights.pt").exists()
    assert last(out)["step"] == 3, "what has been learned is saved"
    goes_on(runs, out, unkilled)


@needs_fork
def test_a_second_ctrl_c_leaves_at_once(runs, unkilled, tmp_path):
    out = tmp_path / "run"
    status, said = runs(out, "Ctrl-C twice")
    assert status == 130 and "stopped at once" in said[-1] and not any("Traceback" in line for line in said), said
    assert last(out)["step"] == 2, "the step was not ended, and nothing was saved"
    assert runs(out, "Ctrl-C before the run", "--resume")[0] == 130, "before the first step there is nothing to end"
    goes_on(runs, out, unkilled)


# --- A full disk ---

@needs_fork
def test_a_real_full_disk_loses_nothing_that_was_saved(runs, unkilled, tmp_path):
    """The run goes on without checkpoints and says so; that the weights cannot be written is one line and status 2."""
    out = tmp_path / "run"
    status, said = runs(out, "full disk")
    steps = [line for line in said if line.startswith("no checkpoint at step")]
    assert ["step 4" in steps[0], "step 5" in steps[1], len(steps)] == [True, True, 2], said
    assert status == 2 and said[-1].startswith("08_train.py:") and "weights.pt" in said[-1], said
    assert not any("Traceback" in line for line in said)
    assert [p.name for p in train.checkpoints(out)] == ["checkpoint-0000002.pt"], "the last good one stays"
    assert not list(out.glob("*.tmp")), "half of a file would fill the disk for nothing"
    goes_on(runs, out, unkilled)


class Full(io.RawIOBase):
    """A file that takes two lines, then half of one or none."""

    def __init__(self, file, half):
        self.file, self.half, self.lines = file, half, 0

    def write(self, data):
        self.lines += 1
        if self.lines > 2 and not self.half:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data if self.lines <= 2 else data[:len(data) // 2])

    def close(self):
        self.file.close()


@pytest.mark.parametrize("half", [False, True])
def test_a_log_that_cannot_be_written_is_made_up_for(undisturbed, tmp_path, quiet, monkeypatch, capfd, half):
    opened = []

    def full_at_first(path, mode="r", **rest):
        opened.append(path)
        return Full(open(path, mode, **rest), half) if len(opened) == 1 else open(path, mode, **rest)
    monkeypatch.setattr(train, "open", full_at_first, raising=False)
    train.train(small.preset(), tmp_path, seed=3)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "no log after step 2" in said[0] and "goes on" in said[0], said
    assert (tmp_path / "log.jsonl").read_text() == (undisturbed / "log.jsonl").read_text(), "with the next checkpoint"


def test_a_log_that_cannot_be_begun_stops_the_run_before_it_starts(tmp_path, capfd):
    (tmp_path / "log.jsonl").mkdir()
    lines = refused(["--steps", 2, "--batch", 2, "--out", tmp_path], capfd)
    assert len(lines) == 1 and "log.jsonl" in lines[0], lines
    assert [p.name for p in tmp_path.iterdir()] == ["log.jsonl"], "nothing half-written is left"


def test_pictures_that_cannot_be_drawn_do_not_end_a_run(tmp_path, monkeypatch, capfd):
    shows = []

    def show(self, out):
        shows.append(self.step)
        if self.step < 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return {}
    monkeypatch.setattr(train.Trainer, "show", show)
    train.train(small.preset(), tmp_path, work=train.Work(save_every=2))
    said = capfd.readouterr().err.splitlines()
    assert shows == [2, 4] and len(said) == 1 and "no pictures of step 2" in said[0], said


# --- Checkpoints that are damaged, or too many ---

def cut(path):
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])


@pytest.fixture
def stopped(tmp_path, quiet):
    """A run of four steps that was stopped after the third; checkpoints of steps 2 and 3."""
    out = tmp_path / "stopped"
    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit):
        stop_at(patch, 3)
        train.train(small.preset(), out, seed=3, work=train.Work(save_every=2))
    return out


def test_a_damaged_checkpoint_is_replaced_by_the_one_before(stopped, undisturbed, capfd):
    cut(train.checkpoints(stopped)[-1])
    train.train(small.preset(), stopped, seed=3, resume=True)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 1 and "checkpoint-0000003.pt" in said[0] and "going on from the one before" in said[0], said
    assert same(last(stopped), last(undisturbed))
    assert (stopped / "log.jsonl").read_text() == (undisturbed / "log.jsonl").read_text()


def test_when_all_are_damaged_it_is_said_in_one_line(stopped, capfd):
    for path in train.checkpoints(stopped):
        cut(path)
    with pytest.raises(train.Damaged) as refusal:
        train.train(small.preset(), stopped, seed=3, resume=True)
    assert "checkpoint-0000002.pt" in one_line(refusal.value)
    assert len(train.checkpoints(stopped)) == 2, "somebody may still be able to mend them"


def test_another_runs_checkpoint_is_not_taken_for_a_damaged_one(stopped, capfd):
    """To go on from an older one would be to go on with that other run."""
    with pytest.raises(ValueError, match="another seed"):
        train.train(small.preset(), stopped, seed=4, resume=True)
    assert not capfd.readouterr().err


@pytest.mark.parametrize("keep", [1, 3])
def test_only_the_last_few_checkpoints_stay(tmp_path, quiet, keep):
    train.train(small.preset(), tmp_path, work=train.Work(save_every=1, keep=keep))
    assert [train.step_of(path) for path in train.checkpoints(tmp_path)] == [1, 2, 3, 4][-keep:]


def test_a_damaged_checkpoint_does_not_take_a_good_ones_place(stopped):
    """It is ahead of the run that goes on behind it, and by its number the newest: keep=1 would leave it alone."""
    last_one = train.checkpoints(stopped)[-1]
    cut(last_one)
    trainer = train.Trainer(small.preset(), seed=3, work=train.Work(keep=1))
    train.go_on(trainer, stopped)
    train.save_checkpoint(trainer, stopped)
    assert [train.step_of(path) for path in train.checkpoints(stopped)] == [2, 3] and trainer.step == 2


def test_a_run_is_not_written_over(tmp_path, capfd):
    (tmp_path / "checkpoint-0000200.pt").write_bytes(b"days of work")
    lines = refused(["--steps", 2, "--batch", 2, "--out", tmp_path], capfd)
    assert len(lines) == 1 and "holds a run already" in lines[0] and "--resume" in lines[0], lines
    assert (tmp_path / "checkpoint-0000200.pt").read_bytes() == b"days of work"


def test_nothing_to_resume_is_refused(tmp_path, capfd):
    lines = refused(["--resume", "--steps", 3, "--batch", 2, "--out", tmp_path / "empty"], capfd)
    assert len(lines) == 1 and "no checkpoint" in lines[0], lines
    assert not (tmp_path / "empty").exists(), "and nothing is made for it"


# --- Steps without a finite loss ---

def spoil(patch, steps, how):
    """In these steps the loss or its gradient is infinite or no number."""
    real = train.Trainer.losses

    def losses(self, examples):
        loss = real(self, examples)
        if self.step + 1 in steps and how == "infinite gradient":
            loss.register_hook(lambda gradient: gradient * math.inf)
        return loss * how if self.step + 1 in steps and isinstance(how, float) else loss
    patch.setattr(train.Trainer, "losses", losses)


@pytest.mark.parametrize("how", [math.nan, math.inf, "infinite gradient"])
def test_a_step_without_a_finite_loss_is_left_out(monkeypatch, how):
    """One such gradient in Adam's averages, and the weights are no numbers for ever."""
    trainer = train.Trainer(small.preset())
    trainer.advance()
    spoil(monkeypatch, {2}, how)
    before = {name: {key: value.clone() if isinstance(value, torch.Tensor) else value for key, value in part.items()}
              for name, part in trainer.tensors().items() if name != "optimizer"}
    memory = [value.clone() for state in trainer.optimizer.state.values() for value in state.values()]
    trainer.advance()
    assert same({name: dict(part) for name, part in trainer.tensors().items() if name != "optimizer"}, before)
    assert same(memory, [value for state in trainer.optimizer.state.values() for value in state.values()])
    assert (trainer.step, trainer.ill, trainer.lost) == (2, 1, 1) and "1 steps left out" in trainer.remark()
    trainer.advance()
    assert not same(dict(trainer.model.state_dict()), before["model"]), "the next step counts again"
    assert (trainer.step, trainer.ill, trainer.lost) == (3, 0, 1), "all are counted, the illness is over"


def test_the_log_has_no_word_for_what_is_no_number(tmp_path, quiet, monkeypatch):
    spoil(monkeypatch, {2}, math.nan)
    train.train(small.preset(), tmp_path)

    def refuse(word):
        raise AssertionError(f"{word} is not JSON: other readers stop there")
    lines = [json.loads(line, parse_constant=refuse) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["loss"] is None for line in lines] == [False, True, False, False]
    assert lines[1]["norm"] is None and [line.get("lost") for line in lines] == [None, 1, 1, 1]
    sums = torch.tensor(last(tmp_path)["by_time"])
    assert sums.isfinite().all() and sums.any(), "one such loss would stay in the running sums for ever"


def test_ill_weights_stop_the_run_and_the_healthy_checkpoints_stay(tmp_path, quiet, monkeypatch):
    """Two checkpoints are kept. Were one written at every ill step, the healthy would be gone when patience is."""
    spoil(monkeypatch, range(4, 100), math.nan)
    with pytest.raises(ValueError, match="no finite number") as end:
        train.train(small.preset(steps=50), tmp_path, work=train.Work(save_every=1))
    assert f"{train.PATIENCE} steps in a row, up to step {3 + train.PATIENCE}" in one_line(end.value)
    assert [train.step_of(path) for path in train.checkpoints(tmp_path)] == [2, 3]
    assert not (tmp_path / "weights.pt").exists()


def test_asked_to_stop_while_ill_a_run_says_where_it_will_go_on(tmp_path, quiet, monkeypatch, capfd):
    spoil(monkeypatch, {3}, math.nan)
    stop_at(monkeypatch, 3)
    with pytest.raises(SystemExit):
        train.train(small.preset(), tmp_path, work=train.Work(save_every=2))
    assert "after 3 steps" in (line := capfd.readouterr().err.splitlines()[-1]) and "from step 2" in line, line


# --- How the sums are done changes nothing ---

def gradients(preset, work, seed=3):
    """The clipped gradients of a first step, of random weights: a fresh network answers zero, and most have none."""
    trainer = train.Trainer(preset, seed=seed, work=work, difficulty="full")
    small.randomize(trainer.model)
    found = {}
    trainer.optimizer.step = lambda: found.update(
        {name: p.grad.clone() for name, p in trainer.model.named_parameters() if p.grad is not None})
    return trainer.advance(), found


def distances(one, other):
    """How far two sets of gradients are apart, parameter by parameter, as a share of the first's length. What is
    shorter than a twentieth of the mean length counts as that long: a norm undoes the bias before it, so the gradient
    of such a bias is zero but for rounding, and nothing to compare."""
    floor = 0.05 * sum(g.norm() for g in one.values()) / len(one)
    assert one.keys() == other.keys()
    return {name: ((one[name] - other[name]).norm() / max(one[name].norm(), floor)).item() for name in one}


def assert_near(one, other, tolerance, what):
    off = distances(one, other)
    worst = max(off, key=off.get)
    assert off[worst] < tolerance, f"{what}: the gradients of {worst} are {off[worst]:.1e} apart"


@pytest.mark.parametrize("kind", UNETS)
def test_four_parts_of_eight_are_a_batch_of_32(kind):
    """Only the order of a few additions is another, so float32's 24 digits agree to a few of the last: 1e-4 of each
    parameter's gradient is above that, and far below a forgotten division or a part that is left out."""
    preset = small.preset(kind, batch=32, crop=32 if "upsampler" in kind else None, freeze=())
    (loss, whole), (again, parts) = (gradients(preset, train.Work(parts=n, bf16=False)) for n in (1, 4))
    assert again == pytest.approx(loss, rel=1e-5), "the mean loss is that of the whole batch"
    assert_near(whole, parts, 1e-4, "one batch and its four parts")


def test_a_compiled_networks_gradients_are_the_plain_ones():
    """In bfloat16, where another project got wrong ones without a word. The backend traces and differentiates as
    every backend does, and computes with torch's own kernels: the same operations with the same roundings, so 1e-5 is
    for what may be fused. And both are right: as near to float32's as 8 binary digits through some thirty layers let
    them be, a few percent."""
    preset = small.preset(batch=4)
    (exact_loss, exact), (loss, plain), (again, compiled) = (gradients(preset, work) for work in (
        train.Work(bf16=False), train.Work(bf16=True), train.Work(bf16=True, compile="aot_eager")))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] > 0, "nothing was compiled"
    assert again == pytest.approx(loss, rel=1e-5) == pytest.approx(exact_loss, rel=1e-2)
    assert_near(plain, compiled, 1e-5, "plain and compiled, both bfloat16")
    assert any(not torch.equal(exact[name], plain[name]) for name in exact), "bfloat16 was not used"
    assert_near(exact, compiled, 0.1, "plain float32 and compiled bfloat16")


def test_compiled_and_recomputed_float32_gradients_are_the_plain_ones():
    preset = small.preset(batch=4)
    preset = replace(preset, network=replace(preset.network, multipliers=(1,), attention_levels=(0,)))
    (loss, plain), (again, compiled) = (gradients(preset, work) for work in (
        train.Work(bf16=False), train.Work(bf16=False, compile="aot_eager", recompute=True)))
    assert again == pytest.approx(loss, rel=1e-6)
    assert_near(plain, compiled, 1e-5, "plain and compiled")


def test_a_clips_batch_is_not_taken_apart():
    with pytest.raises(ValueError, match="every picture") as refusal:
        train.CLIPTrainer(small.clip_preset(), work=train.Work(parts=2))
    one_line(refusal.value)


def test_a_batch_that_cannot_be_shared_out_is_refused():
    with pytest.raises(ValueError, match="multiple of 3") as refusal:
        train.Trainer(small.preset(), work=train.Work(parts=3))
    one_line(refusal.value)


@pytest.mark.parametrize("bf16", [True, False])
def test_the_precision_that_is_asked_for_is_used(monkeypatch, bf16):
    """Also where it is slow: whoever asks for it wants to know something."""
    monkeypatch.setattr(train, "has_fast_bf16", lambda device: not bf16)
    trainer, seen = train.Trainer(small.preset(), work=train.Work(bf16=bf16)), []
    trainer.model.enter.register_forward_hook(lambda module, given, answer: seen.append(answer.dtype))
    trainer.advance()
    assert seen == [torch.bfloat16 if bf16 else torch.float32]


# --- What is written down ---

class Formula:
    """A trainer for whose journal nothing is computed: the loss of a step is its number."""

    def __init__(self, steps, batch=4):
        self.preset = SimpleNamespace(train=SimpleNamespace(steps=steps, batch=batch))
        self.optimizer = SimpleNamespace(param_groups=[{"lr": 0.5}])
        self.step, self.norm, self.since, self.work = 0, 0.25, [], train.Work()

    def counts(self):
        return {}

    def remark(self):
        return ""


def told(trainer, out, until):
    journal = train.Journal(trainer, out)
    while trainer.step < until:
        trainer.step += 1
        journal.tell(trainer, float(trainer.step))
    journal.close()
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def test_a_long_runs_log_has_a_few_thousand_lines_each_the_mean_of_its_steps(tmp_path):
    lines = told(Formula(25_003), tmp_path, 25_003)
    assert len(lines) == 5001 and [line["step"] for line in lines[:2]] == [5, 10], "a line in five, and the last step"
    assert [line["loss"] for line in lines[:2]] == [3.0, 8.0] and lines[-1] == {
        "step": 25_003, "loss": 25_002.0, "norm": 0.25, "rate": 0.5}


def test_a_stop_between_two_lines_of_the_log_leaves_no_trace(tmp_path):
    """What belongs to the next line is in the checkpoint (`since`), which may also be older than the log."""
    trainer = Formula(25_000)
    told(trainer, tmp_path, 7)
    kept = list(trainer.since)
    told(trainer, tmp_path, 23)
    trainer.step, trainer.since = 7, kept
    lines = told(trainer, tmp_path, 30)
    assert [(line["step"], line["loss"]) for line in lines] == [(n, n - 2.0) for n in range(5, 31, 5)]


@pytest.mark.parametrize("width", [60, 100, 200])
def test_the_line_of_progress_fits_its_terminal(monkeypatch, width):
    """A line that wraps cannot be written over by the next: the terminal would fill with them."""
    class Terminal(io.StringIO):
        def isatty(self):
            return True
    monkeypatch.setenv("COLUMNS", str(width))
    monkeypatch.setattr(sys, "stdout", Terminal())
    progress = train.Progress(2_500_000, "pictures")
    progress.show(2_499_999, 2048, "loss 0.0423  3 steps left out  1234 bad pictures")
    progress.last = 0.0
    progress.show(2_500_000, 2048, "loss 0.0423", final=True)
    first, second = sys.stdout.getvalue().rstrip("\n").split("\r")[1:]
    assert len(first) == len(second) == width - 1, "and covers the one before"
    assert first.startswith("step 2499999/2500000"), first


@pytest.mark.parametrize("seconds, said", [(0, "0:00"), (200, "3:20"), (3599, "59:59"), (3600, "1 h 00"),
                                           (18_120, "5 h 02"), (172_799, "47 h 59"), (1_062_000, "12 d 07 h")])
def test_a_duration_is_said_as_people_say_it(seconds, said):
    assert train.duration(seconds) == said


def test_the_loss_by_timestep_is_a_mean_of_recent_losses():
    by_time = train.LossByTime(1000)
    by_time.add(torch.tensor([0, 49, 50, 999]), torch.tensor([1.0, 3.0, 5.0, math.nan]))
    middles, means = by_time.means()
    assert middles.tolist() == [25, 75] and means.tolist() == [2, 5], "stretches of 50; what is no number is left out"
    by_time.add(torch.tensor([0]), torch.tensor([4.0]))
    expected = (0.995 * 4 + 4) / (0.995 * 2 + 1)
    assert by_time.means()[1][0] == pytest.approx(expected), "older losses count a little less"


# --- The command line ---

@pytest.mark.parametrize("argv", [["--lr", "0"], ["--lr", "-1"], ["--lr", "nan"], ["--lr", "fast"], ["--parts", "0"],
                                  ["--keep", "0"], ["--save-every", "-3"], ["--dtype", "float16"]])
def test_wrong_options_of_a_run_are_refused(argv, capfd):
    lines = refused(argv, capfd)
    assert lines[0].startswith("usage:") and argv[0] in lines[-1] and argv[1] in lines[-1], lines


@pytest.mark.parametrize("argv, word", [
    (["judge", "--parts", 2], "--parts"), (["judge", "--save-every", 5], "--save-every"),
    (["judge", "--dtype", "float32"], "--dtype"), (["base", "--batch", 6, "--parts", 4], "multiple of 4"),
    (["clip", "--parts", 2], "--parts"), (["base", "--compile", "magic"], "magic"), (["base", "--shard"], "torchrun")])
def test_what_cannot_be_computed_so_is_refused_in_one_line(argv, word, tmp_path, capfd):
    lines = refused([*argv, "--out", tmp_path / "run"], capfd)
    assert len(lines) == 1 and word in lines[0], lines


def test_weights_tell_a_command_that_can_be_typed(tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(train, "train", lambda preset, out, **rest: told.append(rest["facts"]["command"]))
    argv = ["base", "--steps", "3", "--save-every", "7", "--parts", "2", "--recompute", "--compile", "aot_eager"]
    train.main([*argv, "--out", str(tmp_path)])
    again = train.arguments(told[0].split()[2:])
    assert again == train.arguments(argv), f"{told[0]} does not say what was asked"
