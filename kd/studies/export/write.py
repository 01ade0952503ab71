"""Write the export of a finished run, from its model.pt to verified files."""

from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch

from kd.config.evaluate_settings import Judging
from kd.config.layout import RunPaths
from kd.data.images.dicom_head import HEAD_BYTES, is_dicom
from kd.data.images.pixels import file_bytes
from kd.reports.positive import classes_of
from kd.studies import model_card
from kd.studies.export import int8
from kd.studies.export.folder import (
    PREPROCESSING,
    SCRIPT,
    VERIFICATION,
    new_export,
    write_bytes,
)
from kd.studies.export.graph import INPUT, OUTPUT, exported
from kd.studies.export.int8 import Choice, choose_int8
from kd.studies.export.onnx_file import ONNX, OPSET, require_packages, run_onnx, to_onnx
from kd.studies.export.quantised import needs_reduced_range
from kd.studies.export.script import predict_script
from kd.studies.export.source import Source, open_source, teacher_of, teacher_row
from kd.studies.export.torch_file import run_pt2, to_pt2
from kd.studies.export.verify import (
    TOLERANCE,
    Images,
    Row,
    Run,
    Truth,
    all_threads,
    answers,
    check_float,
    random_networks,
    row_of,
    run_model,
    text,
    time_rows,
)
from kd.studies.images import check_finite
from kd.studies.model_card import Licences
from kd.system.console import log
from kd.system.errors import FAULT, Problem
from kd.system.files import write_json, write_text
from kd.teachers import model_file

SCHEMA_VERSION = 1
PT2 = "model.pt2"
_SCRIPT_CHECKS = 64  # test images that predict.py decodes again
_PACKAGES = ("torch", "timm", "onnx", "onnxscript", "onnxruntime", "numpy", "pillow")


def write_export(run: Path, how: Judging, licences: Licences) -> dict:
    """Export a finished run to RUN/export, verify every file, print the table and return it.

    Raises Problem if the run is not finished or its images are gone, if the network cannot be
    exported, and (1) if an exported file in float does not predict what model.pt predicts: nothing
    is left in RUN/export then, except an earlier export.
    """
    _refuse_misfits(how)
    require_packages()
    source = open_source(run, how)
    with new_export(source.paths, source.model.hash) as folder:
        files = _write_graphs(folder, source)
        truth = _truth(source)
        rows = _float_rows(source, files, truth)
        choice = choose_int8(source, truth, files[ONNX], all_threads())
        if choice.kept is not None:
            files[int8.FILE] = choice.kept.content
            write_bytes(folder / int8.FILE, choice.kept.content)
            rows[int8.FILE] = choice.kept.row
        _time(source, files, rows, truth)
        about = _preprocessing(source, rows)
        write_json(folder / PREPROCESSING, about)
        write_text(folder / SCRIPT, predict_script())
        compared = _check_script(folder / SCRIPT, source, about)
        result = _verification(source, truth, rows, choice, compared)
        write_json(folder / VERIFICATION, result)
        _write_card(folder, source, licences, rows)
    log(text(result["rows"]))
    log(int8.text(choice))
    log(_written_text(source, result))
    return result


def _write_card(folder: Path, source: Source, licences: Licences, rows: dict[str, Row]) -> None:
    """Write card.md and card.json of the run, with the files of the export."""
    files = [row.as_plain() for name, row in rows.items() if name in (ONNX, PT2, int8.FILE)]
    card = model_card.describe(source.paths.path, licences, files)
    write_json(folder / RunPaths(folder).card.name, card)
    write_text(folder / RunPaths(folder).card_text.name, model_card.text(card))


def _refuse_misfits(how: Judging) -> None:
    if how.dataset is not None:
        raise Problem(
            f"--dataset {how.dataset} cannot be combined with --export, which verifies the files on"
            " the run's own test split. Remove --dataset."
        )
    if how.device not in ("auto", "cpu"):
        raise Problem(
            f"--device {how.device} cannot be combined with --export, whose files are verified on"
            " the CPU. Remove --device."
        )


def _write_graphs(folder: Path, source: Source) -> dict[str, bytes]:
    """Write the files in float, and return the content of each as it is read back."""
    network = source.model.network
    program = exported(network, source.temperature or 1.0, source.shape)
    write_bytes(folder / ONNX, to_onnx(program, network))
    write_bytes(folder / PT2, to_pt2(program))
    return {name: (folder / name).read_bytes() for name in (ONNX, PT2)}


def _truth(source: Source) -> Truth:
    """Return the test images and the probabilities of model.pt, as `evaluate.py` computes them."""
    dataset = source.dataset
    rows = dataset.splits.test
    images = Images(dataset.store, rows)
    found = answers(_run_of(source), images)
    check_finite(found, source.paths.model)
    patients = np.array([dataset.index.unit(row) for row in rows])
    return Truth(images, dataset.index.labels[rows], patients, found)


def _run_of(source: Source) -> Run:
    """Return the function of model.pt, which is loaded again: it is adapted to the CPU."""
    network = model_file.load(source.paths.model).network
    return run_model(network, source.temperature or 1.0)


