"""Runs from their plans to their reports. Several runs in one process share data and teachers.

`train` lists the steps of a run from top to bottom.
"""

import contextlib
import gc

import torch
from torch._dynamo.exc import TorchDynamoException

from kd import models
from kd.config.plan import Plan
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings, TeacherSettings
from kd.data.views import Batch
from kd.models import Classifier
from kd.reports import report as reports
from kd.runs.active import ActiveRun
from kd.runs.checks import check_inputs, check_machine
from kd.runs.clock import Clock
from kd.runs.data import RunData
from kd.runs.defective import judge_defective
from kd.runs.finish import finish
from kd.runs.folder import RunFolder
from kd.runs.hooks import fit
from kd.runs.phases import PhaseBuilder, cautions
from kd.runs.session import Session
from kd.runs.summary import summary
from kd.runs.tensorboard import Events
from kd.system import ranks
from kd.system.console import log
from kd.system.devices import Precision
from kd.system.errors import (
    CANNOT_WRITE,
    Problem,
    Stopped,
    first_ten,
    is_out_of_memory,
    report_error,
)
from kd.system.locks import exclusive_lock
from kd.system.messages import first_line
from kd.system.seeds import seed_step
from kd.system.signals import StopSignals
from kd.teachers.ensemble import Ensemble, Teacher
from kd.teachers.find import find
from kd.teachers.introduction import introduce
from kd.teachers.leakage import refuse_leaking_labels
from kd.training.precision import training_precision
from kd.training.state import State


def run_ranks(every: list[TeacherSettings] | list[DistillSettings]) -> None:
    """Call `run_all` in this process, or together with the other processes of torchrun."""
    with ranks.process_group():
        run_all(every)


def run_all(every: list[TeacherSettings] | list[DistillSettings]) -> None:
    """Carry out all runs one after the other, and print the results of each.

    The runs may differ in everything except their data settings. Contradictory settings in any of
    them raise Problem before the first run starts. A run that fails does not stop the others:
    Problem, with the exit code of the first failure, is raised after the last run. On several ranks
    the first failure ends all.
    """
    plans = [resolve(settings) for settings in every]
    for plan in plans:
        check_machine(plan)
    failed = []
    gc.freeze()  # otherwise each collection visits the million objects of the imports
    with StopSignals(every[0].training.max_minutes) as signals:
        session = Session(signals)
        if len(plans) > 1:
            check_all(plans, session)
        for plan in plans:
            try:
                log(summary(run(plan, session), plan.folder))
            except Exception as error:
                if isinstance(error, Stopped) or len(plans) == 1 or ranks.world_size() > 1:
                    raise
                failed.append((plan.folder, report_error(error)))
            gc.collect()  # networks may be in reference cycles, and the next run needs their memory
    if failed:
        folders = first_ten([str(folder) for folder, _ in failed])
        raise Problem(
            f"{len(failed)} of {len(plans)} runs failed: {folders}. See the messages above, fix the"
            " causes and run the same command again.",
            failed[0][1],
        )


def check_all(plans: list[Plan], session: Session) -> None:
    """Warn about the runs of a list that will fail, and open the data that all runs share.

    Raises Problem if all runs will fail.
    """
    unfinished = [
        plan for plan in plans if not ranks.main_rank_says(RunFolder(plan.folder).finished)
    ]
    if not unfinished:
        return
    problems = []
    for plan in unfinished:
        try:
            check_inputs(plan, session)
        except Problem as problem:
            problems.append(problem)
    if len(problems) == len(unfinished):
        raise problems[0]
    for problem in problems:
        log(f"warning: {problem} The other runs of the list continue.")
    session.open(unfinished[0].settings.data)
    session.open_pool(unfinished[0])


def run(plan: Plan, session: Session) -> dict:
    """Carry out a plan and return the report of the run.

    The report of a finished run is read. An interrupted run continues exactly. A missing teacher is
    trained first. Raises Problem if the run cannot be carried out; its folder then has a record of
    how the run ended.
    """
    folder = RunFolder(plan.folder)
    with exclusive_lock(folder.path) if ranks.is_main_rank() else contextlib.nullcontext():
        if ranks.is_main_rank():
            folder.claim(plan)
        ranks.barrier()
        if ranks.main_rank_says(folder.finished):
            log(f"already finished: {folder.path}")
            return reports.read(folder.path)
        with folder.recording_end():
            check_inputs(plan, session)
            if plan.idle:
                log(f"note: {', '.join(plan.idle)}: not used by this run")
            return try_to_train(plan, folder, session)


