"""Every picture decoded once, into a memory map of uint8 [N, C, S, S] with content hashes."""

import hashlib
import io
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm import tqdm

from kd.data.fundus import crop_to_circle
from kd.data.index import Index, digest
from kd.system.console import shows_progress
from kd.system.errors import Problem, first_ten
from kd.system.files import cannot_write, make_folder
from kd.system.locks import wait_for_lock

HASH_BYTES = 16
MAX_PIXELS, MAX_BYTES = 100_000_000, 1 << 30
CHUNK = 256
_RECIPE = "decoding 1"


class Store:
    """Decoded pictures of an index; rows that were asked for once stay, others cost no disk (the
    files are sparse).

    pictures  uint8 [N, C, S, S], read-only memory map; a row is defined once `ensure` was called
              with it
    hashes    uint8 [N, 16], the first half of the SHA-256 of each file's bytes; defined as
              `pictures` is
    crop      `none`, or `fundus`: each picture is cropped to its disc before it is resized, and
              kept in colour where `channels` is 0
    """

    def __init__(
        self,
        index: Index,
        cache_dir: str,
        size: int,
        resize: str,
        channels: int,
        crop: str = "none",
    ):
        self.index, self.size, self.resize, self.crop = index, size, resize, crop
        self.channels = channels or (
            3 if crop == "fundus" else index.channels or _channels_of(index)
        )
        # The stamp of a row changes with its file: a replaced picture is decoded again, and it
        # alone.
        self._stamps = _stamps(index)
        # Without a crop it is what it was before there were crops: pictures that are decoded
        # already stay.
        self.recipe = f"{_RECIPE} {size} {resize} {self.channels}" + (
            f" {crop}" if crop != "none" else ""
        )
        key = digest([self.recipe, index.stamp, *(s.path for s in index.samples)])
        self.folder = make_folder(Path(cache_dir) / "pictures" / f"{index.name}-{size}-{key}")
        shape = (len(index.samples), self.channels, size, size)
        self._row_bytes = self.channels * size * size
        try:
            self._files = {
                name: os.open(self.folder / name, os.O_RDWR | os.O_CREAT, 0o644)
                for name in ("pictures", "hashes", "stamps")
            }
            for name, row_bytes in (
                ("pictures", self._row_bytes),
                ("hashes", HASH_BYTES),
                ("stamps", HASH_BYTES),
            ):
                os.truncate(self._files[name], shape[0] * row_bytes)
        except OSError as error:
            raise cannot_write(self.folder, error) from None
        self.pictures = np.memmap(self.folder / "pictures", np.uint8, "r", shape=shape)
        self._look()

    def __del__(self):
        for file in getattr(self, "_files", {}).values():
            os.close(file)

    def ensure(self, rows: np.ndarray, leave=lambda: None) -> int:
        """Decode those of `rows` that are not there yet; returns how many that were.

        Pictures that cannot be decoded are collected and raised as one Problem, after all others
        are safe. What was decoded stays when the process dies. `leave()` is called between two
        chunks and may end the work by an exception.
        """
        rows = np.unique(rows)
        if not self._missing(rows).size:
            return 0
        with wait_for_lock(
            self.folder, leave
        ):  # of several processes on one cache, ranks or not, one decodes and the others wait
            self._look()
            return self._decode(self._missing(rows), leave)

    def _missing(self, rows: np.ndarray) -> np.ndarray:
        return rows[(self._decoded[rows] != self._stamps[rows]).any(1)]

    def _look(self) -> None:
        """What has been decoded by now, by whomever.

        Read, not mapped: a hole of a mapped file on a full tmpfs is a SIGBUS.
        """
        # The stamps first: they are written last.
        self._decoded, self.hashes = (
            np.fromfile(self.folder / name, np.uint8).reshape(-1, HASH_BYTES)
            for name in ("stamps", "hashes")
        )

    def _decode(self, rows: np.ndarray, leave) -> int:
        bad = []
        with (
            ThreadPoolExecutor(os.cpu_count()) as threads,
            tqdm(total=len(rows), desc="decoding", unit="img", disable=not shows_progress()) as bar,
        ):
            for start in range(0, len(rows), CHUNK):
                chunk = rows[start : start + CHUNK]
                faults = list(threads.map(self._decode_row, chunk))
                bad += [fault for fault in faults if fault]
                # The stamp comes after the picture is on disk, so that a stamped row is always
                # whole.
                self._sync("pictures", "hashes")
                for row, fault in zip(chunk, faults):
                    if not fault:
                        self._write("stamps", self._stamps[row].tobytes(), int(row))
                        self._decoded[row] = self._stamps[row]
                bar.update(len(chunk))
                leave()
        if bad:
            where = self.index.root or self.index.name
            raise Problem(
                f"pictures in {where}: {first_ten(bad)} cannot be read; replace them or take"
                " them out"
            )
        return len(rows)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, S, S) of a picture."""
        return self.pictures.shape[1:]

    def gather(self, rows: np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
        """uint8 [len(rows), C, S, S] on the CPU, in the order of `rows`, repeats included; in `out`
        where it is given.
        """
        if out is None:
            return torch.from_numpy(self.pictures[rows])
        np.take(self.pictures, rows, axis=0, out=out.numpy(), mode="clip")
        return out

    def _decode_row(self, row) -> str:
        row = int(row)
        try:
            if self.index.draw is not None:
                drawn = self.index.draw(row)
                content, picture = drawn.tobytes(), Image.fromarray(drawn)
            else:
                content = _file_bytes(self.index.file(row))
                # A disc is only a part of its picture.
                picture = _open(
                    content, self.size * (2 if self.crop == "fundus" else 1), self.channels
                )
            array = _squared(picture, self.size, self.resize, self.channels, self.crop)
        except Exception as error:
            # Pillow raises anything from SyntaxError to struct.error for bad files: each is a bad
            # picture, never a crash.
            return f"{self.index.samples[row].path} ({str(error) or type(error).__name__})"
        self._write("pictures", array.tobytes(), row)
        self._write("hashes", _hash(content), row)
        self.hashes[row] = np.frombuffer(_hash(content), np.uint8)
        return ""

    def _write(self, name: str, data: bytes, row: int) -> None:
        # pwrite, not the memory map: a full disk is an error here and would be a SIGBUS there. It
        # may write a part only.
        start, done = row * len(data), 0
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
    """Two stores of the same recipe as one: the rows of the second come after those of the first."""

    def __init__(self, first: Store, second: Store):
        self.first, self.second, self.recipe, self.shape = first, second, first.recipe, first.shape
        self.hashes = np.concatenate([first.hashes, second.hashes])

    def gather(self, rows: np.ndarray, out: torch.Tensor | None = None) -> torch.Tensor:
        """As `Store.gather`."""
        out = torch.empty(len(rows), *self.shape, dtype=torch.uint8) if out is None else out
        start = len(self.first.hashes)
        own = rows < start
        for store, chosen, places in (
            (self.first, rows[own], own),
            (self.second, rows[~own] - start, ~own),
        ):
            out[torch.from_numpy(places)] = store.gather(chosen)
        return out


def _stamps(index: Index) -> np.ndarray:
    """A hash a sample that changes when its file does: uint8 [N, 16].

    Raises Problem for files that are gone.
    """
    stamps, missing = np.ones((len(index.samples), HASH_BYTES), np.uint8), []
    if index.root is None:
        return stamps
    for row, sample in enumerate(index.samples):
        try:
            status = os.stat(index.file(row))
        except OSError as error:
            missing.append(f"{sample.path} ({error.strerror})")
            continue
        stamps[row] = np.frombuffer(
            _hash(f"{status.st_size} {status.st_mtime_ns}".encode()), np.uint8
        )
    if missing:
        raise Problem(
            f"pictures in {index.root}: {first_ten(missing)} cannot be read; restore them or take"
            " them out"
        )
    return stamps


def _hash(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()[:HASH_BYTES]


def _file_bytes(path: Path) -> bytes:
    if not path.is_file():
        raise OSError("not a regular file")
    size = path.stat().st_size
    if not 0 < size <= MAX_BYTES:  # files of /proc say 0 and may never end
        raise OSError("empty" if size == 0 else f"{size} bytes, more than {MAX_BYTES >> 30} GiB")
    return path.read_bytes()


def decode(path: Path) -> tuple[bytes, Image.Image]:
    """(a file's bytes, its picture as it is stored). Raises whatever Pillow does for a bad one."""
    content = _file_bytes(path)
    picture = _opened(content)
    picture.load()
    return content, picture


def _opened(content: bytes) -> Image.Image:
    """A picture whose size and checksum are in order, its pixels not decoded yet."""
    picture = Image.open(io.BytesIO(content))
    if picture.width * picture.height > MAX_PIXELS:
        raise ValueError(
            f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS // 10**6} million"
        )
    if picture.format == "PNG":
        Image.open(
            io.BytesIO(content)
        ).verify()  # decoding alone passes over the checksum of the pixels
    return picture


def _open(content: bytes, size: int, channels: int) -> Image.Image:
    """Decode file bytes; JPEGs at the smallest scale that is no smaller than `size` (several times
    faster).
    """
    picture = _opened(content)
    picture.draft("L" if channels == 1 else "RGB", (size, size))
    picture.load()
    return ImageOps.exif_transpose(picture)


def _squared(picture: Image.Image, size: int, resize: str, channels: int, crop: str) -> np.ndarray:
    """Pillow image -> uint8 [C, S, S]. 16-bit grey is scaled to 8 bits (Pillow's own conversion
    clips it).
    """
    if picture.mode.startswith("I") or picture.mode == "F":
        values = np.asarray(picture, dtype=np.float64)
        # 32-bit grey says nothing of its range: what fits 8 bits is taken as 8 bits.
        top = 65535.0 if picture.mode.startswith("I;16") or values.max() > 255 else 255.0
        picture = Image.fromarray(
            np.clip(np.round(values * (255.0 / top)), 0, 255).astype(np.uint8)
        )
    if picture.mode in ("P", "LA", "PA") or "transparency" in picture.info:
        picture = picture.convert("RGBA")
    if crop == "fundus":
        picture = crop_to_circle(picture)
    picture = picture.convert("L" if channels == 1 else "RGB")
    if resize == "pad":
        picture = ImageOps.pad(picture, (size, size), Image.Resampling.BILINEAR, color=0)
    else:
        picture = picture.resize((size, size), Image.Resampling.BILINEAR)
    array = np.asarray(picture)
    return array[None] if channels == 1 else array.transpose(2, 0, 1)


def _channels_of(index: Index) -> int:
    """3 where any of 32 pictures, spread over the set, has colour to see; else 1, however the files
    are stored.
    """
    for row in np.unique(np.linspace(0, len(index.samples) - 1, 32).astype(int)):
        try:
            picture = _open(_file_bytes(index.file(int(row))), 64, 3)
            if picture.mode in ("1", "L", "LA", "F") or picture.mode.startswith("I"):
                continue
            colour = np.asarray(picture.convert("RGB").resize((64, 64)), dtype=np.int16)
        except Exception:
            continue  # A bad picture is reported when it is decoded, with all the others.
        if np.abs(colour - colour.mean(2, keepdims=True)).mean() > 4:
            return 3
    return 1
