"""Splits: their sizes, what they share, and that only the split seed changes them.

Splits of a data set that grows are tested in test_growth.py.
"""

import hashlib

import numpy as np
import pytest
from conftest import write_table

from kd.config.settings import Data
from kd.data.dataset import open_dataset, read_index
from kd.data.index import Index, Sample
from kd.data.readers import synthetic
from kd.data.splits import Kept, overlaps, split
from kd.system.errors import Problem

NONE = (None, None, None)


def make_index(per_class=(60, 40), per_patient=3, part=None, sizes=None):
    """Return an index of two classes.

    Every patient has `per_patient` images, and some patients have images of both classes.
    """
    samples = []
    for label, count in enumerate(per_class):
        for number in range(count):
            patient = f"p{number // per_patient}" if number % 5 == 0 else f"p{label}-{number // per_patient}"
            samples.append(Sample(f"{label}/{number}.png", label, patient, patient, part(label, number) if part else None))
    return Index("set", ("a", "b"), tuple(samples), sizes=sizes)


def patients(index, rows):
    return {index.samples[row].patient for row in rows}


def shared(index, parts):
    return (patients(index, parts.train) & patients(index, parts.valid) | patients(index, parts.train)
            & patients(index, parts.test) | patients(index, parts.valid) & patients(index, parts.test))


def uneven(given, own=None):
    """Return three classes of uneven size, whose patients have 1 to 4 images.

    A few patients have images of two classes, and a few images have no patient. Every sixth patient
    is in the split `given`.
    """
    random = np.random.default_rng(5)
    samples = []
    for patient in range(400):
        for image in range(random.integers(1, 5)):
            label = int(patient % 10 > 5) + int(patient % 10 > 8)
            label = (label + 1) % 3 if patient % 17 == 0 and image == 1 else label
            path = f"{patient}/{image}.png"
            name = path if patient % 13 == 0 else f"p{patient % 380}"
            part = given if given and patient % 6 == 0 else ("train" if given else None)
            samples.append(Sample(path, label, name, name, part))
    return Index("set", ("a", "b", "c"), tuple(samples), sizes=own)


def rows_hash(parts):
    sha = hashlib.sha256()
    for rows in (parts.train, parts.valid, parts.test, parts.pool):
        sha.update(np.asarray(rows, "<i8").tobytes() + b"|")
    sha.update(str(parts.shown).encode())
    return sha.hexdigest()[:16]


# Hashes of the splits that version ce2f595 drew. Runs of the thesis and all published figures depend
# on them.
FROZEN = {
    "MURA's sizes": ("d7c6fb4640a30861", ("test", (60, 12, 15)), ("patient", 0, NONE)),
    "MURA's sizes, seed 3": ("c6f222d9659ae58e", ("test", (60, 12, 15)), ("patient", 3, NONE)),
    "sizes in the settings": ("8b66e029cdea74ae", (None,), ("patient", 1, (50, 9, 9))),
    "sizes of two splits": ("a2f84c673c320889", (None,), ("patient", 1, (None, 9, 9))),
    "given, a validation size": ("6f7cb06748fb5b3b", ("test",), ("given", 2, (None, 9, None))),
    "given, a test size": ("4ddb3bf171d84c11", ("valid",), ("given", 2, (None, None, 9))),
    "few labels": ("e709d519df47e837", ("test", (60, 12, 15)), ("patient", 0, NONE, Kept(0.2, 4))),
    "few labels, balanced": ("91524cab94eec4fd", (None,), ("patient", 1, (None, 9, 9), Kept(0.5, 4, "draw"))),
    "thesis": ("da439f496259c69e", ("test",), ("thesis", 0, NONE)),
    "thesis with sizes": ("98f00e549406a492", ("test",), ("thesis", 7, (60, 12, None))),
    "synthetic": ("f962b72eb15473fd", 560, ("patient", 0, NONE)),
    "synthetic, seed 9": ("13fcb346700eceed", 196, ("patient", 9, NONE)),
    "synthetic, sizes": ("9e22fa68558135e4", 560, ("patient", 0, (30, 4, 4))),
    "synthetic, given": ("86de4330354a1a29", 560, ("given", 1, NONE)),
    "synthetic, few labels": ("0becc92912194a36", 560, ("patient", 0, NONE, Kept(0.3, 2, "draw"))),
    "synthetic, thesis": ("85414b3ad487bff3", 560, ("thesis", 0, NONE)),
}


