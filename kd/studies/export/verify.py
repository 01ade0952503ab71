"""The check of exported files: each predicts the whole test split again and is timed.

Beside them are the same figures of model.pt and, if there is one, of the teacher.
"""

import functools
import hashlib
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field

import numpy as np
import torch

from kd import models
from kd.models import Classifier
from kd.reports.calibration import probabilities
from kd.reports.statistics import estimate, pair
from kd.studies.export.onnx_file import ONNX, run_onnx
from kd.studies.timing import spread, take_turns
from kd.system.errors import FAULT, Problem
from kd.system.markdown import table

TOLERANCE = 1e-5  # of a probability, between model.pt and its exports in float
SIZES = (1, 32)  # images in a batch, for latencies
_LATENCIES = ("latency_1", "latency_32")
BATCH = 64

# uint8 [N, C, S, S] -> probabilities [N, K]
Run = Callable[[np.ndarray], np.ndarray]


@dataclass
class Row:
    """What was found out about a file.

    file                model.onnx, ..., model.pt or `teacher`
    bytes, sha256       of the file; None where they are not known
    accuracy            on the test split
    largest_difference  of a probability from that of model.pt; None for the teacher
    equal_answers       share of the test images with the class that model.pt predicts
    latency_1, latency_32  {threads: seconds of a batch of 1 or 32 images: median, low, high,
                           repeats; of_onnx: median, low, high of the ratio to model.onnx in the
                           same turn}; low and high are quartiles
    """

    file: str
    bytes: int | None
    sha256: str | None
    accuracy: float | None
    largest_difference: float | None
    equal_answers: float | None
    latency_1: dict[int, dict] = field(default_factory=dict)
    latency_32: dict[int, dict] = field(default_factory=dict)

    def as_plain(self) -> dict:
        """Return the row as plain values for JSON, whose keys are texts."""
        plain = asdict(self)
        for key in _LATENCIES:
            plain[key] = {str(threads): one for threads, one in plain[key].items()}
        return plain


@dataclass(frozen=True)
class Truth:
    """The images that all files predict, and what model.pt says of them.

    images         uint8 [N, C, S, S]; a memory map need not fit into memory
    labels         [N]
    patients       the patient of each image [N], or what stands for an unknown one
    probabilities  of model.pt, float64 [N, K]
    """

    images: "Images"
    labels: np.ndarray
    patients: np.ndarray
    probabilities: np.ndarray

    @property
    def right(self) -> np.ndarray:
        """Whether model.pt classifies each image correctly: bool [N]."""
        return self.probabilities.argmax(1) == self.labels


@dataclass(frozen=True)
class Images:
    """Some rows of a store."""

    store: object
    rows: np.ndarray

    def batches(self) -> Iterator[np.ndarray]:
        """Yield all images in batches: uint8 [B, C, S, S]."""
        for start in range(0, len(self.rows), BATCH):
            yield self.store.gather(self.rows[start : start + BATCH]).numpy()


def answers(run: Run, images: Images) -> np.ndarray:
    """Return the probabilities of all images: [N, K]."""
    return np.concatenate([run(batch) for batch in images.batches()])


def run_model(network: Classifier, temperature: float) -> Run:
    """Return the function of a network on the CPU, as `evaluate.py` computes its probabilities."""
    network.to(torch.device("cpu")).module.eval()

    @torch.inference_mode()
    def run(images: np.ndarray) -> np.ndarray:
        ready = torch.from_numpy(images).to(torch.float32).div_(255).expand(-1, 3, -1, -1)
        return probabilities(network(ready).numpy(), temperature)

    return run


def row_of(file: str, content: bytes, found: np.ndarray, truth: Truth) -> Row:
    """Return the row of a file, without latencies. found [N, K]: its probabilities."""
    return Row(
        file=file,
        bytes=len(content),
        sha256=hashlib.sha256(content).hexdigest(),
        accuracy=float((found.argmax(1) == truth.labels).mean()),
        largest_difference=float(np.abs(found - truth.probabilities).max()),
        equal_answers=float((found.argmax(1) == truth.probabilities.argmax(1)).mean()),
    )


def check_float(row: Row) -> None:
    """Raise Problem (1) if a file in float does not have the probabilities of model.pt."""
    if not row.largest_difference <= TOLERANCE:  # also if it is NaN
        raise Problem(
            f"The exported {row.file} differs from model.pt by {row.largest_difference:.2g} in a"
            f" probability of the test split, more than {TOLERANCE:g}; it has an accuracy of"
            f" {row.accuracy:.4f} and {row.equal_answers:.2%} equal answers. Nothing was exported."
            " Use model.pt, and report this fault.",
            FAULT,
        )


