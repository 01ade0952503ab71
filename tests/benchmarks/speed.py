"""Compare the speed of this project with a plain loop, timm's task and the floor.

Run by hand, on an idle machine:

    python tests/benchmarks/speed.py [--device cuda] [--batch-size 16] [--json FILE]

The floor is the student's forward pass, backward pass and optimizer step on one batch that is
already on the device: no views, no teacher and no checks. All participants except the floor see new
views in each step. The participants take turns, with a block of steps each. The figures are medians
over the blocks, with the smallest and the largest value. Ratios are computed within each turn. The
benchmark takes about five minutes on two cores. In its output, "kd" is this project.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

ROOT, HERE = Path(__file__).resolve().parents[2], Path(__file__).resolve().parent
sys.path.insert(0, str(ROOT))

import torch  # noqa: E402

import kd  # noqa: E402, F401  (imported first: it sets up the allocator)
from kd import models  # noqa: E402
from kd.config.settings import Data, Training  # noqa: E402
from kd.data.dataset import open_dataset, read_index  # noqa: E402
from kd.data.readers import synthetic  # noqa: E402
from kd.data.store import Store  # noqa: E402
from kd.loop import Hooks, Phase, train_epoch  # noqa: E402
from kd.system.devices import Precision  # noqa: E402
from kd.teachers.outputs import JointTeacher, LiveNetwork  # noqa: E402
from kd.teachers.stored_logits import StoredLogits, key_of  # noqa: E402
from kd.training.objectives import Distillation, Knowledge  # noqa: E402
from kd.training.state import State  # noqa: E402

GRID = {"teachers": ("seresnet50", "seresnet101"), "students": ("vgg11", "resnet18", "resnet34", "resnet50")}
PLAIN_NAMES = {"seresnet50": "legacy_seresnet50", "seresnet101": "legacy_seresnet101"}
SIDE = 512  # pixels of each side of the files, like the longer side of MURA's images


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
                drawing = Image.fromarray(synthetic.draw(4 * (7 * row + label), 0)).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
                drawing.save(place / f"patient{number:04d}.png")
            row += 1
    return root


def dataset(root, size):
    data = Data(dataset="folder", data_dir=str(root), split="given", image_size=size, cache_dir=str(root.parent / "cache"))
    return open_dataset(data, read_index(data))


class ProjectLoop:
    """The training loop of this project, paused after each block of steps."""

    def __init__(self, data, teacher, student, amp, device, batch_size, stored=True, compile=False):
        self.training, self.precision = Training(batch_size=batch_size, epochs=10**6), Precision(device.type, amp)
        self.views = data.views("train", device, batch_size=batch_size, seed=0, shuffle=True, augment=True)
        self.state = State(models.build(student, data.index.classes).to(device), self.training, self.precision)
        network = models.build(teacher, data.index.classes, seed=1).to(device)
        self.teacher = LiveNetwork(network, self.precision)
        if stored:
            key = key_of(network, f"benchmark {teacher}", self.views, self.precision)
            self.teacher = StoredLogits(data.settings.cache_dir, network, key, self.views, self.precision)
            for epoch in range(2):
                for batch in self.views.epoch(epoch):
                    self.teacher(batch)
        taught = JointTeacher([self.teacher], [1.0], device)
        objective = Distillation(Knowledge({"kd": 1.0}, (4.0,)), 0.5)
        self.phase = Phase("distil", self.views, taught, objective, 0, 10**9, self.training.lr)
        if compile:
            self.state.network.compile()

    def block(self, steps, before=lambda: None):
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
                train_epoch(self.state, self.phase, self.training, self.precision, hooks)
            except Pause:
                return (marks[-1] - marks[0]) / steps
            progress.epoch, progress.step = (progress.epoch + 1) % 2, 0


class Floor:
    """The student's arithmetic only, with the same optimizer, on one batch that stays loaded."""

    def __init__(self, data, student, amp, device, batch_size):
        self.precision, self.device = Precision(device.type, amp), device
        network = models.build(student, data.index.classes).to(device)
        batch = next(data.views("train", device, batch_size=batch_size).epoch(0))
        self.images = ((batch.images - network.mean) / network.std).contiguous(memory_format=torch.channels_last)
        self.labels, self.module = batch.labels, network.module.train()
        self.optimizer = torch.optim.Adam(self.module.parameters(), lr=1e-4, fused=True)

    def step(self):
        self.optimizer.zero_grad(set_to_none=True)
        with self.precision.autocast():
            logits = self.module(self.images)
        torch.nn.functional.cross_entropy(logits.float(), self.labels).backward()
        self.optimizer.step()

    def block(self, steps):
        self.step()
        wait(self.device)
        begun = time.perf_counter()
        for _ in range(steps):
            self.step()
        wait(self.device)
        return (time.perf_counter() - begun) / steps


