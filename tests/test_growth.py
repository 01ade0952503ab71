"""Splits by fraction of a data set that grows: no patient changes its split.

The exceptions, for classes with few patients, are tested one by one.
"""

from collections import Counter

import numpy as np
import pytest

from kd.data.index import Index, Sample, at_site
from kd.data.readers import mura, retinopathy, synthetic
from kd.data.splits import FRACTION, number_of, split
from kd.system.errors import Problem

NONE = (None, None, None)


def archive(seed, classes, patients, space=""):
    """Return an archive whose patients each have 1 to 12 images, some of them of two classes.

    What is in it of a patient does not depend on the number of patients, and new patients are
    spread among the old ones by their names.
    """
    samples = []
    for patient in range(patients):
        random = np.random.default_rng((seed, patient))
        name = f"{random.integers(16**6):06x}-{patient}"
        first, second = random.integers(classes, size=2)
        for image in range(min(12, random.geometric(0.4))):
            label = int(second if image == 3 and patient % 5 == 0 else first)
            samples.append(Sample(f"{name}/{image}.png", label, name, name))
    return Index("archive", tuple("abcde"[:classes]), tuple(sorted(samples)), space)


def index_of(images, classes="ab", split_of=lambda patient: None):
    """Return an index of {class: {patient: number of images}}."""
    samples = []
    for label, name in enumerate(classes):
        for patient, count in images[name].items():
            for number in range(count):
                samples.append(Sample(f"{name}/{patient}/{number}.png", label, patient, patient, split_of(patient)))
    return Index("set", tuple(classes), tuple(samples))


def sides(index, seed=0, how="patient", sizes=NONE):
    """Return {patient: the only split of its images}."""
    found = {}
    for name, rows in split(index, how, seed, sizes).items():
        for row in rows:
            assert found.setdefault(index.samples[row].patient, name) == name
    return found


def drawn(patient, seed=0):
    """Return the split of a patient to whom no exception applies."""
    for name in ("test", "valid"):
        if number_of(patient, seed, name) < FRACTION:
            return name
    return "train"


def named(side, count, start=0):
    """Return names of patients who would be drawn for a split."""
    names = (f"{side}{number}" for number in range(start, 10**6))
    return [name for _, name in zip(range(count), (name for name in names if drawn(name) == side))]


@pytest.mark.parametrize("classes", [2, 3, 4, 5])
@pytest.mark.parametrize("seed", [0, 1, 2, 3, 4])
def test_no_patient_changes_its_split_while_an_archive_grows(seed, classes):
    old = sides(archive(seed, classes, 500), seed)
    assert len(old) == 500 and set(old.values()) == {"train", "valid", "test"}
    for patients in range(505, 551, 5):
        new = sides(archive(seed, classes, patients), seed)
        assert len(new) == patients and [name for name in old if old[name] != new[name]] == []
        old = new
    counts = Counter(old.values())
    # 15 % of 550 patients are 82, with a standard deviation of 8; of the others, 15 % are 70.
    assert 55 <= counts["test"] <= 110 and 45 <= counts["valid"] <= 95
    images = {name: len(rows) for name, rows in split(archive(seed, classes, 550), "patient", seed, NONE).items()}
    assert 0.09 < images["test"] / sum(images.values()) < 0.21
    assert 0.09 < images["valid"] / (images["train"] + images["valid"]) < 0.21


def test_more_images_of_old_patients_and_the_loss_of_others_change_nothing_either():
    index = archive(0, 3, 300)
    old = sides(index)
    random = np.random.default_rng(0)
    fewer = index.only(np.flatnonzero(random.random(len(index.samples)) < 0.7))
    assert {name: old[name] for name in sides(fewer)} == sides(fewer)
    more = [sample._replace(path=f"{sample.path}.again.png") for sample in index.samples[::3]]
    grown = Index("archive", index.classes, tuple(sorted([*index.samples, *more])))
    assert sides(grown) == old


def test_the_number_of_a_patient_is_frozen_and_differs_between_seeds_and_splits():
    frozen = [number_of(*key) for key in (("p1", 0, "test"), ("p1", 0, "valid"), ("p1", 1, "test"), ("Ä/\udcff", 0, "test"))]
    assert frozen == [0.8904560742924451, 0.3359694516252266, 0.6899971942646436, 0.20783023987587879]
    numbers = np.array([[number_of(f"p{k}", 0, name) for k in range(4000)] for name in ("test", "valid")])
    assert 0 <= numbers.min() and numbers.max() < 1
    assert np.abs((numbers < FRACTION).mean(1) - FRACTION).max() < 0.02
    assert abs(np.corrcoef(numbers)[0, 1]) < 0.05


