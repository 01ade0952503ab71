"""Checks that refuse incomplete or contradictory settings before any data are read."""

from kd.config.layout import LONGEST, is_folder_name, slug
from kd.config.plan import PhasePlan, ViewsPlan, kinds_of
from kd.config.rows import chosen_kinds, chosen_phases, teacher_names
from kd.config.settings import DistillSettings
from kd.config.training_settings import AUGMENTATIONS, Training
from kd.knowledge import KNOWLEDGE
from kd.methods import Mode, ModePhase
from kd.system.errors import Problem
from kd.system.messages import shortened


def refuse_tag(tag: str) -> None:
    """Raise Problem for a tag that cannot be part of the name of a folder."""
    if len(tag) > LONGEST:
        raise Problem(
            f"--tag '{shortened(tag, 60)}' is too long: it has {len(tag)} characters, but as a part"
            f" of a folder name at most {LONGEST}. Use a shorter --tag."
        )
    if tag and not is_folder_name(tag):
        raise Problem(
            f"--tag '{tag}' is not valid: it is part of a folder name, so it may contain only"
            f" letters, digits, '.', '_' and '-'. Try --tag {slug(tag)}."
        )


def refuse_parts(training: Training, views: ViewsPlan) -> None:
    """Raise Problem for parts that no view of the run has."""
    strengths = dict.fromkeys((views.teacher, views.student))
    parts = dict.fromkeys(part for strength in strengths for part in AUGMENTATIONS[strength])
    for part in training.augment_without:
        if part not in parts:
            has = f"whose parts are {', '.join(parts)}" if parts else "which has no parts"
            raise Problem(
                f"--augment-without {part} cannot be used with --augment {' and '.join(strengths)},"
                f" {has}. Remove {part}, or choose another --augment."
            )


def refuse_misfits(
    settings: DistillSettings, mode: Mode, phases: tuple[PhasePlan, ...], unused: frozenset[str]
) -> None:
    """Raise Problem for settings of a student that do not fit its mode or each other.

    These are knowledge that the mode cannot transfer, lists of the wrong length, a teacher that is
    named twice, --compile with knowledge in feature maps, and --mixup with what needs one class.
    """
    where = f"cannot be used with --mode {settings.distillation.mode}"
    _refuse_kinds(settings, mode, phases, where)
    for row, phase in zip(chosen_phases(settings, mode), phases):
        _refuse_phase(settings, mode, row, phase, where)
    _refuse_lengths(settings, mode, unused)
    _refuse_mixup(settings, mode, phases)
    names = teacher_names(settings)
    twice = sorted({name for name in names if names.count(name) > 1})
    files = settings.distillation.teacher_checkpoint and "teacher_checkpoint" not in unused
    if twice and not files:
        raise Problem(
            f"--teacher names '{twice[0]}' twice, but both are the same network. Use other"
            " names, or set --teacher-checkpoint to files of differently trained networks."
        )
    if mode.trains_several:
        _refuse_with_peers(settings, phases, where)
    inside = _inside(phases)
    if settings.training.compile and inside:
        raise Problem(
            f"--compile cannot be used with --knowledge {inside[0]}: a compiled network does not"
            " expose its feature maps. Remove --compile or choose another kind of knowledge."
        )


def _refuse_with_peers(settings, phases: tuple[PhasePlan, ...], where: str) -> None:
    """Raise Problem for what students that are trained at once do not have or cannot share."""
    inside = _inside(phases)
    if inside:
        outputs = [name for name, kind in KNOWLEDGE.items() if not kind.inside]
        raise Problem(
            f"--knowledge {inside[0]} {where}: students that are trained at once exchange only"
            f" their outputs, not their feature maps. Use one of {', '.join(outputs)}."
        )
    if settings.network.weights is not None:
        raise Problem(
            f"--weights {where}: the file has the weights of one network, but several students are"
            " trained. Remove --weights."
        )
    if settings.training.compile:
        raise Problem(
            f"--compile {where}: its CUDA graphs may reuse the memory of another student's outputs."
            " Remove --compile."
        )


