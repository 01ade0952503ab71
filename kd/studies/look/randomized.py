"""The same network with random weights, from the last layer up: the control of its maps.

Adebayo et al. 2018, arXiv:1810.03292, section 3.1, "cascading randomization". If the maps of a
network with random weights resemble those of the trained one, they show the image and the
architecture, and not what was learned.
"""

from collections.abc import Iterator

from kd import models
from kd.models import Classifier, state_on_cpu
from kd.system.timm_layouts import head_keys

SEED = 181003292  # not the seed of a run, whose initial weights would be drawn again
LAST_LAYER = "last layer"
ALL = "all weights"


def cascade(network: Classifier, draw: int) -> Iterator[tuple[str, Classifier]]:
    """Yield (name of a step, the network with random weights and buffers from there to its end).

    The first step is the last layer, the last one is the whole network, and between them are the
    stages that timm names, from the last. The weights are drawn as before training, once for all
    steps of a `draw` (a number from 0 on). The order of the modules is that of their definition,
    which in timm is that of their use. Each step changes the same network; the given one stays as
    it is.
    """
    device = network.mean.device
    own = models.build(network.architecture, network.classes, seed=SEED + draw)
    own.name, own.mean, own.std = network.name, network.mean, network.std
    random = state_on_cpu(own.module)
    trained = state_on_cpu(network.module)
    own.to(device)
    for name, keys in steps(network):
        mixed = {key: random[key] if key in keys else trained[key] for key in trained}
        own.module.load_state_dict(mixed)
        yield name, own


def steps(network: Classifier) -> list[tuple[str, set[str]]]:
    """Return (name of a step, keys of the state that are random in it), from few to all."""
    keys = list(network.module.state_dict())
    place = {name: number for number, (name, _) in enumerate(network.module.named_modules())}
    owner = {key: place.get(key.rpartition(".")[0], 0) for key in keys}
    last = set(head_keys(network.module)) or {key for key in keys if owner[key] == owner[keys[-1]]}
    found = [(LAST_LAYER, last)]
    stages = network.stages()
    for before, stage in reversed(list(zip(stages, stages[1:]))):
        end = max(place[name] for name in place if _is_in(name, before))
        random = {key for key in keys if owner[key] > end} | last
        if len(random) > len(found[-1][1]):
            found.append((f"from {stage} on", random))
    return [*found, (ALL, set(keys))]


def _is_in(name: str, stage: str) -> bool:
    """Return whether a module is a stage or a part of it."""
    return name == stage or name.startswith(f"{stage}.")
