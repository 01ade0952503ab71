"""From settings to the plan of a run, with every check that needs only the settings."""

from pathlib import Path

from kd.config import cohort, parsing
from kd.config.layout import data_name, run_path
from kd.config.plan import (
    Distribution,
    Follower,
    KnowledgePlan,
    PhasePlan,
    Plan,
    TeacherPlan,
)
from kd.config.refusals import refuse_misfits, refuse_parts, refuse_tag
from kd.config.reporting import DEFAULT_RULE, parse_rule
from kd.config.rows import (
    OWN_TEACHER,
    chosen_kinds,
    chosen_phases,
    is_chain,
    teacher_names,
    views_of,
)
from kd.config.seeds import UNTRAINED, another_seed
from kd.config.settings import Data, DistillSettings, Teacher, TeacherSettings
from kd.config.teacher_data import (
    data_of_teachers,
    refuse_thesis,
    without_equal,
    words_on_teachers,
)
from kd.config.training_settings import AUGMENTATIONS
from kd.config.unused import idle_flags, unused_by_network_alone, unused_by_student
from kd.knowledge import KNOWLEDGE, option_key
from kd.methods import ALONE, MODES, PHASE_LOSSES, Mode, ModePhase, Origin, unusual

GENERATION_WORD = "-generation"
FINETUNE_LR = 0.1  # times --lr; configs/README.md has the experiment


def resolve_all(settings: TeacherSettings | DistillSettings) -> list[Plan]:
    """Return the plans of the students that a run trains at once, usually of a single one."""
    plan = resolve(settings)
    if not plan.peers:
        return [plan]
    return [resolve(own) for own in cohort.each(plan.settings)]


def resolve(settings: TeacherSettings | DistillSettings) -> Plan:
    """Return the plan of a student. Raises Problem for settings that contradict each other.

    If a run trains several students at once, it is the plan of the one with --student-number.
    """
    refuse_tag(settings.output.tag)
    parse_rule(settings.output.operating_point or DEFAULT_RULE)
    refuse_parts(settings.training, views_of(settings))
    if isinstance(settings, TeacherSettings):
        return _resolve_alone(settings)
    mode = MODES[settings.distillation.mode]
    cohort.refuse_students(settings, mode)
    settings = cohort.in_order(without_equal(settings))
    phases = tuple(
        _phase(settings, mode, row, tunes=bool(phase.choices))
        for phase, row in zip(mode.phases, chosen_phases(settings, mode))
    )
    unused = unused_by_student(settings, mode, phases)
    refuse_misfits(settings, mode, phases, unused)
    refuse_thesis(settings, unused)
    names = teacher_names(settings)
    name = _teacher_name(settings)
    data = data_of_teachers(settings, unused)
    teachers = tuple(_teacher(settings, mode, place, data) for place in range(len(names)))
    return Plan(
        settings=settings,
        folder=_folder_of_student(settings),
        state_folder=_folder_of_student(cohort.each(settings)[0]),
        mode=settings.distillation.mode,
        student=cohort.own_name(settings),
        peers=tuple(cohort.peer_names(settings)),
        weights_seed=_weights_seed(settings),
        dropout_seed=cohort.own_seed(settings),
        phases=phases,
        alpha=settings.distillation.alpha if mode.fixed_alpha is None else mode.fixed_alpha,
        teachers=teachers,
        shares=_shares(settings, mode.teacher, unused),
        distribution=_distribution(settings, mode.teacher),
        follower=_follower(settings, mode.teacher),
        views=views_of(settings),
        teacher_name=name,
        teacher_words=words_on_teachers(settings, unused),
        teacher_data=data,
        unused=unused,
        idle=idle_flags(settings, unused),
        remarks=_remarks(settings, mode, name, teachers),
    )


