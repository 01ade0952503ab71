"""EyePACS, APTOS, Messidor and Messidor-2 in their own formats.

Grades and patients are read correctly, and each fault is reported in one clear line.
"""

import csv
import dataclasses
import json
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import TINY
from PIL import Image, ImageDraw

from kd.config import parsing
from kd.config.layout import data_name
from kd.config.resolve import resolve
from kd.config.settings import DATASETS, Data, TeacherSettings, Unlabeled
from kd.data.dataset import Dataset, read_index
from kd.data.duplicates import without_copies
from kd.data.index import Index
from kd.data.pool import open_pool, read_unlabeled
from kd.data.readers import retinopathy
from kd.data.readers.retinopathy import RETINOPATHY, patient_of
from kd.data.splits import Splits
from kd.data.store import Store
from kd.runs.folder import RunFolder
from kd.system.errors import Problem

# Legacy Excel files like those of Messidor. Base11 has five images with the grades 0 1 2 3 0
# (20990101_1000k_0100_PP.tif). Base33 has four images with the grades 3 3 1 "0"
# (20990303_3000k_0400_PP.tif); its last grade is text, and its header has another case and blanks.
# In bad_grade, rows 3 to 5 have the grades "mild", TRUE and 4. In bad_columns, the header is
# Image name,Grade. All names are made up.
FIXTURES = Path(__file__).parent / "fixtures"
BASE11 = [f"20990101_1000{k}_0100_PP.tif" for k in range(1, 6)]
BASE33 = [f"20990303_3000{k}_0400_PP.tif" for k in range(1, 5)]
MESSIDOR2 = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"


