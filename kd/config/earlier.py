"""Settings that earlier versions recorded, as this version would record the same run."""

from dataclasses import fields

from kd.config.values import present

# A saved run has these settings and many more; a file that a user wrote has a few.
_OF_EVERY_RUN = {"dataset", "seed", "lr", "match_share", "finetune", "finetune_lr"}


def as_present(kind, values: dict) -> dict:
    """Return the settings of a saved run in the terms of this version.

    Values that only earlier versions wrote are replaced. Where a default has changed, the value
    that the run had is stated. A file with only some settings, which a user wrote, has the defaults
    of this version.

    kind    the class of the settings
    values  the saved settings; keys that `kind` does not have stay as they are
    """
    found = dict(values)
    for section in fields(kind):
        for entry in fields(section.type):
            if entry.name in values:
                found[entry.name] = present(entry, values[entry.name])
    # Fine-tuning began at --lr and always ended with an epoch of its own.
    if _OF_EVERY_RUN <= values.keys() and "keep_matched" not in values:
        found["keep_matched"] = False
        if values["finetune_lr"] is None:
            found["finetune_lr"] = values["lr"]
    return found
