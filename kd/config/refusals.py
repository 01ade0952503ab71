"""Settings that contradict each other or lack something, refused before any data are read."""

from kd.config.layout import is_folder_name, slug
from kd.config.plan import PhasePlan, kinds_of
from kd.config.rows import chosen_kinds, teacher_names
from kd.config.settings import DistillSettings
from kd.methods import KNOWLEDGE, Mode, ModePhase
from kd.system.errors import Problem


def refuse_tag(tag: str) -> None:
    """Raise Problem for a tag that cannot stand in the name of a folder."""
    if tag and not is_folder_name(tag):
        raise Problem(
            f"tag '{tag}' in --tag: must be letters, digits, '.', '_' and '-', as it names a"
            f" folder; try '{slug(tag)}'"
        )


def refuse_misfits(
    settings: DistillSettings, mode: Mode, phases: tuple[PhasePlan, ...], unused: frozenset[str]
) -> None:
    """Raise Problem for knowledge that a mode cannot pass on, and for lists of other lengths."""
    where = f"in --knowledge: --mode {settings.distillation.mode}"
    _refuse_kinds(settings, mode, phases, where)
    for row, phase in zip(mode.phases, phases):
        _refuse_phase(settings, mode, row, phase, where)
    _refuse_lengths(settings, mode, unused)
    names = teacher_names(settings)
    twice = sorted({name for name in names if names.count(name) > 1})
    files = settings.distillation.teacher_checkpoint and "teacher_checkpoint" not in unused
    if twice and not files:
        raise Problem(
            f"teacher '{twice[0]}' in --teacher: named twice, it is the same network twice; give"
            " other names, or files of differently trained ones with --teacher-checkpoint"
        )
    inside = _inside(phases)
    if settings.training.compile and inside:
        raise Problem(
            "compile in --compile: a compiled network does not show its feature maps, which"
            f" '{inside[0]}' needs; leave one of both out"
        )


def _refuse_kinds(settings, mode: Mode, phases: tuple[PhasePlan, ...], where: str) -> None:
    """Raise Problem for kinds of knowledge that the mode's teacher does not have."""
    chosen = chosen_kinds(settings, mode)
    if len(set(chosen)) < len(chosen):
        raise Problem(
            f"knowledge '{'+'.join(chosen)}' in --knowledge: names a kind twice; give it once, with"
            " a weight in --knowledge-weights"
        )
    inside = _inside(phases)
    if inside and not mode.teacher.is_network:
        outputs = [name for name, kind in KNOWLEDGE.items() if not kind.inside]
        raise Problem(
            f"knowledge '{inside[0]}' {where} has no network to look into; give one of"
            f" {', '.join(outputs)}"
        )
    others = sorted(kinds_of(phases).keys() - {"kd"})
    if others and mode.teacher.distribution == "uniform":
        raise Problem(
            f"knowledge '{others[0]}' {where} is label smoothing, which is kd of a uniform teacher;"
            " leave --knowledge out"
        )


def _refuse_phase(settings, mode: Mode, row: ModePhase, phase: PhasePlan, where: str) -> None:
    """Raise Problem for a phase that needs labels where none are read."""
    lacking = [name for name, kind in phase.knowledge.kinds.items() if kind.labels]
    if lacking and not phase.reads_labels:
        raise Problem(
            f"knowledge '{lacking[0]}' {where} reads no labels, which it needs; give another kind"
        )
    labels_in_pool = phase.shows_pool and phase.reads_labels
    if labels_in_pool or not (phase.reads_labels or mode.teacher.is_network):
        raise Problem(
            f"phase '{row.name}' of --mode {settings.distillation.mode}: '{row.loss}' on"
            f" '{row.images}', teacher '{mode.teacher.words}', needs labels where none are read;"
            " let it match a network's knowledge"
        )


def _refuse_lengths(settings: DistillSettings, mode: Mode, unused: frozenset[str]) -> None:
    """Raise Problem for a list of another length than the teachers, or the kinds, it is for."""
    how, teachers = settings.distillation, len(teacher_names(settings))
    kinds = len(chosen_kinds(settings, mode))
    lengths = [
        ("teacher_weights", how.teacher_weights, "--teacher names", teachers),
        ("teacher_checkpoint", how.teacher_checkpoint, "--teacher names", teachers),
        ("knowledge_weights", settings.transfer.knowledge_weights, "--knowledge names", kinds),
    ]
    for key, given, what, expected in lengths:
        if given and len(given) != expected and key not in unused:
            raise Problem(
                f"{key} of {len(given)} in --{key.replace('_', '-')}: {what} {expected}; give one"
                " for each, or none"
            )


def _inside(phases: tuple[PhasePlan, ...]) -> list[str]:
    """The kinds of knowledge, of all phases, that lie in feature maps."""
    return sorted(name for name, kind in kinds_of(phases).items() if kind.inside)
