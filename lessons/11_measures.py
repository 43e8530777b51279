r"""
11 · How good are ten thousand pictures?

One picture is right or wrong (10). A model is more than its pictures one by one: it may draw perfect hearts and nothing
else, and no single heart gives that away. So two *clouds* are compared, one of real and one of generated pictures. In
a cloud a picture is a point: the features that a network has found in it.

    real pictures ───────► features [n, d] ──┐    two Gaussians: how far apart?      FID, without bias FID∞; KID
                                             ├──► who lies in the other's cloud?     precision, recall
    generated pictures ──► features [n, d] ──┘
    generated pictures ──► a classifier ────────► is each clear, are all different?  Inception Score
    … and their captions ► CLIP ────────────────► is it what was asked for?          CLIP score, R-precision
    pictures in pairs ───► people ──────────────► which is better?                   win rate, Elo

No measure says what "good" is, and each one is blind somewhere. FID sees means and covariances only. The Inception
Score never sees a real picture. CLIP's score may come from the network that guided the model. People who see pictures
one pair at a time cannot see what a model never draws.

It adds measures of many pictures at once to 10, each with a way to tell how sure it is. It leaves out Inception, the
network whose features the papers use. Ours are the judge's; other features can be read from .npy files (`compare`).

Papers: FID, Heusel et al. 2017, arXiv 1706.08500 (eq. 6); its bias, Chong & Forsyth 2020, arXiv 1911.07023; KID,
Bińkowski et al. 2018, arXiv 1801.01401 (section 4); Inception Score, Salimans et al. 2016, arXiv 1606.03498 (section
4); precision and recall, Kynkäänniemi et al. 2019, arXiv 1904.06991 (eq. 1 and 2); R-precision, Xu et al. 2017, arXiv
1711.10485, and with CLIP, Park et al. 2021, "Benchmark for compositional text-to-image synthesis"; CLIP score and Elo,
GLIDE, Nichol et al. 2021, arXiv 2112.10741 (section 5.2, appendix A); intervals, Efron 1979, Annals of Statistics 7
(1), and Shao & Wu 1989, Annals of Statistics 17 (3).

    python lessons/11_measures.py                           about ten seconds: a thousand real pictures against others,
                                                            and against damaged ones; outputs/11_measures.png
    python lessons/11_measures.py compare REAL GENERATED    FID, KID, precision and recall of features that you have:
                                                            two .npy files, or two folders of them
"""
import argparse
import random
import sys
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))     # the project's root
tokenizer, unet, diffusion, train, sample, judging = map(import_module, (
    "01_tokenizer", "03_unet", "04_diffusion", "08_train", "09_sample", "lessons.10_judge"))


# --- Features ----------------------------------------------------------------------------------------

@torch.no_grad()
def features(judge, images):
    """What a judge (10) knows of images [n, 3, S, S] before its last layers: [n, 256], none of it negative.

    Two pictures are near each other here if the network takes them for alike; by their pixels, if they have the same
    background. What it takes for alike is a matter of taste: this one sees first of all what lies where (lesson 11).
    """
    return torch.cat([judge.glance(judge.places(x)) for x in images.split(500)])


def read_features(path):
    """A .npy file, or all in a folder in the order of their names, each [d] (one row) or [n, d]: float64 [n, d].

    Raises FileNotFoundError, or ValueError if these are not two or more rows of finite numbers.
    """
    files, tables = sorted(path.glob("*.npy")) if path.is_dir() else [path], []
    for file in files:
        with open(file, "rb") as data:
            try:
                table = np.lib.format.read_array(data).astype(np.float64, casting="safe")
                tables.append(np.atleast_2d(np.asarray_chkfinite(table)))
            except (ValueError, TypeError) as e:
                raise ValueError(f"{file} is not a .npy file of finite real numbers: {e}") from e
    if len({table.shape[1:] for table in tables}) != 1:
        raise ValueError(f"{path} holds {len(files)} .npy files; one or more with equally long rows are needed")
    return checked(torch.from_numpy(np.concatenate(tables)))[0]


