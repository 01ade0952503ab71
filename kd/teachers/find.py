"""Where a run's teachers come from: a file, the folder of a finished run, or a seed."""

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
    """A teacher of a student's plan; None where its run has yet to be trained.

    Raises Problem where what is found does not fit the data.
    """
    if wanted.seed is not None:
        return untrained(wanted.name, wanted.seed, dataset.index.classes)
    if wanted.file is not None:
        return _from_file(wanted, plan, dataset, cache)
    return _from_run(wanted, plan, dataset, cache)


def has_begun(wanted: TeacherPlan) -> bool:
    """Whether a teacher is there, or its training has begun: its network needs no fresh weights."""
    if wanted.plan is None:
        return True
    places = [RunPaths(path) for path in wanted.places]
    return any(ranks.main_rank_says(run.finished or run.begun) for run in places)


def untrained(name: str, seed: int, classes: tuple[str, ...]) -> Teacher:
    """A network as it is drawn, from no weights."""
    network = models.build(name, classes, seed=seed)
    trained = Trained(network, None, state_hash(network.module.state_dict()))
    return Teacher(name, trained, "never trained", [])


def _from_file(wanted: TeacherPlan, plan: Plan, dataset: Dataset, cache: TeacherCache) -> Teacher:
    found = cache.load_weights(Path(wanted.file), wanted.name, dataset.index.classes)
    differences = leakage.differences(found, dataset)
    leakage.refuse_overlap(found, dataset)
    foreign = leakage.foreign(found, dataset)
    if foreign and not plan.settings.distillation.allow_foreign_teacher:
        raise Problem(
            f"teacher '{wanted.file}' in --teacher-checkpoint: was trained on other data"
            f" ({'; '.join(foreign)}); give --allow-foreign-teacher if that is meant",
            BAD_CHECKPOINT,
        )
    return Teacher(wanted.name, found, Path(wanted.file).name, differences)


def _from_run(
    wanted: TeacherPlan, plan: Plan, dataset: Dataset, cache: TeacherCache
) -> Teacher | None:
    """The teacher that a finished run left in one of its places, trained on these very data."""
    for path in wanted.places:
        run = RunPaths(path)
        if not ranks.main_rank_says(run.finished):
            continue
        run.forget()  # what a kill between the report and this left
        found = cache.load(run.model)
        unlike = leakage.differences(found, dataset)
        if not unlike:
            recipe = changed(read_json(run.settings), wanted.plan, ("tag", *PLACES))
            source = path.relative_to(Path(plan.settings.output.out))
            differences = [f"teacher's {text}" for text in recipe]
            return Teacher(wanted.name, found, str(source), differences)
        if path == wanted.places[0]:
            raise Problem(
                f"teacher in '{path}': was trained on other data ({'; '.join(unlike)}); give"
                " another --tag to train one beside it, or restore the data"
            )
    return None