def test_the_split_of_every_patient_is_that_of_its_numbers():
    index = archive(7, 4, 400)
    assert sides(index, 5) == {sample.patient: drawn(sample.patient, 5) for sample in index.samples}
    assert sides(index, 5) != sides(index, 6)


def test_images_without_a_patient_keep_their_splits_too():
    paths = [f"{number:03d}.png" for number in range(400)]
    samples = [Sample(path, number % 2, path, path) for number, path in enumerate(paths)]
    old = sides(Index("set", ("a", "b"), tuple(samples[:200])))
    new = sides(Index("set", ("a", "b"), tuple(samples)))
    assert {name: new[name] for name in old} == old and set(old.values()) == {"train", "valid", "test"}


def test_a_missing_split_only_is_drawn_and_given_splits_stay():
    index = index_of({"a": dict.fromkeys((f"a{k}" for k in range(200)), 1), "b": dict.fromkeys((f"b{k}" for k in range(200)), 2)},
                     split_of=lambda patient: "test" if patient.endswith("7") else "train")
    for how in ("patient", "given"):
        for patient, side in sides(index, 3, how).items():
            given = "valid" if number_of(patient, 3, "valid") < FRACTION else "train"
            assert side == ("test" if patient.endswith("7") else given)


def test_a_size_that_is_set_for_one_split_leaves_the_other_to_the_numbers():
    index = archive(1, 2, 400)
    small = sides(index, 0, sizes=(None, None, 9))
    for patient, side in small.items():
        assert side == "test" or side == ("valid" if number_of(patient, 0, "valid") < FRACTION else "train")
    test = [patient for patient, side in sides(index, 0, sizes=(None, 9, None)).items() if side == "test"]
    assert set(test) == {sample.patient for sample in index.samples if number_of(sample.patient, 0, "test") < FRACTION}


def test_few_labels_leave_the_splits_by_number_as_they_are():
    from kd.data.splits import Kept
    index = archive(2, 3, 300)
    whole, few = split(index, "patient", 0, NONE), split(index, "patient", 0, NONE, Kept(0.2, 1))
    assert np.array_equal(whole.valid, few.valid) and np.array_equal(whole.test, few.test)
    assert set(few.train) < set(whole.train)


def test_only_drawings_do_not_grow(tmp_path):
    assert not synthetic.read(28, 0).grows and Index("x", (), ()).grows


def test_a_class_of_one_patient_stays_in_train_and_a_note_names_it():
    [lonely] = named("test", 1)  # it would be drawn
    images = {"a": dict.fromkeys((f"p{k}" for k in range(60)), 1), "b": dict.fromkeys((f"q{k}" for k in range(60)), 2), "c": {lonely: 5}}
    index = index_of(images, "abc")
    assert sides(index)[lonely] == "train"
    notes = split(index, "patient", 0, NONE).notes
    assert notes == ("The validation split has no images of c; the test split has no images of c.",)


def test_a_patient_with_more_than_half_of_a_class_stays_in_train():
    [large] = named("test", 1)
    others = {f"p{k}": 1 for k in range(40)}
    healthy = dict.fromkeys((f"q{k}" for k in range(60)), 2)
    assert sides(index_of({"a": {large: 41} | others, "b": healthy}))[large] == "train"
    assert sides(index_of({"a": {large: 40} | others, "b": healthy}))[large] == "test"  # exactly half
    # One number for all whose patient is not known, in both classes: train still has everyone else.
    mixed = index_of({"a": {large: 500} | others, "b": {large: 500} | healthy})
    found = split(mixed, "patient", 0, NONE)
    assert len(found.train) > 1000 and min(len(found.valid), len(found.test)) >= 10
    assert sides(mixed)[large] == "train"


