"""How the settings of a saved run differ from those of a new plan."""

import json
from pathlib import Path

from kd.config import parsing
from kd.config.plan import Plan

PLACES = ("data_dir", "unlabeled_dir")  # of images, whose hashes a run knows


def portable(settings: dict) -> dict:
    """The same settings with absolute paths of the data, so that a run is found from anywhere."""
    paths = {
        key: str(Path(settings[key]).resolve()) for key in (*PLACES, "errata") if settings.get(key)
    }
    return settings | paths


def changed(old: dict, plan: Plan, ignored: tuple[str, ...] = ()) -> list[str]:
    """`key: old -> new` for every setting that the run uses and that changes what is computed.

    Keys that `old` lacks count as defaults.
    """
    settings = plan.settings
    new, default = portable(parsing.flat(settings)), parsing.flat(type(settings)())
    relevant = parsing.flat(settings, identity_only=True).keys() - plan.unused - set(ignored)
    return [
        f"{key}: {json.dumps(old.get(key, default[key]))} -> {json.dumps(value)}"
        for key, value in new.items()
        if key in relevant and old.get(key, default[key]) != value
    ]
