"""The general model as data: which teacher passes what knowledge on to which student, on which
images. The loop knows none of it.

Blocks after Abbasi et al. 2019 (1912.13179): data preparation, teachers and student, knowledge, its
location, its transfer.
"""

from dataclasses import dataclass

SE_NETS = ("seresnet50", "seresnet101")
PLAIN_NETS = ("vgg11", "resnet18", "resnet34", "resnet50")


@dataclass(frozen=True)
class Kind:
    """A row of the table of knowledge: what is passed on, where it lies, and by which loss.

    location       `output`: logits; `stages`: feature maps at --layers, so the teacher is asked
                   live
    transfer       the loss in words; its function stands in `objectives`
    weight         of its term within alpha's share, unless --knowledge-weights. Papers' weights are
                   for 100 or 1000 classes, where CE begins at log K = 4.6 or 6.9; at K = 7 it is
                   1.9. These give every kind about the pull of `kd` at T = 4: a gradient by the
                   student's weights of 0.8 to 4 times CE's (tests/benchmarks/pull.py)
    softens        whether --temperature is in it
    labels         whether it must know the true class, so that it has no place where no label is
                   read
    maps           whether features must be maps [B, C, H, W]
    least_classes  below it there is nothing to pass on
    """

    what: str
    location: str
    transfer: str
    weight: float
    source: str
    softens: bool = False
    labels: bool = False
    maps: bool = False
    least_classes: int = 2


KNOWLEDGE = {
    "kd": Kind("class probabilities", "output", "T^2 KL", 1.0, "1503.02531", softens=True),
    "logit-mse": Kind("logits", "output", "half squared distance", 0.15, "1312.6184"),
    "dkd": Kind(
        "class probabilities, true class and others apart",
        "output",
        "T^2 (TCKD + beta NCKD)",
        1.0,
        "2203.08679",
        softens=True,
        labels=True,
        least_classes=3,
    ),
    "dist": Kind(
        "relations of classes and of images",
        "output",
        "T^2 (1 - correlation)",
        0.1,
        "2205.10536",
        softens=True,
    ),
    "standardized": Kind(
        "standardized logits", "output", "T^2 KL", 3.0, "2403.01427", softens=True
    ),
    "attention": Kind(
        "where a map is strong",
        "stages",
        "squared distance of maps of length 1",
        20.0,
        "1612.03928",
        maps=True,
    ),
    "similarity": Kind(
        "which images are alike",
        "stages",
        "squared distance of similarity matrices",
        23.0,
        "1907.09682",
    ),
    "hint": Kind(
        "feature maps",
        "stages",
        "half squared distance after a 1x1 projector",
        50.0,
        "1412.6550",
        maps=True,
    ),
}


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


TRAINED, LARGE, SMALL = Origin("trained"), Origin("trained, large"), Origin("trained, small")
STOPPED = Origin("stopped once validation accuracy passes 0.5", stop_at=0.5)
ITSELF = Origin("the student's own architecture, trained", network="student")
UNTRAINED = Origin("never trained", trained=False)
VIRTUAL = Origin(
    "none: a on the true class, (1 - a)/(K - 1) elsewhere", network="none", distribution="virtual"
)
UNIFORM = Origin("none: all classes alike", network="none", distribution="uniform")


@dataclass(frozen=True)
class Stage:
    """A phase of a run, as a mode's row has it.

    images     `train`: the labelled train part; `pool`: every picture that may be seen, without its
               label
    loss       `labels`, `distil` (labels and knowledge), `match` (knowledge alone, no label is
               read) or `finetune` (--finetune)
    knowledge  of this phase, whatever the mode and --knowledge say
    """

    name: str
    images: str
    loss: str
    knowledge: str = ""


DISTIL = Stage("distil", "train", "distil")


@dataclass(frozen=True)
class Strategy:
    """A row of the table of modes.

    stages      the phases of the student's training, in turn; teacher and student always see the
                same view. The first of several takes --match-share of the steps, the others share
                the rest alike
    knowledge   what is transferred, one kind or several joined by +, unless --knowledge says so
    fixed_t     the temperature where the mode is defined at one; None: --temperature
    teachers, students  the thesis's pairs: every teacher with every student
    """

    teacher: Origin
    source: str
    stages: tuple[Stage, ...] = (DISTIL,)
    knowledge: str = "kd"
    fixed_t: float | None = None
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()


MATCH, FINETUNE = Stage("match", "pool", "match"), Stage("finetune", "train", "finetune", "kd")
ALONE = (Stage("train", "train", "labels"),)  # of a network that nobody teaches
STRATEGIES = {
    "normal": Strategy(LARGE, "1503.02531", teachers=SE_NETS, students=PLAIN_NETS),
    "reverse": Strategy(SMALL, "1909.11723", teachers=PLAIN_NETS, students=SE_NETS),
    "defective": Strategy(STOPPED, "1909.11723", teachers=SE_NETS, students=PLAIN_NETS),
    "self": Strategy(ITSELF, "1805.04770"),
    "virtual": Strategy(VIRTUAL, "1909.11723"),
    "smoothing": Strategy(UNIFORM, "1512.00567", fixed_t=1.0),
    "random": Strategy(UNTRAINED, "1909.11723"),
    "unlabeled": Strategy(TRAINED, "2009.00982", (MATCH, FINETUNE), "logit-mse"),
    "unlabeled-only": Strategy(TRAINED, "2009.00982", (MATCH,), "logit-mse"),
}


def unusual(mode: str, teacher: str, student: str) -> str:
    """A remark where the thesis files this pair under another mode; empty else.

    Any pair may run under any mode.
    """
    own = STRATEGIES[mode]
    if own.teacher.network != "teacher" or (teacher in own.teachers and student in own.students):
        return ""
    others = [
        name
        for name, row in STRATEGIES.items()
        if teacher in row.teachers and student in row.students
    ]
    return (
        f"{student} <- {teacher} is one of the thesis's pairs for {' and '.join(others)}, not for"
        f" {mode}"
        if others
        else ""
    )
