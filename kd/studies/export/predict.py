"""Predict the images of a folder with an exported network: the main part of `predict.py`.

The script is written from the source of this module and of those that it imports
(`kd.studies.export.script`). Decoding, ranges, crop and resize are therefore those of training.
"""

import argparse
import csv
import hashlib
import json
import os
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from kd.data.files.find import find_images, runs_among
from kd.data.images.common_range import Extremes, are_misfits, common_range, exceptional, extremes
from kd.data.images.decoded import INTEGER
from kd.data.images.pixels import (
    Range,
    RangeNeeded,
    Recipe,
    file_bytes,
    range_of_bits,
    square,
    why_unreadable,
)
from kd.studies.export.stand_ins import Problem, first_names
from kd.system.messages import bounded, first_line, printable

ABOUT = "preprocessing.json"
MODELS = {"float": "model.onnx", "int8": "model.int8.onnx"}
BATCH = 32
_INCOMPLETE = 2  # exit code if images cannot be read
# The threshold is the probability of an image, which may be this much lower in an exported file.
_ROUNDING = 1e-5
_NEEDED = ("ranges", "image_size", "resize", "channels", "crop", "classes", "files", "input")


@dataclass
class Answers:
    """What is known about the images of a folder, by path.

    probabilities  float32 [K]
    flags          as of `to_8_bits`, of the images with probabilities
    unreadable     why an image has no probabilities
    """

    probabilities: dict[str, np.ndarray] = field(default_factory=dict)
    flags: dict[str, int] = field(default_factory=dict)
    unreadable: dict[str, str] = field(default_factory=dict)


def options_of(argv: list[str] | None) -> argparse.Namespace:
    """Return the options of the command line."""
    parser = argparse.ArgumentParser(
        description="Predict all images of a folder with the network beside this script.",
        epilog="Exit codes: 0 done; 2 an error, or images that cannot be read: they are listed in"
        " unreadable.csv, and all others are predicted. Not for diagnosis.",
    )
    parser.add_argument("folder", type=Path, help="folder with images, in any tree of folders")
    parser.add_argument(
        "--out", type=Path, default=Path("predictions.csv"), help="CSV file to write (%(default)s)"
    )
    parser.add_argument(
        "--model", choices=MODELS, default="float", help="float (default) or int8, which is smaller"
    )
    parser.add_argument(
        "--bits",
        type=int,
        choices=range(8, 33),
        metavar="BITS",
        help="bits of grey values above 8 bits, if they are not those of the training images",
    )
    return parser.parse_args(argv)


def main(argv: list[str] | None = None, here: Path | None = None) -> int:
    """Predict the images of a folder and return the exit code.

    here  the folder of the exported files; by default that of the script
    """
    options = options_of(argv)
    try:
        return predict_folder(options, here or Path(__file__).resolve().parent)
    except (Problem, OSError) as error:
        print(f"error: {bounded(printable(error))}", file=sys.stderr)
        return 2


def predict_folder(options: argparse.Namespace, here: Path) -> int:
    """Predict the images of a folder, write what was found and return the exit code.

    Raises Problem, before anything is written, if the exported files are incomplete or changed, if
    the folder has no image that can be read, and if the range of its values is another one.
    """
    about = read_about(here)
    unreadable_file = options.out.with_name("unreadable.csv")
    for file in (options.out, unreadable_file):
        if file.exists():
            raise Problem(
                f"'{file}' exists already. Move it, or set a file in another folder with --out."
            )
    check_writable(options.out)
    paths, lost = images_in(options.folder)
    answers = answers_for(
        options.folder, paths, recipe_of(about, options.bits), run_of(here, about, options.model)
    )
    answers.unreadable |= lost
    refuse_misfits(answers)
    if not answers.probabilities:
        faults = [f"{path} ({why})" for path, why in sorted(answers.unreadable.items())]
        why = f" can be read: {first_names(faults)}" if faults else ": it contains none"
        raise Problem(f"No image in '{options.folder}'{why}. Check the folder.")
    write_csv(options.out, *prediction_rows(answers, about))
    print_summary(answers, about, options.out)
    if not answers.unreadable:
        return 0
    faults = sorted(answers.unreadable.items())
    write_csv(unreadable_file, ["path", "reason"], [list(map(printable, one)) for one in faults])
    for path, why in faults:
        print(printable(f"unreadable: {path} ({why})"), file=sys.stderr)
    return _INCOMPLETE


