"""Exercises of lesson 8: training. A tiny network learns from a data set of random images."""
import math
from collections import Counter
from copy import deepcopy

from expect import close, holds, same
from torch import Generator, autograd, cat, manual_seed, nn, optim, randint, uint8, zeros

B = 8                                             # images a step
optim.AdamW([nn.Parameter(zeros(1))])             # the first one takes seconds, which no exercise is to be charged for


class Pictures:
    """A data set of random images; its captions are their positions, as letters. Every fifth has replaced a bad one."""

    def __init__(self, side):
        self.side = side

    def __getitem__(self, position):
        """-> image, caption, caption again, reasons"""
        image = randint(0, 256, (3, self.side, self.side), dtype=uint8, generator=Generator().manual_seed(position))
        caption = "".join(chr(97 + int(digit)) for digit in str(position))
        return image, caption, caption, [("a broken image", caption)] * (position % 5 == 0)


def preset(course, kind="base", dropout=0.0, timesteps=20, **training):
    """A preset so small that a step takes hundredths of a second."""
    text = course[2].TextConfig(257, 6, 16, 1, 2)
    network = course[3].UNetConfig(16, (1,), 1, (), 6 if kind == "upsampler" else 3, head_channels=8, dropout=dropout,
                                   groups=4, text=text)
    process = course[4].DiffusionConfig("cosine", timesteps, "v")
    options = {"steps": 100, "batch": B, "lr": 0.01, "text_lr": 0.002, "caption_dropout": 0.0} | training
    return course[8].Preset(kind, network, process, 64 if kind == "upsampler" else 8, course[8].TrainConfig(**options))


def trainer(m, course, draw=None, seed=3, **options):
    """A Trainer; with draw its weights are random ones, so that its network does not answer zero."""
    compute = course[8].ComputeConfig(dtype="float32", grad_accum=options.pop("parts", 1))
    small = preset(course, **options)
    run = m.Trainer(small, data=Pictures(small.size), words=course[1].BPETokenizer([]), seed=seed, compute=compute)
    for p in run.model.parameters() if draw else ():
        p.data.copy_(draw(*p.shape) * 0.7 / max(1, p[0].numel()) ** 0.5)
    run.ema.load_state_dict(run.model.state_dict())
    return run


# --- 8.1 lr_scale ---

def scales(m, course, at, **training):
    """The fractions at these steps."""
    config = course[8].TrainConfig(**training)
    return [float(m.lr_scale(step, config)) for step in at]


def test_8_1_warms_up(m, course, rng):
    w = rng.randrange(3, 9)
    close(f"the first {w + 3} fractions with warmup={w}", scales(m, course, range(w + 3), steps=1000, warmup=w),
          [min(1, (n + 1) / (w + 1)) for n in range(w + 3)],
          "the warm-up is (n+1)/(w+1): step 0 moves already, and after w steps the rate is whole")


def test_8_1_no_warm_up(m, course):
    close("the fractions at steps 0, 1, 500 and 999 with warmup=0, decay=False",
          scales(m, course, (0, 1, 500, 999), steps=1000), [1, 1, 1, 1],
          "without warm-up and decay the rate is constant, from the first step on")


