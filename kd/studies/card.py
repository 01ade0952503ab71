"""Teacher and student on one card: size, arithmetic, latency, accuracy, calibration, and what each
is of the other.
"""

import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from kd import models
from kd.models import Classifier
from kd.reports import report as reports
from kd.system.console import log
from kd.system.devices import pick_device
from kd.system.errors import Problem
from kd.system.files import write_json

SCHEMA_VERSION = 1
REPEATS = 15
BATCHES = (1, 32)
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
    """Print a distilled run's card and write it to card.json in its folder.

    Raises Problem for a run without a teacher.
    """
    report, device = reports.read(folder), pick_device(device_name)
    teacher = report["teacher"]
    if teacher is None or not teacher["members"]:
        raise Problem(
            f"run '{folder}' in --card: was trained without a teacher that is a network; give the"
            " folder of another"
        )
    size, classes = report["data"]["image_size"], tuple(report["data"]["classes"])
    architectures = {
        "teacher": [member["architecture"] for member in teacher["members"]],
        "student": [report["student"]["architecture"]],
    }
    networks = {
        side: [models.build(name, classes).to(device) for name in names]
        for side, names in architectures.items()
    }
    sides = {
        name: {
            "parameters": sum(models.parameters(network.module) for network in group),
            "gmac": sum(gmac(network, size) for network in group),
        }
        for name, group in networks.items()
    }
    for batch in BATCHES:
        for name, seconds in latency(networks, size, batch, device).items():
            sides[name][f"latency_{batch}"] = seconds
    found = [member_folder(folder, member) for member in teacher["members"]]
    known = (
        reports.read(found[0])["evidence"]["calibration"]["before"]["ece"]
        if len(found) == 1 and found[0]
        else None
    )
    size_of = sum((one / "model.pt").stat().st_size for one in found) if all(found) else None
    sides["teacher"] |= {
        "name": teacher["name"],
        "file_bytes": size_of,
        "test_accuracy": teacher["test_accuracy"],
        "ece": known,
    }
    sides["student"] |= {
        "name": report["student"]["name"],
        "file_bytes": (folder / "model.pt").stat().st_size,
        "test_accuracy": report["results"]["best"]["test_accuracy"],
        "ece": report["evidence"]["calibration"]["before"]["ece"],
    }
    card = {
        "schema_version": SCHEMA_VERSION,
        "run": str(folder),
        "image_size": size,
        "device": device.type,
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        **sides,
        "ratios": {key: _ratio(sides["student"][key], sides["teacher"][key]) for key, *_ in ROWS},
    }
    write_json(folder / "card.json", card)
    log(text(card))
    log(f"written: {folder}/card.json")
    return card


def member_folder(folder: Path, teacher: dict) -> Path | None:
    """The run of one of the report's `members` where it lies and holds the weights that taught.

    A run is OUT/DATA/MODE/PAIR/seedN.
    """
    found = (
        folder.resolve().parents[3] / teacher["source"]
        if len(folder.resolve().parents) > 3
        else None
    )
    if found is None or not (found / "report.json").is_file():
        return None
    return found if reports.read(found)["student"]["weights_hash"] == teacher["hash"] else None


def gmac(network: Classifier, size: int) -> float:
    """10^9 multiply-accumulates of one image's forward pass: half of what torch's own counter calls
    FLOPs.
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
    images = torch.rand(batch, 3, size, size, device=device).contiguous(
        memory_format=torch.channels_last
    )
    seconds = {name: [] for name in networks}
    for network in (one for group in networks.values() for one in group):
        network.module.eval()
    with torch.inference_mode():
        for repeat in range(REPEATS + 2):  # two to warm up
            for name, group in networks.items():
                _wait(device)
                begun = time.perf_counter()
                for network in group:
                    network(images)
                _wait(device)
                seconds[name] += [time.perf_counter() - begun] if repeat >= 2 else []
    return {name: float(np.median(values)) for name, values in seconds.items()}


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _ratio(student, teacher) -> float | None:
    return student / teacher if student is not None and teacher else None


def text(card: dict) -> str:
    """The card as Markdown, with a sentence where the student is the larger network."""
    teacher, student = card["teacher"], card["student"]
    lines = [
        (
            f"| {card['image_size']} px, {card['device']}, {card['threads']} threads, float32 |"
            f" {teacher['name']} (teacher) | {student['name']} (student) | student / teacher |"
        ),
        "|---|---|---|---|",
    ]
    for key, caption, factor, form in ROWS:
        cells = [
            format(side[key] * factor, form) if side[key] is not None else "unknown"
            for side in (teacher, student)
        ]
        ratio = card["ratios"][key]
        lines.append(
            f"| {caption} | {' | '.join(cells)} |"
            f" {'unknown' if ratio is None else format(ratio, '.2f')} |"
        )
    larger = [
        word
        for key, word in (
            ("parameters", "parameters"),
            ("gmac", "arithmetic"),
            ("latency_1", "time for one image"),
        )
        if card["ratios"][key] > 1
    ]
    lines += [
        "",
        (
            f"The student is the LARGER network in {', '.join(larger)}."
            if larger
            else (
                "The student is the smaller network in parameters, arithmetic and time for one"
                " image."
            )
        ),
        (
            "GMAC: half of the FLOPs that torch's counter reports. Latency: median of "
            f"{card['repeats']} repeats in turns, preprocessing not included."
        ),
    ]
    return "\n".join(lines)
