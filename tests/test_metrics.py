"""Metrics computed from logits, against examples worked by hand."""

import warnings

import numpy as np
import pytest
from sklearn.metrics import cohen_kappa_score, f1_score, roc_auc_score

from kd.config.reporting import Reporting
from kd.data.index import Index
from kd.reports import evidence, metrics
from kd.reports.calibration import probabilities
from kd.reports.text import report_text

# Five images of three classes. The third class is never predicted.
LOGITS = np.array([[2.0, 0, 0], [2, 0, 0], [0, 2, 0], [2, 0, 0], [0, 2, 0]])
LABELS = np.array([0, 0, 1, 2, 2])


def test_accuracy_and_nll():
    assert metrics.accuracy(LOGITS, LABELS) == 0.6
    right, wrong = np.log(np.exp(2) + 2) - 2, np.log(np.exp(2) + 2)
    assert metrics.nll(LOGITS, LABELS) == pytest.approx((3 * right + 2 * wrong) / 5)
    assert np.isfinite(metrics.nll(LOGITS * 1e4, LABELS))


def test_confusion_matrix_counts_true_rows_and_predicted_columns():
    assert metrics.confusion_matrix(LOGITS, LABELS) == [[2, 0, 0], [0, 1, 0], [1, 1, 0]]


def test_a_class_that_is_never_predicted_is_null_and_counts_as_zero_in_the_averages():
    report = metrics.classification_report(LOGITS, LABELS, ("a", "b", "c"))
    assert report["c"]["precision"] is None and report["c"]["recall"] == 0.0 and report["c"]["support"] == 2
    assert report["macro avg"]["precision"] == pytest.approx((2 / 3 + 1 / 2 + 0) / 3)
    assert report["accuracy"] == 0.6
    text = report_text(report, ("a", "b", "c"))
    assert text.splitlines()[3].split() == ["c", "-", "0.0000", "0.0000", "2"]


def test_a_class_without_images_has_no_recall_and_does_not_count_in_the_averages():
    report = metrics.classification_report(LOGITS[:3], LABELS[:3], ("a", "b", "c"))
    assert report["c"]["recall"] is None and report["macro avg"]["recall"] == 1.0 and report["macro avg"]["support"] == 3.0


@pytest.mark.parametrize("absent", [False, True])
def test_a_report_has_one_macro_f1_and_a_collapsed_network_gains_nothing(absent):
    random = np.random.default_rng(0)
    labels = random.integers(0, 4 - absent, 60)  # the last class may be absent
    logits = random.normal(size=(60, 4))
    table = metrics.classification_report(logits, labels, tuple("abcd"))["macro avg"]
    index = Index("x", tuple("abcd"), ())
    own = evidence.summarise(evidence.Labelled(logits, labels, np.arange(60), [None] * 60, {}), index, None, None, Reporting())
    assert own["macro_f1"] == table["f1-score"] and own["balanced_accuracy"] == table["recall"]
    present = sorted(set(labels.tolist()))
    assert own["macro_f1"] == pytest.approx(np.mean(f1_score(labels, logits.argmax(1), average=None, labels=present)))
    collapsed = metrics.macro_averages(of([0] * 60, 4), labels)
    assert collapsed["recall"] == pytest.approx(1 / len(present)) and collapsed["f1-score"] < collapsed["recall"]


def of(predicted, classes=3):
    """Return logits that predict these classes."""
    return 4.0 * np.eye(classes)[predicted]


def test_quadratic_kappa_of_a_hand_worked_example():
    # The labels 0 0 1 2 and the predictions 0 1 1 0 have squared distances 0 1 0 4, in total 5.
    # The total expected by chance combines each label (2, 1 and 1 of 4 images) with each prediction
    # (2, 2 and 0 of 4 images):
    #   label 0: (2 * 0 + 2 * 1) * 2 = 4
    #   label 1: (2 * 1 + 2 * 0) * 1 = 2
    #   label 2: (2 * 4 + 2 * 1) * 1 = 10
    # The sum is 16, so the expected total is 16 / 4 = 4.
    assert metrics.quadratic_weighted_kappa(of([0, 1, 1, 0]), np.array([0, 0, 1, 2])) == pytest.approx(1 - 5 / 4)
    assert metrics.quadratic_weighted_kappa(of([0, 1, 2]), np.array([0, 1, 2])) == 1.0


def test_metrics_of_grades_equal_those_of_scikit_learn():
    random = np.random.default_rng(0)
    logits, labels = random.normal(0, 2, (200, 5)), random.integers(0, 5, 200)
    found = metrics.grades(logits, labels)
    assert found["quadratic_kappa"] == pytest.approx(cohen_kappa_score(labels, logits.argmax(1), weights="quadratic"))
    assert found["referable_auc"] == pytest.approx(roc_auc_score(labels >= 2, probabilities(logits)[:, 2:].sum(1)))
    assert metrics.referable_auc(logits, labels, at=4) == pytest.approx(roc_auc_score(labels >= 4, probabilities(logits)[:, 4]))
    assert found["reason"] is None


def test_the_order_of_very_sure_predictions_counts():
    logits = np.array([[0, 0, 50.0], [0, 0, 60], [0, 0, 70], [0, 0, 80]])  # each probability is 1 in float64
    assert metrics.referable_auc(logits, np.array([0, 1, 2, 2])) == 1.0


ONE_GRADE = "quadratic_kappa: labels and predictions contain only one grade; referable_auc: "


@pytest.mark.parametrize("predicted, labels, classes, kappa, auc, reason", [
    ([1, 1], [1, 1], 5, None, None, f"{ONE_GRADE}no image is of grade 2 or above"),
    ([3, 3], [3, 3], 5, None, None, f"{ONE_GRADE}no image is below grade 2"),
    ([0, 0], [1, 1], 5, 0.0, None, "referable_auc: no image is of grade 2 or above"),
    ([2, 2], [0, 4], 5, 0.0, 0.5, None), ([0, 1], [0, 1], 2, 1.0, None, "referable_auc: there are only 2 grades")])
def test_an_undefined_metric_of_grades_is_null_with_its_reason(predicted, labels, classes, kappa, auc, reason):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = metrics.grades(of(predicted, classes), np.array(labels))
    assert found == {"quadratic_kappa": kappa, "referable_auc": auc, "reason": reason}


def test_equal_probabilities_are_a_tie_for_the_auc():
    """Check that each pair of images with the same distribution counts half.

    Their logits differ by a constant or in the order of the lower grades.
    """
    random = np.random.default_rng(0)
    row = np.log(np.array([0.2, 0.3, 0.4, 0.1]))
    logits = np.stack([(row[[1, 0, 2, 3]] if k % 2 else row) + random.uniform(-5, 5) for k in range(40)])
    assert metrics.referable_auc(logits, np.arange(40) % 3) == 0.5
