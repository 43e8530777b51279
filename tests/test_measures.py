"""Measures of many pictures: each against a closed form, or against a second way to compute it."""
import itertools
import math
import statistics
from importlib import import_module

import numpy as np
import pytest
import torch

import small

lesson = import_module("lessons.11_measures")
judging = import_module("lessons.10_judge")
DOUBLE = torch.float64


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=seeded(seed), dtype=DOUBLE)


def covariance(d, seed):
    """A random covariance that is nothing special."""
    root = normal(d, d, seed=seed)
    return root @ root.T


def rotation(d, seed=0):
    return torch.linalg.qr(normal(d, d, seed=seed)).Q


def close(a, b, tolerance=1e-9):
    return a == pytest.approx(b, rel=tolerance, abs=tolerance)


# --- Features ---

def test_features_are_what_the_judge_sees_at_a_glance():
    torch.manual_seed(0)
    judge = judging.Judge(judging.JudgeConfig(16)).eval()
    images = torch.rand(501, 3, 16, 16) * 2 - 1
    found = lesson.features(judge, images)
    assert found.shape == (501, 256) and not found.requires_grad
    whole = judge.glance(judge.places(images))                    # as experiments/guidance.py measures variety
    assert torch.allclose(found, whole, atol=1e-4), "batches are for memory and change nothing"


def test_features_are_read_from_one_file_or_from_a_folder(tmp_path):
    rows = normal(6, 4).numpy()
    np.save(tmp_path / "b.npy", rows[2].astype(np.float32))       # [d]: one row
    np.save(tmp_path / "a.npy", rows[:2].astype(np.float16))
    np.save(tmp_path / "c.npy", np.arange(12).reshape(3, 4))
    found = lesson.read_features(tmp_path)
    assert found.dtype == DOUBLE and found.shape == (6, 4)
    assert found[2].tolist() == rows[2].astype(np.float32).tolist(), "in the order of the files' names"
    assert torch.equal(lesson.read_features(tmp_path / "c.npy"), torch.arange(12.0, dtype=DOUBLE).view(3, 4))


@pytest.mark.parametrize("name, table", [
    ("nan", np.array([[1.0, np.nan], [0, 0]])), ("complex", np.ones((3, 2)) * 1j), ("text", np.array(["a", "b"])),
    ("cube", np.ones((3, 2, 2))), ("object", np.array([{}, {}])), ("row", np.ones(4)), ("none", np.ones((0, 4)))])
def test_what_is_no_table_of_finite_numbers_is_refused(name, table, tmp_path):
    np.save(tmp_path / f"{name}.npy", table)
    with pytest.raises(ValueError) as e:
        lesson.read_features(tmp_path / f"{name}.npy")
    assert f"{name}.npy" in small.one_line(e.value) or name in ("cube", "row", "none")


