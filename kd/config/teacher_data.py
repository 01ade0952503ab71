"""The data settings of a student's teachers, where they differ from its own."""

from dataclasses import replace

from kd.config import parsing
from kd.config.rows import is_chain
from kd.config.settings import Data, DistillSettings
from kd.system.errors import Problem

# Settings of the teachers -> those of the student that they replace.
OWN = {"teacher_labeled_fraction": "labeled_fraction", "teacher_image_size": "image_size"}


def without_equal(settings: DistillSettings) -> DistillSettings:
    """Return the settings without those of the teachers that equal the student's.

    They change nothing. The run is therefore the same as without them, and is recorded as such.
    """
    equal = {}
    for key, of_student in OWN.items():
        if getattr(settings.distillation, key) == getattr(settings.data, of_student):
            equal[key] = None
    return parsing.replace(settings, **equal) if equal else settings


def data_of_teachers(settings: DistillSettings, unused: frozenset[str]) -> Data:
    """Return the data settings of the networks that teach a student.

    The teacher of a later generation of a chain is a student itself, with the data of a student.
    All labels need no draw, so that one teacher serves the students of all --labeled-seed.
    """
    if is_chain(settings) and settings.distillation.generations > 1:
        return settings.data
    own = _given(settings, unused)
    if own.get("labeled_fraction") == 1:
        own["labeled_seed"] = 0
    return replace(settings.data, **own)


def words_on_teachers(settings: DistillSettings, unused: frozenset[str]) -> str:
    """Return what the teachers' data have of their own: `all labels, 224 px`, or an empty string.

    Every generation of a chain has the words of its first teacher.
    """
    own = _given(settings, unused)
    texts = []
    if "labeled_fraction" in own:
        share = own["labeled_fraction"]
        texts.append("all labels" if share == 1 else f"{100 * share:g} % of the labels")
    if "image_size" in own:
        texts.append(f"{own['image_size']} px")
    return ", ".join(texts)


def refuse_thesis(settings: DistillSettings, unused: frozenset[str]) -> None:
    """Raise Problem for teachers with a part of the labels of a split that is drawn by image."""
    share = _given(settings, unused).get("labeled_fraction", 1)
    if settings.data.split == "thesis" and share < 1:
        raise Problem(
            "--teacher-labeled-fraction is not valid with --split thesis, which has patients in"
            " more than one split. Use --split patient."
        )


def _given(settings: DistillSettings, unused: frozenset[str]) -> dict:
    """Return the data settings that the teachers have of their own, by the student's keys."""
    found = {}
    for key, of_student in OWN.items():
        value = getattr(settings.distillation, key)
        if value is not None and key not in unused:
            found[of_student] = value
    return found
