"""The participants of gpu.py, and how one configuration of them is measured in turns."""

import contextlib
import copy
import gc
import math
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from children import reason_of
from participants import (
    ALPHA,
    TEMPERATURE,
    Floor,
    ProjectLoop,
    dataset,
    in_turns,
    normalised,
    ratios,
    spread,
    training_views,
    wait,
)

from kd import models
from kd.system.devices import Precision, pick_device
from kd.teachers.outputs import JointTeacher, LiveNetwork

DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
NEEDS_CUDA = "needs CUDA"
TEACHER = "seresnet50"
PAIRS = (
    ("stored", "floor"),
    ("stored, compiled", "floor, compiled"),
    ("stored, compiled", "floor, CUDA graph"),
    ("floor", "floor, CUDA graph"),
    ("floor", "floor, compiled"),
    ("stored", "stored, compiled"),
    ("live", "live, compiled"),
    ("live", "stored"),
    ("timm's task", "live"),
    ("timm's task", "stored"),
    ("timm's task", "stored, compiled"),
)


@dataclass(frozen=True)
class Scale:
    """How much is measured.

    small, large  images per step
    warm_up       steps before a measurement; at least four on CUDA, because torch.compile compiles
                  in the first, records CUDA graphs in the second and replays them from then on
    most          most steps in a block
    seconds       that a block should take
    turns         number of turns
    per_class     images in each of seven classes, at least one batch; an epoch repeats them until
                  it has more than `most` steps
    """

    small: int
    large: int
    warm_up: int
    most: int
    seconds: float
    turns: int
    per_class: int


@dataclass(frozen=True)
class Bench:
    """What all measurements share: the device, the folder of images, their size, the scale."""

    device: str
    root: Path
    size: int
    scale: Scale

    def open(self):
        """Return (device, data set). Call it in a child only, because it initialises CUDA."""
        return pick_device(self.device), dataset(self.root, self.size)


class EpochLoop(ProjectLoop):
    """This project's loop. Every block begins with the first step of the same epoch.

    An epoch has a few steps more than a block, so that the work between two epochs, which is rare
    in a real run, is not part of a block.
    """

    def __init__(self, data, student, amp, device, batch_size, most, compile=False):
        repeat = math.ceil((most + 2) * batch_size / len(data.splits.train))
        super().__init__(
            data,
            TEACHER,
            student,
            amp,
            device,
            batch_size,
            compile=compile,
            repeat=repeat,
            epochs=1,
        )

    def block(self, steps):
        self.state.progress.step = 0
        return super().block(steps)

    def with_live_teacher(self):
        """Return a loop with the same student, whose teacher runs in every step."""
        other = copy.copy(self)
        live = LiveNetwork(self.teacher.network, self.precision)
        taught = JointTeacher([live], [1.0], self.views.device)
        other.phase = replace(self.phase, teacher=taught)
        return other


class CompiledFloor(Floor):
    """The floor with the compiled network, as `--compile` compiles it."""

    def __init__(self, *where):
        super().__init__(*where)
        self.module = torch.compile(self.module, mode="reduce-overhead", dynamic=False)


class GraphFloor(Floor):
    """The floor as one CUDA graph: the forward pass, the backward pass and the optimizer step."""

    def __init__(self, *where, warm_up=6):
        super().__init__(*where)
        parameters = self.module.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True, capturable=True)
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(warm_up):
                super().step()
        torch.cuda.current_stream().wait_stream(stream)
        # The backward pass of the capture then allocates the gradients in the memory of the graph.
        self.optimizer.zero_grad(set_to_none=True)
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            super().step()

    def autocast(self):
        dtype = DTYPES.get(self.precision.name)
        if dtype is None:
            return contextlib.nullcontext()
        # Weights in lower precision that were cached outside the graph would not be updated in it.
        return torch.autocast("cuda", dtype, cache_enabled=False)

    def step(self):
        self.graph.replay()


class TimmTask:
    """timm's LogitDistillationTask on the same views, with a live teacher.

    The loop is the usual one: autocast, backward pass, fused Adam. It has no stored logits, no
    check for divergence and no seeds of the step. The task compares the normalisation of student
    and teacher in every step, which waits for the device.
    """

    def __init__(self, data, student, amp, device, batch_size, most):
        from timm.task import LogitDistillationTask  # the oldest supported timm does not have it

        self.precision, self.device = Precision(device.type, amp), device
        repeat = math.ceil((most + 2) * batch_size / len(data.splits.train))
        self.views = training_views(data, device, batch_size, repeat)
        self.network = models.build(student, data.index.classes).to(device)
        teacher = models.build(TEACHER, data.index.classes, seed=1).to(device)
        teacher.module.requires_grad_(False)
        self.task = LogitDistillationTask(
            self.network.module,
            teacher.module,
            distill_loss_weight=ALPHA,
            task_loss_weight=1 - ALPHA,
            temperature=TEMPERATURE,
            device=device,
            verbose=False,
        ).train()
        teacher.module.eval()
        parameters = self.network.module.parameters()
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4, fused=True)

    def step(self, batch):
        images = normalised(batch.images, self.network)
        with self.precision.autocast():
            loss = self.task(images, batch.labels)["loss"]
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()

    def block(self, steps):
        """Return the seconds per step. The first step is not counted."""
        batches = self.views.epoch(0)
        self.step(next(batches))
        wait(self.device)
        begun = time.perf_counter()
        for _ in range(steps):
            self.step(next(batches))
        wait(self.device)
        return (time.perf_counter() - begun) / steps