def test_a_file_of_features_cannot_run_code(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (tmp_path / "ran").touch, ()
    np.save(tmp_path / "bomb.npy", np.array([Bomb()], dtype=object))
    with pytest.raises(ValueError, match="bomb.npy"):
        lesson.read_features(tmp_path / "bomb.npy")
    assert not (tmp_path / "ran").exists()


def test_a_refusal_names_the_file(tmp_path):
    np.save(tmp_path / "good.npy", np.ones((2, 3)))
    (tmp_path / "worse.npy").write_text("1, 2, 3")
    with pytest.raises(ValueError, match="worse.npy"):
        lesson.read_features(tmp_path)


def test_no_files_and_rows_of_two_lengths_are_refused(tmp_path):
    with pytest.raises(ValueError, match="holds 0 .npy files"):
        lesson.read_features(tmp_path)
    np.save(tmp_path / "a.npy", np.ones((2, 3)))
    np.save(tmp_path / "b.npy", np.ones((2, 4)))
    with pytest.raises(ValueError, match="equally long"):
        lesson.read_features(tmp_path)
    with pytest.raises(FileNotFoundError):
        lesson.read_features(tmp_path / "nowhere.npy")


@pytest.mark.parametrize("measure", [lesson.fid, lesson.fid_infinity, lesson.kid, lesson.precision_recall])
def test_features_of_two_networks_cannot_be_compared(measure):
    with pytest.raises(ValueError, match=r"one d for all sets; these are .*4"):
        measure(torch.ones(5, 3), torch.ones(5, 4))
    with pytest.raises(ValueError, match="finite"):
        measure(torch.ones(5, 3), torch.full((5, 3), math.inf))


# --- FID ---

def test_a_gaussian_is_a_mean_and_an_unbiased_covariance():
    mean, cov = lesson.gaussian(torch.tensor([[0.0, 0.0], [2.0, 4.0]]))
    assert mean.tolist() == [1, 2] and cov.tolist() == [[2, 4], [4, 8]], "sums of products over n - 1 = 1, not n = 2"
    mean, cov = lesson.gaussian(torch.tensor([[1.0], [2.0], [6.0]]))
    assert mean.tolist() == [3] and cov.tolist() == [[7]] and cov.dtype == DOUBLE


def test_in_one_dimension_it_is_means_and_standard_deviations():
    one = [torch.tensor(x, dtype=DOUBLE) for x in ([1.0], [[4.0]], [3.5], [[25.0]])]
    assert close(lesson.frechet_distance(*one), (1 - 3.5) ** 2 + (2 - 5) ** 2), "(μ - μ₂)² + (σ - σ₂)²"


def test_on_common_axes_every_axis_counts_by_itself():
    axes, a, b = rotation(5), torch.tensor([1.0, 4, 9, 16, 25]).double(), torch.tensor([4.0, 4, 1, 0.25, 0]).double()
    distance = lesson.frechet_distance(axes[0], axes @ a.diag() @ axes.T, axes[1], axes @ b.diag() @ axes.T)
    assert close(distance, 2 + (a.sqrt() - b.sqrt()).square().sum().item(), 1e-6), "two rows of a rotation are √2 apart"


def test_on_other_axes_the_trace_of_the_root_is_known_by_hand():
    """Eigenvalues x, y of ΣΣ₂ are not negative, and (√x + √y)² = x + y + 2√(xy) = trace + 2·√determinant."""
    a, b = torch.tensor([[2.0, 1], [1, 3]]).double(), torch.tensor([[1.0, -0.5], [-0.5, 4]]).double()
    assert not torch.allclose(a @ b, b @ a), "these do not share their axes"
    trace = math.sqrt((2 - 0.5) + (-0.5 + 12) + 2 * math.sqrt((6 - 1) * (4 - 0.25)))
    assert close(lesson.frechet_distance(torch.zeros(2), a, torch.zeros(2), b), 5 + 5 - 2 * trace)


def test_the_general_case_agrees_with_the_cheapest_way_to_carry_points():
    """T = Σ^-½·(Σ^½·Σ₂·Σ^½)^½·Σ^-½ carries one Gaussian to the other, and ‖x - Tx‖² is the price."""
    def root(matrix):
        u, s, _ = torch.linalg.svd(matrix)
        return u @ s.sqrt().diag() @ u.T
    a, b = covariance(6, 1), covariance(6, 2)
    inverse = torch.linalg.inv(root(a))
    carry = inverse @ root(root(a) @ b @ root(a)) @ inverse
    assert torch.allclose(carry @ a @ carry.T, b), "it arrives"
    price = ((torch.eye(6).double() - carry) @ a @ (torch.eye(6).double() - carry).T).trace().item()
    shift = normal(6, seed=3)
    assert close(lesson.frechet_distance(shift, a, 0 * shift, b), price + shift.square().sum().item(), 1e-8)


def test_a_published_distance_is_found():
    """torchaudio's example of `frechet_distance`, which prints 15.8710."""
    mean, cov = torch.arange(3, dtype=DOUBLE), torch.eye(3, dtype=DOUBLE)
    found = lesson.frechet_distance(mean, cov, 2 * mean + 1, 2 * cov + 1)
    assert f"{found:.4f}" == "15.8710" and close(found, 26 - 2 * (2 * 2 ** 0.5 + 5 ** 0.5)), "means 14, traces 3 and 9"


def test_covariances_may_be_singular():
    zero, u, v = torch.zeros(3).double(), torch.tensor([1.0, 2, 2]).double(), torch.tensor([0.0, 3, -4]).double()
    flat = lesson.frechet_distance(zero, u.outer(u), zero, v.outer(v))
    assert close(flat, 9 + 25 - 2 * abs(6 - 8), 1e-6), "lines in two directions: ‖u‖² + ‖v‖² - 2·|u·v|"
    assert close(lesson.frechet_distance(zero, u.outer(u), v, 0 * v.outer(v)), 9 + 25), "a line against a point"
    few, shift = normal(5, 40), normal(40, seed=1)
    assert close(lesson.fid(few, few + shift), shift.square().sum().item(), 1e-5), "5 pictures, 40 features: rank 4"


def test_fid_is_a_distance():
    a, b = normal(50, 4), 2 * normal(60, 4, seed=1) + 1
    assert close(lesson.fid(a, b), lesson.fid(b, a)) and lesson.fid(a, b) > 1, "symmetric"
    assert 0 <= lesson.fid(a, a) < 1e-9, "0 for equals, and never below"


def test_fid_knows_neither_axes_nor_origin_and_has_squared_units():
    a, b, turn, shift = normal(50, 4), 2 * normal(60, 4, seed=1) + 1, rotation(4, 2), normal(4, seed=3)
    assert close(lesson.fid(a @ turn + shift, b @ turn + shift), lesson.fid(a, b), 1e-8)
    assert close(lesson.fid(3 * a, 3 * b), 9 * lesson.fid(a, b), 1e-8)
    assert close(lesson.fid(a.float(), b.float()), lesson.fid(a, b), 1e-5), "float32 in, float64 inside"


def test_fid_of_two_samples_is_the_distance_of_their_gaussians():
    x = torch.tensor([[-1.0], [1.0], [0.0]])                       # mean 0, variance 1
    assert close(lesson.fid(x, 3 * x + 2), 4 + 4)


def test_the_bias_of_fid_is_what_theory_says():
    """Two samples of n from one normal: E (m - m₂)² = 2/n, and E (s - s₂)² = 2·(1 - c²), c being E s."""
    n, draws = 10, 3000
    c = math.sqrt(2 / (n - 1)) * math.exp(math.lgamma(n / 2) - math.lgamma((n - 1) / 2))
    x = normal(draws, 2, n, 1)
    values = torch.tensor([lesson.fid(*pair) for pair in x])
    error = values.std() / draws ** 0.5
    assert abs(values.mean() - (2 / n + 2 * (1 - c * c))) < 4 * error, "the worlds are equal, and still it is not 0"


def test_the_bias_goes_with_one_over_n():
    few, many = (sum(lesson.fid(*normal(2, n, 8, seed=seed)) for seed in range(40)) for n in (100, 400))
    assert 3.5 < few / many < 4.7, "a fourth of the pictures, about four times the bias"


def test_the_line_to_infinity_is_least_squares_in_one_over_n(monkeypatch):
    monkeypatch.setattr(lesson, "fid", lambda real, generated: 3 + 50 / len(generated))
    value, points = lesson.fid_infinity(normal(400, 2), normal(200, 2))
    assert close(value, 3), "50/n is gone"
    assert points[:, 0].tolist() == pytest.approx(torch.linspace(20, 200, 15).tolist(), abs=0.51), "15 sizes, even"
    assert close(points[3, 1].item(), 3 + 50 / points[3, 0].item()), "the points, to be plotted"


def test_both_sets_shrink_and_no_picture_is_in_a_subset_twice(monkeypatch):
    sizes = []
    monkeypatch.setattr(lesson, "fid", lambda *sets: sizes.append([len(x) for x in sets]) or float(
        all(len(x.unique(dim=0)) == len(x) for x in sets)))
    value, points = lesson.fid_infinity(normal(400, 2), normal(200, 2), sizes=4, smallest=0.25, generator=seeded())
    assert sizes == [[100, 50], [200, 100], [300, 150], [400, 200]], "a fixed real set would keep its bias"
    assert points[:, 1].tolist() == [1, 1, 1, 1], "twins would be a sample of the sample, with its bias"


def test_at_infinity_most_of_the_bias_is_gone():
    draws = [normal(2, 500, 6, seed=seed) for seed in range(12)]
    biased = sum(lesson.fid(*pair) for pair in draws) / 12
    value = sum(lesson.fid_infinity(*pair, generator=seeded())[0] for pair in draws) / 12
    assert abs(value) < 0.3 * biased, f"equal worlds: {biased:.4f} by FID, {value:.4f} at infinity"


def test_at_infinity_the_true_distance_is_left():
    draws = [normal(2, 300, 6, seed=seed) for seed in range(12)]
    truth = 6 * 0.2 ** 2 + 6 * (1.3 - 1) ** 2
    biased = sum(lesson.fid(a, 1.3 * b + 0.2) for a, b in draws) / 12 - truth
    value = sum(lesson.fid_infinity(a, 1.3 * b + 0.2, generator=seeded())[0] for a, b in draws) / 12 - truth
    assert biased > 0 and abs(value) < 0.4 * biased, f"too large by {biased:.4f}; at infinity by {value:.4f}"


# --- KID ---

def test_kid_is_a_mean_over_pairs():
    x, y = normal(5, 3), normal(4, 3, seed=1) + 1

    def mean(pairs):
        values = [(float(a @ b) / 3 + 1) ** 3 for a, b in pairs]
        return sum(values) / len(values)
    pairs = mean(itertools.permutations(x, 2)), mean(itertools.permutations(y, 2)), mean(itertools.product(x, y))
    assert close(lesson.kid(x, y), pairs[0] + pairs[1] - 2 * pairs[2]), "all pairs, none of a picture and itself"


def test_kid_in_blocks_is_kid():
    x, y = normal(1003, 2), normal(1500, 2, seed=1)
    whole = [((a @ b.T / 2 + 1) ** 3) for a, b in ((x, x), (y, y), (x, y))]
    pairs = [(k.sum() - k.diag().sum()) / (len(k) * (len(k) - 1)) for k in whole[:2]]
    assert close(lesson.kid(x, y), (sum(pairs) - 2 * whole[2].mean()).item(), 1e-8)


def test_kid_of_two_points_is_their_kernels():
    a, b = torch.tensor([[1.0, 2.0]]).repeat(4, 1), torch.tensor([[3.0, 0.0]]).repeat(7, 1)
    assert close(lesson.kid(a, b), (5 / 2 + 1) ** 3 + (9 / 2 + 1) ** 3 - 2 * (3 / 2 + 1) ** 3)


def kids(make, draws=3000, n=8):
    x = make(torch.rand(draws, 2, n, 1, generator=seeded(), dtype=DOUBLE))
    values = torch.tensor([lesson.kid(*pair) for pair in x])
    return values, values.mean(), values.std() / draws ** 0.5


def test_kid_of_one_world_is_zero_on_average():
    values, mean, error = kids(lambda u: u + 1)
    assert abs(mean) < 4 * error, "no bias, even of eight pictures"
    assert 0.3 < (values < 0).double().mean() < 0.8, "so it is often negative, which FID never is"


def test_kid_compares_three_moments():
    """(xy + 1)³ = 1 + 3xy + 3x²y² + x³y³, so in one dimension MMD² = 3·Δm₁² + 3·Δm₂² + Δm₃² with moments m."""
    _, mean, error = kids(lambda u: torch.stack([u[:, 0], 1 - u[:, 1].square()], 1))
    moments = [(1 / (j + 1), sum((-1) ** i * math.comb(j, i) / (2 * i + 1) for i in range(j + 1))) for j in (1, 2, 3)]
    truth = sum(weight * (a - b) ** 2 for weight, (a, b) in zip((3, 3, 1), moments))
    assert abs(mean - truth) < 4 * error and truth > 10 * error


# --- Inception Score ---

def test_sure_and_different_is_the_number_of_classes():
    score, whole, each = lesson.inception_score(torch.eye(7).repeat(3, 1))
    assert close(score, 7) and close(whole, math.log(7)) and close(each, 0)


def test_always_the_same_answer_scores_one():
    assert lesson.inception_score(torch.eye(7)[2].repeat(5, 1)) == pytest.approx((1, 0, 0)), "sure, but of one thing"
    halves = lesson.inception_score(torch.full((5, 7), 1 / 7, dtype=DOUBLE))
    assert halves == pytest.approx((1, math.log(7), math.log(7))), "never sure: the halves tell the two failures apart"


def test_the_score_is_the_mean_divergence_from_the_mean():
    p = normal(20, 5).softmax(1)
    divergence = (p * (p / p.mean(0)).log()).sum(1).mean().exp().item()
    score, whole, each = lesson.inception_score(p)
    assert close(score, divergence) and close(score, math.exp(whole - each))


def test_a_score_by_hand():
    score, whole, each = lesson.inception_score(torch.tensor([[1.0, 0.0], [0.5, 0.5]]))
    assert close(whole, -0.75 * math.log(0.75) - 0.25 * math.log(0.25)) and close(each, math.log(2) / 2), "in nats"


@pytest.mark.parametrize("p", [[[0.5, 0.6], [0.5, 0.5]], [[1.5, -0.5], [0.5, 0.5]]])
def test_logits_are_not_probabilities(p):
    with pytest.raises(ValueError, match="probabilities"):
        lesson.inception_score(torch.tensor(p))


# --- Precision and recall ---

LINE = torch.tensor([[0.0], [1.0], [3.0], [7.0]])


@pytest.mark.parametrize("k, wanted", [(1, [1, 1, 2, 4]), (2, [3, 2, 3, 6]), (3, [7, 6, 4, 7])])
def test_a_ball_reaches_to_the_kth_other_point(k, wanted):
    assert lesson.radii(LINE, k).flatten().tolist() == wanted, "a point is not its own neighbour"
    assert lesson.radii(LINE).tolist() == lesson.radii(LINE, 3).tolist(), "the paper's choice"


def test_a_twin_is_a_neighbour():
    assert lesson.radii(torch.tensor([[0.0], [0.0], [5.0]]), 1).tolist() == [0, 0, 5], "another picture, though equal"


def test_a_point_is_inside_if_one_ball_holds_it():
    points = torch.tensor([[-1.0], [-1.1], [2.0], [2.5], [11.0], [11.1]])
    assert lesson.in_manifold(points, LINE, 1).tolist() == [True, False, True, True, True, False], "edges belong to it"


def test_precision_and_recall_by_hand():
    generated = torch.tensor([[-1.0], [11.5], [12.0]])             # balls with k = 1: 12.5, 0.5, 0.5
    assert lesson.precision_recall(LINE, generated, 1) == pytest.approx((1 / 3, 1)), "one of 3 real, all 4 reached"
    assert lesson.precision_recall(generated, LINE, 1) == pytest.approx((1, 1 / 3)), "the other way round, swapped"


@pytest.mark.parametrize("k", [1, 3])
def test_membership_agrees_with_a_search_by_hand(k):
    points, reference = (normal(40, 2, seed=seed).tolist() for seed in (0, 1))
    reach = [sorted(math.dist(a, b) for j, b in enumerate(reference) if j != i)[k - 1] for i, a in enumerate(reference)]
    wanted = [any(math.dist(p, a) <= r for a, r in zip(reference, reach)) for p in points]
    assert lesson.in_manifold(torch.tensor(points), torch.tensor(reference), k).tolist() == wanted
    assert 0 < sum(wanted) < 40


def test_membership_in_blocks_is_membership():
    points, reference = normal(1003, 2), normal(1005, 2, seed=1)
    reach = torch.cdist(reference, reference).sort(1).values[:, 3]
    wanted = (torch.cdist(points, reference) <= reach).any(1)
    assert torch.equal(lesson.in_manifold(points, reference), wanted), "with k = 3, the paper's choice"


def test_a_lost_mode_costs_recall_and_an_invented_one_precision():
    one = normal(60, 2)
    both = torch.cat([one, normal(60, 2, seed=1) + 100])
    assert lesson.precision_recall(both, one) == (1, 0.5), "all of it could be real, but half is never drawn"
    assert lesson.precision_recall(one, both) == (0.5, 1), "everything is drawn, but half of it is not real"


def test_too_narrow_costs_recall_and_too_wide_precision():
    real, model = normal(400, 2), normal(400, 2, seed=1)
    narrow, wide = (lesson.precision_recall(real, scale * model) for scale in (0.3, 3))
    assert narrow[0] > 0.95 and narrow[1] < 0.6, "truncation: each picture is typical, and the rest is missing"
    assert wide[0] < 0.6 and wide[1] > 0.9


@pytest.mark.parametrize("k", [0, 4, -1])
def test_there_must_be_a_kth_neighbour(k):
    with pytest.raises(ValueError, match=f"k = {k}"):
        lesson.precision_recall(LINE, LINE, k)


# --- CLIP score, R-precision ---

def test_clip_score_is_the_mean_cosine_times_the_scale():
    images, texts = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[0.6, 0.8], [0.0, -1.0]])
    assert close(lesson.clip_score(images, texts), 100 * (0.6 - 1) / 2, 1e-6), "GLIDE's scale is 100"
    assert close(lesson.clip_score(images, images, 20), 20) and close(lesson.clip_score(images, images.flip(0)), 0)


