"""What the benchmarks of speed share: images, this project's loop, the floor, turns and ratios."""

import statistics
import sys
import time
from pathlib import Path

import numpy as np
from children import reason_of
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import kd  # noqa: E402, F401  (imported first: it sets up the allocator)
from kd import models  # noqa: E402
from kd.config.settings import Data, Training  # noqa: E402
from kd.data.augmentation import Augmentation  # noqa: E402
from kd.data.dataset import open_dataset, read_index  # noqa: E402
from kd.data.readers import synthetic  # noqa: E402
from kd.loop import Hooks, Phase, train_epoch  # noqa: E402
from kd.system.devices import pick_precision  # noqa: E402
from kd.teachers.outputs import JointTeacher, LiveNetwork  # noqa: E402
from kd.teachers.stored_logits import StoredLogits, key_of  # noqa: E402
from kd.training.objectives import Distillation, Knowledge  # noqa: E402
from kd.training.precision import training_precision  # noqa: E402
from kd.training.state import State  # noqa: E402

SIDE = 512  # pixels of each side of the files, like the longer side of MURA's images
TEMPERATURE, ALPHA = 4.0, 0.5


class Pause(Exception):
    """Raised when a block of steps is over."""


def image_folders(root, counts):
    """Write PNG files in class folders and return `root`.

    `counts` is {split: images per class}.
    """
    row = 0
    for split, count in counts.items():
        for number in range(count):
            for label, name in enumerate(synthetic.CLASSES):
                place = root / split / name
                place.mkdir(parents=True, exist_ok=True)
                drawing = Image.fromarray(synthetic.draw(4 * (7 * row + label), 0))
                drawing = drawing.resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                drawing.save(place / f"patient{number:04d}.png")
            row += 1
    return root


def dataset(root, size):
    data = Data(
        dataset="folder",
        data_dir=str(root),
        split="given",
        image_size=size,
        cache_dir=str(root.parent / "cache"),
    )
    return open_dataset(data, read_index(data))


class ProjectLoop:
    """The training loop of this project, paused after each block of steps.

    repeat  how often each image occurs in an epoch
    epochs  number of epochs whose logits are stored before the measurement
    """

    def __init__(
        self,
        data,
        teacher,
        student,
        amp,
        device,
        batch_size,
        stored=True,
        compile=False,
        repeat=1,
        epochs=2,
    ):
        self.training = Training(batch_size=batch_size, epochs=10**6)
        self.views = training_views(data, device, batch_size, repeat)
        network = models.build(student, data.index.classes).to(device)
        self.precision = training_precision(amp, network, next(self.views.epoch(0)).images)
        self.state = State(network, self.training, self.precision)
        network = models.build(teacher, data.index.classes, seed=1).to(device)
        precision = pick_precision(amp, device)
        self.teacher = LiveNetwork(network, precision)
        if stored:
            key = key_of(network, f"benchmark {teacher}", self.views, precision)
            cache_dir = data.settings.cache_dir
            self.teacher = StoredLogits(cache_dir, network, key, self.views, precision)
            for epoch in range(epochs):
                for batch in self.views.epoch(epoch):
                    self.teacher(batch)
        taught = JointTeacher([self.teacher], [1.0], device)
        objective = Distillation(Knowledge({"kd": 1.0}, (TEMPERATURE,)), ALPHA)
        lr = self.training.lr
        self.phase = Phase("distil", self.views, taught, objective, 0, 10**9, lr)
        if compile:
            self.state.network.compile()

    def block(self, steps):
        """Return the seconds per step. The first step is not counted."""
        marks, progress = [], self.state.progress

        def after_step(_):
            if len(marks) in (0, steps):
                wait(self.views.device)
            marks.append(time.perf_counter())
            if len(marks) > steps:
                raise Pause

        hooks = Hooks()
        hooks.after_step = after_step
        while True:
            try:
                train_epoch([self.state], self.phase, self.training, hooks)
            except Pause:
                return (marks[-1] - marks[0]) / steps
            progress.epoch, progress.step = (progress.epoch + 1) % 2, 0


class Floor:
    """The student's arithmetic only, with the same optimizer, on one batch that stays loaded."""

    def __init__(self, data, student, amp, device, batch_size):
        self.device = device
        network = models.build(student, data.index.classes).to(device)
        batch = next(data.views("train", device, batch_size=batch_size).epoch(0))
        self.precision = training_precision(amp, network, batch.images)
        self.images = normalised(batch.images, network)
        self.labels, self.module = batch.labels, network.module.train()
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-4, fused=True)

    def autocast(self):
        return self.precision.autocast()

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.autocast():
            logits = self.module(self.images)
        torch.nn.functional.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()

    def block(self, steps):
        """Return the seconds per step. The first step is not counted."""
        self.step()
        wait(self.device)
        begun = time.perf_counter()
        for _ in range(steps):
            self.step()
        wait(self.device)
        return (time.perf_counter() - begun) / steps


def training_views(data, device, batch_size, repeat=1):
    """Return the shuffled and augmented views of the train split, each image `repeat` times."""
    rows = np.tile(data.splits.train, repeat)
    order = {"batch_size": batch_size, "seed": 0, "shuffle": True, "augmentation": Augmentation("light")}
    return data.views("train", device, rows=rows, **order)


def normalised(images, network):
    """Return images as the module of a network expects them."""
    images = (images - network.mean) / network.std
    return images.contiguous(memory_format=torch.channels_last)


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def in_turns(participants, turns, failed=None, after_turn=None):
    """Let the participants take turns and return {name: seconds per step in each turn}.

    participants  {name: (object with block(), steps per block)}
    failed        a dictionary for {name: reason}: a participant that raises takes no more turns;
                  None to raise the exception
    after_turn    called with the seconds so far
    """
    seconds = {name: [] for name in participants}
    for number in range(turns):
        for name, (one, steps) in participants.items():
            if failed is not None and name in failed:
                continue
            try:
                seconds[name].append(one.block(steps))
            except Exception as error:
                if failed is None:
                    raise
                failed[name] = reason_of(error)
        shown = [f"{name} {1000 * values[-1]:.0f}" for name, values in seconds.items() if values]
        print(f"turn {number + 1} of {turns}", "  ".join(shown), file=sys.stderr, flush=True)
        if after_turn is not None:
            after_turn(seconds)
    return seconds


def spread(values, factor=1.0):
    return {
        "median": statistics.median(values) * factor,
        "min": min(values) * factor,
        "max": max(values) * factor,
    }


def ratios(seconds, pairs):
    """Return the spread of the ratio within each turn, for each named pair (slower, faster).

    Pairs that were not measured are skipped.
    """
    found = {}
    for slow, fast in pairs:
        values = [a / b for a, b in zip(seconds.get(slow, ()), seconds.get(fast, ()))]
        if values:
            found[f"{slow} / {fast}"] = spread(values)
    return found
