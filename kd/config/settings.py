"""All settings of a run; every one is declared once, here, with its default, help and limits.

`parsing` reads them from files and flags, and `flags` makes --help from them. The docstring of a
section is the title of its group in --help. The section of training has a file of its own.
"""

from dataclasses import dataclass, field, make_dataclass
from typing import ClassVar

from kd.config.option import option
from kd.config.reporting import Reporting
from kd.config.training_settings import Training
from kd.knowledge import KNOWLEDGE, option_key
from kd.methods import FINETUNES, MODES

POOLS = ("folder", "mura", "eyepacs", "aptos", "messidor", "messidor2")

DATASETS = ("mura", "folder", "synthetic", "eyepacs", "aptos", "messidor", "messidor2")


@dataclass(frozen=True)
class Teacher:
    """defective teacher"""

    model: str = option(
        "seresnet50",
        "network to train, named as in the thesis or in timm; several names: one after the other",
        common=True,
        several=True,
        metavar="NAME",
    )
    stop_at_val_accuracy: float | None = option(
        None, "stop once validation accuracy passes this (0.5 in the thesis)", above=0, most=1
    )
    look_every: int = option(8, "steps between checks on a fixed validation subset", least=1)


@dataclass(frozen=True)
class Distillation:
    """teacher and distillation loss"""

    teacher: str = option(
        "seresnet50",
        "network that teaches, trained first if it has no run; A+B: ensemble; several names: all"
        " pairs in turn",
        common=True,
        several=True,
        metavar="NAME",
    )
    student: str = option(
        "resnet18",
        "network that learns; several names: all pairs; A+B: both at once (--mode mutual)",
        common=True,
        several=True,
        metavar="NAME",
    )
    student_number: int = option(
        1,
        "--mode mutual: the student, among those in --student sorted by name, that a run's folder"
        " is of; all are trained whatever it is",
        least=1,
        most=1000,
    )
    mode: str = option(
        "normal", "which teacher is used, and how; see --list-modes", common=True, choices=MODES
    )
    alpha: float = option(
        0.5, "weight of the teacher; the labels have 1 - ALPHA", metavar="ALPHA", least=0, most=1
    )
    temperature: list[float] = option(
        [4.0],
        "softens the logits of both networks; several values: mean of the losses",
        metavar="T",
        nargs="+",
        above=0,
        most=1000,
    )
    generations: int = option(1, "--mode self: number of born-again generations", least=1, most=100)
    correct_probability: float = option(
        0.99, "--mode virtual: probability of the true class", above=0, most=0.9999
    )
    teacher_decay: float = option(
        0.999,
        "--mode mean-teacher: decay of the average of the student's weights; 0: the student after"
        " its last step; 1: as it began",
        metavar="DECAY",
        least=0,
        most=1,
    )
    ramp_up: float = option(
        0.25,
        "--mode mean-teacher: share of the steps in which the weight of the teacher rises to ALPHA",
        metavar="SHARE",
        least=0,
        most=1,
    )
    teacher_weights: list[float] = option(
        [],
        "weights of the teachers in an ensemble (default: equal)",
        metavar="W",
        nargs="*",
        above=0,
        most=10**6,
    )
    margin: float = option(
        0.01,
        "difference in accuracy up to which the tables call the student as good as its teacher;"
        " recorded before there are results",
        metavar="MARGIN",
        least=0,
        most=1,
    )
    stored_logits: bool = option(
        True, "keep the teacher's logits in --cache-dir for reuse", identity=False
    )
    teacher_checkpoint: list[str] = option(
        [],
        "weights of each network in --teacher: a model.pt of this project, or a state_dict of timm,"
        " torchvision or a training program (.pt, .pth, .ckpt, .safetensors)",
        metavar="FILE",
        nargs="*",
    )
    allow_foreign_teacher: bool = option(
        False,
        "accept a --teacher-checkpoint from another data set or split; never one that has seen"
        " validation or test patients of the student",
    )
    teacher_labeled_fraction: float | None = option(
        None,
        "fraction of the train labels that the teacher is trained on, usually 1, beside a student"
        " with a lower --labeled-fraction (default: that of the student)",
        metavar="F",
        above=0,
        most=1,
    )
    teacher_image_size: int | None = option(
        None,
        "side of the teacher's images, in pixels: the same views as those of the student (default:"
        " --image-size)",
        metavar="N",
        least=16,
        most=2048,
    )


