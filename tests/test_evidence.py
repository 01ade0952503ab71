"""Metrics beyond accuracy, and confidence intervals.

Both are checked against examples worked by hand and against formulas written out again. The coverage of
the intervals is measured by benchmarks/coverage.py.
"""

import numpy as np
import pytest
from scipy import stats

from kd.reports import calibration, metrics, statistics, text


def logits_of(p):
    return np.log(np.array(p))


def test_ece_by_hand():
    # With bins of width 0.5, the confidences 0.6, 0.8 and 0.9 (right, wrong, right) are all in the
    # upper bin: |2/3 - 2.3/3| * 3/3 = 0.1.
    p = np.array([[0.6, 0.4], [0.2, 0.8], [0.9, 0.1]])
    assert calibration.ece(p, np.array([0, 0, 0]), bins=2) == pytest.approx(0.1)
    # With bins of width 0.1, a confidence on a border belongs to the lower bin:
    # |1 - 0.6|/3 + |0 - 0.8|/3 + |1 - 0.9|/3.
    assert calibration.ece(p, np.array([0, 0, 0]), bins=10) == pytest.approx((0.4 + 0.8 + 0.1) / 3)
    assert [row["count"] for row in calibration.confidence_bins(p, np.array([0, 0, 0]), 10)] == [0, 0, 0, 0, 0, 1, 0, 1, 1, 0]


def test_brier_by_hand():
    p = np.array([[0.6, 0.4, 0.0], [0.2, 0.3, 0.5]])
    assert calibration.brier(p, np.array([0, 1])) == pytest.approx((0.16 + 0.16 + 0.04 + 0.49 + 0.25) / 2)


