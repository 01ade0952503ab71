"""Calibration by class and in bins of equal counts, against examples worked by hand and scikit-learn."""

import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from kd.reports import calibration


def overconfident(n=500, classes=4):
    """Return p [N, K], which is too confident, and labels [N]."""
    random = np.random.default_rng(0)
    logits = 2 * random.normal(size=(n, classes))
    labels = [random.choice(classes, p=row) for row in calibration.probabilities(logits)]
    return calibration.probabilities(logits, 0.5), np.array(labels)


def test_classwise_ece_of_an_example_worked_by_hand():
    p = np.array([[0.9, 0.1, 0.0], [0.6, 0.3, 0.1], [0.4, 0.6, 0.0], [0.3, 0.7, 0.0]])
    labels = np.array([0, 0, 1, 2])
    # In two bins of equal steps, times 4 images:
    first = abs(0 - 0.7) + abs(2 - 1.5)  # 0.3 0.4 | 0.6 0.9
    second = abs(0 - 0.4) + abs(1 - 1.3)  # 0.1 0.3 | 0.6 0.7
    third = abs(1 - 0.1)  # 0.0 0.0 0.0 0.1 |
    assert calibration.classwise_ece(p, labels, bins=2) == pytest.approx((first + second + third) / 4 / 3)


def test_a_class_without_images_counts_with_all_its_probability():
    p, labels = np.array([[0.5, 0.25, 0.25]] * 4), np.array([0, 0, 1, 1])
    assert calibration.classwise_ece(p, labels) == pytest.approx((0 + 0.25 + 0.25) / 3)


@pytest.mark.parametrize("bins", [1, 5, 15])
def test_classwise_ece_equals_the_curves_of_scikit_learn(bins):
    p, labels = overconfident()
    gaps = []
    for k in range(p.shape[1]):
        observed, predicted = calibration_curve(labels == k, p[:, k], n_bins=bins)
        counts = np.histogram(p[:, k], np.linspace(0, 1, bins + 1))[0]
        gaps.append(np.average(np.abs(observed - predicted), weights=counts[counts > 0]))
    assert calibration.classwise_ece(p, labels, bins) == pytest.approx(np.mean(gaps))


def test_for_two_classes_both_have_the_same_error():
    p, labels = overconfident(classes=2)
    positive = [calibration._gap(calibration._equal_steps(own, 15), own, labels == k) for k, own in enumerate(p.T)]
    assert positive[0] == pytest.approx(positive[1]) and positive[0] > 0.01
    assert calibration.classwise_ece(p, labels) == pytest.approx(positive[0])


def test_adaptive_ece_of_an_example_worked_by_hand():
    confidence = np.array([0.95, 0.6, 0.9, 0.8])
    p, labels = np.stack([confidence, 1 - confidence], axis=1), np.array([0, 1, 0, 0])
    # Bins of two images each: 0.6 wrong, 0.8 right; 0.9 and 0.95 right.
    assert calibration.adaptive_ece(p, labels, bins=2) == pytest.approx((abs(1 - 1.4) + abs(2 - 1.85)) / 4)
    assert calibration.adaptive_ece(p, labels, bins=1) == pytest.approx(abs(3 - 3.25) / 4)


@pytest.mark.parametrize("bins", [1, 4, 15])
def test_bins_have_equal_counts_and_equal_the_quantiles_of_scikit_learn(bins):
    p, labels = overconfident(15 * 4 * 10)
    counts = np.bincount(calibration.equal_counts(p[:, 0], bins))
    assert counts.tolist() == [len(p) // bins] * bins
    rows = calibration.frequency_bins(p[:, 0], labels == 0, bins)
    observed, predicted = calibration_curve(labels == 0, p[:, 0], n_bins=bins, strategy="quantile")
    assert [row["observed"] for row in rows] == pytest.approx(observed.tolist())
    assert [row["predicted"] for row in rows] == pytest.approx(predicted.tolist())


def test_equal_values_are_in_one_bin_whatever_their_order():
    values = np.array([0.1, 0.5, 0.5, 0.5, 0.5, 0.5, 0.9, 0.9, 1.0, 1.0])
    bin_of = calibration.equal_counts(values, 5)
    assert bin_of.tolist() == [0, 1, 1, 1, 1, 1, 2, 2, 3, 3]
    order = np.random.default_rng(0).permutation(len(values))
    assert calibration.equal_counts(values[order], 5).tolist() == bin_of[order].tolist()


def test_ties_make_the_order_of_the_images_count_for_nothing():
    random = np.random.default_rng(0)
    p, labels = overconfident()
    p = p.round(1)  # many equal confidences, of right and wrong images
    expected = calibration.adaptive_ece(p, labels)
    for _ in range(20):
        order = random.permutation(len(p))
        assert calibration.adaptive_ece(p[order], labels[order]) == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize("count", [1, 3, 14])
def test_fewer_images_than_bins(count):
    p, labels = overconfident(count)
    assert calibration.equal_counts(p[:, 0]).max() == count - 1
    wrong = np.abs((p.argmax(1) == labels) - p.max(1))
    assert calibration.adaptive_ece(p, labels) == pytest.approx(wrong.mean())


def test_certain_and_equal_predictions_are_one_bin():
    p, labels = np.eye(2)[[0] * 8], np.array([0] * 6 + [1] * 2)
    assert calibration.adaptive_ece(p, labels) == calibration.classwise_ece(p, labels) == 0.25
    assert calibration.frequency_bins(p[:, 1], labels == 1) == [{"count": 8, "predicted": 0.0, "observed": 0.25}]
