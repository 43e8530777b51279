"""What tests of lessons 2 to 5 share: a process whose tables were computed by hand, and denoisers that are watched."""
from functools import cached_property
from math import prod, sqrt

from expect import close, holds, same
from torch import Generator, Tensor, cat, equal, float64, full_like, tensor

SHAPE = 4, 3, 5, 4          # B, C, H, W: not square, and as wide as the batch is large, so that a wrong axis shows
ROUGH = 1e-3                # a tolerance, where an error of float32 is divided by √ᾱ


def shaped(asked, got, shape, idea):
    """A tensor of this shape."""
    holds(asked, f"something of type {type(got).__name__}", type(got) is Tensor, "a tensor was expected")
    same(f"the shape of {asked}", list(got.shape), list(shape), idea)


def form(asked, got, shape, dtype, idea):
    """A tensor of this shape and type."""
    same(f"the shape of {asked}", list(getattr(got, "shape", [])), list(shape), idea)
    same(f"the type of the numbers in {asked}", str(got.dtype).removeprefix("torch."), dtype, idea)


def refuses(asked, call, idea):
    """call must raise a ValueError."""
    try:
        call()
    except ValueError:
        return
    holds(asked, "no ValueError", False, idea)


def unchanged(asked, *pairs):
    """What was passed to a function, and copies made before."""
    holds(asked, "one of its arguments has other numbers than before", all(equal(now, then) for now, then in pairs),
          "what belongs to the caller is not changed")


def products(betas, kept):
    """ᾱ at the kept timesteps, as plain numbers: the product of 1 - β up to and including each."""
    return [prod(1 - float(beta) for beta in betas[:t + 1]) for t in kept]


def bayes(before, beta):
    """x_{t-1} given x_0 and x_t, by multiplying densities: (share of x_0, share of x_t, variance)."""
    if before == 1:
        return 1.0, 0.0, 0.0
    precision = 1 / (1 - before) + (1 - beta) / beta
    return sqrt(before) / (1 - before) / precision, sqrt(1 - beta) / beta / precision, 1 / precision


class Setting:
    """A process that keeps a few timesteps, of which the first is not 0, and images at timesteps of their own."""

    def __init__(self, m, course, draw, rng, count=6):
        steps = rng.randint(30, 50)
        self.m, self.betas, self.seeds = m, course[4].cosine_betas(steps), [rng.getrandbits(40) for _ in range(4)]
        self.kept = sorted(rng.sample(range(2, steps - 3), count))
        self.own = course[4].Diffusion(self.betas, self.kept)
        later = rng.sample(self.kept[1:], 4)
        self.t, self.later = tensor([self.kept[0], *later[1:]]), tensor(later)   # with the first kept, and without
        self.a = products(self.betas, self.kept)
        self.new_betas = [1 - a / b for a, b in zip(self.a, [1, *self.a])]
        self.shares_x0, self.shares_xt, self.variances = zip(*map(bayes, [1, *self.a], self.new_betas))
        self.x0, self.noise, self.v = draw(*SHAPE).clamp(-0.9, 0.9), draw(*SHAPE), draw(*SHAPE)
        self.x_T, self.off, self.scale = draw(*SHAPE), draw(*SHAPE), rng.uniform(0.3, 0.8)

    @cached_property
    def process(self):
        return self.m.Diffusion(self.betas, self.kept)

    def at(self, numbers, t=None):
        """Each example's number, of a list by kept timesteps: [B, 1, 1, 1] float64."""
        t = self.t if t is None else t
        return tensor([numbers[self.kept.index(k)] for k in t.tolist()], dtype=float64).view(-1, 1, 1, 1)

    def noisy(self, x0, t=None):
        a = self.at(self.a, t)
        return (a.sqrt() * x0 + (1 - a).sqrt() * self.noise).float()

    def short(self, count):
        """Processes of the first timesteps only: (m's, the course's own)."""
        return self.m.Diffusion(self.betas, self.kept[:count]), type(self.own)(self.betas, self.kept[:count])


# --- Denoisers that are watched ---

class Denoiser:
    """Answers a smooth function of all that it is told, and writes down what that was."""

    def __init__(self):
        self.x, self.t, self.words, self.prepared = [], [], [], 0

    def prepare(self, word):
        self.prepared += 1
        return {"word": 2 * word}

    def __call__(self, x, t, word):
        self.x.append(x.clone())
        self.t.append(t.tolist())
        self.words.append(word)
        return self.answer(x, t, word)

    @staticmethod
    def answer(x, t, word):
        level = t.view(-1, 1, 1, 1) / 40
        return cat([0.8 * x * level + word * x.cos(), (2 * x + level).sin()], dim=1)


def drawn(process, sampler, s, **options):
    """What a sampler does: (what the model was asked, what step_fn was given and returned, what callback, the end)."""
    model, stepped, told, x_T = Denoiser(), [], [], s.x_T.clone()

    def step_fn(x, t):
        new = 1.1 * x + t.view(-1, 1, 1, 1) / 90
        stepped.append((t.tolist(), new))
        return new
    options = {"generator": Generator().manual_seed(s.seeds[0])} | options
    end = getattr(process, f"{sampler}_sample")(
        model, x_T, word=s.scale, step_fn=step_fn,
        callback=lambda t, x, x0: told.append((t.tolist(), x.clone(), x0.clone())), **options)
    unchanged(f"{sampler}_sample(model, x_T)", (x_T, s.x_T))
    return model, stepped, told, end


