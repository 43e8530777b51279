"""What test_08_many.py has several processes do together, started by torchrun: python -m torch.distributed.run many.py OUT.

Every experiment trains a small model for three steps of the same twelve examples, however many processes share them,
and leaves in OUT what the first process saw: the losses, the norms of the gradients, and the weights.
"""
import json
import os
import sys
from importlib import import_module
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]
import small  # noqa: E402  (the folders above must be known first)
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from PIL import Image  # noqa: E402

unet, guidance, train = import_module("03_unet"), import_module("05_guidance"), import_module("08_train")
BATCH, STEPS = 12, 3
# name -> the model, and how the sums are done
EXPERIMENTS = {"base": ("base", {}), "parts": ("base", {"parts": 2}), "shard": ("base", {"shard": True}),
               "shard in parts": ("base", {"shard": True, "parts": 2}), "frozen": ("inpaint", {}),
               "inpaint-upsampler": ("inpaint-upsampler", {}), "clip": ("clip", {}), "shard a clip": ("clip", {"shard": True}),
               "pictures": ("base", {"shard": True})}


def pictures_in(folder):
    """Forty files and their captions, and a function that reads them, as a Run takes it."""
    if not (folder / "39.txt").exists():
        folder.mkdir()
        pictures, captions, _ = train.diffusion.world_pictures(40, seed=1)
        for i, (picture, caption) in enumerate(zip(pictures, captions)):
            Image.fromarray(picture.permute(1, 2, 0).numpy()).save(folder / f"{i}.png")
            (folder / f"{i}.txt").write_text(caption)

    def read(*, batch, reader, state):
        return train.Pictures(folder, train.DataConfig(16, batch), reader=reader, state=state)
    return read


def trainer_of(name, folder, **work):
    """A run in float32, so that two of them differ by the order of their sums and nothing else."""
    kind, how = EXPERIMENTS[name][0], dict(batch=BATCH, steps=STEPS, warmup=0, lr=1e-3)
    work = train.Work(bf16=False, **work)
    if name == "pictures":
        return train.Trainer(small.preset(**how), seed=5, pictures=pictures_in(folder / "forty"), work=work)
    if kind == "clip":
        return train.CLIPTrainer(small.clip_preset(**how), seed=5, difficulty="full", work=work)
    return train.Trainer(small.preset(kind, **how), seed=5, difficulty="full", work=work)


def start(kind, folder):
    """A weight file with random weights: a fresh U-Net answers zero, and most of its gradients are zero too."""
    path = folder / f"{kind}.pt"
    if not path.exists():
        preset = small.clip_preset() if kind == "clip" else small.preset(kind)
        network = (guidance.NoisedCLIP if kind == "clip" else unet.UNet)(preset.network)
        unet.save_weights(path, small.randomize(network))
    return path


def advance(trainer, steps):
    """-> a list of (loss, norm)"""
    return [(trainer.advance(), trainer.norm) for _ in range(steps)]


def experiment(name, out):
    """Three steps; a divided run is saved after the second."""
    kind, work = EXPERIMENTS[name]
    if train.team()[1] == 1:
        work = {}                       # one process, plainly: what the others are compared with
    trainer = trainer_of(name, out.parent, **work)
    trainer.start_from(start(kind, out.parent))
    told = advance(trainer, 2)
    if work.get("shard"):
        trainer.save(out / f"{name}.pt")
    told += advance(trainer, 1)
    keep(trainer, told, out / name)


def go_on(name, out, origin):
    """The third step, from where another number of processes stopped."""
    work = EXPERIMENTS[name][1]
    trainer = trainer_of(name, out.parent, **(work if train.team()[1] > 1 else {}))
    trainer.resume(origin / f"{name}.shards")
    keep(trainer, advance(trainer, 1), out / f"{name} from {origin.name}")


def keep(trainer, told, path):
    average = trainer.average()
    if average is not None:
        path.with_suffix(".json").write_text(json.dumps(told))
        weights = {name: value.clone() for name, value in average.state_dict().items()}
        torch.save(weights, path.with_suffix(".weights"))


def main():
    """many.py OUT [FROM]: all experiments, or two of them and then those that go on from the shards in FROM."""
    out, origin = Path(sys.argv[1]), [Path(name) for name in sys.argv[2:]]
    if "RANK" in os.environ:
        dist.init_process_group("gloo")
    out.mkdir(parents=True, exist_ok=True)
    for name in EXPERIMENTS if not origin else ("base", "clip") if dist.is_initialized() else ():
        experiment(name, out)
    for name, (_, work) in EXPERIMENTS.items():
        if origin and work.get("shard"):
            go_on(name, out, *origin)
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