@pytest.mark.parametrize("name", FROZEN)
def test_splits_of_set_sizes_the_thesis_split_and_those_of_drawings_are_frozen(name):
    expected, made_from, how = FROZEN[name]
    index = synthetic.read(made_from, 0) if isinstance(made_from, int) else uneven(*made_from)
    assert rows_hash(split(index, *how)) == expected


def test_no_patient_is_in_more_than_one_split():
    index = make_index()
    parts = split(index, "patient", 0, NONE)
    assert not shared(index, parts) and min(len(parts.train), len(parts.valid), len(parts.test)) > 5
    assert len(parts.train) + len(parts.valid) + len(parts.test) == len(index.samples)


def test_only_the_split_seed_changes_the_splits():
    index = make_index()
    first, again, other = (split(index, "patient", seed, NONE) for seed in (0, 0, 1))
    assert first.hash(index) == again.hash(index) != other.hash(index)


def test_a_given_test_split_is_kept_and_its_patients_leave_the_others():
    index = make_index(part=lambda label, number: "test" if number < 13 else "train")
    parts = split(index, "patient", 0, NONE)
    given = [row for row, sample in enumerate(index.samples) if sample.split == "test"]
    assert parts.test.tolist() == given and not shared(index, parts) and parts.notes


def test_given_splits_are_unchanged_even_if_they_share_patients():
    names = ("train", "train", "valid", "test")
    index = make_index(part=lambda label, number: names[number % 4])
    parts = split(index, "given", 0, NONE)
    assert [len(parts.train), len(parts.valid), len(parts.test)] == [50, 25, 25] and shared(index, parts)


def test_patients_on_two_sides_of_a_table_are_counted_with_given_and_separated_with_patient(labelled):
    rows = (labelled / "images.csv").read_text().replace("p6,test", "p0,test")  # of class b in train, a in test
    (labelled / "images.csv").write_text(rows.replace("x/image15.png,b,p7,test", "x/image15.png,b,p7,train"))
    found = {}
    for how in ("given", "patient"):
        data = Data(dataset="folder", data_dir=str(labelled), image_size=32, split=how)
        found[how] = open_dataset(data, read_index(data)).describe()
    assert found["given"]["overlaps"]["patients"] == 2 and found["given"]["leaks"]
    assert "2 patients are in more than one split." in found["given"]["notes"]
    assert found["given"]["parts"]["test"] == found["patient"]["parts"]["test"] == 3
    assert found["patient"]["overlaps"]["patients"] == 0 and not found["patient"]["leaks"]
    assert "3 images were excluded from the train split because of patients who are in the test split." in found["patient"]["notes"]


def test_one_note_names_the_classes_that_splits_lack():
    names = {0: ("train", "valid", "test"), 1: ("train", "train", "test"), 2: ("train", "train", "train")}
    samples = [Sample(f"{label}-{k}", label, f"{label}-{k}", "", names[label][k]) for label in names for k in range(3)]
    notes = split(Index("set", ("a", "b", "c"), tuple(samples)), "given", 0, NONE).notes
    assert notes == ("The validation split has no images of b, c; the test split has no images of c.",)
    notes = split(Index("set", ("a", "b", "c"), tuple(samples)), "given", 0, (None, 1, None)).notes
    assert notes == ("The validation split has 0 images of b, fewer than the 1 requested.",
                     "The validation split has 0 images of c, fewer than the 1 requested.", "The test split has no images of c.")


def test_small_classes_repeat_in_the_train_split_only():
    index = make_index(per_class=(200, 60))
    parts = split(index, "patient", 0, (100, 8, 8))
    assert np.bincount(index.labels[parts.train]).tolist() == [100, 100]
    assert np.bincount(index.labels[parts.valid]).tolist() == [8, 8] == np.bincount(index.labels[parts.test]).tolist()
    assert len(np.unique(parts.valid)) == 16 and len(np.unique(parts.train)) < 200
    assert len(np.unique(parts.train[index.labels[parts.train] == 0])) == 100
    assert not shared(index, parts)