def try_to_train(plan: Plan, folder: RunFolder, session: Session) -> dict:
    """Call `train`, and explain errors of torch. What the run stored for others is kept."""
    try:
        return train(plan, folder, session)
    except RuntimeError as error:
        problem = cause(error, plan, folder)
        if problem is None:
            raise
        raise problem from None
    finally:
        session.teachers.flush()
        if plan.settings.training.compile:
            # All networks of a family share a limit of eight compiled graphs, and the next run
            # needs its own.
            torch.compiler.reset()


def cause(error: RuntimeError, plan: Plan, folder: RunFolder) -> Problem | None:
    """Return the problem behind an error of torch; None if a bug of this program may be behind it.

    It is a lack of memory, or a failure of --compile.
    """
    why = first_line(error, 120)
    if is_out_of_memory(error):
        return Problem(
            f"Run '{folder.path}' ran out of memory ({why}). Lower --batch-size or --image-size."
        )
    if plan.settings.training.compile and isinstance(error, TorchDynamoException):
        return Problem(
            f"--compile failed for run '{folder.path}' ({why}). It needs a C compiler and the"
            " headers of Python. Install them, or use --tag NAME without --compile."
        )
    return None


def train(plan: Plan, folder: RunFolder, session: Session) -> dict:
    """Train an unfinished run from its first step or its last save. Raises as `run` does."""
    data = RunData(plan, session)
    first = data.first_batch(plan)
    session.signals.check_stop()
    found = find_teachers(plan, session)
    if None in found:
        try_student(plan, data, folder, first)
    members = train_missing(found, plan, folder, session)
    ensemble = join(members, plan, data, session, first)
    session.signals.check_stop()
    student = build_student(plan, data, folder)
    precision, logits = try_training(plan, folder, student, first)
    saved = folder.load(**data.fixed, precision=precision.words)
    builder = PhaseBuilder(plan, data, ensemble)
    builder.look_inside(student, first, precision)
    phases = builder.build()
    entry = saved and saved["teacher"]
    if ensemble is not None and entry is None:
        ratio = builder.gradient_ratio(logits, phases[0], first)
        remarks = [*plan.remarks, *cautions(plan, len(data.classes)), *builder.remarks]
        check_stop = session.signals.check_stop
        entry = introduce(ensemble, data.dataset, data.valid, data.test, ratio, remarks, check_stop)
    if ensemble is not None:
        ensemble.check_unchanged(entry)
    clock = Clock()
    state = State(student, plan.settings.training, precision, builder.regressors)
    if saved is not None:
        restore(state, clock, saved)
    del saved  # takes two gigabytes for VGG11
    student.wrap_ddp(plan.settings.training.sync_bn)
    if plan.settings.training.compile:
        student.compile()
    events = Events(folder.path, state)
    active = ActiveRun(
        plan=plan,
        folder=folder,
        data=data,
        ensemble=ensemble,
        teacher_entry=entry,
        phases=phases,
        state=state,
        precision=precision,
        clock=clock,
        events=events,
        signals=session.signals,
    )
    return fit_and_finish(active, first)


def find_teachers(plan: Plan, session: Session) -> list[Teacher | None]:
    """Return the teachers of a plan, with None for each one that is not trained yet."""
    if not plan.teachers:
        return []
    dataset, cache = session.open(plan.teacher_data), session.teachers
    refuse_leaking_labels(dataset, session.open(plan.settings.data))
    return [find(wanted, plan, dataset, cache) for wanted in plan.teachers]


def train_missing(
    found: list[Teacher | None], plan: Plan, folder: RunFolder, session: Session
) -> list[Teacher]:
    """Return the teachers of a plan, after training those that are None in `found`."""
    members = []
    for teacher, wanted in zip(found, plan.teachers, strict=True):
        if teacher is None:
            log(f"no teacher in {wanted.places[0]}: training it first")
            folder.ending.teacher = wanted.plan.folder
            run(wanted.plan, session)
            folder.ending.teacher = None
            teacher = find(wanted, plan, session.open(plan.teacher_data), session.teachers)
        members.append(teacher)
    return members


