"""Teachers in memory: loaded once for several students in a row, with their stored logits."""

from pathlib import Path

from kd.models import Classifier
from kd.system import ranks
from kd.system.console import log
from kd.teachers import model_file
from kd.teachers.model_file import Trained
from kd.teachers.stored_logits import StoredLogits


class TeacherCache:
    """The teachers that were loaded last, and their stored logits.

    stores  key -> stored logits; each store is compared with its teacher once, when it is opened
    tried   networks that have processed an image of the data set without an error
    """

    def __init__(self):
        self.stores: dict[str, StoredLogits] = {}
        self.tried: list[Classifier] = []
        self._loaded: dict[tuple[Path, str | None], Trained] = {}

    def load(self, file: Path) -> Trained:
        """Load a model.pt. Raises Problem (4) if it is missing or damaged."""
        if (file, None) not in self._loaded:
            self._loaded[file, None] = model_file.load(file)
        return self._loaded[file, None]

    def load_weights(self, file: Path, name: str, classes: tuple[str, ...]) -> Trained:
        """Load a file with weights of the network `name`. Raises Problem (4) if it does not fit."""
        if (file, name) not in self._loaded:
            self._loaded[file, name] = model_file.load_any(file, name, classes)
        return self._loaded[file, name]

    def keep(self, wanted: list[Trained]) -> None:
        """Keep only these teachers and their stored logits in memory."""
        self._loaded = {
            key: found for key, found in self._loaded.items() if any(found is one for one in wanted)
        }
        networks = [found.network for found in wanted]
        self.stores = {
            key: store
            for key, store in self.stores.items()
            if any(store.network is network for network in networks)
        }
        self.tried = [
            network for network in self.tried if any(network is kept for kept in networks)
        ]

    def flush(self) -> None:
        """Write pending logits to disk, and print how many were requested and how many computed."""
        asked = computed = 0
        for store in self.stores.values():
            store.flush()
            asked, computed = asked + store.asked, computed + store.computed
            store.asked = store.computed = 0
        if asked:
            whose = " by the first rank" if ranks.world_size() > 1 else ""
            log(
                f"teacher logits: {asked} requested{whose}, {computed} computed, the others read"
                " from the cache"
            )
