"""Stored logits: computed once for every view of every image and reused by all students."""

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
from kd.teachers.outputs import BatchImages, BatchLogits, LiveNetwork, same_images

FLUSH_EVERY = 20  # steps between two writes, because a write has to wait for the GPU
CHECKED = 4  # stored rows that are compared with the live teacher
# How much a stored logit may differ from the live one, relative to the range of the logits in the
# batch. They differ because of other kernels and other batch sizes.
TOLERANCE = {"float32": 1e-3, "bf16": 2e-2, "fp16": 2e-2}


def key_of(network: Classifier, weights: str, views: Views, precision: Precision) -> str:
    """Return a hash of everything that a teacher's logits depend on.

    The results of a run must not depend on earlier runs. The hash therefore also covers everything
    that affects the rounding in float32: the composition of the batches, and the device.

    weights  the hash of the teacher's state
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


def store(cache_dir: str, network: Classifier, key: str, logits: np.ndarray) -> None:
    """Store a network's logits, float32 [slots, K], for views that are the same in every epoch.

    A student of the network then reads them. An existing file is left as it is. If the file cannot
    be written, nothing is lost but the time to compute the logits again.
    """
    path = _path(cache_dir, network, key)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "xb") as file:
            file.write(_records(logits, np.arange(len(logits))).tobytes())


class StoredLogits:
    """A teacher (batch of `views` -> logits [B, K]) whose logits are stored on disk.

    Logits that are not stored yet are computed by the live teacher and written to disk.

    The file is an array [epochs, slots, K + 1] of float32: the logits and a checksum per row. Rows
    that have not been computed yet are holes. A row that is incomplete, because of a kill or
    another run that writes it at the same time, counts as a hole. A batch with a hole is computed
    completely. If the file cannot be read or written, one warning is printed, and training
    continues with the rows that are available.

    views  the views that the teacher sees
    own    as of `LiveNetwork`
    """

    file: int | None = None  # so that __del__ works if __init__ fails before a file is open

    def __init__(
        self,
        cache_dir: str,
        network: Classifier,
        key: str,
        views: Views,
        precision: Precision,
        own: BatchImages = same_images,
    ):
        self.network, self.precision = network, precision
        self.slots, self.device = len(views), views.device
        # Whether the views, or the batches that contain them, differ between epochs.
        self.changing = views.augmentation.changes or views.shuffle
        self.live: BatchLogits = LiveNetwork(network, precision, own)
        self.path = _path(cache_dir, network, key)
        self.width = len(network.classes)
        self.writable, self.epoch, self.fresh, self.asked, self.computed = True, None, [], 0, 0
        self._open()
        if self.file is not None:
            self._check(views)

    def __call__(self, batch: Batch) -> torch.Tensor:
        """Return the logits of a batch, float32 [B, K], on its device."""
        if not batch.share:  # a placeholder: another rank computes these rows
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
        """Write the logits that were computed since the last call."""
        fresh, self.fresh = self.fresh, []
        if not fresh or self.file is None or not self.writable:
            return
        slots = np.concatenate(fresh)
        values = self.table[torch.from_numpy(slots).to(self.table.device)].cpu().numpy()
        places = self.epoch * self.slots + slots
        record = _records(values, places)
        try:
            for place, row in zip(places.tolist(), record):
                os.pwrite(self.file, row.tobytes(), place * row.nbytes)
        except OSError as error:
            self._warn(error)

    def close(self) -> None:
        """Write pending logits and close the file. Later logits are computed but not stored."""
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
            # A network file system may report a failed write only here. Such rows have a wrong
            # checksum, so that they count as holes.
            with contextlib.suppress(OSError):
                os.close(file)

    def _warn(self, error: OSError) -> None:
        if self.writable:
            log(
                f"warning: '{self.path}' cannot be used ({reason(error)}). The teacher's logits are"
                " no longer stored. The run continues. Free space or use another --cache-dir for"
                " the next run."
            )
        self.writable = False

    def _seen(self, epoch: int) -> int:
        return epoch if self.changing else 0

    def _read(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (logits float32 [slots, K], which rows are complete: bool [slots]) of an epoch."""
        record = np.zeros((self.slots, self.width + 1), np.float32)
        if self.file is not None:
            try:
                os.preadv(self.file, [record.reshape(-1).view(np.uint8)], epoch * record.nbytes)
            except OSError as error:  # a network file system, or the file is gone
                self._warn(error)
        values = np.ascontiguousarray(record[:, :-1])
        return values, record.view(np.uint32)[:, -1] == _checksums(
            values, epoch * len(record) + np.arange(len(record))
        )

    def _check(self, views: Views) -> None:
        """Compare a few random stored rows with the live teacher.

        If they differ, all rows are discarded.
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
                    f"warning: The stored logits of {self.network.name} differ from the teacher's"
                    f" by {error:.3g} (their range is {spread:.3g}). They are discarded and"
                    " computed again."
                )
                self._discard()
            return

    def _discard(self) -> None:
        try:
            os.ftruncate(self.file, 0)  # not deleted, because other ranks and runs may have it open
        except OSError as error:
            self._warn(error)
            self._close_file()


def _path(cache_dir: str, network: Classifier, key: str) -> Path:
    return Path(cache_dir) / "logits" / f"{slug(network.name)}-{key}"


def _records(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return rows [n, K] with the checksums of their places in the file: float32 [n, K + 1]."""
    records = np.empty((len(values), values.shape[1] + 1), np.float32)
    records[:, :-1] = values
    records.view(np.uint32)[:, -1] = _checksums(values, places)
    return records


def _checksums(values: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Return the CRC-32 of each row [n, K] and its place in the file: uint32 [n].

    It is never 0, which marks a hole.
    """
    rows = memoryview(values).cast("B")
    width = values.shape[1] * 4
    return np.array(
        [
            zlib.crc32(rows[start : start + width], place & 0xFFFFFFFF) | 1
            for start, place in zip(range(0, len(rows), width), places.tolist())
        ],
        np.uint32,
    )