def checked(*clouds):
    """Sets of features as float64. Raises ValueError unless each is [n, d], n at least 2, of finite numbers, and d is
    the same."""
    if any(x.ndim != 2 or len(x) < 2 or x.shape[1:] != clouds[0].shape[1:] or not x.isfinite().all() for x in clouds):
        raise ValueError("features are finite numbers, [n, d], in two rows or more, with one d for all sets; these are "
                         + ", ".join(str(list(x.shape)) for x in clouds))
    return [x.double() for x in clouds]


def subset(x, n, generator):
    """n random rows of x, no row twice."""
    return x[torch.randperm(len(x), generator=generator)[:n]]


# --- FID: how far apart are two Gaussians? -----------------------------------------------------------

def gaussian(features):
    """Features [n, d] -> the Gaussian that fits them: mean [d], covariance [d, d] (sums divided by n - 1)."""
    x, = checked(features)
    return x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])


def frechet_distance(mean, cov, mean2, cov2):
    """The squared Fréchet distance of two Gaussians, which is also Wasserstein's; covariances may be singular.

    Carry the points of one Gaussian over to make the other, as cleverly as possible: this is the mean squared way that
    they go. In one dimension it is (μ - μ₂)² + (σ - σ₂)².
    """
    # d² = ‖μ - μ₂‖² + tr(Σ + Σ₂ - 2·(ΣΣ₂)^½)   [Heusel et al. eq. 6]
    # ΣΣ₂ is not symmetric, and rounding can make its root complex. √Σ·Σ₂·√Σ has the same eigenvalues, is symmetric, and
    # none of them is negative. The trace of the root is the sum of their roots.
    values, vectors = torch.linalg.eigh(cov)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    overlap = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    return ((mean - mean2).square().sum() + cov.trace() + cov2.trace() - 2 * overlap).clamp(min=0).item()


def fid(real, generated):
    """The Fréchet distance of two sets of features [n, d] and [m, d], in squared units of the features.

    Compare it at the same n and m only: the fewer pictures, the larger it is (`fid_infinity`).
    """
    real, generated = checked(real, generated)
    return frechet_distance(*gaussian(real), *gaussian(generated))


def fid_infinity(real, generated, *, sizes=15, smallest=0.1, generator=None):
    """What FID would be of endlessly many pictures: (value, points), points [sizes, 2]: n (of generated ones) and FID.

    sizes, smallest  how many sizes of subsets, evenly spaced from this share of the pictures to all of them
    An estimated Gaussian is a little off, and being off in any direction adds to the distance. So FID is too large, by
    about c/n. As c depends on the model, a worse model can have the better FID. FID at several n lies near a line in
    1/n, and this is the line's value at 1/n = 0 [Chong & Forsyth]. If the truth is 0, it may come out negative.
    """
    real, generated = checked(real, generated)
    points = []
    for share in torch.linspace(smallest, 1, sizes).tolist():
        # No picture twice: then n pictures are a smaller sample of the world. Drawn with replacement they would be a
        # sample of the pictures at hand, and the line would lead to the biased FID of all of them. Both sets shrink
        # together, so that both biases go; the paper keeps its real pictures fixed, and with them their share of it.
        parts = [subset(x, max(2, round(share * len(x))), generator) for x in (real, generated)]
        points.append((len(parts[1]), fid(*parts)))
    points = torch.tensor(points, dtype=torch.float64)
    line = torch.stack([torch.ones(sizes, dtype=torch.float64), 1 / points[:, 0]], 1)
    return torch.linalg.lstsq(line, points[:, 1:]).solution[0].item(), points


# --- KID: a distance without Gaussians and without bias ----------------------------------------------

def kid(real, generated):
    """The squared kernel distance (MMD²) of two sets of features [n, d] and [m, d], by its unbiased estimate.

    Two sets of one world have 0 on average, so often less than 0. It compares skewness, too [Bińkowski et al.].
    """
    real, generated = checked(real, generated)

    def mean_kernel(x, y):                             # k(x, y) = (x·y/d + 1)³, in blocks: 10,000² at once are 800 MB
        return sum(((part @ y.T / x.shape[1] + 1) ** 3).sum() for part in x.split(1000)) / (len(x) * len(y))

    def mean_of_pairs(x):                              # without pairs of a picture and itself: they make the bias
        own = ((x.square().sum(1) / x.shape[1] + 1) ** 3).mean()
        return (mean_kernel(x, x) * len(x) - own) / (len(x) - 1)

    # MMD² = E k(x, x') + E k(y, y') - 2·E k(x, y)
    return (mean_of_pairs(real) + mean_of_pairs(generated) - 2 * mean_kernel(real, generated)).item()


