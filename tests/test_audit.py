"""Findings of --check-data.

Sound sets pass without a warning. Each kind of fault is counted and ends with exit code 2, each kind of warning with 0.
"""

import json
from pathlib import Path

import numpy as np
import pytest
from checked_sets import (
    EACH,
    as_float,
    as_inverted_tiff,
    as_png12,
    as_png16,
    check,
    checked,
    dicom_writer,
    films,
    kinds,
    save,
)
from conftest import write_table
from films import film
from PIL import Image

from kd.data.check import audit
from kd.data.check.audit_text import text
from kd.data.check.passed_over import passed_over
from kd.data.readers import folder, synthetic
from kd.data.tables.spelling import missing_values, spelled_twice
from kd.studies import data_check

# ---- sound sets


def test_a_sound_set_has_neither_faults_nor_warnings(script, tmp_path):
    code, out, result = check(script, films(tmp_path / "set"))
    assert code == 0 and out.splitlines()[-1] == "no faults found"
    assert result["problems"] == [] and result["warnings"] == [] and result["mixed"] == {}
    assert result["counts"] == {"a": {"all": EACH}, "b": {"all": EACH}}
    assert result["formats"] == {"PNG": 24} and result["modes"] == {"L": 24} and result["bits"] == {"8": 24}
    assert result["sizes"] == {"longest_side_min": 64, "longest_side_median": 64, "longest_side_max": 64, "distinct_sizes": 1}
    assert result["by_class"]["a"] == {"images": 12, "sizes": result["sizes"], "formats": {"PNG": 12}, "modes": {"L": 12},
                                       "bits": {"8": 12}}
    assert "formats: PNG (24 images); modes: L (24 images); bits per channel: 8 (24 images); longest side: 64 to 64 px" in out
    assert "files of class" not in out, "nothing differs between the classes"
    assert result["shortcuts"]["all"] == result["shortcuts"]["chance"] == 0.5
    assert result["near_duplicates"]["pairs"] == 0 and result["near_duplicates"]["complete"]


def test_drawings_are_sound():
    result = audit.audit(synthetic.read(280, 0))
    assert result["problems"] == [] and result["warnings"] == [] and result["formats"] == {"drawing": 280}


def test_warnings_do_not_change_the_exit_code(script, tmp_path):
    root = films(tmp_path / "set")
    save(root, "a/flat", np.full((64, 64), 40, np.uint8))
    code, out, result = check(script, root)
    assert code == 0 and out.splitlines()[-1] == "no faults found, 1 warning"
    assert result["warnings"] == ["1 image has only one brightness: a/flat.png. Look at these files."]
    assert f"warning: {result['warnings'][0]}" in out.splitlines()


def test_every_setting_of_reading_arrives(script, tmp_path, monkeypatch):
    films(tmp_path / "set", as_png12, as_png12)
    write_table(tmp_path, [(f"set/a/{2 * k}.png", "x" if k % 2 else "y", f"p{k}") for k in range(EACH)], "File,Finding,Person")
    seen = []
    monkeypatch.setattr(data_check, "audit", lambda index, how: seen.append((index, how)) or audit.audit(index, how))
    code, out = script("evaluate", ["--check-data", "--dataset", "folder", "--table", tmp_path / "images.csv", "--columns",
                                    "path=File", "label=Finding", "patient=Person", "--site", "north", "--bits", "12",
                                    "--split", "given"])
    [(index, how)] = seen
    assert how.split == "given" and how.dataset == "folder"
    assert (how.site, how.bits, how.table) == ("north", 12, str(tmp_path / "images.csv"))
    assert len(index.samples) == EACH and index.classes == ("x", "y") and index.samples[0].patient.startswith("north::p")
    assert code == 0 and "bits per channel: 16 (values use 12; 12 images)" in out


def test_odd_names_and_headers_are_written_as_json(script, tmp_path):
    root = films(tmp_path / "set")
    (root / "note.t\udcffxt").write_bytes(b"words")
    exif = Image.Exif()
    exif[271] = b"\xff\0 Maker\n\t2"
    Image.fromarray(film(999, 64)).save(root / "a/\udcfe.jpg", exif=exif)
    code, out, result = check(script, root)
    assert code == 0 and len(result["other_files"]) == 1 and result["formats"] == {"PNG": 24, "JPEG": 1}
    assert list(result["by_class"]["a"]["manufacturers"].values()) == [1]


