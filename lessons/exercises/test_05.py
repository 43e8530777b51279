"""Exercises of lesson 5: classifier-free guidance, the gradient of a noised CLIP, and what that CLIP learns from."""
from expect import close, holds, same
from oracles import form, unchanged
from pytest import fixture
from torch import arange, cat, equal, eye, full_like, nn, no_grad, tensor, zeros_like
from torch.nn.functional import cross_entropy, normalize

SHAPE = 3, 3, 5, 4          # B, C, H, W
T = tensor([3, 500, 998])


def differs(asked, got, wrong, idea):
    """One known mistake: got must not be what it gives."""
    holds(asked, "what that mistake gives", bool((got - wrong).abs().max() > 1e-3), idea)


# --- 5.1 ---

class Network:
    """A denoiser that reads all of its conditioning, and counts what it is asked."""

    def __init__(self):
        self.prepared, self.ready = 0, []

    def prepare(self, **cond):
        self.prepared += 1
        return cond | {"ready": cond["mask"]}

    def __call__(self, x, t, tokens, mask, low_res, ready=None):
        rows = {"x": len(x), "t": len(t), "tokens": len(tokens), "mask": len(mask), "low_res": len(low_res)}
        holds("what the network is given in one call has a row for each image", f"rows: {rows}",
              len({*rows.values()}) == 1, "for two branches in one batch everything is doubled: x, t and each tensor"
              " of the conditioning")
        self.ready.append(ready is not None)
        level, word = t.view(-1, 1, 1, 1) / 1000, ((tokens + 9) * mask).sum(1).view(-1, 1, 1, 1) / 10
        noise = (x + word).sin() * (1 + level) + low_res
        return cat([noise, (x * (word + 1)).cos() - low_res * level], dim=1)


class Question:
    """Images, captions of which the second one has two tokens and the third none, and the answers to both branches."""

    def __init__(self, m, draw, rng):
        self.m, self.x, self.low_res, self.scale = m, draw(*SHAPE), draw(*SHAPE), rng.uniform(2.5, 6)
        self.tokens = tensor([[rng.randint(3, 30) for _ in range(4)] for _ in range(3)])
        self.mask = arange(4) < tensor([[4], [2], [0]])
        self.cond = dict(tokens=self.tokens, mask=self.mask, low_res=self.low_res)
        network = Network()
        self.told = network(self.x, T, **self.cond)
        self.untold = network(self.x, T, self.tokens, zeros_like(self.mask), self.low_res)
        self.eps, self.eps_empty = self.told[:, :3], self.untold[:, :3]

    def guided(self, scale):
        return self.m.classifier_free(Network(), scale)(self.x, T, **self.cond)

    def noise(self, scale):
        return self.guided(scale)[:, :3]


@fixture
def q(m, draw, rng):
    return Question(m, draw, rng)


def test_5_1_answers_like_a_denoiser(q):
    before = {name: value.clone() for name, value in q.cond.items()}
    form("classifier_free(model, 3)(x, t, **cond) for x of [3, 3, 5, 4]", q.guided(3.0), [3, 6, 5, 4], "float32",
         "a guided denoiser is a denoiser: as many channels for each image as in the model's own answer")
    unchanged("classifier_free(model, 3)(x, t, **cond)", *((value, before[name]) for name, value in q.cond.items()))


def test_5_1_the_second_branch_is_not_told_the_prompt(q):
    got = q.noise(q.scale)
    differs("the noise channels, unlike those of the model with the prompt", got, q.eps,
            "the second branch was told the prompt too: its mask must be False everywhere")
    differs("the noise channels, unlike those of the model without a prompt", got, q.eps_empty,
            "the first branch was not told the prompt: only the second half of the batch has an empty mask")


def test_5_1_branches_are_not_swapped(q):
    differs(f"the noise channels at s = {q.scale:.2f}, unlike ε_c + s·(ε_∅ - ε_c)", q.noise(q.scale),
            q.eps + q.scale * (q.eps_empty - q.eps), "the branches are swapped, or the mask of the wrong half is empty:"
            " guidance goes from ε_∅ towards ε_c and beyond, and not away from the prompt")


def test_5_1_the_scale_has_glides_form(q):
    for wrong, formula in ((1 + q.scale) * q.eps - q.scale * q.eps_empty, "(1+s)·ε_c - s·ε_∅"), (
            q.eps_empty + (q.scale - 1) * (q.eps - q.eps_empty), "ε_∅ + (s-1)·(ε_c - ε_∅)"):
        differs(f"the noise channels at s = {q.scale:.2f}, unlike {formula}", q.noise(q.scale), wrong,
                "that is another form of the scale: here s = 1 is the model as trained, and s = 0 ignores the prompt")


def test_5_1_noise_lies_on_the_line_between_two_guesses(q):
    for scale, idea in ((1.0, "s = 1 is the model with the prompt"), (
            0.0, "s = 0 is the model without a prompt, but with all else as it is"), (q.scale, "no number is left out"),
                        (-1.5, "a scale may be negative")):
        close(f"the noise channels at s = {scale:.2f}", q.noise(scale), q.eps_empty + scale * (q.eps - q.eps_empty),
              f"ε̂ = ε_∅ + s·(ε_c - ε_∅), from the first half of both answers' channels: {idea}")


