"""What the settings of a run ask for: its networks, phases and kinds of knowledge; what cannot be,
and what is not used.
"""

import numpy as np

from kd import losses
from kd.config import parsing
from kd.config.settings import DistillSettings, TeacherSettings
from kd.methods import ALONE, KNOWLEDGE, STRATEGIES, Origin, Stage
from kd.system.errors import Problem

GENERATION_WORD = "-generation"
MANY_ENOUGH = 16  # images a step, for a correlation over them


def student_of(settings) -> str:
    """The network that a run trains."""
    return (
        settings.teacher.model
        if isinstance(settings, TeacherSettings)
        else settings.distillation.student
    )


def origin_of(settings: DistillSettings) -> Origin:
    """How a student's teacher comes to be."""
    return STRATEGIES[settings.distillation.mode].teacher


def teachers_of(settings: DistillSettings) -> list[str]:
    """The networks that teach a student; none where a label distribution does."""
    names = {
        "teacher": settings.distillation.teacher.split("+"),
        "student": [settings.distillation.student],
        "none": [],
    }
    return names[origin_of(settings).network]


def teacher_of(settings: DistillSettings) -> str:
    """What a student's teachers are called together:

    `a+b`, `none`, or of a born-again chain the generation before.
    """
    before = settings.distillation.generations - 1 if born_again(settings) else 0
    return ("+".join(teachers_of(settings)) or "none") + (
        f"{GENERATION_WORD}{before}" if before else ""
    )


def born_again(settings) -> bool:
    """Whether a run is of a chain of --generations, each of which the one before has taught."""
    return (
        isinstance(settings, DistillSettings)
        and origin_of(settings).network == "student"
        and origin_of(settings).trained
    )


def drawn_by(settings) -> int:
    """The seed of a run's fresh weights: --seed, and another for each generation, not to begin
    where its teacher did.
    """
    if born_again(settings):
        return another_seed(settings.training.seed, settings.distillation.generations)
    return settings.training.seed


def another_seed(seed: int, number: int) -> int:
    """A seed far from `seed`, another for each number.

    Of 32 bits: more are not seen by torch's generator on a CPU.
    """
    return int(np.random.SeedSequence([seed, number]).generate_state(1)[0])


def stages_of(settings) -> tuple[Stage, ...]:
    """The phases of a run, as its mode has them."""
    return (
        STRATEGIES[settings.distillation.mode].stages
        if isinstance(settings, DistillSettings)
        else ALONE
    )


def shows_pool(settings) -> bool:
    """Whether a run sees pictures without labels."""
    return any(stage.images == "pool" for stage in stages_of(settings))


def loss_of(settings, stage: Stage) -> str:
    """Which loss a stage learns by: `labels`, `distil` or `match`."""
    return (
        {"ce": "labels", "kd": "distil"}[settings.unlabeled.finetune]
        if stage.loss == "finetune"
        else stage.loss
    )


def kinds_of(settings: DistillSettings, stage: Stage) -> tuple[str, ...]:
    """The kinds of knowledge that a stage passes on."""
    if loss_of(settings, stage) == "labels":
        return ()
    return tuple(stage.knowledge.split("+")) if stage.knowledge else chosen_kinds(settings)


def chosen_kinds(settings: DistillSettings) -> tuple[str, ...]:
    """The kinds of --knowledge, else the mode's own."""
    return tuple(
        (settings.transfer.knowledge or STRATEGIES[settings.distillation.mode].knowledge).split("+")
    )


def all_kinds(settings) -> set[str]:
    """The kinds of knowledge that a run passes on in any of its stages."""
    return {kind for stage in stages_of(settings) for kind in kinds_of(settings, stage)}


def inside_of(kinds) -> list[str]:
    """Those kinds that lie in feature maps."""
    return sorted(kind for kind in kinds if KNOWLEDGE[kind].location == "stages")


def refuse_misfits(settings: DistillSettings) -> None:
    """Raise Problem, before any data are read, for knowledge that a mode cannot pass on, and for
    lists of other lengths.
    """
    mode, origin, kinds = settings.distillation.mode, origin_of(settings), all_kinds(settings)
    chosen = chosen_kinds(settings)
    where = f"in --knowledge: --mode {mode}"
    if len(set(chosen)) < len(chosen):
        raise Problem(
            f"knowledge '{'+'.join(chosen)}' in --knowledge: names a kind twice; give it once, with"
            " a weight in --knowledge-weights"
        )
    if origin.network == "none" and inside_of(kinds):
        raise Problem(
            f"knowledge '{inside_of(kinds)[0]}' {where} has no network to look into; give one of "
            f"{', '.join(name for name, kind in KNOWLEDGE.items() if kind.location == 'output')}"
        )
    if origin.distribution == "uniform" and kinds - {"kd"}:
        raise Problem(
            f"knowledge '{sorted(kinds - {'kd'})[0]}' {where} is label smoothing, which is kd of a"
            " uniform teacher; leave --knowledge out"
        )
    for stage in stages_of(settings):
        loss = loss_of(settings, stage)
        lacking = [
            kind for kind in kinds_of(settings, stage) if KNOWLEDGE[kind].labels and loss == "match"
        ]
        if lacking:
            raise Problem(
                f"knowledge '{lacking[0]}' {where} reads no labels, which it needs; give another"
                " kind"
            )
        if (
            stage.images == "pool"
            and loss != "match"
            or loss == "match"
            and origin.network == "none"
        ):
            raise Problem(
                f"phase '{stage.name}' of --mode {mode}: '{loss}' on '{stage.images}', teacher"
                f" '{origin.words}', needs labels where none are read; let it match a network's"
                " knowledge"
            )
    lengths = [
        (
            "teacher_weights",
            settings.distillation.teacher_weights,
            "--teacher names",
            len(teachers_of(settings)),
        ),
        (
            "teacher_checkpoint",
            settings.distillation.teacher_checkpoint,
            "--teacher names",
            len(teachers_of(settings)),
        ),
        (
            "knowledge_weights",
            settings.transfer.knowledge_weights,
            "--knowledge names",
            len(chosen),
        ),
    ]
    for key, given, what, expected in lengths:
        if given and len(given) != expected and key not in unused(settings):
            raise Problem(
                f"{key} of {len(given)} in --{key.replace('_', '-')}: {what} {expected}; give one"
                " for each, or none"
            )
    if settings.training.compile and inside_of(kinds):
        raise Problem(
            "compile in --compile: a compiled network does not show its feature maps, which"
            f" '{inside_of(kinds)[0]}' needs; leave one of both out"
        )


