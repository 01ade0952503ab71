"""Metrics beyond accuracy, and confidence intervals.

The metrics are checked against examples worked by hand, the intervals against their nominal level.
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
    assert text.study_text(found) == "0.5000 (n = 2, without 1 study with several labels and 1 image of an unknown study)"


@pytest.mark.parametrize("studies, reason", [
    ([None, None], "no image has a known study"), (["s1", "s1"], "every study has several labels")])
def test_the_accuracy_over_studies_is_null_with_a_reason_where_no_study_counts(studies, reason):
    found = metrics.by_study(logits_of([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 1]), studies)
    assert found["accuracy"] is None and found["studies"] == 0 and found["reason"] == reason
    assert text.study_text(found) == f"undefined ({reason})"


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
    assert text.calibration_text(found).startswith("without temperature scaling: ece ") and found["reason"] in text.calibration_text(found)
    fitted = calibration.calibration(logits, labels, 2.0)
    assert fitted["reason"] is None and text.calibration_text(fitted).endswith(" (T = 2.000)")


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
    found = metrics.agreement(np.array([0, 1, 1, 2]), np.array([0, 0, 1, 1]), np.array([0, 0, 2, 2]), ["a", "b", "c", "d"])
    assert found == {"same_prediction": 0.5, "newly_wrong": 1, "newly_right": 1, "first_newly_wrong": ["b"]}
    many = metrics.agreement(np.ones(30, int), np.zeros(30, int), np.zeros(30, int), [str(k) for k in range(30)])
    assert many["newly_wrong"] == 30 and many["first_newly_wrong"] == [str(k) for k in range(20)]


@pytest.mark.parametrize("freedom, expected", [(1, 12.7062), (2, 4.30265), (5, 2.57058), (30.5, 2.04088), (1e6, 1.95996)])
def test_t_quantiles_are_those_of_the_tables(freedom, expected):
    """Check the quantiles through half the width of an interval.

    Half the width is the quantile times the square root of the variance.
    """
    assert statistics.half_width([(4.0, freedom)]) == pytest.approx(2 * expected, rel=1e-5)


def test_the_patient_variance_is_that_of_a_mean_when_each_patient_has_one_image():
    values = np.random.default_rng(0).normal(size=400)
    exact = values.var(ddof=1) / 400
    assert statistics.patient_variance(values, np.arange(400)) == pytest.approx(exact, rel=0.1)
    # Ten equal images per patient carry no more information than one.
    repeated = statistics.patient_variance(values.repeat(10), np.arange(400).repeat(10))
    assert repeated == pytest.approx(exact, rel=0.1)
    assert statistics.patient_variance(values, np.zeros(400)) == 0.0


def test_a_difference_adds_the_two_variances_with_satterthwaites_freedom():
    random = np.random.default_rng(1)
    patients = np.arange(200) // 2
    first, second = random.random((3, 200)) < 0.9, random.random((3, 200)) < 0.8
    gap = statistics.difference(first, second, patients)
    gaps = first.astype(float) - second
    a, b = statistics.patient_variance(gaps.mean(0), patients), gaps.mean(1).var(ddof=1) / 3
    half = stats.t.ppf(0.975, (a + b) ** 2 / (a**2 / 99 + b**2 / 2)) * (a + b) ** 0.5
    assert (gap["mean"], gap["high"] - gap["mean"]) == (pytest.approx(gaps.mean()), pytest.approx(half))
    assert gap["seeds"] == 3 and gap["patients"] == 100
    single = statistics.difference(first[:1], second[:1], patients)
    assert single["seeds"] == 1 and single["low"] < single["mean"] < single["high"]


def test_equal_predictions_have_no_difference_at_all():
    right = np.ones((3, 10), bool)
    assert statistics.difference(right, right, np.arange(10)) == {"mean": 0.0, "low": 0.0, "high": 0.0, "seeds": 3, "patients": 10}


def test_a_mean_of_one_seed_has_no_standard_deviation():
    assert statistics.mean_sd([0.5]) == {"mean": 0.5, "sd": None}
    assert statistics.mean_sd(np.array([0.0, 1.0])) == {"mean": 0.5, "sd": pytest.approx(0.5**0.5)}


def test_runs_are_paired_by_the_seeds_that_both_sides_have():
    random = np.random.default_rng(3)
    patients = np.arange(30) // 3
    first = {seed: random.random(30) < 0.9 for seed in (3, 1, 2)}
    second = {seed: random.random(30) < 0.3 for seed in (2, 3, 4)}
    gap = statistics.paired_difference(first, second, patients)
    sides = [np.stack([side[seed] for seed in (2, 3)]) for side in (first, second)]
    assert gap == statistics.difference(*sides, patients) | {"says": "better"}
    assert statistics.paired_difference(second, first, patients, margin=0.01)["says"] == "worse"
    assert statistics.paired_difference(first, {4: second[4]}, patients) is None
    assert statistics.paired_difference(first, second, np.zeros(30)) is None  # only one patient


def test_numbers_as_text():
    score, gap = {"mean": 0.12345, "sd": 0.0012}, {"mean": 0.0123, "low": -0.00123, "high": 0.02}
    assert text.mean_text(score, n=3) == "0.1235 ± 0.0012 (n = 3)" and text.mean_text(None) == "-"
    assert text.mean_text(score | {"sd": None}, digits=3) == "0.123"
    assert text.difference_text(gap) == "+0.0123 [-0.0012, +0.0200]"
    assert text.difference_texts(gap, digits=1, factor=100) == ("+1.2", "[-0.1, +2.0]")


@pytest.mark.parametrize("low, high, alone, teacher", [
    (0.01, 0.03, "better", "as good within 0.01"), (-0.005, 0.03, "no evidence", "as good within 0.01"),
    (-0.02, 0.03, "no evidence", "not shown"), (-0.03, -0.01, "worse", "worse"),
    (-0.006, -0.001, "worse", "as good within 0.01")])
def test_what_an_interval_says(low, high, alone, teacher):
    gap = {"low": low, "high": high}
    assert statistics.against_alone(gap) == alone and statistics.against_teacher(gap, 0.01) == teacher


@pytest.mark.parametrize("count, cases", [
    (60, [(60, 0.03)]),
    pytest.param(1000, [(p, sd) for p in (60, 300) for sd in (0.0, 0.015, 0.03)], marks=pytest.mark.slow)])
def test_the_interval_has_its_nominal_coverage_and_simpler_ones_do_not(count, cases):
    from benchmarks.coverage import METHODS, holds_zero, simulated
    for patients, seed_sd in cases:
        random = np.random.default_rng([7, patients, int(1000 * seed_sd)])
        sets = [simulated(random, patients, seed_sd) for _ in range(count)]
        shares = {method: np.mean([holds_zero(*one, method) for one in sets[:count if method == METHODS[0] else 60]])
                  for method in METHODS}
        slack = 2 * (0.05 * 0.95 / count) ** 0.5 if count < 1000 else 0
        assert shares[METHODS[0]] >= 0.93 - slack, (patients, seed_sd, shares)
        assert shares["images only"] < 0.93, (patients, seed_sd, shares)
        assert seed_sd < 0.03 or shares["patients only"] < 0.93, (patients, seed_sd, shares)
