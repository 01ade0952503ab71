"""Differences of runs in every metric, where the runs have different settings of the metrics."""

from types import SimpleNamespace

import numpy as np
import pytest

from kd.reports.predictions import Predictions
from kd.studies.metric_gaps import metric_gaps
from kd.studies.runs import differing

OF_CLASS = {"auprc", "sensitivity", "specificity", "ppv", "npv"}
AT_POINT = OF_CLASS - {"auprc"}
BAYES = {"ppv_at_prevalence", "npv_at_prevalence"}


def run_of(seed=0, positive="sick", rule="youden", prevalence=None, **settings):
    """Return what `metric_gaps` and `differing` need of a run of 40 patients with 80 images."""
    random = np.random.default_rng(seed)
    labels = np.repeat(np.arange(40) % 2, 2)
    patients = np.repeat([f"p{number}" for number in range(40)], 2)
    logits = random.normal(size=(80, 2)) + 2 * np.eye(2)[labels]
    test = Predictions(np.array([f"{number}.png" for number in range(80)]), patients, patients, labels, labels, logits)
    evidence = {"positive": positive, "operating_point": {"rule": rule, "threshold": 0.5, "reason": None}, "prevalence": prevalence,
                "calibration": {"temperature": None}, "grades": None}
    return SimpleNamespace(test=test, student="kdtiny", seed=seed, settings={}, unused=frozenset(), report={
        "settings": settings, "evidence": evidence, "data": {"classes": ["healthy", "sick"], "pool": None},
        "clock": {"device": "cpu", "precision": "fp32", "ranks": 1}})


def test_runs_that_agree_have_the_differences_of_all_metrics():
    found = metric_gaps({0: run_of()}, {0: run_of(1)})
    assert OF_CLASS <= found.keys() and not BAYES & found.keys()


@pytest.mark.parametrize("changed, missing", [({"positive": "healthy"}, OF_CLASS), ({"rule": "sensitivity=0.95"}, AT_POINT)])
def test_metrics_of_different_classes_or_rules_are_not_subtracted(changed, missing):
    first, second = {0: run_of(), 1: run_of(1)}, {0: run_of(2), 1: run_of(3, **changed)}
    for sides in ((first, second), (second, first)):
        assert metric_gaps(*sides).keys() == metric_gaps(first, first).keys() - missing


def test_predictive_values_are_compared_at_the_prevalence_that_all_runs_state():
    first, second = {0: run_of(prevalence=0.05)}, {0: run_of(1, prevalence=0.05)}
    found = metric_gaps(first, second)
    assert BAYES <= found.keys() and all(found[name]["low"] <= found[name]["value"] <= found[name]["high"] for name in BAYES)
    assert found["ppv_at_prevalence"]["value"] != 0
    for other in (None, 0.1):
        assert not BAYES & metric_gaps(first, {0: run_of(1, prevalence=other)}).keys()


def test_different_classes_and_rules_are_named_in_the_notes_of_a_table():
    found = differing([run_of(), run_of(positive="healthy", rule="specificity=0.9")])
    assert "positive: healthy, sick" in found and "operating_point: specificity=0.9, youden" in found
    assert not differing([run_of(), run_of(1)])


def test_other_initial_weights_are_named_in_the_notes_of_a_table():
    """Each seed may have a file of its own, but a network with a file has an advantage over one without."""
    own = "weights of kdtiny: a file"
    assert f"{own}, no file" in differing([run_of(weights="DOE_JANE.pt"), run_of(weights=None)])
    assert f"{own}, no file" in differing([run_of(weights="a.pt"), run_of(1, weights=None)])
    assert f"{own}, another file with the same seed" in differing([run_of(weights="a.pt"), run_of(weights="b.pt")])
    assert not differing([run_of(weights="a.pt"), run_of(1, weights="b.pt"), run_of(1, weights="b.pt")])


def test_studies_of_unknown_patients_are_those_of_the_report():
    paths, studies = np.array(["a", "b", "c", "d"]), np.array(["s", "s", "s", "d"])
    test = Predictions(paths, np.array(["a", "b", "p", "d"]), studies, np.zeros(4, int), np.zeros(4, int), np.zeros((4, 2)))
    # The study s of two images without a patient is one, and that of p another one.
    assert test.known_studies == [(None, "s"), (None, "s"), ("p", "s"), None]