def _kind_options() -> list[tuple]:
    """Return (name, type, field) of every hyper-parameter in the table of knowledge."""
    found = []
    for name, kind in KNOWLEDGE.items():
        for one in kind.options:
            limits = {"above": one.above, "least": one.least, "most": one.most}
            own = option(one.default, one.help, choices=one.choices, **limits)
            found.append((option_key(name, one), type(one.default), own))
    return found


@dataclass(frozen=True)
class ChosenKinds:
    """Kinds of knowledge and their weights."""

    knowledge: str | None = option(
        None,
        f"kinds to transfer, joined by +: {', '.join(KNOWLEDGE)} (default: see --mode)",
        metavar="KIND[+KIND...]",
        choices=KNOWLEDGE,
        joined=True,
    )
    knowledge_weights: list[float] = option(
        [],
        "weights of the kinds in --knowledge (default: see --list-modes)",
        metavar="W",
        nargs="*",
        above=0,
        most=10**6,
    )


# Adds the hyper-parameters in the table of knowledge.
KindOptions = make_dataclass("KindOptions", _kind_options(), bases=(ChosenKinds,), frozen=True)


@dataclass(frozen=True)
class Transfer(KindOptions):
    """knowledge (see --list-modes)"""

    balance_knowledge: bool = option(
        False, "with --balance weights, weight the knowledge by class, too, like the labels"
    )
    layers: list[str] = option(
        [],
        "modules that provide feature maps: a name for both networks, or STUDENT:TEACHER (default:"
        " the last four stages listed by timm)",
        metavar="NAME",
        nargs="*",
    )


@dataclass(frozen=True)
class Unlabeled:
    """unlabelled images (--mode unlabeled and unlabeled-only)"""

    unlabeled_dir: str | None = option(
        None,
        "folder tree of additional images on which the student matches the teacher; labels are"
        " never read",
        metavar="DIR",
    )
    unlabeled_dataset: str = option(
        "folder", "naming scheme of patients in --unlabeled-dir", choices=POOLS
    )
    strict: bool = option(
        False,
        "refuse validation or test patients in --unlabeled-dir instead of excluding their images",
    )
    match_share: float = option(
        0.8, "share of the steps in the first of several phases", above=0, most=0.99
    )
    finetune: str = option(
        "mixed",
        "fine-tune on labels (ce), on labels and teacher (kd), or on both in batches of which one"
        " half is unlabelled (mixed)",
        choices=tuple(FINETUNES),
    )
    finetune_lr: float | None = option(
        None, "learning rate of fine-tuning (default: a tenth of --lr)", metavar="LR", above=0
    )
    keep_matched: bool = option(
        True,
        "keep the student as it was before fine-tuning if no epoch of fine-tuning is better on the"
        " validation split",
    )


@dataclass(frozen=True)
class Reading:
    """How a data set is read; `Data` and the settings of evaluate.py include these."""

    label: str = option(
        "part", "MURA label: body part (thesis) or abnormal/normal", choices=("part", "abnormal")
    )
    table: str | None = option(
        None,
        "table of the images of --dataset folder: CSV of any dialect, or .xls (default: images.csv"
        " in --data-dir, if it exists)",
        metavar="FILE",
    )
    columns: list[str] = option(
        [],
        "columns of the table: path=, label=, patient=, study=, split= or site=NAME; label=A+B+C:"
        " one column of 0 and 1 for each class",
        metavar="KEY=NAME",
        nargs="*",
    )
    uncertain: str | None = option(
        None,
        "rows of the table with the label -1: drop them, or read them as 0 or 1",
        choices=("drop", "0", "1"),
    )
    patient_pattern: str | None = option(
        None,
        "regular expression that finds the patient in the path of an image (its group, if it has"
        " one)",
        metavar="REGEX",
    )
    site: str = option(
        "",
        "hospital of the images: patients with equal names at different sites are different",
        metavar="NAME",
    )
    errata: str | None = option(
        None,
        "CSV of corrections with the header image,label (image,grade for retinopathy); the label"
        " 'drop' excludes an image",
        metavar="FILE",
    )
    bits: int | None = option(
        None,
        "bits of images with more than 8 bits per channel (default: measured over the train split;"
        " DICOM files state theirs)",
        least=9,
        most=32,
    )