def test_the_thesis_split_leaks_and_reports_it():
    index = make_index(per_class=(200, 60))
    parts = split(index, "thesis", 0, (100, 20, None))
    assert parts.leaks and "LEAKS" in parts.notes[0] and shared(index, parts)
    assert [len(parts.test), len(parts.valid)] == [24, 36]


@pytest.mark.parametrize("sizes", [(100, None, None), (None, 20, None), (100, 20, 20)])
def test_sizes_that_the_thesis_split_cannot_keep_are_refused(sizes):
    with pytest.raises(Problem, match="together, or neither"):
        split(make_index(per_class=(200, 60)), "thesis", 0, sizes)


def test_a_class_without_images_is_refused():
    index = Index("set", ("a", "b"), tuple(Sample(f"{n}", n % 2, "one", "one") for n in range(10)))
    with pytest.raises(Problem, match="without images of a, b. 10 of 10 images have the same patient, 'one': if this is not one person,"
                       " name the patients in a table or by --patient-pattern. Add images"):
        split(index, "patient", 0, NONE)


def test_patients_that_are_probably_none_are_named_where_a_split_is_empty():
    def refused(names, how="patient"):
        samples = [Sample(f"{label}/{k}", label, name, name) for label, own in enumerate(names) for k, name in enumerate(own)]
        with pytest.raises(Problem, match="without images of") as caught:
            split(Index("set", tuple("abc"[:len(names)]), tuple(samples)), how, 0, NONE)
        return str(caught.value)
    text = refused((["X1"] * 5, ["X2"] * 4))
    assert "of a, b. Each class has only one patient: check that the classes are not patients themselves. Add images" in text
    text = refused((["batch"] * 18 + ["p1"], ["batch"] * 20))
    assert "38 of 39 images have the same patient, 'batch': if" in text
    assert refused((["p1"], ["p1"])).count("have the same patient, 'p1'") == 1
    text = refused((["p1", "p2"], []))  # the fault is not one of patients
    assert "of b. Add images or patients" in text


def test_images_without_a_patient_are_not_counted_as_patients(picture_tree):
    root = picture_tree("clinic", {"a": 20, "b": 20})
    found = {}
    for how, sizes in (("patient", {}), ("thesis", {"train_per_class": 30, "valid_per_class": 5})):
        data = Data(dataset="folder", data_dir=str(root), image_size=32, split=how, **sizes)
        found[how] = open_dataset(data, read_index(data)).describe()
        assert set(found[how]["patients"].values()) == {0} and found[how]["without_patient"] == found[how]["distinct_images"]
    # Repeated images are in several splits: as files, and of no patient.
    assert found["thesis"]["overlaps"]["files"] > 0 and found["thesis"]["overlaps"]["patients"] == 0
    write_table(root, [(f"a/image{k}.png", "ab"[k % 2], f"p{k // 4}" if k < 16 else "") for k in range(20)])
    data = Data(dataset="folder", data_dir=str(root), image_size=32)
    own = open_dataset(data, read_index(data)).describe()
    assert sum(own["patients"].values()) == 4 and sum(own["without_patient"].values()) == 4


def test_overlaps_count_patients_and_identical_files():
    index = make_index()
    parts = split(index, "thesis", 0, NONE)
    hashes = np.arange(len(index.samples), dtype=np.uint8)[:, None].repeat(16, 1)
    assert overlaps(index, parts, hashes) == {"patients": len(shared(index, parts)), "files": 0}
    hashes[parts.test[0]] = hashes[parts.train[0]]
    assert overlaps(index, parts, hashes)["files"] == 1


