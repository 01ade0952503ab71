"""Teachers in memory: read once for many students in a row, with their stored logits."""

from pathlib import Path

from kd.system import ranks
from kd.system.console import log
from kd.teachers import model_file
from kd.teachers.model_file import Trained
from kd.teachers.stored_logits import StoredLogits


class TeacherCache:
    """The teachers that were read last, and what is stored of their logits.

    stores  key -> logits; each store is compared with its teacher once, when it is opened
    """

    def __init__(self):
        self.stores: dict[str, StoredLogits] = {}
        self._loaded: dict[tuple[Path, str | None], Trained] = {}

    def load(self, file: Path) -> Trained:
        """A model.pt. Raises Problem (4) for a missing or damaged one."""
        if (file, None) not in self._loaded:
            self._loaded[file, None] = model_file.load(file)
        return self._loaded[file, None]

    def load_weights(self, file: Path, name: str, classes: tuple[str, ...]) -> Trained:
        """Any file with weights of the network `name`. Raises Problem (4) where it does not fit."""
        if (file, name) not in self._loaded:
            self._loaded[file, name] = model_file.load_any(file, name, classes)
        return self._loaded[file, name]

    def keep(self, wanted: list[Trained]) -> None:
        """Let go of all other teachers, and of their stored logits' tables."""
        self._loaded = {
            key: found for key, found in self._loaded.items() if any(found is one for one in wanted)
        }
        networks = [found.network for found in wanted]
        self.stores = {
            key: store
            for key, store in self.stores.items()
            if any(store.network is network for network in networks)
        }

    def flush(self) -> None:
        """Write what is left to be stored, and say what storing was worth."""
        asked = computed = 0
        for store in self.stores.values():
            store.flush()
            asked, computed = asked + store.asked, computed + store.computed
            store.asked = store.computed = 0
        if asked:
            whose = " by the first rank" if ranks.world_size() > 1 else ""
            log(
                f"teacher's logits: {asked} asked for{whose}, {computed} computed, the others were"
                " stored"
            )
