"""Folders as people have them: every file is read, or counted, and every patient that is known is found."""

import json
import os

import numpy as np
import pytest
from PIL import Image

from kd.config.settings import Reading
from kd.data.files.find import extension_of, find_images, natural_key, split_name
from kd.data.files.patients import identified, is_unknown
from kd.data.index import Index, Sample
from kd.data.readers import folder, mura, retinopathy
from kd.system.errors import Problem


def image(path, value=9):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((8, 8), value, np.uint8)).save(path, "PNG")


def tree(root, *paths):
    """Write images, and other files where a path has another extension; a path that ends with / is a folder."""
    for number, path in enumerate(paths):
        place = root / path
        if path.endswith("/"):
            place.mkdir(parents=True)
        elif path.endswith(".png"):
            image(place, number)
        else:
            place.parent.mkdir(parents=True, exist_ok=True)
            place.write_bytes(b"other")
    return root


def scan(path, patient="", issuer="", study=""):
    """Write a DICOM file of 8 x 8 pixels."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom = pytest.importorskip("pydicom")
    data = pydicom.Dataset()
    data.file_meta = pydicom.dataset.FileMetaDataset()
    data.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = "1.2.840.10008.5.1.4.1.1.1"
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = pydicom.uid.generate_uid()
    data.PatientID, data.IssuerOfPatientID, data.PatientName = patient, issuer, "Doe^Jane"
    if study:
        data.StudyInstanceUID = study
    data.Rows = data.Columns = 8
    data.BitsAllocated = data.BitsStored = 8
    data.HighBit, data.PixelRepresentation, data.SamplesPerPixel = 7, 0, 1
    data.PhotometricInterpretation = "MONOCHROME2"
    data.PixelData = bytes(range(64))
    data.save_as(path, enforce_file_format=True)


def patients(index):
    return {sample.path: sample.known_patient for sample in index.samples}


def note(index, words):
    """Return the only note that contains these words."""
    found = [text for text in index.notes if words in text]
    assert len(found) == 1, (words, index.notes)
    return found[0]


# Files


def test_numbers_in_names_are_ordered_as_numbers():
    names = ["10", "2", "a10b", "a2b", "a2", "02", "1 - No DR", "10 - x", "b", ""]
    assert sorted(names, key=natural_key) == ["", "1 - No DR", "02", "2", "10", "10 - x", "a2", "a2b", "a10b", "b"]
    assert sorted(reversed(names), key=natural_key) == sorted(names, key=natural_key)
    assert natural_key("9" * 5000) < natural_key("1" + "0" * 5000)  # longer than what int() reads


@pytest.mark.parametrize("split, spellings", [
    ("train", "train Training TRN train_set TrainSet train-images training_data Train_Images trainset"),
    ("valid", "val VALID Validation dev val_set valid-images validation_images dev_set ValData"),
    ("test", "test Testing tests test_data Test-Set TEST_IMAGES testset testing_images"),
    (None, "trainer latest trial contest evaluation value device testis normal trainval validity")])
def test_public_spellings_of_splits(split, spellings):
    assert {word: split_name(word) for word in spellings.split()} == dict.fromkeys(spellings.split(), split)
    assert split_name("Test Set") == "test" and split_name("") is None


@pytest.mark.parametrize("name, extension", [
    ("a/b.PNG", ".png"), ("x.tar.gz", ".gz"), ("README", "(none)"), ("1.2.840.10008.55", "(none)"), ("a.b/IM0001", "(none)"),
    ("x.7z", ".7z"), ("dr. smith's film", "(none)"), ("x.verylongextension", "(none)"), ("x.", "(none)")])
def test_extensions(name, extension):
    assert extension_of(name) == extension


def test_every_file_is_an_image_or_counted(tmp_path):
    root = tree(tmp_path / "set", "b/10.png", "b/2.png", "b/x.jfif", "b/y.JFIF", "b/x.pdf", "b/no", "b/bad.dcm", "empty/",
                "b/.hidden.png", "b/Thumbs.db", "desktop.ini", ".DS_Store", "__MACOSX/b/._2.png", "b/@eaDir/2.png/t.jpg",
                "#recycle/old.png", "$RECYCLE.BIN/x.png", ".thumbnails/x.png", "_thumbs/x.png", "lost+found/f",
                "System Volume Information/x", ".Trash-1000/files/x.png", "#snapshot/daily/b/2.png")
    scan(root / "b" / "1.2.840.7")
    scan(root / "b" / "film.weird")
    found = find_images(root)
    assert found.paths == ["b/1.2.840.7", "b/2.png", "b/10.png", "b/film.weird"]
    assert found.others == {".jfif": 2, ".pdf": 1, "(none)": 1, ".dcm": 1}
    assert found.skipped == 13  # all but the snapshot, which may hold the archive many times
    assert found.folders == {"": 0, "b": 5, "empty": 0}


def test_a_link_and_a_pipe_are_no_dead_end(tmp_path):
    root = tree(tmp_path / "set", "a/1.png", "b/1.png")
    (root / "a" / "nowhere").symlink_to(root / "none")
    (root / "a" / "loop").symlink_to(root / "a" / "loop")
    (root / "a" / "2.png").symlink_to(root / "b" / "1.png")
    os.mkfifo(root / "a" / "pipe")
    found = find_images(root)
    assert found.paths == ["a/1.png", "a/2.png", "b/1.png"] and found.others == {"(none)": 3}


def test_a_file_that_may_be_dicom_must_be_readable(tmp_path, monkeypatch):
    root = tree(tmp_path / "set", "a/1.png", "b/film")

    def refuse(file, *args, **options):
        if str(file).endswith("film"):
            raise PermissionError(13, "Permission denied", str(file))
        return open(file, *args, **options)
    monkeypatch.setattr("kd.data.files.find.open", refuse, raising=False)
    with pytest.raises(Problem, match=r"Files in .* cannot be read: b/film \(Permission denied\)"):
        find_images(root)


def test_what_is_passed_over_is_named(tmp_path):
    root = tree(tmp_path / "set", "a/1.png", "b/1.png", "b/2.dcm", "b/3.dcm", "b/letter.pdf", "a/.x.png")
    index = folder.read(str(root))
    assert index.others == {".dcm": 2, ".pdf": 1} and index.skipped == 1
    assert note(index, "not images") == (
        "3 files are not images and were skipped: 2 .dcm (no DICOM image), 1 .pdf.")
    index = folder.read_images(str(root), "--unlabeled-dir")
    assert index.others == {".dcm": 2, ".pdf": 1} and note(index, "not images").startswith("3 files")


def test_folder_without_any_image_names_what_it_has(tmp_path):
    root = tree(tmp_path / "set", "a/1.pdf", "b/1.pdf")
    for read in (lambda: folder.read(str(root)), lambda: folder.read_images(str(root), "--data-dir")):
        with pytest.raises(Problem, match=r"--data-dir '.*' contains no images .* 2 files are not images .* 2 \.pdf"):
            read()


def test_classes_without_images_are_named(tmp_path):
    root = tree(tmp_path / "set", "healthy/1.png", "ill/1.png", "covid/1.jfif", "covid/more/2.jfif", "empty/", "a/.x")
    index = folder.read(str(root))
    assert index.classes == ("healthy", "ill")
    assert note(index, "no images") == "3 folders have no images: a (empty), covid (2 other files), empty (empty)."


def test_classes_without_images_in_some_splits_are_fine_unless_files_are_passed_over(tmp_path):
    root = tree(tmp_path / "set", "train/a/1.png", "train/b/1.png", "train/c/1.png", "test/a/1.png", "test/b/1.pdf", "test/c/",
                "train/d/", "val/a/1.pdf")
    index = folder.read(str(root))
    assert index.classes == ("a", "b", "c")
    assert note(index, "no images") == (
        "3 folders have no images: test/b (1 other file), train/d (empty), val (1 other file).")


def test_mura_and_retinopathy_count_other_files(mura_tree, tmp_path):
    tree(mura_tree, "train/XR_HAND/notes.pdf", "valid/@eaDir/x.png")
    index = mura.read(str(mura_tree), "part")
    assert index.others == {".pdf": 1} and index.skipped == 2
    root = tree(tmp_path / "aptos", "train_images/a.png", "train_images/b.png", "train_images/c.jfif",
                "train_images/__MACOSX/a.png")
    (root / "train.csv").write_text("id_code,diagnosis\na,0\nb,1\n")
    index = retinopathy.read("aptos", str(root))
    assert index.others == {".jfif": 1} and index.skipped == 1 and len(index.samples) == 2


@pytest.fixture
def mura_tree(tmp_path):
    root = tmp_path / "MURA-v1.1"
    return tree(root, *(f"{part}/XR_HAND/patient{k}/study1_negative/image1.png" for part in ("train", "valid") for k in "12"),
                "train/XR_HAND/patient1/study1_negative/._image1.png")


# Classes and splits


def test_classes_are_in_natural_order(tmp_path):
    root = tree(tmp_path / "set", *(f"{grade}/{k}.png" for grade in range(11) for k in range(2)))
    index = folder.read(str(root))
    assert index.classes == tuple(map(str, range(11)))
    assert {sample.label for sample in index.samples if sample.path.startswith("10/")} == {10}
    paths = [sample.path for sample in index.samples]
    assert paths == sorted(paths)  # the order of the rows is as before, so that splits are


@pytest.mark.parametrize("classes, valid", [
    (("0", "1", "2"), True), (("0 - No DR", "1 - Mild"), True), (("0_normal", "1_mild"), True), (("0", "2"), False),
    (("0", "1.5"), False), (("0", "10"), False), (("1", "0"), False), (("0",), False), (("a0", "a1"), False), (("", ""), False)])
def test_grades_may_have_words(classes, valid):
    samples = (Sample("x", 0, "x", "x"),)
    if valid:
        assert Index("set", classes, samples, graded=True).graded
    else:
        with pytest.raises(Problem, match="are not grades"):
            Index("set", classes, samples, graded=True)


def test_splits_in_other_spellings(tmp_path):
    root = tree(tmp_path / "brain", "Training/a/1.png", "Training/b/1.png", "Testing/a/1.png", "Val_Set/b/deep/1.png")
    index = folder.read(str(root))
    assert index.classes == ("a", "b")
    assert {sample.path: (sample.label, sample.split) for sample in index.samples} == {
        "Training/a/1.png": (0, "train"), "Training/b/1.png": (1, "train"), "Testing/a/1.png": (0, "test"),
        "Val_Set/b/deep/1.png": (1, "valid")}


@pytest.mark.parametrize("paths, words", [
    (("a/1.png", "b/1.png", "test/1.png"), "Folder test of .* is a split, but this is not so for a, b, and all"),
    (("train/a/1.png", "test/a/1.png", "old/1.png"), "Folders test, train of .* are splits, but this is not so for old"),
    (("train/a/1.png", "1.png"), "Folder train of .* is a split, but this is not so for the folder itself"),
    (("train/a/1.png", "training/a/1.png"), "Folders train and training of .* are both the train split")])
def test_mixed_splits_are_refused(tmp_path, paths, words):
    with pytest.raises(Problem, match=words):
        folder.read(str(tree(tmp_path / "set", *paths)))


def test_kaggle_archives_name_the_second_copy(tmp_path):
    copy = [f"{part}/{name}/{part}.png" for part in ("train", "val", "test") for name in ("NORMAL", "PNEUMONIA")]
    root = tree(tmp_path / "archive" / "chest_xray", *copy, *(f"chest_xray/{path}" for path in copy),
                "__MACOSX/chest_xray/train/NORMAL/._a.jpeg", "train/NORMAL/.DS_Store", "test/NORMAL/Thumbs.db")
    with pytest.raises(Problem, match="Folders test, train, val of .* are splits, but this is not so for chest_xray"):
        folder.read(str(root))
    with pytest.raises(Problem, match="only .'chest_xray'. found.*Use --data-dir '.*archive/chest_xray', if its folders"):
        folder.read(str(root.parent))
    index = folder.read(str(root / "chest_xray"))
    assert index.classes == ("NORMAL", "PNEUMONIA") and len(index.samples) == 6 and not index.skipped


def test_one_class_in_two_spellings_is_refused(tmp_path):
    paths = ("train/NORMAL/1.png", "train/NORMAL/2.png", "train/ill/1.png", "test/Normal/1.png", "test/ill/1.png")
    with pytest.raises(Problem, match=r"differ only in case, blanks or leading zeros: 'NORMAL' \(2 images\) = 'Normal' \(1 image\)"):
        folder.read(str(tree(tmp_path / "set", *paths)))
    composed, decomposed = "M\u00e9tastase", "Me\u0301tastase"  # archives of macOS have the second
    with pytest.raises(Problem, match="differ only in case, blanks or leading zeros"):
        folder.read(str(tree(tmp_path / "two", f"train/{composed}/1.png", "train/ill/1.png", f"test/{decomposed}/1.png")))
    with pytest.raises(Problem, match=r"'NORMAL' \(of the network\) = 'normal' \(1 image\)"):
        folder.read(str(tree(tmp_path / "three", "normal/1.png", "ill/1.png")), ("NORMAL", "ill"))


def test_hospitals_with_the_same_folders_are_noticed(tmp_path):
    root = tree(tmp_path / "set", *(f"hospital{h}/{name}/{k}.png" for h in (1, 2) for name in "ab" for k in range(2)),
                "hospital1/c/1.png")
    index = folder.read(str(root))
    assert index.classes == ("hospital1", "hospital2")
    assert note(index, "contain the folders").startswith(
        "Folders hospital1, hospital2 all contain the folders a, b, and the class is taken from the upper folder: if the lower")


@pytest.mark.parametrize("paths, named, images", [
    (("COVID/images/1.png", "COVID/masks/1.png", "COVID/masks/2.png", "Normal/images/1.png", "Normal/Masks/1.png"),
     "COVID/masks, Normal/Masks", 3),
    (("a/1.png", "b/1.png", "masks/1.png"), "masks", 1), (("a/1.png", "b/1.png", "Labels/x/1.png"), "Labels", 1),
    (("train/a/1.png", "train/b/lung masks/deep/1.png", "train/b/1.png"), "train/b/lung masks", 1),
    (("a/1.png", "a/GroundTruth/1.png", "b/1.png"), "a/GroundTruth", 1), (("a/1.png", "b/x_segmentation/1.png"), "b/x_segmentation", 1),
    (("a/x (1).png", "a/x (1)_mask.png", "a/x (1)_mask_1.png", "b/1.png"), "a/x (1)_mask.png, a/x (1)_mask_1.png", 2)])
def test_masks_are_no_images_to_classify(tmp_path, paths, named, images):
    root = tree(tmp_path / "set", *paths)
    for read in (lambda: folder.read(str(root)), lambda: folder.read_images(str(root), "--unlabeled-dir")):
        with pytest.raises(Problem) as caught:
            read()
        assert str(caught.value).startswith(f"{images} image{'s' * (images > 1)} in {root} would be used that the names call masks")
        assert f" images: {named}. Move them out" in str(caught.value)
    (root / "images.csv").write_text(f"path,label\n{paths[0]},a\n{paths[-1]},b\n")  # the cure: what a table lists is meant
    assert len(folder.read(str(root)).samples) == 2


def test_names_that_are_no_masks(tmp_path):
    root = tree(tmp_path / "set", "with_mask/1.png", "without_mask/1_mask.png", "unmasked/maskara/1.png", "labelled/1.png")
    assert folder.read(str(root)).classes == ("labelled", "unmasked", "with_mask", "without_mask")


@pytest.mark.parametrize("paths, named", [
    ([f"{name}/{part}/1.png" for name in "ab" for part in ("train", "Test_Set")], "Folders a/Test_Set, a/train, b/Test_Set, b/train"),
    (["a/test/1.png", "b/1.png"], "Folder a/test of .* is a split"),
    ([f"h{h}/{part}/{name}/1.png" for h in "12" for part in ("train", "val") for name in "ab"], "Folders h1/train, h1/val, h2/train"),
    (["train/a/1.png", "train/b/test/1.png"], "Folder train/b/test of")])
def test_splits_below_classes_are_refused(tmp_path, paths, named):
    root = tree(tmp_path / "set", *paths)
    with pytest.raises(Problem, match=f"{named}.* below class folders, so that images of all splits would be mixed"):
        folder.read(str(root))
    assert len(folder.read_images(str(root), "--unlabeled-dir").samples) == len(paths)
    assert len(folder.read(str(root), ("x", "y")).samples) == len(paths)  # all are unlabelled


# Links


@pytest.mark.parametrize("split", ["", "train/"])
def test_a_class_that_is_a_broken_link_is_refused(tmp_path, split):
    root = tree(tmp_path / "set", f"{split}a/1.png", f"{split}b/1.png")
    (root / split / "c").symlink_to(tmp_path / "not mounted")
    with pytest.raises(Problem, match=f"Links beside the class folders of .* can be reached: {split}c. Restore"):
        folder.read(str(root))
    (tmp_path / "not mounted").mkdir()
    image(tmp_path / "not mounted" / "1.png")
    assert folder.read(str(root)).classes == ("a", "b", "c")


def test_a_broken_link_elsewhere_is_named(tmp_path):
    root = tree(tmp_path / "set", "a/1.png", "b/1.png")
    (root / "a" / "patient7").symlink_to(root / "none")
    (root / "a" / "loop").symlink_to(root / "a" / "loop")
    (root / "a" / "list.csv").symlink_to(root / "none")
    expected = "2 links lead to nothing that can be reached, so images may be missing: a/loop, a/patient7."
    assert find_images(root).broken == ["a/loop", "a/patient7"]
    assert note(folder.read(str(root)), "can be reached") == expected
    (root / "c").symlink_to(root / "none")
    assert "missing: c, a/loop, a/patient7." in note(folder.read_images(str(root), "--unlabeled-dir"), "can be reached")
    assert "missing: c, a/loop, a/patient7." in note(folder.read(str(root), ("x", "y")), "can be reached")


@pytest.mark.parametrize("link, target, named", [
    ("c", "b", "c = b"), ("c", "b/deep", "c = b/deep"), ("a/x", "b/deep", "b/deep = a/x"), ("a0", "b", "b = a0")])
def test_a_folder_in_two_classes_is_refused(tmp_path, link, target, named):
    root = tree(tmp_path / "set", "a/1.png", "b/deep/1.png")
    (root / link).symlink_to(root / target)
    with pytest.raises(Problem, match=f"are the same by links: {named}. An image has only one class and split"):
        folder.read(str(root))


def test_a_folder_in_two_splits_is_refused_and_one_used_twice_in_its_class_is_named(tmp_path):
    root = tree(tmp_path / "set", "train/a/x/1.png", "train/b/1.png")
    (root / "train/a/y").symlink_to(root / "train/a/x")
    (root / "train/a/self").symlink_to(root / "train/a")
    index = folder.read(str(root))
    assert note(index, "by links") == "1 folder is the same as another by links, and used once: train/a/y = train/a/x."
    assert len(index.samples) == 2
    (root / "test").symlink_to(root / "train")
    with pytest.raises(Problem, match="are the same by links: train = test, train/a|are the same by links: train = test. An"):
        folder.read(str(root))


@pytest.mark.parametrize("paths", [
    ("train/a/1.png", "train/b/1.png", "test/a/1.png", "test/b/1.png"), ("x/a/1.png", "y/a/1.png"),
    ("x/a/1.png", "x/b/1.png", "y/1.png"), ("x/a/1.png", "x/b/1.png", "y/c/1.png", "y/d/1.png")])
def test_other_trees_are_not(tmp_path, paths):
    assert not any("all contain" in text for text in folder.read(str(tree(tmp_path / "set", *paths))).notes)


def test_runs_are_not_data(tmp_path):
    run = "runs/set/teacher/net/seed0"
    root = tree(tmp_path / "set", "a/1.png", "b/1.png", f"{run}/confusion.png", f"{run}/report.json", "a/confusion.png")
    assert folder.read(str(root)).classes == ("a", "b", "runs")  # not a run without its settings
    (root / run / "settings.json").write_text(json.dumps({}))
    for read in (lambda: folder.read(str(root)), lambda: folder.read_images(str(root), "--unlabeled-dir")):
        with pytest.raises(Problem, match=f"are runs of this program, not data: {run}. Move"):
            read()


# Images for a trained network


def test_folders_of_patients_are_unlabelled_images(tmp_path):
    root = tree(tmp_path / "clinic", *(f"patient{k:05d}/IM0001.png" for k in range(30)))
    index = folder.read(str(root), ("healthy", "ill"))
    assert index.classes == ("healthy", "ill") and {sample.label for sample in index.samples} == {-1}
    text = note(index, "unlabelled")
    assert text.startswith("All 30 images are unlabelled: no folder in") and "patient00000, patient00001" in text
    assert "(30 in all)" in text and len(text) < 400


def test_classes_at_a_lower_level_are_named(tmp_path):
    root = tree(tmp_path / "set", *(f"hospital{h}/{name}/{h}.png" for h in (1, 2) for name in ("healthy", "ill")))
    index = folder.read(str(root), ("healthy", "ill"))
    assert {sample.label for sample in index.samples} == {-1} and note(index, "unlabelled")
    assert "(healthy, ill), but are not read as such" in note(index, "lower level")


def test_some_unknown_classes_are_refused_in_short(tmp_path):
    root = tree(tmp_path / "set", "healthy/1.png", *(f"patient{k}/{n}.png" for k in range(40) for n in range(2)))
    with pytest.raises(Problem) as caught:
        folder.read(str(root), ("healthy", "ill"))
    text = str(caught.value)
    assert text.startswith("Folders patient0, patient1, patient2, ") and "(40 in all)" in text and "(80 images)" in text
    assert "unknown to the network: its classes are healthy, ill." in text and len(text) < 400


def test_known_classes_keep_the_order_of_the_network(tmp_path):
    index = folder.read(str(tree(tmp_path / "set", "b/1.png", "a/1.png", "0.png")), ("b", "c", "a"))
    assert [sample.label for sample in index.samples] == [-1, 2, 0]


# Tables


def test_table_flags_need_a_table(tmp_path):
    root = tree(tmp_path / "set", "a/1.png", "b/1.png")
    for how, flag in ((Reading(columns=["label=x"]), "--columns"), (Reading(uncertain="drop"), "--uncertain")):
        with pytest.raises(Problem, match=f"{flag} is not valid without a table: .* contains no images.csv"):
            folder.read(str(root), how=how)
    with pytest.raises(Problem, match="--table 'none.csv' cannot be read: no such file"):
        folder.read(str(root), how=Reading(table="none.csv"))
    with pytest.raises(Problem, match="--data-dir is not set"):
        folder.read(None)


def test_table_elsewhere_and_its_own_folder(tmp_path):
    root = tree(tmp_path / "archive", "a/1.png", "a/2.png", "a/3.png", "x.pdf")
    table = tmp_path / "tables" / "mine.csv"
    table.parent.mkdir()
    table.write_text("path,label,patient,age\na/1.png,10,p1,30\na/2.png,9,p2,\n")
    index = folder.read(str(root), how=Reading(table=str(table)))
    assert index.name == "archive" and index.classes == ("9", "10") and patients(index) == {"a/1.png": "p1", "a/2.png": "p2"}
    assert index.extra == {"age": ("30", "")} and index.others == {}
    (root / "table.csv").write_bytes(table.read_bytes())
    index = folder.read(None, how=Reading(table=str(root / "table.csv")))
    assert index.name == "archive" and [sample.label for sample in index.samples] == [1, 0]


def test_images_that_the_table_does_not_list_are_counted(tmp_path):
    root = tree(tmp_path / "set", "a/1.png", "a/2.png", "a/3.png", "x.pdf", "__MACOSX/x.png")
    (root / "images.csv").write_text("path,label,patient\na/1.png,x,p1\na/2.png,y,p2\n")
    index = folder.read(str(root))
    assert len(index.samples) == 2 and index.others == {".pdf": 1} and index.skipped == 1
    text = note(index, "not used")
    assert text.startswith("1 image was found in ") and text.endswith("or the row was left out: a/3.png.")
    assert note(index, "not an image") == "1 file is not an image and was skipped: 1 .pdf."


# Patients


@pytest.mark.parametrize("text, unknown", [
    ("", True), (" NaN ", True), ("N/A", True), ("Unknown", True), ("ANONYMOUS", True), ("<none>", True), ("null", True),
    ("ANONYMISIERT", True), ("Anonymized Patient", True), ("ANONYMOUS^PATIENT", True), ("De-Identified", True), ("xxx", True),
    ("XXXX", True), ("unbekannt", True), ("Test", True), ("n.a.", True), ("***", True), ("--", True), ("?", True), ("-1", True),
    ("1", False), ("-2", False), ("x1", False), ("X", False), ("test1", False), ("Testa", False), ("7xx", False),
    ("0", False), ("p1", False), ("Anona", False), ("Nana", False)])
def test_words_for_an_unknown_patient(text, unknown):
    assert is_unknown(text) == unknown


@pytest.mark.parametrize("pattern, found", [
    ("person[0-9]+", {"a/person1_x.png": "person1", "a/person1_y.png": "person1", "b/person22_x.png": "person22"}),
    ("person([0-9]+)", {"a/person1_x.png": "1", "a/person1_y.png": "1", "b/person22_x.png": "22"}),
    ("([a-z])/.*(?P<patient>person[0-9]+)", {"a/person1_x.png": "person1", "a/person1_y.png": "person1",
                                             "b/person22_x.png": "person22"})])
def test_pattern_finds_patients(tmp_path, pattern, found):
    root = tree(tmp_path / "set", *found)
    index = folder.read(str(root), how=Reading(patient_pattern=pattern))
    assert patients(index) == found and not index.notes
    index = folder.read_images(str(root), "--unlabeled-dir", Reading(patient_pattern=pattern, site="north"))
    assert patients(index) == {path: f"north::{patient}" for path, patient in found.items()}


def test_pattern_counts_images_that_it_does_not_match(tmp_path):
    root = tree(tmp_path / "set", "a/person1.png", "a/person2.png", "b/person3.png", "b/x.png", "b/y.png")
    index = folder.read(str(root), how=Reading(patient_pattern="person[0-9]+"))
    assert patients(index)["b/x.png"] is None and patients(index)["b/person3.png"] == "person3"
    assert note(index, "--patient-pattern finds") == "--patient-pattern finds no patient in 2 of 5 paths: b/x.png, b/y.png."
    assert note(index, "have no patient").startswith("2 of 5 images")


@pytest.mark.parametrize("pattern, words", [
    ("person([0-9]+", r"--patient-pattern 'person\(\[0-9\]\+' is not a regular expression: missing \)"),
    ("subject[0-9]+", "--patient-pattern 'subject.* finds a patient in none of 2 paths, for example a/person1.png"),
    (".*", "finds a patient in none of 2 paths"), ("(x)?person", "in none of 2 paths"), ("", "in none of 2 paths")])
def test_pattern_that_is_wrong(tmp_path, pattern, words):
    root = tree(tmp_path / "set", "a/person1.png", "b/person2.png")
    with pytest.raises(Problem, match=words):
        folder.read(str(root), how=Reading(patient_pattern=pattern))


def test_pattern_fills_the_gaps_of_a_table(tmp_path):
    root = tree(tmp_path / "set", "x/person1.png", "x/person2.png", "x/person3.png")
    (root / "images.csv").write_text("path,label,patient,site\nx/person1.png,a,MRN7,\nx/person2.png,b,,south\nx/person3.png,b,,\n")
    index = folder.read(str(root), how=Reading(patient_pattern="person[0-9]+", site="north"))
    assert patients(index) == {
        "x/person1.png": "north::MRN7", "x/person2.png": "south::person2", "x/person3.png": "north::person3"}
    (root / "images.csv").write_text("path,label,patient\nx/person1.png,a,1\nx/person2.png,b,2\nx/person3.png,b,3\n")
    index = folder.read(str(root), how=Reading(patient_pattern="person[0-9]+"))
    assert patients(index)["x/person1.png"] == "1" and note(index, "was not used")


@pytest.mark.parametrize("paths, images, count, pattern", [
    (("a/person1_bacteria_1.png", "a/person1_virus_2.png", "b/person12_x.png", "b/IM-1.png"), 3, 2, "person[0-9]+"),
    (("a/Patient 7 ap.png", "b/Patient 7 pa.png", "b/Patient 8 pa.png", "b/Patient 8 ap.png"), 4, 2, "Patient [0-9]+"),
    (("a/sub-01/x.png", "a/sub-01/y.png", "b/SUB-02/x.png", "b/SUB-02/y.png"), 4, 2, "(?i)(?<![a-z])sub[-_ ]?[0-9]+"),
    (("a/10_left.png", "b/10_right.png", "a/13_left.png", "b/13_right.png"), 4, 2, "([0-9]+)_(?:left|right)"),
    (("a/10_L.png", "b/10_R.png", "a/13_OD.png", "b/14_OS.png"), 4, 3, "(?i)(?:^|/)([0-9]+)_(?:left|right|od|os|l|r)(?![a-z])"),
    (("a/p1_1.png", "a/p1_2.png", "b/p2_1.png", "case9/step1.png"), 3, 2, "(?i)(?<![a-z])p[-_ ]?[0-9]+"),
    (("a/00123/1.png", "a/00123/2.png", "a/7/1.png", "a/7/2.png", "b/00124/1.png", "b/00124/x/2.png", "b/9/1.png", "b/9/2.png"),
     8, 4, "^[^/]+/([^/]+)/"),
    (("a/Doe/1.png", "a/Doe/2.png", "a/Poe/1.png", "b/Doe/1.png", "b/Doe/2.png", "b/Coe/1.png"), 6, 3, "^[^/]+/([^/]+)/"),
    (("test/a/1/x.png", "test/a/1/y.png", "train/a/2/x.png", "train/a/2/y.png", "train/b/3/x.png", "train/b/3/y.png",
      "test/b/4/x.png", "test/b/4/y.png"), 8, 4, "^[^/]+/[^/]+/([^/]+)/")])
def test_names_that_look_like_patients_are_a_warning(tmp_path, paths, images, count, pattern):
    root = tree(tmp_path / "set", *paths)
    index = folder.read(str(root))
    text = note(index, "look as if")
    assert text.startswith(f"The names of {images} of {len(paths)} images look as if they named {count} patients, for example the"
                           f" same one in {paths[0]} and ")
    proposed = text.partition("--patient-pattern '")[2].partition("'")[0]
    assert proposed == pattern
    read = folder.read(str(root), how=Reading(patient_pattern=proposed))
    found = [patient for patient in patients(read).values() if patient]
    assert len(found) == images and len(set(found)) == count and not any("look as if" in text for text in read.notes)


@pytest.mark.parametrize("paths", [
    ("a/person1.png", "a/person2.png", "b/person3.png"),  # nobody has two images
    ("p1/1.png", "p1/2.png", "p2/1.png", "p2/2.png"),  # these are the classes
    ("a/step1_x.png", "a/step1_y.png", "b/step2_x.png", "b/step2_y.png"),
    ("p1/a/1.png", "p1/b/1.png"),  # one number: a folder of everything
    ("a/1/x.png", "a/2/x.png", "b/3/x.png", "b/4/x.png"),  # one file in each folder
    ("a/AP/1.png", "a/AP/2.png", "a/PA/1.png", "b/AP/1.png", "b/AP/2.png", "b/PA/1.png"),  # views
    ("a/1/x.png", "a/1/y.png", "a/2/x.png", "b/3/x.png", "b/3/y.png", "b/x.png"),  # not all in such folders
    ("a/10_leftover.png", "b/10_leftover2.png", "a/11_x.png")])
def test_other_names_are_none(tmp_path, paths):
    root = tree(tmp_path / "set", *paths)
    read = folder.read_images(str(root), "--unlabeled-dir") if paths[0] == "p1/a/1.png" else folder.read(str(root))
    assert not any("look as if" in text for text in read.notes)


def test_known_patients_need_no_warning(tmp_path):
    root = tree(tmp_path / "set", "x/person1_1.png", "x/person1_2.png", "x/person2_1.png")
    (root / "images.csv").write_text("path,label,patient\nx/person1_1.png,a,p\nx/person1_2.png,b,p\nx/person2_1.png,b,q\n")
    assert folder.read(str(root)).notes == ()


def test_one_patient_with_most_images_is_named(tmp_path):
    root = tree(tmp_path / "set", *(f"x/{k}.png" for k in range(20)))

    def read(many):
        rows = [f"x/{k}.png,{'ab'[k % 2]},{'batch7' if k < many else f'q{k}'}" for k in range(20)]
        (root / "images.csv").write_text("\n".join(["path,label,patient", *rows]) + "\n")
        return folder.read(str(root)).notes
    assert read(11)[0].startswith("11 of 20 images have the same patient, 'batch7'") and read(10) == ()


# DICOM


def test_dicom_files_know_their_patients(tmp_path):
    root = tmp_path / "set"
    for name, patient, issuer in (("a/1.dcm", "MRN1", "NORTH"), ("a/IM2", "MRN1", ""), ("b/3.weird", "ANONYMOUS", "NORTH"),
                                  ("b/4.ima", "", "")):
        scan(root / name, patient, issuer, "1.2.3")
    image(root / "b" / "5.png")
    index = folder.read(str(root))
    assert patients(index) == {"a/1.dcm": "NORTH::MRN1", "a/IM2": "NORTH::MRN1", "b/3.weird": None, "b/4.ima": None, "b/5.png": None}
    assert [sample.study for sample in index.samples] == ["1.2.3"] * 4 + ["b/5.png"]
    assert note(index, "have no patient").startswith("3 of 5")
    assert note(index, "no site") == (
        "1 image has no site, and that of other images of the same patient is used: NORTH::MRN1.")
    assert not any("Jane" in repr(sample) for sample in index.samples)
    index = folder.read(str(root), how=Reading(site="south"))
    assert patients(index)["a/1.dcm"] == patients(index)["a/IM2"] == "NORTH::MRN1"  # one patient, whatever --site is
    assert patients(folder.read_images(str(root), "--unlabeled-dir"))["a/IM2"] == "NORTH::MRN1"


def test_site_is_for_patients_without_an_issuer(tmp_path):
    root = tmp_path / "set"
    for name, patient, issuer in (("a/1", "7", "NORTH"), ("a/2", "8", ""), ("b/3", "8", ""), ("b/4", "9", "NORTH")):
        scan(root / name, patient, issuer)
    index = folder.read(str(root), how=Reading(site="south"))
    assert patients(index) == {"a/1": "NORTH::7", "a/2": "south::8", "b/3": "south::8", "b/4": "NORTH::9"}
    assert not any("no site" in text for text in index.notes)


def test_images_without_a_site_of_a_patient_with_several_are_refused(tmp_path):
    root = tmp_path / "set"
    for name, issuer in (("a/1", "NORTH"), ("a/2", "SOUTH"), ("b/3", ""), ("b/4", "")):
        scan(root / name, "7", issuer)
    words = r"2 images have no site, although the patient has several: '7' \(NORTH, SOUTH\)\. Name the site"
    with pytest.raises(Problem, match=words):
        folder.read(str(root))
    index = folder.read(str(root), how=Reading(site="SOUTH"))  # the cure
    assert patients(index) == {"a/1": "NORTH::7", "a/2": "SOUTH::7", "b/3": "SOUTH::7", "b/4": "SOUTH::7"}


def test_rows_of_which_only_some_have_a_site(tmp_path):
    def read(*sites, site=""):
        rows = [{"path": f"{k}.png", "label": "a", "patient": "P1", "study": "", "site": own} for k, own in enumerate(sites)]
        image(tmp_path / "0.png")
        rows, notes = identified(tmp_path, rows, Reading(site=site))
        return [row["patient"] for row in rows], notes
    assert read("UKE", "") == (["UKE::P1"] * 2, ["1 image has no site, and that of other images of the same patient is used: UKE::P1."])
    assert read("UKE", "", site="HH")[0] == ["UKE::P1", "HH::P1"]  # as the user says
    assert read("", "") == (["P1"] * 2, []) and read("UKE", "HH") == (["UKE::P1", "HH::P1"], [])
    with pytest.raises(Problem, match=r"1 image has no site, although the patient has several: 'P1' \(HH, UKE\)"):
        read("UKE", "", "HH")


@pytest.mark.parametrize("name", ["film.jpg", "film.PNG", "film.tif"])
def test_dicom_files_with_another_extension_know_their_patients(tmp_path, name):
    root = tmp_path / "set"
    scan(root / "a" / name, "MRN1", "NORTH", "1.2.3")
    scan(root / "b" / "film.dcm", "MRN1")
    image(root / "b" / "1.png")
    os.mkfifo(root / "b" / "pipe.png")  # must not block
    index = folder.read(str(root))
    assert patients(index) == {f"a/{name}": "NORTH::MRN1", "b/film.dcm": "NORTH::MRN1", "b/1.png": None, "b/pipe.png": None}
    assert index.samples[0].study == "1.2.3"


def test_table_and_pattern_count_before_the_header(tmp_path):
    root = tmp_path / "set"
    for number in range(4):
        scan(root / "x" / f"case{number}.dcm", f"MRN{number}", "NORTH", f"1.2.{number}")
    (root / "images.csv").write_text("path,label,patient,study,site\nx/case0.dcm,a,table0,s0,\nx/case1.dcm,b,MRN1,,\n"
                                     "x/case2.dcm,b,,,west\nx/case3.dcm,a,table3,,\n")
    index = folder.read(str(root))
    assert patients(index) == {"x/case0.dcm": "table0", "x/case1.dcm": "NORTH::MRN1", "x/case2.dcm": "west::MRN2",
                               "x/case3.dcm": "table3"}
    assert [sample.study for sample in index.samples] == ["s0", "1.2.1", "1.2.2", "1.2.3"]
    index = folder.read(str(root), how=Reading(patient_pattern="case[0-9]+", site="east"))
    assert patients(index)["x/case2.dcm"] == "west::case2" and patients(index)["x/case0.dcm"] == "east::table0"


def test_damaged_dicom_is_left_to_the_decoder(tmp_path):
    root = tree(tmp_path / "set", "a/1.png", "b/1.png")
    (root / "c").mkdir()
    (root / "c" / "1.dcm").write_bytes(bytes(128) + b"DICM" + bytes(300))
    index = folder.read(str(root))
    assert index.classes == ("a", "b", "c") and patients(index)["c/1.dcm"] is None


def test_site_without_patients_is_said(tmp_path):
    index = folder.read(str(tree(tmp_path / "set", "a/1.png", "b/1.png")), how=Reading(site="north"))
    assert note(index, "--site") == "--site north has no effect, because no image has a known patient."
    assert set(patients(index).values()) == {None}


def test_dicom_files_without_an_image_are_counted_and_not_read(tmp_path):
    pytest.importorskip("pydicom")
    from dicom_files import write_dicom

    for number in range(6):
        write_dicom(tmp_path / "set" / "ab"[number % 2] / f"IM{number}", np.full((8, 8), 10 * number, np.uint8), PatientID=f"P{number}")
    content = (tmp_path / "set/a/IM0").read_bytes()
    secondary_capture, registration = b"1.2.840.10008.5.1.4.1.1.7\0", b"1.2.840.10008.5.1.4.1.1.66"
    assert secondary_capture in content
    (tmp_path / "set/a/RE1").write_bytes(content.replace(secondary_capture, registration))
    found = find_images(tmp_path / "set")
    assert len(found.paths) == 6 and found.others == {"(none)": 1}
