"""The tables of modes and knowledge in Markdown, as printed by --list-modes."""

from collections.abc import Iterable

from kd.config.training_settings import VIEWS
from kd.knowledge import KNOWLEDGE, Kind
from kd.methods import MODES, PHASE_LOSSES, Mode, ModePhase
from kd.system.markdown import table

IMAGES = {"train": "labelled images", "pool": "all images without their labels"}
IMAGES["half"] = f"batches of which one half is of {IMAGES['train']}, the other of {IMAGES['pool']}"


def list_modes() -> str:
    """Return what `distill.py --list-modes` prints."""
    return (
        f"{modes_table()}\n\nPairs of the thesis (teachers -> students): {pairs_text()}.\nAny"
        " pair can be used in any mode. With --teacher A+B, the teacher is an ensemble: the mean of"
        " both networks' softened probabilities. With --student A+B, mode"
        f" {' and '.join(f'`{name}`' for name, mode in MODES.items() if mode.trains_several)}"
        f" trains both at once.\n\n{knowledge_table()}\n\nWith --knowledge A+B,"
        " the loss is the weighted sum of both terms. Sources are arXiv numbers."
    )


def modes_table() -> str:
    """Return the table of modes in Markdown."""
    header = ["`--mode`", "data", "views", "teacher", "students", "start of the student"]
    header += ["knowledge", "location", "transfer", "scheme", "source"]
    return "\n".join(table(header, [_mode_row(name, mode) for name, mode in MODES.items()]))


def knowledge_table() -> str:
    """Return the table of kinds of knowledge in Markdown."""
    header = [
        "`--knowledge`",
        "what is transferred",
        "location",
        "transfer",
        "default weight",
        "needs",
    ]
    header += ["source"]
    rows = [
        [
            f"`{name}`",
            kind.what,
            kind.location,
            kind.transfer,
            f"{kind.weight:g}",
            ", ".join(_needs(kind)),
            kind.source,
        ]
        for name, kind in KNOWLEDGE.items()
    ]
    return "\n".join(table(header, rows))


def pairs_text() -> str:
    """Return the pairs of the thesis in words, mode by mode."""
    return "; ".join(
        f"`{name}`: {', '.join(mode.teachers)} -> {', '.join(mode.students)}"
        for name, mode in MODES.items()
        if mode.teachers
    )


def _mode_row(name: str, mode: Mode) -> list[str]:
    kinds = _kinds(mode)
    what = "fixed class probabilities"
    if mode.teacher.is_network:
        what = _each(kind.what for kind in kinds.values())
    # Every generation of a chain draws weights of its own, so that it differs from its teacher.
    fresh = "new random weights" if mode.teacher.is_students_own else "random weights"
    start = f"ImageNet or {fresh}"
    if len(mode.phases) > 1:
        start += ", then the weights of the previous phase"
    return [
        f"`{name}`",
        ", then ".join(_data(phase) for phase in mode.phases),
        VIEWS[mode.views].words if mode.teacher.is_network else "-",
        mode.teacher.words,
        "several at once" if mode.trains_several else "one",
        start,
        f"{what} ({_each(f'`{kind}`' for kind in kinds)})",
        _each(kind.location for kind in kinds.values()),
        ", then ".join(_transfer(mode, phase) for phase in mode.phases),
        mode.scheme,
        mode.source,
    ]


def _kinds(mode: Mode) -> dict[str, Kind]:
    """Return the kinds of knowledge that a mode transfers by default, by name."""
    found = {}
    for phase in mode.phases:
        if PHASE_LOSSES[phase.loss].passes_knowledge:
            found |= {name: KNOWLEDGE[name] for name in _names(mode, phase)}
    return found


def _names(mode: Mode, phase: ModePhase) -> list[str]:
    return (phase.knowledge or mode.knowledge).split("+")


def _each(words: Iterable[str]) -> str:
    """Return the distinct words in their order, joined by commas."""
    return ", ".join(dict.fromkeys(words))


def _data(phase: ModePhase) -> str:
    """Return which images a phase uses, and which of them the teacher teaches, if not all."""
    if phase.taught == "unlabelled":
        return f"{IMAGES[phase.images]}; the teacher teaches only the latter"
    return IMAGES[phase.images]


def _transfer(mode: Mode, phase: ModePhase) -> str:
    """Return the loss of a phase in words."""
    knowledge = " + ".join(KNOWLEDGE[name].transfer for name in _names(mode, phase))
    if mode.fixed_t:
        knowledge += f" at T = {mode.fixed_t:g}"
    words = PHASE_LOSSES[phase.loss].words.format(knowledge=knowledge)
    return words if mode.fixed_alpha is None else f"{words}, alpha = {mode.fixed_alpha:g}"


def _needs(kind: Kind) -> list[str]:
    needs = []
    if kind.labels:
        needs.append("labels")
    if kind.inside:
        needs.append("a network as teacher")
    if kind.maps:
        needs.append("feature maps [B, C, H, W]")
    if kind.least_classes > 2:
        needs.append(f"at least {kind.least_classes} classes")
    return needs
