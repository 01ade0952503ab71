"""Compare the steps of students that teach themselves with those of a teacher network.

Run by hand, on an idle machine:

    python tests/benchmarks/own_teacher.py [--student resnet18] [--size 64] [--batch-size 32]

Compared are `normal` with a teacher that runs in every step and with its stored logits,
`mean-teacher` and `fixmatch`, all with the same student, whose architecture the teacher has. The
participants take turns, with a block of steps each; the figures are medians over the blocks, with
the smallest and the largest value. The time is CPU time of this process, which other processes on
the machine change little; set OMP_NUM_THREADS=1. Peak memory is that of a process of its own for
each participant, after a block.
"""

import argparse
import dataclasses
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from participants import (  # imported first: it sets up the allocator
    ProjectLoop,
    in_turns,
    ratios,
    spread,
)
from speed import show

from kd import models
from kd.config import parsing
from kd.config.resolve import resolve
from kd.config.settings import DistillSettings
from kd.runs.data import RunData
from kd.runs.phases import PhaseBuilder
from kd.runs.run import average, join
from kd.runs.session import Session
from kd.system.signals import StopSignals
from kd.teachers.find import untrained
from kd.training.precision import training_precision
from kd.training.state import State

PARTICIPANTS = {"normal live": ["--mode", "normal", "--no-stored-logits"], "normal stored": ["--mode", "normal"],
                "mean-teacher": ["--mode", "mean-teacher"], "fixmatch": ["--mode", "fixmatch"]}


class ModeLoop(ProjectLoop):
    """The training loop of this project in a mode, paused after each block of steps."""

    def __init__(self, words, signals):
        [settings] = parsing.parse(DistillSettings, words)
        plan, session = resolve(settings), Session(signals)
        data = RunData(plan, session)
        first = data.first_batch(plan)
        members = [untrained(one.name, 1, data.classes) for one in plan.teachers]
        ensemble = join(members, plan, data, session, first)
        student = models.build(plan.student, data.classes).to(data.device)
        averages = average(student, plan, ensemble)
        builder = PhaseBuilder(plan, data, ensemble)
        [phase] = builder.build()
        self.phase = dataclasses.replace(phase, end=10**9)
        self.training, self.views = settings.training, phase.views
        self.precision = training_precision(settings.training.amp, student, first.images)
        self.state = State(student, settings.training, self.precision, averages=averages)
        if plan.follower is None and settings.distillation.stored_logits:
            for epoch in range(2):
                for batch in self.views.epoch(epoch):
                    phase.teacher(batch)

    def block(self, steps):
        """Return the CPU seconds per step."""
        begun = time.process_time()
        super().block(steps)
        return (time.process_time() - begun) / (steps + 1)


def peak():
    """Return the peak memory of this process in MB. `getrusage` would include that of its parent."""
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM:")]
    return int(line.split()[1]) / 1024


def words_of(name, options, place):
    common = ["--dataset", "synthetic", "--synthetic-images", 1400, "--image-size", options.size, "--batch-size", options.batch_size,
              "--student", options.student, "--teacher", options.student, "--no-pretrained", "--epochs", 1000,
              "--cache-dir", f"{place}/cache", "--device", "cpu"]
    return [*map(str, common), *PARTICIPANTS[name]]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--student", default="resnet18")
    for name, default in (("size", 64), ("batch-size", 32), ("turns", 5), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--memory-of", choices=tuple(PARTICIPANTS))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as place, StopSignals(None) as signals:
        if options.memory_of:
            ModeLoop(words_of(options.memory_of, options, place), signals).block(options.steps)
            print("peak", peak())
            return
        loops = {name: (ModeLoop(words_of(name, options, place), signals), options.steps) for name in PARTICIPANTS}
        seconds = in_turns(loops, options.turns)
    found = {"CPU ms per step": {name: spread(values, 1000) for name, values in seconds.items()},
             "ratios": ratios(seconds, [(name, "normal live") for name in PARTICIPANTS if name != "normal live"]), "peak memory, MB": {}}
    for name in PARTICIPANTS:
        done = subprocess.run([sys.executable, *sys.argv, "--memory-of", name], capture_output=True, text=True, check=True)
        found["peak memory, MB"][name] = float(done.stdout.rpartition("peak ")[2])
    show(found)


if __name__ == "__main__":
    main()
