"""How long one step of the released base model takes: our step against the straightforward one, in one run.

    python tests/benchmark_sampling.py [--device cuda] [--preset paper]      about three minutes on two cores

One prompt, so two branches of guidance, at 64×64. The plain way is float32 with the caption read again at every step
and attention written out; each line changes one thing more. Weights are random: time does not depend on them.
Ratios are what counts; seconds depend on the machine.
"""
import argparse
import sys
import time
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))
transformer, unet, guidance, train, sample = (import_module(m) for m in (
    "02_transformer", "03_unet", "05_guidance", "08_train", "09_sample"))


@contextmanager
def attention_written_out():
    """softmax(q·kᵀ)·v as two products, the table of weights kept in memory."""
    fused = transformer.attention
    transformer.attention = lambda q, k, v, causal=False: transformer.attention_weights(q, k).to(v.dtype) @ v
    try:
        yield
    finally:
        transformer.attention = fused


def seconds(network, device, *, prepared, steps=3):
    """The fastest of a few guided steps."""
    model = guidance.classifier_free(network, 3.0)
    cond = {"tokens": torch.randint(50257, (1, 128), device=device), "mask": torch.arange(128, device=device)[None] < 9}
    x, t, times = torch.randn(1, 3, 64, 64, device=device), torch.tensor([500], device=device), []
    with torch.no_grad():
        cond = model.prepare(**cond) if prepared else cond
        for _ in range(steps + 1):           # the first one warms up
            start = time.perf_counter()
            model(x, t, **cond).sum().item() # .item() waits for the device
            times.append(time.perf_counter() - start)
    return min(times[1:])


def main():
    parser = argparse.ArgumentParser(description="One step of a base model, the plain way and ours.")
    parser.add_argument("--device", type=train.device, default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--preset", default="filtered", choices=("filtered", "paper"))
    args = parser.parse_args()
    settings = sample.arguments(["", "--preset", args.preset, "--device", args.device, "--dtype", "float32"])
    network = sample.load_random(settings, "base").denoiser
    with attention_written_out():
        plain = seconds(network, args.device, prepared=False)
    rows = {"plain: float32, caption read at every step": plain,
            "fused attention": seconds(network, args.device, prepared=False),
            "caption read once (prepare)": seconds(network, args.device, prepared=True)}
    network.to(torch.bfloat16)
    network.leave.float()
    rows["bfloat16 but for the last layer"] = seconds(network, args.device, prepared=True)
    sample.in_precision(network, torch.bfloat16)
    rows["channels last: ours, --dtype bfloat16"] = seconds(network, args.device, prepared=True)
    for name, taken in rows.items():
        print(f"{name:<46}{taken * 1000:9.0f} ms a step   {plain / taken:5.2f} times as fast as plain")


if __name__ == "__main__":
    main()