def minus_float(found: np.ndarray, truth: Truth) -> dict:
    """Return the difference in accuracy from model.pt, with a 95 % interval over patients.

    The interval is None if there is only one patient. found [N, K].
    """
    right = found.argmax(1) == truth.labels
    compared = pair({0: right}, {0: truth.right}, truth.patients)
    if compared is None:
        mean = float(right.mean() - truth.right.mean())
        return {"mean": mean, "low": None, "high": None, "reason": "only one patient"}
    low, high = estimate(compared).interval
    return {"mean": compared.mean, "low": low, "high": high, "reason": None}


def all_threads() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def time_rows(
    rows: dict[str, Row],
    onnx: dict[str, bytes],
    torch_runs: dict[str, Run],
    shapes: dict[str, tuple[int, int, int]],
) -> None:
    """Add the latencies of all rows, which take turns, on one thread and on all threads.

    A latency includes everything from the uint8 image in memory to its probabilities.

    onnx        the content of each file that onnxruntime runs, by row
    torch_runs  the functions of the other rows
    shapes      (C, S, S) of the images of each row
    """
    before = torch.get_num_threads()
    try:
        for threads in sorted({1, all_threads()}):
            torch.set_num_threads(threads)
            runs = torch_runs | {name: run_onnx(content, threads) for name, content in onnx.items()}
            for size in SIZES:
                calls = {}
                for name in rows:
                    images = np.random.default_rng(0).integers(
                        0, 256, (size, *shapes[name]), dtype=np.uint8
                    )
                    calls[name] = functools.partial(runs[name], images)
                for name, latency in latencies(take_turns(calls)).items():
                    getattr(rows[name], f"latency_{size}")[threads] = latency
    finally:
        torch.set_num_threads(before)


def latencies(seconds: dict[str, list[float]]) -> dict[str, dict]:
    """Return the latency of each file, as in Row, from its seconds in each turn.

    Ratios are taken within a turn, in which the machine is about equally busy for all files.
    """
    found = {}
    for name, own in seconds.items():
        ratios = spread([one / onnx for one, onnx in zip(own, seconds[ONNX], strict=True)])
        del ratios["repeats"]
        found[name] = spread(own) | {"of_onnx": ratios}
    return found


def random_networks(names: list[str], classes: tuple[str, ...]) -> Run:
    """Return a function that runs networks with random weights one after the other.

    Their latency is that of the trained networks.
    """
    runs = [run_model(models.build(name, classes), 1.0) for name in names]

    def run(images: np.ndarray) -> None:
        for one in runs:
            one(images)

    return run


def text(rows: list[dict]) -> str:
    """Format rows as two tables in Markdown: the files, and how fast they are.

    The second one has latencies in milliseconds and their ratios to model.onnx: median [quartiles].
    """
    header = ["file", "MB", "accuracy", "largest difference", "equal answers"]
    lines = []
    for row in rows:
        cells = [
            row["file"],
            _number(row["bytes"], ".1f", 1e-6),
            _number(row["accuracy"], ".4f"),
            _number(row["largest_difference"], ".1e"),
            _number(row["equal_answers"], ".4f"),
        ]
        lines.append(cells)
    return "\n".join([*table(header, lines), "", *_latency_lines(rows)])


def _latency_lines(rows: list[dict]) -> list[str]:
    """Return the lines of the table of latencies, and what they are."""
    header, lines = ["file"], [[row["file"]] for row in rows]
    for size in SIZES:
        for threads in rows[0]["latency_1"]:
            images = "1 image" if size == 1 else f"{size} images"
            header.append(f"{images}, {threads} {'thread' if threads == '1' else 'threads'} (ms)")
            header.append(f"of {ONNX}")
            for row, cells in zip(rows, lines, strict=True):
                one = row[f"latency_{size}"][threads]
                cells += [_quartiles(one, 1e3), _quartiles(one["of_onnx"])]
    counts = {one["repeats"] for row in rows for key in _LATENCIES for one in row[key].values()}
    repeats = " to ".join(str(count) for count in sorted({min(counts), max(counts)}))
    note = f"Latencies: median [quartiles] of {repeats} alternating repeats on the CPU."
    return [*table(header, lines), "", note]


def _quartiles(one: dict, factor: float = 1) -> str:
    low, median, high = (f"{factor * one[key]:.3g}" for key in ("low", "median", "high"))
    return f"{median} [{low}, {high}]"


def _number(value: float | None, form: str, factor: float = 1) -> str:
    return "unknown" if value is None else format(value * factor, form)
