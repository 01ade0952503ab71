"""A teacher's logits, computed once for every view of every image, and kept for all students to
come.
"""

import contextlib
import os
import zlib
from pathlib import Path

import numpy as np
import torch

from kd.config.layout import slug
from kd.data.index import digest
from kd.data.views import Batch, Views
from kd.models import Classifier
from kd.system import ranks
from kd.system.console import log
from kd.system.devices import Precision, kind_of, to_device
from kd.system.files import reason
from kd.teachers.outputs import BatchLogits, LiveNetwork

FLUSH_EVERY = 20  # steps: written now and then, so that a GPU need not be waited for in each
CHECKED = 16
# How far a stored logit may lie from the live one, as a share of the batch's range: other kernels,
# other batch sizes.
TOLERANCE = {"float32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}


def key_of(network: Classifier, weights: str, views: Views, precision: Precision) -> str:
    """A name for everything that a teacher's logits depend on; `weights` is the hash of its state.

    What a run gives may not depend on those before it. So all that moves the last bits of float32
    belongs to it as well: in which batches images come, and what computes them.
    """
    batches = f"{views.batch_size} {views.shuffle} {views.seed} {views.shown}"
    batches += f" {ranks.world_size()} ranks" if ranks.world_size() > 1 else ""
    return digest(
        [
            network.architecture,
            weights,
            str(network.mean.tolist()),
            str(network.std.tolist()),
            views.identity(),
            batches,
            precision.words,
            views.device.type,
            kind_of(views.device),
        ]
    )


class StoredLogits:
    """A teacher (batch of `views` -> logits [B, K]) that asks a live one only for what is not on
    disk yet, and writes that down.

    The file is an array [epochs, slots, K + 1] of float32: the logits and a checksum of the row,
    and has holes where nothing was computed yet. A row that was torn by a kill or by another run
    that writes it at the same time is a hole, and a batch with a hole is computed as a whole. Where
    the file cannot be read or written, a warning is printed, once, and training goes on with what
    there is.
    """

    file: int | None = None  # also where construction fails before a file is open

    def __init__(
        self, cache_dir: str, network: Classifier, key: str, views: Views, precision: Precision
    ):
        self.network, self.precision = network, precision
        self.slots, self.device = len(views), views.device
        self.changing = (
            views.augment or views.shuffle
        )  # from epoch to epoch: what is seen, or in which batch
        self.live: BatchLogits = LiveNetwork(network, precision)
        self.path = Path(cache_dir) / "logits" / f"{slug(network.name)}-{key}"
        self.width = len(network.classes)
        self.writable, self.epoch, self.fresh, self.asked, self.computed = True, None, [], 0, 0
        self._open()
        if self.file is not None:
            self._check(views)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Logits float32 [B, K] of a batch, on its device."""
        if not batch.share:  # another rank's row: it only stands in
            return self.live(batch)
        slots, epoch = batch.slots.numpy(), self._seen(batch.epoch)
        if epoch != self.epoch:
            self.flush()
            self.epoch = epoch
            values, self.known = self._read(epoch)
            self.table = torch.from_numpy(values).to(self.device)
        self.asked += len(slots)
        if self.known[slots].all():
            return self.table[to_device(batch.slots, self.device)]
        logits = self.live(batch)
        self.computed += len(slots)
        self.table[to_device(batch.slots, self.device)] = logits
        self.known[slots] = True
        self.fresh.append(slots)
        if len(self.fresh) >= FLUSH_EVERY:
            self.flush()
        return logits

    def flush(self) -> None:
        """Write what was computed since the last time."""
        fresh, self.fresh = self.fresh, []
        if not fresh or self.file is None or not self.writable:
            return
        slots = np.concatenate(fresh)
        values = self.table[torch.from_numpy(slots).to(self.table.device)].cpu().numpy()
        record = np.empty((len(slots), self.width + 1), np.float32)
        record[:, :-1] = values
        places = self.epoch * self.slots + slots
        record.view(np.uint32)[:, -1] = _checksums(values, places)
        try:
            for place, row in zip(places.tolist(), record):
                os.pwrite(self.file, row.tobytes(), place * row.nbytes)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Write what is left. What comes after this is read and computed, not stored."""
        self.flush()
        self._close_file()

    def __del__(self):
        self._close_file()

    def _open(self) -> None:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            self._warn(error)
            with contextlib.suppress(OSError):
                self.file = os.open(self.path, os.O_RDONLY)

    def _close_file(self) -> None:
        file, self.file = self.file, None
        if file is not None:
            with contextlib.suppress(
                OSError
            ):  # what a network's disk tells late: rows without their checksum are holes
                os.close(file)

    def _warn(self, error: OSError) -> None:
        if self.writable:
            log(
                f"warning: '{self.path}': {reason(error)}; the teacher's logits are not stored any"
                " more, and this run goes on; free space or give another --cache-dir for the"
                " next one"
            )
        self.writable = False

    def _seen(self, epoch: int) -> int:
        return epoch if self.changing else 0

    def _read(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """(logits float32 [slots, K], which of them are whole: bool [slots]) of an epoch."""
        record = np.zeros((self.slots, self.width + 1), np.float32)
        if self.file is not None:
            try:
                os.preadv(self.file, [record.reshape(-1).view(np.uint8)], epoch * record.nbytes)
            except OSError as error:  # a network's disk, or its file is gone
                self._warn(error)
        values = np.ascontiguousarray(record[:, :-1])
        return values, record.view(np.uint32)[:, -1] == _checksums(
            values, epoch * len(record) + np.arange(len(record))
        )

    def _check(self, views: Views) -> None:
        """Compare a random batch of stored rows with the live teacher; begin anew where they
        differ.
        """
        try:
            epochs = os.fstat(self.file).st_size // (self.slots * (self.width + 1) * 4) + 1
        except OSError as error:
            return self._warn(error)
        random = np.random.default_rng()
        for epoch in random.permutation(epochs).tolist():
            values, known = self._read(epoch)
            if not known.any():
                continue
            slots = np.sort(random.permutation(np.flatnonzero(known))[:CHECKED])
            alive = self.live(next(views.batches(epoch, [slots]))).cpu().numpy()
            error, spread = np.abs(alive - values[slots]).max(), alive.max() - alive.min()
            if not error <= TOLERANCE[self.precision.words] * spread:
                log(
                    f"warning: stored logits of {self.network.name} differ from the teacher's by"
                    f" {error:.3g} (their range is {spread:.3g}); they are thrown away and computed"
                    " again"
                )
                self._begin_anew()
            return

    def _begin_anew(self) -> None:
        try:
            os.ftruncate(self.file, 0)  # not removed: other ranks and runs have it open
        except OSError as error:
            self._warn(error)
            self._close_file()


def _checksums(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """CRC-32 of each row [n, K] and its place in the file, never 0 (a hole's): uint32 [n]."""
    rows = memoryview(values).cast("B")
    width = values.shape[1] * 4
    return np.array(
        [
            zlib.crc32(rows[start : start + width], place & 0xFFFFFFFF) | 1
            for start, place in zip(range(0, len(rows), width), places.tolist())
        ],
        np.uint32,
    )
