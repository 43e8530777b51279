"""What a run will take, known before it begins: FLOP, bytes, days; and blocks that forget and compute again."""
import copy
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from importlib import import_module

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import small

transformer, unet, train = (import_module(m) for m in ("02_transformer", "03_unet", "08_train"))
MODELS = [(name, kind) for name, kinds in train.PRESETS.items() for kind in kinds]
every_model = pytest.mark.parametrize("name, kind", MODELS,
                                      ids=["-".join(model) for model in MODELS])
both_ways = pytest.mark.parametrize("recomputed", [False, True], ids=["plain", "recomputed"])
GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


def sizes(name, kind):
    """What a plan measures: a network's config and the side of its training pictures."""
    preset = train.PRESETS[name][kind]
    return preset.network, preset.train.crop or preset.size


def with_dropout(kind="base"):
    """The smallest preset, of which dropout makes every forward another one."""
    preset = small.preset(kind)
    return replace(preset, network=replace(preset.network, dropout=0.3))


# --- FLOP ---

@every_model
def test_flop_are_torchs_own_count(name, kind):
    """Two accounts of one walk: ours by layers and shapes, torch's by the operators that run, on the meta device."""
    preset, (config, side) = train.PRESETS[name][kind], sizes(name, kind)
    with torch.device("meta"):
        network = train.network_of(config)
        with FlopCounterMode(display=False) as theirs, train.counting_flop(network) as ours:
            train.ask(network, side, 1)
    by_operator = {str(operator): n for operator, n in theirs.get_flop_counts()["Global"].items()}
    assert ours == {"convolutions": by_operator["aten.convolution"], "attention": by_operator["aten.bmm"],
                    "linear layers": by_operator["aten.addmm"] + by_operator["aten.mm"]}, \
        "2 × multiply-adds of every convolution, linear layer, and of attention's two products"
    if (name, kind) in (("paper", "base"), ("paper", "upsampler")):
        run = 3 * sum(ours.values()) * preset.train.batch * preset.train.steps
        expected = {"base": 2.85e22, "upsampler": 1.26e22}[kind]
        assert run == pytest.approx(expected, rel=0.01), "the two together are DALL·E's 4.1e22, as GLIDE says"


@pytest.mark.parametrize("kind, bound", [("base", 0.01), ("upsampler", 0.02), ("clip", 0.01)])
def test_backward_costs_twice_forward(kind, bound):
    """Every product has two gradients. Less only where no gradient is asked for: of the pictures themselves."""
    config, side = sizes("tiny", kind)
    with torch.device("meta"):
        network = train.network_of(config)
        with FlopCounterMode(display=False) as counter:
            answer = train.ask(network, side, 2)
            forward = counter.get_total_flops()
            answer.sum().backward()
    times = counter.get_total_flops() / forward
    assert 3 - 3 * bound < times <= 3, f"forward and backward are {times:.3f} times forward, not 3"


@pytest.mark.parametrize("kind", ["base", "clip"])
def test_recomputed_flop_are_torchs_own_count(kind):
    """A block stops as soon as it has all that backward asks for: its last product is not made again."""
    config, side = sizes("tiny", kind)
    network = train.recompute(train.network_of(config))
    with FlopCounterMode(display=False) as counter:
        train.ask(network, side, 2).sum().backward()
    planned, real = 2 * train.measure(config, side)[1]["recomputed"], counter.get_total_flops()
    assert real <= planned <= 1.02 * real, f"{planned / real:.4f}; only the pictures' own gradient is not computed"


# --- Bytes ---

@contextmanager
def cuda_or_cpu(device):
    """Training's precision on a device, and its tensors there."""
    with torch.device(device), torch.autocast(device, torch.bfloat16):
        yield


@both_ways
@pytest.mark.parametrize("kind", ["base", "upsampler", "clip"])
@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=GPU)])
def test_what_is_kept_without_memory_is_kept_with_it(device, kind, recomputed):
    """The plan walks through a network of shapes. The same walk with numbers must keep the same bytes."""
    config, side = sizes("tiny", kind)
    planned = train.walk(config, side, 3, recomputed=recomputed, gpu=device == "cuda")[0]
    network = train.network_of(config).to(device)
    if recomputed:
        train.recompute(network)
    with train.noting_kept(network) as kept, cuda_or_cpu(device):
        train.ask(network, side, 3)
    real = train.total(kept.values())
    # Tensors of shapes take it that a norm of 16-bit numbers keeps its 32 means and spreads in 16 bits too; in truth in
    # 32. On a GPU, where norms are float32 anyway, a fused attention keeps the state of its dice: a few bytes a layer.
    norms = 0 if recomputed else sum(isinstance(part, nn.GroupNorm) for part in network.modules())
    bound = 2 * 2 * 32 * 3 * norms if device == "cpu" else 1e-3 * real
    assert abs(planned - real) <= bound <= 1e-3 * real, f"{planned:,} bytes planned, {real:,} kept by autograd"


