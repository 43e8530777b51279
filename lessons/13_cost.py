r"""
13 · The bill before the run.

What will a training run take? It can be known to the byte and to the day before anything is bought, from shapes alone.
torch can run a network whose tensors have a shape and a type and no numbers; nothing is allocated, so the paper's model
of 3.5 billion parameters is priced on a laptop, in seconds. Three accounts are kept:

    parameters ──► × 20 bytes   weights 4, gradients 4, Adam 8, EMA 4 ─────────┐
                                (sharded: each GPU holds 1/N of them)          ├─► fits into a GPU's memory?
    forward pass ─► what autograd keeps of it, because the backward pass will  │   how many images at a time?
                    ask for it: grows with the images ─────────────────────────┘
    every product ─► FLOP ──► ÷ (peak × the share of it that one reaches) ─────► GPU-days

It adds numbers to 08's presets and options. It leaves out money, which changes; the exchange between GPUs, which
overlaps with computing as long as each has enough to do; and the little memory that nobody can foresee, for which a
tenth is left free.

Papers: GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 4: batch and steps); mixed precision and sharding of what
training holds: ZeRO, Rajbhandari et al. 2020, arXiv 1910.02054 (section 3); activation checkpointing: Chen et al. 2016,
arXiv 1604.06174; the share of the peak (MFU): PaLM, Chowdhery et al. 2022, arXiv 2204.02311 (section 4.1).

    python lessons/13_cost.py                             forty seconds: all presets in a table; outputs/13_cost.png
    python lessons/13_cost.py base --preset paper --gpus 64         one run in detail, about fifteen seconds
    python lessons/13_cost.py --log outputs/train-base    the share of the peak that a run reached
"""
import argparse
import sys
import time
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from unittest import mock

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # the project's root
transformer, unet, guidance, train = map(import_module, ("02_transformer", "03_unet", "05_guidance", "08_train"))

BYTES = {"weights": 4, "gradients": 4, "Adam": 8, "EMA": 4}     # of each parameter, all in float32
RESERVE = 0.1   # of the memory, for what is not counted: operations' scratch space, the allocator's gaps, the driver


@dataclass(frozen=True)
class Machines:
    """What a run is to be paid on. GB are 10⁹ bytes, TFLOP/s 10¹² a second."""

    gpus: int = 1
    memory: float = 80.0   # GB of each
    peak: float = 990.0    # TFLOP/s of each: an H100's (SXM) or H200's in dense bfloat16, by its data sheet
    mfu: float = 0.4       # model FLOP utilisation: the share of the peak that a run reaches

    def __post_init__(self):
        if not (self.gpus > 0 and self.memory > 0 and self.peak > 0 and 0 < self.mfu <= 1):
            raise ValueError("there is at least one GPU, with more than 0 GB and 0 TFLOP/s, and mfu is from 0 to 1")


# --- A network without numbers -----------------------------------------------------------------------

# All accounts are kept on the network that 08 trains and on its own forward pass: no formula of ours repeats what a
# layer is, so none can be forgotten when a layer changes. On torch's "meta" device a tensor has a shape and a type and
# no memory; a "fake" tensor moreover says on which device it would be, which autocast wants to know.
def fresh(preset, checkpointing=False):
    """A preset's network as training has it, its frozen parts without gradients, on the default device.

    checkpointing: its blocks keep only their inputs, and are computed again on the way back, as 08 does it.
    """
    network = train.build_network(preset.network)
    for part in preset.train.freeze:
        network.get_submodule(part).requires_grad_(False)
    return train.parallelize(network, None, train.ComputeConfig(activation_checkpointing=checkpointing))


def side(preset):
    """Of its training images, in pixels: an upsampler may learn on parts of them."""
    return preset.train.crop or preset.size


def forward(network, side, images):
    """One forward pass of images of side × side with their captions, all zeros, on the default device. -> its output,
    of a CLIP both encoders' vectors side by side."""
    context, t = network.config.text.context, torch.zeros(images, dtype=torch.long)
    tokens = torch.zeros(images, context, dtype=torch.long)
    if isinstance(network, guidance.NoisedCLIP):
        return torch.cat(network(torch.zeros(images, 3, side, side), t, tokens, lengths=t), dim=1)
    return network(torch.zeros(images, network.config.in_channels, side, side), t, tokens=tokens, mask=tokens == 0)


