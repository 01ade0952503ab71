"""A store that passes over images that cannot be read, for the prediction of all others."""

import numpy as np

from kd.data.store import Store
from kd.system.signals import never_stop


class PartialStore(Store):
    """A store that collects the images that cannot be read in place of raising Problem.

    unreadable  {row: reason}; these rows have no image
    """

    def __init__(self, *args, **options):
        self.unreadable = {}
        super().__init__(*args, **options)

    def ensure(self, rows: np.ndarray, check_stop=never_stop) -> int:
        """Decode those of `rows` that are neither decoded nor known to be unreadable yet."""
        return super().ensure(self.readable(rows), check_stop)

    def readable(self, rows: np.ndarray) -> np.ndarray:
        """Return those of `rows` that are not known to be unreadable."""
        return np.array([row for row in rows if int(row) not in self.unreadable], dtype=np.int64)

    def _refuse(self, faults: dict[int, str], cure: str) -> None:
        self.unreadable |= faults
