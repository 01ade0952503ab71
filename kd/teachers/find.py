"""Finding a run's teachers: in a file, in the folder of a finished run, or drawn from a seed."""

from dataclasses import replace
from pathlib import Path

from kd import models
from kd.config.changes import PLACES, changed
from kd.config.layout import RunPaths
from kd.config.plan import Plan, TeacherPlan
from kd.data.dataset import Dataset
from kd.system import ranks
from kd.system.errors import BAD_CHECKPOINT, Problem
from kd.system.files import read_json
from kd.teachers import leakage
from kd.teachers.cache import TeacherCache
from kd.teachers.ensemble import Teacher
from kd.teachers.model_file import Trained, state_hash


def find(wanted: TeacherPlan, plan: Plan, dataset: Dataset, cache: TeacherCache) -> Teacher | None:
    """Return a teacher of a student's plan, or None if it has yet to be trained.

    `dataset` is the data set with the teachers' labels and image size. Raises Problem if the
    teacher that is found does not fit it.
    """
    if wanted.seed is not None:
        found = untrained(wanted.name, wanted.seed, dataset.index.classes)
    elif wanted.file is not None:
        found = _from_file(wanted, plan, dataset, cache)
    else:
        found = _from_run(wanted, plan, dataset, cache)
    if found is None:
        return None
    return replace(
        found, differences=[*_own_data(found.trained, plan, dataset), *found.differences]
    )


def _own_data(trained: Trained, plan: Plan, dataset: Dataset) -> list[str]:
    """Return how the data settings of a teacher differ from those of its student, as texts.

    What labels a teacher has seen is known if it was trained on the split of `dataset`.
    """
    own, student = plan.teacher_data, plan.settings.data
    found = []
    known = trained.about is not None and not leakage.foreign(trained, dataset)
    if known and own.labeled_fraction != student.labeled_fraction:
        found.append(
            f"trained on the labels of {100 * own.labeled_fraction:g} % of the train split, the"
            f" student on those of {100 * student.labeled_fraction:g} %"
        )
    if own.image_size != student.image_size:
        found.append(
            f"it sees images of {own.image_size} pixels, the student of {student.image_size}"
        )
    return found


def has_begun(wanted: TeacherPlan) -> bool:
    """Return whether a teacher exists or its training has begun.

    If so, its network needs no initial weights.
    """
    if wanted.plan is None:
        return True
    places = [RunPaths(path) for path in wanted.places]
    return any(ranks.main_rank_says(run.finished or run.begun) for run in places)


def untrained(name: str, seed: int, classes: tuple[str, ...]) -> Teacher:
    """Return a randomly initialised network as a teacher."""
    network = models.build(name, classes, seed=seed)
    trained = Trained(network, None, state_hash(network.module.state_dict()))
    return Teacher(name, trained, "never trained", [])


def _from_file(wanted: TeacherPlan, plan: Plan, dataset: Dataset, cache: TeacherCache) -> Teacher:
    found = cache.load_weights(Path(wanted.file), wanted.name, dataset.index.classes)
    differences = [*found.network.notes, *leakage.differences(found, dataset)]
    leakage.refuse_overlap(found, dataset)
    foreign = leakage.foreign(found, dataset)
    if foreign and not plan.settings.distillation.allow_foreign_teacher:
        raise Problem(
            f"--teacher-checkpoint '{wanted.file}' was trained on other data"
            f" ({'; '.join(foreign)}). Use --allow-foreign-teacher if this is intended.",
            BAD_CHECKPOINT,
        )
    return Teacher(wanted.name, found, Path(wanted.file).name, differences)


def _from_run(
    wanted: TeacherPlan, plan: Plan, dataset: Dataset, cache: TeacherCache
) -> Teacher | None:
    """Return the teacher from the first of its places with a finished run on exactly this data.

    Return None if there is no such run. Raises Problem if the first place has a run on other data.
    """
    for path in wanted.places:
        run = RunPaths(path)
        if not ranks.main_rank_says(run.finished):
            continue
        run.forget()  # files that are left if a run is killed just after its report is written
        found = cache.load(run.model)
        unlike = leakage.differences(found, dataset)
        if not unlike:
            recipe = changed(read_json(run.settings), wanted.plan, ("tag", *PLACES))
            source = path.relative_to(Path(plan.settings.output.out))
            differences = [f"trained with other settings ({text})" for text in recipe]
            return Teacher(wanted.name, found, str(source), differences)
        if path == wanted.places[0]:
            raise Problem(
                f"Teacher in '{path}' was trained on other data ({'; '.join(unlike)}). Use another"
                " --tag to train a new teacher, or restore the data."
            )
    return None
