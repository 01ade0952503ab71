"""Numbers from logits, against hand-worked examples."""

import numpy as np
import pytest

from kd import metrics

# Five images of three classes; the third is never predicted.
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
    text = metrics.report_text(report, ("a", "b", "c"))
    assert text.splitlines()[3].split() == ["c", "-", "0.0000", "0.0000", "2"]


def test_a_class_without_images_has_no_recall():
    report = metrics.classification_report(LOGITS[:3], LABELS[:3], ("a", "b", "c"))
    assert report["c"]["recall"] is None and report["macro avg"]["recall"] == pytest.approx(2 / 3)
