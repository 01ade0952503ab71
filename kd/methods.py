"""The general model as data: the tables of modes and of kinds of knowledge.

A mode specifies which teacher transfers which knowledge to the student, and on which images.

The building blocks follow Abbasi et al. 2019 (arXiv 1912.13179): data preparation, teachers and
student, knowledge, its location and its transfer. The training loop does not depend on any of them.
This module does not import torch, so that --help and the report of a mistyped flag are fast.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

SE_NETS = ("seresnet50", "seresnet101")
PLAIN_NETS = ("vgg11", "resnet18", "resnet34", "resnet50")
MANY_ENOUGH = 16  # images per step that a loss needs to compare them with each other


@dataclass(frozen=True)
class KindOption:
    """A hyper-parameter of one kind of knowledge; its flag is --KIND-NAME, e.g. --dkd-beta.

    of_regressor  whether the kind's regressor takes it instead of the loss
    """

    name: str
    default: float | str
    help: str
    above: float | None = None
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] | None = None
    of_regressor: bool = False


@dataclass(frozen=True)
class Kind:
    """A row of the table of knowledge: what is transferred, from where, and by which loss.

    what           the knowledge in words
    location       `output`: the logits; `stages`: the feature maps at --layers, for which the
                   teacher has to run in every step
    transfer       the loss in words
    weight         default weight of the term within alpha's share (see --knowledge-weights). The
                   weights in the papers are meant for 100 or 1000 classes, where CE starts at
                   log K = 4.6 or 6.9; with K = 7 it starts at 1.9. The weights here give every kind
                   about the same influence as `kd` at T = 4: the norm of its gradient with respect
                   to the student's weights is 0.7 to 4 times that of CE (tests/benchmarks/pull.py)
    source         arXiv number of the paper
    loss           name of the function in `kd.losses`, which is called as
                   loss(student, teacher, [labels=], [temperature=], [weights=], **options)
    options        hyper-parameters of this kind, passed by name to the loss or to the regressor
    softens        whether the loss takes a temperature
    labels         whether the loss takes the labels; such a kind cannot be used in a phase that
                   does not read labels
    per_image      whether the loss is a mean over images and takes a weight for each of them. Other
                   losses compare the images of a batch with each other
    maps           whether the features must be maps [B, C, H, W]
    positions      whether the loss compares the positions of a map; a map with a single position
                   then has nothing to compare
    regressor      name of the class in `kd.training.regressors` whose module is trained together
                   with the student. The student's features go through it, and the loss takes what
                   it returns in their place. Empty: the loss takes the features
    least_classes  number of classes below which there is nothing to transfer
    cautions       function of (classes, images per step, temperatures) that returns notes for the
                   user, each a sentence
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
    per_image: bool = False
    maps: bool = False
    positions: bool = False
    regressor: str = ""
    least_classes: int = 2
    cautions: Callable[[int, int, tuple[float, ...]], list[str]] | None = None

    @property
    def inside(self) -> bool:
        """Whether the knowledge is in feature maps rather than in the output."""
        return self.location == "stages"

    def function(self) -> Callable:
        """Return the loss. It is imported here because the table must not import torch."""
        from kd import losses

        return getattr(losses, self.loss)

    def options_of(self, values: Mapping, regressor: bool) -> dict:
        """Return the values of the options that the regressor takes, or that the loss takes.

        values  name of an option -> its value; options that are missing keep their defaults
        """
        names = [one.name for one in self.options if one.of_regressor == regressor]
        return {name: values[name] for name in names if name in values}


def option_key(kind: str, option: KindOption) -> str:
    """Return the name of a kind's hyper-parameter among the settings, e.g. `dkd_beta`."""
    return f"{kind}_{option.name}".replace("-", "_")


def _few_images(kind: str, batch: int) -> list[str]:
    """Return a caution for a loss that compares the images of a step if there are few of them."""
    if batch >= MANY_ENOUGH:
        return []
    return [
        f"{kind}: only the {batch} images of a step are compared with each other. Use"
        f" --batch-size {MANY_ENOUGH} or more."
    ]


def _dist_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    found = []
    if classes == 2:
        found.append(
            "dist: with 2 classes, the correlation over classes is always 1 or -1 and teaches"
            " nothing. Only the correlation over images is used."
        )
    return found + _few_images("dist", batch)


def _similarity_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("similarity", batch)


def _pkt_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("pkt", batch)


def _rkd_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    return _few_images("rkd", batch)


def _standardized_cautions(classes: int, batch: int, temperatures: tuple[float, ...]) -> list[str]:
    from kd.losses import standardized_cap

    caps = [f"{standardized_cap(classes, t):.3f} at T = {t:g}" for t in temperatures]
    return [
        f"standardized: with {classes} classes, no logit exceeds {(classes - 1) ** 0.5:.2f}, so"
        f" the teacher's probability of a class is at most {', '.join(caps)}"
        f" ({standardized_cap(classes, 1.0):.3f} at T = 1)."
    ]


