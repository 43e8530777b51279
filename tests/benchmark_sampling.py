"""How long one step of the released models takes: the plain way, and what makes it faster, as ratios from one run.

    python tests/benchmark_sampling.py                  both models of the preset filtered: about five minutes, 4 GB
    python tests/benchmark_sampling.py --preset tiny    a few seconds, to see that it runs

One prompt: two branches of guidance for the base model, at 64×64; one without guidance for the upsampler, at 256×256.
The plain way is float32 with the caption read again at every step and attention written out. Each line below it changes
what it names, on top of the lines above; the two with channels last keep their numbers' type. The weights are random,
made here and in no file: time does not depend on them. Ratios are what counts; seconds depend on the machine.
"""
import argparse
import sys
import time
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
transformer, unet, diffusion, guidance, upsample, sample = map(import_module, (
    "02_transformer", "03_unet", "04_diffusion", "05_guidance", "07_upsample", "09_sample"))
SIZES = {"tiny": 16, "small": 32, "filtered": 64, "paper": 64}     # of the base models' images


def written_out(q, k, v, *, causal=False):
    """softmax(q·kᵀ)·v as two products, the table of weights kept in memory."""
    return transformer.attention_weights(q, k).to(v.dtype) @ v


@torch.no_grad()
def seconds(model, size, config, device, *, prepared, steps=3):
    """The fastest of a few steps of a denoiser, after one that warms up."""
    context, vocabulary = config.text.context, config.text.vocab_size
    cond = {"tokens": torch.randint(vocabulary, (1, context)), "mask": torch.arange(context)[None] < 9}
    if config.in_channels == 6:
        cond["low_res"] = torch.randn(1, 3, size // upsample.FACTOR, size // upsample.FACTOR)
    cond = {name: value.to(device) for name, value in cond.items()}
    x, t, times = torch.randn(1, 3, size, size, device=device), torch.tensor([500], device=device), []
    cond = diffusion.prepare(model, **cond) if prepared else cond
    for _ in range(steps + 1):
        start = time.perf_counter()
        model(x, t, **cond).sum().item()     # .item() waits for the device
        times.append(time.perf_counter() - start)
    return min(times[1:])


def rows(network, model, size, device):
    """Yields (what is changed, seconds a step). The network inside the model is changed as the lines go on."""
    def timed(prepared):
        return seconds(model, size, network.config, device, prepared=prepared)

    with mock.patch.object(transformer, "attention", written_out):
        yield "plain: float32, caption read at every step", timed(prepared=False)
    yield "fused attention", timed(prepared=False)
    yield "caption read once (prepare)", timed(prepared=True)
    network.to(memory_format=torch.channels_last)
    yield "channels last, float32", timed(prepared=True)
    network.to(torch.bfloat16, memory_format=torch.contiguous_format)
    network.output.float()
    yield "bfloat16 but for the last layer, contiguous", timed(prepared=True)
    network.to(memory_format=torch.channels_last)
    yield "bfloat16, channels last", timed(prepared=True)


def benchmark(name, size, device):
    """One model: its table, a line as soon as it is known. The last column is how many times as fast as plain."""
    network = unet.UNet(unet.UNET[name]).eval().to(device)
    denoiser = upsample.denoiser_of(network, network.config)
    guided = guidance.classifier_free(denoiser, 3.0) if network.config.in_channels == 3 else denoiser
    print(f"{name}, {unet.parameters(network):,} parameters, {size}×{size}", flush=True)
    plain = None
    for title, taken in rows(network, guided, size, device):
        plain = plain or taken
        print(f"   {title:<46}{taken * 1000:9.0f} ms a step   {plain / taken:5.2f} times as fast", flush=True)


def main():
    parser = argparse.ArgumentParser(description="One step of the base model and of the upsampler, plain and faster.")
    parser.add_argument("--preset", default="filtered", choices=SIZES)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    benchmark(args.preset, SIZES[args.preset], args.device)
    benchmark(f"{args.preset}-upsampler", upsample.FACTOR * SIZES[args.preset], args.device)


if __name__ == "__main__":
    main()
