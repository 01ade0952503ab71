"""The general model as data: the table of modes.

A mode specifies which teacher transfers which knowledge to the student, and on which images.

The building blocks follow Abbasi et al. 2019 (arXiv 1912.13179): data preparation, teachers and
student, knowledge, its location and its transfer. The training loop does not depend on any of them.
This module does not import torch, so that --help and the report of a mistyped flag are fast.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

SE_NETS = ("seresnet50", "seresnet101")
PLAIN_NETS = ("vgg11", "resnet18", "resnet34", "resnet50")


@dataclass(frozen=True)
class PhaseLoss:
    """The loss that a phase minimises: on labels, on knowledge, or on both.

    words             the loss in the table of modes; {knowledge} is replaced by the transfer of the
                      kinds
    reads_labels      whether labels are part of the loss
    passes_knowledge  whether the teacher is part of the loss
    ramps             whether the weight of the knowledge rises over the first steps (--ramp-up)
    """

    words: str
    reads_labels: bool
    passes_knowledge: bool
    ramps: bool = False


PHASE_LOSSES = {
    "labels": PhaseLoss("CE", reads_labels=True, passes_knowledge=False),
    "distil": PhaseLoss(
        "(1 - alpha) CE + alpha {knowledge}", reads_labels=True, passes_knowledge=True
    ),
    "match": PhaseLoss("{knowledge}", reads_labels=False, passes_knowledge=True),
    "ramp": PhaseLoss(
        "(1 - alpha) CE + alpha r {knowledge}, r rising to 1",
        reads_labels=True,
        passes_knowledge=True,
        ramps=True,
    ),
}


@dataclass(frozen=True)
class ModePhase:
    """A phase of the student's training, as written in the row of a mode.

    images     `train`: the labelled train split; `pool`: every image that may be used in training,
               without its label; `half`: one half of each batch is of `pool`, the other of `train`.
               A loss of labels is then that of the labelled half
    loss       a key of PHASE_LOSSES
    knowledge  the kinds of this phase, which take precedence over those of the mode and of
               --knowledge; empty: not fixed for this phase
    choices    value of --finetune -> the phase that it selects instead of this one; empty for a
               phase that does not depend on --finetune
    taught     images of `half` that the knowledge is of: `all`, or those `unlabelled`
    """

    name: str
    images: str
    loss: str
    knowledge: str = ""
    choices: Mapping[str, "ModePhase"] = field(default_factory=dict)
    taught: str = "all"


DISTIL = ModePhase("distil", "train", "distil")
MATCH = ModePhase("match", "pool", "match")
FINETUNES = {
    "mixed": ModePhase("finetune", "half", "distil"),
    "ce": ModePhase("finetune", "train", "labels"),
    "kd": ModePhase("finetune", "train", "distil", "kd"),
}
FINETUNE = replace(FINETUNES["mixed"], choices=FINETUNES)
CONSISTENCY = ModePhase("consistency", "half", "ramp")
PSEUDO = ModePhase("pseudo", "half", "distil", taught="unlabelled")
ALONE = (ModePhase("train", "train", "labels"),)  # a network without a teacher


@dataclass(frozen=True)
class Origin:
    """Where a teacher comes from.

    words         the teacher in the table of modes
    network       `teacher` (the network named by --teacher, or the ensemble if several names are
                  joined by +), `student` (the student's own architecture; with --generations, the
                  previous generation), `average` (the exponential moving average of the student's
                  own weights, which moves with it), `peers` (the other students, which are trained
                  at once with the student; see `Mode.trains_several`) or `none`
    trained       False: the network keeps its random initial weights
    stop_at       training stops once validation accuracy passes this value; None: train to the end
    distribution  class probabilities used in place of a network: `virtual` or `uniform`
    decay         decay of an average, if the mode is defined for one; None: --teacher-decay
    delivered     whether an average is also the network that is judged and delivered
    """

    words: str
    network: str = "teacher"
    trained: bool = True
    stop_at: float | None = None
    distribution: str = ""
    decay: float | None = None
    delivered: bool = False

    @property
    def is_network(self) -> bool:
        return self.network != "none"

    @property
    def moves(self) -> bool:
        """Whether the teacher follows its student, step by step."""
        return self.network == "average"

    @property
    def precedes(self) -> bool:
        """Whether the teacher is a network that exists before the student, and stays as it is."""
        return self.network in ("teacher", "student")

    @property
    def is_students_own(self) -> bool:
        """Whether the teacher has the student's own architecture."""
        return self.network == "student"

    @property
    def is_peers(self) -> bool:
        """Whether the other students of the run teach, each with its outputs of the same step."""
        return self.network == "peers"


