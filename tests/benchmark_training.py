"""What makes a training step of the tiny base model fast: each choice undone in turn, as a ratio from one run.

    python tests/benchmark_training.py        about a minute; nothing else should run meanwhile
"""
import statistics
import sys
import time
from contextlib import nullcontext
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
transformer, train = import_module("02_transformer"), import_module("08_train")


def seconds_a_step(change=lambda trainer: None, steps=20):
    """The median of some steps on batches that are ready, after a few that warm up."""
    trainer, times = train.Trainer(train.PRESETS["tiny"]["base"], world="full"), []
    change(trainer)
    batch, _ = trainer.batch(0)
    for _ in range(steps + 5):
        start = time.perf_counter()
        trainer.train_step(batch)
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def fused_attention():
    """In training too, attention is torch's fused operator."""
    return mock.patch.object(transformer, "attention", lambda q, k, v, causal=False: F.scaled_dot_product_attention(
        q, k, v, is_causal=causal))


def float32(trainer):
    """No autocast."""
    trainer.bf16 = False


def channels_last(trainer):
    """The channels of a pixel lie together in memory."""
    trainer.model.to(memory_format=torch.channels_last)


def unfused_adamw(trainer):
    """AdamW as a loop over weights."""
    groups = [{"params": group["params"], "rate": group["rate"]} for group in trainer.optimizer.param_groups]
    trainer.optimizer = torch.optim.AdamW(groups, weight_decay=0)


def float32_unfused(trainer):
    """Both."""
    float32(trainer)
    unfused_adamw(trainer)


def main():
    seconds_a_step()     # a process is slower at first, whatever it does
    ours = seconds_a_step()
    print(f"as it is: {ours * 1000:.0f} ms a step of 64 images, {64 / ours:.0f} images a second")
    rows = (("float32 instead of bfloat16 autocast", float32, nullcontext),
            ("fused attention instead of the plain one", lambda trainer: None, fused_attention),
            ("channels last instead of contiguous", channels_last, nullcontext),
            ("AdamW that is not fused", unfused_adamw, nullcontext),
            ("float32, fused attention, AdamW not fused", float32_unfused, fused_attention))
    for title, change, attention in rows:
        with attention():
            print(f"{title + ':':<44}{seconds_a_step(change) / ours:.2f} times as long", flush=True)


if __name__ == "__main__":
    main()
