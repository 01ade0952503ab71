"""Metrics with intervals: against scikit-learn on the data and on resamples, and examples worked by hand."""

import warnings
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn_metrics

from kd.config.reporting import Rule, parse_rule
from kd.reports import calibration, intervals, metrics
from kd.reports.measures import MEASURES, differences, ece_of_calibrated, measure
from kd.reports.operating_point import OperatingPoint, fix_threshold
from kd.reports.resampled import Predicted, Resampled
from kd.reports.resampling import Sampled, draw
from kd.system.errors import Problem


def simulated(patients=40, classes=2, seed=0, signal=1.5, **known):
    """Return predictions for patients of 1 to 6 images, of which some have equal probabilities."""
    random = np.random.default_rng(seed)
    clusters = np.repeat(np.arange(patients), random.integers(1, 7, patients))
    labels = np.where(random.random(len(clusters)) < 0.8, (clusters % classes), random.integers(0, classes, len(clusters)))
    logits = random.normal(size=(len(clusters), classes)) + random.normal(size=(patients, classes))[clusters]
    logits = (logits + signal * np.eye(classes)[labels]).round(1)  # rounded, so that there are ties
    return Predicted(logits, labels, np.array([f"p{one}" for one in clusters]), **known)


def full(classes=2, **changed):
    """Return predictions for which every metric is defined."""
    point = OperatingPoint("youden", 0.45)
    own = simulated(classes=classes, positive=(1,), operating_point=point, graded=True, temperature=1.7)
    studies = [None if row % 11 == 0 else f"{own.clusters[row]}/{row % 2}" for row in range(len(own.labels))]
    return replace(own, **({"studies": studies} | changed))


def on_resample(name, own, weights):
    """Return a metric as scikit-learn computes it with weights of the images."""
    labels, answers = own.labels, own.logits.argmax(1)
    p = calibration.probabilities(own.logits).round(12)  # equal differences of logits are a tie
    scaled = calibration.probabilities(own.logits, own.temperature)
    flagged = scaled[:, 1] >= own.operating_point.threshold
    kept = weights > 0
    present = np.unique(labels[kept])
    plain = {"sample_weight": weights}
    one_against_rest = [(labels == one, p[:, one]) for one in ([1] if own.logits.shape[1] == 2 else present)]
    return {
        "accuracy": lambda: sklearn_metrics.accuracy_score(labels, answers, **plain),
        "balanced_accuracy": lambda: sklearn_metrics.recall_score(
            labels, answers, labels=present, average="macro", **plain),
        "macro_f1": lambda: sklearn_metrics.f1_score(labels, answers, labels=present, average="macro", zero_division=0, **plain),
        "auroc": lambda: np.mean([sklearn_metrics.roc_auc_score(*one, **plain) for one in one_against_rest]),
        "auprc": lambda: np.mean([sklearn_metrics.average_precision_score(*one, **plain) for one in one_against_rest]),
        "kappa": lambda: sklearn_metrics.cohen_kappa_score(labels, answers, **plain),
        "quadratic_kappa": lambda: sklearn_metrics.cohen_kappa_score(labels, answers, weights="quadratic", **plain),
        "referable_auc": lambda: sklearn_metrics.roc_auc_score(labels >= 2, p[:, 2:].sum(1), **plain),
        "sensitivity": lambda: sklearn_metrics.recall_score(labels == 1, flagged, **plain),
        "specificity": lambda: sklearn_metrics.recall_score(labels != 1, ~flagged, **plain),
        "ppv": lambda: sklearn_metrics.precision_score(labels == 1, flagged, **plain),
        "npv": lambda: sklearn_metrics.precision_score(labels != 1, ~flagged, **plain),
        "nll": lambda: sklearn_metrics.log_loss(labels, scaled, labels=range(p.shape[1]), **plain),
        "brier": lambda: np.average(((scaled - np.eye(p.shape[1])[labels]) ** 2).sum(1), weights=weights),
        "ece": lambda: calibration.ece(np.repeat(scaled, weights, axis=0), np.repeat(labels, weights)),
        "accuracy_by_study": lambda: metrics.by_study(*repeated_studies(own, weights))["accuracy"],
        "accuracy_by_patient": lambda: np.average(
            [(answers == labels)[own.clusters == one].mean() for one in np.unique(own.clusters)],
            weights=[weights[own.clusters == one][0] for one in np.unique(own.clusters)]),
    }.get(name, lambda: None)()


