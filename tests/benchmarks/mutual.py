"""Measure a step of students that are trained at once, beside a step of each alone and of distillation.

    python tests/benchmarks/mutual.py [--sizes 32 64] [--turns N]

A resnet18 and a mobilenetv3_small_100 learn from synthetic images in batches of 32: each alone, the second from the first
as its teacher (which runs in every step), and both from each other. The cases take turns in one process. Times are of the
processor, so that other processes disturb them less; use OMP_NUM_THREADS=1. The memory of a case is what its own process
takes on top of the imports and the images at its peak.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import kd  # noqa: E402, F401  (must come first: it configures the allocator)

# isort: split
import torch  # noqa: E402

from kd import models  # noqa: E402
from kd.config.settings import Training  # noqa: E402
from kd.data.augmentation import Augmentation  # noqa: E402
from kd.data.readers import synthetic  # noqa: E402
from kd.data.store import Store  # noqa: E402
from kd.data.views import Views  # noqa: E402
from kd.loop import Hooks, Phase, train_epoch  # noqa: E402
from kd.system.devices import pick_precision  # noqa: E402
from kd.teachers.outputs import JointTeacher, LiveNetwork, by_peers, by_teacher, no_teacher  # noqa: E402
from kd.training.objectives import Distillation, Knowledge, Supervised  # noqa: E402
from kd.training.precision import training_precision  # noqa: E402
from kd.training.state import State  # noqa: E402

CPU, BATCH, STEPS = torch.device("cpu"), 32, 8
LARGE, SMALL = "resnet18", "mobilenetv3_small_100"
CASES = {LARGE: [LARGE], SMALL: [SMALL], "distillation": [SMALL], "mutual": [LARGE, SMALL]}


class Pause(Exception):
    """Ends a block of steps."""


class Case:
    """The students of a case, with their phase."""

    def __init__(self, name, store):
        index = store.index
        self.training = Training(batch_size=BATCH, epochs=10**6)
        self.views = Views(store, np.arange(len(index.labels)), index.labels, batch_size=BATCH, device=CPU, shuffle=True,
                           augmentation=Augmentation("light"))
        self.states = [self._state(student) for student in CASES[name]]
        teacher, objective = no_teacher, Supervised()
        if name == "distillation":
            network = models.build(LARGE, synthetic.CLASSES, seed=1).to(CPU)
            teacher = JointTeacher([LiveNetwork(network, pick_precision("auto", CPU))], [1.0], CPU)
        if name in ("distillation", "mutual"):
            objective = Distillation(Knowledge({"kd": 1.0}, (1.0,)), 0.5)
        targets = by_peers if name == "mutual" else by_teacher
        self.phase = Phase(name, self.views, teacher, objective, 0, 10**9, 1e-4, targets=targets)

    def _state(self, name):
        network = models.build(name, synthetic.CLASSES).to(CPU)
        precision = training_precision("auto", network, next(self.views.epoch(0)).images)
        return State(network, self.training, precision)

    def block(self):
        """Return the median time of a step in ms. The first step is not counted."""
        marks = []

        def after_step(states):
            marks.append(time.process_time())
            if len(marks) > STEPS:
                raise Pause

        hooks = Hooks()
        hooks.after_step = after_step
        while True:
            try:
                train_epoch(self.states, self.phase, self.training, hooks)
            except Pause:
                return statistics.median(1000 * (after - before) for before, after in zip(marks, marks[1:]))
            for state in self.states:
                state.progress.epoch, state.progress.step = state.progress.epoch + 1, 0


def images(size):
    store = Store(synthetic.read(16 * BATCH, 0), "cache", size, "squash", 0)
    store.ensure(np.arange(16 * BATCH))
    return store


def peak():
    """Return the MB that this process has taken at most; `getrusage` begins with those of its parent."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) / 1000


def memory(name, size):
    """Return the MB that a case takes in a process of its own."""
    words = [sys.executable, str(Path(__file__).resolve()), "--one", name, "--sizes", str(size)]
    return json.loads(subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True).stdout.splitlines()[-1])


def measured(size, turns):
    store = images(size)
    cases = {name: Case(name, store) for name in CASES}
    times = {name: [] for name in CASES}
    for _ in range(turns):
        for name, case in cases.items():
            times[name].append(case.block())
    apart = [sum(both) for both in zip(times[LARGE], times[SMALL])]
    shares = [both / sum_of_two for both, sum_of_two in zip(times["mutual"], apart)]
    for name, own in times.items():
        words = " and ".join(state.precision.words for state in cases[name].states)
        print(f"{size} px, {name} ({words}): {statistics.median(own):.1f} ms ({min(own):.1f} to {max(own):.1f}),"
              f" {memory(name, size):.0f} MB", flush=True)
    print(f"{size} px, mutual / both alone: {statistics.median(shares):.3f} ({min(shares):.3f} to {max(shares):.3f})", flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[32, 64])
    parser.add_argument("--turns", type=int, default=8)
    parser.add_argument("--one", choices=CASES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        store = images(options.sizes[0])
        before = peak()
        Case(options.one, store).block()
        print(json.dumps(peak() - before))
        return
    with tempfile.TemporaryDirectory() as place:
        os.chdir(place)
        for size in options.sizes:
            measured(size, options.turns)


if __name__ == "__main__":
    main()
