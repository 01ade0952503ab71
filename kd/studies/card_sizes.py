"""Size, arithmetic and latency of a run's network beside those of its teacher, for its card."""

import functools
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from kd import models
from kd.config.layout import RunPaths
from kd.config.settings import DistillSettings
from kd.models import Classifier
from kd.reports import report as reports
from kd.studies.modes import meaning_of
from kd.studies.networks import member_folder, members_of
from kd.studies.runs import read_settings
from kd.studies.timing import REPEATS, spread, take_turns
from kd.system.devices import pick_device
from kd.system.errors import counted
from kd.system.markdown import table
from kd.system.names import without_paths

BATCHES = (1, 32)
UNKNOWN = "unknown"
# key, caption, factor that converts to the caption's unit, number format
ROWS = (
    ("parameters", "parameters (M)", 1e-6, ".2f"),
    ("gmac", "GMAC per image", 1, ".3f"),
    ("file_bytes", "model file (MB)", 1e-6, ".1f"),
    ("latency_1", "latency, 1 image (ms)", 1e3, ".2f"),
    ("latency_32", "latency, 32 images (ms)", 1e3, ".1f"),
    ("test_accuracy", "test accuracy", 1, ".4f"),
    ("ece", "ECE (T = 1)", 1, ".4f"),
)


def measured_sizes(folder: Path, device_name: str) -> dict:
    """Return what a finished run's network and its teacher need, on a device.

    `student` and `teacher` each have `name`, `image_size`, `parameters`, `gmac`, `file_bytes`,
    `latency_1` and `latency_32` (seconds), `test_accuracy` and `ece`; `ratios` are student to
    teacher. Without a teacher that is a network, `teacher` and `ratios` are None. Raises Problem
    if the report or a device is not valid.
    """
    report = reports.read(folder)
    device = pick_device(device_name)
    networks = _networks(report, device)
    sizes = {"student": report["data"]["image_size"]}
    if "teacher" in networks:
        sizes["teacher"] = meaning_of(read_settings(folder, report, DistillSettings)).size
    sides = _measure(networks, sizes, device)
    sides["student"] |= _known_of_student(folder, report)
    ratios = None
    if "teacher" in sides:
        sides["teacher"] |= known_of_teacher(folder, report)
        ratios = {}
        for key, *_ in ROWS:
            ratios[key] = _ratio(sides["student"][key], sides["teacher"][key])
    return {
        "image_size": sizes["student"],
        "device": device.type,
        "threads": torch.get_num_threads(),
        "repeats": REPEATS,
        "teacher": sides.get("teacher"),
        "student": sides["student"],
        "ratios": ratios,
    }


def _networks(report: dict, device: torch.device) -> dict[str, list[Classifier]]:
    """Build the networks of both sides, of which there is one if no network taught.

    Their weights are random, as size and speed do not depend on them.
    """
    classes = tuple(report["data"]["classes"])
    architectures = {"student": [report["student"]["architecture"]]}
    teachers = [member["architecture"] for member in members_of(report)]
    if teachers:
        architectures["teacher"] = teachers
    networks = {}
    for side, names in architectures.items():
        networks[side] = [models.build(name, classes).to(device) for name in names]
    return networks


def _measure(
    networks: dict[str, list[Classifier]], sizes: dict[str, int], device: torch.device
) -> dict[str, dict]:
    """Return the image size, parameters, arithmetic and latencies of each side."""
    sides = {}
    for side, group in networks.items():
        sides[side] = {
            "image_size": sizes[side],
            "parameters": sum(models.parameters(network.module) for network in group),
            "gmac": sum(gmac(network, sizes[side]) for network in group),
        }
    for batch in BATCHES:
        for side, seconds in latency(networks, sizes, batch, device).items():
            sides[side][f"latency_{batch}"] = seconds
    return sides


