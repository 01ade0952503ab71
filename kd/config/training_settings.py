"""The settings of training, a section of those of a run."""

from dataclasses import dataclass

from kd.config.option import option

# The parts of each strength of --augment; `kd.data.augmentation` has their ranges.
AUGMENTATIONS = {
    "none": (),
    "light": ("mirror", "rotation", "scale", "shift"),
    "strong": ("mirror", "rotation", "crop", "intensity"),
}
AUGMENTATION_PARTS = tuple(dict.fromkeys(sum(AUGMENTATIONS.values(), ())))


@dataclass(frozen=True)
class Sides:
    """The views that a teacher and its student see of the same image.

    words        the views in the table of modes
    teacher      strength of the teacher's views; empty: that of --augment
    student      strength of the student's views; empty: that of --augment. In batches of which one
                 half is labelled, the student sees that half at the teacher's strength
    independent  whether the random numbers of the teacher's views are not those of the student's
    """

    words: str
    teacher: str = ""
    student: str = ""
    independent: bool = False

    @property
    def uses_augment(self) -> bool:
        """Whether --augment chooses the strength of a side."""
        return not (self.teacher and self.student)


VIEWS = {
    "same": Sides("the same for all"),
    "independent": Sides("of one strength, drawn for each", independent=True),
    "weak/strong": Sides(
        "light for the teacher and of labelled images, strong for the student", "light", "strong"
    ),
}

# The metrics by which an epoch is chosen; `kd.training.selection` computes them.
SELECTIONS = ("accuracy", "balanced_accuracy", "auroc", "kappa", "nll")


@dataclass(frozen=True)
class Training:
    """training"""

    epochs: int = option(20, "passes over the train split", common=True, least=1, most=10**6)
    batch_size: int = option(16, "images per step", common=True, least=1, most=10**6)
    lr: float = option(1e-4, "learning rate", above=0)
    schedule: str = option("constant", "learning rate schedule", choices=("constant", "cosine"))
    warmup: float = option(
        0.0,
        "share of the steps of each phase in which the learning rate rises from near 0, before the"
        " schedule",
        metavar="SHARE",
        least=0,
        most=0.5,
    )
    optimizer: str = option(
        "adam", "adam, or adamw: decoupled weight decay", choices=("adam", "adamw")
    )
    weight_decay: float = option(
        0.0, "weight decay of all parameters: L2 penalty (adam), or decoupled (adamw)", least=0
    )
    ema: float | None = option(
        None,
        "judge and deliver an exponential moving average of the weights with this decay, such as"
        " 0.999",
        metavar="DECAY",
        above=0,
        most=0.999999,
    )
    clip_norm: float | None = option(None, "clip the norm of the gradient to this value", above=0)
    select: str = option(
        "accuracy",
        "metric of the validation split by which the best epoch is chosen; with rare classes,"
        " accuracy prefers the majority",
        choices=SELECTIONS,
    )
    augment: str = option(
        "light",
        "views to train on, unless --mode has views of its own; light: mirrored, rotated, scaled,"
        " shifted; strong: mirrored, rotated, cropped, with other intensities",
        choices=tuple(AUGMENTATIONS),
        former={True: "light", False: "none"},
    )
    augment_without: list[str] = option(
        [],
        f"parts of the views to switch off: {', '.join(AUGMENTATION_PARTS)}",
        metavar="PART",
        nargs="*",
        choices=AUGMENTATION_PARTS,
    )
    mixup: float = option(
        0.0,
        "mix each image and its label with those of another one, with a share from Beta(P, P);"
        " 1: all shares are equally likely; 0: off",
        metavar="P",
        least=0,
        most=100,
    )
    seed: int = option(0, "seed of the weights, image order and views", least=0, most=2**31)
    amp: str = option(
        "auto",
        "training precision; evaluation always uses float32",
        choices=("auto", "bf16", "fp16", "off"),
    )
    sync_bn: bool = option(False, "BatchNorm over all ranks of torchrun; CUDA only")
    compile: bool = option(False, "torch.compile with CUDA graphs; CUDA only")
    max_steps: int | None = option(None, "end training after this number of steps", least=1)
    device: str = option(
        "auto",
        "cpu, cuda, cuda:1 or mps; auto: the fastest one",
        common=True,
        metavar="DEVICE",
        identity=False,
    )
    save_every_minutes: float = option(
        5.0, "minutes between saves for resuming", least=0, identity=False
    )
    max_minutes: float | None = option(
        None, "save and stop after this time; run again to continue", least=0, identity=False
    )