# ---- faults


def test_unreadable_files_and_copies_are_faults(script, picture_tree):
    root = picture_tree("set", {"a": 3, "b": 3})
    (root / "a/image0.png").write_bytes(b"no image")
    (root / "b/image1.png").write_bytes((root / "a/image1.png").read_bytes())
    write_table(root, [(f"{name}/image{k}.png", name, f"p{k}{name}", "train" if k else "test") for name in "ab" for k in range(2)]
                + [("a/image2.png", "a", "p2", "train"), ("b/image2.png", "b", "p2", "train")], "path,label,patient,split")
    result = checked(root)
    assert result["copies"] == 2 and not result["copies_across_parts"]
    assert result["copies_that_disagree"] == ["a/image1.png = b/image1.png"]
    assert result["patients_with_several_classes"] == 1 and result["modes"] == {"L": 5}
    assert result["unreadable"] == ["a/image0.png (not an image of a known format)"]
    write_table(root, [("a/image0.png", "a", "p0", "train"), ("a/image1.png", "a", "p1", "train"),
                       ("b/image1.png", "b", "p9", "test"), ("b/image2.png", "b", "p2", "test")], "path,label,patient,split")
    code, out, result = check(script, root)
    assert code == 2 and kinds(result["problems"])[:3] == [
        "1 file cannot be read", "1 group of identical files is in more than one split",
        "1 group of identical files has more than one label or patient"]
    assert "fault: 1 file cannot be read: a/image0.png (not an image of a known format). Replace or remove them." in out
    assert "fault: 1 group of identical files is in more than one split: a/image1.png = b/image1.png." in out
    last = out.splitlines()[-1]
    assert last.startswith("error: Data set 'set' has faults: 1 file cannot be read; 1 group of identical files is in")
    assert last.endswith("Fix them, or keep them in mind. runs/check-set.json lists all of them.")


def test_a_class_without_a_readable_image_is_a_fault(tmp_path):
    root = films(tmp_path / "set")
    for file in (root / "b").iterdir():
        file.write_bytes(b"\x89PNG\r\n\x1a\n")
    result = checked(root)
    assert kinds(result["problems"])[:2] == ["12 files cannot be read", "1 class has no image that can be read"]
    assert result["classes_not_readable"] == ["b"] and list(result["by_class"]) == ["a"]


def test_files_that_may_be_images_are_not_passed_over(script, tmp_path):
    root = films(tmp_path / "set")
    for name in ("a/1.jfif", "b/2.heic", "b/deep/3.dcm", "scan", "1.2.840.113619", "volume.nii"):
        (root / name).parent.mkdir(exist_ok=True)
        (root / name).write_bytes(b"\0\1\2\xff" * 300)
    for name in ("report.pdf", "labels.csv", "LICENSE", "a/notes.txt", "archive.zip.001"):
        (root / name).write_bytes(b"words in UTF-8: \xc3\xa9")
    code, out, result = check(script, root)
    assert code == 2 and sorted(result["passed_over"]) == ["1.2.840.113619", "a/1.jfif", "b/2.heic", "b/deep/3.dcm", "scan",
                                                           "volume.nii"]
    assert kinds(result["problems"]) == ["6 files that may be images were passed over (2 without an extension, 1 .nii, 1 .jfif,"
                                         " 1 .heic, 1 .dcm)"]
    for file in result["passed_over"]:
        (root / file).unlink()
    code, out, result = check(script, root)
    assert code == 0 and result["other_files"] == {".pdf": 1, ".csv": 1, "(none)": 2, ".txt": 1}
    assert "note: 5 files are not images and were skipped: " in out


def test_class_folders_without_images_are_faults(tmp_path):
    root = films(tmp_path / "set")
    for name in ("covid", "empty", "docs"):
        (root / name).mkdir()
    (root / "covid/0.dcm").write_bytes(b"\0" * 200)
    (root / "docs/protocol.pdf").write_bytes(b"%PDF")
    result = checked(root)
    assert result["classes_without_images"] == ["covid (1 file passed over)", "empty (empty)"]
    assert "2 folders look like classes but have no images" in kinds(result["problems"])