@dataclass(frozen=True)
class Case:
    """A configuration: the student, images per step, precision, and the names of participants.

    benchmark  whether cuDNN tries its algorithms and takes the fastest one
    """

    student: str
    batch_size: int
    amp: str
    names: tuple[str, ...]
    benchmark: bool = False


class Configuration:
    """The participants of a case, built one after the other."""

    def __init__(self, bench, case):
        self.device, data = bench.open()
        torch.backends.cudnn.benchmark = case.benchmark
        self.scale, self.case, self.batch_size = bench.scale, case, case.batch_size
        self.where = (data, case.student, case.amp, self.device, case.batch_size)
        self.built, self.memory = {}, {}

    def build(self, name):
        """Return (a participant after its warm-up, steps per block, what building it took)."""
        if self.device.type != "cuda" and ("compiled" in name or "graph" in name):
            raise Unavailable(NEEDS_CUDA)
        self._forget_peak(name)
        begun = time.perf_counter()
        one = self._make(name)
        # In one block, because each block has its own first step and waits for the device.
        one.block(self.scale.warm_up)
        entry = {"seconds to prepare": time.perf_counter() - begun}
        short = max(1, min(5, self.scale.most))
        steps = int(self.scale.seconds / one.block(short))
        self.built[name] = one
        return one, min(self.scale.most, max(short, steps)), entry | self._peak(name)

    def _make(self, name):
        if name == "floor":
            return Floor(*self.where)
        if name == "floor, CUDA graph":
            return GraphFloor(*self.where)
        if name == "floor, compiled":
            return CompiledFloor(*self.where)
        if name == "timm's task":
            return TimmTask(*self.where, self.scale.most)
        if name.startswith("live"):
            sibling = name.replace("live", "stored")
            if sibling not in self.built:
                raise Unavailable(f"'{sibling}' is missing")
            return self.built[sibling].with_live_teacher()
        return EpochLoop(*self.where, self.scale.most, compile="compiled" in name)

    def _forget_peak(self, name):
        if self.device.type != "cuda":
            return
        gc.collect()
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        # The two teachers of a loop share its student: both count the loop from its beginning.
        loop = name.replace("live", "stored")
        before = (torch.cuda.memory_allocated(), torch.cuda.memory_reserved())
        self.memory[name] = self.memory.get(loop, before)

    def _peak(self, name):
        """Return the peak memory of a participant, without what the others held before it."""
        if self.device.type != "cuda":
            return {}
        allocated, reserved = self.memory[name]
        return {
            "allocated, MB": (torch.cuda.max_memory_allocated() - allocated) / 1e6,
            "reserved, MB": (torch.cuda.max_memory_reserved() - reserved) / 1e6,
        }


class Unavailable(Exception):
    """Raised for a participant that this machine cannot have."""


def measure(report, bench, case):
    """Measure a case in turns, and report after each participant and each turn."""
    if case.amp == "fp16" and bench.device == "cpu":
        return report({"not measured": NEEDS_CUDA})  # it would take minutes
    configuration = Configuration(bench, case)
    found = {"images per step": case.batch_size, "precision": case.amp, "participants": {}}
    entries, ready, failed = found["participants"], {}, {}
    for name in case.names:
        try:
            one, steps, entry = configuration.build(name)
            ready[name], entries[name] = (one, steps), entry | {"steps per block": steps}
        except Exception as error:
            entries[name] = {"failed": why(error)}
        report(found | compiled_graphs())

    def after_turn(seconds):
        for name, values in seconds.items():
            if values:
                entries[name] |= speeds(values, case.batch_size)
            if name in failed:
                entries[name] |= {"failed": failed[name]}
        report(found | {"ratios": ratios(seconds, PAIRS)} | compiled_graphs())

    in_turns(ready, bench.scale.turns, failed, after_turn)


def why(error):
    return str(error) if isinstance(error, Unavailable) else reason_of(error)


def speeds(seconds, batch_size):
    """Return the spread of images per second and of milliseconds per step."""
    return {
        "images/s": spread([batch_size / value for value in seconds]),
        "ms per step": spread(seconds, 1000),
        "turns": len(seconds),
    }


def compiled_graphs():
    """Return what torch.compile has counted in this process, if anything was compiled."""
    if "torch._dynamo.utils" not in sys.modules:
        return {}
    from torch._dynamo.utils import counters

    if not counters["stats"]["unique_graphs"]:
        return {}
    return {
        "torch.compile": {
            "graphs": counters["stats"]["unique_graphs"],
            "graph breaks": sum(counters["graph_break"].values()),
            "graphs without CUDA graphs": counters["inductor"]["cudagraph_skips"],
        }
    }