def test_only_unit_vectors_in_pairs_are_scored():
    unit = torch.eye(3)
    for images, texts in ((2 * unit, unit), (unit, 0.5 * unit), (unit[:2], unit)):
        with pytest.raises(ValueError, match="length 1"):
            lesson.clip_score(images, texts)
        with pytest.raises(ValueError, match="length 1"):
            lesson.r_precision(images, texts, 2)


def unit(*shape, seed=0):
    return torch.nn.functional.normalize(normal(*shape, seed=seed), dim=-1)


def test_a_perfect_clip_finds_every_caption():
    assert lesson.r_precision(torch.eye(50), torch.eye(50), 50, seeded()) == 1
    assert lesson.r_precision(torch.eye(50), torch.eye(50).roll(1, 0), 50, seeded()) == 0, "always another one"


@pytest.mark.parametrize("choices", [2, 5])
def test_guessing_finds_one_of_the_choices(choices):
    rate = lesson.r_precision(unit(5000, 24), unit(5000, 24, seed=1), choices, seeded())
    assert abs(rate - 1 / choices) < 4 * math.sqrt((1 - 1 / choices) / choices / 5000)


def test_with_all_captions_as_choices_there_is_nothing_random():
    texts = unit(80, 6)
    images = torch.nn.functional.normalize(texts + 0.2 * normal(80, 6, seed=1), dim=1)
    rate = ((images @ texts.T).argmax(1) == torch.arange(80)).double().mean().item()
    assert 0.2 < rate < 0.9 and lesson.r_precision(images, texts, 80) == rate
    assert rate < lesson.r_precision(images, texts, 10, seeded()), "fewer choices are easier"


