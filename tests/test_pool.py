"""The pool of images that are used without labels.

The tests check what is in it, what is never in it, and which patients it shows.
"""

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import PAIR, write_table

from kd.config.settings import Data, Unlabeled
from kd.data.dataset import Dataset, open_dataset, read_index
from kd.data.pool import open_pool, read_unlabeled
from kd.data.splits import split
from kd.data.store import Store
from kd.system.errors import Problem


def folder_data(root, **options):
    data = Data(dataset="folder", data_dir=str(root), image_size=32, **options)
    return open_dataset(data, read_index(data))


def pool_of(dataset, **options):
    unlabeled = Unlabeled(**options)
    return open_pool(dataset, unlabeled, read_unlabeled(unlabeled, dataset.settings))


def test_the_pool_of_a_data_set_is_its_train_split_without_judged_patients(labelled):
    dataset = folder_data(labelled)
    pool = pool_of(dataset)
    judged = {dataset.index.samples[row].patient for part in ("valid", "test") for row in getattr(dataset.splits, part)}
    assert not judged & {dataset.index.samples[row].patient for row in pool.rows} and len(pool.rows) == len(dataset.splits.pool)
    views = pool.views(torch.device("cpu"), batch_size=4)
    assert views.labels is None and all(batch.labels is None for batch in views.epoch(0))


def test_rows_without_a_label_are_in_the_pool_only(labelled):
    rows = (labelled / "images.csv").read_text()
    for row in ("x/image0.png,a", "x/image15.png,b"):
        rows = rows.replace(row, row[:-1])
    (labelled / "images.csv").write_text(rows)
    dataset = folder_data(labelled)
    paths = [sample.path for sample in dataset.index.samples]
    assert any("2 of 16 images have no label" in note for note in dataset.index.notes)
    in_parts = {paths[row] for _, rows in dataset.splits.items() for row in rows}
    assert not {"x/image0.png", "x/image15.png"} & in_parts
    pool = {paths[row] for row in pool_of(dataset).rows}
    judged = {dataset.index.samples[row].patient for row in dataset.splits.valid}
    assert ("x/image0.png" in pool) == ("p0" not in judged) and "x/image15.png" not in pool  # image15 shows a test patient


def test_a_pool_drops_judged_patients_and_files_and_counts_them(labelled, clinic):
    for number, name in enumerate(("image12.png", "image14.png")):  # renamed copies of test images
        shutil.copy(labelled / "x" / name, clinic / f"copy{number}.png")
    archive = sorted(path.relative_to(clinic).as_posix() for path in clinic.rglob("*.png"))
    patients = {archive[0]: "p7", archive[1]: "p0"}  # p7 is a test patient, p0 of train or validation
    write_table(clinic, [(path, patients.get(path, "")) for path in archive], "path,patient")
    dataset = folder_data(labelled, valid_per_class=1)
    train = {dataset.index.samples[row].patient for row in dataset.splits.train}
    found = pool_of(dataset, unlabeled_dir=str(clinic)).summary
    assert found["dropped_by_patient"] == 1 + ("p0" not in train) and found["dropped_by_file"] == 2
    assert found["of_unlabeled_dir"] == 14 - found["dropped_by_patient"] - 2
    assert found["of_the_data_set"] == len(dataset.splits.pool)
    with pytest.raises(Problem, match="belong to patients of the validation or test split.*: .*copy0.png, copy1.png") as caught:
        pool_of(dataset, unlabeled_dir=str(clinic), strict=True)
    assert caught.value.code == 2


def test_a_pool_of_judged_images_only_is_refused(labelled, tmp_path):
    (tmp_path / "stolen").mkdir()
    shutil.copy(labelled / "x/image12.png", tmp_path / "stolen/a.png")
    dataset = folder_data(labelled)
    empty = type(dataset)(dataset.settings, dataset.index, dataset.splits.__class__(
        dataset.splits.train, dataset.splits.valid, dataset.splits.test, np.empty(0, np.int64)), dataset.store, "")
    with pytest.raises(Problem, match="none is left"):
        pool_of(empty, unlabeled_dir=str(tmp_path / "stolen"))


