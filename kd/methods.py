"""The general model as data: the tables of modes and of kinds of knowledge.

A mode says which teacher passes what knowledge on to which student, on which images.

The blocks follow Abbasi et al. 2019 (1912.13179): data preparation, teachers and student,
knowledge, its location, its transfer. The loop knows none of them. Nothing here imports torch, so
that --help and a mistyped flag need not wait for it.
"""

from collections.abc import Callable
from dataclasses import dataclass

SE_NETS = ("seresnet50", "seresnet101")
PLAIN_NETS = ("vgg11", "resnet18", "resnet34", "resnet50")
MANY_ENOUGH = 16  # images a step, for a loss that compares them with each other


@dataclass(frozen=True)
class KindOption:
    """A hyper-parameter of one kind of knowledge. Its flag is --KIND-NAME, as in --dkd-beta."""

    name: str
    default: float | str
    help: str
    above: float | None = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Kind:
    """A row of the table of knowledge: what is passed on, where it lies, and by which loss.

    location       `output`: logits; `stages`: feature maps at --layers, so the teacher runs live
    transfer       the loss in words
    weight         of its term within alpha's share, unless --knowledge-weights. Papers' weights are
                   for 100 or 1000 classes, where CE begins at log K = 4.6 or 6.9; at K = 7 it is
                   1.9. These give every kind about the pull of `kd` at T = 4: a gradient by the
                   student's weights of 0.8 to 4 times CE's (tests/benchmarks/pull.py)
    loss           the name of its function in `kd.losses`, which is called as
                   loss(student, teacher, [labels=], [temperature=], **options)
    options        its own hyper-parameters, passed to the loss by name
    softens        whether the loss takes a temperature
    labels         whether the loss takes the labels, so that it has no place where none are read
    maps           whether features must be maps [B, C, H, W]
    positions      whether the loss compares the positions of a map, so that a map of one point has
                   nothing to compare
    projects       whether the student's map goes through a trained 1x1 convolution first
    least_classes  below it there is nothing to pass on
    cautions       (classes, images a step, temperatures) -> what a user should know
    """

    what: str
    location: str
    transfer: str
    weight: float
    source: str
    loss: str
    options: tuple[KindOption, ...] = ()
    softens: bool = False
    labels: bool = False
    maps: bool = False
    positions: bool = False
    projects: bool = False
    least_classes: int = 2
    cautions: Callable[[int, int, tuple[float, ...]], list[str]] | None = None

    @property
    def inside(self) -> bool:
        """Whether it lies in feature maps, not in the output."""
        return self.location == "stages"

    def function(self) -> Callable:
        """The loss. Imported here, because the table is read without torch."""
        from kd import losses

        return getattr(losses, self.loss)


def option_key(kind: str, option: KindOption) -> str:
    """The name of a kind's hyper-parameter among the settings."""
    return f"{kind}_{option.name}".replace("-", "_")


def _few_images(verb: str, batch: int) -> list[str]:
    """A caution for a loss that compares the images of a step, where there are few."""
    if batch >= MANY_ENOUGH:
        return []
    return [f"{verb} {batch} images a step; that is little (--batch-size {MANY_ENOUGH} or more)"]


def _dist_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    found = []
    if classes == 2:
        found.append(
            "dist: with 2 classes a correlation of classes is 1 or -1 and teaches nothing; that of "
            "images is left"
        )
    return found + _few_images("dist: correlates", batch)


def _similarity_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("similarity: compares", batch)


def _pkt_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("pkt: compares", batch)


def _standardized_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    from kd.losses import standardized_cap

    caps = [f"{standardized_cap(classes, t):.3f} at T = {t:g}" for t in temperatures]
    return [
        f"standardized: with {classes} classes no logit exceeds {(classes - 1) ** 0.5:.2f}, so"
        f" that the teacher gives a class {', '.join(caps)} at the most "
        f"({standardized_cap(classes, 1.0):.3f} at T = 1)"
    ]


KNOWLEDGE = {
    "kd": Kind(
        what="class probabilities",
        location="output",
        transfer="T^2 KL",
        weight=1.0,
        source="1503.02531",
        loss="kd",
        softens=True,
    ),
    "logit-mse": Kind(
        what="logits",
        location="output",
        transfer="half squared distance",
        weight=0.15,
        source="1312.6184",
        loss="logit_mse",
    ),
    "dkd": Kind(
        what="class probabilities, true class and others apart",
        location="output",
        transfer="T^2 (TCKD + beta NCKD)",
        weight=1.0,
        source="2203.08679",
        loss="dkd",
        options=(
            KindOption(
                "beta", 1.0, "dkd: weight of what is said of the other classes", least=0, most=1000
            ),
        ),
        softens=True,
        labels=True,
        least_classes=3,
    ),
    "dist": Kind(
        what="relations of classes and of images",
        location="output",
        transfer="T^2 (1 - correlation)",
        weight=0.1,
        source="2205.10536",
        loss="dist",
        softens=True,
        cautions=_dist_cautions,
    ),
    "standardized": Kind(
        what="standardized logits",
        location="output",
        transfer="T^2 KL",
        weight=3.0,
        source="2403.01427",
        loss="standardized",
        softens=True,
        cautions=_standardized_cautions,
    ),
    "attention": Kind(
        what="where a map is strong",
        location="stages",
        transfer="squared distance of maps of length 1",
        weight=20.0,
        source="1612.03928",
        loss="attention",
        maps=True,
        positions=True,
    ),
    "similarity": Kind(
        what="which images are alike",
        location="stages",
        transfer="squared distance of similarity matrices",
        weight=23.0,
        source="1907.09682",
        loss="similarity",
        cautions=_similarity_cautions,
    ),
    "pkt": Kind(
        what="which images are neighbours",
        location="stages",
        transfer="KL of the probabilities of neighbours",
        weight=500.0,
        source="1803.10837",
        loss="pkt",
        options=(
            KindOption(
                "width",
                0.0,
                "pkt: sigma of a Gaussian kernel of features (0: the cosine kernel, without one)",
                least=0,
                most=2,
            ),
        ),
        cautions=_pkt_cautions,
    ),
    "hint": Kind(
        what="feature maps",
        location="stages",
        transfer="half squared distance after a 1x1 projector",
        weight=50.0,
        source="1412.6550",
        loss="hint",
        maps=True,
        projects=True,
    ),
}