def test_class_folders_below_splits(picture_tree):
    root = picture_tree("set", {"train/a": 3, "train/b": 3, "test/a": 2})
    (root / "test/b").mkdir()  # b has no images in the test split, which is no fault
    (root / "test/c").mkdir()
    (root / "a").mkdir()
    assert passed_over(folder.read(str(root)))["classes_without_images"] == ["test/c (empty)"]
    write_table(root, [("train/a/image0.png", "a"), ("train/b/image0.png", "b")], "path,label")
    assert not any(passed_over(folder.read(str(root))).values())


def test_names_with_additions_and_empty_files(tmp_path):
    root = films(tmp_path / "set")
    images = ["MR.1.2.840.77", "a/film.png (1)", "a/film.jpg~", "b/scan.nii.gz", "b/scan.dcm.gz", "b/film.png.bz2", "b/IMAGE.001",
              "b/x.dcm.2"]
    others = ["labels.csv.gz", "backup.gz", "archive.zip.001", "report.pdf (1)", "report.pdf~"]
    for name in images + others:
        (root / name).write_bytes(b"\0\1\2\xff" * 300)
    for name in ("IM0001", "MR.1.2.840.78", "3.dcm", "_SUCCESS", "DONE", "empty.pdf"):
        (root / name).touch()
    result = checked(root)
    assert sorted(result["passed_over"]) == sorted([*images, "IM0001", "MR.1.2.840.78", "3.dcm"])
    assert kinds(result["problems"]) == ["11 files that may be images were passed over (4 without an extension, 2 .dcm, 1 .jpg,"
                                         " 1 .png, 1 .png.bz2, 1 .dcm.gz, 1 .nii.gz)"]


def test_links_that_lead_nowhere_are_faults(script, tmp_path):
    root = films(tmp_path / "set")
    for name in ("a/more", "b/film.png", "b/deep.png"):
        (root / name).symlink_to(tmp_path / "archive" / name)
    index = folder.read(str(root))
    assert sorted(passed_over(index)["broken_links"]) == ["a/more"], "images are reported as files that cannot be read"
    result = checked(root)
    assert result["problems"][1] == "1 link points nowhere: a/more. Mount or restore what they point to, or remove them."
    assert kinds(result["problems"]) == ["2 files cannot be read", "1 link points nowhere"]
    (root / "covid").symlink_to(tmp_path / "archive/covid")  # a class
    code, out, _ = check(script, root)
    assert code == 2 and "covid" in out


def test_a_folder_in_two_classes_is_a_fault(script, tmp_path):
    root = films(tmp_path / "set")
    (root / "a/deep").mkdir()
    save(root, "a/deep/x", film(500, 64))
    for name, target in (("a/more", "a/deep"), ("b/root", "."), ("b/own", "b")):  # these hide no image
        (root / name).symlink_to(root / target)
    assert passed_over(folder.read(str(root)))["linked_twice"] == [] and checked(root)["problems"] == []
    (root / "b/deep").symlink_to(root / "a/deep")
    code, out, _ = check(script, root)
    assert code == 2 and "b/deep" in out and "a/deep" in out
    (root / "b/deep").unlink()
    (root / "c").symlink_to(root / "a")
    code, out, _ = check(script, root)
    assert code == 2 and "c = a" in out


def test_classes_with_two_spellings_are_faults(picture_tree):
    root = picture_tree("set", {"No_DR": 4, "no-dr": 4, "0": 4, "0.0": 4, "nan": 4, "Mild": 4})
    result = checked(root)
    assert result["classes_spelled_twice"] == ["0 = 0.0", "No_DR = no-dr"] and result["classes_missing"] == ["nan"]
    assert [kind for kind in kinds(result["problems"]) if "class" in kind] == [
        "2 classes are spelled in more than one way", "1 class is a missing value"]