def join(
    members: list[Teacher], plan: Plan, data: RunData, session: Session, first: Batch
) -> Ensemble | None:
    """Return the ensemble of a student's teachers; None for a run without a teacher.

    Raises Problem if a teacher cannot be applied to images of this size.
    """
    if not plan.distils:
        return None
    session.teachers.keep([member.trained for member in members])
    stores = data.teachers_stores
    ensemble = Ensemble(plan, members, len(data.classes), data.device, session.teachers, stores)
    ensemble.try_images(ensemble.own_images(data.views(plan.phases[0]))(first).images)
    return ensemble


def build_student(plan: Plan, data: RunData, folder: RunFolder) -> Classifier:
    """Return the network to train, on the device of the run.

    A new run starts from the weights that its settings specify. A run that continues gets its saved
    weights later, so these are not read again.
    """
    network, fresh = plan.settings.network, not ranks.main_rank_says(folder.begun)
    student = models.build(
        plan.student,
        data.classes,
        pretrained=network.pretrained and fresh,
        weights=network.weights if fresh else None,
        drop_rate=network.drop_rate,
        seed=plan.weights_seed,
    )
    return student.to(data.device)


def try_student(plan: Plan, data: RunData, folder: RunFolder, first: Batch) -> None:
    """Check that the student can be trained, before hours are spent on its teacher.

    Raises Problem as `try_training` does, and if the run cannot continue from its saved state. The
    network is freed afterwards, because the teacher needs its memory.
    """
    student = build_student(plan, data, folder)
    precision, _ = try_training(plan, folder, student, first)
    folder.load(**data.fixed, precision=precision.words)


def try_training(
    plan: Plan, folder: RunFolder, student: Classifier, first: Batch
) -> tuple[Precision, torch.Tensor]:
    """Return the student's precision, and its logits [B, K] for the first batch of the run.

    They are those of the first step, with its dropout. Raises Problem if the student cannot be
    trained on such batches, or if there is too little disk space for its resume files.
    """
    training = plan.settings.training
    folder.check_space(models.parameters(student.module), averaged=training.ema is not None)
    seed_step(first.images.device, training.seed, 0, 0)
    precision = training_precision(training.amp, student, first.images)
    return precision, models.try_batch(student, first.images, precision).logits


def restore(state: State, clock: Clock, saved: dict) -> None:
    """Restore the state and the clock from a resume file, and print where the run continues.

    Raises Problem (4) if the saved state does not fit the run.
    """
    state.load_state_dict(saved["state"])
    clock.restore(saved["clock"])
    progress = state.progress
    log(f"continuing from step {progress.total} (epoch {progress.epoch + 1})")


def log_start(active: ActiveRun) -> None:
    """Print the network to train, the device, the precision and the phases."""
    for text in active.state.network.notes:
        log(f"note: Student {active.plan.student}: {text}.")
    size = models.parameters(active.state.network.module)
    log(
        f"training {active.plan.student} ({size:,} parameters) on {active.data.device.type},"
        f" {active.precision.words}{active.describe_ranks()}"
    )
    for phase in active.phases:
        log(phase.describe())


def fit_and_finish(active: ActiveRun, first: Batch) -> dict:
    """Train to the last step, write all results and return the report.

    If a stop or a full disk ends this early, the state is saved for resuming first. Raises Stopped
    or Problem.
    """
    try:
        log_start(active)
        if active.plan.settings.output.log_images and not active.state.progress.total:
            active.events.views(first.images)
        fit(active)
        judge_defective(active)
        report = finish(active)
    except Stopped:
        active.save()
        ranks.barrier()  # torchrun ends all ranks as soon as one has ended
        where = (
            f" at step {active.state.progress.total}. The state was saved in '{active.folder.path}'"
        )
        raise active.signals.as_stopped(where) from None
    except Problem as problem:
        if problem.code == CANNOT_WRITE:
            # A result may not fit on the disk, but the state may: it can be smaller.
            with contextlib.suppress(Problem):
                active.save()
        raise
    finally:
        active.folder.ending.step = active.state.progress.total
        active.events.close()
    if ranks.is_main_rank():
        active.folder.forget()
    ranks.barrier()
    return report