# --- FLOP --------------------------------------------------------------------------------------------

# A product of matrices [n, k] and [k, m] takes n·k·m multiplications and as many additions: 2·n·k·m FLOP. Convolutions,
# linear layers and attention are such products, of thousands of operations for each number that comes out. Norms,
# activations and sums do a handful each, and are left out. torch counts by the operators that really run, backward pass
# included, on the "meta" device, where a tensor is its shape.
@lru_cache
def count_flop(preset, checkpointing=False):
    """FLOP for one image: (forward pass, forward and backward pass).

    The backward pass costs twice the forward pass, for each product has two gradients: of the weights and of what came
    in. It is a little less only because nobody asks for the gradient of the images. With activation checkpointing most
    of the forward pass is done once more, but not all of it: a block stops as soon as it has what is asked for, so its
    last product is not made again.
    """
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        output = forward(fresh(preset, checkpointing), side(preset), 1)
        once = counter.get_total_flops()
        output.sum().backward()
    return once, counter.get_total_flops()


def run_flop(preset, checkpointing=False):
    """FLOP of the whole run.

    The paper's base model takes 2.85e22 and its upsampler 1.26e22. GLIDE says: about the compute of DALL·E, which at
    6 FLOP a parameter and token took 6 × 12e9 × 430,000 × 1,024 × 1,280 = 4.06e22 (Ramesh et al. 2021, arXiv
    2102.12092: 12 G parameters, 430,000 steps of 1,024 rows of 1,280 tokens).
    """
    return count_flop(preset, checkpointing)[1] * preset.train.batch * preset.train.steps


def gpu_days(preset, machines, checkpointing=False):
    """Days that one GPU would take for the run: FLOP ÷ (peak · MFU).

    What is recomputed has to be paid for as well: the same share of the peak is reached, on more FLOP.
    """
    return run_flop(preset, checkpointing) / (machines.peak * 1e12 * machines.mfu) / 86400


# --- Bytes -------------------------------------------------------------------------------------------

# Two things fill a GPU. What training holds for every parameter is there all the time, 20 bytes each, and can be
# divided among the GPUs. What the forward pass leaves for the backward pass grows with the images. Which tensors those
# are is autograd's business, but it tells a hook about each, so they are counted and not guessed: a norm keeps its
# input and its statistics, a product what it multiplied, an addition nothing.
@lru_cache
def state_bytes(preset, gpus=1):
    """What a GPU holds whatever the number of images: {"weights", "gradients", "Adam", "EMA", "gathered": bytes}.

    On one GPU all of it; on several, sharded (08's --shard), an equal part. Then the block at work and the next one
    need their weights and gradients whole for a moment, and so does what is in no block: "gathered".
    """
    with torch.device("meta"):
        network = fresh(preset)
    everything, learning = (sum(p.numel() for p in network.parameters() if p.requires_grad or not only)
                            for only in (False, True))
    blocks = [unet.parameters(part) for part in network.modules() if isinstance(part, train.BLOCKS)]
    whole = everything - sum(blocks) + 2 * max(blocks) if gpus > 1 else 0
    counts = {"gradients": learning, "Adam": learning}
    return {what: n * counts.get(what, everything) // gpus for what, n in BYTES.items()} | {"gathered": 8 * whole}


@contextmanager
def as_on_a_gpu(network):
    """Inside, a network on the CPU keeps for the backward pass what it would keep on a GPU.

    Three habits differ, and all three matter: there autocast computes norms in float32; a dropout's mask takes one byte
    a number and not four; and attention is fused in training too, so that its N × M weights are never stored (02).
    """
    def fused(q, k, v, *, causal=False):
        return F.scaled_dot_product_attention(q, k, v, is_causal=causal)
    for part in network.modules():
        if isinstance(part, (nn.GroupNorm, nn.LayerNorm)):
            part.register_forward_pre_hook(lambda part, given: (given[0].float(),))
        elif isinstance(part, nn.Dropout):
            part.forward = lambda x, p=part.p: torch.native_dropout(x, p, True)[0]
    with mock.patch.object(transformer, "attention", fused):
        yield


def kept_bytes(network, side, images, checkpointing=False):
    """What autograd keeps of a forward pass in bfloat16: (bytes in all, bytes inside each block [list]).

    A storage is the memory behind a tensor, or behind several that are views of it: it counts once, and not at all if
    it is a weight's, which is there anyway.
    """
    weights, kept, began, inside = {p.untyped_storage()._cdata for p in network.parameters()}, {}, [], []

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage._cdata not in weights:
            kept[storage._cdata] = storage      # held, or its address might be used again for another one
        return tensor

    def enter(block, given):
        if checkpointing and isinstance(given[-1], tuple):
            list(map(note, given[-1]))   # the caption's keys and values: the hook is not told of tensors in a tuple
        began.append(len(kept))

    def leave(block, given, output):
        inside.append(total(list(kept.values())[began[-1]:]))

    for part in network.modules():
        if isinstance(part, train.BLOCKS):
            part.register_forward_pre_hook(enter)
            part.register_forward_hook(leave)
    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor), \
            torch.autocast(next(network.parameters()).device.type, torch.bfloat16, cache_enabled=False):
        forward(network, side, images)
    return total(kept.values()), inside