@dataclass(frozen=True)
class Protocol:
    """What the classes and the splits of a data set are; `--check-data` takes these, too."""

    graded: bool = option(
        False,
        "classes are ordered grades 0, 1, ...: report kappa and referable AUC; always on for"
        " retinopathy sets",
    )
    split: str = option(
        "patient",
        "patient: no patient in more than one split; thesis: by image, so patients leak; given: as"
        " the data set specifies",
        choices=("patient", "thesis", "given"),
    )


@dataclass(frozen=True)
class Source:
    """Which data set is read, and from where."""

    dataset: str = option(
        "mura", "data set; folder: your own images", common=True, choices=DATASETS
    )
    data_dir: str | None = option(None, "folder of the data set", common=True, metavar="DIR")


@dataclass(frozen=True)
class Data(Protocol, Reading, Source):
    """data and splits"""

    split_seed: int = option(0, "seed of the splits", least=0, most=2**62)
    labeled_fraction: float = option(
        1.0,
        "fraction of the train labels to keep, per class and by complete patients; images repeat"
        " to keep the steps per epoch",
        metavar="F",
        above=0,
        most=1,
    )
    labeled_seed: int = option(
        0, "seed that selects the patients whose labels are kept", least=0, most=2**62
    )
    balance: str = option(
        "none",
        "for rare classes, increase the label loss (weights; see --balance-knowledge) or draw"
        " images as often as of other classes (draw)",
        choices=("none", "weights", "draw"),
    )
    train_per_class: int | None = option(
        None,
        "train images per class; small classes repeat (default: MURA 2201, otherwise all)",
        least=1,
        most=10**6,
    )
    valid_per_class: int | None = option(
        None,
        "validation images per class (default: MURA 250, otherwise 15 %%)",
        least=1,
        most=10**6,
    )
    test_per_class: int | None = option(
        None,
        "test images per class (default: MURA 245, otherwise 15 %% or the given test split; not"
        " with --split thesis)",
        least=1,
        most=10**6,
    )
    synthetic_images: int = option(
        2100, "number of images in the synthetic set", least=1, most=10**7
    )
    synthetic_seed: int = option(0, "seed of the synthetic set", least=0, most=2**62)
    image_size: int = option(
        224, "side of the square input images, in pixels", common=True, least=16, most=2048
    )
    resize: str = option(
        "squash", "squash (thesis) or pad images to a square", choices=("squash", "pad")
    )
    crop: str = option(
        "auto",
        "fundus: crop to the disc; auto: retinopathy sets",
        choices=("auto", "none", "fundus"),
    )
    channels: int = option(
        0, "channels to store: 1 (grey) or 3 (colour); 0: detect", choices=(0, 1, 3)
    )
    cache_dir: str = option(
        "cache", "images and logits; may be deleted at any time", metavar="DIR", identity=False
    )


@dataclass(frozen=True)
class Network:
    """networks"""

    pretrained: bool = option(True, "start from ImageNet weights", common=True)
    weights: str | None = option(
        None, "initial weights of the network to train, instead of ImageNet's", metavar="FILE"
    )
    drop_rate: float | None = option(
        None, "dropout before the classifier (default: vgg11 0.5, SE nets 0.2)", least=0, most=0.99
    )


@dataclass(frozen=True)
class Output(Reporting):
    """output and metrics"""

    out: str = option("runs", "folder of all runs", common=True, metavar="DIR", identity=False)
    log_images: bool = option(True, "write training views to TensorBoard", identity=False)
    tag: str = option("", "name of a variant, whose runs get their own folders", metavar="NAME")


@dataclass(frozen=True)
class TeacherSettings:
    """Train a network on labels only: a teacher, a student's baseline, or a defective teacher."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "python train_teacher.py --model seresnet50 --config configs/demo.toml",
        "python train_teacher.py --model resnet50 --dataset folder --data-dir DIR",
    )

    teacher: Teacher = field(default_factory=Teacher)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True)
class DistillSettings:
    """Train a student on labels and on the outputs of a teacher for the same images."""

    EXAMPLES: ClassVar[tuple[str, ...]] = (
        "python distill.py --teacher seresnet50 --student vgg11 --config configs/demo.toml",
        "python distill.py --teacher resnet50 --student resnet18 --dataset folder --data-dir DIR",
    )

    distillation: Distillation = field(default_factory=Distillation)
    transfer: Transfer = field(default_factory=Transfer)
    unlabeled: Unlabeled = field(default_factory=Unlabeled)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)
