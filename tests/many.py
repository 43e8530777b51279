"""What test_08_many.py has several processes do together: python -m torch.distributed.run … tests/many.py OUT.

Every experiment trains a small model for three steps of the same twelve examples, however many processes share them,
and leaves in OUT what the first process saw: losses, lengths of gradients, and the averaged weights.
"""
import json
import sys
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import small  # noqa: E402  (the folders above must be known first)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402

train = import_module("08_train")
STEPS = 3
# name -> what is trained, and how it is computed
EXPERIMENTS = {
    "base": ("base", {}), "base in parts": ("base", {"grad_accum": 2}), "base in pieces": ("base", {"shard": True}),
    "pieces and parts": ("base", {"shard": True, "grad_accum": 2}),
    "pieces, recomputed": ("base", {"shard": True, "activation_checkpointing": True}),
    "frozen": ("inpaint", {}), "clip": ("clip", {}), "clip in pieces": ("clip", {"shard": True})}
SAVED = "base in pieces"        # this one is saved after two steps, and goes on as any other


def exactly():
    """No rounding of what a step tells, and pictures in two steps."""
    train.round = lambda value, digits: value
    train.diffusion.respace = lambda steps, spec: [0, 999]


def start(kind, folder):
    """A weight file with random weights: a fresh U-Net answers zero, and most of its gradients are zero too."""
    path = folder / f"start-{kind}.pt"
    if not path.exists():
        small.save_model(path, small.preset(kind))
    return path


def trainer_of(kind, folder, compute):
    """A Trainer in float32: only the order in which numbers are added up may differ between two of them."""
    preset = small.preset(kind, batch=12, steps=STEPS, warmup=0, lr=1e-3)
    return (train.CLIPTrainer if kind == "clip" else train.Trainer)(
        preset, world="full", seed=5, init_from=start(kind, folder),
        compute=train.ComputeConfig(dtype="float32", **compute))


def advance(trainer, steps):
    """-> [(loss, length of the gradient)]"""
    found = [trainer.train_step(trainer.batch(trainer.step)[0]) for _ in range(steps)]
    return [(metrics["loss"], metrics["grad_norm"]) for metrics in found]


def keep(trainer, told, path):
    """What was found, in two files."""
    average = train.dcp.get_model_state_dict(trainer.ema, options=train.WHOLE)      # all processes together
    if trainer.rank == 0:
        path.mkdir(parents=True, exist_ok=True)
        (path / "told.json").write_text(json.dumps(told))
        torch.save(average, path / "average.pt")


def experiment(name, out, starts):
    """Three steps."""
    kind, compute = EXPERIMENTS[name]
    trainer = trainer_of(kind, starts, compute if dist.is_initialized() else {})
    told = advance(trainer, 2)
    if name == SAVED or name == "base" and not dist.is_initialized():
        train.save(trainer, out / "run", {})
    keep(trainer, told + advance(trainer, 1), out / name)


def go_on(compute, run, out, starts):
    """The third step, from what other processes had saved in pieces."""
    trainer = trainer_of("base", starts, compute)
    train.load_checkpoint(trainer, run)
    keep(trainer, advance(trainer, 1), out)


def fail():
    """The command line, in a run whose second process meets an error."""
    train.PRESETS["tiny"]["base"] = small.preset(steps=STEPS)
    real = train.Trainer.batch

    def batch(self, step):
        if self.rank == 1 and step == 1:
            raise ValueError("the second process is out of luck")
        return real(self, step)
    train.Trainer.batch = batch
    return train.main(["--device", "cpu", "--out", sys.argv[2]])


def main():
    """many.py OUT STARTS RUN name, …: these experiments, then the run in RUN goes on, whole and in pieces."""
    if sys.argv[1] == "fail":
        sys.exit(fail())
    out, starts, run = map(Path, sys.argv[1:4])
    dist.init_process_group("gloo")
    for name in sys.argv[4:]:
        experiment(name, out, starts)
    dist.barrier()
    for way, compute in ("whole", {}), ("in pieces", {"shard": True}):
        go_on(compute, run, out / f"goes on {way}", starts)
    dist.destroy_process_group()


if __name__ == "__main__":
    exactly()
    main()
