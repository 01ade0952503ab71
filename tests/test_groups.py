"""Subgroups by a column of the table, the positive one of two classes, and the flow of the images."""

import numpy as np
import pytest
from conftest import write_table
from test_data_readers import mura_tree as mura_tree  # a fixture

from kd.config.settings import Data
from kd.data.dataset import open_dataset, read_index
from kd.reports.groups import MANY, MOST, groups_of
from kd.reports.positive import classes_of, positive_of
from kd.system.errors import Problem


def groups(column, values):
    found = {name: rows.tolist() for name, rows in groups_of(column, values).items()}
    assert sorted(sum(found.values(), [])) == list(range(len(values)))  # each image is in one group
    return found


def test_categories_are_in_alphabetical_order_and_unknown_values_are_a_group_at_the_end():
    assert groups("site", ["Zürich", "", "Bern", "Zürich ", "unknown"]) == {"Bern": [2], "Zürich": [0, 3], "unknown": [1, 4]}
    assert groups("view", []) == {}


@pytest.mark.parametrize("column", ["age", "Patient Age", "PatientAge", "age_years"])
def test_ages_are_in_bands(column):
    values = ["0", "17", "18", "39.5", "40", "64", "65", "101", "30", "31", ""]
    assert groups(column, ["17", "", "18"]) == {"0 to 17": [0], "18 to 39": [2], "unknown": [1]}
    assert groups(column, values) == {"0 to 17": [0, 1], "18 to 39": [2, 3, 8, 9], "40 to 64": [4, 5], "65 and above": [6, 7], "unknown": [10]}


def test_ages_as_in_dicom_are_in_years():
    values = ["064Y", "006M", "012W", "003D", "018Y", "040Y", "065Y", "017Y", "039Y"]
    assert groups("age", values) == {"0 to 17": [1, 2, 3, 7], "18 to 39": [4, 8], "40 to 64": [0, 5], "65 and above": [6]}


@pytest.mark.parametrize("column", ["image", "stage", "dosage", "percentage"])
def test_other_numbers_are_divided_at_their_quartiles(column):
    values = [str(number) for number in range(1, 13)]
    assert groups(column, values) == {"below 3": [0, 1], "3 to below 6": [2, 3, 4], "6 to below 9": [5, 6, 7], "9 and above": [8, 9, 10, 11]}


def test_few_distinct_numbers_are_categories_and_so_are_numbers_with_words():
    assert groups("grade", ["2", "0", "2", "1"]) == {"0": [1], "1": [3], "2": [0, 2]}
    values = [str(number) for number in range(MANY + 1)]
    assert len(groups("room", values)) == 4 and len(groups("room", [*values, "b"])) == MANY + 2


def test_a_number_that_most_images_share_makes_fewer_bands():
    found = groups("dose", ["0"] * 30 + [str(number) for number in range(1, 10)])
    assert sum(map(len, found.values())) == 39 and all(found.values())


def test_rare_categories_are_put_together():
    values = [f"scanner {number:02}" for number in range(MOST + 5) for _ in range(MOST + 5 - number)]
    found = groups("device", values)
    assert len(found) == MOST and list(found)[-1] == "other" and len(found["other"]) == sum(range(1, 7))


@pytest.mark.parametrize("missing", ["NA", "nan", "-", "N/A", "?", "Unknown"])
def test_usual_words_for_a_missing_value_do_not_make_ages_or_numbers_categories(missing):
    assert groups("age", ["17", missing, "70", "41"]) == {"0 to 17": [0], "40 to 64": [3], "65 and above": [2], "unknown": [1]}
    values = [*(str(number) for number in range(1, 13)), missing]
    assert list(groups("dose", values)) == ["below 3", "3 to below 6", "6 to below 9", "9 and above", "unknown"]


def test_a_column_of_ages_never_shows_an_age_of_a_single_patient():
    found = groups("age", ["17", "about 50", "-1", "999", "42", "120", "12-17"])
    assert found == {"0 to 17": [0], "40 to 64": [4], "65 and above": [5], "not plausible": [2, 3], "not a number": [1, 6]}


def test_different_bands_of_large_numbers_have_different_names():
    values = [str(20210101 + number) for number in range(12)]
    assert groups("date", values) == {"below 20210103": [0, 1], "20210103 to below 20210106": [2, 3, 4],
                                      "20210106 to below 20210109": [5, 6, 7], "20210109 and above": [8, 9, 10, 11]}
    assert len(groups("dose", [f"{1 + number * 1e-9:.9f}" for number in range(12)])) == 4
    assert list(groups("dose", [f"0.{number}" for number in range(1, 10)]))[0] == "below 0.3"


