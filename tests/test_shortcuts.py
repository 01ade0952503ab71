"""Whether properties of the files tell the class."""

import numpy as np
import pytest

from kd.data.check import shortcuts
from kd.data.check.inspection import PROPERTIES, Finding
from kd.data.index import Index, Sample


def told(labels, sizes=None, patients=None, **properties):
    """Return the result for files with these sizes and properties, one value for each file."""
    samples, findings = [], []
    for row, label in enumerate(labels):
        patient = patients[row] if patients else f"{row}.png"
        samples.append(Sample(f"{row}.png", label, patient, patient))
        own = dict.fromkeys(PROPERTIES, "") | {name: str(values[row]) for name, values in properties.items()}
        findings.append(Finding("", b"", sizes[row] if sizes else (64, 64), own))
    classes = tuple("abcdefgh"[:max(labels) + 1])
    return shortcuts.told_by_properties(Index("set", classes, tuple(samples)), findings, list(range(len(labels))))


HALVES = [0, 1] * 20


def test_equal_files_tell_nothing():
    result = told(HALVES, bits=["8"] * 40)
    assert result["all"] == result["chance"] == 0.5 and result["single"] == {} and not shortcuts.is_told(result)


@pytest.mark.parametrize("name", PROPERTIES)
def test_each_property_is_seen(name):
    result = told(HALVES, **{name: ["yes", "no"] * 20})
    assert result["single"] == {PROPERTIES[name]: 1.0} and result["all"] == 1 and shortcuts.is_told(result)


def test_sizes_are_seen():
    random = np.random.default_rng(0)
    sizes = [(64, 64) if label == 0 else tuple(random.integers(60, 300, 2)) for label in HALVES]
    result = told(HALVES, sizes)
    assert result["all"] > 0.9 and shortcuts.is_told(result) and result["single"]["width"] > 0.9
    # Neither side alone tells the class, but their ratio does.
    scale = random.integers(100, 900, 40)
    sizes = [(3 * one, 4 * one) if label else (4 * one, 3 * one) for label, one in zip(HALVES, scale)]
    result = told(HALVES, sizes)
    assert result["single"]["aspect ratio"] == 1 and result["single"]["width"] < 0.8 and result["single"]["height"] < 0.8


def test_a_property_without_relation_to_the_class_is_no_shortcut():
    random = np.random.default_rng(0)
    labels = random.permutation([0] * 60 + [1] * 60).tolist()
    result = told(labels, [tuple(size) for size in random.integers(500, 3000, (120, 2))],
                  manufacturer=random.choice(["x", "y", "z"], 120))
    assert not shortcuts.is_told(result) and abs(result["all"] - 0.5) < 0.2


def test_the_threshold_is_half_way_from_chance_to_one():
    labels = [0, 1, 2] * 20
    # The first class is told completely, the other two not at all.
    result = told(labels, format=["PNG", "JPEG", "JPEG"] * 20)
    assert result["chance"] == pytest.approx(1 / 3) and result["threshold"] == pytest.approx(2 / 3)
    assert result["all"] == pytest.approx(2 / 3) and not shortcuts.is_told(result)
    assert shortcuts.is_told(told(labels, format=["PNG", "JPEG", "TIFF"] * 20))


def test_patients_are_not_told_apart():
    """Sizes that differ between patients, not between classes, are no shortcut."""
    random = np.random.default_rng(3)
    own = {patient: tuple(random.integers(500, 3000, 2)) for patient in range(12 * 2)}
    patients = [patient for patient in own for _ in range(6)]
    labels = [patient % 2 for patient in patients]
    result = told(labels, [own[patient] for patient in patients], [f"p{patient}" for patient in patients])
    assert result["all"] < 0.75 and not shortcuts.is_told(result)


def test_classes_of_few_patients_are_left_out():
    result = told([0, 1] * 15 + [2] * 9, format=["PNG", "JPEG"] * 15 + ["TIFF"] * 9)
    assert result["left_out"] == ["c: 9 patients"] and result["classes"] == 2 and result["images"] == 30
    result = told([0] * 30 + [1] * 30, patients=["p"] * 30 + [f"q{k}" for k in range(30)])
    assert result == {"skipped": "fewer than two classes have readable images of 10 patients (a: 1 patient)"}
    assert not shortcuts.is_told(result)


def test_rare_values_are_not_told_apart():
    many = [f"maker {k}" for k in range(300)]
    result = told([k % 2 for k in range(300)], manufacturer=many)
    assert result["all"] == pytest.approx(0.5, abs=0.1)
