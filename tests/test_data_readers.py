"""Readers turn a folder on disk into an Index.

Everything that is wrong with the folder is reported in one clear line.
"""

import hashlib

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from kd.data.readers import folder, mura, synthetic
from kd.system.errors import Problem


@pytest.fixture
def mura_tree(tmp_path):
    """A nested MURA tree with a few tiny images and a hidden macOS file."""
    root = tmp_path / "download" / "MURA-v1.1" / "MURA-v1.1"
    for path in ("train/XR_ELBOW/patient00001/study1_positive/image1.png",
                 "train/XR_ELBOW/patient00001/study1_positive/image2.png",
                 "train/XR_HAND/patient00001/study1_negative/image1.png",
                 "train/XR_WRIST/patient00002/study2_negative/image1.png",
                 "valid/XR_SHOULDER/patient11185/study1_positive/image1.png"):
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (8, 8), 100).save(root / path)
    (root / "train/XR_ELBOW/patient00001/study1_positive/._image1.png").write_bytes(b"\0\5\x16\7")
    return root


def test_mura_is_found_below_two_nested_folders_and_hidden_files_are_counted(mura_tree):
    index = mura.read(str(mura_tree.parent.parent), "part")
    assert len(index.samples) == 5 and index.skipped == 1 and index.root == mura_tree
    assert [index.classes[sample.label] for sample in index.samples] == ["elbow", "elbow", "hand", "wrist", "shoulder"]
    assert [sample.split for sample in index.samples] == ["train"] * 4 + ["test"]


def test_mura_groups_by_patient_across_body_parts(mura_tree):
    index = mura.read(str(mura_tree), "part")
    assert {sample.patient for sample in index.samples[:3]} == {"patient00001"}
    assert len({sample.study for sample in index.samples[:3]}) == 2


def test_mura_abnormal_reads_the_study_names(mura_tree):
    index = mura.read(str(mura_tree), "abnormal")
    assert index.classes == ("negative", "positive") and [s.label for s in index.samples] == [1, 1, 0, 0, 1]


def test_mura_csv_and_tree_give_the_same_index(mura_tree):
    tree = mura.read(str(mura_tree), "part")
    for part in ("train", "valid"):
        lines = [f"MURA-v1.1/{s.path}" for s in tree.samples if s.path.startswith(part)]
        (mura_tree / f"{part}_image_paths.csv").write_text("\n".join(lines) + "\n")
    assert mura.read(str(mura_tree), "part").samples == tree.samples


@pytest.mark.case(17)
def test_mura_csv_with_a_missing_image_names_the_row(mura_tree):
    for part in ("train", "valid"):
        (mura_tree / f"{part}_image_paths.csv").write_text(
            f"MURA-v1.1/{part}/XR_HAND/patient9/study1_negative/image1.png\n")
    with pytest.raises(Problem, match="missing: row 1 train/XR_HAND/patient9"):
        mura.read(str(mura_tree), "part")


def test_no_mura_on_disk_gives_the_demo_command(tmp_path):
    for where in (None, str(tmp_path), str(tmp_path / "absent")):
        with pytest.raises(Problem, match="--config configs/demo.toml"):
            mura.read(where, "part")


def test_class_folders_become_classes(picture_tree):
    index = folder.read(str(picture_tree("set one", {"b": 2, "a": 3})))
    assert index.name == "set_one" and index.classes == ("a", "b")
    assert [sample.label for sample in index.samples] == [0, 0, 0, 1, 1] and index.notes


def test_split_folders_become_splits(picture_tree):
    index = folder.read(str(picture_tree("set", {"train/a": 1, "train/b": 1, "val/a": 1, "val/b": 1, "test/a": 1, "test/b": 1})))
    assert index.classes == ("a", "b") and sorted({s.split for s in index.samples}) == ["test", "train", "valid"]


def test_folders_beside_the_splits_are_skipped_when_empty_and_refused_with_images(picture_tree):
    root = picture_tree("set", {"train/a": 1, "train/b": 1, "test/a": 1, "test/b": 1, "__MACOSX/a": 1, "docs": 0})
    index = folder.read(str(root))
    assert index.classes == ("a", "b") and len(index.samples) == 4
    Image.new("L", (8, 8)).save(root / "docs" / "logo.png")
    with pytest.raises(Problem, match="Folders test, train of .* are splits, but this is not so for docs"):
        folder.read(str(root))


