"""Checkpoints: dictionaries of tensors, read back before they replace an older file.

Every kind of damage raises the same error.
"""

import os
import zipfile
from pathlib import Path

import torch

from kd.system.errors import BAD_CHECKPOINT, CANNOT_WRITE, Problem
from kd.system.files import reason, replacing

FORMAT = 1
CURE = "give another file, or train again in a new folder (--tag NAME)"
# What zipfile raises for a file that is cut off or overwritten.
_BROKEN_ZIP = (
    zipfile.BadZipFile,
    OSError,
    NotImplementedError,
    RuntimeError,
    EOFError,
    ValueError,
    OverflowError,
)


def fault(value, schema, where: str) -> str:
    """What is wrong with a nested value, in words; empty where it fits the schema.

    schema  a type, a tuple of types, or a dictionary of exactly the keys that must be there, each
            with its schema. Types must match exactly: a bool is not an int.
    """
    if not isinstance(schema, dict):
        types = schema if isinstance(schema, tuple) else (schema,)
        if type(value) in types:
            return ""
        names = " or ".join(kind.__name__ for kind in types)
        return f"{where} is {type(value).__name__}, not {names}"
    if not isinstance(value, dict):
        return f"{where} is {type(value).__name__}, not an object"
    if value.keys() != schema.keys():
        lacks = sorted(map(str, schema.keys() - value.keys()))
        unknown = sorted(map(str, value.keys() - schema.keys()))
        return f"{where} lacks {lacks} and has unknown {unknown}"
    for key in schema:
        found = fault(value[key], schema[key], f"{where}.{key}")
        if found:
            return found
    return ""


def save(path: Path, content: dict, previous: Path | None = None) -> None:
    """Save a dictionary of tensors and plain values.

    An older file is replaced only after the new one was read back and is sound. With `previous` it
    is kept under that name. Raises Problem (74).
    """
    with replacing(path, previous) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:
            # torch hides a full disk behind "unexpected pos"; only the disk itself can tell.
            raise _why_not_saved(path, temporary, error) from None
        if _broken_member(temporary):
            raise Problem(
                f"checkpoint '{path}': was written but does not read back; the disk may be failing,"
                " the last good file was kept",
                CANNOT_WRITE,
            )


def _why_not_saved(path: Path, temporary: Path, error: RuntimeError) -> Problem:
    """The problem to raise for an error of `torch.save`, after trying to write 1 MiB more."""
    try:
        with open(temporary, "ab") as file:
            file.write(bytes(1 << 20))
            os.fsync(file.fileno())
    except OSError as cause:
        return Problem(
            f"checkpoint '{path}': {reason(cause)}; the last good file was kept; free space and run"
            " the same command again",
            CANNOT_WRITE,
        )
    return Problem(
        f"checkpoint '{path}': cannot be saved ({error}); the last good file was kept", CANNOT_WRITE
    )


def _broken_member(path: Path) -> bool:
    """Whether a zip member fails its checksum: `torch.load` does not notice a flipped bit."""
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is not None
    except _BROKEN_ZIP:
        return True


def load(path: Path, what: str = "checkpoint") -> dict:
    """Load a dictionary saved by `save` (or any `torch.save` of plain tensors) onto the CPU.

    Never runs code from the file. Raises Problem (4) for a missing, damaged, malicious or newer
    file.
    """
    _check_file(path, what)
    content = _unpickled(path, what)
    if not _plain(content):
        raise Problem(
            f"{what} '{path}': holds sparse, quantised or empty (meta) tensors; save dense ones",
            BAD_CHECKPOINT,
        )
    if not isinstance(content, dict):
        raise Problem(
            f"{what} '{path}': holds a {type(content).__name__}, not a dictionary; {CURE}",
            BAD_CHECKPOINT,
        )
    version = content.get("format", 0)
    if isinstance(version, int) and version > FORMAT:
        raise Problem(
            f"{what} '{path}': format {version}, this program reads up to {FORMAT}; use a"
            " newer one",
            BAD_CHECKPOINT,
        )
    return content


def _check_file(path: Path, what: str) -> None:
    """Raise Problem (4) where there is no file, or one that fails a checksum."""
    if not os.path.isfile(path):  # unlike Path.is_file, it raises no error for any path
        why = "is a folder" if os.path.isdir(path) else "no such file, or not within reach"
        raise Problem(f"{what} '{path}': {why}; {CURE}", BAD_CHECKPOINT)
    if zipfile.is_zipfile(path) and _broken_member(path):
        raise Problem(
            f"{what} '{path}': damaged (a checksum does not match); {CURE}", BAD_CHECKPOINT
        )


def _unpickled(path: Path, what: str):
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # torch.load raises five unrelated types of exceptions for bad files. All have a first line.
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise Problem(
            f"{what} '{path}': not a file of weights alone, or damaged ({lines[0][:160]}); {CURE}",
            BAD_CHECKPOINT,
        ) from None


def _plain(value) -> bool:
    """Whether all tensors in a nested value store their numbers densely, on the CPU."""
    if isinstance(value, torch.Tensor):
        dense = value.layout is torch.strided and not value.is_quantized
        return dense and value.device.type == "cpu"
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_plain, value))
    return True