def _remarks(
    settings: DistillSettings, mode: Mode, name: str, teachers: tuple[TeacherPlan, ...]
) -> tuple[str, ...]:
    """Return remarks for the user that follow from the settings alone, each a sentence."""
    found = [unusual(settings.distillation.mode, name, settings.distillation.student)]
    if mode.teacher.moves:
        found.append(
            "The teacher changes with its student: it runs in every step, and its logits are not"
            " stored."
        )
    if mode.teacher.delivered:
        found.append(
            "The teacher, an average of the student's weights, is judged and delivered. Compare it"
            f" with the network alone with --ema {settings.distillation.teacher_decay:g}."
        )
    given = any(teacher.file is not None for teacher in teachers)
    unknown = settings.distillation.teacher_labeled_fraction is None
    if given and unknown and settings.data.labeled_fraction < 1:
        found.append(
            "A teacher in --teacher-checkpoint may have been trained on labels that"
            " --labeled-fraction hides."
        )
    return tuple(filter(None, found))


def _resolve_alone(settings: TeacherSettings) -> Plan:
    """Return the plan of a network that is trained on labels only."""
    model, stops = settings.teacher.model, settings.teacher.stop_at_val_accuracy is not None
    phases = tuple(_phase(settings, None, phase, tunes=False) for phase in ALONE)
    unused = unused_by_network_alone(settings, phases)
    folder = _folder(settings, "teacher", f"{model}-defective" if stops else model)
    return Plan(
        settings=settings,
        folder=folder,
        state_folder=folder,
        mode="teacher",
        student=model,
        peers=(),
        weights_seed=settings.training.seed,
        dropout_seed=settings.training.seed,
        phases=phases,
        alpha=0.0,
        teachers=(),
        shares=(),
        distribution=None,
        follower=None,
        views=views_of(settings),
        teacher_name="",
        teacher_words="",
        teacher_data=settings.data,
        unused=unused,
        idle=idle_flags(settings, unused),
        remarks=(),
    )


def _folder(settings, mode: str, pair: str) -> Path:
    name, seed = data_name(settings.data), settings.training.seed
    return run_path(settings.output.out, name, mode, settings.output.tag, pair, seed)


def _folder_of_student(settings: DistillSettings) -> Path:
    pair = f"{_teacher_name(settings)}-{cohort.own_name(settings)}"
    return _folder(settings, settings.distillation.mode, pair)


def _teacher_name(settings: DistillSettings) -> str:
    """Return `a+b`, or in a chain of generations the previous one, e.g. `a-generation1`.

    If the other students teach, it is their joint name. A teacher that is no network is `none`, and
    a student that teaches itself while it learns is `itself`.
    """
    moves = MODES[settings.distillation.mode].teacher.moves
    names = teacher_names(settings) or cohort.peer_names(settings)
    name = "+".join(names) or (OWN_TEACHER if moves else "none")
    if is_chain(settings) and settings.distillation.generations > 1:
        name += f"{GENERATION_WORD}{settings.distillation.generations - 1}"
    return name


def _weights_seed(settings: DistillSettings) -> int:
    """Return --seed, or another seed for every generation, so that none starts like its teacher."""
    if is_chain(settings):
        return another_seed(settings.training.seed, settings.distillation.generations)
    return cohort.own_seed(settings)


def _shares(settings: DistillSettings, origin: Origin, unused: frozenset[str]) -> tuple[float, ...]:
    """Return the weight of each teacher network."""
    weights = [1.0] * (1 if origin.moves else len(teacher_names(settings)))
    if settings.distillation.teacher_weights and "teacher_weights" not in unused:
        weights = settings.distillation.teacher_weights
    return tuple(weight / sum(weights) for weight in weights)


def _follower(settings: DistillSettings, origin: Origin) -> Follower | None:
    if not origin.moves:
        return None
    decay = settings.distillation.teacher_decay if origin.decay is None else origin.decay
    return Follower(decay, origin.delivered)