def test_names_that_are_the_same_name():
    assert spelled_twice(["a", "A", "b", "1", "01", "1.0", "10", "p 1", "P_1", "1-2", "12", "-1", "é", "e\u0301"]) == [
        ["01", "1", "1.0"], ["A", "a"], ["P_1", "p 1"], ["e\u0301", "é"]]
    assert spelled_twice(["-1", "-01", "-1.0", "no-x", "No - X", "no x", "é-1", "e\u0301_1"]) == [
        ["-01", "-1", "-1.0"], ["No - X", "no x", "no-x"], ["e\u0301_1", "é-1"]]
    for names in (("-1", "1"), ("HER2-", "HER2", "HER2+"), ("T1-2", "T12"), ("T1_2", "T12"), ("1-23", "12-3"), ("1_23", "12_3"),
                  ("a -1", "a 1"), ("- 1", "1"), ("-0.5", "0.5")):
        assert spelled_twice(names) == [], "a sign, or a range"
    assert missing_values(["none", "NaN", "N/A", "normal", "null", "unknown"]) == ["N/A", "NaN", "null"]


def test_patients_with_two_spellings_are_a_warning(tmp_path):
    root = films(tmp_path / "set")
    write_table(root, [(f"{'ab'[k % 2]}/{k}.png", "ab"[k % 2], ("P7" if k < 2 else "p7 " if k < 4 else f"q{k}"))
                       for k in range(2 * EACH)])
    result = checked(root)
    assert result["problems"] == [] and result["warnings"] == [
        "1 patient may be spelled in more than one way: P7 = p7. Use one name for each patient."]


def test_what_training_refuses_is_a_fault(script, tmp_path):
    root = films(tmp_path / "set")
    write_table(root, [(f"{'ab'[k % 2]}/{k}.png", "ab"[k % 2], f"p{k}", "test" if k % 2 else "train") for k in range(2 * EACH)],
                "path,label,patient,split")
    code, out, result = check(script, root)
    assert code == 2 and kinds(result["problems"]) == ["training would stop"]
    assert "train split of 'set' without images of b" in result["problems"][0]
    (root / "images.csv").unlink()
    (root / "b/again.png").write_bytes((root / "a/0.png").read_bytes())
    code, out, result = check(script, root)
    assert code == 2 and "a/0.png (label a) = b/again.png (label b)" in result["problems"][-1] and "--errata" in out


def test_values_beyond_the_stated_bits_are_faults(tmp_path):
    root = films(tmp_path / "set", as_png16, as_png16)
    assert checked(root)["unreadable"] == [] and len(checked(root, bits=12)["unreadable"]) == 24
    assert "--bits 12 means 0 to 4095" in checked(root, bits=12)["problems"][0]


@pytest.mark.parametrize("whole", [True, False])
def test_mura_is_counted_against_the_official_figures(monkeypatch, tmp_path, script, whole):
    root, official, number = tmp_path / "MURA-v1.1", {}, 0
    for body in audit.BODY_PARTS:
        official[body] = (12, 3)
        for k in range(15):
            split = "train" if k < 12 else "valid"
            place = root / split / f"XR_{body.upper()}" / f"patient{number}" / f"study1_{('negative', 'positive')[k % 2]}"
            place.mkdir(parents=True)
            Image.fromarray(film(number, 32)).save(place / "image1.png")
            number += 1
    monkeypatch.setattr(audit, "OFFICIAL", official | ({} if whole else {"hand": (40, 3)}))
    code, out = script("evaluate", ["--check-data", "--dataset", "mura", "--data-dir", root])
    result = json.loads(Path("runs/check-mura.json").read_text())
    assert code == 0 and result["problems"] == [], "a part of MURA is no fault"
    assert ("counts: equal to the official counts" in out) == whole
    assert whole or "note: 1 count differs from the official counts of MURA v1.1: hand train: 12 instead of 40." in out
    # The splits of the thesis need 250 images per class for validation, which are all that there are here.
    assert kinds(result["warnings"]) == ["training would stop with the default sizes of the splits"]