@pytest.mark.parametrize("width, heads, tokens", [(128, 2, 20), (512, 8, 128)])
def test_a_text_block_keeps_on_a_gpu_what_one_can_count(width, heads, tokens):
    """In bytes a token: norms in float32 (4), matrix products and what goes into them in 16 bits (2)."""
    from torch._subclasses.fake_tensor import FakeTensorMode
    with FakeTensorMode():
        block, x = transformer.Block(width, heads), torch.zeros(3, tokens, width)
        with train.as_on_a_gpu(block), train.noting_kept(block) as kept, torch.autocast("cpu", torch.bfloat16):
            block(x)
    norms = 2 * (4 * width + 4 + 4)                       # what each is given, its mean and its spread
    attention = 2 * width + 2 * 3 * width + 2 * width + 4 * heads   # into qkv; q, k, v; their answer; the softmax's sums
    mlp = 2 * width + 2 * 4 * width + 2 * 4 * width       # into up, into GELU, into down
    weights = 2 * 12 * width ** 2                         # in 16 bits; biases are not needed on the way back
    assert train.total(kept.values()) == 3 * tokens * (norms + attention + mlp) + weights


@both_ways
@pytest.mark.parametrize("kind", ["base", "clip"])
def test_what_is_kept_grows_by_the_picture(kind, recomputed):
    """A straight line through two walks: a third walk, with more pictures, must lie on it."""
    config, side = sizes("tiny", kind)
    line = train.measure(config, side)[0]["recomputed" if recomputed else "plain"]
    kept = train.walk(config, side, 7, recomputed=recomputed)[0]
    assert line.fixed + 7 * line.picture == kept, "a fixed part, and the same for every picture"
    if recomputed:
        inside = train.walk(config, side, 7)[1]
        assert [f + 7 * p for f, p in line.blocks] == inside, "what a block keeps grows likewise"
        assert line.bytes(7) == kept + max(inside), "at work is one block at a time, the largest counts"


def test_as_many_pictures_fit_as_there_is_room_for():
    kept = train.Activations(1000, 10, ((0, 7), (500, 2)))
    for room in (0, 1499, 1512, 1513, 3000, 10_000):
        n = kept.most(room)
        assert n == 0 or kept.bytes(n) <= room, "what is said to fit must fit"
        assert kept.bytes(n + 1) > room, "and one more must not"


def test_weights_gradients_averages_are_what_a_run_holds():
    run = train.Trainer(small.preset())
    run.advance()                                         # Adam's averages are made by the first step
    run.losses(run.examples()).mean().backward()
    held = train.Plan(run.preset, train.Machines()).states(sharded=False)
    weights = list(run.model.parameters())
    adam = [state[name] for state in run.optimizer.state.values() for name in ("exp_avg", "exp_avg_sq")]
    real = {"weights": weights, "gradients": [p.grad for p in weights], "optimiser": adam,
            "EMA": list(run.ema.parameters()), "gathered": []}
    assert held == {what: sum(tensor.nbytes for tensor in tensors) for what, tensors in real.items()}


def test_shards_are_equal_parts_and_two_blocks_are_whole():
    plan = train.Plan(small.preset(), train.Machines(gpus=4))
    whole, sharded = plan.states(sharded=False), plan.states(sharded=True)
    assert all(sharded[what] * 4 == whole[what] for what in whole if what != "gathered")
    # The same by names: a block's end with .block, .attention, .resample, or are the text's, which are numbered
    sizes = {}
    for name, p in plan.network.named_parameters():
        words = name.split(".")
        ends = [i for i, word in enumerate(words) if word in ("block", "resample") or words[0] == "text" and i == 2
                and words[1] == "blocks" or word == "attention" and words[0] != "text"]
        key = ".".join(words[:ends[0] + 1]) if ends else None
        sizes[key] = sizes.get(key, 0) + p.numel()
    rest = sizes.pop(None)
    assert sharded["gathered"] == 8 * (rest + 2 * max(sizes.values())), "weights and gradients, float32, of those in use"


# --- Recomputation ---

