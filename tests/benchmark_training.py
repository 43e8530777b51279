"""What makes a training step of the tiny base model fast: each choice undone in turn, as a ratio from one run.

    python tests/benchmark_training.py        about a minute; nothing else should run meanwhile
"""
import statistics
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch
import torch.nn.functional as F

sys.path.insert(0, str(Path(__file__).parent.parent))
transformer, train = import_module("02_transformer"), import_module("08_train")


@contextmanager
def replaced(owner, name, value):
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def seconds_a_step(change=lambda trainer: None, steps=20):
    """The median of some steps, after a few that warm up."""
    trainer, times = train.Trainer(train.PRESETS["tiny"]["base"]), []
    change(trainer)
    for _ in range(steps + 5):
        start = time.perf_counter()
        trainer.advance()
        times.append(time.perf_counter() - start)
    return statistics.median(times[5:])


def fused_attention(q, k, v, *, causal=False):
    return F.scaled_dot_product_attention(q, k, v, is_causal=causal)


def channels_last(trainer):
    trainer.model.to(memory_format=torch.channels_last)


def unfused_adamw(trainer):
    groups = [{"params": g["params"], "full_lr": g["full_lr"]} for g in trainer.optimizer.param_groups]
    trainer.optimizer = torch.optim.AdamW(groups, weight_decay=0.0)


def main():
    seconds_a_step()     # a process is slower at first, whatever it does
    ours = seconds_a_step()
    print(f"as it is: {ours * 1000:.0f} ms a step of 64 pictures, {64 / ours:.0f} pictures a second")
    with replaced(train, "has_fast_bf16", lambda device: False):
        print(f"float32 instead of bfloat16 autocast:        {seconds_a_step() / ours:.2f} times as long")
    with replaced(transformer, "attention", fused_attention):
        print(f"fused attention instead of the plain one:    {seconds_a_step() / ours:.2f} times as long")
    print(f"channels_last instead of contiguous:         {seconds_a_step(channels_last) / ours:.2f} times as long")
    print(f"AdamW that is not fused:                     {seconds_a_step(unfused_adamw) / ours:.2f} times as long")
    with replaced(train, "has_fast_bf16", lambda device: False), replaced(transformer, "attention", fused_attention):
        print(f"float32, fused attention, AdamW not fused:   {seconds_a_step(unfused_adamw) / ours:.2f} times as long")


if __name__ == "__main__":
    main()
