"""The settings that a run does not use, whatever their values."""

from kd.config import parsing
from kd.config.plan import PhasePlan, kinds_of
from kd.config.rows import chosen_phases, is_chain, teacher_names
from kd.config.settings import DistillSettings, TeacherSettings
from kd.config.training_settings import VIEWS
from kd.knowledge import KNOWLEDGE, option_key
from kd.methods import PHASE_LOSSES, Mode


def _used_by_any(settings, phases: tuple[PhasePlan, ...]) -> dict[str, bool]:
    """Return {setting: whether a run of any kind uses it}; unlisted settings are always used."""
    pooled = any(phase.uses_pool for phase in phases)
    # A phase without labels ends with its last epoch, and so does a network that stops early.
    selects = any(phase.reads_labels for phase in phases)
    stops = isinstance(settings, TeacherSettings) and settings.teacher.stop_at_val_accuracy
    others = pooled and settings.unlabeled.unlabeled_dir is not None
    used = {
        "match_share": len(phases) > 1,
        "unlabeled_dir": pooled,
        "unlabeled_dataset": others,
        "strict": others,
        "select": selects and not stops,
        "labeled_seed": settings.data.labeled_fraction < 1 or settings.data.balance == "draw",
    }
    if isinstance(settings, TeacherSettings):
        used["look_every"] = bool(stops)
    return used


def unused_by_student(
    settings: DistillSettings, mode: Mode, phases: tuple[PhasePlan, ...]
) -> frozenset[str]:
    """Return the settings that belong to another mode, teacher or kind of knowledge."""
    kinds = kinds_of(phases)
    origin = mode.teacher
    tunes = any(row.choices for row in mode.phases)
    rows = chosen_phases(settings, mode)
    chosen = any(phase.knowledge.weights and not row.knowledge for row, phase in zip(rows, phases))
    files = origin.trained and origin.precedes
    weighs = any(phase.reads_labels and phase.knowledge.weights for phase in phases)
    used = _used_by_any(settings, phases) | {
        "alpha": mode.fixed_alpha is None and weighs,
        "temperature": mode.fixed_t is None and any(kind.softens for kind in kinds.values()),
        "balance_knowledge": settings.data.balance == "weights"
        and any(kind.per_image for kind in kinds.values()),
        "layers": any(kind.inside for kind in kinds.values()),
        "finetune": tunes,
        "finetune_lr": tunes,
        "keep_matched": tunes,
        "teacher": origin.network == "teacher",
        "student_number": mode.trains_several,
        "generations": is_chain(settings),
        "knowledge": chosen,
        "knowledge_weights": chosen,
        "correct_probability": origin.distribution == "virtual",
        "teacher_decay": origin.moves and origin.decay is None,
        "ramp_up": any(PHASE_LOSSES[row.loss].ramps for row in rows),
        "ema": not origin.delivered,
        "augment": VIEWS[mode.views].uses_augment,
        "teacher_weights": len(teacher_names(settings)) > 1,
        "teacher_checkpoint": files,
        "teacher_labeled_fraction": files,
        "teacher_image_size": origin.precedes,
        "allow_foreign_teacher": files,
        "stored_logits": not (origin.moves or origin.is_peers),
    }
    for name, kind in KNOWLEDGE.items():
        used |= {option_key(name, one): name in kinds for one in kind.options}
    return _unused_keys(settings, used)


def unused_by_network_alone(
    settings: TeacherSettings, phases: tuple[PhasePlan, ...]
) -> frozenset[str]:
    """Return the settings that a network without a teacher does not use."""
    return _unused_keys(settings, _used_by_any(settings, phases))


def _unused_keys(settings, used: dict[str, bool]) -> frozenset[str]:
    known = parsing.flat(settings)
    return frozenset(key for key, is_used in used.items() if key in known and not is_used)


def idle_flags(settings, unused: frozenset[str]) -> tuple[str, ...]:
    """Return the flags of unused settings whose value is not the default."""
    given, default = parsing.flat(settings), parsing.flat(type(settings)())
    idle = [key for key in sorted(unused) if given[key] != default[key]]
    return tuple("--" + key.replace("_", "-") for key in idle)