KNOWLEDGE = {
    "kd": Kind(
        what="class probabilities",
        location="output",
        transfer="T^2 KL",
        weight=1.0,
        source="1503.02531",
        loss="kd",
        per_image=True,
        softens=True,
    ),
    "logit-mse": Kind(
        what="logits",
        location="output",
        transfer="half the squared distance",
        weight=0.15,
        source="1312.6184",
        loss="logit_mse",
        per_image=True,
    ),
    "dkd": Kind(
        what="class probabilities, true class and other classes separately",
        location="output",
        transfer="T^2 (TCKD + beta NCKD)",
        weight=1.0,
        source="2203.08679",
        loss="dkd",
        per_image=True,
        options=(
            KindOption("beta", 1.0, "dkd: weight of the other classes, NCKD", least=0, most=1000),
        ),
        softens=True,
        labels=True,
        least_classes=3,
    ),
    "dist": Kind(
        what="relations between classes and between images",
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
        per_image=True,
        softens=True,
        cautions=_standardized_cautions,
    ),
    "attention": Kind(
        what="where in the image the features are strong",
        location="stages",
        transfer="squared distance between normalized attention maps",
        weight=20.0,
        source="1612.03928",
        loss="attention",
        per_image=True,
        maps=True,
        positions=True,
    ),
    "similarity": Kind(
        what="which images of a batch are similar",
        location="stages",
        transfer="squared distance between similarity matrices",
        weight=23.0,
        source="1907.09682",
        loss="similarity",
        cautions=_similarity_cautions,
    ),
    "pkt": Kind(
        what="which images of a batch are neighbours",
        location="stages",
        transfer="KL of neighbour probabilities",
        weight=500.0,
        source="1803.10837",
        loss="pkt",
        options=(
            KindOption(
                "width",
                0.0,
                "pkt: sigma of the Gaussian kernel; 0: cosine kernel",
                least=0,
                most=2,
            ),
        ),
        cautions=_pkt_cautions,
    ),
    "rkd": Kind(
        what="distances and angles between the images of a batch",
        location="stages",
        transfer="Huber loss of distances and of cosines of angles",
        weight=25.0,
        source="1904.05068",
        loss="rkd",
        options=(
            KindOption("distance", 1.0, "rkd: weight of the distances", least=0, most=1000),
            KindOption("angle", 2.0, "rkd: weight of the angles", least=0, most=1000),
        ),
        cautions=_rkd_cautions,
    ),
    "hint": Kind(
        what="feature maps",
        location="stages",
        transfer="half the squared distance after a 1x1 projection",
        weight=50.0,
        source="1412.6550",
        loss="hint",
        per_image=True,
        maps=True,
        regressor="Projectors",
    ),
    "vid": Kind(
        what="feature maps, with the uncertainty of each channel",
        location="stages",
        transfer="-log likelihood of a Gaussian around a 1x1 projection",
        weight=300.0,
        source="1904.05835",
        loss="vid",
        per_image=True,
        maps=True,
        regressor="Gaussians",
        options=(
            KindOption(
                "variance",
                5.0,
                "vid: initial variance of each channel",
                least=0.001,
                most=1000,
                of_regressor=True,
            ),
        ),
    ),
}


@dataclass(frozen=True)
class PhaseLoss:
    """The loss that a phase minimises: on labels, on knowledge, or on both.

    words             the loss in the table of modes; {knowledge} is replaced by the transfer of the
                      kinds
    reads_labels      whether labels are part of the loss
    passes_knowledge  whether the teacher is part of the loss
    """

    words: str
    reads_labels: bool
    passes_knowledge: bool


PHASE_LOSSES = {
    "labels": PhaseLoss("CE", reads_labels=True, passes_knowledge=False),
    "distil": PhaseLoss(
        "(1 - alpha) CE + alpha {knowledge}", reads_labels=True, passes_knowledge=True
    ),
    "match": PhaseLoss("{knowledge}", reads_labels=False, passes_knowledge=True),
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
    """

    name: str
    images: str
    loss: str
    knowledge: str = ""
    choices: Mapping[str, "ModePhase"] = field(default_factory=dict)


DISTIL = ModePhase("distil", "train", "distil")
MATCH = ModePhase("match", "pool", "match")
FINETUNES = {
    "mixed": ModePhase("finetune", "half", "distil"),
    "ce": ModePhase("finetune", "train", "labels"),
    "kd": ModePhase("finetune", "train", "distil", "kd"),
}
FINETUNE = replace(FINETUNES["mixed"], choices=FINETUNES)
ALONE = (ModePhase("train", "train", "labels"),)  # a network without a teacher


@dataclass(frozen=True)
class Origin:
    """Where a teacher comes from.

    words         the teacher in the table of modes
    network       `teacher` (the network named by --teacher, or the ensemble if several names are
                  joined by +), `student` (the student's own architecture; with --generations, the
                  previous generation), `peers` (the other students, which are trained at once with
                  the student; see `Mode.trains_several`) or `none`
    trained       False: the network keeps its random initial weights
    stop_at       training stops once validation accuracy passes this value; None: train to the end
    distribution  class probabilities used in place of a network: `virtual` or `uniform`
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
        """Whether the teacher has the student's own architecture."""
        return self.network == "student"

    @property
    def is_peers(self) -> bool:
        """Whether the other students of the run teach, each with its outputs of the same step."""
        return self.network == "peers"

    @property
    def precedes(self) -> bool:
        """Whether the teacher is a network that exists before the student is trained."""
        return self.is_network and not self.is_peers


SCHEMES = {"student": "self", "peers": "online"}  # others are offline


@dataclass(frozen=True)
class Mode:
    """A row of the table of modes.

    teacher      where the teacher comes from
    source       arXiv number of the paper
    phases       phases of the student's training, in order; teacher and student always see the same
                 view of an image. With several phases, the first takes --match-share of the steps
                 and the others share the rest equally
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
