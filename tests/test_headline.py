"""The five metrics that the console shows."""

from kd.reports.headline import headline, names_of


def evidence_of(positive, rule="youden", grades=None):
    value = {"value": 0.75, "low": 0.5, "high": 0.875, "reason": None}
    names = ("accuracy", "auroc", "sensitivity", "specificity", "ece", "quadratic_kappa", "referable_auc", "balanced_accuracy")
    return {"metrics": dict.fromkeys(names, value), "positive": positive, "grades": grades, "calibration": {"temperature": 1.2}, "subgroups": {},
            "operating_point": {"rule": rule, "threshold": 0.5, "reason": None}}


def test_the_console_names_the_class_that_sensitivity_is_of():
    lines = headline(evidence_of("sick"))
    assert "sensitivity for sick (youden): 0.7500 [0.5000, 0.8750]" in lines
    assert any(line.startswith("specificity for sick (youden)") for line in lines)


def test_of_grades_the_console_shows_what_an_operating_point_was_asked_for():
    assert "sensitivity" not in names_of(evidence_of("grade >= 2", grades={}))
    lines = headline(evidence_of("grade >= 2", "specificity=0.9", grades={}))
    assert any(line.startswith("sensitivity for grade >= 2 (specificity=0.9): 0.75") for line in lines)
