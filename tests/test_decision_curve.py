"""Net benefit, against examples worked by hand."""

import numpy as np
import pytest

from kd.reports.decision_curve import THRESHOLDS, decision_curve


def test_net_benefit_of_an_example_worked_by_hand():
    p = np.array([0.05, 0.2, 0.3, 0.6, 0.9])
    positive = np.array([0, 1, 0, 0, 1])
    curve = decision_curve(p, positive, np.array([0.1, 0.2, 0.5, 0.75, 0.95]))
    # Treated are 2 of 2 and 2 of 3 images at thresholds of 0.1 and 0.2 (p = 0.2 is treated at 0.2),
    # then 1 and 1, 1 and 0, none.
    expected = [2 / 5 - 2 / 5 / 9, 2 / 5 - 2 / 5 / 4, 1 / 5 - 1 / 5, 1 / 5, 0]
    assert curve["network"].tolist() == pytest.approx(expected)
    assert curve["all"].tolist() == pytest.approx([2 / 5 - 3 / 5 * odds for odds in (1 / 9, 1 / 4, 1, 3, 19)])
    assert curve["none"].tolist() == [0] * 5


def test_net_benefit_equals_its_definition_at_every_threshold():
    random = np.random.default_rng(0)
    p, positive = random.uniform(size=300).round(2), random.integers(0, 2, 300)
    curve = decision_curve(p, positive)
    assert curve["thresholds"].tolist() == [k / 100 for k in range(1, 100)]
    for t, found in zip(THRESHOLDS, curve["network"]):
        treated = p >= t
        expected = (treated & (positive == 1)).mean() - (treated & (positive == 0)).mean() * t / (1 - t)
        assert found == pytest.approx(expected)


def test_limits():
    positive = np.array([0, 1, 1, 0, 0])
    perfect = decision_curve(positive.astype(float), positive)
    assert (perfect["network"] == 0.4).all()  # the prevalence
    same = decision_curve(np.full(5, 0.4), positive)  # calibrated and useless: treats all up to the prevalence
    assert same["network"].tolist() == pytest.approx(np.maximum(same["all"], 0).tolist())
    order = np.array([3, 1, 4, 0, 2])
    p = np.array([0.1, 0.7, 0.6, 0.6, 0.2])
    first, second = decision_curve(p, positive), decision_curve(p[order], positive[order] == 1)
    assert first["network"].tolist() == second["network"].tolist()


@pytest.mark.parametrize("label", [0, 1])
def test_one_class_only(label):
    curve = decision_curve(np.array([0.2, 0.8]), np.array([label] * 2))
    assert all(np.isfinite(values).all() for values in curve.values())
    assert curve["all"][49] == pytest.approx(2 * label - 1) and curve["network"][49] == pytest.approx(label - 0.5)
