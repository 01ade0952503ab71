"""Settings of the metrics that are reported; they do not change what is trained."""

from dataclasses import dataclass

from kd.config.option import option


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
        "two classes: how the threshold is chosen on the validation split: youden (default),"
        " sensitivity=S or specificity=S",
        metavar="RULE",
        identity=False,
    )
    prevalence: float | None = option(
        None,
        "two classes: also report PPV and NPV for this share of positive images, as in the clinic",
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