def test_distractors_do_not_depend_on_the_order_of_captions():
    """Two captions in turn. Every second distractor or so is the own caption's twin, which is a tie and so a miss. If
    all distractors stood at one distance in the order given, all would be twins, or none."""
    texts = torch.eye(2).repeat(100, 1)
    rates = [lesson.r_precision(texts, texts, 2, seeded(seed)) for seed in range(20)]
    assert all(0.3 < rate < 0.7 for rate in rates), f"about one half is found: {rates}"


@pytest.mark.parametrize("choices", [1, 0, 6])
def test_there_must_be_as_many_captions_as_choices(choices):
    with pytest.raises(ValueError, match=f"not {choices}"):
        lesson.r_precision(torch.eye(5), torch.eye(5), choices)


# --- Preference ---

VOTES = [(0, 1, 1), (1, 0, 1), (0, 1, 0.5), (2, 0, 0), (0, 1, 1)]


def test_a_tie_is_half_a_win_for_each():
    assert lesson.count_wins(VOTES, 3).tolist() == [[0, 2.5, 1], [1.5, 0, 0], [0, 0, 0]]
    assert torch.equal(lesson.count_wins(torch.tensor(VOTES), 3), lesson.count_wins(VOTES, 3))


@pytest.mark.parametrize("vote", [(0, 3, 1), (-1, 0, 1), (1, 1, 1), (0, 1, 2), (0, 1, -0.5), (0, 1, math.nan),
                                  (0.5, 1, 1)])