SCHEMES = {"student": "self", "average": "self", "peers": "online"}  # others are offline


@dataclass(frozen=True)
class Mode:
    """A row of the table of modes.

    teacher      where the teacher comes from
    source       arXiv number of the paper
    phases       phases of the student's training, in order. With several phases, the first takes
                 --match-share of the steps and the others share the rest equally
    views        which views of an image teacher and student see: a key of VIEWS in
                 `kd.config.training_settings`
    knowledge    default of --knowledge: one kind, or several joined by +
    fixed_t      the temperature, if the mode is defined for a single one; None: use --temperature
    fixed_alpha  the weight of the teacher, if the mode is defined for a single one; None: use
                 --alpha
    teachers     teachers that the thesis uses in this mode, each with every one of `students`
    students     students that the thesis uses in this mode
    """

    teacher: Origin
    source: str
    phases: tuple[ModePhase, ...] = (DISTIL,)
    knowledge: str = "kd"
    fixed_t: float | None = None
    fixed_alpha: float | None = None
    teachers: tuple[str, ...] = ()
    students: tuple[str, ...] = ()
    views: str = "same"

    @property
    def trains_several(self) -> bool:
        """Whether a run trains several students at once, those that --student joins by +."""
        return self.teacher.is_peers

    @property
    def scheme(self) -> str:
        """The scheme of Gou et al. 2021 (arXiv:2006.05525, section 4): offline, online or self."""
        return SCHEMES.get(self.teacher.network, "offline")


TRAINED = Origin("trained network")
LARGE = Origin("large trained network")
SMALL = Origin("small trained network")
STOPPED = Origin("network trained only until validation accuracy passes 0.5", stop_at=0.5)
ITSELF = Origin("trained network of the student's own architecture", network="student")
UNTRAINED = Origin("network with random weights, never trained", trained=False)
PEERS = Origin("the other students: the mean of their probabilities in the same step", "peers")
VIRTUAL = Origin(
    "no network: probability a for the true class, (1 - a)/(K - 1) for every other",
    network="none",
    distribution="virtual",
)
AVERAGE = Origin(
    "moving average of the student's own weights, which is delivered",
    network="average",
    delivered=True,
)
CURRENT = Origin("the student itself at the same step", network="average", decay=0.0)
UNIFORM = Origin(
    "no network: the same probability for every class", network="none", distribution="uniform"
)

MODES = {
    "normal": Mode(LARGE, "1503.02531", teachers=SE_NETS, students=PLAIN_NETS),
    "reverse": Mode(SMALL, "1909.11723", teachers=PLAIN_NETS, students=SE_NETS),
    "defective": Mode(STOPPED, "1909.11723", teachers=SE_NETS, students=PLAIN_NETS),
    "self": Mode(ITSELF, "1805.04770"),
    "virtual": Mode(VIRTUAL, "1909.11723"),
    "smoothing": Mode(UNIFORM, "1512.00567", fixed_t=1.0),
    "smoothing-0.1": Mode(UNIFORM, "1512.00567", fixed_t=1.0, fixed_alpha=0.1),
    "random": Mode(UNTRAINED, "1909.11723"),
    "mean-teacher": Mode(
        AVERAGE, "1703.01780", (CONSISTENCY,), "probability-mse", views="independent"
    ),
    "fixmatch": Mode(CURRENT, "2001.07685", (PSEUDO,), "pseudo-label", views="weak/strong"),
    "mutual": Mode(PEERS, "1706.00384", fixed_t=1.0),
    "unlabeled": Mode(TRAINED, "2009.00982", (MATCH, FINETUNE), "logit-mse"),
    "unlabeled-only": Mode(TRAINED, "2009.00982", (MATCH,), "logit-mse"),
}


def unusual(mode: str, teacher: str, student: str) -> str:
    """Return a remark if the thesis uses this pair in another mode; otherwise an empty string.

    Any pair can be used in any mode.
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
        f"The thesis uses the pair {teacher} -> {student} in --mode {' and '.join(others)}, not in"
        f" --mode {mode}."
    )