def total(storages):
    """Bytes."""
    return sum(storage.nbytes() for storage in storages)


@lru_cache
def kept_on_gpu(preset, images, checkpointing):
    """`kept_bytes` of a preset's network on a GPU, found by tensors that have a shape and a type only, "fake" ones."""
    from torch._subclasses.fake_tensor import FakeTensorMode   # here, so that importing this file stays quick
    with FakeTensorMode():
        network = fresh(preset, checkpointing)
        with as_on_a_gpu(network):
            return kept_bytes(network, side(preset), images, checkpointing)


def activation_lines(preset, checkpointing=False):
    """[(fixed bytes, bytes an image)]: of n images the largest of the sums fixed + n · each is kept.

    Without checkpointing it is one straight line; fixed are the weights' copies in 16 bits. With checkpointing the
    inputs of all blocks are kept, and one block, while it is computed again, has everything of its own: a line for each
    block that may be that one. Two points make a line, 2 images and 3. (Of a single image some copies are not made.)
    """
    (two, inside_two), (three, inside_three) = (kept_on_gpu(preset, n, False) for n in (2, 3))
    sums = [(two, three)]
    if checkpointing:
        two, three = (kept_on_gpu(preset, n, True)[0] for n in (2, 3))
        sums = [(two + some, three + more) for some, more in zip(inside_two, inside_three)]
    return [(3 * two - 2 * three, three - two) for two, three in sums]


def activation_bytes(preset, images, checkpointing=False):
    """Bytes that are kept between the forward and the backward pass of this many images at a time."""
    return max(fixed + images * each for fixed, each in activation_lines(preset, checkpointing))