# --- Inception Score: is each picture clear, and are all of them different? --------------------------

def inception_score(probabilities):
    """A classifier's answers [n, classes], rows that sum to 1 -> (score, entropy of the mean, mean of the entropies).

    The score goes from 1 to the number of classes. It is the exponential of the difference of its two halves, in nats:
    all answers together should be undecided, and each alone sure. Real pictures have no part in it: a model that draws
    one perfect picture of each class gets full marks.
    """
    p, = checked(probabilities)
    if p.min() < 0 or (p.sum(1) - 1).abs().max() > 1e-3:
        raise ValueError("probabilities are not negative, and each row sums to 1")
    # exp(E KL(p(y|x) ‖ p(y))) = exp(H(E p(y|x)) - E H(p(y|x)))   [Salimans et al. section 4]
    whole, each = torch.special.entr(p.mean(0)).sum(), torch.special.entr(p).sum(1).mean()
    return (whole - each).exp().item(), whole.item(), each.item()


# --- Precision and recall: who lies in the other's cloud? --------------------------------------------

def radii(points, k=3):
    """How far it is from each of points [n, d] to its k-th nearest *other* one: [n]."""
    if not 1 <= k < len(points):
        raise ValueError(f"{len(points)} points have no k-th nearest other one for k = {k}")
    # The nearest is the point itself, at distance 0: hence k + 1. In blocks, as in `kid`.
    return torch.cat([torch.cdist(part, points).kthvalue(k + 1, dim=1).values for part in points.split(1000)])


def in_manifold(points, reference, k=3):
    """Whether each of points [n, d] lies in the cloud of the reference [m, d]: bool [n].

    The cloud is a union of balls. Each has a reference point in its middle and reaches to the k-th nearest other one.
    """
    # f(φ, Φ) = 1 if ‖φ - φ'‖ ≤ ‖φ' - NN_k(φ', Φ)‖ for at least one φ' ∈ Φ   [Kynkäänniemi et al. eq. 1]
    points, reference = checked(points, reference)
    reach = radii(reference, k)
    return torch.cat([(torch.cdist(part, reference) <= reach).any(1) for part in points.split(1000)])


def precision_recall(real, generated, k=3):
    """Features [n, d] and [m, d] -> (precision, recall), from 0 to 1   [Kynkäänniemi et al. eq. 2].

    Precision is the share of generated pictures in the cloud of the real ones: could they be real? Recall is the share
    of real pictures in the cloud of the generated ones: could the model have drawn them? Two samples of one world do
    not reach 1 either. Both depend on n, m and k, so compare them at the same ones.
    """
    return tuple(in_manifold(*pair, k).double().mean().item() for pair in ((generated, real), (real, generated)))


# --- Is it what was asked for? -----------------------------------------------------------------------

def paired(images, texts):
    """CLIP's embeddings of n images and of their n captions, unit vectors [n, d], as float64. Raises ValueError."""
    images, texts = checked(images, texts)
    if len(images) != len(texts) or any((x.norm(dim=1) - 1).abs().max() > 1e-2 for x in (images, texts)):
        raise ValueError("embeddings are vectors of length 1, one of each image and one of its caption")
    return images, texts


def clip_score(images, texts, scale=100.0):
    """How well images fit their captions, from -scale to scale. Unit vectors [n, d] each; scale: CLIP's logit scale.

    It means nothing if the same CLIP guided the model, or chose the pictures (experiments/guidance.py).
    """
    images, texts = paired(images, texts)
    return scale * (images * texts).sum(1).mean().item()         # E[s·f(image)·g(caption)]   [GLIDE section 5.2]


