"""Checkpoints: dictionaries of tensors that are read back before they replace an older file.

Every kind of damage raises the same error.
"""

import contextlib
import os
import re
import warnings
import zipfile
import zlib
from pathlib import Path

import torch

from kd.system.errors import BAD_CHECKPOINT, CANNOT_WRITE, Problem, is_out_of_memory
from kd.system.files import reason, replacing
from kd.system.messages import first_line

FORMAT = 1
CURE = "Use another file."
CURES = {  # files of a run, which the program itself has written
    "resume file": "Use --tag NAME to start a new run.",
    "model": "Restore it, or train again with --tag NAME.",
}
# Exceptions that zipfile raises for a file that is truncated or overwritten. RuntimeError includes
# NotImplementedError: overwritten flags look like encryption or an unknown compression, and zlib
# fails on data that were never compressed.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    OSError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
    zlib.error,
)
# Classes of values that training programs save beside the weights, such as the arguments of a
# command. `Ignored` takes their place, so nothing of these classes is created either.
_BESIDE_WEIGHTS = (
    "argparse.Namespace",
    "types.SimpleNamespace",
    "numpy.dtype",
    "numpy.ndarray",
    "numpy.core.multiarray.scalar",
    "numpy.core.multiarray._reconstruct",
    "numpy._core.multiarray.scalar",
    "numpy._core.multiarray._reconstruct",
    "pathlib.PosixPath",
    "pathlib.WindowsPath",
    "pathlib._local.PosixPath",
    "pathlib._local.WindowsPath",
)
# How torch names what it does not load: a global of the pickle, or the class of an object.
_NOT_ALLOWED = re.compile(r"GLOBAL (\S+)|<class '([^']+)'>")


class Ignored:
    """The place of a value in another program's file that has no use here, see `load`."""

    def __init__(self, *_):
        pass

    def __setstate__(self, state):
        pass


def fault(value, schema, where: str) -> str:
    """Describe how a nested value violates a schema; return an empty string if it does not.

    The description has no full stop, so that it can be embedded in a message.

    schema  a type, a tuple of types, or a dictionary of exactly the required keys, each with its
            own schema. Types must match exactly: a bool is not an int.
    where   the name of the value in the description
    """
    if not isinstance(schema, dict):
        types = schema if isinstance(schema, tuple) else (schema,)
        if type(value) in types:
            return ""
        names = " or ".join(kind.__name__ for kind in types)
        return f"{where} is {type(value).__name__}, not {names}"
    if not isinstance(value, dict):
        return f"{where} is {type(value).__name__}, not a dictionary"
    if value.keys() != schema.keys():
        missing = sorted(map(str, schema.keys() - value.keys()))
        unknown = sorted(map(str, value.keys() - schema.keys()))
        return f"{where} has other keys than expected (missing: {missing}, unknown: {unknown})"
    for key in schema:
        found = fault(value[key], schema[key], f"{where}.{key}")
        if found:
            return found
    return ""


def save(path: Path, content: dict, previous: Path | None = None) -> None:
    """Save a dictionary of tensors and plain values.

    An older file is replaced only after the new one has been read back without errors. With
    `previous`, the older file is kept under that name. Raises Problem (74) if the file cannot be
    written.
    """
    with replacing(path, previous) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:
            # For a full disk, torch only reports "unexpected pos". A second write finds the cause.
            raise _why_not_saved(path, temporary, error) from None
        if _broken_member(temporary):
            raise Problem(
                f"Checkpoint '{path}' was written but cannot be read back. The disk may be failing."
                " The last good file was kept. Use --out on another disk.",
                CANNOT_WRITE,
            )


def _why_not_saved(path: Path, temporary: Path, error: RuntimeError) -> Problem:
    """Return the problem to raise for an error of `torch.save`.

    Another 1 MiB is written to find out whether the disk is the cause.
    """
    try:
        with open(temporary, "ab") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
    except OSError as cause:
        return Problem(
            f"Checkpoint '{path}' cannot be saved ({reason(cause)}). The last good file was kept."
            " Free space and run the same command again.",
            CANNOT_WRITE,
        )
    return Problem(
        f"Checkpoint '{path}' cannot be saved ({first_line(error)}). The last good file was kept.",
        CANNOT_WRITE,
    )


