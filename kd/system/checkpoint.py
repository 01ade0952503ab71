"""Checkpoints: dictionaries of tensors, read back before they count, and one error for every kind
of damage.
"""

import os
import zipfile
from pathlib import Path

import torch

from kd.system.errors import BAD_CHECKPOINT, CANNOT_WRITE, Problem
from kd.system.files import reason, replacing

FORMAT = 1


def fault(value, schema, where: str) -> str:
    """What is wrong with a nested value, in words; empty where it is as the schema says.

    schema  a type, a tuple of types, or a dictionary of exactly the keys that must be there, each
            with its schema. Types are taken at their word: a bool is no int.
    """
    if not isinstance(schema, dict):
        types = schema if isinstance(schema, tuple) else (schema,)
        return (
            ""
            if type(value) in types
            else f"{where} is {type(value).__name__}, not {' or '.join(t.__name__ for t in types)}"
        )
    if not isinstance(value, dict):
        return f"{where} is {type(value).__name__}, not an object"
    if value.keys() != schema.keys():
        lacks, unknown = (
            sorted(map(str, keys))
            for keys in (schema.keys() - value.keys(), value.keys() - schema.keys())
        )
        return f"{where} lacks {lacks} and has unknown {unknown}"
    faults = (fault(value[key], schema[key], f"{where}.{key}") for key in schema)
    return next((text for text in faults if text), "")


def save(path: Path, content: dict, previous: Path | None = None) -> None:
    """Save a dictionary of tensors and plain values; replaced only after the new file was read back
    and is sound.

    With `previous` the file before is kept under that name. Raises Problem (74).
    """
    with replacing(path, previous) as temporary:
        try:
            with open(temporary, "wb") as file:
                torch.save({"format": FORMAT, **content}, file)
        except RuntimeError as error:
            # torch hides a full disk behind "unexpected pos"; asking the disk is the only way to
            # know.
            raise _why_not_saved(path, temporary, error) from None
        if _broken_member(temporary):
            raise Problem(
                f"checkpoint '{path}': was written but does not read back; the disk may be failing,"
                " the last good file was kept",
                CANNOT_WRITE,
            )


def _why_not_saved(path: Path, temporary: Path, error: RuntimeError) -> Problem:
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
    """Whether a zip member fails its checksum:

    `torch.load` itself does not notice a flipped bit.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip() is not None
    except (
        zipfile.BadZipFile,
        OSError,
        NotImplementedError,
        RuntimeError,
        EOFError,
        ValueError,
        OverflowError,
    ):
        return True


def load(path: Path, what: str = "checkpoint") -> dict:
    """A dictionary saved by `save` (or any `torch.save` of plain tensors), on the CPU.

    Never runs code from the file. Raises Problem (4) for a missing, damaged, malicious or newer
    file.
    """
    cure = "give another file, or train again in a new folder (--tag NAME)"
    if not os.path.isfile(path):  # unlike Path.is_file, it raises for no path at all
        why = "is a folder" if os.path.isdir(path) else "no such file, or not within reach"
        raise Problem(f"{what} '{path}': {why}; {cure}", BAD_CHECKPOINT)
    zipped = zipfile.is_zipfile(path)
    if zipped and _broken_member(path):
        raise Problem(
            f"{what} '{path}': damaged (a checksum does not match); {cure}", BAD_CHECKPOINT
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # Five unrelated exception types come out of torch.load for bad files; what they share is a
        # first line.
        why = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise Problem(
            f"{what} '{path}': not a file of weights alone, or damaged ({why}); {cure}",
            BAD_CHECKPOINT,
        ) from None
    if not _plain(content):
        raise Problem(
            f"{what} '{path}': holds sparse, quantised or empty (meta) tensors; save dense ones",
            BAD_CHECKPOINT,
        )
    if not isinstance(content, dict):
        raise Problem(
            f"{what} '{path}': holds a {type(content).__name__}, not a dictionary; {cure}",
            BAD_CHECKPOINT,
        )
    if isinstance(content.get("format", 0), int) and content.get("format", 0) > FORMAT:
        raise Problem(
            f"{what} '{path}': format {content['format']}, this program reads up to {FORMAT}; use a"
            " newer one",
            BAD_CHECKPOINT,
        )
    return content


def _plain(value) -> bool:
    """Whether all tensors in a nested value hold their numbers densely, on the CPU."""
    if isinstance(value, torch.Tensor):
        return (
            value.layout is torch.strided and value.device.type == "cpu" and not value.is_quantized
        )
    if isinstance(value, dict):
        return all(map(_plain, value.values()))
    return not isinstance(value, (list, tuple)) or all(map(_plain, value))