def test_a_class_that_nobody_would_bring_to_a_split_is_brought_by_the_lowest_number():
    few = named("train", 4)
    index = index_of({"a": dict.fromkeys((f"p{k}" for k in range(60)), 1), "b": dict.fromkeys(few, 1)})
    found = sides(index)
    lowest = min(few, key=lambda name: number_of(name, 0, "test"))
    rest = [name for name in few if name != lowest]
    second = min(rest, key=lambda name: number_of(name, 0, "valid"))
    assert [name for name in few if found[name] == "test"] == [lowest]
    assert [name for name in few if found[name] == "valid"] == [second]
    assert not split(index, "patient", 0, NONE).notes
    # A patient with a lower number takes its place; nobody else moves.
    lower = next(name for name in named("train", 500, 1000) if number_of(name, 0, "test") < number_of(lowest, 0, "test"))
    grown = sides(index_of({"a": dict.fromkeys((f"p{k}" for k in range(60)), 1), "b": dict.fromkeys([*few, lower], 1)}))
    assert grown[lower] == "test" and {name for name in found if found[name] != grown[name]} <= {lowest, second}


def test_train_keeps_a_class_whose_patients_would_all_be_drawn():
    for side in ("test", "valid"):
        few = named(side, 3)
        found = sides(index_of({"a": dict.fromkeys((f"p{k}" for k in range(60)), 1), "b": dict.fromkeys(few, 1)}))
        kept = max(few, key=lambda name: number_of(name, 0, side))
        if side == "test":
            assert [found[name] for name in few].count("test") == 2 and found[kept] == "train"
        else:
            # The lowest number for test is brought there first, and one of the two others stays.
            assert sorted(found[name] for name in few) == ["test", "train", "valid"]


def test_small_classes_are_in_every_split_that_they_can_be_in():
    random = np.random.default_rng(0)
    for seed in range(300):
        held = {name: {f"{name}{seed}-{k}": int(random.integers(1, 6)) for k in range(random.integers(1, 7))} for name in "bcd"}
        held["a"] = {f"a{seed}-{k}": 1 for k in range(40)}
        found = sides(index_of(held, "abcd"), seed)
        for patients in held.values():
            counts = Counter(found[name] for name in patients)
            assert counts["train"] >= 1
            assert counts["test"] >= (len(patients) > 1)
            assert counts["valid"] >= (len(patients) - counts["test"] > 1)


def test_patients_of_two_small_classes_never_leave_a_class_without_train_images():
    random = np.random.default_rng(1)
    for seed in range(300):
        samples = []
        for patient in range(random.integers(6, 12)):
            for image in range(random.integers(1, 5)):
                name = f"{seed}-{patient}"
                samples.append(Sample(f"{name}/{image}", int(random.integers(4)), name, name))
        index = Index("set", tuple("abcd"), tuple(samples))
        if len(set(index.labels)) < 4:
            continue
        try:
            found = split(index, "patient", seed, NONE)
        except Problem as problem:  # so few patients that nobody is left for a split
            assert "validation split" in str(problem) or "test split" in str(problem)
            continue
        assert set(index.labels[found.train]) == {0, 1, 2, 3}


def test_the_readers_say_whose_names_of_patients_they_have():
    assert synthetic.read(28, 0).space == "synthetic" and Index("x", (), ()).space == ""
    assert retinopathy.SPACES == {"eyepacs": "eyepacs", "aptos": "aptos", "messidor": "messidor", "messidor2": "messidor",
                                  "mura": "mura"}
    assert mura.THESIS_SIZES == (2201, 250, 245)


def test_a_patient_keeps_his_side_when_his_site_becomes_known():
    for seed in range(5):
        sides = []
        for site in ("", "UKE"):
            samples = [Sample(f"{k}.png", k % 2, at_site(site, f"P{k // 4}"), f"s{k}") for k in range(400)]
            chosen = split(Index("set", ("a", "b"), tuple(samples)), "patient", seed, (None, None, None))
            sides.append([chosen.train.tolist(), chosen.valid.tolist(), chosen.test.tolist()])
        assert sides[0] == sides[1]


def test_images_of_a_study_stay_together_where_the_patient_is_unknown():
    samples = [Sample(f"{k}.dcm", k // 2 % 2, f"{k}.dcm", f"1.2.{k // 2}") for k in range(200)]
    chosen = split(Index("set", ("a", "b"), tuple(samples)), "patient", 0, (None, None, None))
    studies = [{samples[row].study for row in rows} for _, rows in chosen.items()]
    assert all(studies) and sum(map(len, studies)) == 100