def _broken_member(path: Path) -> bool:
    """Return whether a zip member fails its checksum. `torch.load` does not notice flipped bits."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is not None
    except _BROKEN_ZIP:
        return True


def load(path: Path, what: str = "checkpoint", foreign: bool = False) -> dict:
    """Load a dictionary saved by `save` (or any `torch.save` of plain tensors) onto the CPU.

    Never runs code from the file. Raises Problem (4) for a file that is missing, damaged, malicious
    or of a newer format.

    what     the kind of file, for messages
    foreign  whether the file may be of another program: the values that such programs save beside
             the weights (_BESIDE_WEIGHTS) are then read as `Ignored`
    """
    _check_file(path, what)
    known = [(Ignored, name) for name in _BESIDE_WEIGHTS] if foreign else []
    with torch.serialization.safe_globals(known) if known else contextlib.nullcontext():
        content = _unpickled(path, what)
    if not _plain(content):
        raise Problem(
            f"{what.capitalize()} '{path}': the file contains sparse, quantised or empty (meta)"
            " tensors. Save dense tensors.",
            BAD_CHECKPOINT,
        )
    if not isinstance(content, dict):
        raise Problem(
            f"{what.capitalize()} '{path}': the file contains a {type(content).__name__}, not a"
            f" dictionary. {CURES.get(what, CURE)}",
            BAD_CHECKPOINT,
        )
    version = content.get("format", 0)
    if isinstance(version, int) and version > FORMAT:
        raise Problem(
            f"{what.capitalize()} '{path}': the file has format {version}, but this version of the"
            f" program reads formats up to {FORMAT}. Use a newer version.",
            BAD_CHECKPOINT,
        )
    return content


def _check_file(path: Path, what: str) -> None:
    """Raise Problem (4) if the file does not exist or fails a checksum."""
    if not os.path.isfile(path):  # unlike Path.is_file, this never raises an error
        why = "this is a folder" if os.path.isdir(path) else "no such file, or it is not accessible"
        raise Problem(
            f"{what.capitalize()} '{path}': {why}. {CURES.get(what, CURE)}", BAD_CHECKPOINT
        )
    try:
        with open(path, "rb"):
            pass
    except OSError as error:
        raise Problem(
            f"{what.capitalize()} '{path}': the file cannot be read ({reason(error)}). Check its"
            " permissions and the disk.",
            BAD_CHECKPOINT,
        ) from None
    if zipfile.is_zipfile(path) and _broken_member(path):
        raise Problem(
            f"{what.capitalize()} '{path}': the file is damaged (a checksum does not match)."
            f" {CURES.get(what, CURE)}",
            BAD_CHECKPOINT,
        )


def _unpickled(path: Path, what: str):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about how a file was pickled; the message says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises five unrelated types of exceptions for bad files. Their messages are
        # hints for programmers, or only the number of a byte.
        why, cure = _why_not_loaded(error, os.path.getsize(path))
        raise Problem(
            f"{what.capitalize()} '{path}': {why}. {cure or CURES.get(what, CURE)}", BAD_CHECKPOINT
        ) from None


def _why_not_loaded(error: Exception, size: int) -> tuple[str, str]:
    """Return why `torch.load` refused a file of `size` bytes, and what to do; "" for the usual."""
    save = "Save the weights only: torch.save(network.state_dict(), 'weights.pt')."
    if is_out_of_memory(error):
        why = f"there is too little memory for the file of {size / 1e9:.1f} GB, or it is damaged"
        return why, "Free memory, or save the weights only."
    if "TorchScript" in str(error):
        return "the file is a TorchScript program, which is more than weights", save
    found = _NOT_ALLOWED.search(str(error))
    if found:
        name = (found.group(1) or found.group(2)).strip("'\".,;")[:100]
        why = (
            f"the file contains more than weights, namely {name}, which is not loaded because it"
            " could run code"
        )
        return why, save
    return "the file is damaged, or it is not a checkpoint of torch.save", ""


def _plain(value) -> bool:
    """Return whether all tensors in a nested value are dense and on the CPU."""
    if isinstance(value, torch.Tensor):
        dense = value.layout is torch.strided and not value.is_quantized
        return dense and value.device.type == "cpu"
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return True
