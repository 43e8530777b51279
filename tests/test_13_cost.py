"""What a run will take, known before it begins: FLOP, bytes, days; and what share of a machine a run reached."""
import json
from contextlib import nullcontext
from dataclasses import asdict, replace
from importlib import import_module

import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

import small

lesson = import_module("lessons.13_cost")
transformer, unet, train = (import_module(m) for m in ("02_transformer", "03_unet", "08_train"))
TINY, PAPER = train.PRESETS["tiny"], train.PRESETS["paper"]
both_ways = pytest.mark.parametrize("checkpointing", [False, True], ids=["plain", "checkpointing"])


# --- FLOP ---

def test_a_convolution_takes_two_flop_for_each_product():
    """One × and one + for each of an output's 3·3·C_in weights, at every place of every output channel."""
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        nn.Conv2d(5, 7, 3, padding=1)(torch.zeros(1, 5, 16, 16))
    assert counter.get_total_flops() == 2 * (3 * 3 * 5) * 7 * 16 * 16


def test_an_attention_layer_of_the_unet_by_hand():
    """Linear layers for queries, keys and values, for the caption's keys and values, and for the answer; then each of
    N places compares itself with N places and K words, and takes a mean of their values."""
    C, D, K, N = 64, 32, 20, 8 * 8
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        layer = unet.TextAttention(C, 64, D)
        layer(torch.zeros(1, C, 8, 8), layer.project_text(torch.zeros(1, K, D)))
    linear = N * C * 3 * C + K * D * 2 * C + N * C * C
    attention = 2 * N * (N + K) * C
    assert counter.get_total_flops() == 2 * (linear + attention)


@pytest.mark.parametrize("kind", train.KINDS)
def test_backward_costs_twice_forward(kind):
    """Each product has two gradients. It is less only where nobody asks for one: of the images, or of frozen parts."""
    preset = replace(TINY[kind], train=replace(TINY[kind].train, freeze=()))
    forward, both = lesson.count_flop(preset)
    assert 2.97 < both / forward <= 3, f"forward and backward are {both / forward:.3f} times forward, not 3"


@pytest.mark.parametrize("kind", ["base", "upsampler", "clip"])
def test_recomputation_costs_less_than_one_more_forward_pass(kind):
    """Only blocks are computed again, and a block stops before its last product, which nobody asks for."""
    (forward, plain), (again, more) = lesson.count_flop(TINY[kind]), lesson.count_flop(TINY[kind], True)
    assert again == forward, "the forward pass itself stays the same"
    assert 0.5 * forward < more - plain < forward, f"{(more - plain) / forward:.3f} of a forward pass is done again"


def test_frozen_parts_cost_no_gradients():
    frozen = TINY["inpaint"]
    assert frozen.train.freeze, "the preset freezes a part of the network"
    free = replace(frozen, train=replace(frozen.train, freeze=()))
    assert lesson.count_flop(frozen)[1] < 0.9 * lesson.count_flop(free)[1]
    states, all_states = lesson.state_bytes(frozen), lesson.state_bytes(free)
    assert states["weights"] == all_states["weights"] and states["Adam"] < 0.7 * all_states["Adam"]


# --- Bytes: what training holds ---