def repeated_studies(own, weights):
    """Return logits, labels and studies of a resample; a patient who was drawn twice has other studies each time."""
    rows = np.repeat(np.arange(len(weights)), weights)
    turn = np.concatenate([np.arange(weight) for weight in weights])
    studies = [None if own.studies[row] is None else (own.studies[row], time) for row, time in zip(rows, turn)]
    return own.logits[rows], own.labels[rows], studies


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("name", MEASURES)
def test_metrics_on_data_and_resamples_are_those_of_scikit_learn(name, classes):
    if classes == 2 and name == "referable_auc":
        pytest.skip("there is no grade 2")
    own = full(classes)
    resamples = draw(own.clusters, draws=25)
    found = MEASURES[name].compute(Resampled(own, resamples, prevalence=0.1))
    assert found.shape == (1 + 25 + 40,)  # the data, the draws, and the data without each patient
    for row in range(len(found)):
        expected = on_resample(name, own, resamples.counts[row][resamples.patient_of].astype(int))
        if expected is not None and np.isfinite(expected):
            assert found[row] == pytest.approx(expected, abs=1e-9), row


def test_the_values_are_those_that_the_report_has_had_before():
    own = full(4)
    found = {name: one["value"] for name, one in measure(own).items()}
    averages = metrics.macro_averages(own.logits, own.labels)
    scaled = calibration.calibration(own.logits, own.labels, own.temperature)["after"]
    grades = metrics.grades(own.logits, own.labels)
    expected = {
        "accuracy": metrics.accuracy(own.logits, own.labels), "macro_f1": averages["f1-score"],
        "balanced_accuracy": averages["recall"], "quadratic_kappa": grades["quadratic_kappa"],
        "referable_auc": grades["referable_auc"], **{name: scaled[name] for name in ("ece", "nll", "brier")},
        "accuracy_by_study": metrics.by_study(own.logits, own.labels, own.studies)["accuracy"]}
    assert {name: found[name] for name in expected} == pytest.approx(expected)


# Operating points


P = np.array([0.1, 0.2, 0.2, 0.6, 0.6, 0.9])
POSITIVE = np.array([0, 0, 1, 0, 1, 1], dtype=bool)


@pytest.mark.parametrize("text, threshold", [
    # At the thresholds 0.1, 0.2, 0.6 and 0.9 the sensitivities are 1, 1, 2/3 and 1/3, and the
    # specificities 0, 1/3, 2/3 and 1. Images with equal probabilities are on the same side.
    ("sensitivity=0.95", 0.2), ("sensitivity=0.6", 0.6), ("sensitivity=0.3", 0.9),
    ("specificity=0.9", 0.9), ("specificity=0.6", 0.6), ("specificity=0.1", 0.2),
    ("youden", 0.9),  # 0.2, 0.6 and 0.9 are equally good: 1/3
])
def test_thresholds_of_an_example_worked_by_hand(text, threshold):
    point = fix_threshold(parse_rule(text), P, POSITIVE)
    assert point == OperatingPoint(text, threshold)


def test_a_rate_that_is_reached_exactly_is_reached():
    p = np.linspace(0, 1, 10)
    positive = np.arange(10) % 2 == 1
    for reached in range(1, 5):
        point = fix_threshold(Rule("sensitivity", reached / 5), p, positive)
        assert (p[positive] >= point.threshold).sum() == reached
        point = fix_threshold(Rule("specificity", reached / 5), p, positive)
        assert (p[~positive] < point.threshold).sum() == reached


@pytest.mark.parametrize("rule, p, positive, reason", [
    ("youden", [0.1, 0.2], [True, True], "all validation images are positive"),
    ("sensitivity=0.9", [0.1, 0.2], [False, False], "all validation images are negative"),
    ("specificity=0.9", [0.5, 0.5, 0.1], [True, False, False], "no threshold on validation has a specificity of 0.9"),
    ("youden", [], [], "no validation image")])