def test_what_is_no_vote_is_refused(vote):
    with pytest.raises(ValueError, match="0 to 2"):
        lesson.count_wins([vote, *VOTES], 3)


def test_a_win_rate_is_a_share_of_the_votes_of_two():
    rates = lesson.win_rate(torch.tensor([[0, 3, 5], [1, 0, 0], [5, 0, 0]]))
    assert rates[0].tolist()[1:] == [0.75, 0.5] and rates[1, 0] == 0.25 and rates[1, 2].isnan(), "they never met"


def test_what_glides_scores_mean():
    assert f"{lesson.win_probability(133.0, 28.2):.3f}" == "0.646", "GLIDE table 4: 3.5B, s = 3 over 300M, s = 4"
    assert lesson.win_probability(7, 7) == 0.5
    assert close(lesson.win_probability(1200, 800), 10 / 11), "400 more are ten to one"
    assert close(lesson.win_probability(50, -30) + lesson.win_probability(-30, 50), 1)


@pytest.mark.parametrize("won, lost", [(3, 1), (1, 1), (2.5, 17.5), (646, 354), (10 ** 7, 1)])
def test_two_players_have_a_closed_form(won, lost):
    a, b = lesson.elo(torch.tensor([[0, won], [lost, 0]])).tolist()
    assert close(a - b, 400 * math.log10(won / lost)) and close(a + b, 0), "the winner is the higher one; mean zero"


