"""The folder of an export: complete and verified, or not there.

Files are written to a folder beside it, which takes its place when all of them are verified.
"""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from kd.config.layout import RunPaths
from kd.system.errors import Problem, first_ten
from kd.system.files import cannot_write, make_folder, read_json, replacing
from kd.system.locks import exclusive_lock

PREPROCESSING = "preprocessing.json"
VERIFICATION = "verification.json"
SCRIPT = "predict.py"
FILES = (
    *("model.onnx", "model.pt2", "model.int8.onnx", PREPROCESSING, VERIFICATION, SCRIPT),
    *("card.md", "card.json"),
)


@contextlib.contextmanager
def new_export(run: RunPaths, weights: str) -> Iterator[Path]:
    """Yield an empty folder that becomes the export of a run when the block ends without an error.

    An earlier export of the same weights is then replaced, and otherwise left as it is. Raises
    Problem if it is of other weights or contains other files, (74) if the folder of the run cannot
    be written, and (75) if another process is using it.
    """
    with exclusive_lock(run.path):
        unfinished = run.path / f"{run.export.name}.unfinished"
        previous = run.path / f"{run.export.name}.previous"
        _recover(run.export, previous)
        _check_replaceable(run.export, weights)
        try:
            shutil.rmtree(unfinished, ignore_errors=True)  # of an export that was killed
            yield make_folder(unfinished)
            _publish(unfinished, run.export, previous)
        finally:
            shutil.rmtree(unfinished, ignore_errors=True)


def _publish(unfinished: Path, export: Path, previous: Path) -> None:
    """Let a complete folder take the place of an export."""
    try:
        if export.exists():
            os.replace(export, previous)
        os.replace(unfinished, export)
    except OSError as error:
        raise cannot_write(export, error) from None
    shutil.rmtree(previous, ignore_errors=True)


def _recover(export: Path, previous: Path) -> None:
    """Undo or complete the replacement of an export that was killed between two renames."""
    if previous.exists() and not export.exists():
        os.replace(previous, export)
    shutil.rmtree(previous, ignore_errors=True)


def _check_replaceable(export: Path, weights: str) -> None:
    """Raise Problem unless a folder does not exist or is an export of the same weights."""
    if not os.path.lexists(export):
        return
    cure = "Move it or delete it, then run the same command again."
    if not export.is_dir() or not (export / PREPROCESSING).is_file():
        raise Problem(f"'{export}' exists already and is no export of this program. {cure}")
    unknown = sorted({file.name for file in export.iterdir()} - set(FILES))
    if unknown:
        raise Problem(
            f"'{export}' contains files that are not of the export: {first_ten(unknown)}. {cure}"
        )
    network = read_json(export / PREPROCESSING).get("network")
    found = network.get("weights") if isinstance(network, dict) else None
    if found != weights:
        raise Problem(
            f"'{export}' is the export of other weights ({found}) than those of the run"
            f" ({weights}). {cure}"
        )


def write_bytes(file: Path, content: bytes) -> None:
    """Write a file atomically. Raises Problem (74) if that fails."""
    with replacing(file) as temporary:
        temporary.write_bytes(content)