def known_of_teacher(folder: Path, report: dict) -> dict:
    """Return what reports and files say about the teacher.

    File size and ECE are None if the run of a member is missing. With several members, the ECE is
    None too.
    """
    teacher = report["teacher"]
    runs = [member_folder(folder, member) for member in teacher["members"]]
    file_bytes = None
    ece = None
    if all(runs):
        file_bytes = sum(_model_bytes(run) for run in runs)
        if len(runs) == 1:
            ece = _ece(reports.read(runs[0]))
    return {
        "name": without_paths(teacher["name"]),
        "file_bytes": file_bytes,
        "test_accuracy": teacher["test_accuracy"],
        "ece": ece,
    }


def _known_of_student(folder: Path, report: dict) -> dict:
    return {
        "name": without_paths(report["student"]["name"]),
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


def gmac(network: Classifier, size: int) -> float:
    """Return the multiply-accumulates of one image's forward pass, in units of 10^9.

    This is half of what PyTorch's own counter calls FLOPs.
    """
    network.module.eval()
    image = torch.zeros(1, 3, size, size, device=network.mean.device)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        network(image)
    return counter.get_total_flops() / 2 / 1e9


def latency(
    networks: dict[str, list[Classifier]], sizes: dict[str, int], batch: int, device: torch.device
) -> dict[str, float]:
    """Return the median seconds of a float32 forward pass of all networks of each side.

    The sides take turns, so that a busy machine slows both equally.
    """
    calls = {}
    for side, group in networks.items():
        own = torch.rand(batch, 3, sizes[side], sizes[side], device=device)
        images = own.contiguous(memory_format=torch.channels_last)
        for network in group:
            network.module.eval()
        calls[side] = functools.partial(_call_all, group, images)
    with torch.inference_mode():
        seconds = take_turns(calls, functools.partial(_wait, device))
    return {side: spread(values)["median"] for side, values in seconds.items()}


def _call_all(networks: list[Classifier], images: torch.Tensor) -> None:
    for network in networks:
        network(images)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def sizes_text(card: dict) -> list[str]:
    """Format the sizes of a card as lines of Markdown, with a sentence on which network is larger.

    A card without sizes, as exported, has a sentence that says so.
    """
    if "student" not in card:
        return ["Size, arithmetic and latency were not measured for this card.", ""]
    lines = [*table(*sizes_table(card)), ""]
    if card["ratios"]:
        lines += [_comparison(card["ratios"]), ""]
    return [*lines, how_measured(card), ""]


def sizes_table(card: dict) -> tuple[list[str], list[list[str]]]:
    """Return header and rows of the sizes of a card; those of the teacher stand beside them."""
    teacher, student = card["teacher"], card["student"]
    sizes = f"{student['image_size']} px"
    if teacher and teacher["image_size"] != student["image_size"]:
        sizes = f"teacher {teacher['image_size']} px, student {sizes}"
    threads = counted(card["threads"], "thread", "threads")
    header = [f"{sizes}, {card['device']}, {threads}, float32"]
    sides = [student]
    if teacher:
        header += [f"{teacher['name']} (teacher)", f"{student['name']} (student)"]
        header.append("student / teacher")
        sides = [teacher, student]
    else:
        header.append(student["name"])
    rows = []
    for key, caption, factor, form in ROWS:
        cells = [_number(side[key], factor, form) for side in sides]
        if teacher:
            cells.append(_number(card["ratios"][key], 1, ".2f"))
        rows.append([caption, *cells])
    return header, rows


def how_measured(card: dict) -> str:
    """Return how the sizes of a card were measured, in two sentences."""
    return (
        "GMAC: half of the FLOPs reported by PyTorch's counter. Latency: median of"
        f" {card['repeats']} alternating repeats, without preprocessing."
    )


def _number(value: float | None, factor: float, form: str) -> str:
    return UNKNOWN if value is None else format(value * factor, form)


def _comparison(ratios: dict) -> str:
    """Name the quantities in which the student exceeds the teacher."""
    captions = {
        "parameters": "parameters",
        "gmac": "multiply-accumulates",
        "latency_1": "latency for one image",
    }
    larger = [caption for key, caption in captions.items() if ratios[key] > 1]
    if larger:
        return f"The student exceeds the teacher in {', '.join(larger)}."
    return (
        "The student does not exceed the teacher in parameters, multiply-accumulates or latency for"
        " one image."
    )