def refuse_few_classes(settings, classes: int) -> None:
    """Raise Problem where there are too few classes for a kind of knowledge to say anything."""
    for kind in sorted(all_kinds(settings)):
        if classes < KNOWLEDGE[kind].least_classes:
            raise Problem(
                f"knowledge '{kind}' in --knowledge: needs {KNOWLEDGE[kind].least_classes} classes,"
                f" the data have {classes}: of a single other class there is nothing to tell; give"
                " --knowledge kd"
            )


def cautions(settings: DistillSettings, classes: int) -> list[str]:
    """What a user should know of this knowledge with so many classes and images a step."""
    kinds, batch, found = all_kinds(settings), settings.training.batch_size, []
    if "dist" in kinds and classes == 2:
        found.append(
            "dist: with 2 classes a correlation of classes is 1 or -1 and teaches nothing; that of"
            " images is left"
        )
    if "dist" in kinds and batch < MANY_ENOUGH:
        found.append(
            f"dist: correlates {batch} images a step; that is little (--batch-size {MANY_ENOUGH} or"
            " more)"
        )
    if "similarity" in kinds and batch < MANY_ENOUGH:
        found.append(
            f"similarity: compares {batch} images a step; that is little (--batch-size"
            f" {MANY_ENOUGH} or more)"
        )
    if inside_of(kinds) and settings.distillation.stored_logits:
        found.append(
            f"{', '.join(inside_of(kinds))}: the teacher runs in every step; only its logits can be"
            " stored"
        )
    if "standardized" in kinds:
        most = ", ".join(
            f"{losses.standardized_cap(classes, t):.3f} at T = {t:g}"
            for t in temperatures_of(settings)
        )
        found.append(
            f"standardized: with {classes} classes no logit exceeds {(classes - 1) ** 0.5:.2f}, so"
            f" that the teacher gives a class {most} at the most"
            f" ({losses.standardized_cap(classes, 1.0):.3f} at T = 1)"
        )
    return found


def unused(settings) -> frozenset[str]:
    """The settings that a run does not look at, whatever their values: of another mode, or of what
    it has not.
    """
    given, losses_of = parsing.flat(settings), {stage.loss for stage in stages_of(settings)}
    tunes, pooled, kinds = "finetune" in losses_of, shows_pool(settings), all_kinds(settings)
    others = pooled and given["unlabeled_dir"] is not None
    looked_at = {
        "alpha": "distil" in {loss_of(settings, stage) for stage in stages_of(settings)},
        "temperature": any(KNOWLEDGE[kind].softens for kind in kinds),
        "dkd_beta": "dkd" in kinds,
        "layers": bool(inside_of(kinds)),
        "finetune": tunes,
        "finetune_lr": tunes,
        "match_share": len(stages_of(settings)) > 1,
        "unlabeled_dir": pooled,
        "unlabeled_dataset": others,
        "strict": others,
        "look_every": given.get("stop_at_val_accuracy") is not None,
        "labeled_seed": given["labeled_fraction"] < 1 or given["balance"] == "draw",
    }
    if isinstance(settings, DistillSettings):
        origin = origin_of(settings)
        looked_at["temperature"] &= STRATEGIES[given["mode"]].fixed_t is None
        files = origin.trained and origin.network != "none"
        chosen = any(
            kinds_of(settings, stage) and not stage.knowledge for stage in stages_of(settings)
        )
        looked_at |= {
            "teacher": origin.network == "teacher",
            "generations": born_again(settings),
            "knowledge": chosen,
            "knowledge_weights": chosen,
            "correct_probability": origin.distribution == "virtual",
            "teacher_weights": len(teachers_of(settings)) > 1,
            "teacher_checkpoint": files,
            "allow_foreign_teacher": files,
        }
    return frozenset(key for key, looked in looked_at.items() if key in given and not looked)


def temperatures_of(settings: DistillSettings) -> list[float]:
    """At which T both networks are softened: --temperature, or where the mode is defined at one."""
    fixed = STRATEGIES[settings.distillation.mode].fixed_t
    return settings.distillation.temperature if fixed is None else [fixed]


def idle(settings) -> list[str]:
    """The flags among `unused` that were given another value than their default."""
    given, default = parsing.flat(settings), parsing.flat(type(settings)())
    return [
        "--" + key.replace("_", "-")
        for key in sorted(unused(settings))
        if given[key] != default[key]
    ]