def test_5_1_the_variance_is_not_guided(q):
    got = q.guided(q.scale)[:, 3:]
    differs("the variance channels, unlike v_∅ + s·(v_c - v_∅)", got, q.untold[:, 3:] + q.scale * (q.told - q.untold)[
        :, 3:], "the variance channels were guided too: GLIDE guides the noise only")
    close("the variance channels", got, q.told[:, 3:], "the variance is the one that the model answers with the prompt")


def test_5_1_prepares_the_prompt_once(m, q):
    network = Network()
    guided = m.classifier_free(network, q.scale)
    ready = m.diffusion.prepare(guided, **q.cond)
    answers = [guided(q.x, T, **ready) for _ in range(3)]
    holds("guided.prepare(**cond) and three steps: the model prepares its conditioning before the first",
          f"{network.prepared} calls of model.prepare", network.prepared in (1, 2), "what depends on the prompt alone"
          " is computed once, by guided.prepare, which calls diffusion.prepare(model, …), and not at each step")
    same("whether the model was given what its prepare returned", {*network.ready}, {True},
         "what prepare returned is passed on to the model")
    close("the answer to prepared conditioning", answers[2], q.guided(q.scale), "prepare saves time, and no more")


# --- 5.2 ---

class Clip(nn.Module):
    """f(x, t) = tanh(W·x + t/1000): a similarity whose gradient is known by hand."""

    def __init__(self, draw):
        super().__init__()
        self.weight = nn.Parameter(draw(60, 7) / 8)

    def image(self, x, t):
        return (x.flatten(1) @ self.weight + t[:, None] / 1000).tanh()

    @no_grad()
    def slope(self, x, t, text):
        """∇_x f·g"""
        return ((1 - self.image(x, t).square()) * text @ self.weight.T).view(x.shape)


class Pull:
    """A CLIP, images and captions, and the gradient that clip_guidance returns for them."""

    def __init__(self, m, draw, rng):
        self.m, self.clip, self.x, self.text = m, Clip(draw), draw(*SHAPE), normalize(draw(3, 7), dim=1)
        self.scale = rng.uniform(0.5, 4)
        self.slope = self.clip.slope(self.x, T, self.text)

    def __call__(self, scale, text=None, rows=slice(None)):
        text = self.text[rows] if text is None else text
        grad_fn = self.m.clip_guidance(self.clip, text, scale)
        try:
            with no_grad():
                return grad_fn(self.x[rows], T[rows])
        except RuntimeError as error:
            holds("grad_fn(x, t) as samplers call it, under torch.no_grad", f"an error: {error}",
                  "does not require grad" not in str(error), "samplers run without gradients: inside grad_fn they must"
                  " be switched on, with torch.enable_grad, and x needs one")
            raise


@fixture
def pull(m, draw, rng):
    return Pull(m, draw, rng)


def test_5_2_works_where_gradients_are_off(pull):
    form("grad_fn(x, t) for x of [3, 3, 5, 4]", pull(1.0), SHAPE, "float32",
         "the gradient with respect to x has the form of x")


def test_5_2_pulls_uphill(pull):
    holds("grad_fn(x, t) and the direction in which the similarity rises: their product", "it is negative",
          bool((pull(1.0) * pull.slope).sum() > 0), "the sign: guidance climbs the similarity, and samplers add it")


def test_5_2_is_the_slope_of_the_logit(pull):
    one = slice(0, 1)
    size = float((pull(1.0, rows=one) * pull.slope[one]).sum() / pull.slope[one].square().sum())
    holds("the gradient of a single image at scale 1, in terms of ∇ f·g", f"{size:.4g} times that, not 100 times",
          not any(abs(size / wrong - 1) < 0.01 for wrong in (1, 0.01, 10, 10_000)),
          "what is differentiated is the logit: LOGIT_SCALE, 100, times the similarity")


def test_5_2_images_do_not_share_a_gradient(pull):
    close("the gradient of the first of three images, divided by 100·∇ f·g's largest number",
          pull(1.0)[:1] / 100 / pull.slope.abs().max(), pull(1.0, rows=slice(0, 1)) / 100 / pull.slope.abs().max(),
          "logits are summed over the batch, not averaged: an image's gradient does not depend on how many others there"
          " are")


def test_5_2_any_scale_and_caption(pull):
    for text, words in (pull.text, "a caption for each image"), (pull.text[1:2], "one caption for all"):
        want = 100 * pull.scale * pull.clip.slope(pull.x, T, text)
        close(f"grad_fn(x, t) with {words}, s = {pull.scale:.2f}", pull(pull.scale, text), want,
              "s·100·∇_x f(x, t)·g, at the x and t of the call: the scale multiplies the gradient")


def test_5_2_trains_nothing(m, pull):
    x = pull.x.clone()
    m.clip_guidance(pull.clip, pull.text, 1.0)(x, T)
    holds("the CLIP's weights after grad_fn(x, t)", "they have a gradient", pull.clip.weight.grad is None,
          "no weight gets a gradient: torch.autograd.grad asks for that of x alone, and backward fills all of them")
    holds("x after grad_fn(x, t)", "it has changed, or is marked as requiring a gradient",
          equal(x, pull.x) and not x.requires_grad, "the caller's x is left alone: detach it first")


