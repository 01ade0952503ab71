"""What became of the images of a data set: the counts add up, and each has its reason."""

import itertools
from collections import Counter

import numpy as np
import pytest

from kd.data.flow import MORE_THAN_ONCE, WITHOUT_LABEL, flow_of
from kd.data.index import Index, Sample, at_site
from kd.data.kept import BY_FRACTION, Kept
from kd.data.splits import split
from kd.reports.text import flow_text

FOUND = "image files found"


def an_index(given=True, sizes=None):
    """Return images of three classes, some without a label, of patients at two sites.

    Patients have 1 to 3 images, and some patients have them in two splits. Four files are identical to
    others.
    """
    random = np.random.default_rng(2)
    samples = []
    for patient in range(240):
        name = at_site(("north", "south")[patient % 2], f"p{patient // 2}")
        for image in range(random.integers(1, 4)):
            part = None
            if given:
                part = "valid" if patient % 9 == 0 else "test" if patient % 7 == 0 or patient % 40 == image == 1 else "train"
            label = -1 if (patient + image) % 6 == 0 else (0, 0, 0, 1, 1, 2)[patient % 6]
            samples.append(Sample(f"{patient}-{image}.png", label, name, name, part))
    return Index("set", ("a", "b", "c"), tuple(samples), sizes=sizes, copies=4)


def flow(index, how, sizes=(None, None, None), kept=Kept()):
    """Return ({step: images}, the splits) of a flow whose sums are checked."""
    parts = split(index, how, 0, sizes, kept)
    steps = {step["step"]: step["images"] for step in flow_of(index, parts)}
    assert len(steps) == len(flow_of(index, parts)) and 0 not in steps.values()
    excluded = sum(count for count in steps.values() if count < 0)
    used = sum(count for step, count in steps.items() if count > 0 and step not in (FOUND, MORE_THAN_ONCE))
    assert steps[FOUND] == len(index.samples) + 4 and steps["excluded: identical to another file"] == -4
    assert steps[FOUND] + excluded + steps.get(MORE_THAN_ONCE, 0) == used
    # The steps that are not of a split hold no image of one, and each row is in one step.
    others = [*parts.excluded.values(), *parts.withheld.values(), parts.pool[index.labels[parts.pool] < 0]]
    own = [np.unique(rows) for _, rows in parts.items()]
    times = Counter(np.concatenate([*others, np.unique(np.concatenate(own))]).tolist())
    assert times == Counter(range(len(index.samples)))
    labelled = parts.pool[index.labels[parts.pool] >= 0]
    assert set(np.setdiff1d(labelled, parts.train)) == {row for rows in parts.withheld.values() for row in rows}
    for name, rows in zip(("train", "validation", "test"), own):
        assert steps[f"{name} split, with labels"] == len(rows)
    return steps, parts


@pytest.mark.parametrize("given, sizes_of_set", [(True, None), (False, None), (True, (20, 5, 5))])
def test_the_counts_add_up_whatever_the_settings(given, sizes_of_set):
    index = an_index(given, sizes_of_set)
    seen = set()
    settings = itertools.product(("patient", "given"), (None, 4, 300), (None, 2), (None, 3), (1.0, 0.5), ("none", "weights", "draw"))
    for how, train, valid, test, share, balance in settings:
        steps, _ = flow(index, how, (train, valid, test), Kept(share, 1, balance))
        seen |= steps.keys()
        by_fraction, by_size = f"train split, {BY_FRACTION}", "train split, whose labels are not used because of its size of 4 images per class"
        assert (by_fraction in steps) == (share < 1) and (by_size in steps) == (train == 4)
    assert WITHOUT_LABEL in seen and ("excluded: without a label, in a validation or test split of the data set" in seen) == given
    assert ("excluded: from the train split because of patients who are in the test split" in seen) == given


def test_the_split_of_the_thesis_uses_images_in_several_splits():
    steps, _ = flow(an_index(), "thesis", (200, 30, None))
    assert steps[MORE_THAN_ONCE] > 0 and flow(an_index(), "thesis", (9, 3, None))[0]["excluded: not drawn by --split thesis"] < 0
    assert MORE_THAN_ONCE not in flow(an_index(), "thesis")[0]


def test_each_image_that_is_not_used_has_the_reason():
    index = an_index(given=False)
    steps, parts = flow(index, "given", (4, 5, None), Kept(0.5, 1))
    assert steps["train split, with labels"] + steps[f"train split, {BY_FRACTION}"] == 12
    # Whole patients are drawn, until there are five images of each class.
    why = "from the validation split, because of its size of 5 images per class"
    cut = parts.excluded[why]
    assert steps["validation split, with labels"] == 15 and steps[f"excluded: {why}"] == -len(cut) < 0
    assert {index.unit(row) for row in cut} <= {index.unit(row) for row in parts.valid}
    assert f"- excluded: {why}: {len(cut)}" in flow_text(flow_of(index, parts))
    steps, _ = flow(index, "patient")
    assert not any("size" in step or "fraction" in step or "patients" in step for step in steps)
