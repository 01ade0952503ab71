"""Runs from their plans to their reports. Several runs in one process share data and teachers.

`train` lists the steps of a run from top to bottom.
"""

import contextlib
import gc

import torch
from torch._dynamo.exc import TorchDynamoException

from kd import models
from kd.config.plan import Plan
from kd.config.resolve import resolve_all
from kd.config.settings import DistillSettings, TeacherSettings
from kd.data.views import Batch
from kd.models import Classifier
from kd.reports import report as reports
from kd.runs.active import ActiveRun, precision_words, save
from kd.runs.checks import check_inputs, check_machine, check_settings
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
    BAD_CHECKPOINT,
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
from kd.training.average import Averages, averages_of
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
    runs = [resolve_all(settings) for settings in every]
    for plans in runs:
        for plan in plans:
            check_machine(plan)
    failed = []
    gc.freeze()  # otherwise each collection visits the million objects of the imports
    with StopSignals(every[0].training.max_minutes) as signals:
        session = Session(signals)
        if len(runs) > 1:
            check_all([plan for plans in runs for plan in plans], session)
        else:
            check_settings(runs[0], session)
        for plans in runs:
            try:
                for plan, report in zip(plans, run(plans, session)):
                    log(summary(report, plan.folder))
            except Exception as error:
                if isinstance(error, Stopped) or len(runs) == 1 or ranks.world_size() > 1:
                    raise
                failed.append((plans[0].folder, report_error(error)))
            gc.collect()  # networks may be in reference cycles, and the next run needs their memory
    if failed:
        folders = first_ten([str(folder) for folder, _ in failed])
        raise Problem(
            f"{len(failed)} of {len(runs)} runs failed: {folders}. See the messages above, fix the"
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


def run(plans: list[Plan], session: Session) -> list[dict]:
    """Carry out the plans of the students that a run trains at once; return their reports.

    Usually there is a single student. The reports of a finished run are read. An interrupted run
    continues exactly. A missing teacher is trained first. Raises Problem if the run cannot be
    carried out; its folders then have a record of how the run ended.
    """
    folders = [RunFolder(plan.folder, plan.state_folder) for plan in plans]
    with contextlib.ExitStack() as stack:
        if ranks.is_main_rank():
            for folder in folders:
                stack.enter_context(exclusive_lock(folder.path))
            claim(plans, folders)
        ranks.barrier()
        if ranks.main_rank_says(all(folder.finished for folder in folders)):
            for folder in folders:
                log(f"already finished: {folder.path}")
            return [reports.read(folder.path) for folder in folders]
        for folder in folders:
            stack.enter_context(folder.recording_end())
        for plan in plans:
            check_inputs(plan, session)
        if plans[0].idle:
            log(f"note: {', '.join(plans[0].idle)}: not used by this run")
        return try_to_train(plans, folders, session)


def claim(plans: list[Plan], folders: list[RunFolder]) -> None:
    """Claim the folder of each student, after the settings of all were checked.

    The saved state of a finished run, which a kill just after its report leaves, is removed.
    """
    for plan, folder in zip(plans, folders):
        folder.check_settings(plan)
    for plan, folder in zip(plans, folders):
        folder.claim(plan)
    if all(folder.finished for folder in folders):
        for folder in folders:
            folder.forget()


def try_to_train(plans: list[Plan], folders: list[RunFolder], session: Session) -> list[dict]:
    """Call `train`, and explain errors of torch. What the run stored for others is kept."""
    try:
        return train(plans, folders, session)
    except RuntimeError as error:
        problem = cause(error, plans[0], folders[0])
        if problem is None:
            raise
        raise problem from None
    finally:
        session.teachers.flush()
        if plans[0].settings.training.compile:
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


def train(plans: list[Plan], folders: list[RunFolder], session: Session) -> list[dict]:
    """Train an unfinished run from its first step or its last save. Raises as `run` does.

    Students that are trained at once differ in their networks and folders only: what else is read
    from a plan is the same in all.
    """
    plan, folder = plans[0], folders[0]
    data = RunData(plan, session)
    first = data.first_batch(plan)
    session.signals.check_stop()
    found = find_teachers(plan, session)
    if None in found:
        try_students(plans, data, folder, first)
    members = train_missing(found, plan, folder, session)
    ensemble = join(members, plan, data, session, first)
    session.signals.check_stop()
    students = [build_student(one, data, folder) for one in plans]
    precisions, logits = try_training(plans, folder, students, first)
    saved = folder.load(**data.fixed, precision=precision_words(precisions))
    averages = [average(student, one, ensemble) for one, student in zip(plans, students)]
    builder = PhaseBuilder(plan, data, ensemble)
    builder.look_inside(students[0], first, precisions[0])
    phases = builder.build()
    entry = saved and saved["teacher"]
    if ensemble is not None and entry is None:
        ratio = builder.gradient_ratio(logits[0], phases[0], first)
        remarks = [*plan.remarks, *cautions(plan, len(data.classes)), *builder.remarks]
        check_stop = session.signals.check_stop
        entry = introduce(ensemble, data.dataset, data.valid, data.test, ratio, remarks, check_stop)
    if ensemble is not None:
        ensemble.check_unchanged(entry)
    clock, states = Clock(), []
    for one, student, precision, own in zip(plans, students, precisions, averages):
        training, helper = plan.settings.training, builder.regressors
        states.append(State(student, training, precision, helper, one.dropout_seed, own))
    if saved is not None:
        restore(states, clock, saved)
    del saved  # takes two gigabytes for VGG11
    shared = {"data": data, "ensemble": ensemble, "teacher_entry": entry, "phases": phases}
    shared |= {"clock": clock, "signals": session.signals}
    return fit_and_finish(start(plans, folders, states, shared), first)


def start(
    plans: list[Plan], folders: list[RunFolder], states: list[State], shared: dict
) -> list[ActiveRun]:
    """Return the students of a run, ready for training; `shared` is what they have in common."""
    runs, training = [], plans[0].settings.training
    for plan, folder, state in zip(plans, folders, states):
        state.network.wrap_ddp(training.sync_bn)
        if training.compile:
            state.network.compile()
        events = Events(folder.path, state, ranks.main_rank_says(folder.finished))
        runs.append(ActiveRun(plan=plan, folder=folder, state=state, events=events, **shared))
    return runs


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
            run([wanted.plan], session)
            folder.ending.teacher = None
            teacher = find(wanted, plan, session.open(plan.teacher_data), session.teachers)
        members.append(teacher)
    return members


def join(
    members: list[Teacher], plan: Plan, data: RunData, session: Session, first: Batch
) -> Ensemble | None:
    """Return the ensemble of a student's teachers; None without a teacher or with peers only.

    Raises Problem if a teacher cannot be applied to images of this size.
    """
    if not plan.distils or plan.peers:
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


def average(student: Classifier, plan: Plan, ensemble: Ensemble | None) -> Averages:
    """Return the averages of a student's weights, of which one may become its teacher."""
    averages = averages_of(student, plan.ema, plan.follower)
    if plan.follower is not None:
        ensemble.follower = averages.teacher.network
    return averages


def try_students(plans: list[Plan], data: RunData, folder: RunFolder, first: Batch) -> None:
    """Check that the students can be trained, before hours are spent on their teacher.

    Raises Problem as `try_training` does, and if the run cannot continue from its saved state. The
    networks are freed afterwards, because the teacher needs their memory.
    """
    students = [build_student(plan, data, folder) for plan in plans]
    precisions, _ = try_training(plans, folder, students, first)
    folder.load(**data.fixed, precision=precision_words(precisions))


def try_training(
    plans: list[Plan], folder: RunFolder, students: list[Classifier], first: Batch
) -> tuple[list[Precision], list[torch.Tensor]]:
    """Return each student's precision, and its logits [B, K] for the first batch of the run.

    They are those of the first step, with its dropout. Raises Problem if a student cannot be
    trained on such batches, or if there is too little disk space for their resume files.

    folder  with the resume files
    """
    training = plans[0].settings.training
    size = sum(models.parameters(student.module) for student in students)
    folder.check_space(size, plans[0].averages)
    precisions, logits = [], []
    for plan, student in zip(plans, students):
        seed_step(first.images.device, plan.dropout_seed, 0, 0)
        precision = training_precision(training.amp, student, first.images)
        precisions.append(precision)
        logits.append(models.try_batch(student, first.images, precision).logits)
    return precisions, logits


def restore(states: list[State], clock: Clock, saved: dict) -> None:
    """Restore the states and the clock from a resume file, and print where the run continues.

    Raises Problem (4) if a saved state does not fit the run.
    """
    every = [saved["state"], *saved["others"]]
    steps = {one["progress"]["total"] for one in every}
    if len(every) != len(states) or len(steps) > 1:
        raise Problem(
            f"The resume file has the states of {len(every)} students at the steps {sorted(steps)},"
            f" but {len(states)} students at one step are needed. Start a new run with --tag NAME.",
            BAD_CHECKPOINT,
        )
    for state, own in zip(states, every):
        state.load_state_dict(own)
    clock.restore(saved["clock"])
    progress = states[0].progress
    log(f"continuing from step {progress.total} (epoch {progress.epoch + 1})")


def log_start(runs: list[ActiveRun]) -> None:
    """Print the networks to train, the device, the precisions and the phases."""
    for run in runs:
        name, network = run.plan.student, run.state.network
        for text in network.notes:
            log(f"note: Student {name}: {text}.")
        log(
            f"training {name} ({models.parameters(network.module):,} parameters) on"
            f" {run.data.device.type}, {run.state.precision.words}{run.describe_ranks()}"
        )
    for phase in runs[0].phases:
        log(phase.describe())


def fit_and_finish(runs: list[ActiveRun], first: Batch) -> list[dict]:
    """Train to the last step, write all results and return the reports.

    If a stop or a full disk ends this early, the state is saved for resuming first. Raises Stopped
    or Problem.
    """
    of_first = runs[0]
    try:
        log_start(runs)
        if of_first.plan.settings.output.log_images and not of_first.state.progress.total:
            for run in runs:
                run.events.views(first.images)
        fit(runs)
        judge_defective(of_first)
        if len(runs) > 1:  # a kill between two reports must not need another training
            save(runs)
        found = finish(runs)
    except Stopped:
        save(runs)
        ranks.barrier()  # torchrun ends all ranks as soon as one has ended
        step, where = of_first.state.progress.total, of_first.folder.path
        raise of_first.signals.as_stopped(
            f" at step {step}. The state was saved in '{where}'"
        ) from None
    except Problem as problem:
        if problem.code == CANNOT_WRITE:
            # A result may not fit on the disk, but the state may: it can be smaller.
            with contextlib.suppress(Problem):
                save(runs)
        raise
    finally:
        for run in runs:
            run.folder.ending.step = run.state.progress.total
            run.events.close()
    if ranks.is_main_rank():
        for run in runs:
            run.folder.forget()
    ranks.barrier()
    return found
