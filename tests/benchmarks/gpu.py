"""Measure this project on one CUDA card, in under five minutes.

    python tests/benchmarks/speed.py --device cuda --only gpu --json FILE
    python tests/benchmarks/speed.py --only gpu --quick --size 32       # tries the code on a CPU

Every measurement runs in a process of its own, and the file is written after each of them. The most
important ones come first: when --minutes are over, the others are listed as not measured. With
--parts, only those are run whose names contain one of the given words.
"""

import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from children import Worker, in_child, start_by_spawn
from gpu_participants import NEEDS_CUDA, Bench, Case, EpochLoop, Scale, measure, speeds
from gpu_waits import waits
from participants import ROOT, image_folders, ratios, spread

from kd.system.markdown import table

FULL = Scale(small=16, large=128, warm_up=6, most=60, seconds=0.3, turns=5, per_class=20)
QUICK = Scale(small=4, large=8, warm_up=1, most=2, seconds=0.1, turns=2, per_class=2)
EAGER = ("floor", "stored", "live", "timm's task", "floor, CUDA graph")
# The floor comes last, because the CUDA graphs of torch.compile share their memory.
COMPILED = ("stored, compiled", "live, compiled", "floor, compiled")
PROCESSES = (1, 2, 4)


@dataclass(frozen=True)
class Measurement:
    """A measurement: its name, a function of (report, bench), and the seconds that it needs.

    If less than `least` seconds are left, it is not begun.
    """

    name: str
    function: object
    least: float


def measurements(scale):
    """Return all measurements, the most important ones first."""

    def pair(student, batch_size, names, least, amp="bf16", benchmark=False):
        case = Case(student, batch_size, amp, names, benchmark)
        words = f"{student} <- seresnet50, batch {batch_size}, {amp.replace('off', 'float32')}"
        if names != EAGER:
            words += ", compiled" if "stored, compiled" in names else ""
        words += ", cudnn.benchmark" if benchmark else ""
        return Measurement(words, partial(measure, case=case), least)

    small, large = scale.small, scale.large
    again = ("stored", "live", "floor, CUDA graph", *COMPILED)
    return [
        pair("resnet18", small, (*EAGER, *COMPILED), 30),
        Measurement("waits", waits, 20),
        pair("resnet18", large, EAGER, 15),
        pair("seresnet50", small, EAGER, 15),
        pair("seresnet50", large, EAGER, 15),
        Measurement("side by side", partial(side_by_side, compile=False), 15),
        Measurement("start-up", start_up, 25),
        pair("resnet18", small, ("floor", "stored", "live"), 10, "off"),
        pair("resnet18", small, ("floor", "stored", "live"), 10, "fp16"),
        pair("seresnet50", small, again, 40),
        Measurement("side by side, compiled", partial(side_by_side, compile=True), 25),
        pair("resnet18", large, again, 30),
        pair("seresnet50", large, again, 45),
        pair("resnet18", large, ("floor", "stored"), 10, benchmark=True),
    ]


def add_options(parser):
    """Add the options of this benchmark to those of speed.py."""
    group = parser.add_argument_group("only with --only gpu")
    group.add_argument("--minutes", type=float, default=4.5, help="time for all measurements")
    group.add_argument("--parts", nargs="+", default=[], help="words in the names to measure")
    group.add_argument("--quick", action="store_true", help="two steps each, to try the code")


def main(options):
    """Run the measurements, print and write them, and return the exit code."""
    begun = time.perf_counter()
    if options.device == "cpu" and not options.quick:
        return refuse("--only gpu needs --device cuda (or --quick, which tries it on a CPU)")
    signal.signal(signal.SIGTERM, leave)
    machine, reason = usable(options.device)
    if reason is not None:
        return refuse(f"--device {options.device} cannot be used on this machine ({reason})")
    scale = QUICK if options.quick else FULL
    found = {"machine": machine, "image size": options.size, "minutes": None, "measurements": {}}
    with tempfile.TemporaryDirectory() as place:
        # Compiled kernels are not taken from earlier runs, so that compiling takes its full time.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{place}/inductor"
        splits = {"train": scale.per_class, "valid": 2, "test": 2}
        root = image_folders(Path(place) / "images", splits)
        bench = Bench(options.device, root, options.size, scale)
        for one in chosen(measurements(scale), options.parts):
            left = 60 * options.minutes - (time.perf_counter() - begun)
            found["measurements"][one.name] = entry = run(one, bench, left, options)
            found["minutes"] = (time.perf_counter() - begun) / 60
            write(options.json, found)
            show(one.name, entry)
    failed = failures(found["measurements"])
    print(f"\n{found['minutes']:.1f} minutes, {len(failed)} failures, written to {options.json}")
    print("".join(f"  failed: {line}\n" for line in failed), end="")
    return int(bool(failed))