def test_a_chain_has_a_closed_form_too():
    """Each met only the next one, so each difference is that of two players, however far the ends are apart."""
    wins = torch.zeros(12, 12)
    for i in range(11):
        wins[i, i + 1], wins[i + 1, i] = 1000, 1
    assert lesson.elo(wins).diff().tolist() == pytest.approx([-1200] * 11, rel=1e-9)


def expected(scores, games=1000):
    """Wins just as probable as the scores say."""
    return games * lesson.win_probability(scores[:, None], scores)


def test_scores_of_the_papers_table_are_found_again():
    scores = torch.tensor(list(lesson.PAPER.values()), dtype=DOUBLE)
    assert lesson.elo(expected(scores)).tolist() == pytest.approx((scores - scores.mean()).tolist(), abs=1e-8)


def test_published_strengths_are_found():
    """The example of Wikipedia's "Bradley–Terry model": strengths that sum to 1, Elo being 400·log₁₀ of them."""
    wins = torch.tensor([[0.0, 2, 0, 1], [3, 0, 5, 0], [0, 3, 0, 1], [4, 0, 3, 0]])
    strengths = 10 ** (lesson.elo(wins) / 400)
    assert (strengths / strengths.sum()).tolist() == pytest.approx([0.139, 0.226, 0.143, 0.492], abs=5e-4)


def test_published_scores_of_journals_are_found():
    """Which statistical journals cite which [Stigler 1994]; the scores are those that R's BradleyTerry2 prints, natural
    logarithms, Biometrika being 0."""
    wins = torch.tensor([[0.0, 730, 498, 221], [33, 0, 68, 17], [320, 813, 0, 142], [284, 276, 325, 0]])
    scores = lesson.elo(wins) * math.log(10) / 400
    assert (scores - scores[0]).tolist() == pytest.approx([0, -2.9491, -0.4796, 0.2690], abs=1e-4)


def test_scores_are_found_from_simulated_games():
    scores = torch.tensor([-150.0, -20, 30, 140]).double()
    wins = torch.zeros(4, 4).double()
    for i, j in itertools.combinations(range(4), 2):
        wins[i, j] = torch.bernoulli(expected(scores, 1)[i, j].expand(2000), generator=seeded(i * 4 + j)).sum()
        wins[j, i] = 2000 - wins[i, j]
    assert (lesson.elo(wins) - scores).abs().max() < 25, "6 pairs of 2,000 games: a standard error of about 4"


