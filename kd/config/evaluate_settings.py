"""All settings of evaluate.py; every one is declared once, here."""

from dataclasses import dataclass, field, fields
from typing import ClassVar

from kd.config.option import option
from kd.config.reporting import Reporting
from kd.config.settings import DATASETS, Data, Protocol, Reading


@dataclass(frozen=True)
class Evaluation:
    """more actions"""

    runs: list[str] = option(
        [],
        "evaluate finished runs, each on its own test split or on --dataset",
        common=True,
        metavar="RUN",
        nargs="*",
        positional=True,
    )
    tables: str | None = option(
        None,
        "write the tables of the thesis for all runs below DIR to DIR, with published results,"
        " intervals and the commands that fill empty cells; and study.html, a page to hand on",
        common=True,
        metavar="DIR",
    )
    power: str | None = option(
        None,
        "plan a study: the power to show effects with more seeds or patients, from the variances of"
        " the runs below DIR",
        metavar="DIR",
    )
    card: str | None = option(
        None,
        "write the card of a run (card.md, card.json): use, data, metrics, hashes; size and latency"
        " beside its teacher",
        metavar="RUN",
    )
    export: str | None = option(
        None,
        "write a run as ONNX, as torch.export, in 8 bits and with a script that needs no torch, to"
        " RUN/export, and verify all of them on its test split",
        metavar="RUN",
    )
    shift: list[str] = option(
        [],
        "evaluate runs, their teachers and the student trained alone (baseline) on shifted test"
        " images (contrast, brightness, noise, blur, resolution, rotation): a table and a figure",
        metavar="RUN",
        nargs="+",
    )
    look: list[str] = option(
        [],
        "show where runs, their teachers and the student trained alone look in test images"
        " (Grad-CAM): contact sheets, and how alike the maps are",
        metavar="RUN",
        nargs="+",
    )
    arms: str | None = option(
        None,
        "compare four ways of learning with few labels, from all runs below DIR, by label fraction;"
        " writes a table and a figure to DIR",
        metavar="DIR",
    )
    curves: list[str] = option(
        [],
        "draw the learning curves of runs in one figure, curves.png, next to the runs",
        metavar="RUN",
        nargs="+",
    )
    check_data: bool = option(False, "check --dataset for faults; exit code 2 if any", common=True)


@dataclass(frozen=True)
class OtherData:
    """Which data set a run is evaluated on, if it is not its own."""

    dataset: str | None = option(
        None,
        "data set for --check-data, or to use instead of the test split of each RUN",
        common=True,
        choices=DATASETS,
    )
    data_dir: str | None = option(
        None,
        "folder of --dataset (folder: class folders, a table, or unlabelled images); without"
        " --dataset, where the data set of the runs is now",
        common=True,
        metavar="DIR",
    )


@dataclass(frozen=True)
class PassingOn:
    """What is passed on with a card or a page."""

    weights_license: str | None = option(
        None, "--card, --export: licence of the weights, e.g. cc-by-nc-4.0", metavar="TEXT"
    )
    data_license: str | None = option(
        None,
        "--card, --export: licence of the images that a network was trained on",
        metavar="TEXT",
    )
    with_images: bool = option(
        False,
        "--tables: study.html also shows images of patients, those in RUN/look; never those of"
        " MURA, which may not be passed on",
    )


@dataclass(frozen=True)
class Judging(PassingOn, Reporting, Protocol, Reading, OtherData):
    """more options"""

    margin: float | None = option(
        None,
        "--tables, --power, --export: a margin other than the one that the runs recorded",
        metavar="MARGIN",
        least=0,
        most=1,
    )
    batch_size: int = option(64, "images per batch", least=1, most=10**6)
    device: str = option(
        "auto", "cpu, cuda, cuda:1 or mps; auto: the fastest one", common=True, metavar="DEVICE"
    )
    cache_dir: str = option("cache", "decoded images; may be deleted at any time", metavar="DIR")
    out: str = option("runs", "folder for check-NAME.json of --check-data", metavar="DIR")


@dataclass(frozen=True)
class EvaluateSettings:
    """Evaluate finished runs, compare them in tables, or check a data set.

    Use exactly one of: RUN ..., --tables, --power, --card, --export, --shift, --look, --arms,
    --curves, --check-data.
    """

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "python evaluate.py runs/synthetic-patient-48/normal/seresnet50-vgg11/seed0",
        "python evaluate.py --tables runs",
    )

    evaluation: Evaluation = field(default_factory=Evaluation)
    judging: Judging = field(default_factory=Judging)


def data_settings(how: Judging) -> Data:
    """Return the settings that read the data set in --dataset, all others with their defaults."""
    entries = (*fields(OtherData), *fields(Reading), *fields(Protocol))
    names = [entry.name for entry in entries]
    return Data(**{name: getattr(how, name) for name in names}, cache_dir=how.cache_dir)
