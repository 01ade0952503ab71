"""What evaluate.py can be asked for: every field is declared once, here."""

from dataclasses import dataclass, field

from kd.config.option import option
from kd.config.settings import DATASETS


@dataclass(frozen=True)
class Evaluation:
    """what to do (exactly one)"""

    runs: list[str] = option(
        [],
        "evaluate finished runs: each on its own test part, or on --dataset",
        metavar="RUN",
        nargs="*",
        positional=True,
    )
    tables: str | None = option(
        None,
        "all runs below DIR as the thesis's tables, with published figures, intervals and the "
        "commands that fill empty cells; written to DIR",
        metavar="DIR",
    )
    card: str | None = option(
        None,
        "student and teacher of a run side by side: size, arithmetic, latency, accuracy",
        metavar="RUN",
    )
    shift: list[str] = option(
        [],
        "runs, their teachers and the student alone on shifted test images (contrast, brightness, "
        "noise, blur, resolution, rotation): a table and a plot",
        metavar="RUN",
        nargs="+",
    )
    arms: str | None = option(
        None,
        "learning with few labels: four arms over label fractions, from all runs below DIR, as a "
        "table and a plot written there",
        metavar="DIR",
    )
    curves: list[str] = option(
        [],
        "learning curves of runs in one picture, curves.png beside the runs",
        metavar="RUN",
        nargs="+",
    )
    check_data: bool = option(False, "what is wrong with a data set; exit 2 if anything is")


@dataclass(frozen=True)
class Judging:
    """how"""

    dataset: str | None = option(
        None,
        "other pictures than the run's own test part, or what --check-data looks at",
        choices=DATASETS,
    )
    data_dir: str | None = option(
        None,
        "their folder (for folder: class folders, images.csv, or unlabelled); without "
        "--dataset: where the run's own data lie now",
        metavar="DIR",
    )
    label: str = option("part", "MURA's label", choices=("part", "abnormal"))
    errata: str | None = option(None, "corrections of a retinopathy set", metavar="FILE")
    margin: float = option(
        0.01,
        "a student is as good as its teacher where the interval of the difference ends above minus"
        " this",
        least=0,
        most=1,
    )
    batch_size: int = option(64, "images at a time", least=1, most=10**6)
    device: str = option("auto", "cpu, cuda, cuda:1, mps; auto takes the fastest", metavar="DEVICE")
    cache_dir: str = option("cache", "decoded pictures; may be deleted at any time", metavar="DIR")
    out: str = option("runs", "where --check-data writes check-NAME.json", metavar="DIR")


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluate runs, compare them, look at data: exactly one of RUN ..., --tables, --arms, --shift,
    --card, --curves, --check-data.
    """

    evaluation: Evaluation = field(default_factory=Evaluation)
    judging: Judging = field(default_factory=Judging)
