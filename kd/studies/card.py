"""Teacher and student on one card.

Size, arithmetic, latency, accuracy, calibration, and what each is of the other.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from kd import models
from kd.config.layout import RunPaths, out_of
from kd.models import Classifier
from kd.reports import report as reports
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import Problem
from kd.system.files import write_json
from kd.system.markdown import table

SCHEMA_VERSION = 1
REPEATS = 15
WARM_UP = 2
BATCHES = (1, 32)
UNKNOWN = "unknown"
# key, caption, unit's factor, format
ROWS = (
    ("parameters", "parameters (M)", 1e-6, ".2f"),
    ("gmac", "GMAC an image", 1, ".3f"),
    ("file_bytes", "file (MB)", 1e-6, ".1f"),
    ("latency_1", "latency, 1 image (ms)", 1e3, ".2f"),
    ("latency_32", "latency, 32 images (ms)", 1e3, ".1f"),
    ("test_accuracy", "test accuracy", 1, ".4f"),
    ("ece", "ECE", 1, ".4f"),
)


def write_card(folder: Path, device_name: str) -> dict:
    """Print a distilled run's card and write it to card.json in its folder; returns it.

    Raises Problem for a run without a teacher.
    """
    report = reports.read(folder)
    device = pick_device(device_name)
    if report["teacher"] is None or not report["teacher"]["members"]:
        raise Problem(
            f"run '{folder}' in --card: was trained without a teacher that is a network; give the"
            " folder of another"
        )
    size = report["data"]["image_size"]
    sides = _measure(_networks(report, device), size, device)
    sides["teacher"] |= _known_of_teacher(folder, report)
    sides["student"] |= _known_of_student(folder, report)
    ratios = {}
    for key, *_ in ROWS:
        ratios[key] = _ratio(sides["student"][key], sides["teacher"][key])
    card = {
        "schema_version": SCHEMA_VERSION,
        "run": str(folder),
        "image_size": size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        **sides,
        "ratios": ratios,
    }
    file = RunPaths(folder).card
    write_json(file, card)
    log(text(card))
    log(f"written: {file}")
    return card


def _networks(report: dict, device: torch.device) -> dict[str, list[Classifier]]:
    """The networks of the two sides, freshly drawn: for size and speed weights do not matter."""
    classes = tuple(report["data"]["classes"])
    architectures = {
        "teacher": [member["architecture"] for member in report["teacher"]["members"]],
        "student": [report["student"]["architecture"]],
    }
    networks = {}
    for side, names in architectures.items():
        networks[side] = [models.build(name, classes).to(device) for name in names]
    return networks


def _measure(
    networks: dict[str, list[Classifier]], size: int, device: torch.device
) -> dict[str, dict]:
    """Parameters, arithmetic and latencies of each side."""
    sides = {}
    for side, group in networks.items():
        sides[side] = {
            "parameters": sum(models.parameters(network.module) for network in group),
            "gmac": sum(gmac(network, size) for network in group),
        }
    for batch in BATCHES:
        for side, seconds in latency(networks, size, batch, device).items():
            sides[side][f"latency_{batch}"] = seconds
    return sides


def _known_of_teacher(folder: Path, report: dict) -> dict:
    """What reports and files say of the teacher; None where a member's run is not there."""
    teacher = report["teacher"]
    runs = [member_folder(folder, member) for member in teacher["members"]]
    file_bytes = None
    ece = None
    if all(runs):
        file_bytes = sum(_model_bytes(run) for run in runs)
        if len(runs) == 1:
            ece = _ece(reports.read(runs[0]))
    return {
        "name": teacher["name"],
        "file_bytes": file_bytes,
        "test_accuracy": teacher["test_accuracy"],
        "ece": ece,
    }


def _known_of_student(folder: Path, report: dict) -> dict:
    return {
        "name": report["student"]["name"],
        "file_bytes": _model_bytes(folder),
        "test_accuracy": report["results"]["best"]["test_accuracy"],
        "ece": _ece(report),
    }


def _model_bytes(run: Path) -> int:
    return RunPaths(run).model.stat().st_size


def _ece(report: dict) -> float:
    return report["evidence"]["calibration"]["before"]["ece"]


def _ratio(student, teacher) -> float | None:
    return student / teacher if student is not None and teacher else None


def member_folder(folder: Path, member: dict) -> Path | None:
    """The run of one of a report's `members`.

    None where it is not there any more, or does not hold the weights that taught.
    """
    run = out_of(folder.resolve()) / member["source"]
    if not RunPaths(run).finished:
        return None
    return run if reports.read(run)["student"]["weights_hash"] == member["hash"] else None


def gmac(network: Classifier, size: int) -> float:
    """10^9 multiply-accumulates of one image's forward pass.

    Half of what torch's own counter calls FLOPs.
    """
    network.module.eval()
    image = torch.zeros(1, 3, size, size, device=network.mean.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return counter.get_total_flops() / 2 / 1e9


def latency(
    networks: dict[str, list[Classifier]], size: int, batch: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of a float32 forward pass of all networks of a side.

    The sides take turns, so that a busy machine slows both alike.
    """
    images = torch.rand(batch, 3, size, size, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    seconds = {}
    for side, group in networks.items():
        seconds[side] = []
        for network in group:
            network.module.eval()
    with torch.inference_mode():
        for repeat in range(REPEATS + WARM_UP):
            for side, group in networks.items():
                _wait(device)
                start = time.perf_counter()
                for network in group:
                    network(images)
                _wait(device)
                if repeat >= WARM_UP:
                    seconds[side].append(time.perf_counter() - start)
    return {side: float(np.median(values)) for side, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def text(card: dict) -> str:
    """The card as Markdown, with a sentence where the student is the larger network."""
    teacher = card["teacher"]
    student = card["student"]
    how = f"{card['image_size']} px, {card['device']}, {card['threads']} threads, float32"
    header = [how, f"{teacher['name']} (teacher)", f"{student['name']} (student)"]
    rows = []
    for key, caption, factor, form in ROWS:
        cells = [_number(side[key], factor, form) for side in (teacher, student)]
        rows.append([caption, *cells, _number(card["ratios"][key], 1, ".2f")])
    lines = [
        *table([*header, "student / teacher"], rows),
        "",
        _comparison(card["ratios"]),
        (
            "GMAC: half of the FLOPs that torch's counter reports. Latency: median of "
            f"{card['repeats']} repeats in turns, preprocessing not included."
        ),
    ]
    return "\n".join(lines)


def _number(value: float | None, factor: float, form: str) -> str:
    return UNKNOWN if value is None else format(value * factor, form)


def _comparison(ratios: dict) -> str:
    """Which of the two is the larger network."""
    captions = {
        "parameters": "parameters",
        "gmac": "arithmetic",
        "latency_1": "time for one image",
    }
    larger = [caption for key, caption in captions.items() if ratios[key] > 1]
    if larger:
        return f"The student is the LARGER network in {', '.join(larger)}."
    return "The student is the smaller network in parameters, arithmetic and time for one image."