class Served:
    """A loop of plain.py in a process of its own.

    There it does not profit from settings of this project, such as those of the allocator.
    """

    def __init__(self, process, name):
        self.process, self.name = process, name

    def block(self, steps):
        print(self.name, steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def wait(device):
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def plain(*arguments, **options):
    words = [sys.executable, str(HERE / "plain.py"), *map(str, arguments)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


def in_turns(participants, turns):
    """Let the participants take turns and return {name: seconds per step in each turn}.

    `participants` is {name: (object with block(), steps per block)}.
    """
    seconds = {name: [] for name in participants}
    for number in range(turns):
        for name, (one, steps) in participants.items():
            seconds[name].append(one.block(steps))
        print(f"turn {number + 1} of {turns}", "  ".join(f"{name} {1000 * values[-1]:.0f}" for name, values in seconds.items()),
              file=sys.stderr, flush=True)
    return seconds


def spread(values, factor=1.0):
    return {"median": statistics.median(values) * factor, "min": min(values) * factor, "max": max(values) * factor}


def ratios(seconds, pairs):
    """Return the spread of the ratio within each turn, for each named pair (slower, faster).

    Pairs that were not measured are skipped.
    """
    return {f"{slow} / {fast}": spread([a / b for a, b in zip(seconds[slow], seconds[fast])]) for slow, fast in pairs
            if slow in seconds and fast in seconds}


def steps_of(root, options, device, teacher, student, full):
    """Measure the step times of one pair of teacher and student.

    With `full`, measure all variants; otherwise only the plain loop, this project in bf16 with
    stored logits (on CUDA also compiled), and the floor.
    """
    data, batch = dataset(root, options.size), options.batch_size
    server = plain("serve", "--data", root, "--model", student, "--teacher", PLAIN_NAMES[teacher], "--size", options.size,
                   "--batch-size", batch, "--device", options.device)
    has_task = server.stdout.readline().strip() == "ready"
    participants = {"plain": (Served(server, "plain"), 2)} | ({"timm": (Served(server, "timm"), 2)} if has_task and full else {})
    cuda = device.type == "cuda"
    for amp in (("bf16", "fp16", "off") if cuda else ("bf16", "off")) if full else ("bf16",):
        name, more = {"off": "fp32"}.get(amp, amp), 20 if cuda else 5 if amp == "bf16" else 3
        participants[f"floor {name}"] = Floor(data, student, amp, device, batch), more
        participants[f"kd {name} stored"] = ProjectLoop(data, teacher, student, amp, device, batch), more
        if full:
            participants[f"kd {name} live"] = ProjectLoop(data, teacher, student, amp, device, batch, stored=False), 3
        if cuda:
            participants[f"kd {name} compiled"] = ProjectLoop(data, teacher, student, amp, device, batch, compile=True), more
    seconds = in_turns(participants, options.turns if full else max(1, options.turns - 1))
    server.stdin.close()
    server.wait()
    pairs = [(slow, f"kd {fast}") for slow in ("plain", "timm")
             for fast in ("bf16 stored", "fp32 stored", "bf16 live", "fp32 live")]
    pairs += [(name, f"floor {name.split()[1]}") for name in seconds if name.startswith("kd") and "live" not in name]
    found = {"ms per step": {name: spread(values, 1000) for name, values in seconds.items()}, "ratios": ratios(seconds, pairs)}
    if full:
        found["breakdown, ms"] = {name: breakdown(participants[f"kd bf16 {name}"][0]) for name in ("live", "stored")}
    return found


def breakdown(loop, steps=6):
    """Return the milliseconds that each stage of a step takes, as medians over steps.

    The timer waits for the device after each stage, which makes a step a little slower.
    """
    stages, device = {}, loop.views.device

    def timed(name, function):
        def call(*arguments, **options):
            wait(device)
            begun = time.perf_counter()
            result = function(*arguments, **options)
            wait(device)
            stages.setdefault(name, []).append(1000 * (time.perf_counter() - begun))
            return result
        return call

    views, network, optimizer = loop.views, loop.state.network, loop.state.optimizer
    epoch, teachers, module = views.epoch, loop.phase.teacher.networks, network.module.forward
    backward, update = torch.Tensor.backward, optimizer.step

    def epoch_timed(*arguments):
        batches = epoch(*arguments)
        following = timed("views", lambda: next(batches, None))
        while (batch := following()) is not None:
            yield batch
    views.epoch, network.module.forward = epoch_timed, timed("student", module)
    loop.phase.teacher.networks = [timed("teacher", teacher) for teacher in teachers]
    optimizer.step, torch.Tensor.backward = timed("optimizer", update), timed("backward", backward)
    try:
        total = 1000 * loop.block(steps)
    finally:
        views.epoch, loop.phase.teacher.networks, network.module.forward = epoch, teachers, module
        optimizer.step, torch.Tensor.backward = update, backward
    found = {name: statistics.median(values) for name, values in stages.items()}
    return found | {"rest": total - sum(found.values()), "step": total}


def clocked(words):
    """Run a command that must succeed and return its seconds and its peak memory in MB."""
    begun = time.perf_counter()
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0, words
    seconds = time.perf_counter() - begun
    print(f"{seconds:6.1f} s  {' '.join(map(str, words[1:6]))} ...", file=sys.stderr, flush=True)
    return seconds, usage.ru_maxrss / 1024


def grid(root, options):
    """Time a grid of two teachers and four students, from a cold start.

    Return the seconds to train the two teachers, and the seconds from their files and the images to
    the results of all 8 pairs, for this project and for the plain scripts.
    """
    place, python = root.parent, sys.executable
    common = ["--dataset", "folder", "--data-dir", root, "--split", "given", "--no-pretrained", "--image-size", options.grid_size,
              "--epochs", options.grid_epochs, "--batch-size", 16, "--device", options.device, "--out", place / "runs"]
    own = [clocked([python, ROOT / "train_teacher.py", "--model", *GRID["teachers"], *common, "--cache-dir", place / "one"]),
            clocked([python, ROOT / "distill.py", "--teacher", *GRID["teachers"], "--student", *GRID["students"], *common,
                     "--cache-dir", place / "two"])]
    assert len(list((place / "runs").rglob("report.json"))) == 10
    words = [python, HERE / "plain.py", "train", "--data", root, "--size", options.grid_size, "--epochs", options.grid_epochs,
             "--device", options.device]
    names = [(PLAIN_NAMES[name], place / f"{name}.pt") for name in GRID["teachers"]]
    pairs = [("--model", student, "--save", place / "student.pt", "--teacher", name, "--teacher-file", file)
             for name, file in names for student in GRID["students"]]
    plain = [sum(clocked([*words, "--model", name, "--save", file])[0] for name, file in names),
             sum(clocked([*words, *pair])[0] for pair in pairs)]
    (own_teachers, _), (own_pairs, memory) = own
    return {"kd, s": {"2 teachers": own_teachers, "8 pairs": own_pairs},
            "plain, s": {"2 teachers": plain[0], "8 pairs": plain[1]}, "plain / kd, 8 pairs": plain[1] / own_pairs,
            "plain / kd, teachers and pairs": sum(plain) / (own_teachers + own_pairs), "peak memory of kd, MB": memory}


def starting(repeats=3):
    """Return the seconds to import all that a script needs.

    For comparison, also return the seconds to import only torch, torchvision and timm.
    """
    def seconds(statement):
        begun = time.perf_counter()
        subprocess.run([sys.executable, "-c", statement], cwd=ROOT, check=True)
        return time.perf_counter() - begun
    return {name: spread([seconds(statement) for _ in range(repeats)])
            for name, statement in (("kd", "import kd.runs.run"), ("torch, torchvision, timm", "import torch, torchvision, timm"))}


def decoding(root, size):
    """Return the milliseconds that it takes to decode an image.

    This project decodes each image once into the cache, on all cores. The plain loop decodes it
    with its transforms; here this is measured in one process.
    """
    index = read_index(Data(dataset="folder", data_dir=str(root)))
    store = Store(index, str(root.parent / "decoded"), size, "squash", 1)
    begun = time.perf_counter()
    count = store.ensure(np.arange(len(index.samples)))
    own = time.perf_counter() - begun
    begun = time.perf_counter()
    for row in range(40):
        np.asarray(Image.open(index.file(row)).convert("RGB").resize((size, size), Image.Resampling.BILINEAR))
    return {"kd": 1000 * own / count, "plain, one process": 1000 * (time.perf_counter() - begun) / 40}


def cpu_seconds():
    """Return the CPU seconds used by all processes, and by this process with its children."""
    words = [int(word) for word in Path("/proc/stat").read_text().split()[1:9]]
    used = os.times()
    return (sum(words) - words[3] - words[4]) / os.sysconf("SC_CLK_TCK"), sum(used[:4])


def show(found, depth=0):
    for key, value in found.items():
        if isinstance(value, dict) and set(value) == {"median", "min", "max"}:
            print(f"{'  ' * depth}{key:44}{value['median']:10.3f}   ({value['min']:.3f} to {value['max']:.3f})")
        elif isinstance(value, dict):
            print(f"{'  ' * depth}{key}")
            show(value, depth + 1)
        else:
            print(f"{'  ' * depth}{key:44}" + (f"{value:10.3f}" if isinstance(value, float) else f" {value}"))


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--json", type=Path, default=Path("speed.json"))
    parser.add_argument("--only", choices=("steps", "grid"))
    for name, default in (("size", 224), ("batch-size", 16), ("turns", 4), ("grid-size", 224), ("grid-epochs", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    device = torch.device(options.device)
    began, before = time.perf_counter(), cpu_seconds()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    found = {"machine": f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}",
             "batch size": options.batch_size, "image size": options.size}
    with tempfile.TemporaryDirectory() as place:
        root = image_folders(Path(place) / "images", {"train": max(16, options.batch_size), "valid": 2, "test": 2})
        if options.only != "grid":
            found["resnet18 <- seresnet50"] = steps_of(root, options, device, "seresnet50", "resnet18", full=True)
            found["resnet50 <- seresnet50"] = steps_of(root, options, device, "seresnet50", "resnet50", full=False)
            found["decoding, ms per image"], found["start-up, s"] = decoding(root, options.size), starting()
        if options.only != "steps":
            found["grid of 2 teachers and 4 students"] = grid(root, options)
    used, own = (after - earlier for after, earlier in zip(cpu_seconds(), before))
    found["share of CPU time that other processes took"] = max(0.0, 1 - own / used)
    if device.type == "cuda":
        found["peak memory on the device, MB"] = torch.cuda.max_memory_allocated() / 1e6
    found["minutes"] = (time.perf_counter() - began) / 60
    show(found)
    options.json.write_text(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