def test_at_the_maximum_everyone_has_won_as_often_as_expected():
    wins = torch.rand(9, 9, generator=seeded(), dtype=DOUBLE) ** 4
    scores, games = lesson.elo(wins), wins + wins.T
    off = 1 - torch.eye(9).double()
    surplus = ((wins - games * lesson.win_probability(scores[:, None], scores)) * off).sum(1)
    assert surplus.abs().max() < 1e-12 and scores.mean().abs() < 1e-9, "to float64's accuracy"

    def likelihood(scores):
        return (wins * lesson.win_probability(scores[:, None], scores).log() * off).sum()
    assert all(likelihood(scores + normal(9, seed=seed)) < likelihood(scores) for seed in range(20))


def test_a_long_step_does_not_overshoot():
    """Players so far apart that Newton's whole steps go ever further away, until no matrix can be solved."""
    wins = torch.tensor([[0, 2, 0, 10], [2380290, 0, 1, 73], [1375, 4365396, 0, 636], [69108, 0, 547, 0]]).double()
    scores = lesson.elo(wins)
    won = ((wins + wins.T) * lesson.win_probability(scores[:, None], scores)).sum(1)
    assert won.tolist() == pytest.approx(wins.sum(1).tolist(), rel=1e-6), "everyone wins as often as expected"


def test_games_against_oneself_say_nothing():
    wins = torch.tensor([[0.0, 3], [1, 0]])
    assert torch.allclose(lesson.elo(wins + 99 * torch.eye(2)), lesson.elo(wins))


def test_a_cycle_is_a_draw():
    assert lesson.elo(torch.eye(3).roll(1, 0)).abs().max() < 1e-9, "each beat one and lost to one; nobody is better"