def gradients(network, side, *, bf16=False):
    """-> the answer and all gradients of one backward pass, its dice thrown the same way every time."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16) if bf16 else nullcontext():
        answer = train.ask(network, side, 2)
    (answer * torch.linspace(-1, 1, answer.numel()).view_as(answer)).sum().backward()
    return answer.detach(), [p.grad for p in network.parameters()]


@pytest.mark.parametrize("bf16", [False, True], ids=["float32", "bf16"])
@pytest.mark.parametrize("kind", ["base", "upsampler"])
def test_recomputed_gradients_are_the_same_bits(kind, bf16):
    preset = with_dropout(kind)
    plain = small.randomize(unet.UNet(preset.network))
    again = train.recompute(copy.deepcopy(plain))
    (answer, grads), (answer_again, grads_again) = (gradients(net, preset.size, bf16=bf16) for net in (plain, again))
    assert torch.equal(answer, answer_again)
    assert any(g is not None and g.any() for g in grads)
    for (name, _), g, g_again in zip(plain.named_parameters(), grads, grads_again):
        assert g is g_again is None or torch.equal(g, g_again), f"{name}: computed again, with other dice or precision?"


def test_recomputation_leaves_names_and_copies_alone():
    network, side = unet.UNet(small.preset().network), 16
    names = list(network.state_dict())
    assert list(train.recompute(network).state_dict()) == names, "a checkpoint must fit with and without it"
    small.randomize(network)
    before, twin = train.ask(network, side, 2), copy.deepcopy(network)
    for p in network.parameters():
        p.data.zero_()
    assert torch.equal(train.ask(twin, side, 2), before), "a copy must compute with its own weights"


def test_recomputing_twice_is_recomputing_once():
    network = train.recompute(unet.UNet(small.preset().network))
    kept = {part: part.forward for part in network.modules() if "forward" in vars(part)}
    train.recompute(network)
    assert kept and all(part.forward is forward for part, forward in kept.items())


def test_recomputation_saves_most_of_the_memory():
    kept = train.measure(*sizes("tiny", "base"))[0]
    assert kept["recomputed"].bytes(64) < kept["plain"].bytes(64) / 3, "blocks keep their inputs only, and one block all"


# --- The command ---

def status(argv, capsys):
    """main's exit status, and what it printed on both streams."""
    try:
        train.main(argv)
        code = 0
    except SystemExit as end:
        code = end.code
    return code, *capsys.readouterr()


def test_the_papers_model_is_planned_without_its_memory(capsys, tmp_path, monkeypatch):
    """Its weights alone are 14 GB."""
    resource = pytest.importorskip("resource")
    monkeypatch.setattr(train, "OUTPUTS", tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code, out, err = status(["base", "--preset", "paper", "--plan", "--gpus", "64"], capsys)
    assert code == 0 and not err and "3,554,414,086" in out and "2,500,000 steps of 2,048" in out
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2e6, "kilobytes; nothing may be allocated"
    assert max(map(len, out.splitlines())) <= 110, "it is read in a terminal"
    assert not list(tmp_path.iterdir()), "a plan writes nothing"


def test_days_are_flop_over_speed():
    preset = small.preset(steps=1000, batch=64)
    flop = train.Plan(preset, train.Machines()).step["plain"] * 1000 * 64
    plan = train.Plan(preset, train.Machines(peak=flop / 86400 / 1e12 * 4, share=0.25))
    assert plan.gpu_days("plain") == pytest.approx(1), "a quarter of a peak that would do it in a quarter of a day"
    assert 1.1 < plan.gpu_days("recomputed") < 4 / 3, "most of forward twice, and backward's two: nearly 4 instead of 3"


def test_a_gpu_takes_the_largest_even_part_that_fits():
    preset = small.preset(batch=48)
    roomy = train.Plan(preset, train.Machines(gpus=2))
    assert roomy.pictures == roomy.part == 24
    held = sum(roomy.states(sharded=True).values())
    tight = train.Machines(gpus=2, memory=(held + roomy.kept["plain"].bytes(10)) / (1 - train.RESERVE) / 1e9 + 1e-9)
    assert train.Plan(preset, tight).pictures == 8, "ten would fit, eight is the largest of them that divides 24"
    assert train.Plan(preset, tight, recomputed=True).pictures == 24, "recomputed, they all fit"
    assert train.Plan(preset, tight, pictures=12).pictures == 12, "what is asked for is planned, fitting or not"


def test_options_reach_the_plan(capsys):
    code, out, _ = status("upsampler --plan --steps 7 --batch 12 --crop 64 --gpus 3 --per-gpu 2 --memory 40 --peak 100"
                          " --share 0.5 --recompute".split(), capsys)
    assert code == 0
    for words in ("tiny upsampler: 7 steps of 12 pictures, 64 × 64 pixels, on 3 GPUs",
                  "4 pictures: 2 × 2, which is --parts 2", "40 GB",
                  "50% (--share) of 100 TFLOP/s"):
        assert words in out, f"{words!r} should be in the plan"


@pytest.mark.parametrize("argv", [
    "base --plan --gpus 7", "base --plan --per-gpu 7", "base --plan --per-gpu 128", "base --plan --lr 0.1",
    "base --plan --out x", "base --plan --resume", "base --plan --crop 32", "base --plan --seed 1", "judge --plan",
    "base --gpus 2", "base --per-gpu 2", "base --share 0.5", "base --memory 40",
    "base --plan --share 1.5", "base --plan --share 0", "base --plan --peak -1", "base --plan --memory nan",
    "base --plan --peak inf", "base --plan --gpus 0", "base --plan --preset huge"])
def test_a_plan_refuses_what_means_nothing(argv, capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "OUTPUTS", tmp_path)
    code, out, err = status(argv.split(), capsys)
    assert code == 2 and not out and "Traceback" not in err, f"{argv}: {err}"
    assert len(err.strip().splitlines()[-1]) > 30 and not list(tmp_path.iterdir())
