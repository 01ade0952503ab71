"""How the settings of a saved run differ from those of a new plan."""

import json
from pathlib import Path

from kd.config import parsing
from kd.config.earlier import as_present
from kd.config.plan import Plan

PLACES = ("data_dir", "unlabeled_dir", "table")  # of images, whose hashes a run knows


def portable(settings: dict) -> dict:
    """Return the settings with absolute paths of the data, valid in any working folder."""
    paths = {
        key: str(Path(settings[key]).resolve()) for key in (*PLACES, "errata") if settings.get(key)
    }
    return settings | paths


def changed(old: dict, plan: Plan, ignored: tuple[str, ...] = ()) -> list[str]:
    """Return `key: old -> new` for every changed setting that affects what the run computes.

    Settings that the run does not use and those in `ignored` are skipped. Keys missing in `old`
    have their defaults, and values of earlier versions are those that replace them.
    """
    settings = plan.settings
    old = as_present(type(settings), old)
    new, default = portable(parsing.flat(settings)), parsing.flat(type(settings)())
    relevant = parsing.flat(settings, identity_only=True).keys() - plan.unused - set(ignored)
    return [
        f"{key}: {json.dumps(old.get(key, default[key]))} -> {json.dumps(value)}"
        for key, value in new.items()
        if key in relevant and old.get(key, default[key]) != value
    ]