def test_patients_of_mura_in_two_splits_are_faults(tmp_path, script):
    for split in ("train", "valid"):
        for body, patient in (("WRIST", 1), ("HAND", 2 if split == "train" else 3)):
            place = tmp_path / f"mura/{split}/XR_{body}/patient{patient}/study1_negative"
            place.mkdir(parents=True)
            Image.fromarray(film(patient + 9 * (split == "train"), 32)).save(place / "image1.png")
    code, out = script("evaluate", ["--check-data", "--dataset", "mura", "--data-dir", tmp_path / "mura"])
    assert code == 2 and "fault: 1 patient is in more than one split: patient1." in out


# ---- warnings


def test_properties_are_shown_by_class_where_they_differ(script, tmp_path):
    def jpeg(path, grey):
        exif = Image.Exif()
        exif[271] = "Maker\0"
        Image.fromarray(grey).convert("RGB").save(f"{path}.jpg", exif=exif)
    code, out, result = check(script, films(tmp_path / "set", None, jpeg))
    assert code == 0 and result["by_class"]["b"] == {
        "images": 12, "sizes": result["sizes"], "formats": {"JPEG": 12}, "modes": {"RGB": 12}, "bits": {"8": 12},
        "manufacturers": {"Maker": 12}}
    assert "| files of class | formats | modes | manufacturers |" in out
    assert "| a | PNG 12 | L 12 | - |" in out and "| b | JPEG 12 | RGB 12 | Maker 12 |" in out
    [warning] = result["warnings"]
    assert warning.startswith("properties of the files alone, without their pixels, tell the class: balanced accuracy 1.00 in a"
                              " cross-validation on 24 images of 2 classes, 1.00 with only the property 'format' (chance is 0.50,"
                              " and this warning begins above 0.75).")


def test_a_long_table_of_classes_is_cut():
    by_class = {f"c{k}": {"images": 2, "sizes": {"longest_side_min": k, "longest_side_max": k, "longest_side_median": k,
                                                 "distinct_sizes": 1}, "formats": {"PNG": 2}} for k in range(10, 40)}
    shortcuts = {"skipped": "a reason"}
    result = {"name": "x", "images": 60, "patients": 60, "without_patient": 0, "patients_with_several_classes": 0, "hidden_files": 1, "notes": [],
              "counts": {"c": {"all": 60}}, "formats": {"PNG": 60}, "modes": {"L": 60}, "bits": {"8": 60}, "bits_used": {},
              "sizes": None, "by_class": by_class, "copies": 0, "near_duplicates": {"pairs": 3, "complete": False},
              "shortcuts": shortcuts, "official": None}
    lines = text(result).splitlines()
    assert "| c10 | 10 to 10 px (median 10, 1 size) |" in lines and "| c29 | 29 to 29 px (median 29, 1 size) |" in lines
    assert "... (30 classes in all)" in lines and not any(line.startswith("| c30") for line in lines)
    assert "identical files: 0; near-duplicates: more than 3 pairs" in lines
    assert "class from file properties alone: not tested, because a reason" in lines


def test_eight_bits_and_more_are_mixed(tmp_path):
    root = films(tmp_path / "set")
    save(root, "a/deep", film(999, 64), as_png16)
    result = checked(root)
    assert result["bits"] == {"8": 24, "16": 1} and result["bits_used"] == {"16": 16}
    assert result["mixed"] == {"depth": {"a": {"8 bits": 12, "more than 8 bits": 1}, "b": {"8 bits": 12}}}
    assert result["warnings"] == [
        "images with 8 bits and with more bits per channel are mixed: a (8 bits: 12, more than 8 bits: 1), b (8 bits: 12). They"
        " differ in how their brightness was scaled. Export all of them in the same way."]


def test_twelve_bits_in_sixteen_are_named(script, tmp_path):
    code, out, result = check(script, films(tmp_path / "set", as_png12, as_png12))
    assert code == 0 and result["warnings"] == [] and result["bits"] == {"16": 24} and result["bits_used"] == {"16": 12}
    assert "bits per channel: 16 (values use 12; 24 images)" in out


def test_files_that_use_twelve_and_sixteen_bits_are_mixed(tmp_path):
    result = checked(films(tmp_path / "set", as_png12, as_png16))
    assert result["mixed"] == {"bits_used": {"a": {"at most 12 bits used": 12}, "b": {"more than 12 bits used": 12}}}
    assert "with only the property 'bits used'" in result["warnings"][0]
    assert kinds(result["warnings"])[1] == "16-bit files that use at most 12 bits and others are mixed"