def images_that_fit(preset, machines, checkpointing=False, gpus=1):
    """How many images at a time a GPU has memory for, if what it holds is divided among this many GPUs."""
    room = (1 - RESERVE) * machines.memory * 1e9 - sum(state_bytes(preset, gpus).values())
    return max(0, min(int((room - fixed) // each) for fixed, each in activation_lines(preset, checkpointing)))


def images_at_a_time(preset, machines, checkpointing=False):
    """(a GPU's part of a batch, how many images of it at a time): the largest even part that fits, at least 1.

    The first divided by the second is 08's --grad-accum. Raises ValueError if a batch cannot be divided evenly.
    """
    part, rest = divmod(preset.train.batch, machines.gpus)
    if rest:
        raise ValueError(f"{preset.train.batch:,} images a step cannot be divided evenly among {machines.gpus} GPUs")
    most = max(1, images_that_fit(preset, machines, checkpointing, machines.gpus))
    return part, max(n for n in range(1, part + 1) if part % n == 0 and n <= most)


# --- One run in detail -------------------------------------------------------------------------------

# Both ways are always shown, because which to take is the question. Without checkpointing if the images fit, for that
# is a sixth less work. If they do not, first fewer at a time (--grad-accum), which costs nothing as long as the GPU
# stays busy; then checkpointing. If the states alone are too large, --shard.
WAYS = {"plain": False, "checkpointing": True}
NOTES = {"weights": "4 bytes a parameter: float32", "gradients": "4, of those that learn",
         "Adam": "8: its averages of the gradient and of its square", "EMA": "4: the averaged weights",
         "gathered": "two blocks at a time and what is in no block, whole"}


def row(name, *cells, note=""):
    """A line of a table: its name, its numbers under one another, where they come from."""
    cells = (f"{cell:,.3f}" if isinstance(cell, float) else cell for cell in cells)
    print(f"   {name:<14}{''.join(f'{cell:>15}' for cell in cells)}   {note}".rstrip())


def span(days):
    """A time in the unit that suits it."""
    for name, length in ("days", 1), ("hours", 24), ("min", 1440):
        if days * length >= 1:
            return f"{days * length:,.1f} {name}"
    return f"{days * 86400:.3g} s"


def show_memory(preset, machines, images):
    """What a GPU holds and keeps with this many images at a time, and how many would fit."""
    held = {gpus: state_bytes(preset, gpus) for gpus in (1, machines.gpus)}
    unit, name = (1e9, "GB") if sum(held[1].values()) > 1e9 else (1e6, "MB")
    print(f"\nMemory of each GPU, {name}, {images:,} images at a time")
    row("", *("whole" if gpus == 1 else f"sharded by {gpus}" for gpus in held))
    for what, note in NOTES.items():
        row(what, *(states[what] / unit for states in held.values()), note=note)
    for way, flag in WAYS.items():
        kept, more = (activation_bytes(preset, n, flag) for n in (images, images + 1))
        print(f"   {way}: of the forward pass {kept / unit:,.3f} are kept, {(more - kept) / unit:,.3f} for each image")
        row("   together", *((sum(states.values()) + kept) / unit for states in held.values()))
        row("   fit", *(f"{images_that_fit(preset, machines, flag, gpus):,}" for gpus in held),
            note=f"images at a time in {machines.memory:g} GB, of which {RESERVE:.0%} is left free")


def show_work(preset, machines):
    """FLOP, and the days that they come to."""
    steps, gpus = preset.train.steps, machines.gpus
    print(f"\nFLOP, and the time that they take at {machines.mfu:.0%} (--mfu) of {machines.peak:g} TFLOP/s (--peak)")
    row("", "an image", "the run", "GPU-days", f"a step on {gpus}", f"the run on {gpus}")
    row("forward", f"{count_flop(preset)[0]:.3e}")
    for way, flag in WAYS.items():
        days = gpu_days(preset, machines, flag)
        row(way, f"{count_flop(preset, flag)[1]:.3e}", f"{run_flop(preset, flag):.2e}",
            f"{days:,.1f}" if days >= 1 else f"{days:.1e}", span(days / gpus / steps), span(days / gpus))


def show_run(preset, machines, images, checkpointing):
    """The cost estimate as tables: one line for each number, and next to it where it comes from."""
    part, most = images_at_a_time(preset, machines, checkpointing)
    if images and (images < 1 or part % images):
        raise ValueError(f"a GPU's part of a step, {part} images, cannot be taken {images} at a time")
    show_memory(preset, machines, images or most)
    show_work(preset, machines)
    print(f"\nA GPU's part of a step is {part:,} images, {images or most:,} at a time: --grad-accum"
          f" {part // (images or most)}")


# --- A run that is over, or going on -----------------------------------------------------------------

# Whether a run wastes its machine shows in one number, the share of the peak. Half is very good, a tenth says that the
# GPU waits: for data, for small kernels, or for a float32 that was meant to be bfloat16. A data sheet's peak is never
# reached, not even by a single large product; so without --peak that product is what a run is measured by.
def matrix_rate(device, dtype):
    """The peak as it is here: FLOP/s of the product of two large matrices, the best of five."""
    n, best = 8192 if torch.device(device).type == "cuda" else 1024, float("inf")
    a = torch.randn(n, n, device=device, dtype=dtype)
    for _ in range(5):
        begin = time.perf_counter()
        (a @ a)[0, 0].item()        # the answer is waited for
        best = min(best, time.perf_counter() - begin)
    return 2 * n ** 3 / best


def run_preset(folder):
    """The Preset that a run's newest weights were trained by. Raises FileNotFoundError or ValueError."""
    files = [path for path in folder.glob("*.pt") if path.stem in train.KINDS]
    if not files:
        raise FileNotFoundError(f"{folder} holds no weights of a run of 08_train.py")
    path = max(files, key=lambda path: path.stat().st_mtime)
    saved = unet.read_weights(path)
    if "train" not in saved:
        raise ValueError(f"{path} does not say how it was trained")
    config = unet.config_from(guidance.CLIPConfig if path.stem == "clip" else unet.UNetConfig, saved["config"])
    return train.Preset(path.stem, config, None, saved["size"], train.TrainConfig(**saved["train"]))


def show_log(folder, machines, device, measured):
    """The share of the peak that a run reached: images a second, times FLOP an image, over what the machine can do.

    What is recomputed does not count: MFU is about the work that has to be done, not about what one way of doing it
    adds. measured: the peak is what a product of large matrices reaches here, and not that of `machines`.
    """
    speeds = sorted(line["images_per_second"] for line in train.read_log(folder / "log.jsonl"))
    if not speeds:
        raise ValueError(f"{folder / 'log.jsonl'} holds no steps")
    flop, speed, dtype = count_flop(run_preset(folder))[1], speeds[len(speeds) // 2], train.fast_dtype(device)
    peak = matrix_rate(device, dtype) if measured else machines.peak * 1e12
    rate = speed * flop / machines.gpus
    print(f"{folder}: {speed:,.1f} images a second (the median) × {flop:.3e} FLOP an image, {machines.gpus} {device}\n"
          f"{rate / 1e12:.3f} TFLOP/s each are {rate / peak:.1%} of {peak / 1e12:.3f}"
          + f", the rate of a product of large matrices in {str(dtype)[6:]} here" * measured)


# --- All presets at a glance -------------------------------------------------------------------------

# From the tiny base model to the paper's lie a factor of 900 in parameters and of 90 million in FLOP: the tiny one, of
# minutes on a laptop, would take a second of a GPU that is busy all the time (it would not be: its products are small).
def show_presets(machines):
    """What each preset's models hold, and what they compute. An inpainting model takes what the plain one does."""
    presets = {f"{name} {kind}": of[kind] for name, of in train.PRESETS.items() for kind in of if "inpaint" not in kind}
    print("\n1. What training holds on one GPU: 20 bytes for each parameter")
    for name, preset in presets.items():
        held = state_bytes(preset)
        print(f"   {name:<19}{held['weights'] // 4:>14,} parameters {sum(held.values()) / 1e9:>8.2f} GB")
    print(f"\n2. What it computes, and the days of one GPU at {machines.mfu:.0%} of {machines.peak:g} TFLOP/s")
    for name, preset in presets.items():
        images = preset.train.steps * preset.train.batch
        print(f"   {name:<19}{count_flop(preset)[1]:>10.2e} FLOP × {images:>7.0e} images = {run_flop(preset):.2e}"
              f"   {span(gpu_days(preset, machines))}", flush=True)


def draw_memory(ax, machines):
    """Where a GPU's memory goes: bars of the paper's base model, on one GPU, sharded, and with checkpointing."""
    print("\n3. Memory of each GPU that trains the paper's base model, 32 images at a time")
    colors = "#1f618d", "#2e86c1", "#85c1e9", "#d6eaf8", "#f5b041", "#c0392b"
    preset, labels = train.PRESETS["paper"]["base"], ("on 1 GPU", "sharded by 64", "and checkpointing")
    for x, (gpus, flag) in enumerate([(1, False), (64, False), (64, True)]):
        parts, top = state_bytes(preset, gpus) | {"activations": activation_bytes(preset, 32, flag)}, 0
        for (what, n), color in zip(parts.items(), colors):
            ax.bar(x, n / 1e9, bottom=top, color=color, label=what * (x == 0) or None)
            top += n / 1e9
        ax.text(x, top + 1, f"{top:.0f} GB", ha="center", size=14)
        print("   " + ", ".join(f"{what} {n / 1e9:.1f}" for what, n in parts.items()) + f": {top:.1f} GB")
    ax.axhline(machines.memory, color="0.3", linestyle="--")
    ax.set_xticks(range(len(labels)), labels, size=12)
    ax.set_title("The paper's base model: GB in each GPU, 32 images at a time", size=17)
    ax.legend(fontsize=13, loc="upper right")


def draw_days(ax, machines):
    """Where the days go: a bar for each model of the large presets."""
    cases = [(name, kind) for name in ("paper", "filtered") for kind in ("clip", "upsampler", "base")]
    days = [gpu_days(train.PRESETS[name][kind], machines) for name, kind in cases]
    ax.barh([f"{' '.join(case)}: {n:,.0f}" for case, n in zip(cases, days)], days, color="#2e86c1")
    ax.set_title(f"GPU-days at {machines.mfu:.0%} of {machines.peak:g} TFLOP/s", size=17)


# --- The command line --------------------------------------------------------------------------------

def overview(machines):
    """All presets in a table, and the picture."""
    from matplotlib.figure import Figure
    show_presets(machines)
    figure = Figure(figsize=(16, 7.5), layout="constrained")
    left, right = figure.subplots(1, 2, width_ratios=(1.3, 1))
    draw_memory(left, machines)
    draw_days(right, machines)
    train.OUTPUTS.mkdir(exist_ok=True)
    figure.savefig(train.OUTPUTS / "13_cost.png", dpi=90)
    print("\nThe picture is outputs/13_cost.png. The lesson to this file is lessons/13_cost.ipynb.")


def command(args):
    """The overview, a run in detail, or a run's log."""
    machines = Machines(args.gpus, args.memory, args.peak or Machines.peak, args.mfu)
    if args.log:
        return show_log(args.log, machines, args.device, measured=args.peak is None)
    if args.kind is None:
        return overview(machines)
    preset = train.PRESETS[args.preset][args.kind]
    said = {name: getattr(args, name) for name in ("steps", "batch") if getattr(args, name) is not None}
    preset = replace(preset, train=replace(preset.train, **said))
    print(f"{args.preset} {args.kind}, {state_bytes(preset)['weights'] // 4:,} parameters: {preset.train.steps:,} steps"
          f" of {preset.train.batch:,} images, {side(preset)} pixels a side. Nothing was allocated for this.")
    show_run(preset, machines, args.per_gpu, args.activation_checkpointing)


def main(argv=None):
    """The command line. -> exit status: 0, or 2 for what you can mend, with one line on stderr"""
    parser = argparse.ArgumentParser(description="What will a training run take?", allow_abbrev=False)
    add = parser.add_argument
    add("kind", nargs="?", choices=train.KINDS, help="without one: all presets at a glance")
    add("--preset", choices=tuple(train.PRESETS), default="paper", help="default: paper")
    add("--steps", type=int, help="default: the preset's")
    add("--batch", type=int, help="images a step; default: the preset's")
    add("--gpus", type=int, default=1)
    add("--per-gpu", type=int, help="images that a GPU takes at a time; default: as many as fit, evenly")
    add("--activation-checkpointing", action="store_true", help="as many as fit with it")
    add("--memory", type=float, default=Machines.memory, help="of a GPU, in GB (default: 80)")
    add("--peak", type=float, help="TFLOP/s of a GPU (default: 990, H100 and H200; with --log: measured here)")
    add("--mfu", type=float, default=Machines.mfu, help="the share of the peak that is reached (default: 0.4)")
    add("--log", type=train.path_name, metavar="FOLDER", help="a run's folder: what share of the peak did it reach?")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="with --log")
    return train.run(command, parser.parse_args(argv), "13_cost.py")


if __name__ == "__main__":
    sys.exit(main())