def failures(entries, place=""):
    """Return a line for each thing in the results that was tried and failed."""
    found = []
    for name, entry in entries.items():
        if name == "failed" and entry != NEEDS_CUDA:
            found.append(f"{place}{entry}")
        elif isinstance(entry, dict):
            found += failures(entry, f"{place}{name}: ")
    return found


def leave(*_):
    """Exit on SIGTERM, so that the child processes are ended, too."""
    sys.exit(143)


def usable(device):
    """Return (description of the machine, why the device cannot be used on it, or None)."""
    for start in ("fork", "spawn"):
        if start == "spawn":
            start_by_spawn()
        machine, reason = in_child(partial(describe, device=device), 60)
        reason = reason or machine.get("unusable")
        # A forked process cannot use CUDA if its parent has initialised it.
        if reason is None or not ("fork" in reason or "initialization error" in reason):
            break
    return machine, reason


def refuse(text):
    print(f"error: {text}.", file=sys.stderr)
    return 2


def chosen(every, parts):
    """Return the measurements whose names contain one of the words, or all without words."""
    if not parts:
        return every
    return [one for one in every if any(part in one.name for part in parts)]


def run(measurement, bench, left, options):
    """Return the entry of a measurement: its result, or why there is none, or not all of it."""
    if left < (0 if options.quick else measurement.least):
        return {"not measured": f"--minutes {options.minutes:g} were nearly over"}
    print(f"\n{measurement.name} ...", file=sys.stderr, flush=True)
    begun = time.perf_counter()
    result, reason = in_child(partial(measurement.function, bench=bench), max(1.0, left))
    entry = {"seconds": time.perf_counter() - begun}
    if reason is not None:
        entry["stopped" if reason.startswith("stopped") else "failed"] = reason
    return entry | result


def write(path, found):
    """Write the results so far. A run that is interrupted leaves the last complete file."""
    aside = path.with_name(f"{path.name}.part")
    aside.write_text(json.dumps(found, indent=1))
    os.replace(aside, path)


def describe(report, device):
    """Report the machine and the versions, or why the device cannot be used."""
    try:
        torch.zeros(1, device=device).sum().item()
    except Exception as error:
        return report({"unusable": str(error).splitlines()[0].split(". ")[0]})
    found = {
        "processor": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: importlib.metadata.version(name) for name in ("torch", "torchvision", "timm")},
    }
    if device != "cpu":
        card = torch.cuda.get_device_properties(0)
        found |= {
            "card": card.name,
            "memory, MB": card.total_memory / 1e6,
            "compute capability": f"{card.major}.{card.minor}",
            "multiprocessors": card.multi_processor_count,
            "CUDA of torch": torch.version.cuda,
            "cuDNN": torch.backends.cudnn.version(),
            "nvidia-smi": driver(),
        }
    report(found)