def test_twenty_bytes_a_parameter_are_what_a_run_holds():
    run = train.Trainer(small.preset())
    run.train_step(run.batch(0)[0])                       # Adam's averages are made by the first step
    run.loss(run.batch(1)[0]).mean().backward()
    weights = list(run.model.parameters())
    adam = [state[name] for state in run.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    held = {"weights": weights, "gradients": [p.grad for p in weights], "Adam": adam, "EMA": list(run.ema.parameters()),
            "gathered": []}
    states = lesson.state_bytes(run.preset)
    assert states == {what: sum(tensor.nbytes for tensor in tensors) for what, tensors in held.items()}
    assert sum(states.values()) == 20 * unet.parameters(run.model)


def test_shards_are_equal_parts_and_two_blocks_are_whole():
    whole, sharded = lesson.state_bytes(TINY["base"]), lesson.state_bytes(TINY["base"], gpus=2)
    assert all(sharded[what] == whole[what] / 2 for what in lesson.BYTES)
    with torch.device("meta"):
        network = train.build_network(TINY["base"].network)
    # The same by names: what is in no block are the ends of the network, the time, and the text's own tables.
    blocks = {part for part in network.modules() if isinstance(part, train.BLOCKS)}
    inside = {id(p) for part in blocks for p in part.parameters()}
    rest = {name.split(".")[0] for name, p in network.named_parameters() if id(p) not in inside}
    assert rest == {"text", "pool", "time", "input_conv", "output"}
    outside = sum(p.numel() for p in network.parameters() if id(p) not in inside)
    largest = max(unet.parameters(part) for part in blocks)
    assert sharded["gathered"] == 8 * (outside + 2 * largest), "weights and gradients, float32, of those in use"


# --- Bytes: what the forward pass leaves for the backward pass ---

@both_ways
@pytest.mark.parametrize("kind", ["base", "upsampler", "clip"])
def test_what_is_kept_without_memory_is_kept_with_it(kind, checkpointing):
    """The estimate runs a network of shapes. The same forward pass with numbers must keep the same bytes."""
    preset, found = TINY[kind], []
    for mode in (FakeTensorMode(), nullcontext()):
        with mode:
            network = lesson.fresh(preset, checkpointing)
            found.append(lesson.kept_bytes(network, lesson.side(preset), 3, checkpointing)[0])
    # Fake tensors believe that a norm of 16-bit numbers keeps the means and spreads of its groups in 16 bits as well;
    # the real one keeps them in 32.
    groups = sum(part.num_groups for part in network.modules() if isinstance(part, nn.GroupNorm))
    bound = 0 if checkpointing else 2 * 2 * 3 * groups
    assert 0 <= found[1] - found[0] <= bound <= 1e-3 * found[1], f"{found[0]:,} bytes estimated, {found[1]:,} kept"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@both_ways
@pytest.mark.parametrize("kind", ["base", "upsampler", "clip"])
def test_a_gpu_keeps_what_the_estimate_says(kind, checkpointing):
    """Its fused attention also keeps the state of its random numbers, a few bytes a layer."""
    with torch.device("cuda"):
        network = lesson.fresh(TINY[kind], checkpointing).cuda()
        kept, _ = lesson.kept_bytes(network, lesson.side(TINY[kind]), 3, checkpointing)
    assert kept == pytest.approx(lesson.kept_on_gpu(TINY[kind], 3, checkpointing)[0], rel=1e-3)


@pytest.mark.parametrize("width, heads, tokens", [(128, 2, 20), (512, 8, 128)])
def test_a_text_block_keeps_on_a_gpu_what_one_can_count(width, heads, tokens, monkeypatch):
    """In bytes a token: norms in float32 (4), matrix products and what goes into them in 16 bits (2)."""
    monkeypatch.setattr(lesson, "forward", lambda block, side, images: block(torch.zeros(images, side, width)))
    with FakeTensorMode():
        block = transformer.Block(width, heads)
        with lesson.as_on_a_gpu(block):
            kept, _ = lesson.kept_bytes(block, tokens, 3)
    norms = 2 * (4 * width + 4 + 4)                       # what each is given, its mean and its spread
    attention = 2 * width + 2 * 3 * width + 2 * width + 4 * heads   # into qkv; q, k, v; the answer; the softmax's sums
    mlp = 2 * width + 2 * 4 * width + 2 * 4 * width       # into up, into GELU, into down
    weights = 2 * 12 * width ** 2                         # in 16 bits; biases are not needed on the way back
    assert kept == 3 * tokens * (norms + attention + mlp) + weights


@both_ways
@pytest.mark.parametrize("kind", ["base", "clip"])
def test_what_is_kept_grows_by_the_image(kind, checkpointing):
    """Straight lines through two counts: a third one, with more images, must lie on them."""
    kept, inside = lesson.kept_on_gpu(TINY[kind], 7, checkpointing)
    if checkpointing:
        kept += max(lesson.kept_on_gpu(TINY[kind], 7, False)[1])    # one block at a time; the largest counts
    assert lesson.activation_bytes(TINY[kind], 7, checkpointing) == kept


def test_checkpointing_saves_most_of_the_memory():
    plain, less = (lesson.activation_bytes(TINY["base"], 64, flag) for flag in (False, True))
    assert less < plain / 3, "blocks keep their inputs only, and one block all"


def test_as_many_images_fit_as_there_is_room_for():
    machines = lesson.Machines(memory=1.0)
    room = 0.9e9 - sum(lesson.state_bytes(TINY["base"]).values())
    for flag in (False, True):
        n = lesson.images_that_fit(TINY["base"], machines, flag)
        assert lesson.activation_bytes(TINY["base"], n, flag) <= room, "what is said to fit must fit"
        assert lesson.activation_bytes(TINY["base"], n + 1, flag) > room, "and one more must not"
    assert lesson.images_that_fit(PAPER["base"], lesson.Machines(memory=40.0)) == 0, "its weights alone are 71 GB"


def test_a_gpu_takes_the_largest_even_part_that_fits():
    preset, held = small.preset(batch=48), sum(lesson.state_bytes(small.preset(), 2).values())
    assert lesson.images_at_a_time(preset, lesson.Machines(gpus=2)) == (24, 24)
    tight = lesson.Machines(gpus=2, memory=(held + lesson.activation_bytes(preset, 10)) / 0.9e9 + 1e-9)
    assert lesson.images_at_a_time(preset, tight) == (24, 8), "ten would fit, eight is the largest that divides 24"
    assert lesson.images_at_a_time(preset, tight, checkpointing=True) == (24, 24), "checkpointed, they all fit"
    with pytest.raises(ValueError, match="evenly"):
        lesson.images_at_a_time(preset, lesson.Machines(gpus=7))


# --- Days ---

def test_days_are_flop_over_speed():
    preset = small.preset(steps=1000, batch=64)
    flop = lesson.count_flop(preset)[1] * 1000 * 64
    machines = lesson.Machines(peak=flop / 86400 / 1e12 * 4, mfu=0.25)
    assert lesson.gpu_days(preset, machines) == pytest.approx(1), "at a quarter of the peak four times as long"
    assert 1.1 < lesson.gpu_days(preset, machines, True) < 4 / 3, "nearly four passes instead of three"


def test_the_papers_runs():
    """Facts that others can check: parameters, FLOP of both runs, and days on GPUs that can be rented."""
    assert lesson.state_bytes(PAPER["base"])["weights"] == 4 * 3_554_414_086
    assert lesson.run_flop(PAPER["base"]) == pytest.approx(2.85e22, rel=0.01)
    assert lesson.run_flop(PAPER["upsampler"]) == pytest.approx(1.26e22, rel=0.01), \
        "the two together are DALL·E's 4.1e22, as GLIDE says"
    assert round(lesson.gpu_days(PAPER["base"], lesson.Machines())) == 834, "at 40% of 990 TFLOP/s"


# --- A run's share of the peak ---

@pytest.fixture
def run_folder(tmp_path):
    """What 08 leaves behind: weights that say how they were trained, and a log with one slow step."""
    preset = small.preset()
    network = train.build_network(preset.network)
    unet.save_weights(tmp_path / "base.pt", network, size=16, train=asdict(preset.train))
    speeds = (10.0, 100.0, 100.0)
    (tmp_path / "log.jsonl").write_text("".join(json.dumps({"step": i, "images_per_second": s}) + "\n"
                                                for i, s in enumerate(speeds)))
    return tmp_path


def test_the_share_of_the_peak_is_work_over_what_the_machine_could_do(run_folder, capfd):
    flop = lesson.count_flop(small.preset())[1]
    status, told, err = small.main(capfd, "--log", run_folder, "--peak", 4 * 100 * flop / 1e12, script=lesson)
    assert status == 0 and "25.0%" in told, "a quarter of the peak, by the median and not the slow first step"


def test_without_a_peak_a_large_product_is_measured(run_folder, capfd):
    status, told, _ = small.main(capfd, "--log", run_folder, script=lesson)
    assert status == 0 and "product of large matrices" in told
    assert 1e8 < lesson.matrix_rate("cpu", torch.float32) < 1e14


# --- The command ---

def test_the_papers_model_is_priced_without_its_memory(capfd):
    """Its weights alone are 14 GB."""
    resource = pytest.importorskip("resource")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    status, told, _ = small.main(capfd, "base", "--gpus", 64, script=lesson)
    assert status == 0 and "3,554,414,086" in told and "2,500,000 steps of 2,048" in told and "834.2" in told
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e6, "kilobytes; nothing may be allocated"
    assert max(map(len, told.splitlines())) <= 120, "it is read in a terminal"


def test_options_reach_the_estimate(capfd):
    status, told, _ = small.main(capfd, *"upsampler --preset tiny --steps 7 --batch 12 --gpus 3 --per-gpu 2 --memory 40"
                                 " --peak 100 --mfu 0.5".split(), script=lesson)
    assert status == 0
    for words in ("7 steps of 12 images, 32 pixels a side", "2 images at a time", "sharded by 3", "in 40 GB",
                  "50% (--mfu) of 100 TFLOP/s", "--grad-accum 2"):
        assert words in told, f"{words!r} should be in the estimate"


def test_without_arguments_it_shows_all_presets(monkeypatch, tmp_path, capfd):
    kinds = {kind: small.preset(kind) for kind in ("base", "upsampler", "clip")}
    monkeypatch.setattr(train, "PRESETS", {"filtered": kinds, "paper": kinds})
    monkeypatch.setattr(train, "OUTPUTS", tmp_path)
    status, told, _ = small.main(capfd, script=lesson)
    assert status == 0 and "paper upsampler" in told and (tmp_path / "13_cost.png").stat().st_size > 10_000


@pytest.mark.parametrize("argv, word", [
    ("base --gpus 7", "7 GPUs"), ("base --per-gpu 7", "7 at a time"), ("base --per-gpu 0 --steps -1", "steps"),
    ("base --mfu 1.5", "mfu"), ("base --mfu 0", "mfu"), ("base --memory nan", "GB"), ("base --gpus 0", "GPU"),
    ("base --preset huge", "huge"), ("dragon", "dragon"), ("--log /nowhere", "nowhere")])
def test_what_means_nothing_is_refused(argv, word, capfd):
    assert word in small.refused(capfd, *argv.split(), *["--preset", "tiny"] * ("--preset" not in argv), script=lesson)