@pytest.mark.parametrize("wins", [
    [[0, 3], [0, 0]], [[0, 0], [0, 0]],
    [[0, 1, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],     # two groups that never met
    [[0, 1, 2, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 1, 0]],     # one group never lost to the other
    [[0, 1, 0], [0, 0, 1], [0, 0, 0]]])
def test_scores_that_would_be_infinite_are_refused(wins):
    with pytest.raises(ValueError, match=r"player \d never beat player \d"):
        lesson.elo(torch.tensor(wins))


@pytest.mark.parametrize("wins", [[[0, -1], [1, 0]], [[0, math.nan], [1, 0]], [[0, 1, 1], [1, 0, 1]], [1, 2]])
def test_what_is_no_table_of_wins_is_refused(wins):
    with pytest.raises(ValueError, match="wins are"):
        lesson.elo(torch.tensor(wins))


# --- Intervals ---

def mean(x):
    return x.mean().item()


def test_a_bootstrap_interval_holds_the_truth_as_often_as_it_says():
    found = [lesson.bootstrap(mean, x, n=100, generator=seeded()) for x in normal(200, 40)]
    rate = sum(low <= 0 <= high for _, low, high in found) / 200
    assert 0.88 < rate < 0.985, f"{rate:.1%} of 95% intervals hold it"


def test_a_bootstrap_interval_of_a_mean_is_the_textbooks():
    x = normal(400)
    value, low, high = lesson.bootstrap(mean, x, n=2000, generator=seeded())
    assert value == mean(x), "the value is of the pictures themselves"
    wanted = 1.96 * x.std().item() / 20
    assert value - low == pytest.approx(wanted, rel=0.12) and high - value == pytest.approx(wanted, rel=0.12)


def test_pairs_stay_together():
    x = normal(100)
    def difference(a, b):
        return mean(a) - mean(b)
    assert lesson.bootstrap(difference, x, x + 1, generator=seeded())[1:] == pytest.approx((-1, -1)), "row by row"
    _, low, high = lesson.bootstrap(difference, x, x + 1, paired=False, generator=seeded())
    assert low < -1.1 and high > -0.9, "of two worlds the errors add"
    assert len(lesson.bootstrap(difference, x, x[:50], paired=False, n=2)) == 3, "which may differ in size"


def test_several_numbers_have_several_intervals():
    x = normal(50, 3) * torch.tensor([1.0, 10, 100]).double()
    for way in (lesson.bootstrap, lesson.half_sampling):
        value, low, high = way(lambda rows: rows.mean(0), x, n=20, generator=seeded())
        widths = [b - a for a, b in zip(low, high)]
        assert value == pytest.approx(x.mean(0).tolist())
        assert widths[1] > 4 * widths[0] and widths[2] > 4 * widths[1], "each as wide as its own numbers vary"


def test_half_sampling_of_a_mean_is_the_textbooks():
    x = normal(400)
    value, low, high = lesson.half_sampling(mean, x, n=800, generator=seeded())
    assert value == mean(x) and value - low == pytest.approx(1.96 * x.std().item() / 20, rel=0.12)
    assert high - value == pytest.approx(value - low), "a half is off from the whole as the whole is from the truth"


def test_the_standard_error_is_the_standard_deviation_of_the_halves():
    found = []
    value, low, high = lesson.half_sampling(lambda x: found.append(mean(x)) or found[-1], normal(10), n=3)
    assert close(high - value, 1.96 * statistics.stdev(found[:3])) and value == found[3]


def test_a_half_has_no_row_twice():
    halves = []
    lesson.half_sampling(lambda x, y: halves.append((len(x.unique()), len(y.unique()))) or 0.0, torch.arange(40),
                         torch.arange(10), n=5)
    assert halves == [(20, 5)] * 5 + [(40, 10)], "halves of each, then the whole"


def test_half_sampling_tells_how_fid_varies_and_the_bootstrap_does_not():
    pairs = [(x[0], 1.5 * x[1]) for x in normal(150, 2, 100, 5)]
    spread = torch.tensor([lesson.fid(*pair) for pair in pairs]).std().item()
    found = [lesson.half_sampling(lesson.fid, *pair, n=20, generator=seeded()) for pair in pairs[:20]]
    told = sum(high - low for _, low, high in found) / 20 / 2 / 1.96
    assert 0.75 < told / spread < 1.4, f"standard deviation {spread:.3f}, said to be {told:.3f}"
    equal = normal(2, 60, 20)
    value, low, high = lesson.bootstrap(lesson.fid, *equal, n=20, paired=False, generator=seeded())
    assert value < low, "rows that are drawn twice make a world narrower: not even the value is in the interval"


# --- The commands ---

@pytest.fixture
def two(tmp_path):
    for name, rows in (("real", normal(300, 4)), ("drawn", normal(200, 4, seed=1) + 0.5)):
        (tmp_path / name).mkdir()
        for i, part in enumerate(rows.split(100)):
            np.save(tmp_path / name / f"{i}.npy", part.numpy())
    return tmp_path / "real", tmp_path / "drawn"


def test_compare_prints_what_the_functions_say(two, capfd):
    status, told, _ = small.main(capfd, "compare", *two, script=lesson)
    real, drawn = map(lesson.read_features, two)
    rows = dict(line.split(maxsplit=1) for line in told.splitlines()[1:])
    wanted = {"FID": lesson.fid(real, drawn), "1000·KID": 1000 * lesson.kid(real, drawn), **dict(zip(
        ("precision", "recall"), lesson.precision_recall(real, drawn)))}
    assert status == 0 and "300 real and 200 generated" in told
    for name, value in wanted.items():
        number, low, _, high = rows[name].replace("(", "").replace(")", "").split()
        assert float(number) == pytest.approx(value, abs=1e-4) and float(low) < value < float(high)
    assert float(rows["FID∞"].split()[0]) < wanted["FID"]


def test_compare_takes_k(two, capfd):
    told = [small.main(capfd, "compare", *two, *option, script=lesson)[1] for option in ([], ["--k", 3], ["--k", 9])]
    assert told[0] == told[1] != told[2], "3 by default"


@pytest.mark.parametrize("argv, word", [
    (("compare", "real"), "generated"), (("compare", "real", "nowhere"), "nowhere"),
    (("compare", "real", "empty"), "0 .npy"),
    (("compare", "real", "drawn", "--k", 150), "k = 150"), (("compare", "real", "other.npy"), "[300, 4], [9, 5]"),
    (("dragon",), "dragon")])
def test_what_cannot_be_compared_is_refused_in_one_line(argv, word, two, capfd, monkeypatch):
    monkeypatch.chdir(two[0].parent)
    (two[0].parent / "empty").mkdir()
    np.save("other.npy", np.ones((9, 5)))
    assert word in small.refused(capfd, *argv, script=lesson)


def test_the_demonstration_shows_what_each_measure_sees(capfd, monkeypatch, tmp_path):
    """Of few pictures and few features, to be quick."""
    features, pictures = lesson.features, lesson.pictures
    monkeypatch.setattr(lesson, "features", lambda judge, images: features(judge, images)[:, :24])
    monkeypatch.setattr(lesson, "pictures", lambda n: pictures(n // 8))
    monkeypatch.setattr(lesson.train, "OUTPUTS", tmp_path)
    status, told, _ = small.main(capfd, script=lesson)
    rows = {line[3:14].strip(): [float(number) for number in line[14:58].split()] for line in told.splitlines()[2:12]}
    assert status == 0 and list(rows) == [name.strip() for name in lesson.MEANING]
    assert rows["FID"][0] == min(rows["FID"]) and rows["R-precision"][0] == max(rows["R-precision"])
    assert rows["IS"][2] < 1.5 and rows["IS"][3] > 10, "hearts alone are one noun; red alone keeps all nouns"
    assert "64.6%" in told and (tmp_path / "11_measures.png").stat().st_size > 20_000
    assert max(map(len, told.splitlines())) <= 120, "it is read in a terminal"