def test_an_operating_point_that_is_undefined_has_a_reason(rule, p, positive, reason):
    assert fix_threshold(parse_rule(rule), np.array(p), np.array(positive, dtype=bool)) == OperatingPoint(rule, None, reason)


@pytest.mark.parametrize("text, name, level", [
    ("youden", "youden", None), ("Sensitivity=0.95", "sensitivity", 0.95), (" specificity = .9 ", "specificity", 0.9)])
def test_rules_of_operating_points_are_read(text, name, level):
    assert parse_rule(text) == Rule(name, level)


@pytest.mark.parametrize("text", ["", "0.5", "youden=0.5", "sensitivity", "sensitivity=", "sensitivity=95", "sensitivity=0",
                                  "sensitivity=1", "sensitivity=nan", "sensitivity=inf", "specificity=-0.1", "recall=0.9",
                                  "specificity=90%", "sensitivity=0.9=0.8", "x" * 1000])
def test_a_rule_that_means_nothing_is_refused(text):
    with pytest.raises(Problem, match="^--operating-point .*is not valid: .*Use youden, sensitivity=0.95"):
        parse_rule(text)


def test_ppv_and_npv_at_a_stated_prevalence_of_an_example_worked_by_hand():
    # 10 positive images of which 9 are called positive, 20 negative images of which 4 are. At a
    # prevalence of 1 %, 0.01 * 0.9 = 0.009 of all are found and 0.99 * 0.2 = 0.198 are false alarms.
    p = np.array([0.8] * 9 + [0.2] + [0.8] * 4 + [0.2] * 16)
    own = Predicted(np.log(np.stack([1 - p, p], 1)), np.array([1] * 10 + [0] * 20), np.arange(30), None, 1.0, (1,),
                    OperatingPoint("youden", 0.5))
    found = {name: one["value"] for name, one in measure(own, prevalence=0.01).items()}
    assert found["sensitivity"] == 0.9 and found["specificity"] == 0.8 and found["ppv"] == pytest.approx(9 / 13)
    assert found["npv"] == pytest.approx(16 / 17)
    assert found["ppv_at_prevalence"] == pytest.approx(0.009 / 0.207)
    assert found["npv_at_prevalence"] == pytest.approx(0.99 * 0.8 / (0.99 * 0.8 + 0.01 * 0.1))
    observed = measure(own, prevalence=1 / 3)
    assert observed["ppv_at_prevalence"]["value"] == pytest.approx(found["ppv"])


# What is undefined


def of(predicted, classes=3):
    """Return logits that predict these classes."""
    return 4.0 * np.eye(classes)[predicted]