def read_about(here: Path) -> dict:
    """Return the content of preprocessing.json. Raises Problem if there is none."""
    try:
        about = json.loads((here / ABOUT).read_bytes())
        missing = [key for key in _NEEDED if key not in about]
        if missing or not isinstance(about, dict):
            raise ValueError(f"it has no {', '.join(missing) or 'values'}")
    except (OSError, ValueError, TypeError) as error:
        raise Problem(
            f"'{here / ABOUT}' cannot be read ({first_line(error)}). Copy all exported files again,"
            " to the folder of predict.py."
        ) from None
    return about


def check_writable(file: Path) -> None:
    """Raise Problem if a file cannot be written, before any image is predicted."""
    try:
        write_csv(file, [], [])
        file.unlink()
    except OSError as error:
        raise Problem(
            f"--out {file} cannot be written ({error.strerror}). Make its folder, or set a file in"
            " another one."
        ) from None


def recipe_of(about: dict, bits: int | None) -> Recipe:
    """Return how images are prepared for the network.

    bits  of integers, if their range is not that of the training images
    """
    ranges = {kind: Range(*ends) for kind, ends in about["ranges"].items()}
    # The images are others, so that values outside the range are clipped, not refused.
    ranges = {kind: one._replace(rule="as in training") for kind, one in ranges.items()}
    if bits is not None:
        ranges[INTEGER] = range_of_bits(bits)
    return Recipe(about["image_size"], about["resize"], about["channels"], about["crop"], ranges)


def run_of(here: Path, about: dict, which: str):
    """Return the function of a model: uint8 [N, C, S, S] -> probabilities, float32 [N, K].

    Raises Problem if the file is missing or not the one that was exported, and if onnxruntime is
    missing.
    """
    file = here / MODELS[which]
    if file.name not in about["files"]:
        raise Problem(
            f"This export has no {file.name}; verification.json says why. Remove --model {which}."
        )
    try:
        content = file.read_bytes()
    except OSError as error:
        raise Problem(f"'{file}' cannot be read ({error.strerror}). Copy it here.") from None
    if hashlib.sha256(content).hexdigest() != about["files"][file.name].get("sha256"):
        raise Problem(
            f"'{file}' is not the file that was exported: its SHA-256 is not that in {ABOUT}."
            " Copy both files again."
        )
    try:
        import onnxruntime
    except ImportError:
        raise Problem("onnxruntime is missing. Run: python -m pip install onnxruntime") from None
    session = onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])

    def run(images: np.ndarray) -> np.ndarray:
        [probabilities] = session.run(None, {about["input"]["name"]: images})
        return probabilities

    return run


def images_in(root: Path) -> tuple[list[str], dict[str, str]]:
    """Return (the paths of all images below a folder, sorted; {path: why it cannot be read}).

    Figures in the folders of training runs are left out.
    """
    if not root.is_dir():
        raise Problem(f"'{root}' is not a folder. Check the path.")
    lost = {}
    paths = find_images(root, lost).paths
    inside = tuple("" if run == "." else f"{run}/" for run in runs_among(root, paths))
    return sorted(path for path in paths if not inside or not path.startswith(inside)), lost


def answers_for(root: Path, paths: list[str], recipe: Recipe, run) -> Answers:
    """Return the answers for images, whose paths are relative to `root`.

    If images have more than 8 bits and no range is known for their kind of values, it is measured
    over all images of the folder.

    run  uint8 [N, C, S, S] -> probabilities, float32 [N, K]
    """
    answers = Answers()
    waiting = predict_images(root, paths, recipe, run, answers)
    if waiting:
        measured = measured_ranges(root, paths)
        recipe = replace(recipe, ranges=measured | recipe.ranges)
        for path in predict_images(root, waiting, recipe, run, answers):
            answers.unreadable[path] = "its range of values could not be measured"
    return answers