def test_a_study_is_judged_by_the_mean_probability_of_its_views():
    # Study s1 has the mean probabilities (0.55, 0.45) and is right, although one view is wrong.
    # Study s2 has one view, which is wrong.
    logits = logits_of([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    assert metrics.by_study(logits, np.array([0, 0, 1]), ["s1", "s1", "s2"]) == {
        "studies": 2, "accuracy": 0.5, "several_labels": 0, "unknown": 0, "reason": None}


def test_a_study_with_several_labels_counts_never_and_an_image_without_a_study_is_none():
    # s1 has a hand and a wrist, s2 is right, s3 is wrong, and the study of the last image is unknown.
    logits = logits_of([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.6, 0.4], [0.9, 0.1]])
    found = metrics.by_study(logits, np.array([0, 1, 0, 1, 0]), ["s1", "s1", "s2", "s3", None])
    assert found == {"studies": 2, "accuracy": 0.5, "several_labels": 1, "unknown": 1, "reason": None}


@pytest.mark.parametrize("studies, reason", [
    ([None, None], "no image has a known study"), (["s1", "s1"], "every study has several labels")])
def test_the_accuracy_over_studies_is_null_with_a_reason_where_no_study_counts(studies, reason):
    found = metrics.by_study(logits_of([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), studies)
    assert found["accuracy"] is None and found["studies"] == 0 and found["reason"] == reason


def test_temperature_scaling_undoes_a_scale_and_never_hurts_where_it_was_fitted():
    random = np.random.default_rng(0)
    true = random.normal(size=(4000, 5))
    labels = np.array([random.choice(5, p=row) for row in calibration.probabilities(true)])
    assert calibration.fit_temperature(3 * true, labels) == pytest.approx(3, rel=0.1)
    scores = calibration.calibration(3 * true, labels, calibration.fit_temperature(3 * true, labels))
    assert all(scores["after"][key] < scores["before"][key] for key in ("ece", "nll", "brier"))
    grid = [metrics.nll(3 * true / t, labels) for t in np.linspace(1, 6, 60)]
    assert scores["after"]["nll"] <= min(grid) + 1e-9


@pytest.mark.parametrize("logits, labels", [
    ([[9.0, 0.0], [0.0, 9.0]], [0, 1]),  # all right: the smaller T, the more likely
    ([[9.0, 0.0], [0.0, 9.0]], [1, 0]),  # all wrong: the larger T, the more likely
    (np.full((5, 3), 0.7), [0, 1, 2, 0, 1])])  # T changes nothing
def test_there_is_no_temperature_where_the_likelihood_has_no_maximum(logits, labels):
    assert calibration.fit_temperature(np.array(logits), np.array(labels)) is None


def test_scores_after_scaling_are_null_with_a_reason_without_a_temperature():
    logits, labels = np.array([[3.0, 0.0], [0.0, 3.0], [3.0, 0.0]]), np.array([0, 1, 1])
    found = calibration.calibration(logits, labels, None)
    assert found["temperature"] is None and found["after"] is None and "all validation images" in found["reason"]
    assert found["before"]["nll"] == metrics.nll(logits, labels)
    assert "all validation images" in found["reason"]
    fitted = calibration.calibration(logits, labels, 2.0)
    assert fitted["reason"] is None and fitted["temperature"] == 2.0


@pytest.mark.parametrize("shift, scale", [(0, 1), (5.0, 0.001), (-3.0, 100)])
def test_the_temperature_is_where_the_likelihood_is_flat(shift, scale):
    random = np.random.default_rng(2)
    true = random.normal(size=(500, 4))
    labels = np.array([random.choice(4, p=row) for row in calibration.probabilities(true)])
    t = calibration.fit_temperature(scale * true + shift, labels)
    assert (t is None) == (scale == 0.001)  # it would be 0.001, below the range
    if t is not None:
        likelihoods = [metrics.nll((scale * true + shift) / (t * factor), labels) for factor in (0.99, 1, 1.01)]
        assert likelihoods[1] == min(likelihoods)


def test_agreement_by_hand():
    found = metrics.agreement(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), np.array([0, 0, 2, 2]), 10)
    assert found == {"same_prediction": 0.5, "newly_wrong": 1, "newly_right": 1, "first_newly_wrong": [11]}
    many = metrics.agreement(np.ones(30, int), np.zeros(30, int), np.zeros(30, int), 2)
    assert many["newly_wrong"] == 30 and many["first_newly_wrong"] == list(range(2, 22))


@pytest.mark.parametrize("freedom, expected", [(1, 12.7062), (2, 4.30265), (5, 2.57058), (30.5, 2.04088), (1e6, 1.95996)])
def test_t_quantiles_are_those_of_the_tables(freedom, expected):
    low, high = statistics.Estimate(0.1, 0.02, freedom).interval
    assert (high - 0.1) / 0.02 == pytest.approx(expected, rel=1e-5) == (0.1 - low) / 0.02
    assert statistics.Estimate(0.02 * expected, 0.02, freedom).p_two_sided() == pytest.approx(0.05, rel=1e-4)
    assert statistics.Estimate(0.02 * expected - 0.01, 0.02, freedom).p_below(-0.01) == pytest.approx(0.025, rel=1e-4)


def test_an_interval_stays_between_minus_1_and_1():
    assert statistics.Estimate(0.5, 1.0, 2).interval == (-1, 1)


def answers(*counts):
    """Return two rows of answers with (both right, only the first, only the second, none) images."""
    kinds = np.repeat([[1, 1], [1, 0], [0, 1], [0, 0]], counts, axis=0).astype(bool)
    return kinds[:, :1].T, kinds[:, 1:].T


@pytest.mark.parametrize("first, second, total", [(7, 2, 50), (0, 0, 12), (1, 0, 30), (0, 40, 300)])
def test_one_image_per_patient_gives_the_interval_of_agresti_and_min(first, second, total):
    compared = statistics.compare(*answers(total - first - second, first, second, 0), np.arange(total))
    more = total + 2
    variance = (first + second + 1 - (first - second) ** 2 / more) / more**2
    assert compared.mean == pytest.approx((first - second) / total)
    assert compared.center == pytest.approx((first - second) / more)
    assert compared.patient_variance == pytest.approx(variance * more / (more - 1))
    assert (compared.discordant, compared.patients, compared.seeds) == (first + second, total, 1)


def test_ten_equal_images_per_patient_carry_no_more_information_than_one():
    first, second = answers(60, 15, 10, 15)
    once = statistics.compare(first, second, np.arange(100))
    repeated = statistics.compare(first.repeat(10, 1), second.repeat(10, 1), np.arange(100).repeat(10))
    assert repeated.patient_variance == pytest.approx(once.patient_variance) and repeated.discordant == once.discordant


def test_the_variance_over_patients_of_different_size_is_that_of_a_bootstrap():
    random = np.random.default_rng(0)
    patients = np.repeat(np.arange(1000), random.integers(1, 9, 1000))  # so many that the two added ones hardly count
    first, second = (random.random((1, len(patients))) < 0.5 + 0.4 * random.random(1000)[patients] for _ in range(2))
    found = statistics.compare(first, second, patients)
    gaps, means = first[0].astype(float) - second[0], []
    for _ in range(2000):
        counts = np.bincount(random.integers(0, 1000, 1000), minlength=1000)[patients]
        means.append((counts * gaps).sum() / counts.sum())
    assert found.patient_variance == pytest.approx(np.var(means), rel=0.1)


def test_the_variance_between_seeds_is_that_of_an_analysis_of_variance():
    random = np.random.default_rng(1)
    first, second = random.random((3, 100)) < 0.9, random.random((3, 100)) < 0.7
    gaps = first.astype(float) - second
    compared = statistics.compare(first, second, np.arange(100))
    rest = gaps - gaps.mean(0) - gaps.mean(1, keepdims=True) + gaps.mean()
    assert compared.seed_variance == pytest.approx(gaps.mean(1).var(ddof=1))
    assert compared.noise_variance == pytest.approx((rest**2).sum() / (2 * 99) / 100)


def test_the_variances_are_added_with_satterthwaites_freedom():
    one = statistics.Comparison(0.05, 0.048, 0.0004, 0.0009, 0.0003, 3, 80, 30)
    variance = 0.0004 + 0.0009 / 3
    freedom = (0.0004 + 6 * 0.0003) ** 2 / (0.0004**2 / 79 + (6 * 0.0003) ** 2 / 2)  # few seeds count six times
    assert statistics.estimate(one) == pytest.approx((0.048, variance**0.5, freedom))
    single = statistics.Comparison(0.05, 0.048, 0.0004, 0.0, 0.0, 1, 80, 30)
    assert statistics.estimate(single) == pytest.approx((0.048, 0.02, 79))


def with_seeds(variance, seeds=3):
    return statistics.Comparison(0, 0, 0.0004, variance, 0.0003, seeds, 80, 30)


def test_comparisons_of_a_family_share_the_variance_between_seeds():
    small, large = with_seeds(0.0003), with_seeds(0.0009)
    # Comparisons with one network in common have the degrees of freedom of one.
    assert statistics.shared_seed_variances([large, small], ["a", "a"])[1] == pytest.approx((0.0003, 0.0006, 2))
    assert statistics.shared_seed_variances([large, small], ["a", "b"]) == [
        pytest.approx((0.0006, 0.0009, 4)), pytest.approx((0.0003, 0.0006, 4))]  # its own, if that is larger
    more = statistics.shared_seed_variances([small, with_seeds(0.0009, seeds=5)], ["a", "b"])[0]
    assert more == pytest.approx(((2 * 0 + 4 * 0.0006) / 6, (2 * 0.0003 + 4 * 0.0009) / 6, 6))


def test_a_comparison_whose_seeds_vary_much_more_stands_alone():
    family = [with_seeds(0.01), *[with_seeds(0.0004)] * 3]
    found = statistics.shared_seed_variances(family, list("abcd"))
    assert found[0] == statistics.own_seed_variance(family[0]) == pytest.approx((0.01, 0.06, 2))
    assert found[1].freedom == 8
    limit = 0.0004 * stats.f.ppf(0.9, 2, 6)
    inside, outside = (statistics.shared_seed_variances([with_seeds(limit * factor), *family[1:]], list("abcd"))[0].freedom
                       for factor in (0.99, 1.01))
    assert (inside, outside) == (8, 2)


def test_runs_are_paired_by_the_seeds_that_both_sides_have():
    random = np.random.default_rng(3)
    patients = np.arange(30) // 3
    first = {seed: random.random(30) < 0.9 for seed in (3, 1, 2)}
    second = {seed: random.random(30) < 0.3 for seed in (2, 3, 4)}
    sides = [np.stack([side[seed] for seed in (2, 3)]) for side in (first, second)]
    assert statistics.pair(first, second, patients) == statistics.compare(*sides, patients)
    assert statistics.pair(first, {5: second[4]}, patients) is None
    assert statistics.pair(first, second, np.zeros(30)) is None  # only one patient


def test_a_mean_of_one_seed_has_no_standard_deviation():
    assert statistics.mean_sd([0.5]) == {"mean": 0.5, "sd": None}
    assert statistics.mean_sd(np.array([0.0, 1.0])) == {"mean": 0.5, "sd": pytest.approx(0.5**0.5)}


def test_numbers_as_text():
    score, gap = {"mean": 0.12345, "sd": 0.0012}, {"mean": 0.0123, "low": -0.00123, "high": 0.02}
    assert text.mean_text(score, n=3) == "0.1235 ± 0.0012 (n = 3)" and text.mean_text(None) == "-"
    assert text.mean_text(score | {"sd": None}, digits=3) == "0.123"
    assert text.difference_text(gap) == "+0.0123 [-0.0012, +0.0200]"
    assert text.difference_texts(gap, digits=1, factor=100) == ("+1.2", "[-0.1, +2.0]")
