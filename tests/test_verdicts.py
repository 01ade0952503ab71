"""The words of a family of comparisons: when there is one, and which."""

import numpy as np
import pytest

from kd.reports import statistics, verdicts


def comparison(mean, error=0.01, seeds=3, discordant=50, seed_sd=0.0, patients=500):
    """Return a comparison whose variance between patients is error^2."""
    return statistics.Comparison(mean, mean, error**2, seed_sd**2, 0.0, seeds, patients, discordant)


def says(*comparisons, margin=None):
    members = [verdicts.Member(one, number) for number, one in enumerate(comparisons)]
    return [gap["says"] for gap in verdicts.judge(members, margin)]


@pytest.mark.parametrize("mean, error, alone, teacher", [
    (0.03, 0.01, "better", "better"), (0.01, 0.009, "no evidence", "as good within 0.01"),
    (0.0, 0.03, "no evidence", "not shown to be as good"), (-0.03, 0.01, "worse", "worse"), (-0.004, 0.001, "worse", "as good within 0.01 but worse")])
def test_what_a_single_comparison_says(mean, error, alone, teacher):
    assert says(comparison(mean, error)) == [alone] and says(comparison(mean, error), margin=0.01) == [teacher]


def test_identical_networks_have_an_interval_but_no_verdict():
    right = np.ones((3, 12), bool)
    one = statistics.compare(right, right, np.arange(12))
    [gap] = verdicts.judge([verdicts.Member(one, "")], margin=0.01)
    assert gap["low"] < -0.1 < 0.1 < gap["high"] and gap["mean"] == 0.0
    assert gap["says"] == "no verdict: too few differences (0)" and gap["p"] is gap["p_margin"] is None


def test_there_is_no_verdict_below_three_seeds_or_for_a_network_of_one_class():
    assert says(comparison(0.3, seeds=1)) == ["no verdict: 1 seed"] and says(comparison(0.3, seeds=2)) == ["no verdict: 2 seeds"]
    assert says(comparison(0.3, discordant=9)) == ["no verdict: too few differences (9)"]
    assert says(comparison(0.3, discordant=10)) == ["better"]
    doubted = verdicts.Member(comparison(0.3), "", "1 network predicts one class")
    assert verdicts.judge([doubted, verdicts.Member(None, "")])[0]["says"] == "no verdict: 1 network predicts one class"
    assert verdicts.judge([doubted, verdicts.Member(None, "")])[1] is None


def test_holms_adjustment_by_hand():
    assert verdicts.holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert verdicts.holm([0.5, 0.9]) == [1.0, 1.0] and verdicts.holm([]) == []


def test_the_verdict_of_a_pair_depends_on_how_many_are_compared_but_its_interval_does_not():
    near = comparison(0.0225)  # p = 0.025
    assert says(near) == ["better"] and says(near, comparison(0.0)) == ["better", "no evidence"]
    assert says(near, *[comparison(0.0)] * 2)[0] == "no evidence"
    assert says(near, *[comparison(0.0, seeds=1)] * 7)[0] == "better"  # those without a verdict are not compared
    alone, among = (verdicts.judge([verdicts.Member(one, "") for one in family])[0]
                    for family in ([near], [near, *[comparison(0.0)] * 7]))
    assert (alone["low"], alone["high"]) == (among["low"], among["high"]) and 8 * alone["p"] == pytest.approx(among["p"])


def test_the_variance_between_seeds_is_pooled_over_a_family():
    restless = comparison(0.03, seed_sd=0.03)
    single = verdicts.judge([verdicts.Member(restless, "a")])[0]
    pooled = verdicts.judge([verdicts.Member(restless, "a"), verdicts.Member(restless, "b")])[0]
    assert pooled["high"] - pooled["low"] < single["high"] - single["low"]
    # One seed has no variance between seeds, whatever the others have.
    one_seed = verdicts.judge([verdicts.Member(comparison(0.03, seeds=1), "a"), verdicts.Member(restless, "b")])[0]
    assert one_seed["high"] - one_seed["mean"] == pytest.approx(0.01 * 1.96, rel=0.01)