def r_precision(images, texts, choices=100, generator=None):
    """How often an image's own caption fits it best among `choices`, the others being random: a rate from 0 to 1.

    Unit vectors [n, d] each. Guessing has 1/choices. A tie is a miss, so captions should differ. The rate's interval is
    wilson(rate * n, n), of 10. Raises ValueError if there are fewer captions than choices.
    """
    images, texts = paired(images, texts)
    if not 2 <= choices <= len(texts):
        raise ValueError(f"2 to {len(texts)} choices are possible with {len(texts)} captions, not {choices}")
    # Everyone stands in a random circle and is shown the captions of those so and so many places further on. That is a
    # random set for each, never holds the own caption, and needs no table of n × n.
    order = torch.randperm(len(images), generator=generator)
    images, texts = images[order], texts[order]
    own, found = (images * texts).sum(1), torch.ones(len(images), dtype=torch.bool)
    for shift in 1 + torch.randperm(len(images) - 1, generator=generator)[:choices - 1]:
        found &= own > (images * texts.roll(int(shift), 0)).sum(1)
    return found.double().mean().item()


# --- Which of two is better? -------------------------------------------------------------------------

def count_wins(votes, players):
    """Votes, rows (i, j, result) -> wins [players, players]: how often i beat j, players being counted from 0.

    result  1 if i won, 0 if j did, 0.5 for a tie. A tie is half a win for each, as in GLIDE [appendix A.1].
    """
    i, j, result = torch.as_tensor(votes, dtype=torch.float64).T
    known = {*i.tolist(), *j.tolist()} <= set(range(players))
    if not (known and (i != j).all() and ((result >= 0) & (result <= 1)).all()):
        raise ValueError(f"a vote is two different players from 0 to {players - 1}, and a result from 0 to 1")
    wins = torch.zeros(players, players, dtype=torch.float64)
    wins.index_put_((i.long(), j.long()), result, accumulate=True)
    return wins.index_put_((j.long(), i.long()), 1 - result, accumulate=True)


def win_rate(wins):
    """From wins [m, m], the share of their votes that i got against j: [m, m], nan where they never met."""
    return wins.double() / (wins + wins.T)


def win_probability(a, b):
    """How often Elo score a beats Elo score b, from 0 to 1; numbers or tensors. 133.0 beats 28.2 in 64.6%."""
    return 1 / (1 + 10 ** ((b - a) / 400))


def elo(wins):
    """Elo scores [m], of mean 0, from wins [m, m] as of `count_wins`: those that make such votes most probable.

    This is Bradley & Terry's model [1952], and what GLIDE does [appendix A.1]: it starts at zero scores and minimises
    -Σ A_ij·log P(i beats j), A_ij being wins. (Printed there is P = 1/(1 + 10^((σ_i - σ_j)/400)), by which the winner
    would get the *lower* score. In its tables the better model has the higher one, as here, and the mean is not quite
    0.) Only differences mean anything. Raises ValueError where no finite scores are best: if someone never lost, more
    would always be better, and two groups that never met cannot be compared. A prior would give numbers even then; more
    votes give knowledge.
    """
    if wins.ndim != 2 or wins.shape[0] != wins.shape[1] or not (wins.isfinite() & (wins >= 0)).all():
        raise ValueError(f"wins are numbers, [m, m], none of them negative; these are {list(wins.shape)}")
    wins, scores = wins.double(), torch.zeros(len(wins), dtype=torch.float64)
    games = wins + wins.T
    # Everyone must have beaten everyone, if only through others: i beat j, who beat k   [Ford 1957].
    reach = (wins > 0) | torch.eye(len(wins), dtype=torch.bool)
    for _ in wins:
        reach = reach.double() @ reach.double() > 0
    if not reach.all():
        raise ValueError("no finite scores are best: player {} never beat player {}, not even through others".format(
            *(~reach).nonzero()[0].tolist()))
    for _ in range(1000):
        # In units in which P(i beats j) is the sigmoid of s_i - s_j, the slope of the log likelihood is
        # ∂/∂s_i = Σ_j wins_ij - games_ij·P(i beats j): at the top, everyone has won as often as expected.
        p = torch.sigmoid(scores[:, None] - scores)
        gradient, weight = (wins - games * p).sum(1), games * p * p.T
        # Adding the same to all scores changes nothing, so the matrix has no inverse; with 1 in every place it has.
        step = torch.linalg.solve(weight.sum(1).diag() - weight + 1, gradient)
        # Newton's step, which ends at the top of a parabola, can be far too long on a sigmoid's flat side. While
        # differences change by d, curvature changes by a factor of e^d at most: this share of the step always climbs
        # [Bach 2010, arXiv 0910.4627]. Near the top it is all of it.
        span = (step.max() - step.min()).item()
        scores = scores + step * (np.log1p(span) / span if span > 1e-6 else 1)
        if span < 1e-9:
            break
    return (scores - scores.mean()) * 400 / np.log(10)