def _distribution(settings: DistillSettings, origin: Origin) -> Distribution | None:
    if origin.is_network:
        return None
    is_uniform = origin.distribution == "uniform"
    return Distribution(None if is_uniform else settings.distillation.correct_probability)


# Phases and knowledge


def _phase(settings, mode: Mode | None, phase: ModePhase, tunes: bool) -> PhasePlan:
    """Return the plan of a phase.

    mode   None for a network that is trained without a teacher
    tunes  whether the phase is one of fine-tuning, whose settings it has
    """
    loss = PHASE_LOSSES[phase.loss]
    lr = settings.training.lr
    if tunes:
        lr = settings.unlabeled.finetune_lr or FINETUNE_LR * lr
    knowledge = KnowledgePlan({}, (), {})
    if loss.passes_knowledge:
        knowledge = _knowledge(settings, mode, phase, alone=not loss.reads_labels)
    return PhasePlan(
        name=phase.name,
        shows_pool=phase.images == "pool",
        reads_labels=loss.reads_labels,
        knowledge=knowledge,
        lr=lr,
        half_labelled=phase.images == "half",
        keeps_start=tunes and settings.unlabeled.keep_matched,
        teaches_rest=phase.taught == "unlabelled",
        ramp_up=settings.distillation.ramp_up if loss.ramps else 0.0,
    )


def _knowledge(
    settings: DistillSettings, mode: Mode, phase: ModePhase, alone: bool
) -> KnowledgePlan:
    """Return the knowledge that a phase transfers.

    alone  whether the loss has no term of labels, in which case a single kind has weight 1
    """
    given = settings.transfer
    kinds = phase.knowledge.split("+") if phase.knowledge else chosen_kinds(settings, mode)
    weights = [] if phase.knowledge else given.knowledge_weights
    if alone and len(kinds) == 1 and not weights:
        weights = [1.0]
    temperatures = settings.distillation.temperature if mode.fixed_t is None else [mode.fixed_t]
    options = {}
    for name in kinds:
        own = KNOWLEDGE[name].options
        options[name] = {one.name: getattr(given, option_key(name, one)) for one in own}
    return KnowledgePlan(
        weights=dict(zip(kinds, weights or [KNOWLEDGE[name].weight for name in kinds])),
        temperatures=tuple(temperatures),
        options=options,
    )


# Teachers


def _teacher(settings: DistillSettings, mode: Mode, place: int, data: Data) -> TeacherPlan:
    """Return where the teacher at a position of --teacher comes from; `data` are its settings."""
    name, files = teacher_names(settings)[place], settings.distillation.teacher_checkpoint
    if not mode.teacher.trained:
        return TeacherPlan(name, seed=another_seed(settings.training.seed, UNTRAINED))
    later = is_chain(settings) and settings.distillation.generations > 1
    if files and not later:  # in a chain, only the first generation is taught by the file
        return TeacherPlan(name, file=files[place])
    plan = resolve(_teacher_settings(settings, mode.teacher, name, data))
    places = [plan.folder]
    if settings.output.tag and not later:  # a run without the tag is as good
        untagged = parsing.replace(plan.settings, tag="")
        places.append(resolve(untagged).folder)
    return TeacherPlan(name, plan=plan, places=tuple(places))


def _teacher_settings(
    settings: DistillSettings, origin: Origin, name: str, data: Data
) -> TeacherSettings | DistillSettings:
    """Return the settings that train a teacher: those of the student, as far as they apply."""
    if is_chain(settings) and settings.distillation.generations > 1:
        return parsing.replace(settings, generations=settings.distillation.generations - 1)
    teacher = Teacher(model=name, stop_at_val_accuracy=origin.stop_at)
    training = settings.training
    wanted = TeacherSettings(teacher, data, settings.network, training, settings.output)
    # A mode with views of its own may have parts that the views of --augment do not have.
    parts = AUGMENTATIONS[training.augment]
    without = [part for part in training.augment_without if part in parts]
    return parsing.replace(wanted, weights=None, augment_without=without)