def quietly(own, **options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return measure(own, **options)


@pytest.mark.parametrize("images", [1, 5])
def test_one_patient_has_values_and_no_intervals(images):
    own = Predicted(of([1] * images), np.array([1] * images), np.array(["a"] * images))
    found = quietly(own)
    assert found["accuracy"] == {"value": 1.0, "low": None, "high": None, "reason": "two patients at least are needed with images"}
    assert found["auroc"]["value"] is None and found["auroc"]["reason"] == "the labels contain only one class"
    assert all(one["low"] is None and one["reason"] for one in found.values())


def test_a_single_class_has_no_areas_and_no_kappa_of_equal_answers():
    own = Predicted(of([1, 1, 1]), np.array([1, 1, 1]), np.arange(3), positive=(0,), operating_point=OperatingPoint("youden", 0.5))
    found = quietly(own)
    for name in ("auroc", "auprc", "kappa", "sensitivity", "ppv"):
        assert found[name]["value"] is None and found[name]["reason"], name
    assert found["specificity"]["value"] == found["npv"]["value"] == found["accuracy"]["value"] == 1.0
    assert found["sensitivity"]["reason"] == "no image is positive"


def test_absent_classes_do_not_count():
    own = simulated(classes=3)
    wider = replace(own, logits=np.concatenate([own.logits, np.full((len(own.labels), 1), -60.0)], axis=1))
    first, second = measure(own), quietly(wider)
    for name in ("accuracy", "balanced_accuracy", "macro_f1", "auroc", "auprc", "kappa"):
        assert first[name] == pytest.approx(second[name]), name


@pytest.mark.parametrize("changed, name, reason", [
    ({"positive": None}, "sensitivity", "no class is named as the positive one"),
    ({"operating_point": None}, "ppv", "there is no operating point"),
    ({"operating_point": OperatingPoint("youden", None, "no validation image")}, "npv",
     "there is no operating point: no validation image"),
    ({"graded": False}, "quadratic_kappa", "the classes are not grades"),
    ({"studies": None}, "kappa_by_study", "no image has a known study"), ({}, "npv_at_prevalence", "no prevalence is stated")])
def test_what_a_metric_lacks_is_its_reason(changed, name, reason):
    assert measure(full(4, **changed), [name]) == {name: {"value": None, "low": None, "high": None, "reason": reason}}


def test_a_class_of_one_patient_gives_no_interval_of_metrics_that_rest_on_it():
    own = simulated(positive=(1,), operating_point=OperatingPoint("youden", 0.5))
    own = replace(own, labels=(own.clusters == "p7").astype(int))
    found = quietly(own)
    for name in ("balanced_accuracy", "macro_f1", "auroc", "auprc", "kappa", "sensitivity"):
        assert found[name]["value"] is not None and found[name]["low"] is None and "two patients" in found[name]["reason"], name
    assert found["accuracy"]["low"] is not None and found["specificity"]["low"] is not None


def test_a_study_of_several_labels_does_not_count():
    own = Predicted(of([0, 0, 1, 1]), np.array([0, 1, 1, 1]), np.arange(4), studies=["a", "a", "b", "c"])
    assert measure(own)["accuracy_by_study"]["value"] == 1.0
    none = replace(own, studies=["a", "a", None, None])
    assert measure(none)["accuracy_by_study"]["reason"] == "every study has several labels"


# Intervals


@pytest.mark.parametrize("classes", [2, 4])
@pytest.mark.parametrize("signal", [-30, -1, 0, 1, 30])  # from always wrong to always right
def test_every_interval_contains_its_value_and_lies_in_the_range_of_the_metric(classes, signal):
    own = full(classes)
    for seed in range(3):
        noise = np.random.default_rng(seed).normal(size=own.logits.shape)
        found = quietly(replace(own, logits=noise + signal * np.eye(classes)[own.labels]), prevalence=0.1)
        for name, one in found.items():
            if one["low"] is not None:
                limit = MEASURES[name].high or np.inf
                assert MEASURES[name].low <= one["low"] <= one["value"] <= one["high"] <= limit, name
                assert one["low"] < one["high"], name


def test_the_same_data_give_the_same_intervals_in_any_order_of_the_images():
    own = full(4)
    order = np.random.default_rng(0).permutation(len(own.labels))
    shuffled = replace(own, logits=own.logits[order], labels=own.labels[order], clusters=own.clusters[order],
                       studies=[own.studies[row] for row in order])
    first, second = measure(own, prevalence=0.2), measure(shuffled, prevalence=0.2)
    assert first == measure(own, prevalence=0.2)
    for name in first:
        assert first[name] == pytest.approx(second[name]), name


@pytest.mark.parametrize("name", [name for name in MEASURES])
def test_more_copies_of_a_patients_images_do_not_narrow_an_interval(name):
    own = full(4)
    many = replace(own, logits=np.repeat(own.logits, 5, axis=0), labels=np.repeat(own.labels, 5), clusters=np.repeat(own.clusters, 5),
                   studies=[study for study in own.studies for _ in range(5)])
    first, second = (measure(one, [name], prevalence=0.1)[name] for one in (own, many))
    assert first == pytest.approx(second)
    as_images = measure(replace(many, clusters=np.arange(len(many.labels))), [name], prevalence=0.1)[name]
    if "study" not in name:  # a study stays with its first image
        assert as_images["high"] - as_images["low"] < 0.8 * (first["high"] - first["low"])


def test_the_interval_of_a_share_is_wilsons():
    z = stats.norm.ppf(0.975)
    for right, images in ((27, 30), (30, 30), (1, 12)):
        share, rests = right / images, intervals.Basis(images, 9.0, np.inf)
        own = intervals.Spread(share * (1 - share) / images, z)
        low, high = intervals.of_share(Sampled(share, None, None), own, rests, (0, 1))
        expected = stats.binomtest(right, images).proportion_ci(method="wilson")
        assert (low, high) == pytest.approx((expected.low, expected.high))
        stretched = intervals.of_share(Sampled(2 * share - 1, None, None), replace(own, variance=4 * own.variance), rests, (-1, 1))
        assert stretched == pytest.approx((2 * low - 1, 2 * high - 1))


def at_point(missed, false, images=30):
    """Return predictions of one image per patient: as many positive as negative ones, with errors of both kinds."""
    answers = [0] * missed + [1] * (images - missed) + [1] * false + [0] * (images - false)
    return Predicted(of(answers, 2), np.array([1] * images + [0] * images), np.arange(2 * images), positive=(1,),
                     operating_point=OperatingPoint("youden", 0.5))


def test_without_errors_the_predictive_values_at_a_prevalence_are_as_uncertain_as_the_rates():
    # At the lower end of the specificity, 0.886, and a prevalence of 1 %, the PPV is about 0.08.
    found = quietly(at_point(0, 0), prevalence=0.01)
    assert found["ppv_at_prevalence"]["value"] == 1 == found["ppv_at_prevalence"]["high"]
    assert 0.05 < found["ppv_at_prevalence"]["low"] < 0.1
    assert 0.99 < found["npv_at_prevalence"]["low"] < found["npv_at_prevalence"]["value"] == 1


@pytest.mark.parametrize("missed, false", [(0, 0), (3, 2), (30, 4), (4, 30), (30, 29), (29, 30)])
@pytest.mark.parametrize("prevalence", [0.001, 0.1, 0.5, 0.99])
def test_predictive_values_at_a_prevalence_lie_between_those_at_the_ends_of_both_rates(missed, false, prevalence):
    found = quietly(at_point(missed, false), prevalence=prevalence)
    sensitivity, specificity = found["sensitivity"], found["specificity"]

    def bayes(right, other, share):
        return share * right / (share * right + (1 - share) * (1 - other))

    for name, right, other, share in (("ppv", sensitivity, specificity, prevalence), ("npv", specificity, sensitivity, 1 - prevalence)):
        one = found[f"{name}_at_prevalence"]
        assert one["value"] == pytest.approx(bayes(right["value"], other["value"], share))
        assert one["low"] <= one["value"] <= one["high"] and one["low"] < one["high"]
        assert bayes(right["low"], other["low"], share) - 1e-9 <= one["low"]
        assert one["high"] <= bayes(right["high"], other["high"], share) + 1e-9


@pytest.mark.parametrize("prevalence", [0.005, 0.1])
def test_predictive_values_at_a_prevalence_are_covered_at_a_high_specificity(prevalence):
    """The probability of each number of errors is known, and so is the coverage of their intervals."""
    sensitivity, specificity = 0.9, 0.98
    true = {"ppv_at_prevalence": 1 / (1 + (1 - prevalence) / prevalence * (1 - specificity) / sensitivity),
            "npv_at_prevalence": 1 / (1 + prevalence / (1 - prevalence) * (1 - sensitivity) / specificity)}
    resamples, covered, total = draw(np.arange(60), 100), dict.fromkeys(true, 0.0), 0.0
    for missed, false in np.ndindex(8, 5):
        p = stats.binom.pmf(missed, 30, 1 - sensitivity) * stats.binom.pmf(false, 30, 1 - specificity)
        found = measure(at_point(missed, false), list(true), prevalence, resamples)
        total += p
        for name, one in found.items():
            covered[name] += p * (one["low"] <= true[name] <= one["high"])
    assert total > 0.98 and all(share / total > 0.93 for share in covered.values())


def test_the_ends_of_the_interval_of_a_loss_are_t_standard_errors_away():
    own = intervals.Spread(variance=0.04, t=2.5)
    for end in intervals.of_loss(Sampled(0.5, None, None), own, None, (0, np.inf)):
        assert abs(0.5 - end) == pytest.approx(2.5 * np.sqrt(0.04 * end / 0.5))


def test_few_patients_who_move_a_metric_give_few_degrees_of_freedom():
    like, rare = np.tile([1.0, -1.0], 50), np.eye(100)[0]

    def freedom(left_out, most=99.0, least=1.0):
        return intervals.freedom(left_out, intervals.Basis(100, most, np.inf, least))

    assert freedom(like) == 99 and freedom(np.zeros(100), 7.0) == 7
    assert freedom(rare) == pytest.approx(1.25, rel=0.05)
    assert freedom(rare, least=4.0) == 4 and freedom(rare, most=2.0, least=4.0) == 2
    normal = stats.norm.ppf((np.arange(1000) + 0.5) / 1000)
    assert 600 < freedom(normal, 999.0) < 700  # the kurtosis is 3


@pytest.mark.parametrize("images", [20, 100, 300])
def test_a_single_error_costs_about_as_much_as_each_further_one(images):
    resamples, ends = draw(np.arange(images), 400), []
    for wrong in range(6):
        answers = [1] * wrong + [0] * (images - wrong)
        found = measure(Predicted(of(answers, 2), np.zeros(images, int), np.arange(images)), ["accuracy"], None, resamples)
        ends.append(found["accuracy"]["low"])
        exact = stats.binomtest(images - wrong, images).proportion_ci(method="exact")
        assert 0 <= 1 - ends[-1] < 2.1 * (1 - exact.low), wrong
    assert all(np.diff(ends) < 0.003)  # fewer errors never give a clearly lower end


def test_few_patients_with_much_of_a_loss_make_it_uncertain():
    """The terms of a loss have no upper end, so that a few certain errors are most of it."""
    own = Predicted(of([0] * 99 + [1], 2), np.zeros(100, int), np.arange(100))
    found = measure(own, ["nll", "brier"])
    assert found["nll"]["high"] > 8 * found["nll"]["value"] and found["brier"]["high"] > 8 * found["brier"]["value"]


def test_the_effective_number_of_patients_of_a_mean_over_classes():
    assert intervals.effective(np.array([0, 3, 3, 3])) == 3 and intervals.effective(np.array([8, 1, 1])) == pytest.approx(100 / 66)
    both = intervals.basis([4, 12], [8, 24])
    assert (both.patients, both.images) == (6, 24)
    assert both.freedom == pytest.approx((1 / 4 + 1 / 12) ** 2 / ((1 / 4) ** 2 / 3 + (1 / 12) ** 2 / 11))


def test_a_class_that_is_always_right_does_not_make_the_balanced_accuracy_certain():
    # All six positive patients are right, and 3 of 294 negative ones are wrong.
    labels = np.array([1] * 6 + [0] * 294)
    answers = np.array([1] * 9 + [0] * 291)
    found = quietly(Predicted(of(answers, 2), labels, np.arange(300)), names=["balanced_accuracy"])["balanced_accuracy"]
    assert found["value"] == pytest.approx(1 - 1.5 / 294) and found["low"] < 0.9


def test_a_sensitivity_of_one_has_an_interval():
    own = Predicted(of([1] * 6 + [0] * 54, 2), np.array([1] * 6 + [0] * 54), np.arange(60), positive=(1,),
                    operating_point=OperatingPoint("youden", 0.5))
    found = quietly(own)["sensitivity"]
    assert found["value"] == found["high"] == 1.0 and 0.2 < found["low"] < 0.7


def test_the_ece_of_a_calibrated_network_is_not_zero_on_few_images():
    own = simulated()
    few, many = ece_of_calibrated(own), ece_of_calibrated(replace(own, logits=np.repeat(own.logits, 100, axis=0)))
    assert 0.03 < few < 0.2 and many == pytest.approx(few / 10, rel=0.15)
    p = calibration.probabilities(own.logits)
    random = np.random.default_rng(1)
    drawn = [calibration.ece(p, (random.random((len(p), 1)) > p.cumsum(1)).sum(1)) for _ in range(300)]
    assert few == pytest.approx(np.mean(drawn), rel=0.06)


# Differences


def seeds_of(own, signal, start):
    random = np.random.default_rng(start)
    shape = own.logits.shape
    return {seed: replace(own, logits=own.logits + signal * np.eye(shape[1])[own.labels] + 0.5 * random.normal(size=shape))
            for seed in range(3)}


def test_a_difference_is_the_mean_over_the_seeds_that_both_have():
    own = full(4)
    first, second = seeds_of(own, 1.0, 0), seeds_of(own, 0.0, 1)
    del first[0]
    found = differences(first, second, prevalence=0.1)
    for name, one in found.items():
        gaps = [measure(first[seed], [name], 0.1)[name]["value"] - measure(second[seed], [name], 0.1)[name]["value"] for seed in (1, 2)]
        assert one["value"] == pytest.approx(np.mean(gaps)) and one["seeds"] == 2, name
        assert one["low"] <= one["value"] <= one["high"], name
    turned = differences(second, first, prevalence=0.1)
    for name, one in found.items():
        assert turned[name]["low"] == pytest.approx(-one["high"]) and turned[name]["high"] == pytest.approx(-one["low"]), name


def test_pairs_of_like_predictions_differ_by_less_than_each_varies():
    own = full(2)
    alone = measure(own, ["nll", "brier"])
    for name, one in differences({0: own}, {0: replace(own, logits=own.logits + [0, 0.3])}, ["nll", "brier"]).items():
        assert one["high"] - one["low"] < 0.5 * (alone[name]["high"] - alone[name]["low"]), name


def test_seeds_that_vary_widen_a_difference():
    own = full(2)
    first, second = seeds_of(own, 1.0, 0), seeds_of(own, 0.0, 1)
    equal = differences({seed: first[0] for seed in range(3)}, {seed: second[0] for seed in range(3)}, ["brier"])["brier"]
    varied = {seed: replace(one, logits=one.logits * (0.3 + seed)) for seed, one in first.items()}
    found = differences(varied, second, ["brier"])["brier"]
    assert found["high"] - found["low"] > 1.5 * (equal["high"] - equal["low"])


def test_a_difference_of_predictive_values_without_errors_is_as_uncertain_as_they_are():
    own = at_point(0, 0)
    found = differences({0: own, 1: own}, {0: own, 1: own}, ["ppv_at_prevalence", "npv_at_prevalence"], 0.01)
    alone = measure(own, ["ppv_at_prevalence"], 0.01)["ppv_at_prevalence"]
    assert found["ppv_at_prevalence"]["low"] == pytest.approx(alone["low"] - 1) == -found["ppv_at_prevalence"]["high"]
    assert 0 < found["npv_at_prevalence"]["high"] < 0.01  # the NPV is hardly uncertain
    worse = differences({0: own}, {0: at_point(0, 10)}, ["ppv_at_prevalence"], 0.01)["ppv_at_prevalence"]
    assert worse["low"] < 0.15 and worse["value"] > 0.9 and worse["high"] <= 1


def test_a_difference_of_predictive_values_without_an_interval_has_a_reason():
    own = replace(at_point(1, 1), clusters=np.array(["a"] * 30 + ["b"] * 15 + ["c"] * 15))
    found = differences({0: own}, {0: own}, ["ppv_at_prevalence"], 0.01)["ppv_at_prevalence"]
    assert found["value"] == 0 and found["low"] is None and "two patients" in found["reason"]


def test_what_cannot_be_compared_has_a_reason():
    own = full(2)
    assert differences({0: own}, {1: own}, ["accuracy"]) == {
        "accuracy": {"value": None, "low": None, "high": None, "reason": "no seed in common", "seeds": 0}}
    same = differences({0: own}, {0: own}, ["nll", "accuracy"])
    assert same["nll"]["value"] == 0 and same["nll"]["reason"] == "the networks do not differ"
    assert same["accuracy"]["low"] < 0 < same["accuracy"]["high"]
    assert differences({0: own}, {0: replace(own, operating_point=None)}, ["ppv"])["ppv"]["reason"] == "there is no operating point"
    with pytest.raises(ValueError, match="the images"):
        differences({0: own}, {0: replace(own, labels=1 - own.labels)})