def test_inverted_files_are_mixed(tmp_path):
    result = checked(films(tmp_path / "set", as_inverted_tiff, as_png16))
    assert result["mixed"] == {"polarity": {"a": {"inverted": 12}, "b": {"not inverted": 12}}}
    assert result["by_class"]["a"]["photometrics"] == {"WhiteIsZero": 12}
    assert result["by_class"]["a"]["formats"] == {"TIFF": 12}


def test_integers_and_floating_point_numbers_are_mixed(tmp_path):
    result = checked(films(tmp_path / "set", as_float, as_png16))
    assert result["mixed"] == {"numbers": {"a": {"float": 12}, "b": {"integer": 12}}}


def test_properties_of_dicom_files(tmp_path):
    pytest.importorskip("pydicom")
    plain = dicom_writer(Manufacturer="Alpha ", Modality="CR", BurnedInAnnotation="YES")
    other = dicom_writer(Manufacturer="Beta", Modality="DX", BurnedInAnnotation="NO", WindowCenter=2048, WindowWidth=4096,
                         PhotometricInterpretation="MONOCHROME1")
    result = checked(films(tmp_path / "set", plain, other))
    assert result["problems"] == [] and result["formats"] == {"DICOM": 24} and result["unreadable"] == []
    first, second = result["by_class"].values()
    assert (first["manufacturers"], first["modalities"]) == ({"Alpha": 12}, {"CR": 12})
    assert first["photometrics"] == {"MONOCHROME2": 12} and first["bits_stored"] == {"12": 12}
    assert first["windows"] == {"none": 12} and list(second["windows"].values()) == [12] and "none" not in second["windows"]
    assert first["burned_in"] == {"YES": 12} and second["burned_in"] == {"NO": 12} and result["burned_in"] == {"a": 12}
    assert list(result["mixed"]) == ["polarity", "window"]
    assert result["mixed"]["window"] == {"a": {"without one": 12}, "b": {"with a window": 12}}
    assert any(line.startswith("12 files state burned-in annotations: a (12). ") for line in result["warnings"])


def test_near_duplicates_across_splits_classes_and_patients(tmp_path):
    root = films(tmp_path / "set")
    for name, source in (("a/x", 0), ("b/y", 8), ("a/z", 16)):
        Image.fromarray(film(4 * source, 64)).resize((96, 80)).save(root / f"{name}.jpg", quality=90)
    rows = [(f"{'ab'[k % 2]}/{k}.png", "ab"[k % 2], f"p{k}", "test" if k > 18 else "train") for k in range(2 * EACH)]
    rows += [("a/x.jpg", "a", "p0", "train"), ("b/y.jpg", "b", "q", "train"), ("a/z.jpg", "a", "r", "test")]
    write_table(root, rows, "path,label,patient,split")
    result = checked(root)
    found = result["near_duplicates"]
    assert found["pairs"] == 3 and result["copies"] == 0
    assert found["across_parts"] == {"pairs": 1, "first": ["a/16.png = a/z.jpg"]}
    assert found["across_classes"] == {"pairs": 1, "first": ["a/8.png = b/y.jpg"]}
    assert found["across_patients"] == {"pairs": 2, "first": ["a/16.png = a/z.jpg", "a/8.png = b/y.jpg"]}
    assert [kind for kind in kinds(result["warnings"]) if "near" in kind] == [
        "1 pair of near-duplicates is in different splits", "1 pair of near-duplicates is of different classes",
        "2 pairs of near-duplicates are of different patients, or of unknown ones"]
    assert result["problems"] == []


def test_images_without_a_patient_are_not_counted_as_patients(tmp_path, script):
    root = films(tmp_path / "set")
    code, out, result = check(script, root)
    assert code == 0 and result["patients"] == 0 and result["without_patient"] == result["images"] > 0
    assert f"{result['images']} images, 0 patients (0 with images of several classes), {result['images']} images of unknown" in out
