"""Settings of the metrics that are reported; they do not change what is trained."""

from dataclasses import dataclass

from kd.config.option import option
from kd.config.values import LONGEST
from kd.system.errors import Problem
from kd.system.messages import shortened

DEFAULT_RULE = "youden"


@dataclass(frozen=True)
class Reporting:
    """metrics"""

    positive: str | None = option(
        None,
        "of two classes, the one that sensitivity and AUROC are of (default: the one that is not"
        " named like a normal finding, otherwise the second)",
        metavar="CLASS",
        identity=False,
    )
    operating_point: str | None = option(
        None,
        "two classes, or grades: how the threshold is chosen on validation: youden (default),"
        " sensitivity=S or specificity=S",
        metavar="RULE",
        identity=False,
    )
    prevalence: float | None = option(
        None,
        "also report PPV and NPV for this share of positive images, as in the clinic",
        metavar="P",
        identity=False,
        above=0,
        most=0.999999,
    )
    subgroups: list[str] = option(
        [],
        "further columns of the table, such as site or sex: report the metrics of each of their"
        " groups",
        metavar="COLUMN",
        nargs="*",
        identity=False,
    )


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


def parse_rule(text: str) -> Rule:
    """Return the rule that a text after --operating-point means, or raise Problem."""
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
        f"--operating-point {shortened(str(text), LONGEST)} is not valid: {why}. Use youden,"
        " sensitivity=0.95 or specificity=0.9, with any number between 0 and 1."
    )