def test_whole_patients_keep_their_labels_and_the_judged_splits_are_unchanged():
    index = synthetic.read(560, 0)
    whole = split(index, "patient", 0, (None, None, None))
    for fraction in (0.01, 0.1, 0.3):
        few = split(index, "patient", 0, (None, None, None), Kept(fraction, 3))
        assert np.array_equal(few.valid, whole.valid) and np.array_equal(few.test, whole.test)
        assert np.array_equal(few.pool, whole.pool) and len(few.train) == len(whole.train)
        kept = {index.samples[row].patient for row in few.train}
        rows = [row for row in whole.train if index.samples[row].patient in kept]
        assert set(few.train) == set(rows)  # all images of a patient or none
        for label in range(7):  # as few patients as hold the fraction, with four images each
            every = (index.labels[whole.train] == label).sum()
            own = {index.samples[row].patient for row in rows if index.labels[row] == label}
            assert len(own) == -(-max(1, round(every * fraction)) // 4)
        counts = np.bincount(few.train)[np.unique(few.train)]
        assert counts.max() - counts.min() <= 1


def test_another_seed_keeps_other_patients_and_a_larger_fraction_includes_a_smaller_one():
    index = synthetic.read(560, 0)

    def rows(fraction, seed):
        return set(split(index, "patient", 0, (None, None, None), Kept(fraction, seed)).train)

    assert rows(0.1, 0) != rows(0.1, 1) and rows(0.1, 0) < rows(0.3, 0) < rows(1.0, 0)


def test_judged_splits_of_given_sizes_do_not_depend_on_the_labels():
    index = synthetic.read(560, 0)
    parts = [split(index, "patient", 0, (30, 4, 4), Kept(fraction, 5)) for fraction in (1.0, 0.2)]
    assert all(np.array_equal(getattr(parts[0], name), getattr(parts[1], name)) for name in ("valid", "test", "pool"))
    assert np.bincount(index.labels[parts[1].train]).tolist() == [30] * 7


def test_hidden_labels_are_gone_from_the_index():
    data = Data(dataset="synthetic", synthetic_images=196, image_size=32, labeled_fraction=0.3)
    dataset = open_dataset(data, read_index(data))
    hidden = np.setdiff1d(dataset.splits.pool, dataset.splits.train)
    assert len(hidden) and (dataset.index.labels[hidden] == -1).all()
    assert all((dataset.index.labels[rows] >= 0).all() for _, rows in dataset.splits.items())


def test_the_thesis_split_has_no_patients_to_hide():
    with pytest.raises(Problem, match="--split patient"):
        split(synthetic.read(560, 0), "thesis", 0, (None, None, None), Kept(0.5))


def test_balanced_drawing_equalises_classes_and_keeps_the_length_of_an_epoch():
    index = synthetic.read(560, 0)
    uneven = index.without_labels(np.flatnonzero((index.labels > 0) & (np.arange(560) % 3 > 0)))
    plain = split(uneven, "patient", 0, (None, None, None))
    of_class = np.bincount(uneven.labels[plain.train])
    for fraction in (1.0, 0.3):
        parts = split(uneven, "patient", 0, (None, None, None), Kept(fraction, balance="draw"))
        counts = np.bincount(uneven.labels[parts.train])
        assert len(set(counts)) == 1 and parts.shown == len(plain.train) <= len(parts.train)
    assert len(set(split(uneven, "patient", 0, (None, None, None), Kept(balance="draw")).train)) == len(plain.train)
    assert of_class.max() > 2 * of_class.min()


def test_weights_for_rare_classes_do_not_draw_them_more_often():
    """They raise the loss of rare classes, and classes that were drawn equally often would have equal weights."""
    parts = [split(uneven(None), "patient", 0, (None, None, None), Kept(0.5, 3, balance)) for balance in ("none", "weights", "draw")]
    counts = [np.bincount(uneven(None).labels[part.train]) for part in parts]
    assert np.array_equal(parts[0].train, parts[1].train)
    assert len(set(counts[2].tolist())) == 1 < len(set(counts[1].tolist()))


def test_a_fraction_of_the_labels_is_one_of_the_images_that_the_size_of_the_train_split_uses():
    """It keeps complete patients among these images, and a larger fraction includes a smaller one."""
    index = uneven(None)
    for seed, balance in ((0, "none"), (1, "none"), (1, "weights"), (1, "draw")):
        parts = {share: split(index, "patient", seed, (60, 9, 9), Kept(share, 3, balance)) for share in (0.1, 0.2, 0.5, 0.9, 1.0)}
        whole, before = parts[1.0], set()
        used = np.unique(whole.train)
        for share, few in parts.items():
            rows = np.unique(few.train)
            assert before <= set(rows) and len(few.train) == len(whole.train) == 180 and few.shown is None
            before = set(rows)
            assert set(rows) == {row for row in used if index.unit(row) in {index.unit(kept) for kept in rows}}
            for label in range(3):
                of_class = [(index.labels[own] == label).sum() for own in (rows, used)]
                assert of_class[0] / of_class[1] == pytest.approx(share, abs=0.12)
            assert all(np.array_equal(getattr(few, name), getattr(whole, name)) for name in ("valid", "test", "pool"))
            assert [note for note in few.notes if "Labels" in note] == ([] if share == 1 else [
                f"Labels of {len(rows)} of {len(used)} train images are kept ({100 * len(rows) / len(used):.1f} %;"
                f" {len({index.unit(row) for row in rows})} of {len({index.unit(row) for row in used})} patients, at least one per"
                " class). Images repeat, so that the steps per epoch stay the same."])


def test_the_note_on_kept_labels_says_how_many_are_used_and_whether_images_repeat():
    def note(sizes, share, index=uneven(None)):
        parts = split(index, "patient", 0, sizes, Kept(share, 3))
        [text] = [note for note in parts.notes if "Labels" in note]
        return text, len(np.unique(parts.train)), len(parts.train)

    # The size is a property of the data set: it limits the images of each class that are used.
    text, used, slots = note(NONE, 0.5, uneven(None, (60, 9, 9)))
    assert f"At most 60 images per class are used, {used} of these; for a fraction of the images that are used, set --train-per-class." in text
    assert ("repeat" in text) == (used < slots)
    for share in (0.4, 0.999):  # rounded, the second is all images
        text, used, slots = note(NONE, share, make_index())
        assert text.endswith(" Images repeat, so that the steps per epoch stay the same.") == (used < slots) == (share < 0.9)


def test_the_message_on_a_split_without_images_names_the_sizes_that_are_the_cause():
    index = uneven(None)

    def refused(how, *sizes, index=index):
        with pytest.raises(Problem, match="without images of") as caught:
            split(index, how, 0, sizes)
        return str(caught.value)

    for how in ("patient", "given"):
        start = f"--split {how} with --valid-per-class 5000 leaves the train split of 'set' without images of a, b, c."
        assert refused(how, 60, 5000, None) == f"{start} Decrease --valid-per-class, or add images or patients."
        assert "with --test-per-class 5000 leaves the train split" in refused(how, None, 9, 5000)
        both = refused(how, None, 5000, 5000)
        assert "with --valid-per-class 5000 and --test-per-class 5000 leaves" in both and "Decrease --valid-per-class and --test" in both
    assert "with --valid-per-class 5000 leaves" in refused("given", None, 5000, 9, index=uneven("test"))
    assert "with --valid-per-class 5000 leaves" in refused("patient", None, None, None, index=uneven("test", (60, 5000, 9)))
    text = refused("thesis", 1, 900, None)
    assert "--split thesis with --train-per-class 1 and" in text and "Increase --train-per-class" in text
    # Sizes are not the cause if there are too few patients.
    one = Index("set", ("a", "b"), tuple(Sample(f"{n}", n % 2, "one", "one") for n in range(10)))
    assert "per-class" not in refused("patient", None, 2, None, index=one) and "or use another --split" in refused("patient", 2, 2, None, index=one)


@pytest.mark.parametrize("given, said", [
    (None, "The data set specifies no splits: --split given draws them at random, by patient."),
    ("test", "The data set specifies no images with labels for the validation split: --split given draws it at random, by patient."),
    ("valid", "The data set specifies no images with labels for the test split: --split given draws it at random, by patient.")])
def test_a_note_says_what_split_given_draws(given, said):
    assert said in split(uneven(given), "given", 0, NONE).notes
    assert not any("--split given" in note for note in split(uneven(given), "patient", 0, NONE).notes)