def draw(path, number):
    """Save an image of a small disc, with a mark that depends on `number`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    drawing = Image.new("RGB", (48, 40))
    ImageDraw.Draw(drawing).ellipse((6, 2, 41, 37), fill=(160, 80, 20))
    drawing.putpixel((16 + number % 16, 12 + number // 16), (255, 255, 255))
    drawing.save(path)


def eyepacs(root):
    names = [f"{patient}_{eye}" for patient in (10, 13, 15) for eye in ("left", "right")]
    for number, name in enumerate(names):
        draw(root / "train" / f"{name}.jpeg", 20 * number)
    (root / "trainLabels.csv").write_text("image,level\n" + "".join(f"{name},{k % 5}\n" for k, name in enumerate(names)))


def aptos(root):
    for number, name in enumerate(("000c1434d8d7", "001639a390f0", "0024cdab0c1e")):
        draw(root / "train_images" / f"{name}.png", number)
    draw(root / "test_images" / "0005cfc8afb6.png", 9)
    (root / "train.csv").write_text("id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n0024cdab0c1e,0\n")


def messidor(root):
    for number, (base, names) in enumerate((("Base11", BASE11), ("Base33", BASE33))):
        for place, name in enumerate(names):
            draw(root / base / name, 20 * number + place)
        shutil.copy(FIXTURES / f"Annotation_{base}.xls", root / base)


def messidor2(root):
    for number, name in enumerate(("20990101_10001_0100_PP.png", "IM000001.jpg", "IM000002.JPG")):
        draw(root / "IMAGES" / name, 20 * number)
    (root / "messidor_data.csv").write_text(f"{MESSIDOR2}20990101_10001_0100_PP.tif,0,0,1\nIM000001.JPG,4.0,1.0,1.0\n"
                                            "IM000002.jpg,,,0\n")


@pytest.fixture
def tree(tmp_path):
    """Return tree(kind), which writes a small set of that kind and returns its folder."""
    def make(kind):
        root = tmp_path / kind
        root.mkdir()
        {"eyepacs": eyepacs, "aptos": aptos, "messidor": messidor, "messidor2": messidor2}[kind](root)
        return root
    return make


def read(root, errata=None):
    return retinopathy.read(root.name, str(root), errata)


def grades(index):
    return [index.classes[sample.label] for sample in index.samples]


def write(root, name, text):
    (root / name).write_text(text)


def test_eyepacs_has_both_eyes_of_a_patient(tree):
    index = read(tree("eyepacs"))
    assert index.name == "eyepacs" and index.classes == ("0", "1", "2", "3", "4") and grades(index) == list("012340")
    assert [sample.patient for sample in index.samples] == ["10", "10", "13", "13", "15", "15"]
    assert all(sample.study == sample.patient and sample.split is None for sample in index.samples)
    assert all(map(index.has_patient, range(6))) and not any(sample.known_study for sample in index.samples)
    assert index.channels == 3 and index.graded and index.crop == "fundus" and not index.notes and not index.skipped
    assert index.space == "eyepacs"


@pytest.mark.parametrize("name", ["testLabels.csv", "retinopathy_solution.csv"])
def test_eyepacs_test_labels_count_if_their_images_exist(tree, name):
    root = tree("eyepacs")
    write(root, name, "image,level,Usage\n1_left,3,Private\n1_right,0,Public\n")
    index = read(root)
    assert {sample.split for sample in index.samples} == {None}
    assert index.notes == (f"{name} was skipped: none of its 2 images exists.",)
    for number, eye in enumerate(("left", "right")):
        draw(root / "test" / f"1_{eye}.jpeg", 5 + number)
    index = read(root)
    assert [sample.split for sample in index.samples] == ["test"] * 2 + ["train"] * 6 and grades(index)[:2] == ["3", "0"]
    (root / "test/1_left.jpeg").unlink()
    with pytest.raises(Problem, match=f"{name} row 2 '1_left' .no such image"):
        read(root)


def test_aptos_has_no_patients_and_its_test_images_are_not_read(tree):
    root = tree("aptos")
    index = read(root)
    assert grades(index) == ["2", "4", "0"] and all(s.patient == s.study == s.path for s in index.samples)
    assert index.samples[0].path == "train_images/000c1434d8d7.png" and index.file(0).is_file()
    assert len(index.notes) == 1 and "None of the 3 images has a known patient" in index.notes[0]
    (root / "train_images").rename(root / "pictures")
    assert "1 image was excluded: not listed in any table." in read(root).notes


def test_messidor_is_read_from_all_its_legacy_excel_files(tree):
    index = read(tree("messidor"))
    assert index.classes == ("0", "1", "2", "3") and grades(index) == list("01230") + list("3310")
    assert [sample.patient for sample in index.samples] == [name[:-4] for name in BASE11 + BASE33]
    assert len(index.notes) == 1 and "None of the 9 images has a known patient" in index.notes[0]
    assert not any(index.has_patient(row) for row in range(9)) and not any(sample.known_study for sample in index.samples)
    assert index.samples[5].path == f"Base33/{BASE33[0]}"


def test_messidor2_excludes_ungradable_images_and_shares_names_with_messidor(tree):
    index = read(tree("messidor2"))
    assert [sample.path for sample in index.samples] == ["IMAGES/20990101_10001_0100_PP.png", "IMAGES/IM000001.jpg"]
    assert grades(index) == ["0", "4"] and index.notes[:-1] == ("1 image was excluded: not gradable.",)
    messidor = read(tree("messidor"))
    assert index.samples[0].patient == messidor.samples[0].patient and index.space == messidor.space == "messidor"


def test_hidden_files_are_counted_and_images_without_a_row_are_skipped_with_a_note(tree):
    root = tree("eyepacs")
    (root / "train/._10_left.jpeg").write_bytes(b"\0\5\x16\7")
    draw(root / "train/999_left.jpeg", 77)
    index = read(root)
    assert index.skipped == 1 and len(index.samples) == 6 and index.notes == ("1 image was excluded: not listed in any table.",)


def test_tables_may_have_a_byte_order_mark_blank_lines_and_blanks(tree):
    root = tree("aptos")
    write(root, "train.csv", "\ufeffid_code,diagnosis\r\n\r\n000c1434d8d7, 2\r\n 001639a390f0,4.0\r\n0024cdab0c1e,0\r\n")
    assert grades(read(root)) == ["2", "4", "0"]


def test_errata_change_and_drop(tree):
    root = tree("messidor")
    write(root, "fixes.csv", f"image,grade\n{BASE11[0]},3\n{BASE11[1][:-4]},drop\n{BASE11[2]},2\n")
    (root / "Base11" / BASE11[1]).unlink()  # an image that is dropped need not exist
    index = read(root, str(root / "fixes.csv"))
    assert grades(index) == list("3230") + list("3310")
    assert index.notes[:-1] == ("--errata 'fixes.csv' changed 1 grade and dropped 1 image.",)


def test_the_first_of_identical_images_of_one_grade_is_kept(tree):
    root = tree("messidor")
    shutil.copy(root / "Base33" / BASE33[0], root / "Base33" / BASE33[1])
    index = without_copies(read(root))
    assert [sample.path[-len(BASE33[0]):] for sample in index.samples[5:]] == [BASE33[0], *BASE33[2:]]
    assert index.notes[1:] == ("1 image was excluded: identical to another.",)


def test_identical_images_of_two_grades_are_refused_until_errata_drop_one(tree):
    root = tree("messidor")
    shutil.copy(root / "Base33" / BASE33[0], root / "Base33" / BASE33[2])
    with pytest.raises(Problem) as caught:
        without_copies(read(root))
    assert f"have different labels: Base33/{BASE33[0]} (label 3) = Base33/{BASE33[2]} (label 1)" in str(caught.value)
    assert "--errata FILE (with header image,grade)" in str(caught.value)
    write(root, "fixes.csv", f"image,grade\n{BASE33[2]},drop\n")
    assert len(without_copies(read(root, str(root / "fixes.csv"))).samples) == 8


def test_of_identical_images_of_two_patients_the_one_in_the_test_split_is_kept(tree):
    root = tree("eyepacs")
    write(root, "testLabels.csv", "image,level,Usage\n7_left,1,Public\n")
    (root / "unseen").mkdir()
    shutil.copy(root / "train/10_right.jpeg", root / "unseen/7_left.jpeg")
    index = without_copies(read(root))
    assert [sample.patient for sample in index.samples if sample.label == 1] == ["7"]
    assert index.notes == ("1 image was excluded: identical to another, 1 of them of another patient.",)


def test_unreadable_images_are_no_copies_of_each_other(tree):
    root = tree("eyepacs")
    for name in ("10_left", "10_right"):
        (root / f"train/{name}.jpeg").write_bytes(b"")
    for name in ("13_left", "13_right"):
        (root / f"train/{name}.jpeg").unlink()
    (root / "train/13_left.jpeg").symlink_to("nowhere")
    os.mkfifo(root / "train/13_right.jpeg")
    assert len(without_copies(read(root)).samples) == 6


@pytest.mark.parametrize("kind, path, patient", [
    ("eyepacs", "train/10_left.jpeg", "10"), ("eyepacs", "test/3/7_right.JPEG", "7"),
    ("messidor", "Base11/2099_1_PP.tif", "2099_1_PP"), ("messidor2", "2099_1_PP.JPG", "2099_1_PP"),
    ("aptos", "train_images/00.png", "train_images/00.png"), ("folder", "a/patient1/x.png", "a/patient1/x.png"),
    ("mura", "train/XR_HAND/patient00001/study1_positive/image1.png", "patient00001"), ("mura", "image1.png", "image1.png")])
def test_the_patient_of_a_path(kind, path, patient):
    assert patient_of(kind, path) == patient


def without(*names):
    return lambda root: [(root / name).unlink() for name in names]


def table(name, text):
    return lambda root: write(root, name, text)


def rows(name, *lines):
    """Return a change that appends rows to a table."""
    return lambda root: write(root, name, (root / name).read_text() + "\n".join(lines) + "\n")


def excel(name):
    return lambda root: shutil.copy(FIXTURES / name, root)


@pytest.mark.parametrize("kind, change, words", [
    ("eyepacs", without("trainLabels.csv"), ["'trainLabels.csv'", "no such file", "Set --data-dir to the folder"]),
    ("aptos", without("train.csv"), ["'train.csv'", "no such file"]),
    ("messidor", without("Base11/Annotation_Base11.xls", "Base33/Annotation_Base33.xls"), ["'Annotation*.xls'", "no such file"]),
    ("messidor2", without("messidor_data.csv"), ["'messidor_data.csv'", "no such file"]),
    ("eyepacs", table("trainLabels.csv", "image,grade\n10_left,0\n"), ["header 'image,grade'", "must be image,level.", "row 1"]),
    ("eyepacs", table("testLabels.csv", "image,level\n"), ["header 'image,level'", "testLabels.csv", "image,level,Usage"]),
    ("aptos", table("train.csv", "id_code;grade\n"), ["header 'id_code,grade'", "must be id_code,diagnosis"]),
    ("messidor2", table("messidor_data.csv", "image_id\n"), ["header 'image_id'", MESSIDOR2.strip()]),
    ("messidor", excel("Annotation_bad_columns.xls"), ["header 'Image name,Grade'", "must be Image name,Ophthalmologic "
                                                       "department,Retinopathy grade,Risk", "Annotation_bad_columns.xls"]),
    ("messidor", table("Annotation_x.xls", "Image name,Grade\n"), ["Annotation_x.xls", "legacy Excel", "download it again"]),
    ("messidor", lambda root: (root / "Annotation_x.xls").write_bytes((FIXTURES / "Annotation_Base11.xls").read_bytes()[:3000]),
     ["Annotation_x.xls", "cannot be read as a legacy Excel file"]),
    ("messidor", lambda root: [shutil.rmtree(root / "Base11"), excel("Annotation_bad_grade.xls")(root)],
     [f"Annotation_bad_grade.xls row 3 '{BASE11[1]}' (grade 'mild' is not one of 0, 1, 2, 3)",
      f"row 4 '{BASE11[2]}' (grade 'TRUE'", f"row 5 '{BASE11[3]}' (grade '4'", "Fix them"]),
    ("aptos", table("train.csv", "id_code,diagnosis\n"), ["has no rows"]),
    ("aptos", table("train.csv", 'id_code,diagnosis\n"a,1\n'), ["train.csv", "cannot be read as CSV"]),
    ("aptos", rows("train.csv", "a,1,2", "b"), ["train.csv row 5 'a' (number of fields differs from the header)", "row 6 'b'"]),
    ("eyepacs", rows("trainLabels.csv", "16_left,2", "16_right,2"),
     ["trainLabels.csv row 8 '16_left' (no such image), trainLabels.csv row 9 '16_right' (no such image)", "drop"]),
    ("messidor2", rows("messidor_data.csv", "IM000009.jpg,1,0,1"), ["row 5 'IM000009.jpg' (no such image)"]),
    ("messidor", without(f"Base33/{BASE33[2]}"), [f"Base33/Annotation_Base33.xls row 4 '{BASE33[2]}' (no such image)"]),
    ("eyepacs", rows("trainLabels.csv", "10_left,1", "13_left.jpeg,5"),
     ["row 8 '10_left' (already listed in trainLabels.csv row 2 '10_left'), trainLabels.csv row 9 '13_left.jpeg' (already"]),
    ("aptos", rows("train.csv", "x,5", "y,", "z,-1", "u,1.5", "v,\u0662"),
     ["row 5 'x' (grade '5' is not one of 0, 1, 2, 3, 4)", "row 6 'y' (grade ''", "row 7 'z' (grade '-1'", "row 8", "row 9"]),
    ("aptos", rows("train.csv", *(f"gone{k},1" for k in range(25))), ["row 5 'gone0'", "row 12 'gone7'", "(25 in all)"]),
    ("messidor2", rows("messidor_data.csv", "IM000003.jpg,,,1"), ["row 5 'IM000003.jpg' (grade '' is not one of"]),
    ("messidor2", rows("messidor_data.csv", "IM000003.jpg,1,0,yes"), ["row 5 'IM000003.jpg' (adjudicated_gradable 'yes'"]),
    ("messidor2", table("messidor_data.csv", f"{MESSIDOR2}IM000001.JPG,,,0\n"), ["no image has a grade"]),
    ("eyepacs", lambda root: draw(root / "sample/10_left.png", 3), ["sample/10_left.png = train/10_left.jpeg", "Move all"]),
    ("eyepacs", rows("trainLabels.csv", "a\0,1"), ["trainLabels.csv", "row 8 contains a NUL byte"])])
def test_each_fault_is_one_line_with_row_value_and_cure(tree, kind, change, words):
    root = tree(kind)
    change(root)
    with pytest.raises(Problem) as caught:
        read(root)
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize("text, words", [
    (None, ["--errata 'fixes.csv' cannot be read: no such file", "image,grade"]),
    ("image,level\n10_left,1\n", ["header 'image,level'", "must be image,grade"]),
    ("image,grade\n10_left,1\n99_left,0\n98_left,drop\n",
     ["--errata", "fixes.csv row 3 '99_left' (the tables have no grade", "row 4"]),
    ("image,grade\n10_left,5\n10_right,lose\n",
     ["row 2 '10_left' (grade '5' is not one of 0, 1, 2, 3, 4, drop)", "row 3 '10_right'"]),
    ("image,grade\n10_left,1\n10_left.jpeg,drop\n", ["row 3 '10_left.jpeg' (already listed in fixes.csv row 2 '10_left')"]),
    ("image,grade\n" + "".join(f"{p}_{eye},drop\n" for p in (10, 13, 15) for eye in ("left", "right")),
     ["no image has a grade"])])
def test_bad_errata_are_one_line_with_row_value_and_cure(tree, text, words):
    if text is not None:
        Path("fixes.csv").write_text(text)
    with pytest.raises(Problem) as caught:
        read(tree("eyepacs"), "fixes.csv")
    assert all(word in str(caught.value) for word in words) and "\n" not in str(caught.value), caught.value


@pytest.mark.parametrize("kind", RETINOPATHY)
def test_a_missing_folder_and_a_missing_xlrd_are_reported(tree, kind, monkeypatch):
    for where, why in ((None, "not set"), ("absent", "no such folder")):
        with pytest.raises(Problem, match=f"--data-dir .*{why}.*{kind}"):
            retinopathy.read(kind, where)
    monkeypatch.setitem(sys.modules, "xlrd", None)
    if kind == "messidor":
        with pytest.raises(Problem, match="xlrd .* not installed. Run .pip install -r requirements.txt"):
            read(tree(kind))
    else:
        assert read(tree(kind)).samples


def test_grades_must_be_numbers_from_0_on(tree, picture_tree):
    assert Index("x", ("0", "1"), (), graded=True).graded
    for classes in (("0",), (), ("1", "2"), ("0", "2"), ("a", "b")):
        with pytest.raises(Problem, match="--graded needs at least two classes, named 0, 1, 2"):
            Index("x", classes, (), graded=True)
    graded = Data(dataset="folder", data_dir=str(picture_tree("ok", {"0": 1, "1": 1})), graded=True)
    assert read_index(graded).graded and not read_index(dataclasses.replace(graded, graded=False)).graded
    with pytest.raises(Problem, match="Classes a, b in .*Rename the classes, or remove --graded"):
        read_index(dataclasses.replace(graded, data_dir=str(picture_tree("bad", {"a": 1, "b": 1}))))


def test_the_settings_name_the_sets(tree):
    assert set(RETINOPATHY) < set(DATASETS)
    for kind in RETINOPATHY:
        data = Data(dataset=kind, data_dir=str(tree(kind)))
        assert read_index(data).name == kind and data_name(data) == f"{kind}-patient-224"


def test_a_run_keeps_the_absolute_path_of_its_errata(tmp_path):
    [settings] = parsing.parse(TeacherSettings, ["--dataset", "aptos", "--errata", "fixes.csv"])
    folder = RunFolder(tmp_path)
    folder.claim(resolve(settings))
    assert json.loads(folder.settings.read_text())["errata"] == str(tmp_path / "fixes.csv")
    folder.resume.touch()
    folder.claim(resolve(settings))
    with pytest.raises(Problem, match="errata: .*fixes.csv.* -> null"):
        folder.claim(resolve(parsing.replace(settings, errata=None)))


@pytest.mark.parametrize("kind", RETINOPATHY)
def test_check_data_checks_every_set(script, tree, kind):
    code, out = script("evaluate", ["--check-data", "--dataset", kind, "--data-dir", tree(kind)])
    result = json.loads(Path(f"runs/check-{kind}.json").read_text())
    # Only the nine images of Messidor are enough for three splits.
    assert code == (0 if kind == "messidor" else 2) and ("no faults found" in out) == (kind == "messidor")
    assert ("training would stop: --split patient leaves the" in out) == (kind != "messidor")
    assert result["modes"] == {"RGB": result["images"]}
    assert sum(sum(parts.values()) for parts in result["counts"].values()) == result["images"]


def test_check_data_takes_errata(script, tree):
    Path("fixes.csv").write_text("image,grade\n10_left,drop\n")
    argv = ["--check-data", "--dataset", "eyepacs", "--data-dir", tree("eyepacs"), "--errata", "fixes.csv"]
    code, out = script("evaluate", argv)
    assert "note: --errata 'fixes.csv' changed 0 grades and dropped 1 image." in out and "5 images, 3 patients" in out
    assert code == 2 and "training would stop: --split patient leaves the" in out


def test_a_network_trains_on_cropped_images_in_colour(script, tmp_path):
    root = tmp_path / "eyepacs"
    names = [f"{patient}_{eye}" for patient in range(30) for eye in ("left", "right")]
    for number, name in enumerate(names):
        draw(root / f"{name}.jpeg", number)
    write(root, "trainLabels.csv", "image,level\n" + "".join(f"{name},{k % 5}\n" for k, name in enumerate(names)))
    argv = ["--model", "kdtiny", *TINY, "--dataset", "eyepacs", "--data-dir", root, "--epochs", "1"]
    assert script("train_teacher", argv)[0] == 0
    run = Path("runs/eyepacs-patient-32/teacher/kdtiny/seed0")
    with (run / "predictions.csv").open() as file:
        assert {row["patient"] for row in csv.DictReader(file)} < set(map(str, range(30)))
    [pictures] = Path("cache/pictures").glob("eyepacs-32-*/pictures")
    stored = np.fromfile(pictures, np.uint8).reshape(60, 3, 32, 32)
    assert (stored[:, 0, 16, 2:30].min(1) > 80).all() and (stored[:, 0, 16, 16] > stored[:, 2, 16, 16] + 80).all()
    code, out = script("train_teacher", [*argv, "--crop", "none"])
    assert code == 2 and 'crop: "auto" -> "none"' in out.splitlines()[-1]


def test_a_pool_of_messidor_2_drops_images_of_judged_messidor_patients(tree):
    """Check other files of the same name.

    The stem of the name is all that the two sets have in common about a patient.
    """
    index = retinopathy.read("messidor", str(tree("messidor")))
    shared = [row for row, sample in enumerate(index.samples) if sample.patient == "20990101_10001_0100_PP"]
    others = np.setdiff1d(np.arange(len(index.samples)), shared)
    store = Store(index, "cache", 32, "squash", 0, index.crop)
    store.ensure(np.arange(len(index.samples)))
    dataset = Dataset(Data(dataset="messidor"), index, Splits(others, others[:0], np.array(shared), others), store, "")
    unlabeled = Unlabeled(unlabeled_dir=str(tree("messidor2")), unlabeled_dataset="messidor2")
    pool = open_pool(dataset, unlabeled, read_unlabeled(unlabeled, dataset.settings))
    assert len(shared) == 1 and pool.summary["dropped_by_patient"] == 1 and pool.summary["dropped_by_file"] == 0
    assert pool.summary["of_unlabeled_dir"] == 2 and pool.store.second.crop == "fundus"  # an ungradable image counts, too


def test_the_patients_of_a_pool_of_the_same_set_count_as_seen(tree, tmp_path):
    index = retinopathy.read("eyepacs", str(tree("eyepacs")))
    rows = np.arange(len(index.samples))
    store = Store(index, "cache", 32, "squash", 0, index.crop)
    store.ensure(rows)
    test = np.array([row for row in rows if index.samples[row].patient == "15"])
    dataset = Dataset(Data(dataset="eyepacs"), index, Splits(np.setdiff1d(rows, test), test[:0], test, rows[:0]), store, "")
    for number, name in enumerate(("15_left", "100_left")):  # other files; the first shows a judged patient
        draw(tmp_path / "more" / f"{name}.jpeg", 200 + number)
    unlabeled = Unlabeled(unlabeled_dir=str(tmp_path / "more"), unlabeled_dataset="eyepacs")
    pool = open_pool(dataset, unlabeled, read_unlabeled(unlabeled, dataset.settings))
    assert pool.patients == {"eyepacs": ["100"]} and pool.summary["dropped_by_patient"] == 1