def constant(*channels):
    """A denoiser that always answers these channels, and the list of x that it is shown."""
    seen, answer = [], cat(channels, dim=1)
    return lambda x, t, **cond: seen.append(x.clone()) or answer, seen


def first_of_two(s, sampler, x_T, eps, v=None, **options):
    """The x after the first of two steps of a sampler whose model always answers eps."""
    model, seen = constant(eps, s.v if v is None else v)
    getattr(s.short(2)[0], f"{sampler}_sample")(model, x_T, generator=Generator().manual_seed(s.seeds[0]), **options)
    return seen[1]


def moved(s, sampler):
    """How far grad_fn moves what a process of one step draws, where the gradient is s.off / 10."""
    model, _ = constant(s.noise / 10, s.v)
    sample, x_T = getattr(s.short(1)[0], f"{sampler}_sample"), s.x_T / 10
    return sample(model, x_T, grad_fn=lambda x, t: s.off / 10) - sample(model, x_T)


def spread(asked, x, sigma, idea):
    """The standard deviation of some thousands of images of one pixel, to within what chance allows."""
    holds(asked, f"{x.std():.3f}, not {sigma:.3f}", bool(abs(x.std() / sigma - 1) < 0.07), idea)


# --- Single questions ---

def step_of(s, x0, v=None, **options):
    """p_mean_variance where the noise in x_t was guessed rightly, so that x0 is what is predicted."""
    output = cat([s.noise, s.v if v is None else full_like(s.noise, v)], dim=1)
    return s.process.p_mean_variance(output, s.noisy(x0), s.t, **options)


def losses(s, t, off, v, weights=None):
    """The loss of an answer whose ε is off by `off`, with variance channels v -> (loss, T/1000·bound, the answer)."""
    output = cat([s.noise + off, v], dim=1).requires_grad_()
    bound = s.own.bound(output, s.x0, s.noisy(s.x0, t), t)
    loss = s.process.loss(lambda x, t: 1 * output, s.x0, t, s.noise, weights=weights)
    return loss, len(s.kept) / 1000 * bound, output


def section(rng, size, start=0):
    """(count, timesteps) of a random section, both ends included, in which none lies half-way between two."""
    while True:
        count = rng.randint(2, 40)
        places = [divmod(2 * k * (size - 1), 2 * (count - 1)) for k in range(count)]
        if all(rest != count - 1 for _, rest in places):
            return count, [start + whole + (rest > count - 1) for whole, rest in places]


# --- What both samplers promise ---

def walks_down(s, sampler):
    same("the timesteps that the model is told, from the first call to the last", drawn(s.process, sampler, s)[0].t,
         [[t] * 4 for t in s.kept[::-1]], "the order of timesteps: from the noisiest that is kept to the cleanest, by"
         " their original names, one for each image")


def prepares_once(s, sampler):
    model, *_ = drawn(s.process, sampler, s)
    same("how often the conditioning is prepared", model.prepared, 1,
         "prepare(model, **cond) is called once, before the loop: the prompt stays the same at every step")
    same("the conditioning that the model is given", model.words, [2 * s.scale] * 6,
         "what prepare returned is passed on to the model, at every step")


def tells_onlookers(s, sampler):
    model, stepped, told, end = drawn(s.process, sampler, s)
    for name, calls in ("step_fn", stepped), ("callback", told):
        same(f"the timesteps that {name} is told", [t for t, *_ in calls], [[t] * 4 for t in s.kept[::-1]],
             f"{name} is called once in each step, with the timestep just left")
    for (t, x, x0), (_, new), old, following in zip(told, stepped, model.x, [*model.x[1:], end]):
        close("the x that callback is told", x, new, "callback is told the new x, after step_fn")
        close("what the sampler goes on with", following, new, "the sampler goes on with what step_fn returned")
        want = s.own.p_mean_variance(Denoiser.answer(old, tensor(t), 2 * s.scale), old, tensor(t)).x0
        close("the x0 that callback is told", x0, want,
              "callback is told the predicted x_0 of this step, clipped", tolerance=ROUGH)


def draws_the_same(s, sampler, **options):
    options |= dict(x0_fn=lambda x0: 0.9 * x0 + 0.2, grad_fn=lambda x, t: (x + t.view(-1, 1, 1, 1)).cos())
    (model, _, _, end), (own, _, _, want) = (
        drawn(process, sampler, s, **options, generator=[Generator().manual_seed(seed) for seed in s.seeds])
        for process in (s.process, s.own))
    for i, (got, wanted) in enumerate(zip([*model.x, end], [*own.x, want])):
        close(f"x after {i} steps with all options given", got, wanted, "each step uses x0_fn, grad_fn(x, t) at the"
              " x before the step, and gaussian(x, generator), where there may be a generator for each image",
              tolerance=ROUGH)


def tried(asked, call, idea):
    """What call answers. If tensors do not fit together in it, the idea was missed."""
    try:
        return call()
    except (RuntimeError, IndexError, StopIteration) as error:
        if isinstance(error, NotImplementedError):
            raise
        came = f"{type(error).__name__}: {error}"[:200]
    holds(asked, came, False, idea)


def silence(*layers):
    """Linear layers that answer zero."""
    for layer in layers:
        for p in layer.parameters():
            p.data.zero_()


def far(a, b):
    """The largest difference between two tensors."""
    return (a - b).abs().max().item()