@dataclass(frozen=True)
class PhaseLoss:
    """What a phase minimises: labels, knowledge, or both.

    words     the loss in the table of modes; {knowledge} stands for the kinds' own words
    chosen    value of --finetune -> the loss that it stands for; None: the loss is this one
    """

    words: str
    reads_labels: bool
    passes_knowledge: bool
    chosen: dict[str, str] | None = None


PHASE_LOSSES = {
    "labels": PhaseLoss("CE", reads_labels=True, passes_knowledge=False),
    "distil": PhaseLoss(
        "(1 - alpha) CE + alpha {knowledge}", reads_labels=True, passes_knowledge=True
    ),
    "match": PhaseLoss("{knowledge}", reads_labels=False, passes_knowledge=True),
    "finetune": PhaseLoss(
        "CE (or with KD: --finetune)",
        reads_labels=True,
        passes_knowledge=False,
        chosen={"ce": "labels", "kd": "distil"},
    ),
}


@dataclass(frozen=True)
class ModePhase:
    """A phase of the student's training, as a mode's row has it.

    images     `train`: the labelled train split; `pool`: every image that may be seen, without its
               label
    loss       a key of PHASE_LOSSES
    knowledge  of this phase, whatever the mode and --knowledge say
    """

    name: str
    images: str
    loss: str
    knowledge: str = ""


DISTIL = ModePhase("distil", "train", "distil")
MATCH = ModePhase("match", "pool", "match")
FINETUNE = ModePhase("finetune", "train", "finetune", "kd")
ALONE = (ModePhase("train", "train", "labels"),)  # of a network without a teacher


@dataclass(frozen=True)
class Origin:
    """How a teacher comes to be.

    network       whose: `teacher` (--teacher; of several names joined by + the ensemble), `student`
                  (the student's own architecture; with --generations the generation before) or
                  `none`
    trained       False: as it was drawn, from no weights
    stop_at       training stops once validation accuracy passes this; None trains to the end
    distribution  where there is no network, the class probabilities it stands for: `virtual` or
                  `uniform`
    """

    words: str
    network: str = "teacher"
    trained: bool = True
    stop_at: float | None = None
    distribution: str = ""

    @property
    def is_network(self) -> bool:
        return self.network != "none"

    @property
    def is_students_own(self) -> bool:
        """Whether the teacher is of the student's own architecture."""
        return self.network == "student"


@dataclass(frozen=True)
class Mode:
    """A row of the table of modes.

    phases      of the student's training, in turn; teacher and student always see the same view.
                The first of several takes --match-share of the steps, the others share the rest
                equally
    knowledge   what is transferred, one kind or several joined by +, unless --knowledge says so
    fixed_t     the temperature where the mode is defined at one; None: --temperature
    teachers, students  the thesis's pairs: every teacher with every student
    """

    teacher: Origin
    source: str
    phases: tuple[ModePhase, ...] = (DISTIL,)
    knowledge: str = "kd"
    fixed_t: float | None = None
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()


TRAINED = Origin("trained")
LARGE = Origin("trained, large")
SMALL = Origin("trained, small")
STOPPED = Origin("stopped once validation accuracy passes 0.5", stop_at=0.5)
ITSELF = Origin("the student's own architecture, trained", network="student")
UNTRAINED = Origin("never trained", trained=False)
VIRTUAL = Origin(
    "none: a on the true class, (1 - a)/(K - 1) elsewhere", network="none", distribution="virtual"
)
UNIFORM = Origin("none: all classes alike", network="none", distribution="uniform")

MODES = {
    "normal": Mode(LARGE, "1503.02531", teachers=SE_NETS, students=PLAIN_NETS),
    "reverse": Mode(SMALL, "1909.11723", teachers=PLAIN_NETS, students=SE_NETS),
    "defective": Mode(STOPPED, "1909.11723", teachers=SE_NETS, students=PLAIN_NETS),
    "self": Mode(ITSELF, "1805.04770"),
    "virtual": Mode(VIRTUAL, "1909.11723"),
    "smoothing": Mode(UNIFORM, "1512.00567", fixed_t=1.0),
    "random": Mode(UNTRAINED, "1909.11723"),
    "unlabeled": Mode(TRAINED, "2009.00982", (MATCH, FINETUNE), "logit-mse"),
    "unlabeled-only": Mode(TRAINED, "2009.00982", (MATCH,), "logit-mse"),
}


def unusual(mode: str, teacher: str, student: str) -> str:
    """A remark where the thesis files this pair under another mode; otherwise empty.

    Any pair may run under any mode.
    """
    own = MODES[mode]
    if own.teacher.network != "teacher" or (teacher in own.teachers and student in own.students):
        return ""
    others = [
        name for name, row in MODES.items() if teacher in row.teachers and student in row.students
    ]
    if not others:
        return ""
    return (
        f"{student} <- {teacher} is one of the thesis's pairs for {' and '.join(others)}, not for "
        f"{mode}"
    )