def predict_images(
    root: Path, paths: list[str], recipe: Recipe, run, answers: Answers
) -> list[str]:
    """Predict images, add the answers, and return the paths of those whose range is not known."""

    def decoded(path: str):
        try:
            return square(file_bytes(root / path), recipe)
        except MemoryError:
            raise
        except Exception as error:  # Pillow raises exceptions of any type for bad files
            return error

    waiting = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for start in range(0, len(paths), BATCH):
            chunk = paths[start : start + BATCH]
            batch = {}
            for path, found in zip(chunk, threads.map(decoded, chunk), strict=True):
                if isinstance(found, RangeNeeded):
                    waiting.append(path)
                elif isinstance(found, Exception):
                    answers.unreadable[path] = why_unreadable(found)
                else:
                    batch[path], answers.flags[path] = found
            if batch:
                answers.probabilities |= zip(batch, run(np.stack(list(batch.values()))))
    return waiting


def measured_ranges(root: Path, paths: list[str]) -> dict[str, Range]:
    """Return the range of each kind of values with more than 8 bits: {kind: Range}."""
    found = []
    with ThreadPoolExecutor(os.cpu_count()) as threads:
        for path, ends in zip(paths, threads.map(extremes, (root / path for path in paths))):
            if ends is not None:
                found.append(Extremes(*ends, path))
    kinds = sorted({one.kind for one in found})
    return {kind: common_range(found, kind, "measured over these images") for kind in kinds}


def refuse_misfits(answers: Answers) -> None:
    """Take back the answers for a few images whose values do not fit the range.

    Raises Problem if these are many: the range is then that of other images.
    """
    paths = list(answers.flags)
    flags = np.array(list(answers.flags.values()), dtype=np.uint8)
    for place in np.flatnonzero(exceptional(flags)):
        answers.unreadable[paths[place]] = "many values outside the range of the training images"
        del answers.flags[paths[place]], answers.probabilities[paths[place]]
    if are_misfits(np.array(list(answers.flags.values()), dtype=np.uint8)):
        raise Problem(
            "Many images have values outside the range of the training images. Set their number of"
            " bits with --bits, or convert them so that black and white have the same values."
        )


def prediction_rows(answers: Answers, about: dict) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of predictions.csv, sorted by path.

    With an operating point, the column `positive` says whether the probability of the positive
    classes reaches its threshold.
    """
    names = list(map(printable, about["classes"]))
    point = about["operating_point"]
    has_point = point is not None and point["threshold"] is not None
    header = ["path", "predicted", *["positive"] * has_point]
    rows = []
    for path, likely in sorted(answers.probabilities.items()):
        row = [printable(path), names[int(likely.argmax())]]
        if has_point:
            positive = likely[point["classes"]].sum(dtype=np.float64)
            row.append(str(int(positive >= point["threshold"] - _ROUNDING)))
        rows.append([*row, *(f"{value:.6g}" for value in likely)])
    return [*header, *(f"probability_{name}" for name in names)], rows


def print_summary(answers: Answers, about: dict, file: Path) -> None:
    """Print how often each class was predicted, and where the predictions are."""
    counts = Counter(int(likely.argmax()) for likely in answers.probabilities.values())
    listed = [f"{name} {counts[place]}" for place, name in enumerate(about["classes"])]
    print(printable("predicted: " + ", ".join(listed)))
    if about["temperature"] is None:
        print("note: the probabilities are not calibrated, because no temperature was fitted")
    print(printable(f"written: {file}"))


def write_csv(file: Path, header: list[str], rows: list[list[str]]) -> None:
    """Write a CSV file: complete, or not at all."""
    temporary = file.with_name(f".{file.name}.tmp")
    try:
        with open(temporary, "w", encoding="utf-8", newline="") as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(header)
            writer.writerows(rows)
        os.replace(temporary, file)
    finally:
        temporary.unlink(missing_ok=True)
