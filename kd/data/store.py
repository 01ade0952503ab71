"""Decode every image once, into a memory map of uint8 [N, C, S, S], with content hashes."""

import hashlib
import os
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from kd.data.images import pixels
from kd.data.images.pixels import Range, RangeNeeded, Recipe, file_bytes, why_unreadable
from kd.data.index import Index, digest
from kd.system.console import progress
from kd.system.errors import Problem, first_names
from kd.system.files import cannot_write, make_folder
from kd.system.locks import wait_for_lock
from kd.system.signals import never_stop

HASH_BYTES = 16
CHUNK = 256
_RECIPE = "decoding 2"


class Store:
    """A cache of the decoded images of an index.

    Decoded rows stay on disk. Other rows take no space, because the files are sparse.

    images  uint8 [N, C, S, S], read-only memory map; a row is defined after a call of `ensure`
            with it
    hashes  uint8 [N, 16], the first half of the SHA-256 of each file's bytes; defined for the same
            rows as `images`
    crop    `none`, or `fundus`: each image is cropped to its disc before it is resized, and stays
            in colour if `channels` is 0
    was_empty  whether no image was decoded yet when the store was opened
    ranges  kind -> range of images with more than 8 bits that do not state their own
    """

    def __init__(
        self,
        index: Index,
        cache_dir: str,
        size: int,
        resize: str,
        channels: int,
        crop: str = "none",
        ranges: dict[str, Range] | None = None,
    ):
        self.index = index
        self.size = size
        self.resize = resize
        self.crop = crop
        self.ranges = ranges or {}
        self.channels = channels or _default_channels(index, crop)
        self._how = Recipe(size, resize, self.channels, crop, self.ranges)
        # The stamp of a row changes with its file, so that a replaced image is decoded again.
        self.stamps, missing = _stamps(index)
        if missing:
            self._refuse(missing, "Restore or remove them.")
        self.recipe = f"{_RECIPE} {size} {resize} {self.channels}"
        if crop != "none":
            self.recipe += f" {crop}"
        for kind, (low, high, rule) in sorted(self.ranges.items()):
            strict = " strict" if rule.startswith(pixels.BITS) else ""
            self.recipe += f" {kind} {low!r} to {high!r}{strict}"
        # Two folders may have the same name and files of the same names.
        place = str(index.root.resolve()) if index.root else ""
        paths = [sample.path for sample in index.samples]
        key = digest([self.recipe, index.stamp, place, *paths])
        self.folder = make_folder(Path(cache_dir) / "pictures" / f"{index.name}-{size}-{key}")
        shape = (len(index.samples), self.channels, size, size)
        self._open_files(len(index.samples), self.channels * size * size)
        self.images = np.memmap(self.folder / "pictures", np.uint8, "r", shape=shape)
        self._read_progress()
        self.was_empty = not self._decoded.any()

    def _open_files(self, rows: int, image_bytes: int) -> None:
        """Create the files of the cache, or open those that exist."""
        row_bytes = {"pictures": image_bytes, "hashes": HASH_BYTES, "stamps": HASH_BYTES}
        row_bytes["flags"] = 1
        self._files = {}
        try:
            for name in row_bytes:
                self._files[name] = os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
            for name, size in row_bytes.items():
                os.truncate(self._files[name], rows * size)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def __del__(self):
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def ensure(self, rows: np.ndarray, check_stop=never_stop) -> int:
        """Decode those of `rows` that are not decoded yet, and return their number.

        Images that cannot be decoded are collected and raised as one Problem, after all others are
        saved. Decoded images remain if the process dies. `check_stop()` is called after each
        chunk, and may raise an exception to end the work. Raises RangeNeeded for an image with more
        than 8 bits whose range is not known.
        """
        rows = np.unique(rows)
        if not self._missing(rows).size:
            return 0
        # If several processes share a cache, one of them decodes and the others wait.
        with wait_for_lock(self.folder, check_stop):
            self._read_progress()
            return self._decode(self._missing(rows), check_stop)

    def _refuse(self, faults: dict[int, str], cure: str) -> None:
        """Raise Problem for images that cannot be read, {row: reason}."""
        where = self.index.root or self.index.name
        texts = [f"{self.index.samples[row].path} ({why})" for row, why in faults.items()]
        raise Problem(f"Images in {where} cannot be read: {first_names(texts)}. {cure}")

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        return rows[(self._decoded[rows] != self.stamps[rows]).any(1)]

    def _read_progress(self) -> None:
        """Read which rows any process has decoded so far.

        The files are read, not mapped, because on a full tmpfs a hole in a mapped file causes a
        SIGBUS. The stamps are read first, because they are written last.
        """
        self._decoded = self._read_rows("stamps")
        self.hashes = self._read_rows("hashes")

    def _read_rows(self, name: str) -> np.ndarray:
        return np.fromfile(self.folder / name, np.uint8).reshape(-1, HASH_BYTES)

    def _decode(self, rows: np.ndarray, check_stop) -> int:
        bad = {}
        with (
            ThreadPoolExecutor(os.cpu_count()) as threads,
            progress(len(rows), "decoding", "images") as shown,
        ):
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                faults = []
                for fault in threads.map(self._decode_row, chunk):
                    faults.append(fault)
                    shown.update()
                kinds = [fault for fault in faults if isinstance(fault, RangeNeeded)]
                if kinds:
                    raise kinds[0]
                bad |= {int(row): fault for row, fault in zip(chunk, faults) if fault}
                self._stamp(row for row, fault in zip(chunk, faults) if not fault)
                check_stop()
        if bad:
            self._refuse(bad, "Replace or remove them.")
        return len(rows)

    def _stamp(self, rows: Iterable[int]) -> None:
        """Mark rows as decoded after their images are on disk: a marked row is always complete."""
        self._sync("pictures", "hashes", "flags")
        for row in rows:
            self._write("stamps", self.stamps[row].tobytes(), int(row))
            self._decoded[row] = self.stamps[row]

    @property
    def shape(self) -> tuple[int, int, int]:
        """The shape (C, S, S) of an image."""
        return self.images.shape[1:]

    def gather(self, rows: np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the images of `rows`, in their order and with repeats: uint8 [len(rows), C, S, S].

        The result is on the CPU, and in `out` if it is given.
        """
        if out is None:
            return torch.from_numpy(self.images[rows])
        np.take(self.images, rows, axis=0, out=out.numpy(), mode="clip")
        return out

    def _decode_row(self, row) -> str | RangeNeeded:
        """Decode and write one image.

        Returns an empty string, or why the image cannot be decoded.
        """
        row = int(row)
        try:
            content, array, flags = self._read_row(row)
        except RangeNeeded as need:
            return need
        except Exception as error:
            # For bad files, Pillow raises anything from SyntaxError to struct.error. Each of these
            # is reported as a bad image and must not end the program.
            return why_unreadable(error)
        own_hash = content_hash(content)
        self._write("pictures", array.tobytes(), row)
        self._write("hashes", own_hash, row)
        self._write("flags", bytes([flags]), row)
        self.hashes[row] = np.frombuffer(own_hash, np.uint8)
        return ""

    def _read_row(self, row: int) -> tuple[bytes, np.ndarray, int]:
        """Return (the bytes of an image's file, its array [C, S, S], its flags)."""
        if self.index.draw is not None:
            drawing = self.index.draw(row)
            return drawing.tobytes(), pixels.resized(Image.fromarray(drawing), self._how), 0
        content = file_bytes(self.index.file(row))
        return content, *pixels.square(content, self._how)

    def flags(self, rows: np.ndarray) -> np.ndarray:
        """Return the flags of decoded rows, as of `pixels.to_8_bits`: uint8 [len(rows)]."""
        return np.fromfile(self.folder / "flags", np.uint8)[rows]

    def _write(self, name: str, data: bytes, row: int) -> None:
        """Write a row of a file.

        This uses pwrite, because on a full disk a write to the memory map would cause a SIGBUS
        instead of an error.
        """
        start = row * len(data)
        done = 0  # pwrite may write fewer bytes than requested
        try:
            while done < len(data):
                done += os.pwrite(self._files[name], data[done:], start + done)
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def _sync(self, *names: str) -> None:
        try:
            for name in names:
                os.fsync(self._files[name])
        except OSError as error:
            raise cannot_write(self.folder, error) from None


class Joined:
    """Two stores of images of the same shape as one: the rows of the second follow the first's."""

    def __init__(self, first: Store, second: Store):
        self.first = first
        self.second = second
        self.ranges = first.ranges | second.ranges
        self.recipe = first.recipe
        if second.recipe != first.recipe:  # only the range of images with more than 8 bits differs
            self.recipe += f" | {second.recipe}"
        self.shape = first.shape
        self.hashes = np.concatenate([first.hashes, second.hashes])

    def gather(self, rows: np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
        """Return the images of `rows`, as `Store.gather` does."""
        if out is None:
            out = torch.empty(len(rows), *self.shape, dtype=torch.uint8)
        start = len(self.first.hashes)
        in_first = rows < start
        out[torch.from_numpy(in_first)] = self.first.gather(rows[in_first])
        out[torch.from_numpy(~in_first)] = self.second.gather(rows[~in_first] - start)
        return out


def _stamps(index: Index) -> tuple[np.ndarray, dict[int, str]]:
    """Return (hashes that change when a sample's file changes, samples without a file).

    The hashes are uint8 [N, 16]; the samples are {row: reason}.
    """
    stamps = np.ones((len(index.samples), HASH_BYTES), np.uint8)
    missing = {}
    if index.root is None:
        return stamps, missing
    for row in range(len(index.samples)):
        try:
            status = os.stat(index.file(row))
        except OSError as error:
            missing[row] = error.strerror
            continue
        # The time of a change of status cannot be set: it differs where `cp -p` has replaced the
        # content, even if size and time of modification are the same.
        version = f"{status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
        stamps[row] = np.frombuffer(content_hash(version.encode()), np.uint8)
    return stamps, missing


def content_hash(content: bytes) -> bytes:
    """Return the first half of the SHA-256 of a file's bytes."""
    return hashlib.sha256(content).digest()[:HASH_BYTES]


def _default_channels(index: Index, crop: str) -> int:
    """Return the number of channels if the settings do not specify it: 1 or 3."""
    if crop == "fundus":
        return 3
    if index.channels:
        return index.channels
    # 32 images spread over the data set decide, by their visible colour and not by their mode.
    for row in np.unique(np.linspace(0, len(index.samples) - 1, 32).astype(int)):
        if _has_colour(index, int(row)):
            return 3
    return 1


def _has_colour(index: Index, row: int) -> bool:
    """Return whether an image has visible colour.

    A bad image counts as grey: it is reported with all other bad images when it is decoded.
    """
    try:
        decoded = pixels.decode(file_bytes(index.file(row)), 64, 3)
        image = decoded.image
        if image is None:
            if decoded.values.ndim == 2:
                return False
            limits = Range(0.0, float(decoded.values.max()), "")
            image, _ = pixels.to_8_bits(decoded._replace(limits=None), {decoded.kind: limits})
        if image.mode in ("1", "L"):
            return False
        colour = np.asarray(image.convert("RGB").resize((64, 64)), dtype=np.int16)
    except Exception:
        return False
    return np.abs(colour - colour.mean(2, keepdims=True)).mean() > 4