def test_links_are_followed_and_each_real_folder_is_entered_once(picture_tree):
    root, other = picture_tree("set", {"a": 2, "b": 2}), picture_tree("other", {"x": 3})
    (root / "c").symlink_to(other / "x")
    (root / "a" / "loop").symlink_to(root)
    index = folder.read(str(root))
    assert index.classes == ("a", "b", "c") and len(index.samples) == 7


def test_images_without_a_patient_are_counted_in_a_note(picture_tree):
    root = picture_tree("set", {"x": 2})
    (root / "images.csv").write_text("path,label,patient\nx/image0.png,a,p1\n\nx/image1.png,b,\n")
    assert "1 of 2 images have no patient" in folder.read(str(root)).notes[0]
    (root / "images.csv").write_text("path,label\nx/image0.png,a\n\nx/none.png,b\n")
    with pytest.raises(Problem, match="row 4 'x/none.png'"):
        folder.read(str(root))


def test_images_csv_gives_patients_studies_and_splits(picture_tree):
    root = picture_tree("set", {"x": 2})
    (root / "images.csv").write_text("\ufeffpath,label,patient,study,split\r\nx/image0.png,sick,p1,s1,train\r\n\r\n"
                                     '"x/image1.png",well,p2,s2,Test\r\n')
    index = folder.read(str(root))
    assert index.classes == ("sick", "well") and not index.notes
    assert [(s.patient, s.study, s.split) for s in index.samples] == [("p1", "s1", "train"), ("p2", "s2", "test")]


def test_a_patient_stands_in_for_no_study_and_equal_names_are_studies_of_each_patient(picture_tree):
    root = picture_tree("set", {"x": 8})
    lines = ["path,label,patient,study", "x/image0.png,a,p1,1", "x/image1.png,b,p1,1", "x/image2.png,b,p2,1", "x/image3.png,a,p2,",
             "x/image4.png,a,,S4", "x/image5.png,a,,", "x/image6.png,a,p3,p3", "x/image7.png,b,,S4"]
    (root / "images.csv").write_text("\n".join(lines) + "\n")
    index = folder.read(str(root))
    assert [sample.known_study for sample in index.samples] == [
        ("p1", "1"), ("p1", "1"), ("p2", "1"), None, (None, "S4"), None, None, (None, "S4")]
    assert [sample.study for sample in index.samples] == ["1", "1", "1", "p2", "S4", "x/image5.png", "p3", "S4"]  # as in old hashes
    assert index.unit(4) == index.unit(7) == "study S4" and index.unit(5) == "x/image5.png"


def test_unlabelled_images_and_known_classes(picture_tree):
    root = picture_tree("set", {".": 2})
    with pytest.raises(Problem, match="have no label"):
        folder.read(str(root))
    assert [s.label for s in folder.read(str(root), ("a", "b")).samples] == [-1, -1]
    assert [s.label for s in folder.read(str(picture_tree("none", {"c": 1, "d": 1})), ("a", "b")).samples] == [-1, -1]
    with pytest.raises(Problem, match="Folder d in .* unknown to the network"):
        folder.read(str(picture_tree("other", {"a": 1, "d": 1})), ("a", "b"))


def test_synthetic_drawings_are_the_same_everywhere():
    """Check the drawings against a pinned hash.

    A change of the drawings would make every figure published on them meaningless.
    """
    drawings = b"".join(synthetic.draw(row, 0).tobytes() for row in range(0, 28, 4))
    assert hashlib.sha256(drawings).hexdigest()[:16] == "23ed3327adc087d5"
    assert (synthetic.draw(5, 0) == synthetic.draw(5, 0)).all() and (synthetic.draw(5, 0) != synthetic.draw(5, 1)).any()


def test_synthetic_patients_have_one_class_and_several_studies():
    index = synthetic.read(28 * 7, 0)
    by_patient = {}
    for sample in index.samples:
        by_patient.setdefault(sample.patient, set()).add(sample.label)
    assert all(len(labels) == 1 for labels in by_patient.values()) and len(by_patient) == 49
    assert len({sample.study for sample in index.samples}) == 98


def test_synthetic_classes_are_not_trivial():
    index = synthetic.read(2100, 0)
    drawings = [Image.fromarray(synthetic.draw(row, 0)).resize((16, 16), Image.Resampling.BILINEAR) for row in range(2100)]
    thumbnails = np.stack([np.asarray(drawing).reshape(-1) for drawing in drawings]) / 255.0
    best = max(LogisticRegression(C=c, max_iter=300).fit(thumbnails[:1500], index.labels[:1500])
               .score(thumbnails[1500:], index.labels[1500:]) for c in (0.1, 1.0))
    assert 1 / 7 < best < 0.70