@pytest.mark.parametrize("missing", ["", "unknown"])
def test_a_few_images_without_a_value_are_a_group_beside_many_categories(missing):
    values = [f"site {number:02}" for number in range(30) for _ in range(2)]
    found = groups("site", [*values, missing])
    assert list(found)[-2:] == ["other", "unknown"] and found["unknown"] == [60]


def test_every_image_is_in_one_group_and_no_group_is_empty():
    random = np.random.default_rng(0)
    words = ["", " ", "unknown", "other", "a", "b", "nan", "1", "2.5", "-1", "064Y", *(f"w{number}" for number in range(30))]
    for column in ("age", "site"):
        for _ in range(200):
            chosen = random.choice(words, size=random.integers(1, len(words)), replace=False)
            found = groups(column, random.choice(chosen, size=random.integers(1, 120)).tolist())
            assert found and all(found.values())


@pytest.mark.parametrize("classes, named, expected", [
    (("abnormal", "normal"), None, 0), (("normal", "pneumonia"), None, 1), (("no_finding", "effusion"), None, 1),
    (("Effusion", "No Finding"), None, 0), (("0", "1"), None, 1), (("negative", "positive"), None, 1), (("benign", "malignant"), None, 1),
    (("covid", "negative for covid"), None, 0), (("sick", "healthy control"), None, 0), (("effusion", "normal findings"), None, 0),
    (("malignant lesion", "benign lesion"), None, 0), (("abnormal findings", "normal findings"), None, 0), (("+", "-"), None, 1),
    (("cat", "dog"), None, 1), (("cat", "dog"), "cat", 0), (("normal", "north"), None, 1), (("a", "b", "c"), None, None)])
def test_the_positive_class_is_the_one_with_the_finding(classes, named, expected):
    found = positive_of(classes, False, named)
    assert (found and found.classes) == (None if expected is None else (expected,))
    assert found is None or classes_of(found.name, classes) == found.classes


def test_of_ordered_grades_the_referable_ones_are_positive():
    grades = ("0 - none", "1", "2", "3")
    found = positive_of(grades, True, None)
    assert found.name == "grade >= 2" and found.classes == (2, 3) == classes_of(found.name, grades)
    assert positive_of(("0", "1"), True, None).classes == (1,) and classes_of(None, grades) is None


@pytest.mark.parametrize("classes, named", [(("a", "b"), "c"), (("a", "b", "c"), "a")])
def test_a_positive_class_that_does_not_exist_is_refused(classes, named):
    with pytest.raises(Problem, match=f"--positive '{named}'"):
        positive_of(classes, False, named)


def test_images_of_mura_have_their_body_part(mura_tree):
    index = read_index(Data(dataset="mura", data_dir=str(mura_tree), label="abnormal"))
    parts = [sample.path.split("/")[1].removeprefix("XR_").lower() for sample in index.samples]
    assert index.extra == {"body part": tuple(parts)} and len(set(parts)) > 1
    assert not read_index(Data(dataset="mura", data_dir=str(mura_tree))).extra


def test_the_flow_counts_every_image_once(labelled):
    """Images are found, excluded as copies, left out of the splits, unlabelled, or withheld."""
    files = sorted(path.relative_to(labelled).as_posix() for path in labelled.rglob("*.png"))
    (labelled / "copy.png").write_bytes((labelled / files[0]).read_bytes())
    data = Data(dataset="folder", data_dir=str(labelled), test_per_class=2, labeled_fraction=0.4)
    table = (labelled / "images.csv").read_text().splitlines()
    first = next(line for line in table if line.startswith(files[0]))
    write_table(labelled, [*(line.split(",") for line in table[1:]), first.replace(files[0], "copy.png").split(",")], table[0])
    dataset = open_dataset(data, read_index(data))
    steps = {step["step"]: step["images"] for step in dataset.describe()["flow"]}
    found = steps.pop("image files found")
    assert found == len(files) + 1 and steps["excluded: identical to another file"] == -1
    used = sum(count for count in steps.values() if count > 0)
    excluded = sum(count for count in steps.values() if count < 0)
    assert found + excluded == used
    splits = dataset.splits
    assert steps["test split, with labels"] == len(np.unique(splits.test))
    assert steps["train split, with labels"] + steps["train split, whose labels --labeled-fraction withholds"] == len(splits.pool)
