"""Compare the speed of this project with a plain loop, timm's task and the floor.

Run by hand, on an idle machine:

    python tests/benchmarks/speed.py [--device cuda] [--batch-size 16] [--json FILE]

The floor is the student's forward pass, backward pass and optimizer step on one batch that is
already on the device: no views, no teacher and no checks. All participants except the floor see new
views in each step. The participants take turns, with a block of steps each. The figures are medians
over the blocks, with the smallest and the largest value. Ratios are computed within each turn. The
benchmark takes about eleven minutes on two cores. In its output, "kd" is this project.
"""

import argparse
import json
import os
import platform
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import gpu
import numpy as np
import torch
from participants import (
    ROOT,
    Floor,
    ProjectLoop,
    dataset,
    image_folders,
    in_turns,
    ratios,
    spread,
    wait,
)
from PIL import Image

from kd.config.settings import Data
from kd.data.dataset import read_index
from kd.data.store import Store

HERE = Path(__file__).resolve().parent
GRID = {"teachers": ("seresnet50", "seresnet101"), "students": ("vgg11", "resnet18", "resnet34", "resnet50")}
PLAIN_NAMES = {"seresnet50": "legacy_seresnet50", "seresnet101": "legacy_seresnet101"}


class Served:
    """A loop of plain.py in a process of its own.

    There it does not profit from settings of this project, such as those of the allocator.
    """

    def __init__(self, process, name):
        self.process, self.name = process, name

    def block(self, steps):
        print(self.name, steps, file=self.process.stdin, flush=True)
        return float(self.process.stdout.readline())


def plain(*arguments, **options):
    words = [sys.executable, str(HERE / "plain.py"), *map(str, arguments)]
    return subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)


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


def beside_floor(root, options, device):
    """Compare the step times of this project with the floor, for each student of --students.

    Both are in the precision that `--amp auto` chooses; the teacher's logits are stored.
    """
    data, found = dataset(root, options.size), {}
    for student in options.students:
        floor = Floor(data, student, "auto", device, options.batch_size)
        loop = ProjectLoop(data, "seresnet50", student, "auto", device, options.batch_size)
        seconds = in_turns({"floor": (floor, 5), "kd": (loop, 5)}, options.turns)
        found[f"{student}, {loop.precision.words}"] = {
            "ms per step": {name: spread(values, 1000) for name, values in seconds.items()},
            "ratios": ratios(seconds, [("kd", "floor")]),
        }
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
    """Run a command that must succeed and return its seconds."""
    begun = time.perf_counter()
    subprocess.run(list(map(str, words)), stdout=subprocess.DEVNULL, check=True)
    seconds = time.perf_counter() - begun
    print(f"{seconds:6.1f} s  {' '.join(map(str, words[1:]))}", file=sys.stderr, flush=True)
    return seconds


def commands_in_turns(words, others):
    """Run a command of several runs in turns with other commands, one after each of its runs.

    While another command runs, the first is stopped, so that the machine is as fast for both. Return
    the seconds of each run of the first (with what precedes it, and for the last run with what
    follows it), those of the other commands, and the peak memory of the first in MB.
    """
    own, other = [], []
    process = subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONUNBUFFERED": "1"})
    begun = time.perf_counter()
    for line in process.stdout:
        if line.startswith("results: "):
            process.send_signal(signal.SIGSTOP)
            own.append(time.perf_counter() - begun)
            print(f"{own[-1]:6.1f} s  {line.strip()}", file=sys.stderr, flush=True)
            other.append(clocked(others[len(other)]))
            begun = time.perf_counter()
            process.send_signal(signal.SIGCONT)
    _, status, usage = os.wait4(process.pid, 0)
    assert status == 0 and len(own) == len(others), words
    own[-1] += time.perf_counter() - begun
    return own, other, usage.ru_maxrss / 1024


def grid(root, options):
    """Time a grid of two teachers and four students, from a cold start, in turns with plain scripts.

    Return the seconds to train the two teachers, which for this project include decoding, and the
    seconds from what they left to the results of all 8 pairs.
    """
    place, python = root.parent, sys.executable
    common = ["--dataset", "folder", "--data-dir", root, "--split", "given", "--no-pretrained", "--image-size", options.grid_size,
              "--epochs", options.grid_epochs, "--batch-size", 16, "--device", options.device, "--out", place / "runs",
              "--cache-dir", place / "cache"]
    words = [python, HERE / "plain.py", "train", "--data", root, "--size", options.grid_size, "--epochs", options.grid_epochs,
             "--device", options.device]
    names = [(PLAIN_NAMES[name], place / f"{name}.pt") for name in GRID["teachers"]]
    teachers = [[*words, "--model", name, "--save", file] for name, file in names]
    pairs = [[*words, "--model", student, "--save", place / "student.pt", "--teacher", name, "--teacher-file", file]
             for name, file in names for student in GRID["students"]]
    first = commands_in_turns([python, ROOT / "train_teacher.py", "--model", *GRID["teachers"], *common], teachers)
    then = commands_in_turns([python, ROOT / "distill.py", "--teacher", *GRID["teachers"], "--student", *GRID["students"], *common], pairs)
    assert len(list((place / "runs").rglob("report.json"))) == 10
    own, plain = ([sum(part[side]) for part in (first, then)] for side in (0, 1))
    return {"kd, s": dict(zip(("2 teachers", "8 pairs"), own)), "plain, s": dict(zip(("2 teachers", "8 pairs"), plain)),
            "plain / kd, 8 pairs": plain[1] / own[1], "plain / kd, teachers and pairs": sum(plain) / sum(own),
            "plain / kd, each pair": spread([one / other for one, other in zip(then[1], then[0])]),
            "peak memory of kd, MB": then[2]}


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
    parser.add_argument("--only", choices=("steps", "floor", "grid", "gpu"))
    parser.add_argument("--students", nargs="+", default=["mobilenetv3_small_100", "tf_efficientnet_lite0", "resnet18"])
    gpu.add_options(parser)
    for name, default in (("size", 224), ("batch-size", 16), ("turns", 4), ("grid-size", 224), ("grid-epochs", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    if options.only == "gpu":
        sys.exit(gpu.main(options))
    device = torch.device(options.device)
    began, before = time.perf_counter(), cpu_seconds()
    name = torch.cuda.get_device_name() if device.type == "cuda" else platform.processor() or platform.machine()
    found = {"machine": f"{name}, {torch.get_num_threads()} threads, torch {torch.__version__}",
             "batch size": options.batch_size, "image size": options.size}
    with tempfile.TemporaryDirectory() as place:
        root = image_folders(Path(place) / "images", {"train": max(16, options.batch_size), "valid": 2, "test": 2})
        if options.only in (None, "steps"):
            found["resnet18 <- seresnet50"] = steps_of(root, options, device, "seresnet50", "resnet18", full=True)
            found["resnet50 <- seresnet50"] = steps_of(root, options, device, "seresnet50", "resnet50", full=False)
            found["decoding, ms per image"], found["start-up, s"] = decoding(root, options.size), starting()
        if options.only == "floor":
            found["beside the floor"] = beside_floor(root, options, device)
        if options.only in (None, "grid"):
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
