"""The tables of modes and knowledge in Markdown: what --list-modes prints."""

from collections.abc import Iterable

from kd.methods import KNOWLEDGE, MODES, PHASE_LOSSES, Kind, Mode, ModePhase
from kd.system.markdown import table

IMAGES = {"train": "labelled images", "pool": "all images without labels"}


def list_modes() -> str:
    """What `distill.py --list-modes` prints."""
    return (
        f"{modes_table()}\n\nThe thesis's pairs: {pairs_text()}.\n--teacher a+b: the mean of both"
        f" teachers' softened probabilities.\n\n{knowledge_table()}\n\n--knowledge a+b: the"
        " weighted sum of both terms."
    )


def modes_table() -> str:
    """The modes as Markdown."""
    header = ["`--mode`", "data", "teacher", "start of the student", "knowledge", "location"]
    header += ["transfer", "source"]
    return "\n".join(table(header, [_mode_row(name, mode) for name, mode in MODES.items()]))


def knowledge_table() -> str:
    """The kinds of knowledge as Markdown."""
    header = ["`--knowledge`", "what", "location", "transfer", "weight", "needs", "source"]
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
    """The thesis's pairs in words."""
    return "; ".join(
        f"`{name}` {', '.join(mode.teachers)} -> {', '.join(mode.students)}"
        for name, mode in MODES.items()
        if mode.teachers
    )


def _mode_row(name: str, mode: Mode) -> list[str]:
    kinds = _kinds(mode)
    what = "label distribution"
    if mode.teacher.is_network:
        what = _each(kind.what for kind in kinds.values())
    start = "drawn anew, or ImageNet" if mode.teacher.is_students_own else "ImageNet, or drawn"
    if len(mode.phases) > 1:
        start += ", then where it stands"
    return [
        f"`{name}`",
        ", then ".join(_data(mode, phase) for phase in mode.phases),
        mode.teacher.words,
        start,
        f"{what} ({_each(f'`{kind}`' for kind in kinds)})",
        _each(kind.location for kind in kinds.values()),
        ", then ".join(_transfer(mode, phase) for phase in mode.phases),
        mode.source,
    ]


def _kinds(mode: Mode) -> dict[str, Kind]:
    """The kinds of knowledge that a mode passes on by default."""
    found = {}
    for phase in mode.phases:
        if PHASE_LOSSES[phase.loss].passes_knowledge:
            found |= {name: KNOWLEDGE[name] for name in _names(mode, phase)}
    return found


def _names(mode: Mode, phase: ModePhase) -> list[str]:
    return (phase.knowledge or mode.knowledge).split("+")


def _each(words: Iterable[str]) -> str:
    """Distinct words, in their order."""
    return ", ".join(dict.fromkeys(words))


def _data(mode: Mode, phase: ModePhase) -> str:
    """Which images a phase shows, and whether a teacher sees them too."""
    if mode.teacher.is_network and PHASE_LOSSES[phase.loss].passes_knowledge:
        return f"{IMAGES[phase.images]}, one view for both"
    return IMAGES[phase.images]


def _transfer(mode: Mode, phase: ModePhase) -> str:
    """The loss of a phase in words."""
    knowledge = " + ".join(KNOWLEDGE[name].transfer for name in _names(mode, phase))
    if mode.fixed_t:
        knowledge += f" at T = {mode.fixed_t:g}"
    return PHASE_LOSSES[phase.loss].words.format(knowledge=knowledge)


def _needs(kind: Kind) -> list[str]:
    needs = []
    if kind.labels:
        needs.append("labels")
    if kind.inside:
        needs.append("a teacher that is a network")
    if kind.maps:
        needs.append("maps")
    if kind.least_classes > 2:
        needs.append(f"{kind.least_classes} classes")
    return needs
