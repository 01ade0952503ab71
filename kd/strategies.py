"""The modes as data: which teacher meets which student on which images. The loop knows none of them."""

from dataclasses import dataclass

SE_NETS = ("seresnet50", "seresnet101")
PLAIN_NETS = ("vgg11", "resnet18", "resnet34", "resnet50")


@dataclass(frozen=True)
class Stage:
    """A phase of a run, as a mode's row has it.

    images  `train`: the labelled train part; `pool`: every picture that may be seen, without its label
    loss    `labels`, `kd` (labels and the teacher), `match` (the teacher alone: --match) or `finetune` (--finetune)
    """

    name: str
    images: str
    loss: str


@dataclass(frozen=True)
class Strategy:
    """A row of the mode table.

    images     what the student sees, and with which labels
    teacher    how it came to be, in words
    stop_at    the teacher's training stops once validation accuracy passes this; None trains it to the end
    knowledge  what is transferred, and where
    transfer   by which loss
    teachers, students  the thesis's pairs: every teacher with every student
    source     where the mode comes from
    stages     the phases of the student's training, in turn
    """

    images: str
    teacher: str
    stop_at: float | None
    knowledge: str
    transfer: str
    teachers: tuple[str, ...]
    students: tuple[str, ...]
    source: str
    stages: tuple[Stage, ...] = (Stage("distil", "train", "kd"),)


ALONE = (Stage("train", "train", "labels"),)  # of a network that nobody teaches
STRATEGIES = {
    "normal": Strategy("labelled", "trained, large", None, "logits, output", "KL + CE", SE_NETS, PLAIN_NETS, "1503.02531"),
    "reverse": Strategy("labelled", "trained, small", None, "logits, output", "KL + CE", PLAIN_NETS, SE_NETS, "1909.11723"),
    "defective": Strategy("labelled", "stopped once validation accuracy passes 0.5", 0.5, "logits, output", "KL + CE",
                          SE_NETS, PLAIN_NETS, "1909.11723"),
    "unlabeled": Strategy("unlabelled, then labelled", "trained", None, "logits, output", "logit MSE (or KL), then CE", (), (),
                          "2009.00982", (Stage("match", "pool", "match"), Stage("finetune", "train", "finetune"))),
    "unlabeled-only": Strategy("unlabelled", "trained", None, "logits, output", "logit MSE (or KL)", (), (), "2009.00982",
                               (Stage("match", "pool", "match"),)),
}


def unusual(mode: str, teacher: str, student: str) -> str:
    """A remark where the thesis files this pair under another mode; empty else. Any pair may run under any mode."""
    own = STRATEGIES[mode]
    if teacher in own.teachers and student in own.students:
        return ""
    others = [name for name, row in STRATEGIES.items() if teacher in row.teachers and student in row.students]
    return f"{student} <- {teacher} is one of the thesis's pairs for {' and '.join(others)}, not for {mode}" if others else ""