# --- How sure is it? ---------------------------------------------------------------------------------

def bootstrap(function, *arrays, n=200, paired=True, generator=None):
    """(value, low, high): function(*arrays), and its 95% interval by drawing the arrays' rows anew, n times [Efron].

    function  returns a number; or several, then value, low and high are lists
    paired    whether row i of all arrays belongs to one picture: then they are all drawn anew in the same way
    It suits means, rates, CLIP scores, and Elo scores of votes. It does *not* suit FID, KID, precision and recall: rows
    drawn twice are twins, which the world does not have, and all four see them; nor the Inception Score of few
    pictures, which falls if some of them are missing. `half_sampling` does.
    """
    values = []
    for _ in range(n):
        rows = [torch.randint(len(x), (len(x),), generator=generator) for x in arrays]
        values.append(function(*(x[rows[0] if paired else mine] for x, mine in zip(arrays, rows))))
    low, high = np.quantile(values, (0.025, 0.975), axis=0).tolist()
    return np.asarray(function(*arrays)).tolist(), low, high


def half_sampling(function, *arrays, n=40, generator=None):
    """As `bootstrap` without pairs, for measures that cannot bear to see a row twice: it takes halves, n of each array.

    The mean of a random half differs from that of all m by about σ/√m, just as the mean of all differs from the truth.
    So the standard deviation over halves is the standard error, and ±1.96 of it are a 95% interval (the jackknife that
    deletes half of the rows [Shao & Wu]). The interval tells how far off another draw of as many pictures may be,
    and nothing of bias. Where the truth is 0, those of KID and FID∞ are two to three times too wide: on the safe side.
    """
    halves = [function(*(subset(x, len(x) // 2, generator) for x in arrays)) for _ in range(n)]
    value, error = np.asarray(function(*arrays)), 1.96 * np.std(halves, axis=0, ddof=1)
    return value.tolist(), (value - error).tolist(), (value + error).tolist()


def seeded():
    """The same chance each time, for what is printed."""
    return torch.Generator().manual_seed(0)


def compare(args):
    """FID, KID, precision and recall of two files or folders of features"""
    clouds = checked(read_features(args.real), read_features(args.generated))

    def measures(real, generated):
        return fid(real, generated), 1000 * kid(real, generated), *precision_recall(real, generated, args.k)

    print("{:,} real and {:,} generated pictures; 95% intervals by half-sampling".format(*map(len, clouds)))
    for name, *numbers in zip(("FID", "1000·KID", "precision", "recall"),
                              *half_sampling(measures, *clouds, generator=seeded())):
        print(f"   {name:<10}" + "{:12.4f}   ({:.4f} to {:.4f})".format(*numbers))
    print(f"   {'FID∞':<10}{fid_infinity(*clouds, generator=seeded())[0]:12.4f}   FID without its bias")


# --- The demonstration -------------------------------------------------------------------------------

MEANING = {
    "FID": "distance of two Gaussians; above 0 for real ones, too",
    "FID∞": "the same of endlessly many; real ones get about 0",
    "1000·KID": "a distance without bias; real ones get 0 on average",
    "precision": "share of these pictures that could be real",
    "recall": "share of the real ones that could be from here",
    "IS": "how many nouns there are, as it were, and clearly; 1 to 28",
    "  variety": "its first half: entropy of all nouns together, at most 3.33",
    "  doubt": "its second half: mean entropy of one noun; 0 is sure",
    "CLIP score": "do pictures fit their captions? 100 times the cosine",
    "R-precision": "is the own caption found among 100? Chance: 0.01"}
PAPER = {"300M, s = 1": -131.8, "300M, s = 4": 28.2, "3.5B, s = 1": -23.9, "3.5B, s = 3": 133.0}   # GLIDE table 4


def pictures(n):
    """n real pictures, n others, and damaged copies of those: {name: [n, 3, 16, 16]}; and the captions of the others.

    Damaged copies keep their captions, which some of them then no longer show.
    """
    rng = random.Random(0)
    scenes = [tokenizer.random_scene(rng).fill(rng) for _ in range(2 * n)]

    def drawn(scenes, **changed):
        scenes = [replace(s, things=tuple(replace(thing, **changed) for thing in s.things)) for s in scenes]
        return diffusion.downsample(diffusion.draw_all(scenes, rng, 64), 16)

    real, again = drawn(scenes).split(n)
    blurred = torch.nn.functional.avg_pool2d(again, 5, 1, 2, count_include_pad=False)
    return {"real": real, "real again": again, "blurred": blurred, "hearts": drawn(scenes[n:], noun="heart"),
            "red": drawn(scenes[n:], color="red")}, [scene.caption() for scene in scenes[n:]]


@torch.no_grad()
def all_measures(images, captions, judge, clip):
    """All of MEANING for each kind of `pictures`, against the real ones: {kind: numbers}; and {kind: features}."""
    known, texts, table = {kind: features(judge, x) for kind, x in images.items()}, clip.embed(captions), {}
    for kind in [*known][1:]:
        pair = known["real"], known[kind]
        nouns = torch.cat([judge(x)[2].softmax(1) for x in images[kind].split(500)])      # of the first thing
        seen = clip.network.image(images[kind], torch.zeros(len(texts), dtype=torch.long))
        table[kind] = (fid(*pair), fid_infinity(*pair, generator=seeded())[0], 1000 * kid(*pair),
                       *precision_recall(*pair), *inception_score(nouns), clip_score(seen, texts),
                       r_precision(seen, texts, generator=seeded()))
    return table, known


def draw_manifolds(ax):
    """Precision and recall in two dimensions: a model that lost one of two modes, and strays from the other."""
    from matplotlib.patches import Circle
    g = seeded()
    real = 0.6 * torch.randn(60, 2, generator=g) + torch.tensor([[-1.7, 0.0], [1.7, 0.0]]).repeat(30, 1)
    generated = 0.9 * torch.randn(40, 2, generator=g) - torch.tensor([1.7, 0.0])
    for point, radius in zip(real.tolist(), radii(real).tolist()):
        ax.add_patch(Circle(point, radius, color="tab:blue", alpha=0.07))
    ax.scatter(*real.T, label="real")
    colors = ["green" if inside else "red" for inside in in_manifold(generated, real)]
    ax.scatter(*generated.T, marker="^", color=colors, label="generated (red: in no ball)")
    ax.set(xticks=[], yticks=[], aspect="equal", ylim=(-2.6, 4.4), title="The right half is never drawn:\n"
           "precision {:.0%}, recall {:.0%}".format(*precision_recall(real, generated)))
    ax.legend(loc="upper center", ncols=2)


def draw_elo(ax):
    """The curve from a difference of Elo scores to the share of votes, and all pairs of PAPER on it."""
    ax.plot(range(-50, 651), [win_probability(x, 0) for x in range(-50, 651)], color="0.6", zorder=0)
    for x, names in sorted((PAPER[a] - PAPER[b], f"{a}  over  {b}") for a in PAPER for b in PAPER):
        if x > 0:
            ax.plot(x, win_probability(x, 0), "o", markersize=10, label=f"{win_probability(x, 0):.1%}   {names}")
    ax.legend(loc="lower right")
    ax.set(xlabel="difference of Elo scores", ylabel="share of the votes",
           title="GLIDE’s table 4: the small model with guidance gets 57%\nof the votes against the large one without")


def save_picture(table, known, path):
    """Four panels: FID's bias, clouds in two dimensions, what damages cost, what Elo means."""
    import matplotlib.figure
    with matplotlib.rc_context({"font.size": 14}):
        figure = matplotlib.figure.Figure(figsize=(17, 13), layout="constrained")
        first, second, third, fourth = figure.subplots(2, 2).flat
        value, points = fid_infinity(known["real"], known["real again"], generator=seeded())
        x, y = 1000 / points[:, 0], points[:, 1]
        first.axline((0, value), (x.mean(), y.mean()))           # least squares go through the means
        first.plot(x, y, "o")
        first.plot(0, value, "r*", markersize=22, clip_on=False, zorder=3)
        first.set(xlabel="1000/n", ylabel="FID", xlim=(0, 10.5), ylim=(min(0, value), None), title="Real against real: "
                  f"FID is {y[-1]:.0f} at n = 1,000,\nand {value:.1f} at n = ∞, where the line ends")
        draw_manifolds(second)
        for shift, name in ((-0.2, "precision"), (0.2, "recall")):
            values, places = [row[[*MEANING].index(name)] for row in table.values()], range(len(table))
            third.bar_label(third.bar([x + shift for x in places], values, 0.38, label=name), fmt="{:.0%}")
        third.set_xticks(places, [f"{kind}\nFID {row[0]:.0f}" for kind, row in table.items()])
        third.set(ylim=(0, 1.2), yticks=[],
                  title="Blur costs precision and recall;\na lost noun or colour, recall above all")
        third.legend(loc="upper right", ncols=2)
        draw_elo(fourth)
        path.parent.mkdir(exist_ok=True)
        figure.savefig(path, dpi=80)


def demonstrate(_):
    """The three sections and the picture."""
    judge, clip = judging.judge_for(16, unet.WEIGHTS), sample.Weights(unet.WEIGHTS, clip=True).load("clip")
    table, known = all_measures(*pictures(1000), judge, clip)
    print("1. A thousand real pictures against others: real ones again, blurred, everything a heart, everything red")
    print(" " * 14 + "".join(f"{kind:>11}" for kind in table))
    for (name, meaning), numbers in zip(MEANING.items(), zip(*table.values())):
        print(f"   {name:<11}" + "".join(f"{number:11.2f}" for number in numbers) + f"   {meaning}")
    print("\n2. How sure is the FID of real pictures against real ones? 95% intervals")
    for way in (half_sampling, bootstrap):
        numbers = way(fid, known["real"], known["real again"], n=20, generator=seeded())
        print(f"   {way.__name__:<13}  " + "{:.1f} ({:.1f} to {:.1f})".format(*numbers))
    print("   The bootstrap draws rows twice, so it has fewer different ones: its interval misses the value itself.")
    print("\n3. Elo scores in GLIDE's table 4 (photorealism), and what 1,000 simulated votes tell of them (bootstrap)")
    scores = torch.tensor(list(PAPER.values()))
    wins = torch.multinomial(win_probability(scores[:, None], scores).fill_diagonal_(0).flatten(), 1000, True,
                             generator=seeded())
    votes = torch.stack([wins // 4, wins % 4, torch.ones(1000)], 1)
    for name, *numbers in zip(PAPER, *bootstrap(lambda votes: elo(count_wins(votes, 4)), votes, generator=seeded())):
        print(f"   {name:<11}{PAPER[name]:9.1f}" + "{:12.1f} ({:.1f} to {:.1f})".format(*numbers))
    print(f"   133.0 against 28.2 means {win_probability(133.0, 28.2):.1%} of the votes.")
    save_picture(table, known, train.OUTPUTS / "11_measures.png")
    print("\nThe picture is outputs/11_measures.png, the lesson lessons/11_measures.ipynb.",
          "Next: lessons/12_released.py")


def main(argv=None):
    """The command line. -> exit status: 0, or 2 for what you can mend, with one line on stderr"""
    parser = argparse.ArgumentParser(description="How good are many pictures? Without a command: a demonstration")
    comparing = parser.add_subparsers(dest="command").add_parser("compare", help=compare.__doc__)
    for name in ("real", "generated"):
        comparing.add_argument(name, type=train.path_name, help="features: a .npy file, [n, d], or a folder of such")
    comparing.add_argument("--k", type=int, default=3, help="the neighbour where a ball ends: precision, recall (3)")
    args = parser.parse_args(argv)
    return train.run(compare if args.command else demonstrate, args, "11_measures.py")


if __name__ == "__main__":
    sys.exit(main())