def _refuse_kinds(settings, mode: Mode, phases: tuple[PhasePlan, ...], where: str) -> None:
    """Raise Problem for kinds of knowledge that the mode's teacher does not have."""
    chosen = chosen_kinds(settings, mode)
    if len(set(chosen)) < len(chosen):
        raise Problem(
            f"--knowledge {'+'.join(chosen)} names a kind twice. Name it once and set its weight"
            " with --knowledge-weights."
        )
    inside = _inside(phases)
    if inside and not mode.teacher.is_network:
        outputs = [name for name, kind in KNOWLEDGE.items() if not kind.inside]
        raise Problem(
            f"--knowledge {inside[0]} {where}: its teacher is not a network and has no feature"
            f" maps. Use one of {', '.join(outputs)}."
        )
    others = sorted(kinds_of(phases).keys() - {"kd"})
    if others and mode.teacher.distribution == "uniform":
        raise Problem(
            f"--knowledge {others[0]} {where}: label smoothing is kd with a uniform teacher. Remove"
            " --knowledge."
        )


def _refuse_phase(settings, mode: Mode, row: ModePhase, phase: PhasePlan, where: str) -> None:
    """Raise Problem for a phase that needs labels but does not read any."""
    lacking = [name for name, kind in phase.knowledge.kinds.items() if kind.labels]
    if lacking and (phase.half_labelled or not phase.reads_labels):
        reads = "does not have them for all images" if phase.half_labelled else "reads none"
        raise Problem(
            f"--knowledge {lacking[0]} {where}: it needs labels, but phase '{row.name}' {reads}."
            " Use another kind."
        )
    if phase.half_labelled and settings.training.batch_size < 2:
        other = "use another --finetune" if mode.phases[-1].choices else "use another --mode"
        raise Problem(
            f"Phase '{row.name}' of --mode {settings.distillation.mode} needs batches of at least 2"
            " images, because one half of each batch is labelled. Increase --batch-size, or"
            f" {other}."
        )
    whole = [name for name, kind in phase.knowledge.kinds.items() if not kind.per_image]
    if phase.teaches_rest and whole:
        raise Problem(
            f"--knowledge {whole[0]} {where}: it compares the images of a batch with each other,"
            " but only those without labels are taught. Use another kind."
        )
    labels_in_pool = phase.shows_pool and phase.reads_labels
    needs_network = phase.half_labelled or not phase.reads_labels
    if labels_in_pool or (needs_network and not mode.teacher.is_network):
        raise Problem(
            f"Phase '{row.name}' of --mode {settings.distillation.mode} is not valid: loss"
            f" '{row.loss}' on images '{row.images}' with the teacher '{mode.teacher.words}' needs"
            " labels, but none are read. Use the loss 'match' with a network as teacher."
        )
    if phase.teaches_rest and not phase.half_labelled:
        raise Problem(
            f"Phase '{row.name}' of --mode {settings.distillation.mode} is not valid: it teaches"
            f" unlabelled images only, but images '{row.images}' are of one kind. Use images"
            " 'half'."
        )
    if mode.views != "same" and not (mode.teacher.precedes or mode.teacher.moves):
        raise Problem(
            f"--mode {settings.distillation.mode} is not valid: views '{mode.views}' need a teacher"
            f" that sees images, but it is '{mode.teacher.words}'. Use the views 'same'."
        )


def _refuse_lengths(settings: DistillSettings, mode: Mode, unused: frozenset[str]) -> None:
    """Raise Problem for a list without exactly one value for each teacher or kind."""
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
                f"--{key.replace('_', '-')} has the wrong number of values, {len(given)}: {what}"
                f" {expected}. Set one value for each, or none."
            )


def _refuse_mixup(settings, mode: Mode, phases: tuple[PhasePlan, ...]) -> None:
    """Raise Problem for --mixup with knowledge or a teacher that needs the class of an image."""
    if not settings.training.mixup:
        return
    flag = f"--mixup {settings.training.mixup:g}"
    for name, kind in sorted(kinds_of(phases).items()):
        if kind.labels or kind.hard:
            raise Problem(
                f"{flag} cannot be used with --knowledge {name}, which needs the one class of an"
                " image: a mixed image has two. Remove --mixup, or use --knowledge kd."
            )
    if mode.teacher.distribution == "virtual":
        raise Problem(
            f"{flag} cannot be used with --mode {settings.distillation.mode}, whose teacher is a"
            " distribution around the true class of an image: a mixed image has two. Remove"
            " --mixup, or use --mode smoothing."
        )


def _inside(phases: tuple[PhasePlan, ...]) -> list[str]:
    """Return the kinds of knowledge, of all phases, that are in feature maps."""
    return sorted(name for name, kind in kinds_of(phases).items() if kind.inside)
