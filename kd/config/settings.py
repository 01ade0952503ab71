"""What can be set: every field is declared once, here, with its default, help and limits.

`parsing` reads it.
"""

from dataclasses import dataclass, field, make_dataclass

from kd.config.option import option
from kd.methods import KNOWLEDGE, MODES, option_key

POOLS = ("folder", "mura", "eyepacs", "aptos", "messidor", "messidor2")


DATASETS = ("mura", "folder", "synthetic", "eyepacs", "aptos", "messidor", "messidor2")


@dataclass(frozen=True)
class Teacher:
    """the teacher"""

    model: str = option(
        "seresnet50",
        "network to train: a name of the thesis or any of timm's; several are trained in turn",
        several=True,
        metavar="NAME",
    )
    stop_at_val_accuracy: float | None = option(
        None,
        "stop as soon as validation accuracy passes this: a defective teacher (the thesis: 0.5)",
        above=0,
        most=1,
    )
    look_every: int = option(
        8,
        "steps between two looks at a fixed part of the validation images, with "
        "--stop-at-val-accuracy",
        least=1,
    )


@dataclass(frozen=True)
class Distillation:
    """teacher and student"""

    teacher: str = option(
        "seresnet50",
        "network that teaches; trained first where no run of it is found; A+B: both together, "
        "the mean of their softened probabilities; several: all pairs",
        several=True,
        metavar="NAME",
    )
    student: str = option(
        "resnet18", "network that learns; several: all pairs in turn", several=True, metavar="NAME"
    )
    mode: str = option("normal", "which teacher meets which student (--list-modes)", choices=MODES)
    alpha: float = option(0.5, "weight of the knowledge; the label's is 1 - alpha", least=0, most=1)
    temperature: list[float] = option(
        [4.0],
        "T: softens both networks' logits; of several the mean of the losses",
        metavar="T",
        nargs="+",
        above=0,
        most=1000,
    )
    generations: int = option(
        1,
        "born again (--mode self): the student of one is the teacher of the next",
        least=1,
        most=100,
    )
    correct_probability: float = option(
        0.99, "a of --mode virtual: probability of the true class", above=0, most=0.9999
    )
    teacher_weights: list[float] = option(
        [],
        "how much each of several teachers counts (else alike)",
        metavar="W",
        nargs="*",
        above=0,
        most=10**6,
    )
    stored_logits: bool = option(
        True,
        "keep the teacher's logits below --cache-dir for every student to come",
        identity=False,
    )
    teacher_checkpoint: list[str] = option(
        [],
        "weights that you have, one for each network of --teacher: a model.pt of ours or a timm"
        " state_dict (.pt, .safetensors)",
        metavar="FILE",
        nargs="*",
    )
    allow_foreign_teacher: bool = option(
        False,
        "take a --teacher-checkpoint of another data set or other parts; never one that "
        "has seen the student's validation or test patients",
    )


def _kind_options() -> list[tuple]:
    """(name, type, field) of every hyper-parameter of a kind of knowledge, from the table."""
    found = []
    for name, kind in KNOWLEDGE.items():
        for one in kind.options:
            limits = {"above": one.above, "least": one.least, "most": one.most}
            own = option(one.default, one.help, choices=one.choices, **limits)
            found.append((option_key(name, one), type(one.default), own))
    return found


@dataclass(frozen=True)
class ChosenKinds:
    """The kinds of knowledge and their weights."""

    knowledge: str | None = option(
        None,
        "one kind or several joined by +, whose weighted terms add up (else the mode's own)",
        choices=KNOWLEDGE,
        joined=True,
    )
    knowledge_weights: list[float] = option(
        [],
        "weights of these terms (else each kind's own)",
        metavar="W",
        nargs="*",
        above=0,
        most=10**6,
    )


# Each kind's own hyper-parameters, from the table of knowledge.
KindOptions = make_dataclass("KindOptions", _kind_options(), bases=(ChosenKinds,), frozen=True)


@dataclass(frozen=True)
class Transfer(KindOptions):
    """what the teacher passes on (--list-modes)"""

    layers: list[str] = option(
        [],
        "where to look inside: names of modules, or STUDENT:TEACHER where they differ (else the"
        " last four stages that timm names)",
        metavar="NAME",
        nargs="*",
    )


@dataclass(frozen=True)
class Unlabeled:
    """distilling through unlabelled images (--mode unlabeled, unlabeled-only)"""

    unlabeled_dir: str | None = option(
        None,
        "pictures to match the teacher on, beside those of the train part: any tree; labels "
        "in it are never read",
        metavar="DIR",
    )
    unlabeled_dataset: str = option(
        "folder", "whose names tell the patients of --unlabeled-dir", choices=POOLS
    )
    strict: bool = option(
        False,
        "refuse a --unlabeled-dir that shows validation or test patients, instead of dropping "
        "those",
    )
    match_share: float = option(
        0.8, "share of all steps that the first of several phases takes", above=0, most=0.99
    )
    finetune: str = option(
        "ce",
        "loss of phase two on the labelled images: labels alone, or --alpha of KD",
        choices=("ce", "kd"),
    )
    finetune_lr: float | None = option(None, "learning rate of phase two (else --lr)", above=0)