def test_8_1_decays(m, course, rng):
    steps = rng.randrange(100, 1000, 4)
    got = scales(m, course, range(0, steps + 1, steps // 4), steps=steps, decay=True)
    close(f"the fractions with decay at the start, the middle and the end of {steps} steps", got[::2], [1, 0.5, 0],
          "the decay is ½·(1 + cos(π·n/N)): 1 at the start, ½ half-way, 0 at the end")
    close("the fractions with decay after one and three quarters of the steps", got[1::2],
          [0.5 + 0.125 ** 0.5, 0.5 - 0.125 ** 0.5], "down along half a cosine: slow at first and last, not straight")


def test_8_1_both(m, course, rng):
    for _ in range(5):
        steps, w, decay = rng.randrange(50, 500), rng.randrange(1, 40), rng.random() < 0.7
        at = [rng.randrange(steps) for _ in range(5)] + [0, w - 1, w, w + 1]
        want = [min(1, (n + 1) / (w + 1)) * (0.5 + 0.5 * math.cos(math.pi * n / steps) if decay else 1) for n in at]
        close(f"the fractions at steps {at} of {steps}, with warmup={w}, decay={decay}",
              scales(m, course, at, steps=steps, warmup=w, decay=decay), want,
              "the warm-up multiplies the decay, which counts from step 0 of the whole run")


# --- 8.2 Trainer.batch ---

def test_8_2_tensors_and_reasons(m, course):
    answer = trainer(m, course).batch(4)
    holds("batch returns two things: a dictionary and a list", f"{type(answer).__name__}",
          type(answer) is tuple and len(answer) == 2 and type(answer[0]) is dict, "the questions, and the reasons")
    batch = answer[0]
    same("the shapes of the dictionary's tensors", {name: list(value.shape) for name, value in sorted(batch.items())},
         {"mask": [B, 6], "noise": [B, 3, 8, 8], "t": [B], "tokens": [B, 6], "x0": [B, 3, 8, 8]},
         "all that `loss` needs is in the batch: x0, t, noise and the conditioning")
    same("their types", {name: str(batch[name].dtype) for name in ("noise", "mask", "t", "x0")},
         {"noise": "torch.float32", "mask": "torch.bool", "t": "torch.int64", "x0": "torch.float32"},
         "images are float32, timesteps are indices, and a mask is True or False")


def test_8_2_which_images(m, course):
    batch, data = trainer(m, course).batch(5)[0], Pictures(8)
    images = [data[5 * B + i][0] for i in range(B)]
    close("x0 of step 5", batch["x0"], cat([image[None] for image in images]).float() / 127.5 - 1,
          "step n takes the positions n·B … n·B + B - 1, as values from -1 to 1", tolerance=1e-5)
    tokens = [[course[1].ID_OF_BYTE[ord(letter)] for letter in data[5 * B + i][1]] for i in range(B)]
    same("the first two tokens of step 5", batch["tokens"][:, :2].tolist(), tokens, "each image with its own caption")


def shown(run, steps):
    """How many captions are shown in each of these steps."""
    return [run.batch(step)[0]["mask"].any(1).sum().item() for step in range(steps)]


def test_8_2_dropped_in_the_mask(m, course):
    """Whole rows of the mask, and all other rows as they are."""
    runs = [trainer(m, course, caption_dropout=fraction) for fraction in (0.5, 0.0)]
    for step in range(3):
        mask, whole = runs[0].batch(step)[0]["mask"], course[8].Trainer.batch(runs[1], step)[0]["mask"]
        close("each mask: that of the caption, or False everywhere", mask, whole & mask.any(1)[:, None],
              "dropping is in the mask: one that is False everywhere is the empty caption")


def test_8_2_reasons(m, course):
    same("the reasons for bad examples of step 5", trainer(m, course).batch(5)[1],
         [("a broken image", name) for name in ("ea", "ef")],
         "what had to be skipped is counted: the reasons of all examples, in one list")


def test_8_2_the_fraction_that_is_dropped(m, course, rng):
    dropped = 1 - sum(shown(trainer(m, course, seed=rng.randrange(1000), caption_dropout=0.65), 60)) / (60 * B)
    close("the fraction of 480 captions that are dropped with caption_dropout=0.65", [dropped], [0.65],
          "caption_dropout is the probability that a caption is dropped, not that it is kept", tolerance=0.2)


def test_8_2_each_caption_has_its_own_chance(m, course):
    mixed = sum(0 < n < B for n in shown(trainer(m, course, caption_dropout=0.5), 10))
    holds("with caption_dropout=0.5, steps in which some captions are dropped and some are not",
          f"{mixed} of 10 steps", mixed >= 6, "each caption has its own chance, not the whole batch at once")


def test_8_2_every_timestep(m, course):
    """With as many timesteps as images, every one occurs once: a batch is spread evenly over all of them."""
    for step in range(3):
        t = trainer(m, course, timesteps=20, batch=20).batch(step)[0]["t"]
        same("the 20 timesteps of a batch, if there are 20 in all", sorted(t.tolist()), list(range(20)),
             "timesteps range from 0 to the last, both included, and are spread evenly: see Trainer.timesteps")


def test_8_2_more_of_the_noisy_ones(m, course):
    t = trainer(m, course, timesteps=100, batch=20, high_noise_fraction=0.5).batch(3)[0]["t"]
    same("of 20 timesteps from 0 to 99, those of 60 or more, with high_noise_fraction=0.5", (t >= 60).sum().item(), 14,
         "half of the batch is drawn from the noisiest two fifths alone, the rest from all (0.5 + 0.5·0.4)")


def test_8_2_each_image_has_its_own_noise(m, course):
    runs = trainer(m, course, seed=1), trainer(m, course, seed=2)
    noise = cat([run.batch(step)[0]["noise"] for run in runs for step in (0, 1)]).reshape(4 * B * 3, -1)
    alike = ((noise[:, None] - noise).abs().amax(2) < 1e-3).sum().item() - len(noise)
    holds("the noise of two steps with seed 1 and two with seed 2: no two channels of any images have the same",
          f"{alike // 2} pairs have", alike == 0, "noise of its own for every (seed, step, example), in each channel")


def test_8_2_unit_noise(m, course, rng):
    run = trainer(m, course, seed=rng.randrange(1000))
    noise = cat([run.batch(step)[0]["noise"] for step in range(6)])
    close("mean and spread of 9,216 numbers of noise", [noise.mean().item(), noise.std().item()], [0.0, 1.0],
          "the noise is Gaussian, of mean 0 and variance 1", tolerance=0.06)


def test_8_2_the_same_step_the_same_batch(m, course):
    run, again = trainer(m, course, caption_dropout=0.5), trainer(m, course, caption_dropout=0.5)
    first = run.batch(3)[0]
    manual_seed(99)
    run.batch(4)
    for second, name in (run.batch(3)[0], "the same trainer"), (again.batch(3)[0], "another trainer of the same seed"):
        for key in "x0", "t", "noise", "mask":
            close(f"{key} of step 3, asked for once more of {name}", second[key], first[key],
                  "a batch is a function of the step alone, so a run that was stopped goes on with the same bits")


def test_8_2_shared_among_processes(m, course):
    """Whoever makes an example, it is the same."""
    run = trainer(m, course, caption_dropout=0.5)
    whole = run.batch(2)[0]
    for rank in range(2):
        run.indices = range(rank, B, 2)                      # as in process `rank` of two
        share = run.batch(2)[0]
        for key in "x0", "t", "noise", "mask":
            close(f"{key} of process {rank} of two", share[key], whole[key][rank::2],
                  "random numbers belong to an example, not to its place in a process's share of the batch")


def test_8_2_an_upsamplers_batch(m, course):
    batch = trainer(m, course, kind="upsampler", crop=32).batch(0)[0]
    same("the shapes of x0 and low_res with crop=32", [list(batch["x0"].shape), list(batch["low_res"].shape)],
         [[B, 3, 32, 32], [B, 3, 8, 8]], "the conditioning knows of crops: config.crop is handed on to it")
    small = nn.functional.avg_pool2d(batch["x0"], 4)
    close("low_res", batch["low_res"], small, "low_res is x0 reduced four times", tolerance=0.5 / 127.5 + 1e-3)


# --- 8.3 Trainer.update_ema ---

def averaged(m, course, draw, step, ema=0.999):
    """(the average before, the weights, the average after one update) after so many steps, each as one vector"""
    run = trainer(m, course, draw, ema=ema)
    for p in run.ema.parameters():
        p.copy_(draw(*p.shape))
    run.step, before, weights = step, flat(run.ema), flat(run.model)
    run.update_ema()
    return before, weights, flat(run.ema), run


def flat(network):
    """All weights of a network as one vector, a copy."""
    return cat([p.detach().flatten() for p in network.parameters()]).clone()


def share(before, weights, after):
    """How much of the old average is in the new one: d."""
    off = before - weights
    return ((after - weights) @ off / (off @ off)).item()


def test_8_3_moves_the_average_alone(m, course, draw):
    before, weights, after, run = averaged(m, course, draw, 50)
    close("the weights afterwards", flat(run.model), weights, "the average moves; the weights stay as they are")
    holds("the average afterwards", "the average as it was", ((after - before).abs().max() > 1e-3).item(),
          "the average of recent weights moves a little at every step, in place")


def test_8_3_no_shared_memory(m, course, draw):
    _, _, after, run = averaged(m, course, draw, 20)
    for p in run.model.parameters():
        p.data.add_(1.0)
    close("the average, after the weights have changed in place", flat(run.ema), after,
          "the average has tensors of its own: if it shares the weights' memory, it is no average but the weights")


def test_8_3_nothing_to_learn(m, course, draw):
    run = averaged(m, course, draw, 20)[3]
    holds("no part of the average requires a gradient", "some do",
          not any(p.requires_grad for p in run.ema.parameters()),
          "averaging is not differentiated: with a graph, every step would keep all those before it")


def test_8_3_one_mixture_for_all_weights(m, course, draw):
    before, weights, after, _ = averaged(m, course, draw, 20)
    d = share(before, weights, after)
    close("the new average as d·avg + (1-d)·weights, with one d", after, d * before + (1 - d) * weights,
          "avg ← d·avg + (1-d)·weights, for every one of the weights, and the two shares are 1 together")
    holds("d, the share of the old average", f"{d:.4g}", 0 < d < 1, "something of both is in the new average")


def test_8_3_the_larger_share_is_the_past(m, course, draw):
    d = share(*averaged(m, course, draw, 10 ** 6, 0.99)[:3])
    close("d, the share of the old average in the new one, late in a run with ema=0.99", [d], [0.99],
          "avg ← d·avg + (1-d)·weights: d is the share of the past" if abs(d - 0.01) < 1e-3 else
          "late in a run d is the config's ema", tolerance=1e-3)


def test_8_3_a_short_memory_at_first(m, course, draw):
    for n, ema in (1, 0.999), (80, 0.999), (3, 0.5), (50, 0.5):
        d = share(*averaged(m, course, draw, n, ema)[:3])
        close(f"d after {n} steps with ema={ema}", [d], [min(ema, (1 + n) / (10 + n))],
              "d = min(ema, (1+n)/(10+n)): at first there is little worth remembering, so the memory is short",
              tolerance=1e-3)


# --- 8.4 Trainer.train_step ---

def easy(run):
    """A loss that takes a thousandth of a second: two layers, one of each learning rate, are to answer zero."""
    def loss(batch):
        image, words = run.model.input_conv(batch["x0"]), run.model.text.tokens(batch["tokens"])
        return image.flatten(1).square().mean(1) + words.flatten(1).square().mean(1)
    return loss


def ready(m, course, draw, scale=1.0, loss=easy, **options):
    """A trainer with random weights, a batch, and what its optimizer sees at each step: a list of gradients.

    scale  by which the loss is multiplied;  loss  None: the diffusion's own
    """
    run, seen = trainer(m, course, draw, **options), []
    loss = loss(run) if loss else run.loss
    run.loss = lambda batch: scale * loss(batch)
    run.optimizer.register_step_pre_hook(lambda optimizer, *_: seen.append(gradient(run)))
    return run, course[8].Trainer.batch(run, 0)[0], seen


def gradient(run):
    """All gradients of a model as one vector, a copy; zeros where there are none."""
    return cat([(p.new_zeros(p.shape) if p.grad is None else p.grad).flatten() for p in run.model.parameters()]).clone()


def true_gradient(run, batch):
    """The gradient of the mean loss of a batch, without train_step."""
    weights = list(run.model.parameters())
    parts = autograd.grad(run.loss(batch).mean(), weights, allow_unused=True)
    return cat([(zeros(p.shape) if g is None else g).flatten() for p, g in zip(weights, parts)])


def test_8_4_tells_of_the_loss(m, course, draw):
    run, batch, _ = ready(m, course, draw)
    want, metrics = run.loss(batch).mean().item(), run.train_step(batch)
    same("what train_step returns", {name: type(value).__name__ for name, value in metrics.items()},
         {"bad": "int", "grad_norm": "float", "loss": "float", "stop": "bool"}, "plain numbers, which go into the log")
    close("the loss that it tells", [metrics["loss"]], [want],
          "the mean of the loss of each example, with the weights as they were before the step", tolerance=1e-3)


def test_8_4_corrects(m, course, draw):
    run, batch, seen = ready(m, course, draw)
    before = run.loss(batch).mean().item()
    run.train_step(batch)
    same("how often the optimizer steps", len(seen), 1, "one step of the optimizer corrects the weights")
    same("trainer.step afterwards", run.step, 1, "the step counter: every step adds one")
    after = run.loss(batch).mean().item()
    holds("a smaller loss after the step", f"{after:.5g} after {before:.5g}", after < before,
          "backward makes the gradients, and the optimizer steps while they are there")


def test_8_4_clips_before_the_step(m, course, draw):
    run, batch, seen = ready(m, course, draw, 100.0)
    want = true_gradient(run, batch)
    run.train_step(batch)
    close("the length of the step's gradient, which was longer than 1", [seen[-1].norm().item()], [1.0],
          "clipping comes before the step: all gradients together are made at most 1 long", tolerance=0.01)
    close("its direction", seen[-1], want / want.norm(), "clipping scales all gradients by one number", tolerance=1e-3)


def test_8_4_does_not_stretch(m, course, draw):
    run, batch, seen = ready(m, course, draw, 1e-3)
    want = true_gradient(run, batch).norm().item()
    metrics = run.train_step(batch)
    close("the length of a gradient that is shorter than 1, thousand times", [1000 * seen[-1].norm().item()],
          [1000 * want], "a short gradient is left as it is: g·min(1, 1/‖g‖)", tolerance=1e-3)
    close("the grad_norm that is told of it, thousand times", [1000 * metrics["grad_norm"]], [1000 * want],
          "grad_norm is the length of all gradients together", tolerance=0.02)


def test_8_4_the_rate_of_this_step(m, course, draw):
    """Adam's first step moves every weight by the rate, whatever its gradient: g/√(g²)."""
    run, batch, _ = ready(m, course, draw, warmup=3)
    before = deepcopy(run.model)
    run.train_step(batch)
    for what, rate, layer in ("the U-Net", 0.01, "input_conv"), ("the text encoder", 0.002, "text.tokens"):
        moved = run.model.get_submodule(layer).weight - before.get_submodule(layer).weight
        close(f"how far step 0 moves the weights of {what}, in hundredths, with a rate of {rate} and warmup=3",
              [100 * moved.abs().max().item()], [100 * rate / 4], "before the step each group's lr is set to its own"
              " rate times lr_scale of this step's number", tolerance=0.01)


def test_8_4_averages_after_the_step(m, course, draw):
    run, batch, _ = ready(m, course, draw)
    before = flat(run.ema)
    run.train_step(batch)
    d = 2 / 11
    close("the average of the weights after step 1", flat(run.ema), d * before + (1 - d) * flat(run.model),
          "the average takes in the weights after they were corrected, when the counter says 1: d = 2/11")


def test_8_4_forgets_the_gradients(m, course, draw):
    run, batch, seen = ready(m, course, draw, 0.01)
    for n in 1, 2:
        want = true_gradient(run, batch)
        run.train_step(batch)
        close(f"the gradient that step {n} corrects by", seen[-1], want,
              "each step's gradient alone: those of the step before must be set to zero, for backward adds to them",
              tolerance=1e-3 * want.abs().max().item())


def test_8_4_in_parts(m, course, draw):
    run, batch, seen = ready(m, course, draw, 0.01, parts=4)
    want, loss = true_gradient(run, batch), run.loss(batch).mean().item()
    metrics = run.train_step(batch)
    same("how often the optimizer steps for a batch in four parts", len(seen), 1, "the parts make one step together")
    close("the gradient of a batch in four parts", seen[-1], want,
          "the gradients of the parts are added up, so each part's mean is divided by their number",
          tolerance=1e-3 * want.abs().max().item())
    close("the loss of a batch in four parts, hundred times", [100 * metrics["loss"]], [100 * loss],
          "the loss of the batch is the mean of the parts' losses: each is divided by their number", tolerance=1e-2)


def memory(run):
    """Adam's averages as one vector."""
    return cat([value.flatten() for state in run.optimizer.state.values() for value in state.values()]).clone()


def spoil(run, what):
    """From now on the loss of one example is NaN or infinite, or a gradient is NaN. -> a function that mends it"""
    whole, extra = run.loss, zeros(B)
    if what == "gradient":
        return run.model.input_conv.weight.register_hook(lambda gradient: gradient * float("nan")).remove
    extra[2] = float("nan") if what == "loss" else float("inf")
    run.loss = lambda batch: whole(batch) + extra
    return lambda: setattr(run, "loss", whole)


def test_8_4_skips_what_is_not_finite(m, course, draw):
    for what in "loss", "gradient", "infinite loss":
        run, batch, _ = ready(m, course, draw)
        run.train_step(batch)
        before, mend = (flat(run.model), flat(run.ema), memory(run)), spoil(run, what)
        run.train_step(batch)
        idea = "infinity is not finite either, even if the gradients are" if what == "infinite loss" else \
            f"a step whose {what} is not finite is skipped: weights, average and Adam's memory stay"
        after = flat(run.model), flat(run.ema), memory(run)
        for name, old, new in zip(("weights", "average", "Adam's memory"), before, after):
            close(f"{name} after a step whose {what.split()[-1]} is not finite", new, old, idea)
        same("trainer.step after it", run.step, 2, "a skipped step counts as a step: its batch must not come again")
        same("trainer.skipped_steps after it", run.skipped_steps, 1, "a skipped step is counted")
        mend()
        run.train_step(batch)
        holds("the step after it is an ordinary one", "weights that have not moved, or are not finite",
              ((flat(run.model) - before[0]).abs().max() > 1e-4).item(),
              "the gradients of a skipped step are forgotten too: NaN plus anything is NaN")


def test_8_4_gives_up(m, course, draw):
    run, batch, _ = ready(m, course, draw)
    taken, loss = 0, run.loss
    for factor, steps in (float("nan"), 9), (1.0, 1), (float("nan"), 12):
        run.loss = lambda batch, factor=factor: factor * loss(batch)
        for _ in range(steps):
            try:
                run.train_step(batch)
                taken += 1
            except ValueError:
                break
    same("how many steps return: nine of which the loss is NaN, a good one, and NaN from then on", taken, 19,
         "ten steps in a row without a finite loss are no accident: ValueError; a good one begins the count anew")


def test_8_4_stops_when_asked(m, course, draw):
    run, batch, _ = ready(m, course, draw)
    for stop, want in ([], False), ([2], True), ((), False):
        same(f"stop in the answer for stop={stop}", run.train_step(batch, stop=stop)["stop"], want,
             "a list that is not empty means: stop after this step")
    caught, loss = [], run.loss
    run.loss = lambda batch: loss(batch) if caught.append(15) is None else None
    same("stop, if a signal arrives while the gradients are computed", run.train_step(batch, stop=caught)["stop"], True,
         "the list is looked at when the gradients are there, so that a signal that arrives meanwhile still counts")


def test_8_4_tells_of_bad_examples(m, course, draw, rng):
    run, batch, _ = ready(m, course, draw)
    counts = [rng.randrange(1, 9) for _ in range(2)]
    run.bad = Counter({"a broken image": counts[0], "an empty caption": counts[1]})
    same("bad, the number of bad examples so far", run.train_step(batch)["bad"], sum(counts),
         "all reasons together, counted in trainer.bad")


def test_8_4_dropout_follows_from_the_step(m, course, draw):
    after, weights = [], None
    for seed in 1, 2:
        run, batch, seen = ready(m, course, draw, loss=None, dropout=0.4)
        weights = weights or {name: value.clone() for name, value in run.model.state_dict().items()}
        run.model.load_state_dict(weights)
        manual_seed(seed)
        run.train_step(batch)
        after.append(seen[-1])
    close("the gradient of a step with dropout, in two runs of the same seed", after[1], after[0],
          "every random number follows from (seed, step), dropout's too: torch's generator is seeded before each part")


def test_8_4_three_steps(m, course, draw):
    """Against a loop that is written out, with an optimizer of its own."""
    run, batch, _ = ready(m, course, draw, 3.0, None, warmup=2, decay=True, steps=7)
    twin, groups, process = deepcopy(run.model), {0.002: [], 0.01: []}, run.process
    for name, p in twin.named_parameters():
        groups[0.002 if name.startswith(("text.", "pool.")) else 0.01].append(p)
    adam = optim.Adam([{"params": params, "rate": rate} for rate, params in groups.items()])
    model = course[7].denoiser_of(twin, twin.config, run.preset.diffusion)
    for step in range(3):
        for group in adam.param_groups:
            group["lr"] = group["rate"] * (step + 1) / 3 * (0.5 + 0.5 * math.cos(math.pi * step / 7))
        (3 * process.loss(model, **batch).mean()).backward()
        nn.utils.clip_grad_norm_(twin.parameters(), 1.0)
        adam.step()
        adam.zero_grad()
        run.train_step(batch)
    off = (flat(run.model) - flat(twin)).abs().mean().item()
    close("how far the weights are off after three steps, in thousandths", [1000 * off], [0.0],
          "ask, compare, clip, set the rate, correct: three times", tolerance=0.1)