def driver():
    """Return what nvidia-smi says about the driver and the other users of the card, or None."""
    wanted = "driver_version,memory.used,utilization.gpu,power.limit,clocks.max.sm"
    words = ["nvidia-smi", f"--query-gpu={wanted}", "--format=csv,noheader"]
    try:
        lines = subprocess.run(words, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{wanted}: {lines.strip().splitlines()[0]}" if lines.strip() else None


def side_by_side(report, bench, compile):
    """Measure 1, 2 and 4 processes of the training loop on one card.

    All processes are started once, and in each turn the first ones of them train at the same time.
    """
    if compile and bench.device == "cpu":
        return report({"not measured": NEEDS_CUDA})
    scale, found = bench.scale, {"images per step": bench.scale.small}
    workers = [Worker(partial(loop_for_a_while, bench, compile)) for _ in range(max(PROCESSES))]
    try:
        for worker in workers:
            worker.result()
        seconds = {f"{count} at once": [] for count in PROCESSES}
        for _ in range(max(2, scale.turns - 2)):
            for count in PROCESSES:
                answers = together(workers[:count], 5 * scale.seconds)
                total = sum(answer["images/s"] for answer in answers)
                seconds[f"{count} at once"].append(scale.small / total)
            pairs = [("1 at once", f"{count} at once") for count in PROCESSES[1:]]
            found["participants"] = {
                name: speeds(values, scale.small) for name, values in seconds.items()
            }
            found["ratios"] = ratios(seconds, pairs)
            found["memory"] = {key: value for key, value in answers[0].items() if "MB" in key}
            report(found)
    finally:
        for worker in workers:
            worker.end()


def together(workers, seconds):
    for worker in workers:
        worker.send(seconds)
    return [worker.result() for worker in workers]


def loop_for_a_while(bench, compile):
    """Return a function that trains for some seconds and returns the images per second."""
    device, data = bench.open()
    scale = bench.scale
    loop = EpochLoop(data, "resnet18", "bf16", device, scale.small, scale.most, compile)
    loop.block(scale.warm_up)

    def train(seconds):
        steps, begun = 0, time.perf_counter()
        while time.perf_counter() - begun < seconds:
            loop.block(scale.most)
            steps += scale.most + 1
        answer = {"images/s": scale.small * steps / (time.perf_counter() - begun)}
        if device.type == "cuda":
            free, total = torch.cuda.mem_get_info()
            answer["reserved by a process, MB"] = torch.cuda.max_memory_reserved() / 1e6
            answer["in use on the card by all, MB"] = (total - free) / 1e6
        return answer

    return train


def start_up(report, bench, repeats=2):
    """Measure the seconds from the start of distill.py to its report, teacher and student.

    For comparison: the imports of a script, and `import torch` with a first tensor on the device.
    """
    first = f"import torch; torch.zeros(1, device={bench.device!r}).sum().item()"
    statements = {"import torch": "import torch", "torch and a first tensor": first}
    statements["imports of a script"] = "import kd.runs.run"
    found = {"seconds from start": {}}
    values = {}
    for _ in range(repeats):
        for name, statement in statements.items():
            words = [sys.executable, "-c", statement]
            values.setdefault(name, []).append(clocked(words))
        values.setdefault("distill.py to its report", []).append(first_run(bench))
        for name, seconds in values.items():
            found["seconds from start"][name] = spread(seconds) | {"n": len(seconds)}
        report(found)


def first_run(bench):
    """Return the seconds from the start of distill.py to the report of the student."""
    with tempfile.TemporaryDirectory(dir=bench.root.parent) as place:
        names = ("resnet18", "resnet18") if bench.scale == QUICK else ("seresnet50", "resnet18")
        words = [sys.executable, ROOT / "distill.py", "--teacher", names[0], "--student", names[1]]
        words += ["--mode", "normal", "--dataset", "synthetic", "--synthetic-images", 196]
        words += ["--no-pretrained", "--epochs", 1, "--max-steps", 4, "--image-size", bench.size]
        words += ["--device", bench.device, "--out", f"{place}/out"]
        words += ["--cache-dir", f"{place}/cache"]
        begun = time.time()
        clocked(words)
        reports = list(Path(place).glob("out/*/normal/*/*/report.json"))
        return reports[0].stat().st_mtime - begun


def clocked(words):
    """Return the seconds that a command takes. Raises with its last line if it fails."""
    begun = time.perf_counter()
    done = subprocess.run(list(map(str, words)), cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise RuntimeError(f"exit code {done.returncode}: {' '.join(last)}")
    return time.perf_counter() - begun


def show(name, entry):
    """Print the entry of a measurement."""
    notes = [entry[key] for key in ("not measured", "stopped", "failed") if key in entry]
    print(f"\n{name}" + "".join(f": {note}" for note in notes))
    if "participants" in entry:
        show_participants(entry["participants"])
    for ratio, value in entry.get("ratios", {}).items():
        print(f"  {ratio}: {between(value)}")
    for key in ("memory", "torch.compile", "steps", "issue, ms", "seconds from start"):
        for what, value in entry.get(key, {}).items():
            print(f"  {key}: {what}: {plain(value)}")
    sys.stdout.flush()


def show_participants(participants):
    header = ["", "images/s", "ms per step", "allocated, MB", "reserved, MB", "prepared, s"]
    rows = []
    for name, one in participants.items():
        row = [name, *(between(one[key]) if key in one else "" for key in header[1:3])]
        for key in (*header[3:5], "seconds to prepare"):
            row.append(f"{one[key]:.1f}" if key in one else "")
        rows.append(row if "failed" not in one else [*row[:-1], f"{row[-1]} {one['failed']}"])
    print("\n".join(table(header, rows, aligned=True)))


def between(value):
    return f"{value['median']:.2f} ({value['min']:.2f} to {value['max']:.2f})"


def plain(value):
    if not isinstance(value, dict):
        return f"{value:.1f}" if isinstance(value, float) else str(value)
    if "median" in value:
        return between(value)
    return ", ".join(f"{key} {plain(part)}" for key, part in value.items())
