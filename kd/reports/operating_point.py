"""Operating points: thresholds on the probability of the positive class, fixed on validation."""

from dataclasses import dataclass

import numpy as np

from kd.config.values import LONGEST
from kd.system.errors import Problem
from kd.system.messages import shortened

FLAG = "--operating-point"
# A rate that is computed as a ratio of counts may miss a level by its last bits.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class Rule:
    """How a threshold is chosen: `youden`, or by the `sensitivity` or `specificity` to reach.

    level  the rate to reach, above 0 and below 1; None for `youden`
    """

    name: str
    level: float | None = None

    @property
    def text(self) -> str:
        """The rule as it is written after the flag."""
        return self.name if self.level is None else f"{self.name}={self.level:g}"


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold: an image is positive if the probability of the positive class is at least this.

    rule       the text of the rule
    threshold  None if it is undefined; `reason` explains why
    """

    rule: str
    threshold: float | None
    reason: str | None = None


def parse_rule(text: str) -> Rule:
    """Return the rule that a text means. Raises Problem if it means none."""
    name, equals, number = str(text).strip().partition("=")
    name = name.strip().lower()
    if name == "youden" and not equals:
        return Rule(name)
    if name not in ("sensitivity", "specificity"):
        raise _invalid(text, "it is none of the rules")
    try:
        level = float(number)
    except ValueError:
        raise _invalid(text, f"the {name} to reach is not a number") from None
    if not 0 < level < 1:
        raise _invalid(text, f"the {name} to reach must be above 0 and below 1")
    return Rule(name, level)


def _invalid(text: str, why: str) -> Problem:
    return Problem(
        f"{FLAG} {shortened(str(text), LONGEST)} is not valid: {why}. Use youden, sensitivity=0.95"
        " or specificity=0.9, with any number between 0 and 1."
    )


def fix_threshold(rule: Rule, p: np.ndarray, positive: np.ndarray) -> OperatingPoint:
    """Return the operating point of a rule on validation images.

    Only probabilities of validation images are thresholds, because sensitivity and specificity
    change nowhere else. Images with equal probabilities are on the same side.

        sensitivity=x   the largest threshold whose sensitivity is at least x
        specificity=x   the smallest threshold whose specificity is at least x
        youden          the threshold with the largest sensitivity + specificity - 1 (Youden 1950,
                        Cancer 3); the largest of several

    p: the probability of the positive class [N], calibrated or not; positive: bool [N].
    """
    if positive.all() or not positive.any():
        which = "positive" if positive.any() else "negative"
        reason = f"all validation images are {which}" if len(positive) else "no validation image"
        return OperatingPoint(rule.text, None, reason)
    thresholds = np.unique(p)  # ascending, and so is specificity
    sensitivity = _share_at_least(p[positive], thresholds)
    specificity = 1 - _share_at_least(p[~positive], thresholds)
    if rule.name == "sensitivity":
        chosen = np.flatnonzero(sensitivity >= rule.level - _ROUNDING)[-1]
    elif rule.name == "specificity":
        [reached] = np.nonzero(specificity >= rule.level - _ROUNDING)
        if not len(reached):
            reason = f"no threshold on validation has a specificity of {rule.level:g}"
            return OperatingPoint(rule.text, None, reason)
        chosen = reached[0]
    else:
        youden = sensitivity + specificity
        chosen = np.flatnonzero(youden >= youden.max() - _ROUNDING)[-1]
    return OperatingPoint(rule.text, float(thresholds[chosen]))


def _share_at_least(p: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Return the share of probabilities that are at least each threshold."""
    return 1 - np.searchsorted(np.sort(p), thresholds, side="left") / len(p)