# --- 5.3 ---

class Lesson:
    """Five images and captions, of which each states three things; the truth, and the loss by hand."""

    def __init__(self, m, draw, rng):
        self.m, self.rng, self.images, self.texts = m, rng, normalize(draw(5, 9), dim=1), normalize(draw(5, 9), dim=1)
        self.own = tensor([[10 * i + rng.randint(0, 9)] * 3 for i in range(5)])          # all different

    def __call__(self, said=None, shown=None, images=None, texts=None):
        said, shown = self.own if said is None else said, self.own if shown is None else shown
        images, texts = self.images if images is None else images, self.texts if texts is None else texts
        return self.m.contrastive_loss(images, texts, said.clone(), shown.clone())

    def both(self, said, shown):
        """(which caption?, which image?): each [5], with logarithms shared among all that are true."""
        logs = 100 * self.images.double() @ self.texts.double().T
        right = [[all(a in (b, -1) for a, b in zip(c, i)) for c in said.tolist()] for i in shown.tolist()]
        losses = []
        for logits, true in (logs, right), (logs.T, [*zip(*right)]):
            rows = logits.log_softmax(1).tolist()
            losses.append(tensor([-sum(x for x, yes in zip(row, which) if yes) / sum(which)
                                  for row, which in zip(rows, true)]))
        return losses


@fixture
def clip_loss(m, draw, rng):
    return Lesson(m, draw, rng)


def test_5_3_is_one_number_for_each_pair(clip_loss):
    form("contrastive_loss of five images and captions", clip_loss(), [5], "float32", "each pair has a loss of its own")
    images = clip_loss.images.clone().requires_grad_()
    holds("contrastive_loss(…).requires_grad", "False", clip_loss(images=images).requires_grad,
          "nothing can be learned from a loss without gradient")


def test_5_3_similarities_become_logits(clip_loss):
    close("the loss where each image is its caption's vector, and all are at right angles",
          clip_loss(images=eye(5), texts=eye(5)), [0] * 5, "similarities are multiplied by LOGIT_SCALE, 100: from -1"
          " to 1 they are too flat for a softmax")


def test_5_3_asks_both_questions(clip_loss):
    (captions, images), got = clip_loss.both(clip_loss.own, clip_loss.own), clip_loss()
    for wrong, words in (captions, "which caption is this image's?"), (images, "which image is this caption's?"):
        differs(f"the loss, unlike that of a single question: {words}", got, wrong,
                "one direction only: an image chooses among captions, and a caption among images")
    differs("the loss, unlike the sum of both questions'", got, captions + images,
            "both questions' losses are averaged, not added")
    close("the loss of five captions that state different things", got, (captions + images) / 2,
          "½·(which caption? + which image?), each the cross-entropy of a softmax over the batch")


def test_5_3_what_is_true_of_several_is_shared(clip_loss):
    said = clip_loss.own.clone()
    said[1] = said[0]                                       # two captions state the same
    logits, diagonal = 100 * clip_loss.images @ clip_loss.texts.T, arange(5)
    alone = [cross_entropy(x, diagonal, reduction="none") for x in (logits, logits.T)]
    differs("the loss where two captions state the same, unlike CLIP's", clip_loss(said, said), sum(alone) / 2, "the"
            " diagonal is not all the truth: the right answer is shared among all captions that are true")
    flat = full_like(clip_loss.images, 1 / 3)
    close("the loss where all vectors are alike", clip_loss(said, said, flat, flat), tensor([5.0] * 5).log(),
          "the targets of each question add up to 1: they are shared out, not each counted fully")
    close("the loss where two captions state the same", clip_loss(said, said), sum(clip_loss.both(said, said)) / 2,
          "the right answer is shared equally among all captions that are true")


def test_5_3_a_caption_may_be_silent(clip_loss):
    shown = clip_loss.own.clone()
    shown[1, 0] = shown[0, 0]
    said = shown.clone()
    said[0, 1:] = -1                                        # true of images 0 and 1; caption 1 is true of its own alone
    close("the loss where the first caption says little, and is true of two images", clip_loss(said, shown),
          sum(clip_loss.both(said, shown)) / 2, "said = -1 means that a caption is silent there, so it is true whatever"
          " is shown, if its other statements are; each question's answer is shared among its own true ones")


def test_5_3_any_truth(clip_loss):
    rng = clip_loss.rng
    shown = tensor([[rng.randint(0, 1) for _ in range(3)] for _ in range(5)])
    shown[4, 2] = -1                                        # an image that shows no second thing
    said = shown.clone()
    for i in range(5):
        said[i, rng.randint(0, 2)] = -1
    close("the loss of random statements", clip_loss(said, shown), sum(clip_loss.both(said, shown)) / 2,
          "caption j is true of image i if all that said[j] states is in shown[i]; captions are shared among an image's"
          " true ones, and images among a caption's")