def _float_rows(source: Source, files: dict[str, bytes], truth: Truth) -> dict[str, Row]:
    """Return the rows of model.pt and the files in float. Raises Problem (1) if these differ."""
    content = source.paths.model.read_bytes()
    rows = {"model.pt": row_of("model.pt", content, truth.probabilities, truth)}
    runs = {ONNX: run_onnx(files[ONNX], all_threads()), PT2: run_pt2(files[PT2])}
    for name, run in runs.items():
        rows[name] = row_of(name, files[name], answers(run, truth.images), truth)
    for name in runs:
        check_float(rows[name])
    return rows


def _time(source: Source, files: dict[str, bytes], rows: dict[str, Row], truth: Truth) -> None:
    """Add the latencies of all rows, and the row of the teacher, if there is one."""
    onnx = {name: content for name, content in files.items() if name.endswith(".onnx")}
    runs = {"model.pt": _run_of(source), PT2: run_pt2(files[PT2])}
    shapes = dict.fromkeys(rows, source.shape)
    teacher = teacher_of(source)
    if teacher is not None:
        rows["teacher"] = teacher_row(source, truth)
        runs["teacher"] = random_networks(teacher.networks, source.classes)
        shapes["teacher"] = (source.shape[0], teacher.size, teacher.size)
    time_rows(rows, onnx, runs, shapes)


def _preprocessing(source: Source, rows: dict[str, Row]) -> dict:
    """Return the content of preprocessing.json: all that a program needs to use the files."""
    taken = source.model.about["input"]
    evidence = source.report["evidence"]
    point = evidence["operating_point"]
    if point is not None:
        positive = evidence["positive"]
        point = point | {"positive": positive, "classes": classes_of(positive, source.classes)}
    files = {}
    for name, row in rows.items():
        if name in (ONNX, PT2, int8.FILE):
            files[name] = {"bytes": row.bytes, "sha256": row.sha256}
    network = source.model.network
    return {
        "schema_version": SCHEMA_VERSION,
        "network": {
            "name": network.name,
            "architecture": network.architecture,
            "weights": source.model.hash,
        },
        "input": {"name": INPUT, "type": "uint8", "shape": ["batch", *source.shape]},
        "output": {"name": OUTPUT, "type": "float32", "shape": ["batch", len(source.classes)]},
        "opset": OPSET,
        "image_size": taken["image_size"],
        "channels": source.shape[0],
        "resize": taken["resize"],
        "filter": "bilinear",
        "crop": taken["crop"],
        "ranges": taken["ranges"],
        "mean": taken["mean"],
        "std": taken["std"],
        "in_graph": ["grey to RGB", "(image / 255 - mean) / std", "softmax(logits / temperature)"],
        "classes": list(source.classes),
        "temperature": source.temperature,
        "temperature_reason": evidence["calibration"]["reason"],
        "operating_point": point,
        "files": files,
        "versions": {name: version(name) for name in _PACKAGES},
    }


def _check_script(script: Path, source: Source, about: dict) -> int:
    """Decode the first test images with predict.py, and return their number.

    DICOM files and drawn images are not compared. Raises Problem (1) if a pixel differs.
    """
    dataset = source.dataset
    if dataset.index.root is None:
        return 0
    names = {"__name__": "predict"}
    exec(compile(script.read_text("utf-8"), SCRIPT, "exec"), names)
    compared = 0
    for row in dataset.splits.test[:_SCRIPT_CHECKS]:
        content = file_bytes(dataset.index.file(row))
        if is_dicom(content[:HEAD_BYTES]):
            continue
        image, _ = names["square"](content, names["recipe_of"](about, None))
        compared += 1
        if not np.array_equal(image, dataset.store.images[row]):
            raise Problem(
                f"{SCRIPT} prepares a test image in another way than this program. Nothing was"
                " exported. Report this fault.",
                FAULT,
            )
    return compared


def _verification(
    source: Source, truth: Truth, rows: dict[str, Row], choice: Choice, compared: int
) -> dict:
    """Return the content of verification.json."""
    data = source.report["data"]
    reported = source.report["results"]["best"]["test_accuracy"]
    return {
        "schema_version": SCHEMA_VERSION,
        "weights": source.model.hash,
        "opset": OPSET,
        "images": {
            "part": "test",
            "images": len(truth.labels),
            "patients": len(set(truth.patients.tolist())),
            "split_hash": data["split_hash"],
            "content_hash": data["content_hash"],
            "decoded_again_by_script": compared,
        },
        "reported_test_accuracy": reported,
        "float_tolerance": TOLERANCE,
        "rows": [row.as_plain() for row in rows.values()],
        "int8": choice.as_plain(),
        "machine": {
            "processor": torch.backends.cpu.get_cpu_capability(),
            "threads": sorted({1, all_threads()}),
            "needs_reduced_range": needs_reduced_range(),
            "versions": {name: version(name) for name in _PACKAGES},
        },
    }


def _written_text(source: Source, result: dict) -> str:
    """Return the last line: what was written, and how it was verified."""
    worst = max(row["largest_difference"] for row in result["rows"][1:3])
    return (
        f"written: {source.paths.export} ({ONNX} and {PT2} have the probabilities of model.pt to"
        f" {worst:.1e} on {result['images']['images']} test images)"
    )