def test_copies_of_judged_images_in_the_data_set_are_not_in_the_pool(labelled):
    shutil.copy(labelled / "x/image15.png", labelled / "x/image6.png")
    dataset = folder_data(labelled)
    assert [sample.path for sample in dataset.index.samples if "e6." in sample.path or "e15." in sample.path] == ["x/image15.png"]
    assert "1 image was excluded: identical to another, 1 of them of another patient." in dataset.index.notes
    assert pool_of(dataset).summary["dropped_by_file"] == 0
    # Patients with an identical file may be one person, so the others of p3 are not trained on.
    assert "p3" not in {dataset.index.samples[row].patient for row in dataset.splits.train}
    # Without this, the pool itself drops the copy.
    data = dataset.settings
    index = read_index(data)
    parts = split(index, "patient", 0, (None, None, None))
    store = Store(index, data.cache_dir, 32, "squash", 1)
    store.ensure(np.arange(16))
    assert pool_of(Dataset(data, index, parts, store, "")).summary["dropped_by_file"] == 1


def test_patients_of_a_table_override_those_of_the_file_names(clinic):
    archive = sorted(path.relative_to(clinic).as_posix() for path in clinic.rglob("*.png"))
    write_table(clinic, [(path, "p7" if k else "") for k, path in enumerate(archive)], "path,patient")
    index = read_unlabeled(Unlabeled(unlabeled_dir=str(clinic), unlabeled_dataset="messidor"), Data())
    assert {sample.patient for sample in index.samples} == {"p7", "image0"} and index.space == "messidor"


def test_an_archive_is_of_the_hospital_of_the_data_set(labelled, clinic):
    for number, file in enumerate(sorted(clinic.rglob("*.png"))):
        file.rename(file.with_name(f"p{number}_{number}.png"))  # p6 and p7 are test patients
    reading = {"patient_pattern": r"(p\d+)_", "valid_per_class": 1}
    for site in ("", "A"):
        dataset = folder_data(labelled, site=site, **reading)
        prefix = f"{site}::" if site else ""
        evaluated = {dataset.index.samples[row].patient for rows in (dataset.splits.valid, dataset.splits.test) for row in rows}
        assert {f"{prefix}p6", f"{prefix}p7"} <= evaluated
        pool = pool_of(dataset, unlabeled_dir=str(clinic))
        assert pool.summary["dropped_by_patient"] == len(evaluated) and pool.summary["of_unknown_patients"] == 0
        assert pool.patients == {"": sorted({f"{prefix}p{k}" for k in range(12)} - evaluated)}


def test_equal_file_names_without_patients_are_not_dropped(picture_tree):
    root = picture_tree("labelled", {"a": 20, "b": 20})
    archive = picture_tree("archive", {"a": 20, "b": 20}, size=(31, 17))
    found = pool_of(folder_data(root), unlabeled_dir=str(archive))
    assert found.summary["dropped_by_patient"] == 0 and found.summary["of_unlabeled_dir"] == 40
    assert found.summary["of_unknown_patients"] == 40 and found.patients == {}


def test_patients_of_a_published_archive_are_dropped_by_their_plain_names_and_kept_apart(labelled, tmp_path, picture_tree):
    rows = (labelled / "images.csv").read_text().replace("p7", "10")  # a test patient
    (labelled / "images.csv").write_text(rows)
    root = picture_tree("eyes", {"train": 4}, size=(31, 17))
    for number, name in enumerate(("10_left", "10_right", "13_left", "13_right")):
        (root / f"train/image{number}.png").rename(root / f"train/{name}.png")
    dataset = folder_data(labelled)
    pool = pool_of(dataset, unlabeled_dir=str(root), unlabeled_dataset="eyepacs")
    assert pool.summary["dropped_by_patient"] == 2 and pool.patients["eyepacs"] == ["13"]
    own = {dataset.index.samples[row].patient for row in dataset.splits.pool}
    assert pool.patients[""] == sorted(own) and "10" not in own


