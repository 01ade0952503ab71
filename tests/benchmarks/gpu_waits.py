"""Where a training step waits for the GPU: synchronisations, and the time to issue a step."""

import contextlib
import statistics
import time
import traceback
import warnings
from collections import Counter
from dataclasses import replace

import torch
from children import reason_of
from gpu_participants import EpochLoop, TimmTask
from participants import ALPHA, ROOT, TEMPERATURE, Pause, wait

from kd.knowledge import KNOWLEDGE
from kd.loop import LOG_EVERY, Hooks, train_epoch
from kd.teachers.outputs import ObservedJointTeacher, ObservedNetwork
from kd.training import regressors
from kd.training.objectives import Distillation, Knowledge

STUDENT = "resnet18"
MESSAGE = "synchronizing CUDA operation"  # part of torch's warning in sync debug mode
# torch warns of copies to the CPU, .item(), nonzero and the like. It does not warn of copies from
# pageable memory, which may also wait; the time to issue a step would show those.


def waits(report, bench):
    """Count the synchronisations of each kind of loop, and time how long a step takes to issue."""
    device, data = bench.open()
    scale = bench.scale
    where = (data, STUDENT, "bf16", device, scale.small)
    steps = max(scale.most, LOG_EVERY)
    found = {"counted": device.type == "cuda", "steps": {}, "issue, ms": {}}
    loop = EpochLoop(*where, steps)
    loops = {"kd, stored": loop, "kd, live": loop.with_live_teacher()}
    if device.type == "cuda":
        loops["kd, stored, compiled"] = EpochLoop(*where, steps, compile=True)
    for name, one in loops.items():
        _try(found["steps"], name, project_waits, one, scale.warm_up)
        report(found)
    for kind in KNOWLEDGE:
        if kind != "kd":
            _try(found["steps"], f"{kind}, live", kind_waits, kind, loops["kd, live"])
            report(found)
    _try(found["steps"], "timm's task", task_waits, where, LOG_EVERY)
    report(found)
    large = EpochLoop(data, STUDENT, "bf16", device, scale.large, scale.most)
    for name, one in {"small": loop, "large": large}.items():
        entry = found["issue, ms"].setdefault(f"{one.views.batch_size} images", {})
        _try(entry, "kd, stored", issue_time, one, scale.warm_up)
        report(found)


def _try(entries, name, function, *arguments):
    try:
        entries[name] = function(*arguments)
    except Exception as error:
        traceback.print_exc()
        entries[name] = {"failed": reason_of(error)}


@contextlib.contextmanager
def counted(where, device):
    """Count each synchronisation in `where`, a Counter, by the line that caused it."""

    def seen(message, category, filename, lineno, file=None, line=None):
        if MESSAGE in str(message):
            where[_origin(f"{filename}:{lineno}")] += 1

    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = seen
        if device.type == "cuda":
            torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            if device.type == "cuda":
                torch.cuda.set_sync_debug_mode("default")


def _origin(fallback):
    """Return the innermost line of this project on the stack, or else the given one."""
    package = str(ROOT / "kd")
    for frame in reversed(traceback.extract_stack()):
        if frame.filename.startswith(package):
            place = frame.filename.removeprefix(f"{ROOT}/")
            return f"{place}:{frame.lineno} ({frame.name})"
    return fallback


def project_waits(loop, warm_up):
    """Return the synchronisations in the steps between two checks for divergence, and at a check.

    The first step of an epoch is not counted: it reads the stored logits of the epoch.
    """
    loop.block(warm_up)
    where, totals = Counter(), []

    def after_step(_):
        totals.append(sum(where.values()))
        if len(totals) == 1:
            where.clear()
            totals[0] = 0
        if len(totals) == LOG_EVERY:
            raise Pause

    with counted(where, loop.views.device):
        _run(loop, after_step)
    return {
        "between checks": totals[-2],
        "steps between checks": LOG_EVERY - 2,
        "in the step with a check": totals[-1] - totals[-2],
        "where": dict(where),
    }


def _run(loop, after_step):
    """Train from the first step of an epoch, until `after_step` raises Pause."""
    hooks = Hooks()
    hooks.after_step = after_step
    loop.state.progress.step = loop.state.progress.total = 0
    with contextlib.suppress(Pause):
        train_epoch([loop.state], loop.phase, loop.training, hooks)


def kind_waits(kind, loop):
    """Return `project_waits` of another kind of knowledge with the same networks."""
    phase = loop.phase
    try:
        loop.phase = _phase_of(kind, loop)
        _forget_sums(loop.state)
        return project_waits(loop, 1)
    finally:
        loop.phase = phase
        _forget_sums(loop.state)


def _forget_sums(state):
    """Empty the sums of the epoch, because each kind of knowledge has terms of its own."""
    state.sums, state.progress.sums = None, {}


def _phase_of(kind, loop):
    knowledge, trained = KNOWLEDGE[kind], None
    phase = loop.phase
    if knowledge.inside:
        student, teacher = loop.state.network, loop.teacher.network
        depth = min(len(student.stages()), len(teacher.stages()))
        layers = student.stages()[-depth:], teacher.stages()[-depth:]
        observed = ObservedNetwork(teacher, loop.precision, layers[1])
        taught = ObservedJointTeacher([observed], [1.0], loop.views.device)
        phase = replace(phase, teacher=taught, layers=layers[0])
        trained = _regressors(kind, loop, taught, layers[0])
    terms = Knowledge({kind: knowledge.weight}, (TEMPERATURE,), regressors=trained)
    return replace(phase, objective=Distillation(terms, ALPHA))


def _regressors(kind, loop, taught, layers):
    batch = next(loop.views.epoch(0))
    with torch.no_grad():
        own = loop.state.network.outputs(batch.images, layers).features
        others = taught(batch).features[0]
    pairs = [(mine.shape[1], theirs.shape[1]) for mine, theirs in zip(own, others)]
    return regressors.build({kind: KNOWLEDGE[kind]}, pairs, 0).to(loop.views.device)


def task_waits(where, steps):
    """Return the synchronisations of timm's task, which has no checks."""
    task = TimmTask(*where, steps)
    task.block(1)
    lines = Counter()
    with counted(lines, task.device):
        task.block(steps - 1)
    return {"in all steps": sum(lines.values()), "steps": steps, "where": dict(lines)}


def issue_time(loop, warm_up, steps=10):
    """Return the milliseconds until the CPU has issued a step, and until the GPU has finished it.

    The device is idle before each step. If issuing takes as long as the step, the CPU is the
    bottleneck or waits for the GPU.
    """
    loop.block(warm_up)
    device = loop.views.device
    issued, finished, begun = [], [], [None]

    def after_step(_):
        if begun[0] is not None:
            issued.append(1000 * (time.perf_counter() - begun[0]))
            wait(device)
            finished.append(1000 * (time.perf_counter() - begun[0]))
        wait(device)
        if len(issued) == steps:
            raise Pause
        begun[0] = time.perf_counter()

    _run(loop, after_step)
    return {"issued": statistics.median(issued), "finished": statistics.median(finished)}