@dataclass(frozen=True)
class Data:
    """pictures and parts"""

    dataset: str = option("mura", "how the data lie on disk", choices=DATASETS)
    data_dir: str | None = option(None, "folder that holds them", metavar="DIR")
    label: str = option(
        "part",
        "MURA's label: the body part (the thesis) or abnormal/normal",
        choices=("part", "abnormal"),
    )
    errata: str | None = option(
        None, "corrections of a retinopathy set: image,grade (or drop)", metavar="FILE"
    )
    graded: bool = option(
        False,
        "classes 0, 1, 2 ... are ordered grades: kappa and referable AUC too; the retinopathy sets"
        " know it",
    )
    split: str = option(
        "patient",
        "patient: no patient in two parts; thesis: by image, leaks; given: as the data say",
        choices=("patient", "thesis", "given"),
    )
    split_seed: int = option(0, "seed of the parts", least=0, most=2**62)
    labeled_fraction: float = option(
        1.0,
        "share of the train part's labels that are kept, of each class, by whole patients; "
        "their images repeat, so that an epoch keeps its steps",
        above=0,
        most=1,
    )
    labeled_seed: int = option(0, "seed of which patients keep their labels", least=0, most=2**62)
    balance: str = option(
        "none",
        "rare classes: their images' label losses count for more (weights), or they are drawn as "
        "often as the others (draw)",
        choices=("none", "weights", "draw"),
    )
    train_per_class: int | None = option(
        None,
        "train images a class; small classes repeat (MURA: 2201; else all)",
        least=1,
        most=10**6,
    )
    valid_per_class: int | None = option(
        None, "validation images a class (MURA: 250; else 15 %%)", least=1, most=10**6
    )
    test_per_class: int | None = option(
        None,
        "test images a class (MURA: 245; else 15 %% or what is given; not with --split thesis)",
        least=1,
        most=10**6,
    )
    synthetic_images: int = option(2100, "pictures of the synthetic set", least=1, most=10**7)
    synthetic_seed: int = option(0, "seed of the synthetic set", least=0, most=2**62)
    image_size: int = option(
        224, "side of the square that networks see, in pixels", least=16, most=2048
    )
    resize: str = option(
        "squash", "squash to the square (the thesis) or pad to it", choices=("squash", "pad")
    )
    crop: str = option(
        "auto",
        "crop to the disc of a fundus photograph; auto: fundus for the retinopathy sets",
        choices=("auto", "none", "fundus"),
    )
    channels: int = option(
        0, "store 1 (grey) or 3 (colour) channels; 0: look at the pictures", choices=(0, 1, 3)
    )
    cache_dir: str = option(
        "cache",
        "decoded pictures, teachers' logits; may be deleted at any time",
        metavar="DIR",
        identity=False,
    )


@dataclass(frozen=True)
class Network:
    """networks"""

    pretrained: bool = option(True, "start from ImageNet weights")
    weights: str | None = option(
        None, "start the network that is trained from this file instead", metavar="FILE"
    )
    drop_rate: float | None = option(
        None,
        "dropout before the classifier (as published: vgg11 0.5, SE nets 0.2)",
        least=0,
        most=0.99,
    )


@dataclass(frozen=True)
class Training:
    """training"""

    epochs: int = option(20, "passes over the train part", least=1, most=10**6)
    batch_size: int = option(16, "images a step", least=1, most=10**6)
    lr: float = option(1e-4, "Adam's learning rate", above=0)
    schedule: str = option("constant", "learning rate over the run", choices=("constant", "cosine"))
    weight_decay: float = option(0.0, "Adam's L2 penalty", least=0)
    clip_norm: float | None = option(None, "clip the gradient's norm to this", above=0)
    augment: bool = option(True, "train on flipped, turned, scaled and shifted views")
    seed: int = option(0, "seed of weights, order and views", least=0, most=2**31)
    amp: str = option(
        "auto",
        "precision of training; evaluation is always float32",
        choices=("auto", "bf16", "fp16", "off"),
    )
    sync_bn: bool = option(False, "BatchNorm over the images of all ranks (torchrun); CUDA only")
    compile: bool = option(
        False, "torch.compile the student's training step, with CUDA graphs; CUDA only"
    )
    max_steps: int | None = option(None, "end training after this many steps", least=1)
    device: str = option(
        "auto", "cpu, cuda, cuda:1, mps; auto takes the fastest", metavar="DEVICE", identity=False
    )
    save_every_minutes: float = option(5.0, "save for resuming this often", least=0, identity=False)
    max_minutes: float | None = option(
        None, "stop after so long, saved; the same command again goes on", least=0, identity=False
    )


@dataclass(frozen=True)
class Output:
    """where results go"""

    out: str = option("runs", "folder of all runs", metavar="DIR", identity=False)
    tag: str = option("", "name a variant: its runs get folders of their own", metavar="NAME")


@dataclass(frozen=True)
class TeacherSettings:
    """Train a network on labels alone: a teacher, a student's baseline, or (stopped early) a
    defective teacher.
    """

    teacher: Teacher = field(default_factory=Teacher)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)


@dataclass(frozen=True)
class DistillSettings:
    """Train a student on the labels and on what a teacher knows of the same images."""

    distillation: Distillation = field(default_factory=Distillation)
    transfer: Transfer = field(default_factory=Transfer)
    unlabeled: Unlabeled = field(default_factory=Unlabeled)
    data: Data = field(default_factory=Data)
    network: Network = field(default_factory=Network)
    training: Training = field(default_factory=Training)
    output: Output = field(default_factory=Output)