def test_an_unlabelled_copy_of_a_labelled_image_is_left_out_before_the_pool(labelled):
    shutil.copy(labelled / "x/image3.png", labelled / "x/copy.png")
    shutil.copy(labelled / "x/image12.png", labelled / "x/test.png")
    with (labelled / "images.csv").open("a") as file:
        file.write("x/copy.png,,p1,train\nx/test.png,,p7,train\n")
    dataset = folder_data(labelled)
    assert len(dataset.index.samples) == 16 and not (dataset.index.labels[dataset.splits.pool] < 0).any()
    assert "2 images were excluded: identical to another, 1 of them of another patient." in dataset.index.notes
    found = pool_of(dataset).summary
    assert found["images"] == len(dataset.splits.train) and found["copies"] == found["dropped_by_file"] == 0


def test_an_image_that_exists_twice_is_used_once(labelled, clinic):
    shutil.copy(next(clinic.rglob("*.png")), clinic / "again.png")
    shutil.copy(labelled / "x/image6.png", clinic / "of the train split.png")
    dataset = folder_data(labelled)
    assert "p3" in {dataset.index.samples[row].patient for row in dataset.splits.train}
    pool = pool_of(dataset, unlabeled_dir=str(clinic))
    assert pool.summary["copies"] == 2 and len({row.tobytes() for row in pool.store.hashes[pool.rows]}) == len(pool.rows)
    assert pool.summary["of_unknown_patients"] == pool.summary["of_unlabeled_dir"] == 12


def test_both_eyes_are_one_patient_in_a_pool(tmp_path, picture_tree):
    root = picture_tree("eyes", {"train": 4})
    for number, name in enumerate(("10_left", "10_right", "13_left", "13_right")):
        (root / f"train/image{number}.png").rename(root / f"train/{name}.jpeg")
    index = read_unlabeled(Unlabeled(unlabeled_dir=str(root), unlabeled_dataset="eyepacs"), Data())
    assert [sample.patient for sample in index.samples] == ["10", "10", "13", "13"] and index.name == "eyepacs"
    assert index.space == "eyepacs"
    assert not index.classes and all(sample.label == -1 for sample in index.samples)


@pytest.mark.parametrize("make, words", [
    (lambda root: None, "no such folder"), (lambda root: root.mkdir(), "contains no images"),
    (lambda root: (root.mkdir(), write_table(root, [("gone.png",)], "path")), "row 2 'gone.png'")])
def test_an_unreadable_pool_is_reported_in_one_line_before_the_teacher_is_trained(script, tmp_path, make, words):
    make(tmp_path / "pool")
    code, out = script("distill", [*PAIR, "--mode", "unlabeled-only", "--unlabeled-dir", str(tmp_path / "pool")])
    assert code == 2 and words in out.splitlines()[-1] and "training it first" not in out and not Path("cache").exists()


def test_unlabelled_images_of_a_study_or_of_a_double_of_a_test_patient_are_dropped(picture_tree):
    root = picture_tree("set", {"x": 48})
    rows = []
    for k in range(40):  # 20 studies of unknown patients, and in each an image without a label
        rows.append((f"x/image{k}.png", "ab"[k // 2 % 2] if k % 2 else "", "", f"1.2.{k // 2}", ""))
    rows += [("x/image40.png", "a", "q", "", "test"), ("x/image41.png", "b", "q", "", "test")]
    shutil.copy(root / "x/image40.png", root / "x/image42.png")
    rows += [("x/image42.png", "a", "other", "", ""), ("x/image43.png", "", "other", "", "")]
    write_table(root, rows, "path,label,patient,study,split")
    dataset = folder_data(root)
    evaluated = {dataset.index.unit(row) for row in [*dataset.splits.valid, *dataset.splits.test]}
    pool = pool_of(dataset)
    left = [dataset.index.samples[row] for row in pool.rows]
    assert evaluated.isdisjoint(dataset.index.unit(int(row)) for row in pool.rows)
    assert "x/image43.png" not in {sample.path for sample in left} and len(left) > 20
    # Each validation study has one unlabelled image, and `other` has one.
    assert pool.summary["dropped_by_patient"] == len(dataset.splits.valid) + 1
